//! Releases: sets of objects that changed together, recorded, judged, and taken back as a whole.
//!
//! Owns: the revisions of a release (Secrets by content, and the list in its status), its conditions, the releases of
//! ApplySets, and what going back writes. Never changes a member but to go back.
//!
//! Members come to rest, and their content becomes a revision ([`records`]); once all are well it is a healthy one. To go
//! back, the intention is written into the status first; then each look finds the steps that are left ([`steps()`]), in
//! dependency order, so that a crash between two writes is made good by the next look. The record of the last apply goes back
//! with the content ([`content`]).

mod command;
pub mod content;
mod health;
mod judge;
mod membership;
mod order;
mod plan;
mod records;
mod status;
mod steps;
#[cfg(test)]
mod tests;
mod watches;
mod write;

pub use command::{CommandError, Preview, contents_of, follow, preview, request};
pub use plan::{Action, Member, Seen, plan};
pub use records::{Entry, ReadError, Records};
pub use steps::{Live, Step, steps};

use crate::{
    ActError, Context, Informer, Key, Loop, Plan, Queue, Writes,
    catalogue::Catalogue,
    events::Note,
    patch::{json, params},
    rollback,
};
use content::{Content, Id, entries};
use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, ResourceExt,
    api::{DynamicObject, Patch},
    core::{ApiResource, ObjectMeta},
    runtime::watcher,
};
use membership::{Parent, Want};
use parking_lot::Mutex;
use proa_crds::{
    Family, RolloutPolicy, RolloutPolicySpec, annotations,
    policy::{WorkloadKind, rollout_policies},
    release::{Release, release_resource},
};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};
use watches::Watches;

const COMPONENT: &str = "release-controller";

