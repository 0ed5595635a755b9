#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;

use hedgerow_shared::Role;

use super::files::request;
use super::*;
use crate::testing::TestCa;
use crate::tls::SigningKey;

/// A folder with a pair in force and, for `stage` 1 and 2, as much of the next one.
fn folder(ca: &TestCa, stage: u8) -> (tempfile::TempDir, Files) {
    let dir = tempfile::tempdir().unwrap();
    let files = Files::new(dir.path(), "key.pem", "certificate.pem");
    let _ = put_pair(ca, dir.path(), "key.pem", "certificate.pem");
    if stage == 1 {
        files.next_key().unwrap();
    }
    if stage == 2 {
        let _ = put_pair(ca, dir.path(), "key.pem.next", "certificate.pem.next");
    }
    (dir, files)
}

fn put_pair(ca: &TestCa, dir: &Path, key: &str, certificate: &str) -> Own {
    use std::os::unix::fs::PermissionsExt;
    let (own, _) = ca.issue(Role::Device, &[]);
    let pem = |tag: &str, der: &[u8]| pem::encode(&pem::Pem::new(tag, der));
    fs::write(dir.join(key), pem("PRIVATE KEY", own.key.secret().expose())).unwrap();
    fs::set_permissions(dir.join(key), fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(dir.join(certificate), pem("CERTIFICATE", &own.chain[0])).unwrap();
    own
}

fn names(dir: &Path) -> Vec<String> {
    let mut all: Vec<_> = fs::read_dir(dir).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
    all.sort();
    all
}

#[test]
fn p20_a_renewal_that_was_cut_off_goes_on_with_the_key_it_had() {
    let ca = TestCa::new("S12345678");
    let (_dir, files) = folder(&ca, 0);
    assert!(!files.has_next());
    let key = files.next_key().unwrap();
    let again = files.next_key().unwrap();
    assert_eq!(key.secret(), again.secret(), "a request that was sent is for this key");
    assert!(files.has_next() && files.next_certificate(&key).is_none());
    let (in_force, _) = files.load().unwrap();
    assert!(!key.is_of(&in_force));
    assert!(!request(&key).unwrap().is_empty());
}

/// Whatever the moment of the power cut, one pair that belongs together is read, and the old one until both steps are due.
#[test]
fn p20_at_no_moment_is_a_holder_without_a_pair_that_belongs_together() {
    let ca = TestCa::new("S12345678");
    for cut in ["before", "between", "after"] {
        let (dir, files) = folder(&ca, 2);
        let (old, _) = files.load().unwrap();
        let at = |name: &str| dir.path().join(name);
        match cut {
            "before" => {}
            "between" => fs::rename(at("certificate.pem.next"), at("certificate.pem")).unwrap(),
            _ => files.commit().unwrap(),
        }
        let (leaf, key) = files.load().unwrap();
        assert!(key.is_of(&leaf), "{cut}");
        assert_eq!(leaf == old, cut == "before", "{cut}");
        if cut != "before" {
            assert_eq!(names(dir.path()), ["certificate.pem", "key.pem"], "{cut}: the old key is gone");
        }
    }
}

#[test]
fn p20_a_certificate_for_another_key_is_refused_and_erasing_takes_the_next_pair_too() {
    let ca = TestCa::new("S12345678");
    let (dir, files) = folder(&ca, 2);
    let stray = SigningKey::read(&dir.path().join("key.pem")).unwrap();
    assert!(files.next_certificate(&stray).is_none());
    let _ = put_pair(&ca, dir.path(), "other", "certificate.pem");
    let error = files.load().unwrap_err().to_string();
    assert!(error.contains("for another key"), "{error}");
    files.erase_next().unwrap();
    files.erase_next().unwrap();
    assert_eq!(names(dir.path()), ["certificate.pem", "key.pem", "other"]);
}
