//! The streams of a read: their statuses, their counts, and which states may be stored.
//!
//! * Rows are committed before the state that follows them is stored.
//! * The state of a failed stream is never stored.
//! * A stream succeeds when the source reports COMPLETE and its rows are committed.

mod activity;
mod end;
mod spec;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use activity::Activity;

use crate::airbyte::catalog::{ConfiguredCatalog, ConfiguredStream};
use crate::airbyte::message::{Record, StreamName};
use crate::airbyte::state::Progress;
use crate::sidecar::sink::{Committed, Sink, SinkError, StreamIndex, StreamSpec, WriteMode};
use crate::task::{Estimate, ReadOptions, Received, StreamReport, StreamReports, StreamStatus};

/// When to commit rows of a stream whose source sends no state: a long transaction keeps a database from cleaning up,
/// and uncommitted rows must be sent again after an interruption.
#[derive(Debug, Clone, Copy)]
pub struct CommitLimits {
    /// Maximum size of uncommitted row JSON, in bytes.
    pub bytes: u64,
    /// Maximum age of an uncommitted row.
    pub interval: Duration,
}

impl Default for CommitLimits {
    fn default() -> Self {
        Self { bytes: 256 << 20, interval: Duration::from_mins(5) }
    }
}

/// How often the age of uncommitted rows is checked within the interval.
const CHECKS_PER_INTERVAL: u32 = 20;

/// One selected stream.
struct Stream {
    key: String,
    spec: StreamSpec,
    /// `None` if the destination refused the stream.
    sink_index: Option<StreamIndex>,
    /// Records that have arrived.
    events: u64,
    /// Bytes of their lines.
    bytes: u64,
    /// How many of `events` are durable in the destination.
    committed: u64,
    /// Bytes of their lines.
    committed_bytes: u64,
    /// How many of `bytes` arrived after the last commit.
    uncommitted_bytes: u64,
    /// When the first of them arrived.
    uncommitted_since: Option<Instant>,
    status: StreamStatus,
    error: Option<String>,
    estimate: Option<Estimate>,
    /// A state to be stored when the stream is complete.
    pending_state: Option<String>,
    /// What was logged of it.
    activity: Activity,
}

/// All streams of a read, over one sink.
pub struct Streams {
    sink: Box<dyn Sink>,
    all: Vec<Stream>,
    by_name: HashMap<StreamName, usize>,
    /// Streams that share a name in different namespaces.
    namesakes: HashMap<String, Vec<usize>>,
    /// The stream of the last record: sources usually send many records of a stream in a row.
    last: Option<(StreamName, usize)>,
    /// A state of all streams, with its key, to be stored when all rows before it are durable.
    pending_global_state: Option<(String, String)>,
    /// The source has sent a stream status: from then on only COMPLETE completes a stream.
    has_statuses: bool,
    /// Records of streams that are not in the catalog were dropped.
    has_unmapped: bool,
    /// The caller has asked for a full sync.
    full_sync: bool,
    /// For the user, since the last call of [`Streams::warnings`].
    warnings: Vec<String>,
    /// Why the destination refused the first stream that it refused.
    refusal: Option<String>,
    /// How many records to take before the read ends.
    remaining: u64,
    limits: CommitLimits,
    next_check: Instant,
    /// Streams of which something may have to be logged.
    active: Vec<usize>,
    /// The same of all streams together.
    global_activity: Activity,
    /// The number of streams with committed rows.
    loaded: usize,
}

/// States that may be stored now: (key, document).
pub type Storable = Vec<(String, String)>;

impl Streams {
    /// Opens the streams of the catalog in the sink.
    pub fn new(
        catalog: &ConfiguredCatalog,
        options: &ReadOptions,
        progress: &Progress,
        limits: CommitLimits,
        mut sink: Box<dyn Sink>,
    ) -> Self {
        let mut all: Vec<Stream> =
            catalog.streams.iter().map(|stream| Stream::new(stream, options, progress)).collect();
        let mut refusal = None;
        for stream in &mut all {
            match sink.open(stream.spec.clone()) {
                Ok(index) => stream.sink_index = Some(index),
                Err(error) => {
                    refusal.get_or_insert_with(|| error.text.clone());
                    (stream.status, stream.error) = (StreamStatus::Failed, Some(error.text));
                }
            }
        }
        let mut by_name: HashMap<_, _> =
            all.iter().enumerate().map(|(at, stream)| (stream.spec.name.clone(), at)).collect();
        let mut namesakes: HashMap<String, Vec<usize>> = HashMap::new();
        for (at, stream) in all.iter().enumerate() {
            namesakes.entry(stream.spec.name.name.clone()).or_default().push(at);
        }
        // Some sources omit the namespace in their records: a unique name identifies the stream.
        namesakes.retain(|name, streams| {
            if let [at] = streams[..] {
                by_name.entry(StreamName::new(None, name)).or_insert(at);
            }
            streams.len() > 1
        });
        Self {
            sink,
            all,
            by_name,
            namesakes,
            last: None,
            pending_global_state: None,
            has_statuses: false,
            has_unmapped: false,
            full_sync: options.full_sync,
            warnings: Vec::new(),
            refusal,
            remaining: options.max_records.unwrap_or(u64::MAX),
            limits,
            next_check: Instant::now(),
            active: Vec::new(),
            global_activity: Activity::default(),
            loaded: 0,
        }
    }

