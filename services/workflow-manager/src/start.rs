//! A run is asked for, or asked to stop.

use std::cmp::Reverse;

use baton_machine::RequestContext;
use baton_machine::planted::{Bug, is_planted};
use baton_protocol::pressure::PressureChanged;
use baton_protocol::record::{RunStarted, WorkflowRecord};
use baton_protocol::request::{
    CancelRun, CancelRuns, MAX_JSON_BYTES, MAX_KEY_BYTES, RunAccepted, RunFilter, RunsCancelled, StartRun,
};
use baton_protocol::run::{Metadata, RunStatus};
use baton_protocol::trace::TraceContext;
use baton_protocol::{Budget, Code, Json, Millis, Rejection, RunId, StageName, WorkflowName};

use crate::run::{self, fingerprint};
use crate::workflows::Version;
use crate::{Turn, WorkflowManager, advance, child, schedule, telemetry, text, trigger, view};

/// How many runs are cancelled at a time, and how many attempts may be under way in them.
const MAX_CANCELLED: u32 = 100;
const MAX_ATTEMPTS_CANCELLED: usize = 2000;

/// How many keys the metadata of a run may have, how long they may be, and how long their values.
const MAX_METADATA: (usize, usize, usize) = (16, 63, 255);

/// When to ask again after a refusal for too many live runs: at the least, at the most, and where no run has ended yet.
const RETRY_MS: (Millis, Millis, Millis) = (100, 5000, 1000);
/// The same for a refusal by priority, while there is pressure.
const PRESSED_MS: (Millis, Millis) = (100, 60_000);
/// How many runs start by themselves in one turn, and the longest wait before one that had to wait is tried again: something that matters
/// more may be due meanwhile.
const BATCH: usize = 100;
const RETRY_OWN_MS: Millis = 5000;

/// Starts a run, or gives the one that the same request started before.
pub(crate) fn start(
    turn: &mut Turn<'_>,
    request: StartRun,
    context: &RequestContext,
) -> Result<RunAccepted, Rejection> {
    let input = input(&request.input)?;
    check_ids(request.key.as_ref(), request.run)?;
    check_metadata(&request.metadata)?;
    if let Some(started) = bearing(turn.state(), request.key.as_ref(), request.run) {
        return started.repeat(&request, &input);
    }
    check_new(turn.state(), request.run)?;
    let (version, found) = check_against(turn, &request.workflow, request.version, &input, request.budget.as_ref())?;
    let budget = request.budget.clone().or_else(|| found.definition.budget.clone());
    admit(turn, request.priority)?;
    let run = match request.run {
        Some(run) => run,
        None => unused(turn),
    };
    let trace = request.trace.or(context.trace);
    let due = request.due_ms.map(|due_ms| turn.now().saturating_add(due_ms));
    let StartRun { workflow, priority, key, strategy, metadata, no_cache, .. } = request;
    let (rerun, parent) = (None, None);
    let record = RunStarted {
        run,
        workflow,
        version,
        input,
        priority,
        key,
        trace,
        strategy,
        due,
        budget,
        metadata,
        rerun,
        parent,
        no_cache,
    };
    turn.emit(WorkflowRecord::RunStarted(record));
    telemetry::run_started(turn, run);
    advance::advance(turn, run);
    // A run without stages that can begin has ended by now.
    let known = Known::of(turn.state(), run);
    known.map(|known| known.accepted(false)).ok_or_else(|| Rejection::new(Code::Internal, "the run was not started"))
}

