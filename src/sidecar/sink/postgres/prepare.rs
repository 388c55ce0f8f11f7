//! Prepares a stream for its first row: reads the definition of its table, resolves what earlier runs left, and decides
//! when the table is updated.

use postgres::Client;

use super::column::{Column, ExistingColumn, Widening};
use super::definition;
use super::generation::{self, Checkpoint, PartialGeneration, ResumedGeneration};
use super::layout::Layout;
use super::merge_key::MergeKey;
use super::ownership::TableOwner;
use super::session::{Session, SessionError};
use super::staged_rows::StagedRows;
use super::table::Table;
use super::text_habits;
use super::type_dependencies;
use super::types::ColumnType;
use crate::sidecar::sink::{Generation, StreamSpec, WriteMode};

/// When rows become visible in the target, and which rows they replace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetUpdate {
    /// At each commit.
    EachCommit,
    /// At the end; all other rows are replaced.
    ReplaceAll,
    /// At the end; rows of generations below `minimum` are replaced.
    ReplaceGenerations {
        /// The lowest generation that stays.
        minimum: i64,
        /// Committed rows outlive the run, in a generation table.
        resumable: bool,
    },
}

/// What the commits of a stream do.
pub struct CommitPlan {
    /// `Merge` without a usable key becomes `Append`.
    pub mode: WriteMode,
    /// When the target is updated.
    pub update: TargetUpdate,
    /// The columns of a primary key that the user has made: rows are merged by it once they have all of its columns.
    pub table_key: Option<Vec<String>>,
    /// The last checkpoint of the generation table.
    pub checkpoint: Checkpoint,
    /// The next commit with rows replaces all others.
    pub replaces_at_next_commit: bool,
    /// The statement that drops an obsolete generation table with the next commit; empty without one.
    pub drop_obsolete: String,
}

/// A stream that is ready for its first row.
pub struct PreparedStream {
    /// The table of the stream.
    pub target: Table,
    /// The staging table, or the generation table that this run resumes.
    pub staging: Table,
    /// The columns.
    pub layout: Layout,
    /// If staged rows are numbered: the number of the last row.
    pub sequence: Option<u64>,
    /// What commits do.
    pub plan: CommitPlan,
}

/// The table of a stream.
pub struct StreamTable<'s> {
    /// The stream.
    pub spec: &'s StreamSpec,
    /// The table's schema.
    pub schema: &'s str,
    /// The table's name.
    pub table: &'s str,
    /// The id of this run.
    pub run_id: i64,
}

