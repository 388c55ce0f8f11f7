//! Which stream a table belongs to, and which field a column. The database remembers it, because names alone do not
//! determine it: cleaned, truncated or lower-case names of several streams or fields may be equal, and a later run may
//! select others.
//!
//! The comment on the row type of the table holds the marks. Comments on tables and columns belong to the user; this one
//! is hardly visible, and is renamed and dropped with its table. For a table of another role, an empty table of our own
//! beside it has the comment, where the schema may be written to.
//!
//! The first line of the comment is `syncctl` and the [`TableOwner`], each other one the number of a column, which no later
//! column of the table gets, and its field, as JSON in ASCII, since the encoding of the database may lack characters of the
//! source. Objects without a mark were created by an earlier version, by another program or by a user: the first stream or
//! field that uses them gets them.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::names::ascii_json;
use crate::airbyte::message::StreamName;
use crate::db::text::quote_literal;
use crate::sidecar::sink::StreamSpec;

/// The SQL expression for the comment with the marks of table `c`.
pub const MARKS: &str = "coalesce(obj_description(c.reltype, 'pg_type'),
    (SELECT obj_description(m.reltype, 'pg_type') FROM pg_class m
     WHERE m.relnamespace = c.relnamespace
       AND m.relname = '_syncctl_' || left(md5(c.relname::text), 8) || '_names_' || c.oid))";

/// The beginning of a comment with marks.
const PREFIX: &str = "syncctl ";
/// The upper half of the key of the advisory lock on the marks of a table.
const LOCK: u32 = 0x7379_6e63;

/// The stream that a table belongs to, in whatever sync.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TableOwner {
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    namespace: Option<String>,
    /// The name of the table as configured: prefixes that are equal once cleaned distinguish syncs.
    table: String,
}

impl TableOwner {
    /// The owner of the table of this stream.
    pub fn of(spec: &StreamSpec) -> Self {
        let StreamName { name, namespace } = spec.name.clone();
        Self { name, namespace, table: spec.table.clone() }
    }

    /// The stream.
    pub fn stream(&self) -> StreamName {
        StreamName::new(self.namespace.as_deref(), &self.name)
    }

    /// Identifies it, in JSON.
    pub fn identity(&self) -> String {
        ascii_json(&serde_json::json!(self).to_string())
    }
}

/// What a column belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ColumnOwner {
    /// The field with this identity.
    Field(String),
    /// No field: the column has metadata of the row.
    Metadata,
}

/// Columns by name, and what they belong to.
pub type OwnedColumns<'c> = [(&'c str, &'c ColumnOwner)];

/// The marks of a table.
#[derive(Debug, Clone, Default)]
pub struct Marks {
    /// The stream that the table belongs to.
    pub table: Option<TableOwner>,
    /// What each column belongs to.
    pub columns: HashMap<String, ColumnOwner>,
}

impl Marks {
    /// Parses the comment on a row type, given the names of the columns by their numbers. A comment that is not ours has no
    /// marks.
    pub fn parse(comment: Option<&str>, names: &HashMap<i16, String>) -> Self {
        let Some(text) = comment.and_then(|comment| comment.strip_prefix(PREFIX)) else { return Self::default() };
        let mut lines = text.lines();
        let table = lines.next().and_then(|line| serde_json::from_str(line).ok());
        let columns = lines.filter_map(|line| {
            let (number, field): (i16, Option<String>) = serde_json::from_str(line).ok()?;
            Some((names.get(&number)?.clone(), field.map_or(ColumnOwner::Metadata, ColumnOwner::Field)))
        });
        Self { table, columns: columns.collect() }
    }

    /// Whether a table lacks marks, which it has with these columns.
    pub fn lacks(&self, columns: &OwnedColumns<'_>) -> bool {
        self.table.is_none() || columns.iter().any(|(name, _)| !self.columns.contains_key(*name))
    }

