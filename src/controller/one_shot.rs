//! The shared way of one task: record, launch, follow, record the outcome, clean up.
//!
//! Everything that can happen arrives as an [`Event`] in one channel: the Pod has changed, the sidecar has written a
//! row, the user has cancelled. The outcome goes to the database first, then the Pod and its Secrets go.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use indicatif::{DecimalBytes, HumanCount};

use uuid::Uuid;

use super::cancel::Cancel;
use super::cleanup;
use super::engine;
use super::lifecycle::{TaskLifecycle, Termination, Transition};
use super::outcome::{self, Outcome, Verdict};
use super::owner::Owner;
use super::request::Request;
use crate::config::Settings;
use crate::db::{ConcurrencyPolicy, Db, Options, StartOutcome, Target};
use crate::failure::{Class, Failure};
use crate::output::{Output, Progress};
use crate::pod::manifest::Launch;

use crate::pod::status::Observation;
use crate::pod::{Backend, Ownership, PodError, PodEvent, PodRef, Scope};
use crate::task::{StreamReports, StreamStatus, TaskKind, TaskStatus};

/// What can happen while a task runs.
enum Event {
    Pod(PodEvent),
    /// The sidecar has written a final row.
    Row,
    Cancelled,
}

/// How long an outage of the database may last before a one-off command gives up.
pub const PATIENCE: Duration = Duration::from_mins(1);
/// Beyond the Pod's own grace period, at whose end the kubelet has killed everything; then the object is removed without
/// the node's word, which some kubelets give a minute late.
const GONE_SLACK: Duration = Duration::from_secs(10);
/// Between two tries to remove a Pod while the API server does not answer.
const RETRY: Duration = Duration::from_secs(1);

/// Runs one task from its record to its last trace.
pub fn run(settings: &Settings, output: &Output, request: &Request) -> Result<Outcome, Failure> {
    let (events, inbox) = mpsc::channel();
    let cancel = Cancel::install({
        let events = events.clone();
        move || drop(events.send(Event::Cancelled))
    })?;
    let target = Target::parse(&settings.database_url, "SYNCCTL_DATABASE_URL")?;
    let options = Options { application_name: "syncctl".to_owned(), pool_size: 2, retry_timeout: PATIENCE };
    let db = Db::open(target, options)?;
    db.ensure_schema()?;
    let backend = engine::open(settings)?;
    let run = Run { settings, db: &db, backend: &backend, request, progress: output.progress(), counts: false };
    let outcome = run.whole_way(&events, &inbox, &cancel);
    drop(cancel);
    outcome
}

struct Run<'a> {
    settings: &'a Settings,
    db: &'a Db,
    backend: &'a Backend,
    request: &'a Request,
    progress: Progress,
    /// The last thing said was how far it is.
    counts: bool,
}

