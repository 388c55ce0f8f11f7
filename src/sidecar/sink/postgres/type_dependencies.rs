//! Which columns of a table may get another type: any when all of its rows are replaced, `numeric` instead of `bigint`
//! where numbers arrive that need it.

use std::collections::HashMap;

use postgres::Client;

use super::column::{ExistingColumn, Widening};
use super::session::SessionError;
use super::table::Table;
use super::types::ColumnType;

/// Of each column, what forbids that its type changes; null where nothing does.
const DEPENDENCIES: &str = "
    SELECT a.attname::text, CASE
        WHEN c.relkind <> 'r' OR c.relispartition OR EXISTS (SELECT FROM pg_inherits h WHERE c.oid IN (h.inhrelid, h.inhparent))
            THEN 'the table has partitions or is inherited'
        WHEN NOT pg_has_role(c.relowner, 'USAGE') THEN 'the table belongs to another user'
        WHEN a.atthasdef OR a.attidentity <> '' OR EXISTS (SELECT FROM pg_depend d
            WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = c.oid AND d.refobjsubid = a.attnum
                AND d.classid = 'pg_attrdef'::regclass) THEN 'a default or a generated column uses it'
        WHEN EXISTS (SELECT FROM pg_depend d
            WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = c.oid AND d.refobjsubid = a.attnum
                AND d.classid IN ('pg_rewrite'::regclass, 'pg_policy'::regclass, 'pg_trigger'::regclass,
                    'pg_publication_rel'::regclass))
            THEN 'a view, a rule, a policy, a trigger or a publication uses it'
        WHEN EXISTS (SELECT FROM pg_constraint k WHERE k.conrelid = c.oid AND a.attnum = ANY (k.conkey)
                AND k.contype IN ('f', 'c', 'x')
            OR k.confrelid = c.oid AND a.attnum = ANY (k.confkey)) THEN 'a constraint uses it'
        WHEN EXISTS (SELECT FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_am m ON m.oid = x.relam
            WHERE i.indrelid = c.oid AND (i.indexprs IS NOT NULL OR i.indpred IS NOT NULL
                OR a.attnum = ANY (i.indkey::int2[]) AND (m.amname <> 'btree'
                    OR EXISTS (SELECT FROM pg_opclass o WHERE o.oid = ANY (i.indclass::oid[]) AND NOT o.opcdefault))))
            THEN 'an index uses it'
        WHEN EXISTS (SELECT FROM pg_constraint k WHERE k.contype = 'f' AND k.confrelid = c.oid AND k.conrelid <> c.oid)
            THEN 'a foreign key of another table refers to the table'
    END
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = $1 AND c.relname = $2 AND a.attnum > 0 AND NOT a.attisdropped";

/// Marks the columns that may get another type, and the others with what forbids it. `replaces`: all rows are replaced.
pub fn mark_columns(
    client: &mut Client,
    table: &Table,
    columns: &mut [ExistingColumn],
    replaces: bool,
) -> Result<(), SessionError> {
    if !replaces && columns.iter().all(|column| column.kind != Some(ColumnType::BIGINT)) {
        return Ok(());
    }
    let mut reasons = HashMap::new();
    for row in client.query(DEPENDENCIES, &[&table.schema, &table.name])? {
        if let Some(reason) = row.get::<_, Option<String>>(1) {
            reasons.insert(row.get::<_, String>(0), reason);
        }
    }
    for column in columns {
        let reason = reasons.remove(&column.name);
        column.widening = match (&column.kind, &reason) {
            (Some(ColumnType::BIGINT), None) => Widening::Allowed,
            (Some(ColumnType::BIGINT), Some(reason)) => Widening::Forbidden(reason.clone()),
            _ => Widening::None,
        };
        if replaces {
            column.is_replaceable = reason.is_none();
            column.kept_because = reason;
        }
    }
    Ok(())
}
