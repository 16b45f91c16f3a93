//! The order of admission, for every way into the store.
//!
//! Mutating phase: what is built in completes the object, then mutating policies and after them mutating webhooks see it
//! one after the other, then (when one of them changed it) what is built in and those that want to look once more.
//! Validating phase, after the kind's own preparation and validation: what is built in refuses, then validating policies,
//! then validating webhooks, all at once. Where nothing is configured the phases cost four looks at an empty list.

use proa_apimachinery::object::Object;
use proa_apimachinery::status::ApiError;
use serde_json::{Map, Value, json};

use super::attributes::{Attributes, Objects};
use super::hooks::{self, Round, Subject};
use super::{matching, policy};
use crate::kinds::{Op, ScalePaths};
use crate::registry::Call;
use crate::registry::delete::DeleteOptions;
use crate::registry::fields;
use crate::registry::options::{FieldValidation, WriteOptions};
use crate::subresource::scale;

/// How admission is shown an object that is written.
enum View<'a> {
    /// As it is.
    Whole,
    /// As the Scale its `/scale` was sent.
    Scale(&'a ScalePaths),
}

impl<'a> View<'a> {
    fn of(call: &'a Call<'_>, attributes: &Attributes<'_>) -> View<'a> {
        match call.resource.kind.scale() {
            Some(paths) if attributes.subresource == "scale" => View::Scale(paths),
            _ => View::Whole,
        }
    }

    fn show(&self, object: &Object) -> Object {
        match self {
            View::Whole => object.clone(),
            View::Scale(paths) => Object::from_value(scale::scale_of(paths, object)).unwrap_or_default(),
        }
    }
}

/// Whether anybody but what is built in may look at writes of this resource in the mutating phase.
fn mutated_by_others(call: &Call<'_>) -> bool {
    let core = call.core;
    let anybody = || !core.policies.mutating.active().is_empty() || !core.hooks.mutating.hooks().is_empty();
    core.is_open() && !matching::exempt(&call.resource) && anybody()
}

fn validated_by_others(call: &Call<'_>) -> bool {
    let core = call.core;
    let anybody = || !core.policies.validating.active().is_empty() || !core.hooks.validating.hooks().is_empty();
    core.is_open() && !matching::exempt(&call.resource) && anybody()
}

/// Mutating phase of a write. Where a policy or a webhook changed the object, returns it as its writer would have had it:
/// what they add is owned by nobody.
pub async fn mutate(
    call: &Call<'_>,
    op: Op,
    options: &WriteOptions,
    new: &mut Object,
    old: Option<&Object>,
) -> Result<Option<Object>, ApiError> {
    super::complete(call, op, new, old).await?;
    if !mutated_by_others(call) {
        return Ok(None);
    }
    let attributes = Attributes::of_write(call, op, options, new.name());
    let view = View::of(call, &attributes);
    let old_shown = old.map(|old| view.show(old));
    let written = new.clone();
    let settle = |object: &mut Object| match view {
        View::Scale(_) => Ok(()),
        View::Whole => {
            let unchecked = FieldValidation::Ignore;
            fields::check(call, object, Vec::new(), unchecked)?;
            call.resource.kind.strategy.default(object);
            Ok(())
        }
    };
    let mut rounds = Rounds::default();
    for again in [false, true] {
        if again {
            if !rounds.changed() {
                return Ok(None);
            }
            super::complete(call, op, new, old).await?;
            rounds.second = true;
        }
        match view {
            View::Whole => {
                let mut subject = Subject { new: Some(&mut *new), old: old_shown.as_ref(), settle: &settle };
                rounds.run(call, &attributes, &mut subject).await?;
            }
            View::Scale(paths) => {
                let mut shown = view.show(new);
                let mut subject = Subject { new: Some(&mut shown), old: old_shown.as_ref(), settle: &settle };
                rounds.run(call, &attributes, &mut subject).await?;
                if let Some(replicas) = shown.get(&["spec", "replicas"]) {
                    new.set(&scale::steps(&paths.spec_replicas), replicas.clone());
                }
            }
        }
    }
    stays(call, new)?;
    Ok(Some(written))
}

/// The rounds of policies and of webhooks: what one of them changed after the other, the other may see again.
#[derive(Default)]
struct Rounds {
    second: bool,
    policies: policy::Round,
    hooks: Round,
    /// The object as policies and as webhooks left it in the first round.
    left: [Option<Object>; 2],
}

impl Rounds {
    fn changed(&self) -> bool {
        self.policies.changed() || self.hooks.changed()
    }

