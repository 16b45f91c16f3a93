//! Stories of server-side apply, on Deployments and friends.

use proa_apimachinery::{
    Object,
    managed_fields::{self, ApplyError, Manager, Operation},
    schema::{self, Schema},
};
use serde_json::{Value, json};

fn schema_of(kind: &str) -> &'static Schema {
    let builtin = schema::builtin_kinds().iter().find(|k| k.kind == kind).unwrap();
    schema::definition(&builtin.definition).unwrap()
}

/// One object and its history.
struct Story {
    schema: &'static Schema,
    live: Option<Object>,
    clock: u32,
}

impl Story {
    fn of(kind: &str) -> Story {
        Story { schema: schema_of(kind), live: None, clock: 0 }
    }

    fn now(&mut self) -> String {
        self.clock += 1;
        format!("2026-01-01T00:{:02}:{:02}Z", self.clock / 60, self.clock % 60)
    }

    fn try_apply(&mut self, manager: &str, config: Value, force: bool) -> Result<(), ApplyError> {
        let now = self.now();
        let config = Object::from_value(config).unwrap();
        let api_version = config.api_version().to_owned();
        let manager =
            Manager { name: manager, operation: Operation::Apply, api_version: &api_version, subresource: "" };
        let applied = managed_fields::apply(self.schema, self.live.as_ref(), &config, manager, force, &now)?;
        self.live = Some(applied);
        Ok(())
    }

    #[track_caller]
    fn apply(&mut self, manager: &str, config: Value) -> &mut Story {
        self.try_apply(manager, config, false).unwrap();
        self
    }

    #[track_caller]
    fn force(&mut self, manager: &str, config: Value) -> &mut Story {
        self.try_apply(manager, config, true).unwrap();
        self
    }

    fn conflict(&mut self, manager: &str, config: Value) -> String {
        self.try_apply(manager, config, false).unwrap_err().to_string()
    }

    fn write(&mut self, manager: &str, subresource: &str, change: impl FnOnce(&mut Object)) -> &mut Story {
        let now = self.now();
        let mut new = self.live.clone().unwrap_or_default();
        change(&mut new);
        let api_version = new.api_version().to_owned();
        let manager = Manager { name: manager, operation: Operation::Update, api_version: &api_version, subresource };
        managed_fields::update(self.schema, self.live.as_ref(), &mut new, manager, &now);
        self.live = Some(new);
        self
    }

    fn update(&mut self, manager: &str, change: impl FnOnce(&mut Object)) -> &mut Story {
        self.write(manager, "", change)
    }

    fn live(&self) -> &Object {
        self.live.as_ref().unwrap()
    }

    fn at(&self, path: &[&str]) -> Value {
        self.live().get(path).cloned().unwrap_or(Value::Null)
    }

    /// FieldsV1 of a manager.
    fn fields(&self, manager: &str) -> Value {
        let entries = self.live().get_list(&["metadata", "managedFields"]);
        entries.iter().find(|e| e["manager"] == manager).map_or(Value::Null, |e| e["fieldsV1"].clone())
    }

    fn managers(&self) -> Vec<String> {
        let entries = self.live().get_list(&["metadata", "managedFields"]);
        entries
            .iter()
            .map(|e| format!("{}/{}", e["manager"].as_str().unwrap(), e["operation"].as_str().unwrap()))
            .collect()
    }

    fn time(&self, manager: &str) -> Value {
        let entries = self.live().get_list(&["metadata", "managedFields"]);
        entries.iter().find(|e| e["manager"] == manager).map_or(Value::Null, |e| e["time"].clone())
    }
}

fn deployment(spec: Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "default"}, "spec": spec})
}

fn containers(containers: Value) -> Value {
    deployment(json!({"template": {"spec": {"containers": containers}}}))
}

const POD: [&str; 4] = ["spec", "template", "spec", "containers"];

