//! What happens between two rests: the weather, nodes that go, controllers that die, users who change their minds.

use super::{JSON, MERGE, MOST, Play, SHARE, STRATEGIC, deployments};
use crate::faults::Rates;
use crate::laws::Wanted;
use crate::release::Bundle;
use crate::storage;
use rand::Rng;
use serde_json::{Value, json};
use std::time::Duration;

const IMAGES: [&str; 6] = ["v1", "v2", "v3", "v4", "broken1", "missing1"];

impl Play {
    /// Somebody evicts whatever the budgets let go, as fast as they do, in bad weather for those who count.
    pub(super) async fn evict(&mut self) -> Result<(), String> {
        // A rollout that hangs disturbs the same pods.
        if self.wishes.deployments.iter().any(Wanted::is_bad) {
            return Ok(());
        }
        let mut rate = |most: f64| self.evictor.random_range(0.0..most);
        let rates = Rates { before: rate(0.1), after: rate(0.1), late: rate(0.3), cut: rate(0.5), silent: 0.0 };
        self.tell(format!("evictions: {rates:?}"));
        self.controllers.set(rates);
        self.store.records.lock().disrupted = true;
        for _ in 0..self.evictor.random_range(1..=3) {
            let pods: Vec<Value> = self.store.records.lock().objects.of("/registry/pods/shop/").cloned().collect();
            for pod in pods {
                let name = pod["metadata"]["name"].as_str().unwrap_or_default();
                let app = pod["metadata"]["labels"]["app"].as_str().unwrap_or_default().to_owned();
                let answered = self.store.records.lock().answers(&pod, &self.machines.lock());
                let path = format!("/api/v1/namespaces/shop/pods/{name}/eviction");
                let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}});
                let (code, answer) = self.call("POST", &path, JSON, &eviction).await;
                self.tell(format!("{name} is evicted: {code}"));
                match code {
                    201 if answered => self.store.records.lock().judge_eviction(&app, &self.machines.lock()),
                    201 | 404 | 429 => {}
                    _ => return Err(format!("{path}: {code} {}", answer["message"])),
                }
            }
            tokio::time::sleep(Duration::from_millis(self.evictor.random_range(0..5_000))).await;
        }
        self.controllers.set(Rates::default());
        self.rest("evictions").await
    }

    /// Bad weather, and a few things that happen in it.
    pub(super) async fn storm(&mut self, act: u32) -> Result<(), String> {
        let calm = self.chance.random_bool(0.2);
        let silent = !calm && self.chance.random_bool(0.15);
        let mut rate = |most: f64| if calm { 0.0 } else { self.chance.random_range(0.0..most) };
        let rates = Rates {
            before: rate(0.1),
            after: rate(0.1),
            late: rate(0.3),
            cut: rate(0.7),
            silent: if silent { 0.2 } else { 0.0 },
        };
        self.tell(format!("act {act}: {rates:?}"));
        self.controllers.set(rates);
        let of_nodes = |rates| self.nodes.values().for_each(|weather| weather.set(rates));
        of_nodes(Rates { silent: 0.0, ..rates });
        // With a silent watch even dead nodes are a matter of belief.
        self.store.records.lock().disrupted = silent;
        let mut down: Vec<String> = Vec::new();
        for _ in 0..self.chance.random_range(2..=6) {
            self.happen(&mut down).await?;
            if self.chance.random_bool(0.4) {
                self.claim().await;
            }
            let longest = if self.chance.random_bool(0.5) { 1_500 } else { 15_000 };
            let pause = self.chance.random_range(0..longest);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        self.controllers.set(Rates::default());
        for weather in self.nodes.values() {
            weather.set(Rates::default());
            weather.part(false);
        }
        for node in down {
            self.tell(format!("{node} comes back"));
            if !self.alive.contains_key(&node) {
                self.start_node(&node);
            }
        }
        Ok(())
    }

    /// Somebody wants storage, or wants it no more.
    async fn claim(&mut self) {
        const CLAIMS: &str = "/api/v1/namespaces/shop/persistentvolumeclaims";
        let name = format!("disk-{}", self.chance.random_range(0..3));
        if self.store.records.lock().storage.wanted.remove(&name) {
            self.tell(format!("{name} is given up"));
            self.call("DELETE", &format!("{CLAIMS}/{name}"), JSON, &json!({})).await;
            return;
        }
        // Of the same name the last may still be going.
        let (code, _) = self.call("POST", CLAIMS, JSON, &storage::claim(&name, "now")).await;
        self.tell(format!("{name} is claimed: {code}"));
        if code == 201 {
            self.store.records.lock().storage.wanted.insert(name);
        }
    }

    async fn happen(&mut self, down: &mut Vec<String>) -> Result<(), String> {
        if !self.wishes.sets.is_empty() && self.chance.random_bool(0.35) {
            let at = self.chance.random_range(0..self.wishes.sets.len());
            let (patch, told, image) = self.wishes.sets[at].change(&mut self.chance);
            self.tell(told);
            let path = self.wishes.sets[at].path(true);
            return self.ask(&path, patch, image.as_deref()).await;
        }
        if self.wishes.release.is_some() && self.chance.random_bool(0.2) {
            return self.change_release().await;
        }
        let at = self.chance.random_range(0..self.wishes.deployments.len());
        let name = self.wishes.deployments[at].name.clone();
        match self.chance.random_range(0..23) {
            20..=22 => self.start_job().await,
            0..=6 => {
                let image = IMAGES[self.chance.random_range(0..IMAGES.len())];
                self.becomes(at, image).await
            }
            7..=9 if self.wishes.deployments[at].autoscaled => {
                let replicas = self.chance.random_range(0..=MOST + 1);
                self.tell(format!("{name} has work for {replicas}"));
                self.loads.lock().insert(name, replicas * SHARE);
                self.wishes.deployments[at].replicas = replicas.clamp(1, MOST);
                Ok(())
            }
            7..=9 => {
                // Not to nothing: where no pod runs a bad image is as healthy as any.
                let replicas = self.chance.random_range(1..=5);
                self.tell(format!("{name} is scaled to {replicas}"));
                self.wishes.deployments[at].replicas = replicas;
                let path = deployments(&format!("/{name}/scale"));
                self.must("PATCH", &path, MERGE, &json!({"spec": {"replicas": replicas}})).await.map(drop)
            }
            10..=12 => {
                let pods = self.must("GET", "/api/v1/namespaces/shop/pods", JSON, &Value::Null).await?;
                let pods = pods["items"].as_array().cloned().unwrap_or_default();
                if !pods.is_empty() {
                    let pod = pods[self.chance.random_range(0..pods.len())]["metadata"]["name"]
                        .as_str()
                        .unwrap_or_default()
                        .to_owned();
                    self.tell(format!("somebody deletes {pod}"));
                    self.store.records.lock().disrupted = true;
                    self.call("DELETE", &format!("/api/v1/namespaces/shop/pods/{pod}"), JSON, &json!({})).await;
                }
                Ok(())
            }
            13..=16 => {
                self.restart_controllers();
                Ok(())
            }
            17 => {
                self.tell(format!("{name} is paused for a while"));
                self.patch(&name, json!({"spec": {"paused": true}})).await?;
                tokio::time::sleep(Duration::from_secs(self.chance.random_range(1..8))).await;
                self.patch(&name, json!({"spec": {"paused": null}})).await
            }
            18 => {
                let node = format!("node-{}", self.chance.random_range(0..2));
                if self.alive.contains_key(&node) && !down.contains(&node) {
                    self.tell(format!("{node} is not heard"));
                    self.store.records.lock().disrupted = true;
                    self.nodes[&node].part(true);
                    if self.chance.random_bool(0.4) {
                        tokio::time::sleep(Duration::from_secs(self.chance.random_range(1..500))).await;
                    }
                    down.push(node);
                }
                Ok(())
            }
            _ => {
                let node = format!("node-{}", self.chance.random_range(0..2));
                if down.contains(&node) {
                    return Ok(());
                }
                if let Some(token) = self.alive.remove(&node) {
                    self.tell(format!("{node} vanishes"));
                    self.store.records.lock().disrupted = true;
                    token.cancel();
                    if self.chance.random_bool(0.3) {
                        self.tell(format!("{node} is taken out of the cluster"));
                        self.call("DELETE", &format!("/api/v1/nodes/{node}"), JSON, &json!({})).await;
                    }
                    if self.chance.random_bool(0.3) {
                        tokio::time::sleep(Duration::from_secs(self.chance.random_range(1..500))).await;
                    }
                    down.push(node);
                }
                Ok(())
            }
        }
    }

    /// A user wants that image of a deployment.
    async fn becomes(&mut self, at: usize, image: &str) -> Result<(), String> {
        let wanted = &mut self.wishes.deployments[at];
        wanted.image = image.to_owned();
        let path = deployments(&format!("/{}", wanted.name));
        if wanted.is_bad() {
            let mine = self.wishes.release.iter_mut().filter(|bundle| bundle.deployment == wanted.name);
            mine.for_each(Bundle::fails);
        } else {
            wanted.good.insert(image.to_owned());
        }
        let told = format!("{} becomes {image}", wanted.name);
        self.tell(told);
        let patch = json!({"spec": {"template": {"spec": {"containers": [{"name": "main", "image": image}]}}}});
        self.ask(&path, patch, Some(image)).await
    }

    /// Settings and image of a release change together.
    async fn change_release(&mut self) -> Result<(), String> {
        let Some(bundle) = &mut self.wishes.release else { return Ok(()) };
        let patch = bundle.change(&mut self.chance);
        let deployment = bundle.deployment.clone();
        self.tell(format!("the settings become {}", patch["data"]["value"]));
        self.must("PATCH", "/api/v1/namespaces/shop/configmaps/settings", STRATEGIC, &patch).await?;
        let image = IMAGES[self.chance.random_range(0..IMAGES.len())];
        match self.wishes.deployments.iter().position(|wanted| wanted.name == deployment) {
            Some(at) => self.becomes(at, image).await,
            None => Ok(()),
        }
    }

    /// A user patches an object; nobody else may give a template that image.
    async fn ask(&self, path: &str, patch: Value, image: Option<&str>) -> Result<(), String> {
        self.store.records.lock().templates.asks(image);
        let answer = self.must("PATCH", path, STRATEGIC, &patch).await;
        self.store.records.lock().templates.asks(None);
        answer.map(drop)
    }
}
