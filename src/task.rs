//! The domain, pure: what a task is, what its statuses are called, and how it is written into Pod annotations.
//!
//! Names and values are the wire contract's: other programs read them. Knows nothing of clap, Kubernetes or Postgres.

mod report;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use strum::{Display, EnumString, IntoStaticStr};

pub use report::{Counts, Estimate, LoadCounts, Received, StreamReport, StreamReports, StreamStatus};

use crate::env;

/// The command of the Airbyte protocol that the connector runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Display, EnumString, IntoStaticStr, Serialize, Deserialize)]
#[strum(serialize_all = "lowercase", parse_err_ty = String, parse_err_fn = unknown_kind)]
#[serde(rename_all = "lowercase")]
pub enum TaskKind {
    /// Print the connector's specification.
    Spec,
    /// Test a configuration.
    Check,
    /// List the streams that a configuration gives access to.
    Discover,
    /// Read rows and load them into the destination.
    Read,
}

impl TaskKind {
    /// The command's name.
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// What the connector must write, with its article.
    pub fn result(self) -> &'static str {
        match self {
            Self::Spec => "a SPEC message",
            Self::Check => "a CONNECTION_STATUS message",
            Self::Discover => "a CATALOG message",
            Self::Read => "a message",
        }
    }
}

fn unknown_kind(text: &str) -> String {
    format!("unknown command {text:?}: expected spec, check, discover or read")
}

/// `source_task.status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Display, EnumString, IntoStaticStr, Serialize, Deserialize)]
#[strum(serialize_all = "SCREAMING_SNAKE_CASE", parse_err_ty = String, parse_err_fn = unknown_status)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TaskStatus {
    /// The task has a Pod, or will have one soon.
    Running,
    /// All streams are complete.
    Success,
    /// Some rows are committed, but not all streams are complete.
    Partial,
    /// No rows are committed, or the task failed as a whole.
    Failed,
    /// A user or caller cancelled the task.
    Cancelled,
    /// The task exceeded its timeout.
    TimeExceeded,
    /// The task did not run.
    Skipped,
}

impl TaskStatus {
    /// The value in the tables.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

fn unknown_status(text: &str) -> String {
    format!("unknown task status {text:?}")
}

/// `source_task.metrics`: what the connector has used so far.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TaskMetrics {
    /// Seconds of CPU time.
    #[serde(rename = "cpu_usage")]
    pub cpu_seconds: f64,
    /// Bytes of memory.
    #[serde(rename = "mem_usage")]
    pub memory_bytes: u64,
}

/// A connector image: package and version as the tables hold them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The repository, e.g. `airbyte/source-faker`.
    pub package: String,
    /// The tag, or a digest (`sha256:…`).
    pub version: String,
}

impl Image {
    /// What the Pod's `image` field takes.
    pub fn reference(&self) -> String {
        let separator = if self.has_digest() { '@' } else { ':' };
        format!("{}{separator}{}", self.package, self.version)
    }

    /// Whether its version is a digest, which always names the same image.
    pub fn has_digest(&self) -> bool {
        self.version.contains(':')
    }