#[test]
fn an_apply_creates_and_owns_what_it_says() {
    let mut story = Story::of("Deployment");
    story.apply(
        "me",
        deployment(json!({"replicas": 3, "template": {"metadata": {"labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80}]}]}}})),
    );
    assert_eq!(
        story.fields("me"),
        json!({"f:spec": {"f:replicas": {}, "f:template": {
        "f:metadata": {"f:labels": {"f:app": {}}},
        "f:spec": {"f:containers": {"k:{\"name\":\"c\"}": {".": {}, "f:image": {}, "f:name": {},
            "f:ports": {"k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}}}}}}}})
    );
    let entry = &story.live().get_list(&["metadata", "managedFields"])[0];
    assert_eq!(entry["operation"], "Apply");
    assert_eq!(entry["apiVersion"], "apps/v1");
    assert_eq!(entry["fieldsType"], "FieldsV1");
    assert_eq!(entry["time"], "2026-01-01T00:00:01Z");
    assert!(entry.get("subresource").is_none());
}

#[test]
fn the_same_apply_again_changes_nothing_not_even_times() {
    let mut story = Story::of("Deployment");
    let config = containers(json!([{"name": "c", "image": "i"}]));
    story.apply("me", config.clone());
    let before = story.live().clone();
    story.apply("me", config);
    assert_eq!(*story.live(), before);
}

#[test]
fn what_is_no_longer_applied_goes() {
    let mut story = Story::of("Deployment");
    story.apply("me", deployment(json!({"replicas": 3, "paused": true})));
    story.apply("me", deployment(json!({"replicas": 3})));
    assert_eq!(story.at(&["spec"]), json!({"replicas": 3}));
    story.apply("me", deployment(json!({})));
    assert_eq!(story.at(&["spec"]), json!({}));
}

#[test]
fn what_someone_else_owns_too_stays() {
    let mut story = Story::of("Deployment");
    story.apply("a", deployment(json!({"replicas": 3, "paused": true})));
    story.apply("b", deployment(json!({"replicas": 3})));
    story.apply("a", deployment(json!({"paused": true})));
    assert_eq!(story.at(&["spec", "replicas"]), json!(3));
    assert_eq!(story.fields("a"), json!({"f:spec": {"f:paused": {}}}));
    assert_eq!(story.fields("b"), json!({"f:spec": {"f:replicas": {}}}));
}

#[test]
fn changing_what_another_applier_owns_conflicts() {
    let mut story = Story::of("Deployment");
    story.apply("a", deployment(json!({"replicas": 3})));
    assert_eq!(
        story.conflict("b", deployment(json!({"replicas": 4}))),
        "Apply failed with 1 conflict: conflict with \"a\": .spec.replicas"
    );
    assert_eq!(story.at(&["spec", "replicas"]), json!(3));
    story.force("b", deployment(json!({"replicas": 4})));
    assert_eq!(story.at(&["spec", "replicas"]), json!(4));
    assert_eq!(story.managers(), ["b/Apply"]);
}

#[test]
fn changing_what_an_updater_owns_conflicts_with_its_version() {
    let mut story = Story::of("Deployment");
    story.update("kubectl-client-side-apply", |o| *o = Object::from_value(deployment(json!({"replicas": 3}))).unwrap());
    assert_eq!(
        story.conflict("me", deployment(json!({"replicas": 4}))),
        "Apply failed with 1 conflict: conflict with \"kubectl-client-side-apply\" using apps/v1: .spec.replicas"
    );
}

#[test]
fn several_conflicts_are_listed_by_owner() {
    let mut story = Story::of("Deployment");
    story.apply("a", deployment(json!({"replicas": 3, "paused": true})));
    story.update("z", |o| o.set(&["spec", "minReadySeconds"], 1));
    let text = story.conflict("b", deployment(json!({"replicas": 4, "paused": false, "minReadySeconds": 2})));
    assert_eq!(
        text,
        "Apply failed with 3 conflicts: conflicts with \"a\":\n- .spec.paused\n- .spec.replicas\nconflicts with \"z\" using apps/v1:\n- .spec.minReadySeconds"
    );
    let error = story.try_apply("b", deployment(json!({"replicas": 4})), false).unwrap_err();
    let ApplyError::Conflicts(conflicts) = error else { panic!() };
    assert_eq!(conflicts.0[0].message(), "conflict with \"a\"");
    assert_eq!(conflicts.0[0].field, ".spec.replicas");
}

#[test]
fn an_owner_with_a_subresource_is_named_with_it() {
    let mut story = Story::of("Deployment");
    story.apply("a", deployment(json!({})));
    story.write("hpa", "scale", |o| o.set(&["spec", "replicas"], 7));
    let text = story.conflict("me", deployment(json!({"replicas": 4})));
    assert_eq!(
        text,
        "Apply failed with 1 conflict: conflict with \"hpa\" with subresource \"scale\" using apps/v1: .spec.replicas"
    );
}

#[test]
fn agreeing_with_another_owner_is_no_conflict() {
    let mut story = Story::of("Deployment");
    story.apply("a", deployment(json!({"replicas": 3})));
    story.apply("b", deployment(json!({"replicas": 3})));
    assert_eq!(story.managers(), ["a/Apply", "b/Apply"]);
    assert_eq!(story.fields("a"), story.fields("b"));
}

#[test]
fn an_update_takes_ownership_of_what_it_changes() {
    let mut story = Story::of("Deployment");
    story.apply("a", deployment(json!({"replicas": 3, "paused": true})));
    story.update("hpa", |o| o.set(&["spec", "replicas"], 5));
    assert_eq!(story.fields("a"), json!({"f:spec": {"f:paused": {}}}));
    assert_eq!(story.fields("hpa"), json!({"f:spec": {"f:replicas": {}}}));
    assert_eq!(story.managers(), ["a/Apply", "hpa/Update"]);
    // The applier gives the field up by not mentioning it: the value stays.
    story.apply("a", deployment(json!({"paused": true})));
    assert_eq!(story.at(&["spec", "replicas"]), json!(5));
}

#[test]
fn an_update_that_changes_nothing_takes_nothing() {
    let mut story = Story::of("Deployment");
    story.apply("a", deployment(json!({"replicas": 3})));
    let before = story.live().clone();
    story.update("b", |_| {});
    assert_eq!(*story.live(), before);
}

#[test]
fn an_update_that_removes_a_field_removes_its_ownership() {
    let mut story = Story::of("Deployment");
    story.apply("a", deployment(json!({"replicas": 3, "paused": true})));
    story.update("b", |o| {
        o.remove(&["spec", "paused"]);
    });
    assert_eq!(story.fields("a"), json!({"f:spec": {"f:replicas": {}}}));
    assert_eq!(story.managers(), ["a/Apply"]);
}

#[test]
fn the_time_of_an_entry_changes_only_with_it() {
    let mut story = Story::of("Deployment");
    story.update("b", |o| *o = Object::from_value(deployment(json!({"replicas": 1}))).unwrap());
    story.apply("a", deployment(json!({"paused": true})));
    let (a, b) = (story.time("a"), story.time("b"));
    story.update("c", |o| o.set(&["spec", "minReadySeconds"], 1));
    assert_eq!((story.time("a"), story.time("b")), (a.clone(), b.clone()));
    story.update("b", |o| o.set(&["spec", "replicas"], 2));
    assert_eq!(story.time("a"), a);
    assert_ne!(story.time("b"), b);
}

#[test]
fn list_maps_merge_by_key() {
    let mut story = Story::of("Deployment");
    story.apply("a", containers(json!([{"name": "x", "image": "1"}])));
    story.apply("b", containers(json!([{"name": "y", "image": "2"}])));
    assert_eq!(story.at(&POD), json!([{"name": "x", "image": "1"}, {"name": "y", "image": "2"}]));
    story.apply("a", deployment(json!({})));
    assert_eq!(story.at(&POD), json!([{"name": "y", "image": "2"}]));
}

#[test]
fn a_list_element_of_two_owners_loses_only_its_own_fields() {
    let mut story = Story::of("Deployment");
    story.apply("a", containers(json!([{"name": "x", "image": "1", "workingDir": "/"}])));
    story.apply("b", containers(json!([{"name": "x", "tty": true}])));
    assert_eq!(story.at(&POD), json!([{"name": "x", "image": "1", "workingDir": "/", "tty": true}]));
    story.apply("a", containers(json!([{"name": "x", "image": "1"}])));
    assert_eq!(story.at(&POD), json!([{"name": "x", "image": "1", "tty": true}]));
    story.apply("a", deployment(json!({})));
    assert_eq!(story.at(&POD), json!([{"name": "x", "tty": true}]));
}

#[test]
fn a_removed_element_takes_defaulted_fields_along() {
    let mut story = Story::of("Deployment");
    story.apply("a", containers(json!([{"name": "x", "image": "1"}, {"name": "y", "image": "1"}])));
    // Defaulting, that nobody owns.
    let mut live = story.live().clone();
    live.0["spec"]["template"]["spec"]["containers"][1]["imagePullPolicy"] = json!("Always");
    story.live = Some(live);
    story.apply("a", containers(json!([{"name": "x", "image": "1"}])));
    assert_eq!(story.at(&POD), json!([{"name": "x", "image": "1"}]));
}

#[test]
fn unset_fields_get_their_defaults_again() {
    let mut story = Story::of("Deployment");
    story.apply("a", deployment(json!({"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}})));
    story.live.as_mut().unwrap().set(&["spec", "strategy", "rollingUpdate", "maxUnavailable"], "25%");
    story.apply("a", deployment(json!({"strategy": {"type": "Recreate"}})));
    assert_eq!(story.at(&["spec", "strategy"]), json!({"type": "Recreate"}));
}

#[test]
fn ports_are_told_apart_by_protocol_with_its_default() {
    let mut story = Story::of("Deployment");
    let with = |ports: Value| containers(json!([{"name": "x", "ports": ports}]));
    story.apply("a", with(json!([{"containerPort": 53}, {"containerPort": 53, "protocol": "UDP"}])));
    story.apply("b", with(json!([{"containerPort": 53, "protocol": "TCP", "name": "dns"}])));
    assert_eq!(
        story.at(&POD)[0]["ports"],
        json!([{"containerPort": 53, "protocol": "TCP", "name": "dns"}, {"containerPort": 53, "protocol": "UDP"}])
    );
    story.apply("a", with(json!([{"containerPort": 53}])));
    assert_eq!(story.at(&POD)[0]["ports"].as_array().unwrap().len(), 1);
}

#[test]
fn the_order_of_a_configuration_is_kept() {
    let names = |story: &Story| -> Vec<String> {
        story.at(&POD).as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap().to_owned()).collect()
    };
    let list = |names: &[&str]| containers(names.iter().map(|n| json!({"name": n})).collect());
    let table: [(&[&str], &[&str], &[&str]); 8] = [
        (&["a", "b"], &["b", "a"], &["b", "a"]),
        (&["a", "b", "c"], &["c", "a"], &["c", "a", "b"]),
        (&["a", "b"], &["x", "a", "b"], &["x", "a", "b"]),
        (&["a", "b"], &["a", "x", "b"], &["a", "x", "b"]),
        (&["a", "b"], &["a", "b", "x"], &["a", "b", "x"]),
        (&["a", "b", "c"], &["b"], &["a", "b", "c"]),
        (&["a"], &["x", "y"], &["a", "x", "y"]),
        (&[], &["x", "y"], &["x", "y"]),
    ];
    for (live, config, expected) in table {
        let mut story = Story::of("Deployment");
        story.apply("a", list(live));
        story.apply("b", list(config));
        let got = names(&story);
        let mut of_config: Vec<&String> = got.iter().filter(|n| config.contains(&n.as_str())).collect();
        assert_eq!(of_config.len(), config.len());
        of_config.dedup();
        assert_eq!(of_config, config.iter().collect::<Vec<_>>(), "{live:?} {config:?}: {got:?}");
        assert_eq!(got.len(), expected.len(), "{live:?} {config:?}: {got:?}");
        if !matches!(config, ["c", "a"]) {
            assert_eq!(got, expected, "{live:?} {config:?}");
        }
    }
}

#[test]
fn sets_merge_by_value() {
    let config = |finalizers: Value| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "finalizers": finalizers}});
    let mut story = Story::of("ConfigMap");
    story.apply("a", config(json!(["x/a", "x/b"])));
    story.apply("b", config(json!(["x/c"])));
    assert_eq!(story.at(&["metadata", "finalizers"]), json!(["x/a", "x/b", "x/c"]));
    assert_eq!(story.fields("b"), json!({"f:metadata": {"f:finalizers": {"v:\"x/c\"": {}}}}));
    story.apply("a", config(json!(["x/b"])));
    assert_eq!(story.at(&["metadata", "finalizers"]), json!(["x/b", "x/c"]));
}

#[test]
fn granular_maps_are_owned_by_entry_atomic_ones_whole() {
    let labels =
        |labels: Value| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "labels": labels}});
    let mut story = Story::of("ConfigMap");
    story.apply("a", labels(json!({"x": "1"})));
    story.apply("b", labels(json!({"y": "2"})));
    assert_eq!(story.at(&["metadata", "labels"]), json!({"x": "1", "y": "2"}));

    let mut story = Story::of("Deployment");
    story.apply("a", deployment(json!({"selector": {"matchLabels": {"x": "1"}}})));
    assert_eq!(story.fields("a"), json!({"f:spec": {"f:selector": {}}}));
    let text = story.conflict("b", deployment(json!({"selector": {"matchLabels": {"y": "1"}}})));
    assert!(text.ends_with("conflict with \"a\": .spec.selector"), "{text}");
    story.force("b", deployment(json!({"selector": {"matchLabels": {"y": "1"}}})));
    assert_eq!(story.at(&["spec", "selector"]), json!({"matchLabels": {"y": "1"}}));
}

#[test]
fn atomic_lists_are_replaced_whole() {
    let mut story = Story::of("Deployment");
    story.apply("a", containers(json!([{"name": "x", "args": ["1", "2"]}])));
    story.apply("a", containers(json!([{"name": "x", "args": ["3"]}])));
    assert_eq!(story.at(&POD)[0]["args"], json!(["3"]));
    let text = story.conflict("b", containers(json!([{"name": "x", "args": []}])));
    assert!(text.contains(".spec.template.spec.containers[name=\"x\"].args"), "{text}");
}

#[test]
fn identity_is_never_owned() {
    let mut story = Story::of("ConfigMap");
    story.apply(
        "a",
        json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"k": "v"},
        "metadata": {"name": "c", "namespace": "n", "uid": "u", "resourceVersion": "1", "generation": 1,
            "creationTimestamp": "2026-01-01T00:00:00Z", "selfLink": "x", "annotations": {"a": "b"}}}),
    );
    assert_eq!(story.fields("a"), json!({"f:data": {"f:k": {}}, "f:metadata": {"f:annotations": {"f:a": {}}}}));
    story.update("b", |o| {
        o.set(&["metadata", "uid"], "other");
        o.set(&["metadata", "resourceVersion"], "7");
    });
    assert_eq!(story.managers(), ["a/Apply"]);
}

#[test]
fn a_creation_by_update_owns_as_kubernetes_writes_it() {
    let mut story = Story::of("Deployment");
    story.update("kubectl-client-side-apply", |o| {
        *o = Object::from_value(deployment(json!({"replicas": 1, "selector": {"matchLabels": {"app": "x"}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%"}},
            "template": {"metadata": {"labels": {"app": "x"}},
                "spec": {"containers": [{"name": "c", "image": "i", "resources": {}, "ports": [{"containerPort": 80, "protocol": "TCP"}]}],
                    "securityContext": {}, "volumes": [{"name": "v", "emptyDir": {}}]}}})))
        .unwrap();
        o.set_annotation("a", "b");
    });
    assert_eq!(
        story.fields("kubectl-client-side-apply"),
        json!({
        "f:metadata": {"f:annotations": {".": {}, "f:a": {}}},
        "f:spec": {
            "f:replicas": {}, "f:selector": {},
            "f:strategy": {"f:rollingUpdate": {".": {}, "f:maxSurge": {}}, "f:type": {}},
            "f:template": {"f:metadata": {"f:labels": {".": {}, "f:app": {}}},
                "f:spec": {
                    "f:containers": {"k:{\"name\":\"c\"}": {".": {}, "f:image": {}, "f:name": {}, "f:ports": {".": {},
                        "k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}, "f:protocol": {}}}, "f:resources": {}}},
                    "f:securityContext": {},
                    "f:volumes": {".": {}, "k:{\"name\":\"v\"}": {".": {}, "f:emptyDir": {}, "f:name": {}}}}}}})
    );
}

#[test]
fn status_is_owned_through_its_subresource() {
    let mut story = Story::of("Deployment");
    story.apply("a", deployment(json!({"replicas": 1})));
    story.write("controller", "status", |o| {
        o.set(&["status", "conditions"], json!([{"type": "Available", "status": "True"}]));
        o.set(&["status", "replicas"], 1);
    });
    let entries = story.live().get_list(&["metadata", "managedFields"]).to_vec();
    assert_eq!(entries[1]["subresource"], "status");
    assert_eq!(
        entries[1]["fieldsV1"]["f:status"]["f:conditions"]["k:{\"type\":\"Available\"}"],
        json!({".": {}, "f:status": {}, "f:type": {}})
    );
    // The same name through another subresource is another manager.
    story.write("controller", "", |o| o.set(&["spec", "replicas"], 2));
    assert_eq!(story.managers(), ["a/Apply", "controller/Update", "controller/Update"][1..]);
}

#[test]
fn an_object_without_records_gets_them_at_its_first_apply() {
    let mut story = Story::of("Deployment");
    story.live = Some(Object::from_value(deployment(json!({"replicas": 3, "paused": true}))).unwrap());
    story.update("someone", |o| o.set(&["spec", "minReadySeconds"], 1));
    assert!(story.managers().is_empty());
    let text = story.conflict("me", deployment(json!({"replicas": 4})));
    assert_eq!(
        text,
        "Apply failed with 1 conflict: conflict with \"before-first-apply\" using apps/v1: .spec.replicas"
    );
    story.apply("me", deployment(json!({"replicas": 3})));
    assert_eq!(story.managers(), ["me/Apply", "before-first-apply/Update"]);
}

#[test]
fn kubectl_takes_over_from_its_client_side_apply() {
    let applied = deployment(json!({"replicas": 3, "paused": true}));
    let mut story = Story::of("Deployment");
    story.update("kubectl-client-side-apply", |o| {
        *o = Object::from_value(applied.clone()).unwrap();
        o.set_annotation("kubectl.kubernetes.io/last-applied-configuration", applied.to_string());
    });
    assert!(story.conflict("other", deployment(json!({"replicas": 4}))).contains("kubectl-client-side-apply"));
    story.apply("kubectl", deployment(json!({"replicas": 4, "paused": true})));
    assert_eq!(story.at(&["spec", "replicas"]), json!(4));
    let last = story.live().annotation("kubectl.kubernetes.io/last-applied-configuration").unwrap().to_owned();
    assert_eq!(serde_json::from_str::<Value>(&last).unwrap()["spec"]["replicas"], json!(4));
    // What someone changed after the last client-side apply still conflicts.
    story.update("hpa", |o| o.set(&["spec", "replicas"], 9));
    assert!(story.conflict("kubectl", deployment(json!({"replicas": 5, "paused": true}))).contains("\"hpa\""));
}

#[test]
fn clients_may_rewrite_managed_fields() {
    let mut story = Story::of("Deployment");
    story.update("kubectl-client-side-apply", |o| *o = Object::from_value(deployment(json!({"replicas": 3}))).unwrap());
    // kubectl's own migration: its update entry becomes an apply entry.
    story.update("kubectl", |o| {
        o.0["metadata"]["managedFields"][0]["manager"] = json!("kubectl");
        o.0["metadata"]["managedFields"][0]["operation"] = json!("Apply");
    });
    assert_eq!(story.managers(), ["kubectl/Apply"]);
    // Leaving them out does not lose them, an empty entry wipes them.
    story.update("x", |o| {
        o.remove(&["metadata", "managedFields"]);
    });
    assert_eq!(story.managers(), ["kubectl/Apply"]);
    story.update("x", |o| o.set(&["metadata", "managedFields"], json!([{"manager": "junk"}])));
    assert_eq!(story.managers(), ["kubectl/Apply"]);
    story.update("x", |o| o.set(&["metadata", "managedFields"], json!([{}])));
    assert!(story.managers().is_empty());
}

#[test]
fn a_configuration_may_not_bring_managed_fields() {
    let mut story = Story::of("Deployment");
    let mut config = deployment(json!({}));
    config["metadata"]["managedFields"] = json!([{"manager": "x"}]);
    assert_eq!(story.conflict("a", config), "metadata.managedFields must be nil");
}

#[test]
fn what_cannot_be_told_apart_is_refused() {
    let mut story = Story::of("Deployment");
    let text = story.conflict("a", containers(json!([{"name": "x"}, {"name": "x"}])));
    assert!(text.contains("duplicate entries for key [name=\"x\"]"), "{text}");
    let text = story.conflict("a", containers(json!([{"image": "x"}])));
    assert!(text.contains("spec.template.spec.containers[0]"), "{text}");
}

#[test]
fn duplicates_of_a_live_list_survive_appliers_that_do_not_touch_them() {
    let env = |env: Value| containers(json!([{"name": "c", "env": env}]));
    let mut story = Story::of("Deployment");
    story.update("old", |o| {
        *o = Object::from_value(env(json!([{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]))).unwrap();
    });
    story.apply("me", env(json!([{"name": "B", "value": "3"}])));
    assert_eq!(story.at(&POD)[0]["env"].as_array().unwrap().len(), 3);
    story.force("me", env(json!([{"name": "A", "value": "9"}])));
    assert_eq!(story.at(&POD)[0]["env"], json!([{"name": "A", "value": "9"}]));
}

#[test]
fn many_updaters_are_folded_into_one() {
    let mut story = Story::of("ConfigMap");
    story.update("u00", |o| {
        *o = Object::from_value(
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"k": "v"}}),
        )
        .unwrap()
    });
    for n in 0..30 {
        story.update(&format!("u{n:02}"), |o| o.set(&["data", &format!("k{n}")], "v"));
    }
    let managers = story.managers();
    assert_eq!(managers.len(), 10, "{managers:?}");
    assert!(managers.contains(&"ancient-changes/Update".to_owned()));
    assert!(managers.contains(&"u29/Update".to_owned()));
}

#[test]
fn values_without_a_schema_split_by_their_shape() {
    let mut story = Story::of("Deployment");
    story.schema = Schema::any();
    let config = |spec: Value| json!({"apiVersion": "x/v1", "kind": "X", "metadata": {"name": "x"}, "spec": spec});
    story.apply("a", config(json!({"m": {"k": 1}, "l": [{"name": "a"}]})));
    story.apply("b", config(json!({"m": {"j": 2}})));
    assert_eq!(story.at(&["spec"]), json!({"m": {"k": 1, "j": 2}, "l": [{"name": "a"}]}));
    story.apply("a", config(json!({"l": [{"name": "b"}]})));
    assert_eq!(story.at(&["spec"]), json!({"m": {"j": 2}, "l": [{"name": "b"}]}));
}

#[test]
fn an_applier_stays_itself_over_versions() {
    let mut story = Story::of("HorizontalPodAutoscaler");
    let config = |version: &str| json!({"apiVersion": version, "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"}, "spec": {"maxReplicas": 3}});
    story.apply("a", config("autoscaling/v1"));
    story.apply("a", config("autoscaling/v2"));
    assert_eq!(story.managers(), ["a/Apply"]);
}

#[test]
fn an_applier_that_wants_nothing_has_no_entry() {
    let mut story = Story::of("ConfigMap");
    story.apply("a", json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}}));
    assert!(story.live().metadata().unwrap().get("managedFields").is_none());
}

#[test]
fn nulls_of_a_configuration_unset() {
    let mut story = Story::of("Deployment");
    story.apply("a", deployment(json!({"replicas": 3})));
    story.apply("a", deployment(json!({"replicas": null})));
    let mut value = story.live().to_value();
    story.schema.prune(&mut value);
    assert!(value["spec"].get("replicas").is_none());
}
