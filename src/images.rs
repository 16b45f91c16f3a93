//! `proa image …`: the content store by hand.

use std::fs::File;

use anyhow::Context;
use proa_images::{Image, ImageStore, Options};

use crate::cli;
use crate::paths::DataDir;

pub(crate) async fn run(command: cli::Image) -> anyhow::Result<()> {
    match command {
        cli::Image::Load { file, data } => {
            let archive = File::open(&file).with_context(|| format!("cannot open {}", file.display()))?;
            for reference in open(&data, Options::default())?
                .load(archive)
                .with_context(|| format!("cannot load {}", file.display()))?
            {
                println!("Loaded image: {reference}");
            }
            Ok(())
        }
        cli::Image::Ls { data } => list(&open(&data, Options::default())?),
        cli::Image::Rm { references, data } => {
            let images = open(&data, Options::default())?;
            // All its layers: one layer alone may be the base of many images.
            let containers = proa_runtime::layers_in_use(&DataDir::create(&data.data_dir)?.runtime());
            let used = |image: &Image| containers.contains(&images.layer_paths(image));
            let in_use = images.list().into_iter().filter(used).map(|image| image.id).collect();
            for reference in references {
                images.remove(&reference, &in_use).with_context(|| format!("cannot remove {reference}"))?;
                println!("Removed: {reference}");
            }
            Ok(())
        }
        cli::Image::Pull { reference, registries, data } => {
            let images = open(&data, registries.into())?;
            let image =
                images.pull(&reference, None, |_| {}).await.with_context(|| format!("cannot pull {reference}"))?;
            println!("{}", image.id);
            Ok(())
        }
    }
}

fn open(data: &cli::DataDir, options: Options) -> anyhow::Result<ImageStore> {
    let directory = DataDir::create(&data.data_dir)?.images();
    ImageStore::open(&directory, options).with_context(|| format!("cannot open the images in {}", directory.display()))
}

fn list(images: &ImageStore) -> anyhow::Result<()> {
    println!("{:<50} {:<14} {:>10}", "REFERENCE", "ID", "SIZE");
    for image in images.list() {
        let id = image.id.to_string();
        let id = id.trim_start_matches("sha256:");
        for reference in &image.references {
            println!(
                "{reference:<50} {:<14} {:>10}",
                &id[..12.min(id.len())],
                indicatif::HumanBytes(image.size).to_string()
            );
        }
    }
    Ok(())
}
