//! Pools: what everybody draws from who asks, beside what an agent has of its own.
//!
//! There are three kinds under one model. What is *held* is given back: slots, licences, GPUs, locks. What is *refilled*
//! comes back by itself: requests or tokens per minute of a model's provider. What is *consumed* is gone once it is used:
//! tokens in all, machine time. A held pool without a size is a lock: any number may share it, or one has it alone.
//!
//! Amounts of pools have at most nine decimal places and are counted exactly.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize as De, Deserializer, Error as _, Visitor};
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};

use crate::amount::Amount;
use crate::budget::{AtLimit, Measure, check_currency, check_money};
use crate::id::Millis;
use crate::name::{AgentId, ResourceName};

/// How deep consumed pools may be parts of one another.
pub const MAX_DEPTH: usize = 16;

/// The largest size of a pool: a million times a thousand million.
pub const MAX_SIZE: u64 = 1_000_000_000_000_000;
/// The longest time in which a refilled pool gets its amount once: 31 days, in milliseconds.
pub const MAX_EVERY_MS: Millis = 31 * 24 * 3600 * 1000;

/// What kind of a pool it is, and how much there is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Pool {
    /// What becomes of what is taken.
    pub kind: PoolKind,
    /// How much there is at the most. A held pool without a size is a lock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<Amount>,
    /// How a refilled pool fills up again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refill: Option<Refill>,
    /// The pool that a consumed one is a part of: what is taken here is taken there too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<ResourceName>,
    /// What of a task's report says how much of a consumed pool was used. Without it, a task that succeeds uses all that it
    /// took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measure: Option<Measure>,
    /// The currency of a pool that is measured by cost: `EUR`. There is one for all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub currency: Option<String>,
    /// What becomes of who wants more than a consumed pool has.
    #[serde(default, skip_serializing_if = "AtLimit::is_wait")]
    pub at_limit: AtLimit,
    /// What is left of a consumed pool is shared out again and again among the agents that have a part of it, by their workload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balance: Option<Balance>,
}

/// How what is left of a pool is shared out by itself: in proportion to 0.3 of the tasks that each agent has done lately and 0.7 of
/// those that it has in hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Balance {
    /// What each has at the least.
    #[serde(default)]
    pub minimum: Amount,
    /// How often, in milliseconds: a second at the least.
    pub every_ms: Millis,
}

/// The least time between two sharings of a pool, in milliseconds.
const MIN_BALANCE_MS: Millis = 1000;

/// What becomes of what is taken from a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PoolKind {
    /// It is given back when the lease ends.
    Held,
    /// It comes back by itself, as time goes by.
    Refilled,
    /// It is gone once it is used. What was taken and not used is given back when the lease ends.
    Consumed,
}

impl PoolKind {
    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Refilled => "refilled",
            Self::Consumed => "consumed",
        }
    }
}

impl fmt::Display for PoolKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for PoolKind {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Held, Self::Refilled, Self::Consumed]
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or_else(|| "it must be held, refilled or consumed".to_owned())
    }
}

/// How fast a refilled pool fills up: evenly, so much in that time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Refill {
    /// How much comes back.
    pub amount: Amount,
    /// In which time, in milliseconds.
    pub every_ms: Millis,
}

/// What is wrong with a pool.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PoolError(String);

impl PoolError {
    pub(crate) fn new(text: String) -> Self {
        Self(text)
    }
}

impl Pool {
    /// A pool of that kind and size, without anything else.
    #[must_use]
    pub fn new(kind: PoolKind, size: impl Into<Amount>) -> Self {
        Self {
            kind,
            size: Some(size.into()),
            refill: None,
            parent: None,
            measure: None,
            currency: None,
            at_limit: AtLimit::Wait,
            balance: None,
        }
    }

    /// A budget: a consumed pool that is measured by cost, in that currency.
    #[must_use]
    pub fn budget(size: impl Into<Amount>, currency: impl Into<String>) -> Self {
        let pool = Self::new(PoolKind::Consumed, size);
        Self { measure: Some(Measure::Cost), currency: Some(currency.into()), ..pool }
    }

    /// A lock.
    #[must_use]
    pub fn lock() -> Self {
        Self { size: None, ..Self::new(PoolKind::Held, Amount::ZERO) }
    }

