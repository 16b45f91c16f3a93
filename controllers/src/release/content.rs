//! What a member says, without what the platform says about it: the content a revision keeps and gives back. Pure.
//!
//! Two states of an object have the same content when its appliers said the same. Left out are the status, what only the
//! server writes, what a subresource writes (the size an autoscaler gave), and the marks that controllers leave in metadata.
//! Beside the content stands the record of the last apply: it follows the content back, so that the next apply changes what
//! its manifest says, and no more.

use proa_apimachinery::managed_fields::{Element, Set};
use proa_crds::annotations;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::fmt;

/// The field manager of what going back writes. None of its entries outlives the going back.
pub(super) const MANAGER: &str = "proa-release";
/// Field managers whose marks in metadata are about an object, not of it.
const PLATFORM: [&str; 6] =
    [crate::patch::MANAGER, "proa-agent", "proa-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet"];
/// The revision numbers of Deployments and DaemonSets and all they note beside them.
const PLATFORM_NOTES: [&str; 2] = ["deployment.kubernetes.io/", "deprecated.daemonset.template.generation"];
/// Notes of ours that say what became of an object, or what is wished of it at one moment.
const OWN_NOTES: [&str; 3] = [annotations::RETRY, annotations::CHANGED_BY, annotations::FAILED_REVISIONS];

/// Which object.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Id {
    /// Empty for the core group. The version is no part of an object's identity.
    pub group: String,
    /// `Deployment`
    pub kind: String,
    /// Empty for objects of no namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for Id {
    /// As kubectl prints an object: `deployment.apps/web`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.kind.to_ascii_lowercase();
        match self.group.as_str() {
            "" => write!(f, "{kind}/{}", self.name),
            group => write!(f, "{kind}.{group}/{}", self.name),
        }
    }
}

/// The record of the last apply, and what the object was set to beside it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Applied {
    /// What client-side `kubectl apply` remembers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub configuration: Option<String>,
    /// `managedFields` without those of subresources and of the platform.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub managed_fields: Vec<Value>,
    /// `spec.replicas`, where a subresource owns it: wanted only when the object is made anew.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicas: Option<Value>,
}

/// A member's content, as a revision keeps it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Content {
    /// Which object.
    pub id: Id,
    /// What it says, with sorted keys; `apiVersion` and `kind` are in it.
    pub object: Value,
    /// What its appliers remember.
    #[serde(default)]
    pub applied: Applied,
}

impl Content {
    /// The content of an object as the server has it. `kind` and `api_version` are those it was read by: items of a list do
    /// not always say them.
    pub fn of(api_version: &str, kind: &str, live: &Value) -> Content {
        let text = |path: &str| live.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
        let group = api_version.rsplit_once('/').map_or("", |(group, _)| group);
        let id = Id {
            group: group.to_owned(),
            kind: kind.to_owned(),
            namespace: text("/metadata/namespace"),
            name: text("/metadata/name"),
        };
        let mut object = live.clone();
        let managed = entries(live);
        let (noise, replicas) = noise(&managed, live);
        remove(&mut object, &noise);
        tidy(&mut object, api_version, kind);
        let applied = Applied {
            configuration: live.pointer(&pointer(annotations::LAST_APPLIED)).and_then(Value::as_str).map(str::to_owned),
            managed_fields: managed.iter().filter(|entry| is_appliers(entry)).cloned().collect(),
            replicas,
        };
        Content { id, object, applied }
    }

    /// SHA-256 of what it says, in hexadecimal.
    pub fn digest(&self) -> String {
        sha256(self.object.to_string().as_bytes())
    }

    /// What a subresource of the live object owns is left to it.
    pub(super) fn yielding_to(&self, live: &Content) -> Value {
        let mut object = self.object.clone();
        if live.applied.replicas.is_some()
            && let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut)
        {
            spec.remove("replicas");
        }
        object
    }
}

/// SHA-256 in hexadecimal.
pub(super) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn pointer(annotation: &str) -> String {
    format!("/metadata/annotations/{}", annotation.replace('~', "~0").replace('/', "~1"))
}

/// The entries of `managedFields`.
pub(super) fn entries(live: &Value) -> Vec<Value> {
    live.pointer("/metadata/managedFields").and_then(Value::as_array).cloned().unwrap_or_default()
}

