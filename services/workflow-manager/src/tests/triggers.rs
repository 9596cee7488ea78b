//! Events that start runs, and give signals to them.

use baton_protocol::Trigger;
use baton_protocol::request::{
    EventStored, ListTriggers, RaiseEvent, RemoveTrigger, SetTrigger, TriggerList, TriggerView,
};
use baton_protocol::trigger::Reaction;
use serde_json::json as value;

use super::*;

fn trigger(text: serde_json::Value) -> Trigger {
    serde_json::from_value(text).unwrap()
}

fn set(world: &mut World, name: &str, text: serde_json::Value) -> Result<TriggerView, Rejection> {
    let request = SetTrigger { name: name.parse().unwrap(), trigger: trigger(text) };
    world.ask(WorkflowRequest::SetTrigger(Box::new(request)))
}

fn raise(world: &mut World, event: &str, id: &str, data: &str) -> EventStored {
    let request = RaiseEvent {
        event: event.parse().unwrap(),
        id: id.to_owned(),
        source: Some("me".to_owned()),
        data: json(data),
    };
    world.ask(WorkflowRequest::RaiseEvent(None, request)).unwrap()
}

fn list(world: &mut World) -> TriggerList {
    world.ask(WorkflowRequest::ListTriggers(ListTriggers::default())).unwrap()
}

fn outcomes(stored: &EventStored) -> Vec<String> {
    stored.reactions.iter().map(|reaction| format!("{}: {}", reaction.trigger, reaction.outcome.as_str())).collect()
}

/// A world with workflows of one stage.
fn world(names: &[&str]) -> World {
    let mut world = World::new();
    for workflow in names {
        let mut definition = workflow_of_one();
        definition.name = name(workflow);
        world.register(&definition);
    }
    world.transcript();
    world
}

fn workflow_of_one() -> Definition {
    workflow(&[("a", &[])])
}

