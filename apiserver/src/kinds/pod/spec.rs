//! Owns the validation of a pod spec, in pods and in templates alike. Containers and volumes are in
//! their own files. Never compares with an older object.

use proa_apimachinery::field::FieldErrors;
use proa_apimachinery::names;
use proa_apimachinery::selector::LabelSelector;

use super::super::at::At;
use super::super::meta;
use super::{container, volume};

/// `spec` of a pod or of a template. `claimed` are the volumes a pod gets from claims that are made with it.
pub(in super::super) fn validate(spec: &At<'_>, claimed: &[&str], errors: &mut FieldErrors) {
    volume::all(spec, errors);
    container::all(spec, claimed, errors);
    let restart = spec.child("restartPolicy");
    if restart.required(errors) {
        restart.one_of(errors, &["Always", "OnFailure", "Never"]);
    }
    dns(spec, errors);
    spec.child("terminationGracePeriodSeconds").non_negative(errors);
    spec.child("activeDeadlineSeconds").range(errors, 1, i64::from(i32::MAX));
    spec.child("nodeName").check(errors, names::is_dns1123_subdomain);
    spec.child("serviceAccountName").check(errors, names::is_dns1123_subdomain);
    spec.child("hostname").check(errors, names::is_dns1123_label);
    spec.child("subdomain").check(errors, names::is_dns1123_label);
    spec.child("priorityClassName").check(errors, names::is_dns1123_subdomain);
    spec.child("runtimeClassName").check(errors, names::is_dns1123_subdomain);
    spec.child("preemptionPolicy").one_of(errors, &["Never", "PreemptLowerPriority"]);
    meta::labels(spec.child("nodeSelector").value, &spec.child("nodeSelector").path, errors);
    for secret in spec.child("imagePullSecrets").items() {
        secret.child("name").required(errors);
    }
    for alias in spec.child("hostAliases").items() {
        alias.child("ip").require(errors, names::is_ip);
        for host in alias.child("hostnames").items() {
            host.check(errors, names::is_dns1123_subdomain);
        }
    }
    for gate in spec.child("readinessGates").items() {
        gate.child("conditionType").require(errors, names::is_qualified_name);
    }
    let mut gates = Vec::new();
    for gate in spec.child("schedulingGates").items() {
        let name = gate.child("name");
        name.require(errors, names::is_qualified_name);
        if gates.contains(&name.str()) {
            name.duplicate(errors);
        }
        gates.push(name.str());
    }
    security_context(&spec.child("securityContext"), spec, errors);
    tolerations(&spec.child("tolerations"), errors);
    affinity(&spec.child("affinity"), errors);
    spread(&spec.child("topologySpreadConstraints"), errors);
}

