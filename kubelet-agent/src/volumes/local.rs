//! Owns the directories of `proa.dev/local` volumes on this node: made when a pod first uses one, removed when the volume
//! is deleted and nobody uses it, kept when its policy says so. Never removes what no volume tells it to: what lies here
//! is somebody's data.
//!
//! A crash leaves nothing behind that the next start does not finish: a directory is made and removed under another name,
//! and the volume's finalizer stays until its directory is gone. A pod that uses a volume has a link to it among its
//! volumes; as long as one does, also one of a pod that the API has forgotten, the volume is in use.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::PersistentVolume;
use kube::api::{Patch, PatchParams};
use kube::core::ApiResource;
use kube::runtime::watcher;
use kube::{Api, ResourceExt as _};
use proa_crds::Decoded;
use proa_crds::annotations::{HOSTNAME, LOCAL_PROVISIONER, LOCAL_VOLUME, PROVISIONED_BY, VOLUME_IN_USE};
use serde_json::json;
use tokio::sync::{Mutex, MutexGuard, Notify};
use tokio_util::sync::CancellationToken;

use crate::events::Severity;
use crate::mounts::remove_tree;
use crate::pods::context::Context;
use crate::watches::watch;

/// Volumes are for whoever runs in the pod, as an `emptyDir` is.
const MODE: u32 = 0o777;
/// When a removal that failed is tried again.
const AGAIN: Duration = Duration::from_secs(10);
/// What is being made, and what is being removed. No volume is called so: names begin with a letter or a digit.
const MAKING: &str = ".new-";
const REMOVING: &str = ".gone-";

/// The directories.
pub(crate) struct LocalVolumes {
    root: PathBuf,
    /// Held while a volume gets a user, and while it is made sure that one has none.
    gate: Mutex<()>,
    freed: Notify,
}

impl LocalVolumes {
    /// Makes the folder of all volumes, and forgets what an earlier agent had begun to make there.
    pub(crate) fn open(data_dir: &Path) -> io::Result<Self> {
        let root = data_dir.join("volumes");
        std::fs::create_dir_all(&root)?;
        for entry in std::fs::read_dir(&root)?.flatten() {
            // Nothing is in it before it has its name.
            if entry.file_name().to_string_lossy().starts_with(MAKING) {
                std::fs::remove_dir(entry.path())?;
            }
        }
        Ok(Self { root, gate: Mutex::default(), freed: Notify::new() })
    }

    /// Ends the removals an earlier agent had begun. Blocking, and long where much is left.
    fn sweep(&self) {
        for entry in std::fs::read_dir(&self.root).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(REMOVING)
                && let Err(error) = remove_tree(&entry.path())
            {
                tracing::warn!(error, "what is left of a volume stays behind");
            }
        }
    }

    /// The folder of all volumes.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Keeps volumes from being removed while it is held.
    pub(crate) async fn enter(&self) -> MutexGuard<'_, ()> {
        self.gate.lock().await
    }

    /// A pod's volumes have been taken away: one that waits for its last user may go.
    pub(crate) fn released(&self) {
        self.freed.notify_one();
    }

    /// Where a volume's directory is, when it is one of ours.
    pub(crate) fn path_of(&self, volume: &PersistentVolume) -> Option<PathBuf> {
        let ours = volume.annotations().get(PROVISIONED_BY).is_some_and(|by| by == LOCAL_PROVISIONER);
        let path = PathBuf::from(&volume.spec.as_ref()?.local.as_ref()?.path);
        (ours && path == self.root.join(volume.name_any())).then_some(path)
    }

    /// Makes the directory of a volume, or finds it made. It is complete, and on the disk, before it has its name.
    pub(crate) fn make(&self, path: &Path) -> io::Result<()> {
        if path.is_dir() {
            return Ok(());
        }
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy();
        let aside = self.root.join(format!("{MAKING}{name}"));
        std::fs::create_dir_all(&aside)?;
        std::fs::set_permissions(&aside, std::fs::Permissions::from_mode(MODE))?;
        std::fs::rename(&aside, path)?;
        std::fs::File::open(&self.root)?.sync_all()
    }

    /// Takes the directory out of reach; what is left to remove.
    fn set_aside(&self, path: &Path) -> Result<PathBuf, String> {
        let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
        let aside = self.root.join(format!("{REMOVING}{name}"));
        remove_tree(&aside)?;
        match std::fs::rename(path, &aside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(format!("{}: {error}", path.display())),
            _ => Ok(aside),
        }
    }
}

