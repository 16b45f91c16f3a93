//! What going back writes: the way from the members as they are to those of a revision. Pure.
//!
//! The steps are found anew after each: whatever came between, a crash or another writer, they are what is left to do.

use super::{
    content::{Content, Id, is_appliers},
    order::{rank, sort_by_rank},
};
use crate::patch::merge_diff;
use proa_crds::annotations;
use serde_json::{Map, Value, json};
use std::{collections::BTreeSet, fmt};

/// A member as the server has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Live {
    /// What it says.
    pub content: Content,
    /// Its uid.
    pub uid: String,
    /// Its `resourceVersion`.
    pub version: String,
    /// Whether it is marked for deletion.
    pub deleting: bool,
    /// Its `managedFields`, whole.
    pub managed_fields: Vec<Value>,
}

/// One write.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Make it anew: it disappeared since.
    Create(Box<Content>),
    /// Change what differs.
    Change {
        /// Which.
        id: Id,
        /// A merge patch, good for the state that was seen.
        patch: Value,
    },
    /// Give the appliers back what they owned.
    Return {
        /// Which.
        id: Id,
        /// A merge patch of metadata.
        patch: Value,
    },
    /// Remove it: it appeared since.
    Remove {
        /// Which.
        id: Id,
        /// The uid it was seen with.
        uid: String,
    },
    /// It is on its way out and must be gone before it can be made anew, or before what it needs may go.
    Await(Id),
}

impl Step {
    /// The object it is about.
    pub fn id(&self) -> &Id {
        match self {
            Step::Create(content) => &content.id,
            Step::Change { id, .. } | Step::Return { id, .. } | Step::Remove { id, .. } | Step::Await(id) => id,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self {
            Step::Create(_) => "create",
            Step::Change { .. } => "change",
            Step::Return { .. } => "give back the fields of",
            Step::Remove { .. } => "remove",
            Step::Await(_) => "wait for the end of",
        };
        write!(f, "{what} {}", self.id())
    }
}

/// All that is left to do until the members are `target`, in dependency order. `returned` are the objects whose appliers
/// have got their fields back already.
pub fn steps(target: &[Content], live: &[Live], returned: &BTreeSet<Id>) -> Vec<Step> {
    let mut wanted: Vec<&Content> = target.iter().collect();
    sort_by_rank(&mut wanted, |content| &content.id);
    let mut steps = Vec::new();
    for content in wanted {
        match live.iter().find(|live| live.content.id == content.id) {
            None => steps.push(Step::Create(Box::new(content.clone()))),
            Some(live) if live.deleting => steps.push(Step::Await(content.id.clone())),
            Some(live) => {
                if let Some(patch) = change(content, live) {
                    steps.push(Step::Change { id: content.id.clone(), patch });
                } else if !returned.contains(&content.id)
                    && let Some(patch) = give_back(content, live)
                {
                    steps.push(Step::Return { id: content.id.clone(), patch });
                }
            }
        }
    }
    let mut gone: Vec<&Live> =
        live.iter().filter(|live| !target.iter().any(|content| content.id == live.content.id)).collect();
    sort_by_rank(&mut gone, |live| &live.content.id);
    // What stays no longer needs them when they go: all writes come before.
    steps.extend(gone.into_iter().rev().map(|live| match live.deleting {
        true => Step::Await(live.content.id.clone()),
        false => Step::Remove { id: live.content.id.clone(), uid: live.uid.clone() },
    }));
    steps
}

/// Which of the steps may be taken now: none after one that must be awaited, and of what is removed one rank at a time, so
/// that nothing loses what it still needs.
pub(super) fn due(steps: Vec<Step>) -> Vec<Step> {
    let mut removing = None;
    let mut due = Vec::new();
    for step in steps {
        match &step {
            Step::Await(_) => break,
            Step::Remove { id, .. } if *removing.get_or_insert(rank(id)) != rank(id) => break,
            _ => due.push(step),
        }
    }
    due
}

/// The patch that makes an object say what it said, and client-side apply remember what it did.
pub(super) fn change(target: &Content, live: &Live) -> Option<Value> {
    let with_record = |mut object: Value, content: &Content| {
        if let (Some(record), Some(root)) = (&content.applied.configuration, object.as_object_mut()) {
            let meta = root.entry("metadata").or_insert_with(|| json!({}));
            if let Some(meta) = meta.as_object_mut() {
                let notes = meta.entry("annotations").or_insert_with(|| json!({}));
                notes[annotations::LAST_APPLIED] = json!(record);
            }
        }
        object
    };
    let from = with_record(live.content.object.clone(), &live.content);
    let to = with_record(target.yielding_to(&live.content), target);
    let mut patch = merge_diff(&from, &to)?;
    // The version an object is written in is the server's to keep.
    if let Some(patch) = patch.as_object_mut() {
        patch.shift_remove("apiVersion");
        if patch.is_empty() {
            return None;
        }
    }
    stamped(patch, live)
}

fn stamped(mut patch: Value, live: &Live) -> Option<Value> {
    let meta = patch.as_object_mut()?.entry("metadata").or_insert_with(|| json!({})).as_object_mut()?;
    meta.insert("uid".into(), live.uid.as_str().into());
    meta.insert("resourceVersion".into(), live.version.as_str().into());
    Some(patch)
}

/// The patch after which the appliers own what they owned with the revision, and whoever went back owns none of it. What
/// subresources and the platform own now stays theirs.
fn give_back(target: &Content, live: &Live) -> Option<Value> {
    if target.applied.managed_fields.is_empty() {
        return None;
    }
    let appliers: Vec<&Value> = live.managed_fields.iter().filter(|entry| is_appliers(entry)).collect();
    let ours = |entry: &&Value| entry.get("manager").and_then(Value::as_str) == Some(super::content::MANAGER);
    let (written, rest): (Vec<&Value>, Vec<&Value>) =
        live.managed_fields.iter().filter(|entry| !is_appliers(entry)).partition(ours);
    let same = appliers.len() == target.applied.managed_fields.len()
        && target
            .applied
            .managed_fields
            .iter()
            .all(|entry| appliers.iter().any(|held| timeless(held) == timeless(entry)));
    if same && written.is_empty() {
        return None;
    }
    let entries: Vec<&Value> = target.applied.managed_fields.iter().chain(rest).collect();
    stamped(json!({"metadata": {"managedFields": entries}}), live)
}

/// An entry of `managedFields` without its time, which follows a write and is no reason for one.
fn timeless(entry: &Value) -> Map<String, Value> {
    let mut entry = entry.as_object().cloned().unwrap_or_default();
    entry.shift_remove("time");
    entry
}

/// An object as it is made anew: with the size and the record it had.
pub(super) fn anew(content: &Content) -> Value {
    let mut object = content.object.clone();
    if let (Some(replicas), Some(spec)) =
        (&content.applied.replicas, object.get_mut("spec").and_then(Value::as_object_mut))
    {
        spec.insert("replicas".into(), replicas.clone());
    }
    if let (Some(record), Some(meta)) =
        (&content.applied.configuration, object.get_mut("metadata").and_then(Value::as_object_mut))
    {
        let notes = meta.entry("annotations").or_insert_with(|| json!({}));
        notes[annotations::LAST_APPLIED] = json!(record);
    }
    object
}
