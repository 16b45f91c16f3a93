//! Owns the strategy of Services: defaults, what depends on the type, which addresses and ports are to
//! be handed out. Never hands them out: the core's allocators do.
//!
//! Proa's pod network is IPv4; dual-stack services are refused by name.

use proa_apimachinery::field::{FieldError, FieldErrors};
use proa_apimachinery::{Object, names};
use serde_json::{Map, Value, json};

use super::at::{At, map_in, maps_at, or_set, spec_mut};
use super::{Allocation, Op, Rules, meta, pod};

pub(super) const SERVICE: Rules = Rules {
    name: names::is_dns1035_label,
    status: true,
    default,
    prepare,
    validate,
    allocate,
    unsupported,
    ..Rules::GENERIC
};

/// What the service proxy does not do yet: a filter that does not filter would open what it should close.
fn unsupported(service: &Object) -> FieldErrors {
    let mut errors = FieldErrors::new();
    let ranges = At::of(service, "spec").child("loadBalancerSourceRanges");
    if !ranges.is_empty() {
        ranges.forbidden(&mut errors, "source ranges of load balancers are not supported by Proa yet");
    }
    errors
}

fn type_of(service: &Object) -> &str {
    service.get_str(&["spec", "type"]).unwrap_or("ClusterIP")
}

fn is_headless(service: &Object) -> bool {
    service.get_str(&["spec", "clusterIP"]) == Some("None")
}

fn needs_cluster_ip(service: &Object) -> bool {
    type_of(service) != "ExternalName"
}

fn needs_node_ports(service: &Object) -> bool {
    match type_of(service) {
        "NodePort" => true,
        "LoadBalancer" => service.get_bool(&["spec", "allocateLoadBalancerNodePorts"]) != Some(false),
        _ => false,
    }
}

fn needs_health_check(service: &Object) -> bool {
    type_of(service) == "LoadBalancer" && service.get_str(&["spec", "externalTrafficPolicy"]) == Some("Local")
}

fn text<'a>(map: &'a Map<String, Value>, field: &str) -> &'a str {
    map.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn default(object: &mut Object) {
    let spec = spec_mut(object);
    or_set(spec, "sessionAffinity", "None");
    or_set(spec, "type", "ClusterIP");
    if text(spec, "sessionAffinity") == "None" {
        spec.shift_remove("sessionAffinityConfig");
    } else if text(spec, "sessionAffinity") == "ClientIP" {
        or_set(map_in(map_in(spec, "sessionAffinityConfig"), "clientIP"), "timeoutSeconds", 10_800);
    }
    for port in maps_at(spec, "ports") {
        or_set(port, "protocol", "TCP");
        let unset = match port.get("targetPort") {
            None | Some(Value::Null) => true,
            Some(Value::Number(n)) => n.as_i64() == Some(0),
            Some(Value::String(t)) => t.is_empty(),
            Some(_) => false,
        };
        if let (true, Some(number)) = (unset, port.get("port").cloned()) {
            port.insert("targetPort".to_owned(), number);
        }
    }
    let type_ = text(spec, "type").to_owned();
    let external = matches!(type_.as_str(), "NodePort" | "LoadBalancer")
        || (type_ == "ClusterIP" && spec.get("externalIPs").and_then(Value::as_array).is_some_and(|l| !l.is_empty()));
    if external {
        or_set(spec, "externalTrafficPolicy", "Cluster");
    }
    if type_ != "ExternalName" {
        or_set(spec, "internalTrafficPolicy", "Cluster");
    }
    if type_ == "LoadBalancer" {
        or_set(spec, "allocateLoadBalancerNodePorts", true);
    }
}

/// `clusterIP` and `clusterIPs` say the same thing; whichever changed wins.
fn normalize_ips(new: &mut Object, old: Option<&Object>) {
    let ip = new.get_str(&["spec", "clusterIP"]).unwrap_or_default().to_owned();
    let list = new.get_list(&["spec", "clusterIPs"]).to_vec();
    let old_ip = old.and_then(|o| o.get_str(&["spec", "clusterIP"])).unwrap_or_default();
    let old_list = old.map_or(&[][..], |o| o.get_list(&["spec", "clusterIPs"]));
    let spec = spec_mut(new);
    if list.is_empty() || (ip != old_ip && list == old_list) {
        if ip.is_empty() {
            spec.shift_remove("clusterIPs");
        } else {
            spec.insert("clusterIPs".to_owned(), json!([ip]));
        }
    }
    if ip.is_empty() {
        if old.is_none() || old_list != list {
            if let Some(first) = list.first() {
                spec.insert("clusterIP".to_owned(), first.clone());
            }
        } else {
            spec.shift_remove("clusterIP");
            spec.shift_remove("clusterIPs");
        }
    }
}

