//! Where events go: a file that is rotated by size and forgotten by age and number, or the standard output.
//!
//! Owns the file. In mode `blocking` the request waits until its event is written; in mode `batch` a thread of its own
//! writes what has come together, and what does not fit into its queue is lost, and counted.
//!
//! Files are named as Kubernetes names them: `audit.log` becomes `audit-2026-11-21T20-15-00.000.log`.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};

use jiff::{Timestamp, ToSpan};
use parking_lot::Mutex;

use crate::outside::Clock;

/// How many events may wait to be written (Kubernetes' `--audit-log-batch-buffer-size`).
const QUEUE: usize = 10_000;
/// How much is written at once, at most.
const BATCH: usize = 1 << 20;
const MEGABYTE: u64 = 1 << 20;

/// Whether a request waits for its event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// It does; an event that cannot be written is reported and lost.
    #[default]
    Blocking,
    /// It does, and without the event that it was received the request is refused.
    BlockingStrict,
    /// It does not.
    Batch,
}

impl std::str::FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "blocking" => Ok(Mode::Blocking),
            "blocking-strict" => Ok(Mode::BlockingStrict),
            "batch" => Ok(Mode::Batch),
            _ => Err(format!("{text:?} is none of batch, blocking, blocking-strict")),
        }
    }
}

/// Where to write, and what to keep.
#[derive(Clone, Debug)]
pub struct SinkOptions {
    /// The file; `-` is the standard output.
    pub path: PathBuf,
    /// A file of so many megabytes is closed and another begun.
    pub max_size: u64,
    /// Closed files are removed after so many days; 0: never.
    pub max_age: u32,
    /// So many closed files are kept; 0: all.
    pub max_backups: usize,
    /// Whether requests wait.
    pub mode: Mode,
}

/// Takes events.
pub struct Sink {
    way: Way,
    mode: Mode,
    lost: Arc<AtomicU64>,
}

enum Way {
    Direct(Mutex<Output>),
    Queue(SyncSender<Vec<u8>>),
}

