//! The Pod Security Standards, as a table: what each level forbids, since which version, in Kubernetes' words. Pure.
//!
//! A check of level baseline also holds in restricted, until a stricter one takes its place there.

use std::collections::BTreeSet;

use proa_apimachinery::object::Object;
use serde_json::Value;

use super::policy::Level;

/// A pod, or the template of one.
pub(super) struct Judged<'a> {
    metadata: Option<&'a Value>,
    spec: &'a Value,
}

/// What is wrong: in a word, and where.
pub(super) struct Violation {
    pub(super) reason: String,
    pub(super) detail: String,
}

/// One rule.
pub(super) struct Check {
    level: Level,
    /// The minor version it came with.
    since: u32,
    /// From this minor version on restricted has a stricter one.
    replaced: u32,
    judge: fn(&Judged<'_>, u32) -> Option<Violation>,
}

const NEVER: u32 = u32::MAX;

const fn baseline(since: u32, replaced: u32, judge: fn(&Judged<'_>, u32) -> Option<Violation>) -> Check {
    Check { level: Level::Baseline, since, replaced, judge }
}

const fn restricted(since: u32, judge: fn(&Judged<'_>, u32) -> Option<Violation>) -> Check {
    Check { level: Level::Restricted, since, replaced: NEVER, judge }
}

/// In the order in which they are told.
const CHECKS: [Check; 19] = [
    baseline(0, NEVER, app_armor),
    baseline(0, 22, added_capabilities),
    baseline(0, NEVER, host_namespaces),
    baseline(0, 0, host_paths),
    baseline(0, NEVER, host_ports),
    baseline(34, NEVER, foreign_hosts),
    baseline(0, NEVER, privileged),
    baseline(0, 35, proc_mount_unless_in_user_namespace),
    baseline(0, NEVER, selinux),
    baseline(0, 19, seccomp_of_baseline),
    baseline(0, NEVER, sysctls),
    baseline(0, NEVER, host_process),
    restricted(8, privilege_escalation),
    restricted(22, capabilities),
    restricted(35, proc_mount),
    restricted(0, volume_types),
    restricted(0, non_root),
    restricted(23, root_user),
    restricted(19, seccomp),
];

/// All that a level of that minor version has against a pod.
pub(super) fn violations(level: Level, minor: u32, pod: &Judged<'_>) -> Vec<Violation> {
    let holds = |check: &&Check| match (level, check.level) {
        (Level::Privileged, _) | (Level::Baseline, Level::Restricted) | (_, Level::Privileged) => false,
        (Level::Restricted, Level::Baseline) => check.since <= minor && minor < check.replaced,
        (Level::Baseline, Level::Baseline) | (Level::Restricted, Level::Restricted) => check.since <= minor,
    };
    CHECKS.iter().filter(holds).filter_map(|check| (check.judge)(pod, minor)).collect()
}

impl<'a> Judged<'a> {
    /// A pod.
    pub(super) fn pod(pod: &'a Object) -> Option<Self> {
        Some(Judged { metadata: pod.0.get("metadata"), spec: pod.0.get("spec")? })
    }

    /// What a controller makes pods from.
    pub(super) fn template(template: &'a Value) -> Option<Self> {
        Some(Judged { metadata: template.get("metadata"), spec: template.get("spec")? })
    }

    fn annotations(&self) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
        let annotations = self.metadata.and_then(|m| m.get("annotations")).and_then(Value::as_object);
        annotations.into_iter().flatten().filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)))
    }

    /// Every container, init containers first.
    fn containers(&self) -> impl Iterator<Item = &'a Value> + use<'a> {
        let spec = self.spec;
        let lists = ["initContainers", "containers", "ephemeralContainers"];
        lists.into_iter().filter_map(move |list| spec.get(list)?.as_array()).flatten()
    }

    /// The names of the containers that are bad.
    fn bad(&self, mut is_bad: impl FnMut(&'a Value) -> bool) -> Vec<&'a str> {
        self.containers().filter(|container| is_bad(container)).map(name).collect()
    }

    fn volumes(&self) -> impl Iterator<Item = &'a Value> + use<'a> {
        self.spec.get("volumes").and_then(Value::as_array).into_iter().flatten()
    }

    fn flag(&self, field: &str) -> bool {
        self.spec.get(field).and_then(Value::as_bool) == Some(true)
    }

    /// Root in a user namespace is nobody outside of it (KEP-127).
    fn in_user_namespace(&self) -> bool {
        self.spec.get("hostUsers").and_then(Value::as_bool) == Some(false)
    }

    /// What Linux means by these fields Windows has no word for.
    fn is_windows(&self) -> bool {
        self.spec.pointer("/os/name").and_then(Value::as_str) == Some("windows")
    }

    /// Who sets a field of the security context to something bad: the pod, containers, or both.
    fn setters(&self, path: &str, mut is_bad: impl FnMut(&'a Value) -> bool) -> Option<String> {
        let mut setters = Vec::new();
        if context(self.spec, path).is_some_and(&mut is_bad) {
            setters.push("pod".to_owned());
        }
        let bad = self.bad(|container| context(container, path).is_some_and(&mut is_bad));
        if !bad.is_empty() {
            setters.push(containers(&bad));
        }
        (!setters.is_empty()).then(|| setters.join(" and "))
    }
}

/// A field of the security context of a pod's spec or a container. Null is unset.
fn context<'a>(of: &'a Value, path: &str) -> Option<&'a Value> {
    let mut value = of.get("securityContext")?;
    for field in path.split('.') {
        value = value.get(field)?;
    }
    Some(value).filter(|value| !value.is_null())
}

