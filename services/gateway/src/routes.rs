//! What there is: one table, from which the router and the OpenAPI document are built.

use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, MethodRouter, get, on};
use baton_protocol::alert::{AlertKind, AlertSeverity};
use baton_protocol::definition::Definition;
use baton_protocol::pressure::PressureView;
use baton_protocol::request::{
    Acquire, AcquireAnswer, Advice, Advise, AgentList, AgentsFound, AlertList, CancelRuns, CapacityPlan, Done,
    EventStored, Forecast, GetLearning, Granted, HandoffAsked, ImportLearning, LearningPage, LeaseList,
    PlacementExplained, PlacementView, PlanCapacity, PoolList, RegisterWorkflow, RunAccepted, RunList, RunsCancelled,
    ScheduleList, ScheduleView, SetStrategy, ShareBy, SignalStored, Spending, SpentBy, StageDecided, StartRun,
    TriggerList, TriggerView, WorkflowList, WorkflowView,
};
use baton_protocol::run::{RunStatus, RunView, StageStatus};
use baton_protocol::why::Why;
use baton_protocol::{
    Capability, EventName, LeaseId, Millis, ObjectName, ObjectRef, Pool, Position, ResourceName, RunId, Schedule,
    ScheduleName, StageName, Trigger, TriggerName, WorkflowName,
};
use baton_telemetry::Metrics;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use tower_http::catch_panic::CatchPanicLayer;

use crate::api::{
    agents, alerts, objects, operations, pages, placement, pools, pressure, runs, schedules, services, stages,
    triggers, workflows,
};
use crate::problem::{Kind, Problem, everywhere, panicked};
use crate::security::{self, Policy};
use crate::{Door, events, health, live, metrics, openapi};

/// How long an answer may take to begin. A service is asked again for five seconds; the log is waited for a little
/// longer; event streams may go on for ever once they have begun.
const TIMEOUT: Duration = Duration::from_secs(15);

/// Makes a schema, or a reference to one.
pub(crate) type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

fn of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// An operation.
pub(crate) struct Route {
    pub(crate) method: Method,
    pub(crate) path: &'static str,
    /// The name of the operation, for generated clients.
    pub(crate) id: &'static str,
    pub(crate) tag: &'static str,
    pub(crate) about: &'static str,
    pub(crate) parameters: &'static [Parameter],
    pub(crate) body: Option<Body>,
    pub(crate) answers: &'static [Answer],
    handler: fn(MethodFilter) -> MethodRouter<Door>,
}

/// The methods that are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    Get,
    Post,
    Put,
    Delete,
}

impl Method {
    /// As OpenAPI writes it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Post => "post",
            Self::Put => "put",
            Self::Delete => "delete",
        }
    }

    fn filter(self) -> MethodFilter {
        match self {
            Self::Get => MethodFilter::GET,
            Self::Post => MethodFilter::POST,
            Self::Put => MethodFilter::PUT,
            Self::Delete => MethodFilter::DELETE,
        }
    }
}

/// A parameter.
pub(crate) struct Parameter {
    /// `path`, `query` or `header`.
    pub(crate) place: &'static str,
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) schema: SchemaOf,
}

const fn path(name: &'static str, about: &'static str, schema: SchemaOf) -> Parameter {
    Parameter { place: "path", name, about, schema }
}

const fn query(name: &'static str, about: &'static str, schema: SchemaOf) -> Parameter {
    Parameter { place: "query", name, about, schema }
}

const fn header(name: &'static str, about: &'static str, schema: SchemaOf) -> Parameter {
    Parameter { place: "header", name, about, schema }
}

/// What may be sent.
pub(crate) struct Body {
    pub(crate) required: bool,
    /// By media type.
    pub(crate) content: &'static [(&'static str, SchemaOf)],
}

const fn json(schema: &'static [(&'static str, SchemaOf)]) -> Option<Body> {
    Some(Body { required: true, content: schema })
}

/// What may be answered, beside a problem.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) about: &'static str,
    /// The media type and the schema, if there is a body.
    pub(crate) content: Option<(&'static str, SchemaOf)>,
    /// Whether the header `Location` says where what was made can be found.
    pub(crate) location: bool,
}

const fn answer(status: u16, about: &'static str, schema: SchemaOf) -> Answer {
    Answer { status, about, content: Some(("application/json", schema)), location: false }
}

const fn other(media: &'static str, about: &'static str) -> Answer {
    Answer { status: 200, about, content: Some((media, of::<String>)), location: false }
}

/// Answers as they change.
const fn streamed(about: &'static str) -> Answer {
    Answer { content: Some(("text/event-stream", openapi::live_stream)), ..other("", about) }
}

const WORKFLOW: &[(&str, SchemaOf)] = &[
    ("application/json", of::<RegisterWorkflow>),
    ("application/yaml", of::<Definition>),
    ("text/yaml", of::<Definition>),
];

const RUN: Parameter = path("run", "The run.", of::<RunId>);

const REQUIRE: Parameter = query(
    "require",
    "What their metadata of that capability must be, as `algorithms=regression`, `context_tokens>=32000` or `version^1.2`; may \
     be given several times.",
    of::<String>,
);
const METADATA: Parameter = query("metadata", "The same as one JSON object.", requirements);

fn requirements(_: &mut SchemaGenerator) -> Schema {
    // In a query it is a text; what it holds is described where the schema of requests is.
    schemars::json_schema!({ "type": "string", "contentMediaType": "application/json" })
}

