//! P07, P24 in part: ping, as the API manual has it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::{Client, World};
use hedgerow_runtime::tls;
use hedgerow_shared::wire::core_api::ALPN_HTTP;
use hedgerow_shared::{Origin, Role};
use http::StatusCode;

async fn client(world: &World) -> Client {
    let config = tls::to_tenant(world.app.ca.clone(), Role::Core, None, None, &[ALPN_HTTP]).unwrap();
    Client::over(world.dial(Origin::Bws), config, &world.scope).await.unwrap()
}

#[tokio::test]
async fn p07_ping_answers_without_authentication_whatever_the_case_and_the_slashes() {
    let world = World::new().await;
    let mut client = client(&world).await;
    for path in ["/S12345678/api/v1/util/ping", "/s12345678/api/v1/util/ping", "//S12345678//api/v1//util/ping"] {
        let (head, body) = client.get(path).await;
        assert_eq!((head.status, head.headers["content-type"].to_str().unwrap()), (StatusCode::OK, "text/plain"));
        assert!(body.starts_with(b"Up and running"), "{path}");
    }
}

#[tokio::test]
async fn p24_everything_else_is_refused_in_the_manuals_words() {
    let world = World::new().await;
    let mut client = client(&world).await;
    for path in [
        "/",
        "/S99999999/api/v1/util/ping",
        "/S12345678/api/v1/users",
        "/S12345678/api/v1/util/ping/x",
        "/config/v1/node",
    ] {
        let (head, body) = client.get(path).await;
        assert_eq!(head.status, StatusCode::NOT_FOUND, "{path}");
        assert_eq!(head.headers["content-type"], "application/vnd.blackberry.error-v1+json");
        let error: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert!(error["id"].is_string() && error["subStatusCode"] == 404 && error["message"].is_string(), "{error}");
    }
    let (status, _) = client.post("/S12345678/api/v1/util/ping", &1).await;
    assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
}
