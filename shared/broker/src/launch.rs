//! Small helpers around threads and child processes.

use std::io;
use std::time::{Duration, Instant};

/// How long an executable may stay busy.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs something that blocks where blocking is allowed; a panic in it goes on here.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Starts a process, and tries again while the executable is "busy".
///
/// A file just written can be busy although this process has closed it: a thread that forked in the meantime holds a copy
/// of the descriptor until its child executes something else. Nothing announces the end of that, so this polls.
pub(crate) async fn retry_while_busy<T>(mut spawn: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let deadline = Instant::now() + BUSY_TIMEOUT;
    loop {
        match spawn() {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            outcome => return outcome,
        }
    }
}
