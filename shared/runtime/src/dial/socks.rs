//! The client side of SOCKS5 (RFC 1928) with user name and password (RFC 1929). The proxy resolves names.
//!
//! Written here because the client of fast-socks5 panics on a reply code it does not know.

use std::net::IpAddr;

use hedgerow_shared::fault::{Code, Fault};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::network::{Credentials, Proxy};

const VERSION: u8 = 5;
const NO_AUTHENTICATION: u8 = 0;
const USER_AND_PASSWORD: u8 = 2;

/// Asks the proxy for a connection to `host:port`. The caller sets the deadline.
pub(super) async fn connect<IO>(io: &mut IO, proxy: &Proxy, host: &str, port: u16) -> Result<(), Fault>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let ended = |_| Fault::new(Code::Lost, format!("the proxy {proxy} ended the connection during SOCKS5"));
    let garbage =
        || Fault::new(Code::Protocol, format!("the proxy {proxy} does not speak SOCKS5: check the kind and port"));
    let greeting: &[u8] = match proxy.credentials() {
        Some(_) => &[VERSION, 2, NO_AUTHENTICATION, USER_AND_PASSWORD],
        None => &[VERSION, 1, NO_AUTHENTICATION],
    };
    io.write_all(greeting).await.map_err(ended)?;
    let mut chosen = [0; 2];
    io.read_exact(&mut chosen).await.map_err(ended)?;
    match (chosen, proxy.credentials()) {
        ([VERSION, NO_AUTHENTICATION], _) => {}
        ([VERSION, USER_AND_PASSWORD], Some(credentials)) => authenticate(io, proxy, credentials).await?,
        ([VERSION, _], None) => {
            return Err(Fault::new(
                Code::Forbidden,
                format!("the proxy {proxy} asks who we are: set outbound.proxy_user and outbound.proxy_password_file"),
            ));
        }
        ([VERSION, _], Some(_)) => {
            return Err(Fault::new(Code::Forbidden, format!("the proxy {proxy} takes no user name and password")));
        }
        _ => return Err(garbage()),
    }

    io.write_all(&request(host, port)).await.map_err(ended)?;
    let mut head = [0; 4];
    io.read_exact(&mut head).await.map_err(ended)?;
    let [VERSION, reply, _, kind] = head else { return Err(garbage()) };
    if reply != 0 {
        return Err(refusal(proxy, host, port, reply));
    }
    // The address the proxy dials from; it tells us nothing, but it must be read.
    let length = match kind {
        1 => 4,
        4 => 16,
        3 => usize::from(io.read_u8().await.map_err(ended)?),
        _ => return Err(garbage()),
    };
    let mut bound = [0; 255 + 2];
    io.read_exact(&mut bound[..length + 2]).await.map_err(ended)?;
    Ok(())
}

async fn authenticate<IO>(io: &mut IO, proxy: &Proxy, credentials: &Credentials) -> Result<(), Fault>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let ended = |_| Fault::new(Code::Lost, format!("the proxy {proxy} ended the connection during SOCKS5"));
    let (user, password) = (credentials.user.as_bytes(), credentials.password.expose());
    // Both lengths are bytes on the wire; `Credentials` holds to them.
    let mut message = zeroize::Zeroizing::new(Vec::with_capacity(3 + user.len() + password.len()));
    for part in [user, password] {
        let length = u8::try_from(part.len())
            .map_err(|_| Fault::new(Code::Forbidden, "SOCKS5 takes user names and passwords of up to 255 bytes"))?;
        if message.is_empty() {
            message.push(1);
        }
        message.push(length);
        message.extend_from_slice(part);
    }
    io.write_all(&message).await.map_err(ended)?;
    let mut answer = [0; 2];
    io.read_exact(&mut answer).await.map_err(ended)?;
    if answer[1] != 0 {
        return Err(Fault::new(
            Code::Forbidden,
            format!("the proxy {proxy} refused the user name or password: check both, and that the account may use it"),
        ));
    }
    Ok(())
}