    /// Checks both parts against the grammar of image references, so that a typing error is reported before a Pod exists.
    pub fn new(package: &str, version: &str) -> Result<Self, String> {
        let (registry, path) = package.split_once('/').unwrap_or(("", package));
        // A registry may have capitals and a port; a colon elsewhere would begin a tag.
        let (host, port) = registry.split_once(':').unwrap_or((registry, "0"));
        let is_part = |part: &str, allows: fn(char) -> bool| {
            part.starts_with(|c: char| c.is_ascii_alphanumeric())
                && part.chars().all(|c| allows(c) || "._-".contains(c))
        };
        let package_ok = package.len() <= 255
            && (!package.contains('/') || is_part(host, |c| c.is_ascii_alphanumeric()))
            && !port.is_empty()
            && port.bytes().all(|byte| byte.is_ascii_digit())
            && path.split('/').all(|part| is_part(part, |c| c.is_ascii_lowercase() || c.is_ascii_digit()));
        if !package_ok {
            return Err(format!(
                "{package:?} is not the name of an image: expected something like airbyte/source-faker"
            ));
        }
        let digest = version.strip_prefix("sha256:");
        let version_ok = match digest {
            Some(hex) => hex.len() == 64 && hex.chars().all(|c| c.is_ascii_hexdigit()),
            None => {
                !version.is_empty()
                    && version.len() <= 128
                    && version.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
                    && !version.starts_with(['.', '-'])
            }
        };
        if !version_ok {
            return Err(format!(
                "{version:?} is not the version of an image: expected a tag such as 7.2.1, or sha256:…"
            ));
        }
        Ok(Self { package: package.to_owned(), version: version.to_owned() })
    }
}

impl FromStr for Image {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if let Some((package, digest)) = text.split_once('@') {
            return Self::new(package, digest);
        }
        match text.rsplit_once(':') {
            // `localhost:5000/source` has a port and no tag.
            Some((package, version)) if !version.contains('/') => Self::new(package, version),
            _ => Err(format!("{text:?} has no version: expected PACKAGE:VERSION such as airbyte/source-faker:7.2.1")),
        }
    }
}

impl fmt::Display for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reference())
    }
}

/// What becomes of rows that a CDC source marks as deleted, where rows are merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Display, EnumString, IntoStaticStr, Serialize, Deserialize)]
#[strum(serialize_all = "lowercase", parse_err_ty = String, parse_err_fn = unknown_cdc_deletion)]
#[serde(rename_all = "lowercase")]
pub enum CdcDeletion {
    /// They stay, with their mark.
    Soft,
    /// They are deleted.
    Hard,
}

fn unknown_cdc_deletion(text: &str) -> String {
    format!("{text:?} is unknown: expected soft or hard")
}

/// The options of a read. The names are those of the parameters of `POST /read`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(clippy::struct_excessive_bools, reason = "each is an option of its own in the contract")]
pub struct ReadOptions {
    /// Destination schema; `${SOURCE_NAMESPACE}` and `${LEGACY}` are placeholders.
    pub namespace: Option<String>,
    /// Put before every table name.
    pub table_name_prefix: String,
    /// Lower-case table and column names.
    pub to_same_case: bool,
    /// Add a column `_jitsu_timestamp`.
    pub add_meta: bool,
    /// Merge by primary key where the catalog asks for it.
    pub deduplicate: bool,
    /// Start from scratch and replace the tables.
    pub full_sync: bool,
    /// Mode `overwrite` has the meaning that the Jitsu console relies on, which sends it for every stream: rows of full
    /// refreshes are merged by key as well, and an incremental stream without a state replaces its table at its first
    /// commit.
    pub console_overwrite: bool,
    /// What becomes of rows that the source marks as deleted; `None` means as the destination's configuration says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cdc_deletion: Option<CdcDeletion>,
    /// Ask the connector for debug messages.
    pub debug: bool,
    /// How long the connector may be silent; `None` means the default of the settings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub silence_seconds: Option<u32>,
    /// End after this number of records of all streams together; at least 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_records: Option<u64>,
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self {
            namespace: None,
            table_name_prefix: String::new(),
            to_same_case: false,
            add_meta: false,
            deduplicate: true,
            full_sync: false,
            console_overwrite: false,
            cdc_deletion: None,
            debug: false,
            silence_seconds: None,
            max_records: None,
        }
    }
}

impl ReadOptions {
    /// Reads a `max_records`.
    pub fn parse_max_records(text: &str) -> Result<u64, String> {
        let number = text.parse().ok().filter(|number| *number > 0);
        number.ok_or_else(|| format!("{text:?} is not a number of records: expected at least 1"))
    }
}

