//! CEL's `authorizer` (KEP-3488): questions built up call by call, answered by whoever decides.
//!
//! Owns the functions and what they make of each other; never decides.

use std::sync::Arc;

use kube_cel::cel::extractors::This;
use kube_cel::cel::objects::Opaque;
use kube_cel::cel::{Context, ExecutionError, Value as Cel};

/// Decides what expressions ask.
pub trait Authorizer: Send + Sync {
    /// May they?
    fn decide(&self, question: &Question) -> Decision;
}

/// What is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Question {
    /// Namespace and name of the service account it is asked for; the user of the request otherwise.
    pub service_account: Option<(String, String)>,
    /// The path, where it is not about a resource.
    pub path: Option<String>,
    /// The API group.
    pub group: String,
    /// The resource.
    pub resource: String,
    /// The subresource.
    pub subresource: String,
    /// The namespace.
    pub namespace: String,
    /// The object's name.
    pub name: String,
    /// The field selector of a list or watch.
    pub field_selector: String,
    /// The label selector of a list or watch.
    pub label_selector: String,
    /// The verb.
    pub verb: String,
}

/// The answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// They may.
    pub allowed: bool,
    /// Why.
    pub reason: String,
}

/// A question that is not asked yet, and who will answer it.
#[derive(Clone)]
struct Asking {
    authorizer: Arc<dyn Authorizer>,
    question: Question,
}

impl std::fmt::Debug for Asking {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.question.fmt(f)
    }
}

impl PartialEq for Asking {
    fn eq(&self, other: &Self) -> bool {
        self.question == other.question
    }
}

impl Eq for Asking {}

impl Opaque for Asking {
    fn runtime_type_name(&self) -> &str {
        "kubernetes.authorization.Authorizer"
    }
}

impl Opaque for Decision {
    fn runtime_type_name(&self) -> &str {
        "kubernetes.authorization.Decision"
    }
}

/// The variable `authorizer`.
pub(super) fn root(authorizer: Arc<dyn Authorizer>) -> Cel {
    about(authorizer, Question::default())
}

/// An authorizer that is asked about something already.
pub(super) fn about(authorizer: Arc<dyn Authorizer>, question: Question) -> Cel {
    Cel::Opaque(Arc::new(Asking { authorizer, question }))
}

fn asking(function: &str, value: &Cel) -> Result<Asking, ExecutionError> {
    let found = if let Cel::Opaque(opaque) = value { opaque.downcast_ref::<Asking>() } else { None };
    found.cloned().ok_or_else(|| ExecutionError::function_error(function, "no such overload"))
}

fn decision(function: &str, value: &Cel) -> Result<Decision, ExecutionError> {
    let found = if let Cel::Opaque(opaque) = value { opaque.downcast_ref::<Decision>() } else { None };
    found.cloned().ok_or_else(|| ExecutionError::function_error(function, "no such overload"))
}

/// Adds the functions to what expressions may call.
pub(crate) fn register(context: &mut Context<'static>) {
    type Set = fn(&mut Question, String);
    const SETTERS: [(&str, Set); 8] = [
        ("path", |question, text| question.path = Some(text)),
        ("group", |question, text| question.group = text),
        ("resource", |question, text| question.resource = text),
        ("subresource", |question, text| question.subresource = text),
        ("namespace", |question, text| question.namespace = text),
        ("name", |question, text| question.name = text),
        ("fieldSelector", |question, text| question.field_selector = text),
        ("labelSelector", |question, text| question.label_selector = text),
    ];
    for (function, set) in SETTERS {
        let build = move |This(this): This<Cel>, text: Arc<String>| -> Result<Cel, ExecutionError> {
            let mut asking = asking(function, &this)?;
            set(&mut asking.question, text.to_string());
            Ok(Cel::Opaque(Arc::new(asking)))
        };
        context.add_function(function, build);
    }
    let account = |This(this): This<Cel>, namespace: Arc<String>, name: Arc<String>| -> Result<Cel, ExecutionError> {
        let mut asking = asking("serviceAccount", &this)?;
        asking.question.service_account = Some((namespace.to_string(), name.to_string()));
        Ok(Cel::Opaque(Arc::new(asking)))
    };
    context.add_function("serviceAccount", account);
    let check = |This(this): This<Cel>, verb: Arc<String>| -> Result<Cel, ExecutionError> {
        let mut asking = asking("check", &this)?;
        asking.question.verb = verb.to_string();
        Ok(Cel::Opaque(Arc::new(asking.authorizer.decide(&asking.question))))
    };
    context.add_function("check", check);
    let allowed = |This(this): This<Cel>| -> Result<bool, ExecutionError> { Ok(decision("allowed", &this)?.allowed) };
    context.add_function("allowed", allowed);
    let reason = |This(this): This<Cel>| -> Result<Cel, ExecutionError> {
        Ok(Cel::String(Arc::new(decision("reason", &this)?.reason)))
    };
    context.add_function("reason", reason);
    // Our authorizers look into memory: they have no errors to tell of.
    let errored = |This(this): This<Cel>| -> Result<bool, ExecutionError> { decision("errored", &this).map(|_| false) };
    context.add_function("errored", errored);
    let error = |This(this): This<Cel>| -> Result<Cel, ExecutionError> {
        decision("error", &this).map(|_| Cel::String(Arc::default()))
    };
    context.add_function("error", error);
}
