//! The sample images `example/echo:v1`, `:v2` and `:broken`, made from this very binary, so that the quickstart needs no
//! registry.

use std::path::PathBuf;

use anyhow::Context;
use proa_images::{BuildFile, ImageConfig, ImageStore};

/// Where the binary lies in the sample images.
const PROGRAM: &str = "/proa";
const VERSIONS: [&str; 3] = ["v1", "v2", "broken"];

/// Makes the sample images that this binary has not made yet.
///
/// # Errors
/// When the image store cannot be written.
pub(crate) fn ensure(images: &ImageStore) -> anyhow::Result<()> {
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    for version in VERSIONS {
        let config = ImageConfig {
            entrypoint: vec![PROGRAM.into(), "echo".into()],
            env: vec![("ECHO_VERSION".into(), version.into()), ("PATH".into(), "/".into())],
            exposed_ports: vec!["8080/tcp".into()],
            ..ImageConfig::default()
        };
        let files = [BuildFile { path: PathBuf::from(PROGRAM), source: program.clone(), mode: 0o755 }];
        let reference = format!("example/echo:{version}");
        images
            .build_from_files(&reference, &files, config)
            .with_context(|| format!("cannot make the sample image {reference}"))?;
    }
    Ok(())
}
