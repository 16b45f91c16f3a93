//! The shim's loop: one `poll` over the container's streams, the agent's connections and the ends of children.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nix::sys::signal::{SigSet, Signal as NixSignal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::client::Client;
use super::exec;
use super::executor::ProgramError;
use super::files;
use super::launch::{Init, Launched, read_report};
use super::streams::{Port, Streams};
use crate::cgroup::Cgroups;
use crate::disk::{self, Ended};
use crate::exit::{Exit, ExitReason};
use crate::logs::LogFile;
use crate::oci;
use crate::protocol::{Call, Failure, FailureKind, Hello, Message, PROTOCOL, Record, Reply, Request};

/// How long output is waited for after the container's init has ended: whoever still holds its pipes
/// open is not part of the container any more.
const DRAIN: Duration = Duration::from_secs(2);
/// How long the agent may take to hear the last words.
const FAREWELL: Duration = Duration::from_secs(1);

pub(super) struct Shim {
    dir: PathBuf,
    record: Record,
    cgroups: Cgroups,
    cgroup: String,
    state: State,
    warnings: Vec<String>,
    started_at: Option<Timestamp>,
    streams: Streams,
    execs: HashMap<i32, u64>,
    clients: Vec<Client>,
    listener: OwnedFd,
    children: SignalFd,
}

enum State {
    /// Set up; `Err`: it will fail to start.
    Created(Result<Init, ProgramError>),
    Running {
        pid: i32,
    },
    /// Its init has ended; output may still be on its way.
    Ending {
        exit: Exit,
        since: Instant,
    },
}

#[derive(Clone, Copy)]
enum Event {
    Listener,
    Children,
    Client(usize, PollFlags),
    Stream(Port),
}

impl Shim {
    pub(super) fn new(
        dir: &Path,
        record: Record,
        launched: Launched,
        listener: OwnedFd,
        agent: OwnedFd,
    ) -> io::Result<Shim> {
        let log = LogFile::open(&record.spec.log_path)?;
        let mut mask = SigSet::empty();
        mask.add(NixSignal::SIGCHLD);
        let children = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        super::streams::set_nonblocking(&listener)?;
        let mut shim = Shim {
            cgroup: oci::cgroup_path(&record.sandbox, &record.spec.id),
            streams: Streams::new(launched.stdio, log, record.spec.stdin_once)?,
            dir: dir.to_owned(),
            record,
            cgroups: launched.cgroups,
            state: State::Created(launched.init),
            warnings: launched.warnings,
            started_at: None,
            execs: HashMap::new(),
            clients: Vec::new(),
            listener,
            children,
        };
        shim.welcome(agent)?;
        Ok(shim)
    }

    /// Until the container is over.
    pub(super) fn run(mut self) -> i32 {
        loop {
            if let State::Ending { exit, since } = &self.state
                && (self.streams.is_drained() || since.elapsed() > DRAIN)
            {
                let exit = exit.clone();
                self.finish(exit);
                return 0;
            }
            let ready = match self.wait() {
                Ok(ready) => ready,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return super::complain(&format!("poll: {error}")),
            };
            for event in ready {
                match event {
                    Event::Listener => self.accept(),
                    Event::Children => self.reap(),
                    Event::Client(index, flags) => self.converse(index, flags),
                    Event::Stream(port) => {
                        let over = self.streams.ready(port);
                        self.tell_detached(over);
                    }
                }
            }
            let over = self.streams.let_go();
            self.tell_detached(over);
            self.clients.retain(|client| !client.is_gone());
        }
    }

