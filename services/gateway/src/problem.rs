//! Errors as people and programs see them: Problem Details (RFC 9457), for every error without exception.
//!
//! A handler returns a [`Problem`]. What does not come from a handler (a route that is not there, a wrong method, an
//! extractor of axum's) becomes one on its way out, in [`everywhere`].

use std::any::Any;
use std::sync::LazyLock;

use axum::Json;
use axum::body::to_bytes;
use axum::extract::Request;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use baton_client::ClientError;
use baton_protocol::{Code, Millis, Rejection};
use schemars::{JsonSchema, schema_for};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

/// The media type of a [`Problem`].
pub(crate) const CONTENT: &str = "application/problem+json";

/// When to ask again, where a service that is away says nothing better.
const RETRY_MS: Millis = 1000;

/// How much of a plain error text becomes a problem's detail.
const MAX_DETAIL: usize = 16 * 1024;

/// Why a request failed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Problem {
    pub(crate) kind: Kind,
    /// What was wrong this time, and what would be right.
    pub(crate) detail: String,
    /// When to try again, where waiting helps.
    pub(crate) retry_after_ms: Option<Millis>,
    /// What is not ready.
    pub(crate) missing: Vec<String>,
}

/// A problem as it is written: Problem Details (RFC 9457).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Problem")]
pub struct ProblemDetails {
    /// Where the kind of problem is explained: `/problems/CODE`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind of problem, for people.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What was wrong this time, and what would be right.
    pub detail: String,
    /// This occurrence, as a URN. The gateway's log names it too where the fault may be Baton's.
    pub instance: String,
    /// The kind of problem, for programs.
    pub code: String,
    /// When to try again, where waiting helps; the header `Retry-After` says the same in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<Millis>,
    /// What is not ready: `nats`, or services without a leading instance.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<String>,
}

/// A kind of problem: a rejection's, or one that only HTTP knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// What a service may answer.
    Code(Code),
    /// 404.
    NotFound,
    /// 405.
    MethodNotAllowed,
    /// 415.
    UnsupportedMediaType,
    /// 408.
    SlowRequest,
    /// 504.
    Timeout,
    /// 421.
    Misdirected,
    /// 403.
    ForeignOrigin,
    /// What HTTP itself finds wrong.
    Http(StatusCode),
}

impl Kind {
    /// Those that are not a rejection's and have a code of their own.
    const OWN: [Self; 7] = [
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::UnsupportedMediaType,
        Self::SlowRequest,
        Self::Timeout,
        Self::Misdirected,
        Self::ForeignOrigin,
    ];

    /// The kind with that code.
    pub(crate) fn of_code(code: &str) -> Option<Self> {
        let rejections = Code::ALL.into_iter().map(Self::Code);
        rejections.chain(Self::OWN).find(|kind| kind.code() == code)
    }

    /// The kind that a bare status stands for.
    fn of_status(status: StatusCode) -> Self {
        match status {
            StatusCode::BAD_REQUEST => Self::Code(Code::InvalidRequest),
            StatusCode::PAYLOAD_TOO_LARGE => Self::Code(Code::TooLarge),
            StatusCode::SERVICE_UNAVAILABLE => Self::Code(Code::Unavailable),
            StatusCode::INTERNAL_SERVER_ERROR => Self::Code(Code::Internal),
            _ => Self::OWN.into_iter().find(|kind| kind.status() == status).unwrap_or(Self::Http(status)),
        }
    }

