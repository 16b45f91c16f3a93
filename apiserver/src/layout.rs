//! Where Kubernetes keeps its objects in etcd, and in what form: so that an etcd of a `kube-apiserver` can be pointed at.
//!
//! Owns the table of places. Within this server a key is `/registry/<resource>[.<group>]/[<namespace>/]<name>`; in etcd a
//! built-in resource lies under its plural alone, some under an older name
//! (`pkg/kubeapiserver/default_storage_factory_builder.go`), a custom one under `<group>/<resource>`.
//!
//! Written is JSON, which every `kube-apiserver` reads; read is that and Kubernetes' protobuf.

use std::collections::HashMap;

use bytes::Bytes;
use proa_apimachinery::object::Object;
use proa_apimachinery::protobuf;
use proa_store::{Form, Key, Value as Stored};

use crate::cache::ROOT;
use crate::encryption::ENVELOPE;
use crate::kinds::{self, Kind};
use crate::registry::codec;
use crate::resources::storage_name;

/// The built-in resources that do not lie under their plural.
const ELSEWHERE: [(&str, &str); 7] = [
    ("replicationcontrollers", "controllers"),
    ("endpoints", "services/endpoints"),
    ("nodes", "minions"),
    ("services", "services/specs"),
    ("ingresses.networking.k8s.io", "ingress"),
    // Served by API servers of their own inside kube-apiserver, which keep theirs as custom resources are kept.
    ("customresourcedefinitions.apiextensions.k8s.io", "apiextensions.k8s.io/customresourcedefinitions"),
    ("apiservices.apiregistration.k8s.io", "apiregistration.k8s.io/apiservices"),
];

/// Kubernetes' places and forms, below one prefix.
pub struct KubernetesLayout {
    /// With a slash at its end.
    root: String,
    /// Of built-in resources: our name, and where they lie.
    places: HashMap<String, String>,
    /// The other way round.
    resources: HashMap<String, String>,
    kinds: Vec<Kind>,
}

impl KubernetesLayout {
    /// The layout below `prefix` (`/registry`, unless a `kube-apiserver` was told otherwise by `--etcd-prefix`).
    pub fn new(prefix: &str) -> KubernetesLayout {
        let kinds = kinds::builtin();
        let place = |name: &str| match ELSEWHERE.iter().find(|(known, _)| *known == name) {
            Some((_, place)) => (*place).to_owned(),
            None => name.split('.').next().unwrap_or_default().to_owned(),
        };
        let places: HashMap<String, String> =
            kinds.iter().map(storage_name).map(|name| (name.clone(), place(&name))).collect();
        let resources = places.iter().map(|(name, place)| (place.clone(), name.clone())).collect();
        KubernetesLayout { root: format!("/{}/", prefix.trim_matches('/')), places, resources, kinds }
    }

    /// A plain value, whoever wrote it, as we store it: ours as it is, others' decoded and written anew.
    ///
    /// # Errors
    /// Says what is wrong with bytes that are no object we can keep.
    pub fn adopt(&self, plain: &Bytes) -> Result<Stored, String> {
        if let Some(value) = codec::reopened(plain) {
            return Ok(value);
        }
        let value = if plain.starts_with(protobuf::MAGIC) {
            protobuf::decode(plain).map_err(|error| error.to_string())?
        } else {
            serde_json::from_slice(plain)
                .map_err(|error| format!("it is neither JSON nor Kubernetes' protobuf: {error}"))?
        };
        let object = Object::from_value(value).map_err(|_| "it is no object".to_owned())?;
        Ok(codec::encode(&self.adopted(object)?))
    }

    /// An object somebody else wrote, as we store it: in the version we keep its kind in.
    fn adopted(&self, object: Object) -> Result<Object, String> {
        let (api_version, kind) = (object.api_version().to_owned(), object.kind().to_owned());
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        let mut rows = self.kinds.iter().filter(|row| row.group == group && row.kind == kind).peekable();
        if rows.peek().is_none() {
            // Of a custom kind: its definition says what is to be done.
            return Ok(object);
        }
        match rows.find(|row| row.api_version() == api_version) {
            Some(row) => Ok(row.to_storage(object)),
            None => Err(format!(
                "it is a {kind} of {api_version}, which is no longer served: have the release of Kubernetes that wrote it write it anew"
            )),
        }
    }
}

