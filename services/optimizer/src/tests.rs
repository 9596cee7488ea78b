//! The machine through the real processor, on a log in memory. First with a resource-manager that the test plays, then
//! with the real one. After every step a replay of the log must give the live state.

mod alone;
mod together;

use std::sync::Arc;

use baton_machine::{Machine, Outgoing, Processor, Released};
use baton_protocol::definition::Definition;
use baton_protocol::record::{
    AgentLeft, AgentRegistered, Assigned, Cause, Commit, FORMAT, LeaseEnded, LeftReason, Outcome, Record,
    ResourceRecord, RunFinished, RunPaused, RunResumed, RunStarted, StageEnded, StageReady, Turn as LogTurn,
    WorkflowRecord, WorkflowRegistered,
};
use baton_protocol::request::Usage;
use baton_protocol::run::RunStatus;
use baton_protocol::{
    AgentId, Capability, Json, LeaseId, Millis, Money, Resources, RunId, Service, StageName, TaskId, WorkflowName,
};

const START: Millis = 1_000_000;

/// The stream: messages, each of one service.
#[derive(Default)]
struct Log {
    messages: Vec<(Service, Vec<u8>)>,
}

impl Log {
    fn feed<M: Machine>(&self, machine: &mut Processor<M>, now: Millis) {
        let from = machine.position() as usize;
        for (index, (service, payload)) in self.messages.iter().enumerate().skip(from) {
            machine.read(index as u64 + 1, *service, payload, now).unwrap();
        }
    }

    /// Commits all that is pending; gives what may leave.
    fn settle<M: Machine>(&mut self, machine: &mut Processor<M>, now: Millis) -> Released<M> {
        self.feed(machine, now);
        let mut all = Released::default();
        while let Some(outgoing) = machine.take(100_000) {
            let seq = match outgoing {
                Outgoing::Commit { payload, .. } => {
                    self.messages.push((M::Record::SERVICE, payload));
                    self.messages.len() as u64
                }
                Outgoing::Prove { .. } => 0,
            };
            let released = machine.acknowledged(seq);
            all.effects.extend(released.effects);
            all.events.extend(released.events);
        }
        self.feed(machine, now);
        all
    }

    /// A replay, and what a snapshot gives back, must be what the live machine is.
    fn check<M: Machine>(&self, machine: &Processor<M>, config: M::Config, now: Millis) {
        let mut replay: Processor<M> = Processor::new(config);
        self.feed(&mut replay, now);
        // Leading handles what lies beyond the cursor.
        replay.lead("replay", now);
        assert_eq!(replay.machine(), machine.machine(), "a replay differs from the live state");
        let text = serde_json::to_string(machine.machine()).unwrap();
        assert_eq!(&serde_json::from_str::<M>(&text).unwrap(), machine.machine(), "a snapshot differs");
    }

    fn append<R: Record>(&mut self, first: &mut u64, at: Millis, records: Vec<R>) {
        let count = records.len() as u64;
        let seen = self.messages.len() as u64;
        let turns = vec![LogTurn { at, seen, cause: Cause::Timer, records }];
        let commit = Commit { format: FORMAT, instance: "t".into(), term: 1, first: *first, handled: 0, turns };
        *first += count;
        self.messages.push((R::SERVICE, serde_json::to_vec(&commit).unwrap()));
    }
}

fn agent(id: &str) -> AgentId {
    AgentId::new(id).unwrap()
}

fn run(n: u64) -> RunId {
    RunId::derive(START, n.into())
}

/// The one stage of run `n`.
fn task(n: u64, attempt: u32) -> TaskId {
    TaskId { run: run(n), stage: StageName::new("work").unwrap(), item: None, attempt }
}

fn workflow() -> WorkflowRecord {
    let stage = |builder: baton_protocol::definition::Builder| builder.add_stage("work", "research", &[]);
    let definition = stage(Definition::builder("article")).build().unwrap();
    WorkflowRecord::WorkflowRegistered(WorkflowRegistered { version: 1, definition: Arc::new(definition) })
}

fn started(n: u64) -> WorkflowRecord {
    WorkflowRecord::RunStarted(RunStarted {
        run: run(n),
        workflow: WorkflowName::new("article").unwrap(),
        version: 1,
        input: Json::null(),
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

fn ready(task: TaskId, agent_type: &str, priority: i32, cpu: u32) -> WorkflowRecord {
    WorkflowRecord::StageReady(StageReady {
        task,
        agent_type: Capability::new(agent_type).unwrap(),
        requires: Default::default(),
        inputs: vec![],
        input: None,
        cache: None,
        hedge: false,
        speculative: false,
        resources: resources(cpu),
        priority,
    })
}

fn resources(cpu: u32) -> Resources {
    (cpu > 0).then(|| ("cpu".parse().unwrap(), cpu.into())).into_iter().collect()
}

fn ended(task: TaskId, lease: Option<(u64, &str)>, outcome: Outcome, duration_ms: Millis) -> WorkflowRecord {
    WorkflowRecord::StageEnded(StageEnded {
        task,
        lease: lease.map(|(lease, _)| LeaseId(lease)),
        agent: lease.map(|(_, id)| agent(id)),
        outcome,
        result: None,
        error: None,
        hopeless: false,
        code: None,
        retry_at: None,
        duration_ms,
        cost: Money::ZERO,
        usage: Usage::default(),
        model: None,
        delegated: None,
        speculative: false,
        other: None,
    })
}

fn finished(n: u64) -> WorkflowRecord {
    WorkflowRecord::RunFinished(RunFinished { run: run(n), status: RunStatus::Succeeded, reason: None })
}

fn paused(n: u64) -> WorkflowRecord {
    WorkflowRecord::RunPaused(RunPaused { run: run(n), reason: None, with_parent: false })
}

fn resumed(n: u64) -> WorkflowRecord {
    WorkflowRecord::RunResumed(RunResumed { run: run(n) })
}

fn registered(id: &str, session: &str, agent_type: &str, slots: u32, cpu: u32, priority: i32) -> ResourceRecord {
    ResourceRecord::AgentRegistered(AgentRegistered {
        agent: agent(id),
        session: session.into(),
        agent_type: Capability::new(agent_type).unwrap(),
        capabilities: [(Capability::new("common").unwrap(), Default::default())].into(),
        resources: resources(cpu),
        slots,
        priority,
        batches: false,
    })
}

fn left(id: &str) -> ResourceRecord {
    ResourceRecord::AgentLeft(AgentLeft { agent: agent(id), reason: LeftReason::Left })
}

fn assigned(task: TaskId, id: &str, cpu: u32) -> ResourceRecord {
    ResourceRecord::Assigned(Assigned {
        task,
        agent: agent(id),
        resources: resources(cpu),
        pools: Resources::new(),
        beside: None,
    })
}

fn declined(task: TaskId, lease: u64, id: &str) -> ResourceRecord {
    let (lease, reason) = (LeaseId(lease), "busy".into());
    ResourceRecord::LeaseEnded(LeaseEnded { lease, task, agent: agent(id), reason, silent: false })
}
