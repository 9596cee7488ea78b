//! The optimizer in a simulation.

use std::sync::Arc;

use baton_optimizer::Config;
use baton_protocol::request::{Lesson, Strategy, Subject};
use baton_simulate::bounds::bounds;
use baton_simulate::engine::{Attempt, Conditions, Policy, Sim, Stuck};
use baton_simulate::experiment::{Measurement, Plan, Row, run, table};
use baton_simulate::fleet::{Fleet, FleetPlan};
use baton_simulate::generate::{Shape, generate};
use baton_simulate::machine::Machine;
use baton_simulate::reference::Reference;
use baton_simulate::truth;
use baton_simulate::who::{Fleets, History, Who, strategies};
use baton_simulate::workload::{Job, World};

fn plan() -> Plan {
    Plan {
        graphs: Shape::ALL.map(|shape| Arc::new(generate(shape, 1, 40))).into(),
        fleets: Fleets { agents: vec![6], speeds: (0.5, 2.0), failures: (0.0, 0.25), seeds: vec![301, 302] },
        luck: vec![5, 6],
        who: Who::all(),
        history: History::None,
    }
}

fn fleet() -> Arc<Fleet> {
    Arc::new(Fleet::new(FleetPlan { agents: 6, speeds: (0.5, 2.0), failures: (0.0, 0.25), seed: 301 }))
}

fn measured(plan: &Plan) -> Vec<Measurement> {
    run(plan, |_| {}).unwrap()
}

#[test]
fn o13_every_strategy_of_the_optimizer_ends_every_workflow() {
    assert!(strategies().len() >= 2);
    let plan = plan();
    let fleet = fleet();
    for strategy in strategies() {
        for graph in &plan.graphs {
            let world = World::new(vec![Job::new(graph)], &fleet);
            let conditions = Conditions { seed: 5, ..Conditions::default() };
            let mut machine = Machine::new(strategy, Config::default(), &fleet, &plan.graphs);
            let outcome = Sim::run(&world, &conditions, &mut machine).unwrap();
            assert!(outcome.makespan >= bounds(&world).makespan * (1.0 - 1e-9), "nobody beats the bound");
            let messages = machine.messages();
            // It asks for nothing that it can not have: what it believes of the agents is what they are.
            assert_eq!((messages.refused, messages.placements), (0, outcome.attempts), "{strategy:?}");
            assert!(messages.sent() <= messages.each_alone());
        }
    }
}

#[test]
fn o13_a_simulation_can_be_repeated() {
    let history = Plan { history: History::Same, ..plan() };
    assert_eq!(measured(&history), measured(&history));
    assert_eq!(measured(&plan()), measured(&plan()));
}

#[test]
fn o13_what_was_learned_goes_from_one_simulation_to_the_next() {
    let plan = plan();
    let fleet = fleet();
    let strategy = strategies()[0];
    let (none, conditions) = (Machine::new(strategy, Config::default(), &fleet, &plan.graphs), Conditions::default());
    let mut machine = Machine::resume(&none.learned());
    assert_eq!(machine.optimizer(), none.optimizer());
    let world = World::new(vec![Job::new(&plan.graphs[0])], &fleet);
    Sim::run(&world, &conditions, &mut machine).unwrap();
    assert_ne!(machine.optimizer(), none.optimizer());
    assert_eq!(Machine::resume(&machine.learned()).optimizer(), machine.optimizer());
}

#[test]
fn o13_what_was_learned_is_told_as_lessons() {
    let plan = plan();
    let fleet = fleet();
    let mut machine = Machine::new(strategies()[0], Config::default(), &fleet, &plan.graphs);
    let all = |lessons: &[Lesson], of: fn(&Subject) -> bool| lessons.iter().filter(|it| of(&it.of)).count();
    let nothing = machine.learned().lessons();
    assert_eq!((nothing.len(), all(&nothing, |of| matches!(of, Subject::AllTasks))), (1, 1), "{nothing:?}");
    let world = World::new(vec![Job::new(&plan.graphs[0])], &fleet);
    let outcome = Sim::run(&world, &Conditions::default(), &mut machine).unwrap();
    let lessons = machine.learned().lessons();
    let worked = outcome.busy.iter().filter(|busy| **busy > 0.0).count();
    assert!(worked > 1 && all(&lessons, |of| matches!(of, Subject::Agent(_))) == worked, "{lessons:?}");
    assert_eq!(all(&lessons, |of| matches!(of, Subject::Stage(..))), 40);
    assert!(all(&lessons, |of| matches!(of, Subject::Kind(_))) > 1);
}

#[test]
fn o13_the_table_compares_with_the_queue_and_with_turns() {
    let rows = table(&measured(&plan()));
    let row = |name: &str| -> &Row { rows.iter().find(|row| row.policy == name).unwrap() };
    assert_eq!(rows.len(), Who::all().len());
    assert_eq!((row("shared queue").worst, row("round robin push").completion), (Some(1.0), Some(1.0)));
    // Late binding beats early binding, whatever is chosen by: this is what the study begins with.
    for late in ["shared queue", "ROUND_ROBIN", "LOAD_BALANCED"] {
        assert!(row(late).to_heft < row("round robin push").to_heft, "{rows:#?}");
    }
    assert!(row("shared queue").messages.is_none() && row("ROUND_ROBIN").messages.is_some());
}

