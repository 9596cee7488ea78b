//! The rules of second copies: a task that two agents are at.

use baton_protocol::record::{Assigned, CopyEnded, Outcome, Stamp};
use baton_protocol::{LeaseId, StageDefinition, TaskId};

use super::{Attempt, Checked, Facts, broken, hold};
use crate::coverage::Branch;

pub(super) const COPIES: &str =
    "a second agent is given a task only beside the first, and the task goes on while one is at it";

impl Facts {
    /// A second agent is given a task that another one has under this lease.
    pub(super) fn may_be_second(&self, stamp: Stamp, record: &Assigned, first: LeaseId) -> Checked {
        let Assigned { task, agent, resources, pools, .. } = record;
        let run = self.runs.get(&task.run);
        let place = run.and_then(|run| run.place_of(task));
        let hedge = run.zip(place).is_some_and(|(run, place)| run.definition(place).hedge);
        hold!(hedge, COPIES, "{task} is given to {agent} as well, and its stage does not say that it may");
        let Some((attempt, held)) = self.attempt(task).zip(self.leases.get(&first)) else {
            return Err(broken(COPIES, format!("{task} is given to {agent} beside lease {first}, which is not there")));
        };
        hold!(attempt.lease == Some(first), COPIES, "{task} is given beside {first}, and is under {:?}", attempt.lease);
        hold!(attempt.second.is_none(), COPIES, "{task} is given to {agent}, and has {:?} already", attempt.second);
        let alive = held.lost.is_none() && held.ended.is_none_or(|at| at > stamp.seen);
        hold!(alive, COPIES, "{task} is given beside lease {first}, which had ended");
        hold!(held.agent != *agent, COPIES, "{task} is given to {agent} twice");
        let alone = pools.is_empty() && held.resources == *resources && !self.pools.holds(first);
        hold!(alone, COPIES, "{task} is given to {agent} with {resources:?} and {pools:?} of pools");
        Ok(())
    }

    /// Of two that were at a task, one is at it no more.
    pub(super) fn copy_ended(&mut self, stamp: Stamp, record: &CopyEnded) -> Checked {
        let (task, id, seq) = (&record.task, record.lease, self.seq);
        let open = self.runs.get(&task.run).is_some_and(|run| run.finished.is_none() && !run.ending);
        let attempt = self.attempt(task).filter(|attempt| open && attempt.ended.is_none());
        let Some((attempt, lease)) = attempt.zip(self.leases.get(&id)) else {
            return Err(broken(COPIES, format!("of {task} a copy ended, and it is not under way")));
        };
        let known = attempt.second.is_some_and(|second| self.leases[&second].granted <= stamp.seen);
        let one_of = attempt.lease == Some(id) || attempt.second == Some(id);
        hold!(known && one_of, COPIES, "lease {id} of {task} ended as one of two: {attempt:?}");
        hold!(lease.agent == record.agent, COPIES, "lease {id} of {task} is not {}'s", record.agent);
        let known_lost = lease.lost.is_some_and(|lost| lost <= stamp.seen);
        let capability = attempt.agent_type.clone();
        match record.outcome {
            Outcome::Failed => {
                hold!(!known_lost, COPIES, "lease {id} of {task} was reported, and had ended");
                let Some((run, place)) = self.runs.get(&task.run).and_then(|run| Some((run, run.place_of(task)?)))
                else {
                    return Ok(());
                };
                let sent = self.reports.get(&id).into_iter().flatten();
                let sent = sent.filter(|(agent, report)| *agent == record.agent && report.task == *task);
                let right = sent.map(|(_, report)| run.made(place, report)).any(|made| {
                    let same = made.outcome == Outcome::Failed && made.code == record.code;
                    same && made.may_retry && !rules_out(run.definition(place), record.code.as_deref(), "failed")
                });
                hold!(
                    right,
                    COPIES,
                    "nobody reported that what lease {id} of {task} is for failed, and may be tried again"
                );
                self.seen.push(Branch::CopyFailed);
            }
            Outcome::Lost => {
                hold!(known_lost, COPIES, "lease {id} of {task} is lost, and had not ended");
                self.seen.push(Branch::CopyLost);
            }
            outcome => return Err(broken(COPIES, format!("lease {id} of {task} is one of two, and {outcome}"))),
        }
        if let Some(lease) = self.leases.get_mut(&id) {
            lease.outcome = Some(record.outcome);
            lease.ended.get_or_insert(seq);
        }
        if let Some(attempt) = self.attempt_mut(task) {
            let second = attempt.second.take();
            if attempt.lease == Some(id) {
                attempt.before.push(id);
                attempt.lease = second;
            }
        }
        if let Some(agent) = self.agents.get_mut(&record.agent) {
            agent.changed_on = self.now;
        }
        let ended = record.as_ended();
        self.breakers_ended(&ended, &capability, Some(id));
        self.paid(&ended);
        self.pools_task_ended(id, record.outcome, record.cost);
        Ok(())
    }

    fn attempt_mut(&mut self, task: &TaskId) -> Option<&mut Attempt> {
        let run = self.runs.get_mut(&task.run)?;
        let place = run.place_of(task)?;
        run.stages[place].attempts.get_mut((task.attempt as usize).checked_sub(1)?)
    }
}

/// Whether a stage is not tried again after a failure of that code.
fn rules_out(definition: &StageDefinition, code: Option<&str>, otherwise: &str) -> bool {
    definition.retry.non_retryable.iter().any(|known| known == code.unwrap_or(otherwise))
}
