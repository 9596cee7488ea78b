//! Clients: what they want, and what they were told.

use std::collections::BTreeSet;

use baton_machine::Reply;
use baton_protocol::request::{
    AcknowledgeAlert, ApproveBudget, AskHandoff, AssignTasks, CancelRun, CancelRuns, DecideStage, DenyBudget,
    ExplainPlacement, FindAgents, ForecastQueue, GetLearning, GetPlacement, GetPressure, GetRun, GetSchedule,
    GetSpending, ImportLearning, Lesson, ListAgents, ListAlerts, ListPools, ListRuns, ListSchedules, ListTriggers,
    OptimizerRequest, PauseRun, PauseSchedule, Placement, RaiseEvent, RegisterWorkflow, RemovePool, RemoveSchedule,
    RemoveTrigger, RerunRun, ResourceRequest, ResumeRun, RunAccepted, RunFilter, SetPool, SetSchedule, SetStrategy,
    SetTrigger, ShareBy, SharePool, SignalRun, StartRun, Subject, WorkflowRequest, Workload,
};
use baton_protocol::run::TENANT_KEY;
use baton_protocol::{
    Amount, AtLimit, Budget, Json, Pool, PoolKind, Requirements, Resources, RunId, Service, SignalName, WorkflowName,
};

use serde_json::json;

use super::{Asker, EPOCH, World};
use crate::coverage::Branch;
use crate::request::AnyRequest;
use crate::workload::{EVENT, Placed, SIGNALS, Wish};

