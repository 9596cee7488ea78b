//! Ids and numbers that Baton gives.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Deserializer;
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::name::StageName;
use crate::text::{self, Short};

/// Milliseconds since 1970-01-01T00:00:00Z, or a span of them where the name says so.
pub type Millis = u64;

/// A record's number in its service's own sequence, from 1. It only grows; it is known when the record is emitted.
pub type Number = u64;

/// The four services.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Service {
    /// What may run when?
    WorkflowManager,
    /// Who holds what?
    ResourceManager,
    /// Who should do it?
    Optimizer,
    /// Who may come in?
    Gateway,
}

impl Service {
    /// Every service that writes the log.
    pub const WRITERS: [Self; 3] = [Self::WorkflowManager, Self::ResourceManager, Self::Optimizer];

    /// All four.
    pub const ALL: [Self; 4] = [Self::WorkflowManager, Self::ResourceManager, Self::Optimizer, Self::Gateway];

    /// The name used in subjects, configuration and output.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::WorkflowManager => "workflow-manager",
            Self::ResourceManager => "resource-manager",
            Self::Optimizer => "optimizer",
            Self::Gateway => "gateway",
        }
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Service {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        Self::ALL.into_iter().find(|s| s.as_str() == text).ok_or_else(|| {
            IdError::new("service", text, "one of workflow-manager, resource-manager, optimizer, gateway")
        })
    }
}

/// An id that is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {text:?} is not valid: it must be {rule}")]
pub struct IdError {
    what: &'static str,
    text: String,
    rule: String,
}

impl IdError {
    fn new(what: &'static str, text: &str, rule: impl fmt::Display) -> Self {
        Self { what, text: text.chars().take(160).collect(), rule: rule.to_string() }
    }
}

/// A run's id: a UUIDv7, so that runs sort by their start. It is also the run's trace id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunId(Uuid);

impl RunId {
    /// An id from a UUID that somebody made.
    #[must_use]
    pub fn from_uuid(uuid: Uuid) -> Self {
        Self(uuid)
    }

    /// The id of a run whose starter gave none: the time, and the bits of a hash of what makes the start unique.
    ///
    /// A machine has no randomness; `unique` (a term and a record number) never comes twice. All 74 free bits are
    /// mixed, because samplers of traces look at the low ones.
    #[must_use]
    pub fn derive(at: Millis, unique: u128) -> Self {
        let high = mix((unique >> 64) as u64 ^ at);
        let low = mix(unique as u64 ^ high.rotate_left(17));
        let mut random = [0u8; 10];
        random[..2].copy_from_slice(&high.to_be_bytes()[..2]);
        random[2..].copy_from_slice(&low.to_be_bytes());
        Self(uuid::Builder::from_unix_timestamp_millis(at, &random).into_uuid())
    }

    /// The id as a UUID.
    #[must_use]
    pub fn as_uuid(&self) -> &Uuid {
        &self.0
    }

    /// The id as 128 bits.
    #[must_use]
    pub fn as_u128(&self) -> u128 {
        self.0.as_u128()
    }
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
#[must_use]
pub fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_hyphenated().fmt(f)
    }
}

impl fmt::Debug for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for RunId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        match Uuid::try_parse(text) {
            Ok(uuid) if text.len() == 36 => Ok(Self(uuid)),
            _ => Err(IdError::new(
                "run id",
                text,
                "a UUID in lower case with hyphens, like 0199a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b",
            )),
        }
    }
}

/// A task: a stage of one run at one attempt, written `RUN/STAGE/ATTEMPT`; of a stage that has a task for each item of a
/// list, one item: `RUN/STAGE.ITEM/ATTEMPT`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId {
    /// The run.
    pub run: RunId,
    /// The stage.
    pub stage: StageName,
    /// The item, counted from 0, if the stage has a task for each.
    pub item: Option<u32>,
    /// The attempt, from 1.
    pub attempt: u32,
}

impl TaskId {
    /// What of its run it is an attempt at.
    #[must_use]
    pub fn part(&self) -> Part {
        Part { stage: self.stage.clone(), item: self.item }
    }
}

/// A part of a run that one agent does at a time: a stage, or one item of it. Written `STAGE`, or `STAGE.ITEM`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Part {
    /// The stage.
    pub stage: StageName,
    /// The item, counted from 0, if the stage has a task for each.
    pub item: Option<u32>,
}

impl Part {
    /// Its task at an attempt.
    #[must_use]
    pub fn task(&self, run: RunId, attempt: u32) -> TaskId {
        TaskId { run, stage: self.stage.clone(), item: self.item, attempt }
    }
}

impl From<StageName> for Part {
    fn from(stage: StageName) -> Self {
        Self { stage, item: None }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.item {
            None => f.pad(self.stage.as_str()),
            Some(item) => f.pad(&format!("{}.{item}", self.stage)),
        }
    }
}

impl FromStr for Part {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let (stage, item) = match text.split_once('.') {
            None => (text, None),
            Some((stage, item)) => {
                let number = item.parse().ok().filter(|number: &u32| number.to_string() == item);
                let number =
                    number.ok_or_else(|| IdError::new("part of a run", text, "STAGE or STAGE.ITEM, ITEM a number"))?;
                (stage, Some(number))
            }
        };
        let stage = StageName::new(stage)
            .map_err(|e| IdError::new("part of a run", text, format!("STAGE or STAGE.ITEM: {e}")))?;
        Ok(Self { stage, item })
    }
}

