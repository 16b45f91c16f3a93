//! A pod's priority comes from its class: the one it names, or the default one. Source: the Priority admission plugin.

use proa_apimachinery::object::Object;
use serde_json::Value;

use crate::registry::Call;

/// The classes there are.
pub(super) fn classes(call: &Call<'_>) -> Vec<Object> {
    let classes = call.core.caches.resource("priorityclasses.scheduling.k8s.io").items("");
    classes.iter().map(|item| item.object()).collect()
}

/// The class of pods that name none: of several (they may have been there before that was refused) the lowest.
fn default(classes: &[Object]) -> Option<&Object> {
    let marked = classes.iter().filter(|class| class.get_bool(&["globalDefault"]) == Some(true));
    marked.min_by_key(|class| class.get_i64(&["value"]).unwrap_or(0))
}

/// Why a class may not be the default one: another is.
pub(super) fn refuse_default(class: &Object, classes: &[Object]) -> Option<String> {
    if class.get_bool(&["globalDefault"]) != Some(true) {
        return None;
    }
    let have = default(classes).filter(|have| have.name() != class.name())?;
    Some(format!("PriorityClass {} is already marked as default. Only one default can exist", have.name()))
}

/// The system's two classes, known before they are stored.
const SYSTEM: [(&str, i64); 2] = [("system-cluster-critical", 2_000_000_000), ("system-node-critical", 2_000_001_000)];

/// Gives a new pod its priority and whether it may preempt; the error says what does not fit.
pub(super) fn admit(pod: &mut Object, classes: &[Object]) -> Result<(), String> {
    const PREEMPT: &str = "PreemptLowerPriority";
    let named = pod.get_str(&["spec", "priorityClassName"]).unwrap_or_default().to_owned();
    let class = match named.as_str() {
        "" => default(classes),
        named => classes.iter().find(|class| class.name() == named),
    };
    let system = SYSTEM.iter().find(|(name, _)| *name == named);
    let (name, priority, policy) = match (class, system) {
        (Some(class), _) => (
            class.name(),
            class.get_i64(&["value"]).unwrap_or(0),
            class.get_str(&["preemptionPolicy"]).unwrap_or(PREEMPT),
        ),
        (None, Some((name, value))) => (*name, *value, PREEMPT),
        (None, None) if named.is_empty() => ("", 0, PREEMPT),
        (None, None) => return Err(format!("no PriorityClass with name {named} was found")),
    };
    if let Some(given) = pod.get_i64(&["spec", "priority"]).filter(|given| *given != priority) {
        return Err(format!(
            "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller \
             computed {priority} from the given PriorityClass name"
        ));
    }
    if let Some(given) =
        pod.get_str(&["spec", "preemptionPolicy"]).filter(|given| !given.is_empty() && *given != policy)
    {
        return Err(format!(
            "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission \
             controller computed {policy} from the given PriorityClass name"
        ));
    }
    pod.set(&["spec", "priority"], priority);
    pod.set(&["spec", "preemptionPolicy"], Value::from(policy));
    if !name.is_empty() {
        pod.set(&["spec", "priorityClassName"], Value::from(name));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(value: Value) -> Object {
        Object::from_value(value).expect("an object")
    }

    fn class(name: &str, value: i64, default: bool, policy: &str) -> Object {
        object(
            json!({"metadata": {"name": name}, "value": value, "globalDefault": default, "preemptionPolicy": policy}),
        )
    }

    fn admitted(spec: Value, classes: &[Object]) -> Result<Value, String> {
        let mut pod = object(json!({"spec": spec}));
        admit(&mut pod, classes)?;
        Ok(pod.0["spec"].clone())
    }

    #[test]
    fn a_pod_has_the_priority_of_its_class_and_of_no_other() {
        let classes = [
            class("high", 1000, false, "Never"),
            class("usual", 10, true, "PreemptLowerPriority"),
            class("usual-too", 20, true, "PreemptLowerPriority"),
        ];
        let table = [
            (json!({"priorityClassName": "high"}), &classes[..], ("high", 1000, "Never")),
            (json!({}), &classes[..], ("usual", 10, "PreemptLowerPriority")),
            (json!({"priority": 10}), &classes[..], ("usual", 10, "PreemptLowerPriority")),
            (
                json!({"priorityClassName": "system-node-critical"}),
                &[],
                ("system-node-critical", 2_000_001_000, "PreemptLowerPriority"),
            ),
        ];
        for (spec, classes, (name, priority, policy)) in table {
            let wanted = json!({"priorityClassName": name, "priority": priority, "preemptionPolicy": policy});
            assert_eq!(admitted(spec, classes), Ok(wanted));
        }
        assert_eq!(admitted(json!({}), &[]), Ok(json!({"priority": 0, "preemptionPolicy": "PreemptLowerPriority"})));
    }

    #[test]
    fn what_does_not_fit_is_said_in_kubernetes_words() {
        let classes = [class("high", 1000, false, "Never")];
        let table = [
            (json!({"priorityClassName": "higher"}), "no PriorityClass with name higher was found"),
            (
                json!({"priorityClassName": "high", "priority": 5}),
                "the integer value of priority (5) must not be provided in pod spec; priority admission controller computed 1000 from the given PriorityClass name",
            ),
            (
                json!({"priorityClassName": "high", "preemptionPolicy": "PreemptLowerPriority"}),
                "the string value of PreemptionPolicy (PreemptLowerPriority) must not be provided in pod spec; priority admission controller computed Never from the given PriorityClass name",
            ),
        ];
        for (spec, wanted) in table {
            assert_eq!(admitted(spec, &classes).unwrap_err(), wanted);
        }
    }

    #[test]
    fn one_class_is_the_default() {
        let there = [class("a", 1, true, "Never"), class("b", 2, false, "Never")];
        let refused = "PriorityClass a is already marked as default. Only one default can exist";
        assert_eq!(refuse_default(&class("c", 3, true, "Never"), &there).as_deref(), Some(refused));
        assert_eq!(refuse_default(&class("b", 2, true, "Never"), &there).as_deref(), Some(refused));
        assert_eq!(refuse_default(&class("a", 1, true, "Never"), &there), None);
        assert_eq!(refuse_default(&class("c", 3, false, "Never"), &there), None);
    }
}
