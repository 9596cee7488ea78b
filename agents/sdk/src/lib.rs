//! What an agent author uses.
//!
//! An agent is a function from a [`Task`] to an [`Output`]. The rest is done here: registering, heartbeats, taking
//! assignments, reporting until the report is stored, stopping in order.
//!
//! ```no_run
//! use baton_sdk::{Agent, Output, Task};
//! use serde_json::json;
//!
//! #[derive(serde::Deserialize)]
//! struct Input {
//!     topic: String,
//! }
//!
//! #[tokio::main]
//! async fn main() -> anyhow::Result<()> {
//!     Agent::builder("ann", "research")
//!         .capability("summaries", json!({ "languages": ["en"] }))
//!         .resource("cpu", 2)
//!         .slots(1)
//!         .connect()
//!         .await? // to the broker that BATON_SERVER, NATS_URL or a NATS context names
//!         .run(|task: Task| async move {
//!             let input: Input = task.input()?;
//!             task.progress(0.5, "reading").await;
//!             let answer = json!({ "summary": format!("All about {}", input.topic) });
//!             Ok(Output::json(&answer)?.cost("0.01").usage(120, 40))
//!         })
//!         .await?;
//!     Ok(())
//! }
//! ```
//!
//! # What holds
//!
//! - A task that is assigned twice is started once. It may still run twice in all: when an agent is lost, its tasks run
//!   elsewhere. Only one of them counts.
//! - What a handler returns is reported until it is stored, also across a restart of the broker or of a service. It is
//!   dropped only when the lease has ended meanwhile.
//! - An error is a failure that another attempt may heal; [`TaskError::permanent`] says that none will. A panic is a
//!   failure too.
//! - When a task is no longer wanted, or has taken longer than it may, [its token](Task::cancelled) is cancelled; a
//!   handler that goes on regardless is stopped at its next `.await` after a while ([`Builder::patience`]).
//! - A task can be [handed over](Task::hand_over) to another agent, with its state and what has come of it so far; the other
//!   agent takes it if there is room and [it wants to](Builder::takes), and [goes on](Task::resumed) where this one was.
//! - A handler need not do the work itself: it may [delegate](Output::delegate) it to stages of its own making, and
//!   [put together](Task::gathered) what came of them.
//! - Ctrl-C and SIGTERM let the work in hand finish; a second one does not.
//!
//! What agents say to each other beside their tasks is in [`messages`].
//!
//! What a handler needs beside what its stage asks for (a share of a provider's quota, a lock) it [acquires](Task::acquire) and
//! holds for as long as it has the [guard](LeaseGuard). So do agents outside of tasks, and programs that are no agents
//! ([`Leases`]); who leads a group of agents is a lock too ([`Leases::campaign`]).
//!
//! A handler that computes for long between two `.await`s holds up everything else in its thread: give such work to
//! [`tokio::task::spawn_blocking`].
//!
//! Deliberately absent: JetStream (agents use core NATS only), OpenTelemetry (spans are [data](Builder::spans)), and any
//! limit on the tasks at a time but the slots told at registration, which the resource-manager keeps to.

mod agent;
mod keeper;
mod lease;
pub mod messages;
mod output;
mod speech;
mod task;

pub use agent::{Agent, AgentError, Builder, Spans, Takes, Told};
pub use lease::{LeaseError, LeaseGuard, Leases, Want};
pub use output::{Delegation, Output, TaskError, TaskResult};
pub use task::{Handoff, HandoffError, Task};

pub use baton_client::{self, Client, ConnectSettings, Connection};
pub use baton_protocol::request::{Gathered, GatheredStage};
pub use baton_protocol::{
    self, AgentId, Amount, Capability, Json, LeaseId, Money, RunId, StageName, TaskId, TopicFilter, TopicName,
};
pub use tokio_util::sync::CancellationToken;
