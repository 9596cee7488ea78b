//! `baton-sim`: runs seeds, says what was seen, and makes a failure readable.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use baton_sim::{Coverage, Outcome, run, run_tape, shrink};
use clap::Parser;

/// A history is made of small values that live for a moment; a million histories want this.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Runs the machines on a simulated log with faults, one history a seed, and checks every one.
#[derive(Debug, Parser)]
#[command(name = "baton-sim", version)]
struct Arguments {
    /// How many seeds.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first one; without it, one that the clock gives.
    #[arg(long)]
    from: Option<u64>,
    /// How many threads; as many as there are cores if none is given.
    #[arg(long)]
    jobs: Option<usize>,
    /// Runs every seed twice, and demands the same bytes.
    #[arg(long)]
    twice: bool,
    /// Stops after so many seconds, whatever is left.
    #[arg(long)]
    seconds: Option<u64>,
    /// Prints the transcript of the first seed, whether a rule is broken or not.
    #[arg(long)]
    show: bool,
    /// How many seconds a failure is shrunk.
    #[arg(long, default_value_t = 20)]
    shrink: u64,
    /// Fails if a fault, a rare branch or a record was never seen.
    #[arg(long)]
    covered: bool,
    /// Plants every bug in turn, and says how many seeds it takes to find it.
    #[cfg(feature = "planted")]
    #[arg(long)]
    planted: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let from = arguments
        .from
        .unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() * 1_000_000));
    #[cfg(feature = "planted")]
    if arguments.planted {
        return planted(&arguments, from);
    }
    if arguments.show {
        let outcome = run_tape(&run(from).tape, true);
        println!("{}", outcome.transcript);
        return verdict(&outcome);
    }
    many(&arguments, from)
}

fn verdict(outcome: &Outcome) -> ExitCode {
    match &outcome.violation {
        None => ExitCode::SUCCESS,
        Some(violation) => {
            println!("BROKEN: {violation}");
            ExitCode::FAILURE
        }
    }
}

/// What went wrong with a seed.
enum Failure {
    Broken(Box<Outcome>),
    TwoHistories,
}

fn many(arguments: &Arguments, from: u64) -> ExitCode {
    let jobs = arguments.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let begun = Instant::now();
    let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let (all, failed) = (Mutex::new(Coverage::default()), Mutex::new(None));
    let done = AtomicU64::new(0);
    println!("seeds {from} to {} on {jobs} threads", from + arguments.seeds.saturating_sub(1));
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                let mut coverage = Coverage::default();
                while !stop.load(Ordering::Relaxed) {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let in_time = arguments.seconds.is_none_or(|seconds| begun.elapsed().as_secs() < seconds);
                    if number >= arguments.seeds || !in_time {
                        break;
                    }
                    let outcome = run(from + number);
                    coverage.add(&outcome.coverage);
                    done.fetch_add(1, Ordering::Relaxed);
                    let failure = if outcome.violation.is_some() {
                        Failure::Broken(Box::new(outcome))
                    } else if arguments.twice && run(from + number).digest != outcome.digest {
                        Failure::TwoHistories
                    } else {
                        continue;
                    };
                    stop.store(true, Ordering::Relaxed);
                    failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get_or_insert((number, failure));
                }
                all.lock().unwrap_or_else(std::sync::PoisonError::into_inner).add(&coverage);
            });
        }
    });
    let coverage = all.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let (done, seconds) = (done.into_inner(), begun.elapsed().as_secs_f64());
    print!("{}", coverage.table());
    println!(
        "{done} seeds in {seconds:.1} s: {:.0} seeds/s, {:.0} a thread; {} commits, {} events, {:.1} h of virtual time",
        done as f64 / seconds,
        done as f64 / seconds / jobs as f64,
        coverage.commits,
        coverage.events,
        coverage.virtual_ms as f64 / 3_600_000.0
    );
    let missing = coverage.missing();
    if !missing.is_empty() {
        println!("never seen: {}", missing.join(", "));
    }
    match failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
        None if arguments.covered && !missing.is_empty() => ExitCode::FAILURE,
        None => {
            println!("no rule was broken");
            ExitCode::SUCCESS
        }
        Some((number, Failure::TwoHistories)) => {
            println!("seed {} gave two different histories", from + number);
            ExitCode::FAILURE
        }
        Some((number, Failure::Broken(outcome))) => {
            explain(from + number, &outcome, Duration::from_secs(arguments.shrink));
            ExitCode::FAILURE
        }
    }
}

/// Shrinks a failing history, and prints it.
fn explain(seed: u64, outcome: &Outcome, patience: Duration) {
    let Some(violation) = &outcome.violation else { return };
    println!("seed {seed} breaks a rule\n{violation}");
    let shrunk = shrink(outcome.tape.clone(), violation.check, patience);
    let again = run_tape(&shrunk.tape, true);
    println!("shrunk from {} to {} draws in {} histories", outcome.tape.len(), shrunk.tape.len(), shrunk.tries);
    println!("tape: {:?}", shrunk.tape);
    println!("{}", again.transcript);
    if let Some(violation) = again.violation {
        println!("{violation}");
    }
}

/// Plants every bug in turn.
#[cfg(feature = "planted")]
fn planted(arguments: &Arguments, from: u64) -> ExitCode {
    use baton_machine::planted::{Bug, plant};
    let mut missed = 0;
    for bug in Bug::ALL {
        plant(Some(bug));
        let found = (0..arguments.seeds).find_map(|number| Some((number, run(from + number).violation?)));
        plant(None);
        match found {
            Some((number, violation)) => {
                println!("{:<24} {:>6} seeds   {}", format!("{bug:?}"), number + 1, violation.check)
            }
            None => {
                missed += 1;
                println!("{:<24} not found in {} seeds", format!("{bug:?}"), arguments.seeds);
            }
        }
    }
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
