//! An agent of the runner: sleeps a little, gives a result that nobody else can give, and notes what it was told of it.

use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use baton_client::now;
use baton_protocol::request::{Report, ReportStatus};
use baton_protocol::{AgentId, Rejection};
use baton_sdk::{Agent, ConnectSettings, Output, Task, TaskError, Told};
use clap::Args;
use uuid::Uuid;

use crate::notes::{ReportNote, TaskResult, append};
use crate::random::Random;

/// What all agents of the runner do: the `agent_type` of every stage.
pub const AGENT_TYPE: &str = "worker";

/// The parameter of a stage whose value says how often an attempt at it fails.
pub const FAILS: &str = "fails";

/// How an agent is started. The runner does that.
#[derive(Debug, Args)]
pub struct Options {
    /// Its id.
    #[arg(long)]
    pub id: String,
    /// The broker.
    #[arg(long)]
    pub server: String,
    /// The file it appends its notes to.
    #[arg(long)]
    pub notes: PathBuf,
    /// How many tasks it does at a time.
    #[arg(long, default_value_t = 1)]
    pub slots: u32,
    /// Decides how long its tasks take.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Tasks take from this …
    #[arg(long, default_value_t = 10)]
    pub from_ms: u64,
    /// … to this long; one in fifty takes ten times as long.
    #[arg(long, default_value_t = 80)]
    pub to_ms: u64,
}

/// Works until it is killed, or replaced.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let id = AgentId::new(&options.id)?;
    let agent = Agent::builder(&options.id, AGENT_TYPE)
        .slots(options.slots)
        .grace(Duration::from_secs(2))
        .settings(ConnectSettings::server(&options.server))
        .told(told(&options, id.clone())?)
        .connect()
        .await?;
    let random = Arc::new(Mutex::new(Random::new(options.seed)));
    let (from, to) = (options.from_ms, options.to_ms.max(options.from_ms + 1));
    let handler = move |task: Task| {
        let ms = {
            let mut random = random.lock().unwrap_or_else(PoisonError::into_inner);
            let ms = random.within(from..to);
            if random.one_in(50) { ms * 10 } else { ms }
        };
        work(task, id.clone(), Duration::from_millis(ms))
    };
    agent.run(handler).await?;
    Ok(())
}

async fn work(task: Task, agent: AgentId, takes: Duration) -> baton_sdk::TaskResult {
    tokio::time::sleep(takes).await;
    let token = Uuid::new_v4().simple().to_string();
    let fails = task.params.get(FAILS).and_then(serde_json::Value::as_u64).unwrap_or_default();
    if u64::from(task.attempt) <= fails {
        return Err(TaskError::failed(format!("as it was told to, {token}")));
    }
    let result = TaskResult { task: task.id().clone(), agent, lease: task.lease, token };
    Output::json(&result)
}

/// Notes what became of each report.
fn told(options: &Options, agent: AgentId) -> anyhow::Result<Told> {
    let path = &options.notes;
    let file = File::options().create(true).append(true).open(path);
    let file = Mutex::new(file.with_context(|| format!("opening {}", path.display()))?);
    Ok(Arc::new(move |report: &Report, answer: Result<(), &Rejection>| {
        let note = ReportNote {
            at: now(),
            agent: agent.clone(),
            task: report.task.clone(),
            lease: report.lease,
            succeeded: report.status == ReportStatus::Succeeded,
            token: token(report),
            refused: answer.err().map(|rejection| rejection.code),
        };
        let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
        append(&mut file, &note).expect("a note can be written");
    }))
}

/// The token in a report's result, or at the end of its error.
fn token(report: &Report) -> String {
    let result = report.result.as_ref().and_then(|result| result.read::<TaskResult>().ok());
    let error = report.error.as_deref().and_then(|error| error.rsplit(' ').next());
    result.map(|result| result.token).or_else(|| error.map(str::to_owned)).unwrap_or_default()
}
