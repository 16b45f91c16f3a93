//! The rolling part of a plan: create, resize, mark, clean up.

use super::{
    hash::template_hash,
    plan::{Action, Planner},
    revisions::{
        annotation_changes, annotations_for, configuration_in, name, note, number, pod_spec, pods_of, revision, wanted,
        without_hash,
    },
    scale::{self, Share, Size, fence, replicas},
    status,
};
use crate::{
    events::Kind,
    owners, pods,
    rollback::{
        applied, config, marks, policy,
        steps::{self, Pace},
    },
};
use k8s_openapi::api::apps::v1::ReplicaSetSpec;
use kube::core::{ObjectMeta, TypeMeta};
use proa_crds::{Deployment, Family, ReplicaSet, annotations, conditions, reasons};
use serde_json::{Map, Value, json};
use std::{cmp::Reverse, collections::BTreeMap, time::Duration};

impl<'a> Planner<'a> {
    pub(super) fn roll(&mut self) {
        let deployment = self.deployment;
        if deployment.spec.paused == Some(true) || self.is_resized() || self.stands_still() {
            // A failed revision is not rolled out after the pause either: it gets no number.
            if self.held_back().is_none() && self.tend_new() {
                return;
            }
            self.scale();
            let mut status = status::calculate(deployment, &self.revisions, self.now);
            status::pause(deployment, &mut status, self.now);
            if deployment.spec.paused == Some(true) {
                self.clean_up();
            }
            self.write_status(&status);
            return;
        }
        let moved = if scale::recreates(deployment) { self.recreate() } else { self.update() };
        let Some(moved) = moved else { return };
        let mut status = status::calculate(deployment, &self.revisions, self.now);
        status::pause(deployment, &mut status, self.now);
        // While a step of the policy waits, nothing is to move.
        if !matches!(self.pace(), Pace::Waiting(..))
            && let Some(delay) = status::progress(deployment, &self.revisions, &mut status, self.now)
        {
            self.plan.look_again(delay);
        }
        self.write_status(&status);
        if !moved && status::is_complete(deployment, &status) {
            self.mark_healthy();
            self.clean_up();
        }
    }

    /// Whether the deployment's size changed since its replica sets were sized.
    fn is_resized(&self) -> bool {
        let total = replicas(self.deployment);
        let desired =
            |set: &ReplicaSet| note(set, annotations::DESIRED_REPLICAS).and_then(|text| text.parse::<i32>().ok());
        let active: Vec<_> = self.revisions.all.iter().filter(|set| wanted(set) > 0).collect();
        // A recreation has one active replica set; several are left by a rolling update it replaced, and go as old ones.
        if scale::recreates(self.deployment) && active.len() > 1 {
            return false;
        }
        active.iter().any(|set| desired(set).is_some_and(|desired| desired != total))
    }

