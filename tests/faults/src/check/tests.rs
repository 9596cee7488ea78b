//! A history in which all is well, and for each rule one in which it is broken.

use std::sync::Arc;

use baton_protocol::definition::Definition;
use baton_protocol::record::{
    AgentLeft, AgentRegistered, Assigned, Cause, FORMAT, LeaseEnded, LeftReason, RunFinished, RunStarted, StageReady,
    Turn, WorkflowRegistered,
};
use baton_protocol::{Amount, Capability, Json, Money, ResourceName, Resources, WorkflowName};

use super::*;

const AGENT: &str = "ann";

fn run() -> RunId {
    RunId::derive(1000, 1)
}

fn agent() -> AgentId {
    AgentId::new(AGENT).unwrap()
}

fn stage(name: &str) -> StageName {
    StageName::new(name).unwrap()
}

fn task(name: &str, attempt: u32) -> TaskId {
    TaskId { run: run(), stage: stage(name), item: None, attempt }
}

fn result(task: &TaskId, lease: u64, token: &str) -> Json {
    Json::of(&TaskResult { task: task.clone(), agent: agent(), lease: LeaseId(lease), token: token.to_owned() })
        .unwrap()
}

/// Writes a log, as services would.
#[derive(Default)]
struct Writing {
    history: History,
    workflow: u64,
    resource: u64,
}

impl Writing {
    fn seq(&self) -> u64 {
        self.history.commits.len() as u64 + 1
    }

    fn commit<R>(&self, first: u64, records: Vec<R>) -> Commit<R> {
        let seen = self.seq() - 1;
        let turns = vec![Turn { at: 1000 + self.seq(), seen, cause: Cause::Timer, records }];
        Commit { format: FORMAT, instance: "i".to_owned(), term: 1, first, handled: seen, turns }
    }

    fn workflow(&mut self, records: Vec<WorkflowRecord>) -> &mut Self {
        let commit = self.commit(self.workflow + 1, records);
        self.workflow += commit.len();
        self.history.commits.push((self.seq(), AnyCommit::Workflow(commit)));
        self
    }

    fn resource(&mut self, records: Vec<ResourceRecord>) -> &mut Self {
        let commit = self.commit(self.resource + 1, records);
        self.resource += commit.len();
        self.history.commits.push((self.seq(), AnyCommit::Resource(commit)));
        self
    }

    fn started(&mut self, run: RunId, key: &str) -> &mut Self {
        self.workflow(vec![WorkflowRecord::RunStarted(RunStarted {
            run,
            workflow: WorkflowName::new("w").unwrap(),
            version: 1,
            input: Json::null(),
            priority: 0,
            key: Some(key.to_owned()),
            trace: None,
            strategy: None,
            due: None,
            budget: None,
            metadata: Default::default(),
            rerun: None,
            parent: None,
            no_cache: false,
        })])
    }

    fn ready(&mut self, task: TaskId) -> &mut Self {
        self.workflow(vec![WorkflowRecord::StageReady(StageReady {
            task,
            agent_type: Capability::new("x").unwrap(),
            requires: Default::default(),
            inputs: vec![],
            input: None,
            cache: None,
            hedge: false,
            speculative: false,
            resources: Resources::from([(ResourceName::new("cpu").unwrap(), Amount::from(1))]),
            priority: 0,
        })])
    }

    /// Gives the lease.
    fn assigned(&mut self, task: TaskId) -> u64 {
        self.resource(vec![ResourceRecord::Assigned(Assigned {
            task,
            agent: agent(),
            resources: Resources::new(),
            pools: Resources::new(),
            beside: None,
        })]);
        self.resource
    }

    fn ended(&mut self, task: TaskId, lease: u64, outcome: Outcome, token: &str) -> &mut Self {
        let result = (outcome == Outcome::Succeeded).then(|| result(&task, lease, token));
        let error = (outcome != Outcome::Succeeded).then(|| format!("because of {token}"));
        self.workflow(vec![WorkflowRecord::StageEnded(StageEnded {
            task,
            lease: Some(LeaseId(lease)),
            agent: Some(agent()),
            outcome,
            result,
            error,
            hopeless: false,
            code: None,
            retry_at: None,
            duration_ms: 1,
            cost: Money::ZERO,
            usage: Default::default(),
            model: None,
            delegated: None,
            speculative: false,
            other: None,
        })])
    }

