//! Every sample of `manifests/` runs as it is.

use crate::harness::{Cluster, eventually};

fn sample(name: &str) -> String {
    std::fs::read_to_string(format!("{}/manifests/{name}.yaml", env!("CARGO_MANIFEST_DIR"))).expect("the sample")
}

#[test]
fn the_rolling_update_sample_runs() {
    let cluster = Cluster::up();
    cluster.apply(&sample("rolling-update"));
    cluster.kubectl(&["rollout", "status", "deployment/rolling", "--timeout=60s"]);
}

#[test]
fn the_automatic_rollback_sample_goes_back_as_its_comment_says() {
    let cluster = Cluster::up();
    cluster.apply(&sample("automatic-rollback"));
    cluster.kubectl(&["-n", "guarded", "rollout", "status", "deployment/web", "--timeout=60s"]);
    cluster.kubectl(&["-n", "guarded", "set", "image", "deployment/web", "echo=example/echo:broken"]);
    cluster.kubectl(&["-n", "guarded", "wait", "deployment/web", "--for=condition=RolledBack", "--timeout=60s"]);
    assert!(cluster.kubectl(&["-n", "guarded", "describe", "deployment/web"]).contains("RolledBack"));
    cluster.kubectl(&["-n", "guarded", "set", "image", "deployment/web", "echo=example/echo:broken"]);
    cluster.kubectl(&["-n", "guarded", "wait", "deployment/web", "--for=condition=RolloutRefused", "--timeout=60s"]);
    cluster.kubectl(&["-n", "guarded", "annotate", "deployment/web", "proa.dev/retry=1"]);
    eventually("it is tried again", || {
        cluster
            .kubectl(&["-n", "guarded", "get", "events", "-o", "name", "--field-selector=reason=RolloutRetried"])
            .contains("event")
            .then_some(())
    });
}

#[test]
fn the_configuration_sample_reads_what_it_is_given() {
    let cluster = Cluster::up();
    cluster.apply(&sample("configuration"));
    cluster.kubectl(&["rollout", "status", "deployment/configured", "--timeout=60s"]);
    let ip = cluster.kubectl(&["get", "pods", "-l", "app=configured", "-o", "jsonpath={.items[0].status.podIP}"]);
    let get = |path: &str| cluster.get(format!("{ip}:8080").parse().expect("an address"), path).expect("an answer").1;
    assert_eq!(get("/env/GREETING"), "hello\n");
    assert_eq!(get("/env/PASSWORD"), "correct horse battery staple\n");

    // As its comment says.
    let says = |greeting: &str| {
        eventually(greeting, || {
            let ips =
                cluster.kubectl(&["get", "pods", "-l", "app=configured", "-o", "jsonpath={.items[*].status.podIP}"]);
            let (_, body) = cluster.get(format!("{ips}:8080").parse().ok()?, "/env/GREETING").ok()?;
            (body.trim() == greeting).then_some(())
        });
    };
    cluster.kubectl(&["patch", "configmap", "greeting", "--type=merge", "-p", r#"{"data":{"GREETING":"goodbye"}}"#]);
    cluster.kubectl(&["set", "image", "deployment/configured", "echo=example/echo:v2"]);
    says("goodbye");
    cluster.kubectl(&["rollout", "undo", "deployment/configured"]);
    says("hello");
    let described = cluster.kubectl(&["describe", "deployment/configured"]);
    assert!(described.contains("ConfigRevision") && described.contains("GoneBack"), "{described}");
}

#[test]
fn the_two_tier_sample_finds_its_back_by_name() {
    let cluster = Cluster::up();
    cluster.apply(&sample("two-tier"));
    cluster.kubectl(&["-n", "two-tier", "rollout", "status", "deployment/front", "--timeout=60s"]);
    let port =
        cluster.kubectl(&["-n", "two-tier", "get", "service", "front", "-o", "jsonpath={.spec.ports[0].nodePort}"]);
    let address = format!("127.0.0.1:{port}").parse().expect("an address");
    let logs = cluster.kubectl(&["-n", "two-tier", "logs", "deployment/front", "-c", "wait-for-back"]);
    assert!(logs.contains("http://back/healthz answers"), "{logs}");
    let (_, body) = eventually("the front answers", || cluster.get(address, "/").ok());
    assert!(body.starts_with("echo v2 pod=front-"), "{body}");
}
