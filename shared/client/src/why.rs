//! Why a stage does not go on, from what the services say of the run, its workflow and the agents.

use std::collections::{BTreeMap, BTreeSet};

use baton_protocol::breaker::{BreakerState, BreakerView};
use baton_protocol::budget::{agent_account, least};
use baton_protocol::definition::{Definition, StageDefinition};
use baton_protocol::record::Outcome;
use baton_protocol::request::{AgentList, AgentStatus, AgentView, GetWorkflow, ListAgents, ListPools, PoolView};
use baton_protocol::run::{AttemptView, ItemView, RunView, Speculation, StageStatus, StageView, Waits};
use baton_protocol::why::{Lack, Missing, Root, Why};
use baton_protocol::{Amount, Code, Measure, Millis, Rejection, ResourceName, Resources, RunId, StageName, TaskId};

use crate::{Client, ClientError};

/// How many stages are named on which a stage waits in the end.
const MAX_ROOTS: usize = 50;

/// How many things are said to be missing for the items of a stage.
const MAX_OF_ITEMS: usize = 20;

impl Client {
    /// Says what a stage of a run waits for: stages, agents, room, pools, money, time, a report. The answer is of several
    /// moments that follow each other closely: the run's, then the agents', then that of the pools.
    pub async fn why(&self, run: RunId, stage: &StageName) -> Result<Why, ClientError> {
        let view = self.get_run(run).await?;
        let definition = self.definition_of(&view).await?;
        let agents = self.list_agents(&ListAgents::default()).await?;
        let none = Pools::new();
        let wanted = Known::new(&view, &definition, &agents, &none).pools_wanted(stage);
        let pools = self.pools(wanted).await?;
        why(&view, &definition, &agents, &pools, stage).map_err(ClientError::Rejected)
    }

    /// What a run does: what its workflow says in the version that it keeps, or what an agent has delegated.
    pub async fn definition_of(&self, view: &RunView) -> Result<Definition, ClientError> {
        if let Some(definition) = &view.definition {
            return Ok(Definition::clone(definition));
        }
        let request = GetWorkflow { name: view.workflow.clone(), version: Some(view.version) };
        Ok(self.get_workflow(&request).await?.definition)
    }

    /// Those of these resources that are pools, with what they are parts of; and, where there are any, the accounts of agents.
    async fn pools(&self, wanted: BTreeSet<ResourceName>) -> Result<Pools, ClientError> {
        let mut pools = Pools::new();
        if wanted.is_empty() {
            return Ok(pools);
        }
        // Lists are by name.
        let mut page = ListPools { name: None, after: ResourceName::new(AGENTS.0).ok() };
        loop {
            let list = self.list_pools(&page).await?;
            page.after = list.pools.last().map(|pool| pool.name.clone());
            let beyond = page.after.as_ref().is_none_or(|last| last.as_str() >= AGENTS.1);
            pools.extend(list.pools.into_iter().map(|pool| (pool.name.clone(), pool)));
            if !list.more || beyond {
                break;
            }
        }
        let mut wanted: Vec<_> = wanted.into_iter().collect();
        while let Some(name) = wanted.pop() {
            if !pools.contains_key(&name) {
                match self.list_pools(&ListPools { name: Some(name), after: None }).await {
                    Ok(list) => pools.extend(list.pools.into_iter().map(|pool| (pool.name.clone(), pool))),
                    // It is a resource of agents.
                    Err(error) if error.code() == Some(Code::UnknownResource) => continue,
                    Err(error) => return Err(error),
                }
            }
            let parents = pools.values().filter_map(|pool| pool.pool.parent.clone());
            let parents: BTreeSet<_> = parents.filter(|parent| !pools.contains_key(parent)).collect();
            wanted.extend(parents.into_iter().filter(|parent| !wanted.contains(parent)).collect::<Vec<_>>());
        }
        Ok(pools)
    }
}

