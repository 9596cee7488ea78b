//! How much may wait: requests of one endpoint that were taken and are not answered yet.
//!
//! A service that is asked faster than it can answer must not keep all that it was asked in memory, and must not let
//! askers wait for an answer that comes too late. So each endpoint has room for so many requests; whoever finds none is
//! told so at once, before the request is even read. One endpoint's flood takes nothing from another's room: while
//! thousands want to start runs, agents go on reporting.

use std::sync::Arc;

use baton_protocol::{Code, Millis, Rejection};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How many bytes may wait at an endpoint.
const BYTES: usize = 16 * 1024 * 1024;

/// How many requests may. More would not be answered more quickly, only later; commits and proofs take milliseconds, so
/// these are tens of thousands of requests a second.
const REQUESTS: usize = 1024;

/// When to ask again. The requests that wait are answered within that, or something is wrong.
const RETRY_MS: Millis = 250;

/// The room at one endpoint.
#[derive(Debug, Clone)]
pub(crate) struct Room(Arc<Semaphore>);

/// A request's place. Others may have it when this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    _permit: OwnedSemaphorePermit,
}

impl Room {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Semaphore::new(BYTES)))
    }

    /// A place for a request of so many bytes, if there is room. A small one counts as a large one's part, so that the
    /// number is bounded too; one that is larger than the whole room has all of it.
    pub(crate) fn place(&self, size: usize) -> Option<Place> {
        let bytes = u32::try_from(size.clamp(BYTES / REQUESTS, BYTES)).ok()?;
        let permit = Arc::clone(&self.0).try_acquire_many_owned(bytes).ok()?;
        Some(Place { _permit: permit })
    }
}

/// What is answered where there is no room.
pub(crate) fn full(endpoint: &str) -> Rejection {
    let message = format!("too many requests {endpoint} wait for an answer: this one was not looked at");
    Rejection::new(Code::Overloaded, message).retry_after(RETRY_MS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_bounded_by_count_and_by_size() {
        let room = Room::new();
        let small: Vec<_> = std::iter::from_fn(|| room.place(0)).collect();
        assert_eq!(small.len(), REQUESTS);
        drop(small);
        let large: Vec<_> = std::iter::from_fn(|| room.place(BYTES / 16)).collect();
        assert_eq!(large.len(), 16);
        assert!(room.place(0).is_none());
        drop(large);
        let huge = room.place(usize::MAX);
        assert!(huge.is_some() && room.place(0).is_none());
        drop(huge);
        assert!(room.place(0).is_some());
    }
}
