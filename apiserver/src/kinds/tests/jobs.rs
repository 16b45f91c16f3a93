use serde_json::json;

use super::super::Op;
use super::*;

const JOB: &str = "
apiVersion: batch/v1
kind: Job
metadata: {name: work, namespace: shop, uid: u-1}
spec:
  completions: 3
  parallelism: 2
  completionMode: Indexed
  template:
    spec: {restartPolicy: Never, containers: [{name: main, image: 'i:1'}]}
";

const CRON: &str = "
apiVersion: batch/v1
kind: CronJob
metadata: {name: tick, namespace: shop, uid: u-1}
spec:
  schedule: '*/5 * * * *'
  jobTemplate:
    spec: {template: {spec: {restartPolicy: OnFailure, containers: [{name: main, image: 'i:1'}]}}}
";

#[test]
fn a_job_gets_every_default_and_selects_its_own_pods() {
    let job = created(
        "{apiVersion: batch/v1, kind: Job, metadata: {name: j, uid: u-1}, spec: {template: {metadata: {labels: {app: x}}, spec: {restartPolicy: Never, containers: [{name: a, image: i}]}}}}",
    );
    assert_eq!(errors_of(&job), Vec::<String>::new());
    let spec = &job.0["spec"];
    for (field, value) in [
        ("completions", json!(1)),
        ("parallelism", json!(1)),
        ("backoffLimit", json!(6)),
        ("completionMode", json!("NonIndexed")),
        ("suspend", json!(false)),
        ("manualSelector", json!(false)),
        ("podReplacementPolicy", json!("TerminatingOrFailed")),
        ("selector", json!({"matchLabels": {"batch.kubernetes.io/controller-uid": "u-1"}})),
    ] {
        assert_eq!(spec[field], value, "{field}");
    }
    let labels = json!({"app": "x", "batch.kubernetes.io/controller-uid": "u-1", "controller-uid": "u-1",
        "batch.kubernetes.io/job-name": "j", "job-name": "j"});
    assert_eq!(spec["template"]["metadata"]["labels"], labels);
    assert_eq!(job.0["metadata"]["labels"], json!({"app": "x"}));
    assert_eq!(kind_of(&job).strategy.warnings(&job), Vec::<String>::new(), "something acts on it");
    let policy = with(
        JOB,
        &[
            ("spec.podFailurePolicy", "{rules: [{action: Ignore, onPodConditions: [{type: DisruptionTarget}]}]}"),
            ("spec.backoffLimitPerIndex", "1"),
        ],
    );
    let strategy = kind_of(&policy).strategy;
    let mut policy = policy;
    strategy.default(&mut policy);
    assert_eq!(policy.get_str(&["spec", "podReplacementPolicy"]), Some("Failed"));
    assert_eq!(policy.0["spec"]["podFailurePolicy"]["rules"][0]["onPodConditions"][0]["status"], "True");
    assert_eq!(policy.get_i64(&["spec", "backoffLimit"]), Some(i64::from(i32::MAX)));
}

