//! Which nodes are the same place: the values of a label, numbered, so that a decision compares numbers and not text. Pure.

use super::node::{NodeInfo, Slot};
use std::collections::HashMap;

/// A value of a topology key; zero is no value.
pub(crate) type Place = u32;

/// A node without the label.
pub(crate) const NOWHERE: Place = 0;

/// The values one label has among the nodes.
#[derive(Debug, Default)]
pub(crate) struct Topology {
    places: HashMap<String, Place>,
    of_node: Vec<Place>,
    /// How many nodes have each value.
    nodes: Vec<u32>,
    free: Vec<Place>,
}

impl Topology {
    /// The place of a node.
    pub(crate) fn place(&self, slot: Slot) -> Place {
        self.of_node.get(slot as usize).copied().unwrap_or(NOWHERE)
    }

    /// How many numbers places have, zero included.
    pub(crate) fn size(&self) -> usize {
        self.nodes.len().max(1)
    }

    /// How many nodes are at that place.
    pub(crate) fn nodes_at(&self, place: Place) -> u32 {
        self.nodes.get(place as usize).copied().unwrap_or(0)
    }

    fn set(&mut self, slot: Slot, value: Option<&str>) {
        let (slot, old) = (slot as usize, self.place(slot));
        let new = value.map_or(NOWHERE, |value| match self.places.get(value) {
            Some(place) => *place,
            None => {
                if self.nodes.is_empty() {
                    self.nodes.push(0);
                }
                let place = self.free.pop().unwrap_or_else(|| {
                    self.nodes.push(0);
                    (self.nodes.len() - 1) as Place
                });
                self.places.insert(value.to_owned(), place);
                place
            }
        });
        if new == old {
            return;
        }
        if self.of_node.len() <= slot {
            self.of_node.resize(slot + 1, NOWHERE);
        }
        self.of_node[slot] = new;
        if new != NOWHERE {
            self.nodes[new as usize] += 1;
        }
        if old != NOWHERE {
            self.nodes[old as usize] -= 1;
            if self.nodes[old as usize] == 0 {
                self.places.retain(|_, place| *place != old);
                self.free.push(old);
            }
        }
    }
}

/// The topologies somebody has asked for, by label.
#[derive(Debug, Default)]
pub(crate) struct Topologies(HashMap<String, Topology>);

impl Topologies {
    /// Makes sure that the label is known from now on.
    pub(crate) fn ask<'a>(&mut self, key: &str, nodes: impl Iterator<Item = &'a NodeInfo>) {
        if self.0.contains_key(key) {
            return;
        }
        let mut topology = Topology::default();
        nodes.for_each(|node| topology.set(node.slot, node.labels.get(key).map(String::as_str)));
        self.0.insert(key.to_owned(), topology);
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Topology> {
        self.0.get(key)
    }

    /// A node came, changed its labels, or went (then it has none).
    pub(crate) fn changed(&mut self, node: &NodeInfo) {
        for (key, topology) in &mut self.0 {
            topology.set(node.slot, node.labels.get(key).map(String::as_str));
        }
    }
}
