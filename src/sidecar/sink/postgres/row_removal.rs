//! How a replacement removes the old rows of a table, depending on what refers to them.

use std::time::Duration;

use postgres::Client;

use super::column::Column;
use super::session::{Session, SessionError};
use super::table::Table;

/// How the old rows are removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RowRemoval {
    /// With DELETE.
    Delete,
    /// Foreign keys of other tables refer to these columns: rows that come again are updated, and only others deleted.
    Update {
        /// The columns.
        key: Vec<String>,
    },
    /// With TRUNCATE, because DELETE would leave rows or fail.
    Truncate {
        /// Why.
        reason: String,
    },
}

/// Why DELETE would not remove all rows, null where it does; and the columns that a foreign key of another table refers to.
const OBSTACLES: &str = "
    SELECT CASE
        WHEN row_security_active(c.oid) THEN 'row security hides some of its rows from the user'
        WHEN EXISTS (SELECT FROM pg_rewrite r WHERE r.ev_class = c.oid) THEN 'the table has rules'
        WHEN EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = c.oid AND NOT g.tgisinternal AND g.tgenabled <> 'D'
            AND g.tgtype & 11 = 11) THEN 'a trigger may prevent that its rows are deleted'
        WHEN c.relreplident = 'n' OR c.relreplident = 'd' AND NOT EXISTS (SELECT FROM pg_index i
            WHERE i.indrelid = c.oid AND i.indisprimary AND i.indisvalid)
            THEN (SELECT 'the table is published for replication without a primary key or replica identity' WHERE EXISTS (
                SELECT FROM pg_publication_tables t JOIN pg_publication p ON p.pubname = t.pubname
                WHERE t.schemaname = n.nspname AND t.tablename = c.relname AND p.pubdelete))
    END,
    (SELECT ARRAY(SELECT a.attname::text FROM unnest(k.confkey) WITH ORDINALITY u (attnum, position)
            JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = u.attnum ORDER BY u.position)
        FROM pg_constraint k WHERE k.contype = 'f' AND k.confrelid = c.oid AND k.conrelid <> c.oid ORDER BY k.oid LIMIT 1)
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relname = $2";

impl RowRemoval {
    /// Looks at what refers to the table.
    pub fn find(client: &mut Client, table: &Table, loaded: &[Column]) -> Result<Self, SessionError> {
        let Some(row) = client.query_opt(OBSTACLES, &[&table.schema, &table.name])? else { return Ok(Self::Delete) };
        let (obstacle, referenced): (Option<String>, Option<Vec<String>>) = (row.get(0), row.get(1));
        let is_loaded = |name: &String| loaded.iter().any(|column| column.name == *name);
        Ok(match (obstacle, referenced) {
            (Some(reason), _) => Self::Truncate { reason },
            (None, Some(key)) if key.iter().all(is_loaded) => Self::Update { key },
            (None, Some(_)) => {
                let reason = "a foreign key refers to columns that the stream does not have".to_owned();
                Self::Truncate { reason }
            }
            (None, None) => Self::Delete,
        })
    }
}

/// Makes the space of deleted rows available, so that the next replacement does not enlarge the table. Gives up after
/// `timeout`: VACUUM waits for cursors that users have left open. Nothing depends on its success.
pub fn vacuum(session: &mut Session, table: &Table, timeout: Duration) {
    // Truncation would block readers.
    let vacuum = format!("VACUUM (TRUNCATE false) {}", table.qualified_name());
    let vacuumed = session.execute_alone(&vacuum, Some(timeout));
    if let Err(error) = vacuumed {
        let error = session.sink_error(&error);
        tracing::info!(%error, "cannot vacuum the table, leaving that to the server");
    }
}
