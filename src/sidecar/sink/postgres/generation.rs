//! Rows of a new generation, collected over several runs until the source has sent all of it.
//!
//! Until then readers see the old rows; at the end the new ones replace the generations that are obsolete (see
//! `staged_rows`). After a state was stored the source does not send the rows before it again, so they must outlive the
//! run. They start in a staging table. The first commit turns it into a *generation table*: it gets a name that no later
//! run takes for an orphan, and a comment with a [`Checkpoint`]. Each target has at most one generation table.
//!
//! The name contains the id of the run that owns the table. A run that takes it over renames it, so that a previous owner
//! that is still alive can no longer write to it.

use postgres::Client;
use serde::{Deserialize, Serialize};

use super::column::{Column, ExistingColumn, GENERATION, SEQUENCE};
use super::layout::Layout;
use super::merge_key::MergeKey;
use super::names::{qualified, quote};
use super::number::Fit;
use super::session::{Session, SessionError};
use super::table::{Table, run_id};
use super::types::ColumnType;
use super::value;

/// The committed contents of a generation table. Its comment holds it as JSON.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Rows up to this sequence number were committed; rows after it came after the last state.
    pub rows: u64,
    /// How to merge the rows.
    #[serde(flatten)]
    pub merge_key: MergeKey,
    /// The generation of the run that wrote it.
    pub generation: i64,
}

/// A generation table of an earlier run.
#[derive(Debug, Clone)]
pub struct PartialGeneration {
    schema: String,
    name: String,
    /// The run that owns it.
    run_id: Option<i64>,
    /// `None` if the comment was changed.
    checkpoint: Option<Checkpoint>,
}

/// A generation table that this run has taken over.
pub struct ResumedGeneration {
    /// It contains exactly the rows up to the checkpoint.
    pub table: Table,
    /// Its columns, without [`SEQUENCE`].
    pub columns: Vec<ExistingColumn>,
    /// The last checkpoint.
    pub checkpoint: Checkpoint,
}

impl PartialGeneration {
    /// Finds the generation table for a target.
    pub fn find(client: &mut Client, target: &Table) -> Result<Option<Self>, SessionError> {
        let prefix = target.generation_table_prefix();
        let found = client.query_opt(
            "SELECT c.relname::text, obj_description(c.oid, 'pg_class')
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE n.nspname = $1 AND c.relkind = 'r' AND starts_with(c.relname::text, $2) ORDER BY c.oid DESC LIMIT 1",
            &[&target.schema, &prefix],
        )?;
        Ok(found.map(|row| {
            let (name, comment): (String, Option<String>) = (row.get(0), row.get(1));
            let checkpoint = serde_json::from_str(&comment.unwrap_or_default()).ok();
            Self { schema: target.schema.clone(), run_id: run_id(&name, &prefix), checkpoint, name }
        }))
    }

    /// Whether it was written for this generation or a later one. True without a checkpoint.
    pub fn is_at_least(&self, minimum: i64) -> bool {
        self.checkpoint.as_ref().is_none_or(|checkpoint| checkpoint.generation >= minimum)
    }

    /// The statement that drops it.
    pub fn drop_statement(&self) -> String {
        format!("DROP TABLE IF EXISTS {};", qualified(&self.schema, &self.name))
    }

    /// Takes it over: deletes the rows after the checkpoint, and those of generations below `minimum`.
    pub fn take_over(
        &self,
        session: &mut Session,
        target: &Table,
        own_run_id: i64,
        minimum: i64,
    ) -> Result<ResumedGeneration, SessionError> {
        let table = qualified(&self.schema, &self.name);
        let Some(checkpoint) = &self.checkpoint else {
            return Err(SessionError::permanent(format!(
                "the comment of table {table}, which holds the rows of an unfinished refresh, is not a checkpoint: \
                 drop that table, and read the stream from scratch (without its state)"
            )));
        };
        if let Some(run_id) = self.run_id.filter(|run_id| *run_id != own_run_id) {
            terminate_sessions(session, run_id);
        }
        let own_name = target.generation_table_name(own_run_id);
        let rename = if own_name == self.name {
            String::new()
        } else {
            format!("ALTER TABLE {table} RENAME TO {};", quote(&own_name))
        };
        let statements = format!(
            "{rename}DELETE FROM {} WHERE {} > {} OR {}",
            qualified(&self.schema, &own_name),
            quote(SEQUENCE),
            checkpoint.rows,
            is_below(minimum)
        );
        session.transaction(|client| {
            client.batch_execute(&statements)?;
            let (mut table, columns) = Table::inspect_staging(client, &self.schema, &own_name)?;
            table.owner.clone_from(&target.owner);
            Ok(ResumedGeneration { table, columns, checkpoint: checkpoint.clone() })
        })
    }
}

