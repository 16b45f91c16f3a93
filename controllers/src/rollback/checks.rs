//! The checks of a policy: questions to the pods of a new revision, through the API server's proxy of pods and services.
//!
//! There is no check of any other address: whoever may write a policy in a namespace could otherwise make the control plane
//! send requests anywhere. Pods of the custom family have such a proxy on Proa's own API server alone: on another one nothing
//! is asked, and that is no failed answer.

mod metric;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::{apis::meta::v1::APIResourceList, util::intstr::IntOrString};
use kube::{Client, client::Body};
use parking_lot::Mutex;
use proa_crds::{
    Family,
    policy::{Check, HttpCheck, MetricCheck},
};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

/// An answer takes no longer.
const TIMEOUT: Duration = Duration::from_secs(2);
/// So many pods are asked in one round, the first by name: the others run the same.
const ASKED: usize = 10;

/// How a check of a revision stands.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Standing {
    /// So many failed answers in a row, the last ones.
    pub(crate) failures: u32,
    /// When it was asked last.
    pub(crate) asked: Option<Timestamp>,
    /// What the last failed answer was.
    pub(crate) said: String,
    /// The pod that gave it.
    pub(crate) pod: Option<String>,
    /// What the counters of the pods were when they were asked last.
    pub(crate) counters: BTreeMap<String, (f64, Timestamp)>,
}

/// How the checks of every revision stand: by the uid of the revision, and the name of the check. Kept in memory: who
/// starts anew asks anew.
#[derive(Clone, Default)]
pub(crate) struct Answers(Arc<Mutex<HashMap<String, BTreeMap<String, Standing>>>>);

impl Answers {
    /// How the checks of that revision stand.
    pub(crate) fn of(&self, revision: &str) -> BTreeMap<String, Standing> {
        self.0.lock().get(revision).cloned().unwrap_or_default()
    }

    /// Forgets a revision.
    pub(crate) fn forget(&self, revision: &str) {
        self.0.lock().remove(revision);
    }
}

/// The proxies of pods and services of one family.
#[derive(Clone)]
pub(crate) struct Proxies {
    client: Client,
    family: Family,
    served: Arc<tokio::sync::OnceCell<bool>>,
}

impl Proxies {
    /// Those of that family.
    pub(crate) fn new(client: Client, family: Family) -> Self {
        Proxies { client, family, served: Arc::default() }
    }

    /// Whether the API server has them. It is asked once.
    async fn are_served(&self) -> Result<bool, kube::Error> {
        let look = async || {
            if self.family == Family::Standard {
                return Ok(true);
            }
            let request = get(&root(self.family)).map_err(|error| kube::Error::Service(error.into()))?;
            let list: APIResourceList = self.client.request(request).await?;
            let served = list.resources.iter().any(|resource| resource.name == "pods/proxy");
            if !served {
                tracing::warn!(
                    "this API server has no proxy to pods of the custom family: checks of policies ask nothing"
                );
            }
            Ok(served)
        };
        self.served.get_or_try_init(look).await.copied()
    }

    fn path(&self, namespace: &str, resource: &str, name: &str, port: &IntOrString, path: &str) -> String {
        let port = match port {
            IntOrString::Int(number) => number.to_string(),
            IntOrString::String(name) => name.clone(),
        };
        format!("{}/namespaces/{namespace}/{resource}/{name}:{port}/proxy{path}", root(self.family))
    }
}

/// Where pods and services of a family are served.
fn root(family: Family) -> String {
    let pods = family.pod();
    if pods.group.is_empty() { "/api/v1".to_owned() } else { format!("/apis/{}", pods.api_version) }
}

/// A check that is due.
#[derive(Clone, Debug)]
pub struct Question {
    /// The uid of the revision.
    pub(crate) revision: String,
    /// What to ask.
    pub(crate) check: Check,
    /// The ready pods of the revision.
    pub(crate) pods: Vec<String>,
}

