//! Owns reading container logs: from the CRI format back to what the container wrote, with the options of
//! `kubectl logs`. A follower is woken by inotify, never by a clock.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use rustix::fs::inotify;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, watch};

use crate::pods::context::View;
use crate::pods::layout::Layout;
use crate::pods::track::{ContainerId, State};

/// What is asked of a log; the names are those of `PodLogOptions`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) follow: bool,
    pub(crate) previous: bool,
    pub(crate) timestamps: bool,
    pub(crate) tail_lines: Option<u64>,
    pub(crate) limit_bytes: Option<u64>,
    pub(crate) since: Option<Timestamp>,
    /// `stdout` or `stderr` alone
    pub(crate) stream: Option<String>,
}

impl Options {
    /// From a query; `Err` says what does not parse.
    pub(crate) fn parse(query: &[(String, String)], now: Timestamp) -> Result<Self, String> {
        let mut options = Self::default();
        for (name, value) in query.iter().filter(|(_, v)| !v.is_empty()) {
            let yes = || matches!(value.as_str(), "true" | "1" | "True");
            let number = || value.parse::<i64>().map_err(|e| format!("{name}: {e}"));
            match name.as_str() {
                "follow" => options.follow = yes(),
                "previous" => options.previous = yes(),
                "timestamps" => options.timestamps = yes(),
                "tailLines" => options.tail_lines = u64::try_from(number()?).ok(),
                "limitBytes" => options.limit_bytes = u64::try_from(number()?).ok().filter(|n| *n > 0),
                "sinceSeconds" => options.since = now.checked_sub(SignedDuration::from_secs(number()?)).ok(),
                "sinceTime" => options.since = Some(value.parse().map_err(|e| format!("{name}: {e}"))?),
                "stream" if value != "All" => options.stream = Some(value.to_ascii_lowercase()),
                _ => {}
            }
        }
        Ok(options)
    }
}

/// The rotated files of a log, oldest first.
pub(crate) fn rotated(log: &Path) -> Vec<PathBuf> {
    let Some(name) = log.file_name().and_then(|n| n.to_str()) else { return Vec::new() };
    let prefix = format!("{name}.");
    let entries = log.parent().and_then(|dir| std::fs::read_dir(dir).ok()).into_iter().flatten().flatten();
    let mut list: Vec<PathBuf> =
        entries.filter(|e| e.file_name().to_str().is_some_and(|n| n.starts_with(&prefix))).map(|e| e.path()).collect();
    list.sort();
    list
}

/// Removes the log of a run nobody may ask for any more.
pub(crate) fn forget(layout: &Layout, uid: &str, container: &str, attempt: u32) {
    let log = layout.log(uid, container, attempt);
    for path in rotated(&log).into_iter().chain([log, layout.termination_log(uid, container, attempt)]) {
        if let Err(error) = std::fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::debug!(path = %path.display(), %error, "an old log stays behind");
        }
    }
}

/// Turns log lines into output, by the options. Pure.
struct Filter {
    options: Options,
    sent: u64,
    /// the last line went on
    in_partial: bool,
    keep_partial: bool,
}

impl Filter {
    fn new(options: Options) -> Self {
        Self { options, sent: 0, in_partial: false, keep_partial: false }
    }

    /// Appends what one line of the file gives; false when the byte limit is reached.
    fn line(&mut self, line: &[u8], out: &mut Vec<u8>) -> bool {
        let Some(parsed) = proa_runtime::logs::parse(line) else { return true };
        if let Some(stream) = &self.options.stream {
            let own = match parsed.stream {
                proa_runtime::logs::LogStream::Stdout => "stdout",
                proa_runtime::logs::LogStream::Stderr => "stderr",
            };
            if own != stream {
                return true;
            }
        }
        if !self.in_partial {
            self.keep_partial = match self.options.since {
                Some(since) => parsed.time.parse::<Timestamp>().is_ok_and(|at| at >= since),
                None => true,
            };
        }
        let begins = !self.in_partial;
        self.in_partial = parsed.partial;
        if !self.keep_partial {
            return true;
        }
        let from = out.len();
        if self.options.timestamps && begins {
            out.extend_from_slice(parsed.time.as_bytes());
            out.push(b' ');
        }
        out.extend_from_slice(parsed.text);
        if !parsed.partial {
            out.push(b'\n');
        }
        if let Some(limit) = self.options.limit_bytes {
            let room = usize::try_from(limit.saturating_sub(self.sent)).unwrap_or(usize::MAX);
            if out.len() - from >= room {
                out.truncate(from + room);
                self.sent = limit;
                return false;
            }
        }
        self.sent += (out.len() - from) as u64;
        true
    }
}

