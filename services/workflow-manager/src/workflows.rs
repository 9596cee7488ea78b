//! The workflows: every version of every definition, and the requests about them.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use baton_protocol::definition::DefinitionError;
use baton_protocol::record::{WorkflowRecord, WorkflowRegistered};
use baton_protocol::request::{
    GetWorkflow, ListWorkflows, MAX_DEFINITION_BYTES, RegisterWorkflow, WorkflowList, WorkflowSummary, WorkflowView,
};
use baton_protocol::{Code, Definition, Json, Millis, Rejection, StageName, WorkflowName};
use serde::{Deserialize, Serialize};

use crate::flow::Flows;
use crate::run::Run;
use crate::{Turn, definition};

/// How many names a rejection lists.
const MAX_NAMES: usize = 50;

/// How many of its stages a workflow names in a list.
const MAX_STAGES_LISTED: usize = 20;

/// How many workflows are listed if nothing else is asked for, and how many at the most.
const LIMIT: (u32, u32) = (100, 1000);

/// Every version of every workflow. None is ever removed: runs are looked at with the version that they kept.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Workflows(BTreeMap<WorkflowName, Vec<Arc<Version>>>);

/// One version of a workflow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "Registered")]
pub(crate) struct Version {
    pub(crate) definition: Arc<Definition>,
    pub(crate) registered_at: Millis,
    /// Follows from the definition.
    #[serde(skip)]
    pub(crate) plan: Plan,
}

/// A [`Version`] as it is kept.
#[derive(Deserialize)]
struct Registered {
    definition: Arc<Definition>,
    registered_at: Millis,
}

impl Version {
    /// A definition that no workflow has.
    pub(crate) fn new(definition: &Arc<Definition>, at: Millis) -> Self {
        Registered { definition: Arc::clone(definition), registered_at: at }.into()
    }
}

impl From<Registered> for Version {
    fn from(Registered { definition, registered_at }: Registered) -> Self {
        let plan = Plan::of(&definition);
        Self { definition, registered_at, plan }
    }
}

/// A definition prepared for looking things up. Stages are told by their place in the definition.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Plan {
    index: BTreeMap<StageName, usize>,
    /// How many stages each stage waits for.
    pub(crate) waits_for: Vec<usize>,
    /// The stages that wait for each stage.
    pub(crate) dependents: Vec<Vec<usize>>,
    /// Conditions, mappings, schemas, fallbacks.
    pub(crate) flows: Flows,
    /// What each stage's agent is given beside input and results, in bytes of JSON.
    pub(crate) sizes: Vec<usize>,
}

impl Plan {
    fn of(definition: &Definition) -> Self {
        let index: BTreeMap<_, _> =
            definition.stages.iter().enumerate().map(|(i, stage)| (stage.name.clone(), i)).collect();
        let mut dependents = vec![Vec::new(); definition.stages.len()];
        let waits = definition.waits();
        for (i, others) in waits.iter().enumerate() {
            others.iter().for_each(|other| dependents[*other].push(i));
        }
        let waits_for = waits.iter().map(Vec::len).collect();
        let metadata = size(&definition.metadata);
        let sizes = definition.stages.iter().map(|stage| metadata + size(&stage.params)).collect();
        Self { index, waits_for, dependents, flows: Flows::of(definition), sizes }
    }

    /// The place of a stage.
    pub(crate) fn place(&self, stage: &StageName) -> Option<usize> {
        self.index.get(stage).copied()
    }
}

fn size(value: &impl Serialize) -> usize {
    Json::of(value).map_or(0, |json| json.size())
}

impl Workflows {
    /// Folds a new version. One that is not the next is none.
    pub(crate) fn registered(&mut self, at: Millis, record: &WorkflowRegistered) {
        let versions = self.0.entry(record.definition.name.clone()).or_default();
        if versions.len() + 1 == record.version as usize {
            let registered = Registered { definition: record.definition.clone(), registered_at: at };
            versions.push(Arc::new(registered.into()));
        }
    }

    /// The latest version, with its number.
    pub(crate) fn latest(&self, name: &WorkflowName) -> Option<(u32, &Arc<Version>)> {
        let versions = self.0.get(name)?;
        Some((u32::try_from(versions.len()).ok()?, versions.last()?))
    }

    pub(crate) fn version(&self, name: &WorkflowName, version: u32) -> Option<&Arc<Version>> {
        self.0.get(name)?.get((version as usize).checked_sub(1)?)
    }

    /// What a run does: the version that it keeps, or what an agent has delegated to it.
    pub(crate) fn version_of<'a>(&'a self, run: &'a Run) -> Option<&'a Version> {
        let known = || self.version(&run.workflow, run.version);
        run.own.as_ref().or_else(known).map(Arc::as_ref)
    }

