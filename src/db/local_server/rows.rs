//! The rows of reads in the embedded database: a schema of their own, and a role that has no rights on the results.
//!
//! Earlier versions loaded rows next to the results, as the owner of everything. What they have left is moved. Tables and
//! schemas that the user creates (`syncctl db psql`) become the role's, because it alters the tables that it loads.

use postgres::Client;

use super::names::{DATA_SCHEMA, LOADER, OWN_SCHEMA, SCHEMA, USER};
use crate::db::own_tables::SOURCE_CONFIG;
use crate::db::schema::is_contract_table;
use crate::db::text::quote_ident;

/// Tables and types of extensions belong to these.
const NOT_OF_AN_EXTENSION: &str = "NOT EXISTS (SELECT FROM pg_depend e WHERE e.objid = c.oid AND e.classid = 'pg_class'::regclass AND e.deptype = 'e')";

/// How long an object may be in use before it stays as it is.
const LOCK_TIMEOUT: &str = "SET LOCAL lock_timeout = '5s'";

/// The statements that create the role and the schema where they are missing, and limit the role.
pub(super) fn setup() -> String {
    format!(
        "DO $$ BEGIN
            IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{LOADER}') THEN
                CREATE ROLE {LOADER};
            END IF;
            IF EXISTS (SELECT FROM pg_roles WHERE rolname = '{LOADER}' AND (rolsuper OR rolcreaterole OR rolcreatedb
                       OR rolreplication OR rolbypassrls OR NOT rolcanlogin)) THEN
                ALTER ROLE {LOADER} LOGIN NOSUPERUSER NOCREATEROLE NOCREATEDB NOREPLICATION NOBYPASSRLS;
            END IF;
            IF NOT EXISTS (SELECT FROM pg_namespace WHERE nspname = '{DATA_SCHEMA}') THEN
                CREATE SCHEMA {DATA_SCHEMA} AUTHORIZATION {LOADER};
            END IF;
            IF NOT has_database_privilege('{LOADER}', current_database(), 'CREATE') THEN
                EXECUTE format('GRANT CREATE ON DATABASE %I TO {LOADER}', current_database());
            END IF;
            IF EXISTS (SELECT FROM pg_namespace WHERE nspname = 'public'
                       AND NOT (has_schema_privilege('{LOADER}', oid, 'CREATE')
                                AND has_schema_privilege('{LOADER}', oid, 'USAGE'))) THEN
                GRANT USAGE, CREATE ON SCHEMA public TO {LOADER};
            END IF;
        END $$"
    )
}

/// Moves the tables of rows that lie next to the results, and gives the role what it may have to load into: schemas and
/// tables of the user but for those of syncctl. What is in use, or has the name of a table in the other schema, stays.
/// Returns a line for each of these, and one for all that was moved.
pub(super) fn hand_over(client: &mut Client) -> Result<Vec<String>, postgres::Error> {
    let mut lines = Vec::new();
    let in_the_way = client.query(
        &format!(
            "SELECT c.relname::text, EXISTS (SELECT FROM pg_class o WHERE o.relname = c.relname
                                             AND o.relnamespace = to_regnamespace('{DATA_SCHEMA}'))
             FROM pg_class c WHERE c.relnamespace = to_regnamespace('{SCHEMA}') AND c.relkind IN ('r', 'p')
               AND {NOT_OF_AN_EXTENSION} ORDER BY 1"
        ),
        &[],
    )?;
    let mut moved = Vec::new();
    for row in in_the_way {
        let (table, is_taken): (String, bool) = (row.get(0), row.get(1));
        if is_contract_table(&table) || table == SOURCE_CONFIG {
            continue;
        }
        let name = quote_ident(&table);
        let sql = format!("ALTER TABLE {SCHEMA}.{name} SET SCHEMA {DATA_SCHEMA}");
        let reason = if is_taken { Some("there is one of this name".to_owned()) } else { run(client, &sql)? };
        match reason {
            None => moved.push(table),
            Some(reason) => lines.push(format!(
                "table {table} stays in schema {SCHEMA} and is not loaded into: it cannot be moved to schema {DATA_SCHEMA}: \
                 {reason}"
            )),
        }
    }
    if !moved.is_empty() {
        lines.push(format!(
            "tables of rows have been moved from schema {SCHEMA} to {DATA_SCHEMA}: {}",
            moved.join(", ")
        ));
    }
    let others = format!("n.nspname NOT IN ('{SCHEMA}', '{OWN_SCHEMA}', 'information_schema') AND n.nspname !~ '^pg_'");
    let statements = client.query(
        &format!(
            "SELECT format('ALTER SCHEMA %I OWNER TO {LOADER}', n.nspname) FROM pg_namespace n
             WHERE {others} AND n.nspname <> 'public' AND n.nspowner = '{USER}'::regrole
             UNION ALL
             SELECT format('ALTER %s %I.%I OWNER TO {LOADER}', CASE c.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END,
                           n.nspname, c.relname)
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE {others} AND c.relowner = '{USER}'::regrole AND {NOT_OF_AN_EXTENSION}
               AND (c.relkind IN ('r', 'p') OR c.relkind = 'S' AND NOT EXISTS
                    (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.classid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')))"
        ),
        &[],
    )?;
    for row in statements {
        let sql: String = row.get(0);
        if let Some(reason) = run(client, &sql)? {
            lines.push(format!("the role {LOADER} cannot own an object: {sql}: {reason}"));
        }
    }
    Ok(lines)
}

/// Runs a statement in a transaction. Returns why the server refuses it.
fn run(client: &mut Client, sql: &str) -> Result<Option<String>, postgres::Error> {
    let result = client.batch_execute(&format!("BEGIN; {LOCK_TIMEOUT}; {sql}; COMMIT"));
    let Err(error) = result else { return Ok(None) };
    let reason = error.as_db_error().map(|error| error.message().to_owned());
    let Some(reason) = reason else { return Err(error) };
    client.batch_execute("ROLLBACK")?;
    Ok(Some(reason))
}