/// Commits the staged rows: turns the staging table into the generation table, or updates its checkpoint, and executes
/// `drop_obsolete`. Without rows, too: then the checkpoint shows that the state belongs to this generation.
pub fn save_checkpoint(
    session: &mut Session,
    target: &Table,
    (staging, columns): (&mut Table, &[Column]),
    own_run_id: i64,
    checkpoint: &Checkpoint,
    drop_obsolete: &str,
) -> Result<(), SessionError> {
    let mut statements = drop_obsolete.to_owned();
    // A later run must find which field each of its columns belongs to.
    staging.owner.clone_from(&target.owner);
    statements.push_str(&staging.create_or_widen(columns).unwrap_or_default());
    let name = target.generation_table_name(own_run_id);
    if staging.name != name {
        statements.extend(["ALTER TABLE ", &staging.qualified_name(), " RENAME TO ", &quote(&name), ";"]);
    }
    let comment = serde_json::to_string(checkpoint)
        .map_err(|error| SessionError::permanent(format!("cannot serialize the checkpoint: {error}")))?;
    let (table, comment) = (qualified(&staging.schema, &name), comment.replace('\'', "''"));
    statements.extend(["COMMENT ON TABLE ", &table, " IS '", &comment, "';"]);
    session.execute(&statements)?;
    staging.record_columns(columns);
    staging.name = name;
    Ok(())
}

/// Whether a table has rows of generations below this one. Rows without a generation are of generation 0.
pub fn has_rows_below(client: &mut Client, target: &Table, minimum: i64) -> Result<bool, SessionError> {
    if !target.exists() {
        return Ok(false);
    }
    let condition = if target.has_column(GENERATION) { is_below(minimum) } else { "true".to_owned() };
    target.has_rows(client, &condition)
}

/// Whether a table has rows of this generation or later ones.
pub fn has_rows_from(client: &mut Client, target: &Table, minimum: i64) -> Result<bool, SessionError> {
    if !target.exists() || !target.has_column(GENERATION) {
        return Ok(false);
    }
    target.has_rows(client, &format!("NOT {}", is_below(minimum)))
}

/// The SQL condition for rows of generations below this one.
pub fn is_below(minimum: i64) -> String {
    format!("coalesce({}, 0) < {minimum}", quote(GENERATION))
}

/// Checks that the table's generation column can hold this generation.
pub fn check_column(layout: &Layout, generation: i64) -> Result<(), SessionError> {
    let column = layout.generation.map(|column| &layout.columns[column]);
    let can_hold = |column: &Column| {
        matches!(column.kind, ColumnType::Integer { .. } | ColumnType::Numeric { .. })
            && value::encode(column.kind, &generation.to_string(), &mut Vec::new()) == Fit::Exact
    };
    if generation == 0 || column.is_some_and(can_hold) {
        return Ok(());
    }
    let kind = column.map_or("unsupported type or generated", |column| column.sql_type.as_str());
    Err(SessionError::permanent(format!(
        "column {GENERATION:?} ({kind}) cannot hold generation {generation}: rename the column"
    )))
}

/// Terminates the sessions of an earlier run: its server processes may still be working, and if its machine is gone, they
/// stay until the server notices.
fn terminate_sessions(session: &mut Session, run_id: i64) {
    // Each of them holds an advisory lock whose key, the run id, is split into `classid` and `objid`.
    let query = "SELECT count(pg_terminate_backend(pid)) FROM pg_locks
         WHERE locktype = 'advisory' AND objsubid = 1 AND pid <> pg_backend_pid()
           AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
           AND (classid::bigint << 32 | objid::bigint) = $1";
    let terminated = session.retry(|session| Ok(session.client()?.query_one(query, &[&run_id])?));
    match terminated.map(|row| row.get::<_, i64>(0)) {
        Ok(0) => {}
        Ok(count) => session.warn(&format!("terminated {count} connections of an earlier run that was killed")),
        Err(error) => {
            let why = session.config.reason(&error);
            session.warn(&format!("cannot terminate the connections of an earlier run: {why}: waiting for them"));
        }
    }
}
