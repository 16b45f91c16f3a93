//! Kubernetes Events, written beside the work: a loop never waits for one.

use crate::Clock;
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{Patch, PatchParams, PostParams},
    core::{ApiResource, ObjectMeta},
};
use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};
use tokio::{sync::mpsc, time::Instant};
use tracing::debug;

/// Longest message the API takes.
const MESSAGE_LIMIT: usize = 1024;
/// Events that wait to be written; more are dropped (they are a courtesy, not a record).
const WAITING_LIMIT: usize = 1024;
/// How many different events are remembered, to count repeats instead of writing them again.
const REMEMBERED: usize = 1024;
/// Events that are written at once, and how many a second after that, warnings and others each for themselves: ten thousand
/// pods that find their nodes must not wait for each other's events. Kubernetes' components limit themselves in the same way
/// (`clientConnection`: 100 at once and 50 a second unless configured otherwise).
const BURST: u32 = 1024;
const PER_SECOND: u32 = 100;

/// Whether an event tells of the normal course of things.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The normal course.
    Normal,
    /// Something a user should look at.
    Warning,
}

/// What happened to an object, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Normal or Warning.
    pub kind: Kind,
    /// One CamelCase word.
    pub reason: &'static str,
    /// One sentence.
    pub message: String,
}

struct Item {
    about: ObjectReference,
    component: &'static str,
    note: Note,
}

/// A handle to write events with; clones share the writer.
#[derive(Clone)]
pub struct Recorder {
    normal: mpsc::Sender<Item>,
    warnings: mpsc::Sender<Item>,
}

impl Recorder {
    /// Starts the writer.
    pub fn start(client: Client, clock: Clock) -> Self {
        let ((normal, normals), (warnings, warned)) = (Lane::new(), Lane::new());
        tokio::spawn(write(client, clock, normals, warned));
        Recorder { normal, warnings }
    }

    /// A recorder that forgets everything.
    pub fn silent() -> Self {
        Recorder { normal: mpsc::channel(1).0, warnings: mpsc::channel(1).0 }
    }

    /// Writes an event about `object`.
    pub fn note<K: Resource>(&self, component: &'static str, resource: &ApiResource, object: &K, note: Note) {
        let about = ObjectReference {
            api_version: Some(resource.api_version.clone()),
            kind: Some(resource.kind.clone()),
            namespace: object.namespace(),
            name: object.meta().name.clone(),
            uid: object.meta().uid.clone(),
            resource_version: object.meta().resource_version.clone(),
            field_path: None,
        };
        self.note_about(component, about, note);
    }

    /// Writes an event about the object referred to.
    pub fn note_about(&self, component: &'static str, about: ObjectReference, note: Note) {
        let waiting = if note.kind == Kind::Warning { &self.warnings } else { &self.normal };
        let _ = waiting.try_send(Item { about, component, note });
    }
}

/// What makes two events the same.
type Identity = (String, &'static str, &'static str, String);

#[derive(Default)]
struct Memory {
    /// Namespace, name and count of the event written for an identity.
    written: HashMap<Identity, (String, String, i32)>,
    order: VecDeque<Identity>,
    /// When the last name was made: no two names of one writer are of the same nanosecond.
    named: i128,
}

impl Memory {
    /// A name for an event about `subject`: it ends in the time in hexadecimal nanoseconds, as on Kubernetes.
    fn name(&mut self, subject: &str, now: Timestamp) -> String {
        self.named = now.as_nanosecond().max(self.named + 1);
        format!("{subject}.{:016x}", self.named)
    }
}

/// How many events may be written now (a token bucket).
struct Pace {
    left: f64,
    at: Instant,
}

impl Pace {
    fn new(now: Instant) -> Pace {
        Pace { left: f64::from(BURST), at: now }
    }

    /// Takes leave to write one; how long to wait first.
    fn take(&mut self, now: Instant) -> Duration {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * f64::from(PER_SECOND);
        (self.left, self.at) = ((self.left + gained).min(f64::from(BURST)) - 1.0, now);
        Duration::from_secs_f64((-self.left).max(0.0) / f64::from(PER_SECOND))
    }
}