/// The checks to ask now of these ready pods, and when the next is due.
pub(crate) fn due(
    checks: &[Check],
    standing: &BTreeMap<String, Standing>,
    revision: &str,
    mut pods: Vec<String>,
    now: Timestamp,
) -> (Vec<Question>, Option<Duration>) {
    if pods.is_empty() {
        return (Vec::new(), None);
    }
    pods.sort();
    pods.truncate(ASKED);
    let mut next: Option<Duration> = None;
    let mut due = Vec::new();
    for check in checks {
        let period = Duration::from_secs(check.period_seconds.into());
        let asked = standing.get(&check.name).and_then(|standing| standing.asked);
        let stood = asked.map(|asked| Duration::try_from(now.duration_since(asked)).unwrap_or_default());
        match stood.and_then(|stood| period.checked_sub(stood)).filter(|left| !left.is_zero()) {
            None => {
                due.push(Question { revision: revision.to_owned(), check: check.clone(), pods: pods.clone() });
                next = Some(next.map_or(period, |next| next.min(period)));
            }
            Some(left) => next = Some(next.map_or(left, |next| next.min(left))),
        }
    }
    (due, next)
}

/// Why an answer counts as failed: which pod, and what it said.
type Failed = (Option<String>, String);

/// Asks, and takes down the answer.
pub(crate) async fn ask(proxies: &Proxies, namespace: &str, question: &Question, answers: &Answers, now: Timestamp) {
    let Question { revision, check, pods } = question;
    let mut standing = answers.of(revision).remove(&check.name).unwrap_or_default();
    let outcome = match (&check.http, &check.metric) {
        // Who cannot be asked has not failed.
        _ if !proxies.are_served().await.unwrap_or(false) => Ok(()),
        (Some(http), _) => ask_http(proxies, namespace, http, pods).await,
        (None, Some(metric)) => ask_metric(proxies, namespace, metric, pods, &mut standing.counters, now).await,
        (None, None) => Ok(()),
    };
    standing.asked = Some(now);
    match outcome {
        Ok(()) => standing.failures = 0,
        Err((pod, said)) => {
            standing.failures = standing.failures.saturating_add(1);
            (standing.pod, standing.said) = (pod, said);
        }
    }
    answers.0.lock().entry(revision.clone()).or_default().insert(check.name.clone(), standing);
}

async fn ask_http(proxies: &Proxies, namespace: &str, check: &HttpCheck, pods: &[String]) -> Result<(), Failed> {
    if let Some(service) = &check.service {
        let path = proxies.path(namespace, "services", service, &check.port, &check.path);
        return status_of(&proxies.client, path, check).await.map_err(|said| (None, said));
    }
    let answers = pods.iter().map(|pod| async move {
        let path = proxies.path(namespace, "pods", pod, &check.port, &check.path);
        status_of(&proxies.client, path, check).await.map_err(|said| (Some(pod.clone()), said))
    });
    futures::future::join_all(answers).await.into_iter().collect()
}

/// What is wrong with the answer, in words.
async fn status_of(client: &Client, path: String, check: &HttpCheck) -> Result<(), String> {
    let request = get(&path)?;
    let status = match tokio::time::timeout(TIMEOUT, client.send(request.map(Body::from))).await {
        Err(_) => return Err(format!("no answer within {} s", TIMEOUT.as_secs())),
        Ok(Err(error)) => return Err(error.to_string()),
        Ok(Ok(response)) => response.status().as_u16(),
    };
    let well = if check.status.is_empty() { (200..400).contains(&status) } else { check.status.contains(&status) };
    if well { Ok(()) } else { Err(format!("GET {} was answered with {status}", check.path)) }
}

fn get(path: &str) -> Result<http::Request<Vec<u8>>, String> {
    http::Request::get(path).body(Vec::new()).map_err(|error| error.to_string())
}

