//! Who holds which address: one small file per claim, named after the address.
//!
//! A claim is written before anything is made for it and removed after everything is gone, so that whatever a crash
//! leaves can be found by it. Files are not synced: what they speak of does not outlive a power cut either.
//! A released address is not given out again before the rest of the block was (clients and conntrack remember it).

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use crate::cidr::Cidr;

/// Second line of the claim of a sandbox whose network is complete.
const READY: &str = "ready";
const CURSOR: &str = ".next";

/// Why an address could not be claimed or released.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// The block has no address left.
    #[error("no free pod address left in {0}")]
    Exhausted(Cidr),
    /// The address asked for belongs to another sandbox.
    #[error("pod address {address} is taken by {by}")]
    Taken {
        /// The address asked for.
        address: IpAddr,
        /// Its holder.
        by: String,
    },
    /// The address asked for is not one this node may give out.
    #[error("pod address {0} is not one of {1}")]
    Outside(IpAddr, Cidr),
    /// The state directory failed.
    #[error("{}: {source}", .path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
}

/// A sandbox's hold on an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) address: IpAddr,
    /// Its network was complete once.
    pub(super) ready: bool,
}

/// All claims of a node.
pub(super) struct Claims {
    dir: PathBuf,
    block: Cidr,
    by_id: BTreeMap<String, Claim>,
    taken: HashMap<IpAddr, String>,
    /// Offset in the block from which the next search starts.
    next: u32,
}

impl Claims {
    /// Reads the claims of an earlier run.
    pub(super) fn open(dir: &Path, block: Cidr) -> Result<Claims, ClaimError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| ClaimError::State { path, source }
        };
        fs::create_dir_all(dir).map_err(failed(dir))?;
        let mut claims =
            Claims { dir: dir.to_owned(), block, by_id: BTreeMap::new(), taken: HashMap::new(), next: first(block) };
        for entry in fs::read_dir(dir).map_err(failed(dir))? {
            let path = entry.map_err(failed(dir))?.path();
            let Some(name) = path.file_name().and_then(|n| n.to_str()) else { continue };
            let Ok(address) = name.parse::<IpAddr>() else {
                if name.ends_with(".new") {
                    let _ = fs::remove_file(&path);
                }
                continue;
            };
            let text = fs::read_to_string(&path).map_err(failed(&path))?;
            let mut lines = text.lines();
            match lines.next().filter(|id| !id.is_empty()) {
                Some(id) => {
                    let ready = lines.next() == Some(READY);
                    claims.by_id.insert(id.to_owned(), Claim { address, ready });
                    claims.taken.insert(address, id.to_owned());
                }
                // Emptied by a power cut; nothing it spoke of is left.
                None => fs::remove_file(&path).map_err(failed(&path))?,
            }
        }
        if let Some(next) = fs::read_to_string(dir.join(CURSOR)).ok().and_then(|t| t.trim().parse().ok()) {
            claims.next = next;
        }
        Ok(claims)
    }

    /// The claim of a sandbox.
    pub(super) fn get(&self, id: &str) -> Option<Claim> {
        self.by_id.get(id).copied()
    }

    /// Every claim.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, Claim)> {
        self.by_id.iter().map(|(id, claim)| (id.as_str(), *claim))
    }

    /// The address of `id`: the one it holds, else `wanted`, else the next free one.
    pub(super) fn claim(&mut self, id: &str, wanted: Option<IpAddr>) -> Result<Claim, ClaimError> {
        if let Some(claim) = self.get(id) {
            return match wanted {
                Some(other) if other != claim.address => {
                    Err(ClaimError::Taken { address: claim.address, by: id.to_owned() })
                }
                _ => Ok(claim),
            };
        }
        let address = match wanted {
            Some(address) if !self.is_usable(address) => return Err(ClaimError::Outside(address, self.block)),
            Some(address) => match self.taken.get(&address) {
                Some(by) => return Err(ClaimError::Taken { address, by: by.clone() }),
                None => address,
            },
            None => self.next_free()?,
        };
        self.write(address, id, false)?;
        let claim = Claim { address, ready: false };
        self.by_id.insert(id.to_owned(), claim);
        self.taken.insert(address, id.to_owned());
        Ok(claim)
    }

    /// Remembers that the network of `id` is complete.
    pub(super) fn complete(&mut self, id: &str) -> Result<(), ClaimError> {
        if let Some(claim) = self.get(id).filter(|c| !c.ready) {
            self.write(claim.address, id, true)?;
            self.by_id.insert(id.to_owned(), Claim { ready: true, ..claim });
        }
        Ok(())
    }

    /// Gives the address of `id` back.
    pub(super) fn release(&mut self, id: &str) -> Result<(), ClaimError> {
        let Some(claim) = self.get(id) else { return Ok(()) };
        let path = self.dir.join(claim.address.to_string());
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(ClaimError::State { path, source: e }),
            _ => {}
        }
        self.by_id.remove(id);
        self.taken.remove(&claim.address);
        Ok(())
    }

    fn next_free(&mut self) -> Result<IpAddr, ClaimError> {
        let (from, to) = (first(self.block), last(self.block));
        if from > to {
            return Err(ClaimError::Exhausted(self.block));
        }
        let start = self.next.clamp(from, to);
        let offset = (start..=to)
            .chain(from..start)
            .find(|offset| self.block.nth(*offset).is_some_and(|a| !self.taken.contains_key(&a)))
            .ok_or(ClaimError::Exhausted(self.block))?;
        self.next = if offset == to { from } else { offset + 1 };
        let path = self.dir.join(CURSOR);
        fs::write(&path, self.next.to_string()).map_err(|source| ClaimError::State { path, source })?;
        self.block.nth(offset).ok_or(ClaimError::Exhausted(self.block))
    }

    fn is_usable(&self, address: IpAddr) -> bool {
        let reserved = [Some(self.block.base()), self.block.nth(1), self.block.nth(last(self.block) + 1)];
        self.block.contains(address) && !reserved.contains(&Some(address))
    }

    /// Written aside and renamed: a claim is there with its holder or not at all.
    fn write(&self, address: IpAddr, id: &str, ready: bool) -> Result<(), ClaimError> {
        let path = self.dir.join(address.to_string());
        let aside = self.dir.join(format!("{address}.new"));
        let written = fs::File::create(&aside)
            .and_then(|mut file| file.write_all(format!("{id}\n{}\n", if ready { READY } else { "" }).as_bytes()))
            .and_then(|()| fs::rename(&aside, &path));
        written.map_err(|source| ClaimError::State { path, source })
    }
}

