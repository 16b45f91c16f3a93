//! Owns what every cluster starts with: namespaces, roles and bindings, priority classes, the
//! `kubernetes` Service. Data only; writing what is missing of it is the core's.

use std::net::IpAddr;

use proa_apimachinery::Object;
use serde_json::{Value, json};

use crate::config::Config;
use crate::kinds;
use crate::pki::{FRONT_PROXY_CLIENT, Pki};
use crate::user::{ANONYMOUS, NODES};

mod roles;

use roles::{CONTROLLERS, ROLES, Role};

const GROUP: &str = "rbac.authorization.k8s.io";
const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

/// Everything, in an order that can be written from the front.
pub fn objects(config: &Config) -> Vec<Object> {
    let mut all = namespaces();
    all.extend(cluster_roles());
    all.extend(bindings());
    all.extend(priority_classes());
    all.extend(kubernetes_service(config, &[config.advertise]));
    all.extend(api_services());
    all.extend(definitions(config));
    all
}

/// The definitions of the platform's own kinds.
pub fn definitions(config: &Config) -> impl Iterator<Item = Object> {
    config.definitions.iter().cloned().map(object)
}

/// Holds because every caller writes an object literal.
fn object(value: Value) -> Object {
    Object::from_value(value).unwrap_or_default()
}

/// The namespaces every cluster has.
pub fn namespaces() -> Vec<Object> {
    ["default", "kube-system", "kube-public", "kube-node-lease"]
        .map(|name| object(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})))
        .to_vec()
}

/// The cluster roles: for users, for the parts of the platform, one for each control loop.
pub fn cluster_roles() -> Vec<Object> {
    let named = ROLES.iter().map(cluster_role);
    let loops = CONTROLLERS.iter().map(|(name, text)| {
        let mut rules = rules(text);
        rules.extend(self::rules("create,patch,update core events\ncreate,patch,update events.k8s.io events"));
        role_object(&format!("system:controller:{name}"), rules, &[])
    });
    named.chain(loops).collect()
}

fn cluster_role(role: &Role) -> Object {
    let label = |of: &str| format!("{GROUP}/aggregate-to-{of}");
    let mut labels = Vec::new();
    if !role.part_of.is_empty() {
        labels.push(label(role.part_of));
    }
    let mut made = role_object(role.name, sum_or_rules(role), &labels);
    if !role.sum_of.is_empty() {
        made.set(
            &["aggregationRule"],
            json!({"clusterRoleSelectors": [{"matchLabels": {label(role.sum_of): "true"}}]}),
        );
    }
    made
}

/// A summed role starts with the sum, so that it holds before any aggregation loop has looked at it.
fn sum_or_rules(role: &Role) -> Vec<Value> {
    if role.sum_of.is_empty() {
        return rules(role.rules);
    }
    ROLES.iter().filter(|r| r.part_of == role.sum_of).flat_map(sum_or_rules).collect()
}

fn role_object(name: &str, rules: Vec<Value>, labels: &[String]) -> Object {
    let mut made = object(json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": {"name": name, "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"}, "annotations": {AUTOUPDATE: "true"}},
        "rules": rules,
    }));
    for label in labels {
        made.set_label(label, "true");
    }
    made
}

const READ: [&str; 3] = ["get", "list", "watch"];
const WRITE: [&str; 5] = ["create", "delete", "deletecollection", "patch", "update"];

/// Rules from the short form of `roles`.
fn rules(text: &str) -> Vec<Value> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let (verbs, group, what) = (words.next()?, words.next()?, words.next()?);
            let verbs: Vec<&str> = match verbs {
                "R" => READ.to_vec(),
                "W" => WRITE.to_vec(),
                "RW" => READ.into_iter().chain(WRITE).collect(),
                list => list.split(',').collect(),
            };
            let what: Vec<&str> = what.split(',').collect();
            let mut rule = match group {
                "url" => json!({"nonResourceURLs": what, "verbs": verbs}),
                "core" => json!({"apiGroups": [""], "resources": what, "verbs": verbs}),
                group => json!({"apiGroups": [group], "resources": what, "verbs": verbs}),
            };
            if let Some(names) = words.next() {
                rule["resourceNames"] = names.split(',').collect();
            }
            Some(rule)
        })
        .collect()
}

