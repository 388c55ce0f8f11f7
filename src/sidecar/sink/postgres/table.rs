//! Tables: their definition, and the DDL that creates or widens them.
//!
//! Existing tables are only changed by adding columns, and by adding or dropping keys whose name marks them as ours.

use std::collections::{HashMap, HashSet};

use postgres::Client;

use super::column::{Column, ExistingColumn, GENERATION, SEQUENCE, TIMESTAMP, UNMAPPED, Widening};
use super::merge_key::KeyPart;
use super::names::{self, qualified, quote};
use super::ownership::{ColumnOwner, MARKS, Marks, TableOwner};
use super::session::SessionError;
use super::types::ColumnType;

/// The name prefix of keys that this or the existing implementation created.
pub const OWN_KEY_PREFIX: &str = "jitsu_pk_";
/// The name prefix of staging tables.
const STAGING_PREFIX: &str = "_syncctl";
/// The comment of tables that this program creates: their texts are as the source sent them.
const OWN_COMMENT: &str = "created by syncctl";
/// The first key of advisory locks by which runs take turns at a schema or table.
const RUN_LOCK_CLASS: i32 = 0x5359_4e43;
/// Hexadecimal digits of the run id in names of staging tables.
const RUN_ID_DIGITS: usize = 16;

/// A unique index.
#[derive(Debug, Clone)]
struct UniqueKey {
    name: String,
    primary: bool,
    /// Whether `ON CONFLICT` can use it: it is valid, immediate, and not partial.
    is_arbiter: bool,
    has_expressions: bool,
    columns: HashSet<String>,
}

impl UniqueKey {
    fn is_on(&self, columns: &[String]) -> bool {
        !self.has_expressions
            && self.columns.len() == columns.len()
            && columns.iter().all(|column| self.columns.contains(column))
    }

