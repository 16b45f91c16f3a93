//! Owns the environment of a container: which objects it needs, and the variables made from them.
//! Pure: the values of ConfigMaps and Secrets are given, and nothing is fetched here.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, EnvVar, ObjectFieldSelector, ResourceFieldSelector};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::expansion::expand;
use crate::objects::{Contents, ObjectRef};
use crate::pods::Pod;
use crate::resources;

/// Why the environment cannot be made; the text is what `CreateContainerConfigError` shows.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum EnvError {
    #[error("{kind} \"{name}\" not found")]
    NotFound { kind: &'static str, name: String },
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    NoKey { key: String, kind: &'static str, namespace: String, name: String },
    #[error("unsupported fieldPath: {0}")]
    Field(String),
    #[error("container {0} not found")]
    NoContainer(String),
    #[error("invalid container resource field: {0}")]
    Resource(String),
    #[error("env variable {0} uses valueFrom.fileKeyRef, which is not supported by Proa yet")]
    FileKeyRef(String),
}

/// What is known of the pod and its node when a container starts.
pub(crate) struct Facts<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) node_name: &'a str,
    pub(crate) pod_ips: &'a [String],
    pub(crate) host_ips: &'a [String],
    pub(crate) allocatable: &'a BTreeMap<String, Quantity>,
}

/// The objects a container's environment reads, each once.
pub(crate) fn references(container: &Container) -> Vec<ObjectRef> {
    let mut refs = Vec::new();
    let mut add = |r: ObjectRef| {
        if !refs.contains(&r) {
            refs.push(r);
        }
    };
    for from in container.env_from.iter().flatten() {
        if let Some(r) = &from.config_map_ref {
            add(ObjectRef::config_map(&r.name));
        }
        if let Some(r) = &from.secret_ref {
            add(ObjectRef::secret(&r.name));
        }
    }
    for source in container.env.iter().flatten().filter_map(|e| e.value_from.as_ref()) {
        if let Some(r) = &source.config_map_key_ref {
            add(ObjectRef::config_map(&r.name));
        }
        if let Some(r) = &source.secret_key_ref {
            add(ObjectRef::secret(&r.name));
        }
    }
    refs
}

/// The variables of a container, in the order they were written; service variables come last and never
/// hide one that was written. Image variables are not among them: see [`over_image`].
pub(crate) fn environment(
    container: &Container,
    facts: &Facts<'_>,
    services: &BTreeMap<String, String>,
    contents: &BTreeMap<ObjectRef, Option<Contents>>,
) -> Result<Vec<(String, String)>, EnvError> {
    let mut vars = Vars::default();
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or("");
        let (reference, optional) = match (&from.config_map_ref, &from.secret_ref) {
            (Some(r), _) => (ObjectRef::config_map(&r.name), r.optional),
            (None, Some(r)) => (ObjectRef::secret(&r.name), r.optional),
            (None, None) => continue,
        };
        match contents.get(&reference).and_then(Option::as_ref) {
            Some(data) => {
                for (key, value) in &data.entries {
                    vars.set(format!("{prefix}{key}"), String::from_utf8_lossy(value).into_owned());
                }
            }
            None if optional == Some(true) => {}
            None => return Err(not_found(&reference)),
        }
    }
    for var in container.env.iter().flatten() {
        if let Some(value) = value_of(var, container, facts, services, contents, &vars)? {
            vars.set(var.name.clone(), value);
        }
    }
    for (name, value) in services {
        if !vars.index.contains_key(name) {
            vars.set(name.clone(), value.clone());
        }
    }
    Ok(vars.list)
}

fn value_of(
    var: &EnvVar,
    container: &Container,
    facts: &Facts<'_>,
    services: &BTreeMap<String, String>,
    contents: &BTreeMap<ObjectRef, Option<Contents>>,
    vars: &Vars,
) -> Result<Option<String>, EnvError> {
    if let Some(value) = var.value.as_deref().filter(|v| !v.is_empty()) {
        return Ok(Some(expand(value, |name| vars.get(name).or_else(|| services.get(name).cloned()))));
    }
    let Some(source) = &var.value_from else { return Ok(Some(String::new())) };
    if let Some(field) = &source.field_ref {
        return pod_field(field, facts).map(Some);
    }
    if let Some(field) = &source.resource_field_ref {
        return resource_field(field, Some(container), facts).map(Some);
    }
    if source.file_key_ref.is_some() {
        return Err(EnvError::FileKeyRef(var.name.clone()));
    }
    let (reference, key, optional) = match (&source.config_map_key_ref, &source.secret_key_ref) {
        (Some(r), _) => (ObjectRef::config_map(&r.name), &r.key, r.optional == Some(true)),
        (None, Some(r)) => (ObjectRef::secret(&r.name), &r.key, r.optional == Some(true)),
        (None, None) => return Ok(Some(String::new())),
    };
    let Some(data) = contents.get(&reference).and_then(Option::as_ref) else {
        return if optional { Ok(None) } else { Err(not_found(&reference)) };
    };
    match data.entries.get(key) {
        Some(value) => Ok(Some(String::from_utf8_lossy(value).into_owned())),
        None if optional => Ok(None),
        None => Err(EnvError::NoKey {
            key: key.clone(),
            kind: reference.kind.kind(),
            namespace: facts.pod.metadata.namespace.clone().unwrap_or_default(),
            name: reference.name,
        }),
    }
}

