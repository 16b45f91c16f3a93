//! Who is asking.

use std::collections::BTreeMap;

/// An authenticated identity, as authorization and auditing see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// The name, for example `kubernetes-admin` or `system:serviceaccount:default:builder`.
    pub name: String,
    /// The uid, where the authenticator knows one (service accounts).
    pub uid: String,
    /// The groups, `system:authenticated` or `system:unauthenticated` among them.
    pub groups: Vec<String>,
    /// What else the authenticator said.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// Members pass every authorization check.
pub const MASTERS: &str = "system:masters";
/// Every node agent.
pub const NODES: &str = "system:nodes";
/// What the user name of a node agent starts with; the node's name follows.
const NODE_PREFIX: &str = "system:node:";
/// Everyone with a credential.
pub const AUTHENTICATED: &str = "system:authenticated";
/// Everyone without one.
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
/// The name of a caller without credential.
pub const ANONYMOUS: &str = "system:anonymous";

impl User {
    /// An authenticated user with these groups (`system:authenticated` is added).
    pub fn new(name: impl Into<String>, groups: &[&str]) -> Self {
        let mut groups: Vec<String> = groups.iter().map(|group| (*group).to_owned()).collect();
        if !groups.iter().any(|group| group == AUTHENTICATED) {
            groups.push(AUTHENTICATED.to_owned());
        }
        User { name: name.into(), groups, ..User::default() }
    }

    /// The caller without credential.
    pub fn anonymous() -> Self {
        User { name: ANONYMOUS.into(), groups: vec![UNAUTHENTICATED.into()], ..User::default() }
    }

    /// The agent of a node.
    pub fn node(name: &str) -> Self {
        User::new(format!("{NODE_PREFIX}{name}"), &[NODES])
    }

    /// The node whose agent this is. Name and group together make a node, as on Kubernetes.
    pub fn node_name(&self) -> Option<&str> {
        self.name.strip_prefix(NODE_PREFIX).filter(|node| !node.is_empty() && self.in_group(NODES))
    }

    /// A service account's identity.
    pub fn service_account(namespace: &str, name: &str, uid: &str) -> Self {
        User {
            name: format!("system:serviceaccount:{namespace}:{name}"),
            uid: uid.to_owned(),
            groups: vec![
                "system:serviceaccounts".into(),
                format!("system:serviceaccounts:{namespace}"),
                AUTHENTICATED.into(),
            ],
            extra: BTreeMap::new(),
        }
    }

    /// Whether the user is in `group`.
    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|have| have == group)
    }
}
