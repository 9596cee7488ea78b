//! Counts and times, in Prometheus' text format.
//!
//! A metric is named, and what it is stands in one [table](DEFINITIONS); whoever counts gives a name, the label values
//! and an amount, so that a machine's effects can say it as data. The labels `service` and `instance` are added when
//! the metrics are rendered. The gateway [merges](merge) what all instances of all services answer.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::core::Collector;
use prometheus::{CounterVec, GaugeVec, HistogramOpts, HistogramVec, Opts, Registry, TextEncoder};

use crate::Spans;

/// The media type of [`Metrics::render`] and [`merge`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Half a millisecond is a fast answer on one machine, a minute is a slow one of a model provider.
const SECONDS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// Parts of one.
const PARTS: &[f64] = &[0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9, 1.0];

const RECORDS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0];

/// A machine's turn takes from some microseconds to some milliseconds.
const TURNS: &[f64] = &[
    0.000_005, 0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.1, 1.0,
];

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Definition {
    /// Its name.
    pub name: &'static str,
    /// What it does with amounts.
    pub kind: Kind,
    /// What it says.
    pub help: &'static str,
    /// The names of its labels, in the order in which values are given.
    pub labels: &'static [&'static str],
}

/// What a metric does with amounts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// It sums them up.
    Counter,
    /// It keeps the last.
    Gauge,
    /// It counts how many are below each of these bounds.
    Histogram(&'static [f64]),
}