impl Run<'_> {
    fn whole_way(
        mut self,
        events: &Sender<Event>,
        inbox: &Receiver<Event>,
        cancel: &Cancel,
    ) -> Result<Outcome, Failure> {
        let task = &self.request.task;
        match outcome::begin(self.db, task, ConcurrencyPolicy::Allow)? {
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
        let (swept, pod) = match self.start(cancel) {
            Ok(started) => started,
            Err(failure) => return self.close(failure, None),
        };
        let subscription = {
            let events = events.clone();
            let on_event = Box::new(move |event| drop(events.send(Event::Pod(event))));
            self.backend.watcher.watch(Scope::Pod(&pod), self.settings.status_check, on_event)
        };
        let listener = outcome::Listener::start(self.db, &task.task_id, {
            let events = events.clone();
            move || drop(events.send(Event::Row))
        });
        let end = self.follow(inbox, &pod);
        drop(listener);
        // From here on the deletion is ours.
        drop(subscription);
        let outcome = match end {
            Ok(End::Result(outcome)) => {
                self.clean_up(&pod.name, Some(Duration::ZERO));
                outcome
            }
            Ok(End::Failed { failure, grace }) => self.close(failure, Some((&pod.name, grace))),
            Err(failure) => {
                self.clean_up(&pod.name, None);
                Err(failure)
            }
        };
        cleanup::wait(self.backend, &swept);
        outcome
    }

    /// Sweeps what killed commands left, then launches. Returns the swept Pods and the launched one.
    fn start(&mut self, cancel: &Cancel) -> Result<(Vec<String>, PodRef), Failure> {
        let swept = cleanup::sweep(self.backend, self.db)?;
        if cancel.is_set() {
            return Err(Failure::new(Class::Cancelled, "cancelled before the pod was created"));
        }
        let Request { task, payload } = self.request;
        self.progress.say(&format!("creating pod {} {}", task.pod_name(), self.backend.launcher.location()));
        let owner = Owner::me().map(|owner| owner.to_string());
        let attempt = Uuid::new_v4().to_string();
        let launch = Launch { task, payload, settings: &self.settings.pod, attempt: &attempt, owner: owner.as_deref() };
        let pod = self.backend.launcher.launch(&launch, Ownership::Now)?;
        Ok((swept, pod))
    }

    /// Waits until the task has ended, one way or another.
    fn follow(&mut self, inbox: &Receiver<Event>, pod: &PodRef) -> Result<End, Failure> {
        let task = &self.request.task;
        let mut lifecycle = TaskLifecycle::new(Instant::now(), task.timeout, self.settings.init_timeout);
        let looks = self.progress.interval().filter(|_| task.kind == TaskKind::Read);
        let mut looked = Instant::now();
        loop {
            let wait = lifecycle.next_deadline().saturating_duration_since(Instant::now());
            let wait = looks.map_or(wait, |pause| wait.min(pause));
            if looks.is_some_and(|pause| lifecycle.has_started() && looked.elapsed() >= pause) {
                looked = Instant::now();
                self.count();
            }
            match inbox.recv_timeout(wait) {
                Ok(Event::Cancelled) => {
                    self.progress.say("cancelling");
                    return Ok(End::Failed {
                        failure: Failure::new(Class::Cancelled, "the task was cancelled"),
                        grace: None,
                    });
                }
                Ok(Event::Row) => match outcome::outcome(self.db, task) {
                    Ok(Some(outcome)) => return Ok(End::Result(outcome)),
                    Ok(None) => {}
                    // The task goes on without the database; its end will be looked for again.
                    Err(error) if error.is_transient() => tracing::warn!(%error, "the result will be read later"),
                    Err(error) => return Err(error.into()),
                },
                Ok(Event::Pod(PodEvent::Deleted { uid, .. })) if uid == pod.uid => {
                    return self.settle(Termination::deleted());
                }
                Ok(Event::Pod(PodEvent::Updated(seen))) if seen.id.uid == pod.uid => {
                    if let Some(termination) = self.seen(&seen.observation, &mut lifecycle) {
                        return self.settle(termination);
                    }
                }
                Ok(Event::Pod(PodEvent::Synced)) if !lifecycle.has_started() => self.heartbeat(),
                Ok(Event::Pod(PodEvent::Failed(error))) => tracing::warn!(%error, "the pod will be read again"),
                // What else is reported is a later Pod of the same name.
                Ok(Event::Pod(_)) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Failure::new(Class::Internal, "nobody watches the pod any more"));
                }
            }
            if let Some(mut termination) = lifecycle.deadline_exceeded(Instant::now()) {
                termination.explain(|| self.backend.warnings(&task.pod_name()));
                return self.settle(termination);
            }
        }
    }

    fn seen(&mut self, observation: &Observation, lifecycle: &mut TaskLifecycle) -> Option<Termination> {
        if let Some(notice) = &observation.notice {
            self.progress.tell(notice);
        }
        match lifecycle.observe(observation, Instant::now()) {
            Transition::Terminate(termination) => return Some(termination),
            // Once records come, their number is what people want to see.
            Transition::Continue(_) if self.counts => {}
            Transition::Continue(what) => self.progress.say(&what),
        }
        if !lifecycle.has_started() {
            self.heartbeat();
        }
        None
    }

    /// A task that waits for its Pod lives, too: the stale sweep must not take it. Afterwards the sidecar says so.
    fn heartbeat(&self) {
        if self.request.task.kind == TaskKind::Read
            && let Err(error) = self.db.heartbeat(&self.request.task.task_id)
        {
            tracing::warn!(%error, "the task's row was not refreshed");
        }
    }

    /// Says how far a read is, as its row tells it.
    fn count(&mut self) {
        // Nothing depends on it; whoever needs the database will say that it is away.
        let Ok(Some(row)) = self.db.task(&self.request.task.task_id) else { return };
        if row.streams.values().any(|stream| stream.status != StreamStatus::Pending) {
            self.counts = true;
            self.progress.say(&counts(&row.streams));
        }
    }

    /// The task is over: what the sidecar wrote counts, else the failure. A sidecar that still runs has a moment.
    fn settle(&self, termination: Termination) -> Result<End, Failure> {
        let Termination { failure, grace, settle_time, .. } = termination;
        let deadline = Instant::now() + settle_time;
        loop {
            if let Some(verdict) = outcome::outcome(self.db, &self.request.task)? {
                return Ok(End::Result(not_cancelled_by_us(verdict, &failure)));
            }
            if Instant::now() >= deadline {
                return Ok(End::Failed { failure, grace });
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Records a failure, then removes the Pod.
    fn close(&mut self, failure: Failure, pod: Option<(&str, Option<Duration>)>) -> Result<Outcome, Failure> {
        let recorded = outcome::failure(self.db, &self.request.task, &failure);
        if let Some((pod, grace)) = pod {
            self.clean_up(pod, grace);
        }
        if let Err(error) = recorded {
            // The user is told what happened all the same: the first cause is the one to act on.
            tracing::error!(%error, "the outcome could not be recorded");
        }
        if self.request.task.kind == TaskKind::Read
            && let Ok(Some(verdict)) = outcome::outcome(self.db, &self.request.task)
        {
            return verdict;
        }
        Err(failure)
    }

    fn clean_up(&mut self, pod: &str, grace: Option<Duration>) {
        self.progress.say("removing the pod");
        let patience = grace.unwrap_or(Duration::from_secs(u64::from(self.settings.pod.grace_seconds))) + GONE_SLACK;
        let deadline = Instant::now() + patience;
        loop {
            let launcher = &self.backend.launcher;
            match launcher.delete(pod, grace).and_then(|()| launcher.wait_deleted(pod, patience)) {
                Ok(()) => return,
                // An API server that is away for a moment is no reason to leave credentials behind.
                Err(PodError::Unreachable { .. }) if Instant::now() < deadline => std::thread::sleep(RETRY),
                Err(error) => {
                    tracing::error!(%error, "the pod could not be removed; the next command will try again");
                    return;
                }
            }
        }
    }
}

/// How far the streams of a read are, in one line.
fn counts(streams: &StreamReports) -> String {
    let events: u64 = streams.values().map(|stream| stream.events).sum();
    let bytes: u64 = streams.values().map(|stream| stream.bytes).sum();
    let open = |status| matches!(status, StreamStatus::Pending | StreamStatus::Running);
    let done = streams.values().filter(|stream| !open(stream.status)).count();
    // An estimate of some streams alone would be one that is too low.
    let rows: Option<u64> = streams.values().map(|stream| stream.estimate?.rows).sum();
    let of = rows.map(|rows| format!(" of about {}", HumanCount(rows))).unwrap_or_default();
    let (events, bytes) = (HumanCount(events), DecimalBytes(bytes));
    format!("{events}{of} records, {bytes}; {done} of {} streams have ended", streams.len())
}

/// How following ended.
enum End {
    /// The rows tell what became of it.
    Result(Verdict),
    /// We found a failure, and have to record it.
    Failed {
        /// What will be recorded.
        failure: Failure,
        /// `None`: containers may still run, and get their time to end.
        grace: Option<Duration>,
    },
}

/// A sidecar cannot know who ended it and says CANCELLED; who followed the Pod and did not cancel knows better. The row
/// stays as it is, but the caller is told the cause.
fn not_cancelled_by_us(verdict: Verdict, failure: &Failure) -> Verdict {
    match verdict {
        Err(told) if told.class == Class::Cancelled => Err(failure.clone()),
        Ok(Outcome::Read { task_id, sync_id, status: TaskStatus::Cancelled, streams, .. }) => {
            let error = Some(failure.to_string());
            Ok(Outcome::Read { task_id, sync_id, status: TaskStatus::Cancelled, streams, error })
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::counts;
    use crate::task::{Estimate, StreamReport, StreamReports, StreamStatus};

    #[test]
    fn how_far_a_read_is_fits_into_a_line() {
        let stream = |events, status, rows| StreamReport {
            events,
            bytes: 1_500_000,
            status,
            error: None,
            estimate: Some(Estimate { rows, bytes: None }),
        };
        let mut streams = StreamReports::new();
        streams.insert("users".to_owned(), stream(12_000, StreamStatus::Success, Some(12_000)));
        streams.insert("orders".to_owned(), stream(345, StreamStatus::Running, Some(50_000)));
        assert_eq!(counts(&streams), "12,345 of about 62,000 records, 3.00 MB; 1 of 2 streams have ended");
        streams.insert("other".to_owned(), stream(0, StreamStatus::Pending, None));
        assert_eq!(counts(&streams), "12,345 records, 4.50 MB; 1 of 3 streams have ended");
    }
}
