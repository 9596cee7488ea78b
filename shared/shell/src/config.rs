//! Settings: defaults, then `baton.toml`, then the environment (`BATON_…`), each over the one before.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use baton_protocol::alert::AlertSeverity;
use baton_protocol::{Millis, Pool, ResourceName};
use serde::{Deserialize, Serialize};

/// All settings of a Baton process. Connection settings are not among them: they come as for other NATS tools.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Workflows and their runs.
    pub workflows: WorkflowSettings,
    /// The log.
    pub log: LogSettings,
    /// What is too large for a message.
    pub objects: ObjectSettings,
    /// Leadership.
    pub leader: LeaderSettings,
    /// Agents and their leases.
    pub agents: AgentSettings,
    /// When an agent that fails is given no more tasks.
    pub breakers: BreakerSettings,
    /// Pools, by name: what everybody draws from who asks. A name with a dot or a slash is written in quotes.
    pub pools: BTreeMap<ResourceName, Pool>,
    /// Alerts, and who is told of them.
    pub alerts: AlertSettings,
    /// When more is to be done than can be, and what waits then.
    pub pressure: PressureSettings,
    /// Placement.
    pub placement: PlacementSettings,
    /// Guaranteed messages between agents.
    pub messages: MessageSettings,
    /// The HTTP door.
    pub http: HttpSettings,
    /// Logs, traces.
    pub telemetry: TelemetrySettings,
}

/// Settings of workflows and their runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WorkflowSettings {
    /// How many runs may be live at a time. Whoever wants to start one more is refused, and told when to ask again.
    pub max_live_runs: usize,
    /// How many runs that have ended are listed and found by what is known of them; of more, the oldest are forgotten.
    pub keep_ended: usize,
    /// How long a run is kept after its end, listed and as a document, in milliseconds; 0 for as long as there is room.
    pub keep_ended_ms: Millis,
    /// How many runs that have ended are kept as documents; 0 for no limit.
    pub keep_documents: u64,
}

impl Default for WorkflowSettings {
    fn default() -> Self {
        Self { max_live_runs: 10_000, keep_ended: 10_000, keep_ended_ms: 0, keep_documents: 0 }
    }
}

/// Settings of objects: what is too large for a message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ObjectSettings {
    /// How long one is kept after it was put last, in milliseconds; 0 for ever. Live runs need theirs for as long as they live.
    pub keep_ms: Millis,
    /// The most bytes of all objects together; -1 for no limit but the broker's own. Beyond it none can be put.
    pub max_bytes: i64,
}

impl Default for ObjectSettings {
    fn default() -> Self {
        Self { keep_ms: 30 * 24 * 60 * 60 * 1000, max_bytes: -1 }
    }
}

/// Settings of the log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogSettings {
    /// Copies of the stream: 1 on one server, 3 in a cluster.
    pub replicas: usize,
    /// The most bytes that it may hold; -1 for no limit of its own. A full log refuses, it never forgets.
    pub max_bytes: i64,
    /// About the largest commit, in bytes. Larger ones carry more at a time, and wait longer for each other.
    pub commit_bytes: usize,
    /// A snapshot of a service's state is kept after this many of its records, or after as many messages of the log.
    pub snapshot_records: u64,
    /// The least time between two snapshots of a service, in milliseconds: what is to be read after one should be read in about a
    /// second.
    pub snapshot_pause_ms: Millis,
    /// Whether the log's beginning is removed once nothing needs it: no run that is still listed, and no service's start. A log
    /// that was made without this can never be trimmed.
    pub trim: bool,
    /// It is removed when so many messages are to go, and at least a tenth of them all.
    pub trim_messages: u64,
    /// How old a snapshot must be before anything is removed for it, in milliseconds: longer than the broker may keep something in
    /// memory only (its `sync_interval`, two minutes if nothing is said).
    pub trim_settled_ms: Millis,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self {
            replicas: 1,
            max_bytes: -1,
            commit_bytes: 128 * 1024,
            snapshot_records: 20_000,
            snapshot_pause_ms: 10_000,
            trim: false,
            trim_messages: 1000,
            trim_settled_ms: 300_000,
        }
    }
}

