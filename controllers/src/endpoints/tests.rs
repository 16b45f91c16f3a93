//! Stories and laws of the addresses behind a service.

use super::*;
use k8s_openapi::api::discovery::v1::Endpoint;
use proa_crds::Family;
use proptest::prelude::*;
use serde_json::{Value, json};

fn service(extra: Value) -> Arc<Service> {
    let mut service = json!({
        "metadata": {"name": "web", "namespace": "ns", "uid": "svc-uid", "labels": {"team": "a"}},
        "spec": {"selector": {"app": "web"}, "clusterIP": "10.96.0.7", "ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
    });
    json_patch(&mut service, extra);
    Arc::new(serde_json::from_value(service).unwrap())
}

fn json_patch(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            from.into_iter().for_each(|(key, value)| json_patch(into.entry(key).or_insert(Value::Null), value));
        }
        (into, from) => *into = from,
    }
}

fn pod(n: u32, ready: bool, going: bool) -> Arc<Pod> {
    let mut pod = json!({
        "metadata": {"name": format!("web-{n}"), "namespace": "ns", "uid": format!("pod-{n}"), "labels": {"app": "web"}},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "ports": [{"name": "named", "containerPort": 9000}]}]},
        "status": {"phase": "Running", "podIP": format!("10.0.{}.{}", n / 250, n % 250),
            "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
    });
    if going {
        pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    }
    Arc::new(serde_json::from_value(pod).unwrap())
}

fn seen(service: Arc<Service>, pods: Vec<Arc<Pod>>, slices: Vec<Arc<EndpointSlice>>) -> Seen {
    let resources = (Family::Standard.service(), Family::Standard.endpoint_slice());
    Seen { service, pods, slices, zones: BTreeMap::from([("n1".to_owned(), "z1".to_owned())]), resources }
}

/// Carries out a plan as the server would.
fn carry_out(slices: &mut Vec<Arc<EndpointSlice>>, actions: Vec<Action>) -> usize {
    let count = actions.len();
    for action in actions {
        match action {
            Action::Create(slice) => {
                assert!(!slices.iter().any(|held| held.metadata.name == slice.metadata.name));
                slices.push(Arc::new(*slice));
            }
            Action::Patch(name, patch) => {
                let held = slices.iter_mut().find(|slice| slice.name_any() == name).unwrap();
                let mut value = serde_json::to_value(held.as_ref()).unwrap();
                apply(&mut value, patch);
                *held = Arc::new(serde_json::from_value(value).unwrap());
            }
            Action::Delete(name) => slices.retain(|slice| slice.name_any() != name),
        }
    }
    count
}

fn apply(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else { return *target = patch };
    for (key, value) in patch {
        match value {
            Value::Null => drop(target.as_object_mut().unwrap().remove(&key)),
            value if value.is_object() && target[&key].is_object() => apply(&mut target[&key], value),
            value => target[&key] = value,
        }
    }
}

fn settle(service: &Arc<Service>, pods: &[Arc<Pod>], slices: &mut Vec<Arc<EndpointSlice>>) -> usize {
    let writes = carry_out(slices, plan(&seen(service.clone(), pods.to_vec(), slices.clone())).actions);
    let again = plan(&seen(service.clone(), pods.to_vec(), slices.clone())).actions;
    assert!(again.is_empty(), "a plan carried out leaves nothing to do: {again:?}");
    writes
}

fn endpoints(slices: &[Arc<EndpointSlice>]) -> Vec<Endpoint> {
    slices.iter().flat_map(|slice| slice.endpoints.clone().unwrap_or_default()).collect()
}

#[test]
fn a_slice_tells_where_each_pod_is_and_how_it_is() {
    let mut slices = Vec::new();
    let pods = [pod(1, true, false), pod(2, false, false), pod(3, true, true)];
    settle(&service(json!({})), &pods, &mut slices);
    let [slice] = slices.as_slice() else { panic!("{slices:?}") };
    assert_eq!(slice.address_type, "IPv4");
    let labels: Vec<_> = slice.labels().iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(
        labels,
        [
            "endpointslice.kubernetes.io/managed-by=endpointslice-controller.k8s.io",
            "kubernetes.io/service-name=web",
            "team=a"
        ]
    );
    assert_eq!(slice.owner_references()[0].uid, "svc-uid");
    let port = &slice.ports.as_ref().unwrap()[0];
    assert_eq!((port.name.as_deref(), port.port, port.protocol.as_deref()), (Some("http"), Some(8080), Some("TCP")));
    let told: Vec<_> = endpoints(&slices)
        .iter()
        .map(|e| {
            let c = e.conditions.clone().unwrap();
            (
                e.addresses[0].clone(),
                c.ready.unwrap(),
                c.serving.unwrap(),
                c.terminating.unwrap(),
                e.zone.clone().unwrap(),
            )
        })
        .collect();
    let expected =
        [("10.0.0.1", true, true, false), ("10.0.0.2", false, false, false), ("10.0.0.3", false, true, true)];
    assert_eq!(told, expected.map(|(ip, r, s, t)| (ip.to_owned(), r, s, t, "z1".to_owned())));
}

