//! Has a revision failed: what its pods, its configuration, its checks and the clock say, and whether the cluster rather
//! than the revision is to blame. Pure.

use super::{
    checks::Standing,
    surroundings::{Surroundings, unreachable_registry},
};
use crate::pods;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated, ContainerStatus};
use proa_crds::{
    Failure, Pod, RolloutPolicySpec,
    policy::{CrashLoop, Lasting},
    reasons,
};
use std::{collections::BTreeMap, time::Duration};

/// A pod of the earlier revision that has not been ready for so long, with its containers running, speaks of more than a
/// start.
const EARLIER_UNREADY: Duration = Duration::from_secs(30);

/// What a registry's answer says when an image cannot be had, now or later.
const GONE: [&str; 9] = [
    "not found",
    "notfound",
    "does not exist",
    "manifest unknown",
    "no such",
    "name unknown",
    "unauthorized",
    "denied",
    "forbidden",
];

/// What a revision is judged by.
#[derive(Clone, Debug)]
pub(crate) struct Case<'a> {
    /// The policy that holds.
    pub(crate) policy: &'a RolloutPolicySpec,
    /// The pods of the revision that stay.
    pub(crate) pods: &'a [&'a Pod],
    /// Those of the revision to go back to, while there are any.
    pub(crate) earlier: &'a [&'a Pod],
    /// Its rollout was complete; it is watched for a while.
    pub(crate) complete: bool,
    /// What its volumes miss, in words.
    pub(crate) missing: Option<String>,
    /// That it made no progress in time, in words.
    pub(crate) timed_out: Option<String>,
    /// How its checks stand, by name.
    pub(crate) checks: &'a BTreeMap<String, Standing>,
    /// What is wrong with the cluster.
    pub(crate) around: &'a Surroundings,
    /// The time.
    pub(crate) now: Timestamp,
}

/// What the detector found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing speaks against the revision.
    Fine,
    /// Something does, but it may pass: look again after this time.
    Wait(Duration),
    /// Something does that the cluster is to blame for.
    Unwell {
        /// One of [`reasons::NODES_UNWELL`], [`reasons::REGISTRY_UNREACHABLE`], [`reasons::EARLIER_REVISION_FAILS`].
        reason: &'static str,
        /// What, in words.
        message: String,
    },
    /// It cannot succeed.
    Failed(Box<Failure>),
}

