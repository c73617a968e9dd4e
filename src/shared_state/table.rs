//! Counters per subscription and table.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

use crate::settings;

use super::layout::{MAX_TABLES, TableCounters};

/// Finds or takes the counters of a table; None when the memory for them is full.
pub(crate) fn counters(subscription_id: i32, relation: u32) -> Option<&'static TableCounters> {
    let tables = &super::area()?.tables;
    let key = key(subscription_id, relation);
    let start = key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
    let limit = settings::max_tracked_tables().clamp(1, MAX_TABLES);
    for step in 0..limit {
        let place = &tables[(start as usize + step) % limit];
        match place.key.compare_exchange(0, key, AcqRel, Acquire) {
            Ok(_) => return Some(place),
            Err(found) if found == key => return Some(place),
            Err(_) => {}
        }
    }
    None
}

/// One row for `ha.status_tables`: subscription id, relation, inserted, updated, deleted, conflicts.
pub(crate) fn all() -> Vec<(i32, u32, u64, u64, u64, u64)> {
    let Some(area) = super::area() else {
        return Vec::new();
    };
    area.tables
        .iter()
        .filter_map(|place| {
            let key = place.key.load(Acquire);
            (key != 0).then(|| {
                (
                    (key >> 32) as i32,
                    key as u32,
                    place.inserted.load(Relaxed),
                    place.updated.load(Relaxed),
                    place.deleted.load(Relaxed),
                    place.conflicts.load(Relaxed),
                )
            })
        })
        .collect()
}

fn key(subscription_id: i32, relation: u32) -> u64 {
    ((subscription_id as u32 as u64) << 32) | u64::from(relation)
}
