//! Owns the ground of a pod: its directories, volumes, network and sandbox, made together and taken away together.
//! Never touches a container but to remove it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use proa_runtime::{Resources, SandboxSpec, SandboxState};
use tokio::sync::Notify;

use super::context::Context;
use super::start::{hostname, labels};
use super::{Pod, host_network, uid};
use crate::resources::{self, Qos};
use crate::{files, mounts, volumes};

/// The ground as it stands.
#[derive(Clone, Debug, Default)]
pub(crate) struct GroundInfo {
    pub(crate) pod_ips: Vec<String>,
    /// `None`: the host's
    pub(crate) netns: Option<PathBuf>,
    /// when a volume wants to be looked at again (a token grows old)
    pub(crate) refresh_at: Option<Timestamp>,
    /// what the host forbade
    pub(crate) warnings: Vec<String>,
}

/// Why it could not be made: reason and message of the event.
#[derive(Debug)]
pub(crate) struct GroundError {
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

fn failed(reason: &'static str) -> impl FnOnce(String) -> GroundError {
    move |message| GroundError { reason, message }
}

/// Makes the ground, or finds parts of it made. `changed` is told when a volume's source changes.
pub(crate) async fn prepare(ctx: &Arc<Context>, pod: &Pod, changed: &Arc<Notify>) -> Result<GroundInfo, GroundError> {
    let uid = uid(pod);
    let volumes = async { volumes::setup(ctx, pod, changed).await.map_err(|e| failed("FailedMount")(e.to_string())) };
    let sandbox = async {
        let (netns, ips) = if host_network(pod) {
            (None, ctx.host_ips.clone())
        } else {
            let net = ctx.network.setup(uid).await.map_err(|e| {
                failed("FailedCreatePodSandBox")(format!("Failed to create pod sandbox: failed to set up network: {e}"))
            })?;
            (Some(net.netns), vec![net.ip.to_string()])
        };
        let spec = sandbox_spec(ctx, pod, netns.clone());
        let sandbox = ctx
            .runtime
            .run_sandbox(spec)
            .await
            .map_err(|e| failed("FailedCreatePodSandBox")(format!("Failed to create pod sandbox: {e}")))?;
        if sandbox.state != SandboxState::Ready {
            return Err(failed("FailedCreatePodSandBox")("Failed to create pod sandbox: it is not ready".to_owned()));
        }
        files::write(ctx, pod, &ips).map_err(|e| failed("FailedCreatePodSandBox")(e.to_string()))?;
        Ok((netns, ips, sandbox.warnings))
    };
    let (refresh_at, (netns, pod_ips, warnings)) = tokio::try_join!(volumes, sandbox)?;
    Ok(GroundInfo { pod_ips, netns, refresh_at, warnings })
}

/// The control group above those of all pods of an installation.
pub fn cgroup_root(instance: &str) -> String {
    format!("proa/{instance}")
}

/// Parent cgroup of a pod, grouped by quality of service as on Kubernetes.
pub(crate) fn cgroup_parent(instance: &str, pod: &Pod) -> String {
    let (root, uid) = (cgroup_root(instance), uid(pod));
    match resources::qos(&pod.spec) {
        Qos::Guaranteed => format!("{root}/pod{uid}"),
        Qos::Burstable => format!("{root}/burstable/pod{uid}"),
        Qos::BestEffort => format!("{root}/besteffort/pod{uid}"),
    }
}

fn sandbox_spec(ctx: &Context, pod: &Pod, netns: Option<PathBuf>) -> SandboxSpec {
    let limits = resources::pod_limits(&pod.spec);
    let meta = &pod.metadata;
    let label = |key: &str, value: Option<&str>| (key.to_owned(), value.unwrap_or_default().to_owned());
    SandboxSpec {
        id: uid(pod).to_owned(),
        hostname: hostname(pod, &ctx.node_name),
        netns,
        cgroup_parent: cgroup_parent(&ctx.instance, pod),
        host_pid: pod.spec.host_pid == Some(true),
        host_ipc: pod.spec.host_ipc == Some(true),
        sysctls: pod
            .spec
            .security_context
            .iter()
            .flat_map(|c| c.sysctls.iter().flatten())
            .map(|s| (s.name.clone(), s.value.clone()))
            .collect(),
        labels: [
            label(labels::POD_UID, meta.uid.as_deref()),
            label(labels::POD_NAME, meta.name.as_deref()),
            label(labels::POD_NAMESPACE, meta.namespace.as_deref()),
        ]
        .into(),
        resources: Some(Resources {
            cpu_shares: Some(limits.cpu_shares),
            cpu_quota_us: limits.cpu_quota_us,
            cpu_period_us: limits.cpu_quota_us.map(|_| resources::CPU_PERIOD_US),
            memory_bytes: limits.memory_bytes,
            pids: None,
        }),
    }
}

/// Takes a pod's interface and address back, beside everything else: the kernel needs some 30 ms for an interface, and
/// nobody who waits for the pod's end waits for that. The address is not given out again before, and what a crash leaves
/// the next start sweeps away.
fn release_network(ctx: &Arc<Context>, uid: &str) {
    let (network, uid) = (ctx.network.clone(), uid.to_owned());
    tokio::spawn(async move {
        let mut pause = Duration::from_secs(1);
        while let Err(error) = network.teardown(&uid).await {
            tracing::warn!(uid, error, "the network of a pod that is gone stays behind; trying again");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(60));
        }
    });
}

/// Takes sandbox, containers, network and volumes away; the logs stay until the pod itself is gone. Goes on past
/// errors and reports them all; calling it again is fine.
pub(crate) async fn teardown(ctx: &Arc<Context>, uid: &str) -> Result<(), String> {
    let mut errors = Vec::new();
    if let Err(error) = ctx.runtime.stop_sandbox(uid).await {
        errors.push(format!("stopping the sandbox: {error}"));
    }
    if let Err(error) = ctx.runtime.remove_sandbox(uid).await {
        errors.push(format!("removing the sandbox: {error}"));
    }
    if errors.is_empty() {
        release_network(ctx, uid);
    }
    if let Err(error) = volumes::teardown(&ctx.layout, uid).await {
        errors.push(format!("removing volumes: {error}"));
    }
    ctx.local_volumes.released();
    if errors.is_empty() { Ok(()) } else { Err(errors.join("; ")) }
}

/// Removes the last files of a pod that is gone.
pub(crate) fn forget(ctx: &Context, uid: &str) {
    if let Err(error) = mounts::remove_tree(&ctx.layout.pod(uid)) {
        tracing::warn!(uid, error, "the directory of a pod that is gone stays behind");
    }
    ctx.objects.forget_unwanted();
}
