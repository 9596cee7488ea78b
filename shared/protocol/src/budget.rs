//! Money: what runs and agents may cost, and what happens when there is no more.
//!
//! An account is a consumed [`Pool`] that is measured by [cost](Measure::Cost). Accounts are a tree: what is set aside or
//! spent of one is so of all that it is a part of, so that a part never spends what the whole has not. Two names mean
//! something: `run:ID` is the account of a run with a limit of its own, which comes and goes with the run, and what an agent
//! is paid for also comes out of `agent:ID`, where there is such an account.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::amount::{Amount, PLACES};
use crate::id::RunId;
use crate::name::{AgentId, ResourceName};
use crate::pool::{MAX_SIZE, Pool, PoolError, PoolKind};

/// What is set aside of an account for a task of which nobody has said what it costs: as little as there is.
#[must_use]
pub fn least() -> Amount {
    Amount::from_nanos(1)
}

/// What a run may cost.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Budget {
    /// How much at the most, all attempts at all stages together. The run has an account of its own then, `run:ID`. Without it
    /// the run spends what `of` has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<Amount>,
    /// The account that it is paid from: a team's, a project's. It must be there when the run begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub of: Option<ResourceName>,
    /// The currency of a limit that is of no account: `EUR`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub currency: Option<String>,
    /// What becomes of a task when its limit is reached.
    #[serde(skip_serializing_if = "AtLimit::is_wait")]
    pub at_limit: AtLimit,
}

impl Budget {
    /// The account that the tasks of a run are paid from.
    #[must_use]
    pub fn account(&self, run: RunId) -> Option<ResourceName> {
        if self.limit.is_some() { Some(run_account(run)) } else { self.of.clone() }
    }

    /// The account of a run with a limit of its own.
    #[must_use]
    pub fn pool(&self) -> Option<Pool> {
        let pool = Pool::new(PoolKind::Consumed, self.limit?);
        Some(Pool {
            parent: self.of.clone(),
            measure: Some(Measure::Cost),
            currency: self.currency.clone(),
            at_limit: self.at_limit,
            ..pool
        })
    }

    /// Checks what types can not say.
    ///
    /// # Errors
    /// What is wrong, and what would be right.
    pub fn check(&self) -> Result<(), PoolError> {
        let wrong = |text: &str| Err(PoolError::new(text.to_owned()));
        match (self.limit, &self.of, &self.currency) {
            (None, None, _) => return wrong("a budget needs a limit, or an account that it is `of`"),
            (None, Some(_), Some(_)) => return wrong("only a limit has a currency"),
            (Some(_), Some(_), Some(_)) => return wrong("its currency is that of the account that it is `of`"),
            (Some(_), None, None) => return wrong("a limit that is of no account needs a currency"),
            (Some(_), None, Some(_)) | (_, Some(_), None) => {}
        }
        if self.limit.is_none() && self.at_limit != AtLimit::Wait {
            return wrong("what happens at the limit of another account is for that account to say");
        }
        if let Some(currency) = &self.currency {
            check_currency(currency)?;
        }
        self.limit.map_or(Ok(()), |limit| check_money("limit", limit))
    }
}

/// What is wrong with what a task is expected to cost, if anything is.
///
/// # Errors
/// What is wrong, and what would be right.
pub fn check_money(what: &str, amount: Amount) -> Result<(), PoolError> {
    if amount > Amount::from_nanos(u128::from(MAX_SIZE) * 10u128.pow(PLACES)) {
        return Err(PoolError::new(format!("{what} is {amount}; at most {MAX_SIZE} is allowed")));
    }
    if amount != amount.rounded_up() {
        return Err(PoolError::new(format!("{what} is {amount}; at most {PLACES} decimal places are allowed")));
    }
    Ok(())
}

pub(crate) fn check_currency(currency: &str) -> Result<(), PoolError> {
    if currency.len() == 3 && currency.bytes().all(|b| b.is_ascii_uppercase()) {
        return Ok(());
    }
    Err(PoolError::new(format!("currency is {currency:?}; it must be three capital letters, like EUR")))
}

