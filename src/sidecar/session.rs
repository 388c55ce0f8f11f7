//! read: rows to the sink, states to the database, and how far it is.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::documents::Documents;
use super::log::{Level, TaskLog};
use super::metrics::Metrics;
use super::sink::Destination;
use super::source::{Input, Source};
use super::streams::{Storable, Streams};
use super::{End, PATIENCE, Stop, Stopped};
use crate::airbyte::catalog::ConfiguredCatalog;
use crate::airbyte::message::{Message, StreamName};
use crate::airbyte::state::State;
use crate::db::{Db, Writer};
use crate::failure::{Class, Failure};
use crate::task::{StreamReports, StreamStatus, Task, TaskStatus};

/// How often a task that changes nothing says that it lives; the stale sweep begins after an hour.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// The least time between two reports.
const REPORT_PAUSE: Duration = Duration::from_millis(500);
/// How often counts are shown while records come.
const COUNT_INTERVAL: Duration = Duration::from_secs(2);
/// How long the database may be away when only what the connector has used would be lost.
const LAST_REPORT_PATIENCE: Duration = Duration::from_secs(2);
/// Records between two looks at the clock.
const RECORDS_PER_LOOK: u32 = 4096;

/// Reads until the source has ended, and stores the outcome.
pub fn run(
    task: &Task,
    mut source: Source,
    documents: &Documents,
    db: &Db,
    log: &TaskLog,
    stop: &Stop,
) -> Result<End, Failure> {
    source.log_stderr(log);
    let mut session = match Session::open(task, source.metrics(), documents, db, log) {
        Ok(session) => session,
        Err(failure) => {
            finish(task, db, log, TaskStatus::Failed, None, Some(failure))?;
            return Ok(End::Done);
        }
    };
    let ended = session.read(&mut source, stop)?;
    session.close(&mut source, ended)
}

/// Why there is nothing more to read.
enum Ended {
    /// The source has closed its stdout.
    Source,
    Stopped(Stopped),
    Silent(Failure),
}

struct Session<'a> {
    task: &'a Task,
    db: &'a Db,
    log: &'a TaskLog,
    streams: Streams,
    reporter: Reporter,
    /// The source's own words for its failure.
    reported: Option<String>,
    /// Rows that were too long to be understood: data is missing then.
    lost: Option<String>,
    /// Names that were told once.
    unknown: Vec<StreamName>,
    last_states: Storable,
    /// The stored states are still to be forgotten.
    forgets: bool,
    records: u32,
    counted: Instant,
}

impl<'a> Session<'a> {
    fn open(
        task: &'a Task,
        metrics: Metrics,
        documents: &Documents,
        db: &'a Db,
        log: &'a TaskLog,
    ) -> Result<Self, Failure> {
        let catalog: ConfiguredCatalog = documents.json("catalog.json")?;
        let destination: serde_json::Value = documents.json("destinationConfig.json")?;
        let sink = Destination::parse(&destination)?
            .connect(task)
            .map_err(|error| Failure::new(Class::DestinationFailed, error.text))?;
        let streams = Streams::new(&catalog, &task.options, sink);
        let reporter = Reporter::start(db.clone(), task.task_id.clone(), metrics, streams.reports());
        Ok(Self {
            task,
            db,
            log,
            streams,
            reporter,
            reported: None,
            lost: None,
            unknown: Vec::new(),
            last_states: Vec::new(),
            forgets: task.options.full_sync,
            records: 0,
            counted: Instant::now(),
        })
    }

    fn read(&mut self, source: &mut Source, stop: &Stop) -> Result<Ended, Failure> {
        loop {
            match source.next(stop)? {
                Input::Line(line) => {
                    let message = Message::parse(&line);
                    if message == Message::Text {
                        self.log.write(Level::Info, "source", &line);
                        let line = line.into_owned();
                        source.remember(&line);
                    } else if self.message(message)? {
                        source.alive();
                    }
                }
                Input::Lost(head, length) => {
                    let text = format!("a line of {length} bytes is too long to be understood; it began: {head}");
                    self.log.write(Level::Error, "syncctl", &text);
                    if !head.contains(r#""LOG""#) {
                        let reason = format!("a line of {length} bytes was dropped, and rows may be missing");
                        self.streams.lost(&head, &reason);
                        self.lost.get_or_insert(reason);
                    }
                }
                Input::Quiet => {
                    self.streams.tend();
                    self.tell_warnings();
                    self.reporter.publish(&self.reports(), false);
                }
                Input::End => {
                    let with_us = source.was_ended_with_us(stop);
                    return Ok(if with_us { Ended::Stopped(Stopped::Cancelled) } else { Ended::Source });
                }
                Input::Stopped(stopped) => return Ok(Ended::Stopped(stopped)),
                Input::Silent(failure) => return Ok(Ended::Silent(failure)),
            }
        }
    }

