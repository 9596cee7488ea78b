//! Makes a failing history short: takes draws out and sets them to 0, as long as the same rule is broken.

use std::time::{Duration, Instant};

use crate::run_tape;

/// A history that was shrunk.
#[derive(Debug)]
pub struct Shrunk {
    /// Its draws.
    pub tape: Vec<u32>,
    /// How many histories were run to find it.
    pub tries: u32,
}

/// Shrinks the draws of a history that breaks the rule `check`, for at most so long.
#[must_use]
pub fn shrink(tape: Vec<u32>, check: &str, patience: Duration) -> Shrunk {
    let end = Instant::now() + patience;
    let mut shrunk = Shrunk { tape, tries: 0 };
    loop {
        let before = shrunk.tape.clone();
        let mut size = (shrunk.tape.len() / 2).max(1);
        while size > 0 && Instant::now() < end {
            shrunk.pass(size, check, end, |tape, from, to| {
                tape.drain(from..to);
                true
            });
            shrunk.pass(size, check, end, |tape, from, to| {
                let dull = tape[from..to].iter().all(|draw| *draw == 0);
                tape[from..to].fill(0);
                !dull
            });
            size /= 2;
        }
        while shrunk.tape.last() == Some(&0) {
            shrunk.tape.pop();
        }
        if shrunk.tape == before || Instant::now() >= end {
            return shrunk;
        }
    }
}

impl Shrunk {
    /// Tries a change on every chunk of a size, from the end to the beginning; keeps those that still fail.
    fn pass(&mut self, size: usize, check: &str, end: Instant, change: impl Fn(&mut Vec<u32>, usize, usize) -> bool) {
        let mut to = self.tape.len();
        while to > 0 && Instant::now() < end {
            let from = to.saturating_sub(size);
            let mut tape = self.tape.clone();
            if to <= tape.len() && change(&mut tape, from, to) {
                self.tries += 1;
                if run_tape(&tape, false).violation.is_some_and(|violation| violation.check == check) {
                    self.tape = tape;
                }
            }
            to = from;
        }
    }
}
