//! What is written down of which request: `Policy` of audit.k8s.io/v1. The first rule that matches decides; without one
//! nothing is written. Pure.
//!
//! Source: Kubernetes, "Auditing", and the rules of its checker (`apiserver/pkg/audit/policy`).

use serde::Deserialize;

use crate::authz::Attributes;
use crate::user::User;

/// How much of a request is written down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub enum Level {
    /// Nothing.
    #[default]
    None,
    /// Who did what when, and how it went.
    Metadata,
    /// And the body of the request.
    Request,
    /// And the body of the answer.
    RequestResponse,
}

impl Level {
    /// The name on the wire.
    pub fn name(self) -> &'static str {
        ["None", "Metadata", "Request", "RequestResponse"][self as usize]
    }
}

/// When in the life of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Stage {
    /// It is known who asks; nothing is done yet.
    RequestReceived,
    /// The headers of the answer are on their way, and the body takes its time (watches, logs, upgraded connections).
    ResponseStarted,
    /// The answer is complete.
    ResponseComplete,
    /// A handler panicked.
    Panic,
}

impl Stage {
    /// The name on the wire.
    pub fn name(self) -> &'static str {
        ["RequestReceived", "ResponseStarted", "ResponseComplete", "Panic"][self as usize]
    }
}

/// A policy that makes no sense.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct PolicyError {
    path: String,
    problem: String,
}

fn wrong(path: impl Into<String>, problem: impl Into<String>) -> PolicyError {
    PolicyError { path: path.into(), problem: problem.into() }
}

/// The rules.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Policy {
    api_version: String,
    kind: String,
    #[serde(default)]
    #[allow(dead_code, reason = "a file may have it, as every object may")]
    metadata: serde_json::Value,
    #[serde(default)]
    rules: Vec<Rule>,
    #[serde(default)]
    omit_stages: Vec<Stage>,
    #[serde(default)]
    omit_managed_fields: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Rule {
    level: Option<Level>,
    users: Vec<String>,
    user_groups: Vec<String>,
    verbs: Vec<String>,
    resources: Vec<GroupResources>,
    namespaces: Vec<String>,
    #[serde(rename = "nonResourceURLs")]
    urls: Vec<String>,
    omit_stages: Vec<Stage>,
    omit_managed_fields: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct GroupResources {
    group: String,
    resources: Vec<String>,
    resource_names: Vec<String>,
}

/// What is decided about one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// How much.
    pub level: Level,
    /// A bit for each stage that is left out.
    omitted: u8,
    /// `metadata.managedFields` are left out of bodies.
    pub omit_managed_fields: bool,
}

impl Decision {
    /// Whether there is an event of this stage.
    pub fn tells(&self, stage: Stage) -> bool {
        self.level > Level::None && self.omitted & (1 << stage as u8) == 0
    }
}

impl Policy {
    /// Reads a policy.
    ///
    /// # Errors
    /// Says where the file is wrong.
    pub fn parse(file: &[u8]) -> Result<Policy, PolicyError> {
        let documents = proa_apimachinery::yaml::from_yaml(file).map_err(|error| wrong("file", error.to_string()))?;
        let [document] = documents.as_slice() else { return Err(wrong("file", "must hold one document")) };
        let policy = serde_json::from_value::<Policy>(document.clone());
        let policy = policy.map_err(|error| wrong("file", error.to_string()))?;
        if policy.kind != "Policy" || policy.api_version != "audit.k8s.io/v1" {
            let what = format!("{} of {}", policy.kind, policy.api_version);
            return Err(wrong("file", format!("is a {what}, not a Policy of audit.k8s.io/v1")));
        }
        if policy.rules.is_empty() {
            return Err(wrong("rules", "loaded illegal policy with 0 rules"));
        }
        for (at, rule) in policy.rules.iter().enumerate() {
            rule.check(&format!("rules[{at}]"))?;
        }
        Ok(policy)
    }

    /// What is to be written of a request.
    pub fn decide(&self, user: &User, is_resource: bool, what: &Attributes<'_>) -> Decision {
        let bits = |stages: &[Stage]| stages.iter().fold(0u8, |bits, stage| bits | 1 << *stage as u8);
        let Some(rule) = self.rules.iter().find(|rule| rule.matches(user, is_resource, what)) else {
            return Decision::default();
        };
        Decision {
            level: rule.level.unwrap_or_default(),
            omitted: bits(&self.omit_stages) | bits(&rule.omit_stages),
            omit_managed_fields: rule.omit_managed_fields.unwrap_or(self.omit_managed_fields),
        }
    }
}

