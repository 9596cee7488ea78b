//! What moves a run on: stages become ready, attempts end, runs finish.
//!
//! [`advance`] does what is to be done with a run, and may be called at any time: where nothing is to be done it does
//! nothing. Everything that may change a run ends in it.

use baton_machine::Effect;
use baton_machine::planted::{Bug, is_planted};
use baton_protocol::budget::least;
use baton_protocol::definition::StageDefinition;
use baton_protocol::record::{
    CopyEnded, Delegated, OtherCopy, Outcome, RunFinished, StageCommitted, StageEnded, StageExpanded, StageReady,
    StageSkipped, StageWaits, WorkflowRecord,
};
use baton_protocol::request::{MAX_MESSAGE_BYTES, Usage};
use baton_protocol::run::{RunStatus, Speculation, StageStatus};
use baton_protocol::subject::RUNS_BUCKET;
use baton_protocol::{Amount, AtLimit, Json, LeaseId, Millis, Money, Resources, RunId, StageName};

use crate::attempt::Attempt;
use crate::flow::{self, Failure};
use crate::run::{Move, Run};
use crate::workflows::Version;
use crate::{Turn, cache, child, telemetry, text, view, word};

/// The most that an agent is given with a task: input, results, parameters and metadata together, in bytes. An
/// assignment must fit into a message, with some room for what goes around it.
const MAX_TASK_BYTES: usize = MAX_MESSAGE_BYTES - 16 * 1024;

/// Spans of runs that ended longer ago than this have been sent by whoever led then.
const SPANS_WAIT_MS: Millis = 60_000;

/// How an attempt ended.
#[derive(Debug)]
pub(crate) struct Ending {
    pub(crate) outcome: Outcome,
    pub(crate) result: Option<Json>,
    pub(crate) error: Option<String>,
    pub(crate) code: Option<String>,
    pub(crate) again: Again,
    /// It began early, or could not: the stage is not over by it.
    pub(crate) speculative: bool,
    pub(crate) cost: Money,
    pub(crate) usage: Usage,
    pub(crate) model: Option<String>,
    pub(crate) delegated: Option<Box<Delegated>>,
    /// Under which of the attempt's leases; none: under that which it had first of those that it has.
    pub(crate) lease: Option<LeaseId>,
}

/// Whether another attempt follows, if there is one left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Again {
    Never,
    AtOnce,
    /// After the wait that the stage's policy says.
    Later,
}

impl Ending {
    /// An attempt that ended without anybody reporting.
    pub(crate) fn unreported(outcome: Outcome, error: String, again: Again) -> Self {
        Self {
            outcome,
            result: None,
            error: Some(error),
            code: None,
            again,
            speculative: false,
            cost: Money::ZERO,
            usage: Usage::default(),
            model: None,
            delegated: None,
            lease: None,
        }
    }

    /// A stage that can not begin. It could not the next time either.
    fn before(Failure { code, error }: Failure) -> Self {
        Self { code: Some(code.to_owned()), ..Self::unreported(Outcome::Failed, error, Again::Never) }
    }

    /// With this result.
    pub(crate) fn gave(result: Option<Json>) -> Self {
        Self { result, error: None, ..Self::unreported(Outcome::Succeeded, String::new(), Again::Never) }
    }
}

/// Begins a term: finishes what a predecessor left half done. What it had not reacted to comes again by itself.
pub(crate) fn take_over(turn: &mut Turn<'_>) {
    // What a run is a part of comes before it.
    let mut live: Vec<_> = turn.state().runs.values().map(|run| (run.depth(), run.id)).collect();
    live.sort_unstable();
    for (_, run) in live {
        advance(turn, run);
    }
    // A predecessor may have died after it committed the end of a run and before the run was kept.
    let ended: Vec<_> = turn.state().history.whole().collect();
    for run in ended {
        keep(turn, run);
        let ended_at = turn.state().run(run).and_then(|(run, _)| run.ended_at);
        if ended_at.is_some_and(|at| at.saturating_add(SPANS_WAIT_MS) >= turn.now()) {
            telemetry::show_again(turn, run);
        }
    }
    telemetry::live_runs(turn);
}

