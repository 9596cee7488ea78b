//! A collector of traces that takes everything and keeps nothing, so that full tracing can be measured.

use std::io::Write;

use anyhow::Context;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use tokio::net::TcpListener;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

/// Runs the collector until standard input ends. Says on standard output where it listens.
///
/// # Errors
/// Says why it can not listen.
pub async fn run_sink() -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await.context("no port for the collector")?;
    println!("http://{}", listener.local_addr()?);
    std::io::stdout().flush()?;
    let serve = Server::builder()
        .add_service(TraceServiceServer::new(Sink).max_decoding_message_size(64 * 1024 * 1024))
        .serve_with_incoming(TcpIncoming::from(listener));
    tokio::select! {
        served = serve => served.context("the collector"),
        () = crate::agents::parent_gone() => Ok(()),
    }
}

struct Sink;

#[tonic::async_trait]
impl TraceService for Sink {
    async fn export(
        &self,
        _: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}
