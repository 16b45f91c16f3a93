//! Node selectors: by them pods say where they may run, and volumes from where they can be reached.

use k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm};
use std::collections::BTreeMap;

/// Whether a node of that name and those labels is among those selected: the terms are alternatives, what is in a term
/// must all hold, and an empty term selects nothing.
pub fn selects_node(selector: &NodeSelector, name: &str, labels: &BTreeMap<String, String>) -> bool {
    selector.node_selector_terms.iter().any(|term| term_selects(term, name, labels))
}

/// Whether a node of that name and those labels is what the term asks for; an empty one selects nothing.
pub fn term_selects(term: &NodeSelectorTerm, name: &str, labels: &BTreeMap<String, String>) -> bool {
    let label = |key: &str| labels.get(key).map(String::as_str);
    let field = |key: &str| (key == "metadata.name").then_some(name);
    !is_empty(term)
        && term.match_expressions.iter().flatten().all(|requirement| holds(requirement, label))
        && term.match_fields.iter().flatten().all(|requirement| holds(requirement, field))
}

/// Whether the term asks for nothing.
pub fn is_empty(term: &NodeSelectorTerm) -> bool {
    term.match_expressions.as_ref().is_none_or(Vec::is_empty) && term.match_fields.as_ref().is_none_or(Vec::is_empty)
}

fn holds<'a>(requirement: &NodeSelectorRequirement, lookup: impl Fn(&str) -> Option<&'a str>) -> bool {
    let value = lookup(&requirement.key);
    let values = requirement.values.as_deref().unwrap_or_default();
    let compared = || Some(value?.parse::<i64>().ok()?.cmp(&values.first()?.parse().ok()?));
    match requirement.operator.as_str() {
        "In" => value.is_some_and(|value| values.iter().any(|wanted| wanted == value)),
        "NotIn" => !value.is_some_and(|value| values.iter().any(|wanted| wanted == value)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compared().is_some_and(|order| order.is_gt()),
        "Lt" => compared().is_some_and(|order| order.is_lt()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_volume_is_reached_from_the_nodes_it_names() {
        let labels = [("zone", "a"), ("cores", "8")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        for (terms, expected) in [
            (json!([]), false),
            (json!([{}]), false),
            (json!([{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["b", "a"]}]}]), true),
            (json!([{"matchExpressions": [{"key": "zone", "operator": "NotIn", "values": ["a"]}]}]), false),
            (
                json!([{"matchExpressions": [{"key": "none", "operator": "Exists"}]}, {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n"]}]}]),
                true,
            ),
            (
                json!([{"matchExpressions": [{"key": "cores", "operator": "Gt", "values": ["4"]}, {"key": "none", "operator": "Exists"}]}]),
                false,
            ),
            (json!([{"matchExpressions": [{"key": "cores", "operator": "Lt", "values": ["9"]}]}]), true),
        ] {
            let selector: NodeSelector =
                serde_json::from_value(json!({"nodeSelectorTerms": terms})).expect("a selector");
            assert_eq!(selects_node(&selector, "n", &labels), expected, "{terms}");
        }
    }
}
