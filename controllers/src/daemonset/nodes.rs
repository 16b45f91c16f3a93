//! On which nodes a daemon set's pods belong, and what its template becomes for one of them. Pure.

use crate::{owners, pods, scheduler::affinity, taints};
use k8s_openapi::api::core::v1::{
    Affinity, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Toleration,
};
use kube::{
    ResourceExt,
    core::{ApiResource, ObjectMeta, TypeMeta},
};
use proa_crds::{DaemonSet, Node, Pod, annotations};
use std::collections::BTreeMap;

/// The field of a node affinity that names one node.
const NODE_NAME: &str = "metadata.name";

/// Taints every daemon pod tolerates, with their effects: what is wrong with a node must not take its daemons away
/// (Kubernetes' `AddOrUpdateDaemonPodTolerations`).
const TOLERATED: [(&str, &str); 6] = [
    (taints::NOT_READY, taints::NO_EXECUTE),
    (taints::UNREACHABLE, taints::NO_EXECUTE),
    ("node.kubernetes.io/disk-pressure", taints::NO_SCHEDULE),
    ("node.kubernetes.io/memory-pressure", taints::NO_SCHEDULE),
    ("node.kubernetes.io/pid-pressure", taints::NO_SCHEDULE),
    ("node.kubernetes.io/unschedulable", taints::NO_SCHEDULE),
];
/// Tolerated by pods that use the node's network.
const NETWORK_UNAVAILABLE: &str = "node.kubernetes.io/network-unavailable";

/// What a node means for a daemon set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    /// A pod is to run there.
    pub(super) wanted: bool,
    /// A pod that runs there may stay.
    pub(super) may_stay: bool,
}

/// The spec of the set's pods, without the node.
pub(super) fn spec_of(set: &DaemonSet) -> PodSpec {
    let mut spec = set.spec.template.spec.clone().unwrap_or_default();
    let mut tolerated: Vec<(&str, &str)> = TOLERATED.to_vec();
    if spec.host_network == Some(true) {
        tolerated.push((NETWORK_UNAVAILABLE, taints::NO_SCHEDULE));
    }
    let tolerations = spec.tolerations.get_or_insert_default();
    for (key, effect) in tolerated {
        let toleration = Toleration {
            key: Some(key.to_owned()),
            operator: Some("Exists".to_owned()),
            effect: Some(effect.to_owned()),
            ..Toleration::default()
        };
        // One of the template for that taint would end the stay after its seconds.
        tolerations.retain(|held| held.key != toleration.key || held.effect != toleration.effect);
        tolerations.push(toleration);
    }
    spec
}

/// What a node means for pods of that spec (see [`spec_of`]).
pub(super) fn place(spec: &PodSpec, node: &Node) -> Place {
    let name = node.name_any();
    let elsewhere = spec.node_name.as_deref().is_some_and(|wanted| !wanted.is_empty() && wanted != name);
    let (unlabelled, labels) = (BTreeMap::new(), node.metadata.labels.as_ref());
    if elsewhere || !affinity::required_matches(spec, &name, labels.unwrap_or(&unlabelled)) {
        return Place::default();
    }
    let (taints, tolerations) = (node.spec.taints.as_deref().unwrap_or_default(), spec.tolerations.as_deref());
    let tolerates = |effects: &[&str]| taints::untolerated(taints, tolerations.unwrap_or_default(), effects).is_none();
    let may_stay = tolerates(&[taints::NO_EXECUTE]);
    Place { wanted: may_stay && tolerates(&[taints::NO_SCHEDULE]), may_stay }
}

/// The node a daemon pod is on, or is to be bound to.
pub(super) fn node_of(pod: &Pod) -> Option<&str> {
    let required = || {
        let affinity = pod.spec.affinity.as_ref()?.node_affinity.as_ref()?;
        affinity.required_during_scheduling_ignored_during_execution.as_ref()
    };
    let named = || {
        let terms = required()?.node_selector_terms.iter();
        let mut fields = terms.flat_map(|term| term.match_fields.iter().flatten());
        fields.find(|field| field.key == NODE_NAME && field.operator == "In")?.values.as_ref()?.first()
    };
    pods::node(pod).or_else(|| named().map(String::as_str))
}

