//! Who makes or serves a pod: the selectors behind the spread that holds by default. Pure.

use super::{affinity::Labels, pod::PodInfo, terms::Selector};
use crate::{Key, owners::controller_of};
use std::collections::BTreeMap;

/// Selectors of services and of controllers of pods.
#[derive(Debug, Default)]
pub(crate) struct Owners {
    services: BTreeMap<Key, Labels>,
    /// By kind and key.
    controllers: BTreeMap<(String, Key), Selector>,
}

impl Owners {
    /// A service's `spec.selector`; `None` when there is none.
    pub(crate) fn service_changed(&mut self, key: &Key, selector: Option<Labels>) {
        match selector.filter(|selector| !selector.is_empty()) {
            Some(selector) => self.services.insert(key.clone(), selector),
            None => self.services.remove(key),
        };
    }

    /// The selector of a ReplicationController, ReplicaSet or StatefulSet.
    pub(crate) fn controller_changed(&mut self, kind: &str, key: &Key, selector: Option<Selector>) {
        let identity = (kind.to_owned(), key.clone());
        match selector {
            Some(selector) => self.controllers.insert(identity, selector),
            None => self.controllers.remove(&identity),
        };
    }

    /// What selects the pods that belong together with this one: the services it is behind and its controller
    /// (Kubernetes' `DefaultSelector`). `None` when it belongs to nothing.
    pub(crate) fn selector_of(&self, pod: &PodInfo) -> Option<Selector> {
        let mut labels = Labels::new();
        let services = self.services.range(Key::new(&pod.key.namespace, "")..);
        for (_, selector) in services.take_while(|(key, _)| key.namespace == pod.key.namespace) {
            if selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value)) {
                labels.extend(selector.clone());
            }
        }
        let mut selector = Selector::labels(&labels);
        if let Some(owner) = controller_of(&pod.pod.metadata)
            && let Some(more) = self.controllers.get(&(owner.kind.clone(), Key::new(&pod.key.namespace, &owner.name)))
        {
            selector.also(more.clone());
        }
        (!selector.is_everything()).then_some(selector)
    }
}