    fn finished(&mut self, status: RunStatus) -> &mut Self {
        self.workflow(vec![WorkflowRecord::RunFinished(RunFinished { run: run(), status, reason: None })])
    }

    fn registered(&mut self, session: &str) -> &mut Self {
        self.resource(vec![ResourceRecord::AgentRegistered(AgentRegistered {
            agent: agent(),
            session: session.to_owned(),
            agent_type: Capability::new("x").unwrap(),
            capabilities: BTreeMap::new(),
            resources: Resources::new(),
            slots: 1,
            priority: 0,
            batches: false,
        })])
    }

    fn told(&mut self, note: ClientNote) -> &mut Self {
        self.history.clients.push(note);
        self
    }

    fn reported(&mut self, task: TaskId, lease: u64, succeeded: bool, token: &str, refused: Option<Code>) -> &mut Self {
        let lease = LeaseId(lease);
        let note = ReportNote { at: 2000, agent: agent(), task, lease, succeeded, token: token.to_owned(), refused };
        self.history.agents.push(note);
        self
    }

    fn broken(&self) -> Vec<Rule> {
        check(&self.history).findings.into_iter().map(|finding| finding.rule).collect()
    }
}

fn accepted(key: &str, run: RunId) -> ClientNote {
    ClientNote::Accepted { at: 2000, key: key.to_owned(), run }
}

fn end(status: RunStatus, results: &[(&str, Json)]) -> ClientNote {
    let results = results.iter().map(|(name, result)| (stage(name), result.as_str().to_owned())).collect();
    ClientNote::Ended { at: 2000, run: run(), status, results }
}

