//! What lies where in a data directory, and to whom the directory belongs.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::server::Error;

/// The paths in a data directory, which is absolute.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    pub(crate) data_dir: PathBuf,
    /// Names the server in the process list: the path is an argument of the server's and of nobody else's.
    pub(crate) config: PathBuf,
    pub(crate) log: PathBuf,
    pub(crate) old_log: PathBuf,
    /// Written by the server.
    pub(crate) pid_file: PathBuf,
    /// Written by the server's owner: the same number, with the time of its start.
    pub(crate) child_file: PathBuf,
    /// Written by the server: the ports it got.
    pub(crate) ports_dir: PathBuf,
    lock: PathBuf,
}

impl Layout {
    pub(crate) fn new(data_dir: PathBuf) -> Self {
        Self {
            config: data_dir.join("nats-server.conf"),
            log: data_dir.join("nats-server.log"),
            old_log: data_dir.join("nats-server.log.1"),
            pid_file: data_dir.join("nats-server.pid"),
            child_file: data_dir.join("child.json"),
            ports_dir: data_dir.join("ports"),
            lock: data_dir.join("lock"),
            data_dir,
        }
    }

    /// The server adds this name to the directory it is given.
    pub(crate) fn store_dir(&self) -> PathBuf {
        self.data_dir.join("jetstream")
    }
}

/// The right to a data directory. The kernel gives it back when the process dies, however that happens.
#[derive(Debug)]
pub(crate) struct Claim {
    file: File,
}

/// Creates the data directory if there is none and takes it for this process, or says which one has it.
pub(crate) fn claim(data_dir: &Path) -> Result<(Layout, Claim), Error> {
    let failed = |source: io::Error| Error::DataDir { path: data_dir.to_owned(), source };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(data_dir).map_err(failed)?;
    let layout = Layout::new(data_dir.canonicalize().map_err(failed)?);

    // The standard library opens with O_CLOEXEC: the server does not inherit the lock and cannot outlive us with it.
    let mut file =
        File::options().create(true).truncate(false).read(true).write(true).open(&layout.lock).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            let pid = file.read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
            return Err(Error::InUse { data_dir: layout.data_dir, pid });
        }
        Err(TryLockError::Error(source)) => return Err(failed(source)),
    }
    let mut name_owner = || {
        file.set_len(0)?;
        file.rewind()?;
        file.write_all(std::process::id().to_string().as_bytes())
    };
    name_owner().map_err(failed)?;
    Ok((layout, Claim { file }))
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Closing would not do if another thread were just forking: its child holds a copy until it executes.
        let _ = self.file.unlock();
    }
}