fn request(host: &str, port: u16) -> Vec<u8> {
    let mut out = vec![VERSION, 1, 0];
    match host.parse::<IpAddr>() {
        Ok(IpAddr::V4(v4)) => {
            out.push(1);
            out.extend(v4.octets());
        }
        Ok(IpAddr::V6(v6)) => {
            out.push(4);
            out.extend(v6.octets());
        }
        Err(_) => {
            // Host names are shorter: configuration is checked.
            let name = &host.as_bytes()[..host.len().min(255)];
            out.push(3);
            out.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
            out.extend_from_slice(name);
        }
    }
    out.extend(port.to_be_bytes());
    out
}

fn refusal(proxy: &Proxy, host: &str, port: u16, reply: u8) -> Fault {
    let (code, why) = match reply {
        1 => (Code::Unreachable, "it failed for a reason it does not give"),
        2 => (Code::Forbidden, "its rules do not allow it: ask for the relay's host and port to be allowed"),
        3 => (Code::Unreachable, "the network cannot be reached from it"),
        4 => (Code::Unreachable, "the host cannot be reached or found from it"),
        5 => (Code::ConnectionRefused, "the relay's port refused the connection"),
        6 => (Code::TimedOut, "the relay did not answer it in time"),
        7 => (Code::Protocol, "it does not do CONNECT"),
        8 => (Code::Protocol, "it does not take this kind of address"),
        _ => (Code::Protocol, "it gives a reason that SOCKS5 does not know"),
    };
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    Fault::new(code, format!("the proxy {proxy} opens no connection to {host}:{port}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn against(answers: &'static [u8], credentials: bool) -> (Result<(), Fault>, Vec<u8>) {
        let proxy = Proxy::for_tests("socks5://proxy.test:1080", credentials.then_some(("anna", "correct horse")));
        let (mut ours, mut theirs) = tokio::io::duplex(1024);
        theirs.write_all(answers).await.unwrap();
        let result = connect(&mut ours, &proxy, "relay.example", 443).await;
        drop(ours);
        let mut sent = Vec::new();
        theirs.read_to_end(&mut sent).await.unwrap();
        (result, sent)
    }

    #[tokio::test]
    async fn the_name_goes_to_the_proxy_and_the_password_only_when_asked_for() {
        let (result, sent) = against(&[5, 0, 5, 0, 0, 1, 0, 0, 0, 0, 0, 0], true).await;
        result.unwrap();
        assert_eq!(sent, [&[5, 2, 0, 2, 5, 1, 0, 3, 13][..], b"relay.example", &[1, 187]].concat());
        let (result, sent) = against(&[5, 2, 1, 0, 5, 0, 0, 3, 1, b'x', 0, 0], true).await;
        result.unwrap();
        assert_eq!(&sent[4..24], [&[1, 4][..], b"anna", &[13], b"correct horse"].concat());
    }

    #[tokio::test]
    async fn refusals_say_what_to_do_and_never_the_password() {
        for (answers, credentials, word) in [
            (&[5, 255][..], false, "proxy_password_file"),
            (&[5, 2], false, "proxy_password_file"),
            (&[5, 255], true, "takes no user name"),
            (&[5, 2, 1, 1], true, "refused the user name"),
            (&[5, 0, 5, 2, 0, 1], true, "rules"),
            (&[5, 0, 5, 99, 0, 1], true, "does not know"),
            (b"HTTP/1.1 400 Bad Request\r\n", true, "does not speak SOCKS5"),
            (&[5, 0, 5, 0, 0, 9], true, "does not speak SOCKS5"),
            (&[5], true, "does not speak SOCKS5"),
        ] {
            let (mut ours, mut theirs) = tokio::io::duplex(1024);
            theirs.write_all(answers).await.unwrap();
            theirs.shutdown().await.unwrap();
            let proxy = Proxy::for_tests("socks5://proxy.test:1080", credentials.then_some(("anna", "correct horse")));
            let fault = connect(&mut ours, &proxy, "relay.example", 443).await.unwrap_err();
            let cut_short = answers.len() < 2 && fault.text.contains("ended");
            assert!(cut_short || fault.text.contains(word), "{answers:?}: {fault}");
            assert!(fault.text.contains("socks5://proxy.test:1080"), "{fault}");
            assert!(!fault.text.contains("horse") && !fault.text.contains("anna"), "{fault}");
        }
    }
}
