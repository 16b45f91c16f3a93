//! Two machines: a platform, and an agent that joins it over a wire.

use std::path::{Path, PathBuf};

use proa_network::{NetConfig, PodNetRequest, PodNetwork};

use crate::harness::{Cluster, Namespace, PROA, Part, eventually, kubectls, text};
use crate::rollout::{ROLLING, rolled_out, under_load};

/// The addresses of the platform's machine and of the other one.
const FIRST: &str = "192.168.7.1";
const BOTH: &str = "192.168.7.0/24";
/// What tells the wire's end from the platform's own network: of one namespace, so any name will do.
const WIRE: &str = "wire";

/// A second machine, connected to the first one's namespace by a pair of interfaces; gone when dropped.
struct Machine<'a> {
    first: &'a Namespace,
    namespace: Namespace,
    wire: PathBuf,
    data: PathBuf,
}

impl<'a> Machine<'a> {
    fn beside(first: &'a Namespace, scratch: &Path) -> Machine<'a> {
        let wire = scratch.join("wire");
        let block = BOTH.parse().expect("a block");
        let config = NetConfig {
            state_dir: wire.clone(),
            instance: WIRE.into(),
            pod_cidr: block,
            cluster_cidr: block,
            service_cidr: None,
            mtu: None,
        };
        let there = first.enter(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            let network = PodNetwork::open(config).expect("the first end of the wire");
            runtime.block_on(network.setup("second", PodNetRequest::default())).expect("the second end")
        });
        Machine { first, namespace: Namespace::at(&there.netns), wire, data: scratch.join("second") }
    }

    /// Its agent, by these arguments.
    fn agent(&self, name: &str, arguments: &[&str]) -> Part {
        let mut command = self.namespace.command(PROA);
        command.arg("agent").args(arguments).args(["--node-name", name, "--data-dir"]).arg(&self.data);
        Part(command.spawn().expect("proa agent starts"))
    }
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        let reset = self.namespace.command(PROA).arg("reset").arg("--data-dir").arg(&self.data).output();
        let unplugged = self.first.enter(|| proa_network::reset(&self.wire, WIRE));
        if !std::thread::panicking() {
            let reset = reset.expect("proa reset runs");
            assert!(reset.status.success(), "{}", text(&reset));
            unplugged.expect("the wire is taken away");
        }
    }
}

/// The second machine's agent, as `node-2` of a platform that runs, once it is ready.
fn joined(cluster: &Cluster, machine: &Machine<'_>) -> Part {
    let (made, command) = cluster.command_line(&["token", "create", "--print-join-command"]);
    assert!(made, "{command}");
    let arguments: Vec<&str> = command.trim().strip_prefix("proa agent ").expect("a command").split(' ').collect();
    let agent = machine.agent("node-2", &arguments);
    eventually("the second machine registers", || {
        cluster.try_kubectl(&["get", "node", "node-2"]).status.success().then_some(())
    });
    cluster.kubectl(&["wait", "node/node-2", "--for=condition=Ready", "--timeout=30s"]);
    agent
}

/// `second` starts once it reaches `first`, and `third`, on the first machine again, once it reaches `second`: by name, the
/// one under its own address, the other through a service address.
const PODS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: first, labels: {app: first}}
spec:
  nodeSelector: {kubernetes.io/hostname: node-1}
  terminationGracePeriodSeconds: 0
  containers: [{name: echo, image: 'example/echo:v1'}]
