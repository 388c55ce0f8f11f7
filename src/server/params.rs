//! What a caller sends, turned into a task and its documents. Everything that is missing or malformed is told at once.
//!
//! No message quotes a value of a body: it holds secrets.

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

/// The longest id or key: an index entry of Postgres ends at about 2,700 bytes, and ids of callers are UUIDs.
const LONGEST_ID: usize = 512;
/// The longest `startedBy`: it travels in an annotation, and all of a Pod's annotations together end at 256 KiB.
const LONGEST_STARTED_BY: usize = 16 * 1024;
/// The longest `functionsEnv`: Linux ends one environment variable at 128 KiB.
const LONGEST_FUNCTIONS_ENV: usize = 120 * 1024;
/// The longest silence of a connector that a caller may allow: as long as a task may take by default, and then some.
const LONGEST_SILENCE: u32 = 7 * 24 * 3600;

/// What is wrong with a request, one entry each.
pub type Problems = Vec<String>;

/// The query of a request, read once; whatever is asked for and not there in order is a problem.
pub struct Query<'a> {
    pairs: &'a [(String, String)],
    problems: Problems,
}

impl<'a> Query<'a> {
    /// Nothing was asked for yet. A parameter that nobody asks for is ignored: callers may know more of them than we do.
    pub fn new(pairs: &'a [(String, String)]) -> Self {
        Self { pairs, problems: Problems::new() }
    }

    /// The value, if there is one; an empty one counts as absent.
    pub fn optional(&mut self, name: &str) -> Option<&'a str> {
        let mut values = self.pairs.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str());
        let value = values.next();
        if values.next().is_some() {
            self.problems.push(format!("{name} is given more than once"));
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
                self.problems.push(format!("{name} is neither true nor false"));
                default
            }
        }
    }

    /// A whole number within a range.
    pub fn number(&mut self, name: &str, default: u32, range: RangeInclusive<u32>) -> u32 {
        self.optional_number(name, range).unwrap_or(default)
    }

    /// A whole number within a range, if there is one.
    fn optional_number(&mut self, name: &str, range: RangeInclusive<u32>) -> Option<u32> {
        let number = self.optional(name)?.parse().ok().filter(|number| range.contains(number));
        if number.is_none() {
            let (least, most) = (range.start(), range.end());
            self.problems.push(format!("{name} is not a whole number between {least} and {most}"));
        }
        number
    }

    /// After how many records to end, if that is asked for; a foreign sidecar does not know how.
    fn max_records(&mut self, foreign: bool) -> Option<u64> {
        let text = self.optional("maxRecords")?;
        if foreign {
            self.problems.push("maxRecords needs syncctl's own sidecar, and the service runs another one".to_owned());
            return None;
        }
        let records = ReadOptions::parse_max_records(text);
        records.map_err(|error| self.problems.push(format!("maxRecords: {error}"))).ok()
    }

    /// An id or key: any text that the tables can hold.
    pub fn id(&mut self, name: &str) -> String {
        let id = self.required(name);
        self.as_id(name, id)
    }

    fn optional_id(&mut self, name: &str) -> Option<String> {
        self.optional(name).map(|id| self.as_id(name, id))
    }

    fn as_id(&mut self, name: &str, id: &str) -> String {
        if id.len() > LONGEST_ID {
            self.problems.push(format!("{name} is longer than {LONGEST_ID} bytes"));
        } else if id.chars().any(char::is_control) || (!id.is_empty() && id.trim().is_empty()) {
            self.problems.push(format!("{name} holds blanks or control characters alone: expected an id"));
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
            self.problems.push(format!("connectorType is unknown: the known one is {CONNECTOR_TYPE_AIRBYTE}"));
        }
        connector_type.to_owned()
    }

    fn started_by(&mut self) -> Option<Value> {
        let text = self.optional("startedBy")?;
        if text.len() > LONGEST_STARTED_BY {
            self.problems.push(format!("startedBy is longer than {LONGEST_STARTED_BY} bytes"));
            return None;
        }
        let value = serde_json::from_str(text);
        value.map_err(|_| self.problems.push("startedBy is not JSON".to_owned())).ok()
    }

    /// Nothing, or all that is wrong.
    pub fn finish(self) -> Result<(), Problems> {
        if self.problems.is_empty() { Ok(()) } else { Err(self.problems) }
    }
}

