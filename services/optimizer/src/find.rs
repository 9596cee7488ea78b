//! Which agents can do something, the one to be preferred first.

use std::cmp::Reverse;

use baton_protocol::request::{AgentFound, AgentsFound, FindAgents};

use crate::Optimizer;
use crate::learning::FULL;

/// The most agents in an answer.
const MAX_FOUND: usize = 1000;

/// Those with room come first; among them the one whose smallest part is in use, then the better score, as tasks are placed
/// by load.
pub(crate) fn agents(state: &Optimizer, request: &FindAgents) -> AgentsFound {
    let FindAgents { capability, requires, resources, limit } = request;
    let able = state.fleet.iter().filter(|(_, agent)| agent.can(capability, requires));
    let ranked =
        able.map(|(id, agent)| (Reverse(agent.has_room(capability, resources, None)), agent.rank(id, 0, None), agent));
    let mut ranked: Vec<_> = ranked.collect();
    ranked.sort_unstable_by(|(room, rank, _), (other_room, other, _)| (room, rank).cmp(&(other_room, other)));
    let found = ranked.len() as u64;
    ranked.truncate(limit.map_or(MAX_FOUND, |limit| limit as usize).min(MAX_FOUND));
    let agents = ranked.into_iter().map(|(Reverse(has_room), rank, agent)| AgentFound {
        has_room,
        score: f64::from(state.learning.score(&rank.agent)) / f64::from(FULL),
        holds: agent.held(None) as u64,
        slots: agent.slots(),
        breaker: agent.breaker(capability),
        agent: rank.agent,
    });
    AgentsFound { found, agents: agents.collect() }
}