fn prepare(op: Op, new: &mut Object, old: Option<&Object>) {
    match op {
        Op::Create | Op::Update => {}
        Op::UpdateStatus | Op::Delete => return,
    }
    if op == Op::Create {
        new.set(&["status"], json!({"loadBalancer": {}}));
    }
    normalize_ips(new, old);
    if let Some(old) = old {
        keep_allocated(new, old);
        drop_what_the_type_had(new, old);
    }
    if needs_cluster_ip(new) {
        let spec = spec_mut(new);
        or_set(spec, "ipFamilyPolicy", "SingleStack");
        if spec.get("ipFamilies").and_then(Value::as_array).is_none_or(|l| l.is_empty()) {
            spec.insert("ipFamilies".to_owned(), json!(["IPv4"]));
        }
    }
}

/// An update that leaves out what was handed out keeps it (`patchAllocatedValues` upstream).
fn keep_allocated(new: &mut Object, old: &Object) {
    if needs_cluster_ip(new) && needs_cluster_ip(old) {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            let value = old.get(&["spec", field]).cloned();
            if let (None, Some(value)) = (new.get(&["spec", field]), value) {
                new.set(&["spec", field], value);
            }
        }
    }
    if needs_node_ports(new) && needs_node_ports(old) {
        let number = |port: &Value, field: &str| port.get(field).and_then(Value::as_i64).unwrap_or(0);
        let mut used: Vec<i64> =
            new.get_list(&["spec", "ports"]).iter().map(|p| number(p, "nodePort")).filter(|n| *n != 0).collect();
        let before = old.get_list(&["spec", "ports"]);
        for port in new.get_mut(&["spec", "ports"]).and_then(Value::as_array_mut).into_iter().flatten() {
            if number(port, "nodePort") != 0 {
                continue;
            }
            let same = before
                .iter()
                .find(|p| number(p, "port") == number(port, "port") && p.get("protocol") == port.get("protocol"));
            let kept = same.map_or(0, |p| number(p, "nodePort"));
            if kept != 0 && !used.contains(&kept) {
                used.push(kept);
                if let Value::Object(port) = port {
                    port.insert("nodePort".to_owned(), kept.into());
                }
            }
        }
    }
    if needs_health_check(new)
        && needs_health_check(old)
        && new.get_i64(&["spec", "healthCheckNodePort"]).is_none()
        && let Some(port) = old.get(&["spec", "healthCheckNodePort"]).cloned()
    {
        new.set(&["spec", "healthCheckNodePort"], port);
    }
}

/// A change of type lets go of what only the old type had, unless the user changed it too
/// (`dropTypeDependentFields` upstream).
fn drop_what_the_type_had(new: &mut Object, old: &Object) {
    let same = |new: &Object, field: &str| new.get(&["spec", field]) == old.get(&["spec", field]);
    if needs_cluster_ip(old) && !needs_cluster_ip(new) {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"] {
            if same(new, field) {
                new.remove(&["spec", field]);
            }
        }
    }
    if needs_node_ports(old) && !needs_node_ports(new) {
        let before: Vec<Option<Value>> =
            old.get_list(&["spec", "ports"]).iter().map(|p| p.get("nodePort").cloned()).collect();
        for port in new.get_mut(&["spec", "ports"]).and_then(Value::as_array_mut).into_iter().flatten() {
            if before.contains(&port.get("nodePort").cloned())
                && let Value::Object(map) = port
            {
                map.shift_remove("nodePort");
            }
        }
    }
    if needs_health_check(old) && !needs_health_check(new) && same(new, "healthCheckNodePort") {
        new.remove(&["spec", "healthCheckNodePort"]);
    }
    let (before, now) = (type_of(old).to_owned(), type_of(new).to_owned());
    let mut drop = |fields: &[&str]| {
        for field in fields {
            if same(new, field) {
                new.remove(&["spec", field]);
            }
        }
    };
    if now != "LoadBalancer" {
        drop(&["allocateLoadBalancerNodePorts", "loadBalancerClass", "loadBalancerIP"]);
    }
    if !matches!(now.as_str(), "LoadBalancer" | "NodePort") && old.get_list(&["spec", "externalIPs"]).is_empty() {
        drop(&["externalTrafficPolicy"]);
    }
    if now != "ExternalName" && before == "ExternalName" {
        drop(&["externalName"]);
    }
    if now != "LoadBalancer" && new.get(&["status", "loadBalancer"]).is_some() {
        new.set(&["status", "loadBalancer"], json!({}));
    }
}

