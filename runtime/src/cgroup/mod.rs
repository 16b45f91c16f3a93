//! Control groups on v1, hybrid and v2 hosts: a pod's parent group, and what is asked of a
//! container's group once libcontainer has made it.
//!
//! Owns making, limiting, reading, killing and removing of groups below `/sys/fs/cgroup`; never
//! decides whose group it is. Paths are relative to the hierarchy's root (`proa/node1/pod…`).

mod layout;
mod limits;

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

pub(crate) use layout::Layout;

use crate::runtime::Stats;
use crate::spec::Resources;

/// How long dying processes are waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// The machine's control groups.
#[derive(Debug, Clone)]
pub(crate) struct Cgroups {
    layout: Layout,
}

impl Cgroups {
    /// Looks at what is mounted.
    pub(crate) fn detect() -> io::Result<Cgroups> {
        Ok(Cgroups { layout: Layout::detect()? })
    }

    pub(crate) fn is_v2(&self) -> bool {
        matches!(self.layout, Layout::V2(_))
    }

    /// Whether swap can be limited here.
    pub(crate) fn limits_swap(&self) -> bool {
        match &self.layout {
            Layout::V2(_) => true,
            Layout::V1 { .. } => {
                self.layout.dir("memory", "").is_some_and(|dir| dir.join("memory.memsw.limit_in_bytes").exists())
            }
        }
    }

    /// Makes a group with limits, and every group above it.
    pub(crate) fn create(&self, path: &str, resources: &Resources) -> io::Result<()> {
        match &self.layout {
            Layout::V2(root) => {
                let mut dir = root.clone();
                for part in Path::new(path) {
                    enable_controllers(&dir)?;
                    dir.push(part);
                    make_dir(&dir)?;
                }
                enable_controllers(&dir)?;
            }
            Layout::V1 { .. } => {
                // All of them: libcontainer would make the others below, but could not if `reset` of another platform
                // took an empty ancestor away at that instant.
                for dir in self.layout.controlled_dirs(path) {
                    make_dirs(&dir)?;
                }
            }
        }
        self.apply(path, resources)
    }

    /// Writes limits; `None` fields stay as they are.
    pub(crate) fn apply(&self, path: &str, resources: &Resources) -> io::Result<()> {
        let limits_swap = resources.memory_bytes.is_some() && self.limits_swap();
        if limits_swap && !self.is_v2() {
            // v1 keeps memory ≤ memory + swap at every instant. Lifting the sum first makes any order fine.
            if let Some(dir) = self.layout.dir("memory", path) {
                let _ = fs::write(dir.join("memory.memsw.limit_in_bytes"), "-1");
            }
        }
        for setting in limits::settings(resources, self.is_v2(), limits_swap) {
            let Some(dir) = self.layout.dir(setting.controller, path) else {
                return Err(io::Error::other(format!("this machine has no {} cgroup controller", setting.controller)));
            };
            setting.write(&dir)?;
        }
        Ok(())
    }

    /// Makes a group that processes go into as they are: it limits nothing.
    pub(crate) fn create_open(&self, path: &str) -> io::Result<()> {
        self.layout.open_dirs(path).iter().try_for_each(|dir| make_dirs(dir))
    }

    /// Moves the calling process into such a group, as far as this machine lets it. The first refusal is returned.
    pub(crate) fn enter_open(&self, path: &str) -> io::Result<()> {
        let mut result = Ok(());
        for dir in self.layout.open_dirs(path) {
            // 0 is whoever writes it.
            let entered = fs::write(dir.join("cgroup.procs"), "0").map_err(|error| at(&dir, error));
            result = result.and(entered);
        }
        result
    }

    /// Processes of a group and of the groups below it. libcontainer puts a process into one hierarchy after the other, so
    /// one that is just starting is not in all of them.
    pub(crate) fn processes(&self, path: &str) -> BTreeSet<i32> {
        let mut found = BTreeSet::new();
        for dir in self.layout.all_dirs(path) {
            collect(&dir, &mut found);
        }
        found
    }

    /// Kills every process of a group and of the groups below it, as far as there are any now.
    pub(crate) fn kill_once(&self, path: &str) -> BTreeSet<i32> {
        if let Layout::V2(root) = &self.layout {
            let _ = fs::write(root.join(path).join("cgroup.kill"), "1");
        }
        let processes = self.processes(path);
        for pid in processes.iter().filter_map(|pid| Pid::from_raw(*pid)) {
            let _ = kill_process(pid, Signal::KILL);
        }
        processes
    }

