//! The signers of Kubernetes and what each of them signs ("Kubernetes signers"). Pure.

use super::request::Request;

/// Signs client certificates for the API server. Somebody approves each.
pub(super) const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
/// Signs the client certificates of nodes' agents.
pub(super) const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// Signs the serving certificates of nodes' agents. Somebody approves each.
pub(super) const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
/// Signs what is asked, and promises nothing about it.
pub(super) const LEGACY_UNKNOWN: &str = "kubernetes.io/legacy-unknown";

/// All we sign for.
pub(super) const ALL: [&str; 4] = [CLIENT, KUBELET_CLIENT, KUBELET_SERVING, LEGACY_UNKNOWN];

/// Every agent's group.
const NODES: &str = "system:nodes";
/// What the common name of an agent starts with.
const NODE: &str = "system:node:";

/// Usages a signer asks for: one of these sets. Key encipherment is of use for RSA keys alone.
const CLIENT_USAGES: [&[&str]; 2] =
    [&["client auth", "digital signature", "key encipherment"], &["client auth", "digital signature"]];
const SERVER_USAGES: [&[&str]; 2] =
    [&["digital signature", "key encipherment", "server auth"], &["digital signature", "server auth"]];

/// Whether the signer may sign that.
///
/// # Errors
/// Says why not, in the words of Kubernetes' signers.
pub(super) fn check(signer: &str, request: &Request, usages: &[String]) -> Result<(), String> {
    match signer {
        CLIENT => client_usages(usages),
        KUBELET_CLIENT => kubelet_client(request, usages),
        KUBELET_SERVING => kubelet_serving(request, usages),
        _ => Ok(()),
    }
}

/// A user's certificate says that they are a client, and nothing else.
fn client_usages(usages: &[String]) -> Result<(), String> {
    let known = CLIENT_USAGES[0];
    if let Some(other) = usages.iter().find(|usage| !known.contains(&usage.as_str())) {
        return Err(format!("invalid usage for client certificate: {other}"));
    }
    if usages.iter().any(|usage| usage == "client auth") {
        Ok(())
    } else {
        Err("missing required usage for client certificate: client auth".into())
    }
}

/// The form of an agent's client certificate.
///
/// # Errors
/// Says what is other.
pub(super) fn kubelet_client(request: &Request, usages: &[String]) -> Result<(), String> {
    of_node(request)?;
    let names = &request.names;
    no("DNS", &names.dns)?;
    no("Email", &names.emails)?;
    no("IP", &names.ips)?;
    no("URI", &names.uris)?;
    one_of(usages, &CLIENT_USAGES)?;
    common_name(request)
}

fn kubelet_serving(request: &Request, usages: &[String]) -> Result<(), String> {
    of_node(request)?;
    let names = &request.names;
    if names.dns.is_empty() && names.ips.is_empty() {
        return Err("DNS or IP subjectAltName is required".into());
    }
    no("Email", &names.emails)?;
    no("URI", &names.uris)?;
    one_of(usages, &SERVER_USAGES)?;
    common_name(request)
}

fn of_node(request: &Request) -> Result<(), String> {
    if request.organizations == [NODES] { Ok(()) } else { Err("subject organization is not system:nodes".into()) }
}

fn common_name(request: &Request) -> Result<(), String> {
    if request.common_name.starts_with(NODE) {
        Ok(())
    } else {
        Err("subject common name does not begin with system:node: ".into())
    }
}

fn no<T>(kind: &str, names: &[T]) -> Result<(), String> {
    if names.is_empty() { Ok(()) } else { Err(format!("{kind} subjectAltNames are not allowed")) }
}

fn one_of(usages: &[String], sets: &[&[&str]]) -> Result<(), String> {
    let mut sorted: Vec<&str> = usages.iter().map(String::as_str).collect();
    sorted.sort_unstable();
    sorted.dedup();
    if sets.contains(&sorted.as_slice()) {
        Ok(())
    } else {
        Err(format!("usages did not match [{}]", sets[0].join(" ")))
    }
}

#[cfg(test)]
mod tests {
    use super::super::request::Names;
    use super::*;

    #[test]
    fn each_signer_signs_what_it_is_for_and_says_why_not() {
        let node =
            Request { common_name: "system:node:a".into(), organizations: vec![NODES.into()], ..Request::default() };
        let dns = Names { dns: vec!["a".into()], ..Names::default() };
        let mail = Names { emails: vec!["a@b".into()], ips: vec!["10.0.0.1".parse().unwrap()], ..Names::default() };
        let with = |names: &Names| Request { names: names.clone(), ..node.clone() };
        let user = Request { common_name: "eve".into(), organizations: vec!["team".into()], ..Request::default() };
        let both = Request { organizations: vec![NODES.into(), "x".into()], ..node.clone() };
        let named = Request { common_name: "node-a".into(), ..node.clone() };
        let (client, server) = ("digital signature,client auth", "server auth,digital signature,key encipherment");
        for (signer, request, usages, expected) in [
            (CLIENT, &user, "client auth", ""),
            (CLIENT, &user, "client auth,key encipherment,digital signature", ""),
            (CLIENT, &user, "digital signature", "missing required usage"),
            (CLIENT, &user, server, "invalid usage for client certificate: server auth"),
            (KUBELET_CLIENT, &node, client, ""),
            (KUBELET_CLIENT, &node, "client auth,key encipherment,digital signature", ""),
            (
                KUBELET_CLIENT,
                &node,
                "client auth",
                "usages did not match [client auth digital signature key encipherment]",
            ),
            (KUBELET_CLIENT, &node, server, "usages did not match"),
            (KUBELET_CLIENT, &user, client, "subject organization is not system:nodes"),
            (KUBELET_CLIENT, &both, client, "subject organization is not system:nodes"),
            (KUBELET_CLIENT, &named, client, "subject common name does not begin with system:node:"),
            (KUBELET_CLIENT, &with(&dns), client, "DNS subjectAltNames are not allowed"),
            (KUBELET_SERVING, &with(&dns), server, ""),
            (KUBELET_SERVING, &with(&dns), "server auth,digital signature", ""),
            (KUBELET_SERVING, &node, server, "DNS or IP subjectAltName is required"),
            (KUBELET_SERVING, &with(&mail), server, "Email subjectAltNames are not allowed"),
            (
                KUBELET_SERVING,
                &with(&dns),
                client,
                "usages did not match [digital signature key encipherment server auth]",
            ),
            (LEGACY_UNKNOWN, &user, "code signing", ""),
        ] {
            let usages: Vec<String> = usages.split(',').map(str::to_owned).collect();
            let said = check(signer, request, &usages).err().unwrap_or_default();
            assert!(
                said.starts_with(expected) && said.is_empty() == expected.is_empty(),
                "{signer} {usages:?}: {said}"
            );
        }
    }
}
