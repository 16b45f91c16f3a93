//! How revisions are kept: Secrets by content, owned by the release.
//!
//! The record of a revision lists its members, each by the digest of what is kept of it; both are found by their SHA-256,
//! which stands in the release's status. So what is equal is kept once, a record once written never changes, and one that was
//! tampered with is not believed: who may write Secrets, but not the status of releases, cannot make a release bring back
//! what never was.

use super::content::{Content, Id, images, sha256};
use crate::{ActError, owners, patch};
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, PostParams},
    core::ObjectMeta,
};
use proa_crds::{
    annotations,
    release::{Release, release_resource},
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// The key of a kept blob in its Secret.
const KEY: &str = "content";
/// A Secret holds at most 1 MiB.
const SIZE_LIMIT: usize = 1 << 20;
/// How much of a release's name goes into those of its Secrets, and how much of a digest.
const NAME_PART: usize = 180;
const DIGEST_PART: usize = 32;

/// A member in a record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// Which object.
    #[serde(flatten)]
    pub id: Id,
    /// SHA-256 of what it says.
    pub digest: String,
    /// SHA-256 of what is kept of it.
    pub kept: String,
}

/// Something to keep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    /// Its SHA-256.
    pub digest: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

impl Blob {
    fn of<T: Serialize>(value: &T) -> Blob {
        let bytes = patch::json(value).to_string().into_bytes();
        Blob { digest: sha256(&bytes), bytes }
    }
}

/// A revision to be kept: its record, what the record refers to, and the digest of what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// SHA-256 over the members and what they say.
    pub digest: String,
    /// SHA-256 of the record itself.
    pub record: String,
    /// The images its workloads run.
    pub images: Vec<String>,
    /// Everything that must be kept; the record last, so that a record is never without its members.
    pub blobs: Vec<Blob>,
}

/// A member that is too large to be kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{id} takes {size} bytes and a revision keeps at most {SIZE_LIMIT} of a member")]
pub struct TooLarge {
    /// Which.
    pub id: Id,
    /// How large it is.
    pub size: usize,
}

/// SHA-256 over which members there are and what each says.
pub(super) fn digest(members: &[Content]) -> String {
    let mut lines: Vec<String> = members.iter().map(|member| line(&member.id, &member.digest())).collect();
    lines.sort();
    sha256(lines.concat().as_bytes())
}

fn line(id: &Id, digest: &str) -> String {
    format!("{}\t{}\t{}\t{}\t{digest}\n", id.group, id.kind, id.namespace, id.name)
}

impl Record {
    /// The record of these members.
    ///
    /// # Errors
    /// When one of them is too large to be kept.
    pub fn of(members: &[Content]) -> Result<Record, TooLarge> {
        let mut members: Vec<&Content> = members.iter().collect();
        members.sort_by(|a, b| a.id.cmp(&b.id));
        let (mut index, mut blobs, mut seen) = (Vec::new(), Vec::new(), BTreeSet::new());
        let mut pictures = Vec::new();
        for member in members {
            let blob = Blob::of(member);
            if blob.bytes.len() > SIZE_LIMIT {
                return Err(TooLarge { id: member.id.clone(), size: blob.bytes.len() });
            }
            index.push(Entry { id: member.id.clone(), digest: member.digest(), kept: blob.digest.clone() });
            for image in images(&member.object) {
                if !pictures.contains(&image) {
                    pictures.push(image);
                }
            }
            if seen.insert(blob.digest.clone()) {
                blobs.push(blob);
            }
        }
        let lines: String = {
            let mut lines: Vec<String> = index.iter().map(|entry| line(&entry.id, &entry.digest)).collect();
            lines.sort();
            lines.concat()
        };
        let record = Blob::of(&index);
        let digest = sha256(lines.as_bytes());
        let name = record.digest.clone();
        blobs.push(record);
        Ok(Record { digest, record: name, images: pictures, blobs })
    }
}

/// The Secrets of one release.
#[derive(Clone)]
pub struct Records {
    secrets: Api<Secret>,
    release: String,
    uid: String,
}

/// Why a revision cannot be read back.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It was removed by somebody.
    #[error("the secret {0:?} that keeps a part of the revision is gone")]
    Gone(String),
    /// It does not hold what it did.
    #[error("the secret {0:?} does not hold what was recorded")]
    Tampered(String),
    /// The API server refused or could not be reached.
    #[error(transparent)]
    Api(#[from] kube::Error),
}

impl From<ReadError> for ActError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Api(error) => error.into(),
            error => ActError::Refused(error.to_string()),
        }
    }
}

impl Records {
    /// Those of that release.
    pub fn of(client: &Client, release: &Release) -> Records {
        let namespace = release.metadata.namespace.clone().unwrap_or_default();
        Records {
            secrets: Api::namespaced(client.clone(), &namespace),
            release: release.name_any(),
            uid: release.metadata.uid.clone().unwrap_or_default(),
        }
    }

    fn name(&self, digest: &str) -> String {
        let release: String = self.release.chars().take(NAME_PART).collect();
        let digest: String = digest.chars().take(DIGEST_PART).collect();
        format!("{}-{digest}", release.trim_end_matches(['-', '.']))
    }

