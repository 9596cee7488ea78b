//! The model, digit by digit: what an independent implementation of it (in Python) computes for generated workflows. What is
//! compared is the instrument; if this fails, no figure in docs/simulate.md can be trusted.

use std::sync::Arc;

use baton_simulate::bounds::{bounds, heft};
use baton_simulate::draws::{fnv1a, normal, uniform};
use baton_simulate::engine::{Conditions, Outcome, Policy, Sim};
use baton_simulate::fleet::{Fleet, FleetPlan};
use baton_simulate::generate::{Shape, generate};
use baton_simulate::reference::{Follow, Reference};
use baton_simulate::workload::{Job, World};

fn world(shape: Shape) -> World {
    let plan = FleetPlan { agents: 8, speeds: (0.5, 2.0), failures: (0.0, 0.25), seed: 301 };
    World::new(vec![Job::new(&Arc::new(generate(shape, 1, 60)))], &Arc::new(Fleet::new(plan)))
}

fn run(world: &World, conditions: &Conditions, policy: &mut dyn Policy) -> Outcome {
    Sim::run(world, conditions, policy).unwrap()
}

#[track_caller]
fn same(found: f64, expected: f64) {
    assert!((found - expected).abs() <= 1e-9 * expected.abs().max(1.0), "{found} is not {expected}");
}

#[test]
fn o13_draws_are_those_of_the_model() {
    same(uniform(&[301, 11, 0]), 0.7980703124532814);
    same(uniform(&[5, 21, 123_456_789, 8]), 0.5336189592491624);
    same(normal(&[1, 74, 3]), 0.1610690568148448);
    assert_eq!(fnv1a("blastall"), 0xadbd_c13f_7ed4_86a0);
}

#[test]
fn o13_bounds_and_heft_are_those_of_the_model() {
    for (shape, edges, expected) in [
        (Shape::Fan, 116, [74.62858454670331, 126.34085604696423, 163.32794944132655, 172.92593559636975]),
        (Shape::Lanes, 71, [141.11562871719488, 276.7548959955067, 288.72810699550666, 314.50185724473835]),
        (Shape::Tangle, 108, [271.7134064563772, 273.7023668136077, 281.4674234844905, 313.0528686198655]),
    ] {
        let world = world(shape);
        assert_eq!(world.parents.iter().map(Vec::len).sum::<usize>(), edges);
        let (bounds, heft) = (bounds(&world), heft(&world));
        let found = [bounds.critical_path, bounds.area, bounds.makespan, heft.makespan];
        found.iter().zip(expected).for_each(|(found, expected)| same(*found, expected));
    }
}

/// Makespan, mean completion, utilization, waste.
#[test]
fn o13_reference_policies_meet_the_luck_of_the_model() {
    for (shape, expected) in [
        (
            Shape::Fan,
            [
                [561.781995019, 144.347757448, 0.210522426, 0.087164656],
                [441.910018290, 118.728951865, 0.244257171, 0.024681329],
                [384.067314165, 116.989450350, 0.266210765, 0.030868178],
                [409.846235007, 111.389535579, 0.259196783, 0.040794427],
                [224.812383530, 84.350454527, 0.401928850, 0.047024831],
                [192.586844473, 91.979714970, 0.443425056, 0.055241158],
            ],
        ),
        (
            Shape::Lanes,
            [
                [674.822587632, 268.036312341, 0.205253415, 0.104024740],
                [497.681805681, 210.583813891, 0.268412571, 0.110890549],
                [522.601110058, 169.534076836, 0.252707681, 0.123769901],
                [440.582131199, 151.120382715, 0.298618544, 0.149780834],
                [433.070060950, 145.653050812, 0.296044192, 0.150353746],
                [412.095931991, 201.617036355, 0.292229886, 0.122023393],
            ],
        ),
        (
            Shape::Tangle,
            [
                [561.816959483, 238.189663989, 0.233974255, 0.099210606],
                [483.950283450, 174.946012353, 0.288501260, 0.119555650],
                [499.613501258, 173.527868184, 0.282519628, 0.088722414],
                [469.863728936, 176.958260270, 0.288734023, 0.093194891],
                [423.184334854, 147.479677234, 0.332684223, 0.091237774],
                [326.102047937, 146.257534465, 0.391776697, 0.027102566],
            ],
        ),
    ] {
        let world = world(shape);
        let conditions = Conditions { seed: 5, ..Conditions::default() };
        let policies = Reference::ALL.into_iter().map(Reference::policy);
        let follow: Box<dyn Policy> = Box::new(Follow::new(&heft(&world), 8));
        for (mut policy, expected) in policies.chain([follow]).zip(expected) {
            let found = run(&world, &conditions, &mut *policy);
            let found = [found.makespan, found.completion, found.utilization, found.waste];
            found.iter().zip(expected).for_each(|(found, expected)| same((found * 1e9).round() / 1e9, expected));
        }
    }
}

#[test]
fn o13_times_differ_from_run_to_run_as_in_the_model() {
    for (shape, makespan, completion) in [
        (Shape::Fan, 245.14257671831336, 80.96508429907196),
        (Shape::Lanes, 364.982315602243, 161.43549884233863),
        (Shape::Tangle, 328.13292725272055, 141.36982327828244),
    ] {
        let conditions = Conditions { seed: 4242, noise: 0.2, ..Conditions::default() };
        let found = run(&world(shape), &conditions, &mut *Reference::SharedQueue.policy());
        same(found.makespan, makespan);
        same(found.completion, completion);
    }
}
