//! What a definition says of a stage beyond its dependencies: its condition, its mappings, its schemas, what it stands for.
//!
//! All of it follows from the definition, and is made ready once a version. The most stages have nothing of it, and cost
//! nothing here.

use std::fmt;
use std::sync::Arc;

use baton_machine::planted::{Bug, is_planted};
use baton_protocol::definition::{DefinitionError, Expression, Join, MAX_ITEMS, Mapping, OnFailure};
use baton_protocol::record::SkipReason;
use baton_protocol::request::MAX_JSON_BYTES;
use baton_protocol::run::StageStatus;
use baton_protocol::{Definition, Json, StageName};
use serde_json::Value;

use crate::expression::{Members, Place, Program, Scope, Values};
use crate::run::Run;
use crate::text;
use crate::workflows::Version;

/// Why a stage or an attempt failed that no agent failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// A stable code: see `docs/workflows.md`.
    pub(crate) code: &'static str,
    pub(crate) error: String,
}

/// What there is to say of a stage.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Flow {
    join: Join,
    /// The places of its dependencies.
    dependencies: Vec<usize>,
    /// The stage that it is the fallback of.
    stands_for: Option<usize>,
    when: Option<Ready<Program>>,
    items: Option<Ready<Program>>,
    input: Option<Ready<Made>>,
    output: Option<Ready<Made>>,
    /// What the stage's result depends on, where that is said.
    cache: Option<Ready<Program>>,
    /// When it may begin early, if it may.
    early: Option<Early>,
    input_schema: Option<Ready<Schema>>,
    output_schema: Option<Ready<Schema>>,
}

/// When a stage may begin before all that it waits for is over, and what is assumed then.
#[derive(Debug, Clone, PartialEq)]
struct Early {
    /// The stages that must have begun, each with its assumed result.
    assume: Vec<(usize, Ready<Program>)>,
    /// The stages that must be over.
    needs: Vec<usize>,
}

/// Results that stages are assumed to give, which have begun.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Assumed(Vec<(usize, Value)>);

impl Assumed {
    fn of(&self, place: usize) -> Option<&Value> {
        self.0.iter().find(|(assumed, _)| *assumed == place).map(|(_, value)| value)
    }
}

/// What was made of a part of a definition. A part that another edition of Baton accepted and this one does not is an
/// error where it is used; everything else goes on.
type Ready<T> = Result<T, String>;

/// A mapping that can be evaluated.
#[derive(Debug, Clone, PartialEq)]
enum Made {
    One(Program),
    Each(Vec<(String, Program)>),
}

/// The flows of all stages of a definition, by place; none where no stage has one.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Flows {
    flows: Vec<Option<Box<Flow>>>,
    /// The fallback of each stage.
    fallbacks: Vec<Option<usize>>,
    /// The stages that may begin early.
    early: Vec<usize>,
    input_schema: Option<Ready<Schema>>,
}

impl Flows {
    /// Makes a definition ready.
    pub(crate) fn of(definition: &Definition) -> Self {
        Builder::new(definition).build().0
    }

    pub(crate) fn get(&self, place: usize) -> Option<&Flow> {
        self.flows.get(place)?.as_deref()
    }

    /// The first stage that may begin early now, with what is assumed of others.
    pub(crate) fn early(&self, run: &Run) -> Option<usize> {
        let may = |place: &usize| {
            let early = self.get(*place).and_then(|flow| flow.early.as_ref());
            early.is_some_and(|early| {
                early.needs.iter().all(|other| run.stages[*other].status.is_end())
                    && early.assume.iter().all(|(other, _)| run.stages[*other].status != StageStatus::Pending)
            })
        };
        self.early.iter().copied().filter(|place| run.may_begin_early(*place)).find(may)
    }

    /// The stage that gave the result that counts as this one's: itself, or the first of its fallbacks that has one.
    pub(crate) fn giver(&self, run: &Run, place: usize) -> Option<usize> {
        if run.stages[place].result.is_some() {
            return Some(place);
        }
        let fallback = self.fallbacks.get(place).copied().flatten()?;
        let others = std::iter::successors(Some(fallback), |place| self.fallbacks.get(*place).copied().flatten());
        others.take(run.stages.len()).find(|place| run.stages[*place].result.is_some())
    }

