//! What an agent says to the services.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use baton_client::{Client, ClientError, Headers, Link};
use baton_protocol::message::MessageType;
use baton_protocol::subject::{self, AgentVerb};
use baton_protocol::{AgentId, Code, Rejection, Service};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{sleep, timeout};
use uuid::Uuid;

/// How long an attempt waits for its answer.
const ATTEMPT: Duration = Duration::from_secs(2);
/// The waits between attempts: the first, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// Says things under the agent's own subjects.
#[derive(Clone)]
pub(crate) struct Voice {
    pub(crate) agent: AgentId,
    pub(crate) client: Client,
    pub(crate) link: watch::Receiver<Link>,
}

/// Waits that grow, with some chance in them, so that a thousand agents do not come back in one moment.
pub(crate) fn backoff(longest: Duration) -> impl Iterator<Item = Duration> + Send {
    ExponentialBuilder::default()
        .with_min_delay(BACKOFF.0.min(longest))
        .with_max_delay(longest)
        .with_jitter()
        .without_max_times()
        .build()
}

impl Voice {
    /// Says it once.
    pub(crate) async fn once<Q: Serialize, A: DeserializeOwned>(
        &self,
        verb: AgentVerb,
        request: &Q,
        headers: Headers,
        timeout: Duration,
    ) -> Result<A, ClientError> {
        let subject = subject::agent(&self.agent, verb);
        self.client.request_once(listener(verb), &subject, request, headers, timeout).await
    }

    /// Says it until it is answered, or refused for a reason that asking again does not change.
    pub(crate) async fn until_answered<Q: Serialize, A: DeserializeOwned>(
        &self,
        verb: AgentVerb,
        request: &Q,
        headers: Headers,
    ) -> Result<A, Rejection> {
        self.insist(verb, request, headers, None, may_pass).await
    }

    /// The same, giving a place back after the first attempt: what is refused again and again must not hold up others. It
    /// asks again after those refusals that pass.
    pub(crate) async fn insist<Q: Serialize, A: DeserializeOwned>(
        &self,
        verb: AgentVerb,
        request: &Q,
        mut headers: Headers,
        mut place: Option<OwnedSemaphorePermit>,
        passes: fn(&Rejection) -> bool,
    ) -> Result<A, Rejection> {
        headers.id.get_or_insert_with(Uuid::now_v7);
        let mut waits = backoff(BACKOFF.1);
        let mut attempt = 0u32;
        loop {
            let before = self.connected().await;
            let answered = tokio::select! {
                answered = self.once(verb, request, headers.clone(), ATTEMPT) => answered,
                // What was being asked went down with the old connection, or its answer did.
                () = self.connected_again(before) => continue,
            };
            let error = match answered {
                Ok(answer) => return Ok(answer),
                Err(ClientError::Rejected(rejection)) if !passes(&rejection) => return Err(rejection),
                Err(error) => error,
            };
            attempt += 1;
            drop(place.take());
            if attempt == 1 {
                tracing::warn!(agent = %self.agent, verb = verb.as_str(), %error, "no answer; asking until there is one");
            } else {
                tracing::debug!(agent = %self.agent, verb = verb.as_str(), %error, attempt, "still no answer");
            }
            let advised = match &error {
                ClientError::Rejected(rejection) => rejection.retry_after_ms.map(Duration::from_millis),
                _ => None,
            };
            tokio::select! {
                () = sleep(advised.or_else(|| waits.next()).unwrap_or(BACKOFF.1)) => {}
                () = self.connected_again(before) => {}
            }
        }
    }

    /// Waits for a connection, for a while, and gives how many there have been. (What is said without one is sent when
    /// there is one again; better to say it then.)
    async fn connected(&self) -> u64 {
        let mut link = self.link.clone();
        let waited = timeout(ATTEMPT, link.wait_for(|link| link.connected)).await;
        drop(waited);
        self.link.borrow().connects
    }

    /// Waits for a newer connection than the one that was given the number `before`.
    async fn connected_again(&self, before: u64) {
        let mut link = self.link.clone();
        if link.wait_for(|link| link.connects > before).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Who listens to that.
fn listener(verb: AgentVerb) -> Service {
    match verb {
        AgentVerb::Report | AgentVerb::Reports | AgentVerb::Raise => Service::WorkflowManager,
        AgentVerb::Register
        | AgentVerb::Heartbeat
        | AgentVerb::Decline
        | AgentVerb::Leave
        | AgentVerb::Progress
        | AgentVerb::Acquire
        | AgentVerb::Renew
        | AgentVerb::Release
        | AgentVerb::Handoff
        | AgentVerb::Acknowledge => Service::ResourceManager,
    }
}

/// Whether asking again may help. A defect of a service may be healed by its restart.
pub(crate) fn may_pass(rejection: &Rejection) -> bool {
    rejection.code.is_retryable() || rejection.code == Code::Internal
}

/// The type of a message.
pub(crate) fn headers(verb: AgentVerb, agent: &AgentId) -> Headers {
    let message_type = match verb {
        AgentVerb::Register | AgentVerb::Leave => MessageType::AgentStatus,
        AgentVerb::Heartbeat => MessageType::Heartbeat,
        AgentVerb::Report | AgentVerb::Reports => MessageType::TaskComplete,
        AgentVerb::Decline => MessageType::TaskResponse,
        AgentVerb::Progress => MessageType::StatusUpdate,
        AgentVerb::Acquire | AgentVerb::Renew | AgentVerb::Release => MessageType::ResourceRequest,
        AgentVerb::Handoff => MessageType::HandoffInitiate,
        AgentVerb::Raise => MessageType::CoordinationRequest,
        AgentVerb::Acknowledge => MessageType::HandoffAcknowledge,
    };
    Headers { source: Some(agent.to_string()), ..Headers::of(message_type) }
}
