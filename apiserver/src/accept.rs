//! Connections: TLS with an optional client certificate, HTTP/1.1 and HTTP/2, the warp route in front of
//! the handler.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use http::HeaderMap;
use http::Method;
use http_body_util::BodyExt;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use proa_apimachinery::status::ApiError;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use warp::Filter;

use crate::authn::x509;
use crate::core::Core;
use crate::handler::{Incoming, handle};
use crate::http::{BODY_LIMIT, Body, Response, error, form};
use crate::outside::Clock;
use crate::pki::{Identity, Pki, PkiError};
use crate::renew::Renewing;
use crate::user::User;

/// A client that has not finished its handshake by then is gone.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a connection may be silent, and a request's head may take. Longer than clients keep an idle connection for the
/// next request (90 s in Go's transport and in hyper's pool): whoever closes first while the other begins to send makes the
/// other fail.
const SILENCE: Duration = Duration::from_secs(120);
/// How long open requests may take to end once the server stops. Watches end at once.
const DRAIN: Duration = Duration::from_millis(1_500);

/// The user of the connection, in the request's extensions.
#[derive(Clone)]
pub(crate) struct Peer(pub(crate) User);

/// Where the connection comes from, in the request's extensions.
#[derive(Clone, Copy)]
struct Origin(IpAddr);

/// The server's certificate, another one before it runs out: whoever connects then gets that, and nobody is cut off.
#[derive(Debug)]
struct Serving(Renewing<Arc<CertifiedKey>>);

impl ResolvesServerCert for Serving {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.get()))
    }
}

/// TLS settings of the server: the certificate `identity` makes, clients' certificates checked when they send one.
pub fn acceptor(
    pki: &Pki,
    clock: Clock,
    identity: impl Fn() -> Result<Identity, PkiError> + Send + Sync + 'static,
) -> Result<TlsAcceptor, PkiError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(pki.roots()?), Arc::clone(&provider))
        .allow_unauthenticated()
        .build();
    let verifier = verifier.map_err(|error| PkiError::Key(error.to_string()))?;
    let keys = Arc::clone(&provider);
    let serving = Renewing::new(clock, move || {
        let identity = identity()?;
        let key = keys.key_provider.load_private_key(identity.private_key()?)?;
        Ok((Arc::new(CertifiedKey::new(identity.chain()?, key)), identity.renew_at))
    })?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(Serving(serving)));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Serves connections until `stop`, then lets open requests end.
pub async fn serve(core: Arc<Core>, listener: TcpListener, tls: TlsAcceptor, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            () = core.stop.cancelled() => break,
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
        };
        match accepted {
            Ok((socket, _)) => {
                connections.spawn(connection(Arc::clone(&core), socket, tls.clone(), stop.clone()));
            }
            Err(error) => {
                // Out of file descriptors, most likely: connections that end free some.
                tracing::warn!(%error, "accepting a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    drop(listener);
    let drained = tokio::time::timeout(DRAIN, async { while connections.join_next().await.is_some() {} }).await;
    if drained.is_err() {
        connections.abort_all();
    }
}

async fn connection(core: Arc<Core>, socket: TcpStream, tls: TlsAcceptor, stop: CancellationToken) {
    // Small answers go out at once; failing to say so costs latency only.
    let _ = socket.set_nodelay(true);
    let from = socket.peer_addr().ok().map(|address| Origin(address.ip().to_canonical()));
    let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, tls.accept(socket)).await else { return };
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let peer = certificate.and_then(|certificate| x509::user(certificate)).map(Peer);
    let routes = warp::service(routes(Arc::clone(&core)));
    let service = tower::service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
        if let Some(peer) = &peer {
            request.extensions_mut().insert(peer.clone());
        }
        if let Some(from) = from {
            request.extensions_mut().insert(from);
        }
        let mut routes = routes.clone();
        async move { tower::Service::call(&mut routes, request).await }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(SILENCE).max_buf_size(HEADER_LIMIT);
    let mut http2 = builder.http2();
    http2.timer(TokioTimer::new()).max_concurrent_streams(1_000).keep_alive_interval(Duration::from_secs(30));
    http2.max_header_list_size(HEADER_LIMIT as u32);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), TowerToHyperService::new(service));
    tokio::pin!(connection);
    tokio::select! {
        result = connection.as_mut() => {
            if let Err(error) = result {
                tracing::debug!(error, "a connection ended");
            }
            return;
        }
        () = stop.cancelled() => {}
        () = core.stop.cancelled() => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = connection.await;
}

