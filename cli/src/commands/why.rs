//! `baton why`

use baton_client::now;
use baton_protocol::StageName;
use baton_protocol::why::{Lack, Missing, Why as Answer};
use clap::Args;

use crate::failure::Exit;
use crate::text::{ago, short, span, time};
use crate::{Context, pick};

/// Says what a stage of a run waits for: stages, an agent, room, time, a report, or that the run is resumed
#[derive(Debug, Args)]
pub(crate) struct Why {
    /// The run: its id, a part of it, or `last`
    run: String,
    /// The stage
    stage: StageName,
    /// Write the answer as JSON
    #[arg(long)]
    json: bool,
}

impl Why {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let client = context.client().await?;
        let run = pick::run(&client, &self.run).await?;
        let why = client.why(run, &self.stage).await?;
        if self.json {
            context.out.json(&why)?;
        } else {
            context.out.text(&text(&why, now()))?;
        }
        Ok(Exit::Done)
    }
}

fn text(why: &Answer, now: u64) -> String {
    let mut text = format!("stage {} is {}", why.stage, why.status);
    if why.run_status.is_end() {
        return format!("{text}, and its run is over: {}\n", why.run_status);
    }
    if why.missing.is_empty() {
        return format!(
            "{text}{}\n",
            if why.status.is_end() { "" } else { " and waits for nothing: it is about to begin" }
        );
    }
    text.push_str(" and waits for\n");
    for missing in &why.missing {
        text.push_str(&format!("  - {}\n", say(missing, now)));
    }
    if !why.roots.is_empty() {
        text.push_str("in the end it waits for\n");
        for root in &why.roots {
            let missing: Vec<_> = root.missing.iter().map(|missing| say(missing, now)).collect();
            let missing = if missing.is_empty() { "nothing".to_owned() } else { missing.join("; ") };
            text.push_str(&format!("  - stage {}, which is {} and waits for {missing}\n", root.stage, root.status));
        }
    }
    text
}

fn say(missing: &Missing, now: u64) -> String {
    match missing {
        Missing::Stage { stage, status } => format!("stage {stage}, which is {status}"),
        Missing::Resume { since, reason } => {
            let reason = reason.as_ref().map(|reason| format!(" ({})", short(reason, 100))).unwrap_or_default();
            format!("the run to be resumed: it is paused since {}{reason}", time(*since))
        }
        Missing::Alone { stages } => {
            let stages: Vec<_> = stages.iter().map(StageName::as_str).collect();
            format!("the end of what does not run beside it: {}", short(&stages.join(", "), 200))
        }
        Missing::Agent { agent_type } => format!("an agent that can do {agent_type}: none is there"),
        Missing::Unfit { agent, requires } => {
            format!("an agent that meets what it requires: {agent} does not meet {requires}")
        }
        Missing::Breaker { agent, until } => {
            let after = until.map(|until| format!(" in {}", span(until.saturating_sub(now)))).unwrap_or_default();
            format!("agent {agent} to be tried again{after}: too many such tasks failed under it")
        }
        Missing::Room { agent, lacks } => {
            let lacks: Vec<_> = lacks.iter().map(lack).collect();
            format!("room on agent {agent}: {}", lacks.join(", "))
        }
        Missing::Placement { agent } => format!("its placement: agent {agent} has room for it"),
        Missing::Attempt { attempt, error } => {
            let error = error.as_ref().map(|error| format!(": the last one failed, {}", short(error, 100)));
            format!("the time of attempt {attempt}{}", error.unwrap_or_default())
        }
        Missing::Report { agent, since, until } => {
            let left = span(until.saturating_sub(now));
            format!("the report of agent {agent}, which has it since {}; it is given up in {left}", ago(*since, now))
        }
    }
}

fn lack(lack: &Lack) -> String {
    let Lack { resource, needs, free, has } = lack;
    format!("it needs {resource} {needs}, of {has} there is {free} free")
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use serde_json::json;

    use super::*;

    #[test]
    fn w13_what_is_missing_is_said_in_words() {
        let why: Answer = serde_json::from_value(json!({
            "run": "0199a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b", "run_status": "running", "stage": "e", "status": "pending",
            "missing": [
                { "what": "stage", "stage": "d", "status": "pending" },
                { "what": "resume", "since": 1_763_665_200_000_u64, "reason": "lunch" },
            ],
            "roots": [
                { "stage": "a", "status": "running", "missing": [
                    { "what": "report", "agent": "ann", "since": 1_763_665_190_000_u64, "until": 1_763_665_260_000_u64 }
                ] },
                { "stage": "b", "status": "ready", "missing": [{ "what": "room", "agent": "ann", "lacks": [
                    { "resource": "cpu", "needs": "2", "free": "1", "has": "3" }
                ] }] },
                { "stage": "c", "status": "ready", "missing": [{ "what": "agent", "agent_type": "nobody" }] },
            ]
        }))
        .unwrap();
        expect![[r#""#]].assert_eq(&text(&why, 1_763_665_200_000));
    }
}
