//! Sets of Linux capabilities by name (capabilities(7)).

/// In the kernel's order: the index is the bit.
const NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// The full name, with its prefix and in upper case.
fn name(name: &str) -> String {
    let name = name.to_uppercase();
    if name.starts_with("CAP_") { name } else { format!("CAP_{name}") }
}

/// A set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Capabilities(u64);

impl Capabilities {
    /// From the hexadecimal mask of `/proc/<pid>/status`.
    pub(crate) fn from_mask(mask: u64) -> Capabilities {
        Capabilities(mask & ((1 << NAMES.len()) - 1))
    }

    /// From names; `ALL` means all. What nobody knows comes back.
    pub(crate) fn parse(names: &[String]) -> (Capabilities, Vec<String>) {
        let mut set = 0;
        let mut unknown = Vec::new();
        for wanted in names {
            let wanted = name(wanted);
            match NAMES.iter().position(|known| *known == wanted) {
                Some(bit) => set |= 1 << bit,
                None if wanted == "CAP_ALL" => set = u64::MAX,
                None => unknown.push(wanted),
            }
        }
        (Capabilities::from_mask(set), unknown)
    }

    pub(crate) fn contains(self, name: &str) -> bool {
        self.names().any(|known| known == name)
    }

    pub(crate) fn intersection(self, other: Capabilities) -> Capabilities {
        Capabilities(self.0 & other.0)
    }

    pub(crate) fn difference(self, other: Capabilities) -> Capabilities {
        Capabilities(self.0 & !other.0)
    }

    pub(crate) fn names(self) -> impl Iterator<Item = &'static str> {
        NAMES.iter().enumerate().filter(move |(bit, _)| self.0 & (1 << bit) != 0).map(|(_, name)| *name)
    }
}
