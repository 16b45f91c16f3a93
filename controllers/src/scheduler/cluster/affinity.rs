//! Node selectors and node affinity. Pure.

use k8s_openapi::api::core::v1::{PodSpec, PreferredSchedulingTerm};
use proa_crds::node_selector::{is_empty, term_selects};
pub(crate) use proa_crds::selects_node;
use std::collections::{BTreeMap, BTreeSet};

/// Labels of a node.
pub(crate) type Labels = BTreeMap<String, String>;

/// Whether the node has the labels of `nodeSelector` and matches the required node affinity.
pub(crate) fn required_matches(spec: &PodSpec, name: &str, labels: &Labels) -> bool {
    if spec.node_selector.iter().flatten().any(|(key, value)| labels.get(key) != Some(value)) {
        return false;
    }
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    match affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref()) {
        None => true,
        Some(required) => selects_node(required, name, labels),
    }
}

/// The names of the only nodes a required affinity can match, when each of its terms names them (as pods of DaemonSets do).
pub(crate) fn only_names(spec: &PodSpec) -> Option<BTreeSet<&str>> {
    let affinity = spec.affinity.as_ref()?.node_affinity.as_ref()?;
    let required = affinity.required_during_scheduling_ignored_during_execution.as_ref()?;
    let mut names = BTreeSet::new();
    for term in &required.node_selector_terms {
        let mut fields = term.match_fields.iter().flatten();
        let named = fields.find(|field| field.key == "metadata.name" && field.operator == "In")?;
        names.extend(named.values.iter().flatten().map(String::as_str));
    }
    (!required.node_selector_terms.is_empty()).then_some(names)
}

/// The sum of the weights of the preferred terms the node matches. Unlike a required one, an empty preferred term matches
/// every node (API documentation).
pub(crate) fn preferred_weight(preferred: &[PreferredSchedulingTerm], name: &str, labels: &Labels) -> i64 {
    let matches =
        |term: &&PreferredSchedulingTerm| is_empty(&term.preference) || term_selects(&term.preference, name, labels);
    preferred.iter().filter(matches).map(|term| i64::from(term.weight)).sum()
}

/// The preferred terms of a pod.
pub(crate) fn preferences(spec: &PodSpec) -> &[PreferredSchedulingTerm] {
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let preferred = affinity.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_deref());
    preferred.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn spec(node_affinity: Value, selector: Value) -> PodSpec {
        let value = json!({"containers": [], "nodeSelector": selector, "affinity": {"nodeAffinity": node_affinity}});
        serde_json::from_value(value).unwrap()
    }

    fn required(terms: Value) -> PodSpec {
        spec(json!({"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}), json!({}))
    }

    fn labels() -> Labels {
        [("zone", "a"), ("cores", "8")].into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
    }

    #[test]
    fn operators_mean_what_the_api_says() {
        let cases = [
            (json!({"key": "zone", "operator": "In", "values": ["a", "b"]}), true),
            (json!({"key": "zone", "operator": "NotIn", "values": ["a"]}), false),
            (json!({"key": "none", "operator": "NotIn", "values": ["a"]}), true),
            (json!({"key": "zone", "operator": "Exists"}), true),
            (json!({"key": "none", "operator": "DoesNotExist"}), true),
            (json!({"key": "cores", "operator": "Gt", "values": ["4"]}), true),
            (json!({"key": "cores", "operator": "Gt", "values": ["8"]}), false),
            (json!({"key": "cores", "operator": "Lt", "values": ["9"]}), true),
            (json!({"key": "zone", "operator": "Gt", "values": ["1"]}), false),
            (json!({"key": "none", "operator": "Lt", "values": ["1"]}), false),
        ];
        for (requirement, expected) in cases {
            let spec = required(json!([{"matchExpressions": [requirement]}]));
            assert_eq!(required_matches(&spec, "n1", &labels()), expected, "{requirement}");
        }
    }

    #[test]
    fn terms_are_alternatives_and_what_is_in_a_term_must_all_hold() {
        let zone = |zone: &str| json!({"key": "zone", "operator": "In", "values": [zone]});
        let name = |name: &str| json!({"key": "metadata.name", "operator": "In", "values": [name]});
        assert!(required_matches(
            &required(json!([{"matchExpressions": [zone("x")]}, {"matchFields": [name("n1")]}])),
            "n1",
            &labels()
        ));
        assert!(!required_matches(
            &required(json!([{"matchExpressions": [zone("x")], "matchFields": [name("n1")]}])),
            "n1",
            &labels()
        ));
        assert!(!required_matches(&required(json!([{}])), "n1", &labels()), "an empty term matches nothing");
    }

    #[test]
    fn a_node_selector_asks_for_every_label() {
        assert!(required_matches(&spec(json!({}), json!({"zone": "a"})), "n1", &labels()));
        assert!(!required_matches(&spec(json!({}), json!({"zone": "a", "disk": "ssd"})), "n1", &labels()));
    }

    #[test]
    fn preferences_add_up() {
        let term = |weight, zone| json!({"weight": weight, "preference": {"matchExpressions": [{"key": "zone", "operator": "In", "values": [zone]}]}});
        let spec = spec(
            json!({"preferredDuringSchedulingIgnoredDuringExecution": [term(7, "a"), term(5, "b"), {"weight": 1, "preference": {}}]}),
            json!({}),
        );
        assert_eq!(preferred_weight(preferences(&spec), "n1", &labels()), 8);
    }
}
