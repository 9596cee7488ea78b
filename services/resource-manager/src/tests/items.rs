//! Stages that have a task for each item of a list.

use baton_protocol::record::{StageCommitted, StageExpanded};

use super::*;

fn item(item: u32, attempt: u32) -> TaskId {
    TaskId { item: Some(item), ..task(1, "research", attempt) }
}

fn expanded(items: &serde_json::Value) -> WorkflowRecord {
    let stage = StageName::new("research").unwrap();
    WorkflowRecord::StageExpanded(StageExpanded { run: run(1), stage, items: Json::of(items).unwrap() })
}

fn gave(task: TaskId, lease: u64, who: &str, result: &serde_json::Value) -> WorkflowRecord {
    let WorkflowRecord::StageEnded(record) = ended(task, Some((lease, who)), Outcome::Succeeded) else {
        panic!("it is an end")
    };
    WorkflowRecord::StageEnded(StageEnded { result: Some(Json::of(result).unwrap()), ..record })
}

impl World {
    /// What agents were given since this was last asked, of the parts that tell items apart.
    fn given(&mut self) -> Vec<String> {
        let transcript = std::mem::take(&mut self.transcript);
        let pushed = transcript.lines().filter_map(|line| line.strip_prefix("publish baton.to."));
        let pushed = pushed.filter_map(|line| line.split_once(".assign "));
        pushed
            .map(|(agent, rest)| {
                let body: serde_json::Value =
                    serde_json::Deserializer::from_str(rest).into_iter().next().unwrap().unwrap();
                let (task, lease) = (body["task"].as_str().unwrap(), &body["lease"]);
                format!(
                    "{agent} {task} lease {lease} item {} index {} results {}",
                    body["item"], body["index"], body["results"]
                )
            })
            .collect()
    }
}

#[test]
fn w5_an_agent_is_given_its_item_and_who_depends_on_them_the_list_of_results() {
    let mut world = World::new();
    world.register("ann", "s", 2);
    world.register("bob", "s", 2);
    world.agent("eve", "register", &json!({ "session": "s", "agent_type": "writing", "slots": 1 }));
    let items = json!([{ "n": 7 }, null, "x"]);
    world.workflow(vec![
        started(1),
        expanded(&items),
        ready(item(0, 1), "{}"),
        ready(item(1, 1), "{}"),
        ready(item(2, 1), "{}"),
    ]);
    world.given();
    world.assign(&[(item(2, 1), "ann"), (item(0, 1), "bob"), (item(1, 1), "ann")]);
    assert_eq!(
        world.given(),
        [
            "ann RUN1/research.2/1 lease 4 item \"x\" index 2 results {}",
            "bob RUN1/research.0/1 lease 5 item {\"n\":7} index 0 results {}",
            "ann RUN1/research.1/1 lease 6 item null index 1 results {}",
        ]
    );
    // One leased already is not leased again, one that is tried again is another task.
    world.assign(&[(item(0, 1), "bob")]);
    assert!(world.given().is_empty());
    world.workflow(vec![
        gave(item(2, 1), 4, "ann", &json!("last")),
        ended(item(0, 1), Some((5, "bob")), Outcome::Failed),
        ready(item(0, 2), "{}"),
    ]);
    world.assign(&[(item(0, 2), "ann")]);
    assert_eq!(world.given(), ["ann RUN1/research.0/2 lease 7 item {\"n\":7} index 0 results {}"]);
    world.workflow(vec![
        gave(item(0, 2), 7, "ann", &json!({ "first": 1 })),
        ended(item(1, 1), Some((6, "ann")), Outcome::Failed),
        ended(task(1, "research", 1), None, Outcome::Succeeded),
        ready(task(1, "writing", 1), "{}"),
    ]);
    world.given();
    world.assign(&[(task(1, "writing", 1), "eve")]);
    let joined = "eve RUN1/writing/1 lease 8 item null index null results {\"research\":[{\"first\":1},null,\"last\"]}";
    assert_eq!(world.given(), [joined]);
}