/// What is before the names of all accounts of agents, and what is after them.
const AGENTS: (&str, &str) = ("agent", "agent;");

type Pools = BTreeMap<ResourceName, PoolView>;

/// What a stage of a run waits for.
fn why(
    view: &RunView,
    definition: &Definition,
    agents: &AgentList,
    pools: &Pools,
    stage: &StageName,
) -> Result<Why, Rejection> {
    let known = Known::new(view, definition, agents, pools);
    let Some(shown) = known.stages.get(stage) else {
        let names: Vec<_> = definition.stages.iter().take(50).map(|stage| stage.name.as_str()).collect();
        let message = format!("run {} has no stage {stage}; its stages are: {}", view.run, names.join(", "));
        return Err(Rejection::new(Code::InvalidRequest, message));
    };
    let root =
        |stage: &StageView| Root { stage: stage.name.clone(), status: stage.status, missing: known.missing(stage) };
    Ok(Why {
        run: view.run,
        run_status: view.status,
        stage: stage.clone(),
        status: shown.status,
        missing: known.missing(shown),
        roots: known.roots(shown).into_iter().map(root).collect(),
    })
}

struct Known<'a> {
    view: &'a RunView,
    stages: BTreeMap<&'a StageName, &'a StageView>,
    definitions: BTreeMap<&'a StageName, &'a StageDefinition>,
    /// What each stage waits for: what it depends on, with the fallbacks of that.
    waits: BTreeMap<&'a StageName, Vec<&'a StageName>>,
    agents: &'a AgentList,
    pools: &'a Pools,
}

impl<'a> Known<'a> {
    fn new(view: &'a RunView, definition: &'a Definition, agents: &'a AgentList, pools: &'a Pools) -> Self {
        let name = |place: usize| &definition.stages[place].name;
        let waits = definition.waits().into_iter().enumerate();
        Self {
            view,
            waits: waits.map(|(place, of)| (name(place), of.into_iter().map(name).collect())).collect(),
            stages: view.stages.iter().map(|stage| (&stage.name, stage)).collect(),
            definitions: definition.stages.iter().map(|stage| (&stage.name, stage)).collect(),
            agents,
            pools,
        }
    }

    /// What may be a pool of what a stage and those on which it waits in the end need, if they wait for an agent.
    fn pools_wanted(&self, stage: &StageName) -> BTreeSet<ResourceName> {
        let asked = self.stages.get(stage).copied().filter(|_| !self.view.status.is_end());
        let all = asked.into_iter().flat_map(|stage| [stage].into_iter().chain(self.roots(stage)));
        let waits = |stage: &&StageView| {
            let ready = |item: &ItemView| item.status == StageStatus::Ready;
            stage.status == StageStatus::Ready || stage.items.iter().any(ready)
        };
        let definitions = all.filter(waits).filter_map(|stage| self.definitions.get(&stage.name));
        definitions.flat_map(|definition| self.needs(definition).into_keys()).collect()
    }

