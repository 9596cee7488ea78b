//! Injecting one fault, and taking it away again.

use std::time::Duration;

use anyhow::Context;
use async_nats::jetstream;
use baton_protocol::subject::{self, Shard};
use baton_protocol::{RunId, Service};
use baton_testkit::{Direction, Isolation, NatsCluster};
use bytes::Bytes;
use tokio::time::{Instant, sleep};

use crate::bad::{self, Message, Recorder};
use crate::fleet::{self, Fleet, LEADER_TTL, LEASE, instances};
use crate::kind::Kind;
use crate::random::Random;

/// Longer than a leader's entry and an agent's lease live.
const LONG: Duration = LEASE.saturating_add(LEADER_TTL);

/// How long a link stays cut, a broker paused, a store full.
const SHORT: Duration = Duration::from_secs(3);

/// How long a link is late or silent.
const SILENT: Duration = Duration::from_secs(4);

/// How late everything is on a link that is.
const LATE: Duration = Duration::from_millis(400);

/// How long a server of a cluster is lost: longer than everybody needs to do without it.
const LOST: Duration = Duration::from_secs(15);

/// How long the broker is down.
const DOWN: Duration = Duration::from_millis(500);

/// The stream that fills the store, and its subject.
const BALLAST: &str = "FAULTS_BALLAST";
const BALLAST_SUBJECT: &str = "faults.ballast";

/// A fault that has just been injected.
pub(crate) struct Strike {
    /// When.
    pub(crate) at: Instant,
    /// The service whose leader was struck, with its term until then.
    pub(crate) led: Option<(Service, u64)>,
    /// What was struck, for people.
    pub(crate) what: String,
    /// What is to be done about it.
    pub(crate) heal: Heal,
}

/// How a fault is taken away while its effect is watched. What is dead is started again later, by [`Fleet::whole`].
pub(crate) enum Heal {
    Nothing,
    Start(Vec<String>),
    Resume(String, Duration),
    RestartBroker,
    Node(usize, Loss),
    /// The same, and then the next one is cut off.
    NodeAndNext(usize, Loss),
    ResumeBroker,
    Link(String, Duration),
    Purge,
    Send(Vec<Message>),
}

/// How a server of a cluster is lost.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Loss {
    Killed,
    Paused,
    Isolated(Isolation),
}

impl Loss {
    async fn strike(self, cluster: &mut NatsCluster, node: usize) {
        match self {
            Self::Killed => cluster.kill(node).await,
            Self::Paused => cluster.pause(node).await,
            Self::Isolated(how) => cluster.isolate_with(node, how).await,
        }
    }

    async fn heal(self, cluster: &mut NatsCluster, node: usize) {
        match self {
            Self::Killed => cluster.restart(node).await,
            Self::Paused => cluster.resume(node),
            Self::Isolated(_) => cluster.rejoin(node).await,
        }
    }
}

/// What injects.
pub(crate) struct Injector {
    /// A connection of its own: what is sent on it holds up nobody else.
    nats: async_nats::Client,
    recorder: Recorder,
    /// How many bad messages wanted an answer, and how many got one.
    pub(crate) asked: (usize, usize),
}

impl Injector {
    pub(crate) async fn new(fleet: &Fleet) -> anyhow::Result<Self> {
        let nats = fleet.nats.connect().await;
        let recorder = Recorder::start(&nats).await?;
        Ok(Self { nats, recorder, asked: (0, 0) })
    }

