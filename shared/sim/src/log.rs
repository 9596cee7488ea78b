//! The simulated broker: the stream with its fence, who may try to lead, kept documents and snapshots.

use std::collections::BTreeMap;
use std::sync::Arc;

use baton_machine::planted::{Bug, is_planted};
use baton_protocol::Service;
use baton_protocol::record::AnyCommit;

/// A message of the stream.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) service: Service,
    pub(crate) payload: Vec<u8>,
    pub(crate) commit: Arc<AnyCommit>,
    /// When it was stored, in virtual microseconds.
    pub(crate) on: u64,
}

/// The stream.
#[derive(Debug, Default)]
pub(crate) struct Log {
    pub(crate) messages: Vec<Message>,
    last: BTreeMap<Service, u64>,
}

impl Log {
    /// The sequence of the last message.
    pub(crate) fn end(&self) -> u64 {
        self.messages.len() as u64
    }

    /// The sequence of a service's last message.
    pub(crate) fn last(&self, service: Service) -> u64 {
        self.last.get(&service).copied().unwrap_or(0)
    }

    pub(crate) fn get(&self, seq: u64) -> Option<&Message> {
        self.messages.get(usize::try_from(seq.checked_sub(1)?).ok()?)
    }

    /// Whether a message of the service that expects this may be appended.
    pub(crate) fn admits(&self, service: Service, fence: u64) -> bool {
        self.last(service) == fence || is_planted(Bug::FenceSkipped)
    }

    /// Appends a message; gives its sequence.
    pub(crate) fn append(&mut self, message: Message) -> u64 {
        let service = message.service;
        self.messages.push(message);
        let seq = self.end();
        self.last.insert(service, seq);
        seq
    }
}

/// Who tries to lead a service, as the key-value entry says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) node: usize,
    pub(crate) session: u64,
    /// When it expires, in virtual microseconds.
    pub(crate) until: u64,
}
