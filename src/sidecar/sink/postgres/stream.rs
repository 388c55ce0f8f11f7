//! One stream of the sink: encodes its rows into chunks, and implements commit, finish and abort for each write mode.

use std::collections::HashMap;
use std::sync::mpsc::Receiver;

use super::column::Column;
use super::copy::Chunk;
use super::definition;
use super::generation::{self, Checkpoint};
use super::loader::{JobResult, LoadMode, TableLoader, loader_thread_ended};
use super::merge_key::{KeyPart, MergeKey};
use super::names::qualified;
use super::prepare::{CommitPlan, PreparedStream, StreamTable, TargetUpdate, loadable_columns};
use super::resources::{CHUNK_SIZE, Resources};
use super::row::Encoder;
use super::session::SessionError;
use super::staged_rows::{MergeCounts, StagedRows};
use super::table::Table;
use crate::airbyte::message::Record;
use crate::sidecar::sink::{Committed, SinkError, StreamSpec, WriteMode};
use crate::task::LoadCounts;

/// While a chunk of at least this many bytes is loaded, no rows are encoded: they could need as much memory again.
const LARGE_CHUNK: usize = 16 << 20;

/// A stream of the sink.
pub struct Stream {
    spec: StreamSpec,
    schema: String,
    table: String,
    state: State,
    /// Of the committed rows, once the stream is no longer active.
    counts: LoadCounts,
}

enum State {
    /// The table was not inspected yet.
    Idle,
    Active(Box<ActiveStream>),
    /// The stream failed: its rows since the last commit are lost.
    Failed(SinkError),
    /// Finished or aborted.
    Closed,
}

impl Stream {
    /// A stream that writes to this table.
    pub fn new(spec: StreamSpec, schema: String, table: String) -> Self {
        Self { spec, schema, table, state: State::Idle, counts: LoadCounts::default() }
    }

    /// Memory of the chunk with the rows that are not sent yet, in bytes.
    pub fn buffered_bytes(&self) -> usize {
        match &self.state {
            State::Active(active) => active.chunk.bytes.capacity(),
            _ => 0,
        }
    }

    /// What happened to the rows that are committed so far.
    pub fn counts(&self) -> LoadCounts {
        match &self.state {
            State::Active(active) => active.counts.clone(),
            _ => self.counts.clone(),
        }
    }

    /// The table, in messages.
    pub fn subject(&self) -> String {
        subject(&self.schema, &self.table)
    }

    /// Takes one row.
    pub fn write(&mut self, resources: &mut Resources, record: &Record<'_>) -> Result<(), SinkError> {
        self.run(resources, |active, resources| active.write(resources, record))
    }

    /// Sends the buffered rows to free memory. The next operation on the stream returns the error.
    pub fn send_early(&mut self, resources: &mut Resources) {
        if matches!(self.state, State::Active(_)) {
            let _ = self.run(resources, ActiveStream::send);
        }
    }

    /// Makes the rows so far durable, unless they only become so at the end.
    pub fn commit(&mut self, resources: &mut Resources) -> Result<Committed, SinkError> {
        self.run(resources, |active, resources| {
            match active.plan.update {
                TargetUpdate::EachCommit => active.commit(resources)?,
                TargetUpdate::ReplaceGenerations { resumable: true, .. } => active.save_checkpoint(resources)?,
                TargetUpdate::ReplaceAll | TargetUpdate::ReplaceGenerations { resumable: false, .. } => {
                    return Ok(Committed::Deferred);
                }
            }
            Ok(Committed::Durable)
        })
    }

    /// Commits a complete stream, and replaces the rows that it makes obsolete.
    pub fn finish(&mut self, resources: &mut Resources) -> Result<(), SinkError> {
        self.run(resources, |active, resources| match active.plan.update {
            TargetUpdate::EachCommit => active.commit(resources),
            TargetUpdate::ReplaceAll => active.replace(resources, None),
            TargetUpdate::ReplaceGenerations { minimum, .. } => active.replace(resources, Some(minimum)),
        })?;
        self.abort(resources);
        Ok(())
    }

    /// Commits an incomplete stream, and replaces nothing. Returns whether the rows are in the table.
    pub fn finish_early(&mut self, resources: &mut Resources) -> Result<bool, SinkError> {
        let in_table = self.run(resources, |active, resources| match active.plan.update {
            TargetUpdate::EachCommit if !active.plan.replaces_at_next_commit => active.commit(resources).map(|()| true),
            TargetUpdate::EachCommit | TargetUpdate::ReplaceAll => active.fill_if_empty(resources),
            // The table has rows to replace. Checkpointed rows stay for the run that resumes.
            TargetUpdate::ReplaceGenerations { .. } => Ok(false),
        })?;
        self.abort(resources);
        Ok(in_table)
    }

