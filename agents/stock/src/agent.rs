//! The stock agents as agents: a role behind the SDK.

use std::sync::Arc;

use baton_sdk::{Agent, AgentError, CancellationToken, ConnectSettings, Output, Spans, Task, TaskError};
use serde_json::{Value, json};

use crate::llm;
use crate::roles::{Context, Role, RoleError, Spent};

/// Who does the thinking.
#[derive(Debug, Clone)]
pub enum Mind {
    /// Nobody: the roles extract, without a network.
    Offline,
    /// A model behind an OpenAI-compatible endpoint.
    Model(Box<llm::Client>),
}

impl Mind {
    /// A model if `OPENAI_MODEL` names one, nobody otherwise. A key alone starts nothing: it may be there for other
    /// programs, and calls cost money.
    pub fn from_env() -> Result<Self, RoleError> {
        if std::env::var("OPENAI_MODEL").is_ok_and(|model| !model.trim().is_empty()) {
            Ok(Self::Model(Box::new(llm::Client::new(llm::LlmConfig::from_env()?)?)))
        } else {
            Ok(Self::Offline)
        }
    }

    fn describe(&self) -> Value {
        match self {
            Self::Offline => json!({ "mind": "offline" }),
            Self::Model(client) => json!({ "mind": "model", "model": client.model() }),
        }
    }
}

/// Runs a stock agent until `shutdown`.
pub async fn run(
    role: Role,
    id: &str,
    mind: Mind,
    context: Context,
    settings: ConnectSettings,
    spans: Option<Spans>,
    shutdown: CancellationToken,
) -> Result<(), AgentError> {
    let mut builder =
        Agent::builder(id, role.name()).capability(role.name(), mind.describe()).settings(settings).restarts();
    if let Some(spans) = spans {
        builder = builder.spans(spans);
    }
    let agent = builder.connect().await?;
    let (mind, context) = (Arc::new(mind), Arc::new(context));
    let handler = move |task: Task| {
        let (mind, context) = (Arc::clone(&mind), Arc::clone(&context));
        async move { handle(role, &mind, &context, &task).await }
    };
    agent.run_until(handler, async move { shutdown.cancelled().await }).await
}

async fn handle(role: Role, mind: &Mind, context: &Arc<Context>, task: &Task) -> Result<Output, TaskError> {
    let input: Value = task.input()?;
    let mut results = serde_json::Map::new();
    for stage in task.results.keys() {
        results.insert(stage.to_string(), task.result_of(stage.as_str())?);
    }
    let input = json!({ "input": input, "results": results, "params": task.params, "metadata": task.metadata });
    task.progress(0.05, format!("{role} begins")).await;
    let outcome = match mind {
        Mind::Offline => {
            let context = Arc::clone(context);
            // The roles compute, and read files: not in a thread that others wait for.
            let work = tokio::task::spawn_blocking(move || role.run(&input, &context));
            work.await.map_err(|error| TaskError::failed(format!("{role} broke down: {error}")))?.map(|o| (o, None))
        }
        Mind::Model(client) => {
            let started = baton_sdk::baton_client::now();
            let done = client.run(role, &input, context).await;
            let spent = match &done {
                Ok(done) => Some(&done.spent),
                Err(error) => error.spent.as_deref(),
            };
            if let Some(spent) = spent.filter(|spent| !spent.model.is_empty()) {
                show(task, started, spent);
            }
            done.map(|done| (done.output, Some(done.spent)))
        }
    };
    task.progress(1.0, format!("{role} ends")).await;
    match outcome {
        Ok((output, spent)) => {
            let spent = spent.unwrap_or_default();
            let output = Output::json(&output)?.cost(spent.cost).usage(spent.tokens_in, spent.tokens_out);
            Ok(if spent.model.is_empty() { output } else { output.model(spent.model) })
        }
        Err(error) => Err(failure(error)),
    }
}

/// The call to a model as a span, in the words of OpenTelemetry's conventions for generative AI.
fn show(task: &Task, started: u64, spent: &Spent) {
    task.span(
        format!("chat {}", spent.model),
        started,
        baton_sdk::baton_client::now(),
        [
            ("gen_ai.operation.name", "chat".to_owned()),
            ("gen_ai.provider.name", "openai".to_owned()),
            ("gen_ai.request.model", spent.model.clone()),
            ("gen_ai.usage.input_tokens", spent.tokens_in.to_string()),
            ("gen_ai.usage.output_tokens", spent.tokens_out.to_string()),
        ],
    );
}

fn failure(error: RoleError) -> TaskError {
    let RoleError { message, retryable, retry_after: _, output: _, spent } = error;
    let spent = spent.map(|spent| *spent).unwrap_or_default();
    let failed = TaskError::failed(message).cost(spent.cost).usage(spent.tokens_in, spent.tokens_out);
    let failed = if spent.model.is_empty() { failed } else { failed.model(spent.model) };
    if retryable { failed } else { failed.permanent() }
}
