//! What an agent asks of the post office: the guaranteed messages that it has missed.
//!
//! A guaranteed message is stored in the stream [`crate::subject::MESSAGES_STREAM`], and the broker publishes it to its
//! reader as soon as it is. What gets lost on that fast path is fetched: an agent that was away, or sees a gap, asks for
//! what lies beyond its *floor*. The post office has the broker send it, straight from the stream to the agent's own
//! subjects. Beyond that it only keeps each agent's *cursor*: how far its messages have been handled.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The most messages that one [`Ask::Fetch`] gives.
pub const MAX_FETCH: u32 = 1000;

/// A question to the post office: the body of `baton.agent.AGENT.post`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum Ask {
    /// "Where was I?" A request, answered with [`Opened`].
    Open {},
    /// "Send me what is stored for me beyond this." The messages come to `baton.to.AGENT.post.fetch.TOKEN`, in the order in
    /// which they were stored, and after them a status: 204 with the header `Nats-Num-Pending` (how many more there are),
    /// or 404 when there are none.
    Fetch {
        /// The sequence beyond which.
        after: u64,
        /// How many at the most, and never more than [`MAX_FETCH`].
        max: u32,
        /// A number of the agent's choice.
        token: u64,
    },
    /// "Which is the last message of each of my senders?" Those come to `baton.to.AGENT.post.check.TOKEN`, and after them a
    /// status: 204 with the header `Nats-UpTo-Sequence` (how far the stream had been written), or 404 when there are none.
    /// An agent that has all of them has all that is stored for it up to that sequence.
    Check {
        /// Everything for the agent up to this sequence has been handled; kept as its cursor.
        handled: u64,
        /// Of which stream: what [`Opened`] said.
        epoch: u64,
        /// A number of the agent's choice.
        token: u64,
    },
    /// "I have handled everything up to this." A request is answered with `{}` when it is kept.
    Handled {
        /// Everything for the agent up to this sequence has been handled.
        handled: u64,
        /// Of which stream: what [`Opened`] said.
        epoch: u64,
    },
    /// "This many messages more I have sent, handled, dropped …": for the metrics of the post office.
    Count {
        /// How many more of each kind since the last time.
        more: BTreeMap<String, u64>,
    },
}

/// The answer to [`Ask::Open`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Opened {
    /// Everything for the agent up to this sequence has been handled; 0 for an agent that has not handled anything yet.
    pub cursor: u64,
    /// Which stream that is about: a stream that was made anew has another number, and its sequences begin anew.
    pub epoch: u64,
}
