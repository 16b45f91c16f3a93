//! Which pods run on which node, and what they refer to.
//!
//! Owns an index over the cache of pods. It takes in the changes since it was last asked, each once, so a question
//! costs a look-up and no scan; where no node ever asks, it stays empty.

use std::collections::HashMap;

use parking_lot::Mutex;
use proa_store::Key;

use crate::cache::{Cache, Caches, ChangeKind, Item};
use crate::kinds::pod::{Referent, references};

/// The index.
#[derive(Default)]
pub struct NodePods(Mutex<State>);

#[derive(Default)]
struct State {
    /// The revision up to which the pods' changes have been taken in; nothing has yet when there is none.
    seen: Option<u64>,
    pods: HashMap<Key, Bound>,
    /// By node: how many of its pods lead to an object.
    nodes: HashMap<String, HashMap<Target, usize>>,
}

/// What a pod that has a node leads to, itself first.
struct Bound {
    node: String,
    targets: Vec<Target>,
}

/// An object of a namespace: a pod, or what one refers to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Target {
    /// `None` is the pod itself.
    kind: Option<Referent>,
    namespace: String,
    name: String,
}

impl NodePods {
    /// Whether the pod is on `node`.
    pub fn runs(&self, caches: &Caches, node: &str, namespace: &str, name: &str) -> bool {
        self.leads(caches, node, None, namespace, name)
    }

    /// Whether a pod on `node` refers to the object.
    pub fn refer(&self, caches: &Caches, node: &str, to: Referent, namespace: &str, name: &str) -> bool {
        self.leads(caches, node, Some(to), namespace, name)
    }

    fn leads(&self, caches: &Caches, node: &str, kind: Option<Referent>, namespace: &str, name: &str) -> bool {
        if namespace.is_empty() || name.is_empty() {
            return false;
        }
        let mut state = self.0.lock();
        state.catch_up(&caches.resource("pods"));
        let target = Target { kind, namespace: namespace.to_owned(), name: name.to_owned() };
        state.nodes.get(node).is_some_and(|targets| targets.contains_key(&target))
    }
}

impl State {
    fn catch_up(&mut self, pods: &Cache) {
        if self.seen == Some(pods.last_revision()) {
            return;
        }
        if let Some(seen) = self.seen
            && let Ok(changes) = pods.changes_after(seen, usize::MAX)
        {
            for change in changes {
                self.forget(&change.item.key);
                if change.kind == ChangeKind::Put {
                    self.learn(&change.item);
                }
                self.seen = Some(change.revision);
            }
            return;
        }
        // New here, or so far behind that changes were forgotten: everything is read.
        let all = pods.snapshot("", 0);
        *self = State { seen: Some(all.revision), ..State::default() };
        all.items.iter().for_each(|item| self.learn(item));
    }

    fn learn(&mut self, item: &Item) {
        let pod = item.object();
        let Some(node) = pod.get_str(&["spec", "nodeName"]).filter(|node| !node.is_empty()) else { return };
        let target = |kind, name: &str| Target { kind, namespace: item.namespace().to_owned(), name: name.to_owned() };
        let mut targets = vec![target(None, item.name())];
        targets.extend(references(&pod).iter().map(|(to, name)| target(Some(*to), name)));
        let counts = self.nodes.entry(node.to_owned()).or_default();
        for target in &targets {
            *counts.entry(target.clone()).or_default() += 1;
        }
        self.pods.insert(item.key.clone(), Bound { node: node.to_owned(), targets });
    }

    fn forget(&mut self, key: &str) {
        let Some(bound) = self.pods.remove(key) else { return };
        let Some(counts) = self.nodes.get_mut(&bound.node) else { return };
        for target in bound.targets {
            if let Some(count) = counts.get_mut(&target) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(&target);
                }
            }
        }
        if counts.is_empty() {
            self.nodes.remove(&bound.node);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proa_store::{Expect, Log, Txn, Value};
    use serde_json::json;
    use tokio_util::sync::CancellationToken;

    use super::*;

    async fn put(log: &Arc<dyn Log>, name: &str, node: &str, secret: &str) {
        let volumes = json!([{"name": "v", "secret": {"secretName": secret}}]);
        let pod = json!({"metadata": {"name": name}, "spec": {"nodeName": node, "volumes": volumes}}).to_string();
        let txn = Txn::put(format!("/registry/pods/default/{name}"), Value::plain(pod), Expect::Any);
        log.commit(txn).await.unwrap();
    }

    #[tokio::test]
    async fn the_index_follows_every_change_of_the_pods() {
        let log: Arc<dyn Log> = Arc::new(proa_store::Memory::new(1000));
        put(&log, "before", "a", "one").await;
        let stop = CancellationToken::new();
        let caches = Caches::load(Arc::clone(&log), stop.clone()).await.unwrap();
        let index = NodePods::default();
        let reads = |node: &str, secret: &str| index.refer(&caches, node, Referent::Secret, "default", secret);
        assert!(reads("a", "one") && !reads("b", "one") && index.runs(&caches, "a", "default", "before"));

        // Two pods name one Secret: it is read until the last of them is gone.
        put(&log, "waiting", "", "two").await;
        put(&log, "first", "a", "two").await;
        put(&log, "second", "a", "two").await;
        caches.consistent().await.unwrap();
        assert!(reads("a", "two") && !reads("", "two"));
        for (name, left) in [("first", true), ("second", false)] {
            let key = format!("/registry/pods/default/{name}");
            log.commit(Txn::delete(key, Expect::Any, None)).await.unwrap();
            caches.consistent().await.unwrap();
            assert_eq!(reads("a", "two"), left, "{name} is gone");
            assert!(!index.runs(&caches, "a", "default", name));
        }

        // A pod that says something else now.
        put(&log, "before", "a", "three").await;
        caches.consistent().await.unwrap();
        assert!(reads("a", "three") && !reads("a", "one"));
        stop.cancel();
    }

    #[tokio::test]
    async fn an_index_far_behind_reads_everything_again() {
        let log: Arc<dyn Log> = Arc::new(proa_store::Memory::new(1000));
        let stop = CancellationToken::new();
        let caches = Caches::load(Arc::clone(&log), stop.clone()).await.unwrap();
        put(&log, "old", "a", "old").await;
        caches.consistent().await.unwrap();
        let index = NodePods::default();
        assert!(index.runs(&caches, "a", "default", "old"));
        log.commit(Txn::delete("/registry/pods/default/old".to_owned(), Expect::Any, None)).await.unwrap();
        put(&log, "new", "a", "new").await;
        caches.consistent().await.unwrap();
        // As after the ring has turned over: the revision it stands at can no longer be followed from.
        index.0.lock().seen = None;
        assert!(index.runs(&caches, "a", "default", "new") && !index.runs(&caches, "a", "default", "old"));
        stop.cancel();
    }
}