    /// Strikes.
    pub(crate) async fn strike(
        &mut self,
        kind: Kind,
        fleet: &mut Fleet,
        open: Option<RunId>,
        random: &mut Random,
    ) -> anyhow::Result<Strike> {
        let writer = *random.pick(&Service::WRITERS);
        match kind {
            Kind::Nothing => {
                Ok(Strike { at: Instant::now(), led: None, what: "nothing".to_owned(), heal: Heal::Nothing })
            }
            Kind::KillWorkflowManager | Kind::KillResourceManager | Kind::KillOptimizer | Kind::KillGateway => {
                let service = kind.service().context("it is named after one")?;
                let led = led(fleet, service).await?;
                let (leader, _) = fleet.roles(service).await?;
                kill(fleet, vec![leader], led, Heal::Nothing).await
            }
            Kind::KillStandby => {
                let (_, standby) = fleet.roles(writer).await?;
                kill(fleet, vec![standby], None, Heal::Nothing).await
            }
            Kind::KillBoth => {
                let led = led(fleet, writer).await?;
                let names = instances(writer);
                kill(fleet, names.clone(), led, Heal::Start(names)).await
            }
            Kind::PauseWorkflowManager | Kind::PauseResourceManager | Kind::PauseOptimizer => {
                let service = kind.service().context("it is named after one")?;
                let led = led(fleet, service).await?;
                let (leader, _) = fleet.roles(service).await?;
                pause(fleet, leader, led).await
            }
            Kind::KillAgent => {
                let agent = victim(fleet, random).await;
                kill(fleet, vec![agent], None, Heal::Nothing).await
            }
            Kind::RestartAgent => {
                let agent = victim(fleet, random).await;
                kill(fleet, vec![agent.clone()], None, Heal::Start(vec![agent])).await
            }
            Kind::ReplaceAgent => {
                let agent = victim(fleet, random).await;
                let at = Instant::now();
                fleet.replace(&agent)?;
                Ok(Strike { at, led: None, what: agent, heal: Heal::Nothing })
            }
            Kind::PauseAgent => {
                let agent = victim(fleet, random).await;
                pause(fleet, agent, None).await
            }
            Kind::KillBroker => {
                let at = Instant::now();
                fleet.nats.kill().await;
                Ok(Strike { at, led: None, what: "the broker".to_owned(), heal: Heal::RestartBroker })
            }
            Kind::PauseBroker => {
                let at = Instant::now();
                fleet.nats.pause().await;
                Ok(Strike { at, led: None, what: "the broker".to_owned(), heal: Heal::ResumeBroker })
            }
            Kind::KillAllNodes => {
                let at = Instant::now();
                fleet.nats.kill().await;
                Ok(Strike { at, led: None, what: "all servers".to_owned(), heal: Heal::RestartBroker })
            }
            Kind::KillLeadingNode | Kind::KillDuringRecovery => lose(fleet, kind, true, Loss::Killed).await,
            Kind::PauseLeadingNode => lose(fleet, kind, true, Loss::Paused).await,
            Kind::IsolateLeadingNode => lose(fleet, kind, true, Loss::Isolated(Isolation::Refused)).await,
            Kind::SilenceLeadingNode => lose(fleet, kind, true, Loss::Isolated(Isolation::Silent)).await,
            Kind::KillNode => lose(fleet, kind, false, Loss::Killed).await,
            Kind::PauseNode => lose(fleet, kind, false, Loss::Paused).await,
            Kind::IsolateNode => lose(fleet, kind, false, Loss::Isolated(Isolation::Refused)).await,
            Kind::SilenceNode => lose(fleet, kind, false, Loss::Isolated(Isolation::Silent)).await,
            Kind::LinkCut | Kind::LinkDelay | Kind::LinkHalfClose | Kind::LinkStall => {
                let loses = matches!(kind, Kind::LinkCut | Kind::LinkStall);
                let led = if loses { led(fleet, writer).await? } else { None };
                let (leader, _) = fleet.roles(writer).await?;
                let link = fleet.link(&leader)?;
                let at = Instant::now();
                let (heal, how) = match kind {
                    Kind::LinkCut => {
                        link.cut().await;
                        (Heal::Link(leader.clone(), SHORT), "cut")
                    }
                    Kind::LinkDelay => {
                        link.delay(LATE);
                        (Heal::Link(leader.clone(), SILENT), "late")
                    }
                    Kind::LinkStall => {
                        link.stall();
                        (Heal::Link(leader.clone(), SILENT), "silent")
                    }
                    _ if random.one_in(2) => {
                        link.half_close(Direction::ToServer);
                        (Heal::Nothing, "closed to the broker")
                    }
                    _ => {
                        link.half_close(Direction::ToClient);
                        (Heal::Nothing, "closed to the service")
                    }
                };
                Ok(Strike { at, led, what: format!("link of {leader}: {how}"), heal })
            }
            Kind::FullStore => {
                self.fill().await?;
                Ok(Strike { at: Instant::now(), led: None, what: "the broker's store".to_owned(), heal: Heal::Purge })
            }
            Kind::BadGarbage | Kind::BadTruncated | Kind::BadOversized | Kind::BadReplayed | Kind::BadVersioned => {
                let names = fleet.agent_names();
                let messages = bad::messages(kind, &self.recorder, &names, open, &self.nats, random).await?;
                let what = format!("{} messages", messages.len());
                Ok(Strike { at: Instant::now(), led: None, what, heal: Heal::Send(messages) })
            }
        }
    }

