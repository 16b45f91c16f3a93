//! Owns which pod of the node has which ports of the host: a pod that comes here without having met the scheduler is
//! refused what another one has, as the kubelet's admission does by the scheduler's `NodePorts`.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::PodSpec;
use parking_lot::Mutex;
use proa_crds::HostPort;

use super::status::reasons;

/// The ports that are held, by the uid of the pod that has them.
#[derive(Default)]
pub(crate) struct Ports {
    held: Mutex<HashMap<String, Vec<HostPort>>>,
}

impl Ports {
    /// Gives a new pod its ports, unless another has one of them: reason and message of a pod that has failed.
    pub(crate) fn take(&self, uid: &str, spec: &PodSpec) -> Result<(), (&'static str, String)> {
        let wanted = HostPort::all(spec);
        if wanted.is_empty() {
            return Ok(());
        }
        let mut held = self.held.lock();
        let others = held.iter().filter(|(holder, _)| *holder != uid).flat_map(|(_, ports)| ports);
        if others.into_iter().any(|port| wanted.iter().any(|wanted| wanted.collides(port))) {
            let why = format!("Pod was rejected: Predicate {} failed: {}", reasons::NODE_PORTS, HostPort::TAKEN);
            return Err((reasons::NODE_PORTS, why));
        }
        held.insert(uid.to_owned(), wanted);
        Ok(())
    }

    /// Records what a pod has that runs already.
    pub(crate) fn keep(&self, uid: &str, spec: &PodSpec) {
        let ports = HostPort::all(spec);
        if !ports.is_empty() {
            self.held.lock().insert(uid.to_owned(), ports);
        }
    }

    /// What the pod had others may have.
    pub(crate) fn release(&self, uid: &str) {
        self.held.lock().remove(uid);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn spec(port: Value, host_network: bool) -> PodSpec {
        let container = json!({"name": "main", "ports": [port]});
        serde_json::from_value(json!({"hostNetwork": host_network, "containers": [container]})).unwrap()
    }

    /// Conformance: StatefulSet, Recreate Failed Pod (the node's part of it).
    #[test]
    fn a_port_of_the_host_belongs_to_the_first_pod_until_it_is_gone() {
        let ports = Ports::default();
        let every = spec(json!({"containerPort": 80, "hostPort": 8080}), false);
        ports.take("a", &every).unwrap();
        assert_eq!(ports.take("a", &every), Ok(()), "its own are in nobody's way");
        let why = "Pod was rejected: Predicate NodePorts failed: \
                   node(s) didn't have free ports for the requested pod ports";
        for (taken, port, host_network) in [
            (true, json!({"containerPort": 1, "hostPort": 8080}), false),
            (true, json!({"containerPort": 1, "hostPort": 8080, "hostIP": "127.0.0.1"}), false),
            (true, json!({"containerPort": 8080}), true),
            (false, json!({"containerPort": 8080}), false),
            (false, json!({"containerPort": 1, "hostPort": 8080, "protocol": "UDP"}), false),
        ] {
            let outcome = ports.take("b", &spec(port.clone(), host_network));
            let expected = if taken { Err(("NodePorts", why.to_owned())) } else { Ok(()) };
            assert_eq!(outcome, expected, "{port}");
            ports.release("b");
        }
        ports.release("a");
        assert_eq!(ports.take("b", &every), Ok(()));
        // One that runs already is not asked.
        ports.keep("a", &every);
        assert!(ports.take("c", &every).is_err());
    }
}
