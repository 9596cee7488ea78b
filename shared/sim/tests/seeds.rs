//! A fixed set of seeds, and fresh ones: no rule is broken, every seed gives the same history twice, and every fault, rare
//! branch and record is seen.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use baton_sim::{Coverage, Violation, run, run_tape, shrink};

/// Runs seeds on all cores until `go_on` says no, each twice.
fn seeds(from: u64, go_on: impl Fn(u64) -> bool + Sync) -> Coverage {
    let (next, all, failed) = (AtomicU64::new(0), Mutex::new(Coverage::default()), Mutex::new(None));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while failed.lock().unwrap().is_none() {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if !go_on(number) {
                        break;
                    }
                    let outcome = run(from + number);
                    all.lock().unwrap().add(&outcome.coverage);
                    if outcome.violation.is_some() {
                        *failed.lock().unwrap() = Some((from + number, outcome.tape, outcome.violation));
                    } else if run(from + number).digest != outcome.digest {
                        *failed.lock().unwrap() = Some((from + number, Vec::new(), None));
                    }
                }
            });
        }
    });
    match failed.into_inner().unwrap() {
        None => all.into_inner().unwrap(),
        Some((seed, _, None)) => panic!("seed {seed} gave two different histories"),
        Some((seed, tape, Some(violation))) => explain(seed, tape, &violation),
    }
}

fn explain(seed: u64, tape: Vec<u32>, violation: &Violation) -> ! {
    let shrunk = shrink(tape, violation.check, Duration::from_secs(20));
    let transcript = run_tape(&shrunk.tape, true).transcript;
    panic!("seed {seed} breaks a rule: {violation}\n{transcript}\n`baton-sim --from {seed} --seeds 1` says it again");
}

#[test]
fn a_fixed_set_of_seeds_holds_and_sees_everything() {
    let coverage = seeds(1, |number| number < 3000);
    assert_eq!(coverage.missing(), Vec::<&str>::new());
}

#[test]
fn fresh_seeds_hold() {
    let from = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() * 1_000_000;
    let end = Instant::now() + Duration::from_secs(10);
    println!("from seed {from}");
    seeds(from, |_| Instant::now() < end);
}

/// Seeds that once broke a rule. The generator has changed since the first two, so that those are other histories now; what
/// they found has a test of its own beside the code that was mended.
#[test]
fn seeds_that_found_something_hold() {
    for seed in [
        // Attempts timed out at once where the workflow-manager's clock was ahead of the resource-manager's.
        476,
        // A lost acknowledgement just before the calm: a rule allowed less time than a new leader needs.
        1002,
        // Two processes of one agent each failed the same task, and differed in whether it may be tried again: a rule was
        // too strict.
        1_346_330,
        1_922_580,
        // A task had waited for the most of its time in all when it was leased: a rule was too strict.
        2510,
        // Who was asked for money for a task that ended was asked for the next one only after a while: a rule did not wait.
        1_795_713_924_000_330,
        // A run that had failed at once by a clock that was 18 s behind was forgotten when the next one led, and started again by a
        // request that was repeated.
        1_795_790_635_000_008,
    ] {
        let outcome = run(seed);
        if let Some(violation) = outcome.violation {
            explain(seed, outcome.tape, &violation);
        }
    }
}

#[test]
fn a_history_can_be_told_and_its_dullest_version_is_quiet() {
    let dull = run_tape(&[], true);
    assert_eq!(dull.violation, None);
    let transcript = dull.transcript;
    for word in ["run_started", "stage_ready", "assigned", "stage_ended", "run_finished", "the calm begins"] {
        assert!(transcript.contains(word), "{word}:\n{transcript}");
    }
    assert!(!transcript.contains("crashes"), "{transcript}");
    let told = run_tape(&run(7).tape, true);
    assert_eq!((told.digest, told.violation), (run(7).digest, None));
}
