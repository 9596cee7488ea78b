//! What is to be done: graphs of tasks, and when each arrives.

use std::sync::Arc;

use baton_protocol::id::mix;
use baton_wfformat::Instance;

use crate::fleet::Fleet;

/// The least time a task takes on an agent of speed 1, in seconds. Some instances measured nothing.
const FLOOR_S: f64 = 0.01;

/// A workflow: tasks, what each waits for, and how long each takes.
#[derive(Debug, Clone, PartialEq)]
pub struct Graph {
    /// Its name; the same name means the same workflow.
    pub name: String,
    /// How long each task takes on an agent of speed 1, in seconds. Nobody who places tasks may look.
    pub seconds: Vec<f64>,
    /// The category of each task, as a place in `categories`.
    pub category: Vec<usize>,
    /// What kinds of work there are.
    pub categories: Vec<String>,
    /// What each task waits for, ascending.
    pub parents: Vec<Vec<usize>>,
    /// What waits for each task, ascending.
    pub children: Vec<Vec<usize>>,
    /// How many bytes each task reads: known before it runs.
    pub input_bytes: Vec<u64>,
    /// An order in which each task comes after its parents.
    pub order: Vec<usize>,
}

impl Graph {
    /// The graph of a workflow instance.
    #[must_use]
    pub fn of(name: &str, instance: &Instance) -> Self {
        let mut categories: Vec<String> = Vec::new();
        let category = instance.tasks.iter().map(|task| {
            categories.iter().position(|known| *known == task.category).unwrap_or_else(|| {
                categories.push(task.category.clone());
                categories.len() - 1
            })
        });
        let category = category.collect();
        // Nanoseconds are whole numbers: the quotient is the number that the text says, to the last bit.
        let seconds = instance.tasks.iter().map(|task| (task.runtime.as_nanos() as f64 / 1e9).max(FLOOR_S)).collect();
        Self {
            name: name.to_owned(),
            seconds,
            category,
            categories,
            parents: instance.tasks.iter().map(|task| task.parents.clone()).collect(),
            children: instance.tasks.iter().map(|task| task.children.clone()).collect(),
            input_bytes: (0..instance.tasks.len()).map(|task| instance.input_bytes(task)).collect(),
            order: instance.order.clone(),
        }
    }

    /// The same workflow, in which each task takes so many times as long, and no less than so many seconds.
    #[must_use]
    pub fn scaled(&self, scale: f64, least: f64) -> Self {
        let seconds = self.seconds.iter().map(|seconds| (seconds * scale).max(least)).collect();
        Self { seconds, ..self.clone() }
    }

    /// How many tasks.
    #[must_use]
    pub fn len(&self) -> usize {
        self.seconds.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.seconds.is_empty()
    }
}

/// A workflow that is to be run.
#[derive(Debug, Clone)]
pub struct Job {
    /// What.
    pub graph: Arc<Graph>,
    /// When it arrives, in seconds.
    pub arrives: f64,
    /// By how much its tasks take longer than the graph says.
    pub scale: f64,
    /// How much it counts.
    pub weight: f64,
    /// When it should be done, in seconds.
    pub deadline: Option<f64>,
}

impl Job {
    /// A workflow that is there from the beginning and has no deadline.
    #[must_use]
    pub fn new(graph: &Arc<Graph>) -> Self {
        Self { graph: Arc::clone(graph), arrives: 0.0, scale: 1.0, weight: 1.0, deadline: None }
    }
}

/// Jobs and a fleet. Tasks of all jobs have one numbering.
#[derive(Debug, Clone)]
pub struct World {
    /// What is to be run.
    pub jobs: Vec<Job>,
    /// By whom.
    pub fleet: Arc<Fleet>,
    /// The first task of each job.
    pub offset: Vec<usize>,
    /// The job of each task.
    pub job: Vec<usize>,
    /// How long each task takes on an agent of speed 1, in seconds.
    pub seconds: Vec<f64>,
    /// The class of capability that each task needs.
    pub class: Vec<usize>,
    /// What each task waits for.
    pub parents: Vec<Vec<usize>>,
    /// What waits for each task.
    pub children: Vec<Vec<usize>>,
    /// What the luck of each task depends on.
    pub key: Vec<u64>,
    /// An order in which each task comes after its parents.
    pub order: Vec<usize>,
}

impl World {
    /// Puts jobs and a fleet together.
    #[must_use]
    pub fn new(jobs: Vec<Job>, fleet: &Arc<Fleet>) -> Self {
        let mut world = Self {
            fleet: Arc::clone(fleet),
            offset: Vec::new(),
            job: Vec::new(),
            seconds: Vec::new(),
            class: Vec::new(),
            parents: Vec::new(),
            children: Vec::new(),
            key: Vec::new(),
            order: Vec::new(),
            jobs,
        };
        for (j, job) in world.jobs.iter().enumerate() {
            let (graph, offset) = (&job.graph, world.seconds.len());
            world.offset.push(offset);
            let classes: Vec<usize> = graph.categories.iter().map(|category| fleet.class_of(category)).collect();
            let shifted = |tasks: &Vec<usize>| tasks.iter().map(|task| offset + task).collect::<Vec<_>>();
            world.job.extend(std::iter::repeat_n(j, graph.len()));
            world.seconds.extend(graph.seconds.iter().map(|seconds| seconds * job.scale));
            world.class.extend(graph.category.iter().map(|&category| classes[category]));
            world.parents.extend(graph.parents.iter().map(shifted));
            world.children.extend(graph.children.iter().map(shifted));
            world.key.extend((0..graph.len()).map(|task| mix(j as u64) ^ task as u64));
            world.order.extend(graph.order.iter().map(|task| offset + task));
        }
        world
    }

    /// How many tasks.
    #[must_use]
    pub fn len(&self) -> usize {
        self.seconds.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.seconds.is_empty()
    }

    /// How long a task takes on an agent, in seconds.
    #[must_use]
    pub fn takes(&self, task: usize, agent: usize) -> f64 {
        self.seconds[task] / self.fleet.speed[agent]
    }

    /// The task's place in its graph.
    #[must_use]
    pub fn place(&self, task: usize) -> usize {
        task - self.offset[self.job[task]]
    }
}