/// The documents of a body, each as the text that it was.
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
        // A list would be taken for the fields in their order.
        if !bytes.trim_ascii_start().starts_with(b"{") && serde_json::from_slice::<IgnoredAny>(bytes).is_ok() {
            problems.push("the body is not a JSON object".to_owned());
            return None;
        }
        let told = |error: serde_json::Error| {
            let text = error.to_string();
            let text = without_values(text.split(" at line ").next().unwrap_or_default());
            format!("the body, line {}, column {}: {text}", error.line(), error.column())
        };
        serde_json::from_slice(bytes).map_err(|error| problems.push(told(error))).ok()
    }

    /// A document that has to be an object.
    fn object(document: Option<&RawValue>, name: &str, problems: &mut Problems) -> Option<String> {
        match document.map(RawValue::get) {
            None | Some("null") => problems.push(format!("{name} is missing in the body")),
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

/// `POST /read`. `marker` tells this installation's rows from others'.
pub fn read(pairs: &[(String, String)], body: &[u8], settings: &Settings, marker: &str) -> Result<Request, Problems> {
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
        silence_seconds: query.optional_number("silenceSeconds", 1..=LONGEST_SILENCE),
        max_records: query.max_records(settings.pod.init_image.is_some()),
    };
    task.started_by = Some(marked(task.started_by.take(), &fingerprint(&settings.database_url, pairs, body), marker));
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
        valid.map_err(|error| problems.push(format!("catalog in the body: {error}"))).ok()
    });
    let state = match (body.state, &catalog) {
        // A full sync is from scratch, whatever is given.
        (Some(state), Some(catalog)) if !task.options.full_sync => state::for_connector(state.get(), catalog)
            .map_err(|error| problems.push(format!("state in the body: {}", without_values(&error))))
            .unwrap_or_default(),
        _ => None,
    };
    let functions_env = body.functions_env.map(RawValue::get).filter(|text| *text != "null").map(str::to_owned);
    if functions_env.as_ref().is_some_and(|text| text.len() > LONGEST_FUNCTIONS_ENV) {
        problems.push(format!("functionsEnv in the body is longer than {LONGEST_FUNCTIONS_ENV} bytes"));
    }
    Payload { config, catalog: catalog_text, state, destination_config, functions_env }
}

/// The destination's configuration, complete and checked.
fn destination(body: &Body<'_>, settings: &Settings, problems: &mut Problems) -> Option<String> {
    // A foreign sidecar knows destinations that ours does not, and has no Bulker beside them.
    if settings.pod.init_image.is_some() {
        return Body::object(body.destination_config, "destinationConfig", problems);
    }
    let text = completed(body.destination_config.map(RawValue::get), &settings.bulker);
    let Some(text) = text.or_else(|| settings.warehouse.clone()) else {
        problems.push("destinationConfig is missing in the body, and SYNCCTL_BULKER_URL is not set".to_owned());
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
        problems.push(format!("destinationConfig in the body: {error}"));
    }
    Some(text)
}

/// What tells a request that is sent again from another one under the same id. Keyed with a secret that all replicas
/// share: it is stored, and must not help to guess what is in the body.
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

/// `started_by` with our own entry in it: there is no column for it, and other programs own the table.
fn marked(started_by: Option<Value>, fingerprint: &str, marker: &str) -> Value {
    let mark = json!({"request": fingerprint, "fleet": marker});
    match started_by {
        None | Some(Value::Null) => json!({"type": "api", "syncctl": mark}),
        Some(Value::Object(mut fields)) => {
            fields.insert("syncctl".to_owned(), mark);
            Value::Object(fields)
        }
        Some(other) => json!({"type": "api", "value": other, "syncctl": mark}),
    }
}