    /// The number of streams that have committed rows before their end.
    pub fn loaded(&self) -> usize {
        self.loaded
    }

    /// New warnings of the streams and of the destination.
    pub fn warnings(&mut self) -> Vec<String> {
        let mut warnings = std::mem::take(&mut self.warnings);
        warnings.append(&mut self.sink.warnings());
        warnings
    }

    /// The per-stream map.
    pub fn reports(&self) -> StreamReports {
        let report = |stream: &Stream| StreamReport {
            events: stream.committed,
            bytes: stream.committed_bytes,
            status: stream.status,
            error: stream.error.clone(),
            received: (stream.is_open() && stream.events > stream.committed)
                .then_some(Received { events: stream.events, bytes: stream.bytes }),
            estimate: stream.estimate,
        };
        self.all.iter().map(|stream| (stream.key.clone(), report(stream))).collect()
    }

    /// Takes a row. Returns whether a status has changed; the name if the catalog does not select the stream.
    pub fn record(&mut self, record: &Record<'_>) -> Result<bool, StreamName> {
        let at = self.find(record)?;
        let stream = &mut self.all[at];
        if stream.status == StreamStatus::Success {
            // The table is finished, and a state after these rows must not be stored.
            stream.status = StreamStatus::Partial;
            stream.error = Some("the source sent rows after it had completed the stream".to_owned());
            return Ok(true);
        }
        if !stream.is_open() {
            return Ok(false);
        }
        stream.events += 1;
        self.remaining = self.remaining.saturating_sub(1);
        stream.bytes += record.line_bytes;
        stream.uncommitted_bytes += record.data.len() as u64;
        stream.uncommitted_since.get_or_insert_with(Instant::now);
        let is_full = stream.uncommitted_bytes >= self.limits.bytes && stream.spec.mode != WriteMode::Replace;
        let changed = self.start(at);
        let Some(index) = self.all[at].sink_index else { return Ok(changed) };
        let mut written = self.sink.write(index, record);
        if is_full && written.is_ok() {
            written = self.commit(at).map(|_| ());
        }
        if let Err(error) = written {
            self.refuse(at, &error);
            return Ok(true);
        }
        Ok(changed)
    }