fn validate(op: Op, new: &Object, old: Option<&Object>, errors: &mut FieldErrors) {
    let spec = At::of(new, "spec");
    let type_ = type_of(new);
    let headless = is_headless(new);
    let ports = spec.child("ports");
    if ports.is_empty() && !headless && type_ != "ExternalName" {
        ports.missing(errors, "");
    }
    spec.child("type").one_of(errors, &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]);
    match type_ {
        "ExternalName" => {
            let name = spec.child("externalName");
            let bare = name.str().strip_suffix('.').unwrap_or(name.str());
            if bare.is_empty() {
                name.missing(errors, "");
            } else {
                for detail in names::is_dns1123_subdomain(bare) {
                    name.invalid(errors, detail);
                }
            }
            if !spec.child("clusterIPs").is_empty() {
                spec.child("clusterIPs").forbidden(errors, "may not be set for ExternalName services");
            }
        }
        "NodePort" | "LoadBalancer" if headless => {
            let first = At::new(
                spec.child("clusterIPs").items().next().and_then(|a| a.value),
                spec.child("clusterIPs").path.index(0),
            );
            first.invalid(errors, format!("may not be set to 'None' for {type_} services"));
        }
        _ => {}
    }
    validate_ports(&ports, type_, errors);
    meta::labels(spec.child("selector").value, &spec.child("selector").path, errors);
    let affinity = spec.child("sessionAffinity");
    if affinity.required(errors) {
        affinity.one_of(errors, &["ClientIP", "None"]);
    }
    let timeout = spec.child("sessionAffinityConfig").child("clientIP").child("timeoutSeconds");
    timeout.range(errors, 1, 86_400);
    for ip in spec.child("externalIPs").items() {
        ip.check(errors, names::is_ip);
    }
    for range in spec.child("loadBalancerSourceRanges").items() {
        range.check(errors, names::is_cidr);
    }
    spec.child("externalTrafficPolicy").one_of(errors, &["Cluster", "Local"]);
    spec.child("internalTrafficPolicy").one_of(errors, &["Cluster", "Local"]);
    addresses(&spec, errors);
    if let (Op::Update, Some(old)) = (op, old)
        && needs_cluster_ip(old)
        && needs_cluster_ip(new)
    {
        let before = old.get_list(&["spec", "clusterIPs"]).first().and_then(Value::as_str).unwrap_or_default();
        let now = new.get_str(&["spec", "clusterIP"]).unwrap_or_default();
        if !before.is_empty() && before != now {
            let at = spec.child("clusterIPs");
            let at = At::new(at.value, at.path.index(0));
            at.invalid(errors, "may not change once set");
        }
    }
}

fn addresses(spec: &At<'_>, errors: &mut FieldErrors) {
    let ips = spec.child("clusterIPs");
    for (i, ip) in ips.items().enumerate() {
        if i == 0 && ip.str() != spec.child("clusterIP").str() {
            ips.invalid(errors, "element [0] must match clusterIP");
        }
        if ip.str() == "None" {
            if ips.len() > 1 {
                ip.invalid(errors, "'None' must be the first and only value");
            }
            continue;
        }
        ip.check(errors, names::is_ip);
        if ip.str().contains(':') {
            ip.invalid(errors, "IPv6 is not configured on this cluster");
        }
    }
    if ips.len() > 1 {
        errors.push(FieldError::too_many(&ips.path, ips.len(), 1));
    }
    let policy = spec.child("ipFamilyPolicy");
    policy.one_of(errors, &["SingleStack", "PreferDualStack", "RequireDualStack"]);
    if policy.str() == "RequireDualStack" {
        policy.invalid(errors, "this cluster is not configured for dual-stack services");
    }
    for family in spec.child("ipFamilies").items() {
        family.one_of(errors, &["IPv4", "IPv6"]);
        if family.str() == "IPv6" {
            family.invalid(errors, "not configured on this cluster");
        }
    }
}

