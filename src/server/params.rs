//! Parses the query and the body of a request into a task and its documents, and reports all problems together.
//!
//! No message quotes a value from a body: bodies hold credentials.

use std::ops::RangeInclusive;
use std::time::Duration;

use jiff::Timestamp;
use secrecy::ExposeSecret;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::airbyte::catalog::ConfiguredCatalog;
use crate::airbyte::state;
use crate::config::Settings;
use crate::controller::destination::completed;
use crate::controller::document::without_values;
use crate::controller::request::{Request, SHORT_TASK};
use crate::pod::payload::Payload;
use crate::secret::Secret;
use crate::sidecar::sink::Destination;
use crate::task::{self, CONNECTOR_TYPE_AIRBYTE, Image, ReadOptions, Task, TaskKind};

/// Postgres limits an index entry to about 2,700 bytes; callers use UUIDs.
const MAX_ID_BYTES: usize = 512;
/// `startedBy` is stored in an annotation, and Kubernetes limits all annotations of a Pod together to 256 KiB.
const MAX_STARTED_BY_BYTES: usize = 16 * 1024;
/// Linux limits one environment variable to 128 KiB.
const MAX_FUNCTIONS_ENV_BYTES: usize = 120 * 1024;
/// The largest `silenceSeconds`: a week, longer than the default timeout of a task.
const MAX_SILENCE_SECONDS: u32 = 7 * 24 * 3600;

/// The problems of a request, one entry each.
pub type Problems = Vec<String>;

/// The query parameters of a request. The accessors collect problems; [`Query::finish`] returns them.
pub struct Query<'a> {
    pairs: &'a [(String, String)],
    problems: Problems,
}

impl<'a> Query<'a> {
    /// Parameters without an accessor are ignored: callers may send parameters of a newer version.
    pub fn new(pairs: &'a [(String, String)]) -> Self {
        Self { pairs, problems: Problems::new() }
    }

    /// The value of a parameter; an empty value counts as absent.
    pub fn optional(&mut self, name: &str) -> Option<&'a str> {
        let mut values = self.pairs.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str());
        let value = values.next();
        if values.next().is_some() {
            self.problems.push(format!("{name} is set more than once"));
        }
        value.filter(|value| !value.is_empty())
    }

    fn required(&mut self, name: &str) -> &'a str {
        if let Some(value) = self.optional(name) {
            return value;
        }
        self.problems.push(format!("{name} is missing"));
        ""
    }

    fn flag(&mut self, name: &str, default: bool) -> bool {
        match self.optional(name).map(str::to_ascii_lowercase).as_deref() {
            None => default,
            Some("true" | "1") => true,
            Some("false" | "0") => false,
            Some(_) => {
                self.problems.push(format!("{name} must be true or false"));
                default
            }
        }
    }

    /// A whole number in a range.
    pub fn number(&mut self, name: &str, default: u32, range: RangeInclusive<u32>) -> u32 {
        self.optional_number(name, range).unwrap_or(default)
    }

    fn optional_number(&mut self, name: &str, range: RangeInclusive<u32>) -> Option<u32> {
        let number = self.optional(name)?.parse().ok().filter(|number| range.contains(number));
        if number.is_none() {
            let (min, max) = (range.start(), range.end());
            self.problems.push(format!("{name} must be a whole number between {min} and {max}"));
        }
        number
    }

    /// `foreign_sidecar`: the sidecar is the Go one, which does not implement `maxRecords`.
    fn max_records(&mut self, foreign_sidecar: bool) -> Option<u64> {
        let text = self.optional("maxRecords")?;
        if foreign_sidecar {
            self.problems
                .push("maxRecords needs syncctl's own sidecar, but SYNCCTL_INIT_IMAGE selects another".to_owned());
            return None;
        }
        let records = ReadOptions::parse_max_records(text);
        records.map_err(|error| self.problems.push(format!("maxRecords: {error}"))).ok()
    }

    /// A required id or key: any text that the tables can store.
    pub fn id(&mut self, name: &str) -> String {
        let id = self.required(name);
        self.validated_id(name, id)
    }

    fn optional_id(&mut self, name: &str) -> Option<String> {
        self.optional(name).map(|id| self.validated_id(name, id))
    }

    fn validated_id(&mut self, name: &str, id: &str) -> String {
        if id.len() > MAX_ID_BYTES {
            self.problems.push(format!("{name} is longer than {MAX_ID_BYTES} bytes"));
        } else if id.chars().any(char::is_control) || (!id.is_empty() && id.trim().is_empty()) {
            self.problems.push(format!("{name} is blank or contains control characters"));
        }
        id.to_owned()
    }

    fn image(&mut self) -> Image {
        let (package, version) = (self.required("package"), self.required("version"));
        if !package.is_empty() && !version.is_empty() {
            match Image::new(package, version) {
                Ok(image) => return image,
                Err(error) => self.problems.push(format!("package or version: {error}")),
            }
        }
        Image { package: package.to_owned(), version: version.to_owned() }
    }

    fn connector_type(&mut self) -> String {
        let connector_type = self.optional("connectorType").unwrap_or(CONNECTOR_TYPE_AIRBYTE);
        if connector_type != CONNECTOR_TYPE_AIRBYTE {
            self.problems.push(format!("connectorType is unknown: the only known type is {CONNECTOR_TYPE_AIRBYTE}"));
        }
        connector_type.to_owned()
    }

    fn started_by(&mut self) -> Option<Value> {
        let text = self.optional("startedBy")?;
        if text.len() > MAX_STARTED_BY_BYTES {
            self.problems.push(format!("startedBy is longer than {MAX_STARTED_BY_BYTES} bytes"));
            return None;
        }
        let value = serde_json::from_str(text);
        value.map_err(|_| self.problems.push("startedBy is not JSON".to_owned())).ok()
    }

    /// All problems, or nothing.
    pub fn finish(self) -> Result<(), Problems> {
        if self.problems.is_empty() { Ok(()) } else { Err(self.problems) }
    }
}

