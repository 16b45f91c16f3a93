//! Requests that cannot mean anything are refused before anything is made. Pure.

use std::path::Path;

use crate::error::RuntimeError;
use crate::spec::{ContainerSpec, MountKind, SandboxSpec};

pub(super) fn sandbox(spec: &SandboxSpec) -> Result<(), RuntimeError> {
    id(&spec.id)?;
    let parent = Path::new(spec.cgroup_parent.trim_matches('/'));
    let plain = parent.components().all(|part| matches!(part, std::path::Component::Normal(_)));
    if parent.as_os_str().is_empty() || !plain {
        return invalid(format!("{:?} is not a path of a cgroup", spec.cgroup_parent));
    }
    if spec.netns.is_some() && (spec.hostname.is_empty() || spec.hostname.len() > 64) {
        return invalid(format!("a host name has 1 to 64 bytes: {:?}", spec.hostname));
    }
    Ok(())
}

pub(super) fn container(spec: &ContainerSpec) -> Result<(), RuntimeError> {
    id(&spec.id)?;
    if spec.layers.is_empty() {
        return invalid("the container has no image layers".to_owned());
    }
    if spec.args.is_empty() {
        return invalid("no command specified".to_owned());
    }
    if !spec.cwd.is_empty() && !spec.cwd.starts_with('/') {
        return invalid(format!("the working directory {:?} is not an absolute path", spec.cwd));
    }
    if !spec.log_path.is_absolute() {
        return invalid(format!("the log path {:?} is not an absolute path", spec.log_path));
    }
    environment(&spec.env)?;
    if let Some(bad) = spec.args.iter().find(|arg| arg.contains('\0')) {
        return invalid(format!("argument {bad:?} holds a NUL byte"));
    }
    for mount in &spec.mounts {
        let target = &mount.target;
        let climbs = target.components().any(|part| part == std::path::Component::ParentDir);
        if !target.is_absolute() || climbs || target == Path::new("/") {
            return invalid(format!("{} is not a place for a mount", target.display()));
        }
        if mount.kind == MountKind::Bind && !mount.source.is_absolute() {
            return invalid(format!("mount source {:?} is not an absolute path", mount.source));
        }
    }
    if let Some(score) = spec.oom_score_adj
        && !(-1000..=1000).contains(&score)
    {
        return invalid(format!("oomScoreAdj {score} is not between -1000 and 1000"));
    }
    Ok(())
}

pub(super) fn environment(env: &[(String, String)]) -> Result<(), RuntimeError> {
    for (name, value) in env {
        if name.is_empty() || name.contains('=') || name.contains('\0') || value.contains('\0') {
            return invalid(format!("environment variable {name:?} cannot be set"));
        }
    }
    Ok(())
}

fn id(id: &str) -> Result<(), RuntimeError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '+' | '-' | '.');
    if id.is_empty() || id.len() > 200 || id == "." || id == ".." || !id.chars().all(plain) {
        return invalid(format!("{id:?} is not an id: letters, digits, _ + - ."));
    }
    Ok(())
}

fn invalid<T>(message: String) -> Result<T, RuntimeError> {
    Err(RuntimeError::Invalid(message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Mount;

    #[test]
    fn what_would_climb_out_of_its_directory_is_refused() {
        for bad in ["", ".", "..", "a/b", "a b", "ä"] {
            assert!(id(bad).is_err(), "{bad}");
        }
        for parent in ["", "/", "../x", "a/../b"] {
            let spec = SandboxSpec { id: "s".into(), cgroup_parent: parent.into(), ..SandboxSpec::default() };
            assert!(sandbox(&spec).is_err(), "{parent}");
        }
        let fine = ContainerSpec {
            id: "c".into(),
            layers: vec!["/l".into()],
            args: vec!["x".into()],
            log_path: "/log".into(),
            ..ContainerSpec::default()
        };
        assert!(container(&fine).is_ok());
        for target in ["/", "data", "/a/../../etc"] {
            let mounts = vec![Mount { source: "/s".into(), target: target.into(), ..Mount::default() }];
            assert!(container(&ContainerSpec { mounts, ..fine.clone() }).is_err(), "{target}");
        }
    }
}
