//! Owns the validation of containers (`pkg/apis/core/validation`). Never looks beyond its pod's spec.

use proa_apimachinery::field::FieldErrors;
use proa_apimachinery::names;
use proa_apimachinery::quantity::Quantity;

use super::super::at::At;

const FIELD_PATHS: [&str; 10] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
    "spec.host",
];

/// All containers of a pod spec; `claimed` are volumes they may mount beside the spec's own.
pub(super) fn all(spec: &At<'_>, claimed: &[&str], errors: &mut FieldErrors) {
    let own = spec.child("volumes").items().map(|v| v.child("name").str());
    let volumes: Vec<&str> = own.chain(claimed.iter().copied()).collect();
    let mut seen = Vec::new();
    let host_network = spec.child("hostNetwork").bool();
    let containers = spec.child("containers");
    if containers.is_empty() {
        containers.missing(errors, "");
    }
    for (list, init) in [(containers, false), (spec.child("initContainers"), true)] {
        let mut host_ports = Vec::new();
        for container in list.items() {
            let name = container.child("name");
            if !name.str().is_empty() && seen.contains(&name.str()) {
                name.duplicate(errors);
            }
            seen.push(name.str());
            one(&container, init, host_network, &volumes, errors);
            // Init containers run one after the other: they may share host ports, others may not.
            for port in container.child("ports").items().filter(|_| !init) {
                let host = port.child("hostPort");
                if host.int().is_none_or(|p| p == 0) {
                    continue;
                }
                let key = (host.int(), port.child("protocol").str(), port.child("hostIP").str());
                if host_ports.contains(&key) {
                    host.duplicate(errors);
                }
                host_ports.push(key);
            }
        }
    }
}

fn one(container: &At<'_>, init: bool, host_network: bool, volumes: &[&str], errors: &mut FieldErrors) {
    container.child("name").require(errors, names::is_dns1123_label);
    let image = container.child("image");
    if image.is_empty() {
        image.missing(errors, "");
    } else if image.str().trim() != image.str() {
        image.invalid(errors, "must not have leading or trailing whitespace");
    }
    let policy = container.child("imagePullPolicy");
    if policy.required(errors) {
        policy.one_of(errors, &["Always", "IfNotPresent", "Never"]);
    }
    container.child("terminationMessagePolicy").one_of(errors, &["FallbackToLogsOnError", "File"]);
    ports(&container.child("ports"), host_network, errors);
    environment(container, errors);
    mounts(&container.child("volumeMounts"), volumes, errors);
    resources(&container.child("resources"), errors);
    let restart = container.child("restartPolicy");
    restart.one_of(errors, &["Always", "Never", "OnFailure"]);
    let sidecar = init && restart.str() == "Always";
    for field in ["livenessProbe", "readinessProbe", "startupProbe", "lifecycle"] {
        let at = container.child(field);
        if !at.present() {
            continue;
        }
        if init && !sidecar {
            at.forbidden(errors, "may not be set for init containers without restartPolicy=Always");
        } else if field == "lifecycle" {
            for hook in ["postStart", "preStop"] {
                let hook = at.child(hook);
                if hook.present() {
                    handler(&hook, &["exec", "httpGet", "tcpSocket", "sleep"], errors);
                }
            }
        } else {
            probe(&at, field, errors);
        }
    }
    security_context(&container.child("securityContext"), errors);
}

fn ports(list: &At<'_>, host_network: bool, errors: &mut FieldErrors) {
    let mut seen = Vec::new();
    for port in list.items() {
        let name = port.child("name");
        name.check(errors, names::is_port_name);
        if !name.str().is_empty() {
            if seen.contains(&name.str()) {
                name.duplicate(errors);
            }
            seen.push(name.str());
        }
        let number = port.child("containerPort");
        match number.int() {
            None | Some(0) => number.missing(errors, ""),
            Some(_) => number.range(errors, 1, 65535),
        }
        let host = port.child("hostPort");
        if host.int().is_some_and(|p| p != 0) {
            host.range(errors, 1, 65535);
            if host_network && host.int() != number.int() {
                number.invalid(errors, "must match `hostPort` when `hostNetwork` is true");
            }
        }
        let protocol = port.child("protocol");
        if protocol.required(errors) {
            protocol.one_of(errors, &["SCTP", "TCP", "UDP"]);
        }
        port.child("hostIP").check(errors, names::is_ip);
    }
}