/// Settings of leadership.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LeaderSettings {
    /// How long a leader that is not heard of keeps others from trying, in milliseconds. One whose connection is gone
    /// keeps nobody from it.
    pub ttl_ms: Millis,
}

impl Default for LeaderSettings {
    fn default() -> Self {
        Self { ttl_ms: 4000 }
    }
}

/// Settings of agents and their leases.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AgentSettings {
    /// After this long without a heartbeat an agent is lost, in milliseconds.
    pub lease_ms: Millis,
    /// How often agents are told to send heartbeats, in milliseconds.
    pub heartbeat_ms: Millis,
}

impl Default for AgentSettings {
    fn default() -> Self {
        Self { lease_ms: 10_000, heartbeat_ms: 2000 }
    }
}

/// Settings of circuit breakers: an agent that fails tasks of a capability is given no more of them for a while.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BreakerSettings {
    /// Whether any opens.
    pub enabled: bool,
    /// How many of the last tasks of an agent and a capability are looked at; at most 64.
    pub window: u32,
    /// With fewer tasks than that no breaker opens.
    pub min_tasks: u32,
    /// A breaker opens when so many of a hundred of these tasks have failed.
    pub error_percent: u32,
    /// How long it is open the first time, in milliseconds. Each time that a probe fails that doubles.
    pub open_ms: Millis,
    /// How long it is open at the most, in milliseconds.
    pub max_open_ms: Millis,
    /// How many tasks must succeed before it closes.
    pub probes: u32,
    /// When a breaker opens for the so-manieth time without having closed in between, its agent is asked to begin anew; 0:
    /// never.
    pub restart_after: u32,
}

impl Default for BreakerSettings {
    fn default() -> Self {
        Self {
            enabled: true,
            window: 20,
            min_tasks: 5,
            error_percent: 50,
            open_ms: 30_000,
            max_open_ms: 300_000,
            probes: 2,
            restart_after: 3,
        }
    }
}

/// Settings of alerts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AlertSettings {
    /// How many tasks should wait for an agent at the most: alerts are raised with 50, 80 and 100 % of that; 0: never.
    pub queue_depth: usize,
    /// Whether an alert is raised when a run fails.
    pub run_failed: bool,
    /// Whether alerts are raised when 50, 80 and 100 % of a pool are in use, or of a budget spent.
    pub pools: bool,
    /// How long so much of a pool must be in use until that is said, and so little until it is over, in milliseconds.
    pub pool_used_ms: u64,
    /// Who is told of alerts, over HTTP.
    pub webhooks: Vec<WebhookSettings>,
}

impl Default for AlertSettings {
    fn default() -> Self {
        Self { queue_depth: 1000, run_failed: false, pools: true, pool_used_ms: 10_000, webhooks: Vec::new() }
    }
}

/// Settings of pressure: when what matters least waits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PressureSettings {
    /// When it is elevated.
    pub elevated: PressureLimitSettings,
    /// When it is critical.
    pub critical: PressureLimitSettings,
    /// How long a task waits for that at the most, from when it was ready, in milliseconds.
    pub longest_ms: Millis,
}

/// When a level of pressure is reached: as soon as one of these limits is.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PressureLimitSettings {
    /// So many tasks wait for an agent; 0: any number may.
    pub queue: u64,
    /// So many tasks wait for each slot of the agents that are there; 0: any number may.
    pub per_slot: u64,
    /// The process takes so much of the memory that it may take, in per cent; 0: it may take all.
    pub memory_percent: u32,
    /// Runs of less priority than this are refused, and tasks of less wait.
    pub below: i32,
}

impl Default for PressureSettings {
    fn default() -> Self {
        let elevated = PressureLimitSettings { queue: 1000, per_slot: 100, memory_percent: 80, below: 0 };
        let critical = PressureLimitSettings { queue: 100_000, per_slot: 0, memory_percent: 90, below: 1 };
        Self { elevated, critical, longest_ms: 300_000 }
    }
}