/// The member of [`Task::started_by`] with the name of the caller's token, which no caller can set.
pub const TOKEN: &str = "token";
/// The annotation of [`Task::task_id`].
pub const TASK_ID: &str = "TaskID";
/// The annotation of [`Task::sync_id`].
pub const SYNC_ID: &str = "SyncID";

/// The only connector type there is; the column exists because the seed keys specs by it.
pub const CONNECTOR_TYPE_AIRBYTE: &str = "airbyte";

/// One task: what is run, for whom, since when. Holds no configuration and no credentials.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::struct_field_names, reason = "task_id is the name that the contract uses")]
pub struct Task {
    /// The command.
    pub kind: TaskKind,
    /// The connector.
    pub image: Image,
    /// `airbyte`.
    pub connector_type: String,
    /// Unique among all tasks; made by us for spec, check and discover.
    pub task_id: String,
    /// The sync that a read belongs to; empty for the others.
    pub sync_id: String,
    /// The key under which check and discover store their result; empty for the others.
    pub storage_key: String,
    /// When the task was accepted, in milliseconds: the `timestamp` of its result rows.
    pub started_at: Timestamp,
    /// Who asked for it, as the caller put it.
    pub started_by: Option<Value>,
    /// The options of a read.
    pub options: ReadOptions,
    /// How long it may run, counted from `started_at`.
    pub timeout: Duration,
    /// The workspace in which the console is asked to start the read under the same id once this discover has ended.
    pub then_run: Option<String>,
}

/// Rounds down to what the tables hold (`TIMESTAMPTZ(3)`), so that a stored time equals the one in memory.
pub fn to_millis(time: Timestamp) -> Timestamp {
    Timestamp::from_millisecond(time.as_millisecond()).unwrap_or(time)
}

/// The names of Kubernetes objects end here (RFC 1123 labels, which Pod host names have to be).
const LONGEST_NAME: usize = 63;
/// Hex digits of the hash in a Pod's name: 80 bits, so that no two tasks ever share one.
const NAME_HASH: usize = 20;
/// Room for the suffixes `-config-NN` of the Secrets.
const NAME_SUFFIX: usize = 10;

