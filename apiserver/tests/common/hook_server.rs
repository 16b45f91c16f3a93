//! A server of somebody else's that this one calls: HTTPS with a certificate of an authority of its own.
#![allow(dead_code)]

use std::convert::Infallible;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::future::BoxFuture;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use proa_apiserver::pki::certificates;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// A request that came, and who its connection says sent it.
pub(crate) struct Came {
    pub(crate) method: String,
    /// Path and query.
    pub(crate) uri: String,
    pub(crate) headers: http::HeaderMap,
    pub(crate) body: Value,
    /// The certificates the client showed.
    pub(crate) client: Vec<Vec<u8>>,
}

impl Came {
    pub(crate) fn path(&self) -> &str {
        self.uri.split('?').next().unwrap_or_default()
    }

    /// The request of a review.
    pub(crate) fn request(&self) -> &Value {
        &self.body["request"]
    }
}

pub(crate) type Handler = Arc<dyn Fn(Arc<Came>) -> BoxFuture<'static, (u16, Value)> + Send + Sync>;

pub(crate) struct HookServer {
    pub(crate) port: u16,
    pub(crate) ca_bundle: String,
    pub(crate) came: Arc<Mutex<Vec<Arc<Came>>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for HookServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Asks for a certificate and takes any: who may come is what the tests look at.
#[derive(Debug)]
struct AnyClient(Arc<rustls::crypto::CryptoProvider>);

impl rustls::server::danger::ClientCertVerifier for AnyClient {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[rustls::DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::server::danger::ClientCertVerified, rustls::Error> {
        Ok(rustls::server::danger::ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &rustls::pki_types::CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &rustls::pki_types::CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

impl HookServer {
    /// A server that answers at once.
    pub(crate) async fn answering(answer: impl Fn(&Came) -> Value + Send + Sync + 'static) -> HookServer {
        let answer = Arc::new(answer);
        HookServer::start(Arc::new(move |came| {
            let answer = Arc::clone(&answer);
            Box::pin(async move { (200, answer(&came)) })
        }))
        .await
    }

    /// A server for `127.0.0.1`, `localhost` and the Service `hook` in `default`.
    pub(crate) async fn start(handler: Handler) -> HookServer {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_key = KeyPair::generate().unwrap();
        let ca_pem = params.self_signed(&ca_key).unwrap().pem();
        let issuer = Issuer::from_ca_cert_pem(&ca_pem, ca_key).unwrap();
        let names = ["localhost", "127.0.0.1", "hook.default.svc"].map(str::to_owned);
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(Arc::new(AnyClient(provider)))
            .with_single_cert(
                certificates(&certificate.pem()).unwrap(),
                PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            )
            .unwrap();
        let tls = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let came: Arc<Mutex<Vec<Arc<Came>>>> = Arc::default();
        let log = Arc::clone(&came);
        let task = tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (tls, handler, log) = (tls.clone(), Arc::clone(&handler), Arc::clone(&log));
                tokio::spawn(async move {
                    // A client that does not trust us goes away: that is what some tests want.
                    let Ok(stream) = tls.accept(tcp).await else { return };
                    let peer = stream.get_ref().1.peer_certificates().unwrap_or_default();
                    let peer: Vec<Vec<u8>> = peer.iter().map(|certificate| certificate.to_vec()).collect();
                    let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
                        let (handler, log, client) = (Arc::clone(&handler), Arc::clone(&log), peer.clone());
                        async move { Ok::<_, Infallible>(answer(request, &handler, &log, client).await) }
                    });
                    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
                });
            }
        });
        HookServer { port, ca_bundle: STANDARD.encode(ca_pem), came, task }
    }

    /// `clientConfig` for a path of this server.
    pub(crate) fn client(&self, path: &str) -> Value {
        json!({"url": format!("https://127.0.0.1:{}{path}", self.port), "caBundle": self.ca_bundle})
    }

    /// What came to a path so far.
    pub(crate) fn at(&self, path: &str) -> Vec<Arc<Came>> {
        self.came.lock().iter().filter(|came| came.path() == path).cloned().collect()
    }
}

async fn answer(
    mut request: http::Request<hyper::body::Incoming>,
    handler: &Handler,
    log: &Mutex<Vec<Arc<Came>>>,
    client: Vec<Vec<u8>>,
) -> http::Response<Full<Bytes>> {
    let upgrade = hyper::upgrade::on(&mut request);
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let came = Arc::new(Came {
        method: parts.method.to_string(),
        uri: parts.uri.to_string(),
        headers: parts.headers,
        body: serde_json::from_slice(&body).unwrap_or_default(),
        client,
    });
    log.lock().push(Arc::clone(&came));
    let (status, value) = handler(Arc::clone(&came)).await;
    let mut response = http::Response::builder().status(status);
    if status == 101 {
        // Whoever asks for another protocol gets an echo.
        response = response.header("connection", "Upgrade").header("upgrade", "echo");
        tokio::spawn(async move {
            let (mut read, mut write) = tokio::io::split(TokioIo::new(upgrade.await.unwrap()));
            let _ = tokio::io::copy(&mut read, &mut write).await;
        });
        return response.body(Full::default()).unwrap();
    }
    response = response.header("content-type", "application/json");
    response.body(Full::new(Bytes::from(value.to_string()))).unwrap()
}

/// The answer to an AdmissionReview.
pub(crate) fn admission(came: &Came, response: Value) -> Value {
    let mut response = response;
    response["uid"] = came.request()["uid"].clone();
    json!({"kind": "AdmissionReview", "apiVersion": came.body["apiVersion"], "response": response})
}

/// Nothing against it.
pub(crate) fn allow(came: &Came) -> Value {
    admission(came, json!({"allowed": true}))
}

/// Refused.
pub(crate) fn deny(came: &Came, why: &str) -> Value {
    admission(came, json!({"allowed": false, "status": {"message": why, "code": 403, "reason": "Forbidden"}}))
}

/// Allowed with a change.
pub(crate) fn patch(came: &Came, operations: &Value) -> Value {
    let patch = STANDARD.encode(operations.to_string());
    admission(came, json!({"allowed": true, "patchType": "JSONPatch", "patch": patch}))
}
