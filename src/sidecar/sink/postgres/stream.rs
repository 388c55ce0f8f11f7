//! One stream of the sink: encodes its rows into chunks, and implements commit, finish and abort for each write mode.

use std::sync::mpsc::Receiver;

use super::copy::Chunk;
use super::generation::{self, Checkpoint, PartialGeneration};
use super::loader::{JobResult, LoadMode, TableLoader, loader_thread_ended};
use super::prepare::{PreparedStream, StreamTable, TargetUpdate, loadable_columns};
use super::resources::{CHUNK_SIZE, Resources};
use super::row::{Encoder, RowError};
use super::staged_rows::StagedRows;
use super::table::Table;
use crate::airbyte::message::Record;
use crate::sidecar::sink::{Committed, SinkError, StreamSpec, WriteMode};

/// While a chunk of at least this many bytes is loaded, no rows are encoded: they could need as much memory again.
const LARGE_CHUNK: usize = 16 << 20;

/// A stream of the sink.
pub struct Stream {
    spec: StreamSpec,
    schema: String,
    table: String,
    state: State,
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

struct ActiveStream {
    encoder: Encoder,
    /// The rows that are not sent yet.
    chunk: Chunk,
    /// `None` while the loader thread has it.
    loader: Option<Box<TableLoader>>,
    /// Receives the loader from the loader thread.
    loading: Option<Receiver<JobResult>>,
    /// `Merge` without a usable key becomes `Append`.
    mode: WriteMode,
    update: TargetUpdate,
    /// The last checkpoint of the generation table.
    checkpoint: Checkpoint,
    /// The generation table to drop at the first commit.
    obsolete: Option<PartialGeneration>,
    /// The staging table is a generation table, which outlives the run.
    retain_staging: bool,
}

impl Stream {
    /// A stream that writes to this table.
    pub fn new(spec: StreamSpec, schema: String, table: String) -> Self {
        Self { spec, schema, table, state: State::Idle }
    }

    /// Memory of the chunk with the rows that are not sent yet, in bytes.
    pub fn buffered_bytes(&self) -> usize {
        match &self.state {
            State::Active(active) => active.chunk.bytes.capacity(),
            _ => 0,
        }
    }

    /// Takes one row.
    pub fn write(&mut self, resources: &mut Resources, record: &Record<'_>) -> Result<(), SinkError> {
        let active = self.active(resources)?;
        let encoded = active.encoder.push(&record.data, record.emitted_at, &mut active.chunk);
        if encoded.is_ok() && active.chunk.bytes.len() < CHUNK_SIZE {
            return Ok(());
        }
        let result = match encoded {
            Ok(()) => active.send(resources),
            Err(error) => Err(self.row_error(&error)),
        };
        self.fail_on_error(resources, result)
    }

    /// Sends the buffered rows to free memory. The next operation on the stream returns the error.
    pub fn send_early(&mut self, resources: &mut Resources) {
        if let State::Active(active) = &mut self.state {
            let sent = active.send(resources);
            let _ = self.fail_on_error(resources, sent);
        }
    }

    /// Makes the rows so far durable, unless they only become so at the end.
    pub fn commit(&mut self, resources: &mut Resources) -> Result<Committed, SinkError> {
        let active = self.active(resources)?;
        let result = match active.update {
            TargetUpdate::EachCommit => active.commit(resources),
            TargetUpdate::ReplaceGenerations { resumable: true, .. } => active.save_checkpoint(resources),
            TargetUpdate::ReplaceAll | TargetUpdate::ReplaceGenerations { resumable: false, .. } => {
                return Ok(Committed::Deferred);
            }
        };
        self.fail_on_error(resources, result).map(|()| Committed::Durable)
    }

    /// Commits a complete stream, and replaces the rows that it makes obsolete.
    pub fn finish(&mut self, resources: &mut Resources) -> Result<(), SinkError> {
        let active = self.active(resources)?;
        let result = match active.update {
            TargetUpdate::EachCommit => active.commit(resources),
            TargetUpdate::ReplaceAll => active.replace(resources, None),
            TargetUpdate::ReplaceGenerations { minimum, .. } => active.replace(resources, Some(minimum)),
        };
        self.fail_on_error(resources, result)?;
        self.abort(resources);
        Ok(())
    }