    /// What a task of a stage needs beside a slot, money included.
    fn needs(&self, definition: &StageDefinition) -> Resources {
        let mut needs = definition.resources.clone();
        if let Some(account) = self.view.budget.as_ref().and_then(|budget| budget.account(self.view.run)) {
            needs.entry(account).or_insert_with(|| expected(definition));
        }
        needs
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
                let missing = self.of_attempts(stage.status, &stage.attempts, definition, None);
                missing.into_iter().chain(paused).collect()
            }
            StageStatus::Running if stage.waits.is_some() => stage.waits.iter().map(word).collect(),
            StageStatus::Running if stage.items.is_empty() => {
                self.of_attempts(stage.status, &stage.attempts, definition, None)
            }
            StageStatus::Running => {
                let mut missing = Vec::new();
                for (item, number) in stage.items.iter().zip(0..) {
                    for of_item in self.of_attempts(item.status, &item.attempts, definition, Some(number)) {
                        if missing.len() < MAX_OF_ITEMS && !missing.contains(&of_item) {
                            missing.push(of_item);
                        }
                    }
                }
                missing.extend(items_beside(&stage.items, definition));
                missing.extend(paused);
                missing
            }
            StageStatus::Succeeded | StageStatus::Failed | StageStatus::Skipped | StageStatus::Cancelled => Vec::new(),
        }
    }

    /// What is missing for the attempt under way, or the next one.
    fn of_attempts(
        &self,
        status: StageStatus,
        attempts: &[AttemptView],
        definition: &StageDefinition,
        item: Option<u32>,
    ) -> Vec<Missing> {
        let Some(last) = attempts.last() else { return Vec::new() };
        match status {
            StageStatus::Ready => self.for_an_agent(definition),
            StageStatus::Waiting => {
                let attempt = last.attempt;
                let task = TaskId { run: self.view.run, stage: definition.name.clone(), item, attempt };
                let at_once = matches!(last.outcome, Some(Outcome::Lost | Outcome::Delegated));
                let wait = if at_once { 0 } else { definition.retry.wait_ms(&task) };
                let at = last.ended_at.map(|ended| ended.saturating_add(wait));
                let at = at.filter(|_| self.view.paused.is_none());
                vec![Missing::Attempt { attempt: attempt + 1, at, error: last.error.clone() }]
            }
            StageStatus::Running => {
                let counts = |attempt: &&AttemptView| attempt.speculation.is_none_or(|at| at == Speculation::Committed);
                let total = attempts.iter().find(counts).zip(definition.total_timeout_ms);
                let total = total.map_or(Millis::MAX, |(first, total)| first.ready_at.saturating_add(total));
                let until = |since: Millis| since.saturating_add(definition.timeout_ms).min(total);
                match (&last.agent, last.assigned_at, last.child) {
                    (_, _, Some(run)) => {
                        vec![Missing::Run { run, since: last.ready_at, until: until(last.ready_at) }]
                    }
                    (Some(agent), Some(since), None) => {
                        vec![Missing::Report { agent: agent.clone(), since, until: until(since) }]
                    }
                    _ => Vec::new(),
                }
            }
            StageStatus::Pending
            | StageStatus::Succeeded
            | StageStatus::Failed
            | StageStatus::Skipped
            | StageStatus::Cancelled => Vec::new(),
        }
    }

    fn open_dependencies(&self, definition: &StageDefinition) -> Vec<Missing> {
        let open = self.waits.get(&definition.name).into_iter().flatten().filter_map(|name| self.stages.get(name));
        let open = open.filter(|stage| !stage.status.is_end());
        open.map(|stage| Missing::Stage { stage: stage.name.clone(), status: stage.status }).collect()
    }

    /// Stages that have begun, beside which this one does not run.
    fn not_beside(&self, definition: &StageDefinition) -> Option<Missing> {
        let has_begun = |stage: &&StageView| {
            matches!(stage.status, StageStatus::Ready | StageStatus::Running | StageStatus::Waiting)
        };
        let parallel = |name| self.definitions.get(name).is_none_or(|other| other.parallel);
        let stages: Vec<_> = (self.view.stages.iter().filter(has_begun))
            .filter(|stage| !definition.parallel || !parallel(&stage.name))
            .map(|stage| stage.name.clone())
            .collect();
        (!stages.is_empty()).then_some(Missing::Alone { stages })
    }

    /// What is missing until an agent has a task: of pools, and of agents.
    fn for_an_agent(&self, definition: &StageDefinition) -> Vec<Missing> {
        let needs = self.pools_needed(self.needs(definition));
        let mut missing: Vec<_> = needs
            .iter()
            .filter(|(pool, needs)| lacks(pool, *needs))
            .map(|(pool, needs)| of_pool(pool, *needs))
            .collect();
        let agents = self.agents(definition);
        if !matches!(agents[..], [Missing::Placement { .. }]) {
            missing.extend(agents);
        } else if missing.is_empty() {
            // There is enough; but somebody else may be before it.
            missing
                .extend(needs.iter().filter(|(pool, _)| pool.waiting > 0).map(|(pool, needs)| of_pool(pool, *needs)));
            missing.extend(agents);
        }
        missing
    }

    /// Those of some needs that are of pools, and what they need of those that the pools are parts of.
    fn pools_needed(&self, needs: Resources) -> Vec<(&'a PoolView, Amount)> {
        let mut needed: BTreeMap<&ResourceName, (&PoolView, Amount)> = BTreeMap::new();
        for (name, amount) in needs {
            let mut pool = self.pools.get(&name);
            let mut seen = BTreeSet::new();
            while let Some(view) = pool.filter(|view| seen.insert(&view.name)) {
                let (_, sum) = needed.entry(&view.name).or_insert((view, Amount::ZERO));
                *sum = *sum + amount;
                pool = view.pool.parent.as_ref().and_then(|parent| self.pools.get(parent));
            }
        }
        needed.into_values().collect()
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
            let lacking = self.lacking(agent, definition);
            if !lacking.is_empty() {
                missing.push(Missing::Room { agent: agent.agent.clone(), lacks: lacking });
                continue;
            }
            match self.unpaid(agent, definition) {
                Some(money) => missing.push(money),
                None => return vec![Missing::Placement { agent: agent.agent.clone() }],
            }
        }
        if missing.is_empty() {
            missing.push(Missing::Agent { agent_type: definition.agent_type.clone() });
        }
        missing
    }

    /// What an agent lacks for a stage.
    fn lacking(&self, agent: &AgentView, definition: &StageDefinition) -> Vec<Lack> {
        let mut lacking = Vec::new();
        let slots = agent.slots as usize;
        if agent.leases.len() >= slots {
            let (needs, free, has) = ("1".to_owned(), "0".to_owned(), slots.to_string());
            lacking.push(Lack { resource: "slot".to_owned(), needs, free, has });
        }
        for (name, needs) in definition.resources.iter().filter(|(name, _)| !self.pools.contains_key(*name)) {
            let of = |resources: &Resources| resources.get(name).copied().unwrap_or_default();
            let (has, in_use) = (of(&agent.resources), of(&agent.in_use));
            if in_use + *needs > has {
                lacking.push(Lack {
                    resource: name.to_string(),
                    needs: needs.to_string(),
                    free: (has - in_use).to_string(),
                    has: has.to_string(),
                });
            }
        }
        lacking
    }

    /// What the account of an agent lacks, if it has one that has not enough.
    fn unpaid(&self, agent: &AgentView, definition: &StageDefinition) -> Option<Missing> {
        let account = agent_account(&agent.agent);
        let is_account = |pool: &&PoolView| pool.pool.measure == Some(Measure::Cost);
        self.pools.get(&account).filter(is_account)?;
        let needs = self.pools_needed(Resources::from([(account, expected(definition))]));
        needs.into_iter().find(|(pool, needs)| lacks(pool, *needs)).map(|(pool, needs)| of_pool(pool, needs))
    }

    /// The stages on which one waits through others and which wait for no stage themselves.
    fn roots(&self, stage: &'a StageView) -> Vec<&'a StageView> {
        if stage.status != StageStatus::Pending {
            return Vec::new();
        }
        let mut seen = BTreeSet::new();
        let mut next = vec![&stage.name];
        let mut roots = Vec::new();
        while let Some(name) = next.pop() {
            let Some(waits) = self.waits.get(name).filter(|_| seen.insert(name)) else { continue };
            let is_open = |name: &&StageName| self.stages.get(*name).is_some_and(|stage| !stage.status.is_end());
            let open: Vec<_> = waits.iter().copied().filter(is_open).collect();
            match self.stages.get(name) {
                Some(shown) if open.is_empty() && *name != stage.name => roots.push(*shown),
                _ => next.extend(open),
            }
        }
        roots.sort_by(|a, b| a.name.cmp(&b.name));
        roots.truncate(MAX_ROOTS);
        roots
    }
}

