//! One stream of the sink: rows in, chunks out, and what commit, finish and abort mean in each mode.

use std::sync::mpsc::Receiver;

use super::courier::{Outcome, died};
use super::generation::{self, Collection, Mark};
use super::load::{Feed, Way};
use super::prepare::{Ending, Preparation, Prepared, as_columns};
use super::publish::Publication;
use super::row::{Chunk, Encoder, RowError};
use super::table::Table;
use super::{CHUNK, MOST_OPEN, Shared};
use crate::airbyte::message::Record;
use crate::sidecar::sink::{Committed, SinkError, StreamSpec, WriteMode};

/// While a chunk of so many bytes is loaded nothing else is encoded: it would be as much memory again.
const LARGE: usize = 16 << 20;

/// A stream, open or over.
pub struct Stream {
    spec: StreamSpec,
    schema: String,
    table: String,
    state: State,
}

enum State {
    /// Nothing was asked of the database yet.
    Idle,
    /// Its table is known.
    Active(Box<Active>),
    /// It failed: all its rows since the last commit are gone.
    Failed(SinkError),
    /// Finished or aborted.
    Over,
}

struct Active {
    encoder: Encoder,
    chunk: Chunk,
    /// Here, or on its way with a chunk.
    feed: Option<Box<Feed>>,
    outcome: Option<Receiver<Outcome>>,
    /// `Merge` without a usable key is `Append`.
    mode: WriteMode,
    ending: Ending,
    /// How far the collection goes that the staging table is.
    mark: Mark,
    /// A collection that goes once there is something better.
    obsolete: Option<Collection>,
    /// The staging table is a collection: it outlives the run.
    kept: bool,
}

impl Stream {
    /// A stream that writes to this table.
    pub fn new(spec: StreamSpec, schema: String, table: String) -> Self {
        Self { spec, schema, table, state: State::Idle }
    }

    /// Memory of the chunk that is being filled.
    pub fn filling(&self) -> usize {
        match &self.state {
            State::Active(active) => active.chunk.bytes.capacity(),
            _ => 0,
        }
    }

    /// Takes one row.
    pub fn write(&mut self, shared: &mut Shared, record: &Record<'_>) -> Result<(), SinkError> {
        let active = self.active(shared)?;
        let pushed = active.encoder.push(&record.data, record.emitted_at, &mut active.chunk);
        if pushed.is_ok() && active.chunk.bytes.len() < CHUNK {
            return Ok(());
        }
        let done = match pushed {
            Ok(()) => active.send(shared),
            Err(error) => Err(self.row_error(&error)),
        };
        self.settle(shared, done)
    }

    /// Sends what there is, because memory is needed.
    pub fn send_early(&mut self, shared: &mut Shared) {
        if let State::Active(active) = &mut self.state {
            let sent = active.send(shared);
            // Told at the next use.
            let _ = self.settle(shared, sent);
        }
    }

    /// Makes the rows so far durable, where the mode does that before the end.
    pub fn commit(&mut self, shared: &mut Shared) -> Result<Committed, SinkError> {
        let active = self.active(shared)?;
        let done = match active.ending {
            Ending::AsItGoes => active.commit(shared),
            Ending::Renew { kept: true, .. } => active.keep(shared),
            Ending::Replace | Ending::Renew { kept: false, .. } => return Ok(Committed::Deferred),
        };
        self.settle(shared, done).map(|()| Committed::Durable)
    }

    /// Commits for the last time; replaces what the mode or the generation says.
    pub fn finish(&mut self, shared: &mut Shared) -> Result<(), SinkError> {
        let active = self.active(shared)?;
        let done = match active.ending {
            Ending::AsItGoes => active.commit(shared),
            Ending::Replace => active.publish(shared, None),
            Ending::Renew { minimum, .. } => active.publish(shared, Some(minimum)),
        };
        self.settle(shared, done)?;
        self.abort(shared);
        Ok(())
    }

    /// Commits for the last time, and replaces nothing. Says whether the rows are in the table.
    pub fn cut(&mut self, shared: &mut Shared) -> Result<bool, SinkError> {
        let active = self.active(shared)?;
        let done = match active.ending {
            Ending::AsItGoes => active.commit(shared).map(|()| true),
            Ending::Replace => active.fill(shared),
            // There are rows that are to go. What a state stands for is kept for the run that goes on from there.
            Ending::Renew { .. } => Ok(false),
        };
        let is_in = self.settle(shared, done)?;
        self.abort(shared);
        Ok(is_in)
    }

    /// Gives up what is not committed and removes what was staged.
    pub fn abort(&mut self, shared: &mut Shared) {
        if let State::Active(mut active) = std::mem::replace(&mut self.state, State::Over) {
            active.clean_up(shared);
        }
    }