/// Ends the attempts whose agents are gone.
pub(crate) fn give_up_lost(turn: &mut Turn<'_>) {
    if is_planted(Bug::LostAttemptForgotten) {
        return;
    }
    while let Some((&lease, why)) = turn.state().lost.first_key_value() {
        let ending = Ending { lease: Some(lease), ..Ending::unreported(Outcome::Lost, why.clone(), Again::AtOnce) };
        let held = turn.state().held(lease);
        let (run, place) = held.expect("a lease is lost only while its stage runs");
        end(turn, run, place, ending);
        advance(turn, run);
    }
}

/// Ends the attempts that nobody will pay for.
pub(crate) fn give_up_unpaid(turn: &mut Turn<'_>) {
    if is_planted(Bug::RefusedTaskForgotten) {
        return;
    }
    while let Some((task, why)) = turn.state().unpaid.first_key_value() {
        let (run, why) = (task.run, why.clone());
        let place = turn.state().live(run).and_then(|(run, version)| run.place(version, task));
        let place = place.expect("a task is unpaid only while its stage waits for an agent");
        end(turn, run, place, Ending::unreported(Outcome::Failed, why, Again::Never));
        advance(turn, run);
    }
}

/// Does what is due.
pub(crate) fn tick(turn: &mut Turn<'_>) {
    while let Some(timer) = turn.state().timers.due(turn.now()) {
        let (_, run, place) = timer;
        match place {
            None => time_out(turn, run),
            Some(place) => stage_due(turn, run, place),
        }
        advance(turn, run);
        assert_ne!(turn.state().timers.due(turn.now()), Some(timer), "a timer is gone when it was handled");
    }
}

fn time_out(turn: &mut Turn<'_>, id: RunId) {
    let Some((_, version)) = turn.state().live(id) else { return };
    let reason = format!("the run took longer than {}", text::duration(version.definition.timeout_ms));
    finish(turn, id, RunStatus::TimedOut, Some(reason));
}

fn stage_due(turn: &mut Turn<'_>, id: RunId, place: usize) {
    let Some((run, version)) = turn.state().live(id) else { return };
    let stage = run.definition(version, place);
    if run.stages[place].status == StageStatus::Running
        && let Some(ending) = word::overdue(stage)
    {
        return end(turn, id, place, ending);
    }
    let total = stage.total_timeout_ms.filter(|_| run.total_due(place, version).is_some_and(|due| due <= turn.now()));
    let error = match run.stages[place].status {
        StageStatus::Waiting => return ready(turn, id, place),
        StageStatus::Ready | StageStatus::Running if total.is_some() => {
            let error = format!("it took longer than {} in all", text::duration(total.unwrap_or_default()));
            return end(turn, id, place, Ending::unreported(Outcome::TimedOut, error, Again::Never));
        }
        StageStatus::Ready => {
            let (wanted, waited) = (&stage.agent_type, text::duration(stage.start_timeout_ms));
            match (turn.state().able(wanted), money(run, version, stage)) {
                (0, _) => format!("no agent took it within {waited}: no agent is there that can do {wanted}"),
                (_, Some(money)) => format!("it waited for money for {waited}: {money}"),
                (able, None) => {
                    let able = text::count(able, "agent");
                    format!("no agent took it within {waited}: {able} can do {wanted}{}", wants(run, stage))
                }
            }
        }
        StageStatus::Running => {
            let within = text::duration(stage.timeout_ms);
            match run.stages[place].attempts.last().and_then(|attempt| attempt.child) {
                Some(child) => format!("run {child} took longer than {within}"),
                None => format!("no report came within {within}"),
            }
        }
        StageStatus::Pending
        | StageStatus::Succeeded
        | StageStatus::Failed
        | StageStatus::Skipped
        | StageStatus::Cancelled => return,
    };
    end(turn, id, place, Ending::unreported(Outcome::TimedOut, error, Again::Later));
}

/// What a stage asks for beside an agent that can do it.
fn wants(run: &Run, stage: &StageDefinition) -> String {
    let mut wants = String::new();
    if !stage.requires.is_empty() {
        wants.push_str(&format!(", and the stage requires of it {}", stage.requires));
    }
    let amounts: Vec<_> = stage.resources.iter().map(|(name, amount)| format!("{name} {amount}")).collect();
    if !amounts.is_empty() {
        wants.push_str(&format!(", and the stage needs {}", amounts.join(", ")));
    }
    if let Some(account) = run.budget.as_ref().and_then(|budget| budget.account(run.id)) {
        wants.push_str(&format!(", and it is paid from account {account}"));
    }
    wants
}

