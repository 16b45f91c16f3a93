//! `proa echo`: the web service of the samples.
//!
//! Listens on 8080. `GET /` answers one line with version, pod and node, `GET /env/NAME` one environment variable,
//! `GET /healthz` 200. The version `broken` prints why and exits with 1, so that a failing rollout can be shown.
//!
//! It drains as every service behind a rolling update should: SIGTERM may overtake connections that wait to be accepted,
//! and a connection may have been accepted whose request is still on its way. So it goes on accepting until nothing new
//! has come for a moment, answers what was begun (with `Connection: close`), and only then ends.

use std::env;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

const PORT: u16 = 8080;
/// After SIGTERM, nothing new for so long means that nothing more will come.
const QUIET: Duration = Duration::from_millis(100);
/// A connection kept open after an answer gets so long for a last request; one that has asked nothing yet gets it all.
const IDLE: Duration = Duration::from_secs(1);
/// The longest a drain takes, well within the usual grace of a pod (30 s).
const DRAIN_LIMIT: Duration = Duration::from_secs(8);

pub(crate) async fn run() -> anyhow::Result<()> {
    let version = env::var("ECHO_VERSION").unwrap_or_else(|_| "dev".into());
    if version == "broken" {
        anyhow::bail!("echo: this version is broken on purpose: it cannot find its settings file");
    }
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let line = format!("echo {version} pod={} node={}\n", pod_name(), env::var("NODE_NAME").unwrap_or_default());
    let listener = TcpListener::bind(("0.0.0.0", PORT)).await.with_context(|| format!("cannot listen on {PORT}"))?;
    println!("echo {version} listening on {PORT}");
    serve(listener, line, async {
        terminate.recv().await;
        println!("echo {version} draining");
    })
    .await;
    Ok(())
}

/// Serves until `end`, then drains.
async fn serve(listener: TcpListener, line: String, end: impl Future<Output = ()>) {
    let line: Arc<str> = line.into();
    let (drain, draining) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut begin = |stream: TcpStream| {
        connections.spawn(converse(stream, line.clone(), draining.clone()));
        while connections.try_join_next().is_some() {}
    };
    let mut end = std::pin::pin!(end);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => begin(stream),
                // Out of descriptors, or a client that has gone: the next one may do better.
                Err(_) => sleep(Duration::from_millis(10)).await,
            },
            () = &mut end => break,
        }
    }
    drain.send_replace(true);
    let limit = Instant::now() + DRAIN_LIMIT;
    while let Ok(accepted) = timeout_at(limit.min(Instant::now() + QUIET), listener.accept()).await {
        if let Ok((stream, _)) = accepted {
            begin(stream);
        }
    }
    drop(listener);
    let _ = timeout_at(limit, async { while connections.join_next().await.is_some() {} }).await;
}

