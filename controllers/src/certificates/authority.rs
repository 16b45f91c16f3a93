//! The certificate authority: what is to be signed, and the signature.
//!
//! Owns the CA's key for as long as the controllers run. Certificates are written out in DER here, so that subject and
//! public key are those of the request to the byte (RFC 5280; rcgen cannot keep a subject with several organizations).

use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use proa_apimachinery::der::{bits, explicit, implicit, named_bits, null, octets, oid, sequence, time, unsigned, yes};
use rustls::SignatureScheme;
use rustls::sign::{Signer, SigningKey};
use x509_parser::extensions::ParsedExtension;

use super::request::Names;

/// A CA certificate with its key.
#[derive(Clone)]
pub struct Authority {
    /// Its subject (DER).
    subject: Vec<u8>,
    /// Its subject key identifier.
    key_id: Option<Vec<u8>>,
    not_after: Timestamp,
    key: Arc<dyn SigningKey>,
    scheme: SignatureScheme,
}

/// Files that are no certificate authority.
#[derive(Debug, thiserror::Error)]
#[error("the certificate authority cannot be used: {0}")]
pub struct AuthorityError(String);

/// All that a certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// The subject (DER).
    pub subject: Vec<u8>,
    /// The public key (DER).
    pub key: Vec<u8>,
    /// More names.
    pub names: Names,
    /// What it is for, in Kubernetes' words.
    pub usages: Vec<String>,
    /// From when it is good.
    pub not_before: Timestamp,
    /// Until when.
    pub not_after: Timestamp,
}

/// Bits of the extension `keyUsage` by the names of usages.
const KEY_USAGES: [(&str, u32); 10] = [
    ("signing", 0),
    ("digital signature", 0),
    ("content commitment", 1),
    ("key encipherment", 2),
    ("data encipherment", 3),
    ("key agreement", 4),
    ("cert sign", 5),
    ("crl sign", 6),
    ("encipher only", 7),
    ("decipher only", 8),
];

/// Purposes of the extension `extKeyUsage`.
const PURPOSES: [(&str, &[u32]); 13] = [
    ("any", &[2, 5, 29, 37, 0]),
    ("server auth", &[1, 3, 6, 1, 5, 5, 7, 3, 1]),
    ("client auth", &[1, 3, 6, 1, 5, 5, 7, 3, 2]),
    ("code signing", &[1, 3, 6, 1, 5, 5, 7, 3, 3]),
    ("email protection", &[1, 3, 6, 1, 5, 5, 7, 3, 4]),
    ("s/mime", &[1, 3, 6, 1, 5, 5, 7, 3, 4]),
    ("ipsec end system", &[1, 3, 6, 1, 5, 5, 7, 3, 5]),
    ("ipsec tunnel", &[1, 3, 6, 1, 5, 5, 7, 3, 6]),
    ("ipsec user", &[1, 3, 6, 1, 5, 5, 7, 3, 7]),
    ("timestamping", &[1, 3, 6, 1, 5, 5, 7, 3, 8]),
    ("ocsp signing", &[1, 3, 6, 1, 5, 5, 7, 3, 9]),
    ("microsoft sgc", &[1, 3, 6, 1, 4, 1, 311, 10, 3, 3]),
    ("netscape sgc", &[2, 16, 840, 1, 113_730, 4, 1]),
];

/// Usages nobody knows.
pub(super) fn unknown_usages(usages: &[String]) -> Vec<&String> {
    let known = |usage: &str| KEY_USAGES.iter().any(|row| row.0 == usage) || PURPOSES.iter().any(|row| row.0 == usage);
    usages.iter().filter(|usage| !known(usage)).collect()
}

