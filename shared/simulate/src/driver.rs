//! The optimizer on a log in memory.
//!
//! It is the machine that runs in the service, turned by the same processor. What the other two services would append is
//! appended here: what is ready, what ended and how, which agents there are, and a lease for whatever is asked for and can be
//! granted. Commits and answers take no time.

use std::collections::BTreeSet;
use std::sync::Arc;

use baton_machine::{Effect, Outgoing, Processor, Reply, RequestContext, Snapshot, answer};
use baton_optimizer::{Config, Optimizer};
use baton_protocol::record::{
    AnyCommit, Assigned, Cause, Commit, FORMAT, Record, ResourceRecord, Turn, WorkflowRecord,
};
use baton_protocol::request::{
    AssignAnswer, AssignTasks, GetLearning, ImportLearning, LearningPage, Lesson, MAX_LESSONS, OptimizerRequest,
    Placement, Refusal, SetStrategy, Strategy,
};
use baton_protocol::{
    AgentId, Code, Json, LeaseId, Millis, Number, Rejection, Resources, RunId, Service, TaskId, WorkflowName,
};

/// When the log begins.
const START: Millis = 1_763_665_200_000;
/// The largest commit, in bytes: what the shell takes unless it is told otherwise.
const COMMIT_BYTES: usize = 128 * 1024;
/// How long nothing happens between one simulation and the next.
const PAUSE_MS: Millis = 1000;

/// What was said between the services and the agents. One commit, question, answer, push or report is one message.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Messages {
    /// Commits to the log.
    pub commits: u64,
    /// The records in them.
    pub records: u64,
    /// Questions to the resource-manager; each is answered.
    pub questions: u64,
    /// What was asked for in them.
    pub placements: u64,
    /// What was refused.
    pub refused: u64,
    /// Assignments that were pushed to agents; each is reported on once, and that is acknowledged.
    pub assignments: u64,
}

impl Messages {
    /// How many messages that were.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.commits + 2 * self.questions + 3 * self.assignments
    }

    /// How many it would have been if each record were a commit, and each placement asked for alone.
    #[must_use]
    pub fn each_alone(&self) -> u64 {
        self.records + 2 * self.placements + 3 * self.assignments
    }
}

