//! `baton alerts`

use baton_client::now;
use baton_protocol::Number;
use baton_protocol::alert::{AlertKind, AlertSeverity, AlertView};
use baton_protocol::request::{AcknowledgeAlert, AlertList, ListAlerts};
use clap::Args;

use crate::Context;
use crate::failure::Exit;
use crate::follow::follow;
use crate::output::{Cell, Table};
use crate::style::Tone;
use crate::text::ago;

/// Lists alerts, the latest first: those that are not over, and those that nobody has acknowledged; or acknowledges some
#[derive(Debug, Args)]
pub(crate) struct Alerts {
    /// Also those that are over and acknowledged
    #[arg(long)]
    all: bool,
    /// Only those that matter at least so much: informational, warning or critical
    #[arg(long, value_name = "WORD")]
    severity: Option<AlertSeverity>,
    /// Only those of this kind: agent_lost, breaker_opened, agent_restart, queue_depth, run_failed, pool_used, budget_used or pressure
    #[arg(long, value_name = "WORD")]
    kind: Option<AlertKind>,
    /// At most so many
    #[arg(long, value_name = "COUNT", default_value_t = 100)]
    limit: u32,
    /// Acknowledge this one; may be given several times
    #[arg(long, value_name = "ID")]
    ack: Vec<Number>,
    /// Who acknowledges, for those who read it later; the user's name if nothing is said
    #[arg(long, value_name = "NAME", requires = "ack")]
    by: Option<String>,
    /// Go on until Ctrl-C, and show it again whenever it changes
    #[arg(long, short, conflicts_with = "ack")]
    follow: bool,
    /// Write the answer as JSON; one a line with --follow
    #[arg(long)]
    json: bool,
}

impl Alerts {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let client = context.client().await?;
        if !self.ack.is_empty() {
            let user = || std::env::var("USER").ok().filter(|user| !user.is_empty());
            let by = self.by.or_else(user);
            for alert in &self.ack {
                client.acknowledge_alert(&AcknowledgeAlert { alert: *alert, by: by.clone() }).await?;
            }
            return Ok(Exit::Done);
        }
        let Self { all, severity, kind, limit, .. } = self;
        let request = ListAlerts { all, severity, kind, limit: Some(limit), before: None };
        if self.follow {
            return follow(context, client.live_alerts(request).await?, self.json, table).await;
        }
        let list = client.list_alerts(&request).await?;
        if self.json {
            context.out.json(&list)?;
        } else {
            context.out.table(&table(&list))?;
        }
        Ok(Exit::Done)
    }
}

fn table(list: &AlertList) -> Table {
    let mut table = Table::new([">id", "severity", "kind", "about", "raised", "stands", "says"]);
    for alert in &list.alerts {
        table.row(row(alert, now()));
    }
    table
}

fn row(alert: &AlertView, now: u64) -> Vec<Cell> {
    let tone = match (alert.cleared_at, alert.severity) {
        (Some(_), _) => Tone::Faint,
        (None, AlertSeverity::Critical) => Tone::Bad,
        (None, AlertSeverity::Warning) => Tone::Busy,
        (None, AlertSeverity::Informational) => Tone::Plain,
    };
    let over = alert.cleared_at.map(|at| format!("over {}", ago(at, now)));
    let seen = alert.acknowledged_at.map(|at| match &alert.acknowledged_by {
        Some(by) => format!("seen by {by} {}", ago(at, now)),
        None => format!("seen {}", ago(at, now)),
    });
    let stands: Vec<_> = over.into_iter().chain(seen).collect();
    vec![
        alert.alert.to_string().into(),
        Cell::toned(alert.severity.as_str(), tone),
        alert.kind.as_str().into(),
        alert.about.clone().into(),
        ago(alert.raised_at, now).into(),
        if stands.is_empty() { "new".to_owned() } else { stands.join(", ") }.into(),
        alert.message.clone().into(),
    ]
}
