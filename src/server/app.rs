//! The state that all parts of the service share.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use uuid::Uuid;

use super::auth::Tokens;
use super::metrics::Metrics;
use super::spread::Spread;
use crate::config::{ServeSettings, Settings};
use crate::controller::delayed_starts::DelayedStarts;
use crate::controller::reconciler::{Durations, Observer, PHASES, Role};
use crate::db::Db;
use crate::failure::{Class, Failure};
use crate::pod::Backend;
use crate::task::TaskKind;

/// How long a request retries database operations: shorter than most clients wait.
const REQUEST_RETRY_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the service shuts down.
pub enum Shutdown {
    /// The process received a signal.
    Requested,
    /// It cannot continue, for this reason.
    Failed(String),
}

/// The shared state.
pub struct App {
    /// The settings of all commands.
    pub settings: Settings,
    /// The settings of the service.
    pub serve: ServeSettings,
    /// The accepted tokens.
    pub tokens: Tokens,
    /// Where tasks run.
    pub backend: Backend,
    /// The metrics.
    pub metrics: Metrics,
    /// The state behind `/ready`.
    pub readiness: Readiness,
    /// Set when the database first responds.
    db: Arc<OnceLock<Db>>,
    /// Set when the cluster first responds.
    installation: OnceLock<String>,
    /// Spreads scheduled starts.
    pub spread: Spread,
    /// The tasks that this process starts later; set together with the database.
    delayed: OnceLock<Arc<DelayedStarts>>,
    shutdown: Sender<Shutdown>,
}

/// The checks of `/ready`.
#[derive(Default)]
pub struct Readiness {
    database: AtomicBool,
    cluster: AtomicBool,
    pods: AtomicBool,
    stopping: AtomicBool,
}

impl Readiness {
    /// The result of each check by its name.
    pub fn checks(&self) -> [(&'static str, bool); 3] {
        let get = |flag: &AtomicBool| flag.load(Ordering::Relaxed);
        let pods = get(&self.pods) && !get(&self.stopping);
        [("database", get(&self.database)), ("cluster", get(&self.cluster)), ("pods", pods)]
    }

    /// Whether the database responds.
    pub fn set_database(&self, responds: bool) {
        self.database.store(responds, Ordering::Relaxed);
    }

    /// Whether the cluster responds.
    pub fn set_cluster(&self, responds: bool) {
        self.cluster.store(responds, Ordering::Relaxed);
    }

    /// The service is shutting down.
    pub fn set_stopping(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }
}

impl App {
    /// The state at the start: connected to neither database nor cluster.
    pub fn new(
        settings: Settings,
        serve: ServeSettings,
        tokens: Tokens,
        backend: Backend,
        instance_id: &str,
        shutdown: Sender<Shutdown>,
    ) -> Self {
        let db: Arc<OnceLock<Db>> = Arc::default();
        let metrics = Metrics::new(instance_id, {
            let (api_server, db) = (backend.api_server.clone(), Arc::clone(&db));
            move || (api_server.as_ref().map_or(0, |server| server.failed_calls()), db.get().map_or(0, Db::error_count))
        });
        Self {
            readiness: Readiness::default(),
            spread: Spread::new(serve.start_spread),
            installation: OnceLock::new(),
            delayed: OnceLock::new(),
            settings,
            serve,
            tokens,
            backend,
            metrics,
            db,
            shutdown,
        }
    }

    /// Sets the database, the id of this installation and the tasks that start later, once.
    pub fn set_connected(&self, db: Db, installation: String, delayed: Arc<DelayedStarts>) {
        self.delayed.set(delayed).ok();
        self.db.set(db).ok();
        self.installation.set(installation).ok();
    }

    /// The database, with the retry timeout of a request.
    pub fn db(&self) -> Result<Db, Failure> {
        self.db_with_long_retry().map(|db| db.with_retry_timeout(REQUEST_RETRY_TIMEOUT))
    }

    /// The database, for writes that should succeed even if the client no longer waits.
    pub fn db_with_long_retry(&self) -> Result<&Db, Failure> {
        self.db.get().ok_or_else(|| {
            Failure::new(Class::DatabaseUnreachable, "the database has not responded since the service started")
        })
    }

    /// The tasks that this process starts later.
    pub fn delayed(&self) -> Option<&DelayedStarts> {
        self.delayed.get().map(Arc::as_ref)
    }

    /// The id of this installation, which marks its rows in a database that several share.
    pub fn installation(&self) -> Result<&str, Failure> {
        self.installation.get().map(String::as_str).ok_or_else(|| {
            Failure::new(Class::ClusterUnreachable, "the API server has not responded since the service started")
        })
    }
}

impl Observer for App {
    fn database_reachable(&self, reachable: bool) {
        self.readiness.set_database(reachable);
    }

    fn cluster_reachable(&self, reachable: bool) {
        self.readiness.set_cluster(reachable);
    }

    fn role(&self, role: Role) {
        let is_followed = matches!(role, Role::Follower | Role::Leader { is_synced: true });
        self.readiness.pods.store(is_followed, Ordering::Relaxed);
        self.metrics.leads(matches!(role, Role::Leader { .. }));
    }

    fn pods(&self, counts: [usize; PHASES.len()]) {
        self.metrics.pods(counts);
    }

    fn task_finished(&self, kind: TaskKind, outcome: &'static str, durations: Durations) {
        self.metrics.task_finished(kind, outcome, durations);
    }

    fn outcome_recorded(&self, delay: Duration) {
        self.metrics.outcome_recorded(delay);
    }

    fn thread_panicked(&self, name: &'static str) {
        // Without a receiver the process is ending.
        self.shutdown.send(Shutdown::Failed(format!("the thread {name:?} panicked"))).ok();
    }
}

/// The id in `~/.syncctl/instance_id`, which is created if missing. It identifies this process across restarts, in
/// metrics and in the lease. If the file can be neither read nor written, the id is new at each start.
pub fn stored_instance_id() -> String {
    let path = std::env::home_dir().unwrap_or_default().join(".syncctl").join("instance_id");
    read_or_create_id(&path).unwrap_or_else(|error| {
        let path = path.display();
        tracing::warn!(%error, %path, "cannot store the instance id: set SYNCCTL_INSTANCE_ID");
        Uuid::new_v4().to_string()
    })
}

fn read_or_create_id(path: &Path) -> std::io::Result<String> {
    match std::fs::read_to_string(path) {
        Ok(text) if !text.trim().is_empty() => return Ok(text.trim().to_owned()),
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let id = Uuid::new_v4().to_string();
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
        // Renamed, so that a concurrent process never reads an incomplete id.
        let new = directory.join(format!("instance_id.{id}"));
        std::fs::write(&new, format!("{id}\n"))?;
        std::fs::rename(&new, path)?;
    }
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::read_or_create_id;

    #[test]
    fn instance_id_is_stored_and_read_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("new").join("instance_id");
        let id = read_or_create_id(&path).expect("a new id");
        assert_eq!(read_or_create_id(&path).expect("the stored id"), id);
        std::fs::write(&path, "").expect("a file");
        assert_ne!(read_or_create_id(&path).expect("a new id instead of an empty one"), id);
        assert!(read_or_create_id(std::path::Path::new("/proc/nowhere/instance_id")).is_err());
    }
}
