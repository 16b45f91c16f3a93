//! Several API servers on one etcd, and what is stored taken from one place to another.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::harness::{Cluster, PROA, Part, eventually, text};

/// An etcd in a cluster's network namespace: its process, and where it listens.
fn etcd(cluster: &Cluster) -> (Part, String) {
    let port = || {
        let free = cluster.namespace.enter(|| TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()));
        free.expect("a free port").port()
    };
    let (client, peer) = (format!("http://127.0.0.1:{}", port()), format!("http://127.0.0.1:{}", port()));
    let mut command = cluster.namespace.command("etcd");
    command.arg("--data-dir").arg(cluster.scratch().join("etcd")).args(["--log-level", "error"]);
    command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
    command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
    command.args(["--initial-cluster", &format!("default={peer}")]);
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    (Part(child.expect("etcd, of Debian's etcd-server")), client)
}

/// An API server with a data directory of its own and the keys they have in common.
struct Server {
    part: Part,
    kubeconfig: PathBuf,
}

fn server(cluster: &Cluster, name: &str, listen: &str, etcd: &str, keys: &Path) -> Server {
    let data = cluster.scratch().join(name);
    let mut command = cluster.namespace.command(PROA);
    command.args(["server", "--listen", listen, "--etcd-servers", etcd]).arg("--data-dir").arg(&data);
    let part = Part(command.arg("--pki-dir").arg(keys).stderr(Stdio::inherit()).spawn().expect("proa server starts"));
    let kubeconfig = data.join("admin.kubeconfig");
    Server { part, kubeconfig }
}

impl Server {
    fn kubectl(&self, cluster: &Cluster, arguments: &[&str]) -> std::process::Output {
        let mut command = cluster.kubectl_command(arguments);
        command.env("KUBECONFIG", &self.kubeconfig).output().expect("kubectl runs")
    }

