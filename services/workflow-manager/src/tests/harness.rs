//! A log in memory, with the real processor in front of it, and a resource-manager that does what it is told.
//!
//! Whenever all is committed, the log is replayed: the state must be the one that the leader has.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use baton_machine::{Effect, Foreign, Machine as _, Outgoing, Processor, Reply, RequestContext, Token};
use baton_protocol::definition::Definition;
use baton_protocol::handoff::HandedOver;
use baton_protocol::record::{
    AgentLeft, AgentRegistered, AnyCommit, Assigned, BudgetRefused, Cause, Commit, FORMAT, LeaseEnded, LeftReason,
    ResourceRecord, Turn, WorkflowRecord,
};
use baton_protocol::request::{
    CancelRun, GetRun, RegisterWorkflow, Report, ReportStatus, RunAccepted, StartRun, Usage, WorkflowRequest,
    WorkflowView,
};
use baton_protocol::run::RunView;
use baton_protocol::schedule::Firing;
use baton_protocol::trace::{Span, TraceContext};
use baton_protocol::trigger::Reaction;
use baton_protocol::{
    AgentId, Capability, Json, LeaseId, Millis, Number, Rejection, ResourceName, Resources, RunId, Service, TaskId,
    WorkflowName,
};
use serde::de::DeserializeOwned;

use crate::{Config, WorkflowManager};

/// When every world begins.
pub(crate) const START: Millis = 1_763_665_200_000;

pub(crate) struct World {
    pub(crate) log: Vec<(Service, Vec<u8>)>,
    pub(crate) processor: Processor<WorkflowManager>,
    pub(crate) now: Millis,
    /// What leaders are told from the next one on.
    pub(crate) config: Config,
    /// The largest commit.
    pub(crate) max_bytes: usize,
    /// How many commits are still stored before the leader dies.
    pub(crate) stores: usize,
    pub(crate) documents: BTreeMap<String, Json>,
    pub(crate) effects: Vec<Effect>,
    /// Whether the log is replayed at every step.
    pub(crate) check: bool,
    lines: Vec<String>,
    runs: Vec<RunId>,
    /// Those of them that do stages of others.
    children: BTreeSet<RunId>,
    answers: BTreeMap<Token, Reply>,
    token: Token,
    leaders: u64,
    resource_next: Number,
}

impl World {
    /// A leader has begun its first term.
    pub(crate) fn new() -> Self {
        let mut world = Self::empty();
        world.lead();
        world.lines.clear();
        world
    }

    /// Nobody leads.
    pub(crate) fn empty() -> Self {
        Self {
            log: Vec::new(),
            processor: Processor::new(Config::default()),
            now: START,
            config: Config::default(),
            max_bytes: 1_000_000,
            stores: usize::MAX,
            documents: BTreeMap::new(),
            effects: Vec::new(),
            check: true,
            lines: Vec::new(),
            runs: Vec::new(),
            children: BTreeSet::new(),
            answers: BTreeMap::new(),
            token: 0,
            leaders: 0,
            resource_next: 1,
        }
    }

    /// Another instance takes over.
    pub(crate) fn lead(&mut self) {
        self.stores = usize::MAX;
        self.processor = self.replay();
        self.leaders += 1;
        self.processor.lead(&format!("i{}", self.leaders), self.now);
        self.settle();
    }

    pub(crate) fn replay(&self) -> Processor<WorkflowManager> {
        let mut processor = Processor::new(self.config.clone());
        for (index, (service, payload)) in self.log.iter().enumerate() {
            processor.read(index as u64 + 1, *service, payload, 0).unwrap();
        }
        processor
    }

    /// The state that the whole log makes: a replay, and what a leader would observe next.
    pub(crate) fn fold(&self) -> WorkflowManager {
        let snapshot = self.replay().snapshot().unwrap();
        let mut state = snapshot.machine;
        for (service, payload) in self.log.iter().skip(snapshot.seen as usize) {
            if let AnyCommit::Resource(commit) = AnyCommit::decode(*service, payload).unwrap() {
                commit.stamped().for_each(|(stamp, record)| state.observe(stamp, Foreign::Resource(record)));
            }
        }
        state
    }

