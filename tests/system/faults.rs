//! Faults are everyday: what is killed comes back, and nothing is lost.

use std::path::Path;

use nix::sys::signal::Signal;

use crate::harness::{Cluster, eventually};

const COUNTER: &str = "
apiVersion: v1
kind: Pod
metadata: {name: counter}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: 'test/busybox:1', command: [sh, -c, 'i=0; while true; do echo $i; i=$((i+1)); sleep 0.05; done']}]
---
apiVersion: v1
kind: Pod
metadata: {name: ends}
spec:
  restartPolicy: Never
  containers: [{name: main, image: 'test/busybox:1', command: [sh, -c, 'echo working; until test -e /out/go; do sleep 0.05; done; echo done; exit 5'], volumeMounts: [{name: out, mountPath: /out}]}]
  volumes: [{name: out, hostPath: {path: OUT, type: DirectoryOrCreate}}]
";

#[test]
fn killing_the_platform_loses_no_container_no_exit_code_and_no_log_line() {
    let mut cluster = Cluster::up();
    cluster.load_busybox();
    let out = cluster.scratch().join("out");
    cluster.apply(&COUNTER.replace("OUT", out.to_str().expect("a path")));
    cluster.kubectl(&["wait", "pod/counter", "pod/ends", "--for=condition=Ready", "--timeout=30s"]);
    let id = || cluster_container(&cluster, "counter");
    let before = id();
    cluster.stop(Signal::SIGKILL);
    // This container ends while nobody of ours is there to see it.
    std::fs::write(out.join("go"), "").expect("the signal file");
    cluster.start(&[]);
    assert_eq!(cluster_container(&cluster, "counter"), before);
    cluster.wait_for("pod/ends", ".status.containerStatuses[0].state.terminated.exitCode", "5");
    assert_eq!(cluster.kubectl(&["logs", "ends"]), "working\ndone\n");
    let log = cluster.kubectl(&["logs", "counter"]);
    assert!(log.lines().enumerate().all(|(index, line)| line == index.to_string()), "a line is missing:\n{log}");
    assert_eq!(cluster.kubectl(&["exec", "counter", "--", "echo", "still here"]), "still here\n");
}

fn cluster_container(cluster: &Cluster, pod: &str) -> String {
    cluster.kubectl(&[
        "get",
        "pod",
        pod,
        "-o",
        "jsonpath={.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount}",
    ])
}

#[test]
fn a_container_whose_shim_is_killed_is_started_again() {
    let cluster = Cluster::up();
    cluster.load_busybox();
    cluster.apply("apiVersion: v1\nkind: Pod\nmetadata: {name: box}\nspec: {terminationGracePeriodSeconds: 0, containers: [{name: main, image: 'test/busybox:1', command: [sleep, '3600']}]}\n");
    cluster.kubectl(&["wait", "pod/box", "--for=condition=Ready", "--timeout=30s"]);
    let shims = cluster.shims();
    assert!(!shims.is_empty(), "the container has a shim");
    for shim in shims {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim), Signal::SIGKILL).expect("the shim runs");
    }
    cluster.wait_for("pod/box", ".status.containerStatuses[0].restartCount", "1");
    cluster.wait_for("pod/box", ".status.containerStatuses[0].ready", "true");
    let sleeping = || cluster.kubectl(&["exec", "box", "--", "sh", "-c", "ps | grep -c '[s]leep 3600'"]);
    assert_eq!(eventually("exec works in the new container", || Some(sleeping())), "1\n");
}

#[test]
fn pods_deleted_while_the_platform_was_down_are_removed_at_the_next_start() {
    let mut cluster = Cluster::up();
    cluster.load_busybox();
    cluster.apply("apiVersion: v1\nkind: Pod\nmetadata: {name: box}\nspec: {terminationGracePeriodSeconds: 0, containers: [{name: main, image: 'test/busybox:1', command: [sleep, '3600']}]}\n");
    cluster.kubectl(&["wait", "pod/box", "--for=condition=Ready", "--timeout=30s"]);
    cluster.kubectl(&["delete", "pod", "box", "--wait=false"]);
    cluster.stop(Signal::SIGKILL);
    cluster.start(&[]);
    cluster.kubectl(&["wait", "pod/box", "--for=delete", "--timeout=30s"]);
}

/// A pod whose init container leaves something in memory and something on the disk.
const PREPARED: &str = "
apiVersion: v1
kind: Pod
metadata: {name: box}
spec:
  terminationGracePeriodSeconds: 0
  volumes: [{name: memory, emptyDir: {medium: Memory}}, {name: disk, emptyDir: {}}]
  initContainers:
  - {name: init, image: 'test/busybox:1', command: [sh, -c, 'echo prepared > /memory/file; echo init >> /disk/log'], volumeMounts: &both [{name: memory, mountPath: /memory}, {name: disk, mountPath: /disk}]}
  containers:
  - {name: main, image: 'test/busybox:1', command: [sh, -c, 'cat /memory/file && exec sleep 3600'], volumeMounts: *both}
";

#[test]
fn after_a_reboot_pods_run_again_from_their_init_containers_on() {
    let mut cluster = Cluster::up();
    cluster.load_busybox();
    cluster.apply(PREPARED);
    cluster.kubectl(&["wait", "pod/box", "--for=condition=Ready", "--timeout=30s"]);
    let before = cluster_value(&cluster, "{.status.podIP}");

    cluster.stop(Signal::SIGKILL);
    let processes = cluster.shims();
    assert!(!processes.is_empty(), "the container has a shim");
    for shim in processes {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim), Signal::SIGKILL).expect("the shim runs");
    }
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("mounts");
    let data = cluster.data();
    for place in
        mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(|place| Path::new(place).starts_with(data))
    {
        nix::mount::umount2(place, nix::mount::MntFlags::MNT_DETACH).expect("it is mounted");
    }
    cluster.namespace = crate::harness::Namespace::new();
    cluster.start(&[]);

    cluster.wait_for("pod/box", ".status.containerStatuses[0].restartCount", "1");
    cluster.kubectl(&["wait", "pod/box", "--for=condition=Ready", "--timeout=30s"]);
    assert_eq!(cluster.kubectl(&["logs", "box"]), "prepared\n");
    assert_eq!(cluster.kubectl(&["exec", "box", "--", "cat", "/disk/log"]), "init\ninit\n");
    assert_eq!(cluster_value(&cluster, "{.status.podIP}"), before, "the address is still the pod's");
}

fn cluster_value(cluster: &Cluster, path: &str) -> String {
    cluster.kubectl(&["get", "pod", "box", "-o", &format!("jsonpath={path}")])
}
