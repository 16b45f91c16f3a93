use super::*;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

fn now() -> Timestamp {
    "2026-11-21T10:00:00Z".parse().expect("a time")
}

fn ago(seconds: i64) -> Time {
    Time(now() - jiff::SignedDuration::from_secs(seconds))
}

fn pod(name: &str, state: Value, restarts: i32, age: i64) -> Pod {
    let pod = json!({
        "metadata": {"name": name, "creationTimestamp": ago(age)},
        "spec": {"containers": [], "nodeName": "n"},
        "status": {"containerStatuses": [{
            "name": "c", "image": "i:v2", "imageID": "", "ready": false, "restartCount": restarts, "state": state,
            "lastState": {"terminated": {"exitCode": 1, "reason": "Error"}},
        }]},
    });
    serde_json::from_value(pod).expect("a pod")
}

fn ready(name: &str) -> Pod {
    with_ready(name, "True", 60)
}

fn with_ready(name: &str, status: &str, since: i64) -> Pod {
    let condition = json!({"type": "Ready", "status": status, "lastTransitionTime": ago(since)});
    serde_json::from_value(json!({
        "metadata": {"name": name, "creationTimestamp": ago(600)}, "spec": {"containers": [], "nodeName": "n"},
        "status": {"conditions": [condition]},
    }))
    .expect("a pod")
}

fn waiting(reason: &str, message: &str) -> Value {
    json!({"waiting": {"reason": reason, "message": message}})
}

fn running() -> Value {
    json!({"running": {}})
}

/// A revision before it is judged; the parts a test is about are set in it.
#[derive(Default)]
struct Told {
    policy: RolloutPolicySpec,
    pods: Vec<Pod>,
    earlier: Vec<Pod>,
    complete: bool,
    missing: Option<String>,
    timed_out: Option<String>,
    checks: BTreeMap<String, Standing>,
    around: Surroundings,
}

impl Told {
    fn judge(&self) -> Verdict {
        let (pods, earlier): (Vec<&Pod>, Vec<&Pod>) = (self.pods.iter().collect(), self.earlier.iter().collect());
        Case {
            policy: &self.policy,
            pods: &pods,
            earlier: &earlier,
            complete: self.complete,
            missing: self.missing.clone(),
            timed_out: self.timed_out.clone(),
            checks: &self.checks,
            around: &self.around,
            now: now(),
        }
        .judge()
    }

    /// Why it failed, or why its failing is not its fault; the empty string while nothing is known.
    fn reason(&self) -> String {
        match self.judge() {
            Verdict::Failed(failure) => failure.reason,
            Verdict::Unwell { reason, .. } => reason.to_owned(),
            _ => String::new(),
        }
    }
}

fn of(pods: impl IntoIterator<Item = Pod>) -> Told {
    Told { pods: pods.into_iter().collect(), ..Told::default() }
}

fn spec(value: Value) -> RolloutPolicySpec {
    serde_json::from_value(value).expect("a policy")
}

#[test]
fn an_image_that_does_not_exist_fails_the_revision_and_a_registry_that_does_not_answer_does_not() {
    let bad = |reason, message| of([pod("ok", running(), 0, 60), pod("p", waiting(reason, message), 0, 1)]).reason();
    assert_eq!(bad("ErrImagePull", "manifest unknown"), "ImageNotFound");
    assert_eq!(bad("ImagePullBackOff", "Back-off pulling image \"x\""), "ImageNotFound");
    assert_eq!(bad("InvalidImageName", ""), "ImageNotFound");
    assert_eq!(bad("ErrImageNeverPull", ""), "ImageNotFound");
    assert_eq!(bad("ErrImagePull", "r.example/x:v2: cannot reach the registry: host not found"), "");
    assert_eq!(bad("ErrImagePull", "connection refused"), "");
    assert_eq!(bad("ImagePullBackOff", "i/o timeout"), "");
}

#[test]
fn what_an_image_is_called_says_nothing_about_why_it_cannot_be_had() {
    let pull = |image: &str, message: &str| {
        let mut pod = pod("p", waiting("ErrImagePull", message), 0, 1);
        let statuses = pod.status.as_mut().and_then(|status| status.container_statuses.as_mut());
        statuses.expect("one")[0].image = image.to_owned();
        of([pod]).reason()
    };
    let gone = |image: &str, message: &str| assert_eq!(pull(image, message), "ImageNotFound", "{message}");
    gone("example/dns-resolver:refused", "docker.io/example/dns-resolver:refused: not found: manifest unknown");
    gone("r.example:5000/a/resolve@sha256:0", "http://r.example:5000/v2/a/resolve/manifests/sha256:0: not found");
    gone("dns.example/web:v1", "dns.example/web:v1: pull access denied, the repository does not exist");
    gone("dns:v2", "failed to pull \"dns:v2\": not found");
    gone("dns", "image \"dns\" not found");
    let waits = |image: &str, message: &str| assert_eq!(pull(image, message), "", "{message}");
    waits("example/not-found:denied", "docker.io/example/not-found:denied: cannot reach the registry: timeout");
    waits("dns:v2", "docker.io/library/dns:v2: cannot reach the registry: dns error: host not found");
    waits("dns", "dns error: host not found");
}

