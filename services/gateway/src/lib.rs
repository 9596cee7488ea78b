//! The HTTP door: API, event streams, metrics. No state of its own.
