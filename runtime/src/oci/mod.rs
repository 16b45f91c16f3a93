//! From our specs to the OCI runtime configuration libcontainer reads. Pure: what the host allows is
//! passed in as [`Host`], and what it forbids comes back as warnings.

mod capabilities;
mod defaults;

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

pub(crate) use capabilities::Capabilities;

use crate::spec::{ContainerSpec, ExecSpec, Mount, MountKind, Propagation, Rlimit, SandboxSpec};

/// What this machine and this process may do.
#[derive(Debug, Clone, Default)]
pub(crate) struct Host {
    /// Capabilities we hold and can hand on.
    pub(crate) capabilities: Capabilities,
    /// Our hard limits by OCI name; a higher one needs `CAP_SYS_RESOURCE`.
    pub(crate) hard_limits: Vec<(String, u64)>,
    /// Swap can be limited.
    pub(crate) limits_swap: bool,
    pub(crate) cgroup_v2: bool,
    /// Every device node of the host, for privileged containers.
    pub(crate) devices: Vec<DeviceNode>,
}

/// A device as it is on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeviceNode {
    pub(crate) path: PathBuf,
    /// `c` or `b`.
    pub(crate) kind: char,
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// Where the shim has put things.
#[derive(Debug)]
pub(crate) struct Places<'a> {
    pub(crate) rootfs: &'a Path,
    /// The sandbox's pins.
    pub(crate) sandbox_dir: &'a Path,
    /// The spec's devices as found on the host, same order.
    pub(crate) devices: &'a [DeviceNode],
    /// For each mount of the spec, in its order: another source, where the shim had to prepare one.
    pub(crate) sources: &'a [Option<PathBuf>],
}

/// `config.json`, and one sentence for each thing done without.
pub(crate) fn config(
    spec: &ContainerSpec,
    sandbox: &SandboxSpec,
    host: &Host,
    places: &Places<'_>,
) -> (Value, Vec<String>) {
    let mut warnings = Vec::new();
    let config = json!({
        "ociVersion": "1.0.2",
        "root": { "path": places.rootfs, "readonly": spec.readonly_rootfs },
        "process": process(spec, host, &mut warnings),
        "mounts": mounts(spec, sandbox, places),
        "linux": linux(spec, sandbox, host, places),
    });
    (config, warnings)
}

/// The cgroup of a container, relative to the hierarchy's root.
pub(crate) fn cgroup_path(sandbox: &SandboxSpec, container: &str) -> String {
    format!("{}/{container}", sandbox.cgroup_parent.trim_matches('/'))
}

/// The OCI process of an exec: the container's own, with the differences asked for.
pub(crate) fn exec_process(spec: &ContainerSpec, exec: &ExecSpec, host: &Host) -> Value {
    let mut merged = ContainerSpec { args: exec.args.clone(), tty: exec.tty, ..spec.clone() };
    merged.env.extend(exec.env.iter().cloned());
    if let Some(cwd) = &exec.cwd {
        merged.cwd.clone_from(cwd);
    }
    if let Some(user) = &exec.user {
        merged.user.clone_from(user);
    }
    process(&merged, host, &mut Vec::new())
}

fn process(spec: &ContainerSpec, host: &Host, warnings: &mut Vec<String>) -> Value {
    let wanted = if spec.privileged {
        host.capabilities
    } else {
        let (wanted, unknown) = Capabilities::parse(&spec.capabilities);
        for name in unknown {
            warnings.push(format!("capability {name} is not known to this kernel and was left out"));
        }
        let mut allowed = wanted.intersection(host.capabilities);
        for name in wanted.difference(allowed).names() {
            warnings.push(format!("capability {name} was left out: Proa itself does not hold it"));
        }
        if host.cgroup_v2 && allowed.contains("CAP_MKNOD") {
            // On cgroup v2 a device filter is an eBPF program, which we do not load: without
            // CAP_MKNOD there is no node of a host device to open.
            allowed = allowed.difference(Capabilities::parse(&["CAP_MKNOD".to_owned()]).0);
        }
        allowed
    };
    let names: Vec<&str> = wanted.names().collect();
    let mut process = json!({
        "terminal": spec.tty,
        "cwd": if spec.cwd.is_empty() { "/" } else { &spec.cwd },
        "args": spec.args,
        "env": environment(spec),
        "user": { "uid": spec.user.uid, "gid": spec.user.gid, "additionalGids": spec.user.groups },
        "capabilities": {
            "bounding": names, "effective": names, "permitted": names, "inheritable": [], "ambient": []
        },
        "noNewPrivileges": spec.no_new_privileges,
    });
    let limits = rlimits(&spec.rlimits, host, warnings);
    if !limits.is_empty() {
        process["rlimits"] = Value::Array(limits);
    }
    process
}