fn name(of: &Value) -> &str {
    of.get("name").and_then(Value::as_str).unwrap_or_default()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn texts<'a>(list: Option<&'a Value>) -> impl Iterator<Item = &'a str> + use<'a> {
    list.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}

fn quoted<'a>(items: impl IntoIterator<Item = &'a str>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| format!("\"{item}\"")).collect();
    items.join(", ")
}

fn plural(word: &str, count: usize) -> String {
    match (count, word) {
        (1, _) => word.to_owned(),
        (_, "uses") => "use".to_owned(),
        _ => format!("{word}s"),
    }
}

/// `container "a"`, `containers "a", "b"`
fn containers(names: &[&str]) -> String {
    format!("{} {}", plural("container", names.len()), quoted(names.iter().copied()))
}

fn violation(reason: impl Into<String>, detail: impl Into<String>) -> Option<Violation> {
    Some(Violation { reason: reason.into(), detail: detail.into() })
}

fn app_armor(pod: &Judged<'_>, _: u32) -> Option<Violation> {
    const ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";
    let mut values = BTreeSet::new();
    let setters = pod.setters("appArmorProfile", |profile| {
        let type_ = profile.get("type").map(text).unwrap_or_default();
        let bad = !matches!(type_, "RuntimeDefault" | "Localhost");
        if bad {
            values.insert(type_);
        }
        bad
    });
    let allowed = |value: &str| matches!(value, "" | "runtime/default") || value.starts_with("localhost/");
    let annotated = pod.annotations().filter(|(key, value)| key.starts_with(ANNOTATION) && !allowed(value));
    let mut annotated: Vec<String> = annotated.map(|(key, value)| format!("{key}={value:?}")).collect();
    annotated.sort_unstable();
    let by_annotation = (!annotated.is_empty()).then(|| plural("annotation", annotated.len()));
    let setters: Vec<String> = setters.into_iter().chain(by_annotation).collect();
    if setters.is_empty() {
        return None;
    }
    let all: Vec<&str> = values.into_iter().chain(annotated.iter().map(String::as_str)).collect();
    let detail =
        format!("{} must not set AppArmor profile type to {}", setters.join(" and "), quoted(all.iter().copied()));
    violation(plural("forbidden AppArmor profile", all.len()), detail)
}

/// What a container has without asking.
const DEFAULT_CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// Containers that add a capability beyond those, and which they add.
fn adding<'a>(pod: &Judged<'a>, allowed: &[&str]) -> Option<String> {
    let mut added = BTreeSet::new();
    let bad = pod.bad(|container| {
        let mut any = false;
        for capability in texts(context(container, "capabilities.add")).filter(|added| !allowed.contains(added)) {
            added.insert(capability);
            any = true;
        }
        any
    });
    let must_not = || {
        format!(
            "{} must not include {} in securityContext.capabilities.add",
            containers(&bad),
            quoted(added.iter().copied())
        )
    };
    (!bad.is_empty()).then(must_not)
}

