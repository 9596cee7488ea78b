//! What a definition says of the way through it: conditions, joins, mappings, and what a failure leads to.
//!
//! Expressions are carried as text: only the workflow-manager knows how to read them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserializer, MapAccess, Visitor};
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};

use crate::id::Millis;
use crate::name::{SignalName, StageName};

/// The longest expression, in bytes.
pub const MAX_EXPRESSION_BYTES: usize = 4096;

/// An expression in CEL, the Common Expression Language, at most 4096 bytes long. It may use `input`, `results.STAGE` and
/// `status.STAGE` of the stages before this one; in `output` also `result`, and in `input` and `output` of a stage with `for_each`
/// also `item` and `index`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Expression(pub String);

impl Expression {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Expression {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

/// Which of the stages that a stage depends on must have run, and not been skipped, for it to run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Join {
    /// At least one of them: a stage all of whose dependencies were skipped is skipped too.
    #[default]
    Any,
    /// All of them: one that was skipped makes this one skipped too.
    All,
    /// None of them: it runs when they are over, whether they ran or not.
    Always,
}

impl Join {
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What happens when a stage has failed for good.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// The run fails, and what is under way in it is cancelled.
    #[default]
    Fail,
    /// The run goes on; those who depend on the stage get no result of it.
    Continue,
    /// This stage runs, and what it gives stands for the result of the one that failed. It runs in no other case.
    Fallback(StageName),
}

impl OnFailure {
    /// The stage that runs in its place, if one does.
    #[must_use]
    pub fn fallback(&self) -> Option<&StageName> {
        match self {
            Self::Fallback(name) => Some(name),
            Self::Fail | Self::Continue => None,
        }
    }

    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A stage with a task for each item of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ForEach {
    /// Gives the list, at most 10,000 items; evaluated once, when the stage would begin.
    pub items: Expression,
    /// How many items may be under way at a time; all, unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_parallel: Option<u32>,
    /// How many items may fail for good without the stage failing. The results of those are `null`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub max_failures: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives references")]
fn is_zero(value: &u32) -> bool {
    *value == 0
}

/// The most items that a stage may have a task each for.
pub const MAX_ITEMS: usize = 10_000;

/// A stage that people decide on; no agent has it. Its result says how they decided, and who. It waits for as long
/// as `timeout_ms` of the stage says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Approval {
    /// What they are asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ask: Option<String>,
    /// What becomes of the stage when they reject.
    #[serde(default, skip_serializing_if = "Otherwise::is_default")]
    pub on_reject: Otherwise,
    /// What becomes of it when nobody decides in time.
    #[serde(default, skip_serializing_if = "OnTimeout::is_default")]
    pub on_timeout: OnTimeout,
}

/// A stage that waits for a signal to its run; no agent has it. Its result is what came with the signal. It waits for as long
/// as `timeout_ms` of the stage says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WaitFor {
    /// The signal. One that came before the stage could begin counts.
    pub signal: SignalName,
    /// What becomes of the stage when none comes in time.
    #[serde(default, skip_serializing_if = "Otherwise::is_default")]
    pub on_timeout: Otherwise,
}

/// That a stage's result may be used again, instead of doing the same once more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cache {
    /// For how long a result may be used, in milliseconds from the end of the attempt that gave it.
    pub ttl_ms: Millis,
    /// What the result depends on, beside the stage itself; all that its agent is given, unless said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Expression>,
}

/// That a stage may begin before all that it depends on is over, with results that are assumed. What it gives counts only if
/// what it is given turns out to be that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Speculative {
    /// The stages of `depends_on` that need not be over, but only have begun, each with the result that it is assumed to
    /// give. An expression may look at what is before those stages.
    pub assume: BTreeMap<StageName, Expression>,
}

/// What becomes of a stage for which the word that was hoped for is not given.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Otherwise {
    /// It fails, and `on_failure` decides what follows.
    #[default]
    Fail,
    /// It succeeds, and its result says it.
    Continue,
}

impl Otherwise {
    pub(super) fn is_default(&self) -> bool {
        *self == Self::Fail
    }
}

/// What becomes of an approval that nobody decides in time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnTimeout {
    /// The stage has timed out: it fails, and `on_failure` decides what follows.
    #[default]
    Fail,
    /// It counts as approved.
    Approve,
    /// It counts as rejected: `on_reject` decides what follows.
    Reject,
}

impl OnTimeout {
    pub(super) fn is_default(&self) -> bool {
        *self == Self::Fail
    }
}

/// How a value is made: by one expression, or an object of several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mapping {
    /// What the expression gives.
    One(Expression),
    /// An object: each key with what its expression gives.
    Each(BTreeMap<String, Expression>),
}

impl Mapping {
    /// Its expressions, with the key of each if there are keys.
    pub fn expressions(&self) -> impl Iterator<Item = (Option<&str>, &Expression)> {
        let (one, each) = match self {
            Self::One(expression) => (Some((None, expression)), None),
            Self::Each(each) => (None, Some(each.iter().map(|(key, expression)| (Some(key.as_str()), expression)))),
        };
        one.into_iter().chain(each.into_iter().flatten())
    }
}

impl Serialize for Mapping {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::One(expression) => expression.serialize(serializer),
            Self::Each(each) => each.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Mapping {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        impl<'de> Visitor<'de> for Reader {
            type Value = Mapping;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an expression, or an object of expressions")
            }

            fn visit_str<E>(self, text: &str) -> Result<Mapping, E> {
                Ok(Mapping::One(text.into()))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Mapping, A::Error> {
                let mut each = BTreeMap::new();
                while let Some((key, expression)) = map.next_entry()? {
                    each.insert(key, expression);
                }
                Ok(Mapping::Each(each))
            }
        }

        deserializer.deserialize_any(Reader)
    }
}

impl JsonSchema for Mapping {
    fn schema_name() -> Cow<'static, str> {
        "Mapping".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let expression = generator.subschema_for::<Expression>();
        json_schema!({
            "description": "How a value is made: by one expression, or an object of several.",
            "anyOf": [expression, { "type": "object", "additionalProperties": expression }],
        })
    }
}
