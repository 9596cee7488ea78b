//! What was said must be what the log says: nothing is answered, pushed or published before its commit, what was acknowledged
//! was applied, and a refusal was decided at the head of the log.
//!
//! An answer is held against the log as it is when the answer leaves. What can only become true with time (a lease has ended, a
//! run is over) must be true by then; what can become false again is held against what stood in the log when the request
//! was sent.

use baton_machine::{Publication, Reply};
use baton_protocol::record::Event;
use baton_protocol::request::{
    Acquire, AcquireAnswer, AgentsFound, AlertList, AssignAnswer, AssignTasks, Assignment, Assignments, CancelTask,
    Forecast, HandoffOpen, HeartbeatAnswer, OptimizerRequest, PlacementExplained, ProgressEvent, Report, ReportAnswer,
    Reports, ReportsAnswered, ResourceRequest, RunAccepted, RunList, ScheduleList, ShareBy, StartRun, WorkflowRequest,
    WorkflowView,
};
use baton_protocol::run::{RunStatus, RunView};
use baton_protocol::{AgentId, Code, Holder, Json, LeaseId, Rejection, RunId, Service};

use super::{Checked, Facts, broken, hold};
use crate::coverage::Branch;
use crate::request::AnyRequest;

pub(super) const COMMITTED: &str = "nothing is answered, pushed or published before its commit";
pub(super) const APPLIED: &str = "what was acknowledged was applied";
const HEAD: &str = "a refusal was decided at the head of the log by a leader that led";
const FENCED: &str = "a lease that was handed over is given to nobody";
const FRESH: &str = "an answer is not older than its question";

/// A request as it was sent.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) request: AnyRequest,
    /// Where the log ended when it was sent first.
    pub(crate) sent: u64,
}

impl Facts {
    /// An answer leaves.
    pub(crate) fn answered(&self, asked: &Asked, reply: &Reply) -> Checked {
        match (&asked.request, reply) {
            (_, Err(rejection)) if rejection.code == Code::Unavailable => Ok(()),
            (AnyRequest::Workflow(request), Ok(answer)) => self.workflow_answered(request, answer, asked.sent),
            (AnyRequest::Resource(request), Ok(answer)) => self.resource_answered(request, answer, asked.sent),
            (AnyRequest::Optimizer(OptimizerRequest::SetStrategy(request)), Ok(_)) => {
                let applied = self.strategies > 0 || request.strategy == baton_protocol::request::Strategy::default();
                hold!(applied, APPLIED, "the strategy was never changed to {:?}", request.strategy);
                Ok(())
            }
            (AnyRequest::Optimizer(OptimizerRequest::FindAgents(request)), Ok(answer)) => {
                let found: AgentsFound = read(answer)?;
                hold!(
                    found.agents.len() as u64 == found.found,
                    APPLIED,
                    "{} of {} are told",
                    found.agents.len(),
                    found.found
                );
                for one in &found.agents {
                    let known = self.agents.get(&one.agent);
                    let able = known.is_some_and(|agent| super::can(&agent.record, &request.capability));
                    hold!(able, COMMITTED, "{} was found for {}, and can not do it", one.agent, request.capability);
                }
                let ranked = found.agents.is_sorted_by_key(|one| !one.has_room);
                hold!(ranked, APPLIED, "agents without room are found before those with: {found:?}");
                Ok(())
            }
            (AnyRequest::Optimizer(OptimizerRequest::ImportLearning(request)), Ok(_)) => {
                let imported = request.lessons.iter().all(|lesson| self.imported.contains(lesson));
                hold!(imported, APPLIED, "lessons that were imported are not in the log: {request:?}");
                Ok(())
            }
            (AnyRequest::Optimizer(OptimizerRequest::ExplainPlacement(request)), Ok(answer)) => {
                let explained: PlacementExplained = read(answer)?;
                let meant = explained.task.run == request.run && explained.task.stage == request.stage;
                hold!(meant, APPLIED, "it was explained why {} is placed, not {request:?}", explained.task);
                let candidates = explained.candidates.iter().map(|candidate| &candidate.agent);
                for agent in candidates.chain(&explained.agent) {
                    hold!(self.agents.contains_key(agent), COMMITTED, "{agent} was considered, and is nobody");
                }
                Ok(())
            }
            (AnyRequest::Optimizer(OptimizerRequest::ForecastQueue(_)), Ok(answer)) => {
                let told: Forecast = read(answer)?;
                let sums = told.held_up <= told.late && told.late <= told.due && told.first.len() as u64 <= told.late;
                hold!(sums, APPLIED, "more is late than is due, or held up than is late: {told:?}");
                for late in &told.first {
                    let known = self.runs.get(&late.run).is_some_and(|run| run.workflow == late.workflow);
                    hold!(known, COMMITTED, "run {} will be late, and never started", late.run);
                    let in_time = late.could_end <= late.due && late.ends.is_some_and(|ends| ends <= late.due);
                    hold!(!in_time, APPLIED, "it is said to be late, and to end in time: {late:?}");
                }
                Ok(())
            }
            (AnyRequest::Optimizer(_), Ok(_)) => Ok(()),
            (request, Err(rejection)) => self.refused(request, rejection, asked.sent),
        }
    }

