//! Decisions about pools: who gets something of them, who waits, who must go without.

use std::fmt::Write as _;

use baton_machine::planted::{Bug, is_planted};
use baton_machine::{Reply, Turn, answer};
use baton_protocol::budget::{is_of_run, run_account};
use baton_protocol::nearest::nearest;
use baton_protocol::pool::{MAX_DEPTH, MAX_SIZE};
use baton_protocol::record::{Acquired, PoolRemoved, PoolSet, ReleaseReason, Released, Renewed, ResourceRecord};
use baton_protocol::request::{
    Acquire, AcquireAnswer, ApprovalView, Done, Granted, HeldView, LeaseList, ListLeases, ListPools, PoolList,
    PoolView, Release, RemovePool, Renew, SetPool,
};
use baton_protocol::{
    AgentId, Code, Holder, Json, LeaseId, Millis, Pool, PoolKind, Rejection, ResourceName, Take, Takes,
};

use crate::agent::unknown;
use crate::pool::{Key, Known, Lack, Needs, Stock, Why, takes};
use crate::waiting::{ANSWER_MS, Asked, Due, Order, Waiting, Who};
use crate::{ResourceManager, alert, budget, lease};

/// The most pools.
const MAX_POOLS: usize = 10_000;
/// The most pools that one acquisition takes from, or chooses from.
const MAX_TAKES: usize = 64;
/// The longest id of an acquisition, and the longest name of a client, in bytes.
const MAX_ID_BYTES: usize = 128;
/// How long something may be held without being renewed, in milliseconds: at least, and at the most a day.
const TTL_MS: (Millis, Millis) = (100, 24 * 3600 * 1000);
/// How long an acquisition may wait: a day, in milliseconds.
const MAX_WAIT_MS: Millis = 24 * 3600 * 1000;
/// How many pools, or leases, one answer lists.
pub(crate) const MAX_LISTED: usize = 500;

pub(crate) type RmTurn<'a> = Turn<'a, ResourceManager>;

// Pools.

pub(crate) fn set_pool(turn: &mut RmTurn<'_>, request: SetPool) -> Reply {
    may_set(turn.state(), &request)?;
    let SetPool { name, pool } = request;
    if turn.state().pools.get(&name).is_none_or(|stock| stock.pool != pool) {
        turn.emit(ResourceRecord::PoolSet(PoolSet { name: name.clone(), pool }));
        budget::plan(turn, &name);
    }
    answer(&Done {})
}

fn may_set(state: &ResourceManager, request: &SetPool) -> Result<(), Rejection> {
    let SetPool { name, pool } = request;
    let invalid = |why: String| Err(Rejection::invalid(format!("pool {name}: {why}")));
    pool.check().or_else(|error| invalid(error.to_string()))?;
    let Some(before) = state.pools.get(name) else {
        if is_of_run(name) {
            return invalid("the account of a run comes and goes with the run: start one with a budget".to_owned());
        }
        if state.pools.iter().filter(|(name, _)| !is_of_run(name)).count() >= MAX_POOLS {
            return Err(Rejection::new(Code::TooLarge, format!("there are {MAX_POOLS} pools; more are not allowed")));
        }
        if let (Some(ours), Some(its)) = (state.pools.currency(), &pool.currency)
            && ours != its
        {
            return invalid(format!("its currency is {its}; accounts are in {ours} here, and all in the same"));
        }
        let Some(parent) = &pool.parent else { return Ok(()) };
        let stock = state.pools.get(parent).ok_or_else(|| unknown_pool(state, parent))?;
        if is_of_run(parent) {
            return invalid(format!("its parent {parent} is gone when the run is over"));
        }
        if stock.pool.kind != PoolKind::Consumed {
            return invalid(format!("its parent {parent} is {}; it must be consumed too", stock.pool.kind));
        }
        if stock.pool.measure != pool.measure {
            return invalid(format!("its parent {parent} is measured by something else"));
        }
        if state.pools.line(parent).count() >= MAX_DEPTH {
            return invalid(format!("it would be part of more than {MAX_DEPTH} others"));
        }
        return Ok(());
    };
    if before.pool.kind != pool.kind
        || before.pool.is_lock() != pool.is_lock()
        || before.pool.parent != pool.parent
        || before.pool.measure != pool.measure
        || before.pool.currency != pool.currency
    {
        return invalid(
            "its kind, its parent, its measure and its currency can not be changed: remove it, and make it anew"
                .to_owned(),
        );
    }
    let least = before.in_use + before.spent;
    if pool.size.is_some_and(|size| size < least) && !is_planted(Bug::PoolShrinksBelowUse) {
        let text = format!("pool {name} can not shrink below the {least} that are in use or spent");
        return Err(Rejection::new(Code::PoolInUse, text));
    }
    Ok(())
}

