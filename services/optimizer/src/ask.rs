//! Asking for leases: what was asked, what is set aside until the log says so, what was refused.
//!
//! All of it is known to the leader alone, and it can do without: the resource-manager refuses what is leased already.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, LazyLock};

use baton_machine::planted::{Bug, is_planted};
use baton_machine::{Effect, Reply, Turn};
use baton_protocol::breaker::{BreakerClosed, BreakerHalfOpened, BreakerOpened};
use baton_protocol::record::{AgentLeft, AgentRegistered, AnyCommit, LeaseEnded, ResourceRecord, WorkflowRecord};
use baton_protocol::request::{AssignAnswer, AssignTasks, Placement, Refusal};
use baton_protocol::trace::{Span, SpanKind, task_span};
use baton_protocol::{AgentId, Code, Json, Millis, Rejection, RunId, Service, StageName, TaskId};

use crate::placement::{Chosen, Room, Standing};
use crate::queue::{Head, Lines, Shape};
use crate::{Config, Optimizer};

/// The most placements in one question: about 200 KiB.
const MAX_PLACEMENTS: usize = 1000;
/// How long a task is kept from an agent that refused it.
const AVOID_MS: Millis = 200;
/// How long nothing is asked after a question that was refused or not answered.
const PAUSE_MS: Millis = 150;
/// So many tasks more than twice those that wait may stand in line before those that have left the queue are taken out.
const MAX_GONE: usize = 1000;

/// What only the leader knows.
#[derive(Debug, Default)]
pub struct Soft {
    /// What waits and may be asked for: not what is asked for already, nor what was refused as not ready lately.
    lines: Lines,
    /// The agents, with what is asked for set aside: nothing is promised twice.
    room: Room,
    /// How often an agent had got free by a record that does not name it.
    unnamed: u64,
    /// What was asked for and is not in the log yet.
    asked: BTreeMap<TaskId, Asked>,
    /// Questions that are not settled yet. Tags only grow, and so do their times.
    questions: BTreeMap<u64, Question>,
    last_tag: u64,
    /// What was refused lately.
    avoided: BTreeMap<TaskId, Avoided>,
    /// When to look at it again. Times only grow.
    avoided_until: VecDeque<(Millis, TaskId)>,
    /// Nothing is asked before this time.
    paused_until: Option<Millis>,
    /// The length of the queue that was last shown.
    shown: Option<usize>,
}

/// A task that an agent was asked for.
#[derive(Debug)]
struct Asked {
    agent: AgentId,
    shape: Arc<Shape>,
    tag: u64,
    since: Millis,
    at: Millis,
}

#[derive(Debug)]
struct Question {
    at: Millis,
    /// How many of its tasks are neither in the log nor refused.
    left: usize,
    answered: bool,
}

/// Why a task is not placed where it would be.
#[derive(Debug, Default)]
struct Avoided {
    /// Agents that refused it.
    agents: BTreeSet<AgentId>,
    /// The task itself was not ready: what the resource-manager knows is on its way here.
    task: bool,
    until: Millis,
}

impl Soft {
    pub(crate) fn deadline(&self, config: &Config) -> Option<Millis> {
        let question = self.questions.values().next().map(|q| q.at.saturating_add(config.ask_timeout_ms));
        let question = question.filter(|_| !is_planted(Bug::QuestionNeverExpires));
        let avoided = self.avoided_until.front().map(|(until, _)| *until);
        question.into_iter().chain(avoided).chain(self.paused_until).min()
    }

    /// All tasks that may be asked for stand in line.
    fn line_up_all(&mut self, state: &Optimizer) {
        self.lines = Lines::default();
        for (task, _) in state.queue.iter() {
            self.line_up(state, task);
        }
    }

    /// The task stands in line if it may be asked for.
    fn line_up(&mut self, state: &Optimizer, task: &TaskId) {
        let Some(queued) = state.queue.get(task) else { return };
        let avoided = self.avoided.get(task).is_some_and(|avoided| avoided.task);
        if !avoided && !self.asked.contains_key(task) {
            self.lines.add(task, queued);
        }
    }

    /// Nothing is set aside for the task any more.
    fn release(&mut self, state: &Optimizer, task: &TaskId) -> Option<Asked> {
        let asked = self.asked.remove(task)?;
        self.room.release(&state.fleet, &asked.agent, &asked.shape);
        if let Some(question) = self.questions.get_mut(&asked.tag) {
            question.left -= 1;
            if question.left == 0 {
                self.questions.remove(&asked.tag);
            }
        }
        Some(asked)
    }

    /// Nothing is set aside for a question any more.
    fn give_up(&mut self, state: &Optimizer, tag: u64) {
        let of_question = self.asked.iter().filter(|(_, asked)| asked.tag == tag);
        let tasks: Vec<_> = of_question.map(|(task, _)| task.clone()).collect();
        for task in tasks {
            self.release(state, &task);
            self.line_up(state, &task);
        }
        self.questions.remove(&tag);
    }

