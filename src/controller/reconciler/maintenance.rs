//! Periodic work beside the watch: heartbeats, rows and Secrets without a Pod, old rows, and probes of database and
//! cluster.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::shared::{Config, Message, Shared, Snapshot};
use crate::controller::{cleanup, outcome};
use crate::failure::{Class, Failure};
use crate::task::Task;

/// The delay before work is repeated that failed, or that was skipped because this process does not lead.
const RETRY: Duration = Duration::from_secs(2);
/// How often database and cluster are probed.
const PROBE: Duration = Duration::from_secs(5);
/// How often the rows of running tasks get a heartbeat; rows count as stale after an hour without one.
const HEARTBEAT: Duration = Duration::from_mins(1);
/// How often Pods are compared with rows of tasks that must not run.
const UNWANTED: Duration = Duration::from_mins(1);
/// How often rows and Secrets without a Pod are searched for.
const ORPHANS: Duration = Duration::from_mins(1);
/// How often stale rows are searched for.
const STALE: Duration = Duration::from_mins(5);
/// A discover takes ten minutes at most and its Pod five more: a catalog that is RUNNING for longer never ends.
const STALE_CATALOG: Duration = Duration::from_mins(20);
/// How often results are restored that the console has replaced: it reads them as often.
const RESTORE: Duration = Duration::from_secs(2);
/// The console writes its row as soon as the task was accepted, and the task has ended no earlier.
const RESTORED_WITHIN: Duration = Duration::from_mins(10);
/// Results of tasks that ended while no process was leading.
const RESTORED_LATE: Duration = Duration::from_hours(24);
/// How often old rows are deleted.
const TRIM: Duration = Duration::from_hours(1);
/// A row without a Pod may belong to a launch of another process that has not created its Pod yet.
const LAUNCHING: Duration = Duration::from_secs(30);
/// How long the reconciler's loop may take to answer.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(10);

/// Stops the threads when it is dropped.
pub(super) struct Maintenance {
    stop: Arc<AtomicBool>,
}

impl Maintenance {
    /// Starts the threads.
    pub(super) fn start(shared: &Arc<Shared>, messages: &Sender<Message>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let worker = || Worker { shared: Arc::clone(shared), messages: messages.clone(), stop: Arc::clone(&stop) };
        let (probe, cleanup, trim) = (worker(), worker(), worker());
        shared.spawn("probe", move || probe.repeat(&[("probe", PROBE, |worker| Ok(worker.probe()))]));
        shared.spawn("maintenance", move || {
            cleanup.repeat(&[
                ("replaced results", RESTORE, |worker| worker.restore_results(RESTORED_WITHIN)),
                ("heartbeats", HEARTBEAT, |worker| worker.with_snapshot(Worker::send_heartbeats)),
                ("unwanted tasks", UNWANTED, |worker| worker.with_snapshot(Worker::delete_unwanted)),
                ("rows and Secrets without a task", ORPHANS, Worker::close_orphans),
                ("stale rows", STALE, |worker| worker.with_snapshot(Worker::close_stale)),
            ]);
        });
        shared.spawn("trim", move || trim.repeat(&[("old rows", TRIM, |worker| Ok(worker.trim()))]));
        Self { stop }
    }
}