/// One route: everything goes to the handler, which knows the API's paths.
fn routes(
    core: Arc<Core>,
) -> impl Filter<Extract = (warp::reply::Response,), Error = std::convert::Infallible> + Clone {
    let query = warp::query::raw().or(warp::any().map(String::new)).unify();
    warp::any()
        .and(warp::method())
        .and(warp::path::full())
        .and(query)
        .and(warp::header::headers_cloned())
        .and(warp::ext::optional::<Peer>())
        .and(warp::ext::optional::<Origin>())
        .and(warp::ext::optional::<OnUpgrade>())
        .and(warp::body::stream())
        .then(
            move |method: Method,
                  path: warp::path::FullPath,
                  query: String,
                  headers: HeaderMap,
                  peer: Option<Peer>,
                  from: Option<Origin>,
                  upgrade: Option<OnUpgrade>,
                  body| {
                let core = Arc::clone(&core);
                async move {
                    let response = match read(&headers, body).await {
                        Ok(body) => {
                            let incoming = Incoming {
                                method,
                                path: path.as_str().to_owned(),
                                query,
                                headers,
                                body,
                                peer: peer.map(|peer| peer.0),
                                from: from.map(|from| from.0),
                                upgrade,
                            };
                            handle(&core, incoming).await
                        }
                        Err(refusal) => form::finish(error(&refusal), &form::Wanted::of(&headers)).await,
                    };
                    reply(response)
                }
            },
        )
        .or(warp::any().map(|| reply(error(&ApiError::bad_request("the request cannot be read")))))
        .unify()
}

/// Reads a body, giving up as soon as it is too long.
async fn read<B>(
    headers: &HeaderMap,
    body: impl futures::Stream<Item = Result<B, warp::Error>>,
) -> Result<Bytes, ApiError>
where
    B: bytes::Buf,
{
    let announced = headers
        .get(http::header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.parse::<usize>().ok());
    let mut read = BytesMut::new();
    let mut body = std::pin::pin!(body);
    if announced.is_some_and(|length| length > BODY_LIMIT) {
        spill(body).await;
        return Err(ApiError::too_large(BODY_LIMIT));
    }
    while let Some(chunk) = body.next().await {
        let mut chunk = chunk.map_err(|error| ApiError::bad_request(format!("the body cannot be read: {error}")))?;
        if read.len() + chunk.remaining() > BODY_LIMIT {
            drop(read);
            spill(body).await;
            return Err(ApiError::too_large(BODY_LIMIT));
        }
        read.extend_from_slice(&chunk.copy_to_bytes(chunk.remaining()));
    }
    Ok(read.freeze())
}

/// The largest headers a request may have, all in all: those of Go's servers (`http.DefaultMaxHeaderBytes`). A token of
/// an identity provider that lists every group is longer than HTTP/2 libraries expect.
const HEADER_LIMIT: usize = 1024 * 1024;

/// How much of a body that is too long is read to its end and forgotten, and for how long.
const SPILL: usize = 64 * 1024 * 1024;
const SPILL_TIME: Duration = Duration::from_secs(5);

/// Reads on without keeping anything: most clients look at the answer only after they have sent all (an HTTP/2
/// stream that is closed before that is an error to them, RFC 9113 §8.1 notwithstanding).
async fn spill<B: bytes::Buf>(mut body: std::pin::Pin<&mut impl futures::Stream<Item = Result<B, warp::Error>>>) {
    let all = async {
        let mut read = 0;
        while let (true, Some(Ok(chunk))) = (read < SPILL, body.next().await) {
            read += chunk.remaining();
        }
    };
    // Whoever is slower than this gets the answer at once, read or not.
    let _ = tokio::time::timeout(SPILL_TIME, all).await;
}

/// Our response as warp's: bytes as they are, streams frame by frame.
fn reply(response: Response) -> warp::reply::Response {
    let (mut parts, body) = response.into_parts();
    if let (Some(length), false) = (body.length(), parts.status == http::StatusCode::SWITCHING_PROTOCOLS) {
        parts.headers.insert(http::header::CONTENT_LENGTH, http::HeaderValue::from(length));
    }
    let body = match body {
        Body::Full(bytes) | Body::Object(bytes, _) => warp::reply::Response::new(bytes.into()).into_body(),
        other => warp::Reply::into_response(warp::reply::stream(other.into_data_stream())).into_body(),
    };
    http::Response::from_parts(parts, body)
}
