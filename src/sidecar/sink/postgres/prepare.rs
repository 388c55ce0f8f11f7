//! Before a stream's first row: what its table looks like, what earlier runs left, and so what is to become of its rows.

use super::generation::{self, Adopted, Collection, Mark};
use super::layout::{Column, Existing, Layout};
use super::publish::Publication;
use super::session::Session;
use super::table::Table;
use crate::sidecar::sink::{SinkError, StreamSpec, WriteMode};

/// When a stream's rows get into its table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// At each commit.
    AsItGoes,
    /// At the end, in the place of all others.
    Replace,
    /// At the end, in the place of generations below `minimum`.
    Renew {
        /// The least generation that stays.
        minimum: i64,
        /// What is committed until then outlives the run.
        kept: bool,
    },
}

/// What a stream needs for its first row.
pub struct Prepared {
    /// The table in question.
    pub target: Table,
    /// Where rows are collected, if they are.
    pub staging: Table,
    /// Which field goes to which column.
    pub layout: Layout,
    /// `Merge` without a usable key is `Append`.
    pub mode: WriteMode,
    /// When the rows get into the table.
    pub ending: Ending,
    /// How far the collection goes that this run continues.
    pub mark: Mark,
    /// Where staged rows are numbered: after this number.
    pub sequence: Option<u64>,
    /// A collection that goes once there is something better.
    pub obsolete: Option<Collection>,
}

/// The table of a stream.
pub struct Preparation<'p> {
    /// The stream.
    pub spec: &'p StreamSpec,
    /// The table's schema.
    pub schema: &'p str,
    /// Its name.
    pub table: &'p str,
    /// This run's number.
    pub run: i64,
}

impl Preparation<'_> {
    /// Looks the table up and lays the columns out.
    pub fn prepare(&self, session: &mut Session) -> Result<Prepared, SinkError> {
        let generation = self.spec.generation;
        let (mut target, mut existing, mut found) = self.look(session)?;
        if self.spec.mode != WriteMode::Replace
            && generation.minimum == 0
            && let Some(collection) = &found
        {
            // Nothing is obsolete any more: what was collected counts, and a state stands for it.
            self.publish(collection, session, &mut target)?;
            (target, existing, found) = self.look(session)?;
        }
        let ending = self.ending(session, &target, found.is_some())?;
        let mut adopted = None;
        if matches!(ending, Ending::Renew { kept: true, .. }) && generation.resumes {
            let valid = found.take_if(|collection| collection.reaches(generation.minimum));
            adopted = match valid {
                Some(collection) => Some(collection.adopt(session, &target, self.run, generation.minimum)?),
                None => self.check_state(session, &target).map(|()| None)?,
            };
        }
        if let Some(Adopted { columns, .. }) = &mut adopted {
            // Rows go to the collection first: where both have a column, its type is the one that counts.
            existing.retain(|column| !columns.iter().any(|other| other.name == column.name));
            existing.append(columns);
        }
        let layout = Layout::new(self.spec, existing);
        generation::check_column(&layout, &target, generation.id)?;
        let mode = self.mode(&layout);
        if mode == WriteMode::Append && ending == Ending::AsItGoes {
            self.drop_stale_key(session, &target)?;
        }
        let keyed = mode != WriteMode::Append && layout.has_key();
        let sequenced = keyed || matches!(ending, Ending::Renew { kept: true, .. });
        let (staging, mark) = match adopted {
            Some(Adopted { table, mark, .. }) => (table, mark),
            None => (target.staging(self.run, sequenced), Mark::default()),
        };
        let sequence = sequenced.then_some(mark.rows);
        Ok(Prepared { target, staging, layout, mode, ending, mark, sequence, obsolete: found })
    }

    fn subject(&self) -> String {
        format!("stream {:?}, table {:?}.{:?}", self.spec.name.key(), self.schema, self.table)
    }

    fn look(&self, session: &mut Session) -> Result<(Table, Vec<Existing>, Option<Collection>), SinkError> {
        session.atomically(&self.subject(), |client| {
            let (target, existing) = Table::inspect(client, self.schema, self.table)?;
            target.drop_leftovers(client, self.run)?;
            let found = Collection::find(client, &target)?;
            Ok((target, existing, found))
        })
    }

    fn ending(&self, session: &mut Session, target: &Table, collects: bool) -> Result<Ending, SinkError> {
        let generation = self.spec.generation;
        if self.spec.mode == WriteMode::Replace {
            return Ok(Ending::Replace);
        }
        if generation.minimum == 0 {
            return Ok(Ending::AsItGoes);
        }
        let any_below = |client: &mut _| generation::any_below(client, target, generation.minimum);
        let obsolete = collects || session.atomically(&self.subject(), any_below)?;
        Ok(if obsolete {
            Ending::Renew { minimum: generation.minimum, kept: generation.resumable }
        } else {
            Ending::AsItGoes
        })
    }

    /// A state of an earlier generation would have the source leave out what is then deleted.
    fn check_state(&self, session: &mut Session, target: &Table) -> Result<(), SinkError> {
        let minimum = self.spec.generation.minimum;
        if session.atomically(&self.subject(), |client| generation::any_from(client, target, minimum))? {
            return Ok(());
        }
        let text = format!(
            "{}: the source would go on from a saved state, but nothing of generation {minimum} or later was loaded, \
             and what was loaded before is to be deleted: read the stream from scratch (without its state)",
            self.subject()
        );
        Err(SinkError::permanent(text))
    }

    fn mode(&self, layout: &Layout) -> WriteMode {
        if self.spec.mode == WriteMode::Merge && !layout.has_key() {
            let stream = self.spec.name.key();
            tracing::warn!(%stream, "has no usable primary key: its rows are added, not merged");
            return WriteMode::Append;
        }
        self.spec.mode
    }

    /// A key of ours of earlier days would refuse rows that are only added.
    fn drop_stale_key(&self, session: &mut Session, target: &Table) -> Result<(), SinkError> {
        let Some(drop_key) = target.drop_stale_key(&[]) else { return Ok(()) };
        session.atomically(&self.subject(), |client| Ok(client.batch_execute(&drop_key)?))
    }

    /// Puts the rows of a collection into the table, beside those that are there.
    fn publish(&self, collection: &Collection, session: &mut Session, target: &mut Table) -> Result<(), SinkError> {
        let Adopted { table: staging, columns, mark } = collection.adopt(session, target, self.run, 0)?;
        let key = if self.spec.mode == WriteMode::Merge { mark.key } else { Vec::new() };
        if key.is_empty() {
            self.drop_stale_key(session, target)?;
        }
        let (columns, cursor) = (as_columns(columns), mark.cursor.as_deref());
        Publication { staging: &staging, columns: &columns, key: &key, cursor }.merge(session, target)?;
        let drop_table = format!("DROP TABLE IF EXISTS {}", staging.quoted());
        session.atomically(&self.subject(), |client| Ok(client.batch_execute(&drop_table)?))
    }
}

/// The columns of a staging table, all of which rows can be loaded into.
pub fn as_columns(existing: Vec<Existing>) -> Vec<Column> {
    let column = |Existing { name, kind, sql_type }| Some(Column { name, kind: kind?, sql_type });
    existing.into_iter().filter_map(column).collect()
}
