//! Which requests somebody wants to see: rules, selectors and conditions, alike for webhooks and policies.
//!
//! Owns the meaning of `rules`/`resourceRules`, `matchPolicy`, `namespaceSelector`, `objectSelector` and
//! `matchConditions` of admissionregistration.k8s.io/v1. Never calls anybody.

use std::sync::Arc;

use proa_apimachinery::cel::{AUTHORIZER, Answer, CONDITIONS_BUDGET, Expression, Scope};
use proa_apimachinery::object::Object;
use proa_apimachinery::selector::LabelSelector;
use proa_apimachinery::status::ApiError;
use serde_json::Value;

use super::attributes::{Attributes, Objects, Operation};
use crate::core::Core;
use crate::resources::Resource;

/// What the conditions of webhooks may refer to.
pub const CONDITION_VARIABLES: &[&str] = &["object", "oldObject", "request", AUTHORIZER];

/// Kinds that decide about admission are never admitted by what they define: nobody could undo a mistake.
const EXEMPT: &[&str] = &[
    "mutatingadmissionpolicies",
    "mutatingadmissionpolicybindings",
    "mutatingwebhookconfigurations",
    "validatingadmissionpolicies",
    "validatingadmissionpolicybindings",
    "validatingwebhookconfigurations",
];

/// Whether no webhook and no policy sees requests on this resource.
pub fn exempt(resource: &Resource) -> bool {
    resource.kind.group == "admissionregistration.k8s.io" && EXEMPT.contains(&&*resource.kind.plural)
}

/// One rule: any of its values in every list (`RuleWithOperations`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    operations: Vec<String>,
    groups: Vec<String>,
    versions: Vec<String>,
    resources: Vec<String>,
    /// `resourceNames`, which only policies have; empty: any.
    names: Vec<String>,
    scope: Scoped,
}

/// Which resources by their scope.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Scoped {
    #[default]
    Any,
    Cluster,
    Namespaced,
}

/// What a rule looks at.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// The operation.
    pub operation: Operation,
    /// The group.
    pub group: &'a str,
    /// The version.
    pub version: &'a str,
    /// The resource.
    pub resource: &'a str,
    /// The subresource; empty for the object itself.
    pub subresource: &'a str,
    /// The object's name.
    pub name: &'a str,
    /// Whether it is in a namespace. A Namespace is not.
    pub namespaced: bool,
}

impl Rule {
    /// Reads a rule; what is not there matches nothing.
    pub fn read(value: &Value) -> Rule {
        let list = |field: &str| {
            let items = value.get(field).and_then(Value::as_array).into_iter().flatten();
            items.filter_map(Value::as_str).map(str::to_owned).collect()
        };
        Rule {
            operations: list("operations"),
            groups: list("apiGroups"),
            versions: list("apiVersions"),
            resources: list("resources"),
            names: list("resourceNames"),
            scope: match value.get("scope").and_then(Value::as_str) {
                Some("Cluster") => Scoped::Cluster,
                Some("Namespaced") => Scoped::Namespaced,
                _ => Scoped::Any,
            },
        }
    }

    /// The rules of a list.
    pub fn read_all(list: Option<&Value>) -> Vec<Rule> {
        list.and_then(Value::as_array).into_iter().flatten().map(Rule::read).collect()
    }

    /// Whether the rule is about this.
    pub fn matches(&self, target: &Target<'_>) -> bool {
        let any = |list: &[String], value: &str| list.iter().any(|have| have == "*" || have == value);
        let scope = match self.scope {
            Scoped::Any => true,
            Scoped::Cluster => !target.namespaced,
            Scoped::Namespaced => target.namespaced,
        };
        scope
            && any(&self.operations, target.operation.name())
            && any(&self.groups, target.group)
            && any(&self.versions, target.version)
            && self.resources.iter().any(|have| names_resource(have, target))
            && (self.names.is_empty() || self.names.iter().any(|have| have == target.name))
    }
}