impl Case<'_> {
    /// Judges the revision.
    pub(crate) fn judge(&self) -> Verdict {
        let criteria = &self.policy.failure;
        let (lost, mine): (Vec<&Pod>, Vec<&Pod>) = self.pods.iter().copied().partition(|pod| self.is_lost(pod));
        let mut wait: Option<Duration> = None;
        let mut later = |left: Duration| wait = Some(wait.map_or(left, |wait| wait.min(left)));
        if !self.complete {
            for pod in &mine {
                for container in pods::container_statuses(pod) {
                    match self.cannot_start(pod, container) {
                        Some(Verdict::Wait(left)) => later(left),
                        Some(other) => return other,
                        None => {}
                    }
                }
            }
            if let Some(missing) = self.missing.clone().filter(|_| !criteria.configuration.ignore)
                && let Some(pod) = mine.iter().find(|pod| !pods::is_ready(pod))
            {
                match self.left(pod, criteria.configuration) {
                    None => {
                        return failed(Failure {
                            reason: reasons::CONFIGURATION_ERROR.to_owned(),
                            message: missing,
                            pod: pod.metadata.name.clone(),
                            ..Failure::default()
                        });
                    }
                    Some(left) => later(left),
                }
            }
        }
        if let Some(failure) = crash_loop(&mine, criteria.crash_loop) {
            return self.unless_all_suffer(failure);
        }
        for (name, standing) in self.checks {
            let known = self.policy.checks.iter().find(|check| check.name == *name);
            if known.is_some_and(|check| standing.failures >= check.failure_threshold) {
                let asked = mine.iter().find(|pod| standing.pod.is_some() && pod.metadata.name == standing.pod);
                return self.unless_all_suffer(Failure {
                    // Which container answered is not known; the first is the one a pod is made for.
                    container: asked.and_then(|pod| Some(pod.spec.containers.first()?.name.clone())),
                    reason: reasons::CHECK_FAILED.to_owned(),
                    message: format!("check {name:?} failed {} times in a row: {}", standing.failures, standing.said),
                    pod: standing.pod.clone(),
                    ..Failure::default()
                });
            }
        }
        if self.complete && !criteria.readiness.ignore {
            match self.readiness_lost(&lost) {
                Some(Verdict::Wait(left)) => later(left),
                Some(other) => return other,
                None => {}
            }
        }
        if let Some(message) = self.timed_out.clone().filter(|_| !self.complete && !criteria.progress_deadline.ignore) {
            return self.timed_out(message, &mine, &lost);
        }
        wait.map_or(Verdict::Fine, Verdict::Wait)
    }

    /// Whether the pod's state is only what was last heard of it.
    fn is_lost(&self, pod: &Pod) -> bool {
        pods::node(pod).is_some_and(|node| self.around.unwell_nodes.contains(node))
    }

    /// A failure, unless the pods of the revision to go back to fail as well: then going back would mend nothing.
    fn unless_all_suffer(&self, failure: Failure) -> Verdict {
        let failing = self.earlier.iter().find(|pod| !self.is_lost(pod) && self.is_failing(pod));
        match failing.filter(|_| !self.earlier.iter().any(|pod| pods::is_ready(pod))) {
            None => failed(failure),
            Some(pod) => Verdict::Unwell {
                reason: reasons::EARLIER_REVISION_FAILS,
                message: format!(
                    "{}; but no pod of the earlier revision is ready either, pod {:?} for one fails as well",
                    failure.why(),
                    pod.metadata.name.as_deref().unwrap_or_default(),
                ),
            },
        }
    }

    /// Whether a pod that should do well does not.
    fn is_failing(&self, pod: &Pod) -> bool {
        let unready = pods::condition(pod, "Ready").filter(|ready| ready.status == "False");
        let since = unready.and_then(|ready| ready.last_transition_time.as_ref()).map(|time| time.0);
        let long = since.is_some_and(|since| stood(since, self.now) >= EARLIER_UNREADY);
        !pods::is_ready(pod) && (long || pods::container_statuses(pod).any(|container| crashes(container) > 0))
    }

    /// Nobody is ready any longer: since when, and is it the nodes.
    fn readiness_lost(&self, lost: &[&Pod]) -> Option<Verdict> {
        if self.pods.is_empty() || self.pods.iter().any(|pod| pods::is_ready(pod)) {
            return None;
        }
        // What never ran has lost nothing: a revision that was healthy may be on its way back.
        if self.pods.iter().any(|pod| pods::phase(pod) == "Pending") {
            return None;
        }
        if !lost.is_empty() {
            return Some(self.nodes_unwell("no pod of the revision is ready"));
        }
        // The youngest sign counts: a pod that was just made anew has not lost anything yet.
        let since = self.pods.iter().map(|pod| unready_since(pod).unwrap_or(self.now)).max()?;
        let wanted = Duration::from_secs(self.policy.failure.readiness.after_seconds.into());
        if let Some(left) = wanted.checked_sub(stood(since, self.now)).filter(|left| !left.is_zero()) {
            return Some(Verdict::Wait(left));
        }
        let (pod, container) = worst(self.pods)?;
        let message = format!(
            "no pod of the revision is ready any longer, after its rollout was complete. {}",
            held_up_pod(pod, container)
        );
        Some(self.unless_all_suffer(seen_in(reasons::READINESS_LOST, pod, container, message)))
    }

    fn timed_out(&self, message: String, mine: &[&Pod], lost: &[&Pod]) -> Verdict {
        if lost.iter().any(|pod| !pods::is_ready(pod)) {
            return self.nodes_unwell(&message);
        }
        let unscheduled = mine.iter().any(|pod| pods::node(pod).is_none());
        if let Some(node) = self.around.missing_node.as_ref().filter(|_| unscheduled) {
            return Verdict::Unwell {
                reason: reasons::NODES_UNWELL,
                message: format!("{message} But node {node:?} is not ready, and pods wait for a place"),
            };
        }
        let registry = mine.iter().flat_map(|pod| pods::container_statuses(pod)).find_map(unreachable_registry);
        if let Some((registry, other)) =
            registry.and_then(|registry| Some((registry, self.around.unreachable.get(registry)?)))
        {
            return Verdict::Unwell {
                reason: reasons::REGISTRY_UNREACHABLE,
                message: format!(
                    "{message} But the registry {registry:?} cannot be reached by others either, pod {other:?} for one"
                ),
            };
        }
        let reason = reasons::PROGRESS_DEADLINE_EXCEEDED;
        let failure = match worst(mine) {
            Some((pod, container)) => {
                let message = format!("{message} {}", held_up_pod(pod, container));
                seen_in(reason, pod, container, message)
            }
            None => Failure { reason: reason.to_owned(), message, ..Failure::default() },
        };
        self.unless_all_suffer(failure)
    }

    fn nodes_unwell(&self, what: &str) -> Verdict {
        let nodes: Vec<&str> = self.around.unwell_nodes.iter().map(String::as_str).collect();
        Verdict::Unwell {
            reason: reasons::NODES_UNWELL,
            message: format!("{what}; but pods of it are on nodes that are not ready: {}", nodes.join(", ")),
        }
    }

    /// Image and configuration errors: one pod speaks for all, because all would meet the same.
    fn cannot_start(&self, pod: &Pod, container: &ContainerStatus) -> Option<Verdict> {
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        let said = without_image(waiting.message.as_deref().unwrap_or_default(), &container.image);
        let reason = waiting.reason.as_deref()?;
        let criteria = &self.policy.failure;
        let (means, how_sure) = match reason {
            "InvalidImageName" | "ErrImageNeverPull" => (reasons::IMAGE_NOT_FOUND, criteria.image),
            "ErrImagePull" | "ImagePullBackOff" if is_gone(reason, &said) => (reasons::IMAGE_NOT_FOUND, criteria.image),
            "CreateContainerConfigError" => (reasons::CONFIGURATION_ERROR, criteria.configuration),
            _ => return None,
        };
        if how_sure.ignore {
            return None;
        }
        Some(match self.left(pod, how_sure) {
            Some(left) => Verdict::Wait(left),
            None => failed(evidence(means, pod, container, held_up(container))),
        })
    }

    /// How long until what that pod shows has stood long enough; `None` when it has.
    fn left(&self, pod: &Pod, how_sure: Lasting) -> Option<Duration> {
        let since = pod.metadata.creation_timestamp.as_ref().map_or(self.now, |time| time.0);
        let wanted = Duration::from_secs(how_sure.after_seconds.into());
        wanted.checked_sub(stood(since, self.now)).filter(|left| !left.is_zero())
    }
}

