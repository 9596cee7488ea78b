//! Inputs and results that are too large for a message.

use std::fmt::Write;

use baton_protocol::request::RegisterWorkflow;
use baton_protocol::run::RunStatus;
use baton_protocol::{Json, ObjectRef};
use baton_sdk::{Output, Task};
use serde_json::{Value, json};

use crate::fleet::{Fleet, PATIENCE};
use crate::http::gateway;
use crate::workflows::agent;

/// More than a message may carry.
const LARGE: usize = 700_000;

const SOURCE: &str = "
name: large
stages:
- name: make
  agent_type: maker
- name: use
  agent_type: user
  depends_on: [make]
  when: results.make.pages == 3
  input: { book: results.make.text, question: input.question }
";

#[tokio::test(flavor = "multi_thread")]
async fn w1_large_inputs_and_results_travel_by_reference_and_are_whole_where_they_are_read() {
    let mut fleet = Fleet::services().await;
    let request = RegisterWorkflow { source: Some(SOURCE.to_owned()), definition: None };
    fleet.client.register_workflow(&request).await.unwrap();
    let _maker = agent(&fleet, "maker-1", "maker", 1, |task: Task| async move {
        let input: Value = task.input()?;
        let seen = input["notes"].as_str().map_or(0, str::len);
        Output::json(&json!({ "text": "t".repeat(LARGE), "pages": 3, "seen": seen }))
    })
    .await;
    let _user = agent(&fleet, "user-1", "user", 1, |task: Task| async move {
        let input: Value = task.input()?;
        let result: Value = task.result_of("make")?;
        let lengths = [&input["book"], &result["text"]].map(|text| text.as_str().map(str::len));
        Output::json(&json!({ "lengths": lengths, "question": input["question"] }))
    })
    .await;

    // On the command line.
    let file = fleet.folder.path().join("input.json");
    let input = json!({ "notes": "n".repeat(LARGE), "question": "why?" });
    std::fs::write(&file, input.to_string()).unwrap();
    let run = fleet.baton(&["run", "large", "--input-file", file.to_str().unwrap()]).await;
    let view = fleet.wait_for_end(run.trim().parse().unwrap()).await;
    assert_eq!(view.status, RunStatus::Succeeded, "{view:?}");
    let result = |stage: usize| view.stages[stage].result.as_ref().unwrap().read::<Value>().unwrap();
    assert_eq!(result(1), json!({ "lengths": [LARGE, LARGE], "question": "why?" }));
    let made = result(0);
    assert_eq!((&made["pages"], &made["seen"]), (&json!(3), &json!(LARGE)));
    let text: ObjectRef = serde_json::from_value(made["text"].clone()).unwrap();
    assert!(text.is_json() && text.bytes as usize == LARGE + 2, "{text:?}");
    let got = fleet.baton(&["objects", "get", text.name.as_str()]).await;
    assert!(got.len() == LARGE + 2 && got.starts_with("\"tt"), "{}", got.len());

    // Over HTTP.
    let url = gateway(&mut fleet).await;
    let http = reqwest::Client::new();
    let notes = Json::of(&"n".repeat(2 * LARGE)).unwrap();
    let put = http.post(format!("{url}/v1/objects")).header("Content-Type", "application/json");
    let put = put.body(notes.as_str().to_owned()).send().await.unwrap();
    assert_eq!(put.status(), 201);
    let location = put.headers()["location"].to_str().unwrap().to_owned();
    let reference: Value = put.json().await.unwrap();
    assert_eq!(location, format!("/v1/objects/{}", reference["$object"].as_str().unwrap()));
    let got = http.get(format!("{url}{location}")).send().await.unwrap();
    assert_eq!((got.status().as_u16(), got.headers()["content-type"].to_str().unwrap()), (200, "application/json"));
    assert_eq!(got.headers()["content-disposition"], "attachment");
    assert_eq!(got.text().await.unwrap(), notes.as_str());
    let body = json!({ "workflow": "large", "input": { "notes": reference, "question": "x".repeat(LARGE) } });
    let accepted: Value = http.post(format!("{url}/v1/runs")).json(&body).send().await.unwrap().json().await.unwrap();
    let view = fleet.wait_for_end(accepted["run"].as_str().unwrap().parse().unwrap()).await;
    assert_eq!(view.stages[0].result.as_ref().unwrap().read::<Value>().unwrap()["seen"], json!(2 * LARGE));
    let asked = view.stages[1].result.as_ref().unwrap().read::<Value>().unwrap()["question"].clone();
    assert_eq!(serde_json::from_value::<ObjectRef>(asked).unwrap().bytes as usize, LARGE + 2);

    // What is not there.
    let nothing = format!("sha256-{}", "0".repeat(64));
    let (code, _, said) = fleet.try_baton(&["objects", "get", &nothing]).await;
    assert!(code == Some(5) && said.contains("there is no object"), "{code:?} {said}");
    let gone = http.get(format!("{url}/v1/objects/{nothing}")).send().await.unwrap();
    assert_eq!(gone.status(), 404);
    assert_eq!(gone.json::<Value>().await.unwrap()["code"], "unknown_object");
    let bytes = fleet.folder.path().join("bytes");
    std::fs::write(&bytes, [0xff, 0, 1]).unwrap();
    let put = fleet.baton(&["objects", "put", bytes.to_str().unwrap(), "--type", "image/png"]).await;
    let reference: ObjectRef = serde_json::from_str(&put).unwrap();
    assert_eq!((reference.bytes, reference.media_type.as_str()), (3, "image/png"));
    let copy = fleet.folder.path().join("copy");
    fleet.baton(&["objects", "get", reference.name.as_str(), "--output", copy.to_str().unwrap()]).await;
    assert_eq!(std::fs::read(copy).unwrap(), [0xff, 0, 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn w1_the_documented_python_reads_and_makes_references() {
    let fleet = Fleet::services().await;
    let page = include_str!("../../docs/objects.md");
    let documented = page.split_once("```python\n").unwrap().1.split_once("```").unwrap().0;
    let mut code = "import asyncio, hashlib, json, os, nats, nats.js.api\nasync def main():\n".to_owned();
    code += "    nc = await nats.connect(os.environ['NATS_URL'])\n";
    for line in documented.lines() {
        writeln!(code, "    {line}").unwrap();
    }
    let put = fleet.client.put_object(format!("\"{}\"", "r".repeat(LARGE)).into(), "application/json").await.unwrap();
    let put = serde_json::to_string(&put).unwrap();
    write!(
        code,
        "    print(json.dumps(await reference('p' * {LARGE})), flush=True)\n    \
         value = await whole({{'list': [json.loads('{put}')]}})\n    \
         print(len(value['list'][0]), flush=True)\nasyncio.run(main())\n"
    )
    .unwrap();
    let start = fleet.python("objects.py", &code).await;
    let mut process = start();
    process.wait_for_output(&format!("\n{LARGE}\n"), PATIENCE).await;
    let said = process.stdout();
    let value = Json::from_text(format!("[{}]", said.lines().next().unwrap())).unwrap();
    let value: Vec<String> = fleet.client.expand(value, 10 * LARGE as u64).await.unwrap().read().unwrap();
    assert_eq!(value, ["p".repeat(LARGE)]);
}
