//! The way to a member of the cluster: one HTTP/2 connection at a time, to whichever answers.
//!
//! Owns connections, TLS and gRPC's framing (five bytes before each message, the outcome in the trailers; "gRPC over
//! HTTP2"). Never tries a call again: whether that is safe is for the caller to know.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::StreamExt;
use http::{HeaderMap, Request, StatusCode, Uri};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, mpsc};
use tokio_rustls::TlsConnector;

/// How long a member may take to accept a connection.
const CONNECT_WITHIN: Duration = Duration::from_secs(3);
/// How long an answer may take. A member itself gives up after seven seconds when the cluster has lost its leader.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// A connection over which nothing comes is asked after so often, and given up on after so long.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(10);
const KEEP_ALIVE_WITHIN: Duration = Duration::from_secs(5);
/// What may be under way to us: pages of a thousand objects arrive in one go.
const WINDOW: u32 = 4 << 20;

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Where the members are, and how they and we are known to each other.
#[derive(Clone, Debug, Default)]
pub struct EtcdServers {
    /// Their URLs, `https://10.0.0.1:2379` or `http://…`.
    pub urls: Vec<String>,
    /// The certificates (PEM) members are known by; the system's when there is none.
    pub ca_file: Option<PathBuf>,
    /// Our certificate (PEM).
    pub certificate_file: Option<PathBuf>,
    /// Its key (PEM).
    pub key_file: Option<PathBuf>,
}

/// Why a call has no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// No member could be reached: nothing was asked.
    #[error("{0}")]
    Unreachable(String),
    /// The connection broke, or nothing came in time: what was asked may have been done.
    #[error("{0}")]
    Lost(String),
    /// etcd said no.
    #[error("{message}")]
    Refused {
        /// gRPC's status code.
        code: u32,
        /// etcd's words.
        message: String,
    },
}

/// gRPC's codes that etcd uses for what passes by itself.
const DEADLINE_EXCEEDED: u32 = 4;
const UNAVAILABLE: u32 = 14;

impl CallError {
    /// Whether trying again, perhaps at another member, can help.
    pub(crate) fn passes(&self) -> bool {
        match self {
            CallError::Unreachable(_) | CallError::Lost(_) => true,
            CallError::Refused { code, message } => {
                matches!(*code, UNAVAILABLE | DEADLINE_EXCEEDED) || message.contains("too many requests")
            }
        }
    }

    /// Whether what was asked may have been done all the same.
    pub(crate) fn leaves_doubt(&self) -> bool {
        match self {
            CallError::Unreachable(_) => false,
            CallError::Lost(_) => true,
            CallError::Refused { code, .. } => matches!(*code, UNAVAILABLE | DEADLINE_EXCEEDED),
        }
    }
}

/// One member.
#[derive(Clone, Debug)]
struct Member {
    url: String,
    host: String,
    port: u16,
    tls: bool,
}

impl Member {
    fn parse(url: &str) -> Result<Member, String> {
        let bad = || format!("{url:?} is no URL of an etcd member such as https://10.0.0.1:2379");
        let uri: Uri = url.parse().map_err(|_| bad())?;
        if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err("user names and passwords for etcd are not used: give a client certificate instead".to_owned());
        }
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(bad()),
        };
        let host = uri.host().ok_or_else(bad)?.trim_matches(['[', ']']).to_owned();
        if !matches!(uri.path(), "" | "/") {
            return Err(bad());
        }
        Ok(Member { url: url.trim_end_matches('/').to_owned(), host, port: uri.port_u16().unwrap_or(2379), tls })
    }
}

/// A connection in use.
#[derive(Clone)]
struct Line {
    sender: SendRequest<Body>,
    /// Counts connections, so that a broken one is given up once.
    number: u64,
    origin: Arc<str>,
}

#[derive(Default)]
struct Lines {
    current: Option<Line>,
    made: u64,
    /// The member to try next.
    next: usize,
}

/// The way to the cluster.
pub(crate) struct Channel {
    /// Whether the last question was answered, if only by a refusal.
    answers: AtomicBool,
    members: Vec<Member>,
    servers: EtcdServers,
    lines: Mutex<Lines>,
}

