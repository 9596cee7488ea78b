//! Finished spans, as data, to an OpenTelemetry collector.
//!
//! A [`Span`] comes with its ids, its beginning and its end; no tracer makes them up. It is
//! turned into the SDK's own [`SpanData`] and handed to the SDK's batch processor, which owns a thread and sends batches
//! over OTLP. Telemetry is never in the way: [`Spans::export`] does not block, a full queue drops spans and counts them,
//! a collector that is away is one warning, and [`Spans::shutdown`] has a deadline.

use std::env;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use baton_protocol::id::Millis;
use baton_protocol::trace::{Span, SpanKind, sampled};
use opentelemetry::trace::{SpanContext, SpanId, SpanKind as OtelKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{SpanExporter as OtlpExporter, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, SpanData, SpanEvents, SpanExporter, SpanLinks, SpanProcessor,
};
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};

/// How long [`Spans::shutdown`] waits for the collector.
const SHUTDOWN: Duration = Duration::from_millis(1250);

/// How long a connection may take to come about. Without it a host that does not answer would hold the exporter for
/// the system's two minutes.
const CONNECT: Duration = Duration::from_secs(3);

/// How long a batch may take, unless `OTEL_EXPORTER_OTLP_TIMEOUT` says otherwise: OpenTelemetry's own default.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How many spans wait at the most, unless `OTEL_BSP_MAX_QUEUE_SIZE` says otherwise. A commit may end hundreds at once.
const QUEUE: usize = 8192;

/// How long a span waits for company, unless `OTEL_BSP_SCHEDULE_DELAY` says otherwise.
const DELAY: Duration = Duration::from_secs(1);

/// Where spans go, and how many of them.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct TraceConfig {
    /// The collector's OTLP endpoint over gRPC: `http://localhost:4317`. Without one, spans go nowhere.
    pub endpoint: Option<String>,
    /// The share of traces that are recorded, from 0 to 1. See [`sampled`].
    pub sample_ratio: f64,
}

impl Default for TraceConfig {
    fn default() -> Self {
        Self { endpoint: None, sample_ratio: 1.0 }
    }
}

impl TraceConfig {
    /// What OpenTelemetry's own variables say: `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`, `OTEL_EXPORTER_OTLP_ENDPOINT`,
    /// `OTEL_TRACES_SAMPLER`, `OTEL_TRACES_SAMPLER_ARG`, `OTEL_TRACES_EXPORTER=none`, `OTEL_SDK_DISABLED=true`.
    ///
    /// [`Spans::start`] itself reads `OTEL_EXPORTER_OTLP_HEADERS`, `_PROTOCOL` and `_TIMEOUT`.
    pub fn from_env() -> Result<Self, TraceError> {
        Self::read(variable)
    }

    fn read(get: impl Fn(&str) -> Option<String>) -> Result<Self, TraceError> {
        let off = get("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"))
            || get("OTEL_TRACES_EXPORTER").is_some_and(|value| value == "none");
        let endpoint = get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT").or_else(|| get("OTEL_EXPORTER_OTLP_ENDPOINT"));
        let sampler = get("OTEL_TRACES_SAMPLER").unwrap_or_default();
        let sample_ratio = match sampler.strip_prefix("parentbased_").unwrap_or(&sampler) {
            "always_off" => 0.0,
            "traceidratio" => match get("OTEL_TRACES_SAMPLER_ARG") {
                None => 1.0,
                Some(text) => text.parse().ok().filter(|ratio| is_ratio(*ratio)).ok_or(TraceError::Ratio(text))?,
            },
            _ => 1.0,
        };
        Ok(Self { endpoint: endpoint.filter(|_| !off), sample_ratio })
    }
}

