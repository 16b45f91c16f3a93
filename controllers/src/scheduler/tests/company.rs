//! Pods among pods: affinity, anti-affinity and topology spread.

use super::world::*;
use serde_json::{Value, json};

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

fn term(key: &str, app: &str) -> Value {
    json!({"topologyKey": key, "labelSelector": {"matchLabels": {"app": app}}})
}

fn required(kind: &str, term: Value) -> Value {
    json!({"spec": {"affinity": {kind: {REQUIRED: [term]}}}})
}

fn preferred(kind: &str, weight: i32, term: Value) -> Value {
    json!({"spec": {"affinity": {kind: {PREFERRED: [{"weight": weight, "podAffinityTerm": term}]}}}})
}

fn app(name: &str) -> Value {
    labelled("app", name)
}

fn two_zones() -> Vec<proa_crds::Node> {
    vec![zoned("a1", "a"), zoned("a2", "a"), zoned("b1", "b")]
}

#[test]
fn required_affinity_goes_where_its_company_is_and_nowhere_else() {
    let near = required("podAffinity", term("zone", "db"));
    let mut there = cluster(&two_zones(), &[on("b1", "db", "1m", app("db"))]);
    assert_eq!(said(&mut there, &pod("web", "1m", near.clone())), "b1");
    assert_eq!(
        said(&mut cluster(&two_zones(), &[]), &pod("web", "1m", near)),
        "0/3 nodes are available: 3 node(s) didn't match pod affinity rules."
    );
}

#[test]
fn the_first_of_a_kind_that_wants_its_own_kind_near_is_let_in() {
    let own_kind = and(app("web"), required("podAffinity", term("zone", "web")));
    let mut core = core(&two_zones());
    for name in ["w1", "w2", "w3"] {
        tell(&mut core, &pod(name, "500m", own_kind.clone()), MS(0));
    }
    let first = next(&mut core, MS(0)).unwrap();
    let zone = first.split(" to ").nth(1).unwrap()[..1].to_owned();
    for _ in 0..2 {
        assert!(next(&mut core, MS(0)).unwrap().contains(&format!(" to {zone}")));
    }
}

#[test]
fn all_terms_of_an_affinity_mean_one_and_the_same_pod() {
    let two = json!({"spec": {"affinity": {"podAffinity": {REQUIRED: [term("zone", "db"),
        {"topologyKey": "zone", "labelSelector": {"matchLabels": {"tier": "back"}}}]}}}});
    let (db, back) = (app("db"), labelled("tier", "back"));
    let apart = [on("a1", "db", "1m", db.clone()), on("a2", "back", "1m", back.clone())];
    assert!(said(&mut cluster(&two_zones(), &apart), &pod("w", "1m", two.clone())).starts_with("0/3"));
    let both = [on("b1", "both", "1m", and(db, back))];
    assert_eq!(said(&mut cluster(&two_zones(), &both), &pod("w", "1m", two)), "b1");
}

#[test]
fn anti_affinity_holds_for_the_one_that_comes_and_for_those_that_are_there() {
    let apart = required("podAntiAffinity", term("zone", "web"));
    let mut there = cluster(&two_zones(), &[on("a1", "web", "1m", app("web"))]);
    assert_eq!(said(&mut there, &pod("p", "1m", apart.clone())), "b1");
    let mut everywhere = cluster(&two_zones(), &[on("a1", "w1", "1m", app("web")), on("b1", "w2", "1m", app("web"))]);
    assert_eq!(
        said(&mut everywhere, &pod("p", "1m", apart.clone())),
        "0/3 nodes are available: 3 node(s) didn't match pod anti-affinity rules."
    );
    // Symmetry: who is there does not want web; web itself says nothing.
    let mut unwilling = cluster(&two_zones(), &[on("a1", "loner", "1m", apart.clone())]);
    assert_eq!(said(&mut unwilling, &pod("web", "1m", app("web"))), "b1");
    let mut all = cluster(&two_zones(), &[on("a1", "l1", "1m", apart.clone()), on("b1", "l2", "1m", apart)]);
    assert_eq!(
        said(&mut all, &pod("web", "1m", app("web"))),
        "0/3 nodes are available: 3 node(s) didn't satisfy existing pods anti-affinity rules."
    );
    assert_ne!(said(&mut all, &pod("db", "1m", app("db"))), "");
}

