//! Why a stage does not go on, from what the services say of the run, its workflow and the agents.

use std::collections::{BTreeMap, BTreeSet};

use baton_protocol::breaker::{BreakerState, BreakerView};
use baton_protocol::definition::{Definition, StageDefinition};
use baton_protocol::request::{AgentList, AgentStatus, AgentView, GetWorkflow, ListAgents};
use baton_protocol::run::{AttemptView, RunView, StageStatus, StageView};
use baton_protocol::why::{Lack, Missing, Root, Why};
use baton_protocol::{Amount, Code, Rejection, RunId, StageName};

use crate::{Client, ClientError};

/// How many stages are named on which a stage waits in the end.
const MAX_ROOTS: usize = 50;

/// How many things are said to be missing for the items of a stage.
const MAX_OF_ITEMS: usize = 20;

impl Client {
    /// Says what a stage of a run waits for: stages, agents, room, time, a report. The answer is of several moments that
    /// follow each other closely: the run's, and then the agents'.
    pub async fn why(&self, run: RunId, stage: &StageName) -> Result<Why, ClientError> {
        let view = self.get_run(run).await?;
        let request = GetWorkflow { name: view.workflow.clone(), version: Some(view.version) };
        let definition = self.get_workflow(&request).await?.definition;
        let agents = self.list_agents(&ListAgents::default()).await?;
        why(&view, &definition, &agents, stage).map_err(ClientError::Rejected)
    }
}

/// What a stage of a run waits for.
fn why(view: &RunView, definition: &Definition, agents: &AgentList, stage: &StageName) -> Result<Why, Rejection> {
    let known = Known::new(view, definition, agents);
    let Some(shown) = known.stages.get(stage) else {
        let names: Vec<_> = definition.stages.iter().take(50).map(|stage| stage.name.as_str()).collect();
        let message = format!("run {} has no stage {stage}; its stages are: {}", view.run, names.join(", "));
        return Err(Rejection::new(Code::InvalidRequest, message));
    };
    let roots = if shown.status == StageStatus::Pending { known.roots(stage) } else { Vec::new() };
    Ok(Why {
        run: view.run,
        run_status: view.status,
        stage: stage.clone(),
        status: shown.status,
        missing: known.missing(shown),
        roots,
    })
}

struct Known<'a> {
    view: &'a RunView,
    stages: BTreeMap<&'a StageName, &'a StageView>,
    definitions: BTreeMap<&'a StageName, &'a StageDefinition>,
    /// What each stage waits for: what it depends on, with the fallbacks of that.
    waits: BTreeMap<&'a StageName, Vec<&'a StageName>>,
    agents: &'a AgentList,
}

impl<'a> Known<'a> {
    fn new(view: &'a RunView, definition: &'a Definition, agents: &'a AgentList) -> Self {
        let name = |place: usize| &definition.stages[place].name;
        let waits = definition.waits().into_iter().enumerate();
        Self {
            view,
            waits: waits.map(|(place, of)| (name(place), of.into_iter().map(name).collect())).collect(),
            stages: view.stages.iter().map(|stage| (&stage.name, stage)).collect(),
            definitions: definition.stages.iter().map(|stage| (&stage.name, stage)).collect(),
            agents,
        }
    }

    fn missing(&self, stage: &StageView) -> Vec<Missing> {
        let Some(definition) = self.definitions.get(&stage.name) else { return Vec::new() };
        if self.view.status.is_end() {
            return Vec::new();
        }
        let paused = self.view.paused.as_ref();
        let paused = paused.map(|paused| Missing::Resume { since: paused.since, reason: paused.reason.clone() });
        match stage.status {
            StageStatus::Pending => {
                let mut missing = self.open_dependencies(definition);
                if missing.is_empty() {
                    missing.extend(self.not_beside(definition));
                }
                missing.extend(paused);
                missing
            }
            StageStatus::Ready | StageStatus::Waiting => {
                self.of_attempts(stage.status, &stage.attempts, definition).into_iter().chain(paused).collect()
            }
            StageStatus::Running => {
                let mut missing = self.of_attempts(stage.status, &stage.attempts, definition);
                for item in &stage.items {
                    for of_item in self.of_attempts(item.status, &item.attempts, definition) {
                        if missing.len() < MAX_OF_ITEMS && !missing.contains(&of_item) {
                            missing.push(of_item);
                        }
                    }
                }
                if !stage.items.is_empty() {
                    missing.extend(paused);
                }
                missing
            }
            _ => Vec::new(),
        }
    }

