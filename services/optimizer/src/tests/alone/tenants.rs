//! Fairness between tenants and between the runs of one, and affinity.

use std::collections::BTreeMap;

use baton_protocol::budget::Budget;
use baton_protocol::definition::Definition;
use baton_protocol::record::{Outcome, WorkflowRecord, WorkflowRegistered};
use baton_protocol::request::Strategy;
use baton_protocol::{Millis, StageName, TaskId};

use super::{World, practise};
use crate::Config;
use crate::tests::{agent, ended, finished, ready, registered, run, started, task};

/// Run `n` begins for a tenant.
fn started_for(n: u64, tenant: &str) -> WorkflowRecord {
    let WorkflowRecord::RunStarted(mut record) = started(n) else { panic!() };
    match tenant {
        "" => {}
        // Who names no tenant is known by the account that it is paid from.
        "b" => record.budget = Some(Budget { of: Some(tenant.parse().unwrap()), ..Budget::default() }),
        _ => drop(record.metadata.insert("tenant".to_owned(), tenant.to_owned())),
    }
    WorkflowRecord::RunStarted(record)
}

impl World {
    /// Run `n` of a tenant has its stage ready.
    fn ready_for(&mut self, n: u64, tenant: &str, priority: i32) {
        self.workflow(vec![started_for(n, tenant), ready(task(n, 1), "research", priority, 0)]);
    }

    /// Ends all that was asked for, `count` times, one after another, and gives which runs these were.
    fn served(&mut self, count: usize, took: Millis) -> Vec<u64> {
        let mut order = Vec::new();
        for _ in 0..count {
            let granted = self.grant();
            assert_eq!(granted.len(), 1, "one slot is one task at a time: {granted:?}");
            let (task, agent) = &granted[0];
            let n = (1..=300).find(|n| run(*n) == task.run).unwrap();
            order.push(n);
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
        // What A brought has waited for long, but A is about to be served as well as the others are.
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
    world.ready_for(1, "a", 1);
    world.ready_for(2, "a", 0);
    world.ready_for(101, "b", 0);
    world.ready_for(102, "b", 1);
    world.ready_for(3, "a", 1);
    world.resource(vec![registered("ann", "s", "research", 1, 0, 0)]);
    assert_eq!(world.served(5, 10), [1, 102, 3, 101, 2]);
}

#[test]
fn o1_the_runs_of_a_tenant_take_turns() {
    let mut world = World::new();
    let item = |n: u64, item: u32| TaskId { item: Some(item), ..task(n, 1) };
    let all = (0..4).map(|i| ready(item(1, i), "research", 0, 0));
    world.workflow([started(1)].into_iter().chain(all).collect());
    world.workflow([started(2)].into_iter().chain((0..2).map(|i| ready(item(2, i), "research", 0, 0))).collect());
    world.resource(vec![registered("ann", "s", "research", 1, 0, 0)]);
    assert_eq!(world.served(2, 10), [1, 2]);
    // Who comes later is behind those who wait for their turn, not behind all that they brought.
    world.ready_for(3, "", 0);
    assert_eq!(world.served(5, 10), [1, 2, 3, 1, 1]);
}

#[test]
fn o1_what_builds_on_something_goes_where_that_was_done() {
    for strategy in [Strategy::LoadBalanced, Strategy::Adaptive] {
        let mut world = World::new();
        let definition = Definition::builder("chain")
            .add_stage("one", "research", &[])
            .add_stage("two", "research", &["one"])
            .build()
            .unwrap();
        let chain = WorkflowRegistered { version: 1, definition: std::sync::Arc::new(definition) };
        world.workflow(vec![WorkflowRecord::WorkflowRegistered(chain)]);
        world.resource(vec![registered("ann", "s", "research", 1, 0, 0), registered("bob", "s", "research", 1, 0, 0)]);
        // Ann is the better one by score, and not slower.
        practise(
            &mut world,
            1,
            &[("ann", Outcome::Succeeded, 1000), ("bob", Outcome::Succeeded, 1000), ("ann", Outcome::Succeeded, 1000)],
        );
        world.strategy(strategy);
        world.ready(10, "research", 0, 0);
        assert_eq!(world.grant()[0].1, "ann");
        let WorkflowRecord::RunStarted(mut begun) = started(11) else { panic!() };
        begun.workflow = "chain".parse().unwrap();
        let stage = |name: &str| TaskId { stage: StageName::new(name).unwrap(), ..task(11, 1) };
        world.workflow(vec![WorkflowRecord::RunStarted(begun), ready(stage("one"), "research", 0, 0)]);
        let mut granted = world.grant();
        while granted.is_empty() {
            world.wait(100);
            granted = world.grant();
        }
        assert_eq!(granted, [(stage("one"), "bob".to_owned())], "{strategy:?}");
        world.end(10, "ann", Outcome::Succeeded, 1000);
        let WorkflowRecord::StageReady(mut two) = ready(stage("two"), "research", 0, 0) else { panic!() };
        two.inputs = vec![StageName::new("one").unwrap()];
        let lease = world.leases[&stage("one")];
        let one = ended(stage("one"), Some((lease, "bob")), Outcome::Succeeded, 1000);
        world.workflow(vec![one, WorkflowRecord::StageReady(two)]);
        let near = world.machine.machine().queue.get(&stage("two")).and_then(|queued| queued.near.clone());
        assert_eq!(near, Some(agent("bob")));
        assert_eq!(world.grant(), [(stage("two"), "bob".to_owned())], "{strategy:?}");
        world.workflow(vec![finished(11)]);
    }
}

#[test]
fn o4_an_agent_of_which_nothing_is_known_is_tried() {
    let mut world = World::new();
    world.resource(vec![registered("ann", "s", "research", 1, 0, 0)]);
    practise(&mut world, 1, &[("ann", Outcome::Succeeded, 1000); 20]);
    world.resource(vec![registered("bob", "s", "research", 1, 0, 0)]);
    let mut given: BTreeMap<String, usize> = BTreeMap::new();
    for n in 21..=30 {
        for agent in super::placed(&mut world, n, Strategy::Historical) {
            *given.entry(agent.clone()).or_default() += 1;
            let outcome = if agent == "bob" { Outcome::Failed } else { Outcome::Succeeded };
            world.end(n, &agent, outcome, 1000);
        }
    }
    // Bob is tried, and not for long, as he fails.
    assert!((1..=3).contains(&given["bob"]), "{given:?}");
}
