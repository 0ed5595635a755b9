//! Names to addresses. Usually the system is asked once for both families, and its order is kept. A resolver that
//! swallows questions for one of them (some firewalls do, for IPv6) would make that take longer than a connection may:
//! whoever is not answered soon asks for each family by itself, and goes on with what comes (RFC 8305, section 3).

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use dns_lookup::{AddrFamily, AddrInfoHints, SockType};
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::time::{sleep, timeout};

/// Silence after which each family is asked for by itself: longer than resolvers that work take.
const PATIENCE: Duration = Duration::from_millis(300);
/// How long one family waits for the rest. The RFC's 50 ms would do for it; more costs a network that is broken little.
const GRACE: Duration = Duration::from_millis(300);

/// The addresses of `host:port`, in the order in which they should be tried. The caller bounds it; look-ups that are given
/// up block a thread each until the system's own limits end them. Cancel safe.
///
/// # Errors
/// What the resolver said. There is at least one address otherwise.
pub async fn resolve(address: &str) -> io::Result<Vec<SocketAddr>> {
    let both = async { Ok(tokio::net::lookup_host(address).await?.collect()) };
    first_answer(both, |family| one_family(address, family)).await
}

async fn first_answer<Both, One>(both: Both, one: impl Fn(AddrFamily) -> One) -> io::Result<Vec<SocketAddr>>
where
    Both: Future<Output = io::Result<Vec<SocketAddr>>>,
    One: Future<Output = io::Result<Vec<SocketAddr>>>,
{
    tokio::pin!(both);
    if let Ok(answer) = timeout(PATIENCE, &mut both).await {
        return found(answer?);
    }
    let mut families: FuturesUnordered<_> = [one(AddrFamily::Inet6), one(AddrFamily::Inet)].into_iter().collect();
    let mut known = Vec::new();
    loop {
        tokio::select! {
            // When the common question fails because of one family, the other's answer counts.
            answer = &mut both => return if known.is_empty() { found(answer?) } else { Ok(answer.unwrap_or(known)) },
            () = sleep(GRACE), if !known.is_empty() => return Ok(known),
            // That one family has no addresses, or no answer, says nothing about the other.
            Some(answer) = families.next() => known.extend(answer.unwrap_or_default()),
        }
    }
}

fn found(addresses: Vec<SocketAddr>) -> io::Result<Vec<SocketAddr>> {
    if addresses.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the resolver knows no address"));
    }
    Ok(addresses)
}

async fn one_family(address: &str, family: AddrFamily) -> io::Result<Vec<SocketAddr>> {
    let not_an_address = || io::Error::new(io::ErrorKind::InvalidInput, "expected host:port");
    let (host, port) = address.rsplit_once(':').ok_or_else(not_an_address)?;
    let (host, port) = (host.to_owned(), port.to_owned());
    let hints = AddrInfoHints { socktype: SockType::Stream.into(), address: family.into(), ..AddrInfoHints::default() };
    let asked = tokio::task::spawn_blocking(move || {
        let answers = dns_lookup::getaddrinfo(Some(&host), Some(&port), Some(hints))?;
        answers.map(|answer| answer.map(|a| a.sockaddr)).collect()
    });
    asked.await.unwrap_or_else(|gone| Err(io::Error::other(gone)))
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use tokio::time::Instant;

    use super::*;

    fn addresses(list: &[&str]) -> Vec<SocketAddr> {
        list.iter().map(|a| a.parse().unwrap()).collect()
    }

    /// An answer after so many milliseconds; `None` never comes.
    async fn after(milliseconds: Option<u64>, list: Vec<SocketAddr>) -> io::Result<Vec<SocketAddr>> {
        match milliseconds {
            Some(n) => sleep(Duration::from_millis(n)).await,
            None => pending().await,
        }
        Ok(list)
    }

    const V4: &str = "192.0.2.1:443";
    const V6: &str = "[2001:db8::1]:443";

    async fn asked(both: Option<u64>, six: Option<u64>, four: Option<u64>) -> (Vec<SocketAddr>, Duration) {
        let since = Instant::now();
        let each = |family| match family {
            AddrFamily::Inet6 => after(six, addresses(&[V6])),
            _ => after(four, addresses(&[V4])),
        };
        let answer = first_answer(after(both, addresses(&[V4, V6])), each).await.unwrap();
        (answer, since.elapsed())
    }

    #[tokio::test]
    async fn the_systems_answer_and_order_are_kept_when_they_come_in_time() {
        for both in [10, 400] {
            assert_eq!(asked(Some(both), None, None).await.0, addresses(&[V4, V6]), "after {both} ms");
        }
    }

    #[tokio::test]
    async fn a_resolver_that_swallows_questions_for_one_family_costs_little() {
        let (answer, took) = asked(None, None, Some(20)).await;
        assert_eq!(answer, addresses(&[V4]));
        assert!(took < Duration::from_secs(3), "{took:?}");
        assert_eq!(asked(None, Some(20), None).await.0, addresses(&[V6]));
        assert_eq!(asked(None, Some(30), Some(20)).await.0, addresses(&[V4, V6]), "both that came");
    }

    #[tokio::test]
    async fn what_one_family_has_counts_although_the_common_question_fails() {
        let failing = async {
            sleep(Duration::from_millis(450)).await;
            Err(io::Error::other("no answer for one family"))
        };
        let each = |family| match family {
            AddrFamily::Inet6 => after(None, Vec::new()),
            _ => after(Some(10), addresses(&[V4])),
        };
        assert_eq!(first_answer(failing, each).await.unwrap(), addresses(&[V4]));
    }

    #[tokio::test]
    async fn a_refusal_is_the_systems() {
        let refusal = || ready(Err(io::Error::other("no such name")));
        let error = first_answer(refusal(), |_| pending()).await.unwrap_err();
        assert_eq!(error.to_string(), "no such name");
        let late = async {
            sleep(Duration::from_millis(400)).await;
            refusal().await
        };
        assert_eq!(first_answer(late, |_| refusal()).await.unwrap_err().to_string(), "no such name");
        assert!(first_answer(ready(Ok(Vec::new())), |_| pending()).await.is_err());
    }

    #[tokio::test]
    async fn literal_addresses_and_localhost_need_no_resolver() {
        assert_eq!(resolve("192.0.2.1:443").await.unwrap(), addresses(&[V4]));
        assert_eq!(resolve("[2001:db8::1]:443").await.unwrap(), addresses(&[V6]));
        assert!(resolve("localhost:1").await.unwrap().iter().all(|a| a.ip().is_loopback()));
        assert_eq!(one_family("localhost:1", AddrFamily::Inet).await.unwrap(), addresses(&["127.0.0.1:1"]));
        assert!(resolve("nothing").await.is_err());
    }
}
