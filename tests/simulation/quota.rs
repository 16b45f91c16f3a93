//! The laws of a quota: what it says is used is never less than what is there, and no more is there than it allows.
//!
//! Owns: the quota of a story, and its judgement at rest and, from the first right count on, at every commit.

use crate::objects::Objects;
use serde_json::{Value, json};

const QUOTA: &str = "/registry/resourcequotas/shop/most";

/// What it bounds, and where that is kept.
const BOUNDED: [(&str, &str); 3] = [
    ("persistentvolumeclaims", "/registry/persistentvolumeclaims/shop/"),
    ("services", "/registry/services/shop/"),
    ("count/jobs.batch", "/registry/jobs.batch/shop/"),
];

/// A quota with room for all but so many claims.
pub(crate) fn quota(claims: u32) -> Value {
    let hard = json!({"persistentvolumeclaims": claims, "services": 20, "count/jobs.batch": 100, "pods": 500});
    json!({"metadata": {"name": "most"}, "spec": {"hard": hard}})
}

fn amount(value: &Value) -> Option<usize> {
    value.as_str()?.parse().ok()
}

/// Whether the quota of a story has been right once: what there was before it came nobody has charged to it.
#[derive(Default)]
pub(crate) struct Counted(bool);

impl Counted {
    /// The law that is broken as the objects are now. `key` is of one that has just changed.
    pub(crate) fn judge(&mut self, objects: &Objects, key: &str) -> Option<String> {
        let touches = key == QUOTA || BOUNDED.iter().any(|(_, prefix)| key.starts_with(prefix));
        if !touches {
            return None;
        }
        let Some(quota) = objects.get(QUOTA) else {
            self.0 = false;
            return None;
        };
        let status = &quota["status"];
        let wrong = BOUNDED.iter().find_map(|(name, prefix)| {
            let there = objects.of(prefix).count();
            let (used, hard) = (amount(&status["used"][name]), amount(&status["hard"][name]));
            (Some(there) > used || Some(there) > hard)
                .then(|| format!("{there} {name} are there; the quota says {used:?} of {hard:?} are used"))
        });
        self.0 |= wrong.is_none();
        wrong.filter(|_| self.0)
    }
}

/// Whether the quota counts what there is.
pub(crate) fn at_rest(objects: &Objects) -> Result<(), String> {
    let Some(quota) = objects.get(QUOTA) else { return Ok(()) };
    let over = |pod: &&Value| matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    let pods = objects.of("/registry/pods/shop/").filter(|pod| !over(pod)).count();
    let counted = BOUNDED.iter().map(|(name, prefix)| (*name, objects.of(prefix).count()));
    for (name, there) in counted.chain([("pods", pods)]) {
        let used = &quota["status"]["used"][name];
        if amount(used) != Some(there) {
            return Err(format!("the quota says that {used} {name} are used, {there} are there"));
        }
    }
    Ok(())
}