    fn workflow_answered(&self, request: &WorkflowRequest, answer: &Json, sent: u64) -> Checked {
        match request {
            WorkflowRequest::RegisterWorkflow(_) => {
                let view: WorkflowView = read(answer)?;
                let (name, number) = (&view.definition.name, view.version);
                let known = self.definitions.get(name).and_then(|v| v.get((number as usize).checked_sub(1)?));
                let known = known.is_some_and(|(_, definition)| **definition == view.definition);
                hold!(known, COMMITTED, "workflow {name} version {number} is not in the log");
                Ok(())
            }
            WorkflowRequest::StartRun(request) => self.accepted(request, &read(answer)?),
            WorkflowRequest::CancelRun(request) => {
                let finished = self.runs.get(&request.run).and_then(|run| run.finished);
                let cancelled = finished.is_some_and(|(_, status)| status == RunStatus::Cancelled);
                hold!(cancelled, APPLIED, "run {} was said to be cancelled, and is {finished:?}", request.run);
                Ok(())
            }
            WorkflowRequest::CancelRuns(_) => self.cancelled_together(&read(answer)?),
            WorkflowRequest::PauseRun(request) => self.was_paused(request.run),
            WorkflowRequest::ResumeRun(request) => self.was_resumed(request.run, &read(answer)?),
            WorkflowRequest::RerunRun(request) => self.repeated(request, &read(answer)?),
            WorkflowRequest::Report(agent, report) => self.report_stored(agent, report),
            WorkflowRequest::Reports(agent, Reports { reports }) => {
                let answers = read::<ReportsAnswered>(answer)?.answers;
                hold!(
                    answers.len() == reports.len(),
                    APPLIED,
                    "{} reports have {} answers",
                    reports.len(),
                    answers.len()
                );
                reports.iter().zip(answers).try_for_each(|(report, answer)| match answer {
                    ReportAnswer::Stored(_) => self.report_stored(agent, report),
                    ReportAnswer::Refused(rejection) => {
                        let alone = AnyRequest::Workflow(WorkflowRequest::Report(agent.clone(), report.clone()));
                        self.refused(&alone, &rejection, sent)
                    }
                })
            }
            WorkflowRequest::GetRun(_) => {
                let view: RunView = read(answer)?;
                self.shown(view.run, view.status, sent)
            }
            WorkflowRequest::ListRuns(_) => {
                let list: RunList = read(answer)?;
                list.runs.iter().try_for_each(|run| self.shown(run.run, run.status, sent))
            }
            WorkflowRequest::DecideStage(_) => self.decision_stored(&read(answer)?),
            WorkflowRequest::SignalRun(request) => self.signal_stored(request, &read(answer)?),
            WorkflowRequest::SetSchedule(_) | WorkflowRequest::PauseSchedule(_) | WorkflowRequest::GetSchedule(_) => {
                self.schedule_shown(&read(answer)?)
            }
            WorkflowRequest::ListSchedules(_) => {
                let list: ScheduleList = read(answer)?;
                list.schedules.iter().try_for_each(|view| self.schedule_shown(view))
            }
            WorkflowRequest::RaiseEvent(_, request) => self.event_stored(&request.id, &read(answer)?),
            WorkflowRequest::RemoveSchedule(_)
            | WorkflowRequest::SetTrigger(_)
            | WorkflowRequest::RemoveTrigger(_)
            | WorkflowRequest::ListTriggers(_) => Ok(()),
            WorkflowRequest::ValidateWorkflow(_)
            | WorkflowRequest::ListWorkflows(_)
            | WorkflowRequest::GetWorkflow(_) => Ok(()),
        }
    }

