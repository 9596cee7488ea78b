//! Other processes: who they are, and signals to them.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How often a process is looked at that nobody is told about.
const POLL: Duration = Duration::from_millis(5);

/// A living process, as far as it can be told from a later one with the same number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// When it started, in the system's own words.
    pub(crate) started: String,
    arguments: Vec<String>,
}

impl Identity {
    /// Whether the process was started with this path as an argument.
    pub(crate) fn was_given(&self, path: &Path) -> bool {
        let path = path.to_string_lossy();
        if cfg!(target_os = "linux") {
            self.arguments.iter().any(|argument| *argument == path)
        } else {
            // `ps` does not separate the arguments.
            self.arguments.iter().any(|line| line.contains(path.as_ref()))
        }
    }
}

/// Who has this number now; `None` if nobody lives under it. A zombie does not live.
#[cfg(target_os = "linux")]
pub(crate) fn identity(pid: u32) -> Option<Identity> {
    let (state, started) = stat(pid)?;
    if matches!(state, 'Z' | 'X') {
        return None;
    }
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let arguments = command.split(|byte| *byte == 0).map(|part| String::from_utf8_lossy(part).into_owned()).collect();
    Some(Identity { started, arguments })
}

/// Who has this number now; `None` if nobody lives under it.
#[cfg(not(target_os = "linux"))]
pub(crate) fn identity(pid: u32) -> Option<Identity> {
    let ask = |what: &str| {
        let output = std::process::Command::new("ps").args(["-o", what, "-p", &pid.to_string()]).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        (!text.is_empty()).then_some(text)
    };
    Some(Identity { started: ask("lstart=")?, arguments: vec![ask("command=")?] })
}

/// The state and the start time. The name in the second field may contain anything, so fields count from its end.
#[cfg(target_os = "linux")]
fn stat(pid: u32) -> Option<(char, String)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text.get(text.rfind(')')? + 1..)?.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let started = fields.nth(18)?.to_owned();
    Some((state, started))
}

/// Sends a signal to a process that this one started or has identified.
pub(crate) fn signal(pid: u32, signal: Signal) -> io::Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not a process number"))?;
    Ok(kill_process(pid, signal)?)
}

/// Waits until the process that was identified is gone; `false` if it is still there at the end.
pub(crate) async fn gone(pid: u32, who: &Identity, timeout: Duration) -> bool {
    let deadline = Instant::now() + timeout;
    while identity(pid).is_some_and(|now| now.started == who.started) {
        if Instant::now() >= deadline {
            return false;
        }
        tokio::time::sleep(POLL).await;
    }
    true
}

/// Waits until a process that was sent SIGSTOP has stopped; the signal alone returns while its threads still run.
#[cfg(target_os = "linux")]
pub(crate) async fn stopped(pid: u32, timeout: Duration) {
    let deadline = Instant::now() + timeout;
    while stat(pid).is_some_and(|(state, _)| !matches!(state, 'T' | 't' | 'Z' | 'X')) && Instant::now() < deadline {
        tokio::time::sleep(POLL).await;
    }
}

/// Without `/proc` nothing cheap tells when a process has stopped; the signal takes effect soon.
#[cfg(not(target_os = "linux"))]
pub(crate) async fn stopped(_pid: u32, _timeout: Duration) {}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::identity;

    #[test]
    fn a_living_process_is_known_by_its_arguments() {
        let path = std::env::args().next().unwrap();
        let me = identity(std::process::id()).unwrap();
        assert!(me.was_given(Path::new(&path)));
        assert!(!me.was_given(Path::new("/no/such/argument")));
        assert_eq!(identity(std::process::id()), Some(me));
    }

    #[test]
    fn a_dead_process_is_nobody() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id();
        child.wait().unwrap();
        assert_eq!(identity(pid), None);
    }
}
