//! Who changes a template: users as they like; the platform only to leave an image that fails for one that does not.
//!
//! Owns: the law that going back never undoes what did not fail, and never starts again what did.

use crate::laws::{image_of, is_bad};
use serde_json::Value;
use std::collections::BTreeMap;

/// The kinds that go back by themselves.
const KINDS: [&str; 3] = ["/registry/deployments.apps/", "/registry/statefulsets.apps/", "/registry/daemonsets.apps/"];

/// What each of them runs, and what a user is just asking for.
#[derive(Default)]
pub(crate) struct Templates {
    images: BTreeMap<String, String>,
    asked: Option<String>,
}

impl Templates {
    /// From now on a user may make any template one of that image; with `None` nobody asks for anything any more.
    pub(crate) fn asks(&mut self, image: Option<&str>) {
        self.asked = image.map(str::to_owned);
    }

    /// Takes in an object that was written; the law it breaks.
    pub(crate) fn put(&mut self, key: &str, object: &Value) -> Option<String> {
        if !KINDS.iter().any(|kind| key.starts_with(kind)) {
            return None;
        }
        let image = image_of(object);
        let before = self.images.insert(key.to_owned(), image.clone())?;
        let fair = before == image || self.asked.as_ref() == Some(&image) || (is_bad(&before) && !is_bad(&image));
        (!fair).then(|| format!("{key} becomes {image} from {before}, which nobody asked for"))
    }

    pub(crate) fn delete(&mut self, key: &str) {
        self.images.remove(key);
    }
}