fn validate_ports(ports: &At<'_>, type_: &str, errors: &mut FieldErrors) {
    let mut seen_names = Vec::new();
    let mut seen_ports = Vec::new();
    let mut seen_nodes = Vec::new();
    for port in ports.items() {
        let name = port.child("name");
        if name.is_empty() {
            if ports.len() > 1 {
                name.missing(errors, "");
            }
        } else {
            name.check(errors, names::is_dns1123_label);
            if seen_names.contains(&name.str()) {
                name.duplicate(errors);
            }
            seen_names.push(name.str());
        }
        let number = port.child("port");
        if !(1..=65535).contains(&number.int().unwrap_or(0)) {
            errors.push(FieldError::invalid(
                &number.path,
                number.int().unwrap_or(0),
                "must be between 1 and 65535, inclusive",
            ));
        }
        let protocol = port.child("protocol");
        if protocol.required(errors) {
            protocol.one_of(errors, &["SCTP", "TCP", "UDP"]);
        }
        pod::validate_port(&port.child("targetPort"), errors);
        port.child("appProtocol").check(errors, names::is_qualified_name);
        let key = (protocol.str(), number.int());
        if seen_ports.contains(&key) {
            errors.push(FieldError::duplicate(&port.path, json!({"protocol": key.0, "port": key.1})));
        }
        seen_ports.push(key);
        let node = port.child("nodePort");
        if let Some(number) = node.int().filter(|n| *n != 0) {
            if matches!(type_, "ClusterIP" | "ExternalName") {
                node.forbidden(errors, format!("may not be used when `type` is '{type_}'"));
            }
            node.range(errors, 1, 65535);
            let key = (protocol.str(), number);
            if seen_nodes.contains(&key) {
                errors.push(FieldError::duplicate(&node.path, number));
            }
            seen_nodes.push(key);
        }
    }
}

/// What a service holds: its addresses and its node ports.
fn held(service: &Object) -> (Vec<String>, Vec<u16>) {
    let ips = if needs_cluster_ip(service) {
        let list = service.get_list(&["spec", "clusterIPs"]).iter().filter_map(Value::as_str);
        list.filter(|ip| *ip != "None" && !ip.is_empty()).map(str::to_owned).collect()
    } else {
        Vec::new()
    };
    let port = |v: Option<&Value>| v.and_then(Value::as_u64).and_then(|n| u16::try_from(n).ok()).filter(|n| *n != 0);
    let mut ports: Vec<u16> =
        service.get_list(&["spec", "ports"]).iter().filter_map(|p| port(p.get("nodePort"))).collect();
    ports.extend(port(service.get(&["spec", "healthCheckNodePort"])));
    ports.sort_unstable();
    ports.dedup();
    (ips, ports)
}

fn allocate(op: Op, new: &Object, old: Option<&Object>) -> Vec<Allocation> {
    let (old_ips, old_ports) = old.map(held).unwrap_or_default();
    let mut wanted = Vec::new();
    match op {
        Op::UpdateStatus => return wanted,
        Op::Delete => {
            let (ips, ports) = held(new);
            wanted.extend(ips.into_iter().map(Allocation::ReleaseClusterIp));
            wanted.extend(ports.into_iter().map(Allocation::ReleaseNodePort));
            return wanted;
        }
        Op::Create | Op::Update => {}
    }
    let (ips, ports) = held(new);
    if needs_cluster_ip(new) && !is_headless(new) {
        match ips.first() {
            None => wanted.push(Allocation::ClusterIp { index: 0, requested: None, ipv6: false }),
            Some(ip) if !old_ips.contains(ip) => {
                wanted.push(Allocation::ClusterIp { index: 0, requested: Some(ip.clone()), ipv6: ip.contains(':') });
            }
            Some(_) => {}
        }
    }
    if needs_node_ports(new) {
        let mut asked: Vec<u16> = Vec::new();
        for (index, port) in new.get_list(&["spec", "ports"]).iter().enumerate() {
            let number = port.get("nodePort").and_then(Value::as_u64).and_then(|n| u16::try_from(n).ok()).unwrap_or(0);
            match number {
                0 => wanted.push(Allocation::NodePort { index, requested: None }),
                // One number serves several protocols of one service.
                n if old_ports.contains(&n) || asked.contains(&n) => {}
                n => {
                    asked.push(n);
                    wanted.push(Allocation::NodePort { index, requested: Some(n) });
                }
            }
        }
    }
    if needs_health_check(new) {
        let number =
            new.get_i64(&["spec", "healthCheckNodePort"]).and_then(|n| u16::try_from(n).ok()).filter(|n| *n != 0);
        if number.is_none_or(|n| !old_ports.contains(&n)) {
            wanted.push(Allocation::HealthCheckNodePort { requested: number });
        }
    }
    wanted.extend(old_ips.into_iter().filter(|ip| !ips.contains(ip)).map(Allocation::ReleaseClusterIp));
    wanted.extend(old_ports.into_iter().filter(|p| !ports.contains(p)).map(Allocation::ReleaseNodePort));
    wanted
}
