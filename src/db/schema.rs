//! The tables of the wire contract: made where they are missing, looked over where they are there.
//!
//! Other programs make and use the same tables, so nothing that exists is changed, and what does not fit is told.

use postgres::types::Type;

use super::error::is_transient;
use super::pool::{Fault, Session};
use super::text::quote_ident;
use super::{Db, DbError};

/// What a column holds.
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

    /// Whether a type of the server takes the place of ours: any string type does for text.
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
    /// The existing sidecar names the constraint in its `ON CONFLICT`, so it has to be called `TABLE_pkey`.
    key: &'static [&'static str],
    indexes: &'static [Index],
}

struct Index {
    /// Each may end in ` DESC`.
    columns: &'static [&'static str],
    /// The rows that it is about have this `status`.
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

    /// Whether one that is there takes its place, whatever its name is.
    fn is(&self, found: &FoundIndex) -> bool {
        let condition = match (self.status, &found.condition) {
            (None, None) => true,
            // The server writes conditions in a form of its own, with the types of the columns.
            (Some(status), Some(condition)) => {
                condition.contains("status")
                    && condition.contains(&format!("= '{status}'"))
                    && !condition.contains("AND")
            }
            _ => false,
        };
        condition && found.starts_with(&self.plain_columns())
    }
}

/// The column that a `source_spec` of another program may lack.
const CONNECTOR_TYPE: &str = "connector_type";

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
    // Not of the contract: see `config`.
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
            // Not of the contract: what runs is asked for all the time, and is little among all that ever ran. No column
            // that a sign of life changes is in it, so that it costs those nothing.
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

/// Held while tables are made, so that two programs that start at the same time do not make them twice.
const ADVISORY_LOCK: i64 = 0x7379_6e63_6374_6c01;

/// A program that does not know our lock may make the same table in the same moment; then the next look finds it.
const CREATE_ATTEMPTS: usize = 5;

/// Whether a table of this name is one of the contract's.
pub fn is_reserved_table(table: &str) -> bool {
    TABLES.iter().any(|ours| ours.name == table)
}

impl Db {
    /// Makes sure that the tables are there and fit. Makes what is missing: the schema of the search path, tables with
    /// their keys, indexes.
    pub fn ensure_schema(&self) -> Result<(), DbError> {
        let mut attempt = 1;
        loop {
            match self.run("preparing the tables", ensure) {
                Err(DbError::ServerError { code: Some(code), .. })
                    if attempt < CREATE_ATTEMPTS && is_duplicate(&code) =>
                {
                    attempt += 1;
                }
                result => return result,
            }
        }
    }
}

/// Schema, table, object exists; and what a unique index of the server's own catalog says instead.
fn is_duplicate(code: &str) -> bool {
    ["42P06", "42P07", "42710", "23505"].contains(&code)
}

/// SQLSTATE `insufficient_privilege`.
const FORBIDDEN: &str = "42501";

fn ensure(session: &mut Session<'_>) -> Result<(), Fault> {
    let mut problems = Vec::new();
    let mut missing = Vec::new();
    for table in &TABLES {
        if !look_over(session, table, &mut problems)? {
            missing.push(table);
        }
    }
    if !missing.is_empty() {
        session.query("SELECT pg_advisory_xact_lock($1)", &[(&ADVISORY_LOCK, Type::INT8)])?;
        ensure_schema_of_path(session)?;
        for table in missing {
            // Somebody else may have made it while we waited for the lock.
            if !look_over(session, table, &mut problems)? {
                create(session, &create_table(table), &format!("table {}", table.name))?;
            }
        }
    }
    if !problems.is_empty() {
        return Err(misfit(session, problems.join("; ")));
    }
    TABLES.iter().try_for_each(|table| ensure_indexes(session, table))
}

fn misfit(session: &Session<'_>, problems: String) -> Fault {
    Fault::Own(DbError::SchemaMismatch { address: session.target().address(), problems })
}

fn create(session: &mut Session<'_>, sql: &str, what: &str) -> Result<(), Fault> {
    match session.batch(sql) {
        Err(error) if error.code().is_some_and(|code| code.code() == FORBIDDEN) => {
            let reason = session.target().describe(&error);
            Err(misfit(session, format!("{what} is missing and may not be created: {reason}")))
        }
        result => Ok(result?),
    }
}