impl Task {
    /// The name of the task's Pod: readable, valid for any input, and the same for the same task.
    ///
    /// `source-faker-read-0c3f…`: raw ids may hold anything and be of any length, so only their hash is in the name.
    pub fn pod_name(&self) -> String {
        let mut hasher = Sha256::new();
        for part in [self.kind.as_str(), &self.sync_id, &self.task_id] {
            // The length keeps ("ab", "c") and ("a", "bc") apart.
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        let hash = hex::encode(hasher.finalize());
        let tail = format!("-{}-{}", self.kind, &hash[..NAME_HASH]);
        let last = self.image.package.rsplit('/').next().unwrap_or_default();
        let slug: String = last
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
            .take(LONGEST_NAME - NAME_SUFFIX - tail.len())
            .collect();
        let slug = slug.trim_matches('-');
        // A name must not begin with a digit to be usable as a DNS label everywhere.
        let slug = if slug.starts_with(|c: char| c.is_ascii_lowercase()) { slug } else { "sync" };
        format!("{slug}{tail}")
    }

    /// Whether a schedule has started the task, as `started_by` of the console has it, and no user.
    pub fn is_scheduled(&self) -> bool {
        self.started_by.as_ref().is_some_and(|started_by| started_by["trigger"] == "scheduled")
    }

    /// A read, as far as its row describes it: enough to find its Pod and to write its row.
    pub fn of_read(package: &str, version: &str, sync_id: &str, task_id: &str, started_at: Timestamp) -> Self {
        Self {
            kind: TaskKind::Read,
            image: Image { package: package.to_owned(), version: version.to_owned() },
            connector_type: CONNECTOR_TYPE_AIRBYTE.to_owned(),
            task_id: task_id.to_owned(),
            sync_id: sync_id.to_owned(),
            storage_key: String::new(),
            started_at,
            started_by: None,
            options: ReadOptions::default(),
            timeout: Duration::from_secs(default_timeout_seconds()),
            then_run: None,
        }
    }

    /// Whether the task has a row in `source_task`.
    pub fn has_row(&self) -> bool {
        self.kind == TaskKind::Read || self.then_run.is_some()
    }

    /// The task as Pod annotations: raw values, of any length and content.
    pub fn to_annotations(&self) -> BTreeMap<String, String> {
        let mut map = BTreeMap::from([
            (TASK_ID.to_owned(), self.task_id.clone()),
            ("TaskType".to_owned(), self.kind.to_string()),
            (SYNC_ID.to_owned(), self.sync_id.clone()),
            ("StorageKey".to_owned(), self.storage_key.clone()),
            ("Package".to_owned(), self.image.package.clone()),
            ("PackageVersion".to_owned(), self.image.version.clone()),
            ("ConnectorType".to_owned(), self.connector_type.clone()),
            ("StartedAt".to_owned(), self.started_at.to_string()),
            ("TimeoutSeconds".to_owned(), self.timeout.as_secs().to_string()),
        ]);
        if let Some(workspace) = &self.then_run {
            map.insert("ThenRun".to_owned(), "true".to_owned());
            map.insert("WorkspaceId".to_owned(), workspace.clone());
        }
        if let Some(by) = &self.started_by {
            map.insert("StartedBy".to_owned(), by.to_string());
        }
        if self.kind == TaskKind::Read {
            let options = serde_json::to_string(&self.options).expect("plain fields always serialize");
            map.insert("Options".to_owned(), options);
        }
        map
    }

    /// Reads what [`to_annotations`](Self::to_annotations) wrote; the error names the annotation that does not fit.
    pub fn from_annotations(map: &BTreeMap<String, String>) -> Result<Self, String> {
        let text = |key: &str| map.get(key).cloned().ok_or_else(|| format!("annotation {key} is missing"));
        let or_empty = |key: &str| map.get(key).cloned().unwrap_or_default();
        let seconds = match map.get("TimeoutSeconds") {
            Some(seconds) => seconds.parse().map_err(|_| format!("annotation TimeoutSeconds is {seconds:?}"))?,
            None => default_timeout_seconds(),
        };
        let kind: TaskKind = text("TaskType")?.parse()?;
        Ok(Self {
            kind,
            image: Image { package: text("Package")?, version: text("PackageVersion")? },
            connector_type: map.get("ConnectorType").cloned().unwrap_or_else(|| CONNECTOR_TYPE_AIRBYTE.to_owned()),
            // The Go controller gives an id to reads alone.
            task_id: if kind == TaskKind::Read { text(TASK_ID)? } else { or_empty(TASK_ID) },
            sync_id: or_empty(SYNC_ID),
            storage_key: or_empty("StorageKey"),
            started_at: text("StartedAt")?.parse().map_err(|error| format!("annotation StartedAt: {error}"))?,
            started_by: map.get("StartedBy").and_then(|by| serde_json::from_str(by).ok()),
            options: map.get("Options").and_then(|options| serde_json::from_str(options).ok()).unwrap_or_default(),
            timeout: Duration::from_secs(seconds),
            then_run: map.get("ThenRun").filter(|value| *value == "true").map(|_| or_empty("WorkspaceId")),
        })
    }
}

/// What still fits into a Pod's deadline (a 32 bit number of seconds), with room for what comes after the task.
pub const LONGEST_TIMEOUT: Duration = Duration::from_hours(24 * 10_000);

fn default_timeout_seconds() -> u64 {
    u64::from(env::TASK_TIMEOUT_HOURS.number(false)) * 3600
}

#[cfg(test)]
mod tests {
    use super::{Image, ReadOptions, Task, TaskKind};
    use proptest::prelude::*;
    use std::time::Duration;

