//! The streams of a read: which there are, how far each is, which states wait for which rows.
//!
//! The rules: rows first, then the state that stands for them; never the state of a failed stream; a stream is a
//! success when the source says COMPLETE and its rows are committed. Only where no more records are wanted than some, a
//! stream may end without the source's word, and is none then.

mod ending;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::plan;
use crate::airbyte::catalog::{ConfiguredCatalog, ConfiguredStream};
use crate::airbyte::message::{Record, StreamName};
use crate::airbyte::state::Progress;
use crate::sidecar::sink::{Committed, Sink, SinkError, StreamIndex, StreamSpec, WriteMode};
use crate::task::{Estimate, ReadOptions, StreamReport, StreamReports, StreamStatus};

/// When rows are committed though the source has sent no state: a database that holds a transaction open for long
/// cannot clean up behind anybody, and what is not committed has to come again after an interruption.
#[derive(Debug, Clone, Copy)]
pub struct CommitLimits {
    /// So much row JSON was not committed, in bytes.
    pub bytes: u64,
    /// So long ago the first row came that is not committed.
    pub interval: Duration,
}

impl Default for CommitLimits {
    fn default() -> Self {
        Self { bytes: 256 << 20, interval: Duration::from_mins(5) }
    }
}

/// How often the streams are looked through within an interval.
const LOOKS_PER_INTERVAL: u32 = 20;

/// One selected stream.
struct Stream {
    key: String,
    spec: StreamSpec,
    /// `None` when the destination refused it.
    open: Option<StreamIndex>,
    events: u64,
    bytes: u64,
    /// Of `events`, those that are in the table for good.
    committed: u64,
    /// Of `bytes`, those that no commit has seen.
    pending_bytes: u64,
    /// When the first of them came.
    pending_since: Option<Instant>,
    status: StreamStatus,
    error: Option<String>,
    estimate: Option<Estimate>,
    /// The state that waits for the stream's end, when rows only count then.
    waiting: Option<String>,
}

/// All streams of a read, over one sink.
pub struct Streams {
    sink: Box<dyn Sink>,
    all: Vec<Stream>,
    index: HashMap<StreamName, usize>,
    /// Names that several of them share, in different namespaces: alone they do not tell which stream is meant.
    shared: HashMap<String, Vec<usize>>,
    /// Records come in runs of one stream: the one of the last record.
    last: Option<(StreamName, usize)>,
    /// The state of all streams together that waits for the end of some.
    waiting_global: Option<(String, String)>,
    /// Set once the source has sent any stream status: from then on only COMPLETE counts.
    has_statuses: bool,
    /// Rows of streams that the catalog does not select were dropped.
    has_unknown: bool,
    /// Why the destination refused the first stream that it refused.
    refusal: Option<String>,
    /// How many records are still wanted.
    wanted: u64,
    limits: CommitLimits,
    /// When to look for streams that have not committed for long.
    next_look: Instant,
}

/// States that may be stored now: (key, document).
pub type Storable = Vec<(String, String)>;

impl Streams {
    /// Prepares for the catalog's streams.
    pub fn new(
        catalog: &ConfiguredCatalog,
        options: &ReadOptions,
        progress: &Progress,
        limits: CommitLimits,
        mut sink: Box<dyn Sink>,
    ) -> Self {
        let stream = |stream| Stream::new(stream, options, progress);
        let mut streams: Vec<Stream> = catalog.streams.iter().map(stream).collect();
        let mut refusal = None;
        // In the catalog's order, not that of arrival: of two streams with one table name the same one always has it.
        for stream in &mut streams {
            match sink.open(stream.spec.clone()) {
                Ok(index) => stream.open = Some(index),
                Err(error) => {
                    refusal.get_or_insert_with(|| error.text.clone());
                    (stream.status, stream.error) = (StreamStatus::Failed, Some(error.text));
                }
            }
        }
        let mut index: HashMap<_, _> =
            streams.iter().enumerate().map(|(at, stream)| (stream.spec.name.clone(), at)).collect();
        // Some sources leave the namespace out of their records: the bare name finds the stream if it is the only one.
        let mut shared: HashMap<String, Vec<usize>> = HashMap::new();
        for (at, stream) in streams.iter().enumerate() {
            shared.entry(stream.spec.name.name.clone()).or_default().push(at);
        }
        shared.retain(|name, namesakes| {
            if let [at] = namesakes[..] {
                index.entry(StreamName::new(None, name)).or_insert(at);
            }
            namesakes.len() > 1
        });
        Self {
            sink,
            all: streams,
            index,
            shared,
            last: None,
            waiting_global: None,
            has_statuses: false,
            has_unknown: false,
            refusal,
            wanted: options.max_records.unwrap_or(u64::MAX),
            limits,
            next_look: Instant::now(),
        }
    }