/// What of its run's own limit a stage lacks, if that has not enough. What accounts have that the run's is a part of, and what
/// agents took of it besides, is for the resource-manager to know.
fn money(run: &Run, version: &Version, stage: &StageDefinition) -> Option<String> {
    let budget = run.budget.as_ref()?;
    let (limit, account) = (budget.limit?, budget.account(run.id)?);
    let spent = Amount::new(run.cost.get()).ok()?;
    let under_way = run.attempted().into_iter().filter(|place| run.stages[*place].status == StageStatus::Running);
    // The stage as a whole is nobody's task where there is one for each item, people decide on it, or a run does it.
    let tasks = under_way.filter(|place| run.fan(*place).is_none() && run.definition(version, *place).has_agent());
    let set_aside: Amount = tasks.map(|place| expected(run.definition(version, place))).sum();
    let left = limit - spent - set_aside;
    let wanted = expected(stage);
    if left >= wanted {
        return None;
    }
    let wanted = if wanted == least() { "more".to_owned() } else { wanted.to_string() };
    let currency = budget.currency.as_deref().map(|currency| format!(" {currency}")).unwrap_or_default();
    let asked = if budget.at_limit == AtLimit::Ask { ", and nobody gave it more" } else { "" };
    Some(format!("{wanted} is wanted of account {account}, and {left} of {limit}{currency} are left{asked}"))
}

/// What is set aside for an attempt at a stage.
fn expected(stage: &StageDefinition) -> Amount {
    stage.budget.filter(|amount| !amount.is_zero()).unwrap_or_else(least)
}

/// Does with a run what is to be done, with those that are started for its stages, and with the one that it is a part of when
/// it is over.
pub(crate) fn advance(turn: &mut Turn<'_>, id: RunId) {
    child::follow(turn, id);
    // Not by recursion: thousands of runs may follow one another.
    let mut open = vec![id];
    while let Some(&id) = open.last() {
        let moved = step(turn, id);
        if !turn.soft.started.is_empty() {
            open.append(&mut turn.soft.started);
        } else if !moved {
            open.pop();
            open.extend(child::awaiting(turn.state(), id).filter(|parent| !open.contains(parent)));
        }
    }
}

/// Does the first thing that is to be done with a run. False if there is none, or the run is over.
fn step(turn: &mut Turn<'_>, id: RunId) -> bool {
    let Some((run, version)) = turn.state().live(id) else { return false };
    match run.next(version, turn.now()) {
        Move::Begin(place) => begin(turn, id, place),
        Move::BeginEarly(place) => begin_early(turn, id, place),
        Move::Drop(place) => {
            let why = "too many other items have failed".to_owned();
            end(turn, id, place, Ending::unreported(Outcome::Cancelled, why, Again::Never));
        }
        Move::Join(place) => join(turn, id, place),
        Move::Hear(place) => {
            let ending = word::heard(run, &version.definition.stages[place]);
            end(turn, id, place, ending);
        }
        Move::Return(place) => {
            let ending = child::ending(turn.state(), run, version, place);
            end(turn, id, place, ending);
        }
        Move::Finish(status, reason) => finish(turn, id, status, reason),
        Move::Wait => return false,
    }
    true
}

/// A stage's first attempt, unless it is skipped, or its agent would be given more than a message can carry.
fn begin(turn: &mut Turn<'_>, id: RunId, place: usize) {
    let Some((run, _)) = turn.state().live(id) else { return };
    if run.item(place).is_some() {
        return ready(turn, id, place);
    }
    if run.stages[place].early.is_some() && settle(turn, id, place) {
        return;
    }
    let Some((run, version)) = turn.state().live(id) else { return };
    match flow::gate(run, version, place, None) {
        Ok(None) => {}
        Ok(Some(reason)) => {
            let stage = version.definition.stages[place].name.clone();
            turn.emit(WorkflowRecord::StageSkipped(StageSkipped { run: id, stage, reason }));
            return;
        }
        Err(failure) => return end(turn, id, place, Ending::before(failure)),
    }
    let stage = &version.definition.stages[place];
    if stage.asks() {
        let stage = stage.name.clone();
        turn.emit(WorkflowRecord::StageWaits(StageWaits { run: id, stage }));
        return;
    }
    match flow::items(run, version, place) {
        None => ready(turn, id, place),
        Some(Ok(items)) => {
            let stage = version.definition.stages[place].name.clone();
            turn.emit(WorkflowRecord::StageExpanded(StageExpanded { run: id, stage, items }));
        }
        Some(Err(failure)) => end(turn, id, place, Ending::before(failure)),
    }
}