/// The account of a run that has a limit of its own.
#[must_use]
pub fn run_account(run: RunId) -> ResourceName {
    ResourceName::new(&format!("run:{run}")).expect("a run's id is a part of a name")
}

/// Whether an account comes and goes with a run: nobody makes or removes it.
#[must_use]
pub fn is_of_run(name: &ResourceName) -> bool {
    name.as_str().starts_with("run:")
}

/// Whose account that is, if it is a run's.
#[must_use]
pub fn run_of(account: &ResourceName) -> Option<RunId> {
    account.as_str().strip_prefix("run:")?.parse().ok()
}

/// The account that an agent's tasks are paid from besides, where there is such an account.
#[must_use]
pub fn agent_account(agent: &AgentId) -> ResourceName {
    ResourceName::new(&format!("agent:{agent}")).expect("an agent's id is a part of a name")
}

/// Whose account that is, if it is an agent's.
#[must_use]
pub fn agent_of(account: &ResourceName) -> Option<AgentId> {
    AgentId::new(account.as_str().strip_prefix("agent:")?).ok()
}

/// What of a task's report says how much was used of a consumed pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// What it cost: the pool is an account.
    Cost,
    /// The tokens that a model read and wrote for it.
    Tokens,
    /// How long it took, in milliseconds.
    DurationMs,
}

/// What becomes of who wants more than a consumed pool has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AtLimit {
    /// It waits until there is more: because others used less than was set aside for them, or because somebody raised the limit.
    #[default]
    Wait,
    /// A task fails, and is not tried again; an acquisition is refused.
    Fail,
    /// Somebody is asked, and it waits: `budget.approve` gives more, `budget.deny` makes the task fail.
    Ask,
}

impl AtLimit {
    /// Whether it is what is done unless something else is said.
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives references")]
    pub(crate) fn is_wait(&self) -> bool {
        *self == Self::Wait
    }
}

/// A word that is none of those that it may be.
macro_rules! words {
    ($type:ident, $($word:literal => $value:ident),+; $rule:literal) => {
        impl $type {
            /// As it is written.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$value => $word,)+
                }
            }
        }

        impl FromStr for $type {
            type Err = String;
            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($word => Ok(Self::$value),)+
                    _ => Err($rule.to_owned()),
                }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
}

words!(Measure, "cost" => Cost, "tokens" => Tokens, "duration_ms" => DurationMs; "it must be cost, tokens or duration_ms");
words!(AtLimit, "wait" => Wait, "fail" => Fail, "ask" => Ask; "it must be wait, fail or ask");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r8_a_budget_says_what_is_wrong_with_it() {
        for (text, says) in [
            ("{}", "needs a limit"),
            (r#"{"limit": 5}"#, "needs a currency"),
            (r#"{"limit": 5, "currency": "euro"}"#, "three capital letters"),
            (r#"{"limit": 5, "of": "team", "currency": "EUR"}"#, "that of the account"),
            (r#"{"of": "team", "currency": "EUR"}"#, "only a limit"),
            (r#"{"of": "team", "at_limit": "fail"}"#, "for that account to say"),
            (r#"{"limit": "0.0000000001", "of": "team"}"#, "decimal places"),
            (r#"{"limit": 1e16, "of": "team"}"#, "at most"),
        ] {
            let error = serde_json::from_str::<Budget>(text).unwrap().check().unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
        let run = RunId::derive(1, 2);
        for (text, account) in [
            (r#"{"limit": "2.50", "of": "team/a", "at_limit": "ask"}"#, run_account(run)),
            (r#"{"limit": 0, "currency": "EUR"}"#, run_account(run)),
            (r#"{"of": "team/a"}"#, "team/a".parse().unwrap()),
        ] {
            let budget: Budget = serde_json::from_str(text).unwrap();
            budget.check().unwrap();
            assert_eq!(budget.account(run), Some(account));
            assert_eq!(serde_json::from_str::<Budget>(&serde_json::to_string(&budget).unwrap()).unwrap(), budget);
        }
        assert!(is_of_run(&run_account(run)));
        assert!(serde_json::from_str::<Budget>(r#"{"limt": 1}"#).is_err());
    }
}