#[test]
fn what_is_wrong_with_a_job() {
    table(
        JOB,
        &[
            (&[("spec.completions", "~")], "spec.completions: Required value: when completion mode is Indexed"),
            (
                &[("spec.backoffLimit", "-1")],
                "spec.backoffLimit: Invalid value: -1: must be greater than or equal to 0",
            ),
            (
                &[("spec.completionMode", "Some")],
                "spec.completionMode: Unsupported value: \"Some\": supported values: \"NonIndexed\", \"Indexed\"",
            ),
            (
                &[("spec.template.spec.restartPolicy", "Always")],
                "spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\"",
            ),
            (
                &[("spec.maxFailedIndexes", "1")],
                "spec.backoffLimitPerIndex: Required value: when maxFailedIndexes is specified",
            ),
            (
                &[("spec.backoffLimitPerIndex", "1"), ("spec.maxFailedIndexes", "4")],
                "spec.maxFailedIndexes: Invalid value: 4: must be less than or equal to completions",
            ),
            (
                &[("spec.completionMode", "NonIndexed"), ("spec.backoffLimitPerIndex", "1")],
                "spec.backoffLimitPerIndex: Invalid value: 1: requires indexed completion mode",
            ),
            (
                &[("spec.parallelism", "100001")],
                "spec.parallelism: Invalid value: 100001: must be less than or equal to 100000 when completion mode is Indexed",
            ),
            (
                &[("spec.managedBy", "me")],
                "spec.managedBy: Invalid value: \"me\": must be a domain-prefixed path (such as \"acme.io/foo\")",
            ),
            (
                &[("spec.podReplacementPolicy", "Never")],
                "spec.podReplacementPolicy: Unsupported value: \"Never\": supported values: \"Failed\", \"TerminatingOrFailed\"",
            ),
            (
                &[("metadata.name", "a.b")],
                "metadata.name: Invalid value: \"a.b\": will not able to create pod with invalid DNS label: a.b-2",
            ),
            (
                &[("spec.successPolicy", "{rules: []}")],
                "spec.successPolicy.rules: Required value: at least one rules must be specified when the successPolicy is specified",
            ),
            (
                &[("spec.successPolicy", "{rules: [{succeededIndexes: '0,5'}]}")],
                "spec.successPolicy.rules[0].succeededIndexes: Invalid value: \"0,5\": error parsing succeededIndexes: too large index: \"5\"",
            ),
            (
                &[("spec.successPolicy", "{rules: [{succeededIndexes: '0', succeededCount: 2}]}")],
                "spec.successPolicy.rules[0].succeededCount: Invalid value: 2: must be less than or equal to 1 (the number of indexes in the specified succeededIndexes field)",
            ),
            (
                &[(
                    "spec.podFailurePolicy",
                    "{rules: [{action: FailIndex, onExitCodes: {operator: In, values: [1]}}]}",
                )],
                "spec.podFailurePolicy.rules[0].action: Invalid value: \"FailIndex\": requires the backoffLimitPerIndex to be set",
            ),
            (
                &[(
                    "spec.podFailurePolicy",
                    "{rules: [{action: Ignore, onExitCodes: {operator: In, values: [2, 0, 2], containerName: x}}]}",
                )],
                "spec.podFailurePolicy.rules[0].onExitCodes.containerName: Invalid value: \"x\": must be one of the container or initContainer names in the pod template\n\
              spec.podFailurePolicy.rules[0].onExitCodes.values[1]: Invalid value: 0: must not be 0 for the In operator\n\
              spec.podFailurePolicy.rules[0].onExitCodes.values[2]: Duplicate value: 2\n\
              spec.podFailurePolicy.rules[0].onExitCodes.values: Invalid value: [2,0,2]: must be ordered",
            ),
            (
                &[("spec.podFailurePolicy", "{rules: [{action: Count}]}")],
                "spec.podFailurePolicy.rules[0]: Invalid value: specifying one of OnExitCodes and OnPodConditions is required",
            ),
            (
                &[
                    ("spec.podFailurePolicy", "{rules: [{action: Count, onExitCodes: {operator: In, values: [1]}}]}"),
                    ("spec.template.spec.restartPolicy", "OnFailure"),
                ],
                "spec.template.spec.restartPolicy: Invalid value: \"OnFailure\": only \"Never\" is supported when podFailurePolicy is specified",
            ),
            (
                &[("spec.template.metadata.labels", "{job-name: other}")],
                "spec.template.metadata.labels[job-name]: Invalid value: {\"job-name\":\"other\",\"batch.kubernetes.io/controller-uid\":\"u-1\",\"controller-uid\":\"u-1\",\"batch.kubernetes.io/job-name\":\"work\"}: must be 'work'",
            ),
        ],
    );
}

/// What an update of a Job's spec is refused with; none: it is accepted.
#[track_caller]
fn changes(old: &Object, path: &[&str], value: Value) -> Vec<String> {
    let mut new = old.clone();
    new.set(path, value);
    update(old, &new, Op::Update).err().unwrap_or_default()
}

