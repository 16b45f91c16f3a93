//! Owns the definitions of the built-in kinds: which root types there are, and turning what k8s-openapi
//! says about them into [`Schema`], once, when first asked for.

use std::{
    collections::HashMap,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::{Schema, convert, facts};

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
    generate: fn(&mut SchemaGenerator),
}

impl BuiltinKind {
    fn of<T: k8s_openapi::Resource + JsonSchema>(listable: bool) -> BuiltinKind {
        BuiltinKind {
            definition: T::schema_name().into_owned(),
            group: T::GROUP,
            version: T::VERSION,
            kind: T::KIND,
            listable,
            generate: |generator| {
                generator.subschema_for::<T>();
            },
        }
    }
}

/// Every kind of the table, in the order of their groups.
pub fn builtin_kinds() -> &'static [BuiltinKind] {
    static KINDS: OnceLock<Vec<BuiltinKind>> = OnceLock::new();
    KINDS.get_or_init(|| {
        let mut kinds = Vec::with_capacity(80);
        macro_rules! kinds {
            ($($($segment:ident)::+ [$($listed:ident)*] [$($posted:ident)*];)*) => { $({
                #[allow(unused_imports)]
                use k8s_openapi::$($segment)::+ as module;
                $(kinds.push(BuiltinKind::of::<module::$listed>(true));)*
                $(kinds.push(BuiltinKind::of::<module::$posted>(false));)*
            })* };
        }
        kinds! {
            api::core::v1 [ComponentStatus ConfigMap Endpoints Event LimitRange Namespace Node PersistentVolume
                PersistentVolumeClaim Pod PodTemplate ReplicationController ResourceQuota Secret Service ServiceAccount] [Binding];
            api::apps::v1 [ControllerRevision DaemonSet Deployment ReplicaSet StatefulSet] [];
            api::batch::v1 [CronJob Job] [];
            api::autoscaling::v1 [HorizontalPodAutoscaler] [Scale];
            api::autoscaling::v2 [HorizontalPodAutoscaler] [];
            api::policy::v1 [PodDisruptionBudget] [Eviction];
            api::networking::v1 [IPAddress Ingress IngressClass NetworkPolicy ServiceCIDR] [];
            api::discovery::v1 [EndpointSlice] [];
            api::events::v1 [Event] [];
            api::coordination::v1 [Lease] [];
            api::node::v1 [RuntimeClass] [];
            api::rbac::v1 [ClusterRole ClusterRoleBinding Role RoleBinding] [];
            api::scheduling::v1 [PriorityClass] [];
            api::storage::v1 [CSIDriver CSINode CSIStorageCapacity StorageClass VolumeAttachment VolumeAttributesClass] [];
            api::resource::v1 [DeviceClass ResourceClaim ResourceClaimTemplate ResourceSlice] [];
            api::flowcontrol::v1 [FlowSchema PriorityLevelConfiguration] [];
            api::certificates::v1 [CertificateSigningRequest] [];
            api::authentication::v1 [] [SelfSubjectReview TokenRequest TokenReview];
            api::authorization::v1 [] [LocalSubjectAccessReview SelfSubjectAccessReview SelfSubjectRulesReview SubjectAccessReview];
            api::admissionregistration::v1 [MutatingAdmissionPolicy MutatingAdmissionPolicyBinding MutatingWebhookConfiguration
                ValidatingAdmissionPolicy ValidatingAdmissionPolicyBinding ValidatingWebhookConfiguration] [];
            apiextensions_apiserver::pkg::apis::apiextensions::v1 [CustomResourceDefinition] [];
            kube_aggregator::pkg::apis::apiregistration::v1 [APIService] [];
            apimachinery::pkg::apis::meta::v1 [] [APIGroup APIGroupList APIResourceList APIVersions Status];
        }
        kinds
    })
}

/// Definitions that belong to no kind.
fn generate_loose(generator: &mut SchemaGenerator) {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
    generator.subschema_for::<meta::ListMeta>();
    generator.subschema_for::<meta::DeleteOptions>();
    generator.subschema_for::<meta::ObjectMeta>();
}

fn known() -> &'static parking::Lock<HashMap<Box<str>, &'static Schema>> {
    static KNOWN: OnceLock<parking::Lock<HashMap<Box<str>, &'static Schema>>> = OnceLock::new();
    KNOWN.get_or_init(parking::Lock::default)
}

/// A lock whose poisoning does not matter: what it guards is only ever added to.
mod parking {
    use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

