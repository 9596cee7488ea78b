//! Decisions about money: who is asked for more, who must go without, who gets how much of what is left.

use std::collections::{BTreeMap, BTreeSet};

use baton_machine::planted::{Bug, is_planted};
use baton_machine::{Reply, answer};
use baton_protocol::budget::{agent_of, check_money};
use baton_protocol::record::{ApprovalAsked, BudgetRefused, ResourceRecord};
use baton_protocol::request::{
    ApproveBudget, DenyBudget, Done, GetSpending, PoolList, SetPool, ShareBy, SharePool, Workload,
};
use baton_protocol::{AgentId, Amount, AtLimit, Balance, Millis, Pool, PoolKind, Rejection, ResourceName, TaskId};

use crate::acquire::{self, MAX_LISTED, RmTurn, set_pool, unknown_pool, view};
use crate::pool::{Needs, Stock};
use crate::{ResourceManager, share};

/// The longest reason for a refusal, in bytes.
const MAX_REASON_BYTES: usize = 2000;

/// Asks for more, if an account has not enough and says so, and nobody is asked for it yet.
pub(crate) fn ask(turn: &mut RmTurn<'_>, needs: &Needs, task: Option<&TaskId>) {
    let Some((account, stock)) = turn.state().pools.at_limit(needs) else { return };
    if stock.pool.at_limit != AtLimit::Ask || stock.asked.is_some() || is_planted(Bug::NobodyAsked) {
        return;
    }
    let wanted = needs.get(account).map(|need| need.amount).unwrap_or_default();
    let asked = ApprovalAsked { account: account.clone(), wanted, task: task.cloned() };
    turn.emit(ResourceRecord::ApprovalAsked(asked));
}

/// Ends a task that wants more than an account has, if the account says that it must go without. Whether that is so.
pub(crate) fn fail(turn: &mut RmTurn<'_>, needs: &Needs, task: &TaskId) -> bool {
    let state = turn.state();
    let Some((account, stock)) = state.pools.at_limit(needs).filter(|(_, stock)| stock.fails()) else { return false };
    let wanted = needs.get(account).map(|need| need.amount).unwrap_or_default();
    let reason = match &stock.broken {
        Some(broken) => format!("account {account} can not be used: {broken}"),
        None => says_no(account, stock, wanted),
    };
    if !is_planted(Bug::RefusalNotWritten) {
        let account = account.clone();
        turn.emit(ResourceRecord::BudgetRefused(BudgetRefused { account, task: Some(task.clone()), reason }));
    }
    true
}

fn says_no(account: &ResourceName, stock: &Stock, wanted: Amount) -> String {
    let (size, spent) = (stock.pool.size.unwrap_or_default(), stock.spent);
    let currency = stock.pool.currency.as_deref().map(|currency| format!(" {currency}")).unwrap_or_default();
    let wanted = if wanted == baton_protocol::budget::least() { "more".to_owned() } else { wanted.to_string() };
    format!("the budget is used up: {wanted} is wanted of account {account}, and {spent} of {size}{currency} are spent")
}

/// Gives an account more.
pub(crate) fn approve(turn: &mut RmTurn<'_>, request: ApproveBudget) -> Reply {
    let ApproveBudget { name, amount } = request;
    let pool = consumed(turn.state(), &name)?.pool.clone();
    let invalid = |why: String| Rejection::invalid(format!("account {name}: {why}"));
    check_money("amount", amount).map_err(|error| invalid(error.to_string()))?;
    if amount.is_zero() {
        return Err(invalid("amount is 0; `budget.deny` says that it gets no more".to_owned()));
    }
    let size = Some(pool.size.unwrap_or_default() + amount);
    set_pool(turn, SetPool { name, pool: Pool { size, ..pool } })
}

/// An account gets no more.
pub(crate) fn deny(turn: &mut RmTurn<'_>, request: DenyBudget) -> Reply {
    let DenyBudget { name, reason } = request;
    let stock = consumed(turn.state(), &name)?;
    let Some(asked) = &stock.asked else {
        return Err(Rejection::invalid(format!("account {name}: nobody asks for more of it")));
    };
    if reason.as_ref().is_some_and(|reason| reason.len() > MAX_REASON_BYTES) {
        return Err(Rejection::invalid(format!("reason is too long; at most {MAX_REASON_BYTES} bytes are allowed")));
    }
    let said = reason.map_or_else(|| "somebody said no".to_owned(), |reason| format!("somebody said no: {reason}"));
    let reason = format!("{}; {said}", says_no(&name, stock, asked.wanted));
    let task = asked.task.clone();
    turn.emit(ResourceRecord::BudgetRefused(BudgetRefused { account: name.clone(), task, reason }));
    acquire::refuse_beyond(turn, &name);
    answer(&Done {})
}

fn consumed<'a>(state: &'a ResourceManager, name: &ResourceName) -> Result<&'a Stock, Rejection> {
    let stock = state.pools.get(name).ok_or_else(|| unknown_pool(state, name))?;
    if stock.pool.kind == PoolKind::Consumed {
        return Ok(stock);
    }
    Err(Rejection::invalid(format!("pool {name} is {}; only a consumed one is an account", stock.pool.kind)))
}

/// When what is left of which accounts is shared out again. It is known to the leader alone: a new one begins to count anew.
#[derive(Debug, Default)]
pub(crate) struct Balances {
    due: BTreeSet<(Millis, ResourceName)>,
    at: BTreeMap<ResourceName, Millis>,
}