    /// Records that the statement of [`add`](Self::add) was committed.
    pub fn record(&mut self, owner: &TableOwner, columns: &OwnedColumns<'_>) {
        self.table.get_or_insert_with(|| owner.clone());
        for (name, owner) in columns {
            self.columns.entry((*name).to_owned()).or_insert_with(|| (*owner).clone());
        }
    }

    /// The statement that adds the marks that a table lacks. Marks of other runs stay. Fails if the table has become the
    /// one of another stream. Does nothing where marks cannot be stored.
    pub fn add(&self, schema: &str, table: &str, owner: &TableOwner, columns: &OwnedColumns<'_>) -> String {
        let missing = columns.iter().filter(|(name, _)| !self.columns.contains_key(*name));
        let (names, fields): (Vec<String>, Vec<String>) =
            missing.map(|(name, owner)| (quote_literal(name), quote_literal(&field_mark(owner)))).unzip();
        let body = format!(
            "DECLARE
                space oid; target oid; marked oid; may_mark boolean; known text; added text;
                in_schema CONSTANT text := {schema};
                of_table CONSTANT text := {table};
                owner CONSTANT text := {owner};
                holder text := of_table;
            BEGIN
                SELECT c.relnamespace, c.oid, c.reltype, pg_has_role(c.relowner, 'USAGE')
                    INTO space, target, marked, may_mark
                    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                    WHERE n.nspname = in_schema AND c.relname = of_table;
                IF NOT may_mark THEN
                    holder := '_syncctl_' || left(md5(of_table), 8) || '_names_' || target;
                    PERFORM FROM pg_class c WHERE c.relnamespace = space AND c.relname = holder;
                    IF NOT FOUND AND has_schema_privilege(space, 'CREATE') THEN
                        EXECUTE format('CREATE TABLE IF NOT EXISTS %I.%I ()', in_schema, holder);
                    END IF;
                    SELECT c.reltype, pg_has_role(c.relowner, 'USAGE') INTO marked, may_mark
                        FROM pg_class c WHERE c.relnamespace = space AND c.relname = holder;
                END IF;
                IF marked IS NULL OR NOT may_mark THEN RETURN; END IF;
                PERFORM pg_advisory_xact_lock(({LOCK}::bigint << 32) | marked::bigint);
                known := obj_description(marked, 'pg_type');
                IF known IS NOT NULL AND NOT starts_with(known, '{PREFIX}') THEN RETURN; END IF;
                IF split_part(known, E'\\n', 1) <> owner THEN
                    RAISE EXCEPTION 'another read has just created the table for the stream %: read this stream again, \
             it gets another table', substr(split_part(known, E'\\n', 1), {after_prefix});
                END IF;
                SELECT string_agg(format(E'\\n[%s,%s]', a.attnum, new.field), '' ORDER BY a.attnum) INTO added
                    FROM unnest(ARRAY[{names}]::text[], ARRAY[{fields}]::text[]) AS new (name, field)
                    JOIN pg_attribute a ON a.attrelid = target AND a.attname = new.name
                    WHERE strpos(coalesce(known, ''), format(E'\\n[%s,', a.attnum)) = 0;
                IF known IS NULL OR added IS NOT NULL THEN
                    EXECUTE format('COMMENT ON TYPE %I.%I IS %L', in_schema, holder,
                        coalesce(known, owner) || coalesce(added, ''));
                END IF;
            END",
            schema = quote_literal(schema),
            table = quote_literal(table),
            owner = quote_literal(&format!("{PREFIX}{}", owner.identity())),
            after_prefix = PREFIX.len() + 1,
            names = names.join(", "),
            fields = fields.join(", "),
        );
        format!("DO {};", quote_literal(&body))
    }
}

/// The field of a column in JSON; null for metadata.
fn field_mark(owner: &ColumnOwner) -> String {
    let field = match owner {
        ColumnOwner::Field(field) => Some(field.as_str()),
        ColumnOwner::Metadata => None,
    };
    ascii_json(&serde_json::json!(field).to_string())
}
