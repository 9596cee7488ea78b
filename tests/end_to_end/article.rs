//! An article, from start to end.

use std::collections::BTreeMap;
use std::time::Duration;

use baton_protocol::record::{AnyCommit, Event};
use baton_protocol::run::RunStatus;
use baton_protocol::{RunId, Service, subject};
use baton_testkit::{Process, baton_binary};
use futures::StreamExt;
use serde_json::Value;

use crate::fleet::{Broker, Fleet, PATIENCE, TOPIC, write_sources};

/// Every record of a run, commit by commit.
pub(crate) async fn commits_of(fleet: &Fleet<impl Broker>, run: RunId) -> Vec<(u64, Service, Vec<Event>)> {
    let last = fleet.client.log_ends().await.unwrap().last;
    let mut log = fleet.client.log(1, Some(last));
    let mut commits = Vec::new();
    while let Some(next) = log.next().await {
        let (seq, commit): (u64, AnyCommit) = next.unwrap();
        let events: Vec<_> = commit.events(seq).unwrap().into_iter().filter(|e| e.run == Some(run)).collect();
        if !events.is_empty() {
            commits.push((seq, commit.service(), events));
        }
    }
    commits
}

/// Counts how often each stage succeeded: each result must count once.
pub(crate) async fn successes(fleet: &Fleet<impl Broker>, run: RunId) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for (_, _, events) in commits_of(fleet, run).await {
        for event in events.iter().filter(|e| e.kind == "stage_ended") {
            let record: Value = event.record.read().unwrap();
            let ended = &record["stage_ended"];
            if ended["outcome"] == "succeeded" {
                let stage = ended["task"].as_str().unwrap().split('/').nth(1).unwrap().to_owned();
                *counts.entry(stage).or_insert(0) += 1;
            }
        }
    }
    counts
}

/// Each citation `[n]` of a document resolves to a source that is a file in the folder.
fn check_citations(document: &str, folder: &std::path::Path) {
    let (body, sources) = document.rsplit_once("## Sources").expect("the article lists its sources");
    let mut cited = 0;
    for part in body.split('[').skip(1) {
        let Some((number, _)) = part.split_once(']') else { continue };
        for number in number.split(',').map(str::trim) {
            if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
                continue;
            }
            cited += 1;
            let line = sources
                .lines()
                .find(|line| {
                    let line = line.trim_start_matches(['-', ' ', '[']);
                    line.strip_prefix(number).is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
                })
                .unwrap_or_else(|| panic!("citation {number} has no source in:\n{sources}"));
            let resolves = std::fs::read_dir(folder)
                .unwrap()
                .any(|file| line.contains(file.unwrap().file_name().to_string_lossy().as_ref()));
            assert!(resolves, "{line:?} names no file of the sources");
        }
    }
    assert!(cited >= 3, "only {cited} citations in:\n{document}");
}

#[tokio::test(flavor = "multi_thread")]
async fn c1_w2_the_demo_ends_with_an_article_whose_citations_resolve() {
    let folder = tempfile::tempdir().unwrap();
    let sources = folder.path().join("sources");
    write_sources(&sources);
    let out = folder.path().join("article.md");
    let mut demo = Process::command(baton_binary())
        .args(["demo", "--json", "--topic", TOPIC, "--sources"])
        .arg(&sources)
        .arg("--out")
        .arg(&out)
        .env("HOME", folder.path())
        .current_dir(folder.path())
        .start();
    demo.wait_success(PATIENCE).await;
    let report: Value = serde_json::from_str(&demo.stdout()).expect("exactly one JSON object on standard output");
    assert_eq!(report["status"], "succeeded", "{report}");
    report["run"].as_str().unwrap().parse::<RunId>().unwrap();
    let stages: Vec<_> = report["stages"].as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap()).collect();
    assert_eq!(stages, ["research", "writing", "editing", "verification"]);
    for stage in report["stages"].as_array().unwrap() {
        assert_eq!(stage["attempts"], 1, "{stage}");
        assert!(stage["agent"].is_string() && stage["duration_ms"].is_u64(), "{stage}");
    }
    assert_eq!(report["document"], out.to_str().unwrap());
    let document = std::fs::read_to_string(&out).unwrap();
    assert!(document.to_lowercase().contains("fencing token"), "{document}");
    assert!(!document.contains("Tomatoes"), "the article is off its topic:\n{document}");
    check_citations(&document, &sources);
}