    #[derive(Default)]
    pub(super) struct Lock<T>(RwLock<T>);

    impl<T> Lock<T> {
        pub(super) fn read(&self) -> RwLockReadGuard<'_, T> {
            self.0.read().unwrap_or_else(PoisonError::into_inner)
        }

        pub(super) fn write(&self) -> RwLockWriteGuard<'_, T> {
            self.0.write().unwrap_or_else(PoisonError::into_inner)
        }
    }
}

/// The schema of a built-in definition (`io.k8s.api.core.v1.Pod`, `…PodSpec`, `…PodList`), made when first
/// asked for and kept for the life of the process. `None` when there is no such definition.
pub fn definition(name: &str) -> Option<&'static Schema> {
    static EVERYTHING_LOADED: AtomicBool = AtomicBool::new(false);
    if let Some(schema) = known().read().get(name) {
        return Some(schema);
    }
    if EVERYTHING_LOADED.load(Ordering::Acquire) {
        return None;
    }
    if let Some(kind) = builtin_kinds().iter().find(|kind| kind.definition == name) {
        load(|generator| (kind.generate)(generator));
    } else if let Some(kind) = list_of(name) {
        return Some(keep(name, list_schema(kind)));
    } else {
        // A part of some kind: those of its own package are the likeliest to hold it.
        let package = name.rsplit_once('.').map_or(name, |(package, _)| package);
        let near = |kind: &&BuiltinKind| kind.definition.rsplit_once('.').is_some_and(|(p, _)| p == package);
        load(generate_loose);
        if !known().read().contains_key(name) {
            load(|generator| builtin_kinds().iter().filter(near).for_each(|kind| (kind.generate)(generator)));
        }
        if !known().read().contains_key(name) {
            load(|generator| builtin_kinds().iter().for_each(|kind| (kind.generate)(generator)));
            EVERYTHING_LOADED.store(true, Ordering::Release);
        }
    }
    known().read().get(name).copied()
}

/// The definition name of a kind's list.
pub fn list_definition(kind: &BuiltinKind) -> String {
    format!("{}List", kind.definition)
}

fn list_of(name: &str) -> Option<&'static BuiltinKind> {
    let item = name.strip_suffix("List")?;
    builtin_kinds().iter().find(|kind| kind.listable && kind.definition == item)
}

fn load(generate: impl FnOnce(&mut SchemaGenerator)) {
    for (name, value) in raw_definitions(generate) {
        if !known().read().contains_key(&*name) {
            let mut schema = convert::builtin(&name, &value);
            facts::overlay(&name, &mut schema);
            keep(&name, schema);
        }
    }
}

fn keep(name: &str, schema: Schema) -> &'static Schema {
    // Leaked on purpose: definitions live as long as the process, and there are only so many.
    known().write().entry(name.into()).or_insert_with(|| Box::leak(Box::new(schema)))
}

fn raw_definitions(generate: impl FnOnce(&mut SchemaGenerator)) -> Map<String, Value> {
    let mut generator = SchemaGenerator::default();
    generate(&mut generator);
    generator.take_definitions(false)
}

fn list_schema(kind: &BuiltinKind) -> Schema {
    let name = list_definition(kind);
    convert::builtin(&name, &raw_list(kind))
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

/// The JSON Schemas, as k8s-openapi words them, of the kinds, lists and loose definitions named, and of
/// every definition they may lead to.
pub(super) fn raw(names: &[&str]) -> Map<String, Value> {
    let mut definitions = raw_definitions(|generator| {
        generate_loose(generator);
        for name in names {
            let root = builtin_kinds().iter().find(|k| k.definition == *name).or_else(|| list_of(name));
            match root {
                Some(kind) => (kind.generate)(generator),
                None if !generator.definitions().contains_key(*name) => {
                    builtin_kinds().iter().for_each(|kind| (kind.generate)(generator));
                }
                None => {}
            }
        }
    });
    for name in names {
        if let Some(kind) = list_of(name) {
            definitions.insert((*name).to_owned(), raw_list(kind));
        }
    }
    definitions
}

/// The group, version and kind of a kind's or list's definition.
pub(super) fn group_version_kind(name: &str) -> Option<(&'static str, &'static str, String)> {
    if let Some(kind) = builtin_kinds().iter().find(|kind| kind.definition == name) {
        return Some((kind.group, kind.version, kind.kind.to_owned()));
    }
    list_of(name).map(|kind| (kind.group, kind.version, format!("{}List", kind.kind)))
}
