//! Building an agent and running it.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use baton_client::{Client, ConnectError, ConnectSettings, Connection};
use baton_protocol::request::{HandoffOffer, RegisterAgent, Report};
use baton_protocol::trace::Span;
use baton_protocol::{AgentId, Amount, Capability, Json, NameError, Rejection, ResourceName, Resources};
use futures::FutureExt;
use serde_json::Value;
use uuid::Uuid;

use crate::keeper::{Keeper, Limits};
use crate::lease::Leases;
use crate::messages::{Messages, Options};
use crate::output::TaskResult;
use crate::speech::Voice;
use crate::task::Task;

/// Takes the spans of an agent's work, to be exported.
pub type Spans = Arc<dyn Fn(Span) + Send + Sync>;

/// Is told what became of each report: that it is stored, or why it was refused.
pub type Told = Arc<dyn Fn(&Report, Result<(), &Rejection>) + Send + Sync>;

/// Decides on a task that another agent offers: what the giver should know of it, or why not.
pub type Takes = Arc<dyn Fn(&HandoffOffer) -> Result<Json, String> + Send + Sync>;

/// What does a task.
pub(crate) type Handler = Arc<dyn Fn(Task) -> Pin<Box<dyn Future<Output = TaskResult> + Send>> + Send + Sync>;

/// Why an agent could not start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// A name that is not one.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A capability's metadata must be an object.
    #[error("the metadata of the capability {0:?} is not a JSON object")]
    Metadata(String),
    /// An agent without a slot could do nothing.
    #[error("an agent needs at least one slot")]
    NoSlots,
    /// There is no connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The resource-manager does not take the agent.
    #[error("the agent {agent} was not registered: {rejection}")]
    Refused {
        /// The agent.
        agent: AgentId,
        /// Why.
        rejection: Rejection,
    },
    /// Another process has registered under this agent's id; what this one did belongs to that one now.
    #[error("another process has registered as the agent {0}: this one stops, its leases have ended")]
    Replaced(AgentId),
    /// The agent failed so many tasks that it was asked to begin anew, and it [does](Builder::restarts). What it had in hand is
    /// done, and it has said goodbye: run it again as another session, or end the process so that whoever watches over it
    /// starts it again.
    #[error("the agent {agent} was asked to begin anew: {reason}")]
    RestartAsked {
        /// The agent.
        agent: AgentId,
        /// Why.
        reason: String,
    },
    /// The broker forbids what an agent must do.
    #[error(
        "the broker forbids the agent {agent} what it needs: {why}. It must be allowed to publish to \
             baton.agent.{agent}.>, and to subscribe to baton.to.{agent}.> and to its inbox (and for messages of other agents \
             to what docs/messages.md lists)"
    )]
    Forbidden {
        /// The agent.
        agent: AgentId,
        /// What the broker said.
        why: String,
    },
    /// The connection is closed, or never came to be.
    #[error("the connection to the broker has been closed: {0}")]
    Closed(String),
}

/// An agent to be.
#[must_use]
#[derive(Clone)]
pub struct Builder {
    id: String,
    agent_type: String,
    capabilities: Vec<(String, Value)>,
    resources: Vec<(String, Amount)>,
    slots: u32,
    priority: i32,
    restarts: bool,
    grace: Duration,
    patience: Duration,
    spans: Option<Spans>,
    told: Option<Told>,
    takes: Option<Takes>,
    settings: ConnectSettings,
    connection: Option<Connection>,
}

impl Builder {
    /// Something it can do besides its type, with metadata (an object).
    pub fn capability(mut self, name: impl Into<String>, metadata: impl Into<Value>) -> Self {
        self.capabilities.push((name.into(), metadata.into()));
        self
    }

    /// A resource that it has, and tasks may need.
    pub fn resource(mut self, name: impl Into<String>, amount: impl Into<Amount>) -> Self {
        self.resources.push((name.into(), amount.into()));
        self
    }

