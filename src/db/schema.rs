//! The tables of the wire contract: created if missing, checked if present.
//!
//! Other programs create and use the same tables, so nothing that exists is changed, and what does not match is an error.

use postgres::types::Type;

use super::error::is_transient;
use super::pool::{Attempt, AttemptError, Transaction, text};
use super::text::{quote_ident, quote_literal};
use super::{Db, DbError};

/// A column of `source_spec` that earlier versions created, as part of its primary key.
pub(super) const CONNECTOR_TYPE: &str = "connector_type";

/// Columns that tables of older programs lack: the console has created them since January 2025.
const ADDED_COLUMNS: [(&str, &str); 2] = [("source_task", "metrics"), ("source_task", "error")];

/// The comment on a table that syncctl has created, which decides about its retention.
pub(super) const CREATED_BY: &str = "created by syncctl";

struct Table {
    name: &'static str,
    /// Definitions of columns, separated by `, `.
    columns: &'static str,
    /// The primary key. Its constraint must be named `TABLE_pkey`, as the Go sidecar uses the name in `ON CONFLICT`.
    key: &'static [&'static str],
    indexes: &'static [Index],
}

const TABLES: [Table; 6] = [
    Table {
        name: "source_spec",
        columns: "package TEXT NOT NULL, version TEXT NOT NULL, specs JSONB, \
                  timestamp TIMESTAMPTZ(3) NOT NULL DEFAULT CURRENT_TIMESTAMP, error TEXT",
        key: &["package", "version"],
        indexes: &[],
    },
    Table {
        name: "source_check",
        columns: "package TEXT NOT NULL, version TEXT NOT NULL, key TEXT NOT NULL, status TEXT NOT NULL, \
                  description TEXT, timestamp TIMESTAMPTZ(3) NOT NULL DEFAULT CURRENT_TIMESTAMP",
        key: &["key"],
        indexes: &[],
    },
    Table {
        name: "source_catalog",
        columns: "package TEXT NOT NULL, version TEXT NOT NULL, key TEXT NOT NULL, catalog JSONB, \
                  timestamp TIMESTAMPTZ(3) NOT NULL DEFAULT CURRENT_TIMESTAMP, status TEXT NOT NULL, description TEXT",
        key: &["package", "version", "key"],
        indexes: &[],
    },
    Table {
        name: "source_state",
        columns: "sync_id TEXT NOT NULL, stream TEXT NOT NULL, state JSONB NOT NULL, \
                  timestamp TIMESTAMPTZ(3) NOT NULL DEFAULT CURRENT_TIMESTAMP",
        key: &["sync_id", "stream"],
        indexes: &[],
    },
    Table {
        name: "source_task",
        columns: "sync_id TEXT NOT NULL, task_id TEXT NOT NULL, package TEXT NOT NULL, version TEXT NOT NULL, \
                  started_at TIMESTAMPTZ(3) NOT NULL DEFAULT CURRENT_TIMESTAMP, \
                  updated_at TIMESTAMPTZ(3) NOT NULL DEFAULT CURRENT_TIMESTAMP, started_by JSONB, \
                  status TEXT NOT NULL, description TEXT, metrics JSONB, error TEXT",
        key: &["task_id"],
        indexes: &[
            Index { columns: "sync_id", status: None },
            Index { columns: "started_at", status: None },
            Index { columns: "sync_id, started_at DESC", status: None },
            // Not part of the contract: running tasks are queried all the time and are few among all. Heartbeats change
            // no column of the index, so it does not slow them down.
            Index { columns: "sync_id", status: Some("RUNNING") },
        ],
    },
    Table {
        name: "task_log",
        columns: "id UUID NOT NULL, level TEXT NOT NULL, logger TEXT NOT NULL, message TEXT NOT NULL, \
                  sync_id TEXT NOT NULL, task_id TEXT NOT NULL, \
                  timestamp TIMESTAMPTZ(3) NOT NULL DEFAULT CURRENT_TIMESTAMP",
        key: &["id"],
        indexes: &[
            Index { columns: "sync_id", status: None },
            Index { columns: "task_id", status: None },
            Index { columns: "timestamp", status: None },
        ],
    },
];

struct Column {
    name: &'static str,
    kind: &'static str,
    nullable: bool,
}

impl Table {
    fn columns(&self) -> impl Iterator<Item = Column> {
        self.columns.split(", ").map(|definition| {
            let (name, definition) = definition.split_once(' ').unwrap_or((definition, ""));
            let kind = definition.split(' ').next().unwrap_or_default();
            Column { name, kind, nullable: !definition.contains("NOT NULL") }
        })
    }
}

