//! The command line: starting, stopping, starting again, leaving nothing behind.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::harness::{Cluster, eventually, text};

const QUICKSTART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/manifests/quickstart.yaml");

fn node_port() -> SocketAddr {
    SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 30080))
}

#[test]
fn the_quickstart_says_where_it_answers_and_answers_there() {
    let mut cluster = Cluster::prepared();
    let said = cluster.start(&["--apply", QUICKSTART]);
    assert!(said.contains("deployment/web"), "{said}");
    assert!(said.contains("http://127.0.0.1:30080"), "{said}");
    let (status, body) = cluster.get(node_port(), "/").expect("the sample answers");
    assert_eq!(status, 200);
    assert!(body.starts_with("echo v1 pod=web-") && body.trim_end().ends_with("node=node-1"), "{body}");
    assert_eq!(cluster.get(node_port(), "/env/ECHO_VERSION").unwrap(), (200, "v1\n".into()));
    assert_eq!(cluster.get(node_port(), "/healthz").unwrap().0, 200);
    // The user goes on with kubectl and the same file: nothing to change, nothing to warn about.
    let output = cluster.try_kubectl(&["apply", "-f", QUICKSTART]);
    assert_eq!(text(&output), "deployment.apps/web unchanged\nservice/web unchanged\n");
}

#[test]
fn stopping_is_quick_and_leaves_containers_that_the_next_start_takes_back() {
    let mut cluster = Cluster::up_with(&["--apply", QUICKSTART]);
    let before = cluster.kubectl(&["get", "pods", "-o", PODS]);
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let (status, took) = cluster.stop(signal);
        assert!(status.success(), "{status}");
        assert!(took < Duration::from_secs(2), "stopping took {took:?}");
        let (code, _) = cluster.get(node_port(), "/").expect("containers and their network go on without us");
        assert_eq!(code, 200);
        cluster.start(&["--apply", QUICKSTART]);
        assert_eq!(cluster.kubectl(&["get", "pods", "-o", PODS]), before, "same pods, same containers, no restarts");
        let logs = cluster.kubectl(&["logs", "deployment/web"]);
        assert_eq!(logs.matches("listening on 8080").count(), 1, "{logs}");
    }
}

const PODS: &str = "jsonpath={range .items[*]}{.metadata.uid} {.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount}{\"\\n\"}{end}";

#[test]
fn a_taken_port_and_a_second_platform_on_one_directory_are_refused_in_one_sentence() {
    let mut cluster = Cluster::prepared();
    let listener = cluster.namespace.enter(|| TcpListener::bind("127.0.0.1:6443").expect("a port"));
    let output = cluster.proa(&["up"]).output().expect("proa runs");
    assert!(!output.status.success());
    assert_eq!(
        text(&output),
        "proa: 127.0.0.1:6443 is already in use: stop what listens there, or choose another address with --listen ADDR:PORT\n"
    );
    drop(listener);
    cluster.start(&[]);
    let output = cluster.proa(&["up", "--listen", "127.0.0.1:7443"]).output().expect("proa runs");
    assert!(!output.status.success());
    assert_eq!(text(&output).lines().count(), 1, "{}", text(&output));
    assert!(text(&output).contains("another proa"), "{}", text(&output));
}

#[test]
fn a_directory_of_others_is_neither_used_nor_removed() {
    let cluster = Cluster::prepared();
    std::fs::create_dir(cluster.data()).expect("somebody's directory");
    let thesis = cluster.data().join("thesis.tex");
    std::fs::write(&thesis, "42").expect("somebody's file");
    for command in ["up", "reset"] {
        let output = cluster.proa(&[command]).output().expect("proa runs");
        assert!(!output.status.success());
        assert_eq!(text(&output).lines().count(), 1, "{}", text(&output));
        assert!(text(&output).contains("is no data directory of Proa, it holds thesis.tex"), "{}", text(&output));
    }
    assert_eq!(std::fs::read_dir(cluster.data()).expect("it").count(), 1);
    std::fs::remove_file(thesis).expect("it is there");
}

