//! Who wrote a pod template: noted on the object at the write itself, for only the API server knows the user.
//!
//! The note travels into the revision with the object's other annotations, so the history of a workload can say who made a
//! revision. Whoever writes cannot write the note: it is this server's, and it moves with the template alone.

use proa_apimachinery::object::Object;
use proa_apimachinery::status::ApiError;
use proa_apimachinery::template;
use serde_json::json;

use crate::kinds::Op;
use crate::registry::options::WriteOptions;
use crate::registry::{Call, meta};

/// As in `proa_crds::annotations::CHANGED_BY`; this crate does not know the controllers' side.
const CHANGED_BY: &str = "proa.dev/changed-by";

/// Notes the writer on an object whose template is new; on any other write the note stays what it was.
pub(super) fn note(call: &Call<'_>, op: Op, new: &mut Object, old: Option<&Object>) -> Result<(), ApiError> {
    let template_of = |object: &Object| object.get(&["spec", "template"]).cloned();
    let moved = match op {
        Op::Create => true,
        // What a revision adds to its template an undo brings along, and says who undid. Its loop takes it out again; that says
        // nothing.
        Op::Update => old.is_none_or(|old| {
            let (old, new) = (template_of(old), template_of(new));
            let undone = || new.as_ref().is_some_and(template::is_of_a_revision);
            old != new && (undone() || old.map(template::plain) != new.clone().map(template::plain))
        }),
        _ => return Ok(()),
    };
    if moved {
        let options = WriteOptions::read(call.request)?;
        let time = meta::time(call.core.now());
        let note = json!({"user": call.user().name, "manager": options.manager, "time": time});
        new.set_annotation(CHANGED_BY, note.to_string());
        return Ok(());
    }
    match old.and_then(|old| old.annotation(CHANGED_BY)) {
        Some(note) => new.set_annotation(CHANGED_BY, note.to_owned()),
        None => drop(new.remove_annotation(CHANGED_BY)),
    }
    Ok(())
}
