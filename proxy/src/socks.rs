//! SOCKS5 (RFC 1928) for local applications: CONNECT without authentication, names resolved at the far end.

use std::net::SocketAddr;
use std::sync::Arc;

use fast_socks5::server::{Socks5ServerProtocol, SocksServerError, states};
use fast_socks5::util::target_addr::TargetAddr;
use fast_socks5::{ReplyError, Socks5Command};
use hedgerow_runtime::scope::Scope;
use hedgerow_shared::fault::Code;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::listen::{Connector, ServeLimits, accept_loop, connect, refused};
use crate::splice::{ReadAhead, splice};
use crate::target::Target;

const KIND: &str = "socks5";

/// Serves until the scope is cancelled.
pub async fn serve<C: Connector>(listener: TcpListener, connector: Arc<C>, limits: ServeLimits, scope: Scope) {
    let connections = limits.connections.clone();
    accept_loop(listener, KIND, &connections, &scope, |tcp, permit| {
        let (connector, limits) = (connector.clone(), limits.clone());
        async move {
            client(tcp, &*connector, &limits).await;
            drop(permit);
        }
    })
    .await;
}

async fn client<C: Connector>(mut tcp: TcpStream, connector: &C, limits: &ServeLimits) {
    let asked = match timeout(limits.handshake, read_request(&mut tcp)).await {
        Ok(Ok(asked)) => asked,
        Ok(Err(error)) => {
            refused(KIND, reason(&error));
            return tracing::debug!(%error, "SOCKS5 request refused");
        }
        Err(_) => return refused(KIND, "handshake_timeout"),
    };
    let (protocol, target) = match asked {
        Asked::Connect(protocol, target) => (protocol, target),
        Asked::Refused(protocol, reply, why) => {
            refused(KIND, why);
            let _ = timeout(limits.handshake, protocol.reply_error(&reply)).await;
            return;
        }
    };
    let far = match connect(connector, &target, KIND, limits).await {
        Ok(far) => far,
        Err(fault) => {
            let _ = timeout(limits.handshake, protocol.reply_error(&reply(fault.code))).await;
            return;
        }
    };
    // The address the far end dialled from is the node's secret, so none is told.
    let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
    if let Ok(Ok(_)) = timeout(limits.handshake, protocol.reply_success(nowhere)).await {
        splice(tcp, far, ReadAhead::default()).await;
    }
}

/// Reads a greeting and a request, and answers the greeting: the target, when it is one to which a connection may be
/// opened.
pub async fn read_target<T: AsyncRead + AsyncWrite + Unpin>(io: T) -> Option<Target> {
    match read_request(io).await {
        Ok(Asked::Connect(_, target)) => Some(target),
        Ok(Asked::Refused(..)) | Err(_) => None,
    }
}

enum Asked<T> {
    Connect(Socks5ServerProtocol<T, states::CommandRead>, Target),
    Refused(Socks5ServerProtocol<T, states::CommandRead>, ReplyError, &'static str),
}

async fn read_request<T: AsyncRead + AsyncWrite + Unpin>(io: T) -> Result<Asked<T>, SocksServerError> {
    let (protocol, command, address) = Socks5ServerProtocol::accept_no_auth(io).await?.read_command().await?;
    if command != Socks5Command::TCPConnect {
        return Ok(Asked::Refused(protocol, ReplyError::CommandNotSupported, "command_not_supported"));
    }
    let target = match address {
        TargetAddr::Ip(address) => Target::new(&address.ip().to_string(), address.port()),
        TargetAddr::Domain(name, port) => Target::new(&name, port),
    };
    Ok(match target {
        Ok(target) => Asked::Connect(protocol, target),
        Err(error) => {
            tracing::debug!(%error, "SOCKS5 target refused");
            Asked::Refused(protocol, ReplyError::ConnectionNotAllowed, "bad_target")
        }
    })
}

fn reason(error: &SocksServerError) -> &'static str {
    match error {
        SocksServerError::UnsupportedSocksVersion(_) => "wrong_version",
        SocksServerError::AuthMethodUnacceptable(_) => "authentication_method",
        SocksServerError::UnknownCommand(_) => "command_not_supported",
        SocksServerError::AddrError(_) => "bad_target",
        SocksServerError::Io { .. } | SocksServerError::EOF => "client_left",
        _ => "malformed",
    }
}