impl Authority {
    /// A CA from its certificate and key, both PEM.
    ///
    /// # Errors
    /// When they are none.
    pub fn from_pem(certificate: &str, key: &str) -> Result<Authority, AuthorityError> {
        let wrong = |why: String| AuthorityError(why);
        let der = rustls_pemfile::certs(&mut certificate.as_bytes()).next();
        let der = der.ok_or_else(|| wrong("no certificate".into()))?.map_err(|error| wrong(error.to_string()))?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).map_err(|error| wrong(error.to_string()))?;
        if !parsed.is_ca() {
            return Err(wrong("the certificate is not that of an authority".into()));
        }
        let private = rustls_pemfile::private_key(&mut key.as_bytes()).map_err(|error| wrong(error.to_string()))?;
        let private = private.ok_or_else(|| wrong("no private key".into()))?;
        let key = rustls::crypto::ring::sign::any_supported_type(&private).map_err(|error| wrong(error.to_string()))?;
        if key.public_key().is_some_and(|public| public.as_ref() != parsed.public_key().raw) {
            return Err(wrong("the private key is not the certificate's".into()));
        }
        let known = SCHEMES.iter().map(|(scheme, _)| *scheme).find(|scheme| key.choose_scheme(&[*scheme]).is_some());
        let key_id = parsed.extensions().iter().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
            _ => None,
        });
        Ok(Authority {
            subject: parsed.subject().as_raw().to_vec(),
            key_id,
            not_after: Timestamp::from_second(parsed.validity().not_after.timestamp()).unwrap_or(Timestamp::MAX),
            scheme: known.ok_or_else(|| wrong("a key of an unknown kind".into()))?,
            key,
        })
    }

    /// Until when the authority itself is good: nothing it signs lives longer.
    pub fn not_after(&self) -> Timestamp {
        self.not_after
    }

    /// The certificate, PEM. `serial` is 16 random bytes.
    ///
    /// # Errors
    /// When the key does not sign.
    pub fn sign(&self, content: &Content, serial: [u8; 16]) -> Result<String, AuthorityError> {
        let failed = |error: rustls::Error| AuthorityError(error.to_string());
        let signer: Box<dyn Signer> =
            self.key.choose_scheme(&[self.scheme]).ok_or_else(|| AuthorityError("the key does not sign".into()))?;
        let algorithm = SCHEMES.iter().find(|(scheme, _)| *scheme == self.scheme).map(|(_, make)| make());
        let algorithm = algorithm.unwrap_or_default();
        let body = sequence(&[
            explicit(0, &unsigned(&[2])),
            unsigned(&serial),
            algorithm.clone(),
            self.subject.clone(),
            sequence(&[time(content.not_before), time(content.not_after)]),
            content.subject.clone(),
            content.key.clone(),
            explicit(3, &sequence(&self.extensions(content))),
        ]);
        let signature = signer.sign(&body).map_err(failed)?;
        Ok(pem("CERTIFICATE", &sequence(&[body, algorithm, bits(&signature)])))
    }

    fn extensions(&self, content: &Content) -> Vec<Vec<u8>> {
        let extension = |id: u32, critical: bool, value: Vec<u8>| {
            let critical = if critical { yes() } else { Vec::new() };
            sequence(&[oid(&[2, 5, 29, id]), critical, octets(&value)])
        };
        let used = |usage: &str| content.usages.iter().any(|have| have == usage);
        let mut all = Vec::new();
        let mask =
            KEY_USAGES.iter().filter(|(usage, _)| used(usage)).fold(0u16, |mask, (_, bit)| mask | 1 << (15 - bit));
        if mask != 0 {
            let bytes = mask.to_be_bytes();
            let bytes = if bytes[1] == 0 { &bytes[..1] } else { &bytes[..] };
            // The trailing zeroes of a list of names are no part of it (X.690 §11.2.2).
            let unused = bytes.last().map_or(0, |last| last.trailing_zeros() as u8);
            all.push(extension(15, true, named_bits(bytes, unused)));
        }
        let mut purposes: Vec<Vec<u8>> = Vec::new();
        for (_, arcs) in PURPOSES.iter().filter(|(usage, _)| used(usage)) {
            let purpose = oid(arcs);
            if !purposes.contains(&purpose) {
                purposes.push(purpose);
            }
        }
        if !purposes.is_empty() {
            all.push(extension(37, false, sequence(&purposes)));
        }
        // Not an authority itself.
        all.push(extension(19, true, sequence(&[])));
        if let Some(id) = &self.key_id {
            all.push(extension(35, false, sequence(&[implicit(0, id)])));
        }
        if !content.names.is_empty() {
            let names = &content.names;
            let mut general: Vec<Vec<u8>> = Vec::new();
            general.extend(names.dns.iter().map(|name| implicit(2, name.as_bytes())));
            general.extend(names.emails.iter().map(|name| implicit(1, name.as_bytes())));
            general.extend(names.ips.iter().map(|address| match address {
                IpAddr::V4(address) => implicit(7, &address.octets()),
                IpAddr::V6(address) => implicit(7, &address.octets()),
            }));
            general.extend(names.uris.iter().map(|name| implicit(6, name.as_bytes())));
            // A certificate without a subject is known by these names alone (RFC 5280 §4.2.1.6).
            all.push(extension(17, content.subject == sequence(&[]), sequence(&general)));
        }
        all
    }
}

/// Writes an algorithm down.
type Identifier = fn() -> Vec<u8>;

/// The schemes an authority's key may sign with, and their `AlgorithmIdentifier`s (RFC 5758, RFC 8017, RFC 8410).
const SCHEMES: [(SignatureScheme, Identifier); 4] = [
    (SignatureScheme::ECDSA_NISTP256_SHA256, || sequence(&[oid(&[1, 2, 840, 10_045, 4, 3, 2])])),
    (SignatureScheme::ECDSA_NISTP384_SHA384, || sequence(&[oid(&[1, 2, 840, 10_045, 4, 3, 3])])),
    (SignatureScheme::RSA_PKCS1_SHA256, || sequence(&[oid(&[1, 2, 840, 113_549, 1, 1, 11]), null()])),
    (SignatureScheme::ED25519, || sequence(&[oid(&[1, 3, 101, 112])])),
];

/// A PEM text (RFC 7468).
fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(64) {
        out.push_str(&String::from_utf8_lossy(line));
        out.push('\n');
    }
    out.push_str(&format!("-----END {label}-----\n"));
    out
}
