//! Owns the cells of built-in kinds' tables, pods aside: small total functions from an object to what
//! kubectl users know (`pkg/printers/internalversion`). Never decides anything.

use jiff::Timestamp;
use proa_apimachinery::selector::LabelSelector;
use proa_apimachinery::{Object, duration};
use serde_json::Value;

const NONE: &str = "<none>";

fn string<'a>(value: &'a Value, path: &[&str]) -> &'a str {
    path.iter().try_fold(value, |v, field| v.get(*field)).and_then(Value::as_str).unwrap_or_default()
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn or_none(text: String) -> Value {
    if text.is_empty() { NONE.into() } else { text.into() }
}

/// The first `limit` of the texts, and how many more there are.
fn some_of(texts: Vec<String>, limit: usize, separator: &str) -> String {
    let more = texts.len().saturating_sub(limit);
    let shown = texts.into_iter().take(limit).collect::<Vec<_>>().join(separator);
    if more == 0 { shown } else { format!("{shown} + {more} more...") }
}

pub(super) fn name(object: &Object, _: Timestamp) -> Value {
    object.name().into()
}

pub(super) fn age(object: &Object, now: Timestamp) -> Value {
    age_at(object, &["metadata", "creationTimestamp"], "<unknown>", now)
}

pub(super) fn created_at(object: &Object, _: Timestamp) -> Value {
    object.creation_timestamp().into()
}

pub(super) fn age_at(object: &Object, path: &[&str], missing: &str, now: Timestamp) -> Value {
    match object.get_str(path).filter(|t| !t.is_empty()) {
        Some(time) => duration::age(Some(time), now).into(),
        None => missing.into(),
    }
}

pub(super) fn count(object: &Object, path: &[&str]) -> Value {
    object.get_i64(path).unwrap_or(0).into()
}

pub(super) fn length(object: &Object, path: &[&str]) -> Value {
    match object.get(path) {
        Some(Value::Array(items)) => items.len().into(),
        Some(Value::Object(map)) => map.len().into(),
        _ => 0.into(),
    }
}

pub(super) fn flag(object: &Object, path: &[&str]) -> Value {
    object.get_bool(path).unwrap_or(false).into()
}

pub(super) fn text_or(object: &Object, path: &[&str], missing: &str) -> Value {
    match object.get(path) {
        None | Some(Value::Null) => missing.into(),
        Some(Value::String(text)) if text.is_empty() => missing.into(),
        Some(value) => plain(value).into(),
    }
}

pub(super) fn trimmed(object: &Object, path: &[&str]) -> Value {
    object.get_str(path).unwrap_or_default().trim().into()
}

pub(super) fn joined(object: &Object, path: &[&str], field: Option<&str>, missing: &str) -> Value {
    let texts: Vec<String> = object
        .get_list(path)
        .iter()
        .map(|item| plain(field.map_or(Some(item), |f| item.get(f)).unwrap_or(&Value::Null)))
        .collect();
    if texts.is_empty() { missing.into() } else { texts.join(",").into() }
}

fn names_of(containers: Option<&Value>, field: &str) -> Value {
    let items = containers.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    items.iter().map(|c| string(c, &[field])).collect::<Vec<_>>().join(",").into()
}

pub(super) fn template_containers(object: &Object, _: Timestamp) -> Value {
    names_of(object.get(&["spec", "template", "spec", "containers"]), "name")
}
pub(super) fn template_images(object: &Object, _: Timestamp) -> Value {
    names_of(object.get(&["spec", "template", "spec", "containers"]), "image")
}
pub(super) fn own_template_containers(object: &Object, _: Timestamp) -> Value {
    names_of(object.get(&["template", "spec", "containers"]), "name")
}
pub(super) fn own_template_images(object: &Object, _: Timestamp) -> Value {
    names_of(object.get(&["template", "spec", "containers"]), "image")
}
pub(super) fn own_template_labels(object: &Object, _: Timestamp) -> Value {
    labels_or_none(object, &["template", "metadata", "labels"])
}
pub(super) fn cron_containers(object: &Object, _: Timestamp) -> Value {
    names_of(object.get(&["spec", "jobTemplate", "spec", "template", "spec", "containers"]), "name")
}
pub(super) fn cron_images(object: &Object, _: Timestamp) -> Value {
    names_of(object.get(&["spec", "jobTemplate", "spec", "template", "spec", "containers"]), "image")
}
pub(super) fn cron_selector(object: &Object, _: Timestamp) -> Value {
    format_selector(object.get(&["spec", "jobTemplate", "spec", "selector"]))
}

