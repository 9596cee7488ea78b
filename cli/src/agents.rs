//! The stock agents, run in this process.

use std::path::PathBuf;

use baton_client::ConnectSettings;
use baton_protocol::AgentId;
use baton_sdk::AgentError;
use baton_stock::roles::Role;
use baton_stock::sleep::Sleeper;
use baton_telemetry::Spans;
use tokio_util::sync::CancellationToken;

/// A stock agent that is to be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stock {
    pub(crate) id: AgentId,
    pub(crate) role: Role,
}

/// The agents of these roles, numbered within each: `research-1`, `research-2`. The ids are the same at every start, so
/// that a restarted agent takes its own place again instead of a new one.
pub(crate) fn stock(roles: &[Role], prefix: Option<&str>) -> Result<Vec<Stock>, baton_protocol::NameError> {
    let numbered = roles.iter().enumerate().map(|(at, role)| {
        let number = 1 + roles[..at].iter().filter(|earlier| *earlier == role).count();
        let prefix = prefix.map(|prefix| format!("{prefix}-")).unwrap_or_default();
        Ok(Stock { id: AgentId::new(&format!("{prefix}{role}-{number}"))?, role: *role })
    });
    numbered.collect()
}

/// Runs a stock agent until `shutdown`; then it finishes nothing more, says goodbye and returns.
pub(crate) async fn start_stock_agent(
    agent: Stock,
    connect: ConnectSettings,
    sources: Option<PathBuf>,
    spans: Spans,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let mind = baton_stock::agent::Mind::from_env()?;
    // Whoever may start a run names what is read. Without a directory of its own an agent keeps to the one it was started
    // in, so that nobody reads the rest of the disk through it.
    let root = match sources {
        Some(sources) => sources,
        None => std::env::current_dir()?,
    };
    let context = baton_stock::roles::Context { root: Some(root), ..Default::default() };
    let spans: baton_sdk::Spans = std::sync::Arc::new(move |span| spans.export(span));
    let Stock { id, role } = agent;
    again(|| {
        let (mind, context, connect) = (mind.clone(), context.clone(), connect.clone());
        baton_stock::agent::run(role, id.as_str(), mind, context, connect, Some(spans.clone()), shutdown.clone())
    })
    .await
}

/// Runs an agent, and anew as often as it is asked to begin anew.
async fn again<F>(start: impl Fn() -> F) -> anyhow::Result<()>
where
    F: Future<Output = Result<(), AgentError>>,
{
    loop {
        match start().await {
            Err(AgentError::RestartAsked { agent, reason }) => tracing::info!(%agent, reason, "beginning anew"),
            ended => return Ok(ended?),
        }
    }
}

/// Runs an agent that sleeps until `shutdown`, in the same way.
pub(crate) async fn start_sleeper(
    id: AgentId,
    sleeper: Sleeper,
    connect: ConnectSettings,
    spans: Spans,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let spans: baton_sdk::Spans = std::sync::Arc::new(move |span| spans.export(span));
    again(|| {
        let (sleeper, connect, spans) = (sleeper.clone(), connect.clone(), Some(spans.clone()));
        baton_stock::sleep::run(id.as_str(), sleeper, connect, spans, shutdown.clone())
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_are_numbered_within_their_role() {
        let ids = |roles: &[Role], prefix| {
            let agents = stock(roles, prefix).unwrap();
            agents.into_iter().map(|agent| agent.id.to_string()).collect::<Vec<_>>()
        };
        let roles = [Role::Research, Role::Writing, Role::Research];
        assert_eq!(ids(&roles, None), ["research-1", "writing-1", "research-2"]);
        assert_eq!(ids(&roles[..1], Some("spare")), ["spare-research-1"]);
        assert!(stock(&roles, Some("No")).is_err());
    }
}
