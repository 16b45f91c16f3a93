//! Owns the strategies of the kinds that steer the API server itself: webhooks (policies are [`super::policies`]),
//! aggregated APIs, flow control. Never calls, evaluates or limits anything.

use proa_apimachinery::cel::Expression;
use proa_apimachinery::field::{FieldError, FieldErrors, Path};
use proa_apimachinery::selector::LabelSelector;
use proa_apimachinery::{Object, names};
use serde_json::{Value, json};

use super::at::{At, map_at, map_in, maps_at, or_set, spec_mut};
use super::{Op, Rules, meta};
use crate::admission::matching::CONDITION_VARIABLES;

pub(super) const WEBHOOKS: Rules = Rules { default: webhook_defaults, validate: webhooks, ..Rules::COUNTED };

fn webhook_defaults(object: &mut Object) {
    let mutating = object.kind() == "MutatingWebhookConfiguration";
    for hook in maps_at(&mut object.0, "webhooks") {
        or_set(hook, "failurePolicy", "Fail");
        or_set(hook, "matchPolicy", "Equivalent");
        map_in(hook, "namespaceSelector");
        map_in(hook, "objectSelector");
        or_set(hook, "timeoutSeconds", 10);
        if mutating {
            or_set(hook, "reinvocationPolicy", "Never");
        }
        for rule in maps_at(hook, "rules") {
            or_set(rule, "scope", "*");
        }
        if let Some(service) = map_at(hook, "clientConfig").and_then(|c| map_at(c, "service")) {
            or_set(service, "port", 443);
        }
    }
}

/// The most match conditions one webhook or policy may have (KEP-3716).
const MOST_CONDITIONS: usize = 64;

fn webhooks(_: Op, new: &Object, old: Option<&Object>, errors: &mut FieldErrors) {
    let mut seen = Vec::new();
    for hook in At::of(new, "webhooks").items() {
        let name = hook.child("name");
        if name.required(errors) {
            name.check(errors, names::is_dns1123_subdomain);
            if name.str().split('.').count() < 3 {
                name.invalid(errors, "should be a domain with at least three segments separated by dots");
            }
            if seen.contains(&name.str()) {
                name.duplicate(errors);
            }
            seen.push(name.str());
        }
        let effects = hook.child("sideEffects");
        if effects.is_empty() {
            effects.missing(errors, "must specify one of None, NoneOnDryRun");
        }
        effects.one_of(errors, &["None", "NoneOnDryRun"]);
        review_versions(&hook.child("admissionReviewVersions"), errors);
        hook.child("failurePolicy").one_of(errors, &["Fail", "Ignore"]);
        hook.child("matchPolicy").one_of(errors, &["Equivalent", "Exact"]);
        hook.child("reinvocationPolicy").one_of(errors, &["IfNeeded", "Never"]);
        let timeout = hook.child("timeoutSeconds");
        if timeout.int().is_some_and(|t| !(1..=30).contains(&t)) {
            timeout.invalid(errors, "the timeout value must be between 1 and 30 seconds");
        }
        for field in ["namespaceSelector", "objectSelector"] {
            selector(&hook.child(field), errors);
        }
        rules(&hook.child("rules"), errors);
        client(&hook.child("clientConfig"), errors);
        conditions(&hook.child("matchConditions"), CONDITION_VARIABLES, stored_expressions(old), errors);
    }
}

/// The versions of a review a webhook understands: one of them must be spoken here.
pub(super) fn review_versions(versions: &At<'_>, errors: &mut FieldErrors) {
    if versions.is_empty() {
        return versions.missing(errors, "must specify one of v1, v1beta1");
    }
    let mut seen = Vec::new();
    for version in versions.items() {
        if seen.contains(&version.str()) {
            version.invalid(errors, "duplicate version");
        }
        seen.push(version.str());
        version.check(errors, names::is_dns1035_label);
    }
    if !seen.iter().any(|version| matches!(*version, "v1" | "v1beta1")) {
        versions.invalid(errors, "must include at least one of v1, v1beta1");
    }
}

pub(super) fn selector(at: &At<'_>, errors: &mut FieldErrors) {
    if let Some(value) = at.value.filter(|value| !value.is_null())
        && let Err(error) = LabelSelector::from_value(value)
    {
        at.invalid(errors, error.to_string());
    }
}

/// The expressions of the conditions that are stored: what once compiled does not refuse an update (ratcheting).
fn stored_expressions(old: Option<&Object>) -> Vec<&str> {
    let hooks = old.map(|old| At::of(old, "webhooks"));
    let conditions = hooks.iter().flat_map(|hooks| hooks.items()).map(|hook| hook.child("matchConditions"));
    conditions.flat_map(|list| list.items().map(|item| item.child("expression").str()).collect::<Vec<_>>()).collect()
}

