//! Names that people give: agents, stages, workflows, capabilities, resources.
//!
//! A resource's name may have several parts, with `:`, `/` or `.` between them; any other name has one. A name is validated once, where it comes in, and is a NATS token from then on: what starts with a lower-case letter
//! or a digit, goes on with those, `_` or `-`, and has at most 63 characters. (A subject with an empty token vanishes
//! without an error, one with a dot addresses somebody else: hence the rule.)

use std::borrow::{Borrow, Cow};
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer};
use serde::ser::{Serialize, Serializer};
use smol_str::SmolStr;

/// The rule, as a regular expression, for schemas and error messages.
pub const RULE: &str = "^[a-z0-9][a-z0-9_-]{0,62}$";

/// The rule of a resource's name. It is no token of a subject, and names what others have named: `model:gpt-4.1/tokens_per_minute`.
pub const RESOURCE_RULE: &str = "^[a-z0-9][a-z0-9_-]*([:/.][a-z0-9][a-z0-9_-]*)*$";

/// The longest name of a resource, in bytes.
const MAX_RESOURCE_BYTES: usize = 127;

/// A name that breaks the rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {name:?} is not a valid name: {why}; a name matches {rule}")]
pub struct NameError {
    /// What was being named: `agent id`, `stage name` …
    pub what: &'static str,
    /// The name as given, cut to 80 characters.
    pub name: String,
    /// Which part of the rule it breaks.
    pub why: &'static str,
    /// The rule.
    pub rule: &'static str,
}

fn check(what: &'static str, name: &str) -> Result<(), NameError> {
    let mut bytes = name.bytes();
    let why = match bytes.next() {
        None => "it is empty",
        Some(first) if !(first.is_ascii_lowercase() || first.is_ascii_digit()) => {
            "it must start with a lower-case letter or a digit"
        }
        Some(_) if name.len() > 63 => "it is longer than 63 characters",
        Some(_) => {
            if bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-') {
                return Ok(());
            }
            "only lower-case letters, digits, '_' and '-' are allowed"
        }
    };
    Err(NameError { what, name: name.chars().take(80).collect(), why, rule: RULE })
}

fn check_resource(what: &'static str, name: &str) -> Result<(), NameError> {
    let token = |part: &str| {
        let letter = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        part.bytes().next().is_some_and(letter) && part.bytes().all(|b| letter(b) || b == b'_' || b == b'-')
    };
    let why = match name {
        "" => "it is empty",
        _ if name.len() > MAX_RESOURCE_BYTES => "it is longer than 127 characters",
        _ if name.split([':', '/', '.']).all(token) => return Ok(()),
        _ => {
            "its parts, with ':', '/' or '.' between them, start with a lower-case letter or a digit, and go on with those, \
             '_' and '-'"
        }
    };
    Err(NameError { what, name: name.chars().take(80).collect(), why, rule: RESOURCE_RULE })
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal) => {
        name!($(#[$doc])* $type, $what, check, RULE);
    };
    ($(#[$doc:meta])* $type:ident, $what:literal, $check:ident, $rule:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(SmolStr);

        impl $type {
            #[doc = concat!("Checks and takes a ", $what, ".")]
            pub fn new(name: &str) -> Result<Self, NameError> {
                $check($what, name)?;
                Ok(Self(name.into()))
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl FromStr for $type {
            type Err = NameError;
            fn from_str(name: &str) -> Result<Self, NameError> {
                Self::new(name)
            }
        }

        impl Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                crate::text::parse(deserializer)
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "pattern": $rule, "description": $what })
            }
        }
    };
}

name!(
    /// Who an agent is. It is a token of every subject the agent may use.
    AgentId, "agent id"
);
name!(
    /// A stage's name, unique within its workflow.
    StageName, "stage name"
);
name!(
    /// A workflow's name.
    WorkflowName, "workflow name"
);
name!(
    /// What an agent can do, and what a stage asks for: the `agent_type` of a stage.
    Capability, "capability"
);
name!(
    /// A signal's name: what a run may be told, and a stage may wait for.
    SignalName, "signal name"
);
name!(
    /// A resource's name: `cpu`, `memory`, `model:gpt-x/tokens_per_minute` …
    ResourceName, "resource name", check_resource, RESOURCE_RULE
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_good_name_is_kept_as_it_is() {
        for name in ["a", "0", "research", "data_analysis", "agent-01", &"x".repeat(63)] {
            assert_eq!(AgentId::new(name).unwrap().as_str(), name);
        }
    }

    #[test]
    fn a_bad_name_is_quoted_with_the_rule() {
        for (name, why) in [
            ("", "empty"),
            ("A", "start with"),
            ("-a", "start with"),
            ("a.b", "only lower-case"),
            ("a b", "only lower-case"),
            ("a*", "only lower-case"),
            ("a>", "only lower-case"),
            ("aé", "only lower-case"),
            ("a\r\nb", "only lower-case"),
            (&"x".repeat(64), "longer than 63"),
        ] {
            let error = StageName::new(name).unwrap_err().to_string();
            assert!(error.contains(why), "{name:?}: {error}");
            assert!(error.contains(&format!("{name:?}")) && error.contains(RULE), "{error}");
        }
    }

    #[test]
    fn r3_the_name_of_a_resource_may_have_several_parts() {
        for name in ["cpu", "memory_mb", "model:gpt-4.1/tokens_per_minute", "report.md", "0", &"x/".repeat(63)[..125]] {
            assert_eq!(ResourceName::new(name).unwrap().as_str(), name);
        }
        for name in ["", "/a", "a/", "a//b", "a..b", "A", "a b", "a*", "a.>", "a/-b", &"x".repeat(128)] {
            let error = ResourceName::new(name).unwrap_err().to_string();
            assert!(error.contains(RESOURCE_RULE), "{error}");
        }
    }

    #[test]
    fn json_is_checked_too() {
        assert!(serde_json::from_str::<AgentId>("\"a.b\"").unwrap_err().to_string().contains("agent id \"a.b\""));
        assert_eq!(serde_json::to_string(&AgentId::new("ann").unwrap()).unwrap(), "\"ann\"");
    }
}
