//! What is learned from how tasks ended: how good an agent is at what, how long a task takes ([`Durations`]).
//!
//! Of each agent and task type (the capability that the stage asked for) exponential moving averages of success and speed
//! are kept, by the learning rate of the first source document; how often it failed, as a Beta distribution that forgets; and
//! how each strategy did with it. An agent that is gone is remembered for a while; one that comes back may have changed,
//! so that what was learned of it counts half.
//!
//! The rates are constants or in the log: all instances fold the same log, and must come to the same. What is in floats comes of
//! the four operations alone, and is written so that it is read back to the last bit.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use baton_machine::Shelves;
use baton_protocol::record::{Outcome, StageEnded};
use baton_protocol::request::{LearningPage, Lesson, MAX_LESSONS, Strategy, Subject};
use baton_protocol::{AgentId, Capability, Json, Millis};
use serde::{Deserialize, Serialize};

use crate::durations::{Durations, Gauss, Kind, Place, Pooled, Speed, Stage};
use crate::math::{exp, ln};

/// Parts of one.
const MILLION: u32 = 1_000_000;
/// A score of 1.
pub(crate) const FULL: u32 = 1_000_000;
/// The score of an agent of which nothing is known.
const UNKNOWN: u32 = FULL / 2;
/// Where the average of success at a type of task begins.
const MIDDLING: f64 = 0.5;
/// What of a sample is success as such; the rest is time efficiency ("historical success rate with time efficiency").
const SUCCESS: u32 = FULL / 10 * 7;
/// Of how many agents that are gone what was learned is kept, for when they come back.
const MAX_GONE: usize = 1000;
/// How many task types are told apart for one agent.
const MAX_TYPES: usize = 256;

/// How an agent of which nothing is known fails, and how many outcomes that is worth: Beta(1, 7).
pub(crate) const PRIOR: f64 = 0.125;
const PRIOR_WORTH: f64 = 8.0;
/// How many outcomes the agent's own rate is worth for a type of task.
const AGENT_WORTH: f64 = 5.0;
/// What is left of an outcome's weight after another: half of it after 139.
const FADING: f64 = 1.0 - 1.0 / 200.0;
/// How fast it is noticed that an agent has begun to fail, and where that begins.
const ALARM_RATE: f64 = 0.2;
const CALM: f64 = 0.1;
/// From here on an agent fails more often than not.
pub(crate) const ALARM: f64 = 0.5;

/// What of a trail is left after a step, and what the one who succeeds adds: the numbers of the third source document.
const EVAPORATION: f64 = 0.95;
const DEPOSIT: f64 = 0.1;

/// What was learned.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Learning {
    agents: Shelves<AgentId, Arc<Performance>>,
    /// Agents that are gone, by when that was.
    gone: BTreeSet<(Millis, AgentId)>,
    #[serde(default)]
    pub(crate) durations: Durations,
    /// By task type.
    #[serde(default)]
    steps: BTreeMap<Capability, Steps>,
    #[serde(default)]
    pub(crate) rate: Rate,
}

/// The learning rate: how much of a moving average a new sample makes up, in millionths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Rate(u32);

impl Default for Rate {
    /// That of the first source document.
    fn default() -> Self {
        Self(MILLION / 10)
    }
}

impl Rate {
    /// A rate that averages can have: something of a sample counts, and nothing counts more than once.
    pub(crate) fn of(millionths: u32) -> Self {
        Self(millionths.clamp(1, MILLION))
    }

    pub(crate) fn millionths(self) -> u32 {
        self.0
    }

    pub(crate) fn part(self) -> f64 {
        f64::from(self.0) / f64::from(MILLION)
    }

    /// An average of whole numbers after a sample.
    fn moved(self, average: u32, sample: u32) -> u32 {
        let step = (i64::from(sample) - i64::from(average)) * i64::from(self.0) / i64::from(MILLION);
        u32::try_from(i64::from(average) + step).unwrap_or(average)
    }
}

