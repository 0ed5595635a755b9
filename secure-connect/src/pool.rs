//! Addresses that a node leases to the devices of its tunnels.
//!
//! A device keeps its address: while it holds it, later as well while nobody else needed it, and in most cases when the
//! node starts anew, as the search for a free one begins at a place that follows from the device's id. An address that
//! was given back is used again last, the longest unused first, so that what is still under way to its former holder
//! reaches nobody else while there is any other.

mod prefix;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hedgerow_shared::EntityId;

pub use prefix::{Prefix, PrefixError};

/// Places before the first leased one: the network's own address, and the gateway, which is the node.
const GATEWAY: u32 = 1;
const FIRST: u32 = 2;
/// Four addresses: network, node, one device, broadcast.
const MAX_BITS_V4: u8 = 30;
/// The longest IPv6 prefix that is taken: 256 addresses, as in a small IPv4 pool.
const MAX_BITS_V6: u8 = 120;

/// Why no pool can be made of the prefixes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// The families are the wrong way round.
    #[error("{0} is not an {1} prefix")]
    Family(Prefix, &'static str),
    /// No device would find room.
    #[error("{0} is too small for a pool: at most {1} bits leave room for the node and a device")]
    TooSmall(Prefix, u8),
}

/// Every address is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("every address of the pool is held by a device")]
pub struct Exhausted;

/// What a device is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address, when the pool has any; at the same place of its prefix.
    pub v6: Option<Ipv6Addr>,
}

/// The addresses of one node. Its memory grows with the devices that ever held one, up to its capacity.
#[derive(Debug, Clone)]
pub struct Pool {
    v4: Prefix,
    v6: Option<Prefix>,
    last: u32,
    /// By place: who holds it, or held it last.
    slots: BTreeMap<u32, Slot>,
    by_device: BTreeMap<EntityId, u32>,
    /// Places never leased, as ranges: first to last.
    unused: BTreeMap<u32, u32>,
    /// Places given back, in that order.
    released: BTreeMap<u64, u32>,
    releases: u64,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    device: EntityId,
    /// The key in `released`; none while it is held.
    released: Option<u64>,
}

impl Pool {
    /// A pool without leases. With an IPv6 prefix that has fewer addresses than the IPv4 one the smaller number counts.
    ///
    /// # Errors
    /// A prefix of the wrong family, or without room for a device: above 30 bits in IPv4, above 120 in IPv6.
    pub fn new(v4: Prefix, v6: Option<Prefix>) -> Result<Self, PoolError> {
        if !v4.network().is_ipv4() {
            return Err(PoolError::Family(v4, "IPv4"));
        }
        if v4.bits() > MAX_BITS_V4 {
            return Err(PoolError::TooSmall(v4, MAX_BITS_V4));
        }
        if let Some(v6) = v6 {
            if !v6.network().is_ipv6() {
                return Err(PoolError::Family(v6, "IPv6"));
            }
            if v6.bits() > MAX_BITS_V6 {
                return Err(PoolError::TooSmall(v6, MAX_BITS_V6));
            }
        }
        // The last address of the IPv4 prefix is its broadcast address; IPv6 has none.
        let last = v4.last().saturating_sub(1).min(v6.map_or(u128::MAX, |v6| v6.last()));
        let last = u32::try_from(last).unwrap_or(u32::MAX);
        Ok(Self {
            v4,
            v6,
            last,
            slots: BTreeMap::new(),
            by_device: BTreeMap::new(),
            unused: BTreeMap::from([(FIRST, last)]),
            released: BTreeMap::new(),
            releases: 0,
        })
    }