pub(crate) fn not_found(reference: &ObjectRef) -> EnvError {
    EnvError::NotFound { kind: reference.kind.singular(), name: reference.name.clone() }
}

/// A `fieldRef`: the downward API's paths that name one value.
pub(crate) fn pod_field(field: &ObjectFieldSelector, facts: &Facts<'_>) -> Result<String, EnvError> {
    let meta = &facts.pod.metadata;
    let path = field.field_path.as_str();
    let subscript = |prefix: &str| path.strip_prefix(prefix).and_then(|r| r.strip_suffix("']"));
    if let Some(key) = subscript("metadata.labels['") {
        return Ok(meta.labels.as_ref().and_then(|m| m.get(key)).cloned().unwrap_or_default());
    }
    if let Some(key) = subscript("metadata.annotations['") {
        return Ok(meta.annotations.as_ref().and_then(|m| m.get(key)).cloned().unwrap_or_default());
    }
    let listed = |map: &Option<BTreeMap<String, String>>| -> String {
        map.iter().flatten().map(|(k, v)| format!("{k}={v:?}")).collect::<Vec<_>>().join("\n")
    };
    Ok(match path {
        "metadata.name" => meta.name.clone().unwrap_or_default(),
        "metadata.namespace" => meta.namespace.clone().unwrap_or_default(),
        "metadata.uid" => meta.uid.clone().unwrap_or_default(),
        "metadata.labels" => listed(&meta.labels),
        "metadata.annotations" => listed(&meta.annotations),
        "spec.nodeName" => facts.node_name.to_owned(),
        "spec.serviceAccountName" => facts.pod.spec.service_account_name.clone().unwrap_or_default(),
        "status.podIP" => facts.pod_ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => facts.pod_ips.join(","),
        "status.hostIP" => facts.host_ips.first().cloned().unwrap_or_default(),
        "status.hostIPs" => facts.host_ips.join(","),
        other => return Err(EnvError::Field(other.to_owned())),
    })
}

/// A `resourceFieldRef`, of the named container or else of `own`.
pub(crate) fn resource_field(
    field: &ResourceFieldSelector,
    own: Option<&Container>,
    facts: &Facts<'_>,
) -> Result<String, EnvError> {
    let spec = &facts.pod.spec;
    let named = field.container_name.as_deref().filter(|n| !n.is_empty());
    let container = match named {
        Some(name) => spec
            .containers
            .iter()
            .chain(spec.init_containers.iter().flatten())
            .find(|c| c.name == name)
            .ok_or_else(|| EnvError::NoContainer(name.to_owned()))?,
        None => own.ok_or_else(|| EnvError::NoContainer(String::new()))?,
    };
    resources::field(container, &field.resource, field.divisor.as_ref(), facts.allocatable)
        .ok_or_else(|| EnvError::Resource(field.resource.clone()))
}

/// The image's variables under the container's own: an own value replaces the image's in its place.
pub(crate) fn over_image(image: &[String], own: Vec<(String, String)>) -> Vec<(String, String)> {
    let mut vars = Vars::default();
    for entry in image {
        let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
        vars.set(name.to_owned(), value.to_owned());
    }
    for (name, value) in own {
        vars.set(name, value);
    }
    vars.list
}

#[derive(Default)]
struct Vars {
    list: Vec<(String, String)>,
    index: BTreeMap<String, usize>,
}

impl Vars {
    fn set(&mut self, name: String, value: String) {
        match self.index.get(&name) {
            Some(at) => self.list[*at].1 = value,
            None => {
                self.index.insert(name.clone(), self.list.len());
                self.list.push((name, value));
            }
        }
    }

