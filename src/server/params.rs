//! Parses the query and the body of a request into a task and its documents, and reports all problems together.
//!
//! No message quotes a value from a body: bodies hold credentials.

use std::ops::RangeInclusive;
use std::time::Duration;

use secrecy::ExposeSecret;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use crate::config::Settings;
use crate::controller::document::{Document, without_values};
use crate::controller::request::{OptionNames, ReadDocuments, Request, StateSource, new_task};
use crate::db::RequestMark;
use crate::failure::Failure;
use crate::secret::Secret;
use crate::task::{CONNECTOR_TYPE_AIRBYTE, CdcDeletion, Image, ReadOptions, Task, TaskKind};

/// Postgres limits an index entry to about 2,700 bytes; callers use UUIDs.
const MAX_ID_BYTES: usize = 512;
/// `startedBy` is stored in an annotation, and Kubernetes limits all annotations of a Pod together to 256 KiB.
const MAX_STARTED_BY_BYTES: usize = 16 * 1024;
/// The largest `silenceSeconds`: a week, longer than the default timeout of a task.
const MAX_SILENCE_SECONDS: u32 = 7 * 24 * 3600;

/// Tasks of a list without `limit`.
pub const DEFAULT_TASKS: u32 = 50;
/// Log lines of a task without `logs`.
pub const DEFAULT_LOG_LINES: u32 = 100;

/// The problems of a request, one entry each.
pub type Problems = Vec<String>;

/// The query parameters of a request. The accessors collect problems; [`Query::finish`] returns them.
struct Query<'a> {
    pairs: &'a [(String, String)],
    problems: Problems,
}

impl<'a> Query<'a> {
    /// Parameters without an accessor are ignored: callers may send parameters of a newer version.
    fn new(pairs: &'a [(String, String)]) -> Self {
        Self { pairs, problems: Problems::new() }
    }

    /// The value of a parameter; an empty value counts as absent.
    fn optional(&mut self, name: &str) -> Option<&'a str> {
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
    fn number(&mut self, name: &str, default: u32, range: RangeInclusive<u32>) -> u32 {
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

    fn cdc_deletion(&mut self) -> Option<CdcDeletion> {
        let deletion = self.optional("cdcDeletion")?.parse();
        deletion.map_err(|error: String| self.problems.push(format!("cdcDeletion: {error}"))).ok()
    }

    fn max_records(&mut self) -> Option<u64> {
        let records = ReadOptions::parse_max_records(self.optional("maxRecords")?);
        records.map_err(|error| self.problems.push(format!("maxRecords: {error}"))).ok()
    }

    /// A required id or key: any text that the tables can store.
    fn id(&mut self, name: &str) -> String {
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

    fn started_by(&mut self) -> Option<Value> {
        let text = self.optional("startedBy")?;
        if text.len() > MAX_STARTED_BY_BYTES {
            self.problems.push(format!("startedBy is longer than {MAX_STARTED_BY_BYTES} bytes"));
            return None;
        }
        let value = serde_json::from_str(text);
        value.map_err(|_| self.problems.push("startedBy is not JSON".to_owned())).ok()
    }

    /// The new task that the parameters describe.
    fn task(&mut self, kind: TaskKind, timeout: Option<Duration>) -> Task {
        let image = self.image();
        if self.optional("connectorType").is_some_and(|connector_type| connector_type != CONNECTOR_TYPE_AIRBYTE) {
            self.problems.push(format!("connectorType is unknown: the only known type is {CONNECTOR_TYPE_AIRBYTE}"));
        }
        new_task(kind, image, timeout, self.started_by())
    }

    /// The documents of the body. The problems of the parameters are reported with those of an invalid body.
    fn body<'b>(&mut self, bytes: &'b [u8]) -> Result<Body<'b>, Problems> {
        Body::parse(bytes).map_err(|problem| {
            self.problems.push(problem);
            std::mem::take(&mut self.problems)
        })
    }

    /// The request, or all problems of the parameters and the documents.
    fn finish_request(mut self, request: Result<Request, Vec<Failure>>) -> Result<Request, Problems> {
        match request {
            Ok(request) => self.finish().map(|()| request),
            Err(failures) => {
                self.problems.extend(failures.into_iter().map(|failure| failure.text));
                Err(self.problems)
            }
        }
    }

    /// All problems, or nothing.
    fn finish(self) -> Result<(), Problems> {
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
    fn parse(bytes: &'a [u8]) -> Result<Self, String> {
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Err("the body is empty: expected a JSON object".to_owned());
        }
        // serde would accept a list as the fields in their order.
        if !bytes.trim_ascii_start().starts_with(b"{") && serde_json::from_slice::<IgnoredAny>(bytes).is_ok() {
            return Err("the body is not a JSON object".to_owned());
        }
        serde_json::from_slice(bytes).map_err(|error| {
            let text = error.to_string();
            let text = without_values(text.split(" at line ").next().unwrap_or_default());
            format!("invalid body: line {}, column {}: {text}", error.line(), error.column())
        })
    }

