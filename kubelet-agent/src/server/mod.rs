//! Owns the node's HTTPS API: logs, exec, attach, port-forward, stats. The paths are the kubelet's. Never starts
//! or stops a container.

pub(crate) mod access;
pub(crate) mod logs;
pub(crate) mod rotation;
mod routes;
mod stats;
pub(crate) mod tls;

use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::{ServiceBuilder, ServiceExt as _};

use crate::pods::context::Context;

/// How long a client may take for its TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Serves until `shutdown`.
pub(crate) async fn serve(
    ctx: Arc<Context>,
    listener: TcpListener,
    acceptor: TlsAcceptor,
    shutdown: CancellationToken,
) {
    let gate = Arc::new(access::Gate::new(ctx.client.clone(), ctx.node_name.clone()));
    loop {
        let stream = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, as a rule: some will come free.
                    tracing::warn!(%error, "a connection was not accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let (acceptor, ctx, gate, shutdown) = (acceptor.clone(), ctx.clone(), gate.clone(), shutdown.clone());
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            let tls = match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                Ok(Ok(tls)) => tls,
                Ok(Err(error)) => return tracing::debug!(%error, "TLS handshake failed"),
                Err(_) => return,
            };
            let peer = access::peer(tls.get_ref().1);
            let service = ServiceBuilder::new()
                .map_request(move |mut request: http::Request<hyper::body::Incoming>| {
                    request.extensions_mut().insert(peer.clone());
                    request
                })
                .service(warp::service(routes::all(ctx, gate)))
                .boxed_clone();
            let builder = auto::Builder::new(TokioExecutor::new());
            let connection =
                builder.serve_connection_with_upgrades(TokioIo::new(tls), TowerToHyperService::new(service));
            tokio::select! {
                result = connection => if let Err(error) = result {
                    tracing::debug!(error, "connection ended");
                },
                () = shutdown.cancelled() => {}
            }
        });
    }
}
