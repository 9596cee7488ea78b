//! Workflow instances on a fleet of agents that sleep, beside what the simulation says of the same.
//!
//! Fleet, luck, history and times are those of `baton simulate`: how long an attempt takes and whether it fails depends on the
//! task, how often it has failed, and the agent. So the two differ in what a simulation leaves out alone: messages take time,
//! and timers are not exact. What that is a task is measured too, and simulated: then the two should be the same but for chance.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use baton_client::{Client, ConnectSettings};
use baton_protocol::request::{ImportLearning, Lesson, MAX_LESSONS, RegisterWorkflow, StartRun};
use baton_protocol::run::RunStatus;
use baton_protocol::{Json, RunId};
use baton_sdk::{Agent, AgentError, Output, Task, TaskError, TaskResult};
use baton_simulate::engine::{Attempt, Conditions};
use baton_simulate::experiment::{self, Cell};
use baton_simulate::machine::Learned;
use baton_simulate::names;
use baton_simulate::who::{self, History, Who, geometric_mean};
use baton_simulate::workload::{Graph, World as Simulated};
use futures::StreamExt;
use hdrhistogram::Histogram;
use serde::Serialize;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until, timeout};
use uuid::Uuid;

use crate::load::{ENDS, finished, lock};
use crate::measurement::{Latency, histogram};
use crate::plan::Setup;
use crate::world::World;

/// How much longer than in the simulation a run may take, besides ten times as long, before it counts as stuck.
const PATIENCE: Duration = Duration::from_secs(30);
/// A timer rings at the first whole millisecond that is not before its time. Half of one sooner, it is exact on average.
const SOONER: Duration = Duration::from_micros(500);
/// The most bytes of lessons in one request.
const LESSONS: usize = 300 * 1024;
const POLL: Duration = Duration::from_millis(20);

/// By how much tasks take longer than a workflow says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scale {
    /// By this.
    By(f64),
    /// By so much, that a task of the workflow takes so long on average.
    Mean(Duration),
}

impl Scale {
    fn of(self, graph: &Graph) -> f64 {
        match self {
            Self::By(scale) => scale,
            Self::Mean(mean) => mean.as_secs_f64() / who::mean(graph.seconds.iter().copied()),
        }
    }
}

/// What is run.
#[derive(Debug, Clone)]
pub struct DagPlan {
    /// Workflows, fleets, luck, strategies, history. The strategies are the optimizer's.
    pub experiment: experiment::Plan,
    /// By how much tasks take longer than the workflows say.
    pub scale: Scale,
    /// The least time that a task takes an agent of speed 1.
    pub least: Duration,
    /// How often each is run.
    pub repeat: usize,
    /// With which Baton. It starts a broker of its own.
    pub setup: Setup,
}

/// One run of one workflow on one fleet. Times are in seconds unless a name says otherwise.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DagMeasurement {
    /// `baton`.
    pub system: &'static str,
    /// Baton's version.
    pub version: &'static str,
    /// `dag`.
    pub work: &'static str,
    /// The workflow.
    pub instance: String,
    /// How many tasks it has.
    pub tasks: usize,
    /// How many agents.
    pub agents: usize,
    /// What the fleet was drawn from.
    pub fleet: u64,
    /// What the luck of attempts depends on.
    pub luck: u64,
    /// Who placed.
    pub policy: String,
    /// What was seen before.
    pub history: History,
    /// `process` or `power`.
    pub durability: &'static str,
    /// How many processes the services were: `one` or `many`.
    pub processes: &'static str,
    /// Which part of the traces was kept.
    pub sample: f64,
    /// By how much tasks took longer than the workflow says.
    pub scale: f64,
    /// The least time of a task, in milliseconds.
    pub least_ms: f64,
    /// The lower bound of the makespan.
    pub bound: f64,
    /// The makespan of clairvoyant HEFT where nothing fails.
    pub heft: f64,
    /// The makespan in the simulation.
    pub simulated: f64,
    /// The makespan in the simulation where each attempt keeps its agent, and those that wait for it, for what handing on and the
    /// timers took here: the medians of `handed_on` and `overslept`.
    pub simulated_late: f64,
    /// The makespan: from before the run is asked for until its end is heard of.
    pub makespan: f64,
    /// The simulation's by HEFT's.
    pub simulated_to_heft: f64,
    /// Baton's by HEFT's.
    pub to_heft: f64,
    /// Baton's by the simulation's.
    pub ratio: f64,
    /// Baton's by that of the simulation in which handing on takes time.
    pub ratio_late: f64,
    /// How many attempts there were.
    pub attempts: usize,
    /// How many of them failed.
    pub failed: usize,
    /// How many were second copies.
    pub copies: usize,
    /// From when an attempt could begin, its task ready and its agent free, until it did: report, commit, placement, lease, push. Where
    /// the strategy lets a task wait for another agent, or an agent for another task, that is in it: the median tells of messages.
    pub handed_on: Latency,
    /// How much longer an attempt took than it should have.
    pub overslept: Latency,
}

