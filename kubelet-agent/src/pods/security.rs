//! Owns the reading of security contexts: who runs a container and what it may do. Pure.

use k8s_openapi::api::core::v1::{Container, PodSecurityContext, PodSpec};

/// What containers may do unless they say otherwise: the set container engines agreed on.
const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// Every capability of Linux 5.9 and later, for `ALL`.
const ALL_CAPABILITIES: [&str; 41] = [
    "CAP_AUDIT_CONTROL",
    "CAP_AUDIT_READ",
    "CAP_AUDIT_WRITE",
    "CAP_BLOCK_SUSPEND",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_KILL",
    "CAP_LEASE",
    "CAP_LINUX_IMMUTABLE",
    "CAP_MAC_ADMIN",
    "CAP_MAC_OVERRIDE",
    "CAP_MKNOD",
    "CAP_NET_ADMIN",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_RAW",
    "CAP_PERFMON",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYSLOG",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_CHROOT",
    "CAP_SYS_MODULE",
    "CAP_SYS_NICE",
    "CAP_SYS_PACCT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_WAKE_ALARM",
];

/// The user a container asks for; names are looked up in its image later.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) uid: Option<i64>,
    pub(crate) gid: Option<i64>,
    /// supplementary groups, `fsGroup` among them
    pub(crate) groups: Vec<i64>,
    pub(crate) non_root: bool,
    /// groups of `/etc/group` in the image do not count (KEP-3619)
    pub(crate) strict_groups: bool,
}

/// The identity of a container: its own context before the pod's.
pub(crate) fn identity(spec: &PodSpec, container: &Container) -> Identity {
    let none = PodSecurityContext::default();
    let pod = spec.security_context.as_ref().unwrap_or(&none);
    let own = container.security_context.as_ref();
    let mut groups = pod.supplemental_groups.clone().unwrap_or_default();
    groups.extend(pod.fs_group);
    Identity {
        uid: own.and_then(|c| c.run_as_user).or(pod.run_as_user),
        gid: own.and_then(|c| c.run_as_group).or(pod.run_as_group),
        groups,
        non_root: own.and_then(|c| c.run_as_non_root).or(pod.run_as_non_root) == Some(true),
        strict_groups: pod.supplemental_groups_policy.as_deref() == Some("Strict"),
    }
}

/// What `runAsNonRoot` objects to, in Kubernetes' words. `image_user` is the `USER` of the image.
pub(crate) fn check_non_root(identity: &Identity, image_user: &str, pod: &str, container: &str) -> Result<(), String> {
    if !identity.non_root {
        return Ok(());
    }
    let place = format!("pod: \"{pod}\", container: {container}");
    if let Some(uid) = identity.uid {
        return if uid == 0 { Err(format!("container's runAsUser breaks non-root policy ({place})")) } else { Ok(()) };
    }
    let name = image_user.split(':').next().unwrap_or_default();
    match name.parse::<u32>() {
        Ok(0) => Err(format!("container has runAsNonRoot and image will run as root ({place})")),
        Ok(_) => Ok(()),
        Err(_) if name.is_empty() => Err(format!("container has runAsNonRoot and image will run as root ({place})")),
        Err(_) => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({name}), cannot verify user is non-root ({place})"
        )),
    }
}

/// The final capability set of a container: the usual ones, less what is dropped, with what is added.
pub(crate) fn capabilities(container: &Container) -> Vec<String> {
    let own = container.security_context.as_ref();
    if own.and_then(|c| c.privileged) == Some(true) {
        return ALL_CAPABILITIES.iter().map(|c| (*c).to_owned()).collect();
    }
    let asked = own.and_then(|c| c.capabilities.as_ref());
    let list =
        |names: Option<&Vec<String>>| -> Vec<String> { names.into_iter().flatten().map(|n| canonical(n)).collect() };
    let add = list(asked.and_then(|c| c.add.as_ref()));
    let drop = list(asked.and_then(|c| c.drop.as_ref()));
    let mut set: Vec<String> = if add.iter().any(|c| c == "CAP_ALL") {
        ALL_CAPABILITIES.iter().map(|c| (*c).to_owned()).collect()
    } else if drop.iter().any(|c| c == "CAP_ALL") {
        Vec::new()
    } else {
        DEFAULT_CAPABILITIES.iter().map(|c| (*c).to_owned()).collect()
    };
    set.retain(|c| !drop.contains(c));
    for name in add {
        if name != "CAP_ALL" && !set.contains(&name) {
            set.push(name);
        }
    }
    set
}

fn canonical(name: &str) -> String {
    let upper = name.to_ascii_uppercase();
    if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn container(context: serde_json::Value) -> Container {
        serde_json::from_value(json!({"name": "c", "securityContext": context})).unwrap()
    }

    #[test]
    fn capabilities_are_dropped_and_added() {
        let usual = capabilities(&container(json!({})));
        assert!(usual.contains(&"CAP_NET_RAW".to_owned()) && usual.len() == 14);
        assert!(capabilities(&container(json!({"capabilities": {"drop": ["ALL"]}}))).is_empty());
        assert_eq!(
            capabilities(&container(json!({"capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}}))),
            ["CAP_NET_BIND_SERVICE"]
        );
        let most = capabilities(&container(json!({"capabilities": {"add": ["ALL"], "drop": ["SYS_ADMIN"]}})));
        assert!(most.len() == 40 && !most.contains(&"CAP_SYS_ADMIN".to_owned()));
        assert_eq!(capabilities(&container(json!({"privileged": true}))).len(), 41);
    }

    #[test]
    fn a_container_says_more_than_its_pod() {
        let spec: PodSpec = serde_json::from_value(json!({"containers": [],
            "securityContext": {"runAsUser": 1, "runAsGroup": 2, "fsGroup": 7, "supplementalGroups": [5], "runAsNonRoot": true}}))
        .unwrap();
        let id = identity(&spec, &container(json!({"runAsUser": 9})));
        assert_eq!((id.uid, id.gid, id.groups, id.non_root), (Some(9), Some(2), vec![5, 7], true));
    }

    #[test]
    fn non_root_is_checked_against_spec_and_image() {
        let with = |uid| Identity { uid, non_root: true, ..Identity::default() };
        for (uid, image, fine) in [
            (Some(0), "1000", false),
            (Some(5), "", true),
            (None, "", false),
            (None, "0", false),
            (None, "1000:1000", true),
            (None, "nobody", false),
        ] {
            assert_eq!(check_non_root(&with(uid), image, "p", "c").is_ok(), fine, "{uid:?} {image}");
        }
    }
}
