//! `proa diff`: what differs between two revisions, as unified diffs of tidy YAML or as JSON.

use super::{
    InspectError, Kind, Target, revisions,
    unified::{Change, changes, unified},
};
use crate::release::content::{Content, Id};
use crate::release::contents_of;
use kube::Client;
use proa_apimachinery::yaml::to_yaml;
use serde::Serialize;
use serde_json::{Map, Value};
use std::{collections::BTreeMap, fmt};

/// What differs between two revisions of an object.
#[derive(Clone, Debug, Serialize)]
pub struct Difference {
    /// `deployment/web`
    pub object: String,
    /// The one revision.
    pub from: i64,
    /// The other.
    pub to: i64,
    /// What differs, part by part: the template, each ConfigMap and Secret; of a release, each member.
    pub parts: Vec<Part>,
}

/// A part of a revision that differs.
#[derive(Clone, Debug, Serialize)]
pub struct Part {
    /// `template`, `configmap/settings`, `deployment.apps/web`
    pub name: String,
    /// Field by field, key by key.
    pub changes: Vec<Change>,
    /// The same as a unified diff.
    #[serde(skip)]
    pub diff: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.parts.is_empty() {
            return writeln!(f, "revisions {} and {} of {} do not differ", self.from, self.to, self.object);
        }
        self.parts.iter().try_for_each(|part| f.write_str(&part.diff))
    }
}

/// What differs between two revisions. Values of Secrets are told by their size, unless they are asked for.
///
/// # Errors
/// When there is no such object or revision, or it may not be read.
pub async fn diff(
    client: &Client,
    namespace: &str,
    target: &Target,
    [from, to]: [i64; 2],
    show_secrets: bool,
) -> Result<Difference, InspectError> {
    let parts = match target.kind {
        Kind::Release => {
            let (a, b) = tokio::try_join!(
                contents_of(client, namespace, target, from),
                contents_of(client, namespace, target, to)
            )?;
            members(&a, &b, [from, to], show_secrets)
        }
        _ => {
            let held = revisions::revisions(client, namespace, target).await?;
            let find = |number: i64| {
                held.iter().find(|held| held.number == number).ok_or_else(|| InspectError::NoRevision {
                    target: target.to_string(),
                    revision: number,
                    held: held.iter().map(|held| held.number).collect(),
                })
            };
            workload(find(from)?, find(to)?, [from, to], show_secrets)
        }
    };
    Ok(Difference { object: target.to_string(), from, to, parts })
}

fn part(name: &str, [from, to]: [i64; 2], a: Option<&Value>, b: Option<&Value>) -> Option<Part> {
    let nothing = Value::Null;
    let changes = changes(a.unwrap_or(&nothing), b.unwrap_or(&nothing));
    let text = |value: Option<&Value>| value.map(to_yaml).unwrap_or_default();
    let side = |there: bool, revision: i64| {
        if there { format!("{name} (revision {revision})") } else { "/dev/null".to_owned() }
    };
    let diff = unified(&side(a.is_some(), from), &side(b.is_some(), to), &text(a), &text(b));
    (!diff.is_empty()).then(|| Part { name: name.to_owned(), changes, diff })
}

fn workload(a: &revisions::Held, b: &revisions::Held, numbers: [i64; 2], show_secrets: bool) -> Vec<Part> {
    let tidied = |held: &revisions::Held| tidy(held.template.clone());
    let mut parts: Vec<Part> = part("template", numbers, Some(&tidied(a)), Some(&tidied(b))).into_iter().collect();
    let names: std::collections::BTreeSet<&String> = a.configuration.keys().chain(b.configuration.keys()).collect();
    for name in names {
        let secret = name.starts_with("secret/");
        let kept = |held: &'_ revisions::Held| held.configuration.get(name).filter(|kept| !kept.is_empty()).cloned();
        let (a, b, hidden) = (kept(a), kept(b), secret && !show_secrets);
        let old = a.as_ref().map(|kept| readable(kept, None, hidden));
        let new = b.as_ref().map(|kept| readable(kept, a.as_ref(), hidden));
        parts.extend(part(name, numbers, old.as_ref(), new.as_ref()));
    }
    parts
}

/// Keys and values as a reader wants them. What is hidden shows its size, and whether it is still what it was `before`: no
/// digest, from which a weak password could be guessed.
fn readable(kept: &revisions::Kept, before: Option<&revisions::Kept>, hidden: bool) -> Value {
    let shown = |key: &String, bytes: &Vec<u8>| match std::str::from_utf8(bytes) {
        Ok(text) if !hidden => text.to_owned(),
        _ => match before.and_then(|before| before.get(key)) {
            Some(held) if held != bytes => format!("<{} bytes, changed>", bytes.len()),
            _ => format!("<{} bytes>", bytes.len()),
        },
    };
    Value::Object(kept.iter().map(|(key, bytes)| (key.clone(), shown(key, bytes).into())).collect())
}

