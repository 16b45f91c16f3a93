//! What the conformance tests of [sig-cli] ask of the API, as the oldest and the newest kubectl of the machine ask it.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;

use crate::harness::{Cluster, Part, get, text};
use crate::kubectl::{namespace_of, with_each_kubectl};

/// A replication controller of one pod that says two lines and then what its name is to whoever asks.
fn controller(replicas: u32) -> String {
    format!(
        "apiVersion: v1\nkind: ReplicationController\nmetadata: {{name: primary, labels: {{app: primary}}}}\nspec:\n  \
         replicas: {replicas}\n  selector: {{app: primary}}\n  template:\n    metadata: {{labels: {{app: primary}}}}\n    \
         spec: {{terminationGracePeriodSeconds: 0, containers: [{{name: main, image: 'test/busybox:1', ports: [{{containerPort: 8080}}], \
         command: [sh, -c, 'echo first; echo second; mkdir -p /tmp/w; hostname > /tmp/w/index.html; exec httpd -f -p 8080 -h /tmp/w']}}]}}\n"
    )
}

fn apply(cluster: &Cluster, namespace: &str, manifest: &str) {
    cluster.kubectl_stdin(&["-n", namespace, "apply", "-f", "-"], manifest);
}

fn pod_of(kubectl: &dyn Fn(&[&str]) -> String) -> String {
    kubectl(&["get", "pods", "-l", "app=primary", "-o", "jsonpath={.items[0].metadata.name}"])
}

