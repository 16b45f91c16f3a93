//! Questions asked as objects: who am I, may I, is this token good. Answered at once, never stored.

use std::collections::BTreeMap;

use futures::future::BoxFuture;
use http::StatusCode;
use proa_apimachinery::field::{FieldError, FieldErrors, Path};
use proa_apimachinery::status::ApiError;
use serde_json::{Value, json};

use crate::admission::chain;
use crate::authn::{self, Known};
use crate::authz::rbac::Rule;
use crate::authz::{self, Attributes, node};
use crate::http::{Response, answer};
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
    if text(&spec, "token").is_empty() {
        return Err(ApiError::bad_request("token is required for TokenReview in authentication"));
    }
    let asked = strings(spec.get("audiences"));
    let asked = if asked.is_empty() { call.core.tokens.audiences() } else { &asked };
    review["status"] = match authn::identify(call.core, text(&spec, "token"), asked).await? {
        Ok(Known { user, audiences }) => {
            json!({"authenticated": true, "user": user_info(&user), "audiences": audiences})
        }
        Err(why) => json!({"authenticated": false, "error": why}),
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
            extra: extra(spec.get("extra")),
        },
    };
    validate(call, subject, &spec, &user)?;
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
        // Validation let no other through.
        _ => Attributes::default(),
    };
    call.core.caches.consistent().await?;
    let verdict = authz::decide(call.core, &user, &what);
    review["status"] = json!({"allowed": verdict.is_allowed()});
    let reason = verdict.reason();
    if !reason.is_empty() {
        review["status"]["reason"] = reason.into();
    }
    Ok(answer(StatusCode::CREATED, &review))
}

fn extra(value: Option<&Value>) -> BTreeMap<String, Vec<String>> {
    let entries = value.and_then(Value::as_object).into_iter().flatten();
    entries.map(|(key, values)| (key.clone(), strings(Some(values)))).collect()
}

/// What a review of access must say (Kubernetes' validation of authorization.k8s.io).
fn validate(call: &Call<'_>, subject: Subject, spec: &Value, user: &User) -> Result<(), ApiError> {
    let mut errors = FieldErrors::new();
    let mut invalid = |path: &str, value: &Value, why: &str| {
        errors.push(FieldError::invalid(&Path::of(path), value.clone(), why));
    };
    let given = |field: &str| spec.get(field).filter(|value| !value.is_null());
    let local = call.resource.kind.plural == "localsubjectaccessreviews";
    match (given("resourceAttributes"), given("nonResourceAttributes")) {
        (_, Some(path)) if local => invalid("spec.nonResourceAttributes", path, "disallowed on this kind of request"),
        (Some(_), Some(path)) => {
            invalid("spec.nonResourceAttributes", path, "cannot be specified in combination with resourceAttributes");
        }
        (None, None) => {
            let why = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
            invalid("spec.resourceAttributes", &Value::Null, why);
        }
        (Some(attributes), None) => {
            if local && text(attributes, "namespace") != call.namespace() {
                let value = text(attributes, "namespace").into();
                invalid("spec.resourceAttributes.namespace", &value, "must match metadata.namespace");
            }
            for selector in ["fieldSelector", "labelSelector"] {
                let Some(value) = attributes.get(selector).filter(|value| !value.is_null()) else { continue };
                let raw = !text(value, "rawSelector").is_empty();
                let listed = value.get("requirements").and_then(Value::as_array).is_some_and(|all| !all.is_empty());
                let path = format!("spec.resourceAttributes.{selector}");
                match (raw, listed) {
                    (true, true) => {
                        let value = text(value, "rawSelector").into();
                        let why = "may not specified at the same time as requirements";
                        invalid(&format!("{path}.rawSelector"), &value, why);
                    }
                    (false, false) => {
                        let why = "when selector is specified, requirements or rawSelector is required";
                        invalid(&format!("{path}.requirements"), &Value::Null, why);
                    }
                    _ => {}
                }
            }
        }
        (None, Some(_)) => {}
    }
    if subject == Subject::Named && user.name.is_empty() && user.groups.is_empty() {
        invalid("spec.user", &"".into(), "at least one of user or group must be specified");
    }
    if errors.is_empty() { Ok(()) } else { Err(ApiError::invalid(call.resource.group_kind(), "", errors)) }
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