    fn get(&self, name: &str) -> Option<String> {
        self.index.get(name).map(|at| self.list[*at].1.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "web-1", "namespace": "shop", "uid": "u1", "labels": {"app": "web"}, "annotations": {"note": "hi"}},
            "spec": {"serviceAccountName": "runner", "containers": [{"name": "c"}]}
        }))
        .unwrap()
    }

    fn run(env: serde_json::Value, from: serde_json::Value) -> Result<Vec<(String, String)>, EnvError> {
        let container: Container = serde_json::from_value(json!({"name": "c", "env": env, "envFrom": from})).unwrap();
        let pod = pod();
        let allocatable = BTreeMap::new();
        let facts = Facts {
            pod: &pod,
            node_name: "n1",
            pod_ips: &["10.1.0.2".to_owned()],
            host_ips: &["192.0.2.1".to_owned()],
            allocatable: &allocatable,
        };
        let services = BTreeMap::from([("KUBERNETES_SERVICE_HOST".to_owned(), "10.96.0.1".to_owned())]);
        let contents = BTreeMap::from([
            (ObjectRef::config_map("cfg"), Some(Contents::of([("k", "v"), ("z", "9")]))),
            (ObjectRef::secret("sec"), Some(Contents::of([("pw", "hunter2")]))),
        ]);
        environment(&container, &facts, &services, &contents)
    }

    fn value(vars: &[(String, String)], name: &str) -> Option<String> {
        vars.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone())
    }

    #[test]
    fn values_fields_and_references_are_resolved_in_order() {
        let vars = run(
            json!([
                {"name": "A", "value": "1"},
                {"name": "B", "value": "$(A)$(KUBERNETES_SERVICE_HOST)$(LATER)"},
                {"name": "LATER", "value": "x"},
                {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "LABEL", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
                {"name": "K", "valueFrom": {"configMapKeyRef": {"name": "cfg", "key": "k"}}},
                {"name": "PW", "valueFrom": {"secretKeyRef": {"name": "sec", "key": "pw"}}},
                {"name": "GONE", "valueFrom": {"secretKeyRef": {"name": "sec", "key": "none", "optional": true}}},
            ]),
            json!([{"prefix": "P_", "configMapRef": {"name": "cfg"}}]),
        )
        .unwrap();
        for (name, want) in [
            ("A", Some("1")),
            ("B", Some("110.96.0.1$(LATER)")),
            ("NODE", Some("n1")),
            ("IP", Some("10.1.0.2")),
            ("LABEL", Some("web")),
            ("K", Some("v")),
            ("PW", Some("hunter2")),
            ("GONE", None),
            ("P_k", Some("v")),
            ("P_z", Some("9")),
            ("KUBERNETES_SERVICE_HOST", Some("10.96.0.1")),
        ] {
            assert_eq!(value(&vars, name).as_deref(), want, "{name}");
        }
    }

    #[test]
    fn a_written_variable_wins_over_env_from_and_services() {
        let vars = run(
            json!([{"name": "k", "value": "own"}, {"name": "KUBERNETES_SERVICE_HOST", "value": "h"}]),
            json!([{"configMapRef": {"name": "cfg"}}]),
        )
        .unwrap();
        assert_eq!(value(&vars, "k").as_deref(), Some("own"));
        assert_eq!(value(&vars, "KUBERNETES_SERVICE_HOST").as_deref(), Some("h"));
        assert_eq!(vars.iter().filter(|(n, _)| n == "k").count(), 1);
    }

    #[test]
    fn what_is_missing_is_said_in_kubernetes_words() {
        let missing = run(json!([]), json!([{"configMapRef": {"name": "x"}}])).unwrap_err();
        assert_eq!(missing.to_string(), "configmap \"x\" not found");
        let key = run(json!([{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "cfg", "key": "q"}}}]), json!([]));
        assert_eq!(key.unwrap_err().to_string(), "couldn't find key q in ConfigMap shop/cfg");
        let secret =
            run(json!([{"name": "A", "valueFrom": {"secretKeyRef": {"name": "nope", "key": "q"}}}]), json!([]));
        assert_eq!(secret.unwrap_err().to_string(), "secret \"nope\" not found");
        assert!(run(json!([]), json!([{"secretRef": {"name": "x", "optional": true}}])).is_ok());
    }

    #[test]
    fn image_variables_are_defaults() {
        let merged = over_image(
            &["PATH=/bin".into(), "A=img".into()],
            vec![("A".into(), "own".into()), ("B".into(), "b".into())],
        );
        assert_eq!(merged, [("PATH", "/bin"), ("A", "own"), ("B", "b")].map(|(a, b)| (a.to_owned(), b.to_owned())));
    }
}
