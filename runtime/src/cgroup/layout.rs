//! Where the hierarchies are mounted.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// v1 hierarchies by controller (a hybrid host too: its v2 mount carries no controllers), or the one of v2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Controller name to mount point.
    V1(BTreeMap<String, PathBuf>),
    /// The mount point.
    V2(PathBuf),
}

impl Layout {
    pub(crate) fn detect() -> io::Result<Layout> {
        Layout::parse(&fs::read_to_string("/proc/self/mountinfo")?)
            .ok_or_else(|| io::Error::other("no cgroup file system is mounted below /sys/fs/cgroup"))
    }

    /// Reads `/proc/self/mountinfo` (proc(5)).
    pub(crate) fn parse(mountinfo: &str) -> Option<Layout> {
        let mut controllers = BTreeMap::new();
        for line in mountinfo.lines() {
            let Some((head, tail)) = line.split_once(" - ") else { continue };
            let Some(target) = head.split(' ').nth(4).map(Path::new) else { continue };
            let mut tail = tail.split(' ');
            match tail.next() {
                Some("cgroup2") if target == Path::new("/sys/fs/cgroup") => return Some(Layout::V2(target.to_owned())),
                Some("cgroup") if target.starts_with("/sys/fs/cgroup") => {
                    let options = tail.nth(1).unwrap_or_default();
                    // Options that are not controllers (rw, xattr, name=systemd …) do no harm: nobody asks for them.
                    for option in options.split(',').filter(|option| !option.contains('=') && *option != "rw") {
                        controllers.insert(option.to_owned(), target.to_owned());
                    }
                }
                _ => {}
            }
        }
        (!controllers.is_empty()).then_some(Layout::V1(controllers))
    }

    /// The directory of a group in the hierarchy of a controller.
    pub(crate) fn dir(&self, controller: &str, path: &str) -> Option<PathBuf> {
        match self {
            Layout::V1(controllers) => controllers.get(controller).map(|root| root.join(path)),
            Layout::V2(root) => Some(root.join(path)),
        }
    }

    /// The directory whose `cgroup.procs` is to be trusted: libcontainer puts processes into every hierarchy.
    pub(crate) fn process_dir(&self, path: &str) -> Option<PathBuf> {
        ["pids", "memory", "cpu", "devices", "freezer"].iter().find_map(|controller| self.dir(controller, path))
    }

    /// The group's directories in all hierarchies, each once.
    pub(crate) fn all_dirs(&self, path: &str) -> Vec<PathBuf> {
        let mut dirs: Vec<PathBuf> = match self {
            Layout::V1(controllers) => controllers.values().map(|root| root.join(path)).collect(),
            Layout::V2(root) => vec![root.join(path)],
        };
        dirs.sort();
        dirs.dedup();
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
            33 30 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
            34 30 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let layout = Layout::parse(hybrid).unwrap();
        assert_eq!(layout.dir("cpuacct", "a/b").unwrap(), Path::new("/sys/fs/cgroup/cpu,cpuacct/a/b"));
        assert_eq!(layout.all_dirs("a").len(), 2);
        let v2 = "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(Layout::parse(v2), Some(Layout::V2("/sys/fs/cgroup".into())));
        assert_eq!(Layout::parse("1 2 0:3 / / rw - ext4 /dev/sda rw\n"), None);
    }
}
