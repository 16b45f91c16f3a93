//! The server's own numbers, under Kubernetes' names.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge as Number;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::cache::Caches;
use crate::kinds::Kind;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    verb: String,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VerbLabels {
    verb: String,
    resource: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WatcherLabels {
    group: String,
    version: String,
    kind: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResourceLabels {
    resource: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestKind {
    request_kind: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WebhookLabels {
    name: String,
    operation: &'static str,
    rejected: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RejectionLabels {
    name: String,
    operation: &'static str,
    error_type: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FailOpenLabels {
    name: String,
    operation: &'static str,
}

/// The metrics of one server.
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    durations: Family<VerbLabels, Histogram, fn() -> Histogram>,
    watchers: Family<WatcherLabels, Number>,
    objects: Family<ResourceLabels, Number>,
    inflight: Family<RequestKind, Number>,
    webhooks: Family<WebhookLabels, Histogram, fn() -> Histogram>,
    webhook_rejections: Family<RejectionLabels, Counter>,
    webhook_fail_open: Family<FailOpenLabels, Counter>,
    /// Requests refused because too many were running.
    pub rejected: Counter,
}

/// One of something that is open; closes when dropped.
pub struct Gauge(Number);

impl Drop for Gauge {
    fn drop(&mut self) {
        self.0.dec();
    }
}

fn duration_histogram() -> Histogram {
    Histogram::new([0.001, 0.005, 0.025, 0.1, 0.5, 2.0, 10.0, 60.0])
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let requests = Family::default();
        let durations: Family<VerbLabels, Histogram, fn() -> Histogram> =
            Family::new_with_constructor(duration_histogram);
        let (watchers, objects, inflight, rejected) =
            (Family::default(), Family::default(), Family::default(), Counter::default());
        // The library appends `_total` to counters.
        registry.register("apiserver_request", "Requests by verb, resource and code", Family::clone(&requests));
        registry.register(
            "apiserver_request_duration_seconds",
            "Time to answer, watches left out",
            Family::clone(&durations),
        );
        registry.register("apiserver_longrunning_requests", "Watches open", Family::clone(&watchers));
        registry.register("apiserver_storage_objects", "Stored objects by resource", Family::clone(&objects));
        registry.register("apiserver_current_inflight_requests", "Requests running", Family::clone(&inflight));
        registry.register("apiserver_flowcontrol_rejected_requests", "Requests refused as too many", rejected.clone());
        let webhooks: Family<WebhookLabels, Histogram, fn() -> Histogram> =
            Family::new_with_constructor(duration_histogram);
        let (webhook_rejections, webhook_fail_open) = (Family::default(), Family::default());
        registry.register(
            "apiserver_admission_webhook_admission_duration_seconds",
            "Time webhooks took to answer",
            Family::clone(&webhooks),
        );
        registry.register(
            "apiserver_admission_webhook_rejection_count",
            "Requests refused by webhooks or for want of their answer",
            Family::clone(&webhook_rejections),
        );
        registry.register(
            "apiserver_admission_webhook_fail_open_count",
            "Webhooks that failed and were passed over",
            Family::clone(&webhook_fail_open),
        );
        Metrics {
            registry,
            requests,
            durations,
            watchers,
            objects,
            inflight,
            webhooks,
            webhook_rejections,
            webhook_fail_open,
            rejected,
        }
    }
}

impl Metrics {
    /// Counts an answered request.
    pub fn answered(&self, info: &crate::request_info::RequestInfo, code: u16, took: Duration) {
        let verb = info.verb.to_ascii_uppercase();
        // A resource that does not exist must not make a time series per typing error.
        let known = code != 404 || !info.name.is_empty();
        let resource = if known { info.resource.clone() } else { String::new() };
        let labels = RequestLabels {
            verb: verb.clone(),
            group: if known { info.group.clone() } else { String::new() },
            version: if known { info.version.clone() } else { String::new() },
            resource: resource.clone(),
            subresource: if known { info.subresource.clone() } else { String::new() },
            code,
        };
        self.requests.get_or_create(&labels).inc();
        if info.verb != "watch" {
            self.durations.get_or_create(&VerbLabels { verb, resource }).observe(took.as_secs_f64());
        }
    }

    /// A watch that opens.
    pub fn watcher(&self, kind: &Kind) -> Gauge {
        let labels = WatcherLabels {
            group: kind.group.to_string(),
            version: kind.version.to_string(),
            kind: kind.kind.to_string(),
        };
        let number = self.watchers.get_or_create_owned(&labels);
        number.inc();
        Gauge(number)
    }

    /// A request that starts.
    pub fn running(&self, mutating: bool) -> Gauge {
        let request_kind = if mutating { "mutating" } else { "readOnly" }.to_owned();
        let number = self.inflight.get_or_create_owned(&RequestKind { request_kind });
        number.inc();
        Gauge(number)
    }

    /// A webhook that was called; `rejected`: it refused, or gave no answer.
    pub fn webhook_called(&self, name: &str, operation: &'static str, rejected: bool, took: Duration) {
        let labels = WebhookLabels { name: name.to_owned(), operation, rejected };
        self.webhooks.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// A request refused by a webhook, or because of one that failed.
    pub fn webhook_rejected(&self, name: &str, operation: &'static str, error_type: &'static str) {
        let labels = RejectionLabels { name: name.to_owned(), operation, error_type };
        self.webhook_rejections.get_or_create(&labels).inc();
    }

    /// A webhook that failed and is passed over, as its policy says.
    pub fn webhook_failed_open(&self, name: &str, operation: &'static str) {
        self.webhook_fail_open.get_or_create(&FailOpenLabels { name: name.to_owned(), operation }).inc();
    }

    /// Everything in the text format of Prometheus.
    pub fn text(&self, caches: &Caches) -> String {
        for cache in caches.all() {
            let labels = ResourceLabels { resource: cache.name().to_string() };
            self.objects.get_or_create(&labels).set(i64::try_from(cache.len()).unwrap_or(i64::MAX));
        }
        let mut out = String::new();
        // Writing into a String cannot fail.
        let _ = encode(&mut out, &self.registry);
        out
    }
}