/// Somebody's word.
fn word(waits: &Waits) -> Missing {
    match waits {
        Waits::Approval { ask, until } => Missing::Approval { ask: ask.clone(), until: *until },
        Waits::Signal { signal, until } => Missing::Signal { signal: signal.clone(), until: *until },
    }
}

/// What is set aside for a task of a stage.
fn expected(definition: &StageDefinition) -> Amount {
    definition.budget.filter(|amount| !amount.is_zero()).unwrap_or_else(least)
}

/// Whether a pool has not that much.
fn lacks(pool: &PoolView, needs: Amount) -> bool {
    pool.exclusive || pool.available.is_some_and(|available| available < needs.rounded_up())
}

fn of_pool(pool: &PoolView, needs: Amount) -> Missing {
    if pool.pool.measure == Some(Measure::Cost) {
        return Missing::Money {
            account: pool.name.clone(),
            needs,
            left: pool.available.unwrap_or_default(),
            size: pool.pool.size,
            currency: pool.pool.currency.clone(),
            asked: pool.asked.as_ref().map(|asked| asked.since),
        };
    }
    let free = pool.available.filter(|_| !pool.exclusive);
    Missing::Pool { pool: pool.name.clone(), needs, free, size: pool.pool.size, waiting: pool.waiting }
}

