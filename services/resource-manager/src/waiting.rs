//! Who waits for something of pools, and in which order.
//!
//! Each pool has a queue, and whoever wants something of several pools stands in the queue of each. The order is by
//! priority, then by arrival. Only who is the first in all of its queues is served: so nobody is overtaken by somebody behind
//! who wants of the same pool, and a writer waits for readers that came before it, not for those that keep coming.
//!
//! The optimizer's tasks do not wait here: they are refused, and asked for again when something was freed. So that those who
//! do wait here do not take everything from them, a task that was refused is *noted* in its place, and what it needs is kept
//! for it for a while when it is its turn.
//!
//! All of this is known to the leader alone. Whoever waits asks again every second, so a new leader soon knows it too.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use baton_machine::Token;
use baton_protocol::request::{Acquire, Waiting as Answer};
use baton_protocol::{AgentId, Holder, Millis, ResourceName, Takes, TaskId};

use crate::pool::{Key, Needs};

/// How long a request waits before it is told that it waits on.
pub(crate) const ANSWER_MS: Millis = 1000;
/// Who does not ask again for so long has lost its place.
const LAPSE_MS: Millis = 3000;
/// How long a task that was refused keeps its place unless it is asked for again.
const NOTED_MS: Millis = 1500;
/// How many requests of one acquisition may wait: more come only from a network that repeats them.
const MAX_TOKENS: usize = 4;

/// A place in the queues. Less goes first.
pub(crate) type Order = (Reverse<i32>, Millis, u64);

/// Who waits.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    entries: BTreeMap<Order, Entry>,
    queues: BTreeMap<ResourceName, Queue>,
    by_key: BTreeMap<Key, Order>,
    by_needs: BTreeMap<Vec<(ResourceName, baton_protocol::Amount)>, Order>,
    /// When to look at an entry again.
    due: BTreeSet<(Millis, Order)>,
    last: u64,
}

#[derive(Debug, Default)]
struct Queue {
    order: BTreeSet<Order>,
    /// [`Stock::freed`](crate::pool::Stock::freed) when the queue was last looked at; none: it has not been since it changed.
    seen: Option<u64>,
}

/// Somebody who waits.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) needs: Needs,
    pub(crate) who: Who,
    /// When its place is lost, or its wait is over.
    until: Millis,
    due: Millis,
}

/// Who it is.
#[derive(Debug)]
pub(crate) enum Who {
    /// An acquisition.
    Acquisition(Box<Asked>),
    /// A task that was refused.
    Task(TaskId),
}

/// An acquisition that waits.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) key: Key,
    pub(crate) takes: Takes,
    pub(crate) request: Acquire,
    /// The requests that wait for an answer, and when they get one in any case.
    pub(crate) tokens: Vec<(Token, Millis)>,
    /// When its wait is over.
    pub(crate) wait_until: Millis,
}

impl Waiting {
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn deadline(&self) -> Option<Millis> {
        self.due.first().map(|(at, _)| *at)
    }

    /// How many wait for a pool.
    pub(crate) fn len_of(&self, pool: &ResourceName) -> usize {
        self.queues.get(pool).map_or(0, |queue| queue.order.len())
    }

    /// The place of somebody who comes now.
    pub(crate) fn place(&mut self, priority: i32, since: Millis) -> Order {
        self.last += 1;
        (Reverse(priority), since, self.last)
    }