    fn report_stored(&self, agent: &AgentId, report: &Report) -> Checked {
        let Some(lease) = self.leases.get(&report.lease) else {
            return Err(broken(APPLIED, format!("a report was stored under lease {}", report.lease)));
        };
        let run = self.runs.get(&report.task.run);
        let made = run.and_then(|run| Some(run.made(run.place_of(&report.task)?, report)));
        let counted = made.is_some_and(|made| lease.outcome == Some(made.outcome) && lease.result == made.result);
        let right = counted && lease.agent == *agent && lease.task == report.task;
        hold!(right, APPLIED, "the report under lease {} of {agent} was acknowledged: {lease:?}", report.lease);
        Ok(())
    }

    fn accepted(&self, request: &StartRun, answer: &RunAccepted) -> Checked {
        let Some(run) = self.runs.get(&answer.run) else {
            return Err(broken(COMMITTED, format!("run {} was accepted and is not in the log", answer.run)));
        };
        let same = run.workflow == request.workflow && run.version == answer.version;
        hold!(same, APPLIED, "run {} was accepted as something else: {answer:?}", answer.run);
        let found = request.key.as_ref().is_none_or(|key| run.key.as_ref() == Some(key))
            && (request.key.is_some() || request.run.is_none_or(|id| id == answer.run));
        hold!(found, APPLIED, "run {} is not the one that was asked for: {request:?}", answer.run);
        let due = request.due_ms.map(|due_ms| run.started_at + due_ms);
        let placed = answer.existing || (run.strategy, run.due) == (request.strategy, due);
        hold!(placed, APPLIED, "run {} is not to be placed as it was asked for: {request:?}", answer.run);
        Ok(())
    }

    /// A run was shown to stand so.
    pub(crate) fn shown(&self, id: RunId, status: RunStatus, sent: u64) -> Checked {
        let Some(run) = self.runs.get(&id) else {
            return Err(broken(COMMITTED, format!("run {id} was shown and is not in the log")));
        };
        match run.finished {
            Some((at, _)) if status == RunStatus::Running => {
                hold!(at > sent, FRESH, "run {id} was shown running; it had ended when that was asked");
            }
            Some((_, end)) => hold!(end == status, COMMITTED, "run {id} was shown {status} and is {end}"),
            None => hold!(status == RunStatus::Running, COMMITTED, "run {id} was shown {status} before it ended"),
        }
        Ok(())
    }

