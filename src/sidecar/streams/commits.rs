//! When rows are committed, and when the states after them may be stored.
//!
//! A source may send thousands of states, and a commit for each of them would take longer than loading the rows. So the
//! commits of a stream are at least [`JOIN_INTERVAL`] apart: a state that comes earlier waits, and only the last one is
//! stored. The same holds for states of all streams.
//!
//! Rows that follow a waiting state are held in memory: the commit ends with the state, and an interruption repeats no
//! row. If they need too much memory, the commit is not delayed any longer.

use std::time::{Duration, Instant};

use super::{NOT_SELECTED, PendingGlobalState, Storable, Stream, Streams};
use crate::airbyte::message::{Record, StreamName};
use crate::sidecar::sink::{Committed, SinkError, WriteMode};
use crate::task::StreamStatus;

/// The least time between two commits of a stream for its states: what a killed task repeats at most.
pub(super) const JOIN_INTERVAL: Duration = Duration::from_secs(1);
/// Maximum memory of held records, in bytes.
const MAX_HELD_BYTES: usize = 4 << 20;

/// When to commit rows of a stream whose source sends no state: a long transaction keeps a database from cleaning up,
/// and uncommitted rows must be sent again after an interruption.
#[derive(Debug, Clone, Copy)]
pub struct CommitLimits {
    /// Maximum size of uncommitted row JSON, in bytes.
    pub bytes: u64,
    /// Maximum age of an uncommitted row.
    pub interval: Duration,
}

impl Default for CommitLimits {
    fn default() -> Self {
        Self { bytes: 256 << 20, interval: Duration::from_mins(5) }
    }
}

/// How often the age of uncommitted rows is checked within the interval.
const CHECKS_PER_INTERVAL: u32 = 20;

/// Records that follow a waiting state.
#[derive(Default)]
pub(super) struct HeldRecords {
    records: Vec<Record<'static>>,
    bytes: usize,
}

impl Streams {
    /// Handles a stream's state. Returns the states that may be stored.
    pub fn state(&mut self, name: &StreamName, state: String) -> Storable {
        let at = self.position(name);
        if let Some(at) = at {
            if let Some(reason) = self.may_be_unmapped(at).filter(|_| !self.all[at].is_deferred) {
                self.incomplete(at, &reason);
            }
            match self.all[at].status {
                StreamStatus::Success => self.storable.push((self.all[at].key.clone(), state)),
                StreamStatus::Pending | StreamStatus::Running => self.await_commit(at, state),
                _ => {}
            }
        } else {
            self.warn(None, format!("ignoring states of stream {}, {NOT_SELECTED}", name.key()));
        }
        self.take_storable()
    }

    fn await_commit(&mut self, at: usize, state: String) {
        // They precede this state.
        self.write_held_or_refuse(at);
        let stream = &mut self.all[at];
        if !stream.is_open() {
            return;
        }
        if stream.pending_state.replace(state).is_none() {
            self.waiting.push(at);
        }
        if is_due(stream.last_commit) {
            self.commit_or_refuse(at);
        }
    }

    /// Handles a state of all streams. Returns the states that may be stored.
    pub fn global_state(&mut self, key: String, state: String) -> Storable {
        for at in 0..self.all.len() {
            self.write_held_or_refuse(at);
            self.all[at].written_at_global = self.all[at].written;
        }
        self.pending_global_state = Some(PendingGlobalState { key, state, is_committed: false });
        if is_due(self.last_global_commit) {
            self.commit_global();
        }
        self.take_storable()
    }

    /// The states whose rows have become durable.
    pub fn take_storable(&mut self) -> Storable {
        self.release_global_state();
        std::mem::take(&mut self.storable)
    }

    /// Does work that depends on time: commits for states that have waited, and for streams that exceed
    /// [`CommitLimits::interval`]. Returns the states that may be stored.
    pub fn tick(&mut self) -> Storable {
        self.sink.tick();
        if is_due(self.last_global_commit) {
            self.commit_global();
        }
        let all = &self.all;
        self.waiting.retain(|at| all[*at].has_waiting_state());
        for at in self.waiting.clone() {
            if is_due(self.all[at].last_commit) && self.all[at].has_waiting_state() {
                self.commit_or_refuse(at);
            }
        }
        self.commit_overdue();
        self.take_storable()
    }

    fn commit_overdue(&mut self) {
        let now = Instant::now();
        if now < self.next_check {
            return;
        }
        let limit = self.limits.interval;
        self.next_check = now + limit / CHECKS_PER_INTERVAL;
        for at in 0..self.all.len() {
            let stream = &self.all[at];
            let is_overdue = stream.uncommitted_since.is_some_and(|since| now.duration_since(since) >= limit);
            if is_overdue && !stream.is_deferred && stream.is_open() {
                self.commit_or_refuse(at);
            }
        }
    }

    /// Takes a row of an open stream: passes it to the sink, or holds it.
    pub(super) fn accept(&mut self, at: usize, record: &Record<'_>) -> Result<(), SinkError> {
        if !self.holds_rows(at) {
            return self.write(at, record);
        }
        let held = &mut self.all[at].held;
        let bytes = record.data.len() + record.stream.len() + size_of::<Record<'_>>();
        held.records.push(record.clone().into_owned());
        held.bytes += bytes;
        self.held_bytes += bytes;
        if self.held_bytes > MAX_HELD_BYTES {
            if self.all[at].has_waiting_state() {
                self.commit(at)?;
            }
            if self.holds_rows(at) {
                self.commit_global();
            }
        }
        Ok(())
    }