    fn config(&self) -> Document<'a> {
        Document::of_field("config", self.config.map_or("", RawValue::get))
    }
}

/// `GET /spec`.
pub fn spec(pairs: &[(String, String)]) -> Result<Request, Problems> {
    let mut query = Query::new(pairs);
    let task = query.task(TaskKind::Spec, None);
    query.finish_request(Ok(Request::spec(task)))
}

/// `POST /check` and `POST /discover`.
///
/// A discover with `thenRun` has a row like a read, and so a mark; `key` is that of its fingerprint.
pub fn configured(
    kind: TaskKind,
    pairs: &[(String, String)],
    body: &[u8],
    key: &Secret,
    installation: &str,
) -> Result<Request, Problems> {
    let mut query = Query::new(pairs);
    let mut task = query.task(kind, None);
    let storage_key = query.id("storageKey");
    if kind == TaskKind::Discover {
        // A discover that belongs to a sync logs under its ids.
        let ids = ["syncId", "taskId", "workspaceId"].map(|name| (name, query.optional_id(name)));
        if query.flag("thenRun", false) {
            let missing = ids.iter().filter(|(_, id)| id.is_none());
            query.problems.extend(missing.map(|(name, _)| format!("{name} is missing")));
            task.then_run = Some(String::new());
        }
        let [(_, sync_id), (_, task_id), (_, workspace)] = ids;
        task.sync_id = sync_id.unwrap_or_default();
        task.task_id = task_id.unwrap_or(task.task_id);
        if let (Some(then_run), Some(workspace)) = (&mut task.then_run, workspace) {
            // A segment of the path of the console's request.
            if [".", ".."].contains(&workspace.as_str()) {
                query.problems.push("workspaceId consists of dots".to_owned());
            }
            *then_run = workspace;
        }
    }
    let mark = task
        .then_run
        .is_some()
        .then(|| RequestMark { fingerprint: fingerprint(key, pairs, body), installation: installation.to_owned() });
    let body = query.body(body)?;
    let request = Request::configured(task, Some(storage_key), &body.config()).map_err(|failure| vec![failure]);
    query.finish_request(request.map(|request| Request { mark, ..request }))
}

/// `POST /read`. `installation` is stored with the request: several installations may share one database.
pub fn read(
    pairs: &[(String, String)],
    body: &[u8],
    settings: &Settings,
    installation: &str,
) -> Result<Request, Problems> {
    let mut query = Query::new(pairs);
    let mut task = query.task(TaskKind::Read, Some(settings.task_timeout));
    task.sync_id = query.id("syncId");
    task.task_id = query.id("taskId");
    task.options = ReadOptions {
        namespace: query.optional("namespace").map(str::to_owned),
        table_name_prefix: query.optional("tableNamePrefix").unwrap_or_default().to_owned(),
        to_same_case: query.flag("toSameCase", false),
        add_meta: query.flag("addMeta", false),
        deduplicate: query.flag("deduplicate", true),
        full_sync: query.flag("fullSync", false),
        // The meaning that callers of the existing implementation rely on.
        console_overwrite: true,
        cdc_deletion: query.cdc_deletion(),
        debug: query.flag("debug", false),
        silence_seconds: query.optional_number("silenceSeconds", 1..=MAX_SILENCE_SECONDS),
        max_records: query.max_records(),
    };
    let fingerprint = fingerprint(&settings.database_url, pairs, body);
    let mark = RequestMark { fingerprint, installation: installation.to_owned() };
    let body = query.body(body)?;
    let documents = ReadDocuments {
        config: body.config(),
        catalog: Document::of_field("catalog", body.catalog.map_or("", RawValue::get)),
        state: body.state.map_or(StateSource::None, |raw| StateSource::Given(Document::of_field("state", raw.get()))),
        destination: body.destination_config.map(|raw| Document::of_field("destinationConfig", raw.get())),
        functions_env: body.functions_env.map(|raw| Document::of_field("functionsEnv", raw.get())),
    };
    let may_be_delayed = !query.flag("nodelay", false) && task.is_scheduled();
    let request = Request::read(task, documents, settings, &OPTION_NAMES);
    query.finish_request(request.map(|request| Request { mark: Some(mark), may_be_delayed, ..request }))
}

