//! Which API group the workload kinds are served under.

use kube::core::ApiResource;
use std::{fmt, str::FromStr};

/// One of the two API families that serve the workload kinds (DESIGN section 7).
///
/// The types are the same; what differs is the [`ApiResource`] a client is given as `DynamicType`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Family {
    /// `v1`, `apps/v1` and `discovery.k8s.io/v1`: native on Proa's own API server.
    #[default]
    Standard,
    /// `proa.dev/v1`: custom resources, installable on any Kubernetes API server.
    Proa,
}

/// The group of the custom family.
pub(crate) const PROA_GROUP: &str = "proa.dev";

impl Family {
    /// `Pod`.
    pub fn pod(&self) -> ApiResource {
        self.resource("", "Pod", "pods")
    }

    /// `Node`. Namespaced in neither family.
    pub fn node(&self) -> ApiResource {
        self.resource("", "Node", "nodes")
    }

    /// `Service`.
    pub fn service(&self) -> ApiResource {
        self.resource("", "Service", "services")
    }

    /// `ReplicaSet`.
    pub fn replica_set(&self) -> ApiResource {
        self.resource("apps", "ReplicaSet", "replicasets")
    }

    /// `Deployment`.
    pub fn deployment(&self) -> ApiResource {
        self.resource("apps", "Deployment", "deployments")
    }

    /// `StatefulSet`.
    pub fn stateful_set(&self) -> ApiResource {
        self.resource("apps", "StatefulSet", "statefulsets")
    }

    /// `DaemonSet`.
    pub fn daemon_set(&self) -> ApiResource {
        self.resource("apps", "DaemonSet", "daemonsets")
    }

    /// `ControllerRevision`.
    pub fn controller_revision(&self) -> ApiResource {
        self.resource("apps", "ControllerRevision", "controllerrevisions")
    }

    /// `EndpointSlice`.
    pub fn endpoint_slice(&self) -> ApiResource {
        self.resource("discovery.k8s.io", "EndpointSlice", "endpointslices")
    }

    fn resource(&self, standard_group: &str, kind: &str, plural: &str) -> ApiResource {
        let group = match self {
            Family::Standard => standard_group,
            Family::Proa => PROA_GROUP,
        };
        let api_version = if group.is_empty() { "v1".to_owned() } else { format!("{group}/v1") };
        ApiResource {
            group: group.to_owned(),
            version: "v1".to_owned(),
            api_version,
            kind: kind.to_owned(),
            plural: plural.to_owned(),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::Standard => "standard",
            Family::Proa => PROA_GROUP,
        })
    }
}

/// The text is neither `standard` nor `proa.dev`.
#[derive(Debug, PartialEq, Eq)]
pub struct UnknownFamily(pub String);

impl fmt::Display for UnknownFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown family {:?}: use \"standard\" or \"proa.dev\"", self.0)
    }
}

impl std::error::Error for UnknownFamily {}

impl FromStr for Family {
    type Err = UnknownFamily;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "standard" => Ok(Family::Standard),
            "proa.dev" | "proa" => Ok(Family::Proa),
            other => Err(UnknownFamily(other.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_family_names_its_api_versions() {
        assert_eq!(Family::Standard.pod().api_version, "v1");
        assert_eq!(Family::Standard.deployment().api_version, "apps/v1");
        assert_eq!(Family::Standard.endpoint_slice().api_version, "discovery.k8s.io/v1");
        assert_eq!(Family::Proa.pod().api_version, "proa.dev/v1");
        assert_eq!(Family::Proa.deployment().api_version, "proa.dev/v1");
    }

    #[test]
    fn a_family_prints_as_it_is_parsed() {
        for family in [Family::Standard, Family::Proa] {
            assert_eq!(family.to_string().parse(), Ok(family));
        }
        assert!("apps".parse::<Family>().is_err());
    }
}
