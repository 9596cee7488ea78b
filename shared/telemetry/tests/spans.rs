//! Spans, as a real receiver of OTLP gets them.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use baton_protocol::trace::{Span, SpanKind, TraceContext, run_span};
use baton_protocol::{RunId, StageName, TaskId};
use baton_telemetry::{Metrics, Spans, TraceConfig};
use baton_testkit::OtlpReceiver;

const START: u64 = 1_763_665_200_123;

fn to(endpoint: &str) -> TraceConfig {
    TraceConfig { endpoint: Some(endpoint.to_owned()), ..TraceConfig::default() }
}

fn run(n: u32) -> Span {
    let run = RunId::derive(START, u128::from(n));
    Span {
        context: TraceContext::of_run(run),
        parent: None,
        name: "invoke_workflow article".to_owned(),
        kind: SpanKind::Server,
        start: START,
        end: START + 1500,
        attributes: vec![("baton.run.id", run.to_string()), ("gen_ai.usage.input_tokens", "17".to_owned())],
        error: None,
    }
}

fn task(run: &Span, n: u32) -> Span {
    let id = RunId::derive(START, u128::from(n));
    let task = TaskId { run: id, stage: StageName::new("writing").unwrap(), item: None, attempt: 2 };
    Span {
        context: run.context.at(baton_protocol::trace::task_span(&task)),
        parent: Some(run_span(id)),
        name: "invoke_agent".to_owned(),
        kind: SpanKind::Internal,
        start: START + 10,
        // A clock that went backwards.
        end: START,
        attributes: vec![],
        error: Some("out of ink".to_owned()),
    }
}

#[tokio::test]
async fn spans_of_two_services_arrive_whole_and_make_one_trace() {
    let receiver = OtlpReceiver::start().await;
    let config = to(&receiver.endpoint());
    let manager = Spans::start("workflow-manager", "w1", &config).unwrap();
    let agents = Spans::start("stock", "s1", &config).unwrap();
    let (root, child) = (run(1), task(&run(1), 1));
    manager.export(root.clone());
    agents.clone().export(child.clone());
    tokio::join!(manager.shutdown(), agents.shutdown());
    assert_eq!((manager.dropped(), agents.dropped()), (0, 0));

    let mut spans = receiver.spans();
    spans.sort_by_key(|span| span.start_ns);
    let [first, second] = &spans[..] else { panic!("{spans:?}") };
    assert_eq!(first.trace_id, format!("{:032x}", root.context.trace));
    assert_eq!(first.span_id, format!("{:016x}", root.context.span));
    assert_eq!((first.parent_id.as_str(), first.name.as_str()), ("", "invoke_workflow article"));
    assert_eq!((first.kind.as_str(), first.service_name.as_str()), ("server", "baton-workflow-manager"));
    assert_eq!((first.start_ns, first.end_ns), (START * 1_000_000, (START + 1500) * 1_000_000));
    assert_eq!(first.attributes["baton.run.id"], RunId::derive(START, 1).to_string());
    assert_eq!(first.attributes["gen_ai.usage.input_tokens"], "17");
    assert!(!first.is_error);

    assert_eq!((&second.trace_id, &second.parent_id), (&first.trace_id, &first.span_id));
    assert_eq!(second.span_id, format!("{:016x}", child.context.span));
    assert_eq!((second.kind.as_str(), second.service_name.as_str()), ("internal", "baton-stock"));
    assert_eq!(second.end_ns, second.start_ns);
    assert!(second.is_error);
}

#[tokio::test]
async fn what_is_not_sampled_is_not_exported() {
    let receiver = OtlpReceiver::start().await;
    let all = Spans::start("optimizer", "o1", &to(&receiver.endpoint())).unwrap();
    let few = TraceConfig { sample_ratio: 0.1, ..to(&receiver.endpoint()) };
    let few = Spans::start("optimizer", "o2", &few).unwrap();
    all.export(Span { context: TraceContext { sampled: false, ..run(1).context }, ..run(1) });
    for n in 0..1000 {
        few.export(run(n));
    }
    all.shutdown().await;
    few.shutdown().await;
    let count = receiver.spans().len();
    assert!((60..=140).contains(&count), "{count} of 1000");
    assert_eq!(count, (0..1000).filter(|n| few.samples(run(*n).context.trace)).count());
    assert_eq!((all.dropped(), few.dropped()), (0, 0));
}

#[tokio::test]
async fn a_burst_arrives_whole() {
    let receiver = OtlpReceiver::start().await;
    let spans = Spans::start("optimizer", "o1", &to(&receiver.endpoint())).unwrap();
    for n in 0..5000 {
        spans.export(run(n));
    }
    spans.flush().await;
    assert_eq!(receiver.spans().len(), 5000);
    spans.shutdown().await;
    // After the end: nothing is sent, and it is said.
    spans.export(run(1));
    spans.shutdown().await;
    assert_eq!((receiver.spans().len(), spans.dropped()), (5000, 1));
}

/// Nothing listens there, nothing answers there: neither may be felt.
#[tokio::test]
async fn a_dead_collector_costs_spans_and_nothing_else() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let refusing = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for address in [silent.local_addr().unwrap(), refusing] {
        let spans = Spans::start("optimizer", "o1", &to(&format!("http://{address}"))).unwrap();
        let begun = Instant::now();
        for n in 0..20_000 {
            spans.export(run(n));
        }
        let exported = begun.elapsed();
        assert!(exported < Duration::from_secs(2), "{exported:?} for 20,000 spans");
        assert!(spans.dropped() > 5_000, "the queue took all of 20,000 spans");
        let begun = Instant::now();
        spans.shutdown().await;
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
        assert_eq!(spans.dropped(), 20_000, "at {address}");
        let metrics = Metrics::new("optimizer", "o1");
        metrics.watch(&spans);
        for _ in 0..2 {
            let lost = "baton_spans_dropped_total{service=\"optimizer\",instance=\"o1\"} 20000\n";
            assert!(metrics.render().contains(lost), "{}", metrics.render());
        }
    }
}

#[tokio::test]
async fn without_an_endpoint_nothing_happens() {
    let spans = Spans::start("optimizer", "o1", &TraceConfig::default()).unwrap();
    spans.export(run(1));
    spans.flush().await;
    spans.shutdown().await;
    assert!(!spans.is_on() && !spans.samples(1) && spans.dropped() == 0);
}