/// The parameters of `GET /cancel`.
pub struct Cancel {
    /// The package of the connector, which callers leave empty or get wrong.
    pub package: Option<String>,
    /// The sync of the task.
    pub sync_id: String,
    /// The task.
    pub task_id: String,
}

/// `GET /cancel`.
pub fn cancel(pairs: &[(String, String)]) -> Result<Cancel, Problems> {
    let mut query = Query::new(pairs);
    let package = query.optional("package").map(str::to_owned);
    let cancel = Cancel { package, sync_id: query.id("syncId"), task_id: query.id("taskId") };
    query.finish().map(|()| cancel)
}

/// `GET /tasks`: the sync, and the maximum number of tasks.
pub fn tasks(pairs: &[(String, String)]) -> Result<(String, u32), Problems> {
    let mut query = Query::new(pairs);
    let tasks = (query.id("syncId"), query.number("limit", DEFAULT_TASKS, 1..=500));
    query.finish().map(|()| tasks)
}

/// `GET /tasks/{taskId}`: the maximum number of log lines, if it is given.
pub fn task(pairs: &[(String, String)]) -> Result<Option<u32>, Problems> {
    let mut query = Query::new(pairs);
    let lines = query.optional_number("logs", 0..=1000);
    query.finish().map(|()| lines)
}

const OPTION_NAMES: OptionNames =
    OptionNames { destination: "destinationConfig", max_records: "maxRecords", cdc_deletion: "cdcDeletion" };

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

#[cfg(test)]
mod tests {
    use super::{Query, configured, spec};
    use crate::task::TaskKind;

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
    fn a_discover_that_a_read_follows_needs_its_ids_and_a_workspace() {
        let parse = |query: &str| {
            let query = format!("package=a/b&version=1&storageKey=k&{query}");
            configured(TaskKind::Discover, &pairs(&query), br#"{"config":{}}"#, &"key".into(), "i")
        };
        let request =
            parse("thenRun=true&syncId=s&taskId=t&workspaceId=w").unwrap_or_else(|problems| panic!("{problems:?}"));
        assert_eq!((request.task.then_run.as_deref(), request.task.has_row()), (Some("w"), true));
        assert_eq!(request.mark.expect("a mark").installation, "i");
        for query in ["", "thenRun=false&workspaceId=w", "syncId=s&taskId=t"] {
            let request = parse(query).unwrap_or_else(|problems| panic!("{problems:?}"));
            assert!(request.task.then_run.is_none() && request.mark.is_none(), "{query}");
        }
        let missing = ["syncId is missing", "taskId is missing", "workspaceId is missing"];
        assert_eq!(parse("thenRun=1").err().expect("problems"), missing);
        for workspace in [".", ".."] {
            let problems = parse(&format!("thenRun=1&syncId=s&taskId=t&workspaceId={workspace}")).err();
            assert_eq!(problems.expect("problems"), ["workspaceId consists of dots"]);
        }
    }

    #[test]
    fn max_records_is_a_positive_number() {
        let problem = |text| Some(format!("maxRecords: {text:?} is not a number of records: expected at least 1"));
        for (query, expected, problem) in [
            ("", None, None),
            ("maxRecords=", None, None),
            ("maxRecords=10", Some(10), None),
            ("maxRecords=18446744073709551615", Some(u64::MAX), None),
            ("maxRecords=0", None, problem("0")),
            ("maxRecords=x", None, problem("x")),
        ] {
            let pairs = pairs(query);
            let mut parsed = Query::new(&pairs);
            assert_eq!(parsed.max_records(), expected, "{query}");
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
            ("a wrong type", r#"{"config":"hunter2"}"#, "invalid config in the body: expected a JSON object"),
            ("twice", r#"{"config":{},"config":{}}"#, "duplicate field"),
        ] {
            let query = pairs("package=a/b&version=1&storageKey=k");
            let problems = configured(TaskKind::Check, &query, body.as_bytes(), &"key".into(), "i").err().expect(label);
            assert_eq!(problems.len(), 1, "{label}: {problems:?}");
            assert!(problems[0].contains(expected), "{label}: {problems:?}");
            assert!(!problems[0].contains("hunter"), "{label}: {problems:?}");
        }
    }

    #[test]
    fn config_keeps_its_original_text() {
        let query = pairs("package=a/b&version=1&storageKey=k");
        let body = br#"{"other":1,"config": {"b":1.00000000000000000001,"a":2}}"#;
        let request = configured(TaskKind::Check, &query, body, &"key".into(), "i")
            .unwrap_or_else(|problems| panic!("{problems:?}"));
        assert_eq!(request.payload.config.as_deref(), Some(r#"{"b":1.00000000000000000001,"a":2}"#));
    }
}
