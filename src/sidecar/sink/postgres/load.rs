//! The way of a stream's chunks into the database, and what is kept of them in case the server restarts.
//!
//! Two ways. *Direct*: one transaction over the target itself that stays open until the commit; its rows are kept, up to
//! a limit, to be sent again. *Staged*: each chunk is a transaction of its own over a staging table, so that nothing has
//! to be kept; the rows get from there to the target at the commit (see `publish`).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::layout::Column;
use super::row::Chunk;
use super::session::{Session, Trouble, copy};
use super::table::Table;
use crate::sidecar::sink::SinkError;

/// What one stream may keep for being sent again.
pub const KEPT_BY_STREAM: usize = 8 << 20;
/// What all streams together may keep.
pub const KEPT_BY_ALL: usize = 12 << 20;

/// Where the rows of a stream go first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Into the target, invisible until the commit.
    Direct,
    /// Into a staging table.
    Staged,
}

/// An open transaction over the target.
#[derive(Default)]
struct Open {
    /// The server's number of it.
    transaction: Option<i64>,
    kept: Vec<Chunk>,
    kept_bytes: usize,
    /// More was sent than may be kept.
    overflowed: bool,
}

/// One stream's way into the database. Moves between the sink's thread and the one that loads.
pub struct Feed {
    /// The connection: always there while a transaction is open, else lent for the time of a job.
    pub session: Option<Session>,
    /// The table in question.
    pub target: Table,
    /// Where rows are collected, if they are.
    pub staging: Option<Table>,
    /// The stream's columns, as far as any row has them.
    pub columns: Vec<Column>,
    /// Rows go this way until the next commit; `None` when none did so far.
    pub way: Option<Way>,
    open: Open,
    /// What all feeds keep.
    kept_by_all: Arc<AtomicUsize>,
}

impl Feed {
    /// A feed that has not done anything.
    pub fn new(target: Table, staging: Option<Table>, kept_by_all: Arc<AtomicUsize>) -> Self {
        Self { session: None, target, staging, columns: Vec::new(), way: None, open: Open::default(), kept_by_all }
    }

    /// Takes a session out of the feed, which then needs another one before it goes on.
    pub fn take_session(&mut self) -> Option<Session> {
        if self.open.transaction.is_some() { None } else { self.session.take() }
    }

    /// Loads a chunk. Returns it, if it need not be kept.
    pub fn load(&mut self, chunk: Chunk) -> Result<Option<Chunk>, SinkError> {
        let Some(mut session) = self.session.take() else { return Err(no_session()) };
        let loaded = match self.way {
            Some(Way::Staged) => self.load_staged(&mut session, chunk).map(Some),
            _ => self.load_direct(&mut session, chunk),
        };
        self.session = Some(session);
        loaded
    }

    fn load_staged(&mut self, session: &mut Session, chunk: Chunk) -> Result<Chunk, SinkError> {
        let Some(staging) = self.staging.as_mut() else { return Err(no_session()) };
        let columns = &self.columns[..chunk.columns];
        let (missing, sql) = (staging.missing(columns), staging.copy_sql(columns));
        session.atomically(&self.target.subject(), |client| {
            if let Some(missing) = &missing {
                client.batch_execute(missing)?;
            }
            copy(client, &sql, &chunk.bytes)
        })?;
        staging.has(columns);
        Ok(chunk)
    }

    fn load_direct(&mut self, session: &mut Session, chunk: Chunk) -> Result<Option<Chunk>, SinkError> {
        let replayable = !self.open.overflowed;
        let loaded = if replayable {
            session.persist(&self.target.subject(), |session| {
                let sent = self.resume(session).and_then(|()| self.send(session, &chunk));
                self.unless_locked(sent)
            })
        } else {
            self.send(session, &chunk)
        };
        if let Err(trouble) = loaded {
            let error = self.failed(session, &trouble);
            session.roll_back();
            self.open.transaction = None;
            return Err(error);
        }
        Ok(self.keep(chunk))
    }

    /// A lock that was not to be had ends the transaction: the next attempt is a new one.
    fn unless_locked(&mut self, done: Result<(), Trouble>) -> Result<(), Trouble> {
        if done.as_ref().is_err_and(Trouble::is_locked) {
            self.open.transaction = None;
        }
        done
    }

    /// Makes sure that the transaction is open and has all rows that are kept.
    fn resume(&mut self, session: &mut Session) -> Result<(), Trouble> {
        if self.open.transaction.is_some() && session.is_connected() {
            return Ok(());
        }
        self.open.transaction = None;
        // In a transaction of its own: it would lock readers out until the commit.
        if let Some(missing) = self.target.missing(&self.columns) {
            session.attempt_atomically(&self.target.subject(), |client| Ok(client.batch_execute(&missing)?))?;
            self.target.has(&self.columns);
        }
        self.open.transaction = Some(session.begin()?);
        for chunk in &self.open.kept {
            copy(session.client()?, &self.target.copy_sql(&self.columns[..chunk.columns]), &chunk.bytes)?;
        }
        Ok(())
    }