    /// One that fills up evenly, so much in that time, and holds as much as comes in one such time.
    #[must_use]
    pub fn refilled(amount: impl Into<Amount>, every_ms: Millis) -> Self {
        let amount = amount.into();
        let refill = Some(Refill { amount, every_ms });
        Self {
            kind: PoolKind::Refilled,
            size: Some(amount),
            refill,
            parent: None,
            measure: None,
            currency: None,
            at_limit: AtLimit::Wait,
            balance: None,
        }
    }

    /// Whether it is a lock.
    #[must_use]
    pub fn is_lock(&self) -> bool {
        self.kind == PoolKind::Held && self.size.is_none()
    }

    /// Checks what types can not say.
    ///
    /// # Errors
    /// What is wrong, and what would be right.
    pub fn check(&self) -> Result<(), PoolError> {
        let wrong = |text: String| Err(PoolError(text));
        let kind = self.kind;
        match (kind, self.size) {
            (PoolKind::Held, None) => {}
            (_, None) => return wrong(format!("a {kind} pool needs a size")),
            (_, Some(size)) => check_money("size", size)?,
        }
        match (kind, &self.refill) {
            (PoolKind::Refilled, None) => {
                return wrong("a refilled pool needs a refill: {\"amount\": 90000, \"every_ms\": 60000}".to_owned());
            }
            (PoolKind::Refilled, Some(refill)) => {
                check_money("refill.amount", refill.amount)?;
                if refill.amount.is_zero() {
                    return wrong("refill.amount is 0: nothing would ever come back".to_owned());
                }
                if !(1..=MAX_EVERY_MS).contains(&refill.every_ms) {
                    return wrong(format!(
                        "refill.every_ms is {}; it must be from 1 to {MAX_EVERY_MS}",
                        refill.every_ms
                    ));
                }
            }
            (_, Some(_)) => return wrong(format!("a {kind} pool has no refill: only a refilled one has")),
            (_, None) => {}
        }
        if self.parent.is_some() && kind != PoolKind::Consumed {
            return wrong(format!("a {kind} pool has no parent: only a consumed one has"));
        }
        if self.measure.is_some() && kind != PoolKind::Consumed {
            return wrong(format!("a {kind} pool has no measure: only a consumed one has"));
        }
        if self.at_limit != AtLimit::Wait && kind != PoolKind::Consumed {
            return wrong(format!("a {kind} pool has no at_limit: only a consumed one has"));
        }
        if let Some(Balance { minimum, every_ms }) = self.balance {
            if kind != PoolKind::Consumed {
                return wrong(format!("a {kind} pool has no balance: only a consumed one has"));
            }
            check_money("balance.minimum", minimum)?;
            if !(MIN_BALANCE_MS..=MAX_EVERY_MS).contains(&every_ms) {
                return wrong(format!(
                    "balance.every_ms is {every_ms}; it must be from {MIN_BALANCE_MS} to {MAX_EVERY_MS}"
                ));
            }
        }
        match (self.measure, &self.currency) {
            (Some(Measure::Cost), Some(currency)) => check_currency(currency)?,
            (Some(Measure::Cost), None) => return wrong("a pool that is measured by cost needs a currency".to_owned()),
            (_, Some(_)) => return wrong("only a pool that is measured by cost has a currency".to_owned()),
            (_, None) => {}
        }
        Ok(())
    }
}

/// How much is taken of one pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Take {
    /// So much. Of a lock any amount is one share.
    Amount(Amount),
    /// All of a held pool, alone.
    Exclusive,
}

/// What is taken together, all of it or nothing, by pool.
pub type Takes = BTreeMap<ResourceName, Take>;

impl Take {
    /// One share of a lock.
    #[must_use]
    pub fn shared() -> Self {
        Self::Amount(Amount::from(1))
    }
}

impl fmt::Display for Take {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Amount(amount) => amount.fmt(f),
            Self::Exclusive => f.write_str("exclusive"),
        }
    }
}

impl FromStr for Take {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "shared" => Ok(Self::shared()),
            "exclusive" => Ok(Self::Exclusive),
            _ => text
                .parse()
                .map(Self::Amount)
                .map_err(|_| format!("{text:?} is not an amount, nor \"shared\" or \"exclusive\"")),
        }
    }
}

impl Serialize for Take {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Amount(amount) => amount.serialize(serializer),
            Self::Exclusive => serializer.serialize_str("exclusive"),
        }
    }
}

