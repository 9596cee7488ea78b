//! The history checker: what the log says, held against what clients and agents were told.
//!
//! It knows the protocol and not the services: it folds the log by itself and shares no rule with them. Feed it the
//! whole log and all notes, after everything has come to rest.

use std::collections::{BTreeMap, BTreeSet};

use baton_protocol::record::{AnyCommit, Commit, Outcome, Record, ResourceRecord, StageEnded, Stamp, WorkflowRecord};
use baton_protocol::run::RunStatus;
use baton_protocol::{AgentId, Code, LeaseId, Millis, Number, Part, RunId, Service, StageName, TaskId};

use crate::notes::{ClientNote, ReportNote, TaskResult};

#[cfg(test)]
mod tests;

/// Everything that is known of what happened.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// The log, each message with its sequence.
    pub commits: Vec<(u64, AnyCommit)>,
    /// What clients noted, in the order of their notes.
    pub clients: Vec<ClientNote>,
    /// What agents noted.
    pub agents: Vec<ReportNote>,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Somebody was promised something that is not there.
    Lost,
    /// Something counts twice.
    Duplicated,
    /// Another rule is broken.
    Violated,
}

/// The rules that are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// An accepted run is in the log.
    AcceptedRunStarted,
    /// An accepted run has an end.
    AcceptedRunEnded,
    /// A report that an agent was told is stored is in the log, under its lease, with its result.
    StoredReportCounted,
    /// A run starts once.
    StartsOnce,
    /// A run ends once.
    EndsOnce,
    /// One key gives one run.
    OneRunAKey,
    /// An attempt ends once.
    AttemptEndsOnce,
    /// A stage succeeds once.
    StageSucceedsOnce,
    /// A task is assigned once.
    AssignedOnce,
    /// Nothing happens to a run after its end.
    NothingAfterTheEnd,
    /// A stage ends under the lease that its task was assigned with.
    UnderItsLease,
    /// Nothing counts under a lease whose end its writer had seen.
    NotUnderAnEndedLease,
    /// What clients were told is what the log says.
    ToldWhatIsLogged,
    /// A run that was started and is in no note ends too, and no attempt stays open.
    NothingStaysOpen,
    /// Sequences and record numbers have no gaps.
    NoGaps,
    /// Terms never fall.
    TermsNeverFall,
    /// One instance a term.
    OneLeaderATerm,
}

impl Rule {
    /// How bad it is when it is broken.
    #[must_use]
    pub fn class(self) -> Class {
        match self {
            Self::AcceptedRunStarted | Self::AcceptedRunEnded | Self::StoredReportCounted => Class::Lost,
            Self::StartsOnce
            | Self::EndsOnce
            | Self::OneRunAKey
            | Self::AttemptEndsOnce
            | Self::StageSucceedsOnce
            | Self::AssignedOnce => Class::Duplicated,
            Self::NothingAfterTheEnd
            | Self::UnderItsLease
            | Self::NotUnderAnEndedLease
            | Self::ToldWhatIsLogged
            | Self::NothingStaysOpen
            | Self::NoGaps
            | Self::TermsNeverFall
            | Self::OneLeaderATerm => Class::Violated,
        }
    }
}

/// A rule that is broken.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Finding {
    /// Which.
    pub rule: Rule,
    /// About when, in milliseconds since 1970: when somebody was told, or what the log says.
    pub at: Millis,
    /// What was found.
    pub what: String,
}

/// What is in the history.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
pub struct Counts {
    /// Messages of the log.
    pub commits: u64,
    /// Runs that clients were told are accepted.
    pub accepted: u64,
    /// Runs that clients were told are refused.
    pub refused: u64,
    /// Runs in the log that no client noted: bad messages that were none, or a client that was cut off.
    pub strays: u64,
    /// Runs by their end.
    pub ended: BTreeMap<RunStatus, u64>,
    /// Stages that succeeded.
    pub stages: u64,
    /// Attempts by their end.
    pub attempts: BTreeMap<Outcome, u64>,
    /// Reports that agents were told are stored.
    pub reports_stored: u64,
    /// Reports that agents were told change nothing.
    pub reports_refused: u64,
    /// Of those, the ones that the log counts all the same: they were stored before, and asked for again too late.
    pub reports_refused_but_counted: u64,
    /// How long the log spans, in milliseconds.
    pub span_ms: Millis,
}

