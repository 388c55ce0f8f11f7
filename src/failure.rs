//! The classes of failure: code, exit code and remedy of each, in one place.
//!
//! A class is what `source_task.error` starts with (`INIT_TIMEOUT: …`), what `-o json` prints as `class`, and what
//! decides the exit code. The text after it is for people and may quote the cluster verbatim.
//! Knows nothing of Kubernetes or Postgres types.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::json;
use strum::{Display, EnumString, IntoStaticStr};

/// What kind of thing went wrong. The names are part of the interface: rows and scripts hold them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Display, EnumString, IntoStaticStr, Serialize, Deserialize)]
#[cfg_attr(test, derive(strum::EnumIter))]
#[strum(serialize_all = "SCREAMING_SNAKE_CASE")]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Class {
    /// Arguments or settings that do not fit together.
    Usage,
    /// A file or document of the caller that is not valid.
    InvalidInput,
    /// The configuration, catalog and state do not fit into the Secrets of one Pod.
    PayloadTooLarge,
    /// Another task with this id ran before or is running.
    TaskExists,
    /// The connector reported an error or ended with a non-zero code.
    ConnectorFailed,
    /// The connector ended without the message that the command needs.
    NoResult,
    /// The image does not set `AIRBYTE_ENTRYPOINT`.
    NoEntrypoint,
    /// The connector wrote nothing for longer than the silence limit.
    Silence,
    /// The registry says that the image does not exist, or refuses it.
    ImageNotFound,
    /// The image could not be pulled for a reason that may pass.
    ImagePull,
    /// The container could not be started (no shell in the image, a bad mount, a missing key).
    StartError,
    /// The Pod did not start within `SYNCCTL_CONTAINER_INIT_TIMEOUT_SECONDS`.
    InitTimeout,
    /// No node accepts the Pod.
    Unschedulable,
    /// A container used more memory than its limit.
    OomKilled,
    /// The node evicted the Pod.
    Evicted,
    /// The Pod was deleted from outside.
    PodDeleted,
    /// The sidecar got TERM and cannot know why. Provisional: the failure of a controller that knows the cause replaces it.
    Terminated,
    /// The sidecar ended before the connector, or without a result.
    SidecarFailed,
    /// Controller and sidecar do not speak the same contract.
    VersionMismatch,
    /// The API server denied the request: a right is missing.
    Forbidden,
    /// The API server refused the object: quota, admission webhook, validation.
    Refused,
    /// The API server does not answer.
    ClusterUnreachable,
    /// The database of results does not answer.
    DatabaseUnreachable,
    /// The database of results answered with an error.
    DatabaseError,
    /// The destination could not be reached or refused rows.
    DestinationFailed,
    /// The console could not be asked to start the read after a discover.
    ConsoleFailed,
    /// The task ran longer than it may.
    TimeExceeded,
    /// The user cancelled.
    Cancelled,
    /// The process that followed the task was killed.
    Abandoned,
    /// This machine could not run the task: a full disk, a missing right.
    LocalError,
    /// A broken invariant of ours.
    Internal,
}

impl Class {
    /// The name in rows, JSON and metric labels, e.g. `INIT_TIMEOUT`.
    pub fn code(self) -> &'static str {
        self.into()
    }

    /// What to change, where it is the same for every failure of the class.
    pub fn hint(self) -> Option<&'static str> {
        Some(match self {
            Self::PayloadTooLarge => {
                "select fewer streams, or remove JSON schemas that the sync does not need from the catalog"
            }
            Self::TaskExists => "choose another --task-id, or leave it out to have one made",
            Self::NoEntrypoint => "set ENV AIRBYTE_ENTRYPOINT in the image: it is the command that the platform runs",
            Self::ImageNotFound => "check the package and its version, and that the cluster may pull it",
            Self::ImagePull => "check that the cluster's nodes reach the registry",
            Self::StartError => "the image needs a shell (sh) and must run with the cluster's restrictions",
            Self::InitTimeout => {
                "raise SYNCCTL_CONTAINER_INIT_TIMEOUT_SECONDS if the image is large, else see the reason"
            }
            Self::Unschedulable => {
                "free capacity in the cluster, or lower SYNCCTL_SOURCE_CPU_REQUEST_MILLICORES and SYNCCTL_SOURCE_MEMORY_REQUEST_MI"
            }
            Self::OomKilled => "raise SYNCCTL_SOURCE_MEMORY_LIMIT_MI",
            Self::VersionMismatch => "use the sidecar image of this syncctl: `syncctl image`, SYNCCTL_SIDECAR_IMAGE",
            Self::Forbidden => "grant the rights of deploy/rbac/role.yaml in this namespace",
            Self::ClusterUnreachable => "check the kubeconfig, its context, and that the API server runs",
            Self::DatabaseUnreachable => "check SYNCCTL_DATABASE_URL and, for Pods, SYNCCTL_SIDECAR_DATABASE_URL",
            Self::ConsoleFailed => "check SYNCCTL_CONSOLE_URL, SYNCCTL_CONSOLE_TOKEN and the log of the console",
            Self::TimeExceeded => "raise --timeout",
            _ => return None,
        })
    }

    /// The exit code of the command line.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::ConnectorFailed | Self::NoResult | Self::NoEntrypoint | Self::Silence => 1,
            Self::Usage | Self::InvalidInput | Self::PayloadTooLarge | Self::TaskExists => 2,
            Self::TimeExceeded => 4,
            Self::Cancelled => 130,
            _ => 3,
        }
    }
}

/// The text of a failure of a connector that gives none.
pub const NO_REASON: &str = "the connector gave no reason";