    /// Commits all there is, unless the leader dies before.
    pub(crate) fn settle(&mut self) {
        while let Some(outgoing) = self.processor.take(self.max_bytes) {
            let seq = match outgoing {
                Outgoing::Prove { .. } => 0,
                Outgoing::Commit { payload, .. } => {
                    if self.stores == 0 {
                        return;
                    }
                    self.stores -= 1;
                    self.append(Service::WorkflowManager, payload)
                }
            };
            for effect in self.processor.acknowledged(seq).effects {
                self.carry_out(effect);
            }
            if seq > 0 {
                let (service, payload) = &self.log[seq as usize - 1];
                self.processor.read(seq, *service, payload, self.now).unwrap();
            }
        }
        if self.check {
            self.verify();
        }
    }

    pub(crate) fn verify(&self) {
        let live = self.processor.machine();
        same(&self.fold(), live, "the log replays to another state");
        let snapshot: WorkflowManager = serde_json::from_str(&serde_json::to_string(live).unwrap()).unwrap();
        same(&snapshot, live, "a snapshot reads back as another state");
        assert!(live.lost.is_empty(), "reacted to all that was lost");
        // Without a live run there may be old ones to be forgotten, where settings say so.
        if !live.runs.is_empty()
            || (self.config == Config::default() && live.schedules.is_empty() && !live.triggers.is_open())
        {
            assert_eq!(live.runs.is_empty(), self.processor.deadline().is_none(), "a run waits for ever");
        }
    }

