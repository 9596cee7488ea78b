//! Workflow definitions: stages, what each needs, and what each depends on.
//!
//! A definition is checked as a whole when it is registered, so that a run never meets a wrong one. Unknown keys are
//! errors here, unlike in messages: a key that a service does not know would change what the workflow means.

mod flow;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::LazyLock;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::amount::{Amount, Resources};
use crate::budget::{self, Budget};
use crate::id::{Millis, TaskId, mix};
use crate::name::{Capability, NameError, StageName, WorkflowName};
use crate::nearest::nearest;
use crate::pool::PoolError;
use crate::requirement::Requirements;

pub use flow::{
    Approval, Cache, Expression, ForEach, Join, MAX_EXPRESSION_BYTES, MAX_ITEMS, Mapping, OnFailure, OnTimeout,
    Otherwise, Speculative, WaitFor,
};

/// The most stages that a workflow may have.
pub const MAX_STAGES: usize = 10_000;

/// The most bytes of the kind of a stage's work.
pub const MAX_KIND_BYTES: usize = 100;

/// A workflow's definition.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Definition {
    /// The workflow's name.
    pub name: WorkflowName,
    /// What it is for, in a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Given to every agent with its task. `requires_citations: true` makes verification fail when citations are missing.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, Value>,
    /// How long a run may take, in milliseconds.
    #[serde(default = "default_run_timeout_ms", skip_serializing_if = "is_default_run_timeout_ms")]
    pub timeout_ms: Millis,
    /// What a run may cost, unless it is started with another budget.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
    /// A JSON Schema (2020-12) that the input of every run must fit. A start with another input is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_schema: Option<Value>,
    /// The stages. Order matters only where nothing else decides.
    pub stages: Vec<StageDefinition>,
}

/// One stage of a workflow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StageDefinition {
    /// The stage's name, unique within the workflow.
    pub name: StageName,
    /// Which agents can do it: those of this type, or with a capability of this name. Nobody can where people decide
    /// (`approval`), a signal is waited for (`wait_for`), or a run of another workflow does it (`workflow`).
    #[serde(default = "nobody", skip_serializing_if = "is_nobody")]
    pub agent_type: Capability,
    /// People decide on it; no agent has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<Approval>,
    /// It waits for a signal to its run; no agent has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_for: Option<WaitFor>,
    /// A run of this workflow does it, and no agent has it. What comes of that run is the stage's result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workflow: Option<WorkflowName>,
    /// Which version of that workflow; the latest one when it begins, unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workflow_version: Option<u32>,
    /// What such an agent's metadata of that capability must be.
    #[serde(default, skip_serializing_if = "Requirements::is_empty")]
    pub requires: Requirements,
    /// The stages whose end it waits for, and whose results it is given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub depends_on: Vec<StageName>,
    /// Which of them must have run, and not been skipped, for this one to run.
    #[serde(default, skip_serializing_if = "Join::is_default")]
    pub join: Join,
    /// The stage runs only if this gives true; otherwise it is skipped. Looked at once, when the stage would begin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<Expression>,
    /// The stage has a task for each item of a list that is found in the run. Its result is the list of theirs, in the order of
    /// the items.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub for_each: Option<ForEach>,
    /// Whether it may run while other stages of the same run do. `false`: it runs alone.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub parallel: bool,
    /// Whether the run goes on when this stage fails: the short form of `on_failure: continue`.
    #[serde(default, skip_serializing_if = "is_no")]
    pub optional: bool,
    /// What happens when it has failed for good.
    #[serde(default, skip_serializing_if = "OnFailure::is_default")]
    pub on_failure: OnFailure,
    /// What its agent is given instead of the run's input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<Mapping>,
    /// What its result is instead of what its agent reported, which is `result` in here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<Mapping>,
    /// Its result may be used again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<Cache>,
    /// It may begin before all that it depends on is over. Its agent is given `input` alone, and no results.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speculative: Option<Speculative>,
    /// Whether a second agent may be given a task of it while the first one is at it, where that is late or may fail and others
    /// idle (under ADAPTIVE). What is reported first counts, and the other one is called back: so it must do no harm if both
    /// do the whole of it.
    #[serde(default, skip_serializing_if = "is_no")]
    pub hedge: bool,
    /// A JSON Schema (2020-12) that what its agent is given must fit. If it does not, the stage fails and is not retried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_schema: Option<Value>,
    /// A JSON Schema (2020-12) that what its agent reports must fit. If it does not, the attempt has failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_schema: Option<Value>,
    /// Given to the agent as it is.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub params: BTreeMap<String, Value>,
    /// What the agent must set aside for it, beside one slot.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub resources: Resources,
    /// What one attempt is expected to cost at the most: so much is set aside for it in the run's account, and in its agent's,
    /// before it begins. Without it as good as nothing is, and the account may be overrun by what then runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Amount>,
    /// What is known beforehand of how much work it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimate: Option<Estimate>,
    /// What its tasks, or the run that does it, are more urgent than its run: added to the run's priority. Larger goes first.
    #[serde(default, skip_serializing_if = "crate::record::is_zero")]
    pub priority: i32,
    /// In how many milliseconds after its run's start it should be over. Placement strives for it; nothing ends because of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due_ms: Option<Millis>,
    /// What happens when an attempt fails.
    #[serde(default, skip_serializing_if = "RetryPolicy::is_default")]
    pub retry: RetryPolicy,
    /// How long the stage may wait for an agent, in milliseconds.
    #[serde(default = "default_stage_timeout_ms", skip_serializing_if = "is_default_stage_timeout_ms")]
    pub start_timeout_ms: Millis,
    /// How long one attempt may take once an agent has it, in milliseconds.
    #[serde(default = "default_stage_timeout_ms", skip_serializing_if = "is_default_stage_timeout_ms")]
    pub timeout_ms: Millis,
    /// How long its agent may say nothing of an attempt that it has, in milliseconds: each progress that it tells counts. An
    /// attempt of which nothing is heard for that long is ended like one whose agent is lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heartbeat_timeout_ms: Option<Millis>,
    /// How long all its attempts may take together, with the waits before and between them, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_timeout_ms: Option<Millis>,
}