pub(crate) fn view(turn: &RmTurn<'_>, name: &ResourceName, stock: &Stock, now: Millis) -> PoolView {
    PoolView {
        name: name.clone(),
        pool: stock.pool.clone(),
        in_use: stock.in_use,
        available: stock.available(now),
        spent: stock.spent,
        overrun: stock.overrun,
        exclusive: stock.exclusive,
        leases: stock.leases,
        waiting: turn.soft.waiting.len_of(name) as u64,
        asked: stock.asked.as_ref().map(|asked| ApprovalView {
            wanted: asked.wanted,
            task: asked.task.clone(),
            since: asked.since,
        }),
    }
}

pub(crate) fn remove_pool(turn: &mut RmTurn<'_>, request: RemovePool) -> Reply {
    let RemovePool { name } = request;
    let state = turn.state();
    let Some(stock) = state.pools.get(&name) else { return Err(unknown_pool(state, &name)) };
    if is_of_run(&name) {
        return Err(Rejection::new(Code::PoolInUse, format!("account {name} is there until its run is over")));
    }
    let parts: Vec<_> = state.pools.parts_of(&name).take(3).map(ToString::to_string).collect();
    let why = match (stock.leases, parts.is_empty()) {
        (0, true) => None,
        (0, false) => Some(format!("others are a part of it: {}", parts.join(", "))),
        (leases, _) => Some(format!("{leases} leases hold something of it")),
    };
    if let Some(why) = why {
        return Err(Rejection::new(Code::PoolInUse, format!("pool {name} can not be removed now: {why}")));
    }
    let kind = stock.pool.kind;
    turn.emit(ResourceRecord::PoolRemoved(PoolRemoved { name: name.clone() }));
    alert::clear_pool(turn, &name, kind);
    for order in turn.soft.waiting.of_pool(&name) {
        if let Some(entry) = turn.soft.waiting.remove(&order)
            && let Who::Acquisition(asked) = entry.who
        {
            let rejection = unknown_pool(turn.state(), &name);
            refuse(turn, *asked, &rejection);
        }
    }
    answer(&Done {})
}

/// Makes the pools that the settings declare, as far as that is possible now.
pub(crate) fn declare(turn: &mut RmTurn<'_>) {
    let mut declared: Vec<_> = turn.config().pools.clone().into_iter().collect();
    // Those that others are a part of come first.
    while !declared.is_empty() {
        let known = |parent: &ResourceName| turn.state().pools.get(parent).is_some();
        let (now, later): (Vec<_>, Vec<_>) =
            declared.into_iter().partition(|(_, pool): &(_, Pool)| pool.parent.as_ref().is_none_or(known));
        if now.is_empty() {
            return;
        }
        for (name, pool) in now {
            // One that is in use stays as it is until a later term finds it otherwise.
            let _ = set_pool(turn, SetPool { name, pool });
        }
        declared = later;
    }
}

pub(crate) fn list_pools(turn: &RmTurn<'_>, request: &ListPools) -> Reply {
    let (state, now) = (turn.state(), turn.now());
    if let Some(name) = &request.name
        && state.pools.get(name).is_none()
    {
        return Err(unknown_pool(state, name));
    }
    let wanted = |name: &ResourceName| {
        request.name.as_ref().is_none_or(|wanted| wanted == name) && request.after.as_ref().is_none_or(|a| name > a)
    };
    let mut pools: Vec<_> = state
        .pools
        .iter()
        .filter(|(name, _)| wanted(name))
        .take(MAX_LISTED + 1)
        .map(|(name, stock)| view(turn, name, stock, now))
        .collect();
    let more = pools.len() > MAX_LISTED;
    pools.truncate(MAX_LISTED);
    answer(&PoolList { pools, more })
}

