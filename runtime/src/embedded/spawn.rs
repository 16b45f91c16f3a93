//! Starting a shim: its directory, its record, its sockets, its process.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};

use super::container::Container;
use crate::disk;
use crate::error::RuntimeError;
use crate::shim::{SHIM_ARGUMENT, files};

/// Blocking. Returns our end of the first connection.
pub(super) fn spawn(exe: &Path, container: &Container) -> Result<OwnedFd, RuntimeError> {
    let dir = &container.dir;
    let failed = |what: &str| RuntimeError::io(format!("{what} of container {}", container.id()));
    fs::create_dir(dir).map_err(failed("directory"))?;
    disk::write_json_soon(&dir.join(files::RECORD), &container.record).map_err(failed("record"))?;
    let listener = listen(dir).map_err(failed("socket"))?;
    let (ours, theirs) = UnixStream::pair().map_err(failed("socket"))?;
    let complaints = File::create(dir.join(files::COMPLAINTS)).map_err(failed("log of the shim"))?;
    // Nothing is set between fork and exec, so that the standard library can use posix_spawn: a fork
    // would copy the page tables of the whole agent.
    let status = Command::new(exe)
        .arg(SHIM_ARGUMENT)
        .arg(dir)
        .env_clear()
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .stdout(Stdio::from(OwnedFd::from(theirs)))
        .stderr(Stdio::from(complaints))
        .status()
        .map_err(RuntimeError::io(format!("starting {}", exe.display())))?;
    if !status.success() {
        return Err(RuntimeError::Create(container.complaint()));
    }
    Ok(ours.into())
}

/// Paths of sockets are limited to 108 bytes; paths of state directories are not.
fn listen(dir: &Path) -> io::Result<UnixListener> {
    let dir = File::open(dir)?;
    UnixListener::bind(format!("/proc/self/fd/{}/{}", dir.as_raw_fd(), files::SOCKET))
}

/// Connects to a shim that an earlier agent started. Blocking, but never for long: a shim's backlog is empty.
pub(super) fn connect(dir: &Path) -> io::Result<OwnedFd> {
    let dir = File::open(dir)?;
    UnixStream::connect(format!("/proc/self/fd/{}/{}", dir.as_raw_fd(), files::SOCKET)).map(OwnedFd::from)
}
