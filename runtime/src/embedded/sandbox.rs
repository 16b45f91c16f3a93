//! Sandboxes: namespaces made once and pinned by mounts, and a parent cgroup. No process stays behind.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use nix::sched::CloneFlags;
use rustix::mount::{MountFlags, UnmountFlags};
use serde::{Deserialize, Serialize};

use crate::cgroup::Cgroups;
use crate::disk;
use crate::error::RuntimeError;
use crate::runtime::{Sandbox, SandboxState};
use crate::spec::SandboxSpec;

/// Mounts of a sandbox, in its directory.
const PINS: [&str; 3] = ["uts", "ipc", "shm"];
const RECORD: &str = "sandbox.json";
/// The magic of namespace files (`nsfs`), statfs(2).
const NSFS: i64 = 0x6e73_6673;

/// What is on disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct SandboxRecord {
    pub(super) spec: SandboxSpec,
    pub(super) created_at: Timestamp,
    pub(super) stopped: bool,
    /// The boot of the machine it was made in; empty in records of old.
    #[serde(default)]
    boot: String,
}

impl SandboxRecord {
    pub(super) fn load(dir: &Path) -> io::Result<SandboxRecord> {
        disk::read_json(&dir.join(RECORD))
    }

    pub(super) fn save(&self, dir: &Path) -> io::Result<()> {
        disk::write_json_soon(&dir.join(RECORD), self)
    }

    pub(super) fn sandbox(&self, dir: &Path) -> Sandbox {
        let ready = !self.stopped && self.is_of_this_boot() && self.is_pinned(dir);
        Sandbox {
            spec: self.spec.clone(),
            state: if ready { SandboxState::Ready } else { SandboxState::NotReady },
            created_at: self.created_at,
            warnings: Vec::new(),
        }
    }

    /// A sandbox with the host's namespaces alone has no pins, but a control group that no boot outlives.
    fn is_of_this_boot(&self) -> bool {
        self.boot.is_empty() || self.boot == boot_id()
    }

    /// After a reboot the files are there, the namespaces are not.
    fn is_pinned(&self, dir: &Path) -> bool {
        let pinned = |name: &str| rustix::fs::statfs(dir.join(name)).is_ok_and(|found| found.f_type == NSFS);
        (self.spec.host_ipc || pinned("ipc")) && (self.spec.netns.is_none() || pinned("uts"))
    }
}

/// Another one with every start of the machine (random(4)).
fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// Makes everything. On error nothing is left.
pub(super) fn make(dir: &Path, spec: &SandboxSpec, cgroups: &Cgroups) -> Result<SandboxRecord, RuntimeError> {
    for name in spec.sysctls.keys() {
        check_sysctl(spec, name)?;
    }
    fs::create_dir_all(dir).map_err(RuntimeError::io(format!("making {}", dir.display())))?;
    let record = SandboxRecord { spec: spec.clone(), created_at: Timestamp::now(), stopped: false, boot: boot_id() };
    // First the record: whatever happens from here on, the next start finds what to clean up.
    let result =
        record.save(dir).map_err(RuntimeError::io("keeping the sandbox")).and_then(|()| pin(dir, spec)).and_then(
            |()| {
                let resources = spec.resources.clone().unwrap_or_default();
                cgroups.create(&spec.cgroup_parent, &resources).map_err(RuntimeError::io("cgroup of the sandbox"))
            },
        );
    if let Err(error) = result {
        if let Err(leftover) = unmake(dir, spec, cgroups) {
            tracing::warn!(sandbox = spec.id, %leftover, "a sandbox that failed could not be cleaned up");
        }
        return Err(error);
    }
    Ok(record)
}

/// Removes everything; what is not there is fine.
pub(super) fn unmake(dir: &Path, spec: &SandboxSpec, cgroups: &Cgroups) -> Result<(), RuntimeError> {
    let cleared = cgroups.clear(&spec.cgroup_parent);
    for pin in PINS {
        unmount(&dir.join(pin));
    }
    cleared.map_err(RuntimeError::io(format!("cgroup {}", spec.cgroup_parent)))?;
    remove_dir(dir).map_err(RuntimeError::io(format!("removing {}", dir.display())))
}

/// Takes every mount off a path.
pub(super) fn unmount(path: &Path) {
    while rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).is_ok() {}
}