    /// A failed stream is cleaned up at once, and from then on only repeats why it failed.
    fn settle<T>(&mut self, shared: &mut Shared, done: Result<T, SinkError>) -> Result<T, SinkError> {
        if let Err(error) = &done {
            let copy = error.clone();
            if let State::Active(mut active) = std::mem::replace(&mut self.state, State::Failed(copy)) {
                active.clean_up(shared);
            }
        }
        done
    }

    fn active(&mut self, shared: &mut Shared) -> Result<&mut Active, SinkError> {
        if matches!(self.state, State::Idle) {
            let active = self.prepare(shared)?;
            self.state = State::Active(Box::new(active));
        }
        match &mut self.state {
            State::Active(active) => Ok(active),
            State::Failed(error) => Err(error.clone()),
            State::Idle | State::Over => {
                Err(SinkError::permanent(format!("stream {:?} is over", self.spec.name.key())))
            }
        }
    }

    /// Looks the table up and lays the columns out.
    fn prepare(&self, shared: &mut Shared) -> Result<Active, SinkError> {
        let (run, mut session) = (shared.place.run, shared.session());
        let preparation = Preparation { spec: &self.spec, schema: &self.schema, table: &self.table, run };
        let Prepared { target, staging, layout, mode, ending, mark, sequence, obsolete } =
            preparation.prepare(&mut session)?;
        shared.give_back(Some(session));
        shared.unreachable = false;
        // A collection that was taken over is there already.
        let kept = staging.exists();
        let feed = Some(Box::new(Feed::new(target, Some(staging), shared.kept.clone())));
        let encoder = Encoder::new(layout, sequence, self.spec.generation.id);
        Ok(Active { encoder, chunk: Chunk::default(), feed, outcome: None, mode, ending, mark, obsolete, kept })
    }

    fn row_error(&self, error: &RowError) -> SinkError {
        let (stream, table) = (self.spec.name.key(), format!("{:?}.{:?}", self.schema, self.table));
        let text = match error {
            RowError::Invalid(why) => format!("a row of stream {stream:?} for table {table} is not JSON: {why}"),
            RowError::NoKey(part) => format!(
                "a row of stream {stream:?} for table {table} has no usable value for {part:?}, \
                 which is part of its primary key"
            ),
        };
        SinkError::permanent(text)
    }
}

impl Active {
    /// Waits for the feed, if it is under way.
    fn feed(&mut self, shared: &mut Shared) -> Result<&mut Feed, SinkError> {
        if let Some(outcome) = self.outcome.take() {
            let (mut feed, loaded) = outcome.recv().map_err(|_| died())?;
            if feed.way != Some(Way::Direct) {
                shared.give_back(feed.take_session());
            }
            self.feed = Some(feed);
            if let Some(chunk) = loaded? {
                shared.recycle(chunk.bytes);
            }
        }
        self.feed.as_deref_mut().ok_or_else(died)
    }

    /// Hands the chunk to the thread that loads.
    fn send(&mut self, shared: &mut Shared) -> Result<(), SinkError> {
        if self.chunk.rows == 0 {
            return Ok(());
        }
        self.ready(shared)?;
        let empty = Chunk { bytes: shared.spare.pop().unwrap_or_default(), ..Chunk::default() };
        let chunk = std::mem::replace(&mut self.chunk, empty);
        let is_large = chunk.bytes.len() >= LARGE;
        if let Some(feed) = self.feed.take() {
            self.outcome = Some(shared.courier.send(feed, chunk)?);
        }
        if is_large {
            self.feed(shared)?;
        }
        Ok(())
    }

    /// Loads the chunk here and now.
    fn flush(&mut self, shared: &mut Shared) -> Result<&mut Feed, SinkError> {
        self.ready(shared)?;
        let chunk = std::mem::take(&mut self.chunk);
        let feed = self.feed(shared)?;
        if chunk.rows > 0
            && let Some(chunk) = feed.load(chunk)?
        {
            shared.recycle(chunk.bytes);
        }
        self.feed(shared)
    }

    /// Makes the feed ready for the chunk: columns, way, session.
    fn ready(&mut self, shared: &mut Shared) -> Result<(), SinkError> {
        self.encoder.seal(&mut self.chunk);
        let (any_rows, mode, ending) = (self.chunk.rows > 0, self.mode, self.ending);
        let known = self.feed(shared)?.columns.len();
        let added = self.encoder.layout.columns()[known..].to_vec();
        let feed = self.feed(shared)?;
        feed.columns.extend(added);
        if any_rows && feed.way.is_none() {
            let direct = mode == WriteMode::Append && ending == Ending::AsItGoes && shared.open < MOST_OPEN;
            feed.way = Some(if direct { Way::Direct } else { Way::Staged });
            shared.open += usize::from(direct);
        }
        if feed.session.is_none() {
            feed.session = Some(shared.session());
        }
        Ok(())
    }

