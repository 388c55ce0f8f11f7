//! From the staging table to the target: the statements of a merge and of a replacement.
//!
//! Whatever happens here happens in one transaction.

use postgres::Client;
use postgres::error::SqlState;

use super::generation::{self, Collection};
use super::layout::{Column, SEQUENCE};
use super::names::quote;
use super::session::{Session, Trouble};
use super::table::{Table, quoted_list};
use crate::sidecar::sink::SinkError;

/// What is to be published, and by which key.
#[derive(Clone, Copy)]
pub struct Publication<'p> {
    /// Where rows come from.
    pub staging: &'p Table,
    /// All columns of the stream.
    pub columns: &'p [Column],
    /// Columns of the key; empty: rows are added as they are.
    pub key: &'p [String],
    /// Of two rows with one key, the one with the higher value here wins.
    pub cursor: Option<&'p str>,
}

impl Publication<'_> {
    /// Adds rows, or merges them by their key.
    pub fn merge(&self, session: &mut Session, target: &mut Table) -> Result<(), SinkError> {
        let subject = target.subject();
        if let Some(missing) = target.missing(self.columns) {
            session.atomically(&subject, |client| Ok(client.batch_execute(&missing)?))?;
            target.has(self.columns);
        }
        let mut statements = String::new();
        if self.key.is_empty() {
            statements.push_str(&self.insert(target));
        } else if self.ensure_key(session, target)? {
            statements.push_str(&self.upsert(target));
        } else {
            statements.push_str(&self.delete_and_insert(target));
        }
        statements.extend(["TRUNCATE ", &self.staging.quoted(), ";"]);
        session.atomically(&subject, |client| Ok(client.batch_execute(&statements)?))
    }

    /// Puts the staged rows in the place of all of generations below `minimum`, and drops the staging table and what is
    /// `obsolete` with it.
    pub fn renew(
        &self,
        session: &mut Session,
        target: &mut Table,
        minimum: i64,
        obsolete: Option<&Collection>,
    ) -> Result<(), SinkError> {
        let subject = target.subject();
        if !session.atomically(&subject, |client| generation::any_from(client, target, minimum))? {
            return self.replace(session, target, obsolete);
        }
        let keyed = !self.key.is_empty();
        let unique =
            keyed && self.key.iter().all(|name| target.has_column(name)) && self.ensure_key(session, target)?;
        let mut statements = target.missing(self.columns).unwrap_or_default();
        statements.extend(["DELETE FROM ", &target.quoted(), " WHERE ", &generation::below(minimum), ";"]);
        if !unique {
            statements.push_str(&target.drop_stale_key(self.key).unwrap_or_default());
        }
        if self.staging.exists() {
            statements.push_str(&match (keyed, unique) {
                (false, _) => self.insert(target),
                (true, true) => self.upsert(target),
                (true, false) => self.delete_and_insert(target),
            });
            statements.extend(["DROP TABLE ", &self.staging.quoted(), ";"]);
        }
        statements.push_str(&obsolete.map(Collection::drop_sql).unwrap_or_default());
        session.atomically(&subject, |client| Ok(client.batch_execute(&statements)?))
    }

    /// Puts the staged rows in the place of all others, and drops the staging table and what is `obsolete` with it.
    /// Grants, views and indexes stay.
    pub fn replace(
        &self,
        session: &mut Session,
        target: &mut Table,
        obsolete: Option<&Collection>,
    ) -> Result<(), SinkError> {
        let mut statements = self.first_rows(target, &format!("TRUNCATE {};", target.quoted()));
        statements.push_str(&obsolete.map(Collection::drop_sql).unwrap_or_default());
        session.atomically(&target.subject(), |client| Ok(client.batch_execute(&statements)?))
    }

    /// Puts the staged rows into a table that has none, and drops the staging table. A table with rows stays as it is.
    /// Says which of both it was.
    pub fn fill(&self, session: &mut Session, target: &Table) -> Result<bool, SinkError> {
        let statements = self.first_rows(target, "");
        // Until the commit nobody else adds the rows that are looked for.
        let lock = format!("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE", target.quoted());
        session.atomically(&target.subject(), |client| {
            if target.exists() {
                client.batch_execute(&lock)?;
                if generation::any(client, target, "true")? {
                    return Ok(false);
                }
            }
            client.batch_execute(&statements)?;
            Ok(true)
        })
    }

    /// The statements that put the staged rows into a table that is empty once it was `emptied`.
    fn first_rows(&self, target: &Table, emptied: &str) -> String {
        let mut statements = target.missing(self.columns).unwrap_or_default();
        statements.push_str(emptied);
        statements.push_str(&target.drop_stale_key(self.key).unwrap_or_default());
        if !self.key.is_empty() && !target.has_key(self.key) && !target.has_foreign_key() {
            statements.push_str(&target.add_key(self.key));
        }
        if self.staging.exists() {
            statements.push_str(&self.insert(target));
            statements.extend(["DROP TABLE ", &self.staging.quoted(), ";"]);
        }
        statements
    }

    fn names(&self) -> String {
        let names: Vec<String> = self.columns.iter().map(|column| column.name.clone()).collect();
        quoted_list(&names)
    }

    /// The staged rows, one of each key.
    fn rows(&self) -> String {
        let (names, staging) = (self.names(), self.staging.quoted());
        if self.key.is_empty() {
            return format!("SELECT {names} FROM {staging}");
        }
        let key = quoted_list(self.key);
        let cursor = self.cursor.map(|cursor| format!("{} DESC NULLS LAST, ", quote(cursor))).unwrap_or_default();
        format!("SELECT DISTINCT ON ({key}) {names} FROM {staging} ORDER BY {key}, {cursor}{} DESC", quote(SEQUENCE))
    }

    fn insert(&self, target: &Table) -> String {
        format!("INSERT INTO {} ({}) {};", target.quoted(), self.names(), self.rows())
    }

    fn upsert(&self, target: &Table) -> String {
        let set: Vec<String> = self
            .columns
            .iter()
            .filter(|column| !self.key.contains(&column.name))
            .map(|column| format!("{0} = EXCLUDED.{0}", quote(&column.name)))
            .collect();
        let newer =
            self.cursor.map(|cursor| format!(" WHERE target.{0} IS NULL OR EXCLUDED.{0} >= target.{0}", quote(cursor)));
        let action = if set.is_empty() {
            "NOTHING".to_owned()
        } else {
            format!("UPDATE SET {}{}", set.join(", "), newer.unwrap_or_default())
        };
        format!(
            "INSERT INTO {} AS target ({}) {} ON CONFLICT ({}) DO {action};",
            target.quoted(),
            self.names(),
            self.rows(),
            quoted_list(self.key)
        )
    }

    /// What [`upsert`](Self::upsert) does, for a table in which the key is not unique.
    fn delete_and_insert(&self, target: &Table) -> String {
        let same: Vec<String> = self.key.iter().map(|name| format!("target.{0} = staged.{0}", quote(name))).collect();
        let (same, target_name, staging) = (same.join(" AND "), target.quoted(), self.staging.quoted());
        let older = self.cursor.map(|cursor| {
            format!(
                "DELETE FROM {staging} staged USING {target_name} target WHERE {same} \
                 AND target.{0} IS NOT NULL AND (staged.{0} IS NULL OR staged.{0} < target.{0});",
                quote(cursor)
            )
        });
        format!(
            "{}DELETE FROM {target_name} target USING {staging} staged WHERE {same};{}",
            older.unwrap_or_default(),
            self.insert(target)
        )
    }

    /// Makes the key unique in the target, unless it is; `false` when it cannot be, and rows have to be merged by
    /// deleting and inserting.
    ///
    /// A primary key that somebody else made on other columns is respected: then nothing is added at all.
    fn ensure_key(&self, session: &mut Session, target: &mut Table) -> Result<bool, SinkError> {
        if target.has_key(self.key) {
            return Ok(true);
        }
        if target.key_refused() {
            return Ok(false);
        }
        let subject = target.subject();
        if target.has_foreign_key() {
            target.refuse_key();
            tracing::warn!(table = %subject, "has another primary key than the stream: merging by delete and insert");
            return Ok(false);
        }
        let run = |session: &mut Session, statements: String| {
            session.attempt_atomically(&subject, |client: &mut Client| Ok(client.batch_execute(&statements)?))
        };
        let stale = target.drop_stale_key(self.key).unwrap_or_default();
        let mut primary = true;
        let mut made = run(session, format!("{stale}{}", target.add_key(self.key)));
        if made.as_ref().is_err_and(|trouble| trouble.code() == Some(&SqlState::NOT_NULL_VIOLATION)) {
            primary = false;
            made = run(session, format!("{stale}{}", target.add_unique(self.key)));
        }
        match made {
            Ok(()) => {
                target.has_new_key(self.key, primary);
                Ok(true)
            }
            Err(trouble @ (Trouble::Connect(_) | Trouble::Other(_))) => Err(session.error(&subject, &trouble)),
            Err(trouble) if trouble.is_lost() || trouble.is_locked() => Err(session.error(&subject, &trouble)),
            Err(trouble) => {
                let why = session.error(&subject, &trouble).text;
                target.refuse_key();
                tracing::warn!(%why, "the primary key cannot be made: merging by delete and insert");
                Ok(false)
            }
        }
    }
}