    /// What the destination wants to have told.
    pub fn warnings(&mut self) -> Vec<String> {
        self.sink.warnings()
    }

    /// Lets the destination look after what is open.
    pub fn tend(&mut self) {
        self.sink.tick();
    }

    /// The per-stream map.
    pub fn reports(&self) -> StreamReports {
        let report = |stream: &Stream| StreamReport {
            events: stream.events,
            bytes: stream.bytes,
            status: stream.status,
            error: stream.error.clone(),
            estimate: stream.estimate,
        };
        self.all.iter().map(|stream| (stream.key.clone(), report(stream))).collect()
    }

    /// Takes a row. Returns whether the stream's status has changed; `Err` when no such stream is selected.
    pub fn record(&mut self, record: &Record<'_>) -> Result<bool, StreamName> {
        let at = self.find(record)?;
        let stream = &mut self.all[at];
        if stream.status == StreamStatus::Success {
            // They cannot be taken back into a finished table, and their state must not be stored.
            stream.status = StreamStatus::Partial;
            stream.error = Some("the source sent rows after it had called the stream complete".to_owned());
            return Ok(true);
        }
        if !stream.is_open() {
            return Ok(false);
        }
        stream.events += 1;
        self.wanted = self.wanted.saturating_sub(1);
        stream.bytes += record.data.len() as u64;
        stream.pending_bytes += record.data.len() as u64;
        stream.pending_since.get_or_insert_with(Instant::now);
        let full = stream.pending_bytes >= self.limits.bytes && stream.spec.mode != WriteMode::Replace;
        let changed = self.start(at);
        let Some(index) = self.all[at].open else { return Ok(changed) };
        let mut written = self.sink.write(index, record);
        if full && written.is_ok() {
            written = self.commit(at).map(|_| ());
        }
        if let Err(error) = written {
            self.refuse(at, &error);
            return Ok(true);
        }
        Ok(changed)
    }

    /// Commits the streams whose source has sent rows for long and no state. No state is stored for them: after an
    /// interruption these rows come again. Returns what has waited for them alone.
    pub fn commit_overdue(&mut self) -> Storable {
        let now = Instant::now();
        if now < self.next_look {
            return Vec::new();
        }
        self.next_look = now + self.limits.interval / LOOKS_PER_INTERVAL;
        let limit = self.limits.interval;
        for at in 0..self.all.len() {
            let stream = &self.all[at];
            let overdue = stream.pending_since.is_some_and(|since| now.duration_since(since) >= limit);
            if overdue
                && stream.spec.mode != WriteMode::Replace
                && stream.is_open()
                && let Err(error) = self.commit(at)
            {
                self.refuse(at, &error);
            }
        }
        self.global_if_ready()
    }

    fn find(&mut self, record: &Record<'_>) -> Result<usize, StreamName> {
        if let Some((name, at)) = &self.last
            && name.name == record.stream
            && name.namespace.as_deref() == record.namespace.as_deref()
        {
            return Ok(*at);
        }
        let name = StreamName::new(record.namespace.as_deref(), &record.stream);
        let Some(at) = self.position(&name) else {
            self.has_unknown = true;
            self.lose_ambiguous(&name);
            return Err(name);
        };
        self.last = Some((name, at));
        Ok(at)
    }

    /// Whether the catalog selects streams of this name, and nothing says which of them is meant.
    pub fn is_ambiguous(&self, name: &StreamName) -> bool {
        name.namespace.is_none() && self.shared.contains_key(&name.name)
    }

