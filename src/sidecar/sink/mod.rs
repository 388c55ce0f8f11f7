//! Destinations of rows: one trait, one module per destination.
//!
//! A sink handles streams, rows and commits; it does not know states, statuses or the connector. To add a destination,
//! write its module and list it in [`DESTINATIONS`]. `field_type` reads the JSON Schema of a field for all of them.

pub mod bulker;
mod discard;
pub mod field_type;
pub mod postgres;

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use crate::airbyte::message::{Record, StreamName};
use crate::db::ResultsDatabase;
use crate::failure::{Class, Failure};
use crate::host_rules::{HostRules, Refused};
use crate::retry::Backoff;
use crate::task::{CdcDeletion, LoadCounts, Task};

/// Delays between attempts to reach a destination.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));

/// How long the first connection is retried: then a wrong address is more likely than an outage.
const FIRST_RETRY_TIMEOUT: Duration = Duration::from_secs(20);
/// The same where no server is at the address: the port is closed, or the host is unknown or unreachable.
const NO_SERVER_RETRY_TIMEOUT: Duration = Duration::from_secs(4);

/// Values of `destinationType`, each with the parser of the other fields.
const DESTINATIONS: &[(&str, ParseConfig)] =
    &[(POSTGRES, postgres::parse), ("bulker", bulker::parse), ("discard", discard::parse)];

/// The only destination that deletes rows which the source marks as deleted, and the only one with certificates.
const POSTGRES: &str = "postgres";

/// Validates a `destinationConfig` without connecting. Errors name the field, never its value.
type ParseConfig = fn(&Value) -> Result<Box<dyn Connect>, Failure>;

/// The validated configuration of a destination.
trait Connect: Debug {
    /// Which destination it is, without credentials.
    fn address(&self) -> String;

    /// Lets it connect only to hosts that these rules allow.
    fn restrict(&mut self, _rules: Arc<HostRules>) {}

    /// Why these rules refuse its host, as far as that can be found out soon and here.
    fn check_hosts(&self, _rules: &HostRules) -> Result<(), Refused> {
        Ok(())
    }

    /// The first stream whose table is certainly one of ours in this database of results, and that table.
    fn reserved_table(
        &self,
        _results: &ResultsDatabase,
        _streams: &mut dyn Iterator<Item = StreamSpec>,
    ) -> Option<(StreamName, String)> {
        None
    }

    /// Connects, for one task.
    fn connect(&self, task: &Task) -> Result<Box<dyn Sink>, SinkError>;
}

/// A validated `destinationConfig` of any type.
#[derive(Debug)]
pub struct Destination(Box<dyn Connect>);

impl Destination {
    /// Whether syncctl loads destinations of this type itself.
    pub fn is_known(kind: &str) -> bool {
        DESTINATIONS.iter().any(|(known, _)| *known == kind)
    }

    /// Whether the destination of a valid `destinationConfig` can delete rows that the source marks as deleted.
    pub fn deletes_rows(config: &str) -> bool {
        let config: Value = serde_json::from_str(config).unwrap_or_default();
        config["destinationType"] == POSTGRES
    }

    /// Validates a `destinationConfig` without connecting.
    pub fn parse(config: &Value) -> Result<Self, Failure> {
        let invalid = |why: &str| {
            let known: Vec<&str> = DESTINATIONS.iter().map(|(kind, _)| *kind).collect();
            invalid_field("destinationType", &format!("{why}: known types are {}", known.join(", ")))
        };
        let kind = match config.get("destinationType") {
            Some(Value::String(kind)) => kind,
            None | Some(Value::Null) => return Err(invalid("is required")),
            Some(_) => return Err(invalid("expected a string")),
        };
        let Some((_, parse)) = DESTINATIONS.iter().find(|(known, _)| known == kind) else {
            let why = "is not loaded by syncctl itself, and there is no Bulker for it (SYNCCTL_BULKER_URL)";
            return Err(invalid(&format!("{kind:?} {why}")));
        };
        if kind != POSTGRES && cdc_deletion(config)? == Some(CdcDeletion::Hard) {
            return Err(invalid_field(
                "cdcDeletion",
                "only destinations of the type postgres delete rows: leave it out",
            ));
        }
        parse(config).map(Self)
    }

