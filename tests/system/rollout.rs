//! Rolling out and back by hand, exactly as kubectl users know it, without losing a request.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::harness::{Cluster, eventually, get, text};

pub(crate) const ROLLING: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/manifests/rolling-update.yaml");

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

    // Ours does the same.
    let rollback = |arguments: &[&str]| {
        let mut rollback = cluster.namespace.command(crate::harness::PROA);
        rollback.args(["rollback", "deployment/rolling"]).args(arguments).arg("--kubeconfig").arg(cluster.kubeconfig());
        let output = rollback.output().expect("proa rollback runs");
        assert!(output.status.success(), "{}", text(&output));
        status(&["status", "--timeout=60s"]);
        text(&output)
    };
    assert_eq!(rollback(&["--to", "3"]), "deployment/rolling goes back from revision 4 to revision 3\n");
    assert_eq!(image(&cluster), "example/echo:v1");
    assert_eq!(rollback(&[]), "deployment/rolling goes back from revision 5 to revision 4\n");
    assert_eq!(image(&cluster), "example/echo:v2");

    // The undo of an undo, while somebody watches.
    let mut watch =
        cluster.kubectl_command(&["get", "deployment", "rolling", "-w", "--no-headers"]).spawn().expect("kubectl runs");
    status(&["undo"]);
    status(&["status", "--timeout=60s"]);
    assert_eq!(image(&cluster), "example/echo:v1");
    status(&["undo"]);
    status(&["status", "--timeout=60s"]);
    assert_eq!(image(&cluster), "example/echo:v2");
    watch.kill().expect("kubectl watches");
    let seen = String::from_utf8_lossy(&watch.wait_with_output().expect("its output").stdout).into_owned();
    let last: Vec<&str> = seen.lines().last().unwrap_or_default().split_whitespace().take(4).collect();
    assert!(seen.lines().count() > 6 && last == ["rolling", "5/5", "5", "5"], "{seen}");
    assert!(seen.lines().all(|line| !line.contains("3/5")), "more than one pod was missing:\n{seen}");
    assert!(
        cluster
            .kubectl_fails(&["rollout", "undo", "deployment/rolling", "--to-revision=99"])
            .contains("unable to find")
    );

    status(&["pause"]);
    assert!(cluster.kubectl_fails(&["rollout", "undo", "deployment/rolling"]).contains("paused"));
    cluster.kubectl(&["set", "image", "deployment/rolling", "echo=example/echo:v1"]);
    cluster.wait_for("deployment/rolling", ".status.conditions[?(@.type==\"Progressing\")].reason", "DeploymentPaused");
    assert_eq!(cluster.kubectl(&["get", "deployment", "rolling", "-o", "jsonpath={.status.updatedReplicas}"]), "");
    status(&["resume"]);
    status(&["status", "--timeout=60s"]);
    let before = cluster.kubectl(&["get", "pods", "-l", "app=rolling", "-o", "name"]);
    status(&["restart"]);
    status(&["status", "--timeout=60s"]);
    eventually("every pod of before has ended", || {
        let after = cluster.kubectl(&["get", "pods", "-l", "app=rolling", "-o", "name"]);
        before.lines().all(|pod| !after.contains(pod)).then_some(())
    });
}

/// Runs `story` while four clients ask the Service `rolling` over new connections; every one must be answered.
pub(crate) fn under_load(cluster: &Cluster, story: impl FnOnce()) {
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
                                lost => {
                                    return Err(format!("after {} requests: {lost:?}", served.load(Ordering::Relaxed)));
                                }
                            };
                        }
                        Ok(())
                    })
                })
            })
            .collect();
        let _stop = StopOnDrop(&stop);
        story();
        // The last old pods have ended too before the load does.
        let pods = || cluster.kubectl(&["get", "pods", "-l", "app=rolling", "-o", "name"]).lines().count();
        eventually("only the wanted pods are left", || (pods() == 5).then_some(()));
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            client.join().expect("a client").expect("no request is lost");
        }
    });
    assert!(served.load(Ordering::Relaxed) > 300, "only {served:?} requests: no load to speak of");
}

/// The sample with other limits of unavailability, rolled out.
fn rolling(cluster: &Cluster, unavailable: &str) {
    let sample = std::fs::read_to_string(ROLLING).unwrap();
    cluster.apply(&sample.replace("maxUnavailable: 0", &format!("maxUnavailable: {unavailable}")));
    rolled_out(cluster);
}

/// Waits until a rollout has two pods of the new revision.
fn under_way(cluster: &Cluster) {
    eventually("the rollout is under way", || {
        let updated = cluster.kubectl(&["get", "deployment", "rolling", "-o", "jsonpath={.status.updatedReplicas}"]);
        (updated.parse::<u32>().unwrap_or(0) >= 2).then_some(())
    });
}

pub(crate) fn rolled_out(cluster: &Cluster) {
    cluster.kubectl(&["rollout", "status", "deployment/rolling", "--timeout=90s"]);
}

#[test]
fn a_rolling_update_and_its_undo_lose_not_one_request() {
    let cluster = Cluster::up();
    rolling(&cluster, "0");
    under_load(&cluster, || {
        for step in [
            &["set", "image", "deployment/rolling", "echo=example/echo:v2"][..],
            &["rollout", "undo", "deployment/rolling"][..],
        ] {
            cluster.kubectl(step);
            rolled_out(&cluster);
        }
    });
}

