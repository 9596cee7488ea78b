//! What was spent: by run, stage, agent, model and attempt.
//!
//! Every sum is exact: costs are counted in units of the ninth decimal place, what is finer is rounded up, as in accounts. What has
//! no row any more is in the rest, so that the rows and the rest are the total, whatever was forgotten.

use std::collections::BTreeMap;

use baton_machine::Shelves;
use baton_protocol::pool::MAX_SIZE;
use baton_protocol::record::{Outcome, StageEnded};
use baton_protocol::request::{GetSpending, Spending as Answer, Spent, SpentBy, SpentRow};
use baton_protocol::{AgentId, Amount, Millis, Rejection, RunId, WorkflowName};
use serde::{Deserialize, Serialize};

use crate::acquire::MAX_LISTED;

/// How many rows there are of each kind. Of runs the oldest is forgotten for a new one; of the others those that come later have
/// no row.
const MAX_ROWS: usize = 10_000;
/// The time within which a task was done lately: it counts in the slice in which it ended, and in the next.
const SLICE_MS: Millis = 5 * 60_000;

/// What was spent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Spending {
    total: Sum,
    runs: Shelves<RunId, Sum>,
    by: BTreeMap<SpentBy, Book>,
    lately: Shelves<AgentId, Lately>,
}

type Book = BTreeMap<String, Sum>;

/// What tasks cost and used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
struct Sum {
    attempts: u64,
    failed: u64,
    /// In units of the ninth decimal place.
    nanos: u128,
    tokens_in: u64,
    tokens_out: u64,
}

/// How many tasks an agent ended in a slice of time and in the one before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
struct Lately {
    slice: Millis,
    now: u32,
    before: u32,
}

impl Lately {
    fn at(self, at: Millis) -> Self {
        let slice = at / SLICE_MS;
        match slice.saturating_sub(self.slice) {
            0 => self,
            1 => Self { slice, now: 0, before: self.now },
            _ => Self { slice, now: 0, before: 0 },
        }
    }
}

impl Sum {
    fn add(&mut self, other: &Self) {
        self.attempts += other.attempts;
        self.failed += other.failed;
        self.nanos = self.nanos.saturating_add(other.nanos);
        self.tokens_in = self.tokens_in.saturating_add(other.tokens_in);
        self.tokens_out = self.tokens_out.saturating_add(other.tokens_out);
    }

    fn less(&self, other: &Self) -> Self {
        Self {
            attempts: self.attempts - other.attempts,
            failed: self.failed - other.failed,
            nanos: self.nanos - other.nanos,
            tokens_in: self.tokens_in.saturating_sub(other.tokens_in),
            tokens_out: self.tokens_out.saturating_sub(other.tokens_out),
        }
    }

    fn shown(&self) -> Spent {
        let Self { attempts, failed, nanos, tokens_in, tokens_out } = *self;
        Spent { attempts, failed, cost: Amount::from_nanos(nanos), tokens_in, tokens_out }
    }
}

impl Spending {
    /// An agent that has an account has ended a task.
    pub(crate) fn worked(&mut self, at: Millis, agent: &AgentId) {
        if let Some(lately) = self.lately.get_mut(agent) {
            *lately = lately.at(at);
            lately.now = lately.now.saturating_add(1);
        } else if self.lately.len() < MAX_ROWS {
            self.lately.insert(agent.clone(), Lately { slice: at / SLICE_MS, now: 1, before: 0 });
        }
    }

    /// An attempt has ended.
    pub(crate) fn ended(&mut self, workflow: &WorkflowName, record: &StageEnded) {
        let Some(agent) = &record.agent else { return };
        if record.cost.is_zero() && record.usage.is_zero() {
            return;
        }
        let largest = u128::from(MAX_SIZE) * 1_000_000_000;
        let sum = Sum {
            attempts: 1,
            failed: u64::from(!matches!(record.outcome, Outcome::Succeeded | Outcome::Delegated)),
            nanos: Amount::new(record.cost.get()).map_or(0, |cost| cost.nanos().min(largest)),
            tokens_in: record.usage.tokens_in,
            tokens_out: record.usage.tokens_out,
        };
        self.total.add(&sum);
        let task = &record.task;
        match self.runs.get_mut(&task.run) {
            Some(of_run) => of_run.add(&sum),
            None => {
                self.runs.insert(task.run, sum);
                if self.runs.len() > MAX_ROWS {
                    self.runs.pop_first();
                }
            }
        }
        let keys = [
            (SpentBy::Stage, Some(format!("{workflow}/{}", task.stage))),
            (SpentBy::Agent, Some(agent.to_string())),
            (SpentBy::Model, record.model.clone()),
            (SpentBy::Attempt, Some(task.attempt.to_string())),
        ];
        for (by, key) in keys {
            let Some(key) = key else { continue };
            let book = self.by.entry(by).or_default();
            if book.len() < MAX_ROWS || book.contains_key(&key) {
                book.entry(key).or_default().add(&sum);
            }
        }
    }

    /// How many tasks an agent ended in the last five to ten minutes.
    pub(crate) fn recent(&self, agent: &AgentId, now: Millis) -> u32 {
        self.lately.get(agent).map_or(0, |lately| {
            let lately = lately.at(now);
            lately.now.saturating_add(lately.before)
        })
    }

    /// What was spent, added up.
    pub(crate) fn list(&self, request: &GetSpending) -> Result<Answer, Rejection> {
        let GetSpending { by, after } = request;
        let rows: Vec<(String, &Sum)> = match by {
            SpentBy::Run => self.runs.iter().map(|(run, sum)| (run.to_string(), sum)).collect(),
            SpentBy::Stage | SpentBy::Agent | SpentBy::Model | SpentBy::Attempt => {
                let book = self.by.get(by).into_iter().flatten();
                book.map(|(key, sum)| (key.clone(), sum)).collect()
            }
        };
        let mut rest = self.total;
        for (_, sum) in &rows {
            rest = rest.less(sum);
        }
        let from = match after {
            None => 0,
            Some(after) => {
                1 + rows.iter().position(|(key, _)| key == after).ok_or_else(|| {
                    Rejection::invalid(format!("after is {after:?}; there is no {by} of that name here"))
                })?
            }
        };
        let more = rows.len() - from > MAX_LISTED;
        let rows = rows.into_iter().skip(from).take(MAX_LISTED);
        let rows = rows.map(|(key, sum)| SpentRow { key, spent: sum.shown() }).collect();
        Ok(Answer { total: self.total.shown(), rest: rest.shown(), rows, more })
    }
}
