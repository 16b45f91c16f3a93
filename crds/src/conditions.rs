//! Condition types of Deployments, ReplicaSets and pods.

/// Deployment: enough replicas are available.
pub const AVAILABLE: &str = "Available";
/// Deployment: the rollout moves, is done, or is stuck.
pub const PROGRESSING: &str = "Progressing";
/// Deployment, ReplicaSet: pods cannot be created or deleted.
pub const REPLICA_FAILURE: &str = "ReplicaFailure";
/// Deployment (Proa): a failed revision was taken back; the message says which, to which, why.
pub const ROLLED_BACK: &str = "RolledBack";
/// Deployment (Proa): pods read a kept copy of their configuration.
pub const CONFIG_REVISION: &str = "ConfigRevision";
/// Deployment (Proa): a revision known to fail was applied again and not started.
pub const ROLLOUT_REFUSED: &str = "RolloutRefused";
/// Pod: ready to serve.
pub const READY: &str = "Ready";
