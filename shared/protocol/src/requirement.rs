//! What a stage asks of an agent's metadata: `{"algorithms": ["regression"], "context_tokens": ">= 32000", "version": "^1.2"}`.
//!
//! | asked for | an agent has it if its value |
//! |---|---|
//! | a scalar: `"json"`, `5`, `true` | is the same, or is a list that holds it |
//! | a list: `["regression", "pca"]` | is a list that holds all of these, in any order |
//! | a comparison: `">= 32000"`, `"> 2, <= 8"` | is a number for which it holds |
//! | versions: `"^1.2"`, `"~1.2.3"`, `">= 1.2, < 3"` | is a version in that range, as [`semver`] has it |
//!
//! A text that begins with one of `>= > <= < = ^ ~` is a comparison; whether of numbers or of versions, the agent's value says:
//! a number is compared as a number, a text as a version (`"1.2"` is `1.2.0`). Inside a list a text is only ever itself.
//! Numbers are compared as decimals: `5` is `5.0`.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use rust_decimal::Decimal;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use semver::{Version, VersionReq};
use serde::de::{Deserialize, Deserializer, Error as _};
use serde::ser::{Serialize, Serializer};
use serde_json::Value;

/// The most keys that may be asked for.
pub const MAX_REQUIREMENTS: usize = 64;
/// The longest requirement, in bytes of JSON.
pub const MAX_REQUIREMENT_BYTES: usize = 1024;

/// What an agent says of one of its capabilities.
pub type Metadata = BTreeMap<String, Value>;

/// All that is asked of the metadata of a capability, by key.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Requirements(BTreeMap<String, Requirement>);

/// What is asked of one key.
#[derive(Debug, Clone)]
pub struct Requirement {
    /// As it was written.
    value: Value,
    /// The same as canonical text: requirements are told apart and ordered by it.
    text: String,
    test: Test,
}

#[derive(Debug, Clone)]
enum Test {
    /// The same scalar, or a list that holds it.
    Is,
    /// A list that holds all of these.
    Has,
    /// A comparison: what it means for a number, and what for a version. At least one is there.
    Compares(Option<Vec<(Operator, Decimal)>>, Option<VersionReq>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    AtLeast,
    Above,
    AtMost,
    Below,
    Equal,
}

/// The operators of numbers, the longer ones first.
const OPERATORS: [(&str, Operator); 5] = [
    (">=", Operator::AtLeast),
    ("<=", Operator::AtMost),
    (">", Operator::Above),
    ("<", Operator::Below),
    ("=", Operator::Equal),
];

/// What begins a comparison.
const BEGINS: [char; 5] = ['>', '<', '=', '^', '~'];

/// Something that can not be asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the requirement {text} {why}")]
pub struct RequirementError {
    /// What was asked for, cut to 80 characters.
    pub text: String,
    /// What is wrong with it.
    pub why: String,
}

impl Requirements {
    /// Nothing is asked for.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Asks for one thing more.
    pub fn add(&mut self, key: impl Into<String>, value: impl Into<Value>) -> Result<(), RequirementError> {
        let (key, requirement) = (key.into(), Requirement::new(value.into())?);
        if key.is_empty() {
            return Err(RequirementError { text: requirement.text, why: "has no key".to_owned() });
        }
        self.0.insert(key, requirement);
        if self.0.len() > MAX_REQUIREMENTS {
            let why = format!("is one more than may be: at most {MAX_REQUIREMENTS} keys are allowed");
            return Err(RequirementError { text: format!("number {}", self.0.len()), why });
        }
        Ok(())
    }

    /// Asks for one thing more, as people write it on a command line: `algorithms=regression`, `formats=["json","xml"]`,
    /// `context_tokens>=32000`, `version^1.2`.
    pub fn add_text(&mut self, text: &str) -> Result<(), RequirementError> {
        let wrong = |why: &str| RequirementError { text: quoted(text), why: why.to_owned() };
        let at = text.find(BEGINS).ok_or_else(|| {
            wrong("is not KEY=VALUE: write algorithms=regression, context_tokens>=32000 or version^1.2")
        })?;
        let (key, rest) = (text[..at].trim(), text[at..].trim());
        let value = match rest.strip_prefix('=') {
            Some(value) => serde_json::from_str(value).unwrap_or_else(|_| Value::from(value.trim())),
            None => Value::from(rest),
        };
        self.add(key, value)
    }

