//! Questions asked as objects: who am I, may I, is this token good. Answered at once, never stored.

use futures::future::BoxFuture;
use http::StatusCode;
use proa_apimachinery::status::ApiError;
use serde_json::{Value, json};

use crate::admission::chain;
use crate::authn::{self, Known};
use crate::authz::rbac::Rule;
use crate::authz::{Attributes, allowed, node};
use crate::http::{Response, json as answer};
use crate::registry::options::WriteOptions;
use crate::registry::{Call, codec};
use crate::request_info::{labelled, selected};
use crate::resources::Resource;
use crate::user::{MASTERS, User};

/// Answers a review.
pub type Review = for<'a> fn(&'a Call<'a>) -> BoxFuture<'a, Result<Response, ApiError>>;

/// The review a resource is, if it is one.
pub fn find(resource: &Resource) -> Option<Review> {
    if !resource.kind.is_virtual {
        return None;
    }
    Some(match (&*resource.kind.group, &*resource.kind.plural) {
        ("authentication.k8s.io", "tokenreviews") => |call| Box::pin(token(call)),
        ("authentication.k8s.io", "selfsubjectreviews") => |call| Box::pin(whoami(call)),
        ("authorization.k8s.io", "selfsubjectrulesreviews") => |call| Box::pin(rules(call)),
        ("authorization.k8s.io", "selfsubjectaccessreviews") => |call| Box::pin(access(call, Subject::Caller)),
        ("authorization.k8s.io", "subjectaccessreviews" | "localsubjectaccessreviews") => {
            |call| Box::pin(access(call, Subject::Named))
        }
        ("", "bindings") => |call| Box::pin(crate::subresource::legacy_binding(call)),
        _ => return None,
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Subject {
    Caller,
    Named,
}

/// What is asked, once webhooks have seen it: a review is created like anything else.
async fn body(call: &Call<'_>) -> Result<Value, ApiError> {
    let mut review = codec::object(&call.resource, codec::decode(call.request)?.value)?;
    let kind = &call.resource.kind;
    let options = WriteOptions::read(call.request)?;
    chain::create_body(call, (&kind.group, &kind.version, &kind.kind), &options, &mut review).await?;
    Ok(review.into_value())
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn strings(value: Option<&Value>) -> Vec<String> {
    value.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// A user as reviews have it (`UserInfo`).
pub(crate) fn user_info(user: &User) -> Value {
    let mut info = json!({"username": user.name, "groups": user.groups});
    if !user.uid.is_empty() {
        info["uid"] = user.uid.as_str().into();
    }
    if !user.extra.is_empty() {
        info["extra"] = json!(user.extra);
    }
    info
}

async fn token(call: &Call<'_>) -> Result<Response, ApiError> {
    let mut review = body(call).await?;
    let spec = review.get("spec").cloned().unwrap_or_default();
    call.core.caches.consistent().await?;
    let asked = strings(spec.get("audiences"));
    let asked = if asked.is_empty() { call.core.tokens.audiences() } else { &asked };
    review["status"] = match authn::token_user(call.core, text(&spec, "token"), asked) {
        Some(Known { user, audiences }) => {
            json!({"authenticated": true, "user": user_info(&user), "audiences": audiences})
        }
        None => json!({"authenticated": false, "error": "invalid bearer token"}),
    };
    Ok(answer(StatusCode::CREATED, &review))
}

async fn whoami(call: &Call<'_>) -> Result<Response, ApiError> {
    let mut review = body(call).await?;
    review["status"] = json!({"userInfo": user_info(call.user())});
    Ok(answer(StatusCode::CREATED, &review))
}

async fn access(call: &Call<'_>, subject: Subject) -> Result<Response, ApiError> {
    let mut review = body(call).await?;
    let spec = review.get("spec").cloned().unwrap_or_default();
    let user = match subject {
        Subject::Caller => call.user().clone(),
        Subject::Named => User {
            name: text(&spec, "user").to_owned(),
            uid: text(&spec, "uid").to_owned(),
            groups: strings(spec.get("groups")),
            ..User::default()
        },
    };
    let resource = spec.get("resourceAttributes").filter(|value| !value.is_null());
    let path = spec.get("nonResourceAttributes").filter(|value| !value.is_null());
    let narrowed = resource.map(|resource| narrowing(resource, "fieldSelector", selected)).unwrap_or_default();
    let labels = resource.map(|resource| narrowing(resource, "labelSelector", labelled)).unwrap_or_default();
    let what = match (resource, path) {
        (Some(attributes), None) => Attributes {
            verb: text(attributes, "verb"),
            group: text(attributes, "group"),
            resource: text(attributes, "resource"),
            subresource: text(attributes, "subresource"),
            namespace: text(attributes, "namespace"),
            name: text(attributes, "name"),
            path: "",
            selected: &narrowed,
            labelled: &labels,
        },
        (None, Some(attributes)) => {
            Attributes { verb: text(attributes, "verb"), path: text(attributes, "path"), ..Attributes::default() }
        }
        _ => {
            return Err(ApiError::bad_request(
                "spec.resourceAttributes: exactly one of nonResourceAttributes or resourceAttributes must be specified",
            ));
        }
    };
    if call.resource.kind.plural == "localsubjectaccessreviews" && what.namespace != call.namespace() {
        return Err(ApiError::bad_request("spec.resourceAttributes.namespace: must match metadata.namespace"));
    }
    call.core.caches.consistent().await?;
    let allowed = allowed(call.core, &user, &what);
    review["status"] =
        if allowed { json!({"allowed": true, "reason": "RBAC: allowed"}) } else { json!({"allowed": false}) };
    Ok(answer(StatusCode::CREATED, &review))
}

/// What a selector of a review's resource attributes narrows the request to (KEP-4601).
fn narrowing(attributes: &Value, selector: &str, parse: fn(&str) -> Vec<(String, String)>) -> Vec<(String, String)> {
    let selector = attributes.get(selector).unwrap_or(&Value::Null);
    let raw = text(selector, "rawSelector");
    if !raw.is_empty() {
        return parse(raw);
    }
    let requirements = selector.get("requirements").and_then(Value::as_array).into_iter().flatten();
    let equalities = requirements.filter(|requirement| text(requirement, "operator") == "In");
    equalities
        .filter_map(|requirement| match strings(requirement.get("values")).as_slice() {
            [value] => Some((text(requirement, "key").to_owned(), value.clone())),
            _ => None,
        })
        .collect()
}

async fn rules(call: &Call<'_>) -> Result<Response, ApiError> {
    let mut review = body(call).await?;
    let namespace = review.get("spec").map(|spec| text(spec, "namespace").to_owned()).unwrap_or_default();
    if namespace.is_empty() {
        return Err(ApiError::bad_request("no namespace on request"));
    }
    call.core.caches.consistent().await?;
    let mut rules = call.core.rbac.rules(&call.core.caches, call.user(), &namespace);
    if call.user().in_group(MASTERS) {
        let all = || vec!["*".to_owned()];
        rules.push(Rule { groups: all(), resources: all(), verbs: all(), ..Rule::default() });
        rules.push(Rule { verbs: all(), urls: all(), ..Rule::default() });
    }
    let is_node = call.user().node_name().is_some();
    if is_node {
        rules.extend_from_slice(node::general_rules());
    }
    let resource = |rule: &Rule| {
        let mut value = json!({"verbs": rule.verbs, "apiGroups": rule.groups, "resources": rule.resources});
        if !rule.names.is_empty() {
            value["resourceNames"] = json!(rule.names);
        }
        value
    };
    let resources: Vec<Value> = rules.iter().filter(|rule| !rule.resources.is_empty()).map(resource).collect();
    let paths: Vec<Value> = rules
        .iter()
        .filter(|rule| !rule.urls.is_empty())
        .map(|rule| json!({"verbs": rule.verbs, "nonResourceURLs": rule.urls}))
        .collect();
    review["status"] = json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": is_node});
    if is_node {
        // What its pods let it read depends on each object.
        review["status"]["evaluationError"] = "node authorizer does not support user rule resolution".into();
    }
    Ok(answer(StatusCode::CREATED, &review))
}
