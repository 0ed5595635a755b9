//! What only a server can do: sort otherwise, refuse, go away and come back.

use std::error::Error as _;

use hedgerow_uem_core::store::Store as _;
use sqlx::postgres::PgConnectOptions;

use super::postgres_server::PASSWORD;
use super::*;

fn options(url: &str) -> PgConnectOptions {
    url.parse().unwrap()
}

async fn refused(options: PgConnectOptions) -> ServerError {
    let directory = tempfile::tempdir().unwrap();
    let place = Place::Postgres { options: Box::new(options), wait: Duration::from_millis(700) };
    match State::open(directory.path(), &place).await {
        Err(OpenError::Server(error)) => error,
        other => panic!("{:?}", other.map(drop)),
    }
}

#[tokio::test]
async fn p19_text_is_compared_by_its_bytes_in_both_databases() {
    let server = Server::shared();
    let english =
        server.sql("postgres", "SELECT string_agg(w, ',' ORDER BY w) FROM (VALUES ('a-b'), ('aa'), ('B')) t (w)");
    assert_eq!(english.trim(), "a-b,aa,B", "the server must have an order of its own for this to show something");
    let directory = tempfile::tempdir().unwrap();
    for place in places(directory.path()) {
        let (core, _lock) = core_at(directory.path(), &place).await;
        make_tenant(&core).await;
        for holder in ["relay:aa", "relay:B", "relay:a-b", "relay:\u{e4}", "node:z"] {
            let version = hedgerow_shared::verify::Version { epoch: 0, version: 1 };
            core.acknowledge(&tenant(), holder, version, NOW).await.unwrap();
        }
        let holders = core.acknowledgements(&tenant()).await.unwrap().into_iter().map(|a| a.holder);
        let expected = ["node:z", "relay:B", "relay:a-b", "relay:aa", "relay:\u{e4}"];
        assert_eq!(holders.collect::<Vec<_>>(), expected, "{place}");
        core.store().close().await;
    }
    let database = server.database();
    State::open(directory.path(), &postgres(&server.url(&database))).await.unwrap();
    let text = "FROM information_schema.columns WHERE table_schema = 'public' AND data_type = 'text' \
                AND table_name <> '_sqlx_migrations'";
    let other = server
        .sql(&database, &format!("SELECT table_name, column_name {text} AND collation_name IS DISTINCT FROM 'C'"));
    assert_eq!(other, "", "these columns sort by the locale");
    assert!(server.sql(&database, &format!("SELECT count(*) {text}")).trim().parse::<u32>().unwrap() > 40);
}

#[tokio::test]
async fn p19_what_keeps_us_out_is_said_with_what_to_do_and_without_the_password() {
    let server = Server::shared();
    let database = server.database();
    let tcp = options(&server.tcp_url(&database));

    let wrong = refused(tcp.clone().password("not the password")).await;
    assert!(matches!(wrong, ServerError::Denied { .. }) && wrong.to_string().contains("password_file"), "{wrong}");
    let none = refused(tcp.clone()).await;
    assert!(matches!(none, ServerError::Denied { .. }), "{none:?}");
    let nobody = refused(tcp.clone().username("nobody_at_all").password(PASSWORD)).await;
    assert!(matches!(nobody, ServerError::Denied { .. }), "{nobody}");
    let missing = refused(tcp.clone().database("nowhere").password(PASSWORD)).await;
    assert!(
        matches!(missing, ServerError::Missing { .. }) && missing.to_string().contains("CREATE DATABASE"),
        "{missing}"
    );
    let host = refused(tcp.clone().host("db.hedgerow.invalid").password(PASSWORD)).await;
    assert!(matches!(host, ServerError::Host { .. }) && host.to_string().contains("database.url"), "{host}");
    let tls = refused(tcp.clone().ssl_mode(sqlx::postgres::PgSslMode::VerifyFull).password(PASSWORD)).await;
    assert!(matches!(tls, ServerError::Tls { .. }) && tls.to_string().contains("sslrootcert"), "{tls}");
    let closed = refused(tcp.clone().port(1).password(PASSWORD)).await;
    assert!(matches!(closed, ServerError::Silent { .. }), "{closed}");
    let socket = refused(options("postgres:///x?host=/nonexistent&user=owner")).await;
    assert!(matches!(socket, ServerError::Silent { .. }), "{socket}");
    for error in [wrong, none, nobody, missing, host, tls, closed, socket] {
        let mut text = format!("{error} {error:?}");
        let mut source = error.source();
        while let Some(cause) = source {
            text.push_str(&cause.to_string());
            source = cause.source();
        }
        assert!(!text.contains(PASSWORD) && !text.contains("not the password"), "{text}");
    }

    let directory = tempfile::tempdir().unwrap();
    let place = Place::Postgres { options: Box::new(tcp.password(PASSWORD)), wait: Duration::from_secs(2) };
    let state = State::open(directory.path(), &place).await.unwrap();
    assert!(!format!("{place:?} {place} {state:?}").contains(PASSWORD));
}

