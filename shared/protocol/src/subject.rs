//! Every subject, built and parsed here and nowhere else.
//!
//! | subject | who publishes | what |
//! |---|---|---|
//! | `baton.log.SHARD.SERVICE` | the leading instance of the service | commits ([`crate::record`]), kept in the stream [`log_stream`] |
//! | `baton.req.SERVICE.ENDPOINT` | anyone | requests ([`crate::request`]), answered |
//! | `baton.agent.AGENT.VERB` | the agent | `register`, `heartbeat`, `report`, `reports`, `decline`, `leave` (requests) and `progress` (a publication) |
//! | `baton.to.AGENT.VERB` | the resource-manager | `assign`, `assignments`, `cancel` |
//! | `baton.event.run.RUN.KIND` | the service that owns the record | what happened to a run, also `progress` |
//! | `baton.event.agent.AGENT.KIND` | the resource-manager | what happened to an agent |
//! | `baton.event.workflow.WORKFLOW.KIND` | the workflow-manager | `workflow_registered` |
//! | `baton.event.service.SERVICE.KIND` | that service | the rest |
//! | `baton.ping.SERVICE.INSTANCE` | instances | is that instance connected? |
//! | `baton.status.SERVICE` | anyone | request; every instance answers an [`InstanceStatus`](crate::request::InstanceStatus) |
//! | `baton.metrics.SERVICE` | anyone | request; every instance answers its metrics in Prometheus' text format |
//! | `baton.aside.SERVICE` | services | requests that could not be read, kept in the stream [`ASIDE_STREAM`] |
//!
//! The agent's id is a token of every subject that an agent may use: an agent `a` publishes to `baton.agent.a.>` and
//! subscribes to `baton.to.a.>`, and the broker's permissions can say just that.

use std::fmt;

use crate::id::{RunId, Service};
use crate::name::AgentId;
use crate::record::Topic;

/// The log that a run's records are on. There is one so far; runs will be hashed onto several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Shard(pub u16);

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The stream of requests that could not be read.
pub const ASIDE_STREAM: &str = "BATON_ASIDE";

/// The key-value bucket in which instances settle who tries to lead.
pub const LEADERS_BUCKET: &str = "baton-leaders";

/// The key-value bucket of finished runs, one document each.
pub const RUNS_BUCKET: &str = "baton-runs";

/// The stream that keeps [`RUNS_BUCKET`].
#[must_use]
pub fn runs_stream() -> (String, String) {
    (format!("KV_{RUNS_BUCKET}"), format!("$KV.{RUNS_BUCKET}.>"))
}

/// The object store of snapshots.
pub const SNAPSHOTS_BUCKET: &str = "baton-snapshots";

/// The subjects of [`ASIDE_STREAM`].
pub const ASIDE_SUBJECTS: &str = "baton.aside.*";

/// The name of a shard's log stream.
#[must_use]
pub fn log_stream(shard: Shard) -> String {
    format!("BATON_LOG_{shard}")
}

/// The subjects of a shard's log stream.
#[must_use]
pub fn log_subjects(shard: Shard) -> String {
    format!("baton.log.{shard}.*")
}

/// The subject of a service's commits.
#[must_use]
pub fn log(shard: Shard, service: Service) -> String {
    format!("baton.log.{shard}.{service}")
}

/// Whose commits are on that subject.
#[must_use]
pub fn parse_log(subject: &str) -> Option<(Shard, Service)> {
    let (shard, service) = subject.strip_prefix("baton.log.")?.split_once('.')?;
    Some((Shard(shard.parse().ok()?), service.parse().ok()?))
}

/// The subject of a request to a service.
#[must_use]
pub fn request(service: Service, endpoint: &str) -> String {
    format!("baton.req.{service}.{endpoint}")
}

/// What an agent says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AgentVerb {
    /// "I am here": a request to the resource-manager.
    Register,
    /// "I am still here, and hold these": a request to the resource-manager.
    Heartbeat,
    /// "It ended so": a request to the workflow-manager.
    Report,
    /// "They ended so": a request to the workflow-manager.
    Reports,
    /// "I can not take that": a request to the resource-manager.
    Decline,
    /// "I am going": a request to the resource-manager.
    Leave,
    /// "I am this far": a publication, to the resource-manager.
    Progress,
}