#[test]
fn apply_removes_what_left_the_file_and_goes_on_past_what_fails() {
    let mut cluster = Cluster::up();
    let settings =
        |data: &str| format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: settings}}\ndata: {{{data}}}\n");
    cluster.apply(&settings("colour: blue, taste: sweet"));
    cluster.stop(Signal::SIGTERM);
    let file = cluster.scratch().join("file.yaml");
    let list = r#"{"apiVersion": "v1", "kind": "List", "items": [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}]}"#;
    let nonsense = "apiVersion: v1\nkind: Nonsense\nmetadata: {name: a}\n";
    std::fs::write(&file, format!("{nonsense}---\n{}---\n{list}\n", settings("colour: red"))).expect("a manifest");
    let said = cluster.start(&["--apply", file.to_str().expect("a path")]);
    assert!(said.contains("no kind Nonsense in v1") && said.contains(", but for what failed above."), "{said}");
    assert_eq!(cluster.kubectl(&["get", "configmap", "settings", "-o", "jsonpath={.data}"]), r#"{"colour":"red"}"#);
    cluster.kubectl(&["get", "namespace", "shop"]);
    // And kubectl goes on from there.
    cluster.apply(&settings("taste: sour"));
    assert_eq!(cluster.kubectl(&["get", "configmap", "settings", "-o", "jsonpath={.data}"]), r#"{"taste":"sour"}"#);
}

#[test]
fn without_root_it_says_that_it_needs_root() {
    let cluster = Cluster::prepared();
    let mut command = cluster.proa(&["up"]);
    std::os::unix::process::CommandExt::uid(&mut command, 65534);
    let output = command.stdout(Stdio::piped()).stderr(Stdio::piped()).output();
    // A user who may not even read the binary's folder cannot say anything about Proa.
    let Ok(output) = output else { return };
    assert!(!output.status.success());
    assert_eq!(text(&output), "proa: running containers needs root: start it again with sudo\n");
}

#[test]
fn reset_leaves_the_machine_as_it_was_found() {
    let traces = |cluster: &Cluster| {
        let mounts = std::fs::read_to_string("/proc/self/mounts").expect("mounts");
        let data = cluster.data().to_str().expect("a path").to_owned();
        let ours = mounts.lines().filter(|line| line.contains(&data)).count();
        let links = cluster.namespace.enter(|| std::fs::read_to_string("/proc/thread-self/net/dev").expect("links"));
        let routes =
            cluster.namespace.enter(|| std::fs::read_to_string("/proc/thread-self/net/route").expect("routes"));
        let forward =
            cluster.namespace.enter(|| std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").expect("sysctl"));
        (ours, links.lines().count(), routes.lines().count(), forward)
    };
    let mut cluster = Cluster::prepared();
    let before = traces(&cluster);
    cluster.start(&["--apply", QUICKSTART]);
    assert_ne!(traces(&cluster), before, "the running platform leaves traces to look for");
    let uid = cluster.kubectl(&["get", "pods", "-o", "jsonpath={.items[0].metadata.uid}"]);
    let cgroups = cgroups_above(&uid);
    assert!(!cgroups.is_empty(), "the pod has control groups");
    // A pod of another class that has come and gone: its parent group is nobody's any more.
    cluster.apply("apiVersion: v1\nkind: Pod\nmetadata: {name: gone}\nspec: {terminationGracePeriodSeconds: 0, containers: [{name: main, image: 'example/echo:v1', resources: {requests: {cpu: 10m}}}]}\n");
    cluster.kubectl(&["wait", "pod/gone", "--for=condition=Ready", "--timeout=30s"]);
    cluster.kubectl(&["delete", "pod", "gone", "--timeout=30s"]);
    cluster.stop(Signal::SIGKILL);
    let output = cluster.proa(&["reset"]).output().expect("proa runs");
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(traces(&cluster), before);
    let left: Vec<&PathBuf> = cgroups.iter().filter(|folder| folder.exists()).collect();
    assert!(left.is_empty(), "control groups are left: {left:?}");
    assert_eq!(std::fs::read_dir(cluster.data()).map(Iterator::count).unwrap_or(0), 0, "the data directory is empty");
    eventually("no process of the platform is left", || {
        let data = cluster.data().to_str().expect("a path").to_owned();
        let alive = std::fs::read_dir("/proc")
            .expect("proc")
            .flatten()
            .any(|entry| std::fs::read_to_string(entry.path().join("cmdline")).is_ok_and(|line| line.contains(&data)));
        (!alive).then_some(())
    });
}

#[test]
fn reset_ends_what_is_left_of_a_platform_whose_directory_was_deleted() {
    let links = |cluster: &Cluster| {
        let read = || std::fs::read_to_string("/proc/thread-self/net/dev").expect("links");
        cluster.namespace.enter(read).lines().count()
    };
    let mut cluster = Cluster::prepared();
    let before = links(&cluster);
    cluster.start(&["--apply", QUICKSTART]);
    let uid = cluster.kubectl(&["get", "pods", "-o", "jsonpath={.items[0].metadata.uid}"]);
    let cgroups = cgroups_above(&uid);
    assert!(!cgroups.is_empty() && links(&cluster) > before && !cluster.shims().is_empty());
    cluster.stop(Signal::SIGKILL);
    // All of it but the places where something is mounted.
    let _ = std::process::Command::new("rm").arg("-rf").arg(cluster.data()).stderr(Stdio::null()).status();
    let output = cluster.proa(&["reset"]).output().expect("proa runs");
    assert!(output.status.success(), "{}", text(&output));
    let left: Vec<&PathBuf> = cgroups.iter().filter(|folder| folder.exists()).collect();
    assert!(left.is_empty(), "control groups are left: {left:?}");
    assert_eq!(links(&cluster), before);
    assert_eq!(cluster.shims(), Vec::<i32>::new());
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("mounts");
    assert!(!mounts.contains(cluster.data().to_str().expect("a path")), "{mounts}");
    assert_eq!(std::fs::read_dir(cluster.data()).map(Iterator::count).unwrap_or(0), 0, "no file is left");
}

/// Folders of this platform's control groups, over all hierarchies. Other platforms run at the same time: ours is the one
/// whose group holds the pod.
fn cgroups_above(pod: &str) -> Vec<PathBuf> {
    let found = |root: &Path| -> Vec<PathBuf> {
        folders(&root.join("proa")).into_iter().filter(|instance| holds(instance, pod)).collect()
    };
    let root = Path::new("/sys/fs/cgroup");
    folders(root).into_iter().chain([root.to_owned()]).flat_map(|hierarchy| found(&hierarchy)).collect()
}

fn holds(folder: &Path, pod: &str) -> bool {
    folders(folder).iter().any(|child| child.ends_with(format!("pod{pod}")) || holds(child, pod))
}

fn folders(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}