/// `pods`, `pods/log`, `pods/*`, `*`, `*/*`, `*/scale`: without a slash the objects alone are meant.
fn names_resource(have: &str, target: &Target<'_>) -> bool {
    let (resource, subresource) = have.split_once('/').unwrap_or((have, ""));
    (resource == "*" || resource == target.resource) && (subresource == "*" || subresource == target.subresource)
}

/// Rules and selectors of one webhook, or of one policy.
#[derive(Clone, Debug, Default)]
pub struct Matcher {
    rules: Vec<Rule>,
    excluded: Vec<Rule>,
    /// `matchPolicy: Exact`: only the very group, version and resource of the rules.
    exact: bool,
    namespaces: LabelSelector,
    objects: LabelSelector,
}

impl Matcher {
    /// Reads `rules` (webhooks) or `resourceRules` and `excludeResourceRules` (policies) and what stands beside them.
    ///
    /// # Errors
    ///
    /// When a selector is none; validation lets none of those in.
    pub fn read(value: &Value) -> Result<Matcher, String> {
        let selector = |field: &str| match value.get(field).filter(|selector| !selector.is_null()) {
            None => Ok(LabelSelector::everything()),
            Some(selector) => LabelSelector::from_value(selector).map_err(|error| format!("{field}: {error}")),
        };
        let mut rules = Rule::read_all(value.get("rules"));
        rules.extend(Rule::read_all(value.get("resourceRules")));
        Ok(Matcher {
            rules,
            excluded: Rule::read_all(value.get("excludeResourceRules")),
            exact: value.get("matchPolicy").and_then(Value::as_str) == Some("Exact"),
            namespaces: selector("namespaceSelector")?,
            objects: selector("objectSelector")?,
        })
    }

    /// As which resource the request is wanted; none when it is not. It is another than the request's own where the rules
    /// name only another version of it, or another group it is served in too (`matchPolicy: Equivalent`).
    ///
    /// # Errors
    ///
    /// When the namespace whose labels decide does not exist.
    pub async fn wanted(
        &self,
        core: &Core,
        attributes: &Attributes<'_>,
        objects: Objects<'_>,
    ) -> Result<Option<Arc<Resource>>, ApiError> {
        let Some(resource) = self.by_rules(core, attributes) else { return Ok(None) };
        self.by_selectors(core, attributes, objects, resource).await
    }

    /// Whether a binding lets the request through to its policy: one without rules is for all the policy is for.
    ///
    /// # Errors
    ///
    /// As [`Matcher::wanted`].
    pub async fn allows(
        &self,
        core: &Core,
        attributes: &Attributes<'_>,
        objects: Objects<'_>,
    ) -> Result<bool, ApiError> {
        let without = self.rules.is_empty() && !self.excludes(core, attributes);
        let own = || Arc::clone(&attributes.resource);
        let by_rules = if without { Some(own()) } else { self.by_rules(core, attributes) };
        let Some(resource) = by_rules else { return Ok(false) };
        Ok(self.by_selectors(core, attributes, objects, resource).await?.is_some())
    }

    async fn by_selectors(
        &self,
        core: &Core,
        attributes: &Attributes<'_>,
        objects: Objects<'_>,
        resource: Arc<Resource>,
    ) -> Result<Option<Arc<Resource>>, ApiError> {
        let wanted = self.by_labels(objects) && self.by_namespace(core, attributes, objects).await?;
        Ok(wanted.then_some(resource))
    }

    fn by_rules(&self, core: &Core, attributes: &Attributes<'_>) -> Option<Arc<Resource>> {
        if self.excludes(core, attributes) { None } else { self.select(core, attributes, &self.rules) }
    }

    fn excludes(&self, core: &Core, attributes: &Attributes<'_>) -> bool {
        self.select(core, attributes, &self.excluded).is_some()
    }

