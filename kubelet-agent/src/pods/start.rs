//! Owns the start of one container: image, environment, mounts, identity, creation, start, `postStart`.
//! Never decides whether it should start, and never restarts anything.

use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Container;
use proa_runtime::{ContainerSpec, Mount, Resources, RuntimeError, User};
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use super::context::Context;
use super::track::{ContainerId, Ended, Run};
use super::{Pod, hooks, host_network, security, uid};
use crate::env;
use crate::events::Severity;
use crate::expansion::expand;
use crate::images::LocalImage;
use crate::{resources, volumes};

/// Labels by which a container is known again after a restart of the agent.
pub(crate) mod labels {
    pub(crate) const POD_UID: &str = "io.kubernetes.pod.uid";
    pub(crate) const POD_NAME: &str = "io.kubernetes.pod.name";
    pub(crate) const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
    pub(crate) const CONTAINER_NAME: &str = "io.kubernetes.container.name";
    pub(crate) const IMAGE: &str = "proa.dev/image";
    pub(crate) const IMAGE_ID: &str = "proa.dev/image-id";
    pub(crate) const STOP_SIGNAL: &str = "proa.dev/stop-signal";
}

/// What one start needs.
pub(crate) struct Start {
    pub(crate) ctx: Arc<Context>,
    pub(crate) pod: Arc<Pod>,
    pub(crate) container: Container,
    pub(crate) attempt: u32,
    pub(crate) pod_ips: Vec<String>,
    /// set when the pod is to end: nothing new is begun
    pub(crate) cancel: CancellationToken,
}

/// How a start failed.
#[derive(Debug)]
pub(crate) enum StartError {
    /// nothing ran: a waiting reason and its message
    Blocked { reason: &'static str, message: String },
    /// it ran, or tried to, and has ended
    Ended(Box<Ended>),
    /// the pod is ending
    Cancelled,
}

/// A started container, and how to ask it to stop.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) run: Run,
    pub(crate) stop_signal: i32,
    /// `postStart` failed: the container is to be stopped
    pub(crate) hook_failed: bool,
}

fn blocked(reason: &'static str, message: impl Into<String>) -> StartError {
    StartError::Blocked { reason, message: message.into() }
}

/// The id of a run: the same for the same pod, container and attempt, so that a start interrupted by a crash
/// meets its own leftover instead of making a second container.
pub(crate) fn container_id(uid: &str, name: &str, attempt: u32) -> ContainerId {
    let digest = Sha256::digest(format!("{uid}/{name}/{attempt}"));
    ContainerId(digest.iter().take(16).map(|b| format!("{b:02x}")).collect())
}

impl Start {
    /// Does it.
    pub(crate) async fn run(self) -> Result<Started, StartError> {
        let Self { ctx, pod, container, .. } = &self;
        let name = container.name.as_str();
        // Nothing has been made yet that would have to be taken back: the end of the pod cuts this off, a pull too.
        let wanted = self.cancel.run_until_cancelled(self.wanted());
        let (image, spec) = wanted.await.unwrap_or(Err(StartError::Cancelled))?;
        let id = ContainerId(spec.id.clone());
        ctx.registry.own(&id, uid(pod));
        let failed = |error: RuntimeError, reason| {
            let message = error.to_string();
            ctx.recorder.pod(pod, Some(name), Severity::Warning, "Failed", format!("Error: {message}"));
            blocked(reason, message)
        };
        let created = match ctx.runtime.create(uid(pod), spec.clone()).await {
            Err(RuntimeError::AlreadyExists(_)) => {
                ctx.runtime.remove(&id.0).await.map_err(|e| failed(e, "CreateContainerError"))?;
                ctx.runtime.create(uid(pod), spec).await
            }
            other => other,
        }
        .map_err(|e| failed(e, "CreateContainerError"))?;
        ctx.recorder.pod(pod, Some(name), Severity::Normal, "Created", format!("Container created: {name}"));
        for warning in created.warnings {
            ctx.recorder.pod(pod, Some(name), Severity::Warning, "HostForbids", warning);
        }
        let mut run = Run {
            id: id.clone(),
            attempt: self.attempt,
            image: container.image.clone().unwrap_or_default(),
            image_id: image.id.clone(),
            started_at: Timestamp::now(),
        };
        if self.cancel.is_cancelled() {
            // What was made and never ran leaves no trace.
            if let Err(error) = ctx.runtime.remove(&id.0).await {
                tracing::debug!(container = name, %error, "an unstarted container was not removed");
            }
            return Err(StartError::Cancelled);
        }
        if let Err(error) = ctx.runtime.start(&id.0).await {
            return Err(self.start_failed(run, error));
        }
        run.started_at = Timestamp::now();
        ctx.recorder.pod(pod, Some(name), Severity::Normal, "Started", format!("Container started: {name}"));
        let stop_signal = image.stop_signal.unwrap_or(SIGTERM);
        let hook_failed = match container.lifecycle.as_ref().and_then(|l| l.post_start.as_ref()) {
            Some(hook) => self.post_start(&run, hook).await,
            None => false,
        };
        Ok(Started { run, stop_signal, hook_failed })
    }

