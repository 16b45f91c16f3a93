//! Owns the paths of the node's API and what each answers.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use proa_runtime::{AttachSpec, ExecSpec, RuntimeError, Session};
use tokio::sync::{mpsc, watch};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use warp::Filter as _;
use warp::reply::{Reply as _, Response};

use super::access::{Access, Gate, Peer};
use super::{logs, stats};
use crate::pods::actions::{containers, is_over};
use crate::pods::context::{Context, View};
use crate::pods::start::container_id;
use crate::pods::track::{State, Track};
use crate::pods::uid;
use crate::streams::port_forward::{self, Dialer};
use crate::streams::remote_command::{self, Request};
use crate::streams::websocket;

/// SPDY's protocol name, and the remote command protocol spoken over it.
const SPDY: &str = "SPDY/3.1";
const STREAM_PROTOCOL: &str = "x-stream-protocol-version";
const SPDY_REMOTE_COMMAND: &str = "v4.channel.k8s.io";
const SPDY_PORT_FORWARD: &str = "portforward.k8s.io";

/// A request, as far as the routes look.
struct Asked {
    method: Method,
    path: String,
    query: Vec<(String, String)>,
    headers: HeaderMap,
    upgrade: Option<OnUpgrade>,
}

/// An answer that is not what was asked for.
struct Refusal(StatusCode, String);

type Answer = Result<Response, Refusal>;

/// Every route.
pub(super) fn all(
    ctx: Arc<Context>,
    gate: Arc<Gate>,
) -> impl warp::Filter<Extract = (Response,), Error = Infallible> + Clone {
    warp::method()
        .and(warp::path::full())
        .and(warp::query::raw().or(warp::any().map(String::new)).unify())
        .and(warp::header::headers_cloned())
        .and(warp::ext::optional::<OnUpgrade>())
        .and(warp::ext::optional::<Peer>())
        .then(move |method: Method, path: warp::path::FullPath, query: String, headers, upgrade, peer: Option<Peer>| {
            let (ctx, gate) = (ctx.clone(), gate.clone());
            async move {
                let path = path.as_str().to_owned();
                let asked = Asked { method, path, query: pairs(&query), headers, upgrade };
                let answer = match allowed(&gate, &peer.unwrap_or_default(), &asked).await {
                    Ok(()) => route(&ctx, asked).await,
                    Err(refusal) => Err(refusal),
                };
                answer.unwrap_or_else(|Refusal(status, text)| plain(status, text))
            }
        })
}

fn plain(status: StatusCode, text: impl Into<String>) -> Response {
    let mut text = text.into();
    if !text.ends_with('\n') {
        text.push('\n');
    }
    warp::reply::with_status(text, status).into_response()
}

async fn allowed(gate: &Gate, peer: &Peer, asked: &Asked) -> Result<(), Refusal> {
    if asked.path == "/healthz" {
        return Ok(());
    }
    match gate.check(peer, &asked.method, &asked.path).await {
        Access::Granted => Ok(()),
        Access::Unknown => Err(Refusal(StatusCode::UNAUTHORIZED, "Unauthorized".to_owned())),
        Access::Denied => {
            let who = peer.0.as_ref().map_or("", |u| u.name.as_str());
            Err(Refusal(
                StatusCode::FORBIDDEN,
                format!("Forbidden (user={who}, verb={}, resource=nodes)", asked.method),
            ))
        }
    }
}

async fn route(ctx: &Arc<Context>, asked: Asked) -> Answer {
    let path = asked.path.clone();
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    match parts.as_slice() {
        ["healthz"] => Ok(warp::reply::with_status("ok", StatusCode::OK).into_response()),
        ["pods"] => Ok(warp::reply::json(&stats::pods(ctx, false)).into_response()),
        ["runningpods"] => Ok(warp::reply::json(&stats::pods(ctx, true)).into_response()),
        ["stats", "summary"] => Ok(warp::reply::json(&stats::summary(ctx).await).into_response()),
        ["metrics"] => Ok(stats::metrics(ctx).await.into_response()),
        ["metrics", "resource"] => Ok(stats::resource_metrics(ctx).await.into_response()),
        ["containerLogs", namespace, pod, container] => container_logs(ctx, &asked, namespace, pod, container),
        ["exec", namespace, pod, container] | ["exec", namespace, pod, _, container] => {
            exec(ctx, asked, namespace, pod, container).await
        }
        ["attach", namespace, pod, container] | ["attach", namespace, pod, _, container] => {
            attach(ctx, asked, namespace, pod, container).await
        }
        ["portForward", namespace, pod] | ["portForward", namespace, pod, _] => {
            port_forward(ctx, asked, namespace, pod)
        }
        _ => Err(Refusal(StatusCode::NOT_FOUND, "404 page not found".to_owned())),
    }
}

