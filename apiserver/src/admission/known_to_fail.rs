//! Whoever applies a template that is known to fail is told at once: the object itself says which those are
//! (`proa.dev/failed-revisions`, written by the loop that refuses them).

use proa_apimachinery::{Object, template};
use serde_json::Value;

/// What the object says of templates that would not be rolled out. As `proa_crds::annotations`, with whose loops it is shared.
const FAILED_REVISIONS: &str = "proa.dev/failed-revisions";
const RETRY: &str = "proa.dev/retry";
const ROLLBACK: &str = "proa.dev/rollback";

/// The warning for an update that changes the template to one that is known to fail.
pub(super) fn warning(new: &Object, old: Option<&Object>) -> Option<String> {
    let old = old?;
    let failed: Value = serde_json::from_str(old.annotation(FAILED_REVISIONS)?).ok()?;
    if new.annotation(RETRY) != old.annotation(RETRY) || new.annotation(ROLLBACK) == Some("off") {
        return None;
    }
    let digest = |object: &Object| object.get(&["spec", "template"]).map(template::digest);
    let wanted = digest(new)?;
    let known = failed.as_array()?.iter().find(|one| one["template"] == wanted.as_str())?;
    if digest(old).is_some_and(|held| held == wanted) {
        return None;
    }
    Some(format!(
        "spec.template: this is revision {}, which is known to fail ({}): it is not rolled out. Change the template, or set the annotation {RETRY} to a new value to try it again",
        known["revision"],
        known["why"].as_str().unwrap_or_default(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_template_that_is_known_to_fail_is_warned_of_when_it_is_applied_again_and_not_retried() {
        let template = |image: &str| json!({"spec": {"containers": [{"name": "c", "image": image}]}});
        let known =
            json!([{"template": template::digest(&template("bad")), "revision": 2, "why": "CrashLoop: it crashed"}]);
        let object = |image: &str, edit: Value| {
            let mut object = json!({"metadata": {"annotations": {FAILED_REVISIONS: known.to_string()}}, "spec": {"template": template(image)}});
            if let (Some(held), Some(edit)) = (object["metadata"]["annotations"].as_object_mut(), edit.as_object()) {
                held.extend(edit.clone());
            }
            Object::from_value(object).unwrap_or_default()
        };
        let good = object("good", json!({}));
        let warned = |image, edit| warning(&object(image, edit), Some(&good));
        let said = warned("bad", json!({})).unwrap();
        assert!(
            said.contains("revision 2, which is known to fail (CrashLoop: it crashed)") && said.contains(RETRY),
            "{said}"
        );
        assert_eq!(warned("better", json!({})), None);
        assert_eq!(warned("bad", json!({RETRY: "1"})), None);
        assert_eq!(warned("bad", json!({ROLLBACK: "off"})), None);
        assert_eq!(
            warning(&object("bad", json!({"a": "b"})), Some(&object("bad", json!({})))),
            None,
            "it is there already"
        );
        assert_eq!(warning(&object("bad", json!({})), None), None);
    }
}