/// Base and the node's own address are not given out.
fn first(_block: Cidr) -> u32 {
    2
}

/// The last address of a block is not given out either (broadcast, by custom).
fn last(block: Cidr) -> u32 {
    let bits = if block.base().is_ipv4() { 32 } else { 128 } - u32::from(block.prefix());
    1u32.checked_shl(bits).map_or(u32::MAX - 2, |size| size.saturating_sub(2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn open(dir: &Path) -> Claims {
        Claims::open(dir, "10.1.0.0/29".parse().unwrap()).unwrap()
    }

    #[test]
    fn a_released_address_waits_until_the_rest_of_the_block_was_given_out() {
        let dir = tempfile::tempdir().unwrap();
        let mut claims = open(dir.path());
        let given = |claims: &mut Claims, id: &str| claims.claim(id, None).unwrap().address.to_string();
        assert_eq!(given(&mut claims, "a"), "10.1.0.2");
        claims.release("a").unwrap();
        assert_eq!(given(&mut claims, "b"), "10.1.0.3");
        drop(claims);
        let mut claims = open(dir.path());
        assert_eq!(given(&mut claims, "c"), "10.1.0.4");
        assert_eq!(given(&mut claims, "d"), "10.1.0.5");
        assert_eq!(given(&mut claims, "e"), "10.1.0.6");
        assert_eq!(given(&mut claims, "f"), "10.1.0.2");
        assert!(matches!(claims.claim("g", None), Err(ClaimError::Exhausted(_))));
    }

    #[test]
    fn an_address_asked_for_is_given_or_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let mut claims = open(dir.path());
        let ask = |text: &str| Some(text.parse().unwrap());
        assert!(claims.claim("a", ask("10.1.0.6")).is_ok());
        assert!(matches!(claims.claim("b", ask("10.1.0.6")), Err(ClaimError::Taken { by, .. }) if by == "a"));
        for outside in ["10.1.0.0", "10.1.0.1", "10.1.0.7", "10.1.0.8", "fd00::1"] {
            assert!(matches!(claims.claim("b", ask(outside)), Err(ClaimError::Outside(..))), "{outside}");
        }
    }

    proptest! {
        #[test]
        fn no_address_is_ever_held_twice_and_a_restart_forgets_nothing(
            steps in proptest::collection::vec((0u8..3, 0u8..8), 0..40)) {
            let dir = tempfile::tempdir().unwrap();
            let mut claims = open(dir.path());
            for (verb, who) in steps {
                let id = format!("pod{who}");
                match verb {
                    0 => {
                        if claims.claim(&id, None).is_ok() {
                            claims.complete(&id).unwrap();
                        }
                    }
                    1 => claims.release(&id).unwrap(),
                    _ => {
                        let before: Vec<_> = claims.iter().map(|(i, c)| (i.to_owned(), c)).collect();
                        claims = open(dir.path());
                        let after: Vec<_> = claims.iter().map(|(i, c)| (i.to_owned(), c)).collect();
                        prop_assert_eq!(before, after);
                    }
                }
                let addresses: BTreeSet<_> = claims.iter().map(|(_, c)| c.address).collect();
                prop_assert_eq!(addresses.len(), claims.iter().count());
            }
        }
    }
}
