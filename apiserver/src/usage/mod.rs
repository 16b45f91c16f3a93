//! `metrics.k8s.io`: what nodes and pods use, asked of the nodes' agents when somebody wants to know.
//!
//! Owns the last two looks at every node that was asked about, and the answers made of them. Nothing runs while nobody
//! asks; whoever asks again soon is answered from the last look, and a list asks each node once, whatever it lists.
//! A node that does not answer is left out. Never stores anything.

mod rates;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{StreamExt, stream};
use http::StatusCode;
use jiff::Timestamp;
use parking_lot::Mutex;
use proa_apimachinery::object::Object;
use proa_apimachinery::status::ApiError;
use proa_apimachinery::table as wire;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use crate::core::Core;
use crate::http::Response;
use crate::http::negotiate::Shape;
use crate::kinds::metrics::{GROUP, window};
use crate::proxy::ask_agent;
use crate::registry::selection::Selection;
use crate::registry::{Call, get, meta, not_allowed, table};
use crate::resources::Resource;
use rates::{Sample, Used};

/// A look younger than this answers another question.
const FRESH: Duration = Duration::from_secs(5);
/// A rate is an average over at least this long, if there is a look that old.
const STEADY: Duration = Duration::from_secs(10);
/// A look older than this says nothing of what happens now: two new ones are taken.
const STALE: Duration = Duration::from_secs(60);
/// The time between those two.
const PAUSE: Duration = Duration::from_secs(1);
/// A node that did not answer is not asked again for so long.
const SILENT: Duration = Duration::from_secs(15);
/// How many agents are asked at the same time.
const AT_ONCE: usize = 32;

/// The last looks, by node.
#[derive(Default)]
pub struct Usage(Mutex<HashMap<String, Arc<tokio::sync::Mutex<Looks>>>>);

/// The looks at one node. Who takes one holds the lock: others wait for it rather than asking too.
#[derive(Default)]
struct Looks {
    /// Oldest first; no more than are needed.
    taken: VecDeque<(Instant, Arc<Sample>)>,
    silent_since: Option<Instant>,
}

/// Two looks: the later, and the one it is compared with.
struct Measured {
    latest: Arc<Sample>,
    earlier: Arc<Sample>,
}

/// What answers a request.
pub type Answer = for<'a> fn(&'a Call<'a>) -> BoxFuture<'a, Result<Response, ApiError>>;

/// Who answers for a resource that is measured.
pub fn find(resource: &Resource) -> Option<Answer> {
    match (&*resource.kind.group, &*resource.kind.plural) {
        (GROUP, "nodes") => Some(|call| Box::pin(answer(call, nodes))),
        (GROUP, "pods") => Some(|call| Box::pin(answer(call, pods))),
        _ => None,
    }
}

type Measure = for<'a> fn(&'a Call<'a>, Selection) -> BoxFuture<'a, Vec<Object>>;

async fn answer(call: &Call<'_>, measure: Measure) -> Result<Response, ApiError> {
    let info = &call.request.info;
    if !matches!(info.verb, "get" | "list") || !info.subresource.is_empty() {
        return Err(not_allowed(call));
    }
    call.core.caches.consistent().await?;
    let selection = Selection::read(&call.resource, &call.request.query, call.namespace())?;
    if info.verb == "get" {
        let found = measure(call, selection.with_name(&info.name)).await.pop();
        let object = found.ok_or_else(|| call.not_found(&info.name))?;
        return get::answer(call, StatusCode::OK, Bytes::from(object.into_value().to_string()));
    }
    list(call, &measure(call, selection).await)
}