/// Grants a task to an agent under a lease, and says what the agent sets aside for it; or refuses, and says why.
pub(crate) type Grant<'a> =
    dyn FnMut(LeaseId, &TaskId, &AgentId, Option<LeaseId>) -> Result<Resources, (Code, &'static str)> + 'a;

/// The optimizer as it stands, with all that it has learned.
#[derive(Debug, Clone)]
pub struct Learned {
    snapshot: Snapshot<Optimizer>,
    config: Config,
    log: Log,
    known: BTreeSet<WorkflowName>,
    started: u64,
    time: Millis,
}

impl Learned {
    /// What was learned, as another optimizer takes it (`learning.import`).
    #[must_use]
    pub fn lessons(&self) -> Vec<Lesson> {
        let mut driver = Driver::resume(self);
        let mut lessons: Vec<Lesson> = Vec::new();
        loop {
            let after = lessons.last().map(|lesson| lesson.of.clone());
            let page = driver.lessons(GetLearning { after });
            let more = page.more && !page.lessons.is_empty();
            lessons.extend(page.lessons);
            if !more {
                return lessons;
            }
        }
    }
}

/// Where the log stands.
#[derive(Debug, Clone, Default)]
struct Log {
    /// The sequence of the last message.
    last: u64,
    /// The number of the last record of the workflow-manager.
    workflow: Number,
    /// The number of the last record of the resource-manager.
    resource: Number,
}

/// The optimizer, its log, and what was told to it.
#[derive(Debug)]
pub(crate) struct Driver {
    processor: Processor<Optimizer>,
    config: Config,
    log: Log,
    /// The workflows that are registered.
    known: BTreeSet<WorkflowName>,
    /// How many runs were started so far.
    started: u64,
    /// When the simulation began.
    base: Millis,
    /// When it is now.
    time: Millis,
    pub(crate) messages: Messages,
}

impl Driver {
    /// An optimizer that knows nothing but these agents.
    pub(crate) fn new(strategy: Strategy, config: Config, agents: Vec<ResourceRecord>) -> Self {
        let processor = Processor::new(config.clone());
        let mut driver = Self::around(processor, config, Log::default(), START);
        driver.processor.lead("simulate", START);
        driver.append_resource(agents);
        let request = OptimizerRequest::SetStrategy(SetStrategy { strategy });
        driver.processor.request(0, "strategy.set", request, RequestContext::default(), START);
        driver.settle(&mut |_, _, _, _| Err((Code::NotReady, "nothing has begun")));
        driver.messages = Messages::default();
        driver
    }

    /// Goes on from where an optimizer stood.
    pub(crate) fn resume(learned: &Learned) -> Self {
        let Learned { snapshot, config, log, known, started, time } = learned.clone();
        let processor = Processor::restore(snapshot, config.clone());
        let mut driver = Self::around(processor, config, log, time);
        (driver.known, driver.started) = (known, started);
        driver.processor.lead("simulate", time);
        driver.settle(&mut |_, _, _, _| Err((Code::NotReady, "nothing has begun")));
        driver.messages = Messages::default();
        driver
    }

    fn around(mut processor: Processor<Optimizer>, config: Config, log: Log, base: Millis) -> Self {
        processor.show_traces(0.0);
        let messages = Messages::default();
        Self { processor, config, log, known: BTreeSet::new(), started: 0, base, time: base, messages }
    }

    pub(crate) fn optimizer(&self) -> &Optimizer {
        self.processor.machine()
    }

    /// Ends a simulation: what was learned in it.
    pub(crate) fn learned(&self) -> Learned {
        Learned {
            snapshot: self.processor.snapshot().expect("everything is committed"),
            config: self.config.clone(),
            log: self.log.clone(),
            known: self.known.clone(),
            started: self.started,
            time: self.time + PAUSE_MS,
        }
    }

    /// Ids for so many runs.
    pub(crate) fn runs(&mut self, count: usize) -> Vec<RunId> {
        let first = self.started;
        self.started += count as u64;
        (first..self.started).map(|run| RunId::derive(self.base, u128::from(run))).collect()
    }

    /// Whether a workflow is to be registered; it is then.
    pub(crate) fn is_new(&mut self, workflow: &WorkflowName) -> bool {
        self.known.insert(workflow.clone())
    }

    /// It is so many seconds after the simulation began.
    pub(crate) fn at(&mut self, seconds: f64) {
        self.time = self.time.max(self.in_millis(seconds));
    }

    /// So many seconds after the simulation began, in milliseconds since 1970.
    pub(crate) fn in_millis(&self, seconds: f64) -> Millis {
        self.base + (seconds * 1000.0) as Millis
    }

    /// The time, in milliseconds since 1970.
    pub(crate) fn time(&self) -> Millis {
        self.time
    }

    /// When the optimizer wants to be woken up, in seconds after the simulation began.
    pub(crate) fn wakes(&self) -> Option<f64> {
        let at = self.processor.deadline()?.max(self.time + 1);
        Some(at.saturating_sub(self.base) as f64 / 1000.0)
    }

    /// Wakes it up then.
    pub(crate) fn wake(&mut self, seconds: f64, grant: &mut Grant<'_>) {
        // What is to be woken up at a millisecond must find that it is one, whatever becomes of its fraction.
        self.time = self.time.max(self.base + (seconds * 1000.0).round() as Millis);
        self.processor.tick(self.time);
        self.settle(grant);
    }

    /// A page of what was learned.
    fn lessons(&mut self, request: GetLearning) -> LearningPage {
        let (request, context) = (OptimizerRequest::GetLearning(request), RequestContext::default());
        self.processor.request(0, "learning.get", request, context, self.time);
        let answer = self.released().into_iter().find_map(|effect| match effect {
            Effect::Answer { reply, .. } => reply.ok()?.read().ok(),
            _ => None,
        });
        answer.expect("who leads answers")
    }

    /// Tells it what was learned elsewhere.
    pub(crate) fn teach(&mut self, mut lessons: Vec<Lesson>) {
        while !lessons.is_empty() {
            let rest = lessons.split_off(lessons.len().min(MAX_LESSONS));
            let request = OptimizerRequest::ImportLearning(ImportLearning { lessons });
            self.processor.request(0, "learning.import", request, RequestContext::default(), self.time);
            let refused = self.released().into_iter().find_map(|effect| match effect {
                Effect::Answer { reply, .. } => reply.err(),
                _ => None,
            });
            assert_eq!(refused, None, "lessons can be read");
            lessons = rest;
        }
    }

    /// Appends what the workflow-manager says, and lets the optimizer do what follows.
    pub(crate) fn tell(&mut self, records: Vec<WorkflowRecord>, grant: &mut Grant<'_>) {
        if !records.is_empty() {
            let first = self.log.workflow + 1;
            self.log.workflow += records.len() as u64;
            self.append(records, first, AnyCommit::Workflow);
        }
        self.settle(grant);
    }

    fn append_resource(&mut self, records: Vec<ResourceRecord>) {
        let first = self.log.resource + 1;
        self.log.resource += records.len() as u64;
        self.append(records, first, AnyCommit::Resource);
    }

    /// Appends a commit of another service, and has the optimizer read it.
    fn append<R: Record>(&mut self, records: Vec<R>, first: Number, wrap: impl FnOnce(Commit<R>) -> AnyCommit) {
        self.messages.commits += 1;
        self.messages.records += records.len() as u64;
        let seen = self.log.last;
        self.log.last += 1;
        let turns = vec![Turn { at: self.time, seen, cause: Cause::Timer, records }];
        let commit = Commit { format: FORMAT, instance: "simulate".into(), term: 1, first, handled: seen, turns };
        let commit = Arc::new(wrap(commit));
        self.processor.read_commit(self.log.last, &commit, self.time).expect("the log has no gap");
    }

    /// Commits what the optimizer decided, and answers what it asks, until it has nothing more to say.
    fn settle(&mut self, grant: &mut Grant<'_>) {
        loop {
            let mut asked = false;
            for effect in self.released() {
                if let Effect::Ask { service, endpoint, body, tag } = effect {
                    asked = true;
                    self.messages.questions += 1;
                    let reply = self.asked(service, endpoint, &body, grant);
                    self.processor.answered(tag, reply, self.time);
                }
            }
            if !asked {
                return;
            }
        }
    }

    /// Commits what the optimizer decided: what may leave then.
    fn released(&mut self) -> Vec<Effect> {
        let mut effects = self.processor.immediate();
        while let Some(outgoing) = self.processor.take(COMMIT_BYTES) {
            let seq = match outgoing {
                Outgoing::Commit { records, .. } => {
                    self.log.last += 1;
                    self.messages.commits += u64::from(records > 0);
                    self.messages.records += records;
                    self.log.last
                }
                Outgoing::Prove { .. } => 0,
            };
            effects.extend(self.processor.acknowledged(seq).effects);
        }
        effects
    }

    /// What another service would answer.
    fn asked(&mut self, service: Service, endpoint: &str, body: &Json, grant: &mut Grant<'_>) -> Reply {
        if (service, endpoint) != (Service::ResourceManager, "lease.assign") {
            let message = format!("a simulation does not answer {endpoint} of the {service}");
            return Err(Rejection::new(Code::Unavailable, message));
        }
        let question = body.read::<AssignTasks>();
        let question = question.map_err(|error| Rejection::new(Code::InvalidRequest, error.to_string()))?;
        let (mut leases, mut refused) = (Vec::new(), Vec::new());
        for Placement { task, agent, beside } in question.placements {
            self.messages.placements += 1;
            let lease = LeaseId(self.log.resource + 1 + leases.len() as u64);
            match grant(lease, &task, &agent, beside) {
                Ok(resources) => {
                    let pools = Resources::new();
                    leases.push(ResourceRecord::Assigned(Assigned { task, agent, resources, pools, beside }));
                }
                Err((code, why)) => {
                    refused.push(Refusal { task, agent, rejection: Rejection::new(code, why.to_owned()) });
                }
            }
        }
        self.messages.refused += refused.len() as u64;
        self.messages.assignments += leases.len() as u64;
        let granted = u32::try_from(leases.len()).unwrap_or(u32::MAX);
        if !leases.is_empty() {
            self.append_resource(leases);
        }
        answer(&AssignAnswer { granted, refused })
    }
}
