//! The same server without a socket: a `tower` service for clients in this process.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use proa_apimachinery::status::ApiError;

use crate::core::Core;
use crate::handler::{Incoming, handle};
use crate::http::{Body, Response, error};
use crate::user::User;

/// A connection of one user to the server in this process. Cloning is cheap.
#[derive(Clone)]
pub struct LocalService {
    core: Arc<Core>,
    user: User,
}

impl LocalService {
    pub(crate) fn new(core: Arc<Core>, user: User) -> Self {
        LocalService { core, user }
    }

    async fn answer(self, request: http::Request<Bytes>) -> Response {
        let (parts, body) = request.into_parts();
        let incoming = Incoming {
            method: parts.method,
            path: parts.uri.path().to_owned(),
            query: parts.uri.query().unwrap_or_default().to_owned(),
            headers: parts.headers,
            body,
            peer: Some(self.user),
            from: None,
            upgrade: parts.extensions.get().cloned(),
        };
        handle(&self.core, incoming).await
    }

    /// An upgrade needs a connection to take over: the request goes through HTTP/1.1 over a pipe in memory,
    /// whose ends then belong to the client and to whoever answers.
    async fn upgraded(self, request: http::Request<Bytes>) -> Result<Response, hyper::Error> {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
            let local = self.clone();
            async move {
                let upgrade = request.extensions().get::<hyper::upgrade::OnUpgrade>().cloned();
                let (mut parts, body) = request.into_parts();
                parts.extensions.extend(
                    upgrade
                        .map(|upgrade| {
                            let mut extensions = http::Extensions::new();
                            extensions.insert(upgrade);
                            extensions
                        })
                        .unwrap_or_default(),
                );
                let body = body.collect().await?.to_bytes();
                Ok::<_, hyper::Error>(local.answer(http::Request::from_parts(parts, body)).await)
            }
        });
        tokio::spawn(async move {
            let connection =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(far), service).with_upgrades();
            if let Err(error) = connection.await {
                tracing::debug!(%error, "an in-process connection ended");
            }
        });
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(near)).await?;
        tokio::spawn(connection.with_upgrades());
        let (mut parts, body) = request.into_parts();
        // HTTP/1.1 wants a path and a host, where in-process clients may give a whole URI.
        if let Some(path) = parts.uri.path_and_query().cloned() {
            parts.uri = path.into();
        }
        parts.headers.entry(http::header::HOST).or_insert(http::HeaderValue::from_static("proa"));
        parts.extensions = http::Extensions::new();
        let response = sender.send_request(http::Request::from_parts(parts, Full::new(body))).await?;
        Ok(response.map(|body| {
            let data = futures::StreamExt::map(body.into_data_stream(), |chunk| chunk.map_err(std::io::Error::other));
            Body::stream(futures::StreamExt::map(data, move |chunk| {
                // Keeps the connection open as long as the body is read.
                let _ = &sender;
                chunk
            }))
        }))
    }
}

impl<B> tower::Service<http::Request<B>> for LocalService
where
    B: http_body::Body + Send + 'static,
    B::Data: Send,
    B::Error: std::fmt::Display,
{
    type Response = Response;
    type Error = std::convert::Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, std::convert::Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let local = self.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let body = match body.collect().await {
                Ok(body) => body.to_bytes(),
                Err(failure) => {
                    return Ok(error(&ApiError::bad_request(format!("the body cannot be read: {failure}"))));
                }
            };
            let upgrading = parts.headers.contains_key(http::header::UPGRADE);
            let request = http::Request::from_parts(parts, body);
            if !upgrading {
                return Ok(local.answer(request).await);
            }
            Ok(local.upgraded(request).await.unwrap_or_else(|failure| error(&ApiError::internal(failure))))
        })
    }
}
