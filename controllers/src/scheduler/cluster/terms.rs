//! Who a pod wants to be near, or apart from: label selectors and affinity terms, compiled once, comparable and hashable so
//! that pods of one template share one count. Pure.

use super::affinity::Labels;
use k8s_openapi::{
    api::core::v1::{PodAffinityTerm, TopologySpreadConstraint},
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use std::collections::{BTreeMap, BTreeSet};

/// Labels of namespaces, by name.
pub(crate) type Namespaces = BTreeMap<String, Labels>;

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
    /// An operator nobody knows is never satisfied.
    Unknown,
}

/// One requirement on a label.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Requirement {
    key: String,
    operator: Operator,
    values: Vec<String>,
}

impl Requirement {
    fn new(key: &str, operator: Operator, mut values: Vec<String>) -> Requirement {
        values.sort();
        Requirement { key: key.to_owned(), operator, values }
    }

    fn holds(&self, labels: &Labels) -> bool {
        let held = labels.get(&self.key);
        let among = |held: &String| self.values.iter().any(|value| value == held);
        match self.operator {
            Operator::In => held.is_some_and(among),
            Operator::NotIn => !held.is_some_and(among),
            Operator::Exists => held.is_some(),
            Operator::DoesNotExist => held.is_none(),
            Operator::Unknown => false,
        }
    }
}

/// A label selector. Without one (`null`) it selects nothing; one that says nothing selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Selector(Option<Vec<Requirement>>);

impl Selector {
    pub(crate) fn of(selector: Option<&LabelSelector>) -> Selector {
        let Some(selector) = selector else { return Selector(None) };
        let mut all: Vec<Requirement> = selector
            .match_labels
            .iter()
            .flatten()
            .map(|(key, value)| Requirement::new(key, Operator::In, vec![value.clone()]))
            .collect();
        all.extend(selector.match_expressions.iter().flatten().map(|requirement| {
            let operator = match requirement.operator.as_str() {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                _ => Operator::Unknown,
            };
            Requirement::new(&requirement.key, operator, requirement.values.clone().unwrap_or_default())
        }));
        all.sort();
        Selector(Some(all))
    }

    /// A selector that asks for each of these labels.
    pub(crate) fn labels(labels: &Labels) -> Selector {
        let all = labels.iter().map(|(key, value)| Requirement::new(key, Operator::In, vec![value.clone()]));
        Selector(Some(all.collect()))
    }

    /// Asks for all that the other asks for, too.
    pub(crate) fn also(&mut self, other: Selector) {
        if let (Some(all), Some(more)) = (&mut self.0, other.0) {
            all.extend(more);
            all.sort();
            all.dedup();
        }
    }

    fn require(&mut self, key: &str, operator: Operator, value: &str) {
        self.also(Selector(Some(vec![Requirement::new(key, operator, vec![value.to_owned()])])));
    }

    pub(crate) fn matches(&self, labels: &Labels) -> bool {
        self.0.as_ref().is_some_and(|all| all.iter().all(|requirement| requirement.holds(labels)))
    }

    pub(crate) fn is_everything(&self) -> bool {
        self.0.as_ref().is_some_and(Vec::is_empty)
    }

    /// A label every selected object has: what a selector can be found by.
    fn anchor(&self) -> Option<(&str, &str)> {
        self.0.iter().flatten().find_map(|requirement| match (&requirement.operator, requirement.values.as_slice()) {
            (Operator::In, [only]) => Some((requirement.key.as_str(), only.as_str())),
            _ => None,
        })
    }
}

/// Pods of some namespaces that a selector selects.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Scope {
    namespaces: BTreeSet<String>,
    /// Namespaces besides those named.
    namespace_selector: Selector,
    selector: Selector,
}

impl Scope {
    /// The pods of one namespace.
    pub(crate) fn within(namespace: &str, selector: Selector) -> Scope {
        Scope { namespaces: [namespace.to_owned()].into(), namespace_selector: Selector(None), selector }
    }

    pub(crate) fn matches(&self, namespace: &str, labels: &Labels, namespaces: &Namespaces) -> bool {
        self.selector.matches(labels)
            && (self.namespaces.contains(namespace)
                || self.namespace_selector.is_everything()
                || (self.namespace_selector.0.is_some()
                    && namespaces.get(namespace).is_some_and(|labels| self.namespace_selector.matches(labels))))
    }

    /// Whether labels of namespaces decide.
    pub(crate) fn looks_at_namespaces(&self) -> bool {
        self.namespace_selector.0.is_some()
    }

    pub(crate) fn anchor(&self) -> Option<(&str, &str)> {
        self.selector.anchor()
    }
}

/// `PodAffinityTerm`: the pods meant, and what "the same place" is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Term {
    pub(crate) topology_key: String,
    pub(crate) scope: Scope,
}

