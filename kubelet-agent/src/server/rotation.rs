//! Owns the rotation of container logs: a log past 10 MiB becomes `N.log.<time>`, at most five files are kept.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::pods::context::Context;
use crate::pods::track::State;
use crate::pods::uid;

/// A log longer than this is rotated (kubelet's containerLogMaxSize).
const LONGEST: u64 = 10 << 20;
/// Files of one run, the one being written included (kubelet's containerLogMaxFiles).
const MOST_FILES: usize = 5;
/// A length is one `stat`; a log of 10 MiB takes a while.
const LOOK: Duration = Duration::from_secs(10);

/// Looks at the logs of running containers until `shutdown`.
pub(crate) async fn run(ctx: Arc<Context>, shutdown: CancellationToken) {
    let mut tick = tokio::time::interval(LOOK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = tick.tick() => {}
        }
        for view in ctx.registry.views() {
            for track in view.tracks.iter() {
                let State::Running(run) = &track.state else { continue };
                let log = ctx.layout.log(uid(&view.pod), &track.name, run.attempt);
                if std::fs::metadata(&log).map_or(0, |m| m.len()) <= LONGEST {
                    continue;
                }
                match rename(&log) {
                    Ok(()) => {
                        if let Err(error) = ctx.runtime.reopen_log(&run.id.0).await {
                            tracing::warn!(container = track.name, %error, "the log was not reopened after its rotation");
                        }
                    }
                    Err(error) => tracing::warn!(log = %log.display(), %error, "the log was not rotated"),
                }
            }
        }
    }
}

/// Moves the log aside and removes the oldest files beyond the limit.
fn rename(log: &Path) -> std::io::Result<()> {
    let stamp = jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S%.3f").to_string();
    let mut name = log.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{stamp}"));
    std::fs::rename(log, log.with_file_name(name))?;
    let mut old = super::logs::rotated(log);
    while old.len() > MOST_FILES - 1 {
        std::fs::remove_file(old.remove(0))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_files_are_kept_at_most() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("0.log");
        for stamp in 0..6 {
            std::fs::write(dir.path().join(format!("0.log.2020010{stamp}-000000.000")), "x").unwrap();
        }
        std::fs::write(&log, "newest").unwrap();
        rename(&log).unwrap();
        let kept = super::super::logs::rotated(&log);
        assert_eq!(kept.len(), MOST_FILES - 1);
        assert_eq!(std::fs::read_to_string(kept.last().unwrap()).unwrap(), "newest");
    }
}