/// Later entries win; `PATH` and `TERM` have defaults, as with Docker.
fn environment(spec: &ContainerSpec) -> Vec<String> {
    let mut env: Vec<(&str, &str)> = vec![("PATH", defaults::PATH)];
    if spec.tty {
        env.push(("TERM", "xterm"));
    }
    for (name, value) in &spec.env {
        match env.iter_mut().find(|(known, _)| known == name) {
            Some(entry) => entry.1 = value,
            None => env.push((name, value)),
        }
    }
    env.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
}

fn rlimits(wanted: &[Rlimit], host: &Host, warnings: &mut Vec<String>) -> Vec<Value> {
    let free = host.capabilities.contains("CAP_SYS_RESOURCE");
    let mut limits = Vec::new();
    for limit in wanted {
        let name = limit.name.to_uppercase();
        let name = if name.starts_with("RLIMIT_") { name } else { format!("RLIMIT_{name}") };
        let ours = host.hard_limits.iter().find(|(known, _)| *known == name).map(|(_, hard)| *hard);
        let mut hard = limit.hard;
        if let Some(ours) = ours.filter(|ours| *ours < hard && !free) {
            warnings.push(format!(
                "{name}: the hard limit {hard} was lowered to {ours}, the most this machine lets Proa give"
            ));
            hard = ours;
        }
        limits.push(json!({ "type": name, "soft": limit.soft.min(hard), "hard": hard }));
    }
    limits
}

fn mounts(spec: &ContainerSpec, sandbox: &SandboxSpec, places: &Places<'_>) -> Vec<Value> {
    let taken: Vec<&Path> = spec.mounts.iter().map(|mount| mount.target.as_path()).collect();
    let mut mounts: Vec<Value> = defaults::mounts(spec.privileged, sandbox, places.sandbox_dir)
        .into_iter()
        .filter(|mount| !mount["destination"].as_str().is_some_and(|target| taken.contains(&Path::new(target))))
        .collect();
    let mut wanted: Vec<(&Mount, Option<&PathBuf>)> = spec
        .mounts
        .iter()
        .enumerate()
        .map(|(index, mount)| (mount, places.sources.get(index).and_then(Option::as_ref)))
        .collect();
    // A mount must come after the mount it lies in, whatever order they were given in.
    wanted.sort_by_key(|(mount, _)| mount.target.components().count());
    mounts.extend(wanted.into_iter().map(|(mount, source)| own_mount(mount, source)));
    mounts
}

fn own_mount(mount: &Mount, source: Option<&PathBuf>) -> Value {
    let access = if mount.readonly { "ro" } else { "rw" };
    match mount.kind {
        MountKind::Bind => {
            let propagation = match mount.propagation {
                Propagation::Private => "rprivate",
                Propagation::HostToContainer => "rslave",
                Propagation::Bidirectional => "rshared",
            };
            json!({
                "destination": mount.target, "type": "bind", "source": source.unwrap_or(&mount.source),
                "options": ["rbind", propagation, access],
            })
        }
        MountKind::Tmpfs => {
            let mut options = vec!["nosuid".to_owned(), "nodev".to_owned(), "mode=1777".to_owned(), access.to_owned()];
            options.extend(mount.size_bytes.map(|bytes| format!("size={bytes}")));
            json!({ "destination": mount.target, "type": "tmpfs", "source": "tmpfs", "options": options })
        }
    }
}