    /// Handles a message; returns whether it may have taken long.
    fn message(&mut self, message: Message<'_>) -> Result<bool, Failure> {
        match message {
            Message::Record(record) => {
                match self.streams.record(&record) {
                    Ok(false) => {}
                    Ok(true) => self.reporter.publish(&self.reports(), true),
                    Err(name) => self.unknown(name),
                }
                self.records += 1;
                if self.records >= RECORDS_PER_LOOK {
                    self.records = 0;
                    if self.counted.elapsed() >= COUNT_INTERVAL {
                        self.counted = Instant::now();
                        self.reporter.publish(&self.reports(), true);
                        return Ok(true);
                    }
                }
                return Ok(false);
            }
            Message::State(state) => {
                let storable = match State::parse(&state.0) {
                    Some(State::Stream { stream, state }) => self.streams.state(&stream, state),
                    Some(whole) => {
                        let (key, state) = whole.row();
                        self.streams.global_state(key, state)
                    }
                    None => {
                        self.log.write(Level::Warn, "syncctl", "a STATE message holds no state");
                        Vec::new()
                    }
                };
                self.store(storable)?;
            }
            Message::StreamStatus { stream, status } => {
                self.log.write(Level::Info, "source", &format!("stream {} is {status}", stream.key()));
                let storable = self.streams.status(&stream, &status);
                self.store(storable)?;
                self.reporter.publish(&self.reports(), true);
            }
            Message::TraceError(error) => {
                let text = self.log.mask(error.text());
                self.log.write(Level::Error, "source", &text);
                if let Some(stream) = &error.stream {
                    self.streams.error(stream, &text);
                }
                self.reported.get_or_insert(text);
            }
            Message::Log { level, text } => self.log.write(Level::parse(&level), "source", &text),
            Message::ControlConfig(_) => {
                let text = "the connector asks to keep a new configuration; it is not kept";
                self.log.write(Level::Warn, "syncctl", text);
            }
            Message::Other(kind) => self.log.write(Level::Debug, "syncctl", &format!("a {kind} message was ignored")),
            Message::Spec(_)
            | Message::ConnectionStatus { .. }
            | Message::Catalog(_)
            | Message::Estimate { .. }
            | Message::Text => {}
        }
        Ok(true)
    }

    fn tell_warnings(&mut self) {
        for text in self.streams.warnings() {
            self.log.write(Level::Warn, "syncctl", &text);
        }
    }

    /// The per-stream map, without what is secret.
    fn reports(&self) -> StreamReports {
        let mut reports = self.streams.reports();
        for error in reports.values_mut().filter_map(|report| report.error.as_mut()) {
            *error = self.log.mask(error);
        }
        reports
    }

    /// Rows are in: now the states that stand for them. Equal states repeat, and are stored once.
    fn store(&mut self, storable: Storable) -> Result<(), Failure> {
        self.tell_warnings();
        // A full sync forgets what was stored only once something has taken its place: if it fails before, the next run
        // goes on where the last good one stopped.
        if self.forgets && self.streams.tally().0 > 0 {
            self.db.clear_states(&self.task.sync_id)?;
            self.forgets = false;
        }
        if storable.is_empty() || storable == self.last_states {
            return Ok(());
        }
        self.db.save_states(&self.task.sync_id, &storable)?;
        self.last_states = storable;
        Ok(())
    }

    fn unknown(&mut self, name: StreamName) {
        /// Enough to tell what is wrong.
        const MOST: usize = 100;
        if self.unknown.len() < MOST && !self.unknown.contains(&name) {
            let text = format!("records of stream {} are dropped: the catalog does not select it", name.key());
            self.log.write(Level::Warn, "syncctl", &text);
            self.unknown.push(name);
        }
    }

    fn close(mut self, source: &mut Source, ended: Ended) -> Result<End, Failure> {
        let (status, failure) = match ended {
            Ended::Stopped(Stopped::Cancelled) => {
                self.streams.stop(StreamStatus::Cancelled);
                (TaskStatus::Cancelled, Some(Failure::new(Class::Cancelled, "the task was cancelled")))
            }
            Ended::Stopped(Stopped::TimeExceeded) => {
                self.streams.stop(StreamStatus::TimeExceeded);
                (TaskStatus::TimeExceeded, Some(Failure::new(Class::TimeExceeded, "the task ran longer than it may")))
            }
            Ended::Silent(failure) => {
                self.streams.end(false, &failure.text);
                (self.verdict(), Some(failure))
            }
            Ended::Source => {
                let code = source.exit_code();
                if matches!(code, None | Some(137)) {
                    self.streams.end(false, "the connector was killed");
                    self.reporter.finish();
                    self.reporter.report(&self.reports(), PATIENCE);
                    return Ok(End::LeavesVerdict);
                }
                self.by_exit_code(source, code)?
            }
        };
        self.tell_warnings();
        let reports = self.reports();
        self.reporter.finish();
        // The outcome tells all but this.
        if source.metrics().latest().is_some() {
            self.reporter.report(&reports, LAST_REPORT_PATIENCE);
        }
        finish(self.task, self.db, self.log, status, Some(&reports), failure)?;
        Ok(End::Done)
    }

