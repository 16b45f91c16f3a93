//! Owns one pod: SyncPod → SyncTerminating → SyncTerminated. An actor: it alone changes the pod's tracks; slow
//! work runs in tasks that report to its mailbox. What to do is decided in [`super::actions`], what to show in
//! [`super::status`].

mod ending;
mod showing;
mod starting;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, PodStatus};
use proa_network::{HostPort, Protocol};
use proa_runtime::{ContainerStatus, Exit};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::actions::{Action, Ground, Seen, containers, pod_actions};
use super::context::{Context, View};
use super::ground::{self, GroundError, GroundInfo};
use super::start::{SIGTERM, StartError, Started};
use super::status::reasons;
use super::stop::Stop;
use super::track::{ContainerId, Role, State, Track};
use super::writer::StatusWriter;
use super::{Pod, adopt, host_network, refusal, uid};
use crate::events::Severity;
use crate::probes::{self, Prober, Verdict};
use crate::{last_words, storage, volumes};

/// What a worker is told.
#[derive(Debug)]
pub(crate) enum Message {
    /// the pod as the API has it now
    Pod(Arc<Pod>),
    /// the API has it no more
    Gone,
    /// a container ended
    Exited { id: ContainerId, exit: Exit },
    /// a probe came to a verdict
    Probed { id: ContainerId, verdict: Verdict },
    /// the ground is made, or is not
    Prepared(Result<GroundInfo, GroundError>),
    /// volumes were brought up to date; when to do it again
    Refreshed(Result<Option<Timestamp>, String>),
    /// a start came to its end
    Started { index: usize, result: Box<Result<Started, StartError>> },
    /// a stop learned of the exit by itself
    Stopped { id: ContainerId, exit: Exit },
    /// it uses more of the disk than it may
    OverLimit(String),
    /// the proxies do not send new connections any more
    Drained,
    /// everything is taken away
    TornDown(Result<(), String>),
    /// the API was asked to remove the object
    Deleted(Result<(), String>),
}

/// The longest a teardown waits for the API to take the exit codes.
const FLUSH_LIMIT: Duration = Duration::from_secs(10);

/// How a worker begins.
pub(crate) struct Begin {
    pub(crate) ctx: Arc<Context>,
    pub(crate) pod: Arc<Pod>,
    /// containers the runtime already has of it
    pub(crate) found: Vec<ContainerStatus>,
    /// its sandbox and network are there
    pub(crate) ground: Option<GroundInfo>,
}

/// The stage of a pod's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Sync,
    /// being stopped
    Terminating {
        drained: bool,
    },
    /// nothing runs; things are being taken away
    Dismantling,
    /// nothing is left but the object
    Terminated,
    /// the object is being removed
    Deleting,
    /// over
    Done,
}

struct Stopping {
    deadline: watch::Sender<Instant>,
}

