//! The bounds of a namespace as its owner meets them: quotas that hold and give back, limits that fill in and refuse, and
//! pods that may not do what the namespace does not allow.

use crate::harness::{Cluster, text};

const WEB: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: echo, image: 'example/echo:v1'}]
";

/// Conformance: ResourceQuota's lives of pods, config maps and replica sets; ReplicaSet's "failure condition on exceeded
/// quota" and its going away; LimitRange's defaults.
#[test]
fn a_namespace_is_held_to_its_bounds_and_gets_back_what_goes() {
    let cluster = Cluster::up();
    let kubectl = |arguments: &[&str]| cluster.kubectl(&[&["-n", "shop"], arguments].concat());
    let used = |what: &str, amount: &str| {
        let condition = format!("--for=jsonpath={{.status.used.{what}}}={amount}");
        kubectl(&["wait", "resourcequota/q", &condition, "--timeout=60s"]);
    };
    cluster.kubectl(&["create", "namespace", "shop"]);
    kubectl(&["wait", "--for=create", "serviceaccount/default", "configmap/kube-root-ca.crt", "--timeout=60s"]);
    kubectl(&[
        "create",
        "quota",
        "q",
        "--hard=pods=2,configmaps=2,resourcequotas=1,count/replicasets.apps=5,requests.cpu=1",
    ]);
    // What was there before is counted, the quota itself and the CA's map with it.
    used("pods", "0");
    used("configmaps", "1");
    used("resourcequotas", "1");

    // Without a request there is nothing to count; the limit range gives one.
    let refused = cluster.kubectl_fails(&["-n", "shop", "run", "a", "--image=example/echo:v1"]);
    assert!(refused.contains("failed quota: q: must specify requests.cpu for: a"), "{refused}");
    cluster.kubectl_stdin(
        &["-n", "shop", "apply", "-f", "-"],
        "{apiVersion: v1, kind: LimitRange, metadata: {name: usual}, spec: {limits: [{type: Container, defaultRequest: {cpu: 10m}, max: {cpu: 500m}}]}}",
    );

    cluster.kubectl_stdin(&["-n", "shop", "apply", "-f", "-"], WEB);
    kubectl(&["wait", "replicaset", "-l", "app=web", "--for=condition=ReplicaFailure", "--timeout=60s"]);
    let why = kubectl(&[
        "get",
        "replicaset",
        "-l",
        "app=web",
        "-o",
        "jsonpath={.items[0].status.conditions[?(@.type==\"ReplicaFailure\")].message}",
    ]);
    assert!(why.contains("exceeded quota: q, requested: pods=1, used: pods=2, limited: pods=2"), "{why}");
    used("pods", "2");
    used(r"requests\.cpu", "20m");
    used(r"count/replicasets\.apps", "1");

    // Fewer pods: the failure is over, and what they used is free.
    kubectl(&["scale", "deployment/web", "--replicas=1"]);
    used("pods", "1");
    used(r"requests\.cpu", "10m");
    kubectl(&["wait", "deployment/web", "--for=jsonpath={.status.readyReplicas}=1", "--timeout=60s"]);
    let failures = kubectl(&["get", "replicaset", "-l", "app=web", "-o", "jsonpath={.items[0].status.conditions}"]);
    assert!(!failures.contains("ReplicaFailure"), "{failures}");

    kubectl(&["create", "configmap", "mine"]);
    used("configmaps", "2");
    let refused = cluster.kubectl_fails(&["-n", "shop", "create", "configmap", "more"]);
    assert!(
        refused.contains("configmaps \"more\" is forbidden: exceeded quota: q, requested: configmaps=1, used: configmaps=2, limited: configmaps=2"),
        "{refused}"
    );
    kubectl(&["delete", "configmap", "mine"]);
    used("configmaps", "1");

    // A pod that has ended uses nothing, though it is still there.
    kubectl(&["run", "once", "--image=example/echo:v1", "--restart=Never", "--command", "--", "/no-such-program"]);
    kubectl(&["wait", "pod/once", "--for=jsonpath={.status.phase}=Failed", "--timeout=60s"]);
    used("pods", "1");

    // Another bound is enforced as soon as it is taken up, and what is told of it is what kubectl prints.
    kubectl(&["patch", "quota", "q", "--type=merge", "-p", r#"{"spec":{"hard":{"pods":"5"}}}"#]);
    kubectl(&["wait", "resourcequota/q", "--for=jsonpath={.status.hard.pods}=5", "--timeout=60s"]);
    let table = kubectl(&["get", "quota"]);
    assert!(table.contains("pods: 1/5") && table.contains("requests.cpu: 10m/1"), "{table}");

    let allowed = "pod-security.kubernetes.io/enforce=restricted";
    let told = text(&cluster.try_kubectl(&["label", "namespace", "shop", allowed]));
    assert!(
        told.contains(
            "existing pods in namespace \"shop\" violate the new PodSecurity enforce level \"restricted:latest\""
        ),
        "{told}"
    );
    let refused = cluster.kubectl_fails(&["-n", "shop", "run", "b", "--image=example/echo:v1"]);
    assert!(refused.contains("pods \"b\" is forbidden: violates PodSecurity \"restricted:latest\": allowPrivilegeEscalation != false (container \"b\""), "{refused}");
}
