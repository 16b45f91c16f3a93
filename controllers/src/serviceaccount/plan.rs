//! What every namespace must have. Pure.

use crate::Plan;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use std::sync::Arc;

/// The service account of pods that name none.
pub const DEFAULT_ACCOUNT: &str = "default";
/// The ConfigMap with the certificate of the API server's CA.
pub const ROOT_CA: &str = "kube-root-ca.crt";
pub(super) const CA_KEY: &str = "ca.crt";

/// A namespace with what decides about it.
#[derive(Debug)]
pub struct Seen {
    /// The namespace.
    pub namespace: Arc<Namespace>,
    /// Whether the default account is there.
    pub has_account: bool,
    /// The ConfigMap, if it is there.
    pub root_ca: Option<Arc<ConfigMap>>,
    /// The certificate to publish, PEM; `None` when this process was not told one.
    pub certificate: Option<Arc<str>>,
}

/// One write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The default service account is missing.
    CreateAccount,
    /// The ConfigMap is missing.
    CreateRootCa,
    /// The ConfigMap holds something else.
    CorrectRootCa,
}

/// What is missing in a namespace that is not going away.
pub fn plan(seen: &Seen) -> Plan<Action> {
    let phase = seen.namespace.status.as_ref().and_then(|status| status.phase.as_deref());
    if seen.namespace.metadata.deletion_timestamp.is_some() || phase == Some("Terminating") {
        return Plan::nothing();
    }
    let mut actions = Vec::new();
    if !seen.has_account {
        actions.push(Action::CreateAccount);
    }
    if let Some(certificate) = &seen.certificate {
        match &seen.root_ca {
            None => actions.push(Action::CreateRootCa),
            Some(held) => {
                let data = held.data.iter().flatten().map(|(key, value)| (key.as_str(), value.as_str()));
                if !data.eq([(CA_KEY, &**certificate)]) {
                    actions.push(Action::CorrectRootCa);
                }
            }
        }
    }
    Plan::act(actions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn said(namespace: Value, has_account: bool, data: Option<Value>, certificate: Option<&str>) -> Vec<Action> {
        plan(&Seen {
            namespace: Arc::new(serde_json::from_value(namespace).unwrap()),
            has_account,
            root_ca: data.map(|data| Arc::new(serde_json::from_value(json!({"metadata": {}, "data": data})).unwrap())),
            certificate: certificate.map(Arc::from),
        })
        .actions
    }

    #[test]
    fn a_namespace_gets_what_is_missing_and_nothing_else() {
        let here = json!({"metadata": {"name": "a"}});
        assert_eq!(said(here.clone(), false, None, Some("pem")), [Action::CreateAccount, Action::CreateRootCa]);
        assert_eq!(said(here.clone(), true, Some(json!({"ca.crt": "pem"})), Some("pem")), []);
        assert_eq!(said(here.clone(), true, Some(json!({"ca.crt": "old"})), Some("pem")), [Action::CorrectRootCa]);
        assert_eq!(
            said(here.clone(), true, Some(json!({"ca.crt": "pem", "more": "x"})), Some("pem")),
            [Action::CorrectRootCa]
        );
        assert_eq!(said(here, false, None, None), [Action::CreateAccount]);
    }

    #[test]
    fn a_namespace_that_goes_away_gets_nothing() {
        let going = json!({"metadata": {"name": "a", "deletionTimestamp": "2026-01-01T00:00:00Z"}});
        assert_eq!(said(going, false, None, Some("pem")), []);
        assert_eq!(
            said(json!({"metadata": {"name": "a"}, "status": {"phase": "Terminating"}}), false, None, Some("pem")),
            []
        );
    }
}
