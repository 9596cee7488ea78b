//! Fairness between tenants: each type of agents is shared among them by their weights, whoever brings more.
//!
//! This is start-time fair queueing (Goyal, Vin and Cheng, *Start-time Fair Queuing*, 1996) with one task as the unit. For each type
//! of agents a tenant's next task has a *start*, and the least goes first; the start is then moved on by 1/weight. The start
//! of what was served last is the *time*: who had nothing to do, or could not be served, starts there, so that nothing is owed for
//! what was not used.
//!
//! Every start is so between the time and 1/weight after it. From that follows how even the shares are: of two tenants that
//! have the like to do all the while, with weights `w` and `v`, neither is served more than `1/w + 1/v` tasks ahead of the other for each
//! unit of weight. A task that is refused is given back, which may add one.
//!
//! More urgent goes first nevertheless. What counts between tenants is the priority, and how long a tenant had to wait while others
//! were served: a step of priority for each `ageing_ms`. So no tenant waits for ever behind others that matter more; and one that
//! brings ten thousand tasks gains nothing by their age, as it is served all the time.
//!
//! The leader alone knows this, and can do without: a new one lets all start at once.

use std::collections::BTreeMap;
use std::sync::Arc;

use baton_machine::planted::{Bug, is_planted};
use baton_protocol::{Capability, Millis};

/// How far a tenant of weight 1 comes with a task. Divided by weights, what is lost by rounding is less than a millionth.
const TASK: u64 = 1 << 32;
/// The greatest weight.
const MAX_WEIGHT: u32 = 1000;
/// How many tenants are told apart, and in how many places they may be altogether, one for each type of agents. Beyond
/// that they are forgotten, and start at once.
const MAX_TENANTS: usize = 10_000;
const MAX_PLACES: usize = 50_000;

/// A tenant, as a number among those that are known.
pub(crate) type Seat = usize;

/// The weight of a tenant.
pub(crate) fn weight(name: Option<&str>, weights: &BTreeMap<String, u32>) -> u32 {
    name.and_then(|name| weights.get(name)).copied().unwrap_or(1).clamp(1, MAX_WEIGHT)
}

/// How far each tenant has come with each type of agents.
#[derive(Debug, Default)]
pub(crate) struct Tenants {
    seats: BTreeMap<Option<Arc<str>>, Seat>,
    /// How far each comes with a task.
    steps: Vec<u64>,
    clocks: BTreeMap<Capability, Clock>,
    /// In how many places tenants are.
    places: usize,
}

/// One type of agents.
#[derive(Debug, Default)]
struct Clock {
    /// The start of the task that was served last.
    time: u64,
    places: BTreeMap<Seat, Place>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Place {
    /// Where the tenant's last task ended.
    end: u64,
    /// When it was given it.
    served: Millis,
}

impl Tenants {
    /// Where a tenant sits; none: all runs that name none are one's.
    pub(crate) fn seat(&mut self, name: Option<&Arc<str>>, weights: &BTreeMap<String, u32>) -> Seat {
        let name = name.cloned();
        if let Some(seat) = self.seats.get(&name) {
            return *seat;
        }
        self.steps.push(TASK / u64::from(weight(name.as_deref(), weights)));
        self.seats.insert(name, self.steps.len() - 1);
        self.steps.len() - 1
    }

    /// Whether too many are known: then all seats are to be given anew.
    pub(crate) fn is_full(&self) -> bool {
        self.steps.len() > MAX_TENANTS || self.places > MAX_PLACES
    }

    fn place(&self, seat: Seat, of: &Capability) -> Option<Place> {
        self.clocks.get(of)?.places.get(&seat).copied()
    }

    /// Where a tenant's next task for this type of agents starts, if it has been given so many more in thought.
    pub(crate) fn start(&self, seat: Seat, of: &Capability, more: u64) -> u64 {
        if is_planted(Bug::TenantsIgnored) {
            return 0;
        }
        let time = self.clocks.get(of).map_or(0, |clock| clock.time);
        let end = self.place(seat, of).map_or(0, |place| place.end);
        end.max(time).saturating_add(more.saturating_mul(self.steps[seat]))
    }