/// What the checker says.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
pub struct Verdict {
    /// The rules that are broken.
    pub findings: Vec<Finding>,
    /// What is in the history.
    pub counts: Counts,
}

impl Verdict {
    /// How many findings are of that class.
    #[must_use]
    pub fn count(&self, class: Class) -> usize {
        self.findings.iter().filter(|finding| finding.rule.class() == class).count()
    }
}

/// Checks a history.
#[must_use]
pub fn check(history: &History) -> Verdict {
    let mut checker = Checker::default();
    checker.read_log(&history.commits);
    checker.check_runs();
    checker.check_clients(&history.clients);
    checker.check_agents(&history.agents);
    let mut verdict = checker.verdict;
    verdict.findings.sort_by_key(|finding| finding.at);
    verdict
}

#[derive(Default)]
struct Checker {
    verdict: Verdict,
    writers: BTreeMap<Service, Writer>,
    leaders: BTreeMap<(Service, u64), String>,
    runs: BTreeMap<RunId, Run>,
    keys: BTreeMap<String, BTreeSet<RunId>>,
    tasks: BTreeMap<TaskId, Task>,
    leases: BTreeMap<LeaseId, Lease>,
    sessions: BTreeMap<AgentId, Option<String>>,
    first_at: Option<Millis>,
    last_at: Millis,
}

/// How far a service's commits were read.
struct Writer {
    next: Number,
    term: u64,
}

#[derive(Default)]
struct Run {
    at: Millis,
    starts: u32,
    key: Option<String>,
    ends: Vec<RunStatus>,
    /// What succeeded: stages, and items of stages.
    succeeded: BTreeSet<Part>,
    /// The results of the stages that succeeded.
    results: BTreeMap<StageName, Option<String>>,
    noted: bool,
}

#[derive(Default)]
struct Task {
    at: Millis,
    ready: bool,
    leases: Vec<LeaseId>,
    ends: Vec<End>,
}

struct End {
    lease: Option<LeaseId>,
    outcome: Outcome,
    /// What it came to: the result, or the error.
    text: String,
}

struct Lease {
    task: TaskId,
    agent: AgentId,
    /// The sequence of the resource-manager's message that ended it.
    over: Option<u64>,
}

impl Checker {
    fn find(&mut self, rule: Rule, at: Millis, what: String) {
        self.verdict.findings.push(Finding { rule, at, what });
    }

    fn require(&mut self, holds: bool, rule: Rule, at: Millis, what: impl FnOnce() -> String) {
        if !holds {
            self.find(rule, at, what());
        }
    }

    // The log.

    fn read_log(&mut self, commits: &[(u64, AnyCommit)]) {
        for (index, (seq, commit)) in commits.iter().enumerate() {
            let expected = index as u64 + 1;
            self.require(*seq == expected, Rule::NoGaps, self.last_at, || {
                format!("message {expected} of the log has the sequence {seq}")
            });
            match commit {
                AnyCommit::Workflow(commit) => {
                    self.commit(*seq, commit);
                    commit.stamped().for_each(|(stamp, record)| self.workflow(stamp, record));
                }
                AnyCommit::Resource(commit) => {
                    self.commit(*seq, commit);
                    commit.stamped().for_each(|(stamp, record)| self.resource(*seq, stamp, record));
                }
                AnyCommit::Optimizer(commit) => self.commit(*seq, commit),
            }
        }
        self.verdict.counts.commits = commits.len() as u64;
        self.verdict.counts.span_ms = self.last_at.saturating_sub(self.first_at.unwrap_or(self.last_at));
    }

