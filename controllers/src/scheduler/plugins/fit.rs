//! `NodeResourcesFit`: what a pod asks for must be free, and how full a node should be.

use crate::scheduler::{
    cluster::{
        node::NodeInfo,
        resources::{Amount, Amounts, Requests},
    },
    framework::{Cycle, Filter, MAX_SCORE, News, Plugin, Prepared, Reason, Reasons, Verdict, lets_in},
};
use std::collections::BTreeSet;

/// A resource and how much it weighs in a score.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ResourceWeight {
    pub(crate) name: String,
    pub(crate) weight: i64,
}

impl ResourceWeight {
    /// CPU and memory alike.
    pub(crate) fn cpu_and_memory() -> Vec<ResourceWeight> {
        ["cpu", "memory"].map(|name| ResourceWeight { name: name.to_owned(), weight: 1 }).into()
    }
}

/// How full a node should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Strategy {
    /// The emptier the better.
    LeastAllocated,
    /// The fuller the better.
    MostAllocated,
    /// As this line says: utilization in percent to score from 0 to 10.
    Shape(Vec<(i64, i64)>),
}

/// `NodeResourcesFitArgs`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FitArgs {
    pub(crate) ignored: BTreeSet<String>,
    /// Groups of extended resources (`example.com`).
    pub(crate) ignored_groups: BTreeSet<String>,
    pub(crate) strategy: Strategy,
    pub(crate) resources: Vec<ResourceWeight>,
}

impl Default for FitArgs {
    fn default() -> Self {
        FitArgs {
            ignored: BTreeSet::new(),
            ignored_groups: BTreeSet::new(),
            strategy: Strategy::LeastAllocated,
            resources: ResourceWeight::cpu_and_memory(),
        }
    }
}

impl FitArgs {
    fn ignores(&self, name: &str) -> bool {
        self.ignored.contains(name)
            || name.split_once('/').is_some_and(|(group, _)| self.ignored_groups.contains(group))
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Fit(pub(crate) FitArgs);

struct Room<'a> {
    asked: &'a Amounts,
    /// The other resources that count.
    other: Vec<(&'a str, i64)>,
}

impl Filter for Room<'_> {
    fn check(&self, node: &NodeInfo, why: &mut Reasons) -> Verdict {
        let (asked, all, used) = (self.asked, &node.allocatable, &node.used.amounts);
        let mut verdict = Verdict::Fits;
        if node.used.pods + 1 > node.allowed_pods {
            why.add("Too many pods");
            verdict = Verdict::Unschedulable;
        }
        let mut check = |asked: i64, all: i64, used: i64, reason: &dyn Fn() -> Reason| {
            if asked > 0 && asked > all.saturating_sub(used) {
                why.add(reason());
                // More than the whole node has: nobody's leaving helps.
                let this = if asked > all { Verdict::Unresolvable } else { Verdict::Unschedulable };
                verdict = verdict.max(this);
            }
        };
        check(asked.milli_cpu, all.milli_cpu, used.milli_cpu, &|| "Insufficient cpu".into());
        check(asked.memory, all.memory, used.memory, &|| "Insufficient memory".into());
        for (name, amount) in &self.other {
            let of = |amounts: &Amounts| amounts.other.get(*name).copied().unwrap_or(0);
            check(*amount, of(all), of(used), &|| format!("Insufficient {name}").into());
        }
        verdict
    }

    fn judges_by_the_node_alone(&self) -> bool {
        true
    }
}

impl Plugin for Fit {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }

    fn filter<'a>(&'a self, cycle: Cycle<'a>) -> Prepared<'a> {
        let asked = &cycle.pod.claim.requests.amounts;
        let other = asked.other.iter().filter(|(name, _)| !self.0.ignores(name));
        Prepared::filter(Room { asked, other: other.map(|(name, amount)| (name.as_str(), *amount)).collect() })
    }

    fn score(&self, cycle: Cycle<'_>, nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
        let of = |resource| Counted::of(resource, &cycle.pod.claim.requests);
        let counted: Vec<Counted<'_>> = self.0.resources.iter().filter_map(of).collect();
        let mut totals = Vec::with_capacity(nodes.len());
        for node in nodes {
            totals.push(self.total(&counted, node));
        }
        Some(totals)
    }

