//! Owns image bytes by digest and image names by reference; never starts a container.
//!
//! One store for everything that makes images and everything that uses them: pulls, archives, images
//! built from files, and the unpacked layers containers are mounted from.
//!
//! ```text
//! <dir>/blobs/sha256/<hex>   manifests, configurations, compressed layers
//! <dir>/layers/<diff id>/    unpacked once, as overlayfs wants them; read-only by convention
//! <dir>/images.json          name → manifest, replaced as a whole
//! <dir>/staging/             unfinished work; emptied by the next to open the store while nobody is at work
//! <dir>/*.lock               flock(2): several processes may use one store
//! ```
//!
//! Every file but those in `staging` is either whole or absent: written aside, then renamed.

mod archive;
mod blobs;
mod build;
mod connect;
mod digest;
mod error;
mod image;
mod manifest;
mod pull;
mod reference;
mod settled;
mod store;
mod unpack;

pub use build::BuildFile;
pub use digest::Digest;
pub use error::{ImageError, PullError};
pub use image::{Healthcheck, Image, ImageConfig};
pub use pull::{Credentials, Progress};
pub use reference::Reference;
pub use store::{ImageStore, Options};
