//! Builds the request of a task from the options and documents of a caller, and validates it. Command line and HTTP
//! service translate their input and word the problems.

use std::time::Duration;

use jiff::Timestamp;
use secrecy::ExposeSecret;
use serde::de::IgnoredAny;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::document::{Document, without_values};
use crate::airbyte::catalog::{ConfiguredCatalog, ConfiguredStream};
use crate::airbyte::state::{self, Progress};
use crate::config::{BulkerSettings, Settings};
use crate::db::{RequestMark, ResultsDatabase, local_server};
use crate::failure::{Class, Failure};
use crate::pod::payload::Payload;
use crate::secret::Secret;
use crate::sidecar::sink::Destination;
use crate::sidecar::{merge_key, stream_specs};
use crate::task::{self, CdcDeletion, Image, ReadOptions, Task, TaskKind};

/// The default timeout of spec, check and discover: most connectors answer within seconds, large databases take minutes,
/// and the image may have to be pulled.
const SHORT_TIMEOUT: Duration = Duration::from_mins(10);
/// Linux limits one environment variable to 128 KiB.
const MAX_FUNCTIONS_ENV_BYTES: usize = 120 * 1024;
/// The `destinationType` that the settings complete.
const BULKER: &str = "bulker";

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

/// What the caller names the options that a problem may be about.
pub struct OptionNames {
    /// The destination's configuration.
    pub destination: &'static str,
    /// The maximum number of records.
    pub max_records: &'static str,
    /// What becomes of rows that the source marks as deleted.
    pub cdc_deletion: &'static str,
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
        let destination_config = collect(&mut problems, complete_destination(destination.as_ref(), settings, names));
        if task.options.cdc_deletion == Some(CdcDeletion::Hard)
            && destination_config.as_deref().is_some_and(|config| !Destination::deletes_rows(config))
        {
            let text =
                format!("{}: only destinations of the type postgres delete rows: leave it out", names.cdc_deletion);
            problems.push(Failure::new(Class::Usage, text));
        }
        let functions_env = functions_env.and_then(|document| collect(&mut problems, checked_functions_env(&document)));
        let mut payload = Payload { config, destination_config, functions_env, ..Payload::default() };
        let mut stored_state = None;
        if let Some((parsed, text)) = parsed_catalog {
            let key_problem = |stream: &ConfiguredStream| stream.key_problem(merge_key(stream, &task.options));
            if let Some(problem) = parsed.streams.iter().find_map(key_problem) {
                problems.push(catalog.invalid(&problem));
            }
            let destination = payload.destination_config.as_deref();
            let checked = destination.map_or(Ok(()), |config| check_tables(&parsed, &task.options, config, settings));
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

/// The validated configuration of the destination, completed from the settings.
fn complete_destination(
    document: Option<&Document<'_>>,
    settings: &Settings,
    names: &OptionNames,
) -> Result<String, Failure> {
    let given = document.map(|document| document.object("the destination's credentials")).transpose()?;
    let of_bulker = given.as_deref().filter(|_| settings.pod.init_image.is_none()).and_then(type_of_another_loader);
    if let Some(kind) = of_bulker
        && let Some(url) = &settings.bulker.url
    {
        return bulker_for(&kind, url, settings.bulker.auth_token.as_ref());
    }
    // A foreign sidecar has other destinations than ours, and none by default.
    let is_foreign = settings.pod.init_image.is_some();
    let completed =
        if is_foreign { given } else { with_bulker(given, &settings.bulker).or_else(|| settings.warehouse.clone()) };
    let Some(completed) = completed else {
        let text = format!("there is no destination: set {} or SYNCCTL_BULKER_URL", names.destination);
        return Err(Failure::new(Class::Usage, text));
    };
    let invalid = |text: &str| match document {
        Some(document) => document.invalid(text),
        None => Failure::new(Class::Usage, format!("invalid destination of SYNCCTL_BULKER_URL: {text}")),
    };
    if !is_foreign {
        let value = serde_json::from_str(&completed).map_err(|error| invalid(&without_values(&error.to_string())))?;
        Destination::parse(&value).map_err(|failure| invalid(&failure.text))?;
    }
    Ok(completed)
}

/// The type of a destination that syncctl does not load itself.
fn type_of_another_loader(document: &str) -> Option<String> {
    let fields: Map<String, Value> = serde_json::from_str(document).ok()?;
    let kind = fields.get("destinationType")?.as_str()?;
    (!kind.is_empty() && !Destination::is_known(kind)).then(|| kind.to_owned())
}

/// The Bulker of the settings in place of a destination that syncctl does not load itself: its connection of the sync's id
/// has the credentials, so those of the caller go nowhere.
fn bulker_for(kind: &str, url: &str, token: Option<&Secret>) -> Result<String, Failure> {
    let invalid = |text: &str| {
        let text = format!("destinations of the type {kind:?} go to the Bulker of SYNCCTL_BULKER_URL: {text}");
        Failure::new(Class::Usage, text)
    };
    let token = token.ok_or_else(|| invalid("set SYNCCTL_BULKER_AUTH_TOKEN, too"))?;
    let document = json!({"destinationType": BULKER, "url": url, "authToken": token.expose_secret()});
    Destination::parse(&document).map_err(|failure| invalid(&failure.text))?;
    Ok(document.to_string())
}

/// Adds the Bulker of the settings to a destination that leaves it out; other destinations stay as they are. The token
/// belongs to the URL of the settings: a caller cannot have it sent to another one.
fn with_bulker(document: Option<String>, settings: &BulkerSettings) -> Option<String> {
    let mut fields = match document.as_deref().map(serde_json::from_str::<Map<String, Value>>) {
        None => Map::new(),
        Some(Ok(fields)) => fields,
        // The parser of the destination reports it.
        Some(Err(_)) => return document,
    };
    let is_set =
        |fields: &Map<String, Value>, name: &str| fields.get(name).is_some_and(|value| !value.is_null() && value != "");
    let is_bulker = match fields.get("destinationType") {
        Some(kind) if is_set(&fields, "destinationType") => kind == BULKER,
        _ => settings.url.is_some(),
    };
    if !is_bulker {
        return document;
    }
    fields.insert("destinationType".to_owned(), BULKER.into());
    if let Some(url) = &settings.url {
        if !is_set(&fields, "url") {
            fields.insert("url".to_owned(), url.as_str().into());
        }
        if let Some(token) = &settings.auth_token
            && fields["url"] == url.as_str()
            && !is_set(&fields, "authToken")
        {
            fields.insert("authToken".to_owned(), token.expose_secret().into());
        }
    }
    Some(Value::Object(fields).to_string())
}

/// Checks that no stream is loaded into one of our own tables, as far as the address of the destination shows. The sidecar
/// recognizes them whatever the address.
fn check_tables(
    catalog: &ConfiguredCatalog,
    options: &ReadOptions,
    destination: &str,
    settings: &Settings,
) -> Result<(), String> {
    // Other destinations, and an invalid URL, are reported elsewhere.
    let destination = serde_json::from_str(destination).ok().and_then(|config| Destination::parse(&config).ok());
    let default_schema = if settings.embedded.is_some() { local_server::SCHEMA } else { "public" };
    let (url, variable) = (&settings.pod.sidecar_database_url, "SYNCCTL_SIDECAR_DATABASE_URL");
    let results = ResultsDatabase::new(url, variable, default_schema, settings.own_schema());
    let (Some(destination), Ok(results)) = (destination, results) else { return Ok(()) };
    destination.check_tables(&results, stream_specs(catalog, options, &Progress::default()))
}

#[cfg(test)]
mod tests {
    use super::{bulker_for, type_of_another_loader, with_bulker};
    use crate::config::BulkerSettings;
    use crate::secret::Secret;
    use serde_json::{Value, json};

    fn settings(url: Option<&str>, token: Option<&str>) -> BulkerSettings {
        BulkerSettings { url: url.map(str::to_owned), auth_token: token.map(Secret::from) }
    }

    #[test]
    fn destinations_are_completed_from_the_settings() {
        let ours = settings(Some("http://ours"), Some("t0ken"));
        let whole = json!({"destinationType": "bulker", "url": "http://ours", "authToken": "t0ken"});
        for (label, document, expected) in [
            ("absent", None, Some(whole.clone())),
            ("empty", Some(json!({})), Some(whole.clone())),
            ("the type alone", Some(json!({"destinationType": "bulker"})), Some(whole.clone())),
            ("our URL", Some(json!({"destinationType": "bulker", "url": "http://ours"})), Some(whole.clone())),
            ("empty fields", Some(json!({"destinationType": "", "url": null, "authToken": ""})), Some(whole)),
            (
                "another field",
                Some(json!({"destinationId": "d"})),
                Some(
                    json!({"destinationId": "d", "destinationType": "bulker", "url": "http://ours", "authToken": "t0ken"}),
                ),
            ),
            (
                "another token",
                Some(json!({"authToken": "own"})),
                Some(json!({"authToken": "own", "destinationType": "bulker", "url": "http://ours"})),
            ),
            (
                "another type",
                Some(json!({"destinationType": "postgres"})),
                Some(json!({"destinationType": "postgres"})),
            ),
            ("a wrong type", Some(json!({"destinationType": 1})), Some(json!({"destinationType": 1}))),
        ] {
            let completed = with_bulker(document.map(|document| document.to_string()), &ours);
            let read: Option<Value> = completed.map(|text| serde_json::from_str(&text).expect("JSON"));
            assert_eq!(read, expected, "{label}");
        }
    }

    #[test]
    fn destinations_of_other_loaders_go_to_the_bulker_of_the_settings_without_their_credentials() {
        for (document, expected) in [
            (r#"{"destinationType":"clickhouse","password":"hunter2"}"#, Some("clickhouse")),
            (r#"{"destinationType":"a later one"}"#, Some("a later one")),
            (r#"{"destinationType":"postgres"}"#, None),
            (r#"{"destinationType":"bulker"}"#, None),
            (r#"{"destinationType":""}"#, None),
            (r#"{"destinationType":1}"#, None),
            ("{}", None),
            ("not JSON", None),
        ] {
            assert_eq!(type_of_another_loader(document).as_deref(), expected, "{document}");
        }
        let bulker = |url: &str, token: Option<&str>| bulker_for("s3", url, token.map(Secret::from).as_ref());
        let document: Value =
            serde_json::from_str(&bulker("http://ours", Some("t0ken")).expect("valid")).expect("JSON");
        assert_eq!(document, json!({"destinationType": "bulker", "url": "http://ours", "authToken": "t0ken"}));
        for (url, token, expected) in [
            ("http://ours", None, "set SYNCCTL_BULKER_AUTH_TOKEN"),
            ("http://u:hunter2@ours", Some("t0ken"), "destinationConfig.url: contains credentials"),
        ] {
            let failure = bulker(url, token).expect_err(expected);
            assert!(failure.text.starts_with(r#"destinations of the type "s3" go to the Bulker"#), "{failure}");
            assert!(failure.text.contains(expected) && !failure.text.contains("hunter2"), "{failure}");
        }
    }

    #[test]
    fn the_token_of_the_settings_is_sent_to_their_url_only() {
        let ours = settings(Some("http://ours"), Some("t0ken"));
        for url in ["http://ours.evil", "http://theirs", "http://ours/", "http://ours@theirs"] {
            for kind in [json!("bulker"), json!(null)] {
                let document = json!({"destinationType": kind, "url": url}).to_string();
                let text = with_bulker(Some(document), &ours).expect("a document");
                assert!(!text.contains("t0ken"), "{text}");
                assert!(text.contains(url), "{text}");
            }
        }
    }

    #[test]
    fn without_settings_destinations_stay_as_they_are() {
        let nothing = settings(None, None);
        assert_eq!(with_bulker(None, &nothing), None);
        for document in ["{}", "{\"url\": 1}", "not JSON", "{\"destinationType\":\"postgres\"}"] {
            assert_eq!(with_bulker(Some(document.to_owned()), &nothing).as_deref(), Some(document));
        }
    }
}