fn linux(spec: &ContainerSpec, sandbox: &SandboxSpec, host: &Host, places: &Places<'_>) -> Value {
    let mut linux = json!({
        "cgroupsPath": format!("/{}", cgroup_path(sandbox, &spec.id)),
        "namespaces": namespaces(sandbox, host, places.sandbox_dir),
        "resources": resources(spec, host, places.devices),
    });
    let propagation = |kind| spec.mounts.iter().any(|mount| mount.propagation == kind);
    if propagation(Propagation::Bidirectional) {
        linux["rootfsPropagation"] = json!("shared");
    }
    let mut devices: Vec<Value> = Vec::new();
    if spec.privileged {
        devices.extend(host.devices.iter().map(|node| device(node, &node.path)));
    }
    devices.extend(places.devices.iter().zip(&spec.devices).map(|(node, wanted)| device(node, &wanted.container_path)));
    if !devices.is_empty() {
        linux["devices"] = Value::Array(devices);
    }
    if !spec.privileged {
        linux["maskedPaths"] = json!(spec.masked_paths.clone().unwrap_or_else(|| defaults::owned(defaults::MASKED)));
        linux["readonlyPaths"] =
            json!(spec.readonly_paths.clone().unwrap_or_else(|| defaults::owned(defaults::READONLY)));
    }
    linux
}

fn namespaces(sandbox: &SandboxSpec, host: &Host, pins: &Path) -> Vec<Value> {
    let mut namespaces = vec![json!({ "type": "mount" })];
    if !sandbox.host_pid {
        namespaces.push(json!({ "type": "pid" }));
    }
    if !sandbox.host_ipc {
        namespaces.push(json!({ "type": "ipc", "path": pins.join("ipc") }));
    }
    if let Some(netns) = &sandbox.netns {
        namespaces.push(json!({ "type": "network", "path": netns }));
        namespaces.push(json!({ "type": "uts", "path": pins.join("uts") }));
    }
    if host.cgroup_v2 {
        namespaces.push(json!({ "type": "cgroup" }));
    }
    namespaces
}

fn device(node: &DeviceNode, path: &Path) -> Value {
    json!({
        "path": path, "type": node.kind.to_string(), "major": node.major, "minor": node.minor,
        "fileMode": node.mode & 0o7777, "uid": node.uid, "gid": node.gid,
    })
}

fn resources(spec: &ContainerSpec, host: &Host, devices: &[DeviceNode]) -> Value {
    let mut rules = Vec::new();
    if spec.privileged {
        rules.push(json!({ "allow": true, "access": "rwm" }));
    } else {
        rules.push(json!({ "allow": false, "access": "rwm" }));
        for (node, wanted) in devices.iter().zip(&spec.devices) {
            let access = if wanted.permissions.is_empty() { "rwm" } else { &wanted.permissions };
            rules.push(json!({
                "allow": true, "type": node.kind.to_string(), "major": node.major, "minor": node.minor, "access": access,
            }));
        }
    }
    let mut resources = json!({ "devices": rules });
    let wanted = &spec.resources;
    let mut cpu = serde_json::Map::new();
    if let Some(shares) = wanted.cpu_shares.filter(|shares| *shares > 0) {
        cpu.insert("shares".into(), json!(shares.clamp(2, 262_144)));
    }
    if let Some(quota) = wanted.cpu_quota_us.filter(|quota| *quota > 0) {
        cpu.insert("quota".into(), json!(quota));
        cpu.insert("period".into(), json!(wanted.cpu_period_us.unwrap_or(100_000)));
    }
    if !cpu.is_empty() {
        resources["cpu"] = Value::Object(cpu);
    }
    if let Some(bytes) = wanted.memory_bytes.filter(|bytes| *bytes > 0) {
        resources["memory"] = json!({ "limit": bytes });
        if host.limits_swap {
            resources["memory"]["swap"] = json!(bytes);
        }
    }
    if let Some(pids) = wanted.pids.filter(|pids| *pids > 0) {
        resources["pids"] = json!({ "limit": pids });
    }
    resources
}

#[cfg(test)]
mod tests;
