//! Owns the limits on the node's disk: `sizeLimit` of an `emptyDir`, and `limits.ephemeral-storage`. A directory cannot be
//! limited, so it is measured, as the kubelet does; a pod over its limit is evicted. Pods without such a limit cost nothing.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, PodSpec};
use tokio::sync::{mpsc, watch};
use tokio_util::task::AbortOnDropHandle;

use crate::pods::context::{Context, View};
use crate::pods::uid;
use crate::pods::worker::Message;
use crate::resources;

/// The kubelet's eviction monitor has the same period.
const PERIOD: Duration = Duration::from_secs(10);

/// A limit in bytes, and as its author wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Limit {
    bytes: u64,
    text: String,
}

/// What a pod may use of the disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Limits {
    volumes: BTreeMap<String, Limit>,
    containers: BTreeMap<String, Limit>,
}

/// What it uses, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Usage {
    volumes: BTreeMap<String, u64>,
    containers: BTreeMap<String, u64>,
}

/// Where that lies.
#[derive(Debug, Default)]
struct Places {
    volumes: Vec<(String, PathBuf)>,
    containers: Vec<(String, Vec<PathBuf>)>,
}

/// Measures a pod for as long as the handle lives, and tells its worker once when it is over a limit. `None` when it has
/// none.
pub(crate) fn watch(
    ctx: &Arc<Context>,
    view: watch::Receiver<View>,
    mailbox: mpsc::UnboundedSender<Message>,
) -> Option<AbortOnDropHandle<()>> {
    let limits = Limits::of(&view.borrow().pod.spec)?;
    let ctx = ctx.clone();
    let measuring = async move {
        loop {
            tokio::time::sleep(PERIOD).await;
            let places = Places::of(&ctx, &view.borrow());
            let Ok(usage) = tokio::task::spawn_blocking(move || places.measure()).await else { return };
            if let Some(message) = limits.exceeded(&usage) {
                // A worker that is gone has nothing left to evict.
                let _ = mailbox.send(Message::OverLimit(message));
                return;
            }
        }
    };
    Some(AbortOnDropHandle::new(tokio::spawn(measuring)))
}

/// Those that run side by side.
fn long_running(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    spec.containers.iter().chain(sidecars)
}

impl Limits {
    fn of(spec: &PodSpec) -> Option<Limits> {
        let volumes = spec.volumes.iter().flatten().filter_map(|volume| {
            // In memory the file system keeps the limit by itself.
            let source =
                volume.empty_dir.as_ref().filter(|source| source.medium.as_deref().unwrap_or("").is_empty())?;
            let bytes = crate::volumes::empty_dir::size_limit(source)?;
            Some((volume.name.clone(), Limit { bytes, text: source.size_limit.clone()?.0 }))
        });
        let containers = long_running(spec).filter_map(|container| {
            let limit = container.resources.as_ref()?.limits.as_ref()?.get("ephemeral-storage")?;
            let bytes = u64::try_from(resources::milli(limit) / 1000).ok().filter(|bytes| *bytes > 0)?;
            Some((container.name.clone(), Limit { bytes, text: limit.0.clone() }))
        });
        let limits = Limits { volumes: volumes.collect(), containers: containers.collect() };
        (limits != Limits::default()).then_some(limits)
    }

    /// Which limit is exceeded, in the kubelet's words; its order of looking, too.
    fn exceeded(&self, usage: &Usage) -> Option<String> {
        let over = |used: &BTreeMap<String, u64>, name: &str, limit: &Limit| {
            used.get(name).is_some_and(|used| *used > limit.bytes)
        };
        if let Some((name, limit)) = self.volumes.iter().find(|(name, limit)| over(&usage.volumes, name, limit)) {
            return Some(format!("Usage of EmptyDir volume \"{name}\" exceeds the limit \"{}\". ", limit.text));
        }
        let total: u64 = usage.volumes.values().chain(usage.containers.values()).sum();
        let allowed: u64 = self.containers.values().map(|limit| limit.bytes).sum();
        if !self.containers.is_empty() && total > allowed {
            return Some(format!(
                "Pod ephemeral local storage usage exceeds the total limit of containers {}. ",
                self.containers.values().map(|limit| limit.text.as_str()).collect::<Vec<_>>().join(" + ")
            ));
        }
        let (name, limit) = self.containers.iter().find(|(name, limit)| over(&usage.containers, name, limit))?;
        Some(format!("Container {name} exceeded its local ephemeral storage limit \"{}\". ", limit.text))
    }
}

