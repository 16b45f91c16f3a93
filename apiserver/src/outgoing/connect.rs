//! Connections to servers of others: made, kept while they are idle, and checked to lead to whom they should.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use parking_lot::Mutex;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{CONNECT, CallError};
use crate::core::Core;
use crate::pki::certificates;

/// How long a connection waits for its next call.
const IDLE: Duration = Duration::from_secs(60);
/// How many wait for each destination.
const MOST_IDLE: usize = 16;
/// How many settings of TLS are remembered: one for each bundle of certificates in use.
const MOST_SETTINGS: usize = 64;

/// By what a server is known.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Trust {
    /// By the certificate authorities this machine trusts.
    System,
    /// By these, in PEM.
    Bundle(Vec<u8>),
    /// By nothing (`insecureSkipTLSVerify`).
    Anybody,
}

/// One address, and who must be there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Destination {
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// What its certificate must be for.
    pub server_name: String,
    /// Who must have signed that.
    pub trust: Trust,
    /// Whether this server says who it is, too.
    pub identify: bool,
}

/// A connection in use.
pub struct Lease {
    destination: Destination,
    sender: SendRequest<Full<Bytes>>,
}

struct Idle {
    since: Instant,
    sender: SendRequest<Full<Bytes>>,
}

/// Settings of TLS, and from when ours is another certificate.
type Settled = (Arc<ClientConfig>, Timestamp);

/// The connections.
#[derive(Default)]
pub struct Outgoing {
    idle: Arc<Mutex<HashMap<Destination, Vec<Idle>>>>,
    settings: Mutex<HashMap<(Trust, bool), Settled>>,
    system: OnceLock<Arc<RootCertStore>>,
}

impl Outgoing {
    /// Sends a request to the first of the destinations that is there.
    pub(super) async fn send(
        &self,
        core: &Core,
        destinations: Vec<Destination>,
        mut request: http::Request<Full<Bytes>>,
    ) -> Result<(http::Response<Incoming>, Lease), CallError> {
        let mut failure = CallError::Unreachable("no address to connect to".to_owned());
        for destination in destinations {
            loop {
                let waiting = self.take(&destination);
                let fresh = waiting.is_none();
                let mut sender = match waiting {
                    Some(sender) => sender,
                    None => match tokio::time::timeout(CONNECT, self.connect(core, &destination)).await {
                        Ok(Ok(sender)) => sender,
                        Ok(Err(error)) => {
                            failure = error;
                            break;
                        }
                        Err(_) => {
                            let at = format!("{}:{}", destination.host, destination.port);
                            failure = CallError::Unreachable(format!("dial tcp {at}: i/o timeout"));
                            break;
                        }
                    },
                };
                match sender.try_send_request(request).await {
                    Ok(answer) => return Ok((answer, Lease { destination, sender })),
                    // The other end had closed it meanwhile, and has seen nothing of this request.
                    Err(mut error) => match error.take_message() {
                        Some(unsent) if !fresh => request = unsent,
                        _ => return Err(CallError::Broken(error.into_error().to_string())),
                    },
                }
            }
        }
        Err(failure)
    }

    /// Keeps a connection for the next call. Its answer must have been read to the end.
    pub fn give_back(&self, lease: Lease) {
        if lease.sender.is_closed() {
            return;
        }
        let mut idle = self.idle.lock();
        let first = idle.is_empty();
        let waiting = idle.entry(lease.destination).or_default();
        if waiting.len() < MOST_IDLE {
            waiting.push(Idle { since: Instant::now(), sender: lease.sender });
        }
        drop(idle);
        if first {
            tokio::spawn(tidy(Arc::downgrade(&self.idle)));
        }
    }

    fn take(&self, destination: &Destination) -> Option<SendRequest<Full<Bytes>>> {
        let mut idle = self.idle.lock();
        let waiting = idle.get_mut(destination)?;
        // The one that waits for the shortest time is the likeliest to be open still.
        let found = std::iter::from_fn(|| waiting.pop()).find(|idle| idle.sender.is_ready()).map(|idle| idle.sender);
        if waiting.is_empty() {
            idle.remove(destination);
        }
        found
    }

