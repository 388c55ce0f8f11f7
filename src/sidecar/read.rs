//! read: sends rows to the sink, stores states and the outcome, and reports progress.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::documents::{CATALOG, DESTINATION, Documents, STATE};
use super::log::{Level, TaskLog};
use super::progress::ProgressReporter;
use super::saved_states::SavedStates;
use super::sink::Destination;
use super::source::{Input, Source, Stopped};
use super::stored_config::StoredConfig;
use super::streams::{CommitLimits, Storable, Streams, stream_specs};
use crate::airbyte::catalog::ConfiguredCatalog;
use crate::airbyte::message::{Message, StreamName};
use crate::airbyte::state::{GLOBAL_KEY, Progress, State};
use crate::contract::SidecarExit;
use crate::db::{Db, Writer};
use crate::failure::{Class, Failure};
use crate::host_rules::HostRules;
use crate::task::{Estimate, StreamReports, StreamStatus, Task, TaskStatus};

/// How often to report counts.
const COUNT_INTERVAL: Duration = Duration::from_secs(2);
/// How often to do work that depends on time, such as reporting a changed status: with thousands of streams, looking at
/// all of them is expensive.
const TICK_INTERVAL: Duration = Duration::from_millis(200);
/// A commit that takes longer counts as activity: meanwhile the connector's output is not read.
const LONG_COMMIT: Duration = Duration::from_secs(1);
/// How many unmapped stream names to log.
const MAX_UNMAPPED: usize = 100;

/// How much of a message is logged, in bytes.
const MAX_SHOWN: usize = 256;

/// A read and where its results go.
#[derive(Clone, Copy)]
pub struct Read<'a> {
    /// The task.
    pub task: &'a Task,
    /// When to commit rows without a state.
    pub limits: CommitLimits,
    /// The hosts that the destination may be at; `None`: any.
    pub destination_hosts: Option<&'a Arc<HostRules>>,
    /// The connector's configuration.
    pub stored_config: &'a StoredConfig<'a>,
    /// The database of results.
    pub db: &'a Db,
    /// The task's log.
    pub log: &'a TaskLog,
}

/// Why a session ends.
#[derive(Clone, Copy)]
enum End {
    /// The connector has ended with this exit code.
    Exited(i32),
    /// The connector has ended, and its exit code is unknown.
    Closed,
    /// The connector was killed.
    Killed,
    /// The task must stop.
    Stopped(Stopped),
    /// The destination refuses all streams that are left.
    Refused,
    /// The record limit is reached.
    LimitReached,
}

struct Session<'a> {
    read: Read<'a>,
    streams: Streams,
    reporter: ProgressReporter,
    /// The first error that the connector reported.
    reported_error: Option<String>,
    /// The first one that concerns no selected stream in particular.
    unnamed_error: Option<String>,
    /// Why rows may be missing: a line was dropped.
    data_loss: Option<String>,
    /// Streams of dropped records, each logged once.
    unmapped: Vec<StreamName>,
    saved_states: SavedStates,
    /// Something other than a count has changed since the last report.
    has_changed: bool,
    /// Rows have arrived since the last report.
    has_new_rows: bool,
    /// The number of streams with committed rows at the last tick.
    loaded: usize,
    started: Instant,
    last_report: Instant,
    last_tick: Instant,
}

impl Read<'_> {
    /// Reads until the connector has ended, and stores the outcome.
    pub fn run(self, mut source: Source, documents: &Documents) -> Result<SidecarExit, Failure> {
        match Session::open(self, &source, documents) {
            Ok(mut session) => {
                let end = session.run(&mut source)?;
                session.close(&source, end)
            }
            Err(failure) => {
                self.finish(Writer::Sidecar, TaskStatus::Failed, None, Some(failure))?;
                Ok(SidecarExit::Failed)
            }
        }
    }

    /// Stores the outcome.
    fn finish(
        &self,
        by: Writer,
        status: TaskStatus,
        reports: Option<&StreamReports>,
        failure: Option<Failure>,
    ) -> Result<(), Failure> {
        // Only the text is masked: a configuration may contain the name of a class.
        let error = failure.map(|failure| self.log.mask_failure(&failure).to_string());
        if let Some(error) = &error {
            self.log.write_failure(error, by);
        }
        self.db.finish_task(self.task, by, status, reports, error.as_deref())?;
        Ok(())
    }
}