    /// Whether a run of the workflow may be given that.
    pub(crate) fn check_input(&self, input: &Json) -> Result<(), String> {
        match &self.input_schema {
            Some(schema) => schema.as_ref().map_err(Clone::clone)?.check(&read(input)?),
            None => Ok(()),
        }
    }
}

/// Checks the expressions and schemas of a definition whose structure is sound.
pub(crate) fn check(definition: &Definition) -> Result<(), DefinitionError> {
    Builder::new(definition).build().1.map_or(Ok(()), Err)
}

/// Makes a definition ready, and notes the first thing that is wrong.
struct Builder<'a> {
    definition: &'a Definition,
    waits: Vec<Vec<usize>>,
    error: Option<DefinitionError>,
}

impl<'a> Builder<'a> {
    fn new(definition: &'a Definition) -> Self {
        Self { definition, waits: definition.waits(), error: None }
    }

    fn build(mut self) -> (Flows, Option<DefinitionError>) {
        let stages = &self.definition.stages;
        let index: std::collections::BTreeMap<_, _> =
            stages.iter().enumerate().map(|(place, stage)| (&stage.name, place)).collect();
        let place = |name| index.get(name).copied();
        let fallbacks: Vec<Option<usize>> = stages
            .iter()
            .map(|stage| match &stage.on_failure {
                OnFailure::Fallback(name) => place(name),
                OnFailure::Fail | OnFailure::Continue => None,
            })
            .collect();
        let mut stands_for = vec![None; stages.len()];
        for (stage, fallback) in fallbacks.iter().enumerate() {
            if let Some(fallback) = fallback {
                stands_for[*fallback] = Some(stage);
            }
        }
        let dependencies: Vec<Vec<usize>> =
            stages.iter().map(|stage| stage.depends_on.iter().filter_map(place).collect()).collect();
        let may_skip = self.may_skip(&dependencies, &stands_for);
        let input_schema = self.definition.input_schema.as_ref();
        let input_schema = input_schema.map(|schema| self.schema(None, "input_schema", schema));
        let mut flows: Vec<Option<Box<Flow>>> = Vec::with_capacity(stages.len());
        for (place, dependencies) in dependencies.into_iter().enumerate() {
            let gated = stands_for[place].is_some() || dependencies.iter().any(|dependency| may_skip[*dependency]);
            let mut flow = self.flow(place, dependencies, stands_for[place]);
            flow.early = self.early(place, &fallbacks, &flow);
            let plain = !gated
                && flow.when.is_none()
                && flow.items.is_none()
                && flow.input.is_none()
                && flow.output.is_none()
                && flow.cache.is_none()
                && flow.early.is_none()
                && flow.input_schema.is_none()
                && flow.output_schema.is_none();
            flows.push((!plain).then(|| Box::new(flow)));
        }
        let flows = if flows.iter().any(Option::is_some) { flows } else { Vec::new() };
        let fallbacks = if fallbacks.iter().any(Option::is_some) { fallbacks } else { Vec::new() };
        let early = (0..flows.len()).filter(|place| flows[*place].as_ref().is_some_and(|flow| flow.early.is_some()));
        let early = early.collect();
        (Flows { flows, fallbacks, early, input_schema }, self.error)
    }