    async fn connect(&self, core: &Core, to: &Destination) -> Result<SendRequest<Full<Bytes>>, CallError> {
        let stream = self.stream(core, to).await?;
        let (sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| CallError::Broken(error.to_string()))?;
        let stop = core.stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                ended = connection.with_upgrades() => if let Err(error) = ended { tracing::debug!(%error, "an outgoing connection ended") },
                () = stop.cancelled() => {}
            }
        });
        Ok(sender)
    }

    async fn stream(&self, core: &Core, to: &Destination) -> Result<TlsStream<TcpStream>, CallError> {
        let at = format!("{}:{}", to.host, to.port);
        let tcp = TcpStream::connect((to.host.as_str(), to.port)).await;
        let tcp = tcp.map_err(|error| CallError::Unreachable(format!("dial tcp {at}: connect: {}", reason(&error))))?;
        // Small requests wait for nobody; a failure here costs latency only.
        let _ = tcp.set_nodelay(true);
        let name = ServerName::try_from(to.server_name.clone())
            .map_err(|error| CallError::Unreachable(format!("{:?}: {error}", to.server_name)))?;
        let settings = self.settings(core, &to.trust, to.identify).map_err(CallError::Unreachable)?;
        let tls = TlsConnector::from(settings).connect(name, tcp).await;
        tls.map_err(|error| CallError::Unreachable(verdict(&error, &to.server_name)))
    }

    fn settings(&self, core: &Core, trust: &Trust, identify: bool) -> Result<Arc<ClientConfig>, String> {
        let key = (trust.clone(), identify);
        if let Some((have, until)) = self.settings.lock().get(&key)
            && core.now() < *until
        {
            return Ok(Arc::clone(have));
        }
        let (made, until) = self.make_settings(core, trust, identify)?;
        let made = Arc::new(made);
        let mut settings = self.settings.lock();
        if settings.len() >= MOST_SETTINGS {
            settings.clear();
        }
        settings.insert(key, (Arc::clone(&made), until));
        Ok(made)
    }

    fn make_settings(&self, core: &Core, trust: &Trust, identify: bool) -> Result<(ClientConfig, Timestamp), String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        let builder = match trust {
            Trust::System => builder.with_root_certificates(Arc::clone(self.system.get_or_init(system_roots))),
            Trust::Bundle(pem) => builder.with_root_certificates(bundle(pem)?),
            Trust::Anybody => builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody { provider })),
        };
        let (mut settings, until) = match identify {
            false => (builder.with_no_client_auth(), Timestamp::MAX),
            true => {
                let identity = core.pki.front_proxy_client().map_err(|error| error.to_string())?;
                let chain = identity.chain().map_err(|error| error.to_string())?;
                let key = identity.private_key().map_err(|error| error.to_string())?;
                (builder.with_client_auth_cert(chain, key).map_err(|error| error.to_string())?, identity.renew_at)
            }
        };
        settings.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok((settings, until))
    }
}

/// Closes what has been idle for too long, as long as anything is.
async fn tidy(idle: std::sync::Weak<Mutex<HashMap<Destination, Vec<Idle>>>>) {
    loop {
        tokio::time::sleep(IDLE).await;
        let Some(idle) = idle.upgrade() else { return };
        let mut idle = idle.lock();
        let now = Instant::now();
        idle.retain(|_, waiting| {
            waiting.retain(|idle| now.duration_since(idle.since) < IDLE && !idle.sender.is_closed());
            !waiting.is_empty()
        });
        if idle.is_empty() {
            return;
        }
    }
}

fn system_roots() -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let (_, unreadable) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if unreadable > 0 {
        tracing::debug!(unreadable, "certificates of this machine cannot be read");
    }
    Arc::new(roots)
}

fn bundle(pem: &[u8]) -> Result<RootCertStore, String> {
    let text = std::str::from_utf8(pem).map_err(|error| format!("caBundle: {error}"))?;
    let mut roots = RootCertStore::empty();
    for certificate in certificates(text).map_err(|error| format!("caBundle: {error}"))? {
        roots.add(certificate).map_err(|error| format!("caBundle: {error}"))?;
    }
    if roots.is_empty() { Err("unable to load root certificates: caBundle holds none".to_owned()) } else { Ok(roots) }
}

/// An error of the network, as Go names it.
fn reason(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        std::io::ErrorKind::HostUnreachable => "no route to host".to_owned(),
        std::io::ErrorKind::NetworkUnreachable => "network is unreachable".to_owned(),
        _ => error.to_string(),
    }
}

/// Why a handshake failed, as Go says it of certificates.
fn verdict(error: &std::io::Error, name: &str) -> String {
    use rustls::CertificateError as Why;
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let Some(rustls::Error::InvalidCertificate(why)) = tls else { return error.to_string() };
    let why = match why {
        // An authority of the same name is another one all the same.
        Why::UnknownIssuer | Why::BadSignature => "certificate signed by unknown authority".to_owned(),
        Why::Expired | Why::ExpiredContext { .. } | Why::NotValidYet | Why::NotValidYetContext { .. } => {
            "certificate has expired or is not yet valid".to_owned()
        }
        Why::NotValidForName | Why::NotValidForNameContext { .. } => {
            format!("certificate is not valid for the name {name}")
        }
        other => other.to_string(),
    };
    format!("tls: failed to verify certificate: x509: {why}")
}

/// Any certificate, as `insecureSkipTLSVerify` asks for; the handshake still proves that the other end has its key.
#[derive(Debug)]
struct Anybody {
    provider: Arc<rustls::crypto::CryptoProvider>,
}

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
