//! Requests of any service, as the simulation carries them.

use baton_protocol::Service;
use baton_protocol::request::{OptimizerRequest, ResourceRequest, WorkflowRequest};

/// A request to some service.
#[derive(Debug, Clone)]
pub(crate) enum AnyRequest {
    Workflow(WorkflowRequest),
    Resource(ResourceRequest),
    Optimizer(OptimizerRequest),
}

impl AnyRequest {
    /// Whom it is for.
    pub(crate) fn service(&self) -> Service {
        match self {
            Self::Workflow(_) => Service::WorkflowManager,
            Self::Resource(_) => Service::ResourceManager,
            Self::Optimizer(_) => Service::Optimizer,
        }
    }

    /// What it asks for.
    pub(crate) fn endpoint(&self) -> &'static str {
        match self {
            Self::Workflow(request) => match request {
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
            },
            Self::Resource(request) => match request {
                ResourceRequest::Register(..) => "agent.register",
                ResourceRequest::Heartbeat(..) => "agent.heartbeat",
                ResourceRequest::Decline(..) => "agent.decline",
                ResourceRequest::Leave(..) => "agent.leave",
                ResourceRequest::Progress(..) => "agent.progress",
                ResourceRequest::OfferHandoff(..) => "agent.handoff",
                ResourceRequest::AcknowledgeHandoff(..) => "agent.acknowledge",
                ResourceRequest::ListAgents(_) => "agent.list",
                ResourceRequest::Assign(_) => "lease.assign",
                ResourceRequest::SetPool(_) => "pool.set",
                ResourceRequest::SharePool(_) => "pool.share",
                ResourceRequest::ApproveBudget(_) => "budget.approve",
                ResourceRequest::DenyBudget(_) => "budget.deny",
                ResourceRequest::GetSpending(_) => "budget.spending",
                ResourceRequest::RemovePool(_) => "pool.remove",
                ResourceRequest::ListPools(_) => "pool.list",
                ResourceRequest::Acquire(None, _) => "lease.acquire",
                ResourceRequest::Renew(None, _) => "lease.renew",
                ResourceRequest::Release(None, _) => "lease.release",
                ResourceRequest::ListLeases(_) => "lease.list",
                ResourceRequest::Acquire(Some(_), _) => "agent.acquire",
                ResourceRequest::Renew(Some(_), _) => "agent.renew",
                ResourceRequest::Release(Some(_), _) => "agent.release",
                ResourceRequest::ListAlerts(_) => "alert.list",
                ResourceRequest::AcknowledgeAlert(_) => "alert.acknowledge",
                ResourceRequest::AskHandoff(_) => "handoff.ask",
                ResourceRequest::GetPressure(_) => "pressure.get",
            },
            Self::Optimizer(request) => match request {
                OptimizerRequest::SetStrategy(_) => "strategy.set",
                OptimizerRequest::GetPlacement(_) => "placement.get",
                OptimizerRequest::FindAgents(_) => "agent.find",
                OptimizerRequest::ExplainPlacement(_) => "placement.explain",
                OptimizerRequest::PlanCapacity(_) => "capacity.plan",
                OptimizerRequest::Advise(_) => "advice.get",
                OptimizerRequest::ForecastQueue(_) => "queue.forecast",
                OptimizerRequest::GetLearning(_) => "learning.get",
                OptimizerRequest::ImportLearning(_) => "learning.import",
            },
        }
    }
}