    /// The image, and what to create from it.
    async fn wanted(&self) -> Result<(LocalImage, ContainerSpec), StartError> {
        let Self { ctx, pod, container, .. } = self;
        let image = ctx.images.ensure(&ctx.client, &ctx.recorder, pod, container).await;
        let image = image.map_err(|e| blocked(e.reason, e.message))?;
        match self.spec(&image).await {
            Ok(spec) => Ok((image, spec)),
            Err(error) => {
                if let StartError::Blocked { message, .. } = &error {
                    let message = format!("Error: {message}");
                    ctx.recorder.pod(pod, Some(&container.name), Severity::Warning, "Failed", message);
                }
                Err(error)
            }
        }
    }

    fn start_failed(&self, run: Run, error: RuntimeError) -> StartError {
        let message = error.to_string();
        let name = Some(self.container.name.as_str());
        self.ctx.recorder.pod(&self.pod, name, Severity::Warning, "Failed", format!("Error: {message}"));
        if matches!(error, RuntimeError::Start(_)) {
            return StartError::Ended(Box::new(Ended {
                run,
                code: 128,
                signal: None,
                reason: "StartError".to_owned(),
                message,
                finished_at: Timestamp::now(),
            }));
        }
        blocked("RunContainerError", message)
    }

    /// Runs `postStart`; whether the container has to be stopped for its failure.
    async fn post_start(&self, run: &Run, hook: &k8s_openapi::api::core::v1::LifecycleHandler) -> bool {
        let target = hooks::Target { ctx: &self.ctx, container: &self.container, id: &run.id, pod_ips: &self.pod_ips };
        let done = tokio::select! {
            done = hooks::run(&target, hook) => done,
            () = self.cancel.cancelled() => return false,
        };
        let Err(why) = done else { return false };
        self.ctx.recorder.pod(
            &self.pod,
            Some(&self.container.name),
            Severity::Warning,
            "FailedPostStartHook",
            format!("PostStartHook failed: {why}"),
        );
        true
    }