    /// Leases an address to a device: the one that it holds or held, else one that nobody had, else the one that was
    /// given back first.
    ///
    /// # Errors
    /// When other devices hold all of them.
    pub fn lease(&mut self, device: EntityId) -> Result<Lease, Exhausted> {
        if let Some(&place) = self.by_device.get(&device) {
            if let Some(slot) = self.slots.get_mut(&place)
                && let Some(released) = slot.released.take()
            {
                self.released.remove(&released);
            }
            return self.at(place).ok_or(Exhausted);
        }
        let place = match self.take_unused(self.place_for(device)) {
            Some(place) => place,
            None => self.released.pop_first().ok_or(Exhausted)?.1,
        };
        if let Some(former) = self.slots.insert(place, Slot { device, released: None }) {
            self.by_device.remove(&former.device);
        }
        self.by_device.insert(device, place);
        self.at(place).ok_or(Exhausted)
    }

    /// Takes the address of a device back. Nothing happens when it holds none.
    pub fn release(&mut self, device: EntityId) {
        let Some(&place) = self.by_device.get(&device) else { return };
        if let Some(slot) = self.slots.get_mut(&place)
            && slot.released.is_none()
        {
            slot.released = Some(self.releases);
            self.released.insert(self.releases, place);
            self.releases += 1;
        }
    }

    /// Which device holds an address.
    #[must_use]
    pub fn holder(&self, address: IpAddr) -> Option<EntityId> {
        let place = match address {
            IpAddr::V4(_) => self.v4.place_of(address),
            IpAddr::V6(_) => self.v6.and_then(|v6| v6.place_of(address)),
        };
        let slot = self.slots.get(&u32::try_from(place?).ok()?)?;
        slot.released.is_none().then_some(slot.device)
    }

    /// Whether an address is of this pool, leased or not.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.v4.contains(address) || self.v6.is_some_and(|v6| v6.contains(address))
    }

    /// The node's own addresses in the pool, which no device gets.
    #[must_use]
    pub fn gateway(&self) -> Lease {
        self.at(GATEWAY).unwrap_or(Lease { v4: Ipv4Addr::UNSPECIFIED, v6: None })
    }

    /// The prefixes of the pool.
    pub fn prefixes(&self) -> impl Iterator<Item = Prefix> {
        [Some(self.v4), self.v6].into_iter().flatten()
    }

    /// How many addresses are held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len() - self.released.len()
    }

    /// Whether none is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many devices can hold one at the same time.
    #[must_use]
    pub fn capacity(&self) -> usize {
        usize::try_from(self.last - FIRST + 1).unwrap_or(usize::MAX)
    }

    fn at(&self, place: u32) -> Option<Lease> {
        let IpAddr::V4(v4) = self.v4.at(place.into())? else { return None };
        let v6 = match self.v6 {
            Some(prefix) => match prefix.at(place.into())? {
                IpAddr::V6(v6) => Some(v6),
                IpAddr::V4(_) => return None,
            },
            None => None,
        };
        Some(Lease { v4, v6 })
    }

    /// Where the search for a device's address begins: FNV-1a of its id. Nobody gains by choosing an id for it, as
    /// every address is as good as another.
    fn place_for(&self, device: EntityId) -> u32 {
        let fold = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        let hash = device.as_bytes().iter().fold(0xcbf2_9ce4_8422_2325, fold);
        let of = u64::from(self.last - FIRST) + 1;
        FIRST + u32::try_from(hash % of).unwrap_or(0)
    }

    /// The first place from `wanted` on that nobody ever had, going round at the end.
    fn take_unused(&mut self, wanted: u32) -> Option<u32> {
        let (first, last) = self
            .unused
            .range(..=wanted)
            .next_back()
            .filter(|(_, last)| **last >= wanted)
            .or_else(|| self.unused.range(wanted..).next())
            .or_else(|| self.unused.iter().next())
            .map(|(first, last)| (*first, *last))?;
        let place = if (first..=last).contains(&wanted) { wanted } else { first };
        self.unused.remove(&first);
        if first < place {
            self.unused.insert(first, place - 1);
        }
        if place < last {
            self.unused.insert(place + 1, last);
        }
        Some(place)
    }
}

#[cfg(test)]
mod tests;