    fn commit<R: Record>(&mut self, seq: u64, commit: &Commit<R>) {
        let (service, term) = (R::SERVICE, commit.term);
        for turn in &commit.turns {
            self.first_at.get_or_insert(turn.at);
            self.last_at = self.last_at.max(turn.at);
        }
        let at = self.last_at;
        let (next, last_term) = self.writers.get(&service).map_or((1, 0), |writer| (writer.next, writer.term));
        self.require(commit.first == next, Rule::NoGaps, at, || {
            format!("message {seq}: {service} goes on with record {}, not {next}", commit.first)
        });
        self.require(term >= last_term, Rule::TermsNeverFall, at, || {
            format!("message {seq}: {service} commits in term {term} after term {last_term}")
        });
        let leader = self.leaders.entry((service, term)).or_insert_with(|| commit.instance.clone()).clone();
        self.require(leader == commit.instance, Rule::OneLeaderATerm, at, || {
            format!("message {seq}: {service} {} commits in term {term} of {leader}", commit.instance)
        });
        self.writers.insert(service, Writer { next: commit.first + commit.len(), term });
    }

    fn workflow(&mut self, stamp: Stamp, record: &WorkflowRecord) {
        let run = match record {
            WorkflowRecord::WorkflowRegistered(_)
            | WorkflowRecord::RunsForgotten(_)
            | WorkflowRecord::ScheduleSet(_)
            | WorkflowRecord::ScheduleRemoved(_)
            | WorkflowRecord::ScheduleFired(_)
            | WorkflowRecord::TriggerSet(_)
            | WorkflowRecord::TriggerRemoved(_)
            | WorkflowRecord::EventRaised(_)
            | WorkflowRecord::TriggerFired(_) => return,
            WorkflowRecord::RunPaused(record) => record.run,
            WorkflowRecord::RunResumed(record) => record.run,
            WorkflowRecord::RunStarted(record) => record.run,
            WorkflowRecord::StageReady(record) => record.task.run,
            WorkflowRecord::StageEnded(record) => record.task.run,
            WorkflowRecord::StageSkipped(record) => record.run,
            WorkflowRecord::StageExpanded(record) => record.run,
            WorkflowRecord::StageWaits(record) => record.run,
            WorkflowRecord::Signalled(record) => record.run,
            WorkflowRecord::StageCached(record) => record.run,
            WorkflowRecord::StageCommitted(record) => record.task.run,
            WorkflowRecord::CopyEnded(record) => record.task.run,
            WorkflowRecord::RunFinished(record) => record.run,
        };
        let facts = self.runs.entry(run).or_default();
        let ended = !facts.ends.is_empty();
        let number = stamp.number;
        match record {
            WorkflowRecord::WorkflowRegistered(_)
            | WorkflowRecord::StageSkipped(_)
            | WorkflowRecord::StageExpanded(_)
            | WorkflowRecord::RunsForgotten(_)
            | WorkflowRecord::ScheduleSet(_)
            | WorkflowRecord::ScheduleRemoved(_)
            | WorkflowRecord::ScheduleFired(_)
            | WorkflowRecord::TriggerSet(_)
            | WorkflowRecord::TriggerRemoved(_)
            | WorkflowRecord::EventRaised(_)
            | WorkflowRecord::TriggerFired(_)
            | WorkflowRecord::RunPaused(_)
            | WorkflowRecord::RunResumed(_)
            | WorkflowRecord::StageWaits(_)
            | WorkflowRecord::StageCached(_)
            | WorkflowRecord::StageCommitted(_)
            | WorkflowRecord::CopyEnded(_)
            | WorkflowRecord::Signalled(_) => {}
            WorkflowRecord::RunStarted(record) => {
                facts.starts += 1;
                facts.at = stamp.at;
                facts.key.clone_from(&record.key);
                if let Some(key) = &record.key {
                    self.keys.entry(key.clone()).or_default().insert(run);
                }
            }
            WorkflowRecord::StageReady(record) => {
                let task = self.tasks.entry(record.task.clone()).or_default();
                (task.at, task.ready) = (stamp.at, true);
            }
            WorkflowRecord::StageEnded(record) => self.ended(stamp, record),
            WorkflowRecord::RunFinished(record) => facts.ends.push(record.status),
        }
        // A second end is told as such.
        let another_end = matches!(record, WorkflowRecord::RunFinished(_) | WorkflowRecord::RunStarted(_));
        self.require(!ended || another_end, Rule::NothingAfterTheEnd, stamp.at, || {
            format!("run {run} goes on after its end with {} (record {number})", record.kind())
        });
    }

