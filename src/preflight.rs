//! Checks before anything is started: each failure is one sentence that says what is wrong and what to do.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::bail;
use tokio::net::TcpListener;

/// Running containers takes root and a few kernel features; say so before half of the platform is up.
pub(crate) fn check_machine() -> anyhow::Result<()> {
    // SAFETY: geteuid has no preconditions and cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        bail!("running containers needs root: start it again with sudo");
    }
    for (name, module) in [("overlay", "overlay"), ("cgroup", "cgroup (or cgroup2)")] {
        if !proa_runtime::offers_filesystem(name) && !(name == "cgroup" && proa_runtime::offers_filesystem("cgroup2")) {
            bail!(
                "this kernel has no {name} support, which containers need: load the module {module} or use another kernel"
            );
        }
    }
    if !Path::new("/sys/fs/cgroup").exists()
        || std::fs::read_dir("/sys/fs/cgroup").is_ok_and(|mut dir| dir.next().is_none())
    {
        bail!(
            "no cgroup file system is mounted at /sys/fs/cgroup: mount it (`mount -t cgroup2 none /sys/fs/cgroup`) and try again"
        );
    }
    Ok(())
}

/// Takes the port, or says who to ask to give it up.
pub(crate) async fn bind(listen: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(listen).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => anyhow::anyhow!(
            "{listen} is already in use: stop what listens there, or choose another address with --listen ADDR:PORT"
        ),
        std::io::ErrorKind::AddrNotAvailable => {
            anyhow::anyhow!("{listen} is not an address of this machine: choose another with --listen ADDR:PORT")
        }
        _ => anyhow::anyhow!("cannot listen on {listen}: {error}"),
    })
}