impl AgentVerb {
    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Register => "register",
            Self::Heartbeat => "heartbeat",
            Self::Report => "report",
            Self::Reports => "reports",
            Self::Decline => "decline",
            Self::Leave => "leave",
            Self::Progress => "progress",
        }
    }
}

/// The subject on which an agent says something.
#[must_use]
pub fn agent(agent: &AgentId, verb: AgentVerb) -> String {
    format!("baton.agent.{agent}.{}", verb.as_str())
}

/// The pattern of what all agents say with a verb.
#[must_use]
pub fn agents(verb: AgentVerb) -> String {
    format!("baton.agent.*.{}", verb.as_str())
}

/// Which agent speaks on that subject. The error says what is wrong with the id.
pub fn parse_agent(subject: &str) -> Result<AgentId, crate::name::NameError> {
    AgentId::new(subject.split('.').nth(2).unwrap_or_default())
}

/// The subject on which an agent is given work.
#[must_use]
pub fn assign(agent: &AgentId) -> String {
    format!("baton.to.{agent}.assign")
}

/// The subject on which an agent that takes several at a time is given work.
#[must_use]
pub fn assignments(agent: &AgentId) -> String {
    format!("baton.to.{agent}.assignments")
}

/// The subject on which an agent is told to drop a lease.
#[must_use]
pub fn cancel(agent: &AgentId) -> String {
    format!("baton.to.{agent}.cancel")
}

/// All that an agent says.
#[must_use]
pub fn of_agent(agent: &AgentId) -> String {
    format!("baton.agent.{agent}.>")
}

/// All that is meant for an agent.
#[must_use]
pub fn to_agent(agent: &AgentId) -> String {
    format!("baton.to.{agent}.>")
}

/// The subject of a record's event.
#[must_use]
pub fn event(topic: Topic<'_>, kind: &str) -> String {
    match topic {
        Topic::Run(run) => format!("baton.event.run.{run}.{kind}"),
        Topic::Agent(agent) => format!("baton.event.agent.{agent}.{kind}"),
        Topic::Workflow(workflow) => format!("baton.event.workflow.{workflow}.{kind}"),
        Topic::Service(service) => format!("baton.event.service.{service}.{kind}"),
    }
}

/// All events of a run.
#[must_use]
pub fn run_events(run: RunId) -> String {
    format!("baton.event.run.{run}.>")
}

/// All events.
pub const EVENTS: &str = "baton.event.>";

/// The subject on which an instance says that it is connected.
#[must_use]
pub fn ping(service: Service, instance: &str) -> String {
    format!("baton.ping.{service}.{instance}")
}

/// The subject on which every instance of a service answers how it stands.
#[must_use]
pub fn status(service: Service) -> String {
    format!("baton.status.{service}")
}

/// The subject on which every instance of a service answers its metrics.
#[must_use]
pub fn metrics(service: Service) -> String {
    format!("baton.metrics.{service}")
}

/// The subject on which a service sets aside what it can not read.
#[must_use]
pub fn aside(service: Service) -> String {
    format!("baton.aside.{service}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_can_be_parsed() {
        for service in Service::ALL {
            assert_eq!(parse_log(&log(Shard(3), service)), Some((Shard(3), service)));
        }
        for wrong in ["baton.log.0", "baton.log.x.optimizer", "baton.log.0.nobody", "other.log.0.optimizer"] {
            assert_eq!(parse_log(wrong), None);
        }
        let ann = AgentId::new("ann").unwrap();
        for verb in [AgentVerb::Register, AgentVerb::Heartbeat, AgentVerb::Report, AgentVerb::Progress] {
            assert_eq!(parse_agent(&agent(&ann, verb)).unwrap(), ann);
        }
        assert!(parse_agent("baton.agent.Ann.report").unwrap_err().to_string().contains("\"Ann\""));
    }

    #[test]
    fn an_agent_s_id_is_a_token_of_every_subject_it_may_use() {
        let ann = AgentId::new("ann").unwrap();
        for subject in [assign(&ann), assignments(&ann), cancel(&ann), to_agent(&ann), agent(&ann, AgentVerb::Report)] {
            assert!(subject.split('.').any(|token| token == "ann"), "{subject}");
        }
    }
}
