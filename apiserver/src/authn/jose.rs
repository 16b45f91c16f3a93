//! Signed tokens in general: JSON Web Signatures (RFC 7515), the keys that check them (RFC 7517), the algorithms
//! (RFC 7518). Service accounts and OpenID Connect both are made of this.
//!
//! Owns signatures and the forms of keys. Never looks at claims, and never lets a token choose how it is checked: which
//! algorithms are good is the caller's to say (RFC 8725 §3.1).

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use proa_apimachinery::der::{bits, null, octets, oid, sequence, unsigned};
use ring::rand::SystemRandom;
use ring::signature::{
    self as ring_signature, EcdsaKeyPair, KeyPair, RsaKeyPair, RsaPublicKeyComponents, UnparsedPublicKey,
};
use serde_json::{Value, json};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey as Parsed;
use x509_parser::x509::SubjectPublicKeyInfo;

/// How a token is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are RFC 7518's")]
pub enum Algorithm {
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
    ES256,
    ES384,
}

impl Algorithm {
    /// All there are here. Kubernetes has ES512 too; the cryptography in use has no P-521.
    pub const ALL: [Algorithm; 8] = [
        Algorithm::RS256,
        Algorithm::RS384,
        Algorithm::RS512,
        Algorithm::PS256,
        Algorithm::PS384,
        Algorithm::PS512,
        Algorithm::ES256,
        Algorithm::ES384,
    ];

    /// The name in a token's header.
    pub fn name(self) -> &'static str {
        ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384"][self as usize]
    }

    /// The algorithm of that name.
    pub fn named(name: &str) -> Option<Algorithm> {
        Algorithm::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }
}

/// A file that holds no key that can be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct KeyError(pub(crate) String);

/// A key that checks signatures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    /// Its name: of a key set's what that says, of ours the digest of the key, as Kubernetes has it.
    pub id: String,
    form: Form,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Form {
    Rsa {
        n: Vec<u8>,
        e: Vec<u8>,
    },
    /// An uncompressed point.
    P256(Vec<u8>),
    P384(Vec<u8>),
}

const RSA: &[u32] = &[1, 2, 840, 113_549, 1, 1, 1];
const EC: &[u32] = &[1, 2, 840, 10_045, 2, 1];
const P256: &[u32] = &[1, 2, 840, 10_045, 3, 1, 7];
const P384: &[u32] = &[1, 3, 132, 0, 34];

impl Form {
    /// `SubjectPublicKeyInfo` (RFC 5280 §4.1).
    fn spki(&self) -> Vec<u8> {
        match self {
            Form::Rsa { n, e } => {
                sequence(&[sequence(&[oid(RSA), null()]), bits(&sequence(&[unsigned(n), unsigned(e)]))])
            }
            Form::P256(point) => sequence(&[sequence(&[oid(EC), oid(P256)]), bits(point)]),
            Form::P384(point) => sequence(&[sequence(&[oid(EC), oid(P384)]), bits(point)]),
        }
    }

    fn of_point(point: &[u8]) -> Option<Form> {
        match (point.first(), point.len()) {
            (Some(4), 65) => Some(Form::P256(point.to_vec())),
            (Some(4), 97) => Some(Form::P384(point.to_vec())),
            _ => None,
        }
    }
}

impl PublicKey {
    fn own(form: Form) -> PublicKey {
        // As Kubernetes names its keys: whoever takes its key files over finds the same names.
        let digest = ring::digest::digest(&ring::digest::SHA256, &form.spki());
        PublicKey { id: URL_SAFE_NO_PAD.encode(digest.as_ref()), form }
    }

    fn of_spki(der: &[u8]) -> Option<PublicKey> {
        let (_, spki) = SubjectPublicKeyInfo::from_der(der).ok()?;
        let form = match spki.parsed().ok()? {
            Parsed::RSA(key) => Form::Rsa { n: trimmed(key.modulus), e: trimmed(key.exponent) },
            Parsed::EC(point) => Form::of_point(point.data())?,
            _ => return None,
        };
        Some(PublicKey::own(form))
    }