/// What stands for an agent type where no agent has a stage.
const NOBODY: &str = "no-agent";

/// The longest time for which a result may be used again, in milliseconds: 30 days.
const MAX_CACHE_MS: Millis = 30 * 24 * 60 * 60 * 1000;

/// The longest text that people are asked, in bytes.
const MAX_ASK_BYTES: usize = 4096;

fn nobody() -> Capability {
    static NOBODY_AT_ALL: LazyLock<Capability> = LazyLock::new(|| Capability::new(NOBODY).expect("it is a name"));
    NOBODY_AT_ALL.clone()
}
fn is_nobody(agent_type: &Capability) -> bool {
    agent_type.as_str() == NOBODY
}
fn yes() -> bool {
    true
}
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives references")]
fn is_yes(value: &bool) -> bool {
    *value
}
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives references")]
fn is_no(value: &bool) -> bool {
    !*value
}
fn default_run_timeout_ms() -> Millis {
    24 * 60 * 60 * 1000
}
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives references")]
fn is_default_run_timeout_ms(value: &Millis) -> bool {
    *value == default_run_timeout_ms()
}
fn default_stage_timeout_ms() -> Millis {
    60 * 60 * 1000
}
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives references")]
fn is_default_stage_timeout_ms(value: &Millis) -> bool {
    *value == default_stage_timeout_ms()
}

/// What is known beforehand of how much work a stage is. Placement starts from it, and learns.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Estimate {
    /// What kind of work it is: stages of one kind take alike long for alike much, in whatever workflow they are. Unless
    /// given, stages of one agent type whose names differ in a number at the end are of one kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// How long it takes an agent of ordinary speed, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<Millis>,
    /// How much it has to read, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// How many tokens it takes a model, in and out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
}

/// When and how often a failed attempt is followed by another.
///
/// The wait before attempt `n + 1` is `initial_ms · factor^(n-1)`, at most `max_ms`, less a random part of up to
/// `jitter` of it. The first source document retries three times and waits `2^attempt` seconds: the defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RetryPolicy {
    /// The most attempts, the first included; at least 1.
    pub max_attempts: u32,
    /// The wait before the second attempt, in milliseconds.
    pub initial_ms: Millis,
    /// By how much each wait is longer than the last; at least 1.
    pub factor: f64,
    /// The longest wait, in milliseconds.
    pub max_ms: Millis,
    /// How much of a wait is random, from 0 to 1.
    pub jitter: f64,
    /// Codes of failures after which no other attempt is made: what an agent gives as the `code` of its report; and what
    /// Baton says itself, `failed` (no code was given), `lost`, `timed_out`, `invalid_result` or `output_failed`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub non_retryable: Vec<String>,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { max_attempts: 3, initial_ms: 1000, factor: 2.0, max_ms: 60_000, jitter: 0.2, non_retryable: Vec::new() }
    }
}

impl RetryPolicy {
    /// The wait after a task has failed. The jitter is a hash of run, stage, item and attempt: a machine has no randomness,
    /// and what failed together should not come back together.
    #[must_use]
    pub fn wait_ms(&self, task: &TaskId) -> Millis {
        let TaskId { run, stage, item, attempt } = task;
        let exponent = i32::try_from(attempt.saturating_sub(1)).unwrap_or(i32::MAX);
        let full = (self.initial_ms as f64 * self.factor.powi(exponent)).min(self.max_ms as f64);
        let seed = stage
            .as_str()
            .bytes()
            .fold(mix(run.as_u128() as u64 ^ u64::from(*attempt)), |hash, byte| mix(hash ^ u64::from(byte)));
        let seed = item.map_or(seed, |item| mix(seed ^ u64::from(item)));
        let part = (seed >> 11) as f64 / (1u64 << 53) as f64;
        (full * (1.0 - self.jitter * part)).round() as Millis
    }

    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What is wrong with a definition, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DefinitionError {
    /// The text is not a definition: wrong syntax, an unknown key, a missing one, a wrong type, a bad name.
    #[error("{0}")]
    Syntax(String),
    /// No stages.
    #[error("workflow {0} has no stages: give it at least one")]
    Empty(WorkflowName),
    /// Too many stages.
    #[error("workflow {workflow} has {count} stages: at most {MAX_STAGES} are allowed")]
    TooManyStages {
        /// The workflow.
        workflow: WorkflowName,
        /// How many it has.
        count: usize,
    },
    /// Two stages of one name.
    #[error("stage {0} is defined twice: stage names are unique within a workflow")]
    DuplicateStage(StageName),
    /// A dependency that is not a stage.
    #[error("stage {stage} depends on {dependency}, which is not a stage of this workflow{hint}")]
    UnknownDependency {
        /// The stage.
        stage: StageName,
        /// What it depends on.
        dependency: StageName,
        /// Which stage is probably meant, or which there are.
        hint: String,
    },
    /// The same dependency named twice.
    #[error("stage {stage} names its dependency {dependency} twice")]
    DuplicateDependency {
        /// The stage.
        stage: StageName,
        /// What it names twice.
        dependency: StageName,
    },
    /// Stages that wait for each other.
    #[error("the stages wait for each other in a cycle: {0}")]
    Cycle(String),
    /// A number that makes no sense.
    #[error("{place}: {field} is {value}; it must be {rule}")]
    Value {
        /// The stage or workflow.
        place: String,
        /// The key.
        field: &'static str,
        /// What it is.
        value: String,
        /// What it may be.
        rule: &'static str,
    },
    /// A budget that makes no sense: of what, and what is wrong.
    #[error("{0}: budget: {1}")]
    Budget(String, PoolError),
    /// A bad name given to the builder.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Something at a place of the definition makes no sense.
    #[error("{place}: {what}")]
    Wrong {
        /// The stage or workflow, and the key.
        place: String,
        /// What is wrong, and what would be right.
        what: String,
        /// Where.
        path: Vec<Step>,
    },
    /// Any of these, where it is in the text.
    #[error("{error} at line {line}, column {column}")]
    At {
        /// What is wrong.
        error: Box<DefinitionError>,
        /// The line, from 1.
        line: u64,
        /// The column, from 1.
        column: u64,
    },
}

/// A step on the way from the whole of a definition to a part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Into the value of a key.
    Key(String),
    /// Into a member of a list, counted from 0.
    Index(usize),
}

