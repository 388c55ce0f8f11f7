//! The `bulker` destination: rows over HTTP to a Bulker instance, `POST {url}/bulk/{destinationId}`.
//!
//! | module | owns |
//! |---|---|
//! | `config` | `destinationConfig` |
//! | `fields`, `row` | names, the schema header, the key; rows as lines |
//! | `http`, `connection` | heads, chunks and responses as bytes; sending while receiving |
//! | `response`, `request` | what a response means; one request, and when it is sent again |
//! | `stream` | which request the rows of a stream go into |
//!
//! Decisions where Bulker's behaviour leaves a choice:
//! * A stream that replaces its table does so with one request, which stays open over all states: the old rows remain
//!   until its end, whatever happens to the source. Only a request that is open for [`MAX_OPEN`] is ended early: later
//!   rows are added, and a warning reports that the table is incomplete until the stream is finished. Its states are
//!   stored at the end of the stream even then: a run that resumed earlier would replace the table with the remaining
//!   rows.
//! * An idle request sends spaces after its last row, so that no proxy closes the connection.
//! * Other streams end their request at each commit. Without a key, a request that got no response is not sent again: its
//!   rows may be in the table.
//! * Bulker cannot empty a table: it answers a request without rows with 200 and does nothing. Such a request is sent
//!   nevertheless, for a Bulker whose response reports a result. Otherwise the stream succeeds with a warning that old
//!   rows may remain: failing it would fail every sync with a stream that never has rows, including the state of all its
//!   streams.
//! * A refresh of a generation (`minimum_generation_id`) replaces the table, unless it resumes from a state.
//! * Bulker has no namespaces: a namespace becomes a prefix of the table's name, `namespace_table`.
//! * Of two streams with the same table name, one gets a suffix derived from its name: not the one whose name needs no
//!   change, else the later one. Bulker has no place to remember it for later reads.
//! * Each request has its own connection: on a reused one it would be unknown whether the server received the request.

mod config;
pub mod fields;
mod http;
mod request;
pub mod response;
pub mod row;
mod stream;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use config::Settings;
use fields::Fields;
use http::Post;
use request::{Limits, Server};
use response::Outcome;
use row::Encoder;
use stream::{RequestHeads, Stream};

use super::postgres::names::{self, Kind};
use super::{
    Committed, Connect, FIRST_RETRY_TIMEOUT, NO_SERVER_RETRY_TIMEOUT, Sink, SinkError, StreamIndex, StreamSpec,
    Warning, WriteMode,
};
use crate::airbyte::message::{Record, StreamName};
use crate::failure::Failure;
use crate::host_rules::{HostRules, Refused};
use crate::http_client;
use crate::task::Task;

/// How long a request may be open: after 30 minutes Bulker ends it without its rows.
const MAX_OPEN: Duration = Duration::from_mins(25);
/// Time limits. Loading into a warehouse takes long, a restart of the server does not.
const LIMITS: Limits = Limits {
    retry_timeout: Duration::from_mins(5),
    stall_timeout: Duration::from_mins(5),
    response_timeout: Duration::from_mins(30),
    // Proxies and load balancers commonly close connections that are idle for a minute.
    idle: Duration::from_secs(20),
    open: MAX_OPEN,
};
/// Memory of all chunks under construction. Beyond it, the largest one is sent.
const MAX_CHUNK_MEMORY: usize = 4 << 20;

/// Validates the configuration.
pub(super) fn parse(config: &Value) -> Result<Box<dyn Connect>, Failure> {
    Ok(Box::new(Settings::parse(config)?))
}

impl Connect for Settings {
    fn address(&self) -> String {
        format!("Bulker at {}", self.endpoint)
    }

    fn restrict(&mut self, rules: Arc<HostRules>) {
        self.rules = Some(rules);
    }

    fn check_hosts(&self, rules: &HostRules) -> Result<(), Refused> {
        rules.check_soon(&self.endpoint.host, self.endpoint.port)
    }

