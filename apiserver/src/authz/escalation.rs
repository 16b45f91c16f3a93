//! Nobody hands out more than they hold.
//!
//! Writing a role needs every permission it grants (or the verb `escalate`); writing a binding needs
//! every permission of its role (or the verb `bind`). Kubernetes, "Privilege escalation prevention".

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
    if group != GROUP || user.in_group(MASTERS) {
        return Ok(());
    }
    let (granted, verb, target, target_name) = match resource {
        "roles" | "clusterroles" => {
            if old.is_some_and(|old| old.get(&["rules"]) == new.get(&["rules"])) {
                return Ok(());
            }
            (rules(new), "escalate", resource.to_owned(), new.name().to_owned())
        }
        "rolebindings" | "clusterrolebindings" => {
            let same = |key: &str| old.is_some_and(|old| old.get(&[key]) == new.get(&[key]));
            if same("roleRef") && same("subjects") {
                return Ok(());
            }
            let name = new.get_str(&["roleRef", "name"]).unwrap_or_default().to_owned();
            let (role_resource, role_namespace) = match new.get_str(&["roleRef", "kind"]) {
                Some("Role") => ("roles", namespace),
                _ => ("clusterroles", ""),
            };
            let role = core.caches.resource(&format!("{role_resource}.{GROUP}")).get(role_namespace, &name);
            let granted = role.map(|item| rules(&item.object()));
            let Some(granted) = granted else {
                // A binding to a role that does not exist grants nothing now, but would later.
                let may = allowed(
                    core,
                    user,
                    &Attributes {
                        verb: "bind",
                        group: GROUP,
                        resource: role_resource,
                        namespace,
                        name: &name,
                        ..Attributes::default()
                    },
                );
                return if may {
                    Ok(())
                } else {
                    Err(ApiError::not_found(GroupResource::new(GROUP, role_resource), &name))
                };
            };
            (granted, "bind", role_resource.to_owned(), name)
        }
        _ => return Ok(()),
    };
    let may =
        Attributes { verb, group: GROUP, resource: &target, namespace, name: &target_name, ..Attributes::default() };
    if allowed(core, user, &may) {
        return Ok(());
    }
    let held = core.rbac.rules(&core.caches, user, namespace);
    let missing: Vec<String> = granted.iter().flat_map(|rule| uncovered(rule, &held)).collect();
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
    }
}