impl<'de> De<'de> for Take {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reads;
        impl Visitor<'_> for Reads {
            type Value = Take;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an amount as a number or a decimal string, \"shared\" or \"exclusive\"")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Take, E> {
                text.parse().map_err(E::custom)
            }
            fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Take, E> {
                Amount::new(value.into()).map(Take::Amount).map_err(E::custom)
            }
            fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Take, E> {
                Amount::new(value.into()).map(Take::Amount).map_err(E::custom)
            }
            fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Take, E> {
                format!("{value}").parse().map(Take::Amount).map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Reads).map_err(D::Error::custom)
    }
}

impl JsonSchema for Take {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Take".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "How much of a pool: a number, a decimal string where exactness matters, `shared` for one share of \
                            a lock, `exclusive` for all of a held pool, alone.",
            "anyOf": [
                { "type": "number", "minimum": 0 },
                { "type": "string", "pattern": "^([0-9]+(\\.[0-9]+)?|shared|exclusive)$" }
            ]
        })
    }
}

/// Who holds what was taken of pools.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Holder {
    /// An agent. What it holds ends when it leaves, is lost or is replaced.
    Agent(AgentId),
    /// Anybody else, by the name that it gave.
    Client(String),
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agent(agent) => write!(f, "agent {agent}"),
            Self::Client(name) => write!(f, "client {name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r3_a_pool_says_what_is_wrong_with_it() {
        for (text, says) in [
            (r#"{"kind": "refilled", "size": 5}"#, "needs a refill"),
            (r#"{"kind": "refilled", "refill": {"amount": 1, "every_ms": 1}}"#, "needs a size"),
            (r#"{"kind": "refilled", "size": 5, "refill": {"amount": 0, "every_ms": 1}}"#, "refill.amount is 0"),
            (r#"{"kind": "refilled", "size": 5, "refill": {"amount": 1, "every_ms": 0}}"#, "refill.every_ms is 0"),
            (r#"{"kind": "held", "size": 5, "refill": {"amount": 1, "every_ms": 1}}"#, "has no refill"),
            (r#"{"kind": "held", "size": 5, "parent": "a"}"#, "has no parent"),
            (r#"{"kind": "consumed"}"#, "needs a size"),
            (r#"{"kind": "held", "size": 1, "measure": "tokens"}"#, "has no measure"),
            (r#"{"kind": "held", "size": 1, "at_limit": "fail"}"#, "has no at_limit"),
            (r#"{"kind": "held", "size": 1, "balance": {"every_ms": 1000}}"#, "has no balance"),
            (r#"{"kind": "consumed", "size": 1, "balance": {"every_ms": 999}}"#, "balance.every_ms is 999"),
            (r#"{"kind": "consumed", "size": 1, "measure": "cost"}"#, "needs a currency"),
            (r#"{"kind": "consumed", "size": 1, "measure": "cost", "currency": "euro"}"#, "three capital letters"),
            (r#"{"kind": "consumed", "size": 1, "measure": "tokens", "currency": "EUR"}"#, "has a currency"),
            (r#"{"kind": "held", "size": "0.0000000001"}"#, "decimal places"),
            (r#"{"kind": "held", "size": 1000000000000001}"#, "at most"),
        ] {
            let error = serde_json::from_str::<Pool>(text).unwrap().check().unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
        assert!(serde_json::from_str::<Pool>(r#"{"kind": "held", "sice": 5}"#).is_err());
        for pool in
            [Pool::lock(), Pool::new(PoolKind::Consumed, 7), Pool::refilled(90_000, 60_000), Pool::budget(5, "EUR")]
        {
            pool.check().unwrap();
            assert_eq!(serde_json::from_str::<Pool>(&serde_json::to_string(&pool).unwrap()).unwrap(), pool);
        }
    }

    #[test]
    fn r6_what_is_taken_is_an_amount_a_share_or_all() {
        let read = |text: &str| serde_json::from_str::<Take>(text).unwrap();
        assert_eq!(read("\"exclusive\""), Take::Exclusive);
        assert_eq!(read("\"shared\""), Take::Amount(Amount::from(1)));
        assert_eq!(read("2.5"), read("\"2.5\""));
        let error = serde_json::from_str::<Take>("\"most\"").unwrap_err().to_string();
        assert!(error.contains("\"shared\" or \"exclusive\""), "{error}");
        assert_eq!(serde_json::to_string(&[read("3"), Take::Exclusive]).unwrap(), "[3,\"exclusive\"]");
    }
}