impl Balances {
    /// An account is to be shared out then, or sooner if that was to be; none: not any more.
    fn plan(&mut self, name: &ResourceName, at: Option<Millis>) {
        let before = self.at.remove(name);
        if let Some(before) = before {
            self.due.remove(&(before, name.clone()));
        }
        if let Some(at) = at.map(|at| before.map_or(at, |before| before.min(at))) {
            self.at.insert(name.clone(), at);
            self.due.insert((at, name.clone()));
        }
    }

    /// When the next one is to be shared out.
    pub(crate) fn deadline(&self) -> Option<Millis> {
        self.due.first().map(|(at, _)| *at)
    }
}

/// A pool was set: from now on it may have to be shared out by itself, or not any more.
pub(crate) fn plan(turn: &mut RmTurn<'_>, name: &ResourceName) {
    let balance = turn.state().pools.get(name).and_then(|stock| stock.pool.balance);
    let at = balance.map(|balance| turn.now().saturating_add(balance.every_ms));
    turn.soft.balances.plan(name, at);
}

/// A term begins.
pub(crate) fn lead(turn: &mut RmTurn<'_>) {
    let balanced = turn.state().pools.iter().filter(|(_, stock)| stock.pool.balance.is_some());
    let names: Vec<_> = balanced.map(|(name, _)| name.clone()).collect();
    names.iter().for_each(|name| plan(turn, name));
}

/// Shares out again what is to be shared out by now. Where nothing has changed there is nothing to write.
pub(crate) fn tick(turn: &mut RmTurn<'_>) {
    while turn.soft.balances.deadline().is_some_and(|at| at <= turn.now()) {
        let Some((_, name)) = turn.soft.balances.due.pop_first() else { return };
        turn.soft.balances.at.remove(&name);
        plan(turn, &name);
        let balance = turn.state().pools.get(&name).and_then(|stock| stock.pool.balance);
        if let Some(Balance { minimum, .. }) = balance {
            // While no agent has a part of it there is nobody to share it with.
            let _ = share(turn, SharePool { name, by: ShareBy::Workload { of: BTreeMap::new(), minimum } });
        }
    }
}

/// Shares out what is left of an account among its parts: each has what is set aside and spent there already, and its share.
pub(crate) fn share(turn: &mut RmTurn<'_>, request: SharePool) -> Reply {
    let SharePool { name, by } = request;
    let (state, now) = (turn.state(), turn.now());
    let available = consumed(state, &name)?.available(now).unwrap_or_default().nanos();
    let available = if is_planted(Bug::SharedTooMuch) { 2 * available } else { available };
    let agents = || state.pools.parts_of(&name).filter_map(|part| Some((part.clone(), agent_of(part)?)));
    let (parts, shares): (Vec<_>, Vec<_>) = match by {
        ShareBy::Priority(mut of) => {
            if of.is_empty() {
                of = agents().map(|(part, agent)| (part, priority(state, &agent))).collect();
            }
            let weights: Vec<_> = of.values().map(|priority| u64::from(*priority)).collect();
            (of.into_keys().collect(), share::in_proportion(available, &weights))
        }
        ShareBy::Workload { mut of, minimum } => {
            if of.is_empty() {
                of = agents().map(|(part, agent)| (part, workload(state, &agent, now))).collect();
            }
            let weights: Vec<_> = of.values().map(|load| share::workload(load.recent, load.pending)).collect();
            (of.into_keys().collect(), share::by_workload(available, &weights, minimum.rounded_up().nanos()))
        }
    };
    let invalid = |why: String| Err(Rejection::invalid(format!("account {name}: {why}")));
    match parts.len() {
        0 => return invalid("no part of it is named, and no agent has one".to_owned()),
        1..=MAX_LISTED => {}
        parts => return invalid(format!("it has {parts} parts; it can be shared out among {MAX_LISTED}")),
    }
    let mut changed = Vec::new();
    for (part, share) in parts.into_iter().zip(shares) {
        let stock = state.pools.get(&part).ok_or_else(|| unknown_pool(state, &part))?;
        if stock.pool.parent.as_ref() != Some(&name) {
            return invalid(format!("{part} is not a part of it"));
        }
        let size = Some(stock.in_use + stock.spent + Amount::from_nanos(share));
        changed.push(SetPool { pool: Pool { size, ..stock.pool.clone() }, name: part });
    }
    // The whole is told too: what is given out is never more than is left of it.
    let names: Vec<_> = std::iter::once(&name).chain(changed.iter().map(|set| &set.name)).cloned().collect();
    for set in changed {
        set_pool(turn, set)?;
    }
    let (state, now) = (turn.state(), turn.now());
    let pools = names.iter().filter_map(|name| Some(view(turn, name, state.pools.get(name)?, now))).collect();
    answer(&PoolList { pools, more: false })
}

/// The priority that an agent registered with; 1 where that is less, or where it is not there.
fn priority(state: &ResourceManager, agent: &AgentId) -> u32 {
    let priority = state.agents.present(agent).map_or(0, |agent| agent.record.priority);
    u32::try_from(priority).unwrap_or(0).max(1)
}

/// What an agent has done lately, and what it has in hand.
fn workload(state: &ResourceManager, agent: &AgentId, now: Millis) -> Workload {
    let pending = u32::try_from(state.leases.count_of(agent)).unwrap_or(u32::MAX);
    Workload { recent: state.spending.recent(agent, now), pending }
}

pub(crate) fn spending(turn: &RmTurn<'_>, request: &GetSpending) -> Reply {
    answer(&turn.state().spending.list(request)?)
}
