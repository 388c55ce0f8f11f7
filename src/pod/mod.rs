//! Where tasks run: launch, follow, watch, list, delete, lead.
//!
//! [`Pods`] is all that the rest of the program knows of it, and it is blocking. A task is a Pod with two containers, as
//! [`manifest`] writes it and [`status`] reads it; [`kubernetes`] has a cluster run it, [`local`] this machine. Knows
//! nothing of the database: what became of a Pod is told to the caller, who records it first and has the Pod deleted
//! second.

pub mod connector;
mod image_errors;
pub mod kubernetes;
pub mod local;
pub mod manifest;
pub mod payload;
pub mod status;

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use manifest::{ATTEMPT, Launch, OWNER};
use status::Observation;

use crate::failure::{Class, Failure};
use crate::task::Task;

/// What went wrong between us and the API server.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    /// The client configuration cannot be used.
    #[error("{0}")]
    Kubeconfig(String),
    /// Nothing answers, or not in time.
    #[error("{action}: the API server {server} does not answer: {cause}")]
    Unreachable {
        /// A gerund and its object.
        action: String,
        /// Its URL.
        server: String,
        /// What the transport said.
        cause: String,
    },
    /// A right is missing.
    #[error("{action}: {message}")]
    Forbidden {
        /// A gerund and its object.
        action: String,
        /// What the API server said, verbatim: it names the right.
        message: String,
    },
    /// The API server refuses the object.
    #[error("{action}: {message}")]
    Refused {
        /// A gerund and its object.
        action: String,
        /// What the API server said, verbatim.
        message: String,
    },
    /// There is an object of that name that this launch did not make.
    #[error("pod {name} exists already: the task was started before")]
    Exists {
        /// The Pod's name.
        name: String,
    },
    /// This machine could not do it.
    #[error("{}", .0.text)]
    Machine(Failure),
    /// The documents do not fit.
    #[error(
        "configuration, catalog and state take {} MiB compressed, and the Secrets of one Pod hold {} MiB",
        bytes.div_ceil(1024 * 1024),
        limit / (1024 * 1024)
    )]
    TooLarge {
        /// Compressed size.
        bytes: usize,
        /// The most that fits.
        limit: usize,
    },
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
            PodError::TooLarge { .. } => Class::PayloadTooLarge,
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

/// A Pod or Secret of ours as a sweep sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Owned {
    /// The object's name.
    pub name: String,
    /// What tells it from another object of its name.
    pub uid: String,
    /// The launch that made it.
    pub attempt: Option<String>,
    /// The process that follows it, if a one-off command made it.
    pub owner: Option<String>,
    /// When the API server accepted it.
    pub created_at: Option<Timestamp>,
    /// The task in its annotations; an error when they are not ours or broken.
    pub task: Result<Task, String>,
    /// What the Pod looks like; `None` for a Secret.
    pub observation: Option<Observation>,
    /// It is being deleted already.
    pub deleting: bool,
    /// It goes away with another object.
    pub has_controller: bool,
    /// How many Secrets a Pod has; 0 for a Secret.
    pub secrets: usize,
}

/// When a Pod becomes the owner of its Secrets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ownership {
    /// Before `launch` returns: a call more for each Secret.
    Now,
    /// By [`Cluster::own_secrets`]. Until then only a sweep finds the Secrets of a Pod that goes away.
    Later,
}

/// What a launch has made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launched {
    /// The Pod's uid.
    pub uid: String,
    /// How many Secrets it has.
    pub secrets: usize,
}

/// What a follower tells.
#[derive(Debug, Clone, PartialEq)]
pub enum Update {
    /// The Pod as it is now.
    Seen(Box<Observation>),
    /// The Pod is gone, and we did not delete it.
    Gone,
}

/// What a watch tells.
#[derive(Debug)]
pub enum Event {
    /// A Pod is new or has changed.
    Seen(Box<Owned>),
    /// A Pod is gone.
    Gone {
        /// Its name; there may be another one by now.
        name: String,
        /// Its uid.
        uid: String,
    },
    /// Everything that is there was told as seen, and everything that has vanished as gone.
    Listed,
    /// The API server could not be asked. It will be asked again.
    Failed(PodError),
}

/// What becomes of a campaign.
#[derive(Debug)]
pub enum Leadership {
    /// This process leads.
    Leads {
        /// Grows with every change of the holder.
        term: u64,
    },
    /// It does not, or not any more.
    Follows {
        /// Who does, as far as is known.
        holder: Option<String>,
    },
    /// The API server could not be asked. It will be asked again.
    Failed(PodError),
}

/// What goes on until it is dropped.
pub type Guard = Box<dyn Send>;

/// Takes part in an election until it is dropped. Who drops it without [`release`](Self::release) leaves the others to
/// find out, as who is killed does.
pub trait Campaign: Send {
    /// Whether this process leads at this moment. Becomes false by itself when it can no longer be sure of it.
    fn leads(&self) -> bool;

    /// Stops to lead and says so, so that another process can begin at once.
    fn release(self: Box<Self>);
}

/// A place for Pods. Everything blocks, and every call has a deadline.
pub trait Pods: Send + Sync {
    /// Where Pods are made, for people: `in namespace …`.
    fn place(&self) -> String;