#[test]
fn turning_back_in_the_middle_with_fewer_pods_than_wanted_loses_not_one_request() {
    let cluster = Cluster::up();
    rolling(&cluster, "25%");
    under_load(&cluster, || {
        cluster.kubectl(&["set", "image", "deployment/rolling", "echo=example/echo:v2"]);
        under_way(&cluster);
        cluster.kubectl(&["rollout", "undo", "deployment/rolling"]);
        rolled_out(&cluster);
        assert_eq!(image(&cluster), "example/echo:v1");
    });
}

#[test]
fn pods_that_ignore_sigterm_lose_not_one_request() {
    let cluster = Cluster::up();
    cluster.load_busybox();
    // A process 1 without a handler does not hear SIGTERM: it serves on until its grace is over.
    let deaf = |version: &str| {
        let serve = format!("mkdir /tmp/w; echo echo {version} > /tmp/w/index.html; exec httpd -f -p 8080 -h /tmp/w");
        std::fs::read_to_string(ROLLING)
            .unwrap()
            .replace(
                "image: example/echo:v1",
                &format!("image: test/busybox:1\n          command: [sh, -c, '{serve}']"),
            )
            .replace("terminationGracePeriodSeconds: 10", "terminationGracePeriodSeconds: 2")
            .replace("path: /healthz", "path: /index.html")
    };
    cluster.apply(&deaf("v1"));
    rolled_out(&cluster);
    under_load(&cluster, || {
        cluster.apply(&deaf("v2"));
        rolled_out(&cluster);
        // Also when it turns back in the middle, with pods of both revisions that do not hear.
        cluster.apply(&deaf("v3"));
        under_way(&cluster);
        cluster.kubectl(&["rollout", "undo", "deployment/rolling"]);
        rolled_out(&cluster);
    });
}

/// A failing assertion must end the clients too, or the test would hang instead of failing.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_recreation_ends_all_old_pods_first_and_a_rollout_is_scaled_while_it_runs() {
    let cluster = Cluster::up();
    let sample = std::fs::read_to_string(ROLLING).unwrap();
    cluster.apply(&sample);
    rolled_out(&cluster);
    // In the middle of a rollout somebody wants more.
    cluster.kubectl(&["set", "image", "deployment/rolling", "echo=example/echo:v2"]);
    cluster.kubectl(&["scale", "deployment/rolling", "--replicas=7"]);
    rolled_out(&cluster);
    let of = |field: &str| {
        cluster.kubectl(&["get", "deployment", "rolling", "-o", &format!("jsonpath={{.status.{field}}}")])
    };
    assert_eq!([of("replicas"), of("updatedReplicas"), of("availableReplicas")], ["7", "7", "7"]);

    let patch = r#"{"spec":{"replicas":2,"strategy":{"type":"Recreate","rollingUpdate":null}}}"#;
    cluster.kubectl(&["patch", "deployment", "rolling", "--type=merge", "-p", patch]);
    rolled_out(&cluster);
    let mut watch = cluster
        .kubectl_command(&[
            "get",
            "replicasets",
            "-w",
            "--no-headers",
            "-o",
            "custom-columns=N:.metadata.name,S:.spec.replicas,R:.status.replicas",
        ])
        .spawn()
        .expect("kubectl runs");
    cluster.kubectl(&["set", "image", "deployment/rolling", "echo=example/echo:v1"]);
    rolled_out(&cluster);
    watch.kill().expect("kubectl watches");
    let seen = String::from_utf8_lossy(&watch.wait_with_output().expect("its output").stdout).into_owned();
    // Never did two replica sets have pods at the same time.
    let mut sizes = std::collections::BTreeMap::new();
    for line in seen.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        sizes.insert(fields[0], fields[2].parse::<u32>().unwrap_or(0));
        assert!(sizes.values().filter(|size| **size > 0).count() <= 1, "{line} in\n{seen}");
    }
    assert_eq!(image(&cluster), "example/echo:v1");
}

#[test]
fn what_is_orphaned_is_adopted_again_and_a_pod_relabelled_is_let_go_and_replaced() {
    let cluster = Cluster::up();
    let sample = std::fs::read_to_string(ROLLING).unwrap().replace("replicas: 5", "replicas: 2");
    cluster.apply(&sample);
    rolled_out(&cluster);
    let pods = |selector: &str| cluster.kubectl(&["get", "pods", "-l", selector, "-o", "name"]);
    let before = pods("app=rolling");
    let set = cluster.kubectl(&["get", "replicasets", "-o", "name"]);
    cluster.kubectl(&["delete", "deployment", "rolling", "--cascade=orphan"]);
    let owners = || cluster.kubectl(&["get", set.trim(), "-o", "jsonpath={.metadata.ownerReferences[*].name}"]);
    eventually("the replica set is nobody's", || owners().is_empty().then_some(()));
    cluster.apply(&sample);
    rolled_out(&cluster);
    assert_eq!((owners().as_str(), pods("app=rolling")), ("rolling", before.clone()));

    let first = before.lines().next().expect("a pod");
    cluster.kubectl(&["label", first, "app=debug", "--overwrite"]);
    eventually("another pod takes its place", || (pods("app=rolling").lines().count() == 2).then_some(()));
    rolled_out(&cluster);
    assert_eq!(pods("app=debug").trim(), first);
    assert_eq!(cluster.kubectl(&["get", first, "-o", "jsonpath={.metadata.ownerReferences}"]), "");
    // Back under its label it is one too many: adopted, and one of the three goes.
    cluster.kubectl(&["label", first, "app=rolling", "--overwrite"]);
    eventually("two are left", || (pods("app=rolling").lines().count() == 2).then_some(()));
}
