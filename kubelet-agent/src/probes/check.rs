//! Owns one single check of a container: exec, HTTP or TCP. Knows nothing of thresholds.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction, HTTPHeader};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use proa_runtime::{ExecSpec, Runtime, RuntimeError};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

/// How much of a response or an output is read.
const MOST_BYTES: usize = 10 * 1024;
const MOST_REDIRECTS: usize = 10;

/// What a check found; `Err` holds the text of the Unhealthy event.
pub(crate) type Checked = Result<(), String>;

/// The number of a port that may be written by name.
pub(crate) fn port(container: &Container, port: &IntOrString) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(n) => u16::try_from(*n).ok(),
        IntOrString::String(name) => match name.parse() {
            Ok(n) => Some(n),
            Err(_) => container
                .ports
                .iter()
                .flatten()
                .find(|p| p.name.as_deref() == Some(name))
                .and_then(|p| u16::try_from(p.container_port).ok()),
        },
    };
    match number {
        Some(n) if n > 0 => Ok(n),
        _ => Err(format!("couldn't find port: {port:?}")),
    }
}

/// Runs a command; exit code 0 is success.
pub(crate) async fn exec(
    runtime: &Arc<dyn Runtime>,
    id: &str,
    command: &[String],
    timeout: Option<Duration>,
) -> Checked {
    let spec = ExecSpec { args: command.to_vec(), stdout: true, stderr: true, timeout, ..ExecSpec::default() };
    let mut session = match runtime.exec(id, spec).await {
        Ok(session) => session,
        Err(RuntimeError::Exec { message, .. }) => return Err(message),
        Err(error) => return Err(error.to_string()),
    };
    let out = session.stdout.take();
    let err = session.stderr.take();
    let read = async |stream: Option<proa_runtime::BoxedRead>| -> Vec<u8> {
        let mut kept = Vec::new();
        let Some(mut stream) = stream else { return kept };
        let mut chunk = [0; 4096];
        // Read on past what is kept: a full pipe would block the command.
        while let Ok(n @ 1..) = stream.read(&mut chunk).await {
            let room = MOST_BYTES.saturating_sub(kept.len());
            kept.extend_from_slice(&chunk[..n.min(room)]);
        }
        kept
    };
    let whole = async {
        let (out, err) = tokio::join!(read(out), read(err));
        (session.control.wait().await, out, err)
    };
    // The runtime ends the process at the time-out; a little later nothing is waited for any more.
    let limit = timeout.map_or(Duration::from_secs(3600 * 24), |t| t + Duration::from_secs(1));
    match tokio::time::timeout(limit, whole).await {
        Ok((Ok(0), _, _)) => Ok(()),
        Ok((Ok(124), _, _)) | Err(_) if timeout.is_some() => {
            Err(format!("command timed out: {:?} timed out after {}", command.join(" "), seconds(timeout)))
        }
        Ok((Ok(_), out, err)) => {
            let mut text = String::from_utf8_lossy(&out).into_owned();
            text.push_str(&String::from_utf8_lossy(&err));
            Err(text)
        }
        Ok((Err(error), _, _)) => Err(error.to_string()),
        Err(_) => Err("command timed out".to_owned()),
    }
}

fn seconds(timeout: Option<Duration>) -> String {
    format!("{}s", timeout.unwrap_or_default().as_secs())
}

/// Opens a connection.
pub(crate) async fn tcp(host: &str, port: u16, timeout: Duration) -> Checked {
    connect(host, port, timeout).await.map(|_| ())
}

async fn connect(host: &str, port: u16, timeout: Duration) -> Result<TcpStream, String> {
    let place = || if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    match tokio::time::timeout(timeout, TcpStream::connect((host, port))).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => {
            let why = match error.kind() {
                std::io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
                _ => error.to_string(),
            };
            Err(format!("dial tcp {}: {why}", place()))
        }
        Err(_) => Err(format!("dial tcp {}: i/o timeout", place())),
    }
}