/// That items wait until others are over, if they do.
fn items_beside(items: &[ItemView], definition: &StageDefinition) -> Option<Missing> {
    let most = definition.for_each.as_ref()?.max_parallel?;
    let count = |wanted: &dyn Fn(StageStatus) -> bool| {
        u32::try_from(items.iter().filter(|item| wanted(item.status)).count()).unwrap_or(u32::MAX)
    };
    let waiting = count(&|status| status == StageStatus::Pending);
    let under_way = count(&|status| !status.is_end()) - waiting;
    (waiting > 0 && under_way >= most).then_some(Missing::Items { under_way, most, waiting })
}

#[cfg(test)]
mod tests {
    use baton_protocol::definition::{Approval, ForEach, Otherwise, RetryPolicy, WaitFor};
    use baton_protocol::run::PausedView;
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

    fn view(stages: &[(&str, &str, Value)], paused: &Value) -> RunView {
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
        let why = why(view, &definition(), agents, &Pools::new(), &stage.parse().unwrap()).unwrap();
        serde_json::to_value(&why.missing).unwrap()
    }

    #[test]
    fn w13_what_a_stage_waits_for_is_said_exactly() {
        let view = view(&running(), &Value::Null);
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
        let whole = why(&view, &definition(), &agents(1), &Pools::new(), &"e".parse().unwrap()).unwrap();
        let roots: Vec<_> = whole.roots.iter().map(|root| (root.stage.as_str(), root.missing.len())).collect();
        assert_eq!(roots, [("a", 1), ("b", 1), ("c", 1)]);
        let unknown = why(&view, &definition(), &agents(1), &Pools::new(), &"f".parse().unwrap()).unwrap_err();
        assert!(unknown.message.contains("its stages are: a, b, c, d, e, alone"), "{unknown}");
    }

