//! Role-based access control, read from the watch cache.
//!
//! The bindings are compiled into an index by subject; it is made again when a role or binding has
//! changed since, which a comparison of four revisions tells.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use proa_apimachinery::object::Object;
use serde_json::Value;

use super::Attributes;
use crate::cache::Caches;
use crate::user::User;

const RESOURCES: [&str; 4] = [
    "clusterroles.rbac.authorization.k8s.io",
    "clusterrolebindings.rbac.authorization.k8s.io",
    "roles.rbac.authorization.k8s.io",
    "rolebindings.rbac.authorization.k8s.io",
];

/// One rule of a role.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// `apiGroups`.
    pub groups: Vec<String>,
    /// `resources`, with `resource/subresource` and `*` forms.
    pub resources: Vec<String>,
    /// `verbs`.
    pub verbs: Vec<String>,
    /// `resourceNames`; empty means every name.
    pub names: Vec<String>,
    /// `nonResourceURLs`.
    pub urls: Vec<String>,
}

/// The rules of a role.
pub type Rules = Arc<Vec<Rule>>;

/// What a binding gives to one of its subjects.
#[derive(Clone, Debug)]
struct Grant {
    rules: Rules,
    /// Binding, role and subject, in Kubernetes' words.
    by: Arc<str>,
}

/// The authorizer.
#[derive(Default)]
pub struct Rbac {
    index: ArcSwapOption<Index>,
}

#[derive(Default)]
struct Index {
    revisions: [u64; 4],
    cluster: HashMap<Subject, Vec<Grant>>,
    namespaced: HashMap<String, HashMap<Subject, Vec<Grant>>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Subject {
    User(String),
    Group(String),
}

impl Rbac {
    /// By which binding a rule allows `what` to `user`; `None` when there is none.
    pub fn granted(&self, caches: &Caches, user: &User, what: &Attributes<'_>) -> Option<Arc<str>> {
        let index = self.index(caches);
        let mut grants = index.grants(user, what.namespace);
        grants.find(|grant| grant.rules.iter().any(|rule| rule.allows(what))).map(|grant| Arc::clone(&grant.by))
    }

    /// Every rule that holds for `user` in `namespace` (cluster-wide ones included).
    pub fn rules(&self, caches: &Caches, user: &User, namespace: &str) -> Vec<Rule> {
        self.index(caches).grants(user, namespace).flat_map(|grant| grant.rules.iter().cloned()).collect()
    }

    fn index(&self, caches: &Caches) -> Arc<Index> {
        let stores = RESOURCES.map(|name| caches.resource(name));
        let revisions = [0, 1, 2, 3].map(|at| stores[at].last_revision());
        if let Some(index) = self.index.load_full()
            && index.revisions == revisions
        {
            return index;
        }
        // Read after the revisions: the index may be newer than it says, never older.
        let index = Arc::new(Index::build(caches, revisions));
        self.index.store(Some(Arc::clone(&index)));
        index
    }
}

impl Index {
    fn build(caches: &Caches, revisions: [u64; 4]) -> Index {
        let mut index = Index { revisions, ..Index::default() };
        let [cluster_roles, cluster_bindings, roles, bindings] = RESOURCES.map(|name| caches.resource(name).items(""));
        let rules_of = |object: &Object| Arc::new(rules(object));
        let cluster_roles: HashMap<String, Rules> =
            cluster_roles.iter().map(|item| (item.name().to_owned(), rules_of(&item.object()))).collect();
        let roles: HashMap<(String, String), Rules> = roles
            .iter()
            .map(|item| ((item.namespace().to_owned(), item.name().to_owned()), rules_of(&item.object())))
            .collect();
        for item in cluster_bindings {
            let object = item.object();
            let Some(rules) = object.get_str(&["roleRef", "name"]).and_then(|name| cluster_roles.get(name)) else {
                continue;
            };
            for subject in subjects(&object, "") {
                let by = described("ClusterRoleBinding", item.name(), &object, &subject);
                index.cluster.entry(subject).or_default().push(Grant { rules: Arc::clone(rules), by });
            }
        }
        for item in bindings {
            let object = item.object();
            let namespace = item.namespace().to_owned();
            let Some(name) = object.get_str(&["roleRef", "name"]) else { continue };
            let rules = match object.get_str(&["roleRef", "kind"]) {
                Some("ClusterRole") => cluster_roles.get(name),
                _ => roles.get(&(namespace.clone(), name.to_owned())),
            };
            let Some(rules) = rules else { continue };
            let here = index.namespaced.entry(namespace.clone()).or_default();
            for subject in subjects(&object, &namespace) {
                let by = described("RoleBinding", &format!("{}/{namespace}", item.name()), &object, &subject);
                here.entry(subject).or_default().push(Grant { rules: Arc::clone(rules), by });
            }
        }
        index
    }

    fn grants<'a>(&'a self, user: &'a User, namespace: &str) -> impl Iterator<Item = &'a Grant> + use<'a> {
        let namespaced = self.namespaced.get(namespace).filter(|_| !namespace.is_empty());
        let keys =
            std::iter::once(Subject::User(user.name.clone())).chain(user.groups.iter().cloned().map(Subject::Group));
        keys.flat_map(move |key| {
            let here = namespaced.and_then(|by_subject| by_subject.get(&key)).into_iter().flatten();
            self.cluster.get(&key).into_iter().flatten().chain(here)
        })
    }
}

