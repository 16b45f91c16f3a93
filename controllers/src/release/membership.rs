//! Which objects belong to a release: what must be watched to know them, and which of what is seen are members. Pure.

use crate::{catalogue::Known, owners, patch::json, selector};
use kube::core::{ApiResource, DynamicObject, ObjectMeta};
use proa_crds::{
    annotations,
    release::{GroupKind, Members, Release},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};

/// The kinds of objects a selector selects when the release names none.
const USUAL: [(&str, &str); 15] = [
    ("", "ConfigMap"),
    ("", "PersistentVolumeClaim"),
    ("", "Secret"),
    ("", "Service"),
    ("", "ServiceAccount"),
    ("apps", "DaemonSet"),
    ("apps", "Deployment"),
    ("apps", "StatefulSet"),
    ("autoscaling", "HorizontalPodAutoscaler"),
    ("batch", "CronJob"),
    ("batch", "Job"),
    ("networking.k8s.io", "Ingress"),
    ("networking.k8s.io", "NetworkPolicy"),
    ("policy", "PodDisruptionBudget"),
    ("proa.dev", "RolloutPolicy"),
];

/// Objects that must be watched: of a kind, in one namespace or in all, by labels.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Want {
    /// The kind.
    pub resource: ApiResource,
    /// Empty for all.
    pub namespace: String,
    /// A label selector as in a query; empty for every object.
    pub labels: String,
}

/// Why it cannot be told which objects belong to a release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unknown {
    /// The parent is not there, or is no parent.
    NoParent(String),
    /// The server does not serve a kind.
    NoKind(String),
}

impl std::fmt::Display for Unknown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Unknown::NoParent(parent) => write!(f, "{parent} is not the parent of an ApplySet"),
            Unknown::NoKind(kind) => write!(f, "the server serves no {kind}"),
        }
    }
}

/// What the parent of an ApplySet says of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Parent {
    /// The set's id.
    pub id: String,
    /// `Kind.group`, or of older kubectl `resource.group`.
    pub kinds: BTreeSet<String>,
    /// The change cause.
    pub cause: Option<String>,
}

impl Parent {
    /// What the set's tool is to remember, so that it and we find members of these kinds and in these namespaces too: the
    /// labels and annotations of ApplySets on that object, the lists grown.
    pub(super) fn grown(meta: &ObjectMeta, kinds: &[&ApiResource], namespaces: &[&str]) -> Value {
        let ours = |map: &Option<BTreeMap<String, String>>| -> BTreeMap<String, String> {
            let notes = map.iter().flatten().filter(|(key, _)| key.starts_with("applyset.kubernetes.io/"));
            notes.map(|(key, value)| (key.clone(), value.clone())).collect()
        };
        let mut labels = ours(&meta.labels);
        // A parent may be a member of another set: that is not this one's to say.
        labels.remove(annotations::APPLY_SET_PART_OF);
        let mut notes = ours(&meta.annotations);
        let mut grow = |note: &str, more: Vec<String>| {
            let held = notes.get(note).map(String::as_str).unwrap_or_default();
            let mut all: BTreeSet<String> =
                held.split(',').filter(|held| !held.is_empty()).map(str::to_owned).collect();
            all.extend(more);
            if !all.is_empty() {
                notes.insert(note.to_owned(), all.into_iter().collect::<Vec<_>>().join(","));
            }
        };
        let by_resource =
            meta.annotations.as_ref().is_some_and(|notes| notes.contains_key(annotations::APPLY_SET_RESOURCES));
        if by_resource {
            grow(annotations::APPLY_SET_RESOURCES, kinds.iter().map(|kind| label(&kind.plural, &kind.group)).collect());
        } else {
            grow(annotations::APPLY_SET_KINDS, kinds.iter().map(|kind| label(&kind.kind, &kind.group)).collect());
        }
        let own = meta.namespace.as_deref().unwrap_or_default();
        let others = namespaces.iter().filter(|namespace| !namespace.is_empty() && **namespace != own);
        grow(annotations::APPLY_SET_NAMESPACES, others.map(|namespace| (*namespace).to_owned()).collect());
        json!({"labels": labels, "annotations": notes})
    }
}

