//! Baton as its users meet it: the built binary, a real nats-server, real processes that really die.

mod agents;
mod article;
mod bench;
mod cluster;
mod command_line;
mod discovery;
mod examples;
mod faults;
mod fleet;
mod full;
mod http;
mod import;
mod items;
mod messages;
mod operations;
mod order;
mod overload;
mod resources;
mod rules;
mod traces;
mod workflows;
