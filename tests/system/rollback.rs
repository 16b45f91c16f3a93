//! Going back by itself, with evidence and configuration, without fighting the next apply.

use crate::harness::{Cluster, PROA, eventually, text};

/// A guarded Deployment whose two pods answer with version `image`.
fn guarded(image: &str) -> String {
    format!(
        "
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
  annotations: {{proa.dev/rollback: on-failure}}
spec:
  replicas: 2
  progressDeadlineSeconds: 30
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: echo
        image: {image}
        readinessProbe: {{httpGet: {{path: /healthz, port: 8080}}, periodSeconds: 1}}
"
    )
}

fn condition(cluster: &Cluster, name: &str, field: &str) -> String {
    cluster.kubectl(&[
        "get",
        "deployment",
        "web",
        "-o",
        &format!("jsonpath={{.status.conditions[?(@.type==\"{name}\")].{field}}}"),
    ])
}

fn rolled_out(cluster: &Cluster) {
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
}

fn rolled_back(cluster: &Cluster) {
    cluster.kubectl(&["wait", "deployment/web", "--for=condition=RolledBack", "--timeout=60s"]);
    rolled_out(cluster);
}

fn running_images(cluster: &Cluster) -> Vec<String> {
    let list = cluster.kubectl(&[
        "get",
        "pods",
        "-l",
        "app=web",
        "-o",
        "jsonpath={range .items[?(@.status.phase==\"Running\")]}{.spec.containers[0].image}{\"\\n\"}{end}",
    ]);
    list.lines().map(str::to_owned).collect()
}

#[test]
fn a_crash_looping_revision_goes_back_says_why_and_stays_refused_until_it_changes() {
    let cluster = Cluster::up();
    let pipeline = |image: &str| {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("web.yaml"), guarded(image)).expect("the manifest is written");
        cluster.shell(&documented_pipeline(), dir.path())
    };
    let output = pipeline("example/echo:v1");
    assert!(output.status.success(), "{}", text(&output));
    let output = pipeline("example/echo:broken");
    assert!(!output.status.success() && text(&output).contains("RolledBack: revision 2 failed"), "{}", text(&output));
    assert_eq!(running_images(&cluster), ["example/echo:v1", "example/echo:v1"]);
    let why = condition(&cluster, "RolledBack", "message");
    assert!(why.contains("revision 2") && why.contains("broken on purpose"), "{why}");
    let events = cluster.kubectl(&["get", "events", "--field-selector=involvedObject.name=web"]);
    assert!(events.contains("RolledBack"), "{events}");

    // A pipeline applies the same again: nothing new is started, and the condition says so.
    let output = pipeline("example/echo:broken");
    assert!(!output.status.success() && text(&output).contains("RolloutRefused: revision 2"), "{}", text(&output));
    assert_eq!(running_images(&cluster), ["example/echo:v1", "example/echo:v1"]);
    let broken =
        cluster.kubectl(&["get", "pods", "-l", "app=web", "-o", "jsonpath={.items[*].spec.containers[0].image}"]);
    assert!(!broken.contains("broken"), "{broken}");

    // By hand it is not gone back to either, and the answer says how it could be.
    let mut rollback = cluster.namespace.command(PROA);
    rollback.args(["rollback", "deployment/web", "--to", "2", "--kubeconfig"]).arg(cluster.kubeconfig());
    let said = text(&rollback.output().expect("proa rollback runs"));
    assert!(
        said.contains("revision 2 of deployment \"web\" is known to fail") && said.contains("proa.dev/retry"),
        "{said}"
    );

    // Somebody says so: it is tried once more, and goes back once more.
    let replica_sets = || cluster.kubectl(&["get", "events", "-o", "name", "--field-selector=reason=RolledBack"]);
    let before = replica_sets();
    cluster.kubectl(&["annotate", "deployment/web", "proa.dev/retry=1"]);
    cluster.apply(&guarded("example/echo:broken"));
    eventually("the retried revision fails again", || (replica_sets() != before).then_some(()));
    rolled_back(&cluster);

    // A template that differs rolls out, and the object is what its manifest says.
    cluster.apply(&guarded("example/echo:v2"));
    rolled_out(&cluster);
    eventually("only v2 runs", || (running_images(&cluster) == ["example/echo:v2", "example/echo:v2"]).then_some(()));
    assert_ne!(condition(&cluster, "RolledBack", "status"), "True");
    assert_ne!(condition(&cluster, "RolloutRefused", "status"), "True");

    // Whoever wrote is known by name.
    let written = cluster.kubectl(&["get", "pods,replicasets,deployments", "-o", "json", "--show-managed-fields"]);
    assert!(written.contains("\"manager\": \"proa-controllers\"") && written.contains("\"manager\": \"proa-agent\""));
    assert!(!written.contains("\"manager\": \"unknown\""));
}