/// Starts runs by themselves, some in one turn: what matters more first, and of what matters the same, what comes first. `start` says in how
/// many milliseconds it can be tried again, where it can not be done now; then nor can any other of the same priority or a lower
/// one. Gives until when nobody need look again.
pub(crate) fn by_themselves<T>(
    turn: &mut Turn<'_>,
    mut due: Vec<(i32, T)>,
    start: impl Fn(&mut Turn<'_>, &T) -> Option<Millis>,
) -> Millis {
    due.sort_by_key(|(priority, _)| Reverse(*priority));
    let mut refused: Option<(i32, Millis)> = None;
    let mut started = 0;
    for (priority, what) in due {
        if refused.is_some_and(|(most, _)| priority <= most) {
            break;
        }
        match start(turn, &what) {
            Some(wait) => refused = Some((priority, wait.clamp(1, RETRY_OWN_MS))),
            None => started += 1,
        }
        if started == BATCH {
            return 0;
        }
    }
    refused.map_or(0, |(_, wait)| turn.now().saturating_add(wait))
}

/// Refuses a key of somebody else's that schedules and triggers know their runs by.
pub(crate) fn check_own(key: Option<&String>) -> Result<(), Rejection> {
    match key.and_then(|key| [schedule::KEY, trigger::KEY].into_iter().find(|own| key.starts_with(own))) {
        Some(own) => {
            Err(Rejection::invalid(format!("keys that begin with {own:?} are those of runs that start by themselves")))
        }
        None => Ok(()),
    }
}

/// The version of a workflow that a run would have. Refuses what it can not be started with.
pub(crate) fn check_against<'a>(
    turn: &'a Turn<'_>,
    workflow: &WorkflowName,
    version: Option<u32>,
    input: &Json,
    budget: Option<&Budget>,
) -> Result<(u32, &'a Version), Rejection> {
    let (version, found) = turn.state().workflows.find(workflow, version)?;
    found.plan.flows.check_input(input).map_err(|why| {
        Rejection::invalid(format!("the input does not fit the input_schema of workflow {workflow}: {why}"))
    })?;
    if let Some(budget) = budget {
        budget.check().map_err(|error| Rejection::invalid(format!("budget: {error}")))?;
    }
    Ok((version, found))
}

/// Refuses an id that a run may have had which was forgotten: the request may be an old one that comes once more.
pub(crate) fn check_new(state: &WorkflowManager, run: Option<RunId>) -> Result<(), Rejection> {
    match run {
        Some(run) if state.history.may_be_forgotten(run) => {
            let message = format!("run id {run} was forgotten, or is older than runs that were; use a new one");
            Err(Rejection::invalid(message))
        }
        _ => Ok(()),
    }
}

/// Refuses a new run that has to wait. A refusal leaves nothing behind.
pub(crate) fn admit(turn: &mut Turn<'_>, priority: i32) -> Result<(), Rejection> {
    let refused = match matters_too_little(turn, priority) {
        Err(rejection) => Err(("pressure", rejection)),
        Ok(()) => is_one_too_many(turn).map_err(|rejection| ("limit", rejection)),
    };
    refused.map_err(|(reason, rejection)| {
        turn.count("baton_runs_refused_total", &[reason], 1.0);
        rejection
    })
}

/// Whether there is too much pressure for a run of this priority. When it is expected to fall, the resource-manager has said.
fn matters_too_little(turn: &Turn<'_>, priority: i32) -> Result<(), Rejection> {
    let pressure = turn.state().pressure.as_ref();
    let pressure = pressure.filter(|pressure| priority < pressure.below && !is_planted(Bug::PressureIgnoredAtTheDoor));
    let Some(PressureChanged { level, causes, below, until, .. }) = pressure else { return Ok(()) };
    let (least, longest) = PRESSED_MS;
    let wait = until.saturating_sub(turn.now()).clamp(least, longest);
    let causes: Vec<_> = causes.iter().map(|cause| cause.as_str()).collect();
    let message = format!(
        "no run of priority {priority} can start now: the pressure is {level} ({}), and until it falls runs of less than \
         {below} are refused",
        causes.join(", ")
    );
    Err(Rejection::new(Code::Overloaded, message).retry_after(wait))
}

/// Whether as many runs are live as may be. A limit that was lowered ends none of them.
///
/// When there will be room again follows from how fast runs have been ending lately. Everybody who is refused is told the
/// same; clients spread their next attempts themselves.
fn is_one_too_many(turn: &Turn<'_>) -> Result<(), Rejection> {
    let (live, most) = (turn.state().live_alone(), turn.config().max_live_runs);
    if live < most {
        return Ok(());
    }
    let (least, longest, unknown) = RETRY_MS;
    let too_many = (live - most + 1) as Millis;
    let each = turn.state().history.between_ends(turn.now());
    let wait = each.map_or(unknown, |each| each.saturating_mul(too_many)).clamp(least, longest);
    let message = format!(
        "no run can start now: the limit of {most} live runs is reached (workflows.max_live_runs; {live} are live)"
    );
    Err(Rejection::new(Code::Overloaded, message).retry_after(wait))
}

