//! Owns what is said about Proa's own settings in annotations: a misspelt one would do nothing, and nobody would know
//! before the day it is needed. Never refuses an object for them: they may have been meant for another version.

use proa_apimachinery::Object;

/// Annotations whose value is one of a few words. What they mean is documented with the loops that read them
/// (`proa_crds::annotations`).
const WORDS: [(&str, &[&str]); 2] =
    [("proa.dev/rollback", &["on-failure", "off"]), ("proa.dev/config-revisions", &["on", "off"])];

/// Warnings about settings whose value means nothing.
pub(super) fn warnings(object: &Object) -> Vec<String> {
    let meaningless = |(name, words): &(&str, &[&str])| {
        let value = object.annotation(name).filter(|value| !words.contains(value))?;
        let words: Vec<String> = words.iter().map(|word| format!("{word:?}")).collect();
        Some(format!(
            "metadata.annotations[{name}]: {value:?} means nothing and is ignored; meant are {}",
            words.join(" or ")
        ))
    };
    WORDS.iter().filter_map(meaningless).collect()
}
