//! Stories told with the real kubectl, the oldest and the newest, over TLS.

mod common;

use common::{Kubectl, World, world};

const MANIFEST: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {a: b}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers: [{name: web, image: "example/echo:v1", ports: [{containerPort: 8080}]}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}], type: NodePort}
---
apiVersion: v1
kind: Pod
metadata: {name: one, labels: {app: one}}
spec: {containers: [{name: one, image: "example/echo:v1"}]}
"#;

const CRD: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: boats.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {plural: boats, singular: boat, kind: Boat, shortNames: [bt]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}, scale: {specReplicasPath: .spec.sails, statusReplicasPath: .status.sails}}
    additionalPrinterColumns: [{name: Sails, type: integer, jsonPath: .spec.sails}]
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            required: [hull]
            properties: {hull: {type: string}, sails: {type: integer, default: 1, maximum: 4}}
          status:
            type: object
            properties: {sails: {type: integer}}
"#;

/// Runs a story with every kubectl, each against a server of its own.
async fn told(story: fn(&Kubectl)) {
    let probe = Kubectl::all("", std::path::Path::new("/")).len();
    for at in 0..probe {
        let world: World = world().await;
        let kubeconfig = world.serve().await;
        let kubectl = Kubectl::all(&kubeconfig, world.dir.path()).remove(at);
        tokio::task::spawn_blocking(move || story(&kubectl)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn apply_get_describe_diff_and_apply_again() {
    told(|kubectl| {
        let first = kubectl.ok(&["apply", "-f", "-"], MANIFEST);
        assert_eq!(first.matches("created").count(), 4, "{first}");
        let again = kubectl.ok(&["apply", "-f", "-"], MANIFEST);
        assert_eq!(again.matches("unchanged").count(), 4, "{again}");
        assert!(kubectl.ok(&["get", "deploy,svc,po,cm", "-o", "wide"], "").contains("deployment.apps/web"));
        assert!(kubectl.ok(&["describe", "deployment", "web"], "").contains("RollingUpdateStrategy"));
        assert!(kubectl.ok(&["describe", "pod", "one"], "").contains("Service Account"));
        assert_eq!(kubectl.ok(&["diff", "-f", "-"], MANIFEST), "");
        let server =
            kubectl.ok(&["apply", "--dry-run=server", "-f", "-"], &MANIFEST.replace("replicas: 3", "replicas: 7"));
        assert!(server.contains("configured (server dry run)"), "{server}");
        assert_eq!(kubectl.ok(&["get", "deploy", "web", "-o", "jsonpath={.spec.replicas}"], ""), "3");
        assert!(kubectl.ok(&["get", "po", "-l", "app=one", "-o", "name"], "").contains("pod/one"));
        assert!(kubectl.ok(&["get", "po", "--field-selector=metadata.name=one", "-A"], "").contains("one"));
        assert!(
            kubectl.fails(&["get", "po", "--field-selector=foo=bar"], "").contains("field label not supported: foo")
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_managers_of_one_field_conflict_until_one_is_forced() {
    told(|kubectl| {
        let mine =
            r#"{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "shared"}, "data": {"a": "mine"}}"#;
        let theirs = mine.replace("mine", "theirs");
        kubectl.ok(&["apply", "--server-side", "-f", "-"], mine);
        let refused = kubectl.fails(&["apply", "--server-side", "--field-manager=other", "-f", "-"], &theirs);
        assert!(refused.contains("conflict with \"kubectl\": .data.a"), "{refused}");
        kubectl.ok(&["apply", "--server-side", "--force-conflicts", "--field-manager=other", "-f", "-"], &theirs);
        assert_eq!(kubectl.ok(&["get", "cm", "shared", "-o", "jsonpath={.data.a}"], ""), "theirs");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_way_to_change_an_object() {
    told(|kubectl| {
        kubectl.ok(&["apply", "-f", "-"], MANIFEST);
        kubectl.ok(&["label", "deploy", "web", "tier=front"], "");
        kubectl.ok(&["annotate", "deploy", "web", "note=x"], "");
        kubectl.ok(&["patch", "deploy", "web", "-p", r#"{"spec":{"template":{"spec":{"containers":[{"name":"web","env":[{"name":"A","value":"B"}]}]}}}}"#], "");
        kubectl.ok(&["patch", "deploy", "web", "--type=merge", "-p", r#"{"spec":{"minReadySeconds":2}}"#], "");
        kubectl.ok(&["patch", "deploy", "web", "--type=json", "-p", r#"[{"op":"replace","path":"/spec/replicas","value":2}]"#], "");
        kubectl.ok(&["set", "image", "deploy/web", "web=example/echo:v2"], "");
        kubectl.ok(&["scale", "deploy/web", "--replicas=5"], "");
        let path = "jsonpath={.spec.replicas} {.spec.minReadySeconds} {.spec.template.spec.containers[0].image} {.spec.template.spec.containers[0].env[0].value} {.metadata.generation} {.metadata.labels.tier}";
        assert_eq!(kubectl.ok(&["get", "deploy", "web", "-o", path], ""), "5 2 example/echo:v2 B 7 front");
        kubectl.ok(&["expose", "deploy", "web", "--name=again", "--port=80"], "");
        kubectl.ok(&["autoscale", "deploy", "web", "--max=3"], "");
        kubectl.ok(&["create", "configmap", "made", "--from-literal=a=b"], "");
        kubectl.ok(&["create", "deployment", "made", "--image=example/echo:v1", "--replicas=2"], "");
        assert_eq!(kubectl.ok(&["get", "deploy", "made", "-o", "jsonpath={.spec.replicas} {.spec.template.spec.containers[0].name}"], ""), "2 echo");
        kubectl.ok(&["create", "namespace", "team"], "");
        kubectl.ok(&["create", "role", "reader", "--verb=get,list", "--resource=pods"], "");
        kubectl.ok(&["create", "rolebinding", "reader", "--role=reader", "--user=bob"], "");
        kubectl.ok(&["create", "secret", "generic", "s", "--from-literal=k=v"], "");
        assert_eq!(kubectl.ok(&["get", "secret", "s", "-o", "jsonpath={.data.k}"], ""), "dg==");
        kubectl.ok(&["delete", "cm", "made"], "");
        assert_eq!(kubectl.ok(&["auth", "can-i", "list", "pods", "--as", "bob"], "").trim(), "yes");
        assert!(String::from_utf8_lossy(&kubectl.run(&["auth", "can-i", "delete", "pods", "--as", "bob"], "").stdout).contains("no"));
        let refused = kubectl.fails(&["get", "secrets", "--as", "bob"], "");
        assert!(refused.contains(r#"secrets is forbidden: User "bob" cannot list resource "secrets" in API group "" in the namespace "default""#), "{refused}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delete_propagates_as_asked() {
    told(|kubectl| {
        for (policy, finalizer) in
            [("orphan", "[\"orphan\"]"), ("foreground", "[\"foregroundDeletion\"]"), ("background", "")]
        {
            kubectl.ok(&["apply", "-f", "-"], MANIFEST);
            kubectl.ok(&["delete", "deploy", "web", &format!("--cascade={policy}"), "--wait=false"], "");
            let left = kubectl
                .ok(&["get", "deploy", "web", "--ignore-not-found", "-o", "jsonpath={.metadata.finalizers}"], "");
            assert_eq!(left, finalizer, "{policy}");
            if !left.is_empty() {
                kubectl
                    .ok(&["patch", "deploy", "web", "--type=merge", "-p", r#"{"metadata":{"finalizers":null}}"#], "");
            }
            assert_eq!(kubectl.ok(&["get", "deploy", "web", "--ignore-not-found"], ""), "");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_kind_is_usable_as_soon_as_it_is_applied() {
    told(|kubectl| {
        kubectl.ok(&["apply", "-f", "-"], CRD);
        kubectl.ok(&["wait", "--for=condition=Established", "crd/boats.example.com", "--timeout=10s"], "");
        kubectl.ok(
            &["apply", "-f", "-"],
            "apiVersion: example.com/v1\nkind: Boat\nmetadata: {name: proa}\nspec: {hull: slim}\n",
        );
        assert_eq!(kubectl.ok(&["get", "bt", "proa", "-o", "jsonpath={.spec.sails}"], ""), "1");
        assert!(kubectl.ok(&["get", "boats"], "").contains("SAILS"));
        kubectl.ok(&["scale", "boat/proa", "--replicas=3"], "");
        assert_eq!(kubectl.ok(&["get", "boat", "proa", "-o", "jsonpath={.spec.sails}"], ""), "3");
        let refused = kubectl.fails(
            &["apply", "-f", "-"],
            "apiVersion: example.com/v1\nkind: Boat\nmetadata: {name: bad}\nspec: {hull: slim, sails: 9}\n",
        );
        assert!(refused.contains("spec.sails"), "{refused}");
        assert!(kubectl.ok(&["explain", "boat.spec"], "").contains("hull"));
        kubectl.ok(&["delete", "crd", "boats.example.com", "--timeout=20s"], "");
        assert!(!kubectl.ok(&["api-resources"], "").contains("boats"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_manifests_are_refused_with_their_field() {
    told(|kubectl| {
        let unknown =
            kubectl.fails(&["apply", "-f", "-"], "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndataa: {}\n");
        assert!(unknown.contains("unknown field \"dataa\"") || unknown.contains("ValidationError"), "{unknown}");
        let name =
            kubectl.fails(&["apply", "-f", "-"], "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: Bad_Name}\n");
        assert!(name.contains("metadata.name: Invalid value"), "{name}");
        let selector =
            MANIFEST.split("---").nth(1).unwrap().replace("matchLabels: {app: web}", "matchLabels: {app: other}");
        let refused = kubectl.fails(&["apply", "-f", "-"], &selector);
        assert!(refused.contains("spec.template.metadata.labels"), "{refused}");
        assert!(kubectl.ok(&["explain", "deployment.spec.strategy"], "").contains("rollingUpdate"));
        assert!(kubectl.ok(&["api-resources"], "").contains("deployments"));
        assert!(kubectl.ok(&["get", "--raw", "/readyz?verbose"], "").contains("readyz check passed"));
    })
    .await;
}
