//! What the server serves: every group in its preferred version, and what only other versions have.

use super::{Known, graph::Resource};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{APIGroup, APIResourceList};
use kube::{Client, core::ApiResource};
use std::{collections::HashSet, sync::Arc};

/// What the server serves.
///
/// # Errors
///
/// When the list of groups cannot be had. A single group that does not answer is told in [`Known::failures`].
pub async fn discover(client: &Client) -> Result<Known, kube::Error> {
    let mut known = Known::default();
    let mut seen = HashSet::new();
    take_in(&mut known, &mut seen, &client.list_core_api_resources("v1").await?);
    for group in client.list_api_groups().await?.groups {
        for version in versions(&group) {
            match client.list_api_group_resources(&version).await {
                Ok(list) => take_in(&mut known, &mut seen, &list),
                Err(error) => known.failures.push(format!("{version}: {error}")),
            }
        }
    }
    Ok(known)
}

/// The preferred version first.
fn versions(group: &APIGroup) -> Vec<String> {
    let preferred = group.preferred_version.iter().map(|version| version.group_version.clone());
    let all = group.versions.iter().map(|version| version.group_version.clone());
    let mut seen = HashSet::new();
    preferred.chain(all).filter(|version| seen.insert(version.clone())).collect()
}

fn take_in(known: &mut Known, seen: &mut HashSet<(String, String)>, list: &APIResourceList) {
    let (group, version) = list.group_version.rsplit_once('/').unwrap_or(("", &list.group_version));
    for resource in &list.resources {
        // Subresources are no objects of their own.
        if resource.name.contains('/') || !seen.insert((group.to_owned(), resource.name.clone())) {
            continue;
        }
        let api = ApiResource {
            group: group.to_owned(),
            version: version.to_owned(),
            api_version: list.group_version.clone(),
            kind: resource.kind.clone(),
            plural: resource.name.clone(),
        };
        known.resources.push(Arc::new(Resource {
            api,
            namespaced: resource.namespaced,
            verbs: resource.verbs.clone(),
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_resource_is_taken_from_the_first_version_that_has_it() {
        let list = |version: &str, names: &[&str]| -> APIResourceList {
            let resources: Vec<_> =
                names.iter().map(|name| json!({"name": name, "kind": "K", "namespaced": true, "singularName": "", "verbs": ["list"]})).collect();
            serde_json::from_value(json!({"groupVersion": version, "resources": resources})).unwrap()
        };
        let (mut known, mut seen) = (Known::default(), HashSet::new());
        take_in(&mut known, &mut seen, &list("example.com/v1", &["things", "things/status"]));
        take_in(&mut known, &mut seen, &list("example.com/v1beta1", &["things", "others"]));
        let found: Vec<_> = known.resources.iter().map(|r| format!("{} {}", r.api.api_version, r.api.plural)).collect();
        assert_eq!(found, ["example.com/v1 things", "example.com/v1beta1 others"]);
    }
}