    /// Which stages may turn out to be skipped. Those that others wait for are looked at before those.
    fn may_skip(&self, dependencies: &[Vec<usize>], stands_for: &[Option<usize>]) -> Vec<bool> {
        let stages = &self.definition.stages;
        let mut may_skip: Vec<bool> = stages.iter().map(|stage| stage.when.is_some()).collect();
        stands_for.iter().enumerate().filter(|(_, of)| of.is_some()).for_each(|(place, _)| may_skip[place] = true);
        let mut dependents = vec![Vec::new(); stages.len()];
        for (place, dependencies) in dependencies.iter().enumerate() {
            dependencies.iter().for_each(|dependency| dependents[*dependency].push(place));
        }
        // Whatever depends on one that may be skipped is looked at again when it is found to be one itself.
        let mut open: Vec<usize> = (0..stages.len()).filter(|place| may_skip[*place]).collect();
        while let Some(place) = open.pop() {
            for &dependent in &dependents[place] {
                let skipped = match stages[dependent].join {
                    Join::Any => dependencies[dependent].iter().all(|dependency| may_skip[*dependency]),
                    Join::All => true,
                    Join::Always => false,
                };
                if skipped && !may_skip[dependent] {
                    may_skip[dependent] = true;
                    open.push(dependent);
                }
            }
        }
        may_skip
    }

    fn flow(&mut self, place: usize, dependencies: Vec<usize>, stands_for: Option<usize>) -> Flow {
        let stage = &self.definition.stages[place];
        let inner = if stage.for_each.is_some() { Place::Item } else { Place::Stage };
        Flow {
            join: stage.join,
            dependencies,
            stands_for,
            when: stage.when.as_ref().map(|when| self.program(place, "when", None, when, Place::Stage)),
            items: stage.for_each.as_ref().map(|e| self.program(place, "for_each.items", None, &e.items, Place::Stage)),
            input: stage.input.as_ref().map(|input| self.mapping(place, "input", input, inner)),
            output: stage
                .output
                .as_ref()
                .map(|output| self.mapping(place, "output", output, Place::Output { each: stage.for_each.is_some() })),
            cache: (stage.cache.as_ref().and_then(|cache| cache.key.as_ref()))
                .map(|key| self.program(place, "cache.key", None, key, Place::Stage)),
            early: None,
            input_schema: stage.input_schema.as_ref().map(|s| self.schema(Some(place), "input_schema", s)),
            output_schema: stage.output_schema.as_ref().map(|s| self.schema(Some(place), "output_schema", s)),
        }
    }

    /// When a stage may begin early. What its agent reports is looked at before all that it depends on is over, and so must not
    /// need that.
    fn early(&mut self, place: usize, fallbacks: &[Option<usize>], flow: &Flow) -> Option<Early> {
        let definition = self.definition;
        let assume = &definition.stages[place].speculative.as_ref()?.assume;
        let of = |name: &StageName| definition.stages.iter().position(|stage| stage.name == *name);
        let assumed: Vec<usize> = assume.keys().filter_map(of).collect();
        // A fallback may be needed where a stage does not give what is assumed. One that is depended on for itself must be over.
        let chain = |place| std::iter::successors(Some(place), |place: &usize| fallbacks[*place]).take(fallbacks.len());
        let known_later = |other: &usize| assumed.contains(other) || !flow.dependencies.contains(other);
        let unknown: Vec<usize> = assumed.iter().copied().flat_map(chain).filter(known_later).collect();
        let needs: Vec<usize> = self.waits[place].iter().copied().filter(|other| !unknown.contains(other)).collect();
        // All before a stage that has begun is over.
        let over: Vec<usize> =
            assumed.iter().flat_map(|other| &self.waits[*other]).copied().chain(needs.clone()).collect();
        let known = |builder: &Self, name: &str| {
            builder.may_look_at(place, name)?;
            let other = definition.stages.iter().position(|stage| stage.name.as_str() == name).unwrap_or(place);
            if unknown.contains(&other) || !builder.is_among_or_before(other, &over) {
                return Err(format!("stage {name} need not be over by then: the stage may begin early (speculative)"));
            }
            Ok(())
        };
        let mut programs = Vec::new();
        for ((name, expression), other) in assume.iter().zip(&assumed) {
            let stage = |name: &str| known(self, name);
            let program = Program::compile(expression, &Scope { place: Place::Stage, stage: &stage });
            let program = program.and_then(|program| named_only(&program).map(|()| program));
            if let (Err(what), None) = (&program, &self.error) {
                let mut error = DefinitionError::wrong(definition, Some(place), "speculative.assume", what.clone());
                if let DefinitionError::Wrong { place, path, .. } = &mut error {
                    *place = format!("{place}.{name}");
                    path.push(name.as_str().into());
                }
                self.error = Some(error);
            }
            programs.push((*other, program));
        }
        let output = match &flow.output {
            Some(Ok(Made::One(program))) => vec![program],
            Some(Ok(Made::Each(each))) => each.iter().map(|(_, program)| program).collect(),
            Some(Err(_)) | None => Vec::new(),
        };
        for program in output {
            let named = program.reads.results.named.iter().chain(&program.reads.status.named);
            let mut named = named.map(|name| known(self, name));
            let checked = named_only(program).and_then(|()| named.find(Result::is_err).unwrap_or(Ok(())));
            if let (Err(what), None) = (checked, &self.error) {
                self.error = Some(DefinitionError::wrong(definition, Some(place), "output", what));
            }
        }
        Some(Early { assume: programs, needs })
    }

