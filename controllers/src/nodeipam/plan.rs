//! Which node gets which block of pod addresses. Pure.

use crate::Plan;
use kube::ResourceExt;
use proa_crds::Node;
use std::{
    net::{IpAddr, Ipv4Addr},
    ops::RangeInclusive,
    sync::Arc,
};

/// The pod addresses of a cluster, divided into blocks of one size (Kubernetes' `--cluster-cidr` and
/// `--node-cidr-mask-size`). IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks {
    base: u32,
    prefix: u8,
    node_prefix: u8,
}

impl Blocks {
    /// The range `base/prefix`, divided into blocks with `node_prefix` fixed bits; `None` when it cannot be.
    pub fn new(base: IpAddr, prefix: u8, node_prefix: u8) -> Option<Blocks> {
        let IpAddr::V4(base) = base else { return None };
        let fits = (1..=node_prefix).contains(&prefix) && node_prefix <= 30;
        fits.then(|| Blocks { base: base.to_bits() & (u32::MAX << (32 - prefix)), prefix, node_prefix })
    }

    /// The `index`th block: its first address, and how many of its bits are fixed.
    pub fn get(&self, index: u32) -> Option<(IpAddr, u8)> {
        let here = index < 1 << (self.node_prefix - self.prefix);
        here.then(|| (IpAddr::V4(Ipv4Addr::from_bits(*self.range(index).start())), self.node_prefix))
    }

    fn range(&self, index: u32) -> RangeInclusive<u32> {
        let size = 1 << (32 - self.node_prefix);
        let first = self.base + index * size;
        first..=first + (size - 1)
    }

    /// The lowest block that shares no address with any of `taken`.
    fn free(&self, taken: &[RangeInclusive<u32>]) -> Option<u32> {
        let apart = |index: &u32| {
            let block = self.range(*index);
            taken.iter().all(|other| other.end() < block.start() || block.end() < other.start())
        };
        (0..1 << (self.node_prefix - self.prefix)).find(apart)
    }
}

/// All nodes.
#[derive(Debug)]
pub struct Seen {
    /// Ordered by name.
    pub nodes: Vec<Arc<Node>>,
    /// What is to be given out.
    pub blocks: Blocks,
}

/// One thing to do.
#[derive(Clone, Debug)]
pub enum Action {
    /// The node gets this block, in CIDR notation.
    Assign(Arc<Node>, String),
    /// There is none left for these.
    Exhausted(Vec<Arc<Node>>),
}

/// Whether the node waits for a block.
pub(super) fn waits(node: &Node) -> bool {
    node.metadata.deletion_timestamp.is_none() && node.spec.pod_cidr.as_deref().unwrap_or_default().is_empty()
}

/// Gives every node that has none a block of its own. What a node has, whoever gave it, it keeps.
pub fn plan(seen: &Seen) -> Plan<Action> {
    let mut taken: Vec<_> = seen.nodes.iter().flat_map(|node| held(node)).collect();
    let (mut actions, mut without) = (Vec::new(), Vec::new());
    for node in seen.nodes.iter().filter(|node| waits(node)) {
        let free = seen.blocks.free(&taken);
        match free.and_then(|index| seen.blocks.get(index)) {
            Some((base, prefix)) => actions.push(Action::Assign(node.clone(), format!("{base}/{prefix}"))),
            None => without.push(node.clone()),
        }
        taken.extend(free.map(|index| seen.blocks.range(index)));
    }
    if !without.is_empty() {
        actions.push(Action::Exhausted(without));
    }
    Plan::act(actions)
}

/// The IPv4 addresses that are the node's.
fn held(node: &Node) -> impl Iterator<Item = RangeInclusive<u32>> {
    let all = node.spec.pod_cidr.iter().chain(node.spec.pod_cidrs.iter().flatten());
    all.filter_map(|cidr| {
        let parsed = range(cidr);
        if parsed.is_none() && !cidr.is_empty() && !cidr.contains(':') {
            tracing::warn!(node = node.name_any(), cidr, "the node's podCIDR is no address block");
        }
        parsed
    })
}

