//! HTTP CONNECT at a corporate proxy (RFC 9110 section 9.3.6) with Basic authentication (RFC 7617).
//!
//! The password goes out only after the proxy has asked for it with a 407 that offers Basic; from then on at once.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::limits::MAX_FIRST_BYTES;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use zeroize::Zeroizing;

use super::network::{Credentials, Proxy};

/// Header lines of an answer that are looked at.
const MAX_HEADERS: usize = 64;
/// How much of a stranger's words goes into an explanation, bytes.
const SHOWN: usize = 80;

/// How a proxy answered.
pub(super) enum Answer {
    /// The connection leads to the target now.
    Open,
    /// It wants Basic credentials, and none were sent: come back with them on a new connection.
    AsksForCredentials,
}

/// Asks for a connection to `authority`. The caller sets the deadline.
pub(super) async fn connect<IO>(
    io: &mut IO,
    proxy: &Proxy,
    authority: &str,
    credentials: Option<&Credentials>,
) -> Result<Answer, Fault>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let ended =
        |_| Fault::new(Code::Lost, format!("the proxy {proxy} ended the connection before it answered CONNECT"));
    io.write_all(&request(authority, credentials)).await.map_err(ended)?;
    let mut head = Vec::with_capacity(1024);
    loop {
        // The relay never speaks first, so nothing but the head can be here.
        let mut piece = [0; 1024];
        let read = io.read(&mut piece).await.map_err(ended)?;
        if read == 0 && head.is_empty() {
            return Err(ended(std::io::ErrorKind::UnexpectedEof.into()));
        }
        head.extend_from_slice(&piece[..read]);
        match parse(&head) {
            Parsed::Answer(answer) => return judge(proxy, authority, answer, credentials.is_some()),
            Parsed::Incomplete if read > 0 && head.len() < MAX_FIRST_BYTES => {}
            Parsed::Incomplete | Parsed::Garbage => {
                let text = format!(
                    "what listens at {proxy} is no HTTP proxy: its answer to CONNECT cannot be read; check the kind and port"
                );
                return Err(Fault::new(Code::Protocol, text));
            }
        }
    }
}

fn request(authority: &str, credentials: Option<&Credentials>) -> Zeroizing<Vec<u8>> {
    let mut out = Zeroizing::new(Vec::with_capacity(1024));
    out.extend_from_slice(format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n").as_bytes());
    if let Some(Credentials { user, password }) = credentials {
        let pair = Zeroizing::new([user.as_bytes(), b":", password.expose()].concat());
        let encoded = Zeroizing::new(STANDARD.encode(&*pair));
        out.extend_from_slice(b"Proxy-Authorization: Basic ");
        out.extend_from_slice(encoded.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
    out
}

/// The head of an answer, as far as it matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The status.
    pub status: u16,
    /// Schemes of every `Proxy-Authenticate`, in lower case.
    pub schemes: Vec<String>,
    /// The host of `Location`, if there is one.
    pub location: Option<String>,
    /// Whether bytes follow the head.
    pub more: bool,
}

/// What the first bytes of an answer are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parsed {
    /// The head is there.
    Answer(Head),
    /// More bytes are needed.
    Incomplete,
    /// It is no HTTP answer.
    Garbage,
}

/// Reads an answer's head. Any bytes may come; it never panics.
#[must_use]
pub fn parse(bytes: &[u8]) -> Parsed {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let length = match response.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Parsed::Incomplete,
        Err(_) => return Parsed::Garbage,
    };
    let Some(status) = response.code else { return Parsed::Garbage };
    let values = |name: &'static str| {
        let named = response.headers.iter().filter(move |h| h.name.eq_ignore_ascii_case(name));
        named.filter_map(|h| std::str::from_utf8(h.value).ok())
    };
    // A header may hold several challenges; what begins a piece between commas and is no `name=value` is a scheme.
    let schemes = values("proxy-authenticate")
        .flat_map(|v| v.split(','))
        .filter_map(|piece| piece.split_whitespace().next())
        .filter(|word| !word.contains(['=', '"']))
        .map(|word| readable(&word.to_ascii_lowercase()))
        .collect();
    let location = values("location").next().and_then(|l| l.parse::<http::Uri>().ok()?.host().map(readable));
    Parsed::Answer(Head { status, schemes, location, more: length < bytes.len() })
}

/// A stranger's words made fit for an explanation.
fn readable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(SHOWN).collect()
}

