//! Owns the set of workers: one watch on the pods of this node, one stream of runtime events, one slow relist
//! behind them. Takes back what an earlier agent left and sweeps what no pod claims (invariants 7, 8, 9).

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Resource as _};
use proa_crds::{Decoded, Family, Undecodable};
use proa_runtime::{ContainerState, ContainerStatus, Exit, RuntimeEvent, SandboxState};
use tokio_util::sync::CancellationToken;

use super::context::Context;
use super::ground::{self, GroundInfo};
use super::track::ContainerId;
use super::worker::{self, Begin, Message};
use super::{Pod, host_network, uid};

/// The slow relist behind the runtime's events.
const RELIST: Duration = Duration::from_secs(120);

/// A list of pods until it is complete.
#[derive(Default)]
struct Listed {
    uids: BTreeSet<String>,
    pods: Vec<Pod>,
}

/// What the node itself had when the agent started.
struct Found {
    containers: HashMap<String, Vec<ContainerStatus>>,
    grounds: HashMap<String, GroundInfo>,
}

impl Found {
    /// A container that ends before its pod has a worker: the worker begins with that.
    fn exited(&mut self, id: &ContainerId, exit: Exit) {
        if let Some(ended) = self.containers.values_mut().flatten().find(|container| container.id == id.0) {
            ended.state = ContainerState::Exited(exit);
        }
    }
}

/// Runs the pods of the node until `shutdown`. Containers are left running.
pub(crate) async fn run(ctx: Arc<Context>, shutdown: CancellationToken) {
    let mut events = ctx.runtime.events();
    let mut found = find(&ctx).await;
    let api: Api<Decoded<Pod>> = Api::all_with(ctx.client.clone(), &ctx.family.pod());
    let config = match ctx.family {
        // The server picks the node's pods.
        Family::Standard => watcher::Config::default().fields(&format!("spec.nodeName={}", ctx.node_name)),
        // A custom resource on any server may not know that field: the agent picks.
        Family::Proa => watcher::Config::default(),
    };
    let mut pods = watcher(api, config).default_backoff().boxed();
    let mut listed: Option<Listed> = None;
    let mut relist = tokio::time::interval(RELIST);
    relist.tick().await;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            event = pods.next() => match event {
                Some(Ok(event)) => on_pod(&ctx, event, &mut listed, &mut found).await,
                Some(Err(error)) => tracing::warn!(%error, "watch of pods failed; trying again"),
                None => return,
            },
            event = events.next() => match event {
                Some(RuntimeEvent::Exited { id, exit }) => {
                    let id = ContainerId(id);
                    match ctx.registry.owner(&id) {
                        Some(uid) => _ = ctx.registry.tell(&uid, Message::Exited { id, exit }),
                        None => found.exited(&id, exit),
                    }
                }
                Some(RuntimeEvent::Started { .. }) => {}
                Some(RuntimeEvent::Lagged) => tell_exits(&ctx).await,
                None => {
                    tracing::warn!("the runtime's events ended; listening anew");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    events = ctx.runtime.events();
                    tell_exits(&ctx).await;
                }
            },
            _ = relist.tick() => tell_exits(&ctx).await,
        }
    }
}

/// Tells every worker of every exit there is: what it knows already it ignores.
async fn tell_exits(ctx: &Context) {
    let Ok(list) = ctx.runtime.list().await else { return };
    for status in list {
        if let ContainerState::Exited(exit) = status.state {
            let id = ContainerId(status.id);
            if let Some(uid) = ctx.registry.owner(&id) {
                ctx.registry.tell(&uid, Message::Exited { id, exit });
            }
        }
    }
}

async fn find(ctx: &Context) -> Found {
    let mut containers: HashMap<String, Vec<ContainerStatus>> = HashMap::new();
    match ctx.runtime.list().await {
        Ok(list) => {
            for status in list {
                containers.entry(status.sandbox.clone()).or_default().push(status);
            }
        }
        Err(error) => tracing::error!(%error, "the runtime cannot list its containers"),
    }
    let networks: HashMap<String, _> = match ctx.network.list().await {
        Ok(list) => list.into_iter().map(|n| (n.id.clone(), n)).collect(),
        Err(error) => {
            tracing::warn!(%error, "the pod network cannot be listed");
            HashMap::new()
        }
    };
    let mut grounds = HashMap::new();
    match ctx.runtime.list_sandboxes().await {
        Ok(list) => {
            for sandbox in list.into_iter().filter(|s| s.state == SandboxState::Ready) {
                let id = sandbox.spec.id.clone();
                let info = match (&sandbox.spec.netns, networks.get(&id)) {
                    (None, _) => GroundInfo { pod_ips: ctx.host_ips.clone(), ..GroundInfo::default() },
                    (Some(_), Some(net)) => GroundInfo {
                        pod_ips: vec![net.ip.to_string()],
                        netns: Some(net.netns.clone()),
                        ..GroundInfo::default()
                    },
                    // Its network is lost: it has to be made anew.
                    (Some(_), None) => continue,
                };
                grounds.insert(id, info);
            }
        }
        Err(error) => tracing::error!(%error, "the runtime cannot list its sandboxes"),
    }
    Found { containers, grounds }
}

