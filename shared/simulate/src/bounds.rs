//! What no policy can beat, and what one that knows everything reaches.

use crate::workload::World;

/// Lower bounds of the makespan where nothing fails and all jobs are there from the beginning, in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bounds {
    /// The longest chain of tasks, each on the fastest agent that can do it.
    pub critical_path: f64,
    /// All work, shared by all agents that can do it: the largest over all sets of classes.
    pub area: f64,
    /// The largest of these, and of what tasks that have much before (or behind) them take together with that.
    pub makespan: f64,
}

/// A plan that was made ahead.
#[derive(Debug, Clone, PartialEq)]
pub struct Ahead {
    /// When the last task ends, in seconds.
    pub makespan: f64,
    /// The tasks in the order of their starts.
    pub order: Vec<usize>,
    /// The agent of each task.
    pub agent: Vec<usize>,
}

/// The longest of what is given; 0 for nothing.
fn longest(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(0.0, f64::max)
}

/// Lower bounds of the makespan.
#[must_use]
pub fn bounds(world: &World) -> Bounds {
    let (fleet, n) = (&world.fleet, world.len());
    let fastest = |class: usize| longest(fleet.able[class].iter().map(|&a| fleet.speed[a]));
    let classes = fleet.classes();
    let best: Vec<f64> = (0..classes).map(fastest).collect();
    let least: Vec<f64> = (0..n).map(|g| world.seconds[g] / best[world.class[g]]).collect();
    let (mut head, mut tail) = (vec![0.0; n], vec![0.0; n]);
    for &g in &world.order {
        for &c in &world.children[g] {
            head[c] = f64::max(head[c], head[g] + least[g]);
        }
    }
    for &g in world.order.iter().rev() {
        tail[g] = longest(world.children[g].iter().map(|&c| tail[c] + least[c]));
    }
    let critical_path = longest((0..n).map(|g| head[g] + least[g] + tail[g]));
    let sets = sets(classes);
    // What all agents that can do any of a set do in a second.
    let rate = |set: &[usize]| -> f64 {
        let able = |holds: &Vec<bool>| set.iter().any(|&class| holds[class]);
        fleet.holds.iter().zip(&fleet.speed).map(|(holds, speed)| if able(holds) { *speed } else { 0.0 }).sum()
    };
    let rates: Vec<f64> = sets.iter().map(|set| rate(set)).collect();
    let area_of = |tasks: &mut dyn Iterator<Item = usize>| {
        let mut work = vec![0.0; classes];
        tasks.for_each(|g| work[world.class[g]] += world.seconds[g]);
        longest(sets.iter().zip(&rates).map(|(set, rate)| set.iter().map(|&class| work[class]).sum::<f64>() / rate))
    };
    let area = area_of(&mut (0..n));
    let mut makespan = f64::max(critical_path, area);
    for (this, other) in [(&tail, &head), (&head, &tail)] {
        let mut steps: Vec<f64> = this.iter().map(|seconds| micros(*seconds)).collect();
        steps.sort_by(f64::total_cmp);
        steps.dedup();
        for &step in steps.iter().step_by((steps.len() / 40).max(1)) {
            let beyond = || (0..n).filter(|&g| this[g] >= step - 1e-6);
            let rest = beyond().map(|g| other[g]).fold(f64::INFINITY, f64::min);
            if rest.is_finite() {
                makespan = makespan.max(area_of(&mut beyond()) + step + rest);
            }
        }
    }
    Bounds { critical_path, area, makespan }
}

/// Sets of classes: all there are, or, of more than eight classes, each alone and all together.
fn sets(classes: usize) -> Vec<Vec<usize>> {
    if classes > 8 {
        return (0..classes).map(|class| vec![class]).chain([(0..classes).collect()]).collect();
    }
    (1..1usize << classes).map(|set| (0..classes).filter(|class| set >> class & 1 == 1).collect()).collect()
}

/// Rounded to a millionth, as decimal fractions are.
fn micros(seconds: f64) -> f64 {
    format!("{seconds:.6}").parse().unwrap_or(seconds)
}

/// HEFT (Topcuoglu, Hariri, Wu: Performance-Effective and Low-Complexity Task Scheduling for Heterogeneous Computing, 2002),
/// which knows how long everything takes, on a fleet that never fails: by upward rank, each task where it ends soonest, also
/// in gaps that were left.
#[must_use]
pub fn heft(world: &World) -> Ahead {
    let (fleet, n) = (&world.fleet, world.len());
    let mean = |class: usize| {
        let able = &fleet.able[class];
        able.iter().map(|&a| 1.0 / fleet.speed[a]).sum::<f64>() / able.len() as f64
    };
    let factor: Vec<f64> = (0..fleet.classes()).map(mean).collect();
    let mut rank = vec![0.0; n];
    for &g in world.order.iter().rev() {
        let behind = longest(world.children[g].iter().map(|&c| rank[c]));
        rank[g] = world.seconds[g] * factor[world.class[g]] + behind;
    }
    let mut by_rank: Vec<usize> = (0..n).collect();
    by_rank.sort_by(|a, b| f64::total_cmp(&rank[*b], &rank[*a]).then(a.cmp(b)));
    let mut taken: Vec<Vec<(f64, f64)>> = vec![Vec::new(); fleet.len()];
    let (mut ends, mut agent) = (vec![0.0; n], vec![0; n]);
    let mut starts: Vec<(f64, usize)> = Vec::with_capacity(n);
    for g in by_rank {
        let ready = longest(world.parents[g].iter().map(|&p| ends[p]));
        let mut best: Option<(f64, usize, f64)> = None;
        for &a in &fleet.able[world.class[g]] {
            let takes = world.takes(g, a);
            let start = first_gap(&taken[a], ready, takes);
            if best.is_none_or(|(end, ..)| start + takes < end - 1e-12) {
                best = Some((start + takes, a, start));
            }
        }
        let Some((end, a, start)) = best else { continue };
        let place = taken[a].partition_point(|slot| *slot < (start, end));
        taken[a].insert(place, (start, end));
        (ends[g], agent[g]) = (end, a);
        starts.push((start, g));
    }
    starts.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    Ahead { makespan: longest(ends.into_iter()), order: starts.into_iter().map(|(_, g)| g).collect(), agent }
}

/// The first start from `ready` on at which an agent has so much time.
fn first_gap(taken: &[(f64, f64)], ready: f64, takes: f64) -> f64 {
    if taken.last().is_none_or(|(_, end)| *end <= ready) {
        return ready;
    }
    let mut free = 0.0;
    for &(start, end) in taken {
        let from = f64::max(free, ready);
        if from + takes <= start + 1e-12 {
            return from;
        }
        free = f64::max(free, end);
    }
    f64::max(free, ready)
}