/// As in the reason of an allowed request.
fn described(kind: &str, binding: &str, object: &Object, subject: &Subject) -> Arc<str> {
    let role = |field: &str| object.get_str(&["roleRef", field]).unwrap_or_default();
    let to = match subject {
        Subject::Group(name) => format!("Group {name:?}"),
        Subject::User(name) => match name.strip_prefix(ACCOUNT).and_then(|rest| rest.split_once(':')) {
            Some((namespace, name)) => format!("ServiceAccount \"{name}/{namespace}\""),
            None => format!("User {name:?}"),
        },
    };
    format!("{kind} {binding:?} of {} {:?} to {to}", role("kind"), role("name")).into()
}

/// What the user name of a service account starts with; namespace and name follow.
const ACCOUNT: &str = "system:serviceaccount:";

fn subjects(binding: &Object, namespace: &str) -> Vec<Subject> {
    let Some(subjects) = binding.get(&["subjects"]).and_then(Value::as_array) else { return Vec::new() };
    subjects
        .iter()
        .filter_map(|subject| {
            let name = subject.get("name")?.as_str()?;
            match subject.get("kind")?.as_str()? {
                "User" => Some(Subject::User(name.to_owned())),
                "Group" => Some(Subject::Group(name.to_owned())),
                "ServiceAccount" => {
                    let of = subject
                        .get("namespace")
                        .and_then(Value::as_str)
                        .filter(|of| !of.is_empty())
                        .unwrap_or(namespace);
                    Some(Subject::User(format!("system:serviceaccount:{of}:{name}")))
                }
                _ => None,
            }
        })
        .collect()
}

/// The rules of a role or cluster role.
pub fn rules(role: &Object) -> Vec<Rule> {
    let Some(rules) = role.get(&["rules"]).and_then(Value::as_array) else { return Vec::new() };
    let strings = |rule: &Value, key: &str| -> Vec<String> {
        let list = rule.get(key).and_then(Value::as_array);
        list.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    rules
        .iter()
        .map(|rule| Rule {
            groups: strings(rule, "apiGroups"),
            resources: strings(rule, "resources"),
            verbs: strings(rule, "verbs"),
            names: strings(rule, "resourceNames"),
            urls: strings(rule, "nonResourceURLs"),
        })
        .collect()
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|have| have == "*" || have == wanted)
}

impl Rule {
    /// Whether this rule allows `what`.
    pub fn allows(&self, what: &Attributes<'_>) -> bool {
        if !has(&self.verbs, what.verb) {
            return false;
        }
        if what.resource.is_empty() {
            return self.urls.iter().any(|url| covers_url(url, what.path));
        }
        has(&self.groups, what.group)
            && self.resources.iter().any(|have| covers_resource(have, what.resource, what.subresource))
            && (self.names.is_empty() || self.names.iter().any(|name| name == what.name))
    }
}

fn covers_url(have: &str, path: &str) -> bool {
    have == "*" || have == path || have.strip_suffix('*').is_some_and(|prefix| path.starts_with(prefix))
}

/// `pods`, `pods/log`, `*`, `*/scale`; `*` covers subresources too.
fn covers_resource(have: &str, resource: &str, subresource: &str) -> bool {
    match have.split_once('/') {
        None => have == "*" || (have == resource && subresource.is_empty()),
        Some((kind, sub)) => (kind == "*" || kind == resource) && !subresource.is_empty() && sub == subresource,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_covers_what_it_names_and_nothing_else() {
        let rule = |groups: &[&str], resources: &[&str], verbs: &[&str], names: &[&str]| {
            let own = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
            Rule {
                groups: own(groups),
                resources: own(resources),
                verbs: own(verbs),
                names: own(names),
                urls: Vec::new(),
            }
        };
        let what = |verb, group, resource, subresource, name| Attributes {
            verb,
            group,
            resource,
            subresource,
            name,
            ..Attributes::default()
        };
        let reader = rule(&[""], &["pods"], &["get", "list"], &[]);
        assert!(reader.allows(&what("get", "", "pods", "", "a")));
        assert!(!reader.allows(&what("get", "", "pods", "log", "a")));
        assert!(!reader.allows(&what("delete", "", "pods", "", "a")));
        assert!(!reader.allows(&what("get", "apps", "pods", "", "a")));
        assert!(rule(&["*"], &["*"], &["*"], &[]).allows(&what("patch", "x", "ys", "status", "")));
        assert!(rule(&["*"], &["*/scale"], &["get"], &[]).allows(&what("get", "apps", "deployments", "scale", "d")));
        let named = rule(&[""], &["configmaps"], &["get"], &["a"]);
        assert!(named.allows(&what("get", "", "configmaps", "", "a")));
        assert!(!named.allows(&what("get", "", "configmaps", "", "b")));
        assert!(covers_url("/healthz/*", "/healthz/ping"));
        assert!(!covers_url("/healthz", "/healthz/ping"));
    }
}
