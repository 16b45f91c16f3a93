//! Rolling out and back by hand, exactly as kubectl users know it, without losing a request.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::harness::{Cluster, get};

const ROLLING: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/manifests/rolling-update.yaml");

fn image(cluster: &Cluster) -> String {
    cluster.kubectl(&["get", "deployment", "rolling", "-o", "jsonpath={.spec.template.spec.containers[0].image}"])
}

#[test]
fn history_undo_pause_resume_and_restart_are_what_kubectl_users_know() {
    let cluster = Cluster::up();
    cluster.apply(&std::fs::read_to_string(ROLLING).unwrap());
    let status = |arguments: &[&str]| cluster.kubectl(&[&["rollout"], arguments, &["deployment/rolling"]].concat());
    assert!(status(&["status", "--timeout=60s"]).ends_with("deployment \"rolling\" successfully rolled out\n"));
    cluster.kubectl(&["set", "image", "deployment/rolling", "echo=example/echo:v2"]);
    cluster.kubectl(&["annotate", "deployment/rolling", "kubernetes.io/change-cause=second release", "--overwrite"]);
    status(&["status", "--timeout=60s"]);
    let history = status(&["history"]);
    let rows: Vec<Vec<&str>> = history.lines().skip(2).map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[..2], [vec!["1", "first", "release"], vec!["2", "second", "release"]], "{history}");
    assert!(status(&["history", "--revision=1"]).contains("example/echo:v1"));

    assert_eq!(status(&["undo"]), "deployment.apps/rolling rolled back\n");
    status(&["status", "--timeout=60s"]);
    assert_eq!(image(&cluster), "example/echo:v1");
    // Revision 1 has become revision 3, with its cause.
    let history = status(&["history"]);
    let rows: Vec<Vec<&str>> = history.lines().skip(2).map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[..2], [vec!["2", "second", "release"], vec!["3", "first", "release"]], "{history}");
    status(&["undo", "--to-revision=2"]);
    status(&["status", "--timeout=60s"]);
    assert_eq!(image(&cluster), "example/echo:v2");

    status(&["pause"]);
    cluster.kubectl(&["set", "image", "deployment/rolling", "echo=example/echo:v1"]);
    cluster.wait_for("deployment/rolling", ".status.conditions[?(@.type==\"Progressing\")].reason", "DeploymentPaused");
    assert_eq!(cluster.kubectl(&["get", "deployment", "rolling", "-o", "jsonpath={.status.updatedReplicas}"]), "");
    status(&["resume"]);
    status(&["status", "--timeout=60s"]);
    let before = cluster.kubectl(&["get", "pods", "-l", "app=rolling", "-o", "name"]);
    status(&["restart"]);
    status(&["status", "--timeout=60s"]);
    let after = cluster.kubectl(&["get", "pods", "-l", "app=rolling", "--field-selector=status.phase=Running", "-o", "name"]);
    assert!(before.lines().all(|pod| !after.contains(pod)), "{before}\n{after}");
}

#[test]
fn a_rolling_update_and_its_undo_lose_not_one_request() {
    let cluster = Cluster::up();
    cluster.apply(&std::fs::read_to_string(ROLLING).unwrap());
    cluster.kubectl(&["rollout", "status", "deployment/rolling", "--timeout=60s"]);
    let ip = cluster.kubectl(&["get", "service", "rolling", "-o", "jsonpath={.spec.clusterIP}"]);
    let address: SocketAddr = format!("{ip}:80").parse().expect("a cluster IP");
    let stop = AtomicBool::new(false);
    let served = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    cluster.namespace.enter(|| {
                        while !stop.load(Ordering::Relaxed) {
                            match get(address, "/") {
                                Ok((200, body)) if body.starts_with("echo v") => served.fetch_add(1, Ordering::Relaxed),
                                lost => return Err(format!("after {} requests: {lost:?}", served.load(Ordering::Relaxed))),
                            };
                        }
                        Ok(())
                    })
                })
            })
            .collect();
        let _stop = StopOnDrop(&stop);
        for step in [&["set", "image", "deployment/rolling", "echo=example/echo:v2"][..], &["rollout", "undo", "deployment/rolling"][..]] {
            cluster.kubectl(step);
            cluster.kubectl(&["rollout", "status", "deployment/rolling", "--timeout=90s"]);
        }
        // The last old pods have ended too before the load does.
        cluster.wait_for("deployment/rolling", ".status.replicas", "5");
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            client.join().expect("a client").expect("no request is lost");
        }
    });
    assert!(served.load(Ordering::Relaxed) > 500, "only {served:?} requests: no load to speak of");
}

/// A failing assertion must end the clients too, or the test would hang instead of failing.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
