//! Owns SPDY/3.1 as kubectl speaks it (draft-mbelshe-httpbis-spdy-00 and 3.1's framing): frames with compressed
//! headers, and streams over one connection. Flow control windows are not kept: neither side of Kubernetes does.

mod dictionary;
mod frame;
mod session;

pub(crate) use session::{Session, Stream, Writer};

/// The client's side, for tests of what is built on top.
#[cfg(test)]
pub(crate) mod tests_client {
    pub(crate) use super::frame::Frame;
    pub(crate) use super::session::tests::Client;
}

/// A peer that does not speak the protocol.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpdyError {
    #[error("malformed SPDY frame: {0}")]
    Frame(&'static str),
    #[error("SPDY version {0} is not supported")]
    Version(u16),
    #[error("SPDY headers: {0}")]
    Headers(String),
    #[error(transparent)]
    Io(#[from] std::io::Error),
}
