//! The open connections: a bounded number of slots, and which connection is evicted for a new one.
//!
//! A connection is idle until its request is admitted, and again once its response is sent.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::budget::Peer;

/// A connection is not evicted earlier: the thread that accepts connections also reads their heads, and one that was
/// just accepted may have sent its head already.
const MIN_IDLE_TIME: Duration = Duration::from_millis(100);

/// The slots of all connections.
pub struct Slots {
    count: usize,
    free: Arc<Semaphore>,
    idle: Mutex<Idle>,
}

#[derive(Default)]
struct Idle {
    next_id: u64,
    /// Of each peer, oldest first; never empty.
    connections: HashMap<Peer, BTreeMap<u64, IdleConnection>>,
    /// No connection may become idle.
    closed: bool,
}

impl Idle {
    /// The connection to evict: the oldest one of the peer that has most of them, so that many connections of one client
    /// never evict that of another one.
    fn first(&self) -> Option<(Peer, u64, Instant)> {
        let oldest = self.connections.iter().filter_map(|(peer, of_peer)| {
            let (id, connection) = of_peer.first_key_value()?;
            Some((of_peer.len(), Reverse(*id), *peer, connection.since))
        });
        let (_, Reverse(id), peer, since) = oldest.max_by_key(|(count, id, ..)| (*count, *id))?;
        Some((peer, id, since))
    }

    fn remove(&mut self, peer: Peer, id: u64) -> Option<OwnedSemaphorePermit> {
        let of_peer = self.connections.get_mut(&peer)?;
        let connection = of_peer.remove(&id);
        if of_peer.is_empty() {
            self.connections.remove(&peer);
        }
        connection.map(|connection| connection.permit)
    }
}

struct IdleConnection {
    since: Instant,
    permit: OwnedSemaphorePermit,
    /// Dropping it evicts the connection.
    _evict: oneshot::Sender<()>,
}

/// The slot of one connection; freed when dropped.
pub struct Slot {
    slots: Arc<Slots>,
    peer: Peer,
    id: u64,
    /// `None` while the connection is idle, and when it was evicted.
    permit: Option<OwnedSemaphorePermit>,
}

impl Slots {
    pub fn new(count: usize) -> Arc<Self> {
        Arc::new(Self { count, free: Arc::new(Semaphore::new(count)), idle: Mutex::default() })
    }

    /// A slot for a new connection. If none is free, takes that of an idle one; waits if there is none.
    pub async fn take(self: &Arc<Self>, peer: Peer) -> Slot {
        loop {
            let first = self.idle().first();
            let permit = match (Arc::clone(&self.free).try_acquire_owned(), first) {
                (Ok(permit), _) => permit,
                (Err(_), Some((.., since))) if since.elapsed() < MIN_IDLE_TIME => {
                    tokio::time::sleep_until((since + MIN_IDLE_TIME).into()).await;
                    continue;
                }
                (Err(_), Some((peer, id, _))) => match self.idle().remove(peer, id) {
                    Some(permit) => permit,
                    None => continue,
                },
                (Err(_), None) => {
                    let permit = tokio::time::timeout(MIN_IDLE_TIME, Arc::clone(&self.free).acquire_owned()).await;
                    let Ok(Ok(permit)) = permit else { continue };
                    permit
                }
            };
            return Slot { slots: Arc::clone(self), peer, id: 0, permit: Some(permit) };
        }
    }

    /// Evicts an idle connection; `None` if all connections are busy.
    pub fn evict_one(&self) -> Option<OwnedSemaphorePermit> {
        let mut idle = self.idle();
        let (peer, id, _) = idle.first()?;
        idle.remove(peer, id)
    }

    /// Evicts all idle connections, and from now on each one that becomes idle.
    pub fn close(&self) {
        let mut idle = self.idle();
        idle.closed = true;
        idle.connections.clear();
    }

    /// Waits until all connections have ended or are evicted.
    pub async fn drained(&self) {
        self.free.acquire_many(u32::try_from(self.count).unwrap_or(u32::MAX)).await.ok();
    }

    /// The number of connections, without evicted ones.
    pub fn taken(&self) -> usize {
        self.count - self.free.available_permits()
    }

    /// No code panics while it holds the lock.
    fn idle(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    /// Makes the connection idle; the receiver resolves when it is evicted.
    pub fn set_idle(&mut self) -> oneshot::Receiver<()> {
        let (evict, evicted) = oneshot::channel();
        let mut idle = self.slots.idle();
        if let Some(permit) = self.permit.take().filter(|_| !idle.closed) {
            idle.next_id += 1;
            self.id = idle.next_id;
            let connection = IdleConnection { since: Instant::now(), permit, _evict: evict };
            idle.connections.entry(self.peer).or_default().insert(self.id, connection);
        }
        evicted
    }

    /// Makes an idle connection busy; `false` if it was evicted.
    pub fn set_busy(&mut self) -> bool {
        self.permit = self.slots.idle().remove(self.peer, self.id);
        self.permit.is_some()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.idle().remove(self.peer, self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};
    use std::time::Duration;

    use tokio::time::timeout;

    use super::{Peer, Slots};

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
    }

    fn peer(number: u8) -> Peer {
        IpAddr::from(Ipv4Addr::new(10, 0, 0, number)).into()
    }

    #[test]
    fn oldest_idle_connection_is_evicted_and_busy_ones_never() {
        block_on(async {
            let slots = Slots::new(3);
            let mut taken = Vec::new();
            for _ in 0..3 {
                let mut slot = slots.take(peer(1)).await;
                let evicted = slot.set_idle();
                taken.push((slot, evicted));
            }
            assert!(taken[0].0.set_busy());
            let mut fourth = slots.take(peer(1)).await;
            let (mut second, evicted) = taken.remove(1);
            assert!(evicted.await.is_err() && !second.set_busy());
            assert!(taken[1].0.set_busy(), "the third one is not evicted");
            assert!(timeout(Duration::from_millis(300), slots.take(peer(1))).await.is_err(), "all are busy");
            assert_eq!(slots.taken(), 3);
            drop(fourth.set_idle());
            drop(fourth);
            slots.take(peer(1)).await;
        });
    }

    #[test]
    fn many_connections_of_one_peer_never_evict_that_of_another() {
        block_on(async {
            let slots = Slots::new(4);
            let mut other = slots.take(peer(1)).await;
            let evicted = other.set_idle();
            let mut taken = Vec::new();
            for _ in 0..6 {
                let mut slot = slots.take(peer(2)).await;
                let evicted = slot.set_idle();
                taken.push((slot, evicted));
            }
            let kept = taken.iter_mut().map(|(slot, _)| slot.set_busy()).collect::<Vec<_>>();
            assert_eq!(kept, [false, false, false, true, true, true]);
            assert!(other.set_busy());
            drop(evicted);
        });
    }

    #[test]
    fn closing_evicts_all_idle_connections() {
        block_on(async {
            let slots = Slots::new(9);
            let (mut idle, mut busy) = (slots.take(peer(1)).await, slots.take(peer(2)).await);
            let evicted = idle.set_idle();
            slots.close();
            evicted.await.ok();
            assert!(!idle.set_busy());
            busy.set_idle().await.ok();
            slots.drained().await;
            assert_eq!(slots.taken(), 0);
        });
    }
}
