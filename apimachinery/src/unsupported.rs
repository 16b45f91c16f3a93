//! Owns the list of what Proa's nodes and scheduler do not do yet in a pod: what is refused by name, and what is left out
//! with a word about it. Nothing a manifest asks for is silently dropped.
//!
//! The API server asks at admission, for pods and the templates of workloads. A server that is not Proa's does not: there
//! the agent asks before it starts a pod.

use crate::at::At;
use crate::field::{FieldError, FieldErrors};

/// What is refused in a pod spec.
pub fn refused(spec: &At<'_>) -> FieldErrors {
    let mut errors = FieldErrors::new();
    let mut refuse = |at: &At<'_>, what: &str| {
        errors.push(FieldError::forbidden(&at.path, format!("{what} not supported by Proa yet")));
    };

    for volume in spec.child("volumes").items() {
        for (source, _) in volume.map().into_iter().flatten().filter(|(k, v)| *k != "name" && !v.is_null()) {
            let at = volume.child(source);
            match source.as_str() {
                "emptyDir" => {
                    if at.child("medium").str().starts_with("HugePages") {
                        refuse(&at.child("medium"), "huge pages are");
                    }
                }
                "hostPath" | "configMap" | "secret" | "downwardAPI" | "persistentVolumeClaim" | "ephemeral" => {}
                "projected" => {
                    for inner in at.child("sources").items() {
                        for other in ["clusterTrustBundle", "podCertificate"] {
                            if inner.child(other).present() {
                                refuse(&inner.child(other), &format!("{other} projections are"));
                            }
                        }
                    }
                }
                other => refuse(&at, &format!("{other} volumes are")),
            }
        }
    }
    for (field, what) in [
        ("runtimeClassName", "runtime classes are"),
        ("resourceClaims", "resource claims are"),
        ("os", "a choice of operating system is"),
        ("ephemeralContainers", "ephemeral containers are"),
        ("resources", "pod-level resources are"),
        ("overhead", "pod overhead is"),
        ("setHostnameAsFQDN", "setHostnameAsFQDN is"),
        ("hostnameOverride", "hostnameOverride is"),
        ("schedulingGroup", "pod groups are"),
        ("workloadRef", "workload references are"),
    ] {
        let at = spec.child(field);
        let linux = field == "os" && at.child("name").str() == "linux";
        let off = at.value.is_some_and(|v| v == false);
        if !at.is_empty() && !off && !linux {
            refuse(&at, what);
        }
    }
    if spec.child("shareProcessNamespace").bool() {
        refuse(&spec.child("shareProcessNamespace"), "sharing the process namespace is");
    }
    if spec.child("hostUsers").value.is_some_and(|v| v == false) {
        refuse(&spec.child("hostUsers"), "user namespaces are");
    }
    if spec.child("securityContext").child("seLinuxChangePolicy").present() {
        refuse(&spec.child("securityContext").child("seLinuxChangePolicy"), "a policy for SELinux labels is");
    }
    context(&spec.child("securityContext"), &mut refuse);
    for list in ["initContainers", "containers"] {
        for container in spec.child(list).items() {
            one(&container, list == "initContainers", &mut refuse);
        }
    }
    errors
}

/// What is accepted in a pod spec and has no effect yet: profiles so common that refusing them would refuse most manifests.
pub fn ignored(spec: &At<'_>) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut ignore = |at: &At<'_>, what: &str| {
        warnings.push(format!("{}: {what} not supported by Proa yet and has no effect", at.path));
    };
    let containers = ["initContainers", "containers"].into_iter().flat_map(|list| spec.child(list).items());
    for holder in std::iter::once(spec.clone()).chain(containers) {
        for profile in ["seccompProfile", "appArmorProfile"] {
            let at = holder.child("securityContext").child(profile);
            if at.child("type").str() == "RuntimeDefault" {
                ignore(&at, "the RuntimeDefault profile is");
            }
        }
    }
    warnings
}