    /// A key of a key set; `None` for one that checks no signatures, or none we can check.
    pub fn of_jwk(jwk: &Value) -> Option<PublicKey> {
        let text = |field: &str| jwk.get(field).and_then(Value::as_str);
        let bytes = |field: &str| URL_SAFE_NO_PAD.decode(text(field)?.trim_end_matches('=')).ok();
        if text("use").is_some_and(|purpose| purpose != "sig") {
            return None;
        }
        let point = |size: usize| -> Option<Vec<u8>> {
            let (x, y) = (bytes("x")?, bytes("y")?);
            (x.len() == size && y.len() == size).then(|| [&[4][..], &x, &y].concat())
        };
        let form = match (text("kty")?, text("crv")) {
            ("RSA", _) => Form::Rsa { n: trimmed(&bytes("n")?), e: trimmed(&bytes("e")?) },
            ("EC", Some("P-256")) => Form::P256(point(32)?),
            ("EC", Some("P-384")) => Form::P384(point(48)?),
            _ => return None,
        };
        let own = PublicKey::own(form);
        Some(PublicKey { id: text("kid").map_or(own.id, str::to_owned), form: own.form })
    }

    /// The keys of a PEM text: public ones, certificates', and the public halves of private ones, as
    /// `--service-account-key-file` takes them.
    ///
    /// # Errors
    /// When there is none.
    pub fn of_pem(pem: &str) -> Result<Vec<PublicKey>, KeyError> {
        let mut keys = Vec::new();
        for block in pem_blocks(pem)? {
            let key = match block.label.as_str() {
                "PUBLIC KEY" => PublicKey::of_spki(&block.der),
                "RSA PUBLIC KEY" => PublicKey::of_spki(&sequence(&[sequence(&[oid(RSA), null()]), bits(&block.der)])),
                "CERTIFICATE" => x509_parser::parse_x509_certificate(&block.der)
                    .ok()
                    .and_then(|(_, certificate)| PublicKey::of_spki(certificate.public_key().raw)),
                _ => PrivateKey::of_block(&block).map(|private| private.public().clone()),
            };
            keys.extend(key);
        }
        if keys.is_empty() { Err(KeyError("holds no RSA, P-256 or P-384 key in PEM".into())) } else { Ok(keys) }
    }

    /// As a member of a key set.
    pub fn jwk(&self) -> Value {
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let mut jwk = match &self.form {
            Form::Rsa { n, e } => json!({"kty": "RSA", "alg": "RS256", "n": text(n), "e": text(e)}),
            Form::P256(point) => {
                json!({"kty": "EC", "alg": "ES256", "crv": "P-256", "x": text(&point[1..33]), "y": text(&point[33..])})
            }
            Form::P384(point) => {
                json!({"kty": "EC", "alg": "ES384", "crv": "P-384", "x": text(&point[1..49]), "y": text(&point[49..])})
            }
        };
        jwk["use"] = "sig".into();
        jwk["kid"] = self.id.as_str().into();
        jwk
    }

    /// Whether the holder of the other half signed this, with that algorithm.
    pub fn verifies(&self, algorithm: Algorithm, signed: &[u8], signature: &[u8]) -> bool {
        let rsa = |parameters| match &self.form {
            Form::Rsa { n, e } => RsaPublicKeyComponents { n, e }.verify(parameters, signed, signature).is_ok(),
            _ => false,
        };
        match (algorithm, &self.form) {
            (Algorithm::RS256, _) => rsa(&ring_signature::RSA_PKCS1_2048_8192_SHA256),
            (Algorithm::RS384, _) => rsa(&ring_signature::RSA_PKCS1_2048_8192_SHA384),
            (Algorithm::RS512, _) => rsa(&ring_signature::RSA_PKCS1_2048_8192_SHA512),
            (Algorithm::PS256, _) => rsa(&ring_signature::RSA_PSS_2048_8192_SHA256),
            (Algorithm::PS384, _) => rsa(&ring_signature::RSA_PSS_2048_8192_SHA384),
            (Algorithm::PS512, _) => rsa(&ring_signature::RSA_PSS_2048_8192_SHA512),
            (Algorithm::ES256, Form::P256(point)) => {
                UnparsedPublicKey::new(&ring_signature::ECDSA_P256_SHA256_FIXED, point)
                    .verify(signed, signature)
                    .is_ok()
            }
            (Algorithm::ES384, Form::P384(point)) => {
                UnparsedPublicKey::new(&ring_signature::ECDSA_P384_SHA384_FIXED, point)
                    .verify(signed, signature)
                    .is_ok()
            }
            (Algorithm::ES256 | Algorithm::ES384, _) => false,
        }
    }
}