impl<'a> Session<'a> {
    fn open(read: Read<'a>, source: &Source, documents: &Documents) -> Result<Self, Failure> {
        let Read { task, limits, db, .. } = read;
        let catalog: ConfiguredCatalog = documents.parse(CATALOG)?;
        catalog.validate().map_err(|why| Failure::new(Class::InvalidInput, format!("{CATALOG}: {why}")))?;
        let progress = Progress::of(documents.get(STATE));
        let destination: serde_json::Value = documents.parse(DESTINATION)?;
        let mut destination = Destination::parse(&destination)?;
        if let Some(rules) = read.destination_hosts {
            destination = destination.restricted_to(Arc::clone(rules));
        }
        let specs: Vec<_> = stream_specs(&catalog, &task.options, &progress).collect();
        let results = db.results_database();
        let reserved = |text| Failure::new(Class::InvalidInput, text);
        destination.check_tables(&results, specs.iter().cloned()).map_err(reserved)?;
        let selected = catalog.streams.len();
        read.log.write_progress(&format!("selected streams: {selected}; destination: {}", destination.address()));
        let mut sink = destination.connect(task).map_err(|error| Failure::new(Class::DestinationFailed, error.text))?;
        sink.assign_tables(&specs)?;
        let streams = Streams::new(&catalog, &task.options, &progress, limits, sink);
        let reporter = ProgressReporter::start(db.clone(), task.task_id.clone(), source.reports(), streams.reports());
        let now = Instant::now();
        Ok(Self {
            read,
            streams,
            reporter,
            reported_error: None,
            unnamed_error: None,
            data_loss: None,
            unmapped: Vec::new(),
            saved_states: SavedStates::new(&catalog, documents.get(STATE)),
            has_changed: false,
            has_new_rows: false,
            loaded: 0,
            started: now,
            last_report: now,
            last_tick: now,
        })
    }

    fn run(&mut self, source: &mut Source) -> Result<End, Failure> {
        loop {
            match source.next()? {
                Input::Message(Message::Record(record)) => {
                    self.has_new_rows = true;
                    match self.streams.record(&record) {
                        Ok(changed) => self.has_changed |= changed,
                        Err(name) => self.log_unmapped(name),
                    }
                }
                Input::Message(message) => {
                    self.handle(message)?;
                    source.note_activity();
                }
                Input::TooLong(head, length) => self.handle_too_long(&head, length),
                Input::CutOff(text) => self.handle_cut_off(&text),
                Input::Quoted(text) => self.handle_quoted(&text),
                Input::Idle => {}
                Input::Stopped(stopped) => return Ok(End::Stopped(stopped)),
                Input::Exited(code) => return Ok(End::Exited(code)),
                Input::Closed => return Ok(End::Closed),
                Input::Killed => return Ok(End::Killed),
            }
            if self.streams.is_refused() {
                return Ok(End::Refused);
            }
            if self.streams.is_limit_reached() {
                return Ok(End::LimitReached);
            }
            // Not only when idle: a source may write a line every moment, but rows rarely.
            if source.time_passed() {
                self.tick(source)?;
            }
        }
    }

