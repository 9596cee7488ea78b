//! Streams of workflows and backlogs of requests: first the digits of an independent implementation, then the optimizer.

use std::sync::Arc;

use baton_protocol::request::Strategy;
use baton_simulate::capacity;
use baton_simulate::claims;
use baton_simulate::engine::{Conditions, Sim};
use baton_simulate::fleet::{Fleet, FleetPlan};
use baton_simulate::generate::{Shape, generate};
use baton_simulate::packing::{self, Packer};
use baton_simulate::reference::Reference;
use baton_simulate::stream::{self, Arrivals, Stream};
use baton_simulate::who::{Fleets, History, Who, mean, strategies};
use baton_simulate::workload::Graph;

fn graphs(tasks: usize) -> Vec<Arc<Graph>> {
    Shape::ALL.map(|shape| Arc::new(generate(shape, 1, tasks))).into()
}

fn fleets(agents: usize, seeds: &[u64]) -> Fleets {
    Fleets { agents: vec![agents], speeds: (0.5, 2.0), failures: (0.0, 0.25), seeds: seeds.to_vec() }
}

#[track_caller]
fn same(found: f64, expected: f64) {
    assert!((found - expected).abs() <= 2e-9 * expected.abs().max(1.0), "{found} is not {expected}");
}

#[test]
fn o13_streams_are_those_of_the_model() {
    let fleet = Arc::new(fleets(16, &[401]).draw().next().unwrap());
    let stream = Stream::draw(&graphs(60), &fleet, 401, 12, Arrivals::Load(0.85));
    same(stream.span, 606.5191502813709);
    same(stream.area, 515.5412777391653);
    // Mean completion, slowdown, its 95th percentile, deadlines met, utilization, success, makespan.
    for (arrivals, drift, who, expected) in [
        (
            Arrivals::Load(0.85),
            None,
            Reference::LeastOutstanding,
            [255.246806045, 2.356100038, 4.950152937, 0.666666667, 0.617079907, 0.914866582, 863.630538552],
        ),
        (
            Arrivals::Load(0.85),
            None,
            Reference::SharedQueue,
            [250.428041744, 2.286647026, 3.913407321, 0.666666667, 0.649328930, 0.906801008, 836.495338250],
        ),
        (
            Arrivals::Backlog,
            None,
            Reference::TwoChoices,
            [707.974953298, 7.383992282, 12.177248085, 0.166666667, 0.620031991, 0.918367347, 872.609361204],
        ),
        (
            Arrivals::Load(0.85),
            Some(stream::DRIFTS_AFTER),
            Reference::RoundRobin,
            [913.054644302, 8.489884462, 16.293032243, 0.083333333, 0.427134699, 0.875912409, 1576.477773856],
        ),
        (
            Arrivals::Load(0.85),
            Some(stream::DRIFTS_AFTER),
            Reference::SharedQueue,
            [300.788819249, 2.686085738, 3.999644982, 0.583333333, 0.677032866, 0.810810811, 966.892884068],
        ),
    ] {
        let plan = stream::Plan {
            graphs: graphs(60),
            fleets: fleets(16, &[401]),
            luck: vec![5],
            who: vec![Who::Reference(who)],
            history: History::None,
            runs: 12,
            arrivals: vec![arrivals],
            drift,
            deadlines_first: false,
        };
        let it = stream::run(&plan, |_| {}).unwrap().remove(0);
        let found =
            [it.completion, it.slowdown, it.slowdown_p95, it.in_time, it.utilization, it.succeeded, it.makespan];
        found.iter().zip(expected).for_each(|(found, expected)| same(*found, expected));
    }
}

