//! Owns the strategies of the kinds that steer the API server itself: webhooks (policies are [`super::policies`]),
//! aggregated APIs, flow control. Never calls, evaluates or limits anything.

use proa_apimachinery::field::{FieldError, FieldErrors, Path};
use proa_apimachinery::{Object, names};
use serde_json::{Value, json};

use super::at::{At, map_at, map_in, maps_at, or_set, spec_mut};
use super::{Op, Rules, meta};

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

fn webhooks(_: Op, new: &Object, _: Option<&Object>, errors: &mut FieldErrors) {
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
        let versions = hook.child("admissionReviewVersions");
        if versions.is_empty() {
            versions.missing(errors, "must specify one of v1, v1beta1");
        } else if !versions.items().any(|v| matches!(v.str(), "v1" | "v1beta1")) {
            versions.invalid(errors, "must include at least one of v1, v1beta1");
        }
        hook.child("failurePolicy").one_of(errors, &["Fail", "Ignore"]);
        hook.child("matchPolicy").one_of(errors, &["Equivalent", "Exact"]);
        hook.child("reinvocationPolicy").one_of(errors, &["IfNeeded", "Never"]);
        let timeout = hook.child("timeoutSeconds");
        if timeout.int().is_some_and(|t| !(1..=30).contains(&t)) {
            timeout.invalid(errors, "the timeout value must be between 1 and 30 seconds");
        }
        rules(&hook.child("rules"), errors);
        client(&hook.child("clientConfig"), errors);
    }
}

pub(super) fn rules(list: &At<'_>, errors: &mut FieldErrors) {
    for rule in list.items() {
        for field in ["operations", "apiGroups", "apiVersions", "resources"] {
            rule.child(field).required(errors);
        }
        for operation in rule.child("operations").items() {
            operation.one_of(errors, &["*", "CONNECT", "CREATE", "DELETE", "UPDATE"]);
        }
    }
}

fn client(config: &At<'_>, errors: &mut FieldErrors) {
    let (url, service) = (config.child("url"), config.child("service"));
    match (url.present(), service.present()) {
        (true, true) | (false, false) => config.missing(errors, "exactly one of url or service is required"),
        (true, false) if !url.str().starts_with("https://") => {
            url.invalid(errors, "'https' is the only allowed URL scheme; desired format: https://host[/path]");
        }
        (true, false) => {}
        (false, true) => {
            service.child("name").required(errors);
            service.child("namespace").required(errors);
            service.child("port").range(errors, 1, 65535);
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
            let insecure = spec.child("insecureSkipTLSVerify");
            if insecure.bool() && !spec.child("caBundle").is_empty() {
                insecure.invalid(errors, "may not be true if caBundle is present");
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
