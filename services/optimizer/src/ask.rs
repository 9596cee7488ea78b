//! Asking for leases: what was asked, what is set aside until the log says so, what was refused.
//!
//! All of it is known to the leader alone, and it can do without: the resource-manager refuses what is leased already.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, LazyLock};

use baton_machine::planted::{Bug, is_planted};
use baton_machine::{Effect, Reply, Turn};
use baton_protocol::breaker::{BreakerClosed, BreakerHalfOpened, BreakerOpened};
use baton_protocol::handoff::HandedOver;
use baton_protocol::record::{AgentLeft, AgentRegistered, AnyCommit, ResourceRecord, Stamp, WorkflowRecord};
use baton_protocol::request::{
    AssignAnswer, AssignTasks, Candidate, ExplainPlacement, Placement, PlacementExplained, Refusal, Strategy,
};
use baton_protocol::trace::{Span, SpanKind, task_span};
use baton_protocol::{AgentId, Code, Json, LeaseId, Millis, Rejection, RunId, Service, StageName, TaskId};

use crate::adaptive::Planner;
use crate::fleet::{Holder, Rank};
use crate::placement::{Chosen, Finish, Room, Standing, Weighed};
use crate::queue::{Head, Lines, Queued, Shape};
use crate::regret::Regrets;
use crate::tenants::{Seat, Tenants};
use crate::{Config, Optimizer};

/// The most placements in one question: about 200 KiB.
const MAX_PLACEMENTS: usize = 1000;
/// Of how many placements it is kept how they were weighed.
const MAX_EXPLAINED: usize = 4096;
/// How long a task is kept from an agent that refused it.
const AVOID_MS: Millis = 200;
/// How long nothing is asked after a question that was refused or not answered.
const PAUSE_MS: Millis = 150;
/// How long a shape that was refused for want of a pool is not asked for, if nobody is known to have freed anything of it.
const SHUT_MS: Millis = 2000;
/// So many tasks more than twice those that wait may stand in line before those that have left the queue are taken out.
const MAX_GONE: usize = 1000;

/// What only the leader knows.
#[derive(Debug, Default)]
pub struct Soft {
    /// What waits and may be asked for: not what is asked for already, nor what was refused as not ready lately.
    lines: Lines,
    /// How far each tenant has come.
    tenants: Tenants,
    /// The agents, with what is asked for set aside: nothing is promised twice.
    room: Room,
    /// What is known besides while tasks are placed by what was learned.
    planner: Option<Box<Planner>>,
    /// How often an agent had got free by a record that does not name it.
    unnamed: u64,
    /// What was asked for and is not in the log yet.
    asked: BTreeMap<TaskId, Asked>,
    /// Questions that are not settled yet. Tags only grow, and so do their times.
    questions: BTreeMap<u64, Question>,
    last_tag: u64,
    /// What was refused lately.
    avoided: BTreeMap<TaskId, Avoided>,
    /// When to look at it again.
    avoided_until: BTreeSet<(Millis, TaskId)>,
    /// Shapes that were refused for want of a pool.
    shut: BTreeMap<Arc<Shape>, Shut>,
    /// How often a pool had been touched when that was last looked at.
    touched: u64,
    /// What priority is too low, if any is, and whether anything waits for others because of that.
    low_below: Option<i32>,
    holds_back: bool,
    /// When the first of the tasks that wait for that has waited long enough.
    held_until: Option<Millis>,
    /// Nothing is asked before this time.
    paused_until: Option<Millis>,
    /// The length of the queue and the balance that were last shown.
    shown: Option<(usize, f64)>,
    /// Placements that are to be judged in hindsight, and those that were.
    regrets: Regrets,
    /// How the last tasks were weighed that were placed in this term, the latest last.
    placed: VecDeque<(TaskId, Asked)>,
}

/// A task that an agent was asked for.
#[derive(Debug)]
struct Asked {
    agent: AgentId,
    shape: Arc<Shape>,
    strategy: Strategy,
    /// Whether the agent was taken for what it had done before.
    is_near: bool,
    /// The lease under which another agent is at it.
    beside: Option<LeaseId>,
    weighed: Weighed,
    had_room: Vec<AgentId>,
    tag: u64,
    /// What its pools looked like when it was asked for.
    watch: u64,
    since: Millis,
    at: Millis,
}