    fn append(&mut self, service: Service, payload: Vec<u8>) -> u64 {
        let commit = AnyCommit::decode(service, &payload).unwrap();
        self.log.push((service, payload));
        let seq = self.log.len() as u64;
        let events = commit.events(seq).unwrap();
        let descriptions: Vec<String> = match &commit {
            AnyCommit::Workflow(commit) => commit.stamped().map(|(_, record)| self.describe_workflow(record)).collect(),
            AnyCommit::Resource(commit) => {
                commit.stamped().map(|(stamp, record)| self.describe_resource(stamp.number, record)).collect()
            }
            AnyCommit::Optimizer(_) => Vec::new(),
        };
        for (event, description) in events.iter().zip(descriptions) {
            let (position, after, cause) = (event.position.to_string(), event.at - START, &event.cause);
            self.lines.push(format!("{position:<5} {:>9}  {description}  ({cause})", format!("+{after}ms")));
        }
        seq
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Answer { token, reply } => {
                assert!(self.answers.insert(token, reply).is_none(), "answered twice");
            }
            Effect::AnswerDocument { token, bucket, key, or } => {
                assert_eq!(bucket, "baton-runs");
                let reply = self.documents.get(&key).cloned().ok_or(or);
                assert!(self.answers.insert(token, reply).is_none(), "answered twice");
            }
            Effect::Keep { bucket, key, body } => {
                assert_eq!(bucket, "baton-runs");
                self.documents.insert(key, body);
            }
            effect @ (Effect::Span(_) | Effect::Measure(_)) => self.effects.push(effect),
            effect @ (Effect::Publish(_) | Effect::Ask { .. }) => panic!("nobody asked for {effect:?}"),
        }
    }

    /// What was written to the log since this was last asked.
    pub(crate) fn transcript(&mut self) -> String {
        self.lines.drain(..).fold(String::new(), |mut text, line| {
            writeln!(text, "{line}").unwrap();
            text
        })
    }

    /// Lets time pass, from deadline to deadline.
    pub(crate) fn wait(&mut self, ms: Millis) {
        let until = self.now + ms;
        while let Some(deadline) = self.processor.deadline().filter(|deadline| *deadline <= until) {
            self.now = self.now.max(deadline);
            self.processor.tick(self.now);
            self.settle();
            if self.stores == 0 {
                return;
            }
        }
        self.now = until;
    }

    /// Asks, and gives the answer, if the leader lives to give it.
    pub(crate) fn try_ask(&mut self, request: WorkflowRequest, trace: Option<TraceContext>) -> Option<Reply> {
        let endpoint = match &request {
            WorkflowRequest::RegisterWorkflow(_) => "workflow.register",
            WorkflowRequest::ValidateWorkflow(_) => "workflow.validate",
            WorkflowRequest::ListWorkflows(_) => "workflow.list",
            WorkflowRequest::GetWorkflow(_) => "workflow.get",
            WorkflowRequest::StartRun(_) => "run.start",
            WorkflowRequest::GetRun(_) => "run.get",
            WorkflowRequest::ListRuns(_) => "run.list",
            WorkflowRequest::CancelRun(_) => "run.cancel",
            WorkflowRequest::CancelRuns(_) => "runs.cancel",
            WorkflowRequest::PauseRun(_) => "run.pause",
            WorkflowRequest::ResumeRun(_) => "run.resume",
            WorkflowRequest::RerunRun(_) => "run.rerun",
            WorkflowRequest::DecideStage(_) => "stage.decide",
            WorkflowRequest::SignalRun(_) => "run.signal",
            WorkflowRequest::SetSchedule(_) => "schedule.set",
            WorkflowRequest::PauseSchedule(_) => "schedule.pause",
            WorkflowRequest::RemoveSchedule(_) => "schedule.remove",
            WorkflowRequest::GetSchedule(_) => "schedule.get",
            WorkflowRequest::ListSchedules(_) => "schedule.list",
            WorkflowRequest::SetTrigger(_) => "trigger.set",
            WorkflowRequest::RemoveTrigger(_) => "trigger.remove",
            WorkflowRequest::ListTriggers(_) => "trigger.list",
            WorkflowRequest::RaiseEvent(None, _) => "event.raise",
            WorkflowRequest::RaiseEvent(Some(_), _) => "agent.raise",
            WorkflowRequest::Report(..) => "agent.report",
            WorkflowRequest::Reports(..) => "agent.reports",
        };
        self.token += 1;
        self.processor.request(self.token, endpoint, request, RequestContext { trace }, self.now);
        self.settle();
        self.answers.remove(&self.token)
    }

    pub(crate) fn ask<T: DeserializeOwned>(&mut self, request: WorkflowRequest) -> Result<T, Rejection> {
        let reply = self.try_ask(request, None).expect("every request is answered");
        reply.map(|json| json.read().unwrap())
    }

    pub(crate) fn register(&mut self, definition: &Definition) -> u32 {
        let definition = Some(Json::of(definition).unwrap());
        let request = RegisterWorkflow { source: None, definition };
        self.ask::<WorkflowView>(WorkflowRequest::RegisterWorkflow(request)).unwrap().version
    }

    /// Starts a run, and gives it the next label: `r1`, `r2` …; the first one's tasks are written without it.
    pub(crate) fn start(&mut self, workflow: &str) -> RunId {
        self.ask::<RunAccepted>(WorkflowRequest::StartRun(start(workflow))).unwrap().run
    }

    pub(crate) fn view(&mut self, run: RunId) -> RunView {
        self.ask(WorkflowRequest::GetRun(GetRun { run })).unwrap()
    }

    pub(crate) fn cancel(&mut self, run: RunId, reason: Option<&str>) -> Result<RunAccepted, Rejection> {
        self.ask(WorkflowRequest::CancelRun(CancelRun { run, reason: reason.map(str::to_owned) }))
    }

    /// The resource-manager appends.
    pub(crate) fn resource(&mut self, cause: &str, records: Vec<ResourceRecord>) -> Number {
        let first = self.resource_next;
        self.resource_next += records.len() as u64;
        let (at, seen) = (self.now, self.log.len() as u64);
        let turns = vec![Turn { at, seen, cause: Cause::Request(cause.to_owned().into()), records }];
        let commit = Commit { format: FORMAT, instance: "r".into(), term: 1, first, handled: seen, turns };
        let seq = self.append(Service::ResourceManager, serde_json::to_vec(&commit).unwrap());
        let payload = &self.log[seq as usize - 1].1;
        self.processor.read(seq, Service::ResourceManager, payload, self.now).unwrap();
        self.settle();
        first
    }

    pub(crate) fn agent(&mut self, agent: &str, session: &str, agent_type: &str) {
        let record = AgentRegistered {
            agent: id(agent),
            session: session.into(),
            agent_type: Capability::new(agent_type).unwrap(),
            capabilities: BTreeMap::new(),
            resources: BTreeMap::new(),
            slots: 4,
            priority: 0,
            batches: false,
        };
        self.resource("agent.register", vec![ResourceRecord::AgentRegistered(record)]);
    }

    pub(crate) fn leave(&mut self, agent: &str, reason: LeftReason) {
        self.resource("agent.leave", vec![ResourceRecord::AgentLeft(AgentLeft { agent: id(agent), reason })]);
    }

    pub(crate) fn assign(&mut self, task: &TaskId, agent: &str) -> LeaseId {
        self.assign_as(task, agent, None)
    }

    /// A second agent is given a task that another one has under that lease.
    pub(crate) fn assign_beside(&mut self, task: &TaskId, agent: &str, first: LeaseId) -> LeaseId {
        self.assign_as(task, agent, Some(first))
    }

    fn assign_as(&mut self, task: &TaskId, agent: &str, beside: Option<LeaseId>) -> LeaseId {
        let (resources, pools) = (BTreeMap::new(), BTreeMap::new());
        let record = Assigned { task: task.clone(), agent: id(agent), resources, pools, beside };
        LeaseId(self.resource("lease.assign", vec![ResourceRecord::Assigned(record)]))
    }

    /// One agent hands a task over to another. Gives the lease of the other.
    pub(crate) fn hand_over(&mut self, lease: LeaseId, task: &TaskId, from: &str, to: &str) -> LeaseId {
        let (task, from, to) = (task.clone(), id(from), id(to));
        let record = HandedOver { handoff: 0, lease, task, from, to, resources: BTreeMap::new(), pools: None };
        LeaseId(self.resource("agent.acknowledge", vec![ResourceRecord::HandedOver(record)]))
    }

    pub(crate) fn decline(&mut self, lease: LeaseId, task: &TaskId, agent: &str, reason: &str) {
        let record = LeaseEnded { lease, task: task.clone(), agent: id(agent), reason: reason.into(), silent: false };
        self.resource("agent.decline", vec![ResourceRecord::LeaseEnded(record)]);
    }

    /// An account has not enough for a task.
    pub(crate) fn unpaid(&mut self, account: &ResourceName, task: &TaskId, reason: &str) {
        let (account, task) = (account.clone(), Some(task.clone()));
        let record = BudgetRefused { account, task, reason: reason.to_owned() };
        self.resource("lease.assign", vec![ResourceRecord::BudgetRefused(record)]);
    }

    /// All its records.
    pub(crate) fn own_records(&self) -> impl Iterator<Item = WorkflowRecord> {
        let own = self.log.iter().filter(|(service, _)| *service == Service::WorkflowManager);
        let commits = own.map(|(_, payload)| serde_json::from_slice::<Commit<WorkflowRecord>>(payload).unwrap());
        commits.flat_map(|commit| commit.turns).flat_map(|turn| turn.records)
    }

    /// What each task needs that ever was ready.
    pub(crate) fn ready_resources(&self) -> impl Iterator<Item = Resources> {
        self.own_records().filter_map(|record| match record {
            WorkflowRecord::StageReady(record) => Some(record.resources),
            _ => None,
        })
    }

    pub(crate) fn report(&mut self, agent: &str, report: Report) -> Result<(), Rejection> {
        let lease = report.lease;
        let stored: baton_protocol::request::ReportStored = self.ask(WorkflowRequest::Report(id(agent), report))?;
        assert_eq!(stored.lease, lease);
        Ok(())
    }

    /// An agent does a task: it is assigned, some time passes, it is reported.
    pub(crate) fn work(&mut self, run: RunId, stage: &str, agent: &str, ms: Millis) {
        let task = task(run, stage, 1);
        let lease = self.assign(&task, agent);
        self.wait(ms);
        self.report(agent, succeeded(lease, &task, &format!("\"{stage} done\""))).unwrap();
    }

    pub(crate) fn spans(&self) -> impl Iterator<Item = &Span> {
        self.effects.iter().filter_map(|effect| match effect {
            Effect::Span(span) => Some(span),
            _ => None,
        })
    }

    fn describe_workflow(&mut self, record: &WorkflowRecord) -> String {
        match record {
            WorkflowRecord::WorkflowRegistered(r) => {
                format!("workflow_registered {} v{}", r.definition.name, r.version)
            }
            WorkflowRecord::RunStarted(r) => {
                let rerun = r.rerun.as_ref().map(|rerun| {
                    let kept: Vec<_> = rerun.kept.iter().map(|kept| kept.stage.as_str()).collect();
                    format!(" again from {}, keeps {}", rerun.from, kept.join(", "))
                });
                self.runs.push(r.run);
                let parent = r.parent.as_ref().map(|parent| {
                    self.children.insert(r.run);
                    let paid = r.budget.as_ref().map(|budget| format!(" for {budget:?}")).unwrap_or_default();
                    format!(
                        " as {} given {} does {}{paid}",
                        self.label(r.run),
                        r.input.as_str(),
                        self.name(&parent.task)
                    )
                });
                let (rerun, parent) = (rerun.unwrap_or_default(), parent.unwrap_or_default());
                format!("run_started {} v{}{rerun}{parent}", r.workflow, r.version)
            }
            WorkflowRecord::StageReady(r) => {
                let inputs: Vec<_> = r.inputs.iter().map(|input| input.as_str()).collect();
                let inputs = if inputs.is_empty() { String::new() } else { format!(" with {}", inputs.join(", ")) };
                let given = r.input.as_ref().map(|input| format!(" given {}", input.as_str())).unwrap_or_default();
                let early = if r.speculative { " early" } else { "" };
                format!("stage_ready {}{early}{inputs}{given}", self.name(&r.task))
            }
            WorkflowRecord::StageEnded(r) => {
                let early = if r.speculative { " early" } else { "" };
                let mut text = format!("stage_ended {}{early} {}", self.name(&r.task), r.outcome);
                if r.duration_ms > 0 {
                    write!(text, " after {}ms", r.duration_ms).unwrap();
                }
                if let Some(code) = &r.code {
                    write!(text, " ({code})").unwrap();
                }
                if let Some(error) = &r.error {
                    write!(text, ": {error}").unwrap();
                }
                if let Some(delegated) = &r.delegated {
                    let names: Vec<_> = delegated.definition.stages.iter().map(|stage| stage.name.as_str()).collect();
                    write!(text, " {}", names.join(", ")).unwrap();
                }
                if let (baton_protocol::record::Outcome::Delegated, Some(gathered)) = (r.outcome, &r.result) {
                    let run = self.runs.iter().position(|run| gathered.as_str().contains(&run.to_string()));
                    let text_of = gathered.as_str().replace(&self.runs[run.unwrap_or(0)].to_string(), "RUN");
                    write!(text, " {text_of}").unwrap();
                }
                if let Some(at) = r.retry_at {
                    write!(text, "; again at +{}ms", at - START).unwrap();
                }
                text
            }
            WorkflowRecord::StageWaits(r) => format!("stage_waits {}", r.stage),
            WorkflowRecord::Signalled(r) => {
                let by = r.by.as_ref().map(|by| format!(" by {by}")).unwrap_or_default();
                format!("signalled {}{by}: {}", r.signal, r.payload.as_str())
            }
            WorkflowRecord::StageCached(r) => {
                let task = TaskId { run: r.run, stage: r.stage.clone(), item: None, attempt: 1 };
                let of = 1 + self.runs.iter().position(|id| *id == r.of).unwrap_or(0);
                format!("stage_cached {} of r{of}: {}", self.name(&task).trim_end_matches("/1"), r.result.as_str())
            }
            WorkflowRecord::StageCommitted(r) => format!("stage_committed {}", self.name(&r.task)),
            WorkflowRecord::CopyEnded(r) => {
                let why = r.error.as_deref().map(|error| format!(": {error}")).unwrap_or_default();
                format!("copy_ended {} of {} {}{why}", self.name(&r.task), r.agent, r.outcome)
            }
            WorkflowRecord::StageExpanded(r) => format!("stage_expanded {} to {}", r.stage, r.items.as_str()),
            WorkflowRecord::StageSkipped(r) => format!(
                "stage_skipped {}: {}",
                self.name(&TaskId { run: r.run, stage: r.stage.clone(), item: None, attempt: 1 }),
                r.reason
            )
            .replace("/1:", ":"),
            WorkflowRecord::RunPaused(r) => {
                format!("run_paused {}{:?}", self.label(r.run), r.reason.as_deref().unwrap_or_default())
            }
            WorkflowRecord::RunResumed(r) => format!("run_resumed {}", self.label(r.run)).trim_end().to_owned(),
            WorkflowRecord::RunsForgotten(r) => {
                let label = |run: &RunId| format!(" r{}", 1 + self.runs.iter().position(|id| id == run).unwrap_or(0));
                format!("runs_forgotten{}", r.runs.iter().map(label).collect::<String>())
            }
            WorkflowRecord::ScheduleSet(r) => {
                let next = r.next.map_or_else(|| "not at all".to_owned(), |next| format!("+{}ms", next - START));
                format!("schedule_set {}, next {next}", r.name)
            }
            WorkflowRecord::TriggerSet(r) => format!("trigger_set {}", r.name),
            WorkflowRecord::TriggerRemoved(r) => format!("trigger_removed {}", r.name),
            WorkflowRecord::EventRaised(r) => format!("event_raised {} {} {}", r.event, r.id, r.data.as_str()),
            WorkflowRecord::TriggerFired(r) => {
                let outcome = match &r.outcome {
                    Reaction::Started(run) => {
                        format!("started r{}", 1 + self.runs.iter().position(|id| id == run).unwrap_or(0))
                    }
                    other => other.to_string(),
                };
                format!("trigger_fired {} by #{}: {outcome}", r.name, r.event)
            }
            WorkflowRecord::ScheduleRemoved(r) => format!("schedule_removed {}", r.name),
            WorkflowRecord::ScheduleFired(r) => {
                let outcome = match &r.outcome {
                    Firing::Started(run) | Firing::Skipped(run) => {
                        format!(
                            "{} r{}",
                            r.outcome.as_str(),
                            1 + self.runs.iter().position(|id| id == run).unwrap_or(0)
                        )
                    }
                    Firing::Late => "late".to_owned(),
                    Firing::Refused(why) => format!("refused: {why}"),
                };
                let next = r.next.map_or_else(|| "never".to_owned(), |next| format!("+{}ms", next - START));
                format!("schedule_fired {} of +{}ms: {outcome}, next {next}", r.name, r.due - START)
            }
            WorkflowRecord::RunFinished(r) => {
                let reason = r.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
                format!("run_finished {}{}{reason}", self.label(r.run), r.status)
            }
        }
    }

    fn describe_resource(&self, number: Number, record: &ResourceRecord) -> String {
        match record {
            ResourceRecord::AgentRegistered(r) => format!("agent_registered {} session {}", r.agent, r.session),
            ResourceRecord::AgentLeft(r) => format!("agent_left {}", r.agent),
            ResourceRecord::Assigned(r) => format!("assigned {} to {} as {number}", self.name(&r.task), r.agent),
            ResourceRecord::LeaseEnded(r) => format!("lease_ended {} of {}: {}", r.lease, r.agent, r.reason),
            ResourceRecord::HandoffOffered(r) => format!("handoff_offered {} to {}", r.lease, r.to),
            ResourceRecord::HandedOver(r) => format!("handed_over {} to {} as {number}", self.name(&r.task), r.to),
            ResourceRecord::HandoffEnded(r) => format!("handoff_ended {}", r.handoff),
            ResourceRecord::BreakerOpened(r) => format!("breaker_opened {} for {}", r.agent, r.capability),
            ResourceRecord::BreakerHalfOpened(r) => format!("breaker_half_opened {} for {}", r.agent, r.capability),
            ResourceRecord::AlertRaised(r) => format!("alert_raised {} about {}", r.kind, r.about),
            ResourceRecord::AlertCleared(r) => format!("alert_cleared {}", r.alert),
            ResourceRecord::AlertAcknowledged(r) => format!("alert_acknowledged {}", r.alert),
            ResourceRecord::PressureChanged(r) => format!("pressure_changed {}", r.level),
            ResourceRecord::BreakerClosed(r) => format!("breaker_closed {} for {}", r.agent, r.capability),
            ResourceRecord::BudgetRefused(r) => {
                let task = r.task.as_ref().map(|task| self.name(task)).unwrap_or_default();
                format!("budget_refused {task} of {}: {}", r.account, r.reason)
            }
            ResourceRecord::PoolSet(r) => format!("pool_set {}", r.name),
            ResourceRecord::PoolRemoved(_)
            | ResourceRecord::Acquired(_)
            | ResourceRecord::Renewed(_)
            | ResourceRecord::Released(_)
            | ResourceRecord::ApprovalAsked(_) => panic!("pools are nothing to this service"),
        }
    }

    /// What a run is called that does a stage of another one.
    fn label(&self, run: RunId) -> String {
        let number = self.runs.iter().position(|known| *known == run).unwrap_or(0) + 1;
        if self.children.contains(&run) { format!("r{number} ") } else { String::new() }
    }

    /// The run that began as the so-manieth, from 1.
    pub(crate) fn nth_run(&self, number: usize) -> RunId {
        self.runs[number - 1]
    }

    fn name(&self, task: &TaskId) -> String {
        let label = self.runs.iter().position(|run| *run == task.run).unwrap_or(0);
        let label = if label == 0 { String::new() } else { format!("r{}:", label + 1) };
        format!("{label}{}/{}", task.part(), task.attempt)
    }
}

