//! Every subject, built and parsed here and nowhere else.
//!
//! | subject | who publishes | what |
//! |---|---|---|
//! | `baton.log.SHARD.SERVICE` | the leading instance of the service | commits ([`crate::record`]), kept in the stream [`log_stream`] |
//! | `baton.req.SERVICE.ENDPOINT` | anyone | requests ([`crate::request`]), answered |
//! | `baton.agent.AGENT.VERB` | the agent | `register`, `heartbeat`, `report`, `reports`, `decline`, `leave`, `acquire`, `renew`, `release`, `raise` (requests) and `progress` (a publication) |
//! | `baton.agent.AGENT.say.TO` | the agent | a message for one other agent, heard if that one listens |
//! | `baton.agent.AGENT.mail.TO` | the agent | the same, guaranteed: kept in the stream [`MESSAGES_STREAM`] |
//! | `baton.agent.AGENT.all` | the agent | a message for all agents |
//! | `baton.agent.AGENT.topic.TOPIC` | the agent | a message for who is interested in the topic |
//! | `baton.agent.AGENT.post` | the agent | what it asks of the post office ([`crate::post`]) |
//! | `baton.to.AGENT.VERB` | the resource-manager | `assign`, `assignments`, `cancel`, `restart` |
//! | `baton.to.AGENT.mail.FROM` | the broker | each guaranteed message, once it is stored |
//! | `baton.to.AGENT.post.WHAT.TOKEN` | the broker, asked by the post office | `fetch`: stored messages again; `check`: the last one of each sender |
//! | `baton.event.run.RUN.KIND` | the service that owns the record | what happened to a run, also `progress` |
//! | `baton.event.agent.AGENT.KIND` | the resource-manager | what happened to an agent |
//! | `baton.event.workflow.WORKFLOW.KIND` | the workflow-manager | `workflow_registered`, and what happened to its schedules and triggers |
//! | `baton.event.pool.POOL.KIND` | the resource-manager | what happened to a pool; of a lease on several, the first by name. A dot in a pool's name begins another token |
//! | `baton.event.alert.SEVERITY.ALERT.KIND` | the resource-manager | an alert was raised, cleared, acknowledged ([`crate::alert`]) |
//! | `baton.event.service.SERVICE.KIND` | that service | the rest |
//! | `baton.ping.SERVICE.INSTANCE` | instances | is that instance connected? |
//! | `baton.status.SERVICE` | anyone | request; every instance answers an [`InstanceStatus`](crate::request::InstanceStatus) |
//! | `baton.metrics.SERVICE` | anyone | request; every instance answers its metrics in Prometheus' text format |
//! | `baton.aside.SERVICE` | services | requests that could not be read, kept in the stream [`ASIDE_STREAM`] |
//!
//! The agent's id is a token of every subject that an agent may use: an agent `a` publishes to `baton.agent.a.>` only, so
//! that the broker's permissions pin who speaks. It subscribes to `baton.to.a.>`, and to what other agents say:
//! `baton.agent.*.say.a`, `baton.agent.*.all`, `baton.agent.*.topic.>`.

use std::fmt;

use crate::alert::AlertSeverity;
use crate::id::{RunId, Service};
use crate::name::AgentId;
use crate::record::Topic;
use crate::topic::{TopicFilter, TopicName};

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

/// The object store of what is too large for a message: see [`crate::object`].
pub const OBJECTS_BUCKET: &str = "baton-objects";

/// The object store of snapshots.
pub const SNAPSHOTS_BUCKET: &str = "baton-snapshots";

/// The stream of guaranteed messages from agent to agent.
pub const MESSAGES_STREAM: &str = "BATON_MESSAGES";

/// The subjects of [`MESSAGES_STREAM`].
pub const MESSAGES_SUBJECTS: &str = "baton.agent.*.mail.*";

/// Where the broker publishes a message of [`MESSAGES_STREAM`] once it is stored, as the stream's settings say it.
pub const MESSAGES_REPUBLISHED: &str = "baton.to.{{wildcard(2)}}.mail.{{wildcard(1)}}";

