//! Owns what `/proc` says of a platform's processes: resident memory and CPU time.

use std::path::Path;

/// Every process of these names, the measuring one left out.
pub(crate) fn named(names: &[String]) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // A process that ends meanwhile is simply not counted.
        let Ok(name) = std::fs::read_to_string(entry.path().join("comm")) else { continue };
        if names.iter().any(|wanted| name.trim() == wanted) && pid != std::process::id() {
            found.push(pid);
        }
    }
    found
}

/// Memory of the processes in MiB: resident, and proportional (shared pages counted once).
pub(crate) fn memory(pids: &[u32]) -> (f64, f64) {
    let field = |pid: u32, name: &str| -> f64 {
        let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
    };
    (pids.iter().map(|pid| field(*pid, "Rss:")).sum(), pids.iter().map(|pid| field(*pid, "Pss:")).sum())
}

/// The most memory a process has had, in MiB.
pub(crate) fn peak(pid: u32) -> Option<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<f64>().ok()? / 1024.0)
}

/// CPU seconds the processes and their reaped children have used.
pub(crate) fn cpu_seconds(pids: &[u32]) -> f64 {
    pids.iter().map(|pid| ticks_of(Path::new(&format!("/proc/{pid}/stat")))).sum::<f64>() / ticks_per_second()
}

/// CPU seconds the whole machine has used but for this process: shims and containers that came and went are nobody's
/// children, so only the machine knows what they cost.
pub(crate) fn machine_cpu_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields: Vec<f64> =
        text.lines().next().unwrap_or_default().split_whitespace().skip(1).filter_map(|f| f.parse().ok()).collect();
    // user, nice, system, then idle and iowait, then irq and softirq (proc(5)).
    let busy: f64 = [0, 1, 2, 5, 6].iter().filter_map(|index| fields.get(*index)).sum();
    busy / ticks_per_second() - cpu_seconds(&[std::process::id()])
}

fn ticks_per_second() -> f64 {
    // SAFETY: sysconf has no preconditions.
    unsafe { libc::sysconf(libc::_SC_CLK_TCK) as f64 }
}

/// utime, stime, cutime and cstime: fields 14 to 17 (proc(5)), counted after the parenthesised name.
fn ticks_of(stat: &Path) -> f64 {
    let text = std::fs::read_to_string(stat).unwrap_or_default();
    let after_name = text.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default();
    after_name.split_whitespace().skip(11).take(4).filter_map(|field| field.parse::<f64>().ok()).sum()
}