---
apiVersion: v1
kind: Service
metadata: {name: first}
spec: {clusterIP: None, selector: {app: first}, ports: [{port: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: second, labels: {app: second}}
spec:
  nodeSelector: {kubernetes.io/hostname: node-2}
  terminationGracePeriodSeconds: 0
  initContainers: [{name: wait, image: 'example/echo:v1', args: [--wait-for, 'http://first:8080/healthz']}]
  containers: [{name: echo, image: 'example/echo:v1'}]
---
apiVersion: v1
kind: Service
metadata: {name: second}
spec: {selector: {app: second}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: third}
spec:
  nodeSelector: {kubernetes.io/hostname: node-1}
  terminationGracePeriodSeconds: 0
  initContainers: [{name: wait, image: 'example/echo:v1', args: [--wait-for, 'http://second/healthz']}]
  containers: [{name: echo, image: 'example/echo:v1'}]
";

#[test]
fn pods_of_two_machines_reach_each_other_and_the_api_server() {
    let mut cluster = Cluster::prepared();
    let scratch = cluster.scratch().to_owned();
    let network = cluster.namespace.clone();
    let machine = Machine::beside(&network, &scratch);
    cluster.start(&["--listen", &format!("{FIRST}:6443")]);
    let agent = joined(&cluster, &machine);
    let requests = cluster.kubectl(&["get", "csr", "--no-headers"]);
    assert!(requests.contains("kube-apiserver-client-kubelet") && requests.contains("Approved,Issued"), "{requests}");
    // It is a node by its own certificate now: without the token it is one again.
    let tokens = cluster.kubectl(&["get", "secrets", "-n", "kube-system", "-o", "name"]);
    let token = tokens.lines().find_map(|name| name.strip_prefix("secret/bootstrap-token-")).expect("a token");
    let (deleted, said) = cluster.command_line(&["token", "delete", token]);
    assert!(deleted, "{said}");
    drop(agent);
    let _agent = machine.agent("node-2", &[]);
    let blocks = cluster.kubectl(&["get", "nodes", "-o", "jsonpath={.items[*].spec.podCIDR}"]);
    assert_eq!(blocks, "10.244.0.0/24 10.244.1.0/24");

    cluster.apply(PODS);
    cluster.kubectl(&["wait", "pod/first", "pod/second", "pod/third", "--for=condition=Ready", "--timeout=30s"]);
    // The API server reaches the second machine's agent, and a pod there the API server, through its Service: it is known,
    // and may do nothing.
    let said = cluster.kubectl_fails(&["exec", "second", "--", "/proa", "rollback", "deployment/none"]);
    assert!(said.contains("system:serviceaccount:default:default") && said.contains("forbidden"), "{said}");
}

const BUDGET: &str = "
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: rolling}
spec: {minAvailable: 100%, selector: {matchLabels: {app: rolling}}}
";

#[test]
fn draining_one_machine_after_the_other_loses_not_one_request_and_keeps_the_budget() {
    let mut cluster = Cluster::prepared();
    let scratch = cluster.scratch().to_owned();
    let network = cluster.namespace.clone();
    let machine = Machine::beside(&network, &scratch);
    cluster.start(&["--listen", &format!("{FIRST}:6443")]);
    let _agent = joined(&cluster, &machine);
    cluster.apply(BUDGET);
    cluster.apply(&std::fs::read_to_string(ROLLING).unwrap());
    rolled_out(&cluster);
    let on = |node: &str| {
        let field = format!("--field-selector=spec.nodeName={node},status.phase=Running");
        cluster.kubectl(&["get", "pods", "-l", "app=rolling", &field, "-o", "name"]).lines().count()
    };
    assert!(on("node-1") > 0 && on("node-2") > 0, "{} and {} pods", on("node-1"), on("node-2"));
    let budget =
        |field: &str| cluster.kubectl(&["get", "pdb", "rolling", "-o", &format!("jsonpath={{.status.{field}}}")]);
    eventually("the budget has been counted", || (budget("currentHealthy") == "5").then_some(()));
    assert_eq!([budget("desiredHealthy"), budget("expectedPods"), budget("disruptionsAllowed")], ["5", "5", "0"]);
    // Figures come from both machines.
    eventually("both machines say what they use", || {
        let top = cluster.try_kubectl(&["top", "nodes", "--no-headers"]);
        (String::from_utf8_lossy(&top.stdout).lines().filter(|line| !line.contains("<unknown>")).count() == 2)
            .then_some(())
    });

    let kubectls = kubectls();
    let (oldest, newest) = (kubectls.first().expect("a kubectl"), kubectls.last().expect("a kubectl"));
    let drain = |kubectl: &Path, node: &str, timeout: &str| {
        let arguments = ["drain", node, "--ignore-daemonsets", "--delete-emptydir-data", timeout];
        cluster.command_of(kubectl, &arguments).output().expect("kubectl runs")
    };
    let refused = text(&drain(oldest, "node-2", "--timeout=2s"));
    assert!(refused.contains("Cannot evict pod as it would violate the pod's disruption budget."), "{refused}");
    assert_eq!(budget("currentHealthy"), "5");
    cluster.kubectl(&["patch", "pdb", "rolling", "--type=merge", "-p", r#"{"spec":{"minAvailable":3}}"#]);
    eventually("the budget allows two", || (budget("disruptionsAllowed") == "2").then_some(()));

    let mut watch = cluster.kubectl_command(&[
        "get",
        "deployment",
        "rolling",
        "-w",
        "--no-headers",
        "-o",
        "jsonpath={.status.availableReplicas}{\"\\n\"}",
    ]);
    let mut watch = watch.spawn().expect("kubectl runs");
    under_load(&cluster, || {
        for (kubectl, node) in [(oldest, "node-2"), (newest, "node-1")] {
            let drained = drain(kubectl, node, "--timeout=90s");
            assert!(drained.status.success(), "{}", text(&drained));
            assert_eq!(on(node), 0);
            rolled_out(&cluster);
            let uncordoned = cluster.command_of(kubectl, &["uncordon", node]).output().expect("kubectl runs");
            assert!(uncordoned.status.success(), "{}", text(&uncordoned));
        }
    });
    watch.kill().expect("kubectl watches");
    let seen = String::from_utf8_lossy(&watch.wait_with_output().expect("its output").stdout).into_owned();
    let available: Vec<u32> = seen.lines().map(|line| line.parse().unwrap_or(0)).collect();
    assert!(available.len() > 4 && available.iter().all(|available| *available >= 3), "the budget was broken: {seen}");
}