/// Cancels a run.
pub(crate) fn cancel(turn: &mut Turn<'_>, request: CancelRun) -> Result<RunAccepted, Rejection> {
    let CancelRun { run, reason } = request;
    let Some(known) = Known::of(turn.state(), run) else {
        let message = format!("run {run} is not running: it ended long ago, or there never was one");
        return Err(Rejection::new(Code::UnknownRun, message));
    };
    match known.status {
        RunStatus::Running => {
            let reason = reason
                .map_or_else(|| "it was cancelled".to_owned(), |reason| text::cut(reason, text::MAX_REASON_BYTES));
            advance::finish(turn, run, RunStatus::Cancelled, Some(reason));
            // The one that it is a part of goes on without it.
            advance::advance(turn, run);
            Ok(RunAccepted { status: RunStatus::Cancelled, ..known.accepted(false) })
        }
        RunStatus::Cancelled => Ok(known.accepted(true)),
        RunStatus::Succeeded | RunStatus::Failed | RunStatus::TimedOut => {
            Err(Rejection::new(Code::RunEnded, format!("run {run} has already ended: {}", known.status)))
        }
    }
}

/// Cancels runs that a filter means, the oldest first: so many at a time as a turn should take.
pub(crate) fn cancel_many(turn: &mut Turn<'_>, request: CancelRuns) -> Result<RunsCancelled, Rejection> {
    let CancelRuns { filter, all, reason, limit } = request;
    if filter.is_empty() && !all {
        let message = "the filter says nothing, and so means every run: say `all` if that is meant".to_owned();
        return Err(Rejection::invalid(message));
    }
    let limit = limit.unwrap_or(MAX_CANCELLED).clamp(1, MAX_CANCELLED) as usize;
    let reason =
        reason.map_or_else(|| "it was cancelled".to_owned(), |reason| text::cut(reason, text::MAX_REASON_BYTES));
    let (runs, more) = meant(turn.state(), &filter, limit);
    for run in &runs {
        advance::finish(turn, *run, RunStatus::Cancelled, Some(reason.clone()));
    }
    Ok(RunsCancelled { runs, more })
}

/// Live runs that a filter means, the oldest first, and whether there are more than are given.
fn meant(state: &WorkflowManager, filter: &RunFilter, limit: usize) -> (Vec<RunId>, bool) {
    // Those that are a part of others end with these.
    let alone = state.runs.iter().filter(|(_, run)| run.parent.is_none());
    let mut meant = alone.filter(|(_, run)| filter.is_meant(&view::summary(run)));
    let (mut runs, mut attempts) = (Vec::new(), 0);
    for (id, run) in meant.by_ref().take(limit) {
        runs.push(*id);
        // Each of these is a record.
        let within = child::within(state, *id).into_iter().filter_map(|run| state.runs.get(&run));
        attempts += run.attempted().len() + within.map(|run| 1 + run.attempted().len()).sum::<usize>();
        if attempts > MAX_ATTEMPTS_CANCELLED {
            break;
        }
    }
    (runs, meant.next().is_some())
}

/// What is known of a run, live or ended.
pub(crate) struct Known {
    pub(crate) run: RunId,
    workflow: WorkflowName,
    version: u32,
    pub(crate) status: RunStatus,
    pub(crate) paused: bool,
    /// The run that it repeats, and from where.
    pub(crate) rerun: Option<(RunId, StageName)>,
    key: Option<String>,
    fingerprint: u64,
    trace: Option<TraceContext>,
}

impl Known {
    pub(crate) fn of(state: &WorkflowManager, run: RunId) -> Option<Self> {
        if let Some(live) = state.runs.get(&run) {
            return Some(Self {
                run,
                workflow: live.workflow.clone(),
                version: live.version,
                status: live.status,
                paused: live.paused.is_some(),
                rerun: live.rerun.as_ref().map(|rerun| (rerun.of, rerun.from.clone())),
                key: live.key.clone(),
                fingerprint: live.fingerprint,
                trace: live.trace,
            });
        }
        let past = state.history.past(run)?;
        Some(Self {
            run,
            workflow: past.summary.workflow.clone(),
            version: past.summary.version,
            status: past.summary.status,
            paused: false,
            rerun: past.rerun.clone(),
            key: past.key.clone(),
            fingerprint: past.fingerprint,
            trace: past.trace,
        })
    }