fn same(left: &WorkflowManager, right: &WorkflowManager, what: &str) {
    if left != right {
        let (left, right) = (format!("{left:#?}"), format!("{right:#?}"));
        let lines = left.lines().zip(right.lines()).find(|(left, right)| left != right);
        panic!("{what}: {lines:?}");
    }
}

pub(crate) fn id(agent: &str) -> AgentId {
    AgentId::new(agent).unwrap()
}

pub(crate) fn task(run: RunId, stage: &str, attempt: u32) -> TaskId {
    TaskId { run, stage: stage.parse().unwrap(), item: None, attempt }
}

pub(crate) fn start(workflow: &str) -> StartRun {
    StartRun::new(WorkflowName::new(workflow).unwrap(), json("{\"topic\":\"tea\"}"))
}

pub(crate) fn json(text: &str) -> Json {
    Json::from_text(text.to_owned()).unwrap()
}

pub(crate) fn succeeded(lease: LeaseId, task: &TaskId, result: &str) -> Report {
    Report {
        lease,
        task: task.clone(),
        status: ReportStatus::Succeeded,
        result: Some(json(result)),
        error: None,
        code: None,
        retryable: true,
        cost: "0.01".parse().unwrap(),
        usage: Usage { tokens_in: 10, tokens_out: 2 },
        model: None,
        delegate: None,
    }
}

pub(crate) fn failed(lease: LeaseId, task: &TaskId, error: &str, retryable: bool) -> Report {
    let report = succeeded(lease, task, "null");
    Report { status: ReportStatus::Failed, result: None, error: Some(error.into()), retryable, ..report }
}
