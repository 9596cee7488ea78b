//! The kinds of faults.

use baton_protocol::Service;
use clap::ValueEnum;
use serde::Serialize;

use crate::random::Random;

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// None at all: what recovery takes when there is nothing to recover from.
    Nothing,
    /// SIGKILL of the leading workflow-manager.
    KillWorkflowManager,
    /// SIGKILL of the leading resource-manager.
    KillResourceManager,
    /// SIGKILL of the leading optimizer.
    KillOptimizer,
    /// SIGKILL of a gateway.
    KillGateway,
    /// SIGKILL of an instance that does not lead.
    KillStandby,
    /// SIGKILL of both instances of a service, which are started again.
    KillBoth,
    /// SIGSTOP of the leading workflow-manager for longer than its leadership and a lease last, then SIGCONT.
    PauseWorkflowManager,
    /// The same with the resource-manager.
    PauseResourceManager,
    /// The same with the optimizer.
    PauseOptimizer,
    /// SIGKILL of an agent that has a task in hand. It comes back after its lease has ended.
    KillAgent,
    /// SIGKILL of an agent, which is started again at once under the same id.
    RestartAgent,
    /// A second process under the id of an agent that lives.
    ReplaceAgent,
    /// SIGSTOP of an agent for longer than its lease, then SIGCONT.
    PauseAgent,
    /// SIGKILL of the broker, which is started again on its data.
    KillBroker,
    /// SIGSTOP of the broker for three seconds, then SIGCONT.
    PauseBroker,
    /// The connection of a service's leader is reset, and none is taken for three seconds.
    LinkCut,
    /// Everything between a service's leader and the broker is late for four seconds.
    LinkDelay,
    /// One direction of the connection of a service's leader ends; the other goes on.
    LinkHalfClose,
    /// A black hole between a service's leader and the broker for four seconds, which then gives out what it swallowed.
    LinkStall,
    /// The broker's store is full for three seconds.
    FullStore,
    /// Nonsense on every subject that is listened on.
    BadGarbage,
    /// Messages that were cut short.
    BadTruncated,
    /// Messages that are far too large.
    BadOversized,
    /// Old messages again, and messages of the log where requests belong.
    BadReplayed,
    /// Messages of another version.
    BadVersioned,
    /// SIGKILL of the server of a cluster that leads the log.
    KillLeadingNode,
    /// SIGSTOP of the server that leads the log, then SIGCONT.
    PauseLeadingNode,
    /// The server that leads the log is cut off from the others, and all of them know; its clients still reach it.
    IsolateLeadingNode,
    /// Nothing gets through between the server that leads the log and the others; its clients still reach it.
    SilenceLeadingNode,
    /// SIGKILL of a server that does not lead the log.
    KillNode,
    /// SIGSTOP of a server that does not lead the log, then SIGCONT.
    PauseNode,
    /// A server that does not lead the log is cut off.
    IsolateNode,
    /// Nothing gets through between a server that does not lead the log and the others.
    SilenceNode,
    /// SIGKILL of the server that leads the log; when it has just come back, another one is cut off.
    KillDuringRecovery,
    /// SIGKILL of all three servers, which are started again on their data.
    KillAllNodes,
}

impl Kind {
    /// All that can happen with one server.
    #[must_use]
    pub fn all() -> Vec<Self> {
        Self::value_variants().iter().copied().filter(|kind| !kind.is_of_clusters()).collect()
    }

    /// All that can happen to the servers of a cluster.
    #[must_use]
    pub fn all_of_clusters() -> Vec<Self> {
        Self::value_variants().iter().copied().filter(|kind| kind.is_of_clusters()).collect()
    }

    /// Whether it needs a cluster.
    #[must_use]
    pub fn is_of_clusters(self) -> bool {
        matches!(
            self,
            Self::KillLeadingNode
                | Self::PauseLeadingNode
                | Self::IsolateLeadingNode
                | Self::SilenceLeadingNode
                | Self::KillNode
                | Self::PauseNode
                | Self::IsolateNode
                | Self::SilenceNode
                | Self::KillDuringRecovery
                | Self::KillAllNodes
        )
    }

    /// Whether it needs the links between services and the broker, which there are with one server only.
    #[must_use]
    pub fn is_of_links(self) -> bool {
        matches!(self, Self::LinkCut | Self::LinkDelay | Self::LinkHalfClose | Self::LinkStall)
    }

    /// The name, as on the command line and in the table.
    #[must_use]
    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// The service that it is named after.
    #[must_use]
    pub fn service(self) -> Option<Service> {
        match self {
            Self::KillWorkflowManager | Self::PauseWorkflowManager => Some(Service::WorkflowManager),
            Self::KillResourceManager | Self::PauseResourceManager => Some(Service::ResourceManager),
            Self::KillOptimizer | Self::PauseOptimizer => Some(Service::Optimizer),
            Self::KillGateway => Some(Service::Gateway),
            _ => None,
        }
    }
}

/// The faults in their order: rounds in which each kind comes once, each round in another order.
#[derive(Debug, Clone)]
pub struct Schedule {
    kinds: Vec<Kind>,
    random: Random,
    round: Vec<Kind>,
}

impl Schedule {
    /// A schedule of these kinds, which a seed decides. There is at least one kind.
    #[must_use]
    pub fn new(kinds: Vec<Kind>, seed: u64) -> Self {
        Self { kinds, random: Random::new(seed), round: Vec::new() }
    }
}

impl Iterator for Schedule {
    type Item = Kind;

    fn next(&mut self) -> Option<Kind> {
        if self.round.is_empty() {
            self.round.clone_from(&self.kinds);
            self.random.shuffle(&mut self.round);
        }
        self.round.pop()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_comes_once_a_round_and_the_seed_decides_the_order() {
        let draw = |seed| Schedule::new(Kind::all(), seed).take(2 * Kind::all().len()).collect::<Vec<_>>();
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        for round in draw(1).chunks(Kind::all().len()) {
            let mut round = round.to_vec();
            round.sort_unstable();
            assert_eq!(round, Kind::all());
        }
        assert_eq!(Kind::KillWorkflowManager.name(), "kill-workflow-manager");
    }
}
