//! The loop over claims and volumes: what it sees of them, and how it writes. Claims have their own keys; volumes, which
//! are in no namespace, have theirs.

use super::{
    Action, SELECTED_NODE, Said, claim,
    facts::{
        annotation, claims_of, class_of_claim, class_of_volume, is_bound, is_default, is_deleting, volume_name,
        volume_spec, waits_for_consumer,
    },
    volume,
};
use crate::{
    ActError, Context, Informer, Key, Loop, Plan, Queue, Writes,
    events::{Note, Recorder},
    patch::{MANAGER, params},
};
use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeClaim},
    storage::v1::StorageClass,
};
use kube::{
    ResourceExt,
    api::{DeleteParams, ListParams, Patch, PostParams, Preconditions},
};
use parking_lot::Mutex;
use proa_crds::{
    Decoded, Encoded, Node, Pod,
    annotations::{HOSTNAME, LOCAL_PROVISIONER, VOLUMES},
};
use std::{collections::HashMap, sync::Arc};

const COMPONENT: &str = "persistentvolume-controller";

/// Claims that are not bound, by the class they ask for; volumes, by theirs.
const BY_CLASS: &str = "class";
/// Pods and volumes, by the claim they name.
const BY_CLAIM: &str = "claim";
/// Claims, by the volume they name.
const BY_VOLUME: &str = "volume";
/// Volumes, by the node they lie on.
const BY_HOST: &str = "host";
/// In [`BY_CLASS`]: leaves it to the default. No class is called so.
const THE_DEFAULT: &str = "*";

/// The loop.
pub struct PersistentVolumes {
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    classes: Informer<StorageClass>,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    recorder: Recorder,
    said: Mutex<HashMap<Key, Said>>,
}

impl PersistentVolumes {
    /// The loop of a cluster.
    pub fn new(context: &Context) -> Self {
        PersistentVolumes {
            claims: context.informers.of(),
            volumes: context.informers.of(),
            classes: context.informers.of(),
            nodes: context.informers.of_resource(context.family.node()),
            pods: context.informers.of_resource(context.family.pod()),
            recorder: context.recorder.clone(),
            said: Mutex::default(),
        }
    }

    fn default_class(&self) -> Option<String> {
        let defaults = self.classes.list().into_iter().filter(|class| is_default(class));
        // The youngest, as admission chooses.
        let youngest = defaults.max_by(|a, b| {
            let since = |class: &StorageClass| class.metadata.creation_timestamp.as_ref().map(|time| time.0);
            since(a).cmp(&since(b)).then_with(|| b.name_any().cmp(&a.name_any()))
        });
        youngest.map(|class| class.name_any())
    }

    fn see_claim(&self, key: &Key) -> Option<claim::Seen> {
        let claim = self.claims.get(key)?;
        let class_name = class_of_claim(&claim);
        let class = class_name.filter(|name| !name.is_empty()).and_then(|name| self.classes.get(&Key::new("", name)));
        let (mut candidates, mut nodes) = (Vec::new(), Vec::new());
        if !is_bound(&claim) && volume_name(&claim).is_empty() && !is_deleting(claim.as_ref()) {
            candidates = self.volumes.by_index(BY_CLAIM, &key.to_string());
            candidates.extend(self.volumes.by_index(BY_CLASS, class_name.unwrap_or_default()));
            if let Some(class) = class.as_ref().filter(|class| class.provisioner == LOCAL_PROVISIONER) {
                nodes = self.see_nodes(&claim, class);
            }
        }
        Some(claim::Seen {
            default_class: if class_name.is_none() { self.default_class() } else { None },
            volume: self.volumes.get(&Key::new("", volume_name(&claim))),
            pods: self.pods.by_index(BY_CLAIM, &key.to_string()),
            said: self.said.lock().get(key).cloned(),
            claim,
            class,
            candidates,
            nodes,
        })
    }

