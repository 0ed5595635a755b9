//! A node is made by its token, once, and fetches what it obeys.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::{PASSWORD, World};
use hedgerow_management::app::call;
use hedgerow_runtime::clock;
use hedgerow_shared::verify::{NodeConfig, SignedConfig};
use hedgerow_shared::wire::core_api::{CONFIG_NODE, config_path};
use hedgerow_uem_core::Actor;
use http::StatusCode;

#[tokio::test]
async fn a_token_makes_one_node_and_the_node_acknowledges_its_configuration() {
    let world = World::new().await;
    let token = world.token(0, 600).await;
    let node = world.enrol(&token).await.unwrap();
    assert_eq!((node.reply.name.as_str(), node.reply.group.as_str()), ("berlin-1", "berlin"));
    let ca = &world.app.ca;
    let first: NodeConfig = node.reply.config.verify(ca, None, clock::now()).unwrap();

    let mut call = call(Actor::System);
    let rule = serde_json::from_str(r#"{"action":"allow","target":"*.intranet.example","ports":"443"}"#).unwrap();
    world.app.domain.set_rules(&mut call, &world.app.tenant, vec![rule]).await.unwrap();
    let mut client = world.as_holder(&node.own).await.unwrap();
    let (head, body) = client.get(&config_path(CONFIG_NODE, Some(first.head.version))).await;
    assert_eq!(head.status, StatusCode::OK);
    let signed: SignedConfig = minicbor::decode(&body).unwrap();
    let second: NodeConfig = signed.verify(ca, Some(first.head.version), clock::now()).unwrap();
    assert_eq!(second.rules.len(), 1);
    let acknowledged = async || {
        let all = world.app.domain.acknowledgements(&world.app.tenant).await.unwrap();
        all.iter().find(|a| a.holder == format!("node:{}", node.reply.node)).map(|a| a.version)
    };
    assert_eq!(acknowledged().await, Some(first.head.version), "delivered is not acknowledged");
    let (head, _) = client.get(&config_path(CONFIG_NODE, Some(second.head.version))).await;
    assert_eq!(head.status, StatusCode::NO_CONTENT);
    assert_eq!(acknowledged().await, Some(second.head.version));
    assert_eq!(client.get("/config/v1/node?have=1").await.0.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_token_is_good_once() {
    let world = World::new().await;
    let token = world.token(0, 600).await;
    world.enrol(&token).await.unwrap();
    let (status, text) = world.enrol(&token).await.err().unwrap();
    assert!(status == StatusCode::FORBIDDEN && text.contains("used already"), "{status} {text}");
}

#[tokio::test]
async fn an_expired_token_and_a_withdrawn_one_are_refused_by_name() {
    let world = World::new().await;
    let token = world.token(100, 50).await;
    let (status, text) = world.enrol(&token).await.err().unwrap();
    assert!(status == StatusCode::FORBIDDEN && text.contains("expired"), "{status} {text}");
    let token = world.token(0, 600).await;
    world.app.domain.revoke_token(&mut call(Actor::System), &world.app.tenant, token.id).await.unwrap();
    let (status, text) = world.enrol(&token).await.err().unwrap();
    assert!(status == StatusCode::FORBIDDEN && text.contains("withdrawn"), "{status} {text}");
}

#[tokio::test]
async fn a_wrong_secret_learns_nothing_and_uses_nothing_up() {
    let world = World::new().await;
    let token = world.token(0, 600).await;
    let mut wrong = token.clone();
    wrong.secret[0] ^= 1;
    let (status, text) = world.enrol(&wrong).await.err().unwrap();
    assert!(status == StatusCode::UNAUTHORIZED && text.contains("not known"), "{status} {text}");
    world.enrol(&token).await.unwrap();
}

#[tokio::test]
async fn a_node_that_was_revoked_gets_no_configuration() {
    let world = World::new().await;
    let node = world.enrol(&world.token(0, 600).await).await.unwrap();
    let mut client = world.as_holder(&node.own).await.unwrap();
    assert_eq!(client.get(CONFIG_NODE).await.0.status, StatusCode::OK);
    world.app.domain.revoke_node(&mut call(Actor::System), &world.app.tenant, node.reply.node).await.unwrap();
    let (head, body) = client.get(CONFIG_NODE).await;
    assert_eq!(head.status, StatusCode::FORBIDDEN);
    assert!(String::from_utf8_lossy(&body).contains("revoked"));
}

#[tokio::test]
async fn configuration_needs_a_certificate_of_this_tenant_and_role() {
    let world = World::new().await;
    assert_eq!(world.stranger().await.get(CONFIG_NODE).await.0.status, StatusCode::UNAUTHORIZED);
    world.password(0, 600).await;
    let device = world.activate(PASSWORD).await.unwrap();
    let mut client = world.as_holder(&device.own).await.unwrap();
    assert_eq!(client.get(CONFIG_NODE).await.0.status, StatusCode::FORBIDDEN);
    // The same tenant id under another CA: the hand-shake fails, seen by the client at its first read.
    let other = World::new().await;
    let foreign = other.enrol(&other.token(0, 600).await).await.unwrap();
    if let Ok(mut client) = world.as_holder(&foreign.own).await {
        let request = http::Request::builder().uri(CONFIG_NODE).body(Default::default()).unwrap();
        assert!(client.sender.send_request(request).await.is_err());
    }
}