/// The commands `docs/rollback.md` gives a pipeline.
fn documented_pipeline() -> String {
    let guide = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/rollback.md")).expect("the guide");
    let (_, section) = guide.split_once("## In a pipeline").expect("its section");
    let (_, commands) = section.split_once("```sh\n").expect("its commands");
    commands.split_once("```").expect("their end").0.to_owned()
}

#[test]
fn a_revision_that_dies_two_seconds_after_it_was_ready_goes_back_too() {
    let cluster = Cluster::up();
    cluster.load_busybox();
    let without_probe = |command: &str| {
        format!(
            "
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web, annotations: {{proa.dev/rollback: on-failure}}}}
spec:
  replicas: 3
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{{name: shell, image: 'test/busybox:1', command: [sh, -c, '{command}']}}]
"
        )
    };
    cluster.apply(&without_probe("sleep 1000"));
    rolled_out(&cluster);
    cluster.apply(&without_probe("echo the port is taken; sleep 2; exit 3"));
    rolled_out(&cluster);
    assert_eq!(condition(&cluster, "RolledBack", "status"), "", "all of it was ready before the first crash");
    rolled_back(&cluster);
    assert_eq!(condition(&cluster, "RolledBack", "reason"), "CrashLoop");
    let why = condition(&cluster, "RolledBack", "message");
    assert!(why.contains("revision 2 failed") && why.contains("the port is taken"), "{why}");
    assert_eq!(running_images(&cluster).len(), 3);
}

#[test]
fn a_server_side_apply_needs_no_force_after_an_undo_nor_after_a_bad_revision_was_applied_again_and_again() {
    let cluster = Cluster::up();
    let apply = |image: &str, variable: &str| {
        let manifest = guarded(image)
            .replace(
                "        readinessProbe",
                &format!("        env: [{{name: {variable}, value: a}}]\n        readinessProbe"),
            )
            .replace("on-failure}", &format!("on-failure, kubernetes.io/change-cause: {variable}}}"));
        cluster.kubectl_stdin(&["apply", "--server-side", "-f", "-"], &manifest);
    };
    apply("example/echo:v1", "ONLY_IN_V1");
    rolled_out(&cluster);
    apply("example/echo:v2", "ONLY_IN_V2");
    rolled_out(&cluster);
    cluster.kubectl(&["rollout", "undo", "deployment/web"]);
    rolled_out(&cluster);
    apply("example/echo:v2", "ONLY_IN_V3");
    let field = |path: &str| cluster.kubectl(&["get", "deployment", "web", "-o", &format!("jsonpath={{{path}}}")]);
    assert_eq!(field(".spec.template.spec.containers[0].env[*].name"), "ONLY_IN_V3");
    assert_eq!(field(".metadata.annotations.kubernetes\\.io/change-cause"), "ONLY_IN_V3");
    rolled_out(&cluster);

    // A tool that holds the cluster to what is in Git applies a bad revision, sees that it went, and applies it again.
    apply("example/echo:broken", "ONLY_IN_V4");
    rolled_back(&cluster);
    for _ in 0..2 {
        let before: i64 = field(".metadata.generation").parse().expect("a number");
        apply("example/echo:broken", "ONLY_IN_V4");
        eventually("it is refused", || {
            let now: i64 = field(".metadata.generation").parse().expect("a number");
            (now > before && field(".spec.template.spec.containers[0].env[*].name") == "ONLY_IN_V3").then_some(())
        });
        assert_eq!(condition(&cluster, "RolloutRefused", "status"), "True");
        assert_eq!(running_images(&cluster), ["example/echo:v2", "example/echo:v2"]);
    }
    // What comes to Git next is what runs, and nobody has to force anything.
    apply("example/echo:v1", "ONLY_IN_V5");
    assert_eq!(field(".spec.template.spec.containers[0].env[*].name"), "ONLY_IN_V5");
    rolled_out(&cluster);
    assert_ne!(condition(&cluster, "RolloutRefused", "status"), "True");
}