/// The pairs of a query string, decoded.
fn pairs(query: &str) -> Vec<(String, String)> {
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decoded(name), decoded(value))
        })
        .collect()
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let hex = tail.get(..2).and_then(|h| u8::from_str_radix(std::str::from_utf8(h).ok()?, 16).ok());
        match (first, hex) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[2..];
                continue;
            }
            (b'+', _) => bytes.push(b' '),
            (byte, _) => bytes.push(*byte),
        }
        rest = tail;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn find(ctx: &Context, namespace: &str, pod: &str) -> Result<watch::Receiver<View>, Refusal> {
    ctx.registry
        .find(namespace, pod)
        .ok_or_else(|| Refusal(StatusCode::NOT_FOUND, format!("pod \"{namespace}/{pod}\" does not exist")))
}

fn track_of(view: &View, container: &str) -> Result<Track, Refusal> {
    view.tracks.iter().find(|t| t.name == container).cloned().ok_or_else(|| {
        let name = view.pod.metadata.name.as_deref().unwrap_or_default();
        Refusal(StatusCode::BAD_REQUEST, format!("container {container} is not valid for pod {name}"))
    })
}

fn runs_again(view: &View, track: &Track) -> bool {
    let list = containers(&view.pod.spec);
    let container = list.iter().find(|(_, c)| c.name == track.name).map(|(_, c)| c);
    view.pod.metadata.deletion_timestamp.is_none() && !is_over(&view.pod.spec, container, track)
}

/// Which run's log is asked for, in the kubelet's words when there is none.
fn run_of(view: &View, track: &Track, previous: bool) -> Result<(u32, bool), Refusal> {
    let pod = view.pod.metadata.name.as_deref().unwrap_or_default();
    let container = &track.name;
    let refuse = |text: String| Err(Refusal(StatusCode::BAD_REQUEST, text));
    if previous {
        let attempt = match &track.state {
            // While it waits for its next run, the run that ended is the last state, as `kubectl describe` shows it.
            State::Ended(ended) if runs_again(view, track) => Some(ended.run.attempt),
            State::Ended(ended) if track.last.is_none() => ended.run.attempt.checked_sub(1),
            _ => track.last.as_ref().map(|ended| ended.run.attempt),
        };
        return match attempt {
            Some(attempt) => Ok((attempt, false)),
            None => refuse(format!("previous terminated container \"{container}\" in pod \"{pod}\" not found")),
        };
    }
    if let Some(run) = track.run() {
        return Ok((run.attempt, true));
    }
    if let Some(ended) = track.ended() {
        return Ok((ended.run.attempt, false));
    }
    match &track.state {
        State::Blocked(blocked) if blocked.reason.contains("Image") => refuse(format!(
            "container \"{container}\" in pod \"{pod}\" is waiting to start: {}",
            match blocked.reason {
                "ErrImagePull" | "ImagePullBackOff" => "trying and failing to pull image",
                "InvalidImageName" => "invalid image name",
                other => other,
            }
        )),
        State::Blocked(blocked) => {
            refuse(format!("container \"{container}\" in pod \"{pod}\" is waiting to start: {}", blocked.reason))
        }
        // Its program may run already while a hook does.
        State::Starting => Ok((track.next_attempt, true)),
        _ => refuse(format!("container \"{container}\" in pod \"{pod}\" is waiting to start: ContainerCreating")),
    }
}

