//! The domain's cases over SQLite and PostgreSQL, and what only a database can show.

#[macro_use]
#[path = "../../../uem-core/tests/suite/mod.rs"]
mod suite;
#[path = "../../tests/common/postgres.rs"]
mod postgres_server;

mod migrations;
mod plans;
mod server;

use std::fs;
use std::future::Future;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use hedgerow_shared::{TenantId, UnixTime};
use hedgerow_uem_core::account::TenantSettings;
use hedgerow_uem_core::activation::PasswordChoice;
use hedgerow_uem_core::service::{NewTenant, NewUser};
use hedgerow_uem_core::store::Page;
use hedgerow_uem_core::{Actor, Call, Core, CoreError};
use postgres_server::Server;

use super::*;

const NOW: UnixTime = UnixTime(1_800_000_000);

fn with_place<F: Future<Output = ()> + Send>(place: impl FnOnce(&Path) -> Place, case: impl FnOnce(Database) -> F) {
    let directory = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let state = State::open(directory.path(), &place(directory.path())).await.unwrap();
        case(state.store.clone()).await;
        state.store.close().await;
    });
}

/// How to get to a database of the test's server.
fn postgres(url: &str) -> Place {
    let options = Box::new(url.parse().unwrap());
    Place::Postgres { options, wait: Duration::from_secs(2) }
}

mod over_sqlite {
    use super::*;

    fn with_sqlite<F: Future<Output = ()> + Send>(case: impl FnOnce(Database) -> F) {
        with_place(Place::in_directory, case);
    }

    suite!(with_sqlite);
}

mod over_postgres {
    use super::*;

    fn with_postgres<F: Future<Output = ()> + Send>(case: impl FnOnce(Database) -> F) {
        let server = Server::shared();
        with_place(|_| postgres(&server.url(&server.database())), case);
    }

    suite!(with_postgres);
}

/// A place of each kind, empty.
fn places(directory: &Path) -> [Place; 2] {
    let server = Server::shared();
    [Place::in_directory(directory), postgres(&server.url(&server.database()))]
}

fn tenant() -> TenantId {
    "S12345678".parse().unwrap()
}

async fn core(directory: &Path) -> (Core<Database>, Lock) {
    core_at(directory, &Place::in_directory(directory)).await
}

async fn core_at(directory: &Path, place: &Place) -> (Core<Database>, Lock) {
    let state = State::open(directory, place).await.unwrap();
    (Core::new(state.store, state.kek), state.lock)
}

async fn make_tenant(core: &Core<Database>) {
    let new = NewTenant { id: tenant(), name: "Example".into(), settings: TenantSettings::default() };
    core.create_tenant(&mut Call::new(Actor::System, NOW, &mut SystemRandom), new).await.unwrap();
}

async fn add_user(core: &Core<Database>, email: String) -> Result<(), CoreError> {
    let new = NewUser { email: email.parse().unwrap(), display_name: "Somebody".into() };
    core.add_user(&mut Call::new(Actor::System, NOW, &mut SystemRandom), &tenant(), new).await.map(drop)
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o777
}

#[tokio::test]
async fn state_survives_a_restart_and_is_private() {
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("deep/core");
    let (first, lock) = core(&directory).await;
    make_tenant(&first).await;
    let configs = first.configs(&tenant()).await.unwrap();
    assert_eq!(mode(&directory), 0o700);
    let mut names: Vec<_> = fs::read_dir(&directory).unwrap().map(|e| e.unwrap().path()).collect();
    names.sort();
    assert!(names.len() >= 3, "{names:?}");
    for file in names {
        assert_eq!(mode(&file), 0o600, "{}", file.display());
    }
    first.store().close().await;
    drop((first, lock));

    let (second, _lock) = core(&directory).await;
    assert_eq!(second.configs(&tenant()).await.unwrap(), configs);
    second.verify_audit(&tenant()).await.unwrap();
}

#[tokio::test]
async fn a_key_or_database_that_others_can_read_is_refused() {
    for (name, open) in [("kek", 0o640), ("kek", 0o604), ("core.db", 0o644), ("", 0o720)] {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("core");
        drop(core(&directory).await);
        let path = if name.is_empty() { directory.clone() } else { directory.join(name) };
        fs::set_permissions(&path, fs::Permissions::from_mode(open)).unwrap();
        let error = State::open(&directory, &Place::in_directory(&directory)).await.unwrap_err();
        assert!(matches!(&error, OpenError::NotPrivate { path: p, .. } if *p == path), "{error}");
        assert!(error.to_string().contains("chmod"), "{error}");
    }
}