    fn avoid(&mut self, now: Millis, task: &TaskId, agent: AgentId, code: Code) {
        let until = now.saturating_add(AVOID_MS);
        let avoided = self.avoided.entry(task.clone()).or_default();
        avoided.until = until;
        match code {
            Code::NotReady => avoided.task = true,
            _ => {
                avoided.agents.insert(agent);
            }
        }
        self.avoided_until.push_back((until, task.clone()));
    }

    /// Chooses agents for as many tasks as possible.
    fn choose(&mut self, state: &Optimizer, clock: (Millis, Millis)) -> Vec<Chosen> {
        if self.lines.len() > 2 * state.queue.len() + MAX_GONE {
            self.line_up_all(state);
        }
        let Self { lines, room, avoided, .. } = self;
        let standing = |head: &Head| {
            let task = head.task();
            if !state.queue.get(task).is_some_and(|queued| head.is(queued)) {
                return Standing::Gone;
            }
            let not = avoided.get(task).map(|avoided| &avoided.agents);
            Standing::Free { not, rather_not: state.runs.failed_under(task) }
        };
        room.plan(lines, &state.fleet, state.strategy, clock, standing)
    }
}

/// Does something with what the leader knows, in the light of what the log says.
fn with<T>(turn: &mut Turn<'_, Optimizer>, act: impl FnOnce(&mut Soft, &Optimizer) -> T) -> T {
    let mut soft = std::mem::take(turn.soft);
    let result = act(&mut soft, turn.state());
    *turn.soft = soft;
    result
}

/// Begins a term.
pub(crate) fn begin(turn: &mut Turn<'_, Optimizer>) {
    with(turn, |soft, state| {
        soft.unnamed = state.unnamed;
        soft.line_up_all(state);
    });
}

/// Places as many tasks as possible, and asks for all of it.
pub(crate) fn place(turn: &mut Turn<'_, Optimizer>) {
    let (now, ageing_ms) = (turn.now(), turn.config().ageing_ms);
    if turn.soft.paused_until.is_some_and(|until| now < until) {
        return;
    }
    turn.soft.paused_until = None;
    let seen = turn.workflow_number();
    let mut plan = with(turn, |soft, state| soft.choose(state, (now, ageing_ms))).into_iter().peekable();
    while plan.peek().is_some() {
        // Also the answer to a question of an earlier term must find nothing here.
        let tag = now.max(turn.soft.last_tag + 1);
        turn.soft.last_tag = tag;
        let mut placements = Vec::new();
        for Chosen { task, agent, shape, since } in plan.by_ref().take(MAX_PLACEMENTS) {
            placements.push(Placement { task: task.clone(), agent: agent.clone() });
            turn.soft.asked.insert(task, Asked { agent, shape, tag, since, at: now });
        }
        turn.soft.questions.insert(tag, Question { at: now, left: placements.len(), answered: false });
        let body = Json::of(&AssignTasks { seen, placements }).expect("what the protocol asks can be written as JSON");
        turn.ask(Service::ResourceManager, "lease.assign", body, tag);
    }
}

/// Takes note of what a commit settles. Whether anything may be placed that could not be before: leases that come as
/// asked for, the most of all records, change nothing.
pub(crate) fn settle(turn: &mut Turn<'_, Optimizer>, commit: &AnyCommit) -> bool {
    let mut placed = Vec::new();
    let news = with(turn, |soft, state| {
        let mut news = false;
        match commit {
            AnyCommit::Workflow(commit) => {
                for (_, record) in commit.stamped() {
                    news |= settle_workflow(soft, state, record);
                }
            }
            AnyCommit::Resource(commit) => {
                for (_, record) in commit.stamped() {
                    news |= settle_resource(soft, state, record, &mut placed);
                }
            }
            AnyCommit::Optimizer(_) => {}
        }
        if soft.unnamed != state.unnamed {
            soft.unnamed = state.unnamed;
            soft.room.forget_pools();
        }
        news
    });
    for (task, asked) in placed {
        show_placement(turn, &task, &asked);
    }
    news
}

fn settle_workflow(soft: &mut Soft, state: &Optimizer, record: &WorkflowRecord) -> bool {
    match record {
        WorkflowRecord::WorkflowRegistered(_) | WorkflowRecord::RunStarted(_) => false,
        WorkflowRecord::StageReady(record) => {
            soft.line_up(state, &record.task);
            true
        }
        WorkflowRecord::StageEnded(record) => {
            soft.release(state, &record.task);
            if let Some(agent) = &record.agent {
                soft.room.changed(&state.fleet, agent);
            }
            true
        }
        WorkflowRecord::RunFinished(record) => {
            release_run(soft, state, record.run);
            true
        }
    }
}

/// The stages of a run end before it does, so that nothing is found here unless that ever changes.
fn release_run(soft: &mut Soft, state: &Optimizer, run: RunId) {
    let of_run = soft.asked.range(first_task(run)..).take_while(|(task, _)| task.run == run);
    let tasks: Vec<_> = of_run.map(|(task, _)| task.clone()).collect();
    for task in tasks {
        soft.release(state, &task);
    }
}

