//! Trimming: the log's beginning is removed once nothing needs it any more, where the settings say so.
//!
//! Two things need it. A service's start reads what follows its snapshot, and finds its own last commit there: so nothing is
//! removed that the *oldest* snapshot of any service needs, and nothing at all before each has two and the oldest is certainly on
//! the disk. And people read what became of their runs: so the workflow-manager says from where on it wants the log to be kept
//! ([`baton_machine::Machine::floor`]), which is noted beside its snapshots.
//!
//! The workflow-manager's leader does it after a snapshot of its own, beside everything else. Nothing rests on its being the only
//! one, nor on its getting through: what one may remove any other may, and what is not removed now is next time. It is also done
//! where a commit finds no room.

use async_nats::jetstream::stream::Stream;
use baton_protocol::{Millis, Service};
use baton_telemetry::Metrics;

use crate::config::LogSettings;
use crate::snapshots::{Note, Snapshots};

/// How many messages are removed at a time: meanwhile the broker takes no commits.
const STEP: u64 = 10_000;

/// It is only worth while when so many of the log's messages go: one of ten.
const PART: u64 = 10;

/// What is needed to trim the log.
pub(crate) struct Trimmer {
    pub(crate) stream: Stream,
    pub(crate) snapshots: Snapshots,
    pub(crate) settings: LogSettings,
    pub(crate) metrics: Metrics,
    /// The time of the log.
    pub(crate) now: Millis,
}

impl Trimmer {
    /// Removes what nothing needs, if that is worth it; if it is urgent anything is. What fails is told, and not repeated.
    pub(crate) async fn trim(self, urgent: bool) {
        if let Err(error) = self.try_to(urgent).await {
            tracing::warn!(error, "the log could not be trimmed: it is tried again after the next snapshot");
        }
    }

    async fn try_to(&self, urgent: bool) -> Result<(), String> {
        let Self { stream, snapshots, settings, metrics, now } = self;
        let mut kept = Vec::new();
        for service in Service::WRITERS {
            kept.push((service, snapshots.notes(service, stream).await?));
        }
        let state = stream.get_info().await.map_err(|error| error.to_string())?.state;
        let to = match needed(&kept, settings.trim_settled_ms, *now) {
            Ok(to) => to,
            Err(why) => {
                tracing::debug!(why, "the log is not trimmed yet");
                return Ok(());
            }
        };
        let goes = to.saturating_sub(state.first_sequence);
        let least = if urgent { 1 } else { settings.trim_messages.max(state.messages / PART).max(1) };
        if goes < least {
            tracing::debug!(first = state.first_sequence, needed = to, "the log need not be trimmed yet");
            return Ok(());
        }
        let (mut first, mut removed) = (state.first_sequence, 0);
        while first < to {
            first = to.min(first.saturating_add(STEP));
            let purged = stream.purge().sequence(first).await.map_err(|error| error.to_string())?.purged;
            removed += purged;
            metrics.add("baton_log_trimmed_total", &[], purged as f64);
            metrics.set("baton_log_first_sequence", &[], first as f64);
        }
        tracing::info!(removed, first, last = state.last_sequence, "trimmed the log");
        Ok(())
    }
}

/// The first message of the log that something needs, or why nothing can be removed.
fn needed(kept: &[(Service, Vec<Note>)], settled: Millis, now: Millis) -> Result<u64, String> {
    let mut to = u64::MAX;
    for (service, notes) in kept {
        let oldest = notes.iter().min_by_key(|note| note.position).filter(|_| notes.len() > 1);
        let Some(oldest) = oldest else { return Err(format!("the {service} has kept less than two snapshots")) };
        if now.saturating_sub(oldest.clock) < settled {
            return Err(format!("the oldest snapshot of the {service} may not be on the disk yet"));
        }
        to = to.min(oldest.needs());
    }
    Ok(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(position: u64, clock: Millis) -> Note {
        let note = serde_json::json!({ "log": "a", "own": position, "next": 1, "position": position, "clock": clock });
        serde_json::from_value(note).unwrap()
    }

    #[test]
    fn nothing_is_removed_before_every_service_has_two_settled_snapshots() {
        let mut kept = vec![
            (Service::WorkflowManager, vec![note(70, 50), note(90, 90)]),
            (Service::Optimizer, vec![note(60, 10)]),
        ];
        assert!(needed(&kept, 10, 100).unwrap_err().contains("the optimizer has kept less than two"));
        kept[1].1.push(note(80, 95));
        assert_eq!(needed(&kept, 10, 100), Ok(60));
        assert_eq!(needed(&kept, 50, 100), Ok(60));
        assert!(needed(&kept, 51, 100).unwrap_err().contains("workflow-manager may not be on the disk"));
    }
}