impl Places {
    fn of(ctx: &Context, view: &View) -> Places {
        let uid = uid(&view.pod);
        let on_disk = |volume: &&k8s_openapi::api::core::v1::Volume| {
            volume.empty_dir.as_ref().is_some_and(|source| source.medium.as_deref().unwrap_or("").is_empty())
        };
        let volumes = view.pod.spec.volumes.iter().flatten().filter(on_disk);
        let containers = long_running(&view.pod.spec).map(|container| {
            let run = view.tracks.iter().find(|track| track.name == container.name).and_then(|track| track.run());
            let writable = run.and_then(|run| ctx.runtime.writable_layer(&run.id.0));
            let places = std::iter::once(ctx.layout.logs(uid, &container.name)).chain(writable);
            (container.name.clone(), places.collect())
        });
        Places {
            volumes: volumes.map(|volume| (volume.name.clone(), ctx.layout.volume(uid, &volume.name))).collect(),
            containers: containers.collect(),
        }
    }

    /// Blocking.
    fn measure(&self) -> Usage {
        let sum = |places: &[PathBuf]| places.iter().map(|place| disk_usage(place)).sum();
        Usage {
            volumes: self.volumes.iter().map(|(name, place)| (name.clone(), disk_usage(place))).collect(),
            containers: self.containers.iter().map(|(name, places)| (name.clone(), sum(places))).collect(),
        }
    }
}

/// Bytes a tree takes on its disk: blocks, a file with several names once, nothing that is mounted in it. What vanishes
/// meanwhile counts no more.
fn disk_usage(root: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let Ok(top) = std::fs::symlink_metadata(root) else { return 0 };
    let mut seen = HashSet::new();
    let mut bytes = top.blocks() * 512;
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            // Not followed when it is a link.
            let Ok(found) = entry.metadata() else { continue };
            if found.dev() != top.dev() || (!found.is_dir() && found.nlink() > 1 && !seen.insert(found.ino())) {
                continue;
            }
            bytes += found.blocks() * 512;
            if found.is_dir() {
                todo.push(entry.path());
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn limits(spec: Value) -> Option<Limits> {
        Limits::of(&serde_json::from_value(spec).unwrap())
    }

    fn container(name: &str, limit: Value) -> Value {
        json!({"name": name, "resources": {"limits": limit}})
    }

    #[test]
    fn only_pods_with_a_limit_are_measured() {
        let plain = json!({"containers": [container("a", json!({"memory": "1Gi"}))],
            "volumes": [{"name": "v", "emptyDir": {}}, {"name": "m", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}]});
        assert_eq!(limits(plain), None);
        assert!(
            limits(json!({"containers": [], "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1Mi"}}]})).is_some()
        );
        assert!(limits(json!({"containers": [container("a", json!({"ephemeral-storage": "1Mi"}))]})).is_some());
    }

    #[test]
    fn the_first_limit_exceeded_is_told() {
        let limits = limits(json!({
            "containers": [container("a", json!({"ephemeral-storage": "1Ki"})), container("b", json!({"ephemeral-storage": "3Ki"}))],
            "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "2Ki"}}]
        }))
        .unwrap();
        let told = |volume: u64, a: u64, b: u64| {
            limits.exceeded(&Usage {
                volumes: [("v".to_owned(), volume)].into(),
                containers: [("a".to_owned(), a), ("b".to_owned(), b)].into(),
            })
        };
        assert_eq!(told(2048, 1024, 1024), None);
        assert_eq!(told(2049, 5000, 0).unwrap(), "Usage of EmptyDir volume \"v\" exceeds the limit \"2Ki\". ");
        assert_eq!(
            told(2048, 1024, 1025).unwrap(),
            "Pod ephemeral local storage usage exceeds the total limit of containers 1Ki + 3Ki. "
        );
        assert_eq!(told(0, 1025, 0).unwrap(), "Container a exceeded its local ephemeral storage limit \"1Ki\". ");
    }

    #[test]
    fn a_tree_is_measured_without_what_links_lead_to() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("sub")).unwrap();
        let empty = disk_usage(&root);
        let big = vec![7; 1 << 20];
        std::fs::write(root.join("sub/file"), &big).unwrap();
        std::fs::hard_link(root.join("sub/file"), root.join("again")).unwrap();
        std::fs::write(dir.path().join("outside"), &big).unwrap();
        std::os::unix::fs::symlink("../outside", root.join("link")).unwrap();
        let used = disk_usage(&root) - empty;
        assert!((1 << 20..3 << 19).contains(&used), "{used}");
        assert_eq!(disk_usage(&dir.path().join("none")), 0);
    }
}
