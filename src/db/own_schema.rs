//! The tables of syncctl alone, in a schema of their own: whoever manages the tables of the contract (the console, with
//! Prisma) drops what it does not know.
//!
//! Several installations may share the schema, so each key begins with the schema of their results. Everything works
//! without it, with less: a role may lack the right to create it, and a foreign controller does not create it.

use std::sync::{Arc, PoisonError};

use postgres::types::Type;

use super::own_tables::{OwnSchema, PRIVILEGES, SOURCE_CONFIG, TABLES, Table};
use super::pool::{Attempt, Transaction, text};
use super::schema::lock_creation;
use super::text::quote_ident;
use super::{Db, DbError};

/// What does not work without the schema.
const LOSS: &str = "configurations that connectors renew are kept only in an existing table source_config, a repeated \
                    request is not recognized once the console has written its row, and attempts are ordered by clocks";

/// What a process finds.
enum Found {
    Usable(OwnSchema),
    /// Some of the tables are missing, or the schema itself.
    Missing,
    /// It is there and cannot be used; why.
    Unusable(String),
}

impl Db {
    /// Uses the own schema in a sidecar, if it exists with its tables. Creates nothing.
    pub fn find_own_schema(&self) -> Result<(), DbError> {
        let name = self.shared.own_schema_name.clone();
        match self.run("look for the own schema", |tx| find(tx, &name, true))? {
            Found::Usable(own) => self.use_own_schema(Some(own)),
            Found::Missing => {
                tracing::debug!(schema = name, "there is no schema of this name with the tables of syncctl");
            }
            Found::Unusable(reason) => {
                tracing::warn!(schema = name, reason, "cannot use the schema of syncctl: {LOSS}");
            }
        }
        Ok(())
    }

    /// Creates what is missing of the own schema, and uses it if possible.
    pub(super) fn ensure_own_schema(&self) -> Result<(), DbError> {
        let name = self.shared.own_schema_name.clone();
        let found = match self.create("create the own schema", |tx| ensure(tx, &name)) {
            Err(DbError::ServerError { reason, .. }) => Found::Unusable(reason),
            result => result?,
        };
        match found {
            Found::Usable(own) => {
                self.use_own_schema(Some(own));
                self.move_configs();
                self.create_config_view();
            }
            Found::Missing => {}
            Found::Unusable(reason) => {
                let remedy = format!("GRANT CREATE ON DATABASE …, or another SYNCCTL_OWN_SCHEMA than {name}");
                tracing::warn!(schema = name, reason, remedy, "cannot use a schema of our own: {LOSS}");
            }
        }
        Ok(())
    }

    /// The own schema, where it is usable.
    pub(super) fn own_schema(&self) -> Option<Arc<OwnSchema>> {
        self.shared.own_schema.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn use_own_schema(&self, own: Option<OwnSchema>) {
        *self.shared.own_schema.write().unwrap_or_else(PoisonError::into_inner) = own.map(Arc::new);
    }

    /// Whether the own schema, which an operation has just failed to use, is lost: dropped, or no longer permitted. From
    /// then on this process works without it.
    pub(super) fn has_lost_own_schema(&self, reason: &str) -> bool {
        let Some(own) = self.own_schema() else { return false };
        let found = self.run_without_own_schema("look for the own schema", |tx| find(tx, &own.name, own.is_of_sidecar));
        let is_lost = matches!(found, Ok(Found::Missing | Found::Unusable(_)));
        if is_lost {
            tracing::warn!(schema = own.name, reason, "lost the schema of syncctl: {LOSS}");
            self.use_own_schema(None);
        }
        is_lost
    }
}

fn ensure(tx: &mut Transaction<'_>, name: &str) -> Attempt<Found> {
    let found = find(tx, name, false)?;
    if !matches!(found, Found::Missing) {
        return Ok(found);
    }
    lock_creation(tx)?;
    // CREATE SCHEMA IF NOT EXISTS needs the privilege even if the schema exists.
    if !tx.exists("SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = $1", &[text(&name)])? {
        tx.batch(&format!("CREATE SCHEMA {}", quote_ident(name)))?;
    }
    let schema = quote_ident(name);
    for Table { name, columns, key, indexes, .. } in TABLES {
        let columns: Vec<String> = columns.split(", ").map(column_definition).collect();
        let columns = columns.join(", ");
        let key = format!("CONSTRAINT {name}_pkey PRIMARY KEY ({key})");
        tx.batch(&format!("CREATE TABLE IF NOT EXISTS {schema}.{name} ({columns}, {key})"))?;
        for index in indexes {
            let name_of_index = format!("{name}_{}_idx", index.replace(", ", "_"));
            tx.batch(&format!("CREATE INDEX IF NOT EXISTS {name_of_index} ON {schema}.{name} ({index})"))?;
        }
    }
    find(tx, name, false)
}

fn column_definition(column: &str) -> String {
    if let Some(number) = column.strip_suffix(" int8") {
        return format!("{number} bigint GENERATED ALWAYS AS IDENTITY");
    }
    match (column.strip_suffix('?'), column.strip_suffix(" timestamptz")) {
        (Some(nullable), _) => nullable.to_owned(),
        (None, Some(name)) => format!("{name} timestamptz(3) NOT NULL DEFAULT CURRENT_TIMESTAMP"),
        (None, None) => format!("{column} NOT NULL"),
    }
}

/// Looks for the schema in one query. Functions such as `to_regclass` fail for a schema that the role may not use.
fn find(tx: &mut Transaction<'_>, name: &str, is_of_sidecar: bool) -> Attempt<Found> {
    let results_schema = tx.row(
        "SELECT n.nspname::text FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE c.oid = to_regclass('source_task')",
        &[],
        |row| row.try_get(0),
    )?;
    let tables: Vec<(String, Vec<String>, Vec<String>)> = tx.rows(
        "SELECT c.relname::text,
                array(SELECT p FROM unnest($2::text[]) AS p
                      WHERE has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, p)),
                array(SELECT format('%s %s', a.attname, t.typname)
                      FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
                      WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)
         FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE n.nspname = $1 AND c.relkind IN ('r', 'p')",
        &[text(&name), (&PRIVILEGES, Type::TEXT_ARRAY)],
        |row| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?)),
    )?;
    let needed = |of_sidecar| if is_of_sidecar { of_sidecar } else { PRIVILEGES };
    let (mut is_complete, mut has_configs) = (true, true);
    for Table { name: table, columns, of_sidecar, .. } in TABLES {
        let Some((_, permitted, found)) = tables.iter().find(|(found, ..)| found == table) else {
            is_complete = false;
            continue;
        };
        let mut wanted = columns.split(", ").map(|column| column.trim_end_matches('?'));
        match wanted.find(|column| !found.iter().any(|found| found == column)) {
            Some(_) if table == SOURCE_CONFIG => has_configs = false,
            Some(column) => return Ok(Found::Unusable(format!("its table {table} has no column {column}"))),
            None if !needed(of_sidecar).iter().all(|needed| permitted.iter().any(|found| found == needed)) => {
                return Ok(Found::Unusable(format!("this role may not use its table {table}")));
            }
            None => {}
        }
    }
    Ok(match results_schema {
        Some(results_schema) if is_complete => {
            Found::Usable(OwnSchema { name: name.to_owned(), results_schema, has_configs, is_of_sidecar })
        }
        _ => Found::Missing,
    })
}