fn container_logs(ctx: &Arc<Context>, asked: &Asked, namespace: &str, pod: &str, container: &str) -> Answer {
    let options = logs::Options::parse(&asked.query, Timestamp::now())
        .map_err(|why| Refusal(StatusCode::UNPROCESSABLE_ENTITY, why))?;
    let view = find(ctx, namespace, pod)?;
    let (log, id) = {
        let seen = view.borrow();
        let track = track_of(&seen, container)?;
        let (attempt, started) = run_of(&seen, &track, options.previous)?;
        let log = ctx.layout.log(uid(&seen.pod), container, attempt);
        if track.state == State::Starting && started && !log.exists() {
            return Err(Refusal(
                StatusCode::BAD_REQUEST,
                format!("container \"{container}\" in pod \"{pod}\" is waiting to start: ContainerCreating"),
            ));
        }
        (log, container_id(uid(&seen.pod), container, attempt))
    };
    let (sender, receiver) = mpsc::channel(16);
    tokio::spawn(logs::read(log, options, id, view, sender));
    let stream =
        futures::stream::unfold(receiver, |mut receiver: mpsc::Receiver<Result<Bytes, std::io::Error>>| async {
            receiver.recv().await.map(|chunk| (chunk, receiver))
        });
    let mut response = warp::reply::stream(stream).into_response();
    response.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    Ok(response)
}

fn running(view: &View, container: &str) -> Result<String, Refusal> {
    let track = track_of(view, container)?;
    match track.run() {
        Some(run) => Ok(run.id.0.clone()),
        None if track.state == State::Starting => Ok(container_id(uid(&view.pod), container, track.next_attempt).0),
        None => Err(Refusal(StatusCode::NOT_FOUND, format!("container not found (\"{container}\")"))),
    }
}

async fn exec(ctx: &Arc<Context>, asked: Asked, namespace: &str, pod: &str, container: &str) -> Answer {
    let request = Request::parse(&asked.query).map_err(|why| Refusal(StatusCode::BAD_REQUEST, why))?;
    if request.command.is_empty() {
        return Err(Refusal(StatusCode::BAD_REQUEST, "you must specify a command".to_owned()));
    }
    let id = running(&find(ctx, namespace, pod)?.borrow(), container)?;
    let spec = ExecSpec {
        args: request.command.clone(),
        tty: request.tty,
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
        ..ExecSpec::default()
    };
    let runtime = ctx.runtime.clone();
    stream_command(asked, request, move || async move { runtime.exec(&id, spec).await })
}

async fn attach(ctx: &Arc<Context>, asked: Asked, namespace: &str, pod: &str, container: &str) -> Answer {
    let mut request = Request::parse(&asked.query).map_err(|why| Refusal(StatusCode::BAD_REQUEST, why))?;
    let id = running(&find(ctx, namespace, pod)?.borrow(), container)?;
    let spec = AttachSpec { stdin: request.stdin, stdout: request.stdout, stderr: request.stderr };
    request.command.clear();
    let runtime = ctx.runtime.clone();
    stream_command(asked, request, move || async move { runtime.attach(&id, spec).await })
}

/// Answers an exec or attach by an upgrade. The session begins when the client's streams are there; that it could
/// not begin is told on them.
fn stream_command<F, Fut>(mut asked: Asked, request: Request, begin: F) -> Answer
where
    F: FnOnce() -> Fut + Send + 'static,
    Fut: Future<Output = Result<Session, RuntimeError>> + Send,
{
    let talk = async move |wire: remote_command::Wire| match begin().await {
        Ok(session) => remote_command::serve(session, wire).await,
        Err(error) => {
            let status = remote_command::status(&Err(error));
            // A client that has left needs no reason.
            let _ = wire.outgoing.send(remote_command::Outgoing::Status(status)).await;
        }
    };
    match wanted_upgrade(&asked.headers) {
        Some(Wanted::WebSocket) => {
            let offered = offered(&asked.headers, SEC_WEBSOCKET_PROTOCOL.as_str());
            let chosen = websocket::REMOTE_COMMAND.iter().find(|p| offered.iter().any(|o| o == *p)).copied();
            if chosen.is_none() && !offered.is_empty() {
                return Err(Refusal(StatusCode::BAD_REQUEST, format!("unsupported subprotocols: {offered:?}")));
            }
            let (response, upgraded) = websocket_answer(&mut asked, chosen)?;
            tokio::spawn(async move {
                let Some(io) = upgraded.await else { return };
                talk(websocket::remote_command(websocket::accept(io).await)).await;
            });
            Ok(response)
        }
        Some(Wanted::Spdy) => {
            let offered = offered(&asked.headers, STREAM_PROTOCOL);
            if !offered.is_empty() && !offered.iter().any(|o| o == SPDY_REMOTE_COMMAND) {
                let why = format!(
                    "unable to upgrade: unable to negotiate protocol: client supports {offered:?}, server accepts [{SPDY_REMOTE_COMMAND}]"
                );
                return Err(Refusal(StatusCode::FORBIDDEN, why));
            }
            let (response, upgraded) = spdy_answer(&mut asked, SPDY_REMOTE_COMMAND)?;
            tokio::spawn(async move {
                let Some(io) = upgraded.await else { return };
                match remote_command::over_spdy(io, &request).await {
                    Ok(wire) => talk(wire).await,
                    Err(error) => tracing::debug!(%error, "a remote command did not begin"),
                }
            });
            Ok(response)
        }
        None => Err(Refusal(StatusCode::BAD_REQUEST, "Upgrade request required".to_owned())),
    }
}

