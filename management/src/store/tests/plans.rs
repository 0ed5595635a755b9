//! How the database finds what it is asked for: whatever is asked for one device, user or connection goes by an index, so that
//! it does not grow with the tenant.

use sqlx::Row as _;

use super::*;
use crate::store::sql::{Pool, asked};

/// The beginnings of questions that read all that a tenant has of something, and why they may.
const MAY_LOOK_AROUND: &[(&str, &str)] = &[
    (
        "SELECT * FROM (SELECT * FROM account WHERE",
        "each half by an index and a limit; what is read over is the answer",
    ),
    ("SELECT * FROM acknowledgement WHERE tenant = $1 ORDER", "of relays and nodes: a list"),
    ("SELECT * FROM activation_password WHERE tenant = $1 ORDER", "all open ones are shown to relays"),
    ("SELECT * FROM admin_role WHERE tenant = $1 ORDER", "a list, at most 200"),
    ("SELECT * FROM administrator WHERE tenant = $1 ORDER", "a list, at most 1000"),
    ("SELECT * FROM app_listing WHERE tenant = $1", "the organisation's own two lists"),
    ("SELECT * FROM licence WHERE", "there is one"),
    ("SELECT * FROM placement WHERE", "there is one"),
    ("SELECT * FROM profile WHERE tenant = $1 AND is_default = 1", "at most 1000 a category, made by hand"),
    ("SELECT * FROM server_name WHERE tenant = $1 ORDER", "all are shown to relays"),
    ("SELECT COUNT(*) AS n FROM device WHERE", "a report"),
    ("SELECT platform AS what, COUNT(*) AS n FROM device", "a report"),
    ("SELECT COUNT(*) AS apps", "the catalogue's size, when an app is added"),
    ("SELECT action AS what, COUNT(*) AS n FROM audit", "a report"),
    (
        "SELECT d.id AS id FROM device d WHERE d.tenant = $1 AND d.state = 'revoked'",
        "by indexes of those that are revoked or inactive alone",
    ),
    (
        "SELECT COUNT(*) AS active FROM device WHERE tenant = $1 AND state",
        "of all: a count, along an index of the active ones",
    ),
    ("SELECT id FROM tenant", "at the start"),
    ("SELECT route FROM route", "all are one document"),
    ("SELECT rule FROM access_rule", "all are one document"),
    ("SELECT state AS what, COUNT(*) AS n FROM device", "a report"),
    ("SELECT verdict, COUNT(*) AS devices", "a report"),
];

/// What a step of a plan reads without an index, or by the tenant alone.
fn looks_around(step: &str) -> bool {
    let by_tenant_alone =
        step.starts_with("SEARCH") && (step.contains("(tenant=?)") || step.contains("(tenant=? AND state=?)"));
    let is_scan = step.starts_with("SCAN") && !step.starts_with("SCAN CONSTANT ROW");
    by_tenant_alone || is_scan
}

#[test]
fn p19_what_is_asked_for_one_goes_by_an_index() {
    for case in 0..12 {
        with_place(Place::in_directory, |store| async move {
            match case {
                0 => suite::two_tenants_side_by_side_are_each_as_if_alone(store).await,
                1 => suite::p22_commands_are_taken_back_and_expire(store).await,
                2 => suite::p40_what_is_installed_is_compared_and_compliance_follows(store).await,
                3 => suite::p20_certificates_of_one_holder_are_bounded(store).await,
                4 => suite::p20_enrolment_tokens_make_one_node_each(store).await,
                5 => suite::p23_audit_records_are_found_along_time_in_pages(store).await,
                6 => suite::p23_reports_count_what_there_is(store).await,
                7 => suite::p04_activations_stop_at_the_last_seat_and_leave_the_password_as_it_was(store).await,
                8 => suite::p20_a_revoked_node_is_in_the_next_configuration_and_not_admitted(store).await,
                9 => suite::acknowledgements_and_last_seen_are_kept(store).await,
                10 => suite::p40_the_catalogue_keeps_apps_configurations_and_groups(store).await,
                _ => suite::p18_users_of_a_directory_are_unique_and_have_no_password_here(store).await,
            }
        });
    }
    with_place(Place::in_directory, |store| async move {
        let Pool::Sqlite(pool) = &store.pool else { panic!("a file") };
        let (mut looked_at, mut faults) = (0, Vec::new());
        for sql in asked::all() {
            if sql.contains("sqlx_migrations") || sql.contains("sqlite_master") || sql.contains("to_regclass") {
                continue;
            }
            let explain = sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {sql}"));
            let plan = sqlx::query(explain).fetch_all(pool).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
            let steps: Vec<String> = plan.iter().map(|row| row.get("detail")).collect();
            looked_at += 1;
            let may = MAY_LOOK_AROUND.iter().any(|(begin, _)| sql.starts_with(begin));
            if steps.iter().any(|step| looks_around(step)) && !may {
                faults.push(format!("{sql}\n    {}", steps.join("\n    ")));
            }
        }
        assert!(looked_at > 60, "only {looked_at} questions were asked");
        assert!(faults.is_empty(), "{} of {looked_at}:\n{}", faults.len(), faults.join("\n"));
    });
}
