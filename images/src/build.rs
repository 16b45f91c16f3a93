//! Images of files that are on this disk already: no tar, no compression, no second copy.
//!
//! Such a layer exists only unpacked. Its digest names what it is made of (paths, modes and the
//! identity of each source file), not a tar: there is none until somebody wants to push it, which is
//! refused by name until pushing exists.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use jiff::Timestamp;

use crate::digest::{Digest, Hasher};
use crate::error::ImageError;
use crate::image::{Image, ImageConfig};
use crate::manifest::{ARCHITECTURE, ConfigFile, Descriptor, LOCAL_LAYER, Manifest, OCI_CONFIG, OCI_MANIFEST, RootFs};
use crate::reference::Reference;
use crate::store::{ImageStore, set_mode};

/// One file of an image to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildFile {
    /// Absolute path in the image.
    pub path: PathBuf,
    /// File on this machine. It must not be changed in place afterwards (replacing it is fine).
    pub source: PathBuf,
    /// Permissions.
    pub mode: u32,
}

pub(crate) fn build(
    store: &ImageStore,
    reference: &str,
    files: &[BuildFile],
    config: ImageConfig,
) -> Result<Image, ImageError> {
    let reference = Reference::parse(reference)?;
    let (layer, size) = layer(store, files)?;
    // The time belongs to the image, not to this build: the same files make the same image.
    let config = ConfigFile {
        created: newest(files),
        architecture: ARCHITECTURE.to_owned(),
        os: "linux".to_owned(),
        config: Some(config.into()),
        rootfs: RootFs { kind: "layers".to_owned(), diff_ids: vec![layer.clone()] },
    };
    let describe = |media_type: &str, digest: Digest, size: u64| Descriptor {
        media_type: media_type.to_owned(),
        digest,
        size,
        platform: None,
        annotations: Default::default(),
    };
    let bytes = serde_json::to_vec(&config).map_err(|error| ImageError::corrupt(error.to_string()))?;
    let config = store.blobs().write(&bytes)?;
    let manifest = Manifest {
        schema_version: 2,
        media_type: OCI_MANIFEST.to_owned(),
        config: describe(OCI_CONFIG, config, bytes.len() as u64),
        layers: vec![describe(LOCAL_LAYER, layer, size)],
    };
    let bytes = serde_json::to_vec(&manifest).map_err(|error| ImageError::corrupt(error.to_string()))?;
    let manifest = store.blobs().write(&bytes)?;
    store.name(&[reference], &manifest)
}

fn newest(files: &[BuildFile]) -> Option<String> {
    let modified = files.iter().filter_map(|file| fs::metadata(&file.source).ok()).map(|found| found.mtime()).max()?;
    Some(Timestamp::from_second(modified).ok()?.to_string())
}

/// The layer of these files, made once. Returns its name and size.
fn layer(store: &ImageStore, files: &[BuildFile]) -> Result<(Digest, u64), ImageError> {
    let mut hasher = Hasher::default();
    let mut size = 0;
    for file in files {
        let found = fs::metadata(&file.source).map_err(ImageError::io(format!("reading {}", file.source.display())))?;
        size += found.len();
        let identity = format!(
            "{}\0{:o}\0{}:{}\0{}\0{}.{}\n",
            file.path.display(),
            file.mode,
            found.dev(),
            found.ino(),
            found.len(),
            found.mtime(),
            found.mtime_nsec()
        );
        hasher.update(identity.as_bytes());
    }
    let digest = hasher.finish();
    let target = store.layer_dir(&digest);
    if target.is_dir() {
        return Ok((digest, size));
    }
    let stage = store.stage()?;
    let root = stage.dir.join("layer");
    fs::create_dir(&root).map_err(ImageError::io("making a layer"))?;
    set_mode(&root, 0o755)?;
    for file in files {
        place(&root, file)?;
    }
    match fs::rename(&root, &target) {
        // Somebody else made the same layer meanwhile.
        Err(_) if target.is_dir() => {}
        result => result.map_err(ImageError::io("keeping a layer"))?,
    }
    Ok((digest, size))
}

fn place(root: &Path, file: &BuildFile) -> Result<(), ImageError> {
    let mut path = root.to_owned();
    let mut parts = file.path.components().filter(|part| *part != Component::RootDir).peekable();
    while let Some(part) = parts.next() {
        let Component::Normal(name) = part else {
            return Err(ImageError::InvalidName(format!("{} is not a path in an image", file.path.display())));
        };
        path.push(name);
        if parts.peek().is_some() && !path.is_dir() {
            fs::create_dir(&path).map_err(ImageError::io("making a layer"))?;
            set_mode(&path, 0o755)?;
        }
    }
    let failed = || ImageError::io(format!("putting {} into a layer", file.source.display()));
    let source = fs::metadata(&file.source).map_err(failed())?;
    // A hard link shares owner and mode with the source: only where they are right already.
    let fits = source.mode() & 0o7777 == file.mode && source.uid() == 0 && source.gid() == 0;
    if fits && fs::hard_link(&file.source, &path).is_ok() {
        return Ok(());
    }
    let from = File::open(&file.source).map_err(failed())?;
    let to = File::create(&path).map_err(failed())?;
    if rustix::fs::ioctl_ficlone(to.as_fd(), from.as_fd()).is_err() {
        // `copy` uses copy_file_range, which stays in the kernel.
        io::copy(&mut &from, &mut &to).map_err(failed())?;
    }
    set_mode(&path, file.mode)
}
