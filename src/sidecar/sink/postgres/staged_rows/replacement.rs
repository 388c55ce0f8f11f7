//! The statements that replace rows of the target with staged ones.

use super::{MergeCounts, StagedRows};
use crate::sidecar::sink::postgres::generation;
use crate::sidecar::sink::postgres::session::{Session, SessionError};
use crate::sidecar::sink::postgres::table::Table;

impl StagedRows<'_> {
    /// Replaces the rows of generations below `minimum`. Drops the staging table, and executes `drop_obsolete`.
    pub fn replace_generations(
        &self,
        session: &mut Session,
        target: &mut Table,
        minimum: i64,
        drop_obsolete: &str,
    ) -> Result<MergeCounts, SessionError> {
        if !session.transaction(|client| generation::has_rows_from(client, target, minimum))? {
            return self.replace_all(session, target, drop_obsolete);
        }
        let is_unique = !self.key.is_empty()
            && self.key.iter().all(|name| target.has_column(name))
            && self.ensure_key(session, target)?;
        let mut statements = target.create_or_widen(self.columns).unwrap_or_default();
        let condition = generation::is_below(minimum);
        statements.extend(["DELETE FROM ", &target.qualified_name(), " WHERE ", &condition, ";"]);
        if !is_unique {
            statements.push_str(&target.drop_stale_key(self.key).unwrap_or_default());
        }
        if self.table.exists() {
            statements.push_str(&self.insert_or_merge(target, is_unique));
            statements.extend(["DROP TABLE ", &self.table.qualified_name(), ";"]);
        }
        session.execute(&(statements + drop_obsolete))?;
        Ok(MergeCounts::default())
    }

    /// Replaces all rows of the target; its grants, views and indexes stay. Drops the staging table, and executes
    /// `drop_obsolete`.
    pub fn replace_all(
        &self,
        session: &mut Session,
        target: &Table,
        drop_obsolete: &str,
    ) -> Result<MergeCounts, SessionError> {
        session.execute(&(self.fill(target, &format!("TRUNCATE {};", target.qualified_name())) + drop_obsolete))?;
        Ok(MergeCounts::default())
    }

    /// Moves the rows into the target and drops the staging table, unless the target has rows: then returns `None`.
    pub fn fill_if_empty(&self, session: &mut Session, target: &Table) -> Result<Option<MergeCounts>, SessionError> {
        let statements = self.fill(target, "");
        // No other session can add rows between the check and the commit.
        let lock = format!("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE", target.qualified_name());
        session.transaction(|client| {
            if target.exists() {
                client.batch_execute(&lock)?;
                if target.has_rows(client, "true")? {
                    return Ok(None);
                }
            }
            client.batch_execute(&statements)?;
            Ok(Some(MergeCounts::default()))
        })
    }

    /// The statements that move the rows into a target which is empty after the statement `truncate`.
    fn fill(&self, target: &Table, truncate: &str) -> String {
        let mut statements = target.create_or_widen(self.columns).unwrap_or_default();
        statements.push_str(truncate);
        statements.push_str(&target.replace_types(self.columns));
        statements.push_str(&target.drop_stale_key(self.key).unwrap_or_default());
        if !self.key.is_empty() && !target.has_key(self.key) && !target.has_other_primary_key() {
            statements.push_str(&target.add_primary_key(self.key));
        }
        if self.table.exists() {
            statements.push_str(&self.insert(target));
            statements.extend(["DROP TABLE ", &self.table.qualified_name(), ";"]);
        }
        statements
    }
}