fn port_forward(ctx: &Arc<Context>, mut asked: Asked, namespace: &str, pod: &str) -> Answer {
    let dialer = {
        let view = find(ctx, namespace, pod)?;
        let view = view.borrow();
        if !view.tracks.iter().any(|t| t.run().is_some()) {
            let why = format!("unable to forward port because pod is not running: {namespace}/{pod}");
            return Err(Refusal(StatusCode::BAD_REQUEST, why));
        }
        Dialer { netns: view.netns.clone(), pod: format!("{namespace}/{pod}") }
    };
    match wanted_upgrade(&asked.headers) {
        Some(Wanted::WebSocket) => {
            let offered = offered(&asked.headers, SEC_WEBSOCKET_PROTOCOL.as_str());
            let ports: Vec<u16> = asked
                .query
                .iter()
                .filter(|(name, _)| name == "ports" || name == "port")
                .flat_map(|(_, value)| value.split(','))
                .filter_map(|port| port.parse().ok())
                .collect();
            if offered.iter().any(|o| o == websocket::TUNNEL) {
                let (response, upgraded) = websocket_answer(&mut asked, Some(websocket::TUNNEL))?;
                tokio::spawn(async move {
                    let Some(io) = upgraded.await else { return };
                    let stream = websocket::tunnel(websocket::accept(io).await);
                    if let Err(error) = port_forward::over_spdy(stream, dialer).await {
                        tracing::debug!(%error, "port-forward ended");
                    }
                });
                return Ok(response);
            }
            if ports.is_empty() || ports.len() > 127 {
                return Err(Refusal(StatusCode::BAD_REQUEST, "query parameter \"port\" is required".to_owned()));
            }
            let chosen = offered.iter().any(|o| o == websocket::PORT_CHANNELS).then_some(websocket::PORT_CHANNELS);
            let (response, upgraded) = websocket_answer(&mut asked, chosen)?;
            tokio::spawn(async move {
                let Some(io) = upgraded.await else { return };
                port_forward::over_channels(websocket::accept(io).await, &ports, dialer).await;
            });
            Ok(response)
        }
        Some(Wanted::Spdy) => {
            let (response, upgraded) = spdy_answer(&mut asked, SPDY_PORT_FORWARD)?;
            tokio::spawn(async move {
                let Some(io) = upgraded.await else { return };
                if let Err(error) = port_forward::over_spdy(io, dialer).await {
                    tracing::debug!(%error, "port-forward ended");
                }
            });
            Ok(response)
        }
        None => Err(Refusal(StatusCode::BAD_REQUEST, "Upgrade request required".to_owned())),
    }
}

enum Wanted {
    WebSocket,
    Spdy,
}

fn wanted_upgrade(headers: &HeaderMap) -> Option<Wanted> {
    let value = headers.get(UPGRADE)?.to_str().ok()?;
    if value.eq_ignore_ascii_case("websocket") {
        Some(Wanted::WebSocket)
    } else if value.eq_ignore_ascii_case(SPDY) {
        Some(Wanted::Spdy)
    } else {
        None
    }
}

/// The values of a header that may be given several times or as a list.
fn offered(headers: &HeaderMap, name: &str) -> Vec<String> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .map(|v| v.trim().to_owned())
        .filter(|v| !v.is_empty())
        .collect()
}

type Io = TokioIo<Upgraded>;

