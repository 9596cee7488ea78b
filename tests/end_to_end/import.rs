//! Workflows of a thousand stages and more, imported from WfFormat.

use baton_protocol::request::GetWorkflow;
use baton_protocol::run::RunStatus;
use serde_json::{Value, json};

use crate::fleet::Fleet;
use crate::order::Order;

/// An instance like those of sequencing: samples are split, each part goes through a chain, samples are merged, all of
/// them are joined. Ids are long and have dots and capitals; some tasks took no time; there are several roots and sinks.
fn instance(samples: usize, parts: usize) -> (Value, usize) {
    let mut tasks: Vec<(String, Vec<String>)> = Vec::new();
    let mut joined = Vec::new();
    for sample in 0..samples {
        let id = |kind: &str, part: usize| format!("LAB_{}.SEQ.{kind}_ID{sample:03}{part:04}", "x".repeat(40));
        let split = id("fastqSplit", 0);
        tasks.push((split.clone(), vec![]));
        let mut merged = Vec::new();
        for part in 0..parts {
            let mut last = split.clone();
            for kind in ["filterContams", "sol2sanger", "map"] {
                let next = id(kind, part);
                tasks.push((next.clone(), vec![last]));
                last = next;
            }
            merged.push(last);
        }
        tasks.push((id("mapMerge", 0), merged));
        joined.push(id("mapMerge", 0));
        tasks.push((id("report", 0), vec![id("mapMerge", 0)]));
    }
    tasks.push(("pileup.ID1".to_owned(), joined));
    let specified = |(id, parents): &(String, Vec<String>)| {
        let children: Vec<_> = tasks.iter().filter(|(_, all)| all.contains(id)).map(|(child, _)| child).collect();
        json!({ "id": id, "name": id, "parents": parents, "children": children })
    };
    let executed =
        |(at, (id, _)): (usize, &(String, Vec<String>))| json!({ "id": id, "runtimeInSeconds": (at % 7) as f64 * 0.4 });
    let value = json!({
        "name": "Sequencing, made up", "schemaVersion": "1.5",
        "workflow": {
            "specification": { "tasks": tasks.iter().map(specified).collect::<Vec<_>>(), "files": [] },
            "execution": { "tasks": tasks.iter().enumerate().map(executed).collect::<Vec<_>>() }
        }
    });
    (value, tasks.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn w22_an_imported_workflow_of_a_thousand_tasks_runs_to_the_end_in_the_order_of_its_edges() {
    let mut fleet = Fleet::services().await;
    let (value, tasks) = instance(6, 60);
    assert!(tasks > 1000);
    std::fs::write(fleet.folder.path().join("Sequencing.v1.json"), value.to_string()).unwrap();
    let said = fleet
        .baton(&["workflow", "import", "Sequencing.v1.json", "--scale", "0.001", "--register", "--out", "w.json"])
        .await;
    assert!(said.starts_with("workflow sequencing-v1 is registered as version 1: 1099 stages ("), "{said}");
    assert!(said.len() < 400, "{said}");

    fleet.start("sleep", &["agent", "sleep", "--workflow", "sequencing-v1", "--count", "2", "--slots", "64"]);
    fleet.wait_for_agents(2).await;
    let run = fleet.start_run("sequencing-v1", &json!({})).await;
    let order = Order::of(&fleet.client, run).await;
    let view = fleet.client.get_run(run).await.unwrap();
    assert_eq!(view.status, RunStatus::Succeeded, "{:?}", view.reason);
    assert_eq!((view.stages.len(), order.records), (tasks, 2 + 3 * tasks));

    // The edges of the instance, told by the ids that the stages kept.
    let request = GetWorkflow { name: view.workflow.clone(), version: None };
    let definition = fleet.client.get_workflow(&request).await.unwrap().definition;
    let stage = |id: &str| {
        let stage = definition.stages.iter().find(|stage| stage.params["task"] == id);
        stage.unwrap_or_else(|| panic!("no stage for {id}")).name.as_str()
    };
    let specified = value["workflow"]["specification"]["tasks"].as_array().unwrap();
    let edges = specified.iter().flat_map(|task| {
        let to = stage(task["id"].as_str().unwrap());
        task["parents"].as_array().unwrap().iter().map(move |from| (stage(from.as_str().unwrap()), to))
    });
    assert_eq!(order.check(edges), 6 * (60 * 4 + 1) + 6);

    // What people look at stays short.
    let run = run.to_string();
    let shown = fleet.baton(&["show", &run]).await;
    assert!(shown.lines().count() < 40 && shown.contains("sol2sanger"), "{shown}");
    assert_eq!(fleet.baton(&["show", &run, "--all"]).await.lines().count(), 10 + tasks);
    let list = fleet.baton(&["workflow", "list", "seq"]).await;
    assert!(list.contains("more") && list.lines().all(|line| line.len() < 400), "{list}");
    let last = fleet.baton(&["log", &run, "--last", "3"]).await;
    assert!(last.lines().count() == 4 && last.contains("run_finished"), "{last}");
    let of_one = fleet.baton(&["log", &run, "--stage", "pileup-id1"]).await;
    assert_eq!(of_one.lines().count(), 6, "started, ready, assigned, ended, finished, a sum: {of_one}");
    let (code, _, error) = fleet.try_baton(&["log", &run, "--stage", "pileup"]).await;
    assert!(code == Some(2) && error.contains("has no stage pileup"), "{error}");

    let drawn = fleet.baton(&["workflow", "graph", "last"]).await;
    assert!(drawn.contains("×360") && drawn.contains("succeeded") && drawn.lines().count() < 30, "{drawn}");
    let all = fleet.baton(&["workflow", "graph", "sequencing-v1", "--svg", "-", "--all"]).await;
    assert_eq!(all.matches("<rect").count(), tasks);
    let svg = fleet.baton(&["workflow", "graph", "./w.json", "--svg", "graph.svg"]).await;
    assert!(svg.starts_with("graph.svg: workflow sequencing-v1, 1099 stages"), "{svg}");
    let drawn = std::fs::read_to_string(fleet.folder.path().join("graph.svg")).unwrap();
    assert!(drawn.contains("<title>workflow sequencing-v1</title>") && drawn.matches("<rect").count() < 20, "{drawn}");
}
