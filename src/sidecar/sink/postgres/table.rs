//! Tables: what is there, and the statements that make what is missing.
//!
//! Nothing that exists is ever changed but by adding columns, and by primary keys whose name says that they are ours.

use std::collections::HashSet;

use postgres::Client;

use super::layout::{Column, Existing, SEQUENCE};
use super::names::{self, quote};
use super::session::Trouble;
use super::types::ColumnType;

/// Primary keys of this name were made by us or by the existing implementation.
const OWN_KEY: &str = "jitsu_pk_";
/// Staging tables start with this.
const STAGING: &str = "_syncctl";

/// A unique key that could decide about conflicts.
#[derive(Debug, Clone)]
pub struct UniqueKey {
    name: String,
    primary: bool,
    /// Usable for `ON CONFLICT`: whole, valid, checked at once.
    plain: bool,
    columns: HashSet<String>,
}

/// How much of a table is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum There {
    Nothing,
    Schema,
    Table,
}

/// A table of the destination, there or not.
#[derive(Debug, Clone)]
pub struct Table {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    there: There,
    columns: HashSet<String>,
    keys: Vec<UniqueKey>,
    key_refused: bool,
    /// A staging table, which has a column for the order of arrival.
    sequenced: bool,
}

impl Table {
    /// Looks a table up; with the columns that it has.
    pub fn inspect(client: &mut Client, schema: &str, name: &str) -> Result<(Self, Vec<Existing>), Trouble> {
        let schema_exists = client.query_opt("SELECT 1 FROM pg_namespace WHERE nspname = $1", &[&schema])?.is_some();
        let found = client.query_opt(
            "SELECT c.oid, c.relkind::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE n.nspname = $1 AND c.relname = $2",
            &[&schema, &name],
        )?;
        let mut table = Self {
            schema: schema.to_owned(),
            name: name.to_owned(),
            there: match (&found, schema_exists) {
                (Some(_), _) => There::Table,
                (None, true) => There::Schema,
                (None, false) => There::Nothing,
            },
            columns: HashSet::new(),
            keys: Vec::new(),
            key_refused: false,
            sequenced: false,
        };
        let Some(found) = found else { return Ok((table, Vec::new())) };
        let (oid, kind): (u32, String) = (found.get(0), found.get(1));
        if !matches!(kind.as_str(), "r" | "p") {
            return Err(Trouble::Other("the name belongs to something that is not a table".to_owned()));
        }
        let columns = existing_columns(client, oid)?;
        table.columns = columns.iter().map(|column| column.name.clone()).collect();
        table.keys = unique_keys(client, oid)?;
        Ok((table, columns))
    }

    /// Looks a staging table up, with its columns save for the order of arrival.
    pub fn inspect_staging(client: &mut Client, schema: &str, name: &str) -> Result<(Self, Vec<Existing>), Trouble> {
        let (table, mut columns) = Self::inspect(client, schema, name)?;
        columns.retain(|column| column.name != SEQUENCE);
        Ok((Self { sequenced: true, ..table }, columns))
    }

    /// The staging table for this one.
    pub fn staging(&self, run: i64, sequenced: bool) -> Self {
        let mut name = format!("{}{run:016x}_{}", self.staging_prefix(), self.name);
        names::cut(&mut name, 63);
        Self {
            name,
            there: if self.there == There::Nothing { There::Nothing } else { There::Schema },
            columns: HashSet::new(),
            keys: Vec::new(),
            key_refused: false,
            sequenced,
            schema: self.schema.clone(),
        }
    }

    /// What the collection of rows for this table is called that outlives the run which owns it. It is no number where a
    /// staging table has one, so that nobody takes it for a leftover.
    pub fn collection_name(&self, run: i64) -> String {
        let mut name = format!("{}{run:016x}_{}", self.collection_prefix(), self.name);
        names::cut(&mut name, 63);
        name
    }

    /// With what that name starts, whoever owns it.
    pub fn collection_prefix(&self) -> String {
        format!("{}gen", self.staging_prefix())
    }

    /// With what the names of all staging tables for this table start.
    fn staging_prefix(&self) -> String {
        format!("{STAGING}_{}_", names::short_hash(&self.name))
    }

    /// As it stands in SQL.
    pub fn quoted(&self) -> String {
        format!("{}.{}", quote(&self.schema), quote(&self.name))
    }

