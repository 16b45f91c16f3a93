//! Which objects a quota counts: its scopes (`spec.scopes`, `spec.scopeSelector`), all of which must hold.

use serde_json::Value;

use super::Subject;
use crate::Object;

/// One scope with what its value must be.
struct Scope {
    name: String,
    operator: String,
    values: Vec<String>,
}

/// The scopes of a quota.
pub struct Scopes(Vec<Scope>);

impl Scopes {
    /// Reads them from a ResourceQuota.
    pub fn of(quota: &Object) -> Scopes {
        let text = |value: &Value, field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        let plain = quota.get_list(&["spec", "scopes"]).iter().filter_map(Value::as_str).map(|name| Scope {
            name: name.to_owned(),
            operator: "Exists".to_owned(),
            values: Vec::new(),
        });
        let selected = quota.get_list(&["spec", "scopeSelector", "matchExpressions"]).iter().map(|expression| {
            let values = expression.get("values").and_then(Value::as_array).into_iter().flatten();
            Scope {
                name: text(expression, "scopeName"),
                operator: text(expression, "operator"),
                values: values.filter_map(Value::as_str).map(str::to_owned).collect(),
            }
        });
        Scopes(plain.chain(selected).collect())
    }

    /// Whether an object is counted. Scopes are about pods and claims: of a quota that has any, nothing else is.
    pub fn hold(&self, subject: Subject<'_>, object: &Object) -> bool {
        self.0.iter().all(|scope| match (scope.name.as_str(), subject.is("pods")) {
            ("Terminating", true) => has_deadline(object),
            ("NotTerminating", true) => !has_deadline(object),
            ("BestEffort", true) => is_best_effort(object),
            ("NotBestEffort", true) => !is_best_effort(object),
            ("PriorityClass", true) => {
                let class = object.get_str(&["spec", "priorityClassName"]).unwrap_or_default();
                scope.selects(std::iter::once(class).filter(|class| !class.is_empty()))
            }
            ("CrossNamespacePodAffinity", true) => looks_into_other_namespaces(object),
            ("VolumeAttributesClass", false) if subject.is("persistentvolumeclaims") => {
                let named = [
                    &["spec", "volumeAttributesClassName"][..],
                    &["status", "currentVolumeAttributesClassName"],
                    &["status", "modifyVolumeStatus", "targetVolumeAttributesClassName"],
                ];
                scope.selects(named.iter().filter_map(|path| object.get_str(path)).filter(|name| !name.is_empty()))
            }
            _ => false,
        })
    }
}

impl Scope {
    /// The operators of a label selector over one value (for a claim that changes its class: over each of its classes).
    fn selects<'a>(&self, mut values: impl Iterator<Item = &'a str>) -> bool {
        let listed = |value: &str| self.values.iter().any(|wanted| wanted == value);
        match self.operator.as_str() {
            "Exists" => values.next().is_some(),
            "DoesNotExist" => values.next().is_none(),
            "In" => values.any(listed),
            "NotIn" => !values.any(listed),
            _ => false,
        }
    }
}

/// `Terminating` means a pod that will end by itself, whatever its state now.
fn has_deadline(pod: &Object) -> bool {
    pod.get_i64(&["spec", "activeDeadlineSeconds"]).is_some_and(|seconds| seconds >= 0)
}

/// Neither a request nor a limit of cpu or memory anywhere (the quality of service class BestEffort).
fn is_best_effort(pod: &Object) -> bool {
    use crate::pod_resources::{Side, amounts, of_container};
    let asks = |amounts: crate::pod_resources::Amounts| {
        ["cpu", "memory"].iter().any(|n| amounts.get(*n).is_some_and(|a| !a.is_zero()))
    };
    let of_pod = ["requests", "limits"].iter().any(|side| asks(amounts(pod.get(&["spec", "resources", side]))));
    let mut containers = ["containers", "initContainers"].iter().flat_map(|field| pod.get_list(&["spec", field]));
    !of_pod && !containers.any(|c| asks(of_container(c, Side::Requests)) || asks(of_container(c, Side::Limits)))
}

/// Whether a term of the pod's affinity or anti-affinity names namespaces or selects them (KEP-2249).
fn looks_into_other_namespaces(pod: &Object) -> bool {
    let abroad = |term: &Value| {
        let named = term.get("namespaces").and_then(Value::as_array).is_some_and(|names| !names.is_empty());
        named || term.get("namespaceSelector").is_some_and(|selector| !selector.is_null())
    };
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let terms = |field| pod.get_list(&["spec", "affinity", kind, field]);
        terms("requiredDuringSchedulingIgnoredDuringExecution").iter().any(abroad)
            || terms("preferredDuringSchedulingIgnoredDuringExecution")
                .iter()
                .filter_map(|wish| wish.get("podAffinityTerm"))
                .any(abroad)
    })
}