/// Who has which of the roles from the start.
pub fn bindings() -> Vec<Object> {
    /// A binding's name, its role, and the kinds and names of its subjects.
    type Row = (&'static str, &'static str, &'static [(&'static str, &'static str)]);
    const USERS: [Row; 9] = [
        ("cluster-admin", "cluster-admin", &[("Group", "system:masters")]),
        ("system:monitoring", "system:monitoring", &[("Group", "system:monitoring")]),
        ("system:discovery", "system:discovery", &[("Group", "system:authenticated")]),
        ("system:basic-user", "system:basic-user", &[("Group", "system:authenticated")]),
        (
            "system:public-info-viewer",
            "system:public-info-viewer",
            &[("Group", "system:authenticated"), ("Group", "system:unauthenticated")],
        ),
        ("system:kube-scheduler", "system:kube-scheduler", &[("User", "system:kube-scheduler")]),
        ("system:volume-scheduler", "system:volume-scheduler", &[("User", "system:kube-scheduler")]),
        (
            "system:kube-controller-manager",
            "system:kube-controller-manager",
            &[("User", "system:kube-controller-manager")],
        ),
        (
            "system:service-account-issuer-discovery",
            "system:service-account-issuer-discovery",
            &[("Group", "system:serviceaccounts")],
        ),
    ];
    let mut all: Vec<Object> = USERS
        .iter()
        .map(|(name, role, subjects)| {
            let subjects: Vec<Value> =
                subjects.iter().map(|(kind, name)| json!({"kind": kind, "apiGroup": GROUP, "name": name})).collect();
            binding(name, role, subjects)
        })
        .collect();
    all.push(binding("system:node", "system:node", Vec::new()));
    all.push(binding(
        "system:node-proxier",
        "system:node-proxier",
        vec![
            json!({"kind": "User", "apiGroup": GROUP, "name": "system:kube-proxy"}),
            json!({"kind": "Group", "apiGroup": GROUP, "name": "system:nodes"}),
        ],
    ));
    let dns = json!({"kind": "ServiceAccount", "name": "kube-dns", "namespace": "kube-system"});
    all.push(binding("system:kube-dns", "system:kube-dns", vec![dns]));
    // Proa's loops share one process and one identity; a loop of its own may use its account.
    for (name, _) in CONTROLLERS {
        let role = format!("system:controller:{name}");
        all.push(binding(
            &role,
            &role,
            vec![
                json!({"kind": "ServiceAccount", "name": name, "namespace": "kube-system"}),
                json!({"kind": "User", "apiGroup": GROUP, "name": "system:kube-controller-manager"}),
            ],
        ));
    }
    // How machines join, under the names kubeadm gives it: tokens made by either let in alike.
    for (name, role, group) in [
        ("kubeadm:kubelet-bootstrap", "system:node-bootstrapper", NODE_TOKENS),
        ("kubeadm:node-autoapprove-bootstrap", NODE_CLIENT, NODE_TOKENS),
        ("kubeadm:node-autoapprove-certificate-rotation", SELF_NODE_CLIENT, NODES),
    ] {
        all.push(binding(name, role, vec![json!({"kind": "Group", "apiGroup": GROUP, "name": group})]));
    }
    all.extend(namespaced_roles());
    all
}

/// The group of the tokens nodes join with.
const NODE_TOKENS: &str = "system:bootstrappers:kubeadm:default-node-token";
const NODE_CLIENT: &str = "system:certificates.k8s.io:certificatesigningrequests:nodeclient";
const SELF_NODE_CLIENT: &str = "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient";

fn binding(name: &str, role: &str, subjects: Vec<Value>) -> Object {
    let mut made = object(json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": name, "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"}, "annotations": {AUTOUPDATE: "true"}},
        "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": role},
    }));
    if !subjects.is_empty() {
        made.set(&["subjects"], subjects);
    }
    made
}

