//! The streams of a read: which there are, how far each is, which states wait for which rows.
//!
//! The rules: rows first, then the state that stands for them; never the state of a failed stream; a stream is a
//! success when the source says COMPLETE and its rows are committed.

use std::collections::HashMap;

use crate::airbyte::catalog::{ConfiguredCatalog, ConfiguredStream, DestinationSyncMode, SyncMode};
use crate::airbyte::message::{Record, StreamName};
use crate::sidecar::sink::{Committed, Sink, SinkError, StreamIndex, StreamSpec, WriteMode};
use crate::task::{ReadOptions, StreamReport, StreamReports, StreamStatus};

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
    status: StreamStatus,
    error: Option<String>,
    /// The state that waits for the stream's end, when rows only count then.
    waiting: Option<String>,
}

/// All streams of a read, over one sink.
pub struct Streams {
    sink: Box<dyn Sink>,
    all: Vec<Stream>,
    index: HashMap<StreamName, usize>,
    /// Records come in runs of one stream: the one of the last record.
    last: Option<(StreamName, usize)>,
    /// The state of all streams together that waits for the end of some.
    waiting_global: Option<(String, String)>,
    /// Set once the source has sent any stream status: from then on only COMPLETE counts.
    has_statuses: bool,
    /// Rows of streams that the catalog does not select were dropped.
    has_unknown: bool,
}

/// States that may be stored now: (key, document).
pub type Storable = Vec<(String, String)>;

impl Streams {
    /// Prepares for the catalog's streams.
    pub fn new(catalog: &ConfiguredCatalog, options: &ReadOptions, mut sink: Box<dyn Sink>) -> Self {
        let mut streams: Vec<Stream> = catalog.streams.iter().map(|stream| Stream::new(stream, options)).collect();
        // In the catalog's order, not that of arrival: of two streams with one table name the same one always has it.
        for stream in &mut streams {
            match sink.open(stream.spec.clone()) {
                Ok(index) => stream.open = Some(index),
                Err(error) => (stream.status, stream.error) = (StreamStatus::Failed, Some(error.text)),
            }
        }
        let mut index: HashMap<_, _> =
            streams.iter().enumerate().map(|(at, stream)| (stream.spec.name.clone(), at)).collect();
        // Some sources leave the namespace out of their records: the bare name finds the stream if it is the only one.
        for (at, stream) in streams.iter().enumerate() {
            let name = &stream.spec.name.name;
            let alone = streams.iter().filter(|other| other.spec.name.name == *name).count() == 1;
            if alone {
                index.entry(StreamName::new(None, name)).or_insert(at);
            }
        }
        Self { sink, all: streams, index, last: None, waiting_global: None, has_statuses: false, has_unknown: false }
    }

    /// What the destination wants to have told.
    pub fn warnings(&mut self) -> Vec<String> {
        self.sink.warnings()
    }

    /// While no rows come: lets the destination look after what is open.
    pub fn tend(&mut self) {
        self.sink.tend();
    }

