//! ConversionReview (apiextensions.k8s.io, v1 and v1beta1): the question, and whether the answer is one.
//!
//! Pure. Owns what a conversion may not change (`k8s.io/apiextensions-apiserver/pkg/apiserver/conversion`): what an
//! object is and everything in its metadata but labels and annotations.

use proa_apimachinery::field::{FieldErrors, Path, join};
use proa_apimachinery::object::Object;
use serde_json::{Map, Value, json};

use crate::kinds::meta;

const SPOKEN: [&str; 2] = ["v1", "v1beta1"];

/// The version to speak with a webhook that understands `versions`: its first that this server does.
pub(super) fn version(versions: &[String]) -> Option<&'static str> {
    versions.iter().find_map(|version| SPOKEN.into_iter().find(|spoken| spoken == version))
}

/// The question.
pub(super) fn review(version: &str, uid: &str, to: &str, objects: &[Object]) -> Value {
    let objects: Vec<Value> = objects.iter().map(Object::to_value).collect();
    json!({"kind": "ConversionReview", "apiVersion": format!("apiextensions.k8s.io/{version}"),
        "request": {"uid": uid, "desiredAPIVersion": to, "objects": objects}})
}

/// What `originals` were converted to.
///
/// # Errors
///
/// What is wrong with the answer, to follow `conversion webhook for …`.
pub(super) fn converted(
    version: &str,
    uid: &str,
    to: &str,
    originals: &[Object],
    body: &[u8],
) -> Result<Vec<Object>, String> {
    let failed = |why: String| format!("failed: {why}");
    let review: Value = serde_json::from_slice(body).map_err(|error| failed(format!("invalid response: {error}")))?;
    let text = |value: &Value, field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let wanted = format!("apiextensions.k8s.io/{version}");
    let (kind, api_version) = (text(&review, "kind"), text(&review, "apiVersion"));
    if version == "v1" && (kind != "ConversionReview" || api_version != wanted) {
        return Err(failed(format!(
            "expected webhook response of {wanted}, Kind=ConversionReview, got {api_version}, Kind={kind}"
        )));
    }
    let response = review.get("response").filter(|response| response.is_object());
    let response = response.ok_or_else(|| failed("no response provided".to_owned()))?;
    let answered = text(response, "uid");
    if version == "v1" && answered != uid {
        return Err(failed(format!("expected response.uid={uid:?}, got {answered:?}")));
    }
    let result = response.get("result").cloned().unwrap_or_default();
    match text(&result, "status").as_str() {
        "Success" => {}
        "Failure" => return Err(failed(text(&result, "message"))),
        other => {
            return Err(failed(format!("response.result.status was {other:?}, expected \"Success\" or \"Failure\"")));
        }
    }
    let objects = response.get("convertedObjects").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if objects.len() != originals.len() {
        return Err(format!("returned {} objects, expected {}", objects.len(), originals.len()));
    }
    let each = originals.iter().zip(objects).enumerate();
    each.map(|(at, (original, converted))| {
        accept(to, original, converted)
            .map_err(|error| format!("returned invalid converted object at index {at}: {error}"))
    })
    .collect()
}