    /// Replaces paths of certificates and keys by the content of these files, which are the user's own.
    pub fn read_files(config: &mut Value) -> Result<(), Failure> {
        if config["destinationType"] == POSTGRES { postgres::read_files(config) } else { Ok(()) }
    }

    /// The same destination, which connects only to hosts that these rules allow.
    #[must_use]
    pub fn restricted_to(mut self, rules: Arc<HostRules>) -> Self {
        self.0.restrict(rules);
        self
    }

    /// Why these rules refuse its host. A name that does not resolve here, or not soon, is left to
    /// [`connect`](Self::connect).
    pub fn check_hosts(&self, rules: &HostRules) -> Result<(), Refused> {
        self.0.check_hosts(rules)
    }

    /// Which destination it is, without credentials: `database "x" at host:port`.
    pub fn address(&self) -> String {
        self.0.address()
    }

    /// Why these streams cannot be loaded, if the table of one is certainly one of ours in this database of results. What
    /// other addresses of that database hide is found by [`Sink::assign_tables`].
    pub fn check_tables(
        &self,
        results: &ResultsDatabase,
        mut streams: impl Iterator<Item = StreamSpec>,
    ) -> Result<(), String> {
        let found = self.0.reserved_table(results, &mut streams);
        found.map_or(Ok(()), |(stream, table)| Err(reserved(&stream, &table)))
    }

    /// Connects. Must not run on a thread of a tokio runtime, and the sink must not be dropped on one.
    pub fn connect(&self, task: &Task) -> Result<Box<dyn Sink>, SinkError> {
        self.0.connect(task)
    }
}

/// Why a stream cannot be loaded into a table of ours.
fn reserved(stream: &StreamName, table: &str) -> String {
    format!(
        "stream {:?} would be loaded into table {table}, in which syncctl stores results of tasks: \
         set a prefix for table names, another schema or another destination",
        stream.key()
    )
}

/// A string field of a `destinationConfig`; an empty string counts as absent.
fn optional_text(config: &Value, field: &str) -> Result<Option<String>, Failure> {
    match config.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone()).filter(|text| !text.is_empty())),
        Some(_) => Err(invalid_field(field, "expected a string")),
    }
}

/// What a `destinationConfig` says of rows that the source marks as deleted.
fn cdc_deletion(config: &Value) -> Result<Option<CdcDeletion>, Failure> {
    let text = optional_text(config, "cdcDeletion")?;
    text.map(|text| text.parse()).transpose().map_err(|error: String| invalid_field("cdcDeletion", &error))
}

/// A required string field of a `destinationConfig`.
fn required_text(config: &Value, field: &str) -> Result<String, Failure> {
    optional_text(config, field)?.ok_or_else(|| invalid_field(field, "is required"))
}

/// The failure for a field of a `destinationConfig`.
fn invalid_field(field: &str, why: &str) -> Failure {
    Failure::new(Class::InvalidInput, format!("destinationConfig.{field}: {why}"))
}

/// One stream as a sink sees it: the configured catalog combined with the options of the read.
#[derive(Debug, Clone)]
pub struct StreamSpec {
    /// Identifies the stream in messages.
    pub name: StreamName,
    /// Destination schema; `None` selects the destination's default.
    pub schema: Option<String>,
    /// Table name, before the destination replaces characters that it does not allow.
    pub table: String,
    /// JSON Schema of a row.
    pub json_schema: serde_json::Value,
    /// How rows are combined with existing ones.
    pub mode: WriteMode,
    /// Paths of the primary key's fields; empty without a key.
    pub primary_key: Vec<Vec<String>>,
    /// Path of the cursor. Of two rows with the same key the one with the higher cursor wins, in whatever order they come.
    pub cursor: Vec<String>,
    /// What becomes of rows that the source marks as deleted, where rows are merged; `None` selects the destination's
    /// default.
    pub cdc_deletion: Option<CdcDeletion>,
    /// The first commit with rows replaces all others, later ones add to it. Not with [`WriteMode::Replace`].
    pub replaces_at_first_commit: bool,
    /// Which existing rows this read makes obsolete.
    pub generation: Generation,
    /// Convert names to lower case.
    pub to_same_case: bool,
    /// Add a column `_jitsu_timestamp`.
    pub add_meta: bool,
    /// The columns of Airbyte's destination.
    pub airbyte: AirbyteSpec,
}