    /// A row of one of several streams is lost: none of them must count as complete, or be replaced by the rest.
    fn lose_ambiguous(&mut self, name: &StreamName) {
        let namesakes = self.shared.get(&name.name).filter(|_| name.namespace.is_none()).cloned();
        for at in namesakes.into_iter().flatten() {
            if self.all[at].is_open() {
                self.fail(at, "the source names no namespace in its records, and several streams have this name");
            }
        }
    }

    /// Also when only one side of source and catalog names the namespace, as long as it is clear which stream is meant.
    fn position(&self, name: &StreamName) -> Option<usize> {
        self.index.get(name).copied().or_else(|| {
            let at = *self.index.get(&StreamName::new(None, &name.name))?;
            self.all[at].spec.name.namespace.is_none().then_some(at)
        })
    }

    /// Notes the first sign of a stream; returns whether that changed anything.
    fn start(&mut self, at: usize) -> bool {
        let pending = self.all[at].status == StreamStatus::Pending;
        if pending {
            self.all[at].status = StreamStatus::Running;
        }
        pending
    }

    /// Data of the source was lost: of the stream that its beginning names, or else of any that is not complete.
    pub fn lost(&mut self, head: &str, reason: &str) {
        let named = |stream: &Stream| {
            let name = serde_json::Value::from(stream.spec.name.name.as_str());
            [format!("\"stream\":{name}"), format!("\"stream\": {name}")].iter().any(|text| head.contains(text))
        };
        let open: Vec<usize> = (0..self.all.len()).filter(|at| self.all[*at].is_open()).collect();
        let hit: Vec<usize> = open.iter().copied().filter(|at| named(&self.all[*at])).collect();
        for at in if hit.is_empty() { open } else { hit } {
            self.fail(at, reason);
        }
    }

    /// Gives a stream up: its rows since the last commit go, and so does its waiting state.
    fn fail(&mut self, at: usize, error: &str) {
        let stream = &mut self.all[at];
        if let Some(index) = stream.open {
            self.sink.abort(index);
        }
        stream.status = if stream.committed > 0 { StreamStatus::Partial } else { StreamStatus::Failed };
        stream.error.get_or_insert_with(|| error.to_owned());
        stream.waiting = None;
    }

    /// The destination refuses a stream. One that is away after all its patience will not take the others either: each
    /// of them would only wait for it again.
    fn refuse(&mut self, at: usize, error: &SinkError) {
        self.refusal.get_or_insert_with(|| error.text.clone());
        self.fail(at, &error.text);
        if error.transient {
            for at in 0..self.all.len() {
                if self.all[at].is_open() {
                    self.fail(at, &error.text);
                }
            }
        }
    }

    /// Why the destination refused a stream, the first one.
    pub fn refusal(&self) -> Option<&str> {
        self.refusal.as_deref()
    }

    /// Whether nothing that may still come has a place to go to, because of the destination.
    pub fn is_refused(&self) -> bool {
        self.refusal.is_some() && !self.all.iter().any(Stream::is_open)
    }

    /// What the source expects a stream to be. Returns whether that is news.
    pub fn estimate(&mut self, name: &StreamName, estimate: Estimate) -> bool {
        let Some(at) = self.position(name) else { return false };
        self.all[at].estimate.replace(estimate) != Some(estimate)
    }

    /// The source speaks of a stream: STARTED, RUNNING, COMPLETE or INCOMPLETE.
    pub fn status(&mut self, name: &StreamName, status: &str) -> Storable {
        self.has_statuses = true;
        let Some(at) = self.position(name) else { return Vec::new() };
        if !self.all[at].is_open() {
            return Vec::new();
        }
        match status {
            "COMPLETE" => return self.complete(at),
            "INCOMPLETE" => self.fail(at, "the source gave the stream up"),
            _ => {
                self.start(at);
            }
        }
        Vec::new()
    }

    /// The source's error for one stream: kept as its reason.
    pub fn error(&mut self, name: &StreamName, text: &str) {
        if let Some(at) = self.position(name) {
            self.all[at].error = Some(text.to_owned());
        }
    }