    /// Handles a message other than a record.
    fn handle(&mut self, message: Message<'_>) -> Result<(), Failure> {
        let log = self.read.log;
        match message {
            Message::State(state) => {
                let claimed = State::claimed_records(&state);
                let storable = match State::parse(&state) {
                    Some(State::Stream { stream, state: document }) => {
                        self.streams.check_count(Some(&stream), &state, claimed);
                        self.streams.state(&stream, document)
                    }
                    Some(global) => {
                        self.streams.check_count(None, &state, claimed);
                        let (key, document) = global.row();
                        self.streams.global_state(key, document)
                    }
                    None => {
                        if let Some(why) = State::why_none(&state) {
                            let text = format!("ignoring STATE messages: {why}: the next run repeats rows");
                            self.streams.warn_of_task(text);
                        }
                        Vec::new()
                    }
                };
                self.store(storable)?;
            }
            Message::StreamStatus { stream, status } => {
                log.write(Level::Info, "source", &format!("stream {} is {status}", stream.key()));
                let storable = self.streams.status(&stream, &status);
                self.store(storable)?;
                self.has_changed = true;
            }
            Message::TraceError(error) => {
                log.write(Level::Error, "source", &error.details());
                let text = log.mask(&error.text);
                let is_named = error.stream.as_ref().is_some_and(|stream| self.streams.error(stream, &text));
                self.has_changed |= is_named;
                if !is_named {
                    self.unnamed_error.get_or_insert_with(|| text.clone());
                }
                self.reported_error.get_or_insert(text);
            }
            Message::ControlConfig(config) => self.read.stored_config.save(&config, log)?,
            Message::Estimate { stream: Some(stream), rows, bytes } => {
                self.has_changed |= self.streams.estimate(&stream, Estimate { rows, bytes });
            }
            Message::Estimate { stream: None, rows: Some(rows), .. } => {
                log.write(Level::Info, "source", &format!("about {rows} records are expected in total"));
            }
            Message::Other(kind) => log.write(Level::Debug, "syncctl", &format!("ignoring a {kind} message")),
            Message::Invalid { kind, why, may_be_data: true, text } => {
                self.drop_data(&text, &format!("a {} message cannot be used: {why}", log.mask(&kind)));
            }
            Message::Invalid { kind, why, .. } => {
                let kind = log.mask_beginning(&kind, MAX_SHOWN, false);
                self.streams.warn_of_task(format!("ignoring {kind} messages: {why}"));
            }
            _ => {}
        }
        Ok(())
    }

    fn handle_too_long(&mut self, head: &str, length: u64) {
        let shown = self.read.log.mask_beginning(head, MAX_SHOWN, true);
        let text = format!("dropped a line of {length} bytes, which exceeds the limit; it begins with: {shown}");
        self.read.log.write(Level::Error, "syncctl", &text);
        if !head.contains(r#""LOG""#) {
            self.drop_data(head, &format!("a line of {length} bytes was dropped, and rows may be missing"));
        }
    }

    /// Handles a message without its end.
    fn handle_cut_off(&mut self, text: &str) {
        let log = self.read.log;
        let head = log.mask_beginning(text, MAX_SHOWN, false);
        let is_type = |kind: &str| text.split_once(kind).is_some_and(|(before, _)| before.len() < 32);
        if is_type("\"STATE\"") || is_type("\"CONTROL\"") || (is_type("\"TRACE\"") && !text.contains("\"ERROR\"")) {
            log.write(Level::Warn, "syncctl", &format!("ignoring a message that is cut off: {head}"));
            return;
        }
        log.write(Level::Error, "syncctl", &format!("dropped a message that is cut off: {head}"));
        self.drop_data(text, "a message is cut off, and rows may be missing");
    }

    /// Handles a message in a log line that only quotes it.
    fn handle_quoted(&mut self, text: &str) {
        let log = self.read.log;
        log.write(Level::Info, "source", text);
        let warning = "messages that log lines quote are not loaded";
        self.streams.warn_of_task(format!("{warning}; the first one: {}", log.mask_beginning(text, MAX_SHOWN, false)));
        self.streams.warn_named(text, warning);
    }

    /// Fails the streams to which dropped data may belong.
    fn drop_data(&mut self, text: &str, reason: &str) {
        self.streams.data_dropped(text, reason);
        self.has_changed = true;
        self.data_loss.get_or_insert_with(|| reason.to_owned());
    }

    fn log_unmapped(&mut self, name: StreamName) {
        if self.unmapped.len() < MAX_UNMAPPED && !self.unmapped.contains(&name) {
            let why = if self.streams.is_ambiguous(&name) {
                self.has_changed = true;
                "they name no namespace, and the catalog selects several streams of this name"
            } else {
                "the catalog does not select it"
            };
            let text = format!("dropping records of stream {}: {why}", name.key());
            self.read.log.write(Level::Warn, "syncctl", &text);
            self.unmapped.push(name);
        }
    }

    /// Logs how many records of each such stream were dropped.
    fn log_unmapped_totals(&mut self) {
        self.streams.report_unmapped();
        for (name, count) in self.streams.unmapped() {
            let text = format!("dropped {count} records of stream {}, which cannot be assigned", name.key());
            self.read.log.write(Level::Warn, "syncctl", &text);
        }
    }

