//! Looking into the audit record, and reports. Every answer is a count or a page.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use hedgerow_runtime::admin::control::Problem;
use hedgerow_runtime::clock;
use hedgerow_shared::UnixTime;
use hedgerow_uem_core::report::{self, AUDIT_COLUMNS, AuditQuery, DevicesBy, audit_row};
use hedgerow_uem_core::store::Page;
use serde::Deserialize;
use serde_json::json;

use super::{Params, Part, Shown, json_of, list, problem};
use crate::app::App;

/// A day, seconds.
const DAY: u64 = 24 * 3600;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Find {
    from: Option<u64>,
    until: Option<u64>,
    actor: Option<String>,
    action: Option<String>,
    subject: Option<String>,
    after: Option<String>,
    limit: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Span {
    from: Option<u64>,
    until: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Before {
    before: u64,
    after: Option<String>,
    limit: Option<u32>,
}

impl Find {
    fn query(self) -> Result<AuditQuery, Problem> {
        let after = self.after.as_deref().map(|text| {
            let parts =
                text.split_once('.').and_then(|(time, number)| Some((time.parse().ok()?, number.parse().ok()?)));
            let wrong = || Problem::bad_request(format!("expected TIME.NUMBER of a record, not {text:?}"));
            parts.map(|(time, number)| (UnixTime(time), number)).ok_or_else(wrong)
        });
        Ok(AuditQuery {
            from: self.from.map(UnixTime),
            until: self.until.map(UnixTime),
            actor: self.actor,
            action: self.action,
            subject: self.subject,
            after: after.transpose()?,
            limit: self.limit.unwrap_or(Page::MAX).clamp(1, Page::MAX),
        })
    }
}

pub(super) async fn find(State(app): State<Arc<App>>, Params(find): Params<Find>) -> Shown {
    let query = find.query()?;
    let records = app.domain.find_audit(&app.tenant, &query).await.map_err(problem)?;
    let next = records.last().map(|r| format!("{}.{}", r.time.0, r.number));
    Ok(list(records.into_iter().map(json_of).collect::<Result<_, _>>()?, query.limit, next))
}

/// One part of the table: whoever wants all of it puts parts together without their first lines.
pub(super) async fn export(State(app): State<Arc<App>>, Params(find): Params<Find>) -> Shown {
    let query = find.query()?;
    let records = app.domain.find_audit(&app.tenant, &query).await.map_err(problem)?;
    let last = records.last().filter(|_| records.len() >= query.limit as usize);
    let next = last.map(|r| format!("{}.{}", r.time.0, r.number));
    let head = AUDIT_COLUMNS.map(str::to_owned);
    let rows: Vec<_> = std::iter::once(head).chain(records.iter().map(audit_row)).collect();
    Ok(axum::Json(json!({ "csv": report::csv(rows.iter().map(|row| &row[..])), "next": next })))
}

pub(super) async fn devices(State(app): State<Arc<App>>) -> Shown {
    let count = async |by| app.domain.count_devices(&app.tenant, by).await.map_err(problem);
    let verdicts = app.domain.verdicts(&app.tenant).await.map_err(problem)?;
    let verdicts: Vec<_> = verdicts.into_iter().map(|(what, count)| json!({ "what": what, "count": count })).collect();
    Ok(axum::Json(json!({
        "by_state": count(DevicesBy::State).await?,
        "by_platform": count(DevicesBy::Platform).await?,
        "by_verdict": verdicts,
    })))
}

pub(super) async fn activity(State(app): State<Arc<App>>, Params(span): Params<Span>) -> Shown {
    let now = clock::now();
    let until = span.until.map_or(now.plus(1), UnixTime);
    let from = span.from.map_or(UnixTime(until.0.saturating_sub(7 * DAY)), UnixTime);
    let actions = app.domain.count_audit(&app.tenant, from, until).await.map_err(problem)?;
    let mut seen = BTreeMap::new();
    for (name, days) in [("day", 1), ("week", 7), ("month", 30)] {
        let since = UnixTime(now.0.saturating_sub(days * DAY));
        seen.insert(name, app.domain.count_seen(&app.tenant, since).await.map_err(problem)?);
    }
    Ok(axum::Json(json!({ "from": from, "until": until, "actions": actions, "devices_seen": seen })))
}

pub(super) async fn quiet(State(app): State<Arc<App>>, Params(before): Params<Before>) -> Shown {
    let part = Part { after: before.after, limit: before.limit, user: None };
    let page = part.page()?;
    let quiet = app.domain.quiet_devices(&app.tenant, UnixTime(before.before), page).await.map_err(problem)?;
    let next = quiet.last().map(|q| q.device.to_string());
    let mut items = Vec::with_capacity(quiet.len());
    for one in quiet {
        let email = app.domain.user(&app.tenant, one.user).await.map_err(problem)?.email;
        let mut value = json_of(one)?;
        value["email"] = json!(email);
        items.push(value);
    }
    Ok(list(items, page.limit, next))
}