    /// Whether nothing is asked for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is asked for, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Requirement)> {
        self.0.iter().map(|(key, requirement)| (key.as_str(), requirement))
    }

    /// Whether metadata have all that is asked for. Of a capability without metadata nothing can be asked.
    #[must_use]
    pub fn are_met(&self, metadata: Option<&Metadata>) -> bool {
        self.unmet(metadata).is_none()
    }

    /// The first key for which metadata do not have what is asked for.
    #[must_use]
    pub fn unmet(&self, metadata: Option<&Metadata>) -> Option<&str> {
        let has = |key: &str, wanted: &Requirement| metadata.and_then(|m| m.get(key)).is_some_and(|v| wanted.is_met(v));
        self.iter().find(|(key, wanted)| !has(key, wanted)).map(|(key, _)| key)
    }
}

impl fmt::Display for Requirements {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<_> = self.0.iter().map(|(key, requirement)| format!("{key}: {requirement}")).collect();
        f.pad(&parts.join(", "))
    }
}

impl Requirement {
    /// Takes a requirement as it is written.
    pub fn new(value: Value) -> Result<Self, RequirementError> {
        let text = value.to_string();
        let wrong = |why: &str| RequirementError { text: cut(&text), why: why.to_owned() };
        if text.len() > MAX_REQUIREMENT_BYTES {
            return Err(wrong(&format!("has {} bytes; at most {MAX_REQUIREMENT_BYTES} are allowed", text.len())));
        }
        let test = match &value {
            Value::Bool(_) | Value::Number(_) => Test::Is,
            Value::String(words) if words.trim_start().starts_with(BEGINS) => comparison(words).ok_or_else(|| {
                wrong("is neither a comparison of numbers (\">= 32000\") nor of versions (\"^1.2\", \">= 1.2, < 3\")")
            })?,
            Value::String(_) => Test::Is,
            Value::Array(all) if all.iter().all(is_scalar) => Test::Has,
            Value::Array(_) => return Err(wrong("is a list of something else than texts, numbers and booleans")),
            Value::Object(_) | Value::Null => {
                return Err(wrong("must be a text, a number, a boolean or a list of these"));
            }
        };
        Ok(Self { value, text, test })
    }

    /// Whether a value of an agent's metadata is what is asked for.
    #[must_use]
    pub fn is_met(&self, value: &Value) -> bool {
        match &self.test {
            Test::Is => holds(value, &self.value),
            Test::Has => match (value, &self.value) {
                (Value::Array(values), Value::Array(all)) => {
                    all.iter().all(|wanted| values.iter().any(|value| same(value, wanted)))
                }
                _ => false,
            },
            Test::Compares(numbers, versions) => match value {
                Value::Number(_) => decimal(value)
                    .zip(numbers.as_ref())
                    .is_some_and(|(value, all)| all.iter().all(|(operator, than)| operator.compares(value, *than))),
                Value::String(text) => {
                    version(text).zip(versions.as_ref()).is_some_and(|(version, range)| range.matches(&version))
                }
                Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => false,
            },
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Value::String(text) => f.pad(text),
            _ => f.pad(&self.text),
        }
    }
}

