//! Owns what is read off this machine: processors, memory, disks, names and versions.

use std::path::Path;

/// Bytes and processes; what a node can give.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Machine {
    pub(crate) cpus: u64,
    pub(crate) memory_bytes: u64,
    pub(crate) disk_bytes: u64,
    pub(crate) machine_id: String,
    pub(crate) system_uuid: String,
    pub(crate) boot_id: String,
    pub(crate) kernel: String,
    pub(crate) os_image: String,
}

/// How close the machine is to running out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pressure {
    pub(crate) memory: bool,
    pub(crate) disk: bool,
    pub(crate) pids: bool,
}

/// Go's name of the processor architecture.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        other => other,
    }
}

fn line(path: &str) -> String {
    std::fs::read_to_string(path).map(|t| t.trim().to_owned()).unwrap_or_default()
}

/// A figure of `/proc/meminfo`, bytes.
fn meminfo(field: &str) -> u64 {
    meminfo_in(&std::fs::read_to_string("/proc/meminfo").unwrap_or_default(), field)
}

fn meminfo_in(text: &str, field: &str) -> u64 {
    text.lines()
        .find_map(|l| l.strip_prefix(field)?.strip_prefix(':'))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        .unwrap_or(0)
        * 1024
}

fn disk(path: &Path) -> (u64, u64) {
    match rustix::fs::statvfs(path) {
        Ok(stat) => (stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize),
        Err(_) => (0, 0),
    }
}

/// Bytes of memory in use that cannot be taken back.
pub(crate) fn memory_in_use() -> u64 {
    meminfo("MemTotal").saturating_sub(meminfo("MemAvailable"))
}

/// Nanoseconds all processors together have worked since the machine started: `/proc/stat` without idling and waiting
/// for disks; a guest's time is in the user's already (proc(5)). Ticks are hundredths of a second in all that user space
/// sees.
pub(crate) fn cpu_used() -> u64 {
    cpu_used_in(&std::fs::read_to_string("/proc/stat").unwrap_or_default())
}

fn cpu_used_in(stat: &str) -> u64 {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu ")).unwrap_or_default();
    let ticks: Vec<u64> = line.split_whitespace().filter_map(|field| field.parse().ok()).collect();
    // user nice system [idle iowait] irq softirq steal [guest guest_nice]
    let worked = ticks.iter().enumerate().filter(|(at, _)| !matches!(at, 3 | 4) && *at < 8).map(|(_, ticks)| ticks);
    worked.sum::<u64>() * 10_000_000
}

/// Total and available bytes of the file system of `path`.
pub(crate) fn disk_of(path: &Path) -> (u64, u64) {
    disk(path)
}

/// Reads the machine; `data_dir` tells which disk counts.
pub(crate) fn read(data_dir: &Path) -> Machine {
    let os = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let pretty = os.lines().find_map(|l| l.strip_prefix("PRETTY_NAME=")).unwrap_or("Linux").trim_matches('"');
    Machine {
        cpus: std::thread::available_parallelism().map_or(1, |n| n.get() as u64),
        memory_bytes: meminfo("MemTotal"),
        disk_bytes: disk(data_dir).0,
        machine_id: line("/etc/machine-id"),
        system_uuid: line("/sys/class/dmi/id/product_uuid"),
        boot_id: line("/proc/sys/kernel/random/boot_id"),
        kernel: line("/proc/sys/kernel/osrelease"),
        os_image: pretty.to_owned(),
    }
}

/// Looks for pressure, by the kubelet's default thresholds: 100 MiB of memory, a tenth of the disk, and a tenth of
/// the process ids.
pub(crate) fn pressure(data_dir: &Path) -> Pressure {
    let (total, free) = disk(data_dir);
    let processes = line("/proc/loadavg");
    let running: u64 = processes.split_whitespace().nth(3).and_then(|f| f.split('/').nth(1)?.parse().ok()).unwrap_or(0);
    let most: u64 = line("/proc/sys/kernel/pid_max").parse().unwrap_or(u64::MAX);
    let available = meminfo("MemAvailable");
    Pressure {
        memory: available > 0 && available < 100 << 20,
        disk: total > 0 && free < total / 20,
        pids: running > most / 10 * 9,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_figures_are_bytes() {
        let text = "MemTotal:       24000 kB\nMemFree:  1 kB\nMemAvailable:   12000 kB\n";
        assert_eq!(meminfo_in(text, "MemTotal"), 24_000 * 1024);
        assert_eq!(meminfo_in(text, "MemAvailable"), 12_000 * 1024);
        assert_eq!(meminfo_in(text, "Nope"), 0);
    }

    #[test]
    fn idling_and_waiting_is_no_work() {
        assert_eq!(cpu_used_in("cpu  100 20 30 4000 500 6 7 8 90 10\ncpu0 1 1 1 1\n"), 171 * 10_000_000);
        assert_eq!(cpu_used_in(""), 0);
    }

    #[test]
    fn this_machine_has_processors_memory_and_a_disk() {
        let machine = read(Path::new("/"));
        assert!(machine.cpus > 0 && machine.memory_bytes > 0 && machine.disk_bytes > 0);
        assert!(!machine.kernel.is_empty());
    }
}
