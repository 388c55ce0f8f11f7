//! Shared by all integration tests: [`World`] is the environment of one test, with a place for its tasks (a namespace of
//! the cluster, or a folder of this machine), a schema and the program.

pub mod bulker;
pub mod cluster;
pub mod database;
pub mod foreign_controller;
pub mod http;
pub mod machine;
pub mod processes;
pub mod program;
pub mod proxy;
pub mod script;
pub mod statements;
pub mod switch;
pub mod tasks;
pub mod warehouse;

use std::path::PathBuf;
use std::sync::{LazyLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

pub use cluster::Namespace;
pub use database::Schema;
pub use http::{Http, Service};
pub use machine::Machine;
pub use program::{Done, Program, Running};
pub use switch::StoppedServer;
pub use warehouse::Warehouse;

/// Ordinary tests hold a read lock; a test that stops a server which others use holds the write lock.
static EXCLUSIVE: RwLock<()> = RwLock::new(());

/// The environment that `tests/cluster/up` describes.
pub struct Setup {
    pub kubeconfig: String,
    pub load_image: String,
    pub database_url: String,
    pub sidecar_database_url: String,
    pub pod_host: String,
    /// Builds and loads the images of connectors; absent on a cluster whose owner has loaded them.
    pub images: Option<String>,
    pub postgres: Option<String>,
    pub apiserver: Option<String>,
    pub containerd: Option<String>,
}

/// Whether tasks are to run on this machine: SYNCCTL_TEST_ENGINE=local.
static LOCAL: LazyLock<bool> =
    LazyLock::new(|| std::env::var("SYNCCTL_TEST_ENGINE").is_ok_and(|engine| engine == "local"));

/// `None`: tests that need a cluster are switched off. The error fails every test.
static SETUP: LazyLock<Result<Option<Setup>, String>> = LazyLock::new(Setup::from_environment);

impl Setup {
    fn from_environment() -> Result<Option<Self>, String> {
        let get = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        if *LOCAL {
            return Self::of_this_machine();
        }
        let needed = [
            "SYNCCTL_TEST_KUBECONFIG",
            "SYNCCTL_TEST_LOAD_IMAGE",
            "SYNCCTL_TEST_DATABASE_URL",
            "SYNCCTL_TEST_SIDECAR_DATABASE_URL",
            "SYNCCTL_TEST_POD_HOST",
        ];
        let missing: Vec<&str> = needed.into_iter().filter(|name| get(name).is_none()).collect();
        if get("SYNCCTL_TEST_SKIP_CLUSTER").as_deref() == Some("1") {
            return Ok(None);
        }
        if !missing.is_empty() {
            return Err(format!(
                "this test needs a Kubernetes cluster and a Postgres, and {} is not set: run `make test`, which brings up \
                 both, or set SYNCCTL_TEST_SKIP_CLUSTER=1 to skip every test that needs them",
                missing.join(", ")
            ));
        }
        let required = |name: &str| get(name).expect("missing variables are reported above");
        Ok(Some(Self {
            kubeconfig: required("SYNCCTL_TEST_KUBECONFIG"),
            load_image: required("SYNCCTL_TEST_LOAD_IMAGE"),
            database_url: required("SYNCCTL_TEST_DATABASE_URL"),
            sidecar_database_url: required("SYNCCTL_TEST_SIDECAR_DATABASE_URL"),
            pod_host: required("SYNCCTL_TEST_POD_HOST"),
            images: get("SYNCCTL_TEST_IMAGES"),
            postgres: get("SYNCCTL_TEST_POSTGRES"),
            apiserver: get("SYNCCTL_TEST_APISERVER"),
            containerd: get("SYNCCTL_TEST_CONTAINERD"),
        }))
    }
}

impl Setup {
    /// Tasks of this machine reach what the tests reach.
    fn of_this_machine() -> Result<Option<Self>, String> {
        let url = std::env::var("SYNCCTL_TEST_DATABASE_URL").map_err(|_| {
            "SYNCCTL_TEST_DATABASE_URL is not set: run `make test`, which brings up a Postgres".to_owned()
        })?;
        Ok(Some(Self {
            kubeconfig: String::new(),
            load_image: String::new(),
            sidecar_database_url: url.clone(),
            database_url: url,
            pod_host: "127.0.0.1".to_owned(),
            images: None,
            postgres: std::env::var("SYNCCTL_TEST_POSTGRES").ok(),
            apiserver: None,
            containerd: None,
        }))
    }
}

/// Where the tasks of a test run.
pub enum Place {
    Cluster(Namespace),
    Machine(Machine),
}

impl Place {
    /// For messages.
    pub fn name(&self) -> &str {
        match self {
            Self::Cluster(namespace) => &namespace.name,
            Self::Machine(_) => "this machine",
        }
    }

    /// Whether tasks run in a cluster.
    pub fn is_cluster(&self) -> bool {
        matches!(self, Self::Cluster(_))
    }

    /// This machine.
    pub fn machine(&self) -> &Machine {
        match self {
            Self::Machine(machine) => machine,
            Self::Cluster(_) => panic!("a test of this machine begins with World::on_this_machine"),
        }
    }

    /// Enough seconds for a start to fail on a busy machine: a registry answers at once, but Python must create an
    /// environment first.
    pub fn patience(&self) -> &'static str {
        if self.is_cluster() { "20" } else { "50" }
    }

    /// All Pods, whoever made them.
    pub fn pods(&self) -> Vec<Value> {
        match self {
            Self::Cluster(namespace) => namespace.pods(),
            Self::Machine(machine) => machine.pods(),
        }
    }

    /// Objects and files that the program left, other than those of the running service.
    pub fn leftovers(&self) -> Vec<String> {
        match self {
            Self::Cluster(namespace) => namespace.leftovers(),
            Self::Machine(machine) => machine.leftovers(),
        }
    }

    /// Fails where the program left anything.
    #[track_caller]
    pub fn assert_empty(&self) {
        let left = self.leftovers();
        if !left.is_empty() {
            self.dump();
        }
        assert!(left.is_empty(), "left behind in {}: {left:?}", self.name());
    }

    /// Prints the state of a failed test.
    pub fn dump(&self) {
        match self {
            Self::Cluster(namespace) => namespace.dump(),
            Self::Machine(machine) => machine.dump(),
        }
    }
}