fn field<'a>(entry: &'a Value, name: &str) -> &'a str {
    entry.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// Whether an entry of `managedFields` belongs to the record of the last apply: those of subresources and of the platform
/// say what is, not what was asked for; and who goes back asks for nothing of its own.
pub(super) fn is_appliers(entry: &Value) -> bool {
    let manager = field(entry, "manager");
    field(entry, "subresource").is_empty() && manager != MANAGER && !PLATFORM.contains(&manager)
}

fn set_of(entry: &Value) -> Set {
    entry.get("fieldsV1").and_then(Set::from_fields_v1).unwrap_or_default()
}

/// The fields that nobody asked for, and the size a subresource gave.
fn noise(managed: &[Value], live: &Value) -> (Set, Option<Value>) {
    let (mut noise, mut asked) = (Set::default(), Set::default());
    let mut scaled = false;
    let replicas = [Element::field("spec"), Element::field("replicas")];
    for entry in managed {
        let fields = set_of(entry);
        if !field(entry, "subresource").is_empty() {
            scaled |= field(entry, "subresource") == "scale" && fields.contains(&replicas);
            noise.absorb(fields);
        } else if PLATFORM.contains(&field(entry, "manager")) {
            // Of the rest of an object the platform is as good an applier as any: it may have taken a template back.
            fields.each(&mut |path| {
                if path.first() == Some(&Element::field("metadata")) {
                    noise.insert(path);
                }
            });
        } else {
            asked.absorb(fields);
        }
    }
    let replicas = live.pointer("/spec/replicas").filter(|_| scaled).cloned();
    let mut noise = noise.difference(&asked);
    if scaled {
        // The applier may own it beside the autoscaler; the size stays the autoscaler's.
        noise.insert(&[Element::field("spec"), Element::field("replicas")]);
    }
    (noise, replicas)
}

/// Takes the fields of a set out of a value; what is empty after that, and in the set itself, goes too.
fn remove(value: &mut Value, set: &Set) {
    let mut paths = Vec::new();
    set.each(&mut |path| paths.push(path.to_vec()));
    // The inner ones first: who made a map does not own what others put into it.
    for path in paths.iter().rev() {
        remove_path(value, path);
    }
}

fn remove_path(value: &mut Value, path: &[Element]) {
    let Some((first, rest)) = path.split_first() else { return };
    if rest.is_empty() {
        let is_hollow = |value: &Value| match value {
            Value::Object(map) => map.is_empty(),
            Value::Array(list) => list.is_empty(),
            _ => true,
        };
        if let (Element::Field(name), Value::Object(map)) = (first, value)
            && map.get(&**name).is_some_and(is_hollow)
        {
            map.shift_remove(&**name);
        }
        return;
    }
    let below = match (first, value) {
        (Element::Field(name), Value::Object(map)) => map.get_mut(&**name),
        (Element::Key(fields), Value::Array(list)) => {
            list.iter_mut().find(|item| fields.iter().all(|(name, wanted)| item.get(&**name) == Some(wanted)))
        }
        _ => None,
    };
    if let Some(below) = below {
        remove_path(below, rest);
    }
}

/// Leaves of an object what its appliers can say.
fn tidy(object: &mut Value, api_version: &str, kind: &str) {
    let Some(root) = object.as_object_mut() else { return };
    root.shift_remove("status");
    root.insert("apiVersion".into(), api_version.into());
    root.insert("kind".into(), kind.into());
    if let Some(meta) = root.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.retain(|key, _| matches!(key.as_str(), "name" | "namespace" | "labels" | "annotations"));
        if let Some(notes) = meta.get_mut("annotations").and_then(Value::as_object_mut) {
            notes.retain(|key, _| {
                key != annotations::LAST_APPLIED
                    && !OWN_NOTES.contains(&key.as_str())
                    && !annotations::REPLICA_SET_ONLY.contains(&key.as_str())
                    && !PLATFORM_NOTES.iter().any(|prefix| key.starts_with(prefix))
            });
        }
        meta.retain(|_, value| value.as_object().is_none_or(|map| !map.is_empty()));
    }
    let group = api_version.rsplit_once('/').map_or("", |(group, _)| group);
    of_the_server(group, kind, root);
    object.sort_all_objects();
}

