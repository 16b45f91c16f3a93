//! Revisions as kubectl reads them: which replica set is which, and the annotations that say so.

use crate::{
    owners,
    rollback::{Revision, config},
};
use k8s_openapi::api::core::v1::{PodSpec, PodTemplateSpec};
use proa_apimachinery::template;
use proa_crds::{Deployment, Pod, ReplicaSet, annotations};
use serde_json::{Map, Value};
use std::{collections::BTreeMap, sync::Arc};

/// How long `revision-history` may get, in characters.
const HISTORY_LIMIT: usize = 2000;

/// Annotations of a deployment that are not copied to its replica sets.
const NOT_COPIED: [&str; 8] = [
    annotations::LAST_APPLIED,
    annotations::REVISION,
    annotations::REVISION_HISTORY,
    annotations::DESIRED_REPLICAS,
    annotations::MAX_REPLICAS,
    annotations::DEPRECATED_ROLLBACK_TO,
    // A retry is a wish of one moment; it must not come back with an undo.
    annotations::RETRY,
    annotations::FAILED_REVISIONS,
];

/// The replica sets of one deployment, told apart.
#[derive(Debug)]
pub(super) struct Revisions<'a> {
    /// All of them, oldest first.
    pub(super) all: Vec<&'a ReplicaSet>,
    /// The one with the deployment's template: the oldest, if several match.
    pub(super) new: Option<&'a ReplicaSet>,
    /// All but `new`, oldest first.
    pub(super) old: Vec<&'a ReplicaSet>,
}

impl<'a> Revisions<'a> {
    /// `configuration` is the digest of what the template's ConfigMaps and Secrets hold, where the policy makes a change of it
    /// a revision of its own.
    pub(super) fn of(deployment: &Deployment, sets: &'a [Arc<ReplicaSet>], configuration: Option<&str>) -> Self {
        let mut all: Vec<&ReplicaSet> = sets.iter().map(AsRef::as_ref).collect();
        all.sort_by(|a, b| {
            (&a.metadata.creation_timestamp, &a.metadata.name).cmp(&(&b.metadata.creation_timestamp, &b.metadata.name))
        });
        let template = &deployment.spec.template;
        let same: Vec<&ReplicaSet> = all
            .iter()
            .copied()
            .filter(|set| set.spec.template.as_ref().is_some_and(|of_set| same_template(of_set, template)))
            .collect();
        let new = match configuration {
            Some(configuration) => configured(deployment, &same, configuration),
            // Sets that differ in configuration alone are left from a policy that wanted it so: the last one stays.
            None if same.iter().any(|set| configuration_in(set).is_some()) => {
                same.iter().copied().max_by_key(|set| number(set))
            }
            None => same.first().copied(),
        };
        let old =
            all.iter().copied().filter(|set| new.is_none_or(|new| new.metadata.uid != set.metadata.uid)).collect();
        Revisions { all, new, old }
    }

    /// The old ones, for who does not care what they are.
    pub(super) fn others(&self) -> impl Iterator<Item = Revision<'a>> + use<'a> {
        self.old.clone().into_iter().map(revision)
    }

    /// The replica set of that revision.
    pub(super) fn named(&self, found: Revision<'_>) -> Option<&'a ReplicaSet> {
        self.all.iter().copied().find(|set| name(set) == found.name())
    }

    /// The highest revision number of the old ones.
    pub(super) fn highest_old(&self) -> i64 {
        self.old.iter().map(|set| number(set)).max().unwrap_or(0)
    }

    /// The old one that was current last.
    pub(super) fn latest_old(&self) -> Option<&'a ReplicaSet> {
        self.old.iter().copied().max_by_key(|set| number(set))
    }

    /// Old replica sets that still want pods.
    pub(super) fn active_old(&self) -> impl Iterator<Item = &'a ReplicaSet> {
        self.old.iter().copied().filter(|set| wanted(set) > 0)
    }
}

