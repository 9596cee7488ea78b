//! `baton bench`: that it measures what it says. How fast it was is no test's business.

use std::process::Stdio;

use baton_testkit::baton_binary;
use serde_json::Value;
use tokio::process::Command;

/// Measures something for a moment, and gives the lines.
async fn bench(arguments: &[&str]) -> Vec<Value> {
    let binary = tokio::task::spawn_blocking(baton_binary).await.unwrap();
    let output = Command::new(binary)
        .arg("bench")
        .args(arguments)
        .args(["--seconds", "1", "--warm-up", "0.2", "--json"])
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

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_measured_is_refused() {
    for (arguments, says) in [
        (["--sample", "2"], "--sample 2"),
        (["--inflight", "0"], "--inflight must be at least 1"),
        (["--rate", "0"], "--rate"),
        (["--durability", "none"], "none"),
    ] {
        let binary = tokio::task::spawn_blocking(baton_binary).await.unwrap();
        let output = Command::new(binary).args(["bench", "article"]).args(arguments).output().await.unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && text.contains(says), "{arguments:?}: {text}");
    }
}