    fn by_exit_code(&mut self, source: &Source, code: Option<i32>) -> Result<(TaskStatus, Option<Failure>), Failure> {
        let clean = code == Some(0) && self.lost.is_none();
        let reported = self.reported.clone();
        let reason = match (&self.lost, &reported) {
            (Some(lost), _) => lost.clone(),
            (None, Some(reported)) => reported.clone(),
            (None, None) if code == Some(0) => "the source ended without completing the stream".to_owned(),
            (None, None) => source.failure(code, "").text,
        };
        let storable = self.streams.end(clean, &reason);
        self.store(storable)?;
        let (success, _, all) = self.streams.tally();
        if clean && success == all {
            return Ok((TaskStatus::Success, None));
        }
        let failure = match (&self.lost, reported, code) {
            (Some(lost), _, _) => Failure::new(Class::ConnectorFailed, lost),
            (None, Some(reported), _) => Failure::new(Class::ConnectorFailed, reported),
            (None, None, Some(0)) => {
                let text = self.streams.first_error().unwrap_or(reason);
                Failure::new(Class::ConnectorFailed, text)
            }
            (None, None, code) => source.failure(code, ""),
        };
        Ok((self.verdict(), Some(failure)))
    }

    /// PARTIAL when anything arrived for good.
    fn verdict(&self) -> TaskStatus {
        let (success, partial, _) = self.streams.tally();
        if success + partial > 0 { TaskStatus::Partial } else { TaskStatus::Failed }
    }
}

fn finish(
    task: &Task,
    db: &Db,
    log: &TaskLog,
    status: TaskStatus,
    reports: Option<&StreamReports>,
    failure: Option<Failure>,
) -> Result<(), Failure> {
    // The class is a word of ours, and stays whatever the configuration holds.
    let error = failure.map(|failure| Failure::new(failure.class, log.mask(&failure.text)).to_string());
    if let Some(error) = &error {
        log.write(Level::Error, "syncctl", error);
    }
    db.finish_task(task, Writer::Sidecar, status, reports, error.as_deref())?;
    Ok(())
}

/// Keeps `source_task` current from a thread of its own, so that a slow database does not slow the rows.
struct Reporter {
    shared: Arc<(Mutex<Report>, Condvar)>,
    thread: Option<JoinHandle<()>>,
    row: Row,
}

/// The row of the task, and where to look for what it holds besides the reports.
#[derive(Clone)]
struct Row {
    db: Db,
    task_id: String,
    metrics: Metrics,
}

struct Report {
    reports: StreamReports,
    changed: bool,
    ended: bool,
}

impl Reporter {
    fn start(db: Db, task_id: String, metrics: Metrics, reports: StreamReports) -> Self {
        let row = Row { db, task_id, metrics };
        let shared = Arc::new((Mutex::new(Report { reports, changed: true, ended: false }), Condvar::new()));
        let thread = std::thread::spawn({
            let (row, shared) = (row.clone(), Arc::clone(&shared));
            move || row.report_on(&shared)
        });
        Self { shared, thread: Some(thread), row }
    }

    /// Shows the reports: now if it matters, else with the next heartbeat.
    fn publish(&self, reports: &StreamReports, now: bool) {
        let (report, wake) = &*self.shared;
        let mut report = report.lock().unwrap_or_else(PoisonError::into_inner);
        report.reports.clone_from(reports);
        if now {
            report.changed = true;
            wake.notify_one();
        }
    }

    /// Ends the thread.
    fn finish(&mut self) {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner).ended = true;
        self.shared.1.notify_one();
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed, and the outcome does not depend on it.
            thread.join().ok();
        }
    }

    /// Reports once more, after the end.
    fn report(&self, reports: &StreamReports, patience: Duration) {
        let db = self.row.db.with_patience(patience);
        Row { db, ..self.row.clone() }.report(reports);
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.finish();
    }
}

impl Row {
    fn report_on(&self, shared: &(Mutex<Report>, Condvar)) {
        let (report, wake) = shared;
        loop {
            let reports = {
                let guard = report.lock().unwrap_or_else(PoisonError::into_inner);
                let (mut guard, _) = wake
                    .wait_timeout_while(guard, HEARTBEAT, |report| !report.changed && !report.ended)
                    .unwrap_or_else(PoisonError::into_inner);
                if guard.ended {
                    return;
                }
                guard.changed = false;
                guard.reports.clone()
            };
            self.report(&reports);
            let guard = report.lock().unwrap_or_else(PoisonError::into_inner);
            drop(wake.wait_timeout_while(guard, REPORT_PAUSE, |report| !report.ended));
        }
    }

    fn report(&self, reports: &StreamReports) {
        if let Err(error) = self.db.report_progress(&self.task_id, reports, self.metrics.latest().as_ref()) {
            tracing::warn!(%error, "a report is lost");
        }
    }
}
