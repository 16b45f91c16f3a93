//! What somebody asks a certificate for (RFC 2986), read once. Pure.

use std::net::IpAddr;

use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

/// The content of `spec.request`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Request {
    /// The subject, as it came (DER).
    pub subject: Vec<u8>,
    /// Its common name.
    pub common_name: String,
    /// Its organizations.
    pub organizations: Vec<String>,
    /// The names it wants to be known by besides.
    pub names: Names,
    /// The public key, as it came (DER of `SubjectPublicKeyInfo`).
    pub key: Vec<u8>,
}

/// Subject alternative names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// DNS names.
    pub dns: Vec<String>,
    /// IP addresses.
    pub ips: Vec<IpAddr>,
    /// Mail addresses.
    pub emails: Vec<String>,
    /// URIs.
    pub uris: Vec<String>,
}

impl Names {
    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.dns.is_empty() && self.ips.is_empty() && self.emails.is_empty() && self.uris.is_empty()
    }
}

impl Request {
    /// Reads the request of an object, and checks that who made it holds the key.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub(super) fn of(object: &CertificateSigningRequest) -> Result<Request, String> {
        let name = object.metadata.name.as_deref().unwrap_or_default();
        let unreadable = |why: &str| format!("unable to parse csr {name:?}: {why}");
        let block = rustls_pemfile::csr(&mut object.spec.request.0.as_slice());
        let der = block.ok().flatten().ok_or_else(|| unreadable("PEM block type must be CERTIFICATE REQUEST"))?;
        let (_, parsed) = X509CertificationRequest::from_der(&der).map_err(|error| unreadable(&error.to_string()))?;
        let unsigned = |error| format!("unable to verify certificate request signature: {error}");
        parsed.verify_signature().map_err(unsigned)?;
        let info = &parsed.certification_request_info;
        let text =
            |attribute: &x509_parser::x509::AttributeTypeAndValue<'_>| attribute.as_str().ok().map(str::to_owned);
        let mut names = Names::default();
        for extension in parsed.requested_extensions().into_iter().flatten() {
            let ParsedExtension::SubjectAlternativeName(alternative) = extension else { continue };
            for name in &alternative.general_names {
                match name {
                    GeneralName::DNSName(name) => names.dns.push((*name).to_owned()),
                    GeneralName::RFC822Name(name) => names.emails.push((*name).to_owned()),
                    GeneralName::URI(name) => names.uris.push((*name).to_owned()),
                    GeneralName::IPAddress(bytes) => {
                        names.ips.push(address(bytes).ok_or_else(|| unreadable("an IP address of another length"))?);
                    }
                    // What Go's parser passes over, and so Kubernetes' signers do.
                    _ => {}
                }
            }
        }
        Ok(Request {
            subject: info.subject.as_raw().to_vec(),
            common_name: info.subject.iter_common_name().find_map(text).unwrap_or_default(),
            organizations: info.subject.iter_organization().filter_map(text).collect(),
            names,
            key: info.subject_pki.raw.to_vec(),
        })
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes).map(IpAddr::from).or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}
