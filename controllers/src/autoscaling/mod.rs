//! HorizontalPodAutoscalers: as many replicas as the load asks for.
//!
//! Owns: the size of what autoscalers point at, through its scale subresource, and the status of the autoscalers. Never
//! knows what kind of thing it resizes, and never measures anything itself: figures come over the metrics APIs.

mod calculator;
mod limits;
mod measure;
mod metric;
mod plan;
#[cfg(test)]
mod tests;

pub use limits::{Moment, Past};
pub use measure::{Figure, Measured, Reading};
pub use plan::{Action, Conclusion, Look, PERIOD, Rescale, Seen, plan};

use crate::{
    ActError, Context, Informer, Key, Loop, Plan, Queue, Writes,
    catalogue::Catalogue,
    patch::{json, merge_diff, params},
    scale::{ScaleError, Scales, Target},
};
use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{
    HorizontalPodAutoscaler, HorizontalPodAutoscalerSpec, HorizontalPodAutoscalerStatus,
};
use kube::{
    ResourceExt,
    api::{ListParams, Patch},
};
use measure::Meter;
use parking_lot::Mutex;
use proa_apimachinery::selector::LabelSelector;
use proa_crds::{Family, Pod};
use serde_json::json;
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

const COMPONENT: &str = "horizontal-pod-autoscaler";

/// The autoscaling loop.
pub struct Autoscalers {
    context: Context,
    autoscalers: Informer<HorizontalPodAutoscaler>,
    pods: Informer<Pod>,
    scales: Scales,
    catalogue: Catalogue,
    memory: Arc<Mutex<HashMap<Key, Memory>>>,
}

/// What this process remembers of an autoscaler.
#[derive(Default)]
struct Memory {
    look: Option<Look>,
    past: Past,
}

impl Autoscalers {
    /// The loop of that context; targets' kinds are looked up in the catalogue.
    pub fn new(context: &Context, catalogue: &Catalogue) -> Self {
        Autoscalers {
            autoscalers: context.informers.of(),
            pods: context.informers.of_resource(context.family.pod()),
            scales: Scales::new(catalogue),
            catalogue: catalogue.clone(),
            memory: Arc::default(),
            context: context.clone(),
        }
    }

    async fn look(&self, key: &Key, autoscaler: &HorizontalPodAutoscaler) {
        let spec = autoscaler.spec.clone();
        let scale = self.scales.get(&target_of(autoscaler)).await.map_err(said);
        let selector = scale.as_ref().map_or("", |scale| scale.selector.as_str());
        let family = family_of(&spec);
        let (mut metrics, mut pods) = (Vec::new(), None);
        if !selector.is_empty() {
            let meter = Meter::new(self.context.client.clone(), self.catalogue.known());
            let wanted = spec.metrics.as_deref().unwrap_or_default();
            metrics = meter.measure(family, &key.namespace, selector, wanted).await;
            if family != self.context.family {
                let api = kube::Api::<Pod>::namespaced_with(self.context.client.clone(), &key.namespace, &family.pod());
                let listed = api.list(&ListParams::default().labels(selector)).await;
                pods = listed.ok().map(|list| list.items.into_iter().map(Arc::new).collect());
            }
        }
        let look = Look { at: self.context.clock.now(), spec, scale, metrics, pods, concluded: false };
        self.memory.lock().entry(key.clone()).or_default().look = Some(look);
    }

    async fn conclude(
        &self,
        key: &Key,
        autoscaler: &HorizontalPodAutoscaler,
        conclusion: Conclusion,
        writes: &Writes,
    ) -> Result<(), ActError> {
        let outcome = match &conclusion.rescale {
            Some(rescale) => self.scales.set(&target_of(autoscaler), &rescale.scale, rescale.to).await.map_err(said),
            None => Ok(()),
        };
        let now = self.context.clock.now();
        if let Some(memory) = self.memory.lock().get_mut(key) {
            if let Some(look) = memory.look.as_mut().filter(|look| look.at == conclusion.at) {
                look.concluded = true;
            }
            memory.past.forget(now);
            memory.past.recommended.extend(&conclusion.recommended);
            if let (Some(Rescale { scale, to, .. }), Ok(())) = (&conclusion.rescale, &outcome) {
                memory.past.resized(scale.wanted, *to, now);
            }
        }
        let (status, notes) = conclusion.tried(&outcome, now);
        for note in notes {
            self.context.recorder.note(COMPONENT, &self.autoscalers.resource(), autoscaler, note);
        }
        self.write(key, autoscaler, &status, writes).await
    }

