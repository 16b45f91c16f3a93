//! Owns a pod's volumes on the node: making them, keeping them up to date, mounting them, taking them away.
//! Setting up is idempotent: it is also what a change of a ConfigMap calls.

mod atomic;
mod claims;
pub(crate) mod empty_dir;
pub(crate) mod local;
mod mounts;
pub(crate) mod of_image;
mod ownership;
mod payload;
mod tokens;

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, HostPathVolumeSource, Volume};
use tokio::sync::Notify;

use crate::mounts::remove_tree;
use crate::pods::context::Context;
use crate::pods::layout::Layout;
use crate::pods::{Pod, uid};

pub(crate) use mounts::mounts;

/// Why a volume could not be made; the text is the one of the FailedMount event.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VolumeError {
    /// something it reads is not there, or is not as it should be
    #[error("MountVolume.SetUp failed for volume \"{volume}\" : {why}")]
    Source { volume: String, why: String },
    /// the system said no
    #[error("volume \"{volume}\": {path}: {source}")]
    Io { volume: String, path: String, source: std::io::Error },
    /// refused by name
    #[error("volume \"{volume}\": {kind} volumes are not supported by Proa yet")]
    Unsupported { volume: String, kind: String },
    /// a mount that cannot be
    #[error("{0}")]
    Mount(String),
}

pub(crate) fn io_error<'a>(volume: &'a str, path: &'a Path) -> impl FnOnce(std::io::Error) -> VolumeError + 'a {
    move |source| VolumeError::Io { volume: volume.to_owned(), path: path.display().to_string(), source }
}

/// Makes every volume of the pod, or brings it up to date. Answers when it wants to be called again (a token
/// grows old). `changed` is told when a source changes.
pub(crate) async fn setup(
    ctx: &Arc<Context>,
    pod: &Pod,
    changed: &Arc<Notify>,
) -> Result<Option<Timestamp>, VolumeError> {
    let mut again: Option<Timestamp> = None;
    for volume in pod.spec.volumes.iter().flatten() {
        let at = one(ctx, pod, volume, changed).await?;
        again = [again, at].into_iter().flatten().min();
    }
    Ok(again)
}

async fn one(
    ctx: &Arc<Context>,
    pod: &Pod,
    volume: &Volume,
    changed: &Arc<Notify>,
) -> Result<Option<Timestamp>, VolumeError> {
    let name = volume.name.as_str();
    if let Some(source) = &volume.empty_dir {
        empty_dir::setup(&ctx.layout.volume(uid(pod), name), name, source, fs_group(pod))?;
        return Ok(None);
    }
    if let Some(source) = &volume.host_path {
        host_path(name, source)?;
        return Ok(None);
    }
    if let Some(claim) = claims::claim_name(pod, volume) {
        claims::setup(ctx, pod, volume, &claim).await?;
        return Ok(None);
    }
    if payload::is_payload(volume) {
        return payload::write(ctx, pod, volume, changed).await;
    }
    // Kubernetes' default for a volume that names nothing. Any other kind may hold what nobody may lose.
    if let Some(kind) = kind_of(volume) {
        return Err(VolumeError::Unsupported { volume: name.to_owned(), kind });
    }
    empty_dir::setup(&ctx.layout.volume(uid(pod), name), name, &EmptyDirVolumeSource::default(), fs_group(pod))?;
    Ok(None)
}

/// The field a volume names its source by, whatever it is.
fn kind_of(volume: &Volume) -> Option<String> {
    let fields = serde_json::to_value(volume).ok()?;
    fields.as_object()?.keys().find(|field| *field != "name").cloned()
}

fn fs_group(pod: &Pod) -> Option<u32> {
    pod.spec.security_context.as_ref().and_then(|c| c.fs_group).and_then(|g| u32::try_from(g).ok())
}

