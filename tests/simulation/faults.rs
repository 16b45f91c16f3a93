//! The line between a client and the server, and what goes wrong on it.
//!
//! Owns: requests that fail before or after they took effect, delays, watches that are cut, late or silent, a network that
//! parts, and the death of the client. Never changes what the server says.

use bytes::Bytes;
use futures::{FutureExt, StreamExt, future::BoxFuture, stream};
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, BodyStream, Full, StreamBody, combinators::UnsyncBoxBody};
use kube::client::Body;
use parking_lot::Mutex;
use proa_apiserver::LocalService;
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

pub(crate) type Answer = Response<UnsyncBoxBody<Bytes, io::Error>>;

/// How often things go wrong, each between 0 and 1.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rates {
    /// A request does not reach the server, or is turned away.
    pub(crate) before: f64,
    /// A request takes effect and the answer is lost.
    pub(crate) after: f64,
    /// A request, or an event of a watch, takes its time.
    pub(crate) late: f64,
    /// A watch ends early.
    pub(crate) cut: f64,
    /// A watch says nothing more, and does not end.
    pub(crate) silent: f64,
}

/// Told what a client did, right after the server did it and before anything else happens.
pub(crate) type Witness = Arc<dyn Fn(&http::Method, &str) + Send + Sync>;

/// What servers of others answer for paths that they serve behind ours.
pub(crate) type Outside = Arc<dyn Fn(&str) -> Option<serde_json::Value> + Send + Sync>;

struct Shared {
    chance: Mutex<StdRng>,
    rates: Mutex<Rates>,
    dead: Mutex<CancellationToken>,
    apart: AtomicBool,
    witness: Option<Witness>,
    outside: Option<Outside>,
}

/// The weather on the lines of one client, through all its incarnations.
#[derive(Clone)]
pub(crate) struct Weather(Arc<Shared>);

impl Weather {
    pub(crate) fn new(seed: u64, witness: Option<Witness>, outside: Option<Outside>) -> Weather {
        let chance = Mutex::new(StdRng::seed_from_u64(seed));
        let (rates, dead, apart) = (Mutex::default(), Mutex::default(), AtomicBool::default());
        Weather(Arc::new(Shared { chance, rates, dead, apart, witness, outside }))
    }

    /// Whether the network lies between the client and the server: nothing gets through, either way.
    pub(crate) fn part(&self, apart: bool) {
        self.0.apart.store(apart, Ordering::Relaxed);
    }

    fn is_apart(&self) -> bool {
        self.0.apart.load(Ordering::Relaxed)
    }

    pub(crate) fn set(&self, rates: Rates) {
        *self.0.rates.lock() = rates;
    }

    /// A line to the server for a client that lives until the next [`Weather::kill`].
    pub(crate) fn line(&self, server: LocalService) -> Line {
        Line { weather: self.clone(), server, dead: self.0.dead.lock().clone() }
    }

    /// The client's process is gone at this instant: what it had asked for is answered to nobody, and it asks no more.
    pub(crate) fn kill(&self) {
        std::mem::take(&mut *self.0.dead.lock()).cancel();
    }

    fn draw(&self) -> Fate {
        let rates = *self.0.rates.lock();
        let mut chance = self.0.chance.lock();
        let mut happens = |rate: f64| rate > 0.0 && chance.random_bool(rate);
        let (before, after, late) = (happens(rates.before), happens(rates.after), happens(rates.late));
        let (cut, silent) = (happens(rates.cut), happens(rates.silent));
        let mut up_to = |most: u64| Duration::from_millis(chance.random_range(0..most));
        Fate {
            before,
            after,
            going: if late { up_to(800) } else { Duration::from_millis(1) },
            coming: if late { up_to(800) } else { Duration::ZERO },
            cut: cut.then(|| up_to(20_000)),
            silent: silent.then(|| up_to(60_000)),
        }
    }

    /// How late the next event of a watch is.
    fn lag(&self) -> Duration {
        let rate = self.0.rates.lock().late;
        let mut chance = self.0.chance.lock();
        if rate > 0.0 && chance.random_bool(rate) {
            Duration::from_millis(chance.random_range(0..3_000))
        } else {
            Duration::ZERO
        }
    }
}

/// What becomes of one request.
struct Fate {
    before: bool,
    after: bool,
    going: Duration,
    coming: Duration,
    cut: Option<Duration>,
    silent: Option<Duration>,
}

/// One client's way to the server.
#[derive(Clone)]
pub(crate) struct Line {
    weather: Weather,
    server: LocalService,
    dead: CancellationToken,
}

impl tower::Service<Request<Body>> for Line {
    type Response = Answer;
    type Error = io::Error;
    type Future = BoxFuture<'static, Result<Answer, io::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), io::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (line, fate) = (self.clone(), self.weather.draw());
        async move {
            let dead = line.dead.clone();
            tokio::select! {
                biased;
                () = dead.cancelled() => std::future::pending().await,
                answer = line.carry(request, fate) => answer,
            }
        }
        .boxed()
    }
}

impl Line {
    async fn carry(mut self, request: Request<Body>, fate: Fate) -> Result<Answer, io::Error> {
        tokio::time::sleep(fate.going).await;
        if fate.before || self.weather.is_apart() {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        if let Some(answer) = self.weather.0.outside.as_ref().and_then(|outside| outside(request.uri().path())) {
            let body = Full::new(Bytes::from(answer.to_string())).map_err(|never| match never {}).boxed_unsync();
            return Ok(Response::new(body));
        }
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let watch = request.uri().query().is_some_and(|query| query.contains("watch="));
        let Ok(response) = tower::Service::call(&mut self.server, request).await;
        if response.status().is_success()
            && let Some(witness) = &self.weather.0.witness
        {
            witness(&method, &path);
        }
        if !fate.coming.is_zero() {
            tokio::time::sleep(fate.coming).await;
        }
        if (fate.after || self.weather.is_apart()) && !watch {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        if !watch {
            return Ok(response.map(|body| body.map_err(io::Error::other).boxed_unsync()));
        }
        let now = tokio::time::Instant::now();
        let (cut, silent) = (fate.cut.map(|after| now + after), fate.silent.map(|after| now + after));
        Ok(response.map(|body| {
            let frames = BodyStream::new(body);
            let frames = stream::unfold((self, frames), move |(line, mut frames)| async move {
                let dead = line.dead.clone();
                let frame = tokio::select! {
                    biased;
                    () = dead.cancelled() => std::future::pending().await,
                    () = until(silent) => std::future::pending().await,
                    () = until(cut) => Some(Err(io::ErrorKind::ConnectionReset.into())),
                    frame = frames.next() => frame.map(|frame: Result<Frame<Bytes>, io::Error>| frame),
                }?;
                let lag = line.weather.lag();
                if !lag.is_zero() {
                    tokio::time::sleep(lag).await;
                }
                let frame = if line.weather.is_apart() { Err(io::ErrorKind::ConnectionReset.into()) } else { frame };
                Some((frame, (line, frames)))
            });
            StreamBody::new(frames).boxed_unsync()
        }))
    }
}

async fn until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