/// A stage's first attempt, before all that the stage waits for is over. Where nothing can be assumed, that is noted, and the
/// stage begins when it is due.
fn begin_early(turn: &mut Turn<'_>, id: RunId, place: usize) {
    let Some((run, version)) = turn.state().live(id) else { return };
    let input =
        flow::assumed(run, version, place).and_then(|assumed| match flow::gate(run, version, place, Some(&assumed))? {
            None => flow::input(run, version, place, Some(&assumed)),
            Some(reason) => Err(flow::unassumed(format!("by what is assumed it does not run: {}", reason.text()))),
        });
    match input {
        Ok(input) => give(turn, id, place, Given { input, cache: None, early: true }),
        Err(failure) => end(turn, id, place, Ending { speculative: true, ..Ending::before(failure) }),
    }
}

/// All that a stage waits for is over, and it began early: that counts if its agent was given what the stage is given. Whether
/// the stage went on by that; if not, it is to begin now.
fn settle(turn: &mut Turn<'_>, id: RunId, place: usize) -> bool {
    let Some((run, version)) = turn.state().live(id) else { return false };
    let stage = &run.stages[place];
    let Some(early) = &stage.early else { return false };
    let runs = matches!(flow::gate(run, version, place, None), Ok(None));
    let given = if runs { flow::input(run, version, place, None).ok().flatten() } else { None };
    // One value may be written in several ways.
    let read = |json: &Json| json.read::<serde_json::Value>().ok();
    let same = given.is_some_and(|given| given == early.input || read(&given) == read(&early.input));
    if same || is_planted(Bug::AssumptionNotChecked) {
        let task = run.task(version, place, attempts(run, place));
        turn.emit(WorkflowRecord::StageCommitted(StageCommitted { task }));
        telemetry::speculated(turn, true);
        return true;
    }
    if early.held {
        telemetry::speculated(turn, false);
        return false;
    }
    let why = "it began early, and what it was given is not what the stage is given".to_owned();
    let ending = Ending::unreported(Outcome::Cancelled, why, Again::Never);
    end(turn, id, place, Ending { speculative: true, ..ending });
    true
}

/// Ends a stage whose items are over.
fn join(turn: &mut Turn<'_>, id: RunId, place: usize) {
    let Some((run, version)) = turn.state().live(id) else { return };
    let ending = match run.too_many_failed(place, version) {
        None => Ending::gave(None),
        Some(why) => Ending::unreported(Outcome::Failed, why, Again::Never),
    };
    end(turn, id, place, ending);
}

/// The next attempt at a stage may run.
fn ready(turn: &mut Turn<'_>, id: RunId, place: usize) {
    let Some((run, version)) = turn.state().live(id) else { return };
    match child::begin(turn, run, version, place) {
        None => {}
        Some(Ok(record)) => {
            let started = record.run;
            turn.emit(WorkflowRecord::RunStarted(record));
            turn.soft.started.push(started);
            return;
        }
        Some(Err((failure, again))) => return end(turn, id, place, Ending { again, ..Ending::before(failure) }),
    }
    let input = match flow::input(run, version, place, None) {
        Ok(input) => input,
        Err(failure) => return end(turn, id, place, Ending::before(failure)),
    };
    let key = match cache::key(run, version, place, input.as_ref()) {
        Ok(key) => key,
        Err(failure) => return end(turn, id, place, Ending::before(failure)),
    };
    if let Some(key) = &key
        && cache::hit(turn, id, place, key)
    {
        return;
    }
    give(turn, id, place, Given { input, cache: key, early: false });
}

/// What an attempt begins with.
struct Given {
    input: Option<Json>,
    /// Under what its result is kept.
    cache: Option<String>,
    /// Not all is over that its stage waits for.
    early: bool,
}

