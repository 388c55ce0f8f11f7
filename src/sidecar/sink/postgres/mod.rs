//! The `postgres` destination: loads rows with COPY, by the rules of the existing implementation.
//!
//! | module | owns |
//! |---|---|
//! | `config` | the fields of `destinationConfig` |
//! | `names`, `types`, `inference`, `number`, `numeric`, `time`, `json` | names, types and values of columns |
//! | `ownership`, `table_names`, `column_names` | which stream has which table, and which field which column |
//! | `reserved_tables` | tables of results, which no stream may get |
//! | `fields`, `column`, `layout`, `row_budget` | which field maps to which column, and how many values fit into a row |
//! | `row`, `value`, `changes`, `airbyte_columns`, `reformat`, `copy` | rows in COPY's binary format |
//! | `session`, `table`, `definition`, `text_habits`, `type_dependencies` | connections, transactions, DDL, what a table holds |
//! | `loader`, `staged_rows`, `merge_key`, `row_removal` | loading chunks, directly or through a staging table; replacing rows |
//! | `generation` | rows of a refresh that are collected over several runs |
//! | `prepare`, `stream` | the life of a stream, and what its commits do |
//! | `resources` | connections and buffers that streams share |
//!
//! Decisions that the rules leave open:
//! * The type of an existing column changes only with a replacement of all rows, or from `bigint` to `numeric`, if
//!   nothing depends on it. A value that does not fit is null in its column and stored in `_unmapped_data`; a number that
//!   its column rounds is stored exactly there as well. So are values beyond the limits of a table: a row must fit into a
//!   page of 8 KiB, and a table has at most 1600 columns.
//! * Two fields or streams with equal cleaned names do not share a column or table: one of them gets a suffix.
//! * Two nulls are the same value of a key. A value of a key that its column cannot hold exactly fails its stream.
//! * A merged row has nothing of the older one, but for columns that no stream has ever loaded.
//! * A replacement of a stream with a key keeps one row of each key, like a merge.
//! * The cursor also decides against existing rows: an older row never overwrites a newer one, of equal cursors the later
//!   row wins, and a row without a cursor is older than any other. So the table does not depend on where batches end or
//!   which rows come again after an interruption. (Airbyte's destinations do the same; the existing implementation
//!   compares cursors only within a batch.)
//! * A primary key named `jitsu_pk_…` on columns other than the stream's is dropped, because it could reject rows.

mod airbyte_columns;
mod changes;
mod column;
mod column_names;
mod config;
mod copy;
mod definition;
mod fields;
mod generation;
mod inference;
pub mod json;
mod layout;
mod loader;
mod merge_key;
pub(super) mod names;
pub mod number;
pub mod numeric;
pub mod object_fields;
mod ownership;
mod prepare;
mod reformat;
mod reserved_tables;
mod resources;
mod row;
mod row_budget;
mod row_removal;
mod session;
mod staged_rows;
mod stream;
mod table;
mod table_names;
#[cfg(test)]
mod tests;
mod text_habits;
pub mod time;
mod type_dependencies;
pub mod types;
pub mod value;

use std::sync::Arc;
use std::time::Duration;

use config::Settings;
pub(super) use config::read_files;
use resources::Resources;
use serde_json::Value;
use session::{Session, SessionConfig};
use stream::Stream;
use table_names::TableNames;

use super::{
    BACKOFF, Committed, Connect, FIRST_RETRY_TIMEOUT, NO_SERVER_RETRY_TIMEOUT, Sink, SinkError, StreamIndex,
    StreamSpec, Warning,
};
use crate::airbyte::message::{Record, StreamName};
use crate::db::ResultsDatabase;
use crate::failure::{Class, Failure};
use crate::host_rules::{HostRules, Refused};
use crate::task::{CdcDeletion, LoadCounts, Task};

