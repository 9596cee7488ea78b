//! Runs that ended long ago are forgotten: they are not listed any more, and their keys may be used again.
//!
//! Those that are a part of another one go with it, and not before.
//!
//! Which, is decided by age and number, and written down: what a service knows follows from the log alone. Their documents
//! go by themselves, by the same settings (the bucket's limits). The log keeps their records, unless it is trimmed: what it must
//! keep is what belongs to runs that are not forgotten ([`floor`]).

use baton_protocol::record::{RunsForgotten, WorkflowRecord};
use baton_protocol::{Millis, RunId};

use crate::{Config, Turn, WorkflowManager};

/// How many are forgotten at a time.
const BATCH: usize = 500;

/// Forgets what is due.
pub(crate) fn forget(turn: &mut Turn<'_>) {
    while let Some(due) = due(turn.state(), turn.config())
        && due <= turn.now()
    {
        let runs = too_old(turn.state(), turn.config(), turn.now());
        turn.emit(WorkflowRecord::RunsForgotten(RunsForgotten { runs }));
    }
}

/// When some are to be forgotten.
pub(crate) fn due(state: &WorkflowManager, config: &Config) -> Option<Millis> {
    // Some more than are kept may come together, so that it is not done at every end.
    let too_many = state.history.len() >= config.keep_ended.saturating_add(spare(config));
    if !too_many && config.keep_ended_ms == 0 {
        return None;
    }
    let (_, ended) = state.history.oldest().next()?;
    let crowded = too_many.then(|| ended.saturating_add(config.known_ms));
    // Several at a time here as well.
    let late = config.keep_ended_ms.saturating_add(config.keep_ended_ms / 100);
    let aged = (late > 0).then(|| ended.saturating_add(late));
    crowded.into_iter().chain(aged).min()
}

fn spare(config: &Config) -> usize {
    1 + (config.keep_ended / 10).min(BATCH)
}

/// From where on the log has all records of all runs that are known, live or ended. It never goes back: a run begins at or after
/// what had been read when it was started.
pub(crate) fn floor(state: &WorkflowManager) -> Option<u64> {
    let live = state.runs.values().map(|run| run.first_seq).min();
    live.into_iter().chain(state.history.first_seq()).min()
}

/// Those that are to be forgotten, the oldest first, some at a time.
fn too_old(state: &WorkflowManager, config: &Config, now: Millis) -> Vec<RunId> {
    let mut too_many = state.history.len().saturating_sub(config.keep_ended);
    let since = |ended: Millis| now.saturating_sub(ended);
    let goes = |(run, ended): &(RunId, Millis)| {
        let goes = (too_many > 0 && since(*ended) >= config.known_ms)
            || (config.keep_ended_ms > 0 && since(*ended) >= config.keep_ended_ms);
        too_many = too_many.saturating_sub(state.history.goes_with(*run));
        goes
    };
    state.history.oldest().take(BATCH).take_while(goes).map(|(run, _)| run).collect()
}
