//! A server that outlived its owner.
//!
//! An owner that is killed with SIGKILL cannot stop its server. The next start on the same data directory does it. It
//! knows the server's number from two files: the owner's, which also holds the time of the start, and the server's own,
//! in case the owner died before it wrote. Numbers are reused, so the process must also have our configuration file as an
//! argument.

use std::fs;
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use crate::launch::blocking;
use crate::layout::{Layout, claim};
use crate::process::{self, Identity};
use crate::server::Error;

/// How long a process may take to die of SIGKILL; only a hanging disk makes it take longer.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// Stops the nats-server that a killed owner left running on this data directory, and says which process that was.
///
/// [`crate::Broker::start`] does the same; this is for whoever only wants to clean up.
///
/// # Errors
/// [`Error::InUse`] when the owner lives, [`Error::Orphan`] when the process cannot be stopped.
pub async fn stop_orphan(data_dir: impl AsRef<Path>, timeout: Duration) -> Result<Option<u32>, Error> {
    let data_dir = data_dir.as_ref().to_owned();
    if !data_dir.is_dir() {
        return Ok(None);
    }
    let (layout, _claim) = blocking(move || claim(&data_dir)).await?;
    stop(&layout, timeout).await
}

/// What the owner writes down about its server.
#[derive(Debug, Serialize, Deserialize)]
struct Child {
    pid: u32,
    started: Option<String>,
}

/// Writes down the server that was just started. Failing to is no reason not to run it: the server's own file remains.
pub(crate) fn record(layout: &Layout, pid: u32) {
    let child = Child { pid, started: process::identity(pid).map(|identity| identity.started) };
    let written = serde_json::to_vec(&child).map_err(Into::into).and_then(|text| fs::write(&layout.child_file, text));
    if let Err(error) = written {
        tracing::warn!(path = %layout.child_file.display(), %error, "cannot record the nats-server's process");
    }
}

/// Forgets the server, which has ended.
pub(crate) fn forget(layout: &Layout) {
    for path in [&layout.child_file, &layout.pid_file] {
        let _ = fs::remove_file(path);
    }
}

/// Stops the orphan on a data directory that the caller has claimed.
pub(crate) async fn stop(layout: &Layout, timeout: Duration) -> Result<Option<u32>, Error> {
    let Some((pid, identity)) = find(layout) else { return Ok(None) };
    tracing::warn!(pid, data_dir = %layout.data_dir.display(), "stopping the nats-server that a killed owner left running");
    let failed = |source: std::io::Error| Error::Orphan { pid, source };
    let send = |signal| match process::signal(pid, signal) {
        // It ended between the look and the signal.
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => Ok(()),
        outcome => outcome,
    };
    send(Signal::TERM).map_err(failed)?;
    // A paused process acts on the signal only when it goes on.
    send(Signal::CONT).map_err(failed)?;
    if !process::gone(pid, &identity, timeout).await {
        send(Signal::KILL).map_err(failed)?;
        if !process::gone(pid, &identity, KILL_TIMEOUT).await {
            return Err(failed(std::io::Error::new(std::io::ErrorKind::TimedOut, "it survives SIGKILL")));
        }
    }
    forget(layout);
    Ok(Some(pid))
}

fn find(layout: &Layout) -> Option<(u32, Identity)> {
    let ours = |pid: u32| {
        process::identity(pid).filter(|identity| identity.was_given(&layout.config)).map(|identity| (pid, identity))
    };
    let recorded: Option<Child> = fs::read(&layout.child_file).ok().and_then(|text| serde_json::from_slice(&text).ok());
    let by_record = recorded.and_then(|child| {
        ours(child.pid).filter(|(_, identity)| child.started.is_none_or(|started| started == identity.started))
    });
    by_record.or_else(|| {
        let text = fs::read_to_string(&layout.pid_file).ok()?;
        ours(text.trim().parse().ok()?)
    })
}