#[test]
fn a_pod_that_has_ended_or_has_no_address_is_not_there() {
    let mut over = Pod::clone(&pod(1, true, false));
    over.status.as_mut().unwrap().phase = Some("Succeeded".into());
    let mut early = Pod::clone(&pod(2, false, false));
    early.status.as_mut().unwrap().pod_ip = None;
    let mut slices = Vec::new();
    settle(&service(json!({})), &[Arc::new(over), Arc::new(early)], &mut slices);
    assert_eq!(slices.len(), 1, "an empty slice says that there is nothing");
    assert!(endpoints(&slices).is_empty());
}

#[test]
fn a_service_may_want_addresses_before_they_are_ready() {
    let mut slices = Vec::new();
    settle(&service(json!({"spec": {"publishNotReadyAddresses": true}})), &[pod(1, false, true)], &mut slices);
    let conditions = endpoints(&slices)[0].conditions.clone().unwrap();
    assert_eq!((conditions.ready, conditions.serving, conditions.terminating), (Some(true), Some(false), Some(true)));
}

#[test]
fn a_named_port_is_looked_up_in_each_pod() {
    let mut other = Pod::clone(&pod(2, true, false));
    other.spec.containers[0].ports.as_mut().unwrap()[0].container_port = 9001;
    let mut slices = Vec::new();
    let named = service(json!({"spec": {"ports": [{"name": "http", "port": 80, "targetPort": "named"}]}}));
    settle(&named, &[pod(1, true, false), Arc::new(other)], &mut slices);
    let mut ports: Vec<_> = slices.iter().map(|slice| slice.ports.as_ref().unwrap()[0].port.unwrap()).collect();
    ports.sort();
    assert_eq!(ports, [9000, 9001], "pods with different ports are in different slices");
}

#[test]
fn services_that_are_not_ours_are_left_alone() {
    let mut selects_nothing = Service::clone(&service(json!({})));
    selects_nothing.spec.selector = Some(BTreeMap::new());
    let elsewhere = service(json!({"spec": {"type": "ExternalName"}}));
    for service in [Arc::new(selects_nothing), service(json!({"spec": {"selector": null}})), elsewhere] {
        assert!(plan(&seen(service, vec![pod(1, true, false)], vec![])).actions.is_empty());
    }
}

#[test]
fn one_pod_that_changes_costs_one_write_of_one_slice() {
    let pods: Vec<_> = (0..250).map(|n| pod(n, true, false)).collect();
    let mut slices = Vec::new();
    settle(&service(json!({})), &pods, &mut slices);
    assert_eq!(slices.len(), 3);
    let mut changed = pods.clone();
    changed[120] = pod(120, false, false);
    assert_eq!(settle(&service(json!({})), &changed, &mut slices), 1);
    changed.push(pod(300, true, false));
    assert_eq!(settle(&service(json!({})), &changed, &mut slices), 1);
    changed.truncate(10);
    settle(&service(json!({})), &changed, &mut slices);
    assert_eq!(endpoints(&slices).len(), 10);
}

#[test]
fn a_changed_port_makes_new_slices_before_it_removes_the_old() {
    let pods = [pod(1, true, false)];
    let mut slices = Vec::new();
    settle(&service(json!({})), &pods, &mut slices);
    let moved = service(json!({"spec": {"ports": [{"name": "http", "port": 80, "targetPort": 8081}]}}));
    let actions = plan(&seen(moved, pods.to_vec(), slices.clone())).actions;
    assert!(matches!(actions.as_slice(), [Action::Create(_), Action::Delete(_)]), "{actions:?}");
}

#[test]
fn a_slice_changed_by_someone_else_is_put_right() {
    let pods = [pod(1, true, false)];
    let mut slices = Vec::new();
    settle(&service(json!({})), &pods, &mut slices);
    let mut spoiled = EndpointSlice::clone(&slices[0]);
    spoiled.endpoints.as_mut().unwrap()[0].addresses = vec!["9.9.9.9".into()];
    slices[0] = Arc::new(spoiled);
    assert_eq!(settle(&service(json!({})), &pods, &mut slices), 1);
    assert_eq!(endpoints(&slices)[0].addresses, ["10.0.0.1"]);
}

proptest! {
    #[test]
    fn every_pod_is_in_exactly_one_slice_whatever_happened_before(
        histories in proptest::collection::vec(proptest::collection::btree_map(0..230u32, any::<(bool, bool)>(), 0..220), 1..5),
    ) {
        let mut slices = Vec::new();
        for history in histories {
            let pods: Vec<_> = history.iter().map(|(n, (ready, going))| pod(*n, *ready, *going)).collect();
            settle(&service(json!({})), &pods, &mut slices);
            let mut told: Vec<_> = endpoints(&slices).iter().map(|e| e.target_ref.as_ref().unwrap().uid.clone().unwrap()).collect();
            let mut expected: Vec<_> = pods.iter().map(|pod| pod.metadata.uid.clone().unwrap()).collect();
            told.sort();
            expected.sort();
            prop_assert_eq!(told, expected);
            prop_assert!(slices.iter().all(|slice| slice.endpoints.iter().flatten().count() <= 100));
        }
    }
}
