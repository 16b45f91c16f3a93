//! Encryption at rest: what the store holds of the configured resources is ciphertext, in Kubernetes' own envelopes
//! (`k8s:enc:<provider>:v1:<key>:…`, "Encrypting Confidential Data at Rest").
//!
//! Owns the keys and the two steps between an object's bytes and the store's. Written is with the first provider of a
//! resource, read with any; a key is so changed without a stop: added behind, then put first, and removed once
//! everything was written again (a write that changes nothing counts when what is stored is stale). Never caches and
//! never logs a plaintext.

mod config;
mod log;
mod providers;

use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;

pub use config::ConfigError;
use config::Rules;
pub use log::EncryptedLog;

/// What every envelope starts with: no JSON and no protobuf of Kubernetes does.
pub const ENVELOPE: &[u8] = b"k8s:enc:";

/// The keys in force. They can be exchanged while everything runs.
#[derive(Debug)]
pub struct Encryption {
    rules: ArcSwap<Rules>,
}

/// Bytes of the store that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// No provider of the resource knows the envelope.
    #[error("no matching prefix found")]
    NoProvider,
    /// The key is not the one it was written with, or the bytes were changed.
    #[error("{0}")]
    Damaged(&'static str),
}

/// What was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// The plaintext.
    pub bytes: Bytes,
    /// It was not written as it would be now: the next write has to store it again, even if it changes nothing.
    pub stale: bool,
}

impl Encryption {
    /// Reads an `EncryptionConfiguration` (apiserver.config.k8s.io/v1).
    ///
    /// # Errors
    /// Says where the file is wrong, or what of it is not supported here.
    pub fn parse(file: &[u8]) -> Result<Encryption, ConfigError> {
        Ok(Encryption { rules: ArcSwap::from_pointee(Rules::parse(file)?) })
    }

    /// Takes up another configuration: what is written from now on follows it.
    ///
    /// # Errors
    /// As [`Encryption::parse`]; the old one stays in force then.
    pub fn replace(&self, file: &[u8]) -> Result<(), ConfigError> {
        self.rules.store(Arc::new(Rules::parse(file)?));
        Ok(())
    }

    /// The bytes to be stored. `resource` is the stored resource (`secrets`, `deployments.apps`); `path` is where the store
    /// keeps it: who moves a ciphertext to another key makes it unreadable, where the provider can bind it (AES-GCM).
    pub fn seal(&self, resource: &str, path: &str, plain: Bytes) -> Bytes {
        match self.rules.load().providers(resource).first() {
            Some(provider) => provider.seal(path, plain),
            None => plain,
        }
    }

