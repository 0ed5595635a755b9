//! Fuzz targets: one plain function for each parser that reads what a peer, a user or a file says, with the properties
//! that must hold for any bytes. `tests/fuzz` runs them under libFuzzer; `tests/tests/corpora.rs` replays every stored
//! input through them on each run of the tests. A target fails by panicking.

mod activation;
mod fixture;
mod link;
mod mux;
mod policy;
mod seeds;
mod trust;
mod wire;

use std::fmt::{Debug, Display};
use std::str::FromStr;

use minicbor::{Decode, Encode};
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use activation::{activation, core_api, csr};
pub use link::link_handshake;
pub use mux::{mux, mux_calls, mux_resume};
pub use policy::{acl, policy, role_config, target};
pub use seeds::seeds;
pub use trust::{certificate, licence, signed_config};
pub use wire::{
    client_hello, connect_head, frame, lane_preamble, message, names, proxy_answer, proxy_header, quic_datagram,
    registrations, socks, token, tunnel_datagram, udp_batch,
};

/// Fed with any bytes; panics when a property does not hold.
pub type Target = fn(&[u8]);

/// Every target by the name of its folder in `tests/fuzz/corpus` and of its file in `tests/fuzz/fuzz_targets`.
pub const TARGETS: &[(&str, Target)] = &[
    ("acl", acl),
    ("activation", activation),
    ("certificate", certificate),
    ("client_hello", client_hello),
    ("connect_head", connect_head),
    ("core_api", core_api),
    ("csr", csr),
    ("frame", frame),
    ("lane_preamble", lane_preamble),
    ("licence", licence),
    ("link_handshake", link_handshake),
    ("message", message),
    ("mux", mux),
    ("mux_calls", mux_calls),
    ("mux_resume", mux_resume),
    ("names", names),
    ("policy", policy),
    ("proxy_answer", proxy_answer),
    ("proxy_header", proxy_header),
    ("quic_datagram", quic_datagram),
    ("registrations", registrations),
    ("role_config", role_config),
    ("signed_config", signed_config),
    ("socks", socks),
    ("target", target),
    ("token", token),
    ("tunnel_datagram", tunnel_datagram),
    ("udp_batch", udp_batch),
];

/// Takes decisions off the front of an input; zeros once it is used up.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, most: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(most.min(self.0.len()));
        self.0 = rest;
        head
    }

    fn u8(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    fn u16(&mut self) -> u16 {
        u16::from(self.u8()) << 8 | u16::from(self.u8())
    }

    fn text(&self) -> Option<&'a str> {
        std::str::from_utf8(self.0).ok()
    }
}

/// What CBOR reads as a `T` is written and read again as the same `T`.
fn cbor_round_trip<T>(bytes: &[u8])
where
    T: Encode<()> + for<'b> Decode<'b, ()> + PartialEq + Debug,
{
    let Ok(value) = minicbor::decode::<T>(bytes) else { return };
    let again = minicbor::to_vec(&value).expect("what was read can be written");
    assert_eq!(minicbor::decode::<T>(&again).expect("what was written can be read"), value);
}

/// What JSON reads as a `T` is written and read again as the same `T`; gives the value.
fn json_round_trip<T: Serialize + DeserializeOwned + PartialEq + Debug>(json: &[u8]) -> Option<T> {
    let value: T = serde_json::from_slice(json).ok()?;
    let again = serde_json::to_vec(&value).expect("what was read can be written");
    assert_eq!(serde_json::from_slice::<T>(&again).expect("what was written can be read"), value);
    Some(value)
}

/// A text that is taken has one spelling, which reads as the same value; a complaint does not grow with its text.
fn text_round_trip<T: FromStr<Err: Display> + Display + PartialEq + Debug>(text: &str) -> Option<T> {
    match text.parse::<T>() {
        Ok(value) => {
            let again = value.to_string().parse::<T>();
            assert_eq!(again.ok().as_ref(), Some(&value), "{text:?}");
            Some(value)
        }
        Err(error) => {
            assert!(error.to_string().len() < 2048, "the complaint about {text:?} is long");
            None
        }
    }
}