    fn complete(&mut self, at: usize) -> Storable {
        self.start(at);
        let Some(index) = self.all[at].open else { return Vec::new() };
        if let Err(error) = self.sink.finish(index) {
            self.refuse(at, &error);
            return Vec::new();
        }
        let stream = &mut self.all[at];
        stream.status = StreamStatus::Success;
        stream.committed = stream.events;
        stream.error = None;
        let mut storable: Storable =
            stream.waiting.take().map(|state| (stream.key.clone(), state)).into_iter().collect();
        storable.extend(self.global_if_ready());
        storable
    }

    /// A stream's state: commits its rows, and returns the state when they are in for good.
    pub fn state(&mut self, name: &StreamName, state: String) -> Storable {
        let Some(at) = self.position(name) else { return Vec::new() };
        let key = self.all[at].key.clone();
        match self.all[at].status {
            StreamStatus::Success => return vec![(key, state)],
            StreamStatus::Pending | StreamStatus::Running => {}
            _ => return Vec::new(),
        }
        match self.commit(at) {
            Ok(Committed::Durable) => vec![(key, state)],
            Ok(Committed::Deferred) => {
                self.all[at].waiting = Some(state);
                Vec::new()
            }
            Err(error) => {
                self.refuse(at, &error);
                Vec::new()
            }
        }
    }

    /// The state of all streams together: only when none of them has failed.
    pub fn global_state(&mut self, key: String, state: String) -> Storable {
        for at in 0..self.all.len() {
            let stream = &self.all[at];
            if (stream.status == StreamStatus::Running || (stream.is_open() && stream.is_refreshed()))
                && let Err(error) = self.commit(at)
            {
                self.refuse(at, &error);
            }
        }
        self.waiting_global = Some((key, state));
        self.global_if_ready()
    }

    fn global_if_ready(&mut self) -> Storable {
        if self.waiting_global.is_none() {
            return Vec::new();
        }
        let failed = |stream: &Stream| {
            !matches!(stream.status, StreamStatus::Pending | StreamStatus::Running | StreamStatus::Success)
        };
        if self.all.iter().any(failed) {
            self.waiting_global = None;
        }
        let waits = |stream: &Stream| stream.spec.mode == WriteMode::Replace || stream.committed < stream.events;
        let deferred = self.all.iter().any(|stream| stream.is_open() && waits(stream));
        if deferred { Vec::new() } else { self.waiting_global.take().into_iter().collect() }
    }

    fn commit(&mut self, at: usize) -> Result<Committed, SinkError> {
        let stream = &self.all[at];
        let Some(index) = stream.open else { return Ok(Committed::Durable) };
        // A stream of which nothing came leaves no trace, but where a state has to be told from one of earlier days.
        let quiet = stream.status == StreamStatus::Pending && stream.spec.mode != WriteMode::Replace;
        if quiet && !stream.is_refreshed() {
            return Ok(Committed::Durable);
        }
        let committed = self.sink.commit(index)?;
        (self.all[at].pending_bytes, self.all[at].pending_since) = (0, None);
        if committed == Committed::Durable {
            self.all[at].committed = self.all[at].events;
        }
        Ok(committed)
    }
}

impl Stream {
    /// Neither complete nor given up.
    fn is_open(&self) -> bool {
        matches!(self.status, StreamStatus::Pending | StreamStatus::Running)
    }

    /// Rows of earlier generations go when it is complete.
    fn is_refreshed(&self) -> bool {
        self.spec.generation.minimum > 0 && self.spec.mode != WriteMode::Replace
    }

    fn new(configured: &ConfiguredStream, options: &ReadOptions, progress: &Progress) -> Self {
        let name = configured.name();
        Self {
            key: name.key(),
            spec: plan::spec(configured, options, progress),
            open: None,
            events: 0,
            bytes: 0,
            committed: 0,
            pending_bytes: 0,
            pending_since: None,
            status: StreamStatus::Pending,
            error: None,
            estimate: None,
            waiting: None,
        }
    }
}
