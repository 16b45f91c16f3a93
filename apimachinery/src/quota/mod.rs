//! Owns the arithmetic of ResourceQuota: what an object uses ([`usage`]), which quotas it counts for ([`Scopes`]), whether
//! one more fits ([`admit`]). One set of rules for admission, which charges a quota as it lets an object in, and for the
//! controller, which counts again. Never reads or writes anything.
//!
//! Source: `pkg/quota/v1` and the ResourceQuota admission plugin of Kubernetes 1.36.

mod scopes;
mod usage;

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde_json::{Map, Value};

pub use scopes::Scopes;
pub use usage::{concerns, counts_until, usage};

use crate::Object;
use crate::pod_resources::{Amounts, Side, amounts, of_container};
use crate::quantity::Quantity;

/// What kind of thing is counted: a resource of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subject<'a> {
    /// Its group, empty for core.
    pub group: &'a str,
    /// Its plural.
    pub plural: &'a str,
}

impl Subject<'_> {
    fn is(&self, plural: &str) -> bool {
        self.group.is_empty() && self.plural == plural
    }
}

/// The amounts of a resource list as JSON, in canonical form.
pub fn to_json(amounts: &Amounts) -> Value {
    let entries = amounts.iter().map(|(name, amount)| (name.clone(), Value::from(amount.to_string())));
    Value::Object(entries.collect::<Map<String, Value>>())
}

/// What `status.used` of a quota becomes when this object is let in; `None` when it does not count, or changes nothing.
/// `old`: what it was before, in an update. The error is what the writer is told, without the object's name.
pub fn admit(
    quota: &Object,
    subject: Subject<'_>,
    new: &Object,
    old: Option<&Object>,
    now: Timestamp,
) -> Result<Option<Amounts>, String> {
    // What the controller has taken up counts, not what was just written: there are no numbers for that yet.
    let hard = amounts(quota.get(&["status", "hard"]));
    let used = amounts(quota.get(&["status", "used"]));
    let of_this: BTreeSet<&str> = hard.keys().map(String::as_str).filter(|name| concerns(name, subject)).collect();
    if of_this.is_empty() || !Scopes::of(quota).hold(subject, new) {
        return Ok(None);
    }
    let name = quota.name();
    if subject.is("pods") {
        missing(&of_this, new).map_err(|missing| format!("failed quota: {name}: must specify {missing}"))?;
    }
    let unknown: Vec<&str> = of_this.iter().copied().filter(|name| !used.contains_key(*name)).collect();
    if !unknown.is_empty() {
        return Err(format!("status unknown for quota: {name}, resources: {}", unknown.join(",")));
    }
    let mut delta = usage(subject, new, now);
    let negative: Vec<&str> = delta.iter().filter(|(_, a)| a.sign() < 0).map(|(name, _)| name.as_str()).collect();
    if !negative.is_empty() {
        return Err(format!("quota usage is negative for resource(s): {}", negative.join(",")));
    }
    for (name, before) in old.map(|old| usage(subject, old, now)).unwrap_or_default() {
        let change = delta.entry(name).or_insert(Quantity::ZERO);
        *change = *change - before;
    }
    delta.retain(|name, change| of_this.contains(name.as_str()) && !change.is_zero());
    if delta.is_empty() {
        return Ok(None);
    }
    let mut after = used.clone();
    crate::pod_resources::add(&mut after, &delta);
    let exceeded: Vec<&String> = delta.keys().filter(|name| after[*name] > hard[*name]).collect();
    if exceeded.is_empty() {
        return Ok(Some(after));
    }
    let of = |amounts: &Amounts| {
        let words: Vec<String> = exceeded.iter().map(|name| format!("{name}={}", amounts[*name])).collect();
        words.join(",")
    };
    Err(format!("exceeded quota: {name}, requested: {}, used: {}, limited: {}", of(&delta), of(&used), of(&hard)))
}

/// Where cpu and memory are bounded every container must say what it wants of them: a rule of the first quotas that
/// Kubernetes keeps for these six names alone.
const TO_BE_NAMED: [&str; 6] = ["cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory"];

fn missing(bounded: &BTreeSet<&str>, pod: &Object) -> Result<(), String> {
    let mut missing: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let of_pod = |side: &str, name: &str| pod.get(&["spec", "resources", side, name]).is_some();
    for container in ["containers", "initContainers"].iter().flat_map(|field| pod.get_list(&["spec", field])) {
        let (requests, limits) = (of_container(container, Side::Requests), of_container(container, Side::Limits));
        for bound in TO_BE_NAMED.into_iter().filter(|name| bounded.contains(name)) {
            let said = match bound.split_once('.') {
                Some(("limits", name)) => limits.contains_key(name) || of_pod("limits", name),
                Some((_, name)) => requests.contains_key(name) || of_pod("requests", name),
                None => requests.contains_key(bound) || of_pod("requests", bound),
            };
            if !said {
                let name = container.get("name").and_then(Value::as_str).unwrap_or_default();
                missing.entry(bound).or_default().insert(name);
            }
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let words = missing.iter().map(|(resource, containers)| {
        format!("{resource} for: {}", containers.iter().copied().collect::<Vec<_>>().join(","))
    });
    Err(words.collect::<Vec<_>>().join("; "))
}

/// The sum over objects, of the resources a quota bounds. Every one that something can be counted for has a number,
/// if only zero.
pub struct Count<'a> {
    scopes: Scopes,
    hard: Vec<&'a str>,
    now: Timestamp,
    used: Amounts,
}

impl<'a> Count<'a> {
    /// Nothing counted yet. `hard`: the names a quota bounds.
    pub fn new(quota: &Object, hard: Vec<&'a str>, now: Timestamp) -> Count<'a> {
        Count { scopes: Scopes::of(quota), hard, now, used: Amounts::new() }
    }

    /// Begins with objects of this resource: what is bounded of it is known to be nothing. False: nothing is.
    pub fn begin(&mut self, subject: Subject<'_>) -> bool {
        let of_this: Vec<&str> = self.hard.iter().copied().filter(|name| concerns(name, subject)).collect();
        for name in &of_this {
            self.used.entry((*name).to_owned()).or_insert(Quantity::ZERO);
        }
        !of_this.is_empty()
    }

    /// One object more.
    pub fn add(&mut self, subject: Subject<'_>, object: &Object) {
        if !self.scopes.hold(subject, object) {
            return;
        }
        let mut usage = usage(subject, object, self.now);
        usage.retain(|name, _| self.hard.contains(&name.as_str()));
        crate::pod_resources::add(&mut self.used, &usage);
    }

    /// What is used.
    pub fn used(self) -> Amounts {
        self.used
    }
}

#[cfg(test)]
mod tests;
