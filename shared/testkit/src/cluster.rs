//! Three real nats-servers in a cluster whose members can be lost one by one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::net::SocketAddr;
use std::time::Duration;

use async_nats::{Client, ConnectOptions, ServerAddr};
use baton_broker::{Broker, Options};
use serde::Deserialize;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::nats::{TAIL_LINES, chain, found};
use crate::port::Port;
use crate::proxy::Proxy;
use crate::wait::wait_for;

/// How many servers there are.
const SIZE: usize = 3;

/// How long the cluster may take to agree on something.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often a server pings another one; when the third ping has to be sent and none has been answered, the other one is gone
/// for it. The servers' own value is 30 s: as long as that they would send a part of all requests into a black hole.
const ROUTE_PING: &str = "2s";

/// How long one server may take to answer one question.
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);

/// Three nats-servers with JetStream on the loopback interface, `n0`, `n1` and `n2`, each with a data directory of its own.
///
/// What they say to each other goes through proxies, one from each server to each other one, so that a server can be cut
/// off from the others while its clients still reach it. Servers are meant by their number.
///
/// Dropping it kills the servers and removes their data.
#[derive(Debug)]
pub struct NatsCluster {
    nodes: Vec<Node>,
    routes: Vec<Route>,
    /// Declared after the servers, hence removed when their processes have ended.
    _directory: TempDir,
}

#[derive(Debug)]
struct Node {
    broker: Broker,
    isolated: bool,
    paused: bool,
    /// Nobody else is given its ports while it is down.
    _ports: Ports,
}

#[derive(Debug)]
struct Ports {
    client: Port,
    route: Port,
    /// Where it says that it takes servers it was not told of: nobody listens there.
    advertised: Port,
}

/// The way from a server to another.
#[derive(Debug)]
struct Route {
    from: usize,
    to: usize,
    proxy: Proxy,
}

/// How a server is cut off from the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// Its connections are reset and new ones are refused: both sides know at once.
    Refused,
    /// Nothing gets through and nobody is told, as when a switch dies. The servers notice when pings stay unanswered; until
    /// then they believe that all is well.
    Silent,
}

impl NatsCluster {
    /// Starts three servers and waits until they agree on who leads.
    ///
    /// # Panics
    /// When that fails, with the reason.
    pub async fn start() -> Self {
        Self::start_with(&Options::default()).await
    }

    /// Starts three servers with these options. Name, port and process group are given to each of them; further
    /// configuration comes after that of the cluster.
    ///
    /// # Panics
    /// When that fails, with the reason.
    pub async fn start_with(options: &Options) -> Self {
        let directory = TempDir::with_prefix("baton-cluster-").expect("a temporary directory can be created");
        let reserve = || Port::reserve().unwrap_or_else(|error| panic!("no port for a server: {error}"));
        let ports = || Ports { client: reserve(), route: reserve(), advertised: reserve() };
        let ports: Vec<Ports> = (0..SIZE).map(|_| ports()).collect();
        let mut routes = Vec::new();
        for (from, to) in pairs() {
            routes.push(Route { from, to, proxy: Proxy::start(ports[to].route.address()).await });
        }
        let program = &found().await.path;
        let mut nodes = Vec::new();
        for (index, ports) in ports.into_iter().enumerate() {
            let options = Options {
                port: ports.client.address().port(),
                monitor_port: Some(0),
                server_name: name(index),
                own_process_group: false,
                extra_config: format!("{}{}", cluster_config(index, &ports, &routes), options.extra_config),
                ..options.clone()
            };
            let broker = Broker::start(program, directory.path().join(name(index)), options).await;
            let broker = broker.unwrap_or_else(|error| panic!("no nats-server for this test: {}", chain(&error)));
            nodes.push(Node { broker, isolated: false, paused: false, _ports: ports });
        }
        let cluster = Self { nodes, routes, _directory: directory };
        cluster.wait_for_meta_leader().await;
        cluster
    }

    /// How many servers there are.
    pub fn size(&self) -> usize {
        self.nodes.len()
    }

    /// Where clients connect: all servers, with commas between, as `baton --server` takes them.
    pub fn client_urls(&self) -> String {
        let urls: Vec<String> = self.nodes.iter().map(|node| node.broker.client_url()).collect();
        urls.join(",")
    }

    /// Where clients of one server connect.
    pub fn client_url(&self, node: usize) -> String {
        self.nodes[node].broker.client_url()
    }

    /// A server's process; `None` while it is not running.
    pub fn pid(&self, node: usize) -> Option<u32> {
        self.nodes[node].broker.pid()
    }

    /// The last lines of a server's log.
    pub fn log_tail(&self, node: usize, lines: usize) -> String {
        self.nodes[node].broker.log_tail(lines)
    }

    /// Connects a new client that knows all servers.
    ///
    /// # Panics
    /// When none takes it.
    pub async fn connect(&self) -> Client {
        connect(&self.client_urls()).await
    }

    /// Connects a new client that knows one server only.
    ///
    /// # Panics
    /// When that does not take it.
    pub async fn connect_to(&self, node: usize) -> Client {
        connect(&self.client_url(node)).await
    }