impl From<&str> for Step {
    fn from(key: &str) -> Self {
        Self::Key(key.to_owned())
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(key) => f.write_str(key),
            Self::Index(index) => index.fmt(f),
        }
    }
}

impl DefinitionError {
    /// Something wrong with a key of a stage, or of the workflow itself. The key is a path with dots.
    #[must_use]
    pub fn wrong(definition: &Definition, stage: Option<usize>, key: &str, what: impl Into<String>) -> Self {
        let mut path: Vec<Step> = Vec::new();
        let place = match stage.and_then(|place| Some((place, definition.stages.get(place)?))) {
            Some((place, stage)) => {
                path.extend([Step::from("stages"), Step::Index(place)]);
                format!("stage {}: {key}", stage.name)
            }
            None => format!("workflow {}: {key}", definition.name),
        };
        path.extend(key.split('.').map(Step::from));
        Self::Wrong { place, what: what.into(), path }
    }

    /// Where in the definition it is.
    #[must_use]
    pub fn path(&self, definition: &Definition) -> Vec<Step> {
        let place = |name: &StageName| definition.stages.iter().position(|stage| stage.name == *name);
        let stage = |place: Option<usize>, keys: &[Step]| {
            let place = place.map(|place| [Step::from("stages"), Step::Index(place)]);
            place.into_iter().flatten().chain(keys.iter().cloned()).collect::<Vec<_>>()
        };
        match self {
            Self::Empty(_) | Self::TooManyStages { .. } => vec!["stages".into()],
            Self::DuplicateStage(name) => {
                let second = definition.stages.iter().rposition(|stage| stage.name == *name);
                stage(second, &["name".into()])
            }
            Self::UnknownDependency { stage: of, dependency, .. }
            | Self::DuplicateDependency { stage: of, dependency } => {
                let place = place(of);
                let names = place.map(|place| &definition.stages[place].depends_on);
                // Of one that is there twice, the second.
                let index = names.and_then(|names| names.iter().rposition(|name| name == dependency));
                stage(place, &["depends_on".into(), Step::Index(index.unwrap_or(0))])
            }
            Self::Cycle(cycle) => {
                let first = cycle.split(' ').next().unwrap_or_default();
                stage(definition.stages.iter().position(|stage| stage.name.as_str() == first), &["depends_on".into()])
            }
            Self::Value { place: of, field, .. } => {
                let of = of.strip_prefix("stage ").and_then(|name| StageName::new(name).ok());
                let keys: Vec<_> = field.split('.').map(Step::from).collect();
                stage(of.and_then(|name| place(&name)), &keys)
            }
            Self::Budget(of, _) => {
                let of = of.strip_prefix("stage ").and_then(|name| StageName::new(name).ok());
                stage(of.and_then(|name| place(&name)), &["budget".into()])
            }
            Self::Wrong { path, .. } => path.clone(),
            Self::At { error, .. } => error.path(definition),
            Self::Syntax(_) | Self::Name(_) => Vec::new(),
        }
    }
}

impl Definition {
    /// Starts a definition in code. See [`Builder`].
    #[must_use]
    pub fn builder(name: &str) -> Builder {
        Builder {
            name: WorkflowName::new(name),
            description: None,
            metadata: BTreeMap::new(),
            budget: None,
            input_schema: None,
            stages: Vec::new(),
        }
    }