    /// Does work that depends on time: overdue commits, maintenance of the destination, progress reports.
    fn tick(&mut self, source: &mut Source) -> Result<(), Failure> {
        let start = Instant::now();
        if start.duration_since(self.last_tick) < TICK_INTERVAL {
            return Ok(());
        }
        let storable = self.streams.tick();
        self.store(storable)?;
        self.log_warnings();
        self.log_activity(false);
        let now = Instant::now();
        self.last_tick = now;
        if now.duration_since(start) >= LONG_COMMIT {
            source.note_activity();
        }
        // Reported at once: after a kill of this process the row shows whether anything is loaded.
        let loaded = self.streams.loaded();
        self.has_changed |= std::mem::replace(&mut self.loaded, loaded) < loaded;
        let counts_due = self.has_new_rows && now.duration_since(self.last_report) >= COUNT_INTERVAL;
        if self.has_changed || counts_due {
            self.reporter.publish(self.reports());
            (self.last_report, self.has_changed, self.has_new_rows) = (now, false, false);
        }
        Ok(())
    }

    fn log_activity(&mut self, is_final: bool) {
        for line in self.streams.activity(is_final) {
            self.read.log.write_progress(&line);
        }
    }

    /// Logs the last line of a read.
    fn log_total(&self, status: TaskStatus, reports: &StreamReports) {
        let rows: u64 = reports.values().map(|report| report.events).sum();
        let bytes: u64 = reports.values().map(|report| report.bytes).sum();
        let succeeded = reports.values().filter(|report| report.status == StreamStatus::Success).count();
        let seconds = self.started.elapsed().as_secs();
        self.read.log.write_total(&format!(
            "read ended as {}: {rows} rows, {bytes} bytes; {succeeded} of {} streams succeeded; {seconds} s",
            status.as_str(),
            reports.len()
        ));
    }

    fn log_warnings(&mut self) {
        for text in self.streams.warnings() {
            self.read.log.write(Level::Warn, "syncctl", &text);
        }
    }

    /// The per-stream map without secrets.
    fn reports(&self) -> StreamReports {
        let mut reports = self.streams.reports();
        for report in reports.values_mut() {
            report.error = report.error.take().map(|error| self.read.log.mask(&error));
            report.warnings.rename(|text| self.read.log.mask(text));
        }
        reports
    }

    /// Stores the states of committed rows. A repeated state is stored once.
    fn store(&mut self, storable: Storable) -> Result<(), Failure> {
        let (states, superseded) = self.saved_states.add(storable);
        if states.is_empty() {
            return Ok(());
        }
        self.read.db.save_states(&self.read.task.sync_id, &states, &superseded)?;
        self.streams.states_saved(states.iter().map(|(key, _)| key.as_str()));
        Ok(())
    }

    /// After a full sync: deletes the states of the streams that it has replaced. The next run resumes the others from
    /// their last good state. After any read that has succeeded: deletes a state of all streams that the source no longer
    /// sends.
    fn clear_outdated_states(&self) -> Result<(), Failure> {
        let Read { task, db, .. } = self.read;
        let all_succeeded = self.streams.all_succeeded();
        if task.options.full_sync {
            let succeeded = self.streams.succeeded();
            let streams = (!all_succeeded).then_some(succeeded.as_slice());
            return Ok(db.clear_states(&task.sync_id, streams, &self.saved_states.keys())?);
        }
        if !all_succeeded || self.saved_states.keys().is_empty() {
            return Ok(());
        }
        let stored = db.states(&task.sync_id)?;
        if stored.iter().any(|(key, state)| key == GLOBAL_KEY && self.saved_states.supersede(state)) {
            db.clear_states(&task.sync_id, Some(&[GLOBAL_KEY]), &[])?;
        }
        Ok(())
    }

