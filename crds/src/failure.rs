//! Evidence: why a revision failed, kept with the revision for as long as its history.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::{Deserialize, Serialize};

use crate::annotations;

/// Why a revision failed: the value of [`annotations::FAILURE`] on its ReplicaSet or ControllerRevision, as JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Failure {
    /// One of [`crate::reasons::FAILURES`].
    pub reason: String,
    /// What the pod, the check or the deadline said.
    pub message: String,
    /// The pod that showed it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// The container that showed it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// What that container ended with last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Its last log lines, at most [`Failure::LOG_LINES`] of them and [`Failure::LOG_BYTES`] bytes.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub log: String,
    /// The last events of that pod, oldest first, at most [`Failure::EVENTS`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<FailureEvent>,
    /// When.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<Time>,
    /// The object's `proa.dev/retry` at that time.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub retry: String,
    /// The name of the revision (ReplicaSet, ControllerRevision) to go back to; empty when there was none, or when the
    /// policy does not want to go back.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub to: String,
}

/// One event of the pod that failed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FailureEvent {
    /// Its reason.
    pub reason: String,
    /// Its message, cut to [`Failure::EVENT_BYTES`].
    pub message: String,
    /// How often it was seen.
    pub count: i32,
}

/// A template that is known to fail: an entry of [`annotations::FAILED_REVISIONS`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FailedTemplate {
    /// `proa_apimachinery::template::digest` of the template.
    pub template: String,
    /// The number of its revision.
    pub revision: i64,
    /// Why it failed, in short.
    pub why: String,
}

impl Failure {
    /// So many log lines are kept …
    pub const LOG_LINES: usize = 50;
    /// … and so many bytes of them, the last ones: annotations of one object share 256 KiB.
    pub const LOG_BYTES: usize = 8 * 1024;
    /// So many events are kept.
    pub const EVENTS: usize = 10;
    /// So many bytes of an event's message are kept.
    pub const EVENT_BYTES: usize = 300;

    /// The failure recorded in these annotations.
    pub fn recorded(annotations: Option<&std::collections::BTreeMap<String, String>>) -> Option<Failure> {
        serde_json::from_str(annotations?.get(annotations::FAILURE)?).ok()
    }

    /// Reason and message in one line.
    pub fn why(&self) -> String {
        format!("{}: {}", self.reason, self.message)
    }

    /// The last lines of a log, within the limits of the evidence.
    pub fn last_lines(log: &str) -> String {
        let log = log.trim_end();
        let from = log.len().saturating_sub(Self::LOG_BYTES);
        let from = (from..=log.len()).find(|at| log.is_char_boundary(*at)).unwrap_or(log.len());
        let log = &log[from..];
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(Self::LOG_LINES)..].join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evidence_is_bounded_and_keeps_the_last_lines() {
        let log = format!("{}é\nlast\n", "x".repeat(Failure::LOG_BYTES * 2));
        let lines = Failure::last_lines(&log);
        assert!(lines.len() <= Failure::LOG_BYTES && lines.ends_with("é\nlast"));
        assert_eq!(Failure::last_lines("é".repeat(Failure::LOG_BYTES).as_str()).len(), Failure::LOG_BYTES);
        assert_eq!(Failure::last_lines(""), "");
        let many: String = (1..=100).map(|n| format!("{n}\n")).collect();
        let kept = Failure::last_lines(&many);
        assert_eq!((kept.lines().next(), kept.lines().last(), kept.lines().count()), (Some("51"), Some("100"), 50));
    }
}
