//! Finds, fetches, starts and stops a nats-server.