/// A run of one stage, whose first attempt failed.
fn good() -> Writing {
    let mut w = Writing::default();
    let definition: Definition =
        serde_json::from_str(r#"{"name": "w", "stages": [{"name": "a", "agent_type": "x"}]}"#).unwrap();
    w.workflow(vec![WorkflowRecord::WorkflowRegistered(WorkflowRegistered {
        version: 1,
        definition: Arc::new(definition),
    })]);
    w.registered("s").started(run(), "k").ready(task("a", 1));
    let lease = w.assigned(task("a", 1));
    w.ended(task("a", 1), lease, Outcome::Failed, "t1").reported(task("a", 1), lease, false, "t1", None);
    w.ready(task("a", 2));
    let lease = w.assigned(task("a", 2));
    w.ended(task("a", 2), lease, Outcome::Succeeded, "t2").reported(task("a", 2), lease, true, "t2", None);
    w.finished(RunStatus::Succeeded);
    w.told(accepted("k", run())).told(accepted("k", run()));
    w.told(end(RunStatus::Succeeded, &[("a", result(&task("a", 2), lease, "t2"))]));
    w
}

/// A run that has an attempt under way, and its lease.
fn open() -> (Writing, u64) {
    let mut w = Writing::default();
    w.registered("s").started(run(), "k").ready(task("a", 1));
    let lease = w.assigned(task("a", 1));
    w.told(accepted("k", run()));
    (w, lease)
}

#[test]
fn a_history_in_which_all_is_well() {
    let verdict = check(&good().history);
    assert_eq!(verdict.findings, []);
    let counts = verdict.counts;
    assert_eq!((counts.accepted, counts.stages, counts.reports_stored, counts.strays), (1, 1, 2, 0));
    assert_eq!(counts.ended, BTreeMap::from([(RunStatus::Succeeded, 1)]));
}

#[test]
fn an_accepted_run_that_is_not_in_the_log() {
    let mut w = good();
    w.told(accepted("other", RunId::derive(1000, 2)));
    assert_eq!(w.broken(), [Rule::AcceptedRunStarted]);
}

#[test]
fn an_accepted_run_without_an_end() {
    let (mut w, lease) = open();
    w.ended(task("a", 1), lease, Outcome::Succeeded, "t");
    assert_eq!(w.broken(), [Rule::AcceptedRunEnded]);
}

#[test]
fn a_stored_report_that_is_not_in_the_log_or_with_something_else() {
    let mut w = good();
    w.reported(task("a", 3), 9, true, "t3", None);
    assert_eq!(w.broken(), [Rule::StoredReportCounted]);
    let mut w = good();
    w.reported(task("a", 2), 3, true, "another", None);
    assert_eq!(w.broken(), [Rule::StoredReportCounted]);
    let mut w = good();
    w.reported(task("a", 1), 2, true, "t1", None);
    assert_eq!(w.broken(), [Rule::StoredReportCounted]);
}

#[test]
fn a_run_that_starts_or_ends_twice() {
    let mut w = good();
    w.started(run(), "k");
    assert_eq!(w.broken(), [Rule::StartsOnce]);
    let mut w = good();
    w.finished(RunStatus::Failed);
    assert_eq!(w.broken(), [Rule::EndsOnce]);
}

#[test]
fn two_runs_for_a_key() {
    let other = RunId::derive(1000, 2);
    let finished = |w: &mut Writing| {
        w.workflow(vec![WorkflowRecord::RunFinished(RunFinished {
            run: other,
            status: RunStatus::Failed,
            reason: None,
        })]);
    };
    let mut w = good();
    finished(w.started(other, "k"));
    assert_eq!(w.broken(), [Rule::OneRunAKey]);
    w.told(accepted("k", other));
    assert_eq!(w.broken(), [Rule::OneRunAKey, Rule::OneRunAKey]);
}

#[test]
fn an_attempt_that_ends_twice_and_a_stage_that_succeeds_twice() {
    let (mut w, lease) = open();
    w.ended(task("a", 1), lease, Outcome::Lost, "t").ended(task("a", 1), lease, Outcome::Failed, "t");
    w.finished(RunStatus::Failed);
    assert_eq!(w.broken(), [Rule::AttemptEndsOnce]);
    let (mut w, lease) = open();
    w.ended(task("a", 1), lease, Outcome::Succeeded, "t").ready(task("a", 2));
    let lease = w.assigned(task("a", 2));
    w.ended(task("a", 2), lease, Outcome::Succeeded, "u").finished(RunStatus::Succeeded);
    assert_eq!(w.broken(), [Rule::StageSucceedsOnce]);
}

#[test]
fn a_task_that_is_assigned_twice() {
    let (mut w, lease) = open();
    w.assigned(task("a", 1));
    w.ended(task("a", 1), lease, Outcome::Failed, "t").finished(RunStatus::Failed);
    assert_eq!(w.broken(), [Rule::AssignedOnce]);
}

#[test]
fn something_after_the_end() {
    let (mut w, lease) = open();
    w.finished(RunStatus::Failed).ended(task("a", 1), lease, Outcome::Failed, "t");
    assert_eq!(w.broken(), [Rule::NothingAfterTheEnd]);
}

#[test]
fn an_end_under_a_lease_that_was_not_given_for_it() {
    let (mut w, lease) = open();
    w.ended(task("a", 1), lease + 1, Outcome::Succeeded, "t").finished(RunStatus::Succeeded);
    assert_eq!(w.broken(), [Rule::UnderItsLease]);
    let (mut w, _) = open();
    w.ready(task("b", 1));
    let lease = w.assigned(task("b", 1));
    w.ended(task("a", 1), lease, Outcome::Failed, "t").ended(task("b", 1), lease, Outcome::Failed, "t");
    w.finished(RunStatus::Failed);
    assert_eq!(w.broken(), [Rule::UnderItsLease]);
}

#[test]
fn a_result_under_a_lease_that_had_ended() {
    let over: [fn(&mut Writing, u64); 3] = [
        |w, _| {
            w.resource(vec![ResourceRecord::AgentLeft(AgentLeft { agent: agent(), reason: LeftReason::Lost })]);
        },
        |w, _| {
            w.registered("another");
        },
        |w, lease| {
            let (lease, task, reason) = (LeaseId(lease), task("a", 1), "declined".to_owned());
            let record = LeaseEnded { lease, task, agent: agent(), reason, silent: false };
            w.resource(vec![ResourceRecord::LeaseEnded(record)]);
        },
    ];
    for over in over {
        let (mut w, lease) = open();
        over(&mut w, lease);
        w.ended(task("a", 1), lease, Outcome::Succeeded, "t").finished(RunStatus::Succeeded);
        assert_eq!(w.broken(), [Rule::NotUnderAnEndedLease]);
        // The writer had not read of it: then the result counts, and the agent's loss comes too late.
        let Some((_, AnyCommit::Workflow(commit))) = w.history.commits.iter_mut().rev().nth(1) else { panic!() };
        commit.turns[0].seen -= 1;
        assert_eq!(w.broken(), []);
    }
    // The same session again keeps its leases.
    let (mut w, lease) = open();
    w.registered("s").ended(task("a", 1), lease, Outcome::Succeeded, "t").finished(RunStatus::Succeeded);
    assert_eq!(w.broken(), []);
}

#[test]
fn a_client_that_was_told_something_else_than_the_log_says() {
    let mut w = good();
    w.told(end(RunStatus::Failed, &[("a", result(&task("a", 2), 3, "t2"))]));
    assert_eq!(w.broken(), [Rule::ToldWhatIsLogged]);
    for results in [vec![], vec![("a", result(&task("a", 2), 3, "other"))]] {
        let mut w = good();
        w.told(end(RunStatus::Succeeded, &results));
        assert_eq!(w.broken(), [Rule::ToldWhatIsLogged]);
    }
    let mut w = good();
    w.told(ClientNote::Refused { at: 1, key: "k".to_owned(), code: Code::InvalidRequest, message: String::new() });
    assert_eq!(w.broken(), [Rule::ToldWhatIsLogged]);
    let mut w = good();
    w.told(ClientNote::Unknown { at: 1, run: run() });
    assert_eq!(w.broken(), [Rule::ToldWhatIsLogged]);
    let mut w = good();
    w.reported(task("a", 2), 3, true, "t2", Some(Code::InvalidRequest));
    assert_eq!(w.broken(), [Rule::ToldWhatIsLogged]);
}

#[test]
fn what_stays_open() {
    let (mut w, _) = open();
    w.finished(RunStatus::Failed);
    assert_eq!(w.broken(), [Rule::NothingStaysOpen], "an attempt without an end");
    let mut w = good();
    w.started(RunId::derive(1000, 7), "stray");
    assert_eq!(w.broken(), [Rule::NothingStaysOpen], "a run that nobody noted");
    let (mut w, lease) = open();
    w.ended(task("a", 1), lease, Outcome::Failed, "t").finished(RunStatus::Failed);
    w.assigned(task("b", 1));
    assert_eq!(w.broken(), [Rule::NothingStaysOpen], "assigned and never ready");
}

#[test]
fn gaps_in_the_log() {
    let mut w = good();
    for (seq, _) in w.history.commits.iter_mut().skip(3) {
        *seq += 1;
    }
    assert!(w.broken().contains(&Rule::NoGaps));
    let mut w = good();
    w.workflow += 1;
    w.workflow(vec![]);
    assert_eq!(w.broken(), [Rule::NoGaps]);
}

#[test]
fn terms_that_fall_and_two_leaders_in_one() {
    let edit = |change: fn(&mut Commit<WorkflowRecord>)| {
        let mut w = good();
        w.workflow(vec![]).workflow(vec![]);
        let Some((_, AnyCommit::Workflow(commit))) = w.history.commits.iter_mut().rev().nth(1) else { panic!() };
        change(commit);
        w.broken()
    };
    assert_eq!(edit(|commit| (commit.term, commit.instance) = (2, "j".to_owned())), [Rule::TermsNeverFall]);
    assert_eq!(edit(|commit| commit.instance = "j".to_owned()), [Rule::OneLeaderATerm]);
}
