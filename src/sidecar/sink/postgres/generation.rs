//! Rows of a new generation, collected over several runs until the source has sent all of it.
//!
//! Until then readers see the table as it was; at the end the collected rows take the place of the generations that are
//! obsolete (see `publish`). What the source need not send again, because a state after it was stored, has to outlive
//! the run. So it begins as any staging table does, and becomes a *collection* at the first commit: a table of another
//! name, which no later run takes for a leftover, with a comment that says up to which row it counts. There is at most
//! one for each table.
//!
//! The name holds the number of the run that owns it. A run that takes a collection over renames it, and whoever wrote
//! to it before, and may not know yet that it is dead, finds no table any more.

use postgres::Client;
use serde::{Deserialize, Serialize};

use super::layout::{Column, Existing, GENERATION, Layout, SEQUENCE};
use super::names::quote;
use super::number::Fit;
use super::session::{Session, Trouble};
use super::table::Table;
use super::types::ColumnType;
use super::value;
use crate::sidecar::sink::SinkError;

/// What is known of the rows of a collection.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Rows up to this number were committed; what is above came after the last state.
    pub rows: u64,
    /// Columns of the key by which they are to be merged; none: they are to be added.
    pub key: Vec<String>,
    /// The column of the cursor.
    pub cursor: Option<String>,
    /// Of the run that wrote it.
    pub generation: i64,
}

/// A collection that an earlier run left.
#[derive(Debug, Clone)]
pub struct Collection {
    schema: String,
    name: String,
    /// The run that owned it.
    run: Option<i64>,
    /// `None`: somebody changed the comment.
    mark: Option<Mark>,
}

/// A collection that is ours now.
pub struct Adopted {
    /// It has rows.
    pub table: Table,
    /// Its columns, save for the order of arrival.
    pub columns: Vec<Existing>,
    /// All rows are up to it.
    pub mark: Mark,
}

impl Collection {
    /// The collection for a table, if there is one.
    pub fn find(client: &mut Client, target: &Table) -> Result<Option<Self>, Trouble> {
        let prefix = target.collection_prefix();
        let found = client.query_opt(
            "SELECT c.relname::text, obj_description(c.oid, 'pg_class')
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE n.nspname = $1 AND c.relkind = 'r' AND starts_with(c.relname::text, $2) ORDER BY c.oid DESC LIMIT 1",
            &[&target.schema, &prefix],
        )?;
        let Some(found) = found else { return Ok(None) };
        let (name, comment): (String, Option<String>) = (found.get(0), found.get(1));
        let mark = serde_json::from_str(&comment.unwrap_or_default()).ok();
        let run = name.get(prefix.len()..prefix.len() + 16).and_then(|digits| u64::from_str_radix(digits, 16).ok());
        Ok(Some(Self { schema: target.schema.clone(), run: run.map(u64::cast_signed), mark, name }))
    }

    /// Whether it was written for this generation or a later one, as far as can be told.
    pub fn reaches(&self, minimum: i64) -> bool {
        self.mark.as_ref().is_none_or(|mark| mark.generation >= minimum)
    }

    /// The statement that drops it.
    pub fn drop_sql(&self) -> String {
        format!("DROP TABLE IF EXISTS {}.{};", quote(&self.schema), quote(&self.name))
    }

    /// Takes it over: what no state stands for goes, and so do generations below `minimum`.
    pub fn adopt(
        &self,
        session: &mut Session,
        target: &Table,
        own_run: i64,
        minimum: i64,
    ) -> Result<Adopted, SinkError> {
        let subject = format!("table {}.{}", quote(&self.schema), quote(&self.name));
        let Some(mark) = &self.mark else {
            let text = format!(
                "{subject}: its comment no longer tells which of its rows count: \
                 drop it, and read the stream from scratch (without its state)"
            );
            return Err(SinkError::permanent(text));
        };
        if let Some(run) = self.run.filter(|run| *run != own_run) {
            end_sessions(session, run);
        }
        let own_name = target.collection_name(own_run);
        let own = format!("{}.{}", quote(&self.schema), quote(&own_name));
        let take_over = if own_name == self.name {
            String::new()
        } else {
            format!("ALTER TABLE {}.{} RENAME TO {};", quote(&self.schema), quote(&self.name), quote(&own_name))
        };
        let trim = format!(
            "{take_over}DELETE FROM {own} WHERE {} > {} OR coalesce({}, 0) < {minimum}",
            quote(SEQUENCE),
            mark.rows,
            quote(GENERATION)
        );
        session.atomically(&subject, |client| {
            client.batch_execute(&trim)?;
            let (table, columns) = Table::inspect_staging(client, &self.schema, &own_name)?;
            Ok(Adopted { table, columns, mark: mark.clone() })
        })
    }
}