/// Whether a stored row was made by the very same request.
pub fn is_same_request(stored: Option<&str>, task: &Task) -> bool {
    let request = |started_by: &Value| started_by.pointer("/syncctl/request").cloned();
    let stored = stored.and_then(|text| serde_json::from_str::<Value>(text).ok());
    let asked = task.started_by.as_ref().and_then(request);
    asked.is_some() && stored.as_ref().and_then(request) == asked
}

#[cfg(test)]
mod tests {
    use super::{Query, configured, is_same_request, marked, spec};
    use crate::task::TaskKind;
    use serde_json::json;

    fn pairs(text: &str) -> Vec<(String, String)> {
        url::form_urlencoded::parse(text.as_bytes()).into_owned().collect()
    }

    #[test]
    fn all_that_is_wrong_with_a_query_is_told_at_once() {
        let told = spec(&pairs("version=1&connectorType=x&version=2")).err().expect("much is wrong");
        let connector_type = "connectorType is unknown: the known one is airbyte";
        assert_eq!(told, ["package is missing", "version is given more than once", connector_type]);
    }

    #[test]
    fn how_many_records_are_enough_is_a_number_that_our_own_sidecar_counts_to() {
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
                Some("maxRecords needs syncctl's own sidecar, and the service runs another one"),
            ),
        ] {
            let pairs = pairs(query);
            let mut asked = Query::new(&pairs);
            assert_eq!(asked.max_records(foreign), expected, "{query}");
            assert_eq!(asked.finish().err().unwrap_or_default(), Vec::from_iter(problem), "{query}");
        }
    }

    #[test]
    fn a_body_that_is_not_what_it_has_to_be_is_told_without_its_values() {
        for (label, body, expected) in [
            ("empty", " ", "the body is empty"),
            ("a list", r#"[{"a":"hunter2"}]"#, "not a JSON object"),
            ("a text", r#""hunter2""#, "not a JSON object"),
            ("cut off", r#"{"config":{"password":"hunter2"#, "the body, line 1, column"),
            ("no config", "{}", "config is missing in the body"),
            ("null", r#"{"config":null}"#, "config is missing in the body"),
            ("a wrong type", r#"{"config":"hunter2"}"#, "config in the body is not a JSON object"),
            ("twice", r#"{"config":{},"config":{}}"#, "duplicate field"),
        ] {
            let query = pairs("package=a/b&version=1&storageKey=k");
            let told = configured(TaskKind::Check, &query, body.as_bytes()).err().expect(label);
            assert_eq!(told.len(), 1, "{label}: {told:?}");
            assert!(told[0].contains(expected), "{label}: {told:?}");
            assert!(!told[0].contains("hunter"), "{label}: {told:?}");
        }
    }

    #[test]
    fn a_configuration_stays_the_text_that_it_was() {
        let query = pairs("package=a/b&version=1&storageKey=k");
        let body = br#"{"other":1,"config": {"b":1.00000000000000000001,"a":2}}"#;
        let request = configured(TaskKind::Check, &query, body).unwrap_or_else(|told| panic!("{told:?}"));
        assert_eq!(request.payload.config.as_deref(), Some(r#"{"b":1.00000000000000000001,"a":2}"#));
    }

    #[test]
    fn the_same_request_is_known_again() {
        let mut task = spec(&pairs("package=a/b&version=1")).unwrap_or_else(|told| panic!("{told:?}")).task;
        task.started_by = Some(marked(Some(json!({"type": "manual"})), "f", "m"));
        assert!(is_same_request(Some(r#"{"syncctl":{"request":"f"}}"#), &task));
        assert!(!is_same_request(Some(r#"{"syncctl":{"request":"g"}}"#), &task));
        assert!(!is_same_request(None, &task));
        task.started_by = None;
        assert!(!is_same_request(Some("{}"), &task));
    }
}