    /// Checks what types can not say: names are unique, dependencies exist, there is no cycle, numbers make sense.
    pub fn check(&self) -> Result<(), DefinitionError> {
        if self.stages.is_empty() {
            return Err(DefinitionError::Empty(self.name.clone()));
        }
        if self.stages.len() > MAX_STAGES {
            return Err(DefinitionError::TooManyStages { workflow: self.name.clone(), count: self.stages.len() });
        }
        check_positive(&format!("workflow {}", self.name), "timeout_ms", self.timeout_ms)?;
        if let Some(budget) = &self.budget {
            budget.check().map_err(|error| DefinitionError::Budget(format!("workflow {}", self.name), error))?;
        }
        let mut index = BTreeMap::new();
        for (i, stage) in self.stages.iter().enumerate() {
            if index.insert(&stage.name, i).is_some() {
                return Err(DefinitionError::DuplicateStage(stage.name.clone()));
            }
        }
        for stage in &self.stages {
            stage.check()?;
            let mut seen = BTreeSet::new();
            for dependency in &stage.depends_on {
                if !index.contains_key(dependency) {
                    return Err(DefinitionError::UnknownDependency {
                        stage: stage.name.clone(),
                        dependency: dependency.clone(),
                        hint: self.hint(dependency.as_str()),
                    });
                }
                if !seen.insert(dependency) {
                    return Err(DefinitionError::DuplicateDependency {
                        stage: stage.name.clone(),
                        dependency: dependency.clone(),
                    });
                }
            }
        }
        self.check_flow(&index)?;
        self.cycle().map_or(Ok(()), |cycle| Err(DefinitionError::Cycle(cycle)))
    }

    /// Checks what the way through the stages adds to their dependencies.
    fn check_flow(&self, index: &BTreeMap<&StageName, usize>) -> Result<(), DefinitionError> {
        let mut stands_for: BTreeMap<&StageName, &StageName> = BTreeMap::new();
        for (place, stage) in self.stages.iter().enumerate() {
            let wrong = |key: &str, what: String| Err(DefinitionError::wrong(self, Some(place), key, what));
            if !stage.join.is_default() && stage.depends_on.is_empty() {
                return wrong("join", "it has no depends_on to join".to_owned());
            }
            if stage.optional && !stage.on_failure.is_default() {
                let what = "it is optional already, which says on_failure: continue; give one of the two";
                return wrong("on_failure", what.to_owned());
            }
            for (key, mapping) in [("input", &stage.input), ("output", &stage.output)] {
                if matches!(mapping, Some(Mapping::Each(each)) if each.is_empty()) {
                    return wrong(key, "it is empty: give it at least one key, or leave it out".to_owned());
                }
            }
            if stage.for_each.as_ref().is_some_and(|each| each.max_parallel == Some(0)) {
                return wrong("for_each.max_parallel", "it is 0; it must be at least 1".to_owned());
            }
            if let Some((key, what)) = stage.cached_wrongly() {
                return wrong(key, what);
            }
            if let Some((key, what)) = stage.asks_wrongly().or_else(|| stage.done_wrongly()) {
                return wrong(key, what);
            }
            if let Some((key, what)) = stage.assumed_wrongly() {
                return wrong(key, what);
            }
            if stage.workflow.as_ref() == Some(&self.name) {
                let what = format!("{} is this workflow itself: a run of it would begin without end", self.name);
                return wrong("workflow", what);
            }
            let OnFailure::Fallback(fallback) = &stage.on_failure else { continue };
            let key = "on_failure.fallback";
            let Some(other) = index.get(fallback).map(|place| &self.stages[*place]) else {
                return wrong(
                    key,
                    format!("{fallback} is not a stage of this workflow{}", self.hint(fallback.as_str())),
                );
            };
            if other.name == stage.name {
                return wrong(key, "a stage can not stand in for itself; give it more attempts instead".to_owned());
            }
            if let Some(first) = stands_for.insert(fallback, &stage.name) {
                return wrong(
                    key,
                    format!("{fallback} is the fallback of stage {first} already: it stands for one stage"),
                );
            }
            if other.when.is_some() {
                let what =
                    format!("{fallback} has a condition (when); a fallback runs when its stage has failed, always");
                return wrong(key, what);
            }
            if other.speculative.is_some() {
                let what =
                    format!("{fallback} is speculative; a fallback runs when its stage has failed, and no earlier");
                return wrong(key, what);
            }
            if other.join == Join::All {
                let what = format!("{fallback} says join: all; a fallback runs when its stage has failed, always");
                return wrong(key, what);
            }
        }
        Ok(())
    }

    /// Which stage is probably meant by a wrong name, or which there are.
    #[must_use]
    pub fn hint(&self, wrong: &str) -> String {
        const MOST: usize = 20;
        let names = || self.stages.iter().map(|stage| stage.name.as_str());
        match nearest(wrong, names()) {
            Some(name) => format!("; did you mean {name}?"),
            None => {
                let more = if self.stages.len() > MOST { ", …" } else { "" };
                format!("; the stages are: {}{more}", names().take(MOST).collect::<Vec<_>>().join(", "))
            }
        }
    }

