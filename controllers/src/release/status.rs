//! What a release says of itself: conditions, authors, and which revisions it keeps. Pure.

use super::{content::MANAGER, plan::Member};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use proa_crds::release::{DEFAULT_HISTORY, Outcome, Release, Revision};
use std::collections::BTreeMap;

/// A condition's message is at most this long (API conventions).
const MESSAGE_LIMIT: usize = 32_768;

/// Sets a condition; its transition time moves when its status does.
pub(super) fn set(
    conditions: &mut Vec<Condition>,
    type_: &str,
    status: &str,
    reason: &str,
    message: &str,
    generation: Option<i64>,
    now: Timestamp,
) {
    let held = conditions.iter().position(|condition| condition.type_ == type_);
    let mut message = message.to_owned();
    if message.len() > MESSAGE_LIMIT {
        let end = (0..=MESSAGE_LIMIT).rev().find(|end| message.is_char_boundary(*end)).unwrap_or(0);
        message.truncate(end);
    }
    let since = held.map(|at| &conditions[at]).filter(|held| held.status == status);
    let condition = Condition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message,
        observed_generation: generation,
        last_transition_time: since.map_or(Time(now), |held| held.last_transition_time.clone()),
    };
    match held {
        Some(at) => conditions[at] = condition,
        // What was never so need not be said.
        None if status == "False" && type_ != proa_crds::conditions::READY => {}
        None => conditions.push(condition),
    }
}

/// Whether that condition holds.
pub(super) fn is_true(conditions: &[Condition], type_: &str) -> bool {
    conditions.iter().any(|condition| condition.type_ == type_ && condition.status == "True")
}

/// Who wrote the members since that time; in the same second is since, for times on the wire are whole seconds.
pub(super) fn authors(members: &[Member], since: Option<Timestamp>) -> Vec<String> {
    let mut latest: BTreeMap<&str, Timestamp> = BTreeMap::new();
    for (author, at) in members.iter().flat_map(|member| &member.authors) {
        let known = latest.entry(author).or_insert(*at);
        *known = (*known).max(*at);
    }
    let from = since.map_or(i64::MIN, |since| since.as_second());
    let recent: Vec<&str> = latest.iter().filter(|(_, at)| at.as_second() >= from).map(|(author, _)| *author).collect();
    // Of kinds without a template only the field manager is known: the same one, where a user is known with it.
    let is_known = |author: &&&str| recent.iter().any(|other| other.ends_with(&format!(" ({author})")));
    recent.iter().filter(|author| !is_known(author)).map(|author| (*author).to_owned()).collect()
}

/// Who set `spec.rollbackTo`, by field manager.
pub(super) fn wished_by(release: &Release) -> String {
    let entries = release.metadata.managed_fields.iter().flatten();
    let wished = entries.filter(|entry| entry.manager.as_deref() != Some(MANAGER)).find(|entry| {
        entry.fields_v1.as_ref().is_some_and(|fields| fields.0.pointer("/f:spec/f:rollbackTo").is_some())
    });
    wished.and_then(|entry| entry.manager.clone()).unwrap_or_default()
}

/// Forgets the oldest revisions beyond the limit, but never the current one and never the last healthy one. Whether any
/// went.
pub(super) fn trim(revisions: &mut Vec<Revision>, limit: Option<i32>) -> bool {
    let limit = usize::try_from(limit.unwrap_or(DEFAULT_HISTORY)).unwrap_or(0);
    let healthy = revisions.iter().rev().find(|held| held.result == Outcome::Healthy).map(|held| held.revision);
    let mut surplus = revisions.len().saturating_sub(limit + 1);
    let (before, last) = (revisions.len(), revisions.last().map(|last| last.revision));
    revisions.retain(|held| {
        let goes = surplus > 0 && Some(held.revision) != healthy && Some(held.revision) != last;
        surplus -= usize::from(goes);
        !goes
    });
    revisions.len() < before
}

