//! What this machine and this process allow: facts for the pure parts.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use nix::sys::resource::{Resource, getrlimit};

use crate::cgroup::Cgroups;
use crate::oci::{Capabilities, DeviceNode, Host};

/// Whether this kernel has a file system of that name. Where it is a module (Debian's overlay is one) that nobody has
/// used yet, asking loads it. A kernel that will not say is given the benefit of the doubt.
pub fn offers_filesystem(name: &str) -> bool {
    let asked = rustix::mount::fsopen(name, rustix::mount::FsOpenFlags::FSOPEN_CLOEXEC);
    !matches!(asked, Err(rustix::io::Errno::NODEV))
}

/// Devices are looked up only for those who get all of them.
pub(crate) fn host(cgroups: &Cgroups, privileged: bool) -> Host {
    let mut devices = Vec::new();
    if privileged {
        walk(Path::new("/dev"), &mut devices);
    }
    Host {
        capabilities: capabilities(),
        hard_limits: hard_limits(),
        limits_swap: cgroups.limits_swap(),
        cgroup_v2: cgroups.is_v2(),
        devices,
    }
}

fn capabilities() -> Capabilities {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = |key: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(key))?;
        u64::from_str_radix(value.trim(), 16).ok()
    };
    Capabilities::from_mask(mask("CapPrm:").unwrap_or(0) & mask("CapBnd:").unwrap_or(0))
}

fn hard_limits() -> Vec<(String, u64)> {
    const ALL: &[(&str, Resource)] = &[
        ("AS", Resource::RLIMIT_AS),
        ("CORE", Resource::RLIMIT_CORE),
        ("CPU", Resource::RLIMIT_CPU),
        ("DATA", Resource::RLIMIT_DATA),
        ("FSIZE", Resource::RLIMIT_FSIZE),
        ("LOCKS", Resource::RLIMIT_LOCKS),
        ("MEMLOCK", Resource::RLIMIT_MEMLOCK),
        ("MSGQUEUE", Resource::RLIMIT_MSGQUEUE),
        ("NICE", Resource::RLIMIT_NICE),
        ("NOFILE", Resource::RLIMIT_NOFILE),
        ("NPROC", Resource::RLIMIT_NPROC),
        ("RSS", Resource::RLIMIT_RSS),
        ("RTPRIO", Resource::RLIMIT_RTPRIO),
        ("RTTIME", Resource::RLIMIT_RTTIME),
        ("SIGPENDING", Resource::RLIMIT_SIGPENDING),
        ("STACK", Resource::RLIMIT_STACK),
    ];
    ALL.iter().filter_map(|(name, resource)| Some((format!("RLIMIT_{name}"), getrlimit(*resource).ok()?.1))).collect()
}

/// One device node of the host.
pub(crate) fn device(path: &Path) -> io::Result<DeviceNode> {
    let found = fs::metadata(path)
        .map_err(|error| io::Error::new(error.kind(), format!("device {}: {error}", path.display())))?;
    let kind = if found.file_type().is_char_device() {
        'c'
    } else if found.file_type().is_block_device() {
        'b'
    } else {
        return Err(io::Error::other(format!("{} is not a device", path.display())));
    };
    Ok(DeviceNode {
        path: path.to_owned(),
        kind,
        major: rustix::fs::major(found.rdev()),
        minor: rustix::fs::minor(found.rdev()),
        mode: found.mode() & 0o7777,
        uid: found.uid(),
        gid: found.gid(),
    })
}

fn walk(dir: &Path, devices: &mut Vec<DeviceNode>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            // These are mounts of the container's own.
            if !["pts", "shm", "mqueue", "fd"].iter().any(|own| name == **own) {
                walk(&path, devices);
            }
        } else if kind.is_char_device() || kind.is_block_device() {
            // The terminal's devices are the container's own, too.
            if !["console", "tty", "ptmx"].iter().any(|own| name == **own) {
                devices.extend(device(&path));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_is_asked_for_by_name() {
        assert!(offers_filesystem("overlay"));
        assert!(!offers_filesystem("no-such-file-system"));
    }
}
