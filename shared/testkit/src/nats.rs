//! A real nats-server for one test.

use std::path::Path;

use async_nats::{Client, ConnectOptions};
use baton_broker::{Broker, Finder, Found, Options, Stopped};
use tempfile::TempDir;
use tokio::sync::OnceCell;

/// The number of lines of the server's log that a failed test shows.
pub(crate) const TAIL_LINES: usize = 30;

/// A nats-server on a free port with a data directory of its own, which goes when this is dropped.
///
/// The server is found as Baton finds it, and fetched on a machine that has none.
#[derive(Debug)]
pub struct NatsServer {
    broker: Broker,
    /// Declared after the broker, hence removed when its process has ended.
    _directory: TempDir,
}

impl NatsServer {
    /// Starts a server with JetStream, on any free port.
    ///
    /// # Panics
    /// When that fails, with the reason.
    pub async fn start() -> Self {
        Self::start_with(Options::default()).await
    }

    /// Starts a server with these options. It always stays in the test's process group, so that Ctrl-C ends it too.
    ///
    /// # Panics
    /// When that fails, with the reason.
    pub async fn start_with(options: Options) -> Self {
        let directory = TempDir::with_prefix("baton-nats-").expect("a temporary directory can be created");
        let options = Options { own_process_group: false, ..options };
        let broker = Broker::start(&found().await.path, directory.path(), options).await;
        let broker = broker.unwrap_or_else(|error| panic!("no nats-server for this test: {}", chain(&error)));
        Self { broker, _directory: directory }
    }

    /// Where clients connect.
    pub fn client_url(&self) -> String {
        self.broker.client_url()
    }

    /// Where the HTTP monitoring answers, if the options asked for it.
    pub fn monitor_url(&self) -> Option<String> {
        self.broker.monitor_url()
    }

    /// The port clients connect to.
    pub fn port(&self) -> u16 {
        self.broker.port()
    }

    /// The server's process; `None` while it is not running.
    pub fn pid(&self) -> Option<u32> {
        self.broker.pid()
    }

    /// The data directory.
    pub fn data_dir(&self) -> &Path {
        self.broker.data_dir()
    }

    /// The last lines of the server's log.
    pub fn log_tail(&self, lines: usize) -> String {
        self.broker.log_tail(lines)
    }

    /// Connects a new client.
    ///
    /// # Panics
    /// When the server does not take it.
    pub async fn connect(&self) -> Client {
        self.connect_with(ConnectOptions::new()).await
    }

    /// Connects a new client with these options.
    ///
    /// # Panics
    /// When the server does not take it.
    pub async fn connect_with(&self, options: ConnectOptions) -> Client {
        let url = self.client_url();
        options.connect(&url).await.unwrap_or_else(|error| panic!("cannot connect to {url}: {}", chain(&error)))
    }

    /// Lets the server end in order.
    ///
    /// # Panics
    /// When the system refuses.
    pub async fn stop(&mut self) -> Stopped {
        self.broker.stop().await.unwrap_or_else(|error| panic!("{}", chain(&error)))
    }

    /// Kills the server (SIGKILL) and waits until it is gone.
    ///
    /// # Panics
    /// When the system refuses.
    pub async fn kill(&mut self) {
        self.broker.kill().await.unwrap_or_else(|error| panic!("{}", chain(&error)));
    }

    /// Starts the server again, with its data and at its port; stops it first if it runs.
    ///
    /// # Panics
    /// When that fails, with the reason.
    pub async fn restart(&mut self) {
        self.broker.restart().await.unwrap_or_else(|error| panic!("{}", chain(&error)));
    }

    /// Freezes the server (SIGSTOP) and waits until it stands still.
    ///
    /// # Panics
    /// When it is not running.
    pub async fn pause(&self) {
        self.broker.pause().await.unwrap_or_else(|error| panic!("{}", chain(&error)));
    }

    /// Lets a frozen server go on (SIGCONT).
    ///
    /// # Panics
    /// When it is not running.
    pub fn resume(&self) {
        self.broker.resume().unwrap_or_else(|error| panic!("{}", chain(&error)));
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the end of the nats-server's log:\n{}", self.log_tail(TAIL_LINES));
        }
    }
}

/// Finds the server once a process.
pub(crate) async fn found() -> &'static Found {
    static FOUND: OnceCell<Found> = OnceCell::const_new();
    let find = async || Finder::from_env().find().await.unwrap_or_else(|error| panic!("{error}"));
    FOUND.get_or_init(find).await
}

/// An error with all its causes, on one line each.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}\n  caused by: {cause}"))
}
