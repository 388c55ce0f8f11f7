//! One schema per test in the database of `SYNCCTL_TEST_DATABASE_URL`.

use std::env;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use jiff::Timestamp;
use postgres::Client;
use uuid::Uuid;

use crate::db::{Db, LogIds, LogRow, Options, Target};
use crate::secret::Secret;
use crate::task::{Image, ReadOptions, StreamReport, StreamReports, StreamStatus, Task, TaskKind};

/// The URL of the test database.
pub(super) fn base_url() -> String {
    env::var("SYNCCTL_TEST_DATABASE_URL").expect(
        "SYNCCTL_TEST_DATABASE_URL must be the URL of a PostgreSQL superuser: `make test` starts a server and sets it",
    )
}

/// The root certificate of the test server.
pub(super) fn ca_file() -> String {
    env::var("SYNCCTL_TEST_CA_FILE")
        .expect("SYNCCTL_TEST_CA_FILE must be the path of the test server's root certificate: `make test` sets it")
}

/// The test URL with further parameters, which replace those of the same name.
pub(super) fn url_with(parameters: &str) -> String {
    let url = base_url();
    let (base, query) = url.split_once('?').unwrap_or((&url, ""));
    let name = |pair: &str| pair.split('=').next().unwrap_or_default().to_owned();
    let others =
        query.split('&').filter(|old| !old.is_empty() && !parameters.split('&').any(|new| name(new) == name(old)));
    let pairs: Vec<&str> = others.chain(parameters.split('&')).collect();
    format!("{base}?{}", pairs.join("&"))
}

pub(super) fn target(url: &str) -> Target {
    Target::parse(&Secret::from(url), "SYNCCTL_TEST_DATABASE_URL").expect("a valid URL")
}

/// A schema that is dropped with the value, without tables.
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

    pub(super) fn open(&self, retry_timeout: Duration) -> Db {
        Db::open(target(&self.url()), self.options(4, retry_timeout)).expect("the database answers")
    }

    pub(super) fn options(&self, pool_size: u32, retry_timeout: Duration) -> Options {
        Options { application_name: self.name.clone(), pool_size, retry_timeout, own_schema: self.own() }
    }

    /// The name of the own schema of this test.
    pub(super) fn own(&self) -> String {
        format!("{}_own", self.name)
    }

    /// A database behind a proxy that can drop the answer to a COMMIT.
    pub(super) fn open_through(&self, proxy: &Proxy) -> Db {
        let url = url_with(&format!("search_path={}&host=127.0.0.1&port={}", self.name, proxy.port));
        let retry_timeout = Duration::from_secs(20);
        Db::open(target(&url), self.options(1, retry_timeout)).expect("the database answers")
    }

    /// A database with its tables.
    pub(super) fn ready(&self) -> Db {
        let db = self.open(Duration::from_secs(20));
        db.ensure_schema().expect("the schema can be created");
        db
    }

    /// A database with its tables and without the own schema, as for a role that may not create it.
    pub(super) fn ready_without_own(&self) -> Db {
        let db = self.ready();
        db.use_own_schema(None);
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

    /// Terminates the connections of the pool; returns their number.
    pub(super) fn kill_connections(&mut self) -> usize {
        let terminate = "SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1";
        let killed: Vec<i32> =
            self.admin.query(terminate, &[&self.name]).expect("a superuser").iter().map(|row| row.get(0)).collect();
        // The function has a timeout of its own only from PostgreSQL 14 on.
        let is_running = "SELECT 1 FROM pg_stat_activity WHERE pid = ANY($1)";
        // In a transaction the view would not change.
        let mut is_any_running = || {
            self.admin.batch_execute("SELECT pg_stat_clear_snapshot()").expect("valid SQL");
            !self.admin.query(is_running, &[&killed]).expect("a superuser").is_empty()
        };
        while is_any_running() {
            thread::sleep(Duration::from_millis(10));
        }
        killed.len()
    }
}

