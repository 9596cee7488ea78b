//! What the server is told: the options and the configuration file made of them.

use std::fmt::Write;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::layout::Layout;

/// The server itself warns above this.
const DEFAULT_MAX_PAYLOAD: u32 = 8 * 1024 * 1024;

/// A broker on a laptop should not take the whole disk, however empty that is.
const FILE_STORE_CEILING: u64 = 10 * 1024 * 1024 * 1024;

/// What an acknowledgement of the server outlives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// The death of the server's process. The server syncs the disk every two minutes, so a power loss may take back
    /// what was acknowledged since.
    #[default]
    Process,
    /// The loss of power: every write is synced before it is acknowledged. `docs/durability.md` tells what that costs.
    Power,
}

impl FromStr for Durability {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "process" => Ok(Self::Process),
            "power" => Ok(Self::Power),
            _ => Err(format!("{text:?} is not a durability; there are `process` and `power`")),
        }
    }
}

/// How a server is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The address it listens at.
    pub host: IpAddr,
    /// The port it listens at; 0 means any free one, which a restart keeps.
    pub port: u16,
    /// What an acknowledgement outlives.
    pub durability: Durability,
    /// Whether JetStream is on.
    pub jetstream: bool,
    /// The largest message, in bytes.
    pub max_payload: u32,
    /// The largest size of all file streams together, in bytes. `None` stays below the disk: 80 % of what is free or
    /// already the streams', at most 10 GiB. A full store refuses writes cleanly; a full disk wedges it.
    pub max_file_store: Option<u64>,
    /// The port of the HTTP monitoring, if there shall be any; 0 means any free one, which a restart keeps.
    pub monitor_port: Option<u16>,
    /// The server's name.
    pub server_name: String,
    /// More configuration, in the server's own language (accounts, users, permissions); it ends the file.
    pub extra_config: String,
    /// Puts the server into a process group of its own, so that Ctrl-C in a terminal reaches only its owner, which can
    /// then drain before it stops the server.
    pub own_process_group: bool,
    /// How long the server may take until it is ready, which includes reading its streams.
    pub start_timeout: Duration,
    /// How long the server may take to stop by itself.
    pub stop_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            host: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 0,
            durability: Durability::default(),
            jetstream: true,
            max_payload: DEFAULT_MAX_PAYLOAD,
            max_file_store: None,
            monitor_port: None,
            server_name: "baton".to_owned(),
            extra_config: String::new(),
            own_process_group: true,
            start_timeout: Duration::from_secs(60),
            stop_timeout: Duration::from_secs(20),
        }
    }
}

impl Options {
    /// The address a client on this machine connects to.
    pub(crate) fn reachable_host(&self) -> IpAddr {
        match self.host {
            IpAddr::V4(host) if host.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(host) if host.is_unspecified() => IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
            host => host,
        }
    }
}

/// Writes the configuration file, by a rename, since an orphan might be reading the old one.
pub(crate) fn write(layout: &Layout, options: &Options) -> io::Result<()> {
    let max_file_store = match options.max_file_store {
        Some(limit) => limit,
        None if options.jetstream => default_file_store(layout)?,
        None => 0,
    };
    let text = render(layout, options, max_file_store)?;
    let mut file = tempfile::NamedTempFile::new_in(&layout.data_dir)?;
    io::Write::write_all(&mut file, text.as_bytes())?;
    file.persist(&layout.config).map_err(|error| error.error)?;
    Ok(())
}

fn render(layout: &Layout, options: &Options, max_file_store: u64) -> io::Result<String> {
    let mut text = String::from("# Written by Baton at every start; changes are lost.\n");
    let mut line = |line: std::fmt::Arguments<'_>| {
        // Writing into a string cannot fail.
        let _ = writeln!(text, "{line}");
    };
    line(format_args!("server_name: {}", quoted(&options.server_name)?));
    line(format_args!("listen: {}", address(options.host, options.port)));
    if let Some(port) = options.monitor_port {
        line(format_args!("http: {}", address(options.host, port)));
    }
    line(format_args!("max_payload: {}", options.max_payload));
    line(format_args!("pid_file: {}", quoted_path(&layout.pid_file)?));
    line(format_args!("ports_file_dir: {}", quoted_path(&layout.ports_dir)?));
    if options.jetstream {
        line(format_args!("jetstream {{"));
        line(format_args!("  store_dir: {}", quoted_path(&layout.data_dir)?));
        line(format_args!("  max_file_store: {max_file_store}"));
        match options.durability {
            Durability::Process => {
                line(format_args!("  # The default sync_interval: an acknowledgement outlives the process."));
            }
            Durability::Power => {
                line(format_args!("  # An acknowledgement outlives the loss of power."));
                line(format_args!("  sync_interval: always"));
            }
        }
        line(format_args!("}}"));
    }
    if !options.extra_config.is_empty() {
        line(format_args!("{}", options.extra_config.trim_end()));
    }
    Ok(text)
}

