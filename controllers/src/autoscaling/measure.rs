//! What the metrics of an autoscaler say right now, asked over the metrics APIs: `metrics.k8s.io` (Proa's own),
//! `custom.metrics.k8s.io` and `external.metrics.k8s.io` (when somebody serves them).

use crate::{catalogue::Known, scale::Target};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::autoscaling::v2::{CrossVersionObjectReference, MetricIdentifier, MetricSpec},
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use kube::Client;
use proa_apimachinery::{duration, quantity::Quantity, selector};
use proa_crds::Family;
use serde_json::Value;
use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
};

/// What one pod was found to use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Figure {
    /// In thousandths.
    pub value: i64,
    /// The end of the time it was measured over.
    pub at: Timestamp,
    /// How long that was.
    pub window: SignedDuration,
}

/// What one metric was found to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reading {
    /// A figure for each pod that has one.
    Pods(BTreeMap<String, Figure>),
    /// One value in thousandths: an object's, or the sum of external ones.
    Value(i64),
}

/// A reading, or why there is none.
pub type Measured = Result<Reading, String>;

/// Custom metrics say no window when they are averages over the customary one.
const CUSTOMARY_WINDOW: SignedDuration = SignedDuration::from_secs(60);

/// Asks the metrics APIs, which serve what is known.
pub(super) struct Meter {
    client: Client,
    known: Known,
}

/// The answers of one look: pods are listed once for all their resources.
type Lists = HashMap<String, Result<Value, String>>;

impl Meter {
    pub(super) fn new(client: Client, known: Known) -> Meter {
        Meter { client, known }
    }

    /// Every metric of an autoscaler of pods that `selector` selects, in order. Of pods of the custom family no API serves what
    /// they use: a pod of the standard family may have the same name.
    pub(super) async fn measure(
        &self,
        family: Family,
        namespace: &str,
        selector: &str,
        metrics: &[MetricSpec],
    ) -> Vec<Measured> {
        let mut lists = Lists::new();
        let mut measured = Vec::with_capacity(metrics.len());
        for metric in metrics {
            measured.push(match unserved(family, metric) {
                Some(name) => Err(format!(
                    "unable to get metric {name}: no metrics API serves it of pods of {}; use an object or external metric",
                    family.pod().api_version
                )),
                None => self.one(namespace, selector, metric, &mut lists).await,
            });
        }
        measured
    }

    async fn one(&self, namespace: &str, selector: &str, metric: &MetricSpec, lists: &mut Lists) -> Measured {
        if let Some(source) = &metric.resource {
            return self.resource(namespace, selector, &source.name, None, lists).await;
        }
        if let Some(source) = &metric.container_resource {
            return self.resource(namespace, selector, &source.name, Some(&source.container), lists).await;
        }
        if let Some(source) = &metric.pods {
            return self.pods(namespace, selector, &source.metric).await;
        }
        if let Some(source) = &metric.object {
            return self.object(namespace, &source.described_object, &source.metric).await;
        }
        if let Some(source) = &metric.external {
            return self.external(namespace, &source.metric).await;
        }
        Err(format!("unknown metric source type {:?}", metric.type_))
    }

    async fn resource(
        &self,
        namespace: &str,
        selector: &str,
        resource: &str,
        container: Option<&str>,
        lists: &mut Lists,
    ) -> Measured {
        let path = format!("/apis/metrics.k8s.io/v1beta1/namespaces/{namespace}/pods");
        let path = format!("{path}?{}", query(&[("labelSelector", selector)]));
        let list = match lists.get(&path) {
            Some(list) => list.clone(),
            None => {
                let list = self.get(&path).await;
                lists.insert(path, list.clone());
                list
            }
        };
        let wrong = |why: String| format!("unable to get metrics for resource {resource}: {why}");
        let list = list.map_err(|why| wrong(format!("unable to fetch metrics from resource metrics API: {why}")))?;
        let pods = items(&list);
        if pods.is_empty() {
            return Err(wrong("no metrics returned from resource metrics API".to_owned()));
        }
        resources(pods, resource, container).map(Reading::Pods).map_err(wrong)
    }