/// What a release writes on itself as the tool of its ApplySet: the first kubectl that knew them. The next apply writes its own.
const TOOLING: &str = "kubectl/v1.27.0";

/// Whether the release is to be the parent of an ApplySet, and is not yet: kubectl makes no parents but ConfigMaps and
/// Secrets, and takes no object for one that does not say that it is.
pub(super) fn is_to_be_parent(release: &Release) -> bool {
    let meta = &release.metadata;
    release.spec.members == Members::default() && Parent::of(meta.labels.as_ref(), meta.annotations.as_ref()).is_none()
}

impl Parent {
    /// The metadata of an object of that kind as the parent of a set that has no members yet (KEP-3659).
    pub(super) fn founded(meta: &ObjectMeta, resource: &ApiResource) -> ObjectMeta {
        let mut meta = meta.clone();
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let (name, namespace) = (text(&meta.name), text(&meta.namespace));
        let identity = format!("{name}.{namespace}.{}.{}", resource.kind, resource.group);
        let digest = json(&k8s_openapi::ByteString(Sha256::digest(identity).to_vec()));
        // As in URLs (RFC 4648, section 5), without padding.
        let digest = digest.as_str().unwrap_or_default().replace('+', "-").replace('/', "_");
        let id = format!("applyset-{}-v1", digest.trim_end_matches('='));
        meta.labels.get_or_insert_default().insert(annotations::APPLY_SET_ID.to_owned(), id);
        let notes = meta.annotations.get_or_insert_default();
        for (note, value) in [(annotations::APPLY_SET_TOOLING, TOOLING), (annotations::APPLY_SET_KINDS, "")] {
            notes.entry(note.to_owned()).or_insert_with(|| value.to_owned());
        }
        meta
    }

    /// Reads a parent's metadata; `None` when it is none.
    pub(super) fn of(
        labels: Option<&BTreeMap<String, String>>,
        notes: Option<&BTreeMap<String, String>>,
    ) -> Option<Parent> {
        let id = labels?.get(annotations::APPLY_SET_ID).filter(|id| !id.is_empty())?.clone();
        let note = |name: &str| notes.and_then(|notes| notes.get(name));
        let lists = [annotations::APPLY_SET_KINDS, annotations::APPLY_SET_RESOURCES];
        let kinds = lists.iter().filter_map(|name| note(name)).flat_map(|list| list.split(','));
        let kinds = kinds.map(str::trim).filter(|kind| !kind.is_empty()).map(str::to_owned).collect();
        Some(Parent { id, kinds, cause: note(annotations::CHANGE_CAUSE).cloned() })
    }
}