fn dns(spec: &At<'_>, errors: &mut FieldErrors) {
    let policy = spec.child("dnsPolicy");
    if policy.required(errors) {
        policy.one_of(errors, &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"]);
    }
    let config = spec.child("dnsConfig");
    let servers = config.child("nameservers");
    if policy.str() == "None" {
        if !config.present() {
            let detail = "must provide `dnsConfig` when `dnsPolicy` is None";
            config.missing(errors, detail);
        } else if servers.is_empty() {
            servers.missing(errors, "must provide at least one DNS nameserver when `dnsPolicy` is None");
        }
    }
    if servers.len() > 3 {
        servers.invalid(errors, "must not have more than 3 nameservers");
    }
    for server in servers.items() {
        server.check(errors, names::is_ip);
    }
    let searches = config.child("searches");
    if searches.len() > 32 {
        searches.invalid(errors, "must not have more than 32 search paths");
    }
    for option in config.child("options").items() {
        if option.child("name").is_empty() {
            option.missing(errors, "must not be empty");
        }
    }
}

fn security_context(context: &At<'_>, spec: &At<'_>, errors: &mut FieldErrors) {
    for field in ["runAsUser", "runAsGroup", "fsGroup"] {
        context.child(field).id(errors);
    }
    for group in context.child("supplementalGroups").items() {
        group.id(errors);
    }
    context.child("fsGroupChangePolicy").one_of(errors, &["Always", "OnRootMismatch"]);
    container::seccomp(&context.child("seccompProfile"), errors);
    let mut seen = Vec::new();
    for sysctl in context.child("sysctls").items() {
        let name = sysctl.child("name");
        if !name.required(errors) {
            continue;
        }
        let text = name.str();
        let ok = text.len() <= 253
            && text.split(['.', '/']).all(|part| {
                !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
            });
        if !ok {
            name.invalid(errors, "must have at most 253 characters and match regex ^([a-z0-9][-_a-z0-9]*[a-z0-9]?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$");
        }
        if seen.contains(&text) {
            name.duplicate(errors);
        }
        seen.push(text);
        if spec.child("hostNetwork").bool() && text.starts_with("net.") {
            name.invalid(errors, "may not be specified when 'hostNetwork' is true");
        }
    }
    let shared = spec.child("shareProcessNamespace");
    if shared.bool() && spec.child("hostPID").bool() {
        shared.invalid(errors, "ShareProcessNamespace and HostPID cannot both be enabled");
    }
}

fn tolerations(list: &At<'_>, errors: &mut FieldErrors) {
    for toleration in list.items() {
        let (key, operator) = (toleration.child("key"), toleration.child("operator"));
        key.check(errors, names::is_qualified_name);
        if key.is_empty() && operator.str() != "Exists" {
            operator.invalid(
                errors,
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            );
        }
        let effect = toleration.child("effect");
        if toleration.child("tolerationSeconds").present() && effect.str() != "NoExecute" {
            effect.invalid(errors, "effect must be 'NoExecute' when `tolerationSeconds` is set");
        }
        match operator.str() {
            "" | "Equal" => toleration.child("value").check(errors, names::is_label_value),
            "Exists" if !toleration.child("value").is_empty() => {
                operator.invalid(errors, "value must be empty when `operator` is 'Exists'");
            }
            "Exists" => {}
            _ => operator.not_supported(errors, &["Equal", "Exists"]),
        }
        effect.one_of(errors, &["NoExecute", "NoSchedule", "PreferNoSchedule"]);
    }
}

fn affinity(affinity: &At<'_>, errors: &mut FieldErrors) {
    let node = affinity.child("nodeAffinity");
    let required = node.child("requiredDuringSchedulingIgnoredDuringExecution");
    if required.present() {
        let terms = required.child("nodeSelectorTerms");
        if terms.is_empty() {
            terms.missing(errors, "must have at least one node selector term");
        }
        for term in terms.items() {
            node_term(&term, errors);
        }
    }
    for preferred in node.child("preferredDuringSchedulingIgnoredDuringExecution").items() {
        weight(&preferred, errors);
        node_term(&preferred.child("preference"), errors);
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let at = affinity.child(kind);
        for term in at.child("requiredDuringSchedulingIgnoredDuringExecution").items() {
            pod_term(&term, errors);
        }
        for preferred in at.child("preferredDuringSchedulingIgnoredDuringExecution").items() {
            weight(&preferred, errors);
            pod_term(&preferred.child("podAffinityTerm"), errors);
        }
    }
}

fn weight(preferred: &At<'_>, errors: &mut FieldErrors) {
    let weight = preferred.child("weight");
    if !(1..=100).contains(&weight.int().unwrap_or(0)) {
        weight.invalid(errors, "must be in the range 1-100");
    }
}

fn node_term(term: &At<'_>, errors: &mut FieldErrors) {
    for list in ["matchExpressions", "matchFields"] {
        for expression in term.child(list).items() {
            let (operator, values) = (expression.child("operator"), expression.child("values"));
            match operator.str() {
                "In" | "NotIn" if values.is_empty() => {
                    values.missing(errors, "must be specified when `operator` is 'In' or 'NotIn'");
                }
                "Exists" | "DoesNotExist" if !values.is_empty() => {
                    values.forbidden(errors, "may not be specified when `operator` is 'Exists' or 'DoesNotExist'");
                }
                "Gt" | "Lt" if values.len() != 1 => {
                    values.missing(errors, "must be specified single value when `operator` is 'Lt' or 'Gt'");
                }
                "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
                _ => operator.invalid(errors, "not a valid selector operator"),
            }
            expression.child("key").check(errors, names::is_qualified_name);
        }
    }
}

fn pod_term(term: &At<'_>, errors: &mut FieldErrors) {
    label_selector(&term.child("labelSelector"), errors);
    label_selector(&term.child("namespaceSelector"), errors);
    let key = term.child("topologyKey");
    if key.is_empty() {
        key.missing(errors, "can not be empty");
    }
    key.check(errors, names::is_qualified_name);
}

fn spread(list: &At<'_>, errors: &mut FieldErrors) {
    for constraint in list.items() {
        constraint.child("maxSkew").positive(errors);
        let key = constraint.child("topologyKey");
        if key.is_empty() {
            key.missing(errors, "can not be empty");
        }
        let unsatisfiable = constraint.child("whenUnsatisfiable");
        if !matches!(unsatisfiable.str(), "DoNotSchedule" | "ScheduleAnyway") {
            unsatisfiable.not_supported(errors, &["DoNotSchedule", "ScheduleAnyway"]);
        }
        label_selector(&constraint.child("labelSelector"), errors);
    }
}

/// A `metav1.LabelSelector` anywhere in an object.
pub(in super::super) fn label_selector(selector: &At<'_>, errors: &mut FieldErrors) {
    meta::labels(selector.child("matchLabels").value, &selector.child("matchLabels").path, errors);
    for expression in selector.child("matchExpressions").items() {
        let (operator, values) = (expression.child("operator"), expression.child("values"));
        match operator.str() {
            "In" | "NotIn" if values.is_empty() => {
                values.missing(errors, "must be specified when `operator` is 'In' or 'NotIn'");
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                values.forbidden(errors, "may not be specified when `operator` is 'Exists' or 'DoesNotExist'");
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            _ => operator.invalid(errors, "not a valid selector operator"),
        }
        let key = expression.child("key");
        for detail in names::is_qualified_name(key.str()) {
            key.invalid(errors, detail);
        }
        for value in values.items() {
            value.check(errors, names::is_label_value);
        }
    }
}

/// Does a selector match a map of labels? Unreadable selectors match nothing.
pub(in super::super) fn selects(selector: &At<'_>, labels: &At<'_>) -> bool {
    let Some(Ok(parsed)) = selector.value.map(LabelSelector::from_value) else { return false };
    parsed.matches(|key| labels.value?.get(key)?.as_str())
}