/// The rows so far count: makes the staging table a collection, or says how far it goes. `obsolete` goes with it. Also
/// when there are none: it tells that the state after them belongs to this generation.
pub fn keep(
    session: &mut Session,
    target: &Table,
    (staging, columns): (&mut Table, &[Column]),
    own_run: i64,
    mark: &Mark,
    obsolete: Option<&Collection>,
) -> Result<(), SinkError> {
    let mut statements = obsolete.map(Collection::drop_sql).unwrap_or_default();
    statements.push_str(&staging.missing(columns).unwrap_or_default());
    let name = target.collection_name(own_run);
    if staging.name != name {
        statements.extend(["ALTER TABLE ", &staging.quoted(), " RENAME TO ", &quote(&name), ";"]);
    }
    // Names of columns are cleaned: nothing in them but double quotes of JSON has a meaning.
    let mark = serde_json::to_string(mark).map_err(|error| SinkError {
        text: format!("noting how far {} goes: {error}", staging.subject()),
        transient: false,
    })?;
    let (schema, table, comment) = (quote(&staging.schema), quote(&name), mark.replace('\'', "''"));
    statements.extend(["COMMENT ON TABLE ", &schema, ".", &table, " IS '", &comment, "';"]);
    session.atomically(&target.subject(), |client| Ok(client.batch_execute(&statements)?))?;
    staging.has(columns);
    staging.name = name;
    Ok(())
}

/// Whether a table holds rows of generations below this one; what carries none is of generation 0.
pub fn any_below(client: &mut Client, target: &Table, minimum: i64) -> Result<bool, Trouble> {
    if !target.exists() {
        return Ok(false);
    }
    let condition = if target.has_column(GENERATION) { below(minimum) } else { "true".to_owned() };
    any(client, target, &condition)
}

/// Whether a table holds rows of this generation or later ones.
pub fn any_from(client: &mut Client, target: &Table, minimum: i64) -> Result<bool, Trouble> {
    if !target.exists() || !target.has_column(GENERATION) {
        return Ok(false);
    }
    any(client, target, &format!("NOT {}", below(minimum)))
}

/// The condition of a row of an earlier generation than this.
pub fn below(minimum: i64) -> String {
    format!("coalesce({}, 0) < {minimum}", quote(GENERATION))
}

/// Whether a table holds rows of which this is true.
pub fn any(client: &mut Client, target: &Table, condition: &str) -> Result<bool, Trouble> {
    let sql = format!("SELECT EXISTS (SELECT FROM {} WHERE {condition})", target.quoted());
    Ok(client.query_one(&sql, &[])?.get(0))
}

/// Checks that the column for generations can hold this one.
pub fn check_column(layout: &Layout, target: &Table, generation: i64) -> Result<(), SinkError> {
    let column = layout.generation().map(|column| &layout.columns()[column]);
    let fits = |column: &Column| {
        matches!(column.kind, ColumnType::Integer { .. } | ColumnType::Numeric { .. })
            && value::encode(column.kind, &generation.to_string(), &mut Vec::new()) == Fit::Exact
    };
    if generation == 0 || column.is_some_and(fits) {
        return Ok(());
    }
    let kind = column.map_or("a type that takes no values", |column| column.sql_type.as_str());
    let text = format!(
        "{}: column {GENERATION:?} is {kind} and cannot hold generation {generation}: rename it",
        target.subject()
    );
    Err(SinkError::permanent(text))
}

/// Ends what is left of a run: its server processes may be at work still for a moment, or, where its machine is gone,
/// until the server notices.
fn end_sessions(session: &mut Session, run: i64) {
    // Each of them holds an advisory lock of the run's number, whose halves are `classid` and `objid`.
    let sql = "SELECT count(pg_terminate_backend(pid)) FROM pg_locks
         WHERE locktype = 'advisory' AND objsubid = 1 AND pid <> pg_backend_pid()
           AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
           AND (classid::bigint << 32 | objid::bigint) = $1";
    let ended = session.persist("an earlier run", |session| Ok(session.client()?.query_one(sql, &[&run])?));
    match ended.map(|row| row.get::<_, i64>(0)) {
        Ok(0) => {}
        Ok(count) => tracing::warn!(count, "ended the connections of an earlier run that was killed"),
        Err(trouble) => {
            let why = session.error("an earlier run", &trouble).text;
            tracing::warn!(%why, "cannot end the connections of an earlier run: waiting for them");
        }
    }
}
