//! Asking for leases: what was asked, what is set aside until the log says so, what was refused.
//!
//! All of it is known to the leader alone, and it can do without: the resource-manager refuses what is leased already.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use baton_machine::planted::{Bug, is_planted};
use baton_machine::{Effect, Reply, Turn};
use baton_protocol::record::{AnyCommit, ResourceRecord, WorkflowRecord};
use baton_protocol::request::{AssignAnswer, AssignTasks, Placement, Refusal};
use baton_protocol::trace::{Span, SpanKind, task_span};
use baton_protocol::{AgentId, Capability, Code, Json, Millis, Rejection, RunId, Service, TaskId};

use crate::placement::{self, Chosen, Room, SetAside, Standing, Turns};
use crate::{Config, Optimizer};

/// The most placements in one question: about 200 KiB.
const MAX_PLACEMENTS: usize = 1000;
/// How long a task is kept from an agent that refused it.
const AVOID_MS: Millis = 200;
/// How long nothing is asked after a question that was refused or not answered.
const PAUSE_MS: Millis = 150;

/// What only the leader knows.
#[derive(Debug, Default)]
pub struct Soft {
    /// What was asked for and is not in the log yet.
    asked: BTreeMap<TaskId, Asked>,
    /// The same by agent: nothing is promised twice.
    set_aside: SetAside,
    /// Questions that are not settled yet. Tags only grow, and so do their times.
    questions: BTreeMap<u64, Question>,
    last_tag: u64,
    /// What was refused lately.
    avoided: BTreeMap<TaskId, Avoided>,
    /// When to look at it again. Times only grow.
    avoided_until: VecDeque<(Millis, TaskId)>,
    /// Nothing is asked before this time.
    paused_until: Option<Millis>,
    turns: Turns,
    /// The length of the queue that was last shown.
    shown: Option<usize>,
}

/// A task that an agent was asked for.
#[derive(Debug)]
struct Asked {
    agent: AgentId,
    agent_type: Capability,
    tag: u64,
    since: Millis,
    at: Millis,
}

#[derive(Debug)]
struct Question {
    at: Millis,
    /// What is neither in the log nor refused.
    tasks: BTreeSet<TaskId>,
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

    /// Nothing is set aside for the task any more.
    fn release(&mut self, task: &TaskId) -> Option<Asked> {
        let asked = self.asked.remove(task)?;
        if let Some(tasks) = self.set_aside.get_mut(&asked.agent) {
            tasks.remove(task);
            if tasks.is_empty() {
                self.set_aside.remove(&asked.agent);
            }
        }
        if let Some(question) = self.questions.get_mut(&asked.tag) {
            question.tasks.remove(task);
            if question.tasks.is_empty() {
                self.questions.remove(&asked.tag);
            }
        }
        Some(asked)
    }

