//! A built binary as a child process.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::wait::wait_for;

/// How long a dropped process may take to end by itself, which lets it stop the processes it has started.
const DROP_GRACE: Duration = Duration::from_secs(3);

/// The number of lines of each output that a panic shows.
const TAIL_LINES: usize = 40;

/// What is to be run; [`Process::command`] makes one.
#[derive(Debug)]
pub struct ProcessBuilder {
    program: PathBuf,
    command: Command,
}

impl ProcessBuilder {
    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(arguments);
        self
    }

    /// Sets an environment variable; the others are the test's.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Sets environment variables.
    #[must_use]
    pub fn envs(mut self, variables: impl IntoIterator<Item = (impl AsRef<OsStr>, impl AsRef<OsStr>)>) -> Self {
        self.command.envs(variables);
        self
    }

    /// Withholds one of the test's environment variables.
    #[must_use]
    pub fn env_remove(mut self, name: impl AsRef<OsStr>) -> Self {
        self.command.env_remove(name);
        self
    }

    /// Sets the working directory.
    #[must_use]
    pub fn current_dir(mut self, directory: impl AsRef<Path>) -> Self {
        self.command.current_dir(directory);
        self
    }

    /// Starts the process. Its input is empty.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(mut self) -> Process {
        let directory = TempDir::with_prefix("baton-process-").expect("a temporary directory can be created");
        let output = |name: &str| File::create(directory.path().join(name)).expect("a file can be created in it");
        self.command.stdin(Stdio::null()).stdout(output(STDOUT)).stderr(output(STDERR)).kill_on_drop(true);
        let child = self.command.spawn();
        let child = child.unwrap_or_else(|error| panic!("cannot start {}: {error}", self.program.display()));
        Process { program: self.program, child, status: None, directory }
    }
}

const STDOUT: &str = "stdout";
const STDERR: &str = "stderr";

/// A child process whose output goes to files.
///
/// Dropping it sends SIGTERM and, if that does not end it soon, SIGKILL; a process that has started others, as `baton`
/// starts a nats-server, would leave them behind if it were killed at once. [`Process::kill`] does kill at once.
#[derive(Debug)]
pub struct Process {
    program: PathBuf,
    child: Child,
    status: Option<ExitStatus>,
    directory: TempDir,
}

impl Process {
    /// Prepares to run a program.
    pub fn command(program: impl Into<PathBuf>) -> ProcessBuilder {
        let program = program.into();
        ProcessBuilder { command: Command::new(&program), program }
    }

