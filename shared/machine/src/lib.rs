//! The trait of a pure [`Machine`], and the [`Processor`] that turns it.
//!
//! A service is a machine: it folds the log, and decides what to append next. It has no I/O, no clock, no randomness, no
//! `async`, no logging. The processor is just as pure: messages of the log, requests and the time go in; commits to be
//! appended and effects to be carried out come out. The shell turns the processor in production, the simulator in
//! tests: both run the same code.
//!
//! # Invariants
//!
//! - **One order.** A commit tells for each turn how far its writer had read the log (`seen`), so that a fold takes
//!   everything in the order in which the writer took it. Live state equals replayed state at every position.
//! - **Nothing leaves before its commit.** Answers, pushes and events of a turn are released when the commit that holds
//!   the turn is acknowledged. A turn without records is released when its instance has proved that it still leads.
//! - **Nothing is handled twice or skipped.** The cursor (`handled`) travels in every commit. A successor reacts to what
//!   lies beyond it.
//! - There is no `replaying` flag: replay calls [`Machine::apply`] and [`Machine::observe`] only, and those can not emit.
//!
//! This crate knows nothing of NATS.

mod clock;
pub mod planted;
mod priorities;
mod processor;
mod shelves;
mod snapshot;
mod turn;

use std::fmt;

use baton_protocol::message::MessageType;
use baton_protocol::record::{AnyCommit, OptimizerRecord, Record, ResourceRecord, Stamp, WorkflowRecord};
use baton_protocol::request::Requests;
use baton_protocol::trace::{Span, TraceContext};
use baton_protocol::{Json, Millis, Rejection, RunId, Service};
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use clock::Clock;
pub use priorities::Priorities;
pub use processor::{Outgoing, Processor, ReadError, Released};
pub use shelves::{ShelfSet, Shelves};
pub use snapshot::Snapshot;
pub use turn::Turn;

/// What a request is answered with.
pub type Reply = Result<Json, Rejection>;

/// Tells requests apart, so that an answer finds its asker. Given by the shell.
pub type Token = u64;

/// A pure state machine: one service's rules.
///
/// The value itself is the durable state. Own records ([`Machine::apply`]) and records of other services
/// ([`Machine::observe`]) make it, in the order of the log, and nothing else does. Both are total: late, duplicate and
/// stale records do nothing.
///
/// The other functions run only where the instance leads. They see the state, and change it only by emitting records
/// ([`Turn::emit`]). A turn is one commit, unless it is larger than a message may be: then a crash may leave half of it.
/// So [`Machine::react`] must be repeatable, and [`Machine::lead`] must finish what a predecessor left half done.
pub trait Machine: Default + Clone + PartialEq + fmt::Debug + Serialize + DeserializeOwned + Send + 'static {
    /// What it appends to the log.
    type Record: Record;
    /// What it may be asked.
    type Request: Requests;
    /// What it knows only while it leads, and can do without: last heartbeats, questions under way.
    type Soft: Default + fmt::Debug + Send;
    /// Settings that decisions may depend on. The fold may not: another instance may have others.
    type Config: Clone + fmt::Debug + Send + Sync + 'static;

    /// Whose records it observes. It is never shown those of others, so that nobody need send them.
    const FOLLOWS: &'static [Service];

    /// Folds a record of its own.
    fn apply(&mut self, stamp: Stamp, record: &Self::Record);

    /// Folds a record of another service.
    fn observe(&mut self, stamp: Stamp, record: Foreign<'_>);

    /// Decides what follows from a commit of another service, which has just been observed.
    fn react(turn: &mut Turn<'_, Self>, commit: &AnyCommit);

    /// Decides on a request.
    fn request(turn: &mut Turn<'_, Self>, request: Self::Request, context: &RequestContext) -> Reply;

    /// Takes the answer to something it asked of another service ([`Effect::Ask`]). An answer that never came is a
    /// rejection.
    fn answered(turn: &mut Turn<'_, Self>, tag: u64, reply: Reply);

    /// Begins a term: finishes what a predecessor left half done.
    fn lead(turn: &mut Turn<'_, Self>);

    /// The time has come that [`Machine::deadline`] gave.
    fn tick(turn: &mut Turn<'_, Self>);

    /// When it next wants to be called, if nothing else happens.
    fn deadline(&self, soft: &Self::Soft, config: &Self::Config) -> Option<Millis>;

    /// The sequence from which on it wants the log to be kept, beside what a start needs: for those who read there what became
    /// of the things that it shows. None: it wants nothing to be kept. It is asked once a snapshot, and may look at everything.
    fn floor(&self) -> Option<u64> {
        None
    }
}

/// What comes with a request.
#[derive(Debug, Clone, Default)]
pub struct RequestContext {
    /// The trace that the asker is in.
    pub trace: Option<TraceContext>,
}

/// A record of another service.
#[derive(Debug, Clone, Copy)]
pub enum Foreign<'a> {
    /// The workflow-manager's.
    Workflow(&'a WorkflowRecord),
    /// The resource-manager's.
    Resource(&'a ResourceRecord),
    /// The optimizer's.
    Optimizer(&'a OptimizerRecord),
}

/// Something for the shell to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Answers a request.
    Answer {
        /// Which.
        token: Token,
        /// With what.
        reply: Reply,
    },
    /// Answers a request with a document of a key-value bucket, or with a rejection if there is none.
    AnswerDocument {
        /// Which.
        token: Token,
        /// The bucket.
        bucket: &'static str,
        /// The key.
        key: String,
        /// What to say if it is not there.
        or: Rejection,
    },
    /// Publishes on core NATS.
    Publish(Publication),
    /// Asks another service. Not held back for a commit: who is asked decides for itself, and a question commits to
    /// nothing. The answer comes back through [`Machine::answered`].
    Ask {
        /// Whom.
        service: Service,
        /// What.
        endpoint: &'static str,
        /// With which body.
        body: Json,
        /// What to call the answer.
        tag: u64,
    },
    /// Keeps a document in a key-value bucket.
    Keep {
        /// The bucket.
        bucket: &'static str,
        /// The key.
        key: String,
        /// The document.
        body: Json,
    },
    /// Shows a finished span.
    Span(Span),
    /// Counts.
    Measure(Measure),
}

/// A message on core NATS.
#[derive(Debug, Clone, PartialEq)]
pub struct Publication {
    /// Where to.
    pub subject: String,
    /// The body.
    pub body: Json,
    /// Its type, for the header.
    pub kind: MessageType,
    /// The run that it belongs to.
    pub run: Option<RunId>,
    /// The trace that it belongs to.
    pub trace: Option<TraceContext>,
}

/// A measurement.
#[derive(Debug, Clone, PartialEq)]
pub struct Measure {
    /// The metric's name.
    pub metric: &'static str,
    /// The values of its labels.
    pub labels: Vec<String>,
    /// What to do.
    pub value: Value,
}

/// What a measurement does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value {
    /// Adds to a counter.
    Add(f64),
    /// Adds an observation to a histogram.
    Observe(f64),
    /// Sets a gauge.
    Set(f64),
}

/// An answer from a value.
///
/// # Panics
/// If the value can not be written as JSON, which no type of the protocol does.
pub fn answer<T: Serialize>(value: &T) -> Reply {
    Ok(Json::of(value).expect("what the protocol answers can be written as JSON"))
}