const SCHEDULE: Parameter = path("name", "The schedule.", of::<ScheduleName>);

const TRIGGER: Parameter = path("name", "The trigger.", of::<TriggerName>);

const POOL: Parameter = path("name", "The pool; a slash in its name is written %2F.", of::<ResourceName>);

const LEASE: Parameter = path("lease", "The lease.", of::<LeaseId>);

/// Every operation.
pub(crate) const ROUTES: &[Route] = &[
    Route {
        method: Method::Get,
        path: "/v1/workflows",
        id: "listWorkflows",
        tag: "workflows",
        about: "Lists the workflows. One of many stages names the first of them.",
        parameters: &[
            query("prefix", "Only those whose names begin so.", of::<String>),
            query("limit", "At most this many; 100 if none is given, 1000 at the most.", of::<u32>),
            query("after", "Only those after this one: the last of the page before.", of::<WorkflowName>),
        ],
        body: None,
        answers: &[answer(200, "The workflows, by name.", of::<WorkflowList>)],
        handler: |method| on(method, workflows::list),
    },
    Route {
        method: Method::Post,
        path: "/v1/workflows",
        id: "registerWorkflow",
        tag: "workflows",
        about: "Registers a workflow, or a new version of it. A definition that is the latest version already is \
                answered with that version.",
        parameters: &[],
        body: json(WORKFLOW),
        answers: &[Answer { location: true, ..answer(201, "The registered version.", of::<WorkflowView>) }],
        handler: |method| on(method, workflows::register),
    },
    Route {
        method: Method::Post,
        path: "/v1/workflows/validate",
        id: "validateWorkflow",
        tag: "workflows",
        about: "Checks a workflow definition without registering it.",
        parameters: &[],
        body: json(WORKFLOW),
        answers: &[answer(200, "The definition is right; this is how it is read.", of::<WorkflowView>)],
        handler: |method| on(method, workflows::validate),
    },
    Route {
        method: Method::Get,
        path: "/v1/workflows/{name}",
        id: "getWorkflow",
        tag: "workflows",
        about: "Gives a workflow's definition.",
        parameters: &[
            path("name", "The workflow.", of::<WorkflowName>),
            query("version", "The version; the latest one if none is given.", of::<u32>),
        ],
        body: None,
        answers: &[answer(200, "The workflow.", of::<WorkflowView>)],
        handler: |method| on(method, workflows::get),
    },
    Route {
        method: Method::Get,
        path: "/v1/runs",
        id: "listRuns",
        tag: "runs",
        about: "Lists runs, the newest first: those that run, and those that ended lately.",
        parameters: &[
            query("workflow", "Only runs of this workflow.", of::<WorkflowName>),
            query("status", "Only runs that stand so.", of::<RunStatus>),
            query("limit", "At most this many; 100 if none is given, 1000 at the most.", of::<u32>),
            query("before", "Only runs older than this one: the last of the page before.", of::<RunId>),
            query("since", "Only runs that started then or later, in milliseconds since 1970.", of::<Millis>),
            query("until", "Only runs that started before, in milliseconds since 1970.", of::<Millis>),
            query("metadata", "Only runs with all of this in their metadata: a JSON object of texts.", of::<String>),
            query("paused", "Only paused runs, or only others.", of::<bool>),
            query("children", "Also runs that are a part of another one: that do a stage of it.", of::<bool>),
            query("parent", "Only those that are a part of this run.", of::<RunId>),
        ],
        body: None,
        answers: &[answer(200, "Some runs.", of::<RunList>)],
        handler: |method| on(method, operations::list),
    },
    Route {
        method: Method::Post,
        path: "/v1/runs/cancel",
        id: "cancelRuns",
        tag: "runs",
        about: "Cancels live runs that a filter means, the oldest first, at most a hundred at a time. Asked again until \
                `more` is false, it cancels all of them.",
        parameters: &[],
        body: json(&[("application/json", of::<CancelRuns>)]),
        answers: &[answer(200, "These are cancelled.", of::<RunsCancelled>)],
        handler: |method| on(method, operations::cancel),
    },
    Route {
        method: Method::Post,
        path: "/v1/runs/{run}/pause",
        id: "pauseRun",
        tag: "runs",
        about: "Pauses a run: it begins nothing new until it is resumed. What agents have in hand goes on, and so does the \
                time that the run may take.",
        parameters: &[RUN],
        body: Some(Body { required: false, content: &[("application/json", of::<runs::Cancel>)] }),
        answers: &[answer(200, "The run is paused.", of::<RunAccepted>)],
        handler: |method| on(method, operations::pause),
    },
    Route {
        method: Method::Post,
        path: "/v1/runs/{run}/resume",
        id: "resumeRun",
        tag: "runs",
        about: "Lets a paused run go on.",
        parameters: &[RUN],
        body: None,
        answers: &[answer(200, "The run goes on.", of::<RunAccepted>)],
        handler: |method| on(method, operations::resume),
    },
    Route {
        method: Method::Post,
        path: "/v1/runs/{run}/rerun",
        id: "rerunRun",
        tag: "runs",
        about: "Starts a run that repeats this one, which has ended, from a stage on: that stage and all that depend on it \
                are done anew, and so is whatever did not succeed; the results of the others are kept.",
        parameters: &[
            RUN,
            header("Idempotency-Key", "The same key gives the same run. The same as `key` in the body.", of::<String>),
        ],
        body: json(&[("application/json", of::<operations::From>)]),
        answers: &[
            Answer { location: true, ..answer(201, "The new run has started.", of::<RunAccepted>) },
            Answer { location: true, ..answer(200, "The new run was there already.", of::<RunAccepted>) },
        ],
        handler: |method| on(method, operations::rerun),
    },
    Route {
        method: Method::Post,
        path: "/v1/runs",
        id: "startRun",
        tag: "runs",
        about: "Starts a run of a workflow. While as many runs are live as may be, or its priority is too low for the pressure, a \
                new one is refused at once with 503 and the code `overloaded`; `Retry-After` says when to ask again.",
        parameters: &[
            header(
                "Idempotency-Key",
                "The same key gives the same run: a start that is repeated because its answer got lost starts nothing \
                 new. The same as `key` in the body.",
                of::<String>,
            ),
            header("traceparent", "The trace to join (W3C Trace Context).", of::<String>),
        ],
        body: json(&[("application/json", of::<StartRun>)]),
        answers: &[
            Answer { location: true, ..answer(201, "The run has started.", of::<RunAccepted>) },
            Answer { location: true, ..answer(200, "The run was there already.", of::<RunAccepted>) },
        ],
        handler: |method| on(method, runs::start),
    },
    Route {
        method: Method::Get,
        path: "/v1/runs/{run}",
        id: "getRun",
        tag: "runs",
        about: "Gives a run with its stages and attempts.",
        parameters: &[RUN],
        body: None,
        answers: &[answer(200, "The run.", of::<RunView>)],
        handler: |method| on(method, runs::get),
    },
    Route {
        method: Method::Get,
        path: "/v1/runs/{run}/stages",
        id: "listStages",
        tag: "runs",
        about: "Lists a run's stages in the order of the definition, and says how many stand how: for a run of so many \
                stages that nobody wants all of them at once.",
        parameters: &[
            RUN,
            query("status", "Only stages that stand so.", of::<StageStatus>),
            query("agent_type", "Only stages for these agents.", of::<Capability>),
            query("limit", "At most this many; 100 if none is given, 1000 at the most.", of::<u32>),
            query("after", "Only those after this one: the last of the page before.", of::<StageName>),
        ],
        body: None,
        answers: &[answer(200, "Some stages.", of::<stages::StageList>)],
        handler: |method| on(method, stages::list),
    },
    Route {
        method: Method::Get,
        path: "/v1/runs/{run}/stages/{stage}/why",
        id: "whyStage",
        tag: "runs",
        about: "Says what a stage waits for: stages, an agent that can do it, room on those that can, the time of the next \
                attempt, a report, or that the run is resumed.",
        parameters: &[RUN, path("stage", "The stage.", of::<StageName>)],
        body: None,
        answers: &[answer(200, "What is missing.", of::<Why>)],
        handler: |method| on(method, stages::why),
    },
    Route {
        method: Method::Delete,
        path: "/v1/runs/{run}",
        id: "deleteRun",
        tag: "runs",
        about: "Cancels a run, as `POST /v1/runs/{run}/cancel` does. Its history stays.",
        parameters: &[RUN, query("reason", "Why, for those who read its history.", of::<String>)],
        body: None,
        answers: &[answer(200, "The run is cancelled.", of::<RunAccepted>)],
        handler: |method| on(method, runs::delete),
    },
    Route {
        method: Method::Post,
        path: "/v1/runs/{run}/cancel",
        id: "cancelRun",
        tag: "runs",
        about: "Cancels a run. Cancelling a cancelled run is answered the same again.",
        parameters: &[RUN],
        body: Some(Body { required: false, content: &[("application/json", of::<runs::Cancel>)] }),
        answers: &[answer(200, "The run is cancelled.", of::<RunAccepted>)],
        handler: |method| on(method, runs::cancel),
    },
    Route {
        method: Method::Post,
        path: "/v1/runs/{run}/handoff",
        id: "handOver",
        tag: "runs",
        about: "Offers the task of a stage that is under way to another agent, in the name of who holds it. The other one begins it \
                anew, for only its holder could say how far it is. Whether it is taken the run's events tell: `handed_over`, or \
                `handoff_ended`, and it stays where it is.",
        parameters: &[RUN],
        body: json(&[("application/json", of::<runs::HandOver>)]),
        answers: &[answer(202, "It is offered.", of::<HandoffAsked>)],
        handler: |method| on(method, runs::hand_over),
    },
    Route {
        method: Method::Post,
        path: "/v1/runs/{run}/approve",
        id: "approveStage",
        tag: "runs",
        about: "Approves a stage that people decide on. The same decision again is answered the same; another one is refused.",
        parameters: &[RUN],
        body: json(&[("application/json", of::<runs::Decision>)]),
        answers: &[answer(200, "The stage is approved.", of::<StageDecided>)],
        handler: |method| on(method, runs::approve),
    },
    Route {
        method: Method::Post,
        path: "/v1/runs/{run}/reject",
        id: "rejectStage",
        tag: "runs",
        about: "Rejects a stage that people decide on.",
        parameters: &[RUN],
        body: json(&[("application/json", of::<runs::Decision>)]),
        answers: &[answer(200, "The stage is rejected.", of::<StageDecided>)],
        handler: |method| on(method, runs::reject),
    },
    Route {
        method: Method::Post,
        path: "/v1/runs/{run}/signal",
        id: "signalRun",
        tag: "runs",
        about: "Gives a run a signal: every stage that waits for it, or will, goes on. Of one name a run is given one; the \
                same again is answered the same.",
        parameters: &[RUN],
        body: json(&[("application/json", of::<runs::Signal>)]),
        answers: &[answer(200, "The signal is stored.", of::<SignalStored>)],
        handler: |method| on(method, runs::signal),
    },
    Route {
        method: Method::Get,
        path: "/v1/runs/{run}/events",
        id: "streamRun",
        tag: "runs",
        about: "Streams a run's events as they happen, from its first record to its last, as server-sent events. Of a \
                record, `id` is its position, `event` its kind, `data` an Event; of progress, `event` is `progress`, \
                `data` a ProgressEvent, and there is no `id`. After `run_finished` comes `event: end`, and the stream \
                ends. If it ends early, `event: problem` may say why; `Last-Event-ID` goes on where it ended.",
        parameters: &[
            RUN,
            query("after", "Only what comes after this position.", of::<Position>),
            header("Last-Event-ID", "The same, as browsers say it; this one counts.", of::<Position>),
        ],
        body: None,
        answers: &[
            Answer { content: Some(("text/event-stream", openapi::event_stream)), ..other("", "The events.") },
            Answer { status: 204, content: None, ..other("", "There is nothing after that position, nor will be.") },
        ],
        handler: |method| on(method, events::of_run),
    },
    Route {
        method: Method::Get,
        path: "/v1/agents",
        id: "listAgents",
        tag: "agents",
        about: "Lists the agents.",
        parameters: &[
            query("capability", "Only agents that can do this.", of::<Capability>),
            REQUIRE,
            METADATA,
            query("gone", "Also agents that are gone.", of::<bool>),
        ],
        body: None,
        answers: &[answer(200, "The agents, by id.", of::<AgentList>)],
        handler: |method| on(method, agents::list),
    },
    Route {
        method: Method::Get,
        path: "/v1/agents/best",
        id: "findAgents",
        tag: "agents",
        about: "Finds agents that can do something, the one to be preferred first: those with room, among them those whose \
                smallest part is in use, then higher priority, then the better score.",
        parameters: &[
            query("capability", "What they must be able to do. It must be given.", of::<Capability>),
            REQUIRE,
            METADATA,
            query("limit", "At most so many; 1000 at the most.", of::<u32>),
        ],
        body: None,
        answers: &[answer(200, "The agents, best first.", of::<AgentsFound>)],
        handler: |method| on(method, agents::find),
    },
    Route {
        method: Method::Get,
        path: "/v1/schedules",
        id: "listSchedules",
        tag: "schedules",
        about: "Lists the schedules, without the inputs that they give to runs.",
        parameters: &[
            query("workflow", "Only those of this workflow.", of::<WorkflowName>),
            query("limit", "At most so many; 100 if none is given, 1000 at the most.", of::<u32>),
            query("after", "Only those whose names come after this one.", of::<ScheduleName>),
        ],
        body: None,
        answers: &[answer(200, "The schedules, by name.", of::<ScheduleList>)],
        handler: |method| on(method, schedules::list),
    },
    Route {
        method: Method::Get,
        path: "/v1/schedules/{name}",
        id: "getSchedule",
        tag: "schedules",
        about: "Gives a schedule, when it starts runs next, and what came of the last time.",
        parameters: &[SCHEDULE],
        body: None,
        answers: &[answer(200, "The schedule.", of::<ScheduleView>)],
        handler: |method| on(method, schedules::get),
    },
    Route {
        method: Method::Put,
        path: "/v1/schedules/{name}",
        id: "setSchedule",
        tag: "schedules",
        about: "Makes a schedule, by which a workflow is started again and again, or changes one.",
        parameters: &[SCHEDULE],
        body: json(&[("application/json", of::<Schedule>)]),
        answers: &[answer(200, "The schedule as it is now.", of::<ScheduleView>)],
        handler: |method| on(method, schedules::set),
    },
    Route {
        method: Method::Post,
        path: "/v1/schedules/{name}/pause",
        id: "pauseSchedule",
        tag: "schedules",
        about: "Pauses a schedule: it starts nothing until it is resumed. Runs that it has started go on.",
        parameters: &[SCHEDULE],
        body: None,
        answers: &[answer(200, "The schedule is paused.", of::<ScheduleView>)],
        handler: |method| on(method, schedules::pause),
    },
    Route {
        method: Method::Post,
        path: "/v1/schedules/{name}/resume",
        id: "resumeSchedule",
        tag: "schedules",
        about: "Lets a schedule go on. Times that came while it was paused are left out.",
        parameters: &[SCHEDULE],
        body: None,
        answers: &[answer(200, "The schedule goes on.", of::<ScheduleView>)],
        handler: |method| on(method, schedules::resume),
    },
    Route {
        method: Method::Delete,
        path: "/v1/schedules/{name}",
        id: "removeSchedule",
        tag: "schedules",
        about: "Removes a schedule. Runs that it has started go on.",
        parameters: &[SCHEDULE],
        body: None,
        answers: &[answer(200, "The schedule as it was.", of::<ScheduleView>)],
        handler: |method| on(method, schedules::remove),
    },
    Route {
        method: Method::Get,
        path: "/v1/triggers",
        id: "listTriggers",
        tag: "triggers",
        about: "Lists the triggers, and what came of the last event of each.",
        parameters: &[
            query("name", "Only this one.", of::<TriggerName>),
            query("event", "Only those for this event.", of::<EventName>),
            query("after", "Only those whose names come after this one.", of::<TriggerName>),
        ],
        body: None,
        answers: &[answer(200, "The triggers, by name.", of::<TriggerList>)],
        handler: |method| on(method, triggers::list),
    },
    Route {
        method: Method::Put,
        path: "/v1/triggers/{name}",
        id: "setTrigger",
        tag: "triggers",
        about: "Makes a trigger, by which events start runs or give them signals, or changes one. It is for events that come after.",
        parameters: &[TRIGGER],
        body: json(&[("application/json", of::<Trigger>)]),
        answers: &[answer(200, "The trigger as it is now.", of::<TriggerView>)],
        handler: |method| on(method, triggers::set),
    },
    Route {
        method: Method::Delete,
        path: "/v1/triggers/{name}",
        id: "removeTrigger",
        tag: "triggers",
        about: "Removes a trigger. Runs that it has started go on.",
        parameters: &[TRIGGER],
        body: None,
        answers: &[answer(200, "The trigger as it was.", of::<TriggerView>)],
        handler: |method| on(method, triggers::remove),
    },
    Route {
        method: Method::Post,
        path: "/v1/events/{event}",
        id: "raiseEvent",
        tag: "triggers",
        about: "Raises an event. Says what each trigger that is for it made of it; those that have to wait, since too much is \
                under way, start their runs later.",
        parameters: &[
            path("event", "The name under which it is raised.", of::<EventName>),
            header("Idempotency-Key", "The event's id. The same as `id` in the body.", of::<String>),
        ],
        body: json(&[("application/json", of::<triggers::Happened>)]),
        answers: &[answer(200, "The event was raised, now or before.", of::<EventStored>)],
        handler: |method| on(method, triggers::raise),
    },
    Route {
        method: Method::Post,
        path: "/v1/objects",
        id: "putObject",
        tag: "objects",
        about: "Keeps what is too large for a message, at most 64 MiB, and gives a reference to it, to be put where it would stand. The \
                header Content-Type says what it is.",
        parameters: &[],
        body: Some(Body { required: true, content: &[("*/*", of::<String>)] }),
        answers: &[Answer { location: true, ..answer(201, "The reference.", of::<ObjectRef>) }],
        handler: |method| on(method, objects::put),
    },
    Route {
        method: Method::Get,
        path: "/v1/objects/{name}",
        id: "getObject",
        tag: "objects",
        about: "Gives an object's bytes.",
        parameters: &[path("name", "Its name, which is the digest of its bytes: `sha256-…`.", of::<ObjectName>)],
        body: None,
        answers: &[other("*/*", "The bytes.")],
        handler: |method| on(method, objects::get),
    },
    Route {
        method: Method::Get,
        path: "/v1/pools",
        id: "listPools",
        tag: "resources",
        about: "Lists the pools and locks.",
        parameters: &[
            query("name", "Only this one.", of::<ResourceName>),
            query("after", "Only those whose names come after this one.", of::<ResourceName>),
        ],
        body: None,
        answers: &[answer(200, "The pools, by name.", of::<PoolList>)],
        handler: |method| on(method, pools::list),
    },
    Route {
        method: Method::Put,
        path: "/v1/pools/{name}",
        id: "setPool",
        tag: "resources",
        about: "Makes a pool or a lock, or changes one. It can not shrink below what is in use.",
        parameters: &[POOL],
        body: json(&[("application/json", of::<Pool>)]),
        answers: &[answer(200, "It is done.", of::<Done>)],
        handler: |method| on(method, pools::set),
    },
    Route {
        method: Method::Post,
        path: "/v1/pools/{name}/share",
        id: "sharePool",
        tag: "resources",
        about: "Shares out what is left of a consumed pool among its parts, in proportion to priority or to workload.",
        parameters: &[POOL],
        body: json(&[("application/json", of::<ShareBy>)]),
        answers: &[answer(200, "It, and then its parts, as they are now.", of::<PoolList>)],
        handler: |method| on(method, pools::share),
    },
    Route {
        method: Method::Post,
        path: "/v1/pools/{name}/approve",
        id: "approveBudget",
        tag: "resources",
        about: "Gives an account more, and lets go on what waits for it.",
        parameters: &[POOL],
        body: json(&[("application/json", of::<pools::More>)]),
        answers: &[answer(200, "It is done.", of::<Done>)],
        handler: |method| on(method, pools::approve),
    },
    Route {
        method: Method::Post,
        path: "/v1/pools/{name}/deny",
        id: "denyBudget",
        tag: "resources",
        about: "Says that an account gets no more: the task that was asked for fails.",
        parameters: &[POOL],
        body: Some(Body { required: false, content: &[("application/json", of::<pools::No>)] }),
        answers: &[answer(200, "It is done.", of::<Done>)],
        handler: |method| on(method, pools::deny),
    },
    Route {
        method: Method::Get,
        path: "/v1/spending",
        id: "getSpending",
        tag: "resources",
        about: "Adds up what was spent by run, stage, agent, model or attempt.",
        parameters: &[
            query("by", "By what. It must be given.", of::<SpentBy>),
            query("after", "Only what comes after this key.", of::<String>),
        ],
        body: None,
        answers: &[answer(200, "What was spent; the rows and the rest are the total.", of::<Spending>)],
        handler: |method| on(method, pools::spending),
    },
    Route {
        method: Method::Delete,
        path: "/v1/pools/{name}",
        id: "removePool",
        tag: "resources",
        about: "Removes a pool that nobody uses.",
        parameters: &[POOL],
        body: None,
        answers: &[answer(200, "It is done.", of::<Done>)],
        handler: |method| on(method, pools::remove),
    },
    Route {
        method: Method::Get,
        path: "/v1/leases",
        id: "listLeases",
        tag: "resources",
        about: "Lists what is held of pools and locks, by acquisitions and by tasks.",
        parameters: &[
            query("pool", "Only what is held of this pool.", of::<ResourceName>),
            query("after", "Only leases after this one.", of::<LeaseId>),
        ],
        body: None,
        answers: &[answer(200, "The leases, the oldest first.", of::<LeaseList>)],
        handler: |method| on(method, pools::leases),
    },
    Route {
        method: Method::Post,
        path: "/v1/leases",
        id: "acquire",
        tag: "resources",
        about: "Takes from pools and locks, all that is asked for or nothing. Who waits is told so within about a second, \
                and asks again with the same id.",
        parameters: &[],
        body: json(&[("application/json", of::<Acquire>)]),
        answers: &[
            answer(201, "It is held.", of::<AcquireAnswer>),
            answer(202, "It waits: ask again, with the same id.", of::<AcquireAnswer>),
        ],
        handler: |method| on(method, pools::acquire),
    },
    Route {
        method: Method::Post,
        path: "/v1/leases/{lease}/renew",
        id: "renewLease",
        tag: "resources",
        about: "Keeps what was acquired for longer.",
        parameters: &[LEASE],
        body: Some(Body { required: false, content: &[("application/json", of::<pools::For>)] }),
        answers: &[answer(200, "It is held for longer.", of::<Granted>)],
        handler: |method| on(method, pools::renew),
    },
    Route {
        method: Method::Post,
        path: "/v1/leases/{lease}/release",
        id: "releaseLease",
        tag: "resources",
        about: "Gives back what was acquired; the body may say what was used of consumed pools.",
        parameters: &[LEASE],
        body: Some(Body { required: false, content: &[("application/json", of::<pools::Used>)] }),
        answers: &[answer(200, "It is done.", of::<Done>)],
        handler: |method| on(method, pools::release),
    },
    Route {
        method: Method::Get,
        path: "/v1/pressure",
        id: "getPressure",
        tag: "resources",
        about: "Shows how much more is to be done than can be, and what waits because of that.",
        parameters: &[],
        body: None,
        answers: &[answer(200, "How things stand.", of::<PressureView>)],
        handler: |method| on(method, pressure::get),
    },
    Route {
        method: Method::Get,
        path: "/v1/alerts",
        id: "listAlerts",
        tag: "alerts",
        about: "Lists alerts, the latest first: those that are not over, and those that nobody has acknowledged.",
        parameters: &[
            query("all", "Also those that are over and acknowledged.", of::<bool>),
            query("severity", "Only those that matter at least so much.", of::<AlertSeverity>),
            query("kind", "Only those of this kind.", of::<AlertKind>),
            query("limit", "At most this many; 100 if none is given, 1000 at the most.", of::<u32>),
            query("before", "Only alerts raised before this one: the last of the page before.", of::<u64>),
        ],
        body: None,
        answers: &[answer(200, "Some alerts.", of::<AlertList>)],
        handler: |method| on(method, alerts::list),
    },
    Route {
        method: Method::Post,
        path: "/v1/alerts/{alert}/acknowledge",
        id: "acknowledgeAlert",
        tag: "alerts",
        about: "Says that somebody has seen an alert. Acknowledging twice is acknowledging once.",
        parameters: &[path("alert", "The alert.", of::<u64>)],
        body: Some(Body { required: false, content: &[("application/json", of::<alerts::Acknowledge>)] }),
        answers: &[answer(200, "It is done.", of::<Done>)],
        handler: |method| on(method, alerts::acknowledge),
    },
    Route {
        method: Method::Get,
        path: "/v1/live/agents",
        id: "streamAgents",
        tag: "agents",
        about: "Streams the agents as server-sent events: `event: agents` with an AgentList as its `data`, at once and \
                whenever it is another one. When an agent was heard of does not count.",
        parameters: &[
            query("capability", "Only agents that can do this.", of::<Capability>),
            REQUIRE,
            METADATA,
            query("gone", "Also agents that are gone.", of::<bool>),
        ],
        body: None,
        answers: &[streamed("Lists of agents.")],
        handler: |method| on(method, live::agents),
    },
    Route {
        method: Method::Get,
        path: "/v1/live/pools",
        id: "streamPools",
        tag: "resources",
        about: "Streams the pools and locks as server-sent events: `event: pools` with a PoolList as its `data`, at once and \
                whenever it is another one. How full a pool is that fills by itself does not count.",
        parameters: &[],
        body: None,
        answers: &[streamed("Lists of pools.")],
        handler: |method| on(method, live::pools),
    },
    Route {
        method: Method::Get,
        path: "/v1/live/budgets",
        id: "streamBudgets",
        tag: "resources",
        about: "Streams the accounts as server-sent events: `event: budgets` with a PoolList as its `data`, at once and \
                whenever it is another one.",
        parameters: &[],
        body: None,
        answers: &[streamed("Lists of accounts.")],
        handler: |method| on(method, live::budgets),
    },
    Route {
        method: Method::Get,
        path: "/v1/live/locks",
        id: "streamLocks",
        tag: "resources",
        about: "Streams the locks and who holds them as server-sent events: `event: locks` with a LockList as its `data`, at \
                once and whenever it is another one.",
        parameters: &[query("name", "Only this one.", of::<ResourceName>)],
        body: None,
        answers: &[streamed("Lists of locks.")],
        handler: |method| on(method, live::locks),
    },
    Route {
        method: Method::Get,
        path: "/v1/live/leases",
        id: "streamLeases",
        tag: "resources",
        about: "Streams what is held of pools and locks as server-sent events: `event: leases` with a LeaseList as its \
                `data`, at once and whenever it is another one.",
        parameters: &[query("pool", "Only what is held of this pool.", of::<ResourceName>)],
        body: None,
        answers: &[streamed("Lists of leases.")],
        handler: |method| on(method, live::leases),
    },
    Route {
        method: Method::Get,
        path: "/v1/live/alerts",
        id: "streamAlerts",
        tag: "alerts",
        about: "Streams alerts as server-sent events: `event: alerts` with an AlertList as its `data`, at once and whenever \
                it is another one.",
        parameters: &[
            query("all", "Also those that are over and acknowledged.", of::<bool>),
            query("severity", "Only those that matter at least so much.", of::<AlertSeverity>),
            query("kind", "Only those of this kind.", of::<AlertKind>),
            query("limit", "At most this many; 100 if none is given, 1000 at the most.", of::<u32>),
            query("before", "Only alerts raised before this one.", of::<u64>),
        ],
        body: None,
        answers: &[streamed("Lists of alerts.")],
        handler: |method| on(method, live::alerts),
    },
    Route {
        method: Method::Get,
        path: "/v1/placement",
        id: "getPlacement",
        tag: "placement",
        about: "Gives the strategy, the queue, and what was learned of agents and stages.",
        parameters: &[],
        body: None,
        answers: &[answer(200, "What the optimizer knows.", of::<PlacementView>)],
        handler: |method| on(method, placement::get),
    },
    Route {
        method: Method::Get,
        path: "/v1/runs/{run}/placement",
        id: "explainPlacement",
        tag: "placement",
        about: "Says why an agent has a task, or why the task waits: who was considered, and how each was weighed.",
        parameters: &[RUN, query("stage", "The stage; its last attempt is meant.", of::<StageName>)],
        body: None,
        answers: &[answer(200, "Why.", of::<PlacementExplained>)],
        handler: |method| on(method, placement::explain),
    },
    Route {
        method: Method::Post,
        path: "/v1/placement/capacity",
        id: "planCapacity",
        tag: "placement",
        about: "Says how many agents of which type a workflow and a rate of runs need, or what if there were more.",
        parameters: &[],
        body: json(&[("application/json", of::<PlanCapacity>)]),
        answers: &[answer(200, "The plan.", of::<CapacityPlan>)],
        handler: |method| on(method, placement::capacity),
    },
    Route {
        method: Method::Post,
        path: "/v1/placement/advice",
        id: "advise",
        tag: "placement",
        about: "Says how agents should work together on a workflow, and why.",
        parameters: &[],
        body: json(&[("application/json", of::<Advise>)]),
        answers: &[answer(200, "The advice.", of::<Advice>)],
        handler: |method| on(method, placement::advice),
    },
    Route {
        method: Method::Get,
        path: "/v1/placement/forecast",
        id: "forecastQueue",
        tag: "placement",
        about: "Says when what waits will be begun, what of that which is due will be late, and what would help.",
        parameters: &[],
        body: None,
        answers: &[answer(200, "What is to be expected.", of::<Forecast>)],
        handler: |method| on(method, placement::forecast),
    },
    Route {
        method: Method::Post,
        path: "/v1/placement/learning",
        id: "getLearning",
        tag: "placement",
        about: "Gives what was learned, a page at a time.",
        parameters: &[],
        body: json(&[("application/json", of::<GetLearning>)]),
        answers: &[answer(200, "A page.", of::<LearningPage>)],
        handler: |method| on(method, placement::learning),
    },
    Route {
        method: Method::Put,
        path: "/v1/placement/learning",
        id: "importLearning",
        tag: "placement",
        about: "Brings what was learned elsewhere, in place of what was learned here of the same.",
        parameters: &[],
        body: json(&[("application/json", of::<ImportLearning>)]),
        answers: &[answer(200, "It is done.", of::<Done>)],
        handler: |method| on(method, placement::import_learning),
    },
    Route {
        method: Method::Put,
        path: "/v1/placement/strategy",
        id: "setStrategy",
        tag: "placement",
        about: "Changes how tasks are placed, from now on.",
        parameters: &[],
        body: json(&[("application/json", of::<SetStrategy>)]),
        answers: &[answer(200, "It is done.", of::<Done>)],
        handler: |method| on(method, placement::set_strategy),
    },
    Route {
        method: Method::Get,
        path: "/v1/services",
        id: "listServices",
        tag: "operation",
        about: "Gives how every instance of every service stands.",
        parameters: &[],
        body: None,
        answers: &[answer(200, "The instances, service by service.", of::<services::InstanceList>)],
        handler: |method| on(method, services::list),
    },
    Route {
        method: Method::Get,
        path: "/healthz",
        id: "getHealth",
        tag: "operation",
        about: "Says that the gateway is alive.",
        parameters: &[],
        body: None,
        answers: &[answer(200, "It is.", of::<health::Alive>)],
        handler: |method| on(method, health::alive),
    },
    Route {
        method: Method::Get,
        path: "/readyz",
        id: "getReadiness",
        tag: "operation",
        about: "Says whether work can be done: NATS is connected, and every service that decides has a leader. \
                Otherwise the problem's `missing` says what there is not.",
        parameters: &[],
        body: None,
        answers: &[answer(200, "It can.", of::<health::Ready>)],
        handler: |method| on(method, health::ready),
    },
    Route {
        method: Method::Get,
        path: "/metrics",
        id: "getMetrics",
        tag: "operation",
        about: "Gives the metrics of all instances of all services, in Prometheus' text format.",
        parameters: &[],
        body: None,
        answers: &[other("text/plain", "The metrics.")],
        handler: |method| on(method, metrics::all),
    },
    Route {
        method: Method::Get,
        path: "/openapi.json",
        id: "getOpenapi",
        tag: "documents",
        about: "Gives this document.",
        parameters: &[],
        body: None,
        answers: &[answer(200, "An OpenAPI 3.1 document.", openapi::object)],
        handler: |method| on(method, openapi::serve),
    },
    Route {
        method: Method::Get,
        path: "/problems/{code}",
        id: "getProblem",
        tag: "documents",
        about: "Explains a kind of problem.",
        parameters: &[path("code", "The problem's code.", of::<String>)],
        body: None,
        answers: &[other("text/plain", "What it means.")],
        handler: |method| on(method, pages::problem),
    },
    Route {
        method: Method::Get,
        path: "/",
        id: "getIndex",
        tag: "documents",
        about: "Says what there is.",
        parameters: &[],
        body: None,
        answers: &[other("text/html", "A page of links.")],
        handler: |method| on(method, pages::index),
    },
];