    async fn pods(&self, namespace: &str, selector: &str, metric: &MetricIdentifier) -> Measured {
        let named = selector_text(metric.selector.as_ref());
        let version = self.version("custom.metrics.k8s.io", "v1beta2");
        let query = query(&[("labelSelector", selector), ("metricLabelSelector", &named)]);
        let name = escaped(&metric.name);
        let path = format!("/apis/custom.metrics.k8s.io/{version}/namespaces/{namespace}/pods/*/{name}?{query}");
        let wrong = |why: String| format!("unable to get metric {}: {why}", metric.name);
        let list = self.get(&path).await;
        let list = list.map_err(|why| wrong(format!("unable to fetch metrics from custom metrics API: {why}")))?;
        let values = items(&list);
        if values.is_empty() {
            return Err(wrong("no metrics returned from custom metrics API".to_owned()));
        }
        Ok(Reading::Pods(values.iter().filter_map(custom).collect()))
    }

    async fn object(
        &self,
        namespace: &str,
        object: &CrossVersionObjectReference,
        metric: &MetricIdentifier,
    ) -> Measured {
        let wrong = |why: String| {
            format!("unable to get metric {}: {} on {namespace} {}/{why}", metric.name, object.kind, object.name)
        };
        let api_version = object.api_version.clone().unwrap_or_else(|| "v1".to_owned());
        let target = Target {
            api_version,
            kind: object.kind.clone(),
            namespace: namespace.to_owned(),
            name: object.name.clone(),
        };
        let found = self.known.find(&target.api_version, &target.kind);
        let resource = found.ok_or_else(|| wrong(format!("no matches for kind {:?}", object.kind)))?;
        let plural = match resource.api.group.as_str() {
            "" => resource.api.plural.clone(),
            group => format!("{}.{group}", resource.api.plural),
        };
        let root = format!("/apis/custom.metrics.k8s.io/{}", self.version("custom.metrics.k8s.io", "v1beta2"));
        let query = query(&[("metricLabelSelector", &selector_text(metric.selector.as_ref()))]);
        let (object, name) = (escaped(&object.name), escaped(&metric.name));
        let path = match (resource.namespaced, plural.as_str()) {
            (true, _) => format!("{root}/namespaces/{namespace}/{plural}/{object}/{name}?{query}"),
            (false, "namespaces") => format!("{root}/namespaces/{object}/metrics/{name}?{query}"),
            (false, _) => format!("{root}/{plural}/{object}/{name}?{query}"),
        };
        let list = self.get(&path).await;
        let list = list.map_err(|why| wrong(format!("unable to fetch metrics from custom metrics API: {why}")))?;
        let value = items(&list).first().and_then(|value| milli(&value["value"]));
        value.map(Reading::Value).ok_or_else(|| wrong("no metrics returned from custom metrics API".to_owned()))
    }

    async fn external(&self, namespace: &str, metric: &MetricIdentifier) -> Measured {
        let selector = selector_text(metric.selector.as_ref());
        let name = escaped(&metric.name);
        let version = self.version("external.metrics.k8s.io", "v1beta1");
        let path = format!("/apis/external.metrics.k8s.io/{version}/namespaces/{namespace}/{name}");
        let path = format!("{path}?{}", query(&[("labelSelector", &selector)]));
        let wrong =
            |why: String| format!("unable to get external metric {namespace}/{}/{selector}: {why}", metric.name);
        let list = self.get(&path).await;
        let list = list.map_err(|why| wrong(format!("unable to fetch metrics from external metrics API: {why}")))?;
        let values: Vec<i64> = items(&list).iter().filter_map(|value| milli(&value["value"])).collect();
        match values.is_empty() {
            true => Err(wrong("no metrics returned from external metrics API".to_owned())),
            false => Ok(Reading::Value(values.into_iter().fold(0, i64::saturating_add))),
        }
    }

