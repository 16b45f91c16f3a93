//! Owns the strategies of roles and their bindings. Never authorizes.

use proa_apimachinery::field::{FieldError, FieldErrors, Path};
use proa_apimachinery::{Object, names};
use serde_json::Value;

use super::at::{At, map_at, maps_at, or_set};
use super::{Rules, pod};

const GROUP: &str = "rbac.authorization.k8s.io";

const ANY: Rules = Rules { name: names::is_path_segment, ..Rules::GENERIC };

pub(super) const ROLE: Rules =
    Rules { validate: |_, new, _, errors| rules(&At::of(new, "rules"), true, errors), ..ANY };

pub(super) const CLUSTER_ROLE: Rules = Rules {
    validate: |_, new, _, errors| {
        rules(&At::of(new, "rules"), false, errors);
        let aggregation = At::of(new, "aggregationRule");
        if aggregation.present() {
            let selectors = aggregation.child("clusterRoleSelectors");
            if selectors.is_empty() {
                selectors.missing(errors, "at least one clusterRoleSelector required if aggregationRule is non-nil");
            }
            for selector in selectors.items() {
                pod::label_selector(&selector, errors);
            }
        }
    },
    ..ANY
};

pub(super) const ROLE_BINDING: Rules = Rules {
    default: binding_defaults,
    validate: |_, new, old, errors| binding(new, old, &["ClusterRole", "Role"], errors),
    ..ANY
};

pub(super) const CLUSTER_ROLE_BINDING: Rules = Rules {
    default: binding_defaults,
    validate: |_, new, old, errors| binding(new, old, &["ClusterRole"], errors),
    ..ANY
};

fn rules(rules: &At<'_>, namespaced: bool, errors: &mut FieldErrors) {
    for rule in rules.items() {
        let verbs = rule.child("verbs");
        if verbs.is_empty() {
            verbs.missing(errors, "verbs must contain at least one value");
        }
        let urls = rule.child("nonResourceURLs");
        let (groups, resources) = (rule.child("apiGroups"), rule.child("resources"));
        if !urls.is_empty() {
            if namespaced {
                urls.invalid(errors, "namespaced rules cannot apply to non-resource URLs");
            }
            if !groups.is_empty() || !resources.is_empty() || !rule.child("resourceNames").is_empty() {
                urls.invalid(errors, "rules cannot apply to both regular resources and non-resource URLs");
            }
            continue;
        }
        if groups.is_empty() {
            groups.missing(errors, "resource rules must supply at least one api group");
        }
        if resources.is_empty() {
            resources.missing(errors, "resource rules must supply at least one resource");
        }
    }
}

fn binding_defaults(object: &mut Object) {
    if let Some(role) = map_at(&mut object.0, "roleRef") {
        or_set(role, "apiGroup", GROUP);
    }
    for subject in maps_at(&mut object.0, "subjects") {
        if matches!(subject.get("kind").and_then(Value::as_str), Some("User" | "Group")) {
            or_set(subject, "apiGroup", GROUP);
        }
    }
}

fn binding(new: &Object, old: Option<&Object>, kinds: &[&str], errors: &mut FieldErrors) {
    let role = At::of(new, "roleRef");
    let group = role.child("apiGroup");
    if group.str() != GROUP {
        group.not_supported(errors, &[GROUP]);
    }
    if !kinds.contains(&role.child("kind").str()) {
        role.child("kind").not_supported(errors, kinds);
    }
    role.child("name").require(errors, names::is_path_segment);
    for subject in At::of(new, "subjects").items() {
        let (name, group) = (subject.child("name"), subject.child("apiGroup"));
        name.required(errors);
        match subject.child("kind").str() {
            "ServiceAccount" => {
                name.check(errors, names::is_dns1123_subdomain);
                if !group.str().is_empty() {
                    group.not_supported(errors, &[""]);
                }
                if subject.child("namespace").is_empty() {
                    subject.child("namespace").missing(errors, "");
                }
            }
            "User" | "Group" => {
                if group.str() != GROUP {
                    group.not_supported(errors, &[GROUP]);
                }
            }
            _ => subject.child("kind").not_supported(errors, &["Group", "ServiceAccount", "User"]),
        }
    }
    if let Some(old) = old
        && new.0.get("roleRef") != old.0.get("roleRef")
    {
        let shown = new.0.get("roleRef").cloned().unwrap_or(Value::Null);
        errors.push(FieldError::invalid(&Path::of("roleRef"), shown, "cannot change roleRef"));
    }
}
