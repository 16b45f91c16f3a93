//! Nobody hands out more than they hold.
//!
//! Writing a role needs every permission it grants (or the verb `escalate`); writing a binding needs
//! every permission of its role (or the verb `bind`). An aggregation rule gathers whatever others write, so
//! it needs every permission there is. Kubernetes, "Privilege escalation prevention".

use proa_apimachinery::object::Object;
use proa_apimachinery::status::{ApiError, GroupResource};

use super::rbac::{Rule, rules};
use super::{Attributes, allowed};
use crate::core::Core;
use crate::user::{MASTERS, User};

const GROUP: &str = "rbac.authorization.k8s.io";

/// Checks a create or update of an RBAC object; every other resource passes.
pub fn check(
    core: &Core,
    user: &User,
    group: &str,
    resource: &str,
    namespace: &str,
    new: &Object,
    old: Option<&Object>,
) -> Result<(), ApiError> {
    if group != GROUP || user.in_group(MASTERS) || old.is_some_and(|old| only_collects_garbage(new, old)) {
        return Ok(());
    }
    let may = |verb: &str, resource: &str, name: &str| {
        let what = Attributes { verb, group: GROUP, resource, namespace, name, ..Attributes::default() };
        allowed(core, user, &what)
    };
    let held = || core.rbac.rules(&core.caches, user, namespace);
    match resource {
        "roles" | "clusterroles" => {
            if may("escalate", resource, new.name()) {
                return Ok(());
            }
            let held = held();
            granting(user, resource, new, &rules(new), &held)?;
            let aggregates = [Some(new), old].into_iter().flatten().any(has_aggregation_rule);
            if aggregates && everything().iter().any(|rule| !uncovered(rule, &held).is_empty()) {
                let why = "must have cluster-admin privileges to use the aggregationRule";
                return Err(ApiError::forbidden(GroupResource::new(GROUP, resource), new.name(), why));
            }
            Ok(())
        }
        "rolebindings" | "clusterrolebindings" => {
            let name = new.get_str(&["roleRef", "name"]).unwrap_or_default();
            let (role_resource, role_namespace) = match new.get_str(&["roleRef", "kind"]) {
                Some("Role") => ("roles", namespace),
                _ => ("clusterroles", ""),
            };
            if may("bind", role_resource, name) {
                return Ok(());
            }
            // A binding to a role that does not exist grants nothing now, but would later.
            let role = core.caches.resource(&format!("{role_resource}.{GROUP}")).get(role_namespace, name);
            let role = role.ok_or_else(|| ApiError::not_found(GroupResource::new(GROUP, role_resource), name))?;
            granting(user, resource, new, &rules(&role.object()), &held())
        }
        _ => Ok(()),
    }
}

/// Refuses to grant what is not held.
fn granting(user: &User, resource: &str, new: &Object, granted: &[Rule], held: &[Rule]) -> Result<(), ApiError> {
    let missing: Vec<String> = granted.iter().flat_map(|rule| uncovered(rule, held)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let why = format!(
        "user \"{}\" (groups={:?}) is attempting to grant RBAC permissions not currently held:\n{}",
        user.name,
        user.groups,
        missing.join("\n")
    );
    Err(ApiError::forbidden(GroupResource::new(GROUP, resource), new.name(), &why))
}

fn has_aggregation_rule(role: &Object) -> bool {
    role.get(&["aggregationRule"]).is_some_and(|rule| !rule.is_null())
}

/// What only a cluster administrator holds.
fn everything() -> [Rule; 2] {
    let all = || vec!["*".to_owned()];
    [
        Rule { groups: all(), resources: all(), verbs: all(), ..Rule::default() },
        Rule { verbs: all(), urls: all(), ..Rule::default() },
    ]
}

/// Whether an update does no more than the garbage collector must be able to do with any object. Labels do count:
/// by a label a role becomes part of an aggregated one.
fn only_collects_garbage(new: &Object, old: &Object) -> bool {
    fn rest(object: &Object) -> Object {
        let mut object = object.clone();
        let metadata = object.metadata_mut();
        for field in ["finalizers", "ownerReferences", "managedFields", "resourceVersion"] {
            metadata.shift_remove(field);
        }
        object
    }
    rest(new) == rest(old)
}

/// The single permissions of `rule` that no held rule covers, as Kubernetes prints them.
fn uncovered(rule: &Rule, held: &[Rule]) -> Vec<String> {
    let mut missing = Vec::new();
    for verb in &rule.verbs {
        for url in &rule.urls {
            let covered = held.iter().any(|have| {
                contains(&have.verbs, verb)
                    && have.urls.iter().any(|covering| {
                        covering == "*"
                            || covering == url
                            || covering.strip_suffix('*').is_some_and(|prefix| url.starts_with(prefix))
                    })
            });
            if !covered {
                missing.push(format!("{{NonResourceURLs:[{url:?}], Verbs:[{verb:?}]}}"));
            }
        }
        for group in &rule.groups {
            for resource in &rule.resources {
                let names: Vec<Option<&String>> =
                    if rule.names.is_empty() { vec![None] } else { rule.names.iter().map(Some).collect() };
                for name in names {
                    let covered = held.iter().any(|have| {
                        contains(&have.verbs, verb)
                            && contains(&have.groups, group)
                            && holds_resource(&have.resources, resource)
                            && (have.names.is_empty() || name.is_some_and(|name| have.names.contains(name)))
                    });
                    if !covered {
                        let named = name.map_or(String::new(), |name| format!(", ResourceNames:[{name:?}]"));
                        missing.push(format!(
                            "{{APIGroups:[{group:?}], Resources:[{resource:?}]{named}, Verbs:[{verb:?}]}}"
                        ));
                    }
                }
            }
        }
    }
    missing
}

fn contains(have: &[String], wanted: &str) -> bool {
    have.iter().any(|one| one == "*" || one == wanted)
}

fn holds_resource(have: &[String], wanted: &str) -> bool {
    contains(have, wanted)
        || wanted.split_once('/').is_some_and(|(_, sub)| have.iter().any(|one| *one == format!("*/{sub}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_is_only_covered_by_a_wildcard() {
        let rule = |resources: &[&str]| Rule {
            groups: vec![String::new()],
            resources: resources.iter().map(|text| (*text).to_owned()).collect(),
            verbs: vec!["get".into()],
            ..Rule::default()
        };
        assert!(uncovered(&rule(&["pods"]), &[rule(&["pods", "secrets"])]).is_empty());
        assert_eq!(uncovered(&rule(&["*"]), &[rule(&["pods"])]).len(), 1);
        assert!(uncovered(&rule(&["pods"]), &[rule(&["*"])]).is_empty());
        assert!(everything().iter().all(|rule| uncovered(rule, &everything()).is_empty()));
        assert!(everything().iter().all(|all| !uncovered(all, &[rule(&["*"])]).is_empty()));
    }

    #[test]
    fn the_garbage_collector_may_touch_what_it_could_not_grant() {
        let role = |metadata: serde_json::Value| Object::from_value(serde_json::json!({"metadata": metadata})).unwrap();
        let old = role(serde_json::json!({"name": "a", "finalizers": ["x/y"], "resourceVersion": "1"}));
        assert!(only_collects_garbage(&role(serde_json::json!({"name": "a"})), &old));
        assert!(!only_collects_garbage(&role(serde_json::json!({"name": "a", "labels": {"to": "admin"}})), &old));
    }
}