/// Of the replica sets with the deployment's template the one for that configuration: the one an undo brought, or that was
/// gone back to since the configuration is what it is, or else the oldest that was made for it.
fn configured<'a>(deployment: &Deployment, same: &[&'a ReplicaSet], configuration: &str) -> Option<&'a ReplicaSet> {
    let undone = note(deployment, annotations::REVISION_OF);
    let named = same.iter().find(|set| undone == Some(name(set)));
    let gone_back = || {
        // What was gone back to before the policy came says nothing of what it left.
        let last = same.iter().map(|set| number(set)).max();
        let left = |set: &&&ReplicaSet| match note(**set, annotations::CONFIGURATION_LEFT) {
            Some(left) => left == configuration,
            None => note(**set, annotations::CONFIG_REVISION).is_some() && Some(number(set)) == last,
        };
        same.iter().filter(left).max_by_key(|set| number(set))
    };
    let made_for = || same.iter().find(|set| configuration_of(set).is_none_or(|of_set| of_set == configuration));
    named.or_else(gone_back).or_else(made_for).copied()
}

/// The digest of the configuration in the template of a replica set that was made for it.
pub(super) fn configuration_in(set: &ReplicaSet) -> Option<&str> {
    let notes = set.spec.template.as_ref()?.metadata.as_ref()?.annotations.as_ref()?;
    notes.get(annotations::CONFIGURATION).map(String::as_str)
}

/// The digest of the configuration a replica set runs with, as far as it is known: the name of its copy ends in it.
pub(super) fn configuration_of(set: &ReplicaSet) -> Option<&str> {
    configuration_in(set).or_else(|| config::digest_of_copy(&set.metadata))
}

/// The replica set as a revision among others.
pub(super) fn revision(set: &ReplicaSet) -> Revision<'_> {
    Revision { meta: &set.metadata, number: number(set) }
}

/// The template's pod spec.
pub(super) fn pod_spec(set: &ReplicaSet) -> Option<&PodSpec> {
    set.spec.template.as_ref()?.spec.as_ref()
}

/// The value of an annotation.
pub(super) fn note<'a, K: kube::Resource>(object: &'a K, name: &str) -> Option<&'a str> {
    object.meta().annotations.as_ref()?.get(name).map(String::as_str)
}

/// The revision number of a replica set; 0 when it has none.
pub(super) fn number(set: &ReplicaSet) -> i64 {
    note(set, annotations::REVISION).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// `spec.replicas`, which defaults to 1.
pub(super) fn wanted(set: &ReplicaSet) -> i32 {
    set.spec.replicas.unwrap_or(1)
}

/// The replica set's name.
pub(super) fn name(set: &ReplicaSet) -> &str {
    set.metadata.name.as_deref().unwrap_or_default()
}

/// The pods of a replica set that are not on their way out.
pub(super) fn pods_of<'a>(set: &ReplicaSet, pods: &'a [Arc<Pod>]) -> Vec<&'a Pod> {
    let uid = set.metadata.uid.as_deref().unwrap_or_default();
    let stays = |pod: &&Pod| owners::is_controlled_by(&pod.metadata, uid) && pod.metadata.deletion_timestamp.is_none();
    pods.iter().map(AsRef::as_ref).filter(stays).collect()
}

/// Whether two templates are the same but for what a replica set adds. An absent list or map equals an empty one.
pub(crate) fn same_template(a: &PodTemplateSpec, b: &PodTemplateSpec) -> bool {
    let plain = |of: &PodTemplateSpec| template::plain(crate::patch::json(of));
    // Mostly they are equal as they stand, or differ in the spec; only then is the long way worth it.
    (a.spec == b.spec && a.metadata == b.metadata) || plain(a) == plain(b)
}

/// The template without what a replica set adds: the hash label, and the configuration it was made for.
pub(super) fn without_hash(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    if let Some(meta) = template.metadata.as_mut() {
        if let Some(labels) = meta.labels.as_mut() {
            labels.remove(annotations::POD_TEMPLATE_HASH);
        }
        if let Some(notes) = meta.annotations.as_mut()
            && notes.remove(annotations::CONFIGURATION).is_some()
            && notes.is_empty()
        {
            meta.annotations = None;
        }
    }
    template
}

