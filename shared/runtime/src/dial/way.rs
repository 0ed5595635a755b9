//! The ways to one relay: which of its addresses, through which proxy, and a TCP connection by one of them.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::limits::Timers;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::either::Either;

use super::network::{Kind, Proxy, join, split};
use super::{RelayTarget, Socket, Sockets, http_proxy, socks, tcp};

/// The port that HTTP proxies let CONNECT through.
const HTTPS: u16 = 443;
/// The port of relays beside it.
const LINK: u16 = 3101;

/// One way to a relay.
#[derive(Debug, Clone)]
pub(super) struct Way {
    /// `host:port`.
    pub(super) address: String,
    /// Through whom.
    pub(super) proxy: Option<Arc<Proxy>>,
    /// Who makes the connection, when it is not the system.
    pub(super) sockets: Option<Arc<dyn Sockets>>,
}

/// Every way to a relay, in the order of trying. Through an HTTP proxy only port 443, if the relay is known to have
/// it: every relay listens there beside 3101.
pub(super) fn ways(target: &RelayTarget) -> Vec<Way> {
    let addresses = &target.addresses;
    let has_443 = addresses.iter().any(|a| split(a).is_some_and(|(_, port)| port == HTTPS));
    let mut ways: Vec<Way> = Vec::with_capacity(addresses.len());
    for address in addresses {
        let proxy = target.network.proxy_for(address).cloned();
        let by_http = proxy.as_ref().is_some_and(|p| p.kind == Kind::Http);
        let address = match split(address) {
            Some((host, LINK)) if by_http && !has_443 => join(host, HTTPS),
            Some((_, port)) if by_http && has_443 && port != HTTPS => continue,
            _ => address.clone(),
        };
        if !ways.iter().any(|w| w.address == address) {
            ways.push(Way { address, proxy, sockets: target.network.sockets().cloned() });
        }
    }
    ways
}

impl Way {
    /// Connects; the second value is the address to use for another connection to the same process.
    pub(super) async fn connect(&self, timers: &Timers) -> Result<(Socket, String), Fault> {
        if let Some(sockets) = &self.sockets {
            let connected = timeout(timers.connect, sockets.connect(&self.address)).await;
            let given = connected.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
            let given = given.map_err(|e| tcp::connect_fault(&self.address, &e))?;
            return Ok((Either::Right(given), self.address.clone()));
        }
        let Some(proxy) = &self.proxy else {
            let stream = tcp::connect(&self.address, timers.connect).await?;
            let peer = stream.peer_addr().map_or_else(|_| self.address.clone(), |a| a.to_string());
            return Ok((Either::Left(stream), peer));
        };
        let result = through(proxy, &self.address, timers).await;
        let label = if result.is_ok() { "ok" } else { "failed" };
        metrics::counter!("hedgerow_dial_proxied_total", "result" => label).increment(1);
        Ok((Either::Left(result?), self.address.clone()))
    }
}

/// A connection to `address` made by `proxy`.
async fn through(proxy: &Proxy, address: &str, timers: &Timers) -> Result<TcpStream, Fault> {
    let (host, port) = split(address)
        .ok_or_else(|| Fault::new(Code::Protocol, format!("the relay's address {address:?} is not host:port")))?;
    // The second attempt is the answer to a 407.
    for _ in 0..2 {
        let mut stream = tcp::connect(&proxy.address(), timers.connect)
            .await
            .map_err(|f| Fault::new(f.code, format!("the proxy {proxy} cannot be reached: {}", f.text)))?;
        let credentials = proxy.credentials_at_once();
        let asked = async {
            match proxy.kind {
                Kind::Socks5 => socks::connect(&mut stream, proxy, host, port).await.map(|()| http_proxy::Answer::Open),
                Kind::Http => http_proxy::connect(&mut stream, proxy, address, credentials).await,
            }
        };
        let answer = timeout(timers.connect, asked).await.map_err(|_| {
            let text = format!(
                "the proxy {proxy} took the connection but did not answer for {address} within {} s: is it overloaded, or another service?",
                timers.connect.as_secs()
            );
            Fault::new(Code::TimedOut, text)
        })??;
        match answer {
            http_proxy::Answer::Open => return Ok(stream),
            http_proxy::Answer::AsksForCredentials => proxy.asked.store(true, Ordering::Relaxed),
        }
    }
    Err(Fault::new(Code::Forbidden, format!("the proxy {proxy} keeps asking for credentials")))
}

#[cfg(test)]
mod tests {
    use super::super::network::Outbound;
    use super::*;
    use crate::tls::RelayRoots;

    fn shown(addresses: &[&str], outbound: &Outbound) -> Vec<String> {
        let network = outbound.network_with(|_| None).unwrap();
        let addresses = addresses.iter().map(|a| (*a).to_owned()).collect();
        let target = RelayTarget::new(addresses, "relay.example", RelayRoots::System).over(network);
        let show = |w: Way| format!("{}{}", w.address, w.proxy.map(|p| format!(" by {p}")).unwrap_or_default());
        ways(&target).into_iter().map(show).collect()
    }

    #[test]
    fn an_http_proxy_sees_port_443_only_and_socks_every_port() {
        let by = |proxy: &str| Outbound { proxy: Some(proxy.into()), ..Outbound::default() };
        let both = ["relay.example:3101", "relay.example:443"];
        assert_eq!(shown(&both, &by("none")), both);
        assert_eq!(shown(&both, &by("http://p:1")), ["relay.example:443 by http://p:1"]);
        assert_eq!(shown(&both[..1], &by("http://p:1")), ["relay.example:443 by http://p:1"]);
        assert_eq!(shown(&["[::1]:3101"], &by("http://p:1")), ["[::1]:443 by http://p:1"]);
        assert_eq!(shown(&["relay.example:8443"], &by("http://p:1")), ["relay.example:8443 by http://p:1"]);
        let socks = shown(&both, &by("socks5://p:1"));
        assert_eq!(socks, ["relay.example:3101 by socks5://p:1", "relay.example:443 by socks5://p:1"]);
        let except = Outbound { no_proxy: vec!["relay.example:3101".into()], ..by("http://p:1") };
        assert_eq!(shown(&both, &except), ["relay.example:3101", "relay.example:443 by http://p:1"]);
    }
}