    /// Commits an incomplete stream, and replaces nothing. Returns whether the rows are in the table.
    pub fn finish_early(&mut self, resources: &mut Resources) -> Result<bool, SinkError> {
        let active = self.active(resources)?;
        let result = match active.update {
            TargetUpdate::EachCommit => active.commit(resources).map(|()| true),
            TargetUpdate::ReplaceAll => active.fill_if_empty(resources),
            // The table has rows to replace. Checkpointed rows stay for the run that resumes.
            TargetUpdate::ReplaceGenerations { .. } => Ok(false),
        };
        let in_table = self.fail_on_error(resources, result)?;
        self.abort(resources);
        Ok(in_table)
    }

    /// Discards uncommitted rows and drops the staging table.
    pub fn abort(&mut self, resources: &mut Resources) {
        if let State::Active(mut active) = std::mem::replace(&mut self.state, State::Closed) {
            active.clean_up(resources);
        }
    }

    /// Cleans up after an error; all further operations return it.
    fn fail_on_error<T>(&mut self, resources: &mut Resources, result: Result<T, SinkError>) -> Result<T, SinkError> {
        if let Err(error) = &result
            && let State::Active(mut active) = std::mem::replace(&mut self.state, State::Failed(error.clone()))
        {
            active.clean_up(resources);
        }
        result
    }

    fn active(&mut self, resources: &mut Resources) -> Result<&mut ActiveStream, SinkError> {
        if matches!(self.state, State::Idle) {
            let active = self.activate(resources)?;
            self.state = State::Active(Box::new(active));
        }
        match &mut self.state {
            State::Active(active) => Ok(active),
            State::Failed(error) => Err(error.clone()),
            State::Idle | State::Closed => {
                Err(SinkError::permanent(format!("stream {:?} is closed", self.spec.name.key())))
            }
        }
    }

    fn activate(&self, resources: &mut Resources) -> Result<ActiveStream, SinkError> {
        let (run_id, mut session) = (resources.config.run_id, resources.acquire_session());
        let table = StreamTable { spec: &self.spec, schema: &self.schema, table: &self.table, run_id };
        let PreparedStream { target, staging, layout, mode, update, checkpoint, sequence, obsolete } =
            table.prepare(&mut session)?;
        resources.release_session(Some(session));
        resources.server_unreachable = false;
        // A new staging table does not exist yet.
        let retain_staging = staging.exists();
        Ok(ActiveStream {
            encoder: Encoder::new(layout, sequence, self.spec.generation.id),
            chunk: Chunk::default(),
            loader: Some(Box::new(TableLoader::new(target, staging, resources.total_replay_bytes.clone()))),
            loading: None,
            mode,
            update,
            checkpoint,
            obsolete,
            retain_staging,
        })
    }

