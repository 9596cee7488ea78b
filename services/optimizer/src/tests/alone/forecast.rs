//! What is to be expected of the queue.

use baton_protocol::request::{BackPressure, Forecast, ForecastQueue};

use super::*;

impl World {
    fn forecast(&mut self) -> Forecast {
        let request = OptimizerRequest::ForecastQueue(ForecastQueue {});
        self.machine.request(9, "queue.forecast", request, RequestContext::default(), self.now);
        let released = self.log.settle(&mut self.machine, self.now);
        let answer = released.effects.into_iter().find_map(|effect| match effect {
            Effect::Answer { reply, .. } => Some(reply),
            _ => None,
        });
        answer.unwrap().unwrap().read().unwrap()
    }

    /// Run `n` is due in so many milliseconds, and has its stage ready.
    fn due_in(&mut self, n: u64, ms: Millis) {
        let WorkflowRecord::RunStarted(mut record) = started(n) else { panic!("it is a start") };
        record.due = Some(self.now + ms);
        self.workflow(vec![WorkflowRecord::RunStarted(record), ready(task(n, 1), "research", 0, 0)]);
    }
}

/// Ann is there, and it is known that tasks take about ten seconds.
fn practised() -> World {
    let mut world = World::new();
    world.resource(vec![registered("ann", "s", "research", 1, 0, 0)]);
    practise(&mut world, 1, &[("ann", Outcome::Succeeded, 10_000); 10]);
    world
}

#[test]
fn o7_a_queue_that_will_miss_its_deadlines_is_told() {
    let mut world = practised();
    let nothing = world.forecast();
    assert_eq!((nothing.due, nothing.back_pressure, nothing.retry_after_ms), (0, BackPressure::None, None));
    // The first is at work at once; the others take their turns of about ten seconds.
    for n in 11..=14 {
        world.due_in(n, 27_500);
        world.grant();
        world.wait(1);
    }
    let expected = world.forecast();
    assert_eq!((expected.due, expected.late, expected.held_up), (4, 2, 2), "{expected:?}");
    assert_eq!(expected.first.iter().map(|late| late.run).collect::<Vec<_>>(), [run(14), run(13)]);
    assert!(expected.first.iter().all(|late| late.could_end < late.due && late.ends.unwrap() > late.due));
    assert_eq!(expected.back_pressure, BackPressure::Critical);
    let queue = &expected.queues[0];
    assert_eq!((queue.waiting, queue.late), (3, 2));
    assert!((1..=2).contains(&queue.more) && (0.7..1.3).contains(&queue.slots), "{queue:?}");
    assert!((30_000..60_000).contains(&expected.retry_after_ms.unwrap()), "{expected:?}");
    assert!(expected.advice[0].starts_with("research: "), "{expected:?}");
    // With as many more as the advice says it is enough.
    let more: Vec<_> = (0..queue.more).map(|n| registered(&format!("bob{n}"), "s", "research", 1, 0, 0)).collect();
    world.resource(more);
    world.grant();
    let expected = world.forecast();
    assert_eq!((expected.late, expected.back_pressure), (0, BackPressure::None), "{expected:?}");
}

#[test]
fn o7_what_is_late_whatever_is_done_is_no_reason_to_hold_back() {
    let mut world = practised();
    world.due_in(11, 1000);
    let expected = world.forecast();
    assert_eq!((expected.late, expected.held_up, expected.back_pressure), (1, 0, BackPressure::None), "{expected:?}");
    assert!(expected.advice.iter().any(|line| line.contains("late whatever is done")), "{:?}", expected.advice);
    // While its run is paused, nothing is expected of it.
    world.workflow(vec![paused(11)]);
    assert_eq!(world.forecast().due, 0);
}

#[test]
fn o7_what_nobody_can_do_never_begins() {
    let mut world = practised();
    world.ready(11, "cooking", 0, 0);
    let expected = world.forecast();
    assert_eq!((expected.back_pressure, expected.retry_after_ms), (BackPressure::Critical, None));
    assert_eq!(expected.advice, ["cooking: 1 task waits, and no agent that is there can do that"]);
}

#[test]
fn o7_a_stage_that_will_be_late_is_told_though_its_run_is_due_never() {
    let mut world = practised();
    let definition = Definition::builder("w")
        .add_stage("first", "research", &[])
        .add_stage("second", "research", &["first"])
        .with(|stage| stage.due_ms = Some(12_000))
        .build()
        .unwrap();
    let definition = WorkflowRegistered { version: 1, definition: Arc::new(definition) };
    let WorkflowRecord::RunStarted(mut begun) = started(11) else { panic!("it is a start") };
    begun.workflow = "w".parse().unwrap();
    let first = TaskId { stage: "first".parse().unwrap(), ..task(11, 1) };
    world.workflow(vec![
        WorkflowRecord::WorkflowRegistered(definition),
        WorkflowRecord::RunStarted(begun),
        ready(first, "research", 0, 0),
    ]);
    let expected = world.forecast();
    // Two of about ten seconds follow one another.
    assert_eq!((expected.due, expected.late, expected.held_up), (1, 1, 0), "{expected:?}");
    assert_eq!(expected.first[0].stage.as_ref().unwrap().as_str(), "second");
    assert_eq!(expected.first[0].due, START.max(world.now) + 12_000);
}