    /// Pools as they are listed; the first is held, the others are accounts, of which one is a part of the other.
    fn pools(gpus: u32, run: &str, team: &str, ann: &str) -> Pools {
        let account = |name: &str, size: &str, left: &str, parent: Value, asked: Value| {
            json!({
                "name": name, "pool": { "kind": "consumed", "size": size, "measure": "cost", "currency": "EUR", "parent": parent },
                "in_use": "0", "available": left, "leases": 0, "waiting": 0, "asked": asked
            })
        };
        let views: Vec<PoolView> = serde_json::from_value(json!([
            { "name": "gpu", "pool": { "kind": "held", "size": 4 }, "in_use": 4 - gpus, "available": gpus, "leases": 1, "waiting": 1 },
            account("run:0199a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b", "1", run, json!("team"), Value::Null),
            account("team", "10", team, Value::Null, json!({ "wanted": "0.5", "since": 3 })),
            account("agent:ann", "5", ann, Value::Null, Value::Null),
        ]))
        .unwrap();
        views.into_iter().map(|view| (view.name.clone(), view)).collect()
    }

    #[test]
    fn w13_whose_word_is_waited_for_is_said() {
        let definition = Definition::builder("w")
            .add_approval("sign", Approval::default(), &[])
            .add_wait("paid", WaitFor { signal: "paid".parse().unwrap(), on_timeout: Otherwise::Fail }, &[])
            .add_stage("send", "x", &["sign", "paid"])
            .build()
            .unwrap();
        let open = json!([{ "attempt": 1, "ready_at": 5 }]);
        let stages = [("sign", "running", open.clone()), ("paid", "running", open), ("send", "pending", json!([]))];
        // They wait on while the run is paused.
        let mut view = view(&stages, &json!({ "since": 7 }));
        view.stages[0].waits = Some(Waits::Approval { ask: Some("Sure?".to_owned()), until: 9 });
        view.stages[1].waits = Some(Waits::Signal { signal: "paid".parse().unwrap(), until: 8 });
        let why = why(&view, &definition, &agents(1), &Pools::new(), &"send".parse().unwrap()).unwrap();
        let roots: Vec<_> = why.roots.iter().map(|root| serde_json::to_value(&root.missing).unwrap()).collect();
        let signal = json!([{ "what": "signal", "signal": "paid", "until": 8 }]);
        assert_eq!(roots, [signal, json!([{ "what": "approval", "ask": "Sure?", "until": 9 }])]);
    }

    #[test]
    fn w13_a_pool_that_has_not_enough_and_the_account_that_has_no_money_are_named() {
        let definition = Definition::builder("w")
            .add_stage("p", "x", &[])
            .with(|stage| {
                stage.resources = serde_json::from_value(json!({ "gpu": 2, "cpu": 1 })).unwrap();
                stage.budget = Some("0.5".parse().unwrap());
            })
            .build()
            .unwrap();
        let mut view = view(&[("p", "ready", json!([{ "attempt": 1, "ready_at": 5 }]))], &Value::Null);
        view.budget = Some(serde_json::from_value(json!({ "limit": "1", "of": "team" })).unwrap());
        let agents = agents(2);
        let stage = "p".parse().unwrap();
        let missing = |pools: &Pools| {
            let why = why(&view, &definition, &agents, pools, &stage).unwrap();
            serde_json::to_value(&why.missing).unwrap()
        };
        let none = Pools::new();
        let wanted = Known::new(&view, &definition, &agents, &none).pools_wanted(&stage);
        let wanted: Vec<_> = wanted.iter().map(ResourceName::as_str).collect();
        assert_eq!(wanted, ["cpu", "gpu", "run:0199a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b"]);
        // What is no pool is the agents' own.
        let lacks = json!([{ "resource": "gpu", "needs": "2", "free": "0", "has": "0" }]);
        assert_eq!(missing(&none), json!([{ "what": "room", "agent": "ann", "lacks": lacks }]));

        let gpu = json!({ "what": "pool", "pool": "gpu", "needs": 2, "free": 1, "size": 4, "waiting": 1 });
        let money = |account: &str, left: &str, size: u32| json!({ "what": "money", "account": account, "needs": "0.5", "left": left, "size": size, "currency": "EUR" });
        let mut team = money("team", "0.25", 10);
        team["asked"] = json!(3);
        let run = money("run:0199a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b", "0.25", 1);
        let amounts = |mut missing: Value| {
            // Amounts are written as numbers where they are whole.
            for one in missing.as_array_mut().unwrap() {
                for key in ["needs", "left", "size", "free"] {
                    if let Some(amount) = one.get_mut(key) {
                        *amount = json!(amount.as_str().map_or_else(|| amount.to_string(), str::to_owned));
                    }
                }
            }
            missing
        };
        let check = |pools: &Pools, expected: Value| assert_eq!(amounts(missing(pools)), amounts(expected));
        check(&pools(1, "0.75", "0.25", "5"), json!([gpu, team]));
        check(&pools(2, "0.25", "0.25", "5"), json!([run, team]));
        check(&pools(2, "0.75", "5", "0.25"), json!([money("agent:ann", "0.25", 5)]));
        // There is enough of all, and somebody else waits for the pool, who may be before it.
        let others = json!({ "what": "pool", "pool": "gpu", "needs": 2, "free": 2, "size": 4, "waiting": 1 });
        check(&pools(2, "0.75", "5", "5"), json!([others, { "what": "placement", "agent": "ann" }]));
    }

