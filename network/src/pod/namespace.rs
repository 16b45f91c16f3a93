//! Network namespaces: made on a thread of their own, kept alive by a bind mount, never entered by any other thread.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statfs::{NSFS_MAGIC, statfs};

use crate::netlink::Socket;

/// The namespace of the thread that reads it.
const OWN_NAMESPACE: &str = "/proc/thread-self/ns/net";

/// What every pod gets as container runtimes do today: ports below 1024 and ping without privileges.
const SYSCTLS: [(&str, &str); 2] =
    [("ipv4/ip_unprivileged_port_start", "0"), ("ipv4/ping_group_range", "0 2147483647")];

/// A step of making, pinning or releasing a namespace failed.
#[derive(Debug, thiserror::Error)]
#[error("{step} {}: {source}", .path.display())]
pub struct NamespaceError {
    step: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// A new namespace: its descriptor, and a route socket that lives in it (so that nobody has to enter it).
pub(super) struct Namespace {
    pub(super) descriptor: OwnedFd,
    pub(super) socket: Socket,
}

/// Makes a namespace and pins it at `pin`. The thread that makes it ends before this returns; the caller's own
/// namespace is never touched.
pub(super) fn create(pin: &Path) -> Result<Namespace, NamespaceError> {
    let path = pin.to_owned();
    let failed = |step: &'static str, path: &Path| {
        let path = path.to_owned();
        move |source: io::Error| NamespaceError { step, path, source }
    };
    let thread = std::thread::Builder::new()
        .name("netns".into())
        .stack_size(64 * 1024)
        .spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|e| failed("making a network namespace for", &path)(e.into()))?;
            let descriptor = File::open(OWN_NAMESPACE).map_err(failed("opening", Path::new(OWN_NAMESPACE)))?;
            let socket = Socket::route().map_err(failed("opening a netlink socket in", &path))?;
            for (name, value) in SYSCTLS {
                // Kernels without one of them do without.
                let _ = std::fs::write(Path::new("/proc/sys/net").join(name), value);
            }
            File::create(&path).map_err(failed("creating", &path))?;
            mount(Some(OWN_NAMESPACE), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .map_err(|e| failed("pinning the network namespace at", &path)(e.into()))?;
            Ok(Namespace { descriptor: descriptor.into(), socket })
        })
        .map_err(failed("starting a thread for", pin))?;
    thread.join().unwrap_or_else(|_| Err(failed("making", pin)(io::Error::other("the thread panicked"))))
}

/// Whether a namespace is pinned there.
pub(super) fn is_pinned(pin: &Path) -> bool {
    statfs(pin).is_ok_and(|s| s.filesystem_type() == NSFS_MAGIC)
}

/// Releases the pin, however many times it was mounted, and removes its file. Fine when it is already gone.
pub(super) fn unpin(pin: &Path) -> Result<(), NamespaceError> {
    while is_pinned(pin) {
        match umount2(pin, MntFlags::MNT_DETACH) {
            Ok(()) => {}
            Err(Errno::EINVAL | Errno::ENOENT) => break,
            Err(e) => return Err(NamespaceError { step: "unmounting", path: pin.to_owned(), source: e.into() }),
        }
    }
    match std::fs::remove_file(pin) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(NamespaceError { step: "removing", path: pin.to_owned(), source: e })
        }
        _ => Ok(()),
    }
}
