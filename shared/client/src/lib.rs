//! Connects to NATS as its other tools do, and asks the services.