    /// Keeps the new replica set's annotations and the deployment's revision number up to date. Whether there was
    /// something to do.
    fn tend_new(&mut self) -> bool {
        let Some(new) = self.revisions.new else { return false };
        let revision = self.revisions.highest_old() + 1;
        let held = new.metadata.annotations.as_ref();
        let mut wanted = annotations_for(self.deployment, held, revision);
        wanted.extend(self.records(name(new)));
        let mut changes = annotation_changes(held, wanted);
        // After an undo the deployment gets its settings back from here: one taken away must not come back.
        for key in annotations::SETTINGS {
            if note(new, key).is_some() && note(self.deployment, key).is_none() {
                changes.insert(key.to_owned(), Value::Null);
            }
        }
        let comes_back = number(new) < revision;
        if comes_back {
            self.spend_retry();
        }
        // What it was made for is live again.
        let fits = self.configuration.is_some() && configuration_in(new) == self.configuration.as_deref();
        if comes_back || fits || !config::is_on(&self.deployment.metadata) {
            // A rollout to an earlier template is a rollout: live configuration again, and its steps from the first.
            let of_a_rollout = [annotations::CONFIG_REVISION, annotations::CONFIGURATION_LEFT];
            let step = Some(annotations::STEP).filter(|_| comes_back);
            for key in of_a_rollout.into_iter().chain(step).filter(|key| note(new, key).is_some()) {
                changes.insert(key.to_owned(), Value::Null);
            }
        }
        let pinned = note(new, annotations::CONFIG_REVISION).is_some() && !comes_back && !fits;
        if let Some(left) = self.configuration.as_ref().filter(|_| pinned)
            && note(new, annotations::CONFIGURATION_LEFT).is_none()
        {
            changes.insert(annotations::CONFIGURATION_LEFT.to_owned(), json!(left));
        }
        let mut patch = Map::new();
        if !changes.is_empty() {
            patch.insert("metadata".to_owned(), json!({"annotations": changes}));
        }
        if new.spec.min_ready_seconds.unwrap_or(0) != self.deployment.spec.min_ready_seconds.unwrap_or(0) {
            patch.insert(
                "spec".to_owned(),
                json!({"minReadySeconds": self.deployment.spec.min_ready_seconds.unwrap_or(0)}),
            );
        }
        if !patch.is_empty() {
            self.act(Action::PatchSet { name: name(new).to_owned(), patch: Value::Object(patch) });
        }
        let mut status = self.deployment.status.clone().unwrap_or_default();
        if comes_back {
            status::end_of_going_back(&mut status, self.now);
        }
        if status::has_deadline(self.deployment) && status::condition(&status, conditions::PROGRESSING).is_none() {
            let message = format!("Found new replica set {:?}", name(new));
            status::set(
                &mut status,
                status::make(conditions::PROGRESSING, "True", reasons::FOUND_REPLICA_SET, message, self.now),
            );
        }
        if status != self.deployment.status.clone().unwrap_or_default() {
            self.write_status(&status);
        }
        let revision = revision.max(number(new)).to_string();
        if note(self.deployment, annotations::REVISION) != Some(&revision) {
            self.act(Action::Patch(json!({"metadata": {"annotations": {annotations::REVISION: revision}}})));
        }
        !self.plan.actions.is_empty()
    }

    /// What is recorded on the current replica set for the day someone goes back to it.
    fn records(&self, set_name: &str) -> BTreeMap<String, String> {
        let mut records = BTreeMap::from([(annotations::REVISION_OF.to_owned(), set_name.to_owned())]);
        if let Some(applied) =
            note(self.deployment, annotations::LAST_APPLIED).filter(|applied| applied.len() <= applied::RECORD_LIMIT)
        {
            records.insert(annotations::APPLIED_CONFIGURATION.to_owned(), applied.to_owned());
        }
        if let Some(owned) = self.deployment.metadata.managed_fields.as_deref().and_then(applied::record) {
            records.insert(annotations::APPLIED_FIELDS.to_owned(), owned);
        }
        records
    }

    fn create(&mut self) {
        self.spend_retry();
        let deployment = self.deployment;
        let revision = self.revisions.highest_old() + 1;
        let everyone: i32 = self.revisions.all.iter().map(|set| wanted(set)).sum();
        let total = replicas(deployment);
        let size = if scale::recreates(deployment) {
            total
        } else {
            scale::grown(0, everyone, total, fence(deployment).surge).min(self.first_step(total))
        };
        self.keep_what_runs();
        let mut set = new_replica_set(deployment, self.seen.family, size, revision, self.configuration.as_deref());
        let set_name = name(&set).to_owned();
        let records = self.records(&set_name);
        set.metadata.annotations.get_or_insert_default().extend(records);
        self.act(Action::Create(Box::new(set)));
        if size > 0 {
            self.note(
                Kind::Normal,
                reasons::SCALING_REPLICA_SET,
                format!("Scaled up replica set {set_name} from 0 to {size}"),
            );
        }
        if note(deployment, annotations::REVISION) != Some(&revision.to_string()) {
            self.act(Action::Patch(
                json!({"metadata": {"annotations": {annotations::REVISION: revision.to_string()}}}),
            ));
        }
        let mut status = status::calculate(deployment, &self.revisions, self.now);
        status::end_of_going_back(&mut status, self.now);
        if status::has_deadline(deployment) {
            let message = format!("Created new replica set {set_name:?}");
            status::unset(&mut status, conditions::PROGRESSING);
            status::set(
                &mut status,
                status::make(conditions::PROGRESSING, "True", reasons::NEW_REPLICA_SET, message, self.now),
            );
        }
        self.write_status(&status);
    }

