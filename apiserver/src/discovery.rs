//! What is served here, by this server and by those it passes requests on to: `/api`, `/apis` and below, plain and
//! aggregated (KEP-3352), `/version`.

use std::sync::Arc;

use http::{HeaderValue, StatusCode, header};
use proa_apimachinery::status::ApiError;
use serde_json::{Map, Value, json};

use crate::aggregation::{self, Remote};
use crate::core::Core;
use crate::http::negotiate::{Encoding, aggregated_discovery};
use crate::http::{Request, Response, answer, json as plain, object};
use crate::kinds::{Kind, Scope, Subresource};
use crate::resources::{GroupVersion, Resource, Table, api_version, version_rank};

/// A group: what this server answers for itself, and what others do.
struct GroupView<'a> {
    name: &'a str,
    versions: Vec<VersionView<'a>>,
    /// All of it is custom resources: those come after what is built in, and after others of some weight.
    custom: bool,
}

enum VersionView<'a> {
    Own(&'a GroupVersion),
    Remote(&'a Remote),
}

/// The priority of groups of custom resources, as kube-aggregator registers them.
const CUSTOM_PRIORITY: i64 = 1000;

impl VersionView<'_> {
    fn name(&self) -> &str {
        match self {
            VersionView::Own(version) => &version.version,
            VersionView::Remote(remote) => &remote.version,
        }
    }
}

/// Every group, in the order discovery lists them. A version that an APIService gives to another server is the other's.
fn views<'a>(table: &'a Table, remotes: &'a [Arc<Remote>]) -> Vec<GroupView<'a>> {
    let elsewhere =
        |group: &str, version: &str| remotes.iter().any(|remote| remote.group == group && remote.version == version);
    let mut views: Vec<GroupView<'_>> = Vec::new();
    for group in &table.groups {
        let own = group.versions.iter().filter(|version| !elsewhere(&group.name, &version.version));
        let custom = group.versions.iter().all(|version| version.resources.iter().all(|have| have.custom.is_some()));
        views.push(GroupView { name: &group.name, versions: own.map(VersionView::Own).collect(), custom });
    }
    let mut remotes: Vec<&Remote> = remotes.iter().map(|remote| &**remote).collect();
    let order = |remote: &Remote| {
        (
            -remote.group_priority,
            remote.group.clone(),
            -remote.version_priority,
            std::cmp::Reverse(version_rank(&remote.version)),
        )
    };
    remotes.sort_by_cached_key(|remote| order(remote));
    for remote in remotes {
        if let Some(view) = views.iter_mut().find(|view| view.name == remote.group) {
            view.versions.push(VersionView::Remote(remote));
            continue;
        }
        let view = GroupView { name: &remote.group, versions: vec![VersionView::Remote(remote)], custom: false };
        let before = |view: &GroupView<'_>| view.custom && remote.group_priority >= CUSTOM_PRIORITY;
        let at = views.iter().position(before).unwrap_or(views.len());
        views.insert(at, view);
    }
    views.retain(|view| !view.versions.is_empty());
    views
}

/// Answers a discovery path; nothing when the path is not one. What another server answers for has been passed on before.
pub fn find(core: &Core, request: &Request) -> Option<Result<Response, ApiError>> {
    let path = request.path.trim_end_matches('/');
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    let table = core.resources.table();
    let remotes = core.aggregation.remotes();
    let view = |name: &str| views(&table, &remotes).into_iter().find(|view| view.name == name);
    let found = match parts.as_slice() {
        ["version"] => Some(plain(StatusCode::OK, &version())),
        ["api"] => Some(match aggregated_discovery(&request.headers) {
            Some((version, encoding)) => aggregated(core, &views(&table, &[]), version, encoding, true),
            None => answer(StatusCode::OK, &legacy()),
        }),
        ["apis"] => Some(match aggregated_discovery(&request.headers) {
            Some((version, encoding)) => aggregated(core, &views(&table, &remotes), version, encoding, false),
            None => answer(StatusCode::OK, &groups(&views(&table, &remotes))),
        }),
        ["apis", group] => view(group).filter(|_| !group.is_empty()).map(|group| {
            let mut value = group_value(&group);
            value["kind"] = "APIGroup".into();
            value["apiVersion"] = "v1".into();
            answer(StatusCode::OK, &value)
        }),
        ["api", version] => {
            table.group_version("", version).map(|found| answer(StatusCode::OK, &resource_list("", found)))
        }
        ["apis", group, version] => {
            table.group_version(group, version).map(|found| answer(StatusCode::OK, &resource_list(group, found)))
        }
        _ => return None,
    };
    Some(found.ok_or_else(ApiError::no_such_resource))
}

/// The version this server is compatible with.
pub fn version() -> Value {
    json!({
        "major": "1", "minor": "36", "gitVersion": "v1.36.0+proa", "gitCommit": "", "gitTreeState": "clean", "buildDate": "2026-01-01T00:00:00Z",
        "goVersion": "go1.24.0", "compiler": "rustc", "platform": "linux/amd64",
        "emulationMajor": "1", "emulationMinor": "36", "minCompatibilityMajor": "1", "minCompatibilityMinor": "33",
    })
}

fn legacy() -> Value {
    json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": ""}]})
}

