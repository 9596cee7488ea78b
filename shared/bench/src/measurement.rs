//! One measurement: a line of JSON, or some lines for people.

use std::fmt::Write;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// How long something took, in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Half of them took no longer.
    pub p50_ms: f64,
    /// Nine of ten took no longer.
    pub p90_ms: f64,
    /// Ninety-nine of a hundred took no longer.
    pub p99_ms: f64,
    /// None took longer.
    pub max_ms: f64,
}

impl Latency {
    /// Of a histogram of microseconds.
    pub(crate) fn of(histogram: &Histogram<u64>) -> Self {
        let ms = |micros: u64| micros as f64 / 1000.0;
        let quantile = |q: f64| ms(histogram.value_at_quantile(q));
        Self { p50_ms: quantile(0.5), p90_ms: quantile(0.9), p99_ms: quantile(0.99), max_ms: ms(histogram.max()) }
    }
}

/// A histogram of microseconds, up to an hour, exact to a thousandth.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 3_600_000_000, 3).unwrap_or_else(|_| unreachable!("the bounds are in order"))
}

/// What was measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// `baton`, or `jetstream` where it is the bare broker.
    pub system: String,
    /// Baton's version.
    pub version: String,
    /// What was done.
    pub work: String,
    /// In which form, where there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub form: Option<String>,
    /// How many were under way at a time.
    pub inflight: usize,
    /// How many a second were asked for, where that was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<f64>,
    /// `process` or `power`.
    pub durability: String,
    /// How many processes the services were: `one` or `many`.
    pub processes: String,
    /// How many agents there were.
    pub agents: usize,
    /// How many runs waited meanwhile that nobody worked on.
    pub live: usize,
    /// Which part of the traces was kept.
    pub sample: f64,
    /// How long was measured.
    pub seconds: f64,
    /// Runs that ended (or were accepted, where that is the work), a second.
    pub workflows_per_s: f64,
    /// Stages in them.
    pub stages_per_s: f64,
    /// Messages that a handler has had, a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages_per_s: Option<f64>,
    /// Operations that were answered, a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operations_per_s: Option<f64>,
    /// From before a run was asked for until its end was heard of (or until it was accepted).
    #[serde(flatten)]
    pub latency: Latency,
    /// From the moment when a stage's agent is done until the agent of the next one has it: report, commit, placement, lease.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub coordination: Option<Latency>,
    /// Cores in use, by whom.
    pub cores: Shares,
    /// Processor time a stage of all together, in microseconds.
    pub cpu_us_per_stage: f64,
    /// Memory at the end, in megabytes, by whom.
    pub memory_mb: Shares,
    /// What the log grew by, a stage.
    pub log_bytes_per_stage: f64,
    /// Records a stage.
    pub log_records_per_stage: f64,
    /// Records a message of the log.
    pub log_records_per_commit: f64,
    /// How long it took until all agents were registered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registered_ms: Option<f64>,
    /// How many runs failed or were never heard of again.
    pub errors: u64,
    /// Runs a second compared to the bare broker with a message for each record, in the same world; operations a second compared to
    /// bare requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub of_floor: Option<f64>,
    /// The 99th percentile compared to that of bare requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p99_of_floor: Option<f64>,
}

/// Something by the part that uses it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Shares {
    /// nats-server.
    pub broker: f64,
    /// The services together.
    pub services: f64,
    /// The process of agents.
    pub agents: f64,
    /// The load.
    pub load: f64,
}

impl Shares {
    /// All together.
    #[must_use]
    pub fn sum(&self) -> f64 {
        self.broker + self.services + self.agents + self.load
    }
}

impl Measurement {
    /// For people.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut text = String::new();
        let form = self.form.as_ref().map(|form| format!(", {form}")).unwrap_or_default();
        let load = self.rate.map_or_else(|| format!("{} in flight", self.inflight), |rate| format!("{rate} a second"));
        let _ = writeln!(
            text,
            "{} {}{form}: {load}, durability {}, {} agents, services in {}, {:.0} s",
            self.system, self.work, self.durability, self.agents, self.processes, self.seconds
        );
        let mut line = |name: &str, value: String| {
            let _ = writeln!(text, "  {name:<13} {value}");
        };
        let latency = |latency: &Latency| {
            let Latency { p50_ms, p90_ms, p99_ms, max_ms } = latency;
            format!("p50 {p50_ms:.2} ms   p90 {p90_ms:.2} ms   p99 {p99_ms:.2} ms   max {max_ms:.2} ms")
        };
        if self.workflows_per_s > 0.0 {
            let ratio = self.of_floor.map(|ratio| format!("   {ratio:.2} of the bare broker")).unwrap_or_default();
            let (runs, stages) = (self.workflows_per_s, self.stages_per_s);
            line("throughput", format!("{runs:.0} workflows/s   {stages:.0} stages/s{ratio}"));
            line("latency", latency(&self.latency));
        }
        if let Some(rate) = self.messages_per_s {
            line("throughput", format!("{rate:.0} messages/s"));
            line("latency", latency(&self.latency));
        }
        if let Some(rate) = self.operations_per_s {
            let ratio = self.of_floor.map(|ratio| format!("   {ratio:.2} of bare requests")).unwrap_or_default();
            line("throughput", format!("{rate:.0} operations/s{ratio}"));
            let ratio = self.p99_of_floor.map(|ratio| format!("   {ratio:.1} times the p99 of bare requests"));
            line("latency", latency(&self.latency) + &ratio.unwrap_or_default());
        }
        if let Some(coordination) = &self.coordination {
            line("to the agent", latency(coordination));
        }
        if let Some(registered) = self.registered_ms {
            line("registered", format!("{} agents in {registered:.0} ms", self.agents));
        }
        let shares = |shares: &Shares, digits: usize| {
            let Shares { broker, services, agents, load } = shares;
            format!(
                "broker {broker:.digits$}   services {services:.digits$}   agents {agents:.digits$}   load {load:.digits$}"
            )
        };
        let each = format!("   {:.0} µs a stage", self.cpu_us_per_stage);
        line("cores", shares(&self.cores, 2) + if self.stages_per_s > 0.0 { &each } else { "" });
        line("memory, MB", shares(&self.memory_mb, 0));
        if self.log_records_per_stage > 0.0 {
            line(
                "log",
                format!(
                    "{:.0} bytes and {:.2} records a stage   {:.1} records a commit",
                    self.log_bytes_per_stage, self.log_records_per_stage, self.log_records_per_commit
                ),
            );
        }
        if self.errors > 0 {
            line("ERRORS", format!("{} failed, or nothing was heard of them", self.errors));
        }
        text
    }
}
