//! Owns the mounts of one container: its volumes, sub-paths of them, and the files every pod has.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, VolumeMount};
use proa_runtime::{Mount, Propagation};
use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::{VolumeError, io_error, path_of};
use crate::expansion::expand_reporting;
use crate::pods::context::Context;
use crate::pods::{Pod, uid};

/// The mounts of a container's run. `env` is its environment, which `subPathExpr` reads.
pub(crate) async fn mounts(
    ctx: &Context,
    pod: &Pod,
    container: &Container,
    attempt: u32,
    env: &[(String, String)],
) -> Result<Vec<Mount>, VolumeError> {
    let mut list = Vec::new();
    for mount in container.volume_mounts.iter().flatten() {
        list.push(volume_mount(ctx, pod, mount, env)?);
    }
    let taken = |list: &[Mount], target: &str| list.iter().any(|m| m.target == Path::new(target));
    for (file, target) in [("hosts", "/etc/hosts"), ("hostname", "/etc/hostname"), ("resolv.conf", "/etc/resolv.conf")]
    {
        let source = ctx.layout.etc(uid(pod), file);
        if !taken(&list, target) && source.exists() {
            list.push(Mount { source, target: target.into(), ..Mount::default() });
        }
    }
    let target =
        container.termination_message_path.as_deref().filter(|p| !p.is_empty()).unwrap_or("/dev/termination-log");
    if !taken(&list, target) {
        let source = ctx.layout.termination_log(uid(pod), &container.name, attempt);
        let made = || -> std::io::Result<()> {
            if let Some(parent) = source.parent() {
                std::fs::create_dir_all(parent)?;
            }
            std::fs::write(&source, b"")?;
            // Any user of the container may leave last words.
            std::fs::set_permissions(&source, std::os::unix::fs::PermissionsExt::from_mode(0o666))
        };
        made().map_err(io_error("termination message", &source))?;
        list.push(Mount { source, target: target.into(), ..Mount::default() });
    }
    Ok(list)
}

fn volume_mount(ctx: &Context, pod: &Pod, mount: &VolumeMount, env: &[(String, String)]) -> Result<Mount, VolumeError> {
    let volume =
        pod.spec.volumes.iter().flatten().find(|v| v.name == mount.name).ok_or_else(|| {
            VolumeError::Mount(format!("cannot find volume \"{}\" to mount into container", mount.name))
        })?;
    let base = path_of(ctx, pod, volume);
    let sub_path = match (&mount.sub_path, &mount.sub_path_expr) {
        (Some(path), _) if !path.is_empty() => Some(path.clone()),
        (_, Some(expression)) if !expression.is_empty() => {
            let lookup = |name: &str| env.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
            let (path, unknown) = expand_reporting(expression, lookup);
            if let Some(name) = unknown {
                return Err(VolumeError::Mount(format!("missing value for \"{name}\"")));
            }
            Some(path)
        }
        _ => None,
    };
    let source = match sub_path {
        None => base,
        Some(sub_path) => {
            let group = super::fs_group(pod);
            resolve_sub_path(&base, &sub_path, volume.host_path.is_none().then_some(group).flatten()).map_err(
                |why| {
                    VolumeError::Mount(format!("failed to prepare subPath for volumeMount \"{}\": {why}", mount.name))
                },
            )?
        }
    };
    let target = match mount.mount_path.starts_with('/') {
        true => PathBuf::from(&mount.mount_path),
        false => Path::new("/").join(&mount.mount_path),
    };
    let payload = super::payload::is_payload(volume);
    let read_only = volume.persistent_volume_claim.as_ref().is_some_and(|source| source.read_only == Some(true));
    Ok(Mount {
        source,
        target,
        // What the agent writes is never written by a container (Kubernetes since 1.9).
        readonly: mount.read_only == Some(true) || payload || read_only,
        propagation: match mount.mount_propagation.as_deref() {
            Some("HostToContainer") => Propagation::HostToContainer,
            Some("Bidirectional") => Propagation::Bidirectional,
            _ => Propagation::Private,
        },
        ..Mount::default()
    })
}

/// The place of a sub-path, made as a directory when it is absent. The kernel resolves it below `base`: neither
/// `..` nor a link planted by a container leads out (CVE-2017-1002101).
fn resolve_sub_path(base: &Path, sub_path: &str, group: Option<u32>) -> Result<PathBuf, String> {
    let parts: Vec<&OsStr> = Path::new(sub_path)
        .components()
        .filter(|c| !matches!(c, Component::CurDir))
        .map(|c| match c {
            Component::Normal(name) => Ok(name),
            _ => Err(format!("subPath {sub_path:?} must be a relative path without \"..\"")),
        })
        .collect::<Result<_, _>>()?;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let open = |path: &Path| {
        let base = rustix::fs::open(base, flags | OFlags::DIRECTORY, Mode::empty())?;
        rustix::fs::openat2(base, path, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS)
    };
    let mut at = PathBuf::new();
    for (index, part) in parts.iter().enumerate() {
        at.push(part);
        match open(&at) {
            Ok(_) => {}
            Err(rustix::io::Errno::NOENT) => {
                let parent =
                    if index == 0 { PathBuf::from(".") } else { at.parent().unwrap_or(Path::new(".")).to_owned() };
                let parent = open(&parent).map_err(|e| format!("{}: {e}", at.display()))?;
                rustix::fs::mkdirat(&parent, *part, Mode::from_raw_mode(0o750))
                    .map_err(|e| format!("{}: {e}", at.display()))?;
                let made = open(&at).map_err(|e| format!("{}: {e}", at.display()))?;
                let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&made));
                // As open as the volume it is in (Kubernetes' SafeMakeDir): whoever may write there may write here.
                let open_to = base.metadata().map_or(0o755, |found| found.permissions().mode() & 0o2777);
                let mode = if group.is_some() { open_to | 0o2770 } else { open_to };
                let owned = group.map_or(Ok(()), |g| std::os::unix::fs::chown(&path, None, Some(g)));
                owned
                    .and_then(|()| std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode)))
                    .map_err(|e| format!("{}: {e}", at.display()))?;
            }
            Err(error) => return Err(format!("{}: {error}", at.display())),
        }
    }
    // The real place, links resolved: what is mounted is what was checked.
    let found = open(if at.as_os_str().is_empty() { Path::new(".") } else { &at }).map_err(|e| e.to_string())?;
    std::fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&found))).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sub_paths_are_made_and_never_lead_out() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap().join("v");
        std::fs::create_dir_all(&base).unwrap();
        assert_eq!(resolve_sub_path(&base, "a/b", None).unwrap(), base.join("a/b"));
        assert!(base.join("a/b").is_dir());
        std::fs::set_permissions(&base, std::fs::Permissions::from_mode(0o777)).unwrap();
        let open = resolve_sub_path(&base, "open", None).unwrap().metadata().unwrap();
        assert_eq!(open.permissions().mode() & 0o7777, 0o777, "as the volume itself");
        std::fs::write(base.join("file"), "x").unwrap();
        assert_eq!(resolve_sub_path(&base, "./file", None).unwrap(), base.join("file"));
        std::os::unix::fs::symlink("a", base.join("inside")).unwrap();
        assert_eq!(resolve_sub_path(&base, "inside/b", None).unwrap(), base.join("a/b"));
        std::os::unix::fs::symlink("/etc", base.join("outside")).unwrap();
        for bad in ["../x", "/etc", "outside", "outside/passwd", "a/../../x"] {
            assert!(resolve_sub_path(&base, bad, None).is_err(), "{bad}");
        }
    }
}
