//! Clients: what they want, and what they were told.

use std::collections::BTreeSet;

use baton_machine::Reply;
use baton_protocol::request::{
    AssignTasks, CancelRun, CancelRuns, ExplainPlacement, FindAgents, GetLearning, GetPlacement, GetRun,
    ImportLearning, Lesson, ListAgents, ListPools, ListRuns, OptimizerRequest, PauseRun, Placement, RegisterWorkflow,
    RemovePool, RerunRun, ResourceRequest, ResumeRun, RunAccepted, RunFilter, SetPool, SetStrategy, StartRun, Subject,
    WorkflowRequest,
};
use baton_protocol::{Amount, Json, Pool, PoolKind, Requirements, Resources, RunId, Service, WorkflowName};

use super::{Asker, EPOCH, World};
use crate::coverage::Branch;
use crate::request::AnyRequest;
use crate::workload::{Placed, Wish};

/// What a client waits to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// That a run was accepted.
    Start,
    /// Something else.
    Other,
}

/// What clients were told.
#[derive(Debug, Default)]
pub(super) struct Clients {
    accepted: Vec<RunId>,
    known: BTreeSet<RunId>,
    starts: u64,
}

impl Clients {
    /// The runs that were said to be accepted.
    pub(super) fn accepted(&self) -> impl Iterator<Item = RunId> {
        self.accepted.iter().copied()
    }
}

impl World {
    pub(super) fn wish(&mut self, wish: usize) {
        let (_, wish) = self.workload.wishes[wish].clone();
        let known = |world: &Self, number: u32| {
            let accepted = &world.clients.accepted;
            (!accepted.is_empty()).then(|| accepted[number as usize % accepted.len()])
        };
        let request = match wish {
            Wish::Register(definition) => {
                let definition = Json::of(&self.workload.definitions[definition]).ok();
                WorkflowRequest::RegisterWorkflow(RegisterWorkflow { source: None, definition })
            }
            Wish::Start { workflow, own_id, key, placed } => {
                self.start(workflow, own_id, key, placed);
                return;
            }
            Wish::Cancel(number) => {
                let Some(run) = known(self, number) else { return };
                self.facts.cancel_asked(run);
                WorkflowRequest::CancelRun(CancelRun { run, reason: None })
            }
            Wish::CancelAll(workflow) => {
                let Some(definition) = self.workload.definitions.get(workflow) else { return };
                let filter = RunFilter { workflow: Some(definition.name.clone()), ..RunFilter::default() };
                self.facts.cancel_all_asked(definition.name.clone());
                WorkflowRequest::CancelRuns(CancelRuns { filter, all: false, reason: None, limit: Some(2) })
            }
            Wish::Pause(number) => {
                let Some(run) = known(self, number) else { return };
                self.facts.pause_asked(run);
                WorkflowRequest::PauseRun(PauseRun { run, reason: None })
            }
            Wish::Resume(number) => {
                let Some(run) = known(self, number) else { return };
                WorkflowRequest::ResumeRun(ResumeRun { run })
            }
            Wish::Rerun(number, stage) => {
                let Some(run) = known(self, number) else { return };
                let Some(from) = self.facts.stage_of(run, stage as usize) else { return };
                self.clients.starts += 1;
                let number = u128::from(self.clients.starts);
                let new_run = Some(RunId::derive(EPOCH + self.now / 1000, (7 << 70) | number));
                let rerun = RerunRun { run, from, key: None, new_run };
                let request = AnyRequest::Workflow(WorkflowRequest::RerunRun(rerun));
                return self.ask(Asker::Client(Wanted::Start), request, true);
            }
            Wish::Get(number) => {
                let Some(run) = known(self, number) else { return };
                WorkflowRequest::GetRun(GetRun { run })
            }
            Wish::GetNothing => WorkflowRequest::GetRun(GetRun { run: RunId::derive(EPOCH, 1 << 90) }),
            Wish::List => WorkflowRequest::ListRuns(ListRuns::default()),
            Wish::Agents => {
                let request = AnyRequest::Resource(ResourceRequest::ListAgents(ListAgents::default()));
                return self.ask(Asker::Client(Wanted::Other), request, true);
            }
            Wish::Strategy(strategy) => {
                let request = AnyRequest::Optimizer(OptimizerRequest::SetStrategy(SetStrategy { strategy }));
                return self.ask(Asker::Client(Wanted::Other), request, true);
            }
            Wish::Assign(task, agent) => {
                let tasks = self.facts.open_tasks();
                let (agents, seen) = (&self.workload.agents, self.facts.number(Service::WorkflowManager));
                if tasks.is_empty() {
                    return;
                }
                let agent = agents[agent as usize % agents.len()].0.clone();
                let placements = vec![Placement { task: tasks[task as usize % tasks.len()].clone(), agent }];
                let request = AnyRequest::Resource(ResourceRequest::Assign(AssignTasks { seen, placements }));
                return self.ask(Asker::Client(Wanted::Other), request, true);
            }
            Wish::Find(kind) => {
                let (_, registration) = &self.workload.agents[kind as usize % self.workload.agents.len()];
                let capability = registration.agent_type.clone();
                let (requires, resources) = (Requirements::none(), Resources::new());
                let find = FindAgents { capability, requires, resources, limit: None };
                let request = AnyRequest::Optimizer(OptimizerRequest::FindAgents(find));
                return self.ask(Asker::Client(Wanted::Other), request, true);
            }
            Wish::Explain(number) => {
                let Some(run) = known(self, number) else { return };
                let stages = self.workload.definitions.iter().flat_map(|definition| &definition.stages);
                let Some(stage) = stages.map(|stage| stage.name.clone()).nth(number as usize) else { return };
                let explain = ExplainPlacement { run, stage };
                let request = AnyRequest::Optimizer(OptimizerRequest::ExplainPlacement(explain));
                return self.ask(Asker::Client(Wanted::Other), request, true);
            }
            Wish::Learning => {
                let request = AnyRequest::Optimizer(OptimizerRequest::GetLearning(GetLearning::default()));
                return self.ask(Asker::Client(Wanted::Other), request, true);
            }
            Wish::Import(agent) => {
                let agents = &self.workload.agents;
                let of = Subject::Agent(agents[agent as usize % agents.len()].0.clone());
                let known = r#"{"score":700000,"succeeded":7,"failed":1,"gone":null,"failing":0.125}"#;
                let lessons = vec![Lesson { of, known: Json::from_text(known.to_owned()).unwrap_or_default() }];
                let request = AnyRequest::Optimizer(OptimizerRequest::ImportLearning(ImportLearning { lessons }));
                return self.ask(Asker::Client(Wanted::Other), request, true);
            }
            Wish::Pools => {
                let request = AnyRequest::Resource(ResourceRequest::ListPools(ListPools::default()));
                return self.ask(Asker::Client(Wanted::Other), request, true);
            }
            Wish::SetPool(pool, size) => {
                let Some(named) = self.workload.pools.get(pool) else { return };
                let mut pool = named.pool.clone();
                match size {
                    // Another kind under the same name: that is refused, unless the pool was removed.
                    Some(size @ 4..) if pool.kind == PoolKind::Refilled => pool = Pool::new(PoolKind::Held, size),
                    Some(size) => pool.size = pool.size.map(|_| Amount::from(size)),
                    None => {}
                }
                let request = SetPool { name: named.name.clone(), pool };
                let request = AnyRequest::Resource(ResourceRequest::SetPool(request));
                return self.ask(Asker::Client(Wanted::Other), request, true);
            }
            Wish::RemovePool(pool) => {
                let Some(named) = self.workload.pools.get(pool) else { return };
                let request = RemovePool { name: named.name.clone() };
                let request = AnyRequest::Resource(ResourceRequest::RemovePool(request));
                return self.ask(Asker::Client(Wanted::Other), request, true);
            }
            Wish::Acquire(number) => {
                let wanted = self.workload.wanted[number].clone();
                return self.want(None, None, wanted);
            }
            Wish::Placement => {
                let request = AnyRequest::Optimizer(OptimizerRequest::GetPlacement(GetPlacement {}));
                return self.ask(Asker::Client(Wanted::Other), request, true);
            }
        };
        self.ask(Asker::Client(Wanted::Other), AnyRequest::Workflow(request), true);
    }