/// The annotations a replica set with revision `revision` of this deployment must carry: the deployment's own, the
/// revision number, and the numbers it had before. `held` are the ones it has.
pub(super) fn annotations_for(
    deployment: &Deployment,
    held: Option<&BTreeMap<String, String>>,
    revision: i64,
) -> BTreeMap<String, String> {
    let mut wanted = BTreeMap::new();
    for (key, value) in deployment.metadata.annotations.iter().flatten() {
        if !NOT_COPIED.contains(&key.as_str()) && !annotations::REPLICA_SET_ONLY.contains(&key.as_str()) {
            wanted.insert(key.clone(), value.clone());
        }
    }
    let before = held.and_then(|held| held.get(annotations::REVISION));
    let before_number = before.and_then(|text| text.parse::<i64>().ok()).unwrap_or(0);
    if before_number < revision {
        wanted.insert(annotations::REVISION.to_owned(), revision.to_string());
        if let Some(before) = before {
            let history = held.and_then(|held| held.get(annotations::REVISION_HISTORY)).map_or("", String::as_str);
            wanted.insert(annotations::REVISION_HISTORY.to_owned(), longer_history(history, before));
        }
    }
    wanted
}

/// The history with one more number; the oldest are dropped when it gets too long.
fn longer_history(history: &str, number: &str) -> String {
    let mut numbers: Vec<&str> = history.split(',').filter(|number| !number.is_empty()).collect();
    numbers.push(number);
    while numbers.len() > 1 && numbers.iter().map(|number| number.len() + 1).sum::<usize>() > HISTORY_LIMIT + 1 {
        numbers.remove(0);
    }
    numbers.join(",")
}

/// The merge patch of annotations that gives `held` every value of `wanted`; empty when nothing differs.
pub(super) fn annotation_changes(
    held: Option<&BTreeMap<String, String>>,
    wanted: BTreeMap<String, String>,
) -> Map<String, Value> {
    wanted
        .into_iter()
        .filter(|(key, value)| held.and_then(|held| held.get(key)) != Some(value))
        .map(|(key, value)| (key, Value::String(value)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn same(a: Value, b: Value) -> bool {
        let parse = |value| serde_json::from_value(value).expect("a template");
        same_template(&parse(a), &parse(b))
    }

    #[test]
    fn templates_are_compared_without_the_hash_label_and_with_empty_as_absent() {
        let plain = json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c"}]}});
        assert!(same(
            plain.clone(),
            json!({"metadata": {"labels": {"app": "web", "pod-template-hash": "x"}}, "spec": {"containers": [{"name": "c"}]}})
        ));
        assert!(same(
            plain.clone(),
            json!({"metadata": {"labels": {"app": "web"}, "annotations": {}}, "spec": {"containers": [{"name": "c", "env": []}]}})
        ));
        assert!(!same(plain, json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "d"}]}})));
        let dir = |volume: Value| json!({"spec": {"containers": [], "volumes": [volume]}});
        assert!(!same(dir(json!({"name": "v"})), dir(json!({"name": "v", "emptyDir": {}}))));
    }

    #[test]
    fn history_grows_to_its_limit_and_forgets_the_oldest() {
        assert_eq!(longer_history("", "1"), "1");
        assert_eq!(longer_history("1,3", "5"), "1,3,5");
        let long = (1..=1000).fold(String::new(), |history, n| longer_history(&history, &n.to_string()));
        assert!(long.len() <= HISTORY_LIMIT && long.ends_with(",1000"));
    }

    #[test]
    fn a_revision_that_comes_back_gets_a_new_number_and_remembers_the_old_one() {
        let deployment: Deployment = serde_json::from_value(json!({
            "metadata": {"name": "web", "annotations": {
                annotations::CHANGE_CAUSE: "v3", annotations::REVISION: "2", annotations::LAST_APPLIED: "{}", annotations::RETRY: "1",
                annotations::REVISION_OF: "web-1",
            }},
            "spec": {"selector": {}, "template": {}},
        }))
        .expect("a deployment");
        let held = BTreeMap::from([(annotations::REVISION.to_owned(), "1".to_owned())]);
        let wanted = annotations_for(&deployment, Some(&held), 3);
        let expected =
            [(annotations::CHANGE_CAUSE, "v3"), (annotations::REVISION, "3"), (annotations::REVISION_HISTORY, "1")];
        assert_eq!(wanted, expected.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
        assert_eq!(annotations_for(&deployment, Some(&held), 1).len(), 1);
    }
}
