//! Runs that have ended.
//!
//! A finished run is kept as a document outside the log. What is kept here answers those who come late: agents whose
//! report was stored but not answered, clients that repeat a start or a cancellation.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use baton_machine::Shelves;
use baton_protocol::run::RunSummary;
use baton_protocol::trace::TraceContext;
use baton_protocol::{Millis, RunId, StageName};
use serde::{Deserialize, Serialize};

use crate::run::Run;
use crate::{child, view};

/// How many runs are known: they can be listed, and are not started again.
pub(crate) const MAX_KNOWN: usize = 10_000;

/// How many of them are kept with all their stages.
const MAX_WHOLE: usize = 256;

/// How many bytes those may take together; the last one is kept in any case.
const MAX_WHOLE_BYTES: usize = 32 * 1024 * 1024;

/// How many ids are kept of runs that were forgotten and whose ids look younger than that.
const MAX_AHEAD: usize = 1000;

/// How many ends it takes to tell how fast runs end.
const RECENT: usize = 32;

/// The runs that have ended lately.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct History {
    known: Shelves<RunId, Arc<Past>>,
    /// In the order of their ends; those that are a part of others left out.
    order: VecDeque<RunId>,
    /// How many are a part of those, and go with them. Of those that are a part of a live run none goes, and they are not
    /// counted.
    #[serde(default)]
    parts: usize,
    /// Those that are kept whole, in the order of their ends.
    whole: VecDeque<Whole>,
    bytes: usize,
    /// The largest id of those that were forgotten for their age or number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    forgotten: Option<RunId>,
    /// Those that were forgotten too, and whose ids are greater: by a clock that was ahead of ours when they ended.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    ahead: BTreeSet<RunId>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Whole {
    run: RunId,
    bytes: usize,
}

/// What is known of a run that has ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Past {
    pub(crate) summary: RunSummary,
    /// A sequence in the log at or before its first record.
    #[serde(default)]
    first_seq: u64,
    pub(crate) key: Option<String>,
    pub(crate) fingerprint: u64,
    pub(crate) trace: Option<TraceContext>,
    /// The run that it repeated, and from where.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rerun: Option<(RunId, StageName)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    run: Option<Arc<Run>>,
    /// The runs that made attempts at its stages.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    children: Vec<RunId>,
}

impl History {
    /// Takes a run that has ended, and gives those that are forgotten for it, with their keys.
    pub(crate) fn push(&mut self, run: Arc<Run>) -> Vec<(RunId, Option<String>)> {
        let (id, bytes) = (run.id, run.size());
        let past = Past {
            summary: view::summary(&run),
            first_seq: run.first_seq,
            key: run.key.clone(),
            fingerprint: run.fingerprint,
            trace: run.trace,
            rerun: run.rerun.as_ref().map(|rerun| (rerun.of, rerun.from.clone())),
            children: run.stages.iter().flat_map(|stage| &stage.attempts).filter_map(|attempt| attempt.child).collect(),
            run: Some(run),
        };
        let is_part = past.summary.parent.is_some();
        self.known.insert(id, Arc::new(past));
        if !is_part {
            self.order.push_back(id);
            self.parts += self.within(id).len();
        }
        self.whole.push_back(Whole { run: id, bytes });
        self.bytes += bytes;
        while self.whole.len() > MAX_WHOLE || (self.bytes > MAX_WHOLE_BYTES && self.whole.len() > 1) {
            let Some(Whole { run, bytes }) = self.whole.pop_front() else { break };
            self.bytes -= bytes;
            if let Some(past) = self.known.change(&run) {
                past.run = None;
            }
        }
        let mut forgotten = Vec::new();
        while self.order.len() > MAX_KNOWN {
            let Some(run) = self.order.pop_front() else { break };
            forgotten.extend(self.drop_with_parts(run));
        }
        forgotten
    }

    /// The runs that are a part of this one, directly or through others, and are known.
    fn within(&self, run: RunId) -> Vec<RunId> {
        let children = |run: &RunId| self.known.get(run).map(|past| past.children.clone()).unwrap_or_default();
        let mut found = child::all_within(run, children);
        found.retain(|run| self.known.contains_key(run));
        found
    }