    /// How many tasks it does at a time: 1 unless given.
    pub fn slots(mut self, slots: u32) -> Self {
        self.slots = slots;
        self
    }

    /// Where several agents could do a task, the one with the larger priority is preferred: 0 unless given.
    pub fn priority(mut self, priority: i32) -> Self {
        self.priority = priority;
        self
    }

    /// How long the work in hand may take once the agent is to stop: 30 seconds unless given.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// How long a handler may go on after its task was cancelled or has timed out: 10 seconds unless given.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Lets the agent end when it is asked to begin anew, because it has failed again and again: [`Agent::run`] gives
    /// [`AgentError::RestartAsked`], when what it has in hand is done. Whoever runs it starts it again, or ends the process and has
    /// it started again from outside. Without this it goes on as it is.
    pub fn restarts(mut self) -> Self {
        self.restarts = true;
        self
    }

    /// Where spans go: one for each task, and those that handlers add with [`Task::span`].
    pub fn spans(mut self, spans: Spans) -> Self {
        self.spans = Some(spans);
        self
    }

    /// Who is told what became of each report, for an agent that keeps books of its own. A report that is never answered
    /// because the lease has ended meanwhile is not told of.
    pub fn told(mut self, told: Told) -> Self {
        self.told = Some(told);
        self
    }

    /// Decides which tasks are taken that other agents offer ([`Task::hand_over`]): all for which there is room, unless this is
    /// given. It should answer at once.
    pub fn takes(mut self, takes: impl Fn(&HandoffOffer) -> Result<Json, String> + Send + Sync + 'static) -> Self {
        self.takes = Some(Arc::new(takes));
        self
    }

    /// How to connect; what is left out there is found in the surroundings.
    pub fn settings(mut self, settings: ConnectSettings) -> Self {
        self.settings = settings;
        self
    }

    /// Uses a connection that is there, which may be shared with other agents.
    pub fn connection(mut self, connection: Connection) -> Self {
        self.connection = Some(connection);
        self
    }

    /// Connects to the broker. Nobody knows of the agent before it is run.
    pub async fn connect(self) -> Result<Agent, AgentError> {
        let id = AgentId::new(&self.id)?;
        let registration = self.registration()?;
        let connection = match self.connection {
            Some(connection) => connection,
            None => {
                let mut settings = self.settings;
                settings.name.get_or_insert_with(|| format!("baton-agent-{id}"));
                Connection::open(&settings).await?
            }
        };
        let client = Client::new(connection.nats.clone()).with_source(id.as_str());
        let limits = Limits { restarts: self.restarts, grace: self.grace, patience: self.patience };
        let (spans, told, takes, messages) = (self.spans, self.told, self.takes, OnceLock::new());
        Ok(Agent { id, registration, connection, client, limits, spans, told, takes, messages })
    }

    fn registration(&self) -> Result<RegisterAgent, AgentError> {
        let mut capabilities = BTreeMap::new();
        for (name, metadata) in &self.capabilities {
            let metadata = match metadata {
                Value::Object(metadata) => metadata.clone().into_iter().collect(),
                Value::Null => BTreeMap::new(),
                _ => return Err(AgentError::Metadata(name.clone())),
            };
            capabilities.insert(Capability::new(name)?, metadata);
        }
        let mut resources = Resources::new();
        for (name, amount) in &self.resources {
            resources.insert(ResourceName::new(name)?, *amount);
        }
        if self.slots == 0 {
            return Err(AgentError::NoSlots);
        }
        Ok(RegisterAgent {
            session: Uuid::now_v7().to_string(),
            agent_type: Capability::new(&self.agent_type)?,
            capabilities,
            resources,
            slots: self.slots,
            priority: self.priority,
            batches: true,
        })
    }
}

/// An agent with a connection, ready to run.
pub struct Agent {
    id: AgentId,
    registration: RegisterAgent,
    connection: Connection,
    client: Client,
    limits: Limits,
    spans: Option<Spans>,
    told: Option<Told>,
    takes: Option<Takes>,
    messages: OnceLock<Messages>,
}