    fn start(&mut self, workflow: usize, own_id: bool, key: Option<u32>, placed: Placed) {
        let Some(definition) = self.workload.definitions.get(workflow) else { return };
        let name: WorkflowName = definition.name.clone();
        self.clients.starts += 1;
        let number = self.clients.starts;
        let run = own_id.then(|| RunId::derive(EPOCH + self.now / 1000, (7 << 70) | u128::from(number)));
        let input = Json::from_text(format!("{{\"n\":{}}}", key.map_or(number, |_| 0))).unwrap_or_default();
        let key = key.map(|key| format!("key-{key}"));
        let start = StartRun {
            workflow: name,
            version: None,
            input,
            priority: 0,
            key,
            run,
            trace: None,
            strategy: placed.strategy,
            due_ms: placed.due_ms,
            metadata: Default::default(),
        };
        self.ask(Asker::Client(Wanted::Start), AnyRequest::Workflow(WorkflowRequest::StartRun(start)), true);
    }

    /// In the calm, whatever is paused is to go on.
    pub(super) fn resume_all(&mut self) {
        for run in self.facts.paused() {
            let request = AnyRequest::Workflow(WorkflowRequest::ResumeRun(ResumeRun { run }));
            self.ask(Asker::Client(Wanted::Other), request, false);
        }
    }

    /// When the calm begins, every workflow is started once more.
    pub(super) fn wish_in_calm(&mut self) {
        for workflow in 0..self.workload.definitions.len() {
            self.start(workflow, true, None, Placed::default());
        }
        // And something is looked at, once all has come to rest.
        if !self.workload.pools.is_empty() {
            for seconds in [1, 3, 5] {
                self.workload.wishes.push((0, Wish::Pools));
                let wish = self.workload.wishes.len() - 1;
                self.after(1_000_000 * seconds, super::Event::Wish(wish));
            }
        }
    }

    pub(super) fn told_client(&mut self, wanted: Wanted, reply: Option<&Reply>) {
        let Some(Ok(answer)) = reply else { return };
        if wanted == Wanted::Start
            && let Ok(accepted) = answer.read::<RunAccepted>()
        {
            if accepted.existing {
                self.coverage.branch(Branch::StartRepeated);
            }
            if self.clients.known.insert(accepted.run) {
                self.clients.accepted.push(accepted.run);
            }
        }
    }
}
