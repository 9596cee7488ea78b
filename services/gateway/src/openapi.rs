//! The OpenAPI 3.1 document, made of the [table](crate::routes) and of the protocol's own schemas: 3.1 takes JSON Schemas
//! as they are.

use std::sync::LazyLock;

use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use baton_protocol::record::Event;
use baton_protocol::request::{AgentList, AlertList, LeaseList, LockList, PoolList, ProgressEvent};
use bytes::Bytes;
use schemars::generate::SchemaSettings;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Map, Value, json};

use crate::problem::{self, ProblemDetails};
use crate::routes::{ROUTES, Route};

/// What the tags stand for.
const TAGS: [(&str, &str); 11] = [
    ("workflows", "Definitions: what is to be done, in which stages."),
    ("runs", "Executions of workflows."),
    ("schedules", "Runs that start at certain times."),
    ("triggers", "Events, and what they start or let go on."),
    ("objects", "What is too large for a message."),
    ("agents", "Who does the work."),
    ("resources", "Who holds what: pools, locks, budgets, and the leases on them."),
    ("alerts", "What a person should know of."),
    ("placement", "Which agent does what."),
    ("operation", "How Baton itself fares."),
    ("documents", "What explains the rest."),
];

/// The document.
#[must_use]
pub fn document() -> Value {
    let mut settings = SchemaSettings::draft2020_12();
    settings.definitions_path = "/components/schemas".into();
    settings.meta_schema = None;
    let mut generator = settings.into_generator();
    let problem = generator.subschema_for::<ProblemDetails>();
    let mut paths = Map::new();
    for route in ROUTES {
        let item = paths.entry(route.path).or_insert_with(|| json!({}));
        item[route.method.as_str()] = operation(route, &mut generator);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Baton",
            "description": "Coordinates teams of AI agents. Every error is a Problem (RFC 9457).",
            "version": env!("CARGO_PKG_VERSION"),
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "tags": TAGS.map(|(name, about)| json!({ "name": name, "description": about })),
        "paths": paths,
        "components": {
            "responses": {
                "Problem": {
                    "description": "It failed.",
                    "headers": {
                        "Retry-After": {
                            "description": "When to try again, in seconds, where waiting helps.",
                            "schema": { "type": "integer" },
                        },
                    },
                    "content": { problem::CONTENT: { "schema": problem } },
                },
            },
            "schemas": generator.take_definitions(true),
        },
    })
}

fn operation(route: &Route, generator: &mut SchemaGenerator) -> Value {
    let parameters: Vec<_> = route
        .parameters
        .iter()
        .map(|parameter| {
            json!({
                "in": parameter.place,
                "name": parameter.name,
                "description": parameter.about,
                "required": parameter.place == "path",
                "schema": (parameter.schema)(generator),
            })
        })
        .collect();
    let mut responses = Map::new();
    for answer in route.answers {
        let mut response = json!({ "description": answer.about });
        if let Some((media, schema)) = answer.content {
            response["content"] = json!({ media: { "schema": schema(generator) } });
        }
        if answer.location {
            let schema = json!({ "type": "string", "format": "uri-reference" });
            response["headers"] = json!({ "Location": { "description": "Where it is.", "schema": schema } });
        }
        responses.insert(answer.status.to_string(), response);
    }
    responses.insert("default".to_owned(), json!({ "$ref": "#/components/responses/Problem" }));
    let mut operation = json!({
        "operationId": route.id,
        "tags": [route.tag],
        "summary": route.about.split_inclusive(". ").next().unwrap_or_default().trim(),
        "description": route.about,
        "parameters": parameters,
        "responses": responses,
    });
    if let Some(body) = &route.body {
        let content: Map<_, _> = body
            .content
            .iter()
            .map(|(media, schema)| ((*media).to_owned(), json!({ "schema": schema(generator) })))
            .collect();
        operation["requestBody"] = json!({ "required": body.required, "content": content });
    }
    operation
}

/// The schema of an event stream: text, whose `data` lines have schemas.
pub(crate) fn event_stream(generator: &mut SchemaGenerator) -> Schema {
    let data = [generator.subschema_for::<Event>(), generator.subschema_for::<ProgressEvent>()];
    json_schema!({
        "type": "string",
        "description": "Server-sent events. `contentSchema` is that of their data.",
        "contentMediaType": "text/event-stream",
        "contentSchema": { "anyOf": data },
    })
}

/// The schema of an event stream of answers.
pub(crate) fn live_stream(generator: &mut SchemaGenerator) -> Schema {
    let data = [
        generator.subschema_for::<AgentList>(),
        generator.subschema_for::<PoolList>(),
        generator.subschema_for::<LockList>(),
        generator.subschema_for::<LeaseList>(),
        generator.subschema_for::<AlertList>(),
    ];
    json_schema!({
        "type": "string",
        "description": "Server-sent events; the kind of each says what its data are. `event: problem` says why there is no answer; \
                        it is asked on.",
        "contentMediaType": "text/event-stream",
        "contentSchema": { "anyOf": data },
    })
}

/// The schema of any object.
pub(crate) fn object(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "object" })
}

/// Answers the document.
pub(crate) async fn serve() -> Response {
    static TEXT: LazyLock<Bytes> = LazyLock::new(|| serde_json::to_vec_pretty(&document()).unwrap_or_default().into());
    ([(CONTENT_TYPE, "application/json")], TEXT.clone()).into_response()
}