#[test]
fn o13_requests_are_packed_as_in_the_model() {
    let plan = packing::Plan {
        requests: packing::generate(1000, 1),
        count: 600,
        agents: vec![4],
        seeds: vec![7],
        who: Packer::all(),
    };
    let measured = packing::run(&plan, |_| {});
    for (who, expected) in [
        (Packer::Random, [115.000976603, 28.866289182, 94.632007949, 0.325717351, 0.398818807]),
        (Packer::RoundRobin, [107.554433673, 25.397314370, 70.607100675, 0.430378652, 0.517445774]),
        (Packer::LeastOutstanding, [100.842875726, 21.641017905, 50.092505170, 0.571732184, 0.667304024]),
        (Packer::SharedQueue, [43.270263859, 13.718743087, 25.962499718, 0.975668836, 0.970726249]),
        (Packer::Alignment, [63.091071815, 17.511996835, 29.431459375, 0.839188059, 0.967786155]),
    ] {
        let it = measured.iter().find(|it| it.policy == who.to_string()).unwrap();
        let found = [it.makespan, it.completion, it.completion_p95, it.slots, it.memory];
        found.iter().zip(expected).for_each(|(found, expected)| same(*found, expected));
    }
    // The optimizer binds late: it is fuller than whoever gives all away at once.
    let early = measured.iter().find(|it| it.policy == "least outstanding push").unwrap();
    for strategy in strategies() {
        let it = measured.iter().find(|it| it.policy == strategy.as_str()).unwrap();
        assert!(it.dominant > early.dominant && it.makespan < early.makespan, "{it:?}");
    }
}

#[test]
fn o13_traces_of_requests_are_read_and_what_is_wrong_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let read = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        packing::open(&path).map_err(|error| error.to_string())
    };
    let columns = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023,4808,10\n2023,31990,11\n\n2023,7,0\n2023,7,3\n";
    let found = read("a.csv", columns).unwrap();
    assert_eq!(found.iter().map(|request| request.tokens()).collect::<Vec<_>>(), [4818, 10]);
    same(found[0].seconds(), 0.2 + 4808.0 / 8000.0 + 0.2);
    let objects = "{\"timestamp\": 0, \"input_length\": 6758, \"output_length\": 500, \"hash_ids\": [0]}\n";
    assert_eq!(read("b.jsonl", objects).unwrap()[0].tokens(), 7258);
    for (name, text, says) in [
        ("c.csv", "a,b\n1,2\n", "line 1: there is no column ContextTokens; the columns are: a, b"),
        ("d.csv", "ContextTokens,GeneratedTokens\n1\n", "line 2: GeneratedTokens: \"\" is no number"),
        ("e.jsonl", "{\"input_length\": 1}\n", "line 1: missing field `output_length`"),
    ] {
        let error = read(name, text).unwrap_err();
        assert!(error.contains(says) && error.contains(name), "{error}");
    }
}

#[test]
fn o13_every_strategy_works_off_a_stream_on_agents_that_change() {
    let plan = stream::Plan {
        graphs: graphs(30),
        fleets: fleets(10, &[401, 402]),
        luck: vec![5],
        who: Who::all().into_iter().filter(|who| *who != Who::HeftPlan).collect(),
        history: History::Siblings,
        runs: 8,
        arrivals: vec![Arrivals::Load(0.8), Arrivals::Backlog],
        drift: Some(stream::DRIFTS_AFTER),
        deadlines_first: false,
    };
    let measured = stream::run(&plan, |_| {}).unwrap();
    assert_eq!(measured, stream::run(&plan, |_| {}).unwrap(), "the same digits again");
    let rows = stream::table(&measured);
    assert_eq!(rows.len(), 2 * plan.who.len());
    for row in &rows {
        assert!(row.completion.is_some() && (0.0..=1.0).contains(&row.in_time), "{row:?}");
        assert!(row.utilization > 0.0 && row.utilization <= 1.0 && row.succeeded > 0.5, "{row:?}");
    }
    let base = rows.iter().find(|row| row.policy == "least outstanding push").unwrap();
    assert_eq!((base.completion, base.weighted), (Some(1.0), Some(1.0)));
}

/// That it differs at all says that the optimizer is told when runs are due.
#[test]
fn o1_adaptive_meets_more_deadlines_where_runs_go_by_them_alone() {
    let measure = |deadlines_first| {
        let plan = stream::Plan {
            graphs: graphs(30),
            fleets: fleets(10, &[401, 402, 403]),
            luck: vec![5],
            who: vec![Who::Strategy(Strategy::Adaptive)],
            history: History::Same,
            runs: 30,
            arrivals: vec![Arrivals::Load(0.85)],
            drift: None,
            deadlines_first,
        };
        stream::table(&stream::run(&plan, |_| {}).unwrap()).remove(0)
    };
    let (by_weight, by_deadline) = (measure(false), measure(true));
    assert!(by_deadline.in_time > by_weight.in_time, "{by_deadline:?} {by_weight:?}");
}

