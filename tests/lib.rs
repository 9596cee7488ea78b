//! End-to-end and fault tests: the built binary as processes, a real nats-server, real kills. The tests are in
//! `end_to_end/`; this library is empty.
