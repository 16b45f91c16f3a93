//! Archives: OCI layouts and what `docker save` writes, old and new.
//!
//! Everything is first set aside under names of our own; only what an index or manifest asks for is
//! looked at; only when all images of the archive are whole is anything kept.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use tar::{Archive, EntryType};

use crate::blobs::{Stage, read_small};
use crate::digest::Digest;
use crate::error::ImageError;
use crate::manifest::{
    ConfigFile, Descriptor, Document, Manifest, OCI_CONFIG, OCI_LAYER, OCI_LAYER_GZIP, OCI_LAYER_ZSTD, OCI_MANIFEST,
};
use crate::reference::Reference;
use crate::store::ImageStore;
use crate::unpack::decompress;

const SIZE_LIMIT: u64 = 64 << 30;
const ENTRY_LIMIT: usize = 100_000;

/// One file of the archive, set aside.
#[derive(Debug, Clone)]
struct Aside {
    path: PathBuf,
    digest: Digest,
    size: u64,
}

/// Names in the archive.
#[derive(Debug, Default)]
struct Contents {
    files: HashMap<PathBuf, Aside>,
    links: HashMap<PathBuf, PathBuf>,
}

/// An image found in the archive: what to keep, and its names.
struct Found {
    blobs: Vec<Aside>,
    manifest: Vec<u8>,
    names: Vec<Reference>,
}

pub(crate) fn load(store: &ImageStore, reader: impl Read) -> Result<Vec<String>, ImageError> {
    let stage = store.stage()?;
    let contents = set_aside(reader, &stage)?;
    let found = if contents.get("manifest.json").is_some() {
        docker(&contents)?
    } else if contents.get("index.json").is_some() {
        layout(&contents)?
    } else {
        return Err(ImageError::corrupt(
            "not an image archive: it holds neither manifest.json (docker save) nor index.json (OCI layout)",
        ));
    };
    if found.is_empty() {
        return Err(ImageError::corrupt("the archive holds no image"));
    }
    let mut names = Vec::new();
    for image in found {
        for blob in &image.blobs {
            let kept = store.blobs().path(&blob.digest);
            // One blob may serve several images: the first has moved it.
            if !kept.is_file() {
                let file = File::open(&blob.path).map_err(ImageError::io("keeping a blob"))?;
                file.sync_data().map_err(ImageError::io("keeping a blob"))?;
                fs::rename(&blob.path, kept).map_err(ImageError::io("keeping a blob"))?;
            }
        }
        let manifest = store.blobs().write(&image.manifest)?;
        let image = store.name(&image.names, &manifest)?;
        names.extend(if image.references.is_empty() { vec![image.id.to_string()] } else { image.references });
    }
    names.sort();
    names.dedup();
    Ok(names)
}

fn set_aside(reader: impl Read, stage: &Stage) -> Result<Contents, ImageError> {
    let broken = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => ImageError::corrupt("the archive is cut off"),
        _ => ImageError::corrupt(format!("not a readable archive: {error}")),
    };
    let mut archive = Archive::new(decompress(reader).map_err(broken)?);
    let mut contents = Contents::default();
    let mut total = 0;
    for (count, entry) in archive.entries().map_err(broken)?.enumerate() {
        let mut entry = entry.map_err(broken)?;
        if count >= ENTRY_LIMIT {
            return Err(ImageError::TooLarge(format!("the archive holds more than {ENTRY_LIMIT} files")));
        }
        let Some(name) = normal(&entry.path().map_err(broken)?) else { continue };
        match entry.header().entry_type() {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                total += entry.size();
                if total > SIZE_LIMIT {
                    return Err(ImageError::TooLarge(format!("the archive holds more than {SIZE_LIMIT} bytes")));
                }
                let mut incoming = stage.incoming_named(&count.to_string())?;
                let copied = copy(&mut entry, &mut incoming)?;
                if copied != entry.size() {
                    return Err(ImageError::corrupt("the archive is cut off"));
                }
                let (path, digest, size) = incoming.set_aside();
                contents.files.insert(name, Aside { path, digest, size });
            }
            EntryType::Symlink | EntryType::Link => {
                let hard = entry.header().entry_type() == EntryType::Link;
                if let Some(target) = entry.link_name().map_err(broken)? {
                    let base = if hard { Path::new("") } else { name.parent().unwrap_or(Path::new("")) };
                    if let Some(target) = normal(&base.join(target)) {
                        contents.links.insert(name, target);
                    }
                }
            }
            _ => {}
        }
    }
    Ok(contents)
}

/// Reading and writing fail for different reasons.
fn copy(from: &mut impl Read, to: &mut impl io::Write) -> Result<u64, ImageError> {
    let mut buffer = vec![0; 128 << 10];
    let mut copied = 0;
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(copied),
            Ok(read) => {
                to.write_all(&buffer[..read]).map_err(ImageError::io("storing an archive"))?;
                copied += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(ImageError::corrupt(format!("the archive is cut off or damaged: {error}"))),
        }
    }
}

/// A path without `.`, `..` and a leading slash; `None` when it leads out.
fn normal(path: &Path) -> Option<PathBuf> {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => normal.push(part),
            Component::ParentDir if !normal.pop() => return None,
            _ => {}
        }
    }
    Some(normal)
}

impl Contents {
    fn get(&self, name: impl AsRef<Path>) -> Option<&Aside> {
        let mut name = normal(name.as_ref())?;
        // Old archives link equal layers to one another; a circle is nobody's layer.
        for _ in 0..16 {
            match self.files.get(&name) {
                Some(file) => return Some(file),
                None => name = self.links.get(&name)?.clone(),
            }
        }
        None
    }