    /// The node that was chosen for the claim; where nobody is to choose, all of them.
    fn see_nodes(&self, claim: &PersistentVolumeClaim, class: &StorageClass) -> Vec<(Arc<Node>, usize)> {
        let laden = |node: Arc<Node>| {
            let count = self.volumes.by_index(BY_HOST, host_of(&node)).len();
            (node, count)
        };
        match annotation(claim, SELECTED_NODE) {
            Some(name) => self.nodes.get(&Key::new("", name)).map(laden).into_iter().collect(),
            None if waits_for_consumer(class) => Vec::new(),
            None => self.nodes.list().into_iter().map(laden).collect(),
        }
    }

    fn see_volume(&self, key: &Key) -> Option<volume::Seen> {
        let volume = self.volumes.get(key)?;
        let has_node = match volume.labels().get(HOSTNAME) {
            Some(host) if is_deleting(volume.as_ref()) => self.nodes.list().iter().any(|node| host_of(node) == host),
            _ => true,
        };
        let claim = claim_of(&volume).and_then(|key| self.claims.get(&key));
        Some(volume::Seen { claim, has_node, said: self.said.lock().get(key).cloned(), volume })
    }

    fn note(&self, key: &Key, note: Note) {
        self.said.lock().insert(key.clone(), (note.reason, note.message.clone()));
        if let Some(claim) = self.claims.get(key) {
            self.recorder.note(COMPONENT, &self.claims.resource(), claim.as_ref(), note);
        } else if let Some(volume) = self.volumes.get(key) {
            self.recorder.note(COMPONENT, &self.volumes.resource(), volume.as_ref(), note);
        }
    }

