//! ResourceQuota: what a namespace uses, counted.
//!
//! Owns: `status` of every ResourceQuota: the bounds that are enforced, and what is used of them when nobody charged it
//! (before the quota came) or gave it back (what has gone, what has ended). New objects are charged by the API server, in
//! the commit that stores them. Never refuses anything.
//!
//! A count is written only over the state of the quota it began with. Whatever comes in meanwhile is charged to the
//! quota, which is another state then: used is never less than what is there.

mod plan;

pub use plan::{Content, Counted, PodSeen, RESYNC, Recount, Seen, plan};

use crate::{
    ActError, Clock, Context, Informer, Key, Loop, Plan, Queue, Writes,
    catalogue::{Catalogue, Known, Resource},
    patch::{json, merge_diff, params},
    pods,
};
use futures::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::ResourceQuota;
use kube::api::{DynamicObject, ListParams, Patch};
use parking_lot::Mutex;
use proa_apimachinery::{
    Object,
    quota::{Count, Subject, concerns, to_json},
};
use proa_crds::Pod;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

/// What comes in was charged when it did: to make sure of it can wait until more has come.
const SETTLE: Duration = Duration::from_secs(1);
/// A count of what discovery got to see of the kinds, and not of all, is good for so long.
const INCOMPLETE: Duration = Duration::from_secs(10);
/// Objects are read in pages of this many.
const PAGE: u32 = 500;

/// The quota loop.
pub struct ResourceQuotas {
    quotas: Informer<ResourceQuota>,
    pods: Informer<Pod>,
    catalogue: Catalogue,
    clock: Clock,
    counted: Mutex<HashMap<Key, Counted>>,
}

fn subject(resource: &Resource) -> Subject<'_> {
    Subject { group: &resource.api.group, plural: &resource.api.plural }
}

/// Of these what is used depends on more than that they are there.
fn is_weighed(resource: &Resource) -> bool {
    resource.api.group.is_empty()
        && matches!(resource.api.plural.as_str(), "pods" | "services" | "persistentvolumeclaims")
}

fn is_pods(resource: &Resource) -> bool {
    resource.api.group.is_empty() && resource.api.plural == "pods"
}

impl ResourceQuotas {
    /// The loop of that context over that catalogue.
    pub fn new(context: &Context, catalogue: &Catalogue) -> Self {
        ResourceQuotas {
            quotas: context.informers.of(),
            pods: context.informers.of_resource(context.family.pod()),
            catalogue: catalogue.clone(),
            clock: context.clock.clone(),
            counted: Mutex::default(),
        }
    }

    /// Counts what a namespace holds of a resource.
    async fn count(&self, resource: &Resource, namespace: &str, count: &mut Count<'_>) -> Result<(), ActError> {
        let api = self.catalogue.api(resource, namespace);
        let mut page = ListParams::default().limit(PAGE);
        loop {
            let next = if is_weighed(resource) {
                let listed = api.list(&page).await?;
                listed.items.iter().for_each(|item: &DynamicObject| {
                    count.add(subject(resource), &Object::from_value(json(item)).unwrap_or_default());
                });
                listed.metadata.continue_
            } else {
                let listed = api.list_metadata(&page).await?;
                listed.items.iter().for_each(|_| count.add(subject(resource), &Object::default()));
                listed.metadata.continue_
            };
            match next.filter(|next| !next.is_empty()) {
                Some(next) => page = page.continue_token(&next),
                None => return Ok(()),
            }
        }
    }

    async fn recount(&self, key: &Key, content: Content, writes: &Writes) -> Result<(), ActError> {
        let now = self.clock.now();
        let api = self.quotas.api(&key.namespace);
        let quota = api.get(&key.name).await?;
        let object = Object::from_value(json(&quota)).unwrap_or_default();
        let hard = plan::hard(&quota);
        let mut count = Count::new(&object, hard.keys().map(String::as_str).collect(), now);
        let known = self.catalogue.known();
        for resource in known.resources.iter().filter(|resource| resource.namespaced && resource.can("list")) {
            if count.begin(subject(resource)) {
                self.count(resource, &key.namespace, &mut count).await?;
            }
        }
        let mut used = to_json(&count.used());
        for name in hard.keys().filter(|name| name.starts_with("count/")) {
            if let Some(all) = used.as_object_mut().filter(|all| !all.contains_key(name)) {
                all.extend(
                    uncounted(&known, object.get(&["status", "used", name.as_str()])).map(|used| (name.clone(), used)),
                );
            }
        }
        let before = object.get(&["status"]).cloned().unwrap_or_else(|| json!({}));
        let mut told = quota.status.and_then(|status| status.used);
        if let Some(status) = merge_diff(&before, &json!({"hard": hard, "used": used})) {
            let patch = json!({"metadata": {"resourceVersion": quota.metadata.resource_version}, "status": status});
            let written = api.patch_status(&key.name, &params(), &Patch::Merge(&patch)).await?;
            writes.wrote(&self.quotas, &written);
            told = written.status.and_then(|status| status.used);
        }
        // Bounds that were not enforced yet charged nothing to what came while it was counted: once they are, it is counted
        // again.
        if before.get("hard") == Some(&json(&hard)) {
            // What could not be counted is, as soon as it may be: discovery tries again by then.
            let at = if known.failures.is_empty() { now } else { now - RESYNC + INCOMPLETE };
            let counted = Counted { uid: quota.metadata.uid, content, used: told, at };
            self.counted.lock().insert(key.clone(), counted);
        }
        Ok(())
    }
}

