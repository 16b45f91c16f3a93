//! Owns volumes that a pod has through a claim: from the claim to the persistent volume to a place on this machine. The
//! pod gets a link to it, which says for as long as the pod has its volumes that this one is in use.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec, Volume};
use kube::{Api, ResourceExt as _};
use proa_crds::annotations::VOLUME_IN_USE;

use super::{VolumeError, host_path, io_error, ownership};
use crate::pods::context::Context;
use crate::pods::{Pod, uid};

/// The name of the claim behind a volume, if it has one.
pub(crate) fn claim_name(pod: &Pod, volume: &Volume) -> Option<String> {
    match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(source), _) => Some(source.claim_name.clone()),
        // KEP-1698.
        (_, Some(_)) => Some(format!("{}-{}", pod.metadata.name.as_deref().unwrap_or_default(), volume.name)),
        _ => None,
    }
}

/// Where the volume of a claim lies: where the pod's link leads.
pub(super) fn place(link: PathBuf) -> PathBuf {
    std::fs::read_link(&link).unwrap_or(link)
}

/// Finds the volume and makes it the pod's, once: what a pod has it keeps, whatever becomes of the claim.
pub(super) async fn setup(ctx: &Arc<Context>, pod: &Pod, volume: &Volume, claim: &str) -> Result<(), VolumeError> {
    let name = volume.name.as_str();
    let link = ctx.layout.volume(uid(pod), name);
    if link.symlink_metadata().is_ok() {
        return Ok(());
    }
    let wrong = |why: String| VolumeError::Source { volume: name.to_owned(), why };
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(ctx.client.clone(), namespace);
    let volumes: Api<PersistentVolume> = Api::all(ctx.client.clone());
    let claim = claims.get(claim).await.map_err(|e| wrong(failed(&e)))?;
    let bound = volume_of(pod, volume, &claim).map_err(wrong)?.to_owned();

    // From here on until the link is there no volume is removed.
    let entered = ctx.local_volumes.enter().await;
    let found = volumes.get(&bound).await.map_err(|e| wrong(failed(&e)))?;
    let spec = usable(&found, &claim).map_err(wrong)?;
    if let Some(required) = spec.node_affinity.as_ref().and_then(|affinity| affinity.required.as_ref()) {
        let nodes: Api<Node> = Api::all(ctx.client.clone());
        let node = nodes.get_metadata(&ctx.node_name).await.map_err(|e| wrong(failed(&e)))?;
        if !proa_crds::selects_node(required, &ctx.node_name, node.labels()) {
            let why =
                format!("MountVolume.NodeAffinity check failed for volume \"{bound}\" : no matching NodeSelectorTerms");
            return Err(VolumeError::Mount(why));
        }
    }
    let (path, managed) = source(ctx, name, &found, spec)?;
    let claimed = aside(&link);
    let linked = || -> std::io::Result<()> {
        if let Some(parent) = claimed.parent() {
            std::fs::create_dir_all(parent)?;
        }
        match std::fs::remove_file(&claimed) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => std::os::unix::fs::symlink(&path, &claimed),
        }
    };
    linked().map_err(io_error(name, &claimed))?;
    drop(entered);

    let read_only = volume.persistent_volume_claim.as_ref().is_some_and(|source| source.read_only == Some(true));
    if let (Some(group), true, false) = (super::fs_group(pod), managed, read_only) {
        let policy = pod.spec.security_context.as_ref().and_then(|c| c.fs_group_change_policy.clone());
        let root = path.clone();
        let given = tokio::task::spawn_blocking(move || ownership::give(&root, group, policy.as_deref()));
        given.await.map_err(|e| wrong(e.to_string()))?.map_err(io_error(name, &path))?;
    }
    // With its name the link says that the volume is as the pod wants it.
    std::fs::rename(&claimed, &link).map_err(io_error(name, &link))
}

/// The link's name while the volume is not ready yet. It counts as a use like the other.
fn aside(link: &Path) -> PathBuf {
    let name = link.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    link.with_file_name(format!(".{name}"))
}

fn failed(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// The name of the volume the claim is bound to, for a pod that may use it.
fn volume_of<'a>(pod: &Pod, volume: &Volume, claim: &'a PersistentVolumeClaim) -> Result<&'a str, String> {
    let key = format!("{}/{}", claim.namespace().unwrap_or_default(), claim.name_any());
    let owned = || {
        let owners = claim.metadata.owner_references.iter().flatten();
        owners.into_iter().any(|owner| owner.controller == Some(true) && Some(&owner.uid) == pod.metadata.uid.as_ref())
    };
    if volume.ephemeral.is_some() && !owned() {
        let pod = format!("{}/{}", pod.metadata.namespace.as_deref().unwrap_or_default(), pod.name_any());
        return Err(format!("PVC {key} was not created for pod {pod} (pod is not owner)"));
    }
    if claim.metadata.deletion_timestamp.is_some() {
        return Err(format!("PVC {key} is being deleted"));
    }
    let bound = claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound");
    let name = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).filter(|name| !name.is_empty());
    name.filter(|_| bound).ok_or_else(|| format!("PVC {key} is not bound"))
}

