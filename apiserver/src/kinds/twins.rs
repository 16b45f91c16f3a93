//! Kinds of the custom family: custom resources with the shape of standard kinds, whose machines are run by Proa's own agents.
//!
//! Owns which subresources of a standard kind its twin has on this server: those that an agent or a pod's own port answers, so
//! that a log can be read, a command run and a port asked as for a standard pod. Another API server has none of them.

/// The group of the family, as in `proa_crds::family`.
pub const GROUP: &str = "proa.dev";

/// What the twins have beside `status` and `scale`. A pod of the family is bound by a plain write of its `spec.nodeName`, and
/// has no eviction: a PodDisruptionBudget counts standard pods alone.
const SUBRESOURCES: [(&str, &[&str]); 3] =
    [("Pod", &["attach", "exec", "log", "portforward", "proxy"]), ("Service", &["proxy"]), ("Node", &["proxy"])];

/// The subresources the twin of a standard kind has; none for any other custom resource.
pub fn subresources(group: &str, kind: &str) -> &'static [&'static str] {
    let found = SUBRESOURCES.iter().find(|(twin, _)| group == GROUP && *twin == kind);
    found.map_or(&[], |(_, names)| names)
}

/// How a kind beside `group`'s own is stored: the standard one, or its twin where that group is the family's.
pub fn beside(group: &str, standard: &str) -> String {
    match (group, standard.split_once('.')) {
        (GROUP, Some((plural, _))) => format!("{plural}.{GROUP}"),
        (GROUP, None) => format!("{standard}.{GROUP}"),
        _ => standard.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_twin_finds_its_own_kin() {
        assert_eq!(beside("", "nodes"), "nodes");
        assert_eq!(beside("", "endpointslices.discovery.k8s.io"), "endpointslices.discovery.k8s.io");
        assert_eq!(beside(GROUP, "nodes"), "nodes.proa.dev");
        assert_eq!(beside(GROUP, "endpointslices.discovery.k8s.io"), "endpointslices.proa.dev");
    }

    #[test]
    fn a_custom_resource_of_another_group_has_no_agent() {
        assert!(subresources(GROUP, "Pod").contains(&"log"));
        assert!(subresources("example.com", "Pod").is_empty());
        assert!(subresources(GROUP, "Deployment").is_empty());
    }
}
