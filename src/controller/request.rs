//! Builds the request of a task from the options and documents of a caller, and validates it. Command line and HTTP
//! service translate their input and word the problems.

use std::time::Duration;

use jiff::Timestamp;
use serde::de::IgnoredAny;
use serde_json::Value;
use sha2::{Digest, Sha256};
use uuid::Uuid;

pub use super::destination::OptionNames;
use super::destination::{self, Completed};
use super::document::{Document, without_values};
use crate::airbyte::catalog::{ConfiguredCatalog, ConfiguredStream};
use crate::airbyte::state;
use crate::config::Settings;
use crate::db::RequestMark;
use crate::failure::{Class, Failure};
use crate::pod::payload::Payload;
use crate::sidecar::merge_key;
use crate::sidecar::sink::Destination;
use crate::task::{self, CdcDeletion, Image, ReadOptions, Task, TaskKind};

/// The default timeout of spec, check and discover: most connectors answer within seconds, large databases take minutes,
/// and the image may have to be pulled.
const SHORT_TIMEOUT: Duration = Duration::from_mins(10);
/// Linux limits one environment variable to 128 KiB.
const MAX_FUNCTIONS_ENV_BYTES: usize = 120 * 1024;

/// A validated task and its documents.
pub struct Request {
    /// The task.
    pub task: Task,
    /// Its documents.
    pub payload: Payload,
    /// The read resumes from the state stored for its sync, which is loaded for the streams of this catalog.
    pub stored_state: Option<ConfiguredCatalog>,
    /// Identifies the request: a caller may repeat it.
    pub mark: Option<RequestMark>,
    /// A scheduled read may start later.
    pub may_be_delayed: bool,
}

/// The documents of a read.
pub struct ReadDocuments<'a> {
    /// The connector's configuration.
    pub config: Document<'a>,
    /// The configured catalog.
    pub catalog: Document<'a>,
    /// Where the read resumes.
    pub state: StateSource<'a>,
    /// The destination's configuration, where the settings have no default.
    pub destination: Option<Document<'a>>,
    /// `FUNCTIONS_ENV` of a foreign sidecar.
    pub functions_env: Option<Document<'a>>,
}

/// Where a read resumes.
pub enum StateSource<'a> {
    /// From scratch.
    None,
    /// From the state stored for the sync.
    Stored,
    /// From these state messages.
    Given(Document<'a>),
}

/// A new task. A read needs its ids and options, check and discover their key.
pub fn new_task(kind: TaskKind, image: Image, timeout: Option<Duration>, started_by: Option<Value>) -> Task {
    Task {
        kind,
        image,
        connector_type: task::CONNECTOR_TYPE_AIRBYTE.to_owned(),
        task_id: Uuid::new_v4().to_string(),
        sync_id: String::new(),
        storage_key: String::new(),
        started_at: task::to_millis(Timestamp::now()),
        started_by,
        options: ReadOptions::default(),
        timeout: timeout.unwrap_or(SHORT_TIMEOUT),
        then_run: None,
    }
}

impl Request {
    /// A spec.
    pub fn spec(task: Task) -> Self {
        Self { task, payload: Payload::default(), stored_state: None, mark: None, may_be_delayed: false }
    }

    /// A check or a discover. Without a storage key the result is stored under a hash of image and configuration.
    pub fn configured(mut task: Task, storage_key: Option<String>, config: &Document<'_>) -> Result<Self, Failure> {
        let config = connector_config(config)?;
        task.storage_key = storage_key.unwrap_or_else(|| {
            let digest = Sha256::digest(format!("{}\n{config}", task.image).as_bytes());
            format!("cli-{}", hex::encode(&digest[..16]))
        });
        let payload = Payload { config: Some(config), ..Payload::default() };
        Ok(Self { task, payload, stored_state: None, mark: None, may_be_delayed: false })
    }