    /// For messages.
    pub fn subject(&self) -> String {
        format!("table {}", self.quoted())
    }

    /// Whether it is there.
    pub fn exists(&self) -> bool {
        self.there == There::Table
    }

    /// Whether it has a column of this name.
    pub fn has_column(&self, name: &str) -> bool {
        self.columns.contains(name)
    }

    /// The statements that make it have these columns; `None` when it has.
    pub fn missing(&self, columns: &[Column]) -> Option<String> {
        let missing = columns.iter().filter(|column| !self.columns.contains(&column.name));
        let declared = missing.map(|column| (quote(&column.name), &column.sql_type));
        if self.exists() {
            let added: Vec<String> =
                declared.map(|(name, kind)| format!("ADD COLUMN IF NOT EXISTS {name} {kind}")).collect();
            return (!added.is_empty()).then(|| format!("ALTER TABLE {} {};", self.quoted(), added.join(", ")));
        }
        let sequence = self.sequenced.then(|| format!("{} bigint", quote(SEQUENCE)));
        let columns: Vec<String> =
            sequence.into_iter().chain(declared.map(|(name, kind)| format!("{name} {kind}"))).collect();
        // Asked for only where it is missing: IF NOT EXISTS wants the right to create also when nothing is to be done.
        let schema = if self.there == There::Nothing {
            format!("CREATE SCHEMA IF NOT EXISTS {};", quote(&self.schema))
        } else {
            String::new()
        };
        Some(format!("{schema}CREATE TABLE IF NOT EXISTS {} ({});", self.quoted(), columns.join(", ")))
    }

    /// The statements of [`missing`](Self::missing) took place.
    pub fn has(&mut self, columns: &[Column]) {
        self.there = There::Table;
        self.columns.extend(columns.iter().map(|column| column.name.clone()));
    }

    /// It was dropped.
    pub fn gone(&mut self) {
        self.there = There::Schema;
        self.columns.clear();
    }

    /// The statement that loads rows of these columns.
    pub fn copy_sql(&self, columns: &[Column]) -> String {
        let sequence = self.sequenced.then(|| quote(SEQUENCE));
        let names: Vec<String> = sequence.into_iter().chain(columns.iter().map(|column| quote(&column.name))).collect();
        format!("COPY {} ({}) FROM STDIN (FORMAT binary)", self.quoted(), names.join(", "))
    }

    /// Whether a unique key covers exactly these columns.
    pub fn has_key(&self, columns: &[String]) -> bool {
        self.keys.iter().any(|key| key.plain && key.is_on(columns))
    }

    /// Whether somebody else made a primary key.
    pub fn has_foreign_key(&self) -> bool {
        self.keys.iter().any(|key| key.primary && !key.name.starts_with(OWN_KEY))
    }

    /// The statements that drop a primary key of ours on other columns than these, which is in the way of new rows.
    pub fn drop_stale_key(&self, columns: &[String]) -> Option<String> {
        let key = self.keys.iter().find(|key| key.primary && key.name.starts_with(OWN_KEY) && !key.is_on(columns))?;
        let nullable = key.columns.iter().map(|column| format!("ALTER COLUMN {} DROP NOT NULL", quote(column)));
        let actions: Vec<String> =
            std::iter::once(format!("DROP CONSTRAINT {}", quote(&key.name))).chain(nullable).collect();
        Some(format!("ALTER TABLE {} {};", self.quoted(), actions.join(", ")))
    }

    /// The statement that makes these columns the primary key.
    pub fn add_key(&self, columns: &[String]) -> String {
        format!(
            "ALTER TABLE {} ADD CONSTRAINT {} PRIMARY KEY ({});",
            self.quoted(),
            quote(&self.key_name(columns)),
            quoted_list(columns)
        )
    }

    /// The statement that makes these columns unique where they cannot be the primary key.
    pub fn add_unique(&self, columns: &[String]) -> String {
        format!(
            "CREATE UNIQUE INDEX {} ON {} ({});",
            quote(&self.key_name(columns)),
            self.quoted(),
            quoted_list(columns)
        )
    }

