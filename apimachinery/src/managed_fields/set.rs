//! Owns sets of field paths, as a tree: a path in the set, and the paths below it, share one node.

use std::{collections::BTreeMap, sync::Arc};

use super::path::Element;
use crate::schema::Schema;

/// A set of field paths below one value. Copies share what they have in common until one changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Set {
    pub(super) nodes: Arc<BTreeMap<Element, Node>>,
}

/// What a set says about one element: whether its path is in the set, and which paths below it are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) member: bool,
    pub(super) below: Set,
}

impl Node {
    fn is_empty(&self) -> bool {
        !self.member && self.below.is_empty()
    }
}

impl Set {
    /// Whether no path is in the set.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    pub(super) fn nodes_mut(&mut self) -> &mut BTreeMap<Element, Node> {
        Arc::make_mut(&mut self.nodes)
    }

    /// How many paths are in the set.
    pub fn len(&self) -> usize {
        self.nodes.values().map(|node| usize::from(node.member) + node.below.len()).sum()
    }

    /// Adds a path. The empty path is no field and changes nothing.
    pub fn insert(&mut self, path: &[Element]) {
        let Some((first, rest)) = path.split_first() else { return };
        let node = self.nodes_mut().entry(first.clone()).or_default();
        if rest.is_empty() { node.member = true } else { node.below.insert(rest) }
    }

    /// Whether a path is in the set.
    pub fn contains(&self, path: &[Element]) -> bool {
        let Some((first, rest)) = path.split_first() else { return false };
        self.nodes.get(first).is_some_and(|node| if rest.is_empty() { node.member } else { node.below.contains(rest) })
    }

    /// Adds one element and what is below it; nothing is added for nothing.
    pub(super) fn put(&mut self, element: Element, member: bool, below: Set) {
        if !member && below.is_empty() {
            return;
        }
        match self.nodes_mut().entry(element) {
            std::collections::btree_map::Entry::Vacant(slot) => {
                slot.insert(Node { member, below });
            }
            std::collections::btree_map::Entry::Occupied(mut slot) => {
                let node = slot.get_mut();
                node.member |= member;
                node.below.absorb(below);
            }
        }
    }

    /// Adds every path of another set.
    pub fn absorb(&mut self, other: Set) {
        if self.nodes.is_empty() {
            self.nodes = other.nodes;
            return;
        }
        if Arc::ptr_eq(&self.nodes, &other.nodes) {
            return;
        }
        for (element, node) in Arc::unwrap_or_clone(other.nodes) {
            self.put(element, node.member, node.below);
        }
    }

    /// Paths in either.
    #[must_use]
    pub fn union(&self, other: &Set) -> Set {
        let mut result = self.clone();
        result.absorb(other.clone());
        result
    }

    /// Paths in both.
    #[must_use]
    pub fn intersection(&self, other: &Set) -> Set {
        self.combine(other, |mine, theirs| mine && theirs, false)
    }

    /// Paths in this one and not in the other.
    #[must_use]
    pub fn difference(&self, other: &Set) -> Set {
        self.combine(other, |mine, theirs| mine && !theirs, true)
    }

    fn combine(&self, other: &Set, rule: fn(bool, bool) -> bool, keep_alone: bool) -> Set {
        let mut result = BTreeMap::new();
        for (element, mine) in &*self.nodes {
            let node = match other.nodes.get(element) {
                Some(theirs) => Node {
                    member: rule(mine.member, theirs.member),
                    below: mine.below.combine(&theirs.below, rule, keep_alone),
                },
                None if keep_alone => mine.clone(),
                None => continue,
            };
            if !node.is_empty() {
                result.insert(element.clone(), node);
            }
        }
        Set { nodes: Arc::new(result) }
    }

    /// Paths of this set that are neither in the other nor below a path that is.
    #[must_use]
    pub fn without(&self, other: &Set) -> Set {
        let mut result = Set::default();
        for (element, mine) in &*self.nodes {
            match other.nodes.get(element) {
                Some(theirs) if theirs.member => {}
                Some(theirs) => result.put(element.clone(), mine.member, mine.below.without(&theirs.below)),
                None => {
                    result.nodes_mut().insert(element.clone(), mine.clone());
                }
            }
        }
        result
    }

    /// The set with every named field on the way to a path added: who owns `spec.replicas` has a say in
    /// whether there is a `spec`. Entries of maps and elements of lists are not added.
    pub(super) fn with_named_parents(&self, schema: &Schema) -> Set {
        let resolved = schema.resolved();
        let nodes = self.nodes.iter().map(|(element, node)| {
            let (named, below) = match element {
                Element::Field(name) => {
                    let named = resolved.properties.contains_key(&**name) && !node.below.is_empty();
                    (named, schema.field(name).unwrap_or_else(|| Schema::any()))
                }
                _ => (false, schema.element()),
            };
            (element.clone(), Node { member: node.member || named, below: node.below.with_named_parents(below) })
        });
        Set { nodes: Arc::new(nodes.collect()) }
    }

    /// Calls with every path in the set, in order.
    pub fn each(&self, found: &mut impl FnMut(&[Element])) {
        self.walk(&mut Vec::new(), found);
    }

    fn walk(&self, prefix: &mut Vec<Element>, found: &mut impl FnMut(&[Element])) {
        for (element, node) in &*self.nodes {
            prefix.push(element.clone());
            if node.member {
                found(prefix);
            }
            node.below.walk(prefix, found);
            prefix.pop();
        }
    }
}
