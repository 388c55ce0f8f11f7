//! A scenario: streams, and runs of reads that load them. Plain data, so that it can be printed and reduced.

use std::fmt;

use serde_json::{Map, Value, json};

use crate::airbyte::message::StreamName;

/// The field that identifies a record.
pub const UID: &str = "uid";

/// A cursor that no column of cursors can hold.
pub const UNCOMPARABLE: &str = "\"soon\"";

/// Streams and the reads that load them, one after the other.
#[derive(Debug, Clone)]
pub struct Scenario {
    pub streams: Vec<Stream>,
    pub options: Options,
    pub runs: Vec<Run>,
}

/// What is the same in all runs.
#[derive(Debug, Clone, Default)]
#[expect(clippy::struct_excessive_bools, reason = "independent options")]
pub struct Options {
    /// The option `namespace`; `$schema` is the schema of the test.
    pub namespace: Option<String>,
    pub prefix: String,
    pub to_same_case: bool,
    pub add_meta: bool,
    /// `overwrite` has the meaning of `POST /read`.
    pub console_overwrite: bool,
    pub deduplicate: bool,
    /// The source sends stream statuses.
    pub statuses: bool,
    /// The source sends one state of all streams.
    pub global_state: bool,
}

#[derive(Debug, Clone)]
pub struct Stream {
    pub namespace: Option<String>,
    pub name: String,
    /// The names of the fields besides [`UID`].
    pub fields: Vec<String>,
    /// The fields of the key, as indices.
    pub key: Vec<usize>,
    /// The field of the cursor, as an index.
    pub cursor: Option<usize>,
}

impl Stream {
    pub fn stream_name(&self) -> StreamName {
        StreamName::new(self.namespace.as_deref(), &self.name)
    }
}

/// One read.
#[derive(Debug, Clone)]
pub struct Run {
    /// In the order of the catalog.
    pub streams: Vec<StreamRun>,
    /// The source fails after this number of messages.
    pub fails_after: Option<usize>,
    /// The option `full_sync`: all streams are read from scratch and replaced.
    pub full_sync: bool,
    /// Determines how the messages of the streams alternate.
    pub order: u64,
}

/// One stream in one read.
#[derive(Debug, Clone)]
pub struct StreamRun {
    /// The index of the stream.
    pub stream: usize,
    pub incremental: bool,
    /// `destination_sync_mode`
    pub mode: &'static str,
    /// `generation_id` and `minimum_generation_id`.
    pub generation: Option<(i64, i64)>,
    /// The platform deletes the state before the run, as it does for a refresh.
    pub clears_state: bool,
    /// The JSON Schema of each field; `None`: the schema does not declare it.
    pub declared: Vec<Option<Value>>,
    /// Records that are new since the last run. Incremental runs also send earlier ones that no state covers.
    pub records: Vec<Record>,
    /// The source sends a state after each time this number of records.
    pub records_per_state: usize,
    /// The source reports the stream as incomplete.
    pub incomplete: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    pub uid: String,
    /// The JSON text of each field; `None`: the record does not have it.
    pub values: Vec<Option<String>>,
}

impl Record {
    /// The JSON text of `data`. The order of the fields differs between records.
    pub fn data(&self, fields: &[String]) -> String {
        let uid = format!("{}:{}", Value::from(UID), Value::from(self.uid.as_str()));
        let values = fields.iter().zip(&self.values);
        let values =
            values.filter_map(|(name, value)| Some(format!("{}:{}", Value::from(name.as_str()), value.as_ref()?)));
        let mut members: Vec<String> = std::iter::once(uid).chain(values).collect();
        let first = self.uid.len() % members.len();
        members.rotate_left(first);
        format!("{{{}}}", members.join(","))
    }
}

impl Scenario {
    /// The configured catalog of a run.
    pub fn catalog(&self, run: &Run) -> Value {
        let streams: Vec<Value> = run.streams.iter().map(|stream_run| self.configured(stream_run)).collect();
        json!({"streams": streams})
    }

    fn configured(&self, run: &StreamRun) -> Value {
        let stream = &self.streams[run.stream];
        let declared = stream.fields.iter().zip(&run.declared);
        let declared = declared.filter_map(|(name, schema)| Some((name.clone(), schema.clone()?)));
        let uid = (UID.to_owned(), json!({"type": "string"}));
        let properties: Map<String, Value> = declared.chain([uid]).collect();
        let path = |field: &usize| json!([stream.fields[*field]]);
        let mut configured = json!({
            "stream": {
                "name": stream.name, "json_schema": {"type": "object", "properties": properties},
                "source_defined_primary_key": stream.key.iter().map(path).collect::<Vec<_>>(),
            },
            "sync_mode": if run.incremental { "incremental" } else { "full_refresh" },
            "destination_sync_mode": run.mode,
        });
        if run.mode.contains("dedup") {
            configured["primary_key"] = configured["stream"]["source_defined_primary_key"].clone();
        }
        if let Some(namespace) = &stream.namespace {
            configured["stream"]["namespace"] = json!(namespace);
        }
        if let Some(cursor) = &stream.cursor {
            configured["cursor_field"] = path(cursor);
        }
        if let Some((id, minimum)) = run.generation {
            (configured["generation_id"], configured["minimum_generation_id"]) = (json!(id), json!(minimum));
        }
        configured
    }
}

impl StreamRun {
    /// Whether rows are merged by the key, if there is one.
    pub fn merges(&self, options: &Options) -> bool {
        options.deduplicate
            && match self.mode {
                "append" => false,
                // Elsewhere a full refresh is a copy.
                "overwrite" => self.incremental || options.console_overwrite,
                _ => true,
            }
    }

    /// The mode replaces all rows when the stream is complete.
    pub fn replaces(&self) -> bool {
        !self.incremental && self.mode.starts_with("overwrite")
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:?}", self.options)?;
        for (number, run) in self.runs.iter().enumerate() {
            let failure = run.fails_after.map(|count| format!(", fails after {count} messages")).unwrap_or_default();
            let full_sync = if run.full_sync { ", full sync" } else { "" };
            writeln!(f, "run {}{full_sync}{failure}:", number + 1)?;
            for stream_run in &run.streams {
                let stream = &self.streams[stream_run.stream];
                let end = if stream_run.incomplete { ", INCOMPLETE" } else { "" };
                let clears = if stream_run.clears_state { ", state cleared" } else { "" };
                writeln!(
                    f,
                    "  {}, a state each {} records{clears}{end}",
                    self.configured(stream_run),
                    stream_run.records_per_state
                )?;
                for record in &stream_run.records {
                    writeln!(f, "    {}", shorten(&record.data(&stream.fields)))?;
                }
            }
        }
        Ok(())
    }
}

/// Long values are not readable.
fn shorten(text: &str) -> String {
    const MAX: usize = 600;
    if text.chars().count() <= MAX { text.to_owned() } else { text.chars().take(MAX).chain("…".chars()).collect() }
}
