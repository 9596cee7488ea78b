//! `baton bench`: that it measures what it says. How fast it was is no test's business.

use std::process::Stdio;

use baton_testkit::baton_binary;
use serde_json::{Value, json};
use tokio::process::Command;

/// Measures something for a moment, and gives the lines.
async fn bench(arguments: &[&str]) -> Vec<Value> {
    lines(&[&["bench"], arguments, &["--seconds", "1", "--warm-up", "0.2"]].concat()).await
}

/// The lines of JSON that a command writes.
async fn lines(arguments: &[&str]) -> Vec<Value> {
    let binary = tokio::task::spawn_blocking(baton_binary).await.unwrap();
    let output = Command::new(binary)
        .args(arguments)
        .arg("--json")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    let (text, errors) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{text}\n{errors}");
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn number(line: &Value, name: &str) -> f64 {
    line[name].as_f64().unwrap_or_else(|| panic!("no {name} in {line}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_article_is_measured_beside_the_bare_broker() {
    let lines = bench(&["article", "--inflight", "8", "--processes", "many", "--sample", "1", "--floor"]).await;
    let [baton, each, many] = lines.as_slice() else { panic!("{lines:?}") };
    assert_eq!(
        (&baton["system"], &baton["work"], &baton["durability"]),
        (&"baton".into(), &"article".into(), &"process".into())
    );
    assert_eq!((&baton["inflight"], &baton["errors"], &baton["processes"]), (&8.into(), &0.into(), &"many".into()));
    let (runs, stages) = (number(baton, "workflows_per_s"), number(baton, "stages_per_s"));
    assert!(runs > 0.0 && (stages / runs - 4.0).abs() < 1e-6, "{baton}");
    let order = ["p50_ms", "p90_ms", "p99_ms", "max_ms"].map(|name| number(baton, name));
    assert!(order[0] > 0.0 && order.is_sorted(), "{baton}");
    // Three records a stage and two a run; what was under way at the beginning and at the end blurs it.
    let records = number(baton, "log_records_per_stage");
    assert!((3.0..4.5).contains(&records), "{baton}");
    for part in ["broker", "services", "agents", "load"] {
        assert!(number(&baton["memory_mb"], part) > 1.0, "{baton}");
    }
    assert!(number(&baton["coordination"], "p50_ms") > 0.0, "{baton}");
    for (line, form) in [(each, "a message each"), (many, "many records a message")] {
        assert_eq!((&line["system"], &line["form"]), (&"jetstream".into(), &form.into()));
        assert!(number(line, "workflows_per_s") > 0.0, "{line}");
    }
    let ratio = runs / number(each, "workflows_per_s");
    assert!((number(baton, "of_floor") - ratio).abs() < 1e-9);
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_that_are_accepted_and_fan_outs_are_measured() {
    let lines = bench(&["submit", "--inflight", "16", "--durability", "power", "--sample", "0"]).await;
    assert_eq!((lines.len(), &lines[0]["work"], &lines[0]["durability"]), (1, &"submit".into(), &"power".into()));
    assert!(number(&lines[0], "workflows_per_s") > 0.0 && lines[0]["errors"] == 0, "{lines:?}");
    let lines = bench(&["fanout", "--inflight", "2"]).await;
    assert!(number(&lines[0], "stages_per_s") > 0.0 && lines[0]["errors"] == 0, "{lines:?}");
    // One agent does all types of stages.
    let lines = bench(&["article", "--inflight", "2", "--agents", "1"]).await;
    assert!(number(&lines[0], "stages_per_s") > 0.0 && lines[0]["errors"] == 0, "{lines:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn m10_messages_and_idle_agents_are_measured() {
    let lines = bench(&["messages", "--rate", "500"]).await;
    let forms: Vec<_> = lines.iter().map(|line| line["form"].as_str().unwrap()).collect();
    assert_eq!(forms, ["guaranteed", "fire-and-forget"]);
    for line in &lines {
        assert!(number(line, "messages_per_s") > 0.0 && line["errors"] == 0, "{line}");
    }
    let lines = bench(&["agents", "--agents", "50"]).await;
    assert_eq!(lines[0]["agents"], 50);
    assert!(number(&lines[0], "registered_ms") > 0.0, "{lines:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn r4_leases_are_measured_beside_bare_request_reply() {
    let lines = bench(&["leases", "--rate", "200", "--agents", "20"]).await;
    let systems: Vec<_> = lines.iter().map(|line| line["system"].as_str().unwrap()).collect();
    assert_eq!(systems, ["baton", "nats"]);
    for line in &lines {
        assert!(number(line, "operations_per_s") > 0.0 && line["errors"] == 0 && line["agents"] == 20, "{line}");
    }
    assert!(number(&lines[0], "of_floor") > 0.0 && number(&lines[0], "p99_of_floor") > 0.0, "{lines:?}");
}

/// One task, ten side by side, one that joins them, in WfFormat; a tenth of a second each, more or less.
fn fan() -> Value {
    let parts: Vec<String> = (1..=10).map(|part| format!("part_{part:02}")).collect();
    let task = |id: &str, parents: &[String], children: &[String]| json!({ "id": id, "name": id, "parents": parents, "children": children });
    let (first, last) = (["split_00".to_owned()], ["join_11".to_owned()]);
    let middle = parts.iter().map(|part| task(part, &first, &last));
    let tasks: Vec<Value> =
        [task(&first[0], &[], &parts)].into_iter().chain(middle).chain([task(&last[0], &parts, &[])]).collect();
    let took =
        |(nth, task): (usize, &Value)| json!({ "id": task["id"], "runtimeInSeconds": 0.08 + 0.005 * nth as f64 });
    let took: Vec<Value> = tasks.iter().enumerate().map(took).collect();
    json!({
        "name": "fan", "schemaVersion": "1.5",
        "workflow": { "specification": { "tasks": tasks }, "execution": { "tasks": took } }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn o13_an_instance_is_run_by_agents_that_sleep_with_the_luck_of_its_simulation() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("fan.json");
    std::fs::write(&file, fan().to_string()).unwrap();
    // As all agents fail alike, an attempt fails whoever makes it; and without second copies there are no others.
    let cell =
        ["--trace", file.to_str().unwrap(), "--agents", "4", "--failures", "0.3", "--seed", "301", "--luck", "5"];
    let cell = [&cell[..], &["--strategy", "historical", "--history", "same"]].concat();
    let simulated = lines(&[&["simulate"], &cell[..]].concat()).await;
    let ran = lines(&[&["bench", "dag"], &cell[..], &["--scale", "1", "--least", "0", "--sample", "0"]].concat()).await;
    let ([simulated], [ran, means]) = (simulated.as_slice(), ran.as_slice()) else { panic!("{simulated:?} {ran:?}") };
    assert_eq!((&ran["instance"], &ran["policy"], &ran["tasks"]), (&"fan".into(), &"HISTORICAL".into(), &12.into()));
    for (here, there) in [("simulated", "makespan"), ("heft", "heft"), ("bound", "bound")] {
        assert_eq!(ran[here], simulated[there], "the cell is another one: {ran} {simulated}");
    }
    let (attempts, failed) = (number(ran, "attempts"), number(ran, "failed"));
    assert!(failed > 0.0 && (attempts - failed - 12.0).abs() < 1e-9, "{ran}");
    assert!((number(simulated, "succeeded") - 12.0 / attempts).abs() < 1e-9, "other luck: {ran} {simulated}");
    let makespan = number(ran, "makespan");
    assert!(makespan > 0.99 * number(ran, "bound"), "nobody sleeps shorter than that: {ran}");
    assert!((number(ran, "ratio") - makespan / number(ran, "simulated")).abs() < 1e-9, "{ran}");
    assert!((number(ran, "to_heft") - makespan / number(ran, "heft")).abs() < 1e-9, "{ran}");
    assert!(number(ran, "simulated_late") > number(ran, "simulated"), "messages take time: {ran}");
    assert!(number(&ran["handed_on"], "p50_ms") > 0.0, "{ran}");
    assert_eq!((&means["runs"], &means["ratio"]), (&1.into(), &ran["ratio"]), "{means}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_measured_is_refused() {
    for (arguments, says) in [
        (["article", "--sample", "2"], "--sample 2"),
        (["article", "--inflight", "0"], "--inflight must be at least 1"),
        (["article", "--rate", "0"], "--rate"),
        (["article", "--durability", "none"], "none"),
        (["dag", "--scale", "0"], "--scale 0 is not more than 0"),
        (["dag", "--least", "-1"], "--least -1"),
        (["dag", "--agents", "1000"], "--agents 1000"),
        (["dag", "--strategy", "heft plan"], "ADAPTIVE"),
        (["dag", "--server", "nats://127.0.0.1:1"], "leave --server out"),
        (["dag", "--trace", "no-such-file.json"], "no-such-file.json"),
    ] {
        let binary = tokio::task::spawn_blocking(baton_binary).await.unwrap();
        let output = Command::new(binary).arg("bench").args(arguments).output().await.unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && text.contains(says), "{arguments:?}: {text}");
    }
}
