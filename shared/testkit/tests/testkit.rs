//! The tools themselves, against the real things.

use std::cell::Cell;
use std::time::Duration;

use async_nats::jetstream;
use baton_testkit::{NatsOptions, NatsServer, OtlpReceiver, Process, Stopped, python_with_nats, wait_for};
use opentelemetry::KeyValue;
use opentelemetry::trace::{Span as _, SpanKind, Status, TraceContextExt, Tracer, TracerProvider};
use opentelemetry_otlp::WithExportConfig;

const SOON: Duration = Duration::from_secs(30);

/// The text of a panic.
async fn panic_of(work: impl Future<Output = ()> + Send + 'static) -> String {
    let panic = tokio::spawn(work).await.expect_err("it should have panicked").into_panic();
    panic.downcast_ref::<String>().cloned().unwrap_or_else(|| panic.downcast_ref::<&str>().unwrap().to_string())
}

fn shell(script: &str) -> Process {
    Process::start("sh", ["-c", script])
}

#[tokio::test]
async fn a_servers_data_outlive_a_kill() {
    let mut nats = NatsServer::start().await;
    let context = jetstream::new(nats.connect().await);
    let config = jetstream::stream::Config { name: "log".to_owned(), ..Default::default() };
    context.create_stream(config).await.unwrap();
    context.publish("log", "kept".into()).await.unwrap().await.unwrap();

    let url = nats.client_url();
    nats.kill().await;
    assert_eq!(nats.pid(), None);
    nats.restart().await;
    assert_eq!(nats.client_url(), url);
    let stream = jetstream::new(nats.connect().await).get_stream("log").await.unwrap();
    assert_eq!(stream.get_raw_message(1).await.unwrap().payload, "kept");

    let data_dir = nats.data_dir().to_owned();
    assert_eq!(nats.stop().await, Stopped::Gracefully);
    drop(nats);
    assert!(!data_dir.exists());
}

#[tokio::test]
async fn a_paused_server_is_silent() {
    let nats = NatsServer::start_with(NatsOptions { jetstream: false, ..NatsOptions::default() }).await;
    let client = nats.connect().await;
    nats.pause().await;
    let silence = tokio::time::timeout(Duration::from_millis(100), client.request("nobody", "".into())).await;
    assert!(silence.is_err());
    nats.resume();
    assert!(client.request("nobody", "".into()).await.is_err_and(|error| error.to_string().contains("no responders")));
}

#[tokio::test]
async fn waiting_ends_with_the_state_or_with_what_was_seen() {
    let looks = Cell::new(0);
    let reached = wait_for("a third look", SOON, async || {
        looks.set(looks.get() + 1);
        (looks.get() == 3).then_some(looks.get())
    });
    assert_eq!(reached.await, 3);
    wait_for("the truth", SOON, || async { true }).await;

    // Also in a task of its own, with what the look borrows.
    let (sender, receiver) = tokio::sync::watch::channel(0);
    let waiting = tokio::spawn(async move {
        wait_for("a second value", SOON, async || if *receiver.borrow() == 2 { Ok(()) } else { Err("one") }).await;
    });
    sender.send(2).unwrap();
    waiting.await.unwrap();

    let short = Duration::from_millis(30);
    let text = panic_of(async move { wait_for("five runs", short, async || Err::<(), _>(4)).await }).await;
    assert!(text.starts_with("in vain for 30ms: five runs; last seen: 4 (awaited at "), "{text}");
    assert!(text.contains("tests/testkit.rs:"), "{text}");

    let text =
        panic_of(async move { wait_for("an answer", short, async || std::future::pending::<bool>().await).await });
    assert!(text.await.contains("last seen: nothing, then a look that did not return"));
}

#[tokio::test]
async fn a_process_is_run_and_its_outputs_are_kept() {
    let builder = Process::command("sh").args(["-c", "echo \"$WORD\"; echo complaint >&2; pwd; exit 3"]);
    let mut process = builder.env("WORD", "hello").env_remove("HOME").current_dir("/").start();
    let status = process.wait_exit(SOON).await;
    assert_eq!(status.code(), Some(3));
    assert_eq!(process.stdout(), "hello\n/\n");
    assert_eq!(process.stderr(), "complaint\n");
    assert!(!process.is_running());
    assert_eq!(process.wait_exit(SOON).await, status);
    // What has ended can be killed, in vain.
    process.kill().await;
}

