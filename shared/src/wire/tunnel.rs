//! Tunnel datagrams: what device and node exchange with a relay, and through it with each other, over UDP 443 and 3101,
//! or as datagrams of a link where UDP is dead.
//!
//! ```text
//!   0     1         9
//!   0x80  id        DTLS records                              DATA      passed on, blindly
//!   0x81  id        counter (8)  MAC (16)                     ATTACH    end -> relay: I am at this address
//!   0x82  id        nonce (16)                                CHALLENGE relay -> that address
//!   0x83  id        nonce (16)   MAC (16)                     CONFIRM   end -> relay
//!   0x84  id        nonce (16)                                ATTACHED  relay -> end: the address counts
//!   0x85  id        number (4)                                PING      end -> relay, from the address that counts
//!   0x86  id        number (4)                                PONG      relay -> end
//!   0x87  id                                                  BIND      end -> relay, on its link only: answer there
//! ```
//!
//! A pairing has two halves, one for each end, each with a random id and a secret of its own; an end uses its own id in
//! what it sends, and finds it in what it gets: the relay writes the other half's id over the first. Each answer is
//! shorter than what asked for it. Every first byte is in 0x80..=0xBF, which QUIC does not use as long as nobody greases
//! its fixed bit (RFC 9287).

use minicbor::{Decode, Encode};
use subtle::ConstantTimeEq;

use super::message::keyed_hash;
use crate::secret::Secret;

/// Bytes in front of the DTLS records.
pub const HEADER: usize = 9;
/// What a UDP datagram of a tunnel may hold: no path carries more in one piece, and links take no more.
pub const MAX: usize = crate::limits::MAX_DATAGRAM;

/// First bytes.
pub mod kind {
    /// DTLS records for the other end.
    pub const DATA: u8 = 0x80;
    /// A new address.
    pub const ATTACH: u8 = 0x81;
    /// Is it yours?
    pub const CHALLENGE: u8 = 0x82;
    /// It is.
    pub const CONFIRM: u8 = 0x83;
    /// It counts.
    pub const ATTACHED: u8 = 0x84;
    /// Does UDP still pass?
    pub const PING: u8 = 0x85;
    /// It does.
    pub const PONG: u8 = 0x86;
    /// UDP does not: use the link.
    pub const BIND: u8 = 0x87;
}

/// One half of a pairing, as the relay knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct HalfId(#[n(0)] u64);

impl HalfId {
    /// Wraps random bytes.
    #[must_use]
    pub fn from_random(bytes: [u8; 8]) -> Self {
        Self(u64::from_be_bytes(bytes))
    }

    /// As it stands in a datagram.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 8] {
        self.0.to_be_bytes()
    }

    /// Of a datagram of any kind; `None` when it is too short.
    #[must_use]
    pub fn of(datagram: &[u8]) -> Option<Self> {
        datagram.get(1..HEADER)?.try_into().ok().map(Self::from_random)
    }
}

/// What an end needs to use its half.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Half {
    /// Its id.
    pub id: HalfId,
    /// What proves that an address is its holder's: 32 bytes.
    pub secret: Secret,
}

impl<C> Encode<C> for Half {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut minicbor::Encoder<W>,
        ctx: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.array(2)?;
        self.id.encode(e, ctx)?;
        e.bytes(self.secret.expose())?.ok()
    }
}

impl<'b, C> Decode<'b, C> for Half {
    fn decode(d: &mut minicbor::Decoder<'b>, ctx: &mut C) -> Result<Self, minicbor::decode::Error> {
        let fields = d.array()?.unwrap_or(0);
        let id = HalfId::decode(d, ctx)?;
        let secret = d.bytes()?;
        if fields < 2 || secret.len() != 32 {
            return Err(minicbor::decode::Error::message("half of a pairing"));
        }
        let half = Self { id, secret: Secret::new(secret.to_vec()) };
        for _ in 2..fields {
            d.skip()?;
        }
        Ok(half)
    }
}