/// A tenth fails nine times of ten from then on, and a fifth is four times slower.
#[test]
fn o13_agents_that_change_do_so_as_they_should() {
    let plan = FleetPlan { agents: 20, speeds: (1.0, 1.0), failures: (0.0, 0.0), seed: 3 };
    let fleet = Arc::new(Fleet::new(plan));
    let stream = Stream::draw(&graphs(30), &fleet, 3, 20, Arrivals::Load(0.7));
    let drift = stream.drift(stream::DRIFTS_AFTER);
    let slow = drift.iter().filter(|drift| drift.slower > 3.9).count();
    let failing = drift.iter().filter(|drift| drift.failure > 0.8).count();
    assert_eq!((drift.len(), slow, failing), (6, 4, 2));
    assert!(drift.iter().all(|it| (it.at - stream.span / 3.0).abs() < 1e-9));
    let conditions = Conditions { seed: 1, drift, ..Conditions::default() };
    let changed = Sim::run(&stream.world, &conditions, &mut *Reference::SharedQueue.policy()).unwrap();
    let calm = Sim::run(&stream.world, &Conditions::default(), &mut *Reference::SharedQueue.policy()).unwrap();
    assert!(calm.succeeded > 0.999, "{}", calm.succeeded);
    assert!(changed.succeeded < 1.0 && mean(changed.done) > mean(calm.done));
}

fn capacity(rate: f64, within: f64) -> capacity::Answer {
    capacity::find(&capacity::Plan {
        graph: Arc::new(generate(Shape::Lanes, 1, 13)),
        rate,
        within,
        runs: 20,
        speeds: (1.0, 1.0),
        failures: (0.0, 0.0),
        seeds: vec![1, 2],
        who: Who::Strategy(strategies()[0]),
    })
    .unwrap()
}

#[test]
fn o7_the_fleet_that_is_found_is_enough_and_one_agent_less_is_not() {
    let answer = capacity(30.0, 400.0);
    let enough = answer.enough.clone().unwrap();
    assert!(enough.within <= 400.0 && enough.total() < answer.best.total(), "{answer:#?}");
    // Every fleet that is smaller by one agent was tried at the end, unless it would have none of a kind.
    for (kind, (_, agents)) in enough.agents.iter().enumerate() {
        let mut less = enough.agents.clone();
        less[kind].1 -= 1;
        let tried = answer.tried.iter().any(|it| it.agents == less && it.within > 400.0);
        let later = answer.tried.iter().any(|it| it.within > 400.0 && it.agents[kind].1 < *agents);
        assert!(*agents == 1 || tried || later, "{less:?} in {answer:#?}");
    }
    // More work needs more agents, and so does less time.
    let total = |rate, within| capacity(rate, within).enough.unwrap().total();
    assert!(total(120.0, 400.0) > enough.total());
    assert!(total(30.0, 280.0) >= enough.total());
}

#[test]
fn o7_what_no_fleet_can_do_is_said() {
    let answer = capacity(30.0, 1.0);
    assert!(answer.enough.is_none() && answer.tried.is_empty() && answer.best.within > 1.0);
    // Stages × stages side by side, as the first source has it.
    assert_eq!(answer.formula, 13 * 2);
}

#[test]
fn o13_claims_are_measured_on_stated_workloads() {
    let plan = claims::Plan {
        graphs: graphs(30),
        requests: packing::generate(500, 1),
        count: 300,
        fleets: fleets(8, &[401]),
        luck: vec![5],
        runs: 6,
        history: History::None,
        strategy: *strategies().last().unwrap(),
    };
    let claims = claims::check(&plan).unwrap();
    assert_eq!(claims.len(), 6);
    for claim in &claims {
        assert!(claim.before > 0.0 && claim.after > 0.0, "{claim:?}");
        let enough = (claim.after / claim.before - 1.0) / claim.claimed >= 1.0;
        assert_eq!(claim.is_reproduced(), enough, "{claim:?}");
    }
    // Whoever gives all requests away at once leaves slots and memory idle.
    let packed = claims.iter().find(|claim| claim.workload.contains("requests")).unwrap();
    assert!(packed.change() > 0.0, "{packed:?}");
}
