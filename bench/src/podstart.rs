//! Apply to Running of single pods, and what one start and stop costs in CPU.

use std::time::{Duration, Instant};

use anyhow::Context;
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::api::{Api, DeleteParams, PostParams};
use kube::runtime::wait::{await_condition, conditions};
use kube::{Client, ResourceExt};

use crate::Target;
use crate::platform::Platform;
use crate::process;
use crate::report::Report;

const PATIENCE: Duration = Duration::from_secs(60);

/// Starts and stops pods of one image in the default namespace.
pub(crate) struct Pods {
    pub(crate) client: Client,
    image: String,
}

impl Pods {
    pub(crate) fn new(client: Client, image: String) -> Pods {
        Pods { client, image }
    }

    fn api(&self) -> Api<Pod> {
        Api::default_namespaced(self.client.clone())
    }

    /// Creates a pod; how long until a watch says that it runs.
    pub(crate) async fn start(&self, name: &str) -> anyhow::Result<Duration> {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": name},
            "spec": {"terminationGracePeriodSeconds": 0, "containers": [{"name": "main", "image": self.image}]},
        }))?;
        // The watch is under way before the pod is created, as with `kubectl get -w` beside it.
        let running = {
            let (api, name) = (self.api(), name.to_owned());
            tokio::spawn(async move { await_condition(api, &name, conditions::is_pod_running()).await })
        };
        let begun = Instant::now();
        self.api().create(&PostParams::default(), &pod).await?;
        tokio::time::timeout(PATIENCE, running).await.with_context(|| format!("pod {name} does not run"))???;
        Ok(begun.elapsed())
    }

    /// Deletes a pod and waits until it is gone.
    pub(crate) async fn stop(&self, name: &str) -> anyhow::Result<()> {
        let pod = self.api().get(name).await?;
        let uid = pod.uid().unwrap_or_default();
        self.api().delete(name, &DeleteParams::default()).await?;
        let gone = await_condition(self.api(), name, conditions::is_deleted(&uid));
        tokio::time::timeout(PATIENCE, gone).await.with_context(|| format!("pod {name} does not end"))??;
        Ok(())
    }
}

/// Pods cannot be made before their namespace has its service account.
pub(crate) async fn default_service_account(client: &Client) -> anyhow::Result<()> {
    let accounts: Api<ServiceAccount> = Api::default_namespaced(client.clone());
    await_condition(accounts, "default", |account: Option<&ServiceAccount>| account.is_some()).await?;
    Ok(())
}

pub(crate) async fn measure(target: &Target, pods: usize) -> anyhow::Result<Vec<Report>> {
    let platform = Platform::get(target).await?;
    let client = platform.client().await?;
    default_service_account(&client).await?;
    let starter = Pods::new(client, target.image.clone());
    starter.start("warm-up").await?;
    starter.stop("warm-up").await?;
    let mut latency = Report::new("ms");
    let mut cost = Report::new("core-s");
    for run in 0..target.runs {
        let before = process::machine_cpu_seconds();
        for index in 0..pods {
            let name = format!("pod-{run}-{index}");
            latency.add_time("apply to Running", starter.start(&name).await?);
            starter.stop(&name).await?;
        }
        let after = process::machine_cpu_seconds();
        cost.add("CPU per pod start and stop, whole machine", (after - before) / pods as f64);
    }
    Ok(vec![latency, cost])
}