/// Every metric there is. `deploy/validate.py` reads this table.
pub const DEFINITIONS: &[Definition] = &[
    // The seven of the coordination document, under its names.
    seconds("coordination_efficiency_seconds", "Time that coordination operations took.", &["operation"]),
    counter("resource_allocations_total", "Allocations of resources, by outcome.", &["resource", "outcome"]),
    gauge("active_coordinations", "Runs that have started and not ended.", &[]),
    gauge("agent_utilization_ratio", "Share of an agent's slots that is leased.", &["agent"]),
    counter("agent_messages_total", "Messages of agents, by type.", &["type"]),
    seconds("agent_message_latency_seconds", "Time from a message's sending to its handling.", &["type"]),
    seconds("agent_handoff_duration_seconds", "Time from the offer of a task to its acceptance.", &[]),
    // Circuit breakers.
    gauge(
        "agent_breaker_state",
        "An agent's circuit breaker: 0 closed, 1 half-open, 2 open.",
        &["agent", "capability"],
    ),
    counter(
        "agent_breaker_transitions_total",
        "Circuit breakers of agents that changed, by what they became.",
        &["capability", "to"],
    ),
    // Alerts.
    counter("baton_alerts_total", "Alerts that were raised.", &["kind", "severity"]),
    gauge("baton_alerts_active", "Alerts that are not over.", &["severity"]),
    counter("baton_webhooks_total", "Events of alerts for webhooks, by what became of them.", &["webhook", "outcome"]),
    // Pressure.
    gauge("baton_pressure_level", "How much more is to be done than can be: 0 none, 1 elevated, 2 critical.", &[]),
    counter(
        "baton_runs_refused_total",
        "Runs that were asked for and refused, by why: pressure or limit.",
        &["reason"],
    ),
    counter("baton_events_raised_total", "Events that were raised.", &[]),
    counter("baton_triggers_fired_total", "Triggers that came to something, by what.", &["outcome"]),
    counter("baton_schedules_fired_total", "Times of schedules that came, by what came of them.", &["outcome"]),
    // The counters of the workflow document.
    counter("workflows_executed_total", "Runs that ended, by workflow and status.", &["workflow", "status"]),
    counter("stages_executed_total", "Attempts at stages that ended, by outcome.", &["outcome"]),
    counter("stages_cached_total", "Stages whose result was used again, and that nobody did.", &[]),
    counter("speculations_total", "Attempts that began early, by whether they count.", &["outcome"]),
    counter(
        "hedges_total",
        "Second copies of tasks, by whether they gave the result (won) or not (lost).",
        &["result"],
    ),
    counter("messages_sent_total", "Messages that the service sent.", &[]),
    counter("messages_received_total", "Messages that the service received.", &[]),
    counter("resource_acquisitions_total", "Leases that were granted.", &[]),
    counter("coordination_overhead_seconds_total", "Time that stages were ready to run and did not.", &[]),
    // The shell's own.
    counter("baton_commits_total", "Commits that were acknowledged.", &[]),
    counter("baton_commits_refused_total", "Commits that the broker had no room for.", &[]),
    gauge("baton_log_full", "1 while the broker stores nothing more and every request is refused.", &[]),
    histogram("baton_commit_records", "Records in a commit.", &[], RECORDS),
    seconds("baton_commit_seconds", "Time from a commit's sending to its acknowledgement.", &[]),
    gauge("baton_log_position", "Sequence of the last message of the log that was handled.", &[]),
    gauge("baton_log_first_sequence", "Sequence of the first message that the log still has.", &[]),
    counter("baton_log_trimmed_total", "Messages that were removed from the beginning of the log.", &[]),
    gauge("baton_leading", "1 if the instance leads, 0 if it stands by.", &[]),
    gauge("baton_term", "The term of the leader that the instance knows of.", &[]),
    counter("baton_requests_total", "Requests that were answered, by endpoint and outcome.", &["endpoint", "outcome"]),
    seconds("baton_request_seconds", "Time from a request's arrival to its answer.", &["endpoint"]),
    counter(
        "baton_messages_dropped_total",
        "Messages dropped unread, for too many came at once; at least so many.",
        &[],
    ),
    counter("baton_documents_dropped_total", "Finished runs that were not kept as documents.", &[]),
    counter("baton_requests_set_aside_total", "Requests that could not be read.", &[]),
    counter("baton_spans_dropped_total", "Spans that did not reach the collector.", &[]),
    histogram("baton_turn_seconds", "Time that a leader's rules took for one input.", &["input"], TURNS),
    seconds("baton_ask_seconds", "Time from a question to another service to its answer.", &["endpoint"]),
    // The optimizer's.
    gauge("baton_run_queue", "Tasks that wait for an agent.", &[]),
    seconds("baton_placement_seconds", "Time from when a task was ready to when it was placed.", &["strategy"]),
    gauge(
        "baton_load_balance_ratio",
        "How evenly agents are loaded: Jain's index of the parts of their slots in use.",
        &[],
    ),
    histogram(
        "baton_placement_regret_ratio",
        "Part of its time that a task would have saved with the best agent that had room, in hindsight.",
        &[],
        PARTS,
    ),
    // The post office's.
    counter("baton_post_asked_total", "Questions of agents to the post office, by what they ask.", &["ask"]),
    counter(
        "baton_agent_messages_total",
        "Messages between agents as these count them, by what became of them.",
        &["what"],
    ),
    gauge("baton_messages_stored", "Guaranteed messages in their stream.", &[]),
    gauge("baton_messages_stored_bytes", "Bytes of guaranteed messages in their stream.", &[]),
    // The gateway's.
    counter("baton_http_requests_total", "HTTP requests that were answered.", &["route", "method", "status"]),
    seconds("baton_http_request_seconds", "Time from an HTTP request to the head of its answer.", &["route"]),
];

const fn counter(name: &'static str, help: &'static str, labels: &'static [&'static str]) -> Definition {
    Definition { name, kind: Kind::Counter, help, labels }
}

const fn gauge(name: &'static str, help: &'static str, labels: &'static [&'static str]) -> Definition {
    Definition { name, kind: Kind::Gauge, help, labels }
}

const fn seconds(name: &'static str, help: &'static str, labels: &'static [&'static str]) -> Definition {
    histogram(name, help, labels, SECONDS)
}

