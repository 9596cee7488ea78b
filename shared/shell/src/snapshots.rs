//! Snapshots: a machine's state at a commit, so that a start need not read the whole log.
//!
//! While the log is whole a snapshot is a convenience, never a truth: one that is missing, torn, of another format or of
//! another log is passed over, and the log is read from its beginning. Where the log's beginning has been removed
//! ([`crate::trim`]) the state at its beginning is in snapshots only: a service that finds none to start from does not start.
//!
//! So of a log that may be trimmed there are three of each service. What the broker acknowledges need not be on the disk for
//! some minutes, and the loss of power may take the log's end with the snapshots that were made of it. The newest is replaced
//! until it is so much younger than the one before it that this one is certainly on the disk; then the oldest is. The oldest is
//! what trimming goes by.

use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::object_store::{self, InfoErrorKind, ObjectMetadata, ObjectStore};
use async_nats::jetstream::stream::{RawMessageErrorKind, Stream};
use baton_machine::{Machine, Snapshot};
use baton_protocol::record::{AnyCommit, Record};
use baton_protocol::{Millis, Number, Service, subject};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;

use crate::config::Settings;
use crate::log::{LogError, other};
use crate::objects;

/// How long it may take to get a snapshot, where the log tells the same.
const LOAD: Duration = Duration::from_secs(15);

/// How long it may take where nothing else does.
const LOAD_ALONE: Duration = Duration::from_secs(60);

/// How many snapshots of a service there are, where more than one is kept.
const SLOTS: usize = 3;

/// Under which name the [`Note`] is in an object's metadata.
const NOTE: &str = "baton-snapshot";

#[derive(Serialize, Deserialize)]
#[serde(bound = "M: Machine")]
struct Stored<M> {
    /// Which log it is of: when the stream was created.
    log: String,
    snapshot: Snapshot<M>,
}

/// What is noted of a snapshot beside it, so that who trims the log need not read states.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Note {
    /// Which log it is of.
    log: String,
    /// The sequence of the service's last commit in it.
    own: u64,
    /// The number after the last record of that commit.
    next: Number,
    /// A start from it reads what follows this.
    pub(crate) position: u64,
    /// Its time.
    pub(crate) clock: Millis,
    /// From where on its machine wants the log to be kept ([`Machine::floor`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    floor: Option<u64>,
}

impl Note {
    fn of<M: Machine>(log: String, snapshot: &Snapshot<M>) -> Self {
        let &Snapshot { own, next, clock, .. } = snapshot;
        Self { log, own, next, position: snapshot.position(), clock, floor: snapshot.machine.floor() }
    }

    /// The first message of the log that is needed to start from this, and for what is shown then. The service's own last commit
    /// is not before it.
    pub(crate) fn needs(&self) -> u64 {
        self.position.min(self.floor.unwrap_or(u64::MAX))
    }
}

/// Why a snapshot is passed over.
#[derive(Debug)]
enum Passed {
    /// It is of a stream that was deleted.
    OtherLog,
    /// It can not be used, and never will be.
    Unusable(String),
    /// It can not be had now.
    Away(String),
}

/// Where a service's snapshots are kept.
#[derive(Clone)]
pub(crate) struct Snapshots {
    store: ObjectStore,
    log: String,
    /// Whether there is more than one of a service.
    several: bool,
    /// After this time what was written is on the disk.
    settled: Millis,
}

impl Snapshots {
    /// `first` is the sequence of the log's first message.
    pub(crate) async fn open(js: &Context, settings: &Settings, log: String, first: u64) -> Result<Self, LogError> {
        let config = object_store::Config {
            bucket: subject::SNAPSHOTS_BUCKET.to_owned(),
            description: Some("Baton: states of the services, to start from".to_owned()),
            num_replicas: settings.log.replicas,
            ..object_store::Config::default()
        };
        let store = objects::open(js, config).await?;
        Ok(Self { store, log, several: settings.log.trim || first > 1, settled: settings.log.trim_settled_ms })
    }

    fn names(service: Service) -> [String; SLOTS] {
        [service.to_string(), format!("{service}.1"), format!("{service}.2")]
    }

