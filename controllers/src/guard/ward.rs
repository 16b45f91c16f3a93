//! A StatefulSet or a DaemonSet as the guard sees it: what the two have in common.

use crate::{
    history::{Keeper, Parent},
    informer::Watched,
};
use k8s_openapi::api::apps::v1::StatefulSetCondition;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use kube::core::{ApiResource, DynamicResourceScope, ObjectMeta};
use proa_crds::{DaemonSet, Family, StatefulSet, policy::WorkloadKind};

/// A condition: both kinds spell it alike.
pub(crate) type Condition = StatefulSetCondition;

/// A kind that is guarded.
pub(crate) trait Guarded:
    Watched + kube::Resource<DynamicType = ApiResource, Scope = DynamicResourceScope>
{
    /// Which kind a policy calls it.
    const KIND: WorkloadKind;
    /// Which kind keeps its history.
    const KEEPER: Keeper;
    /// For logs and metrics.
    const NAME: &'static str;
    /// Who events come from.
    const COMPONENT: &'static str;

    /// Where it is served.
    fn resource(family: Family) -> ApiResource;
    /// As an owner of revisions.
    fn parent<'a>(&'a self, resource: &ApiResource) -> Parent<'a>;
    /// The conditions of its status.
    fn conditions(&self) -> Vec<Condition>;
    /// How many pods it wants.
    fn wanted(&self) -> i32;
    /// Whether its rollout, to the revision of that name, is complete: as `kubectl rollout status` sees it, and whole.
    fn is_complete(&self, revision: &str) -> bool;
}

impl Guarded for StatefulSet {
    const KIND: WorkloadKind = WorkloadKind::StatefulSet;
    const KEEPER: Keeper = Keeper::StatefulSet;
    const NAME: &'static str = "statefulset-guard";
    const COMPONENT: &'static str = "statefulset-controller";

    fn resource(family: Family) -> ApiResource {
        family.stateful_set()
    }

    fn parent<'a>(&'a self, resource: &ApiResource) -> Parent<'a> {
        Parent::of_stateful_set(self, resource)
    }

    fn conditions(&self) -> Vec<Condition> {
        self.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default()
    }

    fn wanted(&self) -> i32 {
        self.spec.replicas.unwrap_or(1).max(0)
    }

    fn is_complete(&self, revision: &str) -> bool {
        let Some(status) = &self.status else { return false };
        let names = [&status.current_revision, &status.update_revision];
        let counts = [Some(status.replicas), status.updated_replicas, status.available_replicas];
        status.observed_generation == self.metadata.generation
            && names.iter().all(|name| name.as_deref() == Some(revision))
            && counts.iter().all(|count| count.unwrap_or(0) == self.wanted())
    }
}

impl Guarded for DaemonSet {
    const KIND: WorkloadKind = WorkloadKind::DaemonSet;
    const KEEPER: Keeper = Keeper::DaemonSet;
    const NAME: &'static str = "daemonset-guard";
    const COMPONENT: &'static str = "daemonset-controller";

    fn resource(family: Family) -> ApiResource {
        family.daemon_set()
    }

    fn parent<'a>(&'a self, resource: &ApiResource) -> Parent<'a> {
        Parent::of_daemon_set(self, resource)
    }

    fn conditions(&self) -> Vec<Condition> {
        let held = self.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
        let alike = held.into_iter().map(|condition| Condition {
            type_: condition.type_,
            status: condition.status,
            reason: condition.reason,
            message: condition.message,
            last_transition_time: condition.last_transition_time,
        });
        alike.collect()
    }

    fn wanted(&self) -> i32 {
        self.status.as_ref().map_or(0, |status| status.desired_number_scheduled)
    }

    fn is_complete(&self, _: &str) -> bool {
        let Some(status) = &self.status else { return false };
        let counts = [status.updated_number_scheduled, status.number_available];
        status.observed_generation == self.metadata.generation
            && counts.iter().all(|count| count.unwrap_or(0) == status.desired_number_scheduled)
    }
}

/// What the plan knows of the object.
#[derive(Clone, Debug)]
pub(crate) struct Ward {
    /// Its metadata.
    pub(crate) meta: ObjectMeta,
    /// Its template.
    pub(crate) template: PodTemplateSpec,
    /// The conditions of its status.
    pub(crate) conditions: Vec<Condition>,
    /// How many pods it wants.
    pub(crate) wanted: i32,
    /// Whether its rollout is complete.
    pub(crate) complete: bool,
}
