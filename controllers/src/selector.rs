//! `metav1.LabelSelector` against labels.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use proa_crds::reasons;
use std::collections::BTreeMap;

/// What is wrong with a workload whose selector does not select the pods its template makes.
pub const MISMATCH: &str = "`selector` does not match template `labels`";

/// Whether the selector selects those labels. An operator that does not exist selects nothing; an empty selector
/// selects everything.
pub fn matches(selector: &LabelSelector, labels: Option<&BTreeMap<String, String>>) -> bool {
    let value = |key: &str| labels.and_then(|labels| labels.get(key));
    selector.match_labels.iter().flatten().all(|(key, wanted)| value(key) == Some(wanted))
        && selector.match_expressions.iter().flatten().all(|requirement| {
            let held = value(&requirement.key);
            let listed = |held: &String| requirement.values.iter().flatten().any(|value| value == held);
            match requirement.operator.as_str() {
                "In" => held.is_some_and(listed),
                "NotIn" => !held.is_some_and(listed),
                "Exists" => held.is_some(),
                "DoesNotExist" => held.is_none(),
                _ => false,
            }
        })
}

/// Whether the selector says nothing, and so selects everything.
pub fn is_empty(selector: &LabelSelector) -> bool {
    selector.match_labels.as_ref().is_none_or(BTreeMap::is_empty)
        && selector.match_expressions.as_ref().is_none_or(Vec::is_empty)
}

/// The selector as in a `labelSelector` query.
pub fn query(selector: &LabelSelector) -> String {
    let equal = selector.match_labels.iter().flatten().map(|(key, value)| format!("{key}={value}"));
    let others = selector.match_expressions.iter().flatten().map(|requirement| {
        let key = &requirement.key;
        let values = requirement.values.as_deref().unwrap_or_default().join(",");
        match requirement.operator.as_str() {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "DoesNotExist" => format!("!{key}"),
            _ => key.clone(),
        }
    });
    equal.chain(others).collect::<Vec<_>>().join(",")
}

/// Why an owner makes no pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Of its condition and event.
    pub reason: &'static str,
    /// One sentence.
    pub message: String,
}

/// The reasons a [`Refusal`] may have.
pub(crate) const REFUSALS: [&str; 2] = [reasons::SELECTOR_MISMATCH, reasons::SELECTING_ALL];

/// Why a selector cannot tell an owner's pods from others. An API server of the standard family refuses such objects.
///
/// Pods that are not selected would be given up as soon as they are made, and others made in their place, without end.
pub(crate) fn refused(
    selector: &LabelSelector,
    template: Option<&BTreeMap<String, String>>,
    owner: &str,
) -> Option<Refusal> {
    if is_empty(selector) {
        let message = format!("This {owner} is selecting all pods. A non-empty selector is required.");
        return Some(Refusal { reason: reasons::SELECTING_ALL, message });
    }
    let mismatch = || Refusal { reason: reasons::SELECTOR_MISMATCH, message: MISMATCH.to_owned() };
    (!matches(selector, template)).then(mismatch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(selector: serde_json::Value, labels: &[(&str, &str)]) -> bool {
        let labels = labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        matches(&serde_json::from_value(selector).expect("a selector"), Some(&labels))
    }

    #[test]
    fn a_selector_is_written_as_a_query() {
        let selector = json!({"matchLabels": {"a": "1"}, "matchExpressions": [
            {"key": "b", "operator": "In", "values": ["x", "y"]}, {"key": "c", "operator": "NotIn", "values": ["z"]},
            {"key": "d", "operator": "Exists"}, {"key": "e", "operator": "DoesNotExist"},
        ]});
        assert_eq!(query(&serde_json::from_value(selector).expect("a selector")), "a=1,b in (x,y),c notin (z),d,!e");
    }

    #[test]
    fn labels_and_expressions_must_all_hold() {
        assert!(check(json!({"matchLabels": {"a": "1"}}), &[("a", "1"), ("b", "2")]));
        assert!(!check(json!({"matchLabels": {"a": "1", "b": "1"}}), &[("a", "1"), ("b", "2")]));
        assert!(check(
            json!({"matchExpressions": [{"key": "a", "operator": "In", "values": ["0", "1"]}]}),
            &[("a", "1")]
        ));
        assert!(!check(json!({"matchExpressions": [{"key": "a", "operator": "In", "values": ["0", "1"]}]}), &[]));
        assert!(check(json!({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["0"]}]}), &[]));
        assert!(!check(
            json!({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}),
            &[("a", "1")]
        ));
        assert!(check(json!({"matchExpressions": [{"key": "a", "operator": "Exists"}]}), &[("a", "")]));
        assert!(!check(json!({"matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]}), &[("a", "")]));
        assert!(!check(json!({"matchExpressions": [{"key": "a", "operator": "Gt"}]}), &[("a", "1")]));
        assert!(check(json!({}), &[]));
    }
}
