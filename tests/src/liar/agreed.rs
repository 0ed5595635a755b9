//! Which key exchange was agreed: as everybody on the wire can read it in the ServerHello, and, where the liar is the
//! server, as it did it.

use std::sync::{Arc, Mutex};

use rustls::crypto::{ActiveKeyExchange, CompletedKeyExchange, CryptoProvider, SupportedKxGroup};
use rustls::{NamedGroup, ProtocolVersion};

/// The `random` of a HelloRetryRequest (RFC 8446 section 4.1.3): its first bytes.
const RETRY: [u8; 4] = [0xcf, 0x21, 0xad, 0x74];
const KEY_SHARE: u16 = 51;

/// The group in a record with a ServerHello (RFC 8446 sections 4.1.3 and 4.2.8); `None` for anything else.
pub fn group(record: &[u8]) -> Option<u16> {
    let hello = record.get(5..).filter(|h| record[0] == 22 && h.first() == Some(&2))?;
    // Kind and length, version, random, session id, suite, compression.
    let random = hello.get(6..38)?;
    let extensions = hello.get(38..)?;
    let mut rest = extensions.get(1 + usize::from(*extensions.first()?) + 3 + 2..)?;
    while let Some([a, b, c, d]) = rest.first_chunk::<4>().copied() {
        let (kind, length) = (u16::from_be_bytes([a, b]), usize::from(u16::from_be_bytes([c, d])));
        if kind == KEY_SHARE && !random.starts_with(&RETRY) {
            return rest.get(4..6).map(|g| u16::from_be_bytes([g[0], g[1]]));
        }
        rest = rest.get(4 + length..)?;
    }
    None
}

/// The X25519MLKEM768 of draft-ietf-tls-ecdhe-mlkem, as the wire has it.
pub const POST_QUANTUM: u16 = 0x11ec;
/// X25519, as the wire has it.
pub const CLASSIC: u16 = 0x001d;

/// Where what and which group is written down.
pub(super) type List = Arc<Mutex<Vec<(&'static str, u16)>>>;

/// A server's provider that writes down which group each hand-shake used: over QUIC nobody else can tell.
pub(super) fn provider(what: &'static str, list: &List) -> Arc<CryptoProvider> {
    let mut provider = CryptoProvider::clone(&hedgerow_runtime::tls::provider());
    for group in &mut provider.kx_groups {
        // One a group and liar, for the life of the test.
        *group = Box::leak(Box::new(Watched { group: *group, what, list: list.clone() }));
    }
    Arc::new(provider)
}

struct Watched {
    group: &'static dyn SupportedKxGroup,
    what: &'static str,
    list: List,
}

impl std::fmt::Debug for Watched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Watched({:?})", self.group.name())
    }
}

impl SupportedKxGroup for Watched {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, rustls::Error> {
        self.group.start()
    }

    /// What a server does when it has chosen.
    fn start_and_complete(&self, peer: &[u8]) -> Result<CompletedKeyExchange, rustls::Error> {
        super::lock(&self.list).push((self.what, self.group.name().into()));
        self.group.start_and_complete(peer)
    }

    fn name(&self) -> NamedGroup {
        self.group.name()
    }

    fn usable_for_version(&self, version: ProtocolVersion) -> bool {
        self.group.usable_for_version(version)
    }
}