fn added_capabilities(pod: &Judged<'_>, _: u32) -> Option<Violation> {
    violation("non-default capabilities", adding(pod, &DEFAULT_CAPABILITIES)?)
}

fn host_namespaces(pod: &Judged<'_>, _: u32) -> Option<Violation> {
    let set: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
        .into_iter()
        .filter(|field| pod.flag(field))
        .map(|field| format!("{field}=true"))
        .collect();
    if set.is_empty() { None } else { violation("host namespaces", set.join(", ")) }
}

fn host_paths(pod: &Judged<'_>, _: u32) -> Option<Violation> {
    let bad: Vec<&str> = pod.volumes().filter(|v| v.get("hostPath").is_some_and(|p| !p.is_null())).map(name).collect();
    if bad.is_empty() {
        return None;
    }
    violation("hostPath volumes", format!("{} {}", plural("volume", bad.len()), quoted(bad)))
}

fn host_ports(pod: &Judged<'_>, _: u32) -> Option<Violation> {
    let mut ports = BTreeSet::new();
    let bad = pod.bad(|container| {
        let listed = container.get("ports").and_then(Value::as_array).into_iter().flatten();
        let taken: Vec<i64> =
            listed.filter_map(|port| port.get("hostPort")?.as_i64()).filter(|port| *port != 0).collect();
        ports.extend(taken.iter().map(ToString::to_string));
        !taken.is_empty()
    });
    if bad.is_empty() {
        return None;
    }
    let listed: Vec<String> = ports.into_iter().collect();
    let (use_, port) = (plural("uses", bad.len()), plural("hostPort", listed.len()));
    violation("hostPort", format!("{} {use_} {port} {}", containers(&bad), listed.join(", ")))
}

/// Probes and lifecycle handlers go to the pod itself.
fn foreign_hosts(pod: &Judged<'_>, _: u32) -> Option<Violation> {
    const HANDLERS: [&str; 5] =
        ["/livenessProbe", "/readinessProbe", "/startupProbe", "/lifecycle/postStart", "/lifecycle/preStop"];
    let mut hosts = BTreeSet::new();
    let bad = pod.bad(|container| {
        let handlers = HANDLERS.iter().filter_map(|at| container.pointer(at));
        let named = handlers.flat_map(|handler| {
            ["/httpGet/host", "/tcpSocket/host"].into_iter().filter_map(move |at| handler.pointer(at)?.as_str())
        });
        let named: Vec<&str> = named.filter(|host| !host.is_empty()).collect();
        hosts.extend(named.iter().copied());
        !named.is_empty()
    });
    if bad.is_empty() {
        return None;
    }
    let sorted: BTreeSet<&str> = bad.iter().copied().collect();
    let names: Vec<&str> = sorted.into_iter().collect();
    let (use_, what) = (plural("uses", names.len()), plural("probe or lifecycle host", hosts.len()));
    violation("probe or lifecycle host", format!("{} {use_} {what} {}", containers(&names), quoted(hosts)))
}

fn privileged(pod: &Judged<'_>, _: u32) -> Option<Violation> {
    let bad = pod.bad(|container| context(container, "privileged") == Some(&Value::Bool(true)));
    if bad.is_empty() {
        return None;
    }
    violation("privileged", format!("{} must not set securityContext.privileged=true", containers(&bad)))
}

fn proc_mount_unless_in_user_namespace(pod: &Judged<'_>, minor: u32) -> Option<Violation> {
    if minor >= 35 && pod.in_user_namespace() { None } else { proc_mount(pod, minor) }
}

fn proc_mount(pod: &Judged<'_>, _: u32) -> Option<Violation> {
    let mut types = BTreeSet::new();
    let bad = pod.bad(|container| {
        let type_ = context(container, "procMount").map(text).filter(|type_| *type_ != "Default");
        types.extend(type_);
        type_.is_some()
    });
    if bad.is_empty() {
        return None;
    }
    violation("procMount", format!("{} must not set securityContext.procMount to {}", containers(&bad), quoted(types)))
}