    fn resource_answered(&self, request: &ResourceRequest, answer: &Json, sent: u64) -> Checked {
        match request {
            ResourceRequest::Register(id, request) => {
                let known = self.agents.get(id).is_some_and(|agent| {
                    agent.record.session == request.session || agent.sessions.contains(&request.session)
                });
                hold!(known, COMMITTED, "{id} was registered in session {} and is not in the log", request.session);
                Ok(())
            }
            ResourceRequest::Heartbeat(id, _) => {
                let answer: HeartbeatAnswer = read(answer)?;
                answer.start.iter().try_for_each(|assignment| self.given(id, assignment))?;
                answer.offers.iter().try_for_each(|offer| self.offer_told(id, offer))?;
                answer.drop.iter().try_for_each(|lease| self.dropped(id, *lease))
            }
            ResourceRequest::OfferHandoff(id, request) => {
                self.handoff_open(id, request, read::<HandoffOpen>(answer)?.handoff)
            }
            ResourceRequest::AcknowledgeHandoff(id, request) => self.handoff_acknowledged(id, request, &read(answer)?),
            ResourceRequest::AskHandoff(request) => self.handoff_asked(request, &read(answer)?),
            ResourceRequest::Decline(id, request) => {
                let lease = self.leases.get(&request.lease).filter(|lease| lease.agent == *id);
                hold!(lease.is_some_and(|lease| lease.lost.is_some()), APPLIED, "lease {} goes on", request.lease);
                Ok(())
            }
            ResourceRequest::Leave(id, request) => {
                // A registration that was held up may bring it back; it is lost then when its lease is over.
                let left = self.left.contains(&(id.clone(), request.session.clone()));
                hold!(left, APPLIED, "{id} was told that it has left, and never did in session {}", request.session);
                Ok(())
            }
            ResourceRequest::Assign(request) => {
                let answer: AssignAnswer = read(answer)?;
                self.granted(request, &answer, sent)
            }
            ResourceRequest::Acquire(agent, request) => match read::<AcquireAnswer>(answer)?.granted {
                Some(granted) => self.acquisition_told(&holder(agent.as_ref(), request), request, granted.lease),
                None => Ok(()),
            },
            ResourceRequest::Renew(_, request) => {
                let known = self.is_acquired(request.lease) || self.was_acquired(request.lease);
                hold!(known, COMMITTED, "lease {} was renewed and is not in the log", request.lease);
                Ok(())
            }
            ResourceRequest::Release(_, request) => {
                let over = self.was_acquired(request.lease) || self.pools_are_read_late(request.lease);
                hold!(over, APPLIED, "lease {} was given back and goes on", request.lease);
                Ok(())
            }
            ResourceRequest::SetPool(request) => {
                hold!(self.pools.was_set(&request.name), COMMITTED, "{} was never set", request.name);
                Ok(())
            }
            ResourceRequest::ListPools(_) => self.pools_shown(&read(answer)?, sent),
            ResourceRequest::SharePool(_) => self.pools_shared(&read(answer)?),
            ResourceRequest::GetSpending(_) => self.spending_told(&read(answer)?),
            ResourceRequest::ApproveBudget(request) => {
                hold!(self.pools.was_set(&request.name), COMMITTED, "{} was never given more", request.name);
                Ok(())
            }
            ResourceRequest::DenyBudget(_)
            | ResourceRequest::RemovePool(_)
            | ResourceRequest::ListLeases(_)
            | ResourceRequest::Progress(..)
            | ResourceRequest::ListAgents(_) => Ok(()),
            ResourceRequest::ListAlerts(_) => {
                let list: AlertList = read(answer)?;
                list.alerts.iter().try_for_each(|view| self.alert_shown(view))
            }
            ResourceRequest::GetPressure(_) => self.pressure_shown(&read(answer)?, sent),
            ResourceRequest::AcknowledgeAlert(request) => {
                let stored = self.is_acknowledged(request.alert);
                hold!(stored, APPLIED, "alert {} was said to be acknowledged, and is not", request.alert);
                Ok(())
            }
        }
    }