/// The next attempt at a stage waits for an agent, unless that would be given more than a message can carry.
fn give(turn: &mut Turn<'_>, id: RunId, place: usize, given: Given) {
    let Some((run, version)) = turn.state().live(id) else { return };
    let Given { input, cache, early } = given;
    let stage = run.definition(version, place);
    let (inputs, results) = inputs(run, version, place);
    let base = run.base(place);
    let item = run.item(place).and_then(|item| run.fan(base)?.items.get(item as usize)).map_or(0, Json::size);
    let gathered = run.stages[place].gathered;
    let bytes = input.as_ref().unwrap_or(&run.input).size() + item + results + gathered + version.plan.sizes[base];
    if bytes > MAX_TASK_BYTES {
        let error = format!(
            "its agent would be given {bytes} bytes (the run's input, the results of {}, parameters and metadata); at \
             most {MAX_TASK_BYTES} are allowed: keep large results elsewhere and pass references",
            text::count(inputs.len(), "stage")
        );
        let ending = Ending::unreported(Outcome::Failed, error, Again::Never);
        return end(turn, id, place, Ending { speculative: early, ..ending });
    }
    let record = StageReady {
        task: run.task(version, place, attempts(run, place) + 1),
        agent_type: stage.agent_type.clone(),
        requires: stage.requires.clone(),
        inputs,
        input,
        resources: resources(run, stage),
        priority: run.priority.saturating_add(stage.priority),
        cache,
        hedge: stage.hedge,
        speculative: early,
    };
    turn.emit(WorkflowRecord::StageReady(record));
}

/// What a stage needs, money included: what is set aside for it in the account that its run is paid from.
fn resources(run: &Run, stage: &StageDefinition) -> Resources {
    let mut resources = stage.resources.clone();
    if let Some(account) = run.budget.as_ref().and_then(|budget| budget.account(run.id)) {
        resources.entry(account).or_insert_with(|| expected(stage));
    }
    resources
}

/// The dependencies of a stage that have a result, their own or a fallback's, and how many bytes those results have. One that
/// may begin early is given none: that some are not there yet must make no difference.
fn inputs(run: &Run, version: &Version, place: usize) -> (Vec<StageName>, usize) {
    let mut bytes = 0;
    let definition = run.definition(version, place);
    let dependencies = definition.depends_on.iter().filter(|_| definition.speculative.is_none());
    let with_result = dependencies.filter(|dependency| {
        let giver = version.plan.place(dependency).and_then(|place| version.plan.flows.giver(run, place));
        let result = giver.and_then(|giver| run.stages[giver].result.as_ref());
        bytes += result.map_or(0, Json::size);
        result.is_some()
    });
    (with_result.cloned().collect(), bytes)
}

fn attempts(run: &Run, place: usize) -> u32 {
    u32::try_from(run.stages[place].attempts.len()).unwrap_or(u32::MAX)
}

