//! Owns what a container said when it ended: its termination message file, or the end of its log.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;

use k8s_openapi::api::core::v1::Container;

use crate::pods::layout::Layout;
use crate::pods::track::Ended;

/// Longest termination message, bytes (Kubernetes).
const MOST_FILE_BYTES: u64 = 4096;
/// Longest fallback to the log, bytes and lines (Kubernetes).
const MOST_LOG_BYTES: usize = 2048;
const MOST_LOG_LINES: usize = 80;

/// The message of a container that ended, empty when it left none.
pub(crate) fn read(layout: &Layout, uid: &str, container: &Container, ended: &Ended) -> String {
    let file = layout.termination_log(uid, &container.name, ended.run.attempt);
    let written = tail(&file, MOST_FILE_BYTES);
    let fallback = container.termination_message_policy.as_deref() == Some("FallbackToLogsOnError");
    if written.is_empty() && fallback && ended.code != 0 {
        let log = layout.log(uid, &container.name, ended.run.attempt);
        return log_lines(&tail(&log, 64 * 1024));
    }
    String::from_utf8_lossy(&written).into_owned()
}

fn tail(path: &Path, most: u64) -> Vec<u8> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(most)))?;
        let mut bytes = Vec::new();
        file.take(most).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read().unwrap_or_default()
}

/// The text of the last lines of a log in CRI format.
fn log_lines(log: &[u8]) -> String {
    let lines: Vec<&[u8]> =
        log.split(|b| *b == b'\n').filter_map(|line| line.splitn(4, |b| *b == b' ').nth(3)).collect();
    let mut text = Vec::new();
    for line in &lines[lines.len().saturating_sub(MOST_LOG_LINES)..] {
        text.extend_from_slice(line);
        text.push(b'\n');
    }
    let from = text.len().saturating_sub(MOST_LOG_BYTES);
    String::from_utf8_lossy(&text[from..]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::super::pods::track::tests::ended;
    use super::*;

    #[test]
    fn the_file_speaks_first_and_the_log_only_after_a_failure() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        let mut container = Container { name: "a".into(), ..Container::default() };
        assert_eq!(read(&layout, "u", &container, &ended(0, 1, 0, 1)), "");
        std::fs::create_dir_all(layout.logs("u", "a")).unwrap();
        std::fs::write(
            layout.log("u", "a", 0),
            "2026-01-01T00:00:00Z stdout F one\n2026-01-01T00:00:00Z stderr F two words\n",
        )
        .unwrap();
        assert_eq!(read(&layout, "u", &container, &ended(0, 1, 0, 1)), "");
        container.termination_message_policy = Some("FallbackToLogsOnError".into());
        assert_eq!(read(&layout, "u", &container, &ended(0, 1, 0, 1)), "one\ntwo words\n");
        assert_eq!(read(&layout, "u", &container, &ended(0, 0, 0, 1)), "");
        let file = layout.termination_log("u", "a", 0);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, "x".repeat(5000)).unwrap();
        assert_eq!(read(&layout, "u", &container, &ended(0, 1, 0, 1)).len(), 4096);
    }
}
