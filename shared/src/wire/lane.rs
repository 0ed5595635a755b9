//! The preamble with which a node brings its leg of a lane, bare or inside TLS, and the server name with which a
//! device brings its own.
//!
//! ```text
//!   0      4         5          6                 26
//!   "HGLN" version=1 length=20  ticket (20 bytes)  then the session's bytes
//! ```

use crate::Ticket;

/// The first four bytes; never the first byte of TLS (0x16) or HTTP.
pub const MAGIC: [u8; 4] = *b"HGLN";
/// Preamble version.
pub const VERSION: u8 = 1;
/// Length of the whole preamble of this version.
pub const LENGTH: usize = 26;
/// Stands between ticket and relay name.
pub const LANE_LABEL: &str = ".lane.";

/// The preamble for a ticket.
#[must_use]
pub fn preamble(ticket: &Ticket) -> [u8; LENGTH] {
    let mut out = [0; LENGTH];
    out[..4].copy_from_slice(&MAGIC);
    out[4] = VERSION;
    out[5] = 20;
    out[6..].copy_from_slice(ticket.as_bytes());
    out
}

/// What the first bytes of a connection say.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed {
    /// Not yet decided: read on.
    Incomplete,
    /// A preamble of this many bytes.
    Ticket(Ticket, usize),
    /// Not a preamble of a version we know.
    Unknown,
}

/// Reads a preamble from the first bytes of a connection.
#[must_use]
pub fn parse(bytes: &[u8]) -> Parsed {
    let seen = bytes.len().min(4);
    if bytes[..seen] != MAGIC[..seen] {
        return Parsed::Unknown;
    }
    match bytes.get(4..6) {
        None if bytes.get(4).is_none_or(|v| *v == VERSION) => Parsed::Incomplete,
        Some([VERSION, 20]) => match bytes.get(6..LENGTH).and_then(|t| <[u8; 20]>::try_from(t).ok()) {
            Some(ticket) => Parsed::Ticket(Ticket::from_random(ticket), LENGTH),
            None => Parsed::Incomplete,
        },
        _ => Parsed::Unknown,
    }
}

/// The server name of a device's leg: `<ticket>.lane.<relay>`.
#[must_use]
pub fn server_name(ticket: &Ticket, relay: &str) -> String {
    format!("{ticket}{LANE_LABEL}{relay}")
}

/// The ticket in a server name of this relay. `None` when the name is not under `lane.<relay>`; `Some(Err(()))`
/// when it is, but holds no ticket: such a connection is closed.
#[must_use]
pub fn ticket_of(name: &str, relay: &str) -> Option<Result<Ticket, ()>> {
    let name = name.to_ascii_lowercase();
    let relay = relay.to_ascii_lowercase();
    if name == format!("lane.{relay}") {
        return Some(Err(()));
    }
    let label = name.strip_suffix(&format!("{LANE_LABEL}{relay}"))?;
    Some(label.parse().map_err(|_| ()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_preamble_reads_back_at_every_cut() {
        let ticket = Ticket::from_random([5; 20]);
        let bytes = preamble(&ticket);
        for cut in 0..LENGTH {
            assert_eq!(parse(&bytes[..cut]), Parsed::Incomplete, "{cut}");
        }
        assert_eq!(parse(&bytes), Parsed::Ticket(ticket, LENGTH));
        assert_eq!(parse(b"GET / HTTP/1.1"), Parsed::Unknown);
        assert_eq!(parse(b"HGLN\x02"), Parsed::Unknown);
        assert_eq!(parse(b"HGLN\x01\xff"), Parsed::Unknown);
    }

    #[test]
    fn lane_names_belong_to_one_relay() {
        let ticket = Ticket::from_random([5; 20]);
        let name = server_name(&ticket, "relay.example");
        assert_eq!(ticket_of(&name, "relay.example"), Some(Ok(ticket)));
        assert_eq!(ticket_of(&name.to_uppercase(), "Relay.example"), Some(Ok(ticket)));
        assert_eq!(ticket_of(&name, "other.example"), None);
        assert_eq!(ticket_of("x.lane.relay.example", "relay.example"), Some(Err(())));
        assert_eq!(ticket_of("lane.relay.example", "relay.example"), Some(Err(())));
        assert_eq!(ticket_of("relay.example", "relay.example"), None);
    }
}
