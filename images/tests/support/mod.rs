//! Images made of thin air, in every packing.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]

pub mod registry;

use std::io::Write;

use proa_images::Digest;
use serde_json::{Value, json};

/// A tar of files.
pub fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, body) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(body.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *body).unwrap();
    }
    builder.into_inner().unwrap()
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// An image: blobs by digest, and its manifest's digest.
pub struct Made {
    pub blobs: Vec<(Digest, Vec<u8>)>,
    pub manifest: Digest,
    pub config: Digest,
    pub layers: Vec<Digest>,
}

impl Made {
    pub fn new(layers: &[Vec<u8>]) -> Made {
        let mut blobs = Vec::new();
        let mut add = |bytes: Vec<u8>| {
            let digest = Digest::of(&bytes);
            blobs.push((digest.clone(), bytes));
            digest
        };
        let diff_ids: Vec<Digest> = layers.iter().map(|layer| Digest::of(layer)).collect();
        let config = json!({
            "architecture": "amd64", "os": "linux", "created": "2026-01-02T03:04:05Z",
            "config": { "Entrypoint": ["/run"], "Env": ["A=1"], "User": "web" },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config_size = config.to_string().len();
        let config = add(config.to_string().into_bytes());
        let mut descriptors = Vec::new();
        let mut names = Vec::new();
        for layer in layers {
            let packed = gzip(layer);
            let size = packed.len();
            let digest = add(packed);
            names.push(digest.clone());
            descriptors.push(json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest, "size": size,
            }));
        }
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": config_size },
            "layers": descriptors,
        });
        let manifest = add(manifest.to_string().into_bytes());
        Made { blobs, manifest, config, layers: names }
    }

    pub fn blob(&self, digest: &Digest) -> Vec<u8> {
        self.blobs.iter().find(|(name, _)| name == digest).unwrap().1.clone()
    }

    /// Replaces a blob's bytes under its old name.
    pub fn tamper(&mut self, digest: &Digest, bytes: Vec<u8>) {
        self.blobs.iter_mut().find(|(name, _)| name == digest).unwrap().1 = bytes;
    }

    pub fn descriptor(&self, name: Option<&str>) -> Value {
        let mut descriptor = json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": self.manifest,
            "size": self.blob(&self.manifest).len(), "platform": { "os": "linux", "architecture": "amd64" },
        });
        if let Some(name) = name {
            descriptor["annotations"] = json!({ "io.containerd.image.name": name });
        }
        descriptor
    }

    pub fn layout(&self, name: Option<&str>) -> Vec<u8> {
        let index = json!({ "schemaVersion": 2, "manifests": [self.descriptor(name)] }).to_string();
        let blobs: Vec<(String, &[u8])> =
            self.blobs.iter().map(|(d, bytes)| (format!("blobs/sha256/{}", d.hex()), bytes.as_slice())).collect();
        let mut files: Vec<(&str, &[u8])> = vec![("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)];
        files.extend(blobs.iter().map(|(name, bytes)| (name.as_str(), *bytes)));
        files.push(("index.json", index.as_bytes()));
        tar(&files)
    }

    /// As old `docker save` writes: plain layers in directories, equal ones as links.
    pub fn docker(&self, tags: &[&str], layers: &[Vec<u8>]) -> Vec<u8> {
        let config = format!("{}.json", self.config.hex());
        let names: Vec<String> = (0..layers.len()).map(|n| format!("{n:064}/layer.tar")).collect();
        let manifest = json!([{ "Config": config, "RepoTags": tags, "Layers": names }]).to_string();
        let config_bytes = self.blob(&self.config);
        let mut builder = tar::Builder::new(Vec::new());
        let mut add = |name: &str, body: &[u8], link: Option<&str>| {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o644);
            match link {
                None => {
                    header.set_size(body.len() as u64);
                    builder.append_data(&mut header, name, body).unwrap();
                }
                Some(link) => {
                    header.set_entry_type(tar::EntryType::Symlink);
                    header.set_size(0);
                    builder.append_link(&mut header, name, link).unwrap();
                }
            }
        };
        for (n, layer) in layers.iter().enumerate() {
            match layers[..n].iter().position(|earlier| earlier == layer) {
                Some(same) => add(&names[n], b"", Some(&format!("../{}", names[same]))),
                None => add(&names[n], layer, None),
            }
        }
        add(&config, &config_bytes, None);
        add("manifest.json", manifest.as_bytes(), None);
        builder.into_inner().unwrap()
    }
}
