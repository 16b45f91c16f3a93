//! How a machine becomes a node of a cluster, and stays one.
//!
//! With a token it learns by which authority the cluster is known (`kube-public/cluster-info`, signed with the token), asks
//! for a certificate as that node, and writes what it then is to `agent.kubeconfig`. From there on it renews the
//! certificate by itself, long before it runs out, with the one it has: nothing is restarted, and the token may be gone.
//! Source: Kubernetes, "TLS bootstrapping".

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, PostParams};
use kube::client::Body;
use kube::core::ObjectMeta;
use kube::runtime::wait::{Condition, await_condition};
use kube::{Client, Config};
use parking_lot::RwLock;
use proa_controllers::bootstrap::{CLUSTER_INFO, KUBECONFIG, PUBLIC, SIGNATURE, Token};
use warp::http;

use crate::cli;
use crate::kubeconfig::{AGENT, Access};
use crate::run::write_private;

/// How long is waited for the cluster to sign what it says with a token that was made just now.
const SIGNED_WITHIN: Duration = Duration::from_secs(60);
/// How long is waited for a certificate; somebody may have to approve it.
const ISSUED_WITHIN: Duration = Duration::from_secs(900);
/// How long after a failure the renewal is tried again.
const AGAIN: Duration = Duration::from_secs(60);
const SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";

/// A machine that is a node of a cluster.
#[derive(Clone)]
pub(crate) struct Member {
    file: PathBuf,
    node: String,
    /// The client by the certificate it has now.
    current: Arc<RwLock<Client>>,
}

impl Member {
    /// What the file says it is; what it becomes with a token when there is no file, or its certificate has run out.
    ///
    /// # Errors
    /// When it is no member and cannot join.
    pub(crate) async fn new(file: PathBuf, node: &str, join: &cli::Join) -> anyhow::Result<Member> {
        let held = file.exists().then(|| life(&file)).transpose()?;
        if held.is_none_or(|(_, until)| until <= Timestamp::now()) {
            let (Some(server), Some(token)) = (&join.server, &join.token) else {
                let why = if held.is_some() { "its certificate has run out" } else { "it is no node of a cluster yet" };
                bail!("{why}: give --kubeconfig FILE, or --server URL --token TOKEN (`proa token create` makes one)");
            };
            let token = Token::parse(token).context("the token is not of the form abcdef.0123456789abcdef")?;
            let authority = discover(server, &token, &join.ca_hashes).await?;
            let mut config = Config::new(server.parse().with_context(|| format!("{server:?} is no URL"))?);
            config.root_cert = Some(roots(&authority)?);
            config.auth_info.token = Some(format!("{}.{}", token.id, token.secret).into());
            let client = Client::try_from(config)?;
            let identity = ask(&client, node).await.context("the cluster gives this node no certificate")?;
            write_private(&file, identity.kubeconfig(server, &authority, node).as_bytes())?;
        }
        let client = Access::read(&file)?.client(AGENT).await?;
        Ok(Member { file, node: node.to_owned(), current: Arc::new(RwLock::new(client)) })
    }

    /// What it is, as a kubeconfig.
    pub(crate) fn file(&self) -> &Path {
        &self.file
    }

    /// A client whose every request goes out with the certificate of that moment.
    pub(crate) fn client(&self) -> Client {
        let current = Arc::clone(&self.current);
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let client = current.read().clone();
            async move { client.send(request).await }
        });
        Client::new(service, "default")
    }

    /// Renews the certificate, for ever.
    pub(crate) async fn renew(&self) {
        loop {
            let wait = match life(&self.file) {
                Ok((from, until)) => renewal(from, until, Timestamp::now()),
                Err(_) => AGAIN,
            };
            tokio::time::sleep(wait).await;
            if let Err(error) = self.renewed().await {
                tracing::warn!(error = format!("{error:#}"), "the node's certificate could not be renewed");
                tokio::time::sleep(AGAIN).await;
            }
        }
    }

    async fn renewed(&self) -> anyhow::Result<()> {
        let access = Access::read(&self.file)?;
        let (server, authority) = (access.url()?.to_owned(), access.certificate_authority()?);
        let identity = ask(&self.client(), &self.node).await?;
        write_private(&self.file, identity.kubeconfig(&server, &authority, &self.node).as_bytes())?;
        let client = Access::read(&self.file)?.client(AGENT).await?;
        *self.current.write() = client;
        tracing::info!("the node's certificate was renewed");
        Ok(())
    }
}

