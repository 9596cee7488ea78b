//! Where everything that is left to chance comes from: one sequence of draws.
//!
//! Each decision of the simulation is one draw, and a draw of 0 is the dullest that could come: no fault, no delay, the first
//! of the choices. So a failing history can be shrunk by taking draws out and by setting them to 0.

use baton_protocol::id::mix;

/// The draws of one history: from a seed, or from a tape.
#[derive(Debug)]
pub struct Draws {
    source: Source,
    taken: Vec<u32>,
}

#[derive(Debug)]
enum Source {
    Seed(u64),
    Tape { tape: Vec<u32>, next: usize },
}

impl Draws {
    /// The draws that a seed gives.
    #[must_use]
    pub fn of_seed(seed: u64) -> Self {
        Self { source: Source::Seed(mix(seed ^ 0xba70_0000_0000_0000)), taken: Vec::with_capacity(2048) }
    }

    /// These draws, and zeros after their end.
    #[must_use]
    pub fn of_tape(tape: Vec<u32>) -> Self {
        Self { source: Source::Tape { tape, next: 0 }, taken: Vec::new() }
    }

    /// All that was drawn.
    #[must_use]
    pub fn into_tape(self) -> Vec<u32> {
        self.taken
    }

    fn next(&mut self) -> u32 {
        let drawn = match &mut self.source {
            Source::Seed(state) => {
                // SplitMix64: the state is a counter, the draw its hash.
                *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                (mix(*state) >> 32) as u32
            }
            Source::Tape { tape, next } => {
                *next += 1;
                tape.get(*next - 1).copied().unwrap_or(0)
            }
        };
        self.taken.push(drawn);
        drawn
    }

    /// A number below `n`, or 0 if there is none.
    pub fn below(&mut self, n: u32) -> u32 {
        ((u64::from(self.next()) * u64::from(n)) >> 32) as u32
    }

    /// A number from `low` to `high`.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        let span = u32::try_from(high.saturating_sub(low).saturating_add(1)).unwrap_or(u32::MAX);
        low + u64::from(self.below(span))
    }

    /// Whether something comes that comes so many times in a thousand.
    pub fn chance(&mut self, per_mille: u32) -> bool {
        self.below(1000) >= 1000 - per_mille.min(1000)
    }

    /// One of these.
    pub fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(u32::try_from(choices.len()).unwrap_or(u32::MAX)) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tape_gives_again_what_a_seed_gave_and_zeros_are_dull() {
        let mut draws = Draws::of_seed(7);
        let drawn: Vec<_> = (0..50).map(|n| (draws.below(n + 1), draws.chance(500))).collect();
        let mut again = Draws::of_tape(draws.into_tape());
        assert_eq!(drawn, (0..50).map(|n| (again.below(n + 1), again.chance(500))).collect::<Vec<_>>());
        let mut dull = Draws::of_tape(Vec::new());
        assert!(!dull.chance(999) && dull.below(9) == 0 && dull.between(3, 9) == 3 && *dull.pick(&[5, 6]) == 5);
    }
}
