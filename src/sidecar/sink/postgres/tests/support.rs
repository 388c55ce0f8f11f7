//! A schema per test, and helpers to write to it and to query it.

use std::borrow::Cow;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use postgres::{Client, NoTls};
use serde_json::{Value, json};

use crate::airbyte::message::{Record, StreamName};
use crate::sidecar::sink::postgres::{PostgresSink, Settings};
use crate::sidecar::sink::{Generation, Sink, StreamIndex, StreamSpec, WriteMode};

const VARIABLE: &str = "SYNCCTL_TEST_DATABASE_URL";

/// Long enough to reconnect, and short for a test that fails.
const RETRY_TIMEOUT: Duration = Duration::from_secs(20);

/// After this time a test hangs.
const DEADLINE: Duration = Duration::from_mins(3);

/// A schema that is dropped at the end, with a connection to query it.
pub struct TestSchema {
    pub admin: Client,
    pub schema: String,
    url: url::Url,
}

impl TestSchema {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let text = std::env::var(VARIABLE)
            .unwrap_or_else(|_| panic!("{VARIABLE} must contain the URL of a PostgreSQL superuser"));
        let url = url::Url::parse(&text).expect("a URL");
        let mut admin = Client::connect(&text, NoTls).expect("a connection");
        let schema = format!("sink_{}_{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        admin.batch_execute(&format!("SET client_min_messages TO warning; DROP SCHEMA IF EXISTS {schema} CASCADE; CREATE SCHEMA {schema}; SET search_path TO {schema}; SET TimeZone TO 'UTC'")).expect("a schema");
        Self { admin, schema, url }
    }

    /// Another connection whose search path is the schema.
    pub fn connect(&self) -> Client {
        let mut client = Client::connect(self.url.as_str(), NoTls).expect("a connection");
        client.batch_execute(&format!("SET search_path TO {}", self.schema)).expect("the schema");
        client
    }

    /// A connection to another database of the server.
    pub fn connect_to(&self, database: &str) -> Client {
        let mut url = self.url.clone();
        url.set_path(database);
        Client::connect(url.as_str(), NoTls).expect("a connection")
    }

    pub fn port(&self) -> u16 {
        self.url.port().unwrap_or(5432)
    }

    /// The URL of the database, with the schema as its search path.
    pub fn url(&self) -> String {
        let mut url = self.url.clone();
        url.query_pairs_mut().append_pair("search_path", &self.schema);
        url.into()
    }

    /// A `destinationConfig`. The `application_name` of its sessions is the name of the schema.
    pub fn config(&self) -> Value {
        json!({
            "destinationType": "postgres", "host": self.url.host_str(), "port": self.port(),
            "database": self.url.path().trim_start_matches('/'), "username": self.url.username(),
            "password": self.url.password(), "defaultSchema": self.schema, "sslMode": "disable",
            "parameters": {"application_name": self.schema},
        })
    }

    pub fn sink(&self) -> PostgresSink {
        Self::sink_with(&self.config(), RETRY_TIMEOUT)
    }

    pub fn sink_with(config: &Value, retry_timeout: Duration) -> PostgresSink {
        PostgresSink::connect(&Settings::parse(config).expect("settings"), retry_timeout).expect("a sink")
    }

    /// The rows of a query: the text of the columns, joined by `|`; null is `∅`.
    pub fn rows(&mut self, sql: &str) -> Vec<String> {
        let messages = self.admin.simple_query(sql).expect(sql);
        let text = |row: &postgres::SimpleQueryRow| {
            (0..row.len()).map(|at| row.get(at).unwrap_or("∅")).collect::<Vec<_>>().join("|")
        };
        let rows = messages.iter().filter_map(|message| match message {
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

    /// The columns of a table, as `name|type`.
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

    /// Terminates the sink's connections, as a restart of the server does, and waits until they are closed. Returns how
    /// many there were.
    pub fn terminate_connections(&mut self) -> usize {
        let schema = self.schema.clone();
        let terminated = self.rows(&format!(
            "SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = '{schema}'"
        ));
        // By process id, because the sink may have reconnected already.
        let pids = terminated.iter().filter_map(|row| row.split('|').next());
        let pids = pids.fold("0".to_owned(), |pids, pid| pids + "," + pid);
        let remaining = format!("SELECT 1 FROM pg_stat_activity WHERE pid IN ({pids})");
        wait_until("the connections are closed", || self.rows(&remaining).is_empty());
        terminated.len()
    }

    /// Stops a sink as SIGKILL does: without cleanup, and the server sees the connections end.
    pub fn kill(&mut self, mut sink: PostgresSink) {
        let thread = sink.resources.loader_thread.stop();
        std::mem::forget(sink);
        // The loader thread still runs, and would load its chunks over new connections.
        wait_until("the loader thread ended", || {
            self.terminate_connections() == 0 && thread.as_ref().is_none_or(std::thread::JoinHandle::is_finished)
        });
        self.terminate_connections();
    }

    /// The number of the sink's connections with an open transaction.
    pub fn open_transactions(&mut self) -> usize {
        let schema = self.schema.clone();
        self.rows(&format!(
            "SELECT 1 FROM pg_stat_activity WHERE application_name = '{schema}' AND state LIKE 'idle in%'"
        ))
        .len()
    }
}

impl Drop for TestSchema {
    fn drop(&mut self) {
        let _ = self.admin.batch_execute(&format!("DROP SCHEMA {} CASCADE", self.schema));
    }
}

/// Waits for a condition.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < DEADLINE, "waiting until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A stream with these declared fields: name and JSON Schema.
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
        cdc_deletion: None,
        replaces_at_first_commit: false,
        generation: Generation::default(),
        to_same_case: false,
        add_meta: false,
        airbyte: crate::sidecar::sink::AirbyteSpec::default(),
    }
}

/// A stream with the fields `id`, which is its key, and `v`.
pub fn keyed(table: &str, mode: WriteMode) -> StreamSpec {
    let fields = [("id", json!({"type": "integer"})), ("v", json!({"type": "string"}))];
    StreamSpec { primary_key: vec![vec!["id".to_owned()]], ..spec(table, mode, &fields) }
}

pub fn record(data: &str) -> Record<'_> {
    Record {
        stream: Cow::Borrowed("s"),
        namespace: None,
        data: Cow::Borrowed(data),
        emitted_at: Some(0),
        meta: None,
        line_bytes: 20,
    }
}

