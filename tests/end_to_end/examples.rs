//! Every example in `examples/` runs to its end, as its comments say.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use baton_protocol::record::Outcome;
use baton_protocol::request::{ListRuns, SignalRun};
use baton_protocol::run::{RunStatus, RunView, StageStatus};
use baton_protocol::{Code, Json};
use baton_sdk::{Delegation, GatheredStage, Output, Task, TaskError};
use baton_testkit::wait_for;
use serde_json::{Value, json};

use crate::fleet::{Fleet, PATIENCE};
use crate::workflows::agent;

const CAPABILITIES: [&str; 13] = [
    "director",
    "lead",
    "worker",
    "planning",
    "research",
    "writing",
    "triage",
    "model",
    "dear_model",
    "cheap_model",
    "painter",
    "sleeper",
    "failing",
];

/// Whether an agent hangs already.
static HANGS: AtomicBool = AtomicBool::new(false);

/// What agents say to an example's stages.
async fn does(task: Task) -> Result<Output, TaskError> {
    let input: Value = task.input()?;
    if task.workflow.as_str() == "supervisor" && task.agent_type.as_str() != "writing" {
        return supervises(&task, &input);
    }
    let done = match (task.workflow.as_str(), task.stage.as_str()) {
        ("parallel-and-optional", "figures") => Err(TaskError::failed("there are none").permanent()),
        ("schemas-and-mappings", "research") if task.attempt == 1 => Ok(json!({ "facts": "many" })),
        ("schemas-and-mappings", "research") => Ok(json!({ "facts": ["a", "b", "c"], "notes": "…" })),
        ("schemas-and-mappings", "text") => Ok(input),
        ("conditions", "triage") => {
            let difficulty = if input["question"].as_str().unwrap_or_default().len() > 20 { 5 } else { 1 };
            Ok(json!({ "difficulty": difficulty }))
        }
        ("conditions", "answer") => Ok(input),
        ("conditions", stage) => Ok(json!({ "text": format!("by {stage}") })),
        ("retries", "ask") if task.attempt < 3 => Err(TaskError::failed("busy").code("busy")),
        ("retries", "ask_the_other") => Err(TaskError::failed("not you").code("forbidden")),
        ("fallback", "translate") if input["topic"] == "tea" => Err(TaskError::failed("no credit")),
        ("fallback", "illustrate") => Err(TaskError::failed("no paint")),
        ("fallback", "publish") => Ok(input),
        ("fallback", stage) => Ok(json!({ "text": format!("by {stage}") })),
        ("map", "plan") => {
            let chapters: Vec<_> = ["one", "two", "three", "four", "five", "six"].map(|t| json!({ "title": t })).into();
            Ok(json!({ "chapters": chapters }))
        }
        ("map", "chapters") if input["title"] == "four" => Err(TaskError::failed("a block")),
        ("map", "chapters") => {
            // The later ones are done sooner.
            tokio::time::sleep(Duration::from_millis(60 - 10 * input["number"].as_u64().unwrap_or(6))).await;
            Ok(json!({ "text": format!("{}: {}", input["number"], task.item::<Value>()?["title"]) }))
        }
        ("map", "book") => Ok(input),
        ("approval", "deliver") | ("order", "send") => Ok(input),
        ("speculative", "text") => {
            Ok(json!({ "text": format!("a text on {}", input["topic"].as_str().unwrap_or_default()) }))
        }
        ("speculative", "translation") => {
            assert!(task.results.is_empty(), "it is given its input alone");
            Ok(json!({ "text": format!("{}, translated", input["text"].as_str().unwrap_or_default()) }))
        }
        // Whoever has it first hangs until it is called back.
        ("hedge", "answer") if !HANGS.swap(true, Ordering::Relaxed) => {
            task.cancelled().cancelled().await;
            Err(TaskError::failed("called back"))
        }
        ("hedge", "answer") => Ok(json!({ "text": "because" })),
        ("hedge", "publish") => Ok(input),
        ("sub-workflows", "collect") => {
            Ok(json!({ "questions": ["Is it ready?", "Why is it not ready, which is urgent?", "Is it?"] }))
        }
        ("sub-workflows", "publish") => Ok(input),
        ("supervisor", "publish") => Ok(input),
        ("cache", stage) => Ok(json!({ "text": format!("{stage} in run {}", task.run) })),
        ("timeouts", "somebody_sleeps" | "somebody_says_nothing") => {
            task.cancelled().cancelled().await;
            Err(TaskError::failed("too late"))
        }
        ("timeouts", "somebody_fails") => Err(TaskError::failed("again and again")),
        _ => Ok(json!({})),
    };
    Output::json(&done?)
}

