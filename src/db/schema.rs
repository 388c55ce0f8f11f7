//! The tables of the wire contract: created if missing, checked if present.
//!
//! Other programs create and use the same tables, so nothing that exists is changed, and what does not match is an error.

use postgres::types::Type;

use super::error::is_transient;
use super::pool::{Attempt, AttemptError, Transaction, text as text_param};
use super::text::quote_ident;
use super::{Db, DbError};

/// The type of a column.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Json,
    Time,
    Uuid,
}

impl Kind {
    fn ddl(self) -> &'static str {
        match self {
            Self::Text => "TEXT",
            Self::Json => "JSONB",
            Self::Time => "TIMESTAMPTZ(3)",
            Self::Uuid => "UUID",
        }
    }

    /// Whether a column may have a type of the server: any string type for text.
    fn accepts(self, name: &str, category: &str) -> bool {
        match self {
            Self::Text => category == "S",
            Self::Json => name == "jsonb",
            Self::Time => name == "timestamptz",
            Self::Uuid => name == "uuid",
        }
    }
}

struct Column {
    name: &'static str,
    kind: Kind,
    nullable: bool,
    default: Option<&'static str>,
}

const fn text(name: &'static str) -> Column {
    Column { name, kind: Kind::Text, nullable: false, default: None }
}

const fn time(name: &'static str) -> Column {
    Column { name, kind: Kind::Time, nullable: false, default: Some("CURRENT_TIMESTAMP") }
}

const fn nullable(name: &'static str, kind: Kind) -> Column {
    Column { name, kind, nullable: true, default: None }
}

struct Table {
    name: &'static str,
    columns: &'static [Column],
    /// The primary key. Its constraint must be named `TABLE_pkey`, as the Go sidecar uses the name in `ON CONFLICT`.
    key: &'static [&'static str],
    indexes: &'static [Index],
}

struct Index {
    /// Each may end in ` DESC`.
    columns: &'static [&'static str],
    /// A partial index of the rows with this `status`.
    status: Option<&'static str>,
}

const fn index(columns: &'static [&'static str]) -> Index {
    Index { columns, status: None }
}

impl Index {
    fn plain_columns(&self) -> Vec<&'static str> {
        self.columns.iter().map(|column| column.trim_end_matches(" DESC")).collect()
    }

    fn name(&self, table: &str) -> String {
        let status = self.status.map(|status| format!("_{}", status.to_lowercase())).unwrap_or_default();
        format!("{table}_{}{status}_idx", self.plain_columns().join("_"))
    }

    fn ddl(&self, table: &str) -> String {
        let condition = self.status.map(|status| format!(" WHERE status = '{status}'")).unwrap_or_default();
        let (name, columns) = (self.name(table), self.columns.join(", "));
        format!("CREATE INDEX IF NOT EXISTS {name} ON {table} ({columns}){condition}")
    }

    /// Whether an existing index serves as well, whatever its name.
    fn is_covered_by(&self, found: &FoundIndex) -> bool {
        let condition = match (self.status, &found.condition) {
            (None, None) => true,
            // The server adds the types of the columns to a condition.
            (Some(status), Some(condition)) => {
                condition.contains("status")
                    && condition.contains(&format!("= '{status}'"))
                    && !condition.contains("AND")
            }
            _ => false,
        };
        let columns = self.plain_columns();
        condition && found.columns.len() >= columns.len() && columns.iter().zip(&found.columns).all(|(a, b)| a == b)
    }
}

/// A column of `source_spec` that other programs do not create.
pub(super) const CONNECTOR_TYPE: &str = "connector_type";

