//! Which unpacked layers are surely on the disk.
//!
//! A layer is some thousand files: making sure of each before a container starts would cost more than the start. Until the
//! machine goes down nothing is lost anyway, whoever is killed. So a layer is used at once, is written through later
//! ([`Settled::settle`]) and then marked. After a reboot only the marked ones are believed; the others are unpacked again.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// The marks, one empty file per layer.
#[derive(Debug)]
pub(crate) struct Settled {
    layers: PathBuf,
    marks: PathBuf,
}

/// The kernel's name for the time since it started.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Which boot the layers were last used in.
const BOOT: &str = "boot";

impl Settled {
    pub(crate) fn open(root: &Path) -> io::Result<Settled> {
        let settled = Settled { layers: root.join("layers"), marks: root.join("settled") };
        fs::create_dir_all(&settled.marks)?;
        Ok(settled)
    }

    /// Layers not to be believed, because the machine was restarted since they were made. [`Settled::believe`] says that
    /// they are gone. The caller is alone at work.
    pub(crate) fn doubtful(&self) -> io::Result<Vec<PathBuf>> {
        match fs::read_to_string(self.marks.join(BOOT)) {
            Ok(boot) if boot == boot_id() => Ok(Vec::new()),
            // A store that is new, or older than the marks.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            _ => self.unmarked(),
        }
    }

    /// What is here now was made in this boot, or is marked.
    pub(crate) fn believe(&self) -> io::Result<()> {
        let aside = self.marks.join("boot.new");
        fs::write(&aside, boot_id())?;
        fs::rename(aside, self.marks.join(BOOT))
    }

    /// Takes the mark off a layer that goes, or is about to be made anew. In the file system's journal this comes before
    /// what follows it.
    pub(crate) fn forget(&self, layer: &str) -> io::Result<()> {
        match fs::remove_file(self.marks.join(layer)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Writes through what is not marked yet, and marks it. Takes as long as the disk needs for all that is unwritten.
    pub(crate) fn settle(&self) -> io::Result<()> {
        let fresh = self.unmarked()?;
        if fresh.is_empty() {
            return Ok(());
        }
        rustix::fs::syncfs(File::open(&self.layers)?)?;
        for name in fresh.iter().filter_map(|layer| layer.file_name()) {
            File::create(self.marks.join(name))?;
        }
        Ok(())
    }

    fn unmarked(&self) -> io::Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.layers)? {
            let entry = entry?;
            if !self.marks.join(entry.file_name()).exists() {
                found.push(entry.path());
            }
        }
        Ok(found)
    }
}

fn boot_id() -> String {
    // Without it every boot is the same one, as it was before there were marks.
    fs::read_to_string(BOOT_ID).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_reboot_only_layers_that_were_written_through_are_believed() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("layers/first")).unwrap();
        let settled = Settled::open(dir.path()).unwrap();
        settled.believe().unwrap();
        settled.settle().unwrap();
        fs::create_dir_all(dir.path().join("layers/second")).unwrap();
        assert!(settled.doubtful().unwrap().is_empty(), "a killed process loses nothing");
        fs::write(dir.path().join("settled/boot"), "another").unwrap();
        assert_eq!(settled.doubtful().unwrap(), [dir.path().join("layers/second")]);
        settled.forget("first").unwrap();
        assert_eq!(settled.doubtful().unwrap().len(), 2);
    }
}