fn environment(container: &At<'_>, errors: &mut FieldErrors) {
    for env in container.child("env").items() {
        env.child("name").require(errors, names::is_env_var_name);
        let from = env.child("valueFrom");
        if !from.present() {
            continue;
        }
        if !env.child("value").is_empty() {
            from.invalid(errors, "may not be specified when `value` is not empty");
        }
        let sources = ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"];
        match sources.iter().filter(|s| from.child(s).present()).count() {
            0 => from.invalid(
                errors,
                "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
            ),
            1 => {}
            _ => from.invalid(errors, "may not have more than one field specified at a time"),
        }
        if from.child("fieldRef").present() {
            field_ref(&from.child("fieldRef"), &FIELD_PATHS, errors);
        }
        if from.child("resourceFieldRef").present() {
            resource_ref(&from.child("resourceFieldRef"), errors);
        }
        for source in ["configMapKeyRef", "secretKeyRef"] {
            let source = from.child(source);
            if source.present() {
                source.child("name").required(errors);
                source.child("key").require(errors, names::is_config_map_key);
            }
        }
    }
    for from in container.child("envFrom").items() {
        from.child("prefix").check(errors, names::is_env_var_name);
        let sources = [from.child("configMapRef"), from.child("secretRef")];
        match sources.iter().filter(|s| s.present()).count() {
            0 => from.invalid(errors, "must specify one of: `configMapRef` or `secretRef`"),
            1 => {}
            _ => from.invalid(errors, "may not have more than one field specified at a time"),
        }
        for source in sources.iter().filter(|s| s.present()) {
            source.child("name").required(errors);
        }
    }
}

/// A downward `fieldRef`.
pub(super) fn field_ref(reference: &At<'_>, allowed: &[&str], errors: &mut FieldErrors) {
    let path = reference.child("fieldPath");
    if !path.required(errors) {
        return;
    }
    let text = path.str();
    let subscript =
        |prefix: &str| text.strip_prefix(prefix).and_then(|t| t.strip_prefix("['")).and_then(|t| t.strip_suffix("']"));
    if let Some(key) = subscript("metadata.labels").or_else(|| subscript("metadata.annotations")) {
        for detail in names::is_qualified_name(&key.to_lowercase()) {
            path.invalid(errors, detail);
        }
    } else if !allowed.contains(&text) {
        path.invalid(errors, format!("error converting fieldPath: field label not supported: {text}"));
    }
}

/// A downward `resourceFieldRef`.
pub(super) fn resource_ref(reference: &At<'_>, errors: &mut FieldErrors) {
    let resource = reference.child("resource");
    if !resource.required(errors) {
        return;
    }
    const PLAIN: [&str; 6] = [
        "limits.cpu",
        "limits.ephemeral-storage",
        "limits.memory",
        "requests.cpu",
        "requests.ephemeral-storage",
        "requests.memory",
    ];
    let huge = ["limits.hugepages-", "requests.hugepages-"].iter().any(|p| resource.str().starts_with(p));
    if !huge {
        resource.one_of(errors, &PLAIN);
    }
}

fn mounts(list: &At<'_>, volumes: &[&str], errors: &mut FieldErrors) {
    let mut seen = Vec::new();
    for mount in list.items() {
        let name = mount.child("name");
        if name.required(errors) && !volumes.contains(&name.str()) {
            errors.push(proa_apimachinery::FieldError::not_found(&name.path, name.str()));
        }
        let path = mount.child("mountPath");
        if path.required(errors) {
            if seen.contains(&path.str()) {
                path.invalid(errors, "must be unique");
            }
            seen.push(path.str());
        }
        local_path(&mount.child("subPath"), errors);
        if !mount.child("subPath").is_empty() && !mount.child("subPathExpr").is_empty() {
            mount.child("subPathExpr").invalid(errors, "subPathExpr and subPath are mutually exclusive");
        }
        local_path(&mount.child("subPathExpr"), errors);
        mount.child("mountPropagation").one_of(errors, &["Bidirectional", "HostToContainer", "None"]);
    }
}

/// A relative path that stays below where it starts.
pub(super) fn local_path(path: &At<'_>, errors: &mut FieldErrors) {
    if path.str().starts_with('/') {
        path.invalid(errors, "must be a relative path");
    }
    if path.str().split('/').any(|part| part == "..") {
        path.invalid(errors, "must not contain '..'");
    }
}

/// `requests` and `limits`.
pub(in super::super) fn resources(resources: &At<'_>, errors: &mut FieldErrors) {
    let limits = resources.child("limits");
    for list in [&limits, &resources.child("requests")] {
        quantities(list, errors);
    }
    for (name, request) in resources.child("requests").entries() {
        let limit = limits.value.and_then(|l| l.get(name));
        // Of these there is never more promised than there is.
        let exact = name.contains('/') || name.starts_with("hugepages-");
        if exact && limit.is_none() {
            let why = "Limit must be set for non overcommitable resources";
            errors.push(proa_apimachinery::FieldError::required(&limits.path, why));
        }
        let (Some(limit), Some(wanted)) = (limit, request.value) else { continue };
        if let (Ok(wanted), Ok(limit)) = (Quantity::from_value(wanted), Quantity::from_value(limit))
            && (wanted > limit || exact && wanted != limit)
        {
            let mut at = request.clone();
            at.path = resources.child("requests").path;
            let relation = if exact { "equal to" } else { "less than or equal to" };
            at.invalid(errors, format!("must be {relation} {name} limit of {limit}"));
        }
    }
}

