//! A fleet as processes: a broker, the services, agents; each can be killed and started again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use baton_client::{Client, ConnectSettings};
use baton_protocol::request::{AgentStatus, ListAgents, Role, StartRun};
use baton_protocol::run::RunView;
use baton_protocol::{AgentId, Json, RunId, Service, StageName, WorkflowName};
use baton_testkit::{NatsCluster, NatsServer, Process, baton_binary, python_with_nats, wait_for};
use tempfile::TempDir;

/// How long anything may take before a test gives up on it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// What a fleet talks through.
pub(crate) trait Broker {
    /// What `--server` is given.
    fn urls(&self) -> String;
}

impl Broker for NatsServer {
    fn urls(&self) -> String {
        self.client_url()
    }
}

impl Broker for NatsCluster {
    fn urls(&self) -> String {
        self.client_urls()
    }
}

/// A broker, services, agents, and a client.
pub(crate) struct Fleet<B = NatsServer> {
    pub(crate) nats: B,
    pub(crate) client: Client,
    processes: BTreeMap<String, Process>,
    pub(crate) folder: TempDir,
    environment: Vec<(String, String)>,
}

/// The four stock agents of a fleet.
pub(crate) const STOCK: [&str; 4] = ["research", "writing", "editing", "verification"];

impl Fleet {
    /// What starts an agent that is written in Python.
    pub(crate) async fn python(&self, file: &str, code: &str) -> impl Fn() -> Process + use<> {
        let file = self.folder.path().join(file);
        std::fs::write(&file, code).unwrap();
        let (python, url) = (python_with_nats().await, self.nats.client_url());
        move || Process::command(&python.interpreter).arg(&file).envs(&python.env).env("NATS_URL", &url).start()
    }

    /// A broker and a client, nothing else.
    pub(crate) async fn bare() -> Self {
        Self::on(NatsServer::start().await).await
    }

    /// A broker and the three services of the log.
    pub(crate) async fn services() -> Self {
        let mut fleet = Self::bare().await;
        fleet.start_services().await;
        fleet
    }

    /// With a stock agent of each kind, over `sources()`.
    pub(crate) async fn stocked() -> Self {
        let mut fleet = Self::services().await;
        fleet.stock().await;
        fleet
    }
}

impl<B: Broker> Fleet<B> {
    /// A client of a broker, nothing else.
    pub(crate) async fn on(nats: B) -> Self {
        let settings = ConnectSettings::server(nats.urls());
        let client = Client::connect(&settings).await.unwrap().with_deadline(PATIENCE);
        let folder = tempfile::tempdir().unwrap();
        let environment = vec![
            // Short leases, so that a dead agent is seen soon.
            ("BATON_AGENTS__LEASE_MS".to_owned(), "2000".to_owned()),
            ("BATON_AGENTS__HEARTBEAT_MS".to_owned(), "300".to_owned()),
            ("BATON_LEADER__TTL_MS".to_owned(), "1500".to_owned()),
        ];
        Self { nats, client, processes: BTreeMap::new(), folder, environment }
    }

    /// Starts a stock agent of each kind, over `sources()`.
    pub(crate) async fn stock(&mut self) {
        self.write_sources();
        for role in STOCK {
            self.start_stock(role);
        }
        self.wait_for_agents(STOCK.len()).await;
    }

    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    pub(crate) async fn start_services(&mut self) {
        for service in Service::WRITERS {
            self.start_service(service.as_str(), service);
        }
        for service in Service::WRITERS {
            self.wait_for_leader(service).await;
        }
    }

    /// Starts the built binary under a name.
    pub(crate) fn start(&mut self, name: &str, arguments: &[&str]) {
        let mut process = Process::command(baton_binary())
            .args(arguments)
            .args(["--server", &self.nats.urls()])
            .env("HOME", self.folder.path())
            .env_remove("NATS_URL")
            .env_remove("NATS_CONTEXT")
            .current_dir(self.folder.path());
        for (name, value) in &self.environment {
            process = process.env(name, value);
        }
        self.processes.insert(name.to_owned(), process.start());
    }

    pub(crate) fn start_service(&mut self, name: &str, service: Service) {
        self.start(name, &["service", service.as_str()]);
    }

    pub(crate) fn start_stock(&mut self, role: &str) {
        let sources = self.sources();
        self.start(role, &["agent", "stock", role, "--sources", sources.to_str().unwrap()]);
    }

    pub(crate) fn process(&mut self, name: &str) -> &mut Process {
        self.processes.get_mut(name).unwrap()
    }

    /// SIGKILL.
    pub(crate) async fn kill(&mut self, name: &str) {
        self.processes.remove(name).unwrap().kill().await;
    }

    pub(crate) async fn wait_for_leader(&self, service: Service) {
        let client = self.client.clone();
        wait_for(&format!("a leading {service}"), PATIENCE, || {
            let client = client.clone();
            async move {
                let statuses = client.statuses(service).await.unwrap_or_default();
                statuses.iter().any(|status| matches!(status.role, Role::Leading | Role::Serving))
            }
        })
        .await;
    }