    /// Discards uncommitted rows and drops the staging table.
    pub fn abort(&mut self, resources: &mut Resources) {
        if let State::Active(mut active) = std::mem::replace(&mut self.state, State::Closed) {
            active.clean_up(resources);
            self.counts = active.counts;
        }
    }

    /// Runs an operation on the active stream. If it fails, cleans up; all further operations return the error.
    fn run<T>(
        &mut self,
        resources: &mut Resources,
        operation: impl FnOnce(&mut ActiveStream, &mut Resources) -> Result<T, SessionError>,
    ) -> Result<T, SinkError> {
        if matches!(self.state, State::Idle) {
            let active = self.activate(resources).map_err(|error| self.sink_error(resources, &error))?;
            self.state = State::Active(Box::new(active));
        }
        let active = match &mut self.state {
            State::Active(active) => active,
            State::Failed(error) => return Err(error.clone()),
            State::Idle | State::Closed => {
                let stream = self.spec.name.key();
                return Err(SinkError::permanent(format!("stream {stream:?} is closed")));
            }
        };
        operation(active, resources).map_err(|error| {
            let error = self.sink_error(resources, &error);
            if let State::Active(mut active) = std::mem::replace(&mut self.state, State::Failed(error.clone())) {
                active.clean_up(resources);
                self.counts = active.counts;
            }
            error
        })
    }

    fn sink_error(&self, resources: &Resources, error: &SessionError) -> SinkError {
        let mut refused = resources.config.sink_error(&self.subject(), error);
        if error.is_constraint_violation() {
            refused.text.push_str(
                ": rows violate a constraint of the table that is not syncctl's: drop it, or merge the rows by its columns \
                 (append_dedup, overwrite_dedup, primary_key)",
            );
        }
        refused
    }

    fn activate(&self, resources: &mut Resources) -> Result<ActiveStream, SessionError> {
        let (run_id, subject) = (resources.config.run_id, self.subject());
        let mut session = resources.acquire_session(&subject);
        let table = StreamTable { spec: &self.spec, schema: &self.schema, table: &self.table, run_id };
        let PreparedStream { target, staging, mut layout, sequence, plan } = table.prepare(&mut session)?;
        resources.release_session(Some(session));
        layout.type_warnings.drain(..).for_each(|warning| resources.config.warnings.add(&subject, &warning));
        resources.server_unreachable = false;
        // A new staging table does not exist yet.
        let retain_staging = staging.exists();
        Ok(ActiveStream {
            subject,
            encoder: Encoder::new(layout, sequence, self.spec.generation.id, self.spec.airbyte.sync_id),
            chunk: Chunk::default(),
            loader: Some(Box::new(TableLoader::new(target, staging, resources.total_replay_bytes.clone()))),
            loading: None,
            plan,
            retain_staging,
            counts: LoadCounts::default(),
            moved: 0,
        })
    }
}

/// A table, in messages.
pub fn subject(schema: &str, table: &str) -> String {
    format!("table {}", qualified(schema, table))
}

struct ActiveStream {
    /// The table, in messages.
    subject: String,
    encoder: Encoder,
    /// The rows that are not sent yet.
    chunk: Chunk,
    /// `None` while the loader thread has it.
    loader: Option<Box<TableLoader>>,
    /// Receives the loader from the loader thread.
    loading: Option<Receiver<JobResult>>,
    plan: CommitPlan,
    /// The staging table is a generation table, which outlives the run.
    retain_staging: bool,
    /// Of the committed rows.
    counts: LoadCounts,
    /// The number of the last row that was moved from the staging table to the target.
    moved: u64,
}

impl ActiveStream {
    fn write(&mut self, resources: &mut Resources, record: &Record<'_>) -> Result<(), SessionError> {
        self.encoder.push(record, &mut self.chunk).map_err(|error| SessionError::permanent(error.to_string()))?;
        if self.chunk.bytes.len() < CHUNK_SIZE { Ok(()) } else { self.send(resources) }
    }

    /// The loader. Waits until the loader thread returns it.
    fn loader(&mut self, resources: &mut Resources) -> Result<&mut TableLoader, SessionError> {
        if let Some(loading) = self.loading.take() {
            let (mut loader, result) = loading.recv().map_err(|_| loader_thread_ended())?;
            if loader.mode != Some(LoadMode::Direct) {
                resources.release_session(loader.take_session());
            }
            self.loader = Some(loader);
            if let Some(chunk) = result? {
                resources.release_buffer(chunk.bytes);
            }
        }
        self.loader.as_deref_mut().ok_or_else(loader_thread_ended)
    }

