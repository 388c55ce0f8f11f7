//! Where tasks run. A task is a Pod with two containers: [`manifest`] builds it, [`status`] reads its state;
//! [`kubernetes`] runs it in a cluster, [`local`] as processes of this machine.
//!
//! The rest of the program sees a [`Backend`]: a few small traits whose methods block and have a deadline. This module
//! must not know the database: the caller records the outcome of a Pod first and deletes the Pod second.

pub mod connector;
mod image_errors;
pub mod isolation;
pub mod kubernetes;
pub mod local;
pub mod manifest;
pub mod payload;
pub mod status;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use manifest::{ATTEMPT, Launch, OWNER};
use payload::TooLarge;
use serde::{Deserialize, Serialize};
use status::Observation;

use crate::failure::{Class, Failure};
use crate::task::{self, Task};

/// Why a call to the backend failed. `action` is a clause: "cannot create pod x".
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    /// The client configuration cannot be used.
    #[error("{0}")]
    Kubeconfig(String),
    /// The API server does not answer, answers too late, or answers 5xx or 429.
    #[error("{action}: the API server {server} does not answer: {cause}")]
    Unreachable {
        /// What was attempted.
        action: String,
        /// The API server's URL.
        server: String,
        /// The innermost transport error.
        cause: String,
    },
    /// The credentials lack a permission.
    #[error("{action}: {message}")]
    Forbidden {
        /// What was attempted.
        action: String,
        /// The API server's message, verbatim: it names the missing permission.
        message: String,
    },
    /// The API server rejects the object.
    #[error("{action}: {message}")]
    Refused {
        /// What was attempted.
        action: String,
        /// The API server's message, verbatim.
        message: String,
    },
    /// Another launch has created an object of this name.
    #[error("{name} already exists: the task was started before")]
    Exists {
        /// The Pod's name.
        name: String,
    },
    /// This machine cannot run the task.
    #[error("{}", .0.text)]
    Machine(Failure),
    /// The documents do not fit into the Secrets of one Pod.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
}

impl From<Failure> for PodError {
    fn from(failure: Failure) -> Self {
        Self::Machine(failure)
    }
}

impl From<PodError> for Failure {
    fn from(error: PodError) -> Self {
        if let PodError::Machine(failure) = error {
            return failure;
        }
        let class = match &error {
            PodError::Kubeconfig(_) => Class::Usage,
            PodError::Unreachable { .. } => Class::ClusterUnreachable,
            PodError::Forbidden { .. } => Class::Forbidden,
            PodError::Refused { .. } => Class::Refused,
            PodError::Exists { .. } => Class::TaskExists,
            PodError::TooLarge(_) => Class::PayloadTooLarge,
            PodError::Machine(failure) => failure.class,
        };
        let failure = Self::new(class, error.to_string());
        match error {
            PodError::Kubeconfig(_) => failure
                .with_hint("set SYNCCTL_KUBERNETES_CLIENT_CONFIG or --kubeconfig to a kubeconfig that can be read"),
            _ => failure,
        }
    }
}

/// One Pod, as distinct from a later one of the same name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodRef {
    /// The name, which the task determines.
    pub name: String,
    /// The API server's id of this very object.
    pub uid: String,
    /// The launch that created the Pod; its Secrets carry the same.
    pub attempt: Option<String>,
    /// The number of its Secrets.
    pub secrets: usize,
}

/// A snapshot of a task's Pod.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskPod {
    /// Which Pod it is.
    pub id: PodRef,
    /// The one-off command that follows the Pod; absent when `serve` does.
    pub owner: Option<String>,
    /// When the API server accepted it.
    pub created_at: Option<Timestamp>,
    /// The task in its annotations, or why they cannot be read.
    pub task: Result<Task, String>,
    /// The state of the Pod.
    pub observation: Observation,
    /// Whether it has a deletion timestamp.
    pub deleting: bool,
}

/// A Pod that carries the id of a task, of whatever kind and whoever created it.
#[derive(Debug, Clone, PartialEq)]
pub struct PodOfTask {
    /// The name.
    pub name: String,
    /// The sync in its annotations; empty if it belongs to none.
    pub sync_id: String,
    /// The task in its annotations, or why they cannot be read.
    pub task: Result<Task, String>,
}

/// A task whose documents are stored and whose Pod is created later.
#[derive(Debug, Clone, PartialEq)]
pub struct WaitingTask {
    /// The name that the Pod will have.
    pub pod: String,
    /// The task.
    pub task: Task,
    /// When it is to start.
    pub start_at: Timestamp,
    /// What [`Launcher::prepare`] has returned.
    pub document: Option<String>,
}

/// When a Pod becomes the owner of its Secrets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ownership {
    /// Before `launch` returns: one more call for each Secret.
    Now,
    /// By [`SecretStore::adopt_secrets`]. Until then only a cleanup finds the Secrets of a Pod that was deleted.
    Later,
}

