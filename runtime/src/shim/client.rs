//! One connection of the agent, never waited for.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::fds;
use crate::protocol::{Call, Message, frame, take_frame};

pub(super) struct Client {
    socket: OwnedFd,
    inbox: Vec<u8>,
    inbox_fds: VecDeque<OwnedFd>,
    outbox: VecDeque<Outgoing>,
    gone: bool,
}

struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
    fds: Vec<OwnedFd>,
}

impl Client {
    pub(super) fn new(socket: OwnedFd) -> io::Result<Client> {
        super::streams::set_nonblocking(&socket)?;
        Ok(Client { socket, inbox: Vec::new(), inbox_fds: VecDeque::new(), outbox: VecDeque::new(), gone: false })
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub(super) fn is_gone(&self) -> bool {
        self.gone
    }

    pub(super) fn interest(&self) -> PollFlags {
        if self.outbox.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT }
    }

    pub(super) fn send(&mut self, message: &Message) {
        self.send_with(message, Vec::new());
    }

    pub(super) fn send_with(&mut self, message: &Message, fds: Vec<OwnedFd>) {
        self.outbox.push_back(Outgoing { bytes: frame(message), sent: 0, fds });
        self.flush();
    }

    /// Reads and writes what can be, and returns whole calls with their descriptors.
    pub(super) fn ready(&mut self, flags: PollFlags) -> Vec<(Call, Vec<OwnedFd>)> {
        if flags.contains(PollFlags::OUT) {
            self.flush();
        }
        let mut calls = Vec::new();
        if flags.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            self.receive();
            loop {
                match take_frame(&mut self.inbox) {
                    Ok(None) => break,
                    Ok(Some(frame)) => match serde_json::from_slice::<Call>(&frame) {
                        Ok(call) => {
                            let count = call.fds.min(self.inbox_fds.len());
                            let fds = self.inbox_fds.drain(..count).collect();
                            calls.push((call, fds));
                        }
                        Err(_) => self.gone = true,
                    },
                    Err(_) => {
                        self.gone = true;
                        break;
                    }
                }
            }
        }
        calls
    }

    fn receive(&mut self) {
        let mut buffer = [0; 16 * 1024];
        loop {
            let mut fds = Vec::new();
            match fds::receive(&self.socket, &mut buffer, &mut fds) {
                Ok(0) => {
                    self.gone = true;
                    return;
                }
                Ok(read) => {
                    self.inbox.extend_from_slice(&buffer[..read]);
                    self.inbox_fds.extend(fds);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.gone = true;
                    return;
                }
            }
        }
    }

    fn flush(&mut self) {
        while let Some(first) = self.outbox.front_mut() {
            let rights: Vec<BorrowedFd<'_>> = first.fds.iter().map(AsFd::as_fd).collect();
            match fds::send(&self.socket, &first.bytes[first.sent..], &rights) {
                Ok(sent) => {
                    first.sent += sent;
                    first.fds.clear();
                    if first.sent == first.bytes.len() {
                        self.outbox.pop_front();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.gone = true;
                    self.outbox.clear();
                }
            }
        }
    }

    /// The last words, until a deadline.
    pub(super) fn drain(&mut self, deadline: Instant) {
        self.flush();
        while !self.outbox.is_empty() && !self.gone && Instant::now() < deadline {
            let mut descriptors = [PollFd::new(&self.socket, PollFlags::OUT)];
            let _ = poll(&mut descriptors, Some(&Timespec { tv_sec: 0, tv_nsec: 100_000_000 }));
            self.flush();
        }
    }
}