    async fn create(&self, volume: &PersistentVolume, writes: &Writes) -> Result<(), ActError> {
        let post = PostParams { field_manager: Some(MANAGER.to_owned()), dry_run: false };
        match self.volumes.cluster_api().create(&post, volume).await {
            Ok(made) => writes.wrote(&self.volumes, &made),
            // Made in an earlier life and not yet seen: the name is the claim's own.
            Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {
                writes.wrote(&self.volumes, &self.volumes.cluster_api().get(&volume.name_any()).await?);
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    async fn confirm_unused(&self, key: &Key) -> Result<(), ActError> {
        let Some(claim) = self.claims.get(key) else { return Err(ActError::Gone(key.to_string())) };
        let pods: kube::Api<Encoded> =
            kube::Api::namespaced_with(self.pods.cluster_api().into_client(), &key.namespace, &self.pods.resource());
        for pod in pods.list(&ListParams::default()).await? {
            match pod.decode::<Pod>() {
                Decoded::Object(pod) if !claim::uses(&pod, &claim) => {}
                // What cannot be read may be using it.
                _ => return Err(ActError::Conflict(format!("{key} is in use after all"))),
            }
        }
        Ok(())
    }
}

/// A node's name as volumes know it.
fn host_of(node: &Node) -> &str {
    let label = node.metadata.labels.as_ref().and_then(|labels| labels.get(HOSTNAME));
    label.or(node.metadata.name.as_ref()).map_or("", String::as_str)
}

/// The claim a volume points to.
fn claim_of(volume: &PersistentVolume) -> Option<Key> {
    let reference = volume_spec(volume).claim_ref.as_ref()?;
    Some(Key::new(reference.namespace.as_deref()?, reference.name.as_deref()?))
}

fn namespaced(pod: &Pod, claim: &str) -> String {
    Key::new(pod.metadata.namespace.as_deref().unwrap_or_default(), claim).to_string()
}

/// What of a node decides whether it gets volumes.
fn offers(node: &Node) -> impl PartialEq {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    let ready = conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
    (node.metadata.labels.clone(), annotation(node, VOLUMES).map(str::to_owned), node.spec.unschedulable, ready)
}

/// A claim, or a volume.
#[derive(Debug)]
pub enum Seen {
    /// A claim.
    Claim(Box<claim::Seen>),
    /// A volume.
    Volume(Box<volume::Seen>),
}

impl Loop for PersistentVolumes {
    type Seen = Seen;
    type Action = Action;

    fn name(&self) -> &'static str {
        "persistent-volumes"
    }

    fn wire(&self, queue: &Queue) {
        self.claims.add_index(BY_CLASS, |claim| {
            if is_bound(claim) {
                return Vec::new();
            }
            vec![class_of_claim(claim).unwrap_or(THE_DEFAULT).to_owned()]
        });
        self.claims.add_index(BY_VOLUME, |claim| vec![volume_name(claim).to_owned()]);
        self.volumes.add_index(BY_CLASS, |volume| match volume_spec(volume).claim_ref {
            None => vec![class_of_volume(volume).to_owned()],
            Some(_) => Vec::new(),
        });
        self.volumes.add_index(BY_CLAIM, |volume| claim_of(volume).map(|key| key.to_string()).into_iter().collect());
        self.volumes.add_index(BY_HOST, |volume| volume.labels().get(HOSTNAME).cloned().into_iter().collect());
        self.pods.add_index(BY_CLAIM, |pod| claims_of(pod).map(|(name, _)| namespaced(pod, &name)).collect());

        let to = queue.clone();
        self.claims.on_change(move |change| {
            to.add(change.key.clone());
            for claim in change.states().filter(|claim| !volume_name(claim).is_empty()) {
                to.add(Key::new("", volume_name(claim)));
            }
        });
        // A claim that is gone has left volumes that point to it and that it never pointed to.
        let (to, volumes) = (queue.clone(), self.volumes.clone());
        self.claims.on_change(move |change| {
            if change.new.is_none() {
                volumes.by_index(BY_CLAIM, &change.key.to_string()).iter().for_each(|v| to.add(Key::of(v.as_ref())));
            }
        });
        let (to, claims) = (queue.clone(), self.claims.clone());
        self.volumes.on_change(move |change| {
            to.add(change.key.clone());
            change.states().filter_map(|volume| claim_of(volume)).for_each(|key| to.add(key));
            let Some(volume) = &change.new else { return };
            if volume_spec(volume).claim_ref.is_none() {
                let class = class_of_volume(volume);
                let waiting = claims.by_index(BY_CLASS, class).into_iter();
                let by_name = if class.is_empty() { claims.by_index(BY_CLASS, THE_DEFAULT) } else { Vec::new() };
                waiting.chain(by_name).for_each(|claim| to.add(Key::of(claim.as_ref())));
            }
        });
        // A user may name the volume before there is one.
        let (to, claims) = (queue.clone(), self.claims.clone());
        self.volumes.on_change(move |change| {
            if change.old.is_none() || change.new.is_none() {
                let named = claims.by_index(BY_VOLUME, &change.key.name);
                named.iter().for_each(|claim| to.add(Key::of(claim.as_ref())));
            }
        });
        let (to, claims) = (queue.clone(), self.claims.clone());
        self.classes.on_change(move |change| {
            for class in [&*change.key.name, THE_DEFAULT] {
                claims.by_index(BY_CLASS, class).iter().for_each(|claim| to.add(Key::of(claim.as_ref())));
            }
        });
        let (to, claims, volumes, classes) =
            (queue.clone(), self.claims.clone(), self.volumes.clone(), self.classes.clone());
        self.nodes.on_change(move |change| {
            match (&change.old, &change.new) {
                (Some(old), Some(new)) if offers(old) == offers(new) => return,
                (_, None) => {
                    let left = change.old.as_ref().map(|node| volumes.by_index(BY_HOST, host_of(node)));
                    left.iter().flatten().for_each(|volume| to.add(Key::of(volume.as_ref())));
                }
                _ => {}
            }
            for class in classes.list().iter().filter(|class| class.provisioner == LOCAL_PROVISIONER) {
                let waiting = claims.by_index(BY_CLASS, &class.name_any());
                waiting.iter().for_each(|claim| to.add(Key::of(claim.as_ref())));
            }
        });
        let (to, claims) = (queue.clone(), self.claims.clone());
        self.pods.on_change(move |change| {
            for pod in change.states() {
                for (name, _) in claims_of(pod) {
                    let key = Key::new(&change.key.namespace, &name);
                    // A bound claim that stays does not care who uses it.
                    if claims.get(&key).is_some_and(|claim| is_deleting(claim.as_ref()) || !is_bound(&claim)) {
                        to.add(key);
                    }
                }
            }
        });
    }

    fn ready(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            tokio::join!(
                self.claims.synced(),
                self.volumes.synced(),
                self.classes.synced(),
                self.nodes.synced(),
                self.pods.synced()
            );
        })
    }

