//! A watch: one conversation with a member, begun anew with another where it broke. Goes on without gap or duplicate.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};

use super::channel::{CallError, Frames};
use super::form::own_bytes;
use super::messages::{self, KeyValue, WatchEvent, WatchResponse};
use super::{Progress, Shared};
use crate::error::WatchError;
use crate::types::{Batch, Entry, Event, EventKind, Key, Revision};

/// The pause before the conversation is begun anew after it could not be.
const AGAIN: Duration = Duration::from_millis(100);
/// How long events that are surely under way are waited for before etcd is asked how far it is.
const ASK_AFTER: Duration = Duration::from_millis(5);
/// The same where a write must stand for the question.
const MARK_AFTER: Duration = Duration::from_millis(50);
/// After how long without an answer the question is put again.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// What the watch is of, and how far it has got.
struct Follow {
    shared: Arc<Shared>,
    prefix: String,
    /// Where its first reader wanted to begin.
    requested: Revision,
    /// Everything up to here has been given.
    position: Revision,
    talk: Option<Talk>,
    /// What somebody waits for.
    wanted: watch::Receiver<Revision>,
    closed: watch::Receiver<bool>,
    /// When to ask how far etcd is, unless it tells before.
    ask_at: Option<Instant>,
    ended: bool,
}

struct Talk {
    say: mpsc::UnboundedSender<Bytes>,
    frames: Frames,
}

/// What woke the watch.
enum Woken {
    Closed,
    Said(Result<Option<Bytes>, CallError>),
    Wanted,
    Due,
}

/// The stream behind [`crate::Log::watch`].
pub(crate) fn follow(
    shared: Arc<Shared>,
    prefix: &str,
    after: Revision,
) -> BoxStream<'static, Result<Batch, WatchError>> {
    let (wanted, closed) = (shared.wanted.subscribe(), shared.closed.subscribe());
    let follow = Follow {
        prefix: prefix.to_owned(),
        requested: after,
        position: after,
        talk: None,
        wanted,
        closed,
        ask_at: None,
        ended: false,
        shared,
    };
    stream::unfold(follow, |mut follow| async move {
        let item = follow.next().await?;
        follow.ended |= item.is_err();
        Some((item, follow))
    })
    .boxed()
}

impl Follow {
    async fn next(&mut self) -> Option<Result<Batch, WatchError>> {
        while !self.ended && !*self.closed.borrow() {
            let Some(talk) = &mut self.talk else {
                self.begin().await;
                continue;
            };
            let due = self.ask_at;
            let woken = tokio::select! {
                biased;
                _ = self.closed.changed() => Woken::Closed,
                said = talk.frames.next() => Woken::Said(said),
                Ok(()) = self.wanted.changed() => Woken::Wanted,
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => Woken::Due,
            };
            match woken {
                Woken::Closed => return None,
                Woken::Wanted => self.arm(),
                Woken::Due => self.ask().await,
                Woken::Said(Ok(Some(message))) => match self.hear(message) {
                    Ok(None) => {}
                    Ok(Some(batch)) => return Some(Ok(batch)),
                    Err(error) => return Some(Err(error)),
                },
                Woken::Said(ended) => {
                    let why = ended.err().map_or_else(|| "the member ended it".to_owned(), |error| error.to_string());
                    self.broke(&why).await;
                }
            }
        }
        None
    }

    /// Begins the conversation where the watch is. The revision it is at comes once more and is left out: so etcd says
    /// that it is compacted even where it would hold the deletions of its oldest revision back.
    async fn begin(&mut self) {
        let form = &self.shared.form;
        let prefix = form.key_out(&self.prefix).into_bytes();
        let start = Revision(self.position.0.max(1));
        let create = messages::watch_create(messages::prefix_start(&prefix), &messages::prefix_end(&prefix), start);
        let opened = tokio::select! {
            biased;
            _ = self.closed.changed() => return,
            opened = self.shared.channel.talk(messages::WATCH, &create) => opened,
        };
        match opened {
            Ok((say, frames)) => {
                self.talk = Some(Talk { say, frames });
                self.ask_at = None;
                self.arm();
            }
            Err(error) => self.broke(&error.to_string()).await,
        }
    }

    async fn broke(&mut self, why: &str) {
        tracing::debug!(why, at = %self.position, "the watch of etcd is begun anew");
        self.talk = None;
        tokio::select! {
            biased;
            _ = self.closed.changed() => {}
            () = sleep(AGAIN) => {}
        }
    }