/// A task that none of a run's is before.
fn first_task(run: RunId) -> TaskId {
    static FIRST: LazyLock<StageName> = LazyLock::new(|| StageName::new("0").expect("it is a name"));
    TaskId { run, stage: FIRST.clone(), attempt: 0 }
}

fn settle_resource(
    soft: &mut Soft,
    state: &Optimizer,
    record: &ResourceRecord,
    placed: &mut Vec<(TaskId, Asked)>,
) -> bool {
    match record {
        ResourceRecord::Assigned(record) => {
            soft.room.changed(&state.fleet, &record.agent);
            let Some(asked) = soft.release(state, &record.task) else { return false };
            let as_asked = asked.agent == record.agent;
            if as_asked {
                placed.push((record.task.clone(), asked));
            }
            !as_asked
        }
        // What is asked of an agent that left is refused.
        ResourceRecord::AgentRegistered(AgentRegistered { agent, .. })
        | ResourceRecord::AgentLeft(AgentLeft { agent, .. }) => {
            soft.room.came_or_left(&state.fleet, agent);
            true
        }
        ResourceRecord::LeaseEnded(LeaseEnded { agent, .. })
        | ResourceRecord::BreakerOpened(BreakerOpened { agent, .. })
        | ResourceRecord::BreakerHalfOpened(BreakerHalfOpened { agent, .. })
        | ResourceRecord::BreakerClosed(BreakerClosed { agent, .. }) => {
            soft.room.changed(&state.fleet, agent);
            true
        }
        ResourceRecord::AlertRaised(_) | ResourceRecord::AlertCleared(_) | ResourceRecord::AlertAcknowledged(_) => {
            false
        }
    }
}

/// From when the task could be placed to when it was.
fn show_placement(turn: &mut Turn<'_, Optimizer>, task: &TaskId, asked: &Asked) {
    let state = turn.state();
    let context = state.runs.trace(task, "place");
    if !turn.shows(context) {
        return;
    }
    let span = Span {
        context,
        parent: Some(task_span(task)),
        name: format!("place {}", asked.shape.agent_type),
        kind: SpanKind::Internal,
        start: asked.since,
        end: asked.at,
        attributes: vec![
            ("baton.run.id", task.run.to_string()),
            ("baton.stage.name", task.stage.to_string()),
            ("baton.agent.id", asked.agent.to_string()),
            ("baton.strategy", state.strategy.as_str().to_owned()),
        ],
        error: None,
    };
    turn.effect(Effect::Span(span));
}

/// What was granted stays set aside until the log says it; what was refused is placed anew. Whether anything was.
pub(crate) fn answered(turn: &mut Turn<'_, Optimizer>, tag: u64, reply: Reply) -> bool {
    let Some(question) = turn.soft.questions.get_mut(&tag).filter(|question| !question.answered) else { return false };
    question.answered = true;
    let now = turn.now();
    let read = |json: Json| {
        json.read::<AssignAnswer>().map_err(|error| Rejection::new(Code::Internal, format!("unreadable: {error}")))
    };
    match reply.and_then(read) {
        Ok(answer) => with(turn, |soft, state| {
            let refused = !answer.refused.is_empty();
            for Refusal { task, agent, rejection } in answer.refused {
                if soft.asked.get(&task).is_some_and(|asked| asked.tag == tag) {
                    soft.release(state, &task);
                    soft.avoid(now, &task, agent, rejection.code);
                    soft.line_up(state, &task);
                }
            }
            refused
        }),
        Err(_) => {
            if !is_planted(Bug::QuestionNeverExpires) {
                with(turn, |soft, state| soft.give_up(state, tag));
            }
            turn.soft.paused_until = Some(now.saturating_add(PAUSE_MS));
            false
        }
    }
}

/// Lets go of questions that are not settled in time, and of refusals that are old.
///
/// That what was granted does not show in the log in time is not known to happen. If it ever does, asking again costs a
/// refusal; not asking again would cost the task.
pub(crate) fn expire(turn: &mut Turn<'_, Optimizer>) {
    let (now, timeout) = (turn.now(), turn.config().ask_timeout_ms);
    with(turn, |soft, state| {
        while let Some((tag, question)) = soft.questions.first_key_value()
            && question.at.saturating_add(timeout) <= now
            && !is_planted(Bug::QuestionNeverExpires)
        {
            let tag = *tag;
            soft.give_up(state, tag);
        }
        while let Some((_, task)) = soft.avoided_until.pop_front_if(|(until, _)| *until <= now) {
            let old = soft.avoided.get(&task).is_some_and(|avoided| avoided.until <= now);
            if old && !is_planted(Bug::RefusalNeverForgotten) {
                soft.avoided.remove(&task);
                soft.line_up(state, &task);
            }
        }
    });
}

/// Sets the gauge if the queue is longer or shorter than it was.
pub(crate) fn show_queue(turn: &mut Turn<'_, Optimizer>) {
    let length = turn.state().queue.len();
    if turn.soft.shown.replace(length) != Some(length) {
        turn.gauge("baton_run_queue", &[], length as f64);
    }
}
