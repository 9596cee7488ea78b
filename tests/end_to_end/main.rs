//! Baton as its users meet it: the built binary, a real nats-server, real processes that really die.

mod agents;
mod article;
mod bench;
mod cluster;
mod command_line;
mod examples;
mod faults;
mod fleet;
mod full;
mod http;
mod items;
mod messages;
mod overload;
mod rules;
mod traces;
mod workflows;
