//! `proa rollback release/…`: shows what it would change, asks the controller for it, and tells how it went.

use super::{
    content::{Content, Id},
    member,
    records::{ReadError, Records},
    status,
    steps::{Live, Step, steps},
};
use crate::{
    catalogue::discover,
    inspect::{InspectError, Kind, Target, field_changes, unified::Change},
};
use futures::TryStreamExt;
use kube::{
    Api, Client, ResourceExt,
    api::{DynamicObject, ListParams, Patch, PatchParams, WatchEvent, WatchParams},
};
use proa_crds::{
    conditions,
    release::{Release, Revision, release_resource},
};
use serde::Serialize;
use serde_json::json;
use std::{collections::BTreeSet, fmt, time::Duration};

/// How long a going back is followed; after that it goes on by itself.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why a release cannot be taken back.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// There is no such release, or revision, or it cannot be read.
    #[error(transparent)]
    Inspect(#[from] InspectError),
    /// There is nothing to go back to.
    #[error("release {release:?}: {why}")]
    NoRevision {
        /// Which release.
        release: String,
        /// Why.
        why: String,
    },
    /// Objects of the revision exist, and belong to somebody else now.
    #[error("these objects exist and do not belong to the release: {0}; --force takes them")]
    Foreign(String),
    /// The controller cannot go on.
    #[error("release {release:?} is going back, and needs help: {why}")]
    Stalled {
        /// Which release.
        release: String,
        /// Why.
        why: String,
    },
    /// It takes long.
    #[error("release {0:?} is still going back: kubectl describe release {0}")]
    Unfinished(String),
}

impl From<kube::Error> for CommandError {
    fn from(error: kube::Error) -> Self {
        CommandError::Inspect(error.into())
    }
}

fn releases(client: &Client, namespace: &str) -> Api<Release> {
    Api::namespaced_with(client.clone(), namespace, &release_resource())
}

async fn get(client: &Client, namespace: &str, name: &str) -> Result<Release, CommandError> {
    let found = releases(client, namespace).get_opt(name).await?;
    let target = || Target { kind: Kind::Release, family: None, name: name.to_owned() }.to_string();
    Ok(found.ok_or_else(|| InspectError::NotFound { target: target(), namespace: namespace.to_owned() })?)
}

fn unreadable(revision: i64) -> impl Fn(ReadError) -> InspectError {
    move |error| match error {
        ReadError::Api(error) => error.into(),
        error => InspectError::Unreadable { revision, why: error.to_string() },
    }
}

/// What the members of a revision said.
///
/// # Errors
/// When there is no such release or revision, or its record cannot be read.
pub async fn contents_of(
    client: &Client,
    namespace: &str,
    target: &Target,
    revision: i64,
) -> Result<Vec<Content>, InspectError> {
    let found = releases(client, namespace).get_opt(&target.name).await?;
    let not_found = || InspectError::NotFound { target: target.to_string(), namespace: namespace.to_owned() };
    let release = found.ok_or_else(not_found)?;
    let revisions = release.status.as_ref().map(|status| status.revisions.as_slice()).unwrap_or_default();
    let held = revisions.iter().find(|held| held.revision == revision).ok_or_else(|| InspectError::NoRevision {
        target: target.to_string(),
        revision,
        held: revisions.iter().map(|held| held.revision).collect(),
    })?;
    Records::of(client, &release).contents(&held.record).await.map_err(unreadable(revision))
}

/// What going back would do, object by object.
#[derive(Clone, Debug, Serialize)]
pub struct Preview {
    /// Its name.
    pub release: String,
    /// The current revision.
    pub from: i64,
    /// The revision that would come back.
    pub to: i64,
    /// What would be done, in order.
    pub steps: Vec<Planned>,
    /// Objects of the revision that exist and do not belong to the release.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub foreign: Vec<String>,
}

/// One step that would be taken.
#[derive(Clone, Debug, Serialize)]
pub struct Planned {
    /// `create`, `change` or `remove`.
    pub action: &'static str,
    /// Which object.
    pub object: String,
    /// Where, if not in the release's namespace.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Field by field; Secrets by the size of their values.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<Change>,
}