/// A datagram that is not DATA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// See the module.
    Attach {
        /// Higher than that of any address confirmed before.
        counter: u64,
        /// By the half's secret.
        mac: [u8; 16],
    },
    /// See the module.
    Challenge {
        /// To be repeated from the same address.
        nonce: [u8; 16],
    },
    /// See the module.
    Confirm {
        /// Of the challenge.
        nonce: [u8; 16],
        /// By the half's secret.
        mac: [u8; 16],
    },
    /// See the module.
    Attached {
        /// Of the challenge.
        nonce: [u8; 16],
    },
    /// See the module.
    Ping(u32),
    /// See the module.
    Pong(u32),
    /// See the module.
    Bind,
}

impl Message {
    /// ATTACH of a half.
    #[must_use]
    pub fn attach(half: &Half, counter: u64) -> Self {
        Self::Attach { counter, mac: mac(&half.secret, kind::ATTACH, half.id, &counter.to_be_bytes()) }
    }

    /// CONFIRM of a half.
    #[must_use]
    pub fn confirm(half: &Half, nonce: [u8; 16]) -> Self {
        Self::Confirm { nonce, mac: mac(&half.secret, kind::CONFIRM, half.id, &nonce) }
    }

    /// Whether the holder of the secret made it; only of ATTACH and CONFIRM, `false` for what carries no MAC.
    #[must_use]
    pub fn is_from(&self, half: &Half) -> bool {
        let (theirs, ours) = match self {
            Self::Attach { counter, mac: theirs } => {
                (theirs, mac(&half.secret, kind::ATTACH, half.id, &counter.to_be_bytes()))
            }
            Self::Confirm { nonce, mac: theirs } => (theirs, mac(&half.secret, kind::CONFIRM, half.id, nonce)),
            Self::Challenge { .. } | Self::Attached { .. } | Self::Ping(_) | Self::Pong(_) | Self::Bind => {
                return false;
            }
        };
        theirs.ct_eq(&ours).into()
    }

    /// The whole datagram.
    #[must_use]
    pub fn to_datagram(&self, id: HalfId) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER + 32);
        out.push(match self {
            Self::Attach { .. } => kind::ATTACH,
            Self::Challenge { .. } => kind::CHALLENGE,
            Self::Confirm { .. } => kind::CONFIRM,
            Self::Attached { .. } => kind::ATTACHED,
            Self::Ping(_) => kind::PING,
            Self::Pong(_) => kind::PONG,
            Self::Bind => kind::BIND,
        });
        out.extend_from_slice(&id.to_bytes());
        match self {
            Self::Attach { counter, mac } => {
                out.extend_from_slice(&counter.to_be_bytes());
                out.extend_from_slice(mac);
            }
            Self::Confirm { nonce, mac } => {
                out.extend_from_slice(nonce);
                out.extend_from_slice(mac);
            }
            Self::Challenge { nonce } | Self::Attached { nonce } => out.extend_from_slice(nonce),
            Self::Ping(number) | Self::Pong(number) => out.extend_from_slice(&number.to_be_bytes()),
            Self::Bind => {}
        }
        out
    }

    /// Reads a datagram that is not DATA. `None` for an unknown kind and for any other length than the kind's own.
    #[must_use]
    pub fn parse(datagram: &[u8]) -> Option<(HalfId, Self)> {
        let id = HalfId::of(datagram)?;
        let body = &datagram[HEADER..];
        let message = match datagram[0] {
            kind::ATTACH => {
                let (counter, mac) = body.split_first_chunk()?;
                Self::Attach { counter: u64::from_be_bytes(*counter), mac: mac.try_into().ok()? }
            }
            kind::CONFIRM => {
                let (nonce, mac) = body.split_first_chunk()?;
                Self::Confirm { nonce: *nonce, mac: mac.try_into().ok()? }
            }
            kind::CHALLENGE => Self::Challenge { nonce: body.try_into().ok()? },
            kind::ATTACHED => Self::Attached { nonce: body.try_into().ok()? },
            kind::PING => Self::Ping(u32::from_be_bytes(body.try_into().ok()?)),
            kind::PONG => Self::Pong(u32::from_be_bytes(body.try_into().ok()?)),
            kind::BIND if body.is_empty() => Self::Bind,
            _ => return None,
        };
        Some((id, message))
    }
}

