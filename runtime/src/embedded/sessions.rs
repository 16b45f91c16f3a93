//! Execs and attachments: their streams bypass the shim's loop where they can.
//!
//! An exec's pipes go straight between its process and the caller; a terminal's master comes back from
//! the shim. Only an attachment's bytes pass through the shim, which also writes them to the log.

use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::pipe;
use tokio::sync::watch;

use super::check;
use super::container::{Container, Phase};
use crate::cgroup::Cgroups;
use crate::error::RuntimeError;
use crate::host;
use crate::oci;
use crate::protocol::{Reply, Request};
use crate::session::{BoxedRead, BoxedWrite, Session, SessionControl, TerminalSize};
use crate::spec::{AttachSpec, ExecSpec};

/// The code of a command that took too long, as timeout(1) has it.
const TIMED_OUT: i32 = 124;

/// The caller's ends of pipes, and the descriptors for the other side in the protocol's order.
#[derive(Default)]
struct Pipes {
    stdin: Option<BoxedWrite>,
    stdout: Option<BoxedRead>,
    stderr: Option<BoxedRead>,
    theirs: Vec<OwnedFd>,
}

impl Pipes {
    fn new(stdin: bool, stdout: bool, stderr: bool) -> io::Result<Pipes> {
        let mut pipes = Pipes::default();
        let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
        if stdin {
            let (theirs, ours) = pipe()?;
            pipes.stdin = Some(Box::new(pipe::Sender::from_owned_fd(ours)?));
            pipes.theirs.push(theirs);
        }
        if stdout {
            let (ours, theirs) = pipe()?;
            pipes.stdout = Some(Box::new(pipe::Receiver::from_owned_fd(ours)?));
            pipes.theirs.push(theirs);
        }
        if stderr {
            let (ours, theirs) = pipe()?;
            pipes.stderr = Some(Box::new(pipe::Receiver::from_owned_fd(ours)?));
            pipes.theirs.push(theirs);
        }
        Ok(pipes)
    }
}

pub(super) async fn exec(
    container: Arc<Container>,
    spec: ExecSpec,
    cgroups: &Cgroups,
) -> Result<Session, RuntimeError> {
    check::environment(&spec.env)?;
    if spec.args.is_empty() {
        return Err(RuntimeError::Invalid("no command specified".to_owned()));
    }
    if !matches!(&*container.phase.borrow(), Phase::Running { .. }) {
        return Err(container.not_running());
    }
    // What the shim's host forbids was left out of the container's own set, and so was it here.
    let process = oci::exec_process(&container.record.spec, &spec, &host::host(cgroups, false));
    let pipes = if spec.tty { Ok(Pipes::default()) } else { Pipes::new(spec.stdin, spec.stdout, spec.stderr) };
    let mut pipes = pipes.map_err(RuntimeError::io("pipes for an exec"))?;
    let exec = container.names.fetch_add(1, Ordering::Relaxed);
    let ended = container.expect_exec(exec);
    let request = Request::Exec {
        exec,
        process,
        tty: spec.tty,
        size: spec.size,
        stdin: spec.stdin,
        stdout: spec.stdout,
        stderr: spec.stderr,
    };
    let terminal = match container.shim()?.call(request, std::mem::take(&mut pipes.theirs)).await {
        Ok((Reply::Exec { .. }, fds)) => fds.into_iter().next(),
        Ok((Reply::Done, _)) => None,
        Err(failure) => {
            container.forget_exec(exec);
            return Err(container.error(failure));
        }
    };
    let terminal = terminal.map(Terminal::new).transpose().map_err(RuntimeError::io("terminal of an exec"))?;
    if let Some(terminal) = &terminal {
        pipes.stdin = spec.stdin.then(|| Box::new(terminal.clone()) as BoxedWrite);
        pipes.stdout = spec.stdout.then(|| Box::new(terminal.clone()) as BoxedRead);
    }
    let control = Arc::new(ExecControl { container, exec, ended, terminal, timed_out: OnceLock::new() });
    if let Some(timeout) = spec.timeout {
        let watched = Arc::clone(&control);
        tokio::spawn(async move { watched.time_out(timeout).await });
    }
    Ok(Session { stdin: pipes.stdin, stdout: pipes.stdout, stderr: pipes.stderr, control })
}

struct ExecControl {
    container: Arc<Container>,
    exec: u64,
    ended: watch::Receiver<Option<i32>>,
    terminal: Option<Terminal>,
    timed_out: OnceLock<Duration>,
}

impl ExecControl {
    async fn code(&self) -> i32 {
        let mut ended = self.ended.clone();
        // A dropped sender means that the container is gone, and its execs with it.
        ended.wait_for(Option::is_some).await.ok().and_then(|code| *code).unwrap_or(137)
    }

    async fn time_out(&self, timeout: Duration) {
        if tokio::time::timeout(timeout, self.code()).await.is_err() {
            let _ = self.timed_out.set(timeout);
            let _ = self.kill().await;
        }
    }
}

