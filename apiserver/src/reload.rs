//! Files that may be exchanged while the server runs.
//!
//! Owns noticing it: the kernel tells of changes in the files' directories (so that a file replaced by renaming, or by the
//! symbolic links of a mounted Secret, is seen too), and a slow look stands behind, for not every file system tells.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::inotify;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio_util::sync::CancellationToken;

/// How often is looked without being told.
const LOOK: Duration = Duration::from_secs(60);
/// Whoever writes a file does it in several steps: it is read when nothing happened for so long.
const SETTLED: Duration = Duration::from_millis(50);

/// Calls `changed` with the new contents, in the order of `files`, whenever one of them has other contents than before.
/// While one cannot be read, what was last read stays.
pub async fn follow(files: Vec<PathBuf>, stop: CancellationToken, mut changed: impl FnMut(&[Vec<u8>]) + Send) {
    let news = notifications(&files);
    let mut known = read(&files);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = told(news.as_ref()) => {}
            () = tokio::time::sleep(LOOK) => {}
        }
        let now = read(&files);
        if let Some(contents) = &now
            && now != known
        {
            changed(contents);
            known = now;
        }
    }
}

fn read(files: &[PathBuf]) -> Option<Vec<Vec<u8>>> {
    files.iter().map(|file| std::fs::read(file).ok()).collect()
}

/// Whatever happens in the directories the files are in; `None` where the kernel cannot tell.
fn notifications(files: &[PathBuf]) -> Option<AsyncFd<OwnedFd>> {
    let fd = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC).ok()?;
    let directories: BTreeSet<&Path> = files
        .iter()
        .filter_map(|file| file.parent())
        .map(|directory| if directory.as_os_str().is_empty() { Path::new(".") } else { directory })
        .collect();
    let wanted = inotify::WatchFlags::CLOSE_WRITE | inotify::WatchFlags::MOVED_TO | inotify::WatchFlags::CREATE;
    for directory in directories {
        inotify::add_watch(&fd, directory, wanted).ok()?;
    }
    // SAFETY: the descriptor is ours alone and lives as long as the `AsyncFd` that owns it.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE).ok() }
}

/// Something happened, and nothing more since.
async fn told(news: Option<&AsyncFd<OwnedFd>>) {
    let Some(news) = news else { return std::future::pending().await };
    if drain(news).await.is_err() {
        // Never again: the slow look goes on.
        return std::future::pending().await;
    }
    while let Ok(Ok(())) = tokio::time::timeout(SETTLED, drain(news)).await {}
}

async fn drain(news: &AsyncFd<OwnedFd>) -> std::io::Result<()> {
    let mut ready = news.readable().await?;
    let mut buffer = [0u8; 4096];
    // What happened does not matter: the files are compared.
    while rustix::io::read(news.get_ref(), &mut buffer).is_ok_and(|read| read > 0) {}
    ready.clear_ready();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc;

    #[tokio::test]
    async fn a_file_that_is_exchanged_in_any_way_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::create_dir(path("v1")).unwrap();
        std::fs::write(path("v1/file"), "1").unwrap();
        std::os::unix::fs::symlink("v1", path("data")).unwrap();
        std::os::unix::fs::symlink("data/file", path("file")).unwrap();
        let (sender, mut seen) = mpsc::unbounded_channel();
        let stop = CancellationToken::new();
        let watch = follow(vec![path("file")], stop.clone(), move |contents| {
            let _ = sender.send(String::from_utf8(contents[0].clone()).unwrap());
        });
        let watch = tokio::spawn(watch);
        tokio::task::yield_now().await;
        // As kubelets exchange a mounted Secret: a new directory, and the link renamed over the old one.
        std::fs::create_dir(path("v2")).unwrap();
        std::fs::write(path("v2/file"), "2").unwrap();
        std::os::unix::fs::symlink("v2", path("data.new")).unwrap();
        std::fs::rename(path("data.new"), path("data")).unwrap();
        assert_eq!(seen.recv().await.as_deref(), Some("2"));
        // As editors do.
        std::fs::write(path("other"), "3").unwrap();
        std::fs::rename(path("other"), path("file")).unwrap();
        assert_eq!(seen.recv().await.as_deref(), Some("3"));
        std::fs::remove_file(path("file")).unwrap();
        std::fs::write(path("file"), "3").unwrap();
        std::fs::write(path("file"), "4").unwrap();
        assert_eq!(seen.recv().await.as_deref(), Some("4"), "the same contents are no news");
        stop.cancel();
        watch.await.unwrap();
    }
}