    fn mapping(&mut self, place: usize, key: &str, mapping: &Mapping, of: Place) -> Ready<Made> {
        match mapping {
            Mapping::One(expression) => self.program(place, key, None, expression, of).map(Made::One),
            Mapping::Each(each) => {
                let each = each.iter().map(|(name, expression)| {
                    Ok((name.clone(), self.program(place, key, Some(name), expression, of)?))
                });
                each.collect::<Ready<_>>().map(Made::Each)
            }
        }
    }

    fn program(
        &mut self,
        place: usize,
        key: &str,
        member: Option<&str>,
        expression: &Expression,
        of: Place,
    ) -> Ready<Program> {
        let stage = |name: &str| self.may_look_at(place, name);
        let program = Program::compile(expression, &Scope { place: of, stage: &stage });
        if let (Err(what), None) = (&program, &self.error) {
            let mut error = DefinitionError::wrong(self.definition, Some(place), key, what.clone());
            // A member's name may have dots in it.
            if let (DefinitionError::Wrong { place, path, .. }, Some(member)) = (&mut error, member) {
                *place = format!("{place}.{member}");
                path.push(member.into());
            }
            self.error = Some(error);
        }
        program
    }

    fn schema(&mut self, place: Option<usize>, key: &str, schema: &Value) -> Ready<Schema> {
        let made = Schema::new(schema);
        if let (Err(what), None) = (&made, &self.error) {
            self.error = Some(DefinitionError::wrong(self.definition, place, key, what.clone()));
        }
        made
    }

    /// Whether an expression of a stage may look at another one: it must be over when that is evaluated, always.
    fn may_look_at(&self, place: usize, name: &str) -> Result<(), String> {
        let stages = &self.definition.stages;
        let Some(other) = stages.iter().position(|stage| stage.name.as_str() == name) else {
            let dashed = stages
                .iter()
                .find(|stage| stage.name.as_str().strip_prefix(name).is_some_and(|rest| rest.starts_with('-')));
            return Err(match dashed {
                Some(stage) => format!("{name} is not a stage; write [\"{}\"] for a name with a dash", stage.name),
                None => format!("{name} is not a stage of this workflow{}", self.definition.hint(name)),
            });
        };
        if self.is_among_or_before(other, &self.waits[place]) {
            return Ok(());
        }
        Err(format!("stage {name} need not be over by then; name it in depends_on, or a stage that depends on it"))
    }

    /// Whether a stage is one of these, or one that must be over before one of them begins.
    fn is_among_or_before(&self, other: usize, of: &[usize]) -> bool {
        let mut seen = vec![false; self.waits.len()];
        let mut open = of.to_vec();
        while let Some(next) = open.pop() {
            if next == other {
                return true;
            }
            if !std::mem::replace(&mut seen[next], true) {
                open.extend(&self.waits[next]);
            }
        }
        false
    }
}

/// Whether an expression says of which stages it speaks, where some of those that a stage depends on need not be over.
fn named_only(program: &Program) -> Result<(), String> {
    if program.reads.results.any || program.reads.status.any {
        return Err("it must name each stage that it looks at: the stage may begin early (speculative)".to_owned());
    }
    Ok(())
}

