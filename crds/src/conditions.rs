//! Condition types of Deployments, ReplicaSets and pods.

/// Deployment: enough replicas are available.
pub const AVAILABLE: &str = "Available";
/// Deployment: the rollout moves, is done, or is stuck.
pub const PROGRESSING: &str = "Progressing";
/// Deployment, ReplicaSet: pods cannot be created or deleted.
pub const REPLICA_FAILURE: &str = "ReplicaFailure";
/// Workload (Proa): a failed revision was taken back; the message says which, to which, why.
pub const ROLLED_BACK: &str = "RolledBack";
/// Deployment (Proa): pods read a kept copy of their configuration.
pub const CONFIG_REVISION: &str = "ConfigRevision";
/// Deployment (Proa): a revision known to fail was applied again and not started.
pub const ROLLOUT_REFUSED: &str = "RolloutRefused";
/// Workload (Proa): a revision failed and its rollout goes on: the policy says `Alert`, or there is nothing to go back to.
pub const ROLLOUT_FAILED: &str = "RolloutFailed";
/// Workload (Proa): a revision failed and its rollout stands still: the policy says `Pause`.
pub const ROLLOUT_PAUSED: &str = "RolloutPaused";
/// Workload (Proa): what the pods show is not blamed on the revision, for the cluster itself is unwell.
pub const JUDGING_PAUSED: &str = "JudgingPaused";
/// The conditions that say what became of a failed revision.
pub const OF_FAILURE: [&str; 4] = [ROLLED_BACK, ROLLOUT_REFUSED, ROLLOUT_FAILED, ROLLOUT_PAUSED];
/// Pod: ready to serve.
pub const READY: &str = "Ready";
/// Release: its members change, roll out, or go back (kstatus).
pub const RECONCILING: &str = "Reconciling";
/// Release: it cannot go on without somebody's help (kstatus).
pub const STALLED: &str = "Stalled";
