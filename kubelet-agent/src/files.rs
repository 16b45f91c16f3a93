//! Owns the files every pod finds in `/etc`: `hosts`, `hostname`, `resolv.conf`.

use std::io;
use std::net::IpAddr;
use std::path::Path;

use k8s_openapi::api::core::v1::PodSpec;

use crate::pods::context::{Context, DnsSettings};
use crate::pods::start::hostname;
use crate::pods::{Pod, host_network, uid};

/// Limits of `resolv.conf` (Kubernetes: 3 servers, 32 search domains, 2048 characters).
const MOST_SERVERS: usize = 3;
const MOST_DOMAINS: usize = 32;

/// Writes the three files of a pod.
pub(crate) fn write(ctx: &Context, pod: &Pod, ips: &[String]) -> io::Result<()> {
    let uid = uid(pod);
    let dir = ctx.layout.etc(uid, "");
    std::fs::create_dir_all(&dir)?;
    let name = hostname(pod, &ctx.node_name);
    replace(&ctx.layout.etc(uid, "hostname"), &format!("{name}\n"))?;
    let hosts = match host_network(pod) {
        true => host_hosts(pod),
        false => hosts(pod, &name, ips, &ctx.dns.domain),
    };
    replace(&ctx.layout.etc(uid, "hosts"), &hosts)?;
    let own = ctx.dns.host.for_pods();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    replace(&ctx.layout.etc(uid, "resolv.conf"), &resolv_conf(&pod.spec, namespace, &ctx.dns, &own))
}

/// Keeps the inode: the file may be mounted in running containers.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    if std::fs::read_to_string(path).is_ok_and(|now| now == text) {
        return Ok(());
    }
    std::fs::write(path, text)
}

fn aliases(pod: &Pod) -> String {
    let mut text = String::new();
    for alias in pod.spec.host_aliases.iter().flatten() {
        if text.is_empty() {
            text.push_str("\n# Entries added by HostAliases.\n");
        }
        let names: Vec<&str> = alias.hostnames.iter().flatten().map(String::as_str).collect();
        text.push_str(&format!("{}\t{}\n", alias.ip, names.join("\t")));
    }
    text
}

fn host_hosts(pod: &Pod) -> String {
    let own = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
    format!("# Kubernetes-managed hosts file (host network).\n{own}{}", aliases(pod))
}

/// The managed hosts file of a pod with its own network.
pub(crate) fn hosts(pod: &Pod, hostname: &str, ips: &[String], domain: &str) -> String {
    let mut text = String::from(
        "# Kubernetes-managed hosts file.\n\
         127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\n\
         fe00::0\tip6-mcastprefix\n\
         fe00::1\tip6-allnodes\n\
         fe00::2\tip6-allrouters\n",
    );
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let full = pod
        .spec
        .subdomain
        .as_deref()
        .filter(|s| !s.is_empty())
        .map(|sub| format!("{hostname}.{sub}.{namespace}.svc.{domain}\t{hostname}"));
    for ip in ips {
        text.push_str(&format!("{ip}\t{}\n", full.as_deref().unwrap_or(hostname)));
    }
    text + &aliases(pod)
}

#[derive(Default)]
struct Resolver {
    servers: Vec<String>,
    search: Vec<String>,
    options: Vec<String>,
}

impl Resolver {
    fn parse(text: &str) -> Self {
        let mut resolver = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace().map(str::to_owned);
            match words.next().as_deref() {
                Some("nameserver") => resolver.servers.extend(words.next()),
                Some("search" | "domain") => resolver.search = words.filter(|w| w != ".").collect(),
                Some("options") => resolver.options = words.collect(),
                _ => {}
            }
        }
        resolver
    }

    fn print(&self) -> String {
        let mut text = String::new();
        if !self.search.is_empty() {
            text.push_str(&format!("search {}\n", self.search.join(" ")));
        }
        for server in &self.servers {
            text.push_str(&format!("nameserver {server}\n"));
        }
        if !self.options.is_empty() {
            text.push_str(&format!("options {}\n", self.options.join(" ")));
        }
        text
    }
}

fn push_new(list: &mut Vec<String>, item: String) {
    if !list.contains(&item) {
        list.push(item);
    }
}

