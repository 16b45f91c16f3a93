//! After an undo: what the revision ran with, and what appliers remember, come back. Pure.

use super::{
    configuration,
    plan::{Action, Guard, of},
};
use crate::{
    history::template_of,
    patch::json,
    rollback::{applied, config, marks},
};
use proa_crds::annotations;
use serde_json::{Map, Value, json};

impl Guard<'_> {
    /// Takes down that the current revision has arrived, and under which number. It was gone back to when this loop did so, or
    /// when nobody applied anything since the revision before was current: then an undo brought it.
    pub(super) fn follow(&mut self, by_us: bool) {
        let (object, current) = (&self.seen.ward.meta, of(self.current));
        let others = self.seen.revisions.iter().filter(|held| held.metadata.uid != self.current.metadata.uid);
        let before = others.max_by_key(|other| other.revision);
        // What was never current before cannot be gone back to.
        let was_current = marks::note(current.meta, annotations::CURRENT_AS).is_some();
        let nobody_applied = || before.is_some_and(|before| configuration::nobody_applied(self.seen, before));
        let undone = was_current && (by_us || nobody_applied());
        let mut changes = Map::from_iter([(annotations::CURRENT_AS.to_owned(), json!(current.number.to_string()))]);
        // A rollout begins with the first step.
        for key in [annotations::STEP, annotations::ROLLOUT_LIMIT] {
            if marks::note(current.meta, key).is_some() {
                changes.insert(key.to_owned(), Value::Null);
            }
        }
        let spec = template_of(self.current).and_then(|template| template.spec);
        let failed = marks::failure_of(current.meta).is_some();
        let pin = config::pin(current.meta, spec.as_ref(), &self.seen.live)
            .filter(|_| undone && !failed && config::is_on(object));
        changes.insert(annotations::CONFIG_REVISION.to_owned(), json!(pin));
        let left = self.left(pin.is_some());
        if marks::note(current.meta, annotations::CONFIGURATION_LEFT) != left.as_deref() {
            changes.insert(annotations::CONFIGURATION_LEFT.to_owned(), json!(left));
        }
        if undone {
            self.let_appliers_follow();
        }
        self.mark(current.name(), Value::Object(changes));
    }

    fn let_appliers_follow(&mut self) {
        let object = &self.seen.ward.meta;
        let mut metadata = Map::from_iter([("resourceVersion".to_owned(), json!(object.resource_version))]);
        if let Some(recorded) = marks::note(&self.current.metadata, annotations::APPLIED_CONFIGURATION)
            && let Some(current) = marks::note(object, annotations::LAST_APPLIED)
            && let Some(followed) = applied::follow_client(current, recorded)
        {
            metadata.insert("annotations".to_owned(), json!({annotations::LAST_APPLIED: followed}));
        }
        let held = object.annotations.clone().unwrap_or_default();
        let entries = object.managed_fields.as_deref().unwrap_or_default();
        if let Some(record) = marks::note(&self.current.metadata, annotations::APPLIED_FIELDS)
            && let Some(managed) = applied::follow_unmarked(entries, record, &held)
        {
            metadata.insert("managedFields".to_owned(), json(&managed));
        }
        if metadata.len() > 1 {
            self.act(Action::Patch(json!({"metadata": metadata})));
        }
    }

    /// What is recorded on the current revision for the day someone goes back to it.
    pub(super) fn record_appliers(&mut self) {
        let object = &self.seen.ward.meta;
        let last_applied = marks::note(object, annotations::LAST_APPLIED);
        let last_applied = last_applied.filter(|applied| applied.len() <= applied::RECORD_LIMIT).map(str::to_owned);
        let owned = object.managed_fields.as_deref().and_then(applied::record);
        let wanted = [(annotations::APPLIED_CONFIGURATION, last_applied), (annotations::APPLIED_FIELDS, owned)];
        let changes: Map<String, Value> = wanted
            .into_iter()
            .filter(|(key, value)| marks::note(&self.current.metadata, key) != value.as_deref())
            .map(|(key, value)| (key.to_owned(), json!(value)))
            .collect();
        if !changes.is_empty() {
            self.mark(of(self.current).name(), Value::Object(changes));
        }
    }
}
