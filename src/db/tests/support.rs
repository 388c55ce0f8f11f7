//! A schema per test in the database of `SYNCCTL_TEST_DATABASE_URL`.

use std::env;
use std::time::Duration;

use jiff::Timestamp;
use postgres::Client;
use uuid::Uuid;

use crate::db::{Db, LogIds, LogRow, Options, ResultKey, Target};
use crate::secret::Secret;
use crate::task::{Image, ReadOptions, StreamReport, StreamReports, StreamStatus, Task, TaskKind};

/// The URL of the test database.
pub(super) fn base_url() -> String {
    env::var("SYNCCTL_TEST_DATABASE_URL").expect(
        "SYNCCTL_TEST_DATABASE_URL has to hold the URL of a PostgreSQL superuser: `make test` starts a server and sets it",
    )
}

/// The certificate that vouches for the test server's.
pub(super) fn ca_file() -> String {
    env::var("SYNCCTL_TEST_CA_FILE")
        .expect("SYNCCTL_TEST_CA_FILE has to hold the path of the test server's root certificate: `make test` sets it")
}

/// A URL with further parameters; a later one takes the place of an earlier one.
pub(super) fn url_with(parameters: &str) -> String {
    let url = base_url();
    let (base, query) = url.split_once('?').unwrap_or((&url, ""));
    let name = |pair: &str| pair.split('=').next().unwrap_or_default().to_owned();
    let kept =
        query.split('&').filter(|old| !old.is_empty() && !parameters.split('&').any(|new| name(new) == name(old)));
    let pairs: Vec<&str> = kept.chain(parameters.split('&')).collect();
    format!("{base}?{}", pairs.join("&"))
}

pub(super) fn target(url: &str) -> Target {
    Target::parse(&Secret::from(url), "SYNCCTL_TEST_DATABASE_URL").expect("a valid URL")
}

/// A schema that goes away with the value. The tables are not made yet.
pub(super) struct Schema {
    pub(super) name: String,
    pub(super) admin: Client,
}

impl Schema {
    pub(super) fn new() -> Self {
        let name = format!("test_{}", Uuid::new_v4().simple());
        let admin = target(&url_with(&format!("search_path={name}"))).connect("test").expect("a test database");
        Self { name, admin }
    }

    pub(super) fn url(&self) -> String {
        url_with(&format!("search_path={}", self.name))
    }

    pub(super) fn open(&self, patience: Duration) -> Db {
        let options = Options { application_name: self.name.clone(), pool_size: 4, patience };
        Db::open(target(&self.url()), options).expect("the database answers")
    }

    /// A database with its tables.
    pub(super) fn ready(&self) -> Db {
        let db = self.open(Duration::from_secs(20));
        db.ensure_schema().expect("the schema can be made");
        db
    }

    pub(super) fn sql(&mut self, sql: &str) {
        self.admin.batch_execute(sql).expect("valid SQL");
    }

    /// The single value of a query, as text.
    pub(super) fn value(&mut self, sql: &str) -> Option<String> {
        let sql = format!("SELECT ({sql})::text");
        self.admin.query_one(&sql, &[]).expect("valid SQL").get(0)
    }

    /// Ends the connections of the pool, as a server that restarts does. How many there were.
    pub(super) fn kill_connections(&mut self) -> usize {
        let name = &self.name;
        self.admin
            .query("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = $1", &[name])
            .expect("a superuser")
            .len()
    }
}

impl Drop for Schema {
    fn drop(&mut self) {
        // A panicking test has its own story to tell.
        let _ = self.admin.batch_execute(&format!("DROP SCHEMA IF EXISTS {} CASCADE", self.name));
    }
}

pub(super) fn time(text: &str) -> Timestamp {
    text.parse().expect("a valid time")
}

pub(super) fn key() -> ResultKey {
    ResultKey { package: "airbyte/source-faker".to_owned(), version: "1".to_owned(), key: "k".to_owned() }
}

pub(super) fn task(task_id: &str) -> Task {
    Task {
        kind: TaskKind::Read,
        image: Image { package: "airbyte/source-faker".to_owned(), version: "1".to_owned() },
        connector_type: "airbyte".to_owned(),
        task_id: task_id.to_owned(),
        sync_id: "sync".to_owned(),
        storage_key: String::new(),
        started_at: time("2026-01-02T03:04:05.6789Z"),
        started_by: Some(serde_json::json!({"type": "manual"})),
        options: ReadOptions::default(),
        timeout: Duration::from_secs(60),
    }
}

pub(super) fn reports(streams: &[(&str, StreamStatus)]) -> StreamReports {
    streams
        .iter()
        .map(|(name, status)| ((*name).to_owned(), StreamReport { status: *status, ..StreamReport::pending() }))
        .collect()
}

pub(super) fn log_rows(count: usize) -> Vec<LogRow> {
    let mut ids = LogIds::default();
    (0..count)
        .map(|number| {
            let (id, timestamp) = ids.next(time("2026-01-02T03:04:05.678Z"));
            LogRow {
                id,
                timestamp,
                level: "INFO".to_owned(),
                logger: "source".to_owned(),
                message: format!("line {number}\0"),
                sync_id: "sync".to_owned(),
                task_id: "task".to_owned(),
            }
        })
        .collect()
}
