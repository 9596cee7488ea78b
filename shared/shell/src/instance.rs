//! How an instance stands, for everyone who asks: `baton.status.SERVICE`, `baton.metrics.SERVICE`,
//! `baton.ping.SERVICE.INSTANCE`.

use std::sync::{Arc, Mutex, PoisonError};

use async_nats::Client;
use baton_protocol::request::{InstanceStatus, Role};
use baton_protocol::{Service, subject};
use baton_telemetry::Metrics;
use futures::StreamExt;
use tokio::task::JoinSet;

use crate::now_ms;

/// One instance of a service: who it is, and how it stands.
#[derive(Debug, Clone)]
pub struct Instance(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    service: Service,
    name: String,
    status: Mutex<InstanceStatus>,
}

impl Instance {
    /// A new instance. Its name never comes twice: a commit that an earlier life of this process had sent must not be
    /// taken for one of this life.
    #[must_use]
    pub fn new(service: Service) -> Self {
        let id = uuid::Uuid::new_v4().simple().to_string();
        let name = format!("{}-{}", std::process::id(), &id[..12]);
        let status = InstanceStatus {
            service,
            instance: name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            role: Role::Loading,
            term: 0,
            read: 0,
            number: 0,
            set_aside: 0,
            full: None,
            now: 0,
            started_at: now_ms(),
        };
        Self(Arc::new(Inner { service, name, status: Mutex::new(status) }))
    }

    /// Its service.
    #[must_use]
    pub fn service(&self) -> Service {
        self.0.service
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// How it stands.
    #[must_use]
    pub fn status(&self) -> InstanceStatus {
        let status = self.0.status.lock().unwrap_or_else(PoisonError::into_inner).clone();
        InstanceStatus { now: now_ms(), ..status }
    }

    /// Changes how it stands.
    pub fn update(&self, change: impl FnOnce(&mut InstanceStatus)) {
        change(&mut self.0.status.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Whether an answer may go to that subject. It is sent with this service's rights, so a reply subject must not be one that
/// the asker could not have published to: the log, an agent's work, the broker's own interfaces.
pub(crate) fn is_inbox(reply: &str) -> bool {
    !reply.starts_with("baton.") && !reply.starts_with('$')
}

/// Answers who asks how the instance stands, as long as the tasks live.
pub async fn serve_status(
    client: &Client,
    instance: &Instance,
    metrics: &Metrics,
    tasks: &mut JoinSet<()>,
) -> Result<(), async_nats::SubscribeError> {
    let service = instance.service();
    // A group of its own: an instance may have two connections, and answers once.
    let group = || instance.name().to_owned();
    let mut statuses = client.queue_subscribe(subject::status(service), group()).await?;
    let mut pings = client.queue_subscribe(subject::ping(service, instance.name()), group()).await?;
    let mut scrapes = client.queue_subscribe(subject::metrics(service), group()).await?;
    let (client, instance, metrics) = (client.clone(), instance.clone(), metrics.clone());
    tasks.spawn(async move {
        loop {
            let (reply, body) = tokio::select! {
                Some(message) = statuses.next() => (message.reply, serde_json::to_vec(&instance.status()).unwrap_or_default()),
                Some(message) = pings.next() => (message.reply, Vec::new()),
                Some(message) = scrapes.next() => (message.reply, metrics.render().into_bytes()),
                else => return,
            };
            if let Some(reply) = reply.filter(|reply| is_inbox(reply)) {
                let _ = client.publish(reply, body.into()).await;
            }
        }
    });
    Ok(())
}