/// Whether a pod has the volume at `path`; `pods` is the folder of all pods' directories.
fn is_used(pods: &Path, path: &Path) -> bool {
    let volumes = std::fs::read_dir(pods).into_iter().flatten().flatten().map(|pod| pod.path().join("volumes"));
    let entries = volumes.flat_map(|volumes| std::fs::read_dir(volumes).into_iter().flatten().flatten());
    entries.map(|entry| entry.path()).any(|entry| std::fs::read_link(entry).is_ok_and(|target| target == path))
}

/// A volume that is to go, and that no claim holds any more.
fn is_leaving(volume: &PersistentVolume) -> bool {
    let held = |finalizer: &str| volume.finalizers().iter().any(|have| have == finalizer);
    let bound = volume.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound");
    volume.metadata.deletion_timestamp.is_some() && held(LOCAL_VOLUME) && !held(VOLUME_IN_USE) && !bound
}

/// What came of a removal.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Removal {
    /// The directory is gone, or kept as its policy says, and the volume let go.
    Done,
    /// A pod still has it.
    InUse,
}

/// Removes what deleted volumes leave on this node, until `shutdown`.
pub(crate) async fn run(ctx: Arc<Context>, shutdown: CancellationToken) {
    let api = Api::all_with(ctx.client.clone(), &ApiResource::erase::<PersistentVolume>(&()));
    let config = watcher::Config::default().labels(&format!("{HOSTNAME}={}", ctx.node_name));
    let mut events = watch(api, config);
    let shared = ctx.clone();
    tokio::task::spawn_blocking(move || shared.local_volumes.sweep());
    let mut leaving: BTreeMap<String, PersistentVolume> = BTreeMap::new();
    let mut again = None;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            event = events.next() => match event {
                Some(Ok(watcher::Event::Init)) => leaving.clear(),
                Some(Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object))) => {
                    if let Decoded::Object(volume) = object.decode::<PersistentVolume>() {
                        if is_leaving(&volume) {
                            leaving.insert(volume.name_any(), volume);
                        } else {
                            leaving.remove(&volume.name_any());
                        }
                    }
                }
                Some(Ok(watcher::Event::Delete(volume))) => {
                    if let Some(name) = &volume.metadata().name {
                        leaving.remove(name);
                    }
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => {
                    tracing::warn!(%error, "watch of volumes failed; trying again");
                    continue;
                }
                None => return,
            },
            () = ctx.local_volumes.freed.notified() => {}
            () = until(again) => {}
        }
        again = None;
        let mut over = Vec::new();
        for (name, volume) in &leaving {
            match remove(&ctx, volume).await {
                Ok(Removal::Done) => over.push(name.clone()),
                Ok(Removal::InUse) => {}
                Err(why) => {
                    ctx.recorder.volume(volume, Severity::Warning, "VolumeFailedDelete", why);
                    again = Some(tokio::time::Instant::now() + AGAIN);
                }
            }
        }
        over.iter().for_each(|name| drop(leaving.remove(name)));
    }
}