impl Drop for Schema {
    fn drop(&mut self) {
        // Must not hide the panic of a test.
        let sql = format!("DROP SCHEMA IF EXISTS {}, {} CASCADE", self.name, self.own());
        let _ = self.admin.batch_execute(&sql);
    }
}

/// A proxy in front of the server. Its threads end with their connections.
pub(super) struct Proxy {
    port: u16,
    lose: Arc<AtomicBool>,
    frozen: Arc<AtomicBool>,
}

impl Proxy {
    pub(super) fn start() -> Self {
        let config: postgres::Config =
            base_url().split('?').next().and_then(|url| url.parse().ok()).expect("a plain URL");
        let Some(postgres::config::Host::Tcp(host)) = config.get_hosts().first().cloned() else { panic!("a TCP host") };
        let server = (host, config.get_ports().first().copied().unwrap_or(5432));
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let lose = Arc::new(AtomicBool::new(false));
        let frozen = Arc::new(AtomicBool::new(false));
        let (lose_flag, frozen_flag) = (lose.clone(), frozen.clone());
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let server = TcpStream::connect((server.0.as_str(), server.1)).expect("the server");
                let (client_out, server_in) =
                    (client.try_clone().expect("a copy"), server.try_clone().expect("a copy"));
                let mute = Arc::new(AtomicBool::new(false));
                let (lose, muted) = (lose_flag.clone(), mute.clone());
                thread::spawn(move || {
                    copy(client, server, |bytes| {
                        let commit = bytes.windows(7).any(|window| window == b"COMMIT\0");
                        if commit && lose.swap(false, Ordering::SeqCst) {
                            mute.store(true, Ordering::SeqCst);
                        }
                        true
                    });
                });
                let frozen = frozen_flag.clone();
                thread::spawn(move || {
                    copy(server_in, client_out, |_| {
                        while frozen.load(Ordering::SeqCst) {
                            thread::sleep(Duration::from_millis(20));
                        }
                        !muted.load(Ordering::SeqCst)
                    });
                });
            }
        });
        Self { port, lose, frozen }
    }

    /// Holds all answers of the server, or delivers them.
    pub(super) fn freeze(&self, frozen: bool) {
        self.frozen.store(frozen, Ordering::SeqCst);
    }

    /// Drops the connection instead of the answer to the next COMMIT.
    pub(super) fn lose_next_answer(&self) {
        self.lose.store(true, Ordering::SeqCst);
    }

    /// Whether an answer was dropped since.
    pub(super) fn has_lost(&self) -> bool {
        !self.lose.load(Ordering::SeqCst)
    }
}

/// Copies until one side ends or `pass` returns false; then closes both sides.
fn copy(mut from: TcpStream, mut to: TcpStream, pass: impl Fn(&[u8]) -> bool) {
    let mut buffer = vec![0; 65536];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if !pass(&buffer[..count]) || to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    // One of them may be closed already.
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

/// A server setting within a transaction of the pool.
pub(super) fn setting(db: &Db, name: &str) -> String {
    let sql = format!("SELECT current_setting('{name}')");
    db.run("read a setting", |tx| tx.row(&sql, &[], |row| row.try_get(0))).expect("readable").expect("a row")
}

/// The server process of the next connection of the pool.
pub(super) fn backend_pid(db: &Db) -> i32 {
    db.run("read the pid", |tx| tx.row("SELECT pg_backend_pid()", &[], |row| row.try_get(0)))
        .expect("readable")
        .expect("a row")
}

pub(super) fn time(text: &str) -> Timestamp {
    text.parse().expect("a valid time")
}

/// A spec, check or discover that started at this time.
pub(super) fn attempt(kind: TaskKind, task_id: &str, started_at: &str) -> Task {
    let (sync_id, storage_key) = (String::new(), "k".to_owned());
    Task { kind, sync_id, storage_key, started_at: time(started_at), started_by: None, ..task(task_id) }
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
        timeout: Duration::from_mins(1),
        then_run: None,
    }
}

pub(super) fn reports(streams: &[(&str, StreamStatus)]) -> StreamReports {
    streams.iter().map(|(name, status)| ((*name).to_owned(), StreamReport::new(*status))).collect()
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
