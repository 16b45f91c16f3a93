//! Many Deployments: all available, then all rolled to a new revision.

use std::time::{Duration, Instant};

use anyhow::ensure;
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::apps::v1::Deployment;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use serde_json::json;

use crate::Target;
use crate::parts::Parts;
use crate::report::Report;

const PATIENCE: Duration = Duration::from_secs(600);
const AT_ONCE: usize = 16;
const LABEL: &str = "bench=deployments";

fn deployment(index: usize, replicas: i32) -> Result<Deployment, serde_json::Error> {
    let name = format!("bench-{index}");
    serde_json::from_value(json!({
        "metadata": {"name": name, "labels": {"bench": "deployments"}},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}, "annotations": {"bench": "one"}},
                "spec": {
                    "terminationGracePeriodSeconds": 0,
                    "containers": [{"name": "main", "image": "pause", "resources": {"requests": {"cpu": "10m"}}}],
                },
            },
        },
    }))
}

/// Waits until every Deployment is as it was last written, as `kubectl rollout status` decides.
async fn all_rolled(api: &Api<Deployment>, count: usize, replicas: i32) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let done = |deployment: &&Deployment| {
        let wanted = deployment.metadata.generation.unwrap_or_default();
        deployment.status.as_ref().is_some_and(|status| {
            status.observed_generation.unwrap_or_default() >= wanted
                && status.updated_replicas == Some(replicas)
                && status.available_replicas == Some(replicas)
                && status.replicas == Some(replicas)
        })
    };
    loop {
        let list = api.list(&ListParams::default().labels(LABEL)).await?;
        let rolled = list.items.iter().filter(done).count();
        if rolled == count {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{rolled} of {count} Deployments are rolled out");
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

pub(crate) async fn measure(target: &Target, nodes: u32, count: usize, replicas: i32) -> anyhow::Result<Vec<Report>> {
    let parts = Parts::get(target, nodes).await?;
    let api: Api<Deployment> = Api::default_namespaced(parts.platform.client().await?);
    let (mut times, mut memory) = (Report::new("s"), Report::new("MiB"));
    let begun = Instant::now();
    let create = |index| {
        let api = &api;
        async move { anyhow::Ok(api.create(&PostParams::default(), &deployment(index, replicas)?).await?) }
    };
    stream::iter(0..count).map(create).buffer_unordered(AT_ONCE).try_collect::<Vec<_>>().await?;
    all_rolled(&api, count, replicas).await?;
    times.add(&format!("{count} Deployments of {replicas}: created to all available"), begun.elapsed().as_secs_f64());
    let begun = Instant::now();
    let patch = json!({"spec": {"template": {"metadata": {"annotations": {"bench": "two"}}}}});
    let change = |index| {
        let (api, patch) = (&api, &patch);
        async move { api.patch(&format!("bench-{index}"), &PatchParams::default(), &Patch::Merge(patch)).await }
    };
    stream::iter(0..count).map(change).buffer_unordered(AT_ONCE).try_collect::<Vec<_>>().await?;
    all_rolled(&api, count, replicas).await?;
    times.add("new revision to all rolled", begun.elapsed().as_secs_f64());
    parts.controllers_memory().into_iter().for_each(|mib| memory.add("controllers at most", mib));
    Ok(vec![times, memory])
}