impl fmt::Display for Preview {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Preview { release, from, to, steps, foreign } = self;
        if steps.is_empty() {
            return write!(f, "release/{release} is what revision {to} says already");
        }
        write!(f, "release/{release}: from revision {from} to revision {to}")?;
        for step in steps {
            write!(f, "\n  {} {}", step.action, step.object)?;
            if !step.namespace.is_empty() {
                write!(f, " in namespace {}", step.namespace)?;
            }
            for change in &step.changes {
                write!(f, "\n    {change}")?;
            }
        }
        for object in foreign {
            write!(f, "\n  {object} exists and does not belong to the release")?;
        }
        Ok(())
    }
}

/// What going back to revision `to`, or to the last that is not known to fail, would do. Nothing is written.
///
/// # Errors
/// When there is nothing to go back to, or it cannot be read.
pub async fn preview(client: &Client, namespace: &str, name: &str, to: Option<i64>) -> Result<Preview, CommandError> {
    let release = get(client, namespace, name).await?;
    let no_revision = |why: String| CommandError::NoRevision { release: name.to_owned(), why };
    let revisions = release.status.as_ref().map(|status| status.revisions.clone()).unwrap_or_default();
    let current = revisions.last().ok_or_else(|| no_revision("it has no revisions yet".into()))?;
    let target = status::choose(&revisions, to).map_err(no_revision)?;
    let records = Records::of(client, &release);
    let wanted = records.contents(&target.record).await.map_err(unreadable(target.revision))?;
    let members: BTreeSet<Id> = records
        .index(&current.record)
        .await
        .map_err(unreadable(current.revision))?
        .into_iter()
        .map(|entry| entry.id)
        .collect();
    let ids: BTreeSet<Id> = wanted.iter().map(|content| content.id.clone()).chain(members.iter().cloned()).collect();
    let (mut live, mut foreign) = (Vec::new(), Vec::new());
    let known = discover(client).await?;
    for id in ids {
        let resource = known.resources.iter().find(|held| held.api.group == id.group && held.api.kind == id.kind);
        let Some(resource) = resource else { continue };
        let api: Api<DynamicObject> = match resource.namespaced {
            true => Api::namespaced_with(client.clone(), &id.namespace, &resource.api),
            false => Api::all_with(client.clone(), &resource.api),
        };
        let Some(object) = api.get_opt(&id.name).await? else { continue };
        let found = member(&resource.api, &object).live;
        // What the release has no longer, and is there all the same, is somebody else's: unless it is only not recorded yet.
        if !members.contains(&id) && !shares_marks(&wanted, &found) {
            foreign.push(id.to_string());
        }
        live.push(found);
    }
    let planned = steps(&wanted, &live, &BTreeSet::new())
        .iter()
        .filter_map(|step| planned(&release, step, &wanted, &live))
        .collect();
    Ok(Preview { release: name.to_owned(), from: current.revision, to: target.revision, steps: planned, foreign })
}

/// Whether the live object carries the labels the revision knows it by.
fn shares_marks(wanted: &[Content], live: &Live) -> bool {
    let label = |content: &Content| {
        content
            .object
            .pointer("/metadata/labels")
            .and_then(|labels| labels.get(proa_crds::annotations::APPLY_SET_PART_OF))
            .cloned()
    };
    let then = wanted.iter().find(|content| content.id == live.content.id).and_then(label);
    then.is_some() && then == label(&live.content)
}

