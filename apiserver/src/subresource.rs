//! Subresources that are more than a part of their object: scale, binding, eviction, finalize, approval, token.

use http::StatusCode;
use proa_apimachinery::field::FieldErrors;
use proa_apimachinery::object::Object;
use proa_apimachinery::patch;
use proa_apimachinery::selector::LabelSelector;
use proa_apimachinery::status::{ApiError, GroupResource};
use serde_json::{Value, json};

use crate::http::{Response, json as answer};
use crate::kinds::{Op, ScalePaths, Subresource};
use crate::registry::delete::{DeleteOptions, delete_named};
use crate::registry::options::WriteOptions;
use crate::registry::write::{self, Ownership};
use crate::registry::{Call, codec, get, meta, not_allowed};
use crate::tokens;

/// Answers a request on one of them.
pub async fn serve(call: &Call<'_>) -> Result<Response, ApiError> {
    let info = &call.request.info;
    match (info.subresource.as_str(), info.verb) {
        ("scale", "get") => scale_get(call).await,
        ("scale", "update" | "patch") => scale_set(call).await,
        ("binding", "create") => {
            let body = codec::decode(call.request)?.value;
            bind(call, call.name(), &body).await
        }
        ("eviction", "create") => evict(call).await,
        ("token", "create") => tokens::request(call).await,
        ("finalize", "update") => finalize(call).await,
        _ => Err(not_allowed(call)),
    }
}

fn scale_paths<'a>(call: &'a Call<'_>) -> Result<&'a ScalePaths, ApiError> {
    let paths = call
        .resource
        .kind
        .subresources
        .iter()
        .find_map(|sub| if let Subresource::Scale(paths) = sub { Some(paths) } else { None });
    paths.ok_or_else(ApiError::no_such_resource)
}

fn fields(path: &str) -> Vec<&str> {
    path.trim_start_matches('.').split('.').collect()
}

/// The `autoscaling/v1` Scale of an object.
fn scale_of(paths: &ScalePaths, object: &Object) -> Value {
    let replicas = |path: &str| object.get_i64(&fields(path)).unwrap_or(0);
    let selector =
        paths.label_selector.as_ref().and_then(|path| object.get(&fields(path))).map(selector_text).unwrap_or_default();
    let mut metadata = json!({"name": object.name(), "uid": object.uid(), "resourceVersion": object.resource_version(), "creationTimestamp": object.creation_timestamp()});
    if !object.namespace().is_empty() {
        metadata["namespace"] = object.namespace().into();
    }
    let mut spec = json!({});
    let wanted = replicas(&paths.spec_replicas);
    if wanted != 0 {
        spec["replicas"] = wanted.into();
    }
    let mut status = json!({"replicas": replicas(&paths.status_replicas)});
    if !selector.is_empty() {
        status["selector"] = selector.into();
    }
    json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata, "spec": spec, "status": status})
}

/// A selector in its text form, from whichever form the kind keeps it in.
fn selector_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Object(map) if map.contains_key("matchLabels") || map.contains_key("matchExpressions") => {
            LabelSelector::from_value(value).map(|selector| selector.to_string()).unwrap_or_default()
        }
        Value::Object(map) => {
            let mut pairs: Vec<String> =
                map.iter().map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())).collect();
            pairs.sort();
            pairs.join(",")
        }
        _ => String::new(),
    }
}

async fn scale_get(call: &Call<'_>) -> Result<Response, ApiError> {
    let paths = scale_paths(call)?;
    let current = write::current(call, call.name()).await?.ok_or_else(|| call.not_found(call.name()))?;
    Ok(answer(StatusCode::OK, &scale_of(paths, &current.object)))
}

