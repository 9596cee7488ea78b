//! Pools, locks, elections, and what is held of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use baton_machine::Shelves;
use baton_protocol::record::{Acquired, PoolSet, ReleaseReason, Released, Stamp};
use baton_protocol::{Amount, Holder, Pool, PoolKind, Refill, ResourceName, Take, Takes};
use proptest::test_runner::Config as Cases;

use super::*;
use crate::pool::Pools;

impl World {
    fn pool(&mut self, name: &str, pool: &serde_json::Value) {
        self.ask("pool.set", "", &json!({ "name": name, "pool": pool }));
    }

    fn acquire(&mut self, id: &str, take: &serde_json::Value, wait_ms: Millis) {
        self.ask("lease.acquire", "", &json!({ "id": id, "take": take, "wait_ms": wait_ms, "client": "c" }));
    }

    fn release(&mut self, lease: u64) {
        self.ask("lease.release", "", &json!({ "lease": lease }));
    }

    /// The lines that begin so, without the numbers of commits.
    fn lines(&mut self, wanted: &[&str]) -> Vec<String> {
        let transcript = std::mem::take(&mut self.transcript);
        let wanted = |line: &&str| wanted.iter().any(|wanted| line.contains(wanted));
        transcript.lines().filter(wanted).map(str::to_owned).collect()
    }
}

fn pooled() -> World {
    let mut world = World::new();
    world.pool("gpu", &json!({ "kind": "held", "size": 2 }));
    world.pool("report.md", &json!({ "kind": "held" }));
    world.pool(
        "model:x/tokens",
        &json!({ "kind": "refilled", "size": 100, "refill": { "amount": 100, "every_ms": 60000 } }),
    );
    world.transcript.clear();
    world
}