/// No such pool; the nearest name that there is helps who mistyped.
pub(crate) fn unknown_pool(state: &ResourceManager, name: &ResourceName) -> Rejection {
    let names = state.pools.iter().take(1000).map(|(name, _)| name.as_str());
    let mut text = format!("there is no pool {name}");
    match nearest(name.as_str(), names) {
        Some(known) => {
            let _ = write!(text, "; did you mean {known}?");
        }
        None if state.pools.is_empty() => {
            text.push_str("; there are none yet: settings declare them as [pools.NAME], or `pool.set` makes one");
        }
        None => text.push_str("; `pool.list` says which there are"),
    }
    Rejection::new(Code::UnknownResource, text)
}

// Acquisitions.

pub(crate) fn acquire(turn: &mut RmTurn<'_>, agent: Option<AgentId>, request: &Acquire) -> Reply {
    let holder = holder(turn, agent, request)?;
    check(request)?;
    let key = (holder, request.id.clone());
    let state = turn.state();
    match state.pools.known(&key) {
        Some(Known::Held(lease)) => return held(state, lease, turn.now()),
        Some(Known::Over(lease)) => {
            let text = format!("acquisition {:?} is over: it was lease {lease}; a new one needs a new id", request.id);
            return Err(Rejection::new(Code::StaleLease, text));
        }
        None => {}
    }
    under_is_held(state, &key.0, request)?;
    let now = turn.now();
    let waits = match turn.soft.waiting.of_key(&key) {
        Some((order, asked)) => {
            asked.wait_until = now.saturating_add(request.wait_ms);
            asked.request.ttl_ms = request.ttl_ms;
            order
        }
        None => match begin(turn, key, request.clone())? {
            Begun::Served(lease) => return held(turn.state(), lease, now),
            Begun::Waits(order) => order,
        },
    };
    if request.wait_ms == 0 {
        // It waited, and does not want to any more.
        let Some(entry) = turn.soft.waiting.remove(&waits) else { return Err(exhausted(turn, &Needs::new())) };
        let rejection = exhausted(turn, &entry.needs);
        if let Who::Acquisition(asked) = entry.who {
            refuse(turn, *asked, &rejection);
        }
        return Err(rejection);
    }
    let token = turn.answer_later();
    if let Some(old) = turn.soft.waiting.asked_again(&waits, token, now) {
        turn.answer(old, Err(Rejection::new(Code::Unavailable, "the same was asked again since")));
    }
    Ok(Json::default())
}

/// What becomes of a request that comes for the first time.
enum Begun {
    Served(LeaseId),
    Waits(Order),
}

fn begin(turn: &mut RmTurn<'_>, key: Key, request: Acquire) -> Result<Begun, Rejection> {
    let now = turn.now();
    let takes = chosen(turn.state(), &request, now)?;
    let state = turn.state();
    let needs = state.pools.needs(&takes).map_err(|name| unknown_pool(state, &name))?;
    let alone = |(name, take): (&ResourceName, &Take)| {
        let kind = state.pools.get(name).filter(|_| *take == Take::Exclusive)?.pool.kind;
        (kind != PoolKind::Held)
            .then(|| format!("pool {name} is {kind}: only what is held can be had alone; ask for an amount"))
    };
    if let Some(text) = takes.iter().find_map(alone) {
        return Err(Rejection::invalid(text));
    }
    let run = request.under.and_then(|under| state.leases.get(under)).map(|under| run_account(under.task.run));
    if let Some(name) = takes.keys().find(|name| is_of_run(name) && run.as_ref() != Some(*name)) {
        let text = format!("account {name} is for the tasks of its run alone: acquire of it under one's lease");
        return Err(Rejection::invalid(text));
    }
    let lack = state.pools.lacks(&needs, now);
    if let Some(lack) = lack.as_ref().filter(|lack| lack.why == Why::Never) {
        return Err(never(state, &needs, &lack.pool));
    }
    let order = turn.soft.waiting.place(request.priority, now);
    let overtakes = turn.soft.waiting.before(&needs, &order).is_some();
    if lack.is_none() && !overtakes {
        return Ok(Begun::Served(grant(turn, key, takes, &request)));
    }
    let fails = lack.is_some() && turn.state().pools.at_limit(&needs).is_some_and(|(_, stock)| stock.fails());
    if request.wait_ms == 0 || fails {
        return Err(exhausted(turn, &needs));
    }
    if lack.is_some() {
        budget::ask(turn, &needs, None);
    }
    let wait_until = now.saturating_add(request.wait_ms);
    turn.soft.waiting.add(order, needs, Asked { key, takes, request, tokens: Vec::new(), wait_until }, now);
    Ok(Begun::Waits(order))
}