impl Sink {
    /// Opens the file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn open(options: &SinkOptions, clock: Clock) -> io::Result<Sink> {
        let output = Output::open(options, clock)?;
        let lost = Arc::new(AtomicU64::new(0));
        let way = match options.mode {
            Mode::Blocking | Mode::BlockingStrict => Way::Direct(Mutex::new(output)),
            Mode::Batch => {
                let (sender, waiting) = sync_channel::<Vec<u8>>(QUEUE);
                let lost = Arc::clone(&lost);
                // Ends with the last sender, after everything is written.
                std::thread::Builder::new().name("audit".into()).spawn(move || {
                    let mut output = output;
                    while let Ok(mut batch) = waiting.recv() {
                        while batch.len() < BATCH
                            && let Ok(more) = waiting.try_recv()
                        {
                            batch.extend_from_slice(&more);
                        }
                        if let Err(error) = output.write(&batch) {
                            lose(&lost, &error);
                        }
                    }
                })?;
                Way::Queue(sender)
            }
        };
        Ok(Sink { way, mode: options.mode, lost })
    }

    /// Writes one line, or hands it to who writes. Says whether the request may go on.
    pub fn take(&self, line: Vec<u8>) -> Result<(), io::Error> {
        let outcome = match &self.way {
            Way::Direct(output) => output.lock().write(&line),
            Way::Queue(queue) => match queue.try_send(line) {
                Ok(()) => Ok(()),
                Err(TrySendError::Full(_)) => Err(io::Error::other("audit buffer queue blocked")),
                Err(TrySendError::Disconnected(_)) => Err(io::Error::other("the audit log's writer has ended")),
            },
        };
        match outcome {
            Err(error) if self.mode == Mode::BlockingStrict => {
                lose(&self.lost, &error);
                Err(error)
            }
            Err(error) => {
                lose(&self.lost, &error);
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// How many events could not be written (`apiserver_audit_error_total`).
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

fn lose(lost: &AtomicU64, error: &io::Error) {
    let before = lost.fetch_add(1, Ordering::Relaxed);
    // Once, and then ever more rarely: a full disk must not fill the log as well.
    if before.is_power_of_two() || before == 0 {
        tracing::error!(%error, lost = before + 1, "an audit event could not be written");
    }
}

/// An open file and how long it is, or the standard output.
struct Output {
    file: Option<(File, u64)>,
    options: SinkOptions,
    clock: Clock,
}

impl Output {
    fn open(options: &SinkOptions, clock: Clock) -> io::Result<Output> {
        let mut output = Output { file: None, options: options.clone(), clock };
        if options.path != Path::new("-") {
            if let Some(directory) = options.path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
                fs::create_dir_all(directory)?;
            }
            output.file = Some(append(&options.path)?);
            output.forget()?;
        }
        Ok(output)
    }

    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        let Some((_, length)) = &self.file else { return io::stdout().lock().write_all(lines) };
        if *length > 0 && length + lines.len() as u64 > self.options.max_size.max(1) * MEGABYTE {
            self.rotate()?;
        }
        let Some((file, length)) = &mut self.file else { return Ok(()) };
        *length += lines.len() as u64;
        file.write_all(lines)
    }

    fn rotate(&mut self) -> io::Result<()> {
        let path = self.options.path.clone();
        let (stem, end) = name_parts(&path);
        let at = self.clock.now().strftime("%Y-%m-%dT%H-%M-%S%.3f");
        fs::rename(&path, path.with_file_name(format!("{stem}-{at}{end}")))?;
        self.file = Some(append(&path)?);
        self.forget()
    }

    /// Removes closed files that are too many or too old.
    fn forget(&self) -> io::Result<()> {
        let (stem, end) = name_parts(&self.options.path);
        let directory = self.options.path.parent().filter(|directory| !directory.as_os_str().is_empty());
        let mut closed: Vec<(String, PathBuf)> = Vec::new();
        for entry in fs::read_dir(directory.unwrap_or(Path::new(".")))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let at = name.strip_prefix(&format!("{stem}-")).and_then(|rest| rest.strip_suffix(end.as_str()));
            if let Some(at) = at.filter(|at| closed_at(at).is_some()) {
                closed.push((at.to_owned(), entry.path()));
            }
        }
        // The newest first: times in this form sort as text.
        closed.sort_by(|a, b| b.0.cmp(&a.0));
        let (kept, days) = (self.options.max_backups, i64::from(self.options.max_age));
        let oldest = self.clock.now().checked_sub((24 * days).hours()).unwrap_or(Timestamp::MIN);
        for (place, (at, path)) in closed.iter().enumerate() {
            let many = kept > 0 && place >= kept;
            let old = days > 0 && closed_at(at).is_some_and(|at| at < oldest);
            if many || old {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

fn append(path: &Path) -> io::Result<(File, u64)> {
    use std::os::unix::fs::OpenOptionsExt;
    let file = File::options().append(true).create(true).mode(0o600).open(path)?;
    let length = file.metadata()?.len();
    Ok((file, length))
}

/// `audit` and `.log`.
fn name_parts(path: &Path) -> (String, String) {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let end = path.extension().map(|end| format!(".{}", end.to_string_lossy())).unwrap_or_default();
    (stem, end)
}

fn closed_at(text: &str) -> Option<Timestamp> {
    let time = jiff::civil::DateTime::strptime("%Y-%m-%dT%H-%M-%S%.3f", text).ok()?;
    time.to_zoned(jiff::tz::TimeZone::UTC).ok().map(|time| time.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicI64;

    fn options(path: PathBuf) -> SinkOptions {
        SinkOptions { path, max_size: 1, max_age: 0, max_backups: 0, mode: Mode::Blocking }
    }

    /// A clock that goes a second further each time it is read.
    fn clock() -> Clock {
        let second = AtomicI64::new(1_795_291_000);
        Clock::new(move || {
            Timestamp::from_second(second.fetch_add(1, Ordering::Relaxed)).unwrap_or(Timestamp::UNIX_EPOCH)
        })
    }

    fn files(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_full_file_is_closed_and_the_oldest_are_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        fs::write(dir.path().join("audit-other.log"), "somebody else's").unwrap();
        let sink = Sink::open(&SinkOptions { max_backups: 2, ..options(path.clone()) }, clock()).unwrap();
        let line = vec![b'x'; 700 * 1024];
        for _ in 0..5 {
            sink.take(line.clone()).unwrap();
        }
        let names = files(dir.path());
        assert_eq!(names.len(), 4, "the open one, two closed ones, another's: {names:?}");
        assert!(names.iter().any(|name| name == "audit-other.log"));
        assert_eq!(fs::metadata(&path).unwrap().len(), line.len() as u64, "a line is never split");
    }

    #[test]
    fn what_is_too_old_goes_when_the_log_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        fs::write(dir.path().join("audit-2026-11-01T00-00-00.000.log"), "old").unwrap();
        fs::write(dir.path().join("audit-2026-11-21T00-00-00.000.log"), "young").unwrap();
        let _sink = Sink::open(&SinkOptions { max_age: 7, ..options(path) }, clock()).unwrap();
        assert_eq!(files(dir.path()), ["audit-2026-11-21T00-00-00.000.log", "audit.log"]);
    }

    #[test]
    fn a_batching_sink_has_written_everything_when_it_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let sink = Sink::open(&SinkOptions { mode: Mode::Batch, ..options(path.clone()) }, clock()).unwrap();
        for at in 0..1000 {
            sink.take(format!("{at}\n").into_bytes()).unwrap();
        }
        assert_eq!(sink.lost(), 0);
        drop(sink);
        for _ in 0..1000 {
            if fs::read_to_string(&path).unwrap().lines().count() == 1000 {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        panic!("events are missing");
    }

    #[test]
    fn in_strict_mode_an_event_that_cannot_be_written_stops_its_request() {
        let full = Path::new("/dev/full");
        let strict = Output {
            file: Some((File::options().append(true).open(full).unwrap(), 0)),
            options: options(full.into()),
            clock: clock(),
        };
        let sink = Sink { way: Way::Direct(Mutex::new(strict)), mode: Mode::BlockingStrict, lost: Arc::default() };
        assert!(sink.take(b"x".to_vec()).is_err());
        let lenient = Sink { mode: Mode::Blocking, ..sink };
        assert!(lenient.take(b"x".to_vec()).is_ok());
        assert_eq!(lenient.lost(), 2);
    }
}
