//! Leases: granted whole or not at all, pushed, declined, recalled.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use baton_machine::planted::{Bug, is_planted};
use baton_machine::{Effect, Publication, Reply, Shelves, Turn, answer};
use baton_protocol::amount::covers;
use baton_protocol::budget::{agent_account, least};
use baton_protocol::handoff::{HandedOver, HandoffOffered};
use baton_protocol::message::MessageType;
use baton_protocol::record::{
    Assigned, Commit, LeaseEnded, Outcome, ResourceRecord, StageEnded, Topic, WorkflowRecord,
};
use baton_protocol::request::{
    AssignAnswer, AssignTasks, Assignment, CancelTask, Decline, Done, Placement, Progress, ProgressEvent, Refusal,
};
use baton_protocol::trace::{Span, SpanKind, TraceContext, part_span, task_span};
use baton_protocol::{
    AgentId, Amount, Code, Json, LeaseId, Millis, Number, Rejection, ResourceName, Resources, RunId, TaskId, subject,
};
use serde::{Deserialize, Serialize};

use crate::acquire::lacking;
use crate::agent::{Agent, unknown};
use crate::handoff::{self, Carried};
use crate::pool::{Stock, Why, takes};
use crate::task::{Open, first_task, last_task};
use crate::{ResourceManager, budget, pressure, silence};

/// A push this young may still be under way: a heartbeat that does not know of it yet is not told again.
const PUSH_MS: Millis = 500;
/// When to ask again for an agent whose account has not enough.
const UNPAID_MS: Millis = 1000;
/// About the most that the answer to one heartbeat carries. The next one carries on.
const MAX_START_BYTES: usize = 512 * 1024;
/// About the most that one message with several assignments carries.
const MAX_PUSH_BYTES: usize = 256 * 1024;
/// The longest message of a progress, in bytes.
const MAX_MESSAGE_BYTES: usize = 500;
/// The longest reason for declining, in bytes.
const MAX_REASON_BYTES: usize = 2000;
/// What a slot is called among the resources.
const SLOT: &str = "slot";

/// All leases that have not ended.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "Shelves<LeaseId, Arc<Lease>>", into = "Shelves<LeaseId, Arc<Lease>>")]
pub(crate) struct Leases {
    leases: Shelves<LeaseId, Arc<Lease>>,
    /// Follows from the leases. Nobody is in here who holds none.
    by_agent: Shelves<AgentId, Arc<Holder>>,
}

/// What an agent holds.
#[derive(Debug, Clone, Default, PartialEq)]
struct Holder {
    leases: BTreeSet<LeaseId>,
    in_use: BTreeMap<ResourceName, InUse>,
}

/// What an agent's leases hold of a resource together.
#[derive(Debug, Clone, Default, PartialEq)]
struct InUse {
    amount: Amount,
    /// How many leases hold any.
    leases: usize,
    /// A sum had more digits than a decimal has. Then it is summed up anew where a lease ends: a running total might
    /// drift.
    rounded: bool,
}

impl InUse {
    fn add(&mut self, amount: Amount) {
        let sum = self.amount + amount;
        self.rounded |= sum - amount != self.amount || sum - self.amount != amount;
        self.amount = sum;
        self.leases += 1;
    }
}

/// The right of an agent to do a task, and what it holds for it beside one slot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Lease {
    pub(crate) task: TaskId,
    pub(crate) agent: AgentId,
    pub(crate) resources: Resources,
    /// What it holds for it of pools.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) pools: Resources,
    pub(crate) since: Millis,
    /// Since when another agent is at it, if this one was given it as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) beside: Option<Millis>,
    /// How it came to this agent, if another one handed it over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) carried: Option<Arc<Carried>>,
}

impl Lease {
    /// Since when the task is under way.
    pub(crate) fn begun(&self) -> Millis {
        self.carried.as_ref().map_or(self.beside.unwrap_or(self.since), |carried| carried.begun)
    }
}

impl Leases {
    pub(crate) fn begin(&mut self, id: LeaseId, since: Millis, record: &Assigned) {
        let Assigned { task, agent, resources, pools, beside } = record.clone();
        let beside = beside.and_then(|first| Some(self.leases.get(&first)?.begun()));
        self.hold(id, &agent, &resources);
        self.leases.insert(id, Arc::new(Lease { task, agent, resources, pools, since, beside, carried: None }));
    }

    /// A task goes from one agent to another: the giver's lease ends, and the taker's begins.
    pub(crate) fn hand_over(&mut self, id: LeaseId, since: Millis, record: &HandedOver, offer: HandoffOffered) {
        let Some(given) = self.leases.get(&record.lease).map(Arc::clone) else { return };
        if !is_planted(Bug::GiverKeepsTheTask) {
            self.end(record.lease);
        }
        let HandedOver { handoff, task, to: agent, resources, pools, .. } = record.clone();
        self.hold(id, &agent, &resources);
        let carried = Some(Arc::new(handoff::carried(offer, handoff, given.begun())));
        let pools = pools.unwrap_or_else(|| given.pools.clone());
        self.leases.insert(id, Arc::new(Lease { task, agent, resources, pools, since, beside: None, carried }));
    }

