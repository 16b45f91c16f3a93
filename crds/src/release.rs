//! Release: a set of objects that changed together, with revisions that come back as a whole.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector, MicroTime};
use kube::core::ApiResource;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// A release (`proa.dev/v1`).
pub type Release = kube::core::Object<ReleaseSpec, ReleaseStatus>;

/// How many revisions are kept when the release does not say: as of a Deployment.
pub const DEFAULT_HISTORY: i32 = 10;

/// How long a revision may stand still, in seconds, when the release does not say: as of a Deployment.
pub const DEFAULT_DEADLINE: i32 = 600;

/// Where releases are served.
pub fn release_resource() -> ApiResource {
    crate::extensions::resource("Release", "releases")
}

/// What belongs to a release, and what is wanted of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReleaseSpec {
    /// Which objects belong to it.
    #[serde(skip_serializing_if = "is_default")]
    pub members: Members,
    /// How many revisions are kept besides the current one and the last healthy one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision_history_limit: Option<i32>,
    /// How long a revision that is not complete may stand still before it counts as failed, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress_deadline_seconds: Option<i32>,
    /// No revision is recorded, and nothing goes back by itself, while its applier is at work.
    #[serde(skip_serializing_if = "is_default")]
    pub paused: bool,
    /// Which process drives it: the one of the standard family, or with `proa.dev` that of the custom one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub family: Option<String>,
    /// A wish to go back; the controller takes it in and clears it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollback_to: Option<RollbackTo>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Which objects belong to a release. At most one of the three is set; with none of them the release is itself the parent of
/// an ApplySet (KEP-3659): `kubectl apply --prune --applyset=releases.proa.dev/NAME`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Members {
    /// The parent of an ApplySet in the same namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub apply_set: Option<Parent>,
    /// Objects of the release's namespace, by labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
    /// Objects of the release's namespace, by name: an inventory.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub objects: Vec<Member>,
    /// Of which kinds the selected objects are; empty: of the usual ones.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kinds: Vec<GroupKind>,
}

/// The ConfigMap or Secret that is the parent of an ApplySet.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Parent {
    /// `ConfigMap` or `Secret`.
    pub kind: String,
    /// Its name.
    pub name: String,
}

/// A kind, whatever its version.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GroupKind {
    /// Empty for the core group.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// `Deployment`
    pub kind: String,
}

/// An object of the release's namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Member {
    /// `apps/v1`
    pub api_version: String,
    /// `Deployment`
    pub kind: String,
    /// Its name.
    pub name: String,
}

/// A wish to go back.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RollbackTo {
    /// The revision to go back to; without, the last one before the current that is not known to fail.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<i64>,
    /// Objects that came to belong to somebody else are taken, and what cannot be changed in place is made anew.
    #[serde(skip_serializing_if = "is_default")]
    pub force: bool,
}

/// What became of a release.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReleaseStatus {
    /// The generation this status speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The number of the current revision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<i64>,
    /// How many objects belong to it now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub members: Option<i32>,
    /// Its revisions, oldest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub revisions: Vec<Revision>,
    /// The going back that is under way. Written before the first object is: after a crash it is resumed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollback: Option<GoingBack>,
    /// `Ready`, `Reconciling`, `Stalled` (kstatus), `RolledBack`, `RolloutRefused`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// A revision of a release.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Revision {
    /// Its number.
    pub revision: i64,
    /// SHA-256 over what its members hold: two revisions that say the same have the same.
    pub digest: String,
    /// SHA-256 of the record of its members; the Secrets that hold it are found, and checked, by digest.
    pub record: String,
    /// When its members came to rest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recorded_at: Option<MicroTime>,
    /// How many members it has.
    pub members: i32,
    /// Who changed them, by user and field manager.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub authors: Vec<String>,
    /// `kubernetes.io/change-cause` of the release or of the ApplySet's parent at that time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// The images its workloads run.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<String>,
    /// The earlier revision this one repeats.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rolled_back_to: Option<i64>,
    /// What became of it.
    pub result: Outcome,
    /// When it became healthy or failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decided_at: Option<MicroTime>,
    /// Why it failed: one word.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Why it failed: which member, and what it says.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The value of `proa.dev/retry` when it failed.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub retry: String,
}