const fn histogram(
    name: &'static str,
    help: &'static str,
    labels: &'static [&'static str],
    bounds: &'static [f64],
) -> Definition {
    Definition { name, kind: Kind::Histogram(bounds), help, labels }
}

/// The metrics of one service. A clone counts in the same place.
#[derive(Clone)]
pub struct Metrics {
    inner: Arc<Inner>,
}

struct Inner {
    registry: Registry,
    families: BTreeMap<&'static str, Family>,
    /// `service="…",instance="…"`
    labels: String,
    spans: Mutex<Spans>,
}

enum Family {
    Counter(CounterVec),
    Gauge(GaugeVec),
    Histogram(HistogramVec),
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Metrics").field(&self.inner.labels).finish()
    }
}

impl Metrics {
    /// The metrics of an instance of a service, all at zero.
    #[must_use]
    pub fn new(service: &str, instance: &str) -> Self {
        let registry = Registry::new();
        let families = DEFINITIONS.iter().map(|definition| (definition.name, family(definition, &registry))).collect();
        let labels = format!("service=\"{}\",instance=\"{}\"", escape(service), escape(instance));
        Self { inner: Arc::new(Inner { registry, families, labels, spans: Mutex::new(Spans::none()) }) }
    }

    /// Adds to a counter, or to a gauge.
    pub fn add(&self, name: &str, labels: &[&str], amount: f64) {
        match self.family(name) {
            Some(Family::Counter(counter)) if amount >= 0.0 && amount.is_finite() => {
                known(name, labels, counter.get_metric_with_label_values(labels), |counter| counter.inc_by(amount));
            }
            Some(Family::Gauge(gauge)) if amount.is_finite() => {
                known(name, labels, gauge.get_metric_with_label_values(labels), |gauge| gauge.add(amount));
            }
            Some(_) => debug_assert!(false, "{amount} can not be added to {name}"),
            None => {}
        }
    }

    /// Adds one to a counter.
    pub fn count(&self, name: &str, labels: &[&str]) {
        self.add(name, labels, 1.0);
    }

    /// Adds an observation to a histogram. Less than nothing is nothing: two machines' clocks may differ.
    pub fn observe(&self, name: &str, labels: &[&str], amount: f64) {
        match self.family(name) {
            Some(Family::Histogram(histogram)) if amount.is_finite() => {
                let found = histogram.get_metric_with_label_values(labels);
                known(name, labels, found, |histogram| histogram.observe(amount.max(0.0)));
            }
            Some(_) => debug_assert!(false, "{amount} can not be observed by {name}"),
            None => {}
        }
    }

    /// Sets a gauge.
    pub fn set(&self, name: &str, labels: &[&str], amount: f64) {
        match self.family(name) {
            Some(Family::Gauge(gauge)) => {
                known(name, labels, gauge.get_metric_with_label_values(labels), |gauge| gauge.set(amount));
            }
            Some(_) => debug_assert!(false, "{name} can not be set"),
            None => {}
        }
    }

    /// Forgets one set of labels: the agent has gone.
    pub fn remove(&self, name: &str, labels: &[&str]) {
        // The error says that it was not there.
        let _ = match self.family(name) {
            Some(Family::Counter(counter)) => counter.remove_label_values(labels),
            Some(Family::Gauge(gauge)) => gauge.remove_label_values(labels),
            Some(Family::Histogram(histogram)) => histogram.remove_label_values(labels),
            None => Ok(()),
        };
    }

    /// Forgets all sets of labels of a metric that has labels: they will be set anew.
    pub fn clear(&self, name: &str) {
        match self.family(name) {
            Some(Family::Counter(counter)) => counter.reset(),
            Some(Family::Gauge(gauge)) => gauge.reset(),
            Some(Family::Histogram(histogram)) => histogram.reset(),
            None => {}
        }
    }

    /// Keeps `baton_spans_dropped_total` at what these spans have lost.
    pub fn watch(&self, spans: &Spans) {
        *self.inner.spans.lock().unwrap_or_else(PoisonError::into_inner) = spans.clone();
    }