    #[track_caller]
    fn ok(&self, cluster: &Cluster, arguments: &[&str]) -> String {
        let output = self.kubectl(cluster, arguments);
        assert!(output.status.success(), "kubectl {}\n{}", arguments.join(" "), text(&output));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    fn ready(&self, cluster: &Cluster) {
        eventually("the API server answers", || {
            (self.kubeconfig.exists() && self.kubectl(cluster, &["get", "--raw", "/readyz"]).status.success())
                .then_some(())
        });
    }
}

#[test]
fn two_servers_on_one_etcd_are_one_cluster_and_it_outlives_either() {
    let cluster = Cluster::prepared();
    let (_etcd, url) = etcd(&cluster);
    let keys = cluster.scratch().join("keys");
    let one = server(&cluster, "one", "127.0.0.1:6443", &url, &keys);
    one.ready(&cluster);
    let two = server(&cluster, "two", "127.0.0.2:6443", &url, &keys);
    two.ready(&cluster);

    // What one was told, the other knows at once: every read is consistent.
    for n in 0..20 {
        let (writer, reader) = if n % 2 == 0 { (&one, &two) } else { (&two, &one) };
        let name = format!("map-{n}");
        writer.ok(&cluster, &["create", "configmap", &name, "--from-literal=k=v"]);
        assert_eq!(reader.ok(&cluster, &["get", "configmap", &name, "-o", "jsonpath={.data.k}"]), "v");
        let version = writer.ok(&cluster, &["get", "configmap", &name, "-o", "jsonpath={.metadata.resourceVersion}"]);
        let list =
            format!("/api/v1/namespaces/default/configmaps?resourceVersion={version}&resourceVersionMatch=Exact");
        assert!(reader.ok(&cluster, &["get", "--raw", &list]).contains(&name));
    }
    // Addresses and ports are handed out once, whoever does it.
    let mut addresses = Vec::new();
    for (n, server) in [&one, &two, &one, &two].into_iter().enumerate() {
        let name = format!("service-{n}");
        server.ok(&cluster, &["create", "service", "nodeport", &name, "--tcp=80"]);
        addresses.push(server.ok(&cluster, &["get", "service", &name, "-o", "jsonpath={.spec.clusterIP}"]));
    }
    let held = two.ok(&cluster, &["get", "ipaddresses", "-o", "jsonpath={.items[*].metadata.name}"]);
    for address in &addresses {
        assert_eq!(addresses.iter().filter(|other| *other == address).count(), 1, "{addresses:?}");
        assert!(held.split(' ').any(|name| name == address), "{held}");
    }
    // Both stand behind the Service by which pods find the API.
    let behind =
        || one.ok(&cluster, &["get", "endpoints", "kubernetes", "-o", "jsonpath={.subsets[*].addresses[*].ip}"]);
    eventually("both servers are behind the kubernetes Service", || (behind() == "127.0.0.1 127.0.0.2").then_some(()));
    // Kubernetes would find everything where it looks.
    let mut etcdctl = cluster.namespace.command("etcdctl");
    etcdctl.env("ETCDCTL_API", "3").args([
        "--endpoints",
        &url,
        "get",
        "--prefix",
        "/registry/services/specs/default/",
        "--keys-only",
    ]);
    let there = String::from_utf8_lossy(&etcdctl.output().expect("etcdctl runs").stdout).into_owned();
    assert!(there.contains("/registry/services/specs/default/service-0"), "{there}");

    // Controllers at either: one leads. Its server and itself are killed, and the other goes on.
    let controllers = |server: &Server| {
        let mut command = cluster.namespace.command(PROA);
        command.arg("controllers").arg("--kubeconfig").arg(&server.kubeconfig);
        Part(command.stderr(Stdio::inherit()).spawn().expect("proa controllers starts"))
    };
    let (first, _second) = (controllers(&one), controllers(&two));
    eventually("somebody leads", || {
        one.kubectl(&cluster, &["get", "serviceaccount", "default"]).status.success().then_some(())
    });
    first.kill();
    one.part.kill();
    two.ok(&cluster, &["create", "deployment", "web", "--image=example/echo:v1", "--replicas=2"]);
    eventually("the controllers at the other server act", || {
        (two.ok(&cluster, &["get", "pods", "-l", "app=web", "-o", "name"]).lines().count() == 2).then_some(())
    });

    // Other keys are those of another cluster.
    let other = cluster.scratch().join("other-keys");
    let mut refused = cluster.namespace.command(PROA);
    refused.args(["server", "--listen", "127.0.0.3:6443", "--etcd-servers", &url]).arg("--pki-dir").arg(&other);
    let refused = refused.arg("--data-dir").arg(cluster.scratch().join("three")).output().expect("proa runs");
    assert!(!refused.status.success());
    assert!(text(&refused).contains("belongs to a cluster with other keys"), "{}", text(&refused));
}

#[test]
fn what_a_cluster_stores_goes_from_its_directory_to_an_etcd_to_a_file_and_back() {
    let cluster = Cluster::prepared();
    let (_etcd, url) = etcd(&cluster);
    let listen = "127.0.0.1:6443";
    let kubeconfig = cluster.kubeconfig();
    let run = |arguments: &[&str]| {
        let output = cluster.proa(arguments).output().expect("proa runs");
        (output.status.success(), text(&output))
    };
    let ok = |arguments: &[&str]| {
        let (done, said) = run(arguments);
        assert!(done, "proa {}\n{said}", arguments.join(" "));
        said
    };
    let serve = |more: &[&str]| {
        let part = Part(
            cluster
                .proa(&["server", "--listen", listen])
                .args(more)
                .stderr(Stdio::inherit())
                .spawn()
                .expect("it starts"),
        );
        let server = Server { part, kubeconfig: kubeconfig.clone() };
        server.ready(&cluster);
        server
    };
    let uid =
        |server: &Server| server.ok(&cluster, &["get", "secret", "kept", "-o", "jsonpath={.metadata.uid} {.data.k}"]);
    let version = |server: &Server| -> u64 {
        let list = server.ok(&cluster, &["get", "--raw", "/api/v1/namespaces"]);
        let list: serde_json::Value = serde_json::from_str(&list).expect("a list");
        list["metadata"]["resourceVersion"].as_str().and_then(|text| text.parse().ok()).expect("a revision")
    };

    let server = serve(&[]);
    server.ok(&cluster, &["create", "secret", "generic", "kept", "--from-literal=k=v"]);
    let (before, at) = (uid(&server), version(&server));
    let file = cluster.scratch().join("backup");
    let file = file.to_str().expect("a path");
    // Beside the running server; what comes later is not in it.
    let said = ok(&["backup", file]);
    assert!(said.contains("objects at revision"), "{said}");
    server.ok(&cluster, &["create", "configmap", "later"]);
    let (done, said) = run(&["etcd", "import", "--etcd-servers", &url]);
    assert!(!done && said.contains("another proa server runs"), "{said}");
    server.part.kill();

    // The directory's objects move into the etcd, and are served from there.
    ok(&["etcd", "import", "--etcd-servers", &url]);
    let server = serve(&["--etcd-servers", &url]);
    assert_eq!(uid(&server), before);
    assert!(version(&server) > at, "revisions do not run backwards");
    server.ok(&cluster, &["get", "configmap", "later"]);
    let from_etcd = cluster.scratch().join("backup-of-etcd");
    ok(&["backup", from_etcd.to_str().expect("a path"), "--etcd-servers", &url]);
    let at = version(&server);
    server.part.kill();
    for full in [
        &["restore", file][..],
        &["restore", file, "--etcd-servers", &url],
        &["etcd", "import", "--etcd-servers", &url],
    ] {
        let (done, said) = run(full);
        assert!(!done && said.contains("already holds"), "{said}");
    }

    // A new directory has it all again, keys included: the old kubeconfig still opens it.
    let old_kubeconfig = cluster.scratch().join("old.kubeconfig");
    std::fs::copy(&kubeconfig, &old_kubeconfig).expect("the kubeconfig");
    std::fs::remove_dir_all(cluster.data()).expect("the machine is lost");
    ok(&["restore", from_etcd.to_str().expect("a path")]);
    let server = serve(&[]);
    let by_old = Server { part: server.part, kubeconfig: old_kubeconfig };
    assert_eq!(uid(&by_old), before);
    by_old.ok(&cluster, &["get", "configmap", "later"]);
    assert!(version(&by_old) > at);
    by_old.part.kill();

    // And what an etcd holds moves back into a directory.
    std::fs::remove_dir_all(cluster.data().join("store")).expect("the store");
    ok(&["etcd", "export", "--etcd-servers", &url]);
    let server = serve(&[]);
    assert_eq!(uid(&server), before);
    drop(server);
    std::fs::remove_dir_all(cluster.data()).expect("the machine is lost again");
    std::fs::write(file, "no backup").expect("a file");
    let (done, said) = run(&["restore", file]);
    assert!(!done && said.contains("damaged"), "{said}");
}

#[test]
fn the_whole_platform_runs_on_an_etcd() {
    let mut cluster = Cluster::prepared();
    let (_etcd, url) = etcd(&cluster);
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/manifests/quickstart.yaml");
    cluster.start(&["--etcd-servers", &url, "--apply", manifest]);
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    // Nothing of it lies in the data directory.
    assert!(!cluster.data().join("store").exists());
    // It stops and starts, and finds everything.
    let pods = cluster.kubectl(&["get", "pods", "-o", "name"]);
    cluster.stop(nix::sys::signal::Signal::SIGTERM);
    cluster.start(&["--etcd-servers", &url]);
    assert_eq!(cluster.kubectl(&["get", "pods", "-o", "name"]), pods);
}