fn trimmed(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().copied().skip_while(|byte| *byte == 0).collect()
}

/// A key that signs.
pub struct PrivateKey {
    pair: Pair,
    public: PublicKey,
    random: SystemRandom,
}

enum Pair {
    Rsa(Box<RsaKeyPair>),
    P256(EcdsaKeyPair),
    P384(EcdsaKeyPair),
}

impl PrivateKey {
    /// A key from PKCS #8 (DER).
    ///
    /// # Errors
    /// When it is no RSA, P-256 or P-384 key.
    pub fn of_pkcs8(der: &[u8]) -> Result<PrivateKey, KeyError> {
        let random = SystemRandom::new();
        let ec = |algorithm| EcdsaKeyPair::from_pkcs8(algorithm, der, &random).ok();
        let pair = if let Some(pair) = ec(&ring_signature::ECDSA_P256_SHA256_FIXED_SIGNING) {
            Pair::P256(pair)
        } else if let Some(pair) = ec(&ring_signature::ECDSA_P384_SHA384_FIXED_SIGNING) {
            Pair::P384(pair)
        } else {
            let rsa = RsaKeyPair::from_pkcs8(der).map_err(|error| KeyError(format!("cannot be used: {error}")))?;
            Pair::Rsa(Box::new(rsa))
        };
        PrivateKey::of_pair(pair).ok_or_else(|| KeyError("cannot be used".into()))
    }

    /// The first private key of a PEM text: PKCS #8, PKCS #1 (`RSA PRIVATE KEY`) or SEC 1 (`EC PRIVATE KEY`).
    ///
    /// # Errors
    /// When there is none.
    pub fn of_pem(pem: &str) -> Result<PrivateKey, KeyError> {
        let found = pem_blocks(pem)?.iter().find_map(PrivateKey::of_block);
        found.ok_or_else(|| KeyError("holds no private RSA, P-256 or P-384 key in PEM".into()))
    }

    fn of_block(block: &Block) -> Option<PrivateKey> {
        match block.label.as_str() {
            "PRIVATE KEY" => PrivateKey::of_pkcs8(&block.der).ok(),
            "RSA PRIVATE KEY" => {
                RsaKeyPair::from_der(&block.der).ok().and_then(|pair| PrivateKey::of_pair(Pair::Rsa(Box::new(pair))))
            }
            // The same inside PKCS #8 (RFC 5958); which curve it is, its size tells.
            "EC PRIVATE KEY" => [P256, P384].into_iter().find_map(|curve| {
                let algorithm = sequence(&[oid(EC), oid(curve)]);
                PrivateKey::of_pkcs8(&sequence(&[unsigned(&[]), algorithm, octets(&block.der)])).ok()
            }),
            _ => None,
        }
    }

    fn of_pair(pair: Pair) -> Option<PrivateKey> {
        let form = match &pair {
            Pair::P256(pair) | Pair::P384(pair) => Form::of_point(pair.public_key().as_ref())?,
            Pair::Rsa(pair) => {
                let public = RsaPublicKeyComponents::<Vec<u8>>::from(pair.public());
                Form::Rsa { n: trimmed(&public.n), e: trimmed(&public.e) }
            }
        };
        Some(PrivateKey { pair, public: PublicKey::own(form), random: SystemRandom::new() })
    }