/// What the platform's own parts may do in `kube-system` and `kube-public` only.
fn namespaced_roles() -> Vec<Object> {
    const ROLES: [(&str, &str, &str, &str); 5] = [
        (
            // Who joins knows nothing yet but the token: what they read here is signed with it.
            "kube-public",
            "kubeadm:bootstrap-signer-clusterinfo",
            "get core configmaps cluster-info",
            ANONYMOUS,
        ),
        (
            "kube-system",
            "extension-apiserver-authentication-reader",
            "get,list,watch core configmaps extension-apiserver-authentication",
            "system:kube-controller-manager",
        ),
        (
            "kube-system",
            "system::leader-locking-kube-scheduler",
            "get,update,create core configmaps",
            "system:kube-scheduler",
        ),
        (
            "kube-system",
            "system::leader-locking-kube-controller-manager",
            "get,update,create core configmaps",
            "system:kube-controller-manager",
        ),
        (
            "kube-public",
            "system:controller:bootstrap-signer",
            "get,list,watch,patch,update core configmaps",
            "system:kube-controller-manager",
        ),
    ];
    let mut all = Vec::new();
    for (namespace, name, text, user) in ROLES {
        let metadata = json!({"name": name, "namespace": namespace,
            "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"}, "annotations": {AUTOUPDATE: "true"}});
        all.push(object(json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
            "metadata": metadata, "rules": rules(text)})));
        all.push(object(json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": metadata, "roleRef": {"apiGroup": GROUP, "kind": "Role", "name": name},
            "subjects": [{"kind": "User", "apiGroup": GROUP, "name": user}]})));
    }
    all
}

/// The two classes of what the platform itself needs.
pub fn priority_classes() -> Vec<Object> {
    [
        ("system-node-critical", 2_000_001_000, "Used for system critical pods that must not be moved from their current node."),
        (
            "system-cluster-critical",
            2_000_000_000,
            "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
        ),
    ]
    .map(|(name, value, description)| {
        object(json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
            "metadata": {"name": name}, "value": value, "description": description}))
    })
    .to_vec()
}

/// On the namespace `kube-system`: the storage class this cluster was once given. Whoever deletes or changes it has it
/// their way.
pub const GIVEN_CLASS: &str = "proa.dev/storage-class";

/// The storage class of a new cluster, the default one: a directory on the node where a claim is first used.
pub fn storage_class() -> Object {
    object(json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
        "metadata": {"name": "local", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
        "provisioner": "proa.dev/local", "reclaimPolicy": "Delete", "volumeBindingMode": "WaitForFirstConsumer",
        "allowVolumeExpansion": true}))
}

/// The groups this server answers for itself, each version an APIService without a service, as on Kubernetes.
pub fn api_services() -> Vec<Object> {
    let mut served: Vec<(String, String)> = Vec::new();
    for kind in kinds::builtin().iter().chain(&kinds::metrics::kinds()) {
        let version = (kind.group.to_string(), kind.version.to_string());
        if !served.contains(&version) {
            served.push(version);
        }
    }
    // In the order of the table: the core group first; the preferred version of a group before its others.
    let services = served.iter().enumerate().map(|(at, (group, version))| {
        let later = served[at..].iter().filter(|(other, _)| other == group).count();
        object(json!({
            "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
            "metadata": {"name": format!("{version}.{group}"), "labels": {"kube-aggregator.kubernetes.io/automanaged": "onstart"}},
            "spec": {"group": group, "version": version, "groupPriorityMinimum": 18_000 - 100 * at, "versionPriority": 15 * later},
        }))
    });
    services.collect()
}

/// By what aggregated API servers know this one and whoever it speaks for: what Kubernetes keeps in the ConfigMap
/// `extension-apiserver-authentication`, which the role `extension-apiserver-authentication-reader` is for. Lists are JSON.
pub fn front_proxy(pki: &Pki) -> Object {
    object(json!({"apiVersion": "v1", "kind": "ConfigMap",
    "metadata": {"name": "extension-apiserver-authentication", "namespace": "kube-system"},
    "data": {
        "client-ca-file": pki.ca_pem(),
        "requestheader-allowed-names": json!([FRONT_PROXY_CLIENT]).to_string(),
        "requestheader-client-ca-file": pki.front_proxy_ca_pem(),
        "requestheader-extra-headers-prefix": json!(["X-Remote-Extra-"]).to_string(),
        "requestheader-group-headers": json!(["X-Remote-Group"]).to_string(),
        "requestheader-uid-headers": json!(["X-Remote-Uid"]).to_string(),
        "requestheader-username-headers": json!(["X-Remote-User"]).to_string(),
    }}))
}

