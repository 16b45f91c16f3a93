//! What one metric of an autoscaler asks for, in the terms of its object: replicas, a name, a status. Pure.

use super::{
    calculator::{self, Population, Proposal},
    measure::{Measured, Reading, selector_text},
};
use k8s_openapi::{
    api::autoscaling::v2::{
        ContainerResourceMetricStatus, ExternalMetricStatus, MetricIdentifier, MetricSpec, MetricStatus, MetricTarget,
        MetricValueStatus, ObjectMetricStatus, PodsMetricStatus, ResourceMetricStatus,
    },
    apimachinery::pkg::api::resource::Quantity,
};
use proa_apimachinery::quantity;

/// A metric's wish.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Wish {
    pub(super) replicas: i32,
    /// As events and conditions name the metric.
    pub(super) name: String,
    pub(super) status: MetricStatus,
}

/// Why a metric has none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// Of the event and of the condition `ScalingActive`.
    pub(super) reason: &'static str,
    /// What went wrong.
    pub(super) message: String,
    /// The same, with what the caller was about.
    pub(super) error: String,
}

fn milli(quantity: &Quantity) -> i64 {
    let milli = quantity::Quantity::parse(&quantity.0).map_or(0, |quantity| quantity.as_milli());
    i64::try_from(milli).unwrap_or(i64::MAX)
}

fn quantity(milli: i64) -> Quantity {
    Quantity(quantity::Quantity::from_milli(milli).to_string())
}

/// What a metric that was measured asks for.
pub(super) fn wish(of: &Population<'_>, metric: &MetricSpec, measured: &Measured) -> Result<Wish, Failure> {
    let status = |fill: &dyn Fn(&mut MetricStatus)| {
        let mut status = MetricStatus { type_: metric.type_.clone(), ..Default::default() };
        fill(&mut status);
        status
    };
    if let Some(source) = &metric.resource {
        let failure =
            failing("FailedGetResourceMetric", format!("failed to get {} resource metric value", source.name));
        let (proposal, name) = resource(of, &source.name, None, &source.target, measured).map_err(failure)?;
        let current = resource_status(&proposal);
        let status = status(&|status| {
            status.resource = Some(ResourceMetricStatus { name: source.name.clone(), current: current.clone() });
        });
        return Ok(Wish { replicas: proposal.replicas, name, status });
    }
    if let Some(source) = &metric.container_resource {
        let doing = format!("failed to get {} container metric value", source.name);
        let failure = failing("FailedGetContainerResourceMetric", doing);
        let container = Some(source.container.as_str());
        let (proposal, name) = resource(of, &source.name, container, &source.target, measured).map_err(failure)?;
        let current = resource_status(&proposal);
        let status = status(&|status| {
            let (name, container) = (source.name.clone(), source.container.clone());
            status.container_resource =
                Some(ContainerResourceMetricStatus { name, container, current: current.clone() });
        });
        return Ok(Wish { replicas: proposal.replicas, name, status });
    }
    if let Some(source) = &metric.pods {
        let failure = failing("FailedGetPodsMetric", "failed to get pods metric value".to_owned());
        let target = source.target.average_value.as_ref().map_or(0, milli);
        let proposal = figures(measured).and_then(|figures| calculator::average(of, figures, "", target));
        let proposal = proposal.map_err(|why| failure(format!("failed to get pods metric value: {why}")))?;
        let status = status(&|status| {
            let current = MetricValueStatus { average_value: Some(quantity(proposal.usage)), ..Default::default() };
            status.pods = Some(PodsMetricStatus { metric: source.metric.clone(), current });
        });
        return Ok(Wish { replicas: proposal.replicas, name: format!("pods metric {}", source.metric.name), status });
    }
    if let Some(source) = &metric.object {
        let failure = failing("FailedGetObjectMetric", "failed to get object metric value".to_owned());
        let shared = shared(of, &source.target, measured, "object");
        let (proposal, current) =
            shared.map_err(|(why, _)| failure(format!("failed to get object metric value: {why}")))?;
        let status = status(&|status| {
            status.object = Some(ObjectMetricStatus {
                described_object: source.described_object.clone(),
                metric: source.metric.clone(),
                current: current.clone(),
            });
        });
        let name = format!("{} metric {}", source.described_object.kind, source.metric.name);
        return Ok(Wish { replicas: proposal.replicas, name, status });
    }
    if let Some(source) = &metric.external {
        let name = &source.metric.name;
        let failure = failing("FailedGetExternalMetric", format!("failed to get {name} external metric value"));
        let shared = shared(of, &source.target, measured, "external");
        let (proposal, current) = shared.map_err(|(why, per_pod)| {
            failure(match per_pod {
                true => format!("failed to get {name} external metric: {why}"),
                false => format!("failed to get external metric {name}: {why}"),
            })
        })?;
        let status = status(&|status| {
            status.external = Some(ExternalMetricStatus { metric: source.metric.clone(), current: current.clone() });
        });
        return Ok(Wish { replicas: proposal.replicas, name: external_name(&source.metric), status });
    }
    let message = format!("unknown metric source type {:?}", metric.type_);
    Err(Failure { reason: "InvalidMetricSourceType", error: message.clone(), message })
}

