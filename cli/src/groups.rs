//! Many stages as a few groups, where a line each would be too many to be read.
//!
//! Stages that ask for the same agents are one group: in a workflow of a thousand stages there are seldom more than twenty.

use std::collections::BTreeMap;

use baton_protocol::run::{AttemptView, RunView, StageStatus, StageView};

use crate::output::{Cell, Table};
use crate::style::Tone;
use crate::text::span;

/// From how many stages on they are shown as groups unless all are asked for.
pub(crate) const MANY: usize = 50;

/// How many stages that want attention are shown beside the groups.
const ATTENTION: usize = 20;

/// Stages for the same agents.
#[derive(Debug, Default, PartialEq, Eq)]
struct Group {
    stages: usize,
    counts: BTreeMap<StageStatus, usize>,
    /// Attempts beyond the first of each stage.
    again: usize,
    waited: Vec<u64>,
    took: Vec<u64>,
}

/// A line a group.
pub(crate) fn table(view: &RunView) -> Table {
    let mut groups: BTreeMap<&str, Group> = BTreeMap::new();
    for stage in &view.stages {
        groups.entry(stage.done_by()).or_default().add(stage);
    }
    let mut table = Table::new([
        "stages for",
        ">stages",
        ">waiting",
        ">ready",
        ">running",
        ">succeeded",
        ">failed",
        ">again",
        ">waited",
        ">took",
    ]);
    for (agents, group) in &mut groups {
        table.row(group.row(agents));
    }
    if groups.len() > 1 {
        let mut all = Group::default();
        view.stages.iter().for_each(|stage| all.add(stage));
        table.row(all.row("all"));
    }
    table
}

/// The stages that one would look for: those that failed, then those that try again, then those that run, the longest
/// first. And how many more of these there are.
pub(crate) fn attention(view: &RunView) -> (Vec<&StageView>, usize) {
    let rank = |stage: &StageView| match stage.status {
        StageStatus::Failed => Some(0),
        StageStatus::Waiting => Some(1),
        StageStatus::Running => Some(2),
        _ => None,
    };
    let since =
        |stage: &StageView| stage.attempts.last().map(|attempt| attempt.assigned_at.unwrap_or(attempt.ready_at));
    let mut found: Vec<_> = view.stages.iter().filter(|stage| rank(stage).is_some()).collect();
    found.sort_by_key(|stage| (rank(stage), since(stage)));
    let more = found.len().saturating_sub(ATTENTION);
    found.truncate(ATTENTION);
    (found, more)
}

impl Group {
    fn add(&mut self, stage: &StageView) {
        self.stages += 1;
        *self.counts.entry(stage.status).or_default() += 1;
        let items = stage.items.iter().map(|item| &item.attempts);
        for attempts in std::iter::once(&stage.attempts).chain(items) {
            self.tried(attempts);
        }
    }

    fn tried(&mut self, attempts: &[AttemptView]) {
        self.again += attempts.len().saturating_sub(1);
        for attempt in attempts {
            if let Some(assigned) = attempt.assigned_at {
                self.waited.push(assigned.saturating_sub(attempt.ready_at));
                self.took.extend(attempt.ended_at.map(|ended| ended.saturating_sub(assigned)));
            }
        }
    }

    fn row(&mut self, name: &str) -> Vec<Cell> {
        let count =
            |statuses: &[StageStatus]| statuses.iter().filter_map(|status| self.counts.get(status)).sum::<usize>();
        let cell = |count: usize, tone| match count {
            0 => Cell::default(),
            count => Cell::toned(count.to_string(), tone),
        };
        use StageStatus as S;
        let cells = [
            cell(count(&[S::Pending, S::Waiting]), Tone::Plain),
            cell(count(&[S::Ready]), Tone::Plain),
            cell(count(&[S::Running]), Tone::Busy),
            cell(count(&[S::Succeeded]), Tone::Good),
            cell(count(&[S::Failed, S::Cancelled]), Tone::Bad),
            cell(self.again, Tone::Plain),
            median(&mut self.waited).into(),
            median(&mut self.took).into(),
        ];
        [name.into(), self.stages.to_string().into()].into_iter().chain(cells).collect()
    }
}

/// The median of some times.
fn median(times: &mut [u64]) -> String {
    times.sort_unstable();
    times.get(times.len() / 2).map(|ms| span(*ms)).unwrap_or_default()
}