    /// What is missing for the attempt under way, or the next one.
    fn of_attempts(&self, status: StageStatus, attempts: &[AttemptView], definition: &StageDefinition) -> Vec<Missing> {
        match status {
            StageStatus::Ready => self.agents(definition),
            StageStatus::Waiting => {
                let error = attempts.last().and_then(|attempt| attempt.error.clone());
                let attempt = u32::try_from(attempts.len() + 1).unwrap_or(u32::MAX);
                vec![Missing::Attempt { attempt, error }]
            }
            StageStatus::Running => {
                let Some(attempt) = attempts.last() else { return Vec::new() };
                let (Some(agent), Some(since)) = (attempt.agent.clone(), attempt.assigned_at) else {
                    return Vec::new();
                };
                vec![Missing::Report { agent, since, until: since.saturating_add(definition.timeout_ms) }]
            }
            _ => Vec::new(),
        }
    }

    fn open_dependencies(&self, definition: &StageDefinition) -> Vec<Missing> {
        let open = self.waits.get(&definition.name).into_iter().flatten().filter_map(|name| self.stages.get(name));
        let open = open.filter(|stage| !stage.status.is_end());
        open.map(|stage| Missing::Stage { stage: stage.name.clone(), status: stage.status }).collect()
    }

    /// Stages that have begun, beside which this one does not run.
    fn not_beside(&self, definition: &StageDefinition) -> Option<Missing> {
        let begun =
            self.view.stages.iter().filter(|stage| {
                matches!(stage.status, StageStatus::Ready | StageStatus::Running | StageStatus::Waiting)
            });
        let parallel = |name| self.definitions.get(name).is_none_or(|other| other.parallel);
        let stages: Vec<_> = begun
            .filter(|stage| !definition.parallel || !parallel(&stage.name))
            .map(|stage| stage.name.clone())
            .collect();
        (!stages.is_empty()).then_some(Missing::Alone { stages })
    }

    /// What every agent lacks that can do it; or that there is none, or that one has room.
    fn agents(&self, definition: &StageDefinition) -> Vec<Missing> {
        let able = |agent: &&AgentView| {
            agent.status != AgentStatus::Gone
                && (agent.agent_type == definition.agent_type
                    || agent.capabilities.contains_key(&definition.agent_type))
        };
        let mut missing = Vec::new();
        for agent in self.agents.agents.iter().filter(able) {
            let metadata = agent.capabilities.get(&definition.agent_type);
            if let Some(key) = definition.requires.unmet(metadata) {
                missing.push(Missing::Unfit { agent: agent.agent.clone(), requires: key.to_owned() });
                continue;
            }
            let open = |breaker: &&BreakerView| {
                breaker.capability == definition.agent_type && breaker.state == BreakerState::Open
            };
            if let Some(breaker) = agent.breakers.iter().find(open) {
                missing.push(Missing::Breaker { agent: agent.agent.clone(), until: breaker.until });
                continue;
            }
            let lacks = lacks(agent, definition);
            if lacks.is_empty() {
                return vec![Missing::Placement { agent: agent.agent.clone() }];
            }
            missing.push(Missing::Room { agent: agent.agent.clone(), lacks });
        }
        if missing.is_empty() {
            missing.push(Missing::Agent { agent_type: definition.agent_type.clone() });
        }
        missing
    }

    /// The stages on which it waits through others and which wait for no stage themselves.
    fn roots(&self, stage: &StageName) -> Vec<Root> {
        let mut seen = BTreeSet::new();
        let mut next = vec![stage];
        let mut roots = Vec::new();
        while let Some(name) = next.pop() {
            let Some(waits) = self.waits.get(name).filter(|_| seen.insert(name)) else { continue };
            let open = waits.iter().copied();
            let open: Vec<_> =
                open.filter(|name| self.stages.get(name).is_some_and(|stage| !stage.status.is_end())).collect();
            match self.stages.get(name) {
                Some(shown) if open.is_empty() && name != stage => {
                    roots.push(Root { stage: name.clone(), status: shown.status, missing: self.missing(shown) })
                }
                _ => next.extend(open),
            }
        }
        roots.sort_by(|a, b| a.stage.cmp(&b.stage));
        roots.truncate(MAX_ROOTS);
        roots
    }
}

