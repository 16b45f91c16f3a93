//! The shim: one small single-threaded process per container, our own binary re-executed.
//!
//! Owns the container's init, its stdio and log, its exit code on disk, and a socket in the
//! container's state directory. It outlives the agent and whatever happens to it. No async runtime and
//! no thread ever starts here: libcontainer changes the working directory, forks with raw clone3 and
//! writes to its caller's `/proc/self`.

mod client;
mod exec;
mod executor;
mod launch;
mod rootfs;
mod serve;
mod streams;

use std::io::Write;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::libc;
use nix::sys::signal::{SigSet, SigmaskHow, Signal};

use crate::cgroup::Cgroups;
use crate::disk;
use crate::protocol::{Message, Record, frame};

/// First argument of a shim. The second is the container's state directory.
pub(crate) const SHIM_ARGUMENT: &str = "proa-shim";
/// What a shim looks like in `ps`.
const NAME: &std::ffi::CStr = c"proa-shim";

/// Files in a container's state directory.
pub(crate) mod files {
    /// The [`crate::protocol::Record`].
    pub(crate) const RECORD: &str = "container.json";
    /// The [`crate::disk::Ended`].
    pub(crate) const EXIT: &str = "exit.json";
    pub(crate) const SOCKET: &str = "shim.sock";
    /// What the shim itself complained about.
    pub(crate) const COMPLAINTS: &str = "shim.log";
    /// What the container has written over its layers: the writable one.
    pub(crate) const UPPER: &str = "upper";
}

/// Whether this process was started as a shim. If so `main` must call [`shim_main`] before anything else.
pub fn is_shim() -> bool {
    std::env::args_os().nth(1).is_some_and(|argument| argument == SHIM_ARGUMENT)
}

/// A shim's whole life. Descriptor 0 is its listening socket, 1 the agent's connection, 2 a file for complaints.
///
/// Call it first thing in `main` when [`is_shim`] says so: single-threaded, before tokio or tracing.
pub fn shim_main() -> ! {
    let dir = PathBuf::from(std::env::args_os().nth(2).unwrap_or_default());
    // SAFETY: the agent starts a shim with these three descriptors open, and nothing in this process
    // has taken them yet.
    let (listener, agent) = unsafe { (OwnedFd::from_raw_fd(0), OwnedFd::from_raw_fd(1)) };
    // Away from the numbers 0 and 1: the container's own stdio goes there.
    let moved = listener.try_clone().and_then(|listener| Ok((listener, agent.try_clone()?)));
    std::mem::forget((listener, agent));
    let code = match moved {
        Ok((listener, agent)) => detach(&dir, listener, agent),
        Err(error) => complain(&format!("cannot take over the agent's sockets: {error}")),
    };
    std::process::exit(code)
}

/// Leaves the agent's process group and family: its end, or a signal to its group, is not ours.
fn detach(dir: &Path, listener: OwnedFd, agent: OwnedFd) -> i32 {
    // SAFETY: this process has one thread, so the child may do anything.
    match unsafe { libc::fork() } {
        -1 => return complain("cannot fork"),
        0 => {}
        _ => return 0,
    }
    let _ = nix::unistd::setsid();
    // SAFETY: prctl with plain numbers, and a static C string.
    unsafe {
        libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1);
        libc::prctl(libc::PR_SET_NAME, NAME.as_ptr());
    }
    for number in [0, 1] {
        if let Ok(null) = std::fs::File::open("/dev/null") {
            // SAFETY: both numbers are ours; what they were was moved above.
            unsafe { libc::dup2(std::os::fd::AsRawFd::as_raw_fd(&null), number) };
        }
    }
    let record: Record = match disk::read_json(&dir.join(files::RECORD)) {
        Ok(record) => record,
        Err(error) => return refuse(agent, &format!("cannot read {}: {error}", files::RECORD)),
    };
    if !record.shims.is_empty()
        && let Err(error) = Cgroups::detect().and_then(|cgroups| cgroups.enter_open(&record.shims))
    {
        // Some hosts forbid it. The container runs all the same, as long as nobody ends the agent's control group.
        complain(&format!("staying in the agent's control group: {error}"));
    }
    // From here on the end of a child is read from a descriptor.
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    if let Err(error) = nix::sys::signal::sigprocmask(SigmaskHow::SIG_BLOCK, Some(&children), None) {
        return refuse(agent, &format!("cannot block SIGCHLD: {error}"));
    }
    let keep = [&listener, &agent].map(std::os::fd::AsRawFd::as_raw_fd);
    match launch::launch(dir, &record, &keep) {
        Ok(launched) => match serve::Shim::new(dir, record, launched, listener, agent) {
            Ok(shim) => shim.run(),
            Err(error) => complain(&format!("cannot serve: {error}")),
        },
        Err(message) => refuse(agent, &message),
    }
}

fn refuse(agent: OwnedFd, message: &str) -> i32 {
    let word = frame(&Message::CreateFailed { message: message.to_owned() });
    let _ = crate::fds::send(agent.as_fd(), &word, &[]);
    complain(message)
}

fn complain(message: &str) -> i32 {
    let _ = writeln!(std::io::stderr(), "{message}");
    1
}
