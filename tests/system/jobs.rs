//! Work that ends, with real containers and the real kubectl: Jobs, their policies, CronJobs, and ReplicationControllers.

use crate::harness::{Cluster, eventually};

/// Three indexes, each told its own, in a restart of its own container where it fails first.
const INDEXED: &str = r#"
apiVersion: batch/v1
kind: Job
metadata: {name: indexed}
spec:
  completions: 3
  parallelism: 3
  completionMode: Indexed
  template:
    spec:
      restartPolicy: OnFailure
      containers:
      - name: main
        image: test/busybox:1
        command: [sh, -c, 'test -e /out/tried || { touch /out/tried; exit 1; }; echo "index $JOB_COMPLETION_INDEX on $(hostname)"']
        volumeMounts: [{name: out, mountPath: /out}]
      volumes: [{name: out, emptyDir: {}}]
"#;

/// One index fails in a way that no retry mends; the others would run for ever.
const HOPELESS: &str = r#"
apiVersion: batch/v1
kind: Job
metadata: {name: hopeless}
spec:
  completions: 2
  parallelism: 2
  completionMode: Indexed
  podFailurePolicy:
    rules: [{action: FailJob, onExitCodes: {operator: In, values: [42]}}]
  template:
    spec:
      restartPolicy: Never
      terminationGracePeriodSeconds: 0
      containers: [{name: main, image: 'test/busybox:1', command: [sh, -c, 'test $JOB_COMPLETION_INDEX = 1 || exec sleep 3600; exit 42']}]
"#;

/// Each index leaves a mark and waits to be driven away; it succeeds when it finds the mark.
fn disrupted(marks: &str) -> String {
    format!(
        r#"
apiVersion: batch/v1
kind: Job
metadata: {{name: disrupted}}
spec:
  completions: 2
  parallelism: 2
  backoffLimit: 0
  completionMode: Indexed
  podFailurePolicy:
    rules: [{{action: Ignore, onPodConditions: [{{type: DisruptionTarget}}]}}]
  template:
    spec:
      restartPolicy: Never
      terminationGracePeriodSeconds: 0
      containers:
      - name: main
        image: test/busybox:1
        command: [sh, -c, 'test -e /marks/$JOB_COMPLETION_INDEX && exit 0; touch /marks/$JOB_COMPLETION_INDEX; exec sleep 3600']
        volumeMounts: [{{name: marks, mountPath: /marks}}]
      volumes: [{{name: marks, hostPath: {{path: '{marks}', type: DirectoryOrCreate}}}}]
"#
    )
}

fn pods(cluster: &Cluster, selector: &str) -> Vec<String> {
    let names = cluster.kubectl(&["get", "pods", "-l", selector, "-o", "name", "--sort-by=.metadata.name"]);
    names.lines().map(str::to_owned).collect()
}

