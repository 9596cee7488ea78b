//! Topics of messages: what they are about, for those who are interested.
//!
//! A topic is one to eight names with dots between them, each as the [rule of names](crate::name::RULE) says. A filter may
//! have `*` in the place of a name, and `>` at its end for one name or more, as subjects of NATS have.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::name::{Capability, NameError};

/// How many names a topic may have.
const MAX_NAMES: usize = 8;

/// A topic that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// One of its names is none.
    #[error("the topic {topic:?}: {error}")]
    Name {
        /// The topic as given, cut to 80 characters.
        topic: String,
        /// What is wrong.
        error: NameError,
    },
    /// It has too many names.
    #[error("the topic {0:?} has more than 8 names")]
    TooLong(String),
}

/// What a message is about: `prices.eu.wheat`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicName(Arc<str>);

/// Which topics somebody is interested in: `prices.*.wheat`, `prices.>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicFilter(Arc<str>);

impl TopicName {
    /// The topic as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TopicFilter {
    /// All topics.
    #[must_use]
    pub fn all() -> Self {
        Self(">".into())
    }

    /// The filter as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a topic is meant.
    #[must_use]
    pub fn matches(&self, topic: &str) -> bool {
        let (mut wanted, mut names) = (self.0.split('.'), topic.split('.'));
        loop {
            match (wanted.next(), names.next()) {
                (Some(">"), Some(_)) | (None, None) => return true,
                (Some(want), Some(name)) if want == "*" || want == name => {}
                _ => return false,
            }
        }
    }
}

fn check(topic: &str, allowed: impl Fn(usize, &str) -> bool) -> Result<(), TopicError> {
    let shown = || topic.chars().take(80).collect::<String>();
    let names: Vec<&str> = topic.split('.').collect();
    if names.len() > MAX_NAMES {
        return Err(TopicError::TooLong(shown()));
    }
    for (at, name) in names.iter().enumerate() {
        if !allowed(names.len() - 1 - at, name) {
            Capability::new(name).map_err(|error| TopicError::Name {
                topic: shown(),
                error: NameError { what: "topic's name", ..error },
            })?;
        }
    }
    Ok(())
}

impl FromStr for TopicName {
    type Err = TopicError;
    fn from_str(topic: &str) -> Result<Self, TopicError> {
        check(topic, |_, _| false)?;
        Ok(Self(topic.into()))
    }
}

impl FromStr for TopicFilter {
    type Err = TopicError;
    fn from_str(filter: &str) -> Result<Self, TopicError> {
        check(filter, |left, name| name == "*" || (name == ">" && left == 0))?;
        Ok(Self(filter.into()))
    }
}

impl From<TopicName> for TopicFilter {
    fn from(topic: TopicName) -> Self {
        Self(topic.0)
    }
}

impl fmt::Display for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Display for TopicFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_is_names_with_dots() {
        for good in ["prices", "prices.eu.wheat", "a.b.c.d.e.f.g.h"] {
            assert_eq!(good.parse::<TopicName>().unwrap().as_str(), good);
        }
        for bad in ["", "a..b", ".a", "a.", "a.*", "a.>", "A", "a b", "a.b.c.d.e.f.g.h.i"] {
            assert!(bad.parse::<TopicName>().is_err(), "{bad}");
        }
        for bad in ["", "a.>.b", "a..b", ">.a"] {
            assert!(bad.parse::<TopicFilter>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_filter_matches_as_subjects_do() {
        for (filter, topic, matches) in [
            ("a", "a", true),
            ("a", "a.b", false),
            ("a.*", "a.b", true),
            ("a.*", "a", false),
            ("a.*", "a.b.c", false),
            ("a.>", "a.b.c", true),
            ("a.>", "a", false),
            (">", "a", true),
            ("*.b", "a.b", true),
        ] {
            assert_eq!(filter.parse::<TopicFilter>().unwrap().matches(topic), matches, "{filter} {topic}");
        }
    }
}