/// Spans that can not be exported as configured.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// Only gRPC is spoken here.
    #[error(
        "OTLP protocol {0:?} is not supported: Baton speaks grpc (unset OTEL_EXPORTER_OTLP_PROTOCOL and use the \
         collector's gRPC port, usually 4317)"
    )]
    Protocol(String),
    /// The endpoint can not be read.
    #[error("OTLP endpoint {0:?} is not one: it must look like http://localhost:4317 or https://collector:4317")]
    Endpoint(String),
    /// The share of traces can not be read.
    #[error("{0:?} is not a share of traces: it must be a number from 0 to 1")]
    Ratio(String),
    /// The connection to the collector needs a runtime.
    #[error("spans can only be exported from within a Tokio runtime")]
    Runtime,
    /// The exporter refuses its settings.
    #[error("the OTLP exporter can not be set up: {0}")]
    Exporter(String),
}

/// Exports the spans of one service. A clone exports to the same place.
#[derive(Debug, Clone, Default)]
pub struct Spans {
    inner: Option<Arc<Inner>>,
}

#[derive(Debug)]
struct Inner {
    processor: BatchSpanProcessor,
    tally: Arc<Tally>,
    scope: InstrumentationScope,
    ratio: f64,
    queue: usize,
    closing: AtomicBool,
}

/// What became of spans. The SDK counts what it drops, but tells nobody.
#[derive(Debug, Default)]
struct Tally {
    /// Given to [`Spans::export`], and to be exported.
    offered: AtomicU64,
    /// Not taken: the queue was full, or the exporter was shutting down, or an id was zero.
    refused: AtomicU64,
    /// Taken by the collector.
    delivered: AtomicU64,
    /// Sent in vain.
    failed: AtomicU64,
    /// In the SDK's queue.
    queued: AtomicUsize,
    /// There will be no more.
    finished: AtomicBool,
}

impl Tally {
    fn dropped(&self) -> u64 {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        if self.finished.load(Ordering::Relaxed) {
            get(&self.offered).saturating_sub(get(&self.delivered))
        } else {
            get(&self.refused) + get(&self.failed)
        }
    }
}

impl Spans {
    /// Spans that go nowhere.
    #[must_use]
    pub fn none() -> Self {
        Self { inner: None }
    }

    /// Begins to export what `baton-<service>` does. Without an endpoint this is [`Spans::none`].
    ///
    /// The collector need not be there yet. Must be called within a Tokio runtime, and outlived by it. With `https` the
    /// system's certificates are trusted (or those of `SSL_CERT_FILE`).
    pub fn start(service: &str, instance: &str, config: &TraceConfig) -> Result<Self, TraceError> {
        if !is_ratio(config.sample_ratio) {
            return Err(TraceError::Ratio(config.sample_ratio.to_string()));
        }
        let Some(endpoint) = config.endpoint.as_deref().filter(|endpoint| !endpoint.is_empty()) else {
            return Ok(Self::none());
        };
        check_protocol(variable)?;
        let tally = Arc::new(Tally::default());
        let mut exporter = Tallied {
            next: OtlpExporter::builder()
                .with_tonic()
                .with_channel(channel(endpoint)?)
                .build()
                .map_err(|error| TraceError::Exporter(error.to_string()))?,
            tally: Arc::clone(&tally),
            endpoint: without_user(endpoint),
            away: AtomicBool::new(false),
        };
        exporter.set_resource(&resource(service, instance));
        let queue = number("OTEL_BSP_MAX_QUEUE_SIZE").map_or(QUEUE, |size| size.clamp(1, 1 << 20) as usize);
        let mut batches = BatchConfigBuilder::default().with_max_queue_size(queue);
        if variable("OTEL_BSP_SCHEDULE_DELAY").is_none() {
            batches = batches.with_scheduled_delay(DELAY);
        }
        Ok(Self {
            inner: Some(Arc::new(Inner {
                processor: BatchSpanProcessor::new(exporter, batches.build()),
                tally,
                scope: InstrumentationScope::builder("baton").with_version(env!("CARGO_PKG_VERSION")).build(),
                ratio: config.sample_ratio,
                queue,
                closing: AtomicBool::new(false),
            })),
        })
    }

