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
    // Without a trace there are workflows that are made up.
    let output =
        baton().args(["simulate", "--agents", "4", "--seed", "1", "--strategy", "strategies"]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("ROUND_ROBIN"));
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
    ] {
        let output = baton().arg("simulate").args(arguments).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && stderr.contains(says), "{arguments:?}: {stderr}");
    }
}