    /// For each stage the places of those it waits for: its dependencies, their fallbacks, and the stage that it is the
    /// fallback of. A fallback that is not needed is over when that is known.
    ///
    /// Names that are no stages are left out.
    #[must_use]
    pub fn waits(&self) -> Vec<Vec<usize>> {
        let index: BTreeMap<_, _> = self.stages.iter().enumerate().map(|(i, stage)| (&stage.name, i)).collect();
        let fallback = |place: usize| match &self.stages[place].on_failure {
            OnFailure::Fallback(name) => index.get(name).copied(),
            OnFailure::Fail | OnFailure::Continue => None,
        };
        let mut waits: Vec<Vec<usize>> = Vec::with_capacity(self.stages.len());
        for (place, stage) in self.stages.iter().enumerate() {
            let mut of: Vec<usize> = Vec::with_capacity(stage.depends_on.len());
            for dependency in stage.depends_on.iter().filter_map(|name| index.get(name).copied()) {
                of.push(dependency);
                // A fallback may depend on the stage that it stands for, and not on itself. A cycle of fallbacks is no
                // reason to go round for ever.
                let others = std::iter::successors(fallback(dependency), |other| fallback(*other));
                of.extend(others.take_while(|other| *other != place).take(self.stages.len()));
            }
            waits.push(of);
        }
        for place in 0..self.stages.len() {
            if let Some(other) = fallback(place) {
                waits[other].push(place);
            }
        }
        for of in &mut waits {
            of.sort_unstable();
            of.dedup();
        }
        waits
    }

    /// The places of the stages whose results are what comes of a run as a whole: those on which no other depends, fallbacks left
    /// out. There is always one.
    #[must_use]
    pub fn last_stages(&self) -> Vec<usize> {
        let fallbacks: BTreeSet<_> = self.stages.iter().filter_map(|stage| stage.on_failure.fallback()).collect();
        let own = || self.stages.iter().filter(|stage| !fallbacks.contains(&stage.name));
        let depended_on: BTreeSet<_> = own().flat_map(|stage| &stage.depends_on).collect();
        let is_last = |stage: &StageDefinition| !fallbacks.contains(&stage.name) && !depended_on.contains(&stage.name);
        (0..self.stages.len()).filter(|place| is_last(&self.stages[*place])).collect()
    }

    /// The stage of that name.
    #[must_use]
    pub fn stage(&self, name: &str) -> Option<&StageDefinition> {
        self.stages.iter().find(|stage| stage.name.as_str() == name)
    }

    /// A cycle among the dependencies as `a -> b -> a`, if there is one. Depth first, without recursion: a chain may be
    /// ten thousand stages long.
    fn cycle(&self) -> Option<String> {
        #[derive(Clone, Copy, PartialEq)]
        enum Mark {
            New,
            Open,
            Done,
        }
        let waits = self.waits();
        let mut marks = vec![Mark::New; self.stages.len()];
        for root in 0..self.stages.len() {
            if marks[root] != Mark::New {
                continue;
            }
            let mut path = vec![(root, 0)];
            marks[root] = Mark::Open;
            while let Some((stage, next)) = path.last_mut() {
                let Some(&dependency) = waits[*stage].get(*next) else {
                    marks[*stage] = Mark::Done;
                    path.pop();
                    continue;
                };
                *next += 1;
                match marks[dependency] {
                    Mark::New => {
                        marks[dependency] = Mark::Open;
                        path.push((dependency, 0));
                    }
                    Mark::Open => {
                        let from = path.iter().position(|(s, _)| *s == dependency).unwrap_or(0);
                        let mut names: Vec<_> =
                            path[from..].iter().map(|(s, _)| self.stages[*s].name.as_str()).collect();
                        names.push(self.stages[dependency].name.as_str());
                        return Some(names.join(" -> "));
                    }
                    Mark::Done => {}
                }
            }
        }
        None
    }
}

impl StageDefinition {
    fn check(&self) -> Result<(), DefinitionError> {
        let place = format!("stage {}", self.name);
        check_positive(&place, "timeout_ms", self.timeout_ms)?;
        check_positive(&place, "start_timeout_ms", self.start_timeout_ms)?;
        if let Some(amount) = self.budget {
            budget::check_money("budget", amount).map_err(|error| DefinitionError::Budget(place.clone(), error))?;
        }
        if let Some(silence) = self.heartbeat_timeout_ms {
            check_positive(&place, "heartbeat_timeout_ms", silence)?;
        }
        if let Some(total) = self.total_timeout_ms {
            check_positive(&place, "total_timeout_ms", total)?;
        }
        if let Some(due) = self.due_ms {
            check_positive(&place, "due_ms", due)?;
        }
        let wrong =
            |field, value: String, rule| Err(DefinitionError::Value { place: place.clone(), field, value, rule });
        if let Some(estimate) = &self.estimate {
            if let Some(duration_ms) = estimate.duration_ms {
                check_positive(&place, "estimate.duration_ms", duration_ms)?;
            }
            if let Some(kind) = estimate.kind.as_ref().filter(|kind| kind.is_empty() || kind.len() > MAX_KIND_BYTES) {
                return wrong("estimate.kind", format!("{kind:?}"), "a text of 1 to 100 bytes");
            }
        }
        let retry = &self.retry;
        if retry.max_attempts == 0 || retry.max_attempts > 1000 {
            return wrong("retry.max_attempts", retry.max_attempts.to_string(), "from 1 to 1000");
        }
        if !(1.0..=100.0).contains(&retry.factor) {
            return wrong("retry.factor", retry.factor.to_string(), "from 1 to 100");
        }
        if !(0.0..=1.0).contains(&retry.jitter) {
            return wrong("retry.jitter", retry.jitter.to_string(), "from 0 to 1");
        }
        if retry.max_ms > MAX_MS {
            return wrong("retry.max_ms", retry.max_ms.to_string(), "from 0 to 31622400000 (a year)");
        }
        if retry.initial_ms > retry.max_ms {
            return wrong("retry.initial_ms", retry.initial_ms.to_string(), "no more than retry.max_ms");
        }
        let mut codes = BTreeSet::new();
        for code in &retry.non_retryable {
            if code.is_empty() || code.len() > MAX_CODE_BYTES {
                return wrong("retry.non_retryable", format!("{code:?}"), "codes of 1 to 64 bytes");
            }
            if !codes.insert(code) {
                return wrong("retry.non_retryable", format!("{code:?} twice"), "codes that differ");
            }
        }
        Ok(())
    }