/// Where in `file` its last `lines` complete lines begin; partial records belong to the line they end in. With
/// how many lines were found.
fn tail_offset(file: &mut File, lines: u64) -> io::Result<(u64, u64)> {
    const BLOCK: u64 = 64 * 1024;
    let length = file.seek(SeekFrom::End(0))?;
    let mut newlines: u64 = 0;
    let mut end = length;
    let mut later: Vec<u8> = Vec::new();
    let mut first_of_found = length;
    while end > 0 {
        let start = end.saturating_sub(BLOCK);
        let mut block = vec![0; usize::try_from(end - start).unwrap_or(0)];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(&mut block)?;
        block.extend_from_slice(&later);
        // Records that begin in this block, last one first.
        let mut record_end = block.len();
        while record_end > 0 {
            let before = block[..record_end.saturating_sub(1)].iter().rposition(|b| *b == b'\n');
            let record_start = match before {
                Some(at) => at + 1,
                None if start == 0 => 0,
                None => break,
            };
            let record = &block[record_start..record_end];
            let full = proa_runtime::logs::parse(record).is_some_and(|p| !p.partial);
            if full {
                if newlines == lines {
                    return Ok((first_of_found, newlines));
                }
                newlines += 1;
            }
            first_of_found = start + record_start as u64;
            record_end = record_start;
        }
        later = block[..record_end].to_vec();
        end = start;
    }
    Ok((0, newlines))
}

/// The files of a run to read, oldest first, and where in the first to begin.
fn plan(log: &Path, options: &Options) -> io::Result<(Vec<PathBuf>, u64)> {
    let mut files = rotated(log);
    if log.exists() {
        files.push(log.to_owned());
    }
    let Some(mut missing) = options.tail_lines else { return Ok((files, 0)) };
    let mut chosen = Vec::new();
    let mut offset = 0;
    while let Some(path) = files.pop() {
        let (at, found) = tail_offset(&mut File::open(&path)?, missing)?;
        chosen.insert(0, path);
        offset = at;
        missing = missing.saturating_sub(found);
        if missing == 0 {
            break;
        }
    }
    Ok((chosen, offset))
}

/// Reads a log into `out` until it is read, its container has ended (when following), or nobody listens.
pub(crate) async fn read(
    log: PathBuf,
    options: Options,
    container: ContainerId,
    mut view: watch::Receiver<View>,
    out: mpsc::Sender<Result<Bytes, io::Error>>,
) {
    let follow = options.follow;
    let result = async {
        let mut watcher = if follow { Some(Watcher::new(&log)?) } else { None };
        let mut filter = Filter::new(options.clone());
        let (files, offset) = plan(&log, &options)?;
        let mut reader = Reader { file: None, rest: Vec::new() };
        let count = files.len();
        for (index, path) in files.into_iter().enumerate() {
            let mut file = File::open(&path)?;
            file.seek(SeekFrom::Start(if index == 0 { offset } else { 0 }))?;
            reader.file = Some(file);
            if !reader.drain(&mut filter, &out).await? {
                return Ok(());
            }
            if index + 1 < count {
                reader.rest.clear();
            }
        }
        let Some(watcher) = watcher.as_mut() else { return reader.finish(&mut filter, &out).await };
        loop {
            // Whether it runs is asked before the file is read: what it wrote last is then in the file.
            let over = !runs(&view.borrow_and_update(), &container);
            reader.reopen(&log)?;
            if !reader.drain(&mut filter, &out).await? {
                return Ok(());
            }
            if over {
                return reader.finish(&mut filter, &out).await;
            }
            tokio::select! {
                changed = watcher.changed() => changed?,
                seen = view.changed() => if seen.is_err() {
                    // The pod is gone: what is in the open file is all there will be.
                    reader.drain(&mut filter, &out).await?;
                    return Ok(());
                },
                () = out.closed() => return Ok(()),
            }
        }
    };
    let result: io::Result<()> = result.await;
    if let Err(error) = result {
        // The listener may have left; then nobody misses the reason.
        let _ = out.send(Err(error)).await;
    }
}

