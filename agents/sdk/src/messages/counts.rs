//! What became of messages, as numbers.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counts {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// Counts that grow.
        #[derive(Debug, Default)]
        pub(crate) struct Counts {
            $(pub(crate) $name: Count,)+
        }

        /// How many messages there were, of each kind, since the messages were opened.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct Numbers {
            $($(#[doc = $doc])+ pub $name: u64,)+
        }

        impl Counts {
            pub(crate) fn numbers(&self) -> Numbers {
                Numbers { $($name: self.$name.0.load(Ordering::Relaxed),)+ }
            }
        }

        impl Numbers {
            /// Every number that has grown since `before`, by its name.
            #[must_use]
            pub fn since(&self, before: &Self) -> BTreeMap<String, u64> {
                [$((stringify!($name), self.$name.saturating_sub(before.$name)),)+]
                    .into_iter()
                    .filter(|(_, more)| *more > 0)
                    .map(|(name, more)| (name.to_owned(), more))
                    .collect()
            }
        }
    };
}

counts! {
    /// Sent, in any way; a multicast counts once for each target.
    sent,
    /// Acknowledged as stored.
    stored,
    /// Sent again, as no acknowledgement had come.
    repeated,
    /// Given to at least one handler.
    delivered,
    /// Handled by a handler without a failure; a message that two handlers take counts twice.
    handled,
    /// Not given to a handler, as their time to live was over.
    expired,
    /// Attempts of handlers that failed or panicked.
    failed,
    /// Fire-and-forget messages that were not taken, as a handler had too many waiting.
    dropped,
    /// Guaranteed messages that came again and were not given to a handler again.
    duplicate,
    /// Guaranteed messages that the fast path had lost and the post office gave.
    refetched,
    /// Taken, but no handler was for them.
    unclaimed,
}

#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    pub(crate) fn one(&self) {
        self.add(1);
    }
}
