//! Admission webhooks (admissionregistration.k8s.io/v1): who is asked about a request, in which order, and what is made
//! of the answers.
//!
//! Owns the two rounds (one after the other for those that may change the object, at once for those that may only refuse
//! it), failure policies, reinvocation and dry runs. Never opens a connection by itself (`crate::outgoing`), and knows
//! no kind.

mod hook;
mod review;

use std::sync::Arc;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use proa_apimachinery::object::Object;
use proa_apimachinery::patch;
use proa_apimachinery::status::ApiError;
use serde_json::{Map, Value};

use hook::Hook;
pub use hook::{FailurePolicy, Hooks};
pub(super) use review::request;

use super::attributes::{Attributes, Objects};
use super::matching::{self, Verdict};
use crate::registry::Call;
use crate::resources::Resource;
use crate::{conversion, outgoing};

/// A webhook that is to be asked, and how it sees the request.
struct Invocation {
    hook: Arc<Hook>,
    /// The version it asked for.
    shown: Arc<Resource>,
    request: Map<String, Value>,
}

/// How asking a webhook went wrong, where it is not its refusal.
enum Failure {
    /// It gave no usable answer.
    Calling(String),
    /// Its conditions cannot be told: that refuses, and is no fault of the webhook's.
    Conditions(String),
    /// The request cannot be put to it: nobody's policy helps.
    Request(ApiError),
}

impl Failure {
    fn error(self, hook: &Hook, attributes: &Attributes<'_>) -> ApiError {
        match self {
            Failure::Calling(why) => ApiError::internal(format!("failed calling webhook {:?}: {why}", hook.name)),
            Failure::Conditions(why) => {
                ApiError::forbidden(attributes.resource.group_resource(), &attributes.name, &why)
            }
            Failure::Request(error) => error,
        }
    }
}

/// What is admitted while mutating webhooks see it.
pub struct Subject<'a> {
    /// The object as it now is; none when something goes.
    pub new: Option<&'a mut Object>,
    /// The object as it was.
    pub old: Option<&'a Object>,
    /// Brings what a webhook made of the object into the form the kind gives it: pruned, defaulted.
    pub settle: &'a (dyn Fn(&mut Object) -> Result<(), ApiError> + Send + Sync),
}

/// Which webhooks are asked, once or again: by configuration and name.
pub type Round = super::round::Round<(String, String)>;

/// Asks the mutating webhooks, one after the other: each sees what those before it made of the object.
pub async fn mutate(
    call: &Call<'_>,
    attributes: &Attributes<'_>,
    subject: &mut Subject<'_>,
    round: &mut Round,
) -> Result<(), ApiError> {
    for hook in call.core.hooks.mutating.hooks().iter() {
        let who = (hook.configuration.clone(), hook.name.clone());
        if round.skips(&who) {
            continue;
        }
        let objects = Objects { new: subject.new.as_deref(), old: subject.old };
        let changed = match selected(call, attributes, objects, hook).await {
            Ok(None) => continue,
            Ok(Some(invocation)) => change(call, attributes, subject, &invocation).await,
            Err(failure) => Err(failure),
        };
        match changed {
            Ok(changed) => round.note(who, changed, hook.reinvoke),
            Err(failure) => give_up(call, attributes, hook, failure)?,
        }
    }
    Ok(())
}

/// Asks the validating webhooks, all at once; the first refusal in their order is the request's.
pub async fn validate(call: &Call<'_>, attributes: &Attributes<'_>, objects: Objects<'_>) -> Result<(), ApiError> {
    let hooks = call.core.hooks.validating.hooks();
    let mut asked = FuturesUnordered::new();
    for (at, hook) in hooks.iter().enumerate() {
        match selected(call, attributes, objects, hook).await {
            Ok(None) => {}
            Ok(Some(invocation)) => asked.push(async move {
                let answered = ask(call, attributes, objects, &invocation, false).await;
                (at, answered.map(|_| ()))
            }),
            Err(failure) => give_up(call, attributes, hook, failure)?,
        }
    }
    let mut refused: Option<(usize, ApiError)> = None;
    while let Some((at, answered)) = asked.next().await {
        let error = match answered {
            Ok(()) => continue,
            Err(failure) => match give_up(call, attributes, &hooks[at], failure) {
                Ok(()) => continue,
                Err(error) => error,
            },
        };
        if refused.as_ref().is_none_or(|(first, _)| at < *first) {
            refused = Some((at, error));
        }
    }
    refused.map_or(Ok(()), |(_, error)| Err(error))
}

/// What its failure policy makes of a webhook that failed.
fn give_up(call: &Call<'_>, attributes: &Attributes<'_>, hook: &Hook, failure: Failure) -> Result<(), ApiError> {
    let ignored = hook.failure_policy == FailurePolicy::Ignore && !matches!(failure, Failure::Request(_));
    if !ignored {
        if matches!(failure, Failure::Calling(_)) {
            call.core.metrics.webhook_rejected(&hook.name, attributes.operation.name(), "calling_webhook_error");
        }
        return Err(failure.error(hook, attributes));
    }
    if let Failure::Calling(why) | Failure::Conditions(why) = failure {
        tracing::warn!(webhook = hook.name, why, "failed calling webhook, failing open");
        call.core.metrics.webhook_failed_open(&hook.name, attributes.operation.name());
    }
    Ok(())
}