/// What a client waits to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// That a run was accepted.
    Start,
    /// That something was shared out.
    Share,
    /// That an account was given more.
    Approval,
    /// That a task was offered to another agent.
    Handoff,
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
            Wish::OfPart(number, pause) => {
                let Some(run) = self.facts.part(number as usize) else { return };
                if pause {
                    self.facts.pause_asked(run);
                    WorkflowRequest::PauseRun(PauseRun { run, reason: None })
                } else {
                    self.facts.cancel_asked(run);
                    WorkflowRequest::CancelRun(CancelRun { run, reason: None })
                }
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
                let rerun = RerunRun { run, from, limit: None, key: None, new_run };
                let request = AnyRequest::Workflow(WorkflowRequest::RerunRun(rerun));
                return self.ask(Asker::Client(Wanted::Start), request, true);
            }
            Wish::Word(number, which, approved) => {
                let Some(run) = known(self, number) else { return };
                let Some(stage) = self.facts.to_be_decided(run, which) else { return };
                let by = Some(format!("person-{which}"));
                let request = DecideStage { run, stage, approved, by, reason: None };
                self.facts.decision_asked(&request);
                WorkflowRequest::DecideStage(request)
            }
            Wish::Signal(number, which, payload) => {
                let Some(run) = known(self, number) else { return };
                let signal = SignalName::new(SIGNALS[which as usize % SIGNALS.len()]).expect("a valid name");
                let payload = if payload == 0 {
                    Json::null()
                } else {
                    Json::of(&json!({ "lease": payload })).unwrap_or_default()
                };
                let request = SignalRun { run, signal, payload, by: None };
                self.facts.signal_asked(&request);
                WorkflowRequest::SignalRun(request)
            }
            Wish::SetSchedule(number) => {
                let (name, schedule) = self.workload.schedules[number].clone();
                WorkflowRequest::SetSchedule(Box::new(SetSchedule { name, schedule }))
            }
            Wish::PauseSchedule(number, paused) => {
                let name = self.workload.schedules[number].0.clone();
                WorkflowRequest::PauseSchedule(PauseSchedule { name, paused })
            }
            Wish::RemoveSchedule(number) => {
                WorkflowRequest::RemoveSchedule(RemoveSchedule { name: self.workload.schedules[number].0.clone() })
            }
            Wish::Schedules(Some(number)) => {
                WorkflowRequest::GetSchedule(GetSchedule { name: self.workload.schedules[number].0.clone() })
            }
            Wish::Schedules(None) => WorkflowRequest::ListSchedules(ListSchedules::default()),
            Wish::SetTrigger(number) => {
                let (name, trigger) = self.workload.triggers[number].clone();
                WorkflowRequest::SetTrigger(Box::new(SetTrigger { name, trigger }))
            }
            Wish::RemoveTrigger(number) => {
                WorkflowRequest::RemoveTrigger(RemoveTrigger { name: self.workload.triggers[number].0.clone() })
            }
            Wish::Triggers => WorkflowRequest::ListTriggers(ListTriggers::default()),
            Wish::Raise(number, agent) => {
                let agents = &self.workload.agents;
                let agent = agent.map(|agent| agents[agent as usize % agents.len()].0.clone());
                let Ok(event) = EVENT.parse() else { return };
                let data = Json::from_text(format!("{{\"n\":{number}}}")).unwrap_or_default();
                let raise = RaiseEvent { event, id: format!("event-{number}"), source: None, data };
                WorkflowRequest::RaiseEvent(agent, raise)
            }
            Wish::Get(number) => {
                let Some(run) = known(self, number) else { return };
                WorkflowRequest::GetRun(GetRun { run })
            }
            Wish::GetNothing => WorkflowRequest::GetRun(GetRun { run: RunId::derive(EPOCH, 1 << 90) }),
            Wish::List => WorkflowRequest::ListRuns(ListRuns { children: true, ..ListRuns::default() }),
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
                let task = tasks[task as usize % tasks.len()].clone();
                let placements = vec![Placement { task, agent, beside: None }];
                let request = AnyRequest::Resource(ResourceRequest::Assign(AssignTasks { seen, placements }));
                return self.ask(Asker::Client(Wanted::Other), request, true);
            }
            Wish::Second(task, agent) => {
                let tasks = self.facts.hedged_tasks();
                let (agents, seen) = (&self.workload.agents, self.facts.number(Service::WorkflowManager));
                if tasks.is_empty() {
                    return;
                }
                let agent = agents[agent as usize % agents.len()].0.clone();
                let (task, first) = tasks[task as usize % tasks.len()].clone();
                let placements = vec![Placement { task, agent, beside: Some(first) }];
                let request = AnyRequest::Resource(ResourceRequest::Assign(AssignTasks { seen, placements }));
                return self.ask(Asker::Client(Wanted::Other), request, true);
            }
            Wish::HandOver(task, to) => {
                let tasks = self.facts.open_tasks();
                if tasks.is_empty() {
                    return;
                }
                let task = &tasks[task as usize % tasks.len()];
                let (run, stage) = (task.run, task.part());
                let agents = &self.workload.agents;
                let to = to.map(|to| agents[to as usize % agents.len()].0.clone());
                let ask = AskHandoff { run, stage, from: None, to, reason: String::new(), timeout_ms: Some(3000) };
                let request = AnyRequest::Resource(ResourceRequest::AskHandoff(ask));
                return self.ask(Asker::Client(Wanted::Handoff), request, true);
            }
            Wish::Alerts => {
                let list = ListAlerts { all: true, ..ListAlerts::default() };
                return self.ask(
                    Asker::Client(Wanted::Other),
                    AnyRequest::Resource(ResourceRequest::ListAlerts(list)),
                    true,
                );
            }
            Wish::Pressure => {
                let request = AnyRequest::Resource(ResourceRequest::GetPressure(GetPressure {}));
                return self.ask(Asker::Client(Wanted::Other), request, true);
            }
            Wish::Acknowledge(wrong) => {
                let Some(last) = self.facts.last_alert() else { return };
                let acknowledge = AcknowledgeAlert { alert: if wrong { 1 << 40 } else { last }, by: None };
                let request = AnyRequest::Resource(ResourceRequest::AcknowledgeAlert(acknowledge));
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
            Wish::Share(by_workload, named) => {
                let parts = self.workload.pools.iter().filter(|named| named.pool.parent.is_some());
                let parts = parts.map(|part| part.name.clone()).filter(|_| named);
                let by = if by_workload {
                    let load = |n: u32| Workload { recent: n % 3, pending: n % 2 };
                    let of = parts.zip(0..).map(|(part, n)| (part, load(n))).collect();
                    ShareBy::Workload { of, minimum: Amount::from(1) }
                } else {
                    ShareBy::Priority(parts.zip(1..).collect())
                };
                let Ok(name) = "budget".parse() else { return };
                let request = AnyRequest::Resource(ResourceRequest::SharePool(SharePool { name, by }));
                return self.ask(Asker::Client(Wanted::Share), request, true);
            }
            Wish::Decide(number, more) => {
                let asking = self.facts.pools.asking();
                if asking.is_empty() {
                    return;
                }
                let name = asking[number as usize % asking.len()].clone();
                let request = if more {
                    ResourceRequest::ApproveBudget(ApproveBudget { name, amount: Amount::from(1 + number) })
                } else {
                    self.facts.denial_sent(&name);
                    ResourceRequest::DenyBudget(DenyBudget { name, reason: None })
                };
                let wanted = if more { Wanted::Approval } else { Wanted::Other };
                return self.ask(Asker::Client(wanted), AnyRequest::Resource(request), true);
            }
            Wish::Spending(by) => {
                let request = AnyRequest::Resource(ResourceRequest::GetSpending(GetSpending { by, after: None }));
                return self.ask(Asker::Client(Wanted::Other), request, true);
            }
            Wish::Acquire(number) => {
                let wanted = self.workload.wanted[number].clone();
                return self.want(None, None, wanted);
            }
            Wish::Placement => {
                // One of both, by what is known already, so that histories stay what they were.
                let request = match self.clients.starts % 2 {
                    0 => OptimizerRequest::GetPlacement(GetPlacement {}),
                    _ => OptimizerRequest::ForecastQueue(ForecastQueue {}),
                };
                let request = AnyRequest::Optimizer(request);
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
            key,
            run,
            strategy: placed.strategy,
            due_ms: placed.due_ms,
            priority: placed.priority,
            no_cache: placed.no_cache,
            budget: placed.limit.map(|limit| Budget {
                limit: Some(Amount::from(limit)),
                currency: Some("EUR".to_owned()),
                at_limit: if limit % 2 == 0 { AtLimit::Fail } else { AtLimit::Wait },
                of: None,
            }),
            metadata: placed.tenant.map(|tenant| (TENANT_KEY.to_owned(), tenant.to_owned())).into_iter().collect(),
            ..StartRun::new(name, input)
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

    /// In the calm, schedules and triggers start runs for a while, and then no more.
    pub(super) fn end_schedules(&mut self) {
        for name in self.facts.triggers() {
            let request = AnyRequest::Workflow(WorkflowRequest::RemoveTrigger(RemoveTrigger { name }));
            self.ask(Asker::Client(Wanted::Other), request, false);
        }
        for name in self.facts.schedules() {
            let request = AnyRequest::Workflow(WorkflowRequest::RemoveSchedule(RemoveSchedule { name }));
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
            // Whoever is asked for more says so in the end.
            for seconds in 1..6 {
                self.workload.wishes.push((0, Wish::Decide(seconds, seconds % 3 != 0)));
                let wish = self.workload.wishes.len() - 1;
                self.after(1_000_000 * u64::from(seconds), super::Event::Wish(wish));
            }
        }
    }

    pub(super) fn told_client(&mut self, wanted: Wanted, reply: Option<&Reply>) {
        let Some(Ok(answer)) = reply else { return };
        match wanted {
            Wanted::Share => self.coverage.branch(Branch::BudgetShared),
            Wanted::Approval => self.coverage.branch(Branch::BudgetApproved),
            Wanted::Handoff => self.coverage.branch(Branch::HandoffAsked),
            Wanted::Start | Wanted::Other => {}
        }
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