/// How long to retry while the server is unreachable: longer than a restart or a failover takes.
const RETRY_TIMEOUT: Duration = Duration::from_mins(5);
/// Memory of the chunks of all streams, in bytes. Beyond it the largest chunk is sent early.
const MAX_BUFFERED_BYTES: usize = 4 << 20;

/// Parses a `destinationConfig`.
pub(super) fn parse(config: &Value) -> Result<Box<dyn Connect>, Failure> {
    Ok(Box::new(Settings::parse(config)?))
}

impl Connect for Settings {
    fn address(&self) -> String {
        self.target.address()
    }

    fn reserved_table(
        &self,
        results: &ResultsDatabase,
        streams: &mut dyn Iterator<Item = StreamSpec>,
    ) -> Option<(StreamName, String)> {
        if !results.is_at(&self.target) {
            return None;
        }
        for spec in streams {
            let (schema, table) = table_names::first_choice(&spec, &self.default_schema);
            if results.has_reserved(&schema, &table) {
                return Some((spec.name, names::qualified(&schema, &table)));
            }
        }
        None
    }

    fn restrict(&mut self, rules: Arc<HostRules>) {
        self.target = self.target.clone().restricted_to(rules);
    }

    fn check_hosts(&self, rules: &HostRules) -> Result<(), Refused> {
        self.target.check_hosts(rules)
    }

    fn connect(&self, _task: &Task) -> Result<Box<dyn Sink>, SinkError> {
        Ok(Box::new(PostgresSink::connect(self, RETRY_TIMEOUT)?))
    }
}

/// Loads rows into a Postgres database.
pub struct PostgresSink {
    resources: Resources,
    streams: Vec<Stream>,
    default_schema: String,
    /// New tables get the columns of Airbyte's destination.
    airbyte_columns: bool,
    /// What becomes of rows that the source marks as deleted.
    cdc_deletion: Option<CdcDeletion>,
    tables: TableNames,
    /// Memory of the chunks of all streams, in bytes.
    buffered_bytes: usize,
}

impl PostgresSink {
    /// Connects. `retry_timeout` is how long to retry when the connection is lost later.
    pub fn connect(settings: &Settings, retry_timeout: Duration) -> Result<Self, SinkError> {
        let run_id = uuid::Uuid::new_v4().as_u64_pair().0.cast_signed();
        let config = Arc::new(SessionConfig::new(settings.target.clone(), run_id, retry_timeout));
        let mut session = Session::new(Arc::clone(&config));
        let within = |timeout: Duration| BACKOFF.within(retry_timeout.min(timeout));
        let (mut retry, mut no_server) = (within(FIRST_RETRY_TIMEOUT), within(NO_SERVER_RETRY_TIMEOUT));
        while let Err(error) = session.client().map(drop) {
            let retry = if error.is_no_server() { &mut no_server } else { &mut retry };
            if !error.is_connection_lost() || !retry.wait() {
                return Err(session.sink_error(&error));
            }
            tracing::warn!(destination = %config.target.address(), "cannot connect, retrying");
        }
        Ok(Self {
            resources: Resources::new(config, session)?,
            streams: Vec::new(),
            default_schema: settings.default_schema.clone(),
            airbyte_columns: settings.airbyte_columns,
            cdc_deletion: settings.cdc_deletion,
            tables: TableNames::default(),
            buffered_bytes: 0,
        })
    }

    /// Assigns tables to these streams. None of them may be one of our own.
    fn assign(&mut self, specs: &[StreamSpec]) -> Result<(), Failure> {
        let mut session = self.resources.acquire_session("tables of the streams");
        let (names, default_schema) = (&mut self.tables, &self.default_schema);
        let own = session.transaction(|client| {
            let without_marks = names.assign(client, specs, default_schema)?;
            reserved_tables::find(client, without_marks)
        });
        let own = own.map_err(|error| Failure::new(Class::DestinationFailed, session.sink_error(&error).text));
        self.resources.release_session(Some(session));
        for ((schema, table), text) in self.tables.warnings() {
            self.resources.config.warnings.add(&stream::subject(&schema, &table), &text);
        }
        let Some(table) = own? else { return Ok(()) };
        let stream = self.tables.owner(&table).unwrap_or_else(|| StreamName::new(None, &table.1));
        let table = format!("{} in {}", names::qualified(&table.0, &table.1), self.resources.config.target.address());
        Err(Failure::new(Class::InvalidInput, super::reserved(&stream, &table)))
    }

