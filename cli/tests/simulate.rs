//! `baton simulate`: from a trace to a table.

use std::process::Command;

use serde_json::{Value, json};

fn baton() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_baton"));
    command.env_clear().env("TERM", "dumb").current_dir(env!("CARGO_TARGET_TMPDIR"));
    command
}

/// A diamond in WfFormat: one task, two side by side, one.
fn trace() -> Value {
    let task = |id: &str, parents: &[&str], children: &[&str]| json!({ "id": id, "name": id, "parents": parents, "children": children });
    let took = |id: &str, seconds: f64| json!({ "id": id, "runtimeInSeconds": seconds });
    json!({
        "name": "diamond", "schemaVersion": "1.5",
        "workflow": {
            "specification": { "tasks": [
                task("split_1", &[], &["part_2", "part_3"]), task("part_2", &["split_1"], &["join_4"]),
                task("part_3", &["split_1"], &["join_4"]), task("join_4", &["part_2", "part_3"], &[]),
            ] },
            "execution": { "tasks": [took("split_1", 2.0), took("part_2", 8.0), took("part_3", 8.0), took("join_4", 1.0)] }
        }
    })
}

#[test]
fn o13_a_trace_is_replayed_under_every_strategy() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("diamond.json"), trace().to_string()).unwrap();
    let run = |arguments: &[&str]| {
        let output = baton().arg("simulate").arg("--trace").arg(folder.path()).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    // Agents of speed 1 that never fail: 2 + 8 + 1 seconds, whoever places.
    let even = ["--agents", "4", "--speeds", "1", "--failures", "0", "--seed", "1", "--luck", "1", "--json"];
    let lines: Vec<Value> = run(&even).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for policy in ["shared queue", "round robin push", "ROUND_ROBIN", "LOAD_BALANCED"] {
        let line = lines.iter().find(|line| line["policy"] == policy).unwrap();
        assert_eq!((line["instance"].as_str(), line["tasks"].as_u64()), (Some("diamond"), Some(4)));
        let (makespan, bound) = (line["makespan"].as_f64().unwrap(), line["bound"].as_f64().unwrap());
        assert!((makespan - 11.0).abs() < 0.01 || policy.contains("push"), "{line}");
        assert!(makespan >= bound && bound > 10.9, "{line}");
    }
    let table = run(&["--agents", "4", "--seed", "1", "--history", "same", "--each"]);
    for part in ["diamond", "shared queue", "LOAD_BALANCED", "TO HEFT", "WORST TO QUEUE"] {
        assert!(table.contains(part), "{part} is missing in:\n{table}");
    }
    let known = run(&["--agents", "4", "--seed", "1", "--history", "known", "--failures", "0..0", "--json"]);
    let adaptive: Value = known
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .find(|line| line["policy"] == "ADAPTIVE")
        .unwrap();
    assert!(adaptive["history"] == "known" && adaptive["to_heft"].as_f64().unwrap() < 1.001, "{adaptive}");
    // Without a trace there are workflows that are made up.
    let output =
        baton().args(["simulate", "--agents", "4", "--seed", "1", "--strategy", "strategies"]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("ROUND_ROBIN"));
}

/// What a command that works prints.
fn printed(arguments: &[&str]) -> String {
    let output = baton().arg("simulate").args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn o13_streams_requests_and_claims_are_tables_or_lines() {
    let small = ["--agents", "10", "--seed", "401", "--luck", "5"];
    let stream = [&small[..], &["--load", "0.6", "--backlog", "--runs", "6", "--drift=0.5"]].concat();
    let table = printed(&stream);
    for part in ["IN TIME", "0.6", "backlog", "least outstanding push", "LOAD_BALANCED"] {
        assert!(table.contains(part), "{part} is missing in:\n{table}");
    }
    let lines = printed(&[&stream[..], &["--json", "--strategy", "shared queue"]].concat());
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    assert_eq!((&lines[0]["drift"], &lines[1]["arrivals"]), (&Value::from(0.5), &Value::from("backlog")));
    let requests = printed(&["--requests", "200", "--agents", "3", "--seed", "1"]);
    assert!(requests.contains("DOMINANT") && requests.contains("alignment"), "{requests}");
    let claims = [&small[..], &["--claims", "--runs", "4", "--requests", "200"]].concat();
    let claims = printed(&claims);
    assert!(claims.contains("success 75 % → 90 %") && claims.contains("VERDICT"), "{claims}");
}

#[test]
fn o7_how_many_agents_of_which_kind() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("diamond.json");
    std::fs::write(&file, trace().to_string()).unwrap();
    let asked = |within: &str| {
        let mut command = baton();
        command.args(["simulate", "--rate", "60", "--runs", "10", "--speeds", "1", "--failures", "0"]);
        command.arg("--trace").arg(&file).args(["--within", within, "--each"]).output().unwrap()
    };
    let output = asked("30");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for part in ["split", "part", "join", "95 % of the runs", "stages × stages side by side, says 8"] {
        assert!(text.contains(part), "{part} is missing in:\n{text}");
    }
    let output = asked("10");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.code() == Some(1) && text.contains("no number of such agents"), "{text}");
}

#[test]
fn o13_what_can_not_be_simulated_is_said() {
    for (arguments, says) in [
        (&["--speeds", "2..1"][..], "begins with 2"),
        (&["--speeds", "fast"], "is no number"),
        (&["--speeds", "0..1"], "a speed is more than 0"),
        (&["--failures", "0..1"], "from 0 to below 1"),
        (&["--agents", "0"], "from 1 to 10000"),
        (&["--strategy", "fastest"], "round robin push"),
        (&["--trace", "no/such/file.json"], "no/such/file.json"),
        (&["--trace", "no/such/file.csv"], "no/such/file.csv"),
        (&["--load", "0"], "more than 0"),
        (&["--drift"], "--load or --backlog"),
        (&["--backlog", "--drift=1.5"], "--drift=1.5 is not from 0 to 1"),
        (&["--rate", "10"], "--within"),
        (&["--rate", "0", "--within", "5"], "more than 0"),
        (&["--strategy", "heft plan", "--claims"], "one of the optimizer's"),
    ] {
        let output = baton().arg("simulate").args(arguments).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && stderr.contains(says), "{arguments:?}: {stderr}");
    }
}