/// What others are assumed to give of which a stage need not wait for the end.
pub(crate) fn assumed(run: &Run, version: &Version, place: usize) -> Result<Assumed, Failure> {
    let flow = version.plan.flows.get(place);
    let Some((flow, early)) = flow.and_then(|flow| Some((flow, flow.early.as_ref()?))) else {
        return Ok(Assumed(Vec::new()));
    };
    let about = About { run, version, flow, result: None, item: None, assumed: None };
    let assumed = early.assume.iter().map(|(other, program)| {
        let value = ready(program).and_then(|program| program.value(about.values(program)?));
        let name = &version.definition.stages[*other].name;
        value
            .map(|value| (*other, value))
            .map_err(|why| unassumed(format!("what {name} gives can not be assumed: {why}")))
    });
    assumed.collect::<Result<_, _>>().map(Assumed)
}

/// Why a stage can not begin early.
pub(crate) fn unassumed(error: String) -> Failure {
    Failure { code: "assumption_failed", error }
}

/// Whether a stage runs, now that all it waits for is over, or if that gives what is assumed; if not, why.
pub(crate) fn gate(
    run: &Run,
    version: &Version,
    place: usize,
    assumed: Option<&Assumed>,
) -> Result<Option<SkipReason>, Failure> {
    let Some(flow) = version.plan.flows.get(place) else { return Ok(None) };
    let not_needed = flow.stands_for.is_some_and(|of| run.stages[of].status != StageStatus::Failed);
    if not_needed && !is_planted(Bug::FallbackAlways) {
        return Ok(Some(SkipReason::NotNeeded));
    }
    let skipped = |dependency: &usize| run.stages[*dependency].status == StageStatus::Skipped;
    let left_out = match flow.join {
        // The stage that it stands for has run.
        Join::Any if flow.stands_for.is_some() => false,
        Join::Any => !flow.dependencies.is_empty() && flow.dependencies.iter().all(skipped),
        Join::All => flow.dependencies.iter().any(skipped),
        Join::Always => false,
    };
    if left_out && !is_planted(Bug::JoinIgnored) {
        return Ok(Some(SkipReason::Dependencies));
    }
    let Some(when) = &flow.when else { return Ok(None) };
    let about = About { run, version, flow, result: None, item: None, assumed };
    let holds = ready(when).and_then(|when| when.holds(about.values(when)?));
    match holds {
        Ok(holds) => Ok((!holds && !is_planted(Bug::ConditionIgnored)).then_some(SkipReason::Condition)),
        Err(why) => Err(Failure { code: "condition_failed", error: format!("its condition (when) fails: {why}") }),
    }
}

/// The list of a stage that has a task for each item.
pub(crate) fn items(run: &Run, version: &Version, place: usize) -> Option<Result<Json, Failure>> {
    let flow = version.plan.flows.get(place)?;
    let items = flow.items.as_ref()?;
    let about = About { run, version, flow, result: None, item: None, assumed: None };
    let made = ready(items).and_then(|items| items.value(about.values(items)?));
    let made = made.and_then(|made| match &made {
        Value::Array(items) if items.len() > MAX_ITEMS => {
            Err(format!("the list has {} items; at most {MAX_ITEMS} are allowed", items.len()))
        }
        Value::Array(_) => write(&made),
        _ => Err("it gives no list".to_owned()),
    });
    Some(made.map_err(|why| Failure {
        code: "items_failed",
        error: format!("its items (for_each) can not be found: {why}"),
    }))
}