fn failed(failure: Failure) -> Verdict {
    Verdict::Failed(Box::new(failure))
}

fn stood(since: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(since)).unwrap_or_default()
}

fn unready_since(pod: &Pod) -> Option<Timestamp> {
    let condition = pods::condition(pod, "Ready").filter(|ready| ready.status != "True");
    let told = condition.and_then(|ready| ready.last_transition_time.as_ref());
    told.or(pod.metadata.creation_timestamp.as_ref()).map(|time| time.0)
}

/// The pod that is not ready and says most about why.
fn worst<'a>(pods: &[&'a Pod]) -> Option<(&'a Pod, Option<&'a ContainerStatus>)> {
    pods.iter()
        .filter(|pod| !pods::is_ready(pod))
        .map(|pod| (*pod, pods::container_statuses(pod).find(|container| !container.ready)))
        .max_by_key(|(_, container)| container.is_some())
}

fn held_up_pod(pod: &Pod, container: Option<&ContainerStatus>) -> String {
    match container {
        Some(container) => held_up(container),
        None => format!("Pod: {}", unscheduled(pod).unwrap_or_else(|| "its containers were not started".to_owned())),
    }
}

fn seen_in(reason: &str, pod: &Pod, container: Option<&ContainerStatus>, message: String) -> Failure {
    match container {
        Some(container) => evidence(reason, pod, container, message),
        None => Failure { reason: reason.to_owned(), message, pod: pod.metadata.name.clone(), ..Failure::default() },
    }
}

/// Every one of these pods has crashed, together often enough, and none is ready.
fn crash_loop(mine: &[&Pod], how_sure: CrashLoop) -> Option<Failure> {
    if how_sure.ignore || mine.is_empty() || mine.iter().any(|pod| pods::is_ready(pod)) {
        return None;
    }
    let mut total = 0;
    let mut most: Option<(i32, &Pod, &ContainerStatus)> = None;
    for pod in mine {
        let (count, container) = pods::container_statuses(pod)
            .map(|container| (crashes(container), container))
            .max_by_key(|(count, _)| *count)
            .filter(|(count, _)| *count > 0)?;
        total += count;
        if most.is_none_or(|(held, ..)| count > held) {
            most = Some((count, pod, container));
        }
    }
    let (count, pod, container) = most?;
    (i64::from(total) >= i64::from(how_sure.crashes))
        .then(|| evidence(reasons::CRASH_LOOP, pod, container, crash_message(container, count)))
}

/// How often a container that is not ready has crashed: an end with an error, or one after which it is held back.
fn crashes(container: &ContainerStatus) -> i32 {
    if container.ready {
        return 0;
    }
    let ended_badly = |state: Option<&ContainerState>| {
        state.and_then(|state| state.terminated.as_ref()).is_some_and(|ended| ended.exit_code != 0)
    };
    let waiting = container.state.as_ref().and_then(|state| state.waiting.as_ref());
    let held_back = waiting.and_then(|waiting| waiting.reason.as_deref()) == Some("CrashLoopBackOff");
    if held_back || ended_badly(container.state.as_ref()) {
        container.restart_count + 1
    } else if ended_badly(container.last_state.as_ref()) {
        container.restart_count
    } else {
        0
    }
}