/// When a certificate is renewed: with a fifth of its life left. (Kubelets draw a time between 70 and 90 %.)
fn renewal(from: Timestamp, until: Timestamp, now: Timestamp) -> Duration {
    let life = until.as_second() - from.as_second();
    let at = from.as_second() + life / 5 * 4;
    Duration::from_secs(u64::try_from(at - now.as_second()).unwrap_or(0))
}

/// From when until when the certificate in a kubeconfig is good.
fn life(file: &Path) -> anyhow::Result<(Timestamp, Timestamp)> {
    let pem = Access::read(file)?.client_certificate()?;
    proa_apiserver::pki::validity(&pem).with_context(|| file.display().to_string())
}

/// A key and what was signed for it.
struct Identity {
    certificate: String,
    key: String,
}

impl Identity {
    fn kubeconfig(&self, server: &str, authority: &str, node: &str) -> String {
        proa_apiserver::pki::kubeconfig(server, authority, &format!("system:node:{node}"), &self.certificate, &self.key)
    }
}

fn roots(pem: &str) -> anyhow::Result<Vec<Vec<u8>>> {
    let found = proa_apiserver::pki::certificates(pem)?;
    Ok(found.into_iter().map(|certificate| certificate.to_vec()).collect())
}

/// The certificate of the cluster's authority: what is published, if the token signed it and the digests are good.
async fn discover(server: &str, token: &Token, digests: &[String]) -> anyhow::Result<String> {
    let mut config = Config::new(server.parse().with_context(|| format!("{server:?} is no URL"))?);
    // Nothing is known of the other end yet: nothing of ours is sent, and what comes is believed for its signature alone.
    config.accept_invalid_certs = true;
    let maps: Api<ConfigMap> = Api::namespaced(Client::try_from(config)?, PUBLIC);
    let started = tokio::time::Instant::now();
    loop {
        let said = match maps.get(CLUSTER_INFO).await {
            Ok(map) => map.data.unwrap_or_default(),
            Err(error) if started.elapsed() >= SIGNED_WITHIN => {
                return Err(error).with_context(|| format!("{server} does not say by what it is known"));
            }
            Err(_) => Default::default(),
        };
        let text = said.get(KUBECONFIG).map(String::as_str).unwrap_or_default();
        match said.get(&format!("{SIGNATURE}{}", token.id)) {
            Some(signature) => {
                if !token.signed(text, signature) {
                    bail!(
                        "what {server} says of itself is not signed with this token: it is somebody else, or the token is wrong"
                    );
                }
                let authority = Access::parse(text.as_bytes(), CLUSTER_INFO)?.certificate_authority()?;
                return pinned(authority, digests);
            }
            // Nobody but the signer tells when it is done, and that to nobody without a credential.
            None if started.elapsed() < SIGNED_WITHIN => tokio::time::sleep(Duration::from_secs(1)).await,
            None => bail!(
                "{server} knows no token {:?}: it may have run out, make another with `proa token create`",
                token.id
            ),
        }
    }
}

