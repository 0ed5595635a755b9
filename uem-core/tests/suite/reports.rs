//! Looking into the record, and counting.

use super::world::*;
use hedgerow_shared::UnixTime;
use hedgerow_uem_core::report::{AuditQuery, Count, DevicesBy};
use hedgerow_uem_core::store::{Page, Store};
use hedgerow_uem_core::{Actor, Call};

pub(crate) async fn p23_audit_records_are_found_along_time_in_pages<S: Store>(store: S) {
    let mut w = World::new(store).await;
    for n in 0..40u64 {
        w.now = UnixTime(NOW.0 + n / 3 * 100);
        let (name, actor) =
            (format!("group {n}"), if n % 4 == 0 { Actor::System } else { Actor::Admin("root".into()) });
        let mut call = Call::new(actor, w.now, &mut w.random);
        let group = w.core.add_group(&mut call, &w.tenant, &name, "").await.unwrap();
        if n % 5 == 0 {
            w.core.remove_group(&mut call, &w.tenant, group.id).await.unwrap();
        }
    }
    // The clock went back.
    w.now = NOW.plus(50);
    let late = w.core.add_group(call!(w), &w.tenant, "late", "").await.unwrap();
    let all = w.core.audit(&w.tenant, 0, 1000).await.unwrap();
    let text = |text: &str| Some(text.to_owned());
    let queries = [
        AuditQuery::default(),
        AuditQuery { from: Some(NOW.plus(200)), until: Some(NOW.plus(900)), ..AuditQuery::default() },
        AuditQuery { actor: text("system"), ..AuditQuery::default() },
        AuditQuery { action: text("group.remove"), from: Some(NOW.plus(100)), ..AuditQuery::default() },
        AuditQuery { actor: text("admin:root"), action: text("group.add"), ..AuditQuery::default() },
        AuditQuery { subject: Some(late.id.to_string()), ..AuditQuery::default() },
        AuditQuery { subject: Some(late.id.to_string()), actor: text("system"), ..AuditQuery::default() },
        AuditQuery { action: text("group"), ..AuditQuery::default() },
    ];
    for query in queries {
        let mut expected: Vec<_> = all.iter().filter(|record| query.matches(record)).cloned().collect();
        expected.sort_by_key(|record| (record.time, record.number));
        let (mut found, mut query) = (Vec::new(), AuditQuery { limit: 4, ..query });
        loop {
            let part = w.core.find_audit(&w.tenant, &query).await.unwrap();
            assert!(part.len() <= 4);
            let Some(last) = part.last() else { break };
            query.after = Some((last.time, last.number));
            found.extend(part);
        }
        assert_eq!(found, expected, "{query:?}");
    }
    let by_subject = AuditQuery { subject: Some(late.id.to_string()), limit: 9, ..AuditQuery::default() };
    assert_eq!(w.core.find_audit(&w.tenant, &by_subject).await.unwrap().len(), 1);
    let counts = w.core.count_audit(&w.tenant, NOW, NOW.plus(10_000)).await.unwrap();
    let count = |what: &str, count| Count { what: what.into(), count };
    assert_eq!(counts, [count("group.add", 41), count("group.remove", 8), count("tenant.create", 1)]);
    assert_eq!(w.core.count_audit(&w.tenant, NOW.plus(10_000), NOW.plus(20_000)).await.unwrap(), []);
}

pub(crate) async fn p23_reports_count_what_there_is<S: Store>(store: S) {
    let mut w = World::new(store).await;
    let mut devices = Vec::new();
    for n in 0..5 {
        devices.push(w.device_of(&format!("user{n}@example.com")).await);
    }
    w.core.revoke_device(call!(w), &w.tenant, devices[4].id).await.unwrap();
    let count = |what: &str, count| Count { what: what.into(), count };
    let by_state = w.core.count_devices(&w.tenant, DevicesBy::State).await.unwrap();
    assert_eq!(by_state, [count("active", 4), count("revoked", 1)]);
    assert_eq!(w.core.count_devices(&w.tenant, DevicesBy::Platform).await.unwrap(), [count("Linux", 4)]);
    w.now = w.now.plus(1000);
    for device in &devices[..2] {
        w.core.store().seen(&w.tenant, device.id, w.now).await.unwrap();
    }
    assert_eq!(w.core.count_seen(&w.tenant, w.now).await.unwrap(), 2);
    let mut quiet = Vec::new();
    let mut page = Page { after: None, limit: 1 };
    loop {
        let part = w.core.quiet_devices(&w.tenant, w.now, page).await.unwrap();
        let Some(last) = part.last() else { break };
        page.after = Some(last.device);
        quiet.extend(part.iter().map(|quiet| quiet.device));
    }
    let mut expected = [devices[2].id, devices[3].id];
    expected.sort();
    assert_eq!(quiet, expected);
}