    /// The other half.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// The algorithm this key signs with, Kubernetes' choice for it.
    pub fn algorithm(&self) -> Algorithm {
        match self.pair {
            Pair::Rsa(_) => Algorithm::RS256,
            Pair::P256(_) => Algorithm::ES256,
            Pair::P384(_) => Algorithm::ES384,
        }
    }

    /// A token in compact form.
    ///
    /// # Errors
    /// When the operating system has no random numbers.
    pub fn sign(&self, claims: &[u8]) -> Result<String, KeyError> {
        let header = json!({"alg": self.algorithm().name(), "kid": self.public.id}).to_string();
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let failed = |error: ring::error::Unspecified| KeyError(error.to_string());
        let signature = match &self.pair {
            Pair::P256(pair) | Pair::P384(pair) => {
                pair.sign(&self.random, signed.as_bytes()).map_err(failed)?.as_ref().to_vec()
            }
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                let padding = &ring_signature::RSA_PKCS1_SHA256;
                pair.sign(padding, &self.random, signed.as_bytes(), &mut signature).map_err(failed)?;
                signature
            }
        };
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

/// A token taken apart; nothing is checked yet.
pub struct Jws<'a> {
    /// How it says it is signed; `None` when we do not know the algorithm.
    pub algorithm: Option<Algorithm>,
    /// The name of the key it says it is signed with.
    pub key: Option<String>,
    /// What it says.
    pub claims: Vec<u8>,
    signed: &'a str,
    signature: Vec<u8>,
}

impl<'a> Jws<'a> {
    /// Takes a token in compact form apart.
    pub fn parse(token: &'a str) -> Option<Jws<'a>> {
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        let header: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).ok()?).ok()?;
        // What must be understood and is not makes a token invalid (RFC 7515 §4.1.11).
        if header.get("crit").is_some() {
            return None;
        }
        let text = |field: &str| header.get(field).and_then(Value::as_str);
        Some(Jws {
            algorithm: Algorithm::named(text("alg")?),
            key: text("kid").filter(|key| !key.is_empty()).map(str::to_owned),
            claims: URL_SAFE_NO_PAD.decode(claims).ok()?,
            signed,
            signature: URL_SAFE_NO_PAD.decode(signature).ok()?,
        })
    }

    /// Whether one of the keys signed it, with one of the algorithms. A key of the token's name is asked alone; where none
    /// has it, all are.
    pub fn is_signed_by(&self, keys: &[PublicKey], algorithms: &[Algorithm]) -> bool {
        let Some(algorithm) = self.algorithm.filter(|algorithm| algorithms.contains(algorithm)) else { return false };
        let named = |key: &&PublicKey| self.key.as_ref().is_some_and(|id| *id == key.id);
        let any = keys.iter().any(|key| named(&key));
        let mut asked = keys.iter().filter(|key| !any || named(key));
        asked.any(|key| key.verifies(algorithm, self.signed.as_bytes(), &self.signature))
    }

    /// Whether a key of the name it gives is among them; a token that names none has to do with what there is.
    pub fn knows_key(&self, keys: &[PublicKey]) -> bool {
        self.key.as_ref().is_none_or(|id| keys.iter().any(|key| key.id == *id))
    }
}

/// One part of a PEM text (RFC 7468).
struct Block {
    label: String,
    der: Vec<u8>,
}