async fn scale_set(call: &Call<'_>) -> Result<Response, ApiError> {
    let paths = scale_paths(call)?.clone();
    let options = WriteOptions::read(call.request)?;
    let media = codec::media_type(call.request);
    let applied = media == "application/apply-patch+yaml";
    let body = if applied {
        codec::decode_yaml(&call.request.body)?.value
    } else if call.request.info.verb == "update" {
        codec::decode(call.request)?.value
    } else {
        codec::decode_json(&call.request.body)?.value
    };
    let change = |old: &Object| {
        let before = scale_of(&paths, old);
        let after = match media.as_str() {
            _ if call.request.info.verb == "update" => body.clone(),
            "application/json-patch+json" => {
                patch::json(&before, &body).map_err(|error| ApiError::bad_request(error.to_string()))?
            }
            "application/merge-patch+json"
            | "application/strategic-merge-patch+json"
            | "application/apply-patch+yaml" => {
                let mut after = before;
                patch::merge(&mut after, &body);
                after
            }
            _ => {
                return Err(ApiError::unsupported_media_type(&[
                    "application/json-patch+json",
                    "application/merge-patch+json",
                ]));
            }
        };
        let mut new = old.clone();
        let version = after.pointer("/metadata/resourceVersion").and_then(Value::as_str).unwrap_or_default();
        if !version.is_empty() {
            new.metadata_mut().insert("resourceVersion".into(), version.into());
        }
        let replicas = match after.pointer("/spec/replicas") {
            None | Some(Value::Null) => 0,
            Some(replicas) => replicas.as_i64().ok_or_else(|| ApiError::bad_request("Scale in version \"v1\" cannot be handled as a Scale: json: cannot unmarshal spec.replicas: expected an integer"))?,
        };
        if replicas < 0 {
            let path = proa_apimachinery::Path::of("spec.replicas");
            let error = proa_apimachinery::FieldError::invalid(&path, replicas, "must be greater than or equal to 0");
            return Err(ApiError::invalid(GroupResource::new("autoscaling", "Scale"), old.name(), vec![error]));
        }
        new.set(&fields(&paths.spec_replicas), replicas);
        Ok((new, FieldErrors::new()))
    };
    let bytes = write::modify(call, Op::Update, call.name(), &options, Ownership::Update, change).await?.bytes();
    let object: Object = serde_json::from_slice(&bytes).map_err(ApiError::internal)?;
    Ok(answer(StatusCode::OK, &scale_of(&paths, &object)))
}

/// POST of a Binding to the old `bindings` resource: its name is the pod's.
pub async fn legacy_binding(call: &Call<'_>) -> Result<Response, ApiError> {
    let body = codec::decode(call.request)?.value;
    let name = body.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default().to_owned();
    let table = call.core.resources.table();
    let pods = table.find("", "v1", "pods").cloned().ok_or_else(ApiError::no_such_resource)?;
    let call = Call { core: call.core, request: call.request, resource: pods, warnings: parking_lot::Mutex::default() };
    bind(&call, &name, &body).await
}

/// Gives a pod to a node, once.
async fn bind(call: &Call<'_>, name: &str, body: &Value) -> Result<Response, ApiError> {
    let text = |pointer: &str| body.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let node = text("/target/name").to_owned();
    if !matches!(text("/target/kind"), "" | "Node") {
        return Err(ApiError::bad_request(format!(
            "target.kind: Unsupported value: {:?}: supported values: \"Node\"",
            text("/target/kind")
        )));
    }
    if node.is_empty() {
        return Err(ApiError::bad_request("target.name: Required value"));
    }
    let uid = text("/metadata/uid").to_owned();
    let options = WriteOptions::read(call.request)?;
    let group_resource = GroupResource::new("", "pods/binding");
    let now = meta::time(call.core.now());
    let change = |old: &Object| {
        if !uid.is_empty() && uid != old.uid() {
            let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {}", old.uid());
            return Err(ApiError::conflict(group_resource, name, &why));
        }
        if old.deletion_timestamp().is_some() {
            return Err(ApiError::conflict(
                group_resource,
                name,
                &format!("pod {name} is being deleted, cannot be assigned to a host"),
            ));
        }
        if let Some(have) = old.get_str(&["spec", "nodeName"]).filter(|have| !have.is_empty()) {
            return Err(ApiError::conflict(
                group_resource,
                name,
                &format!("pod {name} is already assigned to node \"{have}\""),
            ));
        }
        if !old.get_list(&["spec", "schedulingGates"]).is_empty() {
            return Err(ApiError::conflict(
                group_resource,
                name,
                &format!("pod {name} has non-empty .spec.schedulingGates"),
            ));
        }
        let mut new = old.clone();
        new.set(&["spec", "nodeName"], node.as_str());
        for (key, value) in body.pointer("/metadata/annotations").and_then(Value::as_object).into_iter().flatten() {
            new.set_annotation(key, value.as_str().unwrap_or_default());
        }
        let mut conditions = new.get_list(&["status", "conditions"]).to_vec();
        conditions.retain(|condition| condition["type"] != "PodScheduled");
        conditions
            .push(json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now}));
        new.set(&["status", "conditions"], conditions);
        Ok((new, FieldErrors::new()))
    };
    write::assign(call, name, &options, change).await?;
    Ok(answer(
        StatusCode::CREATED,
        &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}),
    ))
}