/// The reply that says most nearly what happened.
fn reply(code: Code) -> ReplyError {
    match code {
        Code::DeniedByPolicy | Code::Forbidden | Code::Revoked | Code::Unauthenticated => {
            ReplyError::ConnectionNotAllowed
        }
        Code::NameNotFound | Code::Unreachable => ReplyError::HostUnreachable,
        Code::NoRoute | Code::Lost | Code::Draining | Code::Displaced | Code::Gone => ReplyError::NetworkUnreachable,
        Code::ConnectionRefused | Code::ConnectionReset => ReplyError::ConnectionRefused,
        Code::TimedOut => ReplyError::TtlExpired,
        Code::Ok | Code::Internal | Code::Limited | Code::Protocol | Code::Version => ReplyError::GeneralFailure,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::testing::{ToEcho, echo_server};

    async fn server(limits: ServeLimits) -> (SocketAddr, Scope) {
        let listener = crate::listen::bind_loopback("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let (address, scope) = (listener.local_addr().unwrap(), Scope::new());
        let connector = Arc::new(ToEcho { echo: echo_server(&scope).await });
        scope.spawn(serve(listener, connector, limits, scope.clone()));
        (address, scope)
    }

    async fn ask(proxy: SocketAddr, bytes: &[u8]) -> Vec<u8> {
        let mut tcp = TcpStream::connect(proxy).await.unwrap();
        tcp.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        let _ = timeout(Duration::from_secs(5), tcp.read_to_end(&mut answer)).await.expect("the server closes");
        answer
    }

    fn domain_request(command: u8, name: &str) -> Vec<u8> {
        let mut out = vec![5, 1, 0, 5, command, 0, 3, u8::try_from(name.len()).unwrap()];
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(&80u16.to_be_bytes());
        out
    }

    #[tokio::test]
    async fn a_client_connects_and_half_close_passes_through() {
        let (proxy, _scope) = server(ServeLimits::default()).await;
        let mut tcp = TcpStream::connect(proxy).await.unwrap();
        tcp.write_all(&domain_request(1, "echo.test")).await.unwrap();
        tcp.write_all(b"hello").await.unwrap();
        tcp.shutdown().await.unwrap();
        let mut answer = Vec::new();
        tcp.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, [&[5, 0, 5, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], b"hello"].concat());
    }

    #[tokio::test]
    async fn a19_other_commands_methods_and_versions_are_refused() {
        let (proxy, _scope) = server(ServeLimits::default()).await;
        for command in [2, 3, 4, 0] {
            assert_eq!(ask(proxy, &domain_request(command, "echo.test")).await[..4], [5, 0, 5, 7], "{command}");
        }
        assert_eq!(ask(proxy, &[5, 1, 2]).await, [5, 0xff]);
        assert_eq!(ask(proxy, &[5, 0]).await, [5, 0xff]);
        assert_eq!(ask(proxy, &[4, 1, 0, 80, 127, 0, 0, 1, 0]).await, [0u8; 0]);
        assert_eq!(ask(proxy, b"GET / HTTP/1.1\r\n\r\n").await, [0u8; 0]);
        let all_methods: Vec<u8> = [5, 255].into_iter().chain(0..255).collect();
        let mut tcp = TcpStream::connect(proxy).await.unwrap();
        tcp.write_all(&all_methods).await.unwrap();
        let mut choice = [0; 2];
        tcp.read_exact(&mut choice).await.unwrap();
        assert_eq!(choice, [5, 0]);
    }

    #[tokio::test]
    async fn a19_hostile_names_are_refused() {
        let (proxy, _scope) = server(ServeLimits::default()).await;
        for name in ["", "a b", "127.1", "0x7f.1", "2130706433", "a\r\nHost: b", &"a".repeat(255), "nul\0byte"] {
            assert_eq!(ask(proxy, &domain_request(1, name)).await[..4], [5, 0, 5, 2], "{name:?}");
        }
    }

    #[tokio::test]
    async fn faults_become_replies() {
        let (proxy, _scope) = server(ServeLimits::default()).await;
        for (name, reply) in
            [("denied.test", 2), ("unknown.test", 4), ("refused.test", 5), ("slow.test", 6), ("nonode.test", 3)]
        {
            assert_eq!(ask(proxy, &domain_request(1, name)).await[..4], [5, 0, 5, reply], "{name}");
        }
    }

    #[tokio::test]
    async fn a_slow_client_is_closed_by_the_same_limit_however_far_it_has_come() {
        let limits = ServeLimits {
            connections: Arc::new(tokio::sync::Semaphore::new(1)),
            handshake: Duration::from_millis(400),
            ..ServeLimits::default()
        };
        let (proxy, _scope) = server(limits).await;
        let whole = domain_request(1, "a-name-that-is-long-enough-for-this.test");
        for at_once in [0, 3, 8] {
            let mut tcp = TcpStream::connect(proxy).await.unwrap();
            tcp.write_all(&whole[..at_once]).await.unwrap();
            let mut closed = false;
            for byte in &whole[at_once..] {
                // Far less than the limit apart: what counts is the whole.
                if tcp.write_all(&[*byte]).await.is_err() {
                    closed = true;
                    break;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            assert!(closed, "{at_once}: it may take its time");
        }
        assert_eq!(ask(proxy, &[5, 1, 2]).await, [5, 0xff], "the place is free again");
    }

    #[tokio::test]
    async fn a_silent_client_is_closed_and_room_is_kept() {
        let limits = ServeLimits {
            connections: Arc::new(tokio::sync::Semaphore::new(1)),
            handshake: Duration::from_millis(100),
            ..ServeLimits::default()
        };
        let (proxy, _scope) = server(limits).await;
        let mut silent = TcpStream::connect(proxy).await.unwrap();
        let mut byte = [0];
        assert_eq!(timeout(Duration::from_secs(5), silent.read(&mut byte)).await.unwrap().unwrap(), 0);
        assert_eq!(ask(proxy, &[5, 1, 2]).await, [5, 0xff]);
    }
}
