//! A schema, a folder with the pipes, and a scripted connector.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use postgres::{Client, NoTls};
use serde_json::{Value, json};

use crate::contract::{self, EXIT_CODE_FILE, READY_FILE, SidecarExit};
use crate::db::{Db, Options, StoredTask, Target};
use crate::secret::Secret;
use crate::sidecar::{CommitLimits, Sidecar, SourceSettings};
use crate::task::{CONNECTOR_TYPE_AIRBYTE, Image, ReadOptions, Task, TaskKind};

/// Only reached when a test hangs.
const DEADLINE: Duration = Duration::from_mins(2);

/// The sync of all reads.
pub const SYNC_ID: &str = "sync";

/// A schema for results and rows, dropped at the end.
pub struct World {
    pub schema: String,
    pub admin: Client,
    /// The connector's configuration.
    pub config: Value,
    /// In place of `config`: what no `Value` holds.
    pub config_text: Option<String>,
    /// The input state of a read.
    pub state: Option<String>,
    url: url::Url,
    /// The role and the password of the sidecar; those of the tests by default.
    pub role: Option<(String, String)>,
}

impl World {
    pub fn new() -> Self {
        let text = std::env::var("SYNCCTL_TEST_DATABASE_URL")
            .expect("SYNCCTL_TEST_DATABASE_URL must be the URL of a PostgreSQL superuser");
        let mut admin = Client::connect(&text, NoTls).expect("a connection");
        let schema = format!("sidecar_{}", uuid::Uuid::new_v4().simple());
        admin.batch_execute(&format!("CREATE SCHEMA {schema}; SET search_path TO {schema}")).expect("a schema");
        let world = Self {
            schema,
            admin,
            config: json!({}),
            config_text: None,
            state: None,
            role: None,
            url: url::Url::parse(&text).expect("a URL"),
        };
        world.db().ensure_schema().expect("tables");
        world
    }

    /// The database of results.
    pub fn db(&self) -> Db {
        let target = Target::parse(&self.database_url(), "SYNCCTL_TEST_DATABASE_URL").expect("a URL");
        let options = Options {
            application_name: self.schema.clone(),
            pool_size: 1,
            retry_timeout: Duration::from_secs(20),
            own_schema: self.schema.clone(),
        };
        Db::open(target, options).expect("a database")
    }

    fn database_url(&self) -> Secret {
        let mut url = self.url.clone();
        url.query_pairs_mut().append_pair("search_path", &self.schema);
        Secret::from(url.as_str())
    }

    fn sidecar_url(&self) -> Secret {
        let mut url = if self.role.is_some() { self.role_url() } else { self.url.clone() };
        url.query_pairs_mut().append_pair("search_path", &self.schema);
        Secret::from(url.as_str())
    }

    /// The database of results.
    pub fn database(&self) -> &str {
        self.url.path().trim_start_matches('/')
    }

    /// A connection of the sidecar's role.
    pub fn connect_as_role(&self) -> Client {
        Client::connect(self.role_url().as_str(), NoTls).expect("a connection")
    }

    fn role_url(&self) -> url::Url {
        let (mut url, (name, password)) = (self.url.clone(), self.role.as_ref().expect("a role"));
        url.set_username(name).and_then(|()| url.set_password(Some(password))).expect("a host");
        url
    }

    /// A destination configuration for the same schema.
    pub fn postgres(&self) -> Value {
        json!({
            "destinationType": "postgres", "host": self.url.host_str(), "port": self.url.port().unwrap_or(5432),
            "database": self.url.path().trim_start_matches('/'), "username": self.url.username(),
            "password": self.url.password().unwrap_or_default(), "defaultSchema": self.schema, "sslMode": "disable",
        })
    }

    /// The first column of each row, as text.
    pub fn texts(&mut self, query: &str) -> Vec<String> {
        self.admin.query(query, &[]).expect(query).iter().map(|row| row.get(0)).collect()
    }

    /// Runs a read with a connector that writes until it is done or its pipes are closed. Unless it ends explicitly, it
    /// keeps its pipes open until the sidecar has ended. Returns the row of the task.
    pub fn read(
        &self,
        options: ReadOptions,
        destination: &Value,
        catalog: &Value,
        write: impl FnOnce(&mut Connector) -> std::io::Result<()>,
    ) -> StoredTask {
        let task = task(TaskKind::Read, options);
        let id = task.task_id.clone();
        let documents = [("catalog", catalog), ("destinationConfig", destination)];
        let mut documents: Vec<_> = documents.map(|(name, document)| (name, document.to_string())).into();
        documents.push(("config", self.config_text()));
        documents.extend(self.state.clone().map(|state| ("state", state)));
        self.run(task, &documents, write);
        self.db().task(&id).expect("an answer").expect("a row")
    }

