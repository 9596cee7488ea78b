//! Every planted bug is found. Runs with the feature `planted` only: `cargo test -p baton-sim --features planted`.
#![cfg(feature = "planted")]

use baton_machine::planted::{Bug, plant};
use baton_sim::run;

/// How many seeds a bug may take.
const SEEDS: u64 = 6000;

#[test]
fn every_planted_bug_is_found() {
    // Planted bugs make machines panic; the simulator tells that as it tells any broken rule.
    std::panic::set_hook(Box::new(|_| {}));
    let found: Vec<_> = Bug::ALL
        .map(|bug| {
            plant(Some(bug));
            let found = (1..=SEEDS).find_map(|seed| Some((seed, run(seed).violation?)));
            plant(None);
            (bug, found)
        })
        .into();
    let _ = std::panic::take_hook();
    for (bug, found) in &found {
        if let Some((seeds, violation)) = found {
            println!("{bug:?}: {seeds} seeds, {}", violation.check);
        }
    }
    let missed: Vec<_> = found.iter().filter(|(_, found)| found.is_none()).map(|(bug, _)| bug).collect();
    assert!(missed.is_empty(), "not found in {SEEDS} seeds: {missed:?}");
}

/// The bugs are taken out again: a seed that is sound is sound.
#[test]
fn nothing_is_planted_unless_it_is_planted() {
    assert_eq!((1..50).find_map(|seed| run(seed).violation), None);
}
