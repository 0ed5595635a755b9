//! What anonymous clients may do: token buckets for how often, shares for how much at once, by network address or by
//! tenant. Pure; time is an argument.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Buckets remembered at once. Beyond this, strangers share one bucket, so that a flood of addresses costs them, not us.
const MAX_KEYS: usize = 64 * 1024;

/// A rate with a burst.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// Tokens a second.
    pub per_second: f64,
    /// Tokens that may be saved up.
    pub burst: f64,
}

/// One bucket a key.
#[derive(Debug)]
pub struct Limiter<K> {
    /// Short critical sections without await; many tasks ask at once.
    inner: Mutex<Buckets<K>>,
}

#[derive(Debug)]
struct Buckets<K> {
    rate: Rate,
    all: HashMap<Option<K>, Bucket>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl<K: Eq + Hash> Limiter<K> {
    /// A limiter without history.
    #[must_use]
    pub fn new(rate: Rate) -> Self {
        Self { inner: Mutex::new(Buckets { rate, all: HashMap::new() }) }
    }

    /// Another rate from now on; what was taken counts as before.
    pub fn set(&self, rate: Rate) {
        self.inner.lock().rate = rate;
    }

    /// Buckets remembered now.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.lock().all.len()
    }

    /// Whether nobody has asked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes one token of `key`.
    ///
    /// # Errors
    /// How long to wait for the next.
    pub fn take(&self, key: K, now: Instant) -> Result<(), Duration> {
        let mut inner = self.inner.lock();
        let Buckets { rate, all: buckets } = &mut *inner;
        let rate = *rate;
        let refilled = |b: &Bucket| {
            (b.tokens + now.saturating_duration_since(b.at).as_secs_f64() * rate.per_second).min(rate.burst)
        };
        let mut key = Some(key);
        if buckets.len() >= MAX_KEYS && !buckets.contains_key(&key) {
            buckets.retain(|_, b| refilled(b) < rate.burst);
            if buckets.len() >= MAX_KEYS {
                key = None;
            }
        }
        let bucket = buckets.entry(key).or_insert(Bucket { tokens: rate.burst, at: now });
        let tokens = refilled(bucket);
        *bucket = Bucket { tokens: if tokens >= 1.0 { tokens - 1.0 } else { tokens }, at: now };
        if tokens >= 1.0 {
            return Ok(());
        }
        Err(Duration::from_secs_f64(((1.0 - tokens) / rate.per_second.max(1e-6)).min(3600.0)))
    }
}

/// How many things each key may hold at once. Clones are the same.
#[derive(Debug, Clone)]
pub struct Shares<K: Eq + Hash> {
    most: Arc<AtomicUsize>,
    /// Short critical sections without await.
    held: Arc<Mutex<HashMap<K, usize>>>,
}

/// One thing held; dropping it gives it back.
#[derive(Debug)]
pub struct Share<K: Eq + Hash> {
    key: K,
    held: Arc<Mutex<HashMap<K, usize>>>,
}

impl<K: Eq + Hash + Clone> Shares<K> {
    /// At most `most` a key.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self { most: Arc::new(AtomicUsize::new(most)), held: Arc::default() }
    }

    /// Another share from now on; what is held stays.
    pub fn set(&self, most: usize) {
        self.most.store(most, Ordering::Relaxed);
    }

    /// How many are held over all keys.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held.lock().values().sum()
    }

    /// Takes one more; `None` when `key` holds all it may.
    #[must_use]
    pub fn take(&self, key: K) -> Option<Share<K>> {
        let mut held = self.held.lock();
        let count = held.entry(key.clone()).or_default();
        if *count >= self.most.load(Ordering::Relaxed) {
            return None;
        }
        *count += 1;
        drop(held);
        Some(Share { key, held: self.held.clone() })
    }
}

impl<K: Eq + Hash> Drop for Share<K> {
    fn drop(&mut self) {
        let mut held = self.held.lock();
        if let Some(count) = held.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.key);
            }
        }
    }
}

/// What counts as one client: an IPv4 address, or an IPv6 /64, which is what one subscriber gets.
#[must_use]
pub fn client_key(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => {
            let s = v6.segments();
            IpAddr::V6(Ipv6Addr::new(s[0], s[1], s[2], s[3], 0, 0, 0, 0))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_only_the_rate() {
        let limiter = Limiter::new(Rate { per_second: 2.0, burst: 3.0 });
        let start = Instant::now();
        assert!((0..3).all(|_| limiter.take("a", start).is_ok()));
        assert_eq!(limiter.take("a", start).unwrap_err(), Duration::from_millis(500));
        assert!(limiter.take("b", start).is_ok(), "another key has its own bucket");
        assert!(limiter.take("a", start + Duration::from_millis(500)).is_ok());
        assert!(limiter.take("a", start + Duration::from_millis(501)).is_err());
    }

    #[test]
    fn a_flood_of_keys_shares_one_bucket() {
        let limiter = Limiter::new(Rate { per_second: 0.001, burst: 2.0 });
        let now = Instant::now();
        for key in 0..MAX_KEYS {
            assert!(limiter.take(key, now).is_ok());
        }
        assert!(limiter.take(MAX_KEYS + 1, now).is_ok());
        assert!(limiter.take(MAX_KEYS + 2, now).is_ok());
        assert!(limiter.take(MAX_KEYS + 3, now).is_err());
        assert!(limiter.take(1, now).is_ok(), "those known before keep theirs");
    }

    #[test]
    fn shares_come_back_when_dropped() {
        let shares = Shares::new(2);
        let (first, _second) = (shares.take("a").unwrap(), shares.take("a").unwrap());
        assert!(shares.take("a").is_none() && shares.take("b").is_some());
        drop(first);
        assert!(shares.take("a").is_some());
        assert_eq!(shares.held.lock().len(), 1);
    }

    #[test]
    fn one_subscriber_is_one_client() {
        let a = client_key("2001:db8::1".parse().unwrap());
        assert_eq!(a, client_key("2001:db8::ffff:1".parse().unwrap()));
        assert_ne!(a, client_key("2001:db8:0:1::1".parse().unwrap()));
        assert_eq!(client_key("::ffff:10.0.0.1".parse().unwrap()), "10.0.0.1".parse::<IpAddr>().unwrap());
    }
}
