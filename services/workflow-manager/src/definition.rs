//! From text to a checked [`Definition`].
//!
//! Text that starts with `{` is JSON, any other is YAML. Both are read strictly: unknown keys, keys given twice, booleans
//! other than `true` and `false`, and unknown tags are errors, because a definition that is not understood as it was
//! meant would run as something else. Errors name line and column, and the stage; where a name is wrong, the one that was probably
//! meant.

mod locate;

use std::collections::BTreeSet;
use std::fmt;

use baton_protocol::definition::DefinitionError;
use baton_protocol::nearest::nearest;
use baton_protocol::{Definition, Json, StageDefinition};
use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{DuplicateKeyPolicy, Error, Options};

/// How deep a definition may nest. A commit that holds it is nested a little deeper, and must stay readable: JSON readers
/// give up at 128.
const MAX_DEPTH: usize = 64;

/// How often YAML may repeat itself with aliases, so that a short text does not become a huge definition.
const MAX_REPLAYED: usize = 100_000;

/// Reads a definition from YAML or JSON text, and checks it.
pub fn parse(text: &str) -> Result<Definition, DefinitionError> {
    let definition = if text.trim_start().starts_with('{') { read_json(text) } else { parse_yaml(text) };
    let definition = definition.map_err(DefinitionError::Syntax)?;
    match check(&definition) {
        Ok(()) => Ok(definition),
        Err(error) => Err(match locate::locate(text, &error.path(&definition), options()) {
            Some((line, column)) => DefinitionError::At { error: Box::new(error), line, column },
            None => error,
        }),
    }
}

/// Checks a definition that was not read from a text.
pub(crate) fn check(definition: &Definition) -> Result<(), DefinitionError> {
    definition.check().and_then(|()| crate::flow::check(definition))
}

/// Reads stages that an agent has given, as strictly as those of a workflow. The error says which stage is wrong.
pub(crate) fn delegated(stages: &Json) -> Result<Vec<StageDefinition>, String> {
    let list: Vec<Json> = stages.read().map_err(|_| "expected a list of stages".to_owned())?;
    let stage = |(index, stage): (usize, Json)| {
        read_json(stage.as_str()).map_err(|error| {
            // Where it is in a text that nobody has before him.
            let at = error.find(" at line ").unwrap_or(error.len());
            format!("stage {}: {}", index + 1, &error[..at])
        })
    };
    list.into_iter().enumerate().map(stage).collect()
}

fn read_json<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    let strict = || {
        let mut reader = serde_json::Deserializer::from_str(text);
        Strict { left: MAX_DEPTH }.deserialize(&mut reader)?;
        reader.end()?;
        serde_json::from_str(text)
    };
    strict().map_err(|error| {
        let text = error.to_string();
        let text = match said_expected(&text) {
            Some((wrong, right)) => hinted(&text, wrong, right),
            None => text,
        };
        // As the reader of YAML says it.
        text.replace(" column ", ", column ")
    })
}

/// The wrong name and the right ones, where the reader of JSON says: ``unknown field `a`, expected one of `b`, `c` …``.
fn said_expected(text: &str) -> Option<(&str, Vec<&str>)> {
    let names = text.strip_prefix("unknown field ").or_else(|| text.strip_prefix("unknown variant "))?;
    let mut quoted = names.split('`').skip(1).step_by(2);
    Some((quoted.next()?, quoted.collect()))
}

/// What is said, with the name that was probably meant before the place in the text.
fn hinted<'a>(text: &str, wrong: &str, right: impl IntoIterator<Item = &'a str>) -> String {
    let Some(name) = nearest(wrong, right) else { return text.to_owned() };
    let (what, at) = text.rfind(" at line ").map_or((text, ""), |at| text.split_at(at));
    format!("{what}; did you mean `{name}`?{at}")
}

fn options() -> Options {
    let mut options = Options::default();
    options.duplicate_keys = DuplicateKeyPolicy::Error;
    options.strict_booleans = true;
    options.reject_unsupported_tags = true;
    options.with_snippet = false;
    options.alias_limits.max_total_replayed_events = MAX_REPLAYED;
    if let Some(budget) = &mut options.budget {
        budget.max_depth = MAX_DEPTH;
    }
    options
}

fn parse_yaml(text: &str) -> Result<Definition, String> {
    serde_saphyr::from_str_with_options(text, options()).map_err(|error| say(&error))
}

/// What the reader of YAML says in a programmer's words, and what it says to others.
const PLAINER: [(&str, &str); 7] = [
    ("expected sequence start", "expected a list"),
    ("expected mapping start", "expected keys and values"),
    ("expected string scalar", "expected a text"),
    ("invalid u", "expected a whole number, not negative"),
    ("invalid f", "expected a number"),
    ("cannot deserialize null into string", "expected a text, and there is nothing"),
    ("budget breached: Depth", "nested more than 64 levels deep"),
];

/// What the reader of YAML says, without what it says to programmers.
fn say(error: &Error) -> String {
    let what = match error.without_snippet() {
        Error::DuplicateMappingKey { key: Some(key), .. } => format!("duplicate key `{key}`"),
        Error::InvalidBooleanStrict { .. } => "invalid boolean, expected `true` or `false`".to_owned(),
        Error::MultipleDocuments { .. } => "a second document, expected one".to_owned(),
        Error::NonFiniteFloat { value, .. } => format!("`{value}` is not a finite number"),
        Error::SerdeUnknownField { field: wrong, expected, .. }
        | Error::SerdeUnknownVariant { variant: wrong, expected, .. } => {
            return hinted(&error.without_snippet().to_string(), wrong, expected.iter().copied());
        }
        other => {
            let text = other.to_string();
            let found = PLAINER.iter().find_map(|(said, plain)| Some((*plain, text.strip_prefix(said)?)));
            let Some((plain, rest)) = found else { return text };
            let at = rest.rfind(" at line ").map_or("", |at| &rest[at..]);
            return format!("{plain}{at}");
        }
    };
    match error.location() {
        Some(location) => format!("{what} at line {}, column {}", location.line(), location.column()),
        None => what,
    }
}

/// Reads any JSON, keeps nothing, and refuses keys that are given twice: `serde_json` would keep the last one.
struct Strict {
    left: usize,
}

impl Strict {
    fn deeper<E: serde::de::Error>(&self) -> Result<Self, E> {
        let left = self.left.checked_sub(1);
        left.map(|left| Self { left }).ok_or_else(|| E::custom(format!("nested more than {MAX_DEPTH} levels deep")))
    }
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut keys = BTreeSet::new();
        while let Some(key) = map.next_key::<String>()? {
            if keys.contains(&key) {
                return Err(A::Error::custom(format!("duplicate key `{key}`")));
            }
            keys.insert(key);
            map.next_value_seed(self.deeper()?)?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(self.deeper()?)?.is_some() {}
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }
    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }
    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }
    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }
    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}