    /// The stable code.
    pub(crate) fn code(self) -> &'static str {
        match self {
            Self::Code(code) => code.as_str(),
            Self::NotFound => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::UnsupportedMediaType => "unsupported_media_type",
            Self::SlowRequest => "slow_request",
            Self::Timeout => "timeout",
            Self::Misdirected => "misdirected",
            Self::ForeignOrigin => "foreign_origin",
            Self::Http(_) => "http",
        }
    }

    /// The title, the same for every problem of the kind.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Code(code) => code.title(),
            Self::NotFound => "No such resource",
            Self::MethodNotAllowed => "The resource does not know this method",
            Self::UnsupportedMediaType => "The body has a type that is not read here",
            Self::SlowRequest => "The body came too slowly",
            Self::Timeout => "The answer took too long",
            Self::Misdirected => "The request is meant for another host",
            Self::ForeignOrigin => "The request comes from a page of another origin",
            Self::Http(status) => status.canonical_reason().unwrap_or("The request failed"),
        }
    }

    /// What it means, and what to do about it.
    pub(crate) fn meaning(self) -> String {
        match self {
            Self::Code(code) => described(code).unwrap_or_else(|| code.title().to_owned()),
            Self::NotFound => "Nothing is at this path. /openapi.json lists what there is.".to_owned(),
            Self::MethodNotAllowed => "The header Allow of the answer lists the methods.".to_owned(),
            Self::UnsupportedMediaType => {
                "Say what the body is in the header Content-Type: application/json, or application/yaml for a \
                 workflow's definition."
                    .to_owned()
            }
            Self::SlowRequest => "Send the whole body at once.".to_owned(),
            Self::Timeout => {
                "The request may or may not have had its effect. Asking again is safe: start runs with an \
                              Idempotency-Key."
                    .to_owned()
            }
            Self::Misdirected => "This gateway listens on the local machine only, and answers only who asks for \
                                  localhost, 127.0.0.1 or [::1]: a web page that gives its own name this machine's \
                                  address must not get through."
                .to_owned(),
            Self::ForeignOrigin => "A browser sent this for a page that did not come from here.".to_owned(),
            Self::Http(_) => self.title().to_owned(),
        }
    }

    /// The HTTP status.
    pub(crate) fn status(self) -> StatusCode {
        match self {
            Self::Code(code) => StatusCode::from_u16(code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::SlowRequest => StatusCode::REQUEST_TIMEOUT,
            Self::Timeout => StatusCode::GATEWAY_TIMEOUT,
            Self::Misdirected => StatusCode::MISDIRECTED_REQUEST,
            Self::ForeignOrigin => StatusCode::FORBIDDEN,
            Self::Http(status) => status,
        }
    }
}

/// The sentence that the schema gives a code: it is written once, where the code is.
fn described(code: Code) -> Option<String> {
    static SCHEMA: LazyLock<Value> = LazyLock::new(|| schema_for!(Code).to_value());
    let variant = SCHEMA["oneOf"].as_array()?.iter().find(|variant| variant["const"] == code.as_str())?;
    Some(variant["description"].as_str()?.to_owned())
}

impl Problem {
    /// A problem of that kind.
    pub(crate) fn new(kind: Kind, detail: impl Into<String>) -> Self {
        let retryable = matches!(kind, Kind::Code(code) if code.is_retryable());
        Self { kind, detail: detail.into(), retry_after_ms: retryable.then_some(RETRY_MS), missing: Vec::new() }
    }

    /// A request that can not be read.
    pub(crate) fn invalid(detail: impl Into<String>) -> Self {
        Self::new(Kind::Code(Code::InvalidRequest), detail)
    }

    /// The problem as it is written, as an occurrence of its own.
    pub(crate) fn details(self) -> ProblemDetails {
        let Self { kind, detail, retry_after_ms, missing } = self;
        ProblemDetails {
            kind: match kind {
                // A status that speaks for itself has no page.
                Kind::Http(_) => "about:blank".to_owned(),
                _ => format!("/problems/{}", kind.code()),
            },
            title: kind.title().to_owned(),
            status: kind.status().as_u16(),
            detail,
            instance: format!("urn:uuid:{}", Uuid::now_v7()),
            code: kind.code().to_owned(),
            retry_after_ms,
            missing,
        }
    }
}

impl From<Rejection> for Problem {
    fn from(rejection: Rejection) -> Self {
        let mut problem = Self::new(Kind::Code(rejection.code), rejection.message);
        problem.retry_after_ms = rejection.retry_after_ms.or(problem.retry_after_ms);
        problem
    }
}