#[test]
fn r4_who_waits_is_served_in_order_and_what_is_held_expires() {
    let mut world = pooled();
    world.acquire("a", &json!({ "gpu": 2 }), 0);
    world.acquire("a", &json!({ "gpu": 2 }), 0);
    // Refused at once, and told to wait on after a second.
    world.acquire("b", &json!({ "gpu": 1 }), 0);
    world.acquire("c", &json!({ "gpu": 1 }), 5000);
    world.ask("lease.acquire", "", &json!({ "id": "d", "take": { "gpu": 1 }, "wait_ms": 5000, "priority": 1 }));
    world.wait(1500);
    world.check(&expect![[r#"
        6.0 +0 {"acquired":{"id":"a","holder":{"client":"c"},"takes":{"gpu":2},"ttl_ms":30000}} (request lease.acquire)
        answer 4 {"granted":{"lease":4,"takes":{"gpu":2},"expires_at":1030000,"ttl_ms":30000}}
        answer 5 {"granted":{"lease":4,"takes":{"gpu":2},"expires_at":1030000,"ttl_ms":30000}}
        refused 6 pool gpu has not enough: 1 are wanted, 2 of 2 are in use (pool_exhausted)
        answer 8 {"waiting":{"for":"gpu","ahead":0}}
        answer 7 {"waiting":{"for":"gpu","ahead":1}}
    "#]]);
    world.acquire("c", &json!({ "gpu": 1 }), 3500);
    world.ask("lease.acquire", "", &json!({ "id": "d", "take": { "gpu": 1 }, "wait_ms": 3500, "priority": 1 }));
    world.ask("lease.renew", "", &json!({ "lease": 4, "ttl_ms": 20000 }));
    // The one with priority first, though it came later; then the lease's own number is the token.
    world.release(4);
    world.release(4);
    world.acquire("a", &json!({ "gpu": 1 }), 0);
    world.ask("lease.renew", "", &json!({ "lease": 4 }));
    world.check(&expect![[r#"
        7.0 +1500 {"renewed":{"lease":4,"ttl_ms":20000}} (request lease.renew)
        answer 11 {"lease":4,"takes":{"gpu":2},"expires_at":1021500,"ttl_ms":20000}
        8.0 +1500 {"released":{"lease":4,"pools":["gpu"],"reason":"released"}} (request lease.release)
        8.1 +1500 {"acquired":{"id":"d","holder":{"client":"client"},"takes":{"gpu":1},"ttl_ms":30000}} (request lease.release)
        8.2 +1500 {"acquired":{"id":"c","holder":{"client":"c"},"takes":{"gpu":1},"ttl_ms":30000}} (request lease.release)
        answer 10 {"granted":{"lease":7,"takes":{"gpu":1},"expires_at":1031500,"ttl_ms":30000}}
        answer 9 {"granted":{"lease":8,"takes":{"gpu":1},"expires_at":1031500,"ttl_ms":30000}}
        answer 12 {}
        answer 13 {}
        refused 14 acquisition "a" is over: it was lease 4; a new one needs a new id (stale_lease)
        refused 15 lease 4 is no acquisition that is held: it has ended, or was never given (stale_lease)
    "#]]);
    world.wait(60_000);
    world.check(&expect![[r#"
        9.0 +11500 {"alert_raised":{"severity":"critical","kind":"pool_used","about":"gpu","message":"2 of 2 of pool gpu are in use, which is 100 %"}} (timer)
        10.0 +31500 {"released":{"lease":7,"pools":["gpu"],"reason":"expired"}} (timer)
        10.1 +31500 {"released":{"lease":8,"pools":["gpu"],"reason":"expired"}} (timer)
        11.0 +41500 {"alert_cleared":{"alert":9,"severity":"critical","kind":"pool_used","about":"gpu"}} (timer)
    "#]]);
}

/// What was taken of a refilled pool is never given back, so a lock of its name that came in between would lose a holder.
#[test]
fn r6_a_refilled_pool_is_not_replaced_by_a_lock_while_somebody_holds_a_lease_on_it() {
    let mut world = pooled();
    let tokens = "model:x/tokens";
    world.acquire("a", &json!({ tokens: 1 }), 0);
    world.ask("pool.remove", "", &json!({ "name": tokens }));
    world.release(4);
    world.ask("pool.remove", "", &json!({ "name": tokens }));
    world.pool(tokens, &json!({ "kind": "held" }));
    world.acquire("b", &json!({ tokens: "exclusive" }), 0);
    world.acquire("c", &json!({ tokens: "exclusive" }), 0);
    let refused = world.lines(&["refused"]);
    assert_eq!(refused.len(), 2, "{refused:?}");
    assert!(refused[0].contains("1 leases hold something of it (pool_in_use)"), "{refused:?}");
    assert!(refused[1].contains("(pool_exhausted)"), "{refused:?}");
}

#[test]
fn r4_who_stops_asking_loses_its_place_and_who_waits_too_long_is_told() {
    let mut world = pooled();
    world.acquire("a", &json!({ "gpu": 2 }), 0);
    world.acquire("gone", &json!({ "gpu": 2 }), 9000);
    world.wait(100);
    world.acquire("late", &json!({ "gpu": 1 }), 700);
    world.wait(899);
    world.acquire("b", &json!({ "gpu": 1 }), 9000);
    world.transcript.clear();
    for left in [8000, 7000, 6000] {
        world.wait(999);
        world.acquire("b", &json!({ "gpu": 1 }), left);
    }
    world.transcript.clear();
    // Nobody stands before the last one any more.
    world.release(4);
    let lines = world.lines(&["acquired", "pool_exhausted"]);
    assert!(lines.len() == 1 && lines[0].contains("\"id\":\"b\""), "{lines:?}");
}

#[test]
fn r3_what_is_taken_together_is_taken_whole_or_not_at_all() {
    let mut world = pooled();
    world.acquire("a", &json!({ "gpu": 1, "model:x/tokens": 70 }), 0);
    world.acquire("b", &json!({ "gpu": 1, "model:x/tokens": 70 }), 60_000);
    world.ask("pool.list", "", &json!({}));
    let list = world.lines(&["\"pools\""]).remove(0);
    assert!(list.contains(r#""in_use":1,"available":1"#) && list.contains(r#""available":30"#), "{list}");
    // 40 more are there after 24 s; nobody has to do anything for that but ask.
    for _ in 0..24 {
        world.wait(1000);
        world.acquire("b", &json!({ "gpu": 1, "model:x/tokens": 70 }), 60_000);
    }
    let lines = world.lines(&["acquired"]);
    assert!(lines.len() == 1 && lines[0].contains("+24000"), "{lines:?}");
    // What is never there is said at once, and what is no pool.
    world.acquire("c", &json!({ "gpu": 3 }), 60_000);
    world.acquire("d", &json!({ "gpo": 1 }), 60_000);
    world.acquire("e", &json!({ "model:x/tokens": "exclusive" }), 60_000);
    world.acquire("f", &json!({}), 60_000);
    world.acquire("g", &json!({ "gpu": 0 }), 60_000);
    world.ask("lease.acquire", "", &json!({ "id": "h", "take": { "gpu": 1 }, "ttl_ms": 1 }));
    world.ask("lease.acquire", "", &json!({ "id": "i", "take": { "gpu": 1 }, "under": 7 }));
    world.check(&expect![[r#"
        refused 31 3 of pool gpu are wanted; its size is 2, so that there are never as many (invalid_request)
        refused 32 there is no pool gpo; did you mean gpu? (unknown_resource)
        refused 33 pool model:x/tokens is refilled: only what is held can be had alone; ask for an amount (invalid_request)
        refused 34 nothing is asked for: give `take`, or `least_loaded` with at least one pool (invalid_request)
        refused 35 0 of gpu; it must be more than 0 and at most 1000000000000000 (invalid_request)
        refused 36 ttl_ms is 1; it must be from 100 to 86400000 (invalid_request)
        refused 37 under names a task's lease, and only the agent that holds it may acquire under it (invalid_request)
    "#]]);
}

#[test]
fn r5_the_least_loaded_pool_is_chosen() {
    let mut world = pooled();
    world.pool("gpu-b", &json!({ "kind": "held", "size": 8 }));
    let mut take = |id: &str| {
        let of = json!({ "of": ["gpu", "gpu-b"], "take": 1 });
        world.ask("lease.acquire", "", &json!({ "id": id, "least_loaded": of }));
        let line = world.lines(&["acquired"]).remove(0);
        if line.contains("gpu-b") { "gpu-b" } else { "gpu" }
    };
    // By the share that is in use, not by how much that is.
    let chosen: Vec<_> = ["a", "b", "c", "d", "e", "f", "g"].map(&mut take).into();
    assert_eq!(chosen, ["gpu", "gpu-b", "gpu-b", "gpu-b", "gpu-b", "gpu", "gpu-b"]);
}

#[test]
fn r6_readers_share_a_writer_is_alone_and_does_not_starve() {
    let mut world = pooled();
    world.acquire("r1", &json!({ "report.md": "shared" }), 0);
    world.acquire("r2", &json!({ "report.md": "shared" }), 0);
    world.acquire("w", &json!({ "report.md": "exclusive" }), 900);
    // Readers that come after the writer wait behind it.
    world.acquire("r3", &json!({ "report.md": "shared" }), 900);
    world.acquire("r4", &json!({ "report.md": "shared" }), 900);
    world.acquire("r5", &json!({ "report.md": "shared" }), 0);
    let lines = world.lines(&["acquired", "pool_exhausted"]);
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(lines[2].contains("others wait for report.md already"), "{lines:?}");
    world.release(4);
    assert_eq!(world.lines(&["acquired"]).len(), 0);
    world.release(5);
    let lines = world.lines(&["acquired"]);
    assert!(lines.len() == 1 && lines[0].contains("\"exclusive\""), "{lines:?}");
    world.ask("pool.list", "", &json!({ "name": "report.md" }));
    world.acquire("w2", &json!({ "report.md": "exclusive" }), 0);
    // Both that waited behind it go together.
    world.release(8);
    world.check(&expect![[r#"
        answer 12 {"pools":[{"name":"report.md","pool":{"kind":"held"},"in_use":0,"exclusive":true,"leases":1,"waiting":2}],"more":false}
        refused 13 pool report.md has not enough: it is wanted alone, somebody has it alone (pool_exhausted)
        10.0 +0 {"released":{"lease":8,"pools":["report.md"],"reason":"released"}} (request lease.release)
        10.1 +0 {"acquired":{"id":"r3","holder":{"client":"c"},"takes":{"report.md":1},"ttl_ms":30000}} (request lease.release)
        10.2 +0 {"acquired":{"id":"r4","holder":{"client":"c"},"takes":{"report.md":1},"ttl_ms":30000}} (request lease.release)
        answer 7 {"granted":{"lease":10,"takes":{"report.md":1},"expires_at":1030000,"ttl_ms":30000}}
        answer 8 {"granted":{"lease":11,"takes":{"report.md":1},"expires_at":1030000,"ttl_ms":30000}}
        answer 14 {}
    "#]]);
}

#[test]
fn r7_at_most_one_leads_in_a_term_and_a_later_term_is_greater() {
    let mut world = pooled();
    for agent in ["ann", "bob"] {
        world.register(agent, "s", 1);
    }
    let campaign = |world: &mut World, agent: &str, wait_ms: Millis| {
        let body = json!({ "id": "e", "take": { "report.md": "exclusive" }, "wait_ms": wait_ms });
        world.agent(agent, "acquire", &body);
    };
    campaign(&mut world, "ann", 0);
    campaign(&mut world, "bob", 5000);
    let terms = world.lines(&["acquired"]);
    assert!(terms.len() == 1 && terms[0].contains(r#"{"agent":"ann"}"#), "{terms:?}");
    // Observers see who leads; the other one takes over when the leader leaves, or resigns.
    world.ask("lease.list", "", &json!({ "pool": "report.md" }));
    world.agent("ann", "leave", &json!({ "session": "s" }));
    world.agent("ann", "release", &json!({ "lease": 6 }));
    world.agent("bob", "renew", &json!({ "lease": 6 }));
    world.agent("bob", "renew", &json!({ "lease": 8 }));
    world.agent("bob", "release", &json!({ "lease": 8 }));
    world.check(&expect![[r#"
        answer 8 {"leases":[{"lease":6,"holder":{"agent":"ann"},"id":"e","takes":{"report.md":"exclusive"},"since":1000000,"expires_at":1030000}],"more":false}
        9.0 +0 {"agent_left":{"agent":"ann","reason":"left"}} (request agent.leave)
        9.1 +0 {"acquired":{"id":"e","holder":{"agent":"bob"},"takes":{"report.md":"exclusive"},"ttl_ms":30000}} (request agent.leave)
        answer 7 {"granted":{"lease":8,"takes":{"report.md":"exclusive"},"expires_at":1030000,"ttl_ms":30000}}
        answer 9 {}
        answer 10 {}
        refused 11 lease 6 is no acquisition that is held: it has ended, or was never given (stale_lease)
        10.0 +0 {"renewed":{"lease":8,"ttl_ms":30000}} (request agent.renew)
        answer 12 {"lease":8,"takes":{"report.md":"exclusive"},"expires_at":1030000,"ttl_ms":30000}
        11.0 +0 {"released":{"lease":8,"pools":["report.md"],"reason":"released"}} (request agent.release)
        answer 13 {}
    "#]]);
}

#[test]
fn r3_tasks_of_all_agents_share_a_provider_s_quota() {
    let mut world = pooled();
    world.register("ann", "s", 2);
    world.register("bob", "s", 2);
    let needs = r#"{"cpu": 1, "gpu": 1, "model:x/tokens": 60}"#;
    world.workflow((1..=3).flat_map(|n| [started(n), ready(task(n, "research", 1), needs)]).collect());
    world.transcript.clear();
    world.assign(&[(task(1, "research", 1), "ann"), (task(2, "research", 1), "bob")]);
    world.check(&expect![[r#"
        9.0 +0 {"assigned":{"task":"RUN1/research/1","agent":"ann","resources":{"cpu":1},"pools":{"gpu":1,"model:x/tokens":60}}} (request lease.assign)
        publish baton.to.ann.assign {"lease":6,"task":"RUN1/research/1","run":"RUN1","stage":"research","attempt":1,"workflow":"article","agent_type":"research","input":{"topic":1},"results":{},"params":{"depth":3},"metadata":{"requires_citations":true},"resources":{"cpu":1,"gpu":1,"model:x/tokens":60},"ready_at":1000000,"timeout_ms":60000,"trace":"00-0000000f4240780d9ef3164331c12185-1db186e7b11955cd-01"} [task_assignment traced]
        answer 6 {"granted":1,"refused":[{"task":"RUN2/research/1","agent":"bob","rejection":{"code":"pool_exhausted","message":"pool model:x/tokens has not enough: 60 are wanted, 40 of 100 are there","retry_after_ms":12000}}]}
    "#]]);
    world.ask("lease.list", "", &json!({}));
    world.ask("agent.list", "", &json!({}));
    let lines = world.lines(&["answer"]);
    assert!(lines[0].contains(r#""takes":{"gpu":1,"model:x/tokens":60}"#), "{lines:?}");
    assert!(lines[1].contains(r#""in_use":{"cpu":1}"#), "{lines:?}");
    // Tokens are not given back by the task's end, the GPU is; they come back by themselves.
    world.workflow(vec![ended(task(1, "research", 1), Some((6, "ann")), Outcome::Succeeded)]);
    world.assign(&[(task(2, "research", 1), "bob")]);
    for _ in 0..2 {
        world.wait(6000);
        world.heartbeat("bob", "s", &[]);
    }
    world.assign(&[(task(2, "research", 1), "bob")]);
    let lines = world.lines(&["assigned", "pool_exhausted"]);
    assert!(lines[0].contains("pool_exhausted") && lines[0].contains("retry_after_ms"), "{lines:?}");
    assert!(lines.len() == 2 && lines[1].contains("\"pools\":{\"gpu\":1"), "{lines:?}");
}

#[test]
fn r4_a_task_is_not_overtaken_by_acquisitions_that_come_later() {
    let mut world = pooled();
    world.register("ann", "s", 2);
    world.acquire("a", &json!({ "gpu": 2 }), 0);
    world.workflow(vec![started(1), ready(task(1, "research", 1), r#"{"gpu": 2}"#)]);
    world.assign(&[(task(1, "research", 1), "ann")]);
    world.wait(10);
    world.acquire("b", &json!({ "gpu": 1 }), 5000);
    world.transcript.clear();
    world.release(5);
    // It is kept for the task until the optimizer asks again, or does not for a while.
    assert_eq!(world.lines(&["acquired"]).len(), 0);
    world.assign(&[(task(1, "research", 1), "ann")]);
    assert_eq!(world.lines(&["assigned"]).len(), 1);
    world.workflow(vec![ended(task(1, "research", 1), Some((7, "ann")), Outcome::Failed)]);
    assert_eq!(world.lines(&["acquired"]).len(), 1);
    world.acquire("b2", &json!({ "gpu": 1 }), 0);
    world.workflow(vec![ready(task(1, "research", 2), r#"{"gpu": 2}"#)]);
    world.assign(&[(task(1, "research", 2), "ann")]);
    world.transcript.clear();
    world.acquire("c", &json!({ "gpu": 1 }), 5000);
    world.release(8);
    assert_eq!(world.lines(&["acquired"]).len(), 0);
    world.wait(1600);
    assert_eq!(world.lines(&["acquired"]).len(), 1);
}

#[test]
fn r4_what_an_agent_acquires_ends_with_its_task_or_with_the_agent() {
    let mut world = pooled();
    world.register("ann", "s", 2);
    world.workflow(vec![started(1), ready(task(1, "research", 1), "{}")]);
    world.assign(&[(task(1, "research", 1), "ann")]);
    let body = |id: &str, under: Option<u64>| json!({ "id": id, "take": { "gpu": 1 }, "under": under });
    world.agent("ann", "acquire", &body("t", Some(5)));
    world.agent("ann", "acquire", &body("own", None));
    world.agent("bob", "acquire", &body("t", None));
    world.agent("ann", "acquire", &body("x", Some(99)));
    world.acquire("client", &json!({ "gpu": 2 }), 900);
    world.transcript.clear();
    world.workflow(vec![ended(task(1, "research", 1), Some((5, "ann")), Outcome::Cancelled)]);
    assert_eq!(world.lines(&["acquired"]).len(), 0);
    // Another session of the agent: what it had is free.
    world.register("ann", "s2", 2);
    assert_eq!(world.lines(&["acquired"]).len(), 1);
    world.agent("ann", "acquire", &body("t", None));
    let lines = world.lines(&["refused"]);
    assert!(lines[0].contains("is over: it was lease 6"), "{lines:?}");
}

#[test]
fn r3_a_pool_can_not_shrink_below_what_is_in_use_nor_go() {
    let mut world = pooled();
    world.acquire("a", &json!({ "gpu": 2 }), 0);
    world.transcript.clear();
    world.pool("gpu", &json!({ "kind": "held", "size": 1 }));
    world.pool("gpu", &json!({ "kind": "consumed", "size": 1 }));
    world.pool("gpu", &json!({ "kind": "held", "size": 3 }));
    world.pool("gpu", &json!({ "kind": "held", "size": 3 }));
    world.ask("pool.remove", "", &json!({ "name": "gpu" }));
    world.pool("whole", &json!({ "kind": "consumed", "size": 9 }));
    world.pool("part", &json!({ "kind": "consumed", "size": 9, "parent": "whole" }));
    world.pool("other", &json!({ "kind": "consumed", "size": 9, "parent": "gpu" }));
    world.pool("other", &json!({ "kind": "consumed", "size": 9, "parent": "hole" }));
    world.ask("pool.remove", "", &json!({ "name": "whole" }));
    world.ask("pool.remove", "", &json!({ "name": "part" }));
    world.check(&expect![[r#"
        refused 5 pool gpu can not shrink below the 2 that are in use or spent (pool_in_use)
        refused 6 pool gpu: its kind, its parent, its measure and its currency can not be changed: remove it, and make it anew (invalid_request)
        7.0 +0 {"pool_set":{"name":"gpu","pool":{"kind":"held","size":3}}} (request pool.set)
        answer 7 {}
        answer 8 {}
        refused 9 pool gpu can not be removed now: 1 leases hold something of it (pool_in_use)
        8.0 +0 {"pool_set":{"name":"whole","pool":{"kind":"consumed","size":9}}} (request pool.set)
        answer 10 {}
        9.0 +0 {"pool_set":{"name":"part","pool":{"kind":"consumed","size":9,"parent":"whole"}}} (request pool.set)
        answer 11 {}
        refused 12 pool other: its parent gpu is held; it must be consumed too (invalid_request)
        refused 13 there is no pool hole; did you mean whole? (unknown_resource)
        refused 14 pool whole can not be removed now: others are a part of it: part (pool_in_use)
        10.0 +0 {"pool_removed":{"name":"part"}} (request pool.remove)
        answer 15 {}
    "#]]);
}

#[test]
fn r3_a_leader_makes_the_pools_that_the_settings_declare() {
    let declared = |text: &str| serde_json::from_str::<BTreeMap<ResourceName, Pool>>(text).unwrap();
    let mut world = pooled();
    let config = Config {
        pools: declared(
            r#"{"a": {"kind": "consumed", "size": 1, "parent": "b"}, "b": {"kind": "consumed", "size": 5},
                "gpu": {"kind": "held", "size": 7}, "orphan": {"kind": "consumed", "size": 1, "parent": "none"}}"#,
        ),
        ..Config::default()
    };
    world.machine = Processor::new(config);
    world.feed();
    world.machine.lead("j", world.now);
    world.settle();
    world.check(&expect![[r#"
        6.0 +0 {"pool_set":{"name":"b","pool":{"kind":"consumed","size":5}}} (term began)
        6.1 +0 {"pool_set":{"name":"gpu","pool":{"kind":"held","size":7}}} (term began)
        6.2 +0 {"pool_set":{"name":"a","pool":{"kind":"consumed","size":1,"parent":"b"}}} (term began)
    "#]]);
}

fn stamp(number: u64, at: Millis) -> Stamp {
    Stamp { number, at, seen: 0 }
}

fn name(text: &str) -> ResourceName {
    ResourceName::new(text).unwrap()
}

proptest! {
    /// What comes back in any number of steps is what comes back in one, to the last part of a ninth decimal place.
    #[test]
    fn r3_a_refilled_pool_is_exact_however_often_it_is_looked_at(
        amount in 1u64..2_000_000_000, every_ms in 1u64..1_000_000, steps in prop::collection::vec(0u64..5000, 1..60),
    ) {
        let amount = Amount::from_nanos(amount.into());
        let size = Amount::from(1_000_000_000);
        let pool = Pool { kind: PoolKind::Refilled, size: Some(size), refill: Some(Refill { amount, every_ms }), ..Pool::lock() };
        let mut pools = Pools::default();
        pools.set(stamp(1, 0), &PoolSet { name: name("p"), pool });
        let half = Takes::from([(name("p"), Take::Amount(Amount::from(500_000_000)))]);
        pools.take(&half, 0);
        let nothing = Takes::from([(name("p"), Take::Amount(Amount::ZERO))]);
        let mut now = 0;
        for step in steps {
            now += step;
            pools.take(&nothing, now);
        }
        let left = Amount::from(500_000_000).nanos();
        let expected = (left + u128::from(now) * amount.nanos() / u128::from(every_ms)).min(size.nanos());
        prop_assert_eq!(pools.get(&name("p")).unwrap().available(now).unwrap().nanos(), expected);
    }
}

/// What is done to a tree of accounts.
#[derive(Debug, Clone)]
enum Move {
    Take { account: usize, nanos: u64 },
    End { lease: usize, used: Option<u64> },
    Expire { lease: usize },
}

fn move_of_money() -> impl Strategy<Value = Move> {
    prop_oneof![
        4 => (0..12usize, 1..4_000_000_000u64).prop_map(|(account, nanos)| Move::Take { account, nanos }),
        3 => (0..40usize, prop::option::of(0..5_000_000_000u64)).prop_map(|(lease, used)| Move::End { lease, used }),
        1 => (0..40usize).prop_map(|lease| Move::Expire { lease }),
    ]
}

proptest! {
    #![proptest_config(Cases { cases: 10_000, ..Cases::default() })]

    /// Ten thousand trees of accounts: at every step each account's size is what is free, set aside and spent; what an account
    /// has set aside and spent is its own and that of its parts; and what was used is spent, or noted as too much.
    #[test]
    fn r8_a_tree_of_accounts_conserves_to_the_last_digit(
        parents in prop::collection::vec((0..12usize, 1..20_000_000_000u64), 1..12),
        moves in prop::collection::vec(move_of_money(), 0..40),
    ) {
        let account = |n: usize| name(&format!("a{n}"));
        let mut pools = Pools::default();
        let mut parent_of = Vec::new();
        for (n, (parent, size)) in parents.iter().enumerate() {
            // Each is a part of one before it, or stands alone.
            let parent = (n > 0 && *parent != 11).then(|| parent % n);
            let size = Some(Amount::from_nanos((*size).into()));
            let pool = Pool { kind: PoolKind::Consumed, size, parent: parent.map(account), ..Pool::lock() };
            pools.set(stamp(1, 0), &PoolSet { name: account(n), pool });
            parent_of.push(parent);
        }
        let line = |from: usize| std::iter::successors(Some(from), |n| parent_of[*n]);
        let count = parent_of.len();
        let (mut set_aside, mut used_of) = (BTreeMap::<LeaseId, (usize, u128)>::new(), vec![0u128; count]);
        let mut number = 1;
        for step in moves {
            number += 1;
            match step {
                Move::Take { account: n, nanos } => {
                    let n = n % count;
                    let takes = Takes::from([(account(n), Take::Amount(Amount::from_nanos(nanos.into())))]);
                    let needs = pools.needs(&takes).unwrap();
                    let free = line(n).map(|n| pools.get(&account(n)).unwrap().available(0).unwrap().nanos()).min().unwrap();
                    prop_assert_eq!(pools.lacks(&needs, 0).is_none(), u128::from(nanos) <= free);
                    if u128::from(nanos) <= free {
                        let holder = Holder::Client("c".into());
                        let record = Acquired { id: number.to_string(), holder, takes, ttl_ms: 1, under: None };
                        pools.acquired(LeaseId(number), 0, &record);
                        set_aside.insert(LeaseId(number), (n, nanos.into()));
                    }
                }
                Move::End { lease, used } if !set_aside.is_empty() => {
                    let lease = *set_aside.keys().nth(lease % set_aside.len()).unwrap();
                    let (n, taken) = set_aside.remove(&lease).unwrap();
                    let used_nanos = used.map_or(taken, u128::from);
                    used_of[n] += used_nanos;
                    let used = used.map(|used| (account(n), Amount::from_nanos(used.into()))).into_iter().collect();
                    pools.released(0, &Released { lease, pools: vec![account(n)], reason: ReleaseReason::Released, used });
                }
                Move::Expire { lease } if !set_aside.is_empty() => {
                    let lease = *set_aside.keys().nth(lease % set_aside.len()).unwrap();
                    let (n, _) = set_aside.remove(&lease).unwrap();
                    let reason = ReleaseReason::Expired;
                    pools.released(0, &Released { lease, pools: vec![account(n)], reason, used: Resources::new() });
                }
                Move::End { .. } | Move::Expire { .. } => {}
            }
            let mut accounted = 0;
            for n in 0..count {
                let stock = pools.get(&account(n)).unwrap();
                let (in_use, spent) = (stock.in_use.nanos(), stock.spent.nanos());
                let size = stock.pool.size.unwrap().nanos();
                prop_assert_eq!(stock.available(0).unwrap().nanos() + in_use + spent, size);
                let below = |other: usize| line(other).any(|above| above == n);
                let aside: u128 = set_aside.values().filter(|(other, _)| below(*other)).map(|(_, nanos)| nanos).sum();
                prop_assert_eq!(in_use, aside);
                let parts = (0..count).filter(|other| parent_of[*other] == Some(n));
                let of_parts: u128 = parts.map(|part| pools.get(&account(part)).unwrap().spent.nanos()).sum();
                prop_assert!(of_parts <= spent);
                accounted += spent - of_parts + stock.overrun.nanos();
            }
            prop_assert_eq!(accounted, used_of.iter().sum::<u128>());
        }
        // A snapshot gives it all back.
        let text = serde_json::to_string(&pools).unwrap();
        prop_assert_eq!(serde_json::from_str::<Pools>(&text).unwrap(), pools);
    }
}

#[test]
fn r4_what_is_over_is_remembered_for_a_while_and_not_for_ever() {
    let mut pools = Pools::default();
    pools.set(stamp(1, 0), &PoolSet { name: name("p"), pool: Pool::lock() });
    let holder = Holder::Client("c".into());
    let takes = Takes::from([(name("p"), Take::shared())]);
    for number in 2..=12_000u64 {
        let record =
            Acquired { id: number.to_string(), holder: holder.clone(), takes: takes.clone(), ttl_ms: 1, under: None };
        pools.acquired(LeaseId(number), 0, &record);
        let (lease, reason) = (LeaseId(number), ReleaseReason::Released);
        pools.released(0, &Released { lease, pools: vec![name("p")], reason, used: Resources::new() });
    }
    assert!(pools.is_over(LeaseId(12_000)) && !pools.is_over(LeaseId(3)));
    assert!(pools.known(&(holder.clone(), "3".to_owned())).is_none());
    assert!(pools.known(&(holder, "12000".to_owned())).is_some());
    let kept: Shelves<LeaseId, Arc<crate::pool::Key>> =
        serde_json::from_value(serde_json::to_value(&pools).unwrap()["over"].clone()).unwrap();
    assert_eq!(kept.len(), 10_000);
}

#[test]
fn r15_a_running_task_asks_for_more_and_is_granted_or_refused() {
    let mut world = pooled();
    world.register("ann", "s", 1);
    let needs = r#"{"model:x/tokens": 50}"#;
    world.workflow(vec![started(1), ready(task(1, "research", 1), needs)]);
    world.assign(&[(task(1, "research", 1), "ann")]);
    world.transcript.clear();
    let more = |id: &str, tokens: u32| json!({ "id": id, "take": { "model:x/tokens": tokens }, "under": 5 });
    world.agent("ann", "acquire", &more("m1", 40));
    world.agent("ann", "acquire", &more("m2", 40));
    world.check(&expect![[r#"
        9.0 +0 {"acquired":{"id":"m1","holder":{"agent":"ann"},"takes":{"model:x/tokens":40},"ttl_ms":30000,"under":5}} (request agent.acquire)
        answer 6 {"granted":{"lease":6,"takes":{"model:x/tokens":40},"expires_at":1030000,"ttl_ms":30000}}
        refused 7 pool model:x/tokens has not enough: 40 are wanted, 10 of 100 are there (pool_exhausted)
    "#]]);
    // It ends with the task; a message that comes late gets nothing.
    world.workflow(vec![ended(task(1, "research", 1), Some((5, "ann")), Outcome::Succeeded)]);
    world.agent("ann", "acquire", &more("m3", 1));
    world.ask("lease.list", "", &json!({}));
    world.check(&expect![[r#"
        refused 8 agent ann does not hold lease 5: it has ended, or was never given (stale_lease)
        answer 9 {"leases":[],"more":false}
    "#]]);
}
