//! The `bulker` destination: rows over HTTP to a Bulker instance, `POST {url}/bulk/{destinationId}`.
//!
//! | file | owns |
//! |---|---|
//! | `config` | `destinationConfig` → where requests go |
//! | `fields`, `row` | names, the schema header, the key; rows as lines |
//! | `http`, `wire` | heads, chunks and answers as bytes; a connection that hears while it speaks |
//! | `request`, `answer` | one request, when it is sent again, and what its answer means |
//! | `stream` | which request a stream's rows go into |
//!
//! What Bulker leaves open is decided so:
//! * A stream that replaces its table does so with one request, which stays open over all states: until its end the old
//!   rows are there, whatever becomes of the source. Only a request that is open for [`OPEN`] is ended early; what comes
//!   after it is added, and the user is told that the table is incomplete meanwhile. No state is stored before the
//!   stream's end even then: a run that resumed in the middle would replace the table with the rest alone.
//! * A request that has nothing to send for long sends blanks behind its last row, so that nothing in between ends it.
//! * Other streams end their request at each commit. Without a key a request that got no answer is not sent again: its
//!   rows may be in the table.
//! * There is no way to empty a table: a request without rows answers 200 and does nothing, whatever its schema. It is
//!   sent all the same, for a Bulker that says in its answer that it did something is believed. Otherwise the stream
//!   succeeds with a warning in the task's log that old rows, if there are any, are still there: to fail it would let no
//!   sync succeed that has a stream which never has rows, nor keep the state of all its streams.
//! * A refresh of a generation (`minimum_generation_id`) replaces the table, when it does not go on from a state.
//! * There is no namespace either: a namespace becomes the beginning of the table's name, `namespace_table`.
//! * Of two streams with one table name the later one gets a suffix made of its name.
//! * Each request has a connection of its own: on an old one nobody could tell whether a request was ever heard.

mod answer;
mod config;
mod fields;
mod http;
mod request;
mod row;
mod stream;
#[cfg(test)]
mod tests;
mod wire;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use answer::Verdict;
use config::Settings;
use fields::Fields;
use http::Post;
use request::{Limits, Server, Trouble};
use row::Encoder;
use stream::{Heads, Stream};

use super::postgres::names::{self, Kind};
use super::{Committed, Connect, Sink, SinkError, StreamIndex, StreamSpec, WriteMode};
use crate::airbyte::message::{Record, StreamName};
use crate::failure::Failure;
use crate::task::Task;

/// A request is ended when it is open for so long: Bulker ends it after 30 minutes, without its rows.
const OPEN: Duration = Duration::from_mins(25);
/// Limits of time. Loading into a warehouse takes long; a server that restarts does not.
const LIMITS: Limits = Limits {
    patience: Duration::from_mins(5),
    stall: Duration::from_mins(5),
    answer: Duration::from_mins(30),
    // Proxies and load balancers end what is silent for a minute.
    idle: Duration::from_secs(20),
    open: OPEN,
};
/// How long the first connection may take: then a wrong address is more likely than a restart.
const FIRST_PATIENCE: Duration = Duration::from_secs(20);
/// Rows are sent in chunks of about this size.
const CHUNK: usize = 128 << 10;
/// Memory of all chunks that are being filled. Beyond it the largest one is sent early.
const FILLING: usize = 4 << 20;

/// Reads the configuration.
pub(super) fn parse(config: &Value) -> Result<Box<dyn Connect>, Failure> {
    Ok(Box::new(Settings::parse(config)?))
}

impl Connect for Settings {
    fn connect(&self, task: &Task) -> Result<Box<dyn Sink>, SinkError> {
        let sink = BulkerSink::new(self, &task.sync_id, &task.task_id, LIMITS)?;
        // A wrong address is told before the source is read for nothing.
        let error = |trouble: Trouble| SinkError {
            text: format!("{}: {}", self.place, trouble.text),
            transient: trouble.transient,
        };
        sink.server.reach(FIRST_PATIENCE).map_err(error)?;
        Ok(Box::new(sink))
    }
}

/// Sends rows to Bulker.
pub struct BulkerSink {
    server: Server,
    /// Secret.
    authorization: String,
    task_id: String,
    sync_id: String,
    streams: Vec<Stream>,
    /// Whose table it is, by its cleaned name.
    tables: HashMap<String, StreamName>,
    /// Memory of the chunks that are being filled.
    filling: usize,
    warnings: Vec<String>,
}

impl BulkerSink {
    /// Makes ready, without a connection.
    fn new(settings: &Settings, sync_id: &str, task_id: &str, limits: Limits) -> Result<Self, SinkError> {
        let tls = settings.place.secure.then(wire::tls).transpose();
        let tls = tls.map_err(|error| SinkError::permanent(format!("preparing TLS: {error}")))?;
        let destination_id = settings.destination_id.clone().unwrap_or_else(|| sync_id.to_owned());
        Ok(Self {
            server: Server { place: settings.place.clone(), destination_id, tls, limits, kept: 0, given_up: false },
            authorization: settings.authorization(),
            task_id: task_id.to_owned(),
            sync_id: sync_id.to_owned(),
            streams: Vec::new(),
            tables: HashMap::new(),
            filling: 0,
            warnings: Vec::new(),
        })
    }

