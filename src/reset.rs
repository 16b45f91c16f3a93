//! `proa reset`: the machine as it was found.

use std::path::Path;

use anyhow::bail;

use crate::paths::{DataDir, Part};

/// Stops and removes everything that belongs to `directory`; goes on past what fails and reports all of it.
///
/// # Errors
/// When a platform still runs on the directory, or something could not be removed.
pub(crate) fn run(directory: &Path) -> anyhow::Result<()> {
    let data = DataDir::new(directory)?;
    if !data.root().exists() {
        println!("Nothing to reset: {} does not exist.", data.root().display());
        return Ok(());
    }
    let _server = data.lock(Part::Server)?;
    let _agent = data.lock(Part::Agent)?;
    let mut failures = Vec::new();
    let mut step = |what: &str, outcome: Result<(), String>| {
        if let Err(error) = outcome {
            failures.push(format!("{what}: {error}"));
        }
    };
    step("containers", proa_runtime::reset(&data.runtime()).map_err(|error| error.to_string()));
    step("network", proa_network::reset(&data.network()).map_err(|error| error.to_string()));
    step("volumes", proa_kubelet_agent::reset(&data.agent()).map_err(|error| error.to_string()));
    if failures.is_empty() {
        step("files", empty(data.root()).map_err(|error| error.to_string()));
    }
    if !failures.is_empty() {
        bail!("could not remove everything of {}:\n  {}", data.root().display(), failures.join("\n  "));
    }
    println!("Removed all of {}.", data.root().display());
    Ok(())
}

/// Empties the directory; itself it may be a mount point or somebody else's.
fn empty(directory: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            std::fs::remove_dir_all(entry.path())?;
        } else {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
