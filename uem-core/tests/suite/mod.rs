//! The domain over a store: every case runs over memory here, over SQLite and PostgreSQL in `management`.
//!
//! `suite!(with_store)` makes one test of each case; `with_store` makes a fresh, empty store and runs the case's
//! future to its end.

#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(dead_code, reason = "cases are named by the macro")]

macro_rules! call {
    ($world:ident) => {
        &mut Call::new(Actor::Admin("root".into()), $world.now, &mut $world.random)
    };
}

mod activation;
mod activation_profiles;
mod admins;
mod apps;
mod bulk;
mod changes;
mod commands;
mod configs;
mod holders;
mod inventory;
mod licences;
mod profiles;
mod reports;
mod side_by_side;
mod storage;
mod tenants;
mod world;

pub(crate) use activation::*;
pub(crate) use activation_profiles::*;
pub(crate) use admins::*;
pub(crate) use apps::*;
pub(crate) use bulk::*;
pub(crate) use changes::*;
pub(crate) use commands::*;
pub(crate) use configs::*;
pub(crate) use holders::*;
pub(crate) use inventory::*;
pub(crate) use licences::*;
pub(crate) use profiles::*;
pub(crate) use reports::*;
pub(crate) use side_by_side::*;
pub(crate) use storage::*;
pub(crate) use tenants::*;

macro_rules! suite {
    ($with:ident) => {
        suite! { @ $with
            a_new_tenant_has_a_ca_and_a_configuration_that_denies_all
            a_tenant_is_made_once
            settings_that_peers_could_not_use_are_refused
            p18_users_have_unique_addresses_whatever_their_case
            lists_come_in_pages
            p20_a_device_activates_with_its_password_once
            p20_the_sixth_attempt_is_refused_even_with_the_right_password
            p20_a_session_begun_before_the_block_is_refused_as_well
            p20_parallel_wrong_attempts_are_all_counted
            p20_an_expired_password_is_refused_and_removed
            p20_unknown_users_are_answered_like_wrong_passwords
            p20_of_parallel_activations_with_one_password_one_succeeds
            p20_a_relay_in_between_is_refused_and_counted
            p20_a_slow_activation_is_refused
            p20_a_replaced_password_ends_the_sessions_of_the_old_one
            p20_enrolment_tokens_make_one_node_each
            expired_withdrawn_and_unknown_tokens_are_refused
            p20_a_revoked_device_is_in_the_next_configuration_and_not_admitted
            a10_who_is_made_again_under_the_same_name_leaves_the_old_certificate_revoked
            p20_a_revoked_node_is_in_the_next_configuration_and_not_admitted
            devices_of_an_inactive_user_do_not_count_while_it_lasts
            revoked_holders_leave_the_list_when_their_certificates_have_expired
            certificates_are_renewed_for_the_same_identity
            p20_an_expired_holder_comes_back_by_its_newest_certificate
            p20_certificates_of_one_holder_are_bounded
            a10_a_revoked_holder_stays_revoked_as_long_as_any_of_its_certificates_lasts
            p20_the_ca_is_replaced_step_by_step
            rules_and_routes_keep_their_order_and_reach_their_audience
            p02_server_names_are_kept_in_one_spelling_and_audited
            one_version_has_one_content
            configuration_is_issued_again_every_hour_and_when_the_clock_went_back
            the_configuration_keys_certificate_is_renewed_in_time
            raising_the_epoch_outranks_every_version
            the_core_gets_a_certificate_that_devices_accept
            every_change_is_audited_in_one_chain
            a_commit_on_an_old_revision_changes_nothing
            another_key_file_is_noticed
            acknowledgements_and_last_seen_are_kept
            tenants_do_not_see_each_other
            p18_groups_have_unique_names_and_nest_within_bounds
            p18_lists_of_groups_and_members_come_in_pages
            p21_profiles_are_ranked_and_ranks_move
            p21_a_category_has_one_default_and_it_stays
            p21_what_has_effect_is_told_with_its_reason
            p21_an_activation_profile_decides_how_many_and_which_devices_and_as_what
            p20_what_an_activation_profile_says_is_told_only_to_who_knows_the_password
            p21_connectivity_profiles_become_routes_of_devices_and_rules_of_nodes
            two_tenants_side_by_side_are_each_as_if_alone
            p18_users_are_imported_once_and_changed_where_they_differ
            p18_users_are_found_by_what_their_address_or_name_begins_with
            p22_commands_are_fetched_in_order_and_answered_once
            p22_commands_are_taken_back_and_expire
            p22_properties_of_commands_are_stored_sealed_and_rows_of_before_are_still_read
            p22_a_command_that_has_moved_meanwhile_takes_nothing_along
            p22_a_queue_has_a_bound_and_revoked_devices_have_none
            p04_a_licence_is_installed_shown_and_removed_and_audited
            p04_activations_stop_at_the_last_seat_and_leave_the_password_as_it_was
            p04_after_the_grace_nothing_new_becomes_active
            p04_of_activations_at_once_no_more_succeed_than_there_are_seats
            p22_a_device_that_has_erased_itself_is_revoked
            p23_what_a_device_tells_is_kept_and_the_newest_counts
            p40_a_list_of_apps_is_replaced_as_a_whole_and_read_in_pages
            p21_a_device_that_breaks_a_rule_is_recorded_and_dealt_with_once
            p21_time_alone_breaks_rules_and_the_round_finds_it
            p21_a_stolen_device_does_not_outwait_its_erasure
            p21_a_step_whose_command_came_to_nothing_is_taken_again
            p21_the_cores_own_absence_is_not_the_devices_silence
            p21_one_bad_device_does_not_stop_the_round
            p23_a_clock_that_ran_ahead_does_not_silence_devices
            p18_one_administrator_keeps_the_security_role
            p18_nobody_grants_what_they_do_not_have_and_roles_reach_their_groups_alone
            p18_who_signs_in_is_an_active_administrator_with_the_password_of_now
            p18_users_of_a_directory_are_unique_and_have_no_password_here
            p18_a_user_gets_another_address_and_keeps_devices_groups_and_password
            p18_a_group_gets_another_name_and_keeps_its_members
            p18_a_role_that_is_changed_counts_at_once_for_who_has_it
            p23_audit_records_are_found_along_time_in_pages
            p23_reports_count_what_there_is
            p40_the_catalogue_keeps_apps_configurations_and_groups
            p40_which_apps_have_effect_is_told_with_its_reason
            p40_what_is_installed_is_compared_and_compliance_follows
        }
    };
    (@ $with:ident $($case:ident)*) => {
        $( #[test] fn $case() { $with(|store| suite::$case(store)); } )*
    };
}
