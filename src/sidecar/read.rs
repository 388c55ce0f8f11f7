//! read: rows to the sink, states to the database, and how far it is.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::documents::Documents;
use super::kept::Kept;
use super::log::{Level, TaskLog};
use super::metrics::Metrics;
use super::reporter::Reporter;
use super::sink::Destination;
use super::source::{Input, Source};
use super::streams::{CommitLimits, Storable, Streams};
use super::{End, PATIENCE, Stop, Stopped};
use crate::airbyte::catalog::ConfiguredCatalog;
use crate::airbyte::message::{Message, StreamName};
use crate::airbyte::state::{Progress, State};
use crate::db::{Db, Writer};
use crate::failure::{Class, Failure};
use crate::task::{Estimate, StreamReports, StreamStatus, Task, TaskStatus};

/// How often counts are shown while records come.
const COUNT_INTERVAL: Duration = Duration::from_secs(2);
/// How soon a change of a status is shown, at least, and how often it is looked what time asks for: with thousands of
/// streams each look at all of them costs.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// How long the database may be away when only what the connector has used would be lost.
const LAST_REPORT_PATIENCE: Duration = Duration::from_secs(2);
/// A commit that takes longer is a sign of life: meanwhile nobody listens to the connector.
const LONG_COMMIT: Duration = Duration::from_secs(1);

/// A read: what it is, and where it is written down.
#[derive(Clone, Copy)]
pub struct Read<'a> {
    /// The task.
    pub task: &'a Task,
    /// When rows are committed though no state has come.
    pub limits: CommitLimits,
    /// The connector's configuration, as it renews it.
    pub kept: &'a Kept<'a>,
    /// The database of results.
    pub db: &'a Db,
    /// The task's log.
    pub log: &'a TaskLog,
}

