//! Owns what stands in ConfigMap, Secret, downward API and projected volumes: from sources to files.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, KeyToPath, Volume, VolumeProjection};
use tokio::sync::Notify;

use super::atomic::{self, FileOf, Payload};
use super::{VolumeError, io_error, tokens};
use crate::env;
use crate::objects::{Contents, ObjectRef, kept_name};
use crate::pods::context::Context;
use crate::pods::{Pod, security, uid};

const DEFAULT_MODE: i32 = 0o644;

/// Whether a volume is made of files written by the agent.
pub(crate) fn is_payload(volume: &Volume) -> bool {
    volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.downward_api.is_some()
        || volume.projected.is_some()
}

/// The volume as a list of projections, which is what the simple kinds are.
fn projections(volume: &Volume) -> (i32, Vec<VolumeProjection>) {
    if let Some(source) = &volume.projected {
        return (source.default_mode.unwrap_or(DEFAULT_MODE), source.sources.clone().unwrap_or_default());
    }
    let mut one = VolumeProjection::default();
    let mut mode = None;
    if let Some(source) = &volume.config_map {
        mode = source.default_mode;
        one.config_map = Some(k8s_openapi::api::core::v1::ConfigMapProjection {
            items: source.items.clone(),
            name: source.name.clone(),
            optional: source.optional,
        });
    } else if let Some(source) = &volume.secret {
        mode = source.default_mode;
        one.secret = Some(k8s_openapi::api::core::v1::SecretProjection {
            items: source.items.clone(),
            name: source.secret_name.clone().unwrap_or_default(),
            optional: source.optional,
        });
    } else if let Some(source) = &volume.downward_api {
        mode = source.default_mode;
        one.downward_api = Some(k8s_openapi::api::core::v1::DownwardAPIProjection { items: source.items.clone() });
    }
    (mode.unwrap_or(DEFAULT_MODE), vec![one])
}

fn reference(projection: &VolumeProjection) -> Option<(ObjectRef, bool, Option<&Vec<KeyToPath>>)> {
    if let Some(p) = &projection.config_map {
        return Some((ObjectRef::config_map(&p.name), p.optional == Some(true), p.items.as_ref()));
    }
    let p = projection.secret.as_ref()?;
    Some((ObjectRef::secret(&p.name), p.optional == Some(true), p.items.as_ref()))
}

/// Writes the volume. Answers when a token in it wants to be renewed.
pub(crate) async fn write(
    ctx: &Arc<Context>,
    pod: &Pod,
    volume: &Volume,
    changed: &Arc<Notify>,
) -> Result<Option<Timestamp>, VolumeError> {
    let name = volume.name.as_str();
    let wrong = |why: String| VolumeError::Source { volume: name.to_owned(), why };
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let (default_mode, sources) = projections(volume);
    let refs: Vec<ObjectRef> = sources.iter().filter_map(|s| reference(s).map(|(r, _, _)| r)).collect();
    // The watch begins before the reading: a change in between is seen. An object that will never change, and
    // one read from a kept copy, needs none.
    let contents = ctx.objects.read_for(pod, &refs).await.map_err(|e| wrong(e.to_string()))?;
    for object in &refs {
        let fixed = contents.get(object).and_then(Option::as_ref).is_some_and(|c| c.immutable);
        if !fixed || kept_name(pod).is_some() && contents.get(object).is_none_or(Option::is_none) {
            ctx.objects.watch(namespace, object, changed);
        }
    }
    let mut payload = Payload::new();
    let mut again: Option<Timestamp> = None;
    for source in &sources {
        if let Some((object, optional, items)) = reference(source) {
            let data = contents.get(&object).and_then(Option::as_ref);
            add_object(&mut payload, &object, data, optional, items, default_mode, namespace).map_err(wrong)?;
        } else if let Some(projection) = &source.downward_api {
            for file in projection.items.iter().flatten() {
                let (path, entry) = downward(ctx, pod, file, default_mode).map_err(wrong)?;
                payload.insert(path, entry);
            }
        } else if let Some(projection) = &source.service_account_token {
            let token =
                tokens::token(ctx, pod, projection).await.map_err(|e| wrong(format!("failed to fetch token: {e}")))?;
            again = Some(again.map_or(token.renew_at, |a| a.min(token.renew_at)));
            let (mode, owner) = token_access(pod, default_mode);
            let file = FileOf { bytes: token.text.into_bytes(), mode, uid: owner };
            payload.insert(projection.path.clone(), file);
        } else if source.cluster_trust_bundle.is_some() || source.pod_certificate.is_some() {
            return Err(wrong(
                "clusterTrustBundle and podCertificate projections are not supported by Proa yet".to_owned(),
            ));
        }
    }
    let dir = ctx.layout.volume(uid(pod), name);
    let group = super::fs_group(pod);
    if group.is_some() {
        // Group members read what the owner reads (Kubernetes' fsGroup).
        for file in payload.values_mut() {
            file.mode |= (file.mode & 0o400) >> 3;
        }
    }
    atomic::write(&dir, &payload, group).map_err(io_error(name, &dir))?;
    Ok(again)
}