/// A shape that is not asked for now.
#[derive(Debug)]
struct Shut {
    /// What its pools looked like when it was asked for last.
    watch: u64,
    until: Millis,
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
        let avoided = self.avoided_until.first().map(|(until, _)| *until);
        let planned = self.planner.as_ref().and_then(|planner| planner.deadline());
        // While nothing is asked, what is shut need not be opened.
        let shut = self.shut.values().map(|shut| shut.until.max(self.paused_until.unwrap_or_default())).min();
        let shut = shut.filter(|_| !is_planted(Bug::ShutForEver));
        let held = self.held_until.map(|until| until.max(self.paused_until.unwrap_or_default()));
        question.into_iter().chain(avoided).chain(shut).chain(held).chain(self.paused_until).chain(planned).min()
    }

    /// How much the placements that were judged are regretted, on average.
    pub(crate) fn regret(&self) -> Option<f64> {
        self.regrets.average()
    }

    /// Notes how much pressure there is.
    fn press(&mut self, state: &Optimizer) {
        self.low_below = state.pressure.as_ref().map(|pressure| pressure.below);
        self.holds_back = state.held_back().is_some();
    }

    /// All tasks that may be asked for stand in line.
    fn line_up_all(&mut self, state: &Optimizer, clock: Clock<'_>) {
        self.lines = Lines::default();
        self.planner = None;
        if self.tenants.is_full() {
            self.tenants = Tenants::default();
        }
        for (task, _) in state.queue.iter() {
            self.line_up(state, task, clock);
        }
        let hedge = |(task, holder): (TaskId, &Holder)| {
            holder.hedge.is_some() && state.strategy_of(task.run) == Strategy::Adaptive
        };
        if self.planner.is_none() && state.runs.held_tasks().any(hedge) {
            self.planner(state);
        }
    }

    /// The task stands in line if it may be asked for.
    fn line_up(&mut self, state: &Optimizer, task: &TaskId, clock: Clock<'_>) {
        let Some(queued) = state.queue.get(task) else { return };
        let avoided = self.avoided.get(task).is_some_and(|avoided| avoided.task);
        if avoided || self.asked.contains_key(task) {
            return;
        }
        // What may have to wait stands in line, where it can be passed over.
        let looks_ahead = state.strategy_of(task.run) == Strategy::Adaptive && !state.is_low(queued.priority);
        let tenant = self.tenant(state, task.run, clock);
        if !looks_ahead || !self.planner(state).add(state, task, (queued, tenant), clock) {
            self.lines.add(task, queued, tenant);
        }
    }

    /// The tenant of a run.
    fn tenant(&mut self, state: &Optimizer, run: RunId, (config, _): Clock<'_>) -> Seat {
        let tenant = state.runs.get(run).and_then(|run| run.tenant.as_ref());
        self.tenants.seat(tenant, &config.tenants)
    }

    /// The planner: from when the first task is placed by what was learned.
    fn planner(&mut self, state: &Optimizer) -> &mut Planner {
        let Self { planner, asked, .. } = self;
        planner.get_or_insert_with(|| {
            let mut planner = Planner::new(state);
            for (task, Asked { agent, at, .. }) in asked {
                planner.began(task, agent, *at);
            }
            Box::new(planner)
        })
    }

    /// What an agent holds may have changed, but not what it can do.
    fn changed(&mut self, state: &Optimizer, agent: &AgentId) {
        self.room.changed(state, agent);
        if let Some(planner) = &mut self.planner {
            planner.touch(agent);
        }
    }

    /// Nothing is set aside for the task any more.
    fn release(&mut self, state: &Optimizer, task: &TaskId) -> Option<Asked> {
        let asked = self.asked.remove(task)?;
        self.room.release(state, &asked.agent, &asked.shape);
        if let Some(planner) = &mut self.planner {
            planner.ended(task, &asked.agent);
        }
        if let Some(question) = self.questions.get_mut(&asked.tag) {
            question.left -= 1;
            if question.left == 0 {
                self.questions.remove(&asked.tag);
            }
        }
        Some(asked)
    }

    /// A task is not leased as was asked for: its tenant has not come further. (Of what nothing is heard, it is not known: that counts.)
    fn refused(&mut self, state: &Optimizer, task: &TaskId, clock: Clock<'_>) -> Option<Asked> {
        let asked = self.release(state, task)?;
        // A second agent for a task is nothing that its tenant was given.
        if asked.beside.is_none() && state.runs.get(task.run).is_some() {
            let tenant = self.tenant(state, task.run, clock);
            self.tenants.refused(tenant, &asked.shape.agent_type);
        }
        Some(asked)
    }

    /// Nothing is set aside for a question any more.
    fn give_up(&mut self, state: &Optimizer, tag: u64, clock: Clock<'_>) {
        let of_question = self.asked.iter().filter(|(_, asked)| asked.tag == tag);
        let tasks: Vec<_> = of_question.map(|(task, _)| task.clone()).collect();
        for task in tasks {
            self.release(state, &task);
            self.line_up(state, &task, clock);
        }
        self.questions.remove(&tag);
    }

    fn avoid(&mut self, now: Millis, task: &TaskId, agent: AgentId, rejection: &Rejection) {
        let wait = rejection.retry_after_ms.unwrap_or(0).clamp(AVOID_MS, SHUT_MS);
        let until = now.saturating_add(wait);
        let avoided = self.avoided.entry(task.clone()).or_default();
        avoided.until = avoided.until.max(until);
        let until = avoided.until;
        match rejection.code {
            Code::NotReady => avoided.task = true,
            _ => {
                avoided.agents.insert(agent);
            }
        }
        self.avoided_until.insert((until, task.clone()));
    }

    /// Chooses agents for as many tasks as possible, and then second agents for some that are under way.
    fn choose(&mut self, state: &Optimizer, clock: Clock<'_>) -> Vec<Chosen> {
        let mut plan = self.choose_first(state, clock);
        let Self { planner, room, avoided, asked, .. } = self;
        if let Some(planner) = planner {
            let may = |task: &TaskId| !asked.contains_key(task) && !avoided.contains_key(task);
            plan.extend(planner.hedge(state, room, clock.1, may));
        }
        plan
    }

    fn choose_first(&mut self, state: &Optimizer, clock: Clock<'_>) -> Vec<Chosen> {
        let is_stale = self.planner.as_ref().is_some_and(|planner| planner.is_stale(state));
        if is_stale || self.tenants.is_full() || self.lines.len() > 2 * state.queue.len() + MAX_GONE {
            self.line_up_all(state, clock);
        }
        let (config, now) = clock;
        self.shut.retain(|shape, shut| {
            is_planted(Bug::ShutForEver) || (now < shut.until && shut.watch == state.pools.watch(&shape.pools))
        });
        let planned = self.planner.as_ref().and_then(|planner| planner.level(clock));
        let Some(planned) = planned else { return self.choose_in_line(state, clock) };
        // Of the two sorts of tasks, those come first whose first stands higher in the queue.
        let lines_first = self.lines.level(now, config.ageing_ms).is_some_and(|level| level >= planned);
        let mut plan = Vec::new();
        if lines_first {
            plan = self.choose_in_line(state, clock);
        }
        let Self { planner, tenants, room, avoided, shut, .. } = self;
        if let Some(planner) = planner {
            let barred = |task: &TaskId| avoided.get(task).map(|avoided| &avoided.agents);
            plan.extend(planner.plan(state, (room, tenants), clock, barred, |shape| shut.contains_key(shape)));
        }
        if !lines_first {
            plan.extend(self.choose_in_line(state, clock));
        }
        plan
    }

    /// Chooses agents for tasks that are placed without looking ahead.
    fn choose_in_line(&mut self, state: &Optimizer, (config, now): Clock<'_>) -> Vec<Chosen> {
        let Self { lines, tenants, room, avoided, shut, .. } = self;
        let (held_back, held_until) = (state.held_back(), Cell::new(None));
        let standing = |head: &Head| {
            if !shut.is_empty() && shut.contains_key(&head.shape) {
                return Standing::Shut;
            }
            let task = head.task();
            let Some(queued) = state.queue.get(task).filter(|queued| head.is(queued)) else {
                return Standing::Gone;
            };
            // As the runs of a line take turns, the oldest of it may be another one.
            for (since, stands) in [(head.oldest, Standing::Later), (head.since(), Standing::NotYet)] {
                let held = held_back.filter(|pressure| {
                    pressure.holds_back(head.priority, since, now)
                        || (is_planted(Bug::HeldBackForEver) && head.priority < pressure.below)
                });
                if let Some(pressure) = held {
                    let until = pressure.held_until(since);
                    held_until.set(Some(held_until.get().map_or(until, |first: Millis| first.min(until))));
                    return stands;
                }
            }
            let not = avoided.get(task).map(|avoided| &avoided.agents);
            let (strategy, rather_not) = state
                .runs
                .get(task.run)
                .map_or((state.strategy, None), |run| (run.strategy.unwrap_or(state.strategy), run.failed_under(task)));
            Standing::Free { not, rather_not, near: queued.near.as_ref(), strategy }
        };
        let plan = room.plan((lines, tenants), state, (now, config.ageing_ms), standing);
        self.held_until = held_until.get();
        if let Some(planner) = &mut self.planner {
            for Chosen { task, agent, .. } in &plan {
                planner.began(task, agent, now);
            }
        }
        plan
    }
}