    async fn spec(&self, image: &LocalImage) -> Result<ContainerSpec, StartError> {
        let Self { ctx, pod, container, .. } = self;
        let config_error = |e: String| blocked("CreateContainerConfigError", e);
        let refs = env::references(container);
        let contents = ctx
            .objects
            .read_for(pod, &refs)
            .await
            .map_err(|e| config_error(format!("failed to read configuration: {e}")))?;
        let facts = env::Facts {
            pod,
            node_name: &ctx.node_name,
            pod_ips: &self.pod_ips,
            host_ips: &ctx.host_ips,
            allocatable: &ctx.allocatable,
        };
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
        let services = ctx.services.environment(namespace, pod.spec.enable_service_links != Some(false));
        let own = env::environment(container, &facts, &services, &contents).map_err(|e| config_error(e.to_string()))?;
        let lookup = |name: &str| own.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
        let args = arguments(container, image, lookup);
        if args.is_empty() {
            return Err(blocked("CreateContainerError", "no command specified"));
        }
        let layers = ctx
            .images
            .source()
            .layers(image)
            .await
            .map_err(|e| blocked("CreateContainerError", format!("failed to unpack image: {e}")))?;
        let user = self.user(image, &layers)?;
        let mounts =
            volumes::mounts(ctx, pod, container, self.attempt, &own).await.map_err(|e| config_error(e.to_string()))?;
        let mounts = self.image_volumes(image, &layers, mounts).await.map_err(config_error)?;
        let security_context = container.security_context.as_ref();
        let limits = resources::limits(container.resources.as_ref());
        let id = container_id(uid(pod), &container.name, self.attempt);
        let mut env = env::over_image(&image.env, own.clone());
        if !env.iter().any(|(n, _)| n == "PATH") {
            env.insert(0, ("PATH".to_owned(), DEFAULT_PATH.to_owned()));
        }
        if !env.iter().any(|(n, _)| n == "HOSTNAME") {
            env.push(("HOSTNAME".to_owned(), hostname(pod, &ctx.node_name)));
        }
        let mut labels = std::collections::BTreeMap::new();
        for (key, value) in [
            (labels::POD_UID, uid(pod)),
            (labels::POD_NAME, pod.metadata.name.as_deref().unwrap_or_default()),
            (labels::POD_NAMESPACE, namespace),
            (labels::CONTAINER_NAME, &container.name),
            (labels::IMAGE, container.image.as_deref().unwrap_or_default()),
            (labels::IMAGE_ID, &image.id),
        ] {
            labels.insert(key.to_owned(), value.to_owned());
        }
        labels.insert(labels::STOP_SIGNAL.to_owned(), image.stop_signal.unwrap_or(SIGTERM).to_string());
        Ok(ContainerSpec {
            id: id.0,
            name: container.name.clone(),
            attempt: self.attempt,
            layers,
            args,
            env,
            cwd: container.working_dir.clone().filter(|w| !w.is_empty()).unwrap_or_else(|| image.working_dir.clone()),
            user,
            mounts,
            capabilities: security::capabilities(container),
            privileged: security_context.and_then(|c| c.privileged) == Some(true),
            readonly_rootfs: readonly_root(container),
            no_new_privileges: security_context.and_then(|c| c.allow_privilege_escalation) == Some(false),
            resources: Resources {
                cpu_shares: Some(limits.cpu_shares),
                cpu_quota_us: limits.cpu_quota_us,
                cpu_period_us: limits.cpu_quota_us.map(|_| resources::CPU_PERIOD_US),
                memory_bytes: limits.memory_bytes,
                pids: None,
            },
            tty: container.tty == Some(true),
            stdin: container.stdin == Some(true),
            stdin_once: container.stdin_once == Some(true),
            log_path: ctx.layout.log(uid(pod), &container.name, self.attempt),
            oom_score_adj: Some(resources::oom_score_adj(&pod.spec, container, ctx.memory_capacity)),
            rlimits: Vec::new(),
            masked_paths: (security_context.and_then(|c| c.proc_mount.as_deref()) == Some("Unmasked")).then(Vec::new),
            readonly_paths: (security_context.and_then(|c| c.proc_mount.as_deref()) == Some("Unmasked")).then(Vec::new),
            devices: Vec::new(),
            labels,
        })
    }

    fn user(&self, image: &LocalImage, layers: &[PathBuf]) -> Result<User, StartError> {
        let identity = security::identity(&self.pod.spec, &self.container);
        let place = super::key(&self.pod).replace('/', "_");
        security::check_non_root(&identity, &image.user, &place, &self.container.name)
            .map_err(|e| blocked("CreateContainerConfigError", e))?;
        let wanted = match (identity.uid, identity.gid) {
            (Some(uid), Some(gid)) => format!("{uid}:{gid}"),
            (Some(uid), None) => uid.to_string(),
            (None, _) => image.user.clone(),
        };
        let mut user = proa_runtime::users::resolve(layers, &wanted)
            .map_err(|e| blocked("CreateContainerError", e.to_string()))?;
        if let Some(gid) = identity.gid {
            user.gid = u32::try_from(gid).unwrap_or(user.gid);
        }
        if identity.strict_groups {
            user.groups.clear();
        }
        for group in identity.groups {
            if let Ok(group) = u32::try_from(group)
                && !user.groups.contains(&group)
            {
                user.groups.push(group);
            }
        }
        Ok(user)
    }

