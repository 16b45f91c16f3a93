//! Laws of releases: a world of members, the plan, and a crash wherever one can come.

use super::{
    content::{Content, Id, MANAGER},
    health::{Health, Judging},
    judge::PROBATION,
    order::rank,
    plan::{Action, Member, REST, Seen, plan},
    records::{Blob, Entry, Record},
    steps::{Live, Step, anew, due, steps},
};
use crate::sim::merge;
use jiff::Timestamp;
use proa_crds::{
    RolloutPolicySpec, annotations, conditions,
    release::{Outcome, Release},
};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

mod judging;
mod went_back;

/// A release, its members on a server, and what was kept of its revisions.
#[derive(Clone)]
struct World {
    release: Value,
    objects: BTreeMap<Id, Value>,
    blobs: BTreeMap<String, Blob>,
    revision: u64,
    now: Timestamp,
    changed: Timestamp,
    failing: BTreeMap<Id, Timestamp>,
    /// Members that failed and went back by themselves.
    went_back: BTreeMap<Id, Timestamp>,
    /// Members that are on their way.
    slow: BTreeMap<Id, String>,
    judging: Judging,
    progressed: Timestamp,
    policy: Option<RolloutPolicySpec>,
    /// What a crash forgets.
    target: Option<Arc<Vec<Content>>>,
    returned: BTreeSet<Id>,
    automatic: bool,
    /// Every write to a member, in order.
    written: Vec<String>,
}

fn id(kind: &str, name: &str) -> Id {
    let group = if kind == "Deployment" { "apps" } else { "" };
    Id { group: group.into(), kind: kind.into(), namespace: "ns".into(), name: name.into() }
}

fn api_version(id: &Id) -> String {
    if id.group.is_empty() { "v1".into() } else { format!("{}/v1", id.group) }
}

impl World {
    fn new() -> World {
        let now = "2026-11-21T10:00:00Z".parse().expect("a time");
        let release = json!({"metadata": {"name": "shop", "namespace": "ns", "uid": "r", "resourceVersion": "1", "generation": 1},
            "spec": {"members": {"selector": {"matchLabels": {"app": "shop"}}}, "revisionHistoryLimit": 50}});
        World {
            release,
            objects: BTreeMap::new(),
            blobs: BTreeMap::new(),
            revision: 1,
            now,
            changed: now,
            failing: BTreeMap::new(),
            went_back: BTreeMap::new(),
            slow: BTreeMap::new(),
            judging: Judging::Always,
            progressed: now,
            policy: None,
            target: None,
            returned: BTreeSet::new(),
            automatic: false,
            written: Vec::new(),
        }
    }

    fn next(&mut self) -> String {
        self.revision += 1;
        self.revision.to_string()
    }

    /// Someone applies: these members with these values and no others.
    fn apply(&mut self, members: &[(&str, &str, &str)]) {
        let wanted: BTreeMap<Id, &str> = members.iter().map(|(kind, name, value)| (id(kind, name), *value)).collect();
        self.objects.retain(|id, _| wanted.contains_key(id));
        for (id, value) in wanted {
            let version = self.next();
            let uid =
                self.objects.get(&id).map_or(json!(format!("u{version}")), |held| held["metadata"]["uid"].clone());
            let time = self.now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
            let entry = json!({"manager": "kubectl", "operation": "Apply", "apiVersion": "v1", "fieldsType": "FieldsV1", "time": time,
                "fieldsV1": {"f:spec": {"f:value": {}, format!("f:only-{value}"): {}}}});
            self.objects.insert(
                id.clone(),
                json!({
                    "apiVersion": api_version(&id), "kind": id.kind,
                    "metadata": {"name": id.name, "namespace": "ns", "uid": uid, "labels": {"app": "shop"}, "resourceVersion": version,
                        "annotations": {annotations::LAST_APPLIED: format!("{{{value}}}")}, "managedFields": [entry]},
                    "spec": {"value": value, format!("only-{value}"): 1},
                }),
            );
        }
        (self.changed, self.progressed) = (self.now, self.now);
        self.failing.clear();
    }

