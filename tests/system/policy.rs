//! Policies: what counts as failed, what is done then, and a change of configuration as a rollout of its own.

use crate::harness::{Cluster, eventually, text};

/// A Deployment `web` of two pods that answer with that version and hold these lines in their container.
fn web(image: &str, container: &str) -> String {
    format!(
        "
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web, labels: {{tier: front}}}}
spec:
  replicas: 2
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: echo
        image: {image}
        readinessProbe: {{httpGet: {{path: /healthz, port: 8080}}, periodSeconds: 1}}
        {container}
"
    )
}

fn policy(spec: &str) -> String {
    format!(
        "
apiVersion: proa.dev/v1
kind: RolloutPolicy
metadata: {{name: front}}
spec:
  kinds: [Deployment]
  selector: {{matchLabels: {{tier: front}}}}
{spec}
"
    )
}

fn condition(cluster: &Cluster, name: &str, field: &str) -> String {
    let path = format!("jsonpath={{.status.conditions[?(@.type==\"{name}\")].{field}}}");
    cluster.kubectl(&["get", "deployment", "web", "-o", &path])
}

fn rolled_out(cluster: &Cluster) {
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
}

/// What the pods that are not leaving answer on `/env/NAME`.
fn answers(cluster: &Cluster, name: &str) -> Vec<String> {
    let path = "jsonpath={range .items[*]}{.status.podIP} {.metadata.deletionTimestamp}{\"\\n\"}{end}";
    let list = cluster.kubectl(&["get", "pods", "-l", "app=web", "-o", path]);
    let ips = list.lines().filter_map(|line| line.strip_suffix(' '));
    let ask = |ip: &str| cluster.get(format!("{ip}:8080").parse().ok()?, &format!("/env/{name}")).ok();
    let mut answers: Vec<String> = ips.filter_map(ask).map(|(_, body)| body.trim().to_owned()).collect();
    answers.dedup();
    answers
}

#[test]
fn a_check_of_the_policy_takes_a_revision_back_that_every_probe_finds_well_and_applying_it_again_warns() {
    let cluster = Cluster::up();
    let explained = cluster.kubectl(&["explain", "rolloutpolicy.spec.action"]);
    assert!(explained.contains("the last healthy one comes back"), "{explained}");
    let check =
        "  checks: [{name: settings, http: {port: 8080, path: /env/NEEDED}, periodSeconds: 1, failureThreshold: 2}]";
    cluster.apply(&policy(check));
    let listed = cluster.kubectl(&["get", "rolloutpolicies"]);
    assert!(listed.contains("front") && listed.contains("Rollback"), "{listed}");
    let refused = cluster.try_kubectl_stdin(&["apply", "-f", "-"], &policy("  checks: [{name: nothing}]"));
    assert!(text(&refused).contains("exactly one of http and metric must be set"), "{}", text(&refused));

    cluster.apply(&web("example/echo:v1", "env: [{name: NEEDED, value: here}]"));
    rolled_out(&cluster);
    let bad = web("example/echo:v2", "env: []");
    cluster.apply(&bad);
    cluster.kubectl(&["wait", "deployment/web", "--for=condition=RolledBack", "--timeout=60s"]);
    rolled_out(&cluster);
    let (reason, why) = (condition(&cluster, "RolledBack", "reason"), condition(&cluster, "RolledBack", "message"));
    assert!(reason == "CheckFailed" && why.contains("check \"settings\" failed 2 times in a row"), "{why}");
    assert_eq!(answers(&cluster, "NEEDED"), ["here"]);

    // What is known of it is kept with the revision, and said when somebody applies it again.
    let sets =
        cluster.kubectl(&["get", "replicasets", "-o", "jsonpath={.items[*].metadata.annotations.proa\\.dev/failure}"]);
    assert!(sets.contains("\"reason\":\"CheckFailed\"") && sets.contains("\"events\":["), "{sets}");
    eventually("the object tells which templates failed", || {
        let told = cluster.kubectl(&[
            "get",
            "deployment",
            "web",
            "-o",
            "jsonpath={.metadata.annotations.proa\\.dev/failed-revisions}",
        ]);
        told.contains("CheckFailed").then_some(())
    });
    let again = text(&cluster.try_kubectl_stdin(&["apply", "-f", "-"], &bad));
    assert!(again.contains("Warning: spec.template: this is revision 2, which is known to fail"), "{again}");
    cluster.kubectl(&["wait", "deployment/web", "--for=condition=RolloutRefused", "--timeout=60s"]);
    assert_eq!(answers(&cluster, "NEEDED"), ["here"]);
    let better = text(
        &cluster
            .try_kubectl_stdin(&["apply", "-f", "-"], &web("example/echo:v2", "env: [{name: NEEDED, value: there}]")),
    );
    assert!(!better.contains("Warning"), "{better}");
    rolled_out(&cluster);
    eventually("the better one runs", || (answers(&cluster, "NEEDED") == ["there"]).then_some(()));
}