impl StreamTable<'_> {
    /// Prepares the stream.
    pub fn prepare(&self, session: &mut Session) -> Result<PreparedStream, SessionError> {
        let generation = self.spec.generation;
        let (mut target, mut existing, mut partial) = self.inspect(session)?;
        if self.spec.mode != WriteMode::Replace
            && generation.minimum == 0
            && let Some(collected) = &partial
        {
            // No rows are obsolete any more: the collected ones count, and a state was stored after them.
            self.merge_collected(collected, session, &mut target)?;
            (target, existing, partial) = self.inspect(session)?;
        }
        let update = self.target_update(session, &target, partial.is_some())?;
        let resumable = matches!(update, TargetUpdate::ReplaceGenerations { resumable: true, .. });
        let mut resumed = None;
        if resumable && generation.resumes {
            match partial.take_if(|partial| partial.is_at_least(generation.minimum)) {
                Some(partial) => {
                    resumed = Some(partial.take_over(session, &target, self.run_id, generation.minimum)?);
                }
                None => self.check_state(session, &target)?,
            }
        }
        if let Some(ResumedGeneration { columns, .. }) = &mut resumed {
            // Rows are loaded into the generation table: if both tables have a column, its type there counts.
            for column in &mut *columns {
                let target = existing.iter().position(|other| other.name == column.name);
                let target = target.map(|at| existing.swap_remove(at));
                column.widening = match (&column.kind, &target) {
                    (Some(ColumnType::BIGINT), Some(target)) => target.widening.clone(),
                    (Some(ColumnType::BIGINT), None) => Widening::Allowed,
                    _ => Widening::None,
                };
                column.owner = column.owner.take().or(target.and_then(|target| target.owner));
            }
            existing.append(columns);
        }
        let layout = Layout::new(self.spec, existing);
        generation::check_column(&layout, generation.id)?;
        if let Some(problem) = layout.document_problem() {
            return Err(SessionError::permanent(problem));
        }
        let mode = self.write_mode(&layout, session);
        let replaces_at_next_commit = self.spec.replaces_at_first_commit && update == TargetUpdate::EachCommit;
        // A replacement drops it with the rows.
        if mode == WriteMode::Append && update == TargetUpdate::EachCommit && !replaces_at_next_commit {
            definition::drop_stale_key(session, &mut target, &[])?;
        }
        let sequenced = resumable || (mode != WriteMode::Append && layout.has_key());
        let (staging, checkpoint) = match resumed {
            Some(ResumedGeneration { table, checkpoint, .. }) => (table, checkpoint),
            None => (target.staging_table(self.run_id, sequenced), Checkpoint::default()),
        };
        let sequence = sequenced.then_some(checkpoint.rows);
        let drop_obsolete = partial.map(|partial| partial.drop_statement()).unwrap_or_default();
        let plan = CommitPlan {
            mode,
            update,
            table_key: target.other_primary_key(),
            checkpoint,
            replaces_at_next_commit,
            drop_obsolete,
        };
        Ok(PreparedStream { target, staging, layout, sequence, plan })
    }

    /// Whether the rows of this run replace all others.
    fn replaces_rows(&self) -> bool {
        self.spec.mode == WriteMode::Replace || self.spec.replaces_at_first_commit
    }

    fn inspect(
        &self,
        session: &mut Session,
    ) -> Result<(Table, Vec<ExistingColumn>, Option<PartialGeneration>), SessionError> {
        let mut orphans = Vec::new();
        let inspected = session.transaction(|client| {
            let (mut target, mut existing) = Table::inspect(client, self.schema, self.table)?;
            target.owner = Some(TableOwner::of(self.spec));
            target.check_owner()?;
            if target.exists() {
                let replaces = self.replaces_rows();
                type_dependencies::mark_columns(client, &target, &mut existing, replaces)?;
                if !replaces {
                    text_habits::mark_columns(client, &target, &mut existing)?;
                }
            }
            orphans = target.drop_orphaned_staging_tables(client, self.run_id)?;
            let partial = PartialGeneration::find(client, &target)?;
            Ok((target, existing, partial))
        })?;
        for (table, error) in orphans {
            let why = session.config.target.describe(&error);
            session.warn(&format!("cannot drop the staging table {table} of a killed run: {why}: drop it yourself"));
        }
        Ok(inspected)
    }

    fn target_update(
        &self,
        session: &mut Session,
        target: &Table,
        has_partial: bool,
    ) -> Result<TargetUpdate, SessionError> {
        let Generation { minimum, resumable, .. } = self.spec.generation;
        let has_rows_below = |client: &mut Client| generation::has_rows_below(client, target, minimum);
        Ok(if self.spec.mode == WriteMode::Replace {
            TargetUpdate::ReplaceAll
        } else if minimum > 0 && (has_partial || session.transaction(has_rows_below)?) {
            TargetUpdate::ReplaceGenerations { minimum, resumable }
        } else {
            TargetUpdate::EachCommit
        })
    }

    /// Rejects a state of an earlier generation: the source would not send rows again that are then deleted.
    fn check_state(&self, session: &mut Session, target: &Table) -> Result<(), SessionError> {
        let minimum = self.spec.generation.minimum;
        if session.transaction(|client| generation::has_rows_from(client, target, minimum))? {
            return Ok(());
        }
        Err(SessionError::permanent(format!(
            "the source would resume from a saved state, but no rows of generation {minimum} or later were loaded, and \
             earlier ones are to be deleted: read the stream from scratch (without its state)"
        )))
    }

    fn write_mode(&self, layout: &Layout, session: &Session) -> WriteMode {
        if self.spec.mode == WriteMode::Merge && !layout.has_key() {
            session.warn("the stream has no usable primary key: its rows are added, not merged");
            return WriteMode::Append;
        }
        self.spec.mode
    }

    /// Adds or merges the rows of a generation table to the target.
    fn merge_collected(
        &self,
        partial: &PartialGeneration,
        session: &mut Session,
        target: &mut Table,
    ) -> Result<(), SessionError> {
        let ResumedGeneration { table, columns, checkpoint } = partial.take_over(session, target, self.run_id, 0)?;
        let merge_key = if self.spec.mode == WriteMode::Merge { checkpoint.merge_key } else { MergeKey::default() };
        if merge_key.parts.is_empty() {
            definition::drop_stale_key(session, target, &[])?;
        }
        let columns = loadable_columns(columns);
        // The rows of earlier runs are not counted in this one.
        StagedRows::new(&table, &columns, &merge_key).merge(session, target, 0)?;
        session.execute(&format!("DROP TABLE IF EXISTS {}", table.qualified_name()))
    }
}

/// The columns that rows can be loaded into: all of them in a staging table.
pub fn loadable_columns(existing: Vec<ExistingColumn>) -> Vec<Column> {
    let column = |ExistingColumn { name, kind, sql_type, owner, .. }| {
        Some(Column {
            name,
            kind: kind?,
            sql_type,
            parses_text: false,
            is_inferred: false,
            widening: Widening::None,
            owner,
        })
    };
    existing.into_iter().filter_map(column).collect()
}