fn members(a: &[Content], b: &[Content], numbers: [i64; 2], show_secrets: bool) -> Vec<Part> {
    let by_id = |contents: &'_ [Content]| -> BTreeMap<_, _> {
        contents.iter().map(|content| (content.id.clone(), content.clone())).collect()
    };
    let (a, b) = (by_id(a), by_id(b));
    let ids: std::collections::BTreeSet<_> = a.keys().chain(b.keys()).collect();
    let differing = |id: &Id| {
        let (a, b) = (a.get(id), b.get(id));
        let old = a.map(|content| shown(content, None, show_secrets));
        let new = b.map(|content| shown(content, a, show_secrets));
        part(&id.to_string(), numbers, old.as_ref(), new.as_ref())
    };
    ids.into_iter().filter_map(differing).collect()
}

/// A member as a reader wants it: a Secret's values in clear only if they are asked for, and readable if they are.
fn shown(content: &Content, before: Option<&Content>, show_secrets: bool) -> Value {
    let mut object = tidy(content.object.clone());
    if content.id.group.is_empty() && content.id.kind == "Secret" {
        let kept = revisions::in_clear(&object, true);
        let before = before.map(|before| revisions::in_clear(&before.object, true));
        if let Some(map) = object.as_object_mut().filter(|_| !kept.is_empty()) {
            map.insert("data".into(), readable(&kept, before.as_ref(), !show_secrets));
        }
    }
    object
}

/// Without what says nothing: nulls and empty lists; and with what a reader looks for first at the top.
fn tidy(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut kept: Map<String, Value> = Map::new();
            let mut rest: BTreeMap<String, Value> = BTreeMap::new();
            for (key, value) in map {
                let value = tidy(value);
                let hollow = match &value {
                    Value::Null => true,
                    Value::Array(list) => list.is_empty(),
                    Value::Object(map) => {
                        map.is_empty()
                            && matches!(
                                key.as_str(),
                                "labels" | "annotations" | "metadata" | "resources" | "securityContext" | "status"
                            )
                    }
                    _ => false,
                };
                if !hollow {
                    rest.insert(key, value);
                }
            }
            for first in ["apiVersion", "kind", "name", "image"] {
                if let Some(value) = rest.remove(first) {
                    kept.insert(first.to_owned(), value);
                }
            }
            kept.extend(rest);
            Value::Object(kept)
        }
        Value::Array(list) => Value::Array(list.into_iter().map(tidy).collect()),
        other => other,
    }
}

/// The changes of an object that is made, removed or changed, for a preview.
pub(crate) fn field_changes(from: Option<&Content>, to: Option<&Content>) -> Vec<Change> {
    match (from, to) {
        (Some(from), Some(to)) => changes(&shown(from, None, false), &shown(to, Some(from), false)),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn held(image: &str, config: &[(&str, &[(&str, &str)])]) -> revisions::Held {
        revisions::Held {
            number: 1,
            name: "web-1".into(),
            template: json!({"metadata": {"creationTimestamp": null}, "spec": {"containers": [{"name": "echo", "image": image, "env": []}]}}),
            configuration: config
                .iter()
                .map(|(name, keys)| {
                    let keys = keys.iter().map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec())).collect();
                    ((*name).to_owned(), keys)
                })
                .collect(),
            ..revisions::Held::default()
        }
    }

    #[test]
    fn a_diff_is_tidy_yaml_with_configuration_key_by_key_and_no_secret_in_clear() {
        let a = held("v1", &[("configmap/settings", &[("GREETING", "hello")]), ("secret/db", &[("password", "one")])]);
        let b =
            held("v2", &[("configmap/settings", &[("GREETING", "goodbye")]), ("secret/db", &[("password", "two")])]);
        let said =
            Difference { object: "deployment/web".into(), from: 3, to: 5, parts: workload(&a, &b, [3, 5], false) };
        let text = said.to_string();
        let expected = "\
--- template (revision 3)
+++ template (revision 5)
@@ -1,4 +1,4 @@
 spec:
   containers:
   - name: echo
-    image: v1
+    image: v2
--- configmap/settings (revision 3)
+++ configmap/settings (revision 5)
@@ -1,1 +1,1 @@
-GREETING: hello
+GREETING: goodbye
";
        assert!(text.starts_with(expected), "{text}");
        assert!(
            text.ends_with("-password: <3 bytes>\n+password: <3 bytes, changed>\n")
                && !text.contains("one")
                && !text.contains("two"),
            "{text}"
        );
        let open = workload(&a, &b, [3, 5], true);
        assert!(open[2].diff.contains("-password: one\n+password: two\n"), "{}", open[2].diff);
        let json = serde_json::to_value(&said).expect("JSON");
        assert_eq!(
            json["parts"][0]["changes"],
            json!([{"path": ".spec.containers[name=echo].image", "from": "v1", "to": "v2"}])
        );
        let none = Difference { parts: workload(&a, &a, [3, 5], false), ..said };
        assert_eq!(none.to_string(), "revisions 3 and 5 of deployment/web do not differ\n");
    }

    #[test]
    fn a_member_that_appeared_is_shown_whole_and_its_secrets_are_not() {
        let secret =
            Content::of("v1", "Secret", &json!({"metadata": {"name": "db"}, "data": {"password": "c2VjcmV0"}}));
        let parts = members(&[], std::slice::from_ref(&secret), [1, 2], false);
        assert_eq!(parts[0].name, "secret/db");
        assert!(parts[0].diff.contains("--- /dev/null\n") && !parts[0].diff.contains("c2VjcmV0"), "{}", parts[0].diff);
        assert!(members(&[], &[secret], [1, 2], true)[0].diff.contains("password: secret"));
    }
}
