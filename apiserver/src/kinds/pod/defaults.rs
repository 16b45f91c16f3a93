//! Owns the defaults of pods and pod templates (`pkg/apis/core/v1/defaults.go`). Never validates: what
//! is of a wrong type is left as it is.

use proa_apimachinery::Object;
use proa_apimachinery::quantity::Quantity;
use serde_json::{Map, Value, json};

use super::super::at::{map_at, map_in, maps_at, or_set, spec_mut};
use super::super::storage;

/// Everything a pod gets.
pub(super) fn pod(object: &mut Object) {
    let spec = spec_mut(object);
    spec_defaults(spec);
    or_set(spec, "enableServiceLinks", true);
    for field in ["containers", "initContainers"] {
        for container in maps_at(spec, field) {
            requests_from_limits(container);
        }
    }
}

/// What pods and pod templates get alike.
pub(in super::super) fn spec_defaults(spec: &mut Map<String, Value>) {
    or_set(spec, "restartPolicy", "Always");
    or_set(spec, "terminationGracePeriodSeconds", 30);
    or_set(spec, "dnsPolicy", "ClusterFirst");
    or_set(spec, "securityContext", json!({}));
    or_set(spec, "schedulerName", "default-scheduler");
    // The old name of the field is kept equal, as clients of either read it.
    let account = ["serviceAccountName", "serviceAccount"]
        .iter()
        .find_map(|f| spec.get(*f).and_then(Value::as_str).filter(|t| !t.is_empty()))
        .map(str::to_owned);
    if let Some(account) = account {
        spec.insert("serviceAccountName".to_owned(), account.clone().into());
        spec.insert("serviceAccount".to_owned(), account.into());
    }
    let host_network = spec.get("hostNetwork").and_then(Value::as_bool).unwrap_or(false);
    for field in ["initContainers", "containers", "ephemeralContainers"] {
        for one in maps_at(spec, field) {
            container(one, host_network);
        }
    }
    for one in maps_at(spec, "volumes") {
        volume(one);
    }
    for quantities in ["overhead"] {
        if let Some(list) = map_at(spec, quantities) {
            canonical_quantities(list);
        }
    }
}

fn container(container: &mut Map<String, Value>, host_network: bool) {
    let image = container.get("image").and_then(Value::as_str).unwrap_or_default();
    let policy = if is_latest(image) { "Always" } else { "IfNotPresent" };
    or_set(container, "imagePullPolicy", policy);
    or_set(container, "terminationMessagePath", "/dev/termination-log");
    or_set(container, "terminationMessagePolicy", "File");
    let resources = map_in(container, "resources");
    for field in ["limits", "requests"] {
        if let Some(list) = map_at(resources, field) {
            canonical_quantities(list);
        }
    }
    for port in maps_at(container, "ports") {
        or_set(port, "protocol", "TCP");
        if host_network && let Some(number) = port.get("containerPort").cloned() {
            let unset = port.get("hostPort").and_then(Value::as_i64).unwrap_or(0) == 0;
            if unset {
                port.insert("hostPort".to_owned(), number);
            }
        }
    }
    for env in maps_at(container, "env") {
        if let Some(reference) = map_at(env, "valueFrom").and_then(|from| map_at(from, "fieldRef")) {
            or_set(reference, "apiVersion", "v1");
        }
    }
    for field in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = map_at(container, field) {
            for (setting, value) in
                [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
            {
                number_or_set(probe, setting, value);
            }
            handler(probe);
            if let Some(grpc) = map_at(probe, "grpc") {
                grpc.entry("service").or_insert_with(|| "".into());
            }
        }
    }
    if let Some(lifecycle) = map_at(container, "lifecycle") {
        for hook in ["postStart", "preStop"] {
            if let Some(hook) = map_at(lifecycle, hook) {
                handler(hook);
            }
        }
    }
}

/// Zero counts as unset where Kubernetes' type is a plain number.
fn number_or_set(map: &mut Map<String, Value>, field: &str, value: i64) {
    if map.get(field).and_then(Value::as_i64) == Some(0) {
        map.insert(field.to_owned(), value.into());
    }
    or_set(map, field, value);
}

fn handler(handler: &mut Map<String, Value>) {
    if let Some(get) = map_at(handler, "httpGet") {
        or_set(get, "path", "/");
        or_set(get, "scheme", "HTTP");
    }
}

/// No tag and no digest, or the tag `latest`.
fn is_latest(image: &str) -> bool {
    if image.contains('@') {
        return false;
    }
    let name = image.rsplit_once('/').map_or(image, |(_, name)| name);
    name.split_once(':').is_none_or(|(_, tag)| tag == "latest")
}

fn requests_from_limits(container: &mut Map<String, Value>) {
    let resources = map_in(container, "resources");
    let Some(limits) = resources.get("limits").and_then(Value::as_object).cloned() else { return };
    if limits.is_empty() {
        return;
    }
    let requests = map_in(resources, "requests");
    for (name, quantity) in limits {
        or_set(requests, &name, quantity);
    }
}

/// Quantities are stored in their canonical form, at most thousandths fine.
pub(in super::super) fn canonical_quantities(list: &mut Map<String, Value>) {
    for value in list.values_mut() {
        if let Ok(quantity) = Quantity::from_value(value) {
            *value = quantity.to_string().into();
        }
    }
}

fn volume(volume: &mut Map<String, Value>) {
    if !volume.iter().any(|(key, value)| key != "name" && !value.is_null()) {
        volume.insert("emptyDir".to_owned(), json!({}));
    }
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = map_at(volume, source) {
            or_set(source, "defaultMode", 0o644);
        }
    }
    if let Some(path) = map_at(volume, "hostPath") {
        path.entry("type").or_insert_with(|| "".into());
    }
    if let Some(template) = map_at(volume, "ephemeral").and_then(|source| map_at(source, "volumeClaimTemplate")) {
        storage::claim_defaults(map_in(template, "spec"));
    }
    if let Some(directory) = map_at(volume, "emptyDir")
        && let Some(limit) = directory.get_mut("sizeLimit")
        && let Ok(quantity) = Quantity::from_value(limit)
    {
        *limit = quantity.to_string().into();
    }
    if let Some(source) = map_at(volume, "downwardAPI") {
        downward_items(source);
    }
    if let Some(projected) = map_at(volume, "projected") {
        for source in maps_at(projected, "sources") {
            if let Some(downward) = map_at(source, "downwardAPI") {
                downward_items(downward);
            }
            if let Some(token) = map_at(source, "serviceAccountToken") {
                or_set(token, "expirationSeconds", 3600);
            }
        }
    }
}

fn downward_items(source: &mut Map<String, Value>) {
    for item in maps_at(source, "items") {
        if let Some(reference) = map_at(item, "fieldRef") {
            or_set(reference, "apiVersion", "v1");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_moving_tag_is_pulled_always() {
        for (image, latest) in [
            ("nginx", true),
            ("nginx:latest", true),
            ("nginx:1.2", false),
            ("host:5000/nginx", true),
            ("host:5000/nginx:1", false),
            ("nginx@sha256:00", false),
            ("nginx:latest@sha256:00", false),
        ] {
            assert_eq!(is_latest(image), latest, "{image}");
        }
    }
}
