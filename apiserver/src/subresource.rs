//! Subresources that are more than a part of their object: scale, binding, eviction, finalize, token.

mod eviction;
pub(crate) mod scale;

use http::StatusCode;
use proa_apimachinery::field::{FieldError, FieldErrors, Path};
use proa_apimachinery::object::Object;
use proa_apimachinery::status::{ApiError, GroupResource};
use serde_json::json;

use crate::admission::chain;
use crate::http::{Response, answer};
use crate::kinds::namespace;
use crate::registry::options::WriteOptions;
use crate::registry::write;
use crate::registry::{Call, codec, fields, get, meta, not_allowed};
use crate::resources::api_version;
use crate::tokens;

const BINDING: (&str, &str, &str) = ("", "v1", "Binding");

/// The body of a request, which is of a kind of its own.
fn body(call: &Call<'_>, kind: (&str, &str, &str)) -> Result<Object, ApiError> {
    let decoded = codec::decode(call.request)?;
    let mut body = Object::from_value(decoded.value)
        .map_err(|_| ApiError::bad_request("the body of the request is not an object"))?;
    let validation = WriteOptions::read(call.request)?.validation;
    fields::check_body(call, kind, &mut body, decoded.duplicates, validation)?;
    Ok(body)
}

/// The body of a request, admitted as what it is.
async fn admitted(call: &Call<'_>, kind: (&str, &str, &str)) -> Result<Object, ApiError> {
    let mut body = body(call, kind)?;
    // Clients may leave out what the path says; whoever looks at it may not have to guess.
    body.0.insert("kind".into(), kind.2.into());
    body.0.insert("apiVersion".into(), api_version(kind.0, kind.1).into());
    chain::create_body(call, kind, &WriteOptions::read(call.request)?, &mut body).await?;
    Ok(body)
}

/// Answers a request on one of them.
pub async fn serve(call: &Call<'_>) -> Result<Response, ApiError> {
    let info = &call.request.info;
    match (info.subresource.as_str(), info.verb) {
        ("scale", "get") => scale::get(call).await,
        ("scale", "update" | "patch") => scale::set(call).await,
        ("binding", "create") => {
            let body = admitted(call, BINDING).await?;
            bind(call, call.name(), &body).await
        }
        ("eviction", "create") => eviction::evict(call).await,
        ("token", "create") => tokens::request(call).await,
        ("finalize", "update") => finalize(call).await,
        _ => Err(not_allowed(call)),
    }
}

/// POST of a Binding to the old `bindings` resource: its name is the pod's.
pub async fn legacy_binding(call: &Call<'_>) -> Result<Response, ApiError> {
    let body = admitted(call, BINDING).await?;
    let name = body.name().to_owned();
    let table = call.core.resources.table();
    let pods = table.find("", "v1", "pods").cloned().ok_or_else(ApiError::no_such_resource)?;
    let call = Call { core: call.core, request: call.request, resource: pods, warnings: parking_lot::Mutex::default() };
    bind(&call, &name, &body).await
}

/// What a pod's binding looks at, and what it changes.
const ASSIGNED: &[&[&str]] = &[&["spec", "nodeName"], &["spec", "schedulingGates"], &["status", "conditions"]];

/// Gives a pod to a node, once.
async fn bind(call: &Call<'_>, name: &str, body: &Object) -> Result<Response, ApiError> {
    let target = |field| body.get_str(&["target", field]).unwrap_or_default();
    let node = target("name");
    let mut errors = FieldErrors::new();
    if !matches!(target("kind"), "" | "Node") {
        errors.push(FieldError::not_supported(&Path::of("target.kind"), target("kind"), &["Node"]));
    }
    if node.is_empty() {
        errors.push(FieldError::required(&Path::of("target.name"), ""));
    }
    if !errors.is_empty() {
        return Err(ApiError::invalid(GroupResource::new("", "Binding"), name, errors));
    }
    let uid = body.uid();
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
        new.set(&["spec", "nodeName"], node);
        for (key, value) in body.annotations() {
            new.set_annotation(key, value);
        }
        let mut conditions = new.get_list(&["status", "conditions"]).to_vec();
        conditions.retain(|condition| condition["type"] != "PodScheduled");
        conditions
            .push(json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now}));
        new.set(&["status", "conditions"], conditions);
        Ok((new, FieldErrors::new()))
    };
    write::assign(call, name, ASSIGNED, &options, change).await?;
    Ok(answer(
        StatusCode::CREATED,
        &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}),
    ))
}

/// PUT of a namespace's `spec.finalizers`: the last one to go lets the namespace go.
async fn finalize(call: &Call<'_>) -> Result<Response, ApiError> {
    let options = WriteOptions::read(call.request)?;
    let decoded = codec::decode(call.request)?;
    let mut body = codec::object(&call.resource, decoded.value)?;
    meta::place(&call.resource, &mut body, call.namespace(), Some(call.name()))?;
    fields::check(call, &mut body, decoded.duplicates, options.validation)?;
    let errors = namespace::validate_finalizers(&body);
    if !errors.is_empty() {
        return Err(ApiError::invalid(call.resource.group_kind(), call.name(), errors));
    }
    let change = |old: &Object| {
        if !body.uid().is_empty() && body.uid() != old.uid() {
            let why =
                format!("Precondition failed: UID in precondition: {}, UID in object meta: {}", body.uid(), old.uid());
            return Err(ApiError::conflict(call.resource.group_resource(), call.name(), &why));
        }
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
    let outcome = write::assign(call, call.name(), &[&["spec", "finalizers"]], &options, change).await?;
    get::answer(call, StatusCode::OK, outcome.bytes())
}