impl Agent {
    /// An agent with that id, which mainly does that: the `agent_type` of the stages it is given.
    pub fn builder(id: impl Into<String>, agent_type: impl Into<String>) -> Builder {
        Builder {
            id: id.into(),
            agent_type: agent_type.into(),
            capabilities: Vec::new(),
            resources: Vec::new(),
            slots: 1,
            priority: 0,
            restarts: false,
            grace: Duration::from_secs(30),
            patience: Duration::from_secs(10),
            spans: None,
            told: None,
            takes: None,
            settings: ConnectSettings::default(),
            connection: None,
        }
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> &AgentId {
        &self.id
    }

    /// Its connection, for what it has to ask of Baton.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// What it takes of pools and locks, outside of tasks. It is held as long as the agent lives, at the most.
    #[must_use]
    pub fn leases(&self) -> Leases {
        Leases::of_agent(self.id.clone(), self.client.clone(), None)
    }

    /// What it says to other agents and hears of them. To be taken before the agent is run, and good for as long as anybody
    /// has it.
    #[must_use]
    pub fn messages(&self) -> Messages {
        let new = || Messages::new(&self.connection, self.id.clone(), Options::default());
        self.messages.get_or_init(new).clone()
    }

    /// Registers and does tasks until Ctrl-C or SIGTERM, and finishes those in hand; a second signal cuts that short.
    pub async fn run<H, F>(self, handler: H) -> Result<(), AgentError>
    where
        H: Fn(Task) -> F + Send + Sync + 'static,
        F: Future<Output = TaskResult> + Send + 'static,
    {
        let mut signals = Signals::listen();
        let (sender, receiver) = tokio::sync::watch::channel(0u32);
        let count = async move {
            loop {
                signals.next().await;
                sender.send_modify(|signals| *signals += 1);
            }
        };
        let after = |number| {
            let mut signals = receiver.clone();
            async move {
                if signals.wait_for(|signals| *signals >= number).await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        let (stop, hurry) = (after(1), after(2));
        tokio::select! {
            ended = self.drive(handler, stop, hurry) => ended,
            never = count => never,
        }
    }

    /// Registers and does tasks until `shutdown` is ready, and finishes those in hand, for at most
    /// [the grace](Builder::grace) that was given.
    pub async fn run_until<H, F>(self, handler: H, shutdown: impl Future<Output = ()>) -> Result<(), AgentError>
    where
        H: Fn(Task) -> F + Send + Sync + 'static,
        F: Future<Output = TaskResult> + Send + 'static,
    {
        self.drive(handler, shutdown, std::future::pending()).await
    }

    async fn drive<H, F>(
        self,
        handler: H,
        shutdown: impl Future<Output = ()>,
        hurry: impl Future<Output = ()>,
    ) -> Result<(), AgentError>
    where
        H: Fn(Task) -> F + Send + Sync + 'static,
        F: Future<Output = TaskResult> + Send + 'static,
    {
        let handler: Handler = Arc::new(move |task| handler(task).boxed());
        let voice = Voice { agent: self.id, client: self.client, link: self.connection.link };
        let keeper = Keeper::new(voice, self.registration, handler, self.spans, self.told, self.takes, self.limits);
        keeper.run(shutdown, hurry).await
    }
}

/// The signals that ask a process to stop.
struct Signals {
    #[cfg(unix)]
    terminate: Option<tokio::signal::unix::Signal>,
}

impl Signals {
    fn listen() -> Self {
        Self {
            #[cfg(unix)]
            terminate: tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).ok(),
        }
    }

    async fn next(&mut self) {
        let interrupt = async {
            if tokio::signal::ctrl_c().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        #[cfg(unix)]
        let terminate = async {
            match &mut self.terminate {
                Some(signal) => drop(signal.recv().await),
                None => std::future::pending().await,
            }
        };
        #[cfg(not(unix))]
        let terminate = std::future::pending::<()>();
        tokio::select! {
            () = interrupt => {}
            () = terminate => {}
        }
    }
}