#[tokio::test(flavor = "multi_thread")]
async fn w4_r1_o1_a_stage_costs_three_records_and_observers_see_all_of_them() {
    let fleet = Fleet::stocked().await;
    let watcher = fleet.nats.connect().await;
    let mut seen = watcher.subscribe(subject::EVENTS).await.unwrap();
    watcher.flush().await.unwrap();
    let run = fleet.start_article().await;
    let view = fleet.wait_for_end(run).await;
    assert_eq!(view.status, RunStatus::Succeeded, "{view:?}");

    let commits = commits_of(&fleet, run).await;
    let records: Vec<&Event> = commits.iter().flat_map(|(_, _, events)| events).collect();
    let kinds: Vec<&str> = records.iter().map(|e| e.kind.as_str()).collect();
    let stage = ["stage_ready", "assigned", "stage_ended"];
    let expected: Vec<&str> =
        ["run_started"].into_iter().chain((0..4).flat_map(|_| stage)).chain(["run_finished"]).collect();
    assert_eq!(kinds, expected);
    // Two commits a stage, and what can go together does: `ended` with the next `ready`, the start with the first.
    assert_eq!(commits.len(), 4 * 2 + 1, "{commits:?}");

    // A plain client on core NATS saw the same records, in order.
    let mut events = Vec::new();
    while events.len() < records.len() {
        let message = tokio::time::timeout(PATIENCE, seen.next()).await.expect("an event").unwrap();
        if !message.subject.starts_with(&format!("baton.event.run.{run}.")) || message.subject.ends_with(".progress") {
            continue;
        }
        events.push(serde_json::from_slice::<Event>(&message.payload).unwrap());
    }
    events.sort_by_key(|event| event.position);
    assert_eq!(events.iter().collect::<Vec<_>>(), records);

    // `baton log` shows the same.
    let transcript = fleet.baton(&["log", &run.to_string()]).await;
    assert_eq!(transcript.matches("stage_ended").count(), 4, "{transcript}");
    assert!(transcript.contains("14 records in 9 commits"), "{transcript}");
}

#[tokio::test(flavor = "multi_thread")]
async fn w2_a_paper_cites_everything_or_fails() {
    let fleet = Fleet::stocked().await;
    let sources = fleet.sources();
    let run = fleet.start_run("paper", &serde_json::json!({ "topic": TOPIC, "sources": sources })).await;
    let view = fleet.wait_for_end(run).await;
    assert_eq!(view.status, RunStatus::Succeeded, "{view:?}");
    let review: Value = view.stages.last().unwrap().result.as_ref().unwrap().read().unwrap();
    assert_eq!(review["verdict"], "pass", "{review}");
    check_citations(review["document"].as_str().unwrap(), &sources);
}

#[tokio::test(flavor = "multi_thread")]
async fn c1_up_is_ready_says_what_runs_where_and_refuses_a_second_one() {
    let folder = tempfile::tempdir().unwrap();
    let up = || {
        Process::command(baton_binary())
            .args(["up", "--data"])
            .arg(folder.path().join("data"))
            .args(["--http", "127.0.0.1:0"])
            .env("HOME", folder.path())
            .current_dir(folder.path())
            .start()
    };
    let mut first = up();
    first.wait_for_output("ready in", PATIENCE).await;
    let text = first.stdout() + &first.stderr();
    for part in ["nats://127.0.0.1:", "http://127.0.0.1:", "workflow-manager", "research"] {
        assert!(text.contains(part), "{part} is missing in:\n{text}");
    }
    let mut second = up();
    let status = second.wait_exit(PATIENCE).await;
    assert_eq!(status.code(), Some(3));
    assert!(second.stderr().contains(&first.pid().unwrap().to_string()), "{}", second.stderr());
    first.interrupt();
    first.wait_success(Duration::from_secs(20)).await;
    // And again on the same data, which is all still there.
    let mut third = up();
    third.wait_for_output("ready in", PATIENCE).await;
    third.terminate();
    third.wait_success(Duration::from_secs(20)).await;
}
