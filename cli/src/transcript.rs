//! A run as a transcript: one line a record, in the order of the log.
//!
//! ```text
//! * 12.0        0 ms  run_started   article v1 {"topic":"leases"}            <- request run.start
//!   12.1        0 ms  stage_ready   research/1 for research                  <- request run.start
//! * 13.0        2 ms  assigned      research/1 to research-1, lease 7        <- request lease.assign
//! ```
//!
//! Position, time since the run's start, record, what it says, and after the arrow what led to it. A star marks the first
//! record of a commit: what stands from there to the next star was stored as one, or not at all.

use std::collections::BTreeSet;

use baton_protocol::pressure::PressureLevel;
use baton_protocol::record::{
    Event, LeftReason, OptimizerRecord, Outcome, Parent, ReleaseReason, ResourceRecord, StageEnded, WorkflowRecord,
};
use baton_protocol::{Json, Millis, Number, ResourceName, Service};

use crate::style::{Style, Tone};
use crate::text::{count, json, short, span};

/// How many characters of an input are shown.
const INPUT: usize = 44;
/// How many characters of an error are shown.
const ERROR: usize = 100;
/// How wide what a record says is, at the least.
const SAYS: usize = 58;

/// Writes records, one after another.
#[derive(Debug)]
pub(crate) struct Transcript {
    style: Style,
    /// When the run started.
    start: Option<Millis>,
    records: usize,
    commits: BTreeSet<u64>,
    last: Option<u64>,
}

impl Transcript {
    pub(crate) fn new(style: Style) -> Self {
        Self { style, start: None, ..Self::since(0, style) }
    }

    /// One that tells times from then on.
    pub(crate) fn since(start: Millis, style: Style) -> Self {
        Self { style, start: Some(start), records: 0, commits: BTreeSet::new(), last: None }
    }

    /// A record's line, without a line break.
    pub(crate) fn line(&mut self, event: &Event) -> String {
        let since = event.at.saturating_sub(*self.start.get_or_insert(event.at));
        let mark = if self.last == Some(event.position.seq) { " " } else { "*" };
        self.last = Some(event.position.seq);
        self.commits.insert(event.position.seq);
        self.records += 1;

        let (says, tone) = says(event);
        let gap = " ".repeat(SAYS.saturating_sub(says.chars().count()));
        let style = self.style;
        format!(
            "{} {} {:>9}  {} {}{gap}  {}",
            style.bold(mark),
            style.dim(&format!("{:<8}", event.position)),
            span(since),
            style.cyan(&format!("{:<13}", event.kind)),
            style.tone(tone, &says),
            style.dim(&format!("<- {}", event.cause)),
        )
    }

    /// How much there was.
    pub(crate) fn end(&self) -> String {
        format!("{} in {}", count(self.records, "record"), count(self.commits.len(), "commit"))
    }
}

/// A whole transcript.
pub(crate) fn transcript<'a>(events: impl IntoIterator<Item = &'a Event>, style: Style) -> String {
    let mut transcript = Transcript::new(style);
    let mut text = String::new();
    for event in events {
        text.push_str(&transcript.line(event));
        text.push('\n');
    }
    text + &transcript.end() + "\n"
}

/// What a record says. One that this Baton does not know is shown as it is.
fn says(event: &Event) -> (String, Tone) {
    let known = match event.service {
        Service::WorkflowManager => event.record.read().ok().map(|record| workflow(&record)),
        Service::ResourceManager => event.record.read().ok().map(|record| resource(event.number, &record)),
        Service::Optimizer => event.record.read().ok().map(|record| optimizer(&record)),
        Service::Gateway => None,
    };
    known.unwrap_or_else(|| (json(&event.record, INPUT), Tone::Plain))
}