/// What is to be patched so that a stored object of [`front_proxy`] names the authorities of now.
pub fn trusts(stored: &Object, wanted: &Object) -> Option<Object> {
    let data = wanted.get(&["data"]).filter(|data| !holds(stored.get(&["data"]), data))?;
    let mut patch = Object::default();
    patch.set(&["data"], data.clone());
    Some(patch)
}

/// How pods find the API servers: the `kubernetes` Service, and those who stand behind it.
pub fn kubernetes_service(config: &Config, servers: &[IpAddr]) -> Vec<Object> {
    let labels = json!({"component": "apiserver", "provider": "kubernetes"});
    let port = config.port();
    let addresses: Vec<Value> = servers.iter().map(|address| json!({"ip": address.to_string()})).collect();
    let ready = |address: &IpAddr| json!({"addresses": [address.to_string()], "conditions": {"ready": true}});
    let slice_endpoints: Vec<Value> = servers.iter().map(ready).collect();
    let service = json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": labels},
        "spec": {"type": "ClusterIP", "clusterIP": config.service_cidr.nth(1).to_string(), "sessionAffinity": "None",
            "ports": [{"name": "https", "protocol": "TCP", "port": 443, "targetPort": port}]}});
    let endpoints = json!({"apiVersion": "v1", "kind": "Endpoints",
        "metadata": {"name": "kubernetes", "namespace": "default",
            "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": [{"addresses": addresses,
            "ports": [{"name": "https", "protocol": "TCP", "port": port}]}]});
    let family = if config.advertise.is_ipv4() { "IPv4" } else { "IPv6" };
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": family,
        "endpoints": slice_endpoints,
        "ports": [{"name": "https", "protocol": "TCP", "port": port}]});
    [service, endpoints, slice].map(object).to_vec()
}

/// What newcomers are told: where the API server is, and by which authority it is known. Nothing when no socket is served.
pub fn cluster_info(config: &Config, ca_pem: &str) -> Option<Object> {
    use base64::Engine;
    let port = config.listen?.port();
    let address = std::net::SocketAddr::new(config.advertise, port);
    let ca = base64::engine::general_purpose::STANDARD.encode(ca_pem);
    let kubeconfig = format!(
        "apiVersion: v1\nclusters:\n- cluster:\n    certificate-authority-data: {ca}\n    server: https://{address}\n  name: \"\"\n\
         contexts: null\ncurrent-context: \"\"\nkind: Config\npreferences: {{}}\nusers: null\n"
    );
    Some(object(json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "cluster-info", "namespace": "kube-public"}, "data": {"kubeconfig": kubeconfig}})))
}

/// What is to be patched so that a stored [`cluster_info`] is true; its signatures are somebody else's.
pub fn told_otherwise(stored: &Object, wanted: &Object) -> Option<Object> {
    let path = &["data", "kubeconfig"][..];
    let text = wanted.get(path).filter(|text| stored.get(path) != Some(text))?;
    let mut patch = Object::default();
    patch.set(path, text.clone());
    Some(patch)
}

/// What is to be patched so that a stored object of [`kubernetes_service`] says where the server is now;
/// nothing when it does. The Service's address stays: it cannot change.
pub fn moved(stored: &Object, wanted: &Object) -> Option<Object> {
    let mut patch = Object::default();
    for path in [&["spec", "ports"][..], &["subsets"], &["endpoints"], &["ports"]] {
        if let Some(value) = wanted.get(path).filter(|value| !holds(stored.get(path), value)) {
            patch.set(path, value.clone());
        }
    }
    (!patch.0.is_empty()).then_some(patch)
}