impl PartialEq for Requirement {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Requirement {}

impl Ord for Requirement {
    fn cmp(&self, other: &Self) -> Ordering {
        self.text.cmp(&other.text)
    }
}

impl PartialOrd for Requirement {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Operator {
    fn compares(self, value: Decimal, than: Decimal) -> bool {
        match self {
            Self::AtLeast => value >= than,
            Self::Above => value > than,
            Self::AtMost => value <= than,
            Self::Below => value < than,
            Self::Equal => value == than,
        }
    }
}

/// A text that begins with an operator. None if it means nothing.
fn comparison(text: &str) -> Option<Test> {
    let (numbers, versions) = (numbers(text), VersionReq::parse(text.trim()).ok());
    (numbers.is_some() || versions.is_some()).then_some(Test::Compares(numbers, versions))
}

/// `>= 2, < 8`
fn numbers(text: &str) -> Option<Vec<(Operator, Decimal)>> {
    let one = |part: &str| {
        let part = part.trim();
        let (sign, operator) = OPERATORS.iter().find(|(sign, _)| part.starts_with(sign))?;
        Some((*operator, part[sign.len()..].trim().parse_decimal()?))
    };
    text.split(',').map(one).collect()
}

trait ParseDecimal {
    fn parse_decimal(&self) -> Option<Decimal>;
}

impl ParseDecimal for str {
    fn parse_decimal(&self) -> Option<Decimal> {
        Decimal::from_str(self).or_else(|_| Decimal::from_scientific(self)).ok()
    }
}

fn decimal(value: &Value) -> Option<Decimal> {
    value.as_number()?.to_string().parse_decimal()
}

/// A version, where missing parts are 0.
fn version(text: &str) -> Option<Version> {
    let text = text.trim().trim_start_matches('v');
    Version::parse(text).ok().or_else(|| {
        let mut parts = text.split('.').map(|part| part.parse::<u64>().ok());
        let (major, minor) = (parts.next()??, parts.next().unwrap_or(Some(0))?);
        let patch = parts.next().unwrap_or(Some(0))?;
        parts.next().is_none().then_some(Version::new(major, minor, patch))
    })
}

/// Whether a value is this scalar, or a list that holds it.
fn holds(value: &Value, wanted: &Value) -> bool {
    match value {
        Value::Array(values) => values.iter().any(|value| same(value, wanted)),
        _ => same(value, wanted),
    }
}

fn same(value: &Value, wanted: &Value) -> bool {
    match (decimal(value), decimal(wanted)) {
        (Some(value), Some(wanted)) => value == wanted,
        _ => value == wanted,
    }
}

fn is_scalar(value: &Value) -> bool {
    matches!(value, Value::Bool(_) | Value::Number(_) | Value::String(_))
}

fn cut(text: &str) -> String {
    text.chars().take(80).collect()
}

fn quoted(text: &str) -> String {
    format!("{:?}", cut(text))
}

impl Serialize for Requirements {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, requirement)| (key, &requirement.value)))
    }
}

impl<'de> Deserialize<'de> for Requirements {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut all = Self::default();
        for (key, value) in BTreeMap::<String, Value>::deserialize(deserializer)? {
            let shown = quoted(&key);
            all.add(key, value).map_err(|error| D::Error::custom(format!("{shown}: {error}")))?;
        }
        Ok(all)
    }
}