fn workflow(record: &WorkflowRecord) -> (String, Tone) {
    match record {
        WorkflowRecord::WorkflowRegistered(r) => (
            format!("{} v{}, {}", r.definition.name, r.version, count(r.definition.stages.len(), "stage")),
            Tone::Plain,
        ),
        WorkflowRecord::RunStarted(r) => {
            let mut says = format!("{} v{} {}", r.workflow, r.version, json(&r.input, INPUT));
            if let Some(Parent { task, .. }) = r.parent.as_deref() {
                says = format!("{} does {}/{}: {says}", r.run, task.part(), task.attempt);
            }
            if r.priority != 0 {
                says.push_str(&format!(", priority {}", r.priority));
            }
            if let Some(key) = &r.key {
                says.push_str(&format!(", key {}", short(key, INPUT)));
            }
            if let Some(rerun) = &r.rerun {
                let kept = count(rerun.kept.len(), "stage");
                says.push_str(&format!(", repeats {} from {} on, {kept} kept", rerun.of, rerun.from));
            }
            for (key, value) in &r.metadata {
                says.push_str(&format!(", {key}={}", short(value, INPUT)));
            }
            (says, Tone::Plain)
        }
        WorkflowRecord::StageReady(r) => {
            let mut says = format!("{}/{} for {}", r.task.part(), r.task.attempt, r.agent_type);
            says.push_str(&needs(&r.resources));
            if r.speculative {
                says.push_str(&format!(
                    ", early: it counts if it is given {}",
                    r.input.as_ref().map_or_else(String::new, |input| json(input, INPUT))
                ));
            }
            (says, Tone::Plain)
        }
        WorkflowRecord::StageEnded(r) => ended(r),
        WorkflowRecord::StageExpanded(r) => {
            let items = r.items.read::<Vec<Json>>().map_or(0, |items| items.len());
            (format!("{}: {}", r.stage, count(items, "item")), Tone::Plain)
        }
        WorkflowRecord::StageWaits(r) => {
            (format!("{}: nobody has it, it waits for somebody's word", r.stage), Tone::Plain)
        }
        WorkflowRecord::StageCached(r) => {
            (format!("{} as in run {}: {}", r.stage, r.of, json(&r.result, ERROR)), Tone::Plain)
        }
        WorkflowRecord::StageCommitted(r) => {
            (format!("{}/{}: it was given what the stage is given", r.task.part(), r.task.attempt), Tone::Plain)
        }
        WorkflowRecord::CopyEnded(r) => {
            let why = r.error.as_ref().map(|error| format!(": {}", short(error, ERROR))).unwrap_or_default();
            let says = format!(
                "{}/{} {} by {}{why}; another agent goes on",
                r.task.part(),
                r.task.attempt,
                r.outcome,
                r.agent
            );
            (says, Tone::Plain)
        }
        WorkflowRecord::Signalled(r) => {
            let by = r.by.as_ref().map(|by| format!(" by {by}")).unwrap_or_default();
            (format!("{}{by}: {}", r.signal, short(r.payload.as_str(), ERROR)), Tone::Plain)
        }
        WorkflowRecord::StageSkipped(r) => (format!("{}: {}", r.stage, r.reason.text()), Tone::Plain),
        WorkflowRecord::RunPaused(r) => {
            (r.reason.as_ref().map(|reason| short(reason, ERROR)).unwrap_or_default(), Tone::Plain)
        }
        WorkflowRecord::RunResumed(_) => (String::new(), Tone::Plain),
        WorkflowRecord::RunsForgotten(r) => (count(r.runs.len(), "run"), Tone::Plain),
        WorkflowRecord::ScheduleSet(r) => {
            let state = if r.schedule.paused { ", paused" } else { "" };
            (format!("{} of {}{state}", r.name, r.schedule.workflow), Tone::Plain)
        }
        WorkflowRecord::TriggerSet(r) => {
            let state = if r.trigger.paused { ", paused" } else { "" };
            (format!("{} of {}{state}", r.name, r.trigger.then.workflow()), Tone::Plain)
        }
        WorkflowRecord::TriggerRemoved(r) => (format!("{} of {}", r.name, r.workflow), Tone::Plain),
        WorkflowRecord::EventRaised(r) => (format!("{} {}", r.event, short(&r.id, INPUT)), Tone::Plain),
        WorkflowRecord::TriggerFired(r) => (format!("{}: {}", r.name, r.outcome), Tone::Plain),
        WorkflowRecord::ScheduleRemoved(r) => (format!("{} of {}", r.name, r.workflow), Tone::Plain),
        WorkflowRecord::ScheduleFired(r) => (format!("{}: {}", r.name, r.outcome), Tone::Plain),
        WorkflowRecord::RunFinished(r) => {
            let reason = r.reason.as_ref().map(|reason| format!(": {}", short(reason, ERROR))).unwrap_or_default();
            (format!("{}{reason}", r.status), Tone::of(r.status.as_str()))
        }
    }
}