/// Whether namespaces and schemas stay for inspection.
fn keep() -> bool {
    std::env::var("SYNCCTL_TEST_KEEP").is_ok_and(|value| value == "1")
}

/// The lock of a test.
#[expect(dead_code, reason = "the guards are only held")]
enum TestLock {
    /// Between the two.
    None,
    Shared(RwLockReadGuard<'static, ()>),
    Exclusive(RwLockWriteGuard<'static, ()>),
}

/// Everything that one test needs, isolated from other tests.
pub struct World {
    pub setup: &'static Setup,
    pub place: Place,
    pub schema: Schema,
    folder: tempfile::TempDir,
    started: Instant,
    lock: TestLock,
}

impl World {
    /// Runs concurrently with other tests; `None` where tests that need a cluster are skipped.
    pub fn new() -> Option<Self> {
        Self::with(|| TestLock::Shared(EXCLUSIVE.read().unwrap_or_else(PoisonError::into_inner)))
    }

    /// Runs without other tests, so that it may stop a server.
    pub fn alone() -> Option<Self> {
        Self::with(|| TestLock::Exclusive(EXCLUSIVE.write().unwrap_or_else(PoisonError::into_inner)))
    }

    /// Changes whether other tests may run.
    pub fn without_others(&mut self, alone: bool) {
        if matches!(self.lock, TestLock::Exclusive(_)) == alone {
            return;
        }
        self.lock = TestLock::None;
        self.lock = if alone {
            TestLock::Exclusive(EXCLUSIVE.write().unwrap_or_else(PoisonError::into_inner))
        } else {
            TestLock::Shared(EXCLUSIVE.read().unwrap_or_else(PoisonError::into_inner))
        };
    }

    /// For features that only a cluster has; `None` where tasks run on this machine.
    pub fn in_cluster() -> Option<Self> {
        if *LOCAL { None } else { Self::new() }
    }

    /// For features that only this machine has; `None` where tasks run in a cluster.
    pub fn on_this_machine() -> Option<Self> {
        if *LOCAL { Self::new() } else { None }
    }

    /// The namespace of a world in a cluster.
    pub fn namespace(&self) -> &Namespace {
        match &self.place {
            Place::Cluster(namespace) => namespace,
            Place::Machine(_) => panic!("a test of a cluster feature begins with World::in_cluster"),
        }
    }

    fn with(lock: impl FnOnce() -> TestLock) -> Option<Self> {
        let Some(setup) = SETUP.as_ref().unwrap_or_else(|why| panic!("{why}")) else {
            let test = std::thread::current().name().unwrap_or("a test").to_owned();
            // Bypasses the harness's capture, so that a skipped test does not look like one that passed.
            program::print_line(&format!("{test} SKIPPED: SYNCCTL_TEST_SKIP_CLUSTER=1"));
            return None;
        };
        let lock = lock();
        let folder = tempfile::tempdir().expect("a temporary folder");
        let place = if *LOCAL {
            Place::Machine(Machine::new(folder.path()))
        } else {
            cluster::prepare(setup);
            Place::Cluster(Namespace::create(setup, folder.path()))
        };
        let schema = Schema::create(setup);
        Some(Self { setup, place, schema, folder, started: Instant::now(), lock })
    }

    /// The program with the settings of this test: the shipped Role and a schema of its own.
    pub fn syncctl<A: AsRef<str>>(&self, arguments: &[A]) -> Program {
        let schema = &self.schema.name;
        let program = Program::new(arguments)
            .env("SYNCCTL_DATABASE_URL", &database::in_schema(&self.setup.database_url, schema))
            .env("SYNCCTL_SIDECAR_DATABASE_URL", &database::in_schema(&self.setup.sidecar_database_url, schema))
            .env("SYNCCTL_OWN_SCHEMA", &self.schema.own());
        let program = match &self.place {
            Place::Machine(machine) => {
                machine.settings().fold(program, |program, (name, value)| program.env(name, &value))
            }
            Place::Cluster(namespace) => program
                .env("SYNCCTL_KUBERNETES_CLIENT_CONFIG", &namespace.kubeconfig.display().to_string())
                .env("SYNCCTL_SIDECAR_IMAGE", &cluster::sidecar_image(self.setup).name),
        };
        program
            // Many Pods run at once on a small machine.
            .env("SYNCCTL_SOURCE_CPU_REQUEST_MILLICORES", "1")
            .env("SYNCCTL_SOURCE_MEMORY_REQUEST_MI", "16")
            .env("SYNCCTL_SOURCE_MEMORY_LIMIT_MI", "1024")
            .env("SYNCCTL_CONTAINER_GRACE_SHUTDOWN_SECONDS", "5")
    }

    /// Writes a file into the test's folder and returns its path.
    pub fn file(&self, name: &str, content: &str) -> String {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content).expect("a file in the temporary folder");
        path.display().to_string()
    }

    /// Writes a JSON file.
    pub fn json(&self, name: &str, content: &Value) -> String {
        self.file(name, &content.to_string())
    }

    /// A file with the configuration of a destination in this test's schema, as Pods reach it.
    pub fn destination(&self) -> String {
        self.json("destination.json", &self.destination_config())
    }

    /// The content of that file.
    pub fn destination_config(&self) -> Value {
        let url = url::Url::parse(&self.setup.sidecar_database_url).expect("a URL");
        json!({
            "destinationType": "postgres",
            "host": url.host_str().expect("a host"),
            "port": url.port().unwrap_or(5432),
            "database": url.path().trim_start_matches('/'),
            "username": url.username(),
            "password": url.password().unwrap_or_default(),
            "defaultSchema": self.schema.name,
            "sslMode": "disable",
        })
    }

    /// A file with the configuration of the destination `discard`.
    pub fn discard(&self) -> String {
        self.json("discard.json", &json!({"destinationType": "discard"}))
    }

    /// `read` of a fake connector with a catalog of these streams, into the destination `discard`.
    pub fn read(&self, image: &str, sync: &str, task: &str, streams: &[&str]) -> Program {
        let config = self.json("config.json", &json!({}));
        let catalog = self.json("catalog.json", &catalog(streams));
        let destination = self.discard();
        self.syncctl(&[
            "read",
            image,
            "--config",
            &config,
            "--catalog",
            &catalog,
            "--destination-config",
            &destination,
            "--sync-id",
            sync,
            "--task-id",
            task,
            "-o",
            "json",
        ])
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.place.dump();
        } else {
            self.place.assert_empty();
        }
        if !keep() {
            self.schema.remove();
            match &self.place {
                Place::Cluster(namespace) => namespace.remove(),
                Place::Machine(machine) => machine.remove(),
            }
        }
        let test = std::thread::current().name().unwrap_or("a test").to_owned();
        println!("{test}: {:.1} s in {}", self.started.elapsed().as_secs_f64(), self.place.name());
    }
}

/// A configured catalog of streams with an integer `id`, read from scratch each time and appended.
pub fn catalog(streams: &[&str]) -> Value {
    let stream = |name: &&str| {
        json!({
            "stream": {
                "name": name,
                "json_schema": {"type": "object", "properties": {"id": {"type": "integer"}}},
                "supported_sync_modes": ["full_refresh", "incremental"],
            },
            "sync_mode": "incremental",
            "destination_sync_mode": "append",
        })
    };
    json!({"streams": streams.iter().map(stream).collect::<Vec<_>>()})
}

/// Polls until `look` finds something; fails after `limit`, which only means that the program hangs.
pub fn eventually<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not within {} s", limit.as_secs());
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A name that no other test and no earlier run uses.
pub fn unique(prefix: &str) -> String {
    let id = uuid::Uuid::new_v4().simple().to_string();
    format!("{prefix}{}", &id[..10])
}

/// This checkout.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}
