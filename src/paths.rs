//! The layout of a data directory: the one place that names its folders.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// A data directory. All state of one `proa` lies beneath it.
#[derive(Clone, Debug)]
pub(crate) struct DataDir(PathBuf);

impl DataDir {
    /// Makes the path absolute: shims and mounts outlive the directory we were started in.
    pub(crate) fn new(path: &Path) -> std::io::Result<DataDir> {
        std::path::absolute(path).map(DataDir)
    }

    /// Holds one part's use of the directory for as long as the file is open; the kernel lets go when the process dies.
    ///
    /// # Errors
    /// When another process runs that part on this directory.
    pub(crate) fn lock(&self, part: Part) -> anyhow::Result<File> {
        let path = self.0.join(format!("{}.lock", part.name()));
        let file = File::options().write(true).create(true).truncate(false).open(&path);
        let file = file.with_context(|| format!("cannot open {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => bail!(
                "another proa {} runs on {}: stop it first, or choose another directory with --data-dir DIR",
                part.name(),
                self.0.display()
            ),
            Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
        }
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

/// What of a data directory one process at a time may use. The API server and an agent may share a directory.
#[derive(Clone, Copy)]
pub(crate) enum Part {
    Server,
    Agent,
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Part::Server => "server",
            Part::Agent => "agent",
        }
    }
}
