//! Which store a server gets: the embedded one of its data directory, or an etcd.

use std::sync::Arc;

use anyhow::Context;
use proa_apiserver::{KubernetesLayout, Shared};
use proa_store::{Embedded, Etcd, EtcdOptions, EtcdServers, Log, Options};

use crate::cli::EtcdArgs;
use crate::paths::DataDir;

/// Opens the store, and says whether other servers may have it too.
pub(crate) async fn open(data: &DataDir, etcd: &EtcdArgs) -> anyhow::Result<(Arc<dyn Log>, Shared)> {
    if !etcd.servers.is_empty() {
        return Ok((Arc::new(open_etcd(etcd, EtcdOptions::new).await?), Shared::Yes));
    }
    let store = Embedded::open(&data.store(), Options::default())
        .await
        .with_context(|| format!("cannot open the store in {}", data.store().display()))?;
    Ok((Arc::new(store), Shared::No))
}

/// Connects to an etcd, with Kubernetes' places and forms.
pub(crate) async fn open_etcd(
    args: &EtcdArgs,
    options: impl FnOnce(EtcdServers) -> EtcdOptions,
) -> anyhow::Result<Etcd> {
    let servers = EtcdServers {
        urls: args.servers.clone(),
        ca_file: args.cafile.clone(),
        certificate_file: args.certfile.clone(),
        key_file: args.keyfile.clone(),
    };
    let etcd = Etcd::open(options(servers), KubernetesLayout::new(&args.prefix)).await;
    etcd.with_context(|| format!("cannot use the etcd at {}", args.servers.join(", ")))
}
