//! What the optimizer shows of itself.

use std::collections::BTreeMap;

use baton_protocol::request::{AgentPerformance, PlacementView, QueuedTask, StageEstimate, TenantView};
use baton_protocol::{Millis, TaskId};

use crate::learning::FULL;
use crate::queue::{self, Queued};
use crate::tenants;
use crate::{Config, Optimizer};

/// How much of the queue is shown.
const MAX_QUEUE: usize = 100;
/// How many agents, and how many stages, are shown: an answer must fit into a message.
const MAX_LEARNED: usize = 4000;
/// How many tenants.
const MAX_TENANTS: usize = 1000;

/// What is shown, with what the leader alone knows.
pub(crate) fn placement(state: &Optimizer, config: &Config, now: Millis, regret: Option<f64>) -> PlacementView {
    let mut queue: Vec<_> = state.queue.iter().collect();
    let earlier = |(a, first): &(&TaskId, &Queued), (b, second): &(&TaskId, &Queued)| {
        let first = queue::order(*a, first.priority, first.since, now, config.ageing_ms);
        queue::order(*b, second.priority, second.since, now, config.ageing_ms).cmp(&first)
    };
    if queue.len() > MAX_QUEUE {
        queue.select_nth_unstable_by(MAX_QUEUE, earlier);
        queue.truncate(MAX_QUEUE);
    }
    queue.sort_unstable_by(earlier);
    let queued = |(task, queued): (&TaskId, &Queued)| {
        let run = state.runs.get(task.run);
        let average = run.and_then(|run| state.learning.durations.average(&run.workflow, &task.stage));
        QueuedTask {
            task: task.clone(),
            agent_type: queued.shape.agent_type.clone(),
            priority: queued.priority,
            since: queued.since,
            tenant: run.and_then(|run| run.tenant.as_deref()).map(str::to_owned),
            estimate_ms: average.filter(|average| average.seen > 0).map(|average| average.mean.round() as Millis),
        }
    };
    let agents = state.fleet.ids().take(MAX_LEARNED).map(|agent| {
        let performance = state.learning.performance(agent).cloned().unwrap_or_default();
        AgentPerformance {
            agent: agent.clone(),
            score: f64::from(performance.score) / f64::from(FULL),
            succeeded: performance.succeeded,
            failed: performance.failed,
        }
    });
    let stages =
        state.learning.durations.stages().take(MAX_LEARNED).map(|(workflow, stage, duration, _)| StageEstimate {
            workflow: workflow.clone(),
            stage: stage.clone(),
            estimate_ms: duration.mean.round() as Millis,
            samples: duration.seen,
        });
    PlacementView {
        strategy: state.strategy,
        learning_rate: state.learning.rate.part(),
        queued: state.queue.len() as u64,
        queue: queue.into_iter().map(queued).collect(),
        agents: agents.collect(),
        stages: stages.collect(),
        figures: state.figures.view(state, now, regret),
        tenants: of_tenants(state, config),
    }
}

/// The tenants that have runs, those first that name none.
fn of_tenants(state: &Optimizer, config: &Config) -> Vec<TenantView> {
    let mut counts: BTreeMap<Option<&str>, (u64, u64)> = BTreeMap::new();
    for (_, run) in state.runs.iter() {
        let (open, held) = run.open_and_held();
        let (waiting, active) = counts.entry(run.tenant.as_deref()).or_default();
        *waiting += (open - held) as u64;
        *active += held as u64;
    }
    let view = |(tenant, (waiting, active)): (Option<&str>, (u64, u64))| TenantView {
        tenant: tenant.map(str::to_owned),
        weight: tenants::weight(tenant, &config.tenants),
        waiting,
        active,
    };
    counts.into_iter().take(MAX_TENANTS).map(view).collect()
}
