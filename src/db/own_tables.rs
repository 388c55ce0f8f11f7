//! The own schema as operations use it: its name, and the definitions of its tables. [`own_schema`](super::own_schema)
//! finds and creates it.

use super::text::quote_ident;

/// Attempts at spec, check and discover, and how each has ended; the outcomes of reads.
pub(super) const ATTEMPT: &str = "attempt";
/// Which request started which task.
pub(super) const TASK: &str = "task";
/// Configurations that connectors have updated.
pub(super) const SOURCE_CONFIG: &str = "source_config";
/// Specifications of connectors of other types than `airbyte`, which the console's key does not distinguish.
pub(super) const CONNECTOR_SPEC: &str = "connector_spec";

/// The definition of a table.
pub(super) struct Table {
    pub(super) name: &'static str,
    /// Names and types as the server names them; columns are NOT NULL but those whose type ends in `?`.
    pub(super) columns: &'static str,
    pub(super) key: &'static str,
    /// The columns of each index.
    pub(super) indexes: &'static [&'static str],
    /// The privileges of a sidecar's role; every other process needs all. `deploy/sidecar-role.sql` grants them.
    pub(super) of_sidecar: &'static [&'static str],
}

/// What a process may do with a table.
pub(super) const PRIVILEGES: &[&str] = &["SELECT", "INSERT", "UPDATE", "DELETE"];

pub(super) const TABLES: [Table; 4] = [
    Table {
        name: ATTEMPT,
        columns: "results_schema text, number int8, kind text, package text, version text, key text, task_id text, \
                  started_at timestamptz, finished_at timestamptz?, status text?, document jsonb?, description text?",
        key: "results_schema, number",
        indexes: &["results_schema, package, key", "results_schema, task_id", "results_schema, finished_at"],
        of_sidecar: PRIVILEGES,
    },
    Table {
        name: TASK,
        columns: "results_schema text, task_id text, sync_id text, kind text, package text, version text, \
                  connector_type text, request text?, installation text?, created_at timestamptz",
        key: "results_schema, task_id",
        indexes: &["results_schema, created_at"],
        of_sidecar: &["SELECT"],
    },
    Table {
        name: SOURCE_CONFIG,
        columns: "results_schema text, sync_id text, package text, given text, config jsonb, timestamp timestamptz",
        key: "results_schema, sync_id",
        indexes: &[],
        of_sidecar: PRIVILEGES,
    },
    Table {
        name: CONNECTOR_SPEC,
        columns: "results_schema text, connector_type text, package text, version text, specs jsonb?, error text?, \
                  timestamp timestamptz",
        key: "package, version, connector_type, results_schema",
        indexes: &[],
        of_sidecar: &["SELECT", "INSERT", "UPDATE"],
    },
];

/// A usable schema.
#[derive(Debug)]
pub(super) struct OwnSchema {
    /// Unquoted.
    pub(super) name: String,
    /// The schema of the tables of results, the first column of each key.
    pub(super) results_schema: String,
    /// Whether it has the table of configurations: an earlier version may have created another one of that name in it.
    pub(super) has_configs: bool,
    /// The process is a sidecar, whose role may have fewer privileges.
    pub(super) is_of_sidecar: bool,
}

impl OwnSchema {
    /// The qualified name of a table.
    pub(super) fn table(&self, name: &str) -> String {
        format!("{}.{name}", quote_ident(&self.name))
    }
}