impl Form for KubernetesLayout {
    fn key_out(&self, key: &str) -> String {
        let Some(rest) = key.strip_prefix(ROOT) else { return self.root.clone() };
        let Some((resource, name)) = rest.split_once('/') else { return format!("{}{rest}", self.root) };
        match self.places.get(resource) {
            Some(place) => format!("{}{place}/{name}", self.root),
            None => match resource.split_once('.') {
                Some((plural, group)) => format!("{}{group}/{plural}/{name}", self.root),
                None => format!("{}{resource}/{name}", self.root),
            },
        }
    }

    fn key_in(&self, key: &str) -> Option<Key> {
        let rest = key.strip_prefix(&self.root)?;
        let (first, after_first) = rest.split_once('/')?;
        let second = after_first.split_once('/');
        let two = second.and_then(|(second, name)| Some((self.resources.get(&format!("{first}/{second}"))?, name)));
        if let Some((resource, name)) = two.or_else(|| Some((self.resources.get(first)?, after_first))) {
            return (!name.is_empty()).then(|| format!("{ROOT}{resource}/{name}").into());
        }
        let (plural, name) = second?;
        (first.contains('.') && !name.is_empty()).then(|| format!("{ROOT}{plural}.{first}/{name}").into())
    }

    fn value_out(&self, value: &Stored) -> Bytes {
        value.bytes.clone()
    }

    fn value_in(&self, _key: &str, kept: &Bytes) -> Result<Stored, String> {
        // Whoever has the keys opens an envelope, ours or a kube-apiserver's, and adopts what is in it; without them the
        // server does not start.
        if kept.starts_with(ENVELOPE) { Ok(Stored::plain(kept.clone())) } else { self.adopt(kept) }
    }

