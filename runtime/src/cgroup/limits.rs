//! From limits to what is written into which file, on v1 and v2. Pure but for the writing.

use std::fs;
use std::io;
use std::path::Path;

use crate::spec::Resources;

/// One write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) controller: &'static str,
    pub(crate) file: &'static str,
    pub(crate) value: String,
}

impl Setting {
    fn new(controller: &'static str, file: &'static str, value: impl ToString) -> Setting {
        Setting { controller, file, value: value.to_string() }
    }

    pub(super) fn write(&self, dir: &Path) -> io::Result<()> {
        let file = dir.join(self.file);
        fs::write(&file, &self.value)
            .map_err(|error| io::Error::new(error.kind(), format!("{} := {}: {error}", file.display(), self.value)))
    }
}

/// `cpu.weight` (1 … 10000) for `cpu.shares` (2 … 262144), by the curve on which the defaults of both, 1024 and 100, meet:
/// Kubernetes' and the OCI runtimes' since 2025, and libcontainer's, which sets a container's first limits.
pub(crate) fn weight(shares: u64) -> u64 {
    let shares = shares.clamp(2, 262_144);
    if shares == 2 {
        return 1;
    }
    let log = (shares as f64).log2();
    let weight = 10f64.powf((log * log + 125.0 * log) / 612.0 - 7.0 / 34.0).ceil();
    (weight as u64).clamp(1, 10_000)
}

/// What to write, in order.
pub(super) fn settings(resources: &Resources, v2: bool, limits_swap: bool) -> Vec<Setting> {
    let mut settings = Vec::new();
    let period = resources.cpu_period_us.unwrap_or(100_000);
    if let Some(shares) = resources.cpu_shares.filter(|shares| *shares > 0) {
        settings.push(if v2 {
            Setting::new("cpu", "cpu.weight", weight(shares))
        } else {
            Setting::new("cpu", "cpu.shares", shares.clamp(2, 262_144))
        });
    }
    if let Some(quota) = resources.cpu_quota_us {
        if v2 {
            let quota = if quota > 0 { quota.to_string() } else { "max".to_owned() };
            settings.push(Setting::new("cpu", "cpu.max", format!("{quota} {period}")));
        } else {
            settings.push(Setting::new("cpu", "cpu.cfs_period_us", period));
            settings.push(Setting::new("cpu", "cpu.cfs_quota_us", if quota > 0 { quota } else { -1 }));
        }
    }
    if let Some(bytes) = resources.memory_bytes {
        let unlimited = bytes <= 0;
        if v2 {
            settings.push(Setting::new(
                "memory",
                "memory.max",
                if unlimited { "max".into() } else { bytes.to_string() },
            ));
        } else {
            let bytes = if unlimited { -1 } else { bytes };
            let limit = Setting::new("memory", "memory.limit_in_bytes", bytes);
            settings.push(limit);
            if limits_swap {
                settings.push(Setting::new("memory", "memory.memsw.limit_in_bytes", bytes));
            }
        }
    }
    if let Some(pids) = resources.pids {
        settings.push(Setting::new("pids", "pids.max", if pids > 0 { pids.to_string() } else { "max".into() }));
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(resources: &Resources, v2: bool) -> Vec<String> {
        settings(resources, v2, false).into_iter().map(|s| format!("{}={}", s.file, s.value)).collect()
    }

    #[test]
    fn the_same_limits_on_both_versions() {
        let resources = Resources {
            cpu_shares: Some(1024),
            cpu_quota_us: Some(50_000),
            cpu_period_us: None,
            memory_bytes: Some(64 << 20),
            pids: Some(10),
        };
        assert_eq!(
            written(&resources, false),
            [
                "cpu.shares=1024",
                "cpu.cfs_period_us=100000",
                "cpu.cfs_quota_us=50000",
                "memory.limit_in_bytes=67108864",
                "pids.max=10"
            ]
        );
        assert_eq!(
            written(&resources, true),
            ["cpu.weight=100", "cpu.max=50000 100000", "memory.max=67108864", "pids.max=10"]
        );
        let lifted = Resources { memory_bytes: Some(0), pids: Some(0), cpu_quota_us: Some(0), ..Resources::default() };
        assert_eq!(written(&lifted, true), ["cpu.max=max 100000", "memory.max=max", "pids.max=max"]);
        assert!(written(&Resources::default(), true).is_empty());
    }

    #[test]
    fn weights_cover_the_whole_range() {
        assert_eq!((weight(0), weight(2), weight(262_144), weight(u64::MAX)), (1, 1, 10_000, 10_000));
        assert_eq!((weight(1024), weight(2048)), (100, 174));
        assert!((2..262_144).step_by(97).all(|shares| weight(shares) <= weight(shares + 97)));
    }
}