impl DagMeasurement {
    /// For people, in a line.
    #[must_use]
    pub fn describe(&self) -> String {
        format!(
            "{} ({} tasks), {} agents of {}, {}: HEFT {:.2} s, simulated {:.2} s, Baton {:.2} s: {:.3} of the simulation",
            self.instance,
            self.tasks,
            self.agents,
            self.fleet,
            self.policy,
            self.heft,
            self.simulated,
            self.makespan,
            self.ratio
        )
    }
}

/// All runs under a strategy on fleets of one size: geometric means, and medians of all that is told as such.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DagMeans {
    /// How many agents.
    pub agents: usize,
    /// Who placed.
    pub policy: String,
    /// How many runs.
    pub runs: usize,
    /// The simulation's makespan by HEFT's.
    pub simulated_to_heft: f64,
    /// Baton's by HEFT's.
    pub to_heft: f64,
    /// Baton's by the simulation's.
    pub ratio: f64,
    /// The least and the greatest of these.
    pub ratios: (f64, f64),
    /// Baton's by that of the simulation in which handing on takes time.
    pub ratio_late: f64,
    /// What messages and timers take an attempt, in milliseconds: the medians of `handed_on` and `overslept` together, the mean over
    /// the runs.
    pub handed_on_ms: f64,
}

/// The means of runs, in the order of their fleets' sizes and strategies.
#[must_use]
pub fn dag_means(all: &[DagMeasurement]) -> Vec<DagMeans> {
    let mut groups: Vec<Vec<&DagMeasurement>> = Vec::new();
    for it in all {
        match groups.iter_mut().find(|of| of[0].agents == it.agents && of[0].policy == it.policy) {
            Some(group) => group.push(it),
            None => groups.push(vec![it]),
        }
    }
    let means = |of: &Vec<&DagMeasurement>| {
        let mean = |what: fn(&DagMeasurement) -> f64| geometric_mean(of.iter().map(|it| what(it)));
        let ratios = || of.iter().map(|it| it.ratio);
        DagMeans {
            agents: of[0].agents,
            policy: of[0].policy.clone(),
            runs: of.len(),
            simulated_to_heft: mean(|it| it.simulated_to_heft),
            to_heft: mean(|it| it.to_heft),
            ratio: mean(|it| it.ratio),
            ratios: (ratios().fold(f64::INFINITY, f64::min), ratios().fold(0.0, f64::max)),
            ratio_late: mean(|it| it.ratio_late),
            handed_on_ms: who::mean(of.iter().map(|it| it.handed_on.p50_ms + it.overslept.p50_ms)),
        }
    };
    groups.iter().map(means).collect()
}