/// How far the evaporation of the trails of a task type has come. A step is as many tasks as there are agents with a trail: each
/// of them has acted once, on average.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Steps {
    step: u64,
    /// How many tasks have ended in this step.
    ended: u64,
    /// How many agents have a trail.
    agents: u64,
}

/// What was learned of an agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Performance {
    /// In millionths.
    pub(crate) score: u32,
    pub(crate) succeeded: u64,
    pub(crate) failed: u64,
    /// Since when it is gone.
    gone: Option<Millis>,
    #[serde(default)]
    pub(crate) speed: Speed,
    #[serde(default)]
    outcomes: Outcomes,
    /// How often it failed lately: a moving average that is quick.
    #[serde(default = "calm")]
    pub(crate) failing: f64,
    #[serde(default)]
    pub(crate) types: BTreeMap<Capability, Skill>,
}

fn calm() -> f64 {
    CALM
}

/// How many tasks succeeded and failed; the older, the less they count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
struct Outcomes {
    succeeded: f64,
    failed: f64,
}

/// How good an agent is at a type of task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Skill {
    /// A moving average of success, from 0 to 1.
    pub(crate) success: f64,
    /// A moving average of speed: how many times faster than expected of whoever does it.
    pub(crate) speed: f64,
    pub(crate) seen: u64,
    outcomes: Outcomes,
    /// How strong its trail was at a step.
    trail: f64,
    step: u64,
    /// How the tasks went that each strategy gave it.
    pub(crate) patterns: BTreeMap<Strategy, Pattern>,
}

/// How the tasks of a type went that a strategy gave to an agent.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Pattern {
    /// A moving average of success, from 0 to 1.
    pub(crate) success: f64,
    pub(crate) seen: u64,
}

impl Default for Performance {
    fn default() -> Self {
        Self {
            score: UNKNOWN,
            succeeded: 0,
            failed: 0,
            gone: None,
            speed: Speed::default(),
            outcomes: Outcomes::default(),
            failing: CALM,
            types: BTreeMap::new(),
        }
    }
}

impl Default for Skill {
    fn default() -> Self {
        Self {
            success: MIDDLING,
            speed: 1.0,
            seen: 0,
            outcomes: Outcomes::default(),
            trail: 0.0,
            step: 0,
            patterns: BTreeMap::new(),
        }
    }
}

impl Outcomes {
    fn sane(self) -> Self {
        Self { succeeded: self.succeeded.clamp(0.0, 200.0), failed: self.failed.clamp(0.0, 200.0) }
    }

    fn take(&mut self, succeeded: bool) {
        self.succeeded *= FADING;
        self.failed *= FADING;
        *(if succeeded { &mut self.succeeded } else { &mut self.failed }) += 1.0;
    }

    /// The mean of the Beta distribution, from a rate and what it is worth.
    fn failure(&self, rate: f64, worth: f64) -> f64 {
        (self.failed + worth * rate) / (self.succeeded + self.failed + worth)
    }
}

/// A task that has ended, and where it stood.
#[derive(Debug)]
pub(crate) struct Ended<'a> {
    pub(crate) record: &'a StageEnded,
    /// The task type.
    pub(crate) agent_type: &'a Capability,
    pub(crate) place: Option<Place<'a>>,
    /// By which strategy it was placed.
    pub(crate) strategy: Strategy,
}

/// What came of a lesson.
#[derive(Debug)]
pub(crate) struct Learned<'a> {
    /// The agent that something was learned of.
    pub(crate) agent: &'a AgentId,
    /// What is known of the run now, if that has changed.
    pub(crate) run: Option<Gauss>,
}