fn take(map: &mut Map<String, Value>, path: &[&str]) {
    match path {
        [] => {}
        [last] => drop(map.shift_remove(*last)),
        [first, rest @ ..] => {
            if let Some(below) = map.get_mut(*first).and_then(Value::as_object_mut) {
                take(below, rest);
            }
        }
    }
}

/// What the server makes of an object of these kinds and would not take from anybody.
fn of_the_server(group: &str, kind: &str, root: &mut Map<String, Value>) {
    match (group, kind) {
        ("", "Namespace") => take(root, &["spec"]),
        ("", "Pod") => take(root, &["spec", "nodeName"]),
        ("", "PersistentVolumeClaim") => take(root, &["spec", "volumeName"]),
        ("", "ServiceAccount") => take(root, &["secrets"]),
        ("", "Service") => {
            let headless = root.get("spec").and_then(|spec| spec.get("clusterIP")) == Some(&json!("None"));
            if !headless {
                take(root, &["spec", "clusterIP"]);
            }
            take(root, &["spec", "clusterIPs"]);
            take(root, &["spec", "healthCheckNodePort"]);
        }
        ("", "Secret") if root.get("type") == Some(&json!("kubernetes.io/service-account-token")) => {
            take(root, &["data"])
        }
        ("batch", "Job") => {
            let manual = root.get("spec").and_then(|spec| spec.get("manualSelector")) == Some(&json!(true));
            if !manual {
                take(root, &["spec", "selector"]);
                for label in
                    ["controller-uid", "batch.kubernetes.io/controller-uid", "job-name", "batch.kubernetes.io/job-name"]
                {
                    take(root, &["spec", "template", "metadata", "labels", label]);
                    take(root, &["metadata", "labels", label]);
                }
            }
        }
        _ => {}
    }
}