struct Worker {
    ctx: Arc<Context>,
    pod: Arc<Pod>,
    list: Vec<(Role, Container)>,
    tracks: Vec<Track>,
    ground: Ground,
    ground_failures: u32,
    info: GroundInfo,
    start_time: Timestamp,
    stage: Stage,
    /// the API has no such pod any more
    gone: bool,
    failure: Option<(&'static str, String)>,
    /// when everything must have stopped
    kill_at: Option<Instant>,
    stop_signals: HashMap<ContainerId, i32>,
    run_over: HashMap<ContainerId, CancellationToken>,
    early_exits: HashMap<ContainerId, Exit>,
    stops: HashMap<ContainerId, Stopping>,
    probers: HashMap<ContainerId, Prober>,
    ending: CancellationToken,
    volumes_changed: Arc<Notify>,
    config_changed: Arc<Notify>,
    refreshing: bool,
    refresh_at: Option<Timestamp>,
    shown: Option<Arc<PodStatus>>,
    writer: StatusWriter,
    view: watch::Sender<View>,
    mailbox: mpsc::UnboundedSender<Message>,
    messages: mpsc::UnboundedReceiver<Message>,
    retry_at: Option<Timestamp>,
    /// goes on for as long as the worker
    _measuring: Option<AbortOnDropHandle<()>>,
}

/// Starts the worker of a pod.
pub(crate) fn spawn(begin: Begin) -> tokio::task::JoinHandle<()> {
    let worker = Worker::new(begin);
    let span = tracing::info_span!("pod", pod = super::key(&worker.pod));
    tokio::spawn(tracing::Instrument::instrument(worker.run(), span))
}

impl Worker {
    fn new(begin: Begin) -> Self {
        let Begin { ctx, pod, found, ground } = begin;
        let now = Timestamp::now();
        let tracks = adopt::tracks(&pod, &found, now);
        let (mailbox, messages) = mpsc::unbounded_channel();
        let (view, receiver) =
            watch::channel(View { pod: pod.clone(), tracks: tracks.clone().into(), pod_ips: Vec::new(), netns: None });
        ctx.registry.add(uid(&pod), mailbox.clone(), receiver);
        let status = pod.status.clone().unwrap_or_default();
        let over = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        let fresh = found.is_empty() && !over;
        let failure = match (&status.phase, &status.reason) {
            (Some(phase), Some(reason)) if phase == "Failed" => reasons::ALL
                .into_iter()
                .find(|own| own == reason)
                .map(|own| (own, status.message.clone().unwrap_or_default())),
            _ if fresh => refusal::why(&ctx, &pod).or_else(|| ctx.host_ports.take(uid(&pod), &pod.spec).err()),
            _ => None,
        };
        if !fresh && !over {
            ctx.host_ports.keep(uid(&pod), &pod.spec);
        }
        for ignored in fresh.then(|| refusal::ignored(&pod)).into_iter().flatten() {
            ctx.recorder.pod(&pod, None, Severity::Warning, "NotSupported", ignored);
        }
        if let Some((reason, message)) = failure.as_ref().filter(|_| !over) {
            ctx.recorder.pod(&pod, None, Severity::Warning, reason, message.clone());
        }
        let measuring = (!over).then(|| storage::watch(&ctx, view.subscribe(), mailbox.clone())).flatten();
        let mut worker = Self {
            _measuring: measuring,
            list: containers(&pod.spec),
            // Until something was created on it nobody can tell whether the ground was ever finished: it is prepared
            // once more.
            ground: if ground.is_some() && !found.is_empty() { Ground::Ready } else { Ground::Missing },
            ground_failures: 0,
            info: ground.unwrap_or_default(),
            start_time: status.start_time.map_or(now, |t| t.0),
            stage: if over { Stage::Dismantling } else { Stage::Sync },
            gone: false,
            failure,
            kill_at: None,
            stop_signals: HashMap::new(),
            run_over: HashMap::new(),
            early_exits: HashMap::new(),
            stops: HashMap::new(),
            probers: HashMap::new(),
            ending: CancellationToken::new(),
            volumes_changed: Arc::new(Notify::new()),
            config_changed: Arc::new(Notify::new()),
            refreshing: false,
            refresh_at: None,
            shown: None,
            writer: StatusWriter::start(ctx.client.clone(), ctx.family, &pod),
            view,
            mailbox,
            messages,
            retry_at: None,
            tracks,
            pod,
            ctx,
        };
        worker.take_over(&found);
        worker
    }

    /// Makes the containers found by the runtime ours again.
    fn take_over(&mut self, found: &[ContainerStatus]) {
        let superseded = adopt::superseded(found);
        for status in found {
            if superseded.contains(&status.id.as_str()) {
                self.remove_container(ContainerId(status.id.clone()));
                continue;
            }
            let id = ContainerId(status.id.clone());
            self.ctx.registry.own(&id, uid(&self.pod));
            let signal = status.labels.get(super::start::labels::STOP_SIGNAL).and_then(|s| s.parse().ok());
            self.stop_signals.insert(id, signal.unwrap_or(SIGTERM));
        }
        for index in 0..self.tracks.len() {
            if let State::Running(run) = &self.tracks[index].state {
                let id = run.id.clone();
                self.run_over.insert(id, CancellationToken::new());
                // A run without probes is as ready as it can be, whatever was written before.
                let container = &self.list[index].1;
                self.tracks[index].started |= container.startup_probe.is_none();
                if container.readiness_probe.is_none() && self.tracks[index].started {
                    self.tracks[index].ready = true;
                }
                self.probe(index);
            }
        }
        if self.ground == Ground::Ready && self.stage == Stage::Sync {
            self.publish_host_ports();
            self.refresh_volumes();
        }
        if self.stage == Stage::Dismantling {
            self.dismantle();
        }
    }

