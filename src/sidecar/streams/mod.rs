//! The streams of a read: their statuses, their counts, and which states may be stored.
//!
//! | module | owns |
//! |---|---|
//! | `spec` | what the catalog and the options mean for the destination |
//! | `commits` | when rows are committed, and when the states after them may be stored |
//! | `losses` | why a stream may miss rows |
//! | `end` | how streams end |
//! | `activity` | what the log shows of them |
//!
//! * Rows are committed before the state that follows them is stored.
//! * The state of a failed stream is never stored.
//! * A stream succeeds when the source reports COMPLETE and its rows are committed.

mod activity;
mod commits;
mod end;
mod losses;
mod spec;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::time::Instant;

use activity::Activity;
pub use commits::CommitLimits;
use commits::HeldRecords;
use losses::{RecordsSinceState, Unmapped};
pub use spec::{merge_key, stream_specs};

use crate::airbyte::catalog::{ConfiguredCatalog, ConfiguredStream};
use crate::airbyte::message::{Record, StreamName};
use crate::airbyte::state::Progress;
use crate::sidecar::sink::{Sink, StreamIndex, StreamSpec, Warning, WriteMode};
use crate::task::{Counts, Estimate, LoadCounts, ReadOptions, Received, StreamReport, StreamReports, StreamStatus};

/// Why something that names a stream is ignored.
const NOT_SELECTED: &str = "which the catalog does not select";

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
    /// How many of `events` the sink has taken; the others are held.
    written: u64,
    /// Bytes of their lines.
    written_bytes: u64,
    /// Records that follow a state which waits for its commit.
    held: HeldRecords,
    /// How many of `written` are durable in the destination.
    committed: u64,
    /// Bytes of their lines.
    committed_bytes: u64,
    /// Bytes of the rows that the sink has taken since the last commit.
    uncommitted_bytes: u64,
    /// When it took the first of them.
    uncommitted_since: Option<Instant>,
    /// When the last commit ended.
    last_commit: Option<Instant>,
    /// The destination makes the rows durable only when the stream is complete.
    is_deferred: bool,
    status: StreamStatus,
    error: Option<String>,
    estimate: Option<Estimate>,
    /// The last state, until the rows before it are durable.
    pending_state: Option<String>,
    /// How many of `written` precede the pending state of all streams.
    written_at_global: u64,
    /// What the destination did with the committed records.
    load: LoadCounts,
    /// Records that were not loaded, by the reason.
    dropped: Counts,
    /// Texts for the user.
    warnings: Counts,
    /// Records since its last state.
    since_state: RecordsSinceState,
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
    /// The last state of all streams, until all rows before it are durable.
    pending_global_state: Option<PendingGlobalState>,
    /// When the rows before such a state were committed last.
    last_global_commit: Option<Instant>,
    /// States whose rows are durable.
    storable: Storable,
    /// Streams with a state that waits for the next commit.
    waiting: Vec<usize>,
    /// Memory of the held records of all streams.
    held_bytes: usize,
    /// The source has sent a stream status: from then on only COMPLETE completes a stream.
    has_statuses: bool,
    /// Records of streams that are not in the catalog, which were dropped.
    unmapped: Unmapped,
    /// Records of all streams since the last state of all.
    since_global_state: RecordsSinceState,
    /// The caller has asked for a full sync.
    full_sync: bool,
    /// For the user, since the last call of [`Streams::warnings`].
    warnings: Vec<String>,
    /// The same since the start, of those about no stream.
    task_warnings: Counts,
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

