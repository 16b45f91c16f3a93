//! ReplicationControllers, read as the ReplicaSets they are but for the form of their selector.

use super::Replicates;
use k8s_openapi::{
    api::{
        apps::v1::{ReplicaSetSpec, ReplicaSetStatus},
        core::v1::ReplicationControllerSpec,
    },
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use kube::core::{ApiResource, Object, TypeMeta};
use proa_crds::{Family, ReplicaSet};
use serde::{Deserialize, Deserializer};
use std::sync::Arc;

const KIND: &str = "ReplicationController";

/// Whether the status tells how many pods are terminating (KEP-3973): that of a ReplicationController has no such field.
pub(super) fn tells_terminating(set: &ReplicaSet) -> bool {
    set.types.as_ref().is_none_or(|types| types.kind != KIND)
}

/// A ReplicationController of the core group.
pub type ReplicationController = Object<Spec, ReplicaSetStatus>;

/// The spec of a ReplicationController, as that of a ReplicaSet: its map of labels is a selector.
#[derive(Clone, Debug)]
pub struct Spec(pub(crate) ReplicaSetSpec);

impl<'de> Deserialize<'de> for Spec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let ReplicationControllerSpec { min_ready_seconds, replicas, selector, template } =
            Deserialize::deserialize(deserializer)?;
        let selector = LabelSelector { match_labels: selector, match_expressions: None };
        Ok(Spec(ReplicaSetSpec { min_ready_seconds, replicas, selector, template }))
    }
}

impl Replicates for ReplicationController {
    const NAME: &'static str = "replicationcontroller";
    const COMPONENT: &'static str = "replication-controller";

    fn resource(_: Family) -> ApiResource {
        ApiResource {
            group: String::new(),
            version: "v1".to_owned(),
            api_version: "v1".to_owned(),
            kind: KIND.to_owned(),
            plural: "replicationcontrollers".to_owned(),
        }
    }

    fn as_set(object: Arc<Self>) -> Arc<ReplicaSet> {
        let ReplicationController { types: _, metadata, spec, status } = &*object;
        Arc::new(ReplicaSet {
            types: Some(TypeMeta { api_version: "v1".to_owned(), kind: KIND.to_owned() }),
            metadata: metadata.clone(),
            spec: spec.0.clone(),
            status: status.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::selector;
    use serde_json::json;

    #[test]
    fn a_replication_controller_reads_as_the_replica_set_it_is() {
        let read: ReplicationController = serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "ReplicationController", "metadata": {"name": "web", "uid": "u"},
            "spec": {"replicas": 2, "minReadySeconds": 3, "selector": {"app": "web"},
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": []}}},
            "status": {"replicas": 1, "conditions": [{"type": "ReplicaFailure", "status": "True"}]},
        }))
        .expect("it reads");
        let set = ReplicationController::as_set(Arc::new(read));
        let labels = |value: &str| Some([("app".to_owned(), value.to_owned())].into_iter().collect());
        assert!(selector::matches(&set.spec.selector, labels("web").as_ref()));
        assert!(!selector::matches(&set.spec.selector, labels("db").as_ref()));
        assert_eq!(
            (set.spec.replicas, set.spec.min_ready_seconds, set.metadata.uid.as_deref()),
            (Some(2), Some(3), Some("u"))
        );
        assert!(!tells_terminating(&set));
        assert_eq!(set.status.as_ref().map(|status| status.replicas), Some(1));
    }
}
