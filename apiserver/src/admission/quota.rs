//! What a new object uses is charged to the quotas of its namespace in the very commit that stores it: used is never
//! less than what is there, whoever else writes at the same time. What goes is given back by the controller, which
//! counts again.
//!
//! Source: the ResourceQuota admission plugin; on Kubernetes the charge is a write of its own before the object's.

use std::hash::{DefaultHasher, Hash, Hasher};

use proa_apimachinery::object::Object;
use proa_apimachinery::quota::{self, Subject};
use proa_apimachinery::status::ApiError;
use proa_store::{Expect, Op as StoreOp, Revision};
use tokio::sync::{Mutex, MutexGuard};

use crate::kinds::Op;
use crate::registry::{Call, codec};

/// Who writes to the quotas of a namespace next: without, all but one of many would be charged in vain and have to start
/// over. Namespaces that share a turn wait for each other, and that is all.
pub struct Turns([Mutex<()>; 64]);

impl Default for Turns {
    fn default() -> Self {
        Turns(std::array::from_fn(|_| Mutex::default()))
    }
}

impl Turns {
    async fn of(&self, namespace: &str) -> MutexGuard<'_, ()> {
        let mut hasher = DefaultHasher::new();
        namespace.hash(&mut hasher);
        let at = hasher.finish() as usize % self.0.len();
        self.0[at].lock().await
    }
}

/// Quotas with what they will have been charged, to be committed with the object. Held until that is done.
#[must_use]
pub struct Charge<'a> {
    writes: Vec<StoreOp>,
    _turn: MutexGuard<'a, ()>,
}

impl Charge<'_> {
    /// What has to go into the same transaction.
    pub fn writes(&self) -> impl Iterator<Item = StoreOp> {
        self.writes.iter().cloned()
    }
}

/// Whether this write may need more than its object had: all that is new, and the changes that may grow.
fn may_grow(call: &Call<'_>, op: Op) -> bool {
    let kind = &call.resource.kind;
    let subresource = call.request.info.subresource.as_str();
    match op {
        Op::Create => true,
        Op::Update if kind.group.is_empty() => match &*kind.plural {
            "services" | "persistentvolumeclaims" => true,
            // A pod keeps what it asked for when it was created, unless it is resized.
            "pods" => subresource == "resize",
            _ => false,
        },
        _ => false,
    }
}

/// Charges the quotas of the object's namespace, or says which is exceeded.
pub async fn charge<'a>(
    call: &'a Call<'_>,
    op: Op,
    new: &Object,
    old: Option<&Object>,
) -> Result<Option<Charge<'a>>, ApiError> {
    let (namespace, kind) = (call.namespace(), &call.resource.kind);
    if namespace.is_empty() || !may_grow(call, op) {
        return Ok(None);
    }
    let quotas = call.core.caches.resource("resourcequotas");
    if quotas.items(namespace).is_empty() {
        return Ok(None);
    }
    let turn = call.core.quota_turns.of(namespace).await;
    call.core.caches.consistent().await?;
    let subject = Subject { group: &kind.group, plural: &kind.plural };
    let mut writes = Vec::new();
    for item in quotas.items(namespace) {
        let mut quota = item.object();
        let used = quota::admit(&quota, subject, new, old, call.core.now())
            .map_err(|why| ApiError::forbidden(call.resource.group_resource(), new.name(), &why))?;
        if let Some(used) = used {
            quota.set(&["status", "used"], quota::to_json(&used));
            let expect = Expect::At(Revision(item.revision));
            writes.push(StoreOp::Put { key: item.key.clone(), value: codec::encode(&quota), expect });
        }
    }
    Ok((!writes.is_empty()).then_some(Charge { writes, _turn: turn }))
}