    fn write(&mut self, at: usize, record: &Record<'_>) -> Result<(), SinkError> {
        let stream = &mut self.all[at];
        let Some(index) = stream.sink_index else { return Ok(()) };
        stream.written += 1;
        stream.written_bytes += record.line_bytes;
        stream.uncommitted_bytes += record.data.len() as u64;
        stream.uncommitted_since.get_or_insert_with(Instant::now);
        let is_full = stream.uncommitted_bytes >= self.limits.bytes && !stream.is_deferred;
        self.sink.write(index, record)?;
        if is_full { self.commit(at) } else { Ok(()) }
    }

    /// Whether rows of the stream would follow a waiting state.
    fn holds_rows(&self, at: usize) -> bool {
        let waits = self.pending_global_state.as_ref().is_some_and(|pending| !pending.is_committed);
        !self.all[at].is_deferred && (waits || self.all[at].pending_state.is_some())
    }

    /// Passes the held rows of a stream to the sink.
    pub(super) fn write_held_or_refuse(&mut self, at: usize) {
        if let Err(error) = self.write_held(at) {
            self.refuse(at, &error);
        }
    }

    fn write_held(&mut self, at: usize) -> Result<(), SinkError> {
        let records = self.take_held(at);
        records.iter().try_for_each(|record| self.write(at, record))
    }

    /// Takes the held rows of a stream.
    pub(super) fn take_held(&mut self, at: usize) -> Vec<Record<'static>> {
        let held = std::mem::take(&mut self.all[at].held);
        self.held_bytes -= held.bytes;
        held.records
    }

    /// Commits the rows before the waiting states of a stream that ends early, without the rows after them.
    pub(super) fn commit_waiting(&mut self, at: usize) {
        self.take_held(at);
        self.commit_global();
        if self.all[at].has_waiting_state() {
            self.commit_or_refuse(at);
        }
    }

    /// Commits the rows before a waiting state of all streams.
    pub(super) fn commit_global(&mut self) {
        if self.pending_global_state.as_ref().is_none_or(|pending| pending.is_committed) {
            return;
        }
        for at in 0..self.all.len() {
            let stream = &self.all[at];
            if stream.status == StreamStatus::Running || (stream.is_open() && stream.deletes_generations()) {
                self.commit_or_refuse(at);
            }
        }
        if let Some(pending) = &mut self.pending_global_state {
            pending.is_committed = true;
        }
        self.last_global_commit = Some(Instant::now());
        self.release_global_state();
    }

    /// Makes the pending state of all streams storable if all rows before it are durable, and drops it if a stream has
    /// failed.
    fn release_global_state(&mut self) {
        if self.pending_global_state.is_none() {
            return;
        }
        let has_failed = |stream: &Stream| !stream.is_open() && stream.status != StreamStatus::Success;
        if self.all.iter().any(has_failed) {
            self.pending_global_state = None;
        }
        let is_durable = |stream: &Stream| !stream.is_deferred && stream.committed >= stream.written_at_global;
        if !self.all.iter().any(|stream| stream.is_open() && !is_durable(stream)) {
            let pending = self.pending_global_state.take();
            self.storable.extend(pending.map(|PendingGlobalState { key, state, .. }| (key, state)));
        }
        if self.held_bytes > 0 {
            for at in 0..self.all.len() {
                if !self.holds_rows(at) {
                    self.write_held_or_refuse(at);
                }
            }
        }
    }

    /// Commits a stream, or fails it if the destination refuses.
    pub(super) fn commit_or_refuse(&mut self, at: usize) {
        if let Err(error) = self.commit(at) {
            self.refuse(at, &error);
        }
    }

    fn commit(&mut self, at: usize) -> Result<(), SinkError> {
        let stream = &self.all[at];
        let Some(index) = stream.sink_index else { return Ok(()) };
        // A stream without rows leaves no trace, unless its generation must be recorded.
        let is_unused = stream.status == StreamStatus::Pending && !stream.deletes_generations();
        let has_changed = stream.written > stream.committed || stream.last_commit.is_none();
        let committed = match stream.is_deferred {
            true => Committed::Deferred,
            false if is_unused || !has_changed => Committed::Durable,
            false => self.sink.commit(index)?,
        };
        let stream = &mut self.all[at];
        stream.last_commit = Some(Instant::now());
        (stream.uncommitted_bytes, stream.uncommitted_since) = (0, None);
        match committed {
            Committed::Deferred => stream.is_deferred = true,
            Committed::Durable => {
                let state = stream.pending_state.take();
                self.storable.extend(state.map(|state| (stream.key.clone(), state)));
                if stream.committed < stream.written {
                    self.loaded += usize::from(stream.committed == 0);
                    stream.record_committed();
                    stream.load = self.sink.counts(index);
                    self.note_activity(at);
                }
            }
        }
        if self.holds_rows(at) { Ok(()) } else { self.write_held(at) }
    }
}

impl Stream {
    /// A state waits for the next commit.
    pub(super) fn has_waiting_state(&self) -> bool {
        self.pending_state.is_some() && !self.is_deferred && self.is_open()
    }

    /// All rows that the sink has taken are durable.
    pub(super) fn record_committed(&mut self) {
        (self.committed, self.committed_bytes) = (self.written, self.written_bytes);
    }

    /// Rows of earlier generations are deleted when the stream is complete.
    pub(super) fn deletes_generations(&self) -> bool {
        self.spec.generation.minimum > 0 && self.spec.mode != WriteMode::Replace
    }
}

/// Whether the next state commits at once.
fn is_due(last_commit: Option<Instant>) -> bool {
    last_commit.is_none_or(|last| last.elapsed() >= JOIN_INTERVAL)
}