/// Reads until the source has ended, and stores the outcome.
pub fn run(read: Read<'_>, mut source: Source, documents: &Documents, stop: &Stop) -> Result<End, Failure> {
    source.log_stderr(read.log);
    let mut session = match Session::open(read, source.metrics(), documents) {
        Ok(session) => session,
        Err(failure) => {
            read.finish(TaskStatus::Failed, None, Some(failure))?;
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
    /// The destination took no more, and nothing that is left to read could go anywhere.
    Destination,
    /// As many records were read as were asked for.
    Enough,
}

struct Session<'a> {
    to: Read<'a>,
    streams: Streams,
    reporter: Reporter,
    /// The source's own words for its failure.
    reported: Option<String>,
    /// Rows that were too long to be understood: data is missing then.
    lost: Option<String>,
    /// Names that were told once.
    unknown: Vec<StreamName>,
    last_states: Storable,
    /// The streams of which a full sync has stored a state.
    stored: HashSet<String>,
    /// Something else than a count has changed since the reports were shown.
    changed: bool,
    /// Rows have come since the reports were shown.
    counted: bool,
    shown: Instant,
    /// When it was looked what time asks for.
    looked: Instant,
}

impl<'a> Session<'a> {
    fn open(read: Read<'a>, metrics: Metrics, documents: &Documents) -> Result<Self, Failure> {
        let Read { task, limits, db, .. } = read;
        let catalog: ConfiguredCatalog = documents.json("catalog.json")?;
        catalog.validate().map_err(|why| Failure::new(Class::InvalidInput, format!("catalog.json: {why}")))?;
        let progress = Progress::of(documents.get("state.json"));
        let destination: serde_json::Value = documents.json("destinationConfig.json")?;
        let sink = Destination::parse(&destination)?
            .connect(task)
            .map_err(|error| Failure::new(Class::DestinationFailed, error.text))?;
        let streams = Streams::new(&catalog, &task.options, &progress, limits, sink);
        let reporter = Reporter::start(db.clone(), task.task_id.clone(), metrics, streams.reports());
        Ok(Self {
            to: read,
            streams,
            reporter,
            reported: None,
            lost: None,
            unknown: Vec::new(),
            last_states: Vec::new(),
            stored: HashSet::new(),
            changed: false,
            counted: false,
            shown: Instant::now(),
            looked: Instant::now(),
        })
    }

    fn read(&mut self, source: &mut Source, stop: &Stop) -> Result<Ended, Failure> {
        loop {
            match source.next(stop)? {
                Input::Line(line) => {
                    let message = Message::parse(&line);
                    if message == Message::Text {
                        self.to.log.write(Level::Info, "source", &line);
                        let line = line.into_owned();
                        source.remember(&line);
                    } else if self.message(message)? {
                        source.alive();
                    }
                }
                Input::Lost(head, length) => {
                    let text = format!("a line of {length} bytes is too long to be understood; it began: {head}");
                    self.to.log.write(Level::Error, "syncctl", &text);
                    if !head.contains(r#""LOG""#) {
                        let reason = format!("a line of {length} bytes was dropped, and rows may be missing");
                        self.streams.lost(&head, &reason);
                        self.lost.get_or_insert(reason);
                    }
                }
                Input::Quiet => {}
                Input::End => {
                    let with_us = source.was_ended_with_us(stop);
                    return Ok(if with_us { Ended::Stopped(Stopped::Cancelled) } else { Ended::Source });
                }
                Input::Stopped(stopped) => return Ok(Ended::Stopped(stopped)),
                Input::Silent(failure) => return Ok(Ended::Silent(failure)),
            }
            if self.streams.is_refused() {
                return Ok(Ended::Destination);
            }
            if self.streams.is_enough() {
                return Ok(Ended::Enough);
            }
            // Never only when nothing comes: a source may write a line each moment, and rows seldom.
            if source.time_passed() {
                self.look_after(source)?;
            }
        }
    }

    /// Handles a message; returns whether it may have taken long.
    fn message(&mut self, message: Message<'_>) -> Result<bool, Failure> {
        match message {
            Message::Record(record) => {
                match self.streams.record(&record) {
                    Ok(changed) => self.changed |= changed,
                    Err(name) => self.unknown(name),
                }
                self.counted = true;
                return Ok(false);
            }
            Message::State(state) => {
                let storable = match State::parse(&state) {
                    Some(State::Stream { stream, state }) => self.streams.state(&stream, state),
                    Some(whole) => {
                        let (key, state) = whole.row();
                        self.streams.global_state(key, state)
                    }
                    None => {
                        self.to.log.write(Level::Warn, "syncctl", "a STATE message holds no state");
                        Vec::new()
                    }
                };
                self.store(storable)?;
            }
            Message::StreamStatus { stream, status } => {
                self.to.log.write(Level::Info, "source", &format!("stream {} is {status}", stream.key()));
                let storable = self.streams.status(&stream, &status);
                self.store(storable)?;
                self.changed = true;
            }
            Message::TraceError { text, stream } => {
                let text = self.to.log.mask(&text);
                self.to.log.write(Level::Error, "source", &text);
                if let Some(stream) = &stream {
                    self.streams.error(stream, &text);
                }
                self.reported.get_or_insert(text);
            }
            Message::Log { level, text } => self.to.log.write(Level::parse(&level), "source", &text),
            Message::ControlConfig(config) => self.to.kept.keep(&config, self.to.log)?,
            Message::Estimate { stream: Some(stream), rows, bytes } => {
                self.changed |= self.streams.estimate(&stream, Estimate { rows, bytes });
            }
            Message::Estimate { stream: None, rows: Some(rows), .. } => {
                self.to.log.write(Level::Info, "source", &format!("about {rows} records are expected in all"));
            }
            Message::Other(kind) => {
                self.to.log.write(Level::Debug, "syncctl", &format!("a {kind} message was ignored"));
            }
            Message::Spec(_)
            | Message::ConnectionStatus { .. }
            | Message::Catalog(_)
            | Message::Estimate { .. }
            | Message::Text => {}
        }
        Ok(true)
    }

    /// Does what time asks for: commits, what the destination has to do meanwhile, and telling how far it is.
    fn look_after(&mut self, source: &mut Source) -> Result<(), Failure> {
        let began = Instant::now();
        if began.duration_since(self.looked) < LOOK_INTERVAL {
            return Ok(());
        }
        let storable = self.streams.commit_overdue();
        self.store(storable)?;
        self.streams.tend();
        self.tell_warnings();
        self.looked = Instant::now();
        if self.looked.duration_since(began) >= LONG_COMMIT {
            source.alive();
        }
        let counts = self.counted && self.looked.duration_since(self.shown) >= COUNT_INTERVAL;
        if self.changed || counts {
            self.reporter.publish(self.reports());
            (self.shown, self.changed, self.counted) = (self.looked, false, false);
        }
        Ok(())
    }

    fn tell_warnings(&mut self) {
        for text in self.streams.warnings() {
            self.to.log.write(Level::Warn, "syncctl", &text);
        }
    }

    /// The per-stream map, without what is secret.
    fn reports(&self) -> StreamReports {
        let mut reports = self.streams.reports();
        for error in reports.values_mut().filter_map(|report| report.error.as_mut()) {
            *error = self.to.log.mask(error);
        }
        reports
    }

    /// Rows are in: now the states that stand for them. Equal states repeat, and are stored once.
    fn store(&mut self, storable: Storable) -> Result<(), Failure> {
        if storable.is_empty() || storable == self.last_states {
            return Ok(());
        }
        self.to.db.save_states(&self.to.task.sync_id, &storable)?;
        if self.to.task.options.full_sync {
            self.stored.extend(storable.iter().map(|(stream, _)| stream.clone()));
        }
        self.last_states = storable;
        Ok(())
    }

    /// A full sync forgets the states of streams that something else has taken the place of. The others go on with the
    /// next run where the last good one stopped.
    fn forget(&self) -> Result<(), Failure> {
        if !self.to.task.options.full_sync {
            return Ok(());
        }
        let done = self.streams.done();
        let of = (done.len() < self.streams.tally().2).then_some(done.as_slice());
        let stored: Vec<&str> = self.stored.iter().map(String::as_str).collect();
        Ok(self.to.db.clear_states(&self.to.task.sync_id, of, &stored)?)
    }

    fn unknown(&mut self, name: StreamName) {
        /// Enough to tell what is wrong.
        const MOST: usize = 100;
        if self.unknown.len() < MOST && !self.unknown.contains(&name) {
            let why = if self.streams.is_ambiguous(&name) {
                self.changed = true;
                "they name no namespace, and the catalog selects it in several"
            } else {
                "the catalog does not select it"
            };
            let text = format!("records of stream {} are dropped: {why}", name.key());
            self.to.log.write(Level::Warn, "syncctl", &text);
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
            Ended::Destination => (self.verdict(), self.destination_failure()),
            Ended::Enough => self.enough()?,
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
        self.forget()?;
        let reports = self.reports();
        self.reporter.finish();
        // The outcome tells all but this.
        if source.metrics().latest().is_some() {
            self.reporter.report(&reports, LAST_REPORT_PATIENCE);
        }
        self.to.finish(status, Some(&reports), failure)?;
        Ok(End::Done)
    }

    /// The connector ends with its Pod, and with our end of its pipes: whatever it makes of that tells nothing.
    fn enough(&mut self) -> Result<(TaskStatus, Option<Failure>), Failure> {
        let reason = format!("stopped by --max-records {}", self.to.task.options.max_records.unwrap_or_default());
        self.to.log.write(Level::Info, "syncctl", &reason);
        let (storable, failed) = self.streams.cut(&reason);
        self.store(storable)?;
        if let Some(failure) = self.destination_failure() {
            return Ok((self.verdict(), Some(failure)));
        }
        let why = self.lost.clone().or_else(|| failed.map(|text| self.reported.clone().unwrap_or(text)));
        match why {
            None => Ok((TaskStatus::Success, None)),
            Some(why) => Ok((self.verdict(), Some(Failure::new(Class::ConnectorFailed, why)))),
        }
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
        if let Some(failure) = self.destination_failure() {
            return Ok((self.verdict(), Some(failure)));
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

    /// What the destination did to the first stream that it refused.
    fn destination_failure(&self) -> Option<Failure> {
        let refusal = self.streams.refusal()?;
        Some(Failure::new(Class::DestinationFailed, refusal))
    }

    /// PARTIAL when anything arrived for good.
    fn verdict(&self) -> TaskStatus {
        let (success, partial, _) = self.streams.tally();
        if success + partial > 0 { TaskStatus::Partial } else { TaskStatus::Failed }
    }
}

impl Read<'_> {
    /// Stores the outcome.
    fn finish(
        &self,
        status: TaskStatus,
        reports: Option<&StreamReports>,
        failure: Option<Failure>,
    ) -> Result<(), Failure> {
        // The class is a word of ours, and stays whatever the configuration holds.
        let error = failure.map(|failure| Failure::new(failure.class, self.log.mask(&failure.text)).to_string());
        if let Some(error) = &error {
            self.log.write(Level::Error, "syncctl", error);
        }
        self.db.finish_task(self.task, Writer::Sidecar, status, reports, error.as_deref())?;
        Ok(())
    }
}
