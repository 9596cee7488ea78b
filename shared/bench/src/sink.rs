//! A collector of traces that takes everything and keeps nothing, so that full tracing can be measured.
//!
//! It does not even read the spans: what a collector does with them is not Baton's, and is mostly on another machine.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::io::Write;

use anyhow::Context;
use bytes::Buf;
use tokio::net::TcpListener;
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::{Request, Response};
use tonic::codegen::{BoxFuture, Context as Waker, Poll, Service};
use tonic::server::{Grpc, NamedService};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request as Call, Response as Answer, Status};

/// The largest batch that is taken.
const MAX_MESSAGE: usize = 64 * 1024 * 1024;

/// Runs the collector until standard input ends. Says on standard output where it listens.
///
/// # Errors
/// Says why it can not listen.
pub async fn run_sink() -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await.context("no port for the collector")?;
    println!("http://{}", listener.local_addr()?);
    std::io::stdout().flush()?;
    let serve = Server::builder().add_service(Sink).serve_with_incoming(TcpIncoming::from(listener));
    tokio::select! {
        served = serve => served.context("the collector"),
        () = crate::agents::parent_gone() => Ok(()),
    }
}

/// `TraceService` of OTLP, with its one method.
#[derive(Clone)]
struct Sink;

impl NamedService for Sink {
    const NAME: &'static str = "opentelemetry.proto.collector.trace.v1.TraceService";
}

impl Service<Request<Body>> for Sink {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Response<Body>, Infallible>;

    fn poll_ready(&mut self, _: &mut Waker<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(async move { Ok(Grpc::new(Unread).max_decoding_message_size(MAX_MESSAGE).unary(Self, request).await) })
    }
}

impl Service<Call<()>> for Sink {
    type Response = Answer<()>;
    type Error = Status;
    type Future = Ready<Result<Answer<()>, Status>>;

    fn poll_ready(&mut self, _: &mut Waker<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Call<()>) -> Self::Future {
        ready(Ok(Answer::new(())))
    }
}

/// Passes over what comes, and answers with an empty message, which says that all was taken.
#[derive(Clone, Copy)]
struct Unread;

impl Codec for Unread {
    type Encode = ();
    type Decode = ();
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Unread {
    type Item = ();
    type Error = Status;

    fn encode(&mut self, (): (), _: &mut EncodeBuf<'_>) -> Result<(), Status> {
        Ok(())
    }
}

impl Decoder for Unread {
    type Item = ();
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<()>, Status> {
        bytes.advance(bytes.remaining());
        Ok(Some(()))
    }
}