    /// The version somebody serves of a group.
    fn version(&self, group: &str, usual: &str) -> String {
        let served = self.known.resources.iter().find(|resource| resource.api.group == group);
        served.map_or_else(|| usual.to_owned(), |resource| resource.api.version.clone())
    }

    async fn get(&self, path: &str) -> Result<Value, String> {
        let params = kube::api::GetParams::default();
        let mut request = kube::core::Request::new("/").get("x", &params).map_err(|error| error.to_string())?;
        *request.uri_mut() = path.parse().map_err(|_| format!("{path:?} is no path"))?;
        self.client.request(request).await.map_err(|error| match error {
            kube::Error::Api(status) => status.message.clone(),
            other => other.to_string(),
        })
    }
}

/// The name of a metric of single pods, where these are of the custom family.
fn unserved(family: Family, metric: &MetricSpec) -> Option<&str> {
    if family == Family::Standard {
        return None;
    }
    let used = metric.resource.as_ref().map(|source| &source.name);
    let used = used.or(metric.container_resource.as_ref().map(|source| &source.name));
    used.or(metric.pods.as_ref().map(|source| &source.metric.name)).map(String::as_str)
}

fn items(list: &Value) -> &[Value] {
    list["items"].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn milli(value: &Value) -> Option<i64> {
    let milli = Quantity::from_value(value).ok()?.as_milli();
    Some(i64::try_from(milli).unwrap_or(i64::MAX))
}

/// What each pod of a PodMetricsList uses of a resource, all containers or one. A pod whose containers do not all say
/// is left out.
fn resources(pods: &[Value], resource: &str, wanted: Option<&str>) -> Result<BTreeMap<String, Figure>, String> {
    let mut figures = BTreeMap::new();
    for pod in pods {
        let text = |pointer: &str| pod.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let (namespace, name) = (text("/metadata/namespace"), text("/metadata/name"));
        let containers = pod["containers"].as_array().map(Vec::as_slice).unwrap_or_default();
        let mut meant = containers.iter().filter(|c| wanted.is_none_or(|wanted| c["name"] == wanted)).peekable();
        if let (None, Some(wanted)) = (meant.peek(), wanted) {
            return Err(format!("container {wanted} not present in metrics for pod {namespace}/{name}"));
        }
        let sum =
            meant.map(|c| milli(&c["usage"][resource])).try_fold(0i64, |sum, used| Some(sum.saturating_add(used?)));
        let (Some(value), Ok(at)) = (sum, text("/timestamp").parse()) else { continue };
        let window = duration::parse_go(text("/window")).ok().and_then(|window| SignedDuration::try_from(window).ok());
        figures.insert(name.to_owned(), Figure { value, at, window: window.unwrap_or_default() });
    }
    Ok(figures)
}

/// One value of a MetricValueList, by its pod.
fn custom(value: &Value) -> Option<(String, Figure)> {
    let name = value.pointer("/describedObject/name")?.as_str()?;
    let window = value["windowSeconds"].as_i64().map_or(CUSTOMARY_WINDOW, SignedDuration::from_secs);
    let at = value["timestamp"].as_str().and_then(|text| text.parse().ok()).unwrap_or(Timestamp::MIN);
    Some((name.to_owned(), Figure { value: milli(&value["value"])?, at, window }))
}

/// A selector in its text form.
pub(super) fn selector_text(given: Option<&LabelSelector>) -> String {
    let parsed = given.map(|given| selector::LabelSelector::from_value(&crate::patch::json(given)));
    parsed.and_then(Result::ok).map(|selector| selector.to_string()).unwrap_or_default()
}

/// The pairs that have a value, as a query.
fn query(pairs: &[(&str, &str)]) -> String {
    let given = pairs.iter().filter(|(_, value)| !value.is_empty());
    given.map(|(key, value)| format!("{key}={}", escaped(value))).collect::<Vec<_>>().join("&")
}

/// Percent-encoded (RFC 3986): what is not unreserved.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            // Writing to a string cannot fail.
            other => drop(write!(out, "%{other:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::Resource;
    use kube::core::ApiResource;
    use serde_json::json;
    use std::sync::Arc;

    fn pod(name: &str, containers: Value) -> Value {
        json!({"metadata": {"namespace": "ns", "name": name}, "timestamp": "2026-11-21T10:00:00Z", "window": "15s", "containers": containers})
    }

    #[test]
    fn a_pods_figure_is_the_sum_of_its_containers_or_one_of_them() {
        let pods = [
            pod("a", json!([{"name": "x", "usage": {"cpu": "250m"}}, {"name": "y", "usage": {"cpu": "1"}}])),
            pod("b", json!([{"name": "x", "usage": {"cpu": "1500000n"}}, {"name": "y", "usage": {}}])),
        ];
        let all = resources(&pods, "cpu", None).unwrap();
        assert_eq!(all.len(), 1, "a pod whose containers do not all say is left out");
        assert_eq!((all["a"].value, all["a"].window), (1250, SignedDuration::from_secs(15)));
        let one = resources(&pods, "cpu", Some("x")).unwrap();
        assert_eq!([one["a"].value, one["b"].value], [250, 2]);
        let why = resources(&pods, "cpu", Some("z")).unwrap_err();
        assert_eq!(why, "container z not present in metrics for pod ns/a");
    }

    #[test]
    fn selectors_and_names_go_into_the_path_escaped() {
        assert_eq!(query(&[("labelSelector", "a in (b,c)"), ("x", "")]), "labelSelector=a%20in%20%28b%2Cc%29");
        assert_eq!(escaped("queue|depth"), "queue%7Cdepth");
    }

    /// Somebody serves `custom.metrics.k8s.io` and `external.metrics.k8s.io` in these versions.
    fn known() -> Known {
        let resource = |group: &str, version: &str, kind: &str, plural: &str, namespaced| {
            let api_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
            let (group, version) = (group.to_owned(), version.to_owned());
            let api = ApiResource { group, version, api_version, kind: kind.into(), plural: plural.into() };
            Arc::new(Resource { api, namespaced, verbs: Vec::new() })
        };
        let resources = vec![
            resource("networking.k8s.io", "v1", "Ingress", "ingresses", true),
            resource("", "v1", "Namespace", "namespaces", false),
            resource("", "v1", "Node", "nodes", false),
            resource("custom.metrics.k8s.io", "v1beta1", "MetricValueList", "pods/queue", true),
            resource("external.metrics.k8s.io", "v1beta1", "ExternalMetricValueList", "depth", true),
        ];
        Known { resources, failures: Vec::new() }
    }

    /// What is measured of these metrics of the pods `app=web` when every request is answered so, and what was asked.
    async fn measured(family: Family, metrics: Value, status: u16, answer: Value) -> (Vec<Measured>, Vec<String>) {
        let (client, asked) = crate::sim::client(move |_| (status, answer.to_string()));
        let metrics: Vec<MetricSpec> = serde_json::from_value(metrics).unwrap();
        let measured = Meter::new(client, known()).measure(family, "ns", "app=web", &metrics).await;
        let asked = asked.lock().clone();
        (measured, asked)
    }

    fn object(kind: &str, api_version: &str, name: &str) -> Value {
        json!({"type": "Object", "object": {"describedObject": {"apiVersion": api_version, "kind": kind, "name": name},
            "metric": {"name": "requests per second", "selector": {"matchLabels": {"verb": "GET"}}}, "target": {"type": "Value", "value": "1"}}})
    }

    /// The paths of the custom metrics API (KEP-117; k8s.io/metrics, `custom_metrics/versioned_client.go`).
    #[tokio::test]
    async fn metrics_of_pods_and_objects_are_asked_of_the_custom_metrics_api() {
        let pods = json!([{"type": "Pods", "pods": {"metric": {"name": "queue", "selector": {"matchLabels": {"q": "in"}}}, "target": {"type": "AverageValue", "averageValue": "1"}}}]);
        let list = json!({"items": [
            {"describedObject": {"name": "web-1"}, "timestamp": "2026-11-21T10:00:00Z", "value": "2500m"},
            {"describedObject": {"name": "web-2"}, "timestamp": "2026-11-21T10:00:00Z", "value": "1"},
        ]});
        let (found, asked) = measured(Family::Standard, pods, 200, list).await;
        let Ok(Reading::Pods(figures)) = &found[0] else { panic!("{found:?}") };
        assert_eq!((figures["web-1"].value, figures["web-2"].value), (2500, 1000));
        let root = "/apis/custom.metrics.k8s.io/v1beta1";
        assert_eq!(
            asked,
            [format!("{root}/namespaces/ns/pods/*/queue?labelSelector=app%3Dweb&metricLabelSelector=q%3Din")]
        );

        let objects = json!([
            object("Ingress", "networking.k8s.io/v1", "main"),
            object("Namespace", "v1", "ns"),
            object("Node", "v1", "n1")
        ]);
        let (found, asked) = measured(Family::Standard, objects, 200, json!({"items": [{"value": "3"}]})).await;
        assert_eq!(found, vec![Ok(Reading::Value(3000)); 3]);
        let (name, labels) = ("requests%20per%20second", "metricLabelSelector=verb%3DGET");
        let expected = [
            format!("{root}/namespaces/ns/ingresses.networking.k8s.io/main/{name}?{labels}"),
            format!("{root}/namespaces/ns/metrics/{name}?{labels}"),
            format!("{root}/nodes/n1/{name}?{labels}"),
        ];
        assert_eq!(asked, expected);
    }

    #[tokio::test]
    async fn external_metrics_are_summed_and_what_the_server_says_is_passed_on() {
        let metric = json!([{"type": "External", "external": {"metric": {"name": "depth", "selector": {"matchLabels": {"queue": "in"}}}, "target": {"type": "AverageValue", "averageValue": "1"}}}]);
        let values = json!({"items": [{"value": "1500m"}, {"value": "2"}]});
        let (found, asked) = measured(Family::Standard, metric.clone(), 200, values).await;
        assert_eq!(found, [Ok(Reading::Value(3500))]);
        assert_eq!(asked, ["/apis/external.metrics.k8s.io/v1beta1/namespaces/ns/depth?labelSelector=queue%3Din"]);
        let (found, _) = measured(Family::Standard, metric.clone(), 200, json!({"items": []})).await;
        assert_eq!(
            found,
            [Err("unable to get external metric ns/depth/queue=in: no metrics returned from external metrics API"
                .to_owned())]
        );
        let gone = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404, "message": "the server could not find the requested resource"});
        let (found, _) = measured(Family::Standard, metric, 404, gone).await;
        assert_eq!(found, [Err("unable to get external metric ns/depth/queue=in: unable to fetch metrics from external metrics API: the server could not find the requested resource".to_owned())]);
    }

    #[tokio::test]
    async fn what_pods_of_the_custom_family_use_is_refused_by_name_and_other_metrics_are_asked() {
        let cpu = json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}});
        let metrics = json!([cpu, object("Node", "v1", "n1")]);
        let (found, asked) = measured(Family::Proa, metrics, 200, json!({"items": [{"value": "3"}]})).await;
        assert_eq!(found[0], Err("unable to get metric cpu: no metrics API serves it of pods of proa.dev/v1; use an object or external metric".to_owned()));
        assert_eq!((&found[1], asked.len()), (&Ok(Reading::Value(3000)), 1));
    }

    #[test]
    fn a_custom_metric_without_a_window_is_taken_over_a_minute() {
        let value = json!({"describedObject": {"name": "a"}, "timestamp": "2026-11-21T10:00:00Z", "value": "2500m"});
        let (name, figure) = custom(&value).unwrap();
        assert_eq!((name.as_str(), figure.value, figure.window), ("a", 2500, CUSTOMARY_WINDOW));
    }
}
