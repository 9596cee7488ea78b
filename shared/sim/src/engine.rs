//! A machine under its processor, with its type hidden, so that one world can hold all three.

use std::any::Any;
use std::sync::Arc;

use baton_machine::planted::{Bug, is_planted};
use baton_machine::{Effect, Machine, Outgoing, Processor, ReadError, Reply, RequestContext, Snapshot, Token};
use baton_optimizer::Optimizer;
use baton_protocol::record::{AnyCommit, Event};
use baton_protocol::{Millis, Service};
use baton_resource_manager::ResourceManager;
use baton_workflow_manager::WorkflowManager;

use crate::log::Log;
use crate::request::AnyRequest;

/// A machine that the simulation runs.
pub(crate) trait Simulated: Machine {
    /// A request of its own, out of one of anybody's.
    fn take(request: &AnyRequest) -> Option<Self::Request>;
}

impl Simulated for WorkflowManager {
    fn take(request: &AnyRequest) -> Option<Self::Request> {
        match request {
            AnyRequest::Workflow(request) => Some(request.clone()),
            AnyRequest::Resource(_) | AnyRequest::Optimizer(_) => None,
        }
    }
}

impl Simulated for ResourceManager {
    fn take(request: &AnyRequest) -> Option<Self::Request> {
        match request {
            AnyRequest::Resource(request) => Some(request.clone()),
            AnyRequest::Workflow(_) | AnyRequest::Optimizer(_) => None,
        }
    }
}

impl Simulated for Optimizer {
    fn take(request: &AnyRequest) -> Option<Self::Request> {
        match request {
            AnyRequest::Optimizer(request) => Some(request.clone()),
            AnyRequest::Workflow(_) | AnyRequest::Resource(_) => None,
        }
    }
}

/// A machine's state, to be compared.
pub(crate) type State = Box<dyn Any>;

/// What a processor wants sent.
pub(crate) struct Sent {
    pub(crate) outgoing: Outgoing,
    /// The writer's state at this commit, where the commit takes all that was decided.
    pub(crate) state: Option<State>,
}

/// What left with an acknowledgement.
pub(crate) struct Left {
    pub(crate) effects: Vec<Effect>,
    pub(crate) events: Vec<(String, Event)>,
    /// The snapshot to be kept, as text.
    pub(crate) snapshot: Option<Vec<u8>>,
}

/// A processor of some machine.
pub(crate) trait Engine {
    fn read(&mut self, seq: u64, commit: &Arc<AnyCommit>, now: Millis) -> Result<(), ReadError>;
    fn position(&self) -> u64;
    fn is_leading(&self) -> bool;
    fn is_drained(&self) -> bool;
    fn time(&self) -> Millis;
    fn deadline(&self) -> Option<Millis>;
    fn campaign_won(&mut self, last: u64);
    fn begin_term(&mut self, instance: &str, now: Millis) -> bool;
    fn term(&self) -> u64;
    fn request(&mut self, token: Token, request: &AnyRequest, now: Millis);
    fn answered(&mut self, tag: u64, reply: Reply, now: Millis);
    fn takes_memory(&mut self, percent: u32);
    fn tick(&mut self, now: Millis);
    fn immediate(&mut self) -> Vec<Effect>;
    fn take(&mut self, max_bytes: usize) -> Option<Sent>;
    fn acknowledged(&mut self, seq: u64) -> Left;
    fn state(&self) -> &dyn Any;
    /// How its state differs from another one.
    fn difference(&self, other: &dyn Any) -> Option<String>;
}

impl<M: Simulated> Engine for Processor<M> {
    fn read(&mut self, seq: u64, commit: &Arc<AnyCommit>, now: Millis) -> Result<(), ReadError> {
        self.read_commit(seq, commit, now)
    }

    fn position(&self) -> u64 {
        Self::position(self)
    }

    fn is_leading(&self) -> bool {
        Self::is_leading(self)
    }

    fn is_drained(&self) -> bool {
        Self::is_drained(self)
    }

    fn time(&self) -> Millis {
        Self::time(self)
    }

    fn deadline(&self) -> Option<Millis> {
        Self::deadline(self)
    }

    fn campaign_won(&mut self, last: u64) {
        Self::campaign_won(self, last);
    }

    fn begin_term(&mut self, instance: &str, now: Millis) -> bool {
        Self::begin_term(self, instance, now)
    }

    fn term(&self) -> u64 {
        Self::term(self)
    }

