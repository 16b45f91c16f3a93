//! The layout of a data directory: the one place that names its folders.

use std::path::{Path, PathBuf};

/// A data directory. All state of one `proa` lies beneath it.
#[derive(Clone, Debug)]
pub(crate) struct DataDir(PathBuf);

impl DataDir {
    /// Makes the path absolute: shims and mounts outlive the directory we were started in.
    pub(crate) fn new(path: &Path) -> std::io::Result<DataDir> {
        std::path::absolute(path).map(DataDir)
    }

    pub(crate) fn root(&self) -> &Path {
        &self.0
    }

    /// Tells this installation apart from others on the machine, in names of interfaces, cgroups and tables: eight
    /// hexadecimal digits of the path's hash (FNV-1a, stable over versions).
    pub(crate) fn instance(&self) -> String {
        let hash = self.0.as_os_str().as_encoded_bytes().iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        format!("{:08x}", (hash >> 32) as u32)
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.0.join("store")
    }

    pub(crate) fn images(&self) -> PathBuf {
        self.0.join("images")
    }

    pub(crate) fn agent(&self) -> PathBuf {
        self.0.join("agent")
    }

    pub(crate) fn runtime(&self) -> PathBuf {
        self.agent().join("runtime")
    }

    pub(crate) fn network(&self) -> PathBuf {
        self.agent().join("network")
    }

    pub(crate) fn admin_kubeconfig(&self) -> PathBuf {
        self.0.join("admin.kubeconfig")
    }
}
