//! The cluster's own certificate authority and keys.
//!
//! Owns a directory of its own (`<data_dir>/pki` unless it is told otherwise): made at the first start, read at every later one, readable by the owner
//! alone. Never sends a private key anywhere; certificates for others are made on the spot.

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::outside::Clock;

/// The user the API server is when it talks to agents; bound to `system:kubelet-api-admin`.
pub const KUBELET_CLIENT: &str = "kube-apiserver-kubelet-client";

/// The name in the certificate this server shows to aggregated API servers, and the only one they may believe.
pub const FRONT_PROXY_CLIENT: &str = "front-proxy-client";

/// The CA, the keys made from it, and the key that signs service-account tokens.
pub struct Pki {
    directory: PathBuf,
    ca_pem: String,
    ca_key_pem: String,
    front_proxy_ca_pem: String,
    front_proxy_ca_key_pem: String,
    /// PKCS#8 of the P-256 key that signs service-account tokens.
    service_account_key: Vec<u8>,
    clock: Clock,
}

/// How long a certificate is good that is made here, in seconds: a year, as Kubernetes' own
/// (`--cluster-signing-duration`).
const LIFE: i64 = 365 * 24 * 3600;
/// It is good a little before it is made: clocks differ.
const BEFORE: i64 = 300;

/// A certificate with its key, both PEM.
#[derive(Clone)]
pub struct Identity {
    /// The certificate.
    pub certificate: String,
    /// The PKCS#8 private key.
    pub key: String,
    /// When another one should be in use: two thirds of its life are over then.
    pub renew_at: Timestamp,
}

/// Why the keys could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A certificate that cannot be made or read.
    #[error("certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// Anything about keys.
    #[error("key: {0}")]
    Key(String),
    /// TLS settings.
    #[error("tls: {0}")]
    Tls(#[from] rustls::Error),
}

impl Pki {
    /// Reads the keys in a directory, making those that are missing.
    pub fn open(directory: &Path, clock: Clock) -> Result<Pki, PkiError> {
        let directory = directory.to_owned();
        fs::create_dir_all(&directory).map_err(|source| PkiError::File { path: directory.clone(), source })?;
        let ca_key_pem =
            read_or_make(&directory.join("ca.key"), || Ok(KeyPair::generate()?.serialize_pem().into_bytes()))?;
        let ca_key_pem = utf8(ca_key_pem)?;
        let ca_pem =
            read_or_make(
                &directory.join("ca.crt"),
                || Ok(certificate_authority("proa-ca", &ca_key_pem)?.into_bytes()),
            )?;
        let front_proxy_ca_key_pem = utf8(read_or_make(&directory.join("front-proxy-ca.key"), || {
            Ok(KeyPair::generate()?.serialize_pem().into_bytes())
        })?)?;
        let front_proxy_ca_pem = read_or_make(&directory.join("front-proxy-ca.crt"), || {
            Ok(certificate_authority("proa-front-proxy-ca", &front_proxy_ca_key_pem)?.into_bytes())
        })?;
        let service_account_key = read_or_make(&directory.join("sa.key"), || Ok(KeyPair::generate()?.serialize_der()))?;
        Ok(Pki {
            directory,
            ca_pem: utf8(ca_pem)?,
            ca_key_pem,
            front_proxy_ca_pem: utf8(front_proxy_ca_pem)?,
            front_proxy_ca_key_pem,
            service_account_key,
            clock,
        })
    }

    /// The CA's private key, PEM: for who signs what others ask for.
    pub fn ca_key_pem(&self) -> &str {
        &self.ca_key_pem
    }