struct Index {
    /// Names of columns, separated by `, `; each may end in ` DESC`.
    columns: &'static str,
    /// A partial index of the rows with this `status`.
    status: Option<&'static str>,
}

impl Index {
    fn column_names(&self) -> Vec<&'static str> {
        self.columns.split(", ").map(|column| column.trim_end_matches(" DESC")).collect()
    }

    fn name(&self, table: &str) -> String {
        let status = self.status.map(|status| format!("_{}", status.to_lowercase())).unwrap_or_default();
        format!("{table}_{}{status}_idx", self.column_names().join("_"))
    }

    fn ddl(&self, table: &str) -> String {
        let condition = self.status.map(|status| format!(" WHERE status = '{status}'")).unwrap_or_default();
        format!("CREATE INDEX IF NOT EXISTS {} ON {table} ({}){condition}", self.name(table), self.columns)
    }

    /// Whether an existing index serves as well, whatever its name.
    fn is_covered_by(&self, found: &FoundIndex) -> bool {
        let same_rows = match (self.status, &found.condition) {
            (None, None) => true,
            // The server adds the types of the columns to a condition.
            (Some(status), Some(condition)) => {
                condition.contains("status")
                    && condition.contains(&format!("= '{status}'"))
                    && !condition.contains("AND")
            }
            _ => false,
        };
        let columns = self.column_names();
        same_rows && found.columns.iter().take(columns.len()).eq(columns.iter())
    }
}

/// The advisory lock held while tables are created, so that two processes that start at the same time do not do it twice.
const ADVISORY_LOCK: i64 = 0x7379_6e63_6374_6c01;

/// A program that does not use our lock may create the same table at the same moment; the next attempt finds it.
const CREATE_ATTEMPTS: usize = 5;

/// SQLSTATEs of an object that exists: schema, table, other objects, and an entry in the server's catalog.
const DUPLICATE: [&str; 4] = ["42P06", "42P07", "42710", "23505"];

/// SQLSTATE `insufficient_privilege`.
const FORBIDDEN: &str = "42501";

/// Whether a table of this name belongs to the contract.
pub(super) fn is_contract_table(name: &str) -> bool {
    TABLES.iter().any(|table| table.name == name)
}

/// The tables of the contract: name, the columns that all versions have, key.
pub(super) fn contract_tables() -> impl Iterator<Item = (&'static str, Vec<&'static str>, &'static [&'static str])> {
    TABLES.iter().map(|table| {
        let is_in_all = |column: &&str| !ADDED_COLUMNS.contains(&(table.name, column));
        (table.name, table.columns().map(|column| column.name).filter(is_in_all).collect(), table.key)
    })
}

impl Db {
    /// Creates what is missing (the schema of the search path, tables with their keys, indexes), and checks the rest; then
    /// does the same for the [own schema](super::own_schema), without which a service works as well.
    pub fn ensure_schema(&self) -> Result<(), DbError> {
        self.create("create the tables", ensure)?;
        self.ensure_own_schema()
    }