/// Runs what the plan says, each in a world of its own, and tells each measurement as it is made.
///
/// # Errors
/// Says what could not be started, simulated or run. What was started is stopped in any case.
pub async fn run_dags(plan: &DagPlan, mut tell: impl FnMut(&DagMeasurement)) -> anyhow::Result<Vec<DagMeasurement>> {
    let mut all = Vec::new();
    let graphs = &plan.experiment.graphs;
    for fleet in plan.experiment.fleets.draw() {
        for (place, graph) in graphs.iter().enumerate() {
            let scale = plan.scale.of(graph);
            // What was seen before was scaled just so, too.
            let scaled = |graph: &Arc<Graph>| Arc::new(graph.scaled(scale, plan.least.as_secs_f64()));
            let experiment =
                experiment::Plan { graphs: graphs.iter().map(scaled).collect(), ..plan.experiment.clone() };
            let cell = Cell::new(&experiment, &fleet, place);
            for &who in &experiment.who {
                let learned = cell.learn(who)?;
                for &luck in &experiment.luck {
                    let it = Dag {
                        plan,
                        graphs: &experiment.graphs,
                        cell: &cell,
                        learned: learned.as_ref(),
                        scale,
                        luck,
                        who,
                    };
                    for _ in 0..plan.repeat.max(1) {
                        let measured = it.measure(&experiment.graphs[place]).await;
                        let measured = measured.with_context(|| format!("{} on {} agents", graph.name, fleet.len()))?;
                        tell(&measured);
                        all.push(measured);
                    }
                }
            }
        }
    }
    Ok(all)
}

/// A run that is to be made.
struct Dag<'a> {
    plan: &'a DagPlan,
    /// All workflows, scaled: what agents can do is what these ask for.
    graphs: &'a [Arc<Graph>],
    cell: &'a Cell<'a>,
    /// What the optimizer has seen before.
    learned: Option<&'a Learned>,
    scale: f64,
    luck: u64,
    who: Who,
}

