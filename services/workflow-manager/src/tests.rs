//! Transcripts: what is asked of a workflow-manager, and what then is in the log. One line a record: position, time,
//! record, cause. `UPDATE_EXPECT=1 cargo test -p baton-workflow-manager` writes the expectations anew.

mod cache;
mod children;
mod copies;
mod each;
mod early;
mod flow;
mod harness;
mod large;
mod operations;
mod property;
mod schedules;
mod triggers;
mod word;

use baton_machine::{Effect, Machine as _};
use baton_protocol::definition::{DefinitionError, RetryPolicy};
use baton_protocol::pressure::{PressureCause, PressureChanged, PressureLevel};
use baton_protocol::record::{
    Assigned, Cause, Commit, FORMAT, LeftReason, PoolSet, ResourceRecord, RunFinished, RunStarted, Stamp, Turn,
    WorkflowRecord, WorkflowRegistered,
};
use baton_protocol::request::{
    GetRun, GetWorkflow, ListRuns, ListWorkflows, MAX_DEFINITION_BYTES, MAX_JSON_BYTES, RegisterWorkflow, Report,
    ReportAnswer, Reports, ReportsAnswered, RunAccepted, RunList, StartRun, WorkflowList, WorkflowRequest,
    WorkflowView,
};
use baton_protocol::run::{RunStatus, StageStatus};
use baton_protocol::trace::{TraceContext, run_span, task_span};
use baton_protocol::{Budget, Code, Definition, Json, LeaseId, Pool, Rejection, RunId, Service, WorkflowName};
use expect_test::{Expect, expect};
use harness::{START, World, failed, id, json, start, succeeded, task};

use crate::{definition, predefined};

fn check(world: &mut World, expected: &Expect) {
    expected.assert_eq(&world.transcript());
}

fn name(workflow: &str) -> WorkflowName {
    WorkflowName::new(workflow).unwrap()
}

/// Stages `a`, `b` … from their dependencies.
fn workflow(stages: &[(&str, &[&str])]) -> Definition {
    let builder = Definition::builder("w");
    stages.iter().fold(builder, |builder, (stage, after)| builder.add_stage(stage, "x", after)).build().unwrap()
}

fn with_attempts(mut definition: Definition, max_attempts: u32) -> Definition {
    for stage in &mut definition.stages {
        stage.retry = attempts(max_attempts);
    }
    definition
}

fn attempts(max_attempts: u32) -> RetryPolicy {
    RetryPolicy { max_attempts, jitter: 0.0, ..RetryPolicy::default() }
}

// ---- workflows -------------------------------------------------------------------------------------------------------

