//! What discovery says of groups that others answer for. Pure.

use std::sync::Arc;

use serde_json::{Value, json};

/// What a server said of one group and version.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    /// The resources of its `APIResourceList`, subresources among them.
    pub resources: Vec<Value>,
    /// Where it has its OpenAPI v3 document, if it has one.
    pub openapi: Option<String>,
    /// Its OpenAPI v2 document, if it has one, and a digest of it.
    pub openapi_v2: Option<(String, Arc<Value>)>,
    /// Whether it could be asked when it was last looked at.
    pub current: bool,
}

/// A version in aggregated discovery (`APIVersionDiscovery`, KEP-3352), made from the plain list: servers of any age have
/// that one.
pub fn version(group: &str, version: &str, seen: Option<&Seen>) -> Value {
    let freshness = if seen.is_some_and(|seen| seen.current) { "Current" } else { "Stale" };
    let list = seen.map(|seen| seen.resources.as_slice()).unwrap_or_default();
    let resources: Vec<Value> = list
        .iter()
        .filter(|resource| !name(resource).contains('/'))
        .map(|own| resource(group, version, own, list))
        .collect();
    json!({"version": version, "freshness": freshness, "resources": resources})
}

fn name(resource: &Value) -> &str {
    resource["name"].as_str().unwrap_or_default()
}

fn response_kind(group: &str, version: &str, resource: &Value) -> Value {
    let or = |field: &str, default: &str| {
        resource.get(field).and_then(Value::as_str).filter(|text| !text.is_empty()).unwrap_or(default).to_owned()
    };
    json!({"group": or("group", group), "version": or("version", version), "kind": or("kind", "")})
}

fn resource(group: &str, version: &str, own: &Value, list: &[Value]) -> Value {
    let namespaced = own["namespaced"].as_bool() == Some(true);
    let mut made = json!({
        "resource": own["name"],
        "responseKind": response_kind(group, version, own),
        "scope": if namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": own["singularName"],
        "verbs": own["verbs"],
    });
    for field in ["shortNames", "categories"] {
        if let Some(list) = own.get(field).filter(|list| list.as_array().is_some_and(|list| !list.is_empty())) {
            made[field] = list.clone();
        }
    }
    let below = list.iter().filter_map(|other| {
        let (parent, sub) = name(other).split_once('/')?;
        (parent == name(own)).then(|| {
            json!({"subresource": sub, "responseKind": response_kind(group, version, other), "verbs": other["verbs"]})
        })
    });
    let below: Vec<Value> = below.collect();
    if !below.is_empty() {
        made["subresources"] = below.into();
    }
    made
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_list_of_resources_becomes_an_aggregated_version() {
        let resources = vec![
            json!({"name": "flunders", "singularName": "flunder", "namespaced": true, "kind": "Flunder", "verbs": ["get"], "shortNames": ["fl"]}),
            json!({"name": "flunders/status", "singularName": "", "namespaced": true, "kind": "Flunder", "verbs": ["update"]}),
            json!({"name": "fischers", "singularName": "fischer", "namespaced": false, "kind": "Fischer", "verbs": []}),
        ];
        let seen = Seen { resources, current: true, ..Seen::default() };
        let got = version("wardle.example.com", "v1", Some(&seen));
        assert_eq!(got["freshness"], "Current");
        let flunders = &got["resources"][0];
        assert_eq!((&flunders["scope"], &flunders["shortNames"]), (&json!("Namespaced"), &json!(["fl"])));
        let kind = json!({"group": "wardle.example.com", "version": "v1", "kind": "Flunder"});
        assert_eq!(flunders["responseKind"], kind);
        assert_eq!(
            flunders["subresources"],
            json!([{"subresource": "status", "responseKind": kind, "verbs": ["update"]}])
        );
        assert_eq!((&got["resources"][1]["scope"], got["resources"].as_array().unwrap().len()), (&json!("Cluster"), 2));
        assert_eq!(version("g", "v1", None), json!({"version": "v1", "freshness": "Stale", "resources": []}));
    }
}