    /// The pool where somebody stands before that place, if there is one.
    pub(crate) fn before<'a>(&self, needs: &'a Needs, order: &Order) -> Option<&'a ResourceName> {
        needs.keys().find(|name| self.head(name).is_some_and(|head| head < *order))
    }

    /// The pool where an acquisition waits that goes before such a task, if there is one. In which order tasks go is the
    /// optimizer's to say.
    pub(crate) fn before_task<'a>(
        &self,
        needs: &'a Needs,
        (priority, since): (i32, Millis),
    ) -> Option<&'a ResourceName> {
        let order = (Reverse(priority), since, 0);
        let is_acquisition =
            |order: &Order| matches!(self.entries.get(order), Some(Entry { who: Who::Acquisition(_), .. }));
        needs
            .keys()
            .find(|name| self.queues.get(*name).is_some_and(|queue| queue.order.range(..order).any(is_acquisition)))
    }

    /// What somebody who waits needs.
    pub(crate) fn needs(&self, order: &Order) -> Option<&Needs> {
        self.entries.get(order).map(|entry| &entry.needs)
    }

    fn head(&self, name: &ResourceName) -> Option<Order> {
        self.queues.get(name)?.order.first().copied()
    }

    pub(crate) fn of_key(&mut self, key: &Key) -> Option<(Order, &mut Asked)> {
        let order = *self.by_key.get(key)?;
        match &mut self.entries.get_mut(&order)?.who {
            Who::Acquisition(asked) => Some((order, asked)),
            Who::Task(_) => None,
        }
    }

    /// Somebody waits from now on.
    pub(crate) fn add(&mut self, order: Order, needs: Needs, asked: Asked, now: Millis) {
        self.by_key.insert(asked.key.clone(), order);
        self.insert(order, needs, Who::Acquisition(Box::new(asked)), now.saturating_add(LAPSE_MS));
        self.look_again(&order);
    }

    /// A request of somebody who waits, or whose request this is, has come: it is answered within a second. Gives the one
    /// that has to be answered at once in its place, if there is one.
    pub(crate) fn asked_again(&mut self, order: &Order, token: Option<Token>, now: Millis) -> Option<Token> {
        let entry = self.entries.get_mut(order)?;
        entry.until = now.saturating_add(LAPSE_MS);
        let Who::Acquisition(asked) = &mut entry.who else { return None };
        asked.tokens.extend(token.map(|token| (token, now.saturating_add(ANSWER_MS))));
        let supernumerary = (asked.tokens.len() > MAX_TOKENS).then(|| asked.tokens.remove(0).0);
        self.look_again(order);
        supernumerary
    }

    /// A task was refused for want of that. Of several that need the same, only the one that comes first is noted.
    pub(crate) fn note(&mut self, task: TaskId, needs: Needs, (priority, since): (i32, Millis), now: Millis) {
        let wants: Vec<_> = needs.iter().map(|(name, need)| (name.clone(), need.amount)).collect();
        if let Some(order) = self.by_needs.get(&wants).copied() {
            let Some(entry) = self.entries.get_mut(&order) else { return };
            let same = matches!(&entry.who, Who::Task(noted) if *noted == task);
            if same {
                entry.until = now.saturating_add(NOTED_MS);
                return self.look_again(&order);
            }
            if (order.0, order.1) <= (Reverse(priority), since) {
                return;
            }
            self.remove(&order);
        }
        let order = self.place(priority, since);
        self.by_needs.insert(wants, order);
        self.insert(order, needs, Who::Task(task), now.saturating_add(NOTED_MS));
        self.look_again(&order);
    }

    /// A task has what it needs, or needs it no more.
    pub(crate) fn forget_task(&mut self, task: &TaskId, needs: &Needs) {
        let wants: Vec<_> = needs.iter().map(|(name, need)| (name.clone(), need.amount)).collect();
        let Some(order) = self.by_needs.get(&wants).copied() else { return };
        if matches!(self.entries.get(&order), Some(Entry { who: Who::Task(noted), .. }) if noted == task) {
            self.remove(&order);
        }
    }

    fn insert(&mut self, order: Order, needs: Needs, who: Who, until: Millis) {
        for name in needs.keys() {
            let queue = self.queues.entry(name.clone()).or_default();
            queue.order.insert(order);
        }
        self.entries.insert(order, Entry { needs, who, until, due: Millis::MAX });
    }

    pub(crate) fn remove(&mut self, order: &Order) -> Option<Entry> {
        let entry = self.entries.remove(order)?;
        self.due.remove(&(entry.due, *order));
        match &entry.who {
            Who::Acquisition(asked) => drop(self.by_key.remove(&asked.key)),
            Who::Task(_) => {
                let wants: Vec<_> = entry.needs.iter().map(|(name, need)| (name.clone(), need.amount)).collect();
                self.by_needs.remove(&wants);
            }
        }
        for name in entry.needs.keys() {
            if let Some(queue) = self.queues.get_mut(name) {
                queue.order.remove(order);
                // Whoever is the first now may be served.
                queue.seen = None;
                if queue.order.is_empty() {
                    self.queues.remove(name);
                }
            }
        }
        Some(entry)
    }

    /// An agent is gone, or another session of it has come: nobody waits for what it asked for.
    pub(crate) fn forget_agent(&mut self, agent: &AgentId) -> Vec<Asked> {
        let of_agent = self.by_key.iter().filter(|((holder, _), _)| matches!(holder, Holder::Agent(id) if id == agent));
        let orders: Vec<_> = of_agent.map(|(_, order)| *order).collect();
        let asked = |entry: Entry| match entry.who {
            Who::Acquisition(asked) => Some(*asked),
            Who::Task(_) => None,
        };
        orders.iter().filter_map(|order| self.remove(order).and_then(asked)).collect()
    }

    /// Who waits for a pool.
    pub(crate) fn of_pool(&self, pool: &ResourceName) -> Vec<Order> {
        self.queues.get(pool).map(|queue| queue.order.iter().copied().collect()).unwrap_or_default()
    }

    fn look_again(&mut self, order: &Order) {
        let Some(entry) = self.entries.get(order) else { return };
        let at = match &entry.who {
            Who::Acquisition(asked) => {
                let answer = asked.tokens.first().map(|(_, at)| *at);
                entry.until.min(asked.wait_until).min(answer.unwrap_or(Millis::MAX))
            }
            Who::Task(_) => entry.until,
        };
        self.look_at(order, at);
    }

    fn look_at(&mut self, order: &Order, at: Millis) {
        if let Some(entry) = self.entries.get_mut(order) {
            self.due.remove(&(entry.due, *order));
            entry.due = at;
            self.due.insert((at, *order));
        }
    }

    /// The first of a pool will have what it needs at that time, if nothing else happens.
    pub(crate) fn look_at_the_latest(&mut self, order: &Order, at: Millis) {
        if self.entries.get(order).is_some_and(|entry| at < entry.due) {
            self.look_at(order, at);
        }
    }

    /// The queues whose first one may be served now, given what was freed of each pool.
    pub(crate) fn pools_to_serve(&mut self, freed: impl Fn(&ResourceName) -> u64) -> BTreeSet<ResourceName> {
        let mut names = BTreeSet::new();
        for (name, queue) in &mut self.queues {
            let freed = Some(freed(name));
            if queue.seen != freed {
                queue.seen = freed;
                names.insert(name.clone());
            }
        }
        names
    }

    /// The first of a queue, if it is the first in all of its queues.
    pub(crate) fn first(&self, name: &ResourceName) -> Option<(Order, &Entry)> {
        let order = self.head(name)?;
        let entry = self.entries.get(&order)?;
        entry.needs.keys().all(|name| self.head(name) == Some(order)).then_some((order, entry))
    }

    /// Those that are due: what has come of each.
    pub(crate) fn due(&mut self, now: Millis) -> Vec<Due> {
        let mut due = Vec::new();
        while let Some((at, order)) = self.due.first().copied().filter(|(at, _)| *at <= now) {
            self.due.remove(&(at, order));
            let Some(entry) = self.entries.get_mut(&order) else { continue };
            entry.due = Millis::MAX;
            let over = match &mut entry.who {
                Who::Task(_) => entry.until <= now,
                Who::Acquisition(asked) => {
                    let answered = asked.tokens.iter().take_while(|(_, at)| *at <= now).count();
                    let tokens: Vec<_> = asked.tokens.drain(..answered).map(|(token, _)| token).collect();
                    let wait_over = asked.wait_until <= now;
                    if !tokens.is_empty() && !wait_over {
                        due.push(Due::WaitsOn(order, tokens));
                    } else {
                        asked.tokens.splice(0..0, tokens.into_iter().map(|token| (token, now)));
                    }
                    wait_over || entry.until <= now
                }
            };
            if over {
                due.extend(self.remove(&order).map(Due::Over));
            } else {
                // It may have been looked at because a pool has filled up.
                for name in entry.needs.keys() {
                    if let Some(queue) = self.queues.get_mut(name) {
                        queue.seen = None;
                    }
                }
                self.look_again(&order);
            }
        }
        due
    }

    /// What an acquisition that waits is told.
    pub(crate) fn answer(&self, order: &Order) -> Option<Answer> {
        let entry = self.entries.get(order)?;
        let ahead =
            |name: &ResourceName| self.queues.get(name).map_or(0, |queue| queue.order.range(..order).count() as u64);
        let (ahead, Reverse(pool)) = entry.needs.keys().map(|name| (ahead(name), Reverse(name))).max()?;
        Some(Answer { pool: pool.clone(), ahead })
    }
}

/// What has come of somebody who waits.
#[derive(Debug)]
pub(crate) enum Due {
    /// It waits on; these requests are told so.
    WaitsOn(Order, Vec<Token>),
    /// Its wait is over, or it does not ask any more.
    Over(Entry),
}