/// One connection, from its first request to its last.
async fn converse(stream: TcpStream, line: Arc<str>, mut draining: watch::Receiver<bool>) {
    let asked = Arc::new(AtomicBool::new(false));
    let answer = {
        let (asked, draining) = (asked.clone(), draining.clone());
        service_fn(move |request: Request<Incoming>| {
            asked.store(true, Ordering::Relaxed);
            let mut response = respond(&request, &line);
            if *draining.borrow() {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            std::future::ready(Ok::<_, std::convert::Infallible>(response))
        })
    };
    let mut connection = std::pin::pin!(http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
    let idle_for_long = async {
        // The sender outlives every connection.
        let _ = draining.wait_for(|draining| *draining).await;
        sleep(IDLE).await;
        if !asked.load(Ordering::Relaxed) {
            sleep(DRAIN_LIMIT).await;
        }
    };
    tokio::select! {
        // How a client went away is its own affair.
        _ = connection.as_mut() => return,
        () = idle_for_long => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

fn respond(request: &Request<Incoming>, line: &str) -> Response<Full<Bytes>> {
    let (status, body) = match request.uri().path() {
        "/" => (StatusCode::OK, line.to_owned()),
        "/healthz" => (StatusCode::OK, "ok\n".to_owned()),
        path => match path.strip_prefix("/env/") {
            Some(name) => match env::var(name) {
                Ok(value) => (StatusCode::OK, format!("{value}\n")),
                Err(_) => (StatusCode::NOT_FOUND, format!("{name} is not set\n")),
            },
            None => (StatusCode::NOT_FOUND, format!("nothing is at {path}; try /, /healthz or /env/NAME\n")),
        },
    };
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// A pod's host name is its name unless the pod says otherwise.
fn pod_name() -> String {
    env::var("POD_NAME")
        .or_else(|_| std::fs::read_to_string("/proc/sys/kernel/hostname").map(|name| name.trim().to_owned()))
        .unwrap_or_default()
}

/// Asks `url` twice a second until it answers with 200: what an init container waits for.
///
/// # Errors
/// When `url` is not of the form `http://HOST[:PORT]/PATH`.
pub(crate) async fn wait_for(url: &str) -> anyhow::Result<()> {
    let rest = url.strip_prefix("http://").with_context(|| format!("{url:?} does not begin with http://"))?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let address = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
    println!("waiting for {url}");
    while !answers(&address, host, path).await {
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    println!("{url} answers");
    Ok(())
}

async fn answers(address: &str, host: &str, path: &str) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(address).await?;
        stream
            .write_all(format!("GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes())
            .await?;
        let mut status = [0; 12];
        stream.read_exact(&mut status).await?;
        Ok::<bool, std::io::Error>(status.ends_with(b"200"))
    };
    matches!(tokio::time::timeout(Duration::from_secs(2), ask).await, Ok(Ok(true)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    async fn ask(stream: &mut TcpStream, keep: bool) -> std::io::Result<String> {
        let close = if keep { "" } else { "Connection: close\r\n" };
        stream.write_all(format!("GET / HTTP/1.1\r\nHost: echo\r\n{close}\r\n").as_bytes()).await?;
        let mut answer = Vec::new();
        let mut piece = [0; 1024];
        while !answer.ends_with(b"hello\n") {
            match stream.read(&mut piece).await? {
                0 => break,
                n => answer.extend_from_slice(&piece[..n]),
            }
        }
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn draining_answers_whoever_waits_to_be_accepted_asks_late_or_asks_again() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (end, ended) = oneshot::channel::<()>();
        let mut kept = TcpStream::connect(address).await.expect("a connection");
        let mut silent = TcpStream::connect(address).await.expect("a connection");
        let server = tokio::spawn(serve(listener, "hello\n".to_owned(), async { ended.await.expect("the end") }));
        assert!(!ask(&mut kept, true).await.expect("an answer").contains("connection: close"));
        end.send(()).expect("the server listens");
        let mut late = TcpStream::connect(address).await.expect("still accepting");
        for (stream, keep) in [(&mut late, false), (&mut silent, false), (&mut kept, true)] {
            let answer = ask(stream, keep).await.expect("no reset");
            assert!(answer.ends_with("hello\n") && answer.contains("connection: close"), "{answer:?}");
        }
        let begun = Instant::now();
        server.await.expect("the server ends");
        assert!(begun.elapsed() < IDLE, "nothing was open any more");
        assert!(TcpStream::connect(address).await.is_err());
    }

    #[tokio::test]
    async fn an_idle_connection_holds_a_drain_up_for_a_moment_only() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let mut idle = TcpStream::connect(address).await.expect("a connection");
        let (end, ended) = oneshot::channel::<()>();
        let server = tokio::spawn(serve(listener, "hello\n".to_owned(), async { ended.await.expect("the end") }));
        ask(&mut idle, true).await.expect("an answer");
        end.send(()).expect("the server listens");
        let begun = Instant::now();
        server.await.expect("the server ends");
        assert!(begun.elapsed() >= IDLE && begun.elapsed() < DRAIN_LIMIT / 2, "{:?}", begun.elapsed());
    }
}