    async fn run(
        &mut self,
        call: &Call<'_>,
        attributes: &Attributes<'_>,
        subject: &mut Subject<'_>,
    ) -> Result<(), ApiError> {
        if self.second {
            self.policies.second(self.left[0].as_ref() != subject.new.as_deref());
        }
        policy::mutate(call, attributes, subject, &mut self.policies).await?;
        self.left[0] = subject.new.as_deref().cloned();
        if self.second {
            self.hooks.second(self.left[1].as_ref() != subject.new.as_deref());
        }
        hooks::mutate(call, attributes, subject, &mut self.hooks).await?;
        self.left[1] = subject.new.as_deref().cloned();
        Ok(())
    }
}

/// A webhook may change much, but not the namespace an object is in.
fn stays(call: &Call<'_>, new: &Object) -> Result<(), ApiError> {
    if !call.resource.namespaced() || new.namespace() == call.namespace() {
        return Ok(());
    }
    Err(ApiError::bad_request(format!(
        "the namespace of the provided object does not match the namespace sent on the request ({} != {})",
        new.namespace(),
        call.namespace()
    )))
}

/// Validating phase of a write.
pub async fn validate(
    call: &Call<'_>,
    op: Op,
    options: &WriteOptions,
    new: &Object,
    old: Option<&Object>,
) -> Result<(), ApiError> {
    // Status is written by controllers, whom the built-in rules are not for.
    if op != Op::UpdateStatus {
        super::refuse(call, op, new, old).await?;
    }
    if !validated_by_others(call) {
        return Ok(());
    }
    let attributes = Attributes::of_write(call, op, options, new.name());
    match View::of(call, &attributes) {
        View::Whole => validate_by_others(call, &attributes, Objects { new: Some(new), old }).await,
        view @ View::Scale(_) => {
            let (new, old) = (view.show(new), old.map(|old| view.show(old)));
            validate_by_others(call, &attributes, Objects { new: Some(&new), old: old.as_ref() }).await
        }
    }
}

async fn validate_by_others(
    call: &Call<'_>,
    attributes: &Attributes<'_>,
    objects: Objects<'_>,
) -> Result<(), ApiError> {
    policy::validate(call, attributes, objects).await?;
    hooks::validate(call, attributes, objects).await
}

/// Both phases of a deletion.
pub async fn delete(call: &Call<'_>, options: &DeleteOptions, old: &Object) -> Result<(), ApiError> {
    super::may_delete(call, old)?;
    let attributes = Attributes::of_delete(call, options, old.name());
    let mut subject = Subject { new: None, old: Some(old), settle: &|_| Ok(()) };
    both(call, &attributes, &mut subject).await
}

/// Both phases for what a subresource makes (a Binding, an Eviction, a TokenRequest), of a kind of its own.
pub async fn create_body(
    call: &Call<'_>,
    kind: (&str, &str, &str),
    options: &WriteOptions,
    body: &mut Object,
) -> Result<(), ApiError> {
    let attributes = Attributes::of_body(call, kind, options);
    let settle =
        |object: &mut Object| fields::check_body(call, kind, object, Vec::new(), FieldValidation::Ignore).map(drop);
    let mut subject = Subject { new: Some(body), old: None, settle: &settle };
    both(call, &attributes, &mut subject).await
}

/// Both phases of a connection to a pod, a service or a node. Its options cannot be changed: the request has them in its
/// query, which goes on as it is.
pub async fn connect(call: &Call<'_>, name: &str) -> Result<(), ApiError> {
    if !mutated_by_others(call) && !validated_by_others(call) {
        return Ok(());
    }
    let options = connection_options(call);
    let attributes = Attributes::of_connection(call, options.kind(), name);
    let mut shown = options.clone();
    let settle = |object: &mut Object| match *object == options {
        true => Ok(()),
        false => Err(ApiError::internal(
            "admission webhook attempted to modify the options of a connection, which is not supported by Proa",
        )),
    };
    let mut subject = Subject { new: Some(&mut shown), old: None, settle: &settle };
    both(call, &attributes, &mut subject).await
}

async fn both(call: &Call<'_>, attributes: &Attributes<'_>, subject: &mut Subject<'_>) -> Result<(), ApiError> {
    if mutated_by_others(call) {
        let mut rounds = Rounds::default();
        rounds.run(call, attributes, subject).await?;
        if rounds.changed() {
            rounds.second = true;
            rounds.run(call, attributes, subject).await?;
        }
    }
    if validated_by_others(call) {
        validate_by_others(call, attributes, Objects { new: subject.new.as_deref(), old: subject.old }).await?;
    }
    Ok(())
}

/// What a connection is asked for: PodExecOptions and the like, from the query.
fn connection_options(call: &Call<'_>) -> Object {
    let (info, query) = (&call.request.info, &call.request.query);
    let (kind, flags, texts, lists): (&str, &[&str], &[&str], &[&str]) = match info.subresource.as_str() {
        "exec" => ("PodExecOptions", &["stdin", "stdout", "stderr", "tty"], &["container"], &["command"]),
        "attach" => ("PodAttachOptions", &["stdin", "stdout", "stderr", "tty"], &["container"], &[]),
        "portforward" => ("PodPortForwardOptions", &[], &[], &["ports"]),
        _ => match &*call.resource.kind.plural {
            "pods" => ("PodProxyOptions", &[], &[], &[]),
            "services" => ("ServiceProxyOptions", &[], &[], &[]),
            _ => ("NodeProxyOptions", &[], &[], &[]),
        },
    };
    let mut options = Map::new();
    for flag in flags.iter().filter(|flag| query.flag(flag)) {
        options.insert((*flag).to_owned(), true.into());
    }
    for (text, value) in texts.iter().filter_map(|text| Some((text, query.get(text)?))) {
        options.insert((*text).to_owned(), value.into());
    }
    for list in lists {
        // Ports are numbers, words of a command are not.
        let items = query.all(list).map(|item| match *list {
            "ports" => item.parse::<u16>().map_or_else(|_| item.into(), Value::from),
            _ => item.into(),
        });
        options.insert((*list).to_owned(), items.collect::<Vec<Value>>().into());
    }
    if info.subresource == "proxy" && !info.tail.is_empty() {
        options.insert("path".into(), info.tail.as_str().into());
    }
    let mut object = Object::from_value(json!({"kind": kind, "apiVersion": "v1"})).unwrap_or_default();
    object.0.extend(options);
    object
}
