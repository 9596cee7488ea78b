//! End-to-end and fault tests.