impl Channel {
    pub(crate) fn new(servers: EtcdServers) -> Result<Channel, String> {
        let members = servers.urls.iter().map(|url| Member::parse(url)).collect::<Result<Vec<_>, _>>()?;
        if members.is_empty() {
            return Err("no etcd server is given".to_owned());
        }
        if servers.certificate_file.is_some() != servers.key_file.is_some() {
            return Err("a client certificate for etcd needs both a certificate and a key file".to_owned());
        }
        let channel = Channel { answers: AtomicBool::new(true), members, servers, lines: Mutex::default() };
        // What is wrong with the files is told now, not when a member is away.
        if channel.members.iter().any(|member| member.tls) {
            channel.tls()?;
        }
        Ok(channel)
    }

    /// Whether the last question was answered.
    pub(crate) fn answers(&self) -> bool {
        self.answers.load(Ordering::Relaxed)
    }

    /// One question, one answer.
    pub(crate) async fn call(&self, path: &'static str, message: &[u8]) -> Result<Bytes, CallError> {
        let line = self.line().await?;
        let asked = async {
            let request = request(&line, path, Full::new(framed(message)).boxed_unsync());
            let mut sender = line.sender.clone();
            let response = sender.send_request(request).await.map_err(lost)?;
            let mut frames = Frames::of(response).await?;
            let answer = frames.next().await?;
            // The outcome comes after the message.
            while frames.next().await?.is_some() {}
            answer.ok_or_else(|| CallError::Lost("the answer is empty".to_owned()))
        };
        let answer = match tokio::time::timeout(ANSWER_WITHIN, asked).await {
            Ok(answer) => answer,
            Err(_) => Err(CallError::Lost(format!("etcd did not answer within {ANSWER_WITHIN:?}"))),
        };
        self.give_up_on(&line, answer.as_ref().err()).await;
        answer
    }

    /// A conversation: what is sent into the first goes to the member, what it says comes out of the second.
    pub(crate) async fn talk(
        &self,
        path: &'static str,
        first: &[u8],
    ) -> Result<(mpsc::UnboundedSender<Bytes>, Frames), CallError> {
        let line = self.line().await?;
        let (say, said) = mpsc::unbounded_channel::<Bytes>();
        // The member answers the first message: without it there would be no response to wait for.
        let _ = say.send(framed(first));
        let said = futures::stream::unfold(said, |mut said| async move { said.recv().await.map(|next| (next, said)) });
        let body = StreamBody::new(said.map(|message| Ok::<_, Infallible>(Frame::data(message)))).boxed_unsync();
        let opened = async {
            let mut sender = line.sender.clone();
            let response = sender.send_request(request(&line, path, body)).await.map_err(lost)?;
            Frames::of(response).await
        };
        let opened = match tokio::time::timeout(ANSWER_WITHIN, opened).await {
            Ok(opened) => opened,
            Err(_) => Err(CallError::Lost(format!("etcd did not answer within {ANSWER_WITHIN:?}"))),
        };
        self.give_up_on(&line, opened.as_ref().err()).await;
        Ok((say, opened?))
    }

    /// The connection in use, or a new one to the first member that takes it.
    async fn line(&self) -> Result<Line, CallError> {
        let mut lines = self.lines.lock().await;
        if let Some(line) = lines.current.as_ref().filter(|line| !line.sender.is_closed()) {
            return Ok(line.clone());
        }
        if lines.current.take().is_some() {
            lines.next += 1;
        }
        let mut failures = Vec::new();
        for step in 0..self.members.len() {
            let at = (lines.next + step) % self.members.len();
            let member = &self.members[at];
            let connected = tokio::time::timeout(CONNECT_WITHIN, self.connect(member)).await;
            match connected.unwrap_or_else(|_| Err(format!("no connection within {CONNECT_WITHIN:?}"))) {
                Ok(sender) => {
                    lines.next = at;
                    lines.made += 1;
                    let scheme = if member.tls { "https" } else { "http" };
                    let host =
                        if member.host.contains(':') { format!("[{}]", member.host) } else { member.host.clone() };
                    let origin = format!("{scheme}://{host}:{}", member.port).into();
                    let line = Line { sender, number: lines.made, origin };
                    lines.current = Some(line.clone());
                    return Ok(line);
                }
                Err(why) => failures.push(format!("{}: {why}", member.url)),
            }
        }
        self.answers.store(false, Ordering::Relaxed);
        Err(CallError::Unreachable(format!("no etcd member can be reached ({})", failures.join("; "))))
    }