fn runs(view: &View, container: &ContainerId) -> bool {
    view.tracks.iter().any(|t| match &t.state {
        State::Running(run) | State::Stopping(run) => run.id == *container,
        // A start whose `postStart` hook still runs.
        State::Starting => true,
        _ => false,
    })
}

struct Reader {
    file: Option<File>,
    /// the beginning of a line that is not complete yet
    rest: Vec<u8>,
}

impl Reader {
    /// Reads to the end of the file; false when nothing more is wanted.
    async fn drain(&mut self, filter: &mut Filter, out: &mpsc::Sender<Result<Bytes, io::Error>>) -> io::Result<bool> {
        let Some(file) = &mut self.file else { return Ok(true) };
        let mut block = vec![0; 64 * 1024];
        loop {
            let n = file.read(&mut block)?;
            if n == 0 {
                return Ok(true);
            }
            self.rest.extend_from_slice(&block[..n]);
            let mut text = Vec::new();
            let mut done = 0;
            let mut more = true;
            while let Some(end) = self.rest[done..].iter().position(|b| *b == b'\n') {
                more = filter.line(&self.rest[done..=done + end], &mut text);
                done += end + 1;
                if !more {
                    break;
                }
            }
            self.rest.drain(..done);
            if !text.is_empty() && out.send(Ok(text.into())).await.is_err() {
                return Ok(false);
            }
            if !more {
                return Ok(false);
            }
        }
    }

    async fn finish(&mut self, filter: &mut Filter, out: &mpsc::Sender<Result<Bytes, io::Error>>) -> io::Result<()> {
        let mut text = Vec::new();
        if !self.rest.is_empty() {
            filter.line(&self.rest, &mut text);
        }
        if !text.is_empty() {
            let _ = out.send(Ok(text.into())).await;
        }
        Ok(())
    }

    /// Goes on with the new file after a rotation, once the old one has been read to its end.
    fn reopen(&mut self, log: &Path) -> io::Result<()> {
        let fresh = match File::open(log) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let same = match &mut self.file {
            Some(old) => {
                let (a, b) = (old.metadata()?, fresh.metadata()?);
                let read_all = old.stream_position()? >= a.len();
                a.ino() == b.ino() && a.dev() == b.dev() || !read_all
            }
            None => false,
        };
        if !same {
            self.file = Some(fresh);
            self.rest.clear();
        }
        Ok(())
    }
}

/// Tells when a log file is written or replaced.
struct Watcher {
    fd: AsyncFd<OwnedFd>,
}

impl Watcher {
    fn new(log: &Path) -> io::Result<Self> {
        let fd = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
        let dir = log.parent().unwrap_or(Path::new("/"));
        std::fs::create_dir_all(dir)?;
        inotify::add_watch(
            &fd,
            dir,
            inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO,
        )?;
        // SAFETY: the descriptor is ours alone and lives as long as the `AsyncFd` that owns it.
        let fd = unsafe { AsyncFd::register(fd)? };
        Ok(Self { fd })
    }