    /// What tells these keys from those of another cluster, and none of them itself: the digest of the authority's
    /// certificate and of the public half of the key tokens are signed with.
    ///
    /// # Errors
    /// When the signing key is none.
    pub fn fingerprint(&self) -> Result<String, PkiError> {
        let key = KeyPair::try_from(self.service_account_key.as_slice())?;
        let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
        hash.update(self.ca_pem.as_bytes());
        hash.update(key.public_key_raw());
        Ok(hash.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Where the files are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The CA's certificate, PEM: what clients trust and what `kube-root-ca.crt` holds.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// The certificate of the authority by whose signature aggregated API servers know this server, PEM. It is another
    /// than the cluster's: who has a certificate of that one must not speak for others.
    pub fn front_proxy_ca_pem(&self) -> &str {
        &self.front_proxy_ca_pem
    }

    /// The certificate this server shows to aggregated API servers.
    pub fn front_proxy_client(&self) -> Result<Identity, PkiError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = name(FRONT_PROXY_CLIENT, &[]);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        signed(params, &self.front_proxy_ca_pem, &self.front_proxy_ca_key_pem, self.clock.now())
    }

    /// PKCS#8 (DER) of the key that signs service-account tokens.
    pub fn service_account_key(&self) -> &[u8] {
        &self.service_account_key
    }

    /// A certificate for a client: `user` is the common name, `groups` (at most two) the organizations.
    pub fn client(&self, user: &str, groups: &[&str]) -> Result<Identity, PkiError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = name(user, groups);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params)
    }

    /// A certificate for a server under these DNS names and addresses.
    pub fn server(&self, common_name: &str, names: &[String], addresses: &[IpAddr]) -> Result<Identity, PkiError> {
        let mut params = CertificateParams::new(names.to_vec())?;
        params.subject_alt_names.extend(addresses.iter().map(|address| SanType::IpAddress(*address)));
        params.distinguished_name = name(common_name, &[]);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params)
    }

    fn sign(&self, params: CertificateParams) -> Result<Identity, PkiError> {
        signed(params, &self.ca_pem, &self.ca_key_pem, self.clock.now())
    }

    /// A kubeconfig with a client certificate made now.
    pub fn kubeconfig(&self, server_url: &str, user: &str, groups: &[&str]) -> Result<String, PkiError> {
        let identity = self.client(user, groups)?;
        Ok(kubeconfig(server_url, &self.ca_pem, user, &identity.certificate, &identity.key))
    }

    /// The CA as a root store.
    pub fn roots(&self) -> Result<rustls::RootCertStore, PkiError> {
        let mut roots = rustls::RootCertStore::empty();
        for certificate in certificates(&self.ca_pem)? {
            roots.add(certificate)?;
        }
        Ok(roots)
    }
}

fn signed(mut params: CertificateParams, ca_pem: &str, ca_key_pem: &str, now: Timestamp) -> Result<Identity, PkiError> {
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.use_authority_key_identifier_extension = true;
    let now = now.as_second();
    let at = |second: i64| rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(u64::try_from(second).unwrap_or(0));
    (params.not_before, params.not_after) = (at(now - BEFORE), at(now + LIFE));
    let issuer = Issuer::from_ca_cert_pem(ca_pem, KeyPair::from_pem(ca_key_pem)?)?;
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &issuer)?;
    let renew_at = Timestamp::from_second(now + LIFE / 3 * 2).unwrap_or(Timestamp::MAX);
    Ok(Identity { certificate: certificate.pem(), key: key.serialize_pem(), renew_at })
}

impl Identity {
    /// The certificate chain for rustls.
    pub fn chain(&self) -> Result<Vec<CertificateDer<'static>>, PkiError> {
        certificates(&self.certificate)
    }

    /// The private key for rustls.
    pub fn private_key(&self) -> Result<PrivateKeyDer<'static>, PkiError> {
        let pair = KeyPair::from_pem(&self.key)?;
        Ok(PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pair.serialize_der())))
    }
}

/// The certificates of a PEM text.
pub fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, PkiError> {
    rustls_pemfile::certs(&mut pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| PkiError::Key(error.to_string()))
}

/// A kubeconfig of one user, known by a certificate. All PEM.
pub fn kubeconfig(server_url: &str, ca: &str, user: &str, certificate: &str, key: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: proa\nclusters:\n- name: proa\n  cluster:\n    \
         server: {server_url}\n    certificate-authority-data: {ca}\nusers:\n- name: {user}\n  user:\n    \
         client-certificate-data: {certificate}\n    client-key-data: {key}\ncontexts:\n- name: proa\n  context:\n    \
         cluster: proa\n    user: {user}\npreferences: {{}}\n",
        ca = STANDARD.encode(ca),
        certificate = STANDARD.encode(certificate),
        key = STANDARD.encode(key),
    )
}