fn ended(record: &StageEnded) -> (String, Tone) {
    let mut says = format!("{}/{} {}", record.task.part(), record.task.attempt, record.outcome);
    if let (Some(agent), Some(lease)) = (&record.agent, record.lease) {
        says.push_str(&format!(" by {agent}, lease {lease}, {}", span(record.duration_ms)));
    }
    if !record.cost.is_zero() {
        says.push_str(&format!(", cost {}", record.cost));
    }
    if !record.usage.is_zero() {
        says.push_str(&format!(", tokens {} in {} out", record.usage.tokens_in, record.usage.tokens_out));
    }
    if let Some(code) = &record.code {
        says.push_str(&format!(" ({})", short(code, ERROR)));
    }
    if let Some(error) = &record.error {
        says.push_str(&format!(": {}", short(error, ERROR)));
    }
    if let Some(delegated) = &record.delegated {
        let then = if delegated.aggregate { ", to be put together" } else { "" };
        says.push_str(&format!(": {}{then}", count(delegated.definition.stages.len(), "stage")));
    }
    // What came of somebody's word; the result of an agent's work may be long.
    if let (None, Some(result)) = (record.lease, &record.result) {
        says.push_str(&format!(": {}", json(result, ERROR)));
    }
    if record.outcome.is_failure() && record.retry_at.is_some() {
        says.push_str("; another attempt follows");
    }
    if record.speculative {
        let then = match record.outcome {
            Outcome::Succeeded => "; it began early, and whether it counts is not known yet",
            _ => "; it began early: the stage begins when it is due",
        };
        says.push_str(then);
    }
    (says, Tone::of(record.outcome.as_str()))
}