fn mac(secret: &Secret, kind: u8, id: HalfId, body: &[u8]) -> [u8; 16] {
    let text = [b"hedgerow tunnel address v1\0".as_slice(), &[kind], &id.to_bytes(), body].concat();
    let key = secret.expose().try_into().unwrap_or([0; 32]);
    let whole = keyed_hash(&key, &text);
    let mut half = [0; 16];
    half.copy_from_slice(&whole[..16]);
    half
}

#[cfg(test)]
mod tests {
    use super::*;

    fn half(n: u8) -> Half {
        Half { id: HalfId::from_random([n; 8]), secret: Secret::new(vec![n; 32]) }
    }

    fn every() -> Vec<Message> {
        let nonce = [9; 16];
        vec![
            Message::attach(&half(1), 7),
            Message::Challenge { nonce },
            Message::confirm(&half(1), nonce),
            Message::Attached { nonce },
            Message::Ping(5),
            Message::Pong(5),
            Message::Bind,
        ]
    }

    #[test]
    fn messages_read_back_and_no_other_length_does() {
        for message in every() {
            let datagram = message.to_datagram(half(1).id);
            assert_eq!(Message::parse(&datagram), Some((half(1).id, message)));
            for length in 0..datagram.len() {
                assert_eq!(Message::parse(&datagram[..length]), None, "{message:?} cut to {length}");
            }
            assert_eq!(Message::parse(&[&datagram[..], &[0]].concat()), None, "{message:?} and a byte more");
            assert!((0x80..=0xbf).contains(&datagram[0]));
        }
    }

    #[test]
    fn no_answer_is_longer_than_what_it_answers() {
        let length: Vec<_> = every().iter().map(|m| m.to_datagram(half(1).id).len()).collect();
        let [attach, challenge, confirm, attached, ping, pong, _] = length[..] else { panic!() };
        assert!(challenge < attach && attached < confirm && pong == ping, "{length:?}");
    }

    #[test]
    fn a_mac_fits_one_half_one_kind_and_one_body() {
        let attach = Message::attach(&half(1), 7);
        assert!(attach.is_from(&half(1)) && !attach.is_from(&half(2)));
        let Message::Attach { mac, .. } = attach else { panic!() };
        assert!(!Message::Attach { counter: 8, mac }.is_from(&half(1)));
        let other_id = Half { id: half(2).id, ..half(1) };
        assert!(!attach.is_from(&other_id));
        let confirm = Message::confirm(&half(1), [0; 16]);
        assert!(confirm.is_from(&half(1)));
        let Message::Confirm { mac, .. } = confirm else { panic!() };
        assert!(!Message::Confirm { nonce: [1; 16], mac }.is_from(&half(1)));
        assert!(!Message::Ping(1).is_from(&half(1)));
    }

    #[test]
    fn halves_travel_in_control_messages_without_showing_their_secret() {
        let bytes = minicbor::to_vec(half(3)).unwrap();
        assert_eq!(minicbor::decode::<Half>(&bytes).unwrap(), half(3));
        assert!(!format!("{:?}", half(3)).contains("33") && format!("{:?}", half(3)).contains("<secret>"));
        let short = minicbor::to_vec((half(3).id, minicbor::bytes::ByteVec::from(vec![1; 31]))).unwrap();
        assert!(minicbor::decode::<Half>(&short).is_err());
    }
}
