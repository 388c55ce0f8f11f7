//! What every part of the service needs, built once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::auth::Tokens;
use super::metrics::Metrics;
use crate::config::{ServeSettings, Settings};
use crate::db::Db;
use crate::failure::{Class, Failure};
use crate::pod::{Campaign, Pods};

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
    /// The cluster.
    pub cluster: Arc<dyn Pods>,
    /// What is counted.
    pub metrics: Metrics,
    /// What `/ready` tells.
    pub ready: Ready,
    /// Open once the database answered for the first time.
    db: Arc<OnceLock<Db>>,
    /// Tells this installation's rows from those of others in the same database; known once the API server answered.
    marker: OnceLock<String>,
    /// Once there is something to lead.
    campaign: Mutex<Option<Box<dyn Campaign>>>,
    /// A thread that must live has died.
    died: Sender<&'static str>,
}

/// What `/ready` tells: each part on its own, so that an operator sees which one is missing.
#[derive(Default)]
pub struct Ready {
    database: AtomicBool,
    cluster: AtomicBool,
    /// Another process leads.
    follows: AtomicBool,
    /// This process leads and has seen a whole list of Pods.
    listed: AtomicBool,
    stopping: AtomicBool,
}

impl Ready {
    /// The parts, by name.
    pub fn parts(&self) -> [(&'static str, bool); 3] {
        let get = |flag: &AtomicBool| flag.load(Ordering::Relaxed);
        let pods = (get(&self.follows) || get(&self.listed)) && !get(&self.stopping);
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

    /// Another process leads.
    pub fn follows(&self, follows: bool) {
        self.follows.store(follows, Ordering::Relaxed);
    }

    /// This process leads and has seen a whole list of Pods.
    pub fn listed(&self, listed: bool) {
        self.listed.store(listed, Ordering::Relaxed);
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
        cluster: Arc<dyn Pods>,
        instance: &str,
        died: Sender<&'static str>,
    ) -> Self {
        let db: Arc<OnceLock<Db>> = Arc::default();
        let metrics = Metrics::new(instance, {
            let (cluster, db) = (Arc::clone(&cluster), Arc::clone(&db));
            move || (cluster.troubles(), db.get().map_or(0, Db::troubles))
        });
        Self {
            settings,
            serve,
            tokens,
            cluster,
            metrics,
            ready: Ready::default(),
            db,
            marker: OnceLock::new(),
            campaign: Mutex::default(),
            died,
        }
    }

    /// The database answered, the installation is known.
    pub fn connected(&self, db: Db, marker: String) {
        // Both are set once, by the thread that starts the service.
        self.db.set(db).ok();
        self.marker.set(marker).ok();
    }

    /// The Lease is being looked after.
    pub fn campaigns(&self, campaign: Box<dyn Campaign>) {
        *self.campaign.lock().unwrap_or_else(PoisonError::into_inner) = Some(campaign);
    }

    /// Whether this process holds the Lease.
    pub fn leads(&self) -> bool {
        self.campaign.lock().unwrap_or_else(PoisonError::into_inner).as_ref().is_some_and(|campaign| campaign.leads())
    }

    /// Lets go of the Lease, so that another process need not wait for its end.
    pub fn release(&self) {
        let campaign = self.campaign.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(campaign) = campaign {
            campaign.release();
        }
    }

    /// The database, for a request: gives up while the caller still listens.
    pub fn db(&self) -> Result<Db, Failure> {
        self.patient_db().map(|db| db.with_patience(REQUEST_PATIENCE))
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

    /// Starts a thread whose death by a panic ends the process.
    pub fn thread(self: Arc<Self>, name: &'static str, run: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
        let guard = Guard { name, died: self.died.clone() };
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let _guard = guard;
                run();
            })
            .expect("the system has room for a thread at the start")
    }
}

struct Guard {
    name: &'static str,
    died: Sender<&'static str>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Whoever waits for it may be gone: then the process ends anyway.
            self.died.send(self.name).ok();
        }
    }
}