fn groups(views: &[GroupView<'_>]) -> Value {
    let groups: Vec<Value> = views.iter().filter(|group| !group.name.is_empty()).map(group_value).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

fn group_value(group: &GroupView<'_>) -> Value {
    let version = |version: &VersionView<'_>| json!({"groupVersion": api_version(group.name, version.name()), "version": version.name()});
    let versions: Vec<Value> = group.versions.iter().map(version).collect();
    json!({"name": group.name, "versions": versions, "preferredVersion": versions.first().cloned().unwrap_or_default()})
}

/// A subresource as discovery shows it: its name, the kind its body is, its verbs.
fn subresource(kind: &Kind, sub: &Subresource) -> (String, (String, String, String), Vec<&'static str>) {
    let own = || (kind.group.to_string(), kind.version.to_string(), kind.kind.to_string());
    let other = |group: &str, version: &str, kind: &str| (group.to_owned(), version.to_owned(), kind.to_owned());
    match sub {
        Subresource::Status => ("status".into(), own(), vec!["get", "patch", "update"]),
        Subresource::Scale(_) => ("scale".into(), other("autoscaling", "v1", "Scale"), vec!["get", "patch", "update"]),
        Subresource::Named(name) => {
            let (body, verbs) = match *name {
                "binding" => (other("", "v1", "Binding"), vec!["create"]),
                "eviction" => (other("policy", "v1", "Eviction"), vec!["create"]),
                "token" => (other("authentication.k8s.io", "v1", "TokenRequest"), vec!["create"]),
                "log" => (own(), vec!["get"]),
                "exec" | "attach" | "portforward" => {
                    let options = match *name {
                        "exec" => "PodExecOptions",
                        "attach" => "PodAttachOptions",
                        _ => "PodPortForwardOptions",
                    };
                    (other("", "v1", options), vec!["create", "get"])
                }
                "proxy" => (
                    other("", "v1", &format!("{}ProxyOptions", kind.kind)),
                    vec!["create", "delete", "get", "patch", "update"],
                ),
                "finalize" => (own(), vec!["update"]),
                _ => (own(), vec!["get", "patch", "update"]),
            };
            ((*name).to_owned(), body, verbs)
        }
    }
}

fn resource_list(group: &str, version: &GroupVersion) -> Value {
    let mut resources = Vec::new();
    for resource in &version.resources {
        let kind = &resource.kind;
        let mut value = json!({
            "name": kind.plural, "singularName": kind.singular, "namespaced": resource.namespaced(), "kind": kind.kind, "verbs": kind.verbs,
        });
        for (field, list) in [("shortNames", &kind.short_names), ("categories", &kind.categories)] {
            if !list.is_empty() {
                value[field] = json!(list);
            }
        }
        resources.push(value);
        for sub in &kind.subresources {
            let (name, (body_group, body_version, body_kind), verbs) = subresource(kind, sub);
            let mut value = json!({
                "name": format!("{}/{name}", kind.plural), "singularName": "", "namespaced": resource.namespaced(), "kind": body_kind, "verbs": verbs,
            });
            if (body_group.as_str(), body_version.as_str()) != (group, version.version.as_str()) {
                value["group"] = body_group.into();
                value["version"] = body_version.into();
            }
            resources.push(value);
        }
    }
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api_version(group, &version.version), "resources": resources})
}

fn aggregated(
    core: &Core,
    views: &[GroupView<'_>],
    api: &'static str,
    encoding: Encoding,
    core_group: bool,
) -> Response {
    let items: Vec<Value> = views
        .iter()
        .filter(|group| group.name.is_empty() == core_group)
        .map(|group| {
            let versions: Vec<Value> = group.versions.iter().map(|version| aggregated_version(core, version)).collect();
            let mut metadata = Map::new();
            if !group.name.is_empty() {
                metadata.insert("name".into(), group.name.into());
            }
            metadata.insert("creationTimestamp".into(), Value::Null);
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    let list = json!({"kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{api}"), "metadata": {}, "items": items});
    let mut response = object(StatusCode::OK, list.to_string(), Some(encoding));
    let content_type = match api {
        "v2" => "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
        _ => "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList",
    };
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
    response
}

fn aggregated_version(core: &Core, version: &VersionView<'_>) -> Value {
    match version {
        VersionView::Own(version) => {
            let resources: Vec<Value> =
                version.resources.iter().map(|resource| aggregated_resource(resource)).collect();
            json!({"version": version.version, "freshness": "Current", "resources": resources})
        }
        VersionView::Remote(remote) => {
            let seen = core.aggregation.seen(&remote.name);
            aggregation::discovery::version(&remote.group, &remote.version, seen.as_deref())
        }
    }
}

fn aggregated_resource(resource: &Resource) -> Value {
    let kind = &resource.kind;
    let response_kind =
        |(group, version, kind): (String, String, String)| json!({"group": group, "version": version, "kind": kind});
    let mut value = json!({
        "resource": kind.plural,
        "responseKind": response_kind((kind.group.to_string(), kind.version.to_string(), kind.kind.to_string())),
        "scope": match kind.scope { Scope::Namespaced => "Namespaced", Scope::Cluster => "Cluster" },
        "singularResource": kind.singular,
        "verbs": kind.verbs,
    });
    for (field, list) in [("shortNames", &kind.short_names), ("categories", &kind.categories)] {
        if !list.is_empty() {
            value[field] = json!(list);
        }
    }
    if !kind.subresources.is_empty() {
        let subresources: Vec<Value> = kind
            .subresources
            .iter()
            .map(|sub| {
                let (name, body, verbs) = subresource(kind, sub);
                json!({"subresource": name, "responseKind": response_kind(body), "verbs": verbs})
            })
            .collect();
        value["subresources"] = subresources.into();
    }
    value
}
