//! When the quota of a namespace is counted again. Pure.

use crate::Plan;
use jiff::Timestamp;
use k8s_openapi::{api::core::v1::ResourceQuota, apimachinery::pkg::api::resource::Quantity};
use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::Duration,
};

/// Every quota is counted again after so long, whatever was heard meanwhile (Kubernetes' `--resource-quota-sync-period`).
pub const RESYNC: Duration = Duration::from_secs(300);

/// What is there to be counted, as one number: the same objects in the same state give the same, in whatever order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Content(u64);

impl Content {
    /// Takes in one more thing.
    pub fn add(&mut self, thing: impl Hash) {
        let mut hasher = DefaultHasher::new();
        thing.hash(&mut hasher);
        self.0 = self.0.wrapping_add(hasher.finish());
    }
}

/// A pod, as far as its counting goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodSeen {
    /// Which one.
    pub uid: String,
    /// It has ended.
    pub over: bool,
    /// It is going, and counts no longer than this.
    pub counts_until: Option<Timestamp>,
}

/// What a quota was last counted from.
#[derive(Clone, Debug, PartialEq)]
pub struct Counted {
    /// The quota's uid.
    pub uid: Option<String>,
    /// What there was.
    pub content: Content,
    /// What was told to be used. Another figure is a charge since: what it was for may be gone again, unseen.
    pub used: Option<BTreeMap<String, Quantity>>,
    /// When.
    pub at: Timestamp,
}

/// A quota and what its namespace holds of what it bounds.
#[derive(Debug)]
pub struct Seen {
    /// The quota.
    pub quota: Arc<ResourceQuota>,
    /// All but the pods.
    pub others: Content,
    /// The pods.
    pub pods: Vec<PodSeen>,
    /// The last count.
    pub counted: Option<Counted>,
}

/// Counts the quota, from a namespace with this content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recount(pub Content);

/// What a quota bounds.
pub(super) fn hard(quota: &ResourceQuota) -> BTreeMap<String, Quantity> {
    quota.spec.as_ref().and_then(|spec| spec.hard.clone()).unwrap_or_default()
}

/// Whether the bounds that are enforced are those that are asked for.
fn taken_up(quota: &ResourceQuota) -> bool {
    let enforced = quota.status.as_ref().and_then(|status| status.hard.clone());
    enforced.is_some_and(|enforced| enforced == hard(quota))
}

