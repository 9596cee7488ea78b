//! Second copies of tasks that are late, or may fail.

use baton_protocol::Money;
use baton_protocol::record::{CopyEnded, OtherCopy};
use baton_protocol::request::Usage;

use super::*;

impl World {
    /// Run `n` has its stage ready, and two agents may be given it.
    fn ready_for_two(&mut self, n: u64) {
        let WorkflowRecord::StageReady(record) = ready(task(n, 1), "research", 0, 0) else { unreachable!() };
        self.workflow(vec![started(n), WorkflowRecord::StageReady(StageReady { hedge: true, ..record })]);
    }

    /// Of two that are at a task of run `n`, one failed.
    fn copy_failed(&mut self, n: u64, (lease, id): (u64, &str)) {
        self.workflow(vec![WorkflowRecord::CopyEnded(Box::new(CopyEnded {
            task: task(n, 1),
            lease: LeaseId(lease),
            agent: agent(id),
            outcome: Outcome::Failed,
            error: None,
            code: None,
            duration_ms: 10,
            cost: Money::ZERO,
            usage: Usage::default(),
            model: None,
        }))]);
    }
}

/// Ann takes ten seconds for what bob does in one. She has a task of run 30, as bob was not there when it came.
fn ann_is_slow() -> World {
    let mut world = World::adaptive((10_000, 1000), 0);
    world.resource(vec![left("bob")]);
    world.ready_for_two(30);
    assert_eq!(world.grant(), [(task(30, 1), "ann".to_owned())]);
    world
}

fn bob_is_back(world: &mut World) -> Vec<(TaskId, String)> {
    world.resource(vec![registered("bob", "s", "research", 1, 0, 0)]);
    world.grant()
}

#[test]
fn o2_a_task_of_a_slow_agent_is_given_to_a_fast_one_that_idles_as_well() {
    let mut world = ann_is_slow();
    world.wait(1_000);
    assert_eq!(bob_is_back(&mut world), [(task(30, 1), "bob".to_owned())]);
    let holders = |world: &World| {
        let runs = &world.machine.machine().runs;
        let name = |holder: Option<&crate::fleet::Holder>| holder.map(|holder| holder.agent.to_string());
        (name(runs.holder(&task(30, 1))), name(runs.second(&task(30, 1))))
    };
    assert_eq!(holders(&world), (Some("ann".into()), Some("bob".into())));
    let why = explained(&mut world, 30, "work");
    assert_eq!(why, "it was expected to end soonest there; bob has it as well, for that is expected to end sooner");
    // Both are at work: what comes then waits.
    world.ready(21, "research", 0, 0);
    assert_eq!(world.grant(), []);
    // If ann fails, bob has it alone, and ann has room again.
    let first = world.leases[&task(30, 1)];
    world.copy_failed(30, (first, "ann"));
    assert_eq!(holders(&world), (Some("bob".into()), None));
    assert_eq!(world.machine.machine().learning.performance(&agent("ann")).unwrap().failed, 1);
    let mut granted = Vec::new();
    for _ in 0..60 {
        world.wait(1_000);
        granted.extend(world.grant());
    }
    assert_eq!(granted, [(task(21, 1), "ann".to_owned())]);
    // A new leader knows it as well.
    assert_eq!(world.view().figures.active_coordinations, 2);
}

#[test]
fn o2_who_loses_is_free_again_and_nothing_is_learned_of_it() {
    let mut world = ann_is_slow();
    bob_is_back(&mut world);
    let (first, second) = (world.leases[&task(30, 1)], world.resource_next - 1);
    let WorkflowRecord::StageEnded(mut record) = ended(task(30, 1), Some((second, "bob")), Outcome::Succeeded, 1000)
    else {
        unreachable!()
    };
    record.other = Some(Box::new(OtherCopy { lease: LeaseId(first), agent: agent("ann") }));
    let before = world.machine.machine().learning.performance(&agent("ann")).unwrap().clone();
    world.workflow(vec![WorkflowRecord::StageEnded(record), finished(30)]);
    assert_eq!(*world.machine.machine().learning.performance(&agent("ann")).unwrap(), before);
    assert_eq!(world.view().figures.active_coordinations, 0);
    world.ready(21, "research", 0, 0);
    world.ready(22, "research", 0, 0);
    world.grant();
    world.wait(60_000);
    world.grant();
    assert_eq!(world.view().figures.active_coordinations, 2);
}

#[test]
fn o2_there_is_no_second_copy_where_it_does_not_pay_or_is_not_wanted() {
    // Its stage does not say that two may be at it.
    let mut world = ann_is_slow();
    let first = world.leases[&task(30, 1)];
    world.workflow(vec![ended(task(30, 1), Some((first, "ann")), Outcome::Succeeded, 10_000), finished(30)]);
    world.ready(21, "research", 0, 0);
    world.grant();
    assert_eq!(bob_is_back(&mut world), []);
    // Another task waits that the fast one can do.
    let mut world = ann_is_slow();
    world.ready(21, "research", 0, 0);
    assert_eq!(bob_is_back(&mut world), [(task(21, 1), "bob".to_owned())]);
    // It is nearly done; and refused, it is not asked for again at once.
    let mut world = ann_is_slow();
    world.wait(9_000);
    world.resource(vec![registered("bob", "s", "research", 1, 0, 0)]);
    let asked = world.asked.len();
    if asked > 0 {
        world.refuse(Code::NotReady);
        assert!(world.asked.is_empty());
    }
    // Another strategy places once.
    let mut world = ann_is_slow();
    world.strategy(Strategy::LoadBalanced);
    assert_eq!(bob_is_back(&mut world), []);
}

#[test]
fn o2_the_second_copy_is_another_agents_though_the_first_has_room_too() {
    let mut world = World::new();
    world.resource(vec![registered("ann", "s", "research", 4, 0, 0)]);
    practise(&mut world, 1, &[("ann", Outcome::Succeeded, 1000); 10]);
    world.strategy(Strategy::Adaptive);
    world.ready_for_two(30);
    world.grant();
    for _ in 0..20 {
        world.wait(1_000);
        assert_eq!(world.grant(), []);
    }
    world.resource(vec![registered("bob", "s", "research", 4, 0, 0)]);
    assert_eq!(world.grant(), [(task(30, 1), "bob".to_owned())]);
}

#[test]
fn o2_a_task_that_hangs_is_given_to_another_agent_without_anything_happening() {
    let mut world = World::adaptive((1000, 1100), 0);
    world.ready_for_two(30);
    assert_eq!(world.grant(), [(task(30, 1), "ann".to_owned())]);
    world.wait(1_000);
    assert_eq!(world.grant(), [], "it is about to be done");
    let mut granted = Vec::new();
    for _ in 0..60 {
        world.wait(1_000);
        granted.extend(world.grant());
    }
    assert_eq!(granted, [(task(30, 1), "bob".to_owned())]);
}