fn list(call: &Call<'_>, objects: &[Object]) -> Result<Response, ApiError> {
    let chosen = call.chosen()?;
    let body = match chosen.shape {
        Shape::Object => json!({
            "kind": call.resource.kind.list_kind, "apiVersion": call.resource.api_version(), "metadata": {},
            "items": objects.iter().map(Object::to_value).collect::<Vec<_>>(),
        }),
        Shape::Table => table::of(call, objects, Map::new(), true, chosen.version)?,
        Shape::Partial => {
            let mut list = wire::partial_metadata_list(objects.iter().map(|object| &object.0), Map::new());
            table::set_version(&mut list, chosen.version);
            list
        }
    };
    Ok(get::encoded(StatusCode::OK, chosen.encoding, Bytes::from(body.to_string())))
}

fn nodes<'a>(call: &'a Call<'a>, selection: Selection) -> BoxFuture<'a, Vec<Object>> {
    Box::pin(async move {
        let nodes = selected(call, "nodes", &selection);
        let measured = call.core.usage.of(call.core, nodes.iter().map(|node| node.name().to_owned()).collect()).await;
        let found = nodes.iter().filter_map(|node| {
            let Measured { latest, earlier } = measured.get(node.name())?;
            let used = latest.node_since(earlier)?;
            let mut object = head(call, node, latest.at, used.window);
            object.set(&["usage"], usage(&used));
            Some(object)
        });
        found.collect()
    })
}

fn pods<'a>(call: &'a Call<'a>, selection: Selection) -> BoxFuture<'a, Vec<Object>> {
    Box::pin(async move {
        let mut pods = selected(call, "pods", &selection);
        pods.retain(|pod| pod.get_str(&["status", "phase"]) == Some("Running"));
        let node = |pod: &Object| pod.get_str(&["spec", "nodeName"]).unwrap_or_default().to_owned();
        let measured = call.core.usage.of(call.core, pods.iter().map(node).collect()).await;
        let found = pods.iter().filter_map(|pod| {
            let Measured { latest, earlier } = measured.get(&node(pod))?;
            let containers = latest.pod_since(pod.uid(), earlier)?;
            // A pod has one window: the shortest, which all of its figures are good for.
            let shortest = containers.iter().map(|(_, used)| used.window).fold(f64::INFINITY, f64::min);
            let mut object = head(call, pod, latest.at, shortest);
            let containers = containers.iter().map(|(name, used)| json!({"name": name, "usage": usage(used)}));
            object.set(&["containers"], containers.collect::<Vec<_>>());
            Some(object)
        });
        found.collect()
    })
}

/// The nodes or pods a request is about, in the order lists have.
fn selected(call: &Call<'_>, plural: &str, selection: &Selection) -> Vec<Object> {
    let core = call.core;
    let table = core.resources.table();
    let Some(resource) = table.find("", "v1", plural) else { return Vec::new() };
    let items = match &selection.name {
        Some(name) if !resource.namespaced() || !call.namespace().is_empty() => {
            resource.cache.get(call.namespace(), name).into_iter().collect()
        }
        _ => resource.cache.snapshot(call.namespace(), core.caches.applied()).items,
    };
    items.iter().filter(|item| selection.matches(resource, item)).map(|item| item.object()).collect()
}

/// What all of them say.
fn head(call: &Call<'_>, of: &Object, at: Timestamp, seconds: f64) -> Object {
    let mut object = Object::new(&call.resource.api_version(), &call.resource.kind.kind);
    let metadata = object.metadata_mut();
    metadata.insert("name".into(), of.name().into());
    if !of.namespace().is_empty() {
        metadata.insert("namespace".into(), of.namespace().into());
    }
    metadata.insert("creationTimestamp".into(), meta::time(call.core.now()).into());
    if let Some(labels) = of.get(&["metadata", "labels"]) {
        metadata.insert("labels".into(), labels.clone());
    }
    object.set(&["timestamp"], meta::time(at));
    object.set(&["window"], window(seconds));
    object
}

fn usage(used: &Used) -> Value {
    json!({"cpu": format!("{}n", used.cpu_nano), "memory": format!("{}Ki", used.memory.div_ceil(1024))})
}

