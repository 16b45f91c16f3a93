//! The ciphers, each with Kubernetes' layout of nonce and ciphertext. Pure, but for the nonces.

use aes::cipher::block_padding::Pkcs7;
use aes::cipher::{BlockModeDecrypt, BlockModeEncrypt, KeyIvInit, StreamCipher};
use bytes::Bytes;
use poly1305::Poly1305;
use poly1305::universal_hash::KeyInit;
use ring::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use salsa20::XSalsa20;

use super::ENVELOPE;

/// The bytes of a block of AES, and of its initialization vector.
const BLOCK: usize = 16;
const SECRETBOX_NONCE: usize = 24;
const TAG: usize = 16;

/// One key of one provider, or none.
pub(super) enum Provider {
    /// As it is.
    Identity,
    /// With a key.
    Keyed {
        /// `k8s:enc:<provider>:v1:<key>:`.
        prefix: Vec<u8>,
        cipher: Cipher,
    },
}

/// A cipher with its key.
pub(super) enum Cipher {
    /// AES in CBC mode with PKCS #7 padding: the vector, then the ciphertext.
    Cbc(CbcKey),
    /// AES in Galois/Counter mode: the nonce, the ciphertext, the tag. Bound to the store's key.
    Gcm(Box<LessSafeKey>),
    /// NaCl's secretbox (XSalsa20 and Poly1305): the nonce, the tag, the ciphertext.
    Secretbox([u8; 32]),
}

/// The three lengths of AES keys.
pub(super) enum CbcKey {
    Aes128([u8; 16]),
    Aes192([u8; 24]),
    Aes256([u8; 32]),
}

impl std::fmt::Debug for Provider {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Provider::Identity => f.write_str("identity"),
            Provider::Keyed { prefix, .. } => f.write_str(&String::from_utf8_lossy(prefix)),
        }
    }
}

impl Cipher {
    /// AES-CBC; `None` when AES has no keys of that length.
    pub(super) fn cbc(key: &[u8]) -> Option<Cipher> {
        let key = match key.len() {
            16 => CbcKey::Aes128(key.try_into().ok()?),
            24 => CbcKey::Aes192(key.try_into().ok()?),
            32 => CbcKey::Aes256(key.try_into().ok()?),
            _ => return None,
        };
        Some(Cipher::Cbc(key))
    }

    /// AES-GCM; `None` for other lengths than 16 and 32.
    pub(super) fn gcm(key: &[u8]) -> Option<Cipher> {
        let algorithm = if key.len() == 16 { &AES_128_GCM } else { &AES_256_GCM };
        UnboundKey::new(algorithm, key).ok().map(|key| Cipher::Gcm(Box::new(LessSafeKey::new(key))))
    }

    /// Secretbox; `None` for other lengths than 32.
    pub(super) fn secretbox(key: &[u8]) -> Option<Cipher> {
        key.try_into().ok().map(Cipher::Secretbox)
    }

    fn seal(&self, path: &str, plain: &[u8], out: &mut Vec<u8>) {
        match self {
            Cipher::Cbc(key) => {
                let vector: [u8; BLOCK] = fresh();
                out.extend_from_slice(&vector);
                out.extend_from_slice(&match key {
                    CbcKey::Aes128(key) => cbc::Encryptor::<aes::Aes128>::new(key.into(), &vector.into())
                        .encrypt_padded_vec::<Pkcs7>(plain),
                    CbcKey::Aes192(key) => cbc::Encryptor::<aes::Aes192>::new(key.into(), &vector.into())
                        .encrypt_padded_vec::<Pkcs7>(plain),
                    CbcKey::Aes256(key) => cbc::Encryptor::<aes::Aes256>::new(key.into(), &vector.into())
                        .encrypt_padded_vec::<Pkcs7>(plain),
                });
            }
            Cipher::Gcm(key) => {
                let nonce: [u8; NONCE_LEN] = fresh();
                out.extend_from_slice(&nonce);
                let from = out.len();
                out.extend_from_slice(plain);
                let nonce = Nonce::assume_unique_for_key(nonce);
                let sealed = key.seal_in_place_separate_tag(nonce, Aad::from(path), &mut out[from..]);
                // Fails for 64 GiB and more only (NIST SP 800-38D): an object has at most 1.5 MiB.
                if let Ok(tag) = sealed {
                    out.extend_from_slice(tag.as_ref());
                }
            }
            Cipher::Secretbox(key) => {
                let nonce: [u8; SECRETBOX_NONCE] = fresh();
                out.extend_from_slice(&nonce);
                let mut text = plain.to_vec();
                let (mut stream, poly) = secretbox(key, &nonce);
                stream.apply_keystream(&mut text);
                out.extend_from_slice(&poly.compute_unpadded(&text));
                out.extend_from_slice(&text);
            }
        }
    }