/// Who is told of alerts: each event is posted there as JSON.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebhookSettings {
    /// Where to: an `http://` or `https://` URL.
    pub url: String,
    /// What it is called in logs and metrics; the URL's host if nothing is said. The URL itself may be a secret.
    #[serde(default)]
    pub name: Option<String>,
    /// With what each body is signed (HMAC-SHA256).
    #[serde(default)]
    pub secret: Option<String>,
    /// Only alerts that matter at least so much.
    #[serde(default = "informational")]
    pub severity: AlertSeverity,
}

/// Neither the secret nor the URL, of which a part may be one, comes into any output.
impl fmt::Debug for WebhookSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let signed = self.secret.is_some();
        let mut shown = f.debug_struct("WebhookSettings");
        shown.field("name", &self.name()).field("severity", &self.severity).field("signed", &signed);
        shown.finish_non_exhaustive()
    }
}

fn informational() -> AlertSeverity {
    AlertSeverity::Informational
}

impl WebhookSettings {
    /// What it is called in logs and metrics.
    #[must_use]
    pub fn name(&self) -> &str {
        let host = || self.url.split("://").nth(1).and_then(|rest| rest.split(['/', '?', '#']).next());
        let host = || host().map(|host| host.rsplit('@').next().unwrap_or(host));
        self.name.as_deref().or_else(host).unwrap_or("webhook")
    }
}

/// Settings of placement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PlacementSettings {
    /// Waiting this long counts as much as one step of priority, in milliseconds.
    pub ageing_ms: Millis,
    /// How much of a moving average a new sample makes up, when something is learned of agents and tasks: from 0.000001 to 1. It
    /// is written into the log when an instance begins to lead.
    pub learning_rate: f64,
    /// Whether runs that are due go by their deadlines alone, where placement is ADAPTIVE.
    pub deadlines_first: bool,
    /// The weights of tenants, by name, from 1 to 1000: in proportion to these they share agents. Whoever is not named has 1.
    pub tenants: BTreeMap<String, u32>,
}

impl Default for PlacementSettings {
    fn default() -> Self {
        Self { ageing_ms: 60_000, learning_rate: 0.1, deadlines_first: false, tenants: BTreeMap::new() }
    }
}

impl PlacementSettings {
    /// The learning rate in millionths.
    #[must_use]
    pub fn learning_rate_millionths(&self) -> u32 {
        (self.learning_rate * 1e6).round().clamp(1.0, 1e6) as u32
    }
}

/// Settings of guaranteed messages between agents. They are for a stream that is made; the limits of one that is there are
/// changed with `nats stream edit BATON_MESSAGES`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MessageSettings {
    /// How long a message is kept for an agent that is away, in milliseconds.
    pub max_age_ms: Millis,
    /// The most bytes of messages that are kept; of more, the oldest are lost.
    pub max_bytes: i64,
}

impl Default for MessageSettings {
    fn default() -> Self {
        Self { max_age_ms: 24 * 3600 * 1000, max_bytes: 1024 * 1024 * 1024 }
    }
}

/// Settings of the HTTP door.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpSettings {
    /// Where it listens. Loopback unless told otherwise.
    pub listen: String,
    /// Hosts that may be asked for beside this machine. Empty: only this machine where it listens on loopback, any host
    /// elsewhere. A web page that pretends to be another host is refused (DNS rebinding).
    pub allowed_hosts: Vec<String>,
}

impl Default for HttpSettings {
    fn default() -> Self {
        Self { listen: "127.0.0.1:8080".to_owned(), allowed_hosts: Vec::new() }
    }
}

/// Settings of logs and traces.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TelemetrySettings {
    /// `pretty`, `json`, or `auto`: pretty on a terminal.
    pub log_format: String,
    /// Which logs are shown, in the syntax of `RUST_LOG`.
    pub log_filter: String,
    /// Where traces go (OTLP over gRPC); `OTEL_EXPORTER_OTLP_ENDPOINT` says the same.
    pub otlp_endpoint: Option<String>,
    /// Which part of the traces is kept, from 0 to 1.
    pub sample_ratio: f64,
}

impl Default for TelemetrySettings {
    fn default() -> Self {
        Self { log_format: "auto".to_owned(), log_filter: "info".to_owned(), otlp_endpoint: None, sample_ratio: 1.0 }
    }
}

