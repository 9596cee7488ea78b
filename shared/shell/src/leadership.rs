//! Who tries to lead: an entry of a key-value bucket that its holder renews.
//!
//! Nothing rests on it but liveness: two instances that both believe they lead are told apart by the fence. A holder
//! whose connection is gone is replaced at once: the broker answers a ping to it with "no responders". One that only
//! stays silent is replaced when its entry expires.

use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_nats::jetstream::Context;
use async_nats::jetstream::kv::{self, CreateErrorKind, Store, UpdateErrorKind};
use async_nats::{Client, RequestErrorKind};
use baton_protocol::subject;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::config::Settings;
use crate::full;
use crate::instance::Instance;
use crate::log::{LogError, other};

/// How long the entry may be out of reach before another connection is tried: the server may be cut off from the others of
/// its cluster, and then it answers, but not with what is so.
const OUT_OF_REACH: Duration = Duration::from_secs(6);

/// What changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Leadership {
    /// This instance may try to lead.
    Won,
    /// Another one may, or nobody can tell: this one should stop.
    Lost,
    /// Another one does.
    Elsewhere,
    /// Nobody can: the broker does not store who does. This is why.
    Full(String),
}

/// One instance's campaign.
pub(crate) struct Campaign {
    store: Store,
    client: Client,
    instance: Instance,
    key: String,
    ttl: Duration,
    pulse: Pulse,
}

/// When the session's loop last turned. A leader whose loop stands still must not keep others from leading.
#[derive(Debug, Clone)]
pub(crate) struct Pulse(Arc<Mutex<Instant>>);

impl Pulse {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    pub(crate) fn beat(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn silent_for(&self) -> Duration {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }
}

/// What came of one try.
enum Tried {
    /// This instance holds the entry, which has this revision.
    Held(u64),
    /// Another one does.
    Elsewhere,
    /// The entry changed meanwhile. It may have been by this instance, with an update of the session before.
    Raced,
}

/// Why the entry could be neither read nor written.
struct Failed {
    error: String,
    /// Because nothing can be stored.
    full: Option<String>,
}

fn failed(error: impl Error + 'static) -> Failed {
    Failed { error: error.to_string(), full: full::reason(&error) }
}

impl Campaign {
    pub(crate) async fn new(
        js: &Context,
        client: &Client,
        instance: &Instance,
        settings: &Settings,
        pulse: Pulse,
    ) -> Result<Self, LogError> {
        let ttl = Duration::from_millis(settings.leader.ttl_ms);
        let store = bucket(
            js,
            kv::Config {
                bucket: subject::LEADERS_BUCKET.to_owned(),
                description: "Baton: which instance of each service tries to lead".to_owned(),
                history: 1,
                max_age: ttl,
                num_replicas: settings.log.replicas,
                ..kv::Config::default()
            },
        )
        .await?;
        // The bucket may be older than the setting; what counts is how long its entries live.
        let lives = store.stream.cached_info().config.max_age;
        if !lives.is_zero() && lives != ttl {
            let (wanted, found) = (settings.leader.ttl_ms, lives.as_millis());
            tracing::warn!(
                wanted,
                found,
                "leader.ttl_ms differs from the bucket's; delete the bucket baton-leaders to change it"
            );
        }
        let ttl = if lives.is_zero() { ttl } else { lives };
        let key = instance.service().to_string();
        Ok(Self { store, client: client.clone(), instance: instance.clone(), key, ttl, pulse })
    }