    fn request(&mut self, token: Token, request: &AnyRequest, now: Millis) {
        if let Some(own) = M::take(request) {
            Self::request(self, token, request.endpoint(), own, RequestContext::default(), now);
        }
    }

    fn answered(&mut self, tag: u64, reply: Reply, now: Millis) {
        Self::answered(self, tag, reply, now);
    }

    fn takes_memory(&mut self, percent: u32) {
        Self::takes_memory(self, Some(percent));
    }

    fn tick(&mut self, now: Millis) {
        Self::tick(self, now);
    }

    fn immediate(&mut self) -> Vec<Effect> {
        Self::immediate(self)
    }

    fn take(&mut self, max_bytes: usize) -> Option<Sent> {
        let outgoing = Self::take(self, max_bytes)?;
        let whole = matches!(outgoing, Outgoing::Commit { .. }) && self.has_taken_all();
        let state = whole.then(|| Box::new(self.machine().clone()) as State);
        Some(Sent { outgoing, state })
    }

    fn acknowledged(&mut self, seq: u64) -> Left {
        let released = Self::acknowledged(self, seq);
        let snapshot = released.snapshot.map(|snapshot| write(&snapshot));
        Left { effects: released.effects, events: released.events, snapshot }
    }

    fn state(&self) -> &dyn Any {
        self.machine()
    }

    fn difference(&self, other: &dyn Any) -> Option<String> {
        let other: &M = other.downcast_ref()?;
        (self.machine() != other).then(|| first_difference(&format!("{:#?}", self.machine()), &format!("{other:#?}")))
    }
}

fn write<M: Machine>(snapshot: &Snapshot<M>) -> Vec<u8> {
    if is_planted(Bug::TimersNotInSnapshot) {
        let mut value = serde_json::to_value(snapshot).expect("a snapshot can be written as JSON");
        if let Some(timers) = value["machine"].get_mut("timers") {
            *timers = serde_json::json!([]);
        }
        return value.to_string().into_bytes();
    }
    serde_json::to_vec(snapshot).expect("a snapshot can be written as JSON")
}

/// The lines around the first one that differs.
fn first_difference(one: &str, other: &str) -> String {
    let pairs = one.lines().zip(other.lines()).enumerate();
    let at = pairs.into_iter().find(|(_, (a, b))| a != b).map_or(0, |(at, _)| at);
    let around = |text: &str| text.lines().skip(at.saturating_sub(6)).take(14).collect::<Vec<_>>().join("\n");
    format!("one:\n{}\nthe other:\n{}", around(one), around(other))
}

/// A snapshot to start from, and the log that it should be of.
pub(crate) struct Start<'a> {
    pub(crate) text: &'a [u8],
    pub(crate) log: &'a Log,
}

impl Start<'_> {
    fn restore<M: Machine>(&self, config: M::Config) -> Option<Processor<M>> {
        let snapshot: Snapshot<M> = serde_json::from_slice(self.text).ok()?;
        let own = self.log.get(snapshot.own).map(|message| (message.service, message.payload.as_slice()));
        snapshot.fits(self.log.end(), own).then(|| Processor::restore(snapshot, config))
    }
}

/// A fresh processor of a service, or one from a snapshot. None: the snapshot can not be read, or does not fit.
pub(crate) fn engine(service: Service, configs: &Configs, start: Option<&Start<'_>>) -> Option<Box<dyn Engine>> {
    fn of<M: Simulated>(config: &M::Config, start: Option<&Start<'_>>, configs: &Configs) -> Option<Box<dyn Engine>> {
        let mut processor: Processor<M> = match start {
            None => Processor::new(config.clone()),
            Some(start) => start.restore(config.clone())?,
        };
        processor.keep_snapshots(configs.snapshot_every, 0);
        if configs.prove_by_commit {
            processor.prove_by_commit();
        }
        Some(Box::new(processor))
    }
    match service {
        Service::WorkflowManager => of::<WorkflowManager>(&configs.workflow, start, configs),
        Service::ResourceManager => of::<ResourceManager>(&configs.resource, start, configs),
        Service::Optimizer => of::<Optimizer>(&configs.optimizer, start, configs),
        Service::Gateway => None,
    }
}

/// The settings of one history.
#[derive(Debug, Clone)]
pub(crate) struct Configs {
    pub(crate) workflow: baton_workflow_manager::Config,
    pub(crate) resource: baton_resource_manager::Config,
    pub(crate) optimizer: baton_optimizer::Config,
    /// About the largest commit, in bytes.
    pub(crate) commit_bytes: usize,
    pub(crate) snapshot_every: u64,
    pub(crate) prove_by_commit: bool,
}
