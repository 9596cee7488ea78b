//! Workflows of thousands of stages, and lists of many workflows.

use baton_protocol::definition::MAX_STAGES;
use baton_protocol::request::{ListWorkflows, MAX_DEFINITION_BYTES, MAX_MESSAGE_BYTES};

use super::*;

/// A stage, and very many that wait for it, with names of some length.
fn wide(count: usize) -> Definition {
    let mut builder = Definition::builder("wide").add_stage("first", "x", &[]);
    for i in 1..count {
        builder = builder.add_stage(&format!("stage-of-a-wide-workflow-number-{i:05}"), "x", &["first"]);
    }
    builder.build().unwrap()
}

#[test]
fn w22_a_large_definition_is_taken_as_long_as_it_fits_into_a_message() {
    let mut world = World::new();
    let register = |world: &mut World, definition: &Definition| {
        let request = RegisterWorkflow { source: None, definition: Some(Json::of(definition).unwrap()) };
        world.ask::<WorkflowView>(WorkflowRequest::RegisterWorkflow(request))
    };
    let mut definition = wide(5000);
    let size = |definition: &Definition| Json::of(definition).unwrap().size();
    definition.description = Some(String::new());
    definition.description = Some("x".repeat(MAX_DEFINITION_BYTES - size(&definition)));
    assert_eq!(register(&mut world, &definition).unwrap().definition, definition);
    assert!(size(&definition) == MAX_DEFINITION_BYTES);
    definition.description.as_mut().unwrap().push('x');
    let rejection = register(&mut world, &definition).unwrap_err();
    assert_eq!(rejection.code, Code::TooLarge);
    assert!(rejection.message.contains("786433") && rejection.message.contains("786432"), "{}", rejection.message);
}

#[test]
fn w22_a_run_of_as_many_stages_as_there_may_be_is_shown_as_far_as_it_fits() {
    let mut world = World::new();
    let mut builder = Definition::builder("w");
    for i in 0..MAX_STAGES {
        builder = builder.add_stage(&format!("s{i}"), "x", &[]);
    }
    world.register(&builder.build().unwrap());
    let run = world.start("w");
    for i in [0, 17] {
        let task = task(run, &format!("s{i}"), 1);
        let lease = world.assign(&task, "ann");
        world.report("ann", succeeded(lease, &task, "{}")).unwrap();
    }
    let view = world.view(run);
    let reason = view.reason.clone().unwrap();
    let left_out = reason.strip_prefix("2 results and ").unwrap_or_else(|| panic!("{reason}"));
    let left_out = left_out.strip_suffix(" stages left out here: the whole is too large").unwrap();
    let left_out: usize = left_out.parse().unwrap();
    assert_eq!(view.stages.len() + left_out, MAX_STAGES);
    // What succeeded is missed the least.
    assert_eq!(view.stages[0].name.as_str(), "s1");
    let size = Json::of(&view).unwrap().size();
    assert!(size <= MAX_MESSAGE_BYTES && size > MAX_MESSAGE_BYTES * 9 / 10, "{size}");
}

#[test]
fn w22_of_a_large_run_it_is_left_out_first_what_is_said_elsewhere() {
    let mut world = World::new();
    let mut builder = Definition::builder("w").add_stage("first", "x", &[]);
    for i in 0..2000 {
        let name = format!("a-stage-that-has-a-name-of-fifty-characters-or-{i:04}");
        builder = builder.add_stage(&name, "x", &["first"]);
        builder = builder.add_stage(&format!("b{i}"), "x", &[&name, "first"]);
    }
    world.register(&builder.build().unwrap());
    let run = world.start("w");
    let task = task(run, "first", 1);
    let lease = world.assign(&task, "ann");
    world.report("ann", succeeded(lease, &task, &format!("\"{}\"", "x".repeat(300_000 - 100_000)))).unwrap();
    let view = world.view(run);
    assert_eq!(view.stages.len(), 4001);
    assert_eq!(
        view.reason.as_deref(),
        Some("1 result left out here: the whole is too large"),
        "the result alone makes it too large"
    );
    assert!(view.stages.iter().any(|stage| !stage.depends_on.is_empty()));
}

#[test]
fn w3_workflows_are_listed_page_by_page_and_by_the_beginning_of_their_names() {
    let mut world = World::new();
    for i in 0..7 {
        let name = format!("import-{i}");
        world.register(&Definition::builder(&name).add_stage("a", "x", &[]).build().unwrap());
    }
    world.register(&wide(100));
    let mut list = |prefix: Option<&str>, limit: Option<u32>, after: Option<&str>| {
        let prefix = prefix.map(str::to_owned);
        let request = ListWorkflows { prefix, limit, after: after.map(name) };
        let list: WorkflowList = world.ask(WorkflowRequest::ListWorkflows(request)).unwrap();
        let names: Vec<_> = list.workflows.iter().map(|workflow| workflow.name.to_string()).collect();
        (names.join(" "), list.more)
    };
    let says = |names: &str, more| (names.to_owned(), more);
    assert_eq!(list(Some("import"), Some(3), None), says("import-0 import-1 import-2", true));
    assert_eq!(list(Some("import"), Some(3), Some("import-2")), says("import-3 import-4 import-5", true));
    assert_eq!(list(Some("import"), Some(3), Some("import-5")), says("import-6", false));
    // Whatever comes before the first page begins with it.
    assert_eq!(list(Some("import-6"), None, Some("a")), says("import-6", false));
    assert_eq!(list(Some("import"), None, Some("z")), says("", false));
    assert_eq!(list(None, Some(2), Some("import-6")), says("paper wide", false));
    assert_eq!(list(Some("none"), None, None), says("", false));
    // One of many stages names some of them, and says how many there are.
    let request = ListWorkflows { prefix: Some("wide".to_owned()), ..ListWorkflows::default() };
    let list: WorkflowList = world.ask(WorkflowRequest::ListWorkflows(request)).unwrap();
    assert_eq!((list.workflows[0].stages.len(), list.workflows[0].stage_count()), (20, 100));
}
