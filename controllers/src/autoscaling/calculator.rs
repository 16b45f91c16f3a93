//! How many replicas one metric asks for: the published algorithm of the horizontal autoscaler ("Algorithm details" in
//! Kubernetes' documentation; `pkg/controller/podautoscaler/replica_calculator.go` says what it leaves open). Pure.
//!
//! The ratio of what is used to what is wanted, times the pods that use it. Pods that cannot say what they use are
//! taken at what damps the change: at the target (or the whole request) when it shrinks, at nothing when it grows.

use super::measure::Figure;
use crate::pods;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, ResourceRequirements};
use proa_apimachinery::quantity::Quantity;
use proa_crds::Pod;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// A pod that is not ready within this time of its start has never been (`--horizontal-pod-autoscaler-initial-readiness-delay`).
const INITIAL_READINESS: SignedDuration = SignedDuration::from_secs(30);
/// How long after its start a pod's CPU figures may be of its start-up (`--horizontal-pod-autoscaler-cpu-initialization-period`).
const CPU_INITIALISATION: SignedDuration = SignedDuration::from_mins(5);
/// What two numbers differ by when they are the same to the autoscaler (`--horizontal-pod-autoscaler-tolerance`).
pub(super) const TOLERANCE: f64 = 0.1;

/// How far the ratio may be from 1 before anything changes; each direction may have its own (KEP-4951).
#[derive(Clone, Copy, Debug)]
pub(super) struct Tolerance {
    pub(super) up: f64,
    pub(super) down: f64,
}

impl Tolerance {
    fn holds(self, ratio: f64) -> bool {
        (1.0 - self.down) <= ratio && ratio <= (1.0 + self.up)
    }
}

/// What a metric asks for, and what it was found to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Proposal {
    /// How many replicas.
    pub(super) replicas: i32,
    /// Percent of what is requested; for targets of utilization.
    pub(super) utilization: Option<i32>,
    /// In thousandths: the average over the pods, or the value itself.
    pub(super) usage: i64,
}

/// The pods of the target, and the time.
pub(super) struct Population<'a> {
    /// Those the scale's selector selects.
    pub(super) pods: &'a [Arc<Pod>],
    /// `spec.replicas` of the scale.
    pub(super) current: i32,
    /// `status.replicas` of the scale.
    pub(super) held: i32,
    pub(super) tolerance: Tolerance,
    pub(super) now: Timestamp,
}

/// Figures by the name of their pod.
pub(super) type Figures = BTreeMap<String, Figure>;

fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

/// The pods by what their figures are worth.
#[derive(Debug, Default, PartialEq, Eq)]
struct Groups {
    ready: usize,
    unready: BTreeSet<String>,
    missing: BTreeSet<String>,
    ignored: BTreeSet<String>,
}

fn group(pods: &[Arc<Pod>], figures: &Figures, cpu: bool, now: Timestamp) -> Groups {
    let mut groups = Groups::default();
    for pod in pods {
        let name = name(pod).to_owned();
        if pod.metadata.deletion_timestamp.is_some() || pods::phase(pod) == "Failed" {
            groups.ignored.insert(name);
        } else if pods::phase(pod) == "Pending" {
            groups.unready.insert(name);
        } else if let Some(figure) = figures.get(&name) {
            if cpu && starts_up(pod, figure, now) {
                groups.unready.insert(name);
            } else {
                groups.ready += 1;
            }
        } else {
            groups.missing.insert(name);
        }
    }
    groups
}

/// Whether a CPU figure may be of the pod's start rather than of its work.
fn starts_up(pod: &Pod, figure: &Figure, now: Timestamp) -> bool {
    let started = pod.status.as_ref().and_then(|status| status.start_time.as_ref()).map(|time| time.0);
    let (Some(ready), Some(started)) = (pods::condition(pod, "Ready"), started) else { return true };
    let changed = ready.last_transition_time.as_ref().map_or(Timestamp::MIN, |time| time.0);
    let unready = ready.status == "False";
    if now.duration_since(started) < CPU_INITIALISATION {
        // A whole window must lie after the pod became ready.
        return unready || figure.at.duration_since(changed) < figure.window;
    }
    unready && changed.duration_since(started) < INITIAL_READINESS
}

