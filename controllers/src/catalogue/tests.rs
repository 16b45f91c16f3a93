//! Laws of the graph.

use super::*;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::core::ApiResource;
use proptest::prelude::*;

pub(crate) fn resource(kind: &str, namespaced: bool) -> Arc<Resource> {
    let plural = format!("{}s", kind.to_lowercase());
    let api =
        ApiResource { group: String::new(), version: "v1".into(), api_version: "v1".into(), kind: kind.into(), plural };
    Arc::new(Resource {
        api,
        namespaced,
        verbs: ["list", "watch", "delete", "deletecollection"].map(str::to_owned).into(),
    })
}

pub(crate) fn item(name: &str, owners: &[&str]) -> Item {
    let meta = proa_crds::Ties {
        name: Some(name.to_owned()),
        namespace: Some("ns".to_owned()),
        uid: Some(format!("uid-{name}")),
        resource_version: Some("1".to_owned()),
        owner_references: Some(owners.iter().map(|owner| reference(owner)).collect()),
        ..Default::default()
    };
    Item::of(resource("Thing", true), meta).unwrap()
}

pub(crate) fn reference(name: &str) -> OwnerReference {
    OwnerReference {
        api_version: "v1".into(),
        kind: "Thing".into(),
        name: name.into(),
        uid: format!("uid-{name}"),
        ..Default::default()
    }
}

#[test]
fn a_groups_catalogue_holds_its_kinds_the_secrets_they_own_and_the_definitions_of_new_ones() {
    let scope = Scope::Group("proa.dev".into());
    let of = |group: &str, plural: &str| {
        let api = ApiResource { group: group.into(), plural: plural.into(), ..resource("Thing", true).api.clone() };
        Arc::new(Resource { api, ..Resource::clone(&resource("Thing", true)) })
    };
    let watched = [("proa.dev", "pods"), ("", "secrets"), ("apiextensions.k8s.io", "customresourcedefinitions")];
    assert!(watched.iter().all(|(group, plural)| scope.watches(&of(group, plural))));
    let others = [("", "pods"), ("apps", "deployments"), ("", "namespaces")];
    assert!(!others.iter().any(|(group, plural)| scope.watches(&of(group, plural))));
    let secret = |owner: &str| Item {
        resource: of("", "secrets"),
        owners: vec![OwnerReference { api_version: owner.into(), ..reference("o") }],
        ..item("s", &[])
    };
    assert!(scope.holds(&secret("proa.dev/v1")));
    assert!(!scope.holds(&secret("apps/v1")) && !scope.holds(&Item { owners: Vec::new(), ..secret("v1") }));
    assert!(Scope::Everything.holds(&secret("apps/v1")) && Scope::Everything.watches(&of("apps", "deployments")));
}

#[test]
fn an_owner_is_present_absent_or_unknown() {
    let mut graph = Graph::default();
    let owner = reference("o");
    assert_eq!(graph.presence(&owner, "ns"), Presence::Unknown);
    graph.put(item("o", &[]));
    assert_eq!(graph.presence(&owner, "ns"), Presence::Present);
    assert_eq!(graph.presence(&owner, "elsewhere"), Presence::Unknown, "owners live in the same namespace");
    graph.put(Item { deleting: true, finalizers: vec![FOREGROUND.into()], ..item("o", &[]) });
    assert_eq!(graph.presence(&owner, "ns"), Presence::DeletesDependentsFirst);
    graph.remove("uid-o");
    assert_eq!(graph.presence(&owner, "ns"), Presence::Absent);
}

#[test]
fn what_the_server_says_of_an_owner_counts_in_that_namespace_only() {
    let mut graph = Graph::default();
    graph.learn("uid-o", "ns", false);
    assert_eq!(graph.presence(&reference("o"), "ns"), Presence::Absent);
    assert_eq!(graph.presence(&reference("o"), "other"), Presence::Unknown);
    graph.learn("uid-p", "ns", true);
    assert_eq!(graph.presence(&reference("p"), "ns"), Presence::Present);
}

#[test]
fn an_object_made_anew_under_the_same_name_replaces_the_one_before() {
    let mut graph = Graph::default();
    graph.put(item("a", &[]));
    graph.put(Item { uid: "uid-new".into(), ..item("a", &[]) });
    assert!(graph.get("uid-a").is_none());
    assert_eq!(graph.presence(&reference("a"), "ns"), Presence::Absent, "the uid is another one");
    assert_eq!(graph.in_namespace("ns").count(), 1);
}

#[test]
fn a_fresh_list_takes_out_what_it_does_not_hold() {
    let mut graph = Graph::default();
    graph.put(item("a", &[]));
    graph.put(item("b", &[]));
    let changes = graph.keep_only(&resource("Thing", true), &HashSet::from(["uid-b".into()]));
    assert_eq!(changes.len(), 1);
    assert!(graph.get("uid-a").is_none() && graph.get("uid-b").is_some());
    assert!(graph.keep_only(&resource("Other", true), &HashSet::new()).is_empty());
}

proptest! {
    #[test]
    fn dependents_and_namespaces_always_say_what_the_items_say(
        steps in proptest::collection::vec((0..6u8, proptest::option::of(proptest::collection::vec(0..6u8, 0..3))), 0..60),
    ) {
        let mut graph = Graph::default();
        let mut model: std::collections::BTreeMap<u8, Vec<u8>> = Default::default();
        for (n, owners) in steps {
            match owners {
                Some(owners) => {
                    let names: Vec<String> = owners.iter().map(|o| format!("t{o}")).collect();
                    graph.put(item(&format!("t{n}"), &names.iter().map(String::as_str).collect::<Vec<_>>()));
                    model.insert(n, owners);
                }
                None => {
                    graph.remove(&format!("uid-t{n}"));
                    model.remove(&n);
                }
            }
            for owner in 0..6u8 {
                let found: Vec<String> = graph.dependents(&format!("uid-t{owner}")).iter().map(|i| i.key.name.to_string()).collect();
                let expected: Vec<String> = model.iter().filter(|(_, os)| os.contains(&owner)).map(|(n, _)| format!("t{n}")).collect();
                prop_assert_eq!(found, expected);
            }
            prop_assert_eq!(graph.in_namespace("ns").count(), model.len());
        }
    }
}
