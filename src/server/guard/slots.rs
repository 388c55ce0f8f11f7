//! The open connections: a bounded number of slots, and which connection is evicted for a new one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

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
    /// Oldest first.
    connections: BTreeMap<u64, IdleConnection>,
    /// No connection may become idle.
    closed: bool,
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
    id: u64,
    /// `None` while the connection is idle, and when it was evicted.
    permit: Option<OwnedSemaphorePermit>,
}

impl Slots {
    pub fn new(count: usize) -> Arc<Self> {
        Arc::new(Self { count, free: Arc::new(Semaphore::new(count)), idle: Mutex::default() })
    }

    /// A slot for a new connection. If none is free, takes that of the connection that has been idle longest; `None` if
    /// all connections are busy.
    pub async fn take(self: &Arc<Self>) -> Option<Slot> {
        loop {
            let permit = if let Ok(permit) = Arc::clone(&self.free).try_acquire_owned() {
                permit
            } else {
                let since = self.idle().connections.first_key_value()?.1.since;
                if since.elapsed() < MIN_IDLE_TIME {
                    tokio::time::sleep_until((since + MIN_IDLE_TIME).into()).await;
                    continue;
                }
                self.evict_oldest()?
            };
            return Some(Slot { slots: Arc::clone(self), id: 0, permit: Some(permit) });
        }
    }

    /// Evicts the connection that has been idle longest; `None` if all connections are busy.
    pub fn evict_oldest(&self) -> Option<OwnedSemaphorePermit> {
        self.idle().connections.pop_first().map(|(_, connection)| connection.permit)
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
            idle.connections.insert(self.id, connection);
        }
        evicted
    }

    /// Makes an idle connection busy; `false` if it was evicted.
    pub fn set_busy(&mut self) -> bool {
        self.permit = self.slots.idle().connections.remove(&self.id).map(|connection| connection.permit);
        self.permit.is_some()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.idle().connections.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::Slots;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
    }

    #[test]
    fn oldest_idle_connection_is_evicted_and_busy_ones_never() {
        block_on(async {
            let slots = Slots::new(3);
            let mut taken = Vec::new();
            for _ in 0..3 {
                let mut slot = slots.take().await.expect("a free slot");
                let evicted = slot.set_idle();
                taken.push((slot, evicted));
            }
            assert!(taken[0].0.set_busy());
            let mut fourth = slots.take().await.expect("the second one is evicted");
            let (mut second, evicted) = taken.remove(1);
            assert!(evicted.await.is_err() && !second.set_busy());
            assert!(taken[1].0.set_busy(), "the third one is not evicted");
            assert!(slots.take().await.is_none(), "all are busy");
            assert_eq!(slots.taken(), 3);
            drop(fourth.set_idle());
            drop(fourth);
            assert!(slots.take().await.is_some(), "it has ended");
        });
    }

    #[test]
    fn closing_evicts_all_idle_connections() {
        block_on(async {
            let slots = Slots::new(9);
            let (mut idle, mut busy) = (slots.take().await.expect("a slot"), slots.take().await.expect("a slot"));
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