    #[test]
    fn w13_items_that_wait_for_others_and_the_time_of_the_next_attempt_are_said() {
        let definition = Definition::builder("w")
            .add_stage("each", "x", &[])
            .with(|stage| {
                let items = "[1, 2, 3, 4]".into();
                stage.for_each = Some(ForEach { items, max_parallel: Some(2), max_failures: 0 });
                stage.retry = RetryPolicy { initial_ms: 1000, jitter: 0.0, ..RetryPolicy::default() };
                stage.total_timeout_ms = Some(500);
            })
            .build()
            .unwrap();
        let mut view = view(&[("each", "running", json!([{ "attempt": 1, "ready_at": 5 }]))], &Value::Null);
        view.stages[0].items = serde_json::from_value(json!([
            { "status": "succeeded" },
            { "status": "running", "attempts": [{ "attempt": 1, "ready_at": 5, "assigned_at": 10, "agent": "ann" }] },
            { "status": "waiting", "attempts": [
                { "attempt": 1, "ready_at": 5, "ended_at": 20, "outcome": "failed", "error": "no" }
            ] },
            { "status": "pending" },
        ]))
        .unwrap();
        let missing = |view: &RunView| {
            let why = why(view, &definition, &agents(2), &Pools::new(), &"each".parse().unwrap()).unwrap();
            serde_json::to_value(&why.missing).unwrap()
        };
        let report = json!({ "what": "report", "agent": "ann", "since": 10, "until": 505 });
        let items = json!({ "what": "items", "under_way": 2, "most": 2, "waiting": 1 });
        let attempt = json!({ "what": "attempt", "attempt": 2, "at": 1020, "error": "no" });
        assert_eq!(missing(&view), json!([report, attempt, items]));
        view.paused = Some(PausedView { since: 30, reason: None });
        let attempt = json!({ "what": "attempt", "attempt": 2, "error": "no" });
        assert_eq!(missing(&view), json!([report, attempt, items, { "what": "resume", "since": 30 }]));
    }

    #[test]
    fn w13_a_pause_and_a_failed_attempt_are_said_too() {
        let mut stages = running();
        stages[0] = ("a", "waiting", json!([{ "attempt": 1, "ready_at": 5, "error": "no", "outcome": "failed" }]));
        let view = view(&stages, &json!({ "since": 7, "reason": "lunch" }));
        let resume = json!({ "what": "resume", "since": 7, "reason": "lunch" });
        assert_eq!(
            missing(&view, &agents(2), "a"),
            json!([{ "what": "attempt", "attempt": 2, "error": "no" }, resume])
        );
        assert_eq!(missing(&view, &agents(2), "c"), json!([{ "what": "agent", "agent_type": "nobody" }, resume]));
    }
}