/// The spec of a volume that is the claim's, and of a kind that can be mounted.
fn usable<'a>(volume: &'a PersistentVolume, claim: &PersistentVolumeClaim) -> Result<&'a PersistentVolumeSpec, String> {
    let name = volume.name_any();
    let spec = volume.spec.as_ref().ok_or_else(|| format!("PV {name} has no spec"))?;
    if spec.claim_ref.as_ref().is_none_or(|reference| reference.uid != claim.metadata.uid) {
        return Err(format!(
            "PV {name} is not bound to PVC {}/{}",
            claim.namespace().unwrap_or_default(),
            claim.name_any()
        ));
    }
    let protected = volume.finalizers().iter().any(|finalizer| finalizer == VOLUME_IN_USE);
    if volume.metadata.deletion_timestamp.is_some() && !protected {
        return Err(format!("PV {name} is being deleted"));
    }
    if spec.volume_mode.as_deref() == Some("Block") {
        return Err(format!("PV {name}: block volumes are not supported by Proa yet"));
    }
    if spec.mount_options.as_ref().is_some_and(|options| !options.is_empty()) {
        return Err(format!("PV {name}: mount options are not supported for its kind of volume"));
    }
    Ok(spec)
}

/// Where the volume lies on this machine, and whether `fsGroup` applies to it (it does not to a `hostPath`).
fn source(
    ctx: &Context,
    name: &str,
    volume: &PersistentVolume,
    spec: &PersistentVolumeSpec,
) -> Result<(PathBuf, bool), VolumeError> {
    let wrong = |why: String| VolumeError::Source { volume: name.to_owned(), why };
    if let Some(source) = &spec.host_path {
        host_path(name, source)?;
        return Ok((PathBuf::from(&source.path), false));
    }
    let Some(source) = &spec.local else {
        return Err(VolumeError::Unsupported { volume: name.to_owned(), kind: kind_of(spec) });
    };
    if let Some(own) = ctx.local_volumes.path_of(volume) {
        ctx.local_volumes.make(&own).map_err(io_error(name, &own))?;
        return Ok((own, true));
    }
    let path = PathBuf::from(&source.path);
    match path.metadata() {
        Ok(found) if found.is_dir() => Ok((path, true)),
        Ok(_) => Err(wrong(format!(
            "path \"{}\" is no directory; local volumes on devices are not supported by Proa yet",
            source.path
        ))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(wrong(format!("path \"{}\" does not exist", source.path)))
        }
        Err(error) => Err(io_error(name, &path)(error)),
    }
}

/// The field a volume names its source by.
fn kind_of(spec: &PersistentVolumeSpec) -> String {
    const COMMON: [&str; 9] = [
        "capacity",
        "accessModes",
        "claimRef",
        "persistentVolumeReclaimPolicy",
        "storageClassName",
        "mountOptions",
        "volumeMode",
        "nodeAffinity",
        "volumeAttributesClassName",
    ];
    let fields = serde_json::to_value(spec).unwrap_or_default();
    let mut fields = fields.as_object().into_iter().flatten().map(|(field, _)| field);
    fields.find(|field| !COMMON.contains(&field.as_str())).cloned().unwrap_or_else(|| "unknown".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn claim(metadata: Value, status: &str) -> PersistentVolumeClaim {
        let mut value = json!({"metadata": {"name": "c", "namespace": "ns", "uid": "c1"},
            "spec": {"volumeName": "v"}, "status": {"phase": status}});
        for (field, given) in metadata.as_object().unwrap() {
            value["metadata"][field] = given.clone();
        }
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_pod_uses_a_claim_that_is_bound_stays_and_is_its_own() {
        let pod: Pod = serde_json::from_value(
            json!({"metadata": {"name": "p", "namespace": "ns", "uid": "p1"}, "spec": {"containers": []}}),
        )
        .unwrap();
        let named: Volume =
            serde_json::from_value(json!({"name": "d", "persistentVolumeClaim": {"claimName": "c"}})).unwrap();
        let own: Volume =
            serde_json::from_value(json!({"name": "d", "ephemeral": {"volumeClaimTemplate": {"spec": {}}}})).unwrap();
        assert_eq!(claim_name(&pod, &named).as_deref(), Some("c"));
        assert_eq!(claim_name(&pod, &own).as_deref(), Some("p-d"));
        assert_eq!(volume_of(&pod, &named, &claim(json!({}), "Bound")), Ok("v"));
        for (volume, claim, why) in [
            (&named, claim(json!({}), "Pending"), "PVC ns/c is not bound"),
            (&named, claim(json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}), "Bound"), "PVC ns/c is being deleted"),
            (&own, claim(json!({}), "Bound"), "PVC ns/c was not created for pod ns/p (pod is not owner)"),
        ] {
            assert_eq!(volume_of(&pod, volume, &claim), Err(why.to_owned()));
        }
        let owner = json!({"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "p1", "controller": true}]});
        assert_eq!(volume_of(&pod, &own, &claim(owner, "Bound")), Ok("v"));
    }

    #[test]
    fn what_cannot_be_mounted_is_refused_by_name() {
        let volume = |spec: Value| -> PersistentVolume {
            let mut spec = spec;
            spec["claimRef"] = json!({"name": "c", "namespace": "ns", "uid": "c1"});
            serde_json::from_value(json!({"metadata": {"name": "v"}, "spec": spec})).unwrap()
        };
        let bound = claim(json!({}), "Bound");
        assert!(usable(&volume(json!({"local": {"path": "/x"}})), &bound).is_ok());
        let other = claim(json!({"uid": "c2"}), "Bound");
        assert_eq!(usable(&volume(json!({})), &other).unwrap_err(), "PV v is not bound to PVC ns/c");
        let block = usable(&volume(json!({"volumeMode": "Block"})), &bound).unwrap_err();
        assert_eq!(block, "PV v: block volumes are not supported by Proa yet");
        assert!(usable(&volume(json!({"mountOptions": ["ro"]})), &bound).is_err());
        let kind = |spec: Value| kind_of(volume(spec).spec.as_ref().unwrap());
        assert_eq!(kind(json!({"capacity": {"storage": "1Gi"}, "nfs": {"server": "s", "path": "/"}})), "nfs");
        assert_eq!(kind(json!({"csi": {"driver": "d", "volumeHandle": "h"}})), "csi");
    }
}