fn resource(number: Number, record: &ResourceRecord) -> (String, Tone) {
    match record {
        ResourceRecord::AgentRegistered(r) => {
            (format!("{} for {}, {}", r.agent, r.agent_type, count(r.slots as usize, "slot")), Tone::Plain)
        }
        ResourceRecord::AgentLeft(r) => {
            let why = match r.reason {
                LeftReason::Left => "said goodbye",
                LeftReason::Lost => "was not heard of",
            };
            (format!("{} {why}", r.agent), Tone::Plain)
        }
        ResourceRecord::Assigned(r) => {
            // The record's number is the lease's id.
            let needs = needs(r.resources.iter().chain(&r.pools));
            let as_well = r.beside.map(|first| format!(" as well as under lease {first}")).unwrap_or_default();
            let (part, attempt) = (r.task.part(), r.task.attempt);
            (format!("{part}/{attempt} to {}, lease {number}{as_well}{needs}", r.agent), Tone::Plain)
        }
        ResourceRecord::LeaseEnded(r) => {
            let why = short(&r.reason, ERROR);
            (format!("{}/{} by {}, lease {}: {why}", r.task.part(), r.task.attempt, r.agent, r.lease), Tone::Busy)
        }
        ResourceRecord::HandoffOffered(r) => {
            let why = if r.reason.is_empty() { String::new() } else { format!(": {}", short(&r.reason, ERROR)) };
            let (part, attempt) = (r.task.part(), r.task.attempt);
            (format!("{part}/{attempt} by {} to {}, handoff {number}{why}", r.from, r.to), Tone::Plain)
        }
        ResourceRecord::HandedOver(r) => {
            let (part, attempt, needs) = (r.task.part(), r.task.attempt, needs(&r.resources));
            let which = format!("handoff {}, lease {number} for {}", r.handoff, r.lease);
            (format!("{part}/{attempt} from {} to {}, {which}{needs}", r.from, r.to), Tone::Good)
        }
        ResourceRecord::HandoffEnded(r) => {
            let how = if r.rejected { "rejected by" } else { "not answered by" };
            let why = if r.reason.is_empty() { String::new() } else { format!(": {}", short(&r.reason, ERROR)) };
            let (part, attempt) = (r.task.part(), r.task.attempt);
            let says = format!("{part}/{attempt} {how} {}, {} goes on, handoff {}{why}", r.to, r.from, r.handoff);
            (says, Tone::Busy)
        }
        ResourceRecord::BreakerOpened(r) => {
            (format!("{} for {}: {} of {} failed", r.agent, r.capability, r.failed, r.of), Tone::Bad)
        }
        ResourceRecord::BreakerHalfOpened(r) => {
            (format!("{} for {}, {}", r.agent, r.capability, count(r.probes as usize, "probe")), Tone::Busy)
        }
        ResourceRecord::AlertRaised(r) => {
            (format!("{}, {}: {}", r.severity, r.kind, short(&r.message, ERROR)), Tone::Bad)
        }
        ResourceRecord::AlertCleared(r) => (format!("{} about {}, alert {}", r.kind, r.about, r.alert), Tone::Good),
        ResourceRecord::AlertAcknowledged(r) => (format!("{}, alert {}", r.kind, r.alert), Tone::Plain),
        ResourceRecord::PressureChanged(r) => {
            let waiting = count(usize::try_from(r.waiting).unwrap_or(usize::MAX), "task");
            let says = format!("{}: {waiting} waiting, {} slots", r.level, r.slots);
            match r.level {
                PressureLevel::None => (says, Tone::Good),
                PressureLevel::Elevated | PressureLevel::Critical => {
                    (format!("{says}; below {} waits", r.below), Tone::Bad)
                }
            }
        }
        ResourceRecord::BreakerClosed(r) => (format!("{} for {}", r.agent, r.capability), Tone::Good),
        ResourceRecord::PoolSet(r) => {
            let size = r.pool.size.map_or_else(|| "lock".to_owned(), |size| format!("size {size}"));
            (format!("{}: {}, {size}", r.name, r.pool.kind), Tone::Plain)
        }
        ResourceRecord::PoolRemoved(r) => (r.name.to_string(), Tone::Plain),
        ResourceRecord::Acquired(r) => (format!("lease {number} of {}{}", r.holder, needs(&r.takes)), Tone::Plain),
        ResourceRecord::Renewed(r) => (format!("lease {} for {}", r.lease, span(r.ttl_ms)), Tone::Plain),
        ResourceRecord::Released(r) => match r.reason {
            ReleaseReason::Released => (format!("lease {}{}", r.lease, needs(&r.used)), Tone::Plain),
            ReleaseReason::Expired => (format!("lease {}: its time was up", r.lease), Tone::Busy),
        },
        ResourceRecord::ApprovalAsked(r) => {
            let what =
                r.task.as_ref().map(|task| format!(", for {}/{}", task.part(), task.attempt)).unwrap_or_default();
            (format!("{} has not the {} that are wanted{what}", r.account, r.wanted), Tone::Busy)
        }
        ResourceRecord::BudgetRefused(r) => {
            let what = r.task.as_ref().map_or_else(|| r.account.to_string(), |t| format!("{}/{}", t.part(), t.attempt));
            (format!("{what}: {}", short(&r.reason, ERROR)), Tone::Bad)
        }
    }
}

