//! The stages of one run, where they are too many to be read at once.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{Path, State};
use baton_protocol::run::{RunView, StageStatus, StageView};
use baton_protocol::why::Why;
use baton_protocol::{Capability, RunId, StageName};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Door;
use crate::extract::{Id, Query};
use crate::problem::Problem;

/// How many stages are listed if nothing else is asked for, and how many at the most.
const LIMIT: (usize, usize) = (100, 1000);

/// Which stages are wanted.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Wanted {
    status: Option<StageStatus>,
    agent_type: Option<Capability>,
    limit: Option<usize>,
    after: Option<StageName>,
}

/// Some stages of a run.
#[derive(Debug, PartialEq, Serialize, JsonSchema)]
pub(crate) struct StageList {
    /// In the order of the definition.
    stages: Vec<StageView>,
    /// Whether there are more after them.
    more: bool,
    /// How many stages of the run stand how, by the agents that they are for.
    counts: BTreeMap<Capability, BTreeMap<StageStatus, u64>>,
}

pub(crate) async fn why(
    State(door): State<Door>,
    Path((run, stage)): Path<(String, String)>,
) -> Result<Json<Why>, Problem> {
    let run: RunId = run.parse().map_err(|error| Problem::invalid(format!("{error}")))?;
    let stage: StageName = stage.parse().map_err(|error| Problem::invalid(format!("{error}")))?;
    Ok(Json(door.client.why(run, &stage).await?))
}

pub(crate) async fn list(
    State(door): State<Door>,
    Id(run): Id<RunId>,
    Query(wanted): Query<Wanted>,
) -> Result<Json<StageList>, Problem> {
    page(door.client.get_run(run).await?, &wanted).map(Json)
}

fn page(view: RunView, wanted: &Wanted) -> Result<StageList, Problem> {
    let mut counts: BTreeMap<Capability, BTreeMap<StageStatus, u64>> = BTreeMap::new();
    for stage in &view.stages {
        *counts.entry(stage.agent_type.clone()).or_default().entry(stage.status).or_default() += 1;
    }
    let from = match &wanted.after {
        None => 0,
        Some(after) => {
            let unknown = || Problem::invalid(format!("after: the run {} has no stage {after}", view.run));
            1 + view.stages.iter().position(|stage| stage.name == *after).ok_or_else(unknown)?
        }
    };
    let is_wanted = |stage: &StageView| {
        wanted.status.is_none_or(|status| stage.status == status)
            && wanted.agent_type.as_ref().is_none_or(|agents| stage.agent_type == *agents)
    };
    let limit = wanted.limit.unwrap_or(LIMIT.0).clamp(1, LIMIT.1);
    let mut found = view.stages.into_iter().skip(from).filter(is_wanted);
    let stages = found.by_ref().take(limit).collect();
    Ok(StageList { stages, more: found.next().is_some(), counts })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn c2_stages_are_listed_page_by_page_and_counted() {
        let stage = |i: usize| {
            let (agents, status) = if i < 3 { ("split", "succeeded") } else { ("sort", "running") };
            json!({ "name": format!("s{i}"), "agent_type": agents, "status": status })
        };
        let view: RunView = serde_json::from_value(json!({
            "run": "0199a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b", "workflow": "w", "version": 1, "status": "running", "input": {},
            "trace_id": "", "started_at": 0, "cost": "0", "usage": {}, "first_seq": 0,
            "stages": (0..10).map(stage).collect::<Vec<_>>()
        }))
        .unwrap();
        let list = |wanted: serde_json::Value| page(view.clone(), &serde_json::from_value(wanted).unwrap());
        let names =
            |list: &StageList| list.stages.iter().map(|stage| stage.name.to_string()).collect::<Vec<_>>().join(" ");
        let first = list(json!({ "limit": 4 })).unwrap();
        assert_eq!((names(&first).as_str(), first.more), ("s0 s1 s2 s3", true));
        assert_eq!(
            serde_json::to_value(&first.counts).unwrap(),
            json!({ "split": { "succeeded": 3 }, "sort": { "running": 7 } })
        );
        let next = list(json!({ "limit": 4, "after": "s3", "status": "running" })).unwrap();
        assert_eq!((names(&next).as_str(), next.more), ("s4 s5 s6 s7", true));
        let last = list(json!({ "agent_type": "sort", "after": "s7" })).unwrap();
        assert_eq!((names(&last).as_str(), last.more), ("s8 s9", false));
        let unknown = list(json!({ "after": "s10" })).unwrap_err();
        assert!(unknown.detail.contains("has no stage s10"), "{}", unknown.detail);
    }
}
