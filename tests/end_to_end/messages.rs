//! Messages between agents, through the built binary.

use std::time::Duration;

use baton_testkit::wait_for;
use futures::StreamExt;
use serde_json::{Value, json};

use crate::fleet::{Fleet, PATIENCE};

/// The Python program on the page about messages.
fn documented_agent() -> String {
    let page = include_str!("../../docs/messages.md");
    let (_, rest) = page.split_once("```python\n").expect("docs/messages.md shows an agent in Python");
    rest.split_once("```").unwrap().0.to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn m4_the_documented_agent_in_plain_nats_py_gets_what_is_guaranteed_and_answers() {
    let fleet = Fleet::services().await;
    let nats = fleet.client.nats();
    let mut answers = nats.subscribe("baton.to.operator.mail.pia").await.unwrap();
    nats.flush().await.unwrap();
    // It is not there yet.
    let text = fleet.baton(&["message", "send", "--to", "pia", "--guaranteed", r#"{"n":1}"#]).await;
    assert_eq!(text.trim(), "stored as 1");
    let (code, _, stderr) = fleet.try_baton(&["message", "send", "--to", "pia", "--wait-ms", "1000", "hello"]).await;
    assert!(code == Some(4) && stderr.contains("no agent pia listens") && stderr.contains("--guaranteed"), "{stderr}");

    let start = fleet.python("pia.py", &documented_agent()).await;
    let agent = start();
    let mut heard = async || {
        let answer = tokio::time::timeout(PATIENCE, answers.next()).await;
        let answer = answer.unwrap_or_else(|_| panic!("no answer:\n{}", agent.log_tail())).unwrap();
        serde_json::from_slice::<Value>(&answer.payload).unwrap()["heard"].clone()
    };
    assert_eq!(heard().await, json!({ "n": 1 }));
    fleet.baton(&["message", "send", "--to", "pia", "--guaranteed", "2"]).await;
    assert_eq!(heard().await, json!(2));
    fleet.baton(&["message", "send", "--to", "pia", "three"]).await;
    assert_eq!(heard().await, json!("three"));
    fleet.baton(&["message", "send", "--all", "4"]).await;
    assert_eq!(heard().await, json!(4));
    fleet.baton(&["message", "send", "--topic", "news.today", "5"]).await;
    assert_eq!(heard().await, json!(5));
    let text = fleet.baton(&["message", "send", "--to", "pia", "--wait-ms", "5000", "six"]).await;
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), json!({ "answer to": "six" }));
    drop(agent);
    // Its next life gets what it has not had.
    fleet.baton(&["message", "send", "--to", "pia", "--guaranteed", "7"]).await;
    let _agent = start();
    let answer = tokio::time::timeout(PATIENCE, answers.next()).await.unwrap().unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&answer.payload).unwrap(), json!({ "heard": 7 }));
}

#[tokio::test(flavor = "multi_thread")]
async fn m3_messages_can_be_sent_and_watched_from_the_command_line() {
    let fleet = Fleet::services().await;
    let watching = fleet.baton(&["message", "watch", "--topic", "prices.>", "--count", "1", "--json"]);
    let sending = async {
        loop {
            // Nobody is told when the other has subscribed: what is said before that is not heard.
            fleet.baton(&["message", "send", "--topic", "prices.eu", "--as", "ann", "--type", "x-price", "2.5"]).await;
        }
    };
    let text = tokio::select! {
        text = tokio::time::timeout(PATIENCE, watching) => text.expect("a message"),
        never = sending => never,
    };
    let seen: Value = serde_json::from_str(&text).unwrap();
    for (key, value) in [("from", "ann"), ("to", "topic prices.eu"), ("type", "x-price")] {
        assert_eq!(seen[key], value, "{seen}");
    }
    assert_eq!((&seen["body"], &seen["guaranteed"]), (&json!(2.5), &json!(false)));
    // The stream is made, and the doctor sees it.
    wait_for("the doctor", Duration::from_secs(30), async || {
        let (_, text, _) = fleet.try_baton(&["doctor"]).await;
        if text.contains("0 guaranteed messages kept") { Ok(()) } else { Err(text) }
    })
    .await;
}
