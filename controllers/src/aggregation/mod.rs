//! Aggregated ClusterRoles: their rules are those of the roles their selectors select.
//!
//! Owns: `rules` of every ClusterRole that has an `aggregationRule`. Never any other role.

use crate::{
    ActError, Context, Informer, Key, Loop, Plan, Queue, Writes,
    patch::{json, params},
    selector,
};
use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use kube::{ResourceExt, api::Patch};
use serde_json::json;
use std::sync::Arc;

/// The aggregation loop.
pub struct Aggregation {
    roles: Informer<ClusterRole>,
}

impl Aggregation {
    /// The loop of that context.
    pub fn new(context: &Context) -> Self {
        Aggregation { roles: context.informers.of() }
    }
}

/// An aggregated role and every other.
#[derive(Debug)]
pub struct Seen {
    role: Arc<ClusterRole>,
    others: Vec<Arc<ClusterRole>>,
}

/// The rules a role must have; `None` when it is not aggregated.
fn wanted(seen: &Seen) -> Option<Vec<PolicyRule>> {
    let selectors = seen.role.aggregation_rule.as_ref()?.cluster_role_selectors.as_ref()?;
    let mut rules: Vec<PolicyRule> = Vec::new();
    for selector in selectors {
        // By name, because the informer's list is ordered: the same roles always give the same rules.
        for other in seen.others.iter().filter(|other| other.name_any() != seen.role.name_any()) {
            if selector::matches(selector, other.metadata.labels.as_ref()) {
                for rule in other.rules.iter().flatten() {
                    if !rules.contains(rule) {
                        rules.push(rule.clone());
                    }
                }
            }
        }
    }
    Some(rules)
}

/// Decides whether the rules must be written.
fn plan(seen: &Seen) -> Plan<Vec<PolicyRule>> {
    match wanted(seen) {
        Some(rules) if rules.as_slice() != seen.role.rules.as_deref().unwrap_or_default() => Plan::act(vec![rules]),
        _ => Plan::nothing(),
    }
}

impl Loop for Aggregation {
    type Seen = Seen;
    type Action = Vec<PolicyRule>;

    fn name(&self) -> &'static str {
        "clusterrole-aggregation"
    }

    fn wire(&self, queue: &Queue) {
        let (to, roles) = (queue.clone(), self.roles.clone());
        self.roles.on_change(move |change| {
            let settled = matches!((&change.old, &change.new), (Some(old), Some(new)) if old.rules == new.rules && old.metadata.labels == new.metadata.labels && old.aggregation_rule == new.aggregation_rule);
            if settled {
                return;
            }
            for role in roles.list().iter().filter(|role| role.aggregation_rule.is_some()) {
                to.add(Key::of(role.as_ref()));
            }
        });
    }

    fn ready(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.roles.synced())
    }

    fn see(&self, key: &Key) -> Option<Seen> {
        let role = self.roles.get(key).filter(|role| role.aggregation_rule.is_some())?;
        Some(Seen { role, others: self.roles.list() })
    }

    fn plan(&self, seen: &Seen, _: Timestamp) -> Plan<Vec<PolicyRule>> {
        plan(seen)
    }

    async fn act(&self, key: &Key, rules: Vec<PolicyRule>, writes: &Writes) -> Result<(), ActError> {
        let patch = json!({"rules": json(&rules)});
        let written = self.roles.cluster_api().patch(&key.name, &params(), &Patch::Merge(&patch)).await?;
        writes.wrote(&self.roles, &written);
        Ok(())
    }

    fn workers(&self) -> usize {
        1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role(name: &str, edit: serde_json::Value) -> Arc<ClusterRole> {
        let mut role = json!({"metadata": {"name": name}});
        crate::sim::merge(&mut role, &edit);
        Arc::new(serde_json::from_value(role).expect("a role"))
    }

    #[test]
    fn a_role_gets_the_rules_of_those_it_selects_once_each() {
        let rule = |verb: &str| json!({"apiGroups": [""], "resources": ["pods"], "verbs": [verb]});
        let labeled = |name, verbs: &[&str]| {
            role(
                name,
                json!({"metadata": {"labels": {"to-admin": "true"}}, "rules": verbs.iter().map(|verb| rule(verb)).collect::<Vec<_>>()}),
            )
        };
        let admin = json!({"aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"to-admin": "true"}}]}});
        let others = vec![
            labeled("a", &["get", "list"]),
            labeled("b", &["list", "watch"]),
            role("c", json!({"rules": [rule("delete")]})),
        ];
        let Plan { actions, .. } = plan(&Seen { role: role("admin", admin.clone()), others: others.clone() });
        let verbs: Vec<_> = actions[0].iter().map(|rule| rule.verbs[0].as_str()).collect();
        assert_eq!(verbs, ["get", "list", "watch"]);
        let mut settled = admin;
        settled["rules"] = json(&actions[0]);
        assert!(plan(&Seen { role: role("admin", settled), others: others.clone() }).actions.is_empty());
        assert!(plan(&Seen { role: others[2].clone(), others }).actions.is_empty());
    }
}