    fn wait(&self) -> io::Result<Vec<Event>> {
        let mut descriptors: Vec<PollFd<'_>> = Vec::new();
        let mut events = Vec::new();
        let mut add = |fd: BorrowedFd<'_>, flags, event| {
            // SAFETY: of the lifetime only: every descriptor belongs to `self`, which outlives this call.
            let fd = unsafe { BorrowedFd::borrow_raw(std::os::fd::AsRawFd::as_raw_fd(&fd)) };
            descriptors.push(PollFd::from_borrowed_fd(fd, flags));
            events.push(event);
        };
        self.streams.interests(&mut |fd, flags, port| add(fd, flags, Event::Stream(port)));
        add(self.children.as_fd(), PollFlags::IN, Event::Children);
        add(self.listener.as_fd(), PollFlags::IN, Event::Listener);
        for (index, client) in self.clients.iter().enumerate() {
            add(client.as_fd(), client.interest(), Event::Client(index, PollFlags::empty()));
        }
        let patience = match &self.state {
            State::Ending { since, .. } => Some(DRAIN.saturating_sub(since.elapsed())),
            _ if self.streams.has_backlog() => Some(Duration::from_secs(1)),
            _ => None,
        };
        let patience = patience
            .map(|time| Timespec { tv_sec: time.as_secs() as i64, tv_nsec: i64::from(time.subsec_nanos()) + 1 });
        poll(&mut descriptors, patience.as_ref())?;
        Ok(descriptors
            .iter()
            .zip(events)
            .filter(|(descriptor, _)| !descriptor.revents().is_empty())
            .map(|(descriptor, event)| match event {
                Event::Client(index, _) => Event::Client(index, descriptor.revents()),
                event => event,
            })
            .collect())
    }

    fn accept(&mut self) {
        let flags = rustix::net::SocketFlags::CLOEXEC;
        while let Ok(socket) = rustix::net::accept_with(&self.listener, flags) {
            let _ = self.welcome(socket);
        }
    }

    fn welcome(&mut self, socket: OwnedFd) -> io::Result<()> {
        let mut client = Client::new(socket)?;
        let pid = match &self.state {
            State::Created(Ok(init)) => Some(init.pid),
            State::Running { pid } => Some(*pid),
            _ => None,
        };
        client.send(&Message::Hello(Hello {
            protocol: PROTOCOL,
            pid: pid.map(|pid| pid as u32),
            started_at: self.started_at,
            warnings: self.warnings.clone(),
        }));
        self.clients.push(client);
        Ok(())
    }

    fn converse(&mut self, index: usize, flags: PollFlags) {
        let Some(client) = self.clients.get_mut(index) else { return };
        for (call, fds) in client.ready(flags) {
            let id = call.id;
            let (result, fds) = match self.obey(call, fds) {
                Ok((reply, fd)) => (Ok(reply), fd.into_iter().collect()),
                Err(failure) => (Err(failure), Vec::new()),
            };
            let reply = Message::Reply { id, fds: fds.len(), result };
            if let Some(client) = self.clients.get_mut(index) {
                client.send_with(&reply, fds);
            }
        }
    }

    fn obey(&mut self, call: Call, fds: Vec<OwnedFd>) -> Result<(Reply, Option<OwnedFd>), Failure> {
        let mut fds = fds.into_iter();
        let mut take = |wanted: bool| if wanted { fds.next() } else { None };
        match call.request {
            Request::Start => self.start()?,
            Request::Signal { signal } => self.signal(signal)?,
            Request::Kill => self.kill(),
            Request::Exec { exec, process, tty, size, stdin, stdout, stderr } => {
                if !matches!(self.state, State::Running { .. }) {
                    return Err(not_running("it is not running"));
                }
                let (pid, terminal) = exec::start(exec::Wanted {
                    dir: &self.dir,
                    exec,
                    process: &process,
                    tty,
                    size,
                    stdin: take(stdin && !tty),
                    stdout: take(stdout && !tty),
                    stderr: take(stderr && !tty),
                })?;
                self.execs.insert(pid, exec);
                return Ok((Reply::Exec { pid: pid as u32 }, terminal));
            }
            Request::ExecKill { exec } => {
                if let Some((pid, _)) = self.execs.iter().find(|(_, id)| **id == exec) {
                    exec::kill_tree(*pid, &self.cgroups.processes(&self.cgroup));
                }
            }
            Request::Attach { attach, spec } => {
                let (stdin, stdout, stderr) = (take(spec.stdin), take(spec.stdout), take(spec.stderr));
                self.streams.attach(attach, stdin, stdout, stderr).map_err(|error| other(&error))?;
            }
            Request::Detach { attach } => self.streams.detach(attach),
            Request::Resize { size } => self.streams.resize(size).map_err(|error| other(&error))?,
            Request::ReopenLog => self.streams.reopen_log().map_err(|error| other(&error))?,
        }
        Ok((Reply::Done, None))
    }

    fn start(&mut self) -> Result<(), Failure> {
        let State::Created(init) = &mut self.state else {
            return Err(Failure { kind: FailureKind::Other, message: "it was started before".to_owned() });
        };
        let failed = match init {
            Err(program) => program.message.clone(),
            Ok(init) => {
                let pid = init.pid;
                // Taken now: a program may end before anything else is read.
                let started_at = Timestamp::now();
                let result = init.container.start().map_err(|error| super::launch::chain(&error));
                let told = init.report.try_clone().map(read_report);
                match (result, told) {
                    (Ok(()), Ok(None)) => {
                        self.state = State::Running { pid };
                        self.started_at = Some(started_at);
                        self.tell(&Message::Started { at: started_at });
                        return Ok(());
                    }
                    (_, Ok(Some(program))) => program.message,
                    (Err(message), _) => message,
                    (_, Err(error)) => error.to_string(),
                }
            }
        };
        self.kill();
        let exit = Exit {
            code: 128,
            signal: None,
            reason: ExitReason::StartError,
            message: failed.clone(),
            finished_at: Timestamp::now(),
        };
        self.state = State::Ending { exit, since: Instant::now() };
        Err(Failure { kind: FailureKind::Start, message: failed })
    }

    fn signal(&mut self, signal: i32) -> Result<(), Failure> {
        let pid = match &self.state {
            State::Running { pid } => *pid,
            State::Created(Ok(init)) => init.pid,
            _ => return Err(not_running("it has ended")),
        };
        // SAFETY: kill(2) takes plain numbers. The child has not been reaped, so its number is its own.
        if unsafe { nix::libc::kill(pid, signal) } == 0 { Ok(()) } else { Err(other(&io::Error::last_os_error())) }
    }

    /// Every process, and the container with them.
    fn kill(&mut self) {
        let _ = self.signal(nix::libc::SIGKILL);
        let _ = self.cgroups.kill_once(&self.cgroup);
        if let State::Created(Err(_)) = &self.state {
            let exit = Exit {
                code: 137,
                signal: Some(9),
                reason: ExitReason::Error,
                message: "killed before it was started".to_owned(),
                finished_at: Timestamp::now(),
            };
            self.state = State::Ending { exit, since: Instant::now() };
        }
    }

    /// Children that have ended: the container's init, execs, and orphans of containers in the host's pid namespace.
    fn reap(&mut self) {
        while let Ok(Some(_)) = self.children.read_signal() {}
        loop {
            let (pid, code, signal) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid.as_raw(), code, None),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid.as_raw(), 128 + signal as i32, Some(signal as i32)),
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(_) => continue,
            };
            if let Some(exec) = self.execs.remove(&pid) {
                self.tell(&Message::ExecExited { exec, code });
                continue;
            }
            let is_init = match &self.state {
                State::Created(Ok(init)) => init.pid == pid,
                State::Running { pid: init } => *init == pid,
                _ => false,
            };
            if is_init {
                if self.record.sandbox.host_pid {
                    // Nobody else ends what the container leaves behind in the host's pid namespace.
                    let _ = self.cgroups.kill_once(&self.cgroup);
                }
                let exit = self.exit(code, signal);
                self.state = State::Ending { exit, since: Instant::now() };
            }
        }
    }

    fn exit(&self, code: i32, signal: Option<i32>) -> Exit {
        let (reason, message) = if code == 0 {
            (ExitReason::Completed, String::new())
        } else if self.cgroups.oom_kills(&self.cgroup) > 0 {
            (ExitReason::OOMKilled, "the kernel killed a process of the container for a memory limit".to_owned())
        } else {
            (ExitReason::Error, String::new())
        };
        Exit { code, signal, reason, message, finished_at: Timestamp::now() }
    }

    fn finish(&mut self, exit: Exit) {
        self.streams.close();
        for exec in std::mem::take(&mut self.execs).into_values() {
            self.tell(&Message::ExecExited { exec, code: 137 });
        }
        let ended = Ended { started_at: self.started_at, exit: exit.clone() };
        if let Err(error) = disk::write_json(&self.dir.join(files::EXIT), &ended) {
            super::complain(&format!("exit code {} cannot be kept: {error}", exit.code));
        }
        self.tell(&Message::Exited(exit));
        let deadline = Instant::now() + FAREWELL;
        for client in &mut self.clients {
            client.drain(deadline);
        }
        while self.streams.has_backlog() && Instant::now() < deadline {
            let Ok(ready) = self.wait_briefly() else { break };
            for port in ready {
                self.streams.ready(port);
            }
        }
        if let Err(error) = self.cgroups.clear(&self.cgroup) {
            super::complain(&format!("cgroup: {error}"));
        }
    }

    /// Only the attached readers, and not for long.
    fn wait_briefly(&self) -> io::Result<Vec<Port>> {
        let mut descriptors = Vec::new();
        let mut ports = Vec::new();
        self.streams.interests(&mut |fd, flags, port| {
            descriptors.push(PollFd::from_borrowed_fd(fd, flags));
            ports.push(port);
        });
        poll(&mut descriptors, Some(&Timespec { tv_sec: 0, tv_nsec: 100_000_000 }))?;
        Ok(descriptors.iter().zip(ports).filter(|(d, _)| !d.revents().is_empty()).map(|(_, port)| port).collect())
    }

    fn tell(&mut self, message: &Message) {
        for client in &mut self.clients {
            client.send(message);
        }
    }

    fn tell_detached(&mut self, attachments: Vec<u64>) {
        for attach in attachments {
            self.tell(&Message::Detached { attach });
        }
    }
}

fn not_running(why: &str) -> Failure {
    Failure { kind: FailureKind::NotRunning, message: why.to_owned() }
}

fn other(error: &io::Error) -> Failure {
    Failure { kind: FailureKind::Other, message: error.to_string() }
}