/// What an agent lacks for a stage.
fn lacks(agent: &AgentView, stage: &StageDefinition) -> Vec<Lack> {
    let mut lacks = Vec::new();
    let slots = agent.slots as usize;
    if agent.leases.len() >= slots {
        let (needs, free, has) = ("1".to_owned(), "0".to_owned(), slots.to_string());
        lacks.push(Lack { resource: "slot".to_owned(), needs, free, has });
    }
    for (name, needs) in &stage.resources {
        let of = |resources: &baton_protocol::Resources| resources.get(name).copied().unwrap_or_default();
        let (has, in_use): (Amount, Amount) = (of(&agent.resources), of(&agent.in_use));
        if in_use + *needs > has {
            let free = if has > in_use { has - in_use } else { Amount::default() };
            lacks.push(Lack {
                resource: name.to_string(),
                needs: needs.to_string(),
                free: free.to_string(),
                has: has.to_string(),
            });
        }
    }
    lacks
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn definition() -> Definition {
        Definition::builder("w")
            .add_stage("a", "x", &[])
            .add_stage("b", "x", &[])
            .with(|stage| {
                stage.resources.insert("cpu".parse().unwrap(), 2.into());
            })
            .add_stage("c", "nobody", &[])
            .add_stage("d", "x", &["a", "b"])
            .add_stage("e", "x", &["c", "d"])
            .add_stage("alone", "x", &[])
            .with(|stage| stage.parallel = false)
            .build()
            .unwrap()
    }

    fn view(stages: &[(&str, &str, Value)], paused: Value) -> RunView {
        let stage = |(name, status, attempts): &(&str, &str, Value)| json!({ "name": name, "agent_type": "x", "status": status, "attempts": attempts });
        serde_json::from_value(json!({
            "run": "0199a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b", "workflow": "w", "version": 1, "status": "running", "input": {},
            "trace_id": "", "started_at": 0, "cost": "0", "usage": {}, "first_seq": 0, "paused": paused,
            "stages": stages.iter().map(stage).collect::<Vec<_>>()
        }))
        .unwrap()
    }

    fn running() -> Vec<(&'static str, &'static str, Value)> {
        let open = json!([{ "attempt": 1, "ready_at": 5, "assigned_at": 10, "agent": "ann", "lease": 1 }]);
        vec![
            ("a", "running", open),
            ("b", "ready", json!([{ "attempt": 1, "ready_at": 5 }])),
            ("c", "ready", json!([{ "attempt": 1, "ready_at": 5 }])),
            ("d", "pending", json!([])),
            ("e", "pending", json!([])),
            ("alone", "pending", json!([])),
        ]
    }

    fn agents(slots: u32) -> AgentList {
        let lease = json!({ "lease": 1, "task": "0199a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b/a/1", "since": 10 });
        serde_json::from_value(json!({ "agents": [{
            "agent": "ann", "status": "busy", "agent_type": "x", "slots": slots, "leases": [lease], "resources": { "cpu": 3 },
            "in_use": { "cpu": 2 }, "registered_at": 0
        }] }))
        .unwrap()
    }

    fn missing(view: &RunView, agents: &AgentList, stage: &str) -> Value {
        let why = why(view, &definition(), agents, &stage.parse().unwrap()).unwrap();
        serde_json::to_value(&why.missing).unwrap()
    }

    #[test]
    fn w13_what_a_stage_waits_for_is_said_exactly() {
        let view = view(&running(), Value::Null);
        assert_eq!(
            missing(&view, &agents(1), "a"),
            json!([{ "what": "report", "agent": "ann", "since": 10, "until": 3_600_010 }])
        );
        let cpu = json!({ "resource": "cpu", "needs": "2", "free": "1", "has": "3" });
        let slot = json!({ "resource": "slot", "needs": "1", "free": "0", "has": "1" });
        assert_eq!(missing(&view, &agents(1), "b"), json!([{ "what": "room", "agent": "ann", "lacks": [slot, cpu] }]));
        assert_eq!(missing(&view, &agents(2), "b"), json!([{ "what": "room", "agent": "ann", "lacks": [cpu] }]));
        assert_eq!(missing(&view, &agents(1), "c"), json!([{ "what": "agent", "agent_type": "nobody" }]));
        assert_eq!(
            missing(&view, &agents(1), "d"),
            json!([
                { "what": "stage", "stage": "a", "status": "running" }, { "what": "stage", "stage": "b", "status": "ready" }
            ])
        );
        assert_eq!(missing(&view, &agents(1), "alone"), json!([{ "what": "alone", "stages": ["a", "b", "c"] }]));
        let whole = why(&view, &definition(), &agents(1), &"e".parse().unwrap()).unwrap();
        let roots: Vec<_> = whole.roots.iter().map(|root| (root.stage.as_str(), root.missing.len())).collect();
        assert_eq!(roots, [("a", 1), ("b", 1), ("c", 1)]);
        let unknown = why(&view, &definition(), &agents(1), &"f".parse().unwrap()).unwrap_err();
        assert!(unknown.message.contains("its stages are: a, b, c, d, e, alone"), "{unknown}");
    }

    #[test]
    fn w13_a_pause_and_a_failed_attempt_are_said_too() {
        let mut stages = running();
        stages[0] = ("a", "waiting", json!([{ "attempt": 1, "ready_at": 5, "error": "no", "outcome": "failed" }]));
        let view = view(&stages, json!({ "since": 7, "reason": "lunch" }));
        let resume = json!({ "what": "resume", "since": 7, "reason": "lunch" });
        assert_eq!(
            missing(&view, &agents(2), "a"),
            json!([{ "what": "attempt", "attempt": 2, "error": "no" }, resume])
        );
        assert_eq!(missing(&view, &agents(2), "c"), json!([{ "what": "agent", "agent_type": "nobody" }, resume]));
    }
}