    /// Nothing is set aside for a question any more.
    fn give_up(&mut self, tag: u64) {
        for task in self.questions.remove(&tag).map(|question| question.tasks).unwrap_or_default() {
            self.release(&task);
        }
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
}

/// Places as many tasks as possible, and asks for all of it.
pub(crate) fn place(turn: &mut Turn<'_, Optimizer>) {
    let now = turn.now();
    if turn.soft.paused_until.is_some_and(|until| now < until) {
        return;
    }
    turn.soft.paused_until = None;
    let seen = turn.workflow_number();
    for chosen in choose(turn).chunks(MAX_PLACEMENTS) {
        // Also the answer to a question of an earlier term must find nothing here.
        let tag = now.max(turn.soft.last_tag + 1);
        turn.soft.last_tag = tag;
        let tasks = chosen.iter().map(|chosen| chosen.task.clone()).collect();
        turn.soft.questions.insert(tag, Question { at: now, tasks, answered: false });
        let mut placements = Vec::with_capacity(chosen.len());
        for Chosen { task, agent, agent_type, since } in chosen {
            let (agent, agent_type) = (agent.clone(), agent_type.clone());
            placements.push(Placement { task: task.clone(), agent: agent.clone() });
            turn.soft.asked.insert(task.clone(), Asked { agent, agent_type, tag, since: *since, at: now });
        }
        let body = Json::of(&AssignTasks { seen, placements }).expect("what the protocol asks can be written as JSON");
        turn.ask(Service::ResourceManager, "lease.assign", body, tag);
    }
}

fn choose(turn: &mut Turn<'_, Optimizer>) -> Vec<Chosen> {
    let set_aside = std::mem::take(&mut turn.soft.set_aside);
    let mut turns = std::mem::take(&mut turn.soft.turns);
    let state = turn.state();
    let mut room = Room::new(&state.fleet, set_aside);
    let nobody = BTreeSet::new();
    let standing = |task: &TaskId| {
        let avoided = turn.soft.avoided.get(task);
        if turn.soft.asked.contains_key(task) || avoided.is_some_and(|avoided| avoided.task) {
            return Standing::Held;
        }
        let not = avoided.map_or(&nobody, |avoided| &avoided.agents);
        Standing::Free { not, rather_not: state.runs.failed_under(task) }
    };
    let clock = (turn.now(), turn.config().ageing_ms);
    let plan = placement::plan(&state.queue, &mut room, state.strategy, &mut turns, clock, standing);
    turn.soft.set_aside = room.into_set_aside();
    turn.soft.turns = turns;
    plan
}

/// Takes note of what a commit settles. Whether anything may be placed that could not be before: leases that come as
/// asked for, the most of all records, change nothing.
pub(crate) fn settle(turn: &mut Turn<'_, Optimizer>, commit: &AnyCommit) -> bool {
    let mut news = false;
    match commit {
        AnyCommit::Workflow(commit) => {
            for (_, record) in commit.stamped() {
                news |= settle_workflow(turn, record);
            }
        }
        AnyCommit::Resource(commit) => {
            for (_, record) in commit.stamped() {
                news |= settle_resource(turn, record);
            }
        }
        AnyCommit::Optimizer(_) => {}
    }
    news
}

fn settle_workflow(turn: &mut Turn<'_, Optimizer>, record: &WorkflowRecord) -> bool {
    match record {
        WorkflowRecord::WorkflowRegistered(_) | WorkflowRecord::RunStarted(_) => false,
        WorkflowRecord::StageReady(_) => true,
        WorkflowRecord::StageEnded(record) => {
            turn.soft.release(&record.task);
            true
        }
        WorkflowRecord::RunFinished(record) => {
            release_run(turn.soft, record.run);
            true
        }
    }
}

/// The stages of a run end before it does, so that nothing is found here unless that ever changes.
fn release_run(soft: &mut Soft, run: RunId) {
    let tasks: Vec<_> = soft.asked.keys().filter(|task| task.run == run).cloned().collect();
    for task in tasks {
        soft.release(&task);
    }
}

fn settle_resource(turn: &mut Turn<'_, Optimizer>, record: &ResourceRecord) -> bool {
    match record {
        ResourceRecord::Assigned(record) => {
            let Some(asked) = turn.soft.release(&record.task) else { return false };
            let as_asked = asked.agent == record.agent;
            if as_asked {
                show_placement(turn, &record.task, &asked);
            }
            !as_asked
        }
        // What is asked of an agent that left is refused.
        ResourceRecord::AgentRegistered(_) | ResourceRecord::AgentLeft(_) | ResourceRecord::LeaseEnded(_) => true,
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
        name: format!("place {}", asked.agent_type),
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
        Ok(answer) => {
            let refused = !answer.refused.is_empty();
            for Refusal { task, agent, rejection } in answer.refused {
                if turn.soft.asked.get(&task).is_some_and(|asked| asked.tag == tag) {
                    turn.soft.release(&task);
                    turn.soft.avoid(now, &task, agent, rejection.code);
                }
            }
            refused
        }
        Err(_) => {
            if !is_planted(Bug::QuestionNeverExpires) {
                turn.soft.give_up(tag);
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
    while let Some((tag, question)) = turn.soft.questions.first_key_value()
        && question.at.saturating_add(timeout) <= now
        && !is_planted(Bug::QuestionNeverExpires)
    {
        let tag = *tag;
        turn.soft.give_up(tag);
    }
    while let Some((_, task)) = turn.soft.avoided_until.pop_front_if(|(until, _)| *until <= now) {
        let old = turn.soft.avoided.get(&task).is_some_and(|avoided| avoided.until <= now);
        if old && !is_planted(Bug::RefusalNeverForgotten) {
            turn.soft.avoided.remove(&task);
        }
    }
}

/// Sets the gauge if the queue is longer or shorter than it was.
pub(crate) fn show_queue(turn: &mut Turn<'_, Optimizer>) {
    let length = turn.state().queue.len();
    if turn.soft.shown.replace(length) != Some(length) {
        turn.gauge("baton_run_queue", &[], length as f64);
    }
}
