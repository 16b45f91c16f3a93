//! Objects from one version of their kind to another.
//!
//! Owns the way between what is stored and what is served, where that takes a webhook of the kind's definition; where a
//! function does, the row has it. Objects stored in another version than they are asked for are converted in batches,
//! and what was converted is remembered until it changes, as kube-apiserver's watch caches do: one per version.

mod review;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use proa_apimachinery::object::Object;
use proa_apimachinery::status::ApiError;
use proa_store::Key;
use serde_json::Value;

use crate::cache::{Change, Item};
use crate::core::Core;
use crate::outgoing::{self, ClientConfig, strings};
use crate::registry::codec;
use crate::resources::Resource;

/// How long a webhook may take for one batch (kube-apiserver's own limit).
const LIMIT: Duration = Duration::from_secs(30);
/// How many bytes of objects are sent at once, about.
const BATCH: usize = 4 << 20;
/// How many bytes of converted objects one version remembers.
const REMEMBERED: usize = 32 << 20;

/// The webhook of a definition that converts its objects (`spec.conversion.webhook`).
#[derive(Debug)]
pub struct ConversionWebhook {
    client: Result<ClientConfig, String>,
    versions: Vec<String>,
}

impl ConversionWebhook {
    /// Reads `spec.conversion` of a definition; none where no webhook converts.
    pub fn read(conversion: Option<&Value>) -> Option<ConversionWebhook> {
        let conversion = conversion?;
        if conversion.get("strategy").and_then(Value::as_str) != Some("Webhook") {
            return None;
        }
        let webhook = conversion.get("webhook").unwrap_or(&Value::Null);
        Some(ConversionWebhook {
            client: ClientConfig::read(webhook.get("clientConfig").unwrap_or(&Value::Null)),
            versions: strings(webhook.get("conversionReviewVersions")),
        })
    }
}

/// What was converted to one version.
#[derive(Default)]
pub struct Converted {
    objects: Mutex<Remembered>,
}

#[derive(Default)]
struct Remembered {
    /// By key: the revision that was converted, and what it became.
    by_key: HashMap<Key, (u64, Arc<Item>)>,
    bytes: usize,
}

impl Converted {
    fn get(&self, item: &Item) -> Option<Arc<Item>> {
        let objects = self.objects.lock();
        let (revision, converted) = objects.by_key.get(&item.key)?;
        (*revision == item.revision).then(|| Arc::clone(converted))
    }

    fn keep(&self, converted: &Arc<Item>) {
        let mut objects = self.objects.lock();
        if objects.bytes > REMEMBERED {
            *objects = Remembered::default();
        }
        objects.bytes += converted.bytes.len();
        let before = objects.by_key.insert(Arc::clone(&converted.key), (converted.revision, Arc::clone(converted)));
        objects.bytes -= before.map_or(0, |(_, before)| before.bytes.len());
    }
}

/// An object of `from`, as clients of `to` have it: two versions of one stored kind.
///
/// # Errors
///
/// When a webhook does not convert it.
pub async fn between(
    core: &Core,
    from: &Arc<Resource>,
    to: &Arc<Resource>,
    object: Object,
) -> Result<Object, ApiError> {
    if Arc::ptr_eq(from, to) {
        return Ok(object);
    }
    if to.kind.storage.webhook.is_some() {
        return one(core, to, &to.api_version(), object).await;
    }
    Ok(to.kind.from_storage(from.kind.to_storage(object)))
}

/// The object in the version that is stored.
///
/// # Errors
///
/// When a webhook does not convert it.
pub async fn to_storage(core: &Core, resource: &Resource, object: Object) -> Result<Object, ApiError> {
    match (&resource.kind.storage.webhook, &resource.kind.storage.api_version) {
        (Some(_), Some(stored)) => one(core, resource, stored, object).await,
        _ => Ok(resource.kind.to_storage(object)),
    }
}

/// The object as clients of this version get it, from the one in the store.
///
/// # Errors
///
/// When a webhook does not convert it.
pub async fn to_served(core: &Core, resource: &Resource, item: &Arc<Item>) -> Result<Object, ApiError> {
    let item = self::item(core, resource, item).await?;
    Ok(resource.to_served(item.object()))
}

/// The bytes clients of this version get, from those in the store.
///
/// # Errors
///
/// When a webhook does not convert them.
pub async fn served(core: &Core, resource: &Resource, stored: &Bytes) -> Result<Bytes, ApiError> {
    if !elsewhere(resource, stored) {
        return Ok(resource.served(stored));
    }
    let object: Object = serde_json::from_slice(stored).map_err(ApiError::internal)?;
    let converted = one(core, resource, &resource.api_version(), object).await?;
    Ok(resource.served(&codec::with_revision(&converted)))
}

