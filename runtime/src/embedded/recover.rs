//! Starting is recovering: what an earlier agent left is found again or cleared away.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::container::{Container, Phase};
use super::sandbox::{self, SandboxRecord};
use super::{Inner, shims, spawn};
use crate::cgroup::Cgroups;
use crate::disk::{self, Ended};
use crate::error::RuntimeError;
use crate::protocol::Record;
use crate::shim::files;

/// A living shim answers at once, unless it is just setting its container up.
const GREETING: Duration = Duration::from_secs(10);

impl Inner {
    pub(super) async fn recover(&self) -> Result<(), RuntimeError> {
        for dir in entries(&self.dir.join("sandboxes")) {
            match SandboxRecord::load(&dir) {
                Ok(record) => {
                    self.sandboxes().insert(record.spec.id.clone(), record);
                }
                Err(error) => {
                    // Written before anything else of a sandbox: without it there was nothing yet.
                    tracing::warn!(dir = %dir.display(), %error, "clearing away a sandbox without a record");
                    for pin in entries(&dir) {
                        sandbox::unmount(&pin);
                    }
                    sandbox::remove_dir(&dir).map_err(RuntimeError::io(format!("removing {}", dir.display())))?;
                }
            }
        }
        let found = entries(&self.dir.join("containers")).into_iter().map(|dir| self.take_back(dir));
        futures::future::join_all(found).await.into_iter().collect()
    }

    async fn take_back(&self, dir: PathBuf) -> Result<(), RuntimeError> {
        let record: Record = match disk::read_json(&dir.join(files::RECORD)) {
            Ok(record) => record,
            Err(error) => {
                // Written before the shim is started: without it there was no process yet.
                tracing::warn!(dir = %dir.display(), %error, "clearing away a container without a record");
                return sandbox::remove_dir(&dir).map_err(RuntimeError::io(format!("removing {}", dir.display())));
            }
        };
        let container = Arc::new(Container::new(record, dir, Phase::Created { pid: None }));
        if let Ok(ended) = disk::read_json::<Ended>(&container.dir.join(files::EXIT)) {
            container.phase.send_replace(Phase::Exited { started_at: ended.started_at, exit: ended.exit });
        } else if !self.reconnect(&container).await {
            let (lost, cgroups) = (Arc::clone(&container), self.cgroups.clone());
            super::blocking(move || {
                lost.settle_now(&cgroups);
                Ok(())
            })
            .await?;
        }
        self.containers().insert(container.id().to_owned(), container);
        Ok(())
    }

    async fn reconnect(&self, container: &Arc<Container>) -> bool {
        let Ok(socket) = spawn::connect(&container.dir) else { return false };
        let greeting = container.hear(socket, self.cgroups.clone(), self.events.clone());
        match tokio::time::timeout(GREETING, greeting).await {
            Ok(Ok(_)) => true,
            Ok(Err(error)) => {
                tracing::info!(container = container.id(), %error, "a shim ended while it was taken back");
                false
            }
            Err(_) => {
                tracing::warn!(container = container.id(), "a shim does not answer");
                false
            }
        }
    }
}

/// The layers each container of a state directory is made of, living ones or not, top first: who removes images leaves these.
pub fn layers_in_use(state_dir: &Path) -> Vec<Vec<PathBuf>> {
    let records = entries(&state_dir.join("containers"))
        .into_iter()
        .filter_map(|dir| disk::read_json::<Record>(&dir.join(files::RECORD)).ok());
    records.map(|record| record.spec.layers).collect()
}

/// Kills and removes everything of a state directory, the directory, and `cgroup_root`: the control group above all that its
/// sandboxes were given (with the groups above it, as far as they are empty then). What is not there is fine.
/// Goes on past an error and returns the first one.
pub fn reset(state_dir: &Path, cgroup_root: &str) -> Result<(), RuntimeError> {
    let cgroups = Cgroups::detect().map_err(RuntimeError::io("control groups"))?;
    let mut result = Ok(());
    let mut note = |outcome: Result<(), RuntimeError>| {
        if result.is_ok() {
            result = outcome;
        }
    };
    let containers = state_dir.join("containers");
    // Shims first: one that is just setting its container up would go on making what is removed below.
    note(shims::end(&containers).map_err(RuntimeError::io("shims")));
    for dir in entries(&containers) {
        if let Ok(record) = disk::read_json::<Record>(&dir.join(files::RECORD)) {
            let group = crate::oci::cgroup_path(&record.sandbox, &record.spec.id);
            note(cgroups.clear(&group).map_err(RuntimeError::io(format!("cgroup {group}"))));
        }
        note(sandbox::remove_dir(&dir).map_err(RuntimeError::io(format!("removing {}", dir.display()))));
    }
    for dir in entries(&state_dir.join("sandboxes")) {
        match SandboxRecord::load(&dir) {
            Ok(record) => note(sandbox::unmake(&dir, &record.spec, &cgroups)),
            Err(_) => {
                for pin in entries(&dir) {
                    sandbox::unmount(&pin);
                }
                note(sandbox::remove_dir(&dir).map_err(RuntimeError::io(format!("removing {}", dir.display()))));
            }
        }
    }
    // Whatever the records say: nothing of ours may run on.
    note(cgroups.clear(cgroup_root).map_err(RuntimeError::io(format!("cgroup {cgroup_root}"))));
    cgroups.remove_empty_ancestors(cgroup_root);
    note(sandbox::remove_dir(state_dir).map_err(RuntimeError::io(format!("removing {}", state_dir.display()))));
    result
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries.flatten().map(|entry| entry.path()).collect()
}