#[tokio::test]
async fn a_database_without_its_key_is_refused_and_no_new_key_is_made() {
    let directory = tempfile::tempdir().unwrap();
    let (first, lock) = core(directory.path()).await;
    make_tenant(&first).await;
    first.store().close().await;
    drop((first, lock));
    let kek = directory.path().join("kek");
    let text = fs::read_to_string(&kek).unwrap();
    fs::remove_file(&kek).unwrap();
    assert!(matches!(
        State::open(directory.path(), &Place::in_directory(directory.path())).await,
        Err(OpenError::KeyMissing(_))
    ));
    assert!(!kek.exists());
    fs::write(&kek, &text[1..]).unwrap();
    fs::set_permissions(&kek, fs::Permissions::from_mode(0o600)).unwrap();
    let error = State::open(directory.path(), &Place::in_directory(directory.path())).await.unwrap_err();
    assert!(matches!(error, OpenError::KeyMalformed(_)));
    assert!(!format!("{error:?}").contains(&text[2..20]));
    fs::write(&kek, text).unwrap();
    State::open(directory.path(), &Place::in_directory(directory.path())).await.unwrap();
}

#[tokio::test]
async fn a_second_process_is_kept_out() {
    let directory = tempfile::tempdir().unwrap();
    let (first, lock) = core(directory.path()).await;
    assert!(matches!(
        State::open(directory.path(), &Place::in_directory(directory.path())).await,
        Err(OpenError::InUse(_))
    ));
    drop((first, lock));
    State::open(directory.path(), &Place::in_directory(directory.path())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_changes_all_land_in_one_audit_chain() {
    let directory = tempfile::tempdir().unwrap();
    for place in places(directory.path()) {
        let (core, _lock) = core_at(directory.path(), &place).await;
        make_tenant(&core).await;
        let all = (0..600).map(|i| add_user(&core, format!("user{}@example.com", i / 2)));
        let results = futures_util::future::join_all(all).await;
        // Each address was asked for twice at the same time; one of each pair got it.
        let done = results.iter().filter(|r| r.is_ok()).count();
        assert_eq!(done, 300, "{place}: {results:?}");
        assert!(results.iter().all(|r| matches!(r, Ok(()) | Err(CoreError::Exists { .. }))), "{place}: {results:?}");
        assert_eq!(core.users(&tenant(), Page::first()).await.unwrap().len(), 300);
        assert_eq!(core.verify_audit(&tenant()).await.unwrap().number, 301);
    }
}

#[tokio::test]
async fn the_files_hold_no_secret_in_the_clear() {
    let directory = tempfile::tempdir().unwrap();
    let (core, _lock) = core(directory.path()).await;
    make_tenant(&core).await;
    add_user(&core, "anna@example.com".into()).await.unwrap();
    let anna = core.user_by_email(&tenant(), &"anna@example.com".parse().unwrap()).await.unwrap();
    let choice = PasswordChoice::Set(hedgerow_shared::secret::Secret::from_text("correct horse battery".into()));
    let mut random = SystemRandom;
    let call = &mut Call::new(Actor::System, NOW, &mut random);
    core.set_activation_password(call, &tenant(), anna.id, choice, 60).await.unwrap();
    let identity = core.core_identity(call, &tenant()).await.unwrap();
    core.store().close().await;
    let mut all = Vec::new();
    for entry in fs::read_dir(directory.path()).unwrap() {
        all.extend(fs::read(entry.unwrap().path()).unwrap());
    }
    let holds = |needle: &[u8]| all.windows(needle.len()).any(|w| w == needle);
    assert!(holds(b"anna@example.com"), "the search must be able to find something");
    assert!(!holds(b"correct horse"));
    assert!(!holds(&identity.key[30..60]), "the core's TLS key never reaches the disk");
}

#[tokio::test]
async fn a_record_changed_behind_our_back_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    for place in places(directory.path()) {
        let (core, _lock) = core_at(directory.path(), &place).await;
        make_tenant(&core).await;
        add_user(&core, "anna@example.com".into()).await.unwrap();
        add_user(&core, "bert@example.com".into()).await.unwrap();
        core.verify_audit(&tenant()).await.unwrap();
        for sql in ["UPDATE audit SET detail = 'nobody' WHERE number = 2", "DELETE FROM audit WHERE number = 3"] {
            core.store().execute_for_test(sql).await;
            assert!(matches!(core.verify_audit(&tenant()).await, Err(CoreError::Damaged(_))));
        }
        let broken = "UPDATE account SET email = 'not an address' WHERE email = 'bert@example.com'";
        core.store().execute_for_test(broken).await;
        assert!(matches!(core.users(&tenant(), Page::first()).await, Err(CoreError::Store(_))));
    }
}