/// What must be watched to know the members. `parent` is what the parent says, where the release has one.
pub(super) fn wants(release: &Release, parent: Option<&Parent>, known: &Known) -> Result<Vec<Want>, Unknown> {
    let namespace = release.metadata.namespace.clone().unwrap_or_default();
    let members = &release.spec.members;
    let find = |group: &str, kind: &str| {
        known.resources.iter().find(|resource| resource.api.group == group && resource.api.kind == kind)
    };
    let mut wants = Vec::new();
    if let Some(selector) = &members.selector {
        let labels = selector::query(selector);
        let usual = USUAL.map(|(group, kind)| GroupKind { group: group.into(), kind: kind.into() });
        let named = !members.kinds.is_empty();
        for kind in if named { &members.kinds[..] } else { &usual[..] } {
            match find(&kind.group, &kind.kind).filter(|resource| resource.namespaced) {
                Some(resource) => wants.push(Want {
                    resource: resource.api.clone(),
                    namespace: namespace.clone(),
                    labels: but_kept_content(&resource.api, &labels),
                }),
                None if named => return Err(Unknown::NoKind(label(&kind.kind, &kind.group))),
                None => {}
            }
        }
    } else if !members.objects.is_empty() {
        for member in &members.objects {
            let group = member.api_version.rsplit_once('/').map_or("", |(group, _)| group);
            // Objects of no namespace, and of others, belong to those who may write there: an ApplySet labels its members.
            let Some(resource) = find(group, &member.kind).filter(|resource| resource.namespaced) else {
                return Err(Unknown::NoKind(format!("namespaced {}", label(&member.kind, group))));
            };
            let labels = but_kept_content(&resource.api, "");
            let want = Want { resource: resource.api.clone(), namespace: namespace.clone(), labels };
            if !wants.contains(&want) {
                wants.push(want);
            }
        }
    } else {
        let Some(parent) = parent else {
            let name = match &members.apply_set {
                Some(parent) => format!("{}/{}", parent.kind.to_ascii_lowercase(), parent.name),
                None => format!("release/{}", release.metadata.name.as_deref().unwrap_or_default()),
            };
            return Err(Unknown::NoParent(name));
        };
        for kind in &parent.kinds {
            let (name, group) = kind.split_once('.').unwrap_or((kind, ""));
            let found = known.resources.iter().find(|resource| {
                resource.api.group == group && (resource.api.kind == name || resource.api.plural == name)
            });
            // A kind whose definition is gone has no objects left.
            let Some(resource) = found else { continue };
            wants.push(Want {
                resource: resource.api.clone(),
                namespace: String::new(),
                labels: annotations::APPLY_SET_PART_OF.to_owned(),
            });
        }
    }
    // Whether a Service leads anywhere, its endpoints tell: they carry its labels, and are no members.
    let services: Vec<Want> = wants.iter().filter(|want| want.resource.plural == "services").cloned().collect();
    for service in services {
        let group =
            if service.resource.group.is_empty() { "discovery.k8s.io" } else { service.resource.group.as_str() };
        if let Some(slices) = find(group, "EndpointSlice") {
            wants.push(Want { resource: slices.api.clone(), ..service });
        }
    }
    Ok(wants)
}

/// Whether a want shows what a Service leads to.
pub(super) fn shows_endpoints(want: &Want) -> bool {
    want.resource.kind == "EndpointSlice"
}

/// The label selector without the Secrets that keep what releases held: they are large, and no members.
fn but_kept_content(resource: &ApiResource, labels: &str) -> String {
    match (resource.group.as_str(), resource.kind.as_str(), labels) {
        ("", "Secret", "") => format!("!{}", annotations::RELEASE),
        ("", "Secret", labels) => format!("{labels},!{}", annotations::RELEASE),
        (_, _, labels) => labels.to_owned(),
    }
}

fn label(kind: &str, group: &str) -> String {
    if group.is_empty() { kind.to_owned() } else { format!("{kind}.{group}") }
}

