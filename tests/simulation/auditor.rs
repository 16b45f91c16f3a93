//! A watcher that believes nothing: it writes down what it is shown, and is cut off again and again.
//!
//! Owns: the law that a watch shows every change of every object once and in order, over any number of reconnections.

use futures::StreamExt;
use http_body_util::{BodyExt, BodyStream, Full};
use parking_lot::Mutex;
use proa_apiserver::LocalService;
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde::Deserialize;
use std::sync::Arc;
use std::time::Duration;

pub(crate) struct Auditor {
    seen: Arc<Mutex<Vec<(u64, String, String)>>>,
}

#[derive(Deserialize)]
struct Line {
    #[serde(rename = "type")]
    kind: String,
    object: Shown,
}

#[derive(Deserialize)]
struct Shown {
    #[serde(default)]
    metadata: Metadata,
}

#[derive(Default, Deserialize)]
struct Metadata {
    #[serde(default)]
    name: String,
    #[serde(default)]
    namespace: String,
    #[serde(default, rename = "resourceVersion")]
    version: String,
}

impl Auditor {
    /// Watches all pods from a revision on.
    pub(crate) fn start(server: LocalService, from: u64, seed: u64) -> Auditor {
        let seen: Arc<Mutex<Vec<(u64, String, String)>>> = Arc::default();
        let auditor = Auditor { seen: seen.clone() };
        tokio::spawn(async move {
            let mut chance = StdRng::seed_from_u64(seed ^ 0xA0D17);
            let mut version = from;
            loop {
                version = watch(server.clone(), version, &seen, &mut chance).await;
                tokio::time::sleep(Duration::from_millis(chance.random_range(0..2_000))).await;
            }
        });
        auditor
    }

    /// What was shown against what happened. The newest changes may not have been shown yet.
    pub(crate) fn judge(&self, happened: &[(u64, String, &'static str)]) -> Option<String> {
        let seen = self.seen.lock();
        for (at, shown) in seen.iter().enumerate() {
            let Some(real) = happened.get(at) else { return Some(format!("a watch shows {shown:?}, which never was")) };
            if (shown.0, &shown.1, shown.2.as_str()) != (real.0, &real.1, real.2) {
                return Some(format!("a watch shows {shown:?} where {real:?} happened"));
            }
        }
        let unseen = happened.len() - seen.len();
        (unseen > 20).then(|| format!("a watch does not show the last {unseen} changes"))
    }
}

/// One connection, until it is cut: the last version shown.
async fn watch(
    mut server: LocalService,
    mut version: u64,
    seen: &Mutex<Vec<(u64, String, String)>>,
    chance: &mut StdRng,
) -> u64 {
    let path = format!("/api/v1/pods?watch=1&allowWatchBookmarks=true&resourceVersion={version}");
    let request = http::Request::get(path).body(Full::new(bytes::Bytes::new())).expect("a request");
    let Ok(response) = tower::Service::call(&mut server, request).await;
    let mut frames = BodyStream::new(response.into_body().boxed_unsync());
    let mut rest = Vec::new();
    for _ in 0..chance.random_range(1..40) {
        let Some(Ok(frame)) = frames.next().await else { break };
        let Ok(data) = frame.into_data() else { continue };
        rest.extend_from_slice(&data);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            let line: Line = serde_json::from_slice(&line).expect("a line of a watch is a JSON event");
            version = line.object.metadata.version.parse().unwrap_or(version);
            if line.kind != "BOOKMARK" {
                let key = format!("/registry/pods/{}/{}", line.object.metadata.namespace, line.object.metadata.name);
                seen.lock().push((version, key, line.kind));
            }
        }
    }
    version
}