    fn row_error(&self, error: &RowError) -> SinkError {
        let row = format!("a row of stream {:?} for table {:?}.{:?}", self.spec.name.key(), self.schema, self.table);
        SinkError::permanent(match error {
            RowError::Invalid(why) => format!("{row} is not JSON: {why}"),
            RowError::MissingKey(field) => {
                format!("{row} has no usable value for {field:?}, which is part of its primary key")
            }
        })
    }
}

impl ActiveStream {
    /// The loader. Waits until the loader thread returns it.
    fn loader(&mut self, resources: &mut Resources) -> Result<&mut TableLoader, SinkError> {
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

    /// Submits the chunk to the loader thread.
    fn send(&mut self, resources: &mut Resources) -> Result<(), SinkError> {
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
    fn flush(&mut self, resources: &mut Resources) -> Result<&mut TableLoader, SinkError> {
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

    /// Gives the loader what it needs for the chunk: columns, load mode, session.
    fn prepare_loader(&mut self, resources: &mut Resources) -> Result<(), SinkError> {
        self.encoder.seal(&mut self.chunk);
        let (has_rows, mode, update) = (self.chunk.rows > 0, self.mode, self.update);
        let known = self.loader(resources)?.columns.len();
        let added = self.encoder.layout.columns()[known..].to_vec();
        let loader = self.loader(resources)?;
        loader.columns.extend(added);
        if has_rows && loader.mode.is_none() {
            let is_direct =
                mode == WriteMode::Append && update == TargetUpdate::EachCommit && resources.register_transaction();
            loader.mode = Some(if is_direct { LoadMode::Direct } else { LoadMode::Staged });
        }
        if loader.session.is_none() {
            loader.session = Some(resources.acquire_session());
        }
        Ok(())
    }

    fn commit(&mut self, resources: &mut Resources) -> Result<(), SinkError> {
        let (key, cursor) = self.merge_columns();
        let loader = self.flush(resources)?;
        match loader.mode {
            Some(LoadMode::Direct) => {
                loader.commit_direct()?;
                resources.unregister_transaction();
            }
            Some(LoadMode::Staged) => {
                loader.with_tables(|table, target, columns, session| {
                    StagedRows { table, columns, key: &key, cursor: cursor.as_deref() }.merge(session, target)
                })?;
                loader.mode = None;
            }
            // The first commit creates the table even if there are no rows.
            None => loader.with_tables(|_, target, columns, session| {
                let subject = target.subject();
                target.ensure_columns(session, columns).map_err(|error| session.sink_error(&subject, &error))
            })?,
        }
        resources.release_session(loader.take_session());
        Ok(())
    }

    /// The columns of the key and of the cursor by which staged rows are merged.
    fn merge_columns(&self) -> (Vec<String>, Option<String>) {
        if self.mode == WriteMode::Append {
            return (Vec::new(), None);
        }
        let layout = &self.encoder.layout;
        let key = Some(layout.key_columns()).filter(|key| !key.is_empty());
        // If this run has had no row with them, an earlier one may have.
        (
            key.unwrap_or_else(|| self.checkpoint.key.clone()),
            layout.cursor_column().map(str::to_owned).or_else(|| self.checkpoint.cursor.clone()),
        )
    }

    /// Commits the rows so far to the generation table.
    fn save_checkpoint(&mut self, resources: &mut Resources) -> Result<(), SinkError> {
        self.flush(resources)?;
        let (key, cursor) = self.merge_columns();
        self.checkpoint =
            Checkpoint { rows: self.encoder.sequence(), key, cursor, generation: self.encoder.generation() };
        let (checkpoint, obsolete, run_id) = (self.checkpoint.clone(), self.obsolete.take(), resources.config.run_id);
        let loader = self.loader(resources)?;
        loader.with_tables(|staging, target, columns, session| {
            generation::save_checkpoint(session, target, (staging, columns), run_id, &checkpoint, obsolete.as_ref())
        })?;
        resources.release_session(loader.take_session());
        self.retain_staging = true;
        Ok(())
    }

    /// Replaces the generations below `minimum`, or all rows, with the staged ones.
    fn replace(&mut self, resources: &mut Resources, minimum: Option<i64>) -> Result<(), SinkError> {
        self.flush(resources)?;
        let ((key, cursor), obsolete) = (self.merge_columns(), self.obsolete.take());
        let loader = self.loader(resources)?;
        loader.with_tables(|staging, target, columns, session| {
            let mut columns = columns.to_vec();
            if staging.exists() {
                // Earlier runs may have added columns that this one does not know.
                let (schema, name) = (&staging.schema, &staging.name);
                let existing = session
                    .transaction(&target.subject(), |client| Ok(Table::inspect_staging(client, schema, name)?.1))?;
                columns = loadable_columns(existing);
            }
            let rows = StagedRows { table: staging, columns: &columns, key: &key, cursor: cursor.as_deref() };
            match minimum {
                Some(minimum) => rows.replace_generations(session, target, minimum, obsolete.as_ref()),
                None => rows.replace_all(session, target, obsolete.as_ref()),
            }
        })?;
        loader.mode = None;
        self.retain_staging = false;
        Ok(())
    }

    /// Moves the staged rows to the target if it has none. Returns whether it did. An existing generation table stays,
    /// because only a complete stream makes it obsolete.
    fn fill_if_empty(&mut self, resources: &mut Resources) -> Result<bool, SinkError> {
        self.flush(resources)?;
        let (key, cursor) = self.merge_columns();
        self.loader(resources)?.with_tables(|table, target, columns, session| {
            StagedRows { table, columns, key: &key, cursor: cursor.as_deref() }.fill_if_empty(session, target)
        })
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
            let mut session = loader.session.take().unwrap_or_else(|| resources.acquire_session());
            if loader.drop_staging(&mut session).is_err() {
                // The server may have closed an idle connection.
                session.disconnect();
                if let Err(error) = loader.drop_staging(&mut session) {
                    resources.server_unreachable = error.is_connection_lost();
                    let error = session.sink_error(&loader.target.subject(), &error);
                    tracing::warn!(%error, "cannot drop the staging table: the next run drops it");
                }
            }
            loader.session = Some(session);
        }
        resources.release_session(loader.session.take());
    }
}
