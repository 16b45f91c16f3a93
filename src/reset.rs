//! `proa reset`: the machine as it was found.

use std::path::Path;

use anyhow::bail;

use crate::paths::{DataDir, Part};

/// Stops and removes everything that belongs to `directory`; goes on past what fails and reports all of it.
///
/// # Errors
/// When the directory is not Proa's, a platform still runs on it, or something could not be removed.
pub(crate) fn run(directory: &Path) -> anyhow::Result<()> {
    let found = DataDir::find(directory)?;
    // Without the directory there is nothing to lock, and still what it was the directory of may be there: containers,
    // interfaces, rules. Their names follow from its path.
    let data = found.clone().map_or_else(|| DataDir::gone(directory), Ok)?;
    let _locks =
        found.as_ref().map(|data| anyhow::Ok((data.lock(Part::Server)?, data.lock(Part::Agent)?))).transpose()?;
    let steps = [
        (
            "containers",
            proa_runtime::reset(&data.runtime(), &proa_kubelet_agent::cgroup_root(&data.instance()))
                .map_err(anyhow::Error::from),
        ),
        ("network", proa_network::reset(&data.network(), &data.instance()).map_err(anyhow::Error::from)),
        ("volumes", proa_kubelet_agent::reset(&data.agent()).map_err(anyhow::Error::from)),
    ];
    let mut failures: Vec<String> =
        steps.into_iter().filter_map(|(what, outcome)| Some(format!("{what}: {:#}", outcome.err()?))).collect();
    let mut left = Vec::new();
    if let Some(data) = found.as_ref().filter(|_| failures.is_empty()) {
        match data.empty() {
            Ok(names) => left = names,
            Err(error) => failures.push(format!("files: {error}")),
        }
    }
    if !failures.is_empty() {
        bail!("could not remove everything of {}:\n  {}", data.root().display(), failures.join("\n  "));
    }
    if found.is_none() {
        println!("There is no data directory {}, and nothing of it is left elsewhere.", data.root().display());
    } else if left.is_empty() {
        println!("Removed all of {}.", data.root().display());
    } else {
        let left: Vec<_> = left.iter().map(|name| name.to_string_lossy()).collect();
        println!("Removed all of Proa in {}; what is not Proa's stays: {}.", data.root().display(), left.join(", "));
    }
    Ok(())
}
