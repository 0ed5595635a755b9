//! One end of a pairing: whose it is, and where it is now.
//!
//! A new address counts only after its holder has answered a challenge from there; until then, and if it never does,
//! the old one stays. Nothing here is done for a MAC that was not asked for: counters and nonces are compared first, and
//! MACs are computed a few times a second.

use std::net::SocketAddr;
use std::sync::Weak;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hedgerow_runtime::clock;
use hedgerow_runtime::link::Channel;
use hedgerow_shared::fault::DropReason;
use hedgerow_shared::wire::tunnel::{Half, Message};
use hedgerow_shared::{EntityId, InstanceId, Role, SessionId, UnixTime};
use parking_lot::{Mutex, RwLock};

use crate::admit::Shown;
use crate::registry::{Facts, Live};
use crate::udp::Target;

/// How long a challenge may be answered.
const CHALLENGED: Duration = Duration::from_secs(10);
/// A BIND that comes so soon after an address was confirmed was sent before it: a link may be slower than UDP. An end
/// that gives its address up again does so after more than three seconds.
const OVERTAKEN: Duration = Duration::from_secs(1);
/// MACs computed for one half in a second: an end needs two for a new address.
const CHECKS: u32 = 20;

/// Whose an end is, as its link proved it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Device or node.
    pub role: Role,
    /// Which.
    pub entity: EntityId,
    /// Of its certificate.
    pub serial: String,
    /// End of that certificate's validity.
    pub not_after: UnixTime,
    /// The key of the CA it stands under.
    pub issuer: [u8; 32],
    /// The process.
    pub instance: InstanceId,
    /// The link session when the pairing was made.
    pub session: SessionId,
}

impl Owner {
    /// Whose link it is; `None` for one without a certificate.
    #[must_use]
    pub fn of(facts: &Facts) -> Option<Self> {
        Some(Self {
            role: facts.role,
            entity: facts.entity?,
            serial: facts.serial.clone()?,
            not_after: facts.not_after?,
            issuer: facts.issuer?,
            instance: facts.instance,
            session: facts.id,
        })
    }

    /// What of its certificate decides.
    #[must_use]
    pub fn shown(&self) -> Shown<'_> {
        Shown { id: self.entity, serial: &self.serial, not_after: self.not_after, issuer: &self.issuer }
    }

    /// Whether a link of the same tenant is this process's.
    #[must_use]
    pub fn is(&self, facts: &Facts) -> bool {
        facts.entity == Some(self.entity) && facts.instance == self.instance && facts.role == self.role
    }
}

/// Where an end gets its datagrams.
#[derive(Debug, Clone)]
pub enum Path {
    /// It has not said.
    None,
    /// At an address that it has shown to be its own.
    Udp(Target),
    /// On a link.
    Link(Weak<Live<Channel>>),
}

/// See the module.
#[derive(Debug)]
pub struct End {
    /// Its id and secret.
    pub half: Half,
    /// Whose.
    pub owner: Owner,
    /// Bytes of datagrams that came from it and were passed on.
    pub bytes: AtomicU64,
    /// So many datagrams.
    pub datagrams: AtomicU64,
    /// Read for every run of datagrams, written when the end moves. No await while it is held.
    pub(super) path: RwLock<Path>,
    /// Short critical sections: only what carries a MAC asks.
    proof: Mutex<Proof>,
    /// Milliseconds after the table's beginning.
    heard: AtomicU64,
}

#[derive(Debug, Default)]
struct Proof {
    /// Of the newest address.
    confirmed: Option<u64>,
    /// When that was.
    since_confirmed: Option<Instant>,
    pending: Option<Pending>,
    checks: u32,
    /// The second that `checks` is of.
    since: Option<Instant>,
}

#[derive(Debug)]
struct Pending {
    address: SocketAddr,
    nonce: [u8; 16],
    counter: u64,
    expires: Instant,
    /// Was confirmed; the answer may have been lost, and is given again.
    is_done: bool,
}

impl Proof {
    fn may_check(&mut self, now: Instant) -> bool {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= Duration::from_secs(1)) {
            (self.since, self.checks) = (Some(now), 0);
        }
        self.checks += 1;
        self.checks <= CHECKS
    }
}