    pub(crate) async fn wait_for_agents(&self, count: usize) {
        let client = self.client.clone();
        wait_for(&format!("{count} agents"), PATIENCE, || {
            let client = client.clone();
            async move {
                let agents = client.list_agents(&ListAgents::default()).await.map(|list| list.agents);
                agents.is_ok_and(|agents| agents.iter().filter(|a| a.status != AgentStatus::Gone).count() >= count)
            }
        })
        .await;
    }

    pub(crate) async fn wait_for_agent(&self, agent: &str, status: AgentStatus) {
        let (client, agent) = (self.client.clone(), AgentId::new(agent).unwrap());
        wait_for(&format!("{agent} is {status:?}"), PATIENCE, || {
            let (client, agent) = (client.clone(), agent.clone());
            async move {
                let list = client.list_agents(&ListAgents { gone: true, ..ListAgents::default() }).await;
                list.is_ok_and(|list| list.agents.iter().any(|a| a.agent == agent && a.status == status))
            }
        })
        .await;
    }

    pub(crate) fn sources(&self) -> PathBuf {
        self.folder.path().join("sources")
    }

    /// Texts to research in: a few paragraphs each on one subject.
    pub(crate) fn write_sources(&self) {
        write_sources(&self.sources());
    }

    pub(crate) async fn start_run(&self, workflow: &str, input: &serde_json::Value) -> RunId {
        let start = StartRun::new(WorkflowName::new(workflow).unwrap(), Json::of(input).unwrap());
        self.client.start_run(start).await.unwrap().run
    }

    /// Starts an article on the sources.
    pub(crate) async fn start_article(&self) -> RunId {
        let sources = self.sources();
        self.start_run("article", &serde_json::json!({ "topic": TOPIC, "sources": sources })).await
    }

    pub(crate) async fn wait_for_end(&self, run: RunId) -> RunView {
        let client = self.client.clone();
        wait_for(&format!("the end of run {run}"), PATIENCE, || {
            let client = client.clone();
            async move {
                match client.get_run(run).await {
                    Ok(view) if view.status.is_end() => Ok(view),
                    Ok(view) => Err(format!("{view:?}")),
                    Err(error) => Err(error.to_string()),
                }
            }
        })
        .await
    }

    /// Waits until a stage has an agent, and tells which.
    pub(crate) async fn wait_for_assignment(&self, run: RunId, stage: &str) -> AgentId {
        let (client, stage) = (self.client.clone(), StageName::new(stage).unwrap());
        wait_for(&format!("{stage} is assigned"), PATIENCE, || {
            let (client, stage) = (client.clone(), stage.clone());
            async move {
                let view = client.get_run(run).await.ok()?;
                let stage = view.stages.iter().find(|s| s.name == stage)?;
                stage.attempts.last()?.agent.clone()
            }
        })
        .await
    }

    /// What the built binary prints for some arguments, which must succeed.
    pub(crate) async fn baton(&self, arguments: &[&str]) -> String {
        let (code, stdout, stderr) = self.try_baton(arguments).await;
        assert_eq!(code, Some(0), "baton {arguments:?}\n{stdout}\n{stderr}");
        stdout
    }

    pub(crate) async fn try_baton(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        let mut process = Process::command(baton_binary())
            .args(arguments)
            .args(["--server", &self.nats.urls()])
            .env("HOME", self.folder.path())
            .current_dir(self.folder.path())
            .start();
        let status = process.wait_exit(PATIENCE).await;
        (status.code(), process.stdout(), process.stderr())
    }
}

/// What the tests write about.
pub(crate) const TOPIC: &str = "leases and fencing tokens";

/// Writes a small library on the topic.
pub(crate) fn write_sources(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    let texts = [
        (
            "leases.md",
            "# Leases\n\nA lease gives one agent the right to do one task for a limited time. The holder of a lease must \
             renew it before it expires, or the task is given to another agent. Leases let a system recover from agents \
             that die without a word. A short lease finds dead agents sooner, but it costs more heartbeats. A lease that \
             has expired must never be used again by its old holder.\n\n## Expiry\n\nWhen a lease expires, the resource \
             manager frees what the agent held. The task then gets a new attempt under a new lease. The old holder may \
             still be running, because a pause of the process looks like death from outside.\n",
        ),
        (
            "fencing.md",
            "# Fencing tokens\n\nA fencing token is a number that grows with every lease that is granted. A storage \
             system that remembers the largest fencing token can refuse writes from a holder whose lease has expired. \
             Fencing tokens protect against paused processes, which wake up and believe that they still hold the \
             lease. Without fencing tokens, a lease alone does not make a distributed lock safe.\n\n## Numbers\n\nThe \
             number of the record that granted a lease is a good fencing token. It only grows, and anyone who reads the \
             log can check it.\n",
        ),
        (
            "heartbeats.txt",
            "Heartbeats tell the resource manager that an agent is alive. An agent that misses its heartbeats for the \
             time of a lease is counted as lost. The answer to a heartbeat says which leases the agent should hold. A \
             lost assignment therefore heals within one heartbeat.\n",
        ),
        (
            "gardening.md",
            "# Gardening\n\nTomatoes need a warm and sunny place. Water them in the morning and never on the leaves. \
             Strawberries like light soil and a thick layer of straw.\n",
        ),
    ];
    for (name, text) in texts {
        std::fs::write(folder.join(name), text).unwrap();
    }
}
