//! One stream of the sink: which request its rows go into, and what commit, finish and abort mean in each mode.

use std::sync::Arc;

use super::request::{Request, Server};
use super::response::{Outcome, RequestError};
use super::row::{Encoder, LINE_LIMIT, RowError};
use crate::airbyte::message::{Record, StreamName};
use crate::sidecar::sink::{Committed, SinkError, WriteMode};

/// Approximate size of the chunks in which rows are sent.
const CHUNK: usize = 128 << 10;

/// A stream and its open request, if there is one.
pub struct Stream {
    name: StreamName,
    table: String,
    /// `Append` instead of `Merge` without a usable key.
    mode: WriteMode,
    /// The first request with rows replaces the table, whatever the mode.
    replaces_first: bool,
    heads: RequestHeads,
    encoder: Encoder,
    state: State,
    /// A request that had to end early has replaced the table: all later rows are added.
    was_split: bool,
}

/// The heads of a stream's requests; secret.
pub struct RequestHeads {
    /// For the request that replaces the table.
    pub replace: Arc<str>,
    /// For all others.
    pub batch: Arc<str>,
    /// They name a key: rows that are sent twice are merged.
    pub keyed: bool,
}

enum State {
    /// No open request.
    Idle,
    /// An open request.
    Active(Box<Request>),
    /// Failed, for this reason.
    Failed(SinkError),
    /// Finished or aborted.
    Closed,
}

impl Stream {
    /// A stream that is written to this table. Besides its mode: whether the first request replaces the table.
    pub fn new(
        name: StreamName,
        table: String,
        (mode, replaces_first): (WriteMode, bool),
        heads: RequestHeads,
        encoder: Encoder,
    ) -> Self {
        Self { name, table, mode, replaces_first, heads, encoder, state: State::Idle, was_split: false }
    }

    /// Allocated memory of the chunk under construction, in bytes.
    pub fn chunk_memory(&mut self) -> usize {
        match &mut self.state {
            State::Active(request) => request.chunk().memory(),
            _ => 0,
        }
    }

    /// Takes one row.
    pub fn write(&mut self, server: &mut Server, record: &Record<'_>) -> Result<(), SinkError> {
        self.check_open()?;
        if matches!(self.state, State::Idle) {
            self.state = State::Active(Box::new(self.request()));
        }
        let State::Active(request) = &mut self.state else { return Ok(()) };
        let chunk = request.chunk();
        if let Err(error) = self.encoder.push(&record.data, chunk.body()) {
            let error = self.row_error(&error);
            return self.fail(server, error);
        }
        let is_full = chunk.len() >= CHUNK;
        request.count_row();
        if is_full { self.flush(server) } else { Ok(()) }
    }

    /// Sends the chunk under construction.
    pub fn flush(&mut self, server: &mut Server) -> Result<(), SinkError> {
        let State::Active(request) = &mut self.state else { return Ok(()) };
        match request.flush(server) {
            Ok(()) => self.split_if_overdue(server),
            Err(error) => self.fail(server, self.request_error(&error)),
        }
    }

    /// Ends a request that is open for too long.
    fn split_if_overdue(&mut self, server: &mut Server) -> Result<(), SinkError> {
        match &self.state {
            State::Active(request) if request.is_overdue(server) => {}
            _ => return Ok(()),
        }
        self.end_request(server)?;
        self.was_split = self.mode == WriteMode::Replace;
        Ok(())
    }

    /// Keeps the open request from becoming too old or idle.
    pub fn tick(&mut self, server: &mut Server) -> Result<(), SinkError> {
        self.split_if_overdue(server)?;
        let State::Active(request) = &mut self.state else { return Ok(()) };
        request.keep_alive(server).or_else(|error| self.fail(server, self.request_error(&error)))
    }

    /// Whether the table was replaced before all rows were there.
    pub fn was_split(&self) -> bool {
        self.was_split
    }

    /// Makes the rows so far durable, if the mode allows it before the end.
    pub fn commit(&mut self, server: &mut Server) -> Result<Committed, SinkError> {
        self.check_open()?;
        // Also after a split: a run that resumed here would replace the table with the remaining rows.
        if self.mode == WriteMode::Replace {
            return Ok(Committed::Deferred);
        }
        self.end_request(server).map(|_| Committed::Durable)
    }

    /// Commits for the last time, and replaces the table in that mode.
    pub fn finish(&mut self, server: &mut Server) -> Result<Outcome, SinkError> {
        self.check_open()?;
        if matches!(self.state, State::Idle) && self.replaces_table() && !self.replaces_first {
            self.state = State::Active(Box::new(self.request()));
        }
        let outcome = self.end_request(server)?;
        self.state = State::Closed;
        Ok(outcome)
    }

    /// Commits for the last time without replacing the table: Bulker does not report whether the table has rows. Returns
    /// whether the stream's rows are in the table.
    pub fn finish_early(&mut self, server: &mut Server) -> Result<bool, SinkError> {
        self.check_open()?;
        if self.replaces_table() {
            self.abort(server);
            return Ok(false);
        }
        self.end_request(server)?;
        self.state = State::Closed;
        Ok(true)
    }

    /// Discards the rows since the last commit.
    pub fn abort(&mut self, server: &mut Server) {
        match std::mem::replace(&mut self.state, State::Closed) {
            State::Active(request) => request.abort(server),
            failed @ State::Failed(_) => self.state = failed,
            State::Idle | State::Closed => {}
        }
    }

    /// Whether the next request replaces the table.
    fn replaces_table(&self) -> bool {
        self.replaces_first || (self.mode == WriteMode::Replace && !self.was_split)
    }

    fn request(&self) -> Request {
        if self.replaces_table() {
            return Request::new(Arc::clone(&self.heads.replace), true);
        }
        Request::new(Arc::clone(&self.heads.batch), self.heads.keyed)
    }

    /// Ends the open request, if there is one.
    fn end_request(&mut self, server: &mut Server) -> Result<Outcome, SinkError> {
        match std::mem::replace(&mut self.state, State::Idle) {
            State::Active(request) => {
                let ended = request.finish(server).or_else(|error| self.fail(server, self.request_error(&error)));
                self.replaces_first &= ended.is_err();
                ended
            }
            other => {
                self.state = other;
                Ok(Outcome::Loaded)
            }
        }
    }

    /// From now on every operation fails with this error.
    fn fail<T>(&mut self, server: &mut Server, error: SinkError) -> Result<T, SinkError> {
        if let State::Active(request) = std::mem::replace(&mut self.state, State::Failed(error.clone())) {
            request.abort(server);
        }
        Err(error)
    }

    fn check_open(&self) -> Result<(), SinkError> {
        match &self.state {
            State::Idle | State::Active(_) => Ok(()),
            State::Failed(error) => Err(error.clone()),
            State::Closed => Err(SinkError::permanent(format!("stream {:?} is closed", self.name.key()))),
        }
    }

    fn request_error(&self, error: &RequestError) -> SinkError {
        SinkError { text: format!("{}: {}", self.subject(), error.text), transient: error.transient }
    }

    /// The stream and its table, for messages.
    pub fn subject(&self) -> String {
        format!("stream {:?}, table {:?}", self.name.key(), self.table)
    }

    fn row_error(&self, error: &RowError) -> SinkError {
        let subject = self.subject();
        SinkError::permanent(match error {
            RowError::NotAnObject => format!("{subject}: a row is not a JSON object"),
            RowError::TooLong(bytes) => {
                format!("{subject}: a row of {bytes} bytes is too long: Bulker accepts less than {LINE_LIMIT} bytes")
            }
        })
    }
}