fn optimizer(record: &OptimizerRecord) -> (String, Tone) {
    match record {
        OptimizerRecord::StrategyChanged(r) => (r.strategy.as_str().to_owned(), Tone::Plain),
        OptimizerRecord::LearningImported(r) => (format!("{} lessons", r.lessons.len()), Tone::Plain),
        OptimizerRecord::LearningRateChanged(r) => (format!("{}", f64::from(r.millionths) / 1e6), Tone::Plain),
    }
}

fn needs<'a, T: std::fmt::Display + 'a>(taken: impl IntoIterator<Item = (&'a ResourceName, &'a T)>) -> String {
    let list: Vec<_> = taken.into_iter().map(|(name, amount)| format!("{name} {amount}")).collect();
    if list.is_empty() { String::new() } else { format!(" with {}", list.join(", ")) }
}

#[cfg(test)]
mod tests {
    use baton_protocol::record::{
        AnyCommit, Assigned, Cause, Commit, FORMAT, LeaseEnded, Outcome, Record, RunFinished, RunStarted, StageReady,
        Turn,
    };
    use baton_protocol::request::Usage;
    use baton_protocol::run::RunStatus;
    use baton_protocol::{AgentId, Capability, LeaseId, RunId, StageName, TaskId, WorkflowName};
    use expect_test::{Expect, expect};

    use super::*;

    const START: Millis = 1_763_665_200_000;

    fn task(stage: &str, attempt: u32) -> TaskId {
        TaskId { run: RunId::derive(START, 1), stage: StageName::new(stage).unwrap(), item: None, attempt }
    }

    fn agent(name: &str) -> AgentId {
        AgentId::new(name).unwrap()
    }

