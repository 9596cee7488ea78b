//! A collector that is not there, and then is: what is logged, and what must never be.
//!
//! The test runs itself again as a process of its own, since both the log and the environment belong to a process.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::{Arc, Mutex};

use baton_protocol::RunId;
use baton_protocol::trace::{Span, SpanKind, TraceContext};
use baton_telemetry::{LogConfig, LogFormat, Spans, TraceConfig, logs};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use tonic::{Request, Response, Status};

const CHILD: &str = "BATON_TEST_CHILD";

#[test]
fn an_outage_is_one_warning_and_secrets_are_never_logged() {
    if std::env::var_os(CHILD).is_some() {
        return child();
    }
    let name = "an_outage_is_one_warning_and_secrets_are_never_logged";
    let output = Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture"])
        .env(CHILD, "1")
        .env("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20s3cret")
        .output()
        .unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{log}\n{}", String::from_utf8_lossy(&output.stdout));
    let lines: Vec<serde_json::Value> = log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let of = |level: &str| lines.iter().filter(|line| line["level"] == level).collect::<Vec<_>>();
    assert_eq!((of("WARN").len(), of("ERROR").len(), of("INFO").len()), (1, 0, 2), "{log}");
    assert!(of("WARN")[0]["endpoint"].as_str().unwrap().starts_with("http://127.0.0.1:"), "{log}");
    // It is back; and at the end, how many were lost.
    assert_eq!((&of("INFO")[0]["dropped"], &of("INFO")[1]["lost"]), (&3.into(), &3.into()), "{log}");
    assert!(!log.contains("s3cret") && !log.contains("hunter2"), "{log}");
}

fn child() {
    logs::init(&LogConfig { format: LogFormat::Json, filter: "trace".to_owned() }).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let config = TraceConfig { endpoint: Some(format!("http://user:hunter2@{address}")), ..TraceConfig::default() };
        let spans = Spans::start("gateway", "g1", &config).unwrap();
        for n in 0..3 {
            spans.export(span(n));
            spans.flush().await;
        }
        assert_eq!(spans.dropped(), 3);
        let seen = collector(address);
        spans.export(span(3));
        spans.flush().await;
        spans.shutdown().await;
        assert_eq!(*seen.lock().unwrap(), ["Bearer s3cret"]);
    });
}

fn span(n: u128) -> Span {
    Span {
        context: TraceContext::of_run(RunId::derive(1, n)),
        parent: None,
        name: "publish baton.req".to_owned(),
        kind: SpanKind::Producer,
        start: 1,
        end: 2,
        attributes: vec![],
        error: None,
    }
}

/// What each batch brought as its authorization.
type Seen = Arc<Mutex<Vec<String>>>;

struct Collector(Seen);

fn collector(address: SocketAddr) -> Seen {
    let seen = Seen::default();
    let service = TraceServiceServer::new(Collector(Arc::clone(&seen)));
    tokio::spawn(tonic::transport::Server::builder().add_service(service).serve(address));
    seen
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let authorization = request.metadata().get("authorization").map(|value| value.to_str().unwrap().to_owned());
        self.0.lock().unwrap().extend(authorization);
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}
