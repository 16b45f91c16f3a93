//! Taking everything back.

use std::fs;
use std::path::Path;

use crate::names;
use crate::netlink::{NetlinkError, Socket};
use crate::nft;
use crate::pod::host::Host;
use crate::pod::{CLAIMS, HOST, INSTANCE, PINS, remove_all};

/// What could not be taken back; everything else was.
#[derive(Debug, thiserror::Error)]
#[error("network reset is incomplete: {}", .0.join("; "))]
pub struct ResetError(pub Vec<String>);

/// How a part of the state directory is removed.
type Remove = fn(&Path) -> std::io::Result<()>;

/// Removes the interfaces, pinned namespaces, nftables table, addresses and routes of the installation whose state is
/// in `state_dir`, puts changed sysctls back and removes that directory. Works in the calling thread's network namespace. Calling it again is fine.
///
/// Where the directory is gone, or was never used, `instance` says whose interfaces and table to look for; addresses,
/// routes and sysctls, which only the directory knows, stay. Forwarding stays on while another installation has a table
/// in this namespace.
pub fn reset(state_dir: &Path, instance: &str) -> Result<(), ResetError> {
    let recorded = match fs::read_to_string(state_dir.join(INSTANCE)) {
        Ok(recorded) => Some(recorded),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
        Err(e) => return Err(ResetError(vec![format!("{}: {e}", state_dir.join(INSTANCE).display())])),
    };
    let instance = recorded.as_ref().map_or(instance, |recorded| recorded.trim_end_matches('\n'));
    let mut errors: Vec<String> = Vec::new();
    let mut others = false;
    match remove_table(&names::table(instance)) {
        Ok(left) => others = left,
        // The record is written before anything is made: without it, a kernel without nftables never had a table.
        Err(_) if recorded.is_none() => {}
        Err(e) => errors.push(e.to_string()),
    }
    match Socket::route() {
        Ok(mut socket) => {
            errors.extend(remove_all(&mut socket, state_dir, instance).iter().map(ToString::to_string));
            match Host::open(&state_dir.join(HOST)) {
                Ok(mut host) => errors.extend(host.restore(&mut socket, others).iter().map(ToString::to_string)),
                Err(e) => errors.push(e.to_string()),
            }
        }
        Err(e) => errors.push(format!("opening a route socket: {e}")),
    }
    // The record is what a second attempt would need.
    if errors.is_empty() {
        // Only what is ours: a wrong path must not cost anybody a directory. The instance's name goes last: while
        // anything is left, another attempt needs it.
        let own: [(Remove, &str); 5] = [
            (|path| fs::remove_dir_all(path), CLAIMS),
            (|path| fs::remove_dir(path), PINS),
            (|path| fs::remove_file(path), HOST),
            (|path| fs::remove_file(path), INSTANCE),
            (|path| fs::remove_dir(path), ""),
        ];
        for (remove, name) in own {
            let path = state_dir.join(name);
            match remove(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    errors.push(format!("removing {}: {e}", path.display()));
                    break;
                }
                _ => {}
            }
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(ResetError(errors)) }
}

/// Removes an installation's table, if it is there; whether another installation has one.
fn remove_table(own: &str) -> Result<bool, NetlinkError> {
    let mut socket = Socket::netfilter()?;
    let tables = nft::tables(&mut socket)?;
    if tables.iter().any(|table| table == own) {
        nft::delete_table(&mut socket, own)?;
    }
    Ok(tables.iter().any(|table| table != own && (table == names::TABLE || table.starts_with("proa-"))))
}