const TABLES: [Table; 7] = [
    Table {
        name: "source_spec",
        columns: &[
            text("package"),
            text("version"),
            nullable("specs", Kind::Json),
            time("timestamp"),
            nullable("error", Kind::Text),
            Column { name: CONNECTOR_TYPE, kind: Kind::Text, nullable: false, default: Some("'airbyte'") },
        ],
        key: &["package", "version", CONNECTOR_TYPE],
        indexes: &[],
    },
    Table {
        name: "source_check",
        columns: &[
            text("package"),
            text("version"),
            text("key"),
            text("status"),
            nullable("description", Kind::Text),
            time("timestamp"),
        ],
        key: &["key"],
        indexes: &[],
    },
    Table {
        name: "source_catalog",
        columns: &[
            text("package"),
            text("version"),
            text("key"),
            nullable("catalog", Kind::Json),
            time("timestamp"),
            text("status"),
            nullable("description", Kind::Text),
        ],
        key: &["package", "version", "key"],
        indexes: &[],
    },
    Table {
        name: "source_state",
        columns: &[
            text("sync_id"),
            text("stream"),
            Column { name: "state", kind: Kind::Json, nullable: false, default: None },
            time("timestamp"),
        ],
        key: &["sync_id", "stream"],
        indexes: &[],
    },
    // Not part of the contract: see `config`.
    Table {
        name: "source_config",
        columns: &[
            text("sync_id"),
            text("package"),
            text("given"),
            Column { name: "config", kind: Kind::Json, nullable: false, default: None },
            time("timestamp"),
        ],
        key: &["sync_id"],
        indexes: &[],
    },
    Table {
        name: "source_task",
        columns: &[
            text("sync_id"),
            text("task_id"),
            text("package"),
            text("version"),
            time("started_at"),
            time("updated_at"),
            nullable("started_by", Kind::Json),
            text("status"),
            nullable("description", Kind::Text),
            nullable("metrics", Kind::Json),
            nullable("error", Kind::Text),
        ],
        key: &["task_id"],
        indexes: &[
            index(&["sync_id"]),
            index(&["started_at"]),
            index(&["sync_id", "started_at DESC"]),
            // Not part of the contract: running tasks are queried all the time and are few among all. Heartbeats change
            // no column of the index, so it does not slow them down.
            Index { columns: &["sync_id"], status: Some("RUNNING") },
        ],
    },
    Table {
        name: "task_log",
        columns: &[
            Column { name: "id", kind: Kind::Uuid, nullable: false, default: None },
            text("level"),
            text("logger"),
            text("message"),
            text("sync_id"),
            text("task_id"),
            time("timestamp"),
        ],
        key: &["id"],
        indexes: &[index(&["sync_id"]), index(&["task_id"]), index(&["timestamp"])],
    },
];

/// The advisory lock held while tables are created, so that two processes that start at the same time do not do it twice.
const ADVISORY_LOCK: i64 = 0x7379_6e63_6374_6c01;

/// A program that does not use our lock may create the same table at the same moment; the next attempt finds it.
const CREATE_ATTEMPTS: usize = 5;

/// SQLSTATEs of an object that exists: schema, table, other objects, and an entry in the server's catalog.
const DUPLICATE: [&str; 4] = ["42P06", "42P07", "42710", "23505"];

/// SQLSTATE `insufficient_privilege`.
const FORBIDDEN: &str = "42501";

/// Whether a table of this name belongs to the contract.
pub fn is_reserved_table(name: &str) -> bool {
    TABLES.iter().any(|table| table.name == name)
}

