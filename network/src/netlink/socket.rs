//! A netlink socket: acknowledged requests and dumps, with the kernel's own words on errors.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt, socket,
    sockopt,
};

use super::message::{Attributes, Writer, flags, split};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NETLINK_EXT_ACK: libc::c_int = 11;
const NLMSGERR_ATTR_MSG: u16 = 1;
/// Large enough for any dump datagram: the kernel sizes them after the reader's buffer, up to 32 KiB.
const BUFFER: usize = 64 * 1024;
/// Room for a transaction of several thousand rules; only memory that is used is charged.
const SEND_BUFFER: usize = 32 << 20;

/// Why a netlink request failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The kernel refused one message of the request.
    #[error("{what}: {errno}{}", .text.as_ref().map(|t| format!(" ({t})")).unwrap_or_default())]
    Refused {
        /// Number of the message in its request, from 1.
        sequence: u32,
        /// What the message was about.
        what: String,
        /// The error number.
        errno: Errno,
        /// The kernel's explanation (extended acknowledgement), when it gave one.
        text: Option<String>,
    },
    /// The socket itself failed.
    #[error("netlink: {0}")]
    Io(#[from] io::Error),
    /// The kernel's answer never came or made no sense.
    #[error("netlink: {0}")]
    Protocol(&'static str),
}

impl NetlinkError {
    /// The error number, when the kernel gave one.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            NetlinkError::Refused { errno, .. } => Some(*errno),
            NetlinkError::Io(e) => e.raw_os_error().map(Errno::from_raw),
            NetlinkError::Protocol(_) => None,
        }
    }
}

/// Blocking netlink socket, bound to the network namespace it was opened in for good.
pub struct Socket {
    fd: OwnedFd,
    buffer: Vec<u8>,
}

impl Socket {
    /// For links, addresses, routes and neighbours.
    pub fn route() -> io::Result<Socket> {
        Socket::open(SockProtocol::NetlinkRoute)
    }

    /// For nftables and connection tracking.
    pub fn netfilter() -> io::Result<Socket> {
        let socket = Socket::open(SockProtocol::NetlinkNetFilter)?;
        // The plain option is capped by a sysctl; the forced one needs CAP_NET_ADMIN in the first user namespace.
        if setsockopt(&socket.fd, sockopt::SndBufForce, &SEND_BUFFER).is_err() {
            setsockopt(&socket.fd, sockopt::SndBuf, &SEND_BUFFER)?;
        }
        if setsockopt(&socket.fd, sockopt::RcvBufForce, &(4 << 20)).is_err() {
            setsockopt(&socket.fd, sockopt::RcvBuf, &(4 << 20))?;
        }
        Ok(socket)
    }

