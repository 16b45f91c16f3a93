//! Several servers over one store, one of which hears late of what another did.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::World;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use proa_apiserver::{Config, Shared};
use proa_store::{Batch, Chunk, CommitError, Committed, Entry, Log, Memory, RangeError, Revision, Txn, WatchError};
use serde_json::{Value, json};
use tokio::sync::watch;

const MAPS: &str = "/api/v1/namespaces/apart/configmaps";
const NAMESPACES: &str = "/api/v1/namespaces";
const SERVICES: &str = "/api/v1/namespaces/default/services";
const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const BOATS: &str = "/apis/example.com/v1/boats";

/// A store whose news wait while they are held back.
struct Late {
    log: Arc<dyn Log>,
    held: watch::Receiver<bool>,
}

impl Log for Late {
    fn commit(&self, txn: Txn) -> BoxFuture<'_, Result<Committed, CommitError>> {
        self.log.commit(txn)
    }

    fn range<'a>(
        &'a self,
        prefix: &'a str,
        at: Option<Revision>,
        after_key: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Chunk, RangeError>> {
        self.log.range(prefix, at, after_key, limit)
    }

    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(Option<Entry>, Revision), RangeError>> {
        self.log.get(key)
    }

    fn watch(&self, prefix: &str, after: Revision) -> BoxStream<'static, Result<Batch, WatchError>> {
        let held = self.held.clone();
        let late = self.log.watch(prefix, after).then(move |batch| {
            let mut held = held.clone();
            async move {
                // Whoever holds them back may be gone.
                let _ = held.wait_for(|held| !held).await;
                batch
            }
        });
        late.boxed()
    }

    fn revision(&self) -> Revision {
        self.log.revision()
    }

    fn current(&self) -> BoxFuture<'_, Result<Revision, RangeError>> {
        self.log.current()
    }

    fn compact(&self, before: Revision) -> BoxFuture<'_, Result<(), RangeError>> {
        self.log.compact(before)
    }
}

/// Two servers of one cluster, and what holds the second one's news back.
struct Two {
    one: World,
    two: World,
    hold: watch::Sender<bool>,
}

async fn two() -> Two {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let memory: Arc<dyn Log> = Arc::new(Memory::new(100_000));
    let config = |server: u8| Config {
        shared: Shared::Yes,
        advertise: [10, 0, 0, server].into(),
        pki_dir: Some(dir.path().join("keys")),
        ..Config::new(dir.path())
    };
    let (hold, held) = watch::channel(false);
    let one = World::over(dir.clone(), config(1), memory.clone()).await;
    let two = World::over(dir.clone(), config(2), Arc::new(Late { log: memory, held })).await;
    Two { one, two, hold }
}

impl Two {
    /// What the second server answers to a request that came before it heard of what the first one did; `story` is
    /// that.
    async fn late<T>(&self, story: impl Future<Output = T>, method: &str, uri: &str, body: &Value) -> (u16, Value) {
        self.hold.send_replace(true);
        story.await;
        let mut answer = Box::pin(self.two.call(method, uri, body));
        // It gets as far as it can without the news.
        assert!(futures::poll!(&mut answer).is_pending(), "it did not look at what the store is at");
        self.hold.send_replace(false);
        tokio::time::timeout(Duration::from_secs(10), answer).await.expect("an answer")
    }
}

fn named(name: &str) -> Value {
    json!({"metadata": {"name": name}})
}

#[tokio::test]
async fn nothing_is_created_in_a_namespace_that_another_server_takes_away() {
    let servers = two().await;
    servers.one.ok("POST", NAMESPACES, &named("apart")).await;
    servers.two.ok("POST", MAPS, &named("before")).await;
    let deleted = async { servers.one.ok("DELETE", &format!("{NAMESPACES}/apart"), &Value::Null).await };
    let (status, answer) = servers.late(deleted, "POST", MAPS, &named("after")).await;
    assert_eq!((status, &answer["details"]["causes"][0]["reason"]), (403, &json!("NamespaceTerminating")), "{answer}");
    assert_eq!(servers.one.call("GET", &format!("{MAPS}/after"), &Value::Null).await.0, 404);
}