/// `resolv.conf` by the pod's `dnsPolicy` and `dnsConfig`; `host` is the node's own file.
pub(crate) fn resolv_conf(spec: &PodSpec, namespace: &str, dns: &DnsSettings, host: &str) -> String {
    let mut host = Resolver::parse(host);
    let on_host = spec.host_network == Some(true);
    if !on_host {
        // A loopback address is the host's alone. The cluster's own server asks whom the host would ask.
        host.servers.retain(|server| !server.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()));
        if host.servers.is_empty() {
            host.servers.push(dns.server.to_string());
        }
    }
    let mut resolver = match spec.dns_policy.as_deref().unwrap_or("ClusterFirst") {
        "None" => Resolver::default(),
        "Default" => host,
        "ClusterFirst" if on_host => host,
        _ => {
            let mut search: Vec<String> =
                vec![format!("{namespace}.svc.{}", dns.domain), format!("svc.{}", dns.domain), dns.domain.clone()];
            for domain in host.search {
                push_new(&mut search, domain);
            }
            Resolver { servers: vec![dns.server.to_string()], search, options: vec!["ndots:5".to_owned()] }
        }
    };
    if let Some(config) = &spec.dns_config {
        for server in config.nameservers.iter().flatten() {
            push_new(&mut resolver.servers, server.clone());
        }
        for domain in config.searches.iter().flatten() {
            push_new(&mut resolver.search, domain.clone());
        }
        for option in config.options.iter().flatten() {
            let Some(name) = &option.name else { continue };
            resolver.options.retain(|o| o.split(':').next() != Some(name));
            resolver.options.push(match &option.value {
                Some(value) => format!("{name}:{value}"),
                None => name.clone(),
            });
        }
    }
    resolver.servers.truncate(MOST_SERVERS);
    resolver.search.truncate(MOST_DOMAINS);
    resolver.print()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resolver::HostResolver;
    use serde_json::json;

    fn conf(spec: serde_json::Value) -> String {
        conf_on(spec, "# c\nnameserver 192.0.2.1\nsearch corp.example\noptions timeout:1\n")
    }

    fn conf_on(spec: serde_json::Value, host: &str) -> String {
        let spec: PodSpec = serde_json::from_value(spec).unwrap();
        let dns = DnsSettings {
            server: "10.96.0.10".parse().unwrap(),
            domain: "cluster.local".into(),
            host: HostResolver::default(),
        };
        resolv_conf(&spec, "shop", &dns, host)
    }

    #[test]
    fn names_are_looked_up_in_the_cluster_first() {
        assert_eq!(
            conf(json!({"containers": []})),
            "search shop.svc.cluster.local svc.cluster.local cluster.local corp.example\nnameserver 10.96.0.10\noptions ndots:5\n"
        );
        let host = "search corp.example\nnameserver 192.0.2.1\noptions timeout:1\n";
        assert_eq!(conf(json!({"containers": [], "dnsPolicy": "Default"})), host);
        assert_eq!(conf(json!({"containers": [], "hostNetwork": true})), host);
        assert!(
            conf(json!({"containers": [], "hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"}))
                .contains("10.96.0.10")
        );
    }

    #[test]
    fn a_resolver_on_the_hosts_loopback_is_for_the_host_alone() {
        let stub = "nameserver 127.0.0.1\n";
        let conf = |spec| conf_on(spec, stub);
        assert_eq!(conf(json!({"containers": [], "dnsPolicy": "Default"})), "nameserver 10.96.0.10\n");
        assert_eq!(conf(json!({"containers": [], "dnsPolicy": "Default", "hostNetwork": true})), stub);
    }

    #[test]
    fn dns_config_adds_and_overrides() {
        let config = json!({"nameservers": ["192.0.2.9"], "searches": ["a.example"], "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]});
        assert_eq!(
            conf(json!({"containers": [], "dnsPolicy": "None", "dnsConfig": config})),
            "search a.example\nnameserver 192.0.2.9\noptions ndots:2 edns0\n"
        );
        assert!(conf(json!({"containers": [], "dnsConfig": config})).ends_with("options ndots:2 edns0\n"));
    }

    #[test]
    fn the_hosts_file_names_the_pod_and_its_aliases() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "d"},
            "spec": {"containers": [], "subdomain": "s", "hostAliases": [{"ip": "192.0.2.5", "hostnames": ["a", "b"]}]}}))
        .unwrap();
        let text = hosts(&pod, "p", &["10.1.0.2".into()], "cluster.local");
        assert!(text.starts_with("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n"));
        assert!(text.contains("\n10.1.0.2\tp.s.d.svc.cluster.local\tp\n"));
        assert!(text.ends_with("\n# Entries added by HostAliases.\n192.0.2.5\ta\tb\n"));
    }
}
