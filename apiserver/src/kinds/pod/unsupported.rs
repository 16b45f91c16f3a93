//! Owns the list of what Proa's agent does not do yet. Each is refused by name at admission, in pods
//! and in the templates of workloads: nothing a manifest asks for is silently dropped.

use proa_apimachinery::field::{FieldError, FieldErrors};

use super::super::at::At;

/// What is refused in a pod spec.
pub(in super::super) fn check(spec: &At<'_>) -> FieldErrors {
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
                "hostPath" | "configMap" | "secret" | "downwardAPI" => {}
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
    context(&spec.child("securityContext"), &mut refuse);

    for list in ["initContainers", "containers"] {
        for container in spec.child(list).items() {
            one(&container, list == "initContainers", &mut refuse);
        }
    }
    errors
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
            if !matches!(name, "cpu" | "memory" | "ephemeral-storage") {
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