/// The images a workload of any kind runs, in order.
pub fn images(object: &Value) -> Vec<String> {
    let spec = match object.get("kind").and_then(Value::as_str) {
        Some("Pod") => object.get("spec"),
        Some("CronJob") => object.pointer("/spec/jobTemplate/spec/template/spec"),
        _ => object.pointer("/spec/template/spec"),
    };
    let containers =
        ["initContainers", "containers"].into_iter().filter_map(|list| spec?.get(list)?.as_array()).flatten();
    let mut images: Vec<String> =
        containers.filter_map(|container| container.get("image")?.as_str().map(str::to_owned)).collect();
    let mut seen = std::collections::BTreeSet::new();
    images.retain(|image| seen.insert(image.clone()));
    images
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(manager: &str, operation: &str, subresource: &str, fields: Value) -> Value {
        let mut entry = json!({"manager": manager, "operation": operation, "apiVersion": "apps/v1", "fieldsType": "FieldsV1", "fieldsV1": fields});
        if !subresource.is_empty() {
            entry["subresource"] = subresource.into();
        }
        entry
    }

    fn deployment() -> Value {
        json!({
            "metadata": {
                "name": "web", "namespace": "shop", "uid": "u", "resourceVersion": "9", "generation": 3, "creationTimestamp": "2026-11-21T10:00:00Z",
                "labels": {"app": "web"},
                "annotations": {
                    "deployment.kubernetes.io/revision": "3", "note": "mine", "mark": "theirs",
                    annotations::LAST_APPLIED: "{}", annotations::CHANGED_BY: "{}",
                },
                "managedFields": [
                    entry("kubectl-client-side-apply", "Update", "", json!({"f:metadata": {"f:annotations": {"f:note": {}}}, "f:spec": {"f:replicas": {}}})),
                    entry("kube-controller-manager", "Update", "", json!({"f:metadata": {"f:annotations": {".": {}, "f:mark": {}}}})),
                    entry("kube-controller-manager", "Update", "status", json!({"f:status": {"f:replicas": {}}})),
                ],
            },
            "spec": {"replicas": 2, "template": {"spec": {"containers": [{"name": "c", "image": "i"}]}}},
            "status": {"replicas": 2},
        })
    }

    #[test]
    fn the_content_is_what_appliers_say() {
        let content = Content::of("apps/v1", "Deployment", &deployment());
        let expected = json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"annotations": {"note": "mine"}, "labels": {"app": "web"}, "name": "web", "namespace": "shop"},
            "spec": {"replicas": 2, "template": {"spec": {"containers": [{"image": "i", "name": "c"}]}}},
        });
        assert_eq!(content.object, expected);
        assert_eq!(content.object.to_string(), expected.to_string(), "with sorted keys");
        assert_eq!(content.applied.configuration.as_deref(), Some("{}"));
        assert_eq!(content.applied.managed_fields.len(), 1);
        assert_eq!(content.id.to_string(), "deployment.apps/web");
    }

    #[test]
    fn the_size_an_autoscaler_gave_is_no_content_and_stays() {
        let mut live = deployment();
        let before = Content::of("apps/v1", "Deployment", &live);
        live["metadata"]["managedFields"][2] = entry("hpa", "Update", "scale", json!({"f:spec": {"f:replicas": {}}}));
        live["spec"]["replicas"] = json!(7);
        let content = Content::of("apps/v1", "Deployment", &live);
        assert_eq!(content.object["spec"].get("replicas"), None);
        assert_eq!(content.applied.replicas, Some(json!(7)));
        assert_eq!(before.yielding_to(&content)["spec"].get("replicas"), None, "going back leaves the size");
    }

    #[test]
    fn a_template_the_platform_took_back_is_content_all_the_same() {
        let mut live = deployment();
        live["metadata"]["managedFields"][1] = entry(
            crate::patch::MANAGER,
            "Update",
            "",
            json!({"f:spec": {"f:template": {"f:spec": {"f:containers": {"k:{\"name\":\"c\"}": {"f:image": {}}}}}}}),
        );
        let content = Content::of("apps/v1", "Deployment", &live);
        assert_eq!(images(&content.object), ["i"]);
    }

    #[test]
    fn what_going_back_wrote_is_content_until_its_appliers_have_it_back() {
        let mut live = deployment();
        live["metadata"]["managedFields"][1] = entry(
            MANAGER,
            "Update",
            "",
            json!({"f:metadata": {"f:annotations": {"f:mark": {}}, "f:labels": {".": {}, "f:app": {}}}}),
        );
        let content = Content::of("apps/v1", "Deployment", &live);
        assert_eq!(content.object["metadata"]["labels"], json!({"app": "web"}));
        assert_eq!(content.object["metadata"]["annotations"]["mark"], "theirs");
        assert_eq!(content.applied.managed_fields.len(), 1, "and none of it is an applier's");
    }

    #[test]
    fn what_the_server_allots_is_no_content() {
        let service = json!({"metadata": {"name": "web"}, "spec": {"clusterIP": "10.0.0.7", "clusterIPs": ["10.0.0.7"], "ports": [{"port": 80}]}});
        assert_eq!(Content::of("v1", "Service", &service).object["spec"], json!({"ports": [{"port": 80}]}));
        let headless = json!({"metadata": {"name": "web"}, "spec": {"clusterIP": "None", "clusterIPs": ["None"]}});
        assert_eq!(Content::of("v1", "Service", &headless).object["spec"], json!({"clusterIP": "None"}));
        let claim =
            json!({"metadata": {"name": "data"}, "spec": {"volumeName": "pv-1", "accessModes": ["ReadWriteOnce"]}});
        assert_eq!(
            Content::of("v1", "PersistentVolumeClaim", &claim).object["spec"],
            json!({"accessModes": ["ReadWriteOnce"]})
        );
        let job = json!({"metadata": {"name": "j"}, "spec": {
            "selector": {"matchLabels": {"controller-uid": "u"}},
            "template": {"metadata": {"labels": {"controller-uid": "u", "a": "b"}}, "spec": {}},
        }});
        assert_eq!(
            Content::of("batch/v1", "Job", &job).object["spec"],
            json!({"template": {"metadata": {"labels": {"a": "b"}}, "spec": {}}})
        );
    }

    #[test]
    fn equal_content_has_one_digest_whatever_the_order_of_keys() {
        let digest = |value: Value| Content::of("v1", "ConfigMap", &value).digest();
        let a = json!({"metadata": {"name": "c", "uid": "1"}, "data": {"a": "1", "b": "2"}});
        let b = json!({"data": {"b": "2", "a": "1"}, "metadata": {"uid": "2", "name": "c", "annotations": {}}});
        assert_eq!(digest(a.clone()), digest(b));
        assert_ne!(digest(a), digest(json!({"metadata": {"name": "c"}, "data": {"a": "1"}})));
    }
}
