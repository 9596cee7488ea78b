//! Baton as its users meet it: the built binary, a real nats-server, real processes that really die.

mod agents;
mod alerts;
mod article;
mod bench;
mod budgets;
mod cluster;
mod command_line;
mod discovery;
mod examples;
mod faults;
mod fleet;
mod full;
mod handoff;
mod http;
mod import;
mod items;
mod live;
mod messages;
mod operations;
mod order;
mod overload;
mod pressure;
mod resources;
mod rules;
mod traces;
mod workflows;
