//! Who is connected: how many, and which of them may be sent away in favour of a new one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};

/// A connection that came just now may have sent its head already: the thread that reads it is the one that accepts.
const FRESH: Duration = Duration::from_millis(100);

/// All connections.
#[derive(Default)]
pub struct Table {
    inner: Mutex<Inner>,
    quiet: Notify,
}

#[derive(Default)]
struct Inner {
    next: u64,
    /// Connections that count, whatever they do.
    open: usize,
    /// Those that have nothing in work, oldest first: since when, and how to tell them to go.
    idle: BTreeMap<u64, (Instant, oneshot::Sender<()>)>,
    closing: bool,
}

/// The place of one connection; given back when it is dropped.
pub struct Place {
    table: Arc<Table>,
    id: u64,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// In the map; when it is there no more, it was sent away and counts no more.
    Idle,
    Working,
    SentAway,
}

impl Table {
    /// A place among at most `most`, with nothing in work yet; the receiver is that of [`Place::idle`]. If all are
    /// taken, the connection that has had nothing in work for the longest time is sent away; `None`: all have
    /// something in work.
    pub fn enter(self: &Arc<Self>, most: usize) -> Option<(Place, oneshot::Receiver<()>)> {
        let mut inner = self.lock();
        if inner.open >= most && !inner.send_oldest_away() {
            return None;
        }
        inner.open += 1;
        inner.next += 1;
        let mut place = Place { table: Arc::clone(self), id: inner.next, state: State::Working };
        drop(inner);
        // At once, before it runs for the first time: a burst of new connections must not look like work.
        let told = place.idle();
        Some((place, told))
    }

    /// How long to wait before a new connection may displace another one: in a flood also those that are displaced
    /// have had a moment to be heard.
    pub fn haste(&self, most: usize) -> Option<Duration> {
        let inner = self.lock();
        let (since, _) = inner.idle.first_key_value().filter(|_| inner.open >= most)?.1;
        FRESH.checked_sub(since.elapsed()).filter(|wait| !wait.is_zero())
    }

    /// Sends the connection away that has had nothing in work for the longest time.
    pub fn send_oldest_away(&self) -> bool {
        self.lock().send_oldest_away()
    }

    /// Sends away all that have nothing in work, from now on at once.
    pub fn close(&self) {
        let mut inner = self.lock();
        inner.closing = true;
        while inner.send_oldest_away() {}
        drop(inner);
        self.quiet.notify_waiters();
    }

    /// Waits until nothing is in work.
    pub async fn quiet(&self) {
        loop {
            let changed = self.quiet.notified();
            if self.working() == 0 {
                return;
            }
            changed.await;
        }
    }

    /// How many have something in work.
    pub fn working(&self) -> usize {
        let inner = self.lock();
        inner.open - inner.idle.len()
    }

    /// No panic leaves the table half changed.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn send_oldest_away(&mut self) -> bool {
        let Some((_, (_, tell))) = self.idle.pop_first() else { return false };
        self.open -= 1;
        tell.send(()).ok();
        true
    }
}

impl Place {
    /// From now on nothing is in work: resolves (in whatever way) when the connection has to go.
    pub fn idle(&mut self) -> oneshot::Receiver<()> {
        let (tell, told) = oneshot::channel();
        if self.state == State::Working {
            let mut inner = self.table.lock();
            if inner.closing {
                inner.open -= 1;
                self.state = State::SentAway;
            } else {
                inner.idle.insert(self.id, (Instant::now(), tell));
                self.state = State::Idle;
            }
            drop(inner);
            self.table.quiet.notify_waiters();
        }
        told
    }

    /// From now on something is in work. `false`: too late, the connection was sent away.
    pub fn work(&mut self) -> bool {
        if self.state == State::Idle {
            let was_there = self.table.lock().idle.remove(&self.id).is_some();
            self.state = if was_there { State::Working } else { State::SentAway };
        }
        self.state == State::Working
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.work() {
            self.table.lock().open -= 1;
            self.table.quiet.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::Table;

    #[test]
    fn the_oldest_without_work_goes_first_and_work_is_never_sent_away() {
        let table = Arc::new(Table::default());
        let (mut first, _) = table.enter(3).expect("room");
        let (mut second, mut second_told) = table.enter(3).expect("room");
        let (third, mut third_told) = table.enter(3).expect("room");
        assert!(first.work());
        let (mut fourth, _) = table.enter(3).expect("the second one goes");
        assert!(fourth.work());
        assert!(second_told.try_recv().is_ok() && third_told.try_recv().is_err());
        assert!(!second.work(), "it was sent away");
        let (mut fifth, _) = table.enter(3).expect("the third one goes");
        assert!(fifth.work());
        assert!(third_told.try_recv().is_ok());
        assert!(table.enter(3).is_none(), "all have something in work");
        assert_eq!(table.working(), 3);
        drop((first, second, third, fourth));
        assert_eq!(table.working(), 1);
        drop(fifth);
        assert_eq!(table.working(), 0);
        assert!(table.enter(1).is_some());
    }

    #[test]
    fn a_closed_table_sends_everybody_away_who_has_nothing_in_work() {
        let table = Arc::new(Table::default());
        let (idle, mut told) = table.enter(9).expect("room");
        let (mut busy, _) = table.enter(9).expect("room");
        assert!(busy.work());
        table.close();
        assert!(told.try_recv().is_ok());
        assert_eq!(table.working(), 1);
        let mut told = busy.idle();
        assert!(!matches!(told.try_recv(), Err(tokio::sync::oneshot::error::TryRecvError::Empty)));
        assert_eq!(table.working(), 0);
        drop((idle, busy));
        assert_eq!(table.working(), 0);
    }
}