fn planned(release: &Release, step: &Step, wanted: &[Content], live: &[Live]) -> Option<Planned> {
    let id = step.id();
    let (was, will) = (
        live.iter().find(|live| live.content.id == *id).map(|live| &live.content),
        wanted.iter().find(|content| content.id == *id),
    );
    let action = match step {
        Step::Create(_) => "create",
        Step::Change { .. } => "change",
        Step::Remove { .. } => "remove",
        // Who owns which field is no change of the object; what goes anyway is told by what follows.
        Step::Return { .. } | Step::Await(_) => return None,
    };
    let own = release.metadata.namespace.as_deref().unwrap_or_default();
    let mut changes = field_changes(was, will);
    if let (Some(was), Some(will)) = (was, will) {
        // The size an autoscaler gave stays.
        changes.retain(|change| change.path != ".spec.replicas" || will.yielding_to(was) == will.object);
    }
    // A new record of the last apply alone is nothing to show.
    if matches!(step, Step::Change { .. }) && changes.is_empty() {
        return None;
    }
    Some(Planned {
        action,
        object: id.to_string(),
        namespace: if id.namespace == own { String::new() } else { id.namespace.clone() },
        changes,
    })
}

/// Asks the controller to go back.
///
/// # Errors
/// When objects of the revision belong to somebody else and `force` is not given, or the release may not be written.
pub async fn request(client: &Client, namespace: &str, preview: &Preview, force: bool) -> Result<(), CommandError> {
    if !preview.foreign.is_empty() && !force {
        return Err(CommandError::Foreign(preview.foreign.join(", ")));
    }
    let wish = json!({"spec": {"rollbackTo": {"revision": preview.to, "force": force}}});
    let manager = PatchParams { field_manager: Some("proa".to_owned()), ..PatchParams::default() };
    releases(client, namespace).patch(&preview.release, &manager, &Patch::Merge(&wish)).await?;
    Ok(())
}

/// Follows a going back that was asked for, to its end; the revision it became.
///
/// # Errors
/// When it cannot go on without help, or takes longer than a minute.
pub async fn follow(client: &Client, namespace: &str, preview: &Preview) -> Result<i64, CommandError> {
    let name = preview.release.clone();
    tokio::time::timeout(PATIENCE, arrival(client, namespace, preview))
        .await
        .unwrap_or(Err(CommandError::Unfinished(name)))
}

async fn arrival(client: &Client, namespace: &str, preview: &Preview) -> Result<i64, CommandError> {
    let api = releases(client, namespace);
    let selector = format!("metadata.name={}", preview.release);
    loop {
        let list = api.list(&ListParams::default().fields(&selector)).await?;
        let version = list.metadata.resource_version.clone().unwrap_or_default();
        let Some(release) = list.items.first() else {
            return Err(get(client, namespace, &preview.release)
                .await
                .err()
                .unwrap_or(CommandError::Unfinished(preview.release.clone())));
        };
        if let Some(end) = ended(release, preview) {
            return end;
        }
        let mut events = std::pin::pin!(api.watch(&WatchParams::default().fields(&selector), &version).await?);
        while let Some(event) = events.try_next().await? {
            match event {
                WatchEvent::Added(release) | WatchEvent::Modified(release) => {
                    if let Some(end) = ended(&release, preview) {
                        return end;
                    }
                }
                WatchEvent::Deleted(_) | WatchEvent::Error(_) => break,
                WatchEvent::Bookmark(_) => {}
            }
        }
    }
}

/// The outcome, once there is one.
fn ended(release: &Release, preview: &Preview) -> Option<Result<i64, CommandError>> {
    let status = release.status.as_ref()?;
    if release.spec.rollback_to.is_some() {
        return None;
    }
    let stalled = status.conditions.iter().find(|held| held.type_ == conditions::STALLED && held.status == "True");
    if let Some(stalled) = stalled.filter(|stalled| stalled.reason != "Failed") {
        return Some(Err(CommandError::Stalled { release: release.name_any(), why: stalled.message.clone() }));
    }
    if status.rollback.is_some() {
        return None;
    }
    let done = |held: &&Revision| held.revision > preview.from && held.rolled_back_to == Some(preview.to);
    let arrived = status.revisions.iter().rev().find(done).map(|held| held.revision);
    // A target that says what is there already becomes no revision.
    arrived.or_else(|| preview.steps.is_empty().then_some(preview.to)).map(Ok)
}
