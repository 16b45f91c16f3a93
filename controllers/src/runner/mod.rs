//! The loop every controller is: see, plan, act.
//!
//! Owns: workers, retries, and invariant 6 (no loop acts on a view older than its own last write to that key). Never
//! knows what any loop is about.

mod writes;

pub use writes::Writes;

use crate::{Clock, Key, Queue};
use futures::future::BoxFuture;
use jiff::Timestamp;
use std::{fmt::Debug, future::Future, sync::Arc, time::Duration};
use tokio::{sync::Semaphore, task::JoinSet};
use tracing::{Instrument, debug, debug_span, warn};

/// What a plan decided.
#[derive(Debug)]
pub struct Plan<A> {
    /// What to do, in this order; the first failure stops the rest.
    pub actions: Vec<A>,
    /// When to look again although nothing happened.
    pub again: Option<Duration>,
}

impl<A> Default for Plan<A> {
    fn default() -> Self {
        Plan { actions: Vec::new(), again: None }
    }
}

impl<A> Plan<A> {
    /// Nothing to do.
    pub fn nothing() -> Self {
        Plan::default()
    }

    /// Do this.
    pub fn act(actions: Vec<A>) -> Self {
        Plan { actions, again: None }
    }

    /// Look again after `delay` at the latest; of several wishes the earliest stands.
    pub fn look_again(&mut self, delay: Duration) {
        self.again = Some(self.again.map_or(delay, |wish| wish.min(delay)));
    }
}

/// A level-triggered control loop (DESIGN section 13).
///
/// `see` gathers a snapshot from informers, `plan` decides in plain data with the time passed in, `act` does one thing.
/// None of them learns why the key was woken.
pub trait Loop: Send + Sync + 'static {
    /// The snapshot.
    type Seen: Send + Sync;
    /// One thing to do.
    type Action: Debug + Send;

    /// For logs and metrics.
    fn name(&self) -> &'static str;

    /// Adds indices and routes to informers: which change wakes which key. Called once, before anything runs.
    fn wire(&self, queue: &Queue);

    /// Waits until the informers this loop reads have their first list.
    fn ready(&self) -> BoxFuture<'_, ()>;

    /// A snapshot for that key; `None` when there is nothing to do for it (it is gone).
    fn see(&self, key: &Key) -> Option<Self::Seen>;

    /// Decides. Pure: the same snapshot and time give the same plan.
    fn plan(&self, seen: &Self::Seen, now: Timestamp) -> Plan<Self::Action>;

    /// Does one action. Every write is told to `writes`, so that the next `see` waits until the informers have it.
    fn act(
        &self,
        key: &Key,
        action: Self::Action,
        writes: &Writes,
    ) -> impl Future<Output = Result<(), ActError>> + Send;

    /// How many keys are worked on at the same time.
    fn workers(&self) -> usize {
        8
    }
}

/// Why an action failed.
#[derive(Debug, thiserror::Error)]
pub enum ActError {
    /// The object changed meanwhile: look again, it is not a failure.
    #[error("conflict: {0}")]
    Conflict(String),
    /// The object, its owner or its namespace is gone or going: nothing more to do until it is seen again.
    #[error("gone: {0}")]
    Gone(String),
    /// The server refuses this write; trying again helps only after someone changed something.
    #[error("refused: {0}")]
    Refused(String),
    /// As [`ActError::Refused`], and an event about the object says so: the log need not.
    #[error("{0}")]
    Told(String),
    /// The server or the way to it failed; trying again can help.
    #[error("{0}")]
    Failed(String),
}

impl From<kube::Error> for ActError {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => match status.code {
                404 => ActError::Gone(status.message.clone()),
                409 => ActError::Conflict(status.message.clone()),
                403 if status.message.contains("being terminated") => ActError::Gone(status.message.clone()),
                400 | 403 | 405 | 413 | 422 => ActError::Refused(status.message.clone()),
                _ => ActError::Failed(status.message.clone()),
            },
            other => ActError::Failed(other.to_string()),
        }
    }
}

/// A loop without its types: what drives it is there once, not once for every loop.
trait Turns: Send + Sync + 'static {
    fn called(&self) -> &'static str;
    fn seeing(&self) -> BoxFuture<'_, ()>;
    fn at_once(&self) -> usize;
    fn turn<'a>(&'a self, key: &'a Key, writes: &'a Writes, now: Timestamp)
    -> BoxFuture<'a, Result<Outcome, ActError>>;
}

impl<L: Loop> Turns for L {
    fn called(&self) -> &'static str {
        self.name()
    }

    fn seeing(&self) -> BoxFuture<'_, ()> {
        self.ready()
    }

    fn at_once(&self) -> usize {
        self.workers().max(1)
    }

    fn turn<'a>(
        &'a self,
        key: &'a Key,
        writes: &'a Writes,
        now: Timestamp,
    ) -> BoxFuture<'a, Result<Outcome, ActError>> {
        Box::pin(once(self, key, writes, now))
    }
}

/// Drives one loop until its queue is closed and drained.
pub fn drive(this: Arc<impl Loop>, queue: Queue, clock: Clock) -> BoxFuture<'static, ()> {
    Box::pin(take_turns(this, queue, clock))
}

async fn take_turns(this: Arc<dyn Turns>, queue: Queue, clock: Clock) {
    this.seeing().await;
    let slots = Arc::new(Semaphore::new(this.at_once()));
    let mut tasks = JoinSet::new();
    while let Some(key) = queue.next().await {
        let Ok(slot) = slots.clone().acquire_owned().await else { break };
        while tasks.try_join_next().is_some() {}
        let (this, queue, clock) = (this.clone(), queue.clone(), clock.clone());
        let span = debug_span!("loop", name = this.called(), %key);
        let work = async move {
            let writes = Writes::default();
            let outcome = this.turn(&key, &writes, clock.now()).await;
            // The slot is free while we wait to see our own writes; the key is not: nobody else works on it.
            drop(slot);
            writes.settled().await;
            match outcome {
                Ok(Outcome { acted, again }) => {
                    // Level-triggered: whatever the writes led to is looked at, with or without an event.
                    queue.succeeded(&key, acted);
                    if let Some(delay) = again.filter(|_| !acted) {
                        queue.add_after(key.clone(), delay);
                    }
                }
                Err(ActError::Gone(why)) => {
                    debug!(why, "gone");
                    queue.retry(key.clone());
                }
                Err(ActError::Conflict(why)) => {
                    debug!(why, "conflict, looking again");
                    queue.retry(key.clone());
                }
                Err(ActError::Told(why)) => {
                    let pause = queue.retry(key.clone());
                    debug!(why, ?pause, "refused");
                }
                Err(error) => {
                    let pause = queue.retry(key.clone());
                    warn!(loop_name = this.called(), %key, %error, ?pause, "action failed");
                }
            }
            queue.done(&key);
        };
        tasks.spawn(work.instrument(span));
    }
    while tasks.join_next().await.is_some() {}
}

struct Outcome {
    acted: bool,
    again: Option<Duration>,
}

async fn once<L: Loop>(this: &L, key: &Key, writes: &Writes, now: Timestamp) -> Result<Outcome, ActError> {
    let Some(seen) = this.see(key) else { return Ok(Outcome { acted: false, again: None }) };
    let plan = this.plan(&seen, now);
    drop(seen);
    let acted = !plan.actions.is_empty();
    for action in plan.actions {
        debug!(?action, "act");
        this.act(key, action, writes).await?;
    }
    Ok(Outcome { acted, again: plan.again })
}

#[cfg(test)]
mod tests;