    async fn write(
        &self,
        key: &Key,
        autoscaler: &HorizontalPodAutoscaler,
        status: &HorizontalPodAutoscalerStatus,
        writes: &Writes,
    ) -> Result<(), ActError> {
        let held = autoscaler.status.as_ref().map_or_else(|| json!({}), json);
        let Some(change) = merge_diff(&held, &json(status)) else { return Ok(()) };
        let patch = json!({"metadata": {"uid": autoscaler.metadata.uid}, "status": change});
        let api = self.autoscalers.api(&key.namespace);
        let written = api.patch_status(&key.name, &params(), &Patch::Merge(&patch)).await?;
        writes.wrote(&self.autoscalers, &written);
        Ok(())
    }
}

fn said(error: ScaleError) -> String {
    match error {
        ScaleError::Api(kube::Error::Api(status)) => status.message.clone(),
        other => other.to_string(),
    }
}

fn target_of(autoscaler: &HorizontalPodAutoscaler) -> Target {
    let target = autoscaler.spec.scale_target_ref.clone();
    Target {
        api_version: target.api_version.unwrap_or_else(|| "v1".to_owned()),
        kind: target.kind,
        namespace: autoscaler.namespace().unwrap_or_default(),
        name: target.name,
    }
}

/// The family of the pods an autoscaler's target has.
fn family_of(spec: &HorizontalPodAutoscalerSpec) -> Family {
    let group = Family::Proa.pod().group;
    let target = spec.scale_target_ref.api_version.as_deref().and_then(|version| version.split_once('/'));
    if target.is_some_and(|(of, _)| of == group) { Family::Proa } else { Family::Standard }
}

/// The selector of the target, as the last look found it.
fn selector_of(look: &Look) -> Option<LabelSelector> {
    let selector = &look.scale.as_ref().ok()?.selector;
    LabelSelector::parse(selector).ok().filter(|_| !selector.is_empty())
}

fn selects(selector: &LabelSelector, labels: Option<&BTreeMap<String, String>>) -> bool {
    selector.matches(|key| labels?.get(key).map(String::as_str))
}

impl Loop for Autoscalers {
    type Seen = Seen;
    type Action = Action;

    fn name(&self) -> &'static str {
        "horizontal-pod-autoscaler"
    }

    fn wire(&self, queue: &Queue) {
        let (to, memory) = (queue.clone(), self.memory.clone());
        self.autoscalers.on_change(move |change| {
            if change.new.is_none() {
                memory.lock().remove(&change.key);
            }
            to.add(change.key.clone());
        });
    }

    fn ready(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            tokio::join!(self.autoscalers.synced(), self.pods.synced(), self.scales.ready());
        })
    }

    fn see(&self, key: &Key) -> Option<Seen> {
        let autoscaler = self.autoscalers.get(key).filter(|held| held.metadata.deletion_timestamp.is_none())?;
        let memory = self.memory.lock();
        let mine = memory.get(key);
        let look = mine.and_then(|mine| mine.look.clone());
        let past = mine.map(|mine| mine.past.clone()).unwrap_or_default();
        let (mut pods, mut rivals) = (Vec::new(), Vec::new());
        if let Some(selector) = look.as_ref().and_then(selector_of) {
            let listed = look.as_ref().and_then(|look| look.pods.clone());
            pods = listed.unwrap_or_else(|| match family_of(&autoscaler.spec) == self.context.family {
                true => self.pods.in_namespace(&key.namespace),
                false => Vec::new(),
            });
            pods.retain(|pod| selects(&selector, pod.metadata.labels.as_ref()));
            for (other, theirs) in memory.iter().filter(|(other, _)| *other != key && other.namespace == key.namespace)
            {
                let of_family = |look: &&Look| family_of(&look.spec) == family_of(&autoscaler.spec);
                let selector = theirs.look.as_ref().filter(of_family).and_then(selector_of);
                let both = |pod: &Arc<Pod>| {
                    selector.as_ref().is_some_and(|selector| selects(selector, pod.metadata.labels.as_ref()))
                };
                if pods.iter().any(both) {
                    rivals.push(other.to_string());
                }
            }
            rivals.sort();
        }
        Some(Seen { autoscaler, look, pods, rivals, past })
    }

    fn plan(&self, seen: &Seen, now: Timestamp) -> Plan<Action> {
        plan(seen, now)
    }

    async fn act(&self, key: &Key, action: Action, writes: &Writes) -> Result<(), ActError> {
        let autoscaler = self.autoscalers.get(key).ok_or_else(|| ActError::Gone(key.to_string()))?;
        match action {
            Action::Look => {
                self.look(key, &autoscaler).await;
                Ok(())
            }
            Action::Conclude(conclusion) => self.conclude(key, &autoscaler, *conclusion, writes).await,
        }
    }
}