    /// The table of a stream; one that is another stream's gets a suffix.
    fn table_of(&mut self, spec: &StreamSpec) -> String {
        let mut table = match &spec.schema {
            Some(namespace) => format!("{namespace}_{}", spec.table),
            None => spec.table.clone(),
        };
        if spec.to_same_case {
            table = table.to_lowercase();
        }
        // Bulker cleans names as well: what only differs in what it replaces is one table.
        let cleaned = |table: &str| names::clean(table, Kind::Table, false);
        if self.tables.get(&cleaned(&table)).is_some_and(|owner| *owner != spec.name) {
            table = names::suffixed(&table, &spec.name.key());
            let stream = spec.name.key();
            self.warnings.push(format!(
                "stream {stream:?}: another stream's table has the same name: its rows go to table {table:?}"
            ));
        }
        self.tables.insert(cleaned(&table), spec.name.clone());
        table
    }

    fn heads(&self, table: &str, key: &[String], schema: Option<&str>) -> Heads {
        let job = format!("{}_{table}_{}", self.sync_id, self.task_id);
        let head = |mode: &'static str| -> Arc<str> {
            let mut query = vec![("tableName", table), ("mode", mode)];
            query.extend(key.iter().map(|part| ("pk", part.as_str())));
            query.extend([("taskId", self.task_id.as_str()), ("jobId", job.as_str())]);
            let post = Post {
                place: &self.server.place,
                destination_id: &self.server.destination_id,
                query: &query,
                authorization: &self.authorization,
                schema,
            };
            post.head().into()
        };
        Heads { replace: head("replace_table"), batch: head("batch"), keyed: !key.is_empty() }
    }

    /// Does something with a stream; errors name the server.
    fn with<T>(
        &mut self,
        index: StreamIndex,
        act: impl FnOnce(&mut Stream, &mut Server) -> Result<T, SinkError>,
    ) -> Result<T, SinkError> {
        let Some(stream) = self.streams.get_mut(index) else {
            return Err(SinkError::permanent(format!("stream {index} was never opened")));
        };
        let was_cut = stream.was_cut();
        let done = act(stream, &mut self.server);
        if stream.was_cut() && !was_cut {
            self.warnings.push(format!(
                "{}: the source needs more than {} minutes for it, and Bulker's requests must be shorter: the table has \
                 its first rows, and is incomplete until the stream is finished",
                stream.subject(),
                self.server.limits.open.as_secs() / 60
            ));
        }
        done.map_err(|error| SinkError { text: format!("{}: {}", self.server.place, error.text), ..error })
    }

    /// Sends the largest chunk that is being filled. An error of another stream than the one that was written to is
    /// told when that one is used next.
    fn send_largest(&mut self) {
        let sizes: Vec<usize> = self.streams.iter_mut().map(Stream::filling).collect();
        if let Some((largest, _)) = sizes.iter().enumerate().max_by_key(|(_, size)| **size) {
            let _ = self.with(largest, Stream::flush);
        }
        self.filling = self.streams.iter_mut().map(Stream::filling).sum();
    }
}

impl Sink for BulkerSink {
    fn open(&mut self, spec: StreamSpec) -> Result<StreamIndex, SinkError> {
        let table = self.table_of(&spec);
        let fields = Fields::new(&spec, &table);
        let mut mode = spec.mode;
        if mode == WriteMode::Merge && fields.key.is_empty() {
            let stream = spec.name.key();
            self.warnings.push(format!("stream {stream:?} has no usable primary key: its rows are added, not merged"));
            mode = WriteMode::Append;
        }
        let key = if mode == WriteMode::Append { &[] } else { fields.key.as_slice() };
        if spec.generation.minimum > 0 && mode != WriteMode::Replace {
            if spec.generation.resumes {
                let (stream, minimum) = (spec.name.key(), spec.generation.minimum);
                self.warnings.push(format!(
                    "stream {stream:?}: rows of generations before {minimum} stay in table {table:?}: Bulker deletes no \
                     rows, and a read that goes on from a state cannot replace the table; a read without one does"
                ));
            } else {
                mode = WriteMode::Replace;
            }
        }
        let heads = self.heads(&table, key, fields.header.as_deref());
        let encoder = Encoder::new(fields.names, spec.to_same_case, spec.add_meta);
        self.streams.push(Stream::new(spec.name, table, mode, heads, encoder));
        Ok(self.streams.len() - 1)
    }

    fn write(&mut self, index: StreamIndex, record: &Record<'_>) -> Result<(), SinkError> {
        let mut sizes = (0, 0);
        let written = self.with(index, |stream, server| {
            sizes.0 = stream.filling();
            let written = stream.write(server, record);
            sizes.1 = stream.filling();
            written
        });
        if sizes.0 != sizes.1 {
            self.filling = (self.filling + sizes.1).saturating_sub(sizes.0);
            if self.filling > FILLING {
                self.send_largest();
            }
        }
        written
    }

    fn commit(&mut self, index: StreamIndex) -> Result<Committed, SinkError> {
        self.with(index, Stream::commit)
    }

    fn finish(&mut self, index: StreamIndex) -> Result<(), SinkError> {
        let verdict = self.with(index, Stream::finish)?;
        if verdict == Verdict::Ignored {
            let subject = self.streams[index].subject();
            self.warnings.push(format!(
                "{subject}: the source has no rows, and Bulker cannot empty a table: rows that earlier runs left in it \
                 are still there; delete them yourself"
            ));
        }
        Ok(())
    }

    fn finish_early(&mut self, index: StreamIndex) -> Result<bool, SinkError> {
        self.with(index, Stream::cut)
    }

    fn abort(&mut self, index: StreamIndex) {
        if let Some(stream) = self.streams.get_mut(index) {
            stream.abort(&mut self.server);
        }
    }

    fn tick(&mut self) {
        for index in 0..self.streams.len() {
            // An error is told when the stream is used next.
            let _ = self.with(index, Stream::tend);
        }
    }

    fn warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }
}

impl Drop for BulkerSink {
    fn drop(&mut self) {
        for stream in &mut self.streams {
            stream.abort(&mut self.server);
        }
    }
}