pub(super) fn labels_or_none(object: &Object, path: &[&str]) -> Value {
    let mut texts: Vec<String> = match object.get(path) {
        Some(Value::Object(map)) => map.iter().map(|(k, v)| format!("{k}={}", plain(v))).collect(),
        _ => Vec::new(),
    };
    texts.sort();
    or_none(texts.join(","))
}

/// A `metav1.LabelSelector`; nothing reads `<none>`.
pub(super) fn format_selector(selector: Option<&Value>) -> Value {
    match selector.map(LabelSelector::from_value) {
        Some(Ok(selector)) => or_none(selector.to_string()),
        Some(Err(_)) => "<error>".into(),
        None => NONE.into(),
    }
}

/// `spec.selector`, be it a label selector or a map of labels.
pub(super) fn selector(object: &Object, _: Timestamp) -> Value {
    let Some(selector) = object.get(&["spec", "selector"]) else { return NONE.into() };
    if selector.get("matchLabels").is_some_and(Value::is_object) || selector.get("matchExpressions").is_some() {
        format_selector(Some(selector))
    } else {
        labels_or_none(object, &["spec", "selector"])
    }
}

pub(super) fn ready_of_desired(object: &Object, _: Timestamp) -> Value {
    let ready = object.get_i64(&["status", "readyReplicas"]).unwrap_or(0);
    let desired = object.get_i64(&["spec", "replicas"]).unwrap_or(0);
    format!("{ready}/{desired}").into()
}

pub(super) fn controller(object: &Object, _: Timestamp) -> Value {
    let Some(owner) = object.controller() else { return NONE.into() };
    let kind = owner.kind.to_lowercase();
    match owner.api_version.split_once('/') {
        Some((group, _)) => format!("{kind}.{group}/{}", owner.name).into(),
        None => format!("{kind}/{}", owner.name).into(),
    }
}

fn has_condition(object: &Object, type_: &str) -> bool {
    object
        .get_list(&["status", "conditions"])
        .iter()
        .any(|c| string(c, &["type"]) == type_ && string(c, &["status"]) == "True")
}

pub(super) fn condition_status(object: &Object, type_: &str, missing: &str) -> Value {
    let found = object.get_list(&["status", "conditions"]).iter().find(|c| string(c, &["type"]) == type_);
    found.map_or(missing, |c| string(c, &["status"])).into()
}

pub(super) fn job_status(job: &Object, _: Timestamp) -> Value {
    for done in ["Complete", "Failed"] {
        if has_condition(job, done) {
            return done.into();
        }
    }
    if job.deletion_timestamp().is_some() {
        return "Terminating".into();
    }
    for state in ["Suspended", "FailureTarget", "SuccessCriteriaMet"] {
        if has_condition(job, state) {
            return state.into();
        }
    }
    "Running".into()
}

pub(super) fn job_completions(job: &Object, _: Timestamp) -> Value {
    let done = job.get_i64(&["status", "succeeded"]).unwrap_or(0);
    match (job.get_i64(&["spec", "completions"]), job.get_i64(&["spec", "parallelism"]).unwrap_or(0)) {
        (Some(wanted), _) => format!("{done}/{wanted}"),
        (None, parallel @ 2..) => format!("{done}/1 of {parallel}"),
        (None, _) => format!("{done}/1"),
    }
    .into()
}

pub(super) fn job_duration(job: &Object, now: Timestamp) -> Value {
    let time = |field: &str| job.get_str(&["status", field]).and_then(|t| t.parse::<Timestamp>().ok());
    match time("startTime") {
        Some(start) => {
            let end = time("completionTime").unwrap_or(now);
            duration::human(end.as_second() - start.as_second()).into()
        }
        None => "".into(),
    }
}