fn without(figures: &Figures, groups: &Groups) -> Figures {
    let keep = |name: &String| !groups.ignored.contains(name) && !groups.unready.contains(name);
    figures.iter().filter(|(name, _)| keep(name)).map(|(name, figure)| (name.clone(), figure.clone())).collect()
}

fn fill(figures: &mut Figures, names: &BTreeSet<String>, value: impl Fn(&str) -> i64, now: Timestamp) {
    for name in names {
        let figure = Figure { value: value(name), at: now, window: SignedDuration::ZERO };
        figures.insert(name.clone(), figure);
    }
}

const NO_PODS: &str = "no pods returned by selector while calculating replica count";
const NO_FIGURES: &str = "did not receive metrics for targeted pods (pods might be unready)";

/// A ratio of usage to target and what it was computed from.
struct Ratio {
    ratio: f64,
    utilization: Option<i32>,
    usage: i64,
}

/// Replicas for a share of what the pods request.
pub(super) fn utilization(
    of: &Population<'_>,
    figures: &Figures,
    resource: &str,
    container: Option<&str>,
    target: i32,
) -> Result<Proposal, String> {
    if of.pods.is_empty() {
        return Err(NO_PODS.to_owned());
    }
    let groups = group(of.pods, figures, resource == "cpu", of.now);
    let measured = without(figures, &groups);
    if measured.is_empty() {
        return Err(NO_FIGURES.to_owned());
    }
    let requests = requests(of.pods, resource, container)?;
    let ratio = |figures: &Figures| {
        let known = figures.iter().filter_map(|(name, figure)| Some((figure.value, requests.get(name)?)));
        let (mut used, mut requested, mut entries) = (0i64, 0i64, 0i64);
        for (value, request) in known {
            (used, requested, entries) = (used.saturating_add(value), requested.saturating_add(*request), entries + 1);
        }
        if requested == 0 {
            return Err("no metrics returned matched known pods".to_owned());
        }
        let utilization = i32::try_from(i128::from(used) * 100 / i128::from(requested)).unwrap_or(i32::MAX);
        let ratio = f64::from(utilization) / f64::from(target);
        Ok(Ratio { ratio, utilization: Some(utilization), usage: used / entries })
    };
    // Where the target is above the request itself, that much is assumed.
    let assumed = i64::from(target.max(100));
    let at_target = |name: &str| requests.get(name).map_or(0, |request| request.saturating_mul(assumed) / 100);
    propose(of, groups, measured, ratio, at_target)
}

/// Replicas for an average per pod, in thousandths.
pub(super) fn average(of: &Population<'_>, figures: &Figures, resource: &str, target: i64) -> Result<Proposal, String> {
    if of.pods.is_empty() {
        return Err(NO_PODS.to_owned());
    }
    let groups = group(of.pods, figures, resource == "cpu", of.now);
    let measured = without(figures, &groups);
    if measured.is_empty() {
        return Err(NO_FIGURES.to_owned());
    }
    let ratio = |figures: &Figures| {
        let sum = figures.values().fold(0i64, |sum, figure| sum.saturating_add(figure.value));
        let usage = sum / i64::try_from(figures.len().max(1)).unwrap_or(i64::MAX);
        Ok(Ratio { ratio: usage as f64 / target as f64, utilization: None, usage })
    };
    propose(of, groups, measured, ratio, |_| target)
}

