//! Under pressure.

use baton_protocol::pressure::{PressureCause, PressureChanged, PressureLevel};

use super::*;

/// What is of less priority waits, for 10 s at the most; none: there is no pressure.
fn pressure(below: Option<i32>) -> ResourceRecord {
    ResourceRecord::PressureChanged(PressureChanged {
        level: if below.is_some() { PressureLevel::Elevated } else { PressureLevel::None },
        causes: below.map(|_| PressureCause::Queue).into_iter().collect(),
        below: below.unwrap_or(0),
        longest_ms: 10_000,
        until: START,
        waiting: 9,
        slots: 1,
        memory_percent: None,
    })
}

impl World {
    /// Which runs' tasks are asked for and not answered.
    fn wanted(&self) -> Vec<u64> {
        let tasks = self.asked.values().flat_map(|request| &request.placements).map(|placement| placement.task.run);
        tasks.map(|id| (1..=30).find(|n| run(*n) == id).unwrap()).collect()
    }

    fn why(&mut self, n: u64) -> String {
        let request = OptimizerRequest::ExplainPlacement(ExplainPlacement { run: run(n), stage: task(n, 1).stage });
        self.machine.request(1, "placement.explain", request, RequestContext::default(), self.now);
        let released = self.log.settle(&mut self.machine, self.now);
        let answer = released.effects.into_iter().find_map(|effect| match effect {
            Effect::Answer { reply, .. } => Some(reply.unwrap().read::<PlacementExplained>().unwrap()),
            _ => None,
        });
        answer.unwrap().reason
    }
}

/// Two that can write, and none that can research yet: what waits for that is of the higher priority.
fn pressed(strategy: Strategy) -> World {
    let mut world = World::new();
    world.strategy(strategy);
    world.resource(vec![registered("ann", "s", "writing", 2, 0, 0), pressure(Some(0))]);
    world.ready(1, "research", 0, 0);
    world.ready(2, "writing", -1, 0);
    world.ready(3, "writing", -1, 0);
    world
}

#[test]
fn r13_what_matters_least_is_not_asked_for_while_another_waits() {
    for strategy in Strategy::ALL {
        let mut world = pressed(strategy);
        assert!(world.wanted().is_empty(), "{strategy}: ann has room, and what matters more waits");
        let why = world.why(2);
        assert!(why.contains("of priority -1") && why.contains("elevated"), "{strategy}: {why}");
        // What matters as much as it must goes ahead.
        world.ready(4, "writing", 0, 0);
        assert_eq!(world.wanted(), [4], "{strategy}");
        world.grant();
        assert!(world.wanted().is_empty(), "{strategy}: run 1 still waits");
        // When that one is leased, nothing else waits: the first of the others goes by itself.
        world.resource(vec![registered("bob", "s", "research", 1, 0, 0)]);
        assert_eq!(world.wanted(), [1], "{strategy}");
        let granted: Vec<_> = world.grant().into_iter().map(|(task, _)| task.run).collect();
        assert_eq!(granted, [run(1), run(2)], "{strategy}");
    }
}

#[test]
fn r13_it_goes_by_itself_when_the_pressure_is_over_and_when_it_has_waited_for_long() {
    for strategy in Strategy::ALL {
        let mut world = pressed(strategy);
        world.resource(vec![pressure(None)]);
        let mut wanted = world.wanted();
        wanted.sort_unstable();
        assert_eq!(wanted, [2, 3], "{strategy}");

        let mut world = pressed(strategy);
        world.wait(9_999);
        assert!(world.wanted().is_empty(), "{strategy}");
        world.wait(1);
        let mut wanted = world.wanted();
        wanted.sort_unstable();
        assert_eq!(wanted, [2, 3], "{strategy}");
    }
}

#[test]
fn r13_a_bar_that_is_raised_counts_for_what_waits_already() {
    for strategy in Strategy::ALL {
        let mut world = World::new();
        world.strategy(strategy);
        world.resource(vec![registered("ann", "s", "writing", 2, 0, 0)]);
        world.ready(1, "research", 1, 0);
        world.ready(2, "writing", 0, 0);
        world.refuse(Code::NotReady);
        world.resource(vec![pressure(Some(1))]);
        world.wait(1000);
        assert!(world.wanted().is_empty(), "{strategy}");
        world.resource(vec![pressure(Some(0))]);
        assert_eq!(world.wanted(), [2], "{strategy}");
    }
}
