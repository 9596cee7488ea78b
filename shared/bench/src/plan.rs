//! What is to be measured.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use baton_broker::Durability;

/// What is done while it is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Runs of four stages in a row, each done by an agent of its own.
    Article,
    /// Runs of one stage, then a hundred side by side, then one.
    Fanout,
    /// Runs that are accepted, and that nobody works on.
    Submit,
    /// Messages from one agent to another, guaranteed and not.
    Messages,
    /// Agents that are registered and have nothing to do.
    Agents,
    /// Leases on pools, acquired and released, while agents send heartbeats; and bare requests beside them.
    Leases,
    /// The bare broker, with the same hops as an article.
    Floor,
}

impl Work {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Article, Self::Fanout, Self::Submit, Self::Messages, Self::Agents, Self::Leases, Self::Floor];

    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Article => "article",
            Self::Fanout => "fanout",
            Self::Submit => "submit",
            Self::Messages => "messages",
            Self::Agents => "agents",
            Self::Leases => "leases",
            Self::Floor => "floor",
        }
    }

    /// How many stages a run of it has.
    #[must_use]
    pub fn stages(self) -> u64 {
        match self {
            Self::Article | Self::Floor => 4,
            Self::Fanout => 102,
            Self::Submit => 1,
            Self::Messages | Self::Agents | Self::Leases => 0,
        }
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// How many processes the services are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Processes {
    /// All in one, as `baton up` runs them.
    #[default]
    One,
    /// One each, as a deployment runs them.
    Many,
}

impl Processes {
    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::One => "one",
            Self::Many => "many",
        }
    }
}

impl FromStr for Processes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "one" => Ok(Self::One),
            "many" => Ok(Self::Many),
            _ => Err(format!("{text:?} is no number of processes; there are `one` and `many`")),
        }
    }
}

/// The Baton that is measured.
#[derive(Debug, Clone)]
pub struct Setup {
    /// What an acknowledgement of the broker outlives.
    pub durability: Durability,
    /// How many processes the services are.
    pub processes: Processes,
    /// Which part of the traces is kept.
    pub sample: f64,
    /// A broker that runs already, with its services; then only agents and load are started.
    pub server: Option<String>,
    /// Never fetch a nats-server.
    pub offline: bool,
    /// The program that services and agents are started with: `baton` itself.
    pub program: PathBuf,
    /// Where the broker's data lies; a directory that is gone afterwards if none is given. Speed depends on the disk.
    pub data: Option<PathBuf>,
}

impl Setup {
    /// What an acknowledgement outlives, as it is written.
    #[must_use]
    pub fn durability(&self) -> &'static str {
        match self.durability {
            Durability::Process => "process",
            Durability::Power => "power",
        }
    }
}

/// A measurement to be made.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What is done.
    pub work: Work,
    /// How many runs are under way at a time.
    pub inflight: usize,
    /// So many runs a second are asked for instead, whatever becomes of them.
    pub rate: Option<f64>,
    /// How long is measured, at the least.
    pub seconds: Duration,
    /// How long is run before that.
    pub warm_up: Duration,
    /// How many agents there are.
    pub agents: usize,
    /// How many runs wait while it is measured, that nobody works on.
    pub live: usize,
    /// Whether the bare broker is measured too, in the same world.
    pub floor: bool,
    /// How often all of it is done.
    pub repeat: usize,
    /// With which Baton.
    pub setup: Setup,
}

impl Plan {
    /// How many tasks an agent does at a time: enough that no run waits for a slot.
    #[must_use]
    pub fn slots(&self) -> usize {
        let wide = match self.work {
            Work::Fanout => 100,
            _ => 1,
        };
        let tasks = self.inflight.max(self.rate.map_or(0, |rate| rate as usize / 10)) * wide;
        let each = self.agents / self.types().len();
        tasks.div_ceil(each.max(1)).clamp(1, 100_000)
    }

    /// What the agents are called for.
    #[must_use]
    pub fn types(&self) -> &'static [&'static str] {
        &["bench-a", "bench-b", "bench-c", "bench-d"]
    }
}
