//! The `postgres` destination: rows through COPY into tables, by the rules of the existing implementation.
//!
//! | file | owns |
//! |---|---|
//! | `config` | `destinationConfig` → a database to connect to |
//! | `names`, `types`, `number`, `time` | what columns are called and hold |
//! | `layout`, `room` | which field goes to which column |
//! | `row`, `value`, `binary` | what COPY is given of a row |
//! | `session`, `table`, `load`, `publish` | connections and transactions, DDL, the way into the target |
//! | `generation` | rows of a refresh that are collected over several runs |
//! | `prepare`, `stream` | what is to become of a stream's rows, and what each of its commits means |
//! | `courier` | the thread that loads while rows are encoded |
//!
//! What the facts leave open is decided so:
//! * An existing column's type is never changed. A value that does not fit is null, and goes to `_unmapped_data`; a
//!   number of which a floating-point column keeps only the nearest value is stored there exactly, too. So is what a
//!   table cannot take: a row has to fit into a page of 8 KiB, and a table has at most 1600 columns.
//! * Two fields or streams whose cleaned names are equal do not share: the later one gets a suffix made of its name.
//! * A row without a value for a part of its key fails its stream: it could be neither merged nor kept unique.
//! * A replacement with a key keeps one row of each key, as a merge does.
//! * The cursor decides against rows that are there already as it does within a batch: an older row never overwrites a
//!   newer one, equal cursors let the later one win, and none is older than any. So the table does not depend on where
//!   batches end, nor on rows that come again after an interruption. (Airbyte's destinations do so, too; the existing
//!   implementation looks at the cursor within a batch only.)
//! * A primary key named `jitsu_pk_…` on other columns than the stream's is dropped: it is ours, and in the way.

mod binary;
mod config;
mod courier;
mod generation;
mod layout;
mod load;
pub(super) mod names;
mod number;
mod prepare;
mod publish;
mod room;
mod row;
mod session;
mod stream;
mod table;
#[cfg(test)]
mod tests;
mod time;
pub(super) mod types;
mod value;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use config::Settings;
use courier::Courier;
use names::Kind;
use serde_json::Value;
use session::{Place, Session};
use stream::Stream;

use super::{BACKOFF, Committed, Connect, Sink, SinkError, StreamIndex, StreamSpec};
use crate::airbyte::message::{Record, StreamName};
use crate::failure::Failure;
use crate::task::Task;

/// How long a database that went away is waited for: a restart or a fail-over takes less.
const PATIENCE: Duration = Duration::from_mins(5);
/// The same before anything has begun: then a wrong address is more likely than an outage.
const FIRST_PATIENCE: Duration = Duration::from_secs(20);
/// How many times that long a lock is waited for, which a user's long query may hold: an hour.
const LOCK_PATIENCE: u32 = 12;
/// Rows are sent in chunks of about this size: a little less than what a buffer that doubles arrives at.
const CHUNK: usize = (1 << 20) - (32 << 10);
/// Memory of all chunks that are being filled. Beyond it the largest one is sent early.
const FILLING: usize = 4 << 20;
/// Streams that may have a transaction open over their target at once; the others collect their rows in staging tables,
/// which needs no connection between chunks.
const MOST_OPEN: usize = 8;
/// Connections that are kept between uses.
const MOST_IDLE: usize = 2;

/// Reads the configuration.
pub(super) fn parse(config: &Value) -> Result<Box<dyn Connect>, Failure> {
    Ok(Box::new(Settings::parse(config)?))
}

impl Connect for Settings {
    fn connect(&self, _task: &Task) -> Result<Box<dyn Sink>, SinkError> {
        Ok(Box::new(PostgresSink::connect(self, PATIENCE)?))
    }
}

/// What the streams of a sink share.
struct Shared {
    place: Arc<Place>,
    idle: Vec<Session>,
    courier: Courier,
    /// Streams with an open transaction.
    open: usize,
    kept: Arc<AtomicUsize>,
    /// The last attempt to clean up found no server: the next ones would only wait for it again.
    unreachable: bool,
    /// Buffers to be used again.
    spare: Vec<Vec<u8>>,
}

impl Shared {
    fn session(&mut self) -> Session {
        self.idle.pop().unwrap_or_else(|| Session::new(self.place.clone()))
    }

    fn give_back(&mut self, session: Option<Session>) {
        if self.idle.len() < MOST_IDLE {
            self.idle.extend(session.filter(Session::is_connected));
        }
    }

    fn recycle(&mut self, mut buffer: Vec<u8>) {
        if self.spare.len() < 2 && buffer.capacity() <= 2 * CHUNK {
            buffer.clear();
            self.spare.push(buffer);
        }
    }
}

