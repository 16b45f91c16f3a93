//! Owns what admission adds to a new pod: its service account and token, how long it stays on a lost node. Pure: the core looks up the objects and passes them in.
//!
//! Source: the ServiceAccount and DefaultTolerationSeconds plugins of Kubernetes.

use proa_apimachinery::Object;
use serde_json::{Value, json};

use super::super::at::{map_in, maps_at, or_set, spec_mut};

/// Where the token, the CA and the namespace are found in every container.
pub const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// The account a new pod runs as; the core looks it up, refuses the pod when it does not exist
/// (`error looking up service account NS/NAME: serviceaccount "NAME" not found`), and passes it to
/// [`admit_service_account`].
pub fn service_account_name(pod: &Object) -> &str {
    pod.get_str(&["spec", "serviceAccountName"]).filter(|n| !n.is_empty()).unwrap_or("default")
}

/// On a pod: it stands for one its node runs by itself.
pub const MIRROR: &str = "kubernetes.io/config.mirror";

/// Gives a new pod its service account: name, pull secrets, and the projected token volume. `suffix` is
/// five random characters for the volume's name.
pub fn admit_service_account(pod: &mut Object, account: &Object, suffix: &str) {
    let automount = pod
        .get_bool(&["spec", "automountServiceAccountToken"])
        .or_else(|| account.get_bool(&["automountServiceAccountToken"]))
        .unwrap_or(true);
    let pull_secrets = account.get(&["imagePullSecrets"]).cloned();
    let spec = spec_mut(pod);
    or_set(spec, "serviceAccountName", account.name());
    or_set(spec, "serviceAccount", account.name());
    if let (Some(secrets), false) = (pull_secrets, spec.contains_key("imagePullSecrets")) {
        spec.insert("imagePullSecrets".to_owned(), secrets);
    }
    if !automount {
        return;
    }
    let volume = format!("kube-api-access-{suffix}");
    let mut used = false;
    for field in ["initContainers", "containers"] {
        for container in maps_at(spec, field) {
            let mounts = container.entry("volumeMounts").or_insert_with(|| json!([]));
            let Some(mounts) = mounts.as_array_mut() else { continue };
            let taken = mounts.iter().any(|m| m.get("mountPath").and_then(Value::as_str) == Some(TOKEN_PATH));
            if !taken {
                mounts.push(json!({"name": volume, "readOnly": true, "mountPath": TOKEN_PATH}));
                used = true;
            }
        }
    }
    if !used {
        return;
    }
    let volumes = spec.entry("volumes").or_insert_with(|| json!([]));
    if let Some(volumes) = volumes.as_array_mut() {
        volumes.push(token_volume(&volume));
    }
}

fn token_volume(name: &str) -> Value {
    json!({"name": name, "projected": {"defaultMode": 0o644, "sources": [
        {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
    ]}})
}

/// A pod stays five minutes on a node that is lost or not ready, unless it says otherwise.
pub(super) fn default_tolerations(pod: &mut Object) {
    let spec = spec_mut(pod);
    let tolerations = spec.entry("tolerations").or_insert_with(|| json!([]));
    let Some(tolerations) = tolerations.as_array_mut() else { return };
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let text = |t: &Value, field: &str| t.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        let tolerated = tolerations.iter().any(|t| {
            let (k, effect) = (text(t, "key"), text(t, "effect"));
            (k.is_empty() || k == key) && (effect.is_empty() || effect == "NoExecute")
        });
        if !tolerated {
            tolerations
                .push(json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}));
        }
    }
}

/// A new pod's status: pending, with the quality of service its resources ask for.
pub(super) fn initial_status(pod: &mut Object) {
    let class = qos_class(pod);
    let gated = !pod.get_list(&["spec", "schedulingGates"]).is_empty();
    let status = map_in(&mut pod.0, "status");
    status.clear();
    status.insert("phase".to_owned(), "Pending".into());
    if gated {
        let condition = json!({"type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
            "message": "Scheduling is blocked due to non-empty scheduling gates"});
        status.insert("conditions".to_owned(), json!([condition]));
    }
    status.insert("qosClass".to_owned(), class.into());
}

/// `Guaranteed`, `Burstable` or `BestEffort`.
pub fn qos_class(pod: &Object) -> &'static str {
    let mut any = false;
    let mut guaranteed = true;
    for field in ["initContainers", "containers"] {
        for container in pod.get_list(&["spec", field]) {
            let amount = |kind: &str, name: &str| {
                let value = container.get("resources")?.get(kind)?.get(name)?;
                proa_apimachinery::quantity::Quantity::from_value(value).ok().filter(|q| !q.is_zero())
            };
            for name in ["cpu", "memory"] {
                let (request, limit) = (amount("requests", name), amount("limits", name));
                any |= request.is_some() || limit.is_some();
                guaranteed &= limit.is_some() && (request.is_none() || request == limit);
            }
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}