    fn ended(&mut self, stamp: Stamp, record: &StageEnded) {
        let StageEnded { task, lease, agent, outcome, result, error, .. } = record;
        *self.verdict.counts.attempts.entry(*outcome).or_default() += 1;
        let text = result.as_ref().map(|result| result.as_str().to_owned()).or_else(|| error.clone());
        let facts = self.tasks.entry(task.clone()).or_default();
        facts.at = stamp.at;
        facts.ends.push(End { lease: *lease, outcome: *outcome, text: text.unwrap_or_default() });
        if let Some(lease) = lease {
            let granted = self.leases.get(lease);
            let over = granted.and_then(|granted| granted.over);
            let known = granted.is_some_and(|granted| granted.task == *task && Some(&granted.agent) == agent.as_ref());
            self.require(known, Rule::UnderItsLease, stamp.at, || {
                format!("task {task} ended under lease {lease} of {agent:?}, which was not granted for it before")
            });
            let reported = matches!(outcome, Outcome::Succeeded | Outcome::Failed);
            self.require(
                !reported || over.is_none_or(|over| over > stamp.seen),
                Rule::NotUnderAnEndedLease,
                stamp.at,
                || format!("task {task} {outcome} under lease {lease}, whose end its writer had read"),
            );
        }
        if *outcome == Outcome::Succeeded {
            self.verdict.counts.stages += 1;
            let result = result.as_ref().map(|result| result.as_str().to_owned());
            let facts = self.runs.entry(task.run).or_default();
            let again = !facts.succeeded.insert(task.part());
            if task.item.is_none() {
                facts.results.insert(task.stage.clone(), result);
            }
            self.require(!again, Rule::StageSucceedsOnce, stamp.at, || {
                format!("stage {} of run {} succeeded again, as task {task}", task.part(), task.run)
            });
        }
    }

    fn resource(&mut self, seq: u64, stamp: Stamp, record: &ResourceRecord) {
        match record {
            ResourceRecord::Assigned(record) => {
                let lease = LeaseId(stamp.number);
                let granted = Lease { task: record.task.clone(), agent: record.agent.clone(), over: None };
                self.leases.insert(lease, granted);
                let task = self.tasks.entry(record.task.clone()).or_default();
                task.at = stamp.at;
                // Beside another one it is a second copy.
                task.leases.extend(record.beside.is_none().then_some(lease));
            }
            ResourceRecord::LeaseEnded(record) => {
                if let Some(lease) = self.leases.get_mut(&record.lease) {
                    lease.over.get_or_insert(seq);
                }
            }
            ResourceRecord::HandedOver(record) => {
                if let Some(before) = self.leases.get_mut(&record.lease) {
                    before.over.get_or_insert(seq);
                }
                let lease = LeaseId(stamp.number);
                let taken = Lease { task: record.task.clone(), agent: record.to.clone(), over: None };
                self.leases.insert(lease, taken);
                let task = self.tasks.entry(record.task.clone()).or_default();
                task.at = stamp.at;
                // The task has one lease at a time: this one in place of the giver's.
                task.leases.retain(|held| *held != record.lease);
                task.leases.push(lease);
            }
            ResourceRecord::HandoffOffered(_)
            | ResourceRecord::HandoffEnded(_)
            | ResourceRecord::BreakerOpened(_)
            | ResourceRecord::BreakerHalfOpened(_)
            | ResourceRecord::BreakerClosed(_)
            | ResourceRecord::AlertRaised(_)
            | ResourceRecord::AlertCleared(_)
            | ResourceRecord::AlertAcknowledged(_)
            | ResourceRecord::PressureChanged(_) => {}
            ResourceRecord::PoolSet(_)
            | ResourceRecord::PoolRemoved(_)
            | ResourceRecord::Acquired(_)
            | ResourceRecord::Renewed(_)
            | ResourceRecord::Released(_)
            | ResourceRecord::ApprovalAsked(_)
            | ResourceRecord::BudgetRefused(_) => {}
            ResourceRecord::AgentLeft(record) => {
                self.sessions.insert(record.agent.clone(), None);
                self.leases_are_over(seq, &record.agent);
            }
            ResourceRecord::AgentRegistered(record) => {
                let session = Some(record.session.clone());
                let before = self.sessions.insert(record.agent.clone(), session.clone());
                if before != Some(session) {
                    self.leases_are_over(seq, &record.agent);
                }
            }
        }
    }