/// A director with two parts for leads, each with two pieces for workers.
fn supervises(task: &Task, input: &Value) -> Result<Output, TaskError> {
    let part = task.params.get("part").and_then(Value::as_str).unwrap_or_default();
    let below = match task.agent_type.as_str() {
        "director" => "lead",
        "lead" => "worker",
        _ => return Output::json(&json!({ "text": format!("{part} of {}", input["topic"].as_str().unwrap_or("?")) })),
    };
    if let Some(gathered) = task.gathered()? {
        let text =
            |stage: &GatheredStage| stage.result.as_ref()?.read::<Value>().ok()?["text"].as_str().map(str::to_owned);
        let texts: Vec<_> = gathered.stages.iter().filter_map(text).collect();
        return Output::json(&json!({ "text": format!("({})", texts.join(" + ")) }));
    }
    let stage = |n: usize| json!({ "name": format!("{below}-{n}"), "agent_type": below, "params": { "part": format!("{part}{n}") } });
    Ok(Output::delegate(Delegation::of(&[stage(1), stage(2)])?.aggregate()))
}

struct Stage<'a>(&'a RunView);

impl Stage<'_> {
    fn status(&self, name: &str) -> StageStatus {
        self.0.stages.iter().find(|stage| stage.name.as_str() == name).unwrap().status
    }

    fn attempts(&self, name: &str) -> usize {
        self.0.stages.iter().find(|stage| stage.name.as_str() == name).unwrap().attempts.len()
    }

    fn result(&self, name: &str) -> Value {
        let stage = self.0.stages.iter().find(|stage| stage.name.as_str() == name).unwrap();
        stage.result.as_ref().map_or(Value::Null, |result| result.read().unwrap())
    }
}

