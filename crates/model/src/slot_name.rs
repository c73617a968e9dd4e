//! The names of the slots that a subscriber has on its providers.

use crate::NodeId;

/// PostgreSQL's limit on names, in bytes.
const MAX_BYTES: usize = 63;

/// What the names of all slots of one subscriber begin with; no other subscriber's begin so.
pub fn prefix(subscriber: NodeId) -> String {
    format!("pg_ha_{}_", subscriber.get())
}

/// The slot of a subscription: always the same for the same subscriber and name, made of lower case letters, digits
/// and underscores only, at most 63 bytes long, and distinct for names that differ in what it leaves out.
pub fn slot_name(subscriber: NodeId, subscription: &str) -> String {
    let prefix = prefix(subscriber);
    let hash = format!("{:08x}", fingerprint(subscription) & 0xFFFF_FFFF);
    let room = MAX_BYTES.saturating_sub(prefix.len() + 1 + hash.len());
    let readable: String = subscription
        .chars()
        .map(|c| c.to_ascii_lowercase())
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
        .take(room)
        .collect();
    format!("{prefix}{readable}_{hash}")
}

/// FNV-1a: stable across versions and platforms, which the names rely on.
pub fn fingerprint(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn node(number: u32) -> NodeId {
        NodeId::new(number).unwrap()
    }

    #[test]
    fn names_stay_what_they_are() {
        assert_eq!(fingerprint(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fingerprint("a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(slot_name(node(1), "s12"), "pg_ha_1_s12_5c4bf401");
    }

    #[test]
    fn what_is_left_out_still_counts() {
        assert_ne!(slot_name(node(1), "a b"), slot_name(node(1), "a_b"));
        assert_ne!(slot_name(node(1), "A"), slot_name(node(1), "a"));
        let long = "x".repeat(62);
        assert_ne!(
            slot_name(node(1), &format!("{long}1")),
            slot_name(node(1), &format!("{long}2"))
        );
    }

    #[test]
    fn one_prefix_is_not_another_ones_beginning() {
        assert!(!prefix(node(12)).starts_with(&prefix(node(1))));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn names_are_valid(number in 1u32..=1023, subscription in any::<String>()) {
            let name = slot_name(node(number), &subscription);
            prop_assert!(name.len() <= MAX_BYTES);
            prop_assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'));
            prop_assert!(name.starts_with(&prefix(node(number))));
        }
    }
}
