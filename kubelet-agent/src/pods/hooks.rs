//! Owns lifecycle hooks: `postStart` and `preStop`. Never decides what their failure means.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler};

use super::context::Context;
use super::track::ContainerId;
use crate::probes::check;

/// The container a hook runs for.
pub(crate) struct Target<'a> {
    pub(crate) ctx: &'a Context,
    pub(crate) container: &'a Container,
    pub(crate) id: &'a ContainerId,
    pub(crate) pod_ips: &'a [String],
}

/// Runs a hook to its end. The caller bounds its time.
pub(crate) async fn run(target: &Target<'_>, hook: &LifecycleHandler) -> Result<(), String> {
    if let Some(exec) = &hook.exec {
        let command = exec.command.clone().unwrap_or_default();
        return check::exec(&target.ctx.runtime, &target.id.0, &command, None).await;
    }
    if let Some(sleep) = &hook.sleep {
        tokio::time::sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0))).await;
        return Ok(());
    }
    if let Some(action) = &hook.http_get {
        let host = target.pod_ips.first().map_or("127.0.0.1", String::as_str);
        let request = check::HttpTarget::new(target.container, action, host)?;
        // Any answer will do for a hook; only a server that cannot be reached is a failure.
        return match check::http(&request, Duration::from_secs(60)).await {
            Err(why) if !why.starts_with("HTTP probe failed") => Err(why),
            _ => Ok(()),
        };
    }
    // tcpSocket hooks are accepted and ignored by Kubernetes too.
    Ok(())
}
