//! Owns the strategies of the networking.k8s.io kinds. Never routes or filters.

use proa_apimachinery::field::FieldErrors;
use proa_apimachinery::field::Path;
use proa_apimachinery::{Object, names};
use serde_json::{Value, json};

use super::at::{At, maps_at, or_set, spec_mut};
use super::{Op, Rules, meta, pod};

pub(super) const INGRESS: Rules = Rules { prepare: empty_balancer, validate: ingress, ..Rules::WITH_STATUS };

fn empty_balancer(op: Op, new: &mut Object, _: Option<&Object>) {
    if op == Op::Create {
        new.set(&["status"], json!({"loadBalancer": {}}));
    }
}

fn ingress(_: Op, new: &Object, _: Option<&Object>, errors: &mut FieldErrors) {
    let spec = At::of(new, "spec");
    let (rules, default) = (spec.child("rules"), spec.child("defaultBackend"));
    if rules.is_empty() && !default.present() {
        spec.invalid(errors, "either `defaultBackend` or `rules` must be specified");
    }
    if default.present() {
        backend(&default, errors);
    }
    spec.child("ingressClassName").check(errors, names::is_dns1123_subdomain);
    for tls in spec.child("tls").items() {
        for host in tls.child("hosts").items() {
            name_of_host(&host, errors);
        }
        tls.child("secretName").check(errors, names::is_dns1123_subdomain);
    }
    for rule in rules.items() {
        let host = rule.child("host");
        if !host.str().is_empty() {
            if host.str().parse::<std::net::IpAddr>().is_ok() {
                host.invalid(errors, "must be a DNS name, not an IP address");
            }
            name_of_host(&host, errors);
        }
        let http = rule.child("http");
        let paths = http.child("paths");
        if http.present() && paths.is_empty() {
            paths.missing(errors, "");
        }
        for path in paths.items() {
            let type_ = path.child("pathType");
            if type_.is_empty() {
                type_.missing(errors, "pathType must be specified");
            }
            type_.one_of(errors, &["Exact", "ImplementationSpecific", "Prefix"]);
            let text = path.child("path");
            let rooted = text.str().starts_with('/');
            if !rooted && (matches!(type_.str(), "Exact" | "Prefix") || !text.str().is_empty()) {
                errors.push(proa_apimachinery::FieldError::invalid(&text.path, text.str(), "must be an absolute path"));
            }
            backend(&path.child("backend"), errors);
        }
    }
}

fn name_of_host(host: &At<'_>, errors: &mut FieldErrors) {
    if host.str().contains('*') {
        host.check(errors, names::is_wildcard_dns1123_subdomain);
    } else {
        host.check(errors, names::is_dns1123_subdomain);
    }
}

fn backend(backend: &At<'_>, errors: &mut FieldErrors) {
    let (service, resource) = (backend.child("service"), backend.child("resource"));
    match (service.present(), resource.present()) {
        (true, true) => backend.invalid(errors, "cannot set both resource and service backends"),
        (false, false) => backend.missing(errors, "resource or service backend is required"),
        (true, false) => {
            service.child("name").require(errors, names::is_dns1035_label);
            let (name, number) = (service.child("port").child("name"), service.child("port").child("number"));
            let numbered = number.int().is_some_and(|n| n != 0);
            match (name.is_empty(), numbered) {
                (true, false) => service.missing(errors, "port name or number is required"),
                (false, true) => service.invalid(errors, "cannot set both port name & port number"),
                _ => {}
            }
            name.check(errors, names::is_port_name);
            if numbered {
                number.range(errors, 1, 65535);
            }
        }
        (false, true) => {
            resource.child("name").required(errors);
            resource.child("kind").required(errors);
        }
    }
}

