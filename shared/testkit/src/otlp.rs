//! An OpenTelemetry collector that keeps what it gets.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, Span as Received, span, status};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

/// A gRPC server on a free port that takes spans as an OpenTelemetry collector does. It ends when dropped.
#[derive(Debug)]
pub struct OtlpReceiver {
    address: SocketAddr,
    spans: Arc<Mutex<Vec<Span>>>,
    server: JoinHandle<()>,
}

/// A span as it arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// The trace, in hexadecimal.
    pub trace_id: String,
    /// The span, in hexadecimal.
    pub span_id: String,
    /// The span above, in hexadecimal; empty for a root.
    pub parent_id: String,
    /// The name.
    pub name: String,
    /// `internal`, `server`, `client`, `producer`, `consumer`, or `unspecified`.
    pub kind: String,
    /// The start, in nanoseconds since 1970.
    pub start_ns: u64,
    /// The end, in nanoseconds since 1970.
    pub end_ns: u64,
    /// The attributes; values that are no strings are written as JSON would, bytes in hexadecimal.
    pub attributes: BTreeMap<String, String>,
    /// The traces and spans it is linked to, in hexadecimal.
    pub links: Vec<(String, String)>,
    /// Whether its status is an error.
    pub is_error: bool,
    /// The attribute `service.name` of its resource; empty if there is none.
    pub service_name: String,
}

impl OtlpReceiver {
    /// Starts the server.
    ///
    /// # Panics
    /// When there is no free port.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("there is a free port");
        let address = listener.local_addr().expect("a listener has an address");
        let spans = Arc::default();
        let service = TraceServiceServer::new(Collector { spans: Arc::clone(&spans) });
        let server = tokio::spawn(async move {
            let served = Server::builder().add_service(service).serve_with_incoming(TcpIncoming::from(listener)).await;
            served.expect("the collector serves until it is dropped");
        });
        Self { address, spans, server }
    }

    /// What `OTEL_EXPORTER_OTLP_ENDPOINT` is to be.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The spans that have arrived so far, in the order of their arrival.
    pub fn spans(&self) -> Vec<Span> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for OtlpReceiver {
    fn drop(&mut self) {
        self.server.abort();
    }
}

struct Collector {
    spans: Arc<Mutex<Vec<Span>>>,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let arrived = request.into_inner().resource_spans.into_iter().flat_map(read_resource);
        self.spans.lock().unwrap_or_else(PoisonError::into_inner).extend(arrived);
        Ok(Response::new(ExportTraceServiceResponse { partial_success: None }))
    }
}

fn read_resource(resource: ResourceSpans) -> Vec<Span> {
    let attributes = read_attributes(resource.resource.map(|resource| resource.attributes).unwrap_or_default());
    let service_name = attributes.get("service.name").cloned().unwrap_or_default();
    let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
    spans.map(|span| read_span(span, &service_name)).collect()
}

fn read_span(received: Received, service_name: &str) -> Span {
    let kind = match received.kind() {
        span::SpanKind::Unspecified => "unspecified",
        span::SpanKind::Internal => "internal",
        span::SpanKind::Server => "server",
        span::SpanKind::Client => "client",
        span::SpanKind::Producer => "producer",
        span::SpanKind::Consumer => "consumer",
    };
    Span {
        trace_id: hex(&received.trace_id),
        span_id: hex(&received.span_id),
        parent_id: hex(&received.parent_span_id),
        kind: kind.to_owned(),
        start_ns: received.start_time_unix_nano,
        end_ns: received.end_time_unix_nano,
        links: received.links.iter().map(|link| (hex(&link.trace_id), hex(&link.span_id))).collect(),
        is_error: received.status.is_some_and(|status| status.code() == status::StatusCode::Error),
        name: received.name,
        attributes: read_attributes(received.attributes),
        service_name: service_name.to_owned(),
    }
}

fn read_attributes(attributes: Vec<KeyValue>) -> BTreeMap<String, String> {
    attributes.into_iter().map(|KeyValue { key, value, .. }| (key, text(value))).collect()
}

fn text(value: Option<AnyValue>) -> String {
    match value.and_then(|value| value.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::BoolValue(value)) => value.to_string(),
        Some(Value::IntValue(value)) => value.to_string(),
        Some(Value::DoubleValue(value)) => value.to_string(),
        Some(Value::BytesValue(bytes)) => hex(&bytes),
        Some(Value::ArrayValue(array)) => {
            format!("[{}]", array.values.into_iter().map(|value| text(Some(value))).collect::<Vec<_>>().join(","))
        }
        Some(Value::KvlistValue(list)) => format!("{:?}", read_attributes(list.values)),
        // The only other kind points into the tables of profiles, which spans do not have.
        _ => String::new(),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing into a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
