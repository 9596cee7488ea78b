//! The JSON Schemas of everything on the wire. They are checked in under `shared/protocol/schemas/`; a test holds them
//! current.

use std::collections::BTreeMap;

use schemars::{Schema, schema_for};

use crate::record::{Commit, Event, OptimizerRecord, ResourceRecord, WorkflowRecord};
use crate::request::{
    CancelTask, Endpoint, OptimizerRequest, ProgressEvent, Requests, ResourceRequest, WorkflowRequest,
};
use crate::{definition, header, message, post, rejection, request, run};

/// The schema of workflow definitions: what an editor completes and checks them by.
#[must_use]
pub fn definition() -> Schema {
    schema_for!(definition::Definition)
}

/// Every schema by the name of its file, without the ending.
#[must_use]
pub fn all() -> BTreeMap<String, Schema> {
    let mut schemas: BTreeMap<String, Schema> = [
        ("definition", definition()),
        ("commit.workflow-manager", schema_for!(Commit<WorkflowRecord>)),
        ("commit.resource-manager", schema_for!(Commit<ResourceRecord>)),
        ("commit.optimizer", schema_for!(Commit<OptimizerRecord>)),
        ("event", schema_for!(Event)),
        ("event.progress", schema_for!(ProgressEvent)),
        ("rejection", schema_for!(rejection::Rejection)),
        ("instance-status", schema_for!(request::InstanceStatus)),
        ("run", schema_for!(run::RunView)),
        ("message-type", schema_for!(message::MessageType)),
        ("routing", schema_for!(header::Routing)),
        ("priority", schema_for!(header::Priority)),
        ("post.ask", schema_for!(post::Ask)),
        ("post.opened", schema_for!(post::Opened)),
        ("to-agent.assign", schema_for!(request::Assignment)),
        ("to-agent.assignments", schema_for!(request::Assignments)),
        ("to-agent.cancel", schema_for!(CancelTask)),
        ("to-agent.restart", schema_for!(request::RestartAgent)),
        ("to-agent.handoff", schema_for!(request::HandoffOffer)),
        ("to-agent.handed", schema_for!(request::HandoffAnswer)),
    ]
    .into_iter()
    .map(|(name, schema)| (name.to_owned(), schema))
    .collect();
    let endpoints: [&[Endpoint]; 3] =
        [WorkflowRequest::ENDPOINTS, ResourceRequest::ENDPOINTS, OptimizerRequest::ENDPOINTS];
    for endpoint in endpoints.into_iter().flatten() {
        schemas.insert(format!("request.{}", endpoint.name), (endpoint.request)());
        schemas.insert(format!("answer.{}", endpoint.name), (endpoint.answer)());
    }
    schemas
}
