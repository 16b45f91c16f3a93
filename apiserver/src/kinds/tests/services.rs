use serde_json::json;

use super::super::{Allocation, Op};
use super::*;

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{port: 80}]}
";

#[test]
fn a_service_gets_every_default() {
    let service = created(SERVICE);
    assert_eq!(
        service.0["spec"],
        json!({"selector": {"app": "web"}, "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}],
            "sessionAffinity": "None", "type": "ClusterIP", "internalTrafficPolicy": "Cluster",
            "ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4"]})
    );
    assert_eq!(service.0["status"], json!({"loadBalancer": {}}));
}

#[test]
fn what_is_wrong_with_a_service() {
    table(
        SERVICE,
        &[
            (&[("spec.ports", "[]")], "spec.ports: Required value"),
            (&[("spec.ports", "[]"), ("spec.clusterIP", "None")], ""),
            (
                &[("spec.ports.0.port", "0")],
                "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive\nspec.ports[0].targetPort: Invalid value: 0: must be between 1 and 65535, inclusive",
            ),
            (&[("spec.ports", "[{port: 80, name: a}, {port: 81}]")], "spec.ports[1].name: Required value"),
            (
                &[("spec.ports", "[{port: 80, name: a}, {port: 80, name: b}]")],
                "spec.ports[1]: Duplicate value: {\"protocol\":\"TCP\",\"port\":80}",
            ),
            (
                &[("spec.ports.0.nodePort", "30000")],
                "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'",
            ),
            (&[("spec.type", "ExternalName")], "spec.externalName: Required value"),
            (&[("spec.type", "ExternalName"), ("spec.externalName", "example.com")], ""),
            (
                &[("spec.type", "Magic")],
                "spec.type: Unsupported value: \"Magic\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\"",
            ),
            (
                &[("spec.type", "NodePort"), ("spec.clusterIP", "None")],
                "spec.clusterIPs[0]: Invalid value: \"None\": may not be set to 'None' for NodePort services",
            ),
            (
                &[("spec.clusterIP", "nonsense")],
                "spec.clusterIPs[0]: Invalid value: \"nonsense\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            ),
            (
                &[("spec.ipFamilyPolicy", "RequireDualStack")],
                "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack services",
            ),
            (
                &[("metadata.name", "1web")],
                "metadata.name: Invalid value: \"1web\": a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')",
            ),
        ],
    );
}

fn asked(op: Op, new: &Object, old: Option<&Object>) -> Vec<Allocation> {
    kind_of(new).strategy.allocate(op, new, old)
}

#[test]
fn addresses_and_ports_are_asked_for_and_given_back() {
    let any = Allocation::ClusterIp { index: 0, requested: None, ipv6: false };
    assert_eq!(asked(Op::Create, &created(SERVICE), None), std::slice::from_ref(&any));
    let mut headless = with(SERVICE, &[("spec.clusterIP", "None")]);
    let strategy = kind_of(&headless).strategy;
    strategy.default(&mut headless);
    strategy.prepare(Op::Create, &mut headless, None);
    assert_eq!(asked(Op::Create, &headless, None), []);

    let mut node = with(SERVICE, &[("spec.type", "NodePort")]);
    strategy.default(&mut node);
    strategy.prepare(Op::Create, &mut node, None);
    assert_eq!(asked(Op::Create, &node, None), [any, Allocation::NodePort { index: 0, requested: None }]);

    // As stored, after the allocators.
    node.set(&["spec", "clusterIP"], "10.96.0.5");
    node.set(&["spec", "clusterIPs"], json!(["10.96.0.5"]));
    node.0["spec"]["ports"][0]["nodePort"] = 30_001.into();

    // An update that leaves them out keeps them.
    let again = with(SERVICE, &[("spec.type", "NodePort")]);
    let kept = update(&node, &again, Op::Update).unwrap();
    assert_eq!(kept.get_str(&["spec", "clusterIP"]), Some("10.96.0.5"));
    assert_eq!(kept.0["spec"]["ports"][0]["nodePort"], 30_001);
    assert_eq!(asked(Op::Update, &kept, Some(&node)), []);

    // A change of type gives the port back.
    let mut plain = node.clone();
    plain.set(&["spec", "type"], "ClusterIP");
    let plain = update(&node, &plain, Op::Update).unwrap();
    assert_eq!(plain.0["spec"]["ports"][0].get("nodePort"), None);
    assert_eq!(plain.get(&["spec", "externalTrafficPolicy"]), None);
    assert_eq!(asked(Op::Update, &plain, Some(&node)), [Allocation::ReleaseNodePort(30_001)]);

    assert_eq!(
        asked(Op::Delete, &node, None),
        [Allocation::ReleaseClusterIp("10.96.0.5".into()), Allocation::ReleaseNodePort(30_001)]
    );
}

#[test]
fn a_filter_that_would_not_filter_is_refused() {
    let service = with(SERVICE, &[("spec.type", "LoadBalancer"), ("spec.loadBalancerSourceRanges", "[192.0.2.0/24]")]);
    let refused: Vec<String> =
        kind_of(&service).strategy.unsupported(&service).iter().map(ToString::to_string).collect();
    assert_eq!(
        refused,
        ["spec.loadBalancerSourceRanges: Forbidden: source ranges of load balancers are not supported by Proa yet"]
    );
}

#[test]
fn a_cluster_ip_does_not_change() {
    let mut old = stored(SERVICE);
    old.set(&["spec", "clusterIP"], "10.96.0.5");
    old.set(&["spec", "clusterIPs"], json!(["10.96.0.5"]));
    let mut new = old.clone();
    new.set(&["spec", "clusterIP"], "10.96.0.6");
    let refused = update(&old, &new, Op::Update).unwrap_err();
    assert_eq!(refused, ["spec.clusterIPs[0]: Invalid value: [\"10.96.0.6\"]: may not change once set"]);
}