/// Everything that is answered.
pub(crate) fn router(door: Door, policy: Policy) -> Router {
    let metrics = door.metrics.clone();
    let mut router = Router::new();
    for route in ROUTES {
        let handler = (route.handler)(route.method.filter());
        router = router.route(route.path, handler.layer(from_fn(|request, next| known_query(route, request, next))));
    }
    // A workflow may have this name; without this line its page would be hidden by the path above.
    router = router.route("/v1/workflows/validate", get(workflows::get_validate));
    layered(router.with_state(door), policy, metrics, TIMEOUT)
}

/// What every answer goes through, the last of these first.
fn layered(router: Router, policy: Policy, metrics: Metrics, timeout: Duration) -> Router {
    router
        .layer(from_fn(move |request, next| in_time(timeout, request, next)))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn_with_state(policy, security::guard))
        .layer(from_fn(everywhere))
        .layer(from_fn(security::headers))
        .layer(from_fn_with_state(metrics, metrics::observe))
}

async fn in_time(timeout: Duration, request: Request, next: Next) -> Response {
    tokio::time::timeout(timeout, next.run(request)).await.unwrap_or_else(|_| {
        let detail = format!("there was no answer within {} ms", timeout.as_millis());
        Problem::new(Kind::Timeout, detail).into_response()
    })
}