/// Settings that can not be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// They can not be read.
    #[error("settings: {0}. They come from the file {1} and from variables such as BATON_AGENTS__LEASE_MS")]
    Unreadable(config::ConfigError, String),
    /// One of them makes no sense.
    #[error("settings: {0}")]
    Wrong(String),
}

impl Settings {
    /// Reads the settings: defaults, the file (if it is there, or if it was asked for), `BATON_SECTION__KEY` variables.
    pub fn load(file: Option<&Path>) -> Result<Self, SettingsError> {
        Self::load_from(file, std::env::vars().collect())
    }

    fn load_from(
        file: Option<&Path>,
        variables: std::collections::HashMap<String, String>,
    ) -> Result<Self, SettingsError> {
        let path = file.unwrap_or(Path::new("baton.toml"));
        let unreadable = |error| SettingsError::Unreadable(error, path.display().to_string());
        // Other variables begin with BATON_ too (BATON_SERVER, BATON_NATS_SERVER): only those with a section are ours.
        let ours = variables
            .into_iter()
            .filter(|(name, _)| name.starts_with("BATON_") && name.contains("__"))
            .map(|(name, value)| (name.to_ascii_lowercase(), value))
            .collect();
        let environment = config::Environment::with_prefix("baton")
            .prefix_separator("_")
            .separator("__")
            .try_parsing(true)
            .list_separator(",")
            .with_list_parse_key("http.allowed_hosts")
            .source(Some(ours));
        let settings: Self = config::Config::builder()
            .add_source(config::Config::try_from(&Self::default()).map_err(unreadable)?)
            .add_source(config::File::from(path).format(config::FileFormat::Toml).required(file.is_some()))
            .add_source(environment)
            .build()
            .and_then(config::Config::try_deserialize)
            .map_err(unreadable)?;
        settings.check()?;
        Ok(settings)
    }