    /// The plaintext of what is stored.
    ///
    /// # Errors
    /// When no key of the configuration opens it.
    pub fn open(&self, resource: &str, path: &str, stored: &Bytes) -> Result<Opened, OpenError> {
        let rules = self.rules.load();
        let providers = rules.providers(resource);
        if providers.is_empty() && !stored.starts_with(ENVELOPE) {
            return Ok(Opened { bytes: stored.clone(), stale: false });
        }
        let mut failure = OpenError::NoProvider;
        for (at, provider) in providers.iter().enumerate() {
            match provider.open(path, stored) {
                Some(Ok(bytes)) => return Ok(Opened { bytes, stale: at > 0 }),
                // Two keys of one name follow each other where a name was used twice: the next may be the one.
                Some(Err(why)) => failure = OpenError::Damaged(why),
                None => {}
            }
        }
        Err(failure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn configuration(providers: &str) -> Encryption {
        Encryption::parse(file(providers).as_bytes()).unwrap()
    }

    fn file(providers: &str) -> String {
        format!(
            "kind: EncryptionConfiguration\napiVersion: apiserver.config.k8s.io/v1\nresources:\n- resources: [secrets]\n  \
             providers: [{providers}]\n"
        )
    }

    /// A provider with one key of 32 bytes, each of them `byte`.
    fn keyed(provider: &str, name: &str, byte: u8) -> String {
        use base64::Engine;
        let secret = base64::engine::general_purpose::STANDARD.encode([byte; 32]);
        format!("{{{provider}: {{keys: [{{name: {name}, secret: {secret}}}]}}}}")
    }

    const KEY: &str = "/registry/secrets/default/a";

    #[test]
    fn what_is_written_is_an_envelope_of_the_first_provider_and_reads_back() {
        for provider in ["aescbc", "aesgcm", "secretbox"] {
            let encryption = configuration(&format!("{}, {{identity: {{}}}}", keyed(provider, "key1", 7)));
            let plain = Bytes::from_static(b"{\"a\":1}");
            let sealed = encryption.seal("secrets", KEY, plain.clone());
            assert!(sealed.starts_with(format!("k8s:enc:{provider}:v1:key1:").as_bytes()), "{sealed:?}");
            assert_ne!(sealed, encryption.seal("secrets", KEY, plain.clone()), "{provider}: a nonce is used once");
            let opened = encryption.open("secrets", KEY, &sealed).unwrap();
            assert_eq!(opened, Opened { bytes: plain.clone(), stale: false });
            let before = encryption.open("secrets", KEY, &plain).unwrap();
            assert_eq!(
                before,
                Opened { bytes: plain.clone(), stale: true },
                "what was there before is read and is stale"
            );
            assert_eq!(encryption.seal("configmaps", KEY, plain.clone()), plain, "no other resource is encrypted");
        }
    }

    #[test]
    fn keys_are_rotated_without_anything_becoming_unreadable() {
        let plain = Bytes::from_static(b"text");
        let old = configuration(&keyed("aescbc", "old", 1));
        let sealed = old.seal("secrets", KEY, plain.clone());
        let both = format!("{}, {}", keyed("secretbox", "new", 2), keyed("aescbc", "old", 1));
        old.replace(file(&both).as_bytes()).unwrap();
        let stale = old.open("secrets", KEY, &sealed).unwrap();
        assert_eq!((stale.bytes, stale.stale), (plain.clone(), true));
        let again = old.seal("secrets", KEY, plain.clone());
        assert!(again.starts_with(b"k8s:enc:secretbox:v1:new:"));
        old.replace(file(&keyed("secretbox", "new", 2)).as_bytes()).unwrap();
        assert_eq!(old.open("secrets", KEY, &again).unwrap().bytes, plain);
        assert_eq!(old.open("secrets", KEY, &sealed), Err(OpenError::NoProvider));
        assert!(old.replace(b"nonsense").is_err());
        assert_eq!(old.open("secrets", KEY, &again).unwrap().bytes, plain, "a bad file changes nothing");
    }

    #[test]
    fn a_ciphertext_moved_to_another_key_does_not_open() {
        let encryption = configuration(&keyed("aesgcm", "a", 3));
        let sealed = encryption.seal("secrets", KEY, Bytes::from_static(b"x"));
        assert!(matches!(encryption.open("secrets", "/registry/secrets/b/a", &sealed), Err(OpenError::Damaged(_))));
    }

    /// Made with the Python package `cryptography` (and Salsa20 written out by its specification), the keys being 32 bytes
    /// of 0x07.
    #[test]
    fn envelopes_of_other_implementations_are_read() {
        use base64::Engine;
        let text = |base64: &str| base64::engine::general_purpose::STANDARD.decode(base64).unwrap();
        for (provider, body) in FOREIGN {
            let encryption = configuration(&keyed(provider, "key1", 7));
            let mut stored = format!("k8s:enc:{provider}:v1:key1:").into_bytes();
            stored.extend(text(body));
            let opened = encryption.open("secrets", KEY, &stored.into()).unwrap();
            assert_eq!(opened.bytes, "{\"kind\":\"Secret\",\"data\":{\"a\":\"Yg==\"}}", "{provider}");
        }
    }

    const FOREIGN: [(&str, &str); 3] = [
        ("aescbc", "AAECAwQFBgcICQoLDA0OD2iI8H6usr1OJtfwCC1O5fgGWI155HYOU3UbEqOYtHNY9lMi4wK0buMer74s9teBuQ=="),
        ("aesgcm", "AAECAwQFBgcICQoLY6OCGXNt+3NV4YD/kD0Y2M0e0u9sA1ULbewCmLT1NGLjUmSf6oDlJkBObIfVnrcfVxbpMRs="),
        (
            "secretbox",
            "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXFsBkAiTY+5fr56BQenOjBeE8giblEUD/x8MmaEOzNbXZ1jaWRo5egKorarDeQNB6vQcFfug=",
        ),
    ];

    proptest! {
        #[test]
        fn whatever_is_sealed_opens_and_nothing_else_does(plain in prop::collection::vec(any::<u8>(), 0..200), flip in any::<prop::sample::Index>()) {
            let plain = Bytes::from(plain);
            for provider in ["aesgcm", "secretbox", "aescbc"] {
                let encryption = configuration(&keyed(provider, "k", 9));
                let sealed = encryption.seal("secrets", KEY, plain.clone());
                prop_assert_eq!(&encryption.open("secrets", KEY, &sealed).unwrap().bytes, &plain);
                let mut changed = sealed.to_vec();
                let at = flip.index(changed.len());
                changed[at] ^= 1;
                let opened = encryption.open("secrets", KEY, &changed.into());
                // CBC has no authentication, and identity is not configured: all that can be asked of it is no panic.
                prop_assert!(provider == "aescbc" || opened.is_err());
            }
        }
    }
}
