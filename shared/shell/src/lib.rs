//! The loop around a machine: log, leadership, requests, telemetry, drain.