    fn leases_are_over(&mut self, seq: u64, agent: &AgentId) {
        for lease in self.leases.values_mut().filter(|lease| lease.agent == *agent) {
            lease.over.get_or_insert(seq);
        }
    }

    // What the log says as a whole.

    fn check_runs(&mut self) {
        let mut findings = Vec::new();
        let mut find = |rule, at, what: String| findings.push(Finding { rule, at, what });
        for (id, run) in &self.runs {
            if run.starts > 1 {
                find(Rule::StartsOnce, run.at, format!("run {id} started {} times", run.starts));
            }
            if run.starts == 0 {
                find(Rule::NothingStaysOpen, run.at, format!("run {id} has records and never started"));
            }
            if run.ends.len() > 1 {
                find(Rule::EndsOnce, run.at, format!("run {id} ended {} times: {:?}", run.ends.len(), run.ends));
            }
            for end in &run.ends {
                *self.verdict.counts.ended.entry(*end).or_default() += 1;
            }
        }
        for (key, runs) in &self.keys {
            if runs.len() > 1 {
                let at = runs.iter().filter_map(|run| self.runs.get(run)).map(|run| run.at).max().unwrap_or_default();
                find(Rule::OneRunAKey, at, format!("key {key:?} has {} runs: {runs:?}", runs.len()));
            }
        }
        for (id, task) in &self.tasks {
            if task.ends.len() > 1 {
                let ends: Vec<_> = task.ends.iter().map(|end| (end.outcome, end.lease)).collect();
                find(Rule::AttemptEndsOnce, task.at, format!("task {id} ended {} times: {ends:?}", ends.len()));
            }
            if task.leases.len() > 1 {
                find(Rule::AssignedOnce, task.at, format!("task {id} was assigned under {:?}", task.leases));
            }
            if !task.leases.is_empty() && !task.ready {
                find(Rule::NothingStaysOpen, task.at, format!("task {id} was assigned and never ready"));
            }
            let over = self.runs.get(&id.run).is_some_and(|run| !run.ends.is_empty());
            if task.ready && task.ends.is_empty() {
                let run = if over { "its run has ended" } else { "its run has not ended either" };
                find(Rule::NothingStaysOpen, task.at, format!("task {id} never ended ({run})"));
            }
        }
        self.verdict.findings.append(&mut findings);
    }

    // What clients were told.

    fn check_clients(&mut self, notes: &[ClientNote]) {
        let mut accepted: BTreeMap<&str, RunId> = BTreeMap::new();
        for note in notes {
            match note {
                ClientNote::Submitted { .. } => {}
                ClientNote::Accepted { at, key, run } => {
                    let before = *accepted.entry(key).or_insert(*run);
                    self.require(before == *run, Rule::OneRunAKey, *at, || {
                        format!("for key {key:?} a client was given run {before}, then run {run}")
                    });
                    self.accepted(*at, key, *run);
                }
                ClientNote::Refused { at, key, code, message } => {
                    self.verdict.counts.refused += 1;
                    let started = self.keys.get(key).cloned();
                    self.require(started.is_none(), Rule::ToldWhatIsLogged, *at, || {
                        format!("key {key:?} was refused ({code}: {message}), the log has {started:?} for it")
                    });
                }
                ClientNote::Ended { at, run, status, results } => self.told_end(*at, *run, *status, results),
                ClientNote::Unknown { at, run } => {
                    self.find(Rule::ToldWhatIsLogged, *at, format!("run {run}, once accepted, was said to be unknown"));
                }
            }
        }
        self.verdict.counts.accepted = accepted.len() as u64;
        let strays: Vec<_> = self.runs.iter().filter(|(_, run)| !run.noted).map(|(id, run)| (*id, run.at)).collect();
        self.verdict.counts.strays = strays.len() as u64;
        for (id, at) in strays {
            let open = self.runs.get(&id).is_some_and(|run| run.ends.is_empty());
            self.require(!open, Rule::NothingStaysOpen, at, || format!("run {id}, which nobody noted, never ended"));
        }
    }