    /// The same, for whoever changes the run.
    pub(crate) fn of(&self, run: &Run) -> Option<Arc<Version>> {
        run.own.as_ref().or_else(|| self.version(&run.workflow, run.version)).cloned()
    }

    /// The version asked for, or the latest one.
    pub(crate) fn find(&self, name: &WorkflowName, version: Option<u32>) -> Result<(u32, &Arc<Version>), Rejection> {
        let unknown = |message| Err(Rejection::new(Code::UnknownWorkflow, message));
        let Some((latest, last)) = self.latest(name) else {
            let mut names: Vec<_> = self.0.keys().take(MAX_NAMES).map(WorkflowName::as_str).collect();
            if self.0.len() > MAX_NAMES {
                names.push("…");
            }
            return unknown(format!("there is no workflow {name}; there are: {}", names.join(", ")));
        };
        match version {
            None => Ok((latest, last)),
            Some(number) => match self.version(name, number) {
                Some(version) => Ok((number, version)),
                None => unknown(format!("workflow {name} has no version {number}; its versions are 1 to {latest}")),
            },
        }
    }

    /// A page of the workflows, by name.
    pub(crate) fn list(&self, request: &ListWorkflows) -> WorkflowList {
        let prefix = request.prefix.as_deref().unwrap_or_default();
        let after = request.after.as_ref().filter(|after| after.as_str() >= prefix);
        let from = match after {
            Some(after) => Bound::Excluded(after.as_str()),
            None => Bound::Included(prefix),
        };
        let limit = request.limit.unwrap_or(LIMIT.0).clamp(1, LIMIT.1) as usize;
        let mut found = self
            .0
            .range::<str, _>((from, Bound::Unbounded))
            .take_while(|(name, _)| name.as_str().starts_with(prefix))
            .filter_map(|(name, versions)| summary(name, versions));
        let workflows = found.by_ref().take(limit).collect();
        WorkflowList { workflows, more: found.next().is_some() }
    }

    pub(crate) fn get(&self, request: &GetWorkflow) -> Result<WorkflowView, Rejection> {
        let (number, version) = self.find(&request.name, request.version)?;
        Ok(view(number, version))
    }
}

fn summary(name: &WorkflowName, versions: &[Arc<Version>]) -> Option<WorkflowSummary> {
    let latest = versions.last()?;
    let stages = &latest.definition.stages;
    Some(WorkflowSummary {
        name: name.clone(),
        version: u32::try_from(versions.len()).ok()?,
        description: latest.definition.description.clone(),
        stages: stages.iter().take(MAX_STAGES_LISTED).map(|stage| stage.name.clone()).collect(),
        stage_count: u32::try_from(stages.len()).ok(),
        registered_at: latest.registered_at,
    })
}

/// Registers a definition, unless it is the latest version already.
pub(crate) fn register(turn: &mut Turn<'_>, request: &RegisterWorkflow) -> Result<WorkflowView, Rejection> {
    let definition = read(request)?;
    let name = definition.name.clone();
    let known = turn.state().workflows.latest(&name).is_some_and(|(_, latest)| *latest.definition == definition);
    if !known {
        emit_version(turn, definition);
    }
    turn.state().workflows.get(&GetWorkflow { name, version: None })
}

/// Checks a definition.
pub(crate) fn validate(request: &RegisterWorkflow) -> Result<WorkflowView, Rejection> {
    Ok(WorkflowView { version: 0, registered_at: 0, definition: read(request)? })
}

/// Makes a definition the next version of its workflow.
pub(crate) fn emit_version(turn: &mut Turn<'_>, definition: Definition) {
    let version = turn.state().workflows.latest(&definition.name).map_or(1, |(latest, _)| latest + 1);
    turn.emit(WorkflowRecord::WorkflowRegistered(WorkflowRegistered { version, definition: Arc::new(definition) }));
}

fn read(request: &RegisterWorkflow) -> Result<Definition, Rejection> {
    let text = match (&request.source, &request.definition) {
        (Some(source), None) => source.as_str(),
        (None, Some(definition)) => definition.as_str(),
        (Some(_), Some(_)) => return Err(Rejection::invalid("give either `source` or `definition`, not both")),
        (None, None) => {
            return Err(Rejection::invalid("give the workflow as `source` (YAML or JSON text) or as `definition`"));
        }
    };
    let definition = definition::parse(text)
        .map_err(|error: DefinitionError| Rejection::new(Code::InvalidWorkflow, error.to_string()))?;
    let bytes = size(&definition);
    if bytes > MAX_DEFINITION_BYTES {
        let message = format!("the definition has {bytes} bytes as JSON; at most {MAX_DEFINITION_BYTES} are allowed");
        return Err(Rejection::new(Code::TooLarge, message));
    }
    Ok(definition)
}

fn view(number: u32, version: &Version) -> WorkflowView {
    WorkflowView {
        version: number,
        registered_at: version.registered_at,
        definition: Definition::clone(&version.definition),
    }
}
