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
    for names in [["overlay"].as_slice(), &["cgroup2", "cgroup"]] {
        if !names.iter().any(|name| proa_runtime::offers_filesystem(name)) {
            bail!(
                "this kernel has no {} file system, which containers need: install its modules or use another kernel",
                names[0]
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
