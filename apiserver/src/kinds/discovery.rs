//! Owns the strategies of Endpoints and EndpointSlices: who stands behind a service. Never finds out.

use proa_apimachinery::field::{FieldError, FieldErrors, Path};
use proa_apimachinery::{Object, names};
use serde_json::Value;

use super::at::{At, maps_at, or_set};
use super::{Rules, meta};

pub(super) const ENDPOINTS: Rules = Rules {
    default: |object| {
        for subset in maps_at(&mut object.0, "subsets") {
            for port in maps_at(subset, "ports") {
                or_set(port, "protocol", "TCP");
            }
        }
    },
    validate: |_, new, _, errors| {
        for subset in At::of(new, "subsets").items() {
            let (ready, waiting, ports) =
                (subset.child("addresses"), subset.child("notReadyAddresses"), subset.child("ports"));
            if ready.is_empty() && waiting.is_empty() {
                subset.missing(errors, "must specify `addresses` or `notReadyAddresses`");
            }
            for address in ready.items().chain(waiting.items()) {
                let ip = address.child("ip");
                for detail in names::is_ip(ip.str()) {
                    ip.invalid(errors, detail);
                }
                address.child("hostname").check(errors, names::is_dns1123_label);
                address.child("nodeName").check(errors, names::is_dns1123_subdomain);
            }
            for port in ports.items() {
                port_rules(&port, ports.len() > 1, errors);
            }
        }
    },
    ..Rules::GENERIC
};

fn port_rules(port: &At<'_>, named: bool, errors: &mut FieldErrors) {
    let name = port.child("name");
    if named && name.is_empty() {
        name.missing(errors, "");
    }
    name.check(errors, names::is_dns1123_label);
    if !(1..=65535).contains(&port.child("port").int().unwrap_or(0)) {
        port.child("port").invalid(errors, "must be between 1 and 65535, inclusive");
    }
    port.child("protocol").one_of(errors, &["SCTP", "TCP", "UDP"]);
}

pub(super) const ENDPOINT_SLICE: Rules = Rules {
    default: |object| {
        for port in maps_at(&mut object.0, "ports") {
            port.entry("name").or_insert_with(|| "".into());
            or_set(port, "protocol", "TCP");
        }
    },
    validate: slice,
    ..Rules::COUNTED
};

fn slice(_: super::Op, new: &Object, old: Option<&Object>, errors: &mut FieldErrors) {
    let type_ = At::of(new, "addressType");
    if type_.required(errors) {
        type_.one_of(errors, &["FQDN", "IPv4", "IPv6"]);
    }
    let endpoints = At::of(new, "endpoints");
    if endpoints.len() > 1000 {
        errors.push(FieldError::too_many(&endpoints.path, endpoints.len(), 1000));
    }
    for endpoint in endpoints.items() {
        let addresses = endpoint.child("addresses");
        match addresses.len() {
            0 => addresses.missing(errors, "must contain at least 1 address"),
            n if n > 100 => errors.push(FieldError::too_many(&addresses.path, n, 100)),
            _ => {}
        }
        for address in addresses.items() {
            let text = address.str();
            match type_.str() {
                "IPv4" if text.parse::<std::net::Ipv4Addr>().is_err() => {
                    address.invalid(errors, "must be a valid IPv4 address");
                }
                "IPv6" if text.parse::<std::net::Ipv6Addr>().is_err() => {
                    address.invalid(errors, "must be a valid IPv6 address");
                }
                "FQDN" => address.check(errors, names::is_dns1123_subdomain),
                _ => {}
            }
        }
        endpoint.child("nodeName").check(errors, names::is_dns1123_subdomain);
        endpoint.child("hostname").check(errors, names::is_dns1123_label);
    }
    let ports = At::of(new, "ports");
    if ports.len() > 20_000 {
        errors.push(FieldError::too_many(&ports.path, ports.len(), 20_000));
    }
    let mut seen: Vec<&str> = Vec::new();
    for port in ports.items() {
        let name = port.child("name");
        if !name.str().is_empty() {
            name.check(errors, names::is_dns1123_label);
        }
        if seen.contains(&name.str()) {
            name.duplicate(errors);
        }
        seen.push(name.str());
        port.child("port").range(errors, 1, 65535);
        let protocol = port.child("protocol");
        if protocol.required(errors) {
            protocol.one_of(errors, &["SCTP", "TCP", "UDP"]);
        }
        port.child("appProtocol").check(errors, names::is_qualified_name);
    }
    if let Some(old) = old {
        let before: Option<&Value> = old.0.get("addressType");
        meta::immutable(new.0.get("addressType"), before, &Path::of("addressType"), errors);
    }
}
