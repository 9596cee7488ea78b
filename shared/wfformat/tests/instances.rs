//! What is read, and what is refused.

use std::fmt::Write as _;
use std::time::Duration;

use baton_wfformat::{Error, parse};
use serde_json::{Value, json};

fn task(id: &str, parents: &[&str], children: &[&str]) -> Value {
    json!({ "id": id, "name": id, "parents": parents, "children": children, "inputFiles": [], "outputFiles": [] })
}

fn instance(tasks: &[Value]) -> Value {
    let executed: Vec<_> = tasks.iter().map(|task| json!({ "id": task["id"], "runtimeInSeconds": 1 })).collect();
    json!({
        "name": "test", "schemaVersion": "1.5",
        "workflow": {
            "specification": { "tasks": tasks, "files": [] },
            "execution": { "executedAt": "20200401T054215+0000", "makespanInSeconds": 3.5, "tasks": executed }
        }
    })
}

fn diamond() -> Value {
    instance(&[
        task("a_ID1", &[], &["b_ID2", "b_ID3"]),
        task("b_ID2", &["a_ID1"], &["c_ID4"]),
        task("b_ID3", &["a_ID1"], &["c_ID4"]),
        task("c_ID4", &["b_ID2", "b_ID3"], &[]),
    ])
}

fn error(value: &Value) -> String {
    parse(&value.to_string()).unwrap_err().to_string()
}

#[test]
fn w22_an_instance_is_read_with_all_that_it_says() {
    let mut value = diamond();
    value["workflow"]["specification"]["files"] =
        json!([{ "id": "in", "sizeInBytes": 7 }, { "id": "part", "sizeInBytes": 100 }]);
    value["workflow"]["specification"]["tasks"][0]["inputFiles"] = json!(["in"]);
    value["workflow"]["specification"]["tasks"][0]["outputFiles"] = json!(["part", "part"]);
    value["workflow"]["specification"]["tasks"][1]["inputFiles"] = json!(["part", "nobody described it"]);
    value["workflow"]["execution"]["tasks"][1] = json!({
        "id": "b_ID2", "runtimeInSeconds": 0.25, "coreCount": 2, "avgCPU": 310.5, "memoryInBytes": 3_000_000,
        "command": { "program": "bwa", "arguments": ["-x"] }, "machines": ["m-1"]
    });
    let read = parse(&value.to_string()).unwrap();
    assert_eq!((read.name.as_str(), read.makespan), ("test", Some(Duration::from_millis(3500))));
    assert_eq!(read.order, [0, 1, 2, 3]);
    assert_eq!((read.edges(), read.depth(), read.critical_path()), (4, 3, Duration::from_secs(3)));
    let task = &read.tasks[1];
    assert_eq!((task.id.as_str(), task.category.as_str()), ("b_ID2", "bwa"));
    assert_eq!((task.parents.as_slice(), task.children.as_slice()), ([0].as_slice(), [3].as_slice()));
    assert_eq!((task.runtime, task.memory_bytes, task.cores()), (Duration::from_millis(250), Some(3_000_000), 4));
    assert_eq!(
        (read.input_bytes(0), read.input_bytes(1), read.edge_bytes(0, 1), read.edge_bytes(0, 2)),
        (7, 100, 100, 0)
    );
    assert_eq!(read.files.len(), 3);
    assert_eq!(read.tasks[2].cores(), 1, "what was not measured is one core");
}

#[test]
fn w22_a_category_is_a_program_of_one_word_or_else_the_name_without_its_number() {
    for (name, program, category) in [
        ("mProject_ID0000001", json!("mProject"), "mProject"),
        ("chr21_chr21_ID0000001", json!("chr21"), "chr21"),
        ("NFCORE.MAG.KRAKEN", json!("kraken2 --threads 1\n done"), "NFCORE.MAG.KRAKEN"),
        ("FASTQC_12", json!(null), "FASTQC"),
        ("FASTQC_12", json!(""), "FASTQC"),
        ("chr21", json!("x".repeat(64)), "chr21"),
        ("_7", json!(null), "_7"),
        ("7", json!(null), "7"),
    ] {
        let mut value = instance(&[task("x", &[], &[])]);
        value["workflow"]["specification"]["tasks"][0]["name"] = json!(name);
        value["workflow"]["execution"]["tasks"][0]["command"] = json!({ "program": program });
        assert_eq!(parse(&value.to_string()).unwrap().tasks[0].category, category, "{name} {program}");
    }
}

#[test]
fn w22_an_edge_counts_whichever_end_names_it_and_also_through_a_file() {
    let mut value = instance(&[
        task("a", &[], &["b"]),
        task("b", &[], &[]),
        task("c", &["a", "a"], &[]),
        task("d", &[], &[]),
        task("e", &[], &[]),
    ]);
    let tasks = &mut value["workflow"]["specification"]["tasks"];
    tasks[3]["inputFiles"] = json!(["f", "g"]);
    tasks[0]["outputFiles"] = json!(["f"]);
    // Two write it: neither is waited for. And a task that changes a file does not wait for itself.
    tasks[1]["outputFiles"] = json!(["g"]);
    tasks[2]["outputFiles"] = json!(["g"]);
    tasks[4]["inputFiles"] = json!(["h"]);
    tasks[4]["outputFiles"] = json!(["h"]);
    let read = parse(&value.to_string()).unwrap();
    let parents: Vec<_> = read.tasks.iter().map(|task| task.parents.clone()).collect();
    assert_eq!(parents, [vec![], vec![0], vec![0], vec![0], vec![]]);
    assert_eq!(read.tasks[0].children, [1, 2, 3]);
}

