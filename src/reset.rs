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
    // Without the directory there is nothing to lock, and still what it was the directory of may be there: containers,
    // interfaces, rules. Their names follow from its path.
    let exists = data.root().exists();
    let _locks = exists.then(|| anyhow::Ok((data.lock(Part::Server)?, data.lock(Part::Agent)?))).transpose()?;
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
    if failures.is_empty()
        && exists
        && let Err(error) = empty(data.root())
    {
        failures.push(format!("files: {error}"));
    }
    if !failures.is_empty() {
        bail!("could not remove everything of {}:\n  {}", data.root().display(), failures.join("\n  "));
    }
    if exists {
        println!("Removed all of {}.", data.root().display());
    } else {
        println!("{} does not exist; nothing of it is left elsewhere.", data.root().display());
    }
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