    /// The resource, of those the request is about, that some rules name.
    fn select(&self, core: &Core, attributes: &Attributes<'_>, rules: &[Rule]) -> Option<Arc<Resource>> {
        let own = &attributes.resource;
        let about = |resource: &Arc<Resource>| {
            let target = target_of(attributes, resource);
            rules.iter().any(|rule| rule.matches(&target))
        };
        if about(own) {
            return Some(Arc::clone(own));
        }
        if self.exact || rules.is_empty() {
            return None;
        }
        let table = core.resources.table();
        let mut equivalents = table.all().filter(|other| equivalent(own, other));
        equivalents.find(|other| about(other)).cloned()
    }

    fn by_labels(&self, objects: Objects<'_>) -> bool {
        if self.objects.is_everything() {
            return true;
        }
        // What has no metadata, as the options of a connection, has no labels that could match.
        let labelled = [objects.new, objects.old].into_iter().flatten().filter(|object| object.metadata().is_some());
        labelled.into_iter().any(|object| self.objects.matches(|key| object.label(key)))
    }

    async fn by_namespace(
        &self,
        core: &Core,
        attributes: &Attributes<'_>,
        objects: Objects<'_>,
    ) -> Result<bool, ApiError> {
        if self.namespaces.is_everything() {
            return Ok(true);
        }
        // The labels a namespace is about to have decide about the write that gives them.
        let written = objects.new.filter(|_| attributes.is_namespace() && attributes.subresource.is_empty());
        if let Some(namespace) = written {
            return Ok(self.namespaces.matches(|key| namespace.label(key)));
        }
        Ok(match attributes.namespace_object(core).await? {
            Some(namespace) => self.namespaces.matches(|key| namespace.label(key)),
            None => true,
        })
    }
}

/// How a rule sees the request on `resource`.
fn target_of<'a>(attributes: &'a Attributes<'_>, resource: &'a Resource) -> Target<'a> {
    Target {
        operation: attributes.operation,
        group: &resource.kind.group,
        version: &resource.kind.version,
        resource: &resource.kind.plural,
        subresource: attributes.subresource,
        name: &attributes.name,
        namespaced: resource.namespaced(),
    }
}

/// Whether two resources are one, stored once and served twice.
fn equivalent(one: &Arc<Resource>, other: &Arc<Resource>) -> bool {
    !Arc::ptr_eq(one, other) && Arc::ptr_eq(&one.cache, &other.cache) && !one.kind.is_virtual
}

/// `matchConditions`: all must be true (KEP-3716).
#[derive(Debug, Default)]
pub struct Conditions(Vec<(String, Result<Expression, String>)>);

/// What conditions came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All are true.
    Match,
    /// One is not.
    NoMatch,
    /// None is false, and one could not be told.
    Error(String),
}

impl Conditions {
    /// Compiles a list of conditions. One that does not compile is an error whenever it is asked.
    pub fn read(list: Option<&Value>, variables: &[&str]) -> Conditions {
        let text = |value: &Value, field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        let conditions = list.and_then(Value::as_array).into_iter().flatten().map(|condition| {
            (text(condition, "name"), Expression::condition(&text(condition, "expression"), variables))
        });
        Conditions(conditions.collect())
    }

    /// Whether there is nothing to ask.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Asks them all: one that is false decides, whatever the others fail with.
    pub fn judge(&self, scope: &Scope) -> Verdict {
        let mut budget = CONDITIONS_BUDGET;
        let mut failed = Vec::new();
        for (name, expression) in &self.0 {
            let answer = match expression {
                Ok(expression) => expression.evaluate(scope, &mut budget),
                Err(error) => Err(error.clone()),
            };
            match answer {
                Ok(Answer::Bool(true)) => {}
                Ok(Answer::Bool(false)) => return Verdict::NoMatch,
                Ok(_) => failed.push(format!("match condition {name:?} must evaluate to bool")),
                Err(error) => failed.push(format!("match condition {name:?} cannot be evaluated: {error}")),
            }
        }
        match failed.len() {
            0 => Verdict::Match,
            1 => Verdict::Error(failed.remove(0)),
            _ => Verdict::Error(format!("[{}]", failed.join(", "))),
        }
    }
}