#[test]
fn a_jobs_work_is_fixed_and_its_pace_is_not() {
    let job = stored(JOB);
    for (path, value) in [
        (&["spec", "parallelism"][..], json!(5)),
        (&["spec", "suspend"], json!(true)),
        (&["spec", "activeDeadlineSeconds"], json!(5)),
        (&["spec", "ttlSecondsAfterFinished"], json!(5)),
        (&["spec", "backoffLimit"], json!(1)),
    ] {
        assert_eq!(changes(&job, path, value), Vec::<String>::new(), "{path:?}");
    }
    for (field, value) in [
        ("completionMode", json!("NonIndexed")),
        ("backoffLimitPerIndex", json!(3)),
        ("successPolicy", json!({"rules": [{"succeededCount": 1}]})),
        ("managedBy", json!("a.b/c")),
    ] {
        let refused = changes(&job, &["spec", field], value);
        assert!(
            refused
                .iter()
                .any(|why| why.starts_with(&format!("spec.{field}: ")) && why.ends_with("field is immutable")),
            "{refused:?}"
        );
    }
    let refused = changes(&job, &["spec", "template", "spec", "nodeSelector"], json!({"a": "b"}));
    assert!(refused[0].starts_with("spec.template: ") && refused[0].ends_with("field is immutable"), "{refused:?}");
}

/// Elastic Indexed Jobs (KEP-3715).
#[test]
fn completions_change_in_tandem_with_parallelism() {
    let job = stored(JOB);
    assert_eq!(
        changes(&job, &["spec", "completions"], json!(5)),
        ["spec.completions: Invalid value: 5: can only be modified in tandem with spec.parallelism"]
    );
    let mut both = job.clone();
    both.set(&["spec", "parallelism"], json!(5));
    both.set(&["spec", "completions"], json!(5));
    assert!(update(&job, &both, Op::Update).is_ok());
}

/// KEP-2926.
#[test]
fn a_suspended_job_can_be_sent_elsewhere_until_it_runs() {
    let mut job = stored(JOB);
    job.set(&["spec", "suspend"], json!(true));
    let affinity = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "Exists"}]}]}}});
    for (path, value) in [
        (&["spec", "template", "spec", "nodeSelector"][..], json!({"a": "b"})),
        (&["spec", "template", "spec", "tolerations"], json!([{"operator": "Exists"}])),
        (&["spec", "template", "spec", "affinity"], affinity),
        (&["spec", "template", "metadata", "annotations"], json!({"a": "b"})),
    ] {
        assert_eq!(changes(&job, path, value.clone()), Vec::<String>::new(), "{path:?}");
        let mut running = job.clone();
        running.set(&["status"], json!({"startTime": "2026-01-01T00:00:00Z", "active": 1}));
        assert_ne!(changes(&running, path, value), Vec::<String>::new(), "{path:?}");
    }
    assert_ne!(changes(&job, &["spec", "template", "spec", "hostNetwork"], json!(true)), Vec::<String>::new());
}