#[test]
fn w21_an_event_starts_runs_and_a_trigger_that_fails_silences_no_other() {
    let mut world = world(&["analysis", "report"]);
    let on = value!({ "event": "data_available" });
    set(
        &mut world,
        "analyse",
        value!({ "on": on, "when": "event.data.rows > 100", "start": { "workflow": "analysis",
            "input": { "rows": "event.data.rows", "from": "event.source" }, "priority": 2 } }),
    )
    .unwrap();
    set(&mut world, "broken", value!({ "on": on, "start": { "workflow": "report", "input": "event.data.missing" } }))
        .unwrap();
    set(&mut world, "report", value!({ "on": on, "start": { "workflow": "report" } })).unwrap();
    set(&mut world, "other", value!({ "on": { "event": "else" }, "start": { "workflow": "report" } })).unwrap();
    set(&mut world, "still", value!({ "on": on, "paused": true, "start": { "workflow": "report" } })).unwrap();

    let stored = raise(&mut world, "data_available", "e1", r#"{"rows":500}"#);
    assert_eq!(outcomes(&stored), ["analyse: started", "broken: failed", "report: started"]);
    let stored = raise(&mut world, "data_available", "e2", r#"{"rows":5}"#);
    assert_eq!(outcomes(&stored), ["analyse: unmatched", "broken: failed", "report: started"]);
    // The same event once more is no other.
    assert!(raise(&mut world, "data_available", "e1", r#"{"rows":500}"#).existing);
    check(
        &mut world,
        &expect![[r#"
        4.0        +0ms  trigger_set analyse  (request trigger.set)
        5.0        +0ms  trigger_set broken  (request trigger.set)
        6.0        +0ms  trigger_set report  (request trigger.set)
        7.0        +0ms  trigger_set other  (request trigger.set)
        8.0        +0ms  trigger_set still  (request trigger.set)
        9.0        +0ms  event_raised data_available e1 {"rows":500}  (request event.raise)
        9.1        +0ms  run_started analysis v1  (request event.raise)
        9.2        +0ms  stage_ready a/1  (request event.raise)
        9.3        +0ms  trigger_fired analyse by #10: started r1  (request event.raise)
        9.4        +0ms  trigger_fired broken by #10: failed: start.input: there is no key "missing"  (request event.raise)
        9.5        +0ms  run_started report v1  (request event.raise)
        9.6        +0ms  stage_ready r2:a/1  (request event.raise)
        9.7        +0ms  trigger_fired report by #10: started r2  (request event.raise)
        10.0       +0ms  event_raised data_available e2 {"rows":5}  (request event.raise)
        10.1       +0ms  trigger_fired analyse by #18: its condition gave false  (request event.raise)
        10.2       +0ms  trigger_fired broken by #18: failed: start.input: there is no key "missing"  (request event.raise)
        10.3       +0ms  run_started report v1  (request event.raise)
        10.4       +0ms  stage_ready r3:a/1  (request event.raise)
        10.5       +0ms  trigger_fired report by #18: started r3  (request event.raise)
    "#]],
    );
    let run = *world.processor.machine().runs.keys().next().unwrap();
    let view = world.view(run);
    assert_eq!(view.input, json(r#"{"from":"me","rows":500}"#));
    assert_eq!((view.priority, view.metadata["trigger"].as_str()), (2, "analyse"));
    assert_eq!(view.metadata["event"], "e1");
    let broken = list(&mut world).triggers.into_iter().find(|view| view.name.as_str() == "broken").unwrap();
    expect![[r#"failed: start.input: there is no key "missing""#]].assert_eq(&broken.last.unwrap().outcome.to_string());
}

#[test]
fn w21_the_end_of_a_run_starts_another_one_and_a_circle_ends() {
    let mut world = world(&["first", "second"]);
    let ended = value!({ "run_ended": { "workflow": "first", "status": "succeeded" } });
    set(
        &mut world,
        "then",
        value!({ "on": ended, "start": { "workflow": "second", "input": { "had": "event.data.results.a" } } }),
    )
    .unwrap();
    set(
        &mut world,
        "back",
        value!({ "on": { "run_ended": { "workflow": "second" } },
        "start": { "workflow": "first", "input": { "from": "event.data.run" } } }),
    )
    .unwrap();
    world.agent("ann", "s1", "x");
    world.transcript();
    let run = world.start("first");
    let lease = world.assign(&task(run, "a", 1), "ann");
    world.report("ann", succeeded(lease, &task(run, "a", 1), r#"{"n":7}"#)).unwrap();
    world.wait(0);
    check(
        &mut world,
        &expect![[r#"
        7.0        +0ms  run_started first v1  (request run.start)
        7.1        +0ms  stage_ready a/1  (request run.start)
        8.0        +0ms  assigned a/1 to ann as 2  (request lease.assign)
        9.0        +0ms  stage_ended a/1 succeeded  (request agent.report)
        9.1        +0ms  run_finished succeeded  (request agent.report)
        10.0       +0ms  run_started second v1  (timer)
        10.1       +0ms  stage_ready r2:a/1  (timer)
        10.2       +0ms  trigger_fired then by #10: started r2  (timer)
    "#]],
    );
    let second = *world.processor.machine().runs.keys().next().unwrap();
    assert_eq!(world.view(second).input, json(r#"{"had":{"n":7}}"#));
    // From here on each leads to the next, until it is enough.
    let mut count = 1;
    let next = |world: &World| world.processor.machine().runs.keys().next().copied();
    while let Some(run) = next(&world) {
        let lease = world.assign(&task(run, "a", 1), "ann");
        world.report("ann", succeeded(lease, &task(run, "a", 1), "1")).unwrap();
        world.wait(0);
        count += 1;
        assert!(count < 50, "it goes on");
    }
    assert_eq!(count, 9);
    let views = list(&mut world).triggers;
    let failed = |view: &TriggerView| matches!(&view.last.as_ref().unwrap().outcome, Reaction::Failed(_));
    assert_eq!(views.iter().filter(|view| failed(view)).count(), 1);
}

#[test]
fn w21_what_is_wrong_with_a_trigger_is_said() {
    let mut world = world(&["w", "v"]);
    let on = value!({ "event": "e" });
    let bad = [
        ("no such workflow", value!({ "on": on, "start": { "workflow": "nothing" } })),
        ("no such version", value!({ "on": on, "start": { "workflow": "w", "version": 7 } })),
        ("no such source", value!({ "on": { "run_ended": { "workflow": "nothing" } }, "start": { "workflow": "w" } })),
        (
            "no end",
            value!({ "on": { "run_ended": { "workflow": "v", "status": "running" } }, "start": { "workflow": "w" } }),
        ),
        ("itself", value!({ "on": { "run_ended": { "workflow": "w" } }, "start": { "workflow": "w" } })),
        ("no expression", value!({ "on": on, "when": "event.data.n >", "start": { "workflow": "w" } })),
        ("another name", value!({ "on": on, "when": "input.n > 1", "start": { "workflow": "w" } })),
        ("misspelt", value!({ "on": on, "when": "evnt.data.n > 1", "start": { "workflow": "w" } })),
        ("in the input", value!({ "on": on, "start": { "workflow": "w", "input": { "n": "results.a" } } })),
        (
            "too large",
            value!({ "on": on, "when": format!("event.data.n > {}1", " ".repeat(9000)), "start": { "workflow": "w" } }),
        ),
        ("no such signal", value!({ "on": on, "signal": { "workflow": "w", "signal": "paid" } })),
        ("no workflow to signal", value!({ "on": on, "signal": { "workflow": "nothing", "signal": "paid" } })),
        ("its own key", value!({ "on": on, "start": { "workflow": "w", "metadata": { "chain": "1" } } })),
    ];
    let mut text = String::new();
    for (what, trigger) in bad {
        let rejection = set(&mut world, "t", trigger).unwrap_err();
        text += &format!("{what}: {} ({})\n", rejection.message, rejection.code);
    }
    expect![[r#"
        no such workflow: there is no workflow nothing; there are: article, paper, v, w (unknown_workflow)
        no such version: workflow w has no version 7; its versions are 1 to 1 (unknown_workflow)
        no such source: there is no workflow nothing; there are: article, paper, v, w (unknown_workflow)
        no end: the trigger is not valid: on.run_ended.status: it must be how a run ends (invalid_request)
        itself: the trigger is not valid: it starts the workflow whose ends it is for: each run would start the next one; say with `when` which may (invalid_request)
        no expression: the trigger is not valid: when: the expression can not be read: it ends too soon (its character 15) (invalid_request)
        another name: the trigger is not valid: when: there is nothing called `input`; there is `event` (invalid_request)
        misspelt: the trigger is not valid: when: there is nothing called `evnt`; did you mean `event`? (invalid_request)
        in the input: the trigger is not valid: start.input.n: results.a: there are no stages (invalid_request)
        too large: the trigger has 9071 bytes as JSON; at most 8192 are allowed (too_large)
        no such signal: no stage of workflow w waits for the signal paid (invalid_request)
        no workflow to signal: there is no workflow nothing; there are: article, paper, v, w (unknown_workflow)
        its own key: the trigger is not valid: start.metadata: the key "chain" is written by the trigger itself (invalid_request)
    "#]].assert_eq(&text);
    let mut refuse = |id: &str, data: &str| {
        let request = RaiseEvent { event: "e".parse().unwrap(), id: id.to_owned(), source: None, data: json(data) };
        world.ask::<EventStored>(WorkflowRequest::RaiseEvent(None, request)).unwrap_err().message
    };
    assert_eq!(refuse("", "1"), "the event's id has 0 bytes; it must have 1 to 255");
    let large = format!("\"{}\"", "x".repeat(300 * 1024));
    assert!(refuse("a", &large).contains("at most 262144 are allowed: pass references"));
    let request = RemoveTrigger { name: "t".parse().unwrap() };
    let rejection = world.ask::<TriggerView>(WorkflowRequest::RemoveTrigger(request)).unwrap_err();
    assert_eq!(rejection.code, Code::UnknownTrigger);
}

/// A world with a workflow that waits for a signal.
fn waiting_world() -> World {
    let mut world = World::new();
    let source = "name: order\nstages:\n- {name: payment, wait_for: {signal: paid}, timeout_ms: 60000}\n\
                  - {name: deliver, agent_type: x, depends_on: [payment]}\n";
    let request = RegisterWorkflow { source: Some(source.to_owned()), definition: None };
    world.ask::<WorkflowView>(WorkflowRequest::RegisterWorkflow(request)).unwrap();
    world
}

#[test]
fn w21_an_event_releases_the_runs_that_are_meant() {
    let mut world = waiting_world();
    let start = value!({ "on": { "event": "ordered" }, "start": { "workflow": "order" } });
    set(&mut world, "start", start).unwrap();
    let pay = value!({ "on": { "event": "paid" }, "when": "event.data.sum > 0", "signal": { "workflow": "order", "signal": "paid",
        "runs": { "event": "event.data.order" }, "payload": { "sum": "event.data.sum" } } });
    let view = set(&mut world, "pay", pay.clone()).unwrap();
    assert_eq!(serde_json::to_value(&view.trigger).unwrap(), pay);
    for order in ["o1", "o2"] {
        raise(&mut world, "ordered", order, "{}");
    }
    world.transcript();
    assert_eq!(outcomes(&raise(&mut world, "paid", "p1", r#"{"order":"o2","sum":0}"#)), ["pay: unmatched"]);
    let stored = raise(&mut world, "paid", "p2", r#"{"order":"o2","sum":12}"#);
    assert_eq!(outcomes(&stored), ["pay: signalled"]);
    let said = |stored: &EventStored| stored.reactions[0].outcome.to_string();
    assert_eq!(said(&raise(&mut world, "paid", "p3", r#"{"order":"o3","sum":12}"#)), "no run waits for it");
    assert_eq!(said(&raise(&mut world, "paid", "p4", r#"{"order":"o2","sum":13}"#)), "no run waits for it");
    assert_eq!(
        said(&raise(&mut world, "paid", "p5", r#"{"order":[],"sum":13}"#)),
        "failed: signal.runs.event: it gives no text, and no number"
    );
    check(
        &mut world,
        &expect![[r#"
        7.0        +0ms  event_raised paid p1 {"order":"o2","sum":0}  (request event.raise)
        7.1        +0ms  trigger_fired pay by #14: its condition gave false  (request event.raise)
        8.0        +0ms  event_raised paid p2 {"order":"o2","sum":12}  (request event.raise)
        8.1        +0ms  signalled paid by trigger pay: {"sum":12}  (request event.raise)
        8.2        +0ms  stage_ended r2:payment/1 succeeded  (request event.raise)
        8.3        +0ms  stage_ready r2:deliver/1 with payment  (request event.raise)
        8.4        +0ms  trigger_fired pay by #16: 1 run was given the signal  (request event.raise)
        9.0        +0ms  event_raised paid p3 {"order":"o3","sum":12}  (request event.raise)
        9.1        +0ms  trigger_fired pay by #21: no run waits for it  (request event.raise)
        10.0       +0ms  event_raised paid p4 {"order":"o2","sum":13}  (request event.raise)
        10.1       +0ms  trigger_fired pay by #23: no run waits for it  (request event.raise)
        11.0       +0ms  event_raised paid p5 {"order":[],"sum":13}  (request event.raise)
        11.1       +0ms  trigger_fired pay by #25: failed: signal.runs.event: it gives no text, and no number  (request event.raise)
    "#]],
    );
    // Without `runs`, all of the workflow are meant, but not those that come later.
    let all = value!({ "on": { "event": "all" }, "signal": { "workflow": "order", "signal": "paid" } });
    set(&mut world, "all", all).unwrap();
    world.wait(10);
    raise(&mut world, "ordered", "o3", "{}");
    assert_eq!(said(&raise(&mut world, "all", "a", r#"{"sum":1}"#)), "2 runs were given the signal");
    raise(&mut world, "ordered", "o4", "{}");
    let waits = |world: &World| world.processor.machine().runs.values().filter(|run| run.signals.is_empty()).count();
    assert_eq!(waits(&world), 1);
}

#[test]
fn w21_a_run_that_is_ended_by_the_signal_to_the_run_around_it_is_given_none() {
    let mut world = World::new();
    let word = "- {name: word, wait_for: {signal: go}, timeout_ms: 60000}";
    let broken = "- {name: broken, agent_type: x, depends_on: [word], when: results.word.missing}";
    for (name, stages) in [
        ("w", word.to_owned()),
        ("between", "- {name: part, workflow: w, workflow_version: 1}".to_owned()),
        ("w", format!("{word}\n- {{name: part, workflow: between}}\n{broken}")),
    ] {
        let request = RegisterWorkflow { source: Some(format!("name: {name}\nstages:\n{stages}\n")), definition: None };
        world.ask::<WorkflowView>(WorkflowRequest::RegisterWorkflow(request)).unwrap();
    }
    let all = value!({ "on": { "event": "e" }, "signal": { "workflow": "w", "signal": "go" } });
    set(&mut world, "all", all).unwrap();
    world.start("w");
    assert_eq!(world.processor.machine().runs.len(), 3);
    world.transcript();
    let stored = raise(&mut world, "e", "1", r#"{"a":1}"#);
    assert_eq!(stored.reactions[0].outcome, Reaction::Signalled(1));
    check(
        &mut world,
        &expect![[r#"
        7.0        +0ms  event_raised e 1 {"a":1}  (request event.raise)
        7.1        +0ms  signalled go by trigger all: {"a":1}  (request event.raise)
        7.2        +0ms  stage_ended word/1 succeeded  (request event.raise)
        7.3        +0ms  stage_ended broken/1 failed (condition_failed): its condition (when) fails: there is no key "missing"  (request event.raise)
        7.4        +0ms  stage_ended part/1 cancelled: stage broken failed after 1 attempt: its condition (when) fails: there is no key "missing"  (request event.raise)
        7.5        +0ms  stage_ended r2:part/1 cancelled: stage part of run 019aa2a3-4380-7c26-be28-0f5eebac0977, which it did, ended: cancelled  (request event.raise)
        7.6        +0ms  stage_ended r3:word/1 cancelled: stage part of run 019aa2a3-4380-7c26-911d-0ea56bf75da0, which it did, ended: cancelled  (request event.raise)
        7.7        +0ms  run_finished r3 cancelled: stage part of run 019aa2a3-4380-7c26-911d-0ea56bf75da0, which it did, ended: cancelled  (request event.raise)
        7.8        +0ms  run_finished r2 cancelled: stage part of run 019aa2a3-4380-7c26-be28-0f5eebac0977, which it did, ended: cancelled  (request event.raise)
        7.9        +0ms  run_finished failed: stage broken failed after 1 attempt: its condition (when) fails: there is no key "missing"  (request event.raise)
        7.10       +0ms  trigger_fired all by #12: 1 run was given the signal  (request event.raise)
    "#]],
    );
    assert!(world.processor.machine().runs.is_empty());
}

#[test]
fn w21_a_crash_at_any_commit_signals_every_run_that_is_meant() {
    for stores in 0.. {
        let mut world = waiting_world();
        let all = value!({ "on": { "event": "all" }, "signal": { "workflow": "order", "signal": "paid" } });
        set(&mut world, "all", all).unwrap();
        for _ in 0..3 {
            world.start("order");
        }
        // Each record is a commit of its own from here on.
        world.max_bytes = 1;
        world.stores = stores;
        let request = RaiseEvent { event: "all".parse().unwrap(), id: "a".to_owned(), source: None, data: json("1") };
        let answer = world.try_ask(WorkflowRequest::RaiseEvent(None, request.clone()), None);
        let died = world.stores == 0;
        world.lead();
        if answer.is_none() {
            world.try_ask(WorkflowRequest::RaiseEvent(None, request), None);
        }
        world.wait(10);
        let views = list(&mut world).triggers;
        assert_eq!(views[0].last.as_ref().unwrap().outcome, Reaction::Signalled(3), "after {stores} commits");
        assert!(world.processor.machine().runs.values().all(|run| run.signals.len() == 1));
        if !died {
            assert!(stores > 5, "there was a commit to die at");
            return;
        }
    }
}

#[test]
fn w21_a_start_that_has_no_room_waits_and_one_that_is_removed_does_not() {
    let mut world = World::empty();
    world.config.max_live_runs = 1;
    world.lead();
    world.register(&workflow(&[("a", &[])]));
    let on = value!({ "event": "e" });
    set(&mut world, "low", value!({ "on": on, "start": { "workflow": "w" } })).unwrap();
    set(&mut world, "high", value!({ "on": on, "start": { "workflow": "w", "priority": 1 } })).unwrap();
    set(&mut world, "gone", value!({ "on": on, "start": { "workflow": "w" } })).unwrap();
    let live = world.start("w");
    world.transcript();
    let stored = raise(&mut world, "e", "1", "{}");
    assert_eq!(stored.waiting.len(), 3);
    let request = RemoveTrigger { name: "gone".parse().unwrap() };
    world.ask::<TriggerView>(WorkflowRequest::RemoveTrigger(request)).unwrap();
    // A successor goes on with what its predecessor had to leave.
    world.lead();
    for _ in 0..3 {
        let live: Vec<RunId> = world.processor.machine().runs.keys().copied().collect();
        for run in live {
            world.cancel(run, None).unwrap();
        }
        world.wait(6000);
    }
    assert_ne!(world.view(live).status, RunStatus::Running);
    check(
        &mut world,
        &expect![[r#"
        7.0        +0ms  event_raised e 1 {}  (request event.raise)
        8.0        +0ms  trigger_removed gone  (request trigger.remove)
        10.0       +0ms  stage_ended a/1 cancelled: it was cancelled  (request run.cancel)
        10.1       +0ms  run_finished cancelled: it was cancelled  (request run.cancel)
        11.0       +0ms  run_started w v1  (timer)
        11.1       +0ms  stage_ready r2:a/1  (timer)
        11.2       +0ms  trigger_fired high by #9: started r2  (timer)
        12.0    +6000ms  stage_ended r2:a/1 cancelled: it was cancelled  (request run.cancel)
        12.1    +6000ms  run_finished cancelled: it was cancelled  (request run.cancel)
        13.0    +6400ms  run_started w v1  (timer)
        13.1    +6400ms  stage_ready r3:a/1  (timer)
        13.2    +6400ms  trigger_fired low by #9: started r3  (timer)
        14.0   +12000ms  stage_ended r3:a/1 cancelled: it was cancelled  (request run.cancel)
        14.1   +12000ms  run_finished cancelled: it was cancelled  (request run.cancel)
    "#]],
    );
}

#[test]
fn w21_a_crash_at_any_commit_starts_nothing_twice_and_forgets_nothing() {
    for stores in 0.. {
        let mut world = World::empty();
        world.lead();
        for workflow in ["w", "v"] {
            let mut definition = workflow_of_one();
            definition.name = name(workflow);
            world.register(&definition);
        }
        let on = value!({ "run_ended": { "workflow": "w" } });
        for trigger in ["a", "b", "c"] {
            set(&mut world, trigger, value!({ "on": on, "start": { "workflow": "v" } })).unwrap();
        }
        let run = world.start("w");
        // Each record is a commit of its own from here on.
        world.max_bytes = 1;
        world.stores = stores;
        let cancel = baton_protocol::request::CancelRun { run, reason: None };
        let answer = world.try_ask(WorkflowRequest::CancelRun(cancel.clone()), None);
        if world.stores > 0 {
            world.wait(10);
        }
        let died = world.stores == 0;
        world.lead();
        if answer.is_none() {
            world.try_ask(WorkflowRequest::CancelRun(cancel), None);
        }
        world.wait(10);
        let machine = world.processor.machine();
        assert_eq!(machine.runs.len(), 3, "after {stores} commits");
        if !died {
            assert!(stores > 5, "there was a commit to die at");
            return;
        }
    }
}

#[test]
fn w21_a_crash_starts_nothing_twice_however_long_the_id_of_the_event() {
    let mut world = world(&["w"]);
    let name = "t".repeat(63);
    set(&mut world, &name, value!({ "on": { "event": "e" }, "start": { "workflow": "w" } })).unwrap();
    // The run is stored, and what the event came to is not.
    (world.max_bytes, world.stores) = (1, 2);
    let request = RaiseEvent { event: "e".parse().unwrap(), id: "i".repeat(255), source: None, data: json("{}") };
    assert!(world.try_ask(WorkflowRequest::RaiseEvent(None, request), None).is_none());
    world.lead();
    world.wait(0);
    assert_eq!(world.processor.machine().runs.len(), 1);
}
