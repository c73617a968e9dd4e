//! The scenarios, one family per file. Each opens with the failure it guards against.

mod apply_as_owner;
mod apply_held;
mod apply_stops;
mod backlog;
mod bad_input_drop_database;
mod bad_input_dsn;
mod bad_input_names;
mod bad_input_settings;
mod conflict_history;
mod conflict_lww;
mod copies;
mod copies_cut_off;
mod copies_local_rows;
mod copies_many;
mod copies_structure_cut;
mod copies_versions;
mod crash_anything;
mod crash_apply;
mod every_type;
mod false_missing;
mod forwarding;
mod forwarding_others;
mod forwarding_ways;
mod least_privilege_tls;
mod many_tables;
mod mixed_sets;
mod mixed_versions;
mod one_way;
mod one_way_schema;
mod partition_heals;
mod provider_gone;
mod random_changes;
mod replica_semantics;
mod self_check;
mod sequences;
mod shapes;
mod slots;
mod slow_and_full;
mod stream_and_ddl;
mod streamed;
mod support;
mod toast;
mod two_phase;
mod types;
mod walkthrough;
mod wrong_clock;

use crate::scenario::Scenario;

/// In the order in which they start: what takes long comes early, so that the end is not one of them alone.
pub(crate) fn all() -> Vec<Scenario> {
    [
        self_check::SCENARIOS,
        walkthrough::SCENARIOS,
        random_changes::SCENARIOS,
        mixed_versions::SCENARIOS,
        many_tables::SCENARIOS,
        copies::SCENARIOS,
        copies_many::SCENARIOS,
        copies_versions::SCENARIOS,
        crash_anything::SCENARIOS,
        copies_cut_off::SCENARIOS,
        copies_local_rows::SCENARIOS,
        copies_structure_cut::SCENARIOS,
        backlog::SCENARIOS,
        crash_apply::SCENARIOS,
        forwarding::SCENARIOS,
        forwarding_others::SCENARIOS,
        forwarding_ways::SCENARIOS,
        partition_heals::SCENARIOS,
        provider_gone::SCENARIOS,
        apply_as_owner::SCENARIOS,
        apply_held::SCENARIOS,
        apply_stops::SCENARIOS,
        one_way::SCENARIOS,
        conflict_lww::SCENARIOS,
        conflict_history::SCENARIOS,
        false_missing::SCENARIOS,
        wrong_clock::SCENARIOS,
        mixed_sets::SCENARIOS,
        sequences::SCENARIOS,
        shapes::SCENARIOS,
        stream_and_ddl::SCENARIOS,
        types::SCENARIOS,
        replica_semantics::SCENARIOS,
        toast::SCENARIOS,
        slots::SCENARIOS,
        slow_and_full::SCENARIOS,
        streamed::SCENARIOS,
        two_phase::SCENARIOS,
        least_privilege_tls::SCENARIOS,
        bad_input_settings::SCENARIOS,
        bad_input_dsn::SCENARIOS,
        bad_input_names::SCENARIOS,
        bad_input_drop_database::SCENARIOS,
    ]
    .concat()
}
