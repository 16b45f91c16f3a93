//! What every loop is made from.

use crate::{Clock, Loop, Queue, events::Recorder, informer::Informers, runner};
use futures::future::BoxFuture;
use kube::Client;
use parking_lot::Mutex;
use proa_crds::Family;
use std::sync::Arc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// The client, the shared informers, the event recorder and the clock of one process.
#[derive(Clone)]
pub struct Context {
    /// For writes and live reads.
    pub client: Client,
    /// Which family's workload kinds this process drives.
    pub family: Family,
    /// The shared informers.
    pub informers: Informers,
    /// Kubernetes Events.
    pub recorder: Recorder,
    /// The time.
    pub clock: Clock,
    /// Ends everything.
    pub shutdown: CancellationToken,
    loops: Arc<Mutex<JoinSet<()>>>,
    queues: Arc<Mutex<Vec<Queue>>>,
}

impl Context {
    /// A context with no informer and no loop yet.
    pub fn new(client: Client, family: Family, clock: Clock, shutdown: CancellationToken) -> Self {
        Context {
            informers: Informers::new(client.clone(), shutdown.clone()),
            recorder: Recorder::start(client.clone(), clock.clone()),
            client,
            family,
            clock,
            shutdown,
            loops: Arc::default(),
            queues: Arc::default(),
        }
    }

    /// Wires a loop to the informers and drives it. Its queue fills once the informers are started.
    pub fn start<L: Loop>(&self, this: L) {
        let queue = Queue::new();
        this.wire(&queue);
        self.queues.lock().push(queue.clone());
        self.loops.lock().spawn(runner::drive(Arc::new(this), queue, self.clock.clone()));
    }

    /// Runs a task of a loop that is no [`Loop`] (the scheduler's, a leader's); it ends by itself on shutdown.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let task: BoxFuture<'static, ()> = Box::pin(task);
        self.loops.lock().spawn(task);
    }

    /// Starts the watches, and waits for shutdown and for the loops to drain.
    pub async fn run(self) {
        self.informers.start();
        self.shutdown.cancelled().await;
        for queue in self.queues.lock().drain(..) {
            queue.close();
        }
        // What hangs in a call to a server that is gone is not waited for: crash-only.
        let mut loops = std::mem::take(&mut *self.loops.lock());
        let drained = async { while loops.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(std::time::Duration::from_millis(700), drained).await;
    }
}
