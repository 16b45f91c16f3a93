//! How a registry is reached: over TLS, with a certificate somebody vouches for; in plain HTTP only where that is allowed.
//!
//! Trusted are the system's certificate authorities (or those in `SSL_CERT_FILE` and `SSL_CERT_DIR`, as OpenSSL has it),
//! and for one registry alone those in `<authorities>/<host[:port]>/*.crt`, where Docker looks for them.

use std::error::Error;
use std::path::Path;
use std::sync::Once;
use std::time::Duration;
use std::{fs, io};

use oci_client::Client;
use oci_client::client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use rustls::CertificateError;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::error::{ImageError, PullError};
use crate::reference::Reference;
use crate::store::Options;

/// A registry that says nothing for so long is gone.
const SILENCE: Duration = Duration::from_secs(60);
const CONNECT: Duration = Duration::from_secs(15);

/// A client for one registry. Makes no connection yet.
pub(crate) fn client(protocol: ClientProtocol, options: &Options, reference: &Reference) -> Result<Client, PullError> {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        // Fails only when somebody has chosen one before, which is just as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
    let failed = |message: String| PullError::Unreachable { reference: reference.familiar(), message };
    let system = rustls_native_certs::load_native_certs();
    for error in &system.errors {
        tracing::warn!("the system's certificate authorities: {error}");
    }
    // oci-client always makes a client of these alone too, even to speak plain HTTP, and panics where there are none.
    if system.certs.is_empty() {
        return Err(failed(
            "this machine knows no certificate authorities: install ca-certificates, or name some in SSL_CERT_FILE"
                .to_owned(),
        ));
    }
    let config = ClientConfig {
        protocol,
        extra_root_certificates: authorities(&options.authorities, reference.registry())?,
        read_timeout: Some(SILENCE),
        connect_timeout: Some(CONNECT),
        user_agent: concat!("proa/", env!("CARGO_PKG_VERSION")),
        ..ClientConfig::default()
    };
    Client::try_from(config).map_err(|error| failed(chain(&error)))
}

/// Whether a registry may be spoken to without TLS.
pub(crate) fn may_be_plain(options: &Options, registry: &str) -> bool {
    is_loopback(registry) || options.plain_http.iter().any(|host| host == registry)
}

/// A registry on this machine, whatever its port.
fn is_loopback(registry: &str) -> bool {
    let host = match registry.rsplit_once(':') {
        Some((host, port)) if port.chars().all(|c| c.is_ascii_digit()) => host,
        _ => registry,
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// The authorities trusted for this registry alone.
fn authorities(dir: &Path, registry: &str) -> Result<Vec<Certificate>, ImageError> {
    let dir = dir.join(registry);
    let failed = |path: &Path| ImageError::io(format!("reading the certificate authorities in {}", path.display()));
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(&dir)(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed(&dir))?.path();
        if path.extension().is_none_or(|extension| extension != "crt") {
            continue;
        }
        let pem = fs::read(&path).map_err(failed(&path))?;
        let certificates: Vec<CertificateDer<'_>> = CertificateDer::pem_slice_iter(&pem)
            .collect::<Result<_, _>>()
            .map_err(|error| failed(&path)(io::Error::new(io::ErrorKind::InvalidData, error)))?;
        if certificates.is_empty() {
            return Err(failed(&path)(io::Error::new(io::ErrorKind::InvalidData, "no certificate in PEM")));
        }
        found.extend(
            certificates.iter().map(|der| Certificate { encoding: CertificateEncoding::Der, data: der.to_vec() }),
        );
    }
    Ok(found)
}

/// Whether nobody spoke TLS there. A registry whose certificate is refused did, and nothing else should be tried with it.
pub(crate) fn has_no_tls(error: &OciDistributionError) -> bool {
    matches!(error, OciDistributionError::RequestError(request) if request.is_connect()) && distrust(error).is_none()
}

/// What is wrong with the certificate, if that is what is wrong.
pub(crate) fn distrust(error: &(dyn Error + 'static)) -> Option<String> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(rustls::Error::InvalidCertificate(why)) = error.downcast_ref() {
            return Some(match why {
                CertificateError::UnknownIssuer => "no authority that is trusted here has signed it".to_owned(),
                // What `openssl req -x509` makes. webpki's own error type is not to be had through rustls.
                CertificateError::Other(why) if why.to_string().contains("CaUsedAsEndEntity") => {
                    "it is an authority's own (CA:TRUE); it takes one that is signed by the authority".to_owned()
                }
                why => why.to_string(),
            });
        }
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            // As its source it names the source of what it holds.
            Some(held) => Some(held),
            None => error.source(),
        };
    }
    None
}

/// An error with its causes, each said once.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_is_trusted_without_tls() {
        for (registry, plain) in [
            ("localhost:5000", true),
            ("127.0.0.1:5000", true),
            ("127.1.2.3", true),
            ("[::1]:5000", true),
            ("docker.io", false),
            ("10.0.0.1:5000", false),
            ("localhost.evil.example:5000", false),
        ] {
            assert_eq!(is_loopback(registry), plain, "{registry}");
        }
    }

    #[test]
    fn an_authority_file_that_holds_none_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let registry = dir.path().join("registry.test:5000");
        fs::create_dir(&registry).unwrap();
        fs::write(registry.join("client.key"), "not looked at").unwrap();
        assert!(authorities(dir.path(), "registry.test:5000").unwrap().is_empty());
        fs::write(registry.join("ca.crt"), "nothing").unwrap();
        let error = authorities(dir.path(), "registry.test:5000").unwrap_err().to_string();
        assert!(error.contains("registry.test:5000/ca.crt") && error.contains("no certificate"), "{error}");
        assert!(authorities(dir.path(), "other.test").unwrap().is_empty());
    }
}