    /// Somebody waits for a revision that was not given yet: it may have nothing for this watch, and etcd is asked soon.
    fn arm(&mut self) {
        if *self.wanted.borrow_and_update() <= self.position {
            self.ask_at = None;
        } else if self.ask_at.is_none() {
            let after = match self.shared.progress {
                Progress::Asked => ASK_AFTER,
                Progress::Marked => MARK_AFTER,
            };
            self.ask_at = Some(Instant::now() + after);
        }
    }

    async fn ask(&mut self) {
        match (self.shared.progress, &self.talk) {
            (Progress::Asked, Some(talk)) => {
                // A broken conversation is noticed by its end.
                let _ = talk.say.send(super::channel::framed(&messages::watch_progress()));
            }
            (Progress::Marked, _) => {
                if let Err(error) = self.shared.write_mark().await {
                    tracing::debug!(%error, "etcd does not take the mark a watch waits for");
                }
            }
            (Progress::Asked, None) => {}
        }
        self.ask_at = Some(Instant::now() + ASK_AGAIN);
    }

    /// What a message means: events, news of how far the watch is, or its end.
    fn hear(&mut self, message: Bytes) -> Result<Option<Batch>, WatchError> {
        let Ok(response) = WatchResponse::decode(message) else {
            self.talk = None;
            return Ok(None);
        };
        if response.canceled {
            self.talk = None;
            if response.compacted > Revision(0) {
                return Err(self.behind(response.compacted));
            }
            tracing::warn!(why = response.reason, at = %self.position, "etcd ended a watch");
            return Ok(None);
        }
        if response.created {
            // No news, but for whoever waits for the member to have heard of the watch.
            return Ok(Some(Batch { events: Arc::new([]), upto: self.position }));
        }
        let mut upto = self.position;
        let mut events = Vec::with_capacity(response.events.len());
        for event in response.events {
            let revision = event.kv.modified;
            // Once more after the conversation was begun anew.
            if revision <= self.position {
                continue;
            }
            upto = upto.max(revision);
            match read(&self.shared, event) {
                Read::Event(event) => events.push(*event),
                Read::NotOurs => {}
                Read::PreviousGone => return Err(self.behind(revision)),
            }
        }
        // Without events it says that there are none up to here. With events its header may be ahead of them.
        if upto == self.position && events.is_empty() {
            upto = upto.max(response.revision);
        }
        if upto == self.position {
            return Ok(None);
        }
        self.position = upto;
        self.shared.saw(upto);
        self.ask_at = None;
        self.arm();
        Ok(Some(Batch { events: events.into(), upto }))
    }

    fn behind(&self, oldest: Revision) -> WatchError {
        match self.position == self.requested {
            true => WatchError::Compacted { requested: self.requested, oldest },
            false => WatchError::Lagged { read: self.position, oldest },
        }
    }
}

enum Read {
    Event(Box<Event>),
    /// A key of others, or one whose value nobody here can read.
    NotOurs,
    /// What the key held before was compacted: the watch was away too long.
    PreviousGone,
}

fn read(shared: &Shared, event: WatchEvent) -> Read {
    let revision = event.kv.modified;
    let Some(key) = std::str::from_utf8(&event.kv.key).ok().and_then(|key| shared.form.key_in(key)) else {
        return Read::NotOurs;
    };
    let unreadable = |why: String| {
        tracing::error!(%key, %revision, why, "etcd holds what cannot be read: it is left out");
        Read::NotOurs
    };
    let previous = match event.previous.map(|previous| shared.entry_at(&key, previous)).transpose() {
        Ok(previous) => previous,
        Err(why) => return unreadable(why),
    };
    let kind = if event.deleted {
        let Some((previous, value)) = previous else { return Read::PreviousGone };
        // As on Kubernetes: what was there, at the revision that removed it.
        EventKind::Delete { last: own_bytes(&value, revision), key, previous }
    } else {
        if previous.is_none() && event.kv.created != revision {
            return Read::PreviousGone;
        }
        match shared.entry_at(&key, event.kv) {
            Ok((entry, _)) => EventKind::Put { entry, previous: previous.map(|(entry, _)| entry) },
            Err(why) => return unreadable(why),
        }
    };
    Read::Event(Box::new(Event { revision, kind }))
}

impl Shared {
    /// The entry of a key, and the value it is made from.
    pub(super) fn entry_at(&self, key: &Key, kv: KeyValue) -> Result<(Entry, crate::Value), String> {
        let value = self.form.value_in(key, &kv.value)?;
        let bytes = own_bytes(&value, kv.modified);
        Ok((Entry { key: key.clone(), bytes, created: kv.created, modified: kv.modified }, value))
    }
}