fn host_path(name: &str, source: &HostPathVolumeSource) -> Result<(), VolumeError> {
    use std::os::unix::fs::FileTypeExt as _;
    let path = Path::new(&source.path);
    let io = |e| io_error(name, path)(e);
    let wrong = |what: &str| {
        let why = format!("hostPath type check failed: {} is not a {what}", source.path);
        Err(VolumeError::Source { volume: name.to_owned(), why })
    };
    let kind = std::fs::metadata(path).ok().map(|m| m.file_type());
    match source.type_.as_deref().unwrap_or("") {
        // Docker and Kubernetes let the runtime make a missing directory.
        "" if kind.is_none() => std::fs::create_dir_all(path).map_err(io)?,
        "DirectoryOrCreate" => match kind {
            None => {
                std::fs::create_dir_all(path).map_err(io)?;
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).map_err(io)?;
            }
            Some(kind) if !kind.is_dir() => return wrong("directory"),
            Some(_) => {}
        },
        "FileOrCreate" => match kind {
            None => {
                std::fs::OpenOptions::new().create(true).append(true).open(path).map_err(io)?;
            }
            Some(kind) if !kind.is_file() => return wrong("file"),
            Some(_) => {}
        },
        "Directory" if !kind.is_some_and(|k| k.is_dir()) => return wrong("directory"),
        "File" if !kind.is_some_and(|k| k.is_file()) => return wrong("file"),
        "Socket" if !kind.is_some_and(|k| k.is_socket()) => return wrong("socket file"),
        "CharDevice" if !kind.is_some_and(|k| k.is_char_device()) => return wrong("character device"),
        "BlockDevice" if !kind.is_some_and(|k| k.is_block_device()) => return wrong("block device"),
        _ => {}
    }
    Ok(())
}

/// Where a volume lies on the host.
pub(crate) fn path_of(ctx: &Context, pod: &Pod, volume: &Volume) -> PathBuf {
    let own = ctx.layout.volume(uid(pod), &volume.name);
    match &volume.host_path {
        Some(source) => PathBuf::from(&source.path),
        None if claims::claim_name(pod, volume).is_some() => claims::place(own),
        None => own,
    }
}

fn is_mount_point(path: &Path) -> bool {
    let device = |p: &Path| std::fs::symlink_metadata(p).map(|m| m.dev()).ok();
    match (device(path), path.parent().and_then(device)) {
        (Some(own), Some(parent)) => own != parent,
        _ => false,
    }
}

/// Unmounts and removes the volumes of a pod; logs stay. Fine when nothing is there.
pub(crate) async fn teardown(layout: &Layout, uid: &str) -> Result<(), String> {
    let base = layout.pod(uid);
    let work = move || -> Result<(), String> {
        ["volumes", "image-volumes", "etc"].iter().try_for_each(|dir| remove_tree(&base.join(dir)))
    };
    tokio::task::spawn_blocking(work).await.map_err(|e| e.to_string())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_volume_of_an_unknown_kind_is_not_taken_for_an_empty_directory() {
        let kind = |json| kind_of(&serde_json::from_value(json).unwrap());
        assert_eq!(kind(json!({"name": "v"})), None);
        assert_eq!(
            kind(json!({"name": "v", "glusterfs": {"endpoints": "e", "path": "p"}})).as_deref(),
            Some("glusterfs")
        );
        assert_eq!(kind(json!({"name": "v", "cephfs": {"monitors": []}})).as_deref(), Some("cephfs"));
    }

    #[test]
    fn host_path_types_are_checked() {
        let dir = tempfile::tempdir().unwrap();
        let check = |kind: &str, name: &str| {
            let path = dir.path().join(name);
            let source: HostPathVolumeSource = serde_json::from_value(json!({"path": path, "type": kind})).unwrap();
            host_path("v", &source)
        };
        assert!(check("Directory", "none").is_err());
        assert!(check("DirectoryOrCreate", "d").is_ok());
        assert!(check("Directory", "d").is_ok());
        assert!(check("File", "d").is_err());
        assert!(check("FileOrCreate", "f").is_ok());
        assert!(check("File", "f").is_ok());
        assert!(check("Socket", "f").is_err());
        assert!(check("", "f").is_ok());
    }

    #[tokio::test]
    async fn teardown_keeps_the_logs_and_may_be_repeated() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        std::fs::create_dir_all(layout.volume("u", "v")).unwrap();
        std::fs::create_dir_all(layout.logs("u", "a")).unwrap();
        teardown(&layout, "u").await.unwrap();
        teardown(&layout, "u").await.unwrap();
        assert!(!layout.volume("u", "v").exists() && layout.logs("u", "a").exists());
    }
}