    /// Kills a server (SIGKILL) and waits until it is gone.
    ///
    /// # Panics
    /// When the system refuses.
    pub async fn kill(&mut self, node: usize) {
        let node = &mut self.nodes[node];
        node.broker.kill().await.unwrap_or_else(|error| panic!("{}", chain(&error)));
        node.paused = false;
    }

    /// Starts a server again, with its data and at its port; stops it first if it runs. It need not have caught up with the
    /// others yet: see [`NatsCluster::wait_for_stream`].
    ///
    /// # Panics
    /// When that fails, with the reason.
    pub async fn restart(&mut self, node: usize) {
        let node = &mut self.nodes[node];
        node.broker.restart().await.unwrap_or_else(|error| panic!("{}", chain(&error)));
        node.paused = false;
    }

    /// Kills all servers.
    ///
    /// # Panics
    /// When the system refuses.
    pub async fn kill_all(&mut self) {
        for node in 0..self.size() {
            self.kill(node).await;
        }
    }

    /// Starts all servers again and waits until they agree on who leads.
    ///
    /// # Panics
    /// When that fails, with the reason.
    pub async fn restart_all(&mut self) {
        for node in 0..self.size() {
            self.restart(node).await;
        }
        self.wait_for_meta_leader().await;
    }

    /// Freezes a server (SIGSTOP) and waits until it stands still. The kernel goes on accepting connections for it.
    ///
    /// # Panics
    /// When it is not running.
    pub async fn pause(&mut self, node: usize) {
        let node = &mut self.nodes[node];
        node.broker.pause().await.unwrap_or_else(|error| panic!("{}", chain(&error)));
        node.paused = true;
    }

    /// Lets a frozen server go on (SIGCONT).
    ///
    /// # Panics
    /// When it is not running.
    pub fn resume(&mut self, node: usize) {
        let node = &mut self.nodes[node];
        node.broker.resume().unwrap_or_else(|error| panic!("{}", chain(&error)));
        node.paused = false;
    }

    /// Cuts a server off from the others, as [`Isolation::Refused`]. Its clients still reach it.
    pub async fn isolate(&mut self, node: usize) {
        self.isolate_with(node, Isolation::Refused).await;
    }

    /// Cuts a server off from the others. Its clients still reach it.
    pub async fn isolate_with(&mut self, node: usize, how: Isolation) {
        self.nodes[node].isolated = true;
        for route in self.routes_of(node) {
            match how {
                Isolation::Refused => route.proxy.cut().await,
                Isolation::Silent => route.proxy.stall(),
            }
        }
    }

    /// Connects a server with the others again, except with those that are isolated themselves. What [`Isolation::Silent`]
    /// held back gets through.
    pub async fn rejoin(&mut self, node: usize) {
        self.nodes[node].isolated = false;
        for route in self.routes_of(node).filter(|route| !self.nodes[route.from + route.to - node].isolated) {
            route.proxy.heal().await;
        }
    }

    fn routes_of(&self, node: usize) -> impl Iterator<Item = &Route> {
        self.routes.iter().filter(move |route| route.from == node || route.to == node)
    }

    /// The server that leads the cluster as a whole, which decides where streams are; `None` while the servers that run and
    /// are not cut off have none among them, or do not agree.
    pub async fn meta_leader(&self) -> Option<usize> {
        self.look_for_meta_leader().await.ok()
    }

    async fn look_for_meta_leader(&self) -> Result<usize, String> {
        let mut leaders = BTreeSet::new();
        for node in self.healthy() {
            let meta = self.ask(node).await?.meta_cluster.unwrap_or_default();
            if meta.cluster_size != SIZE {
                return Err(format!("{} knows {} servers", name(node), meta.cluster_size));
            }
            leaders.insert(meta.leader);
        }
        self.agreed(&leaders)
    }

    /// Waits until the servers that run and are not cut off agree on who leads the cluster.
    ///
    /// # Panics
    /// When they do not for a minute.
    pub async fn wait_for_meta_leader(&self) -> usize {
        wait_for("the cluster has a leader", PATIENCE, || self.look_for_meta_leader()).await
    }

    /// The server that leads a stream, as the servers that run and are not cut off see it; `None` while there is none.
    pub async fn stream_leader(&self, stream: &str) -> Option<usize> {
        self.look_at_stream(stream).await.ok().map(|(leader, _)| leader)
    }

    /// Waits until a stream has a leader and all its replicas are on servers that run, are not cut off, and have caught up.
    /// Gives the leader.
    ///
    /// # Panics
    /// When that is not so for a minute, for example because a server is down.
    pub async fn wait_for_stream(&self, stream: &str) -> usize {
        wait_for(&format!("the stream {stream} is whole"), PATIENCE, async || {
            let (leader, behind) = self.look_at_stream(stream).await?;
            if behind.is_empty() { Ok(leader) } else { Err(format!("led by {}, behind: {behind:?}", name(leader))) }
        })
        .await
    }