    fn close(mut self, source: &Source, end: End) -> Result<SidecarExit, Failure> {
        let (mut by, mut is_terminated) = (Writer::Sidecar, false);
        let (status, failure) = match end {
            End::Killed => {
                let storable = self.streams.source_ended(false, "the connector was killed");
                self.store(storable)?;
                self.log_activity(true);
                self.reporter.finish();
                self.reporter.write_last(&self.reports());
                return Ok(SidecarExit::OutcomeUnknown);
            }
            End::Exited(code) => {
                // A connector that writes no message may have rows nevertheless: no table is emptied.
                let has_failed = code != 0 || !source.has_messages();
                let failure = has_failed.then(|| source.failure(code, "a message of the Airbyte protocol"));
                self.outcome_of_end(!has_failed, failure)?
            }
            // Streams that the connector has completed are complete, whatever else its output shows.
            End::Closed if self.streams.all_succeeded() => self.outcome_of_end(true, None)?,
            End::Closed => {
                let failure = source.failure_in_output();
                self.outcome_of_end(failure.is_none(), failure)?
            }
            End::Stopped(stopped) => {
                let failure = stopped.failure();
                (by, is_terminated) = (stopped.writer(), stopped == Stopped::Terminated);
                let (storable, status) = match stopped {
                    Stopped::Cancelled => (self.streams.stop(StreamStatus::Cancelled), TaskStatus::Cancelled),
                    Stopped::TimeExceeded => (self.streams.stop(StreamStatus::TimeExceeded), TaskStatus::TimeExceeded),
                    Stopped::Silent(_) | Stopped::Terminated => {
                        let storable = self.streams.source_ended(false, &failure.text);
                        (storable, self.failed_status())
                    }
                };
                self.store(storable)?;
                (status, Some(failure))
            }
            End::Refused => {
                let storable = self.streams.take_storable();
                self.store(storable)?;
                self.failed(None)
            }
            End::LimitReached => self.outcome_at_limit()?,
        };
        self.log_warnings();
        self.log_unmapped_totals();
        self.log_activity(true);
        self.clear_outdated_states()?;
        let reports = self.reports();
        self.log_total(status, &reports);
        self.reporter.finish();
        // The outcome does not include it.
        self.reporter.write_metrics(&reports);
        self.read.finish(by, status, Some(&reports), failure)?;
        let exit = if status == TaskStatus::Failed { SidecarExit::Failed } else { SidecarExit::Finished };
        Ok(if is_terminated { SidecarExit::Terminated } else { exit })
    }

    /// The outcome at the record limit. The connector ends with its pipes, so its exit code does not matter.
    fn outcome_at_limit(&mut self) -> Result<(TaskStatus, Option<Failure>), Failure> {
        let reason = format!("stopped by --max-records {}", self.read.task.options.max_records.unwrap_or_default());
        self.read.log.write(Level::Info, "syncctl", &reason);
        let (storable, stream_error) = self.streams.finish_early(&reason);
        self.store(storable)?;
        let reported = self.reported_error.clone();
        let error = self.data_loss.clone().or_else(|| stream_error.map(|error| reported.unwrap_or(error)));
        if error.is_none() && self.streams.refusal().is_none() {
            return Ok((TaskStatus::Success, None));
        }
        Ok(self.failed(error.map(|error| Failure::new(Class::ConnectorFailed, error))))
    }

    /// The outcome after the connector's end. What it reported itself takes precedence over `failure`.
    fn outcome_of_end(
        &mut self,
        succeeded: bool,
        failure: Option<Failure>,
    ) -> Result<(TaskStatus, Option<Failure>), Failure> {
        // Streams that dropped data and named errors concern have failed already.
        let is_success = succeeded && self.unnamed_error.is_none();
        let known = self.data_loss.clone().or_else(|| self.reported_error.clone());
        let failure = known.map(|text| Failure::new(Class::ConnectorFailed, text)).or(failure);
        let reason = failure.as_ref().map_or("the source ended without completing the stream", |failure| &failure.text);
        let storable = self.streams.source_ended(is_success, reason);
        self.store(storable)?;
        if succeeded && self.streams.all_succeeded() {
            // The source has reported each stream as complete.
            if let Some(error) = &self.unnamed_error {
                self.streams.warn_of_error(error);
            }
            return Ok((TaskStatus::Success, None));
        }
        let failure = failure
            .or_else(|| Some(Failure::new(Class::ConnectorFailed, self.streams.first_error().unwrap_or_default())));
        Ok(self.failed(failure))
    }

    /// The outcome of a read that failed. The destination's failure takes precedence over the connector's.
    fn failed(&self, connector: Option<Failure>) -> (TaskStatus, Option<Failure>) {
        let refusal = self.streams.refusal().map(|refusal| Failure::new(Class::DestinationFailed, refusal));
        (self.failed_status(), refusal.or(connector))
    }

    /// PARTIAL if some rows are in their tables.
    fn failed_status(&self) -> TaskStatus {
        if self.streams.any_committed() { TaskStatus::Partial } else { TaskStatus::Failed }
    }
}
