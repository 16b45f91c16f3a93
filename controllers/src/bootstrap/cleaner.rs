//! Bootstrap tokens that have run out are deleted.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, Preconditions};

use super::token::{NAMESPACE, TYPE, Token};
use crate::{ActError, Context, Informer, Key, Loop, Plan, Queue, Writes};

/// The loop over Secrets of tokens.
pub struct TokenCleaner {
    secrets: Informer<Secret>,
}

impl TokenCleaner {
    /// The loop of that context.
    pub fn new(context: &Context) -> Self {
        TokenCleaner { secrets: context.informers.of_type(TYPE) }
    }
}

/// Deletes that one, of that uid.
#[derive(Debug, PartialEq, Eq)]
pub struct Delete {
    uid: Option<String>,
}

/// Decides whether a token has run out.
fn plan(secret: &Secret, now: Timestamp) -> Plan<Delete> {
    let ours = secret.metadata.namespace.as_deref() == Some(NAMESPACE) && secret.metadata.deletion_timestamp.is_none();
    let Some(expires) = Token::of(secret).filter(|_| ours).and_then(|token| token.expires) else {
        return Plan::nothing();
    };
    if expires <= now {
        return Plan::act(vec![Delete { uid: secret.metadata.uid.clone() }]);
    }
    let mut plan = Plan::nothing();
    plan.look_again(Duration::try_from(expires.duration_since(now)).unwrap_or_default());
    plan
}

impl Loop for TokenCleaner {
    type Seen = Arc<Secret>;
    type Action = Delete;

    fn name(&self) -> &'static str {
        "token-cleaner"
    }

    fn wire(&self, queue: &Queue) {
        let to = queue.clone();
        self.secrets.on_change(move |change| to.add(change.key.clone()));
    }

    fn ready(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.secrets.synced())
    }

    fn see(&self, key: &Key) -> Option<Arc<Secret>> {
        self.secrets.get(key)
    }

    fn plan(&self, secret: &Arc<Secret>, now: Timestamp) -> Plan<Delete> {
        plan(secret, now)
    }

    async fn act(&self, key: &Key, delete: Delete, _: &Writes) -> Result<(), ActError> {
        let preconditions = Some(Preconditions { uid: delete.uid, resource_version: None });
        let parameters = DeleteParams { preconditions, ..DeleteParams::default() };
        self.secrets.api(&key.namespace).delete(&key.name, &parameters).await?;
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
    fn a_token_is_deleted_when_it_has_run_out_and_looked_at_again_until_then() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let token = |expires: Option<&str>| {
            let token = Token {
                id: "abcdef".into(),
                secret: "0123456789abcdef".into(),
                expires: expires.map(at),
                ..Token::default()
            };
            token.to_secret()
        };
        let now = at("2026-11-21T20:00:00Z");
        assert_eq!(plan(&token(Some("2026-11-21T20:00:00Z")), now).actions.len(), 1);
        let later = plan(&token(Some("2026-11-21T20:00:30Z")), now);
        assert_eq!((later.actions.len(), later.again), (0, Some(Duration::from_secs(30))));
        let ever = plan(&token(None), now);
        assert_eq!((ever.actions.len(), ever.again), (0, None));
        let mut elsewhere = token(Some("2020-01-01T00:00:00Z"));
        elsewhere.metadata.namespace = Some("default".into());
        assert!(plan(&elsewhere, now).actions.is_empty(), "only those of kube-system are tokens");
    }
}