/// POST of an Eviction: a delete that disruption budgets may refuse.
async fn evict(call: &Call<'_>) -> Result<Response, ApiError> {
    let body = codec::decode(call.request)?.value;
    let name =
        body.pointer("/metadata/name").and_then(Value::as_str).filter(|name| !name.is_empty()).unwrap_or(call.name());
    if name != call.name() {
        return Err(ApiError::bad_request("name in URL does not match name in Eviction object"));
    }
    let pod = write::current(call, name).await?.ok_or_else(|| call.not_found(name))?.object;
    let running = !matches!(pod.get_str(&["status", "phase"]), Some("Succeeded" | "Failed" | "Pending"))
        && pod.deletion_timestamp().is_none();
    if running {
        budget(call, &pod)?;
    }
    let options = DeleteOptions::from_value(body.get("deleteOptions").unwrap_or(&Value::Null), call)?;
    delete_named(call, name, &options).await?;
    Ok(answer(
        StatusCode::CREATED,
        &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}),
    ))
}

/// Refuses while a PodDisruptionBudget that selects the pod allows no disruption.
fn budget(call: &Call<'_>, pod: &Object) -> Result<(), ApiError> {
    for item in call.core.caches.resource("poddisruptionbudgets.policy").items(call.namespace()) {
        let budget = item.object();
        let Some(selector) = budget.get(&["spec", "selector"]) else { continue };
        let Ok(selector) = LabelSelector::from_value(selector) else { continue };
        if !selector.matches(|key| pod.label(key)) {
            continue;
        }
        let ready = pod
            .get_list(&["status", "conditions"])
            .iter()
            .any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
        if !ready && budget.get_str(&["spec", "unhealthyPodEvictionPolicy"]) == Some("AlwaysAllow") {
            continue;
        }
        if budget.get_i64(&["status", "disruptionsAllowed"]).unwrap_or(0) <= 0 {
            let mut error =
                ApiError::too_many_requests("Cannot evict pod as it would violate the pod's disruption budget.", 10);
            error.details.get_or_insert_default().causes.push(proa_apimachinery::status::StatusCause {
                reason: "DisruptionBudget".into(),
                message: format!("The disruption budget {} needs its controller to allow a disruption", budget.name()),
                field: String::new(),
            });
            return Err(error);
        }
    }
    Ok(())
}

/// PUT of a namespace's `spec.finalizers`: the last one to go lets the namespace go.
async fn finalize(call: &Call<'_>) -> Result<Response, ApiError> {
    let options = WriteOptions::read(call.request)?;
    let body = codec::object(&call.resource, codec::decode(call.request)?.value)?;
    let change = |old: &Object| {
        let mut new = old.clone();
        if !body.resource_version().is_empty() {
            new.metadata_mut().insert("resourceVersion".into(), body.resource_version().into());
        }
        match body.get(&["spec", "finalizers"]) {
            Some(finalizers) => new.set(&["spec", "finalizers"], finalizers.clone()),
            None => drop(new.remove(&["spec", "finalizers"])),
        }
        Ok((new, FieldErrors::new()))
    };
    let outcome = write::assign(call, call.name(), &options, change).await?;
    get::answer(call, StatusCode::OK, outcome.bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_shows_the_selector_in_text_whatever_its_form() {
        assert_eq!(selector_text(&json!("a=b")), "a=b");
        assert_eq!(selector_text(&json!({"matchLabels": {"a": "b"}})), "a=b");
        assert_eq!(selector_text(&json!({"b": "1", "a": "2"})), "a=2,b=1");
    }

    #[test]
    fn a_scale_reads_and_names_the_kinds_own_paths() {
        let paths = ScalePaths {
            spec_replicas: ".spec.n".into(),
            status_replicas: ".status.n".into(),
            label_selector: Some(".status.s".into()),
        };
        let object =
            Object::from_value(json!({"metadata": {"name": "x"}, "spec": {"n": 3}, "status": {"n": 2, "s": "a=b"}}))
                .unwrap();
        let scale = scale_of(&paths, &object);
        assert_eq!(scale["spec"]["replicas"], 3);
        assert_eq!(scale["status"], json!({"replicas": 2, "selector": "a=b"}));
    }
}