    fn started() -> WorkflowRecord {
        WorkflowRecord::RunStarted(RunStarted {
            run: RunId::derive(START, 1),
            workflow: WorkflowName::new("article").unwrap(),
            version: 1,
            input: Json::from_text(r#"{"topic":"leases"}"#.to_owned()).unwrap(),
            priority: 0,
            key: None,
            trace: None,
            strategy: None,
            due: None,
            budget: None,
            metadata: Default::default(),
            rerun: None,
            parent: None,
            no_cache: false,
        })
    }

    fn ready(stage: &str, attempt: u32) -> WorkflowRecord {
        WorkflowRecord::StageReady(StageReady {
            task: task(stage, attempt),
            agent_type: Capability::new(stage).unwrap(),
            requires: Default::default(),
            inputs: vec![],
            input: None,
            cache: None,
            hedge: false,
            speculative: false,
            resources: [("cpu".parse().unwrap(), 2.into())].into(),
            priority: 0,
        })
    }

    fn assigned(stage: &str, attempt: u32, by: &str) -> ResourceRecord {
        ResourceRecord::Assigned(Assigned {
            task: task(stage, attempt),
            agent: agent(by),
            resources: [].into(),
            pools: [].into(),
            beside: None,
        })
    }

    fn end(stage: &str, attempt: u32, lease: u64, outcome: Outcome) -> WorkflowRecord {
        let ok = outcome == Outcome::Succeeded;
        WorkflowRecord::StageEnded(StageEnded {
            task: task(stage, attempt),
            lease: Some(LeaseId(lease)),
            agent: Some(agent("research-1")),
            outcome,
            result: None,
            error: (!ok).then(|| "the model\nis away".to_owned()),
            hopeless: false,
            code: None,
            retry_at: (!ok).then_some(START + 2000),
            duration_ms: 29,
            cost: if ok { "0.02".parse().unwrap() } else { baton_protocol::Money::default() },
            usage: if ok { Usage { tokens_in: 10, tokens_out: 3 } } else { Usage::default() },
            model: None,
            delegated: None,
            speculative: false,
            other: None,
        })
    }

    fn commit<R: Record>(first: Number, turns: Vec<(Millis, Cause, Vec<R>)>) -> Commit<R> {
        let turns = turns.into_iter().map(|(at, cause, records)| Turn { at, seen: 0, cause, records }).collect();
        Commit { format: FORMAT, instance: "i".to_owned(), term: 1, first, handled: 0, turns }
    }

    fn check(commits: &[(u64, AnyCommit)], expected: &Expect) {
        let events: Vec<Event> = commits.iter().flat_map(|(seq, commit)| commit.events(*seq).unwrap()).collect();
        expected.assert_eq(&transcript(&events, Style::plain()));
    }

    #[test]
    fn a_run_is_told_line_by_line() {
        let request = |endpoint: &str| Cause::Request(endpoint.to_owned().into());
        let lease_ended = ResourceRecord::LeaseEnded(LeaseEnded {
            lease: LeaseId(7),
            task: task("research", 2),
            agent: agent("research-2"),
            reason: "declined: busy".to_owned(),
            silent: false,
        });
        let finished = WorkflowRecord::RunFinished(RunFinished {
            run: RunId::derive(START, 1),
            status: RunStatus::Succeeded,
            reason: None,
        });
        let workflow = |first, turns| AnyCommit::Workflow(commit(first, turns));
        let resource = |first, turns| AnyCommit::Resource(commit(first, turns));
        check(
            &[
                (12, workflow(3, vec![(START, request("run.start"), vec![started(), ready("research", 1)])])),
                (
                    13,
                    resource(
                        6,
                        vec![(START + 2, request("lease.assign"), vec![assigned("research", 1, "research-1")])],
                    ),
                ),
                (
                    14,
                    workflow(
                        5,
                        vec![(START + 31, request("agent.report"), vec![end("research", 1, 6, Outcome::Failed)])],
                    ),
                ),
                (15, workflow(6, vec![(START + 2000, Cause::Timer, vec![ready("research", 2)])])),
                (
                    16,
                    resource(
                        7,
                        vec![
                            (START + 2001, request("lease.assign"), vec![assigned("research", 2, "research-2")]),
                            (START + 2003, request("agent.decline"), vec![lease_ended]),
                            (START + 2004, request("lease.assign"), vec![assigned("research", 2, "research-1")]),
                        ],
                    ),
                ),
                (
                    19,
                    workflow(
                        7,
                        vec![(
                            START + 61_000,
                            request("agent.report"),
                            vec![end("research", 2, 9, Outcome::Succeeded), finished],
                        )],
                    ),
                ),
            ],
            &expect![[r#"
                * 12.0          0 ms  run_started   article v1 {"topic":"leases"}                               <- request run.start
                  12.1          0 ms  stage_ready   research/1 for research with cpu 2                          <- request run.start
                * 13.0          2 ms  assigned      research/1 to research-1, lease 6                           <- request lease.assign
                * 14.0         31 ms  stage_ended   research/1 failed by research-1, lease 6, 29 ms: the model is away; another attempt follows  <- request agent.report
                * 15.0       2000 ms  stage_ready   research/2 for research with cpu 2                          <- timer
                * 16.0       2001 ms  assigned      research/2 to research-2, lease 7                           <- request lease.assign
                  16.1       2003 ms  lease_ended   research/2 by research-2, lease 7: declined: busy           <- request agent.decline
                  16.2       2004 ms  assigned      research/2 to research-1, lease 9                           <- request lease.assign
                * 19.0        61.0 s  stage_ended   research/2 succeeded by research-1, lease 9, 29 ms, cost 0.02, tokens 10 in 3 out  <- request agent.report
                  19.1        61.0 s  run_finished  succeeded                                                   <- request agent.report
                10 records in 6 commits
            "#]],
        );
    }

    #[test]
    fn a_record_of_a_newer_baton_is_shown_as_it_is() {
        let mut event = AnyCommit::Workflow(commit(1, vec![(START, Cause::Lead, vec![started()])])).events(4).unwrap();
        event[0].record = Json::from_text(r#"{"run_pondered":{"deeply":true}}"#.to_owned()).unwrap();
        event[0].kind = "run_pondered".to_owned();
        expect![[r#"
            * 4.0           0 ms  run_pondered  {"run_pondered":{"deeply":true}}                            <- term began
            1 record in 1 commit
        "#]].assert_eq(&transcript(&event, Style::plain()));
    }
}