pub(super) const INGRESS_CLASS: Rules = Rules {
    default: |object| {
        if let Some(parameters) = super::at::map_at(spec_mut(object), "parameters") {
            or_set(parameters, "scope", "Cluster");
        }
    },
    validate: |_, new, old, errors| {
        At::of(new, "spec").child("controller").required(errors);
        if let Some(old) = old {
            let path = ["spec", "controller"];
            meta::immutable(new.get(&path), old.get(&path), &Path::of("spec.controller"), errors);
        }
    },
    ..Rules::COUNTED
};

pub(super) const NETWORK_POLICY: Rules = Rules {
    default: |object| {
        let spec = spec_mut(object);
        for list in ["ingress", "egress"] {
            for rule in maps_at(spec, list) {
                for port in maps_at(rule, "ports") {
                    or_set(port, "protocol", "TCP");
                }
            }
        }
        if spec.get("policyTypes").and_then(Value::as_array).is_none_or(|l| l.is_empty()) {
            let egress = spec.get("egress").and_then(Value::as_array).is_some_and(|l| !l.is_empty());
            let types = if egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) };
            spec.insert("policyTypes".to_owned(), types);
        }
    },
    validate: |_, new, _, errors| {
        let spec = At::of(new, "spec");
        pod::label_selector(&spec.child("podSelector"), errors);
        for type_ in spec.child("policyTypes").items() {
            type_.one_of(errors, &["Egress", "Ingress"]);
        }
        for (list, peers) in [("ingress", "from"), ("egress", "to")] {
            for rule in spec.child(list).items() {
                for port in rule.child("ports").items() {
                    port.child("protocol").one_of(errors, &["SCTP", "TCP", "UDP"]);
                    if port.child("port").present() {
                        pod::validate_port(&port.child("port"), errors);
                    }
                    let (first, last) = (port.child("port"), port.child("endPort"));
                    if last.int().is_some() {
                        match first.int() {
                            None => last.invalid(errors, "may not be specified when `port` is non-numeric"),
                            Some(first) if last.int().is_some_and(|l| l < first) => {
                                last.invalid(errors, "must be greater than or equal to `port`");
                            }
                            Some(_) => {}
                        }
                    }
                }
                for peer in rule.child(peers).items() {
                    peer_rules(&peer, errors);
                }
            }
        }
    },
    ..Rules::COUNTED
};

fn peer_rules(peer: &At<'_>, errors: &mut FieldErrors) {
    let (pods, namespaces, block) = (peer.child("podSelector"), peer.child("namespaceSelector"), peer.child("ipBlock"));
    pod::label_selector(&pods, errors);
    pod::label_selector(&namespaces, errors);
    if !pods.present() && !namespaces.present() && !block.present() {
        peer.missing(errors, "must specify a peer");
    }
    if block.present() {
        if pods.present() || namespaces.present() {
            peer.forbidden(errors, "may not specify both ipBlock and another peer");
        }
        block.child("cidr").require(errors, names::is_cidr);
        for except in block.child("except").items() {
            except.check(errors, names::is_cidr);
        }
    }
}

pub(super) const IP_ADDRESS: Rules = Rules {
    name: names::is_ip,
    validate: |_, new, old, errors| {
        let parent = At::of(new, "spec").child("parentRef");
        if !parent.present() {
            parent.missing(errors, "");
        }
        if let Some(old) = old {
            let path = ["spec", "parentRef"];
            meta::immutable(new.get(&path), old.get(&path), &parent.path, errors);
        }
    },
    ..Rules::GENERIC
};

pub(super) const SERVICE_CIDR: Rules = Rules {
    status: true,
    validate: |_, new, old, errors| {
        let cidrs = At::of(new, "spec").child("cidrs");
        if cidrs.is_empty() {
            cidrs.missing(errors, "at least one CIDR required");
        }
        for cidr in cidrs.items() {
            cidr.check(errors, names::is_cidr);
        }
        if let Some(old) = old {
            meta::immutable(cidrs.value, old.get(&["spec", "cidrs"]), &cidrs.path, errors);
        }
    },
    ..Rules::GENERIC
};