    /// Whether it waits for somebody's word, and no agent has it.
    #[must_use]
    pub fn asks(&self) -> bool {
        self.approval.is_some() || self.wait_for.is_some()
    }

    /// What is wrong with how its result is used again, and at which key.
    fn cached_wrongly(&self) -> Option<(&'static str, String)> {
        let cache = self.cache.as_ref()?;
        if !(1..=MAX_CACHE_MS).contains(&cache.ttl_ms) {
            return Some(("cache.ttl_ms", format!("it is {}; it must be 1 to {MAX_CACHE_MS}", cache.ttl_ms)));
        }
        if self.for_each.is_some() {
            return Some(("cache", "a stage with a task for each item has none".to_owned()));
        }
        // What an output looks at, nobody's agent is given.
        let unknown = self.output.is_some() && cache.key.is_none();
        unknown.then(|| ("cache.key", "it is missing: what do the results depend on that `output` makes?".to_owned()))
    }

    /// What is wrong with how it begins early, and at which key.
    fn assumed_wrongly(&self) -> Option<(&'static str, String)> {
        let assume = &self.speculative.as_ref()?.assume;
        let wrong = |key, what| Some((key, what));
        if assume.is_empty() {
            let what = "it is empty: of which stages of depends_on is a result to be assumed?".to_owned();
            return wrong("speculative.assume", what);
        }
        if let Some(unknown) = assume.keys().find(|name| !self.depends_on.contains(name)) {
            let names: Vec<_> = self.depends_on.iter().map(StageName::as_str).collect();
            let hint = nearest(unknown.as_str(), names.iter().copied());
            let hint = hint.map_or_else(
                || match names.as_slice() {
                    [] => "; the stage depends on none".to_owned(),
                    _ => format!("; it depends on: {}", names.join(", ")),
                },
                |name| format!("; did you mean {name}?"),
            );
            return wrong("speculative.assume", format!("the stage does not depend on {unknown}{hint}"));
        }
        let has = [
            ("for_each", self.for_each.is_some(), "have a task for each item"),
            ("cache", self.cache.is_some(), "have a cache"),
            ("parallel", !self.parallel, "run alone"),
            ("hedge", self.hedge, "be given to a second agent"),
        ];
        if let Some((key, _, has)) = has.into_iter().find(|(_, given, _)| *given) {
            return wrong(key, format!("a stage that is speculative can not {has}"));
        }
        let what = "it is missing: what a speculative stage is given is compared with what was assumed";
        if self.input.is_none() { wrong("input", what.to_owned()) } else { None }
    }

    /// Whether agents do it, and not people, or a run of another workflow.
    #[must_use]
    pub fn has_agent(&self) -> bool {
        !self.asks() && self.workflow.is_none()
    }

    /// What is wrong with how it says whose word it waits for, and at which key.
    fn asks_wrongly(&self) -> Option<(&'static str, String)> {
        let what = match (&self.approval, &self.wait_for) {
            (None, None) => return None,
            (Some(_), Some(_)) => {
                return Some(("wait_for", "it has an approval already; give one of the two".to_owned()));
            }
            (Some(approval), None) => {
                let length = approval.ask.as_ref().map_or(0, String::len);
                if length > MAX_ASK_BYTES {
                    let what = format!("it has {length} bytes; at most {MAX_ASK_BYTES} are allowed");
                    return Some(("approval.ask", what));
                }
                "an approval"
            }
            (None, Some(_)) => "a stage that waits for a signal",
        };
        let plain = |timeout| timeout == default_stage_timeout_ms();
        let keys = [
            ("agent_type", is_nobody(&self.agent_type)),
            ("workflow", self.workflow.is_none()),
            ("workflow_version", self.workflow_version.is_none()),
            ("requires", self.requires.is_empty()),
            ("for_each", self.for_each.is_none()),
            ("input", self.input.is_none()),
            ("output", self.output.is_none()),
            ("cache", self.cache.is_none()),
            ("speculative", self.speculative.is_none()),
            ("hedge", !self.hedge),
            ("input_schema", self.input_schema.is_none()),
            ("output_schema", self.output_schema.is_none()),
            ("params", self.params.is_empty()),
            ("resources", self.resources.is_empty()),
            ("budget", self.budget.is_none()),
            ("estimate", self.estimate.is_none()),
            ("priority", self.priority == 0),
            ("due_ms", self.due_ms.is_none()),
            ("retry", self.retry.is_default()),
            ("start_timeout_ms", plain(self.start_timeout_ms)),
            ("heartbeat_timeout_ms", self.heartbeat_timeout_ms.is_none()),
            ("total_timeout_ms", self.total_timeout_ms.is_none()),
        ];
        let (key, _) = keys.into_iter().find(|(_, absent)| !absent)?;
        Some((key, format!("no agent has {what}, so that this means nothing; how long it waits is timeout_ms")))
    }