/// The documents of a body, each as its original text.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    #[serde(borrow, default)]
    config: Option<&'a RawValue>,
    #[serde(borrow, default)]
    catalog: Option<&'a RawValue>,
    #[serde(borrow, default)]
    state: Option<&'a RawValue>,
    #[serde(borrow, default)]
    destination_config: Option<&'a RawValue>,
    #[serde(borrow, default)]
    functions_env: Option<&'a RawValue>,
}

impl<'a> Body<'a> {
    fn read(bytes: &'a [u8], problems: &mut Problems) -> Option<Self> {
        if bytes.iter().all(u8::is_ascii_whitespace) {
            problems.push("the body is empty: expected a JSON object".to_owned());
            return None;
        }
        // serde would accept a list as the fields in their order.
        if !bytes.trim_ascii_start().starts_with(b"{") && serde_json::from_slice::<IgnoredAny>(bytes).is_ok() {
            problems.push("the body is not a JSON object".to_owned());
            return None;
        }
        let parsed = serde_json::from_slice(bytes).map_err(|error| {
            let text = error.to_string();
            let text = without_values(text.split(" at line ").next().unwrap_or_default());
            problems.push(format!("invalid body: line {}, column {}: {text}", error.line(), error.column()));
        });
        parsed.ok()
    }

    /// The text of a document that must be an object.
    fn object(document: Option<&RawValue>, name: &str, problems: &mut Problems) -> Option<String> {
        match document.map(RawValue::get) {
            None | Some("null") => problems.push(format!("{name} is missing from the body")),
            Some(text) if !text.starts_with('{') => problems.push(format!("{name} in the body is not a JSON object")),
            Some(text) => return Some(text.to_owned()),
        }
        None
    }
}

fn new_task(kind: TaskKind, query: &mut Query<'_>, timeout: Duration) -> Task {
    Task {
        kind,
        image: query.image(),
        connector_type: query.connector_type(),
        task_id: Uuid::new_v4().to_string(),
        sync_id: String::new(),
        storage_key: String::new(),
        started_at: task::to_millis(Timestamp::now()),
        started_by: query.started_by(),
        options: ReadOptions::default(),
        timeout,
    }
}

fn request(mut query: Query<'_>, problems: Problems, task: Task, payload: Payload) -> Result<Request, Problems> {
    query.problems.extend(problems);
    query.finish()?;
    Ok(Request { task, payload })
}

/// `GET /spec`.
pub fn spec(pairs: &[(String, String)]) -> Result<Request, Problems> {
    let mut query = Query::new(pairs);
    let task = new_task(TaskKind::Spec, &mut query, SHORT_TASK);
    request(query, Problems::new(), task, Payload::default())
}

/// `POST /check` and `POST /discover`.
pub fn configured(kind: TaskKind, pairs: &[(String, String)], body: &[u8]) -> Result<Request, Problems> {
    let mut query = Query::new(pairs);
    let mut task = new_task(kind, &mut query, SHORT_TASK);
    task.storage_key = query.id("storageKey");
    if kind == TaskKind::Discover {
        // A discover that belongs to a sync logs under its ids.
        task.sync_id = query.optional_id("syncId").unwrap_or_default();
        task.task_id = query.optional_id("taskId").unwrap_or(task.task_id);
    }
    let mut problems = Problems::new();
    let body = Body::read(body, &mut problems);
    let config = body.and_then(|body| Body::object(body.config, "config", &mut problems));
    request(query, problems, task, Payload { config, ..Payload::default() })
}

