//! The data of the connector `ledger`, and the expected content of the tables.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use postgres::Client;
use postgres::error::SqlState;
use serde_json::{Value, json};

use crate::support::{Warehouse, World};

/// Rows of `rates` in each edition.
const RATES: i64 = 1200;

/// Two syncs of the same source: one with a state for each stream, one with a state for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncKind {
    Streams,
    Global,
}

impl SyncKind {
    pub const ALL: [Self; 2] = [Self::Streams, Self::Global];

    /// The suffix of its sync id, and the prefix of its tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Streams => "stream",
            Self::Global => "global",
        }
    }

    pub fn prefix(self) -> String {
        format!("{}_", self.name())
    }

    /// The position of a stream in the stored state of a sync.
    fn position(self, warehouse: &Warehouse, sync: &str, stream: &str) -> i64 {
        let (key, path) = match self {
            Self::Streams => (stream, format!("state->>'{stream}_at'")),
            Self::Global => ("_GLOBAL_STATE", "state->'shared_state'->>'ledger_at'".to_owned()),
        };
        warehouse.number(&format!(
            "SELECT coalesce(max(({path})::bigint), 0) FROM results.source_state
             WHERE sync_id = '{sync}' AND stream = '{key}'"
        ))
    }
}

/// The content of the source in one round.
#[derive(Debug, Clone, Copy)]
pub struct Source {
    pub until: u32,
    pub edition: u32,
    /// Rows of a stream between two pauses.
    pub batch: u32,
    pub pause: &'static str,
}

impl Source {
    pub fn config(self, kind: SyncKind) -> Value {
        let Self { until, edition, batch, pause } = self;
        json!({"kind": kind.name(), "until": until, "edition": edition, "batch": batch, "pause": pause})
    }
}

/// The configured catalog.
pub fn catalog() -> Value {
    let types = |list: &[(&str, &str)]| -> Value {
        list.iter()
            .map(|(name, kind)| ((*name).to_owned(), json!({"type": kind})))
            .collect::<serde_json::Map<_, _>>()
            .into()
    };
    let mut accounts = types(&[
        ("id", "integer"),
        ("version", "integer"),
        ("balance", "number"),
        ("owner", "string"),
        ("changed_at", "string"),
        ("tags", "object"),
    ]);
    accounts["changed_at"]["format"] = json!("date-time");
    let entries = types(&[("id", "integer"), ("account", "integer"), ("cents", "integer"), ("note", "string")]);
    let rates = types(&[("id", "integer"), ("edition", "integer"), ("rate", "integer")]);
    let stream = |name: &str, properties: Value| {
        json!({
            "name": name, "json_schema": {"type": "object", "properties": properties},
            "supported_sync_modes": ["full_refresh", "incremental"],
        })
    };
    json!({"streams": [
        {
            "stream": stream("accounts", accounts), "sync_mode": "incremental", "cursor_field": ["version"],
            "destination_sync_mode": "append_dedup", "primary_key": [["id"]],
        },
        {"stream": stream("entries", entries), "sync_mode": "incremental", "destination_sync_mode": "append"},
        {"stream": stream("rates", rates), "sync_mode": "full_refresh", "destination_sync_mode": "overwrite"},
    ]})
}

/// Rows are committed before their state is stored: all rows up to the stored state are in the tables.
pub fn assert_backed(warehouse: &Warehouse, schema: &str, kind: SyncKind, sync: &str, when: &str) {
    let prefix = kind.prefix();
    for (stream, query) in [
        (
            "accounts",
            "SELECT count(*) FROM (
                 SELECT (s::bigint * 7919) % (61 + s / 50) + 1 AS id, max(s) AS version
                 FROM generate_series(1, $AT) s GROUP BY 1
             ) due LEFT JOIN $TABLE had USING (id) WHERE had.version IS NULL OR had.version < due.version",
        ),
        ("entries", "SELECT $AT - count(DISTINCT id) FROM $TABLE WHERE id BETWEEN 1 AND $AT"),
    ] {
        let at = kind.position(warehouse, sync, stream);
        if at > 0 {
            let query = query.replace("$AT", &at.to_string()).replace("$TABLE", &format!("{schema}.{prefix}{stream}"));
            let missing = warehouse.number(&query);
            assert_eq!(missing, 0, "{when}: missing rows of {prefix}{stream} below the state {at}");
        }
    }
}