    fn check(&self) -> Result<(), SettingsError> {
        let wrong = |text: String| Err(SettingsError::Wrong(text));
        if self.workflows.max_live_runs == 0 {
            return wrong("workflows.max_live_runs is 0, so that no run could start; it must be at least 1".to_owned());
        }
        if !(1..=10_000).contains(&self.workflows.keep_ended) {
            return wrong(format!("workflows.keep_ended is {}; it must be from 1 to 10000", self.workflows.keep_ended));
        }
        if (1..120_000).contains(&self.workflows.keep_ended_ms) {
            return wrong(format!(
                "workflows.keep_ended_ms is {}; it must be at least 120000, or 0 for no limit",
                self.workflows.keep_ended_ms
            ));
        }
        if self.agents.heartbeat_ms == 0 || self.agents.lease_ms < 2 * self.agents.heartbeat_ms {
            return wrong(format!(
                "agents.lease_ms is {}, agents.heartbeat_ms is {}: a lease must last at least two heartbeats",
                self.agents.lease_ms, self.agents.heartbeat_ms
            ));
        }
        let breakers = &self.breakers;
        if !(1..=64).contains(&breakers.window) || !(1..=breakers.window).contains(&breakers.min_tasks) {
            return wrong(format!(
                "breakers.window is {}, breakers.min_tasks is {}: the window must be from 1 to 64, and hold the tasks",
                breakers.window, breakers.min_tasks
            ));
        }
        if !(1..=100).contains(&breakers.error_percent) || breakers.probes == 0 {
            return wrong(format!(
                "breakers.error_percent is {}, breakers.probes is {}: they must be from 1 to 100, and at least 1",
                breakers.error_percent, breakers.probes
            ));
        }
        if breakers.open_ms == 0 || breakers.max_open_ms < breakers.open_ms {
            return wrong(format!(
                "breakers.open_ms is {}, breakers.max_open_ms is {}: the first must be at least 1, and the second no less",
                breakers.open_ms, breakers.max_open_ms
            ));
        }
        let PressureSettings { elevated, critical, .. } = &self.pressure;
        if critical.below < elevated.below {
            return wrong(format!(
                "pressure.critical.below is {}, pressure.elevated.below is {}: the second must be no more than the first",
                critical.below, elevated.below
            ));
        }
        if let Some(webhook) =
            self.alerts.webhooks.iter().find(|w| !w.url.starts_with("http://") && !w.url.starts_with("https://"))
        {
            let name = webhook.name();
            return wrong(format!("alerts.webhooks: the url of {name:?} must begin with http:// or https://"));
        }
        if self.leader.ttl_ms < 1000 {
            return wrong(format!("leader.ttl_ms is {}; it must be at least 1000", self.leader.ttl_ms));
        }
        if !(1..=5).contains(&self.log.replicas) {
            return wrong(format!("log.replicas is {}; it must be from 1 to 5", self.log.replicas));
        }
        if !(1024..=512 * 1024).contains(&self.log.commit_bytes) {
            return wrong(format!("log.commit_bytes is {}; it must be from 1024 to 524288", self.log.commit_bytes));
        }
        if self.log.trim && self.log.snapshot_records == 0 {
            return wrong(
                "log.trim is on and log.snapshot_records is 0: without snapshots nothing can be removed".to_owned(),
            );
        }
        if !(0.0..=1.0).contains(&self.telemetry.sample_ratio) {
            return wrong(format!("telemetry.sample_ratio is {}; it must be from 0 to 1", self.telemetry.sample_ratio));
        }
        if self.messages.max_age_ms < 1000 || self.messages.max_bytes < 1024 * 1024 {
            return wrong(format!(
                "messages.max_age_ms is {}, messages.max_bytes is {}: they must be at least 1000 and 1048576",
                self.messages.max_age_ms, self.messages.max_bytes
            ));
        }
        for (name, pool) in &self.pools {
            if let Err(error) = pool.check() {
                return wrong(format!("pools.{name:?}: {error}"));
            }
            if let Some(parent) = pool.parent.as_ref().filter(|parent| !self.pools.contains_key(*parent)) {
                return wrong(format!("pools.{name:?} is a part of {parent}, which is not among the pools"));
            }
        }
        if self.placement.ageing_ms == 0 {
            return wrong("placement.ageing_ms is 0; it must be at least 1".to_owned());
        }
        let rate = self.placement.learning_rate;
        if !(1e-6..=1.0).contains(&rate) {
            return wrong(format!("placement.learning_rate is {rate}; it must be from 0.000001 to 1"));
        }
        let wrong_weight = self.placement.tenants.iter().find(|(_, weight)| !(1..=1000).contains(*weight));
        if let Some((tenant, weight)) = wrong_weight {
            return wrong(format!("placement.tenants.{tenant:?} is {weight}; a weight must be from 1 to 1000"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use baton_protocol::PoolKind;

    use super::*;

    fn load(text: &str, variables: &[(&str, &str)]) -> Result<Settings, SettingsError> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("baton.toml");
        std::fs::write(&file, text).unwrap();
        Settings::load_from(Some(&file), variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn g7_the_environment_is_over_the_file_is_over_the_defaults() {
        let settings = load(
            "[agents]\nlease_ms = 7000\n[log]\nreplicas = 3\n[workflows]\nmax_live_runs = 20\n",
            &[
                ("BATON_AGENTS__LEASE_MS", "9000"),
                ("BATON_WORKFLOWS__MAX_LIVE_RUNS", "10"),
                ("BATON_HTTP__ALLOWED_HOSTS", "a,b"),
                ("BATON_PLACEMENT__LEARNING_RATE", "0.25"),
                ("BATON_PLACEMENT__DEADLINES_FIRST", "true"),
                ("BATON_SERVER", "nats://x"),
                ("OTHER__X", "1"),
            ],
        )
        .unwrap();
        assert_eq!((settings.agents.lease_ms, settings.log.replicas), (9000, 3));
        assert_eq!(settings.workflows.max_live_runs, 10);
        assert_eq!(
            (settings.placement.learning_rate_millionths(), settings.placement.deadlines_first),
            (250_000, true)
        );
        assert_eq!(settings.http.listen, HttpSettings::default().listen);
        assert_eq!(settings.http.allowed_hosts, ["a", "b"]);
    }

    #[test]
    fn r3_pools_are_declared_by_name() {
        let text = r#"
            [pools.gpu]
            kind = "held"
            size = 4
            [pools."model:gpt-4.1/tokens_per_minute"]
            kind = "refilled"
            size = 90000
            refill = { amount = 90000, every_ms = 60000 }
            [pools.tokens]
            kind = "consumed"
            size = "2.5"
            parent = "all_tokens"
            [pools.all_tokens]
            kind = "consumed"
            size = 10
            [pools."report.md"]
            kind = "held"
        "#;
        let pools = load(text, &[]).unwrap().pools;
        let pool = |name: &str| pools[&ResourceName::new(name).unwrap()].clone();
        assert_eq!(pool("gpu"), Pool::new(PoolKind::Held, 4));
        assert_eq!(pool("model:gpt-4.1/tokens_per_minute"), Pool::refilled(90_000, 60_000));
        assert_eq!(pool("tokens").parent, Some(ResourceName::new("all_tokens").unwrap()));
        assert_eq!(pool("tokens").size.unwrap().to_string(), "2.5");
        assert!(pool("report.md").is_lock());
        for (text, says) in [
            ("[pools.gpu]\nkind = \"held\"\nsice = 4\n", "sice"),
            ("[pools.gpu]\nkind = \"consumed\"\n", "needs a size"),
            ("[pools.\"a//b\"]\nkind = \"held\"\n", "a//b"),
            ("[pools.a]\nkind = \"consumed\"\nsize = 1\nparent = \"b\"\n", "is a part of b"),
        ] {
            let error = load(text, &[]).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn r11_what_is_secret_of_a_webhook_is_not_shown() {
        let text = "[[alerts.webhooks]]\nurl = \"https://ann:pass@hooks.example/T0/B1?token=x\"\nsecret = \"s3cret\"\n";
        let settings = load(text, &[]).unwrap();
        let webhook = &settings.alerts.webhooks[0];
        assert_eq!((webhook.name(), webhook.secret.as_deref()), ("hooks.example", Some("s3cret")));
        let shown = format!("{settings:?}");
        assert!(shown.contains("hooks.example"), "{shown}");
        for secret in ["s3cret", "pass", "T0", "token"] {
            assert!(!shown.contains(secret), "{shown}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, says) in [
            ("[agents]\nlease = 1\n", "lease"),
            ("[agents]\nlease_ms = 100\n", "two heartbeats"),
            ("[log]\nreplicas = 0\n", "log.replicas is 0"),
            ("[log]\ntrim = true\nsnapshot_records = 0\n", "log.snapshot_records is 0"),
            ("[workflows]\nmax_live_runs = 0\n", "workflows.max_live_runs is 0"),
            ("[breakers]\nwindow = 65\n", "breakers.window is 65"),
            ("[breakers]\nmin_tasks = 21\n", "breakers.min_tasks is 21"),
            ("[breakers]\nprobes = 0\n", "breakers.probes is 0"),
            ("[[alerts.webhooks]]\nurl = \"ftp://x\"\n", "must begin with http://"),
            ("[[alerts.webhooks]]\nurl = \"http://x\"\nseverity = \"urgent\"\n", "urgent"),
            ("[breakers]\nmax_open_ms = 1\n", "breakers.max_open_ms is 1"),
            ("[pressure.critical]\nbelow = -1\n", "pressure.critical.below is -1"),
            ("[pressure.elevated]\nqueues = 1\n", "queues"),
            ("[workflows]\nkeep_ended = 10001\n", "workflows.keep_ended is 10001"),
            ("[workflows]\nkeep_ended_ms = 5000\n", "workflows.keep_ended_ms is 5000"),
            ("[placement]\nlearning_rate = 0\n", "placement.learning_rate is 0"),
            ("[placement.tenants]\nann = 0\n", "placement.tenants.\"ann\" is 0"),
            ("[placement.tenants]\nann = 1001\n", "placement.tenants.\"ann\" is 1001"),
            ("[placement]\nlearning_rate = 1.5\n", "placement.learning_rate is 1.5"),
            ("[log\n", "baton.toml"),
        ] {
            let error = load(text, &[]).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