fn evidence(reason: &str, pod: &Pod, container: &ContainerStatus, message: String) -> Failure {
    Failure {
        reason: reason.to_owned(),
        message,
        pod: pod.metadata.name.clone(),
        container: Some(container.name.clone()),
        // Where the log cannot be read, what the container left behind is better than nothing.
        log: last_ended(container)
            .and_then(|ended| ended.message.as_deref())
            .map(Failure::last_lines)
            .unwrap_or_default(),
        exit_code: last_ended(container).map(|ended| ended.exit_code),
        ..Failure::default()
    }
}

fn last_ended(container: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    [container.state.as_ref(), container.last_state.as_ref()]
        .into_iter()
        .flatten()
        .find_map(|state| state.terminated.as_ref())
}

/// What keeps a container from being ready, in words.
fn held_up(container: &ContainerStatus) -> String {
    let state = container.state.as_ref();
    let what = if let Some(waiting) = state.and_then(|state| state.waiting.as_ref()) {
        let reason = waiting.reason.as_deref().unwrap_or("waiting");
        match waiting.message.as_deref().filter(|said| !said.is_empty()) {
            Some(said) => format!("{reason}: {said}"),
            None => reason.to_owned(),
        }
    } else if state.is_some_and(|state| state.running.is_some()) {
        "runs but does not get ready".to_owned()
    } else {
        "has ended".to_owned()
    };
    format!("container {:?} with image {:?}: {what}", container.name, container.image)
}

/// Why the pod has no node, if it has none.
fn unscheduled(pod: &Pod) -> Option<String> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let found = conditions.iter().find(|condition| condition.type_ == "PodScheduled" && condition.status == "False")?;
    Some(format!("{}: {}", found.reason.as_deref().unwrap_or_default(), found.message.as_deref().unwrap_or_default()))
}

/// Whether what a pull says means that the image cannot be had, now or later.
fn is_gone(reason: &str, said: &str) -> bool {
    // A registry that cannot be reached may come back; the progress deadline bounds the wait.
    let may_pass = is_unreachable(said)
        || says(said, &["timeout", "timed out", "reset", "temporary", "too many requests", "eof", "unavailable"]);
    says(said, &GONE) && !is_unreachable(said) || (reason == "ImagePullBackOff" && !may_pass)
}

/// Whether what a pull says means that nobody answers at the registry.
pub(crate) fn is_unreachable(said: &str) -> bool {
    says(said, &["cannot reach", "unreachable", "no route", "dns", "resolve", "refused"])
}

/// Whether the log that tells of a failure is that of the run before the container's last start.
pub(crate) fn is_of_previous_run(failure: &Failure, pods: &[&Pod]) -> bool {
    pods.iter().filter(|pod| pod.metadata.name == failure.pod).any(|pod| {
        pods::container_statuses(pod).any(|container| {
            Some(&container.name) == failure.container.as_ref()
                && container.restart_count > 0
                && container.state.as_ref().is_none_or(|state| state.terminated.is_none())
        })
    })
}

/// The message without the words that name the image or its registry: they may be called `dns-resolver:refused`.
pub(super) fn without_image(message: &str, image: &str) -> String {
    let untagged = image.split_once('@').map_or(image, |(name, _)| name);
    let tag = untagged.rfind(':').filter(|at| !untagged[*at..].contains('/'));
    let repository = &untagged[..tag.unwrap_or(untagged.len())];
    let (host, path) = match repository.split_once('/') {
        Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => (Some(host), path),
        _ => (None, repository),
    };
    let names_it = |word: &str| {
        // A repository of one word, unquoted and without a tag, is more likely just that word.
        let begins = word.trim_start_matches(['"', '\'', '(']).strip_prefix(path).is_some_and(|rest| {
            path.contains('/') || rest.starts_with(['@', '"', '\'']) || rest.len() > 1 && rest.starts_with(':')
        });
        begins || word.contains(&format!("/{path}")) || host.is_some_and(|host| word.contains(host))
    };
    let rest: Vec<&str> = message.split_whitespace().filter(|word| !names_it(word)).collect();
    rest.join(" ")
}

fn says(message: &str, words: &[&str]) -> bool {
    let message = message.to_ascii_lowercase();
    words.iter().any(|word| message.contains(word))
}

fn crash_message(container: &ContainerStatus, count: i32) -> String {
    let ended = last_ended(container);
    let mut message = format!(
        "container {:?} with image {:?} crashed {}",
        container.name,
        container.image,
        if count == 1 { "once".to_owned() } else { format!("{count} times") },
    );
    if let Some(ended) = ended {
        let when = if count == 1 { "with" } else { "the last time with" };
        message.push_str(&format!(", {when} exit code {}", ended.exit_code));
        if let Some(reason) = ended.reason.as_deref().filter(|reason| !reason.is_empty() && *reason != "Error") {
            message.push_str(&format!(" ({reason})"));
        }
    }
    message
}

#[cfg(test)]
mod tests;
