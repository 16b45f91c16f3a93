//! Owns the list of the built-in kinds and their definitions as [`Schema`], each made once, when first asked for.

use std::{
    collections::HashMap,
    sync::{OnceLock, PoisonError, RwLock},
};

use serde_json::{Value, json};

use super::{Schema, convert, definitions, facts};

/// One kind of Kubernetes 1.36 that is generally available.
#[derive(Clone, Debug)]
pub struct BuiltinKind {
    /// Name of its definition: `io.k8s.api.apps.v1.Deployment`.
    pub definition: String,
    /// API group, "" for core.
    pub group: &'static str,
    /// Version in the group.
    pub version: &'static str,
    /// Kind.
    pub kind: &'static str,
    /// Whether it is stored and listed; reviews, bindings and the like are only posted.
    pub listable: bool,
}

/// The kinds of one group and version.
struct Package {
    /// What the names of its definitions begin with.
    path: &'static str,
    group: &'static str,
    version: &'static str,
    /// Stored and listed.
    listed: &'static str,
    /// Only posted.
    posted: &'static str,
}

const fn package(
    path: &'static str,
    group: &'static str,
    version: &'static str,
    listed: &'static str,
    posted: &'static str,
) -> Package {
    Package { path, group, version, listed, posted }
}

/// `tests/definitions.rs` holds this against k8s-openapi.
#[rustfmt::skip]
const PACKAGES: &[Package] = &[
    package("io.k8s.api.core.v1", "", "v1", "ComponentStatus ConfigMap Endpoints Event LimitRange Namespace Node \
        PersistentVolume PersistentVolumeClaim Pod PodTemplate ReplicationController ResourceQuota Secret Service \
        ServiceAccount", "Binding"),
    package("io.k8s.api.apps.v1", "apps", "v1", "ControllerRevision DaemonSet Deployment ReplicaSet StatefulSet", ""),
    package("io.k8s.api.batch.v1", "batch", "v1", "CronJob Job", ""),
    package("io.k8s.api.autoscaling.v1", "autoscaling", "v1", "HorizontalPodAutoscaler", "Scale"),
    package("io.k8s.api.autoscaling.v2", "autoscaling", "v2", "HorizontalPodAutoscaler", ""),
    package("io.k8s.api.policy.v1", "policy", "v1", "PodDisruptionBudget", "Eviction"),
    package("io.k8s.api.networking.v1", "networking.k8s.io", "v1", "IPAddress Ingress IngressClass NetworkPolicy \
        ServiceCIDR", ""),
    package("io.k8s.api.discovery.v1", "discovery.k8s.io", "v1", "EndpointSlice", ""),
    package("io.k8s.api.events.v1", "events.k8s.io", "v1", "Event", ""),
    package("io.k8s.api.coordination.v1", "coordination.k8s.io", "v1", "Lease", ""),
    package("io.k8s.api.node.v1", "node.k8s.io", "v1", "RuntimeClass", ""),
    package("io.k8s.api.rbac.v1", "rbac.authorization.k8s.io", "v1", "ClusterRole ClusterRoleBinding Role RoleBinding", ""),
    package("io.k8s.api.scheduling.v1", "scheduling.k8s.io", "v1", "PriorityClass", ""),
    package("io.k8s.api.storage.v1", "storage.k8s.io", "v1", "CSIDriver CSINode CSIStorageCapacity StorageClass \
        VolumeAttachment VolumeAttributesClass", ""),
    package("io.k8s.api.resource.v1", "resource.k8s.io", "v1", "DeviceClass ResourceClaim ResourceClaimTemplate \
        ResourceSlice", ""),
    package("io.k8s.api.flowcontrol.v1", "flowcontrol.apiserver.k8s.io", "v1", "FlowSchema PriorityLevelConfiguration", ""),
    package("io.k8s.api.certificates.v1", "certificates.k8s.io", "v1", "CertificateSigningRequest", ""),
    package("io.k8s.api.authentication.v1", "authentication.k8s.io", "v1", "", "SelfSubjectReview TokenRequest TokenReview"),
    package("io.k8s.api.authorization.v1", "authorization.k8s.io", "v1", "", "LocalSubjectAccessReview \
        SelfSubjectAccessReview SelfSubjectRulesReview SubjectAccessReview"),
    package("io.k8s.api.admissionregistration.v1", "admissionregistration.k8s.io", "v1", "MutatingAdmissionPolicy \
        MutatingAdmissionPolicyBinding MutatingWebhookConfiguration ValidatingAdmissionPolicy \
        ValidatingAdmissionPolicyBinding ValidatingWebhookConfiguration", ""),
    package("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1", "apiextensions.k8s.io", "v1",
        "CustomResourceDefinition", ""),
    package("io.k8s.kube-aggregator.pkg.apis.apiregistration.v1", "apiregistration.k8s.io", "v1", "APIService", ""),
    package("io.k8s.apimachinery.pkg.apis.meta.v1", "", "v1", "", "APIGroup APIGroupList APIResourceList APIVersions Status"),
];

