//! The shims of a state directory as the process table has them, for when a socket cannot be asked any more.
//!
//! Until its program is executed, what libcontainer forks for a container has its shim's command line: it is found, and
//! ends, like the shim itself.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::shim::SHIM_ARGUMENT;

/// How long a killed process may take to end. One in the kernel's hands (a dead network disk) may take for ever.
const PATIENCE: Duration = Duration::from_secs(5);

/// Kills every shim whose container's directory is `dir` or lies in it, and returns when none is left. No agent may be
/// starting more of them meanwhile.
pub(super) fn end(dir: &Path) -> io::Result<()> {
    let dir = std::path::absolute(dir)?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let shims = running(&dir)?;
        for (_, shim) in &shims {
            // One that has ended meanwhile is as good as killed.
            let _ = pidfd_send_signal(shim, Signal::KILL);
        }
        for (pid, shim) in &shims {
            if !ended(shim, deadline)? {
                let message = format!("process {pid}, a shim in {}, does not die", dir.display());
                return Err(io::Error::new(ErrorKind::TimedOut, message));
            }
        }
        // A shim may have forked just before it was killed.
        if shims.is_empty() {
            return Ok(());
        }
    }
}

fn running(dir: &Path) -> io::Result<Vec<(Pid, OwnedFd)>> {
    let mut shims = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
        let Some(pid) = pid.filter(|pid| is_shim_in(*pid, dir)) else { continue };
        match pidfd_open(pid, PidfdFlags::empty()) {
            // Asked again: the number may have been given to somebody else before it was held.
            Ok(held) if is_shim_in(pid, dir) => shims.push((pid, held)),
            Ok(_) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(shims)
}

fn is_shim_in(pid: Pid, dir: &Path) -> bool {
    let Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) else { return false };
    let mut arguments = line.split(|byte| *byte == 0).skip(1);
    arguments.next() == Some(SHIM_ARGUMENT.as_bytes())
        && arguments.next().is_some_and(|place| Path::new(OsStr::from_bytes(place)).starts_with(dir))
}

/// Waits for the end of a process; `false` when it did not come in time.
fn ended(process: &OwnedFd, deadline: Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        match poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&left)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::path::PathBuf;
    use std::process::{Child, Command, Stdio};

    use super::*;

    #[test]
    fn the_shims_of_a_directory_end_and_no_others() {
        let scripts = tempfile::tempdir().unwrap();
        // A shell with the command line of a shim, until its input ends.
        fs::write(scripts.path().join(SHIM_ARGUMENT), "read line").unwrap();
        let start = |place: PathBuf| -> Child {
            let mut shell = Command::new("/bin/sh");
            shell.current_dir(&scripts).arg(SHIM_ARGUMENT).arg(place).stdin(Stdio::piped()).spawn().unwrap()
        };
        let state = tempfile::tempdir().unwrap();
        let containers = state.path().join("containers");
        let mut ours = [start(containers.join("a")), start(containers.join("b"))];
        let mut others = [start(state.path().join("containers-of-others/a")), start(state.path().to_owned())];

        end(&containers).unwrap();
        for child in &mut ours {
            assert_eq!(child.wait().unwrap().signal(), Some(9));
        }
        for child in &mut others {
            assert_eq!(child.try_wait().unwrap(), None);
            drop(child.stdin.take());
            child.wait().unwrap();
        }
        end(&containers).unwrap();
    }
}
