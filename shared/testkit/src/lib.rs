//! What tests need: a real nats-server each, built binaries as processes.
