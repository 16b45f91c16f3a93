//! Pulling from registries (the OCI distribution protocol), blobs in parallel, each digested as it comes.

use std::io::Write;

use futures::{StreamExt, TryStreamExt};
use oci_client::client::ClientProtocol;
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference as RegistryReference, RegistryOperation};

use crate::connect::{self, chain};
use crate::digest::Digest;
use crate::error::{ImageError, PullError};
use crate::image::Image;
use crate::manifest::{
    ARCHITECTURE, ConfigFile, DOCKER_LIST, DOCKER_MANIFEST, Descriptor, Document, JSON_LIMIT, Manifest, OCI_INDEX,
    OCI_MANIFEST,
};
use crate::reference::Reference;
use crate::store::ImageStore;

/// Who pulls.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// User name.
    pub username: String,
    /// Password or token.
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credentials({}, …)", self.username)
    }
}

/// How far a pull is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// The image is known: so many layers, so many bytes to fetch (what is here already is not counted).
    Begin {
        /// All layers.
        layers: usize,
        /// Bytes to fetch.
        bytes: u64,
    },
    /// So many more bytes have come.
    Received {
        /// Since the last word.
        bytes: u64,
    },
    /// A blob is here, and it is what it should be.
    Finished {
        /// Which.
        digest: Digest,
    },
}

/// Blobs of one image fetched at a time.
const PARALLEL: usize = 4;

pub(crate) async fn pull(
    store: &ImageStore,
    name: &str,
    auth: Option<Credentials>,
    progress: &(dyn Fn(Progress) + Send + Sync),
) -> Result<Image, PullError> {
    let reference = Reference::parse(name).map_err(|error| match error {
        ImageError::InvalidName(message) => PullError::InvalidName(message),
        other => other.into(),
    })?;
    let auth = match auth {
        Some(Credentials { username, password }) => RegistryAuth::Basic(username, password),
        None => RegistryAuth::Anonymous,
    };
    let session = Session::open(store, reference, auth).await?;
    let (bytes, manifest) = session.manifest().await?;
    session.blobs(&manifest, progress).await?;
    let config = store.blobs().read_json(&manifest.config.digest)?;
    ConfigFile::parse(&config, manifest.layers.len()).map_err(|error| session.corrupt(error.to_string()))?;
    let digest = store.blobs().write(&bytes)?;
    Ok(store.name(std::slice::from_ref(&session.reference), &digest)?)
}

struct Session<'a> {
    store: &'a ImageStore,
    client: Client,
    reference: Reference,
    auth: RegistryAuth,
}