    fn helps(&self, cycle: Cycle<'_>, news: News<'_>) -> bool {
        match news {
            News::Node(node, changes) => (changes.new || changes.room) && lets_in(self, cycle, node),
            News::PodGone(node, _) => lets_in(self, cycle, node),
            _ => false,
        }
    }
}

impl Fit {
    /// The weighted mean over the resources that the node has and the pod asks for.
    fn total(&self, counted: &[Counted<'_>], node: &NodeInfo) -> i64 {
        let (mut sum, mut weights) = (0, 0);
        for Counted { amount, weight, asked } in counted {
            let all = amount.of(&node.allocatable);
            if all <= 0 {
                continue;
            }
            let used = match amount {
                Amount::Cpu => node.used.assumed_milli_cpu,
                Amount::Memory => node.used.assumed_memory,
                other => other.of(&node.used.amounts),
            };
            sum += weight * self.one(used + asked, all);
            weights += weight;
        }
        if weights == 0 { 0 } else { sum / weights }
    }

    fn one(&self, used: i64, all: i64) -> i64 {
        // Wide arithmetic is ten times as slow, and this is done for every node that would do.
        let share = |part: i64| match part.checked_mul(MAX_SCORE) {
            Some(scaled) => scaled / all,
            None => (i128::from(part) * i128::from(MAX_SCORE) / i128::from(all)) as i64,
        };
        match &self.0.strategy {
            Strategy::LeastAllocated if used > all => 0,
            Strategy::LeastAllocated => share(all - used),
            Strategy::MostAllocated => share(used.min(all)),
            Strategy::Shape(points) => on_line(points, if used > all { 100 } else { share(used) }) * MAX_SCORE / 10,
        }
    }
}

/// A resource that counts in a score: how much it weighs, and what the pod asks for of it.
struct Counted<'a> {
    amount: Amount<'a>,
    weight: i64,
    asked: i64,
}

impl<'a> Counted<'a> {
    /// CPU and memory count for containers that ask for none, too; what else a pod does not ask for does not.
    fn of(resource: &'a ResourceWeight, asked: &Requests) -> Option<Counted<'a>> {
        let amount = Amount::named(&resource.name);
        let asked = match amount {
            Amount::Cpu => asked.assumed_milli_cpu,
            Amount::Memory => asked.assumed_memory,
            Amount::Other(_) => Some(amount.of(&asked.amounts)).filter(|asked| *asked > 0)?,
        };
        Some(Counted { amount, weight: resource.weight, asked })
    }
}

/// The value at `x` of the line through these points; flat beyond both ends.
fn on_line(points: &[(i64, i64)], x: i64) -> i64 {
    match points.iter().position(|(at, _)| x <= *at) {
        None => points.last().map_or(0, |(_, value)| *value),
        Some(0) => points[0].1,
        Some(next) => {
            let ((x0, y0), (x1, y1)) = (points[next - 1], points[next]);
            y0 + (y1 - y0) * (x - x0) / (x1 - x0).max(1)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_is_a_line_through_its_points() {
        let line = [(0, 0), (50, 10), (100, 4)];
        for (x, y) in [(0, 0), (25, 5), (50, 10), (75, 7), (100, 4), (120, 4)] {
            assert_eq!(on_line(&line, x), y, "{x}");
        }
        assert_eq!(on_line(&[(20, 3)], 10), 3);
    }

    #[test]
    fn each_strategy_draws_its_own_way() {
        let score = |strategy, used| Fit(FitArgs { strategy, ..FitArgs::default() }).one(used, 200);
        assert_eq!(score(Strategy::LeastAllocated, 50), 75);
        assert_eq!(score(Strategy::LeastAllocated, 300), 0);
        assert_eq!(score(Strategy::MostAllocated, 50), 25);
        assert_eq!(score(Strategy::MostAllocated, 300), 100);
        assert_eq!(score(Strategy::Shape(vec![(0, 10), (100, 0)]), 50), 80);
    }

    #[test]
    fn groups_and_names_can_be_left_out() {
        let args = FitArgs {
            ignored: ["example.com/foo".to_owned()].into(),
            ignored_groups: ["other.org".to_owned()].into(),
            ..FitArgs::default()
        };
        let cases = [("example.com/foo", true), ("example.com/bar", false), ("other.org/any", true), ("cpu", false)];
        for (name, ignored) in cases {
            assert_eq!(args.ignores(name), ignored, "{name}");
        }
    }
}