#[test]
fn w5_items_are_paid_from_the_account_of_their_run_one_by_one() {
    let mut world = World::new();
    world.register("ann", "s", 4);
    let needs = format!(r#"{{"run:{}": "0.4"}}"#, run(1));
    let budget = serde_json::from_value(json!({ "limit": "1", "currency": "EUR", "at_limit": "wait" })).unwrap();
    let WorkflowRecord::RunStarted(start) = started(1) else { panic!("it is a start") };
    world.workflow(vec![
        WorkflowRecord::RunStarted(RunStarted { budget: Some(budget), ..start }),
        expanded(&json!([1, 2, 3])),
        ready(item(0, 1), &needs),
        ready(item(1, 1), &needs),
        ready(item(2, 1), &needs),
    ]);
    world.assign(&[(item(0, 1), "ann"), (item(1, 1), "ann"), (item(2, 1), "ann")]);
    assert_eq!(world.given().len(), 2, "two of them are paid for");
    // What the first one did not need pays for the third one.
    let WorkflowRecord::StageEnded(record) = gave(item(0, 1), 2, "ann", &json!(1)) else { panic!("it is an end") };
    world.workflow(vec![WorkflowRecord::StageEnded(StageEnded { cost: "0.1".parse().unwrap(), ..record })]);
    world.assign(&[(item(2, 1), "ann")]);
    assert_eq!(world.given(), ["ann RUN1/research.2/1 lease 4 item 3 index 2 results {}"]);
}

#[test]
fn w5_an_item_is_handed_over_with_itself() {
    let mut world = World::new();
    world.register("ann", "s1", 1);
    world.register("bob", "s2", 1);
    world.workflow(vec![started(1), expanded(&json!(["x", "y"])), ready(item(1, 1), "{}")]);
    world.assign(&[(item(1, 1), "ann")]);
    world.agent("ann", "handoff", &json!({ "lease": 3, "to": "bob", "timeout_ms": 5000 }));
    world.transcript.clear();
    world.agent("bob", "acknowledge", &json!({ "handoff": 4, "accepted": true }));
    let transcript = std::mem::take(&mut world.transcript);
    assert!(
        transcript.contains(r#""task":"RUN1/research.1/1""#) && transcript.contains(r#""item":"y","index":1"#),
        "{transcript}"
    );
}

#[test]
fn w12_what_a_stage_gave_early_is_given_to_others_once_it_counts() {
    let mut world = World::new();
    world.register("ann", "s", 2);
    world.agent("eve", "register", &json!({ "session": "s", "agent_type": "writing", "slots": 1 }));
    let early = |record: WorkflowRecord| match record {
        WorkflowRecord::StageReady(record) => {
            let input = Some(Json::of(&json!({ "assumed": 1 })).unwrap());
            WorkflowRecord::StageReady(StageReady { speculative: true, input, ..record })
        }
        WorkflowRecord::StageEnded(record) => WorkflowRecord::StageEnded(StageEnded { speculative: true, ..record }),
        other => other,
    };
    // Thrown away, and done anew.
    world.workflow(vec![started(1), early(ready(task(1, "research", 1), "{}"))]);
    world.assign(&[(task(1, "research", 1), "ann")]);
    world.workflow(vec![early(gave(task(1, "research", 1), 3, "ann", &json!("early")))]);
    world.workflow(vec![ready(task(1, "research", 2), "{}")]);
    world.assign(&[(task(1, "research", 2), "ann")]);
    world.workflow(vec![gave(task(1, "research", 2), 4, "ann", &json!("due")), ready(task(1, "writing", 1), "{}")]);
    world.given();
    world.assign(&[(task(1, "writing", 1), "eve")]);
    assert_eq!(world.given(), ["eve RUN1/writing/1 lease 5 item null index null results {\"research\":\"due\"}"]);
    world.workflow(vec![ended(task(1, "writing", 1), Some((5, "eve")), Outcome::Succeeded)]);
    // It counts.
    let of_two = |stage: &str| task(2, stage, 1);
    world.workflow(vec![started(2), early(ready(of_two("research"), "{}"))]);
    world.assign(&[(of_two("research"), "ann")]);
    world.workflow(vec![early(gave(of_two("research"), 6, "ann", &json!("early")))]);
    let committed = StageCommitted { task: of_two("research") };
    world.workflow(vec![WorkflowRecord::StageCommitted(committed), ready(of_two("writing"), "{}")]);
    world.given();
    world.assign(&[(of_two("writing"), "eve")]);
    let given = world.given();
    assert!(given[0].ends_with("results {\"research\":\"early\"}"), "{given:?}");
}