/// The tables of both schemas contain the same rows, equally often except for the stream without a key, whose rows may be
/// duplicated.
pub fn assert_equal(warehouse: &Warehouse, kind: SyncKind, until: u32, when: &str) {
    for (stream, all, columns) in [
        ("accounts", "ALL", "id, version, balance, owner, changed_at, tags"),
        ("entries", "", "id, account, cents, note"),
        ("rates", "ALL", "id, edition, rate"),
    ] {
        let table = format!("{}{stream}", kind.prefix());
        let described = |schema: &str| {
            warehouse.texts(&format!(
                "SELECT column_name || ' ' || data_type FROM information_schema.columns
                 WHERE table_schema = '{schema}' AND table_name = '{table}' ORDER BY column_name"
            ))
        };
        assert_eq!(described("live"), described("calm"), "{when}: the columns of {table}");
        assert_eq!(described("live").len(), columns.split(',').count(), "{when}: {:?}", described("live"));
        for (one, other) in [("live", "calm"), ("calm", "live")] {
            let query = format!(
                "SELECT count(*) FROM (SELECT {columns} FROM {one}.{table} EXCEPT {all} SELECT {columns} FROM {other}.{table}) x"
            );
            assert_eq!(warehouse.number(&query), 0, "{when}: rows of {table} in {one} but not in {other}");
        }
    }
    let entries = |what: &str| warehouse.number(&format!("SELECT count({what}) FROM live.{}entries", kind.prefix()));
    assert_eq!(entries("DISTINCT id"), i64::from(until), "{when}");
    println!("{}: {} of {until} entries are duplicates", kind.name(), entries("*") - i64::from(until));
}

/// Continuously reads the tables that are replaced.
pub struct TableReader {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(u32, Vec<String>)>,
}

/// The last observation of a table.
#[derive(Default)]
struct Observation {
    edition: Option<i64>,
}

impl TableReader {
    pub fn start(world: &World, warehouse: &Warehouse) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let url = warehouse
            .within(&world.setup.database_url, "live")
            .replace("search_path=live", "application_name=table-reader");
        let thread = std::thread::spawn(move || {
            let (mut reads, mut bad) = (0, Vec::new());
            let mut observations = SyncKind::ALL.map(|kind| (kind, Observation::default()));
            let mut client = None;
            while !stopped.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(10));
                // The server may be recovering.
                let Some(open) = client.take().or_else(|| Client::connect(&url, postgres::NoTls).ok()) else {
                    continue;
                };
                client = Some(open).and_then(|mut open| {
                    for (kind, observation) in &mut observations {
                        let complete = observation.read(&mut open, *kind, &mut bad)?;
                        reads += u32::from(complete);
                    }
                    Some(open)
                });
            }
            (reads, bad)
        });
        Self { stop, thread }
    }

    /// Every read returned a complete edition, and no edition older than the one before.
    pub fn assert_only_complete(self, when: &str) {
        self.stop.store(true, Ordering::Relaxed);
        let (reads, bad) = self.thread.join().expect("the reading thread");
        assert!(bad.is_empty(), "{when}: {} of {reads} reads were bad, such as: {}", bad.len(), bad[0]);
        assert!(reads > 100, "{when}: read {reads} times");
        println!("the tables were complete in {reads} reads");
    }
}

impl Observation {
    /// Returns whether the table exists; `None` if the connection is lost.
    fn read(&mut self, client: &mut Client, kind: SyncKind, bad: &mut Vec<String>) -> Option<bool> {
        let table = format!("live.{}rates", kind.prefix());
        let query = format!("SELECT count(*), min(edition), max(edition), sum(rate)::bigint FROM {table}");
        let row = match client.query_one(&query, &[]) {
            Ok(row) => row,
            Err(error) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => {
                if self.edition.is_some() {
                    bad.push(format!("{table} is gone"));
                }
                return Some(false);
            }
            Err(error) => {
                // Only a shutdown of the server may end the statement.
                if error.as_db_error().is_some_and(|answer| !answer.code().code().starts_with("57P")) {
                    bad.push(format!("{table}: {error}"));
                }
                return None;
            }
        };
        let found: (i64, Option<i64>, Option<i64>, Option<i64>) = (row.get(0), row.get(1), row.get(2), row.get(3));
        let sum = (1..=RATES).map(|id| id * 37 % 1000).sum();
        let complete = found.0 == RATES && found.1 == found.2 && found.3 == Some(sum);
        if !complete || found.1 < self.edition {
            bad.push(format!(
                "{table} after edition {:?}: rows, lowest and highest edition, sum: {found:?}",
                self.edition
            ));
        }
        self.edition = found.1;
        Some(true)
    }
}
