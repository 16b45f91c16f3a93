//! What every namespace must have: a default service account, and the certificate by which its pods know the API server.
//!
//! Owns: the ServiceAccount `default` and the ConfigMap `kube-root-ca.crt` of every namespace. Never makes tokens: the
//! API server does.

mod plan;

pub use plan::{Action, DEFAULT_ACCOUNT, ROOT_CA, Seen, plan};

use crate::{ActError, Context, Informer, Key, Loop, Plan, Queue, Writes, patch::params};
use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use kube::{
    api::{Patch, PostParams},
    core::ObjectMeta,
};
use plan::CA_KEY;
use serde_json::json;
use std::sync::Arc;

/// Why the ConfigMap is there, for those who find it.
const DESCRIPTION: (&str, &str) = (
    "kubernetes.io/description",
    "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the \
     internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes \
     clusters.",
);

/// The loop over namespaces.
pub struct ServiceAccounts {
    namespaces: Informer<Namespace>,
    accounts: Informer<ServiceAccount>,
    maps: Informer<ConfigMap>,
    certificate: Option<Arc<str>>,
}

impl ServiceAccounts {
    /// The loop of that context; `certificate` is the CA's, PEM. Without one no certificate is published.
    pub fn new(context: &Context, certificate: Option<&str>) -> Self {
        ServiceAccounts {
            namespaces: context.informers.of(),
            accounts: context.informers.of(),
            // One map of each namespace, of however many there are.
            maps: context.informers.named(ROOT_CA),
            certificate: certificate.map(Arc::from),
        }
    }
}

impl Loop for ServiceAccounts {
    type Seen = Seen;
    type Action = Action;

    fn name(&self) -> &'static str {
        "serviceaccount"
    }

    fn wire(&self, queue: &Queue) {
        let to = queue.clone();
        self.namespaces.on_change(move |change| to.add(change.key.clone()));
        let to = queue.clone();
        self.accounts.on_change(move |change| {
            if &*change.key.name == DEFAULT_ACCOUNT && change.new.is_none() {
                to.add(Key::new("", &change.key.namespace));
            }
        });
        let to = queue.clone();
        self.maps.on_change(move |change| {
            if &*change.key.name == ROOT_CA {
                to.add(Key::new("", &change.key.namespace));
            }
        });
    }

    fn ready(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            tokio::join!(self.namespaces.synced(), self.accounts.synced(), self.maps.synced());
        })
    }

    fn see(&self, key: &Key) -> Option<Seen> {
        Some(Seen {
            namespace: self.namespaces.get(key)?,
            has_account: self.accounts.get(&Key::new(&key.name, DEFAULT_ACCOUNT)).is_some(),
            root_ca: self.maps.get(&Key::new(&key.name, ROOT_CA)),
            certificate: self.certificate.clone(),
        })
    }

    fn plan(&self, seen: &Seen, _now: Timestamp) -> Plan<Action> {
        plan(seen)
    }

    async fn act(&self, key: &Key, action: Action, writes: &Writes) -> Result<(), ActError> {
        let metadata = |name: &str| ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(key.name.to_string()),
            ..Default::default()
        };
        let certificate = self.certificate.as_deref().unwrap_or_default();
        let post = PostParams::default();
        match action {
            Action::CreateAccount => {
                let account = ServiceAccount { metadata: metadata(DEFAULT_ACCOUNT), ..Default::default() };
                writes.wrote(&self.accounts, &self.accounts.api(&key.name).create(&post, &account).await?);
            }
            Action::CreateRootCa => {
                let annotations = [DESCRIPTION].map(|(key, value)| (key.to_owned(), value.to_owned())).into();
                let map = ConfigMap {
                    metadata: ObjectMeta { annotations: Some(annotations), ..metadata(ROOT_CA) },
                    data: Some([(CA_KEY.to_owned(), certificate.to_owned())].into()),
                    ..Default::default()
                };
                writes.wrote(&self.maps, &self.maps.api(&key.name).create(&post, &map).await?);
            }
            Action::CorrectRootCa => {
                // Keys of others go: null in a merge patch, so the ones there must be named.
                let held = self.maps.get(&Key::new(&key.name, ROOT_CA));
                let mut data: serde_json::Map<_, _> = held
                    .iter()
                    .flat_map(|map| map.data.iter().flatten())
                    .map(|(key, _)| (key.clone(), json!(null)))
                    .collect();
                data.insert(CA_KEY.to_owned(), json!(certificate));
                let patch = json!({"data": data});
                let map = self.maps.api(&key.name).patch(ROOT_CA, &params(), &Patch::Merge(&patch)).await?;
                writes.wrote(&self.maps, &map);
            }
        }
        Ok(())
    }
}