impl<'a> Session<'a> {
    /// Reaches the registry and gets what it wants to see with every request: usually a token. Plain HTTP, where it is
    /// allowed, is what remains when there is no TLS.
    async fn open(store: &'a ImageStore, reference: Reference, auth: RegistryAuth) -> Result<Session<'a>, PullError> {
        let client = connect::client(ClientProtocol::Https, store.options(), &reference)?;
        let mut session = Session { store, client, reference, auth };
        let remote = session.remote(&session.reference)?;
        let mut answer = session.client.auth(&remote, &session.auth, RegistryOperation::Pull).await;
        if answer.as_ref().is_err_and(connect::has_no_tls)
            && connect::may_be_plain(store.options(), session.reference.registry())
        {
            session.client = connect::client(ClientProtocol::Http, store.options(), &session.reference)?;
            answer = session.client.auth(&remote, &session.auth, RegistryOperation::Pull).await;
        }
        answer.map_err(|error| session.error(error))?;
        Ok(session)
    }

    /// The image for this machine.
    async fn manifest(&self) -> Result<(Vec<u8>, Manifest), PullError> {
        let mut reference = self.reference.clone();
        for _ in 0..3 {
            let bytes = self.fetch_manifest(&reference).await?;
            match Document::parse(&bytes).map_err(|error| self.corrupt(error.to_string()))? {
                Document::Manifest(manifest) => return Ok((bytes, manifest)),
                Document::Index(index) => {
                    let chosen = index.choose().ok_or_else(|| PullError::NotFound {
                        reference: self.reference.familiar(),
                        message: format!(
                            "no image for linux/{ARCHITECTURE}, only for {}",
                            match index.platforms() {
                                names if names.is_empty() => "unknown platforms".to_owned(),
                                names => names,
                            }
                        ),
                    })?;
                    reference = reference.with_digest(&chosen.digest);
                }
            }
        }
        Err(self.corrupt("indexes within indexes within indexes".to_owned()))
    }

    async fn fetch_manifest(&self, reference: &Reference) -> Result<Vec<u8>, PullError> {
        let accepted = [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST];
        let (bytes, _) = self
            .client
            .pull_manifest_raw(&self.remote(reference)?, &self.auth, &accepted)
            .await
            .map_err(|error| self.error(error))?;
        if bytes.len() as u64 > JSON_LIMIT {
            return Err(self.corrupt(format!("the manifest is larger than {JSON_LIMIT} bytes")));
        }
        if let Some(wanted) = reference.digest() {
            let found = Digest::of(&bytes);
            if found != *wanted {
                return Err(self.corrupt(format!("digest mismatch: the manifest should be {wanted}, but is {found}")));
            }
        }
        Ok(bytes.to_vec())
    }

    async fn blobs(&self, manifest: &Manifest, progress: &(dyn Fn(Progress) + Send + Sync)) -> Result<(), PullError> {
        let mut wanted: Vec<&Descriptor> = std::iter::once(&manifest.config).chain(&manifest.layers).collect();
        wanted.sort_by(|a, b| a.digest.cmp(&b.digest));
        wanted.dedup_by(|a, b| a.digest == b.digest);
        wanted.retain(|blob| !self.store.blobs().has(&blob.digest));
        let bytes = wanted.iter().map(|blob| blob.size).sum();
        progress(Progress::Begin { layers: manifest.layers.len(), bytes });
        futures::stream::iter(wanted)
            .map(|blob| self.blob(blob, progress))
            .buffer_unordered(PARALLEL)
            .try_collect::<()>()
            .await
    }

    async fn blob(&self, blob: &Descriptor, progress: &(dyn Fn(Progress) + Send + Sync)) -> Result<(), PullError> {
        let turn = self.store.turn(&blob.digest);
        let _turn = turn.lock().await;
        if !self.store.blobs().has(&blob.digest) {
            self.fetch_blob(blob, progress).await?;
        }
        progress(Progress::Finished { digest: blob.digest.clone() });
        Ok(())
    }

    async fn fetch_blob(
        &self,
        blob: &Descriptor,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<(), PullError> {
        let descriptor = oci_client::manifest::OciDescriptor {
            media_type: blob.media_type.clone(),
            digest: blob.digest.to_string(),
            size: i64::try_from(blob.size).unwrap_or(i64::MAX),
            ..Default::default()
        };
        let remote = self.remote(&self.reference)?;
        let response = self.client.pull_blob_stream(&remote, &descriptor).await;
        let mut stream = response.map_err(|error| self.error(error))?.stream;
        let stage = self.store.stage()?;
        let mut incoming = stage.incoming()?;
        while let Some(piece) = stream.next().await {
            let piece = piece.map_err(|error| self.broken_off(blob, &error))?;
            if incoming.written() + piece.len() as u64 > blob.size {
                return Err(
                    self.corrupt(format!("blob {} is longer than the {} bytes it should have", blob.digest, blob.size))
                );
            }
            // A piece is some kilobytes into the page cache: not worth a thread's hop.
            incoming.write_all(&piece).map_err(|error| PullError::from(ImageError::io("storing a layer")(error)))?;
            progress(Progress::Received { bytes: piece.len() as u64 });
        }
        if incoming.written() < blob.size {
            return Err(PullError::Unreachable {
                reference: self.reference.familiar(),
                message: format!("blob {} broke off after {} of {} bytes", blob.digest, incoming.written(), blob.size),
            });
        }
        self.store.blobs().keep(incoming, Some(&blob.digest)).map_err(|error| match error {
            ImageError::Corrupt(message) => self.corrupt(message),
            other => other.into(),
        })?;
        Ok(())
    }

    /// oci-client checks digests too, and says so in the middle of a stream.
    fn broken_off(&self, blob: &Descriptor, error: &std::io::Error) -> PullError {
        let text = error.to_string();
        if text.to_lowercase().contains("digest") {
            return self.corrupt(format!("blob {}: digest mismatch: {text}", blob.digest));
        }
        PullError::Unreachable {
            reference: self.reference.familiar(),
            message: format!("blob {} broke off: {text}", blob.digest),
        }
    }

    fn remote(&self, reference: &Reference) -> Result<RegistryReference, PullError> {
        // With both, the digest is what counts.
        let text = match reference.digest() {
            Some(digest) => format!("{}@{digest}", reference.name()),
            None => reference.to_string(),
        };
        text.parse().map_err(|_| PullError::InvalidName(text))
    }

    fn corrupt(&self, message: String) -> PullError {
        PullError::Corrupt { reference: self.reference.familiar(), message }
    }

    fn error(&self, error: OciDistributionError) -> PullError {
        let reference = self.reference.familiar();
        if let Some(why) = connect::distrust(&error) {
            let dir = self.store.options().authorities.join(self.reference.registry());
            let message = format!("{why} (looked for in the system's certificates and in {}/*.crt)", dir.display());
            return PullError::Untrusted { reference, message };
        }
        let message = chain(&error);
        match error {
            OciDistributionError::UnauthorizedError { .. } | OciDistributionError::AuthenticationFailure(_) => {
                PullError::Unauthorized { reference, message }
            }
            OciDistributionError::ImageManifestNotFoundError(_) => PullError::NotFound { reference, message },
            OciDistributionError::RegistryError { ref envelope, .. } => {
                let has = |codes: &[OciErrorCode]| envelope.errors.iter().any(|error| codes.contains(&error.code));
                if has(&[OciErrorCode::Unauthorized, OciErrorCode::Denied]) {
                    PullError::Unauthorized { reference, message }
                } else if has(&[
                    OciErrorCode::ManifestUnknown,
                    OciErrorCode::NameUnknown,
                    OciErrorCode::BlobUnknown,
                    OciErrorCode::NotFound,
                ]) {
                    PullError::NotFound { reference, message }
                } else {
                    PullError::Unreachable { reference, message }
                }
            }
            OciDistributionError::ServerError { code, .. } => match code {
                401 | 403 => PullError::Unauthorized { reference, message },
                404 => PullError::NotFound { reference, message },
                _ => PullError::Unreachable { reference, message },
            },
            OciDistributionError::DigestError(_)
            | OciDistributionError::JsonError(_)
            | OciDistributionError::ManifestEncodingError(_)
            | OciDistributionError::ManifestParsingError(_)
            | OciDistributionError::VersionedParsingError(_)
            | OciDistributionError::UnsupportedMediaTypeError(_)
            | OciDistributionError::UnsupportedSchemaVersionError(_)
            | OciDistributionError::SpecViolationError(_) => PullError::Corrupt { reference, message },
            _ => PullError::Unreachable { reference, message },
        }
    }
}
