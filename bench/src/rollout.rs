//! One Deployment: to all Ready, a rolling update, going back, deletion.

use std::time::{Duration, Instant};

use anyhow::Context;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::wait::await_condition;

use crate::Target;
use crate::platform::Platform;
use crate::podstart::default_service_account;
use crate::report::Report;

const NAME: &str = "bench-rollout";
const PATIENCE: Duration = Duration::from_secs(180);

pub(crate) async fn measure(target: &Target, replicas: i32) -> anyhow::Result<Vec<Report>> {
    let platform = Platform::get(target).await?;
    let client = platform.client().await?;
    default_service_account(&client).await?;
    let deployments: Api<Deployment> = Api::default_namespaced(client.clone());
    let pods: Api<Pod> = Api::default_namespaced(client);
    let mut report = Report::new("ms");
    for _ in 0..target.runs {
        let begun = Instant::now();
        let created = deployments.create(&PostParams::default(), &deployment(&target.image, replicas)?).await?;
        rolled_out(&deployments, &created, replicas).await?;
        report.add_time(&format!("{replicas} pods to all Ready"), begun.elapsed());
        for (what, value) in [("rolling update", "two"), ("rollback", "one")] {
            let begun = Instant::now();
            let patch = serde_json::json!({"spec": {"template": {"metadata": {"annotations": {"bench": value}}}}});
            let patched = deployments.patch(NAME, &PatchParams::default(), &Patch::Merge(&patch)).await?;
            rolled_out(&deployments, &patched, replicas).await?;
            report.add_time(&format!("{what} of {replicas} pods"), begun.elapsed());
        }
        let begun = Instant::now();
        deployments.delete(NAME, &DeleteParams::foreground()).await?;
        let mine = ListParams::default().labels("app=bench-rollout");
        while !pods.list_metadata(&mine).await?.items.is_empty() {
            anyhow::ensure!(begun.elapsed() < PATIENCE, "the pods do not end");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        report.add_time(&format!("deletion of {replicas} pods"), begun.elapsed());
        tokio::time::timeout(PATIENCE, await_condition(deployments.clone(), NAME, gone)).await??;
    }
    Ok(vec![report])
}

fn gone(deployment: Option<&Deployment>) -> bool {
    deployment.is_none()
}

fn deployment(image: &str, replicas: i32) -> anyhow::Result<Deployment> {
    Ok(serde_json::from_value(serde_json::json!({
        "metadata": {"name": NAME},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": NAME}},
            "strategy": {"rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}},
            "template": {
                "metadata": {"labels": {"app": NAME}, "annotations": {"bench": "one"}},
                "spec": {"terminationGracePeriodSeconds": 0, "containers": [{"name": "main", "image": image}]},
            },
        },
    }))?)
}

/// As `kubectl rollout status` decides, for the Deployment as it was written.
async fn rolled_out(api: &Api<Deployment>, written: &Deployment, replicas: i32) -> anyhow::Result<()> {
    let generation = written.metadata.generation.unwrap_or_default();
    let done = move |deployment: Option<&Deployment>| {
        deployment.and_then(|deployment| deployment.status.as_ref()).is_some_and(|status| {
            status.observed_generation.unwrap_or_default() >= generation
                && status.updated_replicas == Some(replicas)
                && status.available_replicas == Some(replicas)
                && status.replicas == Some(replicas)
        })
    };
    tokio::time::timeout(PATIENCE, await_condition(api.clone(), NAME, done))
        .await
        .context("the rollout does not end")??;
    Ok(())
}