pub(super) fn cron_suspend(job: &Object, _: Timestamp) -> Value {
    if job.get_bool(&["spec", "suspend"]) == Some(true) { "True".into() } else { "False".into() }
}

pub(super) fn cluster_ip(service: &Object, _: Timestamp) -> Value {
    let first = service.get_list(&["spec", "clusterIPs"]).first().and_then(Value::as_str);
    first.or_else(|| service.get_str(&["spec", "clusterIP"])).filter(|t| !t.is_empty()).unwrap_or(NONE).into()
}

pub(super) fn external_ip(service: &Object, now: Timestamp) -> Value {
    let external = joined(service, &["spec", "externalIPs"], None, "");
    let external = external.as_str().unwrap_or_default();
    match service.get_str(&["spec", "type"]).unwrap_or_default() {
        "ExternalName" => text_or(service, &["spec", "externalName"], NONE),
        "LoadBalancer" => {
            let balancer = load_balancer_address(service, now);
            match (balancer.as_str().unwrap_or_default(), external) {
                ("", "") => "<pending>".into(),
                ("", one) | (one, "") => one.into(),
                (a, b) => format!("{a},{b}").into(),
            }
        }
        _ if external.is_empty() => NONE.into(),
        _ => external.into(),
    }
}

pub(super) fn load_balancer_address(object: &Object, _: Timestamp) -> Value {
    let texts: Vec<&str> = object
        .get_list(&["status", "loadBalancer", "ingress"])
        .iter()
        .map(|i| if string(i, &["ip"]).is_empty() { string(i, &["hostname"]) } else { string(i, &["ip"]) })
        .filter(|t| !t.is_empty())
        .collect();
    texts.join(",").into()
}

pub(super) fn service_ports(service: &Object, _: Timestamp) -> Value {
    let texts: Vec<String> = service
        .get_list(&["spec", "ports"])
        .iter()
        .map(|p| {
            let number = |field: &str| p.get(field).and_then(Value::as_i64).unwrap_or(0);
            let protocol = string(p, &["protocol"]);
            match number("nodePort") {
                0 => format!("{}/{protocol}", number("port")),
                node => format!("{}:{node}/{protocol}", number("port")),
            }
        })
        .collect();
    or_none(texts.join(","))
}

pub(super) fn endpoints(object: &Object, _: Timestamp) -> Value {
    let mut texts = Vec::new();
    for subset in object.get_list(&["subsets"]) {
        let empty = Vec::new();
        let list = |field: &str| subset.get(field).and_then(Value::as_array).unwrap_or(&empty);
        for address in list("addresses") {
            let ip = string(address, &["ip"]);
            let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
            match list("ports").as_slice() {
                [] => texts.push(ip.to_owned()),
                ports => texts.extend(
                    ports.iter().map(|p| format!("{host}:{}", p.get("port").and_then(Value::as_i64).unwrap_or(0))),
                ),
            }
        }
    }
    or_none(some_of(texts, 3, ","))
}

pub(super) fn slice_ports(slice: &Object, _: Timestamp) -> Value {
    let texts: Vec<String> =
        slice.get_list(&["ports"]).iter().map(|p| p.get("port").map_or_else(|| "*".to_owned(), plain)).collect();
    if texts.is_empty() { "<unset>".into() } else { some_of(texts, 3, ",").into() }
}

pub(super) fn slice_endpoints(slice: &Object, _: Timestamp) -> Value {
    let texts: Vec<String> = slice
        .get_list(&["endpoints"])
        .iter()
        .flat_map(|e| e.get("addresses").and_then(Value::as_array).into_iter().flatten())
        .map(plain)
        .collect();
    if texts.is_empty() { "<unset>".into() } else { some_of(texts, 3, ",").into() }
}

pub(super) fn node_status(node: &Object, _: Timestamp) -> Value {
    let condition = condition_status(node, "Ready", "");
    let mut text = match condition.as_str() {
        Some("True") => "Ready",
        Some("") | None => "Unknown",
        Some(_) => "NotReady",
    }
    .to_owned();
    if node.get_bool(&["spec", "unschedulable"]) == Some(true) {
        text.push_str(",SchedulingDisabled");
    }
    text.into()
}

