//! What can go wrong when a service is asked.

use std::time::Duration;

use baton_protocol::{Code, Rejection, RunId, Service};

/// Why there is no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ClientError {
    /// The service refused.
    #[error("{0}")]
    Rejected(Rejection),
    /// Nobody answers for the service: it does not run, or has no leader.
    #[error(
        "no {0} answers: it is not running, or has no leader yet (`baton status` shows what runs, `baton up` starts all of it)"
    )]
    NoService(Service),
    /// The service took the request and did not answer in time.
    #[error("the {service} did not answer within {} ms", after.as_millis())]
    Timeout {
        /// Who was asked.
        service: Service,
        /// How long was waited.
        after: Duration,
    },
    /// The broker could not be reached or refused.
    #[error("{0}")]
    Connection(String),
    /// What came can not be read.
    #[error("{what} can not be read: {why}")]
    Unreadable {
        /// What it was.
        what: String,
        /// Why not.
        why: String,
    },
    /// The log can not be read.
    #[error("the log can not be read: {0}")]
    Log(String),
    /// The log was trimmed: what is asked for was in it, and has been removed.
    #[error(
        "the log has no records of run {run} any more, or not all of them: it begins with message {first}, for what is older and \
         belongs to forgotten runs has been removed (`baton show` has the run's outcome, as long as its document is kept)"
    )]
    Trimmed {
        /// Whose records were asked for.
        run: RunId,
        /// The sequence of the log's first message.
        first: u64,
    },
}

impl ClientError {
    /// The code of the rejection, if this is one.
    #[must_use]
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Rejected(rejection) => Some(rejection.code),
            _ => None,
        }
    }

    /// Whether the same request may be answered later: the service or the broker is away for a moment, or there is too
    /// much to do.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Rejected(rejection) => rejection.code.is_retryable(),
            Self::NoService(_) | Self::Timeout { .. } => true,
            Self::Connection(_) | Self::Unreadable { .. } | Self::Log(_) | Self::Trimmed { .. } => false,
        }
    }
}
