//! What the cluster's own names answer. Pure: a question and the names in, records out.
//!
//! Behaviour: the specification "Kubernetes DNS-Based Service Discovery" 1.1.0; pod names as CoreDNS answers them with
//! `pods insecure`; negative answers as RFC 2308 wants them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::zone::{ServicePortName, Zone, ZoneEndpoint, ZoneService, undashed};
use crate::service::Protocol;

/// What `dns-version.<domain>` says.
const SPECIFICATION: &str = "1.1.0";
/// A service may be named `ExternalName` of another one; more steps than this are a circle.
const ALIASES: usize = 8;
const SRV_WEIGHT: u16 = 100;

/// A zone with what is needed to answer from it quickly.
pub(super) struct Names {
    pub(super) zone: Arc<Zone>,
    domain: Name,
    soa: Record,
    /// Names by address, for PTR.
    reverse: HashMap<IpAddr, Vec<Name>>,
    /// Where this server answers: the address of the zone's name server.
    servers: Vec<IpAddr>,
}

/// What to say to a question.
#[derive(Debug, Default)]
pub(super) struct Reply {
    pub(super) code: ResponseCode,
    pub(super) answers: Vec<Record>,
    pub(super) authorities: Vec<Record>,
    pub(super) additionals: Vec<Record>,
    /// The answers end in an alias for this name, which is not ours.
    pub(super) continues: Option<Name>,
}

/// What a name of the zone stands for.
enum Found<'a> {
    /// The name is not there.
    Nothing,
    /// It is there and has these records.
    Data(Vec<RData>),
    /// SRV records, with the addresses of their targets.
    Services(Vec<(SRV, IpAddr)>),
    /// An alias.
    Alias(&'a str),
}

impl Names {
    /// Prepares a zone; `serial` should grow with each.
    pub(super) fn new(zone: Arc<Zone>, serial: u32, servers: Vec<IpAddr>) -> Names {
        let domain = absolute(&zone.domain);
        let under = |label: &str| absolute(&format!("{label}.{}", zone.domain));
        let soa = SOA::new(under("ns.dns"), under("hostmaster"), serial, 7200, 1800, 86400, zone.ttl);
        let soa = Record::from_rdata(domain.clone(), zone.ttl, RData::SOA(soa));
        let mut reverse: HashMap<IpAddr, Vec<Name>> = HashMap::new();
        for ((namespace, name), service) in &zone.services {
            let base = format!("{name}.{namespace}.svc.{}", zone.domain);
            match service {
                ZoneService::Cluster { ips, .. } => {
                    for ip in ips {
                        reverse.entry(*ip).or_default().push(absolute(&base));
                    }
                }
                ZoneService::Headless { endpoints } => {
                    for endpoint in endpoints {
                        let name = absolute(&format!("{}.{base}", endpoint.label()));
                        reverse.entry(endpoint.ip).or_default().push(name);
                    }
                }
                ZoneService::External(_) => {}
            }
        }
        for names in reverse.values_mut() {
            names.sort();
            names.dedup();
        }
        Names { zone, domain, soa, reverse, servers }
    }

    /// Answers a question about a name of the cluster; `None` when it is about any other name.
    pub(super) fn answer(&self, name: &Name, kind: RecordType) -> Option<Reply> {
        if !self.domain.zone_of(name) {
            return self.answer_reverse(name, kind);
        }
        let mut reply = Reply::default();
        let mut owner = name.clone();
        for _ in 0..ALIASES {
            let found = self.find(&self.labels(&owner), kind);
            let record = |data| Record::from_rdata(owner.clone(), self.zone.ttl, data);
            match found {
                Found::Nothing => {
                    reply.code = ResponseCode::NXDomain;
                    break;
                }
                Found::Data(data) => {
                    reply.answers.extend(data.into_iter().map(record));
                    break;
                }
                Found::Services(services) => {
                    for (srv, ip) in services {
                        let address = Record::from_rdata(srv.target.clone(), self.zone.ttl, address(ip));
                        if !reply.additionals.contains(&address) {
                            reply.additionals.push(address);
                        }
                        reply.answers.push(record(RData::SRV(srv)));
                    }
                    break;
                }
                Found::Alias(target) => {
                    // Refused by the API's validation unless it is a DNS name.
                    let Ok(target) = Name::from_ascii(target).map(fully_qualified) else {
                        reply.code = ResponseCode::ServFail;
                        break;
                    };
                    reply.answers.push(record(RData::CNAME(CNAME(target.clone()))));
                    if kind == RecordType::CNAME {
                        return Some(reply);
                    }
                    if !self.domain.zone_of(&target) {
                        reply.continues = Some(target);
                        return Some(reply);
                    }
                    owner = target;
                }
            }
        }
        let empty = !reply.answers.iter().any(|r| r.record_type() != RecordType::CNAME);
        if empty {
            // Name error or no data: the zone's SOA says for how long (RFC 2308, sections 2.1 and 2.2).
            reply.authorities.push(self.soa.clone());
        }
        Some(reply)
    }

