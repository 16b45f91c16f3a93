//! Reasons of conditions and events, as Kubernetes and its tools spell them.

/// Progressing: a ReplicaSet was made for the new template.
pub const NEW_REPLICA_SET: &str = "NewReplicaSetCreated";
/// Progressing: an existing ReplicaSet has the new template.
pub const FOUND_REPLICA_SET: &str = "FoundNewReplicaSet";
/// Progressing: pods are being moved.
pub const REPLICA_SET_UPDATED: &str = "ReplicaSetUpdated";
/// Progressing: the rollout is complete.
pub const NEW_REPLICA_SET_AVAILABLE: &str = "NewReplicaSetAvailable";
/// Progressing: the ReplicaSet could not be made.
pub const REPLICA_SET_CREATE_ERROR: &str = "ReplicaSetCreateError";
/// Progressing: no progress within `progressDeadlineSeconds`.
pub const PROGRESS_DEADLINE_EXCEEDED: &str = "ProgressDeadlineExceeded";
/// Progressing: paused.
pub const PAUSED: &str = "DeploymentPaused";
/// Progressing: resumed.
pub const RESUMED: &str = "DeploymentResumed";
/// Available: yes.
pub const MINIMUM_AVAILABLE: &str = "MinimumReplicasAvailable";
/// Available: no.
pub const MINIMUM_UNAVAILABLE: &str = "MinimumReplicasUnavailable";
/// ReplicaFailure, events: a pod could not be created.
pub const FAILED_CREATE: &str = "FailedCreate";
/// ReplicaFailure, events: a pod could not be deleted.
pub const FAILED_DELETE: &str = "FailedDelete";
/// ReplicaFailure, events: the selector does not select the pods the template makes.
pub const SELECTOR_MISMATCH: &str = "SelectorMismatch";
/// Event: a pod was created.
pub const SUCCESSFUL_CREATE: &str = "SuccessfulCreate";
/// Event: a pod was deleted.
pub const SUCCESSFUL_DELETE: &str = "SuccessfulDelete";
/// Event: a Deployment changed the size of a ReplicaSet.
pub const SCALING_REPLICA_SET: &str = "ScalingReplicaSet";
/// Event: an empty selector.
pub const SELECTING_ALL: &str = "SelectingAll";

/// RolledBack, RolloutRefused: an image of the revision does not exist or may not be pulled.
pub const IMAGE_NOT_FOUND: &str = "ImageNotFound";
/// RolledBack, RolloutRefused: the configuration the revision asks for is not there.
pub const CONFIGURATION_ERROR: &str = "ConfigurationError";
/// RolledBack, RolloutRefused: every pod of the revision keeps crashing.
pub const CRASH_LOOP: &str = "CrashLoop";
/// RolledBack, RolloutRefused …: no pod of the revision is ready any longer, soon after its rollout.
pub const READINESS_LOST: &str = "ReadinessLost";
/// RolledBack, RolloutRefused …: a check of the policy failed.
pub const CHECK_FAILED: &str = "CheckFailed";
/// Every reason a revision can fail for.
pub const FAILURES: [&str; 6] =
    [IMAGE_NOT_FOUND, CONFIGURATION_ERROR, CRASH_LOOP, PROGRESS_DEADLINE_EXCEEDED, READINESS_LOST, CHECK_FAILED];
/// JudgingPaused: nodes the pods are on are not ready, or gone.
pub const NODES_UNWELL: &str = "NodesUnwell";
/// JudgingPaused: other pods cannot reach the registry either.
pub const REGISTRY_UNREACHABLE: &str = "RegistryUnreachable";
/// JudgingPaused: pods of the revision before fail as well.
pub const EARLIER_REVISION_FAILS: &str = "EarlierRevisionFails";
/// Event: a failed revision goes on, for the policy says so or there is nothing to go back to.
pub const ROLLOUT_FAILED: &str = "RolloutFailed";
/// Event: a failed revision stands still, for the policy says so.
pub const ROLLOUT_PAUSED: &str = "RolloutPaused";
/// Event: a failed revision was taken back.
pub const ROLLED_BACK: &str = "RolledBack";
/// Event: a revision known to fail was applied again.
pub const ROLLOUT_REFUSED: &str = "RolloutRefused";
/// Event: a failed revision is tried again because `proa.dev/retry` changed.
pub const ROLLOUT_RETRIED: &str = "RolloutRetried";
/// Stalled, and an event: a release was to go back to a revision that its history does not hold.
pub const REVISION_NOT_FOUND: &str = "RevisionNotFound";
/// ConfigRevision: the configuration is too large to be kept with its revision.
pub const TOO_LARGE: &str = "TooLarge";
/// Event: the configuration of a revision is too large to be kept with it.
pub const CONFIGURATION_TOO_LARGE: &str = "ConfigurationTooLarge";
/// ConfigRevision: the Deployment went back to a revision whose configuration differs from the live one.
pub const GONE_BACK: &str = "GoneBack";

/// Event: a StatefulSet's pod failed and is made anew.
pub const RECREATING_FAILED_POD: &str = "RecreatingFailedPod";
/// Event: a StatefulSet's pod ended and is made anew.
pub const RECREATING_TERMINATED_POD: &str = "RecreatingTerminatedPod";
/// Event: a pod of an earlier revision that is not ready was not waited for.
pub const REPLACING_UNREADY_POD: &str = "ReplacingUnreadyPod";
/// Event: a DaemonSet's pod failed and goes.
pub const FAILED_DAEMON_POD: &str = "FailedDaemonPod";
/// Event: a DaemonSet's pod ended and goes.
pub const SUCCEEDED_DAEMON_POD: &str = "SucceededDaemonPod";