    fn need(&self, name: &str) -> Result<&Aside, ImageError> {
        self.get(name).ok_or_else(|| ImageError::corrupt(format!("the archive lacks {name}")))
    }

    fn json(&self, name: &str) -> Result<Vec<u8>, ImageError> {
        read_aside(self.need(name)?, name)
    }

    /// A blob of a layout, which must be what its name says.
    fn blob(&self, descriptor: &Descriptor) -> Result<&Aside, ImageError> {
        let name = format!("blobs/sha256/{}", descriptor.digest.hex());
        let blob = self.need(&name)?;
        if blob.digest != descriptor.digest {
            return Err(ImageError::corrupt(format!("digest mismatch: {name} is {} in truth", blob.digest)));
        }
        Ok(blob)
    }
}

fn read_aside(aside: &Aside, what: &str) -> Result<Vec<u8>, ImageError> {
    let file = File::open(&aside.path).map_err(ImageError::io(format!("reading {what}")))?;
    read_small(file, what)
}

/// An entry of `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

fn docker(contents: &Contents) -> Result<Vec<Found>, ImageError> {
    let images: Vec<DockerImage> = serde_json::from_slice(&contents.json("manifest.json")?)
        .map_err(|error| ImageError::corrupt(format!("manifest.json cannot be read: {error}")))?;
    images.into_iter().map(|image| docker_image(contents, image)).collect()
}

fn docker_image(contents: &Contents, image: DockerImage) -> Result<Found, ImageError> {
    let config = contents.need(&image.config)?;
    // The name of the configuration is its digest; a name that is no digest promises nothing.
    let promised =
        Path::new(&image.config).file_stem().and_then(|stem| Digest::parse(&format!("sha256:{}", stem.to_str()?)));
    if promised.is_some_and(|promised| promised != config.digest) {
        return Err(ImageError::corrupt(format!("digest mismatch: {} is {} in truth", image.config, config.digest)));
    }
    ConfigFile::parse(&read_aside(config, &image.config)?, image.layers.len())?;
    let mut blobs = vec![config.clone()];
    let mut layers = Vec::new();
    for name in &image.layers {
        let layer = contents.need(name)?;
        layers.push(describe(layer, media_type(layer)?));
        blobs.push(layer.clone());
    }
    let manifest = Manifest {
        schema_version: 2,
        media_type: OCI_MANIFEST.to_owned(),
        config: describe(config, OCI_CONFIG),
        layers,
    };
    manifest.check()?;
    let names =
        image.repo_tags.unwrap_or_default().iter().map(|name| Reference::parse(name)).collect::<Result<_, _>>()?;
    let manifest = serde_json::to_vec(&manifest).map_err(|error| ImageError::corrupt(error.to_string()))?;
    Ok(Found { blobs, manifest, names })
}

fn describe(blob: &Aside, media_type: &str) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        digest: blob.digest.clone(),
        size: blob.size,
        platform: None,
        annotations: Default::default(),
    }
}

fn media_type(layer: &Aside) -> Result<&'static str, ImageError> {
    let mut head = Vec::new();
    let file = File::open(&layer.path).map_err(ImageError::io("reading a layer"))?;
    file.take(4).read_to_end(&mut head).map_err(ImageError::io("reading a layer"))?;
    Ok(match head.as_slice() {
        [0x1f, 0x8b, ..] => OCI_LAYER_GZIP,
        [0x28, 0xb5, 0x2f, 0xfd] => OCI_LAYER_ZSTD,
        _ => OCI_LAYER,
    })
}

fn layout(contents: &Contents) -> Result<Vec<Found>, ImageError> {
    let Document::Index(index) = Document::parse(&contents.json("index.json")?)? else {
        return Err(ImageError::corrupt("index.json is not an index"));
    };
    let mut found = Vec::new();
    for descriptor in &index.manifests {
        let names = layout_names(descriptor)?;
        let Some((bytes, manifest)) = layout_manifest(contents, descriptor, 0)? else { continue };
        let config = contents.blob(&manifest.config)?;
        ConfigFile::parse(&read_aside(config, "the image configuration")?, manifest.layers.len())?;
        let mut blobs = vec![config.clone()];
        for layer in &manifest.layers {
            blobs.push(contents.blob(layer)?.clone());
        }
        found.push(Found { blobs, manifest: bytes, names });
    }
    Ok(found)
}

/// The manifest for this machine: `None` where an index offers only others (attestations, say).
fn layout_manifest(
    contents: &Contents,
    descriptor: &Descriptor,
    depth: usize,
) -> Result<Option<(Vec<u8>, Manifest)>, ImageError> {
    let bytes = read_aside(contents.blob(descriptor)?, "a manifest")?;
    match Document::parse(&bytes)? {
        Document::Manifest(manifest) => Ok(Some((bytes, manifest))),
        Document::Index(_) if depth > 3 => Err(ImageError::corrupt("indexes within indexes within indexes")),
        Document::Index(index) => {
            index.choose().map_or(Ok(None), |chosen| layout_manifest(contents, chosen, depth + 1))
        }
    }
}

/// containerd and Docker write the full name; others write a tag or a full name into the OCI annotation.
fn layout_names(descriptor: &Descriptor) -> Result<Vec<Reference>, ImageError> {
    if let Some(name) = descriptor.annotations.get("io.containerd.image.name") {
        return Ok(vec![Reference::parse(name)?]);
    }
    match descriptor.annotations.get("org.opencontainers.image.ref.name") {
        Some(name) if name.contains(['/', ':']) => Ok(vec![Reference::parse(name)?]),
        // A tag alone names no image.
        _ => Ok(Vec::new()),
    }
}
