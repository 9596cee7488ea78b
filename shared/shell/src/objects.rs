//! The object stores: created if there are none.

use std::time::Duration;

use async_nats::jetstream::object_store::{self, ObjectStore};
use async_nats::jetstream::{Context, stream};
use baton_protocol::subject;

use crate::config::Settings;
use crate::log::{LogError, other};

/// An object store.
pub(crate) async fn open(js: &Context, config: object_store::Config) -> Result<ObjectStore, LogError> {
    let name = config.bucket.clone();
    if let Ok(store) = js.get_object_store(&name).await {
        return Ok(store);
    }
    // Another instance may create it at the same moment.
    if let Err(error) = js.create_object_store(config).await {
        tracing::debug!(%error, store = name, "the object store could not be created; looking again");
    }
    js.get_object_store(&name).await.map_err(|error| other("opening the object store", error))
}

/// The store of what is too large for a message, with the limits that the settings say.
pub(crate) async fn ensure(js: &Context, settings: &Settings) -> Result<(), LogError> {
    let (max_age, max_bytes) = (Duration::from_millis(settings.objects.keep_ms), settings.objects.max_bytes);
    let config = object_store::Config {
        bucket: subject::OBJECTS_BUCKET.to_owned(),
        description: Some("Baton: what is too large for a message".to_owned()),
        max_age,
        max_bytes,
        num_replicas: settings.log.replicas,
        ..object_store::Config::default()
    };
    open(js, config).await?;
    let failed = |error: async_nats::Error| other("changing how long objects are kept", error);
    let stream =
        js.get_stream(format!("OBJ_{}", subject::OBJECTS_BUCKET)).await.map_err(|error| failed(error.into()))?;
    let known = &stream.cached_info().config;
    if (known.max_age, known.max_bytes) != (max_age, max_bytes) {
        let config = stream::Config { max_age, max_bytes, ..known.clone() };
        js.update_stream(config).await.map_err(|error| failed(error.into()))?;
        tracing::info!(?max_age, max_bytes, "objects are kept as long, and as many of them");
    }
    Ok(())
}
