//! Why a stage does not go on: exactly what it waits for.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::amount::Amount;
use crate::id::{Millis, RunId};
use crate::name::{AgentId, Capability, ResourceName, SignalName, StageName};
use crate::run::{RunStatus, StageStatus};

/// What a stage of a run waits for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Why {
    /// The run.
    pub run: RunId,
    /// Where it stands.
    pub run_status: RunStatus,
    /// The stage.
    pub stage: StageName,
    /// Where it stands.
    pub status: StageStatus,
    /// What is missing; nothing if the stage is over, or is about to begin.
    pub missing: Vec<Missing>,
    /// The stages on which it waits in the end, through others: those that could go on, and what each of them lacks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roots: Vec<Root>,
}

/// A stage on which others wait.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Root {
    /// The stage.
    pub stage: StageName,
    /// Where it stands.
    pub status: StageStatus,
    /// What is missing.
    pub missing: Vec<Missing>,
}

/// One thing that a stage waits for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum Missing {
    /// That another stage is over.
    Stage {
        /// Which.
        stage: StageName,
        /// Where it stands.
        status: StageStatus,
    },
    /// That the run is resumed.
    Resume {
        /// Since when it is paused, in milliseconds since 1970.
        since: Millis,
        /// Why, if somebody said.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// That stages end which do not run beside it: it runs alone, or they do.
    Alone {
        /// Which.
        stages: Vec<StageName>,
    },
    /// An agent that can do it: none is there.
    Agent {
        /// What it must be able to do.
        agent_type: Capability,
    },
    /// More than this agent says of itself: it can do such tasks, and not this one.
    Unfit {
        /// The agent.
        agent: AgentId,
        /// The first key of what the stage requires that it does not meet.
        requires: String,
    },
    /// That this agent's circuit breaker lets it be tried again: it failed too many such tasks.
    Breaker {
        /// The agent.
        agent: AgentId,
        /// When that is, in milliseconds since 1970.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        until: Option<Millis>,
    },
    /// Room: this agent can do it and lacks some.
    Room {
        /// The agent.
        agent: AgentId,
        /// What it lacks.
        lacks: Vec<Lack>,
    },
    /// Enough of a pool, whichever agent has room.
    Pool {
        /// The pool.
        pool: ResourceName,
        /// How much the task needs of it.
        needs: Amount,
        /// How much could be taken of it now; none of a lock that somebody has.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        free: Option<Amount>,
        /// How much there is of it in all: less than is needed will never do.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        size: Option<Amount>,
        /// How many wait for it, the task itself perhaps among them. Where there is enough, one of those goes first.
        #[serde(default)]
        waiting: u64,
    },
    /// Money: the account that it is paid from has not enough, or one that this is a part of.
    Money {
        /// The account: the run's, `run:ID`; the one that the run is paid from; an agent's, `agent:ID`.
        account: ResourceName,
        /// How much is set aside for the task.
        needs: Amount,
        /// How much is left.
        left: Amount,
        /// How much may be spent of it in all.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        size: Option<Amount>,
        /// The currency.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        currency: Option<String>,
        /// Since when somebody is asked to give it more, in milliseconds since 1970, if somebody is.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        asked: Option<Millis>,
    },
    /// That one of its items is over: no more may be under way at a time.
    Items {
        /// How many are under way.
        under_way: u32,
        /// How many may be.
        most: u32,
        /// How many wait for that.
        waiting: u32,
    },
    /// Nothing but the placement: this agent has room for it.
    Placement {
        /// The agent.
        agent: AgentId,
    },
    /// The time of the next attempt.
    Attempt {
        /// Which attempt, counted from 1.
        attempt: u32,
        /// When that is, in milliseconds since 1970; not known while the run is paused.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        at: Option<Millis>,
        /// Why the last one failed, if that was said.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    },
    /// That somebody approves or rejects.
    Approval {
        /// What people are asked.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ask: Option<String>,
        /// When the stage ends without it, in milliseconds since 1970.
        until: Millis,
    },
    /// That the run is given a signal.
    Signal {
        /// Which.
        signal: SignalName,
        /// When the stage ends without it, in milliseconds since 1970.
        until: Millis,
    },
    /// That the run ends which does it.
    Run {
        /// That run.
        run: RunId,
        /// Since when it does, in milliseconds since 1970.
        since: Millis,
        /// When it is cancelled at the latest.
        until: Millis,
    },
    /// That its agent reports.
    Report {
        /// The agent.
        agent: AgentId,
        /// Since when it has the task, in milliseconds since 1970.
        since: Millis,
        /// When it is given up at the latest.
        until: Millis,
    },
}

/// What an agent lacks for a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Lack {
    /// The resource; `slot` is a slot.
    pub resource: String,
    /// How much the task needs.
    pub needs: String,
    /// How much the agent has free.
    pub free: String,
    /// How much it has in all: less than is needed will never do.
    pub has: String,
}