/// What rows have in the columns of Airbyte's destination.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AirbyteSpec {
    /// A new table gets the columns.
    pub in_new_tables: bool,
    /// The number of the sync, in the catalog.
    pub sync_id: i64,
}

/// Airbyte's generations: each row carries the number of the refresh that brought it, and a complete refresh may make
/// rows of earlier generations obsolete.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Generation {
    /// The generation of the new rows; 0: none.
    pub id: i64,
    /// Rows of lower generations are deleted once the stream is finished. 0: none are.
    pub minimum: i64,
    /// A later run can resume from a state in the middle of the stream: false for streams that are always read whole.
    pub resumable: bool,
    /// The source resumes from such a state: rows of this generation from earlier runs count.
    pub resumes: bool,
}

/// How rows are combined with existing ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteMode {
    /// The rows of this run replace all others when the stream is finished.
    Replace,
    /// Rows are added.
    Append,
    /// Rows are merged by primary key; of equal keys the last row wins.
    Merge,
}

/// The effect of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Committed {
    /// The rows so far are in the table, or the destination retains them for it: the state after them may be stored.
    Durable,
    /// The rows become durable when the stream is finished: the state must wait until then.
    Deferred,
}

/// Why a destination did not accept rows.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{text}")]
pub struct SinkError {
    /// Names the destination, never its credentials.
    pub text: String,
    /// A retry may succeed, as after a lost connection.
    pub transient: bool,
}

impl SinkError {
    /// An error that a retry cannot fix.
    fn permanent(text: impl Into<String>) -> Self {
        Self { text: text.into(), transient: false }
    }
}

/// What the user should know of a load that goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// The stream that it concerns; `None` for all of them.
    pub stream: Option<StreamIndex>,
    /// Names its subject, without credentials. Repeated texts are counted.
    pub text: String,
}

/// Identifies an open stream within a sink.
pub type StreamIndex = usize;

/// A destination for rows, used from one thread. Dropping a sink without [`finish`](Sink::finish) leaves the tables as
/// of the last commit and removes staged rows, except those that a commit reported as [`Durable`](Committed::Durable).
pub trait Sink: Send {
    /// Decides which stream gets which table, before any of them is opened: a stream that is opened without gets its table
    /// then. An error refuses the read.
    fn assign_tables(&mut self, _streams: &[StreamSpec]) -> Result<(), Failure> {
        Ok(())
    }

    /// Registers a stream; the `i`-th call returns `i`. Creates or widens tables no later than the first commit.
    fn open(&mut self, stream: StreamSpec) -> Result<StreamIndex, SinkError>;