impl Rule {
    fn check(&self, path: &str) -> Result<(), PolicyError> {
        if self.level.is_none() {
            return Err(wrong(format!("{path}.level"), "Required value"));
        }
        if !self.urls.is_empty() && (!self.resources.is_empty() || !self.namespaces.is_empty()) {
            let why = "Invalid value: rules cannot apply to both regular resources and non-resource URLs";
            return Err(wrong(format!("{path}.nonResourceURLs"), why));
        }
        for (at, url) in self.urls.iter().enumerate() {
            let path = format!("{path}.nonResourceURLs[{at}]");
            if url == "*" {
                continue;
            }
            if !url.starts_with('/') {
                let why = "non-resource URL rules must begin with a '/' character";
                return Err(wrong(path, format!("Invalid value: {url:?}: {why}")));
            }
            if url.find('*').is_some_and(|at| at + 1 < url.len()) {
                let why = "non-resource URL wildcards '*' must be the final character of the rule";
                return Err(wrong(path, format!("Invalid value: {url:?}: {why}")));
            }
        }
        for (at, group) in self.resources.iter().enumerate() {
            let path = format!("{path}.resources[{at}]");
            // The most frequent mistake is the version with it.
            if group.group.contains('/') {
                let why = format!("Invalid value: {:?}: is not the name of an API group", group.group);
                return Err(wrong(format!("{path}.group"), why));
            }
            if !group.resource_names.is_empty() && group.resources.is_empty() {
                let why = "using resourceNames requires at least one resource";
                return Err(wrong(format!("{path}.resourceNames"), format!("Invalid value: {why}")));
            }
        }
        Ok(())
    }

    fn matches(&self, user: &User, is_resource: bool, what: &Attributes<'_>) -> bool {
        let any = |list: &[String], text: &str| list.iter().any(|have| have == text);
        if !self.users.is_empty() && !any(&self.users, &user.name)
            || !self.user_groups.is_empty() && !user.groups.iter().any(|group| any(&self.user_groups, group))
            || !self.verbs.is_empty() && !any(&self.verbs, what.verb)
        {
            return false;
        }
        if !self.namespaces.is_empty() || !self.resources.is_empty() {
            // The empty namespace stands for what is in none.
            return is_resource
                && (self.namespaces.is_empty() || any(&self.namespaces, what.namespace))
                && (self.resources.is_empty() || self.resources.iter().any(|group| group.matches(what)));
        }
        if !self.urls.is_empty() {
            let covers = |url: &String| match url.strip_suffix('*') {
                Some(prefix) => what.path.starts_with(prefix),
                None => url == what.path,
            };
            return !is_resource && self.urls.iter().any(covers);
        }
        true
    }
}