impl Learning {
    /// Learns from the end of a task.
    pub(crate) fn stage_ended<'a>(&mut self, lesson: &Ended<'a>) -> Option<Learned<'a>> {
        let record = lesson.record;
        let agent = record.agent.as_ref().filter(|_| record.lease.is_some())?;
        let succeeded = match record.outcome {
            Outcome::Succeeded => true,
            Outcome::Failed | Outcome::Lost | Outcome::TimedOut => false,
            // It says nothing of the agent, or of how long the work takes.
            Outcome::Cancelled | Outcome::Delegated => return None,
        };
        let average = lesson.place.and_then(|place| self.durations.average(place.workflow, &place.node.name));
        let took = (record.duration_ms as f64).max(0.5);
        let faster = average.map_or(1.0, |average| average.mean.max(0.5) / took);
        let performance = Arc::make_mut(self.agents.get_or_insert_with(agent, Arc::default));
        performance.ended(succeeded, faster, self.rate);
        if performance.types.len() < MAX_TYPES || performance.types.contains_key(lesson.agent_type) {
            let skill = match performance.types.get_mut(lesson.agent_type) {
                Some(skill) => skill,
                None => performance.types.entry(lesson.agent_type.clone()).or_default(),
            };
            let steps = match self.steps.get_mut(lesson.agent_type) {
                Some(steps) => steps,
                None => self.steps.entry(lesson.agent_type.clone()).or_default(),
            };
            skill.ended(succeeded, faster, lesson.strategy, (steps, self.rate));
        }
        let run = lesson.place.filter(|_| succeeded).map(|place| {
            let tokens = record.usage.tokens_in.saturating_add(record.usage.tokens_out);
            self.durations.learn(place, &mut performance.speed, (record.duration_ms, tokens), self.rate)
        });
        Some(Learned { agent, run })
    }

    /// An agent is back, or anew: what was learned of it counts again, but it may have changed.
    pub(crate) fn returned(&mut self, agent: &AgentId, anew: bool) {
        let Some(performance) = self.agents.change(agent) else { return };
        if let Some(at) = performance.gone.take() {
            self.gone.remove(&(at, agent.clone()));
        }
        if anew {
            performance.doubt();
        }
    }

    /// An agent is gone. What was learned of it is kept for a while.
    pub(crate) fn left(&mut self, at: Millis, agent: &AgentId) {
        let Some(performance) = self.agents.change(agent) else { return };
        if let Some(before) = performance.gone.replace(at) {
            self.gone.remove(&(before, agent.clone()));
        }
        self.gone.insert((at, agent.clone()));
        while self.gone.len() > MAX_GONE {
            if let Some((_, oldest)) = self.gone.pop_first()
                && let Some(performance) = self.agents.remove(&oldest)
            {
                self.forget_trails(&performance);
            }
        }
    }

    fn forget_trails(&mut self, performance: &Performance) {
        for (agent_type, _) in performance.types.iter().filter(|(_, skill)| skill.trail > 0.0) {
            if let Some(steps) = self.steps.get_mut(agent_type) {
                steps.agents = steps.agents.saturating_sub(1);
                if steps.agents == 0 {
                    self.steps.remove(agent_type);
                }
            }
        }
    }

    pub(crate) fn performance(&self, agent: &AgentId) -> Option<&Performance> {
        self.agents.get(agent).map(Arc::as_ref)
    }

    /// An agent's score in millionths.
    pub(crate) fn score(&self, agent: &AgentId) -> u32 {
        self.performance(agent).map_or(UNKNOWN, |performance| performance.score)
    }

    /// How good an agent is at a type of task, in millionths: its success, less where it is slow. The average of success counts as if
    /// it had begun at 1: so one of which little is known is tried, until it fails (optimistic initial values: Sutton and
    /// Barto, *Reinforcement Learning*, section 2.6).
    pub(crate) fn skill(&self, agent: &AgentId, agent_type: &Capability) -> u32 {
        let skill = self.performance(agent).and_then(|performance| performance.types.get(agent_type));
        let (success, speed, seen) = skill.map_or((MIDDLING, 1.0, 0), |skill| (skill.success, skill.speed, skill.seen));
        // What is left of where the average began.
        let hope = (1.0 - MIDDLING) * exp(seen as f64 * ln(1.0 - self.rate.part()));
        let speed = 0.7 + 0.3 * speed.min(2.0) / 2.0;
        ((success + hope).min(1.0) * speed * f64::from(FULL)) as u32
    }

    /// How strong an agent's trail is for a type of task.
    pub(crate) fn trail(&self, agent: &AgentId, agent_type: &Capability) -> f64 {
        let skill = self.performance(agent).and_then(|performance| performance.types.get(agent_type));
        let step = self.steps.get(agent_type).map_or(0, |steps| steps.step);
        skill.map_or(0.0, |skill| skill.trail_at(step))
    }

    /// How likely an agent fails at a type of task.
    pub(crate) fn failure(&self, agent: &AgentId, agent_type: &Capability) -> f64 {
        self.performance(agent).map_or(PRIOR, |performance| performance.failure(agent_type))
    }
}

