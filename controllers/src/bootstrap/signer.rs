//! What the cluster tells newcomers about itself, `kube-public/cluster-info`, is signed with every token that may: who has
//! the token knows that it comes from those who gave it, before any certificate is trusted.
//!
//! Owns the keys `jws-kubeconfig-<id>` of that ConfigMap. Never its `kubeconfig`: the API server writes that.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::Patch;
use serde_json::{Value, json};

use super::token::{TYPE, Token};
use crate::{ActError, Context, Informer, Key, Loop, Plan, Queue, Writes, patch::params};

/// The ConfigMap.
pub const CLUSTER_INFO: &str = "cluster-info";
/// Where it is.
pub const PUBLIC: &str = "kube-public";
/// What is signed.
pub const KUBECONFIG: &str = "kubeconfig";
/// What the key of a signature starts with; the token's id follows.
pub const SIGNATURE: &str = "jws-kubeconfig-";

/// The loop over the one ConfigMap.
pub struct BootstrapSigner {
    maps: Informer<ConfigMap>,
    secrets: Informer<Secret>,
}

impl BootstrapSigner {
    /// The loop of that context.
    pub fn new(context: &Context) -> Self {
        BootstrapSigner { maps: context.informers.named(CLUSTER_INFO), secrets: context.informers.of_type(TYPE) }
    }
}

/// The ConfigMap and all tokens.
#[derive(Debug)]
pub struct Seen {
    map: Arc<ConfigMap>,
    tokens: Vec<Token>,
}

/// The changes to its data: signatures to write, and others to take out.
pub type Changes = BTreeMap<String, Option<String>>;

/// Decides which signatures are to be written and which removed.
fn plan(seen: &Seen, now: Timestamp) -> Plan<Changes> {
    let mut plan = Plan::nothing();
    let data = seen.map.data.clone().unwrap_or_default();
    let mut wanted: BTreeMap<String, String> = BTreeMap::new();
    if let Some(text) = data.get(KUBECONFIG) {
        for token in seen.tokens.iter().filter(|token| token.signs && !token.is_over(now)) {
            wanted.insert(format!("{SIGNATURE}{}", token.id), token.signature(text));
            if let Some(expires) = token.expires {
                plan.look_again(std::time::Duration::try_from(expires.duration_since(now)).unwrap_or_default());
            }
        }
    }
    let mut changes: Changes = BTreeMap::new();
    for key in data.keys().filter(|key| key.starts_with(SIGNATURE) && !wanted.contains_key(*key)) {
        changes.insert(key.clone(), None);
    }
    changes.extend(
        wanted.into_iter().filter(|(key, value)| data.get(key) != Some(value)).map(|(key, value)| (key, Some(value))),
    );
    if !changes.is_empty() {
        plan.actions.push(changes);
    }
    plan
}

fn key() -> Key {
    Key::new(PUBLIC, CLUSTER_INFO)
}

impl Loop for BootstrapSigner {
    type Seen = Seen;
    type Action = Changes;

    fn name(&self) -> &'static str {
        "bootstrap-signer"
    }

    fn wire(&self, queue: &Queue) {
        let to = queue.clone();
        self.maps.on_change(move |change| {
            if change.key == key() {
                to.add(key());
            }
        });
        let to = queue.clone();
        self.secrets.on_change(move |_| to.add(key()));
    }

    fn ready(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            tokio::join!(self.maps.synced(), self.secrets.synced());
        })
    }

    fn see(&self, key: &Key) -> Option<Seen> {
        let secrets = self.secrets.in_namespace(super::token::NAMESPACE);
        let tokens = secrets.iter().filter_map(|secret| Token::of(secret)).collect();
        Some(Seen { map: self.maps.get(key)?, tokens })
    }

    fn plan(&self, seen: &Seen, now: Timestamp) -> Plan<Changes> {
        plan(seen, now)
    }

    async fn act(&self, key: &Key, changes: Changes, writes: &Writes) -> Result<(), ActError> {
        let changes: serde_json::Map<String, Value> =
            changes.into_iter().map(|(key, value)| (key, value.map_or(Value::Null, Value::from))).collect();
        let patch = Patch::Merge(json!({"data": changes}));
        let written = self.maps.api(&key.namespace).patch(&key.name, &params(), &patch).await?;
        writes.wrote(&self.maps, &written);
        Ok(())
    }

    fn workers(&self) -> usize {
        1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_that_may_signs_what_is_said_and_no_other_does() {
        let token = |id: &str, signs: bool, expires: &str| Token {
            id: id.into(),
            secret: "0123456789abcdef".into(),
            signs,
            expires: (!expires.is_empty()).then(|| expires.parse().unwrap()),
            ..Token::default()
        };
        let now: Timestamp = "2026-11-21T20:00:00Z".parse().unwrap();
        let map = |data: Value| Arc::new(serde_json::from_value::<ConfigMap>(json!({"data": data})).unwrap());
        let tokens = vec![
            token("signer", true, "2026-11-21T21:00:00Z"),
            token("bearer", false, ""),
            token("old000", true, "2026-11-21T19:00:00Z"),
        ];
        let said = json!({"kubeconfig": "text", "jws-kubeconfig-gone00": "x", "other": "kept"});
        let seen = Seen { map: map(said), tokens: tokens.clone() };
        let made = plan(&seen, now);
        let signature = tokens[0].signature("text");
        let expected: Changes =
            [("jws-kubeconfig-signer".to_owned(), Some(signature.clone())), ("jws-kubeconfig-gone00".to_owned(), None)]
                .into();
        assert_eq!(made.actions, [expected]);
        assert_eq!(made.again, Some(std::time::Duration::from_secs(3600)));
        let settled = Seen { map: map(json!({"kubeconfig": "text", "jws-kubeconfig-signer": signature})), tokens };
        assert!(plan(&settled, now).actions.is_empty());
        let later = "2026-11-21T21:00:00Z".parse().unwrap();
        assert_eq!(plan(&settled, later).actions.len(), 1, "a token that has run out signs nothing");
    }
}
