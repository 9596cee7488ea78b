//! Logs, metrics and spans of a Baton process.