    fn mark(&self) -> String {
        format!("{}proa-progress", self.root)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn layout() -> KubernetesLayout {
        KubernetesLayout::new("/registry")
    }

    #[test]
    fn objects_lie_where_kubernetes_looks_for_them() {
        let table = [
            ("/registry/pods/default/web", "/registry/pods/default/web"),
            ("/registry/services/default/web", "/registry/services/specs/default/web"),
            ("/registry/endpoints/default/web", "/registry/services/endpoints/default/web"),
            ("/registry/nodes/a", "/registry/minions/a"),
            ("/registry/replicationcontrollers/default/a", "/registry/controllers/default/a"),
            ("/registry/deployments.apps/default/web", "/registry/deployments/default/web"),
            ("/registry/leases.coordination.k8s.io/kube-system/a", "/registry/leases/kube-system/a"),
            ("/registry/ingresses.networking.k8s.io/default/a", "/registry/ingress/default/a"),
            ("/registry/roles.rbac.authorization.k8s.io/default/a", "/registry/roles/default/a"),
            ("/registry/events/default/a", "/registry/events/default/a"),
            (
                "/registry/customresourcedefinitions.apiextensions.k8s.io/x.example.com",
                "/registry/apiextensions.k8s.io/customresourcedefinitions/x.example.com",
            ),
            ("/registry/apiservices.apiregistration.k8s.io/v1.", "/registry/apiregistration.k8s.io/apiservices/v1."),
            ("/registry/widgets.shop.example.com/default/a", "/registry/shop.example.com/widgets/default/a"),
        ];
        for (ours, theirs) in table {
            assert_eq!(layout().key_out(ours), theirs);
            assert_eq!(layout().key_in(theirs).as_deref(), Some(ours));
        }
    }

    #[test]
    fn no_two_resources_share_a_place_and_each_is_found_again() {
        let layout = layout();
        assert_eq!(layout.places.len(), layout.resources.len());
        for resource in layout.places.keys() {
            for name in ["a", "specs", "default/endpoints"] {
                let key = format!("{ROOT}{resource}/{name}");
                assert_eq!(layout.key_in(&layout.key_out(&key)).as_deref(), Some(&*key));
                let prefix = layout.key_out(&format!("{ROOT}{resource}/"));
                assert!(layout.key_out(&key).starts_with(&prefix), "{key}");
            }
        }
    }

    #[test]
    fn what_is_none_of_ours_is_left_alone() {
        for key in [
            "/registry/ranges/servicenodeports",
            "/registry/masterleases/10.0.0.1",
            "/registry/proa-progress",
            "/registry/health",
            "/registry/pods/",
            "compact_rev_key",
            "/elsewhere/pods/default/a",
        ] {
            assert_eq!(layout().key_in(key), None, "{key}");
        }
        assert_eq!(layout().key_out(ROOT), "/registry/");
        assert_eq!(KubernetesLayout::new("k8s/").key_out("/registry/nodes/a"), "/k8s/minions/a");
    }

    #[test]
    fn values_of_others_are_read_in_the_version_we_keep() {
        let read = |value: serde_json::Value| {
            let kept = Bytes::from(value.to_string());
            layout().value_in("k", &kept).map(|value| String::from_utf8(value.bytes.to_vec()).unwrap())
        };
        let claim = json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "a", "resourceVersion": "7"}, "data": {"k": "v"}});
        let expected =
            r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"resourceVersion":"","name":"a"},"data":{"k":"v"}}"#;
        assert_eq!(read(claim).unwrap(), expected);
        let event = json!({"kind": "Event", "apiVersion": "events.k8s.io/v1", "metadata": {"name": "a"}, "note": "n"});
        assert!(read(event).unwrap().contains(r#""message":"n""#));
        let old = json!({"kind": "Ingress", "apiVersion": "networking.k8s.io/v1beta1", "metadata": {"name": "a"}});
        assert!(read(old).unwrap_err().contains("networking.k8s.io/v1beta1, which is no longer served"));
        let sealed = Bytes::from_static(b"k8s:enc:aescbc:v1:key1:...");
        assert_eq!(layout().value_in("k", &sealed), Ok(Stored::plain(sealed)), "it is opened further up");
    }

    #[test]
    fn what_a_kube_apiserver_wrote_in_protobuf_is_read() {
        // Field, wire type 2, length, bytes.
        fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
            [&[number << 3 | 2, u8::try_from(bytes.len()).unwrap()][..], bytes].concat()
        }
        let kind = [field(1, b"v1"), field(2, b"ConfigMap")].concat();
        let entry = [field(1, b"k"), field(2, b"v")].concat();
        let map = [field(1, &[field(1, b"a"), field(3, b"default")].concat()), field(2, &entry)].concat();
        let kept = [&b"k8s\0"[..], &field(1, &kind), &field(2, &map)].concat();
        let read = layout().value_in("k", &kept.into()).unwrap();
        let object: serde_json::Value = serde_json::from_slice(&read.bytes).unwrap();
        assert_eq!(
            (&object["kind"], &object["metadata"]["name"], &object["data"]["k"]),
            (&json!("ConfigMap"), &json!("a"), &json!("v"))
        );
        let at = read.revision_at.unwrap();
        assert!(read.bytes[..at].ends_with(b"\"resourceVersion\":\""));
    }

    #[test]
    fn our_own_values_are_read_without_being_decoded_and_with_their_revision_taken_out() {
        let object =
            Object::from_value(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}})).unwrap();
        let stored = codec::encode(&object);
        assert_eq!(codec::reopened(&layout().value_out(&stored)), Some(stored.clone()));
        let at = stored.revision_at.unwrap();
        let mut committed = stored.bytes.to_vec();
        committed.splice(at..at, *b"42");
        assert_eq!(layout().value_in("k", &committed.into()), Ok(stored));
    }
}