impl Dag<'_> {
    async fn measure(&self, graph: &Graph) -> anyhow::Result<DagMeasurement> {
        let (world, setup) = (self.cell.world(), &self.plan.setup);
        let conditions = Conditions { seed: self.luck, ..Conditions::default() };
        let simulated = self.cell.simulate(self.who, &conditions, self.learned)?.0.makespan;
        let (makespan, attempts) = self.run(graph, &conditions, simulated).await?;
        let (handed_on, overslept) = (handed_on(world, &attempts), overslept(&attempts));
        let latency = (handed_on.p50_ms + overslept.p50_ms) / 1000.0;
        let late = Conditions { latency, ..conditions };
        let simulated_late = self.cell.simulate(self.who, &late, self.learned)?.0.makespan;
        let heft = self.cell.heft();
        Ok(DagMeasurement {
            system: "baton",
            version: env!("CARGO_PKG_VERSION"),
            work: "dag",
            instance: graph.name.clone(),
            tasks: graph.len(),
            agents: world.fleet.len(),
            fleet: world.fleet.plan.seed,
            luck: self.luck,
            policy: self.who.to_string(),
            history: self.plan.experiment.history,
            durability: setup.durability(),
            processes: setup.processes.as_str(),
            sample: setup.sample,
            scale: self.scale,
            least_ms: self.plan.least.as_secs_f64() * 1000.0,
            bound: self.cell.bound(),
            heft,
            simulated,
            simulated_late,
            makespan,
            simulated_to_heft: simulated / heft,
            to_heft: makespan / heft,
            ratio: makespan / simulated,
            ratio_late: makespan / simulated_late,
            attempts: attempts.len(),
            failed: attempts.iter().filter(|attempt| attempt.is(false)).count(),
            copies: attempts.iter().filter(|attempt| attempt.is_copy).count(),
            handed_on,
            overslept,
        })
    }

    /// Runs it in a world of its own: the makespan in seconds, and all attempts.
    async fn run(&self, graph: &Graph, conditions: &Conditions, simulated: f64) -> anyhow::Result<(f64, Vec<Done>)> {
        let mut world = World::open(&self.plan.setup).await.context("starting what is to be measured")?;
        // In the model an agent is given work however often it fails.
        let settings = [("BATON_BREAKERS__ENABLED", "false")];
        let ran = match world.start_services(&self.plan.setup, &settings).await {
            Ok(()) => self.run_in(&world, graph, conditions, simulated).await,
            Err(error) => Err(error),
        };
        world.stop().await;
        ran
    }

    async fn run_in(
        &self,
        world: &World,
        graph: &Graph,
        conditions: &Conditions,
        simulated: f64,
    ) -> anyhow::Result<(f64, Vec<Done>)> {
        let Who::Strategy(strategy) = self.who else { bail!("{} is no strategy of the optimizer", self.who) };
        let client = world.client();
        client.set_strategy(strategy).await.context("setting the strategy")?;
        let count = self.cell.world().fleet.len();
        let shared = Arc::new(Shared {
            world: self.cell.world().clone(),
            conditions: conditions.clone(),
            begin: Instant::now(),
            copies: Mutex::default(),
            done: Mutex::default(),
        });
        let mut agents = JoinSet::new();
        for agent in 0..count {
            agents.spawn(self.start_agent(world.server(), agent, &shared).await?);
        }
        world.wait_for_agents(count).await?;
        self.know_agents(client, count).await?;
        for lessons in batches(self.learned.map(Learned::lessons).unwrap_or_default()) {
            client.import_learning(&ImportLearning { lessons }).await.context("telling what was learned before")?;
        }
        let definition = Some(Json::of(&*names::definition(graph))?);
        client.register_workflow(&RegisterWorkflow { source: None, definition }).await?;
        let mut ends = client.nats().subscribe(ENDS).await?;
        client.nats().flush().await?;

        let run = RunId::from_uuid(Uuid::now_v7());
        let input = Json::of(&json!({}))?;
        let request = StartRun { run: Some(run), ..StartRun::new(names::workflow(graph), input) };
        let patience = PATIENCE + Duration::from_secs_f64(10.0 * simulated);
        let begin = Instant::now();
        client.start_run(request).await?;
        let end = async {
            while let Some(message) = ends.next().await {
                if let Some(end) = finished(&message.payload).filter(|end| end.run == run) {
                    return Ok(end.status);
                }
            }
            bail!("the connection was lost")
        };
        let status = tokio::select! {
            ended = timeout(patience, end) => ended.with_context(|| format!("it has not ended after {patience:.0?}"))??,
            Some(ended) = agents.join_next() => {
                ended??;
                bail!("an agent has ended")
            }
        };
        let makespan = begin.elapsed().as_secs_f64();
        if status != RunStatus::Succeeded {
            bail!("the run has ended as {status:?}");
        }
        agents.shutdown().await;
        let since = begin.duration_since(shared.begin).as_secs_f64();
        let mut done = std::mem::take(&mut *lock(&shared.done));
        for attempt in &mut done {
            (attempt.began, attempt.ended) = (attempt.began - since, attempt.ended - since);
        }
        Ok((makespan, done))
    }

    /// An agent of the fleet, to be driven.
    async fn start_agent(
        &self,
        server: &str,
        agent: usize,
        shared: &Arc<Shared>,
    ) -> anyhow::Result<impl Future<Output = Result<(), AgentError>> + Send + use<>> {
        let id = names::agent(agent);
        let settings = ConnectSettings::alone(server.to_owned()).named(format!("baton-bench-{id}"));
        let held = names::held(&self.cell.world().fleet, agent, self.graphs);
        let builder = Agent::builder(id.as_str(), names::WORKER).settings(settings);
        let builder = held.iter().fold(builder, |builder, held| builder.capability(held.as_str(), json!({})));
        let connected = builder.connect().await?;
        let shared = Arc::clone(shared);
        let handler = move |task: Task| {
            let (shared, begin) = (Arc::clone(&shared), Instant::now());
            async move { shared.sleep(&task, agent, begin).await }
        };
        Ok(connected.run_until(handler, std::future::pending()))
    }

    /// Waits until the optimizer knows the agents: what was learned of others, it would take for what it knows of such that have gone.
    async fn know_agents(&self, client: &Client, count: usize) -> anyhow::Result<()> {
        let begin = Instant::now();
        while client.get_placement().await?.agents.len() < count {
            if begin.elapsed() > PATIENCE {
                bail!("the optimizer does not know all agents after {PATIENCE:?}");
            }
            sleep(POLL).await;
        }
        Ok(())
    }
}