    async fn changed(&mut self) -> io::Result<()> {
        let mut guard = self.fd.readable().await?;
        // What happened does not matter, only that something did: the queue is emptied.
        let mut buffer = [0; 4096];
        while rustix::io::read(guard.get_inner(), &mut buffer).is_ok_and(|n| n > 0) {}
        guard.clear_ready();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::Pod;
    use crate::pods::track::tests::run;
    use crate::pods::track::{Role, Track};
    use serde_json::json;
    use std::io::Write as _;
    use std::sync::Arc;

    const LOG: &str = "2026-01-01T00:00:01.000000000Z stdout F one\n\
                       2026-01-01T00:00:02.000000000Z stderr F two\n\
                       2026-01-01T00:00:03.000000000Z stdout P thr\n\
                       2026-01-01T00:00:03.000000001Z stdout F ee\n";

    fn view(running: bool) -> View {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {"containers": []}})).unwrap();
        let mut track = Track::new("a", Role::Main);
        if running {
            track.begin_run(run(0, 0), false, false);
        }
        View { pod: Arc::new(pod), tracks: vec![track].into(), pod_ips: vec![], netns: None }
    }

    async fn text(log: &Path, options: Options) -> String {
        let (out, mut lines) = mpsc::channel(16);
        let (_keep, seen) = watch::channel(view(false));
        tokio::spawn(read(log.to_owned(), options, ContainerId("c0".into()), seen, out));
        let mut all = Vec::new();
        while let Some(chunk) = lines.recv().await {
            all.extend_from_slice(&chunk.unwrap());
        }
        String::from_utf8(all).unwrap()
    }

    #[tokio::test]
    async fn options_choose_lines() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("0.log");
        std::fs::write(&log, LOG).unwrap();
        let o = Options::default;
        for (options, want) in [
            (o(), "one\ntwo\nthree\n"),
            (Options { tail_lines: Some(1), ..o() }, "three\n"),
            (Options { tail_lines: Some(2), ..o() }, "two\nthree\n"),
            (Options { tail_lines: Some(0), ..o() }, ""),
            (Options { tail_lines: Some(99), ..o() }, "one\ntwo\nthree\n"),
            (Options { limit_bytes: Some(6), ..o() }, "one\ntw"),
            (Options { since: Some("2026-01-01T00:00:02Z".parse().unwrap()), ..o() }, "two\nthree\n"),
            (Options { stream: Some("stderr".into()), ..o() }, "two\n"),
            (Options { timestamps: true, tail_lines: Some(1), ..o() }, "2026-01-01T00:00:03.000000000Z three\n"),
        ] {
            assert_eq!(text(&log, options.clone()).await, want, "{options:?}");
        }
    }

    #[tokio::test]
    async fn the_tail_reaches_back_into_rotated_files() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("0.log");
        std::fs::write(dir.path().join("0.log.20260101-000000.000"), LOG).unwrap();
        std::fs::write(&log, "2026-01-01T00:00:09Z stdout F last\n").unwrap();
        assert_eq!(text(&log, Options { tail_lines: Some(2), ..Options::default() }).await, "three\nlast\n");
        assert_eq!(text(&log, Options::default()).await, "one\ntwo\nthree\nlast\n");
    }

    #[tokio::test]
    async fn a_follower_sees_new_lines_rotation_and_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("0.log");
        std::fs::write(&log, LOG).unwrap();
        let (out, mut lines) = mpsc::channel(16);
        let (seen, receiver) = watch::channel(view(true));
        let options = Options { follow: true, tail_lines: Some(1), ..Options::default() };
        tokio::spawn(read(log.clone(), options, ContainerId("c0".into()), receiver, out));
        assert_eq!(lines.recv().await.unwrap().unwrap(), "three\n");
        let append = |path: &Path, line: &str| {
            let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
            file.write_all(format!("2026-01-01T00:00:09Z stdout F {line}\n").as_bytes()).unwrap();
        };
        append(&log, "four");
        assert_eq!(lines.recv().await.unwrap().unwrap(), "four\n");
        std::fs::rename(&log, dir.path().join("0.log.20260101-000000.000")).unwrap();
        append(&log, "five");
        assert_eq!(lines.recv().await.unwrap().unwrap(), "five\n");
        seen.send_replace(view(false));
        assert!(lines.recv().await.is_none());
    }

    #[test]
    fn the_query_is_read() {
        let query = [("follow", "true"), ("tailLines", "5"), ("sinceSeconds", "60"), ("limitBytes", "9"), ("x", "y")]
            .map(|(a, b)| (a.to_owned(), b.to_owned()));
        let now = Timestamp::from_second(1000).unwrap();
        let options = Options::parse(&query, now).unwrap();
        assert!(options.follow && options.tail_lines == Some(5) && options.limit_bytes == Some(9));
        assert_eq!(options.since, Some(Timestamp::from_second(940).unwrap()));
        assert!(Options::parse(&[("tailLines".into(), "x".into())], now).is_err());
    }
}