    /// A stream's leader, and the replicas that it does not hold for up to date.
    async fn look_at_stream(&self, stream: &str) -> Result<(usize, Vec<String>), String> {
        let mut views = BTreeMap::new();
        for node in self.healthy() {
            let seen = self.ask(node).await?.stream(stream);
            views.insert(node, seen.ok_or_else(|| format!("{} has no stream {stream}", name(node)))?);
        }
        let leaders: BTreeSet<String> = views.values().map(|view| view.leader.clone()).collect();
        let leader = self.agreed(&leaders)?;
        let replicas = views.remove(&leader).unwrap_or_default().replicas;
        let behind = replicas.into_iter().filter(|replica| !replica.current || replica.offline);
        Ok((leader, behind.map(|replica| replica.name).collect()))
    }

    /// The one leader that all servers see, if it is one of those that can lead. A server that led before it was cut off
    /// may believe for a while that it still does.
    fn agreed(&self, leaders: &BTreeSet<String>) -> Result<usize, String> {
        let leader = leaders.first().filter(|_| leaders.len() == 1).and_then(|leader| index(leader));
        leader.filter(|&leader| self.healthy().any(|node| node == leader)).ok_or_else(|| format!("leaders {leaders:?}"))
    }

    async fn ask(&self, node: usize) -> Result<Monitored, String> {
        monitor(&self.nodes[node].broker).await.map_err(|error| format!("{}: {error}", name(node)))
    }

    /// The servers that can be asked and heard by each other.
    fn healthy(&self) -> impl Iterator<Item = usize> {
        let healthy = |node: &Node| node.broker.pid().is_some() && !node.paused && !node.isolated;
        self.nodes.iter().enumerate().filter(move |(_, node)| healthy(node)).map(|(index, _)| index)
    }
}

impl Drop for NatsCluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for node in 0..self.size() {
                eprintln!("the end of the log of {}:\n{}", name(node), self.log_tail(node, TAIL_LINES));
            }
        }
    }
}

fn name(node: usize) -> String {
    format!("n{node}")
}

fn index(name: &str) -> Option<usize> {
    name.strip_prefix('n')?.parse().ok()
}

fn pairs() -> impl Iterator<Item = (usize, usize)> {
    (0..SIZE).flat_map(|from| (0..SIZE).map(move |to| (from, to))).filter(|(from, to)| from != to)
}

/// A server tells the others of those it knows, and they connect to them on their own, past the proxies; so it tells an
/// address where nobody listens. One connection a pair of servers is easier to reason about than a pool of them.
fn cluster_config(node: usize, ports: &Ports, routes: &[Route]) -> String {
    let routes = routes.iter().filter(|route| route.from == node);
    let routes: Vec<String> = routes.map(|route| format!("\"nats-route://{}\"", route.proxy.address())).collect();
    format!(
        "cluster {{\n  name: baton\n  listen: \"{}\"\n  advertise: \"{}\"\n  no_advertise: true\n  pool_size: -1\n  \
         compression: off\n  ping_interval: \"{ROUTE_PING}\"\n  ping_max: 2\n  routes: [{}]\n}}\n",
        ports.route.address(),
        ports.advertised.address(),
        routes.join(", ")
    )
}

async fn connect(urls: &str) -> Client {
    let addresses: Result<Vec<ServerAddr>, _> = urls.split(',').map(str::parse).collect();
    let addresses = addresses.unwrap_or_else(|error| panic!("{urls}: {}", chain(&error)));
    let connected = ConnectOptions::new().connect(addresses).await;
    connected.unwrap_or_else(|error| panic!("cannot connect to {urls}: {}", chain(&error)))
}

/// What a server's monitoring says of JetStream.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Monitored {
    meta_cluster: Option<MetaCluster>,
    account_details: Vec<Account>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct MetaCluster {
    leader: String,
    cluster_size: usize,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Account {
    stream_detail: Vec<Stream>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Stream {
    name: String,
    cluster: Option<Replicas>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Replicas {
    leader: String,
    replicas: Vec<Replica>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Replica {
    name: String,
    current: bool,
    offline: bool,
}

impl Monitored {
    fn stream(self, name: &str) -> Option<Replicas> {
        let mut streams = self.account_details.into_iter().flat_map(|account| account.stream_detail);
        streams.find(|stream| stream.name == name)?.cluster
    }
}

async fn monitor(broker: &Broker) -> Result<Monitored, String> {
    let url = broker.monitor_url().ok_or("it has no monitoring")?;
    let address: SocketAddr = url.trim_start_matches("http://").parse().map_err(text)?;
    let look = async {
        let mut stream = TcpStream::connect(address).await.map_err(text)?;
        stream.write_all(b"GET /jsz?accounts=true&streams=true HTTP/1.0\r\n\r\n").await.map_err(text)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.map_err(text)?;
        let (_, body) = answer.split_once("\r\n\r\n").ok_or_else(|| format!("it says {answer:?}"))?;
        serde_json::from_str(body).map_err(text)
    };
    timeout(LOOK_TIMEOUT, look).await.map_err(|_| "its monitoring does not answer".to_owned())?
}

fn text(error: impl Debug) -> String {
    format!("{error:?}")
}
