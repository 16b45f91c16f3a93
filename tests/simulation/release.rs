//! A release of a Deployment and its settings, which goes back as a whole.
//!
//! Owns: what was asked for of it last, and its judgement at rest.

use crate::laws::is_named;
use crate::objects::Objects;
use rand::{Rng, rngs::StdRng};
use serde_json::{Value, json};

/// A release that was asked for.
#[derive(Clone, Debug)]
pub(crate) struct Bundle {
    /// The Deployment that is a member.
    pub(crate) deployment: String,
    /// The settings, in the order they were asked for.
    settings: Vec<u32>,
    /// A rollout of the Deployment has failed since the settings were known to stand.
    failed: bool,
}

impl Bundle {
    pub(crate) fn of(deployment: &str) -> Bundle {
        Bundle { deployment: deployment.to_owned(), settings: vec![0], failed: false }
    }

    /// The settings as they are made, and the release.
    pub(crate) fn objects(&self) -> [(&'static str, Value); 2] {
        let member = |version: &str, kind: &str, name: &str| json!({"apiVersion": version, "kind": kind, "name": name});
        let members = [member("apps/v1", "Deployment", &self.deployment), member("v1", "ConfigMap", "settings")];
        let settings = json!({"metadata": {"name": "settings"}, "data": {"value": "0"}});
        let release = json!({
            "apiVersion": "proa.dev/v1", "kind": "Release",
            "metadata": {"name": "bundle", "annotations": {"proa.dev/rollback": "on-failure"}},
            "spec": {"members": {"objects": members}},
        });
        [("/api/v1/namespaces/shop/configmaps", settings), ("/apis/proa.dev/v1/namespaces/shop/releases", release)]
    }

    /// A user changes the settings: the patch of the ConfigMap.
    pub(crate) fn change(&mut self, chance: &mut StdRng) -> Value {
        let value = chance.random_range(1..100);
        self.settings.push(value);
        json!({"data": {"value": value.to_string()}})
    }

    /// Somebody asked for an image that fails: the settings may go back with it.
    pub(crate) fn fails(&mut self) {
        self.failed = true;
    }

    /// What is there at rest is what is wanted from now on.
    pub(crate) fn rested(&mut self, objects: &Objects) {
        let now = settings(objects).and_then(|value| value.parse::<u32>().ok());
        self.settings.extend(now);
        self.failed = false;
    }

    /// Whether the release has come to rest; what is missing, if not.
    pub(crate) fn at_rest(&self, objects: &Objects) -> Result<(), String> {
        let mut releases = objects.of("/registry/releases.proa.dev/");
        let release = releases.find(|object| is_named(object, "shop", "bundle")).ok_or("the release is gone")?;
        let status = &release["status"];
        if !status["rollback"].is_null() {
            return Err(format!("the release is going back: {}", status["rollback"]));
        }
        let conditions = status["conditions"].as_array();
        let ready = conditions.into_iter().flatten().find(|held| held["type"] == "Ready");
        if ready.is_none_or(|ready| ready["status"] != "True") {
            return Err(format!("the release is not ready: {}", status["conditions"]));
        }
        let value = settings(objects).ok_or("the settings are gone")?;
        let asked = |wanted: &u32| *value == wanted.to_string();
        let fair = if self.failed { self.settings.iter().any(asked) } else { self.settings.last().is_some_and(asked) };
        if fair { Ok(()) } else { Err(format!("the settings are {value}; {:?} were asked for", self.settings)) }
    }
}

fn settings(objects: &Objects) -> Option<&str> {
    objects.get("/registry/configmaps/shop/settings")?["data"]["value"].as_str()
}