impl Package {
    fn kinds(&self) -> impl Iterator<Item = BuiltinKind> {
        let listed = self.listed.split_whitespace().map(|kind| (kind, true));
        let posted = self.posted.split_whitespace().map(|kind| (kind, false));
        listed.chain(posted).map(|(kind, listable)| BuiltinKind {
            definition: format!("{}.{kind}", self.path),
            group: self.group,
            version: self.version,
            kind,
            listable,
        })
    }
}

/// Every kind of the table, in the order of their groups.
pub fn builtin_kinds() -> &'static [BuiltinKind] {
    static KINDS: OnceLock<Vec<BuiltinKind>> = OnceLock::new();
    KINDS.get_or_init(|| PACKAGES.iter().flat_map(Package::kinds).collect())
}

type Known = RwLock<HashMap<Box<str>, &'static Schema>>;

/// What was made so far. That the lock may be poisoned does not matter: what it guards is only ever added to.
fn known() -> &'static Known {
    static KNOWN: OnceLock<Known> = OnceLock::new();
    KNOWN.get_or_init(Known::default)
}

/// The schema of a built-in definition (`io.k8s.api.core.v1.Pod`, `…PodSpec`, `…PodList`), made when first
/// asked for and kept for the life of the process. `None` when there is no such definition.
pub fn definition(name: &str) -> Option<&'static Schema> {
    if let Some(schema) = known().read().unwrap_or_else(PoisonError::into_inner).get(name) {
        return Some(schema);
    }
    let schema = match list_of(name) {
        Some(kind) => convert::builtin(name, &raw_list(kind)),
        None => {
            let mut schema = convert::builtin(name, &definitions::bare(name)?);
            facts::overlay(name, &mut schema);
            schema
        }
    };
    let mut known = known().write().unwrap_or_else(PoisonError::into_inner);
    // Leaked on purpose: definitions live as long as the process, and there are only so many.
    Some(known.entry(name.into()).or_insert_with(|| Box::leak(Box::new(schema))))
}

/// The definition name of a kind's list.
pub fn list_definition(kind: &BuiltinKind) -> String {
    format!("{}List", kind.definition)
}

fn list_of(name: &str) -> Option<&'static BuiltinKind> {
    let item = name.strip_suffix("List")?;
    builtin_kinds().iter().find(|kind| kind.listable && kind.definition == item)
}

/// k8s-openapi's lists are one generic type without a schema: this is what all of them look like.
fn raw_list(kind: &BuiltinKind) -> Value {
    json!({
        "description": format!("{0}List is a list of {0} objects.", kind.kind),
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": {"type": "string", "description": "APIVersion defines the versioned schema of this representation of an object."},
            "items": {"type": "array", "description": "List of objects.", "items": {"$ref": format!("#/$defs/{}", kind.definition)}},
            "kind": {"type": "string", "description": "Kind is a string value representing the REST resource this object represents."},
            "metadata": {"$ref": "#/$defs/io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta", "description": "Standard list metadata."},
        },
    })
}

/// The JSON Schema, as k8s-openapi words it, of a kind, of a list or of a part of one.
pub(super) fn raw(name: &str, descriptions: &definitions::Descriptions) -> Option<Value> {
    match list_of(name) {
        Some(kind) => Some(raw_list(kind)),
        None => descriptions.described(name),
    }
}

/// The group, version and kind of a kind's or list's definition.
pub(super) fn group_version_kind(name: &str) -> Option<(&'static str, &'static str, String)> {
    if let Some(kind) = builtin_kinds().iter().find(|kind| kind.definition == name) {
        return Some((kind.group, kind.version, kind.kind.to_owned()));
    }
    list_of(name).map(|kind| (kind.group, kind.version, format!("{}List", kind.kind)))
}
