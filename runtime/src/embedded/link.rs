//! The agent's end of a shim's socket: calls with answers, and what the shim tells unasked.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{oneshot, watch};

use crate::fds;
use crate::protocol::{Call, Failure, FailureKind, Message, Reply, Request, frame, take_frame};

/// How a call went: the reply and any descriptors with it.
pub(super) type Answer = Result<(Reply, Vec<OwnedFd>), Failure>;

/// A connection. Calls may be made from many tasks at once.
pub(super) struct Link {
    socket: UnixStream,
    /// One frame at a time.
    writing: tokio::sync::Mutex<()>,
    next: AtomicU64,
    pending: parking::Pending,
    closed: watch::Sender<bool>,
}

/// What a shim says unasked.
pub(super) trait Listener: Send + 'static {
    fn hear(&mut self, message: Message);

    /// The shim has closed its end. Not called when the agent itself stops listening.
    fn gone(self);
}

mod parking {
    use super::*;

    /// Calls that wait for their answer; `None` once the shim is gone.
    #[derive(Default)]
    pub(super) struct Pending(std::sync::Mutex<Option<HashMap<u64, oneshot::Sender<Answer>>>>);

    impl Pending {
        pub(super) fn new() -> Pending {
            Pending(std::sync::Mutex::new(Some(HashMap::new())))
        }

        fn lock(&self) -> std::sync::MutexGuard<'_, Option<HashMap<u64, oneshot::Sender<Answer>>>> {
            self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
        }

        pub(super) fn add(&self, id: u64) -> Option<oneshot::Receiver<Answer>> {
            let (answer, answered) = oneshot::channel();
            self.lock().as_mut()?.insert(id, answer);
            Some(answered)
        }

        pub(super) fn take(&self, id: u64) -> Option<oneshot::Sender<Answer>> {
            self.lock().as_mut()?.remove(&id)
        }

        pub(super) fn close(&self) {
            self.lock().take();
        }
    }
}

impl Link {
    /// Takes a connected socket and starts hearing, until the shim ends.
    pub(super) fn start(socket: OwnedFd, mut listener: impl Listener) -> io::Result<Arc<Link>> {
        let socket = std::os::unix::net::UnixStream::from(socket);
        socket.set_nonblocking(true)?;
        let link = Arc::new(Link {
            socket: UnixStream::from_std(socket)?,
            writing: tokio::sync::Mutex::new(()),
            next: AtomicU64::new(1),
            pending: parking::Pending::new(),
            closed: watch::channel(false).0,
        });
        let hearing = Arc::clone(&link);
        tokio::spawn(async move {
            if let Err(error) = hearing.hear(&mut listener).await {
                tracing::debug!(%error, "the connection to a shim ended");
            }
            hearing.pending.close();
            listener.gone();
            hearing.closed.send_replace(true);
        });
        Ok(link)
    }

    /// When the shim has closed its end and the listener knows.
    pub(super) async fn closed(&self) {
        let mut closed = self.closed.subscribe();
        // The sender lives in `self`.
        let _ = closed.wait_for(|closed| *closed).await;
    }

    /// Asks and waits for the answer.
    pub(super) async fn call(&self, request: Request, fds: Vec<OwnedFd>) -> Answer {
        let gone = || Failure { kind: FailureKind::NotRunning, message: "its shim is gone".to_owned() };
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let answered = self.pending.add(id).ok_or_else(gone)?;
        let call = frame(&Call { id, fds: fds.len(), request });
        if self.send(&call, &fds).await.is_err() {
            self.pending.take(id);
            return Err(gone());
        }
        drop(fds);
        answered.await.unwrap_or_else(|_| Err(gone()))
    }

    async fn send(&self, bytes: &[u8], fds: &[OwnedFd]) -> io::Result<()> {
        let _turn = self.writing.lock().await;
        let mut sent = 0;
        while sent < bytes.len() {
            sent += self
                .socket
                .async_io(Interest::WRITABLE, || {
                    let rights: Vec<BorrowedFd<'_>> =
                        if sent == 0 { fds.iter().map(AsFd::as_fd).collect() } else { Vec::new() };
                    fds::send(&self.socket, &bytes[sent..], &rights)
                })
                .await?;
        }
        Ok(())
    }

    async fn hear(&self, listener: &mut impl Listener) -> io::Result<()> {
        let mut inbox = Vec::new();
        let mut rights = VecDeque::new();
        loop {
            let mut bytes = [0; 4096];
            let mut fds = Vec::new();
            let read =
                self.socket.async_io(Interest::READABLE, || fds::receive(&self.socket, &mut bytes, &mut fds)).await?;
            if read == 0 {
                return Ok(());
            }
            inbox.extend_from_slice(&bytes[..read]);
            rights.extend(fds);
            while let Some(frame) = take_frame(&mut inbox).map_err(io::Error::other)? {
                match serde_json::from_slice(&frame) {
                    Ok(Message::Reply { id, fds, result }) => {
                        let fds = rights.drain(..fds.min(rights.len())).collect();
                        if let Some(answer) = self.pending.take(id) {
                            let _ = answer.send(result.map(|reply| (reply, fds)));
                        }
                    }
                    Ok(message) => listener.hear(message),
                    // A newer shim may know words that we do not.
                    Err(error) => tracing::warn!(%error, "a shim said something unknown"),
                }
            }
        }
    }
}