/// Removes a tree; one that is not there is fine.
pub(super) fn remove_dir(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn pin(dir: &Path, spec: &SandboxSpec) -> Result<(), RuntimeError> {
    if !spec.host_ipc {
        let shm = dir.join("shm");
        fs::create_dir_all(&shm)
            .and_then(|()| {
                let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
                Ok(rustix::mount::mount("shm", &shm, "tmpfs", flags, c"mode=1777,size=64m")?)
            })
            .map_err(RuntimeError::io("mounting /dev/shm of the sandbox"))?;
    }
    let (dir, spec): (PathBuf, SandboxSpec) = (dir.to_owned(), spec.clone());
    // Namespaces belong to threads: this one enters new ones, pins them by mounts, and ends.
    let made = std::thread::Builder::new()
        .name("sandbox".to_owned())
        .spawn(move || pin_here(&dir, &spec))
        .map_err(RuntimeError::io("a thread for the sandbox"))?
        .join();
    match made {
        Ok(result) => result.map_err(RuntimeError::io("namespaces of the sandbox")),
        Err(_) => Err(RuntimeError::Invalid("making the namespaces of the sandbox panicked".to_owned())),
    }
}

fn pin_here(dir: &Path, spec: &SandboxSpec) -> io::Result<()> {
    let own_uts = spec.netns.is_some();
    let mut flags = CloneFlags::empty();
    flags.set(CloneFlags::CLONE_NEWUTS, own_uts);
    flags.set(CloneFlags::CLONE_NEWIPC, !spec.host_ipc);
    if !flags.is_empty() {
        nix::sched::unshare(flags)?;
    }
    if own_uts {
        nix::unistd::sethostname(&spec.hostname)?;
        bind_namespace("uts", dir)?;
    }
    if !spec.host_ipc {
        bind_namespace("ipc", dir)?;
    }
    if spec.sysctls.is_empty() {
        return Ok(());
    }
    if let Some(netns) = &spec.netns {
        nix::sched::setns(fs::File::open(netns)?, CloneFlags::CLONE_NEWNET)?;
    }
    for (name, value) in &spec.sysctls {
        let file = format!("/proc/sys/{}", name.replace('.', "/"));
        fs::write(&file, value)
            .map_err(|error| io::Error::new(error.kind(), format!("sysctl {name}={value}: {error}")))?;
    }
    Ok(())
}

fn bind_namespace(name: &str, dir: &Path) -> io::Result<()> {
    let pin = dir.join(name);
    fs::write(&pin, "")?;
    Ok(rustix::mount::mount_bind(format!("/proc/thread-self/ns/{name}"), &pin)?)
}

/// Only what a namespace of the sandbox holds may be set: the rest is the whole machine's.
fn check_sysctl(spec: &SandboxSpec, name: &str) -> Result<(), RuntimeError> {
    let of_ipc = ["kernel.shm", "kernel.msg", "fs.mqueue."].iter().any(|prefix| name.starts_with(prefix))
        || name == "kernel.sem";
    let plain = name
        .split('.')
        .all(|part| !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-'));
    let refused = |why: &str| Err(RuntimeError::Invalid(format!("sysctl {name:?} {why}")));
    match () {
        () if !plain => refused("is not a name of a kernel parameter"),
        () if of_ipc && spec.host_ipc => refused("cannot be set with the host's IPC namespace"),
        () if of_ipc => Ok(()),
        () if !name.starts_with("net.") => refused("is not namespaced: it would change the whole machine"),
        () if spec.netns.is_none() => refused("cannot be set with the host's network"),
        () => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_namespaced_sysctls_pass_and_only_in_namespaces_of_the_pod() {
        let own = SandboxSpec { netns: Some("/n".into()), ..SandboxSpec::default() };
        let host = SandboxSpec { host_ipc: true, ..SandboxSpec::default() };
        for name in ["net.ipv4.ip_local_port_range", "kernel.shm_rmid_forced", "kernel.sem", "fs.mqueue.msg_max"] {
            assert!(check_sysctl(&own, name).is_ok(), "{name}");
            assert!(check_sysctl(&host, name).is_err(), "{name}");
        }
        for name in ["kernel.panic", "vm.swappiness", "net..core", "net.core/../../kernel.panic", ""] {
            assert!(check_sysctl(&own, name).is_err(), "{name}");
        }
    }
}