/// The pod for a node: the scheduler binds it there and nowhere else, by its affinity.
pub(super) fn pod_of(
    set: &DaemonSet,
    spec: &PodSpec,
    node: &str,
    hash: &str,
    set_resource: &ApiResource,
    pod_resource: &ApiResource,
) -> Pod {
    let meta = set.spec.template.metadata.clone().unwrap_or_default();
    let mut labels: BTreeMap<String, String> = meta.labels.unwrap_or_default();
    labels.insert(annotations::CONTROLLER_REVISION_HASH.to_owned(), hash.to_owned());
    let mut spec = spec.clone();
    let field = NodeSelectorRequirement {
        key: NODE_NAME.to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![node.to_owned()]),
    };
    let affinity: &mut Affinity = spec.affinity.get_or_insert_default();
    let of_node: &mut NodeAffinity = affinity.node_affinity.get_or_insert_default();
    // What the template requires of nodes was looked at when the node was chosen.
    of_node.required_during_scheduling_ignored_during_execution = Some(NodeSelector {
        node_selector_terms: vec![NodeSelectorTerm { match_fields: Some(vec![field]), ..NodeSelectorTerm::default() }],
    });
    Pod {
        types: Some(TypeMeta { api_version: pod_resource.api_version.clone(), kind: pod_resource.kind.clone() }),
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", set.name_any())),
            namespace: set.namespace(),
            labels: Some(labels),
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![owners::controller_reference(set, set_resource)]),
            ..ObjectMeta::default()
        },
        spec,
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proa_crds::Family;
    use serde_json::{Value, json};

    fn set(spec: Value) -> DaemonSet {
        let mut template = json!({"containers": []});
        crate::sim::merge(&mut template, &spec);
        serde_json::from_value(json!({"metadata": {"name": "agent", "uid": "u"},
            "spec": {"selector": {}, "template": {"metadata": {"labels": {"a": "b"}}, "spec": template}}}))
        .expect("a daemon set")
    }

    fn node(labels: Value, taints: &[(&str, &str)]) -> Node {
        let taints: Vec<_> = taints.iter().map(|(key, effect)| json!({"key": key, "effect": effect})).collect();
        serde_json::from_value(json!({"metadata": {"name": "n1", "labels": labels}, "spec": {"taints": taints}}))
            .expect("a node")
    }

    fn check(spec: Value, node: &Node, wanted: bool, may_stay: bool) {
        assert_eq!(place(&spec_of(&set(spec.clone())), node), Place { wanted, may_stay }, "{spec}");
    }

    /// Conformance: DaemonSet-NodeSelection.
    #[test]
    fn a_daemon_runs_where_its_selector_its_affinity_and_its_name_say() {
        let blue = node(json!({"color": "blue"}), &[]);
        check(json!({}), &blue, true, true);
        check(json!({"nodeSelector": {"color": "blue"}}), &blue, true, true);
        check(json!({"nodeSelector": {"color": "green"}}), &blue, false, false);
        check(json!({"nodeName": "n1"}), &blue, true, true);
        check(json!({"nodeName": "n2"}), &blue, false, false);
        let affinity = |value: &str| {
            json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": [{"key": "color", "operator": "In", "values": [value]}]}]}}}})
        };
        check(affinity("blue"), &blue, true, true);
        check(affinity("green"), &blue, false, false);
    }

    #[test]
    fn taints_keep_daemons_away_unless_they_are_about_the_nodes_health() {
        let tainted = |key: &str, effect: &str| node(json!({}), &[(key, effect)]);
        check(json!({}), &tainted("dedicated", "NoSchedule"), false, true);
        check(json!({}), &tainted("dedicated", "NoExecute"), false, false);
        check(json!({}), &tainted("dedicated", "PreferNoSchedule"), true, true);
        check(
            json!({"tolerations": [{"key": "dedicated", "operator": "Exists"}]}),
            &tainted("dedicated", "NoExecute"),
            true,
            true,
        );
        for (key, effect) in TOLERATED {
            check(json!({}), &tainted(key, effect), true, true);
        }
        check(json!({}), &tainted(NETWORK_UNAVAILABLE, "NoSchedule"), false, true);
        check(json!({"hostNetwork": true}), &tainted(NETWORK_UNAVAILABLE, "NoSchedule"), true, true);
        // The template cannot end its own stay on a silent node.
        let seconds = json!({"tolerations": [{"key": taints::UNREACHABLE, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}]});
        let tolerations = spec_of(&set(seconds)).tolerations.expect("tolerations");
        assert!(tolerations.iter().all(|toleration| toleration.toleration_seconds.is_none()));
    }

    #[test]
    fn a_daemon_pod_names_its_node_in_its_affinity() {
        let (set, family) = (set(json!({"nodeSelector": {"color": "blue"}})), Family::Standard);
        let pod = pod_of(&set, &spec_of(&set), "n7", "hash", &family.daemon_set(), &family.pod());
        assert_eq!(node_of(&pod), Some("n7"));
        assert_eq!(pod.metadata.generate_name.as_deref(), Some("agent-"));
        assert_eq!(pod.metadata.labels.as_ref().expect("labels")["controller-revision-hash"], "hash");
        assert!(affinity::required_matches(&pod.spec, "n7", &[("color".to_owned(), "blue".to_owned())].into()));
        assert!(!affinity::required_matches(&pod.spec, "n8", &[("color".to_owned(), "blue".to_owned())].into()));
    }
}
