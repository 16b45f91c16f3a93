use super::*;

/// The cells of a manifest by heading: `HEADING=cell`, in order; wide ones after `|`.
#[track_caller]
fn shows(manifest: &str, expected: &str) {
    let object = parse(manifest);
    let kind = kind_of(&object);
    let now = "2026-01-01T01:00:00Z".parse().unwrap();
    let cell = |wide: bool| {
        kind.columns
            .iter()
            .filter(|c| (c.priority > 0) == wide)
            .map(|c| match c.cell(&object, now) {
                Value::String(text) => text,
                Value::Null => String::new(),
                other => other.to_string(),
            })
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(format!("{} | {}", cell(false), cell(true)).trim_end_matches(" | "), expected);
}

#[test]
fn tables_show_what_kubectl_users_know() {
    let meta = "metadata: {name: a, creationTimestamp: '2026-01-01T00:00:00Z'}";
    let template =
        "selector: {matchLabels: {app: x}}, template: {spec: {containers: [{name: c, image: i}, {name: d, image: j}]}}";
    shows(
        &format!(
            "{{apiVersion: apps/v1, kind: Deployment, {meta}, spec: {{replicas: 3, {template}}}, status: {{readyReplicas: 2, updatedReplicas: 3, availableReplicas: 1}}}}"
        ),
        "a 2/3 3 1 60m | c,d i,j app=x",
    );
    shows(
        &format!(
            "{{apiVersion: apps/v1, kind: ReplicaSet, {meta}, spec: {{replicas: 3, {template}}}, status: {{replicas: 3}}}}"
        ),
        "a 3 3 0 60m | c,d i,j app=x",
    );
    shows(
        &format!(
            "{{apiVersion: v1, kind: Service, {meta}, spec: {{type: NodePort, clusterIP: 10.0.0.1, clusterIPs: [10.0.0.1], selector: {{b: c, a: b}}, ports: [{{port: 80, nodePort: 30001, protocol: TCP}}, {{port: 53, protocol: UDP}}]}}}}"
        ),
        "a NodePort 10.0.0.1 <none> 80:30001/TCP,53/UDP 60m | a=b,b=c",
    );
    shows(
        &format!(
            "{{apiVersion: v1, kind: Service, {meta}, spec: {{type: LoadBalancer, clusterIP: 10.0.0.1, ports: [{{port: 80, protocol: TCP}}]}}}}"
        ),
        "a LoadBalancer 10.0.0.1 <pending> 80/TCP 60m | <none>",
    );
    shows(
        "{apiVersion: v1, kind: Node, metadata: {name: n1, labels: {node-role.kubernetes.io/control-plane: ''}}, spec: {unschedulable: true}, status: {conditions: [{type: Ready, status: 'True'}], addresses: [{type: InternalIP, address: 10.0.0.9}], nodeInfo: {kubeletVersion: v1.36.0}}}",
        "n1 Ready,SchedulingDisabled control-plane <unknown> v1.36.0 | 10.0.0.9 <none> <unknown> <unknown> <unknown>",
    );
    shows("{apiVersion: v1, kind: ConfigMap, metadata: {name: a}, data: {x: y}, binaryData: {z: ''}}", "a 2 <unknown>");
    shows(
        "{apiVersion: v1, kind: Endpoints, metadata: {name: a}, subsets: [{addresses: [{ip: 1.1.1.1}, {ip: 1.1.1.2}, {ip: 1.1.1.3}, {ip: 1.1.1.4}], ports: [{port: 80}]}]}",
        "a 1.1.1.1:80,1.1.1.2:80,1.1.1.3:80 + 1 more... <unknown>",
    );
    shows(
        "{apiVersion: v1, kind: Event, metadata: {name: e}, lastTimestamp: '2026-01-01T00:59:00Z', firstTimestamp: '2026-01-01T00:00:00Z', count: 4, type: Warning, reason: Failed, message: 'no ', involvedObject: {kind: Pod, name: p, fieldPath: f}, source: {component: kubelet, host: n1}}",
        "60s Warning Failed pod/p no | f kubelet, n1 60m 4 e",
    );
    shows(
        &format!("{{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, {meta}}}"),
        "a 2026-01-01T00:00:00Z",
    );
    shows(
        &format!(
            "{{apiVersion: batch/v1, kind: Job, {meta}, spec: {{completions: 2, {template}}}, status: {{succeeded: 1, startTime: '2026-01-01T00:58:00Z'}}}}"
        ),
        "a Running 1/2 2m 60m | c,d i,j app=x",
    );
    shows(
        "{apiVersion: autoscaling/v2, kind: HorizontalPodAutoscaler, metadata: {name: h}, spec: {minReplicas: 1, maxReplicas: 3, scaleTargetRef: {kind: Deployment, name: web}, metrics: [{type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 80}}}]}}",
        "h Deployment/web cpu: <unknown>/80% 1 3 0 <unknown>",
    );
    shows(
        "{apiVersion: storage.k8s.io/v1, kind: StorageClass, metadata: {name: s, annotations: {storageclass.kubernetes.io/is-default-class: 'true'}}, provisioner: p, reclaimPolicy: Delete, volumeBindingMode: Immediate}",
        "s (default) p Delete Immediate false <unknown>",
    );
}

#[test]
fn fields_can_be_selected() {
    let pod = parse("{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: b}, spec: {nodeName: n1}}");
    let kind = kind_of(&pod);
    for (field, value) in [
        ("metadata.name", Some("a")),
        ("metadata.namespace", Some("b")),
        ("spec.nodeName", Some("n1")),
        ("status.phase", Some("")),
        ("spec.hostNetwork", Some("false")),
        ("spec.containers", None),
    ] {
        assert_eq!(kind.field(&pod, field).as_deref(), value, "{field}");
    }
}