    /// The per-stream map.
    pub fn reports(&self) -> StreamReports {
        let report = |stream: &Stream| StreamReport {
            events: stream.events,
            bytes: stream.bytes,
            status: stream.status,
            error: stream.error.clone(),
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
        stream.bytes += record.data.len() as u64;
        let changed = self.start(at);
        if let Some(index) = self.all[at].open
            && let Err(error) = self.sink.write(index, record)
        {
            self.fail(at, &error.text);
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
            self.has_unknown = true;
            return Err(name);
        };
        self.last = Some((name, at));
        Ok(at)
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
            self.fail(at, &error.text);
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
                self.fail(at, &error.text);
                Vec::new()
            }
        }
    }

    /// The state of all streams together: only when none of them has failed.
    pub fn global_state(&mut self, key: String, state: String) -> Storable {
        for at in 0..self.all.len() {
            if self.all[at].status == StreamStatus::Running
                && let Err(error) = self.commit(at)
            {
                self.fail(at, &error.text);
            }
        }
        self.waiting_global = Some((key, state));
        self.global_if_ready()
    }

    fn global_if_ready(&mut self) -> Storable {
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
        // A stream of which nothing came leaves no trace.
        if stream.status == StreamStatus::Pending && stream.spec.mode != WriteMode::Replace {
            return Ok(Committed::Durable);
        }
        let committed = self.sink.commit(index)?;
        if committed == Committed::Durable {
            self.all[at].committed = self.all[at].events;
        }
        Ok(committed)
    }

    /// The source has ended. A source that never sent a status is complete by its exit code alone.
    pub fn end(&mut self, clean: bool, reason: &str) -> Storable {
        let mut storable = Vec::new();
        for at in 0..self.all.len() {
            if self.all[at].is_open() {
                // Rows under a name that nobody knows are no reason to empty the table of a stream that got none.
                let unheard = self.has_unknown && self.all[at].events == 0;
                if clean && !self.has_statuses && !unheard {
                    storable.extend(self.complete(at));
                } else {
                    self.fail(at, reason);
                }
            }
        }
        storable
    }

    /// The task stops: what is not complete gets this status.
    pub fn stop(&mut self, status: StreamStatus) {
        for at in 0..self.all.len() {
            if self.all[at].is_open() {
                self.fail(at, "");
                self.all[at].status = status;
                self.all[at].error = None;
            }
        }
    }

    /// How many streams arrived whole, in part, and how many there are.
    pub fn tally(&self) -> (usize, usize, usize) {
        let count = |status| self.all.iter().filter(|stream| stream.status == status).count();
        (count(StreamStatus::Success), count(StreamStatus::Partial), self.all.len())
    }

    /// The first stream's error, for the error of the whole.
    pub fn first_error(&self) -> Option<String> {
        self.all.iter().find_map(|stream| Some(format!("{}: {}", stream.key, stream.error.as_deref()?)))
    }
}

impl Stream {
    /// Neither complete nor given up.
    fn is_open(&self) -> bool {
        matches!(self.status, StreamStatus::Pending | StreamStatus::Running)
    }

    fn new(configured: &ConfiguredStream, options: &ReadOptions) -> Self {
        let name = configured.name();
        Self {
            key: name.key(),
            spec: spec(configured, options),
            open: None,
            events: 0,
            bytes: 0,
            committed: 0,
            status: StreamStatus::Pending,
            error: None,
            waiting: None,
        }
    }
}

/// The configured catalog and the options, put together.
fn spec(configured: &ConfiguredStream, options: &ReadOptions) -> StreamSpec {
    let stream = &configured.stream;
    let name = configured.name();
    let primary_key = if configured.primary_key.is_empty() {
        stream.source_defined_primary_key.clone()
    } else {
        configured.primary_key.clone()
    };
    let cursor = if configured.cursor_field.is_empty() {
        stream.default_cursor_field.clone()
    } else {
        configured.cursor_field.clone()
    };
    let table = stream.table_name.clone().filter(|table| !table.is_empty()).unwrap_or_else(|| stream.name.clone());
    StreamSpec {
        schema: schema(options.namespace.as_deref(), name.namespace.as_deref()),
        table: format!("{}{table}", options.table_name_prefix),
        json_schema: stream.json_schema.clone(),
        mode: write_mode(configured, options, !primary_key.is_empty()),
        primary_key,
        cursor,
        to_same_case: options.to_same_case,
        add_meta: options.add_meta,
        name,
    }
}

/// `${SOURCE_NAMESPACE}` is the stream's own; `${LEGACY}` and nothing are the destination's default.
fn schema(wanted: Option<&str>, own: Option<&str>) -> Option<String> {
    let wanted = wanted.filter(|wanted| !wanted.is_empty())?;
    let schema = wanted.replace("${SOURCE_NAMESPACE}", own.unwrap_or_default()).replace("${LEGACY}", "");
    Some(schema).filter(|schema| !schema.is_empty())
}

fn write_mode(configured: &ConfiguredStream, options: &ReadOptions, has_key: bool) -> WriteMode {
    use DestinationSyncMode as Mode;
    if options.full_sync {
        return WriteMode::Replace;
    }
    let replace = match configured.destination_sync_mode {
        Some(Mode::Overwrite | Mode::OverwriteDedup) | None => configured.sync_mode == SyncMode::FullRefresh,
        Some(_) => false,
    };
    // Overwriting with only what is new would lose what is not: then it is merged, if it can be.
    let merge = has_key && options.deduplicate && configured.destination_sync_mode != Some(Mode::Append);
    match (replace, merge) {
        (true, _) => WriteMode::Replace,
        (false, true) => WriteMode::Merge,
        (false, false) => WriteMode::Append,
    }
}