/// The release loop.
pub struct Releases {
    context: Context,
    catalogue: Catalogue,
    releases: Informer<Release>,
    namespaces: Informer<Namespace>,
    policies: Informer<RolloutPolicy>,
    /// ConfigMaps and Secrets that are parents of ApplySets, by kind.
    parents: [(&'static str, Informer<DynamicObject>); 2],
    watches: Watches,
    memory: Mutex<HashMap<Key, Memory>>,
}

/// What is known of a release beside what the server holds. It is made anew after a restart.
#[derive(Default)]
struct Memory {
    /// What its members said last, and since when.
    said: Option<(String, Timestamp)>,
    /// How its members were last, and since when.
    stood: Option<(String, Timestamp)>,
    /// The members of the revision that comes back, by its record.
    target: Option<(String, Arc<Vec<Content>>)>,
    returned: BTreeSet<Id>,
}

impl Releases {
    /// The loop of that context's family.
    pub fn new(context: &Context, catalogue: &Catalogue) -> Self {
        let releases = context.informers.of_resource::<Release>(release_resource());
        // Who asked for a rollback is read from them.
        releases.keep_managed_fields();
        let policies = context.informers.of_resource::<RolloutPolicy>(rollout_policies());
        // Another API server need not know the kind.
        policies.may_be_unknown();
        let parents = [("ConfigMap", "configmaps"), ("Secret", "secrets")].map(|(kind, plural)| {
            let selection = watcher::Config::default().labels(annotations::APPLY_SET_ID);
            let informer = Informer::selected(context.client.clone(), core_resource(kind, plural), selection);
            (kind, informer)
        });
        Releases {
            releases,
            namespaces: context.informers.of(),
            policies,
            parents,
            watches: Watches::new(context.client.clone(), context.shutdown.clone()),
            memory: Mutex::default(),
            catalogue: catalogue.clone(),
            context: context.clone(),
        }
    }

    /// Whether a release, or the wish of an ApplySet's parent for one, is for this process.
    fn is_ours(&self, family: Option<&str>) -> bool {
        family.and_then(|family| family.parse().ok()).unwrap_or(Family::Standard) == self.context.family
    }

    /// The metadata that says what belongs to the ApplySet: of the parent, or of the release where it is the parent.
    fn parent_object(&self, release: &Release) -> Option<(ApiResource, ObjectMeta)> {
        let members = &release.spec.members;
        if members.selector.is_some() || !members.objects.is_empty() {
            return None;
        }
        let Some(wanted) = &members.apply_set else { return Some((release_resource(), release.metadata.clone())) };
        let key = Key::new(release.metadata.namespace.as_deref().unwrap_or_default(), &wanted.name);
        let (_, informer) = self.parents.iter().find(|(kind, _)| *kind == wanted.kind)?;
        Some((informer.resource(), informer.get(&key)?.metadata.clone()))
    }

    fn parent_of(&self, release: &Release) -> Option<Parent> {
        let (_, meta) = self.parent_object(release)?;
        Parent::of(meta.labels.as_ref(), meta.annotations.as_ref())
    }

    /// The parent of an ApplySet that has no release yet, and wants one of this process.
    fn without_release(&self, key: &Key) -> Option<(&'static str, Arc<DynamicObject>)> {
        self.parents.iter().find_map(|(kind, informer)| {
            let parent = informer.get(key)?;
            let wish = parent.annotations().get(annotations::RELEASE_OF_APPLY_SET).map(String::as_str);
            let wanted = wish != Some(annotations::RELEASE_OFF) && self.is_ours(wish);
            (wanted && parent.metadata.deletion_timestamp.is_none()).then_some((*kind, parent))
        })
    }

    fn members(&self, key: &Key, release: &Release, parent: Option<&Parent>, wants: &[Want]) -> Option<Vec<Member>> {
        let mut members: BTreeMap<Id, (Member, Value)> = BTreeMap::new();
        let mut slices: BTreeMap<(String, String), Vec<Value>> = BTreeMap::new();
        for want in wants {
            let informer = self.watches.get(key, want)?;
            for object in informer.list() {
                let of_service = |object: &DynamicObject| object.labels().get(SERVICE_NAME).cloned();
                if membership::shows_endpoints(want)
                    && let Some(service) = of_service(&object)
                {
                    let place = (object.namespace().unwrap_or_default(), service);
                    slices.entry(place).or_default().push(json(object.as_ref()));
                }
                if membership::is_member(release, parent, &want.resource, &object) {
                    let value = json(object.as_ref());
                    let member = member_of(&want.resource, &object, &value);
                    members.insert(member.live.content.id.clone(), (member, value));
                }
            }
        }
        let endpoints = |id: &Id| slices.get(&(id.namespace.clone(), id.name.clone())).into_iter().flatten();
        let wanted = |namespace: String| {
            let beside = members.iter().filter(move |(id, _)| id.namespace == namespace);
            beside.filter_map(|(_, (_, object))| health::wanted_pods(object))
        };
        let judged = members.iter().map(|(id, (member, object))| {
            let mut member = member.clone();
            if id.kind == "Service" && member.health == health::Health::Current {
                member.health = health::service(object, endpoints(id), wanted(id.namespace.clone()));
            }
            member
        });
        Some(judged.collect())
    }

    /// The policy that holds for a release.
    fn policy(&self, release: &Release) -> Option<RolloutPolicySpec> {
        let namespace = release.metadata.namespace.as_deref().unwrap_or_default();
        let held = self.namespaces.get(&Key::new("", namespace));
        let wish = held.as_ref().and_then(|held| held.annotations().get(annotations::ROLLBACK).map(String::as_str));
        let policies = self.policies.in_namespace(namespace);
        rollback::effective(WorkloadKind::Release, &release.metadata, &policies, wish)
    }

    async fn patch_status(&self, key: &Key, patch: &Value, writes: &Writes) -> Result<(), ActError> {
        let written =
            self.releases.api(&key.namespace).patch_status(&key.name, &params(), &Patch::Merge(patch)).await?;
        writes.wrote(&self.releases, &written);
        Ok(())
    }

    fn held(&self, key: &Key) -> Result<Arc<Release>, ActError> {
        self.releases.get(key).ok_or_else(|| ActError::Gone(key.to_string()))
    }

    fn note(&self, release: &Release, note: Note) {
        self.context.recorder.note(COMPONENT, self.releases.dynamic_type(), release, note);
    }

    /// The kind of a member, whether or not it still has any.
    fn resource(&self, id: &Id) -> Result<(ApiResource, bool), ActError> {
        let known = self.catalogue.known();
        let found = known.resources.iter().find(|held| held.api.group == id.group && held.api.kind == id.kind);
        found
            .map(|resource| (resource.api.clone(), resource.namespaced))
            .ok_or_else(|| ActError::Failed(format!("no kind {} in {:?} is served", id.kind, id.group)))
    }

    fn api(&self, id: &Id) -> Result<Api<DynamicObject>, ActError> {
        let (resource, namespaced) = self.resource(id)?;
        Ok(match namespaced && !id.namespace.is_empty() {
            true => Api::namespaced_with(self.context.client.clone(), &id.namespace, &resource),
            false => Api::all_with(self.context.client.clone(), &resource),
        })
    }

    /// Tells the watches of the release that a member was written: nothing is planned until they show it.
    fn wrote(&self, key: &Key, release: &Release, object: &DynamicObject, id: &Id, writes: &Writes) {
        let parent = self.parent_of(release);
        let known = self.catalogue.known();
        for want in membership::wants(release, parent.as_ref(), &known).unwrap_or_default() {
            if want.resource.kind == id.kind
                && want.resource.group == id.group
                && let Some(informer) = self.watches.get(key, &want)
            {
                writes.wrote(&informer, object);
            }
        }
    }
}

fn core_resource(kind: &str, plural: &str) -> ApiResource {
    ApiResource {
        group: String::new(),
        version: "v1".to_owned(),
        api_version: "v1".to_owned(),
        kind: kind.to_owned(),
        plural: plural.to_owned(),
    }
}

/// The label of an EndpointSlice with the name of its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// A member as the server has it.
pub(crate) fn member(resource: &ApiResource, object: &DynamicObject) -> Member {
    member_of(resource, object, &json(object))
}

fn member_of(resource: &ApiResource, object: &DynamicObject, value: &Value) -> Member {
    Member {
        health: health::health(&resource.group, &resource.kind, value),
        judging: health::judging(value),
        authors: authors(value),
        live: Live {
            content: Content::of(&resource.api_version, &resource.kind, value),
            uid: object.metadata.uid.clone().unwrap_or_default(),
            version: object.metadata.resource_version.clone().unwrap_or_default(),
            deleting: object.metadata.deletion_timestamp.is_some(),
            managed_fields: entries(value),
        },
    }
}

/// Who wrote an object, and when last: by user where the API server noted one, else by field manager.
fn authors(object: &Value) -> BTreeMap<String, Timestamp> {
    let text = |entry: &Value, field: &str| entry.get(field).and_then(Value::as_str).map(str::to_owned);
    let mut authors: BTreeMap<String, Timestamp> = entries(object)
        .iter()
        .filter(|entry| content::is_appliers(entry))
        .filter_map(|entry| Some((text(entry, "manager")?, text(entry, "time")?.parse().ok()?)))
        .collect();
    let noted = object.pointer("/metadata/annotations").and_then(|notes| notes.get(annotations::CHANGED_BY)?.as_str());
    if let Some(author) = noted.and_then(crate::inspect::Author::read)
        && let Some(at) = author.time.as_ref().map(|time| time.0)
    {
        authors.remove(&author.manager);
        authors.insert(author.to_string(), at);
    }
    authors
}

/// Since when something is what it is now; `held` remembers what it was last, and since when.
fn since(held: &mut Option<(String, Timestamp)>, is: String, now: Timestamp) -> Timestamp {
    match held {
        Some((was, since)) if *was == is => *since,
        _ => {
            *held = Some((is, now));
            now
        }
    }
}

/// What is seen of a key: a release, or an ApplySet that has none yet.
pub enum Sight {
    /// A release.
    Release(Box<Seen>),
    /// The parent of an ApplySet, without one.
    Parent,
}

/// What is done: about a release, or to have one.
#[derive(Debug)]
pub enum Deed {
    /// About a release.
    Act(Action),
    /// Make the release of an ApplySet.
    Create,
}

impl Loop for Releases {
    type Seen = Sight;
    type Action = Deed;

    fn name(&self) -> &'static str {
        "release"
    }

    fn wire(&self, queue: &Queue) {
        self.watches.wake(queue);
        let (to, watches) = (queue.clone(), self.watches.clone());
        self.releases.on_change(move |change| {
            if change.new.is_none() {
                watches.forget(&change.key);
            }
            to.add(change.key.clone());
        });
        for (kind, informer) in &self.parents {
            let (to, releases, kind) = (queue.clone(), self.releases.clone(), *kind);
            informer.on_change(move |change| {
                to.add(change.key.clone());
                for release in releases.in_namespace(&change.key.namespace) {
                    let of = release.spec.members.apply_set.as_ref();
                    if of.is_some_and(|parent| parent.kind == kind && *parent.name == *change.key.name) {
                        to.add(Key::of(release.as_ref()));
                    }
                }
            });
            informer.start(self.context.shutdown.clone());
        }
        let (to, releases) = (queue.clone(), self.releases.clone());
        self.namespaces.on_change(move |change| {
            let wish = |namespace: &Option<Arc<Namespace>>| {
                namespace.as_ref().and_then(|namespace| namespace.annotations().get(annotations::ROLLBACK).cloned())
            };
            if wish(&change.old) != wish(&change.new) {
                releases.in_namespace(&change.key.name).iter().for_each(|release| to.add(Key::of(release.as_ref())));
            }
        });
        let (to, releases) = (queue.clone(), self.releases.clone());
        self.policies.on_change(move |change| {
            let spec = |policy: &Option<Arc<RolloutPolicy>>| policy.as_ref().map(|policy| policy.spec.clone());
            if spec(&change.old) != spec(&change.new) {
                let all = releases.in_namespace(&change.key.namespace);
                all.iter().for_each(|release| to.add(Key::of(release.as_ref())));
            }
        });
        // A kind that is served now may be one a release waits for.
        let (to, releases) = (queue.clone(), self.releases.clone());
        self.catalogue.on_change(move |change| {
            let Some(item) = change.new.as_ref().or(change.old.as_ref()) else { return };
            if item.resource.api.plural == "customresourcedefinitions" {
                releases.list().iter().for_each(|release| to.add(Key::of(release.as_ref())));
            }
        });
    }

    fn ready(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.releases.synced().await;
            self.namespaces.synced().await;
            self.policies.synced().await;
            for (_, informer) in &self.parents {
                informer.synced().await;
            }
            self.catalogue.synced().await;
        })
    }

    fn see(&self, key: &Key) -> Option<Sight> {
        let Some(release) = self.releases.get(key) else {
            self.memory.lock().remove(key);
            return self.without_release(key).map(|_| Sight::Parent);
        };
        if !self.is_ours(release.spec.family.as_deref()) {
            return None;
        }
        let parent = self.parent_of(&release);
        let wants = membership::wants(&release, parent.as_ref(), &self.catalogue.known());
        let (wants, unknown) = match wants {
            Ok(wants) => (wants, None),
            Err(why) => (Vec::new(), Some(why.to_string())),
        };
        let members = self.members(key, &release, parent.as_ref(), &wants);
        let watching = members.is_some();
        let members = members.unwrap_or_default();
        let now = self.context.clock.now();
        let mut memory = self.memory.lock();
        let memory = memory.entry(key.clone()).or_default();
        let contents: Vec<Content> =
            members.iter().filter(|m| !m.live.deleting).map(|m| m.live.content.clone()).collect();
        let says = records::digest(&contents);
        let stands_since = since(&mut memory.said, says, now);
        let stand = members.iter().map(|member| format!("{} {:?}\n", member.live.content.id, member.health)).collect();
        let progressed = since(&mut memory.stood, stand, now);
        let going = release.status.as_ref().and_then(|status| status.rollback.as_ref());
        if going.is_none() {
            (memory.target, memory.returned) = (None, BTreeSet::new());
        }
        let target = memory.target.as_ref().filter(|(record, _)| going.is_some_and(|going| going.record == *record));
        let cause =
            release.metadata.annotations.as_ref().and_then(|notes| notes.get(annotations::CHANGE_CAUSE).cloned());
        Some(Sight::Release(Box::new(Seen {
            unknown,
            wants,
            watching,
            cause: cause.or(parent.and_then(|parent| parent.cause)),
            members,
            stands_since,
            policy: self.policy(&release),
            progressed,
            unserved: target
                .iter()
                .flat_map(|(_, target)| target.iter())
                .filter(|content| self.resource(&content.id).is_err())
                .map(|content| content.id.clone())
                .collect(),
            target: target.map(|(_, target)| target.clone()),
            returned: memory.returned.clone(),
            release,
        })))
    }

    fn plan(&self, seen: &Sight, now: Timestamp) -> Plan<Deed> {
        match seen {
            Sight::Parent => Plan::act(vec![Deed::Create]),
            Sight::Release(seen) => {
                let plan = plan(seen, now);
                Plan { actions: plan.actions.into_iter().map(Deed::Act).collect(), again: plan.again }
            }
        }
    }

    async fn act(&self, key: &Key, action: Deed, writes: &Writes) -> Result<(), ActError> {
        let Deed::Act(action) = action else { return self.create_release(key, writes).await };
        match action {
            Action::Watch(wants) => {
                self.watches.follow(key, &wants).await;
                Ok(())
            }
            Action::Load { record } => {
                let release = self.held(key)?;
                match Records::of(&self.context.client, &release).contents(&record).await {
                    Ok(contents) => {
                        let mut memory = self.memory.lock();
                        memory.entry(key.clone()).or_default().target = Some((record, Arc::new(contents)));
                        Ok(())
                    }
                    Err(error) => {
                        let error = ActError::from(error);
                        if let ActError::Refused(why) = &error {
                            self.stall(key, &Id::default(), why, writes).await;
                        }
                        Err(error)
                    }
                }
            }
            Action::Record { record, status } => {
                let release = self.held(key)?;
                Records::of(&self.context.client, &release).keep(&release, record.blobs).await?;
                self.patch_status(key, &status, writes).await
            }
            Action::PatchStatus(patch) => self.patch_status(key, &patch, writes).await,
            Action::Patch(patch) => {
                let written =
                    self.releases.api(&key.namespace).patch(&key.name, &params(), &Patch::Merge(&patch)).await?;
                writes.wrote(&self.releases, &written);
                Ok(())
            }
            Action::Grow(members) => self.grow(key, &members).await,
            Action::Step(step) => self.step(key, *step, writes).await,
            Action::Sweep(records) => {
                let release = self.held(key)?;
                Records::of(&self.context.client, &release).sweep(&records).await
            }
            Action::Note(note) => {
                let release = self.held(key)?;
                self.note(&release, note);
                Ok(())
            }
        }
    }
}