    fn open(protocol: SockProtocol) -> io::Result<Socket> {
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        let on: libc::c_int = 1;
        // SAFETY: `on` lives across the call and its size is passed; the descriptor is open.
        let result = unsafe {
            libc::setsockopt(
                fd.as_raw_fd(),
                libc::SOL_NETLINK,
                NETLINK_EXT_ACK,
                (&raw const on).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        // Old kernels lack it: errors then come without an explanation.
        let _ = result;
        Ok(Socket { fd, buffer: vec![0; BUFFER] })
    }

    /// Sends messages that each ask for an acknowledgement and waits for all of them. All are carried out, even past a
    /// failing one; the first error is returned.
    pub fn request(&mut self, writer: &Writer, describe: impl Fn(&[u8]) -> String) -> Result<(), NetlinkError> {
        self.send(writer)?;
        let mut first = None;
        let mut waiting = writer.count();
        while waiting > 0 {
            let length = self.receive(true)?.ok_or(NetlinkError::Protocol("no acknowledgement"))?;
            for message in split(&self.buffer[..length]) {
                if message.kind == NLMSG_ERROR {
                    waiting = waiting.saturating_sub(1);
                    let error = refusal(message.payload, message.flags, message.sequence, writer, &describe);
                    first = first.or(error);
                }
            }
        }
        first.map_or(Ok(()), Err)
    }

    /// Sends a transaction of which the kernel acknowledges only failures and the messages that ask for it, all before
    /// the call returns. The first failure is returned.
    pub fn transaction(&mut self, writer: &Writer, describe: impl Fn(&[u8]) -> String) -> Result<(), NetlinkError> {
        self.send(writer)?;
        let mut acknowledged = false;
        let mut first = None;
        loop {
            match self.receive(false) {
                Ok(Some(length)) => {
                    for message in split(&self.buffer[..length]).filter(|m| m.kind == NLMSG_ERROR) {
                        acknowledged = true;
                        let error = refusal(message.payload, message.flags, message.sequence, writer, &describe);
                        first = first.or(error);
                    }
                }
                Ok(None) => break,
                // More errors than fit: those that did are enough to tell.
                Err(NetlinkError::Io(e)) if e.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(e) => return Err(e),
            }
        }
        match first {
            Some(error) => Err(error),
            None if acknowledged => Ok(()),
            None => Err(NetlinkError::Protocol("the transaction was not acknowledged")),
        }
    }

    /// Sends one request that answers with messages and hands each (type, payload) to `each`.
    pub fn dump(&mut self, writer: &Writer, mut each: impl FnMut(u16, &[u8])) -> Result<(), NetlinkError> {
        self.send(writer)?;
        loop {
            let length = self.receive(true)?.ok_or(NetlinkError::Protocol("no answer"))?;
            for message in split(&self.buffer[..length]) {
                match message.kind {
                    NLMSG_DONE => {
                        let status =
                            message.payload.get(..4).and_then(|b| b.try_into().ok()).map_or(0, i32::from_ne_bytes);
                        if status < 0 {
                            return Err(NetlinkError::Io(io::Error::from_raw_os_error(-status)));
                        }
                        return Ok(());
                    }
                    NLMSG_ERROR => {
                        let error =
                            refusal(message.payload, message.flags, message.sequence, writer, &|_| "query".into());
                        return error.map_or(Ok(()), Err);
                    }
                    kind => {
                        each(kind, message.payload);
                        // The answer to a query for one object that did not ask for an acknowledgement.
                        if message.flags & flags::MULTI == 0 {
                            return Ok(());
                        }
                    }
                }
            }
        }
    }

    fn send(&mut self, writer: &Writer) -> Result<(), NetlinkError> {
        // Whatever an earlier, interrupted exchange left would be taken for answers to this one.
        while self.receive(false).is_ok_and(|r| r.is_some()) {}
        loop {
            match send(self.fd.as_raw_fd(), writer.bytes(), MsgFlags::empty()) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(NetlinkError::Io(errno.into())),
            }
        }
    }

    /// One datagram; `None` when it would block and `wait` is false.
    fn receive(&mut self, wait: bool) -> Result<Option<usize>, NetlinkError> {
        let flags = if wait { MsgFlags::empty() } else { MsgFlags::MSG_DONTWAIT };
        loop {
            match recv(self.fd.as_raw_fd(), &mut self.buffer, flags) {
                Ok(length) => return Ok(Some(length)),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) if !wait => return Ok(None),
                Err(errno) => return Err(NetlinkError::Io(errno.into())),
            }
        }
    }
}

/// The error in an acknowledgement; `None` when it says success.
fn refusal(
    payload: &[u8],
    header_flags: u16,
    sequence: u32,
    writer: &Writer,
    describe: &impl Fn(&[u8]) -> String,
) -> Option<NetlinkError> {
    let code = i32::from_ne_bytes(payload.get(..4)?.try_into().ok()?);
    if code == 0 {
        return None;
    }
    let text = (header_flags & flags::ACK_TLVS != 0)
        .then(|| {
            let repeated = u32::from_ne_bytes(payload.get(4..8)?.try_into().ok()?) as usize;
            let skip = if header_flags & flags::CAPPED != 0 { 16 } else { repeated.next_multiple_of(4).max(16) };
            Attributes(payload.get(4 + skip..)?).text(NLMSGERR_ATTR_MSG)
        })
        .flatten();
    let what = writer.message(sequence).map_or_else(|| "netlink".to_owned(), describe);
    Some(NetlinkError::Refused { sequence, what, errno: Errno::from_raw(-code), text })
}