    fn answer_reverse(&self, name: &Name, kind: RecordType) -> Option<Reply> {
        if name.num_labels() < 2 || !name.to_lowercase().to_ascii().ends_with(".arpa.") {
            return None;
        }
        // A shorter name stands for a block, not for an address.
        let net = name.parse_arpa_name().ok().filter(|net| net.prefix_len() == net.max_prefix_len())?;
        let names = self.reverse.get(&net.addr())?;
        let pointers = names.iter().filter(|_| kind == RecordType::PTR);
        let answers: Vec<Record> = pointers
            .map(|target| Record::from_rdata(name.clone(), self.zone.ttl, RData::PTR(PTR(target.clone()))))
            .collect();
        let authorities = if answers.is_empty() { vec![self.soa.clone()] } else { vec![] };
        Some(Reply { answers, authorities, ..Reply::default() })
    }

    /// The labels of a name under the domain, lower case, last one first.
    fn labels(&self, name: &Name) -> Vec<String> {
        let count = usize::from(name.num_labels().saturating_sub(self.domain.num_labels()));
        let mut labels: Vec<String> =
            name.iter().take(count).map(|l| String::from_utf8_lossy(l).to_ascii_lowercase()).collect();
        labels.reverse();
        labels
    }

    fn find(&self, labels: &[String], kind: RecordType) -> Found<'_> {
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        let exists = |there: bool| if there { Found::Data(vec![]) } else { Found::Nothing };
        match labels.as_slice() {
            [] => Found::Data(match kind {
                RecordType::SOA => vec![self.soa.data.clone()],
                RecordType::NS => vec![RData::NS(NS(absolute(&format!("ns.dns.{}", self.zone.domain))))],
                _ => vec![],
            }),
            ["dns-version"] => Found::Data(match kind {
                RecordType::TXT | RecordType::ANY => vec![RData::TXT(TXT::new(vec![SPECIFICATION.into()]))],
                _ => vec![],
            }),
            ["dns"] | ["svc"] | ["pod"] => exists(true),
            ["dns", "ns"] => Found::Data(addresses(self.servers.iter().copied(), kind)),
            ["svc" | "pod", namespace] => exists(self.zone.namespaces.contains(*namespace)),
            ["pod", namespace, pod] => match undashed(pod) {
                Some(ip) if self.zone.namespaces.contains(*namespace) => Found::Data(addresses([ip], kind)),
                _ => Found::Nothing,
            },
            ["svc", namespace, service, rest @ ..] => {
                let key = ((*namespace).to_owned(), (*service).to_owned());
                match self.zone.services.get(&key) {
                    None => Found::Nothing,
                    // Nothing is below an alias.
                    Some(ZoneService::External(target)) if rest.is_empty() => Found::Alias(target),
                    Some(ZoneService::External(_)) => Found::Nothing,
                    Some(service) => self.find_service(service, &key, rest, kind),
                }
            }
            _ => Found::Nothing,
        }
    }

    fn find_service(
        &self,
        service: &ZoneService,
        (namespace, name): &(String, String),
        rest: &[&str],
        kind: RecordType,
    ) -> Found<'_> {
        let base = format!("{name}.{namespace}.svc.{}", self.zone.domain);
        match rest {
            [] if kind == RecordType::SRV => {
                let all = targets(service, &base, |_| true);
                if all.is_empty() { Found::Data(vec![]) } else { Found::Services(all) }
            }
            [] => Found::Data(match service {
                ZoneService::Cluster { ips, .. } => addresses(ips.iter().copied(), kind),
                ZoneService::Headless { endpoints } => addresses(endpoints.iter().map(|e| e.ip), kind),
                ZoneService::External(_) => vec![],
            }),
            [protocol] if protocol.starts_with('_') => {
                let there = !targets(service, &base, |p| p.name.is_some() && is_protocol(p, protocol)).is_empty();
                if there { Found::Data(vec![]) } else { Found::Nothing }
            }
            [protocol, port] if protocol.starts_with('_') && port.starts_with('_') => {
                let named = |p: &ServicePortName| {
                    p.name.as_deref().is_some_and(|n| n.eq_ignore_ascii_case(&port[1..])) && is_protocol(p, protocol)
                };
                let found = targets(service, &base, named);
                match kind {
                    _ if found.is_empty() => Found::Nothing,
                    RecordType::SRV | RecordType::ANY => Found::Services(found),
                    _ => Found::Data(vec![]),
                }
            }
            [endpoint] => {
                let ZoneService::Headless { endpoints } = service else { return Found::Nothing };
                let ips: Vec<IpAddr> = endpoints.iter().filter(|e| e.label() == *endpoint).map(|e| e.ip).collect();
                if ips.is_empty() { Found::Nothing } else { Found::Data(addresses(ips, kind)) }
            }
            _ => Found::Nothing,
        }
    }
}