/// Refuses a query parameter that the operation does not have: left out of account, a misspelt filter would answer
/// something else than was asked.
async fn known_query(route: &Route, request: Request, next: Next) -> Response {
    let names = || route.parameters.iter().filter(|parameter| parameter.place == "query").map(|p| p.name);
    let query = request.uri().query().unwrap_or_default();
    let given = query.split('&').map(|pair| pair.split('=').next().unwrap_or_default()).filter(|name| !name.is_empty());
    if let Some(unknown) = given.into_iter().find(|name| names().all(|known| known != *name)) {
        let known = names().collect::<Vec<_>>().join(", ");
        let known = if known.is_empty() { "none".to_owned() } else { known };
        return Problem::invalid(format!("there is no query parameter {unknown:?} here; there are: {known}"))
            .into_response();
    }
    next.run(request).await
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::future::pending;

    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn g1_a_panic_and_a_handler_that_never_answers_are_problems() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let router = Router::new()
            .route("/panic/{id}", get(|| async { panic!("a defect") as String }))
            .route("/never", get(pending::<()>));
        let metrics = Metrics::new("gateway", "g");
        let router =
            layered(router, Policy { local: true, ..Policy::default() }, metrics.clone(), Duration::from_millis(20));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let server = tokio::spawn(async move { axum::serve(listener, router).await });

        for (path, status, code) in [("/panic/7", 500, "internal"), ("/never", 504, "timeout")] {
            let answer = reqwest::get(format!("{base}{path}")).await.unwrap();
            assert_eq!(answer.status(), status);
            assert_eq!(answer.headers()["content-type"], "application/problem+json");
            let problem: crate::ProblemDetails = answer.json().await.unwrap();
            assert_eq!((problem.status, problem.code.as_str()), (status, code));
            assert!(!problem.detail.contains("a defect"), "{}", problem.detail);
        }
        let text = metrics.render();
        assert!(text.contains("route=\"/panic/{id}\",status=\"500\"} 1"), "{text}");
        server.abort();
    }

    #[test]
    fn g1_the_table_has_no_row_twice_and_names_its_path_s_parameters() {
        let mut ids = BTreeSet::new();
        let mut rows = BTreeSet::new();
        for route in ROUTES {
            assert!(ids.insert(route.id), "{} twice", route.id);
            assert!(rows.insert((route.path, route.method.as_str())), "{} twice", route.path);
            let variable = route.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
            let named = route.parameters.iter().filter(|parameter| parameter.place == "path").map(|p| p.name);
            assert_eq!(variable.collect::<Vec<_>>(), named.collect::<Vec<_>>(), "{}", route.path);
        }
    }
}