/// The settings and the time.
pub(crate) type Clock<'a> = (&'a Config, Millis);

/// Does something with what the leader knows, in the light of what the log says.
fn with<T>(turn: &mut Turn<'_, Optimizer>, act: impl FnOnce(&mut Soft, &Optimizer, Clock<'_>) -> T) -> T {
    let mut soft = std::mem::take(turn.soft);
    let result = act(&mut soft, turn.state(), (turn.config(), turn.now()));
    *turn.soft = soft;
    result
}

/// Begins a term.
pub(crate) fn begin(turn: &mut Turn<'_, Optimizer>) {
    with(turn, |soft, state, clock| {
        soft.unnamed = state.unnamed;
        soft.press(state);
        soft.line_up_all(state, clock);
    });
}

/// Other things are known of agents from now on.
pub(crate) fn learned_elsewhere(turn: &mut Turn<'_, Optimizer>) {
    with(turn, |soft, state, clock| {
        soft.room.forget_pools();
        soft.line_up_all(state, clock);
    });
}

/// Tasks are placed differently from now on.
pub(crate) fn line_up_all(turn: &mut Turn<'_, Optimizer>) {
    with(turn, Soft::line_up_all);
}

/// Places as many tasks as possible, and asks for all of it.
pub(crate) fn place(turn: &mut Turn<'_, Optimizer>) {
    let now = turn.now();
    if turn.soft.paused_until.is_some_and(|until| now < until) {
        return;
    }
    turn.soft.paused_until = None;
    let seen = turn.workflow_number();
    let mut plan = with(turn, Soft::choose).into_iter().peekable();
    while plan.peek().is_some() {
        // Also the answer to a question of an earlier term must find nothing here.
        let tag = now.max(turn.soft.last_tag + 1);
        turn.soft.last_tag = tag;
        let mut placements = Vec::new();
        for chosen in plan.by_ref().take(MAX_PLACEMENTS) {
            let Chosen { task, agent, shape, since, strategy, is_near, beside, weighed, had_room } = chosen;
            placements.push(Placement { task: task.clone(), agent: agent.clone(), beside });
            let watch = turn.state().pools.watch(&shape.pools);
            let asked =
                Asked { agent, shape, strategy, is_near, beside, weighed, had_room, tag, watch, since, at: now };
            turn.soft.asked.insert(task, asked);
        }
        turn.soft.questions.insert(tag, Question { at: now, left: placements.len(), answered: false });
        let body = Json::of(&AssignTasks { seen, placements }).expect("what the protocol asks can be written as JSON");
        turn.ask(Service::ResourceManager, "lease.assign", body, tag);
    }
}

