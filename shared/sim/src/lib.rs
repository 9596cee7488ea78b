//! The simulator: the real machines under their real processor, on a simulated log, in virtual time, with everything that can
//! go wrong.
//!
//! One seed is one history: it gives every decision that is left to chance, one draw each ([`Draws`]). The same seed gives the
//! same bytes. A history has a phase of faults and a calm one, in which everything must come to rest. All the while
//! checkers that know the protocol, and nothing of the code, look at every record and at everything that is said to
//! anybody (`check.rs`). A history that breaks a rule is shrunk to a short one that breaks the same rule ([`shrink`]).
//!
//! | file | what |
//! |---|---|
//! | `draws.rs` | chance, as a tape |
//! | `world.rs` and below | instances, broker, network, agents, clients, faults |
//! | `engine.rs` | a machine under its processor, with its type hidden |
//! | `check.rs` and below | what must hold |
//! | `workload.rs` | random workflows, agents and wishes |
//! | `coverage.rs` | what was seen to happen |
//! | `shrink.rs`, `transcript.rs` | a failure, made readable |
//!
//! # What is deliberately not here
//!
//! The shell: connections, subscriptions, the key-value bucket of leadership. What a session does around the processor is done
//! again in `world/nodes.rs`, in as few lines as possible; real processes are killed by the fault runner (`tests/faults`).

mod check;
mod coverage;
mod draws;
mod engine;
mod log;
mod request;
mod shrink;
mod transcript;
mod workload;
mod world;

pub use check::Violation;
pub use coverage::{Branch, Coverage, Fault};
pub use draws::Draws;
pub use shrink::{Shrunk, shrink};
pub use world::Outcome;

/// Runs the history of a seed.
#[must_use]
pub fn run(seed: u64) -> Outcome {
    guarded(|| Draws::of_seed(seed), false)
}

/// Runs the history that some draws give; with its transcript, if that is wanted.
#[must_use]
pub fn run_tape(tape: &[u32], with_transcript: bool) -> Outcome {
    guarded(|| Draws::of_tape(tape.to_vec()), with_transcript)
}

/// How many draws are written down of a history that panicked: more than any takes.
const MOST_DRAWS: usize = 50_000;

/// A machine that panics has broken a rule like any other.
fn guarded(draws: impl Fn() -> Draws, with_transcript: bool) -> Outcome {
    let history = || world::World::new(draws(), with_transcript).run();
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(history)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().copied();
        let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("(no message)");
        let mut draws = draws();
        (0..MOST_DRAWS).for_each(|_| {
            draws.below(2);
        });
        Outcome {
            violation: Some(Violation { check: "nothing panics", text: text.to_owned() }),
            coverage: Coverage::default(),
            digest: 0,
            tape: draws.into_tape(),
            transcript: String::new(),
        }
    })
}
