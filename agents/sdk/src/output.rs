//! How a task ends.

use std::fmt;

use baton_client::Client;
use baton_protocol::object::MAX_OBJECT_BYTES;
use baton_protocol::request::{Delegate, MAX_JSON_BYTES, Usage};
use baton_protocol::{Json, Money};
use serde::Serialize;

/// What a handler returns.
pub type TaskResult = Result<Output, TaskError>;

/// What came of a task.
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    pub(crate) result: Json,
    pub(crate) cost: Cost,
    pub(crate) usage: Usage,
    pub(crate) model: Option<String>,
    // Boxed, as nearly none has it.
    pub(crate) delegate: Option<Box<Delegate>>,
}

impl Output {
    /// A result: anything that is JSON. What of it is too large for a message is kept as an object, and the stages that read the
    /// result get it whole; conditions and mappings see a reference in its place.
    pub fn json<T: Serialize + ?Sized>(result: &T) -> Result<Self, TaskError> {
        match Json::of(result) {
            Ok(json) => Ok(Self::raw(json)),
            Err(error) => Err(TaskError::failed(format!("the result is not JSON: {error}")).permanent()),
        }
    }

    /// A result that is JSON already.
    #[must_use]
    pub fn raw(result: Json) -> Self {
        Self { result, cost: Cost::default(), usage: Usage::default(), model: None, delegate: None }
    }

    /// No result: others are to do the work. A run is started that does these stages, and what comes of it is the result of this
    /// task's stage, or the next agent that has the stage puts it together
    /// ([`Delegation::aggregate`], [`Task::gathered`](crate::Task::gathered)).
    #[must_use]
    pub fn delegate(delegation: Delegation) -> Self {
        Self { delegate: Some(Box::new(delegation.0)), ..Self::raw(Json::null()) }
    }

    /// What it cost, as a decimal: `"0.01"`. One that is not a decimal makes the task fail, rather than be free.
    #[must_use]
    pub fn cost(mut self, cost: impl fmt::Display) -> Self {
        self.cost.set(&cost);
        self
    }

    /// How many tokens a model read and wrote for it.
    #[must_use]
    pub fn usage(mut self, tokens_in: u64, tokens_out: u64) -> Self {
        self.usage = Usage { tokens_in, tokens_out };
        self
    }

    /// The model that did it: what was spent is added up by it (`baton budgets spending --by model`).
    #[must_use]
    pub fn model(mut self, model: impl Into<String>) -> Self {
        self.model = Some(model.into());
        self
    }

    /// How many bytes are delegated.
    fn delegated(&self) -> usize {
        self.delegate.as_ref().map_or(0, |delegate| delegate.stages.size() + delegate.input.size())
    }

    /// With a result that is small enough for a message.
    pub(crate) async fn shrunk(mut self, client: &Client) -> TaskResult {
        if (MAX_JSON_BYTES + 1..=MAX_OBJECT_BYTES).contains(&self.result.size()) {
            match client.shrink(self.result.clone()).await {
                Ok(result) => self.result = result,
                Err(error) => {
                    let failed = TaskError::failed(format!("the result can not be kept: {error}"));
                    let model = self.model.map(Into::into);
                    return Err(TaskError { cost: self.cost, usage: self.usage, model, ..failed });
                }
            }
        }
        Ok(self)
    }

    /// The result, unless it can not be reported.
    pub(crate) fn checked(self) -> TaskResult {
        let wrong = match &self.cost.wrong {
            Some(wrong) => wrong.clone(),
            None if self.result.size() > MAX_JSON_BYTES => format!(
                "the result has {} bytes; at most {MAX_OBJECT_BYTES} are kept: keep it elsewhere and give a reference",
                self.result.size()
            ),
            None if self.delegated() > MAX_JSON_BYTES => format!(
                "what is delegated has {} bytes, and at most {MAX_JSON_BYTES} travel in a message",
                self.delegated()
            ),
            None => return Ok(self),
        };
        let cost = Cost { money: self.cost.money, wrong: None };
        Err(TaskError {
            message: wrong,
            code: None,
            retryable: false,
            cost,
            usage: self.usage,
            model: self.model.map(Into::into),
        })
    }
}

/// Work for others: stages, as in the definition of a workflow.
///
/// ```
/// # use baton_sdk::{Delegation, Output, TaskError};
/// # use serde_json::json;
/// # fn handler() -> Result<Output, TaskError> {
/// let stages = json!([
///     { "name": "facts", "agent_type": "research", "params": { "topic": "tea" } },
///     { "name": "text", "agent_type": "writing", "depends_on": ["facts"] },
/// ]);
/// Ok(Output::delegate(Delegation::of(&stages)?.aggregate()))
/// # }
/// # assert!(handler().is_ok());
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Delegation(Delegate);

impl Delegation {
    /// These stages: a list of what the format of definitions calls a stage, or of
    /// [`StageDefinition`](baton_protocol::StageDefinition)s. They are checked when they are reported; if something is wrong with
    /// them, the attempt fails with the code `invalid_delegation`.
    ///
    /// # Errors
    /// They can not be written as JSON.
    pub fn of<T: Serialize + ?Sized>(stages: &T) -> Result<Self, TaskError> {
        let stages = json(stages, "what is delegated")?;
        Ok(Self(Delegate { stages, ..Delegate::default() }))
    }