/// SRV records of the ports that are `wanted`: one per port of a service with an address of its own, one per endpoint
/// and port of a headless one.
fn targets(service: &ZoneService, base: &str, wanted: impl Fn(&ServicePortName) -> bool) -> Vec<(SRV, IpAddr)> {
    let srv = |port: u16, target: &str| SRV::new(0, SRV_WEIGHT, port, absolute(target));
    match service {
        ZoneService::Cluster { ips, ports } => {
            ports.iter().filter(|p| wanted(p)).filter_map(|p| Some((srv(p.port, base), *ips.first()?))).collect()
        }
        ZoneService::Headless { endpoints } => {
            let of = |endpoint: &ZoneEndpoint| {
                let target = format!("{}.{base}", endpoint.label());
                let ports = endpoint.ports.iter().filter(|p| wanted(p));
                ports.map(|p| (srv(p.port, &target), endpoint.ip)).collect::<Vec<_>>()
            };
            endpoints.iter().flat_map(of).collect()
        }
        ZoneService::External(_) => vec![],
    }
}

fn is_protocol(port: &ServicePortName, label: &str) -> bool {
    let protocol: Protocol = port.protocol;
    protocol.name() == &label[1..]
}

fn addresses(ips: impl IntoIterator<Item = IpAddr>, kind: RecordType) -> Vec<RData> {
    let wanted = |ip: &IpAddr| match kind {
        RecordType::A => ip.is_ipv4(),
        RecordType::AAAA => ip.is_ipv6(),
        RecordType::ANY => true,
        _ => false,
    };
    let mut ips: Vec<IpAddr> = ips.into_iter().filter(wanted).collect();
    ips.sort();
    ips.dedup();
    ips.into_iter().map(address).collect()
}

fn address(ip: IpAddr) -> RData {
    match ip {
        IpAddr::V4(v4) => RData::A(A(v4)),
        IpAddr::V6(v6) => RData::AAAA(AAAA(v6)),
    }
}

/// Names of Kubernetes objects are DNS labels; one that is not (it cannot be asked for either) becomes the root.
fn absolute(text: &str) -> Name {
    Name::from_ascii(text).map(fully_qualified).unwrap_or_else(|_| Name::root())
}

