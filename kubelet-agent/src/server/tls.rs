//! Owns the TLS of the node's API: a client certificate of the cluster's CA, or nothing but `/healthz`.

use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::server::WebPkiClientVerifier;
use sha2::{Digest, Sha256};
use tokio_rustls::TlsAcceptor;

use crate::config::Tls;

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    rustls_pemfile::certs(&mut pem.as_bytes()).collect::<Result<_, _>>().map_err(|e| e.to_string())
}

/// What the node says of its own serving certificate: SHA-256 of the leaf, hexadecimal.
pub(crate) fn fingerprint(tls: &Tls) -> Result<String, String> {
    let chain = certificates(&tls.certificate)?;
    let leaf = chain.first().ok_or_else(|| "there is no certificate".to_owned())?;
    Ok(Sha256::digest(leaf).iter().map(|byte| format!("{byte:02x}")).collect())
}

/// An acceptor for the certificates given. HTTP/1.1 only: upgrades (exec, attach, port-forward) want it.
pub(crate) fn acceptor(tls: &Tls) -> Result<TlsAcceptor, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&tls.client_ca)? {
        roots.add(certificate).map_err(|e| e.to_string())?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|e| e.to_string())?;
    let key = rustls_pemfile::private_key(&mut tls.key.as_bytes())
        .map_err(|e| e.to_string())?
        .ok_or_else(|| "there is no private key".to_owned())?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(&tls.certificate)?, key)
        .map_err(|e| e.to_string())?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