#[tokio::test]
async fn no_custom_resource_is_created_after_its_definition_went_at_another_server() {
    let servers = two().await;
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "boats.example.com"},
        "spec": {
            "group": "example.com", "scope": "Cluster", "names": {"plural": "boats", "kind": "Boat"},
            "versions": [{"name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}],
        },
    });
    servers.one.ok("POST", DEFINITIONS, &definition).await;
    servers.two.until(BOATS, |status, _| status == 200).await;
    let boat = |name: &str| json!({"apiVersion": "example.com/v1", "kind": "Boat", "metadata": {"name": name}});
    servers.two.ok("POST", BOATS, &boat("before")).await;
    let gone = async {
        servers.one.ok("DELETE", &format!("{DEFINITIONS}/boats.example.com"), &Value::Null).await;
        servers.one.until(&format!("{DEFINITIONS}/boats.example.com"), |status, _| status == 404).await;
    };
    let (status, answer) = servers.late(gone, "POST", BOATS, &boat("after")).await;
    assert!(status == 404 || status == 405, "{status} {answer}");
    let left = servers.one.log.range("/registry/boats.example.com/", None, None, 0).await.unwrap();
    assert_eq!(left.entries, []);
}

#[tokio::test]
async fn a_node_port_is_given_once_by_servers_that_have_not_heard_of_each_other() {
    let servers = two().await;
    let service = |name: &str| json!({"metadata": {"name": name}, "spec": {"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}]}});
    let taken = async { servers.one.ok("POST", SERVICES, &service("first")).await };
    let (status, answer) = servers.late(taken, "POST", SERVICES, &service("second")).await;
    assert_eq!(status, 422, "{answer}");
    assert!(answer["message"].as_str().unwrap().contains("provided port is already allocated"), "{answer}");
    // Let go at one, free at the other at once.
    servers.one.ok("DELETE", &format!("{SERVICES}/first"), &Value::Null).await;
    let second = servers.two.ok("POST", SERVICES, &service("second")).await;
    let claim = servers
        .one
        .get(&format!("/apis/networking.k8s.io/v1/ipaddresses/{}", second["spec"]["clusterIP"].as_str().unwrap()))
        .await;
    assert_eq!(claim["spec"]["parentRef"], json!({"resource": "services", "namespace": "default", "name": "second"}));
}

#[tokio::test]
async fn the_claim_of_an_address_in_use_comes_back_when_it_is_deleted() {
    let servers = two().await;
    let service = json!({"metadata": {"name": "a"}, "spec": {"ports": [{"port": 80}]}});
    let service = servers.one.ok("POST", SERVICES, &service).await;
    let claim = format!("/apis/networking.k8s.io/v1/ipaddresses/{}", service["spec"]["clusterIP"].as_str().unwrap());
    let uid = servers.one.get(&claim).await["metadata"]["uid"].clone();
    servers.two.ok("DELETE", &claim, &Value::Null).await;
    let again = servers.one.until(&claim, |status, now| status == 200 && now["metadata"]["uid"] != uid).await;
    assert_eq!(again["spec"]["parentRef"]["name"], "a");
    // It goes with its Service.
    servers.one.ok("DELETE", &format!("{SERVICES}/a"), &Value::Null).await;
    assert_eq!(servers.two.call("GET", &claim, &Value::Null).await.0, 404);
}

#[tokio::test]
async fn a_read_at_one_server_sees_what_another_was_told_before() {
    let servers = two().await;
    servers.one.ok("POST", NAMESPACES, &named("apart")).await;
    let created = async { servers.one.ok("POST", MAPS, &named("a")).await };
    let (status, answer) = servers.late(created, "GET", &format!("{MAPS}/a"), &Value::Null).await;
    assert_eq!(status, 200, "{answer}");
    let changed = async { servers.one.ok("PATCH", &format!("{MAPS}/a"), &json!({"data": {"k": "v"}})).await };
    let (_, list) = servers.late(changed, "GET", MAPS, &Value::Null).await;
    assert_eq!(list["items"][0]["data"]["k"], "v", "{list}");
}

#[tokio::test(start_paused = true)]
async fn the_servers_that_are_there_stand_behind_the_kubernetes_service() {
    let Two { one, two, hold } = two().await;
    const SLICE: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes";
    let addresses = |slice: &Value| -> Vec<String> {
        let endpoints = slice["endpoints"].as_array().into_iter().flatten();
        endpoints.map(|endpoint| endpoint["addresses"][0].as_str().unwrap_or_default().to_owned()).collect()
    };
    let becomes = async |wanted: &[&str]| {
        for _ in 0..60 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            if addresses(&one.get(SLICE).await) == wanted {
                return;
            }
        }
        panic!("{:?} did not become {wanted:?}", addresses(&one.get(SLICE).await));
    };
    becomes(&["10.0.0.1", "10.0.0.2"]).await;
    drop(two);
    becomes(&["10.0.0.1"]).await;
    drop(hold);
}