fn range(cidr: &str) -> Option<RangeInclusive<u32>> {
    let (base, prefix) = cidr.split_once('/')?;
    let (base, prefix) = (base.parse::<Ipv4Addr>().ok()?.to_bits(), prefix.parse::<u32>().ok()?);
    let hosts = u32::MAX.checked_shr(prefix).filter(|_| prefix <= 32).unwrap_or(0);
    (prefix <= 32).then_some(base & !hosts..=base | hosts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn nodes(cidrs: &[Option<&str>]) -> Vec<Arc<Node>> {
        let node = |(n, cidr): (usize, &Option<&str>)| {
            let spec = cidr.map_or(json!({}), |cidr| json!({"podCIDR": cidr, "podCIDRs": [cidr]}));
            Arc::new(serde_json::from_value(json!({"metadata": {"name": format!("n{n}")}, "spec": spec})).unwrap())
        };
        cidrs.iter().enumerate().map(node).collect()
    }

    fn said(nodes: Vec<Arc<Node>>, prefix: u8) -> Vec<String> {
        let blocks = Blocks::new("10.244.0.0".parse().unwrap(), prefix, 24).unwrap();
        let name = |action: &Action| match action {
            Action::Assign(node, cidr) => format!("{} {cidr}", node.name_any()),
            Action::Exhausted(nodes) => format!("{} without", nodes.len()),
        };
        plan(&Seen { nodes, blocks }).actions.iter().map(name).collect()
    }

    #[test]
    fn each_node_gets_a_block_of_its_own_and_keeps_what_it_has() {
        assert_eq!(said(nodes(&[None, None]), 16), ["n0 10.244.0.0/24", "n1 10.244.1.0/24"]);
        let given = [Some("10.244.1.0/24"), None, Some("10.244.0.0/24"), None];
        assert_eq!(said(nodes(&given), 16), ["n1 10.244.2.0/24", "n3 10.244.3.0/24"]);
        assert!(said(nodes(&[Some("10.244.0.0/24"), Some("192.168.0.0/24")]), 16).is_empty());
    }

    #[test]
    fn a_block_shares_no_address_with_what_any_node_has() {
        assert_eq!(said(nodes(&[Some("10.244.0.0/22"), None]), 16), ["n1 10.244.4.0/24"]);
        assert_eq!(said(nodes(&[Some("10.244.0.128/25"), None]), 16), ["n1 10.244.1.0/24"]);
        assert_eq!(said(nodes(&[Some("fd00::/64"), Some("nonsense"), None]), 16), ["n2 10.244.0.0/24"]);
        assert_eq!(said(nodes(&[Some("0.0.0.0/0"), None]), 16), ["1 without"]);
    }

    #[test]
    fn a_range_that_is_used_up_says_so_and_gives_what_it_has() {
        assert_eq!(said(nodes(&[None, None, None, None]), 23), ["n0 10.244.0.0/24", "n1 10.244.1.0/24", "2 without"]);
    }

    #[test]
    fn a_node_that_goes_away_keeps_its_block_and_gets_none() {
        let mut all = nodes(&[Some("10.244.0.0/24"), None, None]);
        for node in &mut all[..2] {
            Arc::make_mut(node).metadata.deletion_timestamp =
                Some(serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap());
        }
        assert_eq!(said(all, 16), ["n2 10.244.1.0/24"]);
    }

    #[test]
    fn a_range_is_divided_or_refused() {
        let base = |text: &str| text.parse().unwrap();
        assert_eq!(Blocks::new(base("10.244.3.7"), 16, 24).unwrap().get(255), Some((base("10.244.255.0"), 24)));
        assert_eq!(Blocks::new(base("10.244.0.0"), 16, 24).unwrap().get(256), None);
        for (text, prefix, node_prefix) in
            [("fd00::", 64, 80), ("10.0.0.0", 24, 16), ("10.0.0.0", 0, 24), ("10.0.0.0", 24, 31)]
        {
            assert_eq!(Blocks::new(base(text), prefix, node_prefix), None);
        }
    }
}