/// Decides.
pub fn plan(seen: &Seen, now: Timestamp) -> Plan<Recount> {
    let mut content = seen.others;
    let mut next: Option<Timestamp> = None;
    for pod in &seen.pods {
        let ends = pod.counts_until.filter(|until| !pod.over && *until >= now);
        let counts = !pod.over && (pod.counts_until.is_none() || ends.is_some());
        content.add((&pod.uid, counts));
        next = match (next, ends) {
            (Some(next), Some(ends)) => Some(next.min(ends)),
            (next, ends) => next.or(ends),
        };
    }
    let fresh = |counted: &&Counted| {
        let age = Duration::try_from(now.duration_since(counted.at)).unwrap_or_default();
        let used = seen.quota.status.as_ref().and_then(|status| status.used.as_ref());
        counted.uid == seen.quota.metadata.uid
            && counted.content == content
            && counted.used.as_ref() == used
            && age < RESYNC
    };
    let Some(counted) = seen.counted.as_ref().filter(fresh).filter(|_| taken_up(&seen.quota)) else {
        return Plan::act(vec![Recount(content)]);
    };
    let mut plan = Plan::nothing();
    let age = Duration::try_from(now.duration_since(counted.at)).unwrap_or_default();
    plan.look_again(RESYNC.saturating_sub(age));
    if let Some(next) = next {
        // It counts until then, and that instant included.
        let left = Duration::try_from(next.duration_since(now)).unwrap_or_default();
        plan.look_again(left + Duration::from_millis(1));
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn now() -> Timestamp {
        "2026-01-01T00:00:00Z".parse().expect("a time")
    }

    fn seen(spec: &str, status: Option<&str>, pods: Vec<PodSeen>, counted: Option<Counted>) -> Seen {
        let quota = json!({"metadata": {"uid": "u"}, "spec": {"hard": {"pods": spec}},
            "status": status.map(|hard| json!({"hard": {"pods": hard}, "used": {"pods": "0"}}))});
        let quota = Arc::new(serde_json::from_value(quota).expect("a quota"));
        Seen { quota, others: Content::default(), pods, counted }
    }

    fn pod(uid: &str) -> PodSeen {
        PodSeen { uid: uid.to_owned(), over: false, counts_until: None }
    }

    /// What the plan counts, as it will be remembered.
    fn counted(seen: &Seen) -> Counted {
        match plan(seen, now()).actions.as_slice() {
            [Recount(content)] => {
                let used = Some([("pods".to_owned(), Quantity("0".to_owned()))].into());
                Counted { uid: Some("u".into()), content: *content, used, at: now() }
            }
            other => panic!("it must be counted: {other:?}"),
        }
    }

    fn is_counted(seen: &Seen, now: Timestamp) -> bool {
        !plan(seen, now).actions.is_empty()
    }

    #[test]
    fn what_was_counted_is_left_alone_until_something_differs() {
        let first = seen("2", None, vec![pod("a"), pod("b")], None);
        let last = Some(counted(&first));
        assert!(!is_counted(&seen("2", Some("2"), vec![pod("b"), pod("a")], last.clone()), now()), "in any order");
        assert!(is_counted(&seen("2", None, vec![pod("a"), pod("b")], last.clone()), now()), "not taken up");
        assert!(is_counted(&seen("3", Some("2"), vec![pod("a"), pod("b")], last.clone()), now()), "another bound");
        assert!(is_counted(&seen("2", Some("2"), vec![pod("a")], last.clone()), now()), "one has gone");
        assert!(is_counted(&seen("2", Some("2"), vec![pod("a"), pod("c")], last.clone()), now()), "one for another");
        let charged = Counted { used: Some([("pods".to_owned(), Quantity("1".to_owned()))].into()), ..counted(&first) };
        let same = seen("2", Some("2"), vec![pod("a"), pod("b")], Some(charged));
        assert!(is_counted(&same, now()), "another came and went unseen, and was charged");
        let over = PodSeen { over: true, ..pod("b") };
        assert!(is_counted(&seen("2", Some("2"), vec![pod("a"), over], last.clone()), now()), "one has ended");
        let earlier = last.map(|last| Counted { uid: Some("earlier".into()), ..last });
        assert!(is_counted(&seen("2", Some("2"), vec![pod("a"), pod("b")], earlier), now()), "another of the name");
    }

    #[test]
    fn it_is_counted_again_when_a_pod_that_is_going_counts_no_more_and_after_a_while_anyway() {
        let until = now() + jiff::SignedDuration::from_secs(30);
        let going = || vec![PodSeen { counts_until: Some(until), ..pod("a") }];
        let last = Some(counted(&seen("2", Some("2"), going(), None)));
        let quiet = seen("2", Some("2"), going(), last);
        let waiting = plan(&quiet, now());
        assert!(waiting.actions.is_empty());
        let again = waiting.again.expect("it looks again");
        assert!((30..31).contains(&again.as_secs()), "{again:?}");
        assert!(is_counted(&quiet, now() + jiff::SignedDuration::try_from(again).expect("short")));
        let still = seen("2", Some("2"), vec![pod("a")], None);
        let still = seen("2", Some("2"), vec![pod("a")], Some(counted(&still)));
        assert_eq!(plan(&still, now()).again, Some(RESYNC));
        assert!(is_counted(&still, now() + jiff::SignedDuration::from_secs(300)));
    }
}