    fn accepted(&mut self, at: Millis, key: &str, run: RunId) {
        let Some(facts) = self.runs.get_mut(&run).filter(|facts| facts.starts > 0) else {
            self.find(
                Rule::AcceptedRunStarted,
                at,
                format!("run {run} (key {key:?}) was accepted, and is not in the log"),
            );
            return;
        };
        // A repeated start is noted again; its run is looked at once.
        if std::mem::replace(&mut facts.noted, true) {
            return;
        }
        let (logged, open) = (facts.key.clone(), facts.ends.is_empty());
        self.require(logged.as_deref() == Some(key), Rule::ToldWhatIsLogged, at, || {
            format!("run {run} was accepted for key {key:?}, the log says {logged:?}")
        });
        self.require(!open, Rule::AcceptedRunEnded, at, || {
            format!("run {run} (key {key:?}) was accepted, and never ended")
        });
    }

    fn told_end(&mut self, at: Millis, run: RunId, status: RunStatus, results: &BTreeMap<StageName, String>) {
        let Some(facts) = self.runs.get(&run) else { return };
        let (ends, logged) = (facts.ends.clone(), facts.results.clone());
        self.require(ends.contains(&status), Rule::ToldWhatIsLogged, at, || {
            format!("run {run} was said to have ended as {status}, the log says {ends:?}")
        });
        let logged: BTreeMap<_, _> = logged.into_iter().filter_map(|(stage, text)| Some((stage, text?))).collect();
        self.require(*results == logged, Rule::ToldWhatIsLogged, at, || {
            format!("the results of run {run} were said to be {results:?}, the log says {logged:?}")
        });
    }

    // What agents were told.

    fn check_agents(&mut self, notes: &[ReportNote]) {
        let mut checked = BTreeSet::new();
        for note in notes {
            let ReportNote { at, agent, task, lease, succeeded, token, refused } = note;
            let end = self.tasks.get(task).and_then(|facts| facts.ends.iter().find(|end| end.lease == Some(*lease)));
            let counted = end.is_some_and(|end| {
                let outcome = if *succeeded { Outcome::Succeeded } else { Outcome::Failed };
                end.outcome == outcome && bears(end, token)
            });
            if let Some(code) = refused {
                self.verdict.counts.reports_refused += 1;
                self.verdict.counts.reports_refused_but_counted += u64::from(counted);
                let stale = matches!(code, Code::StaleLease | Code::RunEnded | Code::UnknownRun);
                self.require(stale, Rule::ToldWhatIsLogged, *at, || {
                    format!("the report of {agent} on task {task}, lease {lease}, was refused as {code}")
                });
                continue;
            }
            if checked.insert((*lease, token)) {
                self.verdict.counts.reports_stored += 1;
            }
            let logged = end.map(|end| format!("{} {}", end.outcome, end.text));
            self.require(counted, Rule::StoredReportCounted, *at, || {
                format!("{agent} was told that its report on task {task}, lease {lease}, token {token} is stored; the log has {logged:?}")
            });
        }
    }
}

/// Whether the end of an attempt is the one that was reported with that token.
fn bears(end: &End, token: &str) -> bool {
    match end.outcome {
        Outcome::Succeeded => serde_json::from_str::<TaskResult>(&end.text).is_ok_and(|result| result.token == token),
        _ => end.text.contains(token),
    }
}
