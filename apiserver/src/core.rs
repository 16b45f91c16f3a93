//! What all requests share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use proa_store::Log;
use tokio_util::sync::CancellationToken;

use crate::admission::hooks::Hooks;
use crate::admission::policy::Policies;
use crate::admission::quota::Turns;
use crate::agents::Agents;
use crate::aggregation::Aggregation;
use crate::allocate::Allocators;
use crate::audit::Audit;
use crate::authn::oidc::Issuers;
use crate::authz::node_pods::NodePods;
use crate::authz::rbac::Rbac;
use crate::cache::Caches;
use crate::config::Config;
use crate::crd::Definitions;
use crate::encryption::EncryptedLog;
use crate::flow::Flow;
use crate::metrics::Metrics;
use crate::openapi::OpenApi;
use crate::outgoing::Outgoing;
use crate::pki::Pki;
use crate::resources::Resources;
use crate::tokens::Tokens;
use crate::usage::Usage;

/// The parts of a running server.
pub struct Core {
    /// Its settings.
    pub config: Config,
    /// The store. Written by `registry` alone.
    pub log: Arc<dyn Log>,
    /// The watch cache.
    pub caches: Arc<Caches>,
    /// What is served.
    pub resources: Resources,
    /// The authorizer.
    pub rbac: Rbac,
    /// Which pods run where, for the node authorizer.
    pub node_pods: NodePods,
    /// Keys and certificates.
    pub pki: Arc<Pki>,
    /// Service-account tokens.
    pub tokens: Tokens,
    /// Service addresses and node ports.
    pub allocators: Allocators,
    /// Counters.
    pub metrics: Metrics,
    /// The OpenAPI documents.
    pub openapi: OpenApi,
    /// How far custom resources are served.
    pub definitions: Definitions,
    /// Connections to node agents.
    pub agents: Agents,
    /// Who writes to a namespace's quotas next.
    pub quota_turns: Turns,
    /// What nodes and pods were last measured to use.
    pub usage: Usage,
    /// How many requests run at once.
    pub flow: Flow,
    /// Who answers for groups this server does not.
    pub aggregation: Aggregation,
    /// The admission webhooks.
    pub hooks: Hooks,
    /// The admission policies.
    pub policies: Policies,
    /// Calls to servers of others.
    pub outgoing: Outgoing,
    /// Whether the server serves: what it writes before that is its own, and no webhook could be there to see it.
    pub open: AtomicBool,
    /// Those whose tokens are good besides our own, and who comes without.
    pub issuers: ArcSwap<Issuers>,
    /// The audit log, where there is a policy.
    pub audit: Option<Audit>,
    /// The store's own view of encrypted values, where there are any.
    pub encrypted: Option<Arc<EncryptedLog>>,
    /// Ends watches and connections.
    pub stop: CancellationToken,
}

impl Core {
    /// Whether the server serves.
    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    /// The time.
    pub fn now(&self) -> Timestamp {
        self.config.clock.now()
    }
}