    /// Takes one row. May buffer it; blocks while the destination is slow.
    fn write(&mut self, stream: StreamIndex, record: &Record<'_>) -> Result<(), SinkError>;

    /// Makes the stream's rows so far durable.
    fn commit(&mut self, stream: StreamIndex) -> Result<Committed, SinkError>;

    /// Ends a stream that the source has completed: commits, then replaces the table ([`WriteMode::Replace`]) or deletes
    /// the generations that are now obsolete. A full refresh without rows empties the table.
    fn finish(&mut self, stream: StreamIndex) -> Result<(), SinkError>;

    /// Ends a stream before the source has completed it: commits, and replaces nothing. Rows that would replace others
    /// are written only if the table has none. Returns whether the rows are in the table; if not, they are dropped.
    fn finish_early(&mut self, stream: StreamIndex) -> Result<bool, SinkError>;

    /// Discards the rows since the last commit and removes staged rows.
    fn abort(&mut self, stream: StreamIndex);

    /// Does work that depends on time. Called several times a second, whether or not rows arrive.
    fn tick(&mut self) {}

    /// What the destination did with the rows that are committed so far.
    fn counts(&self, _stream: StreamIndex) -> LoadCounts {
        LoadCounts::default()
    }

    /// Returns the warnings for the user since the last call.
    fn warnings(&mut self) -> Vec<Warning> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::net::UnixListener;
    use std::sync::Arc;

    use super::Destination;
    use crate::host_rules::HostRules;
    use crate::sidecar::tests::support::task;
    use crate::task::{ReadOptions, TaskKind};
    use serde_json::json;

    #[test]
    fn unknown_destination_type_lists_the_known_ones() {
        for config in [json!({}), json!(null), json!({"destinationType": "bigquery"}), json!({"destinationType": 1})] {
            let failure = Destination::parse(&config).expect_err("no such destination");
            assert!(failure.text.starts_with("destinationConfig.destinationType: "), "{failure}");
            assert!(failure.text.ends_with("known types are postgres, bulker, discard"), "{failure}");
        }
        assert!(Destination::parse(&json!({"destinationType": "discard"})).is_ok());
    }

    /// The sidecar checks each address when it connects: a name may lead elsewhere than when the task was accepted.
    #[test]
    fn no_connection_is_made_to_a_host_that_the_rules_refuse() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("a listener");
        let port = listener.local_addr().expect("an address").port();
        let folder = tempfile::tempdir().expect("a directory");
        let path = folder.path().join(format!(".s.PGSQL.{port}"));
        let socket = UnixListener::bind(&path).expect("a socket");
        socket.set_nonblocking(true).expect("a listener");
        let task = task(TaskKind::Read, ReadOptions::default());
        for host in
            ["127.0.0.1", "localhost", "127.1", "2130706433", "::ffff:127.0.0.1", &folder.path().display().to_string()]
        {
            // A URL has no directory as its host.
            let of_url = match host {
                host if host.starts_with('/') => "127.0.0.1".to_owned(),
                host if host.contains(':') => format!("[{host}]"),
                host => host.to_owned(),
            };
            for config in [
                json!({"destinationType": "postgres", "host": host, "port": port, "database": "d", "username": "u"}),
                json!({"destinationType": "postgres", "host": "db.example.com", "port": port, "database": "d", "username": "u",
                       "parameters": {"host": host}}),
                json!({"destinationType": "bulker", "url": format!("http://{of_url}:{port}"), "authToken": "t"}),
            ] {
                for rules in ["*.example.com", "db.example.com, 10.0.0.0/8", "127.0.0.1:1", "/run/postgresql"] {
                    let rules: HostRules = rules.parse().expect("rules");
                    let destination = Destination::parse(&config).expect("a destination");
                    let error = destination.restricted_to(Arc::new(rules)).connect(&task).err().expect("no connection");
                    assert!(!error.transient && error.text.contains("SYNCCTL_DESTINATION_HOSTS"), "{config}: {error}");
                }
            }
        }
        assert!(listener.accept().is_err() && socket.accept().is_err(), "a connection was made");
    }

    #[test]
    fn deletion_is_refused_where_the_destination_deletes_no_rows() {
        let postgres = json!({"destinationType": "postgres", "host": "h", "database": "d", "username": "u"});
        for (config, value, expected) in [
            (json!({"destinationType": "discard"}), json!("soft"), None),
            (json!({"destinationType": "discard"}), json!("hard"), Some("only destinations of the type postgres")),
            (postgres.clone(), json!("hard"), None),
            (postgres.clone(), json!(null), None),
            (postgres.clone(), json!("gone"), Some("\"gone\" is unknown: expected soft or hard")),
            (postgres, json!(true), Some("expected a string")),
        ] {
            let mut config = config;
            config["cdcDeletion"] = value;
            let failure = Destination::parse(&config).err().map(|failure| failure.text);
            let matches = match (&failure, expected) {
                (None, None) => true,
                (Some(text), Some(expected)) => {
                    text.starts_with("destinationConfig.cdcDeletion: ") && text.contains(expected)
                }
                _ => false,
            };
            assert!(matches, "{config}: {failure:?}");
        }
    }
}