pub fn write(sink: &mut PostgresSink, stream: StreamIndex, rows: &[&str]) {
    for row in rows {
        sink.write(stream, &record(row)).expect(row);
    }
}

/// Rows of a stream, and the table that is expected.
pub struct Case {
    pub label: &'static str,
    /// The `properties` of the stream's JSON Schema.
    pub declared: &'static str,
    pub rows: &'static [&'static str],
    /// Each column as `name type`, in their order. Long names of types are shortened, see [`short_type`].
    pub columns: &'static [&'static str],
    /// Each row, see [`TestSchema::rows`].
    pub values: &'static [&'static str],
}

/// Loads the rows of each case into a table and compares the table with the expected one.
pub fn check(cases: &[Case]) {
    let mut db = TestSchema::new();
    let mut sink = db.sink();
    for (index, case) in cases.iter().enumerate() {
        let (label, table) = (case.label, format!("t{index}"));
        let properties: Value = serde_json::from_str(case.declared).expect(label);
        let mut stream = spec(&table, WriteMode::Append, &[]);
        stream.json_schema = json!({"type": "object", "properties": properties});
        let stream = sink.open(stream).expect(label);
        write(&mut sink, stream, case.rows);
        sink.finish(stream).expect(label);
        let columns: Vec<String> = db.columns(&table).iter().map(|column| short_type(column)).collect();
        assert_eq!(columns, case.columns, "{label}: columns");
        // Postgres returns the rows of an append-only table in the order of arrival.
        assert_eq!(db.rows(&format!("SELECT * FROM {table}")), case.values, "{label}: values");
    }
}

/// `name type`, with the short names of types.
fn short_type(column: &str) -> String {
    let (name, kind) = column.rsplit_once('|').expect("name and type");
    let kind = match kind {
        "timestamp with time zone" => "timestamptz",
        "timestamp without time zone" => "timestamp",
        "time with time zone" => "timetz",
        "time without time zone" => "time",
        "double precision" => "double",
        other => other,
    };
    format!("{name} {kind}")
}

/// Writes a row `{"id":n,"v":"…"}` for each id, with a value of this length.
pub fn write_many(sink: &mut PostgresSink, stream: StreamIndex, ids: std::ops::Range<u32>, length: usize) {
    let value = "x".repeat(length);
    for id in ids {
        let row = format!(r#"{{"id":{id},"v":"{value}"}}"#);
        sink.write(stream, &record(&row)).expect("a row");
    }
}

/// Gives a stream a way to write rows, for this run.
pub type WriteWay = fn(StreamSpec, i64) -> StreamSpec;

/// All ways in which rows get into a table.
pub const WRITE_WAYS: [(&str, WriteWay); 7] = [
    ("append", |spec, _| StreamSpec { mode: WriteMode::Append, ..spec }),
    ("append_dedup", |spec, _| StreamSpec { mode: WriteMode::Merge, ..spec }),
    ("overwrite", |spec, _| StreamSpec { mode: WriteMode::Replace, primary_key: Vec::new(), ..spec }),
    ("overwrite_dedup", |spec, _| StreamSpec { mode: WriteMode::Replace, ..spec }),
    ("replaced at the first commit", |spec, _| StreamSpec {
        mode: WriteMode::Merge,
        replaces_at_first_commit: true,
        ..spec
    }),
    ("generations, read whole", |spec, run| StreamSpec {
        mode: WriteMode::Append,
        generation: Generation { id: run, minimum: run, resumable: false, resumes: false },
        ..spec
    }),
    ("generations, resumable", |spec, run| StreamSpec {
        mode: WriteMode::Merge,
        generation: Generation { id: run, minimum: run, resumable: true, resumes: false },
        ..spec
    }),
];

/// The ways for the `n`-th case of a table: all for the first one, else one of them.
pub fn write_ways_of_case(n: usize) -> &'static [(&'static str, WriteWay)] {
    if n == 0 { &WRITE_WAYS } else { std::slice::from_ref(&WRITE_WAYS[n % WRITE_WAYS.len()]) }
}
