//! What the threads of the reconciler share: its configuration, its observer, and whether this process leads.

use std::collections::HashMap;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::tracked_tasks::{Durations, Limits, PHASES};
use crate::controller::console::Console;
use crate::controller::delayed_starts::DelayedStarts;
use crate::db::{Db, Retention};
use crate::pod::{Backend, LeaderElection, Leadership, PodEvent, PodRef};
use crate::task::TaskKind;

/// What the reconciler works on.
pub struct Config {
    /// Where the tasks run.
    pub backend: Backend,
    /// The database of results.
    pub db: Db,
    /// The console that starts the read after a discover.
    pub console: Option<Console>,
    /// The tasks that this process starts later.
    pub delayed: Arc<DelayedStarts>,
    /// Marks the rows of this installation in a database that several share.
    pub installation: String,
    /// The name of this process in the leader election.
    pub identity: String,
    /// How often all Pods are listed, in addition to the watch.
    pub resync: Duration,
    /// The time limits of tasks.
    pub limits: Limits,
    /// The least level in `task_log`.
    pub log_level: String,
    /// What is kept of the tables.
    pub retention: Retention,
}

/// What this process does in the leader election.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// No leader is known.
    Candidate,
    /// Another process leads.
    Follower,
    /// This process leads.
    Leader {
        /// It has seen a complete list of Pods.
        is_synced: bool,
    },
}

/// Receives metrics and readiness. Its methods must not block.
pub trait Observer: Send + Sync {
    /// Whether the database answered the last probe.
    fn database_reachable(&self, reachable: bool);
    /// Whether the cluster answered the last probe.
    fn cluster_reachable(&self, reachable: bool);
    /// The role of this process changed.
    fn role(&self, role: Role);
    /// The number of Pods in each of [`PHASES`].
    fn pods(&self, counts: [usize; PHASES.len()]);
    /// A task ended: `SUCCESS` or the code of a failure class.
    fn task_finished(&self, kind: TaskKind, outcome: &'static str, durations: Durations);
    /// This process recorded an outcome that long after it observed the end of the Pod.
    fn outcome_recorded(&self, delay: Duration);
    /// A thread panicked; the reconciler no longer works.
    fn thread_panicked(&self, name: &'static str);
}

/// The input of the reconciler's loop.
pub(super) enum Message {
    /// An event of the watch of a term.
    Watch(u64, PodEvent),
    /// An event of the leader election.
    Leadership(Leadership),
    /// A worker finished a job.
    JobDone {
        /// The term in which the job was handed out.
        term: u64,
        /// The Pod.
        pod: Arc<PodRef>,
        /// Whether the job succeeded.
        succeeded: bool,
    },
    /// Asks for a snapshot. Answered only while this process leads and has seen a complete list of Pods.
    Snapshot(Sender<Snapshot>),
    /// The process shuts down.
    Stop,
}

/// The tracked Pods at one moment.
pub(super) struct Snapshot {
    /// By name.
    pub(super) pods: HashMap<String, Arc<PodRef>>,
    /// The Pods of tasks with a row in `source_task` by task id.
    pub(super) with_rows: HashMap<String, Arc<PodRef>>,
}

/// See the module.
pub(super) struct Shared {
    pub(super) config: Config,
    pub(super) observer: Arc<dyn Observer>,
    election: Mutex<Option<Box<dyn LeaderElection>>>,
}

impl Shared {
    pub(super) fn new(config: Config, observer: Arc<dyn Observer>) -> Self {
        Self { config, observer, election: Mutex::default() }
    }

    pub(super) fn set_election(&self, election: Option<Box<dyn LeaderElection>>) -> Option<Box<dyn LeaderElection>> {
        std::mem::replace(&mut *self.election.lock().unwrap_or_else(PoisonError::into_inner), election)
    }

    /// Whether this process leads.
    pub(super) fn leads(&self) -> bool {
        self.election
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_ref()
            .is_some_and(|election| election.is_leader())
    }

    /// Starts a thread whose panic is reported to the observer.
    pub(super) fn spawn(&self, name: &'static str, run: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
        let guard = PanicGuard { name, observer: Arc::clone(&self.observer) };
        let run = move || {
            let _guard = guard;
            run();
        };
        std::thread::Builder::new().name(name.to_owned()).spawn(run).expect("the system can start a thread")
    }
}

struct PanicGuard {
    name: &'static str,
    observer: Arc<dyn Observer>,
}

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.observer.thread_panicked(self.name);
        }
    }
}
