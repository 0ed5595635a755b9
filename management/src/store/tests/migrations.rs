//! Upgrades: what is listed, what is copied before, what is refused.

use super::*;

/// A state directory and database as the version with the first migration left it, with a tenant and a user. Written as
/// that version wrote it, by statements that must not change with the code.
async fn old(directory: &Path, place: &Place) {
    fs::set_permissions(directory, fs::Permissions::from_mode(0o700)).unwrap();
    for (name, text) in [("kek", format!("{}\n", "0a".repeat(32))), ("core.db", String::new())] {
        fs::write(directory.join(name), text).unwrap();
        fs::set_permissions(directory.join(name), fs::Permissions::from_mode(0o600)).unwrap();
    }
    let store = Database { pool: connect::reach(place).await.unwrap() };
    store.migrate_to_for_test(1).await;
    let no_hash = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    let tenant = format!(
        "INSERT INTO tenant VALUES ('S12345678', 'Example', 1, 1, 0, 1, 1, 'AA==', 'AA==', 'AA==', 'AA==', \
         '{{\"relays\":[],\"relay_name\":null,\"relay_ca_pem\":null}}', 'direct', 0, '{no_hash}')"
    );
    store.execute_for_test(tenant.leak()).await;
    store
        .execute_for_test(
            "INSERT INTO account (tenant, id, email, display_name, active, created) VALUES \
             ('S12345678', '00000000-0000-4000-8000-000000000001', 'anna@example.com', 'Anna', 1, 1)",
        )
        .await;
    store.close().await;
}

fn states(plan: &Plan) -> Vec<(i64, &'static str)> {
    plan.0.iter().map(|s| (s.version, s.standing.as_str())).collect()
}

async fn has_anna(directory: &Path, place: &Place) {
    let (core, _lock) = core_at(directory, place).await;
    core.user_by_email(&tenant(), &"anna@example.com".parse().unwrap()).await.unwrap();
    core.verify_audit(&tenant()).await.unwrap();
    core.store().close().await;
}

#[tokio::test]
async fn p19_a_list_of_migrations_changes_nothing_and_says_what_is_pending_or_unknown() {
    let directory = tempfile::tempdir().unwrap();
    for place in places(directory.path()) {
        let before = State::plan(&place).await.unwrap();
        assert!(before.is_fresh() && !before.is_current() && before.0.len() >= 2, "{before:?}");
        if let Place::Sqlite(path) = &place {
            assert!(!path.exists(), "a list must not make the file");
        }
        assert_eq!(State::plan(&place).await.unwrap(), before);
        old(directory.path(), &place).await;
        let plan = State::plan(&place).await.unwrap();
        assert_eq!(&states(&plan)[..2], [(1, "applied"), (2, "pending")], "{place}");
        assert!(!plan.is_current() && !plan.is_fresh());
        assert_eq!(State::plan(&place).await.unwrap(), plan);

        State::migrate(directory.path(), &place, true).await.unwrap();
        let plan = State::plan(&place).await.unwrap();
        assert!(plan.is_current(), "{plan:?}");
        has_anna(directory.path(), &place).await;
    }
}

