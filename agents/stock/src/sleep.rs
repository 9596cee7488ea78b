//! An agent that does nothing, for as long as it is told: it stands in for work whose duration is known, such as that of an
//! imported workflow.
//!
//! A task says in the parameter [`PARAM`] how long it takes. An agent may make time pass quicker or slower for all of
//! them ([`Pace`]), and a fleet of several may be of different speeds.

use std::time::Duration;

use baton_sdk::{Agent, AgentError, CancellationToken, ConnectSettings, Output, Spans, Task, TaskError};
use serde_json::{Value, json};

/// The parameter of a stage that says how long it takes, in milliseconds; a part of one counts. Without it a task takes no
/// time.
pub const PARAM: &str = "sleep_ms";

/// The longest that a task may take, in milliseconds: a year.
const MAX_MS: f64 = 366.0 * 24.0 * 3_600_000.0;

/// What the agents of a fleet are.
#[derive(Debug, Clone, PartialEq)]
pub struct Sleeper {
    /// What it can do, its type first. At least one.
    pub capabilities: Vec<String>,
    /// How many tasks it does at a time.
    pub slots: u32,
    /// How time passes.
    pub pace: Pace,
}

/// How long a task takes this agent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    /// By how much every task's duration is multiplied.
    pub scale: f64,
    /// How fast the agent is: twice as fast sleeps half as long.
    pub speed: f64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { scale: 1.0, speed: 1.0 }
    }
}

impl Pace {
    /// How long a task takes that says this much in [`PARAM`].
    pub fn time(self, says: Option<&Value>) -> Result<Duration, String> {
        let Some(says) = says else { return Ok(Duration::ZERO) };
        let ms = says.as_f64().filter(|ms| ms.is_finite() && *ms >= 0.0);
        let ms =
            ms.ok_or_else(|| format!("the parameter {PARAM} is {says}; it must be a number that is not negative"))?;
        Ok(Duration::from_secs_f64((ms * self.scale / self.speed).min(MAX_MS) / 1000.0))
    }
}

/// Runs such an agent until `shutdown`.
///
/// # Panics
/// When it can do nothing.
pub async fn run(
    id: &str,
    sleeper: Sleeper,
    settings: ConnectSettings,
    spans: Option<Spans>,
    shutdown: CancellationToken,
) -> Result<(), AgentError> {
    let Sleeper { capabilities, slots, pace } = sleeper;
    let (first, others) = capabilities.split_first().expect("it can do something");
    let mut builder = Agent::builder(id, first).slots(slots).settings(settings).restarts();
    for other in others {
        builder = builder.capability(other, json!({}));
    }
    if let Some(spans) = spans {
        builder = builder.spans(spans);
    }
    let agent = builder.connect().await?;
    agent.run_until(move |task| sleep(task, pace), async move { shutdown.cancelled().await }).await
}

async fn sleep(task: Task, pace: Pace) -> Result<Output, TaskError> {
    let time = pace.time(task.params.get(PARAM)).map_err(|why| TaskError::failed(why).permanent())?;
    if !time.is_zero() {
        tokio::select! {
            () = tokio::time::sleep(time) => {}
            () = task.cancelled().cancelled() => return Err(TaskError::failed("it was woken: the task is not wanted any more")),
        }
    }
    Output::json(&json!({ "slept_ms": time.as_secs_f64() * 1000.0 }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn w22_time_passes_as_the_agent_says() {
        let pace = Pace { scale: 0.5, speed: 2.0 };
        for (says, ms) in [(json!(100), 25), (json!(0), 0), (json!(4.0), 1), (json!(1e300), 31_622_400_000)] {
            assert_eq!(pace.time(Some(&says)), Ok(Duration::from_millis(ms)), "{says}");
        }
        assert_eq!(pace.time(None), Ok(Duration::ZERO));
        for says in [json!(-1), json!("long"), json!(null)] {
            let error = pace.time(Some(&says)).unwrap_err();
            assert!(error.contains("sleep_ms") && error.contains(&says.to_string()), "{error}");
        }
    }
}
