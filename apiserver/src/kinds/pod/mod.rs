//! Owns the strategy of pods: defaults, validation, what may change, how they go. Never talks to
//! anything; what admission must look up is passed in (see [`admit_service_account`]).

use proa_apimachinery::field::FieldErrors;
use proa_apimachinery::{Object, unsupported};

use super::at::At;
use super::{Graceful, Op, Rules};

mod admit;
mod container;
mod defaults;
mod references;
mod spec;
mod update;
mod volume;

pub use admit::{MIRROR, TOKEN_PATH, admit_service_account, qos_class, service_account_name};
pub use references::{CONFIG_REVISION, Referent, references};

pub(super) use container::{port as validate_port, quantities, resources};
pub(super) use defaults::{canonical_quantities, spec_defaults};
pub(super) use spec::{label_selector, selects, validate as validate_spec};

pub(super) const RULES: Rules = Rules {
    default: defaults::pod,
    prepare,
    validate,
    warnings,
    graceful,
    unsupported: |pod| unsupported::refused(&At::of(pod, "spec")),
    ..Rules::WITH_STATUS
};

fn prepare(op: Op, new: &mut Object, old: Option<&Object>) {
    match (op, old) {
        (Op::Create, _) => {
            admit::default_tolerations(new);
            admit::initial_status(new);
        }
        (Op::UpdateStatus, Some(old)) => {
            // The quality of service is decided once.
            if let Some(class) = old.get(&["status", "qosClass"]).cloned() {
                new.set(&["status", "qosClass"], class);
            }
        }
        _ => {}
    }
}

fn validate(op: Op, new: &Object, old: Option<&Object>, errors: &mut FieldErrors) {
    let spec = At::of(new, "spec");
    validate_spec(&spec, &[], errors);
    if op == Op::Create {
        let ephemeral = spec.child("ephemeralContainers");
        if !ephemeral.is_empty() {
            ephemeral.forbidden(errors, "cannot be set on create");
        }
        if !spec.child("schedulingGates").is_empty() && !spec.child("nodeName").is_empty() {
            spec.child("nodeName").forbidden(errors, "cannot be set until all schedulingGates have been cleared");
        }
    }
    if let (Op::Update, Some(old)) = (op, old) {
        update::validate(new, old, errors);
    }
}

fn warnings(pod: &Object) -> Vec<String> {
    spec_warnings(&At::of(pod, "spec"))
}

/// What is accepted though it will not do what its author may think.
pub(super) fn spec_warnings(spec: &At<'_>) -> Vec<String> {
    let mut warnings = unsupported::ignored(spec);
    for list in ["initContainers", "containers"] {
        for container in spec.child(list).items() {
            let mut names: Vec<&str> = Vec::new();
            for env in container.child("env").items() {
                let name = env.child("name").str();
                if names.contains(&name) {
                    let at = &env.path;
                    warnings.push(format!(
                        "{at}: hides previous definition of \"{name}\", which may be dropped when using apply"
                    ));
                }
                names.push(name);
            }
        }
    }
    warnings
}

/// A pod waits for its node, unless it has none or nothing runs there any more.
fn graceful(pod: &Object, requested: Option<i64>) -> Graceful {
    let phase = pod.get_str(&["status", "phase"]).unwrap_or_default();
    let unscheduled = pod.get_str(&["spec", "nodeName"]).unwrap_or_default().is_empty();
    if unscheduled || matches!(phase, "Succeeded" | "Failed") {
        return Graceful::Now;
    }
    let wanted = requested.or_else(|| pod.get_i64(&["spec", "terminationGracePeriodSeconds"])).unwrap_or(30);
    match wanted {
        0 => Graceful::Now,
        // A negative grace reads as one second.
        ..0 => Graceful::After(1),
        seconds => Graceful::After(seconds),
    }
}