/// A request of a probe or a hook, with its address resolved.
#[derive(Clone, Debug)]
pub(crate) struct HttpTarget {
    pub(crate) https: bool,
    pub(crate) host: String,
    pub(crate) port: u16,
    /// path and query, with a leading slash
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
}

impl HttpTarget {
    /// From an `httpGet`; `host` is the pod's address unless the action names one.
    pub(crate) fn new(container: &Container, action: &HTTPGetAction, host: &str) -> Result<Self, String> {
        let path = action.path.as_deref().unwrap_or("/");
        let header = |h: &HTTPHeader| (h.name.clone(), h.value.clone());
        Ok(Self {
            https: action.scheme.as_deref().is_some_and(|s| s.eq_ignore_ascii_case("https")),
            host: action.host.clone().filter(|h| !h.is_empty()).unwrap_or_else(|| host.to_owned()),
            port: port(container, &action.port)?,
            path: if path.starts_with('/') { path.to_owned() } else { format!("/{path}") },
            headers: action.http_headers.iter().flatten().map(header).collect(),
        })
    }

    fn url(&self) -> String {
        let scheme = if self.https { "https" } else { "http" };
        format!("{scheme}://{}{}", self.authority(), self.path)
    }

    fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

/// Sends a GET; a status from 200 to 399 is success. Redirects to the same host are followed.
pub(crate) async fn http(target: &HttpTarget, timeout: Duration) -> Checked {
    let url = target.url();
    match tokio::time::timeout(timeout, follow(target.clone(), timeout)).await {
        Ok(result) => result,
        Err(_) => {
            Err(format!("Get \"{url}\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)"))
        }
    }
}

async fn follow(mut target: HttpTarget, timeout: Duration) -> Checked {
    for _ in 0..=MOST_REDIRECTS {
        let url = target.url();
        let (status, location) = get(&target, timeout).await.map_err(|why| format!("Get \"{url}\": {why}"))?;
        let code = status.as_u16();
        let next = location.filter(|_| (300..400).contains(&code)).and_then(|l| redirect(&target, &l));
        match next {
            Some(next) => target = next,
            None if (200..400).contains(&code) => return Ok(()),
            None => return Err(format!("HTTP probe failed with statuscode: {code}")),
        }
    }
    Err(format!("Get \"{}\": stopped after {MOST_REDIRECTS} redirects", target.url()))
}

/// Where a redirect leads, when it stays on the host; leaving it is taken as success without a visit.
fn redirect(from: &HttpTarget, location: &str) -> Option<HttpTarget> {
    if location.starts_with('/') && !location.starts_with("//") {
        return Some(HttpTarget { path: location.to_owned(), ..from.clone() });
    }
    let uri: http::Uri = location.parse().ok()?;
    let host = uri.host()?.trim_matches(['[', ']']);
    if host != from.host {
        return None;
    }
    let https = uri.scheme_str() == Some("https");
    Some(HttpTarget {
        https,
        port: uri.port_u16().unwrap_or(if https { 443 } else { 80 }),
        path: uri.path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string),
        ..from.clone()
    })
}

async fn get(target: &HttpTarget, timeout: Duration) -> Result<(http::StatusCode, Option<String>), String> {
    let stream = connect(&target.host, target.port, timeout).await?;
    if target.https {
        let name = ServerName::try_from(target.host.clone()).map_err(|e| e.to_string())?;
        let stream = tokio_rustls::TlsConnector::from(trusting()?)
            .connect(name, stream)
            .await
            .map_err(|e| format!("tls: {e}"))?;
        exchange(target, TokioIo::new(stream)).await
    } else {
        exchange(target, TokioIo::new(stream)).await
    }
}