    /// Loads one chunk in the open transaction.
    fn send(&self, session: &mut Session, chunk: &Chunk) -> Result<(), Trouble> {
        if self.open.transaction.is_none() {
            return Err(lost());
        }
        let columns = &self.columns[..chunk.columns];
        // Columns that came since the transaction began. Not noted in the table: a rollback takes them away again.
        if let Some(missing) = self.target.missing(columns) {
            session.within_transaction(&self.target.subject(), &missing)?;
        }
        copy(session.client_in_transaction()?, &self.target.copy_sql(columns), &chunk.bytes)
    }

    /// Keeps a chunk as long as there is room; afterwards none is kept, for they are of use only together.
    fn keep(&mut self, mut chunk: Chunk) -> Option<Chunk> {
        if !self.open.overflowed {
            chunk.bytes.shrink_to_fit();
        }
        let size = chunk.bytes.capacity();
        if !self.open.overflowed && self.open.kept_bytes + size <= KEPT_BY_STREAM {
            let before = self.kept_by_all.fetch_add(size, Ordering::Relaxed);
            if before + size <= KEPT_BY_ALL {
                self.open.kept_bytes += size;
                self.open.kept.push(chunk);
                return None;
            }
            self.kept_by_all.fetch_sub(size, Ordering::Relaxed);
        }
        self.forget();
        self.open.overflowed = true;
        Some(chunk)
    }

    fn forget(&mut self) {
        self.kept_by_all.fetch_sub(self.open.kept_bytes, Ordering::Relaxed);
        self.open.kept_bytes = 0;
        self.open.kept.clear();
    }

    /// Commits the transaction over the target.
    pub fn commit_direct(&mut self) -> Result<(), SinkError> {
        let Some(mut session) = self.session.take() else { return Err(no_session()) };
        let committed = self.try_commit(&mut session);
        let committed = committed.map_err(|trouble| self.failed(&session, &trouble));
        if committed.is_ok() {
            self.target.has(&self.columns);
            self.forget();
            self.open = Open::default();
            self.way = None;
        }
        self.session = Some(session);
        committed
    }

    fn try_commit(&mut self, session: &mut Session) -> Result<(), Trouble> {
        if self.open.overflowed {
            return self.commit_once(session);
        }
        session.persist(&self.target.subject(), |session| {
            let resumed = self.resume(session);
            self.unless_locked(resumed)?;
            self.commit_once(session)
        })
    }

    fn commit_once(&mut self, session: &mut Session) -> Result<(), Trouble> {
        // A COMMIT without a transaction would succeed, and mean nothing.
        let Some(transaction) = self.open.transaction.take() else { return Err(lost()) };
        match session.commit() {
            Err(trouble) if trouble.is_lost() => {
                session.drop_client();
                if session.was_committed(transaction)? { Ok(()) } else { Err(trouble) }
            }
            committed => committed,
        }
    }

    /// The error for the sink's user.
    fn failed(&self, session: &Session, trouble: &Trouble) -> SinkError {
        let mut error = session.error(&self.target.subject(), trouble);
        if self.open.overflowed && trouble.is_lost() {
            error.text.push_str(
                "; more rows were under way than are kept for being sent again: \
                 the next run resumes from the state that was saved last",
            );
        }
        error
    }

    /// Publishes what was staged.
    pub fn publish<T>(
        &mut self,
        publish: impl FnOnce(&mut Table, &mut Table, &[Column], &mut Session) -> Result<T, SinkError>,
    ) -> Result<T, SinkError> {
        match (self.staging.as_mut(), self.session.as_mut()) {
            (Some(staging), Some(session)) => publish(staging, &mut self.target, &self.columns, session),
            _ => Err(no_session()),
        }
    }

    /// Makes the target, or the columns that it lacks.
    pub fn make_target(&mut self) -> Result<(), SinkError> {
        let Some(session) = self.session.as_mut() else { return Err(no_session()) };
        if let Some(missing) = self.target.missing(&self.columns) {
            session.atomically(&self.target.subject(), |client| Ok(client.batch_execute(&missing)?))?;
            self.target.has(&self.columns);
        }
        Ok(())
    }

    /// Ends an open transaction without its rows.
    pub fn roll_back(&mut self) {
        if let Some(session) = self.session.as_mut().filter(|_| self.open.transaction.is_some()) {
            session.roll_back();
        }
        self.forget();
        self.open = Open::default();
    }

    /// Whether there may be a staging table.
    pub fn has_staging(&self) -> bool {
        self.staging.as_ref().is_some_and(Table::exists) || self.way == Some(Way::Staged)
    }

    /// Drops the staging table; one attempt.
    pub fn drop_staging(&mut self, session: &mut Session) -> Result<(), Trouble> {
        let Some(staging) = self.staging.as_mut() else { return Ok(()) };
        session.client()?.batch_execute(&format!("DROP TABLE IF EXISTS {}", staging.quoted()))?;
        staging.gone();
        self.way = None;
        Ok(())
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.forget();
    }
}

fn lost() -> Trouble {
    Trouble::Lost("the connection was lost".to_owned())
}

fn no_session() -> SinkError {
    SinkError::permanent("the stream's connection is missing")
}
