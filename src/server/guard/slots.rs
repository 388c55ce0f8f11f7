//! The open connections: a bounded number of slots, and which connection is evicted for a new one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};

/// A connection is not evicted earlier: the thread that accepts connections also reads their heads, and one that was
/// just accepted may have sent its head already.
const MIN_IDLE_TIME: Duration = Duration::from_millis(100);

/// The slots of all connections.
#[derive(Default)]
pub struct Slots {
    inner: Mutex<Inner>,
    changed: Notify,
}

#[derive(Default)]
struct Inner {
    next_id: u64,
    /// Taken slots.
    taken: usize,
    /// Slots of idle connections, oldest first: since when, and the sender that evicts the connection.
    idle: BTreeMap<u64, (Instant, oneshot::Sender<()>)>,
    closed: bool,
}

/// The slot of one connection; freed when dropped.
pub struct Slot {
    slots: Arc<Slots>,
    id: u64,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// In [`Inner::idle`], unless it was evicted meanwhile.
    Idle,
    Busy,
    Evicted,
}

impl Slots {
    /// Takes a slot for an idle connection; the receiver resolves when the connection is evicted. If `max` slots are
    /// taken, evicts the connection that has been idle longest; `None` if all are busy.
    pub fn take(self: &Arc<Self>, max: usize) -> Option<(Slot, oneshot::Receiver<()>)> {
        let mut inner = self.lock();
        if inner.taken >= max && !inner.evict_oldest() {
            return None;
        }
        inner.taken += 1;
        inner.next_id += 1;
        let mut slot = Slot { slots: Arc::clone(self), id: inner.next_id, state: State::Busy };
        drop(inner);
        let evicted = slot.set_idle();
        Some((slot, evicted))
    }

    /// How long to wait until a connection may be evicted, if one must be.
    pub fn eviction_delay(&self, max: usize) -> Option<Duration> {
        let inner = self.lock();
        let (since, _) = inner.idle.first_key_value().filter(|_| inner.taken >= max)?.1;
        MIN_IDLE_TIME.checked_sub(since.elapsed()).filter(|wait| !wait.is_zero())
    }

    /// Evicts the connection that has been idle longest; whether there is one.
    pub fn evict_oldest(&self) -> bool {
        self.lock().evict_oldest()
    }

    /// Evicts all idle connections, and from now on each one that becomes idle.
    pub fn close(&self) {
        let mut inner = self.lock();
        inner.closed = true;
        while inner.evict_oldest() {}
        drop(inner);
        self.changed.notify_waiters();
    }

    /// Waits until no connection is busy.
    pub async fn drained(&self) {
        loop {
            let changed = self.changed.notified();
            if self.busy() == 0 {
                return;
            }
            changed.await;
        }
    }

    /// The number of busy connections.
    pub fn busy(&self) -> usize {
        let inner = self.lock();
        inner.taken - inner.idle.len()
    }

    /// No code panics while it holds the lock.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn evict_oldest(&mut self) -> bool {
        let Some((_, (_, evict))) = self.idle.pop_first() else { return false };
        self.taken -= 1;
        evict.send(()).ok();
        true
    }
}

impl Slot {
    /// Makes the connection idle; the receiver resolves when it is evicted.
    pub fn set_idle(&mut self) -> oneshot::Receiver<()> {
        let (evict, evicted) = oneshot::channel();
        if self.state == State::Busy {
            let mut inner = self.slots.lock();
            if inner.closed {
                inner.taken -= 1;
                self.state = State::Evicted;
            } else {
                inner.idle.insert(self.id, (Instant::now(), evict));
                self.state = State::Idle;
            }
            drop(inner);
            self.slots.changed.notify_waiters();
        }
        evicted
    }

    /// Makes the connection busy; `false` if it was evicted.
    pub fn set_busy(&mut self) -> bool {
        if self.state == State::Idle {
            let was_idle = self.slots.lock().idle.remove(&self.id).is_some();
            self.state = if was_idle { State::Busy } else { State::Evicted };
        }
        self.state == State::Busy
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if self.set_busy() {
            self.slots.lock().taken -= 1;
            self.slots.changed.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::Slots;

    #[test]
    fn oldest_idle_connection_is_evicted_and_busy_ones_never() {
        let slots = Arc::new(Slots::default());
        let (mut first, _) = slots.take(3).expect("a free slot");
        let (mut second, mut second_evicted) = slots.take(3).expect("a free slot");
        let (third, mut third_evicted) = slots.take(3).expect("a free slot");
        assert!(first.set_busy());
        let (mut fourth, _) = slots.take(3).expect("the second one is evicted");
        assert!(fourth.set_busy());
        assert!(second_evicted.try_recv().is_ok() && third_evicted.try_recv().is_err());
        assert!(!second.set_busy(), "it was evicted");
        let (mut fifth, _) = slots.take(3).expect("the third one is evicted");
        assert!(fifth.set_busy());
        assert!(third_evicted.try_recv().is_ok());
        assert!(slots.take(3).is_none(), "all are busy");
        assert_eq!(slots.busy(), 3);
        drop((first, second, third, fourth));
        assert_eq!(slots.busy(), 1);
        drop(fifth);
        assert_eq!(slots.busy(), 0);
        assert!(slots.take(1).is_some());
    }

    #[test]
    fn closing_evicts_all_idle_connections() {
        let slots = Arc::new(Slots::default());
        let (idle, mut evicted) = slots.take(9).expect("a free slot");
        let (mut busy, _) = slots.take(9).expect("a free slot");
        assert!(busy.set_busy());
        slots.close();
        assert!(evicted.try_recv().is_ok());
        assert_eq!(slots.busy(), 1);
        let mut evicted = busy.set_idle();
        assert!(!matches!(evicted.try_recv(), Err(tokio::sync::oneshot::error::TryRecvError::Empty)));
        assert_eq!(slots.busy(), 0);
        drop((idle, busy));
        assert_eq!(slots.busy(), 0);
    }
}