    /// Runs a check or discover, like [`read`](Self::read).
    pub fn find(&self, kind: TaskKind, write: impl FnOnce(&mut Connector) -> std::io::Result<()>) {
        self.run(task(kind, ReadOptions::default()), &[("config", self.config_text())], write);
    }

    fn config_text(&self) -> String {
        self.config_text.clone().unwrap_or_else(|| self.config.to_string())
    }

    fn run(&self, task: Task, files: &[(&str, String)], write: impl FnOnce(&mut Connector) -> std::io::Result<()>) {
        let folder = tempfile::tempdir().expect("a folder");
        let documents = folder.path().join("secrets");
        std::fs::create_dir(&documents).expect("a folder");
        for (name, document) in files {
            let file = File::create(documents.join(format!("{name}.json.gz.000"))).expect("a file");
            let mut packed = GzEncoder::new(file, Compression::fast());
            packed.write_all(document.as_bytes()).and_then(|()| packed.try_finish()).expect("room");
        }
        let sidecar = Sidecar {
            destination_hosts: None,
            task,
            database_url: self.sidecar_url(),
            own_schema: self.schema.clone(),
            source: SourceSettings {
                stdout: folder.path().join("stdout"),
                stderr: folder.path().join("stderr"),
                reports: folder.path().to_owned(),
                config: folder.path().to_owned(),
                init_timeout: DEADLINE,
                silence: DEADLINE,
                is_wrapped: true,
            },
            secrets: documents,
            passed_on: None,
            db_log_level: "INFO".to_owned(),
            commit: CommitLimits::default(),
            contract: Some(contract::VERSION.to_owned()),
        };
        std::thread::scope(|scope| {
            let running = scope.spawn(|| sidecar.run(Arc::default()));
            let mut connector = Connector::start(folder.path());
            // Fails when the sidecar closes the pipes, which the outcome shows.
            let _ = write(&mut connector);
            assert_eq!(running.join().expect("no panic"), Ok(SidecarExit::Finished));
        });
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.admin.batch_execute(&format!("DROP SCHEMA {} CASCADE", self.schema));
    }
}

pub fn task(kind: TaskKind, options: ReadOptions) -> Task {
    Task {
        kind,
        image: Image { package: "test".to_owned(), version: "1".to_owned() },
        connector_type: CONNECTOR_TYPE_AIRBYTE.to_owned(),
        task_id: uuid::Uuid::new_v4().to_string(),
        sync_id: SYNC_ID.to_owned(),
        storage_key: String::new(),
        started_at: jiff::Timestamp::now(),
        started_by: None,
        options,
        timeout: DEADLINE,
        then_run: None,
    }
}

/// A RECORD of an integer `id`.
pub fn record(stream: &str, id: u64) -> String {
    json!({"type": "RECORD", "record": {"stream": stream, "data": {"id": id}, "emitted_at": 1}}).to_string() + "\n"
}

/// A STATE of one stream.
pub fn state(stream: &str, id: u64) -> String {
    let descriptor = json!({"name": stream});
    let state = json!({"type": "STREAM", "stream": {"stream_descriptor": descriptor, "stream_state": {"id": id}}});
    json!({"type": "STATE", "state": state}).to_string() + "\n"
}

/// The connector's end of the pipes.
pub struct Connector {
    folder: PathBuf,
    pipes: Option<[File; 2]>,
}

impl Connector {
    /// Opens the pipes once they exist.
    fn start(folder: &Path) -> Self {
        let deadline = Instant::now() + DEADLINE;
        while !folder.join(READY_FILE).exists() {
            assert!(Instant::now() < deadline, "no pipes");
            std::thread::sleep(Duration::from_millis(5));
        }
        let open = |name| OpenOptions::new().write(true).open(folder.join(name)).expect("a reader");
        Self { folder: folder.to_owned(), pipes: Some(["stderr", "stdout"].map(open)) }
    }

    /// The configuration that it was given.
    pub fn config(&self) -> Value {
        let text = std::fs::read_to_string(self.folder.join("config.json")).expect("a configuration");
        serde_json::from_str(&text).expect("JSON")
    }

    /// Writes lines to stderr.
    pub fn write_stderr(&mut self, lines: &str) -> std::io::Result<()> {
        let [stderr, _] = self.pipes.as_mut().expect("open pipes");
        stderr.write_all(lines.as_bytes())
    }

    /// Writes lines to stdout. Fails when the sidecar has closed the pipe.
    pub fn write(&mut self, lines: &str) -> std::io::Result<()> {
        let [_, stdout] = self.pipes.as_mut().expect("open pipes");
        stdout.write_all(lines.as_bytes())
    }

    /// Ends with this exit code, like the wrapper in the connector's container.
    pub fn end(&mut self, code: u8) -> std::io::Result<()> {
        std::fs::write(self.folder.join(EXIT_CODE_FILE), code.to_string())?;
        self.pipes = None;
        Ok(())
    }
}