/// What a stage's agent is given instead of the run's input, if it is something else.
pub(crate) fn input(
    run: &Run,
    version: &Version,
    place: usize,
    assumed: Option<&Assumed>,
) -> Result<Option<Json>, Failure> {
    let Some(flow) = version.plan.flows.get(run.base(place)) else { return Ok(None) };
    let item = Item::of(run, place);
    let made =
        match &flow.input {
            Some(input) => {
                let about = About { run, version, flow, result: None, item, assumed };
                let made = ready(input).and_then(|input| input.make(about));
                Some(made.map_err(|why| Failure {
                    code: "input_failed",
                    error: format!("its input can not be made: {why}"),
                })?)
            }
            None => None,
        };
    if let Some(schema) = &flow.input_schema {
        let fits = match &made {
            Some(made) => ready(schema).and_then(|schema| schema.check(made)),
            None => ready(schema).and_then(|schema| schema.check(&read(&run.input)?)),
        };
        fits.map_err(|why| Failure {
            code: "invalid_input",
            error: format!("its input does not fit input_schema: {why}"),
        })?;
    }
    let made = made.as_ref().map(write).transpose();
    made.map_err(|why| Failure { code: "input_failed", error: format!("its input can not be made: {why}") })
}

/// What a stage's result depends on, where the definition says it.
pub(crate) fn cache_key(run: &Run, version: &Version, place: usize) -> Result<Option<Json>, Failure> {
    let flow = version.plan.flows.get(run.base(place));
    let Some((flow, key)) = flow.and_then(|flow| Some((flow, flow.cache.as_ref()?))) else { return Ok(None) };
    let about = About { run, version, flow, result: None, item: None, assumed: None };
    let made = ready(key).and_then(|key| key.value(about.values(key)?)).and_then(|made| write(&made));
    let error = |why| Failure { code: "cache_failed", error: format!("the key of its cache can not be made: {why}") };
    made.map(Some).map_err(error)
}

/// What a stage's result is, where its agent reported this.
pub(crate) fn output(
    run: &Run,
    version: &Version,
    place: usize,
    reported: Option<Json>,
) -> Result<Option<Json>, Failure> {
    let flow =
        version.plan.flows.get(run.base(place)).filter(|flow| flow.output.is_some() || flow.output_schema.is_some());
    let Some(flow) = flow else { return Ok(reported) };
    let invalid = |error: String| Failure { code: "invalid_result", error };
    let value = reported.as_ref().map_or(Ok(Value::Null), read);
    let value = value.map_err(|why| invalid(format!("the result can not be read: {why}")))?;
    if let Some(schema) = flow.output_schema.as_ref().filter(|_| !is_planted(Bug::ResultNotChecked)) {
        let fits = ready(schema).and_then(|schema| schema.check(&value));
        fits.map_err(|why| invalid(format!("the result does not fit output_schema: {why}")))?;
    }
    let Some(output) = &flow.output else { return Ok(reported) };
    let about = About { run, version, flow, result: Some(&value), item: Item::of(run, place), assumed: None };
    let made = ready(output).and_then(|output| output.make(about));
    let made = made.and_then(|made| write(&made)).map(Some);
    made.map_err(|why| Failure { code: "output_failed", error: format!("its output can not be made: {why}") })
}

fn ready<T>(part: &Ready<T>) -> Result<&T, String> {
    part.as_ref().map_err(Clone::clone)
}

fn write(value: &Value) -> Result<Json, String> {
    fits(Json::of(value))
}

/// What was written, if it is small enough to be kept.
pub(crate) fn fits(written: serde_json::Result<Json>) -> Result<Json, String> {
    let json = written.map_err(|error| error.to_string())?;
    match json.size() {
        0..=MAX_JSON_BYTES => Ok(json),
        bytes => Err(format!("it has {bytes} bytes; at most {MAX_JSON_BYTES} are allowed")),
    }
}

fn read(json: &Json) -> Result<Value, String> {
    json.read().map_err(|error| error.to_string())
}

impl Made {
    fn make(&self, about: About<'_>) -> Result<Value, String> {
        match self {
            Self::One(program) => program.value(about.values(program)?),
            Self::Each(each) => {
                let each = each.iter().map(|(key, program)| {
                    let value = program.value(about.values(program)?);
                    Ok((key.clone(), value.map_err(|why| format!("{key}: {why}"))?))
                });
                each.collect::<Result<_, String>>().map(Value::Object)
            }
        }
    }
}