fn one(container: &At<'_>, init: bool, refuse: &mut impl FnMut(&At<'_>, &str)) {
    context(&container.child("securityContext"), refuse);
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let grpc = container.child(probe).child("grpc");
        if grpc.present() {
            refuse(&grpc, "gRPC probes are");
        }
    }
    for (field, what) in [
        ("volumeDevices", "block volume devices are"),
        ("resizePolicy", "resize policies are"),
        ("restartPolicyRules", "restart policy rules are"),
    ] {
        if !container.child(field).is_empty() {
            refuse(&container.child(field), what);
        }
    }
    let restart = container.child("restartPolicy");
    if restart.present() && !(init && restart.str() == "Always") {
        refuse(&restart, "a restart policy of a single container is");
    }
    for hook in ["postStart", "preStop"] {
        let tcp = container.child("lifecycle").child(hook).child("tcpSocket");
        if tcp.present() {
            refuse(&tcp, "tcpSocket hooks are");
        }
    }
    if container.child("lifecycle").child("stopSignal").present() {
        refuse(&container.child("lifecycle").child("stopSignal"), "a stop signal of a container is");
    }
    for env in container.child("env").items() {
        let file = env.child("valueFrom").child("fileKeyRef");
        if file.present() {
            refuse(&file, "variables from files are");
        }
    }
    let resources = container.child("resources");
    if !resources.child("claims").is_empty() {
        refuse(&resources.child("claims"), "resource claims are");
    }
    for list in ["limits", "requests"] {
        for (name, at) in resources.child(list).entries() {
            // What has a domain is counted by the scheduler and a number to everybody else.
            if !matches!(name, "cpu" | "memory" | "ephemeral-storage") && !name.contains('/') {
                refuse(&at, &format!("the resource {name} is"));
            }
        }
    }
    for mount in container.child("volumeMounts").items() {
        let recursive = mount.child("recursiveReadOnly");
        if matches!(recursive.str(), "Enabled" | "IfPossible") {
            refuse(&recursive, "recursive read-only mounts are");
        }
    }
}

fn context(context: &At<'_>, refuse: &mut impl FnMut(&At<'_>, &str)) {
    if context.child("windowsOptions").present() {
        refuse(&context.child("windowsOptions"), "windows containers are");
    }
    if context.child("seLinuxOptions").present() {
        refuse(&context.child("seLinuxOptions"), "SELinux options are");
    }
    for profile in ["seccompProfile", "appArmorProfile"] {
        let type_ = context.child(profile).child("type");
        if type_.str() == "Localhost" {
            refuse(&type_, "Localhost profiles are");
        }
    }
    if context.child("procMount").str() == "Unmasked" {
        refuse(&context.child("procMount"), "an unmasked /proc is");
    }
    if context.child("supplementalGroupsPolicy").str() == "Strict" {
        refuse(&context.child("supplementalGroupsPolicy"), "the Strict policy is");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field::Path;
    use serde_json::{Value, json};

    fn of(spec: &Value) -> (Vec<String>, Vec<String>) {
        let at = At::new(Some(spec), Path::of("spec"));
        let refused = refused(&at).into_iter().map(|error| error.path).map(|path| path.to_string()).collect();
        let ignored = ignored(&at);
        (refused, ignored.iter().filter_map(|warning| warning.split_once(": ")).map(|(at, _)| at.to_owned()).collect())
    }

    #[test]
    fn what_nodes_cannot_do_is_refused_and_what_changes_nothing_is_told() {
        let required = "requiredDuringSchedulingIgnoredDuringExecution";
        let spread = |when: &str| json!({"topologySpreadConstraints": [{"whenUnsatisfiable": when}]});
        let asks = |name: &str| json!({"containers": [{"resources": {"requests": {name: "1"}}}]});
        for (spec, refused, ignored) in [
            (json!({"affinity": {"nodeAffinity": {required: {}}}}), None, None),
            (json!({"affinity": {"podAntiAffinity": {required: [{}]}}}), None, None),
            (spread("DoNotSchedule"), None, None),
            (json!({"priority": 1, "preemptionPolicy": "PreemptLowerPriority"}), None, None),
            (asks("example.com/foo"), None, None),
            (asks("scheduling.k8s.io/foo"), None, None),
            (asks("hugepages-2Mi"), Some("spec.containers[0].resources.requests[hugepages-2Mi]"), None),
            (
                json!({"containers": [{"securityContext": {"seccompProfile": {"type": "RuntimeDefault"}}}]}),
                None,
                Some("spec.containers[0].securityContext.seccompProfile"),
            ),
            (
                json!({"containers": [{"lifecycle": {"preStop": {"tcpSocket": {"port": 1}}}}]}),
                Some("spec.containers[0].lifecycle.preStop.tcpSocket"),
                None,
            ),
            (
                json!({"securityContext": {"seLinuxChangePolicy": "Recursive"}}),
                Some("spec.securityContext.seLinuxChangePolicy"),
                None,
            ),
        ] {
            let list = |one: Option<&str>| one.map(str::to_owned).into_iter().collect::<Vec<_>>();
            assert_eq!(of(&spec), (list(refused), list(ignored)), "{spec}");
        }
    }
}
