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

/// The idle connections, oldest first: since when, and the sender that evicts the connection.
#[derive(Default)]
struct Idle {
    next_id: u64,
    connections: BTreeMap<u64, (Instant, oneshot::Sender<()>)>,
    /// No connection may become idle.
    closed: bool,
}

/// The slot of one connection; freed when dropped.
pub struct Slot {
    slots: Arc<Slots>,
    id: u64,
    _permit: OwnedSemaphorePermit,
}

impl Slots {
    pub fn new(count: usize) -> Arc<Self> {
        Arc::new(Self { count, free: Arc::new(Semaphore::new(count)), idle: Mutex::default() })
    }

    /// A slot for a new connection. If none is free, evicts the connection that has been idle longest and waits for its
    /// end; `None` if all connections are busy.
    pub async fn take(self: &Arc<Self>) -> Option<Slot> {
        loop {
            if let Ok(permit) = Arc::clone(&self.free).try_acquire_owned() {
                return Some(Slot { slots: Arc::clone(self), id: 0, _permit: permit });
            }
            let since = self.idle().connections.first_key_value().map(|(_, (since, _))| *since)?;
            if since.elapsed() < MIN_IDLE_TIME {
                tokio::time::sleep_until((since + MIN_IDLE_TIME).into()).await;
            } else if self.evict_oldest() {
                drop(self.free.acquire().await);
            }
        }
    }

    /// Evicts the connection that has been idle longest; whether there is one.
    pub fn evict_oldest(&self) -> bool {
        let oldest = self.idle().connections.pop_first();
        oldest.is_some_and(|(_, (_, evict))| {
            // Without a receiver the connection is ending anyway.
            evict.send(()).ok();
            true
        })
    }

    /// Evicts all idle connections, and from now on each one that becomes idle.
    pub fn close(&self) {
        let mut idle = self.idle();
        idle.closed = true;
        idle.connections.clear();
    }

    /// Waits until all connections have ended.
    pub async fn drained(&self) {
        self.free.acquire_many(u32::try_from(self.count).unwrap_or(u32::MAX)).await.ok();
    }

    /// The number of open connections.
    pub fn taken(&self) -> usize {
        self.count - self.free.available_permits()
    }

    /// No code panics while it holds the lock.
    fn idle(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    /// Makes the connection idle; the receiver resolves (in either way) when it is evicted.
    pub fn set_idle(&mut self) -> oneshot::Receiver<()> {
        let (evict, evicted) = oneshot::channel();
        let mut idle = self.slots.idle();
        if !idle.closed {
            idle.next_id += 1;
            self.id = idle.next_id;
            idle.connections.insert(self.id, (Instant::now(), evict));
        }
        evicted
    }

    /// Makes an idle connection busy; `false` if it was evicted.
    pub fn set_busy(&mut self) -> bool {
        self.slots.idle().connections.remove(&self.id).is_some()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.set_busy();
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
            let (mut second, evicted) = taken.remove(1);
            let ended = async {
                evicted.await.expect("the second one is evicted");
                assert!(!second.set_busy());
                drop(second);
            };
            let (mut fourth, ()) = tokio::join!(slots.take(), ended);
            assert!(taken[1].0.set_busy(), "the third one is not evicted");
            assert!(slots.take().await.is_none(), "all are busy");
            assert_eq!(slots.taken(), 3);
            let evicted = fourth.as_mut().expect("a slot").set_idle();
            drop(fourth);
            assert!(evicted.await.is_err() && slots.take().await.is_some(), "it has ended");
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
            assert_eq!(slots.taken(), 2);
            drop((idle, busy));
            slots.drained().await;
            assert_eq!(slots.taken(), 0);
        });
    }
}