    fn granted(&self, request: &AssignTasks, answer: &AssignAnswer, sent: u64) -> Checked {
        for placement in &request.placements {
            let refusal = answer.refused.iter().find(|refusal| refusal.task == placement.task);
            let attempt = self.attempt(&placement.task);
            match refusal {
                None => {
                    let leased = attempt.is_some_and(|attempt| match placement.beside {
                        None => attempt.first().is_some_and(|lease| self.leases[&lease].agent == placement.agent),
                        Some(_) => self
                            .leases
                            .values()
                            .any(|lease| lease.task == placement.task && lease.agent == placement.agent),
                    });
                    hold!(leased, COMMITTED, "{} was granted and is not in the log", placement.task);
                }
                Some(refusal) if refusal.rejection.code == Code::NotReady => {
                    // The asker had read that it waits, and that can not be untrue while nothing has happened to it or to
                    // its run.
                    let run = self.runs.get(&placement.task.run);
                    let paused = run.is_some_and(|run| !run.pauses.is_empty());
                    // What people decide on is nobody's task.
                    let place = run.and_then(|run| run.place(placement.task.stage.as_str()));
                    let asks = run.zip(place).is_some_and(|(run, place)| run.definition(place).asks());
                    let waits = attempt.is_some_and(|a| a.ended.is_none() && a.lease.is_none()) && !paused && !asks;
                    // But for one that is to fail for want of money, or that others go before.
                    let priority = run.zip(place).map(|(run, place)| run.priority_of(place));
                    let pressed = priority.is_some_and(|priority| self.was_pressed(sent, priority));
                    let waits = waits && !self.pools.unpaid.contains_key(&placement.task) && !pressed;
                    hold!(!waits, HEAD, "{} waits, and was refused: {}", placement.task, refusal.rejection);
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    pub(super) fn attempt(&self, task: &baton_protocol::TaskId) -> Option<&super::Attempt> {
        let run = self.runs.get(&task.run)?;
        let place = run.place_of(task)?;
        run.stages[place].attempts.get((task.attempt as usize).checked_sub(1)?)
    }

    fn refused(&self, request: &AnyRequest, rejection: &Rejection, sent: u64) -> Checked {
        let lie = |is: bool| {
            hold!(!is, HEAD, "{} was refused, {rejection}: {request:?}", request.endpoint());
            Ok(())
        };
        let agent_there =
            |id: &AgentId| self.agents.get(id).is_some_and(|agent| agent.gone.is_none() && agent.since <= sent);
        match (rejection.code, request) {
            (Code::StaleLease, AnyRequest::Workflow(WorkflowRequest::Report(id, report))) => {
                let lease = self.leases.get(&report.lease);
                lie(lease.is_some_and(|l| l.is_alive() && l.agent == *id && l.task == report.task))
            }
            (Code::StaleLease, AnyRequest::Resource(ResourceRequest::Decline(id, request))) => lie(self
                .leases
                .get(&request.lease)
                .is_some_and(|l| l.is_alive() && l.agent == *id && l.granted <= sent)),
            (Code::StaleLease, AnyRequest::Resource(ResourceRequest::Progress(id, request))) => lie(self
                .leases
                .get(&request.lease)
                .is_some_and(|l| l.is_alive() && l.agent == *id && l.granted <= sent)),
            (
                Code::UnknownAgent,
                AnyRequest::Resource(ResourceRequest::Heartbeat(id, _) | ResourceRequest::Leave(id, _)),
            ) => lie(agent_there(id)),
            (Code::AgentReplaced, AnyRequest::Resource(request)) => {
                let (id, session) = match request {
                    ResourceRequest::Heartbeat(id, request) => (id, &request.session),
                    ResourceRequest::Leave(id, request) => (id, &request.session),
                    ResourceRequest::Register(id, request) => {
                        return lie(self.agents.get(id).is_none_or(|agent| !agent.sessions.contains(&request.session)));
                    }
                    _ => return lie(true),
                };
                let replaced = self.agents.get(id).is_some_and(|agent| {
                    agent.record.session != *session || agent.sessions.iter().any(|other| other != session)
                });
                lie(!replaced)
            }
            (Code::RunEnded, AnyRequest::Workflow(request)) => {
                let run = about(request);
                lie(run.is_none_or(|run| self.runs.get(&run).is_none_or(|run| run.finished.is_none())))
            }
            (Code::NotWaiting, AnyRequest::Workflow(WorkflowRequest::DecideStage(request))) => {
                lie(self.is_asked(request, sent))
            }
            (Code::NotWaiting, AnyRequest::Workflow(WorkflowRequest::SignalRun(request))) => {
                lie(!self.was_given(request))
            }
            (Code::UnknownRun, AnyRequest::Workflow(request)) => {
                let Some(run) = about(request) else { return lie(true) };
                lie(self.runs.get(&run).is_some_and(|run| run.started <= sent && !run.forgotten))
            }
            // It may not have read of the run yet, or have forgotten how it was placed.
            (Code::UnknownRun, AnyRequest::Optimizer(_)) => Ok(()),
            (Code::UnknownWorkflow, AnyRequest::Workflow(WorkflowRequest::StartRun(request))) => {
                let version = request.version.map_or(0, |version| version as usize - 1);
                let known = self.definitions.get(&request.workflow).and_then(|versions| versions.get(version));
                lie(known.is_some_and(|(seq, _)| *seq <= sent))
            }
            (Code::UnknownWorkflow, AnyRequest::Workflow(WorkflowRequest::SetSchedule(request))) => {
                let known = self.definitions.get(&request.schedule.workflow).and_then(|versions| versions.first());
                lie(known.is_some_and(|(seq, _)| *seq <= sent))
            }
            (Code::UnknownWorkflow, AnyRequest::Workflow(WorkflowRequest::SetTrigger(_))) => Ok(()),
            // Another one may have removed it since.
            (Code::UnknownTrigger, AnyRequest::Workflow(WorkflowRequest::RemoveTrigger(_))) => Ok(()),
            (Code::UnknownSchedule, AnyRequest::Workflow(request)) => lie(match request {
                WorkflowRequest::PauseSchedule(request) => self.schedule_is_there(&request.name, sent),
                WorkflowRequest::RemoveSchedule(request) => self.schedule_is_there(&request.name, sent),
                WorkflowRequest::GetSchedule(request) => self.schedule_is_there(&request.name, sent),
                _ => true,
            }),
            (Code::KeyConflict, AnyRequest::Workflow(WorkflowRequest::StartRun(request))) => {
                let by_key = |run: &super::Run| request.key.is_some() && run.key == request.key;
                let used = self.runs.iter().any(|(id, run)| by_key(run) || request.run == Some(*id));
                lie(!used)
            }
            (Code::KeyConflict, AnyRequest::Workflow(WorkflowRequest::RerunRun(request))) => {
                lie(!request.new_run.is_some_and(|run| self.runs.contains_key(&run)))
            }
            (Code::Overloaded, AnyRequest::Workflow(WorkflowRequest::RerunRun(request))) => {
                let alone = self.runs.values().filter(|run| run.parent.is_none());
                let live = alone.filter(|run| run.finished.is_none_or(|(at, _)| at > sent)).count();
                let priority = self.runs.get(&request.run).map(|run| run.priority);
                let pressed = priority.is_some_and(|priority| self.was_pressed_at_the_door(sent, priority));
                lie((live < self.max_live_runs && !pressed) || rejection.retry_after_ms.is_none())
            }
            (Code::Overloaded, AnyRequest::Workflow(WorkflowRequest::StartRun(request))) => {
                // One that was accepted before is answered as ever until it is forgotten, and whoever is refused is told when to
                // ask again.
                let known = self.runs.iter().filter(|(_, run)| run.started <= sent && !run.forgotten);
                let known = known
                    .filter(|(id, run)| request.run == Some(**id) || (request.key.is_some() && run.key == request.key));
                lie(known.count() > 0 || rejection.retry_after_ms.is_none())?;
                // Runs that have ended since may have been live when that was decided.
                let alone = self.runs.values().filter(|run| run.parent.is_none());
                let live = alone.filter(|run| run.finished.is_none_or(|(at, _)| at > sent)).count();
                lie(live < self.max_live_runs && !self.was_pressed_at_the_door(sent, request.priority))
            }
            (Code::StaleLease, AnyRequest::Resource(ResourceRequest::Acquire(agent, request))) => {
                let known = self.acquisition(&holder(agent.as_ref(), request), &request.id);
                let under = request.under.and_then(|under| self.leases.get(&under));
                let holds_under = request.under.is_none()
                    || under.is_some_and(|l| l.is_alive() && l.granted <= sent && Some(&l.agent) == agent.as_ref());
                lie(holds_under && known.is_none_or(|lease| self.is_acquired(lease)))
            }
            (Code::StaleLease, AnyRequest::Resource(ResourceRequest::Renew(_, request))) => {
                lie(self.is_acquired(request.lease) && !self.pools_are_read_late(request.lease))
            }
            (Code::StaleLease, AnyRequest::Resource(ResourceRequest::Release(_, request))) => {
                lie(self.is_acquired(request.lease) && !self.pools_are_read_late(request.lease))
            }
            (Code::UnknownAgent, AnyRequest::Resource(ResourceRequest::Acquire(Some(id), _))) => lie(agent_there(id)),
            (Code::UnknownResource, AnyRequest::Resource(request)) => {
                let names: Vec<_> = match request {
                    ResourceRequest::Acquire(_, request) => request.take.keys().collect(),
                    ResourceRequest::SetPool(request) => request.pool.parent.iter().collect(),
                    ResourceRequest::RemovePool(request) => vec![&request.name],
                    ResourceRequest::ApproveBudget(request) => vec![&request.name],
                    ResourceRequest::DenyBudget(request) => vec![&request.name],
                    ResourceRequest::SharePool(request) => {
                        let parts: Vec<_> = match &request.by {
                            ShareBy::Priority(of) => of.keys().collect(),
                            ShareBy::Workload { of, .. } => of.keys().collect(),
                        };
                        parts.into_iter().chain([&request.name]).collect()
                    }
                    _ => return lie(true),
                };
                lie(names.iter().all(|name| self.pools.has_been_since(name, sent) && !self.pools.is_over(name)))
            }
            // Who waits where is known to the leader alone.
            (Code::PoolExhausted, AnyRequest::Resource(ResourceRequest::Acquire(..))) => Ok(()),
            (Code::PoolInUse, AnyRequest::Resource(ResourceRequest::SetPool(_) | ResourceRequest::RemovePool(_))) => {
                Ok(())
            }
            (Code::StaleLease, AnyRequest::Resource(ResourceRequest::OfferHandoff(id, request))) => lie(self
                .leases
                .get(&request.lease)
                .is_some_and(|l| l.is_alive() && l.agent == *id && l.granted <= sent)),
            (Code::UnknownAgent, AnyRequest::Resource(ResourceRequest::OfferHandoff(_, request))) => {
                lie(agent_there(&request.to))
            }
            // Its time may have been up by the clock of whoever led then.
            (Code::UnknownHandoff, AnyRequest::Resource(ResourceRequest::AcknowledgeHandoff(..))) => Ok(()),
            // Offered to another one, or who is to take it can not.
            (
                Code::NotReady | Code::NoCapacity,
                AnyRequest::Resource(ResourceRequest::OfferHandoff(..) | ResourceRequest::AcknowledgeHandoff(..)),
            ) => Ok(()),
            // Whether it has read of the run, or of its end, and who has room for it, is known to the leader alone.
            (
                Code::UnknownRun | Code::NotReady | Code::NoCapacity,
                AnyRequest::Resource(ResourceRequest::AskHandoff(_)),
            ) => Ok(()),
            (Code::UnknownAgent, AnyRequest::Resource(ResourceRequest::AskHandoff(request))) => {
                lie(request.to.as_ref().is_none_or(agent_there))
            }
            (Code::UnknownAgent, AnyRequest::Resource(ResourceRequest::AcknowledgeHandoff(id, _))) => {
                lie(agent_there(id))
            }
            (Code::UnknownAlert, AnyRequest::Resource(ResourceRequest::AcknowledgeAlert(request))) => {
                lie(self.is_alert(request.alert))
            }
            // An agent that shrinks below what it holds.
            (Code::NoCapacity, AnyRequest::Resource(ResourceRequest::Register(..))) => Ok(()),
            (Code::InvalidRequest | Code::TooLarge | Code::InvalidWorkflow, _) => Ok(()),
            _ => lie(true),
        }
    }

    /// Whether the end of a task, and so of what was acquired under it, is in the log and was not folded here yet.
    fn pools_are_read_late(&self, lease: LeaseId) -> bool {
        self.pools.is_unread(lease)
    }

    /// Something is published.
    pub(crate) fn published(&self, publication: &Publication) -> Checked {
        let target = publication.subject.strip_prefix("baton.to.").and_then(|rest| rest.split_once('.'));
        let agent = |id: &str| AgentId::new(id).map_err(|error| broken(COMMITTED, error.to_string()));
        match target {
            Some((id, "assign")) => self.given(&agent(id)?, &read(&publication.body)?),
            Some((id, "assignments")) => {
                let (agent, several) = (agent(id)?, read::<Assignments>(&publication.body)?.assignments);
                several.iter().try_for_each(|assignment| self.given(&agent, assignment))
            }
            Some((id, "handoff")) => self.offer_told(&agent(id)?, &read(&publication.body)?),
            Some((id, "handed")) => self.answer_told(&agent(id)?, &read(&publication.body)?),
            Some((id, "cancel")) => {
                let cancel: CancelTask = read(&publication.body)?;
                self.dropped(&agent(id)?, cancel.lease)
            }
            _ => Ok(()),
        }
    }

    /// An agent told how far it is with a task, and that was published in this term.
    pub(crate) fn told(&mut self, publication: &Publication, term: u64, now: u64) -> Checked {
        let ProgressEvent { task, agent, at, .. } = read(&publication.body)?;
        let held = self.leases.values_mut().rev().find(|lease| lease.task == task && lease.agent == agent);
        let Some(held) = held else {
            return Err(broken(COMMITTED, format!("{agent} told of {task}, which it never held")));
        };
        held.told = Some((at, term, now));
        self.seen.push(Branch::ProgressTold);
        Ok(())
    }

    /// An agent is told that it holds something.
    fn given(&self, agent: &AgentId, assignment: &Assignment) -> Checked {
        let lease = self.leases.get(&assignment.lease);
        let same = lease.is_some_and(|lease| lease.agent == *agent && lease.task == assignment.task);
        hold!(same, COMMITTED, "{agent} is given {} under lease {}: {lease:?}", assignment.task, assignment.lease);
        // What was to be said before goes out with the message that hands it over.
        let last = self.writers.get(&Service::ResourceManager).map(|writer| writer.message);
        let moved = lease.is_some_and(|lease| lease.moved && lease.lost != last);
        hold!(!moved, FENCED, "{agent} is given lease {}, and has handed it over", assignment.lease);
        self.given_right(assignment)
    }

    /// An agent is told that it does not hold something.
    fn dropped(&self, agent: &AgentId, id: LeaseId) -> Checked {
        let alive = self.leases.get(&id).is_some_and(|lease| lease.is_alive() && lease.agent == *agent);
        hold!(!alive, COMMITTED, "{agent} is told to drop lease {id}, which goes on");
        Ok(())
    }

    /// A record is shown to observers.
    pub(crate) fn announced(&self, event: &Event) -> Checked {
        hold!(event.position.seq <= self.seq, COMMITTED, "an event of position {} is published", event.position);
        Ok(())
    }

    /// A finished run is kept as a document.
    pub(crate) fn kept(&self, view: &RunView) -> Checked {
        let end = self.runs.get(&view.run).and_then(|run| run.finished).map(|(_, status)| status);
        hold!(end == Some(view.status), COMMITTED, "run {} is kept {} and is {end:?}", view.run, view.status);
        self.runs.get(&view.run).map_or(Ok(()), |run| run.shown_right(view))
    }
}

/// Which run a request is about.
fn about(request: &WorkflowRequest) -> Option<RunId> {
    match request {
        WorkflowRequest::CancelRun(request) => Some(request.run),
        WorkflowRequest::GetRun(request) => Some(request.run),
        WorkflowRequest::PauseRun(request) => Some(request.run),
        WorkflowRequest::ResumeRun(request) => Some(request.run),
        WorkflowRequest::RerunRun(request) => Some(request.run),
        WorkflowRequest::DecideStage(request) => Some(request.run),
        WorkflowRequest::SignalRun(request) => Some(request.run),
        _ => None,
    }
}

fn read<T: serde::de::DeserializeOwned>(json: &Json) -> Result<T, super::Violation> {
    json.read().map_err(|error| broken("every answer can be read", format!("{error}: {}", json.as_str())))
}

/// In whose name something is acquired.
fn holder(agent: Option<&AgentId>, request: &Acquire) -> Holder {
    match agent {
        Some(agent) => Holder::Agent(agent.clone()),
        None => Holder::Client(request.client.clone().unwrap_or_else(|| "client".to_owned())),
    }
}
