//! Questions that every instance answers.

use std::time::Duration;

use async_nats::{Message, StatusCode};
use baton_protocol::request::InstanceStatus;
use baton_protocol::{Service, subject};
use bytes::Bytes;
use futures::StreamExt;
use futures::future::join_all;
use tokio::time::{Instant, timeout_at};

use crate::client::Client;
use crate::error::ClientError;

/// How long the first answer may take.
const FIRST: Duration = Duration::from_secs(1);
/// After this long without a further answer there are no more.
const QUIET: Duration = Duration::from_millis(300);
/// How long answers are gathered at most.
const LONGEST: Duration = Duration::from_secs(3);

impl Client {
    /// How every instance of a service stands, leading or not; none if none runs.
    pub async fn statuses(&self, service: Service) -> Result<Vec<InstanceStatus>, ClientError> {
        self.statuses_of(service, usize::MAX).await
    }

    /// The same, without waiting for more answers than that many.
    pub async fn statuses_of(&self, service: Service, expected: usize) -> Result<Vec<InstanceStatus>, ClientError> {
        let answers = self.gather(subject::status(service), expected).await?;
        let read = |answer: &Message| match serde_json::from_slice(&answer.payload) {
            Ok(status) => Some(status),
            Err(error) => {
                tracing::warn!(%service, %error, "an instance's status can not be read");
                None
            }
        };
        let mut statuses: Vec<InstanceStatus> = answers.iter().filter_map(read).collect();
        statuses.sort_by(|a, b| a.instance.cmp(&b.instance));
        Ok(statuses)
    }

    /// How every instance of every service stands.
    pub async fn all_statuses(&self) -> Result<Vec<InstanceStatus>, ClientError> {
        let services = join_all(Service::ALL.map(|service| self.statuses(service))).await;
        Ok(services.into_iter().collect::<Result<Vec<_>, _>>()?.concat())
    }

    /// The metrics of every instance of every service, in Prometheus' text format.
    pub async fn metrics(&self) -> Result<Vec<(Service, String)>, ClientError> {
        let services = join_all(Service::ALL.map(|service| async move {
            let answers = self.gather(subject::metrics(service), usize::MAX).await?;
            let text = |answer: Message| (service, String::from_utf8_lossy(&answer.payload).into_owned());
            Ok::<_, ClientError>(answers.into_iter().map(text).collect::<Vec<_>>())
        }))
        .await;
        Ok(services.into_iter().collect::<Result<Vec<_>, _>>()?.concat())
    }

    /// Asks all that listen on a subject, and takes answers until there are no more.
    async fn gather(&self, subject: String, expected: usize) -> Result<Vec<Message>, ClientError> {
        let lost =
            |error: &dyn std::fmt::Display| ClientError::Connection(format!("{subject} can not be asked: {error}"));
        let inbox = self.nats().new_inbox();
        let mut answers = self.nats().subscribe(inbox.clone()).await.map_err(|error| lost(&error))?;
        let asked = self.nats().publish_with_reply(subject.clone(), inbox, Bytes::new()).await;
        asked.map_err(|error| lost(&error))?;
        let end = Instant::now() + LONGEST;
        let mut gathered = Vec::new();
        let mut until = Instant::now() + FIRST;
        while gathered.len() < expected {
            match timeout_at(until.min(end), answers.next()).await {
                Ok(Some(answer)) if answer.status == Some(StatusCode::NO_RESPONDERS) => break,
                Ok(Some(answer)) => gathered.push(answer),
                Ok(None) | Err(_) => break,
            }
            until = Instant::now() + QUIET;
        }
        Ok(gathered)
    }
}
