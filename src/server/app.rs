//! What every part of the service needs, built once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::auth::Tokens;
use super::metrics::Metrics;
use crate::config::{ServeSettings, Settings};
use crate::controller::reconciler::{Durations, Observer, PHASES, Role};
use crate::db::Db;
use crate::failure::{Class, Failure};
use crate::pod::Backend;
use crate::task::TaskKind;

/// How long a request may wait for a database that does not answer: shorter than most callers wait for us.
const REQUEST_PATIENCE: Duration = Duration::from_secs(10);

/// See the module.
pub struct App {
    /// Of all commands.
    pub settings: Settings,
    /// Of the service.
    pub serve: ServeSettings,
    /// Who may call.
    pub tokens: Tokens,
    /// Where tasks run.
    pub backend: Backend,
    /// What is counted.
    pub metrics: Metrics,
    /// What `/ready` tells.
    pub ready: Ready,
    /// Open once the database answered for the first time.
    db: Arc<OnceLock<Db>>,
    /// Tells this installation's rows from those of others in the same database; known once the API server answered.
    marker: OnceLock<String>,
    /// A thread that must live has died.
    died: Sender<&'static str>,
}

/// What `/ready` tells: each part on its own, so that an operator sees which one is missing.
#[derive(Default)]
pub struct Ready {
    database: AtomicBool,
    cluster: AtomicBool,
    /// Another process leads, or this one does and has seen a complete list of Pods.
    pods: AtomicBool,
    stopping: AtomicBool,
}

impl Ready {
    /// The parts, by name.
    pub fn parts(&self) -> [(&'static str, bool); 3] {
        let get = |flag: &AtomicBool| flag.load(Ordering::Relaxed);
        let pods = get(&self.pods) && !get(&self.stopping);
        [("database", get(&self.database)), ("cluster", get(&self.cluster)), ("pods", pods)]
    }

    /// The database answers.
    pub fn database(&self, answers: bool) {
        self.database.store(answers, Ordering::Relaxed);
    }

    /// The API server answers.
    pub fn cluster(&self, answers: bool) {
        self.cluster.store(answers, Ordering::Relaxed);
    }

    /// Another process leads, or this one does and has seen a complete list of Pods.
    pub fn pods(&self, followed: bool) {
        self.pods.store(followed, Ordering::Relaxed);
    }

    /// The process is about to end.
    pub fn stopping(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }
}

impl App {
    /// Knows its settings, and neither database nor cluster yet.
    pub fn new(
        settings: Settings,
        serve: ServeSettings,
        tokens: Tokens,
        backend: Backend,
        instance: &str,
        died: Sender<&'static str>,
    ) -> Self {
        let db: Arc<OnceLock<Db>> = Arc::default();
        let metrics = Metrics::new(instance, {
            let (api_server, db) = (backend.api_server.clone(), Arc::clone(&db));
            move || (api_server.as_ref().map_or(0, |server| server.failed_calls()), db.get().map_or(0, Db::error_count))
        });
        Self { settings, serve, tokens, backend, metrics, ready: Ready::default(), db, marker: OnceLock::new(), died }
    }

    /// The database answered, the installation is known.
    pub fn connected(&self, db: Db, marker: String) {
        // Both are set once, by the thread that starts the service.
        self.db.set(db).ok();
        self.marker.set(marker).ok();
    }

    /// The database, for a request: gives up while the caller still listens.
    pub fn db(&self) -> Result<Db, Failure> {
        self.patient_db().map(|db| db.with_retry_timeout(REQUEST_PATIENCE))
    }

    /// The database, for what has to be written some time.
    pub fn patient_db(&self) -> Result<&Db, Failure> {
        self.db.get().ok_or_else(|| {
            Failure::new(Class::DatabaseUnreachable, "the database has not answered since this service was started")
        })
    }

    /// What marks this installation's rows.
    pub fn marker(&self) -> Result<&str, Failure> {
        self.marker.get().map(String::as_str).ok_or_else(|| {
            Failure::new(Class::ClusterUnreachable, "the API server has not answered since this service was started")
        })
    }
}

impl Observer for App {
    fn database_reachable(&self, reachable: bool) {
        self.ready.database(reachable);
    }

    fn cluster_reachable(&self, reachable: bool) {
        self.ready.cluster(reachable);
    }

    fn role(&self, role: Role) {
        self.ready.pods(matches!(role, Role::Follower | Role::Leader { is_synced: true }));
        self.metrics.leads(matches!(role, Role::Leader { .. }));
    }

    fn pods(&self, counts: [usize; PHASES.len()]) {
        self.metrics.pods(counts);
    }

    fn task_finished(&self, kind: TaskKind, outcome: &'static str, durations: Durations) {
        self.metrics.task_finished(kind, outcome, durations);
    }

    fn outcome_recorded(&self, delay: Duration) {
        self.metrics.outcome_written(delay);
    }

    fn thread_panicked(&self, name: &'static str) {
        // Without a receiver the process is ending.
        self.died.send(name).ok();
    }
}
