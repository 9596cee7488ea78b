//! Fairness between tenants, and between the runs of one.

use baton_protocol::budget::Budget;
use baton_protocol::record::Parent;
use baton_protocol::run::TENANT_KEY;

use super::*;

/// Run `n` begins for a tenant.
fn started_for(n: u64, tenant: &str) -> RunStarted {
    let WorkflowRecord::RunStarted(mut record) = started(n) else { panic!("it is a start") };
    match tenant {
        "" => {}
        // Who names no tenant is known by the account that it is paid from.
        "b" => record.budget = Some(Budget { of: Some(tenant.parse().unwrap()), ..Budget::default() }),
        _ => drop(record.metadata.insert(TENANT_KEY.to_owned(), tenant.to_owned())),
    }
    record
}

impl World {
    /// Run `n` of a tenant has its stage ready.
    fn ready_for(&mut self, n: u64, tenant: &str, priority: i32) {
        let start = WorkflowRecord::RunStarted(RunStarted { priority, ..started_for(n, tenant) });
        self.workflow(vec![start, ready(task(n, 1), "research", priority, 0)]);
    }

    /// Ends all that was asked for, `count` times, one after another, and gives which runs these were.
    fn served(&mut self, count: usize, took: Millis) -> Vec<u64> {
        let mut order = Vec::new();
        for _ in 0..count {
            let granted = self.grant();
            assert_eq!(granted.len(), 1, "one slot is one task at a time: {granted:?}");
            let (task, agent) = &granted[0];
            order.push((1..=300).find(|n| run(*n) == task.run).unwrap());
            self.wait(took);
            let lease = self.leases[task];
            self.workflow(vec![ended(task.clone(), Some((lease, agent)), Outcome::Succeeded, took)]);
        }
        order
    }
}

/// Of whom each run is that was served: a letter each.
fn whose(order: &[u64]) -> String {
    let whose = |n: &u64| match n {
        1..=100 => 'a',
        101..=200 => 'b',
        _ => 'c',
    };
    order.iter().map(whose).collect()
}

#[test]
fn o1_tenants_take_turns_however_much_one_brings() {
    for strategy in [Strategy::LoadBalanced, Strategy::Adaptive] {
        let mut world = World::new();
        world.strategy(strategy);
        for n in 1..=40 {
            world.ready_for(n, "a", 0);
        }
        world.wait(200_000);
        // What A brought has waited for long; but A is about to be served as well as the others are.
        world.resource(vec![registered("ann", "s", "research", 1, 0, 0)]);
        assert_eq!(whose(&world.served(3, 10)), "aaa");
        for n in 101..=104 {
            world.ready_for(n, "b", 0);
        }
        // Those who name no tenant are one together.
        for n in 201..=203 {
            world.ready_for(n, "", 0);
        }
        let order = whose(&world.served(12, 10));
        assert_eq!(order.matches('b').count(), 4, "{strategy:?}: {order}");
        let turns = |from: usize| order[from..from + 3].chars().collect::<std::collections::BTreeSet<_>>().len();
        assert_eq!([turns(1), turns(4), turns(7)], [3; 3], "{strategy:?}: {order}");
        let view = world.view().tenants;
        let names: Vec<_> = view.iter().map(|of| (of.tenant.as_deref(), of.weight)).collect();
        assert_eq!(names, [(None, 1), (Some("a"), 1), (Some("b"), 1)]);
        assert_eq!(view.iter().map(|of| of.waiting + of.active).sum::<u64>(), 47 - 15);
    }
}

#[test]
fn o1_tenants_share_by_their_weights() {
    for strategy in [Strategy::LoadBalanced, Strategy::Adaptive] {
        let weights = [("a".to_owned(), 3), ("b".to_owned(), 1)].into();
        let mut world = World::with(Config { tenants: weights, ..Config::default() });
        world.strategy(strategy);
        for n in 1..=20 {
            world.ready_for(n, "a", 0);
            world.ready_for(100 + n, "b", 0);
        }
        world.resource(vec![registered("ann", "s", "research", 1, 0, 0)]);
        let order = whose(&world.served(20, 10));
        // At no time is either more than a task away from its share.
        for got in 1..=order.len() {
            let of_a = order[..got].matches('a').count() as f64;
            assert!((of_a - 0.75 * got as f64).abs() <= 1.0, "{strategy:?}: {order}");
        }
    }
}

