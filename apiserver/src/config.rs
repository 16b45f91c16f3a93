//! What a server is told when it is opened.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;

use crate::audit::sink::SinkOptions;
use crate::authn::oidc::OidcFlags;
use crate::outside::{Clock, Entropy};
use crate::tokens::TokenOptions;

/// The settings of one API server.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where `pki/` is kept.
    pub data_dir: PathBuf,
    /// Where the keys are, when not in `pki/` there: what API servers that share a store must have in common.
    pub pki_dir: Option<PathBuf>,
    /// Whether other API servers may have the same store.
    pub shared: Shared,
    /// The address clients will use, if a socket is served: it goes into the server's certificate.
    pub listen: Option<SocketAddr>,
    /// The address of the API server as pods see it (the endpoint of the `kubernetes` Service).
    pub advertise: IpAddr,
    /// Service addresses are taken from here; the first is the `kubernetes` Service's.
    pub service_cidr: Cidr,
    /// The DNS zone of the cluster.
    pub cluster_domain: String,
    /// Node ports are taken from here.
    pub node_port_range: RangeInclusive<u16>,
    /// More names or addresses for the server's certificate.
    pub extra_names: Vec<String>,
    /// CustomResourceDefinitions, as JSON, of kinds that belong to the platform: served from the start, and kept as they are
    /// here.
    pub definitions: Vec<serde_json::Value>,
    /// Keys and words of service-account tokens.
    pub tokens: TokenOptions,
    /// An `EncryptionConfiguration`: what of the store is ciphertext, and by which keys.
    pub encryption: Option<PathBuf>,
    /// Whose tokens are good besides our own, and who comes without.
    pub authentication: Authentication,
    /// What is written to an audit log.
    pub audit: Option<AuditOptions>,
    /// Where the time comes from.
    pub clock: Clock,
    /// Where uids, made-up names and free addresses come from.
    pub entropy: Entropy,
}

/// Who is let in by what others say.
#[derive(Clone, Debug, Default)]
pub enum Authentication {
    /// Nobody; and anybody may come without a credential.
    #[default]
    Own,
    /// An `AuthenticationConfiguration`, read again when it changes.
    File(PathBuf),
    /// One issuer, by flags.
    Flags(Box<OidcFlags>),
}

/// A policy of the audit log, and where the events go.
#[derive(Clone, Debug)]
pub struct AuditOptions {
    /// A `Policy` of audit.k8s.io/v1.
    pub policy: PathBuf,
    /// Where events go.
    pub sink: SinkOptions,
}

impl Config {
    /// The defaults, with state under `data_dir`.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Config {
            data_dir: data_dir.into(),
            pki_dir: None,
            shared: Shared::No,
            listen: None,
            advertise: IpAddr::V4(Ipv4Addr::LOCALHOST),
            service_cidr: Cidr { base: Ipv4Addr::new(10, 96, 0, 0), prefix: 16 },
            cluster_domain: "cluster.local".into(),
            node_port_range: 30000..=32767,
            extra_names: Vec::new(),
            definitions: Vec::new(),
            tokens: TokenOptions::default(),
            authentication: Authentication::default(),
            encryption: None,
            audit: None,
            clock: Clock::system(),
            entropy: Entropy::system(),
        }
    }
}

/// Whether a store is one server's alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shared {
    /// It is.
    No,
    /// Any number of servers may have it: they say where each can be reached, and must have the same keys.
    Yes,
}

impl Config {
    /// Where the keys are.
    pub fn pki(&self) -> PathBuf {
        self.pki_dir.clone().unwrap_or_else(|| self.data_dir.join("pki"))
    }

    /// The port clients use.
    pub fn port(&self) -> u16 {
        self.listen.map_or(6443, |listen| listen.port())
    }
}

/// An IPv4 range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    /// The lowest address.
    pub base: Ipv4Addr,
    /// How many leading bits are fixed.
    pub prefix: u8,
}

/// A text that is not an IPv4 range.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not an IPv4 range such as 10.96.0.0/16")]
pub struct CidrError(String);

impl Cidr {
    /// How many addresses the range has.
    pub fn size(&self) -> u32 {
        1u32.checked_shl(32 - u32::from(self.prefix)).unwrap_or(u32::MAX)
    }

    /// The `n`th address; 0 is the network's own.
    pub fn nth(&self, n: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.base).wrapping_add(n))
    }

    /// Where `address` is in the range.
    pub fn offset(&self, address: Ipv4Addr) -> Option<u32> {
        let offset = u32::from(address).checked_sub(u32::from(self.base))?;
        (offset < self.size()).then_some(offset)
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let parsed = text
            .split_once('/')
            .and_then(|(base, prefix)| Some((base.parse::<Ipv4Addr>().ok()?, prefix.parse::<u8>().ok()?)));
        match parsed {
            Some((base, prefix)) if (1..=30).contains(&prefix) => {
                let mask = u32::MAX << (32 - u32::from(prefix));
                Ok(Cidr { base: Ipv4Addr::from(u32::from(base) & mask), prefix })
            }
            _ => Err(CidrError(text.to_owned())),
        }
    }
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}
