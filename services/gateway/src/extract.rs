//! Reading requests. Each extractor says what was wrong as a [`Problem`].

use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName};
use baton_protocol::Code;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use crate::problem::{Kind, Problem};

/// The largest body.
pub(crate) const MAX_BODY: usize = 1024 * 1024;

/// How much more of a body is read, for nothing, so that who sends it gets to see the answer.
const MAX_IGNORED: usize = 16 * 1024 * 1024;

/// How long a body may take.
const BODY: Duration = Duration::from_secs(10);

/// The one variable part of a path: a name, an id.
pub(crate) struct Id<T>(pub(crate) T);

impl<S, T> FromRequestParts<S> for Id<T>
where
    S: Send + Sync,
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path(text) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|error| Problem::invalid(format!("the path can not be read: {}", error.body_text())))?;
        text.parse().map(Self).map_err(|error: T::Err| Problem::invalid(error.to_string()))
    }
}

/// What follows the question mark.
pub(crate) struct Query<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let query = axum::extract::Query::<T>::try_from_uri(&parts.uri);
        query.map(|query| Self(query.0)).map_err(|error| Problem::invalid(error.body_text()))
    }
}

/// A body that is JSON.
pub(crate) struct Json<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let media = media_type(request.headers());
        let body = read(request.into_body()).await?;
        json(media.as_deref(), &body).map(Self)
    }
}

/// Reads JSON: an object, since fields can be added to one.
pub(crate) fn json<T: DeserializeOwned>(media: Option<&str>, body: &[u8]) -> Result<T, Problem> {
    if !media.is_some_and(is_json) {
        return Err(unsupported(media, "application/json"));
    }
    // Serde would also read a list of the fields' values.
    if body.trim_ascii_start().starts_with(b"[") {
        return Err(Problem::invalid("the body can not be read: it is a list, not an object"));
    }
    serde_json::from_slice(body).map_err(|error| Problem::invalid(format!("the body can not be read: {error}")))
}

/// Says which media types are read instead.
pub(crate) fn unsupported(media: Option<&str>, instead: &str) -> Problem {
    let given = media.map_or_else(|| "nothing".to_owned(), |media| format!("{media:?}"));
    let detail = format!("the header Content-Type says {given}; what is read here is {instead}");
    Problem::new(Kind::UnsupportedMediaType, detail)
}

/// The media type of the body, without parameters, in lower case.
pub(crate) fn media_type(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    Some(value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase())
}

pub(crate) fn is_json(media: &str) -> bool {
    media == "application/json" || media.starts_with("application/") && media.ends_with("+json")
}

/// Reads a body to its end.
pub(crate) async fn read(body: Body) -> Result<Bytes, Problem> {
    read_up_to(body, MAX_BODY).await
}

/// Reads a body to its end, which may have so many bytes.
pub(crate) async fn read_up_to(body: Body, most: usize) -> Result<Bytes, Problem> {
    let slow = |_| Problem::new(Kind::SlowRequest, format!("the body did not come within {} s", BODY.as_secs()));
    timeout(BODY, read_all(body, most)).await.map_err(slow)?
}

async fn read_all(body: Body, most: usize) -> Result<Bytes, Problem> {
    let mut chunks = body.into_data_stream();
    let mut kept = BytesMut::new();
    let mut length = 0;
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| Problem::invalid(format!("the body did not come whole: {error}")))?;
        length += chunk.len();
        if length <= most {
            kept.extend_from_slice(&chunk);
        } else if length > most + MAX_IGNORED {
            break;
        }
    }
    if length > most {
        let detail = format!("the body is larger than {most} bytes");
        return Err(Problem::new(Kind::Code(Code::TooLarge), detail));
    }
    Ok(kept.freeze())
}

/// The one value of a header, if it is there.
pub(crate) fn header(headers: &HeaderMap, name: &HeaderName) -> Result<Option<String>, Problem> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.any(|other| other != value) {
        return Err(Problem::invalid(format!("the header {name} is given twice, and differently")));
    }
    match value.to_str() {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(_) => Err(Problem::invalid(format!("the header {name} may only hold visible ASCII characters"))),
    }
}
