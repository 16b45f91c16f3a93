//! Stories of cascading deletion.

use super::*;
use crate::catalogue::{
    FOREGROUND, ORPHAN, Presence,
    tests::{item, reference},
};
use std::sync::Arc;

fn seen(item: Item, owners: &[Presence], dependents: Vec<Item>) -> Seen {
    let owners = item.owners.clone().into_iter().zip(owners.iter().copied()).collect();
    Seen { item: Arc::new(item), owners, dependents: dependents.into_iter().map(Arc::new).collect() }
}

fn said(seen: &Seen) -> Vec<String> {
    let name = |item: &Arc<Item>| item.key.name.to_string();
    let say = |action: &Action| match action {
        Action::AskFor(owner) => format!("ask {}", owner.name),
        Action::Disown(item, uids) => format!("disown {} {}", name(item), uids.join(",")),
        Action::Unblock(item) => format!("unblock {}", name(item)),
        Action::Delete(item, policy) => format!("delete {} {policy:?}", name(item)),
        Action::Finish(item, finalizer) => format!("finish {} {finalizer}", name(item)),
    };
    plan(seen).actions.iter().map(say).collect()
}

fn blocking(mut item: Item) -> Item {
    item.owners.iter_mut().for_each(|owner| owner.block_owner_deletion = Some(true));
    item
}

fn going(finalizer: &str, item: Item) -> Item {
    Item { deleting: true, finalizers: vec![finalizer.to_owned()], ..item }
}

#[test]
fn what_is_owned_lives_as_long_as_one_owner_stays() {
    use Presence::*;
    let owned = || item("a", &["o", "p"]);
    assert_eq!(said(&seen(owned(), &[Present, Present], vec![])), [""; 0]);
    assert_eq!(said(&seen(owned(), &[Present, Absent], vec![])), ["disown a uid-p"]);
    assert_eq!(said(&seen(owned(), &[DeletesDependentsFirst, Present], vec![])), ["disown a uid-o"]);
    assert_eq!(said(&seen(owned(), &[Absent, Absent], vec![])), ["delete a Background"]);
}

#[test]
fn nothing_is_deleted_on_a_guess() {
    let plan = said(&seen(item("a", &["o", "p"]), &[Presence::Unknown, Presence::Absent], vec![]));
    assert_eq!(plan, ["ask o"]);
}

#[test]
fn what_has_no_owner_is_left_alone() {
    assert!(said(&seen(item("a", &[]), &[], vec![item("b", &["a"])])).is_empty());
}

#[test]
fn foreground_deletion_waits_for_those_that_block_and_for_no_others() {
    let owner = || going(FOREGROUND, item("o", &[]));
    assert!(said(&seen(owner(), &[], vec![blocking(item("a", &["o"]))])).is_empty());
    assert_eq!(said(&seen(owner(), &[], vec![item("a", &["o"])])), ["finish o foregroundDeletion"]);
    assert_eq!(said(&seen(owner(), &[], vec![])), ["finish o foregroundDeletion"]);
}

#[test]
fn foreground_deletion_goes_down_the_tree() {
    let middle = || blocking(item("m", &["o"]));
    let awaited = [Presence::DeletesDependentsFirst];
    assert_eq!(said(&seen(middle(), &awaited, vec![item("leaf", &["m"])])), ["delete m Foreground"]);
    assert_eq!(said(&seen(middle(), &awaited, vec![])), ["delete m Background"]);
}

#[test]
fn a_circle_of_owners_comes_to_an_end() {
    let dependent = going(FOREGROUND, blocking(item("b", &["a"])));
    let awaited = [Presence::DeletesDependentsFirst];
    assert_eq!(said(&seen(blocking(item("a", &["b"])), &awaited, vec![dependent.clone()])), ["unblock a"]);
    assert_eq!(said(&seen(item("a", &["b"]), &awaited, vec![dependent])), ["delete a Foreground"]);
}

#[test]
fn orphans_lose_their_owner_before_it_goes() {
    let owner = going(ORPHAN, item("o", &[]));
    let plan = said(&seen(owner, &[], vec![item("a", &["o"]), item("b", &["o", "p"])]));
    assert_eq!(plan, ["disown a uid-o", "disown b uid-o", "finish o orphan"]);
}

#[test]
fn a_finalizer_that_asks_for_it_decides_how_the_rest_goes() {
    let orphaning = Item { finalizers: vec![ORPHAN.into()], ..item("a", &["o"]) };
    assert_eq!(said(&seen(orphaning, &[Presence::Absent], vec![])), ["delete a Orphan"]);
    assert_eq!(reference("o").uid, "uid-o");
}