/// More is wanted than there ever is.
fn never(state: &ResourceManager, needs: &Needs, pool: &ResourceName) -> Rejection {
    if let Some(broken) = state.pools.get(pool).and_then(|stock| stock.broken.as_ref()) {
        return Rejection::invalid(format!("account {pool} can not be used: {broken}"));
    }
    let size = state.pools.get(pool).and_then(|stock| stock.pool.size).unwrap_or_default();
    let wanted = needs.get(pool).map(|need| need.amount).unwrap_or_default();
    Rejection::invalid(format!(
        "{wanted} of pool {pool} are wanted; its size is {size}, so that there are never as many"
    ))
}

fn holder(turn: &mut RmTurn<'_>, agent: Option<AgentId>, request: &Acquire) -> Result<Holder, Rejection> {
    let Some(agent) = agent else {
        let name = request.client.clone().unwrap_or_else(|| "client".to_owned());
        if name.is_empty() || name.len() > MAX_ID_BYTES {
            let text = format!("client has {} bytes; it must have 1 to {MAX_ID_BYTES}", name.len());
            return Err(Rejection::invalid(text));
        }
        return Ok(Holder::Client(name));
    };
    lease::received(turn, "acquire");
    if !turn.state().agents.is_present(&agent) {
        return Err(unknown(&agent));
    }
    let now = turn.now();
    turn.soft.heard.note(&agent, now);
    Ok(Holder::Agent(agent))
}

fn check(request: &Acquire) -> Result<(), Rejection> {
    let Acquire { id, take, least_loaded, wait_ms, ttl_ms, .. } = request;
    if id.is_empty() || id.len() > MAX_ID_BYTES {
        return Err(Rejection::invalid(format!("id has {} bytes; it must have 1 to {MAX_ID_BYTES}", id.len())));
    }
    let of = least_loaded.as_ref().map_or(0, |one| one.of.len());
    if take.is_empty() && of == 0 {
        return Err(Rejection::invalid("nothing is asked for: give `take`, or `least_loaded` with at least one pool"));
    }
    if take.len() > MAX_TAKES || of > MAX_TAKES {
        let text = format!("{} pools; at most {MAX_TAKES} are allowed", take.len().max(of));
        return Err(Rejection::new(Code::TooLarge, text));
    }
    for (name, take) in take
        .iter()
        .map(|(name, take)| (name.as_str(), take))
        .chain(least_loaded.as_ref().map(|one| ("least_loaded", &one.take)))
    {
        if let Take::Amount(amount) = take
            && (amount.is_zero() || amount.nanos() > u128::from(MAX_SIZE) * 1_000_000_000)
        {
            return Err(Rejection::invalid(format!(
                "{amount} of {name}; it must be more than 0 and at most {MAX_SIZE}"
            )));
        }
    }
    check_ttl(*ttl_ms)?;
    if *wait_ms > MAX_WAIT_MS {
        return Err(Rejection::invalid(format!("wait_ms is {wait_ms}; it must be from 0 to {MAX_WAIT_MS}")));
    }
    Ok(())
}

fn check_ttl(ttl_ms: Millis) -> Result<(), Rejection> {
    let (least, most) = TTL_MS;
    if (least..=most).contains(&ttl_ms) {
        return Ok(());
    }
    Err(Rejection::invalid(format!("ttl_ms is {ttl_ms}; it must be from {least} to {most}")))
}

/// What is acquired under a task's lease ends with it: the lease must be there, and the agent's.
fn under_is_held(state: &ResourceManager, holder: &Holder, request: &Acquire) -> Result<(), Rejection> {
    match (request.under, holder) {
        (None, _) => Ok(()),
        (Some(under), Holder::Agent(agent)) => state.leases.held_by(under, agent).map(drop),
        (Some(_), Holder::Client(_)) => {
            Err(Rejection::invalid("under names a task's lease, and only the agent that holds it may acquire under it"))
        }
    }
}