#[test]
fn an_image_that_does_not_exist_and_a_missing_config_map_are_not_waited_for() {
    let cluster = Cluster::up();
    cluster.apply(&guarded("example/echo:v1"));
    rolled_out(&cluster);
    let registry = registry_without_images(&cluster);
    let image = format!("{registry}/no/such:image");
    cluster.apply(&guarded(&image));
    rolled_back(&cluster);
    assert_eq!(condition(&cluster, "RolledBack", "reason"), "ImageNotFound");
    let why = condition(&cluster, "RolledBack", "message");
    assert!(why.contains(&image) && why.contains("Pod web-"), "{why}");
    let missing = guarded("example/echo:v1")
        .replace("        readinessProbe", "        envFrom: [{configMapRef: {name: absent}}]\n        readinessProbe");
    cluster.apply(&missing);
    eventually("the message names what is missing", || {
        condition(&cluster, "RolledBack", "message").contains("absent").then_some(())
    });
    rolled_out(&cluster);
    assert_eq!(running_images(&cluster).len(), 2);
}

#[test]
fn a_registry_that_does_not_answer_is_waited_for_until_the_deadline() {
    let cluster = Cluster::up();
    let impatient = |image: &str| guarded(image).replace("progressDeadlineSeconds: 30", "progressDeadlineSeconds: 4");
    cluster.apply(&impatient("example/echo:v1"));
    rolled_out(&cluster);
    // Nothing listens there.
    cluster.apply(&impatient("127.0.0.1:9/no/such:image"));
    rolled_back(&cluster);
    assert_eq!(condition(&cluster, "RolledBack", "reason"), "ProgressDeadlineExceeded");
    let why = condition(&cluster, "RolledBack", "message");
    assert!(
        why.contains("127.0.0.1:9/no/such:image") && why.contains("ImagePull") && why.contains("Pod web-"),
        "{why}"
    );
    assert_eq!(running_images(&cluster).len(), 2);
}

/// A registry in the cluster's namespace that holds nothing; its address. It ends with the test process.
fn registry_without_images(cluster: &Cluster) -> std::net::SocketAddr {
    let listener = cluster.namespace.enter(|| std::net::TcpListener::bind("127.0.0.1:0").expect("a port"));
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            // A client that goes away early has its answer or wants none.
            let _ = answer_not_found(stream);
        }
    });
    address
}