    /// What is wrong with how it says who does it, and at which key.
    fn done_wrongly(&self) -> Option<(&'static str, String)> {
        if self.workflow.is_none() {
            if is_nobody(&self.agent_type) && !self.asks() {
                let missing =
                    "it is missing: which agents can do the stage? (Or else workflow, approval, or wait_for.)";
                return Some(("agent_type", missing.to_owned()));
            }
            let what = "only a stage with a workflow has one".to_owned();
            return self.workflow_version.map(|_| ("workflow_version", what));
        }
        if self.workflow_version == Some(0) {
            return Some(("workflow_version", "it is 0; versions are counted from 1".to_owned()));
        }
        let keys = [
            ("agent_type", is_nobody(&self.agent_type)),
            ("requires", self.requires.is_empty()),
            ("params", self.params.is_empty()),
            ("resources", self.resources.is_empty()),
            ("estimate", self.estimate.is_none()),
            ("cache", self.cache.is_none()),
            ("speculative", self.speculative.is_none()),
            ("hedge", !self.hedge),
            ("start_timeout_ms", is_default_stage_timeout_ms(&self.start_timeout_ms)),
            ("heartbeat_timeout_ms", self.heartbeat_timeout_ms.is_none()),
        ];
        if let Some((key, _)) = keys.into_iter().find(|(_, absent)| !absent) {
            let what = "a run of its workflow does the stage, and no agent has it: this means nothing here";
            return Some((key, what.to_owned()));
        }
        let what = "it is missing: with for_each it says what the run for each item is given, as item: item";
        (self.for_each.is_some() && self.input.is_none()).then(|| ("input", what.to_owned()))
    }

    /// Whether the run goes on without a result of this stage when it has failed.
    #[must_use]
    pub fn may_fail(&self) -> bool {
        self.optional || self.on_failure == OnFailure::Continue
    }
}

/// The longest time that a definition may speak of, in milliseconds: a leap year.
const MAX_MS: Millis = 366 * 24 * 60 * 60 * 1000;

/// The longest code of a failure, in bytes.
pub const MAX_CODE_BYTES: usize = 64;

fn check_positive(place: &str, field: &'static str, value: Millis) -> Result<(), DefinitionError> {
    if value == 0 || value > MAX_MS {
        return Err(DefinitionError::Value {
            place: place.to_owned(),
            field,
            value: value.to_string(),
            rule: "from 1 to 31622400000 (a year)",
        });
    }
    Ok(())
}

/// Builds a definition in code; the same one that YAML gives.
///
/// ```
/// # use baton_protocol::definition::Definition;
/// let workflow = Definition::builder("custom")
///     .add_stage("research", "research", &[])
///     .add_stage("analysis", "data_analysis", &["research"])
///     .add_stage("writing", "writing", &["analysis"])
///     .with(|stage| stage.optional = true)
///     .set_metadata("requires_citations", true)
///     .build()?;
/// assert_eq!(workflow.stages.len(), 3);
/// # Ok::<(), baton_protocol::definition::DefinitionError>(())
/// ```
#[derive(Debug)]
pub struct Builder {
    name: Result<WorkflowName, NameError>,
    description: Option<String>,
    metadata: BTreeMap<String, Value>,
    budget: Option<Budget>,
    input_schema: Option<Value>,
    stages: Vec<Result<StageDefinition, NameError>>,
}

impl Builder {
    /// Says what the workflow is for.
    #[must_use]
    pub fn description(mut self, text: impl Into<String>) -> Self {
        self.description = Some(text.into());
        self
    }

    /// Adds a stage that depends on others.
    #[must_use]
    pub fn add_stage(mut self, name: &str, agent_type: &str, depends_on: &[&str]) -> Self {
        let stage = || {
            Ok(StageDefinition {
                name: StageName::new(name)?,
                agent_type: Capability::new(agent_type)?,
                approval: None,
                wait_for: None,
                workflow: None,
                workflow_version: None,
                requires: Requirements::none(),
                depends_on: depends_on.iter().map(|d| StageName::new(d)).collect::<Result<_, _>>()?,
                join: Join::default(),
                when: None,
                for_each: None,
                parallel: true,
                optional: false,
                on_failure: OnFailure::default(),
                input: None,
                output: None,
                cache: None,
                speculative: None,
                hedge: false,
                input_schema: None,
                output_schema: None,
                params: BTreeMap::new(),
                resources: Resources::new(),
                budget: None,
                estimate: None,
                priority: 0,
                due_ms: None,
                retry: RetryPolicy::default(),
                start_timeout_ms: default_stage_timeout_ms(),
                timeout_ms: default_stage_timeout_ms(),
                heartbeat_timeout_ms: None,
                total_timeout_ms: None,
            })
        };
        self.stages.push(stage());
        self
    }

    /// Adds a stage that people decide on.
    #[must_use]
    pub fn add_approval(self, name: &str, approval: Approval, depends_on: &[&str]) -> Self {
        self.add_stage(name, NOBODY, depends_on).with(|stage| stage.approval = Some(approval))
    }

    /// Adds a stage that waits for a signal.
    #[must_use]
    pub fn add_wait(self, name: &str, wait_for: WaitFor, depends_on: &[&str]) -> Self {
        self.add_stage(name, NOBODY, depends_on).with(|stage| stage.wait_for = Some(wait_for))
    }