/// Makes failures: what it is called, and what the caller was doing.
fn failing(reason: &'static str, doing: String) -> impl Fn(String) -> Failure {
    move |message| Failure { reason, error: format!("{doing}: {message}"), message }
}

fn external_name(metric: &MetricIdentifier) -> String {
    format!("external metric {}({})", metric.name, selector_text(metric.selector.as_ref()))
}

fn figures(measured: &Measured) -> Result<&calculator::Figures, String> {
    match measured {
        Ok(Reading::Pods(figures)) => Ok(figures),
        Ok(Reading::Value(_)) => Err("one value where each pod should have its own".to_owned()),
        Err(why) => Err(why.clone()),
    }
}

fn resource_status(proposal: &Proposal) -> MetricValueStatus {
    MetricValueStatus {
        average_utilization: proposal.utilization,
        average_value: Some(quantity(proposal.usage)),
        value: None,
    }
}

fn resource(
    of: &Population<'_>,
    resource: &str,
    container: Option<&str>,
    target: &MetricTarget,
    measured: &Measured,
) -> Result<(Proposal, String), String> {
    let kind = if container.is_some() { "container resource" } else { "resource" };
    if let Some(average) = &target.average_value {
        let proposal = figures(measured).and_then(|figures| calculator::average(of, figures, resource, milli(average)));
        let proposal = proposal.map_err(|why| format!("failed to get {resource} usage: {why}"))?;
        return Ok((proposal, format!("{resource} {kind}")));
    }
    let Some(percent) = target.average_utilization else {
        return Err(
            "invalid resource metric source: neither an average utilization target nor an average value (usage) target was set".to_owned(),
        );
    };
    let proposal =
        figures(measured).and_then(|figures| calculator::utilization(of, figures, resource, container, percent));
    let proposal = proposal.map_err(|why| format!("failed to get {resource} utilization: {why}"))?;
    Ok((proposal, format!("{resource} {kind} utilization (percentage of request)")))
}

/// One value that all pods share, against a target for it or for its part per pod. What fails says which of the two.
fn shared(
    of: &Population<'_>,
    target: &MetricTarget,
    measured: &Measured,
    source: &str,
) -> Result<(Proposal, MetricValueStatus), (String, bool)> {
    let per_pod = target.average_value.as_ref();
    let value = match measured {
        Ok(Reading::Value(value)) => *value,
        Ok(Reading::Pods(_)) => {
            return Err(("figures of pods where one value should be".to_owned(), per_pod.is_some()));
        }
        Err(why) => return Err((why.clone(), per_pod.is_some())),
    };
    if let Some(average) = per_pod {
        let proposal = calculator::value_per_pod(of, value, milli(average));
        let current = MetricValueStatus { average_value: Some(quantity(proposal.usage)), ..Default::default() };
        return Ok((proposal, current));
    }
    let Some(wanted) = &target.value else {
        let why = format!("invalid {source} metric source: neither a value target nor an average value target was set");
        return Err((why, false));
    };
    let proposal = calculator::value(of, value, milli(wanted)).map_err(|why| (why, false))?;
    let current = MetricValueStatus { value: Some(quantity(proposal.usage)), ..Default::default() };
    Ok((proposal, current))
}