/// A state of all streams that cannot be stored yet.
struct PendingGlobalState {
    key: String,
    state: String,
    /// The rows before it are committed, except those of streams that become durable when they are complete.
    is_committed: bool,
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
            last_global_commit: None,
            storable: Vec::new(),
            waiting: Vec::new(),
            held_bytes: 0,
            has_statuses: false,
            unmapped: Unmapped::default(),
            since_global_state: RecordsSinceState::default(),
            task_warnings: Counts::default(),
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
        for Warning { stream, text } in self.sink.warnings() {
            let at = stream.and_then(|index| self.all.iter().position(|stream| stream.sink_index == Some(index)));
            self.warn(at, text);
        }
        std::mem::take(&mut self.warnings)
    }

    /// Adds a warning about a stream (or the task) to its report, and to the log if it is the first of its text.
    pub(super) fn warn(&mut self, at: Option<usize>, text: String) {
        let warnings = at.map_or(&mut self.task_warnings, |at| &mut self.all[at].warnings);
        if warnings.add(&text, 1) {
            self.warnings.push(text);
        }
    }

    /// The per-stream map.
    pub fn reports(&self) -> StreamReports {
        self.all.iter().map(|stream| (stream.key.clone(), stream.report())).collect()
    }

    /// Takes a row. Returns whether a status has changed; the name if the catalog does not select the stream.
    pub fn record(&mut self, record: &Record<'_>) -> Result<bool, StreamName> {
        self.since_global_state.count += 1;
        let at = self.find(record)?;
        let stream = &mut self.all[at];
        stream.since_state.count += 1;
        if !stream.is_open() {
            let is_complete = stream.status == StreamStatus::Success;
            stream
                .dropped
                .add(if is_complete { "after the stream was complete" } else { "after the stream had failed" }, 1);
            // The table is finished, and a state after these rows must not be stored.
            self.incomplete(at, "the source sent rows after it had completed the stream");
            return Ok(is_complete);
        }
        stream.events += 1;
        self.remaining = self.remaining.saturating_sub(1);
        stream.bytes += record.line_bytes;
        let changed = self.start(at);
        if let Err(error) = self.accept(at, record) {
            self.refuse(at, &error);
            return Ok(true);
        }
        Ok(changed)
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
            self.count_unmapped(&name);
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
        match self.position(name) {
            Some(at) if status == "INCOMPLETE" => self.incomplete(at, "the source reported the stream as incomplete"),
            Some(at) if !self.all[at].is_open() => {}
            Some(at) if status == "COMPLETE" => self.complete(at),
            Some(at) => _ = self.start(at),
            None => {
                let text = format!("the source reports the status of stream {}, {NOT_SELECTED}", name.key());
                self.warn(None, text);
            }
        }
        self.take_storable()
    }
}

impl Stream {
    fn report(&self) -> StreamReport {
        StreamReport {
            events: self.committed,
            bytes: self.committed_bytes,
            status: self.status,
            error: self.error.clone(),
            received: (self.is_open() && self.events > self.committed)
                .then_some(Received { events: self.events, bytes: self.bytes }),
            estimate: self.estimate,
            load: self.load.clone(),
            dropped: self.dropped.clone(),
            warnings: self.warnings.clone(),
        }
    }

    /// Neither complete nor failed.
    fn is_open(&self) -> bool {
        matches!(self.status, StreamStatus::Pending | StreamStatus::Running)
    }

    fn new(configured: &ConfiguredStream, options: &ReadOptions, progress: &Progress) -> Self {
        let spec = spec::stream_spec(configured, options, progress);
        Self {
            key: spec.name.key(),
            is_deferred: spec.mode == WriteMode::Replace,
            spec,
            sink_index: None,
            events: 0,
            bytes: 0,
            written: 0,
            written_bytes: 0,
            held: HeldRecords::default(),
            committed: 0,
            committed_bytes: 0,
            uncommitted_bytes: 0,
            uncommitted_since: None,
            last_commit: None,
            status: StreamStatus::Pending,
            error: None,
            estimate: None,
            pending_state: None,
            written_at_global: 0,
            load: LoadCounts::default(),
            dropped: Counts::default(),
            warnings: Counts::default(),
            since_state: RecordsSinceState::default(),
            activity: Activity::default(),
        }
    }
}
