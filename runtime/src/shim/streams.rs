//! The container's streams: from its pipes or terminal into the log and to whoever is attached, and
//! from the first who is attached into its standard input.
//!
//! A slow reader holds the container back, as a terminal would; one that takes nothing for ten
//! seconds is let go.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rustix::event::PollFlags;

use super::launch::Stdio;
use crate::logs::{LogFile, LogStream, Splitter, stamp};
use crate::session::TerminalSize;

/// As much is kept for a reader that is behind.
const BACKLOG_LIMIT: usize = 256 * 1024;
/// A reader that takes nothing for so long is let go.
const STUCK: Duration = Duration::from_secs(10);
const CHUNK: usize = 32 * 1024;

/// Which descriptor of ours is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Port {
    Stdout,
    Stderr,
    Stdin,
    AttachedOut(u64),
    AttachedErr(u64),
    AttachedIn(u64),
}

pub(super) struct Streams {
    log: LogFile,
    stdout: Option<Source>,
    stderr: Option<Source>,
    stdin: Option<Sink>,
    stdin_once: bool,
    terminal: bool,
    attached: Vec<Attached>,
}

struct Source {
    fd: OwnedFd,
    lines: Splitter,
}

struct Attached {
    id: u64,
    stdin: Option<OwnedFd>,
    stdout: Option<Sink>,
    stderr: Option<Sink>,
}

/// Where bytes go, as fast as it takes them.
struct Sink {
    fd: OwnedFd,
    backlog: VecDeque<u8>,
    progress: Instant,
}

impl Sink {
    fn new(fd: OwnedFd) -> io::Result<Sink> {
        set_nonblocking(&fd)?;
        Ok(Sink { fd, backlog: VecDeque::new(), progress: Instant::now() })
    }

    fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.backlog.is_empty() {
            self.progress = Instant::now();
        }
        self.backlog.extend(bytes);
        self.flush()
    }

    fn flush(&mut self) -> io::Result<()> {
        while !self.backlog.is_empty() {
            match rustix::io::write(&self.fd, self.backlog.as_slices().0) {
                Ok(written) => {
                    self.backlog.drain(..written);
                    self.progress = Instant::now();
                }
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        // A burst's memory is not kept for the container's whole life.
        self.backlog.shrink_to(0);
        Ok(())
    }

    fn is_stuck(&self, now: Instant) -> bool {
        !self.backlog.is_empty() && now.duration_since(self.progress) > STUCK
    }
}

impl Streams {
    pub(super) fn new(stdio: Stdio, log: LogFile, stdin_once: bool) -> io::Result<Streams> {
        let terminal = stdio.terminal.is_some();
        let (stdin, stdout) = match stdio.terminal {
            Some(master) => (Some(master.try_clone()?), Some(master)),
            None => (stdio.stdin, stdio.stdout),
        };
        let source = |fd: Option<OwnedFd>| -> io::Result<Option<Source>> {
            let Some(fd) = fd else { return Ok(None) };
            set_nonblocking(&fd)?;
            Ok(Some(Source { fd, lines: Splitter::default() }))
        };
        Ok(Streams {
            log,
            stdout: source(stdout)?,
            stderr: source(stdio.stderr)?,
            stdin: stdin.map(Sink::new).transpose()?,
            stdin_once,
            terminal,
            attached: Vec::new(),
        })
    }

    /// What to wait for.
    pub(super) fn interests<'a>(&'a self, add: &mut dyn FnMut(BorrowedFd<'a>, PollFlags, Port)) {
        let full = |sink: &Option<Sink>| sink.as_ref().is_some_and(|sink| sink.backlog.len() >= BACKLOG_LIMIT);
        if let Some(source) = &self.stdout
            && !self.attached.iter().any(|attached| full(&attached.stdout))
        {
            add(source.fd.as_fd(), PollFlags::IN, Port::Stdout);
        }
        if let Some(source) = &self.stderr
            && !self.attached.iter().any(|attached| full(&attached.stderr))
        {
            add(source.fd.as_fd(), PollFlags::IN, Port::Stderr);
        }
        let behind = |sink: &'a Option<Sink>| sink.as_ref().filter(|sink| !sink.backlog.is_empty());
        if let Some(sink) = behind(&self.stdin) {
            add(sink.fd.as_fd(), PollFlags::OUT, Port::Stdin);
        }
        let input_waits = behind(&self.stdin).is_some();
        for attached in &self.attached {
            if let Some(sink) = behind(&attached.stdout) {
                add(sink.fd.as_fd(), PollFlags::OUT, Port::AttachedOut(attached.id));
            }
            if let Some(sink) = behind(&attached.stderr) {
                add(sink.fd.as_fd(), PollFlags::OUT, Port::AttachedErr(attached.id));
            }
            if let Some(fd) = &attached.stdin
                && !input_waits
            {
                add(fd.as_fd(), PollFlags::IN, Port::AttachedIn(attached.id));
            }
        }
    }

    /// Whether somebody must be watched for being stuck.
    pub(super) fn has_backlog(&self) -> bool {
        let behind = |sink: &Option<Sink>| sink.as_ref().is_some_and(|sink| !sink.backlog.is_empty());
        self.attached.iter().any(|attached| behind(&attached.stdout) || behind(&attached.stderr))
    }

    /// All output has been read.
    pub(super) fn is_drained(&self) -> bool {
        self.stdout.is_none() && self.stderr.is_none()
    }

    /// Does what can be done at a port. Returns attachments that are over.
    pub(super) fn ready(&mut self, port: Port) -> Vec<u64> {
        match port {
            Port::Stdout => self.read(LogStream::Stdout),
            Port::Stderr => self.read(LogStream::Stderr),
            Port::Stdin => {
                if self.stdin.as_mut().is_some_and(|sink| sink.flush().is_err()) {
                    self.stdin = None;
                }
            }
            Port::AttachedIn(id) => self.feed(id),
            Port::AttachedOut(id) | Port::AttachedErr(id) => {
                if let Some(attached) = self.attached.iter_mut().find(|attached| attached.id == id) {
                    flush(&mut attached.stdout);
                    flush(&mut attached.stderr);
                }
            }
        }
        self.let_go()
    }

    /// Lets those go that nothing can be sent to any more, or that are stuck.
    pub(super) fn let_go(&mut self) -> Vec<u64> {
        let now = Instant::now();
        let mut gone = Vec::new();
        self.attached.retain_mut(|attached| {
            for sink in [&mut attached.stdout, &mut attached.stderr] {
                if sink.as_ref().is_some_and(|sink| sink.is_stuck(now)) {
                    *sink = None;
                }
            }
            let over = attached.stdin.is_none() && attached.stdout.is_none() && attached.stderr.is_none();
            if over {
                gone.push(attached.id);
            }
            !over
        });
        gone
    }

    fn read(&mut self, stream: LogStream) {
        let slot = match stream {
            LogStream::Stdout => &mut self.stdout,
            LogStream::Stderr => &mut self.stderr,
        };
        let Some(source) = slot else { return };
        let mut buffer = [0; CHUNK];
        let read = match rustix::io::read(&source.fd, &mut buffer) {
            Ok(read) => read,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return,
            // A terminal whose last process is gone says EIO.
            Err(_) => 0,
        };
        let mut lines = Vec::new();
        let now = stamp(Timestamp::now());
        if read == 0 {
            source.lines.finish(&now, stream, &mut lines);
            *slot = None;
        } else {
            source.lines.push(&now, stream, &buffer[..read], &mut lines);
        }
        self.log.append(&lines);
        for attached in &mut self.attached {
            let sink = match stream {
                LogStream::Stdout => &mut attached.stdout,
                LogStream::Stderr => &mut attached.stderr,
            };
            if let Some(open) = sink
                && read > 0
                && open.push(&buffer[..read]).is_err()
            {
                *sink = None;
            }
        }
    }

    /// From an attachment to the container.
    fn feed(&mut self, id: u64) {
        let Some(attached) = self.attached.iter_mut().find(|attached| attached.id == id) else { return };
        let Some(fd) = &attached.stdin else { return };
        let mut buffer = [0; CHUNK];
        match rustix::io::read(fd, &mut buffer) {
            Ok(0) | Err(_) => {
                attached.stdin = None;
                if self.stdin_once && !self.terminal {
                    // What is still in the pipe is read before its end is.
                    self.stdin = None;
                }
            }
            Ok(read) => {
                if self.stdin.as_mut().is_some_and(|sink| sink.push(&buffer[..read]).is_err()) {
                    self.stdin = None;
                }
            }
        }
    }

    pub(super) fn attach(
        &mut self,
        id: u64,
        stdin: Option<OwnedFd>,
        stdout: Option<OwnedFd>,
        stderr: Option<OwnedFd>,
    ) -> io::Result<()> {
        let stdout = stdout.map(Sink::new).transpose()?;
        let stderr = stderr.filter(|_| !self.terminal).map(Sink::new).transpose()?;
        let stdin = stdin.filter(|_| self.stdin.is_some());
        self.attached.push(Attached { id, stdin, stdout, stderr });
        Ok(())
    }

    pub(super) fn detach(&mut self, id: u64) {
        self.attached.retain(|attached| attached.id != id);
    }

    pub(super) fn resize(&self, size: TerminalSize) -> io::Result<()> {
        match &self.stdout {
            Some(source) if self.terminal => resize(&source.fd, size),
            _ => Ok(()),
        }
    }

    pub(super) fn reopen_log(&mut self) -> io::Result<()> {
        self.log.reopen()
    }

    /// The container is over: what is left goes to the log, and to those attached as far as they take it.
    pub(super) fn close(&mut self) {
        let now = stamp(Timestamp::now());
        let mut lines = Vec::new();
        for (slot, stream) in [(&mut self.stdout, LogStream::Stdout), (&mut self.stderr, LogStream::Stderr)] {
            if let Some(mut source) = slot.take() {
                source.lines.finish(&now, stream, &mut lines);
            }
        }
        self.log.append(&lines);
        self.stdin = None;
        for attached in &mut self.attached {
            attached.stdin = None;
        }
    }
}

fn flush(sink: &mut Option<Sink>) {
    if sink.as_mut().is_some_and(|sink| sink.flush().is_err()) {
        *sink = None;
    }
}

/// Sets a terminal's size.
pub(super) fn resize(terminal: impl AsFd, size: TerminalSize) -> io::Result<()> {
    let size = rustix::termios::Winsize { ws_row: size.height, ws_col: size.width, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(rustix::termios::tcsetwinsize(terminal, size)?)
}

pub(super) fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(&fd)?;
    Ok(rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK)?)
}