    /// A step of a rolling update. `None`: the step writes the status itself. Otherwise whether sizes changed.
    fn update(&mut self) -> Option<bool> {
        let Some(new) = self.revisions.new else {
            self.create();
            return None;
        };
        if self.tend_new() {
            return None;
        }
        let total = replicas(self.deployment);
        let fence = fence(self.deployment);
        let limit = match self.pace() {
            Pace::Free => total,
            Pace::UpTo(limit) => limit,
            Pace::Waiting(limit, left) => {
                self.plan.look_again(left);
                limit
            }
            Pace::Record(position) => {
                self.next_step(new, position);
                return None;
            }
        };
        let everyone: i32 = self.revisions.all.iter().map(|set| wanted(set)).sum();
        let grown = scale::grown(wanted(new), everyone, total, fence.surge);
        let size = if wanted(new) > total { total } else { grown.min(limit).max(wanted(new)) };
        if self.resize(new, size) {
            return Some(true);
        }
        // A set that was resized and has not counted since may count pods that are about to go. Taking another's away on
        // that word could leave too few: wait for its count, which wakes us.
        if self.revisions.all.iter().any(|set| wanted(set) > 0 && !has_counted(set)) {
            return Some(true);
        }
        let old: Vec<Size> = self.revisions.old.iter().map(|set| size_of(set)).collect();
        let held: Vec<i32> = old.iter().map(|size| size.wanted).collect();
        let sizes = steps::kept(scale::shrunk(&old, size_of(new), total, fence.unavailable), &held, total, limit);
        let mut moved = false;
        for (set, size) in self.revisions.old.clone().into_iter().zip(sizes) {
            if size != wanted(set) {
                moved |= self.resize(set, size);
            }
        }
        Some(moved)
    }

    /// A step of a recreation: every old pod is gone before the first new one comes.
    fn recreate(&mut self) -> Option<bool> {
        let active: Vec<_> = self.revisions.active_old().collect();
        let mut moved = false;
        for set in active {
            moved |= self.resize(set, 0);
        }
        if moved {
            return Some(true);
        }
        let new_uid = self.revisions.new.and_then(|set| set.metadata.uid.as_deref());
        let old_pods = self.seen.pods.iter().any(|pod| {
            !pods::is_over(pod) && owners::controller_of(&pod.metadata).map(|owner| owner.uid.as_str()) != new_uid
        });
        let old_counted =
            self.revisions.old.iter().filter_map(|set| set.status.as_ref()).any(|status| status.replicas > 0);
        if old_pods || old_counted {
            return Some(false);
        }
        let Some(new) = self.revisions.new else {
            self.create();
            return None;
        };
        if self.tend_new() {
            return None;
        }
        Some(self.resize(new, replicas(self.deployment)))
    }

    /// Brings the replica sets to the deployment's own size, without rolling.
    fn scale(&mut self) {
        let total = replicas(self.deployment);
        let active: Vec<_> =
            self.revisions.active_old().chain(self.revisions.new.filter(|set| wanted(set) > 0)).collect();
        let alone = match active.as_slice() {
            [] => self.revisions.new.or_else(|| self.revisions.old.iter().copied().max_by_key(|set| number(set))),
            [one] => Some(*one),
            _ => None,
        };
        if let Some(set) = alone {
            self.resize(set, total);
            return;
        }
        if self.revisions.new.is_some_and(|new| {
            let size = size_of(new);
            let desired = note(new, annotations::DESIRED_REPLICAS).and_then(|text| text.parse::<i32>().ok());
            size.wanted == total && size.available == total && desired == Some(total)
        }) {
            for set in self.revisions.active_old().collect::<Vec<_>>() {
                self.resize(set, 0);
            }
            return;
        }
        if scale::recreates(self.deployment) {
            return;
        }
        let surge = fence(self.deployment).surge;
        let allowed = if total > 0 { total.saturating_add(surge) } else { 0 };
        let growing = allowed > active.iter().map(|set| wanted(set)).sum::<i32>();
        let mut active = active;
        active.sort_by(|a, b| {
            let age = a
                .metadata
                .creation_timestamp
                .cmp(&b.metadata.creation_timestamp)
                .then_with(|| a.metadata.name.cmp(&b.metadata.name));
            Reverse(wanted(a)).cmp(&Reverse(wanted(b))).then(if growing { age.reverse() } else { age })
        });
        let max_before = |set: &ReplicaSet| note(set, annotations::MAX_REPLICAS).and_then(|text| text.parse().ok());
        let shares: Vec<_> =
            active.iter().map(|set| Share { wanted: wanted(set), max_before: max_before(set) }).collect();
        let status_replicas = self.deployment.status.as_ref().and_then(|status| status.replicas).unwrap_or(0);
        for (set, size) in active.into_iter().zip(scale::proportional(&shares, total, surge, status_replicas)) {
            self.resize(set, size);
        }
    }