/// The most bytes of a page of what was learned.
const PAGE: usize = 256 * 1024;

/// What was learned is written and read by what it is about, so that a part of it is of use.
impl Learning {
    /// A page of what was learned.
    pub(crate) fn page(&self, after: Option<&Subject>) -> LearningPage {
        let of = |of: Subject, known: Option<Json>| known.map(|known| Lesson { of, known });
        let (agent, kind, stage) = match after {
            Some(Subject::Agent(agent)) => (Some(agent), None, None),
            Some(Subject::Kind(kind)) => (None, Some(kind.as_str()), None),
            Some(Subject::Stage(workflow, stage)) => (None, None, Some((workflow, stage))),
            Some(Subject::AllTasks) | None => (None, None, None),
        };
        let all = after.is_none().then(|| of(Subject::AllTasks, Json::of(self.durations.all()).ok()));
        let agents = self.agents.iter().filter(|_| kind.is_none() && stage.is_none());
        let agents = agents.filter(|(id, _)| agent.is_none_or(|after| *id > after));
        let agents = agents.map(|(id, known)| of(Subject::Agent(id.clone()), Json::of(known.as_ref()).ok()));
        let kinds = self.durations.kinds_after(kind).filter(|_| stage.is_none());
        let kinds = kinds.map(|(name, known)| of(Subject::Kind(name.to_string()), Json::of(known).ok()));
        let stages = self
            .durations
            .stages_after(stage)
            .map(|(workflow, name, known)| of(Subject::Stage(workflow.clone(), name.clone()), Json::of(known).ok()));
        let mut page = LearningPage { lessons: Vec::new(), more: false };
        let mut bytes = 0;
        for lesson in all.into_iter().chain(agents).chain(kinds).chain(stages).flatten() {
            if bytes > PAGE || page.lessons.len() == MAX_LESSONS {
                page.more = true;
                break;
            }
            bytes += lesson.known.size() + 200;
            page.lessons.push(lesson);
        }
        page
    }

    /// Whether a lesson can be read.
    pub(crate) fn check(lesson: &Lesson) -> Result<(), String> {
        let read = match lesson.of {
            Subject::AllTasks => lesson.known.read::<Pooled>().map(|_| ()),
            Subject::Agent(_) => lesson.known.read::<Performance>().map(|_| ()),
            Subject::Kind(_) => lesson.known.read::<Kind>().map(|_| ()),
            Subject::Stage(..) => lesson.known.read::<Stage>().map(|_| ()),
        };
        read.map_err(|error| error.to_string())
    }

    /// Takes what was learned elsewhere.
    pub(crate) fn import(&mut self, lesson: &Lesson) {
        match &lesson.of {
            Subject::AllTasks => {
                if let Ok(all) = lesson.known.read() {
                    self.durations.import_all(all);
                }
            }
            Subject::Agent(agent) => {
                if let Ok(known) = lesson.known.read::<Performance>() {
                    self.import_agent(agent, known);
                }
            }
            Subject::Kind(name) => {
                if let Ok(kind) = lesson.known.read() {
                    self.durations.import_kind(name, kind);
                }
            }
            Subject::Stage(workflow, stage) => {
                if let Ok(known) = lesson.known.read() {
                    self.durations.import_stage(workflow, stage, known);
                }
            }
        }
    }