fn answer_not_found(mut stream: std::net::TcpStream) -> std::io::Result<()> {
    use std::io::{BufRead, BufReader, Write};
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    let (status, body) = match request.split(' ').nth(1) {
        Some("/v2/") => ("200 OK", "{}"),
        _ => ("404 Not Found", r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#),
    };
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}

#[test]
fn without_the_annotation_nothing_goes_back_by_itself() {
    let cluster = Cluster::up();
    let plain = |image: &str| guarded(image).replace("  annotations: {proa.dev/rollback: on-failure}\n", "");
    cluster.apply(&plain("example/echo:v1"));
    rolled_out(&cluster);
    cluster.apply(&plain("example/echo:broken"));
    eventually("a pod crashes again and again", || {
        let reasons = cluster.kubectl(&[
            "get",
            "pods",
            "-l",
            "app=web",
            "-o",
            "jsonpath={.items[*].status.containerStatuses[*].state.waiting.reason}",
        ]);
        reasons.contains("CrashLoopBackOff").then_some(())
    });
    assert_eq!(condition(&cluster, "RolledBack", "status"), "");
    assert_eq!(
        cluster.kubectl(&["get", "deployment", "web", "-o", "jsonpath={.spec.template.spec.containers[0].image}"]),
        "example/echo:broken"
    );
}

#[test]
fn undo_restores_the_config_that_revision_ran_with_and_the_next_rollout_reads_live_again() {
    let cluster = Cluster::up();
    let config = |value: &str| {
        format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: settings}}\ndata: {{GREETING: {value}}}\n")
    };
    let with_config = |image: &str| {
        guarded(image).replace(
            "        readinessProbe",
            "        envFrom: [{configMapRef: {name: settings}}]\n        readinessProbe",
        )
    };
    let greetings = || {
        let ips = cluster.kubectl(&[
            "get",
            "pods",
            "-l",
            "app=web",
            "-o",
            "jsonpath={range .items[?(@.status.phase==\"Running\")]}{.status.podIP}{\"\\n\"}{end}",
        ]);
        let mut greetings: Vec<String> = ips
            .lines()
            .filter_map(|ip| cluster.get(format!("{ip}:8080").parse().ok()?, "/env/GREETING").ok())
            .map(|(_, body)| body)
            .collect();
        greetings.dedup();
        greetings
    };
    cluster.apply(&config("hello"));
    cluster.apply(&with_config("example/echo:v1"));
    rolled_out(&cluster);
    assert_eq!(greetings(), ["hello\n"]);
    cluster.apply(&config("goodbye"));
    cluster.apply(&with_config("example/echo:v2"));
    rolled_out(&cluster);
    eventually("the new revision reads live configuration", || (greetings() == ["goodbye\n"]).then_some(()));

    cluster.kubectl(&["rollout", "undo", "deployment/web"]);
    rolled_out(&cluster);
    eventually("the old revision reads what it ran with", || (greetings() == ["hello\n"]).then_some(()));
    assert_eq!(condition(&cluster, "ConfigRevision", "status"), "True");
    assert_eq!(
        cluster.kubectl(&["get", "configmap", "settings", "-o", "jsonpath={.data.GREETING}"]),
        "goodbye",
        "the named object is nobody's to change"
    );

    // The next apply: exactly what the manifest says, live configuration again.
    let manifest = with_config("example/echo:v2").replace("  replicas: 2", "  replicas: 2\n  minReadySeconds: 0");
    cluster.apply(&manifest);
    rolled_out(&cluster);
    eventually("live configuration again", || (greetings() == ["goodbye\n"]).then_some(()));
    assert_ne!(condition(&cluster, "ConfigRevision", "status"), "True");
}

#[test]
fn undo_does_not_poison_the_next_apply() {
    let cluster = Cluster::up();
    let with_env = |image: &str, env: &str| {
        guarded(image).replace("        readinessProbe", &format!("        env: [{env}]\n        readinessProbe"))
    };
    cluster.apply(&with_env("example/echo:v1", "{name: ONLY_IN_V1, value: a}"));
    rolled_out(&cluster);
    cluster.apply(&with_env("example/echo:v2", "{name: ONLY_IN_V2, value: b}"));
    rolled_out(&cluster);
    cluster.kubectl(&["rollout", "undo", "deployment/web"]);
    rolled_out(&cluster);
    // On Kubernetes ONLY_IN_V1 would stay for ever: the record of the last apply does not know it.
    let last_applied = "jsonpath={.metadata.annotations.kubectl\\.kubernetes\\.io/last-applied-configuration}";
    eventually("the record follows", || {
        cluster.kubectl(&["get", "deployment", "web", "-o", last_applied]).contains("ONLY_IN_V1").then_some(())
    });
    cluster.apply(&with_env("example/echo:v2", "{name: ONLY_IN_V3, value: c}"));
    let names = cluster.kubectl(&[
        "get",
        "deployment",
        "web",
        "-o",
        "jsonpath={.spec.template.spec.containers[0].env[*].name}",
    ]);
    assert_eq!(names, "ONLY_IN_V3");
}

