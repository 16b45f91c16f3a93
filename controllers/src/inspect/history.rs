//! `proa history`: the revisions of an object, as a table or as JSON.

use super::{InspectError, Kind, Target, revisions};
use crate::release::content::images;
use jiff::Timestamp;
use kube::Client;
use proa_crds::{
    Failure, annotations,
    release::{Outcome, ReleaseStatus},
};
use serde::Serialize;
use std::fmt;

/// A revision is made within so many seconds of the write of its template.
const SOON: i64 = 5;

/// The revisions of an object, oldest first.
#[derive(Clone, Debug, Serialize)]
pub struct History {
    /// `deployment/web`
    pub object: String,
    /// Its namespace.
    pub namespace: String,
    /// Its revisions.
    pub revisions: Vec<Entry>,
}

/// One revision.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// Its number.
    pub revision: i64,
    /// When it was made, or made current again.
    pub time: Option<Timestamp>,
    /// Who made it.
    pub authors: Vec<String>,
    /// Why.
    pub cause: Option<String>,
    /// What it runs.
    pub images: Vec<String>,
    /// What configuration it runs with.
    pub configuration: Vec<Configuration>,
    /// `current`, `healthy`, `failed`, `superseded`, `rolling out`, `rolled out`, and what else is to be said.
    pub result: String,
    /// Whether it is the current one.
    pub current: bool,
    /// Why it failed, with the evidence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
}

/// One object a revision reads, or one part of it.
#[derive(Clone, Debug, Serialize)]
pub struct Configuration {
    /// `configmap/settings`
    pub name: String,
    /// The first revision that ran with the same content; absent when nothing is kept. No digest: from that of a Secret a weak
    /// password could be guessed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<i64>,
}

