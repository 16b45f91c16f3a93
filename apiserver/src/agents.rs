//! How this server reaches the agents of the nodes, and by what it knows them.
//!
//! Owns the trust in an agent's serving certificate: one our CA signed for the address dialled, or the very one
//! the node published on its own Node object ([`SERVING_CERTIFICATE`]). Never decides where to connect.

use std::sync::Arc;

use proa_apimachinery::object::Object;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::outside::Clock;
use crate::pki::{KUBELET_CLIENT, Pki, PkiError};
use crate::renew::Renewing;
use crate::user::MASTERS;

/// On a Node: SHA-256 of its agent's serving certificate (DER of the leaf), in lower-case hexadecimal. Only the
/// node itself and cluster administrators may set it (admission sees to that).
pub const SERVING_CERTIFICATE: &str = "proa.dev/serving-certificate";

/// Connections to agents, with the API server's own client certificate.
pub struct Agents {
    config: Renewing<ClientConfig>,
    by_ca: Arc<WebPkiServerVerifier>,
}

impl Agents {
    /// Trusts what our CA signed; more is said per connection.
    pub fn new(pki: &Arc<Pki>, clock: Clock) -> Result<Agents, PkiError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let by_ca = WebPkiServerVerifier::builder_with_provider(Arc::new(pki.roots()?), Arc::clone(&provider))
            .build()
            .map_err(|error| PkiError::Key(error.to_string()))?;
        let (keys, verifier) = (Arc::clone(pki), Arc::clone(&by_ca));
        let config = Renewing::new(clock, move || {
            let identity = keys.client(KUBELET_CLIENT, &[MASTERS])?;
            let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
                .with_safe_default_protocol_versions()?
                .with_webpki_verifier(Arc::clone(&verifier))
                .with_client_auth_cert(identity.chain()?, identity.private_key()?)?;
            // A resumed session is not verified again: a node that took over an address must prove itself anew.
            config.resumption = Resumption::disabled();
            Ok((config, identity.renew_at))
        })?;
        Ok(Agents { config, by_ca })
    }

    /// TLS to an agent; `pin` is what its Node says of its certificate.
    ///
    /// # Errors
    /// When the handshake fails or the agent is not who it should be.
    pub async fn connect(
        &self,
        name: ServerName<'static>,
        pin: Option<Pin>,
        tcp: TcpStream,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let mut config = ClientConfig::clone(&self.config.get());
        if let Some(pin) = pin {
            let verifier = Verifier { by_ca: Arc::clone(&self.by_ca), pin };
            config.dangerous().set_certificate_verifier(Arc::new(verifier));
        }
        TlsConnector::from(Arc::new(config)).connect(name, tcp).await
    }
}

/// The SHA-256 of one certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin(String);

impl Pin {
    /// What a Node says of its agent's certificate.
    pub fn of_node(node: &Object) -> Option<Pin> {
        node.annotation(SERVING_CERTIFICATE).map(|text| Pin(text.to_ascii_lowercase()))
    }

    fn is_of(&self, certificate: &CertificateDer<'_>) -> bool {
        let digest = ring::digest::digest(&ring::digest::SHA256, certificate);
        let text: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        text == self.0
    }
}

/// Our CA's signature, or the one certificate that is pinned. Either way the handshake proves that the other end
/// holds the certificate's key.
#[derive(Debug)]
struct Verifier {
    by_ca: Arc<WebPkiServerVerifier>,
    pin: Pin,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.pin.is_of(end_entity) {
            return Ok(ServerCertVerified::assertion());
        }
        self.by_ca.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.by_ca.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.by_ca.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.by_ca.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(digest: &str) -> Object {
        let node = json!({"kind": "Node", "metadata": {"name": "a", "annotations": {SERVING_CERTIFICATE: digest}}});
        Object::from_value(node).unwrap()
    }

    fn judge(pki: &Arc<Pki>, pin: &str, certificate: &CertificateDer<'static>) -> bool {
        let agents = Agents::new(pki, Clock::system()).unwrap();
        let verifier = Verifier { by_ca: agents.by_ca, pin: Pin::of_node(&node(pin)).unwrap() };
        let name = ServerName::try_from("127.0.0.1").unwrap();
        verifier.verify_server_cert(certificate, &[], &name, &[], UnixTime::now()).is_ok()
    }

    #[test]
    fn an_agent_is_known_by_our_ca_or_by_the_certificate_its_node_published() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Arc::new(Pki::open(dir.path(), Clock::system()).unwrap());
        let signed = pki.server("system:node:a", &["a".into()], &["127.0.0.1".parse().unwrap()]).unwrap();
        let elsewhere = pki.server("system:node:b", &["b".into()], &["127.0.0.2".parse().unwrap()]).unwrap();
        let own = rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap();
        let own = own.cert.der().clone();
        let digest = ring::digest::digest(&ring::digest::SHA256, &own);
        let pin: String = digest.as_ref().iter().map(|byte| format!("{byte:02X}")).collect();
        assert!(judge(&pki, &pin, &own));
        assert!(judge(&pki, "", &signed.chain().unwrap()[0]));
        for (pin, certificate) in [("", &own), ("00", &own), (pin.as_str(), &elsewhere.chain().unwrap()[0])] {
            assert!(!judge(&pki, pin, certificate));
        }
    }
}