impl Usage {
    /// The looks at these nodes, taken anew where the last is not fresh.
    async fn of(&self, core: &Core, mut nodes: BTreeSet<String>) -> HashMap<String, Measured> {
        nodes.remove("");
        {
            // What is not there any more is not kept.
            let known = core.caches.resource("nodes");
            self.0.lock().retain(|node, _| known.get("", node).is_some());
        }
        let looks = nodes.into_iter().map(|node| async move {
            let looks = Arc::clone(self.0.lock().entry(node.clone()).or_default());
            let mut looks = looks.lock().await;
            looks.measure(core, &node).await.map(|measured| (node, measured))
        });
        stream::iter(looks).buffer_unordered(AT_ONCE).filter_map(|found| async move { found }).collect().await
    }
}

impl Looks {
    async fn measure(&mut self, core: &Core, node: &str) -> Option<Measured> {
        if self.silent_since.is_some_and(|since| since.elapsed() < SILENT) {
            return None;
        }
        if self.taken.back().is_none_or(|(at, _)| at.elapsed() > FRESH) {
            self.look(core, node).await?;
        }
        if self.taken.len() < 2 {
            tokio::time::sleep(PAUSE).await;
            self.look(core, node).await?;
        }
        self.measured()
    }

    fn measured(&self) -> Option<Measured> {
        let (latest, earlier) = (self.taken.back()?, self.taken.front()?);
        Some(Measured { latest: Arc::clone(&latest.1), earlier: Arc::clone(&earlier.1) })
    }

    async fn look(&mut self, core: &Core, node: &str) -> Option<()> {
        let sample = match ask_agent(core, node, "/stats/summary").await {
            Ok(body) => serde_json::from_slice(&body).ok().and_then(|summary| Sample::read(&summary)),
            Err(error) => {
                tracing::debug!(node, %error, "the node does not say what it uses");
                None
            }
        };
        let now = Instant::now();
        self.silent_since = sample.is_none().then_some(now);
        self.take(now, Arc::new(sample?));
        Some(())
    }

    /// Takes in a look. It will be compared with the newest that is old enough, else with the oldest.
    fn take(&mut self, now: Instant, sample: Arc<Sample>) {
        // A node whose clock was set back starts anew.
        self.taken.retain(|(at, held)| now.duration_since(*at) <= STALE && held.at < sample.at);
        let steady = self.taken.iter().rposition(|(at, _)| now.duration_since(*at) >= STEADY);
        self.taken.drain(..steady.unwrap_or(0));
        self.taken.push_back((now, sample));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(seconds: i64) -> Arc<Sample> {
        let node = rates::Counter { started: None, cpu_ns: 0, memory: 0 };
        Arc::new(Sample { at: Timestamp::from_second(seconds).unwrap(), node, pods: HashMap::new() })
    }

    /// The time between the two looks after looks at these seconds; `None` when there is but one.
    fn span(at: &[u64]) -> Option<i64> {
        let (begun, mut looks) = (Instant::now(), Looks::default());
        for seconds in at {
            looks.take(begun + Duration::from_secs(*seconds), sample(*seconds as i64));
        }
        let Measured { latest, earlier } = looks.measured()?;
        Some(latest.at.duration_since(earlier.at).as_secs()).filter(|seconds| *seconds > 0)
    }

    #[tokio::test]
    async fn rates_are_averages_of_about_the_time_between_questions() {
        let table: [(&[u64], Option<i64>); 8] = [
            (&[0], None),
            (&[0, 1], Some(1)),
            (&[0, 15, 30], Some(15)),
            // Somebody else asks in between: the average does not get shorter than ten seconds, if it can be helped.
            (&[0, 15, 21], Some(21)),
            (&[0, 15, 21, 30], Some(15)),
            (&[0, 6, 12], Some(12)),
            (&[0, 6, 12, 18, 24], Some(12)),
            // After a minute of silence nothing old counts.
            (&[0, 15, 100], None),
        ];
        for (at, expected) in table {
            assert_eq!(span(at), expected, "{at:?}");
        }
    }
}