#[test]
fn o1_no_tenant_waits_for_ever_behind_others_that_matter_more() {
    for strategy in [Strategy::LoadBalanced, Strategy::Adaptive] {
        let mut world = World::new();
        world.strategy(strategy);
        for n in 1..=60 {
            world.ready_for(n, "a", 2);
        }
        world.ready_for(101, "b", 0);
        world.ready_for(102, "b", 0);
        world.resource(vec![registered("ann", "s", "research", 1, 0, 0)]);
        // Two steps of ageing make up for the priority, and after each task anew.
        let order = whose(&world.served(40, 10_000));
        let (first, last) = (order.find('b').unwrap(), order.rfind('b').unwrap());
        assert!((11..=14).contains(&first) && (11..=14).contains(&(last - first)), "{strategy:?}: {order}");
    }
}

#[test]
fn o1_what_matters_more_goes_first_whoever_it_is_of() {
    let mut world = World::new();
    for (n, tenant, priority) in [(1, "a", 1), (2, "a", 0), (101, "b", 0), (102, "b", 1), (3, "a", 1)] {
        world.ready_for(n, tenant, priority);
        world.wait(1);
    }
    world.resource(vec![registered("ann", "s", "research", 1, 0, 0)]);
    assert_eq!(world.served(5, 10), [1, 102, 3, 101, 2]);
}

#[test]
fn o1_a_task_that_is_refused_is_given_back() {
    let mut world = World::new();
    for n in 1..=3 {
        world.ready_for(n, "a", 0);
        world.wait(1);
        world.ready_for(100 + n, "b", 0);
    }
    world.resource(vec![registered("ann", "s", "research", 1, 0, 0)]);
    // The first of A is refused, so that the next is of B: A's turn comes right after that.
    world.refuse(Code::NotReady);
    assert_eq!(whose(&world.served(4, 300)), "abab");
}

#[test]
fn o1_the_runs_of_a_tenant_take_turns() {
    let mut world = World::new();
    let item = |n: u64, item: u32| TaskId { item: Some(item), ..task(n, 1) };
    let all = (0..4).map(|i| ready(item(1, i), "research", 0, 0));
    world.workflow([started(1)].into_iter().chain(all).collect());
    world.wait(1);
    world.workflow([started(2)].into_iter().chain((0..2).map(|i| ready(item(2, i), "research", 0, 0))).collect());
    world.resource(vec![registered("ann", "s", "research", 1, 0, 0)]);
    assert_eq!(world.served(2, 10), [1, 2]);
    // Who comes later is behind those who wait for their turn by then, not behind all that they brought: the first is at work again.
    world.ready_for(3, "", 0);
    assert_eq!(world.served(5, 10), [1, 2, 1, 3, 1]);
}

#[test]
fn o1_what_a_run_does_for_another_is_for_the_same_tenant() {
    let mut world = World::new();
    world.workflow(vec![WorkflowRecord::RunStarted(started_for(1, "b")), ready(task(1, 1), "research", 0, 0)]);
    // It is paid from the account of the run around it, which is nobody's name.
    let mut part = started_for(2, "");
    part.budget = Some(Budget { of: Some("run/x".parse().unwrap()), ..Budget::default() });
    part.parent = Some(Box::new(Parent { task: task(1, 1), depth: 1 }));
    world.workflow(vec![WorkflowRecord::RunStarted(part), ready(task(2, 1), "research", 0, 0)]);
    assert_eq!(world.view().queue.iter().map(|task| task.tenant.as_deref()).collect::<Vec<_>>(), [Some("b"); 2]);
}