    /// Whether there is an object of that name, and what is noted of it: older versions noted nothing.
    async fn look(&self, name: &str) -> Result<Option<Option<Note>>, String> {
        match self.store.info(name).await {
            Ok(info) if info.deleted => Ok(None),
            Ok(info) => Ok(Some(info.metadata.get(NOTE).and_then(|note| serde_json::from_str(note).ok()))),
            Err(error) if error.kind() == InfoErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.to_string()),
        }
    }

    /// The newest snapshot that can be used for a log from `first` to `last`. None: there is none, and the log is whole.
    pub(crate) async fn load<M: Machine>(
        &self,
        stream: &Stream,
        first: u64,
        last: u64,
    ) -> Result<Option<Snapshot<M>>, LogError> {
        let (mut found, mut away, mut passed) = (Vec::new(), None, Vec::new());
        for name in Self::names(M::Record::SERVICE) {
            match self.look(&name).await {
                Ok(note) => found.extend(note.map(|note| (note.map_or(0, |note| note.own), name))),
                Err(error) => away = Some(error),
            }
        }
        found.sort();
        while let Some((_, name)) = found.pop() {
            match self.read::<M>(&name, stream, first, last).await {
                Ok(snapshot) => return Ok(Some(snapshot)),
                Err(Passed::OtherLog) => {
                    tracing::info!(name, "a snapshot is of another log: not used");
                    passed.push(format!("{name} is of another log"));
                }
                Err(Passed::Unusable(why)) => {
                    tracing::warn!(name, why, "a snapshot can not be used");
                    passed.push(format!("{name} {why}"));
                }
                Err(Passed::Away(error)) => {
                    tracing::warn!(name, error, "a snapshot can not be read");
                    away = Some(error);
                }
            }
        }
        match away {
            _ if first <= 1 => Ok(None),
            Some(error) => Err(other("reading the snapshots, without which a trimmed log is of no use", error)),
            None if passed.is_empty() => Err(self.lost::<M>(first, "there is none".to_owned())),
            None => Err(self.lost::<M>(first, passed.join("; "))),
        }
    }

    #[expect(clippy::unused_self, reason = "it is what this has that is lost")]
    fn lost<M: Machine>(&self, first: u64, why: String) -> LogError {
        let stream = subject::log_stream(subject::Shard::default());
        LogError::NothingToStartFrom { stream, first, service: M::Record::SERVICE, why }
    }

    async fn read<M: Machine>(
        &self,
        name: &str,
        stream: &Stream,
        first: u64,
        last: u64,
    ) -> Result<Snapshot<M>, Passed> {
        let read = async {
            let mut object = self.store.get(name).await.map_err(|error| Passed::Away(error.to_string()))?;
            let mut text = Vec::new();
            object.read_to_end(&mut text).await.map_err(|error| match error.kind() {
                std::io::ErrorKind::InvalidData => Passed::Unusable(format!("is torn: {error}")),
                _ => Passed::Away(error.to_string()),
            })?;
            Ok(text)
        };
        // The server that sends its parts may be gone in the middle.
        let most = if first <= 1 { LOAD } else { LOAD_ALONE };
        let text = tokio::time::timeout(most, read)
            .await
            .map_err(|_| Passed::Away(format!("{name} was not there within {most:?}")))??;
        let stored: Stored<M> =
            serde_json::from_slice(&text).map_err(|error| Passed::Unusable(format!("can not be read: {error}")))?;
        let Stored { log, snapshot } = stored;
        if log != self.log {
            return Err(Passed::OtherLog);
        }
        if snapshot.position() + 1 < first {
            let after = snapshot.position();
            return Err(Passed::Unusable(format!(
                "would read on after message {after}, and the log begins with {first}"
            )));
        }
        let own = message(stream, snapshot.own).await.map_err(Passed::Away)?;
        let own = own.as_ref().map(|(service, payload)| (*service, payload.as_ref()));
        if !snapshot.fits(last, own) {
            return Err(Passed::Unusable("does not fit the log, which may have lost its end".to_owned()));
        }
        Ok(snapshot)
    }

    /// The snapshots of a service that it can be started from, as far as their notes tell.
    pub(crate) async fn notes(&self, service: Service, stream: &Stream) -> Result<Vec<Note>, String> {
        let mut notes = Vec::new();
        for name in Self::names(service) {
            let Some(note) = self.look(&name).await?.flatten().filter(|note| note.log == self.log) else { continue };
            let own = message(stream, note.own).await?.filter(|(of, _)| *of == service);
            let commit = own.and_then(|(_, payload)| AnyCommit::decode(service, &payload).ok());
            if commit.is_some_and(|commit| commit.next() == note.next) {
                notes.push(note);
            }
        }
        Ok(notes)
    }

    /// Keeps a snapshot.
    pub(crate) async fn save<M: Machine>(&self, snapshot: Snapshot<M>) {
        let log = self.log.clone();
        let written = tokio::task::spawn_blocking(move || {
            let note = Note::of(log.clone(), &snapshot);
            Ok::<_, serde_json::Error>((
                serde_json::to_string(&note)?,
                note,
                serde_json::to_vec(&Stored { log, snapshot })?,
            ))
        });
        let Ok(Ok((noted, note, text))) = written.await else {
            tracing::warn!("a snapshot could not be written as JSON");
            return;
        };
        let (bytes, names) = (text.len(), Self::names(M::Record::SERVICE));
        let slot = if self.several {
            let mut there = Vec::new();
            for name in &names {
                match self.look(name).await {
                    Ok(found) => there.push(found.flatten()),
                    Err(error) => {
                        tracing::warn!(error, "a snapshot could not be kept");
                        return;
                    }
                }
            }
            slot(&there, &note, self.settled)
        } else {
            0
        };
        let name = names[slot].clone();
        let metadata = [(NOTE.to_owned(), noted)].into();
        let object = ObjectMetadata { name: name.clone(), metadata, ..ObjectMetadata::default() };
        match self.store.put(object, &mut text.as_slice()).await {
            Ok(_) => tracing::debug!(bytes, name, "kept a snapshot"),
            Err(error) => tracing::warn!(%error, "a snapshot could not be kept"),
        }
    }
}