impl JsonSchema for Requirements {
    fn schema_name() -> Cow<'static, str> {
        "Requirements".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let scalar = ["string", "number", "boolean"];
        json_schema!({
            "description": "What is asked of metadata, by key. A scalar: the same, or a list that holds it. A list: one that \
                            holds all of these. A text that begins with >= > <= < = ^ or ~: a comparison with a number \
                            (\">= 32000\", \"> 2, <= 8\"), or a range of versions (\"^1.2\", \">= 1.2, < 3\").",
            "type": "object",
            "maxProperties": MAX_REQUIREMENTS,
            "additionalProperties": {
                "anyOf": [{ "type": scalar }, { "type": "array", "items": { "type": scalar } }]
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn met(wanted: &Value, value: &Value) -> bool {
        Requirement::new(wanted.clone()).unwrap().is_met(value)
    }

    #[test]
    fn r2_scalars_lists_comparisons_and_versions() {
        for (wanted, value) in [
            (json!("json"), json!("json")),
            (json!("json"), json!(["xml", "json"])),
            (json!(5), json!(5.0)),
            (json!(true), json!(true)),
            (json!(["regression"]), json!(["regression", "classification"])),
            (json!([1, "a"]), json!(["a", 1.0])),
            (json!([]), json!(["anything"])),
            (json!([">= 5"]), json!([">= 5"])),
            (json!(">= 32000"), json!(32000)),
            (json!(">32000"), json!(32000.5)),
            (json!("> 2, <= 8"), json!(8)),
            (json!("= 1.5"), json!(1.5)),
            (json!("< -1"), json!(-2)),
            (json!("^1.2"), json!("1.9.3")),
            (json!("~1.2.3"), json!("1.2.9")),
            (json!(">= 1.2, < 3"), json!("2.0")),
            (json!("^1.2"), json!("v1.2")),
            (json!(">= 1.2"), json!("1.10.0")),
            (json!(">= 1.2"), json!(1.25)),
        ] {
            assert!(met(&wanted, &value), "{wanted} should be met by {value}");
        }
        for (wanted, value) in [
            (json!("json"), json!("JSON")),
            (json!("1.2"), json!("1.2.0")),
            (json!(["regression", "pca"]), json!(["regression"])),
            (json!(["regression"]), json!({ "regression": true })),
            (json!(["regression"]), json!("regression")),
            (json!([]), json!("anything")),
            (json!(">= 32000"), json!(31999.9)),
            (json!(">= 32000"), json!(true)),
            (json!(">= 32000"), json!("many")),
            (json!("> 2, <= 8"), json!(8.1)),
            (json!("^1.2"), json!("2.0.0")),
            (json!("^1.2"), json!("1.3.0-beta")),
            (json!("^1.2"), json!(1.5)),
            (json!("~1.2.3"), json!("1.3.0")),
            (json!("^1.2"), json!("1.2.3.4")),
            (json!(">= 1.2"), json!(["1.2"])),
        ] {
            assert!(!met(&wanted, &value), "{wanted} should not be met by {value}");
        }
    }

    #[test]
    fn r2_what_can_not_be_asked_for_is_named() {
        for (value, says) in [
            (json!(">= many"), "neither a comparison"),
            (json!("^"), "neither a comparison"),
            (json!({ "a": 1 }), "must be a text"),
            (json!(null), "must be a text"),
            (json!([[1]]), "a list of something else"),
            (json!("x".repeat(2000)), "at most 1024"),
        ] {
            let error = Requirement::new(value).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        let error = serde_json::from_str::<Requirements>(r#"{"context": ">= many"}"#).unwrap_err().to_string();
        assert!(error.contains("\"context\"") && error.contains(">= many"), "{error}");
    }

    #[test]
    fn r2_requirements_are_written_as_people_write_them() {
        let mut all = Requirements::none();
        for text in ["algorithms=regression", "formats=[\"json\",\"xml\"]", "context_tokens>=32000", "version^1.2"] {
            all.add_text(text).unwrap();
        }
        all.add_text("gpus==2").unwrap();
        let same = json!({
            "algorithms": "regression", "formats": ["json", "xml"], "context_tokens": ">=32000", "version": "^1.2",
            "gpus": "=2"
        });
        assert_eq!(serde_json::to_value(&all).unwrap(), same);
        assert_eq!(serde_json::from_value::<Requirements>(same).unwrap(), all);
        assert_eq!(all.to_string().split(", ").count(), 5);
        for text in ["regression", "=x", "context>=many"] {
            all.add_text(text).unwrap_err();
        }
    }

    #[test]
    fn r2_the_first_key_that_is_not_met_is_told() {
        let wanted: Requirements = serde_json::from_value(json!({ "a": 1, "b": ">= 2" })).unwrap();
        let has = |value: Value| serde_json::from_value::<Metadata>(value).unwrap();
        assert_eq!(wanted.unmet(Some(&has(json!({ "a": 1, "b": 1 })))), Some("b"));
        assert_eq!(wanted.unmet(None), Some("a"));
        assert!(wanted.are_met(Some(&has(json!({ "a": [1, 2], "b": 2, "c": 0 })))));
        assert!(Requirements::none().are_met(None));
    }
}