fn selinux(pod: &Judged<'_>, minor: u32) -> Option<Violation> {
    let (mut types, mut user, mut role) = (BTreeSet::new(), false, false);
    let setters = pod.setters("seLinuxOptions", |options| {
        let of = |field| options.get(field).map(text).unwrap_or_default();
        let type_ = of("type");
        let known = matches!(type_, "" | "container_t" | "container_init_t" | "container_kvm_t")
            || (minor >= 31 && type_ == "container_engine_t");
        if !known {
            types.insert(type_);
        }
        user |= !of("user").is_empty();
        role |= !of("role").is_empty();
        !known || !of("user").is_empty() || !of("role").is_empty()
    })?;
    let mut what = Vec::new();
    if !types.is_empty() {
        what.push(format!("{} {}", plural("type", types.len()), quoted(types)));
    }
    if user {
        what.push("user may not be set".to_owned());
    }
    if role {
        what.push("role may not be set".to_owned());
    }
    violation("seLinuxOptions", format!("{setters} set forbidden securityContext.seLinuxOptions: {}", what.join("; ")))
}

fn seccomp_of_baseline(pod: &Judged<'_>, minor: u32) -> Option<Violation> {
    if minor >= 19 { bad_seccomp(pod) } else { seccomp_annotations(pod) }
}

/// Before the field there were annotations (until 1.19).
fn seccomp_annotations(pod: &Judged<'_>) -> Option<Violation> {
    const POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
    const CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";
    let names: Vec<&str> = pod.containers().map(name).collect();
    let ours = |key: &str| key == POD || key.strip_prefix(CONTAINER).is_some_and(|name| names.contains(&name));
    let allowed =
        |value: &str| matches!(value, "runtime/default" | "docker/default") || value.starts_with("localhost/");
    let bad = pod.annotations().filter(|(key, value)| ours(key) && !allowed(value));
    let bad: BTreeSet<String> = bad.map(|(key, value)| format!("{key}={value:?}")).collect();
    if bad.is_empty() {
        return None;
    }
    let what = plural("annotation", bad.len());
    violation("seccompProfile", format!("forbidden {what} {}", bad.into_iter().collect::<Vec<_>>().join(", ")))
}

fn is_seccomp(profile: &Value) -> bool {
    matches!(profile.get("type").map(text), Some("RuntimeDefault" | "Localhost"))
}

fn bad_seccomp(pod: &Judged<'_>) -> Option<Violation> {
    let mut values = BTreeSet::new();
    let setters = pod.setters("seccompProfile", |profile| {
        let bad = !is_seccomp(profile);
        if bad {
            values.insert(profile.get("type").map(text).unwrap_or_default());
        }
        bad
    })?;
    violation(
        "seccompProfile",
        format!("{setters} must not set securityContext.seccompProfile.type to {}", quoted(values)),
    )
}

fn sysctls(pod: &Judged<'_>, minor: u32) -> Option<Violation> {
    /// What concerns the pod alone, with the version that found so.
    const SAFE: [(u32, &str); 12] = [
        (0, "kernel.shm_rmid_forced"),
        (0, "net.ipv4.ip_local_port_range"),
        (0, "net.ipv4.tcp_syncookies"),
        (0, "net.ipv4.ping_group_range"),
        (0, "net.ipv4.ip_unprivileged_port_start"),
        (27, "net.ipv4.ip_local_reserved_ports"),
        (29, "net.ipv4.tcp_keepalive_time"),
        (29, "net.ipv4.tcp_fin_timeout"),
        (29, "net.ipv4.tcp_keepalive_intvl"),
        (29, "net.ipv4.tcp_keepalive_probes"),
        (32, "net.ipv4.tcp_rmem"),
        (32, "net.ipv4.tcp_wmem"),
    ];
    let safe = |name: &&str| SAFE.iter().any(|(since, safe)| safe == name && *since <= minor);
    let set = context(pod.spec, "sysctls").and_then(Value::as_array).into_iter().flatten().map(name);
    let bad: Vec<&str> = set.filter(|name| !safe(name)).collect();
    if bad.is_empty() { None } else { violation("forbidden sysctls", bad.join(", ")) }
}

