//! A number of units that all clients share, of which one client never takes the last part: the rest remains for others.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Whom a connection belongs to: an IPv4 address, or the network of an IPv6 address, of which one client has many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Peer(IpAddr);

impl From<IpAddr> for Peer {
    fn from(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
            IpAddr::V4(_) => address.to_canonical(),
        })
    }
}

/// The units.
pub struct Budget {
    units: Arc<Semaphore>,
    /// What one peer may take.
    per_peer: usize,
    /// Units left for each peer that holds some or waits for some.
    peers: Mutex<HashMap<Peer, Weak<Semaphore>>>,
}

/// Units that a peer has taken; dropping it returns them.
pub struct Share {
    own: OwnedSemaphorePermit,
    of_all: OwnedSemaphorePermit,
}

impl Budget {
    /// Of all units, one peer never takes the last `kept`.
    pub fn new(units: usize, kept: usize) -> Self {
        let per_peer = units.saturating_sub(kept).max(1);
        Self { units: Arc::new(Semaphore::new(units)), per_peer, peers: Mutex::default() }
    }

    /// One peer takes at most three quarters.
    pub fn for_many(units: usize) -> Self {
        Self::new(units, units / 4)
    }

    /// Takes one unit if one is free for this peer.
    pub fn try_take(&self, peer: Peer) -> Option<Share> {
        let own = self.left_for(peer).try_acquire_owned().ok()?;
        let of_all = Arc::clone(&self.units).try_acquire_owned().ok()?;
        Some(Share { own, of_all })
    }

    /// Waits for units, in the order of the calls. `None`: there are not so many for one peer.
    pub async fn take(&self, peer: Peer, units: usize) -> Option<Share> {
        let count = u32::try_from(units).ok().filter(|_| units <= self.per_peer)?;
        let own = self.left_for(peer).acquire_many_owned(count).await.ok()?;
        let of_all = Arc::clone(&self.units).acquire_many_owned(count).await.ok()?;
        Some(Share { own, of_all })
    }

    fn left_for(&self, peer: Peer) -> Arc<Semaphore> {
        // No code panics while it holds the lock.
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(left) = peers.get(&peer).and_then(Weak::upgrade) {
            return left;
        }
        peers.retain(|_, left| left.strong_count() > 0);
        let left = Arc::new(Semaphore::new(self.per_peer));
        peers.insert(peer, Arc::downgrade(&left));
        left
    }
}

impl Share {
    /// The number of units.
    pub fn units(&self) -> usize {
        self.of_all.num_permits()
    }

    /// Adds the units of another share of the same peer and budget.
    pub fn add(&mut self, other: Self) {
        self.own.merge(other.own);
        self.of_all.merge(other.of_all);
    }

    /// Returns all units but these.
    pub fn keep(&mut self, units: usize) {
        let excess = self.units().saturating_sub(units);
        drop(self.own.split(excess));
        drop(self.of_all.split(excess));
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::{Budget, Peer};

    fn peer(address: &str) -> Peer {
        address.parse::<IpAddr>().expect("an address").into()
    }

    #[test]
    fn one_peer_leaves_a_part_for_others() {
        let budget = Budget::for_many(8);
        let of_one: Vec<_> = std::iter::from_fn(|| budget.try_take(peer("10.0.0.1"))).collect();
        assert_eq!(of_one.len(), 6);
        let of_other: Vec<_> = std::iter::from_fn(|| budget.try_take(peer("10.0.0.2"))).collect();
        assert_eq!(of_other.len(), 2);
        drop(of_one);
        assert!(budget.try_take(peer("10.0.0.2")).is_some(), "they are returned");
    }

    #[test]
    fn shares_grow_and_shrink() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let budget = Budget::new(10, 4);
            assert!(budget.take(peer("10.0.0.1"), 7).await.is_none(), "more than one peer may have");
            let mut share = budget.take(peer("10.0.0.1"), 2).await.expect("units");
            share.add(budget.take(peer("10.0.0.1"), 4).await.expect("units"));
            assert_eq!(share.units(), 6);
            assert!(budget.try_take(peer("10.0.0.1")).is_none());
            share.keep(1);
            assert_eq!(budget.take(peer("10.0.0.1"), 5).await.expect("units").units(), 5);
        });
    }

    #[test]
    fn a_network_of_ipv6_and_a_mapped_address_are_one_peer() {
        for (one, other, expected) in [
            ("2001:db8::1", "2001:db8::ffff:1", true),
            ("2001:db8::1", "2001:db8:0:1::1", false),
            ("::ffff:10.0.0.1", "10.0.0.1", true),
            ("10.0.0.1", "10.0.0.2", false),
        ] {
            assert_eq!(peer(one) == peer(other), expected, "{one} {other}");
        }
    }
}
