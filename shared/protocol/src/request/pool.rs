//! What may be asked of the resource-manager about pools, locks and what is held of them.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ApprovalView;
use crate::amount::{Amount, Resources};
use crate::id::{LeaseId, Millis, TaskId};
use crate::name::ResourceName;
use crate::pool::{Holder, Pool, Take, Takes};

/// How long something is held that is not renewed, unless the request says otherwise, in milliseconds.
pub const DEFAULT_TTL_MS: Millis = 30_000;

/// Makes a pool, or changes one. It can not shrink below what is in use.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SetPool {
    /// The pool's name. A task or an acquisition that needs something of this name takes it from the pool, also where agents
    /// have some of their own.
    pub name: ResourceName,
    /// What it is from now on.
    pub pool: Pool,
}

/// Removes a pool that nobody uses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RemovePool {
    /// The pool's name.
    pub name: ResourceName,
}

/// Lists the pools.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ListPools {
    /// Only this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<ResourceName>,
    /// Only those whose names come after this one: to go on where a list ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<ResourceName>,
}

/// The pools.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PoolList {
    /// By name.
    pub pools: Vec<PoolView>,
    /// Whether there are more than the list has room for: ask on with `after`.
    #[serde(default)]
    pub more: bool,
}

/// Locks and who holds them: what is told of both, put together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LockList {
    /// By name.
    pub pools: Vec<LockView>,
    /// Whether there are more.
    #[serde(default)]
    pub more: bool,
}

/// A lock.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LockView {
    /// The lock.
    #[serde(flatten)]
    pub lock: PoolView,
    /// Who holds it, the oldest first. Of an election, who has it alone leads, and the lease is the term.
    pub holders: Vec<HeldView>,
}

/// A pool.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PoolView {
    /// Its name.
    pub name: ResourceName,
    /// What it is.
    pub pool: Pool,
    /// What is held of it, or set aside and not yet used. Of a lock, how many shares; of a refilled pool nothing.
    pub in_use: Amount,
    /// How much could be taken now; none of a lock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub available: Option<Amount>,
    /// What of a consumed pool is used up.
    #[serde(default, skip_serializing_if = "Amount::is_zero")]
    pub spent: Amount,
    /// What was used beyond what the pool had: known only when it was too late to refuse.
    #[serde(default, skip_serializing_if = "Amount::is_zero")]
    pub overrun: Amount,
    /// Whether somebody has it alone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub exclusive: bool,
    /// How many leases hold something of it.
    pub leases: u64,
    /// How many acquisitions wait for it.
    pub waiting: u64,
    /// What somebody is asked to give more for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<ApprovalView>,
}

/// Takes from pools: all that is asked for, or nothing. Who asks waits in the order of priority, then of arrival; nobody is
/// overtaken by somebody behind who wants of the same pool.
///
/// An answer comes within about a second in any case. As long as it says that the request waits, ask again, with the same
/// `id`: whoever does not ask again within three seconds has lost its place. Asking again for what is held already gives the
/// same lease.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Acquire {
    /// What the holder calls it: any text that is new for each acquisition.
    pub id: String,
    /// What is taken, by pool: `{"gpu": 1, "report.md": "exclusive"}`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub take: Takes,
    /// This too, from that one of several pools that is least in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub least_loaded: Option<LeastLoaded>,
    /// Larger goes first.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub priority: i32,
    /// How long to wait from now on, in milliseconds. 0: now or never.
    #[serde(default)]
    pub wait_ms: Millis,
    /// How long it is held unless it is renewed, in milliseconds.
    #[serde(default = "default_ttl_ms")]
    pub ttl_ms: Millis,
    /// Who it is for, where no agent asks: to be shown to people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// The lease of the task that it is for, where an agent asks: it ends with that one at the latest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub under: Option<LeaseId>,
}

fn default_ttl_ms() -> Millis {
    DEFAULT_TTL_MS
}
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives references")]
fn is_zero(value: &i32) -> bool {
    *value == 0
}

impl Acquire {
    /// Takes that, now or never.
    #[must_use]
    pub fn new(id: impl Into<String>, take: Takes) -> Self {
        Self {
            id: id.into(),
            take,
            least_loaded: None,
            priority: 0,
            wait_ms: 0,
            ttl_ms: DEFAULT_TTL_MS,
            client: None,
            under: None,
        }
    }
}

/// Takes from that one of several pools that is least in use.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LeastLoaded {
    /// The pools. Of equal ones the first counts.
    pub of: Vec<ResourceName>,
    /// How much.
    pub take: Take,
}

/// What became of an [`Acquire`]: either is there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AcquireAnswer {
    /// It is held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub granted: Option<Granted>,
    /// It waits: ask again, with the same id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<Waiting>,
}

/// Something is held.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Granted {
    /// The lease: also its fencing token, which only grows. Of an election, the term.
    pub lease: LeaseId,
    /// What is held.
    pub takes: Takes,
    /// Until when, in milliseconds since 1970 by the resource-manager's clock.
    pub expires_at: Millis,
    /// How much longer from now on, in milliseconds.
    pub ttl_ms: Millis,
}

/// A request waits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Waiting {
    /// The pool that it waits for.
    #[serde(rename = "for")]
    pub pool: ResourceName,
    /// How many stand before it there.
    pub ahead: u64,
}

/// Keeps what was acquired for longer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Renew {
    /// The lease.
    pub lease: LeaseId,
    /// How long from now on, in milliseconds; as long as before unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_ms: Option<Millis>,
}

/// Gives back what was acquired. Giving it back twice is giving it back once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Release {
    /// The lease.
    pub lease: LeaseId,
    /// What was used of consumed pools; of those that are not named, all that was taken.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub used: Resources,
}

/// Lists what is held of pools, by acquisitions and by tasks.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ListLeases {
    /// Only what is held of this pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<ResourceName>,
    /// Only leases after this one: to go on where a list ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<LeaseId>,
}

/// What is held of pools.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LeaseList {
    /// The oldest first.
    pub leases: Vec<HeldView>,
    /// Whether there are more than the list has room for: ask on with `after`.
    #[serde(default)]
    pub more: bool,
}

/// A lease on pools.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HeldView {
    /// The lease, and its fencing token.
    pub lease: LeaseId,
    /// Who holds it.
    pub holder: Holder,
    /// What the holder calls it; none of a task's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The task that it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskId>,
    /// What is held.
    pub takes: Takes,
    /// Since when, in milliseconds since 1970.
    pub since: Millis,
    /// Until when, unless it is renewed; none where it ends with its task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Millis>,
}
