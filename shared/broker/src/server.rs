//! A running nats-server and the process it lives in.

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::config::{self, Options};
use crate::launch::{blocking, retry_while_busy};
use crate::layout::{Claim, Layout, claim};
use crate::{orphan, process};

/// How often a starting server is looked at. A start takes about 50 ms.
const POLL: Duration = Duration::from_millis(5);

/// How long one look at a starting server may take.
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a process may take to die of SIGKILL, or to stop at SIGSTOP.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// The variable that tells the server how many threads may run at a time: half of the cores, unless it is set already.
const GO_THREADS: &str = "GOMAXPROCS";

/// The number of lines of the log that an error shows.
const TAIL_LINES: usize = 20;

/// A log longer than this is put aside at the next start.
const LOG_LIMIT: u64 = 16 * 1024 * 1024;

/// The server's greeting is about 400 bytes; one longer than this comes from something else.
const GREETING_LIMIT: u64 = 64 * 1024;

/// A nats-server on a data directory. Dropping it kills the server; [`Broker::stop`] lets it end in order.
///
/// The data directory stays claimed as long as this value lives, also between a stop and a restart.
#[derive(Debug)]
pub struct Broker {
    program: PathBuf,
    options: Options,
    layout: Layout,
    child: Option<Child>,
    /// Where the log of the present process begins.
    log_start: u64,
    endpoint: Endpoint,
    replaced_orphan: Option<u32>,
    /// Declared last, hence released last.
    _claim: Claim,
}

/// The ports the server got.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Endpoint {
    port: u16,
    monitor_port: Option<u16>,
}

/// How a server ended that was asked to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// It was not running.
    AlreadyEnded,
    /// By itself, after SIGTERM.
    Gracefully,
    /// By SIGKILL, because it did not end in time.
    Killed,
}

impl Broker {
    /// Starts a server and waits until it serves clients, and JetStream if that is on.
    ///
    /// Creates the data directory if there is none. Stops the orphan of a killed owner first.
    ///
    /// # Errors
    /// Says why the server does not run, with the end of its log where there is one.
    pub async fn start(
        program: impl Into<PathBuf>,
        data_dir: impl AsRef<Path>,
        options: Options,
    ) -> Result<Self, Error> {
        let data_dir = data_dir.as_ref().to_owned();
        let (layout, claim) = blocking(move || claim(&data_dir)).await?;
        let replaced_orphan = orphan::stop(&layout, options.stop_timeout).await?;
        let mut broker = Self {
            program: program.into(),
            options,
            layout,
            child: None,
            log_start: 0,
            endpoint: Endpoint::default(),
            replaced_orphan,
            _claim: claim,
        };
        broker.launch().await?;
        Ok(broker)
    }

    /// Where clients on this machine connect.
    pub fn client_url(&self) -> String {
        format!("nats://{}", SocketAddr::new(self.options.reachable_host(), self.endpoint.port))
    }

    /// Where the HTTP monitoring answers, if it was asked for.
    pub fn monitor_url(&self) -> Option<String> {
        let port = self.endpoint.monitor_port?;
        Some(format!("http://{}", SocketAddr::new(self.options.reachable_host(), port)))
    }

    /// The port clients connect to.
    pub fn port(&self) -> u16 {
        self.endpoint.port
    }

    /// The server's process; `None` when it has ended and that has been noticed.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    /// The data directory, as an absolute path.
    pub fn data_dir(&self) -> &Path {
        &self.layout.data_dir
    }

    /// The configuration file.
    pub fn config_path(&self) -> &Path {
        &self.layout.config
    }

    /// The file the server logs to.
    pub fn log_path(&self) -> &Path {
        &self.layout.log
    }

    /// The last lines the present server process logged.
    pub fn log_tail(&self, lines: usize) -> String {
        log_tail(&self.layout.log, self.log_start, lines)
    }

    /// The server of a killed owner that had to be stopped before this one could start.
    pub fn replaced_orphan(&self) -> Option<u32> {
        self.replaced_orphan
    }