pub(super) fn node_roles(node: &Object, _: Timestamp) -> Value {
    let mut roles: Vec<&str> = node
        .labels()
        .filter_map(|(key, value)| match key {
            "kubernetes.io/role" => Some(value),
            key => key.strip_prefix("node-role.kubernetes.io/"),
        })
        .filter(|role| !role.is_empty())
        .collect();
    roles.sort_unstable();
    roles.dedup();
    or_none(roles.join(","))
}

pub(super) fn node_address(node: &Object, type_: &str) -> Value {
    let found = node.get_list(&["status", "addresses"]).iter().find(|a| string(a, &["type"]) == type_);
    found.map_or(NONE, |a| string(a, &["address"])).into()
}

pub(super) fn config_map_size(map: &Object, _: Timestamp) -> Value {
    let size = |field: &str| map.get(&[field]).and_then(Value::as_object).map_or(0, |m| m.len());
    (size("data") + size("binaryData")).into()
}

fn event_time<'a>(event: &'a Object, fields: &[&str]) -> Option<&'a str> {
    fields.iter().find_map(|f| event.get_str(&[f]).filter(|t| !t.is_empty()))
}

pub(super) fn event_last_seen(event: &Object, now: Timestamp) -> Value {
    let series = event.get_str(&["series", "lastObservedTime"]);
    let fields =
        ["lastTimestamp", "deprecatedLastTimestamp", "firstTimestamp", "deprecatedFirstTimestamp", "eventTime"];
    duration::age(series.or_else(|| event_time(event, &fields)), now).into()
}

pub(super) fn event_first_seen(event: &Object, now: Timestamp) -> Value {
    duration::age(event_time(event, &["firstTimestamp", "deprecatedFirstTimestamp", "eventTime"]), now).into()
}

pub(super) fn event_count(event: &Object, _: Timestamp) -> Value {
    let number = |path: &[&str]| event.get_i64(path).filter(|n| *n > 0);
    number(&["series", "count"]).or(number(&["count"])).or(number(&["deprecatedCount"])).unwrap_or(1).into()
}

pub(super) fn event_object(event: &Object, field: &str) -> Value {
    let Some(object) = event.get(&[field]) else { return NONE.into() };
    let (kind, name) = (string(object, &["kind"]).to_lowercase(), string(object, &["name"]));
    if name.is_empty() { kind.into() } else { format!("{kind}/{name}").into() }
}

pub(super) fn event_source(event: &Object, _: Timestamp) -> Value {
    let text = |paths: [&[&str]; 3]| {
        paths.into_iter().find_map(|p| event.get_str(p).filter(|t| !t.is_empty())).unwrap_or_default().to_owned()
    };
    let component = text([&["source", "component"], &["deprecatedSource", "component"], &["reportingController"]]);
    let component = if component.is_empty() { text([&["reportingComponent"], &[], &[]]) } else { component };
    let host = text([&["source", "host"], &["deprecatedSource", "host"], &["reportingInstance"]]);
    if host.is_empty() { component.into() } else { format!("{component}, {host}").into() }
}

pub(super) fn quota(quota: &Object, limits: bool) -> Value {
    let Some(hard) = quota.get(&["status", "hard"]).and_then(Value::as_object) else { return "".into() };
    let mut texts: Vec<String> = hard
        .iter()
        .filter(|(name, _)| name.starts_with("limits") == limits)
        .map(|(name, hard)| {
            let used = quota.get(&["status", "used", name]).map_or_else(|| "0".to_owned(), plain);
            format!("{name}: {used}/{}", plain(hard))
        })
        .collect();
    texts.sort();
    texts.join(", ").into()
}

