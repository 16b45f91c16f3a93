use serde_json::json;

use super::super::Op;
use super::*;

const DEPLOYMENT: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: main, image: 'nginx:1'}]}
";

#[test]
fn a_deployment_gets_every_default() {
    let deployment = created(DEPLOYMENT);
    let spec = &deployment.0["spec"];
    assert_eq!(spec["replicas"], 1);
    assert_eq!(
        spec["strategy"],
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}})
    );
    assert_eq!((&spec["revisionHistoryLimit"], &spec["progressDeadlineSeconds"]), (&json!(10), &json!(600)));
    assert_eq!(spec["template"]["spec"]["containers"][0]["imagePullPolicy"], "IfNotPresent");
    assert_eq!(spec["template"]["spec"].get("enableServiceLinks"), None);
    assert_eq!(deployment.0.get("status"), None);
}

#[test]
fn what_is_wrong_with_a_deployment() {
    table(
        DEPLOYMENT,
        &[
            (&[("spec.selector", "~")], "spec.selector: Required value"),
            (
                &[("spec.template.metadata.labels", "{app: other}")],
                "spec.template.metadata.labels: Invalid value: {\"app\":\"other\"}: `selector` does not match template `labels`",
            ),
            (&[("spec.replicas", "-1")], "spec.replicas: Invalid value: -1: must be greater than or equal to 0"),
            (
                &[("spec.strategy", "{type: Recreate, rollingUpdate: {maxSurge: 1}}")],
                "spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'",
            ),
            (
                &[("spec.strategy", "{rollingUpdate: {maxSurge: 0, maxUnavailable: 0%}}")],
                "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"0%\": may not be 0 when `maxSurge` is 0",
            ),
            (
                &[("spec.strategy", "{rollingUpdate: {maxUnavailable: 200%}}")],
                "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"200%\": must not be greater than 100%",
            ),
            (
                &[("spec.minReadySeconds", "600")],
                "spec.progressDeadlineSeconds: Invalid value: 600: must be greater than minReadySeconds",
            ),
            (
                &[("spec.template.spec.restartPolicy", "Never")],
                "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
            ),
            (
                &[("spec.template.spec.containers.0.image", "~")],
                "spec.template.spec.containers[0].image: Required value",
            ),
            (&[("spec.selector", "{}")], "spec.selector: Invalid value: {}: empty selector is invalid for deployment"),
        ],
    );
}

#[test]
fn a_template_that_cannot_run_is_refused_at_apply() {
    let object = with(DEPLOYMENT, &[("spec.template.spec.volumes", "[{name: v, iscsi: {}}]")]);
    let refused = kind_of(&object).strategy.unsupported(&object);
    assert_eq!(
        refused[0].to_string(),
        "spec.template.spec.volumes[0].iscsi: Forbidden: iscsi volumes are not supported by Proa yet"
    );
}

#[test]
fn generation_counts_changes_of_the_desired_state_only() {
    let old = stored(DEPLOYMENT);
    let changed = |path: &[&str], value: Value| {
        let mut new = old.clone();
        new.set(path, value);
        update(&old, &new, Op::Update).unwrap().generation()
    };
    assert_eq!(changed(&["spec", "replicas"], json!(3)), 2);
    assert_eq!(changed(&["metadata", "labels"], json!({"a": "b"})), 1);
    assert_eq!(changed(&["metadata", "annotations"], json!({"a": "b"})), 2, "annotations steer rollouts");
    assert_eq!(changed(&["metadata", "generation"], json!(9)), 1);
    assert_eq!(changed(&["status"], json!({"replicas": 1})), 1);
}

#[test]
fn a_selector_does_not_change() {
    let old = stored(DEPLOYMENT);
    let mut new = old.clone();
    new.set(&["spec", "selector"], json!({"matchLabels": {"app": "x"}}));
    new.set(&["spec", "template", "metadata", "labels"], json!({"app": "x"}));
    let refused = update(&old, &new, Op::Update).unwrap_err();
    assert_eq!(refused, ["spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"x\"}}: field is immutable"]);
}

#[test]
fn status_may_not_claim_what_cannot_be() {
    let old = stored(DEPLOYMENT);
    let mut new = old.clone();
    new.set(&["status"], json!({"replicas": 1, "readyReplicas": 2}));
    assert!(update(&old, &new, Op::UpdateStatus).is_err());
    new.set(&["status"], json!({"replicas": 2, "readyReplicas": 2, "availableReplicas": 1}));
    assert!(update(&old, &new, Op::UpdateStatus).is_ok());
}

#[test]
fn a_misspelt_setting_is_warned_about() {
    let deployment = |annotations: &str| {
        created(&format!(
            "{{apiVersion: apps/v1, kind: Deployment, metadata: {{name: a, annotations: {{{annotations}}}}}, spec: {{selector: {{matchLabels: {{a: b}}}},
              template: {{metadata: {{labels: {{a: b}}}}, spec: {{containers: [{{name: a, image: i}}]}}}}}}}}",
        ))
    };
    let warnings = |object: &Object| kind_of(object).strategy.warnings(object);
    let misspelt = "metadata.annotations[proa.dev/rollback]: \"on_failure\" means nothing and is ignored; meant are \"on-failure\" or \"off\"";
    assert_eq!(warnings(&deployment("proa.dev/rollback: on_failure, proa.dev/config-revisions: 'off'")), [misspelt]);
    assert_eq!(warnings(&deployment("proa.dev/rollback: on-failure")), Vec::<String>::new());
    let namespace =
        created("{apiVersion: v1, kind: Namespace, metadata: {name: a, annotations: {proa.dev/rollback: on_failure}}}");
    assert_eq!(warnings(&namespace), [misspelt]);
}
