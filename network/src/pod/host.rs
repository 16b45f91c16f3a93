//! What is changed on the host itself, and its record, from which reset takes it back.
//!
//! Every change is written down (and synced) before it is made; what was already as wanted is neither changed nor
//! written down. Changes: forwarding on, `lo` up, addresses on `lo`, one route.

use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use crate::cidr::Cidr;
use crate::netlink::route::{Route, Scope};
use crate::netlink::{NetlinkError, Socket};

/// `lo` has this index in every namespace.
const LOOPBACK: u32 = 1;
const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";

/// A change of the host could not be made, recorded or taken back.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A file (record or sysctl) failed.
    #[error("{}: {source}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// The kernel refused.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

/// One change, as a line of the record.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Change {
    /// Forwarding was off.
    Forwarding,
    /// `lo` was down.
    LoopbackUp,
    /// The node's address in the pod network, on `lo`.
    NodeAddress(IpAddr),
    /// Another address the node answers at, on `lo`.
    LocalAddress(IpAddr),
    /// The route to services, through `lo`.
    ServiceRoute(Cidr),
}

impl Change {
    fn line(&self) -> String {
        match self {
            Change::Forwarding => "forwarding".into(),
            Change::LoopbackUp => "loopback-up".into(),
            Change::NodeAddress(address) => format!("node-address {address}"),
            Change::LocalAddress(address) => format!("local-address {address}"),
            Change::ServiceRoute(to) => format!("service-route {to}"),
        }
    }

    /// `None` for a line cut short by a crash: what it announced was not done.
    fn read(line: &str) -> Option<Change> {
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        Some(match verb {
            "forwarding" => Change::Forwarding,
            "loopback-up" => Change::LoopbackUp,
            "node-address" => Change::NodeAddress(rest.parse().ok()?),
            "local-address" => Change::LocalAddress(rest.parse().ok()?),
            "service-route" => Change::ServiceRoute(rest.parse().ok()?),
            _ => return None,
        })
    }
}

/// The host's side of the pod network.
pub(crate) struct Host {
    record: PathBuf,
    changes: Vec<Change>,
}

impl Host {
    /// Reads the record at `record`; an absent one is empty.
    pub(crate) fn open(record: &Path) -> Result<Host, HostError> {
        let text = match fs::read_to_string(record) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
            Err(source) => return Err(HostError::File { path: record.to_owned(), source }),
        };
        // Only whole lines count.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let host = Host { record: record.to_owned(), changes: whole.lines().filter_map(Change::read).collect() };
        if whole.len() + 1 < text.len() {
            // A line cut short by a crash must not swallow the next one.
            host.rewrite()?;
        }
        Ok(host)
    }

    /// Makes the host ready for pods: `lo` up, forwarding on, the node's address and the route to services on `lo`.
    /// What an earlier configuration left and this one does not want is taken back.
    pub(crate) fn prepare(
        &mut self,
        socket: &mut Socket,
        node: IpAddr,
        services: Option<Cidr>,
    ) -> Result<(), HostError> {
        let stale: Vec<Change> = self
            .changes
            .iter()
            .filter(|c| match c {
                Change::NodeAddress(address) => *address != node,
                Change::ServiceRoute(to) => Some(*to) != services,
                _ => false,
            })
            .cloned()
            .collect();
        for change in stale {
            self.undo(&change, socket, false)?;
            self.forget(&change)?;
        }
        if !socket.link("lo")?.is_some_and(|lo| lo.up) {
            self.remember(Change::LoopbackUp)?;
            socket.set_up(&["lo"], false)?;
        }
        let forwarding = fs::read_to_string(FORWARDING).map_err(file(FORWARDING))?;
        if forwarding.trim() == "0" {
            self.remember(Change::Forwarding)?;
            fs::write(FORWARDING, "1").map_err(file(FORWARDING))?;
        }
        self.remember(Change::NodeAddress(node))?;
        socket.add_address(LOOPBACK, node, Scope::Universe)?;
        if let Some(to) = services {
            self.remember(Change::ServiceRoute(to))?;
            let source = (to.base().is_ipv4() == node.is_ipv4()).then_some(node);
            socket.add_route(&Route {
                to,
                index: LOOPBACK,
                gateway: None,
                source,
                scope: Scope::Link,
                on_link: false,
            })?;
        }
        Ok(())
    }

    /// Lets the node answer at `address`. Scope host: never picked as a source for what leaves the machine.
    pub(crate) fn add_local_address(&mut self, socket: &mut Socket, address: IpAddr) -> Result<(), HostError> {
        self.remember(Change::LocalAddress(address))?;
        Ok(socket.add_address(LOOPBACK, address, Scope::Host)?)
    }

    /// Takes every change back, last one first, past errors. With `keep_forwarding`, forwarding stays on (another
    /// installation in this namespace lives by it).
    pub(crate) fn restore(&mut self, socket: &mut Socket, keep_forwarding: bool) -> Vec<HostError> {
        let changes: Vec<Change> = self.changes.iter().rev().cloned().collect();
        changes.iter().filter_map(|change| self.undo(change, socket, keep_forwarding).err()).collect()
    }

    fn undo(&self, change: &Change, socket: &mut Socket, keep_forwarding: bool) -> Result<(), HostError> {
        match change {
            Change::Forwarding if keep_forwarding => {}
            Change::Forwarding => fs::write(FORWARDING, "0").map_err(file(FORWARDING))?,
            Change::LoopbackUp => socket.set_down("lo")?,
            Change::NodeAddress(address) | Change::LocalAddress(address) => {
                socket.delete_address(LOOPBACK, *address)?
            }
            Change::ServiceRoute(to) => socket.delete_route(*to, LOOPBACK)?,
        }
        Ok(())
    }

    fn remember(&mut self, change: Change) -> Result<(), HostError> {
        if self.changes.contains(&change) {
            return Ok(());
        }
        let failed = file(&self.record);
        let line = format!("{}\n", change.line());
        let mut options = fs::OpenOptions::new();
        let written = options.create(true).append(true).open(&self.record).and_then(|mut record| {
            record.write_all(line.as_bytes())?;
            record.sync_all()
        });
        written.map_err(failed)?;
        self.changes.push(change);
        Ok(())
    }

    fn forget(&mut self, change: &Change) -> Result<(), HostError> {
        self.changes.retain(|c| c != change);
        self.rewrite()
    }

    fn rewrite(&self) -> Result<(), HostError> {
        let text: String = self.changes.iter().map(|c| c.line() + "\n").collect();
        let aside = self.record.with_extension("new");
        fs::write(&aside, text).and_then(|()| fs::rename(&aside, &self.record)).map_err(file(&self.record))
    }
}

fn file(path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> HostError {
    let path = path.as_ref().to_owned();
    move |source| HostError::File { path, source }
}