pub(super) fn access_modes(object: &Object, path: &[&str]) -> Value {
    let given: Vec<&str> = object.get_list(path).iter().filter_map(Value::as_str).collect();
    let modes =
        [("ReadWriteOnce", "RWO"), ("ReadOnlyMany", "ROX"), ("ReadWriteMany", "RWX"), ("ReadWriteOncePod", "RWOP")];
    let short: Vec<&str> = modes.iter().filter(|(long, _)| given.contains(long)).map(|(_, short)| *short).collect();
    short.join(",").into()
}

pub(super) fn volume_status(object: &Object, _: Timestamp) -> Value {
    if object.deletion_timestamp().is_some() {
        return "Terminating".into();
    }
    text_or(object, &["status", "phase"], "")
}

pub(super) fn volume_claim(volume: &Object, _: Timestamp) -> Value {
    match volume.get(&["spec", "claimRef"]) {
        Some(claim) => format!("{}/{}", string(claim, &["namespace"]), string(claim, &["name"])).into(),
        None => "".into(),
    }
}

pub(super) fn hpa_reference(hpa: &Object, _: Timestamp) -> Value {
    let target = hpa.get(&["spec", "scaleTargetRef"]).unwrap_or(&Value::Null);
    format!("{}/{}", string(target, &["kind"]), string(target, &["name"])).into()
}

pub(super) fn hpa_targets(hpa: &Object, _: Timestamp) -> Value {
    if let Some(wanted) = hpa.get_i64(&["spec", "targetCPUUtilizationPercentage"]) {
        let now = hpa.get_i64(&["status", "currentCPUUtilizationPercentage"]);
        let now = now.map_or_else(|| "<unknown>".to_owned(), |n| format!("{n}%"));
        return format!("cpu: {now}/{wanted}%").into();
    }
    let current = hpa.get_list(&["status", "currentMetrics"]);
    let texts: Vec<String> = hpa
        .get_list(&["spec", "metrics"])
        .iter()
        .enumerate()
        .map(|(i, metric)| {
            let type_ = string(metric, &["type"]);
            let mut source = type_.to_owned();
            source.get_mut(..1).iter_mut().for_each(|first| first.make_ascii_lowercase());
            let body = metric.get(&source).unwrap_or(&Value::Null);
            let seen = current.get(i).and_then(|c| c.get(&source)).and_then(|c| c.get("current"));
            let amount = |v: Option<&Value>| {
                let v = v?;
                v.get("averageUtilization")
                    .map(|n| format!("{n}%"))
                    .or_else(|| v.get("averageValue").or_else(|| v.get("value")).map(plain))
            };
            let shown = |v: Option<&Value>| amount(v).unwrap_or_else(|| "<unknown>".to_owned());
            let pair = format!("{}/{}", shown(seen), shown(body.get("target")));
            match type_ {
                "Resource" | "ContainerResource" => format!("{}: {pair}", string(body, &["name"])),
                _ => pair,
            }
        })
        .collect();
    or_none(some_of(texts, 2, ", "))
}

pub(super) fn ingress_hosts(ingress: &Object, _: Timestamp) -> Value {
    let hosts: Vec<String> = ingress
        .get_list(&["spec", "rules"])
        .iter()
        .map(|r| string(r, &["host"]))
        .filter(|h| !h.is_empty())
        .map(str::to_owned)
        .collect();
    if hosts.is_empty() { "*".into() } else { some_of(hosts, 3, ",").into() }
}

pub(super) fn ingress_ports(ingress: &Object, _: Timestamp) -> Value {
    if ingress.get_list(&["spec", "tls"]).is_empty() { "80".into() } else { "80, 443".into() }
}

pub(super) fn ingress_class_parameters(class: &Object, _: Timestamp) -> Value {
    let Some(parameters) = class.get(&["spec", "parameters"]) else { return NONE.into() };
    let (kind, group) = (string(parameters, &["kind"]), string(parameters, &["apiGroup"]));
    let kind = if group.is_empty() { kind.to_owned() } else { format!("{kind}.{group}") };
    format!("{kind}/{}", string(parameters, &["name"])).into()
}