async fn ask_metric(
    proxies: &Proxies,
    namespace: &str,
    check: &MetricCheck,
    pods: &[String],
    counters: &mut BTreeMap<String, (f64, Timestamp)>,
    now: Timestamp,
) -> Result<(), Failed> {
    let texts = pods.iter().map(|pod| async move {
        let path = proxies.path(namespace, "pods", pod, &check.port, &check.path);
        let said = |error: String| (Some(pod.clone()), error);
        let request = get(&path).map_err(said)?;
        match tokio::time::timeout(TIMEOUT, proxies.client.request_text(request)).await {
            Err(_) => Err(said(format!("no answer within {} s", TIMEOUT.as_secs()))),
            Ok(text) => text.map(|text| (pod.clone(), text)).map_err(|error| said(error.to_string())),
        }
    });
    let texts: Vec<(String, String)> =
        futures::future::join_all(texts).await.into_iter().collect::<Result<_, Failed>>()?;
    metric::judge(check, &texts, counters, now).map_err(|said| (None, said))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_check_is_due_at_once_and_then_once_a_period_while_a_pod_is_ready() {
        let checks: Vec<Check> = serde_json::from_value(json!([
            {"name": "a", "http": {"port": 80}, "periodSeconds": 5}, {"name": "b", "http": {"port": "http"}, "periodSeconds": 60},
        ]))
        .expect("checks");
        let now: Timestamp = "2026-11-21T10:00:00Z".parse().expect("a time");
        let asked = |seconds| Standing { asked: Some(now - Duration::from_secs(seconds)), ..Standing::default() };
        let names = |standing: &[(&str, u64)], pods: &[&str]| {
            let standing = standing.iter().map(|(name, ago)| ((*name).to_owned(), asked(*ago))).collect();
            let (due, next) = due(&checks, &standing, "rs", pods.iter().map(|pod| (*pod).to_owned()).collect(), now);
            (
                due.iter().map(|one| one.check.name.clone()).collect::<Vec<_>>().join(","),
                next.map(|next| next.as_secs()),
            )
        };
        assert_eq!(names(&[], &[]), (String::new(), None));
        assert_eq!(names(&[], &["p"]), ("a,b".into(), Some(5)));
        assert_eq!(names(&[("a", 4), ("b", 4)], &["p"]), (String::new(), Some(1)));
        assert_eq!(names(&[("a", 5), ("b", 5)], &["p"]), ("a".into(), Some(5)));
    }

    async fn failures(family: Family, answer: fn(&str) -> (u16, &'static str)) -> (u32, Vec<String>) {
        let (client, asked) = crate::sim::client(move |path| {
            let (status, body) = answer(path);
            (status, body.to_owned())
        });
        let check =
            serde_json::from_value(json!({"name": "a", "http": {"port": "http", "path": "/x?y=1"}})).expect("a check");
        let question = Question { revision: "r".into(), check, pods: vec!["p".into()] };
        let (answers, now) = (Answers::default(), "2026-11-21T10:00:00Z".parse().expect("a time"));
        let proxies = Proxies::new(client, family);
        ask(&proxies, "ns", &question, &answers, now).await;
        ask(&proxies, "ns", &question, &answers, now).await;
        let asked = asked.lock().clone();
        (answers.of("r")["a"].failures, asked)
    }

    #[tokio::test]
    async fn pods_of_either_family_are_asked_where_the_server_has_a_proxy_to_them() {
        const PATH: &str = "/namespaces/ns/pods/p:http/proxy/x?y=1";
        let (failed, asked) = failures(Family::Standard, |_| (503, "")).await;
        assert_eq!((failed, &asked[..]), (2, &[format!("/api/v1{PATH}"), format!("/api/v1{PATH}")][..]));
        let ours = |path: &str| match path {
            "/apis/proa.dev/v1" => (
                200,
                r#"{"kind": "APIResourceList", "groupVersion": "proa.dev/v1", "resources": [{"name": "pods/proxy", "singularName": "", "namespaced": true, "kind": "PodProxyOptions", "verbs": ["get"]}]}"#,
            ),
            _ => (503, ""),
        };
        let (failed, asked) = failures(Family::Proa, ours).await;
        assert_eq!((failed, asked.len(), asked[2].as_str()), (2, 3, format!("/apis/proa.dev/v1{PATH}").as_str()));
        let another = |path: &str| match path {
            "/apis/proa.dev/v1" => {
                (200, r#"{"kind": "APIResourceList", "groupVersion": "proa.dev/v1", "resources": []}"#)
            }
            _ => (404, ""),
        };
        let (failed, asked) = failures(Family::Proa, another).await;
        assert_eq!((failed, asked.len()), (0, 1), "what cannot be asked has not failed");
    }
}