/// A converted object, if it still is the same one.
fn accept(to: &str, original: &Object, converted: &Value) -> Result<Object, String> {
    let mut object = Object::from_value(converted.clone()).map_err(|_| "it is no object".to_owned())?;
    if object.api_version() != to {
        return Err(format!("invalid groupVersion (expected {to}, received {})", object.api_version()));
    }
    if object.0.get("metadata").is_some_and(|metadata| !metadata.is_object()) {
        return Err("invalid metadata: it is no object".to_owned());
    }
    for (what, before, after) in [
        ("kind", original.kind(), object.kind()),
        ("name", original.name(), object.name()),
        ("namespace", original.namespace(), object.namespace()),
        ("UID", original.uid(), object.uid()),
    ] {
        if before != after {
            return Err(format!("must have the same {what}: {before} != {after}"));
        }
    }
    let mut metadata: Map<String, Value> = original.metadata().cloned().unwrap_or_default();
    for (field, check) in
        [("labels", meta::labels as fn(Option<&Value>, &Path, &mut FieldErrors)), ("annotations", meta::annotations)]
    {
        let changed = object.metadata().and_then(|metadata| metadata.get(field)).filter(|value| !value.is_null());
        let mut errors = FieldErrors::new();
        check(changed, &Path::of("metadata").child(field), &mut errors);
        let strings = changed.is_none_or(|map| map.as_object().is_some_and(|map| map.values().all(Value::is_string)));
        if !strings || !errors.is_empty() {
            return Err(format!("invalid metadata: {field}: {}", join(&errors)));
        }
        match changed.cloned() {
            Some(changed) => drop(metadata.insert(field.to_owned(), changed)),
            None => drop(metadata.shift_remove(field)),
        }
    }
    object.0.insert("metadata".to_owned(), metadata.into());
    Ok(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn original() -> Object {
        Object::from_value(json!({"apiVersion": "g/v1", "kind": "K", "hostPort": "a:1",
            "metadata": {"name": "n", "namespace": "ns", "uid": "u", "generation": 3, "labels": {"a": "b"}}}))
        .unwrap()
    }

    fn answer(change: impl Fn(&mut Value)) -> Result<Object, String> {
        let mut converted = json!({"apiVersion": "g/v2", "kind": "K", "host": "a", "port": "1",
            "metadata": {"name": "n", "namespace": "ns", "uid": "u", "labels": {"a": "b"}}});
        change(&mut converted);
        let body = json!({"kind": "ConversionReview", "apiVersion": "apiextensions.k8s.io/v1",
            "response": {"uid": "1", "result": {"status": "Success"}, "convertedObjects": [converted]}});
        super::converted("v1", "1", "g/v2", &[original()], body.to_string().as_bytes()).map(|mut list| list.remove(0))
    }

    #[test]
    fn a_conversion_changes_fields_labels_and_annotations_and_nothing_else() {
        let good = answer(|object| {
            object["metadata"]["annotations"] = json!({"x": "y"});
            object["metadata"]["generation"] = json!(99);
            object["metadata"]["finalizers"] = json!(["a.b/c"]);
        })
        .unwrap();
        assert_eq!(good.get(&["host"]), Some(&json!("a")));
        assert_eq!((good.generation(), good.annotation("x"), good.finalizers().count()), (3, Some("y"), 0));
        for (path, value, why) in [
            ("/metadata/name", json!("m"), "must have the same name: n != m"),
            ("/metadata/uid", json!("w"), "must have the same UID: u != w"),
            ("/kind", json!("L"), "must have the same kind: K != L"),
            ("/apiVersion", json!("g/v3"), "invalid groupVersion (expected g/v2, received g/v3)"),
            ("/metadata/labels", json!({"a": "b c"}), "invalid metadata: labels"),
            ("/metadata", json!("x"), "invalid metadata"),
        ] {
            let error = answer(|object| *object.pointer_mut(path).unwrap() = value.clone()).unwrap_err();
            assert!(
                error.starts_with("returned invalid converted object at index 0: ") && error.contains(why),
                "{error}"
            );
        }
    }

    #[test]
    fn an_answer_that_is_none_is_refused() {
        let read = |body: Value| super::converted("v1", "1", "g/v2", &[original()], body.to_string().as_bytes());
        let response = |response: Value| json!({"kind": "ConversionReview", "apiVersion": "apiextensions.k8s.io/v1", "response": response});
        for (body, why) in [
            (json!({}), "failed: expected webhook response"),
            (response(json!(null)), "failed: no response provided"),
            (response(json!({"uid": "2"})), "failed: expected response.uid=\"1\", got \"2\""),
            (response(json!({"uid": "1", "result": {"status": "Failure", "message": "no way"}})), "failed: no way"),
            (response(json!({"uid": "1", "result": {}})), "failed: response.result.status was \"\""),
            (response(json!({"uid": "1", "result": {"status": "Success"}})), "returned 0 objects, expected 1"),
        ] {
            let error = read(body).unwrap_err();
            assert!(error.starts_with(why), "{error}");
        }
    }
}