/// Ends an attempt at a stage: the one under way, or the first one before it began. Makes the next one ready if it need
/// not wait. To be followed by [`advance`].
pub(crate) fn end(turn: &mut Turn<'_>, id: RunId, place: usize, ending: Ending) {
    let Some((run, version)) = turn.state().live(id) else { return };
    let definition = run.definition(version, place);
    let under_way = run.stages[place].attempts.last().filter(|attempt| attempt.ended_at.is_none());
    let number = attempts(run, place) + u32::from(under_way.is_none());
    let wait = match ending.again {
        Again::Later if is_planted(Bug::RetryTooEarly) => Some(0),
        Again::Never => None,
        Again::AtOnce => Some(0),
        Again::Later => Some(definition.retry.wait_ms(&run.task(version, place, number))),
    };
    let now = turn.now();
    let code = ending.code.as_deref().unwrap_or(ending.outcome.as_str());
    let ruled_out = !is_planted(Bug::CodeIgnored) && definition.retry.non_retryable.iter().any(|known| known == code);
    // An attempt that could not even begin in time is none.
    let in_time = |wait: &Millis| run.total_due(place, version).is_none_or(|due| now.saturating_add(*wait) < due);
    let early = under_way.is_some_and(|attempt| attempt.speculation == Some(Speculation::Open));
    // Its run ends with the one that is cancelled.
    let speculative = ending.speculative || (early && ending.outcome != Outcome::Cancelled);
    let speculative = speculative && !(is_planted(Bug::HeldAtOnce) && ending.outcome == Outcome::Succeeded);
    let wait = match ending.outcome {
        // It is the same try that goes on.
        Outcome::Delegated => Some(0),
        // The stage is done when it is due.
        _ if speculative => None,
        _ => wait.filter(|_| run.failures(place) + 1 < definition.retry.max_attempts && !ruled_out).filter(in_time),
    };
    let (first, other) = under_way.map_or((None, None), Attempt::under);
    let (under, other) = match (first, other) {
        (Some(first), Some(other)) if ending.lease == Some(other.lease) => (Some(other), Some(first)),
        leases => leases,
    };
    let duration_ms = under.map_or(0, |under| now.saturating_sub(under.assigned_at));
    let task = run.task(version, place, number);
    if let (Some(under), Some(_)) = (under, other)
        && matches!(ending.outcome, Outcome::Failed | Outcome::Lost)
        && ending.again != Again::Never
        && !ruled_out
        && !is_planted(Bug::CopyEndsAttempt)
    {
        let Ending { outcome, error, code, cost, usage, model, .. } = ending;
        let (lease, agent) = (under.lease, under.agent.clone());
        let record = CopyEnded { task, lease, agent, outcome, error, code, duration_ms, cost, usage, model };
        turn.emit(WorkflowRecord::CopyEnded(Box::new(record)));
        return telemetry::copy_ended(turn, id, place, lease);
    }
    let record = StageEnded {
        task,
        lease: under.map(|under| under.lease),
        agent: under.map(|under| under.agent.clone()),
        outcome: ending.outcome,
        result: ending.result,
        error: ending.error,
        hopeless: ending.outcome == Outcome::Failed && ending.again == Again::Never,
        code: ending.code,
        retry_at: wait.map(|wait| now.saturating_add(wait)),
        duration_ms,
        cost: ending.cost,
        usage: ending.usage,
        model: ending.model,
        delegated: ending.delegated,
        speculative,
        other: other.map(|other| Box::new(OtherCopy { lease: other.lease, agent: other.agent.clone() })),
    };
    let child = under_way.and_then(|attempt| attempt.child);
    turn.emit(WorkflowRecord::StageEnded(record));
    telemetry::attempt_ended(turn, id, place);
    if speculative && ending.outcome != Outcome::Succeeded {
        telemetry::speculated(turn, false);
    }
    if let Some(child) = child {
        cancel_orphan(turn, child);
    }
    let paused = turn.state().live(id).is_some_and(|(run, _)| run.paused.is_some());
    if wait == Some(0) && (!paused || is_planted(Bug::PauseIgnored)) {
        ready(turn, id, place);
    }
}

/// Ends a run that does an attempt which is over.
fn cancel_orphan(turn: &mut Turn<'_>, id: RunId) {
    let why = turn.state().runs.get(&id).and_then(|run| run.orphaned.as_ref()).map(ToString::to_string);
    if let Some(why) = why {
        finish(turn, id, RunStatus::Cancelled, Some(why));
    }
}

/// Ends a run, the attempts that are under way, and the runs that make these.
pub(crate) fn finish(turn: &mut Turn<'_>, id: RunId, status: RunStatus, reason: Option<String>) {
    let Some((run, _)) = turn.state().live(id) else { return };
    let outlive = is_planted(Bug::AttemptsOutliveTheRun) && status == RunStatus::Cancelled;
    for place in run.attempted().into_iter().filter(|_| !outlive) {
        let why = text::cut(reason.clone().unwrap_or_default(), text::MAX_REASON_BYTES);
        end(turn, id, place, Ending::unreported(Outcome::Cancelled, why, Again::Never));
    }
    // A predecessor may have been cut off before it ended these.
    let left = turn.state().runs.get(&id).map(|run| run.children.clone()).unwrap_or_default();
    left.into_iter().for_each(|child| cancel_orphan(turn, child));
    turn.emit(WorkflowRecord::RunFinished(RunFinished { run: id, status, reason }));
    telemetry::run_finished(turn, id);
    keep(turn, id);
}

/// Keeps an ended run as a document.
fn keep(turn: &mut Turn<'_>, id: RunId) {
    let Some((run, version)) = turn.state().run(id) else { return };
    let body = view::document(run, version);
    turn.effect(Effect::Keep { bucket: RUNS_BUCKET, key: id.to_string(), body });
}
