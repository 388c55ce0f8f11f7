//! Tasks whose documents are stored and whose Pods are created later. The process that has accepted one starts it; the
//! leader finds those of processes that ended.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use uuid::Uuid;

use super::outcome;
use super::start_log::is_info_logged;
use crate::config::Settings;
use crate::db::{Db, LogRow};
use crate::failure::{Class, Failure};
use crate::pattern::ImagePolicy;
use crate::pod::{Backend, PodError, WaitingTask};
use crate::task::{Task, TaskStatus};

/// How often due tasks are looked for.
const POLL: Duration = Duration::from_millis(250);
/// How often their rows get a heartbeat: more often than the leader closes rows without a Pod.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// The delay before a start that failed for a temporary reason is repeated.
const RETRY: Duration = Duration::from_secs(2);
/// How long it is repeated.
const RETRY_TIMEOUT: Duration = Duration::from_mins(2);

/// The tasks that this process starts later.
pub struct DelayedStarts {
    backend: Backend,
    db: Db,
    /// The least level in `task_log`.
    log_level: String,
    /// It may have changed since a task was accepted.
    image_policy: ImagePolicy,
    tasks: Mutex<BTreeMap<String, Delayed>>,
    is_stopped: AtomicBool,
}

#[derive(Clone)]
struct Delayed {
    waiting: WaitingTask,
    /// When to start it, or to try again.
    next: Instant,
    /// When no further attempt is made.
    give_up_at: Instant,
}

impl DelayedStarts {
    /// No tasks.
    pub fn new(backend: Backend, db: Db, settings: &Settings) -> Self {
        let (log_level, image_policy) = (settings.pod.db_log_level.clone(), settings.image_policy.clone());
        Self { backend, db, log_level, image_policy, tasks: Mutex::default(), is_stopped: AtomicBool::new(false) }
    }

    /// Adds a task that was just prepared, and logs why it does not start.
    pub fn accept(&self, waiting: WaitingTask, delay: Duration) {
        let text = format!("the start waits for {} s, because several scheduled runs are due", delay.as_secs());
        let row = LogRow::own(&waiting.task, Uuid::new_v4(), "INFO", text, Timestamp::now());
        self.add(waiting);
        if is_info_logged(&self.log_level)
            && let Err(error) = self.db.insert_logs(&[row])
        {
            tracing::warn!(%error, "cannot log that a task starts later");
        }
    }

    /// The prepared tasks of this installation, whichever process has accepted them.
    pub fn stored(&self, installation: &str) -> Result<Vec<WaitingTask>, Failure> {
        let mut waiting = self.backend.launcher.waiting()?;
        for document in self.db.delayed_starts(installation)? {
            match WaitingTask::parse(document) {
                Ok(task) => waiting.push(task),
                Err(error) => tracing::warn!(error, "cannot read a task that starts later"),
            }
        }
        Ok(waiting)
    }

    /// Adds a prepared task, unless it is there.
    pub fn add(&self, waiting: WaitingTask) {
        let delay = Duration::try_from(waiting.start_at.duration_since(Timestamp::now())).unwrap_or_default();
        let next = Instant::now() + delay;
        let delayed = Delayed { next, give_up_at: next + RETRY_TIMEOUT, waiting };
        self.tasks().entry(delayed.waiting.pod.clone()).or_insert(delayed);
    }

    /// Starts tasks until [`stop`](Self::stop).
    pub fn run(&self) {
        let mut heartbeat = Instant::now();
        while !self.is_stopped.load(Ordering::Relaxed) {
            let now = Instant::now();
            let due: Vec<Delayed> = self.tasks().values().filter(|delayed| now >= delayed.next).cloned().collect();
            for delayed in due {
                self.start(delayed);
            }
            if now >= heartbeat {
                heartbeat = now + HEARTBEAT;
                self.send_heartbeats();
            }
            std::thread::sleep(POLL);
        }
    }

    /// Those that wait are found by the next process.
    pub fn stop(&self) {
        self.is_stopped.store(true, Ordering::Relaxed);
    }

    fn tasks(&self) -> MutexGuard<'_, BTreeMap<String, Delayed>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send_heartbeats(&self) {
        let ids: Vec<String> = self.tasks().values().map(|delayed| delayed.waiting.task.task_id.clone()).collect();
        if let Err(error) = self.db.heartbeats(&ids.iter().map(String::as_str).collect::<Vec<_>>()) {
            tracing::warn!(%error, "cannot store the heartbeats of tasks that start later");
        }
    }

    fn start(&self, delayed: Delayed) {
        let Delayed { waiting, give_up_at, .. } = &delayed;
        let (pod, task) = (&waiting.pod, &waiting.task);
        match self.try_start(waiting, Instant::now() >= *give_up_at) {
            Ok(()) => {
                self.tasks().remove(pod);
                if let Err(error) = self.db.delete_delayed_start(&task.task_id) {
                    tracing::warn!(pod, task = task.task_id, %error, "cannot forget a task that has waited");
                }
            }
            Err(error) => {
                tracing::warn!(pod, task = task.task_id, %error, "cannot start a task that has waited; retrying");
                self.tasks().insert(pod.clone(), Delayed { next: Instant::now() + RETRY, ..delayed });
            }
        }
    }

    /// An error: to be called again. `is_last`: an error of the backend is final.
    fn try_start(&self, waiting: &WaitingTask, is_last: bool) -> Result<(), Failure> {
        let WaitingTask { pod, task, .. } = waiting;
        let launcher = &self.backend.launcher;
        // Cancelled, or set to FAILED by the console.
        if !self.is_running(task)? {
            return Ok(launcher.delete(pod, None)?);
        }
        if let Err(text) = self.image_policy.check(&task.image) {
            outcome::record_failure(&self.db, task, &Failure::new(Class::Usage, text))?;
            return Ok(launcher.delete(pod, None)?);
        }
        match launcher.start_waiting(waiting) {
            Ok(false) | Err(PodError::Exists { .. }) => return Ok(()),
            Ok(true) => tracing::info!(pod, kind = %task.kind, task = task.task_id, "started a task that has waited"),
            Err(error @ PodError::Unreachable { .. }) if !is_last => return Err(error.into()),
            Err(error) => {
                let failure = Failure::from(error);
                tracing::warn!(pod, task = task.task_id, error = %failure, "cannot start a task that has waited");
                outcome::record_failure(&self.db, task, &failure)?;
                return Ok(launcher.delete(pod, None)?);
            }
        }
        // It may have been cancelled before its Pod existed.
        if self.is_running(task)? { Ok(()) } else { Ok(launcher.delete(pod, None)?) }
    }

    fn is_running(&self, task: &Task) -> Result<bool, Failure> {
        Ok(self.db.task(&task.task_id)?.is_some_and(|row| row.status == Some(TaskStatus::Running)))
    }
}

/// Runs [`DelayedStarts`] on a thread of its own until it is dropped.
pub struct DelayedStartsThread {
    starts: Arc<DelayedStarts>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl DelayedStartsThread {
    /// Starts the thread.
    pub fn start(starts: &Arc<DelayedStarts>) -> Self {
        let worker = Arc::clone(starts);
        Self { starts: Arc::clone(starts), thread: Some(std::thread::spawn(move || worker.run())) }
    }
}

impl Drop for DelayedStartsThread {
    fn drop(&mut self) {
        self.starts.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}