pub(super) fn parent_ref(address: &Object, _: Timestamp) -> Value {
    let Some(parent) = address.get(&["spec", "parentRef"]) else { return NONE.into() };
    let resource = match string(parent, &["group"]) {
        "" => string(parent, &["resource"]).to_owned(),
        group => format!("{}.{group}", string(parent, &["resource"])),
    };
    let parts = [resource.as_str(), string(parent, &["namespace"]), string(parent, &["name"])];
    parts.into_iter().filter(|p| !p.is_empty()).collect::<Vec<_>>().join("/").into()
}

pub(super) fn binding_role(binding: &Object, _: Timestamp) -> Value {
    let role = binding.get(&["roleRef"]).unwrap_or(&Value::Null);
    format!("{}/{}", string(role, &["kind"]), string(role, &["name"])).into()
}

pub(super) fn subjects(binding: &Object, kind: &str) -> Value {
    let texts: Vec<String> = binding
        .get_list(&["subjects"])
        .iter()
        .filter(|s| string(s, &["kind"]) == kind)
        .map(|s| match kind {
            "ServiceAccount" => format!("{}/{}", string(s, &["namespace"]), string(s, &["name"])),
            _ => string(s, &["name"]).to_owned(),
        })
        .collect();
    texts.join(", ").into()
}

pub(super) fn storage_class_name(class: &Object, _: Timestamp) -> Value {
    let default = ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"]
        .iter()
        .any(|key| class.annotation(key) == Some("true"));
    if default { format!("{} (default)", class.name()).into() } else { class.name().into() }
}

pub(super) fn csr_duration(csr: &Object, _: Timestamp) -> Value {
    csr.get_i64(&["spec", "expirationSeconds"]).map_or(NONE.into(), |s| duration::human(s).into())
}

pub(super) fn csr_condition(csr: &Object, _: Timestamp) -> Value {
    let has = |type_: &str| csr.get_list(&["status", "conditions"]).iter().any(|c| string(c, &["type"]) == type_);
    let mut states: Vec<&str> = ["Approved", "Denied", "Failed"].into_iter().filter(|t| has(t)).collect();
    if states.is_empty() {
        states.push("Pending");
    }
    if csr.get_str(&["status", "certificate"]).is_some_and(|c| !c.is_empty()) {
        states.push("Issued");
    }
    states.join(",").into()
}

pub(super) fn param_kind(policy: &Object, _: Timestamp) -> Value {
    match policy.get(&["spec", "paramKind"]) {
        Some(kind) => format!("{}/{}", string(kind, &["apiVersion"]), string(kind, &["kind"])).into(),
        None => "<unset>".into(),
    }
}

pub(super) fn param_ref(binding: &Object, _: Timestamp) -> Value {
    let Some(param) = binding.get(&["spec", "paramRef"]) else { return "<unset>".into() };
    match (string(param, &["namespace"]), string(param, &["name"])) {
        (_, "") => "*".into(),
        ("", name) => name.into(),
        (namespace, name) => format!("{namespace}/{name}").into(),
    }
}

pub(super) fn api_service_target(service: &Object, _: Timestamp) -> Value {
    match service.get(&["spec", "service"]).filter(|s| s.is_object()) {
        Some(target) => format!("{}/{}", string(target, &["namespace"]), string(target, &["name"])).into(),
        None => "Local".into(),
    }
}

pub(super) fn api_service_available(service: &Object, _: Timestamp) -> Value {
    let conditions = service.get_list(&["status", "conditions"]);
    let Some(condition) = conditions.iter().find(|c| string(c, &["type"]) == "Available") else {
        return "Unknown".into();
    };
    match string(condition, &["status"]) {
        "True" => "True".into(),
        status => format!("{status} ({})", string(condition, &["reason"])).into(),
    }
}

pub(super) fn claim_state(claim: &Object, _: Timestamp) -> Value {
    let mut states = Vec::new();
    if claim.deletion_timestamp().is_some() {
        states.push("deleted");
    }
    if claim.get(&["status", "allocation"]).is_some_and(Value::is_object) {
        states.push("allocated");
    }
    if !claim.get_list(&["status", "reservedFor"]).is_empty() {
        states.push("reserved");
    }
    if states.is_empty() { "pending".into() } else { states.join(",").into() }
}
