//! Runs instances of WfFormat through Baton, and checks that the order of their stages kept to every edge.
//!
//! `cargo run --release -p baton-tests --example instances -- FOLDER [SCALE]`
//!
//! It starts a nats-server, the three services as processes, and four agents that sleep; imports every `.json` of the folder
//! with `baton workflow import`, and runs all of them at the same time. SCALE (0.0002 if none is given) multiplies the
//! runtimes. At the end it says of each how many tasks and edges it had, and how long it took. It fails at the first edge
//! that was not kept, and at a run that does not succeed.

#[path = "../end_to_end/order.rs"]
mod order;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use baton_client::{Client, ConnectSettings};
use baton_protocol::request::{GetWorkflow, ListAgents, Role, StartRun};
use baton_protocol::run::RunStatus;
use baton_protocol::{Json, Service, WorkflowName};
use baton_testkit::{NatsServer, Process, baton_binary, wait_for};
use baton_wfformat::Instance;
use order::Order;

const PATIENCE: Duration = Duration::from_secs(300);
const AGENTS: usize = 4;

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("the folder can be read");
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "json"));
    files.sort();
    files
}

async fn until_ready(client: &Client) {
    for service in Service::WRITERS {
        wait_for("a leader", PATIENCE, || async {
            client.statuses(service).await.is_ok_and(|all| all.iter().any(|status| status.role == Role::Leading))
        })
        .await;
    }
}

/// Runs a workflow to its end, and says what it came to.
async fn run(client: Client, name: WorkflowName, instance: Instance) -> String {
    let request = StartRun::new(name.clone(), Json::of(&serde_json::json!({})).expect("JSON"));
    let run = client.start_run(request).await.expect("started").run;
    let order = Order::of(&client, run).await;
    let view = client.get_run(run).await.expect("the run");
    assert_eq!(view.status, RunStatus::Succeeded, "{name}: {:?}", view.reason);
    let request = GetWorkflow { name: name.clone(), version: Some(view.version) };
    let definition = client.get_workflow(&request).await.expect("the workflow").definition;
    assert_eq!(definition.stages.len(), instance.tasks.len(), "{name}");
    let names: std::collections::BTreeMap<&str, &str> = definition
        .stages
        .iter()
        .map(|stage| (stage.params["task"].as_str().expect("an id"), stage.name.as_str()))
        .collect();
    let stage = |task: usize| names[instance.tasks[task].id.as_str()];
    let edges =
        instance.tasks.iter().enumerate().flat_map(|(to, task)| task.parents.iter().map(move |from| (*from, to)));
    let kept = order.check(edges.map(|(from, to)| (stage(from), stage(to))));
    assert_eq!(kept, instance.edges(), "{name}");
    let took = view.ended_at.unwrap_or_default() - view.started_at;
    format!("{name:<50} {:>5} tasks {kept:>6} edges kept {took:>8} ms", instance.tasks.len())
}

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let folder = PathBuf::from(arguments.next().expect("FOLDER"));
    let scale = arguments.next().unwrap_or_else(|| "0.0002".to_owned());
    let nats = NatsServer::start().await;
    let url = nats.client_url();
    let start = |arguments: &[&str]| {
        let command = Process::command(baton_binary()).args(arguments).args(["--server", &url]);
        command.env("BATON_TELEMETRY__LOG_FILTER", "warn").start()
    };
    let _services = Service::WRITERS.map(|service| start(&["service", service.as_str()]));
    let client = Client::connect(&ConnectSettings::server(&url)).await.expect("a client").with_deadline(PATIENCE);
    until_ready(&client).await;

    let mut workflows = Vec::new();
    for file in files(&folder) {
        let instance = baton_wfformat::open(&file).unwrap_or_else(|error| panic!("{error}"));
        let path = file.to_str().expect("a path in UTF-8");
        let mut import = start(&["workflow", "import", path, "--scale", &scale, "--register", "--json"]);
        import.wait_success(PATIENCE).await;
        let view: serde_json::Value = serde_json::from_str(&import.stdout()).expect("JSON");
        let name: WorkflowName = view["definition"]["name"].as_str().expect("a name").parse().expect("a name");
        workflows.push((name, instance));
    }
    let mut kinds = std::collections::BTreeSet::new();
    for (name, _) in &workflows {
        let request = GetWorkflow { name: name.clone(), version: None };
        let definition = client.get_workflow(&request).await.expect("the workflow").definition;
        kinds.extend(definition.stages.iter().map(|stage| stage.agent_type.to_string()));
    }
    let count = AGENTS.to_string();
    let mut sleep = vec!["agent", "sleep", "--count", &count, "--slots", "64"];
    sleep.extend(kinds.iter().map(String::as_str));
    let _agents = start(&sleep);
    wait_for("the agents", PATIENCE, || async {
        client.list_agents(&ListAgents::default()).await.is_ok_and(|list| list.agents.len() == AGENTS)
    })
    .await;

    let since = Instant::now();
    let runs = workflows.into_iter().map(|(name, instance)| tokio::spawn(run(client.clone(), name, instance)));
    for run in runs.collect::<Vec<_>>() {
        println!("{}", run.await.expect("it went well"));
    }
    println!("all of them in {:.1} s", since.elapsed().as_secs_f64());
}