/// Events of one kind that wait, and when the next may be written.
struct Lane {
    items: mpsc::Receiver<Item>,
    pace: Pace,
    next_at: Instant,
}

impl Lane {
    fn new() -> (mpsc::Sender<Item>, Lane) {
        let (sender, items) = mpsc::channel(WAITING_LIMIT);
        let now = Instant::now();
        (sender, Lane { items, pace: Pace::new(now), next_at: now })
    }

    /// Loses none when it is dropped half way.
    async fn next(&mut self) -> Option<Item> {
        tokio::time::sleep_until(self.next_at).await;
        let item = self.items.recv().await?;
        let now = Instant::now();
        self.next_at = now + self.pace.take(now);
        Some(item)
    }
}

async fn write(client: Client, clock: Clock, mut normal: Lane, mut warnings: Lane) {
    let mut memory = Memory::default();
    loop {
        let item = tokio::select! {
            biased;
            Some(warning) = warnings.next() => warning,
            Some(normal) = normal.next() => normal,
            else => return,
        };
        if let Err(error) = write_one(&client, &clock, &mut memory, item).await {
            debug!(%error, "an event was not written");
        }
    }
}

async fn write_one(client: &Client, clock: &Clock, memory: &mut Memory, item: Item) -> Result<(), kube::Error> {
    let Item { about, component, note } = item;
    let now = clock.now();
    let mut message = note.message;
    if message.len() > MESSAGE_LIMIT {
        let end = (0..=MESSAGE_LIMIT - 3).rev().find(|end| message.is_char_boundary(*end)).unwrap_or(0);
        message.truncate(end);
        message.push_str("...");
    }
    let identity = (about.uid.clone().unwrap_or_default(), component, note.reason, message.clone());
    if let Some((namespace, name, count)) = memory.written.get_mut(&identity) {
        *count += 1;
        let patch = serde_json::json!({"count": *count, "lastTimestamp": Time(now)});
        let api: Api<Event> = Api::namespaced(client.clone(), namespace);
        match api.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            other => return other.map(drop),
        }
    }
    let namespace = about.namespace.clone().filter(|ns| !ns.is_empty()).unwrap_or_else(|| "default".to_owned());
    let subject = about.name.clone().unwrap_or_default();
    let event = Event {
        metadata: ObjectMeta {
            name: Some(memory.name(&subject, now)),
            namespace: Some(namespace.clone()),
            ..Default::default()
        },
        involved_object: about,
        reason: Some(note.reason.to_owned()),
        message: Some(message),
        type_: Some(format!("{:?}", note.kind)),
        source: Some(EventSource { component: Some(component.to_owned()), host: None }),
        reporting_component: Some(component.to_owned()),
        reporting_instance: Some(String::new()),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        count: Some(1),
        ..Default::default()
    };
    let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
    let written = api.create(&PostParams::default(), &event).await?;
    if memory.order.len() >= REMEMBERED
        && let Some(oldest) = memory.order.pop_front()
    {
        memory.written.remove(&oldest);
    }
    if memory.written.insert(identity.clone(), (namespace, written.name_any(), 1)).is_none() {
        memory.order.push_back(identity);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_goes_out_at_once_and_then_so_many_a_second() {
        let begin = Instant::now();
        let mut pace = Pace::new(begin);
        assert!((0..BURST).all(|_| pace.take(begin).is_zero()));
        let step = Duration::from_secs(1) / PER_SECOND;
        let mut now = begin;
        for _ in 0..10 {
            let wait = pace.take(now);
            assert!(wait.abs_diff(step) < Duration::from_micros(10), "{wait:?}");
            now += wait;
        }
        let later = now + Duration::from_secs(3600);
        assert!((0..BURST).all(|_| pace.take(later).is_zero()), "what was not used is there again, and no more");
        assert!(!pace.take(later).is_zero());
    }
}