impl Drop for Maintenance {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Whether the work was done; `false`: this process does not lead.
type Done = Result<bool, Failure>;
/// Name, period and function of periodic work.
type Chore = (&'static str, Duration, fn(&Worker) -> Done);

struct Worker {
    shared: Arc<Shared>,
    messages: Sender<Message>,
    stop: Arc<AtomicBool>,
}

impl Worker {
    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Runs each chore at its period until stopped.
    fn repeat(&self, chores: &[Chore]) {
        let mut next = vec![Instant::now(); chores.len()];
        while !self.is_stopped() {
            for ((name, period, chore), next) in chores.iter().zip(&mut next) {
                if Instant::now() < *next {
                    continue;
                }
                let done = chore(self).unwrap_or_else(|error| {
                    tracing::warn!(%error, chore = name, "maintenance failed; retrying");
                    false
                });
                *next = Instant::now() + if done { *period } else { RETRY };
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    fn probe(&self) -> bool {
        let Shared { config, observer, .. } = &*self.shared;
        observer.database_reachable(config.db.ping().is_ok());
        observer.cluster_reachable(config.backend.launcher.check_reachable().is_ok());
        true
    }

    /// `None` unless this process leads and has seen a complete list of Pods.
    fn snapshot(&self) -> Option<Snapshot> {
        if !self.shared.leads() {
            return None;
        }
        let (reply, inbox) = mpsc::channel();
        self.messages.send(Message::Snapshot(reply)).ok()?;
        inbox.recv_timeout(SNAPSHOT_TIMEOUT).ok()
    }

    fn with_snapshot(&self, chore: fn(&Self, &Snapshot) -> Result<(), Failure>) -> Done {
        let Some(snapshot) = self.snapshot() else { return Ok(false) };
        chore(self, &snapshot).map(|()| true)
    }

    fn send_heartbeats(&self, snapshot: &Snapshot) -> Result<(), Failure> {
        let ids: Vec<&str> = snapshot.with_rows.keys().map(String::as_str).collect();
        self.shared.config.db.heartbeats(&ids)?;
        Ok(())
    }

    /// Deletes Pods whose rows forbid them: a process was killed between the row and the Pod of a task that it cancelled,
    /// or a Pod was created although the API server did not answer in time.
    fn delete_unwanted(&self, snapshot: &Snapshot) -> Result<(), Failure> {
        let ids: Vec<&str> = snapshot.with_rows.keys().map(String::as_str).collect();
        for id in self.shared.config.db.cancelled_or_failed(&ids, Class::ClusterUnreachable)? {
            if let Some(pod) = snapshot.with_rows.get(&id) {
                // A Pod that is being deleted already keeps its grace period.
                self.shared.config.backend.launcher.delete_exact(pod, None)?;
            }
        }
        Ok(())
    }

    /// Stores results again that the console has replaced, because it wrote its row after the task had ended.
    fn restore_results(&self, ended_within: Duration) -> Done {
        if !self.shared.leads() {
            return Ok(false);
        }
        for key in self.shared.config.db.restore_results(ended_within)? {
            tracing::info!(key, "restored a result that the console had replaced");
        }
        Ok(true)
    }

    fn close_stale(&self, snapshot: &Snapshot) -> Result<(), Failure> {
        self.restore_results(RESTORED_LATE)?;
        // After an outage of the database, or of this service, running tasks have had no heartbeat either.
        self.send_heartbeats(snapshot)?;
        let db = &self.shared.config.db;
        for task in db.fail_stale_tasks(cleanup::STALE)? {
            tracing::warn!(task, "closed a task without a heartbeat");
        }
        for key in db.fail_stale_catalogs(STALE_CATALOG)? {
            tracing::warn!(package = key.package, key = key.key, "closed a discover that did not end");
        }
        Ok(())
    }

    /// Closes rows and attempts without a Pod, and deletes their Secrets, whose names follow from the task: the process that accepted the task was killed before it created the
    /// Pod, or the Pod disappeared while no process was leading.
    fn close_orphans(&self) -> Done {
        if self.snapshot().is_none() {
            return Ok(false);
        }
        let Config { db, backend, installation, delayed, .. } = &self.shared.config;
        let rows = db.idle_tasks_of(installation, LAUNCHING)?;
        let attempts = db.open_attempts(LAUNCHING)?;
        // After the rows: a task that has just been started has no heartbeat yet, but a Pod.
        let waiting = delayed.stored(installation)?;
        // Taken after the rows: the Pods of those that run exist by now.
        let Some(snapshot) = self.snapshot() else { return Ok(false) };
        let now = Timestamp::now();
        let mut launching: HashSet<&str> = HashSet::new();
        for task in &waiting {
            if snapshot.pods.contains_key(&task.pod) {
                // Its process was killed before it could do this.
                db.delete_delayed_start(&task.task.task_id)?;
                continue;
            }
            launching.insert(&task.pod);
            // Of a process that has ended, it may be overdue.
            delayed.add(task.clone());
        }
        for attempt in &attempts {
            let is_orphan = match &attempt.accepted_by {
                Some(accepted_by) if accepted_by == installation => true,
                // Of a one-off command that was killed: there may be no further one to clean up.
                _ => cleanup::is_abandoned_attempt(attempt, now),
            };
            let pod = attempt.task.pod_name();
            if is_orphan && !snapshot.pods.contains_key(&pod) && backend.watcher.get(&pod)?.is_none() {
                self.close_attempt(&attempt.task)?;
            }
        }
        for row in rows.iter().filter(|row| !snapshot.with_rows.contains_key(&row.task_id)) {
            let task = Task::of_read(&row.package, &row.version, &row.sync_id, &row.task_id, row.started_at);
            if launching.contains(task.pod_name().as_str()) {
                continue;
            }
            if backend.watcher.get(&task.pod_name())?.is_none() {
                let failure = Failure::new(Class::PodDeleted, "the task is gone, and how it ended is unknown");
                tracing::warn!(task = task.task_id, "closing the row of a task that no longer exists");
                // The Secrets first: a row that is closed is not found again.
                backend.launcher.delete(&task.pod_name(), Some(Duration::ZERO))?;
                outcome::conclude(db, &task, &failure)?;
            }
        }
        Ok(true)
    }

    /// Closes a spec, check or discover that has no Pod, and deletes its Secrets.
    fn close_attempt(&self, task: &Task) -> Result<(), Failure> {
        let Config { db, backend, .. } = &self.shared.config;
        tracing::warn!(kind = %task.kind, task = task.task_id, "closing a task without a Pod");
        // The Secrets first: an attempt that is closed is not found again.
        backend.launcher.delete(&task.pod_name(), Some(Duration::ZERO))?;
        let text = "the process that accepted the task ended before it started the task, or its Pod is gone";
        outcome::conclude(db, task, &Failure::new(Class::Abandoned, text))?;
        Ok(())
    }

    /// Deletes old rows, and moves what sidecars of an earlier version have stored meanwhile.
    fn trim(&self) -> bool {
        if !self.shared.leads() {
            return false;
        }
        let Config { db, retention, .. } = &self.shared.config;
        match db.trim(retention, &|| self.is_stopped()) {
            Ok(trimmed) => tracing::info!(?trimmed, "deleted old rows"),
            Err(error) => tracing::warn!(%error, "cannot delete old rows"),
        }
        db.move_configs();
        // Also after an error: the next attempt is in an hour.
        true
    }
}
