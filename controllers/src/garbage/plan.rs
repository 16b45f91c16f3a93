//! What becomes of an object whose owners go. Pure.

use crate::{
    Plan,
    catalogue::{FOREGROUND, Item, ORPHAN, Presence},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use std::sync::Arc;

/// An object with its owners and what it owns.
#[derive(Debug)]
pub struct Seen {
    /// The object.
    pub item: Arc<Item>,
    /// Its owners, and whether they are there.
    pub owners: Vec<(OwnerReference, Presence)>,
    /// What it owns.
    pub dependents: Vec<Arc<Item>>,
}

/// How a deletion treats what the object owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// It goes afterwards.
    Background,
    /// It goes before.
    Foreground,
    /// It stays.
    Orphan,
}

/// One step.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Ask the server whether this owner is there.
    AskFor(OwnerReference),
    /// Take these owners (by uid) off an object.
    Disown(Arc<Item>, Vec<String>),
    /// Let the object no longer hold up the deletion of its owners.
    Unblock(Arc<Item>),
    /// Delete the object.
    Delete(Arc<Item>, Policy),
    /// Take a finalizer off the object.
    Finish(Arc<Item>, &'static str),
}

/// Decides about one object.
pub fn plan(seen: &Seen) -> Plan<Action> {
    let item = &seen.item;
    if item.deleting {
        return Plan::act(going(seen));
    }
    if seen.owners.is_empty() {
        return Plan::nothing();
    }
    let unknown: Vec<Action> = seen
        .owners
        .iter()
        .filter(|(_, presence)| *presence == Presence::Unknown)
        .map(|(owner, _)| Action::AskFor(owner.clone()))
        .collect();
    if !unknown.is_empty() {
        return Plan::act(unknown);
    }
    let (staying, leaving): (Vec<_>, Vec<_>) =
        seen.owners.iter().partition(|(_, presence)| *presence == Presence::Present);
    if leaving.is_empty() {
        return Plan::nothing();
    }
    if !staying.is_empty() {
        // One owner that stays is enough to live.
        return Plan::act(vec![Action::Disown(
            item.clone(),
            leaving.iter().map(|(owner, _)| owner.uid.clone()).collect(),
        )]);
    }
    let awaited = leaving.iter().any(|(_, presence)| *presence == Presence::DeletesDependentsFirst);
    if awaited && !seen.dependents.is_empty() {
        // The owner goes after this one, and this one after what it owns. In a circle somebody has to stop waiting.
        let circle = seen.dependents.iter().any(|dependent| dependent.deletes_dependents_first());
        let blocks = item.owners.iter().any(|owner| owner.block_owner_deletion == Some(true));
        let mut actions = Vec::new();
        if circle && blocks {
            actions.push(Action::Unblock(item.clone()));
        } else {
            actions.push(Action::Delete(item.clone(), Policy::Foreground));
        }
        return Plan::act(actions);
    }
    let policy = match () {
        () if item.has_finalizer(ORPHAN) => Policy::Orphan,
        () if item.has_finalizer(FOREGROUND) => Policy::Foreground,
        () => Policy::Background,
    };
    Plan::act(vec![Action::Delete(item.clone(), policy)])
}

/// An object marked for deletion that waits for what it owns.
fn going(seen: &Seen) -> Vec<Action> {
    let item = &seen.item;
    let uid = &*item.uid;
    if item.has_finalizer(ORPHAN) {
        let disown = seen.dependents.iter().map(|dependent| Action::Disown(dependent.clone(), vec![uid.to_owned()]));
        return disown.chain([Action::Finish(item.clone(), ORPHAN)]).collect();
    }
    if item.has_finalizer(FOREGROUND) {
        let blocks =
            |dependent: &Arc<Item>| dependent.owned_by(uid).any(|owner| owner.block_owner_deletion == Some(true));
        if !seen.dependents.iter().any(blocks) {
            return vec![Action::Finish(item.clone(), FOREGROUND)];
        }
    }
    Vec::new()
}