    /// All metrics, in Prometheus' text format. Empty families are left out.
    #[must_use]
    pub fn render(&self) -> String {
        self.read_spans();
        let plain = TextEncoder::new().encode_to_string(&self.inner.registry.gather()).unwrap_or_default();
        let mut text = String::with_capacity(plain.len() * 2);
        for line in plain.lines() {
            let labels = &self.inner.labels;
            // A metric's name ends at the first brace or blank.
            let _ = match line.find(['{', ' ']) {
                Some(end) if line.starts_with('#') || end == 0 => writeln!(text, "{line}"),
                Some(end) if line.as_bytes()[end] == b'{' => {
                    writeln!(text, "{}{{{labels},{}", &line[..end], &line[end + 1..])
                }
                Some(end) => writeln!(text, "{}{{{labels}}}{}", &line[..end], &line[end..]),
                None => Ok(()),
            };
        }
        text
    }

    fn read_spans(&self) {
        let dropped = self.inner.spans.lock().unwrap_or_else(PoisonError::into_inner).dropped();
        if let Some(Family::Counter(counter)) = self.family("baton_spans_dropped_total") {
            let counter = counter.with_label_values::<&str>(&[]);
            #[expect(clippy::cast_precision_loss, reason = "a count below 2^53")]
            let more = dropped as f64 - counter.get();
            counter.inc_by(more.max(0.0));
        }
    }

    fn family(&self, name: &str) -> Option<&Family> {
        let family = self.inner.families.get(name);
        debug_assert!(family.is_some(), "there is no metric {name:?}: see baton_telemetry::metrics::DEFINITIONS");
        family
    }
}

fn known<M>(name: &str, labels: &[&str], found: prometheus::Result<M>, then: impl FnOnce(M)) {
    match found {
        Ok(metric) => then(metric),
        Err(error) => debug_assert!(false, "{name} has other labels than {labels:?}: {error}"),
    }
}

fn family(definition: &Definition, registry: &Registry) -> Family {
    let Definition { name, kind, help, labels } = *definition;
    // The table is right or the process does not start; a test builds it.
    let right = "the table of metrics holds valid names";
    let register = |collector: Box<dyn Collector>| registry.register(collector).expect(right);
    // What has no labels is there from the start, at zero, so that a rate over it has a beginning.
    match kind {
        Kind::Counter => {
            let counter = CounterVec::new(Opts::new(name, help), labels).expect(right);
            if labels.is_empty() {
                counter.with_label_values::<&str>(&[]);
            }
            register(Box::new(counter.clone()));
            Family::Counter(counter)
        }
        Kind::Gauge => {
            let gauge = GaugeVec::new(Opts::new(name, help), labels).expect(right);
            if labels.is_empty() {
                gauge.with_label_values::<&str>(&[]);
            }
            register(Box::new(gauge.clone()));
            Family::Gauge(gauge)
        }
        Kind::Histogram(bounds) => {
            let options = HistogramOpts::new(name, help).buckets(bounds.to_vec());
            let histogram = HistogramVec::new(options, labels).expect(right);
            if labels.is_empty() {
                histogram.with_label_values::<&str>(&[]);
            }
            register(Box::new(histogram.clone()));
            Family::Histogram(histogram)
        }
    }
}

fn escape(value: &str) -> String {
    value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n")
}

/// Makes one exposition out of several: each family once, its samples together.
///
/// What can not be read is left out, and so is what would contradict: a series that was given already (an instance that
/// answered twice), a family whose type differs (another version's). The gateway serves what remains.
#[must_use]
pub fn merge(texts: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    let mut families = BTreeMap::<String, Merged>::new();
    let mut seen = BTreeSet::<String>::new();
    for text in texts {
        merge_one(text.as_ref(), &mut families, &mut seen);
    }
    let mut merged = String::new();
    for (name, family) in families {
        if family.samples.is_empty() {
            continue;
        }
        if let Some(help) = family.help {
            let _ = writeln!(merged, "# HELP {name} {help}");
        }
        let _ = writeln!(merged, "# TYPE {name} {}", family.kind);
        for sample in family.samples {
            let _ = writeln!(merged, "{sample}");
        }
    }
    merged
}