    /// The lease that the agent took by this handoff, if it holds it still.
    pub(crate) fn taken(&self, agent: &AgentId, handoff: Number) -> Option<LeaseId> {
        let by_it = |lease: &Lease| lease.carried.as_ref().is_some_and(|carried| carried.handover.handoff == handoff);
        self.of(agent).find(|(_, lease)| by_it(lease)).map(|(id, _)| id)
    }

    /// A lease that the agent holds.
    pub(crate) fn held_by(&self, lease: LeaseId, agent: &AgentId) -> Result<&Lease, Rejection> {
        self.held(lease, agent).ok_or_else(|| {
            let message = format!("agent {agent} does not hold lease {lease}: it has ended, or was never given");
            Rejection::new(Code::StaleLease, message)
        })
    }

    fn hold(&mut self, id: LeaseId, agent: &AgentId, resources: &Resources) {
        let holder = Arc::make_mut(self.by_agent.get_or_insert_with(agent, Arc::default));
        holder.leases.insert(id);
        for (name, amount) in resources {
            match holder.in_use.get_mut(name) {
                Some(in_use) => in_use.add(*amount),
                None => holder.in_use.entry(name.clone()).or_default().add(*amount),
            }
        }
    }

    /// Ends a lease; gives it back.
    pub(crate) fn end(&mut self, id: LeaseId) -> Option<Arc<Lease>> {
        let lease = self.leases.remove(&id)?;
        let Some(holder) = self.by_agent.change(&lease.agent) else { return Some(lease) };
        holder.leases.remove(&id);
        if holder.leases.is_empty() {
            self.by_agent.remove(&lease.agent);
            return Some(lease);
        }
        for (name, amount) in &lease.resources {
            let Some(in_use) = holder.in_use.get_mut(name) else { continue };
            if in_use.leases == 1 {
                holder.in_use.remove(name);
            } else if in_use.rounded {
                let left = holder.leases.iter().filter_map(|id| self.leases.get(id)?.resources.get(name));
                *in_use = InUse::default();
                left.for_each(|amount| in_use.add(*amount));
            } else {
                in_use.leases -= 1;
                in_use.amount = in_use.amount - *amount;
            }
        }
        Some(lease)
    }

    /// Ends all leases of an agent; gives them back.
    pub(crate) fn end_all_of(&mut self, agent: &AgentId) -> Vec<(LeaseId, Arc<Lease>)> {
        let holder = self.by_agent.remove(agent);
        let leases = holder.iter().flat_map(|holder| &holder.leases);
        leases.filter_map(|id| Some((*id, self.leases.remove(id)?))).collect()
    }

    pub(crate) fn get(&self, id: LeaseId) -> Option<&Lease> {
        self.leases.get(&id).map(Arc::as_ref)
    }

