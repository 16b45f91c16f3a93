//! The parts of the OCI image format (and Docker's, which it grew from) that we read and write.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::ImageError;

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub(crate) const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub(crate) const OCI_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
/// A layer that exists only unpacked, in `layers/`: made here, not yet asked for as a tar by anyone.
pub(crate) const LOCAL_LAYER: &str = "application/vnd.proa.layer.v1.dir";

/// Manifests and configurations larger than this are refused: real ones are a few kilobytes.
pub(crate) const JSON_LIMIT: u64 = 8 << 20;
/// Docker's own limit is 127.
const LAYER_LIMIT: usize = 512;

/// A pointer to bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    #[serde(default)]
    pub(crate) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Platform {
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default)]
    pub(crate) os: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) variant: Option<String>,
}

/// One image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    pub(crate) schema_version: u32,
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

/// One image for several machines.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Index {
    pub(crate) manifests: Vec<Descriptor>,
}

/// A manifest or an index, told apart by what it holds rather than by what it calls itself.
pub(crate) enum Document {
    Manifest(Manifest),
    Index(Index),
}

impl Document {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Document, ImageError> {
        let value: serde_json::Value = serde_json::from_slice(bytes)
            .map_err(|error| ImageError::corrupt(format!("the manifest is not JSON: {error}")))?;
        let wrong = |error: serde_json::Error| ImageError::corrupt(format!("the manifest cannot be read: {error}"));
        if value.get("manifests").is_some() {
            return Ok(Document::Index(serde_json::from_value(value).map_err(wrong)?));
        }
        if value.get("schemaVersion") == Some(&serde_json::json!(1)) {
            return Err(ImageError::corrupt("the manifest is of Docker's schema 1, which is no longer supported"));
        }
        let manifest: Manifest = serde_json::from_value(value).map_err(wrong)?;
        manifest.check()?;
        Ok(Document::Manifest(manifest))
    }
}

impl Manifest {
    pub(crate) fn check(&self) -> Result<(), ImageError> {
        if self.layers.len() > LAYER_LIMIT {
            return Err(ImageError::TooLarge(format!("the image has {} layers", self.layers.len())));
        }
        Ok(())
    }
}

impl Index {
    /// The manifest for this machine. An index that names no platform at all and has one entry is that entry.
    pub(crate) fn choose(&self) -> Option<&Descriptor> {
        let fits = |descriptor: &&Descriptor| {
            descriptor.platform.as_ref().is_some_and(|p| p.os == "linux" && p.architecture == ARCHITECTURE)
        };
        self.manifests.iter().find(fits).or_else(|| match self.manifests.as_slice() {
            [only] if only.platform.is_none() => Some(only),
            _ => None,
        })
    }

    /// For messages.
    pub(crate) fn platforms(&self) -> String {
        let mut names: Vec<String> = self
            .manifests
            .iter()
            .filter_map(|descriptor| descriptor.platform.as_ref())
            .filter(|platform| platform.os != "unknown")
            .map(|platform| format!("{}/{}", platform.os, platform.architecture))
            .collect();
        names.dedup();
        names.join(", ")
    }
}

/// This machine in OCI's words.
pub(crate) const ARCHITECTURE: &str = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };

/// The configuration blob, as far as we read it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct ConfigFile {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) created: Option<String>,
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default)]
    pub(crate) os: String,
    #[serde(default)]
    pub(crate) config: Option<crate::image::RawConfig>,
    #[serde(default)]
    pub(crate) rootfs: RootFs,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct RootFs {
    #[serde(default, rename = "type")]
    pub(crate) kind: String,
    #[serde(default)]
    pub(crate) diff_ids: Vec<Digest>,
}

impl ConfigFile {
    pub(crate) fn parse(bytes: &[u8], layers: usize) -> Result<ConfigFile, ImageError> {
        let config: ConfigFile = serde_json::from_slice(bytes)
            .map_err(|error| ImageError::corrupt(format!("the image configuration cannot be read: {error}")))?;
        if config.rootfs.diff_ids.len() != layers {
            return Err(ImageError::corrupt(format!(
                "the image has {layers} layers but its configuration names {}",
                config.rootfs.diff_ids.len()
            )));
        }
        Ok(config)
    }
}
