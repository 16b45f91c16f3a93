//! The API as the oldest and the newest kubectl of the machine use it.

use crate::harness::{Cluster, kubectls, text};

/// One platform, every story once with the oldest and once with the newest kubectl, each in a namespace of its own.
pub(crate) fn with_each_kubectl(story: impl Fn(&Cluster, &dyn Fn(&[&str]) -> String)) {
    let mut cluster = Cluster::up();
    let all = kubectls();
    let ends = if all.len() > 1 { vec![0, all.len() - 1] } else { vec![0] };
    for index in ends {
        cluster.use_kubectl(all[index].clone());
        let namespace = format!("story-{index}");
        cluster.kubectl(&["create", "namespace", &namespace]);
        let run = |arguments: &[&str]| {
            let mut all = vec!["-n", namespace.as_str()];
            all.extend(arguments);
            cluster.kubectl(&all)
        };
        story(&cluster, &run);
        cluster.kubectl(&["delete", "namespace", &namespace, "--timeout=60s"]);
    }
}

const CONFIG: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings}\ndata: {colour: blue}\n";

#[test]
fn apply_edits_only_what_the_manifest_says() {
    with_each_kubectl(|cluster, kubectl| {
        let namespace = namespace_of(kubectl);
        let apply = |manifest: &str| cluster.kubectl_stdin(&["-n", &namespace, "apply", "-f", "-"], manifest);
        assert_eq!(apply(CONFIG), "configmap/settings created\n");
        assert_eq!(apply(CONFIG), "configmap/settings unchanged\n");
        kubectl(&["patch", "configmap", "settings", "--type=merge", "-p", r#"{"data":{"by-hand":"kept"}}"#]);
        assert_eq!(apply(&CONFIG.replace("blue", "green")), "configmap/settings configured\n");
        assert_eq!(
            kubectl(&["get", "configmap", "settings", "-o", "jsonpath={.data}"]),
            r#"{"by-hand":"kept","colour":"green"}"#
        );
        // What left the manifest leaves the object; what others wrote stays.
        apply(&CONFIG.replace("colour: blue", "shape: round"));
        assert_eq!(
            kubectl(&["get", "configmap", "settings", "-o", "jsonpath={.data}"]),
            r#"{"by-hand":"kept","shape":"round"}"#
        );
    });
}

#[test]
fn server_side_apply_names_the_conflict_and_force_takes_the_field() {
    with_each_kubectl(|cluster, kubectl| {
        let namespace = namespace_of(kubectl);
        let ssa = |manager: &str, extra: &[&str], manifest: &str| {
            let mut arguments = vec!["-n", &namespace, "apply", "--server-side", "--field-manager", manager, "-f", "-"];
            arguments.extend(extra);
            cluster.try_kubectl_stdin(&arguments, manifest)
        };
        assert!(ssa("one", &[], CONFIG).status.success());
        let refused = ssa("two", &[], &CONFIG.replace("blue", "red"));
        assert!(!refused.status.success());
        assert!(text(&refused).contains("conflict with \"one\": .data.colour"), "{}", text(&refused));
        assert!(ssa("two", &["--force-conflicts"], &CONFIG.replace("blue", "red")).status.success());
        let managers = kubectl(&[
            "get",
            "configmap",
            "settings",
            "--show-managed-fields",
            "-o",
            "jsonpath={.metadata.managedFields[*].manager}",
        ]);
        assert_eq!(managers, "two", "one no longer owns anything");
    });
}

#[test]
fn get_prints_what_a_user_knows() {
    with_each_kubectl(|cluster, kubectl| {
        cluster.kubectl_stdin(&["-n", &namespace_of(kubectl), "apply", "-f", "-"], DEPLOYMENT);
        kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
        kubectl(&["expose", "deployment", "web", "--port=80", "--target-port=8080"]);
        let table = kubectl(&["get", "deployments,replicasets,pods,services", "-o", "wide"]);
        for column in ["UP-TO-DATE", "DESIRED", "RESTARTS", "NOMINATED NODE", "CLUSTER-IP", "SELECTOR"] {
            assert!(table.contains(column), "{column} is missing in\n{table}");
        }
        assert!(kubectl(&["get", "pods", "-l", "app=web", "--no-headers"]).contains("Running"));
        assert_eq!(kubectl(&["get", "pods", "-l", "app=other", "-o", "name"]), "");
        assert_eq!(kubectl(&["get", "pods", "--field-selector=status.phase=Running", "-o", "name"]).lines().count(), 1);
        assert!(kubectl(&["describe", "deployment", "web"]).contains("NewReplicaSet:"));
        assert!(
            kubectl(&["describe", "pods"]).contains("Started container")
                || kubectl(&["describe", "pods"]).contains("Started")
        );
        assert!(kubectl(&["explain", "deployment.spec.strategy"]).contains("rollingUpdate"));
        assert!(kubectl(&["get", "events"]).contains("Scheduled"));
        let yaml = kubectl(&["get", "deployment", "web", "-o", "yaml"]);
        assert!(yaml.contains("kind: Deployment") && yaml.contains("maxSurge: 25%"), "{yaml}");
    });
}

#[test]
fn each_patch_changes_what_it_says() {
    with_each_kubectl(|cluster, kubectl| {
        cluster.kubectl_stdin(&["-n", &namespace_of(kubectl), "apply", "-f", "-"], DEPLOYMENT);
        let image =
            || kubectl(&["get", "deployment", "web", "-o", "jsonpath={.spec.template.spec.containers[*].image}"]);
        kubectl(&[
            "patch",
            "deployment",
            "web",
            "-p",
            r#"{"spec":{"template":{"spec":{"containers":[{"name":"echo","image":"example/echo:v2"}]}}}}"#,
        ]);
        assert_eq!(image(), "example/echo:v2");
        kubectl(&[
            "patch",
            "deployment",
            "web",
            "--type=json",
            "-p",
            r#"[{"op":"replace","path":"/spec/template/spec/containers/0/image","value":"example/echo:v1"}]"#,
        ]);
        assert_eq!(image(), "example/echo:v1");
        kubectl(&["set", "image", "deployment/web", "echo=example/echo:v2"]);
        assert_eq!(image(), "example/echo:v2");
        kubectl(&["scale", "deployment", "web", "--replicas=2"]);
        assert_eq!(kubectl(&["get", "deployment", "web", "-o", "jsonpath={.spec.replicas}"]), "2");
        kubectl(&["label", "deployment", "web", "tier=front"]);
        kubectl(&["annotate", "deployment", "web", "note=here"]);
        assert_eq!(kubectl(&["get", "deployments", "-l", "tier=front", "-o", "name"]), "deployment.apps/web\n");
        kubectl(&["expose", "deployment", "web", "--port=80", "--target-port=8080"]);
        assert_ne!(kubectl(&["get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"]), "");
        kubectl(&["autoscale", "deployment", "web", "--max=3"]);
    });
}

#[test]
fn delete_cascades_as_it_is_told() {
    with_each_kubectl(|cluster, kubectl| {
        let namespace = namespace_of(kubectl);
        let apply = || cluster.kubectl_stdin(&["-n", &namespace, "apply", "-f", "-"], DEPLOYMENT);
        apply();
        kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
        kubectl(&["delete", "deployment", "web", "--cascade=orphan"]);
        assert_eq!(kubectl(&["get", "replicasets", "-o", "name"]).lines().count(), 1);
        assert_eq!(kubectl(&["get", "replicasets", "-o", "jsonpath={.items[0].metadata.ownerReferences}"]), "");
        // The new Deployment adopts what the old one left.
        apply();
        kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
        assert_eq!(kubectl(&["get", "replicasets", "-o", "name"]).lines().count(), 1);
        kubectl(&["delete", "deployment", "web", "--cascade=foreground", "--timeout=60s"]);
        assert_eq!(kubectl(&["get", "replicasets,pods", "-o", "name"]), "");
        apply();
        kubectl(&["delete", "deployment", "web"]);
        kubectl(&["wait", "--for=delete", "replicasets,pods", "--all", "--timeout=60s"]);
    });
}

#[test]
fn dry_run_and_diff_change_nothing() {
    with_each_kubectl(|cluster, kubectl| {
        let namespace = namespace_of(kubectl);
        cluster.kubectl_stdin(&["-n", &namespace, "apply", "--dry-run=server", "-f", "-"], CONFIG);
        assert_eq!(kubectl(&["get", "configmaps", "settings", "--ignore-not-found", "-o", "name"]), "");
        cluster.kubectl_stdin(&["-n", &namespace, "apply", "-f", "-"], CONFIG);
        let diff = cluster.try_kubectl_stdin(&["-n", &namespace, "diff", "-f", "-"], &CONFIG.replace("blue", "green"));
        assert_eq!(diff.status.code(), Some(1), "{}", text(&diff));
        assert!(text(&diff).contains("+  colour: green"), "{}", text(&diff));
        assert_eq!(kubectl(&["get", "configmap", "settings", "-o", "jsonpath={.data.colour}"]), "blue");
    });
}

#[test]
fn the_cluster_tells_about_itself() {
    with_each_kubectl(|_, kubectl| {
        assert!(kubectl(&["cluster-info"]).contains("Kubernetes control plane"));
        let resources = kubectl(&["api-resources"]);
        for name in ["deployments", "statefulsets", "cronjobs", "networkpolicies", "customresourcedefinitions"] {
            assert!(resources.contains(name), "{name} is missing in\n{resources}");
        }
        assert_eq!(kubectl(&["auth", "can-i", "create", "pods"]), "yes\n");
        assert!(kubectl(&["auth", "whoami"]).contains("kubernetes-admin"));
        assert!(kubectl(&["get", "nodes"]).contains("Ready"));
        assert!(kubectl(&["version"]).contains("Server Version"));
        assert!(kubectl(&["get", "namespaces"]).contains("kube-system"));
        kubectl(&["events"]);
    });
}

#[test]
fn a_custom_resource_is_served_printed_validated_and_scaled() {
    let cluster = Cluster::up();
    cluster.apply(CRONTAB_CRD);
    cluster.kubectl(&["wait", "crd/crontabs.example.com", "--for=condition=Established", "--timeout=10s"]);
    // Unknown fields are pruned when kubectl lets them through, refused when it asks for strict validation (its default).
    let nightly = "apiVersion: example.com/v1\nkind: CronTab\nmetadata: {name: nightly}\nspec: {cron: '0 3 * * *', unknown: dropped}\n";
    let strict = cluster.try_kubectl_stdin(&["apply", "-f", "-"], nightly);
    assert!(!strict.status.success() && text(&strict).contains("unknown field \"spec.unknown\""), "{}", text(&strict));
    cluster.kubectl_stdin(&["apply", "--validate=ignore", "-f", "-"], nightly);
    let table = cluster.kubectl(&["get", "ct"]);
    assert!(table.contains("SPEC") && table.contains("0 3 * * *"), "{table}");
    assert_eq!(
        cluster.kubectl(&["get", "crontab", "nightly", "-o", "jsonpath={.spec}"]),
        r#"{"cron":"0 3 * * *","replicas":1}"#
    );
    let refused = cluster.try_kubectl_stdin(
        &["apply", "-f", "-"],
        "apiVersion: example.com/v1\nkind: CronTab\nmetadata: {name: wrong}\nspec: {cron: x, replicas: 11}\n",
    );
    assert!(text(&refused).contains("spec.replicas: Invalid value: 11"), "{}", text(&refused));
    cluster.apply("apiVersion: example.com/v1\nkind: CronTab\nmetadata: {name: nightly}\nspec: {cron: '0 4 * * *'}\n");
    assert_eq!(cluster.kubectl(&["get", "crontab", "nightly", "-o", "jsonpath={.spec.cron}"]), "0 4 * * *");
    cluster.kubectl(&["scale", "crontab/nightly", "--replicas=3"]);
    assert_eq!(cluster.kubectl(&["get", "crontab", "nightly", "-o", "jsonpath={.spec.replicas}"]), "3");
    cluster.kubectl(&["delete", "crd", "crontabs.example.com", "--timeout=30s"]);
    // kubectl keeps what it discovered for hours; api-resources asks anew.
    assert!(!cluster.kubectl(&["api-resources"]).contains("crontabs"));
    assert!(cluster.kubectl_fails(&["get", "crontabs"]).contains("the server doesn't have a resource type"));
}

#[test]
fn bad_input_is_refused_with_the_path_of_what_is_wrong_and_nothing_is_stored() {
    let cluster = Cluster::up();
    let cases = [
        ("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: Bad_Name}\n", "metadata.name: Invalid value: \"Bad_Name\""),
        ("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {k: 5}\n", "data.k"),
        ("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndatas: {k: v}\n", "unknown field \"datas\""),
        ("apiVersion: v1\nkind: Nothing\nmetadata: {name: a}\n", "no matches for kind \"Nothing\""),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: c, image: i, resources: {limits: {cpu: lots}}}]}\n",
            "quantities must match the regular expression",
        ),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: []}\n", "spec.containers: Required value"),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: c, image: i}], volumes: [{name: v, nfs: {server: s, path: /}}]}\n",
            "not supported by Proa yet",
        ),
    ];
    for (manifest, expected) in cases {
        let output = cluster.try_kubectl_stdin(&["apply", "-f", "-"], manifest);
        assert!(!output.status.success(), "accepted:\n{manifest}");
        assert!(text(&output).contains(expected), "expected {expected:?} in {}", text(&output));
    }
    assert_eq!(cluster.kubectl(&["get", "pods", "-o", "name"]), "");
    assert_eq!(cluster.kubectl(&["get", "configmaps", "-o", "name"]), "configmap/kube-root-ca.crt\n");
}

pub(crate) fn namespace_of(kubectl: &dyn Fn(&[&str]) -> String) -> String {
    let namespace = kubectl(&["get", "serviceaccount", "default", "-o", "jsonpath={.metadata.namespace}"]);
    assert!(namespace.starts_with("story-"), "{namespace}");
    namespace
}

const DEPLOYMENT: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 1
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: echo, image: 'example/echo:v1'}]
";

const CRONTAB_CRD: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: crontabs.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {plural: crontabs, singular: crontab, kind: CronTab, shortNames: [ct], categories: [all]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources:
      status: {}
      scale: {specReplicasPath: .spec.replicas, statusReplicasPath: .status.replicas}
    additionalPrinterColumns:
    - {name: Spec, type: string, jsonPath: .spec.cron}
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            required: [cron]
            properties:
              cron: {type: string}
              replicas: {type: integer, default: 1, minimum: 0, maximum: 10}
          status:
            type: object
            properties:
              replicas: {type: integer}
";