#[test]
fn w1_what_is_wrong_with_a_definition_is_said_with_its_place() {
    let bad = [
        ("empty", ""),
        ("unknown key", "name: w\nstages:\n  - name: a\n    agent_type: x\n    depend_on: [b]\n"),
        ("unknown key of retry", "name: w\nstages:\n  - name: a\n    agent_type: x\n    retry:\n      attempts: 3\n"),
        ("missing key", "name: w\nstages:\n  - name: a\n"),
        ("key twice", "name: w\nstages:\n  - name: a\n    agent_type: x\n    name: b\n"),
        ("key twice in metadata", "name: w\nmetadata:\n  k: 1\n  k: 2\nstages:\n  - name: a\n    agent_type: x\n"),
        ("boolean", "name: w\nstages:\n  - name: a\n    agent_type: x\n    parallel: yes\n"),
        ("type", "name: w\nstages:\n  - name: a\n    agent_type: x\n    timeout_ms: soon\n"),
        ("name", "name: w\nstages:\n  - name: a b\n    agent_type: x\n"),
        ("indentation", "name: w\nstages:\n  - name: a\n   agent_type: x\n"),
        ("tag", "name: w\nstages: !wild\n  - name: a\n    agent_type: x\n"),
        ("two documents", "name: w\nstages: [{name: a, agent_type: x}]\n---\nname: v\n"),
        ("infinite", "name: w\nmetadata: {k: .inf}\nstages: [{name: a, agent_type: x}]\n"),
        ("no stages", "name: w\nstages: []\n"),
        ("stage twice", "name: w\nstages: [{name: a, agent_type: x}, {name: a, agent_type: y}]\n"),
        ("unknown dependency", "name: w\nstages: [{name: a, agent_type: x, depends_on: [z]}]\n"),
        (
            "cycle",
            "name: w\nstages: [{name: a, agent_type: x, depends_on: [b]}, {name: b, agent_type: x, depends_on: [a]}]\n",
        ),
        ("no attempts", "name: w\nstages: [{name: a, agent_type: x, retry: {max_attempts: 0}}]\n"),
        ("JSON: syntax", "{\n  \"name\": \"w\"\n  \"stages\": []\n}"),
        ("JSON: unknown key", "{\"name\": \"w\",\n \"stage\": []}"),
        ("JSON: key twice", "{\"name\": \"w\",\n \"metadata\": {\"k\": 1,\n \"k\": 2}, \"stages\": []}"),
        (
            "JSON: type",
            "{\"name\": \"w\",\n \"stages\": [{\"name\": \"a\", \"agent_type\": \"x\", \"parallel\": \"no\"}]}",
        ),
        ("JSON: more", "{\"name\": \"w\", \"stages\": []} {}"),
    ];
    let said = bad.map(|(what, text)| format!("{what}: {}\n", definition::parse(text).unwrap_err()));
    expect![[r#"
        empty: unexpected end of input at line 1, column 1
        unknown key: unknown field `depend_on`, expected one of name, agent_type, approval, wait_for, workflow, workflow_version, requires, depends_on, join, when, for_each, parallel, optional, on_failure, input, output, cache, speculative, hedge, input_schema, output_schema, params, resources, budget, estimate, priority, due_ms, retry, start_timeout_ms, timeout_ms, heartbeat_timeout_ms, total_timeout_ms; did you mean `depends_on`? at line 5, column 5
        unknown key of retry: unknown field `attempts`, expected one of max_attempts, initial_ms, factor, max_ms, jitter, non_retryable at line 6, column 7
        missing key: stage a: agent_type: it is missing: which agents can do the stage? (Or else workflow, approval, or wait_for.) at line 3, column 5
        key twice: duplicate key `name` at line 5, column 5
        key twice in metadata: duplicate key `k` at line 4, column 3
        boolean: invalid boolean, expected `true` or `false` at line 5, column 15
        type: expected a whole number, not negative at line 5, column 17
        name: stage name "a b" is not a valid name: only lower-case letters, digits, '_' and '-' are allowed; a name matches ^[a-z0-9][a-z0-9_-]{0,62}$ at line 3, column 11
        indentation: while parsing a block collection, did not find expected '-' indicator at line 4, column 4
        tag: unsupported tag `!wild` at line 3, column 3
        two documents: a second document, expected one at line 4, column 1
        infinite: `.inf` is not a finite number at line 2, column 15
        no stages: workflow w has no stages: give it at least one at line 2, column 9
        stage twice: stage a is defined twice: stage names are unique within a workflow at line 2, column 43
        unknown dependency: stage a depends on z, which is not a stage of this workflow; the stages are: a at line 2, column 48
        cycle: the stages wait for each other in a cycle: a -> b -> a at line 2, column 47
        no attempts: stage a: retry.max_attempts is 0; it must be from 1 to 1000 at line 2, column 57
        JSON: syntax: expected `,` or `}` at line 3, column 3
        JSON: unknown key: unknown field `stage`, expected one of `name`, `description`, `metadata`, `timeout_ms`, `budget`, `input_schema`, `stages`; did you mean `stages`? at line 2, column 8
        JSON: key twice: duplicate key `k` at line 3, column 4
        JSON: type: invalid type: string "no", expected a boolean at line 2, column 61
        JSON: more: trailing characters at line 1, column 29
    "#]].assert_eq(&said.concat());
}

#[test]
fn w1_a_definition_that_would_stop_the_readers_of_the_log_is_refused() {
    let deep = |levels: usize| format!("{}1{}", "[".repeat(levels), "]".repeat(levels));
    let definition = |value: &str| {
        definition::parse(&format!(
            "{{\"name\": \"w\", \"metadata\": {{\"k\": {value}}}, \"stages\": [{{\"name\": \"a\", \"agent_type\": \"x\"}}]}}"
        ))
    };
    definition(&deep(60)).unwrap();
    assert!(definition(&deep(70)).unwrap_err().to_string().contains("levels deep"));
    let yaml = |value: &str| {
        definition::parse(&format!("name: w\nmetadata: {{k: {value}}}\nstages: [{{name: a, agent_type: x}}]"))
    };
    yaml(&deep(60)).unwrap();
    yaml(&deep(70)).unwrap_err();
    // Numbers come out of the log as they went in.
    let numbers = "[0.1, 1e-7, 1.7976931348623157e308, 5e-324, 2.2250738585072011e-308, 123456789012345678, 0.30000000000000004, 8.41e21, 9007199254740993.0]";
    for read in [definition(numbers).unwrap(), yaml(numbers).unwrap()] {
        let mut world = World::new();
        world.register(&read);
        assert_eq!(*world.replay().machine().workflows.latest(&name("w")).unwrap().1.definition, read);
    }
    // Aliases do not make a short text a huge definition.
    let mut bomb = "name: w\nmetadata:\n  a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for i in 1..9 {
        bomb += &format!("  a{i}: &a{i} [{}]\n", vec![format!("*a{}", i - 1); 10].join(", "));
    }
    bomb += "stages: [{name: a, agent_type: x}]\n";
    assert!(matches!(definition::parse(&bomb), Err(DefinitionError::Syntax(_))));
}

#[test]
fn w1_definitions_are_asked_for_in_one_way_and_may_not_be_too_large() {
    let mut world = World::new();
    let mut ask = |source: Option<&str>, definition: Option<&str>| {
        let request = RegisterWorkflow { source: source.map(str::to_owned), definition: definition.map(json) };
        let register = world.ask::<WorkflowView>(WorkflowRequest::RegisterWorkflow(request.clone()));
        let validate = world.ask::<WorkflowView>(WorkflowRequest::ValidateWorkflow(request));
        assert_eq!(register.as_ref().err(), validate.as_ref().err());
        let rejection = register.unwrap_err();
        (rejection.code, rejection.message)
    };
    let (code, message) = ask(None, None);
    assert!(code == Code::InvalidRequest && message.contains("`source`"), "{message}");
    let (code, message) = ask(Some("name: w"), Some("{}"));
    assert!(code == Code::InvalidRequest && message.contains("not both"), "{message}");
    let (code, message) = ask(None, Some("{\n\"name\": 7}"));
    assert!(code == Code::InvalidWorkflow && message.contains("line 2, column 9"), "{message}");
    let (code, message) = ask(None, Some("[]"));
    assert_eq!(code, Code::InvalidWorkflow, "{message}");
    let long =
        format!("name: w\ndescription: {}\nstages: [{{name: a, agent_type: x}}]", "x".repeat(MAX_DEFINITION_BYTES));
    let (code, message) = ask(Some(&long), None);
    assert!(code == Code::TooLarge && message.contains("786432"), "{message}");
    check(&mut world, &expect![[""]]);
}

#[test]
fn w2_article_and_paper_are_there_on_first_start() {
    let mut world = World::empty();
    world.lead();
    world.lead();
    check(
        &mut world,
        &expect![[r#"
        1.0        +0ms  workflow_registered article v1  (term began)
        1.1        +0ms  workflow_registered paper v1  (term began)
    "#]],
    );
    let list: WorkflowList = world.ask(WorkflowRequest::ListWorkflows(ListWorkflows::default())).unwrap();
    assert_eq!(
        list.workflows.iter().map(|w| (w.name.as_str(), w.version)).collect::<Vec<_>>(),
        [("article", 1), ("paper", 1)]
    );
    assert!(list.workflows.iter().all(|workflow| workflow.description.is_some()));
    let shape = |definition: &Definition| {
        let stage = |stage: &baton_protocol::StageDefinition| {
            let after: Vec<_> = stage.depends_on.iter().map(|stage| stage.as_str()).collect();
            let params = if stage.params.is_empty() { String::new() } else { format!(" {:?}", stage.params) };
            format!("{} ({}) after {after:?}{params}\n", stage.name, stage.agent_type)
        };
        let stages: String = definition.stages.iter().map(stage).collect();
        format!("{} {:?}\n{stages}", definition.name, definition.metadata)
    };
    expect![[r#"
        article {}
        research (research) after []
        writing (writing) after ["research"]
        editing (editing) after ["writing"]
        verification (verification) after ["editing"]
        paper {"requires_citations": Bool(true)}
        literature_review (research) after []
        methodology (writing) after ["literature_review"] {"focus": String("method approach design architecture"), "section": String("Methodology")}
        results (writing) after ["methodology"] {"focus": String("result measured finding performance"), "section": String("Results")}
        editing (editing) after ["results"]
        peer_review (verification) after ["editing"]
    "#]].assert_eq(&predefined::all().map(shape).collect::<String>());
}

#[test]
fn w2_a_predefined_name_that_is_taken_is_left_alone() {
    let mut world = World::new();
    let article = Definition::builder("article").add_stage("all", "x", &[]).build().unwrap();
    assert_eq!(world.register(&article), 2);
    world.lead();
    let get = GetWorkflow { name: name("article"), version: None };
    let view: WorkflowView = world.ask(WorkflowRequest::GetWorkflow(get)).unwrap();
    assert_eq!((view.version, view.definition), (2, article));
}

#[test]
fn w3_builder_yaml_and_json_give_the_same_definition() {
    let built = Definition::builder("custom")
        .add_stage("research", "research", &[])
        .add_stage("analysis", "data_analysis", &["research"])
        .add_stage("writing", "writing", &["analysis"])
        .with(|stage| {
            stage.parallel = false;
            stage.resources.insert("tokens".parse().unwrap(), "0.5".parse().unwrap());
            stage.params.insert("tone".into(), "dry".into());
        })
        .add_stage("verification", "verification", &["writing"])
        .with(|stage| {
            stage.optional = true;
            stage.retry = RetryPolicy { max_attempts: 5, factor: 1.5, ..RetryPolicy::default() };
        })
        .set_metadata("custom_field", serde_json::json!({"depth": 3}))
        .build()
        .unwrap();
    let yaml = "
name: custom
metadata:
  custom_field: {depth: 3}
stages:
  - {name: research, agent_type: research}
  - {name: analysis, agent_type: data_analysis, depends_on: [research]}
  - name: writing
    agent_type: writing
    depends_on: [analysis]
    parallel: false
    resources: {tokens: 0.5}
    params: {tone: dry}
  - name: verification
    agent_type: verification
    depends_on: [writing]
    optional: true
    retry: {max_attempts: 5, factor: 1.5}
";
    assert_eq!(definition::parse(yaml).unwrap(), built);
    assert_eq!(definition::parse(&serde_json::to_string_pretty(&built).unwrap()).unwrap(), built);
    let mut world = World::new();
    let request = RegisterWorkflow { source: Some(yaml.into()), definition: None };
    let view: WorkflowView = world.ask(WorkflowRequest::RegisterWorkflow(request)).unwrap();
    assert_eq!((view.version, view.registered_at), (1, START));
    assert_eq!(world.register(&built), 1, "the same definition is the same version");
    check(
        &mut world,
        &expect![[r#"
        2.0        +0ms  workflow_registered custom v1  (request workflow.register)
    "#]],
    );
}

#[test]
fn w3_a_run_keeps_the_version_it_started_with() {
    let mut world = World::new();
    let old = workflow(&[("a", &[]), ("b", &["a"])]);
    assert_eq!(world.register(&old), 1);
    let run = world.start("w");
    assert_eq!(world.register(&workflow(&[("c", &[])])), 2);
    let second = world.start("w");
    let third: RunAccepted = world.ask(WorkflowRequest::StartRun(StartRun { version: Some(1), ..start("w") })).unwrap();
    assert_eq!(third.version, 1);
    assert_eq!(world.register(&old), 3, "an older version again is a new one");
    world.work(run, "a", "ann", 10);
    world.work(run, "b", "ann", 10);
    world.work(second, "c", "ann", 10);
    check(
        &mut world,
        &expect![[r#"
        2.0        +0ms  workflow_registered w v1  (request workflow.register)
        3.0        +0ms  run_started w v1  (request run.start)
        3.1        +0ms  stage_ready a/1  (request run.start)
        4.0        +0ms  workflow_registered w v2  (request workflow.register)
        5.0        +0ms  run_started w v2  (request run.start)
        5.1        +0ms  stage_ready r2:c/1  (request run.start)
        6.0        +0ms  run_started w v1  (request run.start)
        6.1        +0ms  stage_ready r3:a/1  (request run.start)
        7.0        +0ms  workflow_registered w v3  (request workflow.register)
        8.0        +0ms  assigned a/1 to ann as 1  (request lease.assign)
        9.0       +10ms  stage_ended a/1 succeeded after 10ms  (request agent.report)
        9.1       +10ms  stage_ready b/1 with a  (request agent.report)
        10.0      +10ms  assigned b/1 to ann as 2  (request lease.assign)
        11.0      +20ms  stage_ended b/1 succeeded after 10ms  (request agent.report)
        11.1      +20ms  run_finished succeeded  (request agent.report)
        12.0      +20ms  assigned r2:c/1 to ann as 3  (request lease.assign)
        13.0      +30ms  stage_ended r2:c/1 succeeded after 10ms  (request agent.report)
        13.1      +30ms  run_finished succeeded  (request agent.report)
    "#]],
    );
    let mut unknown = |workflow: &str, version| {
        let rejection = world.ask::<RunAccepted>(WorkflowRequest::StartRun(StartRun { version, ..start(workflow) }));
        let rejection = rejection.unwrap_err();
        assert_eq!(rejection.code, Code::UnknownWorkflow);
        let get = GetWorkflow { name: name(workflow), version };
        assert_eq!(world.ask::<WorkflowView>(WorkflowRequest::GetWorkflow(get)).unwrap_err(), rejection);
        rejection.message
    };
    assert_eq!(unknown("novel", None), "there is no workflow novel; there are: article, paper, w");
    assert_eq!(unknown("w", Some(4)), "workflow w has no version 4; its versions are 1 to 3");
    assert_eq!(unknown("w", Some(0)), "workflow w has no version 0; its versions are 1 to 3");
}

// ---- runs ------------------------------------------------------------------------------------------------------------

#[test]
fn w2_an_article_from_start_to_end() {
    let mut world = World::new();
    let run = world.start("article");
    for (stage, agent) in [("research", "ann"), ("writing", "bob"), ("editing", "cem"), ("verification", "dee")] {
        world.wait(5);
        world.work(run, stage, agent, 200);
    }
    check(
        &mut world,
        &expect![[r#"
        2.0        +0ms  run_started article v1  (request run.start)
        2.1        +0ms  stage_ready research/1  (request run.start)
        3.0        +5ms  assigned research/1 to ann as 1  (request lease.assign)
        4.0      +205ms  stage_ended research/1 succeeded after 200ms  (request agent.report)
        4.1      +205ms  stage_ready writing/1 with research  (request agent.report)
        5.0      +210ms  assigned writing/1 to bob as 2  (request lease.assign)
        6.0      +410ms  stage_ended writing/1 succeeded after 200ms  (request agent.report)
        6.1      +410ms  stage_ready editing/1 with writing  (request agent.report)
        7.0      +415ms  assigned editing/1 to cem as 3  (request lease.assign)
        8.0      +615ms  stage_ended editing/1 succeeded after 200ms  (request agent.report)
        8.1      +615ms  stage_ready verification/1 with editing  (request agent.report)
        9.0      +620ms  assigned verification/1 to dee as 4  (request lease.assign)
        10.0     +820ms  stage_ended verification/1 succeeded after 200ms  (request agent.report)
        10.1     +820ms  run_finished succeeded  (request agent.report)
    "#]],
    );
    let view = world.view(run);
    assert_eq!((view.status, &view.reason), (RunStatus::Succeeded, &None));
    assert_eq!((view.cost.to_string().as_str(), view.usage.tokens_in, view.first_seq), ("0.04", 40, 0));
    assert_eq!(view.stages[3].result.as_ref().unwrap().as_str(), "\"verification done\"");
    assert_eq!(view.stages[0].attempts[0].assigned_at, Some(START + 5));
    assert_eq!(world.documents[&run.to_string()].read::<baton_protocol::run::RunView>().unwrap(), view);
}

#[test]
fn w2_a_paper_that_fails_verification_fails() {
    let mut world = World::new();
    let run = world.start("paper");
    for stage in ["literature_review", "methodology", "results", "editing"] {
        world.work(run, stage, "ann", 100);
    }
    world.transcript();
    let review = task(run, "peer_review", 1);
    let lease = world.assign(&review, "ann");
    world.report("ann", failed(lease, &review, "3 claims have no citation", false)).unwrap();
    check(
        &mut world,
        &expect![[r#"
        11.0     +400ms  assigned peer_review/1 to ann as 5  (request lease.assign)
        12.0     +400ms  stage_ended peer_review/1 failed: 3 claims have no citation  (request agent.report)
        12.1     +400ms  run_finished failed: stage peer_review failed after 1 attempt: 3 claims have no citation  (request agent.report)
    "#]],
    );
}

#[test]
fn w4_independent_stages_overlap_and_join() {
    let mut world = World::new();
    world.register(&workflow(&[("a", &[]), ("b", &["a"]), ("c", &["a"]), ("d", &["c", "b"])]));
    let run = world.start("w");
    world.work(run, "a", "ann", 10);
    let (b, c) = (task(run, "b", 1), task(run, "c", 1));
    let (lease_b, lease_c) = (world.assign(&b, "ann"), world.assign(&c, "bob"));
    world.wait(10);
    world.report("bob", succeeded(lease_c, &c, "1")).unwrap();
    world.report("ann", succeeded(lease_b, &b, "null")).unwrap();
    world.work(run, "d", "ann", 10);
    check(
        &mut world,
        &expect![[r#"
        2.0        +0ms  workflow_registered w v1  (request workflow.register)
        3.0        +0ms  run_started w v1  (request run.start)
        3.1        +0ms  stage_ready a/1  (request run.start)
        4.0        +0ms  assigned a/1 to ann as 1  (request lease.assign)
        5.0       +10ms  stage_ended a/1 succeeded after 10ms  (request agent.report)
        5.1       +10ms  stage_ready b/1 with a  (request agent.report)
        5.2       +10ms  stage_ready c/1 with a  (request agent.report)
        6.0       +10ms  assigned b/1 to ann as 2  (request lease.assign)
        7.0       +10ms  assigned c/1 to bob as 3  (request lease.assign)
        8.0       +20ms  stage_ended c/1 succeeded after 10ms  (request agent.report)
        9.0       +20ms  stage_ended b/1 succeeded after 10ms  (request agent.report)
        9.1       +20ms  stage_ready d/1 with c  (request agent.report)
        10.0      +20ms  assigned d/1 to ann as 4  (request lease.assign)
        11.0      +30ms  stage_ended d/1 succeeded after 10ms  (request agent.report)
        11.1      +30ms  run_finished succeeded  (request agent.report)
    "#]],
    );
}

#[test]
fn w4_a_stage_that_is_not_parallel_runs_alone() {
    let mut world = World::new();
    let mut definition = workflow(&[("a", &[]), ("b", &[]), ("c", &[]), ("d", &["b"])]);
    definition.stages[1].parallel = false;
    definition.stages[1].retry = attempts(2);
    world.register(&definition);
    let run = world.start("w");
    world.work(run, "a", "ann", 10);
    world.work(run, "c", "ann", 10);
    let b = task(run, "b", 1);
    let lease = world.assign(&b, "ann");
    world.report("ann", failed(lease, &b, "once more", true)).unwrap();
    world.wait(1000);
    let b = task(run, "b", 2);
    let lease = world.assign(&b, "ann");
    world.report("ann", succeeded(lease, &b, "1")).unwrap();
    world.work(run, "d", "ann", 10);
    check(
        &mut world,
        &expect![[r#"
        2.0        +0ms  workflow_registered w v1  (request workflow.register)
        3.0        +0ms  run_started w v1  (request run.start)
        3.1        +0ms  stage_ready a/1  (request run.start)
        3.2        +0ms  stage_ready c/1  (request run.start)
        4.0        +0ms  assigned a/1 to ann as 1  (request lease.assign)
        5.0       +10ms  stage_ended a/1 succeeded after 10ms  (request agent.report)
        6.0       +10ms  assigned c/1 to ann as 2  (request lease.assign)
        7.0       +20ms  stage_ended c/1 succeeded after 10ms  (request agent.report)
        7.1       +20ms  stage_ready b/1  (request agent.report)
        8.0       +20ms  assigned b/1 to ann as 3  (request lease.assign)
        9.0       +20ms  stage_ended b/1 failed: once more; again at +1020ms  (request agent.report)
        10.0    +1020ms  stage_ready b/2  (timer)
        11.0    +1020ms  assigned b/2 to ann as 4  (request lease.assign)
        12.0    +1020ms  stage_ended b/2 succeeded  (request agent.report)
        12.1    +1020ms  stage_ready d/1 with b  (request agent.report)
        13.0    +1020ms  assigned d/1 to ann as 5  (request lease.assign)
        14.0    +1030ms  stage_ended d/1 succeeded after 10ms  (request agent.report)
        14.1    +1030ms  run_finished succeeded  (request agent.report)
    "#]],
    );
}

#[test]
fn w7_a_cycle_is_refused() {
    let mut world = World::new();
    let source =
        "name: w\nstages: [{name: a, agent_type: x, depends_on: [b]}, {name: b, agent_type: x, depends_on: [a]}]";
    let request = RegisterWorkflow { source: Some(source.into()), definition: None };
    let rejection = world.ask::<WorkflowView>(WorkflowRequest::RegisterWorkflow(request)).unwrap_err();
    assert_eq!(rejection.code, Code::InvalidWorkflow);
    let expected = "the stages wait for each other in a cycle: a -> b -> a at line 2, column 47";
    assert_eq!(rejection.message, expected);
}

/// A log that holds a definition which would be refused today.
fn own_commit(world: &mut World, records: Vec<WorkflowRecord>) {
    let turns = vec![Turn { at: START, seen: 0, cause: Cause::Request("run.start".into()), records }];
    let commit = Commit { format: FORMAT, instance: "old".into(), term: 1, first: 1, handled: 0, turns };
    world.log.push((Service::WorkflowManager, serde_json::to_vec(&commit).unwrap()));
}

fn run_started(run: RunId, workflow: &str) -> WorkflowRecord {
    let (workflow, input) = (name(workflow), json("{}"));
    WorkflowRecord::RunStarted(RunStarted {
        run,
        workflow,
        version: 1,
        input,
        priority: 0,
        key: None,
        trace: None,
        strategy: None,
        due: None,
        budget: None,
        metadata: Default::default(),
        rerun: None,
        parent: None,
        no_cache: false,
    })
}

#[test]
fn w7_a_run_that_can_never_go_on_fails_with_the_stages_that_block_it() {
    let mut definition = workflow(&[("a", &[]), ("b", &["a"]), ("c", &["b"]), ("d", &["a"])]);
    definition.stages[1].depends_on.push("c".parse().unwrap());
    definition.stages[3].depends_on.push("ghost".parse().unwrap());
    let mut world = World::empty();
    let run = RunId::derive(START, 1);
    let registered = WorkflowRegistered { version: 1, definition: definition.into() };
    own_commit(&mut world, vec![WorkflowRecord::WorkflowRegistered(registered), run_started(run, "w")]);
    world.lead();
    world.work(run, "a", "ann", 10);
    check(
        &mut world,
        &expect![[r#"
            2.0        +0ms  workflow_registered article v1  (term began)
            2.1        +0ms  workflow_registered paper v1  (term began)
            2.2        +0ms  stage_ready a/1  (term began)
            3.0        +0ms  assigned a/1 to ann as 1  (request lease.assign)
            4.0       +10ms  stage_ended a/1 succeeded after 10ms  (request agent.report)
            4.1       +10ms  stage_ready d/1 with a  (request agent.report)
        "#]],
    );
}

#[test]
fn w8_a_failed_attempt_is_followed_by_another_after_a_growing_wait() {
    let mut world = World::new();
    world.register(&with_attempts(workflow(&[("a", &[]), ("b", &["a"])]), 3));
    let run = world.start("w");
    let first = task(run, "a", 1);
    let old = world.assign(&first, "ann");
    world.wait(100);
    world.report("ann", failed(old, &first, "the model is overloaded", true)).unwrap();
    // Its report again changes nothing. Nor does a second thought, which is not said to be stored.
    world.report("ann", failed(old, &first, "the model is overloaded", true)).unwrap();
    for other in [succeeded(old, &first, "1"), failed(old, &first, "the model is gone", true)] {
        let rejection = world.report("ann", other).unwrap_err();
        assert_eq!(rejection.code, Code::StaleLease);
        assert!(rejection.message.contains("another report was stored"), "{rejection}");
    }
    world.wait(1000);
    let second = task(run, "a", 2);
    let lease = world.assign(&second, "bob");
    // Neither the old lease nor another agent can end the new attempt.
    for (agent, report) in [
        ("ann", succeeded(old, &second, "1")),
        ("ann", succeeded(lease, &second, "1")),
        ("bob", succeeded(lease, &first, "1")),
        ("bob", succeeded(old, &first, "1")),
        ("bob", succeeded(lease, &task(run, "a", 3), "1")),
        ("bob", succeeded(lease, &task(run, "z", 1), "1")),
        ("bob", succeeded(lease, &task(RunId::derive(START, 99), "a", 1), "1")),
    ] {
        assert_eq!(world.report(agent, report).unwrap_err().code, Code::StaleLease);
    }
    world.report("bob", failed(lease, &second, "the model is overloaded", true)).unwrap();
    world.wait(2000);
    let third = task(run, "a", 3);
    let lease = world.assign(&third, "ann");
    world.report("ann", failed(lease, &third, "the model is still overloaded", true)).unwrap();
    check(
        &mut world,
        &expect![[r#"
        2.0        +0ms  workflow_registered w v1  (request workflow.register)
        3.0        +0ms  run_started w v1  (request run.start)
        3.1        +0ms  stage_ready a/1  (request run.start)
        4.0        +0ms  assigned a/1 to ann as 1  (request lease.assign)
        5.0      +100ms  stage_ended a/1 failed after 100ms: the model is overloaded; again at +1100ms  (request agent.report)
        6.0     +1100ms  stage_ready a/2  (timer)
        7.0     +1100ms  assigned a/2 to bob as 2  (request lease.assign)
        8.0     +1100ms  stage_ended a/2 failed: the model is overloaded; again at +3100ms  (request agent.report)
        9.0     +3100ms  stage_ready a/3  (timer)
        10.0    +3100ms  assigned a/3 to ann as 3  (request lease.assign)
        11.0    +3100ms  stage_ended a/3 failed: the model is still overloaded  (request agent.report)
        11.1    +3100ms  run_finished failed: stage a failed after 3 attempts: the model is still overloaded  (request agent.report)
    "#]],
    );
    // Also when the run has ended.
    world.report("ann", failed(old, &first, "the model is overloaded", true)).unwrap();
    world.report("ann", failed(lease, &third, "the model is still overloaded", true)).unwrap();
    check(&mut world, &expect![[""]]);
}

#[test]
fn w8_why_a_lease_is_stale_is_said() {
    let mut world = World::new();
    world.register(&with_attempts(workflow(&[("a", &[]), ("b", &[])]), 1));
    let run = world.start("w");
    let (a, b) = (task(run, "a", 1), task(run, "b", 1));
    let mut said = String::new();
    let mut ask = |world: &mut World, agent: &str, report: Report| {
        let rejection = world.report(agent, report).unwrap_err();
        assert_eq!(rejection.code, Code::StaleLease);
        said += &rejection.message.replace(&run.to_string(), "RUN");
        said.push('\n');
    };
    world.agent("ann", "s1", "x");
    let lease = world.assign(&a, "ann");
    ask(&mut world, "ann", succeeded(lease, &b, "1"));
    ask(&mut world, "bob", succeeded(lease, &a, "1"));
    ask(&mut world, "ann", succeeded(LeaseId(1), &a, "1"));
    ask(&mut world, "ann", succeeded(lease, &task(run, "a", 2), "1"));
    ask(&mut world, "ann", succeeded(lease, &task(run, "z", 1), "1"));
    world.leave("ann", LeftReason::Lost);
    ask(&mut world, "ann", succeeded(lease, &a, "1"));
    expect![[r#"
        task RUN/b/1 was never leased to an agent
        task RUN/a/1 was leased to ann (lease 2), not to bob (lease 2)
        task RUN/a/1 was leased to ann (lease 2), not to ann (lease 1)
        task RUN/a/2 has not begun: stage a had 1 attempt so far
        workflow w has no stage z
        lease 2 of task RUN/a/1 has ended, lost: agent ann was lost: it was not heard of for the time of a lease
    "#]]
    .assert_eq(&said);
}

#[test]
fn w8_what_is_not_retryable_is_not_retried() {
    let mut world = World::new();
    world.register(&workflow(&[("a", &[]), ("b", &[])]));
    let run = world.start("w");
    let (a, b) = (task(run, "a", 1), task(run, "b", 1));
    let (lease, other) = (world.assign(&a, "ann"), world.assign(&b, "bob"));
    world.report("ann", failed(lease, &a, "there is no such topic", false)).unwrap();
    check(
        &mut world,
        &expect![[r#"
        2.0        +0ms  workflow_registered w v1  (request workflow.register)
        3.0        +0ms  run_started w v1  (request run.start)
        3.1        +0ms  stage_ready a/1  (request run.start)
        3.2        +0ms  stage_ready b/1  (request run.start)
        4.0        +0ms  assigned a/1 to ann as 1  (request lease.assign)
        5.0        +0ms  assigned b/1 to bob as 2  (request lease.assign)
        6.0        +0ms  stage_ended a/1 failed: there is no such topic  (request agent.report)
        6.1        +0ms  stage_ended b/1 cancelled: stage a failed after 1 attempt: there is no such topic  (request agent.report)
        6.2        +0ms  run_finished failed: stage a failed after 1 attempt: there is no such topic  (request agent.report)
    "#]],
    );
    let stale = world.report("bob", succeeded(other, &b, "1")).unwrap_err();
    assert!(stale.message.contains("has ended, cancelled: stage a failed"), "{stale}");
    assert_eq!(world.view(run).stages[1].status, StageStatus::Cancelled);
}

#[test]
fn w8_a_lost_agent_s_stage_goes_to_another() {
    let mut world = World::new();
    world.register(&workflow(&[("a", &[]), ("b", &[])]));
    world.agent("ann", "s1", "x");
    world.agent("bob", "s1", "x");
    let run = world.start("w");
    let old = world.assign(&task(run, "a", 1), "ann");
    let other = world.assign(&task(run, "b", 1), "bob");
    // The same session again, as after a lost connection, changes nothing.
    world.agent("ann", "s1", "x");
    // Another one does.
    world.agent("ann", "s2", "x");
    let stale = world.report("ann", succeeded(old, &task(run, "a", 1), "1")).unwrap_err();
    assert!(stale.message.ends_with("has ended, lost: agent ann was started again"), "{stale}");
    let second = world.assign(&task(run, "a", 2), "bob");
    world.decline(second, &task(run, "a", 2), "bob", "too hot");
    // A lease that was given back can not be given back again.
    world.decline(second, &task(run, "a", 2), "bob", "too hot");
    world.decline(other, &task(run, "b", 1), "ann", "not mine");
    let third = world.assign(&task(run, "a", 3), "bob");
    world.report("bob", succeeded(third, &task(run, "a", 3), "1")).unwrap();
    world.leave("bob", LeftReason::Lost);
    world.leave("bob", LeftReason::Lost);
    check(
        &mut world,
        &expect![[r#"
        2.0        +0ms  workflow_registered w v1  (request workflow.register)
        3.0        +0ms  agent_registered ann session s1  (request agent.register)
        4.0        +0ms  agent_registered bob session s1  (request agent.register)
        5.0        +0ms  run_started w v1  (request run.start)
        5.1        +0ms  stage_ready a/1  (request run.start)
        5.2        +0ms  stage_ready b/1  (request run.start)
        6.0        +0ms  assigned a/1 to ann as 3  (request lease.assign)
        7.0        +0ms  assigned b/1 to bob as 4  (request lease.assign)
        8.0        +0ms  agent_registered ann session s1  (request agent.register)
        9.0        +0ms  agent_registered ann session s2  (request agent.register)
        10.0       +0ms  stage_ended a/1 lost: agent ann was started again; again at +0ms  (log 9)
        10.1       +0ms  stage_ready a/2  (log 9)
        11.0       +0ms  assigned a/2 to bob as 7  (request lease.assign)
        12.0       +0ms  lease_ended 7 of bob: too hot  (request agent.decline)
        13.0       +0ms  stage_ended a/2 lost: agent bob gave it back: too hot; again at +0ms  (log 12)
        13.1       +0ms  stage_ready a/3  (log 12)
        14.0       +0ms  lease_ended 7 of bob: too hot  (request agent.decline)
        15.0       +0ms  lease_ended 4 of ann: not mine  (request agent.decline)
        16.0       +0ms  assigned a/3 to bob as 11  (request lease.assign)
        17.0       +0ms  stage_ended a/3 succeeded  (request agent.report)
        18.0       +0ms  agent_left bob  (request agent.leave)
        19.0       +0ms  stage_ended b/1 lost: agent bob was lost: it was not heard of for the time of a lease; again at +0ms  (log 18)
        19.1       +0ms  stage_ready b/2  (log 18)
        20.0       +0ms  agent_left bob  (request agent.leave)
    "#]],
    );
}

#[test]
fn w8_an_agent_that_dies_with_all_its_stages_costs_each_an_attempt() {
    let mut world = World::new();
    let mut definition = with_attempts(workflow(&[("a", &[]), ("b", &[]), ("c", &["a"])]), 1);
    definition.stages[1].retry = attempts(2);
    world.register(&definition);
    world.agent("ann", "s1", "x");
    let (run, second) = (world.start("w"), world.start("w"));
    for run in [run, second] {
        world.assign(&task(run, "a", 1), "ann");
        world.assign(&task(run, "b", 1), "ann");
    }
    world.transcript();
    world.leave("ann", LeftReason::Left);
    check(
        &mut world,
        &expect![[r#"
        10.0       +0ms  agent_left ann  (request agent.leave)
        11.0       +0ms  stage_ended a/1 lost: agent ann left  (log 10)
        11.1       +0ms  stage_ended b/1 cancelled: stage a failed after 1 attempt: agent ann left  (log 10)
        11.2       +0ms  run_finished failed: stage a failed after 1 attempt: agent ann left  (log 10)
        11.3       +0ms  stage_ended r2:a/1 lost: agent ann left  (log 10)
        11.4       +0ms  stage_ended r2:b/1 cancelled: stage a failed after 1 attempt: agent ann left  (log 10)
        11.5       +0ms  run_finished failed: stage a failed after 1 attempt: agent ann left  (log 10)
    "#]],
    );
}

#[test]
fn w9_an_optional_stage_may_fail() {
    let mut world = World::new();
    let mut definition = with_attempts(workflow(&[("a", &[]), ("b", &[]), ("c", &["a", "b"])]), 1);
    definition.stages[1].optional = true;
    world.register(&definition);
    let run = world.start("w");
    let b = task(run, "b", 1);
    let lease = world.assign(&b, "ann");
    world.report("ann", failed(lease, &b, "nothing found", true)).unwrap();
    world.work(run, "a", "ann", 10);
    world.work(run, "c", "ann", 10);
    check(
        &mut world,
        &expect![[r#"
        2.0        +0ms  workflow_registered w v1  (request workflow.register)
        3.0        +0ms  run_started w v1  (request run.start)
        3.1        +0ms  stage_ready a/1  (request run.start)
        3.2        +0ms  stage_ready b/1  (request run.start)
        4.0        +0ms  assigned b/1 to ann as 1  (request lease.assign)
        5.0        +0ms  stage_ended b/1 failed: nothing found  (request agent.report)
        6.0        +0ms  assigned a/1 to ann as 2  (request lease.assign)
        7.0       +10ms  stage_ended a/1 succeeded after 10ms  (request agent.report)
        7.1       +10ms  stage_ready c/1 with a  (request agent.report)
        8.0       +10ms  assigned c/1 to ann as 3  (request lease.assign)
        9.0       +20ms  stage_ended c/1 succeeded after 10ms  (request agent.report)
        9.1       +20ms  run_finished succeeded  (request agent.report)
    "#]],
    );
    let stages: Vec<_> = world.view(run).stages.iter().map(|stage| stage.status).collect();
    assert_eq!(stages, [StageStatus::Succeeded, StageStatus::Failed, StageStatus::Succeeded]);
}

#[test]
fn w9_a_stage_whose_agent_would_be_given_too_much_fails_before_it_begins() {
    let mut world = World::new();
    let names: Vec<String> = (0..4).map(|i| format!("s{i}")).collect();
    let mut builder = Definition::builder("w");
    for name in &names {
        builder = builder.add_stage(name, "x", &[]);
    }
    let sources: Vec<&str> = names.iter().map(String::as_str).collect();
    world.register(&builder.add_stage("join", "x", &sources).build().unwrap());
    let run = world.start("w");
    let large = format!("\"{}\"", "x".repeat(MAX_JSON_BYTES - 2));
    for name in &names {
        let task = task(run, name, 1);
        let lease = world.assign(&task, "ann");
        let more = world.report("ann", succeeded(lease, &task, &format!(" [{large}]"))).unwrap_err();
        assert_eq!(more.code, Code::TooLarge);
        world.transcript();
        world.report("ann", succeeded(lease, &task, &large)).unwrap();
    }
    check(
        &mut world,
        &expect![[r#"
            11.0       +0ms  stage_ended s3/1 succeeded  (request agent.report)
            11.1       +0ms  stage_ended join/1 failed: its agent would be given 1048595 bytes (the run's input, the results of 4 stages, parameters and metadata); at most 901120 are allowed: keep large results elsewhere and pass references  (request agent.report)
            11.2       +0ms  run_finished failed: stage join failed after 1 attempt: its agent would be given 1048595 bytes (the run's input, the results of 4 stages, parameters and metadata); at most 901120 are allowed: keep large results elsewhere and pass references  (request agent.report)
        "#]],
    );
    // The document fits into a message, and says what it lacks.
    let view = world.view(run);
    assert!(view.reason.unwrap().ends_with("(1 result left out here: the whole is too large)"));
    assert!(world.documents[&run.to_string()].size() <= baton_protocol::request::MAX_MESSAGE_BYTES);
    assert_eq!(view.stages.iter().filter(|stage| stage.result.is_some()).count(), 3);
}

#[test]
fn w10_a_stage_that_no_agent_takes_times_out() {
    let mut world = World::new();
    let mut definition = with_attempts(workflow(&[("a", &[])]), 2);
    definition.stages[0].start_timeout_ms = 30_000;
    world.register(&definition);
    let run = world.start("w");
    world.wait(30_500);
    world.agent("ann", "s1", "x");
    world.wait(100_000);
    check(
        &mut world,
        &expect![[r#"
        2.0        +0ms  workflow_registered w v1  (request workflow.register)
        3.0        +0ms  run_started w v1  (request run.start)
        3.1        +0ms  stage_ready a/1  (request run.start)
        4.0    +30000ms  stage_ended a/1 timed_out: no agent took it within 30 s: no agent is there that can do x; again at +31000ms  (timer)
        5.0    +30500ms  agent_registered ann session s1  (request agent.register)
        6.0    +31000ms  stage_ready a/2  (timer)
        7.0    +61000ms  stage_ended a/2 timed_out: no agent took it within 30 s: 1 agent can do x  (timer)
        7.1    +61000ms  run_finished failed: stage a failed after 2 attempts: no agent took it within 30 s: 1 agent can do x  (timer)
    "#]],
    );
    assert_eq!(world.view(run).status, RunStatus::Failed);
}

#[test]
fn w10_an_attempt_that_takes_too_long_times_out() {
    let mut world = World::new();
    let mut definition = with_attempts(workflow(&[("a", &[])]), 2);
    definition.stages[0].timeout_ms = 90_000;
    world.register(&definition);
    let run = world.start("w");
    let lease = world.assign(&task(run, "a", 1), "ann");
    world.wait(90_000);
    let late = world.report("ann", succeeded(lease, &task(run, "a", 1), "1")).unwrap_err();
    assert!(late.message.ends_with("has ended, timed_out: no report came within 90 s"), "{late}");
    world.wait(1000);
    let lease = world.assign(&task(run, "a", 2), "ann");
    world.report("ann", succeeded(lease, &task(run, "a", 2), "1")).unwrap();
    check(
        &mut world,
        &expect![[r#"
        2.0        +0ms  workflow_registered w v1  (request workflow.register)
        3.0        +0ms  run_started w v1  (request run.start)
        3.1        +0ms  stage_ready a/1  (request run.start)
        4.0        +0ms  assigned a/1 to ann as 1  (request lease.assign)
        5.0    +90000ms  stage_ended a/1 timed_out after 90000ms: no report came within 90 s; again at +91000ms  (timer)
        6.0    +91000ms  stage_ready a/2  (timer)
        7.0    +91000ms  assigned a/2 to ann as 2  (request lease.assign)
        8.0    +91000ms  stage_ended a/2 succeeded  (request agent.report)
        8.1    +91000ms  run_finished succeeded  (request agent.report)
    "#]],
    );
}

#[test]
fn w10_a_run_that_takes_too_long_times_out() {
    let mut world = World::new();
    let mut definition = with_attempts(workflow(&[("a", &[]), ("b", &[]), ("c", &[]), ("d", &["a"])]), 2);
    definition.timeout_ms = 120_000;
    definition.stages[2].retry.initial_ms = 600_000;
    definition.stages[2].retry.max_ms = 600_000;
    world.register(&definition);
    let run = world.start("w");
    world.assign(&task(run, "b", 1), "ann");
    let c = task(run, "c", 1);
    let lease = world.assign(&c, "ann");
    world.report("ann", failed(lease, &c, "later", true)).unwrap();
    world.wait(1_000_000);
    check(
        &mut world,
        &expect![[r#"
        2.0        +0ms  workflow_registered w v1  (request workflow.register)
        3.0        +0ms  run_started w v1  (request run.start)
        3.1        +0ms  stage_ready a/1  (request run.start)
        3.2        +0ms  stage_ready b/1  (request run.start)
        3.3        +0ms  stage_ready c/1  (request run.start)
        4.0        +0ms  assigned b/1 to ann as 1  (request lease.assign)
        5.0        +0ms  assigned c/1 to ann as 2  (request lease.assign)
        6.0        +0ms  stage_ended c/1 failed: later; again at +600000ms  (request agent.report)
        7.0   +120000ms  stage_ended a/1 cancelled: the run took longer than 2 min  (timer)
        7.1   +120000ms  stage_ended b/1 cancelled after 120000ms: the run took longer than 2 min  (timer)
        7.2   +120000ms  run_finished timed_out: the run took longer than 2 min  (timer)
    "#]],
    );
    let stages: Vec<_> = world.view(run).stages.iter().map(|stage| stage.status).collect();
    assert_eq!(stages, [StageStatus::Cancelled; 4]);
}

#[test]
fn w10_a_run_is_cancelled() {
    let mut world = World::new();
    world.register(&workflow(&[("a", &[]), ("b", &[]), ("c", &["a"])]));
    let run = world.start("w");
    let lease = world.assign(&task(run, "a", 1), "ann");
    let first = world.cancel(run, Some("nobody wants it")).unwrap();
    assert_eq!((first.status, first.existing), (RunStatus::Cancelled, false));
    check(
        &mut world,
        &expect![[r#"
        2.0        +0ms  workflow_registered w v1  (request workflow.register)
        3.0        +0ms  run_started w v1  (request run.start)
        3.1        +0ms  stage_ready a/1  (request run.start)
        3.2        +0ms  stage_ready b/1  (request run.start)
        4.0        +0ms  assigned a/1 to ann as 1  (request lease.assign)
        5.0        +0ms  stage_ended a/1 cancelled: nobody wants it  (request run.cancel)
        5.1        +0ms  stage_ended b/1 cancelled: nobody wants it  (request run.cancel)
        5.2        +0ms  run_finished cancelled: nobody wants it  (request run.cancel)
    "#]],
    );
    let again = world.cancel(run, None).unwrap();
    assert_eq!(again, RunAccepted { existing: true, ..first });
    let late = world.report("ann", succeeded(lease, &task(run, "a", 1), "1")).unwrap_err();
    assert!(late.message.ends_with("has ended, cancelled: nobody wants it"), "{late}");
    let ended = world.start("w");
    world.work(ended, "a", "ann", 10);
    world.work(ended, "b", "ann", 10);
    world.work(ended, "c", "ann", 10);
    assert_eq!(world.cancel(ended, None).unwrap_err().code, Code::RunEnded);
    assert_eq!(world.cancel(RunId::derive(START, 99), None).unwrap_err().code, Code::UnknownRun);
}

#[test]
fn r8_a_stage_that_times_out_while_it_waits_for_money_says_so() {
    let mut world = World::new();
    let mut definition = with_attempts(workflow(&[("a", &[]), ("b", &[])]), 1);
    definition.budget = Some(serde_json::from_str(r#"{"limit": "1", "currency": "EUR", "at_limit": "ask"}"#).unwrap());
    for (stage, expected) in definition.stages.iter_mut().zip(["0.75", "0.5"]) {
        stage.budget = Some(expected.parse().unwrap());
        stage.start_timeout_ms = 5000;
    }
    world.register(&definition);
    world.agent("ann", "s1", "x");
    let reason = |world: &mut World, more: Option<&str>| {
        let run = world.start("w");
        world.assign(&task(run, "a", 1), "ann");
        if let Some(size) = more {
            let budget = world.view(run).budget.unwrap();
            let pool = Pool { size: Some(size.parse().unwrap()), ..budget.pool().unwrap() };
            let record = PoolSet { name: budget.account(run).unwrap(), pool };
            world.resource("budget.approve", vec![ResourceRecord::PoolSet(record)]);
            assert_eq!(world.view(run).budget.unwrap().limit, Some(size.parse().unwrap()));
        }
        world.wait(5000);
        world.view(run).reason.unwrap().replace(&run.to_string(), "ID")
    };
    let said = [reason(&mut world, None), reason(&mut world, Some("2"))].join("\n");
    expect![[r#"
        stage b failed after 1 attempt: it waited for money for 5 s: 0.5 is wanted of account run:ID, and 0.25 of 1 EUR are left, and nobody gave it more
        stage b failed after 1 attempt: no agent took it within 5 s: 1 agent can do x, and it is paid from account run:ID"#]].assert_eq(&said);
}

#[test]
fn r8_a_run_with_a_budget_is_paid_from_its_account_and_fails_when_nobody_pays() {
    let mut world = World::new();
    let mut definition = workflow(&[("a", &[]), ("b", &[]), ("c", &[])]);
    definition.budget = Some(serde_json::from_str(r#"{"limit": "2.50", "of": "team", "at_limit": "fail"}"#).unwrap());
    definition.stages[0].budget = Some("0.5".parse().unwrap());
    definition.stages[2].resources.insert("team".parse().unwrap(), "1".parse().unwrap());
    world.register(&definition);
    let run = world.start("w");
    let account = baton_protocol::budget::run_account(run);
    let needs = |world: &World, nth: usize| world.ready_resources().nth(nth).unwrap();
    let of = |account: &baton_protocol::ResourceName, amount: &str| (account.clone(), amount.parse().unwrap());
    assert_eq!(needs(&world, 0), [of(&account, "0.5")].into());
    assert_eq!(needs(&world, 1), [of(&account, "0.000000001")].into());
    assert_eq!(needs(&world, 2).len(), 2);
    assert_eq!(world.view(run).budget, definition.budget);
    // A run may be started with another one, or with that of somebody else alone.
    let budget = Some(serde_json::from_str(r#"{"of": "other"}"#).unwrap());
    let other: RunAccepted = world.ask(WorkflowRequest::StartRun(StartRun { budget, ..start("w") })).unwrap();
    assert_eq!(needs(&world, 3), [of(&"other".parse().unwrap(), "0.5")].into());
    world.cancel(other.run, None).unwrap();
    let wrong = Some(Budget::default());
    let refused = world.ask::<RunAccepted>(WorkflowRequest::StartRun(StartRun { budget: wrong, ..start("w") }));
    assert!(refused.unwrap_err().message.starts_with("budget: a budget needs a limit"));
    world.transcript();
    // What does not wait for an agent any more can not be refused one.
    let lease = world.assign(&task(run, "b", 1), "ann");
    world.unpaid(&account, &task(run, "b", 1), "no money");
    let report = Report { model: Some("small".to_owned()), ..succeeded(lease, &task(run, "b", 1), "1") };
    world.report("ann", report).unwrap();
    world.unpaid(&account, &task(run, "a", 2), "no money");
    world.unpaid(&account, &task(run, "a", 1), "the budget is used up");
    world.unpaid(&account, &task(run, "c", 1), "the budget is used up");
    let view = world.view(run);
    assert_eq!(view.status, RunStatus::Failed);
    assert_eq!(view.reason.as_deref(), Some("stage a failed after 1 attempt: the budget is used up"));
    assert_eq!(view.stages[1].attempts[0].model.as_deref(), Some("small"));
    check(
        &mut world,
        &expect![[r#"
        6.0        +0ms  assigned b/1 to ann as 1  (request lease.assign)
        7.0        +0ms  budget_refused b/1 of run:019aa2a3-4380-7c26-8d5f-724332b66540: no money  (request lease.assign)
        8.0        +0ms  stage_ended b/1 succeeded  (request agent.report)
        9.0        +0ms  budget_refused a/2 of run:019aa2a3-4380-7c26-8d5f-724332b66540: no money  (request lease.assign)
        10.0       +0ms  budget_refused a/1 of run:019aa2a3-4380-7c26-8d5f-724332b66540: the budget is used up  (request lease.assign)
        11.0       +0ms  stage_ended a/1 failed: the budget is used up  (log 10)
        11.1       +0ms  stage_ended c/1 cancelled: stage a failed after 1 attempt: the budget is used up  (log 10)
        11.2       +0ms  run_finished failed: stage a failed after 1 attempt: the budget is used up  (log 10)
        12.0       +0ms  budget_refused c/1 of run:019aa2a3-4380-7c26-8d5f-724332b66540: the budget is used up  (request lease.assign)
    "#]],
    );
}

#[test]
fn w19_the_same_key_gives_the_same_run() {
    let mut world = World::new();
    world.register(&workflow(&[("a", &[])]));
    let keyed = |key: &str| StartRun { key: Some(key.into()), ..start("w") };
    let mut ask = |request: StartRun| world.ask::<RunAccepted>(WorkflowRequest::StartRun(request));
    let first = ask(keyed("k")).unwrap();
    assert!(!first.existing);
    let again = RunAccepted { existing: true, ..first.clone() };
    assert_eq!(ask(keyed("k")).unwrap(), again);
    assert_eq!(ask(StartRun { version: Some(1), ..keyed("k") }).unwrap(), again);
    assert_eq!(ask(StartRun { run: Some(first.run), ..start("w") }).unwrap(), again);
    // A client that makes a run id with each call, and lost its first one: the key decides.
    assert_eq!(ask(StartRun { run: Some(RunId::derive(START, 99)), ..keyed("k") }).unwrap(), again);
    assert_ne!(ask(keyed("l")).unwrap().run, first.run);
    for different in [
        StartRun { input: json("{}"), ..keyed("k") },
        StartRun { workflow: name("article"), ..keyed("k") },
        StartRun { version: Some(2), ..keyed("k") },
        StartRun { run: Some(first.run), key: Some("new".into()), ..start("w") },
    ] {
        assert_eq!(ask(different).unwrap_err().code, Code::KeyConflict);
    }
    // The latest version has changed since: the key still means the run that it started.
    world.register(&workflow(&[("b", &[])]));
    assert_eq!(world.ask::<RunAccepted>(WorkflowRequest::StartRun(keyed("k"))).unwrap(), again);
    world.work(first.run, "a", "ann", 10);
    world.lead();
    let ended = world.ask::<RunAccepted>(WorkflowRequest::StartRun(keyed("k"))).unwrap();
    assert_eq!(ended, RunAccepted { status: RunStatus::Succeeded, ..again });
    check(
        &mut world,
        &expect![[r#"
        2.0        +0ms  workflow_registered w v1  (request workflow.register)
        3.0        +0ms  run_started w v1  (request run.start)
        3.1        +0ms  stage_ready a/1  (request run.start)
        4.0        +0ms  run_started w v1  (request run.start)
        4.1        +0ms  stage_ready r2:a/1  (request run.start)
        5.0        +0ms  workflow_registered w v2  (request workflow.register)
        6.0        +0ms  assigned a/1 to ann as 1  (request lease.assign)
        7.0       +10ms  stage_ended a/1 succeeded after 10ms  (request agent.report)
        7.1       +10ms  run_finished succeeded  (request agent.report)
    "#]],
    );
}

#[test]
fn g7_as_many_runs_are_live_as_may_be() {
    let mut world = World::new();
    world.config.max_live_runs = 2;
    world.lead();
    world.register(&workflow(&[("a", &[])]));
    world.agent("ann", "s1", "x");
    let mut said = String::new();
    let mut ask = |world: &mut World, what: &str, key: Option<&str>| {
        let request = StartRun { key: key.map(str::to_owned), ..start("w") };
        let line = match world.ask::<RunAccepted>(WorkflowRequest::StartRun(request)) {
            Ok(accepted) if accepted.existing => "it was there".to_owned(),
            Ok(_) => "started".to_owned(),
            Err(rejection) => format!("{rejection}; again after {:?} ms", rejection.retry_after_ms),
        };
        said += &format!("{what}: {line}\n");
    };
    let first = world.start("w");
    ask(&mut world, "the second", Some("k"));
    ask(&mut world, "no run has ended yet", None);
    ask(&mut world, "a start that is repeated", Some("k"));
    // Runs have ended 400 ms apart.
    world.work(first, "a", "ann", 400);
    for _ in 0..3 {
        let run = world.start("w");
        world.work(run, "a", "ann", 400);
    }
    ask(&mut world, "there is room", None);
    ask(&mut world, "they end every 300 ms, the first at once", None);
    world.wait(10_000);
    ask(&mut world, "none has ended for a while", None);
    // A limit that is lowered ends none, and more of them have to end.
    world.config.max_live_runs = 1;
    world.lead();
    ask(&mut world, "the limit is lower", None);
    let (run, _) = world.processor.machine().runs.iter().next_back().map(|(id, run)| (*id, run)).unwrap();
    world.cancel(run, None).unwrap();
    ask(&mut world, "one is live", None);
    world.config.max_live_runs = 3;
    world.lead();
    ask(&mut world, "the limit is higher", None);
    expect![[r#"
        the second: started
        no run has ended yet: no run can start now: the limit of 2 live runs is reached (workflows.max_live_runs; 2 are live) (overloaded); again after Some(1000) ms
        a start that is repeated: it was there
        there is room: started
        they end every 300 ms, the first at once: no run can start now: the limit of 2 live runs is reached (workflows.max_live_runs; 2 are live) (overloaded); again after Some(300) ms
        none has ended for a while: no run can start now: the limit of 2 live runs is reached (workflows.max_live_runs; 2 are live) (overloaded); again after Some(2800) ms
        the limit is lower: no run can start now: the limit of 1 live runs is reached (workflows.max_live_runs; 2 are live) (overloaded); again after Some(5000) ms
        one is live: no run can start now: the limit of 1 live runs is reached (workflows.max_live_runs; 1 are live) (overloaded); again after Some(2240) ms
        the limit is higher: started
    "#]]
    .assert_eq(&said);
}

#[test]
fn r13_a_run_that_matters_too_little_is_refused_under_pressure_and_leaves_nothing() {
    let mut world = World::new();
    world.register(&workflow(&[("a", &[])]));
    let pressure = |level, below, until| {
        let causes = vec![PressureCause::Queue];
        let record = PressureChanged {
            level,
            causes,
            below,
            longest_ms: 0,
            until,
            waiting: 1200,
            slots: 4,
            memory_percent: None,
        };
        vec![ResourceRecord::PressureChanged(record)]
    };
    let ask = |world: &mut World, priority: i32, key: &str| {
        let request = StartRun { priority, key: Some(key.to_owned()), ..start("w") };
        match world.ask::<RunAccepted>(WorkflowRequest::StartRun(request)) {
            Ok(accepted) if accepted.existing => "it was there".to_owned(),
            Ok(_) => "started".to_owned(),
            Err(rejection) => format!("{rejection}; again after {:?} ms", rejection.retry_after_ms),
        }
    };
    let mut said = String::new();
    let mut note = |what: &str, line: String| said += &format!("{what}: {line}\n");
    note("before", ask(&mut world, -1, "known"));
    world.resource("timer", pressure(PressureLevel::Elevated, 0, world.now + 4000));
    let (records, live) = (world.processor.number(), world.processor.machine().runs.iter().count());
    note("low", ask(&mut world, -1, "low"));
    note("lower", ask(&mut world, -7, "lower"));
    world.wait(3950);
    note("it is nearly over", ask(&mut world, -1, "low"));
    note("one that is known", ask(&mut world, -1, "known"));
    let after = (world.processor.number(), world.processor.machine().runs.iter().count());
    assert_eq!(after, (records, live), "a refusal left something behind");
    note("as others", ask(&mut world, 0, "plain"));
    world.resource("timer", pressure(PressureLevel::Critical, 1, world.now + 900_000));
    note("as others, when it is critical", ask(&mut world, 0, "later"));
    note("high", ask(&mut world, 1, "high"));
    // Another leader knows it from the log.
    world.lead();
    note("low, with another leader", ask(&mut world, -1, "low"));
    world.resource("timer", pressure(PressureLevel::None, 0, 0));
    note("low, when it is over", ask(&mut world, -1, "low"));
    expect![[r#"
        before: started
        low: no run of priority -1 can start now: the pressure is elevated (queue), and until it falls runs of less than 0 are refused (overloaded); again after Some(4000) ms
        lower: no run of priority -7 can start now: the pressure is elevated (queue), and until it falls runs of less than 0 are refused (overloaded); again after Some(4000) ms
        it is nearly over: no run of priority -1 can start now: the pressure is elevated (queue), and until it falls runs of less than 0 are refused (overloaded); again after Some(100) ms
        one that is known: it was there
        as others: started
        as others, when it is critical: no run of priority 0 can start now: the pressure is critical (queue), and until it falls runs of less than 1 are refused (overloaded); again after Some(60000) ms
        high: started
        low, with another leader: no run of priority -1 can start now: the pressure is critical (queue), and until it falls runs of less than 1 are refused (overloaded); again after Some(60000) ms
        low, when it is over: started
    "#]].assert_eq(&said);
}

#[test]
fn w19_a_run_may_be_given_its_id_and_its_trace() {
    let mut world = World::new();
    let run = RunId::derive(START, 42);
    let trace: TraceContext = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse().unwrap();
    let request = StartRun { run: Some(run), ..start("article") };
    let reply = world.try_ask(WorkflowRequest::StartRun(request.clone()), Some(trace)).unwrap();
    let accepted: RunAccepted = reply.unwrap().read().unwrap();
    assert_eq!((accepted.run, accepted.trace_id.as_str()), (run, "4bf92f3577b34da6a3ce929d0e0e4736"));
    assert!(world.ask::<RunAccepted>(WorkflowRequest::StartRun(request)).unwrap().existing);
    let v4 = "4bf92f35-77b3-4da6-a3ce-929d0e0e4736".parse().unwrap();
    let rejection = world.ask::<RunAccepted>(WorkflowRequest::StartRun(StartRun { run: Some(v4), ..start("article") }));
    assert_eq!(rejection.unwrap_err().code, Code::InvalidRequest);
}

#[test]
fn a_start_that_makes_no_sense_is_refused() {
    let mut world = World::new();
    let mut ask = |request: StartRun| match world.ask::<RunAccepted>(WorkflowRequest::StartRun(request)) {
        Ok(_) => "accepted".to_owned(),
        Err(rejection) => rejection.to_string(),
    };
    let large = format!("{{\"a\":\"{}\"}}", "x".repeat(MAX_JSON_BYTES));
    let key = |key: &str| StartRun { key: Some(key.to_owned()), ..start("article") };
    let said = [
        ask(StartRun { input: Json::null(), ..start("article") }),
        ask(StartRun { input: json("[1]"), ..start("article") }),
        ask(StartRun { input: json("7"), ..start("article") }),
        ask(StartRun { input: json(&large), ..start("article") }),
        ask(key("")),
        ask(key("a\nb")),
        ask(key(&"x".repeat(256))),
        ask(key("ключ 1")),
    ];
    expect![[r#"
        accepted
        the input must be a JSON object (invalid_request)
        the input must be a JSON object (invalid_request)
        the input has 262152 bytes; at most 262144 are allowed: keep large inputs elsewhere and pass references (too_large)
        the key is not valid: it is empty (invalid_request)
        the key is not valid: it has control characters (invalid_request)
        the key is not valid: it has 256 bytes; at most 255 are allowed (invalid_request)
        accepted"#]].assert_eq(&said.join("\n"));
    world.transcript();
}

// ---- what is shown ---------------------------------------------------------------------------------------------------

#[test]
fn runs_are_listed_the_newest_first_and_by_pages() {
    let mut world = World::new();
    world.register(&workflow(&[("a", &[])]));
    let mut runs = Vec::new();
    for i in 0..6 {
        world.wait(1);
        let run = world.start(if i % 3 == 2 { "article" } else { "w" });
        if i % 2 == 0 {
            world.cancel(run, None).unwrap();
        }
        runs.push(run);
    }
    let mut list = |request: ListRuns| -> (Vec<usize>, RunList) {
        let list: RunList = world.ask(WorkflowRequest::ListRuns(request)).unwrap();
        (list.runs.iter().map(|run| runs.iter().position(|id| *id == run.run).unwrap()).collect(), list)
    };
    let (all, answer) = list(ListRuns::default());
    assert_eq!((all, answer.more), (vec![5, 4, 3, 2, 1, 0], false));
    assert_eq!(answer.counts, [(RunStatus::Running, 3), (RunStatus::Cancelled, 3)].into());
    let (page, answer) = list(ListRuns { limit: Some(4), ..ListRuns::default() });
    assert_eq!((page, answer.more), (vec![5, 4, 3, 2], true));
    let (page, answer) = list(ListRuns { limit: Some(4), before: Some(answer.runs[3].run), ..ListRuns::default() });
    assert_eq!((page, answer.more), (vec![1, 0], false));
    assert_eq!(list(ListRuns { status: Some(RunStatus::Running), ..ListRuns::default() }).0, [5, 3, 1]);
    assert_eq!(list(ListRuns { workflow: Some(name("article")), ..ListRuns::default() }).0, [5, 2]);
}

#[test]
fn a_finished_run_that_is_here_no_more_is_answered_from_its_document() {
    let mut world = World::new();
    world.check = false;
    world.register(&workflow(&[("a", &[])]));
    let run = world.start("w");
    let lease = world.assign(&task(run, "a", 1), "ann");
    world.report("ann", succeeded(lease, &task(run, "a", 1), "1")).unwrap();
    for _ in 0..256 {
        let run = world.start("w");
        world.cancel(run, None).unwrap();
    }
    assert!(world.processor.machine().run(run).is_none(), "it was to be forgotten");
    let view = world.view(run);
    assert_eq!((view.run, view.status), (run, RunStatus::Succeeded));
    let unknown = WorkflowRequest::GetRun(GetRun { run: RunId::derive(START, 99) });
    assert_eq!(world.ask::<baton_protocol::run::RunView>(unknown).unwrap_err().code, Code::UnknownRun);
    assert_eq!(world.report("ann", succeeded(lease, &task(run, "a", 1), "1")).unwrap_err().code, Code::StaleLease);
    // It is still listed, and not started or cancelled again.
    let again = world.ask::<RunAccepted>(WorkflowRequest::StartRun(StartRun { run: Some(run), ..start("w") })).unwrap();
    assert_eq!((again.existing, again.status), (true, RunStatus::Succeeded));
    assert_eq!(world.cancel(run, None).unwrap_err().code, Code::RunEnded);
    // A new leader keeps the documents of those that it has once more.
    world.documents.clear();
    world.lead();
    assert_eq!(world.documents.len(), 256);
    assert_eq!(*world.processor.machine(), world.fold());
}

#[test]
fn old_runs_are_forgotten_with_their_keys() {
    let mut state = crate::WorkflowManager::default();
    let stamp = |number| Stamp { number, at: START + number, seen: 0 };
    let definition = workflow(&[("a", &[])]).into();
    state.apply(stamp(1), &WorkflowRecord::WorkflowRegistered(WorkflowRegistered { version: 1, definition }));
    for i in 0..10_010u64 {
        let run = RunId::derive(START, i.into());
        let WorkflowRecord::RunStarted(record) = run_started(run, "w") else { unreachable!() };
        state.apply(stamp(i), &WorkflowRecord::RunStarted(RunStarted { key: Some(format!("k{i}")), ..record }));
        let finished = RunFinished { run, status: RunStatus::Cancelled, reason: None };
        state.apply(stamp(i), &WorkflowRecord::RunFinished(finished));
    }
    assert_eq!(state.keys.len(), 10_000);
    assert!(!state.keys.contains_key("k9") && state.keys.contains_key("k10"));
    assert_eq!(state.history.whole().count(), 256);
    assert_eq!(state.counts(), [(RunStatus::Cancelled, 10_010)].into());
    assert!(state.timers.next().is_none());
}

#[test]
fn spans_and_measurements_are_shown_with_the_records_they_are_of() {
    let mut world = World::new();
    world.register(&with_attempts(workflow(&[("a", &[])]), 2));
    world.effects.clear();
    let run = world.start("w");
    world.wait(50);
    let first = task(run, "a", 1);
    let lease = world.assign(&first, "ann");
    world.wait(100);
    world.report("ann", failed(lease, &first, "no", true)).unwrap();
    world.wait(1000);
    let second = task(run, "a", 2);
    let lease = world.assign(&second, "ann");
    world.wait(100);
    let trace = TraceContext { span: 7, ..TraceContext::of_run(run) };
    let report = WorkflowRequest::Report(id("ann"), succeeded(lease, &second, "1"));
    world.try_ask(report.clone(), Some(trace)).unwrap().unwrap();
    // A repeated report is not shown again.
    world.try_ask(report, Some(trace)).unwrap().unwrap();
    let mut text = String::new();
    for effect in &world.effects {
        text += &match effect {
            Effect::Span(span) => {
                assert_eq!(span.context.trace, run.as_u128());
                let names = [(run_span(run), "run"), (task_span(&first), "a/1"), (task_span(&second), "a/2")];
                let name = |span: u64| {
                    names
                        .iter()
                        .find(|(s, _)| *s == span)
                        .map_or(format!("{}", if span < 10 { span } else { 0 }), |(_, n)| (*n).into())
                };
                let attributes: Vec<_> = span
                    .attributes
                    .iter()
                    .map(|(key, value)| format!("{key}={}", value.replace(&run.to_string(), "RUN")))
                    .collect();
                format!(
                    "span {:?} {:?} {} in {} from +{} to +{} [{}] {:?}\n",
                    span.name,
                    span.kind,
                    name(span.context.span),
                    span.parent.map_or("none".into(), name),
                    span.start - START,
                    span.end - START,
                    attributes.join(" "),
                    span.error,
                )
            }
            Effect::Measure(measure) => {
                format!("measure {} {:?} {:?}\n", measure.metric, measure.labels, measure.value)
            }
            effect => panic!("{effect:?}"),
        };
    }
    expect![[r#"
        span "process run.start" Server 0 in run from +0 to +0 [messaging.system=nats messaging.message.conversation_id=RUN baton.run.id=RUN baton.workflow.name=w] None
        measure active_coordinations [] Set(1.0)
        span "process agent.report" Consumer 0 in a/1 from +150 to +150 [messaging.message.conversation_id=RUN baton.run.id=RUN baton.stage.name=a baton.attempt=1 baton.agent.id=ann messaging.system=nats] None
        span "stage a" Internal a/1 in run from +0 to +150 [messaging.message.conversation_id=RUN baton.run.id=RUN baton.stage.name=a baton.attempt=1 baton.agent.id=ann baton.outcome=failed] Some("no")
        measure stages_executed_total ["failed"] Add(1.0)
        measure coordination_efficiency_seconds ["assign"] Observe(0.05)
        span "process agent.report" Consumer 0 in a/2 from +1250 to +1250 [messaging.message.conversation_id=RUN baton.run.id=RUN baton.stage.name=a baton.attempt=2 baton.agent.id=ann messaging.system=nats] None
        span "stage a" Internal a/2 in run from +1150 to +1250 [messaging.message.conversation_id=RUN baton.run.id=RUN baton.stage.name=a baton.attempt=2 baton.agent.id=ann baton.outcome=succeeded] None
        measure stages_executed_total ["succeeded"] Add(1.0)
        measure coordination_efficiency_seconds ["assign"] Observe(0.0)
        span "invoke_workflow w" Internal run in none from +0 to +1250 [messaging.message.conversation_id=RUN baton.run.id=RUN baton.workflow.name=w baton.workflow.version=1 baton.outcome=succeeded] None
        measure workflows_executed_total ["w", "succeeded"] Add(1.0)
        measure coordination_overhead_seconds_total [] Add(1.05)
        measure coordination_efficiency_seconds ["run"] Observe(1.25)
        measure active_coordinations [] Set(0.0)
    "#]].assert_eq(&text);
}

#[test]
fn a_run_joins_the_trace_that_its_starter_brings() {
    let mut world = World::new();
    world.register(&workflow(&[("a", &[])]));
    let brought: TraceContext = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse().unwrap();
    let request = StartRun { trace: Some(brought), ..start("w") };
    let run = world.ask::<RunAccepted>(WorkflowRequest::StartRun(request)).unwrap().run;
    world.work(run, "a", "ann", 10);
    let spans: Vec<_> = world.spans().map(|span| (span.name.as_str(), span.parent)).collect();
    let (of_run, of_task) = (run_span(run), task_span(&task(run, "a", 1)));
    assert!(world.spans().all(|span| span.context.trace == brought.trace));
    assert_eq!(
        spans,
        [
            ("process run.start", Some(brought.span)),
            ("process agent.report", Some(of_task)),
            ("stage a", Some(of_run)),
            ("invoke_workflow w", Some(brought.span)),
        ]
    );
}

// ---- crashes ---------------------------------------------------------------------------------------------------------

/// A leader dies after each possible commit of a turn that is cut into single records; its successor finishes.
fn crashes(prepare: impl Fn(&mut World), act: impl Fn(&mut World), finish: impl Fn(&mut World)) -> Vec<String> {
    let ends = |world: &mut World| -> String {
        let list: RunList = world.ask(WorkflowRequest::ListRuns(ListRuns::default())).unwrap();
        list.runs.iter().map(|run| format!("{} {}/{} ", run.status, run.stages_ended, run.stages)).collect()
    };
    let mut results = Vec::new();
    for stores in 0.. {
        let mut world = World::new();
        prepare(&mut world);
        world.max_bytes = 1;
        world.stores = stores;
        act(&mut world);
        let died = world.stores == 0;
        world.lead();
        finish(&mut world);
        assert!(world.processor.machine().runs.is_empty(), "a run did not end after {stores} commits");
        let all = ListRuns { children: true, ..ListRuns::default() };
        let list: RunList = world.ask(WorkflowRequest::ListRuns(all)).unwrap();
        assert_eq!(world.documents.len(), list.runs.len(), "a run was not kept after {stores} commits");
        results.push(ends(&mut world));
        if !died {
            return results;
        }
    }
    unreachable!()
}

#[test]
fn a_cancellation_that_is_cut_in_half_is_finished_by_the_next_leader() {
    let results = crashes(
        |world| {
            world.register(&workflow(&[("a", &[]), ("b", &[]), ("c", &[])]));
            let run = world.start("w");
            world.assign(&task(run, "a", 1), "ann");
        },
        |world| {
            let run = *world.processor.machine().runs.keys().next().unwrap();
            world.try_ask(WorkflowRequest::CancelRun(baton_protocol::request::CancelRun { run, reason: None }), None);
        },
        |world| {
            // Who got no answer asks again.
            let list: RunList = world.ask(WorkflowRequest::ListRuns(ListRuns::default())).unwrap();
            world.cancel(list.runs[0].run, None).unwrap();
        },
    );
    assert_eq!(results, vec!["cancelled 0/3 "; 6]);
}

#[test]
fn a_start_that_is_cut_in_half_is_finished_by_the_next_leader() {
    let keyed = || StartRun { key: Some("k".into()), ..start("w") };
    let results = crashes(
        |world| {
            world.register(&workflow(&[("a", &[]), ("b", &[]), ("c", &[])]));
        },
        |world| {
            world.try_ask(WorkflowRequest::StartRun(keyed()), None);
        },
        |world| {
            let run = world.ask::<RunAccepted>(WorkflowRequest::StartRun(keyed())).unwrap().run;
            for stage in ["a", "b", "c"] {
                world.work(run, stage, "ann", 10);
            }
        },
    );
    assert_eq!(results, vec!["succeeded 3/3 "; 6]);
}

#[test]
fn a_failure_or_loss_that_is_cut_in_half_is_finished_by_the_next_leader() {
    let prepare = |world: &mut World| {
        world.register(&with_attempts(workflow(&[("a", &[]), ("b", &[]), ("c", &[])]), 1));
        world.agent("ann", "s1", "x");
        let run = world.start("w");
        for stage in ["a", "b", "c"] {
            world.assign(&task(run, stage, 1), "ann");
        }
    };
    let results = crashes(prepare, |world| world.leave("ann", LeftReason::Lost), |_| {});
    assert_eq!(results, vec!["failed 1/3 "; 6]);
    let report = |world: &mut World| {
        let run = *world.processor.machine().runs.keys().next().unwrap();
        (run, failed(LeaseId(2), &task(run, "a", 1), "no", false))
    };
    let results = crashes(
        prepare,
        |world| {
            let (_, report) = report(world);
            world.try_ask(WorkflowRequest::Report(id("ann"), report), None);
        },
        |world| {
            // Nothing of it was stored: the agent reports again.
            if !world.processor.machine().runs.is_empty() {
                let (_, report) = report(world);
                world.report("ann", report).unwrap();
            }
        },
    );
    assert_eq!(results, vec!["failed 1/3 "; 6]);
}

#[test]
fn a_time_out_that_is_cut_in_half_is_finished_by_the_next_leader() {
    let results = crashes(
        |world| {
            let mut definition = workflow(&[("a", &[]), ("b", &[])]);
            definition.timeout_ms = 60_000;
            world.register(&definition);
            world.start("w");
        },
        |world| world.wait(60_000),
        |world| world.wait(1),
    );
    assert_eq!(results, vec!["timed_out 0/2 "; 5]);
}

#[test]
fn an_end_that_is_cut_from_the_next_beginning_is_joined_by_the_next_leader() {
    let results = crashes(
        |world| {
            world.register(&with_attempts(workflow(&[("a", &[]), ("b", &["a"])]), 2));
            world.agent("ann", "s1", "x");
            let run = world.start("w");
            world.assign(&task(run, "a", 1), "ann");
        },
        // A retry at once: `stage_ended` and `stage_ready` in two commits.
        |world| world.leave("ann", LeftReason::Lost),
        |world| {
            world.wait(0);
            let run = *world.processor.machine().runs.keys().next().unwrap();
            let lease = world.assign(&task(run, "a", 2), "bob");
            world.report("bob", succeeded(lease, &task(run, "a", 2), "1")).unwrap();
            world.work(run, "b", "bob", 10);
        },
    );
    assert_eq!(results, vec!["succeeded 2/2 "; 4]);
}

#[test]
fn records_of_others_that_fit_nothing_do_nothing() {
    let mut world = World::new();
    world.register(&workflow(&[("a", &[])]));
    let run = world.start("w");
    world.transcript();
    let assigned = |task, agent: &str| Assigned {
        task,
        agent: id(agent),
        resources: std::collections::BTreeMap::new(),
        pools: std::collections::BTreeMap::new(),
        beside: None,
    };
    world.resource(
        "lease.assign",
        vec![
            ResourceRecord::Assigned(assigned(task(run, "a", 2), "ann")),
            ResourceRecord::Assigned(assigned(task(run, "z", 1), "ann")),
            ResourceRecord::Assigned(assigned(task(RunId::derive(START, 99), "a", 1), "ann")),
            ResourceRecord::Assigned(assigned(task(run, "a", 1), "ann")),
            ResourceRecord::Assigned(assigned(task(run, "a", 1), "bob")),
        ],
    );
    world.leave("bob", LeftReason::Lost);
    world.leave("eve", LeftReason::Lost);
    world.decline(LeaseId(1), &task(run, "a", 1), "ann", "not this one");
    world.report("ann", succeeded(LeaseId(4), &task(run, "a", 1), "1")).unwrap();
    world.resource("lease.assign", vec![ResourceRecord::Assigned(assigned(task(run, "a", 1), "ann"))]);
    check(
        &mut world,
        &expect![[r#"
        4.0        +0ms  assigned a/2 to ann as 1  (request lease.assign)
        4.1        +0ms  assigned z/1 to ann as 2  (request lease.assign)
        4.2        +0ms  assigned a/1 to ann as 3  (request lease.assign)
        4.3        +0ms  assigned a/1 to ann as 4  (request lease.assign)
        4.4        +0ms  assigned a/1 to bob as 5  (request lease.assign)
        5.0        +0ms  agent_left bob  (request agent.leave)
        6.0        +0ms  agent_left eve  (request agent.leave)
        7.0        +0ms  lease_ended 1 of ann: not this one  (request agent.decline)
        8.0        +0ms  stage_ended a/1 succeeded  (request agent.report)
        8.1        +0ms  run_finished succeeded  (request agent.report)
        9.0        +0ms  assigned a/1 to ann as 9  (request lease.assign)
    "#]],
    );
}

#[test]
fn records_of_its_own_that_fit_nothing_do_nothing() {
    let mut world = World::new();
    world.register(&workflow(&[("a", &[]), ("b", &["a"])]));
    let run = world.start("w");
    let first = task(run, "a", 1);
    let lease = world.assign(&first, "ann");
    world.report("ann", failed(lease, &first, "no", true)).unwrap();
    world.wait(1000);
    let lease = world.assign(&task(run, "a", 2), "ann");
    let records = |world: &World| -> Vec<WorkflowRecord> { world.own_records().collect() };
    let again = |world: &World, records: &[WorkflowRecord]| {
        let mut state = world.processor.machine().clone();
        for record in records {
            state.apply(Stamp { number: 1000, at: world.now, seen: 0 }, record);
        }
        assert_eq!(state, *world.processor.machine());
    };
    // While the second attempt runs, all that was.
    again(&world, &records(&world));
    world.report("ann", succeeded(lease, &task(run, "a", 2), "1")).unwrap();
    world.work(run, "b", "ann", 10);
    // When the run has ended, all that was; and what never was.
    again(&world, &records(&world));
    let mut elsewhere = records(&world);
    for record in &mut elsewhere {
        match record {
            WorkflowRecord::WorkflowRegistered(record) => record.version += 5,
            WorkflowRecord::RunStarted(record) => {
                record.run = RunId::derive(START, 99);
                record.version = 7;
            }
            WorkflowRecord::StageReady(record) => record.task.run = RunId::derive(START, 99),
            WorkflowRecord::StageEnded(record) => record.task.stage = "z".parse().unwrap(),
            WorkflowRecord::StageSkipped(record) => record.run = RunId::derive(START, 99),
            WorkflowRecord::StageExpanded(record) => record.run = RunId::derive(START, 99),
            WorkflowRecord::StageWaits(record) => record.run = RunId::derive(START, 99),
            WorkflowRecord::Signalled(record) => record.run = RunId::derive(START, 99),
            WorkflowRecord::StageCached(record) => record.run = RunId::derive(START, 99),
            WorkflowRecord::StageCommitted(record) => record.task.run = RunId::derive(START, 99),
            WorkflowRecord::CopyEnded(record) => record.task.run = RunId::derive(START, 99),
            WorkflowRecord::RunFinished(record) => record.run = RunId::derive(START, 99),
            WorkflowRecord::RunPaused(record) => record.run = RunId::derive(START, 99),
            WorkflowRecord::RunResumed(record) => record.run = RunId::derive(START, 99),
            WorkflowRecord::RunsForgotten(record) => record.runs = vec![RunId::derive(START, 99)],
            WorkflowRecord::ScheduleSet(_) => panic!("it made no schedule"),
            WorkflowRecord::ScheduleRemoved(record) => record.name = "nobody".parse().unwrap(),
            WorkflowRecord::TriggerSet(_) | WorkflowRecord::EventRaised(_) => panic!("it made no trigger"),
            WorkflowRecord::TriggerRemoved(record) => record.name = "nobody".parse().unwrap(),
            WorkflowRecord::TriggerFired(record) => record.name = "nobody".parse().unwrap(),
            WorkflowRecord::ScheduleFired(record) => record.name = "nobody".parse().unwrap(),
        }
    }
    again(&world, &elsewhere);
}

#[test]
fn a_report_that_names_a_lease_not_read_yet_waits_for_it() {
    let mut world = World::new();
    world.register(&workflow(&[("a", &[])]));
    let run = world.start("w");
    let report = WorkflowRequest::Report(id("ann"), succeeded(LeaseId(1), &task(run, "a", 1), "1"));
    assert_eq!(world.try_ask(report.clone(), None), None);
    world.assign(&task(run, "a", 1), "ann");
    assert_eq!(world.view(run).status, RunStatus::Succeeded);
    let rejected =
        world.try_ask(WorkflowRequest::Report(id("ann"), succeeded(LeaseId(1), &task(run, "b", 1), "1")), None);
    let rejected: Rejection = rejected.unwrap().unwrap_err();
    assert_eq!(rejected.code, Code::StaleLease);
    assert!(world.try_ask(report, None).unwrap().is_ok());
}

#[test]
fn several_reports_in_one_message_are_taken_each_for_itself() {
    let mut world = World::new();
    world.register(&workflow(&[("a", &[]), ("b", &[]), ("c", &["a", "b"])]));
    let run = world.start("w");
    let (a, b) = (task(run, "a", 1), task(run, "b", 1));
    let (lease_a, lease_b) = (world.assign(&a, "ann"), world.assign(&b, "ann"));
    let reports = vec![
        succeeded(lease_a, &a, "1"),
        succeeded(LeaseId(lease_b.0 - 1), &b, "2"),
        succeeded(lease_b, &b, "3"),
        succeeded(lease_a, &a, "1"),
    ];
    let before = world.log.len();
    let answered: ReportsAnswered = world.ask(WorkflowRequest::Reports(id("ann"), Reports { reports })).unwrap();
    let what = answered.answers.iter().map(|answer| match answer {
        ReportAnswer::Stored(stored) => format!("stored {}", stored.lease),
        ReportAnswer::Refused(rejection) => rejection.code.as_str().to_owned(),
    });
    let (stored_a, stored_b) = (format!("stored {lease_a}"), format!("stored {lease_b}"));
    assert_eq!(what.collect::<Vec<_>>(), [&stored_a, "stale_lease", &stored_b, &stored_a]);
    // Both ends and what may run now, in one commit.
    assert_eq!(world.log.len(), before + 1);
    let status: Vec<_> = world.view(run).stages.iter().map(|stage| stage.status).collect();
    assert_eq!(status, [StageStatus::Succeeded, StageStatus::Succeeded, StageStatus::Ready]);
}

#[test]
fn r14_a_task_that_is_handed_over_is_the_takers_under_another_lease_and_in_the_same_time() {
    let mut world = World::new();
    world.register(&workflow(&[("a", &[])]));
    for agent in ["ann", "bob"] {
        world.agent(agent, "s1", "x");
    }
    let run = world.start("w");
    let task = task(run, "a", 1);
    let given = world.assign(&task, "ann");
    world.wait(1_000);
    let taken = world.hand_over(given, &task, "ann", "bob");
    let refused = world.report("ann", succeeded(given, &task, "1")).unwrap_err();
    assert_eq!(refused.code, Code::StaleLease, "{refused}");
    // A handoff of what is not held does nothing, and neither does the end of who gave it.
    let none = world.hand_over(given, &task, "ann", "ann");
    world.leave("ann", LeftReason::Lost);
    assert_eq!(world.report("ann", succeeded(none, &task, "1")).unwrap_err().code, Code::StaleLease);
    world.wait(1_000);
    world.report("bob", succeeded(taken, &task, "2")).unwrap();
    let view = world.view(run);
    let attempt = &view.stages[0].attempts[0];
    let took = attempt.ended_at.zip(attempt.assigned_at).map(|(ended, assigned)| ended - assigned);
    assert_eq!((attempt.agent.as_ref(), attempt.lease, took), (Some(&id("bob")), Some(taken), Some(2_000)));
    assert_eq!(view.status, RunStatus::Succeeded);

    // When the taker is gone, the attempt is lost.
    let run = world.start("w");
    let task = harness::task(run, "a", 1);
    let given = world.assign(&task, "bob");
    world.agent("ann", "s2", "x");
    world.hand_over(given, &task, "bob", "ann");
    world.leave("ann", LeftReason::Lost);
    let view = world.view(run);
    assert_eq!(view.stages[0].attempts[0].outcome, Some(baton_protocol::record::Outcome::Lost));
}