/// What is said to be used of a kind that could not be counted. What is not served has no objects, and the first one will be
/// charged. Where discovery did not get to see everything it may be served all the same: what was said of it stands.
fn uncounted(known: &Known, told: Option<&Value>) -> Option<Value> {
    if known.failures.is_empty() { Some(json!("0")) } else { told.cloned() }
}

/// The quotas a change of that resource matters to.
fn concerned<'a>(
    quotas: &'a Informer<ResourceQuota>,
    namespace: &str,
    resource: Subject<'a>,
) -> impl Iterator<Item = Key> + 'a {
    let quotas = quotas.in_namespace(namespace).into_iter();
    quotas.filter(move |quota| plan::hard(quota).keys().any(|name| concerns(name, resource))).map(|q| Key::of(&*q))
}

impl Loop for ResourceQuotas {
    type Seen = Seen;
    type Action = Recount;

    fn name(&self) -> &'static str {
        "resourcequota"
    }

    fn wire(&self, queue: &Queue) {
        let to = queue.clone();
        self.quotas.on_change(move |change| {
            // A charge says nothing new.
            let only_charged = matches!((&change.old, &change.new), (Some(old), Some(new))
                if old.spec == new.spec && old.metadata.uid == new.metadata.uid
                    && old.status.as_ref().map(|status| &status.hard) == new.status.as_ref().map(|status| &status.hard));
            if !only_charged {
                to.add(change.key.clone());
            }
        });
        let (to, quotas) = (queue.clone(), self.quotas.clone());
        self.catalogue.on_change(move |change| {
            let Some(item) = change.new.as_ref().or(change.old.as_ref()) else { return };
            if quotas.is_empty() || item.key.namespace.is_empty() {
                return;
            }
            let resource = &*item.resource;
            match (&change.old, &change.new) {
                (Some(_), Some(_)) if !is_weighed(resource) || is_pods(resource) => {}
                (None, Some(_)) => {
                    concerned(&quotas, &item.key.namespace, subject(resource)).for_each(|key| to.add_after(key, SETTLE))
                }
                _ => concerned(&quotas, &item.key.namespace, subject(resource)).for_each(|key| to.add(key)),
            }
        });
        let (to, quotas) = (queue.clone(), self.quotas.clone());
        self.pods.on_change(move |change| {
            let (Some(old), Some(new)) = (&change.old, &change.new) else { return };
            let going = |pod: &Pod| pod.metadata.deletion_timestamp.is_some();
            if pods::is_over(old) != pods::is_over(new) || going(old) != going(new) {
                let pods = Subject { group: "", plural: "pods" };
                concerned(&quotas, &change.key.namespace, pods).for_each(|key| to.add(key));
            }
        });
    }

    fn ready(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            tokio::join!(self.quotas.synced(), self.pods.synced(), self.catalogue.synced());
        })
    }

    fn see(&self, key: &Key) -> Option<Seen> {
        let Some(quota) = self.quotas.get(key) else {
            self.counted.lock().remove(key);
            return None;
        };
        let hard = plan::hard(&quota);
        let bounded = |resource: Subject<'_>| hard.keys().any(|name| concerns(name, resource));
        let mut others = Content::default();
        let mut known: BTreeMap<String, bool> = BTreeMap::new();
        for item in self.catalogue.graph().in_namespace(&key.namespace) {
            let resource = &*item.resource;
            let counts = known.entry(resource.label()).or_insert_with(|| bounded(subject(resource)));
            if *counts && !is_pods(resource) {
                others.add((&item.uid, is_weighed(resource).then_some(&item.version)));
            }
        }
        let pods = if bounded(Subject { group: "", plural: "pods" }) {
            self.pods.in_namespace(&key.namespace).iter().map(|pod| pod_seen(pod)).collect()
        } else {
            Vec::new()
        };
        let counted = self.counted.lock().get(key).cloned();
        Some(Seen { quota, others, pods, counted })
    }

    fn plan(&self, seen: &Seen, now: Timestamp) -> Plan<Recount> {
        plan(seen, now)
    }

    async fn act(&self, key: &Key, Recount(content): Recount, writes: &Writes) -> Result<(), ActError> {
        self.recount(key, content, writes).await
    }
}

fn pod_seen(pod: &Pod) -> PodSeen {
    let meta = &pod.metadata;
    let grace = meta.deletion_grace_period_seconds.unwrap_or(0);
    let until = meta.deletion_timestamp.as_ref().and_then(|at| at.0.checked_add(SignedDuration::from_secs(grace)).ok());
    PodSeen { uid: meta.uid.clone().unwrap_or_default(), over: pods::is_over(pod), counts_until: until }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Found by the simulation (seed 345): a group that did not answer once had no objects, and a quota let more in.
    #[test]
    fn what_discovery_did_not_get_to_see_keeps_the_figure_it_had() {
        let told = json!("3");
        let whole = Known::default();
        let part = Known { failures: vec!["batch/v1: connection refused".to_owned()], ..Known::default() };
        assert_eq!(uncounted(&whole, Some(&told)), Some(json!("0")), "it is served no longer");
        assert_eq!(uncounted(&part, Some(&told)), Some(told));
        assert_eq!(uncounted(&part, None), None, "nobody knows");
    }
}