/// `POST /read`. `installation` is stored with the task: several installations may share one database.
pub fn read(
    pairs: &[(String, String)],
    body: &[u8],
    settings: &Settings,
    installation: &str,
) -> Result<Request, Problems> {
    let mut query = Query::new(pairs);
    let mut task = new_task(TaskKind::Read, &mut query, settings.task_timeout);
    task.sync_id = query.id("syncId");
    task.task_id = query.id("taskId");
    task.options = ReadOptions {
        namespace: query.optional("namespace").map(str::to_owned),
        table_name_prefix: query.optional("tableNamePrefix").unwrap_or_default().to_owned(),
        to_same_case: query.flag("toSameCase", false),
        add_meta: query.flag("addMeta", false),
        deduplicate: query.flag("deduplicate", true),
        full_sync: query.flag("fullSync", false),
        debug: query.flag("debug", false),
        silence_seconds: query.optional_number("silenceSeconds", 1..=MAX_SILENCE_SECONDS),
        max_records: query.max_records(settings.pod.init_image.is_some()),
    };
    let fingerprint = fingerprint(&settings.database_url, pairs, body);
    task.started_by = Some(with_request(task.started_by.take(), &fingerprint, installation));
    let mut problems = Problems::new();
    let payload = match Body::read(body, &mut problems) {
        Some(body) => read_payload(&body, settings, &task, &mut problems),
        None => Payload::default(),
    };
    request(query, problems, task, payload)
}

fn read_payload(body: &Body<'_>, settings: &Settings, task: &Task, problems: &mut Problems) -> Payload {
    let config = Body::object(body.config, "config", problems);
    let catalog_text = Body::object(body.catalog, "catalog", problems);
    let destination_config = destination(body, settings, problems);
    let catalog = catalog_text.as_deref().and_then(|text| {
        let parsed = serde_json::from_str::<ConfiguredCatalog>(text);
        let parsed = parsed.map_err(|error| without_values(&error.to_string()));
        let valid = parsed.and_then(|catalog| catalog.validate().map(|()| catalog));
        valid.map_err(|error| problems.push(format!("invalid catalog in the body: {error}"))).ok()
    });
    let state = match (body.state, &catalog) {
        // A full sync ignores the state.
        (Some(state), Some(catalog)) if !task.options.full_sync => state::for_connector(state.get(), catalog)
            .map_err(|error| problems.push(format!("invalid state in the body: {}", without_values(&error))))
            .unwrap_or_default(),
        _ => None,
    };
    let functions_env = body.functions_env.map(RawValue::get).filter(|text| *text != "null").map(str::to_owned);
    if functions_env.as_ref().is_some_and(|text| text.len() > MAX_FUNCTIONS_ENV_BYTES) {
        problems.push(format!("functionsEnv in the body is longer than {MAX_FUNCTIONS_ENV_BYTES} bytes"));
    }
    Payload { config, catalog: catalog_text, state, destination_config, functions_env }
}

/// The text of the validated destination configuration, with the defaults of the service.
fn destination(body: &Body<'_>, settings: &Settings, problems: &mut Problems) -> Option<String> {
    // The Go sidecar has destinations that ours does not have, and no default one.
    if settings.pod.init_image.is_some() {
        return Body::object(body.destination_config, "destinationConfig", problems);
    }
    let text = completed(body.destination_config.map(RawValue::get), &settings.bulker);
    let Some(text) = text.or_else(|| settings.warehouse.clone()) else {
        problems.push("destinationConfig is missing from the body, and SYNCCTL_BULKER_URL is not set".to_owned());
        return None;
    };
    let parsed = serde_json::from_str::<Value>(&text).map_err(|error| without_values(&error.to_string()));
    let valid = match parsed {
        Ok(value) if !value.is_object() => {
            problems.push("destinationConfig in the body is not a JSON object".to_owned());
            return None;
        }
        Ok(value) => Destination::parse(&value).map_err(|failure| failure.text),
        Err(error) => Err(error),
    };
    if let Err(error) = valid {
        problems.push(format!("invalid destinationConfig in the body: {error}"));
    }
    Some(text)
}

