//! The tenant's CA and its replacement: begun, switched to, finished.

use std::sync::Arc;

use axum::extract::State;
use serde::Deserialize;
use serde_json::json;

use super::{Body, Shown, admin, problem};
use crate::app::App;

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct How {
    anyway: bool,
}

pub(super) async fn show(State(app): State<Arc<App>>) -> Shown {
    let next = app.domain.rollover(&app.tenant, &relays(&app)).await.map_err(problem)?;
    let next = next.map(|s| {
        let behind: Vec<_> = s.behind.iter().map(|(kind, id)| json!({ "kind": kind, "id": id })).collect();
        json!({
            "pin": s.pin, "begun": s.rollover.begun, "announced": s.rollover.announced.to_string(),
            "certifies": s.rollover.certifies, "unaware": s.unaware, "behind": behind,
        })
    });
    Ok(axum::Json(json!({ "pin": app.ca.pin(), "next": next })))
}

pub(super) async fn begin(State(app): State<Arc<App>>) -> Shown {
    app.domain.begin_rollover(&mut admin(), &app.tenant).await.map_err(problem)?;
    done(app).await
}

pub(super) async fn switch(State(app): State<Arc<App>>, Body(how): Body<How>) -> Shown {
    app.domain.switch_rollover(&mut admin(), &app.tenant, &relays(&app), how.anyway).await.map_err(problem)?;
    done(app).await
}

pub(super) async fn finish(State(app): State<Arc<App>>, Body(how): Body<How>) -> Shown {
    app.domain.finish_rollover(&mut admin(), &app.tenant, how.anyway).await.map_err(problem)?;
    done(app).await
}

async fn done(app: Arc<App>) -> Shown {
    if let Err(error) = app.know_cas().await {
        tracing::error!(error = format!("{error:#}"), "the tenant's CAs");
    }
    app.changed();
    show(State(app)).await
}

fn relays(app: &App) -> Vec<String> {
    app.relays.iter().map(|r| r.name.clone()).collect()
}
