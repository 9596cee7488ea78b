//! What processes use of the machine, as the kernel counts it.

use std::fs;
use std::time::Duration;

/// The kernel's clock for processes on Linux, whatever its own: a hundred ticks a second.
const TICK: Duration = Duration::from_millis(10);

/// What processes have used.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Usage {
    /// Of processors, since they began.
    pub(crate) cpu: Duration,
    /// Of memory, now, in bytes.
    pub(crate) memory: u64,
}

/// What these processes have used. One that is gone counts nothing; so does all of it where there is no `/proc`.
pub(crate) fn of(pids: &[u32]) -> Usage {
    let each = pids.iter().map(|pid| Usage { cpu: cpu(*pid).unwrap_or_default(), memory: memory(*pid).unwrap_or(0) });
    each.fold(Usage::default(), |sum, one| Usage { cpu: sum.cpu + one.cpu, memory: sum.memory + one.memory })
}

/// What processes have used that this one has started, and that have ended.
pub(crate) fn of_ended() -> Usage {
    let stat = fs::read_to_string("/proc/self/stat").ok();
    let ticks = stat.and_then(|stat| ticks(&stat, 13)).unwrap_or(0);
    Usage { cpu: TICK * ticks, memory: 0 }
}

fn cpu(pid: u32) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    ticks(&stat, 11).map(|ticks| TICK * ticks)
}

/// The user's and the system's time in what `/proc/PID/stat` says: fields 14 and 15, and 16 and 17 for children that have
/// ended. The name before may hold anything.
fn ticks(stat: &str, skipped: usize) -> Option<u32> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(skipped);
    let user: u32 = fields.next()?.parse().ok()?;
    let system: u32 = fields.next()?.parse().ok()?;
    Some(user + system)
}

fn memory(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_behind_any_name() {
        let stat = "12 (a) b) S 1 12 12 0 -1 4194560 1 0 0 0 250 50 3 4 20 0 1 0 100 0 0";
        assert_eq!((ticks(stat, 11), ticks(stat, 13)), (Some(300), Some(7)));
        assert_eq!(ticks("nonsense", 11), None);
    }

    #[test]
    fn this_process_uses_memory() {
        assert!(of(&[std::process::id()]).memory > 100_000);
    }
}
