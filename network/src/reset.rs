//! Taking everything back.

use std::fs;
use std::path::Path;

use crate::names;
use crate::netlink::Socket;
use crate::nft;
use crate::pod::host::Host;
use crate::pod::{CLAIMS, HOST, PINS, remove_all};

/// What could not be taken back; everything else was.
#[derive(Debug, thiserror::Error)]
#[error("network reset is incomplete: {}", .0.join("; "))]
pub struct ResetError(pub Vec<String>);

/// Removes the interfaces, pinned namespaces, nftables table, addresses and routes of `instance`, puts changed sysctls
/// back and empties `state_dir`. Works in the calling thread's network namespace. Calling it again is fine.
///
/// Forwarding stays on while another installation has a table in this namespace.
pub fn reset(state_dir: &Path, instance: &str) -> Result<(), ResetError> {
    let mut errors: Vec<String> = Vec::new();
    let mut others = false;
    match Socket::netfilter() {
        Ok(mut socket) => {
            let own = names::table(instance);
            errors.extend(nft::delete_table(&mut socket, &own).err().map(|e| e.to_string()));
            match nft::tables(&mut socket) {
                Ok(tables) => {
                    others = tables.iter().any(|t| *t != own && (t == names::TABLE || t.starts_with("proa-")));
                }
                Err(e) => errors.push(e.to_string()),
            }
        }
        Err(e) => errors.push(format!("opening a netfilter socket: {e}")),
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
        // Only what is ours: a wrong path must not cost anybody a directory.
        let own = [
            (fs::remove_dir_all(state_dir.join(CLAIMS)), CLAIMS),
            (fs::remove_dir(state_dir.join(PINS)), PINS),
            (fs::remove_file(state_dir.join(HOST)), HOST),
            (fs::remove_dir(state_dir), ""),
        ];
        let failed = own.into_iter().filter_map(|(result, name)| Some((result.err()?, name)));
        errors.extend(
            failed
                .filter(|(e, _)| e.kind() != std::io::ErrorKind::NotFound)
                .map(|(e, name)| format!("removing {}: {e}", state_dir.join(name).display())),
        );
    }
    if errors.is_empty() { Ok(()) } else { Err(ResetError(errors)) }
}