    fn live(&self) -> Vec<Live> {
        let live = |(id, value): (&Id, &Value)| Live {
            content: Content::of(&api_version(id), &id.kind, value),
            uid: value["metadata"]["uid"].as_str().unwrap_or_default().into(),
            version: value["metadata"]["resourceVersion"].as_str().unwrap_or_default().into(),
            deleting: false,
            managed_fields: value["metadata"]["managedFields"].as_array().cloned().unwrap_or_default(),
        };
        self.objects.iter().map(live).collect()
    }

    fn seen(&self) -> Seen {
        let members = self
            .live()
            .into_iter()
            .map(|live| Member {
                health: match self.failing.get(&live.content.id) {
                    Some(since) => {
                        Health::Failed { reason: "CrashLoop".into(), message: "boom".into(), since: Some(*since) }
                    }
                    None => match self.went_back.get(&live.content.id) {
                        Some(since) => Health::WentBack {
                            reason: "CrashLoop".into(),
                            message: "boom".into(),
                            since: Some(*since),
                            busy: self.slow.get(&live.content.id).cloned(),
                        },
                        None => self
                            .slow
                            .get(&live.content.id)
                            .map_or(Health::Current, |why| Health::InProgress(why.clone())),
                    },
                },
                judging: self.judging,
                authors: BTreeMap::from([("kubectl".into(), self.now)]),
                live,
            })
            .collect();
        Seen {
            release: Arc::new(serde_json::from_value(self.release.clone()).expect("a release")),
            unknown: None,
            wants: Vec::new(),
            watching: true,
            cause: None,
            members,
            stands_since: self.changed,
            policy: self.policy.clone().or(self.automatic.then(RolloutPolicySpec::default)),
            progressed: self.progressed,
            target: self.target.clone(),
            unserved: BTreeSet::new(),
            returned: self.returned.clone(),
        }
    }

    fn patch_release(&mut self, patch: &Value) {
        let expected = &patch["metadata"]["resourceVersion"];
        assert!(expected.is_null() || *expected == self.release["metadata"]["resourceVersion"], "a conflict");
        let mut patch = patch.clone();
        let version = self.next();
        patch["metadata"] = json!({"resourceVersion": version});
        merge(&mut self.release, &patch);
    }

    /// What the server does about an action.
    fn act(&mut self, action: Action) {
        match action {
            Action::Watch(_) | Action::Note(_) | Action::Grow(_) => {}
            Action::Load { record } => {
                let index: Vec<Entry> = serde_json::from_slice(&self.blobs[&record].bytes).expect("an index");
                let contents = index
                    .iter()
                    .map(|entry| serde_json::from_slice(&self.blobs[&entry.kept].bytes).expect("a content"));
                self.target = Some(Arc::new(contents.collect()));
            }
            Action::Record { record, status } => {
                for blob in record.blobs {
                    self.blobs.insert(blob.digest.clone(), blob);
                }
                self.patch_release(&status);
            }
            Action::PatchStatus(patch) | Action::Patch(patch) => self.patch_release(&patch),
            Action::Sweep(_) => {}
            Action::Step(step) => self.step(*step),
        }
    }

    fn step(&mut self, step: Step) {
        self.written.push(step.to_string());
        self.changed = self.now;
        let version = self.next();
        match step {
            Step::Create(content) => {
                assert!(!self.objects.contains_key(&content.id), "it is there");
                let mut object = anew(&content);
                object["metadata"]["uid"] = json!(format!("u{version}"));
                object["metadata"]["resourceVersion"] = json!(version);
                object["metadata"]["managedFields"] = json!([{"manager": MANAGER, "operation": "Update", "apiVersion": "v1", "fieldsV1": {"f:metadata": {"f:labels": {".": {}, "f:app": {}}}, "f:spec": {}}}]);
                self.objects.insert(content.id, object);
            }
            Step::Change { id, patch } | Step::Return { id, patch } => {
                let object = self.objects.get_mut(&id).expect("it is there");
                assert_eq!(patch["metadata"]["resourceVersion"], object["metadata"]["resourceVersion"], "a conflict");
                let returns = patch["metadata"].get("managedFields").is_some();
                merge(object, &patch);
                object["metadata"]["resourceVersion"] = json!(version);
                if returns {
                    self.returned.insert(id);
                } else if let Some(entries) = object["metadata"]["managedFields"].as_array_mut() {
                    // The writer takes what it changes.
                    for entry in entries.iter_mut() {
                        entry["fieldsV1"] = json!({"f:spec": {"f:something": {}}});
                    }
                    entries.push(json!({"manager": MANAGER, "operation": "Update", "apiVersion": "v1", "fieldsV1": {"f:metadata": {"f:labels": {".": {}, "f:app": {}}}, "f:spec": {}}}));
                }
            }
            Step::Remove { id, uid } => {
                assert_eq!(self.objects.remove(&id).expect("it is there")["metadata"]["uid"], uid);
            }
            Step::Await(_) => panic!("nothing is done about what is awaited"),
        }
    }

