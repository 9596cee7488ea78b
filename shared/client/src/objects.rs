//! Objects: what is too large for a message.

use std::collections::BTreeMap;
use std::error::Error;
use std::time::{Duration, SystemTime};

use async_nats::jetstream;
use async_nats::jetstream::object_store::{GetErrorKind, ObjectInfo, ObjectMetadata, ObjectStore};
use baton_protocol::object::{JSON, MAX_OBJECT_BYTES, MAX_TYPE_BYTES, may_refer, references, replace};
use baton_protocol::request::MAX_JSON_BYTES;
use baton_protocol::{Code, Json, ObjectName, ObjectRef, Rejection, subject};
use bytes::Bytes;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

use crate::client::Client;
use crate::error::ClientError;

/// One that was put within this time is not put again: it has most of its time before it. Every time that it is put anew it is kept
/// as long as a new one.
const FRESH: Duration = Duration::from_secs(3600);

/// How long it may take until the next part of an object comes.
const SILENCE: Duration = Duration::from_secs(10);

/// A value that has less than this, in bytes, does not become a reference: that has about 130 bytes itself.
const WORTH: usize = 1024;

/// What the values that stay where they are may have together, in bytes, where others become references.
const ROOM: usize = MAX_JSON_BYTES - 16 * 1024;

impl Client {
    /// Keeps bytes as an object, and gives a reference to them. The same bytes are kept once.
    ///
    /// # Errors
    /// There is more than [`MAX_OBJECT_BYTES`], or the object store can not be reached or has no room.
    pub async fn put_object(&self, bytes: Bytes, media_type: &str) -> Result<ObjectRef, ClientError> {
        put(&self.object_store().await?, bytes, media_type).await
    }

    /// What an object is, and its bytes.
    ///
    /// # Errors
    /// There is no such object ([`Code::UnknownObject`]): there never was, or its time is over. Or the object store can not be reached.
    pub async fn get_object(&self, name: &ObjectName) -> Result<(ObjectRef, Bytes), ClientError> {
        get(&self.object_store().await?, name).await
    }

    /// Makes a value small enough for a message: what of it is large becomes references to objects. What is small stays, so
    /// that conditions and mappings can look at it.
    ///
    /// # Errors
    /// Those of [`Client::put_object`].
    pub async fn shrink(&self, json: Json) -> Result<Json, ClientError> {
        if json.size() <= MAX_JSON_BYTES {
            return Ok(json);
        }
        let store = self.object_store().await?;
        let whole = async |json: &Json| {
            let reference = put(&store, Bytes::copy_from_slice(json.as_ref()), JSON).await?;
            Json::of(&reference).map_err(|error| unreadable("a reference", &error))
        };
        let Ok(members) = json.read::<BTreeMap<String, Json>>() else { return whole(&json).await };
        let mut left: usize = members.iter().map(|(key, value)| key.len() + value.size() + 4).sum();
        let mut by_size: Vec<_> = members.iter().map(|(key, value)| (value.size(), key.clone())).collect();
        by_size.sort_unstable_by(|a, b| b.cmp(a));
        let mut members = members;
        for (size, key) in by_size {
            if left <= ROOM || size < WORTH {
                break;
            }
            if let Some(value) = members.get_mut(&key) {
                *value = whole(value).await?;
                left = left - size + value.size();
            }
        }
        let smaller = Json::of(&members).map_err(|error| unreadable("the value", &error))?;
        // Many small members: there is none of which it would help to make a reference.
        if smaller.size() <= MAX_JSON_BYTES { Ok(smaller) } else { whole(&json).await }
    }

    /// Puts JSON values in the place of the references to them, as long as these have no more than `most` bytes together;
    /// otherwise they stay references, all of them.
    ///
    /// # Errors
    /// Those of [`Client::get_object`].
    pub async fn expand(&self, json: Json, most: u64) -> Result<Json, ClientError> {
        if !may_refer(json.as_str()) {
            return Ok(json);
        }
        let mut value: Value = json.read().map_err(|error| unreadable("the value", &error))?;
        let found = references(&value);
        let bytes = found.values().fold(0u64, |sum, one| sum.saturating_add(one.bytes));
        if found.is_empty() || bytes > most {
            return Ok(json);
        }
        let store = self.object_store().await?;
        let mut objects = BTreeMap::new();
        for name in found.into_keys() {
            let (_, bytes) = get(&store, &name).await?;
            let object = serde_json::from_slice(&bytes).map_err(|error| unreadable(name.as_str(), &error))?;
            objects.insert(name, object);
        }
        replace(&mut value, &objects);
        Json::of(&value).map_err(|error| unreadable("the value", &error))
    }