    /// Adds a stage that a run of another workflow does.
    #[must_use]
    pub fn add_workflow(mut self, name: &str, workflow: &str, depends_on: &[&str]) -> Self {
        self = self.add_stage(name, NOBODY, depends_on);
        match WorkflowName::new(workflow) {
            Ok(workflow) => self.with(|stage| stage.workflow = Some(workflow)),
            Err(error) => {
                self.stages.push(Err(error));
                self
            }
        }
    }

    /// Changes the stage added last.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut StageDefinition)) -> Self {
        if let Some(Ok(stage)) = self.stages.last_mut() {
            change(stage);
        }
        self
    }

    /// Sets a key of the metadata.
    #[must_use]
    pub fn set_metadata(mut self, key: impl Into<String>, value: impl Into<Value>) -> Self {
        self.metadata.insert(key.into(), value.into());
        self
    }

    /// Says what a run may cost.
    #[must_use]
    pub fn budget(mut self, budget: Budget) -> Self {
        self.budget = Some(budget);
        self
    }

    /// Says what the input of every run must fit.
    #[must_use]
    pub fn input_schema(mut self, schema: Value) -> Self {
        self.input_schema = Some(schema);
        self
    }

    /// The stage added last runs only if this expression gives true.
    #[must_use]
    pub fn when(self, condition: &str) -> Self {
        self.with(|stage| stage.when = Some(condition.into()))
    }

    /// The stage added last has a task for each item of the list that this expression gives.
    #[must_use]
    pub fn for_each(self, items: &str) -> Self {
        self.with(|stage| {
            stage.for_each = Some(ForEach { items: items.into(), max_parallel: None, max_failures: 0 });
        })
    }

    /// Checks the whole. Expressions and schemas are checked where they are understood: when the workflow is registered.
    pub fn build(self) -> Result<Definition, DefinitionError> {
        let definition = Definition {
            name: self.name?,
            description: self.description,
            metadata: self.metadata,
            timeout_ms: default_run_timeout_ms(),
            budget: self.budget,
            input_schema: self.input_schema,
            stages: self.stages.into_iter().collect::<Result<_, _>>()?,
        };
        definition.check()?;
        Ok(definition)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::RunId;

    #[test]
    fn w7_a_cycle_is_named() {
        let error = Definition::builder("w")
            .add_stage("a", "x", &[])
            .add_stage("b", "x", &["a", "d"])
            .add_stage("c", "x", &["b"])
            .add_stage("d", "x", &["c"])
            .build()
            .unwrap_err();
        assert_eq!(error.to_string(), "the stages wait for each other in a cycle: b -> d -> c -> b");
        let error = Definition::builder("w").add_stage("a", "x", &["a"]).build().unwrap_err();
        assert_eq!(error.to_string(), "the stages wait for each other in a cycle: a -> a");
    }

    #[test]
    fn w1_what_is_wrong_is_named() {
        let stage = |name| Definition::builder("w").add_stage(name, "x", &[]);
        for (error, text) in [
            (Definition::builder("w").build(), "no stages"),
            (stage("a").add_stage("a", "x", &[]).build(), "stage a is defined twice"),
            (stage("a").add_stage("b", "x", &["c"]).build(), "stage b depends on c, which is not a stage"),
            (stage("a").add_stage("b", "x", &["a", "a"]).build(), "names its dependency a twice"),
            (stage("a.b").build(), "stage name \"a.b\""),
            (stage("a").with(|s| s.retry.max_attempts = 0).build(), "stage a: retry.max_attempts is 0"),
            (stage("a").with(|s| s.retry.factor = f64::NAN).build(), "stage a: retry.factor is NaN"),
            (stage("a").with(|s| s.timeout_ms = 0).build(), "stage a: timeout_ms is 0"),
            (stage("a").budget(Budget::default()).build(), "workflow w: budget: a budget needs a limit"),
            (
                stage("a").with(|s| s.budget = Some("0.0000000001".parse().unwrap())).build(),
                "stage a: budget: budget is 0.0000000001; at most 9 decimal places",
            ),
        ] {
            let error = error.unwrap_err().to_string();
            assert!(error.contains(text), "{error:?} does not say {text:?}");
        }
    }

    #[test]
    fn w8_waits_grow_and_jitter_differs_between_runs() {
        let policy = RetryPolicy::default();
        let stage = StageName::new("a").unwrap();
        let task = |run, attempt| TaskId { run: RunId::derive(1, run), stage: stage.clone(), item: None, attempt };
        let waits: Vec<_> = (1..=8).map(|attempt| policy.wait_ms(&task(1, attempt))).collect();
        for (i, wait) in waits.iter().enumerate() {
            let full = (1000 << i).min(60_000);
            assert!((full * 8 / 10..=full).contains(wait), "{waits:?}");
        }
        assert_ne!(waits[0], policy.wait_ms(&task(2, 1)));
        assert_ne!(waits[0], policy.wait_ms(&TaskId { item: Some(1), ..task(1, 1) }));
        assert_eq!(waits[0], policy.wait_ms(&task(1, 1)));
    }

    #[test]
    fn a_long_chain_does_not_overflow_the_stack() {
        let names: Vec<String> = (0..MAX_STAGES).map(|i| format!("s{i}")).collect();
        let mut builder = Definition::builder("chain");
        for (i, name) in names.iter().enumerate() {
            let next: Vec<&str> = names.get(i + 1).map(String::as_str).into_iter().collect();
            builder = builder.add_stage(name, "x", &next);
        }
        builder.build().unwrap();
    }
}
