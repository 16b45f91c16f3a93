//! One node's pods, from the API to running and back.
//!
//! Owns: the Node object and its Lease; one worker per pod (volumes, images, containers, probes, status); the
//! node's HTTPS API (logs, exec, attach, port-forward); the translation of Services to the service proxy and DNS.
//!
//! Never decides where a pod runs, never opens the store: everything goes through [`kube::Client`]. Containers
//! outlive the agent; what it knows is rebuilt from the API and the runtime at every start.
//!
//! A reader of one pod's life starts at `pods/worker.rs`: it asks `pods/actions.rs` (pure) what to do, and
//! `pods/status.rs` (pure) what to show.

mod config;
mod env;
mod events;
mod expansion;
mod files;
pub mod hollow;
mod images;
mod last_words;
mod mounts;
mod node;
mod objects;
mod pods;
mod probes;
mod reset;
mod resolver;
mod resources;
mod run;
mod server;
mod services;
mod storage;
mod store_images;
mod streams;
mod volumes;
mod watches;

pub use config::{Config, NetworkConfig, Tls};
pub use pods::cgroup_root;
pub use reset::{ResetError, reset};
pub use run::{AgentError, run};