    async fn run(mut self) {
        loop {
            self.step();
            self.publish();
            if self.stage == Stage::Done {
                break;
            }
            let wake = self.wake_at();
            tokio::select! {
                message = self.messages.recv() => {
                    // The worker holds a sender itself: the channel cannot be closed.
                    if let Some(message) = message { self.hear(message) }
                    while let Ok(message) = self.messages.try_recv() { self.hear(message) }
                }
                () = sleep_until(wake) => {
                    self.retry_at = None;
                    if self.refresh_at.is_some_and(|at| at <= Timestamp::now()) {
                        self.refresh_volumes();
                    }
                }
                () = self.volumes_changed.notified() => self.refresh_volumes(),
                () = self.config_changed.notified() => self.unblock_configuration(),
            }
        }
        self.give_host_ports_back();
        let uid = uid(&self.pod).to_owned();
        self.ctx.registry.remove(&uid);
        let ctx = self.ctx.clone();
        drop(self);
        ground::forget(&ctx, &uid);
    }

    fn wake_at(&self) -> Option<Timestamp> {
        let mut wake = self.retry_at;
        if self.stage == Stage::Sync {
            wake = [wake, self.refresh_at].into_iter().flatten().min();
        }
        wake
    }

    fn hear(&mut self, message: Message) {
        match message {
            Message::Pod(pod) => self.updated(pod),
            Message::Gone => {
                self.gone = true;
                // As on a kubelet: what the API has no more is in no new pod's way.
                self.give_host_ports_back();
            }
            Message::Exited { id, exit } | Message::Stopped { id, exit } => self.exited(&id, &exit),
            Message::Probed { id, verdict } => self.probed(&id, verdict),
            Message::Prepared(result) => self.prepared(result),
            Message::Refreshed(result) => {
                self.refreshing = false;
                self.refresh_at = match result {
                    Ok(at) => at,
                    Err(why) => {
                        self.warn("FailedMount", why);
                        Timestamp::now().saturating_add(SignedDuration::from_secs(10)).ok()
                    }
                };
            }
            Message::Started { index, result } => self.started(index, *result),
            Message::OverLimit(message) => {
                if self.stage == Stage::Sync {
                    self.warn(reasons::EVICTED, message.clone());
                    self.failure = Some((reasons::EVICTED, message));
                }
            }
            Message::Drained => {
                if let Stage::Terminating { drained } = &mut self.stage {
                    *drained = true;
                }
            }
            Message::TornDown(result) => match result {
                Ok(()) => {
                    self.ground = Ground::Missing;
                    self.info.netns = None;
                    self.stage = Stage::Terminated;
                }
                Err(why) => {
                    self.warn("FailedKillPod", format!("error killing pod: {why}"));
                    self.retry_later(2);
                    self.stage = Stage::Terminating { drained: true };
                }
            },
            Message::Deleted(result) => match result {
                Ok(()) => {}
                Err(why) => {
                    tracing::debug!(why, "the object was not removed; trying again");
                    self.retry_later(1);
                    self.stage = Stage::Terminated;
                }
            },
        }
    }

    fn retry_later(&mut self, seconds: i64) {
        let at = Timestamp::now().saturating_add(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX);
        self.retry_at = Some(self.retry_at.map_or(at, |r| r.min(at)));
    }

    fn warn(&self, reason: &'static str, message: impl Into<String>) {
        self.ctx.recorder.pod(&self.pod, None, Severity::Warning, reason, message);
    }

    fn updated(&mut self, pod: Arc<Pod>) {
        let before = std::mem::replace(&mut self.pod, pod);
        if before.spec != self.pod.spec {
            self.list = containers(&self.pod.spec);
            for (role, container) in &self.list[self.tracks.len().min(self.list.len())..] {
                self.tracks.push(Track::new(&container.name, *role));
            }
        }
        let meta_changed = before.metadata.annotations != self.pod.metadata.annotations
            || before.metadata.labels != self.pod.metadata.labels;
        if meta_changed && self.ground == Ground::Ready {
            self.refresh_volumes();
        }
        if matches!(self.stage, Stage::Terminating { .. }) {
            self.hasten();
        }
    }

    fn index_of(&self, id: &ContainerId) -> Option<usize> {
        self.tracks.iter().position(|t| t.run().is_some_and(|r| r.id == *id))
    }