#[test]
fn o13_an_attempt_elsewhere_has_the_luck_that_it_has_in_a_simulation() {
    /// The queue, which looks whether attempts went as their luck says.
    struct Watch(Box<dyn Policy>, usize);
    impl Policy for Watch {
        fn ready(&mut self, sim: &mut Sim<'_>, tasks: &[usize]) {
            self.0.ready(sim, tasks);
        }
        fn finished(&mut self, sim: &mut Sim<'_>, task: usize, agent: usize, ok: bool, seconds: f64) {
            let conditions = Conditions { seed: sim.seed(), ..Conditions::default() };
            let Attempt { takes, ok: expected } = conditions.attempt(sim.world, (task, agent), (sim.failed[task], 0));
            assert!((takes - seconds).abs() < 1e-9 && expected == ok, "{takes} is not {seconds}");
            self.1 += usize::from(!ok);
            self.0.finished(sim, task, agent, ok, seconds);
        }
        fn dispatch(&mut self, sim: &mut Sim<'_>) {
            self.0.dispatch(sim);
        }
    }
    let world = World::new(vec![Job::new(&plan().graphs[1])], &fleet());
    let mut watch = Watch(Reference::SharedQueue.policy(), 0);
    Sim::run(&world, &Conditions { seed: 5, latency: 0.5, ..Conditions::default() }, &mut watch).unwrap();
    assert!(watch.1 > 0, "nothing has failed");
}

#[test]
fn o13_messages_take_their_time_after_each_attempt() {
    let fleet = Arc::new(Fleet::new(FleetPlan { agents: 1, speeds: (1.0, 1.0), failures: (0.0, 0.0), seed: 1 }));
    let graph = Arc::new(generate(Shape::Tangle, 1, 10).scaled(0.1, 2.0));
    assert!(graph.seconds.iter().all(|seconds| *seconds >= 2.0), "{:?}", graph.seconds);
    let world = World::new(vec![Job::new(&graph)], &fleet);
    let run = |latency| {
        let conditions = Conditions { latency, ..Conditions::default() };
        Sim::run(&world, &conditions, &mut *Reference::SharedQueue.policy()).unwrap()
    };
    let (at_once, late) = (run(0.0), run(0.25));
    assert!((late.makespan - at_once.makespan - 10.0 * 0.25).abs() < 1e-9, "{late:?}");
    assert!((late.busy[0] - at_once.busy[0]).abs() < 1e-9, "an agent is not at work while messages are under way");
}

#[test]
fn a_policy_that_gives_up_is_found_out() {
    struct Idle;
    impl Policy for Idle {
        fn ready(&mut self, _: &mut Sim<'_>, _: &[usize]) {}
        fn dispatch(&mut self, _: &mut Sim<'_>) {}
    }
    let fleet = Arc::new(Fleet::new(FleetPlan { agents: 2, speeds: (1.0, 1.0), failures: (0.0, 0.0), seed: 1 }));
    let world = World::new(vec![Job::new(&Arc::new(generate(Shape::Fan, 1, 10)))], &fleet);
    let stuck = Sim::run(&world, &Conditions::default(), &mut Idle).unwrap_err();
    assert_eq!(stuck, Stuck { now: 0.0, left: 10, waiting: 1, tasks: 10 });
}

#[test]
fn o13_who_knows_everything_and_meets_no_failure_is_as_fast_as_heft() {
    let who = vec![Who::Strategy(Strategy::Adaptive)];
    let fleets = Fleets { failures: (0.0, 0.0), ..plan().fleets };
    let to_heft = |history: History| {
        let plan = Plan { who: who.clone(), fleets: fleets.clone(), history, luck: vec![5], ..plan() };
        table(&measured(&plan))[0].to_heft
    };
    let (known, unknown) = (to_heft(History::Known), to_heft(History::None));
    assert!(known < 1.05 && known < unknown, "{known:.3}, and {unknown:.3} where nothing is known");
}

#[test]
fn o4_o6_all_that_can_be_learned_can_be_told() {
    let (plan, fleet) = (plan(), fleet());
    let told = truth::lessons(&fleet, &plan.graphs);
    let knows = Who::Strategy(Strategy::Adaptive).knows(&fleet, &plan.graphs, &Config::default()).unwrap();
    let known = |of: &Subject| knows.lessons().into_iter().find(|lesson| lesson.of == *of);
    // What is read is what was written, in all that is said of it.
    for lesson in told {
        let found: serde_json::Value = known(&lesson.of).unwrap().known.read().unwrap();
        let said: serde_json::Value = lesson.known.read().unwrap();
        for (name, value) in said.as_object().unwrap() {
            assert_eq!(&found[name], value, "{name} of {:?}", lesson.of);
        }
    }
    assert!(Who::Reference(Reference::SharedQueue).knows(&fleet, &plan.graphs, &Config::default()).is_none());
}