#[test]
fn a_replication_controller_and_its_pods_are_described_exposed_patched_scaled_and_stopped() {
    with_each_kubectl(|cluster, kubectl| {
        cluster.load_busybox();
        let namespace = namespace_of(kubectl);
        apply(cluster, &namespace, &controller(1));
        kubectl(&["wait", "rc/primary", "--for=jsonpath={.status.readyReplicas}=1", "--timeout=60s"]);
        let pod = pod_of(kubectl);
        let description = kubectl(&["describe", "pod", &pod]);
        for line in [
            "Name:",
            "Namespace:",
            "Node:",
            "Labels:",
            "app=primary",
            "Status:",
            "Running",
            "IP:",
            "Controlled By:",
            "ReplicationController/primary",
            "Image:",
            "test/busybox:1",
            "Events:",
        ] {
            assert!(description.contains(line), "{line} is missing in\n{description}");
        }
        let description = kubectl(&["describe", "rc", "primary"]);
        for line in [
            "Selector:",
            "app=primary",
            "Replicas:",
            "1 current",
            "1 desired",
            "Pods Status:",
            "1 Running",
            "Pod Template:",
            "SuccessfulCreate",
        ] {
            assert!(description.contains(line), "{line} is missing in\n{description}");
        }
        assert!(kubectl(&["describe", "namespace", &namespace]).contains("Active"));
        assert!(kubectl(&["describe", "node", "node-1"]).contains(&pod));

        kubectl(&["expose", "rc", "primary", "--name=first", "--port=1234", "--target-port=8080"]);
        kubectl(&["expose", "service", "first", "--name=second", "--port=2345", "--target-port=8080"]);
        for (name, port) in [("first", "1234"), ("second", "2345")] {
            let found = kubectl(&["get", "service", name, "-o", "jsonpath={.spec.ports[0].port} {.spec.selector.app}"]);
            assert_eq!(found, format!("{port} primary"));
            let address = kubectl(&["get", "service", name, "-o", "jsonpath={.spec.clusterIP}"]);
            let address = format!("{address}:{port}").parse().expect("an address");
            let (code, said) = crate::harness::eventually("the service answers", || cluster.get(address, "/").ok());
            assert_eq!((code, said.trim()), (200, pod.as_str()));
        }

        kubectl(&["label", "pod", &pod, "testing=yes"]);
        assert!(kubectl(&["get", "pod", &pod, "-L", "testing", "--no-headers"]).trim_end().ends_with("yes"));
        kubectl(&["label", "pod", &pod, "testing-"]);
        assert_eq!(kubectl(&["get", "pods", "-l", "testing", "-o", "name"]), "");
        kubectl(&["patch", "pod", &pod, "-p", r#"{"metadata":{"annotations":{"x":"y"}}}"#]);
        assert_eq!(kubectl(&["get", "pod", &pod, "-o", "jsonpath={.metadata.annotations.x}"]), "y");

        kubectl(&["scale", "rc", "primary", "--replicas=2", "--timeout=60s"]);
        kubectl(&["wait", "rc/primary", "--for=jsonpath={.status.readyReplicas}=2", "--timeout=60s"]);
        kubectl(&["scale", "rc", "primary", "--current-replicas=2", "--replicas=1", "--timeout=60s"]);
        kubectl(&["wait", "rc/primary", "--for=jsonpath={.status.replicas}=1", "--timeout=60s"]);
        kubectl(&["delete", "rc", "primary", "--timeout=60s"]);
        kubectl(&["wait", "pods", "-l", "app=primary", "--for=delete", "--timeout=60s"]);
    });
}

#[test]
fn a_pod_is_run_tried_out_replaced_and_its_log_filtered() {
    with_each_kubectl(|cluster, kubectl| {
        cluster.load_busybox();
        let namespace = namespace_of(kubectl);
        let script = "echo first; echo second; exec sleep 600";
        let run =
            ["run", "single", "--image=test/busybox:1", "--restart=Never", "--labels=run=single", "--command", "--"];
        kubectl(&[&run[..], &["sh", "-c", script]].concat());
        kubectl(&["wait", "pod/single", "--for=condition=Ready", "--timeout=60s"]);
        assert_eq!(
            kubectl(&["get", "pod", "single", "-o", "jsonpath={.spec.restartPolicy} {.spec.containers[0].image}"]),
            "Never test/busybox:1"
        );

        let image = |image: &str| format!(r#"{{"spec":{{"containers":[{{"name":"single","image":"{image}"}}]}}}}"#);
        kubectl(&["patch", "pod", "single", "-p", &image("test/busybox:2"), "--dry-run=server"]);
        assert_eq!(kubectl(&["get", "pod", "single", "-o", "jsonpath={.spec.containers[0].image}"]), "test/busybox:1");

        let lines = |more: &[&str]| kubectl(&[&["logs", "single"], more].concat());
        assert_eq!(lines(&[]), "first\nsecond\n");
        assert_eq!(lines(&["--tail=1"]), "second\n");
        assert_eq!(lines(&["--limit-bytes=1"]), "f");
        assert_eq!(lines(&["--since=24h"]), "first\nsecond\n");
        let stamped = lines(&["--tail=1", "--timestamps"]);
        let (stamp, line) = stamped.split_once(' ').expect("a time and a line");
        assert!(stamp.parse::<jiff::Timestamp>().is_ok() && line == "second\n", "{stamped}");

        let whole = kubectl(&["get", "pod", "single", "-o", "json"]);
        let replaced = whole.replace("\"image\": \"test/busybox:1\"", "\"image\": \"docker.io/test/busybox:1\"");
        cluster.kubectl_stdin(&["-n", &namespace, "replace", "-f", "-"], &replaced);
        assert_eq!(
            kubectl(&["get", "pod", "single", "-o", "jsonpath={.spec.containers[0].image}"]),
            "docker.io/test/busybox:1"
        );
        kubectl(&["delete", "pod", "single", "--grace-period=0", "--force"]);
    });
}

#[test]
fn kubectl_knows_the_versions_of_a_cluster_and_what_differs_in_a_deployment() {
    with_each_kubectl(|cluster, kubectl| {
        assert!(kubectl(&["api-versions"]).lines().any(|line| line == "v1"));
        let version = kubectl(&["version", "-o", "json"]);
        let version: serde_json::Value = serde_json::from_str(&version).expect("JSON");
        for part in ["major", "minor", "gitVersion", "gitCommit", "buildDate", "goVersion", "platform"] {
            assert!(version["serverVersion"][part].is_string(), "{part}: {version}");
        }
        assert!(kubectl(&["cluster-info"]).contains("is running at"));

        let deployment = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec:\n  replicas: 0\n  selector: {matchLabels: {app: web}}\n  \
             template: {metadata: {labels: {app: web}}, spec: {containers: [{name: main, image: 'test/busybox:1'}]}}\n";
        let namespace = namespace_of(kubectl);
        apply(cluster, &namespace, deployment);
        let changed = deployment.replace("busybox:1", "busybox:2");
        let diff = cluster.try_kubectl_stdin(&["-n", &namespace, "diff", "-f", "-"], &changed);
        assert_eq!(diff.status.code(), Some(1), "{}", text(&diff));
        for line in ["-      - image: test/busybox:1", "+      - image: test/busybox:2"] {
            assert!(text(&diff).contains(line), "{}", text(&diff));
        }
    });
}

#[test]
fn the_proxy_of_kubectl_serves_the_api_on_a_port_and_on_a_socket() {
    with_each_kubectl(|cluster, _| {
        let mut proxy = cluster.kubectl_command(&["proxy", "--port=0", "--disable-filter"]).spawn().expect("it starts");
        let mut line = String::new();
        BufReader::new(proxy.stdout.take().expect("piped")).read_line(&mut line).expect("where it serves");
        let _proxy = Part(proxy);
        let address = line.trim().rsplit(' ').next().and_then(|address| address.parse().ok()).expect("an address");
        let (code, api) = cluster.namespace.enter(|| get(address, "/api/")).expect("an answer");
        assert!(code == 200 && api.contains("APIVersions"), "{api}");

        let path = cluster.scratch().join("proxy.sock");
        let socket = format!("--unix-socket={}", path.display());
        let mut proxy = cluster.kubectl_command(&["proxy", &socket]).spawn().expect("it starts");
        let mut line = String::new();
        BufReader::new(proxy.stdout.take().expect("piped")).read_line(&mut line).expect("where it serves");
        let _proxy = Part(proxy);
        let mut stream = UnixStream::connect(&path).expect("it listens");
        stream.write_all(b"GET /api/ HTTP/1.0\r\nHost: localhost\r\n\r\n").expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        assert!(answer.contains(" 200 ") && answer.contains("APIVersions"), "{answer}");
        drop(_proxy);
        // Left behind by a proxy that was killed: the next one of the same name could not listen.
        let _ = std::fs::remove_file(&path);
    });
}
