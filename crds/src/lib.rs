//! The workload types of Proa, in their two API families.
//!
//! Owns: the [`Family`] value that says under which group and version the workload kinds are served, the typed
//! aliases ([`Pod`], [`ReplicaSet`], [`Deployment`], [`StatefulSet`], [`DaemonSet`], [`Service`], [`Node`]) and types
//! ([`ControllerRevision`], [`EndpointSlice`]) that work with either family, [`Encoded`] to read them with, what scheduler
//! and node must judge alike ([`node_selector`], [`HostPort`]), the names
//! several crates must agree on ([`annotations`], [`conditions`], [`reasons`], the evidence of a failed revision
//! ([`Failure`])), Proa's own kinds ([`policy`]) and the custom resource definitions of both
//! ([`custom_resource_definitions`], [`extension_definitions`]).
//!
//! Never talks to anything: no client, no files (the YAML in `crds/yaml/` is written by a test), no clock.

pub mod annotations;
pub mod conditions;
mod controller_revision;
mod decoded;
mod definitions;
mod dynamic;
mod endpoint_slice;
mod extensions;
mod failure;
mod family;
mod host_port;
pub mod node_selector;
pub mod policy;
pub mod reasons;
pub mod release;

pub use controller_revision::ControllerRevision;
pub use decoded::{Decoded, Encoded, Ties, Undecodable};
pub use definitions::{
    custom_resource_definition_files, custom_resource_definitions, custom_resource_definitions_yaml,
};
pub use endpoint_slice::EndpointSlice;
pub use extensions::extension_definitions;
pub use failure::{FailedTemplate, Failure, FailureEvent};
pub use family::Family;
pub use host_port::HostPort;
pub use node_selector::selects_node;
pub use policy::{RolloutPolicy, RolloutPolicySpec, rollout_policies};

use k8s_openapi::api::{apps::v1 as apps, core::v1 as core};

/// A pod of either family.
pub type Pod = kube::core::Object<core::PodSpec, core::PodStatus>;
/// A node of either family.
pub type Node = kube::core::Object<core::NodeSpec, core::NodeStatus>;
/// A service of either family.
pub type Service = kube::core::Object<core::ServiceSpec, core::ServiceStatus>;
/// A replica set of either family.
pub type ReplicaSet = kube::core::Object<apps::ReplicaSetSpec, apps::ReplicaSetStatus>;
/// A deployment of either family.
pub type Deployment = kube::core::Object<apps::DeploymentSpec, apps::DeploymentStatus>;
/// A stateful set of either family.
pub type StatefulSet = kube::core::Object<apps::StatefulSetSpec, apps::StatefulSetStatus>;
/// A daemon set of either family.
pub type DaemonSet = kube::core::Object<apps::DaemonSetSpec, apps::DaemonSetStatus>;