    async fn object_store(&self) -> Result<ObjectStore, ClientError> {
        let js = jetstream::new(self.nats().clone());
        let store = js.get_object_store(subject::OBJECTS_BUCKET).await;
        store.map_err(|error| failed("there is no store for objects (does Baton run?)", &error))
    }
}

async fn put(store: &ObjectStore, bytes: Bytes, media_type: &str) -> Result<ObjectRef, ClientError> {
    let (size, type_bytes) = (bytes.len(), media_type.len());
    if size > MAX_OBJECT_BYTES {
        let message = format!("the object has {size} bytes; at most {MAX_OBJECT_BYTES} are allowed");
        return Err(ClientError::Rejected(Rejection::new(Code::TooLarge, message)));
    }
    if type_bytes == 0 || type_bytes > MAX_TYPE_BYTES || media_type.chars().any(char::is_control) {
        let message = format!("the object's type has {type_bytes} bytes; it must be a text of 1 to {MAX_TYPE_BYTES}");
        return Err(ClientError::Rejected(Rejection::invalid(message)));
    }
    let name = ObjectName::of_digest(Sha256::digest(&bytes).into());
    let reference = ObjectRef { name, bytes: size as u64, media_type: media_type.to_owned() };
    let known = store.info(reference.name.as_str()).await.ok();
    if known.is_some_and(|known| is_fresh(&known) && media_type_of(&known) == media_type) {
        return Ok(reference);
    }
    let metadata = ObjectMetadata {
        name: reference.name.to_string(),
        // Not every client knows the metadata of objects.
        description: Some(media_type.to_owned()),
        ..ObjectMetadata::default()
    };
    let put = store.put(metadata, &mut &*bytes).await;
    put.map_err(|error| failed("the object can not be kept", &error))?;
    Ok(reference)
}

async fn get(store: &ObjectStore, name: &ObjectName) -> Result<(ObjectRef, Bytes), ClientError> {
    let object = match store.get(name.as_str()).await {
        Ok(object) => object,
        Err(error) if error.kind() == GetErrorKind::NotFound => return Err(unknown(name)),
        Err(error) => return Err(failed("the object can not be read", &error)),
    };
    let (size, media_type) = (object.info().size, media_type_of(object.info()));
    if object.info().deleted {
        return Err(unknown(name));
    }
    // Somebody else may have put it, and said of it what they like.
    let mut object = object.take(MAX_OBJECT_BYTES as u64 + 1);
    let mut bytes = Vec::with_capacity(size.min(MAX_OBJECT_BYTES));
    loop {
        // Its parts may be gone a moment before it is itself: then nothing comes.
        let read = timeout(SILENCE, object.read_buf(&mut bytes)).await.map_err(|_| unknown(name))?;
        if read.map_err(|error| failed("the object can not be read", &error))? == 0 {
            break;
        }
    }
    if ObjectName::of_digest(Sha256::digest(&bytes).into()) != *name {
        let (what, why) = (name.to_string(), "it is not what its name says".to_owned());
        return Err(ClientError::Unreadable { what, why });
    }
    Ok((ObjectRef { name: name.clone(), bytes: bytes.len() as u64, media_type }, bytes.into()))
}

fn is_fresh(known: &ObjectInfo) -> bool {
    let put = known.modified.map(|at| Duration::from_secs(u64::try_from(at.unix_timestamp()).unwrap_or(0)));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    !known.deleted && put.is_some_and(|put| now.saturating_sub(put) < FRESH)
}

fn media_type_of(known: &ObjectInfo) -> String {
    known.description.clone().unwrap_or_else(|| baton_protocol::object::BYTES.to_owned())
}

fn unknown(name: &ObjectName) -> ClientError {
    let message = format!("there is no object {name}: there never was, or it was kept as long as objects are kept");
    ClientError::Rejected(Rejection::new(Code::UnknownObject, message))
}

fn failed(what: &str, error: &(dyn Error + 'static)) -> ClientError {
    let mut text = format!("{what}: {error}");
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    ClientError::Connection(text)
}

fn unreadable(what: &str, error: &serde_json::Error) -> ClientError {
    ClientError::Unreadable { what: what.to_owned(), why: error.to_string() }
}