#[test]
fn namespaces_of_a_term_are_selected_by_their_labels_as_they_are_now() {
    let term = json!({"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "db"}},
        "namespaceSelector": {"matchLabels": {"team": "blue"}}});
    let near = required("podAffinity", term);
    let other = json!({"metadata": {"namespace": "other"}});
    let mut there = cluster(&two_zones(), &[on("b1", "db", "1m", and(app("db"), other))]);
    assert!(said(&mut there, &pod("web", "1m", near.clone())).starts_with("0/3"));
    there.namespace_changed("other", Some([("team".to_owned(), "blue".to_owned())].into()));
    assert_eq!(said(&mut there, &pod("web", "1m", near)), "b1");
}

#[test]
fn preferences_draw_and_repel_from_both_sides() {
    let draw = preferred("podAffinity", 100, term("zone", "db"));
    let mut there = cluster(&two_zones(), &[on("b1", "db", "1m", app("db"))]);
    assert_eq!(said(&mut there, &pod("web", "1m", draw)), "b1");
    let repel = preferred("podAntiAffinity", 100, term("zone", "db"));
    let mut there = cluster(&two_zones()[1..], &[on("b1", "db", "1m", app("db"))]);
    assert_eq!(said(&mut there, &pod("web", "1m", repel.clone())), "a2");
    // Those that are there count as well.
    let mut there = cluster(&two_zones()[1..], &[on("b1", "shy", "1m", repel)]);
    assert_eq!(said(&mut there, &pod("db", "1m", app("db"))), "a2");
    let mut there = cluster(&two_zones()[1..], &[on("b1", "fan", "1m", required("podAffinity", term("zone", "db")))]);
    assert_eq!(said(&mut there, &pod("db", "1m", app("db"))), "b1", "hardPodAffinityWeight");
}

fn spread(key: &str, extra: Value) -> Value {
    let constraint = json!({"topologyKey": key, "maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"app": "web"}}});
    and(app("web"), json!({"spec": {"topologySpreadConstraints": [and(constraint, extra)]}}))
}

#[test]
fn pods_spread_over_zones_and_not_over_nodes_unless_asked() {
    let mut core = core(&two_zones());
    (0..4).for_each(|i| tell(&mut core, &pod(&format!("p{i}"), "100m", spread("zone", json!({}))), MS(0)));
    let counts = placed(&mut core, MS(0));
    assert_eq!(counts["b1"], 2);
    assert_eq!(counts.values().sum::<usize>(), 4);
}

#[test]
fn a_place_over_the_skew_is_refused_and_one_without_the_label_too() {
    let mut nodes = two_zones();
    nodes.push(node("nowhere", json!({})));
    let crowd = [on("a1", "w1", "1m", app("web")), on("a2", "w2", "1m", app("web"))];
    nodes[2] = node("b1", json!({"metadata": {"labels": {"zone": "b"}}, "spec": {"unschedulable": true}}));
    assert_eq!(
        said(&mut cluster(&nodes, &crowd), &pod("p", "1m", spread("zone", json!({})))),
        "0/4 nodes are available: 1 node(s) didn't match pod topology spread constraints (missing required label), \
         1 node(s) were unschedulable, 2 node(s) didn't match pod topology spread constraints."
    );
}

#[test]
fn pods_on_their_way_out_of_other_namespaces_and_of_other_kinds_do_not_count() {
    let leaving = and(app("web"), json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}));
    let foreign = and(app("web"), json!({"metadata": {"namespace": "other"}}));
    let pods = [
        on("b1", "leaving", "1m", leaving),
        on("b1", "foreign", "1m", foreign),
        on("b1", "db", "1m", app("db")),
        on("a1", "web", "1m", app("web")),
    ];
    assert_eq!(said(&mut cluster(&two_zones(), &pods), &pod("p", "1m", spread("zone", json!({})))), "b1");
}