#[test]
fn a_configuration_error_fails_the_revision_after_a_moment() {
    let missing = |age| of([pod("p", waiting("CreateContainerConfigError", "configmap \"x\" not found"), 0, age)]);
    assert_eq!(missing(2).judge(), Verdict::Wait(Duration::from_secs(3)));
    assert_eq!(missing(5).reason(), "ConfigurationError");
    let patient =
        |age| Told { policy: spec(json!({"failure": {"configuration": {"afterSeconds": 60}}})), ..missing(age) };
    assert_eq!(patient(5).judge(), Verdict::Wait(Duration::from_secs(55)));
    let blind = Told { policy: spec(json!({"failure": {"configuration": {"ignore": true}}})), ..missing(5) };
    assert_eq!(blind.judge(), Verdict::Fine);
}

#[test]
fn a_volume_whose_source_is_missing_is_a_configuration_error_too() {
    let creating = |age| Told {
        missing: Some("configmap \"x\" not found".into()),
        ..of([pod("p", waiting("ContainerCreating", ""), 0, age)])
    };
    assert_eq!(creating(1).judge(), Verdict::Wait(Duration::from_secs(4)));
    assert_eq!(creating(5).reason(), "ConfigurationError");
}

#[test]
fn every_new_pod_must_have_crashed_and_all_of_them_together_often_enough() {
    let looping = |name, restarts| pod(name, waiting("CrashLoopBackOff", ""), restarts, 60);
    let ended = |name| pod(name, json!({"terminated": {"exitCode": 3}}), 0, 60);
    assert_eq!(of([looping("a", 1), looping("b", 3)]).reason(), "CrashLoop");
    assert_eq!(of([looping("a", 1)]).reason(), "CrashLoop", "one pod, twice");
    assert_eq!(of([ended("a"), ended("b")]).reason(), "CrashLoop", "two pods, once each");
    assert_eq!(of([ended("a")]).reason(), "", "one crash is not a loop");
    assert_eq!(of([looping("a", 0)]).reason(), "", "one crash is not a loop");
    assert_eq!(of([looping("a", 5), pod("b", running(), 0, 60)]).reason(), "", "another pod may do better");
    assert_eq!(of([looping("a", 5), ready("b")]).reason(), "", "another pod does better");
    assert_eq!(of([looping("a", 1), pod("b", running(), 2, 60)]).reason(), "CrashLoop", "between two crashes");
    assert_eq!(of([]).reason(), "");
    let sure = |pods: [Pod; 1]| Told { policy: spec(json!({"failure": {"crashLoop": {"crashes": 4}}})), ..of(pods) };
    assert_eq!(sure([looping("a", 2)]).reason(), "");
    assert_eq!(sure([looping("a", 3)]).reason(), "CrashLoop");
    let blind = Told { policy: spec(json!({"failure": {"crashLoop": {"ignore": true}}})), ..of([looping("a", 9)]) };
    assert_eq!(blind.reason(), "");
}

#[test]
fn the_evidence_names_the_pod_the_container_and_what_it_ended_with() {
    let judged =
        of([pod("a", json!({"terminated": {"exitCode": 137, "reason": "OOMKilled", "message": "last words"}}), 1, 9)]);
    let Verdict::Failed(failure) = judged.judge() else { panic!("it failed") };
    assert_eq!(
        (failure.pod.as_deref(), failure.container.as_deref(), failure.exit_code),
        (Some("a"), Some("c"), Some(137))
    );
    assert_eq!(failure.log, "last words");
    assert_eq!(
        failure.message,
        "container \"c\" with image \"i:v2\" crashed 2 times, the last time with exit code 137 (OOMKilled)"
    );
}

#[test]
fn a_complete_revision_fails_by_crashing_or_losing_readiness_and_by_no_image() {
    let complete = |pods: Vec<Pod>| Told { complete: true, ..of(pods) };
    let looping = || pod("a", waiting("CrashLoopBackOff", ""), 1, 60);
    assert_eq!(complete(vec![looping()]).reason(), "CrashLoop");
    assert_eq!(complete(vec![pod("b", waiting("ErrImagePull", "not found"), 0, 1)]).reason(), "");
    assert_eq!(complete(vec![]).reason(), "");
    assert_eq!(complete(vec![with_ready("a", "False", 15)]).reason(), "ReadinessLost");
    assert_eq!(complete(vec![with_ready("a", "False", 12)]).judge(), Verdict::Wait(Duration::from_secs(3)));
    assert_eq!(complete(vec![with_ready("a", "False", 15), ready("b")]).judge(), Verdict::Fine);
    assert_eq!(of([with_ready("a", "False", 99)]).judge(), Verdict::Fine, "before that the deadline counts");
    let made_anew = pod("a", waiting("ContainerCreating", ""), 0, 1);
    assert_eq!(complete(vec![made_anew]).judge(), Verdict::Wait(Duration::from_secs(14)));
}

