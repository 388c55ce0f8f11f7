//! A schema of its own for each test, and a way to look into it.

use std::borrow::Cow;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use postgres::{Client, NoTls};
use serde_json::{Value, json};

use crate::airbyte::message::{Record, StreamName};
use crate::sidecar::sink::postgres::{PostgresSink, Settings};
use crate::sidecar::sink::{Generation, Sink, StreamIndex, StreamSpec, WriteMode};

const VARIABLE: &str = "SYNCCTL_TEST_DATABASE_URL";

/// Long enough for a reconnect, short enough for a test that fails.
const PATIENCE: Duration = Duration::from_secs(20);

/// A schema that is dropped at the end, with a connection to look into it.
pub struct World {
    pub admin: Client,
    pub schema: String,
    url: url::Url,
}

impl World {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let text = std::env::var(VARIABLE)
            .unwrap_or_else(|_| panic!("{VARIABLE} has to hold the URL of a PostgreSQL superuser"));
        let url = url::Url::parse(&text).expect("a URL");
        let mut admin = Client::connect(&text, NoTls).expect("a connection");
        let schema = format!("sink_{}_{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        admin.batch_execute(&format!("SET client_min_messages TO warning; DROP SCHEMA IF EXISTS {schema} CASCADE; CREATE SCHEMA {schema}; SET search_path TO {schema}; SET TimeZone TO 'UTC'")).expect("a schema");
        Self { admin, schema, url }
    }

    /// Another connection that looks into the schema.
    pub fn connect(&self) -> Client {
        let mut client = Client::connect(self.url.as_str(), NoTls).expect("a connection");
        client.batch_execute(&format!("SET search_path TO {}", self.schema)).expect("the schema");
        client
    }

    pub fn port(&self) -> u16 {
        self.url.port().unwrap_or(5432)
    }

    /// The configuration; sessions are called like the schema.
    pub fn config(&self) -> Value {
        json!({
            "destinationType": "postgres", "host": self.url.host_str(), "port": self.port(),
            "database": self.url.path().trim_start_matches('/'), "username": self.url.username(),
            "password": self.url.password(), "defaultSchema": self.schema, "sslMode": "disable",
            "parameters": {"application_name": self.schema},
        })
    }

    pub fn sink(&self) -> PostgresSink {
        Self::sink_of(&self.config(), PATIENCE)
    }

    pub fn sink_of(config: &Value, patience: Duration) -> PostgresSink {
        PostgresSink::connect(&Settings::parse(config).expect("settings"), patience).expect("a sink")
    }

    /// The rows of a query, each as its columns' text joined by `|`; null is `∅`.
    pub fn rows(&mut self, sql: &str) -> Vec<String> {
        let answers = self.admin.simple_query(sql).expect(sql);
        let text = |row: &postgres::SimpleQueryRow| {
            (0..row.len()).map(|at| row.get(at).unwrap_or("∅")).collect::<Vec<_>>().join("|")
        };
        let rows = answers.iter().filter_map(|answer| match answer {
            postgres::SimpleQueryMessage::Row(row) => Some(text(row)),
            _ => None,
        });
        rows.collect()
    }

    pub fn count(&mut self, table: &str) -> usize {
        self.rows(&format!("SELECT count(*) FROM \"{table}\""))[0].parse().expect("a number")
    }

    pub fn run(&mut self, sql: &str) {
        self.admin.batch_execute(&sql.replace("$schema", &self.schema)).expect(sql);
    }

    /// Name and type of each column.
    pub fn columns(&mut self, table: &str) -> Vec<String> {
        let schema = self.schema.clone();
        self.rows(&format!(
            "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute
             WHERE attrelid = '{schema}.\"{table}\"'::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum"
        ))
    }

    pub fn tables(&mut self) -> Vec<String> {
        let schema = self.schema.clone();
        self.rows(&format!("SELECT tablename FROM pg_tables WHERE schemaname = '{schema}' ORDER BY 1"))
    }

    /// Ends the sink's connections, as a restart of the server does; waits until they are gone.
    pub fn terminate(&mut self) -> usize {
        let schema = self.schema.clone();
        let ended = self.rows(&format!(
            "SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = '{schema}'"
        ));
        // The sink may have reconnected already: only those count that were told to end.
        let list =
            ended.iter().filter_map(|row| row.split('|').next()).fold("0".to_owned(), |list, pid| list + "," + pid);
        while self.rows(&format!("SELECT count(*) FROM pg_stat_activity WHERE pid IN ({list})"))[0] != "0" {
            std::thread::sleep(Duration::from_millis(5));
        }
        ended.len()
    }