/// Whether the webhook is to be asked, and as what.
async fn selected(
    call: &Call<'_>,
    attributes: &Attributes<'_>,
    objects: Objects<'_>,
    hook: &Arc<Hook>,
) -> Result<Option<Invocation>, Failure> {
    let matcher = hook.matcher.as_ref().map_err(|why| Failure::Calling(why.clone()))?;
    let wanted = matcher.wanted(call.core, attributes, objects).await.map_err(Failure::Request)?;
    let Some(shown) = wanted else { return Ok(None) };
    let request = review::request(attributes, &shown);
    let invocation = Invocation { hook: Arc::clone(hook), shown, request };
    if hook.conditions.is_empty() {
        return Ok(Some(invocation));
    }
    let scope = matching::scope(call.core, attributes, objects, &Value::Object(invocation.request.clone()));
    match hook.conditions.judge(&scope) {
        Verdict::Match => Ok(Some(invocation)),
        Verdict::NoMatch => Ok(None),
        Verdict::Error(why) => Err(Failure::Conditions(why)),
    }
}

/// Asks a mutating webhook and applies its patch; whether the object changed.
async fn change(
    call: &Call<'_>,
    attributes: &Attributes<'_>,
    subject: &mut Subject<'_>,
    invocation: &Invocation,
) -> Result<bool, Failure> {
    let objects = Objects { new: subject.new.as_deref(), old: subject.old };
    let (seen, patch) = ask(call, attributes, objects, invocation, true).await?;
    let operations = patch.filter(|patch| patch.as_array().is_none_or(|operations| !operations.is_empty()));
    let Some(patch) = operations else { return Ok(false) };
    let (Some(seen), Some(new)) = (seen, subject.new.as_deref_mut()) else {
        let why = "admission webhook attempted to modify the object, which is not supported for this operation";
        return Err(Failure::Request(ApiError::internal(why)));
    };
    let failed = |why: String| Failure::Request(ApiError::internal(why));
    let patched = patch::json(&seen.to_value(), &patch).map_err(|error| failed(error.to_string()))?;
    let patched = Object::from_value(patched).map_err(|_| failed("the patch leaves no object".to_owned()))?;
    let mut back = conversion::between(call.core, &invocation.shown, &attributes.resource, patched)
        .await
        .map_err(Failure::Request)?;
    keep_system_fields(&mut back, new);
    (subject.settle)(&mut back).map_err(Failure::Request)?;
    if back == *new {
        return Ok(false);
    }
    *new = back;
    Ok(true)
}

/// What only the server writes is not for webhooks or policies to change; who owns which field neither.
pub(super) fn keep_system_fields(changed: &mut Object, before: &Object) {
    for field in ["uid", "creationTimestamp", "resourceVersion", "generation", "managedFields", "selfLink"] {
        match before.metadata().and_then(|metadata| metadata.get(field)) {
            Some(value) if changed.metadata().and_then(|metadata| metadata.get(field)) != Some(value) => {
                changed.metadata_mut().insert(field.to_owned(), value.clone());
            }
            None if changed.metadata().is_some_and(|metadata| metadata.contains_key(field)) => {
                changed.metadata_mut().shift_remove(field);
            }
            _ => {}
        }
    }
}

/// Asks one webhook: the object as it saw it, and its patch.
async fn ask(
    call: &Call<'_>,
    attributes: &Attributes<'_>,
    objects: Objects<'_>,
    invocation: &Invocation,
    mutating: bool,
) -> Result<(Option<Object>, Option<Value>), Failure> {
    let Invocation { hook, shown, request } = invocation;
    if attributes.dry_run && !hook.fit_for_dry_run {
        let why = format!("admission webhook {:?} does not support dry run", hook.name);
        return Err(Failure::Request(ApiError::bad_request(why)));
    }
    let see = async |object: Option<&Object>| match object {
        None => Ok(None),
        Some(object) if Arc::ptr_eq(shown, &attributes.resource) => Ok(Some(object.clone())),
        Some(object) => {
            let seen = conversion::between(call.core, &attributes.resource, shown, object.clone()).await;
            seen.map(Some).map_err(Failure::Request)
        }
    };
    let (new, old) = (see(objects.new).await?, see(objects.old).await?);
    let client = hook.client.as_ref().map_err(|why| Failure::Calling(why.clone()))?;
    let version = review::version(&hook.versions).ok_or_else(|| {
        Failure::Calling("webhook does not accept known AdmissionReview versions (v1, v1beta1)".into())
    })?;
    let uid = call.core.config.entropy.uid();
    let body = review::review(version, &uid, request, Objects { new: new.as_ref(), old: old.as_ref() });
    let started = std::time::Instant::now();
    let answered = outgoing::post(call.core, client, hook.timeout, body.to_string().into()).await;
    let answer = answered.map_err(|error| format!("failed to call webhook: {error}")).and_then(|body| {
        review::answer(&hook.name, version, &uid, &body, mutating)
            .map_err(|why| format!("received invalid webhook response: {why}"))
    });
    let rejected = answer.as_ref().map_or(true, |answer| answer.verdict.is_err());
    call.core.metrics.webhook_called(&hook.name, attributes.operation.name(), rejected, started.elapsed());
    let answer = answer.map_err(Failure::Calling)?;
    answer.warnings.into_iter().for_each(|warning| call.warn(warning));
    for (key, value) in answer.annotations {
        call.request.trail.annotate(&format!("{}/{key}", hook.name), || value);
    }
    match answer.verdict {
        Ok(()) => Ok((new, answer.patch)),
        Err(refusal) => {
            call.core.metrics.webhook_rejected(&hook.name, attributes.operation.name(), "no_error");
            Err(Failure::Request(*refusal))
        }
    }
}