    /// Kills what runs in a group and in the groups below it, and removes them from every hierarchy, as often as it takes:
    /// a dying process may fork once more. A group that is not there is fine.
    pub(crate) fn clear(&self, path: &str) -> io::Result<()> {
        if path.is_empty() {
            return Ok(());
        }
        let deadline = Instant::now() + PATIENCE;
        let mut pause = Duration::from_millis(1);
        loop {
            let processes = self.kill_once(path);
            let mut removed = Ok(());
            for dir in self.layout.all_dirs(path) {
                removed = removed.and(remove_tree(&dir));
            }
            match removed {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() > deadline && processes.is_empty() => return Err(error),
                Err(error) if Instant::now() > deadline => {
                    let message = format!("{error}; processes {processes:?} do not die");
                    return Err(io::Error::new(error.kind(), message));
                }
                Err(_) => {}
            }
            // The kernel offers no event for "this v1 group is empty".
            sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    /// Removes the groups above `path` as far as they are empty.
    pub(crate) fn remove_empty_ancestors(&self, path: &str) {
        for ancestor in Path::new(path).ancestors().skip(1).filter(|path| !path.as_os_str().is_empty()) {
            for dir in self.layout.all_dirs(&ancestor.to_string_lossy()) {
                let _ = fs::remove_dir(dir);
            }
        }
    }

    /// How often the kernel killed a process of this group for its memory limit.
    pub(crate) fn oom_kills(&self, path: &str) -> u64 {
        let file = if self.is_v2() { "memory.events" } else { "memory.oom_control" };
        self.layout.dir("memory", path).map_or(0, |dir| layout::keyed(&dir.join(file), "oom_kill").unwrap_or(0))
    }

    /// What the group uses now.
    pub(crate) fn stats(&self, path: &str) -> Stats {
        let number = |controller: &str, file: &str| -> u64 {
            self.layout
                .dir(controller, path)
                .and_then(|dir| fs::read_to_string(dir.join(file)).ok())
                .and_then(|text| text.trim().parse().ok())
                .unwrap_or(0)
        };
        let (cpu_ns, memory_bytes, inactive) = if self.is_v2() {
            let dir = self.layout.dir("cpu", path).unwrap_or_default();
            (
                layout::keyed(&dir.join("cpu.stat"), "usage_usec").unwrap_or(0).saturating_mul(1000),
                number("memory", "memory.current"),
                layout::keyed(&dir.join("memory.stat"), "inactive_file").unwrap_or(0),
            )
        } else {
            let memory = self.layout.dir("memory", path).unwrap_or_default();
            (
                number("cpuacct", "cpuacct.usage"),
                number("memory", "memory.usage_in_bytes"),
                layout::keyed(&memory.join("memory.stat"), "total_inactive_file").unwrap_or(0),
            )
        };
        Stats {
            cpu_ns,
            memory_bytes,
            memory_working_set: memory_bytes.saturating_sub(inactive),
            pids: number("pids", "pids.current"),
        }
    }
}

/// A group of v2 hands controllers on to the groups below it.
fn enable_controllers(dir: &Path) -> io::Result<()> {
    let offered = fs::read_to_string(dir.join("cgroup.controllers"))?;
    for controller in ["cpu", "cpuset", "io", "memory", "pids"] {
        if offered.split_whitespace().any(|name| name == controller) {
            // Refused for one of them (a real-time task, say) is no reason to lose the others.
            let _ = fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}"));
        }
    }
    Ok(())
}

/// As `create_dir_all`, again when an ancestor that was there goes away meanwhile.
fn make_dirs(dir: &Path) -> io::Result<()> {
    let mut result = fs::create_dir_all(dir);
    for _ in 0..3 {
        match &result {
            Err(error) if error.kind() == ErrorKind::NotFound => result = fs::create_dir_all(dir),
            _ => break,
        }
    }
    result
}

fn make_dir(dir: &Path) -> io::Result<()> {
    match fs::create_dir(dir) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

fn collect(dir: &Path, found: &mut BTreeSet<i32>) {
    if let Ok(text) = fs::read_to_string(dir.join("cgroup.procs")) {
        found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0));
    }
    for child in children(dir) {
        collect(&child, found);
    }
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect()
}

/// Removes a group and those below it, once. One that is not there is fine.
fn remove_tree(dir: &Path) -> io::Result<()> {
    let remove = || match fs::remove_dir(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(at(dir, error)),
        _ => Ok(()),
    };
    // Mostly there is nothing below it.
    remove().or_else(|_| {
        children(dir).iter().try_for_each(|child| remove_tree(child))?;
        remove()
    })
}

/// An error with its place.
fn at(dir: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", dir.display()))
}
