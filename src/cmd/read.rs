//! `syncctl read`.

use super::{ConnectorArgs, TaskArgs, run_task};
use crate::airbyte::catalog;
use crate::controller::document::Document;
use crate::controller::request::{OptionNames, ReadDocuments, Request, StateSource};
use crate::failure::{Class, Failure};
use crate::task::{CdcDeletion, ReadOptions, TaskKind};

/// Read rows from a connector and load them into the destination
#[derive(Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub struct ReadArgs {
    #[command(flatten)]
    connector: ConnectorArgs,
    /// Configuration of the connector: a JSON or YAML file, or - for stdin
    #[arg(long, value_name = "FILE")]
    config: String,
    /// Configured catalog: which streams to read, and how. A catalog from `discover` reads every stream
    #[arg(long, value_name = "FILE")]
    catalog: String,
    /// Destination of the rows: a file with "destinationType" and its credentials [default: the Bulker of
    /// SYNCCTL_BULKER_URL, else the embedded database if it is in use]
    #[arg(long, value_name = "FILE")]
    destination_config: Option<String>,
    /// Id of the sync: states are stored under it
    #[arg(long, value_name = "ID")]
    sync_id: String,
    /// State to resume from: a file with Airbyte state messages, or `db` for the state stored for the sync [default: read
    /// from scratch]
    #[arg(long, value_name = "FILE|db")]
    state: Option<String>,
    /// Id of the task, unique among all tasks [default: a new UUID]
    #[arg(long, value_name = "ID")]
    task_id: Option<String>,
    /// Schema of the tables; ${SOURCE_NAMESPACE} is the stream's namespace. ${LEGACY} uses the default schema and puts the
    /// namespace into the table names
    #[arg(long, value_name = "NAMESPACE")]
    target_namespace: Option<String>,
    /// Prefix of all table names; ${SOURCE_NAMESPACE} is the stream's namespace. Not added to a "table_name" in the
    /// catalog
    #[arg(long, value_name = "PREFIX", default_value = "", hide_default_value = true)]
    table_name_prefix: String,
    /// Lower-case table and column names
    #[arg(long)]
    to_same_case: bool,
    /// Add a column _jitsu_timestamp
    #[arg(long)]
    add_meta: bool,
    /// Append rows of streams that the catalog merges by primary key
    #[arg(long)]
    no_deduplicate: bool,
    /// Read from scratch and replace the tables
    #[arg(long)]
    full_sync: bool,
    /// What becomes of rows that a CDC source marks as deleted (_ab_cdc_deleted_at), where rows are merged: soft keeps them
    /// with their mark, hard deletes them [default: "cdcDeletion" of the destination's configuration, else soft; hard in the
    /// embedded database]
    #[arg(long, value_name = "soft|hard")]
    cdc_deletion: Option<CdcDeletion>,
    /// Run the connector with debug messages
    #[arg(long)]
    debug: bool,
    /// Stop with success after this many records of all streams together. A stream that is cut off replaces no rows: if its
    /// table has rows, the new ones are dropped
    #[arg(long, value_name = "N", value_parser = ReadOptions::parse_max_records)]
    max_records: Option<u64>,
    #[command(flatten)]
    task: TaskArgs,
}

pub(super) fn run(args: ReadArgs) -> u8 {
    let ReadArgs {
        connector,
        config,
        catalog,
        destination_config,
        sync_id,
        state,
        task_id,
        target_namespace,
        table_name_prefix,
        to_same_case,
        add_meta,
        no_deduplicate,
        full_sync,
        cdc_deletion,
        debug,
        max_records,
        task: task_args,
    } = args;
    let options = ReadOptions {
        namespace: target_namespace,
        table_name_prefix,
        to_same_case,
        add_meta,
        deduplicate: !no_deduplicate,
        full_sync,
        console_overwrite: false,
        cdc_deletion,
        debug,
        // The settings of this process apply.
        silence_seconds: None,
        max_records,
    };
    run_task(task_args, |settings, timeout| {
        let mut task = connector.task(TaskKind::Read, Some(timeout.unwrap_or(settings.task_timeout)))?;
        task.sync_id = checked_id(sync_id, "--sync-id")?;
        if let Some(id) = task_id {
            task.task_id = checked_id(id, "--task-id")?;
        }
        task.options = options;
        let state = match state.as_deref() {
            None => StateSource::None,
            // Not used: the file may be missing.
            Some(_) if full_sync => StateSource::None,
            Some("db") => StateSource::Stored,
            Some(path) => StateSource::Given(Document::read_file(path, "the state")?),
        };
        let destination = destination_config.map(|path| Document::read_file(&path, "the destination's configuration"));
        let documents = ReadDocuments {
            config: Document::read_file(&config, "the configuration")?,
            catalog: Document::read_file(&catalog, "the catalog")?.converted(catalog::from_discovered),
            state,
            destination: destination.transpose()?,
            functions_env: None,
        };
        Request::read(task, documents, settings, &OPTION_NAMES).map_err(|mut problems| problems.swap_remove(0))
    })
}

const OPTION_NAMES: OptionNames =
    OptionNames { destination: "--destination-config", max_records: "--max-records", cdc_deletion: "--cdc-deletion" };

/// Rows and annotations hold any id that is not blank.
fn checked_id(id: String, flag: &str) -> Result<String, Failure> {
    if id.trim().is_empty() {
        let text = format!("{flag} is empty: expected an id such as orders-to-warehouse");
        return Err(Failure::new(Class::Usage, text));
    }
    Ok(id)
}