    /// A crash: what was only known is known no more.
    fn crash(&mut self) {
        (self.target, self.returned) = (None, BTreeSet::new());
    }

    /// Looks and acts until nothing is left to do; stops, as a crash does, after `most` actions. How many there were.
    fn run(&mut self, most: usize) -> usize {
        let mut acted = 0;
        for _ in 0..200 {
            let plan = plan(&self.seen(), self.now);
            if plan.actions.is_empty() {
                let Some(again) = plan.again else { return acted };
                self.now += again;
                continue;
            }
            for action in plan.actions {
                if acted == most {
                    self.crash();
                    return acted;
                }
                acted += 1;
                self.act(action);
            }
            if self.typed().status.as_ref().is_none_or(|status| status.rollback.is_none()) {
                self.crash();
            }
        }
        panic!("it never ends: {}", self.release);
    }

    fn settle(&mut self) {
        self.run(usize::MAX);
    }

    fn typed(&self) -> Release {
        serde_json::from_value(self.release.clone()).expect("a release")
    }

    fn revisions(&self) -> Vec<(i64, Outcome)> {
        let status = self.typed().status.unwrap_or_default();
        status.revisions.iter().map(|held| (held.revision, held.result)).collect()
    }

    fn condition(&self, type_: &str) -> Option<String> {
        let status = self.typed().status.unwrap_or_default();
        status
            .conditions
            .iter()
            .find(|held| held.type_ == type_ && held.status == "True")
            .map(|held| held.message.clone())
    }

