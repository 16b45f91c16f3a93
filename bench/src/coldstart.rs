//! Fresh start to API ready, to node ready and to the first pod Running.

use anyhow::bail;

use crate::Target;
use crate::platform::Platform;
use crate::podstart::{self, Pods};
use crate::report::Report;

pub(crate) async fn measure(target: &Target) -> anyhow::Result<Vec<Report>> {
    if target.kubeconfig.is_some() {
        bail!(
            "coldstart starts the platform itself: leave --kubeconfig out, or time your own start command with podstart"
        );
    }
    let mut report = Report::new("ms");
    for run in 0..target.runs {
        let platform = Platform::start(target)?;
        report.add_time("start to API ready", platform.api_ready().await?);
        let pods = Pods::new(platform.client().await?, target.image.clone());
        podstart::default_service_account(&pods.client).await?;
        pods.start(&format!("first-{run}")).await?;
        report.add_time("start to first pod Running", platform.begun.elapsed());
    }
    Ok(vec![report])
}
