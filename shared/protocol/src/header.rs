//! Headers: everything about a message that is not its body.
//!
//! The header fields of the source documents, one NATS header each. All are optional to a reader.

/// The message's id: a UUID, or of messages between agents anything that no other message has.
pub const ID: &str = "Baton-Id";
/// When it was sent, in milliseconds since 1970.
pub const TIME: &str = "Baton-Time";
/// The version of its type.
pub const VERSION: &str = "Baton-Version";
/// Its type: see [`crate::message::MessageType`].
pub const TYPE: &str = "Baton-Type";
/// Who sent it: an agent's or a service's name.
pub const SOURCE: &str = "Baton-Source";
/// Whom it is for: agent ids, separated by commas.
pub const TARGETS: &str = "Baton-Targets";
/// `direct`, `broadcast` or `multicast`.
pub const ROUTING: &str = "Baton-Routing";
/// `low`, `normal`, `high` or `critical`.
pub const PRIORITY: &str = "Baton-Priority";
/// What it belongs to: for messages of a run, the run's id.
pub const CORRELATION_ID: &str = "Baton-Correlation-Id";
/// `true` if an answer is wanted.
pub const RESPONSE_WANTED: &str = "Baton-Response-Wanted";
/// How long the sender waits for the answer, in milliseconds.
pub const TIMEOUT_MS: &str = "Baton-Timeout-Ms";
/// How long the message is worth reading, in milliseconds from [`TIME`]. Whoever gets it later drops it.
pub const TTL_MS: &str = "Baton-Ttl-Ms";
/// How often the sender will send it again at the most.
pub const MAX_RETRIES: &str = "Baton-Max-Retries";
/// The sender's signature.
pub const SIGNATURE: &str = "Baton-Signature";
/// How the body is encrypted.
pub const ENCRYPTION: &str = "Baton-Encryption";
/// The trace context (W3C).
pub const TRACEPARENT: &str = "traceparent";
/// The trace state (W3C).
pub const TRACESTATE: &str = "tracestate";

/// The version written into [`VERSION`].
pub const CURRENT_VERSION: &str = "1.0";

/// How a message finds its readers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Routing {
    /// To one agent.
    #[default]
    Direct,
    /// To all.
    Broadcast,
    /// To some.
    Multicast,
}

impl Routing {
    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Broadcast => "broadcast",
            Self::Multicast => "multicast",
        }
    }
}

/// How urgent a message is.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    serde::Serialize,
    serde::Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// When there is nothing else to do.
    Low,
    /// As it comes.
    #[default]
    Normal,
    /// Before others.
    High,
    /// At once.
    Critical,
}

impl Priority {
    /// Every priority, the lowest first.
    pub const ALL: [Self; 4] = [Self::Low, Self::Normal, Self::High, Self::Critical];

    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Normal => "normal",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }
}