/// KEP-4368: everybody believes what a Job's status says.
#[test]
fn what_a_jobs_status_may_not_claim() {
    let condition = |type_: &str| json!({"type": type_, "status": "True"});
    let (began, ended) = ("2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z");
    let complete = json!({"startTime": began, "completionTime": ended, "succeeded": 3, "completedIndexes": "0-2",
        "conditions": [condition("SuccessCriteriaMet"), condition("Complete")]});
    let mut running = stored(JOB);
    running.set(&["status"], json!({"startTime": began, "succeeded": 1, "failed": 1, "completedIndexes": "0"}));
    let claims = |old: &Object, status: &Value| {
        let mut new = old.clone();
        new.set(&["status"], status.clone());
        update(old, &new, Op::UpdateStatus).err().unwrap_or_default()
    };
    let after = |mut status: Value, patch: Value| {
        for (key, value) in patch.as_object().expect("a map") {
            status[key] = value.clone();
        }
        status
    };
    let failed = json!({"failed": 1});
    assert_eq!(claims(&running, &after(complete.clone(), failed.clone())), Vec::<String>::new());
    for (patch, why) in [
        (
            json!({"conditions": [condition("Complete")]}),
            "cannot set Complete=True condition without the SuccessCriteriaMet=true condition",
        ),
        (
            json!({"conditions": [condition("FailureTarget")]}),
            "cannot set completionTime when there is no Complete=True condition",
        ),
        (json!({"completionTime": "2025-01-01T00:00:00Z"}), "completionTime cannot be set before startTime"),
        (json!({"active": 1}), "active>0 is invalid for finished job"),
        (
            json!({"uncountedTerminatedPods": {"failed": ["a"]}}),
            "uncountedTerminatedPods needs to be empty for finished job",
        ),
        (json!({"uncountedTerminatedPods": {"failed": ["a"], "succeeded": ["a"]}}), "Duplicate value: \"a\""),
        (json!({"completedIndexes": "0-3"}), "error parsing completedIndexes: too large index: \"3\""),
        (json!({"failed": 0}), "cannot decrease the failed counter"),
        (json!({"startTime": ended}), "startTime cannot be removed for unsuspended job"),
        (json!({"failedIndexes": "1"}), "cannot set non-null failedIndexes when backoffLimitPerIndex is null"),
    ] {
        let refused = claims(&running, &after(after(complete.clone(), failed.clone()), patch));
        assert!(refused.iter().any(|said| said.contains(why)), "{why}: {refused:?}");
    }
    let mut finished = running.clone();
    finished.set(&["status"], after(complete, failed));
    let refused =
        claims(&finished, &json!({"startTime": began, "failed": 1, "succeeded": 3, "completedIndexes": "0-2"}));
    assert!(
        refused.iter().any(|said| said.contains("cannot disable the terminal Complete=True condition")),
        "{refused:?}"
    );
}

#[test]
fn what_is_wrong_with_a_cron_job() {
    table(
        CRON,
        &[
            (&[("spec.timeZone", "Europe/Berlin")], ""),
            (
                &[("spec.timeZone", "europe/berlin")],
                "spec.timeZone: Invalid value: \"europe/berlin\": unknown time zone europe/berlin",
            ),
            (
                &[("spec.timeZone", "''")],
                "spec.timeZone: Invalid value: \"\": timeZone must be nil or non-empty string",
            ),
            (
                &[("spec.timeZone", "Local")],
                "spec.timeZone: Invalid value: \"Local\": timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones",
            ),
            (&[("spec.schedule", "~")], "spec.schedule: Required value"),
            (
                &[("spec.schedule", "'* * *'")],
                "spec.schedule: Invalid value: \"* * *\": expected exactly 5 fields, found 3: [* * *]",
            ),
            (
                &[("spec.schedule", "TZ=UTC 0 0 * * *")],
                "spec.schedule: Invalid value: \"TZ=UTC 0 0 * * *\": cannot use TZ or CRON_TZ in schedule, use timeZone field instead",
            ),
            (
                &[("spec.schedule", "'60 * * * *'")],
                "spec.schedule: Invalid value: \"60 * * * *\": end of range (60) above maximum (59): 60",
            ),
            (
                &[("spec.concurrencyPolicy", "Perhaps")],
                "spec.concurrencyPolicy: Unsupported value: \"Perhaps\": supported values: \"Allow\", \"Forbid\", \"Replace\"",
            ),
            (
                &[("metadata.name", "a123456789012345678901234567890123456789012345678901234567890")],
                "metadata.name: Invalid value: \"a123456789012345678901234567890123456789012345678901234567890\": must be no more than 52 characters",
            ),
            (
                &[("spec.jobTemplate.spec.selector", "{matchLabels: {a: b}}")],
                "spec.jobTemplate.spec.selector: Invalid value: {\"matchLabels\":{\"a\":\"b\"}}: `selector` will be auto-generated",
            ),
            (
                &[("spec.jobTemplate.spec.template.spec.restartPolicy", "~")],
                "spec.jobTemplate.spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\"",
            ),
        ],
    );
    assert_eq!(kind_of(&created(CRON)).strategy.warnings(&created(CRON)), Vec::<String>::new(), "something acts on it");
}
