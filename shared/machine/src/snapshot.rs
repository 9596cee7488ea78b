//! Snapshots: a processor's state at a commit.
//!
//! While the log is whole a snapshot is a convenience, never a truth: one that does not fit the log is passed over. Where the
//! log's beginning has been removed, there must be one that fits.

use std::collections::BTreeMap;

use baton_protocol::record::{self, FORMAT, Record};
use baton_protocol::{Millis, Number, Service};
use serde::{Deserialize, Serialize};

use crate::Machine;

/// A processor's state at a commit, to start from instead of from the beginning.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(bound = "M: Machine")]
pub struct Snapshot<M> {
    /// The commit format that it was made from.
    pub format: u32,
    /// The machine.
    pub machine: M,
    /// The number of the next own record.
    pub next: Number,
    /// The sequence of the last own commit.
    pub own: u64,
    /// The sequence of the last message of others observed.
    pub seen: u64,
    /// The sequence of the last message of others handled to the end.
    pub handled: u64,
    /// The number of the last record observed of each other service.
    pub marks: BTreeMap<Service, Number>,
    /// The last term.
    pub term: u64,
    /// The latest time.
    pub clock: Millis,
}

impl<M: Machine> Snapshot<M> {
    /// Where the log is read on after a start from this: with the message after that one.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.own.min(self.handled)
    }

    /// Whether a log that ends at `last` is the one that this was made of: it may have lost its end with the power. `own` is
    /// what that log holds at [`Snapshot::own`], if it holds anything there: the service that wrote it, and the message.
    #[must_use]
    pub fn fits(&self, last: u64, own: Option<(Service, &[u8])>) -> bool {
        if self.format != FORMAT || self.own.max(self.seen).max(self.handled) > last {
            return false;
        }
        let Some((_, payload)) = own.filter(|(service, _)| *service == M::Record::SERVICE) else { return false };
        let commit = record::decode::<M::Record>(payload);
        commit.is_ok_and(|commit| commit.first + commit.len() == self.next && commit.term == self.term)
    }
}
