//! `syncctl read`.

use super::{ConnectorArgs, TaskArgs, run_task};
use crate::airbyte::catalog::{self, ConfiguredCatalog};
use crate::airbyte::state;
use crate::config::Settings;
use crate::controller::document::{self, Document};
use crate::controller::request::{Request, new_task};
use crate::controller::{destination, one_shot};
use crate::db::{Db, Options, Target};
use crate::failure::{Class, Failure};
use crate::pod::payload::Payload;
use crate::sidecar::sink::Destination;
use crate::task::{ReadOptions, Task, TaskKind};

/// Read rows from a connector and load them into the destination
#[derive(Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub struct ReadArgs {
    #[command(flatten)]
    connector: ConnectorArgs,
    /// The connector's configuration: a JSON or YAML file, or - for stdin
    #[arg(long, value_name = "FILE")]
    config: String,
    /// The configured catalog: the streams to read, and how; of a catalog as `discover` prints it every stream is read
    #[arg(long, value_name = "FILE")]
    catalog: String,
    /// Where the rows go: a file with "destinationType" and its credentials [default: the Bulker of SYNCCTL_BULKER_URL,
    /// else the embedded database where it is used]
    #[arg(long, value_name = "FILE")]
    destination_config: Option<String>,
    /// The sync that this task belongs to: states are kept under it
    #[arg(long, value_name = "ID")]
    sync_id: String,
    /// Where to resume: a file with Airbyte state messages, or `db` for the state stored for the sync [default: from
    /// scratch]
    #[arg(long, value_name = "FILE|db")]
    state: Option<String>,
    /// Id of this task, unique among all tasks [default: a new UUID]
    #[arg(long, value_name = "ID")]
    task_id: Option<String>,
    /// Schema for the tables; ${SOURCE_NAMESPACE} stands for the stream's own, and with ${LEGACY} everything goes into
    /// the default schema, and the namespace into the tables' names
    #[arg(long, value_name = "NAMESPACE")]
    target_namespace: Option<String>,
    /// Put this before every table name; ${SOURCE_NAMESPACE} stands for the stream's namespace. A "table_name" in the
    /// catalog is taken as it is
    #[arg(long, value_name = "PREFIX", default_value = "", hide_default_value = true)]
    table_name_prefix: String,
    /// Lower-case table and column names
    #[arg(long)]
    to_same_case: bool,
    /// Add a column _jitsu_timestamp
    #[arg(long)]
    add_meta: bool,
    /// Append rows where the catalog asks for a merge by primary key
    #[arg(long)]
    no_deduplicate: bool,
    /// Start from scratch and replace the tables
    #[arg(long)]
    full_sync: bool,
    /// Ask the connector for debug messages
    #[arg(long)]
    debug: bool,
    /// End as a success once this many records, of all streams together, are loaded. A stream that is cut off then replaces
    /// no rows: where its table has some, its own are dropped
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
        debug,
        // The settings of this very command say it.
        silence_seconds: None,
        max_records,
    };
    run_task(task_args, |settings, timeout| {
        let mut task = new_task(TaskKind::Read, connector.image()?, Some(timeout.unwrap_or(settings.task_timeout)));
        task.sync_id = identifier(sync_id, "--sync-id")?;
        if let Some(id) = task_id {
            task.task_id = identifier(id, "--task-id")?;
        }
        if max_records.is_some() && settings.pod.init_image.is_some() {
            let text = "--max-records needs syncctl's own sidecar, and SYNCCTL_INIT_IMAGE asks for another one";
            return Err(Failure::new(Class::Usage, text));
        }
        task.options = options;
        let config = Document::read(&config, "the configuration")?.object("the connector's configuration")?;
        let catalog_file = Document::read(&catalog, "the catalog")?;
        let (catalog, catalog_text) = configured(&catalog_file)?;
        let destination = load_destination(destination_config.as_deref(), settings)?;
        if settings.warehouse.as_ref() == Some(&destination)
            && let Some(taken) = destination::among_ours(&catalog, &task.options.table_name_prefix)
        {
            return Err(catalog_file.error(&taken));
        }
        let state = load_state(state.as_deref(), settings, &task, &catalog)?;
        let payload = Payload {
            config: Some(config),
            catalog: Some(catalog_text),
            state,
            destination_config: Some(destination),
            functions_env: None,
        };
        Ok(Request { task, payload })
    })
}

/// The configured catalog of a file and its text, also where the file is what `discover` has printed.
fn configured(file: &Document) -> Result<(ConfiguredCatalog, String), Failure> {
    let expected = r#"a configured catalog such as {"streams":[{"stream":{…},"sync_mode":"full_refresh"}]}"#;
    let (value, _): (serde_json::Value, _) = file.typed(expected)?;
    let (catalog, text): (ConfiguredCatalog, String) = match catalog::from_discovered(&value) {
        Some(configured) => {
            let text = configured.to_string();
            let catalog = serde_json::from_value(configured)
                .map_err(|error| file.error(&document::without_values(&error.to_string())))?;
            (catalog, text)
        }
        None => file.typed(expected)?,
    };
    catalog.validate().map_err(|error| file.error(&error))?;
    Ok((catalog, text))
}

/// Ids end up in rows and annotations; nothing but an empty one is refused.
fn identifier(id: String, flag: &str) -> Result<String, Failure> {
    if id.trim().is_empty() || id.contains('\0') {
        return Err(Failure::new(Class::Usage, format!("{flag} is empty: expected an id such as orders-to-warehouse")));
    }
    Ok(id)
}

/// The destination's configuration, complete and checked.
fn load_destination(path: Option<&str>, settings: &Settings) -> Result<String, Failure> {
    let file = path.map(|path| Document::read(path, "the destination's configuration")).transpose()?;
    let given = file.as_ref().map(|file| file.object("the destination's credentials")).transpose()?;
    let completed = destination::completed(given.as_deref(), &settings.bulker);
    let Some(completed) = completed.or_else(|| settings.warehouse.clone()) else {
        let text = "there is no destination: give --destination-config, or set SYNCCTL_BULKER_URL";
        return Err(Failure::new(Class::Usage, text));
    };
    let invalid = |text: &str| match &file {
        Some(file) => file.error(text),
        None => Failure::new(Class::Usage, format!("the destination of SYNCCTL_BULKER_URL: {text}")),
    };
    let value = serde_json::from_str(&completed).map_err(|error| invalid(&error.to_string()))?;
    Destination::parse(&value).map_err(|error| invalid(&error.text))?;
    Ok(completed)
}

fn load_state(
    source: Option<&str>,
    settings: &Settings,
    task: &Task,
    catalog: &ConfiguredCatalog,
) -> Result<Option<String>, Failure> {
    match source {
        None => Ok(None),
        // A full sync is from scratch, whatever is stored or given.
        Some(_) if task.options.full_sync => Ok(None),
        Some("db") => {
            let target = Target::parse(&settings.database_url, "SYNCCTL_DATABASE_URL")?;
            let options =
                Options { application_name: "syncctl".to_owned(), pool_size: 1, retry_timeout: one_shot::PATIENCE };
            let db = Db::open(target, options)?;
            db.ensure_schema()?;
            let rows = db.states(&task.sync_id)?;
            state::from_rows(&rows, catalog).map_err(|error| Failure::new(Class::DatabaseError, error))
        }
        Some(path) => {
            let file = Document::read(path, "the state")?;
            let (_, text): (serde_json::Value, _) = file.typed("a list of Airbyte state messages")?;
            state::for_connector(&text, catalog).map_err(|error| file.error(&error))
        }
    }
}
