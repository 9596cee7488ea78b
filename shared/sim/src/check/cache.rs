//! The rules of results that are used again.

use baton_protocol::record::{Outcome, StageCached, StageEnded, StageReady, Stamp};
use baton_protocol::{Json, Millis, RunId, StageDefinition, WorkflowName};
use serde_json::{Value, json};

use super::flow::{FLOW, Verdict};
use super::{Checked, Facts, Run, broken, hold};
use crate::coverage::Branch;

const CACHED: &str = "a result is used again for the same, where the definition says so, and not for too long";

/// What is drawn as that on which a result depends.
pub(crate) const CACHE_KEY: &str = "input.n % 2";

/// What a stage gave that may be used again.
#[derive(Debug)]
pub(super) struct Done {
    run: RunId,
    workflow: WorkflowName,
    stage: StageDefinition,
    depends_on: Value,
    result: Json,
    at: Millis,
}

impl Done {
    fn is_for(&self, run: &Run, place: usize, at: Millis) -> bool {
        let stage = run.definition(place);
        let ttl = stage.cache.as_ref().map_or(0, |cache| cache.ttl_ms);
        self.workflow == run.workflow
            && same_work(&self.stage, stage)
            && at < self.at + ttl
            && self.depends_on == run.depends_on(place)
    }
}

/// Whether two versions of a stage ask for the same: when it may begin, how long it may take and how often it is tried make no
/// other result of it.
fn same_work(one: &StageDefinition, other: &StageDefinition) -> bool {
    let key = |stage: &StageDefinition| stage.cache.as_ref().and_then(|cache| cache.key.clone());
    // Without a key of its own the results that it is given count, by name.
    let given = |stage: &StageDefinition| key(stage).is_none().then(|| stage.depends_on.clone());
    one.name == other.name
        && one.agent_type == other.agent_type
        && one.requires == other.requires
        && one.params == other.params
        && one.output == other.output
        && one.input_schema == other.input_schema
        && one.output_schema == other.output_schema
        && (key(one), given(one)) == (key(other), given(other))
}

impl Run {
    /// What the result of a stage depends on.
    fn depends_on(&self, place: usize) -> Value {
        let stage = self.definition(place);
        if stage.cache.as_ref().is_some_and(|cache| cache.key.is_some()) {
            return json!(self.n() % 2);
        }
        let results = stage.depends_on.iter().map(|name| {
            let result = self.place(name.as_str()).and_then(|place| self.result(place));
            result.map(|result| result.as_str().to_owned())
        });
        json!([self.input_of(place), results.collect::<Vec<_>>()])
    }
}

impl Facts {
    /// An attempt begins: nothing that may be used again has the result already.
    pub(super) fn not_done_before(&mut self, stamp: Stamp, place: usize, record: &StageReady) -> Checked {
        let task = &record.task;
        let Some(run) = self.runs.get(&task.run) else { return Ok(()) };
        let keeps = run.definition(place).cache.is_some();
        hold!(record.cache.is_some() == keeps, CACHED, "{task} is kept under {:?}", record.cache);
        if !keeps {
            return Ok(());
        }
        // Where any of several dependencies will do, another one may have a result by the time that this one ends.
        self.given.insert(task.clone(), run.depends_on(place));
        if !run.uses_cache || task.attempt > 1 {
            return Ok(());
        }
        let done = self.done.iter().find(|done| done.is_for(run, place, stamp.at));
        hold!(done.is_none(), CACHED, "{task} is done once more: {done:?}");
        Ok(())
    }

    /// An attempt that was leased has ended.
    pub(super) fn may_be_used_again(&mut self, stamp: Stamp, place: usize, record: &StageEnded) {
        let Some(run) = self.runs.get(&record.task.run) else { return };
        let result = record.result.clone().filter(|_| record.outcome == Outcome::Succeeded);
        if let Some(result) = result.filter(|_| run.definition(place).cache.is_some()) {
            self.done.push(Done {
                run: record.task.run,
                workflow: run.workflow.clone(),
                stage: run.definition(place).clone(),
                depends_on: self.given.get(&record.task).cloned().unwrap_or_default(),
                result,
                at: stamp.at,
            });
        }
    }

    pub(super) fn stage_cached(&mut self, stamp: Stamp, record: &StageCached) -> Checked {
        let StageCached { run: id, stage, of, result } = record;
        let run = self.runs.get(id).filter(|run| run.finished.is_none() && !run.ending);
        let Some((run, place)) = run.and_then(|run| run.place(stage.as_str()).map(|place| (run, place))) else {
            return Err(broken(FLOW, format!("stage {stage} is done in run {id}, which does not go on")));
        };
        hold!(!run.is_paused(), super::operations::PAUSED, "stage {stage} of run {id} is done");
        let begun = !run.stages[place].attempts.is_empty() || run.stages[place].is_over();
        hold!(!begun && run.may_begin(place), FLOW, "stage {stage} of run {id} can not begin now");
        let verdict = run.verdict(place);
        hold!(verdict == Verdict::Runs, FLOW, "stage {stage} of run {id} has a result: {verdict:?}");
        run.runs_alone(place)?;
        hold!(run.uses_cache, CACHED, "run {id} was to use no result again");
        let done =
            self.done.iter().any(|done| done.run == *of && done.result == *result && done.is_for(run, place, stamp.at));
        hold!(done, CACHED, "stage {stage} of run {id} was given what run {of} gave: {result:?}");
        self.seen.push(if self.runs.get(of).is_some_and(|of| of.finished.is_some()) {
            Branch::CachedOfEnded
        } else {
            Branch::CachedOfLive
        });
        let Some(run) = self.runs.get_mut(id) else { return Ok(()) };
        let stage = &mut run.stages[place];
        (stage.over, stage.result) = (Some(Outcome::Succeeded), Some(result.clone()));
        Ok(())
    }
}