/// The authority, if one of its keys is one of those (any, if none is named).
fn pinned(authority: String, digests: &[String]) -> anyhow::Result<String> {
    let found = proa_apiserver::pki::public_key_digests(&authority)?;
    if let Some(bad) = digests.iter().find(|digest| !digest.starts_with("sha256:")) {
        bail!("{bad:?} is no digest of a public key: sha256: and 64 hexadecimal digits");
    }
    if digests.is_empty() || found.iter().any(|digest| digests.iter().any(|good| good.eq_ignore_ascii_case(digest))) {
        return Ok(authority);
    }
    bail!(
        "the cluster's authority has the public key {}, which is none of those given with --ca-hash",
        found.join(", ")
    )
}

/// Asks for a certificate as that node, and waits for it.
async fn ask(client: &Client, node: &str) -> anyhow::Result<Identity> {
    let key = rcgen::KeyPair::generate()?;
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::OrganizationName, "system:nodes");
    params.distinguished_name.push(rcgen::DnType::CommonName, format!("system:node:{node}"));
    let request = params.serialize_request(&key)?.pem()?;
    let requests: Api<CertificateSigningRequest> = Api::all(client.clone());
    let wanted = CertificateSigningRequest {
        metadata: ObjectMeta { generate_name: Some("csr-".into()), ..ObjectMeta::default() },
        spec: CertificateSigningRequestSpec {
            request: ByteString(request.into_bytes()),
            signer_name: SIGNER.into(),
            usages: Some(vec!["digital signature".into(), "client auth".into()]),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    };
    let made = requests.create(&PostParams::default(), &wanted).await?;
    let name = made.metadata.name.unwrap_or_default();
    let ended = tokio::time::timeout(ISSUED_WITHIN, await_condition(requests, &name, ended())).await;
    let object = ended
        .with_context(|| format!("nobody has signed the request {name} (`kubectl certificate approve {name}`)"))??;
    let status = object.and_then(|object| object.status).unwrap_or_default();
    if let Some(refusal) = status.conditions.iter().flatten().find(|condition| condition.type_ != "Approved") {
        bail!("{}: {}", refusal.type_, refusal.message.as_deref().unwrap_or("no reason is given"));
    }
    let certificate = status.certificate.with_context(|| format!("the request {name} is gone"))?;
    Ok(Identity { certificate: String::from_utf8(certificate.0)?, key: key.serialize_pem() })
}

/// It is signed, or never will be.
fn ended() -> impl Condition<CertificateSigningRequest> {
    |object: Option<&CertificateSigningRequest>| {
        let status = object.and_then(|object| object.status.as_ref());
        let refused = |type_: &str| type_ == "Denied" || type_ == "Failed";
        status.is_some_and(|status| {
            status.certificate.as_ref().is_some_and(|certificate| !certificate.0.is_empty())
                || status.conditions.iter().flatten().any(|condition| refused(&condition.type_))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_renewed_with_a_fifth_of_its_life_left() {
        let at = |text: &str| text.parse::<Timestamp>().expect("a time");
        let (from, until) = (at("2026-11-21T20:00:00Z"), at("2026-11-22T06:00:00Z"));
        assert_eq!(renewal(from, until, from), Duration::from_secs(8 * 3600));
        assert_eq!(renewal(from, until, at("2026-11-22T05:00:00Z")), Duration::ZERO);
    }

    #[test]
    fn an_authority_is_believed_only_with_a_key_that_was_named() {
        let key = rcgen::KeyPair::generate().expect("a key");
        let pem = rcgen::CertificateParams::default().self_signed(&key).expect("a certificate").pem();
        let digest = proa_apiserver::pki::public_key_digests(&pem).expect("digests").remove(0);
        let other = format!("sha256:{}", "0".repeat(64));
        let judge = |digests: &[&str]| {
            pinned(pem.clone(), &digests.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>()).is_ok()
        };
        assert!(judge(&[]) && judge(&[&digest]) && judge(&[&other, &digest.to_uppercase().replace("SHA", "sha")]));
        assert!(!judge(&[&other]) && !judge(&["md5:00"]) && !judge(&[&digest[7..]]));
    }
}
