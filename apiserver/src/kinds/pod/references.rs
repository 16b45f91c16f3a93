//! Which objects of its namespace a pod makes its node read.

use proa_apimachinery::Object;
use serde_json::Value;

/// The kinds a pod refers to by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Referent {
    /// A ConfigMap.
    ConfigMap,
    /// A Secret.
    Secret,
    /// A PersistentVolumeClaim.
    PersistentVolumeClaim,
    /// The ServiceAccount the pod runs as.
    ServiceAccount,
}

/// On a pod: the Secret that keeps the configuration it reads in place of the live objects.
pub const CONFIG_REVISION: &str = "proa.dev/config-revision";

/// Everything `pod` refers to; a name may come twice.
pub fn references(pod: &Object) -> Vec<(Referent, String)> {
    let mut found = Found(Vec::new());
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        pod.get_list(&["spec", list]).iter().for_each(|container| found.of_container(container));
    }
    for secret in pod.get_list(&["spec", "imagePullSecrets"]) {
        found.add(Referent::Secret, secret.get("name"));
    }
    for volume in pod.get_list(&["spec", "volumes"]) {
        found.of_volume(pod.name(), volume);
    }
    found.add(Referent::ServiceAccount, pod.get(&["spec", "serviceAccountName"]));
    if let Some(kept) = pod.annotation(CONFIG_REVISION) {
        found.name(Referent::Secret, kept);
    }
    found.0
}

struct Found(Vec<(Referent, String)>);

impl Found {
    fn name(&mut self, to: Referent, name: &str) {
        if !name.is_empty() {
            self.0.push((to, name.to_owned()));
        }
    }

    fn add(&mut self, to: Referent, name: Option<&Value>) {
        self.name(to, name.and_then(Value::as_str).unwrap_or_default());
    }

    fn of_container(&mut self, container: &Value) {
        for source in items(container, "envFrom") {
            self.add(Referent::ConfigMap, source.pointer("/configMapRef/name"));
            self.add(Referent::Secret, source.pointer("/secretRef/name"));
        }
        for variable in items(container, "env") {
            self.add(Referent::ConfigMap, variable.pointer("/valueFrom/configMapKeyRef/name"));
            self.add(Referent::Secret, variable.pointer("/valueFrom/secretKeyRef/name"));
        }
    }

    fn of_volume(&mut self, pod: &str, volume: &Value) {
        self.add(Referent::ConfigMap, volume.pointer("/configMap/name"));
        self.add(Referent::PersistentVolumeClaim, volume.pointer("/persistentVolumeClaim/claimName"));
        if volume.get("ephemeral").is_some_and(Value::is_object) {
            let name = volume.get("name").and_then(Value::as_str).unwrap_or_default();
            // The claim of an ephemeral volume is called after both (KEP-1698).
            self.name(Referent::PersistentVolumeClaim, &format!("{pod}-{name}"));
        }
        for name in ["/secret/secretName", "/azureFile/secretName", "/csi/nodePublishSecretRef/name"] {
            self.add(Referent::Secret, volume.pointer(name));
        }
        // All other kinds of storage name their credentials alike.
        for source in volume.as_object().into_iter().flatten().map(|(_, source)| source) {
            self.add(Referent::Secret, source.pointer("/secretRef/name"));
        }
        for source in volume.get("projected").into_iter().flat_map(|projected| items(projected, "sources")) {
            self.add(Referent::ConfigMap, source.pointer("/configMap/name"));
            self.add(Referent::Secret, source.pointer("/secret/name"));
        }
    }
}

fn items<'a>(value: &'a Value, list: &str) -> impl Iterator<Item = &'a Value> {
    value.get(list).and_then(Value::as_array).into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_place_a_pod_names_an_object_in_is_found() {
        let pod = json!({
            "metadata": {"name": "p", "annotations": {CONFIG_REVISION: "s-kept"}},
            "spec": {
                "serviceAccountName": "a",
                "imagePullSecrets": [{"name": "s-pull"}],
                "initContainers": [{"envFrom": [{"configMapRef": {"name": "m-all"}}, {"secretRef": {"name": "s-all"}}]}],
                "containers": [{"env": [
                    {"name": "PLAIN", "value": "x"},
                    {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "m-key", "key": "k"}}},
                    {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s-key", "key": "k"}}},
                ]}],
                "volumes": [
                    {"name": "a", "configMap": {"name": "m-volume"}},
                    {"name": "b", "secret": {"secretName": "s-volume"}},
                    {"name": "c", "projected": {"sources": [{"configMap": {"name": "m-part"}}, {"secret": {"name": "s-part"}}]}},
                    {"name": "d", "persistentVolumeClaim": {"claimName": "c-named"}},
                    {"name": "scratch", "ephemeral": {"volumeClaimTemplate": {}}},
                    {"name": "f", "csi": {"driver": "d", "nodePublishSecretRef": {"name": "s-csi"}}},
                    {"name": "g", "iscsi": {"secretRef": {"name": "s-iscsi"}}},
                    {"name": "h", "emptyDir": {}},
                ],
            },
        });
        let found = references(&Object::from_value(pod).unwrap());
        let names = |to: Referent| {
            let mut names: Vec<&str> =
                found.iter().filter(|(have, _)| *have == to).map(|(_, name)| name.as_str()).collect();
            names.sort_unstable();
            names.join(" ")
        };
        assert_eq!(names(Referent::ConfigMap), "m-all m-key m-part m-volume");
        assert_eq!(names(Referent::Secret), "s-all s-csi s-iscsi s-kept s-key s-part s-pull s-volume");
        assert_eq!(names(Referent::PersistentVolumeClaim), "c-named p-scratch");
        assert_eq!(names(Referent::ServiceAccount), "a");
    }
}