    /// Waits until the server ends by itself. May be cancelled and called again.
    ///
    /// # Errors
    /// [`Error::NotRunning`] when there is none, [`Error::Process`] when the system does not say.
    pub async fn exited(&mut self) -> Result<ExitStatus, Error> {
        let child = self.child.as_mut().ok_or(Error::NotRunning)?;
        let status = child.wait().await.map_err(|source| Error::Process { action: "wait for", source })?;
        Ok(status)
    }

    /// Asks the server to end (SIGTERM, upon which it closes its streams in order), and kills it if it does not in time.
    ///
    /// # Errors
    /// [`Error::Process`] when the system refuses.
    pub async fn stop(&mut self) -> Result<Stopped, Error> {
        let Some(child) = self.child.as_mut() else { return Ok(Stopped::AlreadyEnded) };
        let outcome = end(child, self.options.stop_timeout).await?;
        self.child = None;
        orphan::forget(&self.layout);
        Ok(outcome)
    }

    /// Kills the server (SIGKILL) and waits until it is gone.
    ///
    /// # Errors
    /// [`Error::Process`] when the system refuses.
    pub async fn kill(&mut self) -> Result<(), Error> {
        let Some(child) = self.child.as_mut() else { return Ok(()) };
        child.kill().await.map_err(|source| Error::Process { action: "kill", source })?;
        self.child = None;
        orphan::forget(&self.layout);
        Ok(())
    }

    /// Starts the server again: on the same data directory, at the same port. Stops it first if it still runs.
    ///
    /// # Errors
    /// As for [`Broker::start`].
    pub async fn restart(&mut self) -> Result<(), Error> {
        self.stop().await?;
        self.options.port = self.endpoint.port;
        self.options.monitor_port = self.endpoint.monitor_port;
        let deadline = Instant::now() + self.options.start_timeout;
        loop {
            match self.launch().await {
                // While the server was down, a connection of somebody else may have got its port for a moment.
                Err(Error::PortInUse { .. }) if Instant::now() < deadline => tokio::time::sleep(10 * POLL).await,
                outcome => return outcome,
            }
        }
    }

    /// Freezes the server (SIGSTOP) and waits until it stands still. The kernel goes on accepting connections for it.
    ///
    /// # Errors
    /// [`Error::NotRunning`], or [`Error::Process`] when the system refuses.
    pub async fn pause(&self) -> Result<(), Error> {
        let pid = self.signal(Signal::STOP, "pause")?;
        process::stopped(pid, KILL_TIMEOUT).await;
        Ok(())
    }

    /// Lets a frozen server go on (SIGCONT).
    ///
    /// # Errors
    /// [`Error::NotRunning`], or [`Error::Process`] when the system refuses.
    pub fn resume(&self) -> Result<(), Error> {
        self.signal(Signal::CONT, "resume").map(drop)
    }

    /// The number stays the child's until its end has been awaited, so the signal cannot reach another process.
    fn signal(&self, signal: Signal, action: &'static str) -> Result<u32, Error> {
        let pid = self.pid().ok_or(Error::NotRunning)?;
        process::signal(pid, signal).map_err(|source| Error::Process { action, source })?;
        Ok(pid)
    }

    /// Starts the process and waits until it is ready; a process that does not get there is killed.
    async fn launch(&mut self) -> Result<(), Error> {
        let (layout, options) = (self.layout.clone(), self.options.clone());
        let log = blocking(move || prepare(&layout, &options))
            .await
            .map_err(|source| Error::DataDir { path: self.layout.data_dir.clone(), source })?;
        self.log_start = log.metadata().map_or(0, |data| data.len());

        let spawn = || {
            let mut command = Command::new(&self.program);
            command.arg("-c").arg(&self.layout.config).kill_on_drop(true).stdin(Stdio::null());
            command.stdout(log.try_clone()?).stderr(log.try_clone()?);
            if self.options.own_process_group {
                command.process_group(0);
            }
            // As many threads as there are cores make each message wait for one of them to wake up; others want to run, too.
            if std::env::var_os(GO_THREADS).is_none() {
                let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
                command.env(GO_THREADS, cores.div_ceil(2).to_string());
            }
            command.spawn()
        };
        let spawned = retry_while_busy(spawn).await;
        let child = spawned.map_err(|source| Error::Spawn { program: self.program.clone(), source })?;
        if let Some(pid) = child.id() {
            orphan::record(&self.layout, pid);
        }
        self.child = Some(child);
        match self.ready().await {
            Ok(endpoint) => {
                self.endpoint = endpoint;
                Ok(())
            }
            Err(error) => {
                self.kill().await?;
                Err(error)
            }
        }
    }

