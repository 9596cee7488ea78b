//! A task for each item of a list that is found in the run.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use baton_protocol::request::RegisterWorkflow;
use baton_protocol::run::{RunStatus, StageStatus};
use baton_sdk::{Output, Task};
use serde_json::{Value, json};

use crate::fleet::Fleet;
use crate::workflows::agent;

const ITEMS: usize = 1000;

#[tokio::test(flavor = "multi_thread")]
async fn w5_a_thousand_items_join_in_their_order() {
    let fleet = Fleet::services().await;
    let source = "name: wide\nstages:\n- {name: list, agent_type: list}\n\
        - {name: each, agent_type: each, depends_on: [list], for_each: {items: results.list, max_parallel: 200}}\n\
        - {name: join, agent_type: join, depends_on: [each]}\n";
    let request = RegisterWorkflow { source: Some(source.to_owned()), definition: None };
    fleet.client.register_workflow(&request).await.unwrap();
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut stops = vec![
        agent(&fleet, "list-1", "list", 1, |_| async {
            Output::json(&(0..ITEMS).map(|n| json!({ "n": n * 7 })).collect::<Vec<_>>())
        })
        .await,
        // What the join is given: the results in the order of the items.
        agent(&fleet, "join-1", "join", 1, |task: Task| async move { Output::json(&task.result_of::<Value>("each")?) })
            .await,
    ];
    for id in ["each-1", "each-2", "each-3"] {
        let (now, most) = (Arc::clone(&now), Arc::clone(&most));
        let handler = move |task: Task| {
            let (now, most) = (Arc::clone(&now), Arc::clone(&most));
            async move {
                most.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
                let item: Value = task.item()?;
                // Whoever is first is not who comes first.
                for _ in 0..task.index.unwrap_or(0) % 7 {
                    tokio::task::yield_now().await;
                }
                now.fetch_sub(1, SeqCst);
                Output::json(&json!({ "index": task.index, "n": item["n"] }))
            }
        };
        stops.push(agent(&fleet, id, "each", 50, handler).await);
    }
    let run = fleet.start_run("wide", &json!({})).await;
    let view = fleet.wait_for_end(run).await;
    assert_eq!(view.status, RunStatus::Succeeded, "{:?}", view.reason);
    let joined: Vec<Value> = view.stages[2].result.as_ref().unwrap().read().unwrap();
    let expected: Vec<Value> = (0..ITEMS).map(|n| json!({ "index": n, "n": n * 7 })).collect();
    assert_eq!(joined, expected);
    assert_eq!(view.stages[1].items.len(), ITEMS);
    assert!(view.stages[1].items.iter().all(|item| item.status == StageStatus::Succeeded && item.attempts.len() == 1));
    assert!(most.load(SeqCst) <= 150, "no more than the agents have slots for");
    // Baton itself shows it in a few lines, and every record of it.
    let shown = fleet.baton(&["show", &run.to_string()]).await;
    assert!(shown.contains("1000 items: 1000 succeeded") && shown.lines().count() < 40, "{shown}");
    stops.iter().for_each(tokio_util::sync::CancellationToken::cancel);
}
