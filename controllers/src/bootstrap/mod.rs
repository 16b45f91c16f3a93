//! How machines join: bootstrap tokens, and what the cluster tells who has one.
//!
//! Owns the form of tokens, their end, and the signatures in `kube-public/cluster-info`. Never lets anybody in: the API
//! server does.

mod cleaner;
mod signer;
pub mod token;

pub use cleaner::{Delete, TokenCleaner};
pub use signer::{BootstrapSigner, CLUSTER_INFO, Changes, KUBECONFIG, PUBLIC, SIGNATURE, Seen};
pub use token::Token;