impl Db {
    /// Creates what is missing (the schema of the search path, tables with their keys, indexes), and checks the rest.
    pub fn ensure_schema(&self) -> Result<(), DbError> {
        let mut result = self.run("create the tables", ensure);
        for _ in 1..CREATE_ATTEMPTS {
            match &result {
                Err(DbError::ServerError { code: Some(code), .. }) if DUPLICATE.contains(&code.as_str()) => {}
                _ => break,
            }
            result = self.run("create the tables", ensure);
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
        tx.execute("SELECT pg_advisory_xact_lock($1)", &[(&ADVISORY_LOCK, Type::INT8)])?;
        ensure_schema_of_path(tx)?;
        for table in missing {
            // Another process may have created it before we got the lock.
            if !check_table(tx, table, &mut problems)? {
                create(tx, &create_table(table), &format!("table {}", table.name))?;
            }
        }
    }
    if !problems.is_empty() {
        return Err(mismatch(tx, problems.join("; ")));
    }
    TABLES.iter().try_for_each(|table| ensure_indexes(tx, table))
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
    if !tx.exists(exists, &[text_param(&schema)])? {
        create(tx, &format!("CREATE SCHEMA {}", quote_ident(&schema)), &format!("schema {schema:?}"))?;
    }
    Ok(())
}

fn create_table(table: &Table) -> String {
    let mut lines: Vec<String> = table
        .columns
        .iter()
        .map(|column| {
            let null = if column.nullable { "" } else { " NOT NULL" };
            let default = column.default.map(|value| format!(" DEFAULT {value}")).unwrap_or_default();
            format!("{} {}{null}{default}", column.name, column.kind.ddl())
        })
        .collect();
    lines.push(format!("CONSTRAINT {}_pkey PRIMARY KEY ({})", table.name, table.key.join(", ")));
    format!("CREATE TABLE {} ({})", table.name, lines.join(", "))
}

/// Whether a table exists. Adds what does not match to `problems`.
fn check_table(tx: &mut Transaction<'_>, table: &Table, problems: &mut Vec<String>) -> Attempt<bool> {
    let name = table.name;
    let denied = tx.row(
        "SELECT array(SELECT p FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE']) AS p
                      WHERE NOT has_table_privilege(found, p))
         FROM to_regclass($1) AS found WHERE found IS NOT NULL",
        &[text_param(&name)],
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
        &[text_param(&name)],
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
    let typed = columns.iter().any(|column| column.name == CONNECTOR_TYPE);
    let key: Vec<&str> = table.key.iter().copied().filter(|column| typed || *column != CONNECTOR_TYPE).collect();
    let has_key = find_indexes(tx, table)?.iter().any(|index| {
        index.unique
            && index.condition.is_none()
            && index.columns.len() == key.len()
            && index.columns.iter().all(|column| key.contains(&column.as_str()))
    });
    if !has_key {
        problems.push(format!("table {name} has no primary key over {}", key.join(", ")));
    }
    Ok(true)
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
    let name = table.name;
    for wanted in table.columns {
        let Some(column) = found.iter().find(|column| column.name == wanted.name) else {
            if wanted.name != CONNECTOR_TYPE {
                problems.push(format!("table {name} lacks column {} {}", wanted.name, wanted.kind.ddl()));
            }
            continue;
        };
        if !wanted.kind.accepts(&column.kind, &column.category) {
            let (is, should) = (&column.kind, wanted.kind.ddl());
            problems.push(format!("column {name}.{} is of type {is} instead of {should}", wanted.name));
        }
        if wanted.nullable && column.not_null {
            problems.push(format!("column {name}.{} does not allow NULL", wanted.name));
        }
    }
    for column in found.iter().filter(|column| column.not_null && !column.has_default) {
        if !table.columns.iter().any(|wanted| wanted.name == column.name) {
            problems.push(format!("column {name}.{} is unknown and requires a value", column.name));
        }
    }
    problems
}

struct FoundIndex {
    columns: Vec<String>,
    unique: bool,
    /// In the server's spelling.
    condition: Option<String>,
}

/// The indexes of a table, without those on expressions.
fn find_indexes(tx: &mut Transaction<'_>, table: &Table) -> Attempt<Vec<FoundIndex>> {
    tx.rows(
        "SELECT array(SELECT a.attname::text
                      FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k (num, position)
                      JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.num
                      WHERE k.position <= i.indnkeyatts ORDER BY k.position),
                i.indisunique AND i.indimmediate, pg_get_expr(i.indpred, i.indrelid)
         FROM pg_catalog.pg_index i
         WHERE i.indrelid = to_regclass($1) AND i.indisvalid AND i.indexprs IS NULL",
        &[text_param(&table.name)],
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
    let found = find_indexes(tx, table)?;
    let size = tx.row("SELECT pg_relation_size(to_regclass($1))", &[text_param(&table.name)], |row| row.try_get(0))?;
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
fn first_schema(path: &str) -> Option<String> {
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