/// What an evaluation is about.
#[derive(Clone, Copy)]
struct About<'a> {
    run: &'a Run,
    version: &'a Version,
    flow: &'a Flow,
    /// What the agent reported, in `output`.
    result: Option<&'a Value>,
    item: Option<Item<'a>>,
    /// What stages are taken to have given that are not over.
    assumed: Option<&'a Assumed>,
}

/// One item of a list.
#[derive(Clone, Copy)]
struct Item<'a> {
    item: &'a Json,
    index: u32,
}

impl<'a> Item<'a> {
    fn of(run: &'a Run, place: usize) -> Option<Self> {
        let index = run.item(place)?;
        let item = run.fan(run.base(place))?.items.get(index as usize)?;
        Some(Self { item, index })
    }
}

impl About<'_> {
    /// What an expression reads, and no more.
    fn values(&self, program: &Program) -> Result<Values, String> {
        let Self { run, version, result, .. } = self;
        let reads = &program.reads;
        let assumed = |place: usize| self.assumed.and_then(|assumed| assumed.of(place));
        let results = |place: usize| match (assumed(place), version.plan.flows.giver(run, place)) {
            (Some(value), _) => Ok(value.clone()),
            (None, Some(giver)) => run.stages[giver].result.as_ref().map_or(Ok(Value::Null), read),
            (None, None) => Ok(Value::Null),
        };
        let status = |place: usize| match assumed(place) {
            Some(_) => Ok(StageStatus::Succeeded.as_str().into()),
            None => Ok(run.stages[place].status.as_str().into()),
        };
        Ok(Values {
            event: None,
            input: if reads.input { Some(read(&run.input)?) } else { None },
            result: result.filter(|_| reads.result).cloned(),
            item: self.item.filter(|_| reads.item).map(|item| read(item.item)).transpose()?,
            index: self.item.filter(|_| reads.index).map(|item| item.index.into()),
            results: self.members(&reads.results, results)?,
            status: self.members(&reads.status, status)?,
        })
    }

    /// An object of what there is of the stages that are named; where that is known only now, of those that this one
    /// depends on.
    fn members(&self, wanted: &Members, of: impl Fn(usize) -> Result<Value, String>) -> Result<Option<Value>, String> {
        if wanted.is_none() {
            return Ok(None);
        }
        let stages = &self.version.definition.stages;
        let named = wanted.named.iter().filter_map(|name| name.parse().ok());
        let named = named.filter_map(|name| self.version.plan.place(&name));
        let all = self.flow.dependencies.iter().copied().filter(|_| wanted.any);
        let object = named.chain(all).map(|place| Ok((stages[place].name.to_string(), of(place)?)));
        object.collect::<Result<_, String>>().map(|object| Some(Value::Object(object)))
    }
}

/// A JSON Schema that values can be held against.
#[derive(Clone)]
pub(crate) struct Schema(Arc<jsonschema::Validator>);

impl Schema {
    fn new(schema: &Value) -> Result<Self, String> {
        if !schema.is_object() && !schema.is_boolean() {
            return Err("a JSON Schema is an object, or true or false".to_owned());
        }
        // Patterns in linear time; nothing is fetched from anywhere.
        let options = jsonschema::options().with_pattern_options(jsonschema::PatternOptions::regex()).offline();
        let validator = options.build(schema).map_err(|error| {
            let path = error.instance_path().to_string();
            let at = if path.is_empty() { String::new() } else { format!(" at {path}") };
            text::cut(format!("it is no JSON Schema{at}: {error}"), text::MAX_REASON_BYTES)
        })?;
        Ok(Self(Arc::new(validator)))
    }

    /// Whether a value fits; if not, where and why.
    fn check(&self, value: &Value) -> Result<(), String> {
        self.0.validate(value).map_err(|error| {
            let path = error.instance_path().to_string();
            let at = if path.is_empty() { "as a whole".to_owned() } else { format!("at {path}") };
            text::cut(format!("{at}: {}", error.masked_with("the value")), text::MAX_REASON_BYTES)
        })
    }
}

impl fmt::Debug for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Schema")
    }
}

/// It follows from the definition, which is compared.
impl PartialEq for Schema {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}