    /// Gives the loader what it needs for the chunk: columns, load mode, session.
    fn prepare_loader(&mut self, resources: &mut Resources) -> Result<(), SessionError> {
        self.encoder.seal(&mut self.chunk);
        let is_appended = self.plan.mode == WriteMode::Append
            && self.plan.update == TargetUpdate::EachCommit
            && !self.plan.replaces_at_next_commit;
        let has_rows = self.chunk.rows > 0;
        let has_inferred = self.encoder.layout.has_inferred;
        let known = self.loader(resources)?.columns.len();
        let types_changed = std::mem::take(&mut self.encoder.layout.types_changed);
        let is_new = has_inferred || types_changed || known < self.encoder.layout.columns.len();
        for warning in self.encoder.layout.type_warnings.drain(..) {
            resources.config.warnings.add(&self.subject, &warning);
        }
        let columns = is_new.then(|| self.encoder.layout.columns.clone());
        let subject = self.subject.clone();
        let loader = self.loader(resources)?;
        if has_rows && loader.mode.is_none() {
            // The table gets columns whose types are inferred with the last row of the batch.
            let is_direct = is_appended && !has_inferred && resources.register_transaction();
            loader.mode = Some(if is_direct { LoadMode::Direct } else { LoadMode::Staged });
        }
        loader.session.get_or_insert_with(|| resources.acquire_session(&subject));
        if let Some(columns) = columns {
            let before = std::mem::replace(&mut loader.columns, columns);
            loader.convert_loaded(&before)?;
        }
        if loader.mode == Some(LoadMode::Direct) {
            self.encoder.layout.fix_types();
        }
        Ok(())
    }

    /// Submits the chunk to the loader thread.
    fn send(&mut self, resources: &mut Resources) -> Result<(), SessionError> {
        if self.chunk.rows == 0 {
            return Ok(());
        }
        self.prepare_loader(resources)?;
        let empty = Chunk { bytes: resources.acquire_buffer(), ..Chunk::default() };
        let chunk = std::mem::replace(&mut self.chunk, empty);
        let is_large = chunk.bytes.len() >= LARGE_CHUNK;
        if let Some(loader) = self.loader.take() {
            self.loading = Some(resources.loader_thread.submit(loader, chunk)?);
        }
        if is_large {
            self.loader(resources)?;
        }
        Ok(())
    }

    /// Loads the chunk on this thread.
    fn flush(&mut self, resources: &mut Resources) -> Result<&mut TableLoader, SessionError> {
        self.prepare_loader(resources)?;
        let chunk = std::mem::take(&mut self.chunk);
        let loader = self.loader(resources)?;
        if chunk.rows > 0
            && let Some(chunk) = loader.load(chunk)?
        {
            resources.release_buffer(chunk.bytes);
        }
        self.loader(resources)
    }

    fn commit(&mut self, resources: &mut Resources) -> Result<(), SessionError> {
        let replaces = self.plan.replaces_at_next_commit;
        self.flush(resources)?;
        let merge_key = self.merge_key()?;
        let (sequence, moved) = (self.encoder.sequence.unwrap_or_default(), self.moved);
        let loader = self.loader(resources)?;
        let mode = loader.mode;
        let mut counts = MergeCounts::default();
        if mode.is_some() && replaces {
            counts = loader.replace_target(&merge_key)?;
            self.plan.replaces_at_next_commit = false;
        } else if mode == Some(LoadMode::Direct) {
            loader.commit_direct()?;
            resources.unregister_transaction();
        } else {
            let (table, target, columns, session) = loader.parts()?;
            if mode.is_some() {
                let rows = StagedRows::new(table, columns, &merge_key).after(moved);
                counts = rows.merge(session, target, sequence - moved)?;
            } else {
                // The first commit creates the table even if there are no rows.
                definition::ensure_columns(session, target, columns)?;
            }
            loader.mode = None;
        }
        let session = self.loader(resources)?.take_session();
        resources.release_session(session);
        self.moved = sequence;
        self.encoder.layout.fix_types();
        self.count_committed(counts);
        Ok(())
    }

    /// Counts the rows since the last commit.
    fn count_committed(&mut self, MergeCounts { merged, older }: MergeCounts) {
        let encoded = std::mem::take(&mut self.encoder.counts);
        self.counts.add(&LoadCounts { merged, older, ..encoded });
    }

