//! Fairness between tenants: what is equally urgent is shared among them by their weights, whoever brings more.
//!
//! This is start-time fair queueing (Goyal, Vin and Cheng, *Start-time Fair Queuing*, 1996) with one task as the unit: each
//! tenant's next task has a *start*, and the least goes first; a tenant whose weight is 2 comes half as far with each task. One that
//! had nothing to do, or could not be served, starts where the others are: what was not used is not owed.
//!
//! More urgent goes first nevertheless. What counts between tenants is the priority, and how long a tenant had to wait while others
//! were served: a step of priority for each `ageing_ms`. So no tenant waits for ever behind others that matter more; and one that
//! brings ten thousand tasks gains nothing by their age, as it is served all the time.
//!
//! The leader alone knows this, and can do without: a new one lets all start at once.

use std::collections::BTreeMap;
use std::sync::Arc;

use baton_machine::planted::{Bug, is_planted};
use baton_protocol::Millis;

/// How far a tenant of weight 1 comes with a task. Divided by weights, what is lost by rounding is less than a millionth.
const TASK: u64 = 1 << 32;
/// The greatest weight.
const MAX_WEIGHT: u32 = 1000;
/// How many tenants are told apart. Beyond that they are forgotten, and start at once.
const MAX_TENANTS: usize = 10_000;

/// A tenant, as a seat among those that are known.
pub(crate) type Seat = usize;

/// The weight of a tenant.
pub(crate) fn weight(name: Option<&str>, weights: &BTreeMap<String, u32>) -> u32 {
    name.and_then(|name| weights.get(name)).copied().unwrap_or(1).clamp(1, MAX_WEIGHT)
}

/// How far each tenant has come.
#[derive(Debug, Default)]
pub(crate) struct Tenants {
    seats: BTreeMap<Option<Arc<str>>, Seat>,
    tenants: Vec<Tenant>,
    /// The start of the task that was served last.
    time: u64,
}

#[derive(Debug)]
struct Tenant {
    /// How far it comes with a task.
    task: u64,
    /// Where its last task ended.
    end: u64,
    /// When that was.
    served: Millis,
}

impl Tenants {
    /// Where a tenant is; none: all runs that name none are one's.
    pub(crate) fn seat(&mut self, name: Option<&Arc<str>>, weights: &BTreeMap<String, u32>) -> Seat {
        let name = name.cloned();
        if let Some(seat) = self.seats.get(&name) {
            return *seat;
        }
        let weight = weight(name.as_deref(), weights);
        self.tenants.push(Tenant { task: TASK / u64::from(weight), end: 0, served: 0 });
        self.seats.insert(name, self.tenants.len() - 1);
        self.tenants.len() - 1
    }

    /// All seats are given anew, if there are too many.
    pub(crate) fn forget(&mut self) {
        if self.tenants.len() > MAX_TENANTS {
            *self = Self::default();
        }
    }

    /// Where a tenant's next task starts, if it has been given so many more in thought.
    pub(crate) fn start(&self, seat: Seat, more: u64) -> u64 {
        if is_planted(Bug::TenantsIgnored) {
            return 0;
        }
        let Tenant { task, end, .. } = &self.tenants[seat];
        (*end).max(self.time).saturating_add(more.saturating_mul(*task))
    }

    /// A tenant is given a task.
    pub(crate) fn served(&mut self, seat: Seat, now: Millis) {
        let start = self.start(seat, 0);
        let tenant = &mut self.tenants[seat];
        (self.time, tenant.end, tenant.served) = (start, start.saturating_add(tenant.task), now);
    }

    /// It did not get it.
    pub(crate) fn refused(&mut self, seat: Seat) {
        let tenant = &mut self.tenants[seat];
        tenant.end = tenant.end.saturating_sub(tenant.task);
    }

    /// How many steps of priority a tenant has gained that has had something to do since then.
    pub(crate) fn gained(&self, seat: Seat, since: Millis, now: Millis, ageing_ms: Millis) -> i128 {
        i128::from(now.saturating_sub(since.max(self.tenants[seat].served)) / ageing_ms.max(1))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Serves whoever has something to do and starts first, `rounds` times.
    fn serve(tenants: &mut Tenants, seats: &[Seat], rounds: usize) -> Vec<u64> {
        let mut got = vec![0; seats.len()];
        for _ in 0..rounds {
            let next = (0..seats.len()).min_by_key(|n| (tenants.start(seats[*n], 0), *n)).unwrap();
            tenants.served(seats[next], 0);
            got[next] += 1;
        }
        got
    }

    proptest! {
        /// Tenants that have enough to do are never further apart than by one task for each unit of weight.
        #[test]
        fn o1_tenants_share_by_weight_within_a_task(weights in prop::collection::vec(1..20u32, 2..8), rounds in 1..400usize) {
            let mut tenants = Tenants::default();
            let names: Vec<Arc<str>> = (0..weights.len()).map(|n| format!("t{n}").into()).collect();
            let known = names.iter().zip(&weights).map(|(name, weight)| (name.to_string(), *weight)).collect();
            let seats: Vec<_> = names.iter().map(|name| tenants.seat(Some(name), &known)).collect();
            let got = serve(&mut tenants, &seats, rounds);
            for a in 0..weights.len() {
                for b in 0..weights.len() {
                    let (wa, wb) = (f64::from(weights[a]), f64::from(weights[b]));
                    let apart = got[a] as f64 / wa - got[b] as f64 / wb;
                    prop_assert!(apart <= 1.0 / wa + 1.0 / wb + 1e-6, "{got:?} by {weights:?}");
                }
            }
        }
    }

    #[test]
    fn o1_what_was_not_used_is_not_owed() {
        let mut tenants = Tenants::default();
        let weights = BTreeMap::new();
        let (ann, bob) = (tenants.seat(Some(&"ann".into()), &weights), tenants.seat(None, &weights));
        serve(&mut tenants, &[ann], 100);
        // Bob comes late: from then on they take turns.
        assert_eq!(serve(&mut tenants, &[ann, bob], 10), [5, 5]);
        // What was refused is given back.
        tenants.served(ann, 0);
        tenants.refused(ann);
        assert_eq!(serve(&mut tenants, &[ann, bob], 10), [5, 5]);
        assert_eq!(tenants.seat(Some(&"ann".into()), &weights), ann);
    }

    #[test]
    fn o1_who_is_not_served_becomes_more_urgent() {
        let mut tenants = Tenants::default();
        let ann = tenants.seat(Some(&"ann".into()), &BTreeMap::new());
        assert_eq!(tenants.gained(ann, 1000, 1000 + 59, 20), 2);
        tenants.served(ann, 1050);
        assert_eq!(tenants.gained(ann, 1000, 1000 + 59, 20), 0);
    }
}