    /// Gives a replica set its size, and the annotations that say for which size of the deployment. Whether the size
    /// changed.
    fn resize(&mut self, set: &ReplicaSet, size: i32) -> bool {
        let from = wanted(set);
        let changes = annotation_changes(set.metadata.annotations.as_ref(), sizes_of(self.deployment));
        if from == size && changes.is_empty() {
            return false;
        }
        let mut patch = json!({"metadata": {"annotations": changes}});
        if from != size
            && let Some(patch) = patch.as_object_mut()
        {
            patch.insert("spec".to_owned(), json!({"replicas": size}));
        }
        self.act(Action::PatchSet { name: name(set).to_owned(), patch });
        if from != size {
            let way = if size > from { "up" } else { "down" };
            self.note(
                Kind::Normal,
                reasons::SCALING_REPLICA_SET,
                format!("Scaled {way} replica set {} from {from} to {size}", name(set)),
            );
        }
        from != size
    }

    /// How far the policy lets the rollout go now. What has proven itself, and what replaces nothing, may go all the way.
    fn pace(&self) -> Pace {
        let (Some(new), Some(policy)) = (self.revisions.new, &self.seen.policy) else { return Pace::Free };
        let replaces = self.revisions.active_old().next().is_some();
        if !replaces || marks::is_healthy(&new.metadata) || scale::recreates(self.deployment) {
            return Pace::Free;
        }
        let recorded = note(new, annotations::STEP);
        steps::pace(&policy.steps, recorded, replicas(self.deployment), size_of(new).available, self.now)
    }

    /// How many pods a revision that replaces others begins with at most.
    fn first_step(&self, total: i32) -> i32 {
        let steps = self.seen.policy.as_ref().map_or(&[][..], |policy| policy.steps.as_slice());
        match steps::pace(steps, None, total, 0, self.now) {
            Pace::UpTo(limit) if self.revisions.active_old().next().is_some() => limit,
            _ => total,
        }
    }

    /// Takes down which step the rollout has reached. The deadline runs from here.
    fn next_step(&mut self, new: &ReplicaSet, position: String) {
        self.annotate_set(name(new), json!({annotations::STEP: position}));
        let mut status = status::calculate(self.deployment, &self.revisions, self.now);
        if status::has_deadline(self.deployment) {
            let message = format!("ReplicaSet {:?} is progressing.", name(new));
            status::unset(&mut status, conditions::PROGRESSING);
            status::set(
                &mut status,
                status::make(conditions::PROGRESSING, "True", reasons::REPLICA_SET_UPDATED, message, self.now),
            );
        }
        self.write_status(&status);
    }

    /// Where a change of configuration is a rollout, the pods it replaces go on with what they had.
    fn keep_what_runs(&mut self) {
        if self.configuration.is_none() {
            return;
        }
        let unpinned = |set: &&ReplicaSet| note(*set, annotations::CONFIG_REVISION).is_none();
        for set in self.revisions.active_old().filter(unpinned).collect::<Vec<_>>() {
            if let Some(secret) = config::pin(&set.metadata, pod_spec(set), &self.seen.live) {
                self.annotate_set(name(set), json!({annotations::CONFIG_REVISION: secret}));
            }
        }
    }