fn host_process(pod: &Judged<'_>, _: u32) -> Option<Violation> {
    let setters = pod.setters("windowsOptions.hostProcess", |value| value == &Value::Bool(true))?;
    violation("hostProcess", format!("{setters} must not set securityContext.windowsOptions.hostProcess=true"))
}

fn privilege_escalation(pod: &Judged<'_>, minor: u32) -> Option<Violation> {
    if minor >= 25 && pod.is_windows() {
        return None;
    }
    let bad = pod.bad(|container| context(container, "allowPrivilegeEscalation") != Some(&Value::Bool(false)));
    if bad.is_empty() {
        return None;
    }
    let detail = format!("{} must set securityContext.allowPrivilegeEscalation=false", containers(&bad));
    violation("allowPrivilegeEscalation != false", detail)
}

fn capabilities(pod: &Judged<'_>, minor: u32) -> Option<Violation> {
    if minor >= 25 && pod.is_windows() {
        return None;
    }
    let keeping = pod.bad(|container| !texts(context(container, "capabilities.drop")).any(|dropped| dropped == "ALL"));
    let must_drop = || format!("{} must set securityContext.capabilities.drop=[\"ALL\"]", containers(&keeping));
    let keeping = (!keeping.is_empty()).then(must_drop);
    let details: Vec<String> = keeping.into_iter().chain(adding(pod, &["NET_BIND_SERVICE"])).collect();
    if details.is_empty() { None } else { violation("unrestricted capabilities", details.join("; ")) }
}

fn volume_types(pod: &Judged<'_>, _: u32) -> Option<Violation> {
    const ALLOWED: [&str; 9] = [
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "image",
        "persistentVolumeClaim",
        "projected",
        "secret",
    ];
    let type_of = |volume: &'_ Value| {
        let fields = volume.as_object().into_iter().flatten();
        let mut sources = fields.filter(|(field, value)| *field != "name" && !value.is_null());
        sources.next().map_or("unknown".to_owned(), |(field, _)| field.clone())
    };
    let bad: Vec<(&str, String)> = pod
        .volumes()
        .map(|volume| (name(volume), type_of(volume)))
        .filter(|(_, type_)| !ALLOWED.contains(&type_.as_str()))
        .collect();
    if bad.is_empty() {
        return None;
    }
    let types: BTreeSet<&str> = bad.iter().map(|(_, type_)| type_.as_str()).collect();
    let detail = format!(
        "{} {} {} {} {}",
        plural("volume", bad.len()),
        quoted(bad.iter().map(|(name, _)| *name)),
        plural("uses", bad.len()),
        plural("restricted volume type", types.len()),
        quoted(types)
    );
    violation("restricted volume types", detail)
}

fn non_root(pod: &Judged<'_>, minor: u32) -> Option<Violation> {
    const REASON: &str = "runAsNonRoot != true";
    if minor >= 35 && pod.in_user_namespace() {
        return None;
    }
    if let Some(setters) = pod.setters("runAsNonRoot", |value| value == &Value::Bool(false)) {
        return violation(REASON, format!("{setters} must not set securityContext.runAsNonRoot=false"));
    }
    if context(pod.spec, "runAsNonRoot").is_some() {
        return None;
    }
    let silent = pod.bad(|container| context(container, "runAsNonRoot").is_none());
    if silent.is_empty() {
        return None;
    }
    violation(REASON, format!("pod or {} must set securityContext.runAsNonRoot=true", containers(&silent)))
}

fn root_user(pod: &Judged<'_>, minor: u32) -> Option<Violation> {
    if minor >= 35 && pod.in_user_namespace() {
        return None;
    }
    let setters = pod.setters("runAsUser", |value| value.as_i64() == Some(0))?;
    violation("runAsUser=0", format!("{setters} must not set runAsUser=0"))
}

fn seccomp(pod: &Judged<'_>, minor: u32) -> Option<Violation> {
    if minor >= 25 && pod.is_windows() {
        return None;
    }
    if let Some(bad) = bad_seccomp(pod) {
        return Some(bad);
    }
    if context(pod.spec, "seccompProfile").is_some() {
        return None;
    }
    let silent = pod.bad(|container| context(container, "seccompProfile").is_none());
    if silent.is_empty() {
        return None;
    }
    let must = "must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"";
    violation("seccompProfile", format!("pod or {} {must}", containers(&silent)))
}