    /// Mounts for the directories the image declares as volumes.
    async fn image_volumes(
        &self,
        image: &LocalImage,
        layers: &[PathBuf],
        mounts: Vec<Mount>,
    ) -> Result<Vec<Mount>, String> {
        if image.volumes.is_empty() {
            return Ok(mounts);
        }
        let declared = volumes::of_image::Declared {
            targets: image.volumes.clone(),
            layers: layers.to_vec(),
            readonly_root: readonly_root(&self.container),
            place: self.ctx.layout.image_volumes(uid(&self.pod), &self.container.name, self.attempt),
        };
        let add = move || declared.mounts(&mounts).map(|extra| mounts.into_iter().chain(extra).collect());
        tokio::task::spawn_blocking(add).await.map_err(|e| e.to_string())?
    }
}

fn readonly_root(container: &Container) -> bool {
    container.security_context.as_ref().and_then(|c| c.read_only_root_filesystem) == Some(true)
}

pub(crate) const SIGTERM: i32 = 15;
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The program and its arguments: `command` replaces ENTRYPOINT and drops CMD, `args` replaces CMD.
pub(crate) fn arguments(
    container: &Container,
    image: &LocalImage,
    lookup: impl Fn(&str) -> Option<String> + Copy,
) -> Vec<String> {
    let given = |list: &Option<Vec<String>>| -> Option<Vec<String>> {
        list.as_ref().filter(|l| !l.is_empty()).map(|l| l.iter().map(|a| expand(a, lookup)).collect())
    };
    let (command, args) = (given(&container.command), given(&container.args));
    let mut all = match &command {
        Some(command) => command.clone(),
        None => image.entrypoint.clone(),
    };
    match args {
        Some(args) => all.extend(args),
        None if command.is_none() => all.extend(image.cmd.iter().cloned()),
        None => {}
    }
    all
}

/// The host name inside a pod.
pub(crate) fn hostname(pod: &Pod, node_name: &str) -> String {
    if let Some(name) = pod.spec.hostname_override.as_deref().filter(|h| !h.is_empty()) {
        return name.to_owned();
    }
    if host_network(pod) {
        return node_name.to_owned();
    }
    let name = match pod.spec.hostname.as_deref().filter(|h| !h.is_empty()) {
        Some(hostname) => hostname,
        None => pod.metadata.name.as_deref().unwrap_or_default(),
    };
    // Kubernetes cuts at 63 and takes trailing separators off.
    name.chars().take(63).collect::<String>().trim_end_matches(['-', '.']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn command_and_args_over_entrypoint_and_cmd() {
        let image = LocalImage { entrypoint: vec!["/e".into()], cmd: vec!["c".into()], ..LocalImage::default() };
        for (container, want) in [
            (json!({"name": "x"}), vec!["/e", "c"]),
            (json!({"name": "x", "args": ["$(A)"]}), vec!["/e", "1"]),
            (json!({"name": "x", "command": ["/k"]}), vec!["/k"]),
            (json!({"name": "x", "command": ["/k"], "args": ["a"]}), vec!["/k", "a"]),
        ] {
            let container: Container = serde_json::from_value(container).unwrap();
            assert_eq!(arguments(&container, &image, |n| (n == "A").then(|| "1".into())), want);
        }
    }

    #[test]
    fn ids_are_the_same_for_the_same_run_only() {
        assert_eq!(container_id("u", "c", 0), container_id("u", "c", 0));
        assert_ne!(container_id("u", "c", 0), container_id("u", "c", 1));
        assert_eq!(container_id("u", "c", 0).0.len(), 32);
    }

    #[test]
    fn host_names_are_cut_as_kubernetes_does() {
        let pod = |spec: serde_json::Value| -> Pod {
            serde_json::from_value(json!({"metadata": {"name": format!("{}-x", "a".repeat(62))}, "spec": spec}))
                .unwrap()
        };
        assert_eq!(hostname(&pod(json!({"containers": []})), "n"), "a".repeat(62));
        assert_eq!(hostname(&pod(json!({"containers": [], "hostname": "h"})), "n"), "h");
        assert_eq!(hostname(&pod(json!({"containers": [], "hostNetwork": true})), "n"), "n");
    }
}