fn judge(proxy: &Proxy, authority: &str, head: Head, sent_credentials: bool) -> Result<Answer, Fault> {
    let fault = |code, text: String| Err(Fault::new(code, text));
    match head.status {
        200..=299 if head.more => {
            fault(Code::Protocol, format!("the proxy {proxy} sent bytes of its own into the connection to {authority}"))
        }
        200..=299 => Ok(Answer::Open),
        407 if !head.schemes.iter().any(|s| s == "basic") => {
            let offered = if head.schemes.is_empty() { "none".to_owned() } else { head.schemes.join(", ") };
            let text = format!(
                "the proxy {proxy} wants authentication by {offered}, Hedgerow can do Basic: ask for Basic or an exception for {authority}"
            );
            fault(Code::Forbidden, text)
        }
        407 if sent_credentials => fault(
            Code::Forbidden,
            format!("the proxy {proxy} answered 407: the user name or password is wrong, or may not use it"),
        ),
        407 if proxy.credentials().is_some() => Ok(Answer::AsksForCredentials),
        407 => fault(
            Code::Forbidden,
            format!(
                "the proxy {proxy} asks who we are (407): set outbound.proxy_user and outbound.proxy_password_file"
            ),
        ),
        300..=399 => {
            let to = head.location.map(|l| format!(" to {l}")).unwrap_or_default();
            let text = format!(
                "the proxy {proxy} answered {} with a redirection{to}: a portal wants a person to log in first, or an exception",
                head.status
            );
            fault(Code::Forbidden, text)
        }
        401 | 403 | 405 => {
            let text = format!(
                "the proxy {proxy} forbids CONNECT {authority} ({}): ask for it to be allowed; many allow port 443 only",
                head.status
            );
            fault(Code::Forbidden, text)
        }
        502..=504 => {
            let text = format!(
                "the proxy {proxy} cannot reach {authority} ({}): can it resolve the name, and is the relay up?",
                head.status
            );
            fault(Code::Unreachable, text)
        }
        status => fault(Code::Protocol, format!("the proxy {proxy} answered CONNECT {authority} with {status}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn against(answer: &str, proxy: &Proxy, credentials: bool) -> (Result<Answer, Fault>, String) {
        let (mut ours, mut theirs) = tokio::io::duplex(64 * 1024);
        theirs.write_all(answer.as_bytes()).await.unwrap();
        theirs.shutdown().await.unwrap();
        let with = proxy.credentials().filter(|_| credentials);
        let result = connect(&mut ours, proxy, "relay.example:443", with).await;
        drop(ours);
        let mut sent = String::new();
        theirs.read_to_string(&mut sent).await.unwrap();
        (result, sent)
    }

    #[tokio::test]
    async fn the_password_is_sent_only_when_asked_for() {
        let proxy = Proxy::for_tests("http://proxy.test:3128", Some(("anna", "correct horse")));
        let (answer, sent) =
            against("HTTP/1.1 407 No\r\nProxy-Authenticate: Basic realm=\"x, y\"\r\n\r\n", &proxy, false).await;
        assert!(matches!(answer, Ok(Answer::AsksForCredentials)));
        assert_eq!(sent, "CONNECT relay.example:443 HTTP/1.1\r\nHost: relay.example:443\r\n\r\n");
        let (answer, sent) = against("HTTP/1.1 200 Connection established\r\n\r\n", &proxy, true).await;
        assert!(matches!(answer, Ok(Answer::Open)));
        assert!(sent.contains("\r\nProxy-Authorization: Basic YW5uYTpjb3JyZWN0IGhvcnNl\r\n"), "{sent}");
    }

    #[tokio::test]
    async fn every_refusal_names_the_proxy_and_what_to_do() {
        let known = Proxy::for_tests("http://proxy.test:3128", Some(("anna", "correct horse")));
        let unknown = Proxy::for_tests("http://proxy.test:3128", None);
        let long = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(20_000));
        for (answer, proxy, credentials, word) in [
            ("HTTP/1.1 407 No\r\nProxy-Authenticate: Basic realm=x\r\n\r\n", &unknown, false, "proxy_password_file"),
            ("HTTP/1.1 407 No\r\nProxy-Authenticate: Basic realm=x\r\n\r\n", &known, true, "is wrong"),
            ("HTTP/1.1 407 No\r\nProxy-Authenticate: Negotiate, NTLM\r\n\r\n", &known, false, "negotiate, ntlm"),
            ("HTTP/1.1 302 Found\r\nLocation: http://portal.corp/login?u=1\r\n\r\n", &known, false, "portal.corp"),
            ("HTTP/1.1 403 Forbidden\r\n\r\n", &known, false, "443"),
            ("HTTP/1.1 502 Bad Gateway\r\n\r\n", &known, false, "cannot reach relay.example:443"),
            ("HTTP/1.1 200 OK\r\n\r\nhello", &known, false, "bytes of its own"),
            ("SSH-2.0-OpenSSH_9.2\r\n", &known, false, "no HTTP proxy"),
            ("HTTP/1.1 200 OK\r\nX-Cut", &known, false, "no HTTP proxy"),
            ("", &known, false, "ended the connection"),
            (&long, &known, false, "no HTTP proxy"),
        ] {
            let (result, _) = against(answer, proxy, credentials).await;
            let fault = result.err().unwrap_or_else(|| panic!("{answer:.40} was taken"));
            assert!(fault.text.contains(word) && fault.text.contains("proxy.test:3128"), "{answer:.40}: {fault}");
            assert!(!fault.text.contains("horse") && !fault.text.contains("anna"), "{fault}");
        }
    }
}