    /// Drops a run and what is a part of it, and gives them with their keys.
    fn drop_with_parts(&mut self, run: RunId) -> Vec<(RunId, Option<String>)> {
        if !self.known.contains_key(&run) {
            return Vec::new();
        }
        let parts = self.within(run);
        self.parts = self.parts.saturating_sub(parts.len());
        let all = [run].into_iter().chain(parts);
        all.filter_map(|run| self.known.remove(&run).map(|past| (run, past.key.clone()))).collect()
    }

    /// Drops runs, and gives their keys.
    pub(crate) fn forget(&mut self, runs: &[RunId]) -> Vec<(RunId, Option<String>)> {
        let (mut gone, mut newest) = (Vec::new(), self.forgotten);
        for run in runs {
            let Some(past) = self.known.get(run) else { continue };
            // An id by a clock that was ahead of the services' would make new runs of everybody else look old: it is known by itself.
            let made_at = (run.as_u128() >> 80) as Millis;
            if made_at <= past.summary.ended_at.unwrap_or(0) {
                newest = newest.max(Some(*run));
            } else {
                self.ahead.insert(*run);
            }
            gone.extend(self.drop_with_parts(*run));
        }
        self.forgotten = newest;
        self.ahead.retain(|run| Some(*run) > newest);
        while self.ahead.len() > MAX_AHEAD {
            self.ahead.pop_first();
        }
        let ids: BTreeSet<RunId> = gone.iter().map(|(run, _)| *run).collect();
        // They are the oldest, as a rule.
        self.order.retain(|run| !ids.contains(run));
        self.whole.retain(|whole| !ids.contains(&whole.run));
        self.bytes = self.whole.iter().map(|whole| whole.bytes).sum();
        gone
    }

    /// Whether a run of that id may have been there and been forgotten: ids grow with the time.
    pub(crate) fn may_be_forgotten(&self, run: RunId) -> bool {
        self.forgotten.is_some_and(|forgotten| run <= forgotten) || self.ahead.contains(&run)
    }

    /// How many are known, without those that are a part of live ones.
    pub(crate) fn len(&self) -> usize {
        self.order.len() + self.parts
    }

    /// How many go with a run: itself, and those that are a part of it.
    pub(crate) fn goes_with(&self, run: RunId) -> usize {
        1 + self.within(run).len()
    }

    /// The runs in the order of their ends, with the times of these.
    pub(crate) fn oldest(&self) -> impl Iterator<Item = (RunId, Millis)> {
        let ended = |run: &RunId| self.known.get(run).and_then(|past| past.summary.ended_at).unwrap_or(0);
        self.order.iter().map(move |run| (*run, ended(run)))
    }

    /// The least sequence in the log at or before which a run begins that is known.
    pub(crate) fn first_seq(&self) -> Option<u64> {
        self.known.values().map(|past| past.first_seq).min()
    }

    pub(crate) fn past(&self, run: RunId) -> Option<&Past> {
        self.known.get(&run).map(Arc::as_ref)
    }

    /// A run with all its stages, if it is kept so.
    pub(crate) fn run(&self, run: RunId) -> Option<&Run> {
        self.known.get(&run)?.run.as_deref()
    }

    /// How long it took lately from the end of one run to that of the next, in milliseconds.
    pub(crate) fn between_ends(&self, now: Millis) -> Option<Millis> {
        let ends = self.order.len().min(RECENT);
        let first = self.order.get(self.order.len() - ends)?;
        let since = self.known.get(first)?.summary.ended_at?;
        Some(now.saturating_sub(since) / ends as Millis)
    }

    /// The runs that are kept with all their stages, in the order of their ends.
    pub(crate) fn whole(&self) -> impl Iterator<Item = RunId> {
        self.whole.iter().map(|whole| whole.run)
    }

    /// The runs before that one, or all, the newest first.
    pub(crate) fn newest_first(&self, before: Option<RunId>) -> impl Iterator<Item = &RunSummary> {
        view::up_to(&self.known, before).rev().map(|(_, past)| &past.summary)
    }
}