/// What conditions are evaluated over; `request` is the review's, without the objects.
pub fn scope(core: &Arc<Core>, attributes: &Attributes<'_>, objects: Objects<'_>, request: &Value) -> Scope {
    let mut scope = Scope::default();
    let value = |object: Option<&Object>| object.map_or(Value::Null, Object::to_value);
    scope.bind("object", &value(objects.new));
    scope.bind("oldObject", &value(objects.old));
    scope.bind("request", request);
    super::authorizer::bind(&mut scope, core, attributes);
    scope
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn target<'a>(group: &'a str, version: &'a str, resource: &'a str, subresource: &'a str) -> Target<'a> {
        let namespaced = resource != "nodes" && resource != "namespaces";
        Target { operation: Operation::Create, group, version, resource, subresource, name: "a", namespaced }
    }

    #[test]
    fn a_rule_is_about_what_all_its_lists_name() {
        let pods = target("", "v1", "pods", "");
        let exec = target("", "v1", "pods", "exec");
        let scale = target("apps", "v1", "deployments", "scale");
        let nodes = target("", "v1", "nodes", "");
        let namespaces = target("", "v1", "namespaces", "");
        // Operations, groups, versions, resources, scope; then whether it is about each of the targets.
        for (operations, groups, versions, resources, scope, expected) in [
            ("CREATE", "", "v1", "pods", "*", [true, false, false, false, false]),
            ("*", "*", "*", "*", "*", [true, false, false, true, true]),
            ("*", "*", "*", "*/*", "*", [true, true, true, true, true]),
            ("*", "*", "*", "pods/*", "*", [true, true, false, false, false]),
            ("*", "*", "*", "pods/exec", "*", [false, true, false, false, false]),
            ("*", "*", "*", "*/scale", "*", [false, false, true, false, false]),
            ("UPDATE", "", "v1", "pods", "*", [false; 5]),
            ("CREATE", "apps", "v1", "pods", "*", [false; 5]),
            ("CREATE", "", "v2", "pods", "*", [false; 5]),
            ("*", "*", "*", "*/*", "Cluster", [false, false, false, true, true]),
            ("*", "*", "*", "*/*", "Namespaced", [true, true, true, false, false]),
        ] {
            let rule = json!({"operations": [operations], "apiGroups": [groups], "apiVersions": [versions],
                "resources": [resources], "scope": scope});
            let got = [pods, exec, scale, nodes, namespaces].map(|target| Rule::read(&rule).matches(&target));
            assert_eq!(got, expected, "{rule}");
        }
        let named = json!({"operations": ["*"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"],
            "resourceNames": ["b"]});
        assert!(!Rule::read(&named).matches(&pods));
    }

    #[test]
    fn a_condition_that_is_false_decides_over_one_that_fails() {
        let list = |texts: &[&str]| {
            let items: Vec<_> = texts.iter().map(|text| json!({"name": "c", "expression": text})).collect();
            Conditions::read(Some(&items.into()), CONDITION_VARIABLES)
        };
        let mut scope = Scope::default();
        scope.bind("object", &json!({"metadata": {"name": "skip-me"}}));
        scope.bind("oldObject", &Value::Null);
        scope.bind("request", &json!({}));
        let failing = "object.spec.replicas > 1";
        assert_eq!(list(&[]).judge(&scope), Verdict::Match);
        assert_eq!(list(&["true", "object.metadata.name == 'skip-me'"]).judge(&scope), Verdict::Match);
        assert_eq!(list(&[failing, "object.metadata.name != 'skip-me'"]).judge(&scope), Verdict::NoMatch);
        assert!(matches!(list(&["true", failing]).judge(&scope), Verdict::Error(why) if why.contains("\"c\"")));
        assert!(matches!(list(&["object.metadata.name"]).judge(&scope), Verdict::Error(_)));
    }
}