/// What became of a revision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Its members are on their way.
    #[default]
    Progressing,
    /// Every member has been healthy at the same time.
    Healthy,
    /// A member failed.
    Failed,
    /// Another revision came before anything was decided.
    Superseded,
}

/// A going back under way.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GoingBack {
    /// The revision that was current.
    pub from: i64,
    /// The revision that comes back.
    pub to: i64,
    /// The record of that revision's members.
    pub record: String,
    /// Whether a failure asked for it.
    #[serde(skip_serializing_if = "is_default")]
    pub automatic: bool,
    /// Whether what belongs to others is taken.
    #[serde(skip_serializing_if = "is_default")]
    pub force: bool,
    /// Whether the failed revision was only applied again, and never became current.
    #[serde(skip_serializing_if = "is_default")]
    pub refused: bool,
    /// Who asked for it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub by: String,
    /// Why, in one word.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Why.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Since when.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<MicroTime>,
}

fn text(description: &str) -> Value {
    json!({"type": "string", "description": description})
}

fn texts(description: &str) -> Value {
    json!({"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "atomic", "description": description})
}

fn number(description: &str) -> Value {
    json!({"type": "integer", "format": "int64", "description": description})
}

fn time(description: &str) -> Value {
    json!({"type": "string", "format": "date-time", "description": description})
}

fn flag(description: &str) -> Value {
    json!({"type": "boolean", "description": description})
}

fn object(description: &str, required: &[&str], properties: Value) -> Value {
    let mut schema = json!({"type": "object", "description": description, "properties": properties});
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    schema
}

fn list(items: Value, description: &str) -> Value {
    json!({"type": "array", "items": items, "x-kubernetes-list-type": "atomic", "description": description})
}

fn members_schema() -> Value {
    let name = json!({"type": "string", "minLength": 1, "maxLength": 253, "description": "Its name."});
    let expression = object(
        "",
        &["key", "operator"],
        json!({
            "key": {"type": "string"},
            "operator": {"type": "string", "enum": ["In", "NotIn", "Exists", "DoesNotExist"]},
            "values": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "atomic"},
        }),
    );
    let mut schema = object(
        "Which objects belong to it. With nothing here the release is itself the parent of an ApplySet: kubectl apply --prune --applyset=releases.proa.dev/NAME.",
        &[],
        json!({
            "applySet": object("The parent of an ApplySet in the same namespace (KEP-3659).", &["kind", "name"], json!({
                "kind": {"type": "string", "enum": ["ConfigMap", "Secret"], "description": "Its kind."},
                "name": name,
            })),
            "selector": object("Objects of this namespace by their labels, but for those another object controls.", &[], json!({
                "matchLabels": {"type": "object", "additionalProperties": {"type": "string"}, "description": "The labels an object must have."},
                "matchExpressions": list(expression, "Requirements on its labels."),
            })),
            "kinds": list(object("", &["kind"], json!({
                "group": text("The API group; empty for the core group."),
                "kind": json!({"type": "string", "minLength": 1, "description": "The kind, such as Deployment."}),
            })), "Of which kinds the selected objects are; empty: of the usual ones."),
            "objects": list(object("", &["apiVersion", "kind", "name"], json!({
                "apiVersion": {"type": "string", "minLength": 1, "description": "Group and version."},
                "kind": {"type": "string", "minLength": 1, "description": "The kind."},
                "name": name,
            })), "Objects of this namespace by name."),
        }),
    );
    schema["properties"]["objects"]["maxItems"] = json!(1000);
    schema["properties"]["kinds"]["maxItems"] = json!(64);
    schema["x-kubernetes-validations"] = json!([
        {"rule": "[has(self.applySet), has(self.selector), has(self.objects)].filter(set, set).size() <= 1",
            "message": "at most one of applySet, selector and objects may be set"},
        {"rule": "!has(self.kinds) || has(self.selector)", "message": "kinds goes with selector"},
    ]);
    schema
}

fn revision_schema() -> Value {
    object(
        "A revision.",
        &["revision", "digest", "record"],
        json!({
            "revision": number("Its number."),
            "digest": text("SHA-256 over what its members hold."),
            "record": text("SHA-256 of the record of its members."),
            "recordedAt": time("When its members came to rest."),
            "members": number("How many members it has."),
            "authors": texts("Who changed them, by user and field manager."),
            "cause": text("The change cause at that time."),
            "images": texts("The images its workloads run."),
            "rolledBackTo": number("The earlier revision this one repeats."),
            "result": {"type": "string", "enum": ["Progressing", "Healthy", "Failed", "Superseded"], "description": "What became of it."},
            "decidedAt": time("When it became healthy or failed."),
            "reason": text("Why it failed: one word."),
            "message": text("Why it failed: which member, and what it says."),
            "retry": text("The value of proa.dev/retry when it failed."),
        }),
    )
}

/// The schema of a release, with what `kubectl explain` tells.
pub(crate) fn schema() -> Value {
    let rollback_to = object(
        "Go back to a revision as a whole. Taken in, and cleared, by the controller.",
        &[],
        json!({
            "revision": {"type": "integer", "format": "int64", "minimum": 1,
                "description": "The revision; without one the last before the current that is not known to fail."},
            "force": flag("Take objects that came to belong to somebody else, and make anew what cannot be changed in place."),
        }),
    );
    let mut spec = object(
        "What belongs to a release, and what is wanted of it.",
        &[],
        json!({
            "members": members_schema(),
            "revisionHistoryLimit": {"type": "integer", "format": "int32", "minimum": 1, "maximum": 1000, "default": DEFAULT_HISTORY,
                "description": "How many revisions are kept besides the current one and the last healthy one."},
            "progressDeadlineSeconds": {"type": "integer", "format": "int32", "minimum": 1, "default": DEFAULT_DEADLINE,
                "description": "How long a revision that is not complete may stand still, none of its objects coming further, before it counts as failed."},
            "paused": flag("No revision is recorded, and nothing goes back by itself."),
            "family": {"type": "string", "enum": ["standard", "proa.dev"], "description": "Whose controllers drive it."},
            "rollbackTo": rollback_to,
        }),
    );
    // Without members it is an ApplySet itself: then there is nothing one must say.
    spec["default"] = json!({});
    let condition = object(
        "",
        &["type", "status", "lastTransitionTime", "reason", "message"],
        json!({
            "type": {"type": "string"}, "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
            "observedGeneration": {"type": "integer", "format": "int64"},
            "lastTransitionTime": {"type": "string", "format": "date-time"},
            "reason": {"type": "string"}, "message": {"type": "string"},
        }),
    );
    let mut conditions = list(condition, "Ready, Reconciling, Stalled, RolledBack, RolloutRefused.");
    conditions["x-kubernetes-list-type"] = json!("map");
    conditions["x-kubernetes-list-map-keys"] = json!(["type"]);
    let going_back = object(
        "The going back that is under way.",
        &["from", "to", "record"],
        json!({
            "from": number("The revision that was current."), "to": number("The revision that comes back."),
            "record": text("The record of its members."), "automatic": flag("Whether a failure asked for it."),
            "force": flag("Whether what belongs to others is taken."),
            "refused": flag("Whether the failed revision was only applied again."), "by": text("Who asked for it."),
            "reason": text("Why, in one word."), "message": text("Why."), "startedAt": time("Since when."),
        }),
    );
    let status = object(
        "What became of it.",
        &[],
        json!({
            "observedGeneration": number("The generation this status speaks of."),
            "revision": number("The current revision."),
            "members": number("How many objects belong to it."),
            "revisions": list(revision_schema(), "Its revisions, oldest first."),
            "rollback": going_back,
            "conditions": conditions,
        }),
    );
    json!({
        "type": "object",
        "description": "Release is a set of objects that changed together. It has revisions and goes back as a whole.",
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": spec,
            "status": status,
        },
    })
}