    fn exited(&mut self, id: &ContainerId, exit: &Exit) {
        let Some(index) = self.index_of(id) else {
            // Its start has not been reported yet, or it is an old story.
            if self.tracks.iter().any(|t| t.state == State::Starting) {
                self.early_exits.insert(id.clone(), exit.clone());
            }
            return;
        };
        let Some(run) = self.tracks[index].run().cloned() else { return };
        self.probers.remove(id);
        self.stops.remove(id);
        if let Some(over) = self.run_over.remove(id) {
            over.cancel();
        }
        let mut ended = adopt::ended(run, exit);
        if ended.message.is_empty() {
            ended.message = last_words::read(&self.ctx.layout, uid(&self.pod), &self.list[index].1, &ended);
        }
        self.tracks[index].end(ended);
    }

    fn probed(&mut self, id: &ContainerId, verdict: Verdict) {
        let Some(index) = self.index_of(id) else { return };
        match verdict {
            Verdict::Started => {
                self.tracks[index].started = true;
                self.tracks[index].ready = self.list[index].1.readiness_probe.is_none();
                self.probe(index);
            }
            Verdict::Ready(ready) => self.tracks[index].ready = ready,
            Verdict::Unhealthy(unhealthy) => {
                if self.stage == Stage::Sync {
                    self.tracks[index].unhealthy = Some(unhealthy);
                }
            }
        }
    }

    /// (Re)starts the probes of a running container.
    fn probe(&mut self, index: usize) {
        let State::Running(run) = &self.tracks[index].state else { return };
        let age = Timestamp::now().duration_since(run.started_at);
        let target = probes::Target {
            ctx: self.ctx.clone(),
            pod: self.pod.clone(),
            container: self.list[index].1.clone(),
            id: run.id.clone(),
            pod_ip: self.info.pod_ips.first().cloned().unwrap_or_default(),
            age: Duration::try_from(age).unwrap_or_default().saturating_sub(Duration::from_millis(500)),
            mailbox: self.mailbox.clone(),
        };
        let mut prober = probes::start(&target, self.tracks[index].started);
        if self.stage != Stage::Sync {
            prober.keep_readiness();
        }
        self.probers.insert(run.id.clone(), prober);
    }

    fn prepared(&mut self, result: Result<GroundInfo, GroundError>) {
        match result {
            Ok(info) => {
                for warning in &info.warnings {
                    self.warn("HostForbids", warning.clone());
                }
                self.refresh_at = info.refresh_at;
                self.info = info;
                self.ground = Ground::Ready;
                self.ground_failures = 0;
                self.tracks.iter_mut().for_each(Track::displace);
                self.publish_host_ports();
            }
            Err(error) => {
                self.warn(error.reason, error.message);
                let seconds = (1_i64 << self.ground_failures.min(6)).min(60);
                self.ground_failures += 1;
                let retry_at = Timestamp::now().saturating_add(SignedDuration::from_secs(seconds));
                self.ground = Ground::Failed { retry_at: retry_at.unwrap_or(Timestamp::MAX) };
            }
        }
    }

    fn publish_host_ports(&self) {
        if self.gone || host_network(&self.pod) {
            return;
        }
        let Some(ip) = self.info.pod_ips.first().and_then(|ip| ip.parse::<IpAddr>().ok()) else { return };
        let ports = self.list.iter().flat_map(|(_, c)| c.ports.iter().flatten()).filter_map(|p| {
            Some(HostPort {
                host_ip: p.host_ip.as_deref().and_then(|ip| ip.parse().ok()),
                protocol: match p.protocol.as_deref() {
                    Some("UDP") => Protocol::Udp,
                    Some("SCTP") => Protocol::Sctp,
                    _ => Protocol::Tcp,
                },
                port: u16::try_from(p.host_port?).ok().filter(|p| *p > 0)?,
                target: SocketAddr::new(ip, u16::try_from(p.container_port).ok()?),
            })
        });
        self.ctx.services.set_host_ports(uid(&self.pod), ports.collect());
    }

    fn give_host_ports_back(&self) {
        self.ctx.host_ports.release(uid(&self.pod));
        self.ctx.services.set_host_ports(uid(&self.pod), Vec::new());
    }

    fn refresh_volumes(&mut self) {
        if self.refreshing || self.ground != Ground::Ready {
            return;
        }
        self.refreshing = true;
        self.refresh_at = None;
        let (ctx, pod, changed) = (self.ctx.clone(), self.pod.clone(), self.volumes_changed.clone());
        let mailbox = self.mailbox.clone();
        tokio::spawn(async move {
            let result = volumes::setup(&ctx, &pod, &changed).await.map_err(|e| e.to_string());
            let _ = mailbox.send(Message::Refreshed(result));
        });
    }

