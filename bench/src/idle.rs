//! Memory and CPU of a platform that has nothing to do.

use std::time::Duration;

use crate::Target;
use crate::platform::Platform;
use crate::podstart::{Pods, default_service_account};
use crate::process;
use crate::report::Report;

pub(crate) async fn measure(target: &Target, pods: usize, seconds: u64) -> anyhow::Result<Vec<Report>> {
    let platform = Platform::get(target).await?;
    let client = platform.client().await?;
    default_service_account(&client).await?;
    let starter = Pods::new(client, target.image.clone());
    for index in 0..pods {
        starter.start(&format!("idle-{index}")).await?;
    }
    // What the start left over is worked off before the measurement.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let mut memory = Report::new("MiB");
    let mut cpu = Report::new("% of a core");
    for _ in 0..target.runs {
        let before = process::cpu_seconds(&process::named(&target.process));
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        let pids = process::named(&target.process);
        cpu.add(&format!("CPU, {pods} pods"), (process::cpu_seconds(&pids) - before) / seconds as f64 * 100.0);
        let (resident, proportional) = process::memory(&pids);
        memory.add(&format!("resident, {} processes, {pods} pods", pids.len()), resident);
        memory.add("the same, shared pages counted once", proportional);
    }
    for index in 0..pods {
        starter.stop(&format!("idle-{index}")).await?;
    }
    Ok(vec![memory, cpu])
}