    fn is_own(&self) -> bool {
        self.name.starts_with(OWN_KEY_PREFIX)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Existence {
    NoSchema,
    NoTable,
    /// It has no pages, and so no rows.
    WithoutPages,
    /// It may have rows.
    Exists,
    /// It may have rows, in partitions.
    Partitioned,
}

/// A table of the destination, which may not exist yet.
#[derive(Debug, Clone)]
pub struct Table {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    existence: Existence,
    /// The type of each column.
    columns: HashMap<String, String>,
    keys: Vec<UniqueKey>,
    /// A key could not be added, so that further commits do not try again.
    pub key_failed: bool,
    /// A staging table with the column [`SEQUENCE`].
    sequenced: bool,
    /// Its comment says that this program has created it.
    is_own: bool,
    /// The stream that it gets marks of: not with a staging table.
    pub owner: Option<TableOwner>,
    marks: Marks,
}

impl Table {
    fn new(schema: &str, name: &str, existence: Existence) -> Self {
        Self {
            schema: schema.to_owned(),
            name: name.to_owned(),
            existence,
            columns: HashMap::new(),
            keys: Vec::new(),
            key_failed: false,
            sequenced: false,
            is_own: false,
            owner: None,
            marks: Marks::default(),
        }
    }

    /// Whether this program has created it.
    pub fn is_own(&self) -> bool {
        self.is_own
    }

    /// Reads the definition of a table, and its columns.
    pub fn inspect(client: &mut Client, schema: &str, name: &str) -> Result<(Self, Vec<ExistingColumn>), SessionError> {
        let schema_exists = client.query_opt("SELECT 1 FROM pg_namespace WHERE nspname = $1", &[&schema])?.is_some();
        let found = client.query_opt(
            &format!(
                "SELECT c.oid, c.relkind::text, obj_description(c.oid, 'pg_class'), {MARKS}, pg_relation_size(c.oid) > 0
                 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relname = $2"
            ),
            &[&schema, &name],
        )?;
        let existence = match (&found, schema_exists) {
            (Some(found), _) if found.get::<_, &str>(1) == "p" => Existence::Partitioned,
            // Null for a table that was dropped meanwhile.
            (Some(found), _) if found.get::<_, Option<bool>>(4) == Some(false) => Existence::WithoutPages,
            (Some(_), _) => Existence::Exists,
            (None, true) => Existence::NoTable,
            (None, false) => Existence::NoSchema,
        };
        let mut table = Self::new(schema, name, existence);
        let Some(found) = found else { return Ok((table, Vec::new())) };
        let (oid, kind): (u32, String) = (found.get(0), found.get(1));
        if !matches!(kind.as_str(), "r" | "p") {
            return Err(SessionError::permanent("a relation of this name exists and is not a table"));
        }
        table.is_own = found.get::<_, Option<String>>(2).is_some_and(|comment| comment.starts_with(OWN_COMMENT));
        let (numbers, mut columns) = existing_columns(client, oid)?;
        table.marks = Marks::parse(found.get(3), &numbers);
        for column in &mut columns {
            column.owner = table.marks.columns.get(&column.name).cloned();
        }
        table.columns = columns.iter().map(|column| (column.name.clone(), column.sql_type.clone())).collect();
        table.keys = unique_keys(client, oid)?;
        Ok((table, columns))
    }

    /// Reads the definition of a staging table, and its columns without [`SEQUENCE`].
    pub fn inspect_staging(
        client: &mut Client,
        schema: &str,
        name: &str,
    ) -> Result<(Self, Vec<ExistingColumn>), SessionError> {
        let (table, mut columns) = Self::inspect(client, schema, name)?;
        columns.retain(|column| column.name != SEQUENCE);
        Ok((Self { sequenced: true, ..table }, columns))
    }

    /// A new staging table for this table.
    pub fn staging_table(&self, run_id: i64, sequenced: bool) -> Self {
        let existence = if self.existence == Existence::NoSchema { Existence::NoSchema } else { Existence::NoTable };
        let name = self.name_for_run(&self.staging_prefix(), run_id);
        Self { sequenced, ..Self::new(&self.schema, &name, existence) }
    }

    /// The name of the generation table for this table. No run takes it for an orphaned staging table, because the part
    /// after [`staging_prefix`](Self::staging_prefix) is not a hexadecimal number.
    pub fn generation_table_name(&self, run_id: i64) -> String {
        self.name_for_run(&self.generation_table_prefix(), run_id)
    }

    /// The prefix of that name, for any run.
    pub fn generation_table_prefix(&self) -> String {
        format!("{}gen", self.staging_prefix())
    }

    fn is_staging(&self) -> bool {
        self.name.starts_with(STAGING_PREFIX)
    }

    fn staging_prefix(&self) -> String {
        format!("{STAGING_PREFIX}_{}_", names::short_hash(&self.name))
    }

    fn name_for_run(&self, prefix: &str, run_id: i64) -> String {
        let mut name = format!("{prefix}{run_id:0RUN_ID_DIGITS$x}_{}", self.name);
        names::truncate(&mut name, names::MAX_BYTES);
        name
    }

    /// Its name in SQL.
    pub fn qualified_name(&self) -> String {
        qualified(&self.schema, &self.name)
    }

    /// Whether it exists.
    pub fn exists(&self) -> bool {
        !matches!(self.existence, Existence::NoSchema | Existence::NoTable)
    }

    /// Whether it has a column of this name.
    pub fn has_column(&self, name: &str) -> bool {
        self.columns.contains_key(name)
    }

    /// The names of its columns.
    pub fn column_names(&self) -> impl Iterator<Item = &String> {
        self.columns.keys()
    }

    /// Whether it has rows that match a condition. It must exist.
    pub fn has_rows(&self, client: &mut Client, condition: &str) -> Result<bool, SessionError> {
        let query = format!("SELECT EXISTS (SELECT FROM {} WHERE {condition})", self.qualified_name());
        Ok(client.query_one(&query, &[])?.get(0))
    }

    /// The statements that create the table, or add missing columns and marks; `None` if it has all of them.
    pub fn create_or_widen(&self, columns: &[Column]) -> Option<String> {
        let (statements, marks) = (self.create_or_add(columns), self.add_marks(columns));
        if statements.is_none() { marks } else { Some(statements.into_iter().chain(marks).collect()) }
    }

    fn add_marks(&self, columns: &[Column]) -> Option<String> {
        let (owner, columns) = (self.owner.as_ref()?, owned_columns(columns));
        self.marks.lacks(&columns).then(|| self.marks.add(&self.schema, &self.name, owner, &columns))
    }

    fn create_or_add(&self, columns: &[Column]) -> Option<String> {
        let missing = columns.iter().filter(|column| !self.columns.contains_key(&column.name));
        let definitions = missing.map(|column| format!("{} {}", quote(&column.name), column.sql_type));
        if self.exists() {
            let added: Vec<String> =
                definitions.map(|definition| format!("ADD COLUMN IF NOT EXISTS {definition}")).collect();
            return (!added.is_empty()).then(|| format!("ALTER TABLE {} {};", self.qualified_name(), added.join(", ")));
        }
        let sequence = self.sequenced.then(|| format!("{} bigint", quote(SEQUENCE)));
        let definitions: Vec<String> = sequence.into_iter().chain(definitions).collect();
        // CREATE SCHEMA IF NOT EXISTS requires the right to create schemas even if the schema exists.
        let schema = if self.existence == Existence::NoSchema {
            // It fails if another session is creating the schema.
            format!("{};CREATE SCHEMA IF NOT EXISTS {};", lock_for_run(&quote(&self.schema)), quote(&self.schema))
        } else {
            String::new()
        };
        let name = self.qualified_name();
        let comment =
            if self.is_staging() { String::new() } else { format!("COMMENT ON TABLE {name} IS '{OWN_COMMENT}';") };
        Some(format!("{schema}CREATE TABLE IF NOT EXISTS {name} ({});{comment}", definitions.join(", ")))
    }

    /// The statement that gives the columns of an empty table these types; empty if it has them.
    pub fn replace_types(&self, columns: &[Column]) -> String {
        let changed = columns.iter().filter(|column| {
            let before = self.columns.get(&column.name).map(|kind| short_name(kind));
            before.is_some_and(|before| before != short_name(&column.sql_type))
        });
        let actions: Vec<String> = changed
            .map(|column| format!("ALTER COLUMN {} TYPE {} USING NULL", quote(&column.name), column.sql_type))
            .collect();
        if actions.is_empty() {
            String::new()
        } else {
            format!("ALTER TABLE {} {};", self.qualified_name(), actions.join(", "))
        }
    }

    /// The statement that makes `bigint` columns `numeric` whose rows need it; empty without any. Rewrites the table.
    pub fn widen_types(&self, columns: &[Column]) -> String {
        let is_wider = |column: &&Column| {
            column.sql_type == "numeric" && self.columns.get(&column.name).is_some_and(|before| before == "bigint")
        };
        self.make_numeric(columns.iter().filter(is_wider).map(|column| column.name.as_str()))
    }

    /// The statement that makes these columns `numeric`; empty without any.
    pub fn make_numeric<'n>(&self, names: impl Iterator<Item = &'n str>) -> String {
        let actions: Vec<String> = names.map(|name| format!("ALTER COLUMN {} TYPE numeric", quote(name))).collect();
        if actions.is_empty() {
            return String::new();
        }
        format!("ALTER TABLE {} {};", self.qualified_name(), actions.join(", "))
    }

    /// Whether the columns still have the types that rows are encoded for. No other session can change them before the
    /// end of the transaction.
    pub fn lock_types(&self, client: &mut Client, columns: &[Column]) -> Result<(), SessionError> {
        client.batch_execute(&format!("LOCK TABLE {} IN ROW EXCLUSIVE MODE", self.qualified_name()))?;
        let found = client.query(
            "SELECT a.attname::text, format_type(a.atttypid, a.atttypmod) FROM pg_attribute a
             WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped",
            &[&self.qualified_name()],
        )?;
        let found: HashMap<String, String> = found.iter().map(|row| (row.get(0), row.get(1))).collect();
        let changed = columns.iter().find_map(|column| {
            let now = found.get(&column.name).filter(|now| short_name(now) != short_name(&column.sql_type))?;
            Some((column, now))
        });
        let Some((Column { name, sql_type, .. }, now)) = changed else { return Ok(()) };
        let reason = format!(
            "another session has changed the type of column {name:?} from {sql_type} to {now} meanwhile: the next run uses it"
        );
        Err(SessionError::Final { reason, transient: true })
    }

    /// Records that the statements of [`create_or_widen`](Self::create_or_widen) were committed.
    pub fn record_columns(&mut self, columns: &[Column]) {
        if !self.exists() {
            self.existence = Existence::Exists;
        }
        self.record_marks(columns);
        self.columns.extend(columns.iter().map(|column| (column.name.clone(), column.sql_type.clone())));
    }

    /// Makes other runs that change or replace the table wait for the end of the open transaction. Readers do not wait.
    pub fn lock_for_run(&self, client: &mut Client) -> Result<(), SessionError> {
        Ok(client.batch_execute(&lock_for_run(&self.qualified_name()))?)
    }

    /// Reads the definition again, which another run may have changed.
    pub fn inspect_again(&self, client: &mut Client) -> Result<Self, SessionError> {
        let (mut current, _) = Self::inspect(client, &self.schema, &self.name)?;
        current.marks.columns.extend(self.marks.columns.clone());
        let current = Self { owner: self.owner.clone(), key_failed: self.key_failed, ..current };
        current.check_owner()?;
        Ok(current)
    }

    /// Fails if another run has created the table for another stream.
    pub fn check_owner(&self) -> Result<(), SessionError> {
        match (&self.owner, &self.marks.table) {
            (Some(owner), Some(other)) if owner != other => {
                let stream = other.stream().key();
                let reason = format!("the table now belongs to stream {stream:?}: the next read loads another table");
                Err(SessionError::Final { reason, transient: true })
            }
            _ => Ok(()),
        }
    }

    /// Whether it has this column with its type.
    pub fn has_type_of(&self, column: &Column) -> bool {
        self.columns.get(&column.name).is_some_and(|kind| short_name(kind) == short_name(&column.sql_type))
    }

    /// Whether it has pages, so that a scan of it or an index on it may take long.
    pub fn has_pages(&self) -> bool {
        matches!(self.existence, Existence::Exists | Existence::Partitioned)
    }

    /// Records that these columns have marks, or that the database cannot store any.
    pub fn record_marks(&mut self, columns: &[Column]) {
        if let Some(owner) = &self.owner {
            self.marks.record(owner, &owned_columns(columns));
        }
    }

    /// Records that the table was dropped.
    pub fn record_dropped(&mut self) {
        self.existence = Existence::NoTable;
        self.columns.clear();
    }

    /// The statement that loads rows with these columns.
    pub fn copy_statement(&self, columns: &[Column]) -> String {
        let sequence = self.sequenced.then(|| quote(SEQUENCE));
        let names: Vec<String> = sequence.into_iter().chain(columns.iter().map(|column| quote(&column.name))).collect();
        format!("COPY {} ({}) FROM STDIN (FORMAT binary)", self.qualified_name(), names.join(", "))
    }

    /// Whether `ON CONFLICT` with exactly these parts works.
    pub fn has_key(&self, key: &[KeyPart]) -> bool {
        self.keys.iter().any(|unique| unique.is_arbiter && self.is_on(unique, key))
    }

    /// Whether our key on exactly these parts allows no nulls.
    pub fn has_own_primary_key(&self, key: &[KeyPart]) -> bool {
        self.keys.iter().any(|unique| unique.primary && unique.is_own() && self.is_on(unique, key))
    }

    fn is_on(&self, unique: &UniqueKey, key: &[KeyPart]) -> bool {
        if key.iter().all(KeyPart::is_column) {
            let columns: Vec<String> = key.iter().map(|part| part.column().to_owned()).collect();
            return unique.is_on(&columns);
        }
        // The name of ours depends on the expressions.
        unique.has_expressions && unique.name == self.key_name(key)
    }

    /// The columns of a primary key that is not ours.
    pub fn other_primary_key(&self) -> Option<Vec<String>> {
        let key = self.keys.iter().find(|key| key.primary && key.is_arbiter && !key.is_own())?;
        let mut columns: Vec<String> = key.columns.iter().cloned().collect();
        columns.sort_unstable();
        Some(columns)
    }

    /// Whether it has a primary key that is not ours.
    pub fn has_other_primary_key(&self) -> bool {
        self.keys.iter().any(|key| key.primary && !key.is_own())
    }

    /// The statements that drop our keys but for one on these parts, because they could reject new rows.
    pub fn drop_stale_key(&self, key: &[KeyPart]) -> Option<String> {
        self.drop_keys(|unique| !self.is_on(unique, key))
    }

    /// The statements that drop all of our keys.
    pub fn drop_own_keys(&self) -> Option<String> {
        self.drop_keys(|_| true)
    }

    fn drop_keys(&self, is_dropped: impl Fn(&UniqueKey) -> bool) -> Option<String> {
        let dropped = self.keys.iter().filter(|unique| unique.is_own() && is_dropped(unique));
        let statements = dropped.map(|unique| {
            if !unique.primary {
                return format!("DROP INDEX {};", qualified(&self.schema, &unique.name));
            }
            let nullable = unique.columns.iter().map(|column| format!("ALTER COLUMN {} DROP NOT NULL", quote(column)));
            let actions: Vec<String> =
                std::iter::once(format!("DROP CONSTRAINT {}", quote(&unique.name))).chain(nullable).collect();
            format!("ALTER TABLE {} {};", self.qualified_name(), actions.join(", "))
        });
        Some(statements.collect()).filter(|statements: &String| !statements.is_empty())
    }

    /// The statement that makes these parts the primary key or, if they contain nulls or are no columns, unique.
    pub fn add_key(&self, key: &[KeyPart], with_nulls: bool) -> String {
        let (table, name) = (self.qualified_name(), quote(&self.key_name(key)));
        let parts = index_expressions(key);
        if with_nulls || !key.iter().all(KeyPart::is_column) {
            format!("CREATE UNIQUE INDEX {name} ON {table} ({parts});")
        } else {
            format!("ALTER TABLE {table} ADD CONSTRAINT {name} PRIMARY KEY ({parts});")
        }
    }

    /// The statement that makes these parts unique in a table that others use meanwhile. It cannot be part of a
    /// transaction.
    pub fn create_unique_index(&self, key: &[KeyPart]) -> String {
        let (table, name) = (self.qualified_name(), quote(&self.key_name(key)));
        // It is not available for tables with partitions.
        let concurrently = if self.existence == Existence::Partitioned { "" } else { "CONCURRENTLY " };
        format!("CREATE UNIQUE INDEX {concurrently}{name} ON {table} ({})", index_expressions(key))
    }

    /// Whether the index of our key on these parts was not completed.
    pub fn has_unusable_key(&self, key: &[KeyPart]) -> bool {
        let name = self.key_name(key);
        self.keys.iter().any(|unique| unique.name == name && !unique.primary && !unique.is_arbiter)
    }

    /// The statement that drops the index of our key on these parts.
    pub fn drop_key(&self, key: &[KeyPart]) -> String {
        format!("DROP INDEX {};", qualified(&self.schema, &self.key_name(key)))
    }

    /// Contains a hash of the table's name, because names of indexes must be unique in the schema.
    fn key_name(&self, key: &[KeyPart]) -> String {
        let parts: Vec<String> = key.iter().map(KeyPart::identity).collect();
        let identity = format!("{}/{}", self.name, parts.join("/"));
        let mut name = format!("{OWN_KEY_PREFIX}{}_{}", names::short_hash(&identity), self.name);
        names::truncate(&mut name, names::MAX_BYTES);
        name
    }

    /// The columns of the stream that this run does not load: in a merged row they must not keep the values of the row
    /// that it replaces. Columns that no stream has ever loaded are the user's.
    pub fn unloaded_columns(&self, loaded: &[Column]) -> Vec<&String> {
        let is_loaded = |name: &String| loaded.iter().any(|column| column.name == *name);
        let is_metadata = |name: &String| [UNMAPPED, TIMESTAMP, GENERATION].contains(&name.as_str());
        let is_of_stream = |name: &String| self.marks.columns.contains_key(name) || is_metadata(name);
        let mut columns: Vec<&String> =
            self.columns.keys().filter(|name| is_of_stream(name) && !is_loaded(name)).collect();
        columns.sort_unstable();
        columns
    }

    /// Drops staging tables of runs that were killed while they loaded into this table. Returns those that cannot be
    /// dropped.
    ///
    /// A live run holds an advisory lock with its id, which the names of its staging tables contain.
    pub fn drop_orphaned_staging_tables(
        &self,
        client: &mut Client,
        own_run_id: i64,
    ) -> Result<Vec<(String, postgres::Error)>, SessionError> {
        let prefix = self.staging_prefix();
        let found = client.query(
            "SELECT c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE n.nspname = $1 AND c.relkind = 'r' AND starts_with(c.relname::text, $2)",
            &[&self.schema, &prefix],
        )?;
        let mut remaining = Vec::new();
        for row in found {
            let name: String = row.get(0);
            let Some(run_id) = run_id(&name, &prefix).filter(|run_id| *run_id != own_run_id) else { continue };
            if !client.query_one("SELECT pg_try_advisory_lock($1)", &[&run_id])?.get::<_, bool>(0) {
                continue;
            }
            // Dropping fails if the table belongs to another user or a view depends on it: the run goes on.
            let table = qualified(&self.schema, &name);
            let dropped =
                client.batch_execute(&format!("SAVEPOINT orphan; DROP TABLE IF EXISTS {table}; RELEASE orphan"));
            if dropped.as_ref().is_err_and(|error| error.as_db_error().is_some()) {
                client.batch_execute("ROLLBACK TO orphan; RELEASE orphan")?;
            }
            client.execute("SELECT pg_advisory_unlock($1)", &[&run_id])?;
            match dropped {
                Ok(()) => tracing::info!(table = %name, "dropped the staging table of a killed run"),
                Err(error) => remaining.push((table, error)),
            }
        }
        Ok(remaining)
    }
}

/// The columns whose owners are known.
fn owned_columns(columns: &[Column]) -> Vec<(&str, &ColumnOwner)> {
    columns.iter().filter_map(|column| Some((column.name.as_str(), column.owner.as_ref()?))).collect()
}

/// The statement that takes the advisory lock of a schema or table until the end of the transaction.
fn lock_for_run(name: &str) -> String {
    format!("SELECT pg_advisory_xact_lock({RUN_LOCK_CLASS}, hashtext('{}'))", name.replace('\'', "''"))
}

/// The shorter one of a type's two names.
fn short_name(kind: &str) -> &str {
    match kind {
        "timestamp with time zone" => "timestamptz",
        "timestamp without time zone" => "timestamp",
        "time with time zone" => "timetz",
        "time without time zone" => "time",
        other => other,
    }
}

/// The run id in the name of a staging or generation table that starts with this prefix.
pub fn run_id(name: &str, prefix: &str) -> Option<i64> {
    let digits = name.get(prefix.len()..prefix.len() + RUN_ID_DIGITS)?;
    u64::from_str_radix(digits, 16).ok().map(u64::cast_signed)
}

/// The columns of a table, and their names by their numbers.
fn existing_columns(
    client: &mut Client,
    table: u32,
) -> Result<(HashMap<i16, String>, Vec<ExistingColumn>), SessionError> {
    let rows = client.query(
        "SELECT a.attname::text, t.typname::text, a.atttypmod, format_type(a.atttypid, a.atttypmod),
                a.attgenerated = '' AND a.attidentity <> 'a', a.attnum
         FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
         WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum",
        &[&table],
    )?;
    let columns = rows.iter().map(|row| {
        let kind = ColumnType::of_catalog(row.get(1), row.get(2)).filter(|_| row.get(4));
        ExistingColumn {
            name: row.get(0),
            kind,
            sql_type: row.get(3),
            is_replaceable: false,
            kept_because: None,
            widening: Widening::None,
            owner: None,
        }
    });
    let numbers = rows.iter().map(|row| (row.get(5), row.get(0))).collect();
    Ok((numbers, columns.collect()))
}

/// The parts of a key as the columns of an index.
pub fn index_expressions(key: &[KeyPart]) -> String {
    let sql = |part: &KeyPart| if part.is_column() { part.sql() } else { format!("({})", part.sql()) };
    key.iter().map(sql).collect::<Vec<_>>().join(", ")
}

fn unique_keys(client: &mut Client, table: u32) -> Result<Vec<UniqueKey>, SessionError> {
    let rows = client.query(
        "SELECT c.relname::text, i.indisprimary,
                i.indisvalid AND i.indimmediate AND i.indpred IS NULL, i.indexprs IS NOT NULL,
                ARRAY(SELECT a.attname::text FROM pg_attribute a
                      WHERE a.attrelid = i.indrelid AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]))
         FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid WHERE i.indrelid = $1 AND i.indisunique",
        &[&table],
    )?;
    let keys = rows.iter().map(|row| UniqueKey {
        name: row.get(0),
        primary: row.get(1),
        is_arbiter: row.get(2),
        has_expressions: row.get(3),
        columns: row.get::<_, Vec<String>>(4).into_iter().collect(),
    });
    Ok(keys.collect())
}
