//! `baton why`

use baton_client::now;
use baton_protocol::StageName;
use baton_protocol::budget::least;
use baton_protocol::why::{Lack, Missing, Why as Answer};
use clap::Args;

use crate::failure::Exit;
use crate::text::{ago, short, span, time};
use crate::{Context, pick};

/// Says what a stage of a run waits for: stages, an agent, room, pools, money, time, a report, or that the run is resumed
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
        Missing::Pool { pool, needs, free, size, waiting } => {
            let free = match (free, size) {
                (Some(free), Some(size)) => format!("of {size} there is {free} free"),
                _ => "somebody has it".to_owned(),
            };
            let others = if *waiting > 0 { format!("; {waiting} wait for it") } else { String::new() };
            format!("pool {pool}: it needs {needs}, {free}{others}")
        }
        Missing::Money { account, needs, left, size, currency, asked } => {
            let currency = currency.as_deref().map(|currency| format!(" {currency}")).unwrap_or_default();
            let needs = if *needs == least() { "more".to_owned() } else { format!("{needs}{currency}") };
            let left = match size {
                Some(size) => format!("{left} of {size}{currency} are left"),
                None => format!("{left}{currency} are left"),
            };
            let asked = asked.map(|since| format!("; somebody is asked for more since {}", ago(since, now)));
            format!("money of account {account}: it needs {needs}, {left}{}", asked.unwrap_or_default())
        }
        Missing::Items { under_way, most, waiting } => {
            format!(
                "one of {under_way} items to be over: {most} may be under way at a time, and {waiting} wait for that"
            )
        }
        Missing::Placement { agent } => format!("its placement: agent {agent} has room for it"),
        Missing::Attempt { attempt, at, error } => {
            let error = error.as_ref().map(|error| format!(": the last one failed, {}", short(error, 100)));
            let after = at.map(|at| format!(", in {}", span(at.saturating_sub(now)))).unwrap_or_default();
            format!("the time of attempt {attempt}{after}{}", error.unwrap_or_default())
        }
        Missing::Approval { ask, until } => {
            let ask = ask.as_ref().map(|ask| format!(": {}", short(ask, 100))).unwrap_or_default();
            format!("the approval of somebody, for {} yet{ask}", span(until.saturating_sub(now)))
        }
        Missing::Signal { signal, until } => {
            format!("the signal {signal}, for {} yet", span(until.saturating_sub(now)))
        }
        Missing::Run { run, since, until } => {
            let left = span(until.saturating_sub(now));
            format!("run {run}, which does it since {}; it is cancelled in {left}", ago(*since, now))
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
                { "stage": "d", "status": "ready", "missing": [
                    { "what": "money", "account": "run:1", "needs": "0.50", "left": "0.25", "size": "3", "currency": "EUR",
                      "asked": 1_763_665_100_000_u64 },
                    { "what": "pool", "pool": "gpu", "needs": 2, "free": 1, "size": 4, "waiting": 3 },
                    { "what": "pool", "pool": "report.md", "needs": 1, "waiting": 0 },
                ] },
                { "stage": "each", "status": "running", "missing": [
                    { "what": "items", "under_way": 2, "most": 2, "waiting": 7 },
                    { "what": "attempt", "attempt": 2, "at": 1_763_665_205_000_u64, "error": "no" },
                ] },
                { "stage": "paid", "status": "running", "missing": [
                    { "what": "signal", "signal": "paid", "until": 1_763_665_260_000_u64 }
                ] },
                { "stage": "sign", "status": "running", "missing": [
                    { "what": "approval", "ask": "Send it?", "until": 1_763_665_260_000_u64 }
                ] },
            ]
        }))
        .unwrap();
        expect![[r#"
            stage e is pending and waits for
              - stage d, which is pending
              - the run to be resumed: it is paused since 2025-11-20T19:00:00.000Z (lunch)
            in the end it waits for
              - stage a, which is running and waits for the report of agent ann, which has it since 10 s ago; it is given up in 60.0 s
              - stage b, which is ready and waits for room on agent ann: it needs cpu 2, of 3 there is 1 free
              - stage c, which is ready and waits for an agent that can do nobody: none is there
              - stage d, which is ready and waits for money of account run:1: it needs 0.5 EUR, 0.25 of 3 EUR are left; somebody is asked for more since 100 s ago; pool gpu: it needs 2, of 4 there is 1 free; 3 wait for it; pool report.md: it needs 1, somebody has it
              - stage each, which is running and waits for one of 2 items to be over: 2 may be under way at a time, and 7 wait for that; the time of attempt 2, in 5000 ms: the last one failed, no
              - stage paid, which is running and waits for the signal paid, for 60.0 s yet
              - stage sign, which is running and waits for the approval of somebody, for 60.0 s yet: Send it?
        "#]].assert_eq(&text(&why, 1_763_665_200_000));
    }
}
