//! StatefulSets, DaemonSets and the revisions they keep.

use serde_json::json;

use super::super::Op;
use super::*;

const STATEFUL_SET: &str = "
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db, namespace: shop}
spec:
  serviceName: db
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec: {containers: [{name: main, image: 'db:1'}]}
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
";

const DAEMON_SET: &str = "
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: agent, namespace: shop}
spec:
  selector: {matchLabels: {app: agent}}
  template:
    metadata: {labels: {app: agent}}
    spec: {containers: [{name: main, image: 'agent:1'}]}
";

#[test]
fn they_get_every_default_and_no_warning() {
    let set = created(STATEFUL_SET);
    let spec = &set.0["spec"];
    assert_eq!(errors_of(&set), Vec::<String>::new());
    assert_eq!((&spec["replicas"], &spec["podManagementPolicy"]), (&json!(1), &json!("OrderedReady")));
    assert_eq!(spec["updateStrategy"], json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 0}}));
    assert_eq!(spec["persistentVolumeClaimRetentionPolicy"], json!({"whenDeleted": "Retain", "whenScaled": "Retain"}));
    assert_eq!(spec["volumeClaimTemplates"][0]["spec"]["volumeMode"], "Filesystem");
    assert_eq!(kind_of(&set).strategy.warnings(&set), Vec::<String>::new());
    let set = created(DAEMON_SET);
    assert_eq!(errors_of(&set), Vec::<String>::new());
    let strategy = json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}});
    assert_eq!((&set.0["spec"]["updateStrategy"], &set.0["spec"]["revisionHistoryLimit"]), (&strategy, &json!(10)));
    assert_eq!(kind_of(&set).strategy.warnings(&set), Vec::<String>::new());
}

#[test]
fn what_is_wrong_with_a_stateful_set() {
    let strategy = "spec.updateStrategy";
    table(
        STATEFUL_SET,
        &[
            (
                &[(strategy, "{type: OnDelete, rollingUpdate: {partition: 1}}")],
                "spec.updateStrategy.rollingUpdate: Invalid value: {\"partition\":1}: only allowed for updateStrategy 'RollingUpdate'",
            ),
            (
                &[(strategy, "{rollingUpdate: {maxUnavailable: 0}}")],
                "spec.updateStrategy.rollingUpdate.maxUnavailable: Invalid value: 0: cannot be 0",
            ),
            (
                &[(strategy, "{rollingUpdate: {maxUnavailable: 101%}}")],
                "spec.updateStrategy.rollingUpdate.maxUnavailable: Invalid value: \"101%\": must not be greater than 100%",
            ),
            (
                &[(strategy, "{rollingUpdate: {partition: -1}}")],
                "spec.updateStrategy.rollingUpdate.partition: Invalid value: -1: must be greater than or equal to 0",
            ),
            (
                &[("spec.persistentVolumeClaimRetentionPolicy", "{whenScaled: Never}")],
                "spec.persistentVolumeClaimRetentionPolicy.whenScaled: Unsupported value: \"Never\": supported values: \"Delete\", \"Retain\"",
            ),
            (
                &[("spec.podManagementPolicy", "Any")],
                "spec.podManagementPolicy: Unsupported value: \"Any\": supported values: \"OrderedReady\", \"Parallel\"",
            ),
        ],
    );
}

#[test]
fn what_is_wrong_with_a_daemon_set() {
    let strategy = "spec.updateStrategy";
    table(
        DAEMON_SET,
        &[
            (
                &[(strategy, "{rollingUpdate: {maxSurge: 1}}")],
                "spec.updateStrategy.rollingUpdate.maxSurge: Invalid value: 1: may not be set when maxUnavailable is non-zero",
            ),
            (
                &[(strategy, "{rollingUpdate: {maxUnavailable: 0}}")],
                "spec.updateStrategy.rollingUpdate.maxUnavailable: Required value: cannot be 0 when maxSurge is 0",
            ),
            (
                &[(strategy, "{rollingUpdate: {maxUnavailable: 0, maxSurge: 101%}}")],
                "spec.updateStrategy.rollingUpdate.maxSurge: Invalid value: \"101%\": must not be greater than 100%",
            ),
            (
                &[(strategy, "{type: Recreate}")],
                "spec.updateStrategy.type: Unsupported value: \"Recreate\": supported values: \"OnDelete\", \"RollingUpdate\"",
            ),
            (
                &[("spec.template.spec.restartPolicy", "Never")],
                "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
            ),
        ],
    );
}

#[test]
fn of_a_stateful_set_only_what_the_controller_can_change_may_change() {
    let old = stored(STATEFUL_SET);
    let changed = |path: &[&str], value: Value| {
        let mut new = old.clone();
        new.set(path, value);
        update(&old, &new, Op::Update).map(|new| new.generation())
    };
    assert_eq!(changed(&["spec", "replicas"], json!(3)), Ok(2));
    assert_eq!(changed(&["spec", "ordinals"], json!({"start": 3})), Ok(2));
    assert_eq!(changed(&["spec", "minReadySeconds"], json!(3)), Ok(2));
    for (field, value) in [
        ("serviceName", json!("other")),
        ("podManagementPolicy", json!("Parallel")),
        ("volumeClaimTemplates", json!([])),
    ] {
        let refused = changed(&["spec", field], value).expect_err(field);
        assert!(
            refused[0].starts_with("spec: Forbidden: updates to statefulset spec for fields other than"),
            "{refused:?}"
        );
    }
}

/// Conformance: StatefulSet, status sub-resource; DaemonSet, status sub-resource.
#[test]
fn their_status_is_written_alone_and_may_not_claim_what_cannot_be() {
    for (manifest, good, bad) in [
        (STATEFUL_SET, json!({"replicas": 2, "currentReplicas": 2}), json!({"replicas": 1, "currentReplicas": 2})),
        (DAEMON_SET, json!({"numberReady": 1}), json!({"numberReady": -1})),
        (
            DAEMON_SET,
            json!({"conditions": [{"type": "StatusUpdate", "status": "True"}]}),
            json!({"collisionCount": -1}),
        ),
    ] {
        let old = stored(manifest);
        let mut new = old.clone();
        new.set(&["status"], good.clone());
        new.set(&["spec", "minReadySeconds"], json!(7));
        let written = update(&old, &new, Op::UpdateStatus).expect("a status");
        assert_eq!((&written.0["status"], written.0["spec"].get("minReadySeconds")), (&good, None));
        new.set(&["status"], bad.clone());
        assert!(update(&old, &new, Op::UpdateStatus).is_err(), "{bad}");
    }
    let mut old = stored(DAEMON_SET);
    old.set(&["status"], json!({"collisionCount": 2}));
    let mut new = old.clone();
    new.set(&["status"], json!({"collisionCount": 1}));
    let refused = update(&old, &new, Op::UpdateStatus).expect_err("fewer collisions");
    assert_eq!(refused, ["status.collisionCount: Invalid value: 1: cannot be decremented"]);
}

#[test]
fn what_a_revision_recorded_does_not_change() {
    let revision =
        "{apiVersion: apps/v1, kind: ControllerRevision, metadata: {name: db-1, namespace: shop}, revision: 1,
        data: {spec: {template: {$patch: replace, spec: {}}}}}";
    let old = stored(revision);
    let mut new = old.clone();
    new.set(&["revision"], json!(3));
    new.set(&["metadata", "labels"], json!({"a": "b"}));
    assert!(update(&old, &new, Op::Update).is_ok(), "numbers and labels do");
    new.set(&["data", "spec"], json!({}));
    assert_eq!(update(&old, &new, Op::Update).expect_err("other data").len(), 1);
}