#[derive(Default)]
struct Merged {
    help: Option<String>,
    kind: String,
    samples: Vec<String>,
}

fn merge_one(text: &str, families: &mut BTreeMap<String, Merged>, seen: &mut BTreeSet<String>) {
    let mut help = None;
    // The family that the lines are of, or nothing while they are of one that is left out.
    let mut current: Option<(String, &str)> = None;
    for line in text.lines() {
        if let Some((name, text)) = header(line, "# HELP ") {
            help = Some((name, text));
            current = None;
        } else if let Some((name, kind)) = header(line, "# TYPE ") {
            if !KINDS.contains(&kind) {
                continue;
            }
            let family = match families.entry(name.to_owned()) {
                Entry::Vacant(entry) => entry.insert(Merged { kind: kind.to_owned(), ..Merged::default() }),
                Entry::Occupied(entry) => entry.into_mut(),
            };
            if family.help.is_none() {
                family.help = help.take().filter(|(of, _)| *of == name).map(|(_, text)| text.to_owned());
            }
            current = (family.kind == kind).then(|| (name.to_owned(), kind));
        } else if let Some((name, kind)) = &current
            && let Some(sample) = Sample::parse(line)
            && sample.is_of(name, kind)
            && seen.insert(sample.series())
            && let Some(family) = families.get_mut(name)
        {
            family.samples.push(line.trim_end().to_owned());
        }
    }
}

const KINDS: [&str; 5] = ["counter", "gauge", "histogram", "summary", "untyped"];

fn header<'a>(line: &'a str, start: &str) -> Option<(&'a str, &'a str)> {
    let (name, rest) = line.strip_prefix(start)?.split_once(' ')?;
    is_name(name).then_some((name, rest.trim_end()))
}

/// `name{label="value",…} 1.5 1700000000000`
#[derive(Debug, PartialEq)]
struct Sample<'a> {
    name: &'a str,
    labels: BTreeMap<&'a str, &'a str>,
}

impl<'a> Sample<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let end = line.find(['{', ' '])?;
        let (name, mut rest) = line.split_at(end);
        let mut labels = BTreeMap::new();
        if let Some(inside) = rest.strip_prefix('{') {
            rest = inside;
            while !rest.starts_with('}') {
                let (label, after) = rest.split_once("=\"")?;
                let close = closing_quote(after)?;
                if !is_name(label) || labels.insert(label, &after[..close]).is_some() {
                    return None;
                }
                rest = &after[close + 1..];
                rest = match rest.strip_prefix(',') {
                    Some(next) => next,
                    None if rest.starts_with('}') => rest,
                    None => return None,
                };
            }
            rest = &rest[1..];
        }
        let mut values = rest.strip_prefix(' ')?.split_whitespace();
        values.next()?.parse::<f64>().ok()?;
        let stamped = values.next().is_none_or(|at| at.parse::<i64>().is_ok());
        (is_name(name) && stamped && values.next().is_none()).then_some(Self { name, labels })
    }

    fn is_of(&self, family: &str, kind: &str) -> bool {
        match self.name.strip_prefix(family) {
            Some("") => kind != "histogram",
            Some("_sum" | "_count") => matches!(kind, "histogram" | "summary"),
            Some("_bucket") => kind == "histogram" && self.labels.contains_key("le"),
            _ => false,
        }
    }

    fn series(&self) -> String {
        let mut series = self.name.to_owned();
        for (label, value) in &self.labels {
            let _ = write!(series, ",{label}=\"{value}\"");
        }
        series
    }
}

fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return Some(at),
            _ => {}
        }
    }
    None
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b':')
}
