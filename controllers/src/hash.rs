//! Short hashes for names and labels.
//!
//! The value need not be what another controller would compute; it must be stable for one content and one collision
//! count, and a DNS label.

/// No vowels, and none of 0, 1, 3: no words by accident, nothing to misread (as Kubernetes).
const LETTERS: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// The hash of a content; another one for each collision counted.
pub(crate) fn name_hash(content: &[u8], collisions: Option<i32>) -> String {
    let mut hash = fnv1a(0x811c_9dc5, content);
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

    #[test]
    fn a_hash_is_a_stable_label_that_changes_with_the_content_and_with_each_collision() {
        let hash = name_hash(b"a", None);
        assert_eq!(hash, name_hash(b"a", None));
        assert!(hash.bytes().all(|byte| LETTERS.contains(&byte)) && (1..=10).contains(&hash.len()));
        assert_ne!(hash, name_hash(b"b", None));
        assert_ne!(hash, name_hash(b"a", Some(1)));
        assert_ne!(name_hash(b"a", Some(1)), name_hash(b"a", Some(2)));
    }
}