fn propose(
    of: &Population<'_>,
    groups: Groups,
    mut measured: Figures,
    ratio: impl Fn(&Figures) -> Result<Ratio, String>,
    at_target: impl Fn(&str) -> i64,
) -> Result<Proposal, String> {
    let Ratio { ratio: first, utilization, usage } = ratio(&measured)?;
    let proposal = |replicas| Ok(Proposal { replicas, utilization, usage });
    let grows_with_unready = !groups.unready.is_empty() && first > 1.0;
    if !grows_with_unready && groups.missing.is_empty() {
        return proposal(match of.tolerance.holds(first) {
            true => of.current,
            false => ceil(first * groups.ready as f64),
        });
    }
    if first < 1.0 {
        fill(&mut measured, &groups.missing, at_target, of.now);
    } else if first > 1.0 {
        fill(&mut measured, &groups.missing, |_| 0, of.now);
    }
    if grows_with_unready {
        fill(&mut measured, &groups.unready, |_| 0, of.now);
    }
    let second = ratio(&measured)?.ratio;
    let turned = (first < 1.0 && second > 1.0) || (first > 1.0 && second < 1.0);
    if of.tolerance.holds(second) || turned {
        return proposal(of.current);
    }
    let replicas = ceil(second * measured.len() as f64);
    // What is assumed of pods must not change the direction either.
    let turned = (second < 1.0 && replicas > of.current) || (second > 1.0 && replicas < of.current);
    proposal(if turned { of.current } else { replicas })
}

fn ceil(replicas: f64) -> i32 {
    // A cast of a float saturates; a number of replicas that is not one (0/0) is none.
    replicas.ceil() as i32
}

/// Replicas for one value that all ready pods share: of an object, or the sum of external ones.
pub(super) fn value(of: &Population<'_>, usage: i64, target: i64) -> Result<Proposal, String> {
    let ratio = usage as f64 / target as f64;
    let proposal = |replicas| Ok(Proposal { replicas, utilization: None, usage });
    if of.current == 0 {
        return proposal(ceil(ratio));
    }
    if of.tolerance.holds(ratio) {
        return proposal(of.current);
    }
    if of.pods.is_empty() {
        return Err(NO_PODS.to_owned());
    }
    let ready = of.pods.iter().filter(|pod| pods::phase(pod) == "Running" && pods::is_ready(pod)).count();
    proposal(ceil(ratio * ready as f64))
}

/// Replicas so that each has at most the target of one value.
pub(super) fn value_per_pod(of: &Population<'_>, usage: i64, target: i64) -> Proposal {
    let ratio = usage as f64 / (target as f64 * f64::from(of.held));
    let replicas = match of.tolerance.holds(ratio) {
        true => of.held,
        false => ceil(usage as f64 / target as f64),
    };
    let usage = if of.held > 0 { (usage as f64 / f64::from(of.held)).ceil() as i64 } else { 0 };
    Proposal { replicas, utilization: None, usage }
}

/// What each pod requests of a resource, in thousandths: all its containers together, or one of them. Init containers
/// that run as long as the pod does count too.
fn requests(pods: &[Arc<Pod>], resource: &str, container: Option<&str>) -> Result<BTreeMap<String, i64>, String> {
    pods.iter().map(|pod| Ok((name(pod).to_owned(), request(pod, resource, container)?))).collect()
}

fn request(pod: &Pod, resource: &str, wanted: Option<&str>) -> Result<i64, String> {
    let of = |resources: Option<&ResourceRequirements>| {
        let quantity = resources?.requests.as_ref()?.get(resource)?;
        let milli = Quantity::parse(&quantity.0).ok()?.as_milli();
        Some(i64::try_from(milli).unwrap_or(i64::MAX))
    };
    if let (None, Some(whole)) = (wanted, of(pod.spec.resources.as_ref())) {
        return Ok(whole);
    }
    let lasting = |container: &&Container| container.restart_policy.as_deref() == Some("Always");
    let sidecars = pod.spec.init_containers.iter().flatten().filter(lasting);
    let mut sum = 0i64;
    let mut found = false;
    for container in pod.spec.containers.iter().chain(sidecars) {
        if wanted.is_some_and(|wanted| wanted != container.name) {
            continue;
        }
        found = true;
        let request = of(container.resources.as_ref()).ok_or_else(|| {
            format!("missing request for {resource} in container {} of Pod {}", container.name, name(pod))
        })?;
        sum = sum.saturating_add(request);
    }
    match (found, wanted) {
        (false, Some(wanted)) => Err(format!("container {wanted} not found in Pod {}", name(pod))),
        _ => Ok(sum),
    }
}