    fn wish(&mut self, to: Option<i64>) {
        let mut wish = json!({});
        if let Some(to) = to {
            wish["revision"] = json!(to);
        }
        self.patch_release(&json!({"spec": {"rollbackTo": wish}}));
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    fn contents(&self) -> Vec<Content> {
        self.live().into_iter().map(|live| live.content).collect()
    }
}

const FIRST: [(&str, &str, &str); 3] =
    [("ConfigMap", "settings", "a"), ("Service", "web", "a"), ("Deployment", "web", "a")];
const SECOND: [(&str, &str, &str); 4] =
    [("ConfigMap", "settings", "b"), ("Deployment", "web", "b"), ("Deployment", "worker", "b"), ("Secret", "key", "b")];

fn two_revisions() -> World {
    let mut world = World::new();
    world.apply(&FIRST);
    world.settle();
    world.pass(Duration::from_secs(10));
    world.apply(&SECOND);
    world.settle();
    assert_eq!(world.revisions(), [(1, Outcome::Healthy), (2, Outcome::Healthy)]);
    world.pass(Duration::from_secs(10));
    world
}

#[test]
fn members_that_came_to_rest_are_one_revision() {
    let mut world = World::new();
    world.settle();
    assert_eq!(world.revisions(), []);
    world.apply(&FIRST[..1]);
    assert!(plan(&world.seen(), world.now).again.is_some_and(|again| again <= REST), "not at rest yet");
    world.apply(&FIRST);
    world.settle();
    assert_eq!(world.revisions(), [(1, Outcome::Healthy)]);
    assert_eq!(world.typed().status.and_then(|status| status.members), Some(3));
    let before = world.release.clone();
    world.apply(&FIRST);
    world.settle();
    assert_eq!(world.release, before, "the same again is no revision");
}

#[test]
fn it_goes_back_as_a_whole_in_order_with_what_appeared_and_what_disappeared() {
    let mut world = two_revisions();
    let first = {
        let mut first = World::new();
        first.apply(&FIRST);
        first.contents()
    };
    world.written.clear();
    world.wish(Some(1));
    world.settle();
    assert_eq!(
        world.written,
        [
            "change configmap/settings",
            "create service/web",
            "change deployment.apps/web",
            "remove deployment.apps/worker",
            "give back the fields of configmap/settings",
            "give back the fields of service/web",
            "give back the fields of deployment.apps/web",
            "remove secret/key",
        ]
    );
    let now: Vec<Value> = world.contents().into_iter().map(|content| content.object).collect();
    let mut then: Vec<Content> = first;
    then.sort_by(|a, b| a.id.cmp(&b.id));
    assert_eq!(now, then.iter().map(|content| content.object.clone()).collect::<Vec<_>>());
    for (is, was) in world.contents().iter().zip(&then) {
        assert_eq!(is.applied.configuration, was.applied.configuration, "client-side apply remembers what it did then");
        let fields = |content: &Content| content.applied.managed_fields[0]["fieldsV1"].clone();
        assert_eq!(fields(is), fields(was), "and server-side apply owns what it did");
    }
    assert_eq!(world.revisions(), [(1, Outcome::Healthy), (2, Outcome::Healthy), (3, Outcome::Healthy)]);
    let last = world.typed().status.and_then(|status| status.revisions.last().cloned()).expect("a revision");
    assert_eq!(last.rolled_back_to, Some(1));
    assert!(world.typed().spec.rollback_to.is_none(), "the wish is granted");
    world.wish(Some(2));
    world.settle();
    assert_eq!(world.revisions().len(), 4, "an undo of an undo");
    assert_eq!(world.contents().len(), SECOND.len());
}

#[test]
fn a_crash_between_any_two_writes_is_made_good() {
    let mut whole = two_revisions();
    whole.wish(Some(1));
    let writes = whole.run(usize::MAX);
    assert!(writes > 10, "there are many places to crash at");
    for at in 0..writes {
        let mut world = two_revisions();
        world.wish(Some(1));
        world.run(at);
        world.settle();
        assert_eq!(world.contents(), whole.contents(), "crashed after {at} writes");
        assert_eq!(world.revisions(), whole.revisions(), "crashed after {at} writes");
    }
}

#[test]
fn a_member_that_fails_takes_the_release_back_and_the_bad_revision_stays_known() {
    let mut world = two_revisions();
    world.automatic = true;
    world.apply(&[("ConfigMap", "settings", "c"), ("Deployment", "web", "bad")]);
    world.run(usize::MAX);
    assert_eq!(world.revisions().last(), Some(&(3, Outcome::Healthy)));
    world.failing.insert(id("Deployment", "web"), world.now);
    world.settle();
    assert_eq!(world.revisions()[2..], [(3, Outcome::Failed), (4, Outcome::Healthy)]);
    let said = world.condition(conditions::ROLLED_BACK).expect("it says so");
    assert_eq!(
        said,
        "revision 3 failed (CrashLoop: deployment.apps/web: boom); went back to revision 2, which is now revision 4"
    );
    assert_eq!(world.contents().len(), SECOND.len());

    // The same again: nothing new is recorded, and it goes at once.
    world.pass(Duration::from_secs(10));
    world.apply(&[("ConfigMap", "settings", "c"), ("Deployment", "web", "bad")]);
    world.settle();
    assert_eq!(world.revisions().len(), 4);
    assert!(
        world.condition(conditions::ROLLOUT_REFUSED).is_some_and(|said| said.contains("revision 3 is known to fail"))
    );
    assert_eq!(world.contents().len(), SECOND.len());

    // Somebody says so: it is tried once more, and judged anew.
    world.pass(Duration::from_secs(10));
    merge(&mut world.release, &json!({"metadata": {"annotations": {annotations::RETRY: "1"}}}));
    world.settle();
    assert_eq!(world.revisions().last(), Some(&(5, Outcome::Healthy)));
    assert_eq!(world.contents().len(), 2);
    world.pass(Duration::from_secs(10));
    world.failing.insert(id("Deployment", "web"), world.now);
    world.settle();
    world.failing.clear();
    world.settle();
    assert_eq!(world.revisions()[4..], [(5, Outcome::Failed), (6, Outcome::Healthy)], "a wish is good for one try");
}

#[test]
fn a_member_that_went_back_by_itself_before_the_rest_came_to_rest_takes_the_release_back() {
    let mut world = two_revisions();
    world.automatic = true;
    // The Deployment's own rollback was faster than the two seconds: what is seen is a mixture, and a condition.
    let mixed: Vec<(&str, &str, &str)> = SECOND
        .iter()
        .map(|(kind, name, value)| (*kind, *name, if *kind == "ConfigMap" { "c" } else { *value }))
        .collect();
    world.apply(&mixed);
    let at = world.now;
    world.failing.insert(id("Deployment", "web"), at);
    for _ in 0..5 {
        world.settle();
        world.failing.insert(id("Deployment", "web"), at);
        world.pass(Duration::from_secs(1));
    }
    assert_eq!(world.revisions()[2..], [(3, Outcome::Failed), (4, Outcome::Healthy)]);
    assert!(world.condition(conditions::ROLLED_BACK).is_some_and(|said| said.contains("went back to revision 2")));
    let settings =
        world.contents().into_iter().find(|content| content.id == id("ConfigMap", "settings")).expect("it is there");
    assert_eq!(settings.object["spec"]["value"], "b");
}

#[test]
fn without_the_policy_a_failure_is_only_said() {
    let mut world = two_revisions();
    world.failing.insert(id("Deployment", "web"), world.now);
    world.settle();
    assert_eq!(world.revisions().last(), Some(&(2, Outcome::Failed)));
    assert_eq!(world.condition(conditions::STALLED).as_deref(), Some("CrashLoop: deployment.apps/web: boom"));
    world.failing.clear();
    world.settle();
    assert_eq!(world.revisions().last(), Some(&(2, Outcome::Healthy)), "it came good");
}

#[test]
fn a_failure_of_the_past_is_none_of_the_revision_that_came_back() {
    let mut world = two_revisions();
    let before = world.now - Duration::from_secs(3600);
    world.failing.insert(id("Deployment", "web"), before);
    world.settle();
    assert_eq!(world.revisions().last(), Some(&(2, Outcome::Healthy)));
    world.failing.clear();
    world.pass(PROBATION);
    world.failing.insert(id("Deployment", "web"), world.now);
    world.settle();
    assert_eq!(world.revisions().last(), Some(&(2, Outcome::Healthy)), "what has proven itself stays");
}

#[test]
fn two_failures_in_a_row_do_not_flap() {
    let mut world = two_revisions();
    world.automatic = true;
    world.apply(&[("Deployment", "web", "bad")]);
    world.settle();
    // The failure of that moment stays on the member, as `RolledBack` stays on a Deployment.
    let at = world.now;
    world.failing.insert(id("Deployment", "web"), at);
    for _ in 0..5 {
        world.settle();
        world.failing.insert(id("Deployment", "web"), at);
        world.pass(Duration::from_secs(1));
    }
    assert_eq!(world.revisions().len(), 4, "one way there, one way back");
}

#[test]
fn a_paused_release_waits_for_its_applier() {
    let mut world = two_revisions();
    world.automatic = true;
    world.release["spec"]["paused"] = json!(true);
    world.apply(&FIRST);
    world.pass(Duration::from_secs(60));
    world.settle();
    assert_eq!(world.revisions().len(), 2);
    world.release["spec"]["paused"] = json!(false);
    world.settle();
    assert_eq!(world.revisions().len(), 3);
}

#[test]
fn a_wish_for_a_revision_that_is_not_there_is_refused_by_name() {
    let mut world = two_revisions();
    world.wish(Some(7));
    let said = plan(&world.seen(), world.now).actions.into_iter().find_map(|action| match action {
        Action::Note(note) => Some(note.message),
        _ => None,
    });
    assert_eq!(said.as_deref(), Some("there is no revision 7; its history holds [1, 2]"));
    world.settle();
    assert!(world.typed().spec.rollback_to.is_none());
    assert_eq!(world.revisions().len(), 2);
    world.pass(Duration::from_secs(60));
    world.settle();
    assert_eq!(world.condition(conditions::STALLED), said, "long after the wish is cleared");
    world.wish(None);
    world.settle();
    assert_eq!(world.condition(conditions::STALLED), None, "the next wish is granted");
    assert_eq!(world.typed().status.and_then(|status| status.revisions.last()?.rolled_back_to), Some(1));
}

#[test]
fn what_changed_a_moment_ago_is_recorded_before_it_is_gone_back_from() {
    let mut world = two_revisions();
    world.apply(&[("ConfigMap", "settings", "precious")]);
    world.wish(Some(1));
    world.settle();
    assert_eq!(world.revisions().len(), 4);
    world.wish(Some(3));
    world.settle();
    assert_eq!(world.contents()[0].object["spec"]["value"], "precious");
}

#[test]
fn fifty_revisions_are_kept_and_more_are_not() {
    let mut world = World::new();
    for n in 1..=60 {
        world.apply(&[("ConfigMap", "settings", &format!("v{n}")), ("Service", "web", "same")]);
        world.settle();
        world.pass(Duration::from_secs(5));
    }
    let revisions = world.revisions();
    assert_eq!((revisions.len(), revisions[0].0, revisions[50].0), (51, 10, 60));
    let services = world.blobs.values().filter(|blob| String::from_utf8_lossy(&blob.bytes).contains("same")).count();
    assert_eq!(services, 60, "what was applied anew remembers its own apply");
    world.wish(Some(10));
    world.settle();
    let settings =
        world.contents().into_iter().find(|content| content.id == id("ConfigMap", "settings")).expect("it is there");
    assert_eq!(settings.object["spec"]["value"], "v10");
}

fn members() -> impl Strategy<Value = Vec<(&'static str, &'static str, &'static str)>> {
    let one = (
        prop_oneof![
            Just("ConfigMap"),
            Just("Secret"),
            Just("Service"),
            Just("Deployment"),
            Just("PersistentVolumeClaim")
        ],
        prop_oneof![Just("a"), Just("b")],
        prop_oneof![Just("x"), Just("y"), Just("z")],
    );
    proptest::collection::vec(one, 0..7)
}

proptest! {
    #[test]
    fn from_any_members_to_any_others_in_finitely_many_steps_and_in_order(from in members(), to in members()) {
        let mut world = World::new();
        world.apply(&to);
        let target = world.contents();
        world.apply(&from);
        let mut rounds = 0;
        loop {
            let left = steps(&target, &world.live(), &world.returned);
            let ranks: Vec<usize> = left.iter().filter(|step| matches!(step, Step::Remove { .. })).map(|step| rank(step.id())).collect();
            prop_assert!(ranks.is_sorted_by(|a, b| a >= b), "what others need goes last");
            let ranks: Vec<usize> = left.iter().filter(|step| !matches!(step, Step::Remove { .. })).map(|step| rank(step.id())).collect();
            prop_assert!(ranks.is_sorted(), "what others need comes first");
            let now = due(left);
            if now.is_empty() {
                break;
            }
            rounds += 1;
            prop_assert!(rounds < 20);
            now.into_iter().for_each(|step| world.step(step));
        }
        let objects = |contents: &[Content]| contents.iter().map(|content| content.object.clone()).collect::<Vec<_>>();
        prop_assert_eq!(objects(&world.contents()), objects(&target));
    }

    #[test]
    fn a_record_says_what_its_members_do(a in members(), b in members()) {
        let contents = |members: &[_]| {
            let mut world = World::new();
            world.apply(members);
            world.contents()
        };
        let (a, b) = (contents(&a), contents(&b));
        let same = a.iter().map(|content| &content.object).eq(b.iter().map(|content| &content.object));
        prop_assert_eq!(Record::of(&a).expect("small").digest == Record::of(&b).expect("small").digest, same);
    }
}