#[tokio::test]
async fn p19_sqlite_is_copied_before_it_is_migrated_and_the_copy_is_the_old_database() {
    let directory = tempfile::tempdir().unwrap();
    let place = Place::in_directory(directory.path());
    let copies = || {
        let all = fs::read_dir(directory.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut copies: Vec<_> = all.filter(|n| n.contains(".schema-") || n.contains(".copying")).collect();
        copies.sort();
        copies
    };
    old(directory.path(), &place).await;
    assert_eq!(copies(), [""; 0], "a new database has nothing to lose");
    // What a copy that was cut short left behind.
    fs::write(directory.path().join("core.db.copying"), "half a copy").unwrap();
    has_anna(directory.path(), &place).await;
    assert_eq!(copies(), ["core.db.schema-1"]);
    let copy = directory.path().join("core.db.schema-1");
    assert_eq!(mode(&copy), 0o600);

    // The way back: the copy in the database's place.
    for journal in ["core.db-wal", "core.db-shm"] {
        let _ = fs::remove_file(directory.path().join(journal));
    }
    fs::copy(&copy, directory.path().join("core.db")).unwrap();
    assert_eq!(&states(&State::plan(&place).await.unwrap())[..2], [(1, "applied"), (2, "pending")]);
    // And forward again: the first copy stays.
    let migrated = State::migrate(directory.path(), &place, false).await.unwrap();
    assert_eq!(migrated.backup.unwrap(), directory.path().join("core.db.schema-1.2"));
    assert_eq!(copies(), ["core.db.schema-1", "core.db.schema-1.2"]);
    has_anna(directory.path(), &place).await;
}

#[tokio::test]
async fn p19_without_room_for_the_copy_nothing_is_changed() {
    let directory = tempfile::tempdir().unwrap();
    let place = Place::in_directory(directory.path());
    old(directory.path(), &place).await;
    // In the copy's way, and neither a file nor empty.
    fs::create_dir_all(directory.path().join("core.db.copying/full")).unwrap();
    let error = State::open(directory.path(), &place).await.unwrap_err();
    assert!(matches!(error, OpenError::Backup { .. }), "{error}");
    assert_eq!(&states(&State::plan(&place).await.unwrap())[..2], [(1, "applied"), (2, "pending")]);
}

#[tokio::test]
async fn p19_postgres_is_migrated_only_by_hand_and_only_with_a_backup() {
    let directory = tempfile::tempdir().unwrap();
    let [_, place] = places(directory.path());
    old(directory.path(), &place).await;
    let pending = State::plan(&place).await.unwrap();
    let error = State::open(directory.path(), &place).await.unwrap_err();
    assert!(matches!(error, OpenError::Pending(..)), "{error}");
    assert!(error.to_string().contains("hedgerow core migrate --backup-exists"), "{error}");
    let error = State::migrate(directory.path(), &place, false).await.unwrap_err();
    assert!(matches!(error, OpenError::NoBackup(..)) && error.to_string().contains("--backup-exists"), "{error}");
    assert_eq!(State::plan(&place).await.unwrap(), pending);
    let migrated = State::migrate(directory.path(), &place, true).await.unwrap();
    assert_eq!((migrated.applied.first(), migrated.backup), (Some(&2), None));
    has_anna(directory.path(), &place).await;
}

#[tokio::test]
async fn p19_a_database_of_a_newer_version_or_another_build_is_refused_and_left_alone() {
    for (damage, word, says) in [
        (
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
             VALUES (999901, 'from the future', TRUE, 'x', 0)",
            "unknown",
            "newer version",
        ),
        ("UPDATE _sqlx_migrations SET checksum = 'x' WHERE version = 1", "changed", "another build"),
        ("UPDATE _sqlx_migrations SET success = FALSE WHERE version = 2", "unfinished", "restore the backup"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        for place in places(directory.path()) {
            let (core, lock) = core_at(directory.path(), &place).await;
            core.store().execute_for_test(damage).await;
            core.store().close().await;
            drop((core, lock));
            for error in [
                State::open(directory.path(), &place).await.unwrap_err(),
                State::migrate(directory.path(), &place, true).await.unwrap_err(),
            ] {
                assert!(error.to_string().contains(says), "{place}: {error}");
            }
            let plan = State::plan(&place).await.unwrap();
            assert!(!plan.is_current() && states(&plan).iter().any(|(_, s)| *s == word), "{place}: {plan:?}");
        }
    }
}

#[tokio::test]
async fn p19_a_migration_needs_the_core_to_be_stopped() {
    let directory = tempfile::tempdir().unwrap();
    for place in places(directory.path()) {
        let (core, lock) = core_at(directory.path(), &place).await;
        let error = State::migrate(directory.path(), &place, true).await.unwrap_err();
        assert!(matches!(error, OpenError::InUse(_)), "{error}");
        assert!(State::plan(&place).await.unwrap().is_current());
        core.store().close().await;
        drop(lock);
    }
}
