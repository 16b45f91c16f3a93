//! `RolloutPolicy`: when a revision of a workload has failed, how sure one must be, and what is done then.
//!
//! A policy holds for the objects it selects in its own namespace. The annotation [`crate::annotations::ROLLBACK`] on an
//! object or a namespace is the short way: it asks for the defaults of everything below. `off` on an object wins over any
//! policy; `on-failure` on an object makes the action of the policy that selects it [`FailureAction::Rollback`]. Of several
//! policies that select one object the one with a selector wins over one without, then the older, then the first by name.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::{
    api::resource::Quantity, apis::meta::v1::LabelSelector, util::intstr::IntOrString,
};
use kube::core::{ApiResource, NotUsed};
use serde::{Deserialize, Serialize};

/// A policy, as served.
pub type RolloutPolicy = kube::core::Object<RolloutPolicySpec, NotUsed>;

/// Under which group, version and name policies are served; the same for both families.
pub fn rollout_policies() -> ApiResource {
    crate::extensions::resource("RolloutPolicy", "rolloutpolicies")
}

/// The kinds a policy can guard. Of a release, which rolls out nothing itself, only what counts as failed and what is done then
/// matter: its deadline, its soak, `Rollback` or else that it is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum WorkloadKind {
    /// Deployments.
    Deployment,
    /// StatefulSets.
    StatefulSet,
    /// DaemonSets.
    DaemonSet,
    /// Releases.
    Release,
}

/// What is done when a revision has failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureAction {
    /// The last healthy revision comes back. Without one it is as with `Alert`.
    #[default]
    Rollback,
    /// The rollout stands still where it is (condition `RolloutPaused`) until the template changes or somebody retries.
    Pause,
    /// It is said (condition `RolloutFailed`), and the rollout goes on.
    Alert,
}

/// What a change of a ConfigMap or Secret is that the template refers to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConfigurationChange {
    /// Running pods see it as on Kubernetes; no rollout.
    #[default]
    Live,
    /// A revision of its own, rolled out like a change of the template.
    Rollout,
}

/// The `spec` of a policy. Every field has a default; an empty spec is what the annotation asks for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RolloutPolicySpec {
    /// Which kinds it guards; empty: all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kinds: Vec<WorkloadKind>,
    /// Which objects of those kinds, by their labels; empty: all of the namespace.
    pub selector: LabelSelector,
    /// What is done when a revision has failed.
    pub action: FailureAction,
    /// Whether a change of configuration alone is a rollout.
    pub configuration: ConfigurationChange,
    /// How long a revision is watched after its rollout was complete, in seconds.
    pub soak_seconds: u32,
    /// What counts as failed.
    pub failure: FailureCriteria,
    /// What else the new pods must answer, from the moment the first is ready to the end of the soak.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<Check>,
    /// Gradual steps; empty: as fast as the object's own strategy allows. Parts of a
    /// StatefulSet are its highest ordinals, of a DaemonSet nodes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<Step>,
}

impl Default for RolloutPolicySpec {
    fn default() -> Self {
        RolloutPolicySpec {
            kinds: Vec::new(),
            selector: LabelSelector::default(),
            action: FailureAction::default(),
            configuration: ConfigurationChange::default(),
            // Time enough for a process that gives up after half a minute to do it twice.
            soak_seconds: 90,
            failure: FailureCriteria::default(),
            checks: Vec::new(),
            steps: Vec::new(),
        }
    }
}

/// What counts as failed, and how sure one must be of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FailureCriteria {
    /// `progressDeadlineSeconds` (of a Deployment; 600 for the other kinds) passes without progress.
    pub progress_deadline: Lasting,
    /// An image does not exist or may not be pulled. A registry that cannot be reached is not this.
    pub image: Lasting,
    /// The configuration a pod asks for is not there: a manifest may bring it right after the workload.
    pub configuration: Lasting,
    /// Every new pod has crashed.
    pub crash_loop: CrashLoop,
    /// During the soak: no pod of the revision is ready any longer.
    pub readiness: Lasting,
}

impl Default for FailureCriteria {
    fn default() -> Self {
        FailureCriteria {
            progress_deadline: Lasting::default(),
            image: Lasting::default(),
            configuration: Lasting { after_seconds: 5, ..Lasting::default() },
            crash_loop: CrashLoop::default(),
            readiness: Lasting { after_seconds: 15, ..Lasting::default() },
        }
    }
}

/// A sign of failure that must have stood for a while.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Lasting {
    /// It does not count as failed.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub ignore: bool,
    /// How long it must have stood, in seconds.
    pub after_seconds: u32,
}

/// How many crashes are a crash loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CrashLoop {
    /// It does not count as failed.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub ignore: bool,
    /// So many crashes of all new pods together, with none of them ready and each having crashed at least once: one pod
    /// that crashed twice, or two that crashed once each.
    pub crashes: u32,
}

impl Default for CrashLoop {
    fn default() -> Self {
        CrashLoop { ignore: false, crashes: 2 }
    }
}

/// A question put to every ready pod of the new revision, through the API server's pod proxy. Exactly one of `http` and
/// `metric` is set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Check {
    /// What it is called in conditions and events.
    pub name: String,
    /// An HTTP request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpCheck>,
    /// A value of the pod's own metrics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<MetricCheck>,
    /// How often it is asked, in seconds.
    #[serde(default = "five")]
    pub period_seconds: u32,
    /// So many failed answers in a row are a failure of the revision.
    #[serde(default = "three")]
    pub failure_threshold: u32,
}

fn five() -> u32 {
    5
}

fn three() -> u32 {
    3
}

/// A `GET` that must be answered with one of some status codes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpCheck {
    /// Ask this Service (through the API server's service proxy) instead of each new pod: whatever pod answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The port of the pod (or Service): its number or name.
    pub port: IntOrString,
    /// The path, with its query.
    #[serde(default = "root")]
    pub path: String,
    /// The status codes that are well; empty: any from 200 to 399, as for a probe.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub status: Vec<u16>,
}

fn root() -> String {
    "/".to_owned()
}

/// A threshold on one metric in the Prometheus text format, as the pods themselves serve it. The samples of a pod that
/// have these labels are summed; the mean over the pods is compared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MetricCheck {
    /// The port of the pod: its number or name.
    pub port: IntOrString,
    /// The path.
    #[serde(default = "metrics")]
    pub path: String,
    /// The metric.
    pub metric: String,
    /// Labels a sample must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Compare its growth per second since the check before (a counter) instead of its value (a gauge).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub per_second: bool,
    /// Less is a failed answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<Quantity>,
    /// More is a failed answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<Quantity>,
}

fn metrics() -> String {
    "/metrics".to_owned()
}

/// A step of a gradual rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// So many of a hundred pods are of the new revision, rounded up.
    pub percent: u32,
    /// How long the revision must do well there before the next step, in seconds.
    #[serde(default)]
    pub wait_seconds: u32,
}