    /// The rollout is complete: the revision has done well. One that was found failing and not taken back has to do so for
    /// as long as any is watched.
    fn mark_healthy(&mut self) {
        let Some(new) = self.revisions.new else { return };
        if replicas(self.deployment) == 0 || note(new, annotations::HEALTHY).is_some() {
            return;
        }
        if note(new, annotations::FAILURE).is_some()
            && let Some(policy) = &self.seen.policy
        {
            let ready = pods_of(new, &self.seen.pods).into_iter().map(pods::ready_since).collect::<Option<Vec<_>>>();
            let Some(since) = ready.and_then(|ready| ready.into_iter().max()) else { return };
            let stood = Duration::try_from(self.now.duration_since(since)).unwrap_or_default();
            if let Some(left) = policy::soak(policy).checked_sub(stood).filter(|left| !left.is_zero()) {
                self.plan.look_again(left);
                return;
            }
        }
        self.annotate_set(name(new), marks::healthy_since(self.now));
    }

    /// The revision to go back to should the new one, which has yet to prove itself, fail.
    fn fallback(&mut self) -> Option<&'a str> {
        let (new, policy) = (self.revisions.new?, self.seen.policy.as_ref()?);
        if marks::is_healthy(&new.metadata) {
            self.plan.look_again(marks::soak_left(&new.metadata, policy::soak(policy), self.now)?);
        }
        self.last_healthy().map(name)
    }

    /// Deletes what is beyond the history limit, oldest first. The last failed revision stays: it must stay known.
    fn clean_up(&mut self) {
        let Some(limit) = self.deployment.spec.revision_history_limit else { return };
        let fallback = self.fallback();
        let remembered = marks::last_failed(self.revisions.others()).map(|(failed, _)| failed.name());
        let mut old: Vec<_> = self
            .revisions
            .old
            .iter()
            .copied()
            .filter(|set| {
                set.metadata.deletion_timestamp.is_none() && ![remembered, fallback].contains(&Some(name(set)))
            })
            .collect();
        old.sort_by_key(|set| number(set));
        let surplus = old.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
        for set in old.into_iter().take(surplus) {
            let counted = set.status.as_ref().map_or(0, |status| status.replicas);
            let observed = set.status.as_ref().and_then(|status| status.observed_generation).unwrap_or(0);
            if counted != 0 || wanted(set) != 0 || set.metadata.generation.unwrap_or(0) > observed {
                continue;
            }
            self.act(Action::DeleteSet {
                name: name(set).to_owned(),
                uid: set.metadata.uid.clone().unwrap_or_default(),
            });
        }
    }

    /// Says that the current revision's configuration is too large to be kept, or no longer is. In a plan of its own: the
    /// rest of the status is not to be overwritten.
    fn too_much_configuration(&mut self, found: Option<(&ReplicaSet, usize)>) {
        if !self.plan.actions.is_empty() {
            return;
        }
        let mut status = self.deployment.status.clone().unwrap_or_default();
        match found {
            Some((set, size)) => {
                let message = format!(
                    "the ConfigMaps and Secrets of revision {} hold {size} bytes, more than the {} that can be kept with it: after going back to it, its pods read the live objects",
                    number(set),
                    config::SIZE_LIMIT,
                );
                let held = status::condition(&status, conditions::CONFIG_REVISION);
                if held.is_none_or(|held| held.reason.as_deref() != Some(reasons::TOO_LARGE)) {
                    self.note(Kind::Warning, reasons::CONFIGURATION_TOO_LARGE, message.clone());
                }
                status::set(
                    &mut status,
                    status::make(conditions::CONFIG_REVISION, "False", reasons::TOO_LARGE, message, self.now),
                );
            }
            None => {
                let held = status::condition(&status, conditions::CONFIG_REVISION);
                if held.is_some_and(|held| held.reason.as_deref() == Some(reasons::TOO_LARGE)) {
                    status::unset(&mut status, conditions::CONFIG_REVISION);
                }
            }
        }
        if self.deployment.status.as_ref().is_some_and(|held| *held != status) {
            self.write_status(&status);
        }
    }

    /// The copy of the current revision's configuration, and those nobody needs any longer.
    pub(super) fn keep_config(&mut self) {
        let Some(new) = self.revisions.new.filter(|_| config::is_on(&self.deployment.metadata)) else { return };
        let pods = pods_of(new, &self.seen.pods);
        let of = self.deployment.metadata.name.as_deref().unwrap_or_default();
        let mut owner = owners::controller_reference(new, &self.seen.family.replica_set());
        (owner.controller, owner.block_owner_deletion) = (None, None);
        match config::keep(of, &new.metadata, pod_spec(new), owner, &self.seen.live, &pods, self.now) {
            config::Keep::Nothing => self.too_much_configuration(None),
            config::Keep::TooLarge(size) => self.too_much_configuration(Some((new, size))),
            config::Keep::Wait(delay) => self.plan.look_again(delay.max(Duration::from_millis(1))),
            config::Keep::Write(secret) => {
                let copy = secret.metadata.name.clone();
                self.act(Action::KeepConfig(secret));
                self.annotate_set(name(new), json!({annotations::CONFIG_COPY: copy}));
                return;
            }
        }
        if self.plan.actions.is_empty() {
            let revisions: Vec<_> = self.revisions.all.iter().copied().map(revision).collect();
            for (secret, owner) in config::left_behind(&revisions, &self.seen.live.secrets) {
                self.act(Action::DropConfig { secret: Box::new(secret.clone()), owner: owner.to_owned() });
            }
        }
    }
}