    /// A ConfigMap or Secret a container waited for has changed: it is tried again at once.
    fn unblock_configuration(&mut self) {
        for track in &mut self.tracks {
            if let State::Blocked(blocked) = &mut track.state
                && blocked.reason == "CreateContainerConfigError"
            {
                blocked.retry_at = Timestamp::MIN;
            }
        }
    }

    fn step(&mut self) {
        match self.stage {
            Stage::Sync => {
                if self.must_end() {
                    self.begin_termination();
                    self.step_terminating();
                } else {
                    self.sync();
                }
            }
            Stage::Terminating { .. } => self.step_terminating(),
            Stage::Terminated => self.step_terminated(),
            Stage::Deleting if self.gone => self.stage = Stage::Done,
            Stage::Dismantling | Stage::Deleting | Stage::Done => {}
        }
    }

    fn must_end(&self) -> bool {
        self.gone || self.pod.metadata.deletion_timestamp.is_some() || self.failure.is_some()
    }

    fn sync(&mut self) {
        let plan = pod_actions(&Seen {
            spec: &self.pod.spec,
            tracks: &self.tracks,
            ground: &self.ground,
            start_time: self.start_time,
            now: Timestamp::now(),
        });
        self.retry_at = plan.wake_at;
        for action in plan.actions {
            match action {
                Action::Prepare => self.prepare(),
                Action::Start(index) => self.start(index),
                Action::Stop { index, why, grace } => {
                    let changed = why.ends_with("definition changed, will be restarted");
                    self.tracks[index].again |= changed;
                    let grace = grace.unwrap_or_else(|| self.spec_grace());
                    self.stop(index, why, self.stop_deadline(grace));
                }
                Action::Fail { reason, message } => {
                    self.warn(reason, message.clone());
                    self.failure = Some((reason, message));
                    self.begin_termination();
                    self.step_terminating();
                }
                Action::Finish => {
                    self.stage = Stage::Dismantling;
                    self.dismantle();
                }
            }
        }
    }

    fn spec_grace(&self) -> i64 {
        self.pod.spec.termination_grace_period_seconds.unwrap_or(30)
    }

    /// When a stop that begins now with so many seconds has to be over: never later than the pod.
    fn stop_deadline(&self, grace: i64) -> Instant {
        let own = Instant::now() + Duration::from_secs(grace.max(1).unsigned_abs());
        self.kill_at.map_or(own, |at| at.min(own))
    }

    fn prepare(&mut self) {
        self.ground = Ground::Preparing;
        let (ctx, pod, changed) = (self.ctx.clone(), self.pod.clone(), self.volumes_changed.clone());
        let mailbox = self.mailbox.clone();
        tokio::spawn(async move {
            let result = ground::prepare(&ctx, &pod, &changed).await;
            let _ = mailbox.send(Message::Prepared(result));
        });
    }

    fn stop(&mut self, index: usize, why: String, deadline: Instant) {
        let State::Running(run) = self.tracks[index].state.clone() else { return };
        if let Some(prober) = self.probers.get_mut(&run.id) {
            prober.keep_readiness();
        }
        let (sender, receiver) = watch::channel(deadline);
        let gone = self.run_over.entry(run.id.clone()).or_default().clone();
        let stop = Stop {
            ctx: self.ctx.clone(),
            pod: self.pod.clone(),
            container: self.list[index].1.clone(),
            run: run.clone(),
            signal: self.stop_signals.get(&run.id).copied().unwrap_or(SIGTERM),
            pod_ips: self.info.pod_ips.clone(),
            deadline: receiver,
            gone,
            why,
        };
        self.stops.insert(run.id.clone(), Stopping { deadline: sender });
        let (mailbox, id) = (self.mailbox.clone(), run.id.clone());
        self.tracks[index].state = State::Stopping(run);
        self.tracks[index].unhealthy = None;
        tokio::spawn(async move {
            if let Some(exit) = stop.run().await {
                let _ = mailbox.send(Message::Stopped { id, exit });
            }
        });
    }
}

async fn sleep_until(at: Option<Timestamp>) {
    match at {
        Some(at) => {
            let wait = Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default();
            // A millisecond more, so that "not before" has surely passed.
            tokio::time::sleep(wait.saturating_add(Duration::from_millis(1))).await;
        }
        None => std::future::pending().await,
    }
}
