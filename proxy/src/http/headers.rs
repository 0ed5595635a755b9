//! Headers that belong to one hop and must not be passed on.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

/// RFC 9110, 7.6.1, and what older software uses. `Proxy-*` go by prefix: they are between client and proxy.
/// `Expect` too: hyper answers 100 by itself as soon as the body is wanted.
const HOP_BY_HOP: &[&str] = &["connection", "te", "trailer", "transfer-encoding", "upgrade", "keep-alive", "expect"];

/// Never removed because `Connection` lists them: without them the request would mean something else.
const END_TO_END: &[&str] = &["host", "content-length", "content-type", "authorization", "cookie", "cache-control"];

/// Removes the headers of this hop, those that `Connection` lists included.
pub(super) fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let listed: Vec<HeaderName> = connection_options(headers).filter_map(|o| HeaderName::try_from(o).ok()).collect();
    for name in listed.iter().filter(|name| !END_TO_END.contains(&name.as_str())) {
        headers.remove(name);
    }
    for name in HOP_BY_HOP {
        headers.remove(*name);
    }
    let proxy: Vec<HeaderName> = headers.keys().filter(|name| name.as_str().starts_with("proxy-")).cloned().collect();
    for name in proxy {
        headers.remove(name);
    }
}

/// The protocol that a request asks to change to.
pub(super) fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let asked = connection_options(headers).any(|option| option.eq_ignore_ascii_case("upgrade"));
    headers.get(header::UPGRADE).filter(|_| asked).cloned()
}

/// Puts the upgrade headers back for the next hop.
pub(super) fn set_upgrade(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, protocol);
}

/// Whether the sender closes the connection after this message.
pub(super) fn closes(headers: &HeaderMap) -> bool {
    connection_options(headers).any(|option| option.eq_ignore_ascii_case("close"))
}

/// Whether a body follows.
pub(super) fn announces_body(headers: &HeaderMap) -> bool {
    let length = headers.get(header::CONTENT_LENGTH).is_some_and(|l| l.as_bytes() != b"0");
    length || headers.contains_key(header::TRANSFER_ENCODING)
}

fn connection_options(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(header::CONNECTION).iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|v| v.split(',')).map(str::trim).filter(|o| !o.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a14_headers_of_this_hop_are_removed_and_the_rest_stays() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Private, host"),
            ("x-private", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("proxy-authorization", "Basic eDp5"),
            ("proxy-connection", "keep-alive"),
            ("upgrade", "h2c"),
            ("host", "a"),
            ("accept", "*/*"),
            ("transfer-encoding", "chunked"),
        ] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        assert!(closes(&headers));
        assert!(upgrade(&headers).is_none(), "Upgrade without Connection: upgrade is not a request");
        remove_hop_by_hop(&mut headers);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["accept", "host"]);
    }
}