    fn open(&self, path: &str, sealed: &[u8]) -> Result<Vec<u8>, &'static str> {
        const SHORT: &str = "the stored data was shorter than the required size";
        match self {
            Cipher::Cbc(key) => {
                let (vector, text) = sealed.split_at_checked(BLOCK).ok_or(SHORT)?;
                if text.len() % BLOCK != 0 {
                    return Err("data is not a multiple of the block size");
                }
                let vector: [u8; BLOCK] = vector.try_into().map_err(|_| SHORT)?;
                let opened =
                    match key {
                        CbcKey::Aes128(key) => cbc::Decryptor::<aes::Aes128>::new(key.into(), &vector.into())
                            .decrypt_padded_vec::<Pkcs7>(text),
                        CbcKey::Aes192(key) => cbc::Decryptor::<aes::Aes192>::new(key.into(), &vector.into())
                            .decrypt_padded_vec::<Pkcs7>(text),
                        CbcKey::Aes256(key) => cbc::Decryptor::<aes::Aes256>::new(key.into(), &vector.into())
                            .decrypt_padded_vec::<Pkcs7>(text),
                    };
                opened.map_err(|_| "invalid padding on input")
            }
            Cipher::Gcm(key) => {
                let (nonce, text) = sealed.split_at_checked(NONCE_LEN).ok_or(SHORT)?;
                let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| SHORT)?;
                let mut text = text.to_vec();
                let length = key.open_in_place(nonce, Aad::from(path), &mut text).map(|plain| plain.len());
                text.truncate(length.map_err(|_| "cipher: message authentication failed")?);
                Ok(text)
            }
            Cipher::Secretbox(key) => {
                let (nonce, rest) = sealed.split_at_checked(SECRETBOX_NONCE).ok_or(SHORT)?;
                let (tag, text) = rest.split_at_checked(TAG).ok_or(SHORT)?;
                let nonce: [u8; SECRETBOX_NONCE] = nonce.try_into().map_err(|_| SHORT)?;
                let (mut stream, poly) = secretbox(key, &nonce);
                if !same(&poly.compute_unpadded(text), tag) {
                    return Err("decryption failed: the tag does not fit");
                }
                let mut text = text.to_vec();
                stream.apply_keystream(&mut text);
                Ok(text)
            }
        }
    }
}

/// NaCl's construction: the first 32 bytes of the stream are Poly1305's key, the text goes with those after.
fn secretbox(key: &[u8; 32], nonce: &[u8; SECRETBOX_NONCE]) -> (XSalsa20, Poly1305) {
    let mut stream = XSalsa20::new(key.into(), nonce.into());
    let mut poly_key = [0u8; 32];
    stream.apply_keystream(&mut poly_key);
    (stream, Poly1305::new(&poly_key.into()))
}

/// Compares without telling by its duration where the difference is.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0u8, |different, (x, y)| different | (x ^ y)) == 0
}

/// Bytes nobody has seen before, from the operating system.
fn fresh<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // Linux' generator cannot fail once it is seeded, and nothing got this far before it was. A nonce of zeroes would give
    // plaintext away: better to end here.
    #[allow(clippy::expect_used)]
    SystemRandom::new().fill(&mut bytes).expect("the operating system gives random bytes");
    bytes
}

impl Provider {
    /// The bytes to store.
    pub(super) fn seal(&self, path: &str, plain: Bytes) -> Bytes {
        match self {
            Provider::Identity => plain,
            Provider::Keyed { prefix, cipher } => {
                let mut out = Vec::with_capacity(prefix.len() + plain.len() + 64);
                out.extend_from_slice(prefix);
                cipher.seal(path, &plain, &mut out);
                out.into()
            }
        }
    }

    /// The plaintext; `None` when somebody else wrote it.
    pub(super) fn open(&self, path: &str, stored: &Bytes) -> Option<Result<Bytes, &'static str>> {
        match self {
            Provider::Identity => (!stored.starts_with(ENVELOPE)).then(|| Ok(stored.clone())),
            Provider::Keyed { prefix, cipher } => {
                stored.strip_prefix(prefix.as_slice()).map(|sealed| cipher.open(path, sealed).map(Bytes::from))
            }
        }
    }
}