    /// After a failure that another member might not have, the next one is tried.
    async fn give_up_on(&self, line: &Line, error: Option<&CallError>) {
        self.answers.store(!matches!(error, Some(CallError::Lost(_))), Ordering::Relaxed);
        let elsewhere = match error {
            None | Some(CallError::Unreachable(_)) => false,
            Some(CallError::Lost(_)) => true,
            Some(CallError::Refused { code, .. }) => *code == UNAVAILABLE,
        };
        if elsewhere {
            self.leave(line.number).await;
        }
    }

    async fn leave(&self, number: u64) {
        let mut lines = self.lines.lock().await;
        if lines.current.as_ref().is_some_and(|current| current.number == number) {
            lines.current = None;
            lines.next += 1;
        }
    }

    async fn connect(&self, member: &Member) -> Result<SendRequest<Body>, String> {
        let socket =
            TcpStream::connect((member.host.as_str(), member.port)).await.map_err(|error| error.to_string())?;
        socket.set_nodelay(true).map_err(|error| error.to_string())?;
        if !member.tls {
            return handshake(TokioIo::new(socket)).await;
        }
        // The files are read for each connection: certificates are renewed while we run.
        let config = Arc::new(self.tls()?);
        let name = ServerName::try_from(member.host.clone()).map_err(|error| error.to_string())?;
        let stream = TlsConnector::from(config).connect(name, socket).await.map_err(|error| error.to_string())?;
        handshake(TokioIo::new(stream)).await
    }

    fn tls(&self) -> Result<rustls::ClientConfig, String> {
        let mut roots = rustls::RootCertStore::empty();
        match &self.servers.ca_file {
            Some(file) => {
                for certificate in certificates(file)? {
                    roots.add(certificate).map_err(|error| format!("{}: {error}", file.display()))?;
                }
            }
            None => {
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            }
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots);
        let mut config = match (&self.servers.certificate_file, &self.servers.key_file) {
            (Some(certificate), Some(key)) => builder
                .with_client_auth_cert(certificates(certificate)?, private_key(key)?)
                .map_err(|error| format!("{}: {error}", certificate.display()))?,
            _ => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let text = std::fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let certificates: Vec<_> = rustls_pemfile::certs(&mut &text[..])
        .collect::<Result<_, _>>()
        .map_err(|error| format!("{}: {error}", file.display()))?;
    if certificates.is_empty() {
        return Err(format!("{} holds no certificate", file.display()));
    }
    Ok(certificates)
}

fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let text = std::fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
    rustls_pemfile::private_key(&mut &text[..])
        .map_err(|error| format!("{}: {error}", file.display()))?
        .ok_or_else(|| format!("{} holds no private key", file.display()))
}

async fn handshake<S>(stream: TokioIo<S>) -> Result<SendRequest<Body>, String>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(2 * WINDOW)
        .keep_alive_interval(KEEP_ALIVE_EVERY)
        .keep_alive_timeout(KEEP_ALIVE_WITHIN)
        .handshake(stream)
        .await
        .map_err(|error| error.to_string())?;
    // It ends with its last sender; why it broke, those who wait for answers are told.
    tokio::spawn(connection);
    Ok(sender)
}

fn request(line: &Line, path: &'static str, body: Body) -> Request<Body> {
    let mut request = Request::new(body);
    *request.method_mut() = http::Method::POST;
    // Parsed when the member's URL was; a path of ours adds nothing that could be refused.
    *request.uri_mut() = format!("{}{path}", line.origin).parse().unwrap_or_default();
    let headers = request.headers_mut();
    headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/grpc"));
    headers.insert(http::header::TE, http::HeaderValue::from_static("trailers"));
    headers.insert(http::header::USER_AGENT, http::HeaderValue::from_static("proa"));
    // A member without a leader ends a watch instead of leaving it waiting (etcd's `WithRequireLeader`).
    headers.insert("hasleader", http::HeaderValue::from_static("true"));
    request
}

