//! Removing interfaces, many at a time.
//!
//! The kernel takes some 40 ms to remove an interface, however many go at once (it waits for every CPU to have let go).
//! So removals have a socket of their own, on which set-ups do not wait, and those that arrive while one is under way
//! go together in the next.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::netlink::{NetlinkError, Socket};

/// Interfaces on their way out.
pub(super) struct Removal {
    socket: Mutex<Socket>,
    waiting: Mutex<Vec<String>>,
    failed: Mutex<HashMap<String, NetlinkError>>,
    /// The interface group that marks what goes together; nobody else's.
    group: u32,
}

impl Removal {
    pub(super) fn new(socket: Socket, group: u32) -> Removal {
        Removal { socket: Mutex::new(socket), waiting: Mutex::default(), failed: Mutex::default(), group }
    }

    /// Removes an interface and returns once it is gone; fine when it is not there.
    pub(super) fn remove(&self, name: &str) -> Result<(), NetlinkError> {
        self.waiting.lock().push(name.to_owned());
        let mut socket = self.socket.lock();
        // Empty when whoever held the socket before took this name along: then it is gone by now.
        let together = std::mem::take(&mut *self.waiting.lock());
        if !together.is_empty() {
            let failures = socket.delete_links(&together, self.group);
            self.failed.lock().extend(failures);
        }
        drop(socket);
        self.failed.lock().remove(name).map_or(Ok(()), Err)
    }
}
