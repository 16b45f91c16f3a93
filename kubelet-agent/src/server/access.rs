//! Owns who may use the node's API: certificates of the cluster's CA, and of those the API server (and other
//! masters) at once; anybody else is looked up by SubjectAccessReview on `nodes/<subresource>`, as the kubelet does.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::Api;
use kube::api::PostParams;
use parking_lot::Mutex;
use rustls::ServerConnection;
use x509_parser::prelude::{FromDer as _, X509Certificate};

const MASTERS: &str = "system:masters";
/// How long an answer is remembered.
const REMEMBER: Duration = Duration::from_secs(10);

/// Who is at the other end; `None` without a certificate.
#[derive(Clone, Debug, Default)]
pub(crate) struct Peer(pub(crate) Option<User>);

/// The subject of a client certificate.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) groups: Vec<String>,
}

/// The user of a connection: common name and organizations of its verified certificate.
pub(crate) fn peer(connection: &ServerConnection) -> Peer {
    let leaf = connection.peer_certificates().and_then(|chain| chain.first());
    Peer(leaf.and_then(|der| {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let subject = certificate.subject();
        let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
        let groups = subject.iter_organization().filter_map(|o| o.as_str().ok().map(str::to_owned)).collect();
        Some(User { name, groups })
    }))
}

/// The verdict on a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Granted,
    /// no certificate
    Unknown,
    /// not allowed
    Denied,
}

/// Who, verb, subresource.
type Question = (User, String, String);

/// Decides, and remembers for a little while.
pub(crate) struct Gate {
    client: kube::Client,
    node: String,
    answers: Mutex<HashMap<Question, (Instant, bool)>>,
}

impl Gate {
    pub(crate) fn new(client: kube::Client, node: String) -> Self {
        Self { client, node, answers: Mutex::default() }
    }

    /// Whether `peer` may do `method` on `path`.
    pub(crate) async fn check(&self, peer: &Peer, method: &http::Method, path: &str) -> Access {
        let Some(user) = &peer.0 else { return Access::Unknown };
        if user.groups.iter().any(|g| g == MASTERS) {
            return Access::Granted;
        }
        let verb = match *method {
            http::Method::POST => "create",
            http::Method::PUT => "update",
            http::Method::PATCH => "patch",
            http::Method::DELETE => "delete",
            _ => "get",
        };
        let key = (user.clone(), verb.to_owned(), subresource(path).to_owned());
        if let Some((at, allowed)) = self.answers.lock().get(&key)
            && at.elapsed() < REMEMBER
        {
            return if *allowed { Access::Granted } else { Access::Denied };
        }
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(user.name.clone()),
                groups: Some(user.groups.clone()),
                resource_attributes: Some(ResourceAttributes {
                    verb: Some(key.1.clone()),
                    version: Some("v1".to_owned()),
                    resource: Some("nodes".to_owned()),
                    subresource: Some(key.2.clone()),
                    name: Some(self.node.clone()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let api: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let allowed = match api.create(&PostParams::default(), &review).await {
            Ok(answer) => answer.status.is_some_and(|s| s.allowed),
            Err(error) => {
                tracing::warn!(%error, "access to the node's API could not be reviewed; it is denied");
                return Access::Denied;
            }
        };
        let mut answers = self.answers.lock();
        answers.retain(|_, (at, _)| at.elapsed() < REMEMBER);
        answers.insert(key, (Instant::now(), allowed));
        if allowed { Access::Granted } else { Access::Denied }
    }
}

/// The subresource of `nodes` a path stands for (Kubernetes documentation, "Kubelet authorization").
fn subresource(path: &str) -> &'static str {
    match path.split('/').nth(1) {
        Some("stats") => "stats",
        Some("metrics") => "metrics",
        Some("logs") => "log",
        Some("pods" | "runningpods") => "pods",
        Some("healthz") => "healthz",
        _ => "proxy",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stand_for_subresources_of_the_node() {
        for (path, want) in [
            ("/stats/summary", "stats"),
            ("/metrics", "metrics"),
            ("/pods", "pods"),
            ("/exec/a/b/c", "proxy"),
            ("/containerLogs/a/b/c", "proxy"),
        ] {
            assert_eq!(subresource(path), want, "{path}");
        }
    }
}