/// Distinguishes a retry of a request from a different request with the same task id. It is stored with the task, so it
/// is keyed with a secret that all replicas share: otherwise it would help to guess credentials in the body.
fn fingerprint(key: &Secret, pairs: &[(String, String)], body: &[u8]) -> String {
    let mut sorted: Vec<_> = pairs.iter().collect();
    sorted.sort();
    let mut hasher = Sha256::new();
    for text in std::iter::once(key.expose_secret()).chain(sorted.iter().flat_map(|(key, value)| [&**key, &**value])) {
        hasher.update((text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    }
    hasher.update(body);
    hex::encode(&hasher.finalize()[..16])
}

/// Adds the entry `syncctl` to `started_by`: the table belongs to other programs as well and has no column for it.
fn with_request(started_by: Option<Value>, fingerprint: &str, installation: &str) -> Value {
    let entry = json!({"request": fingerprint, "fleet": installation});
    match started_by {
        None | Some(Value::Null) => json!({"type": "api", "syncctl": entry}),
        Some(Value::Object(mut fields)) => {
            fields.insert("syncctl".to_owned(), entry);
            Value::Object(fields)
        }
        Some(other) => json!({"type": "api", "value": other, "syncctl": entry}),
    }
}

/// Whether the `started_by` of a stored row belongs to the same request as `task`.
pub fn is_same_request(stored: Option<&str>, task: &Task) -> bool {
    let request = |started_by: &Value| started_by.pointer("/syncctl/request").cloned();
    let stored = stored.and_then(|text| serde_json::from_str::<Value>(text).ok());
    let current = task.started_by.as_ref().and_then(request);
    current.is_some() && stored.as_ref().and_then(request) == current
}

#[cfg(test)]
mod tests {
    use super::{Query, configured, is_same_request, spec, with_request};
    use crate::task::TaskKind;
    use serde_json::json;

    fn pairs(text: &str) -> Vec<(String, String)> {
        url::form_urlencoded::parse(text.as_bytes()).into_owned().collect()
    }

    #[test]
    fn query_reports_all_problems_together() {
        let problems = spec(&pairs("version=1&connectorType=x&version=2")).err().expect("problems");
        let connector_type = "connectorType is unknown: the only known type is airbyte";
        assert_eq!(problems, ["package is missing", "version is set more than once", connector_type]);
    }

    #[test]
    fn max_records_is_a_positive_number_and_needs_our_own_sidecar() {
        for (query, foreign, expected, problem) in [
            ("", false, None, None),
            ("", true, None, None),
            ("maxRecords=", true, None, None),
            ("maxRecords=10", false, Some(10), None),
            ("maxRecords=18446744073709551615", false, Some(u64::MAX), None),
            ("maxRecords=0", false, None, Some(r#"maxRecords: "0" is not a number of records: expected at least 1"#)),
            ("maxRecords=x", false, None, Some(r#"maxRecords: "x" is not a number of records: expected at least 1"#)),
            (
                "maxRecords=10",
                true,
                None,
                Some("maxRecords needs syncctl's own sidecar, but SYNCCTL_INIT_IMAGE selects another"),
            ),
        ] {
            let pairs = pairs(query);
            let mut parsed = Query::new(&pairs);
            assert_eq!(parsed.max_records(foreign), expected, "{query}");
            assert_eq!(parsed.finish().err().unwrap_or_default(), Vec::from_iter(problem), "{query}");
        }
    }

    #[test]
    fn invalid_body_is_reported_without_its_values() {
        for (label, body, expected) in [
            ("empty", " ", "the body is empty"),
            ("a list", r#"[{"a":"hunter2"}]"#, "not a JSON object"),
            ("a text", r#""hunter2""#, "not a JSON object"),
            ("cut off", r#"{"config":{"password":"hunter2"#, "invalid body: line 1, column"),
            ("no config", "{}", "config is missing from the body"),
            ("null", r#"{"config":null}"#, "config is missing from the body"),
            ("a wrong type", r#"{"config":"hunter2"}"#, "config in the body is not a JSON object"),
            ("twice", r#"{"config":{},"config":{}}"#, "duplicate field"),
        ] {
            let query = pairs("package=a/b&version=1&storageKey=k");
            let problems = configured(TaskKind::Check, &query, body.as_bytes()).err().expect(label);
            assert_eq!(problems.len(), 1, "{label}: {problems:?}");
            assert!(problems[0].contains(expected), "{label}: {problems:?}");
            assert!(!problems[0].contains("hunter"), "{label}: {problems:?}");
        }
    }

    #[test]
    fn config_keeps_its_original_text() {
        let query = pairs("package=a/b&version=1&storageKey=k");
        let body = br#"{"other":1,"config": {"b":1.00000000000000000001,"a":2}}"#;
        let request = configured(TaskKind::Check, &query, body).unwrap_or_else(|problems| panic!("{problems:?}"));
        assert_eq!(request.payload.config.as_deref(), Some(r#"{"b":1.00000000000000000001,"a":2}"#));
    }

    #[test]
    fn retry_of_a_request_is_recognized() {
        let mut task = spec(&pairs("package=a/b&version=1")).unwrap_or_else(|problems| panic!("{problems:?}")).task;
        task.started_by = Some(with_request(Some(json!({"type": "manual"})), "f", "m"));
        assert!(is_same_request(Some(r#"{"syncctl":{"request":"f"}}"#), &task));
        assert!(!is_same_request(Some(r#"{"syncctl":{"request":"g"}}"#), &task));
        assert!(!is_same_request(None, &task));
        task.started_by = None;
        assert!(!is_same_request(Some("{}"), &task));
    }
}