impl SessionControl for ExecControl {
    fn resize(&self, size: TerminalSize) -> BoxFuture<'_, Result<(), RuntimeError>> {
        let result = match &self.terminal {
            Some(terminal) => terminal.resize(size).map_err(RuntimeError::io("size of a terminal")),
            None => Ok(()),
        };
        Box::pin(async move { result })
    }

    fn wait(&self) -> BoxFuture<'_, Result<i32, RuntimeError>> {
        Box::pin(async move {
            let code = self.code().await;
            match self.timed_out.get() {
                Some(timeout) => Err(RuntimeError::Exec {
                    code: TIMED_OUT,
                    message: format!("command timed out after {} s", timeout.as_secs_f64()),
                }),
                None => Ok(code),
            }
        })
    }

    fn kill(&self) -> BoxFuture<'_, Result<(), RuntimeError>> {
        Box::pin(async move {
            let request = Request::ExecKill { exec: self.exec };
            self.container.shim()?.call(request, Vec::new()).await.map_err(|f| self.container.error(f))?;
            Ok(())
        })
    }
}

pub(super) async fn attach(container: Arc<Container>, spec: AttachSpec) -> Result<Session, RuntimeError> {
    if !matches!(&*container.phase.borrow(), Phase::Created { .. } | Phase::Running { .. }) {
        return Err(container.not_running());
    }
    let terminal = container.record.spec.tty;
    let spec = AttachSpec {
        stdin: spec.stdin && (container.record.spec.stdin || terminal),
        stderr: spec.stderr && !terminal,
        ..spec
    };
    let mut pipes =
        Pipes::new(spec.stdin, spec.stdout, spec.stderr).map_err(RuntimeError::io("pipes for an attachment"))?;
    let attach = container.names.fetch_add(1, Ordering::Relaxed);
    container
        .shim()?
        .call(Request::Attach { attach, spec }, std::mem::take(&mut pipes.theirs))
        .await
        .map_err(|failure| container.error(failure))?;
    let control = Arc::new(AttachControl { container, attach });
    Ok(Session { stdin: pipes.stdin, stdout: pipes.stdout, stderr: pipes.stderr, control })
}

struct AttachControl {
    container: Arc<Container>,
    attach: u64,
}

impl SessionControl for AttachControl {
    fn resize(&self, size: TerminalSize) -> BoxFuture<'_, Result<(), RuntimeError>> {
        Box::pin(async move {
            let link = self.container.shim()?;
            link.call(Request::Resize { size }, Vec::new()).await.map_err(|f| self.container.error(f))?;
            Ok(())
        })
    }

    fn wait(&self) -> BoxFuture<'_, Result<i32, RuntimeError>> {
        Box::pin(async move { Ok(self.container.exited().await.code) })
    }

    fn kill(&self) -> BoxFuture<'_, Result<(), RuntimeError>> {
        Box::pin(async move {
            let link = self.container.shim()?;
            let request = Request::Detach { attach: self.attach };
            link.call(request, Vec::new()).await.map_err(|f| self.container.error(f))?;
            Ok(())
        })
    }
}

impl Drop for AttachControl {
    fn drop(&mut self) {
        let Some(link) = self.container.link.get().cloned() else { return };
        let attach = self.attach;
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { link.call(Request::Detach { attach }, Vec::new()).await.is_ok() });
        }
    }
}

/// The master of a terminal.
#[derive(Clone)]
struct Terminal(Arc<AsyncFd<OwnedFd>>);

impl Terminal {
    fn new(master: OwnedFd) -> io::Result<Terminal> {
        let flags = rustix::fs::fcntl_getfl(&master)?;
        rustix::fs::fcntl_setfl(&master, flags | rustix::fs::OFlags::NONBLOCK)?;
        // SAFETY: the descriptor is owned, and never replaced or given away while it is registered.
        let master = unsafe { AsyncFd::register(master) }.map_err(io::Error::from)?;
        Ok(Terminal(Arc::new(master)))
    }

    fn resize(&self, size: TerminalSize) -> io::Result<()> {
        let size = rustix::termios::Winsize { ws_row: size.height, ws_col: size.width, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(rustix::termios::tcsetwinsize(self.0.get_ref(), size)?)
    }
}

impl AsyncRead for Terminal {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(cx))?;
            let space = buffer.initialize_unfilled();
            match guard.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut *space)?)) {
                Ok(Ok(read)) => {
                    buffer.advance(read);
                    return Poll::Ready(Ok(()));
                }
                // A terminal whose last process is gone: the end.
                Ok(Err(error)) if error.raw_os_error() == Some(nix::libc::EIO) => return Poll::Ready(Ok(())),
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Terminal {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(cx))?;
            if let Ok(result) = guard.try_io(|fd| Ok(rustix::io::write(fd.get_ref(), bytes)?)) {
                return Poll::Ready(result);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