#[test]
fn a_volume_without_its_secret_goes_back_and_files_come_back_with_the_revision() {
    let cluster = Cluster::up();
    cluster.load_busybox();
    let files = |version: &str, secret: &str| {
        format!(
            "
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web, annotations: {{proa.dev/rollback: on-failure}}}}
spec:
  replicas: 1
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: shell
        image: test/busybox:1
        command: [sleep, '1000']
        env: [{{name: VERSION, value: {version}}}]
        volumeMounts: [{{name: plain, mountPath: /plain}}, {{name: secret, mountPath: /secret}}]
      volumes:
      - {{name: plain, configMap: {{name: settings}}}}
      - {{name: secret, projected: {{sources: [{{secret: {{name: {secret}}}}}]}}}}
"
        )
    };
    let config = |value: &str| {
        let map =
            format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: settings}}\ndata: {{key: map-{value}}}\n");
        format!(
            "{map}---\napiVersion: v1\nkind: Secret\nmetadata: {{name: credentials}}\nstringData: {{key: secret-{value}}}\n"
        )
    };
    // The one pod that is not on its way out.
    let read = || {
        let pod = cluster.kubectl(&[
            "get",
            "pods",
            "-l",
            "app=web",
            "-o",
            "jsonpath={range .items[*]}{.metadata.name} {.metadata.deletionTimestamp}{\"\\n\"}{end}",
        ]);
        let pod = pod.lines().find_map(|line| line.strip_suffix(' '))?.to_owned();
        let output = cluster.try_kubectl(&["exec", &pod, "--", "cat", "/plain/key", "/secret/key"]);
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let reads = |value: &str| {
        let wanted = format!("map-{value}secret-{value}");
        eventually(&format!("the files say {value}"), || (read()? == wanted).then_some(()));
    };
    cluster.apply(&config("one"));
    cluster.apply(&files("v1", "credentials"));
    rolled_out(&cluster);
    reads("one");
    cluster.apply(&config("two"));
    cluster.apply(&files("v2", "credentials"));
    rolled_out(&cluster);
    reads("two");
    cluster.kubectl(&["rollout", "undo", "deployment/web"]);
    rolled_out(&cluster);
    reads("one");
    // The undo of the undo is live again: nothing else was kept with v2.
    cluster.kubectl(&["rollout", "undo", "deployment/web"]);
    rolled_out(&cluster);
    reads("two");

    cluster.apply(&files("v3", "absent"));
    rolled_back(&cluster);
    assert_eq!(condition(&cluster, "RolledBack", "reason"), "ConfigurationError");
    let why = condition(&cluster, "RolledBack", "message");
    assert!(why.contains("secret \"absent\" not found"), "{why}");
    reads("two");
}

#[test]
fn the_setting_survives_an_undo_and_a_namespace_can_ask_for_all() {
    let cluster = Cluster::up();
    let plain = |image: &str| guarded(image).replace("  annotations: {proa.dev/rollback: on-failure}\n", "");
    cluster.apply(&plain("example/echo:v1"));
    rolled_out(&cluster);
    cluster.apply(&plain("example/echo:v2"));
    rolled_out(&cluster);
    let misspelt = cluster.try_kubectl(&["annotate", "deployment/web", "proa.dev/rollback=on_failure"]);
    assert!(text(&misspelt).contains("Warning: ") && text(&misspelt).contains("\"on-failure\""), "{}", text(&misspelt));
    cluster.kubectl(&["annotate", "deployment/web", "--overwrite", "proa.dev/rollback=on-failure"]);
    eventually("the revision knows", || {
        let sets = cluster.kubectl(&[
            "get",
            "replicasets",
            "-o",
            "jsonpath={.items[*].metadata.annotations.proa\\.dev/rollback}",
        ]);
        (sets == "on-failure").then_some(())
    });
    cluster.kubectl(&["rollout", "undo", "deployment/web"]);
    rolled_out(&cluster);
    eventually("the setting is back", || {
        let setting = cluster.kubectl(&[
            "get",
            "deployment",
            "web",
            "-o",
            "jsonpath={.metadata.annotations.proa\\.dev/rollback}",
        ]);
        (setting == "on-failure").then_some(())
    });
    cluster.kubectl(&["annotate", "deployment/web", "proa.dev/rollback-"]);
    cluster.kubectl(&["annotate", "namespace/default", "proa.dev/rollback=on-failure"]);
    cluster.kubectl(&["set", "image", "deployment/web", "echo=example/echo:broken"]);
    rolled_back(&cluster);
    assert_eq!(running_images(&cluster), ["example/echo:v1", "example/echo:v1"]);

    // As a newcomer reads it.
    let described = cluster.kubectl(&["describe", "deployment/web"]);
    for wanted in [
        "RolledBack     True    CrashLoop",
        "Warning  RolledBack",
        "revision 4 failed",
        "went back to revision 3",
        "broken on purpose",
    ] {
        assert!(described.contains(wanted), "{wanted} is not in:\n{described}");
    }
}