    /// A read, or all problems of its options and documents.
    pub fn read(
        task: Task,
        documents: ReadDocuments<'_>,
        settings: &Settings,
        names: &OptionNames,
    ) -> Result<Self, Vec<Failure>> {
        let ReadDocuments { config, catalog, state, destination, functions_env } = documents;
        let mut problems = Vec::new();
        let own_options = [
            (task.options.max_records.is_some(), names.max_records),
            (task.options.cdc_deletion.is_some(), names.cdc_deletion),
        ];
        for (_, name) in own_options.iter().filter(|(is_set, _)| *is_set && settings.pod.init_image.is_some()) {
            let needs = "needs syncctl's own sidecar, but SYNCCTL_INIT_IMAGE selects another";
            problems.push(Failure::new(Class::Usage, format!("{name} {needs}")));
        }
        let config = collect(&mut problems, connector_config(&config));
        let parsed_catalog = collect(&mut problems, configured_catalog(&catalog));
        let destination = collect(&mut problems, destination::complete(destination.as_ref(), settings, names));
        let (destination_config, destination_hosts) = destination.map(Completed::into_parts).unzip();
        if task.options.cdc_deletion == Some(CdcDeletion::Hard)
            && destination_config.as_deref().is_some_and(|config| !Destination::deletes_rows(config))
        {
            let text =
                format!("{}: only destinations of the type postgres delete rows: leave it out", names.cdc_deletion);
            problems.push(Failure::new(Class::Usage, text));
        }
        let functions_env = functions_env.and_then(|document| collect(&mut problems, checked_functions_env(&document)));
        let destination_hosts = destination_hosts.flatten();
        let mut payload =
            Payload { config, destination_config, destination_hosts, functions_env, ..Payload::default() };
        let mut stored_state = None;
        if let Some((parsed, text)) = parsed_catalog {
            let key_problem = |stream: &ConfiguredStream| stream.key_problem(merge_key(stream, &task.options));
            if let Some(problem) = parsed.streams.iter().find_map(key_problem) {
                problems.push(catalog.invalid(&problem));
            }
            let destination = payload.destination_config.as_deref();
            let checked = destination
                .map_or(Ok(()), |config| destination::check_tables(&parsed, &task.options, config, settings));
            collect(&mut problems, checked.map_err(|text| catalog.invalid(&text)));
            match state {
                StateSource::Given(state) if !task.options.full_sync => {
                    payload.state = collect(&mut problems, given_state(&state, &parsed)).flatten();
                }
                StateSource::Stored if !task.options.full_sync => stored_state = Some(parsed),
                // A full sync ignores any state.
                _ => {}
            }
            payload.catalog = Some(text);
        }
        if problems.is_empty() {
            Ok(Self { task, payload, stored_state, mark: None, may_be_delayed: false })
        } else {
            Err(problems)
        }
    }
}

fn collect<T>(problems: &mut Vec<Failure>, result: Result<T, Failure>) -> Option<T> {
    result.map_err(|failure| problems.push(failure)).ok()
}

fn connector_config(document: &Document<'_>) -> Result<String, Failure> {
    document.object("the connector's configuration")
}

fn configured_catalog(document: &Document<'_>) -> Result<(ConfiguredCatalog, String), Failure> {
    let expected = r#"a configured catalog such as {"streams":[{"stream":{…},"sync_mode":"full_refresh"}]}"#;
    let (catalog, text) = document.typed::<ConfiguredCatalog>(expected)?;
    catalog.validate().map_err(|error| document.invalid(&error))?;
    Ok((catalog, text))
}

fn given_state(document: &Document<'_>, catalog: &ConfiguredCatalog) -> Result<Option<String>, Failure> {
    let (_, text) = document.typed::<IgnoredAny>("a list of Airbyte state messages")?;
    state::for_connector(&text, catalog).map_err(|error| document.invalid(&without_values(&error)))
}

fn checked_functions_env(document: &Document<'_>) -> Result<String, Failure> {
    let (_, text) = document.typed::<IgnoredAny>("JSON")?;
    if text.len() > MAX_FUNCTIONS_ENV_BYTES {
        return Err(document.invalid(&format!("longer than {MAX_FUNCTIONS_ENV_BYTES} bytes")));
    }
    Ok(text)
}