/// Whether the status of a replica set was written after its spec last changed.
fn has_counted(set: &ReplicaSet) -> bool {
    let observed = set.status.as_ref().and_then(|status| status.observed_generation).unwrap_or(0);
    set.metadata.generation.is_none_or(|generation| observed >= generation)
}

/// A set just made smaller may still count pods that are about to go: no more of them are available than wanted.
fn size_of(set: &ReplicaSet) -> Size {
    let available = set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0);
    Size { wanted: wanted(set), available: available.min(wanted(set)) }
}

/// The annotations that say for which size of the deployment a replica set was sized.
fn sizes_of(deployment: &Deployment) -> BTreeMap<String, String> {
    let total = replicas(deployment);
    let max = total.saturating_add(fence(deployment).surge);
    [(annotations::DESIRED_REPLICAS, total), (annotations::MAX_REPLICAS, max)]
        .map(|(key, value)| (key.to_owned(), value.to_string()))
        .into()
}

/// The replica set of the deployment's template.
fn new_replica_set(
    deployment: &Deployment,
    family: Family,
    size: i32,
    revision: i64,
    configuration: Option<&str>,
) -> ReplicaSet {
    let collisions = deployment.status.as_ref().and_then(|status| status.collision_count);
    let mut template = without_hash(&deployment.spec.template);
    if let Some(configuration) = configuration {
        let notes = template.metadata.get_or_insert_default().annotations.get_or_insert_default();
        notes.insert(annotations::CONFIGURATION.to_owned(), configuration.to_owned());
    }
    let hash = template_hash(&template, collisions);
    let meta = template.metadata.get_or_insert_default();
    let labels = meta.labels.get_or_insert_default();
    labels.insert(annotations::POD_TEMPLATE_HASH.to_owned(), hash.clone());
    let labels = labels.clone();
    let mut selector = deployment.spec.selector.clone();
    selector.match_labels.get_or_insert_default().insert(annotations::POD_TEMPLATE_HASH.to_owned(), hash.clone());
    let mut notes = annotations_for(deployment, None, revision);
    notes.extend(sizes_of(deployment));
    let resource = family.replica_set();
    ReplicaSet {
        types: Some(TypeMeta { api_version: resource.api_version, kind: resource.kind }),
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", deployment.metadata.name.as_deref().unwrap_or_default())),
            namespace: deployment.metadata.namespace.clone(),
            labels: Some(labels),
            annotations: Some(notes),
            owner_references: Some(vec![owners::controller_reference(deployment, &family.deployment())]),
            ..Default::default()
        },
        spec: ReplicaSetSpec {
            replicas: Some(size),
            min_ready_seconds: deployment.spec.min_ready_seconds.filter(|seconds| *seconds != 0),
            selector,
            template: Some(template),
        },
        status: None,
    }
}