    /// A statement of the last two took place, after [`drop_stale_key`](Self::drop_stale_key).
    pub fn has_new_key(&mut self, columns: &[String], primary: bool) {
        self.keys.retain(|key| !(key.primary && key.name.starts_with(OWN_KEY)));
        let columns_set = columns.iter().cloned().collect();
        self.keys.push(UniqueKey { name: self.key_name(columns), primary, plain: true, columns: columns_set });
    }

    /// Whether a key was tried and refused, so that it is not tried at each commit.
    pub fn key_refused(&self) -> bool {
        self.key_refused
    }

    /// The key cannot be made.
    pub fn refuse_key(&mut self) {
        self.key_refused = true;
    }

    /// Names of constraints are the schema's, not the table's.
    fn key_name(&self, columns: &[String]) -> String {
        let identity = format!("{}/{}", self.name, columns.join("/"));
        let mut name = format!("{OWN_KEY}{}_{}", names::short_hash(&identity), self.name);
        names::cut(&mut name, 63);
        name
    }

    /// Drops what runs left behind that were killed while they loaded into this table.
    ///
    /// A run that is alive holds a lock of the number that its staging tables carry in their names.
    pub fn drop_leftovers(&self, client: &mut Client, own: i64) -> Result<(), Trouble> {
        let prefix = self.staging_prefix();
        let found = client.query(
            "SELECT c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE n.nspname = $1 AND c.relkind = 'r' AND starts_with(c.relname::text, $2)",
            &[&self.schema, &prefix],
        )?;
        for row in found {
            let name: String = row.get(0);
            let digits = name.get(prefix.len()..prefix.len() + 16);
            let Some(run) = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok()) else { continue };
            let run = run.cast_signed();
            if run == own || !client.query_one("SELECT pg_try_advisory_lock($1)", &[&run])?.get::<_, bool>(0) {
                continue;
            }
            // What cannot be dropped, because it is another user's or somebody looks into it, is no reason to fail.
            let table = format!("{}.{}", quote(&self.schema), quote(&name));
            let dropped =
                client.batch_execute(&format!("SAVEPOINT leftover; DROP TABLE IF EXISTS {table}; RELEASE leftover"));
            if dropped.as_ref().is_err_and(|error| error.as_db_error().is_some()) {
                client.batch_execute("ROLLBACK TO leftover; RELEASE leftover")?;
            }
            client.execute("SELECT pg_advisory_unlock($1)", &[&run])?;
            match dropped {
                Ok(()) => tracing::info!(table = %name, "dropped the staging table of a run that was killed"),
                Err(error) => tracing::warn!(table = %name, %error, "cannot drop the staging table of a killed run"),
            }
        }
        Ok(())
    }
}

impl UniqueKey {
    fn is_on(&self, columns: &[String]) -> bool {
        self.columns.len() == columns.len() && columns.iter().all(|column| self.columns.contains(column))
    }
}

/// Names as they stand in SQL, separated by commas.
pub fn quoted_list(names: &[String]) -> String {
    names.iter().map(|name| quote(name)).collect::<Vec<_>>().join(", ")
}

fn existing_columns(client: &mut Client, table: u32) -> Result<Vec<Existing>, Trouble> {
    let rows = client.query(
        "SELECT a.attname::text, t.typname::text, a.atttypmod, format_type(a.atttypid, a.atttypmod),
                a.attgenerated = '' AND a.attidentity <> 'a'
         FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
         WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum",
        &[&table],
    )?;
    let columns = rows.iter().map(|row| {
        let kind = ColumnType::of_catalog(row.get(1), row.get(2)).filter(|_| row.get(4));
        Existing { name: row.get(0), kind, sql_type: row.get(3) }
    });
    Ok(columns.collect())
}

fn unique_keys(client: &mut Client, table: u32) -> Result<Vec<UniqueKey>, Trouble> {
    let rows = client.query(
        "SELECT c.relname::text, i.indisprimary,
                i.indisvalid AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL,
                ARRAY(SELECT a.attname::text FROM pg_attribute a
                      WHERE a.attrelid = i.indrelid AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]))
         FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid WHERE i.indrelid = $1 AND i.indisunique",
        &[&table],
    )?;
    let keys = rows.iter().map(|row| UniqueKey {
        name: row.get(0),
        primary: row.get(1),
        plain: row.get(2),
        columns: row.get::<_, Vec<String>>(3).into_iter().collect(),
    });
    Ok(keys.collect())
}