    /// Ends a sink as KILL does: nobody cleans up, and the server sees the connections end.
    pub fn kill(&mut self, mut sink: PostgresSink) {
        let thread = sink.resources.loader_thread.stop();
        std::mem::forget(sink);
        // What its thread has in its hands it takes to the server over a new connection, for it does not know of its end.
        while self.terminate() > 0 || thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
            std::thread::sleep(Duration::from_millis(20));
        }
        self.terminate();
    }

    /// Connections of the sink that are in a transaction.
    pub fn open_transactions(&mut self) -> usize {
        let schema = self.schema.clone();
        self.rows(&format!(
            "SELECT 1 FROM pg_stat_activity WHERE application_name = '{schema}' AND state LIKE 'idle in%'"
        ))
        .len()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.admin.batch_execute(&format!("DROP SCHEMA {} CASCADE", self.schema));
    }
}

/// A stream with these declared fields, each `name: type`.
pub fn spec(table: &str, mode: WriteMode, fields: &[(&str, Value)]) -> StreamSpec {
    let fields: serde_json::Map<String, Value> =
        fields.iter().map(|(name, schema)| ((*name).to_owned(), schema.clone())).collect();
    StreamSpec {
        name: StreamName::new(None, table),
        schema: None,
        table: table.to_owned(),
        json_schema: json!({"type": "object", "properties": fields}),
        mode,
        primary_key: Vec::new(),
        cursor: Vec::new(),
        generation: Generation::default(),
        to_same_case: false,
        add_meta: false,
    }
}

/// A stream of `id` and `v`, with `id` as its key.
pub fn keyed(table: &str, mode: WriteMode) -> StreamSpec {
    let fields = [("id", json!({"type": "integer"})), ("v", json!({"type": "string"}))];
    StreamSpec { primary_key: vec![vec!["id".to_owned()]], ..spec(table, mode, &fields) }
}

pub fn record(data: &str) -> Record<'_> {
    Record { stream: Cow::Borrowed("s"), namespace: None, data: Cow::Borrowed(data), emitted_at: Some(0) }
}

pub fn write(sink: &mut PostgresSink, stream: StreamIndex, rows: &[&str]) {
    for row in rows {
        sink.write(stream, &record(row)).expect(row);
    }
}

/// Rows of a stream, and the table that has to come of them.
pub struct Case {
    /// What it is about; also part of the table's name.
    pub label: &'static str,
    /// The `properties` of the stream's JSON schema, as JSON.
    pub declared: &'static str,
    /// The rows, as the source prints them.
    pub rows: &'static [&'static str],
    /// `name type` of each column, in their order; the usual types shortened as in [`short_type`].
    pub columns: &'static [&'static str],
    /// Each row's columns as text, joined by `|`; null is `∅`.
    pub values: &'static [&'static str],
}

/// Loads the rows of each case into a table of its own and compares the table, read back with SQL.
pub fn hold(cases: &[Case]) {
    let mut world = World::new();
    let mut sink = world.sink();
    for (index, case) in cases.iter().enumerate() {
        let (label, table) = (case.label, format!("t{index}"));
        let properties: Value = serde_json::from_str(case.declared).expect(label);
        let mut stream = spec(&table, WriteMode::Append, &[]);
        stream.json_schema = json!({"type": "object", "properties": properties});
        let stream = sink.open(stream).expect(label);
        write(&mut sink, stream, case.rows);
        sink.finish(stream).expect(label);
        let columns: Vec<String> = world.columns(&table).iter().map(|column| short_type(column)).collect();
        assert_eq!(columns, case.columns, "{label}: columns");
        // In the order of arrival, which a table that was only ever appended to keeps.
        assert_eq!(world.rows(&format!("SELECT * FROM {table}")), case.values, "{label}: values");
    }
}

/// `name type`, with `time` for timestamptz and `double` for double precision.
fn short_type(column: &str) -> String {
    let (name, kind) = column.rsplit_once('|').expect("name and type");
    let kind = match kind {
        "timestamp with time zone" => "time",
        "double precision" => "double",
        other => other,
    };
    format!("{name} {kind}")
}

/// Rows `{"id":n,"v":"…"}` with a filling of so many bytes.
pub fn write_many(sink: &mut PostgresSink, stream: StreamIndex, ids: std::ops::Range<u32>, filling: usize) {
    let filling = "x".repeat(filling);
    for id in ids {
        let row = format!(r#"{{"id":{id},"v":"{filling}"}}"#);
        sink.write(stream, &record(&row)).expect("a row");
    }
}