    /// Whether spans go anywhere at all.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.inner.is_some()
    }

    /// Whether spans of that trace are exported, so that nobody need build one in vain.
    #[must_use]
    pub fn samples(&self, trace: u128) -> bool {
        self.inner.as_ref().is_some_and(|inner| sampled(trace, inner.ratio))
    }

    /// The share of traces that are exported, from 0 to 1.
    #[must_use]
    pub fn share(&self) -> f64 {
        self.inner.as_ref().map_or(0.0, |inner| inner.ratio)
    }

    /// Exports a finished span, unless its trace is not sampled. Never blocks.
    pub fn export(&self, span: Span) {
        let Some(inner) = &self.inner else { return };
        if !span.context.sampled || !sampled(span.context.trace, inner.ratio) {
            return;
        }
        let tally = &inner.tally;
        tally.offered.fetch_add(1, Ordering::Relaxed);
        // What is queued is counted before it is: the SDK's queue is then never full, and drops nothing behind our back.
        let full = tally.queued.fetch_add(1, Ordering::Relaxed) >= inner.queue;
        let nameless = span.context.trace == 0 || span.context.span == 0;
        if full || nameless || inner.closing.load(Ordering::Relaxed) {
            tally.queued.fetch_sub(1, Ordering::Relaxed);
            tally.refused.fetch_add(1, Ordering::Relaxed);
            return;
        }
        inner.processor.on_end(data(span, inner.scope.clone()));
    }

    /// How many spans were lost: the queue was full, or the collector was away.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.inner.as_ref().map_or(0, |inner| inner.tally.dropped())
    }

    /// Sends what is queued, and waits until that has been tried, five seconds at the most.
    pub async fn flush(&self) {
        if let Some(inner) = self.inner.clone() {
            // Blocks a thread; the only error says that there was nobody to wait for.
            let _ = tokio::task::spawn_blocking(move || inner.processor.force_flush()).await;
        }
    }

    /// Sends what is queued and stops, within two seconds whether or not the collector is there. What did not arrive
    /// by then is lost, and counted.
    pub async fn shutdown(&self) {
        let Some(inner) = self.inner.clone() else { return };
        if inner.closing.swap(true, Ordering::Relaxed) {
            return;
        }
        let tally = Arc::clone(&inner.tally);
        let stop = tokio::task::spawn_blocking(move || inner.processor.shutdown_with_timeout(SHUTDOWN));
        let _ = tokio::time::timeout(SHUTDOWN + Duration::from_millis(200), stop).await;
        tally.finished.store(true, Ordering::Relaxed);
        let lost = tally.dropped();
        if lost > 0 {
            tracing::info!(lost, "some spans did not reach the collector");
        }
    }
}

/// The OTLP exporter, with what becomes of spans counted and said once instead of once a batch.
#[derive(Debug)]
struct Tallied {
    next: OtlpExporter,
    tally: Arc<Tally>,
    endpoint: String,
    away: AtomicBool,
}

impl SpanExporter for Tallied {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let count = batch.len();
        self.tally.queued.fetch_sub(count, Ordering::Relaxed);
        match self.next.export(batch).await {
            Ok(()) => {
                self.tally.delivered.fetch_add(count as u64, Ordering::Relaxed);
                if self.away.swap(false, Ordering::Relaxed) {
                    tracing::info!(endpoint = self.endpoint, dropped = self.tally.dropped(), "the collector is back");
                }
            }
            Err(error) => {
                self.tally.failed.fetch_add(count as u64, Ordering::Relaxed);
                if !self.away.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        endpoint = self.endpoint,
                        %error,
                        "the collector does not take spans (is it there, and is this its gRPC port, usually 4317?); \
                         they are dropped until it does"
                    );
                }
            }
        }
        // The processor would only log an error, once a batch.
        Ok(())
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.next.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.next.set_resource(resource);
    }
}