/// A resource list: names and non-negative amounts.
pub(in super::super) fn quantities(list: &At<'_>, errors: &mut FieldErrors) {
    for (name, amount) in list.entries() {
        for detail in names::is_qualified_name(name) {
            errors.push(proa_apimachinery::FieldError::invalid(&list.path, name, detail));
        }
        let standard = matches!(name, "cpu" | "memory" | "ephemeral-storage" | "storage" | "pods");
        if !standard && !name.contains('/') && !name.starts_with("hugepages-") && !name.contains('.') {
            errors.push(proa_apimachinery::FieldError::invalid(
                &list.path,
                name,
                "must be a standard resource type or fully qualified",
            ));
        }
        match amount.value.map(Quantity::from_value) {
            Some(Ok(quantity)) if quantity.sign() < 0 => {
                amount.invalid(errors, "must be greater than or equal to 0");
            }
            Some(Ok(quantity)) if name.contains('/') && !quantity.is_integer() => {
                amount.invalid(errors, "must be an integer");
            }
            Some(Err(error)) => amount.invalid(errors, error.to_string()),
            _ => {}
        }
    }
}

fn probe(probe: &At<'_>, which: &str, errors: &mut FieldErrors) {
    handler(probe, &["exec", "httpGet", "tcpSocket", "grpc"], errors);
    for field in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
        probe.child(field).non_negative(errors);
    }
    let grace = probe.child("terminationGracePeriodSeconds");
    if which == "readinessProbe" {
        if grace.present() {
            grace.invalid(errors, "must not be set for readinessProbes");
        }
    } else {
        grace.positive(errors);
        let success = probe.child("successThreshold");
        if success.int().is_some_and(|n| n > 1) {
            success.invalid(errors, "must be 1");
        }
    }
}

fn handler(at: &At<'_>, kinds: &[&str], errors: &mut FieldErrors) {
    let given: Vec<&str> = kinds.iter().copied().filter(|k| at.child(k).present()).collect();
    if given.is_empty() {
        at.missing(errors, "must specify a handler type");
    }
    for extra in given.iter().skip(1) {
        at.child(extra).forbidden(errors, "may not specify more than 1 handler type");
    }
    let exec = at.child("exec");
    if exec.present() {
        exec.child("command").required(errors);
    }
    let get = at.child("httpGet");
    if get.present() {
        get.child("path").required(errors);
        port(&get.child("port"), errors);
        get.child("scheme").one_of(errors, &["HTTP", "HTTPS"]);
        for header in get.child("httpHeaders").items() {
            let name = header.child("name");
            if name.required(errors) && !name.str().bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
                name.invalid(errors, "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for validation is '[-A-Za-z0-9]+')");
            }
        }
    }
    if at.child("tcpSocket").present() {
        port(&at.child("tcpSocket").child("port"), errors);
    }
    if at.child("grpc").present() {
        at.child("grpc").child("port").range(errors, 1, 65535);
    }
}

/// A port by number or by name.
pub(in super::super) fn port(port: &At<'_>, errors: &mut FieldErrors) {
    if port.int().is_some() {
        port.range(errors, 1, 65535);
    } else if port.is_empty() {
        port.invalid(errors, "must be between 1 and 65535, inclusive");
    } else {
        port.check(errors, names::is_port_name);
    }
}

fn security_context(context: &At<'_>, errors: &mut FieldErrors) {
    context.child("runAsUser").id(errors);
    context.child("runAsGroup").id(errors);
    context.child("procMount").one_of(errors, &["Default", "Unmasked"]);
    let escalation = context.child("allowPrivilegeEscalation");
    if escalation.value.and_then(serde_json::Value::as_bool) == Some(false) {
        if context.child("privileged").bool() {
            context.invalid(errors, "cannot set `allowPrivilegeEscalation` to false and `privileged` to true");
        }
        let added = context.child("capabilities").child("add");
        if added.items().any(|c| matches!(c.str(), "SYS_ADMIN" | "CAP_SYS_ADMIN")) {
            context
                .invalid(errors, "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN");
        }
    }
    seccomp(&context.child("seccompProfile"), errors);
}

/// A seccomp profile of a pod or a container.
pub(super) fn seccomp(profile: &At<'_>, errors: &mut FieldErrors) {
    if !profile.present() {
        return;
    }
    let type_ = profile.child("type");
    if type_.required(errors) {
        type_.one_of(errors, &["Localhost", "RuntimeDefault", "Unconfined"]);
    }
    let local = profile.child("localhostProfile");
    match (type_.str() == "Localhost", local.present()) {
        (true, false) => local.missing(errors, "must be set when seccomp type is Localhost"),
        (false, true) => local.invalid(errors, "can only be set when seccomp type is Localhost"),
        _ => {}
    }
}