/// What is taken, once the least loaded pool is chosen.
fn chosen(state: &ResourceManager, request: &Acquire, now: Millis) -> Result<Takes, Rejection> {
    let mut takes = request.take.clone();
    let Some(one) = &request.least_loaded else { return Ok(takes) };
    if let Some(none) = one.of.iter().find(|name| state.pools.get(name).is_none()) {
        return Err(unknown_pool(state, none));
    }
    if let Some(name) = state.pools.least_loaded(&one.of, now) {
        if takes.contains_key(name) {
            return Err(Rejection::invalid(format!("pool {name} is in both take and least_loaded")));
        }
        takes.insert(name.clone(), one.take);
    }
    Ok(takes)
}

fn grant(turn: &mut RmTurn<'_>, key: Key, takes: Takes, request: &Acquire) -> LeaseId {
    for name in takes.keys() {
        turn.count("resource_allocations_total", &[name.as_str(), "granted"], 1.0);
    }
    turn.count("resource_acquisitions_total", &[], 1.0);
    let (holder, id) = key;
    let Acquire { ttl_ms, under, .. } = *request;
    turn.grant(ResourceRecord::Acquired(Acquired { id, holder, takes, ttl_ms, under }))
}

/// It is held: so much is answered.
fn held(state: &ResourceManager, lease: LeaseId, now: Millis) -> Reply {
    answer(&AcquireAnswer { granted: granted(state, lease, now), waiting: None })
}

fn granted(state: &ResourceManager, lease: LeaseId, now: Millis) -> Option<Granted> {
    let held = state.pools.acquisition(lease)?;
    let ttl_ms = held.expires_at.saturating_sub(now);
    Some(Granted { lease, takes: held.takes.clone(), expires_at: held.expires_at, ttl_ms })
}

/// There is not enough, or somebody waits for it already.
fn exhausted(turn: &mut RmTurn<'_>, needs: &Needs) -> Rejection {
    let lack = turn.state().pools.lacks(needs, turn.now());
    let rejection = lacking(turn.state(), needs, lack.as_ref(), turn.now());
    if let Some(name) = lack.as_ref().map(|lack| &lack.pool).or_else(|| needs.keys().next()) {
        turn.count("resource_allocations_total", &[name.as_str(), "refused"], 1.0);
    }
    rejection
}

/// What is told to somebody who must go without.
pub(crate) fn lacking(state: &ResourceManager, needs: &Needs, lack: Option<&Lack>, now: Millis) -> Rejection {
    let Some(Lack { pool, why }) = lack else {
        let names: Vec<_> = needs.keys().map(ResourceName::as_str).collect();
        let text = format!("others wait for {} already, and go first", names.join(", "));
        return Rejection::new(Code::PoolExhausted, text);
    };
    let need = needs.get(pool).copied().unwrap_or_default();
    let stock = state.pools.get(pool);
    if let Some(broken) = stock.and_then(|stock| stock.broken.as_ref()) {
        return Rejection::new(Code::PoolExhausted, format!("account {pool} can not be used: {broken}"));
    }
    let has = stock.map(|stock| {
        let (in_use, spent) = (stock.in_use, stock.spent);
        match (stock.pool.size, stock.exclusive) {
            (_, true) => "somebody has it alone".to_owned(),
            (None, false) => format!("{in_use} share it"),
            (Some(size), false) if stock.pool.kind == PoolKind::Consumed => {
                format!("of {size}, {in_use} are set aside and {spent} spent")
            }
            (Some(size), false) if stock.pool.kind == PoolKind::Refilled => {
                format!("{} of {size} are there", stock.available(now).unwrap_or_default())
            }
            (Some(size), false) => format!("{in_use} of {size} are in use"),
        }
    });
    let wanted = if need.exclusive { "it is wanted alone".to_owned() } else { format!("{} are wanted", need.amount) };
    let text = format!("pool {pool} has not enough: {wanted}, {}", has.unwrap_or_default());
    match why {
        Why::After(ms) => Rejection::new(Code::PoolExhausted, text).retry_after((*ms).max(1)),
        Why::Never | Why::InUse => Rejection::new(Code::PoolExhausted, text),
    }
}