/// Conformance, [sig-apps] Job: "Ensure Pods of an Indexed Job get a unique index", "Jobs, completion after task failure",
/// "Verify Pod Failure policy allows to fail job early on exit code", "Ensure pod failure policy allows to ignore failure
/// matching on the DisruptionTarget condition", "Jobs, active pods, graceful termination".
#[test]
fn jobs_end_as_their_pods_and_policies_say_and_kubectl_reads_them() {
    let cluster = Cluster::up();
    cluster.load_busybox();
    let marks = cluster.scratch().join("marks");
    for manifest in [INDEXED, HOPELESS, &disrupted(&marks.to_string_lossy())] {
        cluster.apply(manifest);
    }

    cluster.kubectl(&["wait", "--for=condition=complete", "job/indexed", "--timeout=60s"]);
    let row = cluster.kubectl(&["get", "job", "indexed", "--no-headers"]);
    assert_eq!(row.split_whitespace().take(3).collect::<Vec<_>>(), ["indexed", "Complete", "3/3"], "{row}");
    for index in 0..3 {
        let of_index = format!("job-name=indexed,batch.kubernetes.io/job-completion-index={index}");
        let [pod] = &pods(&cluster, &of_index)[..] else { panic!("one pod of index {index}") };
        assert_eq!(cluster.kubectl(&["logs", pod]), format!("index {index} on indexed-{index}\n"));
        assert_eq!(cluster.kubectl(&["get", pod, "-o", "jsonpath={.metadata.finalizers}"]), "", "it is counted");
    }
    let told = cluster.kubectl(&["describe", "job", "indexed"]);
    for line in
        ["Completed Indexes:  0-2", "0 Active (0 Ready) / 3 Succeeded / 0 Failed", "SuccessfulCreate", "Completed"]
    {
        assert!(told.contains(line), "{line}: {told}");
    }

    cluster.kubectl(&["wait", "--for=condition=failed", "job/hopeless", "--timeout=60s"]);
    let conditions = cluster.kubectl(&[
        "get",
        "job",
        "hopeless",
        "-o",
        "jsonpath={range .status.conditions[*]}{.type}={.reason} {end}",
    ]);
    assert_eq!(conditions, "FailureTarget=PodFailurePolicy Failed=PodFailurePolicy ");
    assert_eq!(cluster.kubectl(&["get", "job", "hopeless", "-o", "jsonpath={.status.failed} {.status.active}"]), "2 ");

    // One is evicted, then whatever runs is driven away from its node; they come again, and nothing of it counts.
    eventually("both indexes leave their mark", || {
        (std::fs::read_dir(&marks).map(Iterator::count).unwrap_or(0) == 2).then_some(())
    });
    let [evicted] = &pods(&cluster, "job-name=disrupted,batch.kubernetes.io/job-completion-index=0")[..] else {
        panic!("one pod of index 0")
    };
    let name = evicted.trim_start_matches("pod/");
    let eviction = format!(r#"{{"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {{"name": "{name}"}}}}"#);
    let path = format!("/api/v1/namespaces/default/pods/{name}/eviction");
    cluster.kubectl_stdin(&["create", "--raw", &path, "-f", "-"], &eviction);
    cluster.wait_for("job/disrupted", ".status.succeeded", "1");
    cluster.kubectl(&["taint", "node", "node-1", "away=now:NoExecute"]);
    eventually("the other pod is driven away", || {
        let running =
            ["get", "pods", "-l", "job-name=disrupted", "--field-selector=status.phase=Running", "-o", "name"];
        cluster.kubectl(&running).is_empty().then_some(())
    });
    cluster.kubectl(&["taint", "node", "node-1", "away-"]);
    cluster.kubectl(&["wait", "--for=condition=complete", "job/disrupted", "--timeout=90s"]);
    assert_eq!(
        cluster.kubectl(&["get", "job", "disrupted", "-o", "jsonpath={.status.succeeded} {.status.failed}"]),
        "2 "
    );

    // With the Job go its pods, unless they are asked to stay; nothing holds them then.
    cluster.kubectl(&["delete", "job", "indexed", "--timeout=30s"]);
    eventually("the pods go with their Job", || pods(&cluster, "job-name=indexed").is_empty().then_some(()));
    cluster.kubectl(&["create", "job", "left", "--image=test/busybox:1", "--", "sleep", "3600"]);
    eventually("the pod runs", || (pods(&cluster, "job-name=left").len() == 1).then_some(()));
    cluster.kubectl(&["delete", "job", "left", "--cascade=orphan", "--timeout=30s"]);
    let [left] = &pods(&cluster, "job-name=left")[..] else { panic!("the pod stays") };
    eventually("nobody waits to count it", || {
        (cluster.kubectl(&["get", left, "-o", "jsonpath={.metadata.finalizers}{.metadata.ownerReferences}"]).is_empty())
            .then_some(())
    });
    cluster.kubectl(&["delete", left, "--grace-period=1", "--timeout=30s"]);

    // A CronJob whose time is far away; kubectl makes a Job of it by hand.
    cluster.kubectl(&["create", "cronjob", "yearly", "--image=test/busybox:1", "--schedule=@yearly", "--", "true"]);
    cluster.kubectl(&["patch", "cronjob", "yearly", "-p", r#"{"spec":{"timeZone":"Asia/Kathmandu"}}"#]);
    let row = cluster.kubectl(&["get", "cronjob", "yearly", "--no-headers"]);
    assert_eq!(
        row.split_whitespace().take(6).collect::<Vec<_>>(),
        ["yearly", "@yearly", "Asia/Kathmandu", "False", "0", "<none>"],
        "{row}"
    );
    cluster.kubectl(&["create", "job", "now", "--from=cronjob/yearly"]);
    cluster.kubectl(&["wait", "--for=condition=complete", "job/now", "--timeout=60s"]);
    cluster.wait_for(
        "cronjob/yearly",
        ".status.lastSuccessfulTime",
        &cluster.kubectl(&["get", "job", "now", "-o", "jsonpath={.status.completionTime}"]),
    );
    cluster.kubectl(&["delete", "cronjob", "yearly", "--timeout=30s"]);
    eventually("its Jobs go with it", || {
        cluster.kubectl(&["get", "jobs", "-o", "name"]).lines().all(|job| job != "job.batch/now").then_some(())
    });
    cluster.assert_nothing_was_forbidden();
}

const CONTROLLER: &str = "
apiVersion: v1
kind: ReplicationController
metadata: {name: web}
spec:
  replicas: 2
  template:
    metadata: {labels: {app: web}}
    spec: {terminationGracePeriodSeconds: 0, containers: [{name: main, image: 'example/echo:v1'}]}
";

/// Conformance, [sig-apps] ReplicationController: "adopt matching pods on creation", "release no longer matching pods",
/// "get and update a ReplicationController scale", "test the lifecycle of a ReplicationController".
#[test]
fn a_replication_controller_adopts_releases_and_scales() {
    let cluster = Cluster::up();
    cluster.apply("apiVersion: v1\nkind: Pod\nmetadata: {name: orphan, labels: {app: web}}\nspec: {terminationGracePeriodSeconds: 0, containers: [{name: main, image: 'example/echo:v1'}]}\n");
    cluster.apply(CONTROLLER);
    cluster.wait_for("rc/web", ".status.readyReplicas", "2");
    assert_eq!(pods(&cluster, "app=web").len(), 2);
    let owner = |pod: &str| cluster.kubectl(&["get", pod, "-o", "jsonpath={.metadata.ownerReferences[*].kind}"]);
    assert_eq!(owner("pod/orphan"), "ReplicationController");
    cluster.kubectl(&["label", "pod", "orphan", "app=other", "--overwrite"]);
    eventually("the pod is let go", || owner("pod/orphan").is_empty().then_some(()));
    cluster.wait_for("rc/web", ".status.readyReplicas", "2");
    cluster.kubectl(&["scale", "rc", "web", "--replicas=3"]);
    cluster.wait_for("rc/web", ".status.readyReplicas", "3");
    let row = cluster.kubectl(&["get", "rc", "web", "--no-headers"]);
    assert_eq!(row.split_whitespace().take(4).collect::<Vec<_>>(), ["web", "3", "3", "3"], "{row}");
    cluster.kubectl(&["scale", "rc", "web", "--replicas=0"]);
    cluster.wait_for("rc/web", ".status.replicas", "0");
    cluster.kubectl(&["delete", "rc", "web", "--timeout=30s"]);
    eventually("its pods go", || pods(&cluster, "app=web").is_empty().then_some(()));
    assert_eq!(pods(&cluster, "app=other"), ["pod/orphan"]);
    cluster.assert_nothing_was_forbidden();
}