/// Loads rows into a Postgres database.
pub struct PostgresSink {
    shared: Shared,
    streams: Vec<Stream>,
    default_schema: String,
    /// Whose table it is.
    tables: HashMap<(String, String), StreamName>,
    /// Memory of the chunks that are being filled.
    filling: usize,
}

impl PostgresSink {
    /// Connects. `patience` is how long a connection that is lost later on is waited for.
    pub fn connect(settings: &Settings, patience: Duration) -> Result<Self, SinkError> {
        let run = uuid::Uuid::new_v4().as_u64_pair().0.cast_signed();
        let place = Arc::new(Place { target: settings.target.clone(), run, patience });
        let mut session = Session::new(place.clone());
        let mut retry = BACKOFF.within(patience.min(FIRST_PATIENCE));
        while let Err(trouble) = session.client().map(drop) {
            if !trouble.is_lost() || !retry.wait() {
                return Err(session.error("connecting", &trouble));
            }
            tracing::warn!(destination = %place.target.address(), "cannot connect, trying again");
        }
        let shared = Shared {
            place,
            idle: vec![session],
            courier: Courier::start()?,
            open: 0,
            kept: Arc::default(),
            unreachable: false,
            spare: Vec::new(),
        };
        Ok(Self {
            shared,
            streams: Vec::new(),
            default_schema: settings.default_schema.clone(),
            tables: HashMap::new(),
            filling: 0,
        })
    }

    /// The table of a stream; one that is another stream's gets a suffix.
    fn table_of(&mut self, spec: &StreamSpec) -> (String, String) {
        let schema = match &spec.schema {
            Some(schema) => names::clean(schema, Kind::Schema, spec.to_same_case),
            None => self.default_schema.clone(),
        };
        let mut table = names::clean(&spec.table, Kind::Table, spec.to_same_case);
        let owner = self.tables.get(&(schema.clone(), table.clone()));
        if owner.is_some_and(|owner| *owner != spec.name) {
            table = names::suffixed(&table, &spec.name.key());
            tracing::warn!(stream = %spec.name.key(), %table, "another stream's table has the same name: using a suffix");
        }
        self.tables.insert((schema.clone(), table.clone()), spec.name.clone());
        (schema, table)
    }

    fn stream(&mut self, index: StreamIndex) -> Result<(&mut Stream, &mut Shared), SinkError> {
        match self.streams.get_mut(index) {
            Some(stream) => Ok((stream, &mut self.shared)),
            None => Err(SinkError::permanent(format!("stream {index} was never opened"))),
        }
    }
}

impl Sink for PostgresSink {
    fn open(&mut self, spec: StreamSpec) -> Result<StreamIndex, SinkError> {
        let (schema, table) = self.table_of(&spec);
        self.streams.push(Stream::new(spec, schema, table));
        Ok(self.streams.len() - 1)
    }

    fn write(&mut self, index: StreamIndex, record: &Record<'_>) -> Result<(), SinkError> {
        let (stream, shared) = self.stream(index)?;
        let before = stream.filling();
        stream.write(shared, record)?;
        let after = stream.filling();
        self.filling = (self.filling + after).saturating_sub(before);
        if self.filling > FILLING && after != before {
            self.send_largest();
        }
        Ok(())
    }

    fn commit(&mut self, index: StreamIndex) -> Result<Committed, SinkError> {
        let (stream, shared) = self.stream(index)?;
        stream.commit(shared)
    }

    fn finish(&mut self, index: StreamIndex) -> Result<(), SinkError> {
        let (stream, shared) = self.stream(index)?;
        stream.finish(shared)
    }

    fn finish_early(&mut self, index: StreamIndex) -> Result<bool, SinkError> {
        let (stream, shared) = self.stream(index)?;
        stream.cut(shared)
    }

    fn abort(&mut self, index: StreamIndex) {
        if let Ok((stream, shared)) = self.stream(index) {
            stream.abort(shared);
        }
    }
}

impl PostgresSink {
    /// Sends the largest chunk that is being filled. An error of another stream than the one that was written to is
    /// told when that one is used next.
    fn send_largest(&mut self) {
        if let Some(largest) = self.streams.iter_mut().max_by_key(|stream| stream.filling()) {
            largest.send_early(&mut self.shared);
        }
        self.filling = self.streams.iter().map(Stream::filling).sum();
    }
}

impl Drop for PostgresSink {
    fn drop(&mut self) {
        for stream in &mut self.streams {
            stream.abort(&mut self.shared);
        }
    }
}
