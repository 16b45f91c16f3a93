//! The definitions that are written down say what k8s-openapi's types say.
//!
//! After a change of k8s-openapi: `PROA_UPDATE=1 cargo test -p proa-apimachinery --test definitions`.

use std::{
    fmt::Write as _,
    io::{Read, Write as _},
    path::Path,
};

use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use proa_apimachinery::schema;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value};

/// A kind as its type tells it: definition, group, version, kind.
type Told = (String, &'static str, &'static str, &'static str);

fn tell<K: k8s_openapi::Resource + JsonSchema>(generator: &mut SchemaGenerator) -> Told {
    generator.subschema_for::<K>();
    (K::schema_name().into_owned(), K::GROUP, K::VERSION, K::KIND)
}

/// Every kind of the server, in the order of its table, and all definitions by name.
fn from_types() -> (Vec<Told>, Map<String, Value>) {
    let mut generator = SchemaGenerator::default();
    let mut told = Vec::new();
    macro_rules! kinds {
        ($($($segment:ident)::+ [$($kind:ident)*];)*) => { $({
            use k8s_openapi::$($segment)::+ as module;
            $(told.push(tell::<module::$kind>(&mut generator));)*
        })* };
    }
    kinds! {
        api::core::v1 [ComponentStatus ConfigMap Endpoints Event LimitRange Namespace Node PersistentVolume
            PersistentVolumeClaim Pod PodTemplate ReplicationController ResourceQuota Secret Service ServiceAccount Binding];
        api::apps::v1 [ControllerRevision DaemonSet Deployment ReplicaSet StatefulSet];
        api::batch::v1 [CronJob Job];
        api::autoscaling::v1 [HorizontalPodAutoscaler Scale];
        api::autoscaling::v2 [HorizontalPodAutoscaler];
        api::policy::v1 [PodDisruptionBudget Eviction];
        api::networking::v1 [IPAddress Ingress IngressClass NetworkPolicy ServiceCIDR];
        api::discovery::v1 [EndpointSlice];
        api::events::v1 [Event];
        api::coordination::v1 [Lease];
        api::node::v1 [RuntimeClass];
        api::rbac::v1 [ClusterRole ClusterRoleBinding Role RoleBinding];
        api::scheduling::v1 [PriorityClass];
        api::storage::v1 [CSIDriver CSINode CSIStorageCapacity StorageClass VolumeAttachment VolumeAttributesClass];
        api::resource::v1 [DeviceClass ResourceClaim ResourceClaimTemplate ResourceSlice];
        api::flowcontrol::v1 [FlowSchema PriorityLevelConfiguration];
        api::certificates::v1 [CertificateSigningRequest];
        api::authentication::v1 [SelfSubjectReview TokenRequest TokenReview];
        api::authorization::v1 [LocalSubjectAccessReview SelfSubjectAccessReview SelfSubjectRulesReview SubjectAccessReview];
        api::admissionregistration::v1 [MutatingAdmissionPolicy MutatingAdmissionPolicyBinding MutatingWebhookConfiguration
            ValidatingAdmissionPolicy ValidatingAdmissionPolicyBinding ValidatingWebhookConfiguration];
        apiextensions_apiserver::pkg::apis::apiextensions::v1 [CustomResourceDefinition];
        kube_aggregator::pkg::apis::apiregistration::v1 [APIService];
        apimachinery::pkg::apis::meta::v1 [APIGroup APIGroupList APIResourceList APIVersions Status];
    }
    // What belongs to no kind.
    use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
    generator.subschema_for::<meta::ListMeta>();
    generator.subschema_for::<meta::DeleteOptions>();
    generator.subschema_for::<meta::ObjectMeta>();
    let mut definitions = generator.take_definitions(false);
    definitions.sort_keys();
    (told, definitions)
}

/// Takes the prose out of a definition: by field, and under "" its own.
fn take_prose(definition: &mut Value) -> Map<String, Value> {
    let mut prose = Map::new();
    let mut take = |field: &str, of: &mut Value| {
        if let Some(description) = of.as_object_mut().and_then(|map| map.shift_remove("description")) {
            prose.insert(field.to_owned(), description);
        }
    };
    take("", definition);
    for (field, property) in definition.get_mut("properties").and_then(Value::as_object_mut).into_iter().flatten() {
        take(field, property);
    }
    prose
}

/// The files, by name, as text.
fn wanted(definitions: &Map<String, Value>) -> [(&'static str, String); 2] {
    let (mut bare, mut prose) = (String::new(), String::new());
    for (name, definition) in definitions {
        let mut definition = definition.clone();
        let taken = Value::Object(take_prose(&mut definition));
        writeln!(bare, "{name}\t{definition}").expect("text");
        writeln!(prose, "{name}\t{taken}").expect("text");
    }
    [("definitions.tsv.gz", bare), ("descriptions.tsv.gz", prose)]
}

#[test]
fn what_is_written_down_is_what_the_types_say() {
    let (_, definitions) = from_types();
    assert!(definitions.len() > 500, "{}", definitions.len());
    for (name, text) in wanted(&definitions) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/schema").join(name);
        if std::env::var_os("PROA_UPDATE").is_some() {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
            encoder.write_all(text.as_bytes()).expect("in memory");
            std::fs::write(&path, encoder.finish().expect("in memory")).expect("written");
        }
        let mut held = String::new();
        let file = std::fs::File::open(&path).expect("the file is there");
        GzDecoder::new(file).read_to_string(&mut held).expect("gzip");
        assert!(
            held == text,
            "{} is not what the types say: run `PROA_UPDATE=1 cargo test -p proa-apimachinery --test definitions`",
            path.display()
        );
    }
}

#[test]
fn the_table_of_kinds_is_that_of_the_types() {
    let (told, _) = from_types();
    let table: Vec<_> =
        schema::builtin_kinds().iter().map(|k| (k.definition.clone(), k.group, k.version, k.kind)).collect();
    assert_eq!(table, told);
}
