//! The `pod-template-hash` label: what tells the replica sets of one deployment apart.
//!
//! The value need not be what another controller would compute; it must be stable for one template and one
//! collision count, and a DNS label.

use k8s_openapi::api::core::v1::PodTemplateSpec;

/// No vowels, and none of 0, 1, 3: no words by accident, nothing to misread (as Kubernetes).
const LETTERS: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// The hash of a template; another one for each collision counted.
pub(super) fn template_hash(template: &PodTemplateSpec, collisions: Option<i32>) -> String {
    let text = crate::patch::json(template).to_string();
    let mut hash = fnv1a(0x811c_9dc5, text.as_bytes());
    if let Some(collisions) = collisions {
        hash = fnv1a(hash, &collisions.to_le_bytes());
    }
    hash.to_string().bytes().map(|digit| char::from(LETTERS[usize::from(digit) % LETTERS.len()])).collect()
}

fn fnv1a(start: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(start, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn template(image: &str) -> PodTemplateSpec {
        serde_json::from_value(json!({"spec": {"containers": [{"name": "c", "image": image}]}})).expect("a template")
    }

    #[test]
    fn a_hash_is_a_stable_label_that_changes_with_the_template_and_with_each_collision() {
        let hash = template_hash(&template("a"), None);
        assert_eq!(hash, template_hash(&template("a"), None));
        assert!(hash.bytes().all(|byte| LETTERS.contains(&byte)) && (1..=10).contains(&hash.len()));
        assert_ne!(hash, template_hash(&template("b"), None));
        assert_ne!(hash, template_hash(&template("a"), Some(1)));
        assert_ne!(template_hash(&template("a"), Some(1)), template_hash(&template("a"), Some(2)));
    }
}