    /// Looks at the starting server until it serves, ends or takes too long. It tells nobody when it is ready.
    async fn ready(&mut self) -> Result<Endpoint, Error> {
        let deadline = Instant::now() + self.options.start_timeout;
        loop {
            let child = self.child.as_mut().ok_or(Error::NotRunning)?;
            if let Some(status) = child.try_wait().map_err(|source| Error::Process { action: "wait for", source })? {
                return Err(self.ended(status));
            }
            let missing = match self.look().await {
                Ok(endpoint) => return Ok(endpoint),
                Err(missing) => missing,
            };
            if Instant::now() >= deadline {
                let (waited, log, tail) =
                    (self.options.start_timeout, self.layout.log.clone(), self.log_tail(TAIL_LINES));
                return Err(Error::NotReady { waited, missing, log, tail });
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// One look: has the server told its ports, and does it greet as it should? The error is what is missing.
    async fn look(&self) -> Result<Endpoint, String> {
        let ports = self.pid().and_then(|pid| read_ports(&self.layout.ports_dir, pid));
        let endpoint = ports.ok_or("it has not told its ports")?;
        let address = SocketAddr::new(self.options.reachable_host(), endpoint.port);
        let greeting = tokio::time::timeout(LOOK_TIMEOUT, read_greeting(address))
            .await
            .map_err(|_| format!("{address} does not greet"))?
            .map_err(|error| format!("{address} does not greet: {error}"))?;
        // JetStream has read its streams before the server listens, unless that failed and it runs without.
        if self.options.jetstream && !greeting.jetstream {
            return Err("JetStream is not up".to_owned());
        }
        Ok(endpoint)
    }

    fn ended(&self, status: ExitStatus) -> Error {
        let (log, tail) = (self.layout.log.clone(), self.log_tail(TAIL_LINES));
        let in_use =
            |line: &str| Some(line.split_once(": bind: address already in use")?.0.rsplit(' ').next()?.to_owned());
        match tail.lines().find_map(in_use) {
            Some(address) => Error::PortInUse { address },
            None => Error::Ended { status, log, tail },
        }
    }
}

impl Drop for Broker {
    /// Waits for the end, too: what follows may remove the data directory.
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let _ = child.start_kill();
        let deadline = Instant::now() + KILL_TIMEOUT;
        while matches!(child.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        orphan::forget(&self.layout);
    }
}

/// Lets a server end by itself, or kills it.
async fn end(child: &mut Child, timeout: Duration) -> Result<Stopped, Error> {
    let failed = |action| move |source| Error::Process { action, source };
    if child.try_wait().map_err(failed("wait for"))?.is_some() {
        return Ok(Stopped::AlreadyEnded);
    }
    if let Some(pid) = child.id() {
        process::signal(pid, Signal::TERM).map_err(failed("stop"))?;
        // A paused process acts on the signal only when it goes on.
        process::signal(pid, Signal::CONT).map_err(failed("stop"))?;
    }
    match tokio::time::timeout(timeout, child.wait()).await {
        Ok(status) => status.map(|_| Stopped::Gracefully).map_err(failed("wait for")),
        Err(_) => child.kill().await.map(|()| Stopped::Killed).map_err(failed("kill")),
    }
}

/// Writes what the server reads, removes what an earlier one wrote, and opens the log.
fn prepare(layout: &Layout, options: &Options) -> io::Result<File> {
    match fs::remove_dir_all(&layout.ports_dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => fs::create_dir(&layout.ports_dir)?,
    }
    config::write(layout, options)?;
    if layout.log.metadata().is_ok_and(|data| data.len() > LOG_LIMIT) {
        fs::rename(&layout.log, &layout.old_log)?;
    }
    File::options().create(true).append(true).open(&layout.log)
}

/// Reads the file in which the server tells its ports; `None` while it is missing or half written.
fn read_ports(directory: &Path, pid: u32) -> Option<Endpoint> {
    #[derive(Deserialize)]
    struct Ports {
        nats: Vec<String>,
        #[serde(default)]
        monitoring: Vec<String>,
    }
    let port = |urls: &[String]| urls.first()?.rsplit(':').next()?.parse::<u16>().ok();
    let suffix = format!("_{pid}.ports");
    let file =
        fs::read_dir(directory).ok()?.flatten().find(|entry| entry.file_name().to_string_lossy().ends_with(&suffix))?;
    let ports: Ports = serde_json::from_slice(&fs::read(file.path()).ok()?).ok()?;
    Some(Endpoint { port: port(&ports.nats)?, monitor_port: port(&ports.monitoring) })
}

/// What the server says first to everybody who connects.
#[derive(Deserialize)]
struct Greeting {
    #[serde(default)]
    jetstream: bool,
}

async fn read_greeting(address: SocketAddr) -> io::Result<Greeting> {
    let stream = TcpStream::connect(address).await?;
    let mut line = String::new();
    BufReader::new(stream.take(GREETING_LIMIT)).read_line(&mut line).await?;
    let unexpected = || io::Error::new(io::ErrorKind::InvalidData, format!("it says {:?}", line.trim()));
    let text = line.strip_prefix("INFO ").ok_or_else(unexpected)?;
    serde_json::from_str(text).map_err(|_| unexpected())
}

fn log_tail(path: &Path, start: u64, lines: usize) -> String {
    let read = || {
        let mut file = File::open(path)?;
        file.seek(io::SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok::<Vec<u8>, io::Error>(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// A server cannot be started, stopped or signalled.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The data directory cannot be used.
    #[error("cannot use the data directory {path}", path = .path.display())]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Another [`Broker`] has the data directory.
    #[error("the data directory {path} is in use by {owner}; stop that first or name another directory",
        path = .data_dir.display(), owner = owner(*.pid))]
    InUse {
        /// The directory.
        data_dir: PathBuf,
        /// The process that has it, if it has said so already.
        pid: Option<u32>,
    },
    /// A killed owner's server cannot be stopped.
    #[error("cannot stop the nats-server (process {pid}) that a killed owner left running on the data directory")]
    Orphan {
        /// The process.
        pid: u32,
        /// What the system says.
        source: io::Error,
    },
    /// The executable cannot be run.
    #[error("cannot run {program}", program = .program.display())]
    Spawn {
        /// The executable.
        program: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Somebody else listens where the server should.
    #[error("the address {address} is already in use; choose another port, or use the server there with --server")]
    PortInUse {
        /// The address.
        address: String,
    },
    /// The server ended instead of getting ready.
    #[error("nats-server ended before it was ready ({status}); the end of its log, {log}:\n{tail}", log = .log.display())]
    Ended {
        /// How it ended.
        status: ExitStatus,
        /// The log.
        log: PathBuf,
        /// The last lines of the log.
        tail: String,
    },
    /// The server runs, but does not serve.
    #[error("nats-server was not ready within {waited:?}: {missing}; the end of its log, {log}:\n{tail}", log = .log.display())]
    NotReady {
        /// How long was waited.
        waited: Duration,
        /// What it lacked at the last look.
        missing: String,
        /// The log.
        log: PathBuf,
        /// The last lines of the log.
        tail: String,
    },
    /// There is no process to do this to.
    #[error("the nats-server is not running")]
    NotRunning,
    /// The system refused to do something to the process.
    #[error("cannot {action} the nats-server")]
    Process {
        /// What was to be done.
        action: &'static str,
        /// What the system says.
        source: io::Error,
    },
}

fn owner(pid: Option<u32>) -> String {
    pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
}
