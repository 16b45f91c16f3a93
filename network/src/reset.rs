//! Taking everything back.

use std::path::Path;

/// What could not be taken back; everything else was.
#[derive(Debug, thiserror::Error)]
#[error("network reset is incomplete: {}", .0.join("; "))]
pub struct ResetError(pub Vec<String>);

/// Removes the interfaces, pinned namespaces, nftables table, addresses and routes of `instance`, puts changed sysctls
/// back and deletes `state_dir`. Works in the calling thread's network namespace. Calling it again is fine.
pub fn reset(state_dir: &Path, instance: &str) -> Result<(), ResetError> {
    let _ = (state_dir, instance);
    Err(ResetError(vec!["not supported by Proa yet".into()]))
}
