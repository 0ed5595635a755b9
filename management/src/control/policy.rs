//! Access rules and routes: ordered lists, changed by position. The domain takes whole lists; a lock keeps two
//! changes from undoing each other.

use std::sync::Arc;

use axum::extract::{Path, State};
use hedgerow_runtime::admin::control::Problem;
use hedgerow_shared::verify::{Route, Rule, Via};
use serde::Deserialize;
use serde_json::json;

use super::{Body, Shown, admin, problem};
use crate::app::App;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AddRule {
    rule: Rule,
    at: Option<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AddRoute {
    route: Route,
    at: Option<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Move {
    to: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rules {
    items: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Routes {
    items: Vec<Route>,
    default: Option<Via>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Default {
    via: Via,
}

pub(super) async fn rules(State(app): State<Arc<App>>) -> Shown {
    let rules = app.domain.rules(&app.tenant).await.map_err(problem)?;
    Ok(axum::Json(json!({ "items": rules, "next": null })))
}

pub(super) async fn add_rule(State(app): State<Arc<App>>, Body(add): Body<AddRule>) -> Shown {
    edit_rules(&app, |rules| insert(rules, add.at, add.rule)).await
}

pub(super) async fn replace_rule(State(app): State<Arc<App>>, Path(at): Path<String>, Body(rule): Body<Rule>) -> Shown {
    let at = position(&at)?;
    edit_rules(&app, |rules| replace(rules, at, rule)).await
}

pub(super) async fn remove_rule(State(app): State<Arc<App>>, Path(at): Path<String>) -> Shown {
    let at = position(&at)?;
    edit_rules(&app, |rules| remove(rules, at).map(drop)).await
}

pub(super) async fn move_rule(State(app): State<Arc<App>>, Path(at): Path<String>, Body(to): Body<Move>) -> Shown {
    let at = position(&at)?;
    edit_rules(&app, |rules| relocate(rules, at, to.to)).await
}

pub(super) async fn set_rules(State(app): State<Arc<App>>, Body(new): Body<Rules>) -> Shown {
    edit_rules(&app, |rules| {
        *rules = new.items;
        Ok(())
    })
    .await
}

pub(super) async fn routes(State(app): State<Arc<App>>) -> Shown {
    let (routes, default) = app.domain.routes(&app.tenant).await.map_err(problem)?;
    Ok(axum::Json(json!({ "items": routes, "next": null, "default": default })))
}

pub(super) async fn add_route(State(app): State<Arc<App>>, Body(add): Body<AddRoute>) -> Shown {
    edit_routes(&app, |routes, _| insert(routes, add.at, add.route)).await
}

pub(super) async fn replace_route(
    State(app): State<Arc<App>>,
    Path(at): Path<String>,
    Body(route): Body<Route>,
) -> Shown {
    let at = position(&at)?;
    edit_routes(&app, |routes, _| replace(routes, at, route)).await
}

pub(super) async fn remove_route(State(app): State<Arc<App>>, Path(at): Path<String>) -> Shown {
    let at = position(&at)?;
    edit_routes(&app, |routes, _| remove(routes, at).map(drop)).await
}

pub(super) async fn move_route(State(app): State<Arc<App>>, Path(at): Path<String>, Body(to): Body<Move>) -> Shown {
    let at = position(&at)?;
    edit_routes(&app, |routes, _| relocate(routes, at, to.to)).await
}

pub(super) async fn set_routes(State(app): State<Arc<App>>, Body(new): Body<Routes>) -> Shown {
    edit_routes(&app, |routes, default| {
        *routes = new.items;
        if let Some(via) = new.default {
            *default = via;
        }
        Ok(())
    })
    .await
}

pub(super) async fn set_default(State(app): State<Arc<App>>, Body(new): Body<Default>) -> Shown {
    edit_routes(&app, |_, default| {
        *default = new.via;
        Ok(())
    })
    .await
}

async fn edit_rules(app: &Arc<App>, edit: impl FnOnce(&mut Vec<Rule>) -> Result<(), Problem>) -> Shown {
    let _lock = app.policy.lock().await;
    let mut list = app.domain.rules(&app.tenant).await.map_err(problem)?;
    edit(&mut list)?;
    app.domain.set_rules(&mut admin(), &app.tenant, list).await.map_err(problem)?;
    app.changed();
    rules(State(app.clone())).await
}

async fn edit_routes(app: &Arc<App>, edit: impl FnOnce(&mut Vec<Route>, &mut Via) -> Result<(), Problem>) -> Shown {
    let _lock = app.policy.lock().await;
    let (mut list, mut default) = app.domain.routes(&app.tenant).await.map_err(problem)?;
    edit(&mut list, &mut default)?;
    app.domain.set_routes(&mut admin(), &app.tenant, list, default).await.map_err(problem)?;
    app.changed();
    routes(State(app.clone())).await
}

fn position(text: &str) -> Result<usize, Problem> {
    text.parse().map_err(|_| Problem::bad_request(format!("expected a position counted from 0, not {text:?}")))
}

fn outside(at: usize, length: usize) -> Problem {
    Problem::not_found(format!("there is no position {at}; the list has {length} entries, counted from 0"))
}

fn insert<T>(list: &mut Vec<T>, at: Option<usize>, item: T) -> Result<(), Problem> {
    let at = at.unwrap_or(list.len());
    if at > list.len() {
        return Err(outside(at, list.len()));
    }
    list.insert(at, item);
    Ok(())
}

fn replace<T>(list: &mut [T], at: usize, item: T) -> Result<(), Problem> {
    let length = list.len();
    *list.get_mut(at).ok_or_else(|| outside(at, length))? = item;
    Ok(())
}

fn remove<T>(list: &mut Vec<T>, at: usize) -> Result<T, Problem> {
    if at >= list.len() {
        return Err(outside(at, list.len()));
    }
    Ok(list.remove(at))
}

fn relocate<T>(list: &mut Vec<T>, from: usize, to: usize) -> Result<(), Problem> {
    if to >= list.len() {
        return Err(outside(to, list.len()));
    }
    let item = remove(list, from)?;
    list.insert(to, item);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_edited_by_position_and_never_beyond_their_end() {
        let mut list = vec!['a', 'b'];
        insert(&mut list, None, 'd').unwrap();
        insert(&mut list, Some(2), 'c').unwrap();
        assert_eq!(list, ['a', 'b', 'c', 'd']);
        relocate(&mut list, 0, 3).unwrap();
        assert_eq!(list, ['b', 'c', 'd', 'a']);
        relocate(&mut list, 3, 0).unwrap();
        replace(&mut list, 1, 'x').unwrap();
        assert_eq!(remove(&mut list, 2).unwrap(), 'c');
        assert_eq!(list, ['a', 'x', 'd']);
        assert!(insert(&mut list, Some(4), 'z').is_err() && replace(&mut list, 3, 'z').is_err());
        assert!(remove(&mut list, 3).is_err() && relocate(&mut list, 0, 3).is_err());
        assert_eq!(list, ['a', 'x', 'd']);
    }
}