#[test]
fn a_change_of_configuration_rolls_out_and_a_secret_that_is_deleted_comes_back_from_the_copy() {
    let cluster = Cluster::up();
    let secret = |value: &str| {
        format!("apiVersion: v1\nkind: Secret\nmetadata: {{name: greeting}}\nstringData: {{GREETING: {value}}}\n")
    };
    cluster.apply(&policy("  configuration: Rollout"));
    cluster.apply(&secret("hello"));
    cluster.apply(&web("example/echo:v1", "envFrom: [{secretRef: {name: greeting}}]"));
    rolled_out(&cluster);
    let template = || cluster.kubectl(&["get", "deployment", "web", "-o", "jsonpath={.spec.template}"]);
    let before = template();
    eventually("it has proven itself", || {
        let healthy = "jsonpath={.items[*].metadata.annotations.proa\\.dev/healthy}{.items[*].metadata.annotations.proa\\.dev/config-copy}";
        cluster.kubectl(&["get", "replicasets", "-o", healthy]).contains("web-config-").then_some(())
    });
    cluster.apply(&secret("goodbye"));
    eventually("the pods are made anew", || (answers(&cluster, "GREETING") == ["goodbye"]).then_some(()));
    rolled_out(&cluster);
    assert_eq!(template(), before, "nobody touched the template: Git and the next apply find what they wrote");
    assert_eq!(
        cluster
            .kubectl(&["rollout", "history", "deployment/web"])
            .lines()
            .filter(|line| line.starts_with(['1', '2']))
            .count(),
        2
    );

    // A revision that differs in configuration alone is one to go back to, and forth again.
    for (from, to, greeting) in [(2, 1, "hello"), (3, 2, "goodbye")] {
        let (_, said) = cluster.command_line(&["rollback", "deployment/web"]);
        assert_eq!(said, format!("deployment/web goes back from revision {from} to revision {to}\n"));
        eventually("its configuration is back", || (answers(&cluster, "GREETING") == [greeting]).then_some(()));
        rolled_out(&cluster);
    }
    assert_eq!(template(), before);

    cluster.kubectl(&["delete", "secret", "greeting"]);
    cluster.kubectl(&["wait", "deployment/web", "--for=condition=RolledBack", "--timeout=60s"]);
    rolled_out(&cluster);
    let why = condition(&cluster, "RolledBack", "message");
    assert!(why.contains("ConfigurationError") && why.contains("greeting"), "{why}");
    assert_eq!(condition(&cluster, "ConfigRevision", "status"), "True");
    // New pods start from the copy.
    cluster.kubectl(&["delete", "pods", "-l", "app=web", "--wait=false"]);
    rolled_out(&cluster);
    eventually("what is gone is still read", || (answers(&cluster, "GREETING") == ["goodbye"]).then_some(()));
    cluster.apply(&secret("again"));
    eventually("the next configuration is the next rollout", || {
        (answers(&cluster, "GREETING") == ["again"]).then_some(())
    });
    cluster.assert_nothing_was_forbidden();
}

/// A StatefulSet `db` or a DaemonSet `log` of echo servers that read a ConfigMap.
fn set(kind: &str, name: &str, image: &str) -> String {
    let more = if kind == "StatefulSet" { "replicas: 2\n  serviceName: db\n  " } else { "" };
    format!(
        "
apiVersion: apps/v1
kind: {kind}
metadata: {{name: {name}, annotations: {{proa.dev/rollback: on-failure}}}}
spec:
  {more}selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: echo
        image: {image}
        envFrom: [{{configMapRef: {{name: settings}}}}]
        readinessProbe: {{httpGet: {{path: /healthz, port: 8080}}, periodSeconds: 1}}
"
    )
}

