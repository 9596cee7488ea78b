//! What is counted here, and what everybody counts.

use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use baton_telemetry::{Metrics, metrics};

use crate::Door;

/// Counts requests, by the route's template: ids would make a time series each.
pub(crate) async fn observe(State(metrics): State<Metrics>, request: Request, next: Next) -> Response {
    let since = Instant::now();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let method = known(request.method());
    let response = next.run(request).await;
    let route = route.as_ref().map_or("other", MatchedPath::as_str);
    metrics.count("baton_http_requests_total", &[route, method, response.status().as_str()]);
    metrics.observe("baton_http_request_seconds", &[route], since.elapsed().as_secs_f64());
    response
}

/// A method that somebody made up would be a time series too.
fn known(method: &Method) -> &'static str {
    const KNOWN: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
    KNOWN.into_iter().find(|name| *name == method.as_str()).unwrap_or("other")
}

/// The metrics of all instances of all services, this one's first. Without the broker there is just this one's.
pub(crate) async fn all(State(door): State<Door>) -> Response {
    let mut texts = vec![door.metrics.render()];
    if door.is_connected() {
        match door.client.metrics().await {
            Ok(others) => texts.extend(others.into_iter().map(|(_, text)| text)),
            Err(error) => tracing::warn!(%error, "only the gateway's own metrics are shown"),
        }
    }
    (StatusCode::OK, [(CONTENT_TYPE, metrics::CONTENT_TYPE)], metrics::merge(texts)).into_response()
}