#[test]
fn what_is_wrong_is_named_with_its_place() {
    let with = |change: fn(&mut Value)| {
        let mut value = diamond();
        change(&mut value);
        error(&value)
    };
    for (found, text) in [
        (with(|v| v["schemaVersion"] = json!("1.3")), "schemaVersion is \"1.3\"; only \"1.5\" can be read"),
        (
            with(|v| v["workflow"]["specification"]["tasks"][2]["parents"] = json!(["zz"])),
            "workflow.specification.tasks[2] (b_ID3).parents: \"zz\" is not the id of a task",
        ),
        (
            with(|v| v["workflow"]["specification"]["tasks"][0]["children"] = json!(["zz"])),
            "workflow.specification.tasks[0] (a_ID1).children: \"zz\" is not the id of a task",
        ),
        (
            with(|v| v["workflow"]["specification"]["tasks"][3]["id"] = json!("b_ID2")),
            "workflow.specification.tasks[3].id: \"b_ID2\" is the id of tasks[1] already",
        ),
        (
            with(|v| drop(v["workflow"]["execution"]["tasks"].as_array_mut().unwrap().pop())),
            "workflow.specification.tasks[3] (c_ID4): it has no runtime",
        ),
        (
            with(|v| v["workflow"]["execution"]["tasks"][1]["id"] = json!("a_ID1")),
            "workflow.execution.tasks[1] (a_ID1): the task was measured twice",
        ),
        (
            with(|v| v["workflow"]["execution"]["tasks"][1]["id"] = json!("q")),
            "workflow.execution.tasks[1] (q).id: \"q\" is not the id of a task",
        ),
        (
            with(|v| v["workflow"]["execution"]["tasks"][0]["runtimeInSeconds"] = json!(-1)),
            "workflow.execution.tasks[0] (a_ID1).runtimeInSeconds: -1 is no span of time",
        ),
        (
            with(|v| v["workflow"]["execution"]["tasks"][0]["avgCPU"] = json!(-1)),
            "workflow.execution.tasks[0] (a_ID1).avgCPU: it is -1; it must not be negative",
        ),
        (
            with(|v| {
                v["workflow"]["specification"]["files"] =
                    json!([{ "id": "f", "sizeInBytes": 1 }, { "id": "f", "sizeInBytes": 1 }]);
            }),
            "workflow.specification.files[1].id: \"f\" is the id of files[0] already",
        ),
        (with(|v| v["workflow"]["specification"]["tasks"] = json!([])), "there are none"),
        (
            with(|v| v["workflow"]["specification"]["tasks"][0]["parents"] = json!(["c_ID4"])),
            "they wait for each other in a cycle: a_ID1 -> b_ID2 -> c_ID4 -> a_ID1",
        ),
        (with(|v| v["workflow"]["execution"]["tasks"][0]["runtimeInSeconds"] = json!("1")), "line 1 column"),
        (with(|v| v["workflow"]["specification"]["tasks"][0] = json!({})), "missing field `id` at line 1 column"),
        (parse("{").unwrap_err().to_string(), "it is not an instance of WfFormat 1.5: EOF while parsing"),
    ] {
        assert!(found.contains(text), "{found:?} does not say {text:?}");
    }
}

#[test]
fn errors_name_the_file() {
    let missing = std::path::Path::new("/nowhere/at/all.json");
    let error = baton_wfformat::open(missing).unwrap_err();
    assert!(matches!(error, Error::Io { .. }) && error.to_string().starts_with("/nowhere/at/all.json: "), "{error}");
    let here = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let error = baton_wfformat::open(&here).unwrap_err().to_string();
    assert!(error.contains("Cargo.toml: it is not an instance of WfFormat 1.5: expected"), "{error}");
}

/// A chain of ten thousand tasks, and ten thousand that one waits for.
#[test]
fn large_instances_are_read_without_recursion() {
    let mut text = String::new();
    for i in 0..10_000 {
        let parents = if i == 0 { String::new() } else { format!("\"t_{}\"", i - 1) };
        let _ = write!(text, r#"{{"id":"t_{i}","name":"t_{i}","parents":[{parents}],"children":[]}},"#);
    }
    let tasks: Vec<Value> = serde_json::from_str(&format!("[{}]", text.trim_end_matches(','))).unwrap();
    let read = parse(&instance(&tasks).to_string()).unwrap();
    assert_eq!((read.depth(), read.edges()), (10_000, 9_999));
    let names: Vec<String> = (0..10_000).map(|i| format!("t_{i}")).collect();
    let all: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut tasks: Vec<Value> = all.iter().map(|id| task(id, &[], &["join"])).collect();
    tasks.push(task("join", &all, &[]));
    assert_eq!(parse(&instance(&tasks).to_string()).unwrap().tasks[10_000].parents.len(), 10_000);
}