    /// Runs a program with these arguments.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(program: impl Into<PathBuf>, arguments: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        let arguments: Vec<OsString> = arguments.into_iter().map(Into::into).collect();
        Self::command(program).args(arguments).start()
    }

    /// The process's number; `None` when its end has been noticed.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// What it has written to its standard output so far.
    pub fn stdout(&self) -> String {
        self.output(STDOUT)
    }

    /// What it has written to its standard error so far.
    pub fn stderr(&self) -> String {
        self.output(STDERR)
    }

    /// The last lines of both outputs, as panics show them.
    pub fn log_tail(&self) -> String {
        let tail = |text: String| {
            let lines: Vec<&str> = text.lines().collect();
            lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
        };
        let program = self.program.display();
        format!("{program}, stdout:\n{}\n{program}, stderr:\n{}", tail(self.stdout()), tail(self.stderr()))
    }

    /// Whether it is still running.
    ///
    /// # Panics
    /// When the system does not say.
    pub fn is_running(&mut self) -> bool {
        self.poll().is_none()
    }

    /// Waits until one of the outputs contains a text.
    ///
    /// # Panics
    /// When that does not happen in time, or when the process ends without, with the end of the outputs.
    pub async fn wait_for_output(&mut self, text: &str, deadline: Duration) {
        let end = Instant::now() + deadline;
        loop {
            // The end comes first: what was written before it must then be there.
            let ended = self.poll();
            if self.stdout().contains(text) || self.stderr().contains(text) {
                return;
            }
            assert!(ended.is_none(), "ended ({}) without writing {text:?}\n{}", shown(ended), self.log_tail());
            assert!(Instant::now() < end, "in vain for {deadline:?}: output {text:?}\n{}", self.log_tail());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until the process ends.
    ///
    /// # Panics
    /// When it does not in time, with the end of its outputs.
    pub async fn wait_exit(&mut self, deadline: Duration) -> ExitStatus {
        if let Ok(status) = tokio::time::timeout(deadline, self.child.wait()).await {
            let status = status.unwrap_or_else(|error| panic!("cannot wait for {}: {error}", self.program.display()));
            self.status = Some(status);
            return status;
        }
        panic!("still running after {deadline:?}\n{}", self.log_tail());
    }

    /// Waits until the process ends well.
    ///
    /// # Panics
    /// When it ends otherwise or not in time, with the end of its outputs.
    pub async fn wait_success(&mut self, deadline: Duration) {
        let status = self.wait_exit(deadline).await;
        assert!(status.success(), "ended badly ({status})\n{}", self.log_tail());
    }

    /// Kills it (SIGKILL) and waits until it is gone.
    ///
    /// # Panics
    /// When the system refuses.
    pub async fn kill(&mut self) {
        if self.poll().is_some() {
            return;
        }
        self.child.kill().await.unwrap_or_else(|error| panic!("cannot kill {}: {error}", self.program.display()));
        self.poll();
    }

    /// Asks it to end (SIGTERM) and does not wait.
    ///
    /// # Panics
    /// When it has ended, with the end of its outputs.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Does what Ctrl-C does (SIGINT) and does not wait.
    ///
    /// # Panics
    /// When it has ended, with the end of its outputs.
    pub fn interrupt(&self) {
        self.signal(Signal::INT);
    }

    /// Freezes it (SIGSTOP) and, where the system tells, waits until it stands still.
    ///
    /// # Panics
    /// When it has ended, with the end of its outputs.
    pub async fn pause(&self) {
        let pid = self.signal(Signal::STOP);
        if cfg!(target_os = "linux") {
            wait_for("the process stands still", Duration::from_secs(10), async || {
                let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
                // The name of the program precedes the state, in parentheses, and may contain anything.
                let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
                if matches!(state, Some('T' | 't' | 'Z') | None) { Ok(()) } else { Err(state) }
            })
            .await;
        }
    }

    /// Lets a frozen process go on (SIGCONT).
    ///
    /// # Panics
    /// When it has ended, with the end of its outputs.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// The number stays the child's until its end has been awaited, so the signal cannot reach another process.
    fn signal(&self, signal: Signal) -> u32 {
        let Some(pid) = self.child.id() else { panic!("it has already ended\n{}", self.log_tail()) };
        if let Err(error) = send(pid, signal) {
            panic!("cannot signal {}: {error}", self.program.display());
        }
        pid
    }

    fn poll(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            let status = self.child.try_wait();
            self.status = status.unwrap_or_else(|error| panic!("cannot wait for {}: {error}", self.program.display()));
        }
        self.status
    }

    fn output(&self, name: &str) -> String {
        fs::read(self.directory.path().join(name))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    fn ends_before(&mut self, deadline: Instant) -> bool {
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        true
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log_tail());
        }
        let Some(pid) = self.child.id() else { return };
        // Errors mean that it is ending already.
        let _ = send(pid, Signal::TERM);
        let _ = send(pid, Signal::CONT);
        if !self.ends_before(Instant::now() + DROP_GRACE) {
            let _ = self.child.start_kill();
            self.ends_before(Instant::now() + DROP_GRACE);
        }
    }
}

fn send(pid: u32, signal: Signal) -> std::io::Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(std::io::ErrorKind::InvalidInput)?;
    Ok(kill_process(pid, signal)?)
}

fn shown(status: Option<ExitStatus>) -> String {
    status.map(|status| status.to_string()).unwrap_or_default()
}
