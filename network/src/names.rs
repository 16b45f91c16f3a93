//! Names in the kernel, all made from the instance and the sandbox id: the same again after a crash.

/// RFC 4648 digits, lower case.
const DIGITS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// What every interface of an instance starts with: 6 characters.
pub(crate) fn interface_prefix(instance: &str) -> String {
    format!("pr{}", digits(hash(instance.as_bytes()), 4))
}

/// The host's end of a sandbox's veth pair: 15 characters, the longest the kernel takes.
pub(crate) fn interface(instance: &str, sandbox: &str) -> String {
    interface_prefix(instance) + &digits(hash(sandbox.as_bytes()), 9)
}

/// The interface to other nodes.
pub(crate) fn overlay(instance: &str) -> String {
    interface_prefix(instance) + "overlay"
}

/// The interface group of an instance, for interfaces on their way out. Far from the small numbers people use.
pub(crate) fn group(instance: &str) -> u32 {
    0x7072_0000 | (hash(instance.as_bytes()) as u32 & 0xffff)
}

/// The nftables table of an instance. Other characters than letters, digits, `-`, `_` and `.` become `_`.
pub(crate) fn table(instance: &str) -> String {
    let clean = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' };
    match instance {
        "" => TABLE.to_owned(),
        _ => format!("{TABLE}-{}", instance.chars().take(64).map(clean).collect::<String>()),
    }
}

/// What every table of ours is called or starts with.
pub(crate) const TABLE: &str = "proa";

/// Whether a sandbox id can be a file name.
pub(crate) fn is_sandbox_id(id: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    !id.is_empty() && id.len() <= 200 && !id.starts_with('.') && id.bytes().all(plain)
}

fn digits(mut value: u64, count: usize) -> String {
    let mut text = String::with_capacity(count);
    for _ in 0..count {
        text.push(char::from(DIGITS[(value & 31) as usize]));
        value >>= 5;
    }
    text
}

/// FNV-1a with a final mix: stable over versions and machines, which the standard hasher is not.
fn hash(bytes: &[u8]) -> u64 {
    let mut value =
        bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3));
    value ^= value >> 32;
    value = value.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    value ^ (value >> 29)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn interface_names_fit_the_kernel_and_tell_sandboxes_and_instances_apart() {
        let mut seen = BTreeSet::new();
        for instance in ["a", "b", ""] {
            for sandbox in 0..20_000 {
                let name = interface(instance, &format!("sandbox-{sandbox}"));
                assert_eq!(name.len(), 15);
                assert!(name.starts_with(&interface_prefix(instance)));
                assert!(seen.insert(name));
            }
        }
    }

    #[test]
    fn names_stay_the_same_over_versions() {
        assert_eq!(interface("proa", "sandbox-1"), interface("proa", "sandbox-1"));
        assert_eq!(table(""), "proa");
        assert_eq!(table("node/1"), "proa-node_1");
    }

    #[test]
    fn a_sandbox_id_cannot_leave_its_directory() {
        for bad in ["", ".", "..", "a/b", "a\0", ".hidden"] {
            assert!(!is_sandbox_id(bad), "{bad:?}");
        }
        assert!(is_sandbox_id("0a1b-C_d.e"));
    }
}
