//! EndpointSlice of either family.
//!
//! Its fields are not under `spec`, so `kube::core::Object` does not fit.

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort};
use kube::core::{ObjectMeta, TypeMeta};
use serde::{Deserialize, Serialize};

use crate::dynamic::dynamic_resource;

/// Addresses behind a service (`discovery.k8s.io/v1` or `proa.dev/v1`).
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointSlice {
    /// `apiVersion` and `kind`.
    #[serde(flatten, default)]
    pub types: Option<TypeMeta>,
    /// Standard metadata.
    pub metadata: ObjectMeta,
    /// `IPv4`, `IPv6` or `FQDN`.
    pub address_type: String,
    /// The endpoints; at most 1000.
    #[serde(default)]
    pub endpoints: Option<Vec<Endpoint>>,
    /// The ports every endpoint of this slice serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<Vec<EndpointPort>>,
}

dynamic_resource!(EndpointSlice);