    fn connect(&self, task: &Task) -> Result<Box<dyn Sink>, SinkError> {
        let sink = BulkerSink::new(self, &task.sync_id, &task.task_id, LIMITS)?;
        // Reports a wrong address before the source is read.
        sink.server.wait_until_reachable(FIRST_RETRY_TIMEOUT, NO_SERVER_RETRY_TIMEOUT).map_err(|error| SinkError {
            text: format!("Bulker at {}: {}", self.endpoint, error.text),
            transient: error.transient,
        })?;
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
    /// Cleaned table name → the stream that uses it.
    tables: HashMap<String, StreamName>,
    /// Memory of all chunks under construction.
    chunk_memory: usize,
    warnings: Vec<Warning>,
}

/// The table of a stream as the read names it.
fn configured_table(spec: &StreamSpec) -> String {
    match &spec.schema {
        Some(namespace) => format!("{namespace}_{}", spec.table),
        None => spec.table.clone(),
    }
}

/// The name that Bulker makes of a table's name: it replaces characters, which may make two names the same.
fn cleaned(table: &str) -> String {
    names::clean(table, Kind::Table, false)
}

impl BulkerSink {
    /// Does not connect.
    fn new(settings: &Settings, sync_id: &str, task_id: &str, limits: Limits) -> Result<Self, SinkError> {
        let tls = settings.endpoint.secure.then(http_client::tls_config).transpose();
        let tls = tls.map_err(|error| SinkError::permanent(format!("cannot set up TLS: {error}")))?;
        let destination_id = settings.destination_id.clone().unwrap_or_else(|| sync_id.to_owned());
        let (endpoint, rules) = (settings.endpoint.clone(), settings.rules.clone());
        Ok(Self {
            server: Server { endpoint, destination_id, tls, rules, limits, replay_bytes: 0, is_unavailable: false },
            authorization: settings.authorization(),
            task_id: task_id.to_owned(),
            sync_id: sync_id.to_owned(),
            streams: Vec::new(),
            tables: HashMap::new(),
            chunk_memory: 0,
            warnings: Vec::new(),
        })
    }

    /// The table of a stream, with a suffix if another stream uses the name.
    fn table_name(&mut self, spec: &StreamSpec) -> String {
        let mut table = configured_table(spec);
        if spec.to_same_case {
            table = table.to_lowercase();
        }
        let owner = self.tables.get(&cleaned(&table)).filter(|owner| **owner != spec.name).map(StreamName::key);
        if let Some(owner) = owner {
            let (stream, name) = (spec.name.key(), std::mem::take(&mut table));
            table = names::suffixed(&name, &stream);
            let text =
                format!("stream {stream:?}: table {name:?} belongs to stream {owner:?}: writing to table {table:?}");
            self.warn(self.streams.len(), text);
        }
        self.tables.insert(cleaned(&table), spec.name.clone());
        table
    }

    fn warn(&mut self, stream: StreamIndex, text: String) {
        self.warnings.push(Warning { stream: Some(stream), text });
    }

    fn request_heads(&self, table: &str, key: &[String], schema: Option<&str>) -> RequestHeads {
        let job = format!("{}_{table}_{}", self.sync_id, self.task_id);
        let head = |mode: &'static str| -> Arc<str> {
            let mut query = vec![("tableName", table), ("mode", mode)];
            query.extend(key.iter().map(|part| ("pk", part.as_str())));
            query.extend([("taskId", self.task_id.as_str()), ("jobId", job.as_str())]);
            let post = Post {
                endpoint: &self.server.endpoint,
                destination_id: &self.server.destination_id,
                query: &query,
                authorization: &self.authorization,
                schema,
            };
            post.head().into()
        };
        RequestHeads { replace: head("replace_table"), batch: head("batch"), keyed: !key.is_empty() }
    }

    /// Runs an operation on a stream. Errors name the server.
    fn with_stream<T>(
        &mut self,
        index: StreamIndex,
        operation: impl FnOnce(&mut Stream, &mut Server) -> Result<T, SinkError>,
    ) -> Result<T, SinkError> {
        let Some(stream) = self.streams.get_mut(index) else {
            return Err(SinkError::permanent(format!("stream {index} was never opened")));
        };
        let was_split = stream.was_split();
        let result = operation(stream, &mut self.server);
        if stream.was_split() && !was_split {
            let text = format!(
                "{}: the source takes more than {} minutes, the limit of Bulker's requests: the table has its first rows, \
                 and is incomplete until the stream is finished",
                stream.subject(),
                self.server.limits.open.as_secs() / 60
            );
            self.warn(index, text);
        }
        result
            .map_err(|error| SinkError { text: format!("Bulker at {}: {}", self.server.endpoint, error.text), ..error })
    }

