//! More runs than may be live: who is refused is told so at once, by whatever way it asked, and when to ask again.

use std::time::{Duration, Instant};

use baton_protocol::request::{CancelRun, RegisterWorkflow, StartRun};
use baton_protocol::{Code, Json, WorkflowName};
use serde_json::{Value, json};

use crate::fleet::{Fleet, PATIENCE};

fn start(key: &str) -> StartRun {
    StartRun {
        key: Some(key.to_owned()),
        ..StartRun::new(WorkflowName::new("waits").unwrap(), Json::of(&json!({})).unwrap())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn g7_a_run_too_many_is_refused_until_another_one_ends() {
    let mut fleet = Fleet::bare().await;
    fleet.set("BATON_WORKFLOWS__MAX_LIVE_RUNS", "2");
    fleet.start_services().await;
    let url = crate::http::gateway(&mut fleet).await;
    let source = "name: waits\nstages:\n- {name: a, agent_type: nobody}\n".to_owned();
    let request = RegisterWorkflow { source: Some(source), definition: None };
    fleet.client.register_workflow(&request).await.unwrap();
    let first = fleet.client.start_run(start("k-1")).await.unwrap().run;
    fleet.client.start_run(start("k-2")).await.unwrap();

    // The client: at once, if it would rather know.
    let client = fleet.client.clone().waits_when_refused(false);
    let error = client.start_run(start("k-3")).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::Overloaded), "{error}");
    assert!(error.to_string().contains("2 live runs"), "{error}");
    // A run that is known is answered as ever.
    assert!(client.start_run(start("k-1")).await.unwrap().existing);

    // HTTP: at once, with when to come back.
    let post = || reqwest::Client::new().post(format!("{url}/v1/runs")).json(&json!({ "workflow": "waits" })).send();
    let since = Instant::now();
    let answer = post().await.unwrap();
    assert!(since.elapsed() < Duration::from_secs(2), "the gateway waited: {:?}", since.elapsed());
    assert_eq!((answer.status().as_u16(), &answer.headers()["retry-after"]), (503, &"1".parse().unwrap()));
    let problem: Value = answer.json().await.unwrap();
    assert_eq!((problem["code"].as_str(), problem["retry_after_ms"].as_u64()), (Some("overloaded"), Some(1000)));

    // The command line: at once as well, unless it is asked to wait.
    let (code, _, stderr) = fleet.try_baton(&["run", "waits"]).await;
    assert_eq!(code, Some(5), "{stderr}");
    assert!(stderr.contains("ask again in 1000 ms") && stderr.contains("--patience"), "{stderr}");
    let patience = PATIENCE.as_secs().to_string();
    let arguments = ["run", "waits", "--patience", &patience];
    let (waited, _) = tokio::join!(fleet.try_baton(&arguments), async {
        // Whether it has been refused already is not for us to see; either way it starts when there is room.
        fleet.client.cancel_run(&CancelRun { run: first, reason: None }).await.unwrap();
    });
    assert_eq!(waited.0, Some(0), "{}", waited.2);
    assert_eq!(post().await.unwrap().status(), 503);
}