fn taken(asked: &mut Asked) -> Result<impl Future<Output = Option<Io>> + Send + use<>, Refusal> {
    let on_upgrade = asked
        .upgrade
        .take()
        .ok_or_else(|| Refusal(StatusCode::BAD_REQUEST, "the connection cannot be upgraded".to_owned()))?;
    Ok(async move {
        match on_upgrade.await {
            Ok(upgraded) => Some(TokioIo::new(upgraded)),
            Err(error) => {
                tracing::debug!(%error, "upgrade failed");
                None
            }
        }
    })
}

fn switching(headers: &[(&str, &str)]) -> Response {
    let mut response = warp::reply().into_response();
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    for (name, value) in headers {
        if let (Ok(name), Ok(value)) = (http::HeaderName::try_from(*name), HeaderValue::from_str(value)) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

fn websocket_answer(
    asked: &mut Asked,
    protocol: Option<&str>,
) -> Result<(Response, impl Future<Output = Option<Io>> + Send + use<>), Refusal> {
    let key = asked
        .headers
        .get(SEC_WEBSOCKET_KEY)
        .ok_or_else(|| Refusal(StatusCode::BAD_REQUEST, "Sec-WebSocket-Key is missing".to_owned()))?;
    let accept = derive_accept_key(key.as_bytes());
    let mut headers = vec![(UPGRADE.as_str(), "websocket"), (SEC_WEBSOCKET_ACCEPT.as_str(), accept.as_str())];
    if let Some(protocol) = protocol {
        headers.push((SEC_WEBSOCKET_PROTOCOL.as_str(), protocol));
    }
    let response = switching(&headers);
    Ok((response, taken(asked)?))
}

fn spdy_answer(
    asked: &mut Asked,
    protocol: &str,
) -> Result<(Response, impl Future<Output = Option<Io>> + Send + use<>), Refusal> {
    let response = switching(&[(UPGRADE.as_str(), SPDY), (STREAM_PROTOCOL, protocol)]);
    Ok((response, taken(asked)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::track::Role;
    use crate::pods::track::tests::{ended, run};
    use serde_json::json;

    fn view(restart_policy: &str) -> View {
        let pod = json!({"metadata": {"name": "p"},
            "spec": {"restartPolicy": restart_policy, "containers": [{"name": "a"}]}});
        View { pod: Arc::new(serde_json::from_value(pod).unwrap()), tracks: Arc::new([]), pod_ips: vec![], netns: None }
    }

    #[test]
    fn the_previous_log_is_that_of_the_last_state() {
        let mut track = Track::new("a", Role::Main);
        track.end(ended(1, 1, 0, 1));
        track.begin_start();
        track.begin_run(run(2, 2), false, false);
        let attempt = |track: &Track, policy, previous| {
            run_of(&view(policy), track, previous).map(|(attempt, _)| attempt).map_err(|refused| refused.1)
        };
        assert_eq!((attempt(&track, "Always", true), attempt(&track, "Always", false)), (Ok(1), Ok(2)));
        track.end(ended(2, 1, 2, 3));
        // In CrashLoopBackOff the crash that is waited for is the last state.
        assert_eq!((attempt(&track, "Always", true), attempt(&track, "Always", false)), (Ok(2), Ok(2)));
        // For good, it is the state itself, and the last state the run before.
        assert_eq!((attempt(&track, "Never", true), attempt(&track, "Never", false)), (Ok(1), Ok(2)));
        let mut first = Track::new("a", Role::Main);
        first.end(ended(0, 1, 0, 1));
        assert_eq!(
            attempt(&first, "Never", true),
            Err("previous terminated container \"a\" in pod \"p\" not found".to_owned())
        );
    }

    #[test]
    fn queries_are_decoded() {
        assert_eq!(
            pairs("command=sh&command=-c&command=echo+%22a%26b%22&tty&x=%zz"),
            [("command", "sh"), ("command", "-c"), ("command", "echo \"a&b\""), ("tty", ""), ("x", "%zz")]
                .map(|(a, b)| (a.to_owned(), b.to_owned()))
        );
    }

    #[test]
    fn protocols_may_be_listed_or_repeated() {
        let mut headers = HeaderMap::new();
        headers.append(STREAM_PROTOCOL, HeaderValue::from_static("v4.channel.k8s.io, v3.channel.k8s.io"));
        headers.append(STREAM_PROTOCOL, HeaderValue::from_static("channel.k8s.io"));
        assert_eq!(offered(&headers, STREAM_PROTOCOL).len(), 3);
    }
}
