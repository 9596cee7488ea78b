//! A run is asked for, or asked to stop.

use baton_machine::RequestContext;
use baton_machine::planted::{Bug, is_planted};
use baton_protocol::pressure::PressureChanged;
use baton_protocol::record::{RunStarted, WorkflowRecord};
use baton_protocol::request::{CancelRun, MAX_JSON_BYTES, MAX_KEY_BYTES, RunAccepted, StartRun};
use baton_protocol::run::RunStatus;
use baton_protocol::trace::TraceContext;
use baton_protocol::{Code, Json, Millis, Rejection, RunId, WorkflowName};

use crate::run::{self, fingerprint};
use crate::{Turn, WorkflowManager, advance, telemetry, text};

/// When to ask again after a refusal for too many live runs: at the least, at the most, and where no run has ended yet.
const RETRY_MS: (Millis, Millis, Millis) = (100, 5000, 1000);
/// The same for a refusal by priority, while there is pressure.
const PRESSED_MS: (Millis, Millis) = (100, 60_000);

/// Starts a run, or gives the one that the same request started before.
pub(crate) fn start(
    turn: &mut Turn<'_>,
    request: StartRun,
    context: &RequestContext,
) -> Result<RunAccepted, Rejection> {
    let input = input(&request.input)?;
    if let Some(key) = &request.key {
        check_key(key)?;
    }
    if let Some(run) = request.run
        && run.as_uuid().get_version_num() != 7
    {
        let message = format!("run id {run} is not a UUIDv7: runs are sorted by the time in their ids");
        return Err(Rejection::invalid(message));
    }
    if let Some(started) = started_before(turn.state(), &request) {
        return started.repeat(&request, &input);
    }
    let (version, found) = turn.state().workflows.find(&request.workflow, request.version)?;
    found.plan.flows.check_input(&input).map_err(|why| {
        Rejection::invalid(format!("the input does not fit the input_schema of workflow {}: {why}", request.workflow))
    })?;
    if let Some(budget) = &request.budget {
        budget.check().map_err(|error| Rejection::invalid(format!("budget: {error}")))?;
    }
    let budget = request.budget.clone().or_else(|| found.definition.budget.clone());
    admit(turn, request.priority)?;
    let run = match request.run {
        Some(run) => run,
        None => unused(turn),
    };
    let trace = request.trace.or(context.trace);
    let due = request.due_ms.map(|due_ms| turn.now().saturating_add(due_ms));
    let StartRun { workflow, priority, key, strategy, .. } = request;
    let record = RunStarted { run, workflow, version, input, priority, key, trace, strategy, due, budget };
    turn.emit(WorkflowRecord::RunStarted(record));
    telemetry::run_started(turn, run);
    advance::advance(turn, run);
    // A run without stages that can begin has ended by now.
    let known = Known::of(turn.state(), run);
    known.map(|known| known.accepted(false)).ok_or_else(|| Rejection::new(Code::Internal, "the run was not started"))
}

/// Refuses a new run that has to wait. A refusal leaves nothing behind.
fn admit(turn: &mut Turn<'_>, priority: i32) -> Result<(), Rejection> {
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
    let (live, most) = (turn.state().runs.len(), turn.config().max_live_runs);
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
            Ok(RunAccepted { status: RunStatus::Cancelled, ..known.accepted(false) })
        }
        RunStatus::Cancelled => Ok(known.accepted(true)),
        RunStatus::Succeeded | RunStatus::Failed | RunStatus::TimedOut => {
            Err(Rejection::new(Code::RunEnded, format!("run {run} has already ended: {}", known.status)))
        }
    }
}

/// What is known of a run, live or ended.
struct Known {
    run: RunId,
    workflow: WorkflowName,
    version: u32,
    status: RunStatus,
    key: Option<String>,
    fingerprint: u64,
    trace: Option<TraceContext>,
}

impl Known {
    fn of(state: &WorkflowManager, run: RunId) -> Option<Self> {
        if let Some(live) = state.runs.get(&run) {
            return Some(Self {
                run,
                workflow: live.workflow.clone(),
                version: live.version,
                status: live.status,
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
            key: past.key.clone(),
            fingerprint: past.fingerprint,
            trace: past.trace,
        })
    }

    /// The answer to a start that was repeated. One that asks for the latest version asks for the version that was the
    /// latest when it first came.
    fn repeat(&self, request: &StartRun, input: &Json) -> Result<RunAccepted, Rejection> {
        let same = self.fingerprint == fingerprint(&request.workflow, input)
            && request.version.is_none_or(|version| version == self.version)
            // A client makes a new run id with each call; the key that it gave says that the calls are one.
            && request.key.as_ref().map_or(request.run == Some(self.run), |key| self.key.as_ref() == Some(key));
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

    fn accepted(&self, existing: bool) -> RunAccepted {
        RunAccepted {
            run: self.run,
            workflow: self.workflow.clone(),
            version: self.version,
            status: self.status,
            existing,
            trace_id: format!("{:032x}", run::span(self.run, self.trace).trace),
        }
    }
}

/// The run that bears the request's key or id.
fn started_before(state: &WorkflowManager, request: &StartRun) -> Option<Known> {
    let by_key = request.key.as_ref().and_then(|key| state.keys.get(key)).copied();
    by_key.into_iter().chain(request.run).find_map(|run| Known::of(state, run))
}

/// A run id that was not used. The time and the number of the record make it one, unless a client chose just that id.
fn unused(turn: &Turn<'_>) -> RunId {
    let number = u128::from(turn.next_number());
    let mut ids = (0u128..).map(|round| RunId::derive(turn.now(), round << 64 | number));
    ids.find(|id| Known::of(turn.state(), *id).is_none()).expect("some id is free")
}

fn input(input: &Json) -> Result<Json, Rejection> {
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