    fn see(&self, key: &Key) -> Option<Seen> {
        let seen = if key.namespace.is_empty() {
            self.see_volume(key).map(|seen| Seen::Volume(Box::new(seen)))
        } else {
            self.see_claim(key).map(|seen| Seen::Claim(Box::new(seen)))
        };
        if seen.is_none() {
            self.said.lock().remove(key);
        }
        seen
    }

    fn plan(&self, seen: &Seen, now: Timestamp) -> Plan<Action> {
        match seen {
            Seen::Claim(seen) => claim::plan(seen),
            Seen::Volume(seen) => volume::plan(seen, now),
        }
    }

    async fn act(&self, key: &Key, action: Action, writes: &Writes) -> Result<(), ActError> {
        let (claims, volumes) = (self.claims.api(&key.namespace), self.volumes.cluster_api());
        match action {
            Action::PatchClaim(patch) => {
                let written = claims.patch(&key.name, &params(), &Patch::Merge(patch)).await?;
                if written.metadata.deletion_timestamp.is_some() && written.finalizers().is_empty() {
                    writes.deleted(&self.claims, key, &written.uid().unwrap_or_default());
                } else {
                    writes.wrote(&self.claims, &written);
                }
            }
            Action::PatchClaimStatus(patch) => {
                let written = claims.patch_status(&key.name, &params(), &Patch::Merge(patch)).await?;
                writes.wrote(&self.claims, &written);
            }
            Action::PatchVolume(name, patch) => {
                let written = volumes.patch(&name, &params(), &Patch::Merge(patch)).await?;
                if written.metadata.deletion_timestamp.is_some() && written.finalizers().is_empty() {
                    writes.deleted(&self.volumes, &Key::new("", &name), &written.uid().unwrap_or_default());
                } else {
                    writes.wrote(&self.volumes, &written);
                }
            }
            Action::PatchVolumeStatus(name, patch) => {
                let written = volumes.patch_status(&name, &params(), &Patch::Merge(patch)).await?;
                writes.wrote(&self.volumes, &written);
            }
            Action::CreateVolume(volume) => self.create(&volume, writes).await?,
            Action::DeleteVolume { name, uid } => {
                let deletion = DeleteParams {
                    preconditions: Some(Preconditions { uid: Some(uid.clone()), resource_version: None }),
                    ..DeleteParams::default()
                };
                match volumes.delete(&name, &deletion).await.map_err(ActError::from) {
                    Ok(_) | Err(ActError::Gone(_)) => writes.deleted(&self.volumes, &Key::new("", &name), &uid),
                    Err(error) => return Err(error),
                }
            }
            Action::ConfirmClaimGone(claim, uid) => {
                let live = self.claims.api(&claim.namespace).get_opt(&claim.name).await?;
                if live.is_some_and(|live| live.metadata.uid.as_ref() == Some(&uid)) {
                    return Err(ActError::Conflict(format!("the claim {claim} is there after all")));
                }
            }
            Action::ConfirmUnused => self.confirm_unused(key).await?,
            Action::ConfirmNodeGone(host) => {
                if self.nodes.cluster_api().get_opt(&host).await?.is_some() {
                    return Err(ActError::Conflict(format!("the node {host} is there after all")));
                }
            }
            Action::Note(note) => self.note(key, note),
        }
        Ok(())
    }
}
