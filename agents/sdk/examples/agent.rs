//! A whole agent: `cargo run -p baton-sdk --example agent`. It counts the words of the run's input.

use baton_sdk::{Agent, Output, Task};
use serde_json::json;

#[derive(serde::Deserialize)]
struct Input {
    text: String,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let count = |task: Task| async move {
        let input: Input = task.input()?;
        task.progress(0.5, "counting").await;
        let words = input.text.split_whitespace().count();
        Ok(Output::json(&json!({ "words": words }))?.cost("0.0001"))
    };
    Agent::builder("counter", "count").resource("cpu", 1).connect().await?.run(count).await?;
    Ok(())
}