    /// The leases that hold something of pools.
    pub(crate) fn with_pools(&self) -> impl Iterator<Item = (LeaseId, &Lease)> {
        let all = self.leases.iter().map(|(id, lease)| (*id, lease.as_ref()));
        all.filter(|(_, lease)| !lease.pools.is_empty())
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = LeaseId> {
        self.leases.iter().map(|(id, _)| *id)
    }

    /// Whether the agent holds this lease.
    pub(crate) fn is_of(&self, id: LeaseId, agent: &AgentId) -> bool {
        self.held(id, agent).is_some()
    }

    fn held(&self, id: LeaseId, agent: &AgentId) -> Option<&Lease> {
        self.leases.get(&id).map(Arc::as_ref).filter(|lease| lease.agent == *agent)
    }

    /// The agent's leases, the oldest first.
    pub(crate) fn of(&self, agent: &AgentId) -> impl Iterator<Item = (LeaseId, &Lease)> {
        let ids = self.by_agent.get(agent).into_iter().flat_map(|holder| &holder.leases);
        ids.filter_map(|id| Some((*id, self.leases.get(id)?.as_ref())))
    }

    pub(crate) fn count_of(&self, agent: &AgentId) -> usize {
        self.by_agent.get(agent).map_or(0, |holder| holder.leases.len())
    }

    /// What of the agent's resources is leased.
    pub(crate) fn in_use(&self, agent: &AgentId) -> Resources {
        let holder = self.by_agent.get(agent);
        holder.into_iter().flat_map(|holder| &holder.in_use).map(|(name, used)| (name.clone(), used.amount)).collect()
    }

    /// What of one of the agent's resources is leased.
    fn in_use_of(&self, agent: &AgentId, name: &ResourceName) -> Amount {
        let in_use = self.by_agent.get(agent).and_then(|holder| holder.in_use.get(name));
        in_use.map(|in_use| in_use.amount).unwrap_or_default()
    }

    #[cfg(test)]
    pub(crate) fn agent_of(&self, id: LeaseId) -> Option<&AgentId> {
        self.leases.get(&id).map(|lease| &lease.agent)
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.leases.len()
    }
}

impl From<Shelves<LeaseId, Arc<Lease>>> for Leases {
    fn from(leases: Shelves<LeaseId, Arc<Lease>>) -> Self {
        let mut all = Self::default();
        for (id, lease) in leases.iter() {
            all.hold(*id, &lease.agent, &lease.resources);
        }
        Self { leases, ..all }
    }
}

impl From<Leases> for Shelves<LeaseId, Arc<Lease>> {
    fn from(all: Leases) -> Self {
        all.leases
    }
}

/// What was pushed to whom and when, for leases that have not ended.
pub(crate) type Pushed = BTreeMap<(TaskId, LeaseId), Push>;

/// An assignment that was pushed, or given in the answer to a heartbeat.
#[derive(Debug)]
pub(crate) struct Push {
    agent: AgentId,
    at: Millis,
    trace: TraceContext,
}

/// Decides on each placement for itself.
pub(crate) fn assign(turn: &mut Turn<'_, ResourceManager>, request: AssignTasks) -> Reply {
    let mut refused = Vec::new();
    let mut granted = 0;
    let mut tally = Tally::default();
    let (mut pushes, mut changed) = (Pushes::default(), BTreeSet::new());
    for Placement { task, agent, beside } in request.placements {
        let may = match beside {
            None => may_hold(turn.state(), &task, &agent, turn.now())
                .and_then(|needed| may_take(turn, &task, &agent, needed)),
            Some(first) => may_hold_beside(turn.state(), &task, &agent, first, turn.now()),
        };
        match may {
            Ok((resources, pools)) => {
                granted += 1;
                tally.granted(&resources);
                tally.pools(&pools);
                let record = Assigned { task, agent: agent.clone(), resources, pools, beside };
                let lease = turn.grant(ResourceRecord::Assigned(record));
                silence::heard(turn, lease);
                push(turn, &mut pushes, lease, &agent);
                changed.insert(agent);
            }
            Err(Refused { lacking, rejection }) => {
                tally.refused(lacking);
                refused.push(Refusal { task, agent, rejection });
            }
        }
    }
    let now = turn.now();
    turn.soft.drain.note(now, granted);
    pushes.send(turn);
    changed.iter().for_each(|agent| show_utilization(turn, agent));
    tally.show(turn, granted);
    answer(&AssignAnswer { granted, refused })
}

/// Why an agent may not hold a task, and which resource was lacking, if one was.
struct Refused {
    lacking: Option<String>,
    rejection: Rejection,
}

impl From<Rejection> for Refused {
    fn from(rejection: Rejection) -> Self {
        Self { lacking: None, rejection }
    }
}

/// What is held for a task: of the agent's own beside a slot, and of pools.
type Needed = (Resources, Resources);

/// What the agent would hold for the task beside a slot, and what the task takes of pools: all that it needs, or nothing.
fn may_hold(state: &ResourceManager, task: &TaskId, agent: &AgentId, now: Millis) -> Result<Needed, Refused> {
    let not_ready = |why: &str| Rejection::new(Code::NotReady, format!("task {task} {why}"));
    let open = state
        .tasks
        .open(task)
        .ok_or_else(|| not_ready("is not waiting for an agent: it is not ready, or has ended"))?;
    if let Some(lease) = open.lease.filter(|_| !is_planted(Bug::LeasedTwice)) {
        let why = format!("is or was leased: lease {lease}; if that has ended, the next attempt is another task");
        return Err(not_ready(&why).into());
    }
    if open.refused {
        return Err(not_ready("is not paid for: it will fail").into());
    }
    may_begin(state, task, open, now)?;
    if !state.tasks.is_defined(task) {
        return Err(not_ready("belongs to a workflow whose definition is not in the log").into());
    }
    let (pools, own) = match state.pools.is_empty() {
        true => (Resources::new(), open.resources.clone()),
        false => state.pools.split(&open.resources),
    };
    has_room(state, open, agent, &own)?;
    Ok((own, pools))
}

/// Whether anybody may begin to do a task now.
fn may_begin(state: &ResourceManager, task: &TaskId, open: &Open, now: Millis) -> Result<(), Rejection> {
    if state.tasks.is_paused(task.run) {
        return Err(Rejection::new(Code::NotReady, format!("task {task} belongs to a run that is paused")));
    }
    pressure::holds_back(state, task, open, now)
}

/// What a second agent would hold for a task that the first one has under that lease: what that one holds of its own. What
/// something of pools is taken for, money too, is done once.
fn may_hold_beside(
    state: &ResourceManager,
    task: &TaskId,
    agent: &AgentId,
    first: LeaseId,
    now: Millis,
) -> Result<Needed, Refused> {
    let not_ready = |why: &str| Rejection::new(Code::NotReady, format!("task {task} {why}"));
    let open = state.tasks.open(task).ok_or_else(|| not_ready("is not under way: it is not ready, or has ended"))?;
    let held = state.leases.get(first).filter(|_| open.lease == Some(first));
    let held = held.ok_or_else(|| not_ready(&format!("is not held under lease {first}")))?;
    if !open.hedge {
        return Err(not_ready("may have one agent only: its stage does not say hedge: true").into());
    }
    if let Some(second) = open.second {
        return Err(not_ready(&format!("has two agents already: leases {first} and {second}")).into());
    }
    if held.agent == *agent {
        return Err(not_ready(&format!("is held by agent {agent} already, under lease {first}")).into());
    }
    if !held.pools.is_empty() || state.pools.get(&agent_account(agent)).is_some_and(Stock::is_account) {
        return Err(not_ready("takes something of a pool, which is taken once: it may have one agent only").into());
    }
    if state.handoffs.is_offered(first) {
        return Err(not_ready(&format!("is about to be handed over: lease {first} is offered to another agent")).into());
    }
    may_begin(state, task, open, now)?;
    has_room(state, open, agent, &held.resources)?;
    Ok((held.resources.clone(), Resources::new()))
}

/// Whether an agent can do a task at all: it is of the right kind.
pub(crate) fn may_do(entry: &Agent, open: &Open) -> Result<(), Rejection> {
    let agent = &entry.record.agent;
    let no_capacity = |why: String| Rejection::new(Code::NoCapacity, format!("agent {agent} {why}"));
    if !entry.can(&open.agent_type) {
        let why = format!(
            "can not do {}: it is of type {}, and has no such capability",
            open.agent_type, entry.record.agent_type
        );
        return Err(no_capacity(why));
    }
    if let Some(key) = open.requires.unmet(entry.metadata(&open.agent_type))
        && !is_planted(Bug::RequirementsIgnored)
    {
        let why = format!("is not what the task asks for: {} requires {} of it", open.agent_type, open.requires);
        return Err(no_capacity(format!("{why}, and its {key} is not so")));
    }
    Ok(())
}

/// Whether an agent may hold a task with these resources now, beside what it holds.
pub(crate) fn may_go_to(
    state: &ResourceManager,
    open: &Open,
    agent: &AgentId,
    resources: &Resources,
) -> Result<(), Rejection> {
    has_room(state, open, agent, resources).map_err(|refused| refused.rejection)
}

fn has_room(state: &ResourceManager, open: &Open, agent: &AgentId, resources: &Resources) -> Result<(), Refused> {
    let entry = state.agents.present(agent).ok_or_else(|| unknown(agent))?;
    let no_capacity = |why: String| Rejection::new(Code::NoCapacity, format!("agent {agent} {why}"));
    may_do(entry, open)?;
    state.breakers.may(agent, &open.agent_type).map_err(no_capacity)?;
    let slots = entry.record.slots as usize;
    if state.leases.count_of(agent) >= slots && !is_planted(Bug::SlotsNotCounted) {
        let rejection = no_capacity(format!("has no free slot: all {slots} are leased"));
        return Err(Refused { lacking: Some(SLOT.to_owned()), rejection });
    }
    // In the resources that it asks for, what is in use once it has them.
    let in_use = |name: &ResourceName| state.leases.in_use_of(agent, name);
    let needed = resources.iter().map(|(name, amount)| (name.clone(), in_use(name) + *amount)).collect();
    if is_planted(Bug::ResourcesNotCounted) {
        return Ok(());
    }
    if let Err(name) = covers(&entry.record.resources, &needed) {
        let of = |resources: &Resources| resources.get(&name).copied().unwrap_or_default();
        let (has, needs) = (of(&entry.record.resources), of(resources));
        let rejection = no_capacity(format!(
            "has not enough {name}: the task needs {needs}, {} of {has} are leased",
            of(&needed) - needs
        ));
        return Err(Refused { lacking: Some(name.to_string()), rejection });
    }
    Ok(())
}

/// Whether pools have what the task needs of them. One that is refused is noted, so that what it needs is kept for it when it
/// is its turn.
fn may_take(
    turn: &mut Turn<'_, ResourceManager>,
    task: &TaskId,
    agent: &AgentId,
    needed: Needed,
) -> Result<Needed, Refused> {
    if turn.state().pools.is_empty() {
        return Ok(needed);
    }
    let (own, wanted) = needed;
    if wanted.is_empty() {
        return with_agents_own(turn, task, agent, (own, wanted));
    }
    let (state, now) = (turn.state(), turn.now());
    let place = state.tasks.open(task).map(|open| (open.priority, open.ready_at)).unwrap_or_default();
    // They are pools: what is not was left to the agent.
    let Ok(needs) = state.pools.needs(&takes(&wanted)) else { return Ok((own, wanted)) };
    let lack = state.pools.lacks(&needs, now);
    let overtaken = turn.soft.waiting.before_task(&needs, place).cloned();
    let Some(short) = lack.as_ref().map(|lack| lack.pool.clone()).or(overtaken) else {
        let needed = with_agents_own(turn, task, agent, (own, wanted))?;
        turn.soft.waiting.forget_task(task, &needs);
        return Ok(needed);
    };
    let rejection = lacking(state, &needs, lack.as_ref(), now);
    if lack.is_some() && budget::fail(turn, &needs, task) {
        turn.soft.waiting.forget_task(task, &needs);
        // It will fail, and nobody has to wait for that: others that want the same are to be asked for at once.
        let rejection = Rejection::new(Code::NotReady, rejection.message);
        return Err(Refused { lacking: Some(short.to_string()), rejection });
    }
    if lack.is_some() {
        budget::ask(turn, &needs, Some(task));
    }
    if lack.is_none_or(|lack| lack.why != Why::Never) {
        turn.soft.waiting.note(task.clone(), needs, place, now);
    }
    Err(Refused { lacking: Some(short.to_string()), rejection })
}

/// What the task takes of the agent's own account besides, if there is one. Where that has not enough, another agent may do it.
fn with_agents_own(
    turn: &mut Turn<'_, ResourceManager>,
    task: &TaskId,
    agent: &AgentId,
    (own, mut pools): Needed,
) -> Result<Needed, Refused> {
    let state = turn.state();
    let account = agent_account(agent);
    if !state.pools.get(&account).is_some_and(Stock::is_account) || pools.contains_key(&account) {
        return Ok((own, pools));
    }
    let expected = state.tasks.expected_cost(task).filter(|cost| !cost.is_zero()).unwrap_or_else(least);
    pools.insert(account.clone(), expected);
    let Ok(needs) = state.pools.needs(&takes(&pools)) else { return Ok((own, pools)) };
    let Some(lack) = state.pools.lacks(&needs, turn.now()) else { return Ok((own, pools)) };
    let why = lacking(state, &needs, Some(&lack), turn.now()).message;
    let rejection = Rejection::new(Code::NoCapacity, format!("agent {agent} can not be paid: {why}"));
    budget::ask(turn, &needs, None);
    Err(Refused { lacking: Some(account.to_string()), rejection: rejection.retry_after(UNPAID_MS) })
}

/// What a task takes of pools in the hands of another agent, where that is not what it takes now: its holder's own account pays for
/// it no more, the other one's does, if there is one and it has enough.
pub(crate) fn paid_by(
    turn: &mut Turn<'_, ResourceManager>,
    lease: LeaseId,
    to: &AgentId,
) -> Result<Option<Resources>, Rejection> {
    let (state, now) = (turn.state(), turn.now());
    let Some(held) = state.leases.get(lease).filter(|_| !state.pools.is_empty()) else { return Ok(None) };
    let (from, mut pools) = (agent_account(&held.agent), held.pools.clone());
    // What the stage itself names is for whoever does it.
    let named =
        |account: &ResourceName| state.tasks.open(&held.task).is_some_and(|open| open.resources.contains_key(account));
    if !named(&from) {
        pools.remove(&from);
    }
    let account = agent_account(to);
    if state.pools.get(&account).is_some_and(Stock::is_account) && !pools.contains_key(&account) {
        let expected = state.tasks.expected_cost(&held.task).filter(|cost| !cost.is_zero()).unwrap_or_else(least);
        pools.insert(account, expected);
    }
    if pools == held.pools || is_planted(Bug::GiverPaysOn) {
        return Ok(None);
    }
    let Some((needs, lack)) = state.pools.lacks_instead(&takes(&held.pools), &takes(&pools), now) else {
        return Ok(Some(pools));
    };
    let why = lacking(state, &needs, Some(&lack), now).message;
    budget::ask(turn, &needs, None);
    let rejection = Rejection::new(Code::NoCapacity, format!("agent {to} can not be paid: {why}"));
    Err(rejection.retry_after(UNPAID_MS))
}

/// Counts allocations, so that a large request leads to few measurements.
#[derive(Default)]
struct Tally(BTreeMap<(String, &'static str), u32>);

impl Tally {
    fn granted(&mut self, resources: &Resources) {
        self.add(SLOT.to_owned(), "granted");
        for name in resources.keys() {
            self.add(name.to_string(), "granted");
        }
    }

    fn pools(&mut self, pools: &Resources) {
        for name in pools.keys() {
            self.add(name.to_string(), "granted");
        }
    }

    fn refused(&mut self, lacking: Option<String>) {
        if let Some(name) = lacking {
            self.add(name, "refused");
        }
    }

    fn add(&mut self, resource: String, outcome: &'static str) {
        *self.0.entry((resource, outcome)).or_default() += 1;
    }

    fn show(self, turn: &mut Turn<'_, ResourceManager>, granted: u32) {
        for ((resource, outcome), count) in self.0 {
            turn.count("resource_allocations_total", &[&resource, outcome], f64::from(count));
        }
        if granted > 0 {
            turn.count("resource_acquisitions_total", &[], f64::from(granted));
        }
    }
}

/// Assignments for agents that take several in one message.
#[derive(Default)]
struct Pushes(BTreeMap<AgentId, Batch>);

#[derive(Default)]
struct Batch {
    assignments: Vec<Json>,
    bytes: usize,
    /// Of the only one: with two it is of no run.
    run: Option<RunId>,
    trace: Option<TraceContext>,
}

impl Pushes {
    fn add(&mut self, turn: &mut Turn<'_, ResourceManager>, agent: &AgentId, assignment: &Assignment) {
        let body = json(assignment);
        let batch = self.0.entry(agent.clone()).or_default();
        if batch.bytes + body.size() > MAX_PUSH_BYTES && !batch.assignments.is_empty() {
            std::mem::take(batch).send(turn, agent);
        }
        batch.bytes += body.size();
        batch.assignments.push(body);
        (batch.run, batch.trace) = (Some(assignment.run), Some(assignment.trace));
    }

    fn send(self, turn: &mut Turn<'_, ResourceManager>) {
        for (agent, batch) in self.0 {
            batch.send(turn, &agent);
        }
    }
}

impl Batch {
    fn send(mut self, turn: &mut Turn<'_, ResourceManager>, agent: &AgentId) {
        let kind = MessageType::TaskAssignment;
        sent(turn, "task_assignment");
        if self.assignments.len() == 1
            && let Some(body) = self.assignments.pop()
        {
            let (run, trace) = (self.run, self.trace);
            return turn.publish(Publication { subject: subject::assign(agent), body, kind, run, trace });
        }
        #[derive(Serialize)]
        struct Body {
            assignments: Vec<Json>,
        }
        let body = json(&Body { assignments: self.assignments });
        turn.publish(Publication { subject: subject::assignments(agent), body, kind, run: None, trace: None });
    }
}

/// Tells the agent, once the lease is committed.
fn push(turn: &mut Turn<'_, ResourceManager>, pushes: &mut Pushes, lease: LeaseId, agent: &AgentId) {
    let now = turn.now();
    let state = turn.state();
    let Some(held) = state.leases.leases.get(&lease) else { return };
    let Some(assignment) = state.tasks.assignment(lease, held, now) else { return };
    let ready_at = state.tasks.open(&assignment.task).map_or(now, |open| open.ready_at);
    let span = turn.shows(assignment.trace).then(|| Span {
        context: assignment.trace.at(part_span(&assignment.task, "assign")),
        parent: Some(task_span(&assignment.task)),
        name: "publish baton.to.{agent}.assign".to_owned(),
        kind: SpanKind::Producer,
        start: now,
        end: now,
        attributes: vec![
            ("messaging.system", "nats".to_owned()),
            ("messaging.operation.type", "send".to_owned()),
            ("messaging.destination.name", subject::assign(agent)),
            ("messaging.destination.template", "baton.to.{agent}.assign".to_owned()),
            ("messaging.message.conversation_id", assignment.run.to_string()),
            ("baton.run.id", assignment.run.to_string()),
            ("baton.stage.name", assignment.stage.to_string()),
            ("baton.agent.id", agent.to_string()),
        ],
        error: None,
    });
    if turn.state().agents.present(agent).is_some_and(|agent| agent.record.batches) {
        pushes.add(turn, agent, &assignment);
    } else {
        sent(turn, "task_assignment");
        turn.publish(Publication {
            subject: subject::assign(agent),
            body: json(&assignment),
            kind: MessageType::TaskAssignment,
            run: Some(assignment.run),
            trace: Some(assignment.trace),
        });
    }
    if let Some(span) = span {
        turn.effect(Effect::Span(span));
    }
    turn.measure_value("agent_message_latency_seconds", &["task_assignment"], seconds(now.saturating_sub(ready_at)));
    let push = Push { agent: agent.clone(), at: now, trace: assignment.trace };
    turn.soft.pushed.insert((assignment.task, lease), push);
}

/// What the agent holds and does not know of, less what is probably on its way to it.
pub(crate) fn undelivered(
    turn: &mut Turn<'_, ResourceManager>,
    agent: &AgentId,
    holds: &BTreeSet<LeaseId>,
) -> Vec<Assignment> {
    let now = turn.now();
    let state = turn.state();
    let mut bytes = 0;
    let mut start = Vec::new();
    for (id, lease) in state.leases.of(agent).filter(|(id, _)| !holds.contains(id)) {
        let pushed = turn.soft.pushed.get(&(lease.task.clone(), id));
        if pushed.is_some_and(|push| now.saturating_sub(push.at) < PUSH_MS) {
            continue;
        }
        let Some(assignment) = state.tasks.assignment(id, lease, now) else { continue };
        bytes += json(&assignment).size();
        if bytes > MAX_START_BYTES && !start.is_empty() {
            break;
        }
        start.push(assignment);
    }
    for assignment in &start {
        let push = Push { agent: agent.clone(), at: now, trace: assignment.trace };
        turn.soft.pushed.insert((assignment.task.clone(), assignment.lease), push);
    }
    start
}

/// What the agent needs to know to work under a lease.
pub(crate) fn assignment(turn: &Turn<'_, ResourceManager>, lease: LeaseId) -> Option<Assignment> {
    let state = turn.state();
    state.tasks.assignment(lease, state.leases.leases.get(&lease)?, turn.now())
}

/// The agent is being told of a lease in the answer to what it asked.
pub(crate) fn delivered(turn: &mut Turn<'_, ResourceManager>, lease: LeaseId) {
    let (now, state) = (turn.now(), turn.state());
    let Some(held) = state.leases.leases.get(&lease) else { return };
    let push = Push { agent: held.agent.clone(), at: now, trace: state.tasks.trace(&held.task) };
    let task = held.task.clone();
    turn.soft.pushed.insert((task, lease), push);
}

pub(crate) fn decline(turn: &mut Turn<'_, ResourceManager>, agent: &AgentId, request: Decline) -> Reply {
    received(turn, "decline");
    let Decline { lease, reason } = request;
    if reason.len() > MAX_REASON_BYTES {
        let length = reason.len();
        let message = format!("reason has {length} bytes; at most {MAX_REASON_BYTES} are allowed");
        return Err(Rejection::new(Code::TooLarge, message));
    }
    let task = held_by(turn, lease, agent)?;
    let now = turn.now();
    turn.soft.heard.note(agent, now);
    turn.soft.pushed.remove(&(task.clone(), lease));
    turn.emit(ResourceRecord::LeaseEnded(LeaseEnded { lease, task, agent: agent.clone(), reason, silent: false }));
    show_utilization(turn, agent);
    answer(&Done {})
}

/// Takes a task from its agent, which has said nothing of it for longer than its stage allows.
pub(crate) fn end_silent(turn: &mut Turn<'_, ResourceManager>, lease: LeaseId) {
    let state = turn.state();
    let Some(held) = state.leases.get(lease) else { return };
    let (task, agent) = (held.task.clone(), held.agent.clone());
    let Some(timeout) = state.tasks.stage(&task).and_then(|stage| stage.heartbeat_timeout_ms) else { return };
    let trace = state.tasks.trace(&task);
    let reason = format!("nothing was heard of it for {timeout} ms");
    turn.soft.pushed.remove(&(task.clone(), lease));
    cancel(turn, &agent, lease, task.clone(), reason.clone(), Some(trace));
    turn.emit(ResourceRecord::LeaseEnded(LeaseEnded { lease, task, agent: agent.clone(), reason, silent: true }));
    show_utilization(turn, &agent);
}

/// The task of a lease that the agent holds.
fn held_by(turn: &Turn<'_, ResourceManager>, lease: LeaseId, agent: &AgentId) -> Result<TaskId, Rejection> {
    Ok(turn.state().leases.held_by(lease, agent)?.task.clone())
}

/// Tells observers. Progress is never in the log.
pub(crate) fn progress(turn: &mut Turn<'_, ResourceManager>, agent: AgentId, request: Progress) -> Reply {
    received(turn, "progress");
    let Progress { lease, fraction, message } = request;
    if !(0.0..=1.0).contains(&fraction) {
        return Err(Rejection::invalid(format!("fraction is {fraction}; it must be from 0 to 1")));
    }
    if message.len() > MAX_MESSAGE_BYTES {
        let text = format!("message has {} bytes; at most {MAX_MESSAGE_BYTES} are allowed", message.len());
        return Err(Rejection::new(Code::TooLarge, text));
    }
    let task = held_by(turn, lease, &agent)?;
    let at = turn.now();
    turn.soft.heard.note(&agent, at);
    if !is_planted(Bug::ProgressNotHeard) {
        silence::heard(turn, lease);
    }
    let trace = Some(turn.state().tasks.trace(&task));
    let run = task.run;
    let subject = subject::event(Topic::Run(&run), "progress");
    let body = json(&ProgressEvent { task, agent, fraction, message, at });
    turn.publish(Publication { subject, body, kind: MessageType::StatusUpdate, run: Some(run), trace });
    turn.count("messages_sent_total", &[], 1.0);
    answer(&Done {})
}

/// Tells agents of leases that the workflow-manager has ended, where they do not know it from their own report.
///
/// The state has let go of those leases already. The record names agent and lease; where the task ended just as it was
/// leased, only what was pushed tells whom to call back.
pub(crate) fn recall(turn: &mut Turn<'_, ResourceManager>, commit: &Commit<WorkflowRecord>) {
    let (mut finished, mut changed) = (Vec::new(), BTreeSet::new());
    for (_, record) in commit.stamped() {
        match record {
            WorkflowRecord::StageEnded(record) => changed.extend(stage_ended(turn, record)),
            WorkflowRecord::RunFinished(record) => {
                finished.push(record.run);
            }
            // Its agent said so itself, or is gone.
            WorkflowRecord::CopyEnded(record) => {
                turn.soft.pushed.remove(&(record.task.clone(), record.lease));
                changed.insert(record.agent.clone());
            }
            WorkflowRecord::WorkflowRegistered(_)
            | WorkflowRecord::RunStarted(_)
            | WorkflowRecord::StageReady(_)
            | WorkflowRecord::StageExpanded(_)
            | WorkflowRecord::StageSkipped(_)
            | WorkflowRecord::RunPaused(_)
            | WorkflowRecord::RunResumed(_)
            | WorkflowRecord::RunsForgotten(_)
            | WorkflowRecord::StageWaits(_)
            | WorkflowRecord::StageCached(_)
            | WorkflowRecord::StageCommitted(_)
            | WorkflowRecord::Signalled(_)
            | WorkflowRecord::ScheduleSet(_)
            | WorkflowRecord::ScheduleRemoved(_)
            | WorkflowRecord::ScheduleFired(_)
            | WorkflowRecord::TriggerSet(_)
            | WorkflowRecord::TriggerRemoved(_)
            | WorkflowRecord::EventRaised(_)
            | WorkflowRecord::TriggerFired(_) => {}
        }
    }
    // The stages of a run end before it does, so that nothing is found here unless that ever changes.
    for run in finished {
        let of_run = (first_task(run), LeaseId(0))..=(last_task(run), LeaseId(Number::MAX));
        let of_run = turn.soft.pushed.extract_if(of_run, |_, _| true);
        for ((task, lease), push) in of_run.collect::<Vec<_>>() {
            cancel(turn, &push.agent, lease, task, "the run is over".to_owned(), Some(push.trace));
            changed.insert(push.agent);
        }
    }
    changed.iter().for_each(|agent| show_utilization(turn, agent));
}

/// Calls back a task that has ended, where agents do not know; gives who held it.
///
/// Who was pushed it under another lease than the record names took it over just as it ended, or was given it as well.
fn stage_ended(turn: &mut Turn<'_, ResourceManager>, record: &StageEnded) -> Vec<AgentId> {
    let of_task = (record.task.clone(), LeaseId(0))..=(record.task.clone(), LeaseId(Number::MAX));
    let pushed: Vec<_> = turn.soft.pushed.extract_if(of_task, |_, _| true).collect();
    // The run may be over, and its own trace forgotten, as its stages are recalled.
    let trace = pushed.first().map(|(_, push)| push.trace);
    let mut others: BTreeMap<LeaseId, AgentId> =
        pushed.into_iter().map(|((_, lease), push)| (lease, push.agent)).collect();
    let mut reported = record.lease.zip(record.agent.clone());
    others.extend(record.other.as_deref().map(|other| (other.lease, other.agent.clone())));
    match &reported {
        Some((lease, _)) => drop(others.remove(lease)),
        None => reported = others.pop_first(),
    }
    let Some((lease, agent)) = reported else { return Vec::new() };
    let mut changed = vec![agent.clone()];
    let why = match record.outcome {
        Outcome::Cancelled | Outcome::TimedOut => {
            let reason = record.error.clone().unwrap_or_else(|| record.outcome.to_string());
            // Who has handed it over is at it no more.
            if others.is_empty() || record.other.is_some() {
                cancel(turn, &agent, lease, record.task.clone(), reason.clone(), trace);
            }
            reason
        }
        // The agent said so itself, but another one may be at it.
        Outcome::Succeeded | Outcome::Failed | Outcome::Delegated => format!("agent {agent} has reported it"),
        // It is gone, or gave it back, and the other one was not known of yet.
        Outcome::Lost => format!("agent {agent} had it, and was lost"),
    };
    for (lease, other) in others {
        cancel(turn, &other, lease, record.task.clone(), why.clone(), trace);
        changed.push(other);
    }
    changed
}

fn cancel(
    turn: &mut Turn<'_, ResourceManager>,
    agent: &AgentId,
    lease: LeaseId,
    task: TaskId,
    reason: String,
    trace: Option<TraceContext>,
) {
    if !turn.state().agents.is_present(agent) {
        return;
    }
    let run = Some(task.run);
    let body = json(&CancelTask { lease, task, reason });
    turn.publish(Publication { subject: subject::cancel(agent), body, kind: MessageType::StatusUpdate, run, trace });
    sent(turn, "task_cancel");
}

/// Forgets what was pushed to an agent, because its leases are about to end.
pub(crate) fn forget_pushes(turn: &mut Turn<'_, ResourceManager>, agent: &AgentId) {
    let of_agent: Vec<_> = turn.state().leases.of(agent).map(|(id, lease)| (lease.task.clone(), id)).collect();
    for pushed in of_agent {
        turn.soft.pushed.remove(&pushed);
    }
}

/// Sets the gauge of an agent whose leases or slots have changed.
pub(crate) fn show_utilization(turn: &mut Turn<'_, ResourceManager>, agent: &AgentId) {
    let state = turn.state();
    let slots = state.agents.present(agent).map_or(0, |agent| agent.record.slots);
    let ratio = if slots == 0 { 0.0 } else { state.leases.count_of(agent) as f64 / f64::from(slots) };
    turn.gauge("agent_utilization_ratio", &[agent.as_str()], ratio);
}

/// Counts a message from an agent.
pub(crate) fn received(turn: &mut Turn<'_, ResourceManager>, kind: &str) {
    turn.count("agent_messages_total", &[kind], 1.0);
    turn.count("messages_received_total", &[], 1.0);
}

/// Counts a message to an agent.
pub(crate) fn sent(turn: &mut Turn<'_, ResourceManager>, kind: &str) {
    turn.count("agent_messages_total", &[kind], 1.0);
    turn.count("messages_sent_total", &[], 1.0);
}

fn seconds(ms: Millis) -> f64 {
    ms as f64 / 1000.0
}

pub(crate) fn json<T: Serialize>(value: &T) -> Json {
    Json::of(value).expect("what the protocol says can be written as JSON")
}
