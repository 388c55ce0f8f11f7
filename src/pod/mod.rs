//! The pod-lifecycle module: launch, follow, list, delete. The only place with kube, k8s-openapi, tokio and async.
//!
//! To the outside everything is blocking. Every call to the API server has a deadline. Knows nothing of the database:
//! what became of a Pod is told to the caller, who records it first and has the Pod deleted second.

pub mod client;
mod kubernetes;
pub mod manifest;
pub mod payload;
pub mod status;

use std::time::Duration;

use jiff::Timestamp;
use kube::Client;
use tokio::runtime::Runtime;

pub use kubernetes::Follower;
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

impl From<PodError> for Failure {
    fn from(error: PodError) -> Self {
        let class = match &error {
            PodError::Kubeconfig(_) => Class::Usage,
            PodError::Unreachable { .. } => Class::ClusterUnreachable,
            PodError::Forbidden { .. } => Class::Forbidden,
            PodError::Refused { .. } => Class::Refused,
            PodError::Exists { .. } => Class::TaskExists,
            PodError::TooLarge { .. } => Class::PayloadTooLarge,
        };
        let failure = Self::new(class, error.to_string());
        match error {
            PodError::Kubeconfig(_) => failure
                .with_hint("set SYNCCTL_KUBERNETES_CLIENT_CONFIG or --kubeconfig to a kubeconfig that can be read"),
            _ => failure,
        }
    }
}

/// A connection to a namespace of a cluster.
pub struct Cluster {
    runtime: Runtime,
    api: kubernetes::Api,
}

/// A Pod or Secret of ours as a sweep sees it.
#[derive(Debug, Clone)]
pub struct Owned {
    /// The object's name.
    pub name: String,
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
}

/// What a follower tells.
#[derive(Debug, Clone, PartialEq)]
pub enum Update {
    /// The Pod as it is now.
    Seen(Box<Observation>),
    /// The Pod is gone, and we did not delete it.
    Gone,
}

impl Cluster {
    /// Connects. Reads the configuration but makes no call: the first one tells whether the server is there.
    pub fn connect(settings: &client::ClientSettings) -> Result<Self, PodError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("kubernetes")
            .enable_all()
            .build()
            .map_err(|error| PodError::Kubeconfig(format!("starting the client's runtime: {error}")))?;
        let (client, namespace, server): (Client, String, String) = runtime.block_on(client::connect(settings))?;
        Ok(Self { runtime, api: kubernetes::Api::new(client, namespace, server) })
    }

    /// The namespace in which Pods are made.
    pub fn namespace(&self) -> &str {
        &self.api.namespace
    }

    /// Creates Secrets, then the Pod, then makes the Pod the Secrets' owner. On an error nothing stays behind.
    pub fn launch(&self, launch: &Launch<'_>) -> Result<(), PodError> {
        let objects = launch.objects()?;
        self.runtime.block_on(self.api.launch(&objects, launch.attempt))
    }

    /// Calls `tell` at each change of the Pod, and at least every `resync`, until the follower is dropped.
    pub fn follow(&self, pod: &str, resync: Duration, tell: impl Fn(Update) + Send + 'static) -> Follower {
        Follower::start(&self.runtime, self.api.clone(), pod.to_owned(), resync, Box::new(tell))
    }

    /// What the cluster's events say of a Pod that does not start; empty when they cannot be read.
    pub fn warnings(&self, pod: &str) -> Vec<String> {
        self.runtime.block_on(self.api.warnings(pod))
    }

    /// Deletes the Pod; its Secrets go with [`wait_gone`](Self::wait_gone). `grace` 0 deletes all of it at once, and also
    /// forgets a Pod whose node is gone.
    pub fn delete(&self, pod: &str, grace: Option<Duration>) -> Result<(), PodError> {
        self.runtime.block_on(self.api.delete(pod, grace))
    }

    /// Waits until the Pod is gone, at most for `limit`; then removes it without the node's word. Deletes its Secrets.
    pub fn wait_gone(&self, pod: &str, limit: Duration) -> Result<(), PodError> {
        self.runtime.block_on(self.api.wait_gone(pod, limit))
    }

    /// Deletes one Secret.
    pub fn delete_secret(&self, name: &str) -> Result<(), PodError> {
        self.runtime.block_on(self.api.delete_secret(name))
    }

    /// All Pods of ours in the namespace.
    pub fn pods(&self) -> Result<Vec<Owned>, PodError> {
        self.runtime.block_on(self.api.pods())
    }

    /// All Secrets of ours in the namespace.
    pub fn secrets(&self) -> Result<Vec<Owned>, PodError> {
        self.runtime.block_on(self.api.secrets())
    }
}

impl Owned {
    fn of(
        metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
        observation: Option<Observation>,
    ) -> Self {
        let annotations = metadata.annotations.clone().unwrap_or_default();
        Self {
            name: metadata.name.clone().unwrap_or_default(),
            owner: annotations.get(OWNER).cloned(),
            created_at: metadata.creation_timestamp.as_ref().map(|time| time.0),
            task: Task::from_annotations(&annotations),
            observation,
            deleting: metadata.deletion_timestamp.is_some(),
            has_controller: metadata.owner_references.as_ref().is_some_and(|owners| !owners.is_empty()),
        }
    }
}

/// The launch that made an object.
fn attempt_of(metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> Option<&str> {
    metadata.annotations.as_ref()?.get(ATTEMPT).map(String::as_str)
}