#[tokio::test]
async fn a_process_gets_signals() {
    let mut process = shell("trap 'echo asked; exit 0' TERM; echo ready; while true; do sleep 0.05; done");
    process.wait_for_output("ready", SOON).await;
    process.pause().await;
    process.terminate();
    let early = tokio::time::timeout(Duration::from_millis(200), process.wait_for_output("asked", SOON)).await;
    assert!(early.is_err(), "a paused process acted on a signal");
    process.resume();
    process.wait_success(SOON).await;
    assert!(process.stdout().contains("asked"));
}

#[tokio::test]
async fn a_killed_process_is_gone() {
    let mut process = shell("trap '' TERM; echo ready; exec sleep 1000");
    process.wait_for_output("ready", SOON).await;
    assert!(process.is_running());
    process.kill().await;
    assert!(!process.is_running());
    assert_eq!(process.pid(), None);
}

#[tokio::test]
async fn panics_show_the_outputs() {
    let late = panic_of(async {
        let mut process = shell("echo explanation; exec sleep 1000");
        process.wait_for_output("explanation", SOON).await;
        process.wait_exit(Duration::from_millis(30)).await;
    });
    let late = late.await;
    assert!(late.contains("still running after 30ms") && late.contains("explanation"), "{late}");

    let ended = panic_of(async {
        shell("echo oops >&2; exit 7").wait_for_output("never", SOON).await;
    });
    let ended = ended.await;
    assert!(ended.contains("exit status: 7") && ended.contains("oops"), "{ended}");
}

#[tokio::test]
async fn a_dropped_process_ends_by_itself_if_it_can() {
    let directory = tempfile::TempDir::new().unwrap();
    let trace = directory.path().join("trace");
    let script =
        format!("trap 'echo tidy > {}; exit 0' TERM; echo ready; while true; do sleep 0.05; done", trace.display());
    let mut process = shell(&script);
    process.wait_for_output("ready", SOON).await;
    drop(process);
    assert_eq!(std::fs::read_to_string(trace).unwrap(), "tidy\n");
}

#[tokio::test]
async fn a_plain_python_agent_answers() {
    const AGENT: &str = "
import asyncio, sys, nats

async def main():
    connection = await nats.connect(sys.argv[1])
    async def answer(message):
        await message.respond(message.data.upper())
    await connection.subscribe('shout', cb=answer)
    await connection.flush()
    print('ready', flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
";
    let nats = NatsServer::start().await;
    let python = python_with_nats().await;
    let url = nats.client_url();
    let mut agent = Process::command(python.interpreter).args(["-c", AGENT, &url]).envs(python.env).start();
    agent.wait_for_output("ready", SOON).await;
    let answer = nats.connect().await.request("shout", "hello".into()).await.unwrap();
    assert_eq!(answer.payload, "HELLO");
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_arrive_as_they_were_sent() {
    let receiver = OtlpReceiver::start().await;
    let exporter =
        opentelemetry_otlp::SpanExporter::builder().with_tonic().with_endpoint(receiver.endpoint()).build().unwrap();
    let resource = opentelemetry_sdk::Resource::builder().with_service_name("tester").build();
    let provider = opentelemetry_sdk::trace::SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(resource)
        .build();
    let tracer = provider.tracer("test");
    let root = tracer.start("root");
    let context = opentelemetry::Context::new().with_span(root);
    let attributes = [KeyValue::new("run", "r-1"), KeyValue::new("tries", 2), KeyValue::new("cached", true)];
    let builder = tracer.span_builder("child").with_kind(SpanKind::Producer).with_attributes(attributes);
    let mut child = builder.start_with_context(&tracer, &context);
    child.set_status(Status::error("refused"));
    child.end();
    context.span().end();
    let shut_down = tokio::task::spawn_blocking(move || provider.shutdown()).await.unwrap();
    shut_down.unwrap();

    let spans = receiver.spans();
    let named = |name| spans.iter().find(|span| span.name == name).unwrap();
    let (root, child) = (named("root"), named("child"));
    assert_eq!((root.parent_id.as_str(), root.kind.as_str(), root.is_error), ("", "internal", false));
    assert_eq!((child.kind.as_str(), child.is_error), ("producer", true));
    assert_eq!(child.parent_id, root.span_id);
    assert_eq!(child.trace_id, root.trace_id);
    assert_eq!(child.trace_id.len(), 32);
    assert_eq!(child.service_name, "tester");
    let attributes: Vec<_> = child.attributes.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    assert_eq!(attributes, [("cached", "true"), ("run", "r-1"), ("tries", "2")]);
    assert!(root.start_ns <= child.start_ns && child.start_ns <= child.end_ns && child.end_ns <= root.end_ns);
}