/// Takes note of what a commit settles. Whether anything may be placed that could not be before: leases that come as
/// asked for, the most of all records, change nothing.
pub(crate) fn settle(turn: &mut Turn<'_, Optimizer>, commit: &AnyCommit) -> bool {
    let (mut placed, mut regrets) = (Vec::new(), Vec::new());
    let news = with(turn, |soft, state, clock| {
        let (mut news, mut reshaped) = (false, false);
        match commit {
            AnyCommit::Workflow(commit) => {
                for (_, record) in commit.stamped() {
                    regrets.extend(soft.regrets.judge(state, record));
                    news |= settle_workflow(soft, state, record, clock);
                }
            }
            AnyCommit::Resource(commit) => {
                for (stamp, record) in commit.stamped() {
                    news |= settle_resource(soft, state, (stamp, record), &mut placed);
                    reshaped |= matches!(record, ResourceRecord::PoolSet(_) | ResourceRecord::PoolRemoved(_));
                }
            }
            AnyCommit::Optimizer(_) => {}
        }
        let before = (soft.low_below, soft.holds_back);
        soft.press(state);
        // Who looks ahead passes nobody over: what is of a low priority stands in line from now on, or does no more.
        reshaped |= before.0 != soft.low_below && soft.planner.is_some();
        news |= before != (soft.low_below, soft.holds_back);
        if soft.touched != state.pools.touched() {
            soft.touched = state.pools.touched();
            news |= !soft.shut.is_empty();
        }
        if soft.unnamed != state.unnamed {
            soft.unnamed = state.unnamed;
            soft.room.forget_pools();
            reshaped = true;
        }
        if reshaped {
            soft.line_up_all(state, clock);
        }
        news
    });
    for regret in regrets {
        turn.measure_value("baton_placement_regret_ratio", &[], regret);
    }
    for (at, task, mut asked) in placed {
        turn.soft.regrets.placed(&task, &asked.agent, std::mem::take(&mut asked.had_room));
        if asked.beside.is_none() {
            let waited = at.saturating_sub(asked.since) as f64 / 1000.0;
            turn.measure_value("baton_placement_seconds", &[asked.strategy.as_str()], waited);
            show_placement(turn, &task, &asked);
        }
        if turn.soft.placed.len() >= MAX_EXPLAINED {
            turn.soft.placed.pop_front();
        }
        turn.soft.placed.push_back((task, asked));
    }
    news
}