/// The key-value bucket of how far each agent has handled its guaranteed messages.
pub const CURSORS_BUCKET: &str = "baton-cursors";

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
    /// "I want this": a request to the resource-manager.
    Acquire,
    /// "I want it for longer": a request to the resource-manager.
    Renew,
    /// "I need it no more": a request to the resource-manager.
    Release,
    /// "That one should go on with it": a request to the resource-manager.
    Handoff,
    /// "I take it", or not: a request to the resource-manager.
    Acknowledge,
    /// "I am this far": a publication, to the resource-manager.
    Progress,
    /// "This happened": a request to the workflow-manager.
    Raise,
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
            Self::Acquire => "acquire",
            Self::Renew => "renew",
            Self::Release => "release",
            Self::Handoff => "handoff",
            Self::Acknowledge => "acknowledge",
            Self::Progress => "progress",
            Self::Raise => "raise",
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

/// The subject on which an agent is asked to begin anew.
#[must_use]
pub fn restart(agent: &AgentId) -> String {
    format!("baton.to.{agent}.restart")
}

/// The subject on which an agent is offered a task of another one.
#[must_use]
pub fn handoff(agent: &AgentId) -> String {
    format!("baton.to.{agent}.handoff")
}

/// The subject on which an agent is told what became of a task that it offered.
#[must_use]
pub fn handed(agent: &AgentId) -> String {
    format!("baton.to.{agent}.handed")
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

/// What the services tell an agent: [`assign`], [`assignments`], [`cancel`], [`restart`], [`handoff`] and [`handed`], but no
/// messages of other agents.
#[must_use]
pub fn work_of(agent: &AgentId) -> String {
    format!("baton.to.{agent}.*")
}

/// The subject on which an agent says something to another one.
#[must_use]
pub fn say(from: &AgentId, to: &AgentId) -> String {
    format!("baton.agent.{from}.say.{to}")
}

/// What anyone says to an agent.
#[must_use]
pub fn said_to(to: &AgentId) -> String {
    format!("baton.agent.*.say.{to}")
}

/// What anyone says to any one agent.
pub const SAID: &str = "baton.agent.*.say.*";

/// The subject on which an agent sends a guaranteed message to another one.
#[must_use]
pub fn mail(from: &AgentId, to: &AgentId) -> String {
    format!("baton.agent.{from}.mail.{to}")
}

/// The guaranteed messages that anyone sends to an agent, as they are sent and stored.
#[must_use]
pub fn mail_to(to: &AgentId) -> String {
    format!("baton.agent.*.mail.{to}")
}

/// The guaranteed messages to an agent, as the broker publishes them once they are stored.
#[must_use]
pub fn stored_mail(to: &AgentId) -> String {
    format!("baton.to.{to}.mail.*")
}

/// The subject on which an agent says something to all.
#[must_use]
pub fn to_all(from: &AgentId) -> String {
    format!("baton.agent.{from}.all")
}

/// What anyone says to all.
pub const SAID_TO_ALL: &str = "baton.agent.*.all";

/// The subject on which an agent publishes to a topic.
#[must_use]
pub fn topic(from: &AgentId, topic: &TopicName) -> String {
    format!("baton.agent.{from}.topic.{topic}")
}

/// What anyone publishes to topics that match.
#[must_use]
pub fn topics(filter: &TopicFilter) -> String {
    format!("baton.agent.*.topic.{filter}")
}

/// The subject on which an agent asks the post office.
#[must_use]
pub fn post(agent: &AgentId) -> String {
    format!("baton.agent.{agent}.post")
}

/// What any agent asks the post office.
pub const POST: &str = "baton.agent.*.post";

/// The subject on which an agent is given the stored messages that it asked for.
#[must_use]
pub fn fetched(agent: &AgentId, token: u64) -> String {
    format!("baton.to.{agent}.post.fetch.{token}")
}

/// The subject on which an agent is given the last message of each sender that it asked for.
#[must_use]
pub fn checked(agent: &AgentId, token: u64) -> String {
    format!("baton.to.{agent}.post.check.{token}")
}

/// All that the post office has the broker send to an agent.
#[must_use]
pub fn from_post(agent: &AgentId) -> String {
    format!("baton.to.{agent}.post.>")
}

/// What came from the post office: to which question, with which token.
#[must_use]
pub fn parse_from_post(subject: &str) -> Option<(&str, u64)> {
    let mut tokens = subject.strip_prefix("baton.to.")?.split('.').skip(1);
    let (post, what, token) = (tokens.next()?, tokens.next()?, tokens.next()?);
    (post == "post" && tokens.next().is_none()).then_some((what, token.parse().ok()?))
}

/// How a message of an agent found its reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said<'a> {
    /// It was meant for the reader.
    Direct,
    /// It was meant for the reader, and is stored.
    Mail,
    /// It was meant for all.
    ToAll,
    /// It was published to this topic.
    Topic(&'a str),
}

/// Who sent a message and how, told by the subject on which an agent said it (the broker pins that one) or on which the
/// broker publishes it once it is stored.
#[must_use]
pub fn parse_said(subject: &str) -> Option<(&str, Said<'_>)> {
    if let Some(rest) = subject.strip_prefix("baton.agent.") {
        let (from, rest) = rest.split_once('.')?;
        let (verb, rest) = rest.split_once('.').unwrap_or((rest, ""));
        let said = match verb {
            "say" => Said::Direct,
            "mail" => Said::Mail,
            "all" => Said::ToAll,
            "topic" => Said::Topic(rest),
            _ => return None,
        };
        return Some((from, said));
    }
    let (_, rest) = subject.strip_prefix("baton.to.")?.split_once('.')?;
    Some((rest.strip_prefix("mail.")?, Said::Mail))
}

/// The broker's own subject for reading a stream's messages without a consumer.
#[must_use]
pub fn direct_get(stream: &str) -> String {
    format!("$JS.API.DIRECT.GET.{stream}")
}

/// The subject of a record's event.
#[must_use]
pub fn event(topic: Topic<'_>, kind: &str) -> String {
    match topic {
        Topic::Run(run) => format!("baton.event.run.{run}.{kind}"),
        Topic::Agent(agent) => format!("baton.event.agent.{agent}.{kind}"),
        Topic::Workflow(workflow) => format!("baton.event.workflow.{workflow}.{kind}"),
        Topic::Pool(pool) => format!("baton.event.pool.{pool}.{kind}"),
        Topic::Alert(severity, alert) => format!("baton.event.alert.{severity}.{alert}.{kind}"),
        Topic::Service(service) => format!("baton.event.service.{service}.{kind}"),
    }
}

/// All events of a run.
#[must_use]
pub fn run_events(run: RunId) -> String {
    format!("baton.event.run.{run}.>")
}

/// All events of alerts.
pub const ALERTS: &str = "baton.event.alert.>";

/// All events of agents.
pub const AGENT_EVENTS: &str = "baton.event.agent.>";

/// All events of pools.
pub const POOL_EVENTS: &str = "baton.event.pool.>";

/// All events of a kind, of all runs.
#[must_use]
pub fn events_of_runs(kind: &str) -> String {
    format!("baton.event.run.*.{kind}")
}

/// All events of a service that are of nothing else.
#[must_use]
pub fn events_of_service(service: Service) -> String {
    format!("baton.event.service.{service}.>")
}

/// How much the alert matters that an event is about.
#[must_use]
pub fn severity_of(subject: &str) -> Option<AlertSeverity> {
    subject.strip_prefix("baton.event.alert.")?.split('.').next()?.parse().ok()
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
    fn who_says_something_and_how_is_in_the_subject() {
        let (ann, bob) = (AgentId::new("ann").unwrap(), AgentId::new("bob").unwrap());
        let news: TopicName = "news.today".parse().unwrap();
        assert_eq!(parse_said(&say(&ann, &bob)), Some(("ann", Said::Direct)));
        assert_eq!(parse_said(&mail(&ann, &bob)), Some(("ann", Said::Mail)));
        assert_eq!(parse_said(&to_all(&ann)), Some(("ann", Said::ToAll)));
        assert_eq!(parse_said(&topic(&ann, &news)), Some(("ann", Said::Topic("news.today"))));
        assert_eq!(parse_said("baton.to.bob.mail.ann"), Some(("ann", Said::Mail)));
        for other in [agent(&ann, AgentVerb::Report), assign(&bob), post(&ann), "baton.event.x".to_owned()] {
            assert_eq!(parse_said(&other), None, "{other}");
        }
        assert_eq!(parse_from_post(&fetched(&bob, 7)), Some(("fetch", 7)));
        assert_eq!(parse_from_post(&checked(&bob, 8)), Some(("check", 8)));
        assert_eq!(parse_from_post("baton.to.bob.assign"), None);
    }

    #[test]
    fn an_agent_s_id_is_a_token_of_every_subject_it_may_use() {
        let ann = AgentId::new("ann").unwrap();
        for subject in [assign(&ann), assignments(&ann), cancel(&ann), to_agent(&ann), agent(&ann, AgentVerb::Report)] {
            assert!(subject.split('.').any(|token| token == "ann"), "{subject}");
        }
    }
}
