//! Runs the task of a one-off command: record its start, launch, follow, record the outcome, clean up.
//!
//! Everything that happens arrives as an [`Event`] in one channel: the Pod has changed, the sidecar has stored a result,
//! the user has cancelled. The outcome is recorded before the Pod and its Secrets are deleted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use indicatif::{DecimalBytes, HumanCount};
use uuid::Uuid;

use super::lifecycle::{TaskLifecycle, Termination, Transition};
use super::outcome::{self, Stored, TaskResult};
use super::request::Request;
use super::start_log::{LogWriter, Place, StartLog};
use super::{Cancellation, cleanup, open_backend, open_database, unrecorded};
use crate::airbyte::state;
use crate::config::{Engine, Settings};
use crate::db::{ConcurrencyPolicy, Db, RequestMark, StartOutcome};
use crate::failure::{Class, Failure};
use crate::output::{Output, Progress};
use crate::pod::manifest::Launch;
use crate::pod::payload::Payload;
use crate::pod::status::Observation;
use crate::pod::{Backend, Ownership, PodError, PodEvent, PodRef, Scope, TaskPod};
use crate::process::ProcessId;
use crate::task::{StreamReport, StreamReports, StreamStatus, Task, TaskKind};

/// What can happen while a task runs.
enum Event {
    Pod(PodEvent),
    /// The sidecar has stored a result.
    ResultStored,
    Cancelled,
}

/// Added to the grace period of a Pod, at whose end the kubelet has killed its containers. Afterwards the object is deleted
/// without waiting for the node: some kubelets confirm the deletion a minute late.
const DELETION_SLACK: Duration = Duration::from_secs(10);
/// The delay between attempts to delete a Pod while the API server does not answer.
const DELETION_RETRY: Duration = Duration::from_secs(1);

/// Runs a task and removes everything that it created.
pub fn run(settings: &Settings, output: &Output, request: Request) -> TaskResult {
    settings.check_image(&request.task.image)?;
    let (events, inbox) = mpsc::channel();
    let cancellation = Cancellation::install({
        let events = events.clone();
        move || drop(events.send(Event::Cancelled))
    })?;
    let db = open_database(settings)?;
    let Request { task, mut payload, stored_state, .. } = request;
    if let Some(catalog) = stored_state {
        payload.state = state::from_rows(&db.states(&task.sync_id)?, &catalog)
            .map_err(|error| Failure::new(Class::DatabaseError, error))?;
    }
    let backend = open_backend(settings)?;
    let progress = output.progress();
    let log = TaskLog { writer: LogWriter::start(&db, &settings.pod.db_log_level), lines: StartLog::default() };
    Run { settings, db: &db, backend: &backend, task: &task, progress, shows_counts: false, log }.run(
        &payload,
        &events,
        &inbox,
        &cancellation,
    )
}

/// The lines of `task_log` about the start of the task.
struct TaskLog {
    writer: LogWriter,
    lines: StartLog,
}

struct Run<'a> {
    settings: &'a Settings,
    db: &'a Db,
    backend: &'a Backend,
    task: &'a Task,
    progress: Progress,
    /// The progress shows the number of records.
    shows_counts: bool,
    log: TaskLog,
}

