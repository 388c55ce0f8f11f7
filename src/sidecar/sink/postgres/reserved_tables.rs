//! Recognizes the tables in which syncctl stores results of tasks: the destination may be their database, whatever its
//! address.

use postgres::Client;

use super::session::SessionError;
use super::table::OWN_KEY_PREFIX;
use super::table_names::TableName;
use crate::db::{ReservedTable, reserved_tables};

/// The first of these tables that is one of ours: it has the columns and a key of one. A copy that streams were loaded into
/// has marks, or at least no key but the one that the destination gave it.
pub fn find(client: &mut Client, tables: Vec<TableName>) -> Result<Option<TableName>, SessionError> {
    let reserved = reserved_tables();
    let is_reserved = |(_, name): &TableName| reserved.iter().any(|table| table.name == name);
    let (schemas, names): (Vec<String>, Vec<String>) = tables.into_iter().filter(is_reserved).unzip();
    if names.is_empty() {
        return Ok(None);
    }
    let keys = client.query(
        "SELECT n.nspname::text, c.relname::text,
                ARRAY(SELECT a.attname::text FROM pg_attribute a
                      WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
                ARRAY(SELECT a.attname::text FROM pg_attribute a
                      WHERE a.attrelid = c.oid AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]))
         FROM unnest($1::text[], $2::text[]) AS names (schema, name)
         JOIN pg_namespace n ON n.nspname = names.schema
         JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = names.name
         JOIN pg_index i ON i.indrelid = c.oid AND i.indisunique AND i.indpred IS NULL AND i.indexprs IS NULL
         JOIN pg_class x ON x.oid = i.indexrelid AND NOT starts_with(x.relname::text, $3)",
        &[&schemas, &names, &OWN_KEY_PREFIX],
    )?;
    let is_like = |row: &postgres::Row, table: &ReservedTable| {
        let (columns, key): (Vec<&str>, Vec<&str>) = (row.get(2), row.get(3));
        table.name == row.get::<_, &str>(1)
            && table.columns.iter().all(|column| columns.contains(column))
            && table.key.iter().all(|column| key.contains(column))
    };
    let found = keys.iter().find(|row| reserved.iter().any(|table| is_like(row, table)));
    Ok(found.map(|row| (row.get(0), row.get(1))))
}