    fn task(package: &str, sync_id: &str, task_id: &str) -> Task {
        Task {
            kind: TaskKind::Read,
            image: Image { package: package.to_owned(), version: "1".to_owned() },
            connector_type: "airbyte".to_owned(),
            task_id: task_id.to_owned(),
            sync_id: sync_id.to_owned(),
            storage_key: String::new(),
            started_at: "2026-01-02T03:04:05.678Z".parse().expect("a valid time"),
            started_by: Some(serde_json::json!({"type": "manual"})),
            options: ReadOptions {
                table_name_prefix: "p_".to_owned(),
                max_records: Some(u64::MAX),
                ..ReadOptions::default()
            },
            timeout: Duration::from_secs(90),
            then_run: None,
        }
    }

    #[test]
    fn image_references_split_at_the_tag_and_not_at_the_port() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        for (label, text, expected) in [
            ("tag", "airbyte/source-faker:7.2.1", Some(("airbyte/source-faker", "7.2.1"))),
            ("port and tag", "localhost:5000/source:1", Some(("localhost:5000/source", "1"))),
            ("port only", "localhost:5000/source", None),
            ("no tag", "airbyte/source-faker", None),
            ("empty tag", "airbyte/source-faker:", None),
            ("capitals", "Airbyte/Source:1", None),
            ("space", "airbyte/source faker:1", None),
            ("shell", "airbyte/x;rm:1", None),
            ("port and digest", &format!("localhost:5000/x@{digest}"), Some(("localhost:5000/x", digest.as_str()))),
            ("tag and digest", &format!("evil:tag@{digest}"), None),
            ("tag and digest behind a slash", &format!("airbyte/evil:tag@{digest}"), None),
            ("two tags", "evil:1:1", None),
            ("a port without a number", "evil:tag/x:1", None),
            ("an empty port", "evil:/x:1", None),
            ("no registry", "/x:1", None),
        ] {
            let parsed = text.parse::<Image>().ok();
            let parsed = parsed.as_ref().map(|image| (image.package.as_str(), image.version.as_str()));
            assert_eq!(parsed, expected, "{label}");
        }
    }

    #[test]
    fn a_digest_is_joined_with_an_at_sign() {
        let text = format!("airbyte/source-faker@sha256:{}", "ab".repeat(32));
        assert_eq!(text.parse::<Image>().expect("a digest").reference(), text);
    }

    #[test]
    fn a_task_survives_its_annotations() {
        let read = task("airbyte/source-faker", "sync:1", "täsk / 1");
        let discover = Task {
            kind: TaskKind::Discover,
            options: ReadOptions::default(),
            then_run: Some("wörk space".to_owned()),
            ..read.clone()
        };
        for task in [read, discover] {
            assert_eq!(Task::from_annotations(&task.to_annotations()), Ok(task));
        }
    }

    #[test]
    fn a_number_of_records_is_at_least_one() {
        assert_eq!(ReadOptions::parse_max_records("1"), Ok(1));
        for text in ["0", "", "-1", "1.5", "ten", "18446744073709551616"] {
            let error = ReadOptions::parse_max_records(text).expect_err(text);
            assert!(error.ends_with("expected at least 1"), "{error}");
        }
    }

    #[test]
    fn parts_of_an_id_do_not_run_into_each_other() {
        assert_ne!(task("p", "ab", "c").pod_name(), task("p", "a", "bc").pod_name());
    }

    proptest! {
        #[test]
        fn pod_names_are_valid_for_any_input(package in ".*", sync_id in ".*", task_id in ".*") {
            let name = task(&package, &sync_id, &task_id).pod_name();
            prop_assert!(name.len() + super::NAME_SUFFIX <= 63);
            prop_assert!(name.starts_with(|c: char| c.is_ascii_lowercase()));
            prop_assert!(name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'));
            prop_assert!(!name.ends_with('-'));
        }
    }
}
