//! How much memory this process takes of what it may take.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often it is looked at: it takes some ten microseconds.
const EACH: Duration = Duration::from_secs(1);

/// Looks once in a while.
#[derive(Debug)]
pub(crate) struct Memory {
    /// In bytes; none: it can not be known.
    limit: Option<u64>,
    looked: Option<Instant>,
}

impl Memory {
    pub(crate) fn new() -> Self {
        Self { limit: limit(Path::new("/")), looked: None }
    }

    /// Whether it is time to look.
    pub(crate) fn is_due(&mut self) -> bool {
        let is_due = self.looked.is_none_or(|at| at.elapsed() >= EACH);
        if is_due {
            self.looked = Some(Instant::now());
        }
        is_due
    }

    /// What is taken, in per cent of what may be; none where that can not be known.
    pub(crate) fn percent(&self) -> Option<u32> {
        percent(resident(Path::new("/"))?, self.limit?)
    }
}

fn percent(taken: u64, limit: u64) -> Option<u32> {
    u32::try_from(taken.saturating_mul(100).checked_div(limit)?).ok()
}

/// What this process has in memory.
fn resident(root: &Path) -> Option<u64> {
    kilobytes(&fs::read_to_string(root.join("proc/self/status")).ok()?, "VmRSS:")
}

/// What it may take: what the machine has, or less where its control group, or one that that is a part of, is limited.
fn limit(root: &Path) -> Option<u64> {
    let machine = kilobytes(&fs::read_to_string(root.join("proc/meminfo")).ok()?, "MemTotal:")?;
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    // Of the second edition; the first one has a line for each kind of limit, and is not looked at.
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/"));
    let mounted = root.join("sys/fs/cgroup");
    let mut group: Option<PathBuf> = group.map(|group| mounted.join(group));
    let mut least = machine;
    while let Some(folder) = group.take_if(|folder| folder.starts_with(&mounted)) {
        let most = fs::read_to_string(folder.join("memory.max")).unwrap_or_default();
        least = least.min(most.trim().parse().unwrap_or(u64::MAX));
        group = folder.parent().map(Path::to_owned);
    }
    Some(least)
}

/// The value in bytes of a line such as `VmRSS:     1234 kB`.
fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r13_the_least_limit_counts() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        assert_eq!((limit(root.path()), resident(root.path())), (None, None));
        write("proc/meminfo", "MemFree:  7 kB\nMemTotal:       1000 kB\n");
        write("proc/self/status", "VmSize:\t 900 kB\nVmRSS:\t     300 kB\n");
        assert_eq!((limit(root.path()), resident(root.path())), (Some(1000 * 1024), Some(300 * 1024)));
        write("proc/self/cgroup", "1:cpu:/x\n0::/outer/inner\n");
        write("sys/fs/cgroup/outer/inner/memory.max", "max\n");
        assert_eq!(limit(root.path()), Some(1000 * 1024));
        write("sys/fs/cgroup/outer/memory.max", "614400\n");
        assert_eq!(limit(root.path()), Some(600 * 1024));
        assert_eq!(percent(300 * 1024, 600 * 1024), Some(50));
        assert_eq!(percent(1, 0), None);
    }

    #[test]
    fn it_is_looked_at_once_in_a_while() {
        let mut memory = Memory::new();
        assert!(memory.is_due());
        assert!(!memory.is_due());
    }
}
