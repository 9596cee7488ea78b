//! Waiting on state.

use std::fmt::Debug;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

/// How often the state is looked at.
const POLL: Duration = Duration::from_millis(10);

/// What one look at a state says: it is reached, or what there is instead.
///
/// A `bool` says only whether, an `Option` also gives the value, and a `Result` gives the value or, as its error, what was
/// seen instead, which the panic of [`wait_for`] then shows.
pub trait Outcome {
    /// What the look gives once the state is reached.
    type Reached;
    /// What it gives before.
    type Seen: Debug;

    /// Sorts the two.
    ///
    /// # Errors
    /// What was seen instead, if the state is not reached.
    fn outcome(self) -> Result<Self::Reached, Self::Seen>;
}

impl Outcome for bool {
    type Reached = ();
    type Seen = bool;

    fn outcome(self) -> Result<(), bool> {
        if self { Ok(()) } else { Err(self) }
    }
}

impl<T> Outcome for Option<T> {
    type Reached = T;
    type Seen = Option<()>;

    fn outcome(self) -> Result<T, Option<()>> {
        self.ok_or(None)
    }
}

impl<T, S: Debug> Outcome for Result<T, S> {
    type Reached = T;
    type Seen = S;

    fn outcome(self) -> Result<T, S> {
        self
    }
}

/// Looks at a state until it is reached, and gives what the last look gave.
///
/// ```
/// # use std::time::Duration;
/// # use baton_testkit::wait_for;
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let (sender, receiver) = tokio::sync::watch::channel(0);
/// tokio::spawn(async move { (1..=3).for_each(|number| drop(sender.send(number))) });
/// let seen = wait_for("the third number", Duration::from_secs(5), async || {
///     let number = *receiver.borrow();
///     if number == 3 { Ok(number) } else { Err(format!("number {number}")) }
/// })
/// .await;
/// assert_eq!(seen, 3);
/// # }
/// ```
///
/// # Panics
/// When the state is not reached in time, with the description and what the last look saw.
#[track_caller]
pub fn wait_for<F, L>(
    description: &str,
    deadline: Duration,
    look: F,
) -> impl Future<Output = <L::Output as Outcome>::Reached>
where
    F: FnMut() -> L,
    L: Future<Output: Outcome>,
{
    // Not an `async fn`, since that would lose the place of the call.
    let caller = std::panic::Location::caller();
    async move {
        match reached(deadline, look).await {
            Ok(value) => value,
            Err(seen) => panic!("in vain for {deadline:?}: {description}; last seen: {seen} (awaited at {caller})"),
        }
    }
}

// `AsyncFnMut` would allow a look to change what it borrows, but then no test could wait in a spawned task: the compiler
// cannot prove such a future `Send`.
async fn reached<F, L>(deadline: Duration, mut look: F) -> Result<<L::Output as Outcome>::Reached, String>
where
    F: FnMut() -> L,
    L: Future<Output: Outcome>,
{
    let end = Instant::now() + deadline;
    let mut seen = "nothing".to_owned();
    loop {
        // A look that hangs must not hang the test.
        match timeout_at(end, look()).await {
            Ok(outcome) => match outcome.outcome() {
                Ok(value) => return Ok(value),
                Err(now) => seen = format!("{now:?}"),
            },
            Err(_) => return Err(format!("{seen}, then a look that did not return")),
        }
        if Instant::now() >= end {
            return Err(seen);
        }
        sleep(POLL).await;
    }
}