/// The Pods that a subscription reports.
#[derive(Debug, Clone, Copy)]
pub enum Scope<'a> {
    /// All that carry our label.
    All,
    /// This one. Reported as deleted if it is no longer there at the start.
    Pod(&'a PodRef),
}

/// What a subscription reports.
#[derive(Debug)]
pub enum PodEvent {
    /// A Pod is new or has changed.
    Updated(Box<TaskPod>),
    /// A Pod is gone, whoever deleted it. There may already be another one of its name.
    Deleted {
        /// Its name.
        name: String,
        /// Its uid.
        uid: String,
    },
    /// All changes up to now were reported. Comes after the first list and at every resync.
    Synced,
    /// The API server could not be asked; it will be asked again.
    Failed(PodError),
}

/// The state of a leader election.
#[derive(Debug)]
pub enum Leadership {
    /// This process leads.
    Leads {
        /// Grows with every change of the holder.
        term: u64,
    },
    /// It does not lead, or no longer.
    Follows {
        /// The identity of the leader, if known.
        holder: Option<String>,
    },
    /// The API server could not be asked; it will be asked again.
    Failed(PodError),
}

/// Keeps events coming until it is dropped.
pub type Subscription = Box<dyn Send>;

/// Called for each event, on a thread of the backend. Must not block.
pub type Callback<T> = Box<dyn Fn(T) + Send>;

/// Where tasks run: a cluster or this machine.
#[derive(Clone)]
pub struct Backend {
    /// Starts and ends tasks.
    pub launcher: Arc<dyn Launcher>,
    /// Reports the state of tasks.
    pub watcher: Arc<dyn Watcher>,
    /// Elects a leader among the processes that share this backend.
    pub coordination: Arc<dyn Coordination>,
    /// The Secrets of tasks; `None` where documents are stored otherwise.
    pub secrets: Option<Arc<dyn SecretStore>>,
    /// What only an API server knows; `None` where there is none.
    pub api_server: Option<Arc<dyn ApiServer>>,
    /// Set where tasks do not outlive the process that launched them.
    pub shutdown: Option<Arc<dyn Shutdown>>,
}

impl Backend {
    /// Whether tasks are processes of this machine.
    pub fn is_local(&self) -> bool {
        self.api_server.is_none()
    }

    /// See [`ApiServer::warnings`]; empty without an API server.
    pub fn warnings(&self, pod: &str) -> Vec<String> {
        self.api_server.as_ref().map_or_else(Vec::new, |server| server.warnings(pod))
    }
}

/// Starts and ends tasks.
pub trait Launcher: Send + Sync {
    /// Where tasks run, for people: "in namespace x".
    fn location(&self) -> String;

