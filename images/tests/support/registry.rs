//! A small registry on loopback that can also lie, refuse, send elsewhere and break off; in plain HTTP or over TLS.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use proa_images::Digest;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::json;

use super::Made;

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// What it answers.
#[derive(Default)]
pub struct Shelf {
    /// By path below `/v2/`.
    pub pages: HashMap<String, Page>,
    /// `Basic …` or `Bearer …`, if wanted.
    pub authorization: Option<String>,
    /// What those are told who come without; `Basic` unless said otherwise.
    pub challenge: Option<String>,
    /// The tokens given at `/token`, by `Authorization` and query.
    pub tokens: HashMap<(Option<String>, String), String>,
    pub asked: Vec<Asked>,
}

pub struct Asked {
    pub path: String,
    pub authorization: Option<String>,
}

#[derive(Clone)]
pub struct Page {
    pub body: Vec<u8>,
    pub kind: &'static str,
    /// Sends only so much of it.
    pub cut: Option<usize>,
    /// Is there instead.
    pub moved: Option<String>,
}

impl Page {
    fn json(body: &serde_json::Value) -> Page {
        Page { body: body.to_string().into_bytes(), kind: "application/json", cut: None, moved: None }
    }
}

pub struct Registry {
    pub address: String,
    pub shelf: Arc<Mutex<Shelf>>,
}

impl Registry {
    pub fn new() -> Registry {
        Registry::start(None)
    }

    /// Over TLS, with a certificate of this authority.
    pub fn with_tls(authority: &Authority) -> Registry {
        Registry::start(Some(authority.server()))
    }

    /// Over TLS, with the certificate that should only sign others.
    pub fn with_own_certificate(authority: &Authority) -> Registry {
        Registry::start(Some(server(authority.0.der().clone(), authority.0.key())))
    }

    fn start(tls: Option<Arc<ServerConfig>>) -> Registry {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let shelf: Arc<Mutex<Shelf>> = Arc::default();
        let served = Arc::clone(&shelf);
        // Ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (served, tls) = (Arc::clone(&served), tls.clone());
                std::thread::spawn(move || match tls {
                    None => serve(stream, &served),
                    Some(tls) => serve(secured(stream, tls), &served),
                });
            }
        });
        Registry { address, shelf }
    }

    pub fn put(&self, path: &str, kind: &'static str, body: Vec<u8>) {
        self.shelf.lock().unwrap().pages.insert(path.to_owned(), Page { body, kind, cut: None, moved: None });
    }

    pub fn image(&self, repository: &str, tag: &str, made: &Made) {
        let manifest = made.blob(&made.manifest);
        self.put(&format!("{repository}/manifests/{tag}"), MANIFEST, manifest.clone());
        self.put(&format!("{repository}/manifests/{}", made.manifest), MANIFEST, manifest);
        for (digest, bytes) in &made.blobs {
            self.put(&format!("{repository}/blobs/{digest}"), "application/octet-stream", bytes.clone());
        }
    }

    pub fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.address)
    }

    pub fn asked_for(&self, part: &str) -> usize {
        self.shelf.lock().unwrap().asked.iter().filter(|asked| asked.path.contains(part)).count()
    }
}

/// A certificate authority nobody trusts yet.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub fn new() -> Authority {
        let mut params = for_loopback();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Authority(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    fn server(&self) -> Arc<ServerConfig> {
        let key = KeyPair::generate().unwrap();
        let certificate = for_loopback().signed_by(&key, &self.0).unwrap();
        server(certificate.der().clone(), &key)
    }
}

fn for_loopback() -> CertificateParams {
    CertificateParams::new(vec![Ipv4Addr::LOCALHOST.to_string()]).unwrap()
}

fn server(certificate: CertificateDer<'static>, key: &KeyPair) -> Arc<ServerConfig> {
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    Arc::new(config.with_no_client_auth().with_single_cert(vec![certificate], key).unwrap())
}

fn secured(stream: TcpStream, tls: Arc<ServerConfig>) -> StreamOwned<ServerConnection, TcpStream> {
    StreamOwned::new(ServerConnection::new(tls).unwrap(), stream)
}

fn serve(stream: impl Read + Write, shelf: &Mutex<Shelf>) {
    let mut stream = BufReader::new(stream);
    loop {
        let (mut path, mut authorization) = (String::new(), None);
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            let line = line.trim_end();
            if path.is_empty() {
                path = line.split(' ').nth(1).unwrap_or_default().to_owned();
            } else if line.is_empty() {
                break;
            } else if let Some((name, value)) = line.split_once(": ")
                && name.eq_ignore_ascii_case("authorization")
            {
                authorization = Some(value.to_owned());
            }
        }
        let (status, extra, page) = answer(&path, authorization, &mut shelf.lock().unwrap());
        let head = format!(
            "HTTP/1.1 {status}\r\n{extra}Content-Type: {}\r\nDocker-Content-Digest: {}\r\nContent-Length: {}\r\n\r\n",
            page.kind,
            Digest::of(&page.body),
            page.body.len()
        );
        let sent = page.cut.unwrap_or(page.body.len());
        let stream = stream.get_mut();
        let fine = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&page.body[..sent])).is_ok();
        if !fine || page.cut.is_some() {
            return;
        }
    }
}

fn answer(path: &str, authorization: Option<String>, shelf: &mut Shelf) -> (&'static str, String, Page) {
    shelf.asked.push(Asked { path: path.to_owned(), authorization: authorization.clone() });
    if let Some(query) = path.strip_prefix("/token?") {
        return match shelf.tokens.get(&(authorization, query.to_owned())) {
            Some(token) => ("200 OK", String::new(), Page::json(&json!({ "token": token, "expires_in": 300 }))),
            None => {
                ("401 Unauthorized", String::new(), Page::json(&json!({ "details": "incorrect username or password" })))
            }
        };
    }
    if shelf.authorization.is_some() && authorization != shelf.authorization {
        let challenge = shelf.challenge.as_deref().unwrap_or("Basic realm=\"test\"");
        let errors = json!({ "errors": [{ "code": "UNAUTHORIZED", "message": "authentication required" }] });
        return ("401 Unauthorized", format!("WWW-Authenticate: {challenge}\r\n"), Page::json(&errors));
    }
    match path.strip_prefix("/v2/").and_then(|path| shelf.pages.get(path).cloned()) {
        Some(Page { moved: Some(location), .. }) => {
            ("307 Temporary Redirect", format!("Location: {location}\r\n"), Page::json(&json!({})))
        }
        Some(page) => ("200 OK", String::new(), page),
        None if path == "/v2/" => ("200 OK", String::new(), Page::json(&json!({}))),
        None => {
            let errors = json!({ "errors": [{ "code": "MANIFEST_UNKNOWN", "message": "no such thing" }] });
            ("404 Not Found", String::new(), Page::json(&errors))
        }
    }
}
