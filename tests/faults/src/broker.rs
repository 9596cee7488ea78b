//! What the fleet talks through: one server, or a cluster of three.

use async_nats::Client;
use baton_testkit::{NatsCluster, NatsOptions, NatsServer};

/// One server, or a cluster. What is done to it is done to the one, or to all three.
#[derive(Debug)]
pub enum Broker {
    /// One server.
    One(Box<NatsServer>),
    /// Three that replicate everything.
    Three(Box<NatsCluster>),
}

impl Broker {
    /// Starts it.
    pub async fn start(cluster: bool, options: NatsOptions) -> Self {
        if cluster {
            Self::Three(Box::new(NatsCluster::start_with(&options).await))
        } else {
            Self::One(Box::new(NatsServer::start_with(options).await))
        }
    }

    /// What `--server` is given.
    #[must_use]
    pub fn urls(&self) -> String {
        match self {
            Self::One(server) => server.client_url(),
            Self::Three(cluster) => cluster.client_urls(),
        }
    }

    /// Connects a new client.
    pub async fn connect(&self) -> Client {
        match self {
            Self::One(server) => server.connect().await,
            Self::Three(cluster) => cluster.connect().await,
        }
    }

    /// The servers, if they are three.
    pub fn cluster(&mut self) -> Option<&mut NatsCluster> {
        match self {
            Self::One(_) => None,
            Self::Three(cluster) => Some(cluster),
        }
    }

    /// Kills it (SIGKILL).
    pub async fn kill(&mut self) {
        match self {
            Self::One(server) => server.kill().await,
            Self::Three(cluster) => cluster.kill_all().await,
        }
    }

    /// Starts it again on its data.
    pub async fn restart(&mut self) {
        match self {
            Self::One(server) => server.restart().await,
            Self::Three(cluster) => cluster.restart_all().await,
        }
    }

    /// Freezes it (SIGSTOP).
    pub async fn pause(&mut self) {
        match self {
            Self::One(server) => server.pause().await,
            Self::Three(cluster) => {
                for node in 0..cluster.size() {
                    cluster.pause(node).await;
                }
            }
        }
    }

    /// Lets it go on (SIGCONT).
    pub fn resume(&mut self) {
        match self {
            Self::One(server) => server.resume(),
            Self::Three(cluster) => (0..cluster.size()).for_each(|node| cluster.resume(node)),
        }
    }

    /// The process; of three, the first.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        match self {
            Self::One(server) => server.pid(),
            Self::Three(cluster) => cluster.pid(0),
        }
    }

    /// The end of what it has logged.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        match self {
            Self::One(server) => server.log_tail(lines),
            Self::Three(cluster) => {
                let tails = (0..cluster.size()).map(|node| format!("n{node}:\n{}", cluster.log_tail(node, lines)));
                tails.collect::<Vec<_>>().join("\n")
            }
        }
    }
}
