//! The fault runner: real processes under load, faults injected into them, and the history checked afterwards.
//!
//! It starts a broker (one server, or a cluster of three), two instances of each service and a dozen agents, each a process of its own; clients keep runs under
//! way and note what they are told; faults come one at a time, in an order that a seed decides; and when all is over, the
//! log is held against the notes of clients and agents ([`check()`](check::check)).
//!
//! Deliberately absent: anything that knows how services decide, and any way into them but the broker and signals.

pub mod agent;
pub mod bad;
pub mod broker;
pub mod check;
pub mod faults;
pub mod fleet;
mod inject;
pub mod kind;
pub mod load;
pub mod notes;
pub mod overload;
pub mod random;
pub mod soak;
pub mod table;
mod world;
