//! Faults are everyday: what is killed comes back, and nothing is lost.

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
    let data = cluster.data().to_str().expect("a path").to_owned();
    let shims: Vec<i32> = std::fs::read_dir("/proc")
        .expect("proc")
        .flatten()
        .filter_map(|entry| {
            let line = std::fs::read_to_string(entry.path().join("cmdline")).ok()?;
            (line.contains("shim") && line.contains(&data)).then(|| entry.file_name().to_str()?.parse().ok())?
        })
        .collect();
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