/// `matchConditions`: named, few, and compiled here so that no request finds out later.
pub(super) fn conditions(list: &At<'_>, variables: &[&str], stored: Vec<&str>, errors: &mut FieldErrors) {
    if list.len() > MOST_CONDITIONS {
        errors.push(FieldError::too_many(&list.path, list.len(), MOST_CONDITIONS));
    }
    let mut seen = Vec::new();
    for condition in list.items().take(MOST_CONDITIONS) {
        let (name, expression) = (condition.child("name"), condition.child("expression"));
        if name.required(errors) {
            name.check(errors, names::is_qualified_name);
            if seen.contains(&name.str()) {
                name.duplicate(errors);
            }
            seen.push(name.str());
        }
        if expression.str().trim().is_empty() {
            expression.missing(errors, "");
        } else if !stored.contains(&expression.str())
            && let Err(why) = Expression::condition(expression.str(), variables)
        {
            expression.invalid(errors, why);
        }
    }
}

pub(super) fn rules(list: &At<'_>, errors: &mut FieldErrors) {
    for rule in list.items() {
        for field in ["operations", "apiGroups", "apiVersions", "resources"] {
            rule.child(field).required(errors);
        }
        for (field, what) in
            [("operations", "operations"), ("apiGroups", "API groups"), ("apiVersions", "API versions")]
        {
            let list = rule.child(field);
            if list.len() > 1 && list.items().any(|item| item.str() == "*") {
                list.invalid(errors, format!("if '*' is present, must not specify other {what}"));
            }
        }
        for operation in rule.child("operations").items() {
            operation.one_of(errors, &["*", "CONNECT", "CREATE", "DELETE", "UPDATE"]);
        }
        for version in rule.child("apiVersions").items().filter(|version| version.str().is_empty()) {
            version.missing(errors, "");
        }
        rule.child("scope").one_of(errors, &["*", "Cluster", "Namespaced"]);
        resources(&rule.child("resources"), errors);
    }
}

/// A wildcard makes what it covers superfluous, and that is a mistake (`validateResources`).
fn resources(list: &At<'_>, errors: &mut FieldErrors) {
    let all: Vec<&str> = list.items().map(|item| item.str()).collect();
    if all.contains(&"*/*") && all.len() > 1 {
        return list.invalid(errors, "if '*/*' is present, must not specify other resources");
    }
    let wild = |suffix: &str| all.contains(&suffix);
    for item in list.items() {
        let text = item.str();
        if text.is_empty() {
            item.missing(errors, "");
        } else if text == "*/" {
            item.invalid(errors, "must not be '*/'");
        } else if !text.contains('/') && text != "*" && wild("*") {
            item.invalid(errors, "if '*' is present, must not specify other resources without subresources");
        } else if let Some((resource, subresource)) = text.split_once('/') {
            let covered =
                [(subresource != "*", format!("{resource}/*")), (resource != "*", format!("*/{subresource}"))];
            for (_, by) in covered.iter().filter(|(other, by)| *other && all.contains(&by.as_str())) {
                item.invalid(errors, format!("if '{by}' is present, must not specify {text}"));
            }
        }
    }
}

/// A URL or a reference to a Service (`ValidateWebhookURL`, `ValidateWebhookService`).
pub(super) fn client(config: &At<'_>, errors: &mut FieldErrors) {
    let (url, service) = (config.child("url"), config.child("service"));
    match (url.present(), service.present()) {
        (true, true) | (false, false) => config.missing(errors, "exactly one of url or service is required"),
        (true, false) => {
            for problem in url_problems(url.str()) {
                url.invalid(errors, problem);
            }
        }
        (false, true) => {
            for (field, what) in [("name", "service name is required"), ("namespace", "service namespace is required")]
            {
                if service.child(field).is_empty() {
                    service.child(field).missing(errors, what);
                }
            }
            if let Some(port) = service.child("port").int().filter(|port| !(1..=65535).contains(port)) {
                errors.push(FieldError::invalid(
                    &service.child("port").path,
                    port,
                    "port is not valid: must be between 1 and 65535, inclusive",
                ));
            }
            service_path(&service.child("path"), errors);
        }
    }
}

fn url_problems(url: &str) -> Vec<String> {
    const FORM: &str = "; desired format: https://host[/path]";
    let Ok(uri) = url.parse::<http::Uri>() else {
        return vec![format!("url must be a valid URL: it cannot be parsed{FORM}")];
    };
    let mut problems = Vec::new();
    if uri.scheme_str() != Some("https") {
        problems.push(format!("'https' is the only allowed URL scheme{FORM}"));
    }
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    if uri.host().is_none_or(str::is_empty) {
        problems.push(format!("host must be specified{FORM}"));
    }
    if authority.contains('@') {
        problems.push("user information is not permitted in the URL".to_owned());
    }
    if url.contains('#') {
        problems.push("fragments are not permitted in the URL".to_owned());
    }
    if uri.query().is_some() {
        problems.push("query parameters are not permitted in the URL".to_owned());
    }
    problems
}