    /// Does work that depends on time. Commits the streams that exceed [`CommitLimits::interval`]: no state is stored for
    /// them, so after an interruption their rows are sent again. Returns a global state that has waited for these rows.
    pub fn tick(&mut self) -> Storable {
        self.sink.tick();
        let now = Instant::now();
        if now < self.next_check {
            return Vec::new();
        }
        let limit = self.limits.interval;
        self.next_check = now + limit / CHECKS_PER_INTERVAL;
        for at in 0..self.all.len() {
            let stream = &self.all[at];
            let is_overdue = stream.uncommitted_since.is_some_and(|since| now.duration_since(since) >= limit);
            if is_overdue && stream.spec.mode != WriteMode::Replace && stream.is_open() {
                self.commit_or_refuse(at);
            }
        }
        self.global_state_if_durable()
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
            self.has_unmapped = true;
            self.fail_namesakes(&name);
            return Err(name);
        };
        self.last = Some((name, at));
        Ok(at)
    }

    /// Matches also if only the source or only the catalog names the namespace, as long as the stream is unambiguous.
    fn position(&self, name: &StreamName) -> Option<usize> {
        self.by_name.get(name).copied().or_else(|| {
            let at = *self.by_name.get(&StreamName::new(None, &name.name))?;
            self.all[at].spec.name.namespace.is_none().then_some(at)
        })
    }

    /// Whether several selected streams have this name, and the namespace is missing.
    pub fn is_ambiguous(&self, name: &StreamName) -> bool {
        name.namespace.is_none() && self.namesakes.contains_key(&name.name)
    }

    /// Notes that the source has started a stream. Returns whether its status has changed.
    fn start(&mut self, at: usize) -> bool {
        let is_pending = self.all[at].status == StreamStatus::Pending;
        if is_pending {
            self.all[at].status = StreamStatus::Running;
            self.all[at].activity.start = true;
            self.note_activity(at);
        }
        is_pending
    }

    /// Sets the expected size of a stream. Returns whether it has changed.
    pub fn estimate(&mut self, name: &StreamName, estimate: Estimate) -> bool {
        let Some(at) = self.position(name) else { return false };
        self.all[at].estimate.replace(estimate) != Some(estimate)
    }

    /// Handles a stream status of the source: STARTED, RUNNING, COMPLETE or INCOMPLETE.
    pub fn status(&mut self, name: &StreamName, status: &str) -> Storable {
        self.has_statuses = true;
        let Some(at) = self.position(name) else { return Vec::new() };
        if !self.all[at].is_open() {
            return Vec::new();
        }
        match status {
            "COMPLETE" => return self.complete(at),
            "INCOMPLETE" => self.fail(at, "the source reported the stream as incomplete"),
            _ => {
                self.start(at);
            }
        }
        Vec::new()
    }

    /// Sets the source's error for one stream as the reason of its failure.
    pub fn error(&mut self, name: &StreamName, text: &str) {
        if let Some(at) = self.position(name) {
            self.all[at].error = Some(text.to_owned());
        }
    }

    /// Handles a stream's state: commits its rows. Returns the state if the rows are durable.
    pub fn state(&mut self, name: &StreamName, state: String) -> Storable {
        let Some(at) = self.position(name) else { return Vec::new() };
        let key = self.all[at].key.clone();
        match self.all[at].status {
            StreamStatus::Success => return vec![(key, state)],
            StreamStatus::Pending | StreamStatus::Running => {}
            _ => return Vec::new(),
        }
        match self.commit_or_refuse(at) {
            Some(Committed::Durable) => vec![(key, state)],
            Some(Committed::Deferred) => {
                self.all[at].pending_state = Some(state);
                Vec::new()
            }
            None => Vec::new(),
        }
    }

    /// Handles a state of all streams: commits their rows. Returns the state if all rows are durable.
    pub fn global_state(&mut self, key: String, state: String) -> Storable {
        for at in 0..self.all.len() {
            let stream = &self.all[at];
            if stream.status == StreamStatus::Running || (stream.is_open() && stream.deletes_generations()) {
                self.commit_or_refuse(at);
            }
        }
        self.pending_global_state = Some((key, state));
        self.global_state_if_durable()
    }

    fn global_state_if_durable(&mut self) -> Storable {
        if self.pending_global_state.is_none() {
            return Vec::new();
        }
        let has_failed = |stream: &Stream| !stream.is_open() && stream.status != StreamStatus::Success;
        if self.all.iter().any(has_failed) {
            self.pending_global_state = None;
        }
        let is_durable = |stream: &Stream| stream.spec.mode != WriteMode::Replace && stream.committed == stream.events;
        let waits = self.all.iter().any(|stream| stream.is_open() && !is_durable(stream));
        if waits { Vec::new() } else { self.pending_global_state.take().into_iter().collect() }
    }

    /// Commits a stream. Returns `None` if the destination refuses it.
    fn commit_or_refuse(&mut self, at: usize) -> Option<Committed> {
        self.commit(at).map_err(|error| self.refuse(at, &error)).ok()
    }

    fn commit(&mut self, at: usize) -> Result<Committed, SinkError> {
        let stream = &self.all[at];
        let Some(index) = stream.sink_index else { return Ok(Committed::Durable) };
        // A stream without rows leaves no trace, unless its generation must be recorded.
        let is_unused = stream.status == StreamStatus::Pending && stream.spec.mode != WriteMode::Replace;
        if is_unused && !stream.deletes_generations() {
            return Ok(Committed::Durable);
        }
        let committed = self.sink.commit(index)?;
        let stream = &mut self.all[at];
        (stream.uncommitted_bytes, stream.uncommitted_since) = (0, None);
        if committed == Committed::Durable && stream.committed < stream.events {
            self.loaded += usize::from(stream.committed == 0);
            stream.record_committed();
            self.note_activity(at);
        }
        Ok(committed)
    }
}

impl Stream {
    /// All rows that have arrived are committed.
    fn record_committed(&mut self) {
        (self.committed, self.committed_bytes) = (self.events, self.bytes);
    }

    /// Neither complete nor failed.
    fn is_open(&self) -> bool {
        matches!(self.status, StreamStatus::Pending | StreamStatus::Running)
    }

    /// Rows of earlier generations are deleted when the stream is complete.
    fn deletes_generations(&self) -> bool {
        self.spec.generation.minimum > 0 && self.spec.mode != WriteMode::Replace
    }

    fn new(configured: &ConfiguredStream, options: &ReadOptions, progress: &Progress) -> Self {
        let name = configured.name();
        Self {
            key: name.key(),
            spec: spec::stream_spec(configured, options, progress),
            sink_index: None,
            events: 0,
            bytes: 0,
            committed: 0,
            committed_bytes: 0,
            uncommitted_bytes: 0,
            uncommitted_since: None,
            status: StreamStatus::Pending,
            error: None,
            estimate: None,
            pending_state: None,
            activity: Activity::default(),
        }
    }
}