pub(crate) fn renew(turn: &mut RmTurn<'_>, agent: Option<&AgentId>, request: &Renew) -> Reply {
    let held = may_touch(turn, agent, request.lease)?;
    let ttl_ms = request.ttl_ms.unwrap_or(held);
    check_ttl(ttl_ms)?;
    turn.emit(ResourceRecord::Renewed(Renewed { lease: request.lease, ttl_ms }));
    match granted(turn.state(), request.lease, turn.now()) {
        Some(granted) => answer(&granted),
        None => Err(over(request.lease)),
    }
}

pub(crate) fn release(turn: &mut RmTurn<'_>, agent: Option<&AgentId>, request: Release) -> Reply {
    let Release { lease, used } = request;
    if turn.state().pools.is_over(lease) {
        return answer(&Done {});
    }
    may_touch(turn, agent, lease)?;
    let state = turn.state();
    let takes = state.pools.acquisition(lease).map(|held| held.takes.clone()).unwrap_or_default();
    for (name, amount) in &used {
        let consumed = state.pools.get(name).is_some_and(|stock| stock.pool.kind == PoolKind::Consumed);
        if !consumed || !takes.contains_key(name) {
            let text = format!("used names {name}; lease {lease} holds nothing of a consumed pool of that name");
            return Err(Rejection::invalid(text));
        }
        if amount.nanos() > u128::from(MAX_SIZE) * 1_000_000_000 {
            return Err(Rejection::invalid(format!("{amount} of {name} were used; at most {MAX_SIZE} can be")));
        }
    }
    end(turn, lease, ReleaseReason::Released, used);
    answer(&Done {})
}

fn end(turn: &mut RmTurn<'_>, lease: LeaseId, reason: ReleaseReason, used: baton_protocol::Resources) {
    let Some(held) = turn.state().pools.acquisition(lease) else { return };
    let pools = held.takes.keys().cloned().collect();
    turn.emit(ResourceRecord::Released(Released { lease, pools, reason, used }));
}

/// How long that is held, if it is, and by this agent where one asks.
fn may_touch(turn: &mut RmTurn<'_>, agent: Option<&AgentId>, lease: LeaseId) -> Result<Millis, Rejection> {
    if agent.is_some() {
        lease::received(turn, "acquire");
    }
    let held = turn.state().pools.acquisition(lease).ok_or_else(|| over(lease))?;
    match (agent, &held.holder) {
        (Some(agent), Holder::Agent(holder)) if agent == holder => Ok(held.ttl_ms),
        (Some(_), _) => Err(over(lease)),
        (None, _) => Ok(held.ttl_ms),
    }
}

fn over(lease: LeaseId) -> Rejection {
    let text = format!("lease {lease} is no acquisition that is held: it has ended, or was never given");
    Rejection::new(Code::StaleLease, text)
}

pub(crate) fn list_leases(turn: &RmTurn<'_>, request: &ListLeases) -> Reply {
    let state = turn.state();
    if let Some(name) = &request.pool
        && state.pools.get(name).is_none()
    {
        return Err(unknown_pool(state, name));
    }
    let acquired = state.pools.acquisitions().map(|(lease, held)| HeldView {
        lease,
        holder: held.holder.clone(),
        id: Some(held.id.clone()),
        task: held.under.and_then(|under| state.leases.get(under)).map(|under| under.task.clone()),
        takes: held.takes.clone(),
        since: held.since,
        expires_at: Some(held.expires_at),
    });
    let by_tasks = state.leases.with_pools().map(|(lease, held)| HeldView {
        lease,
        holder: Holder::Agent(held.agent.clone()),
        id: None,
        task: Some(held.task.clone()),
        takes: takes(&held.pools),
        since: held.since,
        expires_at: None,
    });
    let mut leases: Vec<_> = acquired
        .chain(by_tasks)
        .filter(|held| request.pool.as_ref().is_none_or(|pool| held.takes.contains_key(pool)))
        .filter(|held| request.after.is_none_or(|after| held.lease > after))
        .collect();
    leases.sort_unstable_by_key(|held| held.lease);
    let more = leases.len() > MAX_LISTED;
    leases.truncate(MAX_LISTED);
    answer(&LeaseList { leases, more })
}

// What time and others' ends bring.