async fn until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Removes the directory of a volume that is to go, and lets go of it.
pub(crate) async fn remove(ctx: &Arc<Context>, volume: &PersistentVolume) -> Result<Removal, String> {
    let policy = volume.spec.as_ref().and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
    if let Some(path) = ctx.local_volumes.path_of(volume) {
        let shared = ctx.clone();
        let delete = policy == Some("Delete");
        let gate = ctx.local_volumes.enter().await;
        let look = move || -> Result<Option<Option<PathBuf>>, String> {
            if is_used(shared.layout.root(), &path) {
                return Ok(None);
            }
            Ok(Some(if delete { Some(shared.local_volumes.set_aside(&path)?) } else { None }))
        };
        let aside = tokio::task::spawn_blocking(look).await.map_err(|error| error.to_string())??;
        drop(gate);
        match aside {
            None => return Ok(Removal::InUse),
            Some(None) => {}
            Some(Some(aside)) => {
                tokio::task::spawn_blocking(move || remove_tree(&aside)).await.map_err(|error| error.to_string())??;
            }
        }
    }
    if ctx.local_volumes.path_of(volume).is_none() && policy == Some("Delete") {
        let path = volume.spec.as_ref().and_then(|spec| spec.local.as_ref()).map_or("", |local| local.path.as_str());
        let why = format!("{path:?} is not among this node's volumes and was not removed");
        ctx.recorder.volume(volume, Severity::Warning, "VolumeFailedDelete", why);
    }
    let kept: Vec<&String> = volume.finalizers().iter().filter(|finalizer| *finalizer != LOCAL_VOLUME).collect();
    let patch = json!({"metadata": {
        "uid": volume.metadata.uid, "resourceVersion": volume.metadata.resource_version, "finalizers": kept,
    }});
    let api: Api<PersistentVolume> = Api::all(ctx.client.clone());
    match api.patch(&volume.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await {
        Ok(_) => Ok(Removal::Done),
        // Gone already; or changed, and then its event has come or is coming.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(Removal::Done),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(value: serde_json::Value) -> PersistentVolume {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_directory_is_made_whole_and_what_was_begun_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("volumes");
        for begun in [".new-pvc-1", ".gone-b/deep", "kept"] {
            std::fs::create_dir_all(root.join(begun)).unwrap();
        }
        let volumes = LocalVolumes::open(dir.path()).unwrap();
        volumes.sweep();
        let left: Vec<_> = std::fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["kept"], "nobody said that this one may go");
        let path = root.join("pvc-1");
        volumes.make(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o7777, 0o777);
        std::fs::write(path.join("data"), "x").unwrap();
        volumes.make(&path).unwrap();
        assert!(path.join("data").exists());
        let aside = volumes.set_aside(&path).unwrap();
        assert!(!path.exists() && aside.join("data").exists());
        assert_eq!(volumes.set_aside(&path).unwrap(), aside, "again, after a crash");
    }

    #[test]
    fn a_volume_is_in_use_while_a_pod_links_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let (pods, path) = (dir.path().join("pods"), dir.path().join("volumes/pvc-1"));
        assert!(!is_used(&pods, &path));
        std::fs::create_dir_all(pods.join("u/volumes/empty")).unwrap();
        assert!(!is_used(&pods, &path));
        std::os::unix::fs::symlink(&path, pods.join("u/volumes/data")).unwrap();
        assert!(is_used(&pods, &path));
        assert!(!is_used(&pods, &dir.path().join("volumes/pvc-11")));
    }

    #[test]
    fn only_a_directory_of_our_own_is_ours() {
        let dir = tempfile::tempdir().unwrap();
        let volumes = LocalVolumes::open(dir.path()).unwrap();
        let at = |name: &str, path: PathBuf, by: &str| {
            let annotations = json!({PROVISIONED_BY: by});
            volumes.path_of(&volume(
                json!({"metadata": {"name": name, "annotations": annotations}, "spec": {"local": {"path": path}}}),
            ))
        };
        let own = volumes.root().join("v");
        assert_eq!(at("v", own.clone(), LOCAL_PROVISIONER), Some(own.clone()));
        assert_eq!(at("v", own.clone(), "somebody"), None);
        assert_eq!(at("w", own, LOCAL_PROVISIONER), None);
        assert_eq!(at("v", volumes.root().join("v/../w"), LOCAL_PROVISIONER), None);
        assert_eq!(at("etc", "/etc".into(), LOCAL_PROVISIONER), None);
    }

    #[test]
    fn a_volume_leaves_when_nothing_but_its_directory_holds_it() {
        let state = |deleting: bool, finalizers: &[&str], phase: &str| {
            let mut value = json!({"metadata": {"name": "v", "finalizers": finalizers}, "status": {"phase": phase}});
            if deleting {
                value["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            }
            is_leaving(&volume(value))
        };
        assert!(state(true, &[LOCAL_VOLUME], "Released"));
        assert!(!state(false, &[LOCAL_VOLUME], "Released"));
        assert!(!state(true, &[LOCAL_VOLUME, VOLUME_IN_USE], "Released"));
        assert!(!state(true, &[LOCAL_VOLUME], "Bound"), "somebody took the protection off by hand");
        assert!(!state(true, &["example.com/other"], "Released"));
    }
}