/// `-1` is the server's word for any free port.
fn address(host: IpAddr, port: u16) -> String {
    let port = if port == 0 { -1 } else { i32::from(port) };
    match host {
        IpAddr::V4(host) => format!("\"{host}:{port}\""),
        IpAddr::V6(host) => format!("\"[{host}]:{port}\""),
    }
}

fn quoted_path(path: &Path) -> io::Result<String> {
    path.to_str()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("{} is not UTF-8", path.display())))
        .and_then(quoted)
}

fn quoted(text: &str) -> io::Result<String> {
    if text.chars().any(char::is_control) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{text:?} contains a control character")));
    }
    Ok(format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")))
}

fn default_file_store(layout: &Layout) -> io::Result<u64> {
    let disk = rustix::fs::statvfs(&layout.data_dir)?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    Ok(file_store_limit(free, size(&layout.store_dir())))
}

/// The limit counts what the streams already hold, so that goes to what is free.
fn file_store_limit(free: u64, used: u64) -> u64 {
    (free.saturating_add(used) / 5 * 4).min(FILE_STORE_CEILING)
}

/// The size of the files below a directory; what cannot be read counts as nothing.
fn size(directory: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(directory) else { return 0 };
    let size_of = |entry: fs::DirEntry| match entry.metadata() {
        Ok(data) if data.is_dir() => size(&entry.path()),
        Ok(data) => data.len(),
        Err(_) => 0,
    };
    entries.flatten().map(size_of).sum()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use expect_test::{Expect, expect};

    use super::{Durability, FILE_STORE_CEILING, Options, file_store_limit, render};
    use crate::layout::Layout;

    fn check(options: &Options, expected: &Expect) {
        let layout = Layout::new(PathBuf::from("/data/\"my\" nats"));
        expected.assert_eq(&render(&layout, options, 1_000_000).unwrap());
    }

    #[test]
    fn by_default_an_acknowledgement_outlives_the_process() {
        check(
            &Options::default(),
            &expect![[r##"
            # Written by Baton at every start; changes are lost.
            server_name: "baton"
            listen: "127.0.0.1:-1"
            max_payload: 8388608
            pid_file: "/data/\"my\" nats/nats-server.pid"
            ports_file_dir: "/data/\"my\" nats/ports"
            jetstream {
              store_dir: "/data/\"my\" nats"
              max_file_store: 1000000
              # The default sync_interval: an acknowledgement outlives the process.
            }
        "##]],
        );
    }

    #[test]
    fn power_syncs_always() {
        let options =
            Options { durability: Durability::Power, port: 4222, monitor_port: Some(0), ..Options::default() };
        check(
            &options,
            &expect![[r##"
            # Written by Baton at every start; changes are lost.
            server_name: "baton"
            listen: "127.0.0.1:4222"
            http: "127.0.0.1:-1"
            max_payload: 8388608
            pid_file: "/data/\"my\" nats/nats-server.pid"
            ports_file_dir: "/data/\"my\" nats/ports"
            jetstream {
              store_dir: "/data/\"my\" nats"
              max_file_store: 1000000
              # An acknowledgement outlives the loss of power.
              sync_interval: always
            }
        "##]],
        );
    }

    #[test]
    fn extra_configuration_ends_the_file() {
        let extra_config = "accounts {\n  core: { jetstream: enabled }\n}\n".to_owned();
        let host = "::1".parse().unwrap();
        check(
            &Options { host, jetstream: false, extra_config, ..Options::default() },
            &expect![[r##"
            # Written by Baton at every start; changes are lost.
            server_name: "baton"
            listen: "[::1]:-1"
            max_payload: 8388608
            pid_file: "/data/\"my\" nats/nats-server.pid"
            ports_file_dir: "/data/\"my\" nats/ports"
            accounts {
              core: { jetstream: enabled }
            }
        "##]],
        );
    }

    #[test]
    fn a_line_break_cannot_enter_the_file() {
        let layout = Layout::new(PathBuf::from("/data"));
        let options = Options { server_name: "a\"\nport: 1".to_owned(), ..Options::default() };
        let error = render(&layout, &options, 0).unwrap_err();
        expect![[r#""a\"\nport: 1" contains a control character"#]].assert_eq(&error.to_string());
    }

    #[test]
    fn the_store_stays_below_the_disk() {
        assert_eq!(file_store_limit(1000, 0), 800);
        assert_eq!(file_store_limit(0, 1000), 800);
        assert_eq!(file_store_limit(u64::MAX, u64::MAX), FILE_STORE_CEILING);
    }
}