/// What was held too long ends; who waited for too long is told.
pub(crate) fn tick(turn: &mut RmTurn<'_>) {
    let now = turn.now();
    while let Some((at, lease)) = turn.state().pools.next_expiry()
        && turn.soft.may_expire(at) <= now
        && !is_planted(Bug::NeverExpires)
    {
        end(turn, lease, ReleaseReason::Expired, baton_protocol::Resources::new());
    }
    for due in turn.soft.waiting.due(now) {
        match due {
            Due::WaitsOn(order, tokens) => {
                let waiting = turn.soft.waiting.answer(&order);
                let reply = answer(&AcquireAnswer { granted: None, waiting });
                tokens.into_iter().for_each(|token| turn.answer(token, reply.clone()));
            }
            Due::Over(entry) => {
                if let Who::Acquisition(asked) = entry.who {
                    let rejection = exhausted(turn, &entry.needs);
                    refuse(turn, *asked, &rejection);
                }
            }
        }
    }
}

/// An account gets no more: who waits for more than it can ever have goes without.
pub(crate) fn refuse_beyond(turn: &mut RmTurn<'_>, account: &ResourceName) {
    for order in turn.soft.waiting.of_pool(account) {
        let Some(needs) = turn.soft.waiting.needs(&order).cloned() else { continue };
        if turn.state().pools.at_limit(&needs).is_none_or(|(short, _)| short != account) {
            continue;
        }
        let rejection = exhausted(turn, &needs);
        if let Some(Who::Acquisition(asked)) = turn.soft.waiting.remove(&order).map(|entry| entry.who) {
            refuse(turn, *asked, &rejection);
        }
    }
}

fn refuse(turn: &mut RmTurn<'_>, asked: Asked, rejection: &Rejection) {
    asked.tokens.into_iter().for_each(|(token, _)| turn.answer(token, Err(rejection.clone())));
}

/// What an agent waits for it does not want any more: it is gone, or has begun anew.
pub(crate) fn forget_agent(turn: &mut RmTurn<'_>, agent: &AgentId) {
    for asked in turn.soft.waiting.forget_agent(agent) {
        refuse(turn, asked, &unknown(agent));
    }
}

/// Serves those who wait, as far as something was freed for them.
pub(crate) fn serve(turn: &mut RmTurn<'_>) {
    if turn.soft.waiting.is_empty() {
        return;
    }
    let mut waiting = std::mem::take(&mut turn.soft.waiting);
    loop {
        let state = turn.state();
        let names = waiting.pools_to_serve(|name| state.pools.get(name).map_or(0, |stock| stock.freed));
        if names.is_empty() {
            break;
        }
        for name in names {
            while serve_first(turn, &mut waiting, &name) {}
        }
    }
    turn.soft.waiting = waiting;
}

/// Serves the first of a queue, if it can be; whether it was.
fn serve_first(turn: &mut RmTurn<'_>, waiting: &mut Waiting, name: &ResourceName) -> bool {
    let now = turn.now();
    let Some((order, entry)) = waiting.first(name) else { return false };
    let Who::Acquisition(asked) = &entry.who else { return false };
    if let Err(rejection) = under_is_held(turn.state(), &asked.key.0, &asked.request) {
        if let Some(Who::Acquisition(asked)) = waiting.remove(&order).map(|entry| entry.who) {
            refuse(turn, *asked, &rejection);
        }
        return true;
    }
    match turn.state().pools.lacks(&entry.needs, now) {
        Some(Lack { why: Why::After(ms), .. }) => {
            waiting.look_at_the_latest(&order, now.saturating_add(ms.clamp(1, ANSWER_MS)));
            false
        }
        Some(Lack { pool, why: Why::Never }) => {
            // The pool has shrunk since.
            let rejection = never(turn.state(), &entry.needs, &pool);
            if let Some(Who::Acquisition(asked)) = waiting.remove(&order).map(|entry| entry.who) {
                refuse(turn, *asked, &rejection);
            }
            true
        }
        Some(Lack { why: Why::InUse, .. }) => false,
        None => {
            if let Some(Who::Acquisition(asked)) = waiting.remove(&order).map(|entry| entry.who) {
                let Asked { key, takes, request, tokens, .. } = *asked;
                let lease = grant(turn, key, takes, &request);
                let reply = held(turn.state(), lease, now);
                tokens.into_iter().for_each(|(token, _)| turn.answer(token, reply.clone()));
            }
            true
        }
    }
}