/// One item in this version.
///
/// # Errors
///
/// When a webhook does not convert it.
pub async fn item(core: &Core, resource: &Resource, item: &Arc<Item>) -> Result<Arc<Item>, ApiError> {
    let mut items = items(core, resource, vec![Arc::clone(item)]).await?;
    items.pop().ok_or_else(|| ApiError::internal("an object was lost in its conversion"))
}

/// Items in this version: those a webhook has to convert are converted together.
///
/// # Errors
///
/// When the webhook does not convert one of them.
pub async fn items(core: &Core, resource: &Resource, mut items: Vec<Arc<Item>>) -> Result<Vec<Arc<Item>>, ApiError> {
    if resource.kind.storage.webhook.is_none() {
        return Ok(items);
    }
    let mut missing: Vec<usize> = Vec::new();
    for (at, item) in items.iter_mut().enumerate() {
        if !elsewhere(resource, &item.bytes) {
            continue;
        }
        match resource.converted.get(item) {
            Some(converted) => *item = converted,
            None => missing.push(at),
        }
    }
    let mut rest = &missing[..];
    while !rest.is_empty() {
        let mut size = 0;
        let fits = |at: &&usize| {
            size += items[**at].bytes.len();
            size <= BATCH
        };
        // One that is larger than a batch goes alone.
        let count = rest.iter().take_while(fits).count().max(1);
        let (batch, later) = rest.split_at(count);
        rest = later;
        let objects: Vec<Object> = batch.iter().map(|at| items[*at].object()).collect();
        let converted = all(core, resource, &resource.api_version(), objects).await?;
        for (at, object) in batch.iter().zip(converted) {
            let old = &items[*at];
            let new = Item::new(Arc::clone(&old.key), codec::with_revision(&object), old.created, old.revision);
            items[*at] = Arc::new(new);
            resource.converted.keep(&items[*at]);
        }
    }
    Ok(items)
}

/// Changes in this version.
///
/// # Errors
///
/// When a webhook does not convert one of the objects.
pub async fn changes(
    core: &Core,
    resource: &Resource,
    changes: Vec<Arc<Change>>,
) -> Result<Vec<Arc<Change>>, ApiError> {
    if resource.kind.storage.webhook.is_none() {
        return Ok(changes);
    }
    let involved = changes.iter().flat_map(|change| [Some(&change.item), change.previous.as_ref()]).flatten();
    let mut converted = items(core, resource, involved.cloned().collect()).await?.into_iter();
    let mut next = || converted.next().ok_or_else(|| ApiError::internal("an object was lost in its conversion"));
    let mut shown = Vec::with_capacity(changes.len());
    for change in &changes {
        let item = next()?;
        let previous = if change.previous.is_some() { Some(next()?) } else { None };
        shown.push(Arc::new(change.showing(item, previous)));
    }
    Ok(shown)
}

/// Whether a webhook has to convert stored bytes before clients of this version get them.
fn elsewhere(resource: &Resource, stored: &[u8]) -> bool {
    resource.kind.storage.webhook.is_some() && !resource.is_stored_in_own_version(stored)
}

async fn one(core: &Core, resource: &Resource, to: &str, object: Object) -> Result<Object, ApiError> {
    if object.api_version() == to {
        return Ok(object);
    }
    let mut converted = all(core, resource, to, vec![object]).await?;
    converted.pop().ok_or_else(|| ApiError::internal("an object was lost in its conversion"))
}

/// Has objects converted by the webhook of the definition.
async fn all(core: &Core, resource: &Resource, to: &str, objects: Vec<Object>) -> Result<Vec<Object>, ApiError> {
    let (Some(webhook), Some(first)) = (&resource.kind.storage.webhook, objects.first()) else { return Ok(objects) };
    let what = format!("{}, Kind={}", first.api_version(), first.kind());
    let failed = |why: String| ApiError::new(500, "", format!("conversion webhook for {what} failed: {why}"));
    let client = webhook.client.as_ref().map_err(|why| failed(why.clone()))?;
    let version = review::version(&webhook.versions)
        .ok_or_else(|| failed("it accepts no known version of ConversionReview (v1, v1beta1)".to_owned()))?;
    let uid = core.config.entropy.uid();
    let body = review::review(version, &uid, to, &objects);
    let answer = outgoing::post(core, client, LIMIT, body.to_string().into()).await;
    let answer = answer.map_err(|error| failed(error.to_string()))?;
    review::converted(version, &uid, to, &objects, &answer)
        .map_err(|error| ApiError::new(500, "", format!("conversion webhook for {what} {error}")))
}