    /// Campaigns until cancelled; gives the entry up at the end, so that another takes over at once.
    pub(crate) async fn run(self, changes: mpsc::Sender<Leadership>, cancel: CancellationToken) {
        let mut held = None;
        let campaign = async {
            let mut reached = Instant::now();
            loop {
                let outcome = self.campaign().await;
                if outcome.is_ok() {
                    reached = Instant::now();
                }
                match outcome {
                    Ok(Tried::Held(revision)) => {
                        held = Some(revision);
                        if changes.send(Leadership::Won).await.is_err() {
                            return;
                        }
                        self.hold(&mut held).await;
                        reached = Instant::now();
                        if changes.send(Leadership::Lost).await.is_err() {
                            return;
                        }
                    }
                    Ok(Tried::Raced) => tokio::time::sleep(Duration::from_millis(50)).await,
                    Ok(Tried::Elsewhere) => {
                        let _ = changes.send(Leadership::Elsewhere).await;
                        tokio::time::sleep(Duration::from_millis(200)).await;
                    }
                    Err(Failed { error, full }) => {
                        tracing::debug!(error, "campaign");
                        if let Some(why) = full {
                            let _ = changes.send(Leadership::Full(why)).await;
                        }
                        if reached.elapsed() > OUT_OF_REACH && changes.send(Leadership::Lost).await.is_err() {
                            return;
                        }
                        tokio::time::sleep(Duration::from_millis(200)).await;
                    }
                }
            }
        };
        tokio::select! {
            () = campaign => {}
            () = cancel.cancelled() => {}
        }
        if let Some(revision) = held {
            let release = self.store.delete_expect_revision(&self.key, Some(revision));
            let _ = tokio::time::timeout(Duration::from_secs(1), release).await;
        }
    }

    /// Tries once.
    async fn campaign(&self) -> Result<Tried, Failed> {
        let me = bytes::Bytes::from(self.instance.name().to_owned());
        let entry = self.store.entry(&self.key).await.map_err(failed)?;
        let Some(entry) = entry.filter(|entry| entry.operation == kv::Operation::Put) else {
            return match self.store.create(&self.key, me).await {
                Ok(revision) => Ok(Tried::Held(revision)),
                Err(error) if error.kind() == CreateErrorKind::AlreadyExists => Ok(Tried::Raced),
                Err(error) => Err(failed(error)),
            };
        };
        let holder = String::from_utf8_lossy(&entry.value);
        let ping = subject::ping(self.instance.service(), &holder);
        if holder != self.instance.name() {
            // Not long: while it is waited for a silent holder, its entry may expire.
            match tokio::time::timeout(self.ttl / 4, self.client.request(ping, "".into())).await {
                Ok(Err(error)) if error.kind() == RequestErrorKind::NoResponders => {
                    tracing::info!(%holder, "the leading instance is gone: taking over");
                }
                _ => return Ok(Tried::Elsewhere),
            }
        }
        match self.store.update(&self.key, me, entry.revision).await {
            Ok(revision) => Ok(Tried::Held(revision)),
            Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => Ok(Tried::Raced),
            Err(error) => Err(failed(error)),
        }
    }

    /// Renews the entry until it is lost, or could not be renewed for as long as it lives.
    async fn hold(&self, held: &mut Option<u64>) {
        let mut renewed = Instant::now();
        while let Some(revision) = *held {
            tokio::time::sleep(self.ttl / 4).await;
            if self.pulse.silent_for() > self.ttl {
                tracing::error!("this instance's loop stands still: it gives up leading");
                let _ = self.store.delete_expect_revision(&self.key, Some(revision)).await;
                *held = None;
                return;
            }
            let me = bytes::Bytes::from(self.instance.name().to_owned());
            match tokio::time::timeout(self.ttl / 2, self.store.update(&self.key, me, revision)).await {
                Ok(Ok(revision)) => {
                    renewed = Instant::now();
                    *held = Some(revision);
                }
                Ok(Err(error)) if error.kind() == UpdateErrorKind::WrongLastRevision => {
                    // An update whose answer got lost looks the same: then the entry is still ours.
                    match self.store.entry(&self.key).await {
                        Ok(Some(entry)) if entry.value == self.instance.name().as_bytes() => {
                            *held = Some(entry.revision);
                        }
                        _ => *held = None,
                    }
                }
                Ok(Err(_)) | Err(_) if renewed.elapsed() > self.ttl => *held = None,
                Ok(Err(_)) | Err(_) => {}
            }
        }
    }
}

/// A key-value bucket: created if there is none.
pub(crate) async fn bucket(js: &Context, config: kv::Config) -> Result<Store, LogError> {
    if let Ok(store) = js.get_key_value(&config.bucket).await {
        return Ok(store);
    }
    let name = config.bucket.clone();
    if let Err(error) = js.create_key_value(config).await {
        tracing::debug!(%error, bucket = name, "the bucket could not be created; looking again");
    }
    js.get_key_value(&name).await.map_err(|error| other("opening a key-value bucket", error))
}
