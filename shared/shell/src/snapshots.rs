//! Snapshots: a machine's state at a commit, so that a start need not read the whole log.
//!
//! A snapshot is a convenience, never a truth: one that is missing, torn, of another format or of another log is passed
//! over, and the log is read from its beginning.

use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::object_store::{self, ObjectStore};
use async_nats::jetstream::stream::Stream;
use baton_machine::{Machine, Snapshot};
use baton_protocol::record::Record;
use baton_protocol::subject;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;

use crate::config::Settings;
use crate::log::LogError;
use crate::objects;

/// Whether a log that ends at `last` is the one that the snapshot was made of.
async fn fits<M: Machine>(snapshot: &Snapshot<M>, stream: &Stream, last: u64) -> bool {
    let message = stream.get_raw_message(snapshot.own).await.ok();
    let own = message.as_ref().and_then(|message| Some((subject::parse_log(&message.subject)?.1, &*message.payload)));
    snapshot.fits(last, own)
}

/// How long it may take to get a snapshot.
const LOAD: Duration = Duration::from_secs(15);

#[derive(Serialize, Deserialize)]
#[serde(bound = "M: Machine")]
struct Stored<M> {
    /// Which log it is of: when the stream was created.
    log: String,
    snapshot: Snapshot<M>,
}

/// Where a service's snapshots are kept.
#[derive(Clone)]
pub(crate) struct Snapshots {
    store: ObjectStore,
    log: String,
}

impl Snapshots {
    pub(crate) async fn open(js: &Context, settings: &Settings, log: String) -> Result<Self, LogError> {
        let config = object_store::Config {
            bucket: subject::SNAPSHOTS_BUCKET.to_owned(),
            description: Some("Baton: states of the services, to start from".to_owned()),
            num_replicas: settings.log.replicas,
            ..object_store::Config::default()
        };
        let store = objects::open(js, config).await?;
        Ok(Self { store, log })
    }

    fn name<M: Machine>() -> String {
        M::Record::SERVICE.to_string()
    }

    /// The last snapshot, if it can be used for a log that ends at `last`.
    pub(crate) async fn load<M: Machine>(&self, stream: &Stream, last: u64) -> Option<Snapshot<M>> {
        let read = async {
            let mut object = self.store.get(Self::name::<M>()).await.ok()?;
            let mut text = Vec::new();
            Some(object.read_to_end(&mut text).await.map(|_| text).map_err(|error| error.to_string()))
        };
        // The server that sends its parts may be gone in the middle.
        let read =
            tokio::time::timeout(LOAD, read).await.unwrap_or_else(|_| Some(Err(format!("not within {LOAD:?}"))))?;
        let stored =
            read.and_then(|text| serde_json::from_slice::<Stored<M>>(&text).map_err(|error| error.to_string()));
        match stored {
            Ok(Stored { log, .. }) if log != self.log => tracing::info!("the snapshot is of another log: not used"),
            Ok(Stored { snapshot, .. }) if !fits(&snapshot, stream, last).await => {
                tracing::warn!("the snapshot does not fit the log: reading the log from its beginning");
            }
            Ok(Stored { snapshot, .. }) => return Some(snapshot),
            Err(error) => tracing::warn!(error, "the snapshot can not be read: reading the log from its beginning"),
        }
        None
    }

    /// Keeps a snapshot in place of the last one.
    pub(crate) async fn save<M: Machine>(&self, snapshot: Snapshot<M>) {
        let log = self.log.clone();
        let text = tokio::task::spawn_blocking(move || serde_json::to_vec(&Stored { log, snapshot })).await;
        let Ok(Ok(text)) = text else {
            tracing::warn!("a snapshot could not be written as JSON");
            return;
        };
        let bytes = text.len();
        match self.store.put(Self::name::<M>().as_str(), &mut text.as_slice()).await {
            Ok(_) => tracing::debug!(bytes, "kept a snapshot"),
            Err(error) => tracing::warn!(%error, "a snapshot could not be kept"),
        }
    }
}