#[tokio::test]
async fn p19_a_server_that_goes_away_is_an_error_and_one_that_is_back_is_used_again() {
    // One of its own: others do not expect theirs to go away.
    let server = Server::start();
    let place = postgres(&server.url(&server.database()));
    let directory = tempfile::tempdir().unwrap();
    let (core, lock) = core_at(directory.path(), &place).await;
    make_tenant(&core).await;
    add_user(&core, "anna@example.com".into()).await.unwrap();
    server.crash();
    let during = tokio::time::timeout(Duration::from_secs(15), core.store().ping()).await.expect("an answer in time");
    assert!(during.is_err());
    assert!(add_user(&core, "bert@example.com".into()).await.is_err());
    server.launch();
    core.store().ping().await.unwrap();
    add_user(&core, "bert@example.com".into()).await.unwrap();
    assert_eq!(core.verify_audit(&tenant()).await.unwrap().number, 3);

    // A start waits for a server that is just starting.
    core.store().close().await;
    drop((core, lock));
    server.crash();
    let Place::Postgres { options, .. } = place else { panic!("a server") };
    let patient = Place::Postgres { options, wait: Duration::from_secs(30) };
    let server = std::sync::Arc::new(server);
    let launched = server.clone();
    let later = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(600));
        launched.launch();
    });
    let state = State::open(directory.path(), &patient).await.unwrap();
    state.store.close().await;
    later.join().unwrap();
}

#[tokio::test]
async fn p19_a_server_that_answers_before_it_has_written_is_told_not_to() {
    let server = Server::shared();
    let database = server.database();
    for (setting, expected) in [("off", "on"), ("remote_write", "remote_write"), ("on", "on")] {
        server.sql("postgres", &format!("ALTER DATABASE {database} SET synchronous_commit = {setting}"));
        let directory = tempfile::tempdir().unwrap();
        let state = State::open(directory.path(), &postgres(&server.url(&database))).await.unwrap();
        assert_eq!(state.store.text_for_test("SELECT current_setting('synchronous_commit') AS text").await, expected);
        let patience = state.store.text_for_test("SELECT current_setting('lock_timeout') AS text").await;
        assert_eq!(patience, "10s", "our own settings arrive");
        assert!(state.store.tenants().await.unwrap().is_empty());
    }
}

/// A CA and a certificate of it for `localhost`, with its key: PEM.
fn tls_files() -> [String; 3] {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    let ca_key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = params.self_signed(&ca_key).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let leaf = leaf.signed_by(&key, &Issuer::new(params, ca_key)).unwrap();
    [ca.pem(), leaf.pem(), key.serialize_pem()]
}

#[tokio::test]
async fn p19_by_tls_the_server_must_be_the_one_that_was_meant() {
    let server = Server::start();
    let database = server.database();
    let ([ca, certificate, key], [other_ca, ..]) = (tls_files(), tls_files());
    let ca = server.file("ca.pem", &ca);
    let other_ca = server.file("other-ca.pem", &other_ca);
    for (setting, path) in
        [("ssl_cert_file", server.file("server.pem", &certificate)), ("ssl_key_file", server.file("server.key", &key))]
    {
        server.sql("postgres", &format!("ALTER SYSTEM SET {setting} = '{}'", path.display()));
    }
    server.sql("postgres", "ALTER SYSTEM SET ssl = on");
    server.crash();
    server.launch();
    let url = server.tcp_url(&database).replace("127.0.0.1", "localhost");
    let checked = options(&url).ssl_mode(sqlx::postgres::PgSslMode::VerifyFull).password(PASSWORD);

    let place = Place::Postgres { options: Box::new(checked.clone().ssl_root_cert(&ca)), wait: Duration::from_secs(2) };
    let directory = tempfile::tempdir().unwrap();
    let state = State::open(directory.path(), &place).await.unwrap();
    let encrypted = "SELECT version || ' ' || ssl::TEXT AS text FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    assert_eq!(state.store.text_for_test(encrypted).await, "TLSv1.3 true");
    state.store.close().await;

    for (why, other) in [
        ("its CA is another", checked.clone().ssl_root_cert(&other_ca)),
        ("its CA is nobody's", checked.clone()),
        ("its name is another", checked.ssl_root_cert(&ca).host("127.0.0.1")),
    ] {
        let error = refused(other).await;
        assert!(matches!(error, ServerError::Tls { .. }), "{why}: {error:?}");
    }
}