impl Term {
    /// A term of a pod in that namespace with those labels: `matchLabelKeys` and `mismatchLabelKeys` take the values of its
    /// own labels (KEP-3633), and without namespaces its own is meant.
    pub(crate) fn of(term: &PodAffinityTerm, namespace: &str, labels: &Labels) -> Term {
        let mut selector = Selector::of(term.label_selector.as_ref());
        for (keys, operator) in [(&term.match_label_keys, Operator::In), (&term.mismatch_label_keys, Operator::NotIn)] {
            for key in keys.iter().flatten() {
                if let Some(value) = labels.get(key) {
                    selector.require(key, operator.clone(), value);
                }
            }
        }
        let mut namespaces: BTreeSet<String> = term.namespaces.iter().flatten().cloned().collect();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.insert(namespace.to_owned());
        }
        let namespace_selector = Selector::of(term.namespace_selector.as_ref());
        Term { topology_key: term.topology_key.clone(), scope: Scope { namespaces, namespace_selector, selector } }
    }
}

/// `TopologySpreadConstraint`, compiled.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Constraint {
    pub(crate) topology_key: String,
    pub(crate) max_skew: i64,
    pub(crate) min_domains: i64,
    pub(crate) must_hold: bool,
    pub(crate) selector: Selector,
    /// Nodes the pod's own node affinity and selector exclude do not count (KEP-3094).
    pub(crate) honors_affinity: bool,
    /// Nodes with a taint the pod does not tolerate do not count (KEP-3094).
    pub(crate) honors_taints: bool,
}

impl Constraint {
    /// A constraint of a pod with those labels; `matchLabelKeys` take their values from there (KEP-3243).
    pub(crate) fn of(constraint: &TopologySpreadConstraint, labels: &Labels) -> Constraint {
        let mut selector = Selector::of(constraint.label_selector.as_ref());
        for key in constraint.match_label_keys.iter().flatten() {
            if let Some(value) = labels.get(key) {
                selector.require(key, Operator::In, value);
            }
        }
        Constraint {
            topology_key: constraint.topology_key.clone(),
            max_skew: i64::from(constraint.max_skew),
            min_domains: i64::from(constraint.min_domains.unwrap_or(1)),
            must_hold: constraint.when_unsatisfiable != "ScheduleAnyway",
            selector,
            honors_affinity: constraint.node_affinity_policy.as_deref() != Some("Ignore"),
            honors_taints: constraint.node_taints_policy.as_deref() == Some("Honor"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn labels(value: Value) -> Labels {
        serde_json::from_value(value).unwrap()
    }

    fn term(value: Value) -> Term {
        Term::of(&serde_json::from_value(value).unwrap(), "own", &labels(json!({"app": "web", "hash": "1"})))
    }

    #[test]
    fn a_term_means_its_own_namespace_the_named_ones_or_the_selected_ones() {
        let namespaces: Namespaces =
            [("own".to_owned(), labels(json!({}))), ("blue".to_owned(), labels(json!({"team": "blue"})))].into();
        let select = json!({"matchLabels": {"app": "db"}});
        let db = labels(json!({"app": "db"}));
        for (term_, own, blue, other) in [
            (json!({"topologyKey": "zone", "labelSelector": select}), true, false, false),
            (json!({"topologyKey": "zone", "labelSelector": select, "namespaces": ["blue"]}), false, true, false),
            (json!({"topologyKey": "zone", "labelSelector": select, "namespaceSelector": {}}), true, true, true),
            (
                json!({"topologyKey": "zone", "labelSelector": select, "namespaceSelector": {"matchLabels": {"team": "blue"}}}),
                false,
                true,
                false,
            ),
            (
                json!({"topologyKey": "zone", "labelSelector": select, "namespaces": ["own"],
                    "namespaceSelector": {"matchLabels": {"team": "blue"}}}),
                true,
                true,
                false,
            ),
            (json!({"topologyKey": "zone"}), false, false, false),
        ] {
            let scope = term(term_.clone()).scope;
            let found = ["own", "blue", "other"].map(|namespace| scope.matches(namespace, &db, &namespaces));
            assert_eq!(found, [own, blue, other], "{term_}");
        }
    }

    #[test]
    fn label_keys_take_the_pods_own_values_and_those_it_lacks_say_nothing() {
        let scope = |extra: Value| {
            let mut value = json!({"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "web"}}});
            value.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            term(value).scope
        };
        let matches = |scope: &Scope, hash: &str| {
            scope.matches("own", &labels(json!({"app": "web", "hash": hash})), &Namespaces::new())
        };
        let same = scope(json!({"matchLabelKeys": ["hash", "absent"]}));
        assert!(matches(&same, "1") && !matches(&same, "2"));
        let other = scope(json!({"mismatchLabelKeys": ["hash"]}));
        assert!(!matches(&other, "1") && matches(&other, "2"));
    }

    #[test]
    fn what_is_asked_for_in_another_order_is_the_same_question() {
        let expressions = |list: Value| term(json!({"topologyKey": "z", "labelSelector": {"matchExpressions": list}}));
        let (a, b) =
            (json!({"key": "a", "operator": "In", "values": ["1", "2"]}), json!({"key": "b", "operator": "Exists"}));
        let again = json!({"key": "a", "operator": "In", "values": ["2", "1"]});
        assert_eq!(expressions(json!([a, b])), expressions(json!([b, again])));
    }
}