/// From when until when the first certificate of a PEM text is good.
pub fn validity(pem: &str) -> Result<(Timestamp, Timestamp), PkiError> {
    let wrong = |why: &dyn std::fmt::Display| PkiError::Key(why.to_string());
    let certificates = certificates(pem)?;
    let first = certificates.first().ok_or_else(|| wrong(&"no certificate"))?;
    let (_, parsed) = x509_parser::parse_x509_certificate(first).map_err(|error| wrong(&error))?;
    let at = |time: x509_parser::time::ASN1Time| Timestamp::from_second(time.timestamp()).unwrap_or(Timestamp::MAX);
    Ok((at(parsed.validity().not_before), at(parsed.validity().not_after)))
}

/// The digests of the public keys of a PEM text's certificates, as kubeadm prints them: `sha256:` and hexadecimal.
pub fn public_key_digests(pem: &str) -> Result<Vec<String>, PkiError> {
    let digest = |certificate: &CertificateDer<'_>| {
        let (_, parsed) =
            x509_parser::parse_x509_certificate(certificate).map_err(|error| PkiError::Key(error.to_string()))?;
        let digest = ring::digest::digest(&ring::digest::SHA256, parsed.public_key().raw);
        let text: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(format!("sha256:{text}"))
    };
    certificates(pem)?.iter().map(digest).collect()
}

/// A subject. rcgen keeps one value per attribute type; a second organization goes in under its object
/// identifier (2.5.4.10), which encodes alike. More than two nobody here needs: they are left out.
fn name(common_name: &str, organizations: &[&str]) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    if let Some(first) = organizations.first() {
        name.push(DnType::OrganizationName, *first);
    }
    if let Some(second) = organizations.get(1) {
        name.push(DnType::CustomDnType(vec![2, 5, 4, 10]), *second);
    }
    name.push(DnType::CommonName, common_name);
    name
}

fn certificate_authority(common_name: &str, key_pem: &str) -> Result<String, PkiError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = name(common_name, &[]);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    Ok(params.self_signed(&KeyPair::from_pem(key_pem)?)?.pem())
}

fn utf8(bytes: Vec<u8>) -> Result<String, PkiError> {
    String::from_utf8(bytes).map_err(|error| PkiError::Key(error.to_string()))
}

/// Reads a file, or makes it with mode 0600: written beside and renamed, so a crash leaves no half key.
fn read_or_make(path: &Path, make: impl FnOnce() -> Result<Vec<u8>, PkiError>) -> Result<Vec<u8>, PkiError> {
    let file_error = |source| PkiError::File { path: path.to_owned(), source };
    match fs::read(path) {
        Ok(bytes) => return Ok(bytes),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(file_error(error)),
    }
    let bytes = make()?;
    let beside = path.with_extension("new");
    let mut file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside).map_err(file_error)?;
    file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(file_error)?;
    fs::rename(&beside, path).map_err(file_error)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn keys_are_private_and_survive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let first = Pki::open(&dir.path().join("pki"), Clock::system()).unwrap();
        let again = Pki::open(&dir.path().join("pki"), Clock::system()).unwrap();
        assert_eq!(first.ca_pem(), again.ca_pem());
        assert_eq!(first.service_account_key(), again.service_account_key());
        for file in ["ca.key", "front-proxy-ca.key", "sa.key"] {
            let mode = fs::metadata(dir.path().join("pki").join(file)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
    }

    #[test]
    fn a_client_certificate_says_who_and_in_which_groups() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open(&dir.path().join("pki"), Clock::system()).unwrap();
        let identity = pki.client("system:node:a", &["system:nodes", "extra"]).unwrap();
        let user = crate::authn::x509::user(&identity.chain().unwrap()[0]).unwrap();
        assert_eq!(user.name, "system:node:a");
        assert!(user.in_group("system:nodes"), "{user:?}");
        assert!(user.in_group("extra"), "{user:?}");
    }
}