fn fully_qualified(mut name: Name) -> Name {
    name.set_fqdn(true);
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::zone::dashed;

    fn names() -> Names {
        let mut zone = Zone::new("cluster.local");
        let port = |name: Option<&str>, protocol, port| ServicePortName { name: name.map(Into::into), protocol, port };
        zone.insert(
            "default",
            "web",
            ZoneService::Cluster {
                ips: vec!["10.96.0.7".parse().unwrap(), "fd00::7".parse().unwrap()],
                ports: vec![port(Some("http"), Protocol::Tcp, 80), port(Some("dns"), Protocol::Udp, 53)],
            },
        );
        let endpoint = |ip: &str, hostname: Option<&str>| ZoneEndpoint {
            ip: ip.parse().unwrap(),
            hostname: hostname.map(Into::into),
            ports: vec![port(Some("peer"), Protocol::Tcp, 7000)],
        };
        let endpoints = vec![endpoint("10.244.0.5", Some("db-0")), endpoint("10.244.0.6", None)];
        zone.insert("default", "db", ZoneService::Headless { endpoints });
        zone.insert("default", "none", ZoneService::Headless { endpoints: vec![] });
        zone.insert("other", "away", ZoneService::External("www.example.org".into()));
        zone.insert("other", "near", ZoneService::External("web.default.svc.cluster.local".into()));
        zone.insert("other", "circle", ZoneService::External("circle.other.svc.cluster.local.".into()));
        zone.namespaces.insert("empty".into());
        Names::new(zone.into(), 1, vec!["10.96.0.10".parse().unwrap()])
    }

    /// The answer as one line: code, records, and `soa` where the negative answer carries one.
    fn ask(question: &str, kind: RecordType) -> String {
        let Some(reply) = names().answer(&Name::from_ascii(question).unwrap(), kind) else { return "not ours".into() };
        let mut parts = vec![match reply.code {
            ResponseCode::NoError => "ok".to_owned(),
            ResponseCode::NXDomain => "nxdomain".to_owned(),
            other => format!("{other:?}"),
        }];
        parts.extend(reply.answers.iter().map(|r| r.data.to_string()));
        parts.extend(reply.authorities.iter().map(|_| "soa".to_owned()));
        parts.extend(reply.additionals.iter().map(|r| format!("+{}", r.data)));
        parts.extend(reply.continues.iter().map(|n| format!("→{n}")));
        parts.join(" ")
    }

    #[test]
    fn names_answer_as_the_specification_says() {
        use RecordType::*;
        for (question, kind, expected) in [
            ("web.default.svc.cluster.local.", A, "ok 10.96.0.7"),
            ("WEB.Default.SVC.cluster.LOCAL.", A, "ok 10.96.0.7"),
            ("web.default.svc.cluster.local.", AAAA, "ok fd00::7"),
            ("web.default.svc.cluster.local.", MX, "ok soa"),
            ("db.default.svc.cluster.local.", A, "ok 10.244.0.5 10.244.0.6"),
            ("db.default.svc.cluster.local.", AAAA, "ok soa"),
            ("none.default.svc.cluster.local.", A, "ok soa"),
            ("db-0.db.default.svc.cluster.local.", A, "ok 10.244.0.5"),
            ("10-244-0-6.db.default.svc.cluster.local.", A, "ok 10.244.0.6"),
            ("10-244-0-5.db.default.svc.cluster.local.", A, "nxdomain soa"),
            ("x.web.default.svc.cluster.local.", A, "nxdomain soa"),
            ("nobody.default.svc.cluster.local.", A, "nxdomain soa"),
            ("web.nowhere.svc.cluster.local.", A, "nxdomain soa"),
            ("www.example.org.default.svc.cluster.local.", A, "nxdomain soa"),
            ("www.example.org.svc.cluster.local.", A, "nxdomain soa"),
            ("www.example.org.cluster.local.", A, "nxdomain soa"),
            ("default.svc.cluster.local.", A, "ok soa"),
            ("empty.svc.cluster.local.", A, "ok soa"),
            ("nowhere.svc.cluster.local.", A, "nxdomain soa"),
            ("svc.cluster.local.", A, "ok soa"),
            ("cluster.local.", A, "ok soa"),
            ("ns.dns.cluster.local.", A, "ok 10.96.0.10"),
            ("cluster.local.", NS, "ok ns.dns.cluster.local."),
            ("dns-version.cluster.local.", TXT, "ok 1.1.0"),
            ("10-244-0-9.default.pod.cluster.local.", A, "ok 10.244.0.9"),
            ("10-244-0-9.default.pod.cluster.local.", AAAA, "ok soa"),
            ("10-244-0-9.nowhere.pod.cluster.local.", A, "nxdomain soa"),
            ("not-an-address.default.pod.cluster.local.", A, "nxdomain soa"),
            ("_http._tcp.web.default.svc.cluster.local.", SRV, "ok 0 100 80 web.default.svc.cluster.local. +10.96.0.7"),
            ("_http._udp.web.default.svc.cluster.local.", SRV, "nxdomain soa"),
            ("_http._tcp.web.default.svc.cluster.local.", A, "ok soa"),
            ("_tcp.web.default.svc.cluster.local.", SRV, "ok soa"),
            (
                "_peer._tcp.db.default.svc.cluster.local.",
                SRV,
                "ok 0 100 7000 db-0.db.default.svc.cluster.local. 0 100 7000 10-244-0-6.db.default.svc.cluster.local. \
                 +10.244.0.5 +10.244.0.6",
            ),
            ("away.other.svc.cluster.local.", A, "ok www.example.org. →www.example.org."),
            ("away.other.svc.cluster.local.", CNAME, "ok www.example.org."),
            ("near.other.svc.cluster.local.", A, "ok web.default.svc.cluster.local. 10.96.0.7"),
            ("near.other.svc.cluster.local.", MX, "ok web.default.svc.cluster.local. soa"),
            ("7.0.96.10.in-addr.arpa.", PTR, "ok web.default.svc.cluster.local."),
            ("5.0.244.10.in-addr.arpa.", PTR, "ok db-0.db.default.svc.cluster.local."),
            ("7.0.96.10.in-addr.arpa.", A, "ok soa"),
            ("9.9.9.10.in-addr.arpa.", PTR, "not ours"),
            ("www.example.org.", A, "not ours"),
            ("notcluster.local.", A, "not ours"),
            ("local.", A, "not ours"),
            (".", NS, "not ours"),
        ] {
            assert_eq!(ask(question, kind), expected, "{question} {kind}");
        }
    }

    #[test]
    fn a_circle_of_aliases_ends() {
        let reply =
            names().answer(&Name::from_ascii("circle.other.svc.cluster.local.").unwrap(), RecordType::A).unwrap();
        assert_eq!(reply.answers.len(), ALIASES);
    }

    #[test]
    fn a_label_and_an_address_name_each_other() {
        for ip in ["10.244.0.7", "fd00::7"] {
            let ip: IpAddr = ip.parse().unwrap();
            assert_eq!(undashed(&dashed(ip)), Some(ip));
        }
    }
}