impl Serialize for Part {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.item {
            None => serializer.serialize_str(self.stage.as_str()),
            Some(_) => serializer.collect_str(self),
        }
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.run, self.part(), self.attempt)
    }
}

impl fmt::Debug for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for TaskId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let wrong = |why: String| IdError::new("task id", text, format!("RUN/STAGE/ATTEMPT{why}"));
        let mut parts = text.split('/');
        let (Some(run), Some(part), Some(attempt), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(wrong(String::new()));
        };
        let Part { stage, item } = part.parse().map_err(|e: IdError| wrong(format!(": {e}")))?;
        Ok(Self {
            run: run.parse().map_err(|e: IdError| wrong(format!(": {e}")))?,
            stage,
            item,
            attempt: attempt.parse().ok().filter(|a| *a > 0).ok_or_else(|| wrong(", ATTEMPT counted from 1".into()))?,
        })
    }
}

/// A lease's id: the number of the record that granted it, and so its fencing token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct LeaseId(pub Number);

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A record's place in the log: the sequence of its message in the stream, and its index among the message's records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The message's sequence in the stream, from 1.
    pub seq: u64,
    /// The record's index within the message, from 0.
    pub index: u32,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}.{}", self.seq, self.index))
    }
}

impl FromStr for Position {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        text.split_once('.')
            .and_then(|(seq, index)| Some(Self { seq: seq.parse().ok()?, index: index.parse().ok()? }))
            .ok_or_else(|| IdError::new("position", text, "SEQ.INDEX, like 412.0"))
    }
}

// Ids are in every record, several times: they are written without the machinery of `fmt`.

impl Serialize for RunId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.as_hyphenated().encode_lower(&mut Uuid::encode_buffer()))
    }
}

impl Serialize for TaskId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = Short::<128>::new();
        text.push(self.run.0.as_hyphenated().encode_lower(&mut Uuid::encode_buffer()));
        text.push("/");
        text.push(self.stage.as_str());
        if let Some(item) = self.item {
            text.push(".");
            text.push_number(item.into());
        }
        text.push("/");
        text.push_number(self.attempt.into());
        serializer.serialize_str(text.as_str())
    }
}

impl Serialize for Position {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = Short::<32>::new();
        text.push_number(self.seq);
        text.push(".");
        text.push_number(self.index.into());
        serializer.serialize_str(text.as_str())
    }
}

macro_rules! as_text {
    ($type:ident, $doc:literal, $pattern:literal) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                text::parse(deserializer)
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "pattern": $pattern, "description": $doc })
            }
        }
    };
}

as_text!(RunId, "A run's id: a UUIDv7.", "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$");
as_text!(
    TaskId,
    "A task: RUN/STAGE/ATTEMPT, or RUN/STAGE.ITEM/ATTEMPT where a stage has a task for each item of a list.",
    "^[0-9a-f-]{36}/[a-z0-9][a-z0-9_-]{0,62}([.][0-9]+)?/[1-9][0-9]*$"
);
as_text!(Part, "A part of a run: STAGE, or STAGE.ITEM.", "^[a-z0-9][a-z0-9_-]{0,62}([.][0-9]+)?$");
as_text!(Position, "A record's place in the log: SEQ.INDEX.", "^[0-9]+\\.[0-9]+$");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn task_ids_read_as_they_are_written() {
        let run = RunId::derive(1_763_665_200_000, 7);
        let task = TaskId { run, stage: StageName::new("writing").unwrap(), item: None, attempt: 2 };
        assert_eq!(task.to_string().parse::<TaskId>().unwrap(), task);
        let item = TaskId { item: Some(7), ..task.clone() };
        assert_eq!(item.to_string(), format!("{run}/writing.7/2"));
        assert_eq!(item.to_string().parse::<TaskId>().unwrap(), item);
        for bad in ["writing.", "writing.x", "writing.07", "writing.+1", ".1"] {
            assert!(bad.parse::<Part>().is_err(), "{bad}");
        }
        let longest =
            TaskId { run, stage: StageName::new(&"x".repeat(63)).unwrap(), item: Some(u32::MAX), attempt: u32::MAX };
        for task in [task, longest] {
            assert_eq!(serde_json::to_string(&task).unwrap(), format!("\"{task}\""));
        }
        assert_eq!(serde_json::to_string(&run).unwrap(), format!("\"{run}\""));
        for bad in ["", "a/b", "a/b/1", &format!("{run}/writing/0"), &format!("{run}/Writing/1")] {
            let error = bad.parse::<TaskId>().unwrap_err().to_string();
            assert!(error.contains("RUN/STAGE/ATTEMPT") && error.contains(&format!("{bad:?}")), "{error}");
        }
    }

    #[test]
    fn derived_run_ids_differ_sort_by_time_and_are_v7() {
        let ids: Vec<_> = (0..1000).map(|n| RunId::derive(1_763_665_200_000 + n, (3 << 64) | u128::from(n))).collect();
        assert!(ids.windows(2).all(|w| w[0] < w[1]));
        assert!(ids.iter().all(|id| id.as_uuid().get_version_num() == 7));
        let odd = ids.iter().filter(|id| id.as_u128() & 1 == 1).count();
        assert!((400..600).contains(&odd), "the low bit is not fair: {odd} of 1000");
    }
}
