//! Objects: what is too large for a message.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE, LOCATION, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderValue, StatusCode};
use axum::response::IntoResponse;
use baton_protocol::object::{BYTES, MAX_OBJECT_BYTES};
use baton_protocol::{ObjectName, ObjectRef};

use crate::Door;
use crate::extract::{Id, media_type, read_up_to};
use crate::problem::Problem;

pub(crate) async fn put(State(door): State<Door>, request: Request) -> Result<impl IntoResponse, Problem> {
    let media = media_type(request.headers()).unwrap_or_else(|| BYTES.to_owned());
    let body = read_up_to(request.into_body(), MAX_OBJECT_BYTES).await?;
    let reference: ObjectRef = door.client.put_object(body, &media).await?;
    let location = format!("/v1/objects/{}", reference.name);
    Ok((StatusCode::CREATED, [(LOCATION, location)], Json(reference)))
}

pub(crate) async fn get(State(door): State<Door>, Id(name): Id<ObjectName>) -> Result<impl IntoResponse, Problem> {
    let (reference, bytes): (ObjectRef, Bytes) = door.client.get_object(&name).await?;
    let media = HeaderValue::from_str(&reference.media_type).unwrap_or(HeaderValue::from_static(BYTES));
    // Whoever put it said what it is: no browser should show it as a page of ours.
    let kept = [
        (CONTENT_TYPE, media),
        (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (CONTENT_DISPOSITION, HeaderValue::from_static("attachment")),
    ];
    Ok((kept, bytes))
}