    /// How staged rows are merged.
    fn merge_key(&self) -> Result<MergeKey, SessionError> {
        Ok(match self.plan.mode {
            WriteMode::Append => MergeKey::default(),
            WriteMode::Merge | WriteMode::Replace => {
                let layout = &self.encoder.layout;
                let mut key = layout.merge_key(&self.plan.checkpoint.merge_key, self.encoder.traits);
                let has_column = |name: &String| layout.columns.iter().any(|column| column.name == *name);
                let table_key = self.plan.table_key.as_ref().filter(|columns| columns.iter().all(has_column));
                if let Some(columns) = table_key.filter(|_| !key.parts.is_empty()) {
                    key.parts = columns.iter().map(|column| KeyPart::new(column, &[])).collect();
                }
                if key.parts.is_empty()
                    && self.encoder.sequence.is_some_and(|last| last > 0)
                    && let Some(field) = layout.find_key_field(|column| column.is_none())
                {
                    return Err(SessionError::permanent(format!(
                        "no row has a value for {field:?}, which is part of the primary key, and the schema of the stream \
                         does not declare it"
                    )));
                }
                key
            }
        })
    }

    /// Commits the rows so far to the generation table.
    fn save_checkpoint(&mut self, resources: &mut Resources) -> Result<(), SessionError> {
        self.flush(resources)?;
        self.plan.checkpoint = Checkpoint {
            rows: self.encoder.sequence.unwrap_or_default(),
            merge_key: self.merge_key()?,
            generation: self.encoder.generation,
        };
        let (checkpoint, run_id) = (self.plan.checkpoint.clone(), resources.config.run_id);
        let drop_obsolete = std::mem::take(&mut self.plan.drop_obsolete);
        let loader = self.loader(resources)?;
        let (staging, target, columns, session) = loader.parts()?;
        generation::save_checkpoint(session, target, (staging, columns), run_id, &checkpoint, &drop_obsolete)?;
        resources.release_session(loader.take_session());
        self.encoder.layout.fix_types();
        self.retain_staging = true;
        self.count_committed(MergeCounts::default());
        Ok(())
    }

    /// Replaces the generations below `minimum`, or all rows, with the staged ones.
    fn replace(&mut self, resources: &mut Resources, minimum: Option<i64>) -> Result<(), SessionError> {
        self.flush(resources)?;
        let (merge_key, drop_obsolete) = (self.merge_key()?, std::mem::take(&mut self.plan.drop_obsolete));
        let loader = self.loader(resources)?;
        let (table, target, known, session) = loader.parts()?;
        let mut columns = known.to_vec();
        if table.exists() {
            // Earlier runs may have added columns that this one does not know.
            let (_, existing) =
                session.transaction(|client| Table::inspect_staging(client, &table.schema, &table.name))?;
            columns = loadable_columns(existing);
            let mut known: HashMap<String, Column> =
                known.iter().map(|column| (column.name.clone(), column.clone())).collect();
            for column in &mut columns {
                column.owner = known.remove(&column.name).map_or(column.owner.take(), |known| known.owner);
            }
        }
        let rows = StagedRows::new(table, &columns, &merge_key);
        let counts = match minimum {
            Some(minimum) => rows.replace_generations(session, target, minimum, &drop_obsolete)?,
            None => rows.replace_all(session, target, &drop_obsolete)?,
        };
        loader.mode = None;
        self.retain_staging = false;
        self.count_committed(counts);
        Ok(())
    }

    /// Moves the staged rows to the target if it has none. Returns whether it did. An existing generation table stays,
    /// because only a complete stream makes it obsolete.
    fn fill_if_empty(&mut self, resources: &mut Resources) -> Result<bool, SessionError> {
        self.flush(resources)?;
        let merge_key = self.merge_key()?;
        let (table, target, columns, session) = self.loader(resources)?.parts()?;
        let counts = StagedRows::new(table, columns, &merge_key).fill_if_empty(session, target)?;
        if let Some(counts) = counts {
            self.count_committed(counts);
        }
        Ok(counts.is_some())
    }

    /// Rolls back and drops the staging table, if the database is reachable.
    fn clean_up(&mut self, resources: &mut Resources) {
        self.chunk = Chunk::default();
        // An error of the last chunk was returned before, or does not matter any more.
        let _ = self.loader(resources);
        let Some(mut loader) = self.loader.take() else { return };
        if loader.mode == Some(LoadMode::Direct) {
            resources.unregister_transaction();
        }
        loader.rollback();
        if loader.may_have_staging() && !self.retain_staging && !resources.server_unreachable {
            let mut session = loader.session.take().unwrap_or_else(|| resources.acquire_session(&self.subject));
            if loader.drop_staging(&mut session).is_err() {
                // The server may have closed an idle connection.
                session.disconnect();
                if let Err(error) = loader.drop_staging(&mut session) {
                    resources.server_unreachable = error.is_connection_lost();
                    let why = session.config.reason(&error);
                    session.warn(&format!("cannot drop the staging table: {why}: the next run drops it"));
                }
            }
            loader.session = Some(session);
        }
        resources.release_session(loader.session.take());
    }
}