    /// The answer to a start that was repeated. One that asks for the latest version asks for the version that was the
    /// latest when it first came.
    fn repeat(&self, request: &StartRun, input: &Json) -> Result<RunAccepted, Rejection> {
        let same = self.fingerprint == fingerprint(&request.workflow, input)
            && self.rerun.is_none()
            && request.version.is_none_or(|version| version == self.version)
            // A client makes a new run id with each call; the key that it gave says that the calls are one.
            && bears(self, request.key.as_ref(), request.run);
        if same {
            return Ok(self.accepted(true));
        }
        let what = match &request.key {
            Some(key) if self.key.as_ref() == Some(key) => format!("key {key:?} was used for run {}", self.run),
            _ => format!("run id {} was used", self.run),
        };
        let message = format!("{what} with another workflow, version, input or key; use a new one");
        Err(Rejection::new(Code::KeyConflict, message))
    }

    pub(crate) fn accepted(&self, existing: bool) -> RunAccepted {
        RunAccepted {
            run: self.run,
            workflow: self.workflow.clone(),
            version: self.version,
            status: self.status,
            existing,
            paused: self.paused,
            trace_id: format!("{:032x}", run::span(self.run, self.trace).trace),
        }
    }
}

/// The run that bears a key or an id.
pub(crate) fn bearing(state: &WorkflowManager, key: Option<&String>, run: Option<RunId>) -> Option<Known> {
    let by_key = key.and_then(|key| state.keys.get(key)).copied();
    by_key.into_iter().chain(run).find_map(|run| Known::of(state, run))
}

/// Whether a run is the one that is meant by a key, or else by an id.
pub(crate) fn bears(known: &Known, key: Option<&String>, run: Option<RunId>) -> bool {
    key.map_or(run == Some(known.run), |key| known.key.as_ref() == Some(key))
}

/// A run id that was not used. The time and the number of the record make it one, unless a client chose just that id.
pub(crate) fn unused(turn: &Turn<'_>) -> RunId {
    let number = u128::from(turn.next_number());
    let mut ids = (0u128..).map(|round| RunId::derive(turn.now(), round << 64 | number));
    ids.find(|id| Known::of(turn.state(), *id).is_none()).expect("some id is free")
}

pub(crate) fn input(input: &Json) -> Result<Json, Rejection> {
    if input.size() > MAX_JSON_BYTES {
        let message = format!(
            "the input has {} bytes; at most {MAX_JSON_BYTES} are allowed: keep large inputs elsewhere and pass \
             references",
            input.size()
        );
        return Err(Rejection::new(Code::TooLarge, message));
    }
    if input.is_null() {
        return Ok(Json::of(&serde_json::Map::new()).expect("an empty object can be written"));
    }
    // It is known to be JSON: what starts so is an object.
    if input.as_str().starts_with('{') {
        Ok(input.clone())
    } else {
        Err(Rejection::invalid("the input must be a JSON object"))
    }
}

/// Checks a key and an id that a client has chosen.
pub(crate) fn check_ids(key: Option<&String>, run: Option<RunId>) -> Result<(), Rejection> {
    if let Some(key) = key {
        check_key(key)?;
    }
    match run {
        Some(run) if run.as_uuid().get_version_num() != 7 => {
            let message = format!("run id {run} is not a UUIDv7: runs are sorted by the time in their ids");
            Err(Rejection::invalid(message))
        }
        _ => Ok(()),
    }
}

pub(crate) fn check_metadata(metadata: &Metadata) -> Result<(), Rejection> {
    let (most, key_bytes, value_bytes) = MAX_METADATA;
    if metadata.len() > most {
        let count = metadata.len();
        return Err(Rejection::invalid(format!("the metadata has {count} keys; at most {most} are allowed")));
    }
    for (key, value) in metadata {
        let why = if key.is_empty() || key.len() > key_bytes {
            format!("the key {key:.80?} has {} bytes; it must have 1 to {key_bytes}", key.len())
        } else if value.len() > value_bytes {
            format!("the value of {key:?} has {} bytes; at most {value_bytes} are allowed", value.len())
        } else if key.chars().chain(value.chars()).any(char::is_control) {
            format!("{key:?} or its value has control characters")
        } else {
            continue;
        };
        return Err(Rejection::invalid(format!("the metadata is not valid: {why}")));
    }
    Ok(())
}

fn check_key(key: &str) -> Result<(), Rejection> {
    let why = if key.is_empty() {
        "it is empty".to_owned()
    } else if key.len() > MAX_KEY_BYTES {
        format!("it has {} bytes; at most {MAX_KEY_BYTES} are allowed", key.len())
    } else if key.chars().any(char::is_control) {
        "it has control characters".to_owned()
    } else {
        return Ok(());
    };
    Err(Rejection::invalid(format!("the key is not valid: {why}")))
}