/// What all agents share.
struct Shared {
    world: Simulated,
    conditions: Conditions,
    /// What times are told from.
    begin: Instant,
    /// How many agents have begun an attempt, by the task and the attempt.
    copies: Mutex<BTreeMap<(usize, u32), u32>>,
    done: Mutex<Vec<Done>>,
}

/// An attempt that is over. Times are in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Done {
    task: usize,
    agent: usize,
    /// Whether another agent had begun it before.
    is_copy: bool,
    began: f64,
    ended: f64,
    /// What it should have been; none if it was called off, as another copy was done first.
    luck: Option<Attempt>,
}

impl Done {
    fn is(&self, ok: bool) -> bool {
        self.luck.is_some_and(|luck| luck.ok == ok)
    }
}

impl Shared {
    /// Does a task: sleeps as long as it takes, and fails if its luck is such.
    async fn sleep(&self, task: &Task, agent: usize, begin: Instant) -> TaskResult {
        let id = task.id();
        let place = names::place_of_stage(&id.stage).filter(|place| *place < self.world.len());
        let Some(place) = place else {
            return Err(TaskError::failed(format!("there is no task {}", id.stage)).permanent());
        };
        let copy = {
            let mut copies = lock(&self.copies);
            let begun = copies.entry((place, id.attempt)).or_default();
            *begun += 1;
            *begun - 1
        };
        let tries = (id.attempt.saturating_sub(1), copy);
        let luck = self.conditions.attempt(&self.world, (place, agent), tries);
        let due = begin + Duration::from_secs_f64(luck.takes);
        let slept = tokio::select! {
            () = sleep_until((due - SOONER).into()) => Some(luck),
            () = task.cancelled().cancelled() => None,
        };
        let since = |at: Instant| at.duration_since(self.begin).as_secs_f64();
        let (began, ended) = (since(begin), since(Instant::now()));
        lock(&self.done).push(Done { task: place, agent, is_copy: copy > 0, began, ended, luck: slept });
        match slept {
            Some(luck) if luck.ok => Ok(Output::raw(Json::null())),
            Some(_) => Err(TaskError::failed("its luck was bad")),
            None => Err(TaskError::failed("it was called off")),
        }
    }
}

/// From when attempts could begin until they did. Tasks without parents can from 0 on.
fn handed_on(world: &Simulated, attempts: &[Done]) -> Latency {
    let mut order: Vec<&Done> = attempts.iter().collect();
    order.sort_by(|a, b| a.began.total_cmp(&b.began));
    let mut succeeded = vec![0.0; world.len()];
    for done in order.iter().filter(|done| done.is(true)) {
        succeeded[done.task] = done.ended;
    }
    let (mut failed, mut free) = (vec![0.0; world.len()], vec![0.0; world.fleet.len()]);
    let mut all = histogram();
    for done in order {
        let parents = world.parents[done.task].iter().map(|&parent| succeeded[parent]);
        let ready: f64 = parents.fold(failed[done.task], f64::max);
        // A second copy could have begun long before anybody wanted one.
        if !done.is_copy {
            record(&mut all, done.began - ready.max(free[done.agent]));
        }
        free[done.agent] = done.ended;
        failed[done.task] = done.ended;
    }
    Latency::of(&all)
}

/// How much longer attempts took than they should have.
fn overslept(attempts: &[Done]) -> Latency {
    let mut all = histogram();
    for done in attempts {
        if let Some(luck) = done.luck {
            record(&mut all, done.ended - done.began - luck.takes);
        }
    }
    Latency::of(&all)
}