/// Whose a message of the log is, and what it says; none if there is none.
async fn message(stream: &Stream, seq: u64) -> Result<Option<(Service, bytes::Bytes)>, String> {
    match stream.get_raw_message(seq).await {
        Ok(message) => Ok(subject::parse_log(&message.subject).map(|(_, service)| (service, message.payload))),
        Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

/// In place of which a snapshot is kept.
///
/// First those that are none, of another log, or of an end that this one has lost. Then the newest, as long as it is not so much
/// younger than the one before it; otherwise the oldest.
fn slot(there: &[Option<Note>], new: &Note, settled: Millis) -> usize {
    let is_of_this = |note: &&Note| note.log == new.log && note.own < new.own;
    let mut kept = Vec::new();
    for (slot, note) in there.iter().enumerate() {
        match note.as_ref().filter(is_of_this) {
            Some(note) => kept.push((note.own, note.clock, slot)),
            None => return slot,
        }
    }
    kept.sort_unstable();
    match kept.as_slice() {
        [.., (_, before, _), (_, newest, slot)] if newest.saturating_sub(*before) < settled => *slot,
        [(.., slot), ..] => *slot,
        [] => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(own: u64, clock: Millis) -> Note {
        Note { log: "a".into(), own, next: own, position: own, clock, floor: None }
    }

    #[test]
    fn what_is_of_no_use_is_replaced_first() {
        let (new, other) = (note(10, 0), Note { log: "b".into(), ..note(3, 0) });
        assert_eq!(slot(&[None, None, None], &new, 5), 0);
        assert_eq!(slot(&[Some(note(1, 0)), None, None], &new, 5), 1);
        assert_eq!(slot(&[Some(note(1, 0)), Some(note(2, 0)), Some(other)], &new, 5), 2);
        assert_eq!(slot(&[Some(note(1, 0)), Some(note(12, 9)), Some(note(3, 0))], &new, 5), 1, "of a lost end");
    }

    /// A snapshot a second: the oldest is always older than what the broker may still lose.
    #[test]
    fn the_oldest_is_settled_and_never_much_older_than_it_must_be() {
        let (mut there, settled) = (vec![None, None, None], 300);
        for now in 0..2000 {
            let new = note(now, now);
            let place = slot(&there, &new, settled);
            there[place] = Some(new);
            let mut clocks: Vec<_> = there.iter().flatten().map(|note| note.clock).collect();
            clocks.sort_unstable();
            assert_eq!(clocks.last(), Some(&now));
            if now > 2 {
                let age = now - clocks[0];
                assert!(age <= 2 * settled + 2, "{now}: {clocks:?}");
                assert!(now < 2 * settled || age >= settled, "{now}: {clocks:?}");
                assert!(clocks[1] > clocks[0]);
            }
        }
    }

    #[test]
    fn a_start_and_what_is_shown_both_need_something() {
        assert_eq!(note(7, 0).needs(), 7);
        assert_eq!(Note { floor: Some(3), ..note(7, 0) }.needs(), 3);
        assert_eq!(Note { floor: Some(9), ..note(7, 0) }.needs(), 7);
    }
}
