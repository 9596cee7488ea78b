//! The `baton` command line against the real services.

use serde_json::Value;

use crate::fleet::{Fleet, TOPIC};

#[tokio::test(flavor = "multi_thread")]
async fn c2_runs_are_started_watched_shown_and_listed() {
    let fleet = Fleet::stocked().await;
    let sources = format!("sources={}", fleet.sources().display());
    let topic = format!("topic={TOPIC}");
    let text = fleet.baton(&["run", "article", "--input", &topic, "--input", &sources, "--watch", "--json"]).await;
    let last = text.lines().last().unwrap_or_default();
    let view: Value = serde_json::from_str(&text).or_else(|_| serde_json::from_str(last)).expect("JSON");
    assert_eq!(view["status"], "succeeded", "{text}");
    let run = view["run"].as_str().unwrap();
    let runs: Value = serde_json::from_str(&fleet.baton(&["runs", "--json"]).await).unwrap();
    assert_eq!(runs["runs"][0]["run"], run);
    let shown = fleet.baton(&["show", "last"]).await;
    for part in ["succeeded", "research", "verification", run] {
        assert!(shown.contains(part), "{part} is missing in:\n{shown}");
    }
    let agents = fleet.baton(&["agents"]).await;
    assert_eq!(agents.lines().filter(|line| line.contains("idle")).count(), 4, "{agents}");
    let workflows = fleet.baton(&["workflow", "list"]).await;
    assert!(workflows.contains("article") && workflows.contains("paper"), "{workflows}");
    // In a pipe there is no colour.
    assert!(!shown.contains('\u{1b}') && !agents.contains('\u{1b}'));
}

#[tokio::test(flavor = "multi_thread")]
async fn c2_what_is_wrong_is_said_with_an_exit_code() {
    let fleet = Fleet::services().await;
    let (code, _, stderr) = fleet.try_baton(&["run", "no-such-workflow"]).await;
    assert_eq!(code, Some(5), "{stderr}");
    assert!(stderr.contains("no-such-workflow") && stderr.contains("article"), "{stderr}");
    let (code, _, stderr) = fleet.try_baton(&["show", "0199a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b"]).await;
    assert_eq!(code, Some(5), "{stderr}");
    let file = fleet.folder.path().join("bad.yaml");
    std::fs::write(&file, "name: w\nstages:\n- name: a\n  agent_typ: x\n").unwrap();
    let (code, _, stderr) = fleet.try_baton(&["workflow", "validate", file.to_str().unwrap()]).await;
    assert_ne!(code, Some(0));
    assert!(stderr.contains("agent_typ") && stderr.contains("line 4"), "{stderr}");
    let (code, _, _) = fleet.try_baton(&["no-such-command"]).await;
    assert_eq!(code, Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn c2_the_doctor_finds_what_is_missing() {
    let mut fleet = Fleet::stocked().await;
    let gateway = crate::http::gateway(&mut fleet).await;
    assert!(!gateway.is_empty());
    let text = fleet.baton(&["doctor"]).await;
    for part in ["broker", "workflow-manager", "optimizer", "agents"] {
        assert!(text.to_lowercase().contains(part), "{part} is missing in:\n{text}");
    }
    fleet.kill("optimizer").await;
    let (code, stdout, stderr) = fleet.try_baton(&["doctor"]).await;
    assert_eq!(code, Some(1), "{stdout}\n{stderr}");
    assert!(stdout.contains("optimizer"), "{stdout}");
    let (code, _, _) = fleet.try_baton(&["healthcheck", "resource-manager"]).await;
    assert_eq!(code, Some(0));
    let (code, _, _) = fleet.try_baton(&["healthcheck", "optimizer"]).await;
    assert_ne!(code, Some(0));
}
