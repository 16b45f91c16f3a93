//! The few file operations the log needs, so that tests can make them fail.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// A file that is appended to.
pub(crate) trait Medium: Send {
    /// Writes all of `bytes` at `offset`.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Returns once everything written is on the disk (fdatasync).
    fn sync(&mut self) -> io::Result<()>;
    /// Cuts the file.
    fn truncate(&mut self, len: u64) -> io::Result<()>;
}

impl Medium for File {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.set_len(len)
    }
}

/// Where media come from.
pub(crate) trait Disk: Send + Sync {
    /// Opens a file for writing, making it when it does not exist.
    fn open(&self, path: &Path) -> io::Result<Box<dyn Medium>>;
}

/// The operating system's files.
pub(crate) struct RealDisk;

impl Disk for RealDisk {
    fn open(&self, path: &Path) -> io::Result<Box<dyn Medium>> {
        Ok(Box::new(to_write().truncate(false).open(path)?))
    }
}

/// How every file of the store is made: what lies in it is for its owner alone.
pub(crate) fn to_write() -> OpenOptions {
    let mut options = File::options();
    options.write(true).create(true).mode(0o600);
    options
}

/// Makes the store's directory; one that is there is closed to others.
pub(crate) fn own_dir(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700))
}

/// Makes file creations, renames and removals in a directory durable.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Whether an error means that there is no room, as opposed to a failing disk.
pub(crate) fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

#[cfg(test)]
pub(crate) mod faulty {
    //! A disk that fails on command.

    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    /// What is to fail; each entry is used up by one operation.
    #[derive(Default)]
    pub(crate) struct Faults {
        pub(crate) writes: Vec<io::ErrorKind>,
        pub(crate) syncs: Vec<io::ErrorKind>,
        pub(crate) truncates: Vec<io::ErrorKind>,
    }

    #[derive(Clone, Default)]
    pub(crate) struct FaultyDisk(pub(crate) Arc<Mutex<Faults>>);

    impl Disk for FaultyDisk {
        fn open(&self, path: &Path) -> io::Result<Box<dyn Medium>> {
            Ok(Box::new(FaultyFile { inner: RealDisk.open(path)?, faults: self.0.clone() }))
        }
    }

    struct FaultyFile {
        inner: Box<dyn Medium>,
        faults: Arc<Mutex<Faults>>,
    }

    impl Medium for FaultyFile {
        fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
            match self.faults.lock().writes.pop() {
                // A failing write leaves part of its bytes behind, as real ones do.
                Some(kind) => self.inner.write_at(offset, &bytes[..bytes.len() / 2]).and(Err(kind.into())),
                None => self.inner.write_at(offset, bytes),
            }
        }

        fn sync(&mut self) -> io::Result<()> {
            let fault = self.faults.lock().syncs.pop();
            fault.map_or_else(|| self.inner.sync(), |kind| Err(kind.into()))
        }

        fn truncate(&mut self, len: u64) -> io::Result<()> {
            let fault = self.faults.lock().truncates.pop();
            fault.map_or_else(|| self.inner.truncate(len), |kind| Err(kind.into()))
        }
    }
}