async fn on_pod(
    ctx: &Arc<Context>,
    event: watcher::Event<Decoded<Pod>>,
    listed: &mut Option<Listed>,
    found: &mut Found,
) {
    match event {
        watcher::Event::Init => *listed = Some(Listed::default()),
        watcher::Event::InitApply(Decoded::Object(pod)) => {
            if let Some(listed) = listed
                && is_ours(ctx, &pod)
            {
                listed.uids.insert(uid(&pod).to_owned());
                listed.pods.push(pod);
            }
        }
        watcher::Event::InitApply(Decoded::Undecodable(unread)) => {
            // It is still there: what runs of it goes on as it last could be read.
            if let (Some(listed), Some(uid)) = (listed, &unread.metadata.uid) {
                listed.uids.insert(uid.clone());
            }
            skip(&unread);
        }
        watcher::Event::InitDone => {
            let listed = listed.take().unwrap_or_default();
            for uid in ctx.registry.uids() {
                if !listed.uids.contains(&uid) {
                    ctx.registry.tell(&uid, Message::Gone);
                }
            }
            for pod in in_order(listed.pods, |uid| found.containers.contains_key(uid)) {
                wanted(ctx, pod, found);
            }
            sweep(ctx, found).await;
        }
        watcher::Event::Apply(Decoded::Object(pod)) => wanted(ctx, pod, found),
        watcher::Event::Apply(Decoded::Undecodable(unread)) => skip(&unread),
        watcher::Event::Delete(pod) => {
            ctx.registry.tell(pod.meta().uid.as_deref().unwrap_or_default(), Message::Gone);
        }
    }
}

/// Pods of a list as they are taken in: those that run first, then the older one, so that what the node can give once it
/// gives to the pod that had it.
fn in_order(mut pods: Vec<Pod>, runs: impl Fn(&str) -> bool) -> Vec<Pod> {
    let age = |pod: &Pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
    pods.sort_by_cached_key(|pod| (!runs(uid(pod)), age(pod), uid(pod).to_owned()));
    pods
}

fn skip(unread: &Undecodable) {
    let (namespace, name) = (unread.metadata.namespace.as_deref(), unread.metadata.name.as_deref());
    tracing::warn!(namespace, name, error = unread.error, "this pod cannot be read and is left as it is");
}

fn is_ours(ctx: &Context, pod: &Pod) -> bool {
    pod.spec.node_name.as_deref() == Some(&ctx.node_name)
}

fn wanted(ctx: &Arc<Context>, pod: Pod, found: &mut Found) {
    if !is_ours(ctx, &pod) {
        return;
    }
    let uid = uid(&pod).to_owned();
    let pod = Arc::new(pod);
    if ctx.registry.tell(&uid, Message::Pod(pod.clone())) {
        return;
    }
    let ground = found.grounds.remove(&uid).filter(|g| g.netns.is_some() || host_network(&pod));
    let found = found.containers.remove(&uid).unwrap_or_default();
    worker::spawn(Begin { ctx: ctx.clone(), pod, found, ground });
}

/// Removes what belongs to no pod any more: sandboxes, networks, directories.
async fn sweep(ctx: &Arc<Context>, found: &mut Found) {
    let known: BTreeSet<String> = ctx.registry.uids().into_iter().collect();
    let mut leftovers: BTreeSet<String> = found.containers.drain().map(|(uid, _)| uid).collect();
    leftovers.extend(found.grounds.drain().map(|(uid, _)| uid));
    if let Ok(list) = ctx.runtime.list_sandboxes().await {
        leftovers.extend(list.into_iter().map(|s| s.spec.id));
    }
    if let Ok(entries) = std::fs::read_dir(ctx.layout.root()) {
        leftovers.extend(entries.flatten().filter_map(|e| e.file_name().into_string().ok()));
    }
    for uid in leftovers.difference(&known) {
        tracing::info!(uid, "removing what a pod that is gone left behind");
        match ground::teardown(ctx, uid).await {
            Ok(()) => ground::forget(ctx, uid),
            Err(error) => tracing::warn!(uid, error, "leftovers of a pod stay behind"),
        }
    }
    if let Err(error) = ctx.network.sweep(&known).await {
        tracing::warn!(error, "leftovers of the pod network stay behind");
    }
}

#[cfg(test)]
mod tests {
    use proa_runtime::ExitReason;

    use super::*;

    #[test]
    fn those_that_run_come_first_and_then_the_older() {
        let pod = |uid: &str, day: u8| -> Pod {
            let created = format!("2026-11-{day:02}T10:00:00Z");
            let meta = serde_json::json!({"uid": uid, "creationTimestamp": created});
            serde_json::from_value(serde_json::json!({"metadata": meta, "spec": {"containers": []}})).expect("a pod")
        };
        let pods = vec![pod("new", 3), pod("old", 2), pod("runs", 4), pod("even", 2)];
        let order: Vec<String> = in_order(pods, |uid| uid == "runs").iter().map(|pod| uid(pod).to_owned()).collect();
        assert_eq!(order, ["runs", "even", "old", "new"]);
    }

    #[test]
    fn an_exit_between_the_first_look_and_the_workers_start_is_not_lost() {
        let running = ContainerStatus {
            id: "c".into(),
            sandbox: "u".into(),
            name: "main".into(),
            attempt: 0,
            state: ContainerState::Running,
            pid: Some(7),
            created_at: jiff::Timestamp::UNIX_EPOCH,
            started_at: Some(jiff::Timestamp::UNIX_EPOCH),
            labels: Default::default(),
            log_path: "/log".into(),
        };
        let exit = Exit {
            code: 5,
            signal: None,
            reason: ExitReason::Error,
            message: String::new(),
            finished_at: jiff::Timestamp::UNIX_EPOCH,
        };
        let mut found = Found { containers: HashMap::from([("u".into(), vec![running])]), grounds: HashMap::new() };
        found.exited(&ContainerId("another".into()), exit.clone());
        assert_eq!(found.containers["u"][0].state, ContainerState::Running);
        found.exited(&ContainerId("c".into()), exit.clone());
        assert_eq!(found.containers["u"][0].state, ContainerState::Exited(exit), "what the worker begins with");
    }
}
