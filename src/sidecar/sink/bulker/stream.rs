//! One stream of the sink: which request its rows go into, and what commit, finish and abort mean in each mode.

use std::sync::Arc;

use super::CHUNK;
use super::answer::Verdict;
use super::request::{Request, Server, Trouble};
use super::row::{Encoder, LONGEST_LINE, RowError};
use crate::airbyte::message::{Record, StreamName};
use crate::sidecar::sink::{Committed, SinkError, WriteMode};

/// A stream, open or over.
pub struct Stream {
    name: StreamName,
    table: String,
    /// `Merge` without a usable key is `Append`.
    mode: WriteMode,
    heads: Heads,
    encoder: Encoder,
    state: State,
    /// The table was replaced by a request that had to be ended early: all later rows are added to it.
    was_cut: bool,
}

/// The heads of a stream's requests; secret.
pub struct Heads {
    /// The first request of a stream that replaces its table.
    pub replace: Arc<str>,
    /// All others.
    pub batch: Arc<str>,
    /// They name a key: the same rows twice are one.
    pub keyed: bool,
}

enum State {
    /// No row is under way.
    Idle,
    /// Rows are.
    Active(Box<Request>),
    /// It failed.
    Failed(SinkError),
    /// Finished or aborted.
    Over,
}

impl Stream {
    /// A stream that writes to this table.
    pub fn new(name: StreamName, table: String, mode: WriteMode, heads: Heads, encoder: Encoder) -> Self {
        Self { name, table, mode, heads, encoder, state: State::Idle, was_cut: false }
    }

    /// Memory of the chunk that is being filled.
    pub fn filling(&mut self) -> usize {
        match &mut self.state {
            State::Active(request) => request.chunk().memory(),
            _ => 0,
        }
    }

    /// Takes one row.
    pub fn write(&mut self, server: &mut Server, record: &Record<'_>) -> Result<(), SinkError> {
        self.check()?;
        if matches!(self.state, State::Idle) {
            self.state = State::Active(Box::new(self.request()));
        }
        let State::Active(request) = &mut self.state else { return Ok(()) };
        let chunk = request.chunk();
        if let Err(error) = self.encoder.push(&record.data, record.emitted_at, chunk.body()) {
            let error = self.row_error(&error);
            return self.fail(server, error);
        }
        let full = chunk.len() >= CHUNK;
        request.count_row();
        if full { self.flush(server) } else { Ok(()) }
    }

    /// Sends what there is, because the chunk is full or memory is needed.
    pub fn flush(&mut self, server: &mut Server) -> Result<(), SinkError> {
        let State::Active(request) = &mut self.state else { return Ok(()) };
        match request.flush(server) {
            Ok(()) => self.cut_if_old(server),
            Err(trouble) => self.fail(server, self.error(&trouble)),
        }
    }

    /// Ends a request that is open for as long as it may, with all rows in it.
    fn cut_if_old(&mut self, server: &mut Server) -> Result<(), SinkError> {
        match &self.state {
            State::Active(request) if request.is_old(server) => {}
            _ => return Ok(()),
        }
        self.close(server)?;
        self.was_cut = self.mode == WriteMode::Replace;
        Ok(())
    }

    /// Looks after a request that is open: it must be neither too old nor silent for too long.
    pub fn tend(&mut self, server: &mut Server) -> Result<(), SinkError> {
        self.cut_if_old(server)?;
        let State::Active(request) = &mut self.state else { return Ok(()) };
        match request.keep_alive(server) {
            Ok(()) => Ok(()),
            Err(trouble) => self.fail(server, self.error(&trouble)),
        }
    }

    /// Whether the table was replaced before all rows were there.
    pub fn was_cut(&self) -> bool {
        self.was_cut
    }

    /// Makes the rows so far durable, where the mode does that before the end.
    pub fn commit(&mut self, server: &mut Server) -> Result<Committed, SinkError> {
        self.check()?;
        // Also after a cut: a run that resumed here would replace the table with the rest of the rows.
        if self.mode == WriteMode::Replace {
            return Ok(Committed::Deferred);
        }
        self.close(server).map(|_| Committed::Durable)
    }

    /// Commits for the last time; replaces the table in that mode. Says what became of it.
    pub fn finish(&mut self, server: &mut Server) -> Result<Verdict, SinkError> {
        self.check()?;
        if matches!(self.state, State::Idle) && self.mode == WriteMode::Replace && !self.was_cut {
            self.state = State::Active(Box::new(self.request()));
        }
        let verdict = self.close(server)?;
        self.state = State::Over;
        Ok(verdict)
    }

    /// Commits for the last time, and replaces nothing: Bulker does not tell whether a table has rows. Says whether the
    /// stream's rows are in the table.
    pub fn cut(&mut self, server: &mut Server) -> Result<bool, SinkError> {
        self.check()?;
        if self.mode == WriteMode::Replace && !self.was_cut {
            self.abort(server);
            return Ok(false);
        }
        self.close(server)?;
        self.state = State::Over;
        Ok(true)
    }

    /// Gives up what is not committed.
    pub fn abort(&mut self, server: &mut Server) {
        match std::mem::replace(&mut self.state, State::Over) {
            State::Active(request) => request.abort(server),
            failed @ State::Failed(_) => self.state = failed,
            State::Idle | State::Over => {}
        }
    }

    fn request(&self) -> Request {
        if self.mode == WriteMode::Replace && !self.was_cut {
            return Request::new(Arc::clone(&self.heads.replace), true);
        }
        Request::new(Arc::clone(&self.heads.batch), self.heads.keyed)
    }

    /// Ends the request that is open, if one is.
    fn close(&mut self, server: &mut Server) -> Result<Verdict, SinkError> {
        match std::mem::replace(&mut self.state, State::Idle) {
            State::Active(request) => match request.finish(server) {
                Ok(verdict) => Ok(verdict),
                Err(trouble) => self.fail(server, self.error(&trouble)),
            },
            other => {
                self.state = other;
                Ok(Verdict::Loaded)
            }
        }
    }

    /// From now on the stream only repeats why it failed.
    fn fail<T>(&mut self, server: &mut Server, error: SinkError) -> Result<T, SinkError> {
        let copy = error.clone();
        if let State::Active(request) = std::mem::replace(&mut self.state, State::Failed(copy)) {
            request.abort(server);
        }
        Err(error)
    }

    fn check(&self) -> Result<(), SinkError> {
        match &self.state {
            State::Idle | State::Active(_) => Ok(()),
            State::Failed(error) => Err(error.clone()),
            State::Over => Err(SinkError::permanent(format!("stream {:?} is over", self.name.key()))),
        }
    }

    fn error(&self, trouble: &Trouble) -> SinkError {
        let text = format!("{}: {}", self.subject(), trouble.text);
        SinkError { text, transient: trouble.transient }
    }

    /// What is spoken of.
    pub fn subject(&self) -> String {
        format!("stream {:?}, table {:?}", self.name.key(), self.table)
    }

    fn row_error(&self, error: &RowError) -> SinkError {
        let subject = self.subject();
        let text = match error {
            RowError::NotAnObject => format!("{subject}: a row is not a JSON object"),
            RowError::TooLong(bytes) => {
                format!("{subject}: a row of {bytes} bytes is too long: Bulker takes less than {LONGEST_LINE} bytes")
            }
        };
        SinkError::permanent(text)
    }
}