    /// A tenant is given a task.
    pub(crate) fn served(&mut self, seat: Seat, of: &Capability, now: Millis) {
        let (start, step) = (self.start(seat, of, 0), self.steps[seat]);
        let clock = match self.clocks.get_mut(of) {
            Some(clock) => clock,
            None => self.clocks.entry(of.clone()).or_default(),
        };
        clock.time = start;
        let place = Place { end: start.saturating_add(step), served: now };
        self.places += usize::from(clock.places.insert(seat, place).is_none());
    }

    /// It did not get it.
    pub(crate) fn refused(&mut self, seat: Seat, of: &Capability) {
        let step = self.steps[seat];
        let place = self.clocks.get_mut(of).and_then(|clock| clock.places.get_mut(&seat));
        if let Some(place) = place {
            place.end = place.end.saturating_sub(step);
        }
    }

    /// How many steps of priority a tenant has gained that has had something to do for this type of agents since then.
    pub(crate) fn gained(
        &self,
        seat: Seat,
        of: &Capability,
        since: Millis,
        (now, ageing_ms): (Millis, Millis),
    ) -> i128 {
        let served = self.place(seat, of).map_or(0, |place| place.served);
        i128::from(now.saturating_sub(since.max(served)) / ageing_ms.max(1))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn research() -> Capability {
        Capability::new("research").unwrap()
    }

    /// Serves whoever has something to do and starts first, `rounds` times.
    fn serve(tenants: &mut Tenants, seats: &[Seat], rounds: usize) -> Vec<u64> {
        let mut got = vec![0; seats.len()];
        for _ in 0..rounds {
            let next = (0..seats.len()).min_by_key(|n| (tenants.start(seats[*n], &research(), 0), *n)).unwrap();
            tenants.served(seats[next], &research(), 0);
            got[next] += 1;
        }
        got
    }

    proptest! {
        /// Tenants that have enough to do are never further apart than by a task of each for each unit of weight, whatever was before.
        #[test]
        fn o1_tenants_share_by_weight_within_a_task(
            weights in prop::collection::vec(1..20u32, 2..8),
            before in prop::collection::vec(0..8usize, 0..40),
            rounds in 1..400usize,
        ) {
            let mut tenants = Tenants::default();
            let names: Vec<Arc<str>> = (0..weights.len()).map(|n| format!("t{n}").into()).collect();
            let known = names.iter().zip(&weights).map(|(name, weight)| (name.to_string(), *weight)).collect();
            let seats: Vec<_> = names.iter().map(|name| tenants.seat(Some(name), &known)).collect();
            // At first some are served while others have nothing to do.
            for n in before {
                tenants.served(seats[n % seats.len()], &research(), 0);
            }
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
        tenants.served(ann, &research(), 0);
        tenants.refused(ann, &research());
        assert_eq!(serve(&mut tenants, &[ann, bob], 10), [5, 5]);
        assert_eq!(tenants.seat(Some(&"ann".into()), &weights), ann);
    }

    #[test]
    fn o1_what_a_tenant_has_of_one_type_of_agents_is_not_held_against_it_with_another() {
        let mut tenants = Tenants::default();
        let weights = BTreeMap::new();
        let (ann, bob) = (tenants.seat(Some(&"ann".into()), &weights), tenants.seat(None, &weights));
        let review = Capability::new("review").unwrap();
        (0..100).for_each(|_| tenants.served(ann, &review, 0));
        assert_eq!(serve(&mut tenants, &[ann, bob], 4), [2, 2]);
    }

    #[test]
    fn o1_who_is_not_served_becomes_more_urgent() {
        let mut tenants = Tenants::default();
        let ann = tenants.seat(Some(&"ann".into()), &BTreeMap::new());
        assert_eq!(tenants.gained(ann, &research(), 1000, (1000 + 59, 20)), 2);
        tenants.served(ann, &research(), 1050);
        assert_eq!(tenants.gained(ann, &research(), 1000, (1000 + 59, 20)), 0);
    }
}