    fn commit(&mut self, shared: &mut Shared) -> Result<(), SinkError> {
        let (key, cursor) = self.key();
        let feed = self.flush(shared)?;
        match feed.way {
            Some(Way::Direct) => {
                feed.commit_direct()?;
                shared.open -= 1;
            }
            Some(Way::Staged) => {
                feed.publish(|staging, target, columns, session| {
                    let publication = Publication { staging, columns, key: &key, cursor: cursor.as_deref() };
                    publication.merge(session, target)
                })?;
                feed.way = None;
            }
            // No rows; but the table is there from the first commit on.
            None => feed.make_target()?,
        }
        shared.give_back(feed.take_session());
        Ok(())
    }

    /// By which columns rows are merged, and which one tells the newer row.
    fn key(&self) -> (Vec<String>, Option<String>) {
        if self.mode == WriteMode::Append {
            return (Vec::new(), None);
        }
        let layout = &self.encoder.layout;
        let key = Some(layout.key_columns()).filter(|key| !key.is_empty());
        // In this run no row may have come that shows the columns.
        (
            key.unwrap_or_else(|| self.mark.key.clone()),
            layout.cursor_column().map(str::to_owned).or_else(|| self.mark.cursor.clone()),
        )
    }

    /// The rows so far are kept for the run that completes the generation.
    fn keep(&mut self, shared: &mut Shared) -> Result<(), SinkError> {
        self.flush(shared)?;
        let (key, cursor) = self.key();
        self.mark = Mark { rows: self.encoder.sequence(), key, cursor, generation: self.encoder.generation() };
        let (mark, obsolete, run) = (self.mark.clone(), self.obsolete.take(), shared.place.run);
        let feed = self.feed(shared)?;
        feed.publish(|staging, target, columns, session| {
            generation::keep(session, target, (staging, columns), run, &mark, obsolete.as_ref())
        })?;
        self.kept = true;
        let session = self.feed(shared)?.take_session();
        shared.give_back(session);
        Ok(())
    }

    /// Puts what was staged in the place of generations below `minimum`, or of all rows.
    fn publish(&mut self, shared: &mut Shared, minimum: Option<i64>) -> Result<(), SinkError> {
        self.flush(shared)?;
        let ((key, cursor), obsolete) = (self.key(), self.obsolete.take());
        let feed = self.feed(shared)?;
        feed.publish(|staging, target, columns, session| {
            let mut columns = columns.to_vec();
            if staging.exists() {
                // Earlier runs may have brought columns that this one has not seen.
                let (schema, name) = (&staging.schema, &staging.name);
                let staged = session
                    .atomically(&target.subject(), |client| Ok(Table::inspect_staging(client, schema, name)?.1))?;
                columns = as_columns(staged);
            }
            let publication = Publication { staging, columns: &columns, key: &key, cursor: cursor.as_deref() };
            match minimum {
                Some(minimum) => publication.renew(session, target, minimum, obsolete.as_ref()),
                None => publication.replace(session, target, obsolete.as_ref()),
            }
        })?;
        feed.way = None;
        self.kept = false;
        Ok(())
    }

    /// Puts what was staged into a table without rows. Says whether it was one. A collection that an earlier run left
    /// stays in either case: only what is complete is better.
    fn fill(&mut self, shared: &mut Shared) -> Result<bool, SinkError> {
        self.flush(shared)?;
        let (key, cursor) = self.key();
        self.feed(shared)?.publish(|staging, target, columns, session| {
            let publication = Publication { staging, columns, key: &key, cursor: cursor.as_deref() };
            publication.fill(session, target)
        })
    }

    /// Leaves nothing behind, as far as the database can be reached.
    fn clean_up(&mut self, shared: &mut Shared) {
        self.chunk = Chunk::default();
        // An outcome that is an error has been told, or comes too late.
        let _ = self.feed(shared);
        let Some(mut feed) = self.feed.take() else { return };
        if feed.way == Some(Way::Direct) {
            shared.open -= 1;
        }
        feed.roll_back();
        if feed.has_staging() && !self.kept && !shared.unreachable {
            let mut session = feed.session.take().unwrap_or_else(|| shared.session());
            if feed.drop_staging(&mut session).is_err() {
                // A connection that was idle may be one that the server closed meanwhile.
                session.drop_client();
                if let Err(trouble) = feed.drop_staging(&mut session) {
                    shared.unreachable = trouble.is_lost();
                    let why = session.error(&feed.target.subject(), &trouble).text;
                    tracing::warn!(%why, "a staging table stays behind: the next run drops it");
                }
            }
            feed.session = Some(session);
        }
        shared.give_back(feed.session.take());
    }
}