impl fmt::Display for Configuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.since {
            Some(revision) => write!(f, "{}@{revision}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// The history of an object.
///
/// # Errors
/// When there is no such object, or it may not be read.
pub async fn history(client: &Client, namespace: &str, target: &Target) -> Result<History, InspectError> {
    let entries = match target.kind {
        Kind::Release => {
            let (_, _, release) = target.find(client, namespace).await?;
            let status = release.data.get("status").cloned().and_then(|status| serde_json::from_value(status).ok());
            of_release(&status.unwrap_or_default())
        }
        _ => {
            let held = revisions::revisions(client, namespace, target).await?;
            held.iter().map(|one| of_workload(one, &held)).collect()
        }
    };
    Ok(History { object: target.to_string(), namespace: namespace.to_owned(), revisions: entries })
}

/// Whether a revision was made for a change of configuration alone: then who wrote the template, and long before, did not make
/// it.
fn is_of_configuration_alone(held: &revisions::Held, author: &super::Author) -> bool {
    let wrote = author.time.as_ref().map(|time| time.0);
    let made = held.made.as_ref().map(|made| made.0);
    held.made_for.is_some() && wrote.zip(made).is_some_and(|(wrote, made)| made.as_second() - wrote.as_second() > SOON)
}

fn of_workload(held: &revisions::Held, all: &[revisions::Held]) -> Entry {
    let author = held.author().filter(|author| !is_of_configuration_alone(held, author));
    let failure = held.failure();
    let mut result = match (&failure, held.note(annotations::HEALTHY), held.current) {
        (Some(failure), ..) => format!("failed ({})", failure.reason),
        (None, Some(_), _) => "healthy".to_owned(),
        // Only where something may go back to a revision is it marked as healthy.
        (None, None, true) if held.complete => "rolled out".to_owned(),
        (None, None, true) => "rolling out".to_owned(),
        (None, None, false) => "superseded".to_owned(),
    };
    if held.current {
        result.push_str(", current");
    }
    if held.note(annotations::CONFIG_REVISION).is_some() {
        result.push_str(", reads kept configuration");
    }
    let since = |name: &String, kept: &revisions::Kept| {
        let same = |other: &&revisions::Held| other.configuration.get(name) == Some(kept);
        all.iter().filter(|_| !kept.is_empty()).find(same).map(|first| first.number)
    };
    Entry {
        revision: held.number,
        time: author.as_ref().and_then(|author| author.time.as_ref()).or(held.made.as_ref()).map(|time| time.0),
        authors: author.iter().map(ToString::to_string).collect(),
        cause: held.note(annotations::CHANGE_CAUSE).map(str::to_owned),
        images: images(&serde_json::json!({"spec": {"template": held.template}})),
        configuration: held
            .configuration
            .iter()
            .map(|(name, kept)| Configuration { name: name.clone(), since: since(name, kept) })
            .collect(),
        result,
        current: held.current,
        failure,
    }
}

fn of_release(status: &ReleaseStatus) -> Vec<Entry> {
    let last = status.revisions.last().map(|last| last.revision);
    let entry = |held: &proa_crds::release::Revision| {
        let current = Some(held.revision) == last;
        let mut result = match held.result {
            Outcome::Progressing => "rolling out".to_owned(),
            Outcome::Healthy => "healthy".to_owned(),
            Outcome::Failed => format!("failed ({})", held.reason),
            Outcome::Superseded => "superseded".to_owned(),
        };
        if current {
            result.push_str(", current");
        }
        if let Some(going) = status.rollback.as_ref().filter(|_| current) {
            result.push_str(&format!(", going back to revision {}", going.to));
        }
        let at =
            |time: &Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime>| time.as_ref().map(|time| time.0);
        let failure = || Failure {
            reason: held.reason.clone(),
            message: held.message.clone(),
            at: at(&held.decided_at).map(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time),
            ..Failure::default()
        };
        Entry {
            revision: held.revision,
            time: at(&held.recorded_at),
            authors: held.authors.clone(),
            cause: held.cause.clone(),
            images: held.images.clone(),
            configuration: vec![Configuration {
                name: format!("{} objects", held.members),
                since: status.revisions.iter().find(|other| other.digest == held.digest).map(|first| first.revision),
            }],
            result,
            current,
            failure: (held.result == Outcome::Failed).then(failure),
        }
    };
    status.revisions.iter().map(entry).collect()
}

/// The longest cell of a table; the whole text is in the JSON.
const WIDEST: usize = 60;

impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.revisions.is_empty() {
            return writeln!(f, "{} has no revisions yet", self.object);
        }
        let heading = ["REVISION", "WHEN", "WHO", "CAUSE", "IMAGES", "CONFIGURATION", "RESULT"].map(str::to_owned);
        let mut rows = vec![heading];
        for entry in &self.revisions {
            let join = |texts: Vec<String>| cell(&texts.join(","));
            rows.push([
                entry.revision.to_string(),
                entry.time.map_or("-".to_owned(), |time| time.strftime("%Y-%m-%d %H:%M:%SZ").to_string()),
                join(entry.authors.clone()),
                cell(entry.cause.as_deref().unwrap_or_default()),
                join(entry.images.clone()),
                join(entry.configuration.iter().map(ToString::to_string).collect()),
                entry.result.clone(),
            ]);
        }
        let widths: Vec<usize> =
            (0..7).map(|at| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0)).collect();
        for row in &rows {
            let line: Vec<String> =
                row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}", width = *width)).collect();
            writeln!(f, "{}", line.join("  ").trim_end())?;
        }
        for entry in &self.revisions {
            if let Some(failure) = &entry.failure {
                evidence(f, entry.revision, failure)?;
            }
        }
        Ok(())
    }
}

fn cell(text: &str) -> String {
    let text = text.replace(['\n', '\t'], " ");
    match text.chars().count() {
        0 => "-".to_owned(),
        long if long > WIDEST => text.chars().take(WIDEST - 1).chain(['…']).collect(),
        _ => text,
    }
}