#[test]
fn fewer_places_than_asked_for_count_as_an_empty_one() {
    let pods = [on("a1", "w1", "1m", app("web")), on("b1", "w2", "1m", app("web"))];
    let with = |domains: i32| spread("zone", json!({"minDomains": domains}));
    assert!(!said(&mut cluster(&two_zones(), &pods), &pod("p", "1m", with(2))).starts_with("0/3"));
    assert_eq!(
        said(&mut cluster(&two_zones(), &pods), &pod("p", "1m", with(3))),
        "0/3 nodes are available: 3 node(s) didn't match pod topology spread constraints."
    );
}

#[test]
fn nodes_a_pod_cannot_use_count_only_where_the_policies_say_so() {
    // Zone b is out of reach by selector or by taint: whether its emptiness holds the pod up is a matter of policy.
    let nodes = [
        node("a1", json!({"metadata": {"labels": {"zone": "a", "disk": "ssd"}}})),
        node(
            "b1",
            json!({"metadata": {"labels": {"zone": "b"}}, "spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]}}),
        ),
    ];
    let pods = [on("a1", "w1", "1m", app("web"))];
    let goes = |extra: Value, selects: bool| {
        let selector = if selects { json!({"spec": {"nodeSelector": {"disk": "ssd"}}}) } else { json!({}) };
        said(&mut cluster(&nodes, &pods), &pod("p", "1m", and(spread("zone", extra), selector))) == "a1"
    };
    assert!(goes(json!({}), true), "node affinity is honoured unless the policy says otherwise");
    assert!(!goes(json!({"nodeAffinityPolicy": "Ignore"}), true));
    assert!(!goes(json!({}), false), "taints are ignored unless the policy says otherwise");
    assert!(goes(json!({"nodeTaintsPolicy": "Honor"}), false));
}

#[test]
fn only_pods_of_the_same_revision_count_with_match_label_keys() {
    let hash = |value: &str| labelled("pod-template-hash", value);
    let pods = [on("b1", "old1", "1m", and(app("web"), hash("1"))), on("b1", "old2", "1m", and(app("web"), hash("1")))];
    let constraint = spread("zone", json!({"matchLabelKeys": ["pod-template-hash"]}));
    let nodes = [
        node("b1", json!({"metadata": {"labels": {"zone": "b"}}})),
        node("full", and(labelled("zone", "a"), json!({"status": {"allocatable": {"cpu": "0"}}}))),
    ];
    assert_eq!(said(&mut cluster(&nodes, &pods), &pod("new", "1m", and(constraint, hash("2")))), "b1");
    assert!(said(&mut cluster(&nodes, &pods), &pod("new", "1m", spread("zone", json!({})))).starts_with("0/2"));
}

#[test]
fn a_wish_to_spread_draws_and_forbids_nothing() {
    let wish = || spread("zone", json!({"whenUnsatisfiable": "ScheduleAnyway"}));
    let crowd = [on("b1", "w1", "1m", app("web")), on("b1", "w2", "1m", app("web"))];
    assert!(said(&mut cluster(&two_zones(), &crowd), &pod("p", "1m", wish())).starts_with('a'));
    assert_eq!(said(&mut cluster(&two_zones()[2..], &crowd), &pod("p", "1m", wish())), "b1");
}

#[test]
fn pods_of_a_service_spread_without_being_told() {
    let crowd = [on("a1", "w1", "1m", app("web")), on("a1", "w2", "1m", app("web"))];
    let mut there = cluster(&two_zones(), &crowd);
    there.owners.service_changed(&crate::Key::new("ns", "web"), Some([("app".to_owned(), "web".to_owned())].into()));
    for i in 0..8 {
        assert_eq!(said(&mut there, &pod(&format!("p{i}"), "1m", app("web"))), "b1");
    }
}

#[test]
fn who_waits_for_company_is_woken_by_it_and_by_nothing_else() {
    let mut core = core(&two_zones());
    tell(&mut core, &pod("web", "1m", required("podAffinity", term("zone", "db"))), MS(0));
    assert!(next(&mut core, MS(0)).unwrap().starts_with("web: 0/3"));
    tell(&mut core, &on("a1", "other", "1m", app("other")), MS(1000));
    assert_eq!(next(&mut core, MS(1000)), None);
    tell(&mut core, &on("b1", "db", "1m", app("db")), MS(2000));
    assert_eq!(next(&mut core, MS(2000)).unwrap(), "web to b1");
}
