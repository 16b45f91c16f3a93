//! The APIServices of custom resources: every group and version this server answers for is listed, whoever made it.
//!
//! Owns the local APIService of each served version of a definition, as Kubernetes' `crdregistration` and `autoregister`
//! controllers do. One that a user made stays the user's.

use std::sync::Arc;

use http::Method;
use proa_apimachinery::object::Object;
use serde_json::{Value, json};

use super::RESOURCE;
use crate::core::Core;
use crate::registry::itself;

const DEFINITIONS: &str = "customresourcedefinitions.apiextensions.k8s.io";
const PATH: &str = "/apis/apiregistration.k8s.io/v1/apiservices";
/// Marks those that come and go with what they list.
const MANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";

/// Registers until the server stops.
pub async fn follow(core: Arc<Core>) {
    let mut definitions = core.caches.resource(DEFINITIONS).subscribe();
    let mut services = core.caches.resource(RESOURCE).subscribe();
    loop {
        definitions.borrow_and_update();
        services.borrow_and_update();
        let objects = |resource: &str| -> Vec<Object> {
            core.caches.resource(resource).items("").iter().map(|item| item.object()).collect()
        };
        let (missing, left) = plan(&objects(DEFINITIONS), &objects(RESOURCE));
        for service in missing {
            // Somebody was faster, or the next change is looked at anyway.
            if let Err(error) = itself::send(&core, Method::POST, PATH, "", &service).await {
                tracing::debug!(%error, "an APIService was not registered");
            }
        }
        for name in left {
            if let Err(error) = itself::send(&core, Method::DELETE, &format!("{PATH}/{name}"), "", &Value::Null).await {
                tracing::debug!(name, %error, "an APIService was not removed");
            }
        }
        tokio::select! {
            biased;
            () = core.stop.cancelled() => return,
            woken = definitions.changed() => if woken.is_err() { return },
            woken = services.changed() => if woken.is_err() { return },
        }
    }
}

/// The APIServices to be made, and the names of those whose definition no longer serves them.
fn plan(definitions: &[Object], services: &[Object]) -> (Vec<Value>, Vec<String>) {
    let mut wanted: Vec<(String, String)> = Vec::new();
    for definition in definitions.iter().filter(|definition| is_established(definition)) {
        let group = definition.get_str(&["spec", "group"]).unwrap_or_default();
        let versions = definition.get_list(&["spec", "versions"]).iter();
        for version in
            versions.filter(|version| version["served"] == true).filter_map(|version| version["name"].as_str())
        {
            let pair = (group.to_owned(), version.to_owned());
            if !wanted.contains(&pair) {
                wanted.push(pair);
            }
        }
    }
    let name = |(group, version): &(String, String)| format!("{version}.{group}");
    let missing = wanted.iter().filter(|pair| !services.iter().any(|have| have.name() == name(pair)));
    let missing = missing.map(|(group, version)| {
        // Their place is kube-aggregator's for custom resources: behind what is built in.
        json!({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
            "metadata": {"name": format!("{version}.{group}"), "labels": {MANAGED: "true"}},
            "spec": {"group": group, "version": version, "groupPriorityMinimum": 1000, "versionPriority": 100}})
    });
    let managed = services.iter().filter(|service| service.label(MANAGED) == Some("true"));
    let left = managed.filter(|service| !wanted.iter().any(|pair| name(pair) == service.name()));
    (missing.collect(), left.map(|service| service.name().to_owned()).collect())
}

fn is_established(definition: &Object) -> bool {
    let conditions = definition.get_list(&["status", "conditions"]);
    conditions.iter().any(|condition| condition["type"] == "Established" && condition["status"] == "True")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(value: Value) -> Object {
        Object::from_value(value).unwrap()
    }

    #[test]
    fn every_served_version_has_one_service_and_what_is_the_users_is_left_alone() {
        let definition = |group: &str, versions: Value, established: &str| {
            object(json!({"spec": {"group": group, "versions": versions},
                "status": {"conditions": [{"type": "Established", "status": established}]}}))
        };
        let versions = json!([{"name": "v1", "served": true}, {"name": "v0", "served": false}]);
        let definitions = [
            definition("a.b", versions.clone(), "True"),
            // Two kinds of one group share it.
            definition("a.b", versions.clone(), "True"),
            definition("c.d", versions.clone(), "False"),
            definition("mine.e", versions, "True"),
        ];
        let service =
            |name: &str, managed: &str| object(json!({"metadata": {"name": name, "labels": {MANAGED: managed}}}));
        let services = [service("v1.mine.e", "no"), service("v0.a.b", "true"), service("v1.apps", "onstart")];
        let (missing, left) = plan(&definitions, &services);
        let names: Vec<&str> = missing.iter().map(|service| service["metadata"]["name"].as_str().unwrap()).collect();
        assert_eq!((names, left), (vec!["v1.a.b"], vec!["v0.a.b".to_owned()]));
        let (missing, left) = plan(&definitions[..1], &[service("v1.a.b", "true")]);
        assert_eq!((missing.len(), left.len()), (0, 0));
    }
}
