//! Changes of a target's definition: DDL in short transactions of its own.
//!
//! DDL takes locks that block readers, and later readers queue behind a lock that is waited for. So nothing that takes long
//! runs in such a transaction, and its locks are waited for only [`LOCK_TIMEOUT`] before the session pauses and tries again.
//!
//! Several runs may create or widen a table at the same time. An advisory lock per table makes them take turns, and each
//! looks at the definition that the previous one has left.

use postgres::Client;
use postgres::error::SqlState;

use super::column::Column;
use super::merge_key::KeyPart;
use super::session::{Session, SessionError};
use super::table::Table;

/// How long a lock that blocks readers is waited for.
const LOCK_TIMEOUT: &str = "100ms";

/// Limits the waits of the open transaction for locks that block readers.
pub fn limit_lock_waits(client: &mut Client) -> Result<(), SessionError> {
    Ok(client.batch_execute(&format!("SET LOCAL lock_timeout TO '{LOCK_TIMEOUT}'"))?)
}

/// Changes the definition of a table. `statements` returns what the given definition lacks, and may be called again for
/// one that another run has changed.
pub fn change(
    session: &mut Session,
    table: &mut Table,
    statements: impl Fn(&Table) -> String,
) -> Result<(), SessionError> {
    if statements(table).is_empty() {
        return Ok(());
    }
    let changed = session.transaction(|client| {
        table.lock_for_run(client)?;
        let current = table.inspect_again(client)?;
        let missing = statements(&current);
        if missing.is_empty() {
            return Ok(current);
        }
        limit_lock_waits(client)?;
        client.batch_execute(&missing)?;
        current.inspect_again(client)
    })?;
    *table = changed;
    Ok(())
}

/// Creates the table or adds missing columns.
pub fn ensure_columns(session: &mut Session, table: &mut Table, columns: &[Column]) -> Result<(), SessionError> {
    if table.create_or_widen(columns).is_none() {
        return Ok(());
    }
    let known = table.clone();
    change(session, table, |current| current.create_or_widen(columns).unwrap_or_default())?;
    let has_other_type = |column: &&Column| !known.has_column(&column.name) && !table.has_type_of(column);
    if let Some(column) = columns.iter().find(has_other_type) {
        let reason = format!("another run has created column {:?} meanwhile, with another type", column.name);
        return Err(SessionError::Final { reason, transient: true });
    }
    table.record_marks(columns);
    Ok(())
}

/// Creates the table, adds missing columns, or makes `bigint` columns `numeric` whose rows need it. The latter rewrites the
/// table, and blocks its readers meanwhile.
pub fn ensure_columns_and_types(
    session: &mut Session,
    table: &mut Table,
    columns: &[Column],
) -> Result<(), SessionError> {
    ensure_columns(session, table, columns)?;
    change(session, table, |current| current.widen_types(columns))
}

/// Drops our keys but for one on these parts, because they could reject new rows. One that a foreign key refers to
/// stays.
pub fn drop_stale_key(session: &mut Session, table: &mut Table, key: &[KeyPart]) -> Result<(), SessionError> {
    match change(session, table, |current| current.drop_stale_key(key).unwrap_or_default()) {
        Err(error) if error.code() == Some(&SqlState::DEPENDENT_OBJECTS_STILL_EXIST) => {
            session.warn("the primary key is on other columns, and stays because a foreign key refers to it");
            Ok(())
        }
        changed => changed,
    }
}

/// Makes these parts unique. The index of a table with rows is built while others use the table. After an error the table
/// has no index, or an incomplete one that the next attempt replaces.
///
/// `with_nulls`: the key must allow nulls, which are distinct for an index.
pub fn add_key(
    session: &mut Session,
    table: &mut Table,
    key: &[KeyPart],
    with_nulls: bool,
) -> Result<(), SessionError> {
    change(session, table, |current| match () {
        () if current.has_key(key) || current.has_pages() => String::new(),
        () => current.add_key(key, with_nulls),
    })?;
    if table.has_key(key) {
        return Ok(());
    }
    if table.has_unusable_key(key) {
        drop_unusable_key(session, table, key)?;
    }
    let created = session.execute_alone(&table.create_unique_index(key), None);
    *table = session.transaction(|client| table.inspect_again(client))?;
    if created.is_err() && table.has_unusable_key(key) && drop_unusable_key(session, table, key).is_err() {
        tracing::info!(table = %session.subject, "cannot drop the incomplete index: a later run does");
    }
    created
}

/// Makes one attempt to drop an index whose creation failed.
fn drop_unusable_key(session: &mut Session, table: &mut Table, key: &[KeyPart]) -> Result<(), SessionError> {
    session.begin()?;
    let dropped = session.connected_client().and_then(|client| {
        limit_lock_waits(client)?;
        // Another run may still be creating it: with this lock, none is.
        client.batch_execute(&format!("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE", table.qualified_name()))?;
        let current = table.inspect_again(client)?;
        if current.has_unusable_key(key) {
            client.batch_execute(&current.drop_key(key))?;
        }
        current.inspect_again(client)
    });
    match dropped {
        Ok(current) => {
            session.commit()?;
            *table = current;
            Ok(())
        }
        Err(error) => {
            session.rollback();
            Err(error)
        }
    }
}