    /// Takes the fault away, after its time.
    pub(crate) async fn heal(&mut self, heal: Heal, fleet: &mut Fleet) -> anyhow::Result<()> {
        match heal {
            Heal::Nothing => {}
            Heal::Start(names) => {
                for name in names {
                    fleet.launch(&name).await?;
                }
            }
            Heal::Resume(name, after) => {
                sleep(after).await;
                fleet.process(&name)?.resume();
            }
            Heal::RestartBroker => {
                sleep(DOWN).await;
                fleet.nats.restart().await;
            }
            Heal::Node(node, loss) => {
                sleep(LOST).await;
                loss.heal(cluster(fleet)?, node).await;
            }
            Heal::NodeAndNext(node, loss) => {
                sleep(LOST).await;
                let cluster = cluster(fleet)?;
                loss.heal(cluster, node).await;
                let next = (node + 1) % cluster.size();
                cluster.isolate(next).await;
                sleep(LOST).await;
                cluster.rejoin(next).await;
            }
            Heal::ResumeBroker => {
                sleep(SHORT).await;
                fleet.nats.resume();
            }
            Heal::Link(name, after) => {
                sleep(after).await;
                fleet.link(&name)?.heal().await;
            }
            Heal::Purge => {
                let end = Instant::now() + SHORT;
                while Instant::now() < end {
                    // What is freed meanwhile is taken again.
                    self.fill_with(1024).await?;
                    sleep(Duration::from_millis(100)).await;
                }
                self.purge().await?;
            }
            Heal::Send(messages) => {
                let (asked, answered) = bad::send(&self.nats, messages).await;
                self.asked.0 += asked;
                self.asked.1 += answered;
            }
        }
        Ok(())
    }

    fn jetstream(&self) -> jetstream::Context {
        jetstream::new(self.nats.clone())
    }

    /// Fills the store: with large pieces, then with ever smaller ones.
    async fn fill(&self) -> anyhow::Result<()> {
        let config = jetstream::stream::Config {
            name: BALLAST.to_owned(),
            subjects: vec![BALLAST_SUBJECT.to_owned()],
            ..jetstream::stream::Config::default()
        };
        self.jetstream().get_or_create_stream(config).await.context("creating the ballast")?;
        for size in [4 * 1024 * 1024, 256 * 1024, 16 * 1024, 1024] {
            self.fill_with(size).await?;
        }
        Ok(())
    }

    /// Publishes pieces of that size until the broker refuses one.
    async fn fill_with(&self, size: usize) -> anyhow::Result<()> {
        let piece = Bytes::from(vec![b'.'; size]);
        let context = self.jetstream();
        loop {
            let sent = context.publish(BALLAST_SUBJECT, piece.clone()).await?;
            if let Err(error) = sent.await {
                use jetstream::context::PublishErrorKind as Kind;
                match error.kind() {
                    Kind::TimedOut | Kind::BrokenPipe => {}
                    _ => return Ok(()),
                }
            }
        }
    }

    async fn purge(&self) -> anyhow::Result<()> {
        // Again, if the broker is too busy to answer: it must not stay full.
        for _ in 0..20 {
            let deleted = self.jetstream().delete_stream(BALLAST).await;
            if deleted.is_ok() {
                return Ok(());
            }
        }
        anyhow::bail!("the ballast can not be thrown off")
    }
}

fn cluster(fleet: &mut Fleet) -> anyhow::Result<&mut NatsCluster> {
    fleet.nats.cluster().context("there is no cluster")
}

/// Loses a server, when all replicas of the log are up to date: what a majority has is on two servers only otherwise.
async fn lose(fleet: &mut Fleet, kind: Kind, leading: bool, loss: Loss) -> anyhow::Result<Strike> {
    let cluster = cluster(fleet)?;
    let leader = cluster.wait_for_stream(&subject::log_stream(Shard::default())).await;
    let node = if leading { leader } else { (leader + 1) % cluster.size() };
    let at = Instant::now();
    loss.strike(cluster, node).await;
    let heal = match kind {
        Kind::KillDuringRecovery => Heal::NodeAndNext(node, loss),
        _ => Heal::Node(node, loss),
    };
    Ok(Strike { at, led: None, what: format!("n{node}"), heal })
}

async fn led(fleet: &Fleet, service: Service) -> anyhow::Result<Option<(Service, u64)>> {
    if service == Service::Gateway {
        return Ok(Some((service, 0)));
    }
    Ok(Some((service, fleet::term(&fleet.client, service).await?)))
}

async fn kill(
    fleet: &mut Fleet,
    names: Vec<String>,
    led: Option<(Service, u64)>,
    heal: Heal,
) -> anyhow::Result<Strike> {
    let at = Instant::now();
    for name in &names {
        fleet.kill(name).await?;
    }
    Ok(Strike { at, led, what: names.join(" and "), heal })
}

async fn pause(fleet: &mut Fleet, name: String, led: Option<(Service, u64)>) -> anyhow::Result<Strike> {
    let at = Instant::now();
    fleet.process(&name)?.pause().await;
    Ok(Strike { at, led, what: name.clone(), heal: Heal::Resume(name, LONG) })
}

/// An agent with a task in hand, or any.
async fn victim(fleet: &Fleet, random: &mut Random) -> String {
    let busy = fleet.busy_agents().await;
    let agents = if busy.is_empty() { fleet.agent_names() } else { busy };
    random.pick(&agents).clone()
}