/// Whether an object that a want of the release shows is a member.
pub(super) fn is_member(
    release: &Release,
    parent: Option<&Parent>,
    resource: &ApiResource,
    object: &DynamicObject,
) -> bool {
    let labels = object.metadata.labels.as_ref();
    let members = &release.spec.members;
    let name = object.metadata.name.as_deref().unwrap_or_default();
    let own_secret = || labels.is_some_and(|labels| labels.contains_key(annotations::RELEASE));
    if !members.objects.is_empty() {
        return members.objects.iter().any(|member| {
            let group = member.api_version.rsplit_once('/').map_or("", |(group, _)| group);
            member.name == name && member.kind == resource.kind && group == resource.group
        });
    }
    // What a workload makes carries its labels, and is the workload's.
    if owners::controller_of(&object.metadata).is_some() || own_secret() {
        return false;
    }
    match (&members.selector, parent) {
        (Some(_), _) => true,
        (None, Some(parent)) => {
            labels.and_then(|labels| labels.get(annotations::APPLY_SET_PART_OF)) == Some(&parent.id)
        }
        (None, None) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::Resource;
    use std::sync::Arc;

    fn known() -> Known {
        let resource = |group: &str, kind: &str, plural: &str, namespaced: bool| {
            let api_version = if group.is_empty() { "v1".to_owned() } else { format!("{group}/v1") };
            let api = ApiResource {
                group: group.into(),
                version: "v1".into(),
                api_version,
                kind: kind.into(),
                plural: plural.into(),
            };
            Arc::new(Resource { api, namespaced, verbs: Vec::new() })
        };
        Known {
            resources: vec![
                resource("", "ConfigMap", "configmaps", true),
                resource("", "Namespace", "namespaces", false),
                resource("apps", "Deployment", "deployments", true),
            ],
            failures: Vec::new(),
        }
    }

    fn release(members: Value) -> Release {
        serde_json::from_value(json!({"metadata": {"name": "shop", "namespace": "ns"}, "spec": {"members": members}}))
            .expect("a release")
    }

    fn object(value: Value) -> DynamicObject {
        serde_json::from_value(value).expect("an object")
    }

    fn plurals(wants: &[Want]) -> Vec<String> {
        wants.iter().map(|want| format!("{}/{}?{}", want.namespace, want.resource.plural, want.labels)).collect()
    }

    #[test]
    fn a_release_without_members_becomes_the_parent_of_an_apply_set_kubectl_takes_it_for() {
        let empty = release(json!({}));
        assert!(is_to_be_parent(&empty));
        assert!(!is_to_be_parent(&release(json!({"applySet": {"kind": "ConfigMap", "name": "p"}}))));
        let founded = Parent::founded(&empty.metadata, &proa_crds::release::release_resource());
        // printf %s shop.ns.Release.proa.dev | sha256sum | xxd -r -p | basenc --base64url
        let labels = founded.labels.clone().expect("labels");
        assert_eq!(labels[annotations::APPLY_SET_ID], "applyset-cOywuZP8G05b68oaTkpnNUoSHBtm1BWhVAPS125yyL4-v1");
        let parent = Parent::of(founded.labels.as_ref(), founded.annotations.as_ref()).expect("a parent");
        assert!(parent.kinds.is_empty());
        let mut now = empty;
        now.metadata = founded;
        assert!(!is_to_be_parent(&now));
        let grown = Parent::grown(&now.metadata, &[], &[]);
        let notes = json!({annotations::APPLY_SET_TOOLING: TOOLING, annotations::APPLY_SET_KINDS: ""});
        assert_eq!((&grown["annotations"], &grown["labels"]), (&notes, &json!(labels)));
    }

    #[test]
    fn what_releases_keep_is_not_watched() {
        let secrets = super::super::core_resource("Secret", "secrets");
        assert_eq!(but_kept_content(&secrets, ""), "!proa.dev/release");
        assert_eq!(but_kept_content(&secrets, "a=b"), "a=b,!proa.dev/release");
        assert_eq!(but_kept_content(&super::super::core_resource("ConfigMap", "configmaps"), "a=b"), "a=b");
        let mut known = known();
        known.resources.push(Arc::new(Resource { api: secrets, namespaced: true, verbs: Vec::new() }));
        let listed = json!({"objects": [{"apiVersion": "v1", "kind": "Secret", "name": "key"}]});
        let wants = wants(&release(listed), None, &known).expect("it is known");
        assert_eq!(plurals(&wants), ["ns/secrets?!proa.dev/release"]);
    }

    #[test]
    fn an_apply_set_is_watched_by_its_label_wherever_its_members_are() {
        let labels = BTreeMap::from([(annotations::APPLY_SET_ID.to_owned(), "applyset-x-v1".to_owned())]);
        let notes = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
        let parent = Parent::of(
            Some(&labels),
            Some(&notes(annotations::APPLY_SET_KINDS, "ConfigMap,Deployment.apps,Gone.example.com")),
        );
        let parent = parent.expect("a parent");
        let found = wants(&release(json!({})), Some(&parent), &known()).expect("known");
        let expected = ["/configmaps?applyset.kubernetes.io/part-of", "/deployments?applyset.kubernetes.io/part-of"];
        assert_eq!(plurals(&found), expected);
        let old =
            Parent::of(Some(&labels), Some(&notes(annotations::APPLY_SET_RESOURCES, "configmaps,deployments.apps")))
                .expect("a parent");
        assert_eq!(plurals(&wants(&release(json!({})), Some(&old), &known()).expect("known")), expected);
        assert_eq!(Parent::of(None, None), None);

        let resource = &known().resources[0].api;
        let of = |id: &str| object(json!({"metadata": {"name": "c", "labels": {annotations::APPLY_SET_PART_OF: id}}}));
        assert!(is_member(&release(json!({})), Some(&parent), resource, &of("applyset-x-v1")));
        assert!(!is_member(&release(json!({})), Some(&parent), resource, &of("applyset-y-v1")));
        let why = wants(&release(json!({"applySet": {"kind": "ConfigMap", "name": "p"}})), None, &known())
            .expect_err("no parent");
        assert_eq!(why.to_string(), "configmap/p is not the parent of an ApplySet");
    }

    #[test]
    fn a_set_that_grows_keeps_what_its_tool_wrote() {
        let meta: ObjectMeta = serde_json::from_value(json!({
            "name": "shop", "namespace": "ns",
            "labels": {annotations::APPLY_SET_ID: "x", "other": "1"},
            "annotations": {annotations::APPLY_SET_KINDS: "ConfigMap", "applyset.kubernetes.io/tooling": "kubectl/v1.33", "note": "n"},
        }))
        .expect("metadata");
        let known = known();
        let grown = Parent::grown(&meta, &[&known.resources[2].api], &["ns", "elsewhere", ""]);
        assert_eq!(
            grown,
            json!({"labels": {annotations::APPLY_SET_ID: "x"}, "annotations": {
                annotations::APPLY_SET_NAMESPACES: "elsewhere",
                annotations::APPLY_SET_KINDS: "ConfigMap,Deployment.apps",
                "applyset.kubernetes.io/tooling": "kubectl/v1.33",
            }})
        );
    }

    #[test]
    fn selected_objects_are_of_the_releases_namespace_and_nobodys_children() {
        let selecting = release(json!({"selector": {"matchLabels": {"app": "web"}}}));
        let found = wants(&selecting, None, &known()).expect("known");
        assert_eq!(plurals(&found), ["ns/configmaps?app=web", "ns/deployments?app=web"]);
        let resource = &known().resources[0].api;
        assert!(is_member(&selecting, None, resource, &object(json!({"metadata": {"name": "c"}}))));
        let child = json!({"metadata": {"name": "c", "ownerReferences": [{"apiVersion": "v1", "kind": "X", "name": "x", "uid": "u", "controller": true}]}});
        assert!(!is_member(&selecting, None, resource, &object(child)));
        assert!(!is_member(
            &selecting,
            None,
            resource,
            &object(json!({"metadata": {"name": "c", "labels": {annotations::RELEASE: "u"}}}))
        ));
        let unknown = release(json!({"selector": {}, "kinds": [{"group": "x.dev", "kind": "Y"}]}));
        assert_eq!(wants(&unknown, None, &known()), Err(Unknown::NoKind("Y.x.dev".into())));
    }

    #[test]
    fn listed_objects_must_live_in_the_releases_namespace() {
        let listing = release(json!({"objects": [
            {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}, {"apiVersion": "apps/v1", "kind": "Deployment", "name": "db"},
        ]}));
        assert_eq!(plurals(&wants(&listing, None, &known()).expect("known")), ["ns/deployments?"]);
        let resource = &known().resources[2].api;
        assert!(is_member(&listing, None, resource, &object(json!({"metadata": {"name": "web"}}))));
        assert!(!is_member(&listing, None, resource, &object(json!({"metadata": {"name": "other"}}))));
        let cluster = release(json!({"objects": [{"apiVersion": "v1", "kind": "Namespace", "name": "x"}]}));
        assert_eq!(wants(&cluster, None, &known()), Err(Unknown::NoKind("namespaced Namespace".into())));
    }
}