    /// Sends the largest chunk under construction. An error is reported when its stream is used next.
    fn flush_largest(&mut self) {
        let sizes: Vec<usize> = self.streams.iter_mut().map(Stream::chunk_memory).collect();
        if let Some((largest, _)) = sizes.iter().enumerate().max_by_key(|(_, size)| **size) {
            let _ = self.with_stream(largest, Stream::flush);
        }
        self.chunk_memory = self.streams.iter_mut().map(Stream::chunk_memory).sum();
    }
}

impl Sink for BulkerSink {
    fn assign_tables(&mut self, streams: &[StreamSpec]) -> Result<(), Failure> {
        for spec in streams {
            let table = configured_table(spec);
            if table == names::clean(&table, Kind::Table, spec.to_same_case) {
                self.tables.entry(table).or_insert_with(|| spec.name.clone());
            }
        }
        Ok(())
    }

    fn open(&mut self, spec: StreamSpec) -> Result<StreamIndex, SinkError> {
        let table = self.table_name(&spec);
        let fields = Fields::new(&spec, &table);
        let stream = spec.name.key();
        let mut mode = spec.mode;
        if mode == WriteMode::Merge && fields.key.is_empty() {
            let text = format!("stream {stream:?} has no usable primary key: appending rows without merging");
            self.warn(self.streams.len(), text);
            mode = WriteMode::Append;
        }
        let key = if mode == WriteMode::Append { &[] } else { fields.key.as_slice() };
        if spec.generation.minimum > 0 && mode != WriteMode::Replace {
            if spec.generation.resumes {
                let minimum = spec.generation.minimum;
                let text = format!(
                    "stream {stream:?}: rows of generations before {minimum} remain in table {table:?}: Bulker deletes no \
                     rows, and a read that resumes from a state cannot replace the table; a read without a state does"
                );
                self.warn(self.streams.len(), text);
            } else {
                mode = WriteMode::Replace;
            }
        }
        let heads = self.request_heads(&table, key, fields.header.as_deref());
        let encoder = Encoder::new(fields.names, spec.to_same_case, spec.add_meta);
        let replaces_first = spec.replaces_at_first_commit && mode != WriteMode::Replace;
        self.streams.push(Stream::new(spec.name, table, (mode, replaces_first), heads, encoder));
        Ok(self.streams.len() - 1)
    }

    fn write(&mut self, index: StreamIndex, record: &Record<'_>) -> Result<(), SinkError> {
        let mut before_and_after = (0, 0);
        let written = self.with_stream(index, |stream, server| {
            before_and_after.0 = stream.chunk_memory();
            let written = stream.write(server, record);
            before_and_after.1 = stream.chunk_memory();
            written
        });
        let (before, after) = before_and_after;
        if before != after {
            self.chunk_memory = (self.chunk_memory + after).saturating_sub(before);
            if self.chunk_memory > MAX_CHUNK_MEMORY {
                self.flush_largest();
            }
        }
        written
    }

    fn commit(&mut self, index: StreamIndex) -> Result<Committed, SinkError> {
        self.with_stream(index, Stream::commit)
    }

    fn finish(&mut self, index: StreamIndex) -> Result<(), SinkError> {
        let outcome = self.with_stream(index, Stream::finish)?;
        if outcome == Outcome::Ignored {
            let subject = self.streams[index].subject();
            let text = format!(
                "{subject}: the source has no rows, and Bulker cannot empty a table: delete rows of earlier runs yourself"
            );
            self.warn(index, text);
        }
        Ok(())
    }

    fn finish_early(&mut self, index: StreamIndex) -> Result<bool, SinkError> {
        self.with_stream(index, Stream::finish_early)
    }

    fn abort(&mut self, index: StreamIndex) {
        if let Some(stream) = self.streams.get_mut(index) {
            stream.abort(&mut self.server);
        }
    }

    fn tick(&mut self) {
        for index in 0..self.streams.len() {
            // An error is reported when the stream is used next.
            let _ = self.with_stream(index, Stream::tick);
        }
    }

    fn warnings(&mut self) -> Vec<Warning> {
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
