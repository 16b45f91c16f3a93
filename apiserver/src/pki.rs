//! The cluster's own certificate authority and keys.
//!
//! Owns a directory of its own (`<data_dir>/pki` unless it is told otherwise): made at the first start, read at every later one, readable by the owner
//! alone. Never sends a private key anywhere; certificates for others are made on the spot.

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// The user the API server is when it talks to agents; bound to `system:kubelet-api-admin`.
pub const KUBELET_CLIENT: &str = "kube-apiserver-kubelet-client";

/// The CA, the keys made from it, and the key that signs service-account tokens.
pub struct Pki {
    directory: PathBuf,
    ca_pem: String,
    ca_key_pem: String,
    /// PKCS#8 of the P-256 key that signs service-account tokens.
    service_account_key: Vec<u8>,
}

/// A certificate with its key, both PEM.
#[derive(Clone)]
pub struct Identity {
    /// The certificate.
    pub certificate: String,
    /// The PKCS#8 private key.
    pub key: String,
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
    pub fn open(directory: &Path) -> Result<Pki, PkiError> {
        let directory = directory.to_owned();
        fs::create_dir_all(&directory).map_err(|source| PkiError::File { path: directory.clone(), source })?;
        let ca_key_pem =
            read_or_make(&directory.join("ca.key"), || Ok(KeyPair::generate()?.serialize_pem().into_bytes()))?;
        let ca_key_pem = utf8(ca_key_pem)?;
        let ca_pem = read_or_make(&directory.join("ca.crt"), || Ok(certificate_authority(&ca_key_pem)?.into_bytes()))?;
        let service_account_key = read_or_make(&directory.join("sa.key"), || Ok(KeyPair::generate()?.serialize_der()))?;
        Ok(Pki { directory, ca_pem: utf8(ca_pem)?, ca_key_pem, service_account_key })
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

    fn sign(&self, mut params: CertificateParams) -> Result<Identity, PkiError> {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.use_authority_key_identifier_extension = true;
        let issuer = Issuer::from_ca_cert_pem(&self.ca_pem, KeyPair::from_pem(&self.ca_key_pem)?)?;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &issuer)?;
        Ok(Identity { certificate: certificate.pem(), key: key.serialize_pem() })
    }

    /// A kubeconfig with a client certificate made now.
    pub fn kubeconfig(&self, server_url: &str, user: &str, groups: &[&str]) -> Result<String, PkiError> {
        let identity = self.client(user, groups)?;
        Ok(format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: proa\nclusters:\n- name: proa\n  cluster:\n    \
             server: {server_url}\n    certificate-authority-data: {ca}\nusers:\n- name: {user}\n  user:\n    \
             client-certificate-data: {certificate}\n    client-key-data: {key}\ncontexts:\n- name: proa\n  context:\n    \
             cluster: proa\n    user: {user}\npreferences: {{}}\n",
            ca = STANDARD.encode(&self.ca_pem),
            certificate = STANDARD.encode(&identity.certificate),
            key = STANDARD.encode(&identity.key),
        ))
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

fn certificate_authority(key_pem: &str) -> Result<String, PkiError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = name("proa-ca", &[]);
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
        let first = Pki::open(&dir.path().join("pki")).unwrap();
        let again = Pki::open(&dir.path().join("pki")).unwrap();
        assert_eq!(first.ca_pem(), again.ca_pem());
        assert_eq!(first.service_account_key(), again.service_account_key());
        for file in ["ca.key", "sa.key"] {
            let mode = fs::metadata(dir.path().join("pki").join(file)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
    }

    #[test]
    fn a_client_certificate_says_who_and_in_which_groups() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open(&dir.path().join("pki")).unwrap();
        let identity = pki.client("system:node:a", &["system:nodes", "extra"]).unwrap();
        let user = crate::authn::x509::user(&identity.chain().unwrap()[0]).unwrap();
        assert_eq!(user.name, "system:node:a");
        assert!(user.in_group("system:nodes"), "{user:?}");
        assert!(user.in_group("extra"), "{user:?}");
    }
}