/// What is to be patched so that a stored object of [`definitions`] defines what this version of the platform does; nothing
/// when it does. What is served beside it is somebody else's.
pub fn redefined(stored: &Object, wanted: &Object) -> Option<Object> {
    let spec = wanted.get(&["spec"]).filter(|spec| !holds(stored.get(&["spec"]), spec))?;
    let mut patch = Object::default();
    patch.set(&["spec"], spec.clone());
    Some(patch)
}

/// Whether `stored` says all that `wanted` says; defaults may stand beside it.
fn holds(stored: Option<&Value>, wanted: &Value) -> bool {
    match (stored, wanted) {
        (Some(Value::Object(stored)), Value::Object(wanted)) => {
            wanted.iter().all(|(key, value)| holds(stored.get(key), value))
        }
        (Some(Value::Array(stored)), Value::Array(wanted)) => {
            stored.len() == wanted.len()
                && stored.iter().zip(wanted).all(|(stored, wanted)| holds(Some(stored), wanted))
        }
        (stored, wanted) => stored == Some(wanted),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::Op;

    #[test]
    fn every_bootstrap_object_is_valid_and_named_once() {
        let kinds = kinds::builtin();
        let mut seen = Vec::new();
        for mut object in objects(&Config::new("/nowhere")).into_iter().chain([storage_class()]) {
            let kind = kinds.iter().find(|k| k.api_version() == object.api_version() && k.kind == object.kind());
            let kind = kind.unwrap_or_else(|| panic!("no kind {}", object.kind()));
            kind.strategy.default(&mut object);
            kind.strategy.prepare(Op::Create, &mut object, None);
            assert_eq!(kind.strategy.validate(Op::Create, &object, None), vec![], "{}", object.name());
            let key = format!("{}/{}/{}", object.kind(), object.namespace(), object.name());
            assert!(!seen.contains(&key), "{key}");
            seen.push(key);
        }
    }

    #[test]
    fn the_kubernetes_service_is_patched_only_when_the_server_moved() {
        let mut config = Config::new("/nowhere");
        let before = kubernetes_service(&config, &[config.advertise]);
        for object in &before {
            assert_eq!(moved(object, object), None);
        }
        config.listen = Some("127.0.0.1:7443".parse().unwrap());
        let patches: Vec<Value> = before
            .iter()
            .zip(kubernetes_service(&config, &[config.advertise]))
            .map(|(stored, wanted)| moved(stored, &wanted).expect("a patch").into_value())
            .collect();
        assert_eq!(patches[0]["spec"]["ports"][0]["targetPort"], 7443);
        assert_eq!(patches[1]["subsets"][0]["ports"][0]["port"], 7443);
        assert_eq!(patches[2], json!({"ports": [{"name": "https", "protocol": "TCP", "port": 7443}]}));
    }

    #[test]
    fn a_definition_of_an_earlier_version_is_brought_up_to_date_and_a_defaulted_one_left_alone() {
        let definition = |versions: Value| {
            object(json!({"metadata": {"name": "a.b"}, "spec": {"group": "b", "versions": versions}}))
        };
        let wanted = definition(json!([{"name": "v1", "schema": {"x": 1}}]));
        let stored = definition(json!([{"name": "v1", "schema": {"x": 1}, "served": true}]));
        assert_eq!(redefined(&stored, &wanted), None);
        let older = definition(json!([{"name": "v1", "schema": {"x": 0}}]));
        assert_eq!(redefined(&older, &wanted).expect("a patch").get(&["spec"]), wanted.get(&["spec"]));
    }

    #[test]
    fn summed_roles_hold_what_their_parts_hold() {
        let roles = cluster_roles();
        let rules = |name: &str| roles.iter().find(|r| r.name() == name).unwrap().get_list(&["rules"]).to_vec();
        for rule in rules("system:aggregate-to-view") {
            for role in ["view", "edit", "admin"] {
                assert!(rules(role).contains(&rule), "{role} {rule}");
            }
        }
        assert!(!rules("view").iter().any(|r| r.to_string().contains("secrets")));
    }
}