/// What is known of a failure, indented under a line that names the revision.
fn evidence(f: &mut fmt::Formatter<'_>, revision: i64, failure: &Failure) -> fmt::Result {
    writeln!(f, "\nRevision {revision} failed: {}", failure.why())?;
    let mut place = Vec::new();
    place.extend(failure.pod.as_ref().map(|pod| format!("pod {pod}")));
    place.extend(failure.container.as_ref().map(|container| format!("container {container}")));
    place.extend(failure.exit_code.map(|code| format!("exit code {code}")));
    place.extend(failure.at.as_ref().map(|at| format!("at {}", at.0.strftime("%Y-%m-%d %H:%M:%SZ"))));
    if !place.is_empty() {
        writeln!(f, "  {}", place.join(", "))?;
    }
    if !failure.events.is_empty() {
        writeln!(f, "  events:")?;
        for event in &failure.events {
            writeln!(f, "    {} (x{}): {}", event.reason, event.count, event.message)?;
        }
    }
    if !failure.log.is_empty() {
        writeln!(f, "  last log lines:")?;
        for line in failure.log.lines() {
            writeln!(f, "    {line}")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_wrote_the_template_did_not_make_a_revision_of_configuration_alone() {
        let held = |made_for: Option<&str>, made: &str| {
            let author = serde_json::json!({"user": "anna", "manager": "kubectl", "time": "2026-11-21T10:00:00Z"});
            let made = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(made.parse().expect("a time"));
            let notes = [(annotations::CHANGED_BY.to_owned(), author.to_string())].into();
            revisions::Held {
                made_for: made_for.map(str::to_owned),
                made: Some(made),
                notes,
                ..revisions::Held::default()
            }
        };
        let who = |held: revisions::Held| {
            let entry = of_workload(&held, &[]);
            (entry.authors.join(","), entry.time.map(|time| time.to_string()).unwrap_or_default())
        };
        let (at, later) = ("2026-11-21T10:00:00Z", "2026-11-21T11:00:00Z");
        assert_eq!(who(held(None, later)), ("anna (kubectl)".into(), at.into()), "it was paused meanwhile");
        assert_eq!(who(held(Some("d"), at)), ("anna (kubectl)".into(), at.into()), "both changed");
        assert_eq!(who(held(Some("d"), later)), (String::new(), later.into()));
    }

    #[test]
    fn the_table_says_who_why_what_and_how_it_ended() {
        let time = "2026-11-21T10:00:00Z".parse().ok();
        let failure = Failure {
            reason: "CrashLoop".into(),
            message: "back-off".into(),
            pod: Some("web-1".into()),
            container: Some("echo".into()),
            exit_code: Some(3),
            log: "one\ntwo".into(),
            ..Failure::default()
        };
        let history = History {
            object: "deployment/web".into(),
            namespace: "default".into(),
            revisions: vec![
                Entry {
                    revision: 1,
                    time,
                    authors: vec!["anna (kubectl)".into()],
                    cause: Some("first".into()),
                    images: vec!["example/echo:v1".into()],
                    configuration: vec![Configuration { name: "configmap/settings".into(), since: Some(1) }],
                    result: "healthy, current".into(),
                    current: true,
                    failure: None,
                },
                Entry {
                    revision: 2,
                    time,
                    result: "failed (CrashLoop)".into(),
                    failure: Some(failure),
                    ..Entry::default()
                },
            ],
        };
        let expected = "\
REVISION  WHEN                  WHO             CAUSE  IMAGES           CONFIGURATION         RESULT
1         2026-11-21 10:00:00Z  anna (kubectl)  first  example/echo:v1  configmap/settings@1  healthy, current
2         2026-11-21 10:00:00Z  -               -      -                -                     failed (CrashLoop)

Revision 2 failed: CrashLoop: back-off
  pod web-1, container echo, exit code 3
  last log lines:
    one
    two
";
        assert_eq!(history.to_string(), expected);
        let empty = History { revisions: Vec::new(), ..history };
        assert_eq!(empty.to_string(), "deployment/web has no revisions yet\n");
    }
}
