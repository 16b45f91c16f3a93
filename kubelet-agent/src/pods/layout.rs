//! Owns where a pod's files lie below the agent's directory. Never creates them.

use std::path::{Path, PathBuf};

/// The directory tree of all pods.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    root: PathBuf,
}

impl Layout {
    pub(crate) fn new(data_dir: &Path) -> Self {
        Self { root: data_dir.join("pods") }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Everything of one pod.
    pub(crate) fn pod(&self, uid: &str) -> PathBuf {
        self.root.join(uid)
    }

    /// One volume.
    pub(crate) fn volume(&self, uid: &str, name: &str) -> PathBuf {
        self.pod(uid).join("volumes").join(name)
    }

    /// Volumes one run has because its image declares them.
    pub(crate) fn image_volumes(&self, uid: &str, container: &str, attempt: u32) -> PathBuf {
        self.pod(uid).join("image-volumes").join(format!("{container}.{attempt}"))
    }

    /// A file the agent makes for the pod: `hosts`, `hostname`, `resolv.conf`.
    pub(crate) fn etc(&self, uid: &str, file: &str) -> PathBuf {
        self.pod(uid).join("etc").join(file)
    }

    /// Logs of one container, one file per run.
    pub(crate) fn logs(&self, uid: &str, container: &str) -> PathBuf {
        self.pod(uid).join("logs").join(container)
    }

    /// Log of one run.
    pub(crate) fn log(&self, uid: &str, container: &str, attempt: u32) -> PathBuf {
        self.logs(uid, container).join(format!("{attempt}.log"))
    }

    /// Where a run may leave its last words.
    pub(crate) fn termination_log(&self, uid: &str, container: &str, attempt: u32) -> PathBuf {
        self.pod(uid).join("last-words").join(format!("{container}.{attempt}"))
    }
}
