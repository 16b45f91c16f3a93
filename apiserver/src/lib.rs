//! The front of the platform: every request and every rule that guards a write.
//!
//! Owns the wire (TLS, HTTP, discovery, OpenAPI, tables, watches, proxies), who may do what
//! (authentication, RBAC, admission), the one generic path from a request to the store, and the watch
//! cache all reads are served from. Built-in kinds and custom resources are rows of one table; there is no
//! handler per kind. It is the only crate that opens the store. Never runs a control loop: the only things it
//! does by itself are taking up CustomResourceDefinitions and changed configuration files, looking after the servers it
//! passes requests on to, forgetting old events, and saying where it can be reached.
//!
//! A request walks: [`accept`] (or [`local`], without a socket) → [`handler`] (authenticate, limit,
//! authorize) → [`registry`] (decode, patch, default, admit, prepare, validate, commit) → the store; the
//! answer comes from the committed bytes or from [`cache`].

pub mod accept;
pub mod admission;
pub mod agents;
pub mod aggregation;
pub mod allocate;
pub mod audit;
pub mod authn;
pub mod authz;
pub mod bootstrap;
pub mod cache;
pub mod config;
pub mod conversion;
pub mod core;
pub mod crd;
pub mod discovery;
pub mod encryption;
pub mod expiry;
pub mod flow;
pub mod handler;
pub mod health;
pub mod http;
pub mod kinds;
pub mod layout;
pub mod local;
pub mod members;
pub mod metrics;
pub mod openapi;
pub mod openapi_v2;
pub mod outgoing;
pub mod outside;
pub mod pki;
pub mod proxy;
pub mod registry;
pub mod reload;
pub mod renew;
pub mod request_info;
pub mod resources;
pub mod reviews;
pub mod server;
pub mod subresource;
pub mod tokens;
pub mod usage;
pub mod user;

pub use config::{Config, Shared};
pub use layout::KubernetesLayout;
pub use local::LocalService;
pub use outside::{Clock, Entropy};
pub use pki::Pki;
pub use server::{Error, Server};
pub use user::User;