    /// What the agents of these stages are given, where their own `input` does not say it: an object. It is what this task's run
    /// was given, unless it is said.
    ///
    /// # Errors
    /// It can not be written as JSON.
    pub fn input<T: Serialize + ?Sized>(mut self, input: &T) -> Result<Self, TaskError> {
        self.0.input = json(input, "the input of what is delegated")?;
        Ok(self)
    }

    /// An agent is to put together what comes of them: the stage has another task then, for this agent or another one of its type.
    #[must_use]
    pub fn aggregate(mut self) -> Self {
        self.0.aggregate = true;
        self
    }
}

fn json<T: Serialize + ?Sized>(value: &T, what: &str) -> Result<Json, TaskError> {
    Json::of(value).map_err(|error| TaskError::failed(format!("{what} is not JSON: {error}")).permanent())
}

/// A cost, or why what was given is none.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Cost {
    pub(crate) money: Money,
    pub(crate) wrong: Option<String>,
}

impl Cost {
    fn set(&mut self, cost: &dyn fmt::Display) {
        match cost.to_string().parse() {
            Ok(money) => *self = Self { money, wrong: None },
            Err(error) => self.wrong = Some(format!("the cost of the task: {error}")),
        }
    }
}

/// Why a task failed.
///
/// Every error that `?` meets in a handler becomes one, and is retryable.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskError {
    pub(crate) message: String,
    // Boxed, as it goes through every `?`: the smaller the better.
    pub(crate) code: Option<Box<str>>,
    pub(crate) retryable: bool,
    pub(crate) cost: Cost,
    pub(crate) usage: Usage,
    pub(crate) model: Option<Box<str>>,
}

impl TaskError {
    /// A failure that another attempt may heal.
    pub fn failed(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            code: None,
            retryable: true,
            cost: Cost::default(),
            usage: Usage::default(),
            model: None,
        }
    }

    /// Says what kind of failure it is, in at most 64 bytes: `rate_limited`. A workflow may say which kinds are not to be
    /// tried again (`retry.non_retryable`).
    #[must_use]
    pub fn code(mut self, code: impl Into<String>) -> Self {
        let code: String = code.into();
        self.code = Some(code.into());
        self
    }

    /// A failure that no further attempt heals.
    #[must_use]
    pub fn permanent(mut self) -> Self {
        self.retryable = false;
        self
    }

    /// What the attempt cost all the same, as a decimal.
    #[must_use]
    pub fn cost(mut self, cost: impl fmt::Display) -> Self {
        self.cost.set(&cost);
        self
    }

    /// How many tokens a model read and wrote for it all the same.
    #[must_use]
    pub fn usage(mut self, tokens_in: u64, tokens_out: u64) -> Self {
        self.usage = Usage { tokens_in, tokens_out };
        self
    }

    /// The model that failed: what was spent is added up by it (`baton budgets spending --by model`).
    #[must_use]
    pub fn model(mut self, model: impl Into<String>) -> Self {
        let model: String = model.into();
        self.model = Some(model.into());
        self
    }

    /// Why.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Whether another attempt may heal it.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.retryable
    }
}

impl fmt::Display for TaskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

// `TaskError` is not a `std::error::Error`, as `anyhow::Error` is none: that is what makes this conversion possible.
impl<E: Into<anyhow::Error>> From<E> for TaskError {
    fn from(error: E) -> Self {
        Self::failed(format!("{:#}", error.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_become_retryable_failures_with_their_whole_chain() {
        fn read() -> TaskResult {
            use anyhow::Context as _;
            let number: u32 = "x".parse::<u32>().context("reading the number")?;
            Output::json(&number)
        }
        let error = read().unwrap_err();
        assert_eq!(error.message(), "reading the number: invalid digit found in string");
        assert!(error.is_retryable());
        fn direct() -> TaskResult {
            Output::json(&"x".parse::<u32>()?)
        }
        assert!(direct().unwrap_err().message().contains("invalid digit"));
        fn own() -> TaskResult {
            Err(TaskError::failed("no").permanent())?
        }
        assert!(!own().unwrap_err().is_retryable());
    }

    #[test]
    fn what_can_not_be_reported_is_a_permanent_failure() {
        let output = Output::json("x").unwrap().cost("0.010").usage(1, 2);
        assert_eq!(output.cost.money.to_string(), "0.01");
        assert_eq!(output.clone().checked().unwrap(), output);
        for (output, why) in [
            (Output::json("x").unwrap().cost("a cent"), "a cent"),
            (Output::json("x").unwrap().cost(-1), "negative"),
            (Output::json(&"x".repeat(MAX_JSON_BYTES)).unwrap(), "262146 bytes"),
        ] {
            let error = output.checked().unwrap_err();
            assert!(error.message().contains(why) && !error.is_retryable(), "{error}");
        }
    }
}