fn service_path(path: &At<'_>, errors: &mut FieldErrors) {
    let text = path.str();
    if text.is_empty() || text == "/" {
        return;
    }
    let Some(rest) = text.strip_prefix('/') else { return path.invalid(errors, "must start with a '/'") };
    for (at, segment) in rest.strip_suffix('/').unwrap_or(rest).split('/').enumerate() {
        if segment.is_empty() {
            path.invalid(errors, format!("segment[{at}] may not be empty"));
            return;
        }
        for problem in names::is_dns1123_subdomain(segment) {
            path.invalid(errors, format!("segment[{at}]: {problem}"));
        }
    }
}

pub(super) const API_SERVICE: Rules = Rules {
    // `v1.`, of the core group, is no domain.
    name: names::is_path_segment,
    status: true,
    // What this server answers for itself is there from the start, as kube-aggregator's registry has it.
    prepare: |op, new, _| {
        if op == Op::Create && new.get(&["spec", "service"]).is_none_or(Value::is_null) {
            let since = new.creation_timestamp().to_owned();
            let condition = json!({"type": "Available", "status": "True", "reason": "Local",
                "message": "Local APIServices are always available", "lastTransitionTime": since});
            new.set(&["status", "conditions"], vec![condition]);
        }
    },
    default: |object| {
        if let Some(service) = map_at(spec_mut(object), "service") {
            or_set(service, "port", 443);
        }
    },
    validate: |_, new, _, errors| {
        let spec = At::of(new, "spec");
        let (group, version) = (spec.child("group").str(), spec.child("version").str());
        let wanted = format!("{version}.{group}");
        if new.name() != wanted {
            let detail = format!("must be `spec.version+\".\"+spec.group`: {wanted:?}");
            errors.push(FieldError::invalid(&Path::of("metadata.name"), new.name(), detail));
        }
        spec.child("version").require(errors, names::is_dns1035_label);
        for (field, high) in [("groupPriorityMinimum", 20_000), ("versionPriority", 1000)] {
            let at = spec.child(field);
            if !(1..=high).contains(&at.int().unwrap_or(0)) {
                at.invalid(errors, format!("must be positive and less than {high}"));
            }
        }
        let service = spec.child("service");
        if service.present() {
            service.child("name").required(errors);
            service.child("namespace").required(errors);
            service.child("port").range(errors, 1, 65535);
            let insecure = spec.child("insecureSkipTLSVerify");
            if insecure.bool() && !spec.child("caBundle").is_empty() {
                insecure.invalid(errors, "may not be true if caBundle is present");
            }
        } else {
            let (bundle, insecure) = (spec.child("caBundle"), spec.child("insecureSkipTLSVerify"));
            if !bundle.str().is_empty() {
                bundle.invalid(errors, "local APIServices may not have a caBundle");
            }
            if insecure.bool() {
                insecure.invalid(errors, "local APIServices may not have insecureSkipTLSVerify");
            }
        }
    },
    ..Rules::GENERIC
};

pub(super) const FLOW_SCHEMA: Rules = Rules {
    default: |object| {
        let spec = spec_mut(object);
        or_set(spec, "matchingPrecedence", 1000);
    },
    validate: |_, new, _, errors| {
        let spec = At::of(new, "spec");
        spec.child("matchingPrecedence").range(errors, 1, 10_000);
        spec.child("priorityLevelConfiguration").child("name").required(errors);
        spec.child("distinguisherMethod").child("type").one_of(errors, &["ByNamespace", "ByUser"]);
        for rule in spec.child("rules").items() {
            rule.child("subjects").required(errors);
            if rule.child("resourceRules").is_empty() && rule.child("nonResourceRules").is_empty() {
                rule.missing(errors, "at least one of resourceRules and nonResourceRules has to be non-empty");
            }
        }
    },
    ..Rules::WITH_STATUS
};

pub(super) const PRIORITY_LEVEL: Rules = Rules {
    default: |object| {
        let spec = spec_mut(object);
        if spec.get("type").and_then(Value::as_str) != Some("Limited") {
            return;
        }
        let limited = map_in(spec, "limited");
        or_set(limited, "nominalConcurrencyShares", 30);
        or_set(limited, "lendablePercent", 0);
        let response = map_in(limited, "limitResponse");
        if response.get("type").and_then(Value::as_str) == Some("Queue") {
            let queuing = map_in(response, "queuing");
            or_set(queuing, "queues", 64);
            or_set(queuing, "handSize", 8);
            or_set(queuing, "queueLengthLimit", 50);
        }
    },
    validate: |_, new, old, errors| {
        let spec = At::of(new, "spec");
        let type_ = spec.child("type");
        if !matches!(type_.str(), "Exempt" | "Limited") {
            type_.not_supported(errors, &["Exempt", "Limited"]);
        }
        if type_.str() == "Limited" && !spec.child("limited").present() {
            spec.child("limited").missing(errors, "must not be empty when type is Limited");
        }
        if type_.str() == "Exempt" && spec.child("limited").present() {
            spec.child("limited").forbidden(errors, "must be nil if the type is not Limited");
        }
        if let Some(old) = old.filter(|o| matches!(o.name(), "exempt" | "catch-all")) {
            meta::immutable(new.get(&["spec", "type"]), old.get(&["spec", "type"]), &type_.path, errors);
        }
    },
    ..Rules::WITH_STATUS
};