    /// Runs an operation that creates objects. Another program may create one of them at the same moment.
    pub(super) fn create<T>(
        &self,
        action: &'static str,
        mut work: impl FnMut(&mut Transaction<'_>) -> Attempt<T>,
    ) -> Result<T, DbError> {
        let mut result = self.run(action, &mut work);
        for _ in 1..CREATE_ATTEMPTS {
            match &result {
                Err(DbError::ServerError { code: Some(code), .. }) if DUPLICATE.contains(&code.as_str()) => {}
                _ => break,
            }
            result = self.run(action, &mut work);
        }
        result
    }
}

fn ensure(tx: &mut Transaction<'_>) -> Attempt<()> {
    let mut problems = Vec::new();
    let mut missing = Vec::new();
    for table in &TABLES {
        if !check_table(tx, table, &mut problems)? {
            missing.push(table);
        }
    }
    if !missing.is_empty() {
        lock_creation(tx)?;
        ensure_schema_of_path(tx)?;
        for table in missing {
            // Another process may have created it before we got the lock.
            if !check_table(tx, table, &mut problems)? {
                let name = table.name;
                let comment = format!("COMMENT ON TABLE {name} IS {}", quote_literal(CREATED_BY));
                create(tx, &format!("{}; {comment}", create_table(table)), &format!("table {name}"))?;
            }
        }
    }
    if !problems.is_empty() {
        return Err(mismatch(tx, problems.join("; ")));
    }
    TABLES.iter().try_for_each(|table| ensure_indexes(tx, table))
}

/// Until the transaction ends, no other process of ours creates schemas or tables.
pub(super) fn lock_creation(tx: &mut Transaction<'_>) -> Attempt<()> {
    Ok(_ = tx.execute("SELECT pg_advisory_xact_lock($1)", &[(&ADVISORY_LOCK, Type::INT8)])?)
}

fn mismatch(tx: &Transaction<'_>, problems: String) -> AttemptError {
    AttemptError::Final(DbError::SchemaMismatch { address: tx.target.address(), problems })
}

fn create(tx: &mut Transaction<'_>, sql: &str, what: &str) -> Attempt<()> {
    match tx.batch(sql) {
        Err(error) if error.code().is_some_and(|code| code.code() == FORBIDDEN) => {
            let reason = tx.target.describe(&error);
            Err(mismatch(tx, format!("{what} is missing and may not be created: {reason}")))
        }
        result => Ok(result?),
    }
}

/// Creates the first schema of the search path, as tables must not land in the next one.
fn ensure_schema_of_path(tx: &mut Transaction<'_>) -> Attempt<()> {
    let Some(schema) = tx.target.search_path().and_then(first_schema) else { return Ok(()) };
    // CREATE SCHEMA IF NOT EXISTS needs the privilege even if the schema exists.
    let exists = "SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = $1";
    if !tx.exists(exists, &[text(&schema)])? {
        create(tx, &format!("CREATE SCHEMA {}", quote_ident(&schema)), &format!("schema {schema:?}"))?;
    }
    Ok(())
}

fn create_table(table: &Table) -> String {
    let Table { name, columns, key, .. } = table;
    format!("CREATE TABLE {name} ({columns}, CONSTRAINT {name}_pkey PRIMARY KEY ({}))", key.join(", "))
}

/// Whether a table exists. Adds what does not match to `problems`.
fn check_table(tx: &mut Transaction<'_>, table: &Table, problems: &mut Vec<String>) -> Attempt<bool> {
    let name = table.name;
    let denied = tx.row(
        "SELECT array(SELECT p FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE']) AS p
                      WHERE NOT has_table_privilege(found, p))
         FROM to_regclass($1) AS found WHERE found IS NOT NULL",
        &[text(&name)],
        |row| row.try_get::<_, Vec<String>>(0),
    )?;
    let Some(denied) = denied else { return Ok(false) };
    if !denied.is_empty() {
        problems.push(format!("table {name} does not allow this role to {}", denied.join(", ")));
    }
    let columns = tx.rows(
        "SELECT a.attname::text, t.typname::text, t.typcategory::text, a.attnotnull,
                a.atthasdef OR a.attidentity <> ''
         FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
         WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped",
        &[text(&name)],
        |row| {
            Ok(FoundColumn {
                name: row.try_get(0)?,
                kind: row.try_get(1)?,
                category: row.try_get(2)?,
                not_null: row.try_get(3)?,
                has_default: row.try_get(4)?,
            })
        },
    )?;
    problems.extend(compare_columns(table, &columns));
    let typed = name == "source_spec" && columns.iter().any(|column| column.name == CONNECTOR_TYPE);
    let key: Vec<&str> = table.key.iter().copied().chain(typed.then_some(CONNECTOR_TYPE)).collect();
    if !has_key(&find_indexes(tx, name)?, &key) {
        problems.push(format!("table {name} has no primary key over {}", key.join(", ")));
    }
    Ok(true)
}

/// Whether one of the indexes is a unique one over exactly these columns.
pub(super) fn has_key(indexes: &[FoundIndex], key: &[&str]) -> bool {
    indexes.iter().any(|index| {
        index.unique
            && index.condition.is_none()
            && index.columns.len() == key.len()
            && index.columns.iter().all(|column| key.contains(&column.as_str()))
    })
}

struct FoundColumn {
    name: String,
    kind: String,
    category: String,
    not_null: bool,
    has_default: bool,
}

fn compare_columns(table: &Table, found: &[FoundColumn]) -> Vec<String> {
    let mut problems = Vec::new();
    let table_name = table.name;
    for Column { name, kind, nullable } in table.columns() {
        match found.iter().find(|column| column.name == name) {
            None if ADDED_COLUMNS.contains(&(table_name, name)) => {}
            None => problems.push(format!("table {table_name} lacks column {name} {kind}")),
            Some(column) => {
                if !accepts(kind, column) {
                    let found = &column.kind;
                    problems.push(format!("column {table_name}.{name} is of type {found} instead of {kind}"));
                }
                if nullable && column.not_null {
                    problems.push(format!("column {table_name}.{name} does not allow NULL"));
                }
            }
        }
    }
    for FoundColumn { name, .. } in found.iter().filter(|column| column.not_null && !column.has_default) {
        if table.columns().all(|column| column.name != name) {
            problems.push(format!("column {table_name}.{name} is unknown and requires a value"));
        }
    }
    problems
}

