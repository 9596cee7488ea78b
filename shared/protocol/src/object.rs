//! Objects: what is too large for a message is kept in the broker's object store and passed by reference.
//!
//! An object is known by what it is: its name is the digest of its bytes. So it never changes, the same bytes are kept once however
//! often they are put, and whoever reads it knows that it is the right one.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The type of objects that are JSON. A reference to one stands for it.
pub const JSON: &str = "application/json";
/// The type of objects of which nobody has said what they are.
pub const BYTES: &str = "application/octet-stream";
/// How large an object may be, in bytes.
pub const MAX_OBJECT_BYTES: usize = 64 * 1024 * 1024;
/// The longest type of an object, in bytes.
pub const MAX_TYPE_BYTES: usize = 100;

/// The key by which a reference is known.
const KEY: &str = "$object";
/// How the name of an object begins. The digest follows, in lower-case hexadecimal digits.
const PREFIX: &str = "sha256-";
/// How many digits a digest has.
const DIGITS: usize = 64;

/// The name of an object: `sha256-` and the digest of its bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String", extend("pattern" = "^sha256-[0-9a-f]{64}$"))]
pub struct ObjectName(String);

impl ObjectName {
    /// The name of the object with this SHA-256 digest.
    #[must_use]
    pub fn of_digest(digest: [u8; 32]) -> Self {
        use std::fmt::Write;
        let mut name = PREFIX.to_owned();
        for byte in digest {
            // Writing into a string can not fail.
            let _ = write!(name, "{byte:02x}");
        }
        Self(name)
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ObjectName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.strip_prefix(PREFIX).unwrap_or_default();
        let right = digits.len() == DIGITS && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if right {
            return Ok(Self(text.to_owned()));
        }
        Err(format!("{text:.100?} is not the name of an object: it must be {PREFIX:?} and {DIGITS} hexadecimal digits"))
    }
}

impl TryFrom<String> for ObjectName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<ObjectName> for String {
    fn from(name: ObjectName) -> Self {
        name.0
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A reference to an object: what stands in a message for it.
///
/// One to [`JSON`] stands for the value: the SDK puts that in its place before a handler sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ObjectRef {
    /// Its name.
    #[serde(rename = "$object")]
    pub name: ObjectName,
    /// How large it is, in bytes.
    pub bytes: u64,
    /// What it is, as a media type.
    #[serde(rename = "type")]
    pub media_type: String,
}

impl ObjectRef {
    /// Whether it stands for a JSON value.
    #[must_use]
    pub fn is_json(&self) -> bool {
        self.media_type == JSON
    }
}

/// Whether there may be a reference in a JSON text. Most texts have none, and need not be read.
#[must_use]
pub fn may_refer(text: &str) -> bool {
    text.contains(KEY)
}

/// All references to JSON values in a value, each once.
#[must_use]
pub fn references(value: &Value) -> BTreeMap<ObjectName, ObjectRef> {
    let mut found = BTreeMap::new();
    collect(value, &mut found);
    found
}

fn reference(value: &Value) -> Option<ObjectRef> {
    value.get(KEY)?;
    ObjectRef::deserialize(value).ok().filter(ObjectRef::is_json)
}

fn collect(value: &Value, found: &mut BTreeMap<ObjectName, ObjectRef>) {
    if let Some(reference) = reference(value) {
        found.insert(reference.name.clone(), reference);
        return;
    }
    match value {
        Value::Array(items) => items.iter().for_each(|item| collect(item, found)),
        Value::Object(members) => members.values().for_each(|member| collect(member, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Puts values in the place of the references to them. What it does not have stays a reference.
pub fn replace(value: &mut Value, objects: &BTreeMap<ObjectName, Value>) {
    if let Some(reference) = reference(value) {
        if let Some(object) = objects.get(&reference.name) {
            *value = object.clone();
        }
        return;
    }
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| replace(item, objects)),
        Value::Object(members) => members.values_mut().for_each(|member| replace(member, objects)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn name(n: u8) -> ObjectName {
        ObjectName::of_digest([n; 32])
    }

    #[test]
    fn names_are_digests() {
        let text = name(0xab).to_string();
        assert_eq!(text, format!("sha256-{}", "ab".repeat(32)));
        assert_eq!(text.parse(), Ok(name(0xab)));
        for wrong in ["", "sha256-", "sha256-AB", &text[..70], &text.to_uppercase(), &format!("{text}0")] {
            assert!(wrong.parse::<ObjectName>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn references_are_found_and_replaced_wherever_they_stand() {
        let refers = |n, media_type: &str| json!({ "$object": name(n), "bytes": 3, "type": media_type });
        let mut value = json!({
            "text": refers(1, JSON),
            "list": [refers(2, JSON), { "deep": refers(1, JSON) }],
            "image": refers(3, "image/png"),
            "no reference": { "$object": "something else" },
            "gone": refers(4, JSON),
        });
        let found: Vec<_> = references(&value).into_keys().collect();
        assert_eq!(found, [name(1), name(2), name(4)]);
        replace(&mut value, &[(name(1), json!("one")), (name(2), json!([2])), (name(3), json!(3))].into());
        let right = json!({
            "text": "one",
            "list": [[2], { "deep": "one" }],
            "image": refers(3, "image/png"),
            "no reference": { "$object": "something else" },
            "gone": refers(4, JSON),
        });
        assert_eq!(value, right);
        assert!(may_refer(&value.to_string()) && !may_refer("{}"));
        let whole = refers(1, JSON);
        assert_eq!(references(&whole).len(), 1);
    }
}