/// The revision to go back to: the one asked for, or the last one before the current that says something else and is not
/// known to fail.
pub(super) fn choose(revisions: &[Revision], wanted: Option<i64>) -> Result<&Revision, String> {
    let held = || revisions.iter().map(|held| held.revision).collect::<Vec<_>>();
    match wanted {
        Some(wanted) => revisions
            .iter()
            .find(|held| held.revision == wanted)
            .ok_or_else(|| format!("there is no revision {wanted}; its history holds {:?}", held())),
        None => {
            let current = revisions.last();
            let mut earlier = revisions.iter().rev().skip(1);
            earlier
                .find(|held| {
                    held.result != Outcome::Failed && current.is_none_or(|current| current.digest != held.digest)
                })
                .ok_or_else(|| "there is no earlier revision that is not known to fail".to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn revision(revision: i64, result: Outcome) -> Revision {
        Revision { revision, result, digest: format!("d{revision}"), ..Revision::default() }
    }

    #[test]
    fn the_last_healthy_revision_and_the_current_one_are_never_forgotten() {
        let mut held: Vec<Revision> = (1..=6).map(|n| revision(n, Outcome::Superseded)).collect();
        held[1].result = Outcome::Healthy;
        assert!(trim(&mut held, Some(2)));
        assert_eq!(held.iter().map(|held| held.revision).collect::<Vec<_>>(), [2, 5, 6]);
        assert!(!trim(&mut held, Some(2)));
    }

    #[test]
    fn authors_are_who_wrote_since_and_each_is_named_once() {
        let at = |second: i64| Timestamp::from_second(second).expect("a time");
        let member = |authors: &[(&str, i64)]| Member {
            live: super::super::Live {
                content: super::super::content::Content::of("v1", "ConfigMap", &serde_json::json!({})),
                uid: String::new(),
                version: String::new(),
                deleting: false,
                managed_fields: Vec::new(),
            },
            health: super::super::health::Health::Current,
            judging: super::super::health::Judging::Always,
            authors: authors.iter().map(|(author, second)| ((*author).to_owned(), at(*second))).collect(),
        };
        let members = [member(&[("kubectl", 5), ("helm", 1)]), member(&[("anna (kubectl)", 5), ("flux", 7)])];
        assert_eq!(authors(&members, Some(at(5))), ["anna (kubectl)", "flux"]);
        assert_eq!(authors(&members, None), ["anna (kubectl)", "flux", "helm"]);
    }

    #[test]
    fn without_a_number_it_is_the_last_that_differs_and_did_not_fail() {
        let mut held = vec![revision(1, Outcome::Healthy), revision(2, Outcome::Failed), revision(3, Outcome::Healthy)];
        let chosen = |held: &[Revision], to| choose(held, to).map(|held| held.revision);
        assert_eq!(chosen(&held, None), Ok(1));
        assert_eq!(chosen(&held, Some(2)), Ok(2));
        assert_eq!(chosen(&held, Some(9)), Err("there is no revision 9; its history holds [1, 2, 3]".into()));
        held[2].digest = "d1".into();
        assert!(chosen(&held, None).is_err(), "revision 1 says what revision 3 says");
    }

    #[test]
    fn a_condition_keeps_its_time_while_its_status_stays() {
        let at = |second: i64| Timestamp::from_second(second).expect("a time");
        let mut held = Vec::new();
        set(&mut held, "Stalled", "False", "R", "", None, at(1));
        assert!(held.is_empty(), "what was never so need not be said");
        set(&mut held, "Ready", "False", "R", "a", None, at(1));
        set(&mut held, "Ready", "False", "R", "b", None, at(2));
        assert_eq!((held[0].last_transition_time.0, held[0].message.as_str()), (at(1), "b"));
        set(&mut held, "Ready", "True", "R", "b", None, at(3));
        assert_eq!(held[0].last_transition_time.0, at(3));
        assert!(is_true(&held, "Ready") && !is_true(&held, "Stalled"));
    }
}