#[test]
fn the_deadline_fails_it_with_what_holds_up_a_pod() {
    let timed = |pods: Vec<Pod>| Told { timed_out: Some("ReplicaSet \"web-2\" has timed out.".into()), ..of(pods) };
    let Verdict::Failed(failure) = timed(vec![pod("p", running(), 0, 700)]).judge() else { panic!("it failed") };
    assert_eq!(failure.reason, "ProgressDeadlineExceeded");
    assert!(failure.pod.as_deref() == Some("p") && failure.message.contains("i:v2"), "{failure:?}");
    let patient = Told { policy: spec(json!({"failure": {"progressDeadline": {"ignore": true}}})), ..timed(vec![]) };
    assert_eq!(patient.judge(), Verdict::Fine);
}

#[test]
fn a_check_fails_the_revision_after_as_many_answers_as_it_says() {
    let policy = spec(json!({"checks": [{"name": "home", "http": {"port": 80}, "failureThreshold": 2}]}));
    let standing = |failures| Standing { failures, said: "503".into(), ..Standing::default() };
    let told = |name: &str, failures| Told {
        policy: policy.clone(),
        checks: [(name.to_owned(), standing(failures))].into(),
        ..of([ready("a")])
    };
    assert_eq!(told("home", 1).judge(), Verdict::Fine);
    assert_eq!(told("home", 2).reason(), "CheckFailed");
    assert_eq!(told("taken out of the policy", 2).judge(), Verdict::Fine);
}

#[test]
fn lost_nodes_are_not_blamed_on_the_revision() {
    let around = || Surroundings { unwell_nodes: ["n".to_owned()].into(), ..Surroundings::default() };
    let lost = |told: Told| Told { around: around(), ..told };
    let looping = || pod("a", waiting("CrashLoopBackOff", ""), 5, 60);
    assert_eq!(lost(of([looping()])).judge(), Verdict::Fine, "what was heard of it last says nothing of today");
    let late = |pods: Vec<Pod>| Told { timed_out: Some("late".into()), ..of(pods) };
    assert_eq!(lost(late(vec![pod("a", running(), 0, 700)])).reason(), "NodesUnwell");
    assert_eq!(lost(Told { complete: true, ..of([with_ready("a", "False", 99)]) }).reason(), "NodesUnwell");
    let mut unbound = pod("a", Value::Null, 0, 700);
    unbound.spec.node_name = None;
    let missing = Surroundings { missing_node: Some("m".into()), ..Surroundings::default() };
    assert_eq!(Told { around: missing, ..late(vec![unbound.clone()]) }.reason(), "NodesUnwell");
    assert_eq!(late(vec![unbound]).reason(), "ProgressDeadlineExceeded", "no node is missing: it does not fit");
}

#[test]
fn a_registry_nobody_reaches_is_not_blamed_on_the_revision() {
    let pulling = || {
        let mut pod = pod("a", waiting("ErrImagePull", "r.example/x:v2: cannot reach the registry"), 0, 700);
        let statuses = pod.status.as_mut().and_then(|status| status.container_statuses.as_mut());
        statuses.expect("one")[0].image = "r.example/x:v2".to_owned();
        pod
    };
    let late = |others: &[(&str, &str)]| {
        let unreachable = others.iter().map(|(registry, pod)| ((*registry).to_owned(), (*pod).to_owned())).collect();
        let around = Surroundings { unreachable, ..Surroundings::default() };
        Told { timed_out: Some("late".into()), around, ..of([pulling()]) }.reason()
    };
    assert_eq!(late(&[]), "ProgressDeadlineExceeded", "nobody else needs it: it may be misspelt");
    assert_eq!(late(&[("other.example", "b")]), "ProgressDeadlineExceeded");
    assert_eq!(late(&[("r.example", "b")]), "RegistryUnreachable");
}

#[test]
fn when_the_earlier_revision_fails_as_well_going_back_would_mend_nothing() {
    let looping = |name| pod(name, waiting("CrashLoopBackOff", ""), 1, 60);
    let both = |earlier: Vec<Pod>| Told { earlier, ..of([looping("new")]) };
    assert_eq!(both(vec![looping("old")]).reason(), "EarlierRevisionFails");
    assert_eq!(both(vec![with_ready("old", "False", 60)]).reason(), "EarlierRevisionFails");
    assert_eq!(both(vec![looping("old"), ready("old-2")]).reason(), "CrashLoop", "some of it does well");
    assert_eq!(both(vec![with_ready("old", "False", 1)]).reason(), "CrashLoop", "it may just be starting");
    assert_eq!(both(vec![]).reason(), "CrashLoop");
    let image = Told { earlier: vec![looping("old")], ..of([pod("p", waiting("InvalidImageName", ""), 0, 1)]) };
    assert_eq!(image.reason(), "ImageNotFound", "what cannot start at all is nobody else's fault");
}