fn data(span: Span, scope: InstrumentationScope) -> SpanData {
    let id = |span: u64| SpanId::from_bytes(span.to_be_bytes());
    SpanData {
        span_context: SpanContext::new(
            TraceId::from_bytes(span.context.trace.to_be_bytes()),
            id(span.context.span),
            TraceFlags::SAMPLED,
            false,
            TraceState::default(),
        ),
        parent_span_id: span.parent.map_or(SpanId::INVALID, id),
        parent_span_is_remote: span.parent.is_some(),
        span_kind: match span.kind {
            SpanKind::Internal => OtelKind::Internal,
            SpanKind::Server => OtelKind::Server,
            SpanKind::Producer => OtelKind::Producer,
            SpanKind::Consumer => OtelKind::Consumer,
        },
        name: span.name.into(),
        start_time: time(span.start),
        // Clocks of two machines may differ; a span that ends before it begins is refused by some collectors.
        end_time: time(span.end.max(span.start)),
        attributes: span.attributes.into_iter().map(attribute).collect(),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: span.error.map_or(Status::Unset, Status::error),
        instrumentation_scope: scope,
    }
}

/// Attributes are text, but for those that the semantic conventions of GenAI want as numbers.
fn attribute((key, value): (&'static str, String)) -> KeyValue {
    match value.parse::<i64>() {
        Ok(number) if key.starts_with("gen_ai.usage.") => KeyValue::new(key, number),
        _ => KeyValue::new(key, value),
    }
}

fn time(at: Millis) -> SystemTime {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(at)).unwrap_or(SystemTime::UNIX_EPOCH)
}

fn resource(service: &str, instance: &str) -> Resource {
    // Also holds what OTEL_RESOURCE_ATTRIBUTES says; ours comes last and wins.
    Resource::builder()
        .with_service_name(format!("baton-{service}"))
        .with_attribute(KeyValue::new("service.instance.id", instance.to_owned()))
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build()
}

/// Our own channel, because the exporter's has no limit on how long it connects, and no TLS.
fn channel(endpoint: &str) -> Result<Channel, TraceError> {
    let bad = || TraceError::Endpoint(without_user(endpoint));
    if tokio::runtime::Handle::try_current().is_err() {
        return Err(TraceError::Runtime);
    }
    let parsed = Endpoint::from_shared(endpoint.to_owned()).map_err(|_| bad())?;
    let scheme = parsed.uri().scheme_str().unwrap_or_default().to_owned();
    let timeout = number("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT").or_else(|| number("OTEL_EXPORTER_OTLP_TIMEOUT"));
    let parsed = parsed
        .connect_timeout(CONNECT)
        .timeout(timeout.map_or(TIMEOUT, Duration::from_millis))
        .http2_keep_alive_interval(Duration::from_secs(20));
    match scheme.as_str() {
        "http" => Ok(parsed.connect_lazy()),
        "https" => Ok(parsed
            .tls_config(ClientTlsConfig::new().with_enabled_roots())
            .map_err(|error| TraceError::Exporter(error.to_string()))?
            .connect_lazy()),
        _ => Err(bad()),
    }
}

fn check_protocol(get: impl Fn(&str) -> Option<String>) -> Result<(), TraceError> {
    let protocol = get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL").or_else(|| get("OTEL_EXPORTER_OTLP_PROTOCOL"));
    match protocol {
        Some(protocol) if !protocol.eq_ignore_ascii_case("grpc") => Err(TraceError::Protocol(protocol)),
        _ => Ok(()),
    }
}

/// An endpoint as it may be logged: without user and password.
fn without_user(endpoint: &str) -> String {
    let (scheme, rest) = endpoint.split_once("://").map_or(("", endpoint), |(scheme, rest)| (scheme, rest));
    let authority = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let host = rest[..authority].rfind('@').map_or(0, |at| at + 1);
    let slashes = if scheme.is_empty() { "" } else { "://" };
    format!("{scheme}{slashes}{}", &rest[host..])
}

fn is_ratio(ratio: f64) -> bool {
    (0.0..=1.0).contains(&ratio)
}

fn number(name: &str) -> Option<u64> {
    variable(name)?.trim().parse().ok()
}

fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use baton_protocol::RunId;

    use super::*;

    #[test]
    fn uuid_v7_ids_are_sampled_fairly_and_smaller_shares_are_part_of_larger_ones() {
        let traces: Vec<u128> = (0..10_000)
            .map(|n| RunId::derive(1_763_665_200_000 + n / 7, (3 << 64) | u128::from(n)).as_u128())
            .collect();
        let share = |ratio| traces.iter().filter(|trace| sampled(**trace, ratio)).count();
        assert!((800..=1200).contains(&share(0.1)), "{} of 10,000", share(0.1));
        assert!((4700..=5300).contains(&share(0.5)), "{} of 10,000", share(0.5));
        assert_eq!((share(0.0), share(1.0)), (0, 10_000));
        assert!(traces.iter().all(|trace| !sampled(*trace, 0.1) || sampled(*trace, 0.5)));
    }

    #[test]
    fn a_span_says_why_it_failed_and_where_it_comes_from() {
        let span = Span {
            context: baton_protocol::trace::TraceContext { trace: 1, span: 2, sampled: true },
            parent: Some(3),
            name: "chat model".to_owned(),
            kind: SpanKind::Consumer,
            start: 5,
            end: 4,
            attributes: vec![("gen_ai.usage.output_tokens", "17".to_owned()), ("baton.stage.name", "17".to_owned())],
            error: Some("refused".to_owned()),
        };
        let data = data(span, InstrumentationScope::builder("baton").build());
        assert_eq!((data.status, data.span_kind), (Status::error("refused"), OtelKind::Consumer));
        assert!(data.parent_span_is_remote && data.span_context.is_sampled());
        let wanted = [KeyValue::new("gen_ai.usage.output_tokens", 17), KeyValue::new("baton.stage.name", "17")];
        assert_eq!(data.attributes, wanted);
        let resource = resource("gateway", "g1");
        let of = |key: &'static str| resource.get(&key.into()).unwrap().to_string();
        assert_eq!((of("service.name"), of("service.instance.id")), ("baton-gateway".to_owned(), "g1".to_owned()));
        assert_eq!(of("service.version"), env!("CARGO_PKG_VERSION"));
    }

    #[test]
    fn the_environment_says_where_and_how_many() {
        let read = |variables: &[(&str, &str)]| {
            TraceConfig::read(|name| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
        };
        let here = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://here:4317");
        assert_eq!(read(&[]).unwrap(), TraceConfig::default());
        assert_eq!(read(&[here]).unwrap().endpoint.unwrap(), "http://here:4317");
        assert_eq!(read(&[here, ("OTEL_SDK_DISABLED", "true")]).unwrap().endpoint, None);
        let ratio =
            |arg| read(&[here, ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", arg)]);
        assert_eq!(ratio("0.25").unwrap(), TraceConfig { sample_ratio: 0.25, ..read(&[here]).unwrap() });
        for bad in ["2", "-1", "NaN", "many"] {
            assert!(ratio(bad).unwrap_err().to_string().contains(bad));
        }
    }

    #[test]
    fn what_can_not_work_is_refused_with_a_reason() {
        let with = |endpoint: &str| {
            let config = TraceConfig { endpoint: Some(endpoint.to_owned()), ..TraceConfig::default() };
            Spans::start("optimizer", "o1", &config)
        };
        assert!(matches!(with("http://localhost:1"), Err(TraceError::Runtime)));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _inside = runtime.enter();
        for bad in ["localhost:4317", "ftp://localhost", "not an endpoint"] {
            let error = with(bad).unwrap_err().to_string();
            assert!(error.contains(bad) && error.contains("http://localhost:4317"), "{error}");
        }
        let error = with("grpc://user:secret@host:1").unwrap_err().to_string();
        assert!(error.contains("grpc://host:1") && !error.contains("secret"), "{error}");
        let error = check_protocol(|name| (name == "OTEL_EXPORTER_OTLP_PROTOCOL").then(|| "http/protobuf".to_owned()));
        assert!(error.unwrap_err().to_string().contains("grpc"));
        assert!(!with("").unwrap().is_on());
        assert!(with("https://localhost:1").unwrap().is_on());
    }
}
