//! Where the hierarchies are mounted.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// v1 hierarchies (a hybrid host too: its v2 mount carries no controllers), or the one of v2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Several hierarchies, each process in one group of each.
    V1 {
        /// Controller name to mount point.
        controllers: BTreeMap<String, PathBuf>,
        /// Mount points of hierarchies without controllers, by which systemd knows whose process is whose: `name=systemd`,
        /// and the v2 one of a hybrid host.
        bare: BTreeSet<PathBuf>,
    },
    /// The mount point.
    V2(PathBuf),
}

/// Controllers of v1; what else stands among a hierarchy's options (rw, xattr, name=systemd …) is none.
const CONTROLLERS: [&str; 14] = [
    "blkio",
    "cpu",
    "cpuacct",
    "cpuset",
    "devices",
    "freezer",
    "hugetlb",
    "memory",
    "misc",
    "net_cls",
    "net_prio",
    "perf_event",
    "pids",
    "rdma",
];

impl Layout {
    pub(crate) fn detect() -> io::Result<Layout> {
        Layout::parse(&fs::read_to_string("/proc/self/mountinfo")?)
            .ok_or_else(|| io::Error::other("no cgroup file system is mounted below /sys/fs/cgroup"))
    }

    /// Reads `/proc/self/mountinfo` (proc(5)).
    pub(crate) fn parse(mountinfo: &str) -> Option<Layout> {
        let mut controllers = BTreeMap::new();
        let mut bare = BTreeSet::new();
        for line in mountinfo.lines() {
            let Some((head, tail)) = line.split_once(" - ") else { continue };
            let Some(target) = head.split(' ').nth(4).map(Path::new) else { continue };
            if !target.starts_with("/sys/fs/cgroup") {
                continue;
            }
            let mut tail = tail.split(' ');
            match tail.next() {
                Some("cgroup2") if target == Path::new("/sys/fs/cgroup") => return Some(Layout::V2(target.to_owned())),
                Some("cgroup2") => {
                    bare.insert(target.to_owned());
                }
                Some("cgroup") => {
                    let options = tail.nth(1).unwrap_or_default().split(',');
                    let found: Vec<&str> = options.filter(|option| CONTROLLERS.contains(option)).collect();
                    if found.is_empty() {
                        bare.insert(target.to_owned());
                    }
                    controllers.extend(found.into_iter().map(|name| (name.to_owned(), target.to_owned())));
                }
                _ => {}
            }
        }
        (!controllers.is_empty()).then_some(Layout::V1 { controllers, bare })
    }

    /// The directory of a group in the hierarchy of a controller.
    pub(crate) fn dir(&self, controller: &str, path: &str) -> Option<PathBuf> {
        match self {
            Layout::V1 { controllers, .. } => controllers.get(controller).map(|root| root.join(path)),
            Layout::V2(root) => Some(root.join(path)),
        }
    }

    /// The group's directories in all hierarchies that have controllers, each once.
    pub(crate) fn controlled_dirs(&self, path: &str) -> BTreeSet<PathBuf> {
        match self {
            Layout::V1 { controllers, .. } => controllers.values().map(|root| root.join(path)).collect(),
            Layout::V2(root) => [root.join(path)].into(),
        }
    }

    /// The group's directories in all hierarchies, each once.
    pub(crate) fn all_dirs(&self, path: &str) -> BTreeSet<PathBuf> {
        let mut dirs = self.controlled_dirs(path);
        if let Layout::V1 { bare, .. } = self {
            dirs.extend(bare.iter().map(|root| root.join(path)));
        }
        dirs
    }

    /// As [`Layout::all_dirs`], where a process may go as soon as the group is there: v1's `cpuset` wants processors and
    /// memory nodes assigned first.
    pub(crate) fn open_dirs(&self, path: &str) -> BTreeSet<PathBuf> {
        let mut dirs = self.all_dirs(path);
        if let Layout::V1 { controllers, .. } = self
            && let Some(cpuset) = controllers.get("cpuset")
        {
            dirs.remove(&cpuset.join(path));
        }
        dirs
    }
}

/// One number of a file of `key value` lines.
pub(super) fn keyed(file: &Path, key: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v1_hybrid_and_v2_are_told_apart() {
        let hybrid = "30 24 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
            31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
            32 30 0:28 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory\n\
            33 30 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
            34 30 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
            35 30 0:31 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n";
        let layout = Layout::parse(hybrid).unwrap();
        assert_eq!(layout.dir("cpuacct", "a/b").unwrap(), Path::new("/sys/fs/cgroup/cpu,cpuacct/a/b"));
        let names = |dirs: BTreeSet<PathBuf>| -> Vec<String> {
            let relative = |dir: &PathBuf| dir.strip_prefix("/sys/fs/cgroup").unwrap().display().to_string();
            dirs.iter().map(relative).collect()
        };
        assert_eq!(names(layout.controlled_dirs("a")), ["cpu,cpuacct/a", "cpuset/a", "memory/a"]);
        assert_eq!(names(layout.all_dirs("a")), ["cpu,cpuacct/a", "cpuset/a", "memory/a", "systemd/a", "unified/a"]);
        assert_eq!(names(layout.open_dirs("a")), ["cpu,cpuacct/a", "memory/a", "systemd/a", "unified/a"]);
        let v2 = "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(Layout::parse(v2), Some(Layout::V2("/sys/fs/cgroup".into())));
        assert_eq!(Layout::parse("1 2 0:3 / / rw - ext4 /dev/sda rw\n"), None);
    }
}
