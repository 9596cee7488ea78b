//! What the optimizer shows of itself.

use baton_protocol::Millis;
use baton_protocol::request::{AgentPerformance, PlacementView, QueuedTask, StageEstimate};

use crate::learning::FULL;
use crate::{Config, Optimizer};

/// How much of the queue is shown.
const MAX_QUEUE: usize = 100;
/// How many agents, and how many stages, are shown: an answer must fit into a message.
const MAX_LEARNED: usize = 4000;

pub(crate) fn placement(state: &Optimizer, config: &Config, now: Millis) -> PlacementView {
    let queued = |(task, _, _): (&baton_protocol::TaskId, _, _)| {
        let queued = state.queue.get(task)?;
        let workflow = state.runs.workflow(task.run);
        let estimate = workflow.and_then(|workflow| state.learning.estimate(workflow, &task.stage));
        Some(QueuedTask {
            task: task.clone(),
            agent_type: queued.shape.agent_type.clone(),
            priority: queued.priority,
            since: queued.since,
            estimate_ms: estimate.map(crate::learning::Estimate::ms),
        })
    };
    let agents = state.fleet.ids().take(MAX_LEARNED).map(|agent| {
        let performance = state.learning.performance(agent);
        AgentPerformance {
            agent: agent.clone(),
            score: f64::from(performance.score) / f64::from(FULL),
            succeeded: performance.succeeded,
            failed: performance.failed,
        }
    });
    let stages = state.learning.estimates().take(MAX_LEARNED).map(|(workflow, stage, estimate)| StageEstimate {
        workflow: workflow.clone(),
        stage: stage.clone(),
        estimate_ms: estimate.ms(),
        samples: estimate.samples,
    });
    PlacementView {
        strategy: state.strategy,
        queued: state.queue.len() as u64,
        queue: state.queue.walk(now, config.ageing_ms).filter_map(queued).take(MAX_QUEUE).collect(),
        agents: agents.collect(),
        stages: stages.collect(),
    }
}