    /// Creates Secrets and the Pod, and makes the Pod the Secrets' owner. On an error nothing stays behind.
    fn launch(&self, launch: &Launch<'_>, ownership: Ownership) -> Result<Launched, PodError>;

    /// Calls `tell` at each change of the Pod, and at least every `resync`, until the guard is dropped.
    fn follow(&self, pod: &str, resync: Duration, tell: Box<dyn Fn(Update) + Send>) -> Guard;

    /// What is known of a Pod that does not start beyond its state; empty when that cannot be read.
    fn warnings(&self, pod: &str) -> Vec<String>;

    /// Deletes the Pod; its Secrets go with [`wait_gone`](Self::wait_gone). `grace` 0 deletes all of it at once, and also
    /// forgets a Pod whose node is gone.
    fn delete(&self, pod: &str, grace: Option<Duration>) -> Result<(), PodError>;

    /// Waits until the Pod is gone, at most for `limit`; then removes it without the node's word. Deletes its Secrets.
    fn wait_gone(&self, pod: &str, limit: Duration) -> Result<(), PodError>;

    /// Deletes one Secret.
    fn delete_secret(&self, name: &str) -> Result<(), PodError>;

    /// All Pods of ours.
    fn pods(&self) -> Result<Vec<Owned>, PodError>;

    /// All Secrets of ours.
    fn secrets(&self) -> Result<Vec<Owned>, PodError>;

    /// Makes the Pod the owner of its Secrets, so that they are deleted when it goes. Doing it twice is no harm.
    fn own_secrets(&self, pod: &str, uid: &str, secrets: usize) -> Result<(), PodError>;

    /// Tells of all Pods of ours until the guard is dropped: of each change at once, and of what was missed at least
    /// every `resync`. `tell` must not wait for anything.
    fn watch(&self, resync: Duration, tell: Box<dyn Fn(Event) + Send>) -> Guard;

    /// Takes part in the election of the one process that leads. `tell` must not wait for anything.
    fn campaign(&self, identity: &str, lasts: Duration, tell: Box<dyn Fn(Leadership) + Send>) -> Box<dyn Campaign>;

    /// What tells this installation from others with the same database.
    fn installation(&self) -> Result<String, PodError>;

    /// One Pod as it is now.
    fn pod(&self, name: &str) -> Result<Option<Owned>, PodError>;

    /// Deletes the Pod and not another one of its name; it is no error that it is gone. Its Secrets stay: they go with it
    /// when the Pod owns them, else by [`delete_secrets`](Self::delete_secrets).
    fn delete_uid(&self, pod: &str, uid: &str, grace: Option<Duration>) -> Result<(), PodError>;

    /// Deletes a Secret and not another one of its name; it is no error that it is gone.
    fn delete_secret_uid(&self, name: &str, uid: &str) -> Result<(), PodError>;

    /// Deletes the Secrets of this very Pod, and not those of a later launch of the same task.
    fn delete_secrets(&self, pod: &Owned) -> Result<(), PodError>;

    /// Whether Pods could be made now.
    fn reachable(&self) -> Result<(), PodError>;

    /// How many calls failed since the start for a reason that is not in the request.
    fn troubles(&self) -> u64;

    /// Whether tasks go on when the process that launched them has died.
    fn outlives_us(&self) -> bool {
        true
    }

    /// This process is about to end: tasks that cannot go on without it are ended in order.
    fn leave(&self) {}
}

impl Owned {
    fn of_pod(pod: &Pod) -> Self {
        Self { secrets: secrets_of(pod), ..Self::of(&pod.metadata, Some(Observation::of(pod))) }
    }

    fn of_secret(metadata: &ObjectMeta) -> Self {
        Self::of(metadata, None)
    }

    fn of(metadata: &ObjectMeta, observation: Option<Observation>) -> Self {
        let annotations = metadata.annotations.as_ref();
        let annotation = |name: &str| annotations.and_then(|all| all.get(name)).cloned();
        Self {
            name: metadata.name.clone().unwrap_or_default(),
            uid: metadata.uid.clone().unwrap_or_default(),
            attempt: annotation(ATTEMPT),
            owner: annotation(OWNER),
            created_at: metadata.creation_timestamp.as_ref().map(|time| time.0),
            task: Task::from_annotations(annotations.unwrap_or(&BTreeMap::new())),
            observation,
            deleting: metadata.deletion_timestamp.is_some(),
            has_controller: metadata.owner_references.as_ref().is_some_and(|owners| !owners.is_empty()),
            secrets: 0,
        }
    }
}

/// The launch that made an object.
fn attempt_of(metadata: &ObjectMeta) -> Option<&str> {
    metadata.annotations.as_ref()?.get(ATTEMPT).map(String::as_str)
}

/// How many Secrets a Pod has: those with its documents, and at least the one with the database URL.
fn secrets_of(pod: &Pod) -> usize {
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    let sources = volumes.iter().filter_map(|volume| volume.projected.as_ref()?.sources.as_deref()).flatten();
    sources.filter(|source| source.secret.is_some()).count().max(1)
}