    fn stream(&mut self, index: StreamIndex) -> Result<(&mut Stream, &mut Resources), SinkError> {
        match self.streams.get_mut(index) {
            Some(stream) => Ok((stream, &mut self.resources)),
            None => Err(SinkError::permanent(format!("stream {index} was never opened"))),
        }
    }

    /// Sends the largest chunk. Its stream returns the error at its next operation.
    fn send_largest(&mut self) {
        if let Some(largest) = self.streams.iter_mut().max_by_key(|stream| stream.buffered_bytes()) {
            largest.send_early(&mut self.resources);
        }
        self.buffered_bytes = self.streams.iter().map(Stream::buffered_bytes).sum();
    }
}

impl Sink for PostgresSink {
    fn assign_tables(&mut self, streams: &[StreamSpec]) -> Result<(), Failure> {
        self.assign(streams)
    }

    fn open(&mut self, mut spec: StreamSpec) -> Result<StreamIndex, SinkError> {
        spec.airbyte.in_new_tables = self.airbyte_columns;
        spec.cdc_deletion = spec.cdc_deletion.or(self.cdc_deletion);
        let mut assigned = self.tables.of_stream(&spec, &self.default_schema);
        if assigned.is_none() {
            self.assign(std::slice::from_ref(&spec)).map_err(|failure| SinkError::permanent(failure.text))?;
            assigned = self.tables.of_stream(&spec, &self.default_schema);
        }
        let no_table = || SinkError::permanent(format!("stream {:?} has no table", spec.name.key()));
        let (schema, table) = assigned.ok_or_else(no_table)?;
        self.streams.push(Stream::new(spec, schema, table));
        Ok(self.streams.len() - 1)
    }

    fn write(&mut self, index: StreamIndex, record: &Record<'_>) -> Result<(), SinkError> {
        let (stream, resources) = self.stream(index)?;
        let before = stream.buffered_bytes();
        stream.write(resources, record)?;
        let after = stream.buffered_bytes();
        self.buffered_bytes = (self.buffered_bytes + after).saturating_sub(before);
        if self.buffered_bytes > MAX_BUFFERED_BYTES && after != before {
            self.send_largest();
        }
        Ok(())
    }

    fn commit(&mut self, index: StreamIndex) -> Result<Committed, SinkError> {
        let (stream, resources) = self.stream(index)?;
        stream.commit(resources)
    }

    fn finish(&mut self, index: StreamIndex) -> Result<(), SinkError> {
        let (stream, resources) = self.stream(index)?;
        stream.finish(resources)
    }

    fn finish_early(&mut self, index: StreamIndex) -> Result<bool, SinkError> {
        let (stream, resources) = self.stream(index)?;
        stream.finish_early(resources)
    }

    fn counts(&self, index: StreamIndex) -> LoadCounts {
        self.streams.get(index).map(Stream::counts).unwrap_or_default()
    }

    fn warnings(&mut self) -> Vec<Warning> {
        let warning = |(subject, text): (String, String)| Warning {
            stream: self.streams.iter().position(|stream| stream.subject() == subject),
            text: format!("{subject}: {text}"),
        };
        self.resources.config.warnings.take().into_iter().map(warning).collect()
    }

    fn abort(&mut self, index: StreamIndex) {
        if let Ok((stream, resources)) = self.stream(index) {
            stream.abort(resources);
        }
    }
}

impl Drop for PostgresSink {
    fn drop(&mut self) {
        for stream in &mut self.streams {
            stream.abort(&mut self.resources);
        }
    }
}