/// Runs the commands that an example's comments give, but that by which it is registered.
async fn as_commented(fleet: &Fleet, name: &str) -> String {
    let text = std::fs::read_to_string(folder().join(name)).unwrap();
    let mut said = String::new();
    for command in text.lines().filter_map(|line| line.strip_prefix("#   baton ")) {
        // What stands between quotes is one word.
        let parts = command.split('"').enumerate().flat_map(|(n, part)| match n % 2 {
            0 => part.split_whitespace().collect(),
            _ => vec![part],
        });
        let words: Vec<_> = parts.collect();
        if words[..2] != ["workflow", "register"] {
            said += &fleet.baton(&words).await;
        }
    }
    said
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_example_runs_as_it_says() {
    use StageStatus::{Failed, Skipped, Succeeded};
    let fleet = Fleet::services().await;
    let mut stops = Vec::new();
    for capability in CAPABILITIES {
        let id = format!("{}-1", capability.replace('_', "-"));
        stops.push(agent(&fleet, &id, capability, 4, does).await);
    }
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        fleet.baton(&["workflow", "register", path.to_str().unwrap()]).await;
        names.push(path.file_stem().unwrap().to_str().unwrap().to_owned());
    }
    names.sort();
    let run = |name: &'static str, input: Value| {
        let fleet = &fleet;
        async move {
            let run = fleet.start_run(name, &input).await;
            let view = fleet.wait_for_end(run).await;
            assert_eq!(view.status, RunStatus::Succeeded, "{name}: {view:?}");
            view
        }
    };
    let mut seen = Vec::new();

    // W1
    let view = run("parallel-and-optional", json!({ "topic": "tea" })).await;
    let stage = Stage(&view);
    assert_eq!((stage.status("figures"), stage.status("publish")), (Failed, Succeeded));
    seen.push("parallel-and-optional");

    // W3
    let view = run("schemas-and-mappings", json!({ "topic": "tea", "words": 300 })).await;
    let stage = Stage(&view);
    assert_eq!(view.stages[0].attempts[0].code.as_deref(), Some("invalid_result"));
    assert_eq!(stage.result("research"), json!({ "count": 3, "facts": ["a", "b", "c"] }));
    assert_eq!(stage.result("text"), json!({ "facts": ["a", "b", "c"], "topic": "tea", "words_a_fact": 100 }));
    let wrong = baton_protocol::request::StartRun::new(
        "schemas-and-mappings".parse().unwrap(),
        Json::of(&json!({ "topic": "tea", "words": 7 })).unwrap(),
    );
    let refused = fleet.client.start_run(wrong).await.unwrap_err();
    assert_eq!(refused.code(), Some(Code::InvalidRequest));
    assert!(refused.to_string().contains("at /words"), "{refused}");
    seen.push("schemas-and-mappings");

    // W4
    let view = run("conditions", json!({ "question": "Is it ready?" })).await;
    let stage = Stage(&view);
    assert_eq!(["quick", "research", "thorough"].map(|name| stage.status(name)), [Succeeded, Skipped, Skipped]);
    assert_eq!(stage.result("answer"), json!({ "text": "by quick" }));
    let view = run("conditions", json!({ "question": "Why is it not ready, which is urgent?" })).await;
    let stage = Stage(&view);
    assert_eq!(["quick", "thorough", "escalate"].map(|name| stage.status(name)), [Skipped, Succeeded, Succeeded]);
    assert_eq!(stage.result("answer"), json!({ "text": "by thorough" }));
    seen.push("conditions");

    // W5
    let view = run("map", json!({ "topic": "tea" })).await;
    let stage = Stage(&view);
    let parts: Vec<_> = [(1, "one"), (2, "two"), (3, "three"), (5, "five"), (6, "six")]
        .map(|(number, title)| format!("{number}: \"{title}\""))
        .into();
    assert_eq!(stage.result("book"), json!({ "parts": parts }));
    assert_eq!(stage.result("chapters").as_array().map(Vec::len), Some(6));
    let items = &view.stages[1].items;
    assert_eq!((items[3].status, items[3].attempts.len()), (Failed, 2));
    seen.push("map");

    // W18: approved on the command line, after a signal was given over NATS.
    let waiting = fleet.start_run("approval", &json!({ "topic": "tea" })).await;
    let signal = "paid".parse().unwrap();
    let payload = Json::of(&json!({ "sum": 12 })).unwrap();
    fleet.client.signal_run(&SignalRun { run: waiting, signal, payload, by: None }).await.unwrap();
    wait_for("the offer waits", PATIENCE, || async {
        fleet.client.get_run(waiting).await.unwrap().stages[1].waits.is_some()
    })
    .await;
    let id = waiting.to_string();
    let shown = fleet.baton(&["show", &id]).await;
    assert!(shown.contains("Send this offer? baton approve RUN sign-off"), "{shown}");
    fleet.baton(&["approve", &id, "sign-off", "--by", "eve", "--reason", "reads well"]).await;
    let view = fleet.wait_for_end(waiting).await;
    assert_eq!(view.status, RunStatus::Succeeded, "{view:?}");
    let stage = Stage(&view);
    assert_eq!(stage.result("deliver"), json!({ "sum": 12, "by": "eve" }));
    assert_eq!(stage.status("remind"), Skipped);
    seen.push("approval");

    // W12: it is translated while somebody reviews it.
    for (word, status) in [("approve", Succeeded), ("reject", Skipped)] {
        let early = fleet.start_run("speculative", &json!({ "topic": "tea" })).await;
        wait_for("it is translated early", PATIENCE, || async {
            let view = fleet.client.get_run(early).await.unwrap();
            view.stages[2].attempts.first().is_some_and(|attempt| attempt.outcome == Some(Outcome::Succeeded))
        })
        .await;
        let id = early.to_string();
        let shown = fleet.baton(&["show", &id]).await;
        assert!(shown.contains("whether it counts is not known yet"), "{shown}");
        fleet.baton(&[word, &id, "review", "--by", "ann"]).await;
        let view = fleet.wait_for_end(early).await;
        let stage = Stage(&view);
        assert_eq!((stage.status("translation"), stage.attempts("translation")), (status, 1), "{view:?}");
        let text = if word == "approve" { json!({ "text": "a text on tea, translated" }) } else { Value::Null };
        assert_eq!(stage.result("translation"), text);
        let log = fleet.baton(&["log", &id]).await;
        assert_eq!(log.contains("stage_committed"), word == "approve", "{log}");
    }
    seen.push("speculative");

    // O2: the second agent is asked, and the first one is called back.
    stops.push(agent(&fleet, "research-2", "research", 4, does).await);
    let id = fleet.baton(&["run", "hedge", "--strategy", "ADAPTIVE", "--input", "question=why"]).await;
    let view = fleet.wait_for_end(id.trim().parse().unwrap()).await;
    assert_eq!((view.status, Stage(&view).result("publish")), (RunStatus::Succeeded, json!({ "answer": "because" })));
    let attempt = &view.stages[0].attempts[0];
    let copy = &attempt.copies[0];
    assert_eq!((view.stages[0].attempts.len(), copy.outcome), (1, Some(Outcome::Cancelled)), "{view:?}");
    assert!(copy.lease < attempt.lease.unwrap() && Some(&copy.agent) != attempt.agent.as_ref(), "{view:?}");
    let shown = fleet.baton(&["show", id.trim()]).await;
    assert!(shown.contains(&format!("{}, lease {}: cancelled", copy.agent, copy.lease)), "{shown}");
    let log = fleet.baton(&["log", id.trim()]).await;
    assert!(log.contains(&format!("as well as under lease {}", copy.lease)), "{log}");
    seen.push("hedge");

    // W6
    let view = run("sub-workflows", json!({ "topic": "tea" })).await;
    let answers = json!(["by quick", "by thorough", "by quick"]);
    assert_eq!(Stage(&view).result("publish"), json!({ "answers": answers }));
    let child = view.stages[1].items[1].attempts[0].child.unwrap();
    let shown = fleet.baton(&["show", &child.to_string()]).await;
    assert!(shown.contains(&format!("stage answers.1 of run {}, attempt 1", view.run)), "{shown}");
    let listed = fleet.baton(&["runs", "--of", &view.run.to_string()]).await;
    assert_eq!(listed.lines().count(), 4, "{listed}");
    seen.push("sub-workflows");

    let view = run("supervisor", json!({ "topic": "tea" })).await;
    let text = "((11 of tea + 12 of tea) + (21 of tea + 22 of tea))";
    assert_eq!(Stage(&view).result("publish"), json!({ "text": text }));
    let outcomes: Vec<_> = view.stages[0].attempts.iter().filter_map(|attempt| attempt.outcome).collect();
    assert_eq!(outcomes, [Outcome::Delegated, Outcome::Delegated, Outcome::Succeeded]);
    let log = fleet.baton(&["log", &view.run.to_string()]).await;
    assert!(log.contains("report/1 delegated") && log.contains("does report/2"), "{log}");
    seen.push("supervisor");

    // W19, W21: by the commands that its comments give.
    let said = as_commented(&fleet, "order.yaml").await;
    assert!(said.contains("order: run ") && said.contains("paid: 1 run was given the signal"), "{said}");
    let of_it = ListRuns { workflow: Some("order".parse().unwrap()), ..ListRuns::default() };
    let started = fleet.client.list_runs(&of_it).await.unwrap().runs;
    assert_eq!(started.len(), 1, "{started:?}");
    let view = fleet.wait_for_end(started[0].run).await;
    assert_eq!(Stage(&view).result("send"), json!({ "sum": 12 }));
    assert!(fleet.baton(&["schedules"]).await.contains("Europe/Berlin"));
    seen.push("order");

    // W11
    let first = run("cache", json!({ "topic": "tea", "for": "ann" })).await;
    let other = run("cache", json!({ "topic": "tea", "for": "bob" })).await;
    assert_eq!((other.stages[0].cached, other.stages[1].cached), (Some(first.run), None), "{other:?}");
    assert_eq!(Stage(&other).result("facts"), Stage(&first).result("facts"));
    let same = run("cache", json!({ "topic": "tea", "for": "ann" })).await;
    assert_eq!((same.stages[0].cached, same.stages[1].cached), (Some(first.run), Some(first.run)), "{same:?}");
    let shown = fleet.baton(&["show", &same.run.to_string()]).await;
    assert!(shown.contains(&format!("as in run {}: ", first.run)), "{shown}");
    let id = fleet.baton(&["run", "cache", "--input", "topic=tea", "--no-cache"]).await;
    let view = fleet.wait_for_end(id.trim().parse().unwrap()).await;
    assert_eq!((view.stages[0].cached, view.stages[1].cached), (None, None), "{view:?}");
    seen.push("cache");

    // W8
    let view = run("retries", json!({})).await;
    let stage = Stage(&view);
    assert_eq!((stage.attempts("ask"), stage.attempts("ask_the_other")), (3, 1));
    seen.push("retries");

    // W9
    let view = run("fallback", json!({ "topic": "tea" })).await;
    let stage = Stage(&view);
    assert_eq!(["translate", "translate_cheaply", "illustrate"].map(|n| stage.status(n)), [Failed, Succeeded, Failed]);
    let published = json!({ "by": "the cheap model", "picture": "none", "text": "by translate_cheaply" });
    assert_eq!(stage.result("publish"), published);
    let view = run("fallback", json!({ "topic": "coffee" })).await;
    assert_eq!(Stage(&view).status("translate_cheaply"), Skipped);
    seen.push("fallback");

    // W10
    let view = tokio::time::timeout(Duration::from_secs(30), run("timeouts", json!({}))).await.unwrap();
    let stage = Stage(&view);
    let waited = ["nobody_comes", "somebody_sleeps", "somebody_says_nothing", "somebody_fails", "after_all"];
    assert_eq!(waited.map(|name| stage.status(name)), [Failed, Failed, Failed, Failed, Succeeded]);
    assert!(stage.attempts("somebody_fails") > 1);
    seen.push("timeouts");

    seen.sort_unstable();
    assert_eq!(names, seen, "every example is run");
    stops.iter().for_each(tokio_util::sync::CancellationToken::cancel);
}