/// The schema that the search path begins with: a name in the URL means it, and not the next one on the path.
fn ensure_schema_of_path(session: &mut Session<'_>) -> Result<(), Fault> {
    let Some(schema) = session.target().search_path().and_then(first_schema) else {
        return Ok(());
    };
    // Asked for first: CREATE SCHEMA IF NOT EXISTS needs the right to create even if there is nothing to create.
    let found =
        session.query_opt("SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = $1", &[(&schema, Type::TEXT)])?;
    if found.is_none() {
        let sql = format!("CREATE SCHEMA {}", quote_ident(&schema));
        create(session, &sql, &format!("schema {schema:?}"))?;
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

/// Whether a table is there. Notes what does not fit.
fn look_over(session: &mut Session<'_>, table: &Table, problems: &mut Vec<String>) -> Result<bool, Fault> {
    let privileges = session.query_opt(
        "SELECT array(SELECT p FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE']) AS p
                      WHERE NOT has_table_privilege(found, p))
         FROM to_regclass($1) AS found WHERE found IS NOT NULL",
        &[(&table.name, Type::TEXT)],
    )?;
    let Some(row) = privileges else { return Ok(false) };
    let name = table.name;
    let lacking: Vec<String> = row.try_get(0)?;
    if !lacking.is_empty() {
        problems.push(format!("table {name} does not allow this role to {}", lacking.join(", ")));
    }
    let found = session.query(
        "SELECT a.attname::text, t.typname::text, t.typcategory::text, a.attnotnull,
                a.atthasdef OR a.attidentity <> ''
         FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
         WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped",
        &[(&name, Type::TEXT)],
    )?;
    let found = found.iter().map(FoundColumn::read).collect::<Result<Vec<_>, _>>()?;
    problems.extend(compare_columns(table, &found));
    let typed = found.iter().any(|column| column.name == CONNECTOR_TYPE);
    let key: Vec<&str> = table.key.iter().copied().filter(|column| typed || *column != CONNECTOR_TYPE).collect();
    let unique = indexes(session, table)?.into_iter().any(|index| {
        index.unique
            && index.condition.is_none()
            && index.columns.len() == key.len()
            && key.iter().all(|column| index.has(column))
    });
    if !unique {
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

impl FoundColumn {
    fn read(row: &postgres::Row) -> Result<Self, postgres::Error> {
        Ok(Self {
            name: row.try_get(0)?,
            kind: row.try_get(1)?,
            category: row.try_get(2)?,
            not_null: row.try_get(3)?,
            has_default: row.try_get(4)?,
        })
    }
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
            problems.push(format!("column {name}.{} is unknown and demands a value", column.name));
        }
    }
    problems
}

struct FoundIndex {
    columns: Vec<String>,
    unique: bool,
    /// In the words of the server.
    condition: Option<String>,
}

impl FoundIndex {
    fn has(&self, column: &str) -> bool {
        self.columns.iter().any(|name| name == column)
    }

    fn starts_with(&self, columns: &[&str]) -> bool {
        self.columns.len() >= columns.len() && columns.iter().zip(&self.columns).all(|(wanted, name)| wanted == name)
    }
}

/// The indexes without expressions.
fn indexes(session: &mut Session<'_>, table: &Table) -> Result<Vec<FoundIndex>, postgres::Error> {
    let rows = session.query(
        "SELECT array(SELECT a.attname::text
                      FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k (num, position)
                      JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.num
                      WHERE k.position <= i.indnkeyatts ORDER BY k.position),
                i.indisunique AND i.indimmediate, pg_get_expr(i.indpred, i.indrelid)
         FROM pg_catalog.pg_index i
         WHERE i.indrelid = to_regclass($1) AND i.indisvalid AND i.indexprs IS NULL",
        &[(&table.name, Type::TEXT)],
    )?;
    rows.iter()
        .map(|row| Ok(FoundIndex { columns: row.try_get(0)?, unique: row.try_get(1)?, condition: row.try_get(2)? }))
        .collect()
}

/// Writers of a table wait while an index is made; of a table larger than this many bytes, too long.
const LARGEST_INDEXED: i64 = 64 << 20;
/// How long writers may be held up by our waiting for other writers.
const INDEX_LOCK_TIMEOUT: &str = "2s";

/// Makes missing indexes. They only make things fast, so it is no failure if that is not allowed.
fn ensure_indexes(session: &mut Session<'_>, table: &Table) -> Result<(), Fault> {
    if table.indexes.is_empty() {
        return Ok(());
    }
    let found = indexes(session, table)?;
    let size = session.query_opt("SELECT pg_relation_size(to_regclass($1))", &[(&table.name, Type::TEXT)])?;
    let size: i64 = size.map_or(Ok(0), |row| row.try_get(0))?;
    for wanted in table.indexes {
        if found.iter().any(|index| wanted.is(index)) {
            continue;
        }
        let (name, sql) = (wanted.name(table.name), wanted.ddl(table.name));
        if size > LARGEST_INDEXED {
            let (index, remedy) = (name, sql.replacen("INDEX", "INDEX CONCURRENTLY", 1));
            tracing::warn!(index, remedy, "an index is missing on a table that is too large to make it now");
            continue;
        }
        session.batch(&format!("SAVEPOINT making_index; SET LOCAL lock_timeout = '{INDEX_LOCK_TIMEOUT}'"))?;
        if let Err(error) = session.batch(&sql) {
            if is_transient(&error) {
                return Err(error.into());
            }
            let reason = session.target().describe(&error);
            // Not a warning: a role that does not own the table would read it at every start.
            tracing::debug!(index = name, reason, "an index is missing and cannot be made");
            session.batch("ROLLBACK TO SAVEPOINT making_index")?;
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