async fn exchange<S>(target: &HttpTarget, io: S) -> Result<(http::StatusCode, Option<String>), String>
where
    S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.map_err(|e| e.to_string())?;
    let driver = tokio::spawn(connection);
    let mut request = http::Request::get(&target.path)
        .header(http::header::USER_AGENT, "kube-probe/1.36")
        .header(http::header::CONNECTION, "close");
    let mut host = target.authority();
    let mut accept = true;
    for (name, value) in &target.headers {
        if name.eq_ignore_ascii_case("host") {
            host.clone_from(value);
        } else {
            accept &= !name.eq_ignore_ascii_case("accept");
            request = request.header(name, value);
        }
    }
    if accept {
        request = request.header(http::header::ACCEPT, "*/*");
    }
    let request = request.header(http::header::HOST, host).body(Empty::<Bytes>::new()).map_err(|e| e.to_string())?;
    let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
    let status = response.status();
    let location = response.headers().get(http::header::LOCATION).and_then(|l| l.to_str().ok()).map(str::to_owned);
    // Read what a small answer holds, so that a server does not see its connection reset.
    let _ = Limited::new(response.into_body(), MOST_BYTES).collect().await;
    driver.abort();
    Ok((status, location))
}

/// Probes do not verify certificates (Kubernetes documentation, "HTTP probes").
fn trusting() -> Result<Arc<rustls::ClientConfig>, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let schemes = provider.signature_verification_algorithms.supported_schemes();
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(schemes)))
        .with_no_client_auth();
    Ok(Arc::new(config))
}

#[derive(Debug)]
struct AnyCertificate(Vec<rustls::SignatureScheme>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;

    #[test]
    fn ports_are_numbers_or_names_of_the_container() {
        let container: Container =
            serde_json::from_value(json!({"name": "c", "ports": [{"name": "web", "containerPort": 8080}]})).unwrap();
        assert_eq!(port(&container, &IntOrString::Int(80)), Ok(80));
        assert_eq!(port(&container, &IntOrString::String("web".into())), Ok(8080));
        assert_eq!(port(&container, &IntOrString::String("81".into())), Ok(81));
        assert!(port(&container, &IntOrString::String("x".into())).is_err());
        assert!(port(&container, &IntOrString::Int(0)).is_err());
    }

    async fn answer(texts: &'static [&'static str]) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            for text in texts {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut buffer = [0; 2048];
                let _ = stream.read(&mut buffer).await;
                stream.write_all(text.as_bytes()).await.unwrap();
            }
        });
        port
    }

    async fn probe(texts: &'static [&'static str]) -> Checked {
        let port = answer(texts).await;
        let target = HttpTarget {
            https: false,
            host: "127.0.0.1".into(),
            port,
            path: "/x".into(),
            headers: vec![("X-A".into(), "b".into())],
        };
        http(&target, Duration::from_secs(5)).await
    }

    #[tokio::test]
    async fn http_checks_judge_by_status_and_follow_redirects_on_the_host() {
        assert_eq!(probe(&["HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"]).await, Ok(()));
        assert_eq!(
            probe(&["HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n"]).await,
            Err("HTTP probe failed with statuscode: 503".into())
        );
        assert_eq!(
            probe(&[
                "HTTP/1.1 302 F\r\nlocation: /y\r\ncontent-length: 0\r\n\r\n",
                "HTTP/1.1 404 N\r\ncontent-length: 0\r\n\r\n"
            ])
            .await,
            Err("HTTP probe failed with statuscode: 404".into())
        );
        assert_eq!(
            probe(&["HTTP/1.1 302 F\r\nlocation: http://elsewhere.example/\r\ncontent-length: 0\r\n\r\n"]).await,
            Ok(())
        );
    }

    #[tokio::test]
    async fn a_closed_port_is_told_as_go_tells_it() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        assert_eq!(
            tcp("127.0.0.1", port, Duration::from_secs(1)).await,
            Err(format!("dial tcp 127.0.0.1:{port}: connect: connection refused"))
        );
    }
}