    fn import_agent(&mut self, agent: &AgentId, known: Performance) {
        let before = self.agents.get(agent).map(Arc::clone);
        if let Some(before) = &before {
            self.forget_trails(before);
        }
        let gone = before.and_then(|before| before.gone);
        let mut known = Performance { gone, ..known.sane() };
        for (agent_type, skill) in &mut known.types {
            // A trail is as strong here as it was there.
            let steps = self.steps.entry(agent_type.clone()).or_default();
            steps.agents += u64::from(skill.trail > 0.0);
            skill.step = steps.step;
        }
        self.agents.insert(agent.clone(), Arc::new(known));
    }
}

impl Performance {
    /// As it could have been learned: what comes from elsewhere may be anything.
    fn sane(mut self) -> Self {
        self.score = self.score.min(FULL);
        self.failing = self.failing.clamp(0.0, 1.0);
        self.speed = self.speed.sane();
        self.outcomes = self.outcomes.sane();
        while self.types.len() > MAX_TYPES {
            self.types.pop_last();
        }
        for skill in self.types.values_mut() {
            skill.success = skill.success.clamp(0.0, 1.0);
            skill.speed = skill.speed.clamp(0.0, 10.0);
            skill.outcomes = skill.outcomes.sane();
            skill.trail = skill.trail.clamp(0.0, 2.0);
            skill.patterns.values_mut().for_each(|pattern| pattern.success = pattern.success.clamp(0.0, 1.0));
        }
        self
    }

    fn ended(&mut self, succeeded: bool, faster: f64, rate: Rate) {
        *(if succeeded { &mut self.succeeded } else { &mut self.failed }) += 1;
        let sample = if succeeded { SUCCESS + (faster.min(1.0) * f64::from(FULL - SUCCESS)) as u32 } else { 0 };
        self.score = rate.moved(self.score, sample);
        self.outcomes.take(succeeded);
        self.failing += ALARM_RATE * (f64::from(u8::from(!succeeded)) - self.failing);
    }

    /// What was learned counts half: it may be another by now.
    fn doubt(&mut self) {
        self.failing = (self.failing + CALM) / 2.0;
        for outcomes in self.types.values_mut().map(|skill| &mut skill.outcomes).chain([&mut self.outcomes]) {
            outcomes.succeeded *= 0.5;
            outcomes.failed *= 0.5;
        }
        self.speed.doubt();
    }

    /// How likely it fails at a type of task: what it did of that, shrunk to what it did of all, and that to what agents do.
    pub(crate) fn failure(&self, agent_type: &Capability) -> f64 {
        let of_all = self.outcomes.failure(PRIOR, PRIOR_WORTH);
        self.types.get(agent_type).map_or(of_all, |skill| skill.outcomes.failure(of_all, AGENT_WORTH))
    }
}

impl Skill {
    fn ended(&mut self, succeeded: bool, faster: f64, strategy: Strategy, (steps, rate): (&mut Steps, Rate)) {
        self.seen = self.seen.saturating_add(1);
        let sample = f64::from(u8::from(succeeded));
        self.success += rate.part() * (sample - self.success);
        self.outcomes.take(succeeded);
        let pattern = self.patterns.entry(strategy).or_insert(Pattern { success: MIDDLING, seen: 0 });
        pattern.seen = pattern.seen.saturating_add(1);
        pattern.success += rate.part() * (sample - pattern.success);
        steps.ended += 1;
        if steps.ended >= steps.agents {
            (steps.step, steps.ended) = (steps.step + 1, 0);
        }
        if succeeded {
            self.speed += rate.part() * (faster.min(10.0) - self.speed);
            steps.agents += u64::from(self.trail <= 0.0);
            self.trail = (self.trail_at(steps.step) + DEPOSIT * faster.min(1.0)).max(f64::MIN_POSITIVE);
            self.step = steps.step;
        }
    }

    fn trail_at(&self, step: u64) -> f64 {
        self.trail * exp(step.saturating_sub(self.step) as f64 * ln(EVAPORATION))
    }
}