/// Whether an existing column may take the place of one of a type: any string type serves for text.
fn accepts(kind: &str, found: &FoundColumn) -> bool {
    match kind {
        "TEXT" => found.category == "S",
        "TIMESTAMPTZ(3)" => found.kind == "timestamptz",
        kind => kind.eq_ignore_ascii_case(&found.kind),
    }
}

pub(super) struct FoundIndex {
    columns: Vec<String>,
    unique: bool,
    /// In the server's spelling.
    condition: Option<String>,
}

/// The indexes of a table, without those on expressions.
pub(super) fn find_indexes(tx: &mut Transaction<'_>, table: &str) -> Attempt<Vec<FoundIndex>> {
    tx.rows(
        "SELECT array(SELECT a.attname::text
                      FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k (num, position)
                      JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.num
                      WHERE k.position <= i.indnkeyatts ORDER BY k.position),
                i.indisunique AND i.indimmediate, pg_get_expr(i.indpred, i.indrelid)
         FROM pg_catalog.pg_index i
         WHERE i.indrelid = to_regclass($1) AND i.indisvalid AND i.indexprs IS NULL",
        &[text(&table)],
        |row| Ok(FoundIndex { columns: row.try_get(0)?, unique: row.try_get(1)?, condition: row.try_get(2)? }),
    )
}

/// The largest table, in bytes, that gets missing indexes: writers wait while an index is created.
const MAX_INDEXED_SIZE: i64 = 64 << 20;
/// How long the creation of an index may wait for writers, since further writers queue behind it.
const INDEX_LOCK_TIMEOUT: &str = "2s";

/// Creates missing indexes. They only serve speed, so a missing privilege is no error.
fn ensure_indexes(tx: &mut Transaction<'_>, table: &Table) -> Attempt<()> {
    if table.indexes.is_empty() {
        return Ok(());
    }
    let found = find_indexes(tx, table.name)?;
    let size = tx.row("SELECT pg_relation_size(to_regclass($1))", &[text(&table.name)], |row| row.try_get(0))?;
    for wanted in table.indexes.iter().filter(|wanted| !found.iter().any(|index| wanted.is_covered_by(index))) {
        let (index, sql) = (wanted.name(table.name), wanted.ddl(table.name));
        if size.unwrap_or(0) > MAX_INDEXED_SIZE {
            let remedy = sql.replacen("INDEX", "INDEX CONCURRENTLY", 1);
            tracing::warn!(index, remedy, "an index is missing, and the table is too large to create it now");
            continue;
        }
        tx.batch(&format!("SAVEPOINT before_index; SET LOCAL lock_timeout = '{INDEX_LOCK_TIMEOUT}'"))?;
        if let Err(error) = tx.batch(&sql) {
            if is_transient(&error) {
                return Err(error.into());
            }
            let reason = tx.target.describe(&error);
            // Not a warning: a role that does not own the table would get it at every start.
            tracing::debug!(index, reason, "an index is missing and cannot be created");
            tx.batch("ROLLBACK TO SAVEPOINT before_index")?;
        }
    }
    Ok(())
}

/// The first schema of a search path, where new tables are created. `None` for `"$user"`.
pub(super) fn first_schema(path: &str) -> Option<String> {
    let path = path.trim();
    let name = match path.strip_prefix('"') {
        Some(quoted) => {
            let mut name = String::new();
            let mut chars = quoted.chars().peekable();
            while let Some(c) = chars.next() {
                if c == '"' && chars.next_if_eq(&'"').is_none() {
                    break;
                }
                name.push(c);
            }
            name
        }
        None => path.split(',').next()?.trim().to_lowercase(),
    };
    (!name.is_empty() && name != "$user").then_some(name)
}

#[cfg(test)]
mod tests {
    use super::first_schema;

    #[test]
    fn tables_are_created_in_the_first_schema_of_the_search_path() {
        for (path, expected) in [
            ("bulker", Some("bulker")),
            ("Bulker, public", Some("bulker")),
            ("\"newJitsu\"", Some("newJitsu")),
            ("\"a\"\"b,c\",d", Some("a\"b,c")),
            ("\"$user\", public", None),
            ("$user", None),
        ] {
            assert_eq!(first_schema(path).as_deref(), expected, "{path}");
        }
    }
}