    /// Creates Secrets and the Pod, and makes the Pod the Secrets' owner. On an error nothing is left behind.
    fn launch(&self, launch: &Launch<'_>, ownership: Ownership) -> Result<PodRef, PodError>;

    /// Stores what a task needs to start later, so that any process can [start it](Self::start_waiting). Returns what the
    /// caller must store for that, which holds no credentials; `None` where the backend stores all of it.
    fn prepare(&self, launch: &Launch<'_>, start_at: Timestamp) -> Result<Option<String>, PodError>;

    /// The prepared tasks that the backend has stored. One that has just been started may be among them.
    fn waiting(&self) -> Result<Vec<WaitingTask>, PodError>;

    /// Creates the Pod of a prepared task. False if nothing is prepared for it.
    fn start_waiting(&self, waiting: &WaitingTask) -> Result<bool, PodError>;

    /// Deletes the Pod of this name, or what is prepared for it. Without `grace` its containers get the Pod's own grace period and the Secrets stay
    /// until [`wait_deleted`](Self::wait_deleted); with a grace of 0 the Secrets are deleted too, and also a Pod whose
    /// node is gone.
    fn delete(&self, pod: &str, grace: Option<Duration>) -> Result<(), PodError>;

    /// Deletes this Pod but no other one of its name; it is no error if it is gone. Its Secrets stay.
    fn delete_exact(&self, pod: &PodRef, grace: Option<Duration>) -> Result<(), PodError>;

    /// Waits until the Pod is gone, at most for `limit`; then removes it without waiting for its node. Deletes its
    /// Secrets.
    fn wait_deleted(&self, pod: &str, limit: Duration) -> Result<(), PodError>;

    /// Whether tasks could be launched now; takes a few seconds at most.
    fn check_reachable(&self) -> Result<(), PodError>;
}

/// Reports the state of tasks.
pub trait Watcher: Send + Sync {
    /// All Pods that carry our label.
    fn list(&self) -> Result<Vec<TaskPod>, PodError>;

    /// The Pods with this task id, whatever their kind, package and sync.
    fn find(&self, task_id: &str) -> Result<Vec<PodOfTask>, PodError>;

    /// One Pod by its name.
    fn get(&self, name: &str) -> Result<Option<TaskPod>, PodError>;

    /// Reports the Pods that exist and then every change: at once where the watch sees it, and at the latest after
    /// `resync`.
    fn watch(&self, scope: Scope<'_>, resync: Duration, on_event: Callback<PodEvent>) -> Subscription;
}

/// The Secrets with the documents of tasks.
pub trait SecretStore: Send + Sync {
    /// Makes the Pod the owner of its Secrets, so that they are deleted together, also where it is gone. Idempotent.
    fn adopt_secrets(&self, pod: &PodRef) -> Result<(), PodError>;

    /// Deletes the Secrets of this Pod but not those of a later launch of the same task.
    fn delete_secrets_of(&self, pod: &PodRef) -> Result<(), PodError>;
}

/// What only an API server knows.
pub trait ApiServer: Send + Sync {
    /// Examines what the credentials may do, so that nothing else is tried from now on. Returns a line for each feature that
    /// is lost; an error where no task could run.
    fn examine_rights(&self) -> Result<Vec<String>, PodError>;

    /// The messages of warning events about a Pod: why it does not start. Empty if they cannot be read.
    fn warnings(&self, pod: &str) -> Vec<String>;

    /// The end of a container's log, at most this number of lines.
    fn last_lines(&self, pod: &str, container: &str, lines: u16) -> Result<String, PodError>;

    /// The content of a Pod's Secrets, by key.
    fn secret_data(&self, pod: &PodRef) -> Result<BTreeMap<String, Vec<u8>>, PodError>;

    /// The number of calls since the start that failed for a reason other than the request itself.
    fn failed_calls(&self) -> u64;
}

/// Tasks that do not outlive the process that launched them.
pub trait Shutdown: Send + Sync {
    /// The tasks of this process.
    fn tasks(&self) -> Vec<Task>;

    /// Ends the tasks of this process in order and waits for them.
    fn end_tasks(&self);
}

/// What the processes that share a backend agree on.
pub trait Coordination: Send + Sync {
    /// An id that distinguishes this installation from others with the same database.
    fn installation_id(&self) -> Result<String, PodError>;

    /// Takes part in the election of one leader. A leader that dies is replaced after `lease`.
    fn join_election(
        &self,
        identity: &str,
        lease: Duration,
        on_change: Callback<Leadership>,
    ) -> Box<dyn LeaderElection>;
}

/// Takes part in an election until it is dropped.
pub trait LeaderElection: Send {
    /// Whether this process leads now. Turns false by itself once that is no longer certain.
    fn is_leader(&self) -> bool;

    /// Gives the lead up, so that another process need not wait until the lease expires.
    fn release(self: Box<Self>);
}

impl PodRef {
    fn of(pod: &Pod) -> Self {
        let ObjectMeta { name, uid, .. } = pod.metadata.clone();
        let attempt = attempt_of(&pod.metadata).map(str::to_owned);
        Self { name: name.unwrap_or_default(), uid: uid.unwrap_or_default(), attempt, secrets: secrets_of(pod) }
    }
}

impl TaskPod {
    fn of(pod: &Pod) -> Self {
        let metadata = &pod.metadata;
        Self {
            id: PodRef::of(pod),
            owner: annotation(metadata, OWNER).map(str::to_owned),
            created_at: metadata.creation_timestamp.as_ref().map(|time| time.0),
            task: task_of(metadata),
            observation: Observation::of(pod),
            deleting: metadata.deletion_timestamp.is_some(),
        }
    }
}

impl PodOfTask {
    /// `None`: a Pod of another task.
    fn of(metadata: &ObjectMeta, task_id: &str) -> Option<Self> {
        if annotation(metadata, task::TASK_ID) != Some(task_id) {
            return None;
        }
        Some(Self {
            name: metadata.name.clone().unwrap_or_default(),
            sync_id: annotation(metadata, task::SYNC_ID).unwrap_or_default().to_owned(),
            task: task_of(metadata),
        })
    }
}

/// What a backend that cannot store it needs to start a task later.
#[derive(Serialize, Deserialize)]
struct DelayedStart {
    start_at: Timestamp,
    pod: Pod,
}

impl WaitingTask {
    /// From a document that [`Launcher::prepare`] has returned.
    pub fn parse(document: String) -> Result<Self, String> {
        let DelayedStart { start_at, pod } = serde_json::from_str(&document).map_err(|error| error.to_string())?;
        let name = pod.metadata.name.clone().unwrap_or_default();
        Ok(Self { pod: name, task: task_of(&pod.metadata)?, start_at, document: Some(document) })
    }
}

fn annotation<'a>(metadata: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

/// The launch that created an object.
fn attempt_of(metadata: &ObjectMeta) -> Option<&str> {
    annotation(metadata, ATTEMPT)
}

fn task_of(metadata: &ObjectMeta) -> Result<Task, String> {
    Task::from_annotations(metadata.annotations.as_ref().unwrap_or(&BTreeMap::new()))
}

/// The number of Secrets of a Pod: those with its documents, and at least the one with the database URL.
fn secrets_of(pod: &Pod) -> usize {
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    let sources = volumes.iter().filter_map(|volume| volume.projected.as_ref()?.sources.as_deref()).flatten();
    sources.filter(|source| source.secret.is_some()).count().max(1)
}