/// Tokens are kept from others: readable by the user all containers run as, else by everybody in the pod.
fn token_access(pod: &Pod, default_mode: i32) -> (u32, Option<u32>) {
    if super::fs_group(pod).is_some() {
        return (0o600, None);
    }
    let users: std::collections::BTreeSet<Option<i64>> =
        pod.spec.containers.iter().map(|c| security::identity(&pod.spec, c).uid).collect();
    match users.iter().next() {
        Some(Some(user)) if users.len() == 1 => (0o600, u32::try_from(*user).ok()),
        _ => (mode_of(default_mode), None),
    }
}

fn mode_of(mode: i32) -> u32 {
    u32::try_from(mode).unwrap_or(0o644) & 0o777
}

/// Adds the keys of an object, all of them or those that are asked for.
fn add_object(
    payload: &mut Payload,
    object: &ObjectRef,
    data: Option<&Contents>,
    optional: bool,
    items: Option<&Vec<KeyToPath>>,
    default_mode: i32,
    namespace: &str,
) -> Result<(), String> {
    let Some(data) = data else {
        return if optional { Ok(()) } else { Err(env::not_found(object).to_string()) };
    };
    let mut add = |path: &str, bytes: &[u8], mode: i32| {
        payload.insert(path.to_owned(), FileOf { bytes: bytes.to_vec(), mode: mode_of(mode), uid: None });
    };
    match items.filter(|i| !i.is_empty()) {
        None => {
            for (key, bytes) in &data.entries {
                add(key, bytes, default_mode);
            }
        }
        Some(items) => {
            for item in items {
                match data.entries.get(&item.key) {
                    Some(bytes) => add(&item.path, bytes, item.mode.unwrap_or(default_mode)),
                    None if optional => {}
                    None => {
                        return Err(format!(
                            "references non-existent {} key: {} ({namespace}/{})",
                            object.kind.singular(),
                            item.key,
                            object.name
                        ));
                    }
                }
            }
        }
    }
    Ok(())
}

fn downward(
    ctx: &Context,
    pod: &Pod,
    file: &DownwardAPIVolumeFile,
    default_mode: i32,
) -> Result<(String, FileOf), String> {
    let none = BTreeMap::new();
    let facts = env::Facts {
        pod,
        node_name: &ctx.node_name,
        pod_ips: &[],
        host_ips: &ctx.host_ips,
        allocatable: if ctx.allocatable.is_empty() { &none } else { &ctx.allocatable },
    };
    let text = match (&file.field_ref, &file.resource_field_ref) {
        (Some(field), _) => env::pod_field(field, &facts),
        (None, Some(field)) => env::resource_field(field, None, &facts),
        (None, None) => Ok(String::new()),
    }
    .map_err(|e| e.to_string())?;
    let mode = mode_of(file.mode.unwrap_or(default_mode));
    Ok((file.path.clone(), FileOf { bytes: text.into_bytes(), mode, uid: None }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(key: &str, path: &str, mode: Option<i32>) -> KeyToPath {
        KeyToPath { key: key.into(), path: path.into(), mode }
    }

    #[test]
    fn items_choose_keys_paths_and_modes() {
        let object = ObjectRef::config_map("cfg");
        let data = Contents::of([("a", "1"), ("b", "2")]);
        let add = |items: Option<Vec<KeyToPath>>, optional, data| {
            let mut payload = Payload::new();
            add_object(&mut payload, &object, data, optional, items.as_ref(), 0o644, "ns").map(|()| payload)
        };
        let all = add(None, false, Some(&data)).unwrap();
        assert_eq!(all.keys().collect::<Vec<_>>(), ["a", "b"]);
        let some = add(Some(vec![item("b", "x/y", Some(0o400))]), false, Some(&data)).unwrap();
        assert_eq!((some["x/y"].mode, some["x/y"].bytes.as_slice()), (0o400, b"2".as_slice()));
        let missing = add(Some(vec![item("c", "c", None)]), false, Some(&data)).unwrap_err();
        assert_eq!(missing, "references non-existent configmap key: c (ns/cfg)");
        assert!(add(Some(vec![item("c", "c", None)]), true, Some(&data)).unwrap().is_empty());
        assert_eq!(add(None, false, None).unwrap_err(), "configmap \"cfg\" not found");
        assert!(add(None, true, None).unwrap().is_empty());
    }
}