impl From<ClientError> for Problem {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Rejected(rejection) => rejection.into(),
            ClientError::NoService(_)
            | ClientError::Timeout { .. }
            | ClientError::Connection(_)
            | ClientError::Log(_) => Self::new(Kind::Code(Code::Unavailable), error.to_string()),
            ClientError::Unreadable { .. } => Self::new(Kind::Code(Code::Internal), error.to_string()),
            ClientError::Trimmed { .. } => Self::new(Kind::NotFound, error.to_string()),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        self.details().into_response()
    }
}

impl IntoResponse for ProblemDetails {
    fn into_response(self) -> Response {
        if self.status >= 500 {
            tracing::warn!(instance = self.instance, status = self.status, detail = self.detail, "a request failed");
        }
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let retry = self.retry_after_ms.map(|ms| ms.div_ceil(1000));
        let mut response = (status, Json(self)).into_response();
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(CONTENT));
        if let Some(seconds) = retry {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// Makes a problem of every error that is not one yet.
pub(crate) async fn everywhere(request: Request, next: Next) -> Response {
    let asked = format!("{} {}", request.method(), request.uri().path());
    let response = next.run(request).await;
    let status = response.status();
    if !(status.is_client_error() || status.is_server_error()) || is_problem(response.headers()) {
        return response;
    }
    let (mut head, body) = response.into_parts();
    let text = to_bytes(body, MAX_DETAIL).await.unwrap_or_default();
    let text = String::from_utf8_lossy(&text).trim().to_owned();
    let kind = Kind::of_status(status);
    let detail = match kind {
        Kind::NotFound => format!("there is nothing at {asked}; /openapi.json lists what there is"),
        Kind::MethodNotAllowed => {
            let allowed = head.headers.get("allow").and_then(|value| value.to_str().ok()).unwrap_or("nothing");
            format!("{asked} is not possible; allowed is: {allowed}")
        }
        _ if text.is_empty() => kind.title().to_owned(),
        _ => text,
    };
    // What was said of the old body does not hold for the new one; the rest (Allow) does.
    for name in [CONTENT_TYPE, CONTENT_LENGTH] {
        head.headers.remove(name);
    }
    let mut response = Problem::new(kind, detail).into_response();
    for (name, value) in head.headers {
        if let Some(name) = name {
            response.headers_mut().append(name, value);
        }
    }
    response
}

fn is_problem(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes() == CONTENT.as_bytes())
}

/// What is answered when a handler panicked.
#[expect(clippy::needless_pass_by_value, reason = "the layer gives it so")]
pub(crate) fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
    let problem =
        Problem::new(Kind::Code(Code::Internal), "the gateway failed; its log says more of this instance").details();
    tracing::error!(instance = problem.instance, panic = text, "a request made the gateway panic");
    problem.into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn g1_every_code_has_a_page_with_a_meaning_of_its_own() {
        for code in Code::ALL {
            let kind = Kind::of_code(code.as_str()).unwrap();
            assert_eq!(kind, Kind::Code(code));
            assert_ne!(kind.meaning(), kind.title(), "{code} has no sentence in the schema");
        }
        for kind in Kind::OWN {
            assert_eq!(Kind::of_code(kind.code()), Some(kind));
            assert_eq!(Kind::of_status(kind.status()), kind);
        }
        assert_eq!(Kind::of_code("nonsense"), None);
    }

    #[test]
    fn g1_what_a_service_can_not_answer_now_may_be_asked_again() {
        let away = Problem::from(ClientError::NoService(baton_protocol::Service::Optimizer)).details();
        assert_eq!((away.status, away.code.as_str(), away.retry_after_ms), (503, "unavailable", Some(1000)));
        let busy = Problem::from(Rejection::new(Code::Unavailable, "busy").retry_after(2500)).into_response();
        assert_eq!(busy.headers()[RETRY_AFTER], "3");
        let wrong = Problem::from(Rejection::new(Code::KeyConflict, "x")).details();
        assert_eq!((wrong.status, wrong.retry_after_ms), (409, None));
        let unreadable = ClientError::Unreadable { what: "the answer".into(), why: "it is empty".into() };
        assert_eq!(Problem::from(unreadable).details().status, 500);
    }
}
