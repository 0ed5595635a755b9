//! P03: a device that knows only an e-mail address asks whose it is.
//!
//! A claimed domain answers every local part alike, in content and in time; an address of an unclaimed domain answers
//! only while an activation is open for it. Addresses are compared as keyed hashes and never logged.

use std::net::SocketAddr;
use std::time::Instant;

use bytes::Bytes;
use hedgerow_runtime::clock;
use hedgerow_shared::Origin;
use hedgerow_shared::verify::policy::normal_name;
use hedgerow_shared::wire::message::address_hash;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use serde::Deserialize;

use super::{Answer, text, too_fast};
use crate::limit::client_key;
use crate::state::Relay;

/// An address has at most 254 characters; the rest is JSON around it.
const MAX_BODY: usize = 1024;

#[derive(Deserialize)]
struct Question {
    email: String,
}

pub(super) async fn answer(relay: &Relay, request: Request<Incoming>, address: SocketAddr) -> Answer {
    if let Err(wait) = relay.lookup_client.take(client_key(address.ip()), Instant::now()) {
        return too_fast(wait);
    }
    let body = Limited::new(request.into_body(), MAX_BODY).collect();
    let body = match tokio::time::timeout(relay.timers.handshake, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(_)) => return text(StatusCode::BAD_REQUEST, "the body must be JSON of at most 1024 bytes"),
        Err(_) => return text(StatusCode::REQUEST_TIMEOUT, "the body did not come in time"),
    };
    let Ok(Question { email }) = serde_json::from_slice(&body) else {
        return text(StatusCode::BAD_REQUEST, "send the JSON object {\"email\": \"user@example.com\"}");
    };
    let Some((email, domain)) = split(&email) else {
        return text(StatusCode::BAD_REQUEST, "that is not an e-mail address");
    };
    let hash = address_hash(relay.store.lookup_key(), email);
    match relay.store.find(&domain, &hash, clock::now()) {
        Some(tenant) => {
            let json = serde_json::json!({ "tenant": tenant, "origin": Origin::Core });
            let mut answer = Response::new(Full::new(Bytes::from(json.to_string())));
            answer.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
            answer
        }
        None => text(
            StatusCode::NOT_FOUND,
            "no organisation here is responsible for this address: check the address, or ask your administrator for the server's address",
        ),
    }
}

/// The address without white space around it, and its domain in comparable form.
fn split(email: &str) -> Option<(&str, String)> {
    let email = email.trim();
    let (local, domain) = email.rsplit_once('@')?;
    let sound = !local.is_empty() && email.len() <= 254 && !email.chars().any(|c| c.is_control() || c.is_whitespace());
    let domain = normal_name(domain).filter(|d| sound && d.contains('.'))?;
    Some((email, domain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_apart_with_care() {
        assert_eq!(split(" Ann@Example.COM "), Some(("Ann@Example.COM", "example.com".into())));
        assert_eq!(split("\"a@b\"@example.com").unwrap().1, "example.com");
        for bad in [
            "",
            "@",
            "ann",
            "@example.com",
            "ann@",
            "ann@localhost",
            "an n@example.com",
            "ann@exa\u{0}mple.com",
            "ann@-\u{fc}.de",
        ] {
            assert!(split(bad).is_none(), "{bad:?}");
        }
        assert!(split(&format!("{}@example.com", "a".repeat(250))).is_none());
    }
}
