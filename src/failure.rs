//! The classes of failure: code, exit code and remedy of each, in one place.
//!
//! A class is what `source_task.error` starts with (`INIT_TIMEOUT: …`), what `-o json` prints as `class`, and what
//! decides the exit code. The text beside it is for people and may hold what the cluster said, verbatim.
//! Knows nothing of Kubernetes or Postgres types.

use std::fmt;

/// What kind of thing went wrong. The names are part of the interface: rows and scripts hold them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// Arguments or settings that do not fit together.
    Usage,
    /// A file or document of the caller's that is not what it has to be.
    InvalidInput,
    /// The configuration, catalog and state do not fit into the Secrets of one Pod.
    PayloadTooLarge,
    /// Another task with this id ran before or is running.
    TaskExists,
    /// The connector reported an error or ended with a non-zero code.
    ConnectorFailed,
    /// The connector ended without the message that the command is about.
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
    /// No node takes the Pod.
    Unschedulable,
    /// A container used more memory than its limit.
    OomKilled,
    /// The node evicted the Pod.
    Evicted,
    /// Somebody else deleted the Pod.
    PodDeleted,
    /// The sidecar ended before the connector, or without a result.
    SidecarFailed,
    /// Controller and sidecar do not speak the same contract.
    VersionMismatch,
    /// The API server refused for lack of rights.
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
    /// The task ran longer than it may.
    TimeExceeded,
    /// The user cancelled.
    Cancelled,
    /// The program that started the task was killed and nobody followed the task.
    Abandoned,
    /// This machine could not run the task: a full disk, a missing right.
    LocalError,
    /// A broken invariant of ours.
    Internal,
}

impl Class {
    /// Every class, for looking one up by its code.
    pub const ALL: [Self; 29] = [
        Self::Usage,
        Self::InvalidInput,
        Self::PayloadTooLarge,
        Self::TaskExists,
        Self::ConnectorFailed,
        Self::NoResult,
        Self::NoEntrypoint,
        Self::Silence,
        Self::ImageNotFound,
        Self::ImagePull,
        Self::StartError,
        Self::InitTimeout,
        Self::Unschedulable,
        Self::OomKilled,
        Self::Evicted,
        Self::PodDeleted,
        Self::SidecarFailed,
        Self::VersionMismatch,
        Self::Forbidden,
        Self::Refused,
        Self::ClusterUnreachable,
        Self::DatabaseUnreachable,
        Self::DatabaseError,
        Self::DestinationFailed,
        Self::TimeExceeded,
        Self::Cancelled,
        Self::Abandoned,
        Self::LocalError,
        Self::Internal,
    ];

    /// The name in rows, JSON and metric labels.
    pub fn code(self) -> &'static str {
        match self {
            Self::Usage => "USAGE",
            Self::InvalidInput => "INVALID_INPUT",
            Self::PayloadTooLarge => "PAYLOAD_TOO_LARGE",
            Self::TaskExists => "TASK_EXISTS",
            Self::ConnectorFailed => "CONNECTOR_FAILED",
            Self::NoResult => "NO_RESULT",
            Self::NoEntrypoint => "NO_ENTRYPOINT",
            Self::Silence => "SILENCE",
            Self::ImageNotFound => "IMAGE_NOT_FOUND",
            Self::ImagePull => "IMAGE_PULL",
            Self::StartError => "START_ERROR",
            Self::InitTimeout => "INIT_TIMEOUT",
            Self::Unschedulable => "UNSCHEDULABLE",
            Self::OomKilled => "OOM_KILLED",
            Self::Evicted => "EVICTED",
            Self::PodDeleted => "POD_DELETED",
            Self::SidecarFailed => "SIDECAR_FAILED",
            Self::VersionMismatch => "VERSION_MISMATCH",
            Self::Forbidden => "FORBIDDEN",
            Self::Refused => "REFUSED",
            Self::ClusterUnreachable => "CLUSTER_UNREACHABLE",
            Self::DatabaseUnreachable => "DATABASE_UNREACHABLE",
            Self::DatabaseError => "DATABASE_ERROR",
            Self::DestinationFailed => "DESTINATION_FAILED",
            Self::TimeExceeded => "TIME_EXCEEDED",
            Self::Cancelled => "CANCELLED",
            Self::Abandoned => "ABANDONED",
            Self::LocalError => "LOCAL_ERROR",
            Self::Internal => "INTERNAL",
        }
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

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

/// One failure, ready to be shown and stored. Displays as `CLASS: text`, the form of `source_task.error`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{class}: {text}")]
pub struct Failure {
    /// What kind of failure it is.
    pub class: Class,
    /// One sentence for people: lower case, no full stop, what was wrong.
    pub text: String,
    hint: Option<String>,
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

    /// What to change.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref().or_else(|| self.class.hint())
    }

    /// Reads the form that [`Display`](fmt::Display) writes; a text without a known class is the connector's own.
    pub fn from_stored(text: &str) -> Self {
        let stored = text.split_once(": ").and_then(|(code, rest)| {
            let class = Class::ALL.into_iter().find(|class| class.code() == code)?;
            Some(Self::new(class, rest))
        });
        stored.unwrap_or_else(|| Self::new(Class::ConnectorFailed, text))
    }
}

#[cfg(test)]
mod tests {
    use super::{Class, Failure};

    #[test]
    fn every_class_is_found_again_by_its_code() {
        for class in Class::ALL {
            let failure = Failure::new(class, "a: text: with colons");
            assert_eq!(Failure::from_stored(&failure.to_string()), failure);
        }
    }

    #[test]
    fn a_text_of_the_connector_stays_whole() {
        let failure = Failure::from_stored("HTTP 401: unauthorized");
        assert_eq!((failure.class, failure.text.as_str()), (Class::ConnectorFailed, "HTTP 401: unauthorized"));
    }
}
