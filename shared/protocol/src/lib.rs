//! Baton's words: everything that crosses the wire, and nothing else.
//!
//! Ids, subjects, headers, records, requests, rejections and their JSON Schemas. There is no I/O in this crate, no
//! state, no view, no clock: two services share words, never memory.
//!
//! # Glossary
//!
//! | word | meaning |
//! |---|---|
//! | **workflow** | a named, versioned definition: stages and what each depends on |
//! | **run** | one execution of a workflow on one input; has exactly one end |
//! | **stage** | one node of a workflow; done by one agent |
//! | **task** | a stage of one run, at one attempt: `RUN/STAGE/ATTEMPT` |
//! | **attempt** | one try at a stage, counted from 1 |
//! | **agent** | a process that does tasks; it has an id, a type, capabilities and resources |
//! | **session** | one life of an agent's process: a restarted agent has a new one |
//! | **capability** | what an agent can do, with metadata |
//! | **lease** | the right of one agent to do one task, and what it holds for it; its id is a record number |
//! | **pool** | something that everybody draws from who asks: held, refilled or consumed |
//! | **acquisition** | a lease on pools without a task; its id, a record number, is its fencing token |
//! | **lock** | a held pool without a size: shared by any number, or had by one alone |
//! | **placement** | the choice of an agent for a task |
//! | **log** | the JetStream stream that holds every fact of coordination |
//! | **record** | one fact, in the past tense, appended by the one service that owns it |
//! | **number** | a record's place in its service's own sequence, from 1; also the fencing token of what it granted |
//! | **turn** | the records that one input (a request, a record of another service, a timer) led a machine to emit |
//! | **commit** | one message of the log: the turns decided since the last one, all or nothing |
//! | **position** | a record's place in the log: the message's sequence and the index within it, `SEQ.INDEX` |
//! | **term** | one reign of one instance of a service; it only grows |
//! | **request** | something asked of a service, in the imperative; answered, or rejected |
//! | **rejection** | a refusal with a stable code |
//! | **report** | an agent's request that ends its task |
//! | **message** | what one agent says to another, to all, or to a topic; only its readers know what it means |
//! | **mail** | a message that is stored before it is sent on, and handled at least once |
//! | **event** | one record as observers see it, on core NATS |
//!
//! # What a plain NATS client needs
//!
//! [`subject`] lists every subject. An agent [registers](request::RegisterAgent), sends
//! [heartbeats](request::Heartbeat), receives [assignments](request::Assignment) on its own subject and
//! [reports](request::Report) how they ended. The schemas of all of these are in `shared/protocol/schemas/`.
//!
//! # Versions
//!
//! Readers ignore fields they do not know, so that new fields may be added at any time. A field is never given another
//! meaning. What can not be added compatibly gets a new name or a new [`record::FORMAT`].

pub mod alert;
pub mod amount;
pub mod breaker;
pub mod budget;
pub mod definition;
pub mod handoff;
pub mod header;
pub mod id;
pub mod json;
pub mod message;
pub mod name;
pub mod nearest;
pub mod object;
pub mod pool;
pub mod post;
pub mod pressure;
pub mod record;
pub mod rejection;
pub mod request;
pub mod requirement;
pub mod run;
pub mod schedule;
pub mod schema;
pub mod subject;
mod text;
pub mod topic;
pub mod trace;
pub mod trigger;
pub mod why;

pub use amount::{Amount, Money, Resources};
pub use budget::{AtLimit, Budget, Measure};
pub use definition::{Definition, RetryPolicy, StageDefinition};
pub use id::{LeaseId, Millis, Number, Part, Position, RunId, Service, TaskId};
pub use json::Json;
pub use name::{
    AgentId, Capability, EventName, NameError, ResourceName, ScheduleName, SignalName, StageName, TriggerName,
    WorkflowName,
};
pub use object::{ObjectName, ObjectRef};
pub use pool::{Balance, Holder, Pool, PoolKind, Refill, Take, Takes};
pub use record::{Commit, OptimizerRecord, ResourceRecord, WorkflowRecord};
pub use rejection::{Code, Rejection};
pub use requirement::{Metadata, Requirements};
pub use schedule::Schedule;
pub use topic::{TopicFilter, TopicName};
pub use trigger::Trigger;