impl End {
    /// An end that has not said where it is.
    pub(super) fn new(half: Half, owner: Owner, heard: u64) -> Self {
        Self {
            half,
            owner,
            bytes: AtomicU64::new(0),
            datagrams: AtomicU64::new(0),
            path: RwLock::new(Path::None),
            proof: Mutex::default(),
            heard: AtomicU64::new(heard),
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> Path {
        self.path.read().clone()
    }

    pub(super) fn is_at(&self, address: SocketAddr) -> bool {
        matches!(&*self.path.read(), Path::Udp(target) if target.address == address)
    }

    pub(super) fn hear(&self, at: u64) {
        self.heard.store(at, Ordering::Relaxed);
    }

    pub(super) fn heard(&self) -> u64 {
        self.heard.load(Ordering::Relaxed)
    }

    /// It is on its link; a BIND that UDP has overtaken is not listened to.
    pub(super) fn bind(&self, link: Weak<Live<Channel>>, now: Instant) {
        let proof = self.proof.lock();
        let overtaken = |at: Instant| now.saturating_duration_since(at) < OVERTAKEN;
        let mut path = self.path.write();
        if !matches!(&*path, Path::Udp(_)) || !proof.since_confirmed.is_some_and(overtaken) {
            *path = Path::Link(link);
        }
    }

    /// Takes an ATTACH.
    ///
    /// # Errors
    /// Why it is dropped.
    pub(super) fn attach(
        &self,
        message: &Message,
        counter: u64,
        from: SocketAddr,
        now: Instant,
    ) -> Result<Message, DropReason> {
        let mut proof = self.proof.lock();
        if proof.confirmed.is_some_and(|confirmed| counter <= confirmed) {
            return Err(DropReason::TunnelForged);
        }
        let pending = proof.pending.as_ref().filter(|p| p.expires > now && !p.is_done);
        let again = match pending {
            // Its answer was lost.
            Some(p) if p.counter == counter && p.address == from => Some(p.nonce),
            // Somebody who saw it go by must not take its holder's place.
            Some(p) if p.counter >= counter => return Err(DropReason::TunnelForged),
            Some(_) | None => None,
        };
        if !proof.may_check(now) {
            return Err(DropReason::RateLimited);
        }
        if !message.is_from(&self.half) {
            return Err(DropReason::TunnelForged);
        }
        let nonce = again.unwrap_or_else(clock::random);
        proof.pending = Some(Pending { address: from, nonce, counter, expires: now + CHALLENGED, is_done: false });
        Ok(Message::Challenge { nonce })
    }

    /// Takes a CONFIRM: the target counts from now on.
    ///
    /// # Errors
    /// Why it is dropped.
    pub(super) fn confirm(
        &self,
        message: &Message,
        nonce: [u8; 16],
        target: Target,
        now: Instant,
    ) -> Result<Message, DropReason> {
        let mut guard = self.proof.lock();
        let proof = &mut *guard;
        let asked = |p: &&mut Pending| p.expires > now && p.address == target.address && p.nonce == nonce;
        if proof.pending.as_mut().filter(asked).is_none() {
            return Err(DropReason::TunnelForged);
        }
        if !proof.may_check(now) {
            return Err(DropReason::RateLimited);
        }
        if !message.is_from(&self.half) {
            return Err(DropReason::TunnelForged);
        }
        if let Some(pending) = proof.pending.as_mut().filter(asked) {
            if pending.is_done {
                // Seen before: it moves nobody back to where it was.
                return if self.is_at(target.address) {
                    Ok(Message::Attached { nonce })
                } else {
                    Err(DropReason::TunnelForged)
                };
            }
            pending.is_done = true;
            proof.confirmed = Some(pending.counter);
            proof.since_confirmed = Some(now);
            *self.path.write() = Path::Udp(target);
            metrics::counter!("hedgerow_relay_tunnel_attaches_total").increment(1);
        }
        Ok(Message::Attached { nonce })
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use hedgerow_shared::secret::Secret;
    use hedgerow_shared::wire::tunnel::HalfId;

    use super::*;
    use crate::udp::Port;

    const HOME: &str = "192.0.2.1:1000";
    const AWAY: &str = "198.51.100.7:2000";

    fn end() -> End {
        let owner = Owner {
            role: Role::Device,
            entity: EntityId::from_random([1; 16]),
            serial: String::new(),
            not_after: UnixTime(u64::MAX),
            issuer: [0; 32],
            instance: InstanceId::from_random([1; 16]),
            session: SessionId::from_random([1; 16]),
        };
        End::new(Half { id: HalfId::from_random([7; 8]), secret: Secret::new(vec![7; 32]) }, owner, 0)
    }

    fn port() -> std::sync::Arc<Port> {
        Port::new(UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap()
    }

    fn attach(end: &End, counter: u64, from: &str, now: Instant) -> Result<[u8; 16], DropReason> {
        match end.attach(&Message::attach(&end.half, counter), counter, from.parse().unwrap(), now)? {
            Message::Challenge { nonce } => Ok(nonce),
            other => panic!("{other:?}"),
        }
    }

    fn confirm(end: &End, nonce: [u8; 16], from: &str, now: Instant) -> Result<Message, DropReason> {
        let target = Target { port: port(), address: from.parse().unwrap(), local: None };
        end.confirm(&Message::confirm(&end.half, nonce), nonce, target, now)
    }

    #[tokio::test]
    async fn an_address_counts_once_it_has_answered_and_the_old_one_until_then() {
        let (end, now) = (end(), Instant::now());
        let nonce = attach(&end, 1, HOME, now).unwrap();
        assert!(!end.is_at(HOME.parse().unwrap()));
        assert_eq!(attach(&end, 1, HOME, now), Ok(nonce), "asked again: its challenge was lost");
        assert_eq!(confirm(&end, nonce, AWAY, now), Err(DropReason::TunnelForged));
        assert_eq!(confirm(&end, [0; 16], HOME, now), Err(DropReason::TunnelForged));
        assert!(confirm(&end, nonce, HOME, now).is_ok() && end.is_at(HOME.parse().unwrap()));
        assert!(confirm(&end, nonce, HOME, now).is_ok(), "asked again: its answer was lost");
        let moved = attach(&end, 2, AWAY, now).unwrap();
        assert!(end.is_at(HOME.parse().unwrap()), "the old one until then");
        let late = now + CHALLENGED;
        assert_eq!(confirm(&end, moved, AWAY, late), Err(DropReason::TunnelForged));
        let moved = attach(&end, 2, AWAY, late).unwrap();
        assert!(confirm(&end, moved, AWAY, late).is_ok() && end.is_at(AWAY.parse().unwrap()));
    }

    #[tokio::test]
    async fn what_was_seen_going_by_moves_nobody() {
        let (end, now) = (end(), Instant::now());
        let nonce = attach(&end, 5, HOME, now).unwrap();
        // A copy of the ATTACH from elsewhere does not take the challenge away from who was asked,
        assert_eq!(attach(&end, 5, AWAY, now), Err(DropReason::TunnelForged));
        assert_eq!(attach(&end, 4, AWAY, now), Err(DropReason::TunnelForged));
        assert!(confirm(&end, nonce, HOME, now).is_ok());
        // nor does one move it later,
        assert_eq!(attach(&end, 5, AWAY, now), Err(DropReason::TunnelForged));
        // nor a copy of the CONFIRM, with the sender's address forged, once the end has gone to its link.
        let later = now + OVERTAKEN;
        end.bind(Weak::new(), later);
        assert_eq!(confirm(&end, nonce, HOME, later), Err(DropReason::TunnelForged));
        assert!(matches!(end.path(), Path::Link(_)));
    }

    #[tokio::test]
    async fn a_bind_that_udp_has_overtaken_takes_no_address_away() {
        let (end, now) = (end(), Instant::now());
        end.bind(Weak::new(), now);
        assert!(matches!(end.path(), Path::Link(_)), "it has no address yet");
        let nonce = attach(&end, 1, HOME, now).unwrap();
        assert!(confirm(&end, nonce, HOME, now).is_ok());
        end.bind(Weak::new(), now + OVERTAKEN / 2);
        assert!(end.is_at(HOME.parse().unwrap()));
        end.bind(Weak::new(), now + OVERTAKEN);
        assert!(matches!(end.path(), Path::Link(_)), "this one is meant");
    }

    #[tokio::test]
    async fn forged_macs_are_dropped_and_cost_a_few_a_second() {
        let (end, other, now) = (end(), end(), Instant::now());
        let forged = Message::attach(&Half { secret: Secret::new(vec![8; 32]), ..other.half }, 1);
        let shot = |now| end.attach(&forged, 1, AWAY.parse().unwrap(), now).unwrap_err();
        let shots: Vec<_> = (0..=CHECKS).map(|_| shot(now)).collect();
        assert!(shots[..CHECKS as usize].iter().all(|r| *r == DropReason::TunnelForged));
        assert_eq!(shots[CHECKS as usize], DropReason::RateLimited);
        assert_eq!(shot(now + Duration::from_secs(1)), DropReason::TunnelForged);
        assert!(attach(&end, 1, HOME, now + Duration::from_secs(1)).is_ok(), "its holder gets through in between");
    }
}