    /// Keeps what is not kept yet.
    pub async fn keep(&self, release: &Release, blobs: Vec<Blob>) -> Result<(), ActError> {
        for blob in blobs {
            let secret = Secret {
                metadata: ObjectMeta {
                    name: Some(self.name(&blob.digest)),
                    labels: Some(BTreeMap::from([(annotations::RELEASE.to_owned(), self.uid.clone())])),
                    owner_references: Some(vec![owners::controller_reference(release, &release_resource())]),
                    ..ObjectMeta::default()
                },
                type_: Some(annotations::RELEASE_SECRET_TYPE.to_owned()),
                immutable: Some(true),
                data: Some(BTreeMap::from([(KEY.to_owned(), ByteString(blob.bytes))])),
                ..Secret::default()
            };
            let post = PostParams { field_manager: Some(patch::MANAGER.to_owned()), dry_run: false };
            match self.secrets.create(&post, &secret).await {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {
                    // Kept before; by a release of the same name that is gone, or not by us, it is no good.
                    let held = self.secrets.get(&secret.name_any()).await?;
                    if !owners::is_controlled_by(&held.metadata, &self.uid) || held.data != secret.data {
                        let why = format!("the secret {} is not a part of this release", held.name_any());
                        return Err(ActError::Refused(why));
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    async fn blob(&self, digest: &str) -> Result<Vec<u8>, ReadError> {
        let name = self.name(digest);
        let Some(secret) = self.secrets.get_opt(&name).await? else { return Err(ReadError::Gone(name)) };
        let bytes = secret.data.and_then(|mut data| data.remove(KEY)).map(|bytes| bytes.0).unwrap_or_default();
        if sha256(&bytes) != digest { Err(ReadError::Tampered(name)) } else { Ok(bytes) }
    }

    /// Which members a revision has.
    ///
    /// # Errors
    /// When it is not kept any longer, or not as it was.
    pub async fn index(&self, record: &str) -> Result<Vec<Entry>, ReadError> {
        let bytes = self.blob(record).await?;
        serde_json::from_slice(&bytes).map_err(|_| ReadError::Tampered(self.name(record)))
    }

    /// What is kept of a member.
    ///
    /// # Errors
    /// As [`Records::index`].
    pub async fn content(&self, kept: &str) -> Result<Content, ReadError> {
        let bytes = self.blob(kept).await?;
        serde_json::from_slice(&bytes).map_err(|_| ReadError::Tampered(self.name(kept)))
    }

    /// All that is kept of a revision.
    ///
    /// # Errors
    /// As [`Records::index`].
    pub async fn contents(&self, record: &str) -> Result<Vec<Content>, ReadError> {
        let mut contents = Vec::new();
        for entry in self.index(record).await? {
            contents.push(self.content(&entry.kept).await?);
        }
        Ok(contents)
    }

    /// Removes what no revision refers to any longer. `records` are those of the revisions that are kept.
    pub async fn sweep(&self, records: &BTreeSet<String>) -> Result<(), ActError> {
        let ours = ListParams::default().labels(&format!("{}={}", annotations::RELEASE, self.uid));
        let held = self.secrets.list(&ours).await?.items;
        let mut wanted = BTreeSet::new();
        for record in records {
            wanted.insert(self.name(record));
            let bytes = held
                .iter()
                .find(|secret| secret.name_any() == self.name(record))
                .and_then(|secret| secret.data.as_ref()?.get(KEY));
            // A record that cannot be read may refer to anything: then nothing is removed.
            let index = bytes.and_then(|bytes| serde_json::from_slice::<Vec<Entry>>(&bytes.0).ok());
            let Some(index) = index else { return Ok(()) };
            wanted.extend(index.iter().map(|entry| self.name(&entry.kept)));
        }
        for secret in held {
            let ours = owners::is_controlled_by(&secret.metadata, &self.uid);
            if !ours || wanted.contains(&secret.name_any()) {
                continue;
            }
            match self.secrets.delete(&secret.name_any(), &DeleteParams::default()).await.map_err(ActError::from) {
                Ok(_) | Err(ActError::Gone(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn member(name: &str, value: &str) -> Content {
        Content::of(
            "v1",
            "ConfigMap",
            &json!({"metadata": {"name": name, "namespace": "shop"}, "data": {"key": value}}),
        )
    }

    #[test]
    fn what_is_equal_is_kept_once() {
        let first = Record::of(&[member("a", "1"), member("b", "1")]).expect("small");
        let second = Record::of(&[member("b", "1"), member("a", "2")]).expect("small");
        let names =
            |record: &Record| -> BTreeSet<String> { record.blobs.iter().map(|blob| blob.digest.clone()).collect() };
        assert_eq!(names(&first).intersection(&names(&second)).count(), 1, "b is the same in both");
        assert_eq!(first, Record::of(&[member("b", "1"), member("a", "1")]).expect("small"), "order says nothing");
        assert_eq!(first.digest, digest(&[member("a", "1"), member("b", "1")]));
        assert_ne!(first.digest, second.digest);
        assert_eq!(
            first.blobs.last().map(|blob| &blob.digest),
            Some(&first.record),
            "a record never stands without its members"
        );
    }

    #[test]
    fn what_appliers_remember_is_kept_and_makes_no_other_revision() {
        let mut applied = member("a", "1");
        applied.applied.configuration = Some("{}".into());
        let (with, without) = (Record::of(&[applied]).expect("small"), Record::of(&[member("a", "1")]).expect("small"));
        assert_eq!(with.digest, without.digest);
        assert_ne!(with.record, without.record);
    }

    #[test]
    fn a_member_too_large_to_be_kept_is_named() {
        let said = Record::of(&[member("huge", &"x".repeat(SIZE_LIMIT))]).expect_err("too large").to_string();
        assert!(said.contains("configmap/huge"), "{said}");
    }
}