fn pem_blocks(text: &str) -> Result<Vec<Block>, KeyError> {
    use base64::engine::general_purpose::STANDARD;
    let mut blocks = Vec::new();
    let mut open: Option<(String, String)> = None;
    for line in text.lines().map(str::trim) {
        let between = |start: &str| line.strip_prefix(start).and_then(|rest| rest.strip_suffix("-----"));
        if let Some(label) = between("-----BEGIN ") {
            open = Some((label.to_owned(), String::new()));
        } else if between("-----END ").is_some() {
            let Some((label, body)) = open.take() else { continue };
            let der = STANDARD.decode(body).map_err(|error| KeyError(format!("{label}: {error}")))?;
            blocks.push(Block { label, der });
        } else if let Some((_, body)) = &mut open
            // `EC PARAMETERS` and old headers (`Proc-Type: …`) stand before the base64.
            && !line.contains(':')
        {
            body.push_str(line);
        }
    }
    Ok(blocks)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Made with OpenSSL 3 (`openssl genrsa 2048`, `openssl ecparam -genkey -name …`), for the tests alone.
    pub(crate) const RSA_KEY: &str = include_str!("testdata/rsa.pem");
    const RSA_PKCS1: &str = include_str!("testdata/rsa-pkcs1.pem");
    const RSA_PUBLIC: &str = include_str!("testdata/rsa-public.pem");
    pub(crate) const P256_SEC1: &str = include_str!("testdata/p256-sec1.pem");
    const P256_PUBLIC: &str = include_str!("testdata/p256-public.pem");
    const P384_SEC1: &str = include_str!("testdata/p384-sec1.pem");

    #[test]
    fn keys_are_read_in_every_form_and_are_the_same_key() {
        let id = |pem: &str| PublicKey::of_pem(pem).unwrap()[0].id.clone();
        assert_eq!(id(RSA_KEY), id(RSA_PUBLIC));
        assert_eq!(id(RSA_PKCS1), id(RSA_PUBLIC));
        assert_eq!(id(P256_SEC1), id(P256_PUBLIC));
        // `openssl pkey -pubin -outform DER | sha256sum`, in base64url.
        assert_eq!(id(RSA_PUBLIC), include_str!("testdata/rsa-public.kid").trim());
        assert_eq!(PublicKey::of_pem(&[RSA_PUBLIC, P256_PUBLIC, P384_SEC1].concat()).unwrap().len(), 3);
        assert!(PublicKey::of_pem("nothing").is_err());
        for pem in [RSA_KEY, P256_SEC1, P384_SEC1] {
            let key = &PublicKey::of_pem(pem).unwrap()[0];
            assert_eq!(PublicKey::of_jwk(&key.jwk()).as_ref(), Some(key), "a key set says the same key");
        }
    }

    #[test]
    fn a_token_changed_anywhere_is_refused() {
        for (pem, algorithm) in
            [(RSA_KEY, Algorithm::RS256), (P256_SEC1, Algorithm::ES256), (P384_SEC1, Algorithm::ES384)]
        {
            let key = PrivateKey::of_pem(pem).unwrap();
            let keys = [key.public().clone()];
            let token = key.sign(b"{\"a\":1}").unwrap();
            let good = |token: &str, algorithms: &[Algorithm]| {
                Jws::parse(token).is_some_and(|jws| jws.claims == b"{\"a\":1}" && jws.is_signed_by(&keys, algorithms))
            };
            assert!(good(&token, &Algorithm::ALL), "{algorithm:?}");
            let others: Vec<_> = Algorithm::ALL.into_iter().filter(|other| *other != algorithm).collect();
            assert!(!good(&token, &others), "the caller says which algorithms are good");
            for at in 0..token.len() {
                let mut bytes = token.clone().into_bytes();
                bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
                let changed = String::from_utf8(bytes).unwrap();
                assert!(changed == token || !good(&changed, &Algorithm::ALL), "{algorithm:?} at {at}");
            }
        }
    }

    #[test]
    fn a_token_of_another_algorithm_or_key_is_refused() {
        let key = PrivateKey::of_pem(P256_SEC1).unwrap();
        let token = key.sign(b"{}").unwrap();
        let other = PublicKey::of_pem(RSA_PUBLIC).unwrap();
        assert!(!Jws::parse(&token).unwrap().is_signed_by(&other, &Algorithm::ALL));
        let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
        for header in ["{\"alg\":\"none\"}", "{\"alg\":\"HS256\"}", "{\"alg\":\"ES256\",\"crit\":[\"b64\"]}", "{}"] {
            let forged = format!("{}.{}.", part(header), part("{}"));
            let taken =
                Jws::parse(&forged).is_some_and(|jws| jws.is_signed_by(&[key.public().clone()], &Algorithm::ALL));
            assert!(!taken, "{header}");
        }
        assert!(Jws::parse("a.b").is_none() && Jws::parse("").is_none());
    }
}