/// A failure, ready to be shown and stored.
///
/// Its one text form is `CLASS: text` ([`Display`](std::fmt::Display)): columns of tables hold it, and
/// [`StoredError::parse`] reads it. Its one document form is `{"class": …, "error": …, "hint": …}` (serde): results on
/// stdout, answers over HTTP and the sidecar's termination message hold it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{class}: {text}")]
#[serde(from = "FailureDocument", into = "FailureDocument")]
pub struct Failure {
    /// What kind of failure it is.
    pub class: Class,
    /// One sentence for people: lower case, no full stop, what was wrong.
    pub text: String,
    hint: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct FailureDocument {
    class: Class,
    error: String,
    #[serde(default)]
    hint: Option<String>,
}

impl From<FailureDocument> for Failure {
    fn from(document: FailureDocument) -> Self {
        let FailureDocument { class, error, hint } = document;
        let hint = hint.filter(|hint| class.hint() != Some(hint));
        Self { class, text: error, hint }
    }
}

impl From<Failure> for FailureDocument {
    fn from(failure: Failure) -> Self {
        let hint = failure.hint().map(str::to_owned);
        Self { class: failure.class, error: failure.text, hint }
    }
}

impl Failure {
    /// A failure with the hint of its class.
    pub fn new(class: Class, text: impl Into<String>) -> Self {
        Self { class, text: text.into(), hint: None }
    }

    /// Replaces the hint of the class by one that fits this case.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The failure of a sidecar that got TERM: its Pod was deleted or evicted, or its node shuts down.
    pub fn terminated() -> Self {
        Self::new(Class::Terminated, "the task was ended from outside, and its controller has not recorded why")
    }

    /// What to change.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref().or_else(|| self.class.hint())
    }

    /// The document form, behind fields of the caller's.
    pub fn document(&self, mut fields: serde_json::Value) -> serde_json::Value {
        fields["class"] = json!(self.class);
        fields["error"] = json!(self.text);
        fields["hint"] = json!(self.hint());
        fields
    }

    /// The failure that an error column holds, whoever wrote it: a connector's text is a [`Class::ConnectorFailed`].
    pub fn from_stored(text: &str) -> Self {
        let mut failure = match StoredError::parse(text) {
            StoredError::Failure(failure) => failure,
            StoredError::Connector(text) => Self::new(Class::ConnectorFailed, text),
        };
        if failure.text.trim().is_empty() {
            NO_REASON.clone_into(&mut failure.text);
        }
        failure
    }
}

/// The content of a column that holds either a failure that syncctl found or a connector's own words.
///
/// A connector may begin its message like one of our classes (`CANCELLED: by the vendor`). Such a text is stored behind
/// `CONNECTOR_FAILED: `, so that a column that begins with a class was written by syncctl.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoredError {
    /// A failure that the controller or the sidecar found.
    Failure(Failure),
    /// What the connector wrote. Texts without a class are the Go sidecar's, too.
    Connector(String),
}

impl StoredError {
    /// Reads a column.
    pub fn parse(text: &str) -> Self {
        match split_class(text) {
            None => Self::Connector(text.to_owned()),
            Some((Class::ConnectorFailed, rest)) if split_class(rest).is_some() => Self::Connector(rest.to_owned()),
            Some((class, rest)) => Self::Failure(Failure::new(class, rest)),
        }
    }

    /// Whether a column holds the failure of a terminated sidecar, which that of a controller replaces.
    pub fn is_provisional(text: &str) -> bool {
        split_class(text).is_some_and(|(class, _)| class == Class::Terminated)
    }

    /// The column's content for a connector's own words.
    pub fn escape(text: &str) -> Cow<'_, str> {
        match split_class(text) {
            Some(_) => Cow::Owned(format!("{}: {text}", Class::ConnectorFailed)),
            None => Cow::Borrowed(text),
        }
    }
}

/// `CLASS: rest` with the code of one of the classes.
fn split_class(text: &str) -> Option<(Class, &str)> {
    let (code, rest) = text.split_once(": ")?;
    Some((code.parse().ok()?, rest))
}

#[cfg(test)]
mod tests {
    use strum::IntoEnumIterator;

    use super::{Class, Failure, NO_REASON, StoredError};

    #[test]
    fn stored_and_serialized_failures_are_read_back() {
        for class in Class::iter() {
            let failure = Failure::new(class, "a: text: with colons");
            assert_eq!(Failure::from_stored(&failure.to_string()), failure);
            for failure in [failure.clone(), failure.with_hint("turn it off and on")] {
                let document = serde_json::to_value(&failure).expect("a document");
                assert_eq!(document["class"], class.code());
                assert_eq!(serde_json::from_value::<Failure>(document).expect("a failure"), failure);
            }
        }
    }

    #[test]
    fn a_failure_always_has_a_text() {
        for text in ["", " ", "CONNECTOR_FAILED: ", "CONNECTOR_FAILED: \n"] {
            assert_eq!(Failure::from_stored(text), Failure::new(Class::ConnectorFailed, NO_REASON), "{text:?}");
        }
    }

    #[test]
    fn a_connector_text_stays_whole_even_where_it_begins_like_a_class() {
        let begin = Class::iter().map(|class| format!("{class}: by the vendor"));
        for text in
            begin.chain(["HTTP 401: unauthorized", "CANCELLED", "CONNECTOR_FAILED: CANCELLED: x"].map(str::to_owned))
        {
            let stored = StoredError::escape(&text);
            assert_eq!(StoredError::parse(&stored), StoredError::Connector(text.clone()));
            let expected = Failure::new(Class::ConnectorFailed, text.clone());
            assert_eq!(Failure::from_stored(&stored), expected);
        }
    }
}
