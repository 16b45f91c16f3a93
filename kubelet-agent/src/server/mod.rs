//! Owns the node's HTTPS API: logs, exec, attach, port-forward, stats. Never starts or stops a container.

pub(crate) mod logs;
pub(crate) mod rotation;
pub(crate) mod tls;

use crate::pods::context::Context;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

pub(crate) async fn serve(_: Arc<Context>, _: TcpListener, _: TlsAcceptor, _: CancellationToken) {}