impl Run<'_> {
    fn run(
        mut self,
        payload: &Payload,
        events: &Sender<Event>,
        inbox: &Receiver<Event>,
        cancellation: &Cancellation,
    ) -> TaskResult {
        let task = self.task;
        let mark = ProcessId::current().map(|process| RequestMark::accepted_by(&process.to_string()));
        outcome::record_attempt(self.db, task, mark.as_ref())?;
        match outcome::record_start(self.db, task, None, ConcurrencyPolicy::Allow)? {
            StartOutcome::Started => {}
            StartOutcome::Exists(row) => {
                let text = format!("task {} was started before and is {}", task.task_id, row.status_text);
                return Err(Failure::new(Class::TaskExists, text));
            }
            StartOutcome::SyncBusy(other) => {
                let text = format!("task {other} of sync {} is still running", task.sync_id);
                return Err(Failure::new(Class::TaskExists, text));
            }
        }
        let (abandoned, pod) = match self.launch(payload, cancellation) {
            Ok(launched) => launched,
            Err(failure) => return self.fail(failure, None),
        };
        let subscription = {
            let events = events.clone();
            let on_event = Box::new(move |event| drop(events.send(Event::Pod(event))));
            self.backend.watcher.watch(Scope::Pod(&pod), self.settings.status_check, on_event)
        };
        let listener = ResultListener::start(self.db, &task.task_id, events.clone());
        let end = self.follow(inbox, &pod);
        drop(listener);
        self.complete_log(&pod, matches!(end, Ok(End::Result(Ok(_)))));
        // This process deletes the Pod from here on, which must not be reported as a deletion by another client.
        drop(subscription);
        let result = match end {
            Ok(End::Result(result)) => {
                self.delete(&pod.name, Some(Duration::ZERO));
                result
            }
            Ok(End::Failed { failure, grace }) => self.fail(failure, Some((&pod.name, grace))),
            Err(failure) => {
                self.delete(&pod.name, None);
                Err(failure)
            }
        };
        cleanup::wait_deleted(self.backend, &abandoned);
        result
    }

    /// Cleans up after killed commands, then launches. Returns the abandoned Pods that are being deleted, and the new one.
    fn launch(&mut self, payload: &Payload, cancellation: &Cancellation) -> Result<(Vec<String>, PodRef), Failure> {
        let abandoned = cleanup::clean_up(self.backend, self.db)?;
        if cancellation.is_requested() {
            return Err(Failure::new(Class::Cancelled, "the task was cancelled before it started"));
        }
        let verb = if self.is_local() { "Starting task" } else { "Creating pod" };
        let launcher = &self.backend.launcher;
        self.progress.status(&format!("{verb} {} {}", self.task.pod_name(), launcher.location()));
        let owner = ProcessId::current().map(|process| process.to_string());
        let launch = Launch {
            task: self.task,
            payload,
            settings: &self.settings.pod,
            attempt: &Uuid::new_v4().to_string(),
            owner: owner.as_deref(),
        };
        let pod = launcher.launch(&launch, Ownership::Now)?;
        Ok((abandoned, pod))
    }

    fn is_local(&self) -> bool {
        matches!(self.settings.engine, Engine::Local(_))
    }

    fn log(&mut self, pod: &TaskPod) {
        let place = Place::of(self.backend);
        self.log.writer.write(self.log.lines.observe(pod, self.task, &place));
    }

    /// Logs what was not observed of a task that ended quickly. With a result its connector has run.
    fn complete_log(&mut self, pod: &PodRef, has_result: bool) {
        if !self.log.lines.is_complete()
            && let Ok(Some(current)) = self.backend.watcher.get(&pod.name)
            && current.id.uid == pod.uid
        {
            self.log(&current);
            if has_result {
                let rows = self.log.lines.assume_started(&current, self.task, &Place::of(self.backend));
                self.log.writer.write(rows);
            }
        }
    }

    /// Waits for the end of the task.
    fn follow(&mut self, inbox: &Receiver<Event>, pod: &PodRef) -> Result<End, Failure> {
        let task = self.task;
        let mut lifecycle = TaskLifecycle::new(Instant::now(), task.timeout, self.settings.init_timeout);
        let count_interval = self.progress.count_interval().filter(|_| task.kind == TaskKind::Read);
        let mut counted_at = Instant::now();
        loop {
            let wait = lifecycle.next_deadline().saturating_duration_since(Instant::now());
            let wait = count_interval.map_or(wait, |interval| wait.min(interval));
            if count_interval.is_some_and(|interval| lifecycle.has_started() && counted_at.elapsed() >= interval) {
                counted_at = Instant::now();
                self.show_counts();
            }
            match inbox.recv_timeout(wait) {
                Ok(Event::Cancelled) => {
                    self.progress.status("Cancelling task");
                    let failure = Failure::new(Class::Cancelled, "the task was cancelled");
                    return Ok(End::Failed { failure, grace: None });
                }
                Ok(Event::ResultStored) => match outcome::load(self.db, task) {
                    Ok(Some(result)) => return Ok(End::Result(result)),
                    Ok(None) => {}
                    // The task continues without the database; its result is read again when it ends.
                    Err(error) if error.is_transient() => tracing::warn!(%error, "cannot read the result yet"),
                    Err(error) => return Err(error.into()),
                },
                Ok(Event::Pod(PodEvent::Deleted { uid, .. })) if uid == pod.uid => {
                    return self.settle(pod, &Termination::deleted());
                }
                Ok(Event::Pod(PodEvent::Updated(current))) if current.id.uid == pod.uid => {
                    self.log(&current);
                    if let Some(termination) = self.observe(&current.observation, &mut lifecycle) {
                        return self.settle(pod, &termination);
                    }
                }
                Ok(Event::Pod(PodEvent::Synced)) if !lifecycle.has_started() => self.send_heartbeat(),
                Ok(Event::Pod(PodEvent::Failed(error))) => tracing::warn!(%error, "cannot watch the task; retrying"),
                // Other events are about a later Pod of the same name.
                Ok(Event::Pod(_)) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Failure::new(Class::Internal, "the watch of the task has stopped"));
                }
            }
            if let Some(mut termination) = lifecycle.deadline_exceeded(Instant::now()) {
                termination.explain(|| self.backend.warnings(&pod.name));
                return self.settle(pod, &termination);
            }
        }
    }

    fn observe(&mut self, observation: &Observation, lifecycle: &mut TaskLifecycle) -> Option<Termination> {
        if let Some(notice) = &observation.notice {
            self.progress.notice(notice);
        }
        match lifecycle.observe(observation, Instant::now()) {
            Transition::Terminate(termination) => return Some(termination),
            Transition::Continue(progress) if !self.shows_counts => self.progress.status(&progress),
            Transition::Continue(_) => {}
        }
        if !lifecycle.has_started() {
            self.send_heartbeat();
        }
        None
    }

    /// Keeps the row of a read from becoming stale while its Pod starts. Later the sidecar does.
    fn send_heartbeat(&self) {
        if self.task.kind == TaskKind::Read
            && let Err(error) = self.db.heartbeat(&self.task.task_id)
        {
            tracing::warn!(%error, "cannot store the heartbeat of the task");
        }
    }

    fn show_counts(&mut self) {
        // The next operation that needs the database reports an error.
        let Ok(Some(row)) = self.db.task(&self.task.task_id) else { return };
        if row.streams.values().any(|stream| stream.status != StreamStatus::Pending) {
            self.shows_counts = true;
            self.progress.status(&read_progress(&row.streams));
        }
    }

    /// The end of a task that has terminated: the result that the sidecar stores within the settle time, else the failure.
    fn settle(&self, pod: &PodRef, termination: &Termination) -> Result<End, Failure> {
        let deadline = Instant::now() + termination.settle_time;
        loop {
            match outcome::stored(self.db, self.task)? {
                Stored::Result(result) => return Ok(End::Result(result)),
                Stored::Terminated => return Ok(End::failed(termination.failure.clone(), termination)),
                Stored::Nothing if Instant::now() >= deadline => {
                    return Ok(match unrecorded::outcome(self.backend, self.db, self.task, pod, termination)? {
                        Ok(outcome) => End::Result(Ok(outcome)),
                        Err(failure) => End::failed(failure, termination),
                    });
                }
                Stored::Nothing => {}
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Records a failure, then deletes the Pod with this grace period.
    fn fail(&mut self, failure: Failure, pod: Option<(&str, Option<Duration>)>) -> TaskResult {
        let recorded = outcome::record_failure(self.db, self.task, &failure);
        if let Some((pod, grace)) = pod {
            self.delete(pod, grace);
        }
        if let Err(error) = recorded {
            // The user gets the first cause, which is the one to act on.
            tracing::error!(%error, "cannot record the outcome of the task");
        }
        if self.task.kind == TaskKind::Read
            && let Ok(Some(result)) = outcome::load(self.db, self.task)
        {
            return result;
        }
        Err(failure)
    }

    fn delete(&mut self, pod: &str, grace: Option<Duration>) {
        self.progress.status(if self.is_local() { "Removing task" } else { "Removing pod" });
        let grace_or_default = grace.unwrap_or(Duration::from_secs(u64::from(self.settings.pod.grace_seconds)));
        let limit = grace_or_default + DELETION_SLACK;
        let deadline = Instant::now() + limit;
        let launcher = &self.backend.launcher;
        loop {
            match launcher.delete(pod, grace).and_then(|()| launcher.wait_deleted(pod, limit)) {
                Ok(()) => return,
                // A short outage of the API server is no reason to leave credentials behind.
                Err(PodError::Unreachable { .. }) if Instant::now() < deadline => std::thread::sleep(DELETION_RETRY),
                Err(error) => {
                    tracing::error!(%error, "cannot remove the task; the next command tries again");
                    return;
                }
            }
        }
    }
}

/// The progress of a read in one line.
fn read_progress(streams: &StreamReports) -> String {
    let received =
        |stream: &StreamReport| stream.received.map_or((stream.events, stream.bytes), |r| (r.events, r.bytes));
    let (events, bytes) = streams.values().map(received).fold((0, 0), |sum, new| (sum.0 + new.0, sum.1 + new.1));
    let is_open = |status| matches!(status, StreamStatus::Pending | StreamStatus::Running);
    let done = streams.values().filter(|stream| !is_open(stream.status)).count();
    // A sum of the estimates of some streams would be too low.
    let rows: Option<u64> = streams.values().map(|stream| stream.estimate?.rows).sum();
    let of = rows.map(|rows| format!(" of about {}", HumanCount(rows))).unwrap_or_default();
    let (events, bytes) = (HumanCount(events), DecimalBytes(bytes));
    format!("{events}{of} records, {bytes}; {done} of {} streams done", streams.len())
}

/// How the task ended.
enum End {
    /// A result is stored.
    Result(TaskResult),
    /// This process found a failure, which is not recorded yet.
    Failed {
        /// The failure.
        failure: Failure,
        /// Grace period for deleting the Pod; `None` is the Pod's own.
        grace: Option<Duration>,
    },
}

impl End {
    fn failed(failure: Failure, termination: &Termination) -> Self {
        Self::Failed { failure, grace: termination.grace }
    }
}

/// Reports stored results until it is dropped. Where notifications do not arrive (behind a connection pooler) results are
/// read when the Pod ends.
struct ResultListener {
    stop: Arc<AtomicBool>,
}

impl ResultListener {
    /// How often the thread checks whether it was dropped.
    const INTERVAL: Duration = Duration::from_millis(200);

    fn start(db: &Db, task_id: &str, events: Sender<Event>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (db, task_id, stopped) = (db.clone(), task_id.to_owned(), Arc::clone(&stop));
        // Not joined: it ends within its interval.
        std::thread::spawn(move || {
            let mut listener = match db.listen(&task_id) {
                Ok(listener) => listener,
                Err(error) => {
                    tracing::debug!(%error, "cannot listen for the result; it is read when the task ends");
                    return;
                }
            };
            // The result may have been stored before the subscription.
            let mut is_stored = true;
            while !stopped.load(Ordering::Relaxed) {
                if is_stored {
                    drop(events.send(Event::ResultStored));
                }
                is_stored = listener.wait(Self::INTERVAL);
            }
        });
        Self { stop }
    }
}

impl Drop for ResultListener {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::read_progress;
    use crate::task::{Estimate, Received, StreamReport, StreamReports, StreamStatus};

    #[test]
    fn progress_of_a_read_is_one_line() {
        let stream = |events, status, rows| StreamReport {
            events,
            bytes: 1_500_000,
            estimate: Some(Estimate { rows, bytes: None }),
            ..StreamReport::new(status)
        };
        let mut streams = StreamReports::new();
        streams.insert("users".to_owned(), stream(12_000, StreamStatus::Success, Some(12_000)));
        streams.insert("orders".to_owned(), stream(345, StreamStatus::Running, Some(50_000)));
        assert_eq!(read_progress(&streams), "12,345 of about 62,000 records, 3.00 MB; 1 of 2 streams done");
        streams["orders"].received = Some(Received { events: 445, bytes: 2_500_000 });
        assert_eq!(read_progress(&streams), "12,445 of about 62,000 records, 4.00 MB; 1 of 2 streams done");
        streams["orders"].received = None;
        streams.insert("other".to_owned(), stream(0, StreamStatus::Pending, None));
        assert_eq!(read_progress(&streams), "12,345 records, 4.50 MB; 1 of 3 streams done");
    }
}
