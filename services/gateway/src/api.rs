//! The handlers: each reads what was asked, asks the service that knows, and passes on what it says.

pub(crate) mod agents;
pub(crate) mod alerts;
pub(crate) mod objects;
pub(crate) mod operations;
pub(crate) mod pages;
pub(crate) mod placement;
pub(crate) mod pools;
pub(crate) mod pressure;
pub(crate) mod runs;
pub(crate) mod schedules;
pub(crate) mod services;
pub(crate) mod stages;
pub(crate) mod triggers;
pub(crate) mod workflows;