fn record(histogram: &mut Histogram<u64>, seconds: f64) {
    histogram.saturating_record((seconds.max(0.0) * 1e6) as u64);
}

/// Lessons in as many requests as they need.
fn batches(lessons: Vec<Lesson>) -> Vec<Vec<Lesson>> {
    let (mut batches, mut bytes) = (Vec::<Vec<Lesson>>::new(), 0);
    for lesson in lessons {
        match batches.last_mut().filter(|last| last.len() < MAX_LESSONS && bytes < LESSONS) {
            Some(last) => {
                bytes += lesson.known.size();
                last.push(lesson);
            }
            None => {
                bytes = lesson.known.size();
                batches.push(vec![lesson]);
            }
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use baton_protocol::AgentId;
    use baton_protocol::request::Subject;
    use baton_simulate::fleet::{Fleet, FleetPlan};
    use baton_simulate::generate::{Shape, generate};
    use baton_simulate::workload::Job;

    use super::*;

    fn done(task: usize, agent: usize, (began, ended): (f64, f64), ok: bool) -> Done {
        Done { task, agent, is_copy: false, began, ended, luck: Some(Attempt { takes: 1.0, ok }) }
    }

    #[test]
    fn an_attempt_can_begin_when_its_task_is_ready_and_its_agent_is_free() {
        let graph = Arc::new(Graph { parents: vec![vec![], vec![0], vec![0]], ..generate(Shape::Lanes, 1, 3) });
        let plan = FleetPlan { agents: 2, speeds: (1.0, 1.0), failures: (0.0, 0.0), seed: 1 };
        let world = Simulated::new(vec![Job::new(&graph)], &Arc::new(Fleet::new(plan)));
        let attempts = [
            // The first begins after 2 ms.
            done(0, 0, (0.002, 1.002), true),
            // The second is ready then, and begins after 4 ms on the other agent, which has long been free.
            done(1, 1, (1.006, 2.006), false),
            // The third waits for nothing but its agent, which is free after 1.002 s: 6 ms.
            done(2, 0, (1.008, 3.0), true),
            // The second is tried again, 1 ms after its failure and that agent's.
            done(1, 1, (2.007, 3.007), true),
            // A second copy of that, called off.
            Done { is_copy: true, luck: None, ..done(1, 0, (3.0, 3.01), true) },
        ];
        let Latency { p50_ms, max_ms, .. } = handed_on(&world, &attempts);
        assert!((p50_ms - 2.0).abs() < 0.01 && (max_ms - 6.0).abs() < 0.01, "{p50_ms} {max_ms}");
        let Latency { p50_ms, max_ms, .. } = overslept(&attempts);
        assert!(p50_ms < 0.01 && (max_ms - 992.0).abs() < 1.0, "{p50_ms} {max_ms}");
    }

    #[test]
    fn a_workflow_is_scaled_by_a_number_or_to_a_mean() {
        let graph = generate(Shape::Fan, 1, 10);
        assert!((Scale::By(0.25).of(&graph) - 0.25).abs() < 1e-12);
        let scaled = graph.scaled(Scale::Mean(Duration::from_millis(100)).of(&graph), 0.0);
        assert!((who::mean(scaled.seconds) - 0.1).abs() < 1e-12);
    }

    #[test]
    fn lessons_go_in_as_many_requests_as_they_need() {
        let lesson = |agent: usize, bytes: usize| Lesson {
            of: Subject::Agent(AgentId::new(&format!("a-{agent}")).unwrap()),
            known: Json::of(&"x".repeat(bytes)).unwrap(),
        };
        assert_eq!(batches(Vec::new()).len(), 0);
        let sizes = |lessons: Vec<Lesson>| batches(lessons).iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(sizes((0..2500).map(|agent| lesson(agent, 10)).collect()), [1000, 1000, 500]);
        assert_eq!(sizes((0..5).map(|agent| lesson(agent, 200 * 1024)).collect()), [2, 2, 1]);
    }
}
