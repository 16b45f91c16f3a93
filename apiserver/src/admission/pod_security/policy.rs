//! Which of the Pod Security Standards a namespace asks for: the labels `pod-security.kubernetes.io/…`. Pure.

use std::fmt;

use proa_apimachinery::field::{FieldError, FieldErrors, Path};
use proa_apimachinery::object::Object;

/// How much pods may do; each level allows less than the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    Privileged,
    Baseline,
    Restricted,
}

/// The rules of which release. `latest` are those of this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    Minor(u32),
    Latest,
}

/// The release whose rules are known.
const OURS: u32 = 36;

/// A level as of a version: `restricted:latest`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Standard {
    pub(super) level: Level,
    pub(super) version: Version,
}

/// What a namespace asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Policy {
    /// Pods that violate this are refused.
    pub(super) enforce: Standard,
    /// Whoever makes pods that violate this, or what will make them, is told.
    pub(super) warn: Standard,
    /// The audit log tells of pods that violate this, and of what will make them.
    pub(super) audit: Standard,
}

impl Level {
    fn parse(text: &str) -> Option<Level> {
        match text {
            "privileged" => Some(Level::Privileged),
            "baseline" => Some(Level::Baseline),
            "restricted" => Some(Level::Restricted),
            _ => None,
        }
    }
}

impl Version {
    fn parse(text: &str) -> Option<Version> {
        if text == "latest" {
            return Some(Version::Latest);
        }
        let minor = text.strip_prefix("v1.")?;
        let canonical = minor == "0" || !minor.starts_with(['0', '+']);
        minor.parse().ok().filter(|_| canonical).map(Version::Minor)
    }

    /// The minor version whose rules these are; of a release to come, those of this one.
    pub(super) fn minor(self) -> u32 {
        match self {
            Version::Minor(minor) => minor.min(OURS),
            Version::Latest => OURS,
        }
    }
}

impl fmt::Display for Standard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.level {
            Level::Privileged => "privileged",
            Level::Baseline => "baseline",
            Level::Restricted => "restricted",
        })?;
        match self.version {
            Version::Latest => f.write_str(":latest"),
            Version::Minor(minor) => write!(f, ":v1.{minor}"),
        }
    }
}

const PREFIX: &str = "pod-security.kubernetes.io";
const ANYTHING: Standard = Standard { level: Level::Privileged, version: Version::Latest };

/// The policy of a namespace, and what is wrong with its labels. What cannot be read is held to the strictest where it is
/// enforced, and to nothing where it is only told.
pub(super) fn of(namespace: &Object) -> (Policy, FieldErrors) {
    let mut errors = FieldErrors::new();
    let mut read = |mode: &str, unreadable: Level| {
        let mut standard = ANYTHING;
        let (level, version) = (format!("{PREFIX}/{mode}"), format!("{PREFIX}/{mode}-version"));
        let mut refuse = |label: &str, value: &str, why: &str| {
            errors.push(FieldError::invalid(&Path::of("metadata.labels").key(label), value, why));
        };
        let said = namespace.label(&level);
        let known = said.and_then(Level::parse);
        if let Some(value) = said {
            standard.level = known.unwrap_or(unreadable);
            if known.is_none() {
                refuse(&level, value, "must be one of privileged, baseline, restricted");
            }
        }
        let dated = namespace.label(&version);
        if let Some(value) = dated {
            match Version::parse(value) {
                Some(known) => standard.version = known,
                None => refuse(&version, value, "must be \"latest\" or \"v1.x\""),
            }
        }
        (standard, said.is_some(), known.is_some(), dated.is_some())
    };
    let (enforce, _, enforces, _) = read("enforce", Level::Restricted);
    let (audit, ..) = read("audit", Level::Privileged);
    let (mut warn, warns, _, dated) = read("warn", Level::Privileged);
    // Who makes a Deployment learns at once that its pods will be refused.
    if enforces && !warns && enforce.level > warn.level {
        warn.level = enforce.level;
        if !dated {
            warn.version = enforce.version;
        }
    }
    (Policy { enforce, warn, audit }, errors)
}