#[test]
fn stateful_sets_and_daemon_sets_go_back_refuse_and_bring_their_configuration_back() {
    let cluster = Cluster::up();
    let config = |value: &str| {
        format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: settings}}\ndata: {{GREETING: {value}}}\n")
    };
    cluster.apply(&config("hello"));
    for (kind, name) in [("StatefulSet", "db"), ("DaemonSet", "log")] {
        let object = format!("{}/{name}", kind.to_lowercase());
        let field = |path: &str| cluster.kubectl(&["get", &object, "-o", &format!("jsonpath={{{path}}}")]);
        let rolled_out = || cluster.kubectl(&["rollout", "status", &object, "--timeout=90s"]);
        let images = || {
            let path = "jsonpath={range .items[*]}{.spec.containers[0].image}{\"\\n\"}{end}";
            let list = cluster.kubectl(&["get", "pods", "-l", &format!("app={name}"), "-o", path]);
            let mut images: Vec<String> = list.lines().map(str::to_owned).collect();
            images.dedup();
            images
        };
        let greeting = || {
            let path = "jsonpath={range .items[*]}{.status.podIP} {.metadata.deletionTimestamp}{\"\\n\"}{end}";
            let list = cluster.kubectl(&["get", "pods", "-l", &format!("app={name}"), "-o", path]);
            let ip = list.lines().find_map(|line| line.strip_suffix(' '))?.to_owned();
            Some(cluster.get(format!("{ip}:8080").parse().ok()?, "/env/GREETING").ok()?.1.trim().to_owned())
        };
        cluster.apply(&config("hello"));
        cluster.apply(&set(kind, name, "example/echo:v1"));
        rolled_out();
        eventually("the revision has proven itself", || {
            let path = "jsonpath={.items[*].metadata.annotations}";
            let revisions = cluster.kubectl(&["get", "controllerrevisions", "-l", &format!("app={name}"), "-o", path]);
            (revisions.contains("proa.dev/healthy") && revisions.contains("proa.dev/config-copy")).then_some(())
        });

        cluster.apply(&set(kind, name, "example/echo:broken"));
        cluster.kubectl(&["wait", &object, "--for=condition=RolledBack", "--timeout=60s"]);
        eventually("the template is back", || {
            (field(".spec.template.spec.containers[0].image") == "example/echo:v1").then_some(())
        });
        rolled_out();
        let why = field(".status.conditions[?(@.type==\"RolledBack\")].message");
        assert!(why.contains("revision 2 failed") && why.contains("broken on purpose"), "{why}");
        eventually("only v1 runs", || (images() == ["example/echo:v1"]).then_some(()));
        eventually("the object tells which templates failed", || {
            field(".metadata.annotations.proa\\.dev/failed-revisions").contains("CrashLoop").then_some(())
        });

        // Applied again it is warned of, refused, and reaches no pod.
        let again = text(&cluster.try_kubectl_stdin(&["apply", "-f", "-"], &set(kind, name, "example/echo:broken")));
        assert!(again.contains("which is known to fail"), "{again}");
        cluster.kubectl(&["wait", &object, "--for=condition=RolloutRefused", "--timeout=60s"]);
        assert_eq!(images(), ["example/echo:v1"]);

        // What it ran with comes back with an undo of stock kubectl, and the record of the last apply follows.
        eventually("the template is back again", || {
            (field(".spec.template.spec.containers[0].image") == "example/echo:v1").then_some(())
        });
        cluster.apply(&config("goodbye"));
        cluster.apply(&set(kind, name, "example/echo:v2"));
        rolled_out();
        eventually("live configuration", || (greeting()? == "goodbye").then_some(()));
        eventually("it is recorded", || {
            let path = "jsonpath={.items[*].metadata.annotations.proa\\.dev/applied-configuration}";
            let records = cluster.kubectl(&["get", "controllerrevisions", "-l", &format!("app={name}"), "-o", path]);
            records.contains("example/echo:v2").then_some(())
        });
        cluster.kubectl(&["rollout", "undo", &object]);
        rolled_out();
        eventually("what it ran with", || (greeting()? == "hello").then_some(()));
        assert_eq!(field(".status.conditions[?(@.type==\"ConfigRevision\")].status"), "True");
        let record = field(".metadata.annotations.kubectl\\.kubernetes\\.io/last-applied-configuration");
        assert!(record.contains("example/echo:v1") && !record.contains("example/echo:v2"), "{record}");

        // A change of configuration alone is a rollout where the policy wants it, and goes back like one.
        let template = || field(".spec.template");
        let written = template();
        let rollout = policy("  configuration: Rollout").replace("kinds: [Deployment]", &format!("kinds: [{kind}]"));
        cluster.apply(&rollout.replace("  selector: {matchLabels: {tier: front}}\n", ""));
        cluster.apply(&config("again"));
        eventually("it is rolled out", || (greeting()? == "again").then_some(()));
        rolled_out();
        eventually("it has proven itself", || {
            let path = "jsonpath={.items[*].metadata.annotations.proa\\.dev/healthy}";
            let revisions = cluster.kubectl(&["get", "controllerrevisions", "-l", &format!("app={name}"), "-o", path]);
            (revisions.split_whitespace().count() >= 3).then_some(())
        });
        cluster.apply(&config("never\n  ECHO_VERSION: broken").replace("data: {", "data:\n  ").replace("}\n", "\n"));
        cluster.kubectl(&["wait", &object, "--for=condition=RolledBack", "--timeout=60s"]);
        rolled_out();
        eventually("what it ran with before", || (greeting()? == "again").then_some(()));
        assert_eq!(template(), written, "nobody touched the template");
    }
    cluster.assert_nothing_was_forbidden();
}