/// What `kubectl get releases` shows.
pub(crate) fn columns() -> Value {
    json!([
        {"name": "Revision", "type": "integer", "jsonPath": ".status.revision"},
        {"name": "Members", "type": "integer", "jsonPath": ".status.members"},
        {"name": "Ready", "type": "string", "jsonPath": ".status.conditions[?(@.type==\"Ready\")].status"},
        {"name": "Status", "type": "string", "jsonPath": ".status.conditions[?(@.type==\"Ready\")].message"},
        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proa_apimachinery::schema::crd::from_openapi_v3;

    fn release(spec: Value, status: Value) -> Value {
        json!({"apiVersion": "proa.dev/v1", "kind": "Release", "metadata": {"name": "shop"}, "spec": spec, "status": status})
    }

    #[test]
    fn every_field_of_the_types_is_in_the_schema() {
        let spec = json!({
            "members": {"selector": {"matchLabels": {"a": "b"}}, "kinds": [{"group": "apps", "kind": "Deployment"}]},
            "revisionHistoryLimit": 3, "progressDeadlineSeconds": 60, "paused": true, "family": "proa.dev", "rollbackTo": {"revision": 2, "force": true},
        });
        let at = "2026-11-21T10:00:00.000001Z";
        let status = json!({
            "observedGeneration": 1, "revision": 2, "members": 5,
            "revisions": [{"revision": 2, "digest": "d", "record": "r", "recordedAt": at, "members": 5, "authors": ["a"], "cause": "c",
                "images": ["i"], "rolledBackTo": 1, "result": "Failed", "decidedAt": at, "reason": "R", "message": "m", "retry": "1"}],
            "rollback": {"from": 2, "to": 1, "record": "r", "automatic": true, "force": true, "refused": true, "by": "a", "reason": "R", "message": "m", "startedAt": at},
            "conditions": [{"type": "Ready", "status": "True", "observedGeneration": 1, "lastTransitionTime": "2026-11-21T10:00:00Z", "reason": "R", "message": "m"}],
        });
        let read: ReleaseSpec = serde_json::from_value(spec.clone()).expect("it is of the type");
        assert_eq!(serde_json::to_value(&read).expect("JSON"), spec);
        let read: ReleaseStatus = serde_json::from_value(status.clone()).expect("it is of the type");
        assert_eq!(serde_json::to_value(&read).expect("JSON"), status);
        let schema = from_openapi_v3(&schema()).unwrap_or_else(|errors| panic!("{errors:?}"));
        let full = release(spec, status);
        let said: Vec<_> = schema.validate(&full, None).iter().map(ToString::to_string).collect();
        assert!(said.is_empty(), "{said:?}");
        let mut pruned = full.clone();
        schema.prune(&mut pruned);
        assert_eq!(pruned, full);
    }

    #[test]
    fn a_release_that_says_nothing_is_a_release() {
        let schema = from_openapi_v3(&schema()).unwrap_or_else(|errors| panic!("{errors:?}"));
        let mut object = json!({"apiVersion": "proa.dev/v1", "kind": "Release", "metadata": {"name": "shop"}});
        schema.default(&mut object);
        assert_eq!(
            object["spec"],
            json!({"revisionHistoryLimit": DEFAULT_HISTORY, "progressDeadlineSeconds": DEFAULT_DEADLINE})
        );
        let read: Release = serde_json::from_value(object).expect("it is of the type");
        assert_eq!(read.spec.members, Members::default());
    }

    #[test]
    fn members_are_said_in_one_way_only() {
        let schema = from_openapi_v3(&schema()).unwrap_or_else(|errors| panic!("{errors:?}"));
        let said = |members: Value| -> Vec<String> {
            schema
                .validate(&release(json!({"members": members}), json!({})), None)
                .iter()
                .map(ToString::to_string)
                .collect()
        };
        let parent = json!({"kind": "ConfigMap", "name": "shop"});
        assert!(said(json!({})).is_empty() && said(json!({"applySet": parent})).is_empty());
        assert!(said(json!({"applySet": parent, "selector": {}}))[0].contains("at most one of"));
        assert!(said(json!({"kinds": [{"kind": "Secret"}]}))[0].contains("kinds goes with selector"));
        assert!(!said(json!({"applySet": {"kind": "Pod", "name": "p"}})).is_empty());
    }
}