fn settle_workflow(soft: &mut Soft, state: &Optimizer, record: &WorkflowRecord, clock: Clock<'_>) -> bool {
    match record {
        WorkflowRecord::WorkflowRegistered(_)
        | WorkflowRecord::RunStarted(_)
        | WorkflowRecord::StageExpanded(_)
        | WorkflowRecord::StageWaits(_)
        | WorkflowRecord::Signalled(_)
        | WorkflowRecord::RunsForgotten(_)
        | WorkflowRecord::ScheduleSet(_)
        | WorkflowRecord::ScheduleRemoved(_)
        | WorkflowRecord::ScheduleFired(_)
        | WorkflowRecord::TriggerSet(_)
        | WorkflowRecord::TriggerRemoved(_)
        | WorkflowRecord::EventRaised(_)
        | WorkflowRecord::TriggerFired(_) => false,
        WorkflowRecord::RunPaused(record) => {
            if let Some(planner) = &mut soft.planner {
                state.runs.open_tasks(record.run).iter().for_each(|task| planner.remove(task));
            }
            false
        }
        WorkflowRecord::StageCommitted(record) => {
            if let Some(planner) = &mut soft.planner {
                planner.learned(state, (record.task.run, &record.task.stage), clock);
            }
            false
        }
        WorkflowRecord::StageCached(record) => {
            if let Some(planner) = &mut soft.planner {
                planner.learned(state, (record.run, &record.stage), clock);
            }
            false
        }
        WorkflowRecord::StageSkipped(record) => {
            if let Some(planner) = &mut soft.planner {
                planner.learned(state, (record.run, &record.stage), clock);
            }
            false
        }
        WorkflowRecord::RunResumed(record) => {
            state.runs.open_tasks(record.run).iter().for_each(|task| soft.line_up(state, task, clock));
            true
        }
        WorkflowRecord::StageReady(record) => {
            soft.line_up(state, &record.task, clock);
            true
        }
        WorkflowRecord::StageEnded(record) => {
            soft.release(state, &record.task);
            let other = record.other.as_ref().map(|other| &other.agent);
            let agents = record.agent.iter().chain(other);
            if let Some(planner) = &mut soft.planner {
                planner.remove(&record.task);
                agents.clone().for_each(|agent| planner.ended(&record.task, agent));
                planner.held(state, &record.task);
                planner.learned(state, (record.task.run, &record.task.stage), clock);
            }
            agents.for_each(|agent| soft.changed(state, agent));
            true
        }
        WorkflowRecord::CopyEnded(record) => {
            if let Some(planner) = &mut soft.planner {
                planner.ended(&record.task, &record.agent);
                planner.held(state, &record.task);
            }
            soft.changed(state, &record.agent);
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
    if let Some(planner) = &mut soft.planner {
        planner.forget(run);
    }
}

/// A task that none of a run's is before.
fn first_task(run: RunId) -> TaskId {
    static FIRST: LazyLock<StageName> = LazyLock::new(|| StageName::new("0").expect("it is a name"));
    TaskId { run, stage: FIRST.clone(), item: None, attempt: 0 }
}

fn settle_resource(
    soft: &mut Soft,
    state: &Optimizer,
    (stamp, record): (Stamp, &ResourceRecord),
    placed: &mut Vec<(Millis, TaskId, Asked)>,
) -> bool {
    match record {
        ResourceRecord::Assigned(record) => {
            soft.changed(state, &record.agent);
            let asked = soft.release(state, &record.task);
            if let Some(planner) = &mut soft.planner {
                planner.remove(&record.task);
                if let Some(holder) = held_by(state, &record.task, &record.agent) {
                    planner.began(&record.task, &holder.agent, holder.since);
                }
                planner.held(state, &record.task);
            }
            let Some(asked) = asked else { return false };
            let as_asked = asked.agent == record.agent;
            if as_asked {
                placed.push((stamp.at, record.task.clone(), asked));
            }
            !as_asked
        }
        // What is asked of an agent that left is refused.
        ResourceRecord::AgentRegistered(AgentRegistered { agent, .. })
        | ResourceRecord::AgentLeft(AgentLeft { agent, .. }) => {
            soft.room.came_or_left(state, agent);
            if let Some(planner) = &mut soft.planner {
                planner.came_or_left(agent);
            }
            true
        }
        ResourceRecord::LeaseEnded(record) => {
            if let Some(planner) = &mut soft.planner {
                planner.ended(&record.task, &record.agent);
                planner.held(state, &record.task);
            }
            soft.changed(state, &record.agent);
            true
        }
        ResourceRecord::HandedOver(HandedOver { task, from, to, .. }) => {
            if let Some(planner) = &mut soft.planner {
                planner.ended(task, from);
                if let Some(holder) = state.runs.holder(task) {
                    planner.began(task, &holder.agent, holder.since);
                }
                planner.held(state, task);
            }
            soft.changed(state, from);
            soft.changed(state, to);
            true
        }
        ResourceRecord::HandoffOffered(_) | ResourceRecord::HandoffEnded(_) => false,
        ResourceRecord::BreakerOpened(BreakerOpened { agent, .. })
        | ResourceRecord::BreakerHalfOpened(BreakerHalfOpened { agent, .. })
        | ResourceRecord::BreakerClosed(BreakerClosed { agent, .. }) => {
            soft.changed(state, agent);
            true
        }
        // There may be other shapes than before: see the end of the commit.
        ResourceRecord::PoolSet(_) | ResourceRecord::PoolRemoved(_) => true,
        // Whether that lets anything go ahead is seen at the end of the commit.
        ResourceRecord::PressureChanged(_) => false,
        ResourceRecord::Acquired(_)
        | ResourceRecord::Renewed(_)
        | ResourceRecord::Released(_)
        | ResourceRecord::ApprovalAsked(_)
        | ResourceRecord::BudgetRefused(_)
        | ResourceRecord::AlertRaised(_)
        | ResourceRecord::AlertCleared(_)
        | ResourceRecord::AlertAcknowledged(_) => false,
    }
}

/// What an agent holds a task by, alone or beside another one.
fn held_by<'a>(state: &'a Optimizer, task: &TaskId, agent: &AgentId) -> Option<&'a Holder> {
    let holders = state.runs.holder(task).into_iter().chain(state.runs.second(task));
    holders.into_iter().find(|holder| holder.agent == *agent)
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
            ("baton.stage.name", task.part().to_string()),
            ("baton.agent.id", asked.agent.to_string()),
            ("baton.strategy", asked.strategy.as_str().to_owned()),
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
        Ok(answer) => with(turn, |soft, state, clock| {
            let refused = !answer.refused.is_empty();
            for Refusal { task, agent, rejection } in answer.refused {
                if soft.asked.get(&task).is_some_and(|asked| asked.tag == tag) {
                    let asked = soft.refused(state, &task, clock);
                    match asked.filter(|_| rejection.code == Code::PoolExhausted) {
                        Some(Asked { shape, watch, .. }) => {
                            let wait = rejection.retry_after_ms.unwrap_or(SHUT_MS).min(SHUT_MS);
                            soft.shut.insert(shape, Shut { watch, until: now.saturating_add(wait) });
                        }
                        None => soft.avoid(now, &task, agent, &rejection),
                    }
                    soft.line_up(state, &task, clock);
                }
            }
            refused
        }),
        Err(_) => {
            if !is_planted(Bug::QuestionNeverExpires) {
                with(turn, |soft, state, clock| soft.give_up(state, tag, clock));
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
    with(turn, |soft, state, clock| {
        while let Some((tag, question)) = soft.questions.first_key_value()
            && question.at.saturating_add(timeout) <= now
            && !is_planted(Bug::QuestionNeverExpires)
        {
            let tag = *tag;
            soft.give_up(state, tag, clock);
        }
        while soft.avoided_until.first().is_some_and(|(until, _)| *until <= now)
            && let Some((_, task)) = soft.avoided_until.pop_first()
        {
            let old = soft.avoided.get(&task).is_some_and(|avoided| avoided.until <= now);
            if old && !is_planted(Bug::RefusalNeverForgotten) {
                soft.avoided.remove(&task);
                soft.line_up(state, &task, clock);
            }
        }
    });
}

/// Why an agent has the last attempt of a stage, or why that waits.
pub(crate) fn explain(
    turn: &mut Turn<'_, Optimizer>,
    request: &ExplainPlacement,
) -> Result<PlacementExplained, Rejection> {
    with(turn, |soft, state, (_, now)| {
        let ExplainPlacement { run, stage } = request;
        let Some(task) = state.runs.get(*run).and_then(|of| of.task(*run, stage)) else {
            let message = format!(
                "stage {stage} of run {run} neither waits nor is it at work, and how it was placed is not known any more"
            );
            let of_stage =
                |(task, asked): &&(TaskId, Asked)| task.run == *run && task.stage == *stage && asked.beside.is_none();
            let last = soft.placed.iter().rev().find(of_stage);
            let last = last.map(|(task, asked)| asked.explain(task, state));
            return last.ok_or_else(|| Rejection::new(Code::UnknownRun, message));
        };
        let first = |asked: &&Asked| asked.beside.is_none();
        let mut placed = soft.placed.iter().rev().filter(|(known, _)| *known == task).map(|(_, asked)| asked);
        if let Some(asked) = soft.asked.get(&task).filter(first).or_else(|| placed.find(first)) {
            let mut explained = asked.explain(&task, state);
            if let Some(second) = state.runs.second(&task) {
                let as_well = format!("; {} has it as well, for that is expected to end sooner", second.agent);
                explained.reason.push_str(&as_well);
            }
            return Ok(explained);
        }
        if let Some(holder) = state.runs.holder(&task) {
            return Ok(PlacementExplained {
                strategy: holder.strategy,
                agent: Some(holder.agent.clone()),
                since: None,
                at: Some(holder.since),
                reason: "it was placed before this instance led, or by somebody else: how it was weighed is not known"
                    .to_owned(),
                candidates: Vec::new(),
                task,
            });
        }
        Ok(soft.explain_waiting(state, task, now))
    })
}

impl Soft {
    fn explain_waiting(&mut self, state: &Optimizer, task: TaskId, now: Millis) -> PlacementExplained {
        let strategy = state.strategy_of(task.run);
        let Self { planner, room, shut, .. } = self;
        let planned = planner.as_mut().and_then(|planner| planner.weigh(state, room, now, &task));
        let queued = state.queue.get(&task);
        let weighed = planned.or_else(|| queued.map(|queued| room.weigh(state, strategy, &queued.shape)));
        let candidates = weighed.map_or_else(Vec::new, |weighed| weighed.candidates(state, strategy, queued, now));
        let avoided = self.avoided.contains_key(&task);
        let first = candidates.first().map(|first| (&first.agent, first.has_room));
        let held_back = state.held_back();
        let reason = match (queued, first) {
            (None, _) if state.held.contains(&task) => "its run is paused: it is placed when that goes on".to_owned(),
            (None, _) => "it is not in the queue".to_owned(),
            (Some(queued), _) if shut.contains_key(&queued.shape) => {
                "a pool that it needs something of has not enough now".to_owned()
            }
            (Some(queued), _) if held_back.is_some_and(|p| p.holds_back(queued.priority, queued.since, now)) => {
                let (level, below) = held_back.map(|pressure| (pressure.level, pressure.below)).unwrap_or_default();
                format!(
                    "it is of priority {}: while the pressure is {level}, what is of less than {below} waits for the others",
                    queued.priority
                )
            }
            _ if avoided => "the resource-manager has just refused it: it is asked for again in a moment".to_owned(),
            (Some(queued), None) => {
                let able = state.fleet.iter().filter(|(_, agent)| agent.could_hold(&queued.shape)).count();
                let what = &queued.shape.agent_type;
                match able {
                    0 => format!("no agent that is there can do {what} with what it needs"),
                    able => format!("all {able} agents that can do {what} have no room"),
                }
            }
            (Some(_), Some((agent, false))) => {
                format!("it is expected to end soonest at {agent}, though that has no room yet")
            }
            (Some(_), Some((agent, true))) => {
                format!("{agent} comes first, but tasks that go before it have a claim on what is free")
            }
        };
        let since = queued.map(|queued| queued.since);
        PlacementExplained { task, strategy, agent: None, since, at: None, reason, candidates }
    }
}

impl Asked {
    fn explain(&self, task: &TaskId, state: &Optimizer) -> PlacementExplained {
        let candidates = self.weighed.candidates(state, self.strategy, None, self.at);
        let reason = match self.strategy {
            _ if self.is_near => "it did most of what the task builds on, and is nearly as good as the first",
            Strategy::RoundRobin => "it was its turn",
            Strategy::PriorityBased => "of those with room it had the highest priority, then the best score",
            Strategy::LoadBalanced => "of those with room it had the smallest part of its slots in use",
            Strategy::Adaptive if candidates.first().is_some_and(|first| first.agent != self.agent) => {
                "who would end it sooner is kept for what goes before it, or failed it before"
            }
            Strategy::Adaptive => "it was expected to end soonest there",
            Strategy::Historical => "of those with room it did such tasks best so far",
            Strategy::Swarm => "it was drawn by the trails",
        };
        PlacementExplained {
            task: task.clone(),
            strategy: self.strategy,
            agent: Some(self.agent.clone()),
            since: Some(self.since),
            at: Some(self.at),
            reason: reason.to_owned(),
            candidates,
        }
    }
}

impl Weighed {
    fn candidates(
        &self,
        state: &Optimizer,
        strategy: Strategy,
        queued: Option<&Queued>,
        now: Millis,
    ) -> Vec<Candidate> {
        let named = |terms: &[(&str, f64)]| terms.iter().map(|(name, term)| ((*name).to_owned(), *term)).collect();
        match self {
            Self::Ranked(ranks) => {
                let candidate = |rank: &Rank| {
                    let mut terms = rank.terms(now).to_vec();
                    if let (Strategy::Swarm, Some(queued)) = (strategy, queued) {
                        terms.push(("trail", state.learning.trail(&rank.agent, &queued.shape.agent_type)));
                    }
                    if let Some(skill) = rank.skill().filter(|_| strategy == Strategy::Historical) {
                        terms.push(("skill", skill));
                    }
                    Candidate { agent: rank.agent.clone(), has_room: true, terms: named(&terms) }
                };
                ranks.iter().map(candidate).collect()
            }
            Self::Finish(all) => {
                let candidate = |of: &Finish| Candidate {
                    agent: of.agent.clone(),
                    has_room: of.has_room,
                    terms: named(&[
                        ("available_ms", of.available),
                        ("duration_ms", of.duration),
                        ("failure", of.failure),
                        ("failure_cost_ms", of.risk),
                        ("ends_ms", of.available + of.duration + of.risk),
                    ]),
                };
                all.iter().map(candidate).collect()
            }
        }
    }
}

/// Sets the gauges if the queue is longer or shorter than it was, or agents are loaded otherwise.
pub(crate) fn show(turn: &mut Turn<'_, Optimizer>) {
    let state = turn.state();
    // Where nobody has anything, all have as much.
    let (length, balance) = (state.queue.len(), state.fleet.loads().balance().unwrap_or(1.0));
    let before = turn.soft.shown.replace((length, balance));
    if before.is_none_or(|(before, _)| before != length) {
        turn.gauge("baton_run_queue", &[], length as f64);
    }
    if before.is_none_or(|(_, before)| before.to_bits() != balance.to_bits()) {
        turn.gauge("baton_load_balance_ratio", &[], balance);
    }
}