impl GroupResources {
    fn matches(&self, what: &Attributes<'_>) -> bool {
        if self.group != what.group {
            return false;
        }
        if self.resources.is_empty() {
            return true;
        }
        let named = self.resource_names.is_empty() || self.resource_names.iter().any(|name| name == what.name);
        named
            && self.resources.iter().any(|have| match have.split_once('/') {
                None => have == "*" || have == what.resource && what.subresource.is_empty(),
                Some(("*", subresource)) => !what.subresource.is_empty() && subresource == what.subresource,
                Some((resource, "*")) => resource == what.resource,
                Some((resource, subresource)) => resource == what.resource && subresource == what.subresource,
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(rules: &str) -> Result<Policy, PolicyError> {
        Policy::parse(format!("apiVersion: audit.k8s.io/v1\nkind: Policy\n{rules}").as_bytes())
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        // The example of Kubernetes' documentation, shortened.
        let policy = policy(
            "omitStages: [RequestReceived]\nomitManagedFields: true\nrules:\n\
             - {level: RequestResponse, resources: [{group: '', resources: [pods]}], omitManagedFields: false}\n\
             - {level: Metadata, resources: [{group: '', resources: [pods/log, pods/status]}]}\n\
             - {level: None, resources: [{group: '', resources: [configmaps], resourceNames: [controller-leader]}]}\n\
             - {level: None, users: ['system:kube-proxy'], verbs: [watch], resources: [{group: '', resources: [endpoints, services]}]}\n\
             - {level: None, userGroups: ['system:authenticated'], nonResourceURLs: ['/api*', /version]}\n\
             - {level: Request, resources: [{group: '', resources: [configmaps]}], namespaces: [kube-system]}\n\
             - {level: Metadata, resources: [{group: '', resources: [secrets, 'nodes/*', '*/scale']}], omitStages: [ResponseStarted]}\n\
             - {level: Request, resources: [{group: ''}, {group: extensions}]}\n\
             - {level: Metadata, namespaces: ['']}\n\
             - {level: Request, users: [eve]}\n",
        )
        .unwrap();
        let (me, proxy, eve) = (User::new("me", &[]), User::new("system:kube-proxy", &[]), User::new("eve", &[]));
        let path = |path| Attributes { verb: "get", path, ..Attributes::default() };
        let on = |verb, group, resource, subresource, namespace, name| Attributes {
            verb,
            group,
            resource,
            subresource,
            namespace,
            name,
            ..Attributes::default()
        };
        use Level::{Metadata, None, Request, RequestResponse};
        for (user, what, level) in [
            (&me, on("get", "", "pods", "", "a", "b"), RequestResponse),
            (&me, on("get", "", "pods", "log", "a", "b"), Metadata),
            (&me, on("create", "", "pods", "exec", "a", "b"), Request),
            (&me, on("get", "", "configmaps", "", "a", "controller-leader"), None),
            (&proxy, on("watch", "", "services", "", "", ""), None),
            (&proxy, on("list", "", "services", "", "", ""), Request),
            (&me, path("/api/v1"), None),
            (&me, path("/version"), None),
            (&me, path("/version/x"), None),
            (&eve, path("/metrics"), Request),
            (&me, on("update", "", "configmaps", "", "kube-system", "x"), Request),
            (&me, on("get", "", "secrets", "", "a", "b"), Metadata),
            (&me, on("get", "", "nodes", "proxy", "", "b"), Metadata),
            (&me, on("update", "", "replicationcontrollers", "scale", "a", "b"), Metadata),
            (&me, on("list", "apps", "deployments", "", "", ""), Metadata),
            (&me, on("list", "apps", "deployments", "", "a", ""), None),
            (&eve, on("list", "apps", "deployments", "", "a", ""), Request),
        ] {
            let is_resource = what.path.is_empty();
            assert_eq!(policy.decide(user, is_resource, &what).level, level, "{} {what:?}", user.name);
        }
        let secret = policy.decide(&me, true, &on("get", "", "secrets", "", "a", "b"));
        let told = [Stage::RequestReceived, Stage::ResponseStarted, Stage::ResponseComplete].map(|s| secret.tells(s));
        assert_eq!((told, secret.omit_managed_fields), ([false, false, true], true));
        assert!(!policy.decide(&me, true, &on("get", "", "pods", "", "a", "b")).omit_managed_fields);
    }

    #[test]
    fn a_policy_that_makes_no_sense_is_refused() {
        for (rules, expected) in [
            ("", "loaded illegal policy with 0 rules"),
            ("rules: [{users: [a]}]", "rules[0].level: Required value"),
            ("rules: [{level: Everything}]", "unknown variant `Everything`"),
            ("rules: [{level: None, omitStages: [Later]}]", "unknown variant `Later`"),
            (
                "rules: [{level: None, nonResourceURLs: [/a], namespaces: [b]}]",
                "both regular resources and non-resource",
            ),
            ("rules: [{level: None, nonResourceURLs: [a]}]", "must begin with a '/'"),
            ("rules: [{level: None, nonResourceURLs: ['/a*b']}]", "must be the final character"),
            ("rules: [{level: None, resources: [{group: apps/v1}]}]", "is not the name of an API group"),
            ("rules: [{level: None, resources: [{resourceNames: [a]}]}]", "requires at least one resource"),
            ("rules: [{level: None, user: a}]", "unknown field `user`"),
        ] {
            let error = policy(rules).map(|_| ()).expect_err(rules).to_string();
            assert!(error.contains(expected), "{rules}: {error}");
        }
        assert!(Policy::parse(b"apiVersion: v1\nkind: Policy\nrules: [{level: None}]").is_err());
    }
}