pub(super) fn framed(message: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(message.len() + 5);
    out.put_u8(0);
    // A request of 4 GiB is far past what etcd takes.
    out.put_u32(message.len() as u32);
    out.put_slice(message);
    out.freeze()
}

fn lost(error: hyper::Error) -> CallError {
    use std::error::Error;
    let cause = error.source().map(|source| format!(": {source}")).unwrap_or_default();
    CallError::Lost(format!("the connection to etcd broke: {error}{cause}"))
}

/// The messages a member sends.
pub(crate) struct Frames {
    body: Option<Incoming>,
    buffer: BytesMut,
}

impl Frames {
    async fn of(response: http::Response<Incoming>) -> Result<Frames, CallError> {
        if response.status() != StatusCode::OK {
            return Err(CallError::Lost(format!("this is no etcd server: it answered {}", response.status())));
        }
        outcome(response.headers())?;
        Ok(Frames { body: Some(response.into_body()), buffer: BytesMut::new() })
    }

    /// The next message; nothing once all went well to the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, CallError> {
        loop {
            if let Some(message) = self.take()? {
                return Ok(Some(message));
            }
            let Some(body) = &mut self.body else { return Ok(None) };
            match body.frame().await {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.buffer.extend_from_slice(&data),
                    Err(frame) => {
                        if let Ok(trailers) = frame.into_trailers() {
                            outcome(&trailers)?;
                        }
                    }
                },
                Some(Err(error)) => return Err(lost(error)),
                None => self.body = None,
            }
        }
    }

    fn take(&mut self) -> Result<Option<Bytes>, CallError> {
        let Some(head) = self.buffer.get(..5) else { return Ok(None) };
        if head[0] != 0 {
            return Err(CallError::Lost("the answer is compressed, which was not asked for".to_owned()));
        }
        let len = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        if self.buffer.len() < 5 + len {
            self.buffer.reserve(5 + len - self.buffer.len());
            return Ok(None);
        }
        self.buffer.advance(5);
        Ok(Some(self.buffer.split_to(len).freeze()))
    }
}

/// The status in headers or trailers, if it is there.
fn outcome(headers: &HeaderMap) -> Result<(), CallError> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    match text("grpc-status").map(|status| status.parse::<u32>().unwrap_or(2)) {
        None | Some(0) => Ok(()),
        Some(code) => {
            let message = percent_decoded(text("grpc-message").unwrap_or_default());
            let message = if message.is_empty() { format!("etcd answered with status {code}") } else { message };
            Err(CallError::Refused { code, message })
        }
    }
}

/// gRPC's messages are percent-encoded.
fn percent_decoded(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let hex = (byte == b'%').then(|| std::str::from_utf8(after.get(..2)?).ok()).flatten();
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(decoded) => {
                out.push(decoded);
                rest = &after[2..];
            }
            None => {
                out.push(byte);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_members_url_says_host_port_and_whether_tls_is_spoken() {
        let member = |url: &str| Member::parse(url).map(|member| (member.host, member.port, member.tls));
        assert_eq!(member("https://etcd-0.example"), Ok(("etcd-0.example".into(), 2379, true)));
        assert_eq!(member("http://[::1]:4001/"), Ok(("::1".into(), 4001, false)));
        for wrong in ["10.0.0.1:2379", "unix:///run/etcd", "https://a/path", ""] {
            assert!(member(wrong).unwrap_err().contains("is no URL of an etcd member"), "{wrong}");
        }
        assert!(member("http://root:secret@a:2379").unwrap_err().contains("client certificate instead"));
    }

    #[test]
    fn what_etcd_says_is_read_as_it_meant_it() {
        assert_eq!(percent_decoded("etcdserver: 100%25 %zz%"), "etcdserver: 100% %zz%");
        let mut headers = HeaderMap::new();
        assert!(outcome(&headers).is_ok());
        headers.insert("grpc-status", http::HeaderValue::from_static("14"));
        headers.insert("grpc-message", http::HeaderValue::from_static("etcdserver: leader changed"));
        let error = outcome(&headers).unwrap_err();
        assert!(error.passes() && error.leaves_doubt());
        assert_eq!(error.to_string(), "etcdserver: leader changed");
        headers.insert("grpc-status", http::HeaderValue::from_static("7"));
        assert!(!outcome(&headers).unwrap_err().passes());
    }
}
